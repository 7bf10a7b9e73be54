//! What the groups of a node have in common while one of them works: the time, the dice, the links, and where
//! what they have to say is gathered.
//!
//! A group never keeps a reference to it: it is lent for one call, so no group sees another one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::rngs::StdRng;

use super::durable::Write;
use super::group::Full;
use super::message::GroupMessage;
use super::{DriverConfig, Outcome, Output, Refusal};
use crate::id::{NodeId, PartitionId};
use crate::time::Timestamp;

/// What all groups of a node share during a turn.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) me: NodeId,
    pub(super) config: DriverConfig,
    pub(super) now: Timestamp,
    pub(super) rng: StdRng,
    pub(super) linked: BTreeSet<NodeId>,
    pub(super) outbox: BTreeMap<NodeId, Vec<GroupMessage>>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) timers: BTreeSet<(Timestamp, PartitionId)>,
    /// Where each wait is, so that it can be called off.
    pub(super) waits: BTreeMap<u64, PartitionId>,
    pub(super) outgoing: usize,
    pub(super) incoming: usize,
    pub(super) dropped: u64,
    /// Whether the disk is full: see `group::room`.
    pub(super) full: Option<Full>,
    /// What this turn wants kept, and the number of the batch that it will travel in.
    writes: Vec<Write>,
    batch: u64,
    /// All batches up to this one are on the disk.
    pub(super) persisted: u64,
    /// Which groups have something to say when a batch is on the disk.
    awaiting: BTreeSet<(u64, PartitionId)>,
    next_id: u64,
    #[cfg(any(test, feature = "sim"))]
    pub(super) observed: super::Observed,
}

impl Shared {
    pub(super) fn new(me: NodeId, config: DriverConfig, rng: StdRng, now: Timestamp) -> Self {
        Self {
            me,
            config,
            now,
            rng,
            linked: BTreeSet::new(),
            outbox: BTreeMap::new(),
            outputs: VecDeque::new(),
            timers: BTreeSet::new(),
            waits: BTreeMap::new(),
            outgoing: 0,
            incoming: 0,
            dropped: 0,
            full: None,
            writes: Vec::new(),
            batch: 1,
            persisted: 0,
            awaiting: BTreeSet::new(),
            next_id: 1,
            #[cfg(any(test, feature = "sim"))]
            observed: super::Observed::default(),
        }
    }

    /// Whether the disk is full.
    pub(super) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    pub(super) fn send(&mut self, to: NodeId, message: GroupMessage) {
        // Without a link it would be lost anyway; Raft sends again what matters.
        if self.linked.contains(&to) {
            self.outbox.entry(to).or_default().push(message);
        }
    }

    /// Keeps something across restarts, if anything is.
    pub(super) fn keep(&mut self, write: Write) {
        if self.config.durable {
            self.writes.push(write);
        }
    }

    /// How many writes there are in the batch that is being gathered.
    pub(super) fn kept(&self) -> usize {
        self.writes.len()
    }

    /// The batch that is being gathered.
    pub(super) fn batch(&self) -> u64 {
        self.batch
    }

    /// Closes the batch that is being gathered.
    pub(super) fn close_batch(&mut self) -> Option<Output> {
        if self.writes.is_empty() {
            return None;
        }
        let batch = self.batch;
        self.batch += 1;
        Some(Output::Persist { batch, writes: std::mem::take(&mut self.writes) })
    }

    /// The group has something to say as soon as the batch is on the disk.
    pub(super) fn await_batch(&mut self, batch: u64, partition: PartitionId) {
        self.awaiting.insert((batch, partition));
    }

    /// All batches up to this one are on the disk: the groups that have something to say now.
    pub(super) fn awaited(&mut self, persisted: u64) -> BTreeSet<PartitionId> {
        self.persisted = self.persisted.max(persisted);
        let later = self.awaiting.split_off(&(persisted + 1, PartitionId(0)));
        std::mem::replace(&mut self.awaiting, later).into_iter().map(|(_, partition)| partition).collect()
    }

    /// Forgets what was to be kept: the swarm is no more.
    pub(super) fn forget_writes(&mut self) {
        self.writes.clear();
        self.awaiting.clear();
    }

    pub(super) fn outcome(&mut self, tag: u64, result: Outcome) {
        self.waits.remove(&tag);
        self.outputs.push_back(Output::Outcome { tag, result });
    }

    pub(super) fn refuse(&mut self, tag: u64, refusal: Refusal) {
        self.outcome(tag, Outcome::Refused(refusal));
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
