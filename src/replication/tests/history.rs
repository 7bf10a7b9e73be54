//! What clients did and were told, and what that rules out: an oracle that does not ask the replicas.
//!
//! Per key, versions grow with real time: what was acknowledged or read before a call began is a *floor* of what the
//! call may see. Every value is written by one write, so a value seen at two versions was applied twice, or came
//! back from the dead. A key that was seen absent, or whose deletion was acknowledged, is *dead* up to the floor of
//! that call.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{PartitionId, SessionId, Version};
use crate::state_machine::{Entry, Operation, Origin, Reply};
use crate::time::Timestamp;

/// Deleted now and then, and written with short lives.
pub(super) const MORTAL: &[u8] = b"mortal";
/// Written with [`BRIEF_TTL`] only and never deleted.
pub(super) const BRIEF: &[u8] = b"brief";
/// Only ever incremented by one.
pub(super) const COUNT: &[u8] = b"count";
/// Only ever compared and swapped.
pub(super) const SWAPPED: &[u8] = b"swapped";
/// How long [`BRIEF`] lives.
pub(super) const BRIEF_TTL: Duration = Duration::from_millis(400);

type Key = (PartitionId, Vec<u8>);

/// A write under a session: may be sent any number of times.
pub(super) struct Write {
    pub(super) partition: PartitionId,
    pub(super) operation: Operation,
    session: SessionId,
    sequence: u64,
    pub(super) called_at: Timestamp,
    floor: u64,
    pub(super) answer: Option<Reply>,
    pub(super) given_up: bool,
}

impl Write {
    pub(super) fn is_open(&self) -> bool {
        self.answer.is_none() && !self.given_up
    }

    fn key(&self) -> Key {
        (self.partition, self.operation.key().unwrap().to_vec())
    }
}

/// Everything that was told to clients.
#[derive(Default)]
pub(super) struct History {
    pub(super) writes: Vec<Write>,
    /// Of each key, the highest version that was acknowledged or read.
    pub(super) floors: BTreeMap<Key, u64>,
    /// Of each key, the version up to which it is known to be gone.
    dead: BTreeMap<Key, u64>,
    values: BTreeMap<(PartitionId, u64), Vec<u8>>,
    versions: BTreeMap<(Key, Vec<u8>), u64>,
    swapped: BTreeMap<(PartitionId, Option<Version>), u64>,
    /// [`BRIEF`] must be there before this time.
    lives_until: BTreeMap<PartitionId, Timestamp>,
}

/// What was known when a read began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    floor: u64,
    dead: u64,
    lives_until: Timestamp,
}

impl History {
    pub(super) fn floor(&self, partition: PartitionId, key: &[u8]) -> u64 {
        self.floors.get(&(partition, key.to_vec())).copied().unwrap_or(0)
    }

    pub(super) fn before(&self, partition: PartitionId, key: &[u8]) -> Before {
        Before {
            floor: self.floor(partition, key),
            dead: self.dead.get(&(partition, key.to_vec())).copied().unwrap_or(0),
            lives_until: self.lives_until.get(&partition).copied().unwrap_or(Timestamp::ZERO),
        }
    }

    fn raise(&mut self, key: Key, version: u64) {
        let floor = self.floors.entry(key).or_default();
        *floor = (*floor).max(version);
    }

    /// `value` stands at `version`; under a session, where values are told apart, nowhere and never else.
    pub(super) fn stood(&mut self, key: &Key, version: u64, value: &[u8]) {
        let known = self.values.entry((key.0, version)).or_insert_with(|| value.to_vec());
        assert_eq!(*known, value, "two values of {key:?} at {version}");
        if [MORTAL, BRIEF, COUNT, SWAPPED].contains(&key.1.as_slice()) {
            let known = *self.versions.entry((key.clone(), value.to_vec())).or_insert(version);
            assert_eq!(known, version, "{value:?} of {key:?} was written twice");
        }
        self.raise(key.clone(), version);
    }

    pub(super) fn begin(
        &mut self,
        session: SessionId,
        partition: PartitionId,
        operation: Operation,
        now: Timestamp,
    ) -> usize {
        let sequence = self.of(session, partition).map(|write| write.sequence + 1).max().unwrap_or(0);
        let floor = self.floor(partition, operation.key().unwrap());
        self.writes.push(Write {
            partition,
            operation,
            session,
            sequence,
            called_at: now,
            floor,
            answer: None,
            given_up: false,
        });
        self.writes.len() - 1
    }

    fn of(&self, session: SessionId, partition: PartitionId) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(move |write| write.session == session && write.partition == partition)
    }

    /// What the client sends with the write now.
    pub(super) fn origin(&self, write: usize) -> Origin {
        let Write { session, sequence, partition, .. } = self.writes[write];
        let settled_below =
            self.of(session, partition).filter(|write| write.is_open()).map(|write| write.sequence).min();
        Origin { session, sequence, settled_below: settled_below.unwrap_or(sequence).min(sequence) }
    }

    /// An answer to (one copy of) a write has come.
    pub(super) fn answered(&mut self, number: usize, reply: &Reply) {
        let write = &self.writes[number];
        let key = write.key();
        if let Some(first) = &write.answer {
            assert!(reply == first || *reply == Reply::Settled, "{first:?}, then {reply:?}");
            return;
        }
        if *reply == Reply::Settled {
            assert!(write.given_up, "an open write of {key:?} is settled");
            return;
        }
        let floor = write.floor;
        match (&write.operation, reply) {
            (
                Operation::Put { value, .. } | Operation::CompareAndSwap { value, .. },
                Reply::Written { version },
            ) => {
                let value = value.clone();
                assert!(version.0 > floor, "a write of {key:?} went back in time");
                if let Operation::CompareAndSwap { expected, .. } = &write.operation {
                    assert!(expected.map_or(0, |expected| expected.0) >= floor, "{expected:?} < {floor}");
                    let first = *self.swapped.entry((key.0, *expected)).or_insert(version.0);
                    assert_eq!(first, version.0, "two swaps of {expected:?}");
                }
                if key.1 == BRIEF {
                    let until = self.lives_until.entry(key.0).or_insert(Timestamp::ZERO);
                    // Partition time is in whole milliseconds.
                    *until = (*until).max(write.called_at + BRIEF_TTL - Duration::from_millis(1));
                }
                self.stood(&key, version.0, &value);
            }
            (Operation::CompareAndSwap { expected, .. }, Reply::Conflict { version }) => {
                assert_ne!(version, expected);
                let found = version.map_or(0, |version| version.0);
                assert!(found >= floor, "{found} < {floor}");
                self.raise(key, found);
            }
            (Operation::Increment { .. }, Reply::Incremented { value, version }) => {
                assert!(version.0 > floor, "an increment went back in time");
                self.counted(&key, *value, version.0);
            }
            (Operation::Delete { .. }, Reply::Deleted { .. }) => {
                let dead = self.dead.entry(key).or_default();
                *dead = (*dead).max(floor);
            }
            (operation, reply) => panic!("{reply:?} to {operation:?}"),
        }
        self.writes[number].answer = Some(reply.clone());
    }

    /// Later counts are higher.
    fn counted(&mut self, key: &Key, value: i64, version: u64) {
        self.stood(key, version, value.to_string().as_bytes());
        for ((of, other), at) in &self.versions {
            if of == key {
                let other: i64 = std::str::from_utf8(other).unwrap().parse().unwrap();
                assert_eq!(other.cmp(&value), at.cmp(&version), "{other} at {at}, {value} at {version}");
            }
        }
    }

    /// A read that began when `before` was known has been answered.
    pub(super) fn read(&mut self, key: &Key, before: Before, entry: Option<&Entry>, now: Timestamp) {
        let Some(entry) = entry else {
            let may_be_absent = key.1 == MORTAL || (key.1 == BRIEF && now >= before.lives_until);
            assert!(before.floor == 0 || may_be_absent, "{key:?} is gone at {now:?}: {before:?}");
            let dead = self.dead.entry(key.clone()).or_default();
            *dead = (*dead).max(before.floor);
            return;
        };
        let version = entry.version.0;
        assert!(version >= before.floor, "stale read of {key:?} at {now:?}: {version} < {before:?}");
        assert!(version > before.dead, "{key:?} came back from the dead at {now:?}: {version} <= {before:?}");
        if key.1 == COUNT {
            self.counted(key, std::str::from_utf8(&entry.value).unwrap().parse().unwrap(), version);
        } else {
            self.stood(key, version, &entry.value);
        }
    }

    /// In the end: the counter stands where the answers say, but for those that were given up.
    pub(super) fn check_count(&self, partition: PartitionId, value: i64) {
        let all = self.writes.iter().filter(|write| write.key() == (partition, COUNT.to_vec()));
        let (mut sure, mut perhaps) = (0, 0);
        for write in all {
            assert!(!write.is_open(), "an increment was never answered");
            if write.answer.is_some() {
                sure += 1;
            } else {
                perhaps += 1;
            }
        }
        assert!((sure..=sure + perhaps).contains(&value), "{value}, not {sure} to {}", sure + perhaps);
    }
}
