//! The log of one replica, in memory: what the Raft core reads back.
//!
//! Every write of the core goes through [`Log::append`], [`Log::set_hard_state`] and [`Log::install`], which are
//! called together, once per turn and group. What they write is in memory at once, where the core reads it; that
//! it is also on the disk is known later, and what rests on that waits for it (`turn`).

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::config::Voting;
use super::convert;

/// What an entry takes beside its data, in bytes; a round figure.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// The log of one replica.
#[derive(Debug)]
pub(super) struct Log {
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term of the entry before the first that is kept.
    truncated: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Index and term of the entry applied last: what a snapshot made now would contain.
    applied: (u64, u64),
}

/// Where a founder's log begins. Not at 0: so a replica without a log can never be served from the log, it
/// starts from a snapshot, which tells it the configuration.
pub(super) const FOUNDING: (u64, u64) = (1, 1);

impl Log {
    /// The log of a replica that knows nothing yet.
    pub(super) fn empty() -> Self {
        Self {
            hard_state: HardState::default(),
            conf_state: ConfState::default(),
            truncated: (0, 0),
            entries: VecDeque::new(),
            bytes: 0,
            applied: (0, 0),
        }
    }

    /// The log of a group's first replica.
    pub(super) fn founding(voting: &Voting) -> Self {
        let mut log = Self::empty();
        log.truncated = FOUNDING;
        log.applied = FOUNDING;
        log.conf_state = convert::to_conf_state(voting);
        log.hard_state.commit = FOUNDING.0;
        log.hard_state.term = FOUNDING.1;
        log
    }

    /// The log of a replica that was here before a restart: its state at `applied`, and the entries behind it.
    pub(super) fn restored(
        hard_state: HardState,
        applied: (u64, u64),
        voting: &Voting,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Self {
        let mut log = Self::empty();
        log.install(applied.0, applied.1, voting);
        log.append(entries.into_iter().collect());
        log.hard_state = hard_state;
        log
    }

    /// The entries behind what is applied.
    pub(super) fn unapplied(&self) -> impl Iterator<Item = &Entry> {
        self.entries.range(self.position(self.applied.0 + 1).min(self.entries.len())..)
    }

    /// Adds entries, replacing those from the first one's index on.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else {
            return;
        };
        while self.entries.back().is_some_and(|last| last.index >= first.index) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= bytes_of(&entry);
            }
        }
        for entry in entries {
            self.bytes += bytes_of(&entry);
            self.entries.push_back(entry);
        }
    }

    /// Term, vote and commit, as last remembered.
    pub(super) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Remembers term, vote and commit.
    pub(super) fn set_hard_state(&mut self, state: HardState) {
        self.hard_state = state;
    }

    /// Replaces everything by a snapshot.
    pub(super) fn install(&mut self, index: u64, term: u64, voting: &Voting) {
        self.entries.clear();
        self.bytes = 0;
        self.truncated = (index, term);
        self.applied = (index, term);
        self.conf_state = convert::to_conf_state(voting);
    }

    /// The configuration as applied.
    pub(super) fn set_voting(&mut self, state: ConfState) {
        self.conf_state = state;
    }

    /// The configuration as applied.
    pub(super) fn voting(&self) -> Voting {
        convert::from_conf_state(&self.conf_state)
    }

    /// What was applied last.
    pub(super) fn set_applied(&mut self, index: u64, term: u64) {
        self.applied = (index, term);
    }

    /// Index and term of what was applied last.
    pub(super) fn applied(&self) -> (u64, u64) {
        self.applied
    }

    /// Forgets entries up to `index` and what is applied, but keeps so many of the last ones.
    pub(super) fn compact(&mut self, index: u64, keep_entries: usize, keep_bytes: usize) {
        let index = index.min(self.applied.0);
        while (self.entries.len() > keep_entries || self.bytes > keep_bytes)
            && self.entries.front().is_some_and(|first| first.index <= index)
        {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= bytes_of(&entry);
                self.truncated = (entry.index, entry.term);
            }
        }
    }

    /// Lets each entry have its bytes for itself: those that were read from a disk share them with entries that are
    /// gone by now.
    pub(super) fn unshare(&mut self) {
        for entry in &mut self.entries {
            entry.data = Bytes::copy_from_slice(&entry.data);
            entry.context = Bytes::copy_from_slice(&entry.context);
        }
    }

    /// Number of entries kept.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of entries kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn last(&self) -> u64 {
        self.truncated.0 + self.entries.len() as u64
    }

    fn position(&self, index: u64) -> usize {
        usize::try_from(index - self.truncated.0 - 1).unwrap_or(usize::MAX)
    }
}

fn bytes_of(entry: &Entry) -> usize {
    ENTRY_OVERHEAD_BYTES + entry.data.len() + entry.context.len()
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let limit = max_size.into().map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let mut taken = Vec::new();
        let mut bytes = 0;
        for entry in self.entries.range(self.position(low)..self.position(high)) {
            bytes += bytes_of(entry);
            if bytes > limit && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index < self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        self.entries
            .get(self.position(index))
            .map(|entry| entry.term)
            .ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only the description: the driver makes the data when it sends it, piece by piece.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.applied.0 == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(convert::snapshot(self.applied.0, self.applied.1, &self.voting()))
    }
}
