//! One replica of one group: the Raft core, the state machine, and the rules around them.
//!
//! **Rule.** Inputs change what the replica wants; only its *turn* (`turn`) lets the core write, send and apply,
//! in that order. Everything else is a rule of its own, beside the constants that bound it:
//!
//! - `proposals`: what gets into the log, and what its proposer is told;
//! - `reads`: when the state may be read without being old;
//! - `changes`: who is in the group; leadership handed over; replicas that go;
//! - `elections`: whom a replica supports, and when it campaigns itself;
//! - `transfers`: state for those who are too far behind for the log;
//! - `messages`: what the core may see of what others say;
//! - `room`: who leads, and what becomes of proposals, when disks are full;
//! - `recovery`: what is kept across a restart, how it is taken up again, and a minority that goes on alone;
//! - `lead`: what exists only while leading; `status`: what can be seen from outside.

mod changes;
mod elections;
mod lead;
mod messages;
mod proposals;
mod reads;
mod recovery;
mod room;
mod status;
mod transfers;
mod turn;

use std::collections::{BTreeMap, VecDeque};

use raft::{RawNode, StateRole};

use super::config::{Roster, Voting};
use super::durable::HardState;
use super::log::{self, Log};
use super::shared::Shared;
use super::snapshot::{Arrived, Incoming, Outgoing};
use super::{DriverConfig, Outcome, Refusal};
use crate::id::{NodeId, PartitionId, ReplicaId};
use crate::state_machine::StateMachine;
use crate::time::Timestamp;
use lead::Lead;
use proposals::{MAX_UNCOMMITTED_BYTES, Pending};
pub(super) use recovery::Damaged;
pub(super) use room::Full;
use turn::Unstored;

/// Bytes of entries in one message; a single longer entry still travels.
const MAX_APPEND_BYTES: u64 = 1024 * 1024;
/// Appends sent to one follower ahead of its answers.
const MAX_INFLIGHT_APPENDS: usize = 256;

/// One replica of one group.
pub(super) struct Group {
    partition: PartitionId,
    id: ReplicaId,
    raw: RawNode<Log>,
    machine: StateMachine,
    roster: Roster,
    voting: Voting,
    initialised: bool,
    /// Where replicas live that the roster does not know: learned from their messages.
    hints: BTreeMap<ReplicaId, NodeId>,
    /// Until then this replica supports no other leader.
    promise_until: Timestamp,
    heard_at: Timestamp,
    inquired_at: Timestamp,
    quorum_linked: bool,
    /// The driver's tick at which this group was looked at.
    ticked: usize,
    election_ticks: usize,
    seen: (u64, StateRole),
    announced: Option<NodeId>,
    campaign_at: Option<Timestamp>,
    campaigns: u32,
    lead: Option<Lead>,
    batch: Vec<(Option<u64>, Vec<u8>)>,
    batch_bytes: usize,
    pending: VecDeque<Pending>,
    pending_until: Option<Timestamp>,
    outgoing: BTreeMap<ReplicaId, Outgoing>,
    incoming: Option<Incoming>,
    finished_transfer: Option<u64>,
    arrived: Option<Arrived>,
    /// What waits for the disk, in the order of batches.
    unstored: VecDeque<Unstored>,
    /// Term, vote and commit as last written.
    kept: HardState,
    /// The batch in which the term or vote was last written.
    term_batch: u64,
    /// The group has removed this replica.
    doomed: bool,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("partition", &self.partition)
            .field("id", &self.id)
            .field("role", &self.raw.raft.state)
            .field("term", &self.raw.raft.term)
            .finish_non_exhaustive()
    }
}

/// Why a Raft core could not be made; it would be a mistake of ours.
type Made = Result<Group, raft::Error>;

impl Group {
    /// The first replica of a new group, on this node: its only voter, which leads at once.
    pub(super) fn founding(partition: PartitionId, shared: &mut Shared) -> Made {
        let roster = Roster {
            replicas: BTreeMap::from([(ReplicaId(1), shared.me)]),
            last_replica: 1,
            config: log::FOUNDING.0,
        };
        let voting = Voting { voters: vec![1], ..Voting::default() };
        let log = Log::founding(&voting);
        let mut group = Self::make(partition, ReplicaId(1), log, roster, voting, shared)?;
        group.begin_alone(shared)?;
        Ok(group)
    }

    /// The only voter of its group keeps what it begins with, and leads.
    fn begin_alone(&mut self, shared: &mut Shared) -> Result<(), raft::Error> {
        self.initialised = true;
        self.relink(shared);
        self.keep_state(shared);
        self.raw.campaign()
    }

    /// A replica that a leader has addressed and that knows nothing yet.
    pub(super) fn blank(partition: PartitionId, id: ReplicaId, shared: &mut Shared) -> Made {
        Self::make(partition, id, Log::empty(), Roster::default(), Voting::default(), shared)
    }

    fn make(
        partition: PartitionId,
        id: ReplicaId,
        log: Log,
        roster: Roster,
        voting: Voting,
        shared: &mut Shared,
    ) -> Made {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&core_config(id, &log, &shared.config), log, &logger)?;
        let seen = (raw.raft.term, raw.raft.state);
        let mut group = Self {
            partition,
            id,
            raw,
            machine: StateMachine::default(),
            roster,
            voting,
            initialised: false,
            hints: BTreeMap::new(),
            promise_until: Timestamp::ZERO,
            heard_at: shared.now,
            inquired_at: shared.now,
            quorum_linked: false,
            ticked: 0,
            election_ticks: 0,
            seen,
            announced: None,
            campaign_at: None,
            campaigns: 0,
            lead: None,
            batch: Vec::new(),
            batch_bytes: 0,
            pending: VecDeque::new(),
            pending_until: None,
            outgoing: BTreeMap::new(),
            incoming: None,
            finished_transfer: None,
            arrived: None,
            unstored: VecDeque::new(),
            kept: HardState::default(),
            term_batch: 0,
            doomed: false,
        };
        group.draw_election_timeout(shared);
        Ok(group)
    }

    pub(super) fn id(&self) -> ReplicaId {
        self.id
    }

    pub(super) fn is_doomed(&self) -> bool {
        self.doomed
    }

    pub(super) fn machine(&self) -> Option<&StateMachine> {
        self.initialised.then_some(&self.machine)
    }

    pub(super) fn has_removed(&self, id: ReplicaId) -> bool {
        self.initialised && self.roster.has_removed(id)
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    #[cfg(any(test, feature = "sim"))]
    pub(super) fn term(&self) -> u64 {
        self.raw.raft.term
    }

    fn node_of(&self, id: ReplicaId) -> Option<NodeId> {
        self.roster.replicas.get(&id).or_else(|| self.hints.get(&id)).copied()
    }

    /// Whether the link to the node of a replica stands; never of this one.
    fn is_linked(&self, id: ReplicaId, shared: &Shared) -> bool {
        self.node_of(id).is_some_and(|node| shared.linked.contains(&node))
    }

    /// Who leads, if that is known and its link stands.
    pub(super) fn leader(&self, shared: &Shared) -> Option<NodeId> {
        let node = self.node_of(ReplicaId(self.raw.raft.leader_id))?;
        (node == shared.me || shared.linked.contains(&node)).then_some(node)
    }

    fn applied(&self) -> u64 {
        self.raw.store().applied().0
    }

    fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// The replica goes: nothing that was asked of it stays without an answer.
    pub(super) fn close(&mut self, shared: &mut Shared) {
        self.refuse_reads(Refusal::NoReplica, shared);
        for (tag, _) in std::mem::take(&mut self.batch) {
            if let Some(tag) = tag {
                shared.refuse(tag, Refusal::NoReplica);
            }
        }
        for pending in std::mem::take(&mut self.pending) {
            if let Some(tag) = pending.tag {
                shared.outcome(tag, Outcome::Unknown);
            }
        }
        shared.outgoing -= self.outgoing.len();
        self.outgoing.clear();
        self.drop_incoming(shared);
        self.lead = None;
    }
}

/// How the Raft core is set up for a replica. Its own clock and its own dice are overridden by ours: see
/// `elections`.
fn core_config(id: ReplicaId, log: &Log, config: &DriverConfig) -> raft::Config {
    let (election_min, election_max) = elections::election_bounds(config);
    raft::Config {
        id: id.0,
        election_tick: election_min,
        min_election_tick: election_min,
        max_election_tick: election_max,
        // The driver says when: all groups at once, so that their heartbeats share a frame.
        heartbeat_tick: election_min - 1,
        // Followers hear that more is committed with the next entries, or with the next tick: see `turn`.
        skip_bcast_commit: true,
        applied: log.applied().0,
        max_size_per_msg: MAX_APPEND_BYTES,
        max_inflight_msgs: MAX_INFLIGHT_APPENDS,
        check_quorum: true,
        pre_vote: true,
        read_only_option: raft::ReadOnlyOption::Safe,
        max_uncommitted_size: MAX_UNCOMMITTED_BYTES as u64 * 2,
        ..raft::Config::default()
    }
}
