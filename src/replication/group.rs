//! One replica of one group: the Raft core, the state machine, and the rules around them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use raft::eraftpb::{self, EntryType};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use rand::RngExt;
use rand::rngs::StdRng;

use super::config::{ConfigStep, Roster, Voting};
use super::log::Log;
use super::message::{Body, GroupMessage, RaftKind, RaftMessage, SnapshotAck, SnapshotChunk, SnapshotState};
use super::snapshot::{self, Arrived, Incoming, Outgoing, SnapshotHeader};
use super::{
    Change, ChangeError, DriverConfig, GroupStatus, MAX_REPLICAS, Outcome, Output, Refusal, ReplicaProgress,
    Role, convert,
};
use crate::codec;
use crate::id::{NodeId, PartitionId, ReplicaId, Version};
use crate::state_machine::{Command, Operation, Origin, PartitionTime, Query, StateMachine};
use crate::time::Timestamp;

/// Proposals of one group that are not applied yet.
const MAX_PROPOSALS: usize = 4096;
/// Bytes of entries of one group that are not committed yet.
const MAX_UNCOMMITTED_BYTES: usize = 16 * 1024 * 1024;
/// Longest encoded command: the longest value and key, and room for the rest.
const MAX_COMMAND_BYTES: usize = 1024 * 1024 + 64 * 1024;
/// Reads of one group that await a read round.
const MAX_READS: usize = 4096;
/// Waits of one group.
const MAX_WATCHERS: usize = 1024;
/// Bytes of entries in one message; a single longer entry still travels.
const MAX_APPEND_BYTES: u64 = 1024 * 1024;
/// Appends sent to one follower ahead of its answers.
const MAX_INFLIGHT_APPENDS: usize = 256;
/// Where a node says it is, of replicas that the roster does not know (yet).
const MAX_HINTS: usize = 32;
/// Longest context of a message, in bytes.
const MAX_CONTEXT_BYTES: usize = 64;
/// Terms and indices beyond this are nonsense: far from where arithmetic overflows.
const MAX_NUMBER: u64 = 1 << 60;
/// A learner that lacks no more entries than this has caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// A read round without an answer is asked again after this time.
const ROUND_RETRY: Duration = Duration::from_millis(100);
/// Attempts of one read round that are still counted.
const MAX_ROUND_ATTEMPTS: usize = 32;
/// For so long after leadership was lost, proposals may still turn out to be applied (or overwritten).
const PENDING_GRACE: Duration = Duration::from_millis(300);
/// A transfer of leadership that takes longer is called off.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(500);
/// First and longest pause between campaigns of a leaderless group whose quorum is linked.
const CAMPAIGN_RETRY: Duration = Duration::from_millis(100);
const CAMPAIGN_RETRY_MAX: Duration = Duration::from_millis(1600);
/// A replica that has not heard a leader for so long asks whether it is still in.
const INQUIRE_AFTER: Duration = Duration::from_secs(5);
/// A replica that never got its state and hears nothing for so long is dropped.
const UNINITIALISED_AFTER: Duration = Duration::from_secs(30);
/// A leader repeats to a removed replica that it is removed, for so long.
const RETIRED_NOTICES: Duration = Duration::from_secs(3);
/// A joint configuration that was not left by then is left by the driver.
const JOINT_STUCK_AFTER: Duration = Duration::from_secs(2);
/// Entries and bytes that a follower keeps, should it lead next.
const FOLLOWER_LOG_ENTRIES: usize = 4096;
const FOLLOWER_LOG_BYTES: usize = 16 * 1024 * 1024;
/// The Raft core's mark of a vote that overrides leases.
const TRANSFER_CONTEXT: &[u8] = raft::CAMPAIGN_TRANSFER;

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

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// A proposal in the log that is not applied yet.
#[derive(Debug)]
struct Pending {
    index: u64,
    term: u64,
    tag: Option<u64>,
}

/// A linearizable read that awaits a round, or a wait that awaits its first look.
#[derive(Debug)]
struct Read {
    tag: u64,
    ask: Ask,
}

#[derive(Debug)]
enum Ask {
    Query(Query),
    Wait { key: Vec<u8>, seen: Option<Version> },
}

/// A `ReadIndex` round: the reads that joined before it was first asked, and when it was asked.
#[derive(Debug)]
struct Round {
    attempts: VecDeque<(u64, Timestamp)>,
    reads: VecDeque<Read>,
    /// The quorum answered: the reads wait until this index is applied.
    confirmed: Option<u64>,
}

/// What a replica keeps while it leads.
#[derive(Debug)]
struct Lead {
    term: u64,
    since: Timestamp,
    base: PartitionTime,
    stamp: PartitionTime,
    lease_until: Timestamp,
    /// A transfer was begun in this term: its order to campaign may still be under way, and votes for that
    /// override promises. No lease reads any more.
    transferred: bool,
    transfer_until: Option<Timestamp>,
    round: Option<Round>,
    waiting: VecDeque<Read>,
    watchers: BTreeMap<Vec<u8>, Vec<(u64, Option<Version>)>>,
    watcher_count: usize,
    advancing: bool,
    joint_since: Option<Timestamp>,
    retired: BTreeMap<ReplicaId, (NodeId, Timestamp)>,
    /// When each follower answered last.
    heard: BTreeMap<ReplicaId, Timestamp>,
}

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
            config: super::log::FOUNDING.0,
        };
        let voting = Voting { voters: vec![1], ..Voting::default() };
        let log = Log::founding(&voting);
        let mut group = Self::make(partition, ReplicaId(1), log, roster, voting, shared)?;
        group.initialised = true;
        group.relink(shared);
        group.raw.campaign()?;
        Ok(group)
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
        let config = &shared.config;
        let election_min = config.ticks(config.election_min).max(2);
        let core = raft::Config {
            id: id.0,
            election_tick: election_min,
            min_election_tick: election_min,
            max_election_tick: config.ticks(config.election_max).max(election_min + 1),
            // The driver says when: all groups at once, so that their heartbeats share a frame.
            heartbeat_tick: election_min - 1,
            applied: log.applied().0,
            max_size_per_msg: MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_APPENDS,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES as u64 * 2,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&core, log, &logger)?;
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
            election_ticks: election_min,
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
            doomed: false,
        };
        group.draw_election_timeout(shared);
        Ok(group)
    }

    // ---- what can be seen ----

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

    fn node_of(&self, id: ReplicaId) -> Option<NodeId> {
        self.roster.replicas.get(&id).or_else(|| self.hints.get(&id)).copied()
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

    pub(super) fn status(&self, shared: &Shared) -> GroupStatus {
        let raft = &self.raw.raft;
        let nodes =
            |ids: &[u64]| ids.iter().filter_map(|id| self.node_of(ReplicaId(*id))).collect::<Vec<_>>();
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            _ if !self.voting.votes(self.id.0) => Role::Learner,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        let progress = if role == Role::Leader {
            self.roster
                .replicas
                .iter()
                .filter(|(id, _)| **id != self.id)
                .filter_map(|(id, node)| {
                    let matched = raft.prs().get(id.0)?.matched;
                    Some(ReplicaProgress {
                        node: *node,
                        voter: self.voting.votes(id.0),
                        matched,
                        lag: self.last_index().saturating_sub(matched),
                        live: self.is_live(*id, shared),
                        caught_up: self.is_caught_up(*id, shared),
                    })
                })
                .collect()
        } else {
            Vec::new()
        };
        let hears_leader =
            self.leader(shared).is_some() && shared.now.since(self.heard_at) < shared.config.election_max;
        GroupStatus {
            replica: self.id,
            role,
            term: raft.term,
            leader: self.leader(shared),
            config: self.roster.config,
            changing: self.is_changing(),
            voters: nodes(&self.voting.voters),
            learners: nodes(&self.voting.learners),
            progress,
            has_quorum: if role == Role::Leader { self.quorum_linked } else { hears_leader },
            keys: self.machine.len(),
            bytes: self.machine.bytes(),
            applied: self.applied(),
            committed: raft.raft_log.committed,
            log_entries: self.raw.store().len(),
            sealed: self.machine.sealed(),
        }
    }

    fn is_changing(&self) -> bool {
        !self.voting.outgoing.is_empty() || (self.is_leader() && self.raw.raft.has_pending_conf())
    }

    fn is_live(&self, id: ReplicaId, shared: &Shared) -> bool {
        let heard = self.lead.as_ref().and_then(|lead| lead.heard.get(&id));
        heard.is_some_and(|at| shared.now.since(*at) < shared.config.election_min)
            && self.node_of(id).is_some_and(|node| shared.linked.contains(&node))
    }

    fn is_caught_up(&self, id: ReplicaId, shared: &Shared) -> bool {
        self.is_live(id, shared)
            && self.raw.raft.prs().get(id.0).is_some_and(|progress| {
                progress.state != ProgressState::Snapshot
                    // However short the log: without the state it could not even vote.
                    && progress.matched > 0
                    && progress.matched + CAUGHT_UP_ENTRIES >= self.last_index()
            })
    }

    /// Why this replica does not serve now, if so.
    fn refusal(&self, shared: &Shared) -> Option<Refusal> {
        if self.is_leader() {
            return (!self.quorum_linked).then_some(Refusal::NoQuorum);
        }
        let leader = self.leader(shared);
        if leader.is_none() && self.initialised && !self.quorum_linked {
            return Some(Refusal::NoQuorum);
        }
        Some(Refusal::NotLeader { leader })
    }

    // ---- what clients want ----

    pub(super) fn propose(
        &mut self,
        tag: u64,
        origin: Option<Origin>,
        operation: Operation,
        shared: &mut Shared,
    ) {
        if let Some(refusal) = self.refusal(shared) {
            return shared.refuse(tag, refusal);
        }
        if self.raw.raft.lead_transferee.is_some() {
            return shared.refuse(tag, Refusal::NotLeader { leader: None });
        }
        if let Err(refusal) = self.enqueue(Some(tag), origin, operation, shared) {
            shared.refuse(tag, refusal);
        }
    }

    fn enqueue(
        &mut self,
        tag: Option<u64>,
        origin: Option<Origin>,
        operation: Operation,
        shared: &mut Shared,
    ) -> Result<(), Refusal> {
        // Leadership may be so fresh that no turn has noticed it yet.
        self.observe(shared);
        let Some(time) = self.stamp(shared.now) else {
            return Err(Refusal::NotLeader { leader: None });
        };
        let data = codec::encode(&Command { time, origin, operation });
        if data.len() > MAX_COMMAND_BYTES {
            return Err(Refusal::TooLarge);
        }
        let uncommitted = self.raw.raft.uncommitted_size() + self.batch_bytes;
        if self.pending.len() + self.batch.len() >= MAX_PROPOSALS
            || uncommitted + data.len() > MAX_UNCOMMITTED_BYTES
        {
            return Err(Refusal::Overloaded);
        }
        self.batch_bytes += data.len();
        self.batch.push((tag, data));
        Ok(())
    }

    /// The partition's time: where it stood when this replica took over, plus what passed since; never back.
    fn stamp(&mut self, now: Timestamp) -> Option<PartitionTime> {
        let state = self.machine.time();
        let lead = self.lead.as_mut()?;
        let elapsed = u64::try_from(now.since(lead.since).as_millis()).unwrap_or(u64::MAX);
        let time = PartitionTime(lead.base.0.saturating_add(elapsed));
        lead.stamp = time.max(lead.stamp).max(state);
        Some(lead.stamp)
    }

    pub(super) fn read(&mut self, tag: u64, query: Query, shared: &mut Shared) {
        self.ask(Read { tag, ask: Ask::Query(query) }, shared);
    }

    pub(super) fn wait(&mut self, tag: u64, key: Vec<u8>, seen: Option<Version>, shared: &mut Shared) {
        shared.waits.insert(tag, self.partition);
        self.ask(Read { tag, ask: Ask::Wait { key, seen } }, shared);
    }

    fn ask(&mut self, read: Read, shared: &mut Shared) {
        if let Some(refusal) = self.refusal(shared) {
            return shared.refuse(read.tag, refusal);
        }
        self.observe(shared);
        let now = shared.now;
        let lease = shared.config.lease;
        if self.holds_lease(now) {
            let early = self.lead.as_ref().is_some_and(|lead| {
                lead.round.is_none() && now + lease.mul_f64(LEASE_SHARE / 3.0) >= lead.lease_until
            });
            if early {
                self.begin_round(shared);
            }
            return self.serve(read, shared);
        }
        let Some(lead) = &mut self.lead else {
            return shared.refuse(read.tag, Refusal::NotLeader { leader: None });
        };
        let queued = lead.waiting.len() + lead.round.as_ref().map_or(0, |round| round.reads.len());
        if queued >= MAX_READS {
            return shared.refuse(read.tag, Refusal::Overloaded);
        }
        lead.waiting.push_back(read);
        self.begin_round(shared);
    }

    /// Whether reads may be served from the state as it is: nobody else can lead, and the state has all that
    /// was ever acknowledged.
    fn holds_lease(&self, now: Timestamp) -> bool {
        self.is_leader()
            && self.raw.store().applied().1 == self.raw.raft.term
            && self.lead.as_ref().is_some_and(|lead| {
                !lead.transferred && lead.term == self.raw.raft.term && now < lead.lease_until
            })
    }

    /// Asks a quorum whether this replica still leads, unless that is being asked already (reads that came
    /// after the question wait for the next one) or cannot be asked yet.
    fn begin_round(&mut self, shared: &mut Shared) {
        if !self.is_leader() || !self.raw.raft.commit_to_current_term() {
            return;
        }
        let Some(lead) = &mut self.lead else {
            return;
        };
        if lead.round.is_some() {
            return;
        }
        let context = shared.next_id();
        lead.round = Some(Round {
            attempts: VecDeque::from([(context, shared.now)]),
            reads: std::mem::take(&mut lead.waiting),
            confirmed: None,
        });
        self.raw.read_index(context.to_be_bytes().to_vec());
    }

    /// Asks again: the messages of the round may be lost.
    fn retry_round(&mut self, shared: &mut Shared) {
        let Some(round) = self.lead.as_mut().and_then(|lead| lead.round.as_mut()) else {
            return;
        };
        let last = round.attempts.back().map_or(Timestamp::ZERO, |(_, asked)| *asked);
        if round.confirmed.is_some() || shared.now.since(last) < ROUND_RETRY {
            return;
        }
        if round.attempts.len() >= MAX_ROUND_ATTEMPTS {
            round.attempts.pop_front();
        }
        let context = shared.next_id();
        round.attempts.push_back((context, shared.now));
        self.raw.read_index(context.to_be_bytes().to_vec());
    }

    fn confirm_round(&mut self, context: &[u8], index: u64, shared: &Shared) {
        let lease = shared.config.lease.mul_f64(LEASE_SHARE);
        let Ok(context) = context.try_into().map(u64::from_be_bytes) else {
            return;
        };
        let Some(lead) = &mut self.lead else {
            return;
        };
        let Some(round) = &mut lead.round else {
            return;
        };
        let Some((_, asked)) = round.attempts.iter().find(|(attempt, _)| *attempt == context) else {
            return;
        };
        lead.lease_until = lead.lease_until.max(*asked + lease);
        round.confirmed = Some(round.confirmed.map_or(index, |earlier| earlier.max(index)));
    }

    /// Answers the reads whose round is confirmed and whose index is applied. Whether anything new was asked.
    fn finish_round(&mut self, shared: &mut Shared) -> bool {
        let applied = self.applied();
        let Some(lead) = &mut self.lead else {
            return false;
        };
        let confirmed = lead.round.as_ref().and_then(|round| round.confirmed);
        if confirmed.is_some_and(|index| index <= applied) {
            let reads = lead.round.take().map(|round| round.reads).unwrap_or_default();
            for read in reads {
                self.serve(read, shared);
            }
        }
        if self.holds_lease(shared.now) {
            let waiting = self.lead.as_mut().map(|lead| std::mem::take(&mut lead.waiting));
            for read in waiting.unwrap_or_default() {
                self.serve(read, shared);
            }
        }
        let idle = self.lead.as_ref().is_some_and(|lead| lead.round.is_none() && !lead.waiting.is_empty());
        if idle && self.raw.raft.commit_to_current_term() {
            self.begin_round(shared);
            return true;
        }
        false
    }

    /// Answers from the state as it is.
    fn serve(&mut self, read: Read, shared: &mut Shared) {
        let tag = read.tag;
        match read.ask {
            Ask::Query(query) => {
                let answer = self.machine.query(&query);
                shared.outcome(tag, Outcome::Answer { answer, stale: false });
            }
            Ask::Wait { key, seen } => {
                if self.machine.version(&key) != seen {
                    let answer = self.machine.query(&Query::Get { key });
                    return shared.outcome(tag, Outcome::Answer { answer, stale: false });
                }
                match &mut self.lead {
                    Some(lead) if lead.watcher_count < MAX_WATCHERS => {
                        lead.watcher_count += 1;
                        lead.watchers.entry(key).or_default().push((tag, seen));
                    }
                    Some(_) => shared.refuse(tag, Refusal::Overloaded),
                    None => shared.refuse(tag, Refusal::NotLeader { leader: None }),
                }
            }
        }
    }

    /// Answers whatever the driver knows without asking anyone.
    pub(super) fn read_stale(&self, tag: u64, query: &Query, shared: &mut Shared) {
        if !self.initialised {
            return shared.refuse(tag, Refusal::NoReplica);
        }
        let answer = self.machine.query(query);
        shared.outcome(tag, Outcome::Answer { answer, stale: true });
    }

    /// The caller of a wait no longer waits.
    pub(super) fn cancel(&mut self, tag: u64) {
        let Some(lead) = &mut self.lead else {
            return;
        };
        lead.waiting.retain(|read| read.tag != tag);
        if let Some(round) = &mut lead.round {
            round.reads.retain(|read| read.tag != tag);
        }
        let mut gone = 0;
        lead.watchers.retain(|_, waits| {
            let before = waits.len();
            waits.retain(|(wait, _)| *wait != tag);
            gone += before - waits.len();
            !waits.is_empty()
        });
        lead.watcher_count -= gone;
    }

    fn notify(&mut self, key: Option<&[u8]>, shared: &mut Shared) {
        let Some(lead) = &mut self.lead else {
            return;
        };
        let keys: Vec<Vec<u8>> = match key {
            Some(key) if lead.watchers.contains_key(key) => vec![key.to_vec()],
            Some(_) => return,
            None => lead.watchers.keys().cloned().collect(),
        };
        for key in keys {
            let version = self.machine.version(&key);
            let Some(waits) = lead.watchers.get_mut(&key) else {
                continue;
            };
            let mut due = Vec::new();
            waits.retain(|(tag, seen)| {
                let changed = *seen != version;
                if changed {
                    due.push(*tag);
                }
                !changed
            });
            if waits.is_empty() {
                lead.watchers.remove(&key);
            }
            lead.watcher_count -= due.len();
            for tag in due {
                let answer = self.machine.query(&Query::Get { key: key.clone() });
                shared.outcome(tag, Outcome::Answer { answer, stale: false });
            }
        }
    }

    // ---- membership and leadership ----

    pub(super) fn change(
        &mut self,
        based_on: u64,
        change: &Change,
        shared: &mut Shared,
    ) -> Result<(), ChangeError> {
        self.observe(shared);
        if !self.is_leader() {
            return Err(ChangeError::NotLeader);
        }
        if based_on != self.roster.config {
            return Err(ChangeError::Stale { current: self.roster.config });
        }
        // Before the first entry of its term is applied, a leader may not know of its predecessor's changes.
        if self.is_changing()
            || self.raw.raft.lead_transferee.is_some()
            || self.raw.store().applied().1 != self.raw.raft.term
        {
            return Err(ChangeError::Pending);
        }
        if !self.quorum_linked {
            return Err(ChangeError::NoQuorum);
        }
        let steps = match change {
            Change::AddLearners(nodes) => self.learner_steps(nodes)?,
            Change::Replace { promote, remove } => self.replace_steps(promote, remove, shared)?,
        };
        self.flush_batch(shared);
        let context = codec::encode(&steps);
        self.raw.propose_conf_change(context, convert::conf_change(&steps)).map_err(|_| ChangeError::Pending)
    }

    fn learner_steps(&self, nodes: &[NodeId]) -> Result<Vec<ConfigStep>, ChangeError> {
        let unique: BTreeSet<_> = nodes.iter().collect();
        if nodes.is_empty()
            || unique.len() != nodes.len()
            || self.roster.replicas.len() + nodes.len() > MAX_REPLICAS
        {
            return Err(ChangeError::Size);
        }
        let mut next = self.roster.last_replica;
        nodes
            .iter()
            .map(|node| {
                if self.roster.replica_on(*node).is_some() {
                    return Err(ChangeError::AlreadyThere(*node));
                }
                next += 1;
                Ok(ConfigStep::AddLearner(ReplicaId(next), *node))
            })
            .collect()
    }

    fn replace_steps(
        &self,
        promote: &[NodeId],
        remove: &[NodeId],
        shared: &Shared,
    ) -> Result<Vec<ConfigStep>, ChangeError> {
        let unique: BTreeSet<_> = promote.iter().chain(remove).collect();
        if unique.is_empty() || unique.len() != promote.len() + remove.len() {
            return Err(ChangeError::Size);
        }
        let mut steps = Vec::new();
        let mut voters: BTreeSet<u64> = self.voting.voters.iter().copied().collect();
        for node in promote {
            let id = self
                .roster
                .replica_on(*node)
                .filter(|id| self.voting.learners.contains(&id.0))
                .ok_or(ChangeError::NoSuchReplica(*node))?;
            if !self.is_caught_up(id, shared) {
                return Err(ChangeError::NotCaughtUp(*node));
            }
            voters.insert(id.0);
            steps.push(ConfigStep::Promote(id));
        }
        for node in remove {
            let id = self.roster.replica_on(*node).ok_or(ChangeError::NoSuchReplica(*node))?;
            if id == self.id {
                return Err(ChangeError::RemovesLeader);
            }
            voters.remove(&id.0);
            steps.push(ConfigStep::Remove(id));
        }
        // The new configuration must be able to decide, or leaving the joint one would hang.
        let after = Voting { voters: voters.into_iter().collect(), ..Voting::default() };
        if !self.reaches_quorum(&after, shared) {
            return Err(ChangeError::NoQuorum);
        }
        Ok(steps)
    }

    /// Hands leadership to the replica on `to`. Whether that was begun.
    pub(super) fn transfer(&mut self, to: NodeId, shared: &mut Shared) -> bool {
        self.observe(shared);
        let Some(id) = self.roster.replica_on(to) else {
            return false;
        };
        if !self.is_leader()
            || id == self.id
            || self.raw.raft.lead_transferee.is_some()
            || !self.voting.voters.contains(&id.0)
            || !self.is_caught_up(id, shared)
        {
            return false;
        }
        self.flush_batch(shared);
        let Some(lead) = &mut self.lead else {
            return false;
        };
        lead.transferred = true;
        lead.lease_until = Timestamp::ZERO;
        lead.transfer_until = Some(shared.now + TRANSFER_TIMEOUT);
        self.raw.transfer_leader(id.0);
        true
    }

    /// Hands leadership to whoever is best placed. Whether that was begun.
    pub(super) fn hand_over(&mut self, shared: &mut Shared) -> bool {
        let mut candidates: Vec<(u64, ReplicaId, NodeId)> = self
            .roster
            .replicas
            .iter()
            .filter(|(id, _)| self.voting.voters.contains(&id.0))
            .filter_map(|(id, node)| Some((self.raw.raft.prs().get(id.0)?.matched, *id, *node)))
            .collect();
        candidates.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        candidates.into_iter().any(|(_, _, node)| self.transfer(node, shared))
    }

    fn reaches_quorum(&self, voting: &Voting, shared: &Shared) -> bool {
        voting.has_quorum(|id| {
            self.node_of(ReplicaId(id)).is_some_and(|node| node == shared.me || shared.linked.contains(&node))
        })
    }

    fn relink(&mut self, shared: &Shared) {
        self.quorum_linked = self.initialised && self.reaches_quorum(&self.voting, shared);
    }

    pub(super) fn link_changed(&mut self, node: NodeId, up: bool, shared: &mut Shared) {
        self.relink(shared);
        let Some(id) = self.roster.replica_on(node) else {
            return;
        };
        if up {
            return;
        }
        if self.is_leader() {
            self.raw.report_unreachable(id.0);
            if !self.quorum_linked {
                self.refuse_reads(Refusal::NoQuorum, shared);
            }
        } else if self.raw.raft.leader_id == id.0 {
            self.plan_campaign(shared);
        }
        self.announce(shared);
    }

    /// Place among the voters that may take over, in the order of their ids.
    fn rank(&self, shared: &Shared) -> u32 {
        let before = self.voting.voters.iter().filter(|id| {
            **id < self.id.0
                && self.node_of(ReplicaId(**id)).is_some_and(|node| shared.linked.contains(&node))
        });
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }

    /// There is no leader to be heard: campaign once the promise has passed, unless a better placed survivor
    /// does so before.
    fn plan_campaign(&mut self, shared: &mut Shared) {
        if !self.voting.votes(self.id.0) || self.is_leader() {
            return;
        }
        let mut at = shared.now.max(self.promise_until) + shared.config.campaign_step * self.rank(shared);
        if self.campaigns > 0 {
            let retry = (CAMPAIGN_RETRY * 2u32.pow(self.campaigns.min(5) - 1)).min(CAMPAIGN_RETRY_MAX);
            let jitter = shared.rng.random_range(0..=retry.as_micros().try_into().unwrap_or(0u64) / 4);
            at = at + retry + Duration::from_micros(jitter);
        }
        self.campaign_at = Some(at);
        shared.timers.insert((self.promise_until.max(shared.now), self.partition));
        shared.timers.insert((at, self.partition));
    }

    pub(super) fn on_timer(&mut self, shared: &mut Shared) {
        let now = shared.now;
        let Some(at) = self.campaign_at else {
            return;
        };
        if self.is_leader() || now < self.promise_until {
            if !self.is_leader() {
                shared.timers.insert((self.promise_until, self.partition));
            }
            return;
        }
        if self.raw.raft.leader_id != 0 {
            if self.leader(shared).is_some() {
                self.campaign_at = None;
                return;
            }
            // The promise has passed and the leader's link is broken: free to vote for another. In the same
            // term this cannot elect a second one, since a majority voted for the first.
            self.raw.raft.leader_id = 0;
        }
        if now < at {
            return;
        }
        self.campaigns += 1;
        if self.quorum_linked {
            self.settle(shared);
            // An error means that there is nothing to campaign for.
            let _ = self.raw.campaign();
        }
        self.plan_campaign(shared);
    }

    // ---- time ----

    /// Time has passed; `beat`: leaders say that they lead.
    pub(super) fn tick(&mut self, beat: bool, shared: &mut Shared) {
        let now = shared.now;
        let leads = self.is_leader();
        if beat {
            self.raw.ping();
        }
        if leads || now >= self.promise_until {
            // The core drew from its own source after a change of role; ours is the one that counts.
            self.raw.raft.set_randomized_election_timeout(self.election_ticks);
            self.settle_if_electing(shared);
            self.raw.tick();
        }
        if let Some(until) = self.pending_until
            && now >= until
        {
            self.pending_until = None;
            let term = self.lead.as_ref().map_or(0, |lead| lead.term);
            for pending in std::mem::take(&mut self.pending) {
                if pending.term == term {
                    self.pending.push_back(pending);
                } else if let Some(tag) = pending.tag {
                    shared.outcome(tag, Outcome::Unknown);
                }
            }
        }
        if leads && self.is_leader() {
            self.lead_tick(shared);
        }
        self.tick_transfers(shared);
        self.inquire(shared);
    }

    fn lead_tick(&mut self, shared: &mut Shared) {
        let now = shared.now;
        self.observe(shared);
        self.retry_round(shared);
        let due = self.machine.next_due();
        let transferring = self.raw.raft.lead_transferee.is_some();
        let stamp = self.stamp(now);
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
        let joint = !self.voting.outgoing.is_empty();
        let pending_conf = self.raw.raft.has_pending_conf();
        let Some(lead) = &mut self.lead else {
            return;
        };
        if lead.transfer_until.is_some_and(|until| now >= until) {
            lead.transfer_until = None;
            self.raw.raft.abort_leader_transfer();
        }
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

    fn tick_transfers(&mut self, shared: &mut Shared) {
        if self.incoming.as_ref().is_some_and(|incoming| incoming.is_abandoned(shared.now)) {
            self.drop_incoming(shared);
        }
        if self.outgoing.is_empty() {
            return;
        }
        let mut failed = Vec::new();
        let mut pieces = Vec::new();
        for (id, outgoing) in &mut self.outgoing {
            match outgoing.retry(shared.now) {
                Ok(chunks) if shared.linked.contains(&outgoing.node) => {
                    pieces.extend(chunks.into_iter().map(|chunk| (*id, outgoing.node, chunk)));
                }
                _ => failed.push(*id),
            }
        }
        for (id, node, chunk) in pieces {
            shared.send(node, Self::message(self.partition, self.id, id, Body::SnapshotChunk(chunk)));
        }
        for id in failed {
            self.end_outgoing(id, SnapshotStatus::Failure, shared);
        }
    }

    /// A replica that nobody leads asks whether the group still counts it in.
    fn inquire(&mut self, shared: &mut Shared) {
        let now = shared.now;
        if self.is_leader() || now.since(self.heard_at.max(self.inquired_at)) < INQUIRE_AFTER {
            return;
        }
        if !self.initialised && now.since(self.heard_at) >= UNINITIALISED_AFTER {
            self.doomed = true;
            return;
        }
        self.ask_whether_in(shared);
    }

    /// All linked nodes are asked: those that this replica knows may all have left the group.
    pub(super) fn ask_whether_in(&mut self, shared: &mut Shared) {
        self.inquired_at = shared.now;
        for node in shared.linked.clone() {
            shared.send(node, Self::message(self.partition, self.id, ReplicaId(0), Body::Inquiry));
        }
    }

    pub(super) fn inquired_lately(&self, now: Timestamp) -> bool {
        now.since(self.inquired_at) < ROUND_RETRY
    }

    // ---- messages ----

    pub(super) fn message(
        partition: PartitionId,
        from: ReplicaId,
        to: ReplicaId,
        body: Body,
    ) -> GroupMessage {
        GroupMessage { partition, from, to, body }
    }

    /// Takes a message for this replica. What is odd is dropped and counted.
    pub(super) fn receive(&mut self, node: NodeId, message: GroupMessage, shared: &mut Shared) {
        let from = message.from;
        if from.0 == 0 || from == self.id || from.0 > MAX_NUMBER {
            shared.dropped += 1;
            return;
        }
        match self.roster.replicas.get(&from) {
            Some(known) if *known != node => {
                shared.dropped += 1;
                return;
            }
            Some(_) => {}
            None if self.has_removed(from) => {
                if message.body != Body::Retired {
                    shared.send(node, Self::message(self.partition, self.id, from, Body::Retired));
                }
                return;
            }
            None => {
                if self.hints.len() >= MAX_HINTS && !self.hints.contains_key(&from) {
                    self.hints.pop_first();
                }
                self.hints.insert(from, node);
            }
        }
        match message.body {
            Body::Raft(raft) => {
                if !self.step(from, raft, shared) {
                    shared.dropped += 1;
                }
            }
            Body::SnapshotChunk(chunk) => self.take_chunk(from, node, &chunk, shared),
            Body::SnapshotAck(ack) => self.take_ack(from, &ack, shared),
            // Only a replica that has a later configuration says so. A leader learns it from its own log.
            Body::Retired => self.doomed = !self.is_leader(),
            Body::Inquiry => {}
        }
    }

    /// Whether the Raft core may see the message: it panics on what no correct replica says.
    fn is_sane(&self, message: &RaftMessage) -> bool {
        let raft = &self.raw.raft;
        let last = self.last_index();
        let numbers = [
            message.term,
            message.log_term,
            message.index,
            message.commit,
            message.commit_term,
            message.reject_hint,
        ];
        if message.term == 0
            || numbers.iter().any(|number| *number > MAX_NUMBER)
            || message.context.len() > MAX_CONTEXT_BYTES
            || (message.kind != RaftKind::Append && !message.entries.is_empty())
        {
            return false;
        }
        // What a replica said long ago is ignored by the core, whatever it was.
        let old = message.term < raft.term;
        let rival = self.is_leader() && message.term == raft.term;
        match message.kind {
            RaftKind::Append => {
                let mut term = message.log_term.max(1);
                let ordered = message.entries.iter().all(|entry| {
                    let fits = entry.term >= term && entry.term <= message.term;
                    term = entry.term;
                    fits
                });
                ordered
                    && !rival
                    && message.log_term <= message.term
                    && (message.log_term == 0) == (message.index == 0)
                    // A replica without state starts from a snapshot, never from the log's beginning.
                    && (self.initialised || message.index > 0)
            }
            RaftKind::Heartbeat => !rival && (old || message.commit <= last),
            RaftKind::AppendResponse => old || message.reject || message.index <= last,
            RaftKind::Vote | RaftKind::PreVote => self.initialised && message.log_term <= message.term,
            RaftKind::TimeoutNow
            | RaftKind::HeartbeatResponse
            | RaftKind::VoteResponse
            | RaftKind::PreVoteResponse => true,
        }
    }

    fn step(&mut self, from: ReplicaId, message: RaftMessage, shared: &mut Shared) -> bool {
        if !self.is_sane(&message) {
            return false;
        }
        match message.kind {
            RaftKind::Vote | RaftKind::PreVote => {
                let transfer = message.kind == RaftKind::Vote && message.context == TRANSFER_CONTEXT;
                if shared.now < self.promise_until && !transfer {
                    // Promised to the leader. Not odd, and not counted.
                    return true;
                }
                if self.campaign_at.is_some() {
                    // Let the other one try; come back later.
                    self.campaigns = self.campaigns.max(1);
                    self.plan_campaign(shared);
                }
                self.settle(shared);
            }
            RaftKind::TimeoutNow => {
                // Only the leader of this very term hands over.
                if self.raw.raft.leader_id != from.0 || message.term != self.raw.raft.term {
                    return true;
                }
                self.settle(shared);
            }
            RaftKind::VoteResponse | RaftKind::PreVoteResponse => self.settle(shared),
            RaftKind::Append | RaftKind::Heartbeat => {
                if message.term >= self.raw.raft.term {
                    self.hear(shared);
                }
            }
            RaftKind::AppendResponse | RaftKind::HeartbeatResponse => {
                if let Some(lead) = &mut self.lead
                    && lead.term == message.term
                    && self.raw.raft.prs().get(from.0).is_some()
                {
                    lead.heard.insert(from, shared.now);
                }
            }
        }
        let core = convert::to_core(from, self.id, message);
        self.raw.step(core).is_ok()
    }

    /// The leader was heard: for the length of a lease, no other one is supported.
    fn hear(&mut self, shared: &Shared) {
        self.heard_at = shared.now;
        self.promise_until = self.promise_until.max(shared.now + shared.config.lease);
    }

    /// Lets the core write what it has before something that may end in an election: it insists on having
    /// nothing unwritten when it is elected.
    fn settle(&mut self, shared: &mut Shared) {
        let log = &self.raw.raft.raft_log;
        if !log.unstable_entries().is_empty() || log.unstable_snapshot().is_some() {
            self.drain(shared);
        }
    }

    fn settle_if_electing(&mut self, shared: &mut Shared) {
        if !self.is_leader() {
            self.settle(shared);
        }
    }

    // ---- snapshots ----

    fn send_snapshot(&mut self, to: ReplicaId, shared: &mut Shared) {
        let replacing = self.outgoing.contains_key(&to);
        let node = self.node_of(to).filter(|node| shared.linked.contains(node));
        let Some(node) = node else {
            return self.end_outgoing(to, SnapshotStatus::Failure, shared);
        };
        if !replacing {
            if shared.outgoing >= snapshot::MAX_OUTGOING {
                return self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
            }
            shared.outgoing += 1;
        }
        let data = self.machine.snapshot();
        let (index, term) = self.raw.store().applied();
        let header = SnapshotHeader {
            leader_term: self.raw.raft.term,
            index,
            term,
            voting: self.voting.clone(),
            roster: self.roster.clone(),
            total: data.len() as u64,
            digest: snapshot::digest(&data),
        };
        let transfer = shared.next_id();
        let mut outgoing = Outgoing::new(node, transfer, &header, data, shared.now);
        for chunk in outgoing.pieces(shared.now) {
            shared.send(node, Self::message(self.partition, self.id, to, Body::SnapshotChunk(chunk)));
        }
        self.outgoing.insert(to, outgoing);
    }

    fn end_outgoing(&mut self, to: ReplicaId, status: SnapshotStatus, shared: &mut Shared) {
        if self.outgoing.remove(&to).is_some() {
            shared.outgoing -= 1;
        }
        self.raw.report_snapshot(to.0, status);
    }

    fn take_ack(&mut self, from: ReplicaId, ack: &SnapshotAck, shared: &mut Shared) {
        let Some(outgoing) = self.outgoing.get_mut(&from) else {
            return;
        };
        if outgoing.transfer != ack.transfer {
            return;
        }
        match ack.state {
            SnapshotState::Received(bytes) => {
                outgoing.confirm(bytes, shared.now);
                let node = outgoing.node;
                for chunk in outgoing.pieces(shared.now) {
                    let body = Body::SnapshotChunk(chunk);
                    shared.send(node, Self::message(self.partition, self.id, from, body));
                }
            }
            SnapshotState::Installed => self.end_outgoing(from, SnapshotStatus::Finish, shared),
            SnapshotState::Refused => self.end_outgoing(from, SnapshotStatus::Failure, shared),
        }
    }

    fn take_chunk(&mut self, from: ReplicaId, node: NodeId, chunk: &SnapshotChunk, shared: &mut Shared) {
        let state = self.chunk_state(from, chunk, shared);
        let Some(state) = state else {
            shared.dropped += 1;
            return;
        };
        let ack = SnapshotAck { transfer: chunk.transfer, state };
        shared.send(node, Self::message(self.partition, self.id, from, Body::SnapshotAck(ack)));
    }

    /// Takes a piece; what to say to it, if anything.
    fn chunk_state(
        &mut self,
        from: ReplicaId,
        chunk: &SnapshotChunk,
        shared: &mut Shared,
    ) -> Option<SnapshotState> {
        if chunk.data.len() > snapshot::CHUNK_BYTES || chunk.header.len() > snapshot::MAX_HEADER_BYTES {
            return None;
        }
        if self.finished_transfer == Some(chunk.transfer) {
            return Some(SnapshotState::Installed);
        }
        let known = self
            .incoming
            .as_ref()
            .is_some_and(|incoming| incoming.from == from && incoming.transfer == chunk.transfer);
        if !known {
            if chunk.offset != 0 {
                return Some(SnapshotState::Refused);
            }
            let header: SnapshotHeader = codec::decode(&chunk.header).ok()?;
            if !self.is_sound(&header) {
                return None;
            }
            if header.leader_term < self.raw.raft.term {
                return Some(SnapshotState::Refused);
            }
            self.drop_incoming(shared);
            if shared.incoming >= snapshot::MAX_INCOMING {
                return Some(SnapshotState::Refused);
            }
            shared.incoming += 1;
            self.incoming = Some(Incoming::new(from, chunk.transfer, header, shared.now));
        }
        let incoming = self.incoming.as_mut()?;
        incoming.take(chunk, shared.now);
        let received = incoming.data.len() as u64;
        let leader_term = incoming.header.leader_term;
        let complete = incoming.is_complete();
        if leader_term >= self.raw.raft.term {
            // A leader that sends a snapshot leads as well as one that sends heartbeats.
            self.hear(shared);
        }
        if !complete {
            return Some(SnapshotState::Received(received));
        }
        Some(if self.install(shared) {
            self.finished_transfer = Some(chunk.transfer);
            SnapshotState::Installed
        } else {
            SnapshotState::Refused
        })
    }

    fn is_sound(&self, header: &SnapshotHeader) -> bool {
        header.total <= snapshot::MAX_SNAPSHOT_BYTES
            && (1..=MAX_NUMBER).contains(&header.index)
            && (1..=header.leader_term).contains(&header.term)
            && header.leader_term <= MAX_NUMBER
            && header.roster.last_replica <= MAX_NUMBER
            && header.roster.config <= header.index
            && header.roster.replicas.len() <= 2 * MAX_REPLICAS
            && header.voting.is_sound(&header.roster, self.id)
            && !(self.is_leader() && header.leader_term == self.raw.raft.term)
    }

    fn drop_incoming(&mut self, shared: &mut Shared) -> Option<Incoming> {
        let incoming = self.incoming.take();
        if incoming.is_some() {
            shared.incoming -= 1;
        }
        incoming
    }

    /// The snapshot is whole: checks it, then lets the core decide. Whether its state is now part of ours.
    fn install(&mut self, shared: &mut Shared) -> bool {
        let Some(incoming) = self.drop_incoming(shared) else {
            return false;
        };
        let header = incoming.header;
        if snapshot::digest(&incoming.data) != header.digest {
            return false;
        }
        let Ok(machine) = StateMachine::restore(&incoming.data) else {
            return false;
        };
        drop(incoming.data);
        self.drain(shared);
        let (index, term, leader_term) = (header.index, header.term, header.leader_term);
        let message = convert::snapshot_message(
            incoming.from,
            self.id,
            leader_term,
            convert::snapshot(index, term, &header.voting),
        );
        self.arrived = Some(Arrived { header, machine });
        let _ = self.raw.step(message);
        self.drain(shared);
        self.arrived = None;
        self.applied() >= index
    }

    // ---- the turn ----

    /// Handles everything that the core has ready.
    pub(super) fn drain(&mut self, shared: &mut Shared) {
        if self.doomed {
            // The core was left in the middle of its last turn.
            return;
        }
        loop {
            self.observe(shared);
            self.flush_batch(shared);
            while self.raw.has_ready() && !self.doomed {
                self.handle_ready(shared);
                self.observe(shared);
            }
            if self.doomed || !self.finish_round(shared) {
                break;
            }
        }
        if !self.doomed {
            self.compact(&shared.config);
            self.announce(shared);
        }
    }

    fn handle_ready(&mut self, shared: &mut Shared) {
        let mut ready = self.raw.ready();
        if !ready.snapshot().is_empty() {
            self.take_over_snapshot(shared);
        }
        // In memory: written as soon as it is told. A durable log writes here, and what follows waits for it.
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        let log = self.raw.mut_store();
        log.append(entries);
        if let Some(state) = hard_state {
            log.set_hard_state(state);
        }
        let mut messages = ready.take_messages();
        messages.extend(ready.take_persisted_messages());
        self.route(messages, shared);
        let read_states = ready.take_read_states();
        self.apply(ready.take_committed_entries(), shared);
        if self.doomed {
            return;
        }
        let last = self.last_index();
        let mut light = self.raw.advance(ready);
        self.route(light.take_messages(), shared);
        self.apply(light.take_committed_entries(), shared);
        if self.doomed {
            return;
        }
        self.raw.advance_apply();
        if self.is_leader() && self.last_index() > last {
            // The core has decided to leave a joint configuration; it would say so only with the next heartbeat.
            self.raw.raft.bcast_append();
        }
        for state in read_states {
            self.confirm_round(&state.request_ctx, state.index, shared);
        }
    }

    fn take_over_snapshot(&mut self, shared: &mut Shared) {
        let Some(arrived) = self.arrived.take() else {
            return;
        };
        let header = arrived.header;
        self.machine = arrived.machine;
        self.voting = header.voting;
        self.roster = header.roster;
        self.initialised = true;
        self.hints.retain(|id, _| !self.roster.replicas.contains_key(id));
        self.raw.mut_store().install(header.index, header.term, &self.voting);
        self.relink(shared);
        while self.pending.front().is_some_and(|pending| pending.index <= header.index) {
            if let Some(tag) = self.pending.pop_front().and_then(|pending| pending.tag) {
                shared.outcome(tag, Outcome::Unknown);
            }
        }
    }

    fn route(&mut self, messages: Vec<eraftpb::Message>, shared: &mut Shared) {
        for mut message in messages {
            let to = ReplicaId(message.to);
            if message.get_msg_type() == eraftpb::MessageType::MsgSnapshot {
                self.send_snapshot(to, shared);
                continue;
            }
            let (Some(node), Some(raft)) = (self.node_of(to), convert::from_core(&mut message)) else {
                continue;
            };
            shared.send(node, Self::message(self.partition, self.id, to, Body::Raft(raft)));
        }
    }

    fn flush_batch(&mut self, shared: &mut Shared) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let (tags, commands): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let term = self.raw.raft.term;
        let first = self.last_index() + 1;
        if self.is_leader() && self.raw.step(convert::proposals(self.id, commands)).is_ok() {
            // Of an earlier term, and no longer in this log; it may still be in another.
            while self.pending.back().is_some_and(|pending| pending.index >= first) {
                if let Some(tag) = self.pending.pop_back().and_then(|pending| pending.tag) {
                    shared.outcome(tag, Outcome::Unknown);
                }
            }
            let pending = tags.into_iter().zip(first..).map(|(tag, index)| Pending { index, term, tag });
            self.pending.extend(pending);
            return;
        }
        // Never in the log.
        if let Some(lead) = &mut self.lead {
            lead.advancing = false;
        }
        let leader = self.leader(shared);
        for tag in tags.into_iter().flatten() {
            shared.refuse(tag, Refusal::NotLeader { leader });
        }
    }

    fn apply(&mut self, entries: Vec<eraftpb::Entry>, shared: &mut Shared) {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            #[cfg(test)]
            {
                let mut what = entry.data.to_vec();
                if entry.get_entry_type() != EntryType::EntryNormal {
                    what = entry.context.to_vec();
                }
                what.extend_from_slice(&term.to_be_bytes());
                shared.applied.push((self.partition, index, what));
            }
            let reply = if entry.get_entry_type() == EntryType::EntryNormal {
                self.apply_command(index, &entry.data, shared)
            } else {
                self.apply_config(index, &entry.context, shared);
                None
            };
            self.raw.mut_store().set_applied(index, term);
            while let Some(pending) = self.pending.front()
                && pending.index <= index
            {
                let ours = pending.index == index && pending.term == term;
                let pending_index = pending.index;
                let Some(Pending { tag, .. }) = self.pending.pop_front() else {
                    break;
                };
                let Some(tag) = tag else {
                    if let Some(lead) = &mut self.lead {
                        lead.advancing = false;
                    }
                    continue;
                };
                match &reply {
                    Some(reply) if ours => shared.outcome(tag, Outcome::Reply(reply.clone())),
                    _ if pending_index < index => shared.outcome(tag, Outcome::Unknown),
                    // Another leader's entry has taken its place: it never happened.
                    _ => {
                        let leader = self.leader(shared);
                        shared.refuse(tag, Refusal::NotLeader { leader });
                    }
                }
            }
            if self.doomed {
                return;
            }
        }
    }

    fn apply_command(
        &mut self,
        index: u64,
        data: &[u8],
        shared: &mut Shared,
    ) -> Option<crate::state_machine::Reply> {
        if data.is_empty() {
            return None;
        }
        let Ok(command) = codec::decode::<Command>(data) else {
            // The same bytes fail on every replica alike.
            shared.dropped += 1;
            return None;
        };
        let watched = self.lead.as_ref().is_some_and(|lead| lead.watcher_count > 0);
        let key = watched.then(|| command.operation.key().map(<[u8]>::to_vec)).flatten();
        let expires = self.machine.next_due().is_some_and(|due| due <= command.time);
        let reply = self.machine.apply(index, command);
        if watched {
            match key {
                Some(key) if !expires => self.notify(Some(&key), shared),
                _ => self.notify(None, shared),
            }
        }
        Some(reply)
    }

    fn apply_config(&mut self, index: u64, context: &[u8], shared: &mut Shared) {
        let steps: Vec<ConfigStep> = if context.is_empty() {
            Vec::new()
        } else if let Ok(steps) = codec::decode(context) {
            steps
        } else {
            shared.dropped += 1;
            return;
        };
        let Ok(state) = self.raw.apply_conf_change(&convert::conf_change(&steps)) else {
            // Every replica refuses alike what does not fit the configuration in force, for example to leave a
            // joint configuration for the second time, after a change of leaders.
            return;
        };
        self.raw.mut_store().set_voting(state);
        self.voting = self.raw.store().voting();
        for step in steps {
            if let ConfigStep::AddLearner(id, node) = step {
                self.roster.last_replica = self.roster.last_replica.max(id.0);
                self.roster.replicas.insert(id, node);
                self.hints.remove(&id);
            }
        }
        self.roster.config = index;
        let voting = &self.voting;
        let removed: Vec<(ReplicaId, NodeId)> = self
            .roster
            .replicas
            .iter()
            .filter(|(id, _)| !voting.votes(id.0) && !voting.learners.contains(&id.0))
            .map(|(id, node)| (*id, *node))
            .collect();
        for (id, node) in removed {
            self.roster.replicas.remove(&id);
            if let Some(lead) = &mut self.lead {
                lead.heard.remove(&id);
            }
            if self.outgoing.remove(&id).is_some() {
                shared.outgoing -= 1;
            }
            if id == self.id {
                self.doomed = true;
            } else if self.is_leader() {
                shared.send(node, Self::message(self.partition, self.id, id, Body::Retired));
                if let Some(lead) = &mut self.lead {
                    lead.retired.insert(id, (node, shared.now + RETIRED_NOTICES));
                }
            }
        }
        if let Some(lead) = &mut self.lead {
            // Evidence of another configuration; rounds are cheap.
            lead.lease_until = Timestamp::ZERO;
        }
        self.relink(shared);
        if self.doomed {
            // What the core wanted to say as its last word.
            let messages = std::mem::take(&mut self.raw.raft.msgs);
            self.route(messages, shared);
        }
    }

    /// Notices a change of role, term or leader.
    fn observe(&mut self, shared: &mut Shared) {
        let (term, role) = (self.raw.raft.term, self.raw.raft.state);
        if (term, role) == self.seen && (role == StateRole::Leader) == self.lead.is_some() {
            return;
        }
        let stepped_down = term == self.seen.0 && self.seen.1 == StateRole::Leader;
        self.seen = (term, role);
        self.draw_election_timeout(shared);
        if self.lead.as_ref().is_some_and(|lead| role != StateRole::Leader || lead.term != term) {
            // In the same term only for want of a quorum.
            let refusal = if stepped_down {
                Refusal::NoQuorum
            } else {
                Refusal::NotLeader { leader: self.leader(shared) }
            };
            self.refuse_reads(refusal, shared);
            self.lead = None;
            self.pending_until = Some(shared.now + PENDING_GRACE);
            for id in self.outgoing.keys().copied().collect::<Vec<_>>() {
                self.end_outgoing(id, SnapshotStatus::Failure, shared);
            }
        }
        if role == StateRole::Leader && self.lead.is_none() {
            self.campaign_at = None;
            self.campaigns = 0;
            self.lead = Some(Lead {
                term,
                since: shared.now,
                base: self.machine.time(),
                stamp: self.machine.time(),
                lease_until: Timestamp::ZERO,
                transferred: false,
                transfer_until: None,
                round: None,
                waiting: VecDeque::new(),
                watchers: BTreeMap::new(),
                watcher_count: 0,
                advancing: false,
                joint_since: None,
                retired: BTreeMap::new(),
                heard: BTreeMap::new(),
            });
        }
    }

    fn draw_election_timeout(&mut self, shared: &mut Shared) {
        let config = &shared.config;
        let min = config.ticks(config.election_min).max(2);
        let max = config.ticks(config.election_max).max(min + 1);
        self.election_ticks = shared.rng.random_range(min..max);
    }

    /// Tells who leads, if that changed; and sees to it that somebody will.
    fn announce(&mut self, shared: &mut Shared) {
        let leader = self.leader(shared);
        if leader != self.announced {
            self.announced = leader;
            shared.outputs.push_back(Output::LeaderChanged { partition: self.partition, leader });
        }
        if leader.is_some() {
            self.campaign_at = None;
            self.campaigns = 0;
        } else if self.campaign_at.is_none() && self.initialised {
            self.plan_campaign(shared);
        }
    }

    fn refuse_reads(&mut self, refusal: Refusal, shared: &mut Shared) {
        let Some(lead) = &mut self.lead else {
            return;
        };
        let round = lead.round.take().map(|round| round.reads).unwrap_or_default();
        let waiting = std::mem::take(&mut lead.waiting);
        let watchers = std::mem::take(&mut lead.watchers);
        lead.watcher_count = 0;
        for read in round.into_iter().chain(waiting) {
            shared.refuse(read.tag, refusal);
        }
        for (tag, _) in watchers.into_values().flatten() {
            shared.refuse(tag, refusal);
        }
    }

    /// Cuts the log behind what is applied and what live followers have. Some of it is kept for those whose link
    /// was away for a moment; beyond the cap nobody is waited for.
    fn compact(&mut self, config: &DriverConfig) {
        let log = self.raw.store();
        let applied = log.applied().0;
        let over = |entries: usize, bytes: usize| log.len() > entries || log.bytes() > bytes;
        let (up_to, entries, bytes) = if !self.is_leader() {
            (applied, FOLLOWER_LOG_ENTRIES, FOLLOWER_LOG_BYTES)
        } else if over(config.log_entries_cap, config.log_bytes_cap) {
            (applied, config.log_entries, config.log_bytes)
        } else {
            let progress = self.raw.raft.prs().iter();
            let needed = progress
                .filter(|(id, progress)| **id != self.id.0 && progress.recent_active)
                .map(|(_, progress)| progress.matched.max(progress.pending_snapshot))
                .min();
            (needed.unwrap_or(applied).min(applied), config.log_entries, config.log_bytes)
        };
        if over(entries, bytes) {
            self.raw.mut_store().compact(up_to, entries / 2, bytes / 2);
        }
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

/// The share of the promised time that a leader uses: the rest is for clocks that run at different rates.
const LEASE_SHARE: f64 = 0.8;
