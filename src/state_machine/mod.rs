//! What one partition replicates: a deterministic function of its log.
//!
//! **Guarantee.** Replicas that applied the same commands at the same indexes are equal, byte for byte in their
//! [`StateMachine::snapshot`]s, and gave the same replies. So nothing here looks at a clock, at chance, or at the
//! order of a hash map; time arrives stamped on the commands.
//!
//! **Expiry** happens only when a command is applied: it first moves the partition's time forward, then removes
//! what is due, then does its work. Reads look at what is there. The leader keeps reads punctual by proposing
//! [`Operation::Advance`] when something is due.
//!
//! **Versions** and fencing tokens are the log index plus [`StateMachine::raise_by`]'s offset, made in one place.
//! The offset is there for a state that is not the first to hand out versions of its keys: restored from a
//! backup, or recovered without the majority that may have gone on. It only grows.
//!
//! **Retries** are recognised by sessions: see [`MAX_DEADLINE`], [`SESSION_TTL`].

mod command;
mod datasets;
mod fence;
#[cfg(test)]
mod fuzz;
mod import;
#[cfg(test)]
mod import_tests;
mod kv;
mod lock;
#[cfg(test)]
mod lock_tests;
mod query;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;

pub use command::{
    Command, LimitError, MAX_KEY_BYTES, MAX_VALUE_BYTES, Operation, Origin, PartitionTime, Reply,
};
pub use datasets::{MAX_DATASETS, MAX_LISTED_DATASETS, MAX_MANIFEST_BYTES, SealedDataset};
pub use fence::MAX_FENCED;
pub use import::{ImportState, Imported, MAX_IMPORTED, MAX_IMPORTED_BYTES};
pub use lock::{
    Claim, LockMode, LockView, MAX_HOLDERS, MAX_LEASE_MS, MAX_LISTED, MAX_NOTE_BYTES, MAX_PLACES,
    MAX_RENEWED, MAX_WAITERS, MIN_LEASE_MS, PlaceState, PlaceView,
};
pub use query::{Answer, Entry, KeyBytes, MAX_SCAN_BYTES, MAX_SCAN_ENTRIES, Query, Watch};
pub use session::{
    MAX_DEADLINE, MAX_REMEMBERED, MAX_REMEMBERED_IN_ALL, MAX_SESSIONS, SESSION_GUARD, SESSION_TTL,
};

use serde::{Deserialize, Serialize};

use crate::codec::DecodeError;
use crate::id::{SwarmId, Version};
use datasets::Datasets;
use fence::Fences;
use kv::{Keys, Slot};
use lock::{Locks, Wish};
use session::Sessions;

/// No version is raised higher than by this: with the longest log there is room to 2^61, and no sum overflows.
pub const MAX_RAISED: u64 = 1 << 60;

/// The state of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateMachine {
    time: PartitionTime,
    /// Index of the command applied last.
    applied: u64,
    // Invariant: at most MAX_RAISED; never lower than before.
    raised: u64,
    keys: Keys,
    fences: Fences,
    locks: Locks,
    datasets: Datasets,
    sessions: Sessions,
    /// How far a backup has been put back, if one was begun to be.
    import: Option<ImportState>,
    // Invariant: sealed.is_some() implies that the state is_empty() and that there are no sessions.
    sealed: Option<Seal>,
}

/// A partition that takes no writes because its swarm dissolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seal {
    /// The swarm that remains.
    into: SwarmId,
    /// Whose seal it is.
    attempt: u128,
    /// When that attempt sealed the first partition, by that partition's log.
    epoch: Version,
    /// Whether it is for good.
    dissolved: bool,
}

impl StateMachine {
    /// Applies the command at `index` of the log.
    ///
    /// Indexes must grow from call to call. Any command can be applied; its limits ([`Operation::check`]) are
    /// the business of who proposes it.
    pub fn apply(&mut self, index: u64, command: Command) -> Reply {
        self.time = self.time.max(command.time);
        self.applied = index;
        let version = self.version_at(index);
        self.keys.expire(self.time);
        self.locks.expire(version, self.time);
        self.sessions.expire(self.time);
        if let Some(Seal { into, epoch, .. }) = self.sealed
            && command.operation.is_about_content()
        {
            // It has not happened, and is not remembered: its retry may happen, once the seal is broken.
            return Reply::Sealed { into, epoch };
        }
        let Some(origin) = command.origin else {
            return self.execute(version, command.operation);
        };
        if let Err(answer) = self.sessions.admit(origin, self.time) {
            return answer;
        }
        let reply = self.execute(version, command.operation);
        self.sessions.remember(origin, reply.clone());
        reply
    }

    /// The one place where a log index becomes a version.
    fn version_at(&self, index: u64) -> Version {
        Version(index.saturating_add(self.raised))
    }

    /// Every version and token that was ever handed out is at most this, and every later one is higher.
    pub fn highest(&self) -> Version {
        self.version_at(self.applied).max(Version(self.locks.last_token().0))
    }

    /// Makes every later version and token higher by so much: for a state that was cut off from its majority,
    /// which may have handed out more than this state knows. `leap` must be more than that can have been.
    ///
    /// # Errors
    /// If versions would be raised by more than [`MAX_RAISED`]; nothing was changed then.
    pub fn raise_by(&mut self, leap: u64) -> Result<(), LimitError> {
        match self.raised.checked_add(leap) {
            Some(raised) if raised <= MAX_RAISED => {
                self.raised = raised;
                Ok(())
            }
            _ => Err(LimitError::Raised),
        }
    }

    /// Lifts what is handed out from now on above `above`, if it is not there already.
    fn raise(&mut self, above: Version) -> Reply {
        let needed = above.0.saturating_sub(self.applied).min(MAX_RAISED);
        self.raised = self.raised.max(needed);
        Reply::Raised { highest: self.highest() }
    }

    fn execute(&mut self, version: Version, operation: Operation) -> Reply {
        match operation {
            Operation::Put { key, value, ttl_ms } => self.set(&key, &value, version, ttl_ms),
            Operation::Delete { key } => Reply::Deleted { existed: self.keys.remove(&key) },
            Operation::CompareAndSwap { key, expected, value, ttl_ms } => {
                let found = self.version(&key);
                if found == expected {
                    self.set(&key, &value, version, ttl_ms)
                } else {
                    Reply::Conflict { version: found }
                }
            }
            Operation::Increment { key, by } => self.increment(&key, by, version),
            Operation::Expire { key, ttl_ms } => match self.keys.get(&key) {
                Some(slot) => {
                    let value = slot.value.to_vec();
                    self.set(&key, &value, version, ttl_ms)
                }
                None => Reply::NotFound,
            },
            Operation::Advance => Reply::Advanced,
            Operation::Seal { into, attempt, epoch } => self.seal(into, attempt, epoch.unwrap_or(version)),
            Operation::Unseal { attempt } => {
                if self.sealed_by(attempt).is_some_and(|seal| !seal.dissolved) {
                    self.sealed = None;
                }
                Reply::Unsealed
            }
            Operation::Dissolve { attempt, epoch } => match self.sealed_by(attempt) {
                Some(seal) if seal.epoch != epoch => Reply::Unsealed,
                Some(seal) => {
                    seal.dissolved = true;
                    Reply::Dissolved { into: seal.into }
                }
                None => Reply::Unsealed,
            },
            Operation::Raise { above } => self.raise(above),
            Operation::Import { backup, number, items } => self.import(backup, number, items, version),
            Operation::Acquire { name, claim, mode, lease_ms, wait, note } => {
                let wish = Wish { name, claim, mode, lease_ms, note };
                self.locks.acquire(wish, wait, version, self.time)
            }
            Operation::Renew { session, numbers, .. } => self.locks.renew(session, &numbers, self.time),
            Operation::Release { name, claim } => self.locks.release(&name, claim, version, self.time),
            Operation::Proclaim { name, claim, note } => self.locks.proclaim(&name, claim, note, version),
            Operation::PutFenced { key, value, ttl_ms, token } => match self.fences.pass(&key, token) {
                Ok(()) => self.set(&key, &value, version, ttl_ms),
                Err(answer) => answer,
            },
            Operation::DeleteFenced { key, token } => match self.fences.pass(&key, token) {
                Ok(()) => Reply::Deleted { existed: self.keys.remove(&key) },
                Err(answer) => answer,
            },
            Operation::SealDataset { name, manifest } => self.datasets.seal(name, manifest, version),
            Operation::RemoveDataset { name, id } => self.datasets.remove(&name, id),
        }
    }

    fn seal(&mut self, into: SwarmId, attempt: u128, epoch: Version) -> Reply {
        match self.sealed {
            Some(seal) if seal.dissolved => Reply::Dissolved { into: seal.into },
            Some(seal) if seal.epoch > epoch => Reply::Unsealed,
            // Whoever wrote lately may retry; its answers must not be forgotten with the swarm.
            _ if !self.is_empty() || self.sessions.len() > 0 => Reply::NotEmpty,
            _ => {
                self.sealed = Some(Seal { into, attempt, epoch, dissolved: false });
                Reply::Sealed { into, epoch }
            }
        }
    }

    fn sealed_by(&mut self, attempt: u128) -> Option<&mut Seal> {
        self.sealed.as_mut().filter(|seal| seal.attempt == attempt)
    }

    fn set(&mut self, key: &[u8], value: &[u8], version: Version, ttl_ms: Option<u64>) -> Reply {
        let expiry = ttl_ms.map(|ttl| PartitionTime(self.time.0.saturating_add(ttl)));
        let slot = Slot { value, version, expiry };
        self.keys.insert(key, slot);
        Reply::Written { version }
    }

    fn increment(&mut self, key: &[u8], by: i64, version: Version) -> Reply {
        let (sum, expiry) = match self.keys.get(key) {
            Some(slot) => (integer(slot.value).and_then(|value| value.checked_add(by)), slot.expiry),
            None => (Some(by), None),
        };
        let Some(value) = sum else {
            return Reply::NotAnInteger;
        };
        self.keys.insert(key, Slot { value: value.to_string().as_bytes(), version, expiry });
        Reply::Incremented { value, version }
    }

    /// Answers a question from the state as it is.
    pub fn query(&self, query: &Query) -> Answer {
        match query {
            Query::Get { key } => Answer::Entry(self.keys.entry(key, self.time)),
            Query::Scan { prefix, after, limit } => self.keys.page(prefix, after, *limit, self.time),
            Query::Lock { name } => Answer::Lock(self.locks.view(name, self.time)),
            Query::Place { claim, .. } => Answer::Place(self.locks.place_state(*claim)),
            Query::Locks { after, limit } => self.locks.page(after, *limit, self.time),
            Query::Dataset { name, with_blocks } => Answer::Dataset(self.datasets.get(name, *with_blocks)),
            Query::Datasets { after, limit } => self.datasets.page(after, *limit),
            Query::Contents => Answer::Contents { empty: self.is_empty(), import: self.import },
        }
    }

    /// The answer to a wait, if what it waits for is so.
    pub fn look(&self, watch: &Watch) -> Option<Answer> {
        match watch {
            Watch::Key { key, seen } if self.version(key) != *seen => {
                Some(Answer::Entry(self.keys.entry(key, self.time)))
            }
            Watch::Place { claim, .. } => match self.locks.place_state(*claim) {
                PlaceState::Waiting { .. } => None,
                state => Some(Answer::Place(state)),
            },
            Watch::Lock { name, seen } if self.locks.changed(name) != *seen => {
                Some(Answer::Lock(self.locks.view(name, self.time)))
            }
            Watch::Key { .. } | Watch::Lock { .. } => None,
        }
    }

    /// The version of a key; `None` if it is absent.
    pub fn version(&self, key: &[u8]) -> Option<Version> {
        self.keys.get(key).map(|slot| slot.version)
    }

    /// The partition's time: the latest stamp applied.
    pub fn time(&self) -> PartitionTime {
        self.time
    }

    /// When something is next due (a key, a lease, a session): the leader then proposes [`Operation::Advance`].
    pub fn next_due(&self) -> Option<PartitionTime> {
        let due = [self.keys.next_due(), self.locks.next_due(), self.sessions.next_due()];
        due.into_iter().flatten().min()
    }

    /// The swarm into which this one dissolves, if the partition is sealed.
    pub fn sealed(&self) -> Option<SwarmId> {
        self.sealed.map(|seal| seal.into)
    }

    /// Number of keys held.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing is held that somebody may rely on: no key, no lock, no dataset, and no token that a key was
    /// written with.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.locks.is_empty() && self.fences.len() == 0 && self.datasets.is_empty()
    }

    /// Bytes of keys and values held, and of what is known of locks, tokens and datasets.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.locks.bytes() + self.fences.bytes() + self.datasets.bytes()
    }

    /// Everything, encoded: what [`StateMachine::restore`] reads. Equal states have equal snapshots.
    pub fn snapshot(&self) -> Vec<u8> {
        snapshot::write(self)
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// If the bytes are not a snapshot, whole and undamaged.
    pub fn restore(snapshot: &[u8]) -> Result<Self, DecodeError> {
        snapshot::read(snapshot)
    }
}

fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
