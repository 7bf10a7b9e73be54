//! What the bytes in a swarm's directory mean. The text is [`docs::storage`](crate::docs::storage).

use std::collections::BTreeMap;

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{PartitionId, ReplicaId};
use crate::replication::{HardState, LogEntry, Write};

/// Longest body of a record, in bytes. Up to this length (2^31 bits) CRC-32C finds every error of three bits.
pub(super) const MAX_BODY_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of a record before its body.
pub(super) const HEAD_BYTES: usize = 32;
/// Records begin at multiples of this, in bytes.
pub(super) const ALIGN_BYTES: usize = 8;
/// First bytes of a state file.
const STATE_MAGIC: [u8; 8] = *b"RTSTATE\x01";
/// Bytes of a state file before its description.
const STATE_HEAD_BYTES: usize = 32;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_BODY_BYTES>> =
    config::standard().with_limit::<MAX_BODY_BYTES>();

/// What kind of record it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What one group commit keeps; has a number of its own.
    Data = 1,
    /// All that is known but entries and states. Its number is that of the next data record.
    Summary = 2,
    /// The segment is over and the next one has begun. Its number is that of the next data record.
    End = 3,
}

/// A record as it lies in a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) sequence: u64,
    pub(super) body: &'a [u8],
    /// Where its body ends: zeros follow, until the next record may begin.
    pub(super) end: usize,
}

/// Tells the records of one segment of one log from all other bytes: from those of a segment that had the file
/// before, and from what a client may have put into a value.
pub(super) fn mark(log: u64, segment: u64) -> u64 {
    // The finalizer of SplitMix64: neighbours get marks that have nothing in common.
    let mut mixed = log ^ segment.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Puts a record into the buffer, in place of what was there.
pub(super) fn encode<T: Serialize>(
    buffer: &mut Vec<u8>,
    mark: u64,
    sequence: u64,
    kind: Kind,
    body: &T,
) -> Result<(), TooLong> {
    buffer.clear();
    buffer.resize(HEAD_BYTES, 0);
    bincode::serde::encode_into_std_write(body, buffer, config::standard()).map_err(|_| TooLong)?;
    let length = buffer.len() - HEAD_BYTES;
    if length > MAX_BODY_BYTES {
        return Err(TooLong);
    }
    let length = u32::try_from(length).map_err(|_| TooLong)?;
    let (head, rest) = buffer.split_at_mut(HEAD_BYTES);
    head[..8].copy_from_slice(&mark.to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    head[16..20].copy_from_slice(&length.to_le_bytes());
    head[20..24].copy_from_slice(&(kind as u32).to_le_bytes());
    head[24..28].copy_from_slice(&crc32c::crc32c(rest).to_le_bytes());
    let checksum = crc32c::crc32c(&head[..28]);
    head[28..].copy_from_slice(&checksum.to_le_bytes());
    buffer.resize(buffer.len().next_multiple_of(ALIGN_BYTES), 0);
    Ok(())
}

/// A record would be longer than [`MAX_BODY_BYTES`].
#[derive(Debug)]
pub(super) struct TooLong;

/// The record at an offset, if there is a sound one.
pub(super) fn record_at(segment: &[u8], at: usize, mark: u64) -> Option<Record<'_>> {
    let (head, rest) = segment.get(at..)?.split_first_chunk::<HEAD_BYTES>()?;
    if head[..8] != mark.to_le_bytes() || crc32c::crc32c(&head[..28]) != u32_at(head, 28) {
        return None;
    }
    let kind = match u32_at(head, 20) {
        1 => Kind::Data,
        2 => Kind::Summary,
        3 => Kind::End,
        _ => return None,
    };
    let length = u32_at(head, 16) as usize;
    // One that is cut before it ends with its zeros was not finished.
    let body = rest.get(..length.next_multiple_of(ALIGN_BYTES))?.get(..length)?;
    if crc32c::crc32c(body) != u32_at(head, 24) {
        return None;
    }
    let sequence = u64::from_le_bytes(*head[8..].first_chunk()?);
    let end = at + HEAD_BYTES + length;
    Some(Record { kind, sequence, body, end })
}

/// The next sound record from an offset on, and where it begins.
pub(super) fn next_record(segment: &[u8], from: usize, mark: u64) -> Option<(usize, Record<'_>)> {
    let wanted = mark.to_le_bytes();
    let mut at = from.next_multiple_of(ALIGN_BYTES);
    while let Some(word) = segment.get(at..at + ALIGN_BYTES) {
        if word == wanted
            && let Some(record) = record_at(segment, at, mark)
        {
            return Some((at, record));
        }
        at += ALIGN_BYTES;
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}

/// Reads the body of a record.
pub(super) fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    let (value, read) = bincode::serde::borrow_decode_from_slice(body, CONFIG).ok()?;
    (read == body.len()).then_some(value)
}

/// Body of [`Kind::Data`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Data<'a> {
    /// How often a replica had come or gone before this record.
    pub(super) table: u64,
    /// Of each partition that this record touches, how many writes there were before.
    pub(super) counts: BTreeMap<PartitionId, u64>,
    /// What is known before this record; from time to time.
    pub(super) summary: Option<Summary>,
    /// In their order.
    #[serde(borrow)]
    pub(super) writes: Vec<Item<'a>>,
}

/// One write.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Item<'a> {
    Append {
        partition: PartitionId,
        replica: ReplicaId,
        first: u64,
        #[serde(borrow)]
        entries: Vec<Entry<'a>>,
    },
    HardState {
        partition: PartitionId,
        replica: ReplicaId,
        term: u64,
        vote: u64,
        commit: u64,
    },
    State {
        partition: PartitionId,
        replica: ReplicaId,
        replaces_log: bool,
        file: StateFile,
    },
    Destroy {
        partition: PartitionId,
        replica: ReplicaId,
    },
}

/// An entry of a log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry<'a> {
    term: u64,
    config: bool,
    #[serde(borrow, with = "serde_bytes")]
    data: &'a [u8],
    #[serde(borrow, with = "serde_bytes")]
    context: &'a [u8],
}

impl<'a> From<&'a LogEntry> for Entry<'a> {
    fn from(entry: &'a LogEntry) -> Self {
        Self { term: entry.term, config: entry.config, data: &entry.data, context: &entry.context }
    }
}

impl Entry<'_> {
    /// The entry as the driver knows it; `keep` keeps its parts.
    pub(super) fn kept(&self, mut keep: impl FnMut(&[u8]) -> Bytes) -> LogEntry {
        LogEntry { term: self.term, config: self.config, data: keep(self.data), context: keep(self.context) }
    }
}

impl<'a> Item<'a> {
    /// A write as it is kept; `file` names the state that it contains. `None`: it contains one and none is named.
    pub(super) fn of(write: &'a Write, file: Option<StateFile>) -> Option<Self> {
        Some(match write {
            Write::Append { partition, replica, first, entries } => Self::Append {
                partition: *partition,
                replica: *replica,
                first: *first,
                entries: entries.iter().map(Entry::from).collect(),
            },
            Write::HardState { partition, replica, state } => {
                let HardState { term, vote, commit } = *state;
                Self::HardState { partition: *partition, replica: *replica, term, vote, commit }
            }
            Write::State { partition, replica, replaces_log, .. } => Self::State {
                partition: *partition,
                replica: *replica,
                replaces_log: *replaces_log,
                file: file?,
            },
            Write::Destroy { partition, replica } => {
                Self::Destroy { partition: *partition, replica: *replica }
            }
        })
    }

    pub(super) fn partition(&self) -> PartitionId {
        match self {
            Self::Append { partition, .. }
            | Self::HardState { partition, .. }
            | Self::State { partition, .. }
            | Self::Destroy { partition, .. } => *partition,
        }
    }
}

/// Names the file that holds a state, and tells whether it is that file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateFile {
    /// The entry applied last, and its term.
    pub(super) index: u64,
    pub(super) term: u64,
    /// Number of the record that named it first: two states of one index are two files.
    pub(super) sequence: u64,
    /// Its length.
    pub(super) bytes: u64,
    /// The checksum in its head, which covers all of it.
    pub(super) checksum: u32,
}

impl StateFile {
    /// The name in the swarm's directory.
    pub(super) fn name(&self, partition: PartitionId, replica: ReplicaId) -> String {
        format!("{partition}-{}-{}-{}.state", replica.0, self.index, self.sequence)
    }
}

/// Body of [`Kind::Summary`]: all that is known but entries and states.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The log, as in the file `log`.
    pub(super) log: u64,
    /// How often a replica has come or gone.
    pub(super) table: u64,
    /// Of each partition that ever had a replica here, how many writes there were.
    pub(super) counts: BTreeMap<PartitionId, u64>,
    /// Of each partition, the highest replica that was destroyed.
    pub(super) destroyed: BTreeMap<PartitionId, ReplicaId>,
    /// The replicas.
    pub(super) replicas: BTreeMap<PartitionId, Outline>,
}

/// A replica without its entries and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outline {
    pub(super) replica: ReplicaId,
    pub(super) term: u64,
    pub(super) vote: u64,
    pub(super) commit: u64,
    pub(super) state: Option<StateFile>,
    /// Index of the first entry kept; `last + 1` if there is none.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Something of it was lost.
    pub(super) damaged: bool,
}

impl Outline {
    pub(super) fn new(replica: ReplicaId) -> Self {
        Self { replica, term: 0, vote: 0, commit: 0, state: None, first: 1, last: 0, damaged: false }
    }

    /// The same, perhaps damaged.
    pub(super) fn or_damaged(self, damaged: bool) -> Self {
        Self { damaged: self.damaged || damaged, ..self }
    }

    pub(super) fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.commit }
    }
}

/// Body of [`Kind::End`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct End {
    /// The segment that follows.
    pub(super) next: u64,
}

/// What a state file says it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateDescription<'a> {
    pub(super) partition: PartitionId,
    pub(super) replica: ReplicaId,
    pub(super) index: u64,
    pub(super) term: u64,
    #[serde(borrow, with = "serde_bytes")]
    pub(super) header: &'a [u8],
}

/// What stands before the data in a state file, and the checksum that names it.
pub(super) fn state_head(description: &StateDescription<'_>, data: &[u8]) -> (Vec<u8>, u32) {
    let described =
        bincode::serde::encode_to_vec(description, config::standard()).expect("our own types encode");
    let mut head = Vec::with_capacity(STATE_HEAD_BYTES + described.len());
    head.extend_from_slice(&STATE_MAGIC);
    head.extend_from_slice(&(described.len() as u64).to_le_bytes());
    head.extend_from_slice(&(data.len() as u64).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), &described);
    head.extend_from_slice(&checksum.to_le_bytes());
    head.extend_from_slice(&described);
    (head, checksum)
}

/// Takes a state file apart; `None` unless it is sound and the one that is meant. Returns where the data begins.
pub(super) fn read_state<'a>(file: &'a [u8], meant: &StateFile) -> Option<(StateDescription<'a>, usize)> {
    let (head, rest) = file.split_first_chunk::<STATE_HEAD_BYTES>()?;
    let described = usize::try_from(u64::from_le_bytes(*head[8..].first_chunk()?)).ok()?;
    let (described, data) = rest.split_at_checked(described)?;
    let length = u64::from_le_bytes(*head[16..].first_chunk()?);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&head[..28]), described);
    let sound = head[..8] == STATE_MAGIC
        && checksum == u32_at(head, 28)
        && checksum == meant.checksum
        && data.len() as u64 == length
        && crc32c::crc32c(data) == u32_at(head, 24);
    if !sound {
        return None;
    }
    Some((decode(described)?, file.len() - data.len()))
}

/// First bytes of the small files that are replaced as a whole.
const FILE_MAGIC: [u8; 8] = *b"RTFILE\0\x01";
const FILE_HEAD_BYTES: usize = 12;

/// A small file's contents with its checksum.
pub(super) fn wrap(contents: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(FILE_HEAD_BYTES + contents.len());
    file.extend_from_slice(&FILE_MAGIC);
    file.extend_from_slice(&crc32c::crc32c(contents).to_le_bytes());
    file.extend_from_slice(contents);
    file
}

/// The contents of a small file, if it is sound.
pub(super) fn unwrap(file: &[u8]) -> Option<&[u8]> {
    let (head, contents) = file.split_first_chunk::<FILE_HEAD_BYTES>()?;
    (head[..8] == FILE_MAGIC && crc32c::crc32c(contents) == u32_at(head, 8)).then_some(contents)
}
