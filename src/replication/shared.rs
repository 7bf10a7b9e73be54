//! What the groups of a node have in common while one of them works: the time, the dice, the links, and where
//! what they have to say is gathered.
//!
//! A group never keeps a reference to it: it is lent for one call, so no group sees another one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::rngs::StdRng;

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
    next_id: u64,
    #[cfg(test)]
    pub(super) applied: Vec<(PartitionId, u64, Vec<u8>)>,
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
            next_id: 1,
            #[cfg(test)]
            applied: Vec::new(),
        }
    }

    pub(super) fn send(&mut self, to: NodeId, message: GroupMessage) {
        // Without a link it would be lost anyway; Raft sends again what matters.
        if self.linked.contains(&to) {
            self.outbox.entry(to).or_default().push(message);
        }
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
