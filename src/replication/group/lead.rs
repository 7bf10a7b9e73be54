//! What a replica keeps while it leads, and what a leader does as time passes.
//!
//! **Rule.** All of it goes with the leadership, so nothing that was known as the leader of one term is believed
//! in another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::reads::{Read, Round};
use super::room::Room;
use super::{Group, Shared};
use crate::id::{NodeId, ReplicaId};
use crate::replication::convert;
use crate::replication::message::Body;
use crate::state_machine::{Operation, PartitionTime, Watch};
use crate::time::Timestamp;

/// A joint configuration that was not left by then is left by the driver.
const JOINT_STUCK_AFTER: Duration = Duration::from_secs(2);

/// What a replica keeps while it leads.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) term: u64,
    pub(super) since: Timestamp,
    /// The partition's time when this replica took over, what was counted since, and until which moment.
    pub(super) base: PartitionTime,
    pub(super) lived: Duration,
    pub(super) counted: Timestamp,
    pub(super) stamp: PartitionTime,
    pub(super) lease_until: Timestamp,
    /// A transfer was begun in this term: its order to campaign may still be under way, and votes for that
    /// override promises. No lease reads any more.
    pub(super) transferred: bool,
    pub(super) transfer_until: Option<Timestamp>,
    pub(super) round: Option<Round>,
    pub(super) waiting: VecDeque<Read>,
    /// Waits by the key or lock that they are about.
    pub(super) watchers: BTreeMap<Vec<u8>, Vec<(u64, Watch)>>,
    pub(super) watcher_count: usize,
    pub(super) advancing: bool,
    /// What was committed when followers were last told how far that is.
    pub(super) told: u64,
    /// How much of that all of them had, that are linked: of more than it has, nobody can be told.
    pub(super) told_all: u64,
    pub(super) joint_since: Option<Timestamp>,
    pub(super) retired: BTreeMap<ReplicaId, (NodeId, Timestamp)>,
    /// Replicas whose nodes say that they have lost what they had promised to keep.
    pub(super) lost: BTreeSet<ReplicaId>,
    /// When each follower answered last.
    pub(super) heard: BTreeMap<ReplicaId, Timestamp>,
    /// What each follower said of its disk with its last answer to a heartbeat.
    pub(super) room: BTreeMap<ReplicaId, Room>,
    /// Who was offered the leadership because the disk is full here, in this round.
    pub(super) offered: BTreeSet<ReplicaId>,
    /// When the next round begins.
    pub(super) relief_at: Timestamp,
}

impl Lead {
    pub(super) fn new(term: u64, now: Timestamp, time: PartitionTime) -> Self {
        Self {
            term,
            since: now,
            base: time,
            lived: Duration::ZERO,
            counted: now,
            stamp: time,
            lease_until: Timestamp::ZERO,
            transferred: false,
            transfer_until: None,
            round: None,
            waiting: VecDeque::new(),
            watchers: BTreeMap::new(),
            watcher_count: 0,
            advancing: false,
            told: 0,
            told_all: 0,
            joint_since: None,
            retired: BTreeMap::new(),
            lost: BTreeSet::new(),
            heard: BTreeMap::new(),
            room: BTreeMap::new(),
            offered: BTreeSet::new(),
            relief_at: now,
        }
    }
}

impl Group {
    pub(super) fn lead_tick(&mut self, shared: &mut Shared) {
        let now = shared.now;
        self.observe(shared);
        self.retry_round(shared);
        self.propose_advance(shared);
        let joint = !self.voting.outgoing.is_empty();
        let pending_conf = self.raw.raft.has_pending_conf();
        if self.lead.as_ref().is_some_and(|lead| lead.transfer_until.is_some_and(|until| now >= until)) {
            self.call_off_transfer();
        }
        self.seek_relief(shared);
        let Some(lead) = &mut self.lead else {
            return;
        };
        lead.joint_since = joint.then(|| lead.joint_since.unwrap_or(now));
        let stuck = lead.joint_since.is_some_and(|since| now.since(since) > JOINT_STUCK_AFTER);
        lead.retired.retain(|_, (_, until)| now < *until);
        for (id, (node, _)) in &lead.retired {
            shared.send(*node, Self::message(self.partition, self.id, *id, Body::Retired));
        }
        if stuck && !pending_conf {
            // The core leaves a joint configuration by itself, but not in every order of a change of leaders.
            lead.joint_since = Some(now);
            let _ = self.raw.propose_conf_change(Vec::new(), convert::conf_change(&[]));
        }
    }

    /// Time passes in the state machine by log entries only: when something is due there, the leader says so.
    fn propose_advance(&mut self, shared: &mut Shared) {
        let due = self.machine.next_due();
        let transferring = self.raw.raft.lead_transferee.is_some();
        let stamp = self.stamp(shared);
        let advance = self
            .lead
            .as_ref()
            .is_some_and(|lead| !lead.advancing && !transferring && due.is_some() && due <= stamp);
        if advance
            && self.enqueue(None, None, Operation::Advance, shared).is_ok()
            && let Some(lead) = &mut self.lead
        {
            lead.advancing = true;
        }
    }
}
