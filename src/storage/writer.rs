//! The log of one swarm as it is written: one caller, no thread of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dir::{self, FileError, UNFINISHED};
use super::disk::{BLOCK_BYTES, Disk, File, is_full};
use super::format::{self, Data, End, Item, Kind, StateDescription, StateFile, Summary, TooLong};
use super::index::Index;
use super::replay::{Finding, Forgotten, Read, Replay};
use super::tail::Tail;
use super::{Progress, StoreConfig, StoreError, StoreStats};
use crate::id::{PartitionId, ReplicaId};
use crate::replication::{Stored, StoredState, Write};

/// The log's identity, and whether it was ever begun.
const LOG_FILE: &str = "log";
/// A segment that is not needed any more, kept because its blocks are allocated.
const SPARE_FILE: &str = "spare";
const SEGMENT_SUFFIX: &str = ".log";
const STATE_SUFFIX: &str = ".state";
/// So many bytes are read or written at a time where it matters to nobody.
const CHUNK_BYTES: usize = 1024 * 1024;
/// A sector that cannot be read is taken for zeros in pieces of so many bytes.
const UNREADABLE_BYTES: usize = 4096;
/// After so many bytes of records, one carries a summary: what a damaged record can cast doubt upon ends there.
const SUMMARY_EVERY_BYTES: u64 = 1024 * 1024;
/// Kept free at the end of a segment for the note that another one has begun.
const END_BYTES: u64 = 64;
/// Partitions that are asked for their states at a time: while one is written, nothing else is.
const STATES_AT_A_TIME: usize = 1;

/// What went wrong with a write.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no room. Nothing has happened; it may be tried again.
    Full(io::Error),
    /// It is not known what is on the disk: nothing more may be written.
    Failed(io::Error),
}

impl Trouble {
    /// Of anything but a sync, which may have lost what it did not write.
    fn of(error: io::Error) -> Self {
        if is_full(&error) { Self::Full(error) } else { Self::Failed(error) }
    }

    fn into_error(self) -> io::Error {
        match self {
            Self::Full(error) | Self::Failed(error) => error,
        }
    }
}

/// The log of one swarm, and the states beside it.
#[derive(Debug)]
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    config: StoreConfig,
    log: u64,
    index: Index,
    /// Those before the current one; numbers rise.
    segments: VecDeque<Segment>,
    current: Current,
    /// Length of the spare segment, if there is one.
    spare: Option<u64>,
    /// Number of the next data record.
    sequence: u64,
    buffer: Vec<u8>,
    /// Bytes of records since the last summary.
    since_summary: u64,
    /// The last record is a summary: it proves that all before it were on the disk.
    sealed: bool,
    wanted: Wanted,
    stats: StoreStats,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    number: u64,
    /// Length of the file.
    bytes: u64,
    /// Whether it begins with a sound summary.
    based: bool,
}

/// The segment that is written.
#[derive(Debug)]
struct Current {
    number: u64,
    file: Box<dyn File>,
    /// Where the next record goes.
    offset: u64,
    /// Up to here the file has blocks of its own.
    // Invariant: offset <= filled, except that an extraordinarily long record may go beyond.
    filled: u64,
    /// Before this there is nothing but a summary.
    begin: u64,
    /// Whether it begins with a sound summary.
    based: bool,
    /// Its end, where that can be written past the page cache.
    tail: Option<Tail>,
}

/// States that were asked for.
#[derive(Debug, Default)]
struct Wanted {
    /// Asked for and not come yet.
    open: BTreeSet<PartitionId>,
    /// Of each partition, the segment that was written when it was last asked: no more than once for each.
    asked: BTreeMap<PartitionId, u64>,
}

/// One turn's writes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) writes: Vec<Write>,
    pub(super) bytes: usize,
}

/// What [`Writer::open`] found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) stored: Stored,
    pub(super) findings: Vec<Finding>,
    /// There was no room for the first record of this process.
    pub(super) full: bool,
}

fn segment_name(number: u64) -> String {
    format!("{number:010}{SEGMENT_SUFFIX}")
}

fn segment_number(name: &str) -> Option<u64> {
    name.strip_suffix(SEGMENT_SUFFIX)?.parse().ok()
}

impl Writer {
    /// Reads what is there, makes the end of it durable, and goes on behind it.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        path: &Path,
        config: StoreConfig,
        new_log: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Opened, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        disk.make_dir(path).map_err(io)?;
        if let Some(parent) = path.parent() {
            disk.sync_dir(parent).map_err(io)?;
        }
        let names = disk.list(path).map_err(io)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
        numbers.sort_unstable();
        let (log, begun) = identity(&**disk, path, &numbers, new_log)?;

        let mut reader = Reader::new(&**disk, path, progress);
        reader.measure(&names).map_err(io)?;
        let mut replay = Replay::new();
        let mut last: Option<(Segment, Read)> = None;
        let mut segments = VecDeque::new();
        for &number in &numbers {
            reader.read(&segment_name(number), &mut replay.findings).map_err(io)?;
            let read = replay.segment(number, format::mark(log, number), &reader.buffer);
            // One without a sound record was not finished when the process ended, or those behind it tell what
            // was lost with it.
            if read.end.is_some() {
                let segment = Segment { number, bytes: reader.buffer.len() as u64, based: read.based };
                segments.extend(last.replace((segment, read)).map(|(segment, _)| segment));
            }
        }
        if last.is_some() || begun {
            replay.finish().map_err(|Forgotten| {
                report(&replay.findings);
                StoreError::Forgotten { path: path.to_owned() }
            })?;
        }
        reader.states(&mut replay).map_err(io)?;
        report(&replay.findings);

        let mut stats = StoreStats::default();
        let current = match last {
            Some((segment, read)) => {
                let end = read.end.unwrap_or(0);
                Current::go_on(&**disk, path, segment, end, &mut reader.buffer, &mut stats)
            }
            None => Current::nothing(&**disk, path, numbers.last().map_or(1, |number| number + 1)),
        };
        let mut writer = Self {
            current: current.map_err(io)?,
            sequence: replay.next_sequence().unwrap_or(1),
            index: replay.index,
            disk: Arc::clone(disk),
            path: path.to_owned(),
            config,
            log,
            segments,
            spare: None,
            buffer: Vec::new(),
            since_summary: 0,
            sealed: false,
            wanted: Wanted::default(),
            stats,
        };
        let harmed = !replay.findings.iter().all(Finding::is_harmless);
        let full = writer.begin(&names, begun, harmed).map_err(io)?;
        Ok(Opened { writer, stored: replay.stored, findings: replay.findings, full })
    }

    /// The first records of this process, and away with what nothing names. Whether there was no room for the records.
    fn begin(&mut self, names: &[String], begun: bool, harmed: bool) -> io::Result<bool> {
        self.index.take_obsolete();
        self.index.summary.log = self.log;
        let new = self.current.offset == 0;
        let full = match self.seal() {
            // Nothing new would be said: a full disk does not keep anybody from reading.
            Err(Trouble::Full(_)) if begun && !harmed => true,
            result => {
                result.map_err(Trouble::into_error)?;
                false
            }
        };
        if new {
            self.current.begin = self.current.offset;
            self.current.based = true;
        }
        self.disk.sync_dir(&self.path)?;
        if !begun {
            let identity = format::wrap(&crate::codec::encode(&(self.log, true)));
            dir::replace(&*self.disk, &self.path, LOG_FILE, &identity)?;
        }
        let used: BTreeSet<String> = self.index.state_files().collect();
        let live: BTreeSet<u64> = self.segments.iter().map(|segment| segment.number).collect();
        for name in names {
            let unused = name.ends_with(UNFINISHED)
                || (name.ends_with(STATE_SUFFIX) && !used.contains(name))
                || segment_number(name)
                    .is_some_and(|number| number != self.current.number && !live.contains(&number));
            if unused {
                self.disk.remove(&self.path.join(name))?;
            } else if name == SPARE_FILE {
                self.spare = Some(self.disk.open(&self.path.join(name))?.size()?);
            }
        }
        Ok(full)
    }

    /// Keeps the batches, whole and together. When it returns, they are on the disk.
    pub(super) fn commit(&mut self, batches: &[Batch]) -> Result<(), Trouble> {
        let files = self.write_states(batches)?;
        let mut data = self.data(items(batches, &files).collect());
        self.encode(&data)?;
        if !self.fits(self.current.offset) {
            self.roll()?;
            data = self.data(data.writes);
            self.encode(&data)?;
        }
        self.write_record()?;
        self.sequence += 1;
        let before = if data.summary.is_some() { 0 } else { self.since_summary };
        self.since_summary = before + self.buffer.len() as u64;
        self.sealed = false;
        for item in &data.writes {
            self.index.apply(item, self.current.number);
        }
        let oldest = self.oldest();
        self.wanted.open.retain(|partition| self.index.holds(*partition, oldest));
        Ok(())
    }

    /// Whether the record in the buffer belongs into the current segment, at an offset. One that is longer than a
    /// segment has one of its own.
    fn fits(&self, at: u64) -> bool {
        at + self.buffer.len() as u64 + END_BYTES <= self.config.segment_bytes
            || self.current.offset <= self.current.begin
    }

    /// What a record of these writes says, as things stand now.
    fn data<'a>(&self, writes: Vec<Item<'a>>) -> Data<'a> {
        let summary = (self.since_summary >= SUMMARY_EVERY_BYTES).then(|| self.index.summary.clone());
        let counts =
            writes.iter().map(Item::partition).map(|partition| (partition, self.index.count(partition)));
        Data { table: self.index.summary.table, counts: counts.collect(), summary, writes }
    }

    /// Puts the record into the buffer.
    fn encode(&mut self, data: &Data<'_>) -> Result<(), Trouble> {
        let mark = format::mark(self.log, self.current.number);
        format::encode(&mut self.buffer, mark, self.sequence, Kind::Data, data).map_err(|TooLong| {
            Trouble::Failed(io::Error::other("a turn's writes are longer than a record may be"))
        })
    }

    /// Writes the record in the buffer behind the last one, and waits for the disk.
    fn write_record(&mut self) -> Result<(), Trouble> {
        let current = &mut self.current;
        if let Err(trouble) = current.write(&self.buffer) {
            if matches!(trouble, Trouble::Full(_)) {
                current.give_back()?;
            }
            return Err(trouble);
        }
        self.stats.fsyncs += 1;
        self.stats.bytes_written += self.buffer.len() as u64;
        Ok(())
    }

    /// Writes all states in the batches to files of their own, in their order.
    fn write_states(&mut self, batches: &[Batch]) -> Result<Vec<StateFile>, Trouble> {
        let mut files = Vec::new();
        for write in batches.iter().flat_map(|batch| &batch.writes) {
            let Write::State { partition, replica, state, .. } = write else {
                continue;
            };
            let description = StateDescription {
                partition: *partition,
                replica: *replica,
                index: state.index,
                term: state.term,
                header: &state.header,
            };
            let (head, checksum) = format::state_head(&description, &state.data);
            let file = StateFile {
                index: state.index,
                term: state.term,
                sequence: self.sequence,
                bytes: (head.len() + state.data.len()) as u64,
                checksum,
            };
            let name = file.name(*partition, *replica);
            let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
            if let Err(trouble) = self.write_state(&unfinished, &[&head, &state.data]) {
                if matches!(trouble, Trouble::Full(_)) {
                    self.disk.remove(&unfinished).map_err(Trouble::Failed)?;
                }
                return Err(trouble);
            }
            self.disk.rename(&unfinished, &self.path.join(name)).map_err(Trouble::of)?;
            files.push(file);
        }
        if !files.is_empty() {
            self.sync_dir()?;
        }
        Ok(files)
    }

    fn write_state(&mut self, path: &Path, parts: &[&[u8]]) -> Result<(), Trouble> {
        let file = self.disk.create(path).map_err(Trouble::of)?;
        let mut at = 0;
        for part in parts {
            file.write_all_at(part, at).map_err(Trouble::of)?;
            at += part.len() as u64;
        }
        // Of a file that nothing names yet, even a sync without room has lost nothing.
        file.sync().map_err(Trouble::of)?;
        self.stats.fsyncs += 1;
        self.stats.bytes_written += at;
        Ok(())
    }

    fn sync_dir(&mut self) -> Result<(), Trouble> {
        self.disk.sync_dir(&self.path).map_err(Trouble::Failed)?;
        self.stats.fsyncs += 1;
        Ok(())
    }

    /// Begins the next segment.
    fn roll(&mut self) -> Result<(), Trouble> {
        let number = self.current.number + 1;
        let path = self.path.join(segment_name(number));
        match self.begin_segment(number, &path) {
            Ok(next) => {
                self.end_segment(number)?;
                let before = std::mem::replace(&mut self.current, next);
                let Current { number, filled, based, .. } = before;
                self.segments.push_back(Segment { number, bytes: filled, based });
                self.since_summary = 0;
                // Whoever has not answered by now may be asked again.
                self.wanted.open.clear();
                Ok(())
            }
            Err(Trouble::Full(error)) => {
                match self.disk.remove(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Trouble::Failed(error));
                    }
                    _ => {}
                }
                Err(Trouble::Full(error))
            }
            Err(trouble) => Err(trouble),
        }
    }

    fn begin_segment(&mut self, number: u64, path: &Path) -> Result<Current, Trouble> {
        let (file, filled) = if let Some(size) = self.spare.take() {
            self.disk.rename(&self.path.join(SPARE_FILE), path).map_err(Trouble::of)?;
            (self.disk.open(path).map_err(Trouble::of)?, size)
        } else {
            (self.disk.create(path).map_err(Trouble::of)?, 0)
        };
        let mark = format::mark(self.log, number);
        format::encode(&mut self.buffer, mark, self.sequence, Kind::Summary, &self.index.summary).map_err(
            |TooLong| Trouble::Failed(io::Error::other("a summary is longer than a record may be")),
        )?;
        file.write_all_at(&self.buffer, 0).map_err(Trouble::of)?;
        let begin = self.buffer.len() as u64;
        let filled = filled.max(begin);
        let mut current = Current { number, file, offset: begin, filled, begin, based: true, tail: None };
        let room = match current.fill(CHUNK_BYTES as u64, self.config.segment_bytes) {
            // What the spare has is the reserve for this.
            Err(error) if is_full(&error) => {
                current.give_back()?;
                0
            }
            room => room.map_err(Trouble::of)?,
        };
        current.file.sync().map_err(Trouble::Failed)?;
        self.stats.fsyncs += 1;
        self.stats.bytes_written += begin + room;
        self.sync_dir()?;
        current.tail = Tail::open(&*self.disk, path, &*current.file, begin);
        Ok(current)
    }

    /// Notes in the segment that is over that another one has begun.
    fn end_segment(&mut self, next: u64) -> Result<(), Trouble> {
        let mark = format::mark(self.log, self.current.number);
        format::encode(&mut self.buffer, mark, self.sequence, Kind::End, &End { next })
            .map_err(|TooLong| Trouble::Failed(io::Error::other("a record is too long")))?;
        match self.write_record() {
            // It would only help to notice if the next segment were ever missing.
            Err(Trouble::Full(_)) => Ok(()),
            result => result,
        }
    }

    /// Writes a summary, which proves that the records before it were on the disk; for times without anything
    /// else to do.
    pub(super) fn seal(&mut self) -> Result<(), Trouble> {
        if self.sealed {
            return Ok(());
        }
        let mark = format::mark(self.log, self.current.number);
        format::encode(&mut self.buffer, mark, self.sequence, Kind::Summary, &self.index.summary).map_err(
            |TooLong| Trouble::Failed(io::Error::other("a summary is longer than a record may be")),
        )?;
        // Damage to one block is not to reach both the last record and what proves that it was there.
        let at = self.current.offset.next_multiple_of(BLOCK_BYTES as u64);
        if !self.fits(at) {
            // The next segment begins with a summary.
            self.roll()?;
            self.sealed = true;
            return Ok(());
        }
        let gap = usize::try_from(at - self.current.offset).unwrap_or(0);
        self.buffer.splice(0..0, std::iter::repeat_n(0, gap));
        self.write_record()?;
        self.sealed = true;
        self.since_summary = 0;
        Ok(())
    }

    /// What can be done while nobody waits: one step of it; whether there may be more.
    pub(super) fn maintain(&mut self) -> Result<bool, Trouble> {
        self.remove_obsolete()?;
        self.cut()?;
        self.fill()
    }

    fn remove_obsolete(&mut self) -> Result<(), Trouble> {
        for name in self.index.take_obsolete() {
            match self.disk.remove(&self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Trouble::of(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives up the oldest segments, as far as nothing in them is needed.
    fn cut(&mut self) -> Result<(), Trouble> {
        let needed = self.index.oldest_needed(self.is_long()).unwrap_or(self.current.number);
        // What remains must begin with a summary.
        let based = self.segments.iter().map(|segment| (segment.number, segment.based));
        let keep_from = based
            .chain([(self.current.number, self.current.based)])
            .rfind(|(number, based)| *number <= needed && *based);
        let Some((keep_from, _)) = keep_from else {
            return Ok(());
        };
        while let Some(oldest) = self.segments.front().filter(|segment| segment.number < keep_from).copied() {
            let path = self.path.join(segment_name(oldest.number));
            if oldest.bytes == self.config.segment_bytes && self.spare.is_none_or(|size| size < oldest.bytes)
            {
                self.disk.rename(&path, &self.path.join(SPARE_FILE)).map_err(Trouble::of)?;
                self.spare = Some(oldest.bytes);
            } else {
                self.disk.remove(&path).map_err(Trouble::of)?;
            }
            self.segments.pop_front();
            // Before it is written under another name, nobody may find it under this one; and none goes before
            // an older one.
            self.sync_dir()?;
        }
        Ok(())
    }

    /// Allocates blocks ahead of what is written: so that a sync has nothing to do but to write the record, and
    /// as a reserve for a full disk. Whether there is more to do.
    fn fill(&mut self) -> Result<bool, Trouble> {
        let ahead = self.current.filled.saturating_sub(self.current.offset);
        if ahead + self.spare.unwrap_or(0) >= self.config.reserve_bytes {
            return Ok(false);
        }
        let written = if self.current.filled < self.config.segment_bytes {
            let written =
                self.current.fill(CHUNK_BYTES as u64, self.config.segment_bytes).map_err(Trouble::of)?;
            self.current.file.sync().map_err(Trouble::Failed)?;
            written
        } else {
            let path = self.path.join(SPARE_FILE);
            let (file, size) = match self.spare {
                Some(size) => (self.disk.open(&path), size),
                None => (self.disk.create(&path), 0),
            };
            let file = file.map_err(Trouble::of)?;
            self.spare = Some(size);
            let written = (CHUNK_BYTES as u64).min(self.config.segment_bytes.saturating_sub(size));
            zeros(&*file, size, written).map_err(Trouble::of)?;
            file.sync().map_err(Trouble::Failed)?;
            self.spare = Some(size + written);
            written
        };
        self.stats.fsyncs += 1;
        self.stats.bytes_written += written;
        Ok(written > 0)
    }

    /// The partitions whose states are wanted now, so that the log can be cut; each is told once.
    pub(super) fn want_states(&mut self) -> Vec<PartitionId> {
        if !self.is_long() || !self.wanted.open.is_empty() || self.segments.is_empty() {
            return Vec::new();
        }
        let (now, oldest) = (self.current.number, self.oldest());
        let wanted = &mut self.wanted;
        let last_asked = |partition: &PartitionId| wanted.asked.get(partition).copied();
        let mut ask: Vec<_> = self.index.holders(oldest).filter(|p| last_asked(p) != Some(now)).collect();
        // Whoever did not help the last time does not keep others from being asked.
        ask.sort_by_key(last_asked);
        ask.truncate(STATES_AT_A_TIME);
        wanted.asked.extend(ask.iter().map(|partition| (*partition, now)));
        wanted.open.extend(&ask);
        ask
    }

    /// Whether the log is to be cut.
    fn is_long(&self) -> bool {
        let stats = self.stats();
        stats.log_bytes > self.config.log_bytes.max(2 * stats.state_bytes)
    }

    fn oldest(&self) -> u64 {
        self.segments.front().map_or(self.current.number, |segment| segment.number)
    }

    /// What was done, and how much there is.
    pub(super) fn stats(&self) -> StoreStats {
        let before: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        StoreStats {
            log_bytes: before + self.current.offset,
            state_bytes: self.index.state_bytes(),
            ..self.stats
        }
    }
}

/// The writes of all batches as they are kept; `files` names the states among them, in their order.
fn items<'a>(batches: &'a [Batch], files: &'a [StateFile]) -> impl Iterator<Item = Item<'a>> {
    let mut files = files.iter();
    let writes = batches.iter().flat_map(|batch| &batch.writes);
    writes
        .filter_map(move |write| match write {
            Write::State { .. } => files.next().map(|file| Item::of(write, Some(*file))),
            _ => Some(Item::of(write, None)),
        })
        .flatten()
}

fn report(findings: &[Finding]) {
    for finding in findings {
        if matches!(finding, Finding::Torn { .. }) {
            // What every crash may leave.
            tracing::info!("{finding}");
        } else {
            tracing::warn!("{finding}");
        }
    }
}

/// The log's identity, and whether it was ever begun. One that is lost is found again in the log.
fn identity(disk: &dyn Disk, path: &Path, segments: &[u64], new: u64) -> Result<(u64, bool), StoreError> {
    let file = path.join(LOG_FILE);
    match dir::load(disk, &file) {
        Ok(Some(contents)) => {
            if let Ok(identity) = crate::codec::decode(&contents) {
                return Ok(identity);
            }
        }
        Ok(None) if segments.is_empty() => {
            let io = |source| StoreError::Io { path: file.clone(), source };
            let contents = format::wrap(&crate::codec::encode(&(new, false)));
            dir::replace(disk, path, LOG_FILE, &contents).map_err(io)?;
            return Ok((new, false));
        }
        Ok(None) | Err(FileError::Damaged { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    tracing::warn!("{} is missing or damaged", file.display());
    let found = segments.iter().find_map(|number| {
        let file = disk.open(&path.join(segment_name(*number))).ok()?;
        let mut bytes = vec![0; CHUNK_BYTES];
        let read = file.read_full_at(&mut bytes, 0).ok()?;
        let mark = u64::from_le_bytes(*bytes.first_chunk()?);
        let record = format::record_at(bytes.get(..read)?, 0, mark)?;
        let summary: Summary = format::decode(record.body)?;
        (format::mark(summary.log, *number) == mark).then_some(summary.log)
    });
    // It is written again when the log goes on.
    found.map(|log| (log, false)).ok_or_else(|| StoreError::Forgotten { path: path.to_owned() })
}

impl Current {
    /// A segment in which nothing is.
    fn nothing(disk: &dyn Disk, dir: &Path, number: u64) -> io::Result<Self> {
        let path = dir.join(segment_name(number));
        let file = disk.create(&path)?;
        let tail = Tail::open(disk, &path, &*file, 0);
        Ok(Self { number, file, offset: 0, filled: 0, begin: 0, based: false, tail })
    }

    /// The last segment, behind its last sound record.
    ///
    /// What was read may be in memory only: a sync that failed leaves it there, and does not try again. So it is
    /// written once more before anybody relies on it.
    fn go_on(
        disk: &dyn Disk,
        dir: &Path,
        segment: Segment,
        end: u64,
        buffer: &mut Vec<u8>,
        stats: &mut StoreStats,
    ) -> io::Result<Self> {
        let path = dir.join(segment_name(segment.number));
        let file = disk.open(&path)?;
        let mut at = 0;
        while at < end {
            buffer.resize(CHUNK_BYTES.min(usize::try_from(end - at).unwrap_or(CHUNK_BYTES)), 0);
            let read = file.read_full_at(buffer, at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
        file.sync()?;
        stats.fsyncs += 1;
        stats.bytes_written += end;
        let tail = Tail::open(disk, &path, &*file, end);
        let Segment { number, bytes, based } = segment;
        Ok(Self { number, file, offset: end, filled: bytes.max(end), begin: 0, based, tail })
    }

    /// Writes a record behind the last one, and waits for the disk.
    fn write(&mut self, record: &[u8]) -> Result<(), Trouble> {
        let end = self.offset + record.len() as u64;
        let written = match self.tail.as_mut().map(|tail| tail.write(record)) {
            Some(Ok(written)) => written,
            Some(Err(error)) if !is_refusal(&error) => return Err(Trouble::of(error)),
            Some(Err(_)) | None => {
                self.tail = None;
                self.file.write_all_at(record, self.offset).map_err(Trouble::of)?;
                self.file.sync().map_err(Trouble::Failed)?;
                end
            }
        };
        self.offset = end;
        self.filled = self.filled.max(written);
        Ok(())
    }

    /// After a write that found no room: a part of it may have gone beyond what the file had before.
    fn give_back(&self) -> Result<(), Trouble> {
        if self.file.size().is_ok_and(|size| size > self.filled) {
            self.file.set_size(self.filled).map_err(Trouble::Failed)?;
        }
        Ok(())
    }

    /// Lengthens the file by so many bytes, up to a limit; how many it were.
    fn fill(&mut self, bytes: u64, limit: u64) -> io::Result<u64> {
        let bytes = bytes.min(limit.saturating_sub(self.filled));
        zeros(&*self.file, self.filled, bytes)?;
        self.filled += bytes;
        Ok(bytes)
    }
}

/// Whether the file system wants writes past the page cache otherwise than it was asked, or not at all after all: nothing
/// was written.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn zeros(file: &dyn File, at: u64, bytes: u64) -> io::Result<()> {
    file.write_all_at(&vec![0; usize::try_from(bytes).unwrap_or(0)], at)
}

/// Reads files, and tells how far it is.
struct Reader<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    progress: &'a mut dyn FnMut(Progress),
    done: Progress,
    /// The file that was read last.
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(disk: &'a dyn Disk, path: &'a Path, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self { disk, path, progress, done: Progress::default(), buffer: Vec::new() }
    }

    /// Adds up what there is to read.
    fn measure(&mut self, names: &[String]) -> io::Result<()> {
        for name in names {
            if name.ends_with(SEGMENT_SUFFIX) || name.ends_with(STATE_SUFFIX) {
                self.done.total += self.disk.open(&self.path.join(name))?.size()?;
            }
        }
        (self.progress)(self.done);
        Ok(())
    }

    /// Reads a whole file. What the disk cannot read is zeros.
    fn read(&mut self, name: &str, findings: &mut Vec<Finding>) -> io::Result<()> {
        let file = self.disk.open(&self.path.join(name))?;
        let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
        self.buffer.resize(size, 0);
        for (number, chunk) in self.buffer.chunks_mut(CHUNK_BYTES).enumerate() {
            let at = (number * CHUNK_BYTES) as u64;
            match file.read_full_at(chunk, at) {
                Ok(read) if read < chunk.len() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if is_unreadable(&error) => {
                    for (number, piece) in chunk.chunks_mut(UNREADABLE_BYTES).enumerate() {
                        let offset = at + (number * UNREADABLE_BYTES) as u64;
                        match file.read_full_at(piece, offset) {
                            Err(error) if is_unreadable(&error) => {
                                piece.fill(0);
                                findings.push(Finding::Unreadable { file: name.to_owned(), offset });
                            }
                            result => _ = result?,
                        }
                    }
                }
                Err(error) => return Err(error),
            }
            self.done.read += chunk.len() as u64;
            (self.progress)(self.done);
        }
        Ok(())
    }

    /// Reads the states of all replicas. One whose state is not what was written is damaged.
    fn states(&mut self, replay: &mut Replay) -> io::Result<()> {
        let outlines = replay.index.summary.replicas.clone();
        for (partition, outline) in outlines {
            // Of its own: it is what becomes of the file, and a segment's would be far too long.
            self.buffer = Vec::new();
            let Some(meant) = outline.state else {
                continue;
            };
            let name = meant.name(partition, outline.replica);
            let state = match self.read(&name, &mut replay.findings) {
                Ok(()) => read_state(std::mem::take(&mut self.buffer), &meant, partition, outline.replica),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            if state.is_none() {
                replay.findings.push(Finding::State { partition, file: name });
                replay.mark_damaged(partition);
            }
            if let Some(replica) = replay.stored.replicas.get_mut(&partition) {
                replica.state = state;
            }
        }
        replay.strip_damaged();
        Ok(())
    }
}

fn read_state(
    mut file: Vec<u8>,
    meant: &StateFile,
    partition: PartitionId,
    replica: ReplicaId,
) -> Option<StoredState> {
    let (description, data) = format::read_state(&file, meant)?;
    let is_it = (description.partition, description.replica) == (partition, replica)
        && (description.index, description.term) == (meant.index, meant.term);
    let header = description.header.to_vec();
    file.drain(..data);
    is_it.then_some(StoredState { index: meant.index, term: meant.term, header, data: file })
}

/// Whether an error says that the medium is bad, and not that something is in the way.
fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
