//! A disk for tests: in memory, forgets at a power cut what was not synced, and fails when it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::storage::disk::{Disk, File, Lock};

/// What a device writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryDisk {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    gate: Condvar,
}

#[derive(Debug, Default)]
struct State {
    dirs: BTreeMap<PathBuf, Dir>,
    files: Vec<Contents>,
    locks: BTreeSet<PathBuf>,
    /// Operations that change something until the power goes; `None`: it stays.
    fuse: Option<u64>,
    /// No more bytes than this in all files.
    capacity: Option<usize>,
    /// Of so many writes one is cut short.
    short_writes: Option<StdRng>,
    /// The next sync fails, and forgets what it should have written.
    fail_sync: bool,
    past_cache: PastCache,
    /// Syncs wait.
    held: bool,
    /// Sectors that cannot be read, of files by their names.
    unreadable: BTreeSet<(PathBuf, usize)>,
    syncs: u64,
}

/// What becomes of what is to be written past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum PastCache {
    #[default]
    Written,
    /// With this error.
    Refused(io::ErrorKind),
    /// No file is opened for it.
    Unknown,
}

/// A directory: what is in it, what will be after a power cut, and the changes between the two.
#[derive(Debug, Default)]
struct Dir {
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<Change>,
}

/// Names that are given or (`None`) taken, all or none.
type Change = Vec<(String, Option<usize>)>;

#[derive(Debug, Default, Clone)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    path: PathBuf,
    id: usize,
    /// Each write is synced.
    durable: bool,
}

#[derive(Debug)]
struct MemoryLock {
    disk: MemoryDisk,
    path: PathBuf,
}

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap()
    }

    /// With this directory.
    pub(super) fn with_dir(path: &Path) -> Self {
        let disk = Self::default();
        disk.state().dirs.entry(path.to_owned()).or_default();
        disk
    }

    /// The power goes at this operation from now.
    pub(super) fn cut_power_in(&self, operations: u64) {
        self.state().fuse = Some(operations);
    }

    /// The power is back. Of what was not synced any part may be there.
    pub(super) fn restore_power(&self, rng: &mut StdRng) {
        let mut state = self.state();
        state.fuse = None;
        state.fail_sync = false;
        for dir in state.dirs.values_mut() {
            let pending = std::mem::take(&mut dir.pending);
            let prefix = rng.random_bool(0.5).then(|| rng.random_range(0..=pending.len()));
            for (number, change) in pending.into_iter().enumerate() {
                if prefix.map_or_else(|| rng.random_bool(0.5), |prefix| number < prefix) {
                    apply(&mut dir.durable, change);
                }
            }
            dir.live = dir.durable.clone();
        }
        let named: BTreeSet<usize> = state.dirs.values().flat_map(|dir| dir.live.values()).copied().collect();
        for (id, file) in state.files.iter_mut().enumerate() {
            if !named.contains(&id) {
                *file = Contents::default();
                continue;
            }
            let size = if rng.random_bool(0.5) { file.live.len() } else { file.durable.len() };
            // What one device does: all, nothing, the beginning, or any sectors.
            let way = rng.random_range(0..4);
            let until = rng.random_range(0..=file.dirty.len());
            let dirty = std::mem::take(&mut file.dirty);
            for (number, sector) in dirty.into_iter().enumerate() {
                let kept = match way {
                    0 => true,
                    1 => false,
                    2 => number < until,
                    _ => rng.random_bool(0.5),
                };
                if kept {
                    file.persist(sector);
                }
            }
            file.durable.resize(size, 0);
            file.live = file.durable.clone();
        }
    }

    /// So many bytes and no more.
    pub(super) fn set_capacity(&self, bytes: Option<usize>) {
        self.state().capacity = bytes;
    }

    pub(super) fn used(&self) -> usize {
        self.state().used()
    }

    pub(super) fn write_short(&self, seed: u64) {
        self.state().short_writes = Some(StdRng::seed_from_u64(seed));
    }

    /// Lets all that is written go through the page cache.
    pub(super) fn write_cached(&self) {
        self.state().past_cache = PastCache::Unknown;
    }

    /// Refuses what is to be written past the page cache.
    pub(super) fn refuse_blocks(&self, error: io::ErrorKind) {
        self.state().past_cache = PastCache::Refused(error);
    }

    pub(super) fn fail_next_sync(&self) {
        self.state().fail_sync = true;
    }

    /// Lets syncs wait, or lets them go on.
    pub(super) fn hold_syncs(&self, held: bool) {
        self.state().held = held;
        self.inner.gate.notify_all();
    }

    pub(super) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Lets a read of this place fail.
    pub(super) fn make_unreadable(&self, path: &Path, at: usize) {
        self.state().unreadable.insert((path.to_owned(), at / SECTOR));
    }

    /// All files of a directory, in the order of their names.
    pub(super) fn files(&self, dir: &Path) -> Vec<PathBuf> {
        self.state()
            .dirs
            .get(dir)
            .map_or_else(Vec::new, |found| found.live.keys().map(|name| dir.join(name)).collect())
    }

    /// Changes what is on the disk behind everybody's back.
    pub(super) fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = state.find(path).unwrap();
        change(&mut state.files[id].live);
        state.files[id].durable = state.files[id].live.clone();
    }

    /// Another disk with the same on it.
    pub(super) fn copy(&self) -> Self {
        let state = self.state();
        let dirs = state.dirs.iter().map(|(path, dir)| {
            let (live, durable) = (dir.live.clone(), dir.live.clone());
            (path.clone(), Dir { live, durable, pending: Vec::new() })
        });
        let named: BTreeSet<usize> = state.dirs.values().flat_map(|dir| dir.live.values()).copied().collect();
        let files = state.files.iter().enumerate().map(|(id, file)| {
            let live = if named.contains(&id) { file.live.clone() } else { Vec::new() };
            Contents { durable: live.clone(), live, dirty: BTreeSet::new() }
        });
        let copy = State { dirs: dirs.collect(), files: files.collect(), ..State::default() };
        Self { inner: Arc::new(Inner { state: Mutex::new(copy), gate: Condvar::new() }) }
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: Change) {
    for (name, id) in change {
        match id {
            Some(id) => names.insert(name, id),
            None => names.remove(&name),
        };
    }
}

impl Contents {
    fn persist(&mut self, sector: usize) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.live.len());
        if from < to {
            if self.durable.len() < to {
                self.durable.resize(to, 0);
            }
            self.durable[from..to].copy_from_slice(&self.live[from..to]);
        }
    }
}

impl State {
    fn used(&self) -> usize {
        let named = self.dirs.values().flat_map(|dir| dir.live.values()).collect::<BTreeSet<_>>();
        named.into_iter().map(|id| self.files[*id].live.len()).sum()
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let (dir, name) = split(path);
        self.dirs
            .get(dir)
            .and_then(|dir| dir.live.get(&name))
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Counts an operation that changes something.
    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, dir: &Path, change: Change) -> io::Result<()> {
        let dir = self.dirs.get_mut(dir).ok_or(io::ErrorKind::NotFound)?;
        apply(&mut dir.live, change.clone());
        dir.pending.push(change);
        Ok(())
    }
}

fn split(path: &Path) -> (&Path, String) {
    (path.parent().unwrap(), path.file_name().unwrap().to_string_lossy().into_owned())
}

impl Disk for MemoryDisk {
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.burn()?;
        // Directories survive by themselves: what is in them is what matters here.
        state.dirs.entry(path.to_owned()).or_default();
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let dir = state.dirs.get(path).ok_or(io::ErrorKind::NotFound)?;
        let dirs = state.dirs.keys().filter(|other| other.parent() == Some(path)).map(|other| split(other).1);
        Ok(dir.live.keys().cloned().chain(dirs).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        state.burn()?;
        let (dir, name) = split(path);
        // A new file in any case: what an old one loses by this is not what is tested here.
        let id = state.files.len();
        state.files.push(Contents::default());
        state.change(dir, vec![(name, Some(id))])?;
        Ok(Box::new(MemoryFile { disk: self.clone(), path: path.to_owned(), id, durable: false }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let id = self.state().find(path)?;
        Ok(Box::new(MemoryFile { disk: self.clone(), path: path.to_owned(), id, durable: false }))
    }

    fn open_durable(&self, path: &Path) -> Option<Box<dyn File>> {
        let state = self.state();
        let id = state.find(path).ok()?;
        let file = MemoryFile { disk: self.clone(), path: path.to_owned(), id, durable: true };
        (state.past_cache != PastCache::Unknown).then(|| Box::new(file) as Box<dyn File>)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.burn()?;
        if state.dirs.contains_key(from) {
            let moved = state.dirs.remove(from).unwrap();
            state.dirs.insert(to.to_owned(), moved);
            return Ok(());
        }
        let id = state.find(from)?;
        let ((dir, before), (_, after)) = (split(from), split(to));
        state.change(dir, vec![(before, None), (after, Some(id))])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.burn()?;
        state.find(path)?;
        let (dir, name) = split(path);
        state.change(dir, vec![(name, None)])
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.burn()?;
        state.dirs.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.burn()?;
        let Some(dir) = state.dirs.get_mut(path) else {
            return Ok(());
        };
        for change in std::mem::take(&mut dir.pending) {
            apply(&mut dir.durable, change);
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        if !self.state().locks.insert(path.to_owned()) {
            return Ok(None);
        }
        if self.state().find(path).is_err() {
            self.create(path)?;
        }
        Ok(Some(Box::new(MemoryLock { disk: self.clone(), path: path.to_owned() })))
    }
}

impl Lock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

impl File for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.id].live.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let at = usize::try_from(at).unwrap();
        let bytes = state.files[self.id].live.get(at..).unwrap_or_default();
        let size = bytes.len().min(buffer.len());
        if (at / SECTOR..(at + size).div_ceil(SECTOR))
            .any(|sector| state.unreadable.contains(&(self.path.clone(), sector)))
        {
            return Err(rustix::io::Errno::IO.into());
        }
        buffer[..size].copy_from_slice(&bytes[..size]);
        Ok(size)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.burn()?;
        if let PastCache::Refused(error) = state.past_cache
            && self.durable
        {
            return Err(error.into());
        }
        let at = usize::try_from(at).unwrap();
        let mut size = bytes.len();
        // What a device takes at once: of a durable write whole sectors, and memory that begins at one.
        let unit = if self.durable { SECTOR } else { 1 };
        assert!([at, size, bytes.as_ptr().addr()].iter().all(|number| number.is_multiple_of(unit)));
        if let Some(rng) = &mut state.short_writes
            && rng.random_bool(0.2)
        {
            if rng.next_u32() % 4 == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            size = rng.random_range(1..=size).next_multiple_of(unit);
        }
        if let Some(capacity) = state.capacity {
            let length = state.files[self.id].live.len();
            let room = capacity.saturating_sub(state.used());
            let fits = (length + room).saturating_sub(at);
            size = size.min(fits - fits % unit);
            if size == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let file = &mut state.files[self.id];
        if file.live.len() < at + size {
            file.live.resize(at + size, 0);
        }
        file.live[at..at + size].copy_from_slice(&bytes[..size]);
        let sectors = at / SECTOR..(at + size).div_ceil(SECTOR);
        file.dirty.extend(sectors.clone());
        drop(state);
        if self.durable {
            self.make_durable(Some(&sectors))?;
        }
        Ok(size)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.burn()?;
        state.files[self.id].live.resize(usize::try_from(size).unwrap(), 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.make_durable(None)
    }
}

impl MemoryFile {
    /// Syncs what is dirty, or of that only these sectors.
    fn make_durable(&self, only: Option<&Range<usize>>) -> io::Result<()> {
        let mut state = self.disk.state();
        while state.held {
            state = self.disk.inner.gate.wait(state).unwrap();
        }
        state.burn()?;
        state.syncs += 1;
        let fails = std::mem::take(&mut state.fail_sync);
        let file = &mut state.files[self.id];
        let (synced, dirty): (Vec<_>, Vec<_>) = std::mem::take(&mut file.dirty)
            .into_iter()
            .partition(|sector| only.is_none_or(|only| only.contains(sector)));
        file.dirty.extend(dirty);
        if fails {
            // As Linux does it: what was not written counts as clean from now on.
            return Err(rustix::io::Errno::IO.into());
        }
        for sector in synced {
            file.persist(sector);
        }
        let size = file.live.len();
        file.durable.resize(size, 0);
        Ok(())
    }
}
