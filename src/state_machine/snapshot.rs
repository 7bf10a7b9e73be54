//! A partition's state as bytes, for replicas that are too far behind for the log.
//!
//! A snapshot comes from another node, so it is read as hostile: a format version, then records, each with its
//! length in front, then a checksum over all of it. Records borrow from the input while they are decoded, so
//! whatever lengths they claim, reading one allocates nothing and building the state from it allocates in
//! proportion to bytes that are really there. The order of the records is fixed: equal states have equal
//! snapshots.

use bincode::config;
use bincode::error::DecodeError as Malformed;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::command::{PartitionTime, Reply};
use super::kv::Slot;
use super::{Seal, StateMachine};
use crate::codec::DecodeError;
use crate::id::{SessionId, Version};

/// First byte of every snapshot.
const FORMAT: u8 = 1;
/// The SHA-1 of everything before it. It is against damage, not against forgery: whoever may send snapshots
/// may write keys.
const CHECKSUM_BYTES: usize = 20;
/// Of a record's length, little endian.
const LENGTH_BYTES: usize = 4;

#[derive(Serialize, Deserialize)]
enum Record<'a> {
    /// The first and only the first.
    Header { time: PartitionTime, sealed: Option<Seal>, keys: u64, sessions: u64 },
    /// In the order of keys.
    Key {
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        #[serde(borrow, with = "serde_bytes")]
        value: &'a [u8],
        version: Version,
        expiry: Option<PartitionTime>,
    },
    /// In the order of ids.
    Session { id: SessionId, floor: u64, seen: PartitionTime },
    /// Of the session before it, in the order of numbers.
    Answer { sequence: u64, reply: Reply },
}

pub(super) fn write(state: &StateMachine) -> Vec<u8> {
    let mut out = vec![FORMAT];
    push(
        &mut out,
        &Record::Header {
            time: state.time,
            sealed: state.sealed,
            keys: state.keys.len() as u64,
            sessions: state.sessions.len() as u64,
        },
    );
    for (key, slot) in state.keys.iter() {
        push(&mut out, &Record::Key { key, value: &slot.value, version: slot.version, expiry: slot.expiry });
    }
    for (id, session) in state.sessions.iter() {
        push(&mut out, &Record::Session { id: *id, floor: session.floor, seen: session.seen });
        for (sequence, reply) in &session.answers {
            let (sequence, reply) = (*sequence, reply.clone());
            push(&mut out, &Record::Answer { sequence, reply });
        }
    }
    let checksum = Sha1::digest(&out);
    out.extend_from_slice(&checksum);
    out
}

pub(super) fn read(bytes: &[u8]) -> Result<StateMachine, DecodeError> {
    let (body, checksum) = bytes
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or(malformed("snapshot is cut short"))?;
    if Sha1::digest(body)[..] != *checksum {
        return Err(malformed("snapshot's checksum is wrong"));
    }
    let Some((&FORMAT, mut records)) = body.split_first() else {
        return Err(malformed("snapshot of another format"));
    };
    let Some(Record::Header { time, sealed, keys, sessions }) = next(&mut records)? else {
        return Err(malformed("snapshot without a header"));
    };
    let mut state = StateMachine { time, sealed, ..StateMachine::default() };
    let mut last_key: Option<&[u8]> = None;
    let mut last_session = None;
    while let Some(record) = next(&mut records)? {
        match record {
            Record::Header { .. } => return Err(malformed("snapshot with two headers")),
            Record::Key { key, value, version, expiry } => {
                if last_key.is_some_and(|last| last >= key) || last_session.is_some() {
                    return Err(malformed("snapshot's records are out of order"));
                }
                last_key = Some(key);
                let value = value.to_vec();
                state.keys.insert(key.to_vec(), Slot { value, version, expiry });
            }
            Record::Session { id, floor, seen } => {
                if last_session.is_some_and(|last| last >= id) || !state.sessions.restore(id, floor, seen) {
                    return Err(malformed("snapshot's records are out of order"));
                }
                last_session = Some(id);
            }
            Record::Answer { sequence, reply } => {
                if !last_session.is_some_and(|id| state.sessions.restore_answer(id, sequence, reply)) {
                    return Err(malformed("snapshot's answer without its session"));
                }
            }
        }
    }
    if (state.keys.len() as u64, state.sessions.len() as u64) != (keys, sessions) {
        return Err(malformed("snapshot's records are missing"));
    }
    if state.sealed.is_some() && !state.is_empty() {
        return Err(malformed("snapshot is sealed and holds keys"));
    }
    Ok(state)
}

fn push(out: &mut Vec<u8>, record: &Record<'_>) {
    let body = crate::codec::encode(record);
    // A record is a key and a value of one command, and a command is bounded where it enters.
    let length = u32::try_from(body.len()).expect("a record is shorter than 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&body);
}

/// Cuts the next record off `rest`; `None` at the end.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<Record<'a>>, DecodeError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let cut = malformed("snapshot's record is cut short");
    let Some((length, behind)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(cut);
    };
    let length = u32::from_le_bytes(*length) as usize;
    let Some((body, behind)) = behind.split_at_checked(length) else {
        return Err(cut);
    };
    *rest = behind;
    // Needs no limit: what it holds it borrows from `body`.
    let (record, read) = bincode::serde::borrow_decode_from_slice(body, config::standard())?;
    if read != body.len() {
        return Err(DecodeError::TrailingBytes(body.len() - read));
    }
    Ok(Some(record))
}

fn malformed(what: &'static str) -> DecodeError {
    DecodeError::Malformed(Malformed::Other(what))
}
