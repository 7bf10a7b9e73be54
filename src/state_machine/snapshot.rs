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
use super::import::ImportState;
use super::kv::Slot;
use super::lock::{Claim, LockMode, Place};
use super::{MAX_RAISED, Seal, StateMachine};
use crate::codec::DecodeError;
use crate::dataset::Manifest;
use crate::id::{FencingToken, SessionId, Version};
use crate::mutation::{Mutation, planted};

/// First byte of a snapshot.
const FORMAT: u8 = 3;
/// First byte of a snapshot with datasets: who does not know them must not read the rest.
const FORMAT_WITH_DATASETS: u8 = 4;
/// The SHA-1 of everything before it. It is against damage, not against forgery: whoever may send snapshots
/// may write keys.
const CHECKSUM_BYTES: usize = 20;
/// Of a record's length, little endian.
const LENGTH_BYTES: usize = 4;

#[derive(Serialize, Deserialize)]
enum Record<'a> {
    /// The first and only the first.
    Header {
        time: PartitionTime,
        applied: u64,
        raised: u64,
        import: Option<ImportState>,
        sealed: Option<Seal>,
        keys: u64,
        fences: u64,
        places: u64,
        last_token: FencingToken,
        sessions: u64,
    },
    /// In the order of keys.
    Key {
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        #[serde(borrow, with = "serde_bytes")]
        value: &'a [u8],
        version: Version,
        expiry: Option<PartitionTime>,
    },
    /// In the order of keys, behind all keys.
    Fence {
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        token: FencingToken,
    },
    /// In the order of names, behind all fences.
    Lock {
        #[serde(borrow, with = "serde_bytes")]
        name: &'a [u8],
        changed: Version,
    },
    /// In the order of claims, behind all locks.
    Place {
        claim: Claim,
        #[serde(borrow, with = "serde_bytes")]
        name: &'a [u8],
        mode: LockMode,
        lease_ms: u64,
        expiry: PartitionTime,
        #[serde(borrow, with = "serde_bytes")]
        note: &'a [u8],
        arrival: Version,
        token: Option<FencingToken>,
    },
    /// In the order of ids, behind all places.
    Session { id: SessionId, floor: u64, seen: PartitionTime },
    /// Of the session before it, in the order of numbers.
    Answer { sequence: u64, reply: Reply },
    /// In the order of names, behind all sessions. The manifest is encoded by itself, so that it is decoded under a
    /// limit.
    Dataset {
        #[serde(borrow, with = "serde_bytes")]
        name: &'a [u8],
        version: Version,
        #[serde(borrow, with = "serde_bytes")]
        manifest: &'a [u8],
    },
}

pub(super) fn write(state: &StateMachine) -> Vec<u8> {
    let mut out = vec![if state.datasets.is_empty() { FORMAT } else { FORMAT_WITH_DATASETS }];
    push(
        &mut out,
        &Record::Header {
            time: state.time,
            applied: state.applied,
            raised: state.raised,
            import: state.import,
            sealed: state.sealed,
            keys: state.keys.len() as u64,
            fences: state.fences.len() as u64,
            places: state.locks.len() as u64,
            last_token: state.locks.last_token(),
            sessions: if planted(Mutation::RetryTableDropped) { 0 } else { state.sessions.len() as u64 },
        },
    );
    for (key, slot) in state.keys.iter() {
        push(&mut out, &Record::Key { key, value: slot.value, version: slot.version, expiry: slot.expiry });
    }
    for (key, token) in state.fences.iter() {
        push(&mut out, &Record::Fence { key, token });
    }
    for (name, changed) in state.locks.versions() {
        push(&mut out, &Record::Lock { name, changed });
    }
    for (claim, place) in state.locks.iter() {
        let Place { name, mode, lease_ms, expiry, note, arrival, token } = place;
        let (mode, lease_ms, expiry, arrival, token) = (*mode, *lease_ms, *expiry, *arrival, *token);
        let claim = *claim;
        push(&mut out, &Record::Place { claim, name, mode, lease_ms, expiry, note, arrival, token });
    }
    for (id, session) in state.sessions.iter().filter(|_| !planted(Mutation::RetryTableDropped)) {
        push(&mut out, &Record::Session { id: *id, floor: session.floor, seen: session.seen });
        for (sequence, reply) in &session.answers {
            let (sequence, reply) = (*sequence, reply.clone());
            push(&mut out, &Record::Answer { sequence, reply });
        }
    }
    for (name, version, manifest) in state.datasets.iter() {
        let manifest = crate::codec::encode(manifest);
        push(&mut out, &Record::Dataset { name, version, manifest: &manifest });
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
    let (with_datasets, mut records) = match body.split_first() {
        Some((&FORMAT, records)) => (false, records),
        Some((&FORMAT_WITH_DATASETS, records)) => (true, records),
        _ => return Err(malformed("snapshot of another format")),
    };
    let Some(Record::Header {
        time,
        applied,
        raised,
        import,
        sealed,
        keys,
        fences,
        places,
        last_token,
        sessions,
    }) = next(&mut records)?
    else {
        return Err(malformed("snapshot without a header"));
    };
    if raised > MAX_RAISED {
        return Err(malformed("snapshot's versions are raised too high"));
    }
    let mut state = StateMachine { time, applied, raised, import, sealed, ..StateMachine::default() };
    state.locks.restore_last_token(last_token);
    let mut last: Option<Rank<'_>> = None;
    while let Some(record) = next(&mut records)? {
        let rank = rank(&record, last);
        if rank.is_none() || last >= rank {
            return Err(malformed("snapshot's records are out of order"));
        }
        last = rank;
        let fits = match record {
            Record::Header { .. } => false,
            Record::Key { key, value, version, expiry } => {
                state.keys.insert(key, Slot { value, version, expiry });
                true
            }
            Record::Fence { key, token } => {
                state.fences.restore(key.to_vec(), token);
                true
            }
            Record::Lock { name, changed } => {
                state.locks.restore_lock(name.to_vec(), changed);
                true
            }
            Record::Place { claim, name, mode, lease_ms, expiry, note, arrival, token } => {
                let (name, note) = (name.to_vec(), note.to_vec());
                let place = Place { name, mode, lease_ms, expiry, note, arrival, token };
                state.locks.restore_place(claim, place)
            }
            Record::Session { id, floor, seen } => state.sessions.restore(id, floor, seen),
            Record::Answer { sequence, reply } => {
                matches!(rank, Some(Rank::Session(id, _)) if state.sessions.restore_answer(id, sequence, reply))
            }
            Record::Dataset { name, version, manifest } => {
                let manifest: Manifest = crate::codec::decode(manifest)?;
                let fits = with_datasets && manifest.is_sound();
                state.datasets.restore(name.to_vec(), version, manifest);
                fits
            }
        };
        if !fits {
            return Err(malformed("snapshot's record contradicts those before it"));
        }
    }
    let found = [state.keys.len(), state.fences.len(), state.locks.len(), state.sessions.len()];
    if found.map(|count| count as u64) != [keys, fences, places, sessions] || !state.locks.is_whole() {
        return Err(malformed("snapshot's records are missing"));
    }
    if state.sealed.is_some() && !state.is_empty() {
        return Err(malformed("snapshot is sealed and holds keys"));
    }
    Ok(state)
}

/// Where a record stands in the order of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank<'a> {
    Key(&'a [u8]),
    Fence(&'a [u8]),
    Lock(&'a [u8]),
    Place(Claim),
    /// The session itself, then its answers.
    Session(SessionId, Option<u64>),
    Dataset(&'a [u8]),
}

/// `None`: the record cannot stand behind `last`.
fn rank<'a>(record: &Record<'a>, last: Option<Rank<'_>>) -> Option<Rank<'a>> {
    match (record, last) {
        (Record::Key { key, .. }, _) => Some(Rank::Key(key)),
        (Record::Fence { key, .. }, _) => Some(Rank::Fence(key)),
        (Record::Lock { name, .. }, _) => Some(Rank::Lock(name)),
        (Record::Place { claim, .. }, _) => Some(Rank::Place(*claim)),
        (Record::Session { id, .. }, _) => Some(Rank::Session(*id, None)),
        (Record::Answer { sequence, .. }, Some(Rank::Session(id, _))) => {
            Some(Rank::Session(id, Some(*sequence)))
        }
        (Record::Dataset { name, .. }, _) => Some(Rank::Dataset(name)),
        (Record::Header { .. } | Record::Answer { .. }, _) => None,
    }
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
