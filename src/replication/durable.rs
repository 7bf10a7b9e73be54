//! What a driver wants kept across a restart, and what it gets back.
//!
//! **Contract.** The driver emits [`Output::Persist`](super::Output::Persist) batches; whoever keeps them keeps
//! each whole or not at all, in their order, and says [`Driver::persisted`](super::Driver::persisted) when one is
//! on the disk. Until then nothing that rests on it is said to anybody. After a restart the [`Stored`] that the
//! kept writes amount to goes to [`Driver::restore`](super::Driver::restore).
//!
//! What the writes amount to is defined here, once, by [`Stored::apply`]: for the store that reads its files back
//! and for the simulated disk alike.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::message::LogEntry;
use crate::id::{PartitionId, ReplicaId};

/// One thing to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Entries of a replica's log; they take the place of whatever was kept from index `first` on.
    Append {
        /// The partition.
        partition: PartitionId,
        /// Its replica here.
        replica: ReplicaId,
        /// Index of the first entry.
        first: u64,
        /// The entries.
        entries: Vec<LogEntry>,
    },
    /// Term, vote and commit of a replica.
    HardState {
        /// The partition.
        partition: PartitionId,
        /// Its replica here.
        replica: ReplicaId,
        /// What to remember.
        state: HardState,
    },
    /// The whole state of a replica at one index: takes the place of the state before and of all entries up to
    /// that index.
    State {
        /// The partition.
        partition: PartitionId,
        /// Its replica here.
        replica: ReplicaId,
        /// Whether the entries behind that index go as well: the state came from the leader. Otherwise it was
        /// made here, so that the log can be cut.
        replaces_log: bool,
        /// The state.
        state: StoredState,
    },
    /// The replica is no more.
    Destroy {
        /// The partition.
        partition: PartitionId,
        /// The replica that was here.
        replica: ReplicaId,
    },
}

impl Write {
    /// Which partition it is about.
    pub fn partition(&self) -> PartitionId {
        match self {
            Self::Append { partition, .. }
            | Self::HardState { partition, .. }
            | Self::State { partition, .. }
            | Self::Destroy { partition, .. } => *partition,
        }
    }
}

/// What Raft must not forget beside its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HardState {
    /// The term.
    pub term: u64,
    /// For whom this replica voted in it; 0: nobody.
    pub vote: u64,
    /// Known to be committed. May lag: it is kept for the sake of a faster start only.
    pub commit: u64,
}

/// A replica's whole state at one index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredState {
    /// The entry applied last, and its term.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Who is in the group: encoded, for the driver alone. Small.
    #[serde(with = "crate::codec::bytes")]
    pub header: Vec<u8>,
    /// The state machine's snapshot. It carries its own checksum.
    #[serde(with = "crate::codec::bytes")]
    pub data: Vec<u8>,
}

/// All that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The replicas of this node.
    pub replicas: BTreeMap<PartitionId, StoredReplica>,
    /// Of each partition, the highest replica that lived here and was destroyed.
    pub destroyed: BTreeMap<PartitionId, ReplicaId>,
}

/// What was kept of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReplica {
    /// Its id in the group.
    pub replica: ReplicaId,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The last state that was kept; `None`: it never had one.
    pub state: Option<StoredState>,
    /// Index of the first of `entries`.
    // Invariant of a sound replica: state.index < first <= state.index + 1, or no entries and no state.
    pub first: u64,
    /// The log behind the state.
    pub entries: VecDeque<LogEntry>,
    /// Something of it was lost: what is here may lack what this replica promised to keep. It must not take part
    /// in its group any more. Entries follow on the state then too, if there are any.
    pub damaged: bool,
}

impl StoredReplica {
    fn new(replica: ReplicaId) -> Self {
        Self {
            replica,
            hard_state: HardState::default(),
            state: None,
            first: 1,
            entries: VecDeque::new(),
            damaged: false,
        }
    }

    /// Index of the last entry, or of the state if there is none behind it.
    pub fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// Whether the log follows on the state without a gap.
    pub fn is_whole(&self) -> bool {
        let base = self.state.as_ref().map_or(0, |state| state.index);
        !self.damaged && self.first == base + 1
    }
}

impl Stored {
    /// Takes a write into account.
    ///
    /// # Errors
    /// If it does not fit what was kept before: something in between was lost. The replica is marked as damaged,
    /// and what can be used of the write was used.
    pub fn apply(&mut self, write: Write) -> Result<(), Gap> {
        let partition = write.partition();
        let gap = Gap { partition };
        match write {
            Write::Append { replica, first, entries, .. } => {
                let kept = self.replica(partition, replica);
                if first > kept.last() + 1 {
                    kept.damaged = true;
                    return Err(gap);
                }
                if first < kept.first {
                    // Only entries that are not committed are ever replaced, and a state holds committed ones.
                    kept.damaged = true;
                    return Err(gap);
                }
                kept.entries.truncate(usize::try_from(first - kept.first).unwrap_or(usize::MAX));
                kept.entries.extend(entries);
            }
            Write::HardState { replica, state, .. } => self.replica(partition, replica).hard_state = state,
            Write::State { replica, replaces_log, state, .. } => {
                let kept = self.replica(partition, replica);
                if replaces_log || state.index >= kept.last() {
                    kept.entries.clear();
                } else if state.index + 1 < kept.first {
                    // Older than the one that is here: the entries between the two are gone.
                    kept.damaged = true;
                    return Err(gap);
                } else {
                    let covered = (state.index + 1).saturating_sub(kept.first);
                    kept.entries.drain(..usize::try_from(covered).unwrap_or(usize::MAX));
                }
                kept.first = state.index + 1;
                kept.state = Some(state);
            }
            Write::Destroy { replica, .. } => {
                if self.replicas.get(&partition).is_some_and(|kept| kept.replica <= replica) {
                    self.replicas.remove(&partition);
                }
                let destroyed = self.destroyed.entry(partition).or_insert(replica);
                *destroyed = (*destroyed).max(replica);
            }
        }
        Ok(())
    }

    /// The replica of this id; one of another id gives way.
    fn replica(&mut self, partition: PartitionId, replica: ReplicaId) -> &mut StoredReplica {
        let kept = self.replicas.entry(partition).or_insert_with(|| StoredReplica::new(replica));
        if kept.replica != replica {
            *kept = StoredReplica::new(replica);
        }
        kept
    }
}

/// A write does not follow on those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was kept of partition {partition} has a gap")]
pub struct Gap {
    /// The partition.
    pub partition: PartitionId,
}
