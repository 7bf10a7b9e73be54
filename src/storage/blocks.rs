//! Blocks of datasets: one file each, written once, read whole, verified whenever it is read.
//!
//! **Guarantee.** What [`BlockStore::get`] returns is what [`BlockStore::put`] was given. A file that is not, or is
//! gone, is never returned: it is forgotten, and must be fetched from another replica. With [`Place::Kept`] a block
//! is on the disk when `put` returns.
//!
//! **Method.** `<swarm>/<dataset>/<number>`, written under another name and renamed when it is whole. Beside them
//! `name`, the name of the dataset, so that a node that comes back can ask whether it is still there. What is kept is
//! known in memory; the disk is asked when a swarm is entered, and when a block is read.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::dataset::{BlockId, MAX_BLOCK_BYTES};
use crate::id::{DatasetId, SwarmId};

/// Bytes of blocks that a node keeps unless told otherwise.
pub const DEFAULT_BLOCK_BUDGET: u64 = 16 * 1024 * 1024 * 1024;

/// What a block's file begins with: these bytes, then checksum and length, 32 bits each, little endian.
const MAGIC: [u8; 4] = *b"RTB1";
const HEADER_BYTES: usize = 12;
/// The file that says what a dataset is called.
const NAME_FILE: &str = "name";
/// Behind the name of a file that is not whole yet.
const UNFINISHED: &str = ".tmp";
/// Begins the names of directories of nodes that keep nothing.
const TEMPORARY: &str = "roundtable-blocks-";
/// In such a directory: locked as long as its node runs.
const LOCK_FILE: &str = "lock";
/// How often a name for such a directory is drawn.
const TRIES: u32 = 8;

/// Where blocks are kept.
#[derive(Debug, Clone)]
pub enum Place {
    /// In this directory, across restarts; each is synced.
    Kept(PathBuf),
    /// Below this directory, in one that goes away with the store.
    Temporary(PathBuf),
}

/// The blocks that a node keeps. All methods but the counts block.
#[derive(Debug)]
pub struct BlockStore {
    place: Place,
    budget: u64,
    state: Mutex<State>,
    blocks: AtomicUsize,
    /// Distinguishes files that are being written.
    writes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Where blocks are, once something was written to a temporary place.
    root: Option<Arc<Root>>,
    swarm: Option<SwarmId>,
    datasets: BTreeMap<DatasetId, Held>,
    /// Bytes of all blocks, those that are being written included.
    used: u64,
}

/// A directory, which is removed when its last user is gone if it is temporary.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    temporary: Option<File>,
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.temporary.is_some() {
            // What remains is removed by the next node that starts here.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// What is kept of a dataset.
#[derive(Debug, Clone, Default)]
struct Held {
    name: Vec<u8>,
    /// Length and checksum by number.
    blocks: BTreeMap<u32, (u32, u32)>,
}

/// Why a block was not kept or not returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The node is in no swarm, or in another one.
    #[error("not in that swarm")]
    NoSwarm,
    /// It is not kept, or was damaged.
    #[error("no such block")]
    NotHeld,
    /// It was damaged, or its file is gone: it is not kept any more.
    #[error("the block is damaged: {why}")]
    Damaged {
        /// What is wrong.
        why: String,
        /// The name of its dataset.
        name: Vec<u8>,
    },
    /// There is no room.
    #[error("no room for more blocks")]
    Full,
    /// The bytes do not agree with the checksum, or another block is kept under that name.
    #[error("the bytes are not those of the block")]
    Mismatch,
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl BlockStore {
    /// Nothing is touched before the first swarm is entered.
    pub fn new(place: Place, budget: u64) -> Self {
        Self {
            place,
            budget,
            state: Mutex::default(),
            blocks: AtomicUsize::new(0),
            writes: AtomicU64::new(0),
        }
    }

    /// Bytes that may be kept.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// How many blocks are kept.
    pub fn count(&self) -> usize {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Bytes of blocks that are kept or being written.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// The swarm whose blocks these are.
    pub fn swarm(&self) -> Option<SwarmId> {
        self.state().swarm
    }

    /// The node is in this swarm now: finds what is kept of it, and removes what is kept of any other.
    ///
    /// # Errors
    /// If the disk does not read. It is in no swarm then.
    pub fn enter(&self, swarm: SwarmId) -> Result<(), BlockError> {
        let mut state = self.state();
        if state.swarm == Some(swarm) {
            return Ok(());
        }
        state.swarm = None;
        state.datasets.clear();
        state.used = 0;
        self.blocks.store(0, Ordering::Relaxed);
        let root = match (&self.place, &state.root) {
            (_, Some(root)) => Some(root.path.clone()),
            (Place::Kept(path), None) => Some(path.clone()),
            (Place::Temporary(_), None) => None,
        };
        if let Some(root) = root.filter(|root| root.exists()) {
            for entry in fs::read_dir(&root)? {
                let entry = entry?;
                let name = entry.file_name();
                match name.to_str().and_then(|name| name.parse::<SwarmId>().ok()) {
                    Some(found) if found == swarm => self.scan(&mut state, &entry.path())?,
                    Some(_) => fs::remove_dir_all(entry.path())?,
                    // What an earlier life of the node had beside its blocks.
                    None if state.root.is_none() && entry.file_type()?.is_dir() => {
                        fs::remove_dir_all(entry.path())?;
                    }
                    None => {}
                }
            }
        }
        state.swarm = Some(swarm);
        Ok(())
    }

    fn scan(&self, state: &mut State, swarm: &Path) -> io::Result<()> {
        for entry in fs::read_dir(swarm)? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()?.parse::<DatasetId>().ok());
            let name = fs::read(path.join(NAME_FILE));
            let (Some(id), Ok(name)) = (id, name) else {
                // The first of it was being written when the node ended.
                fs::remove_dir_all(&path)?;
                continue;
            };
            let mut held = Held { name, blocks: BTreeMap::new() };
            for entry in fs::read_dir(&path)? {
                let path = entry?.path();
                let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
                if let Ok(number) = name.parse::<u32>() {
                    match read_header(&path) {
                        Ok(header) => {
                            state.used += u64::from(header.0);
                            held.blocks.insert(number, header);
                        }
                        Err(error) => {
                            tracing::warn!(%error, path = %path.display(), "a block is damaged");
                            fs::remove_file(&path)?;
                        }
                    }
                } else if name.ends_with(UNFINISHED) {
                    fs::remove_file(&path)?;
                }
            }
            self.blocks.fetch_add(held.blocks.len(), Ordering::Relaxed);
            state.datasets.insert(id, held);
        }
        Ok(())
    }

    /// Keeps a block. To keep one again that is kept is no error.
    ///
    /// # Errors
    /// Nothing is kept then.
    pub fn put(&self, block: BlockId, name: &[u8], checksum: u32, bytes: &[u8]) -> Result<(), BlockError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if bytes.len() > MAX_BLOCK_BYTES || crc32c::crc32c(bytes) != checksum {
            return Err(BlockError::Mismatch);
        }
        let (root, swarm) = {
            let mut state = self.state();
            let swarm = state.swarm.ok_or(BlockError::NoSwarm)?;
            match state.datasets.get(&block.dataset).and_then(|held| held.blocks.get(&block.number)) {
                Some(known) if *known == (length, checksum) => return Ok(()),
                Some(_) => return Err(BlockError::Mismatch),
                None => {}
            }
            if state.used + u64::from(length) > self.budget {
                return Err(BlockError::Full);
            }
            let root = self.root(&mut state)?;
            state.used += u64::from(length);
            (root, swarm)
        };
        let written = self.write(&root.path.join(swarm.to_string()), block, name, checksum, bytes);
        let mut state = self.state();
        let is_new = written.is_ok() && {
            let held = state.datasets.entry(block.dataset).or_default();
            held.name = name.to_vec();
            held.blocks.insert(block.number, (length, checksum)).is_none()
        };
        if is_new {
            self.blocks.fetch_add(1, Ordering::Relaxed);
        } else {
            state.used = state.used.saturating_sub(u64::from(length));
        }
        match written {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(BlockError::Full),
            result => Ok(result?),
        }
    }

    fn write(
        &self,
        swarm: &Path,
        block: BlockId,
        name: &[u8],
        checksum: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let directory = swarm.join(block.dataset.to_string());
        if !directory.join(NAME_FILE).exists() {
            make_private(&directory)?;
            self.replace(&directory, NAME_FILE, &[name])?;
            for parent in [Some(swarm), swarm.parent()].into_iter().flatten() {
                self.sync(parent)?;
            }
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&checksum.to_le_bytes());
        header[8..].copy_from_slice(&length.to_le_bytes());
        self.replace(&directory, &block.number.to_string(), &[&header, bytes])
    }

    /// Puts a file in its place at once, and on the disk if it is to be kept.
    fn replace(&self, directory: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let write = self.writes.fetch_add(1, Ordering::Relaxed);
        let unfinished = directory.join(format!("{name}.{write}{UNFINISHED}"));
        let written = (|| {
            let mut file = File::create(&unfinished)?;
            for part in parts {
                file.write_all(part)?;
            }
            if self.is_kept() {
                file.sync_data()?;
            }
            fs::rename(&unfinished, directory.join(name))
        })();
        if written.is_err() {
            // It may not even be there.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.sync(directory)
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        if self.is_kept() { File::open(directory)?.sync_all() } else { Ok(()) }
    }

    fn is_kept(&self) -> bool {
        matches!(self.place, Place::Kept(_))
    }

    /// A block's checksum and bytes.
    ///
    /// # Errors
    /// [`BlockError::Damaged`]: it was kept and is not any more.
    pub fn get(&self, block: BlockId) -> Result<(u32, Bytes), BlockError> {
        let (path, known) = {
            let state = self.state();
            let held = state.datasets.get(&block.dataset).ok_or(BlockError::NotHeld)?;
            let known = *held.blocks.get(&block.number).ok_or(BlockError::NotHeld)?;
            (path_of(&state, &self.place, block).ok_or(BlockError::NotHeld)?, known)
        };
        let name_of = |id| self.state().datasets.get(&id).map(|held| held.name.clone());
        match read(&path, known) {
            Ok(bytes) => Ok((known.1, bytes)),
            Err(error) => {
                let name = name_of(block.dataset).unwrap_or_default();
                self.remove(block);
                Err(BlockError::Damaged { why: error.to_string(), name })
            }
        }
    }

    /// Which of these are kept, as far as is known without reading them.
    pub fn held(&self, blocks: &[BlockId]) -> Vec<bool> {
        let state = self.state();
        let is_held = |block: &BlockId| {
            state.datasets.get(&block.dataset).is_some_and(|held| held.blocks.contains_key(&block.number))
        };
        blocks.iter().map(is_held).collect()
    }

    /// The datasets of which something is kept, and their names.
    pub fn datasets(&self) -> Vec<(DatasetId, Vec<u8>)> {
        let state = self.state();
        state.datasets.iter().map(|(id, held)| (*id, held.name.clone())).collect()
    }

    /// The numbers of the blocks that are kept of a dataset.
    pub fn numbers(&self, dataset: DatasetId) -> Vec<u32> {
        let state = self.state();
        state.datasets.get(&dataset).map(|held| held.blocks.keys().copied().collect()).unwrap_or_default()
    }

    /// Which block that is kept comes behind another one, by dataset and number; `None`: the first.
    pub fn next_after(&self, block: Option<BlockId>) -> Option<BlockId> {
        let state = self.state();
        let from = block.map_or(DatasetId(0), |block| block.dataset);
        state.datasets.range(from..).find_map(|(dataset, held)| {
            let behind = block.filter(|block| block.dataset == *dataset).map(|block| block.number);
            let first = behind.map_or(Bound::Unbounded, Bound::Excluded);
            let (number, _) = held.blocks.range((first, Bound::Unbounded)).next()?;
            Some(BlockId { dataset: *dataset, number: *number })
        })
    }

    /// Drops a block.
    pub fn remove(&self, block: BlockId) {
        let mut state = self.state();
        let path = path_of(&state, &self.place, block);
        let Some(held) = state.datasets.get_mut(&block.dataset) else { return };
        let Some((length, _)) = held.blocks.remove(&block.number) else { return };
        let is_last = held.blocks.is_empty();
        state.used = state.used.saturating_sub(u64::from(length));
        self.blocks.fetch_sub(1, Ordering::Relaxed);
        // Under the lock: nobody puts it anew meanwhile. A file that stays is found at the next start.
        if let Some(path) = path {
            let _ = fs::remove_file(&path);
        }
        drop(state);
        if is_last {
            self.remove_dataset_if(block.dataset, |held| held.blocks.is_empty());
        }
    }

    /// Drops all blocks of a dataset.
    pub fn remove_dataset(&self, dataset: DatasetId) {
        self.remove_dataset_if(dataset, |_| true);
    }

    fn remove_dataset_if(&self, dataset: DatasetId, is_meant: impl Fn(&Held) -> bool) {
        let mut state = self.state();
        if !state.datasets.get(&dataset).is_some_and(is_meant) {
            return;
        }
        let path = path_of(&state, &self.place, BlockId { dataset, number: 0 });
        let Some(held) = state.datasets.remove(&dataset) else { return };
        let bytes: u64 = held.blocks.values().map(|(length, _)| u64::from(*length)).sum();
        state.used = state.used.saturating_sub(bytes);
        self.blocks.fetch_sub(held.blocks.len(), Ordering::Relaxed);
        if let Some(directory) = path.as_deref().and_then(Path::parent) {
            let _ = fs::remove_dir_all(directory);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self, state: &mut State) -> io::Result<Arc<Root>> {
        if let Some(root) = &state.root {
            return Ok(Arc::clone(root));
        }
        let root = Arc::new(match &self.place {
            Place::Kept(path) => {
                make_private(path)?;
                Root { path: path.clone(), temporary: None }
            }
            Place::Temporary(parent) => temporary(parent)?,
        });
        state.root = Some(Arc::clone(&root));
        Ok(root)
    }

    /// Takes some of the room for other files of the node; `false`: there is not so much.
    pub fn reserve(&self, bytes: u64) -> bool {
        let mut state = self.state();
        let fits = state.used + bytes <= self.budget;
        if fits {
            state.used += bytes;
        }
        fits
    }

    /// Gives back what was [reserved](Self::reserve).
    pub fn release(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
    }

    /// A directory for other files of the node, beside the blocks; it is emptied when it is first asked for.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.root(&mut self.state())?.path.join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        make_private(&path)?;
        Ok(path)
    }
}

fn path_of(state: &State, place: &Place, block: BlockId) -> Option<PathBuf> {
    let root = match (&state.root, place) {
        (Some(root), _) => &root.path,
        (None, Place::Kept(path)) => path,
        (None, Place::Temporary(_)) => return None,
    };
    let swarm = root.join(state.swarm?.to_string());
    Some(swarm.join(block.dataset.to_string()).join(block.number.to_string()))
}

fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes a directory that only this store uses, and removes those of nodes that were killed.
fn temporary(parent: &Path) -> io::Result<Root> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let is_one =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with(TEMPORARY));
        if is_one
            && let Ok(lock) = File::open(path.join(LOCK_FILE))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
    for _ in 0..TRIES {
        let path = parent.join(format!("{TEMPORARY}{:016x}", rand::random::<u64>()));
        if path.exists() {
            continue;
        }
        make_private(&path)?;
        let lock = File::create(path.join(LOCK_FILE))?;
        // Another node may just have taken it for one that was left behind.
        if lock.try_lock().is_ok() {
            return Ok(Root { path, temporary: Some(lock) });
        }
    }
    Err(io::Error::other("no directory for blocks can be made"))
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Length and checksum, from a header and the length of the file.
fn read_header(path: &Path) -> io::Result<(u32, u32)> {
    let mut file = File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let found = parse(&header)?;
    if file.metadata()?.len() != HEADER_BYTES as u64 + u64::from(found.0) {
        return Err(damaged("it is not as long as it was"));
    }
    Ok(found)
}

fn parse(header: &[u8; HEADER_BYTES]) -> io::Result<(u32, u32)> {
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (checksum, length) = (number(4), number(8));
    if header[..4] != MAGIC || length as usize > MAX_BLOCK_BYTES {
        return Err(damaged("it does not begin as a block"));
    }
    Ok((length, checksum))
}

fn read(path: &Path, known: (u32, u32)) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let mut bytes = Vec::with_capacity(known.0 as usize + 1);
    file.take(u64::from(known.0) + 1).read_to_end(&mut bytes)?;
    if parse(&header)? != known || bytes.len() != known.0 as usize || crc32c::crc32c(&bytes) != known.1 {
        return Err(damaged("its bytes are not those that were written"));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWARM: SwarmId = SwarmId(7);

    fn block(dataset: u128, number: u32) -> BlockId {
        BlockId { dataset: DatasetId(dataset), number }
    }

    fn kept(directory: &Path) -> BlockStore {
        let store = BlockStore::new(Place::Kept(directory.join("blocks")), 1000);
        store.enter(SWARM).unwrap();
        store
    }

    fn put(store: &BlockStore, id: BlockId, bytes: &[u8]) -> Result<(), BlockError> {
        store.put(id, b"name", crc32c::crc32c(bytes), bytes)
    }

    fn file(directory: &Path, id: BlockId) -> PathBuf {
        let swarm = directory.join("blocks").join(SWARM.to_string());
        swarm.join(id.dataset.to_string()).join(id.number.to_string())
    }

    #[test]
    fn what_was_put_is_there_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = kept(directory.path());
        put(&store, block(1, 0), b"first").unwrap();
        put(&store, block(1, 9), b"second").unwrap();
        put(&store, block(1, 0), b"first").unwrap();
        assert!(matches!(put(&store, block(1, 0), b"other"), Err(BlockError::Mismatch)));
        assert!(matches!(store.put(block(1, 1), b"name", 5, b"x"), Err(BlockError::Mismatch)));
        drop(store);
        // The node was killed while it wrote.
        fs::write(file(directory.path(), block(1, 3)).with_extension("4.tmp"), b"half").unwrap();
        fs::create_dir(file(directory.path(), block(2, 0)).parent().unwrap()).unwrap();
        let store = kept(directory.path());
        assert_eq!((store.count(), store.used()), (2, 11));
        assert_eq!(store.get(block(1, 9)).unwrap().1, &b"second"[..]);
        assert_eq!(store.datasets(), [(DatasetId(1), b"name".to_vec())]);
        assert_eq!(store.numbers(DatasetId(1)), [0, 9]);
        assert_eq!(store.held(&[block(1, 0), block(1, 1), block(2, 0)]), [true, false, false]);
        let after = |block| store.next_after(Some(block));
        assert_eq!((store.next_after(None), after(block(0, 5))), (Some(block(1, 0)), Some(block(1, 0))));
        assert_eq!((after(block(1, 0)), after(block(1, 9))), (Some(block(1, 9)), None));
        store.remove(block(1, 0));
        store.remove_dataset(DatasetId(1));
        assert_eq!((store.count(), store.used(), store.datasets().len()), (0, 0, 0));
        assert!(!file(directory.path(), block(1, 9)).parent().unwrap().exists());
        // What is kept of another swarm goes when a new one is entered.
        put(&store, block(1, 0), b"first").unwrap();
        store.enter(SwarmId(8)).unwrap();
        assert!(matches!(store.get(block(1, 0)), Err(BlockError::NotHeld)));
        assert!(!file(directory.path(), block(1, 0)).exists());
    }

    #[test]
    fn damage_is_found_and_never_returned() {
        type Harm = fn(&Path);
        let harms: [Harm; 4] = [
            |path| {
                let mut bytes = fs::read(path).unwrap();
                bytes[HEADER_BYTES + 2] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            |path| File::options().write(true).open(path).unwrap().set_len(14).unwrap(),
            |path| fs::write(path, [fs::read(path).unwrap(), vec![0]].concat()).unwrap(),
            |path| fs::remove_file(path).unwrap(),
        ];
        for harm in harms {
            let directory = tempfile::tempdir().unwrap();
            let store = kept(directory.path());
            put(&store, block(1, 0), b"first").unwrap();
            harm(&file(directory.path(), block(1, 0)));
            assert!(matches!(store.get(block(1, 0)), Err(BlockError::Damaged { .. })));
            assert!(matches!(store.get(block(1, 0)), Err(BlockError::NotHeld)));
            put(&store, block(1, 0), b"first").unwrap();
            assert_eq!(store.get(block(1, 0)).unwrap().1, &b"first"[..]);
        }
    }

    #[test]
    fn the_budget_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = kept(directory.path());
        put(&store, block(1, 0), &[1; 600]).unwrap();
        assert!(matches!(put(&store, block(1, 1), &[1; 401]), Err(BlockError::Full)));
        put(&store, block(1, 1), &[1; 400]).unwrap();
        store.remove(block(1, 0));
        put(&store, block(1, 2), &[1; 600]).unwrap();
        assert_eq!((store.used(), store.count()), (1000, 2));
    }

    #[test]
    fn a_temporary_store_leaves_nothing_and_cleans_up_after_killed_ones() {
        let directory = tempfile::tempdir().unwrap();
        let dead = directory.path().join(format!("{TEMPORARY}dead"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK_FILE), b"").unwrap();
        let new = || {
            let store = BlockStore::new(Place::Temporary(directory.path().to_owned()), 1000);
            store.enter(SWARM).unwrap();
            store
        };
        let (one, other) = (new(), new());
        assert!(dead.exists(), "nothing is touched before the first block");
        put(&one, block(1, 0), b"first").unwrap();
        put(&other, block(1, 0), b"first").unwrap();
        assert!(!dead.exists());
        assert_eq!(one.get(block(1, 0)).unwrap().1, &b"first"[..]);
        drop((one, other));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
