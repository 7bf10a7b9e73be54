//! Reads a log back: what the records of all segments amount to, and what became of those that are damaged.
//!
//! **Problem.** A crash leaves a record half written at the end of the log; a bad disk changes bytes anywhere.
//! The first is as it should be and must lose nothing that was promised. The second must be noticed, and it must
//! be known of which replicas something was lost: those must not take part in their groups any more, and all
//! others are to go on.
//!
//! **Method.** A record is written only when the one before is on the disk. So a bad record is a torn one only if
//! no sound record follows; if one does, what is between them is damage, and the numbers of the two tell how
//! many data records were lost. From then on everything is *in doubt*, until a record tells how many writes its
//! partition has had: that number agrees if nothing of the partition was lost. A *summary* tells it of all
//! partitions, and also all that there is to know of a replica but its entries and its state: so a replica that
//! lost something is known again from there on, and what is *unproven* are its entries up to there; those that
//! were not read are held open by placeholders. If a later state covers them all, nothing is missing; otherwise
//! the replica is damaged.
//!
//! **Memory.** Most of the entries that are read are gone as soon as they are applied, while the state that they are
//! applied to grows and stays. So they are not allocated one by one, between what stays, but in a few large
//! [`Arena`]s, which an allocator takes from the system each by itself and gives back as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::{Bytes, BytesMut};

use super::format::{self, ALIGN_BYTES, Data, End, Item, Kind, Outline, Record, Summary};
use super::index::Index;
use crate::id::PartitionId;
use crate::replication::{LogEntry, Stored, StoredReplica, StoredState, Write};

/// Something in the log that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The last record was not finished: the process or the machine ended while it was written. It was never
    /// reported as persisted, and is cut off.
    Torn {
        /// The segment.
        segment: u64,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// Bytes in the middle of the log are not what was written.
    Corrupt {
        /// The segment.
        segment: u64,
        /// Where in it the damage begins, in bytes.
        offset: u64,
        /// How many records with data were lost.
        lost: u64,
    },
    /// Bytes between two records that are none themselves, and nothing is missing: of a write that was cut short,
    /// of a summary that is damaged, or of the zeros between records.
    Debris {
        /// The segment.
        segment: u64,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// A whole segment is missing, or nothing of it can be read.
    Missing {
        /// The segment that should follow.
        segment: u64,
    },
    /// The disk does not read a part of a file; it is taken for zeros.
    Unreadable {
        /// The file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// The state of a replica cannot be read.
    State {
        /// The partition.
        partition: PartitionId,
        /// The file.
        file: String,
    },
    /// A replica has lost something that it may have promised to keep: it is
    /// [`damaged`](StoredReplica::damaged).
    Damaged {
        /// The partition.
        partition: PartitionId,
    },
}

impl Finding {
    /// Whether nothing that was promised is lost.
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::Torn { .. } | Self::Debris { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torn { segment, offset } => {
                write!(f, "log segment {segment}: the record at {offset} was not finished and is cut off")
            }
            Self::Corrupt { segment, offset, lost } => {
                write!(f, "log segment {segment}: damaged at {offset}; records lost: {lost}")
            }
            Self::Debris { segment, offset } => {
                write!(f, "log segment {segment}: something unknown at {offset}, and nothing missing")
            }
            Self::Missing { segment } => write!(f, "log segment {segment} is missing or unreadable"),
            Self::Unreadable { file, offset } => write!(f, "{file}: the disk cannot read it at {offset}"),
            Self::State { partition, file } => {
                write!(f, "the state of partition {partition} in {file} is missing or damaged")
            }
            Self::Damaged { partition } => {
                write!(f, "the replica of partition {partition} has lost something and must be made anew")
            }
        }
    }
}

/// Whether it is known which replicas there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Known,
    /// Records were lost; it is not known yet whether a replica came or went in them.
    InDoubt,
    /// One did.
    Lost,
}

/// What the segments read so far amount to.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) stored: Stored,
    pub(super) index: Index,
    pub(super) findings: Vec<Finding>,
    /// Number of the next data record; `None`: nothing was read yet.
    expected: Option<u64>,
    table: Table,
    /// Replicas of which it is not known whether something was lost.
    doubt: BTreeSet<PartitionId>,
    /// The segment that must follow.
    promised: Option<u64>,
    /// The last segment with a sound record, and where the last one in it ends.
    behind: Option<(u64, u64)>,
    /// Of a replica that lost something: up to which index its entries are not proven to be its last.
    unproven: BTreeMap<PartitionId, u64>,
    arena: Arena,
}

/// Bytes of an arena: more than what any allocator keeps for itself (glibc: 32 MiB). What is not used of it is never
/// touched, and takes no memory.
const ARENA_BYTES: usize = 64 * 1024 * 1024;

/// Where the entries that are read are put, one behind the other. It lives as long as any of them.
#[derive(Debug, Default)]
struct Arena(BytesMut);

impl Arena {
    fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(ARENA_BYTES.max(bytes.len()));
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }
}

/// Where the sound part of a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    /// Behind its last sound record; `None`: there is none.
    pub(super) end: Option<u64>,
    /// Whether it says that another one follows.
    pub(super) continued: bool,
    /// Whether it begins with a sound summary, so that nothing before it is needed to understand it.
    pub(super) based: bool,
}

impl Replay {
    pub(super) fn new() -> Self {
        Self {
            stored: Stored::default(),
            index: Index::default(),
            findings: Vec::new(),
            expected: None,
            table: Table::InDoubt,
            doubt: BTreeSet::new(),
            promised: None,
            behind: None,
            unproven: BTreeMap::new(),
            arena: Arena::default(),
        }
    }

    /// Number of the next data record.
    pub(super) fn next_sequence(&self) -> Option<u64> {
        self.expected
    }

    /// Takes in a segment; they must come in their order.
    pub(super) fn segment(&mut self, number: u64, mark: u64, bytes: &[u8]) -> Read {
        let mut read = Read { end: None, continued: false, based: false };
        // Behind the last sound record: the zeros that end it, and what follows them.
        let (mut at, mut next) = (0, 0);
        while !read.continued {
            let Some((found, record)) = format::next_record(bytes, at, mark) else {
                break;
            };
            if read.end.is_none() {
                self.arrive_at(number);
                read.based = found == 0 && record.kind == Kind::Summary;
            }
            let lost = self.expected.map_or(0, |expected| record.sequence.saturating_sub(expected));
            self.record(&record, number);
            if lost > 0 {
                let (segment, offset) = self.behind.unwrap_or((number, 0));
                self.findings.push(Finding::Corrupt { segment, offset, lost });
            } else if bytes[at..found].iter().any(|byte| *byte != 0) {
                self.findings.push(Finding::Debris { segment: number, offset: at as u64 });
            }
            read.continued = record.kind == Kind::End;
            at = record.end;
            next = at.next_multiple_of(ALIGN_BYTES);
            read.end = Some(next as u64);
            self.behind = Some((number, next as u64));
        }
        if !read.continued && read.end.is_some() && bytes[next..].starts_with(&mark.to_le_bytes()) {
            self.findings.push(Finding::Torn { segment: number, offset: next as u64 });
        }
        read
    }

    /// The first sound record of another segment was found.
    fn arrive_at(&mut self, segment: u64) {
        if let Some(promised) = self.promised.take().filter(|promised| *promised != segment) {
            self.findings.push(Finding::Missing { segment: promised });
        }
        // What looked torn at the end of the segment before is the note that another one has begun, which says
        // nothing new; unless data records are missing.
        self.findings.pop_if(|finding| matches!(finding, Finding::Torn { .. }));
    }

    fn record(&mut self, record: &Record<'_>, segment: u64) {
        if self.expected.is_some_and(|expected| record.sequence < expected) {
            // Nothing that this code writes.
            return;
        }
        if self.expected != Some(record.sequence) {
            self.doubt = self.stored.replicas.keys().copied().collect();
            if self.table == Table::Known {
                self.table = Table::InDoubt;
            }
        }
        self.expected = Some(record.sequence);
        match record.kind {
            Kind::Data => {
                if let Some(data) = format::decode::<Data<'_>>(record.body) {
                    self.expected = Some(record.sequence + 1);
                    self.data(&data, segment);
                }
            }
            Kind::Summary => {
                if let Some(summary) = format::decode::<Summary>(record.body) {
                    self.summary(&summary);
                }
            }
            Kind::End => self.promised = format::decode::<End>(record.body).map(|end| end.next),
        }
    }

    fn data(&mut self, data: &Data<'_>, segment: u64) {
        if let Some(summary) = &data.summary {
            self.summary(summary);
        }
        self.table = match self.table {
            Table::Known | Table::InDoubt if data.table == self.index.summary.table => Table::Known,
            _ => Table::Lost,
        };
        let mut lost = Vec::new();
        for (&partition, &count) in &data.counts {
            self.doubt.remove(&partition);
            if count != self.index.count(partition) {
                self.index.summary.counts.insert(partition, count);
                lost.push(partition);
            }
        }
        for item in &data.writes {
            let partition = item.partition();
            let before = self.stored.replicas.get(&partition).map(|replica| replica.replica);
            // A write that does not fit has marked its replica as damaged.
            let _gap = self.stored.apply(to_write(item, &mut self.arena));
            self.index.apply(item, segment);
            if self.stored.replicas.get(&partition).map(|replica| replica.replica) != before {
                self.unproven.remove(&partition);
            } else if let Item::Append { first, .. } = item
                && let Some(unproven) = self.unproven.get_mut(&partition)
            {
                *unproven = (*unproven).min(first.saturating_sub(1));
            }
        }
        for partition in lost {
            self.mark_damaged(partition);
        }
    }

    pub(super) fn mark_damaged(&mut self, partition: PartitionId) {
        if let Some(replica) = self.stored.replicas.get_mut(&partition) {
            replica.damaged = true;
        }
        self.index.mark_damaged(partition);
    }

    fn summary(&mut self, summary: &Summary) {
        self.stored.replicas.retain(|partition, _| summary.replicas.contains_key(partition));
        self.stored.destroyed.clone_from(&summary.destroyed);
        let before = std::mem::take(&mut self.index.summary);
        for (&partition, outline) in &summary.replicas {
            let known = before.replicas.get(&partition);
            let proven = known.is_some_and(|known| known.or_damaged(outline.damaged) == *outline)
                && before.counts.get(&partition) == summary.counts.get(&partition);
            if proven {
                if let Some(replica) = self.stored.replicas.get_mut(&partition) {
                    replica.damaged = outline.damaged;
                }
            } else {
                let replica = from_outline(outline, self.stored.replicas.remove(&partition));
                self.stored.replicas.insert(partition, replica);
                self.index.forget_place(partition);
                self.unproven.insert(partition, outline.last);
            }
        }
        self.index.retain(&summary.replicas);
        self.index.summary = summary.clone();
        self.doubt.clear();
        self.table = Table::Known;
    }

    /// All segments were read: marks what cannot be proven to be whole.
    ///
    /// # Errors
    /// If it is not known which replicas there were.
    pub(super) fn finish(&mut self) -> Result<(), Forgotten> {
        if let Some(segment) = self.promised {
            self.findings.push(Finding::Missing { segment });
            return Err(Forgotten);
        }
        if self.table != Table::Known {
            return Err(Forgotten);
        }
        for partition in std::mem::take(&mut self.doubt) {
            self.mark_damaged(partition);
        }
        let lacking = |(partition, replica): (&PartitionId, &StoredReplica)| {
            let unproven = self.unproven.get(partition).is_some_and(|until| replica.first <= *until);
            (unproven || !replica.is_whole()).then_some(*partition)
        };
        let damaged: Vec<_> = self.stored.replicas.iter().filter_map(lacking).collect();
        for partition in damaged {
            self.mark_damaged(partition);
        }
        Ok(())
    }

    /// All states were read: of a damaged replica as many entries are given as follow on its state.
    pub(super) fn strip_damaged(&mut self) {
        for (partition, replica) in &mut self.stored.replicas {
            if !replica.damaged {
                continue;
            }
            self.findings.push(Finding::Damaged { partition: *partition });
            let next = replica.state.as_ref().map_or(0, |state| state.index) + 1;
            let usable = replica.entries.iter().take_while(|entry| !is_placeholder(entry)).count();
            replica.entries.truncate(if replica.first == next { usable } else { 0 });
            replica.first = next;
        }
    }
}

/// It is not known any more which replicas there were.
#[derive(Debug)]
pub(super) struct Forgotten;

/// Holds the place of an entry that was not read. No real entry has term 0.
fn placeholder() -> LogEntry {
    LogEntry { term: 0, config: false, data: Bytes::new(), context: Bytes::new() }
}

fn is_placeholder(entry: &LogEntry) -> bool {
    entry.term == 0
}

/// A replica as a summary knows it, with those of its entries that were read before.
fn from_outline(outline: &Outline, read: Option<StoredReplica>) -> StoredReplica {
    let mut read = read.filter(|read| read.replica == outline.replica);
    let entry = |index: u64| {
        let read = read.as_mut()?;
        let at = usize::try_from(index.checked_sub(read.first)?).ok()?;
        Some(std::mem::replace(read.entries.get_mut(at)?, placeholder()))
    };
    StoredReplica {
        replica: outline.replica,
        hard_state: outline.hard_state(),
        state: outline.state.map(|file| unread(file.index, file.term)),
        first: outline.first,
        entries: (outline.first..=outline.last)
            .map(entry)
            .map(|entry| entry.unwrap_or_else(placeholder))
            .collect(),
        damaged: outline.damaged,
    }
}

/// A state whose file is read when all of the log was.
fn unread(index: u64, term: u64) -> StoredState {
    StoredState { index, term, header: Vec::new(), data: Vec::new() }
}

fn to_write(item: &Item<'_>, arena: &mut Arena) -> Write {
    match item {
        Item::Append { partition, replica, first, entries } => Write::Append {
            partition: *partition,
            replica: *replica,
            first: *first,
            entries: entries.iter().map(|entry| entry.kept(|bytes| arena.keep(bytes))).collect(),
        },
        Item::HardState { partition, replica, term, vote, commit } => Write::HardState {
            partition: *partition,
            replica: *replica,
            state: crate::replication::HardState { term: *term, vote: *vote, commit: *commit },
        },
        Item::State { partition, replica, replaces_log, file } => Write::State {
            partition: *partition,
            replica: *replica,
            replaces_log: *replaces_log,
            state: unread(file.index, file.term),
        },
        Item::Destroy { partition, replica } => Write::Destroy { partition: *partition, replica: *replica },
    }
}
