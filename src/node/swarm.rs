//! One node's part in a founded swarm: membership proposes, the ring places, the groups dispose.
//!
//! Members come and go in [`Membership`]; each change gives a new [`Ring`]; the leaders among this node's
//! replicas move their groups towards the ring's replica sets ([`reconcile`](super::reconcile)); requests are
//! answered here, or passed to the node that can answer them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::complaints::Complaints;
use super::core::{CoreConfig, Output};
use super::event::{MemberChange, NodeEvent};
use super::export::Exports;
use super::reconcile::{GroupView, Step, next_step};
use crate::id::{NodeId, PartitionId, SwarmId};
use crate::membership::{self, Change, Me, MemberState, Membership, MembershipConfig};
use crate::replication::{
    self, Driver, DriverConfig, GroupMessage, GroupStatus, Outcome, ReplicaProgress, Role, Stored,
};
use crate::ring::{PartitionCount, Ring};
use crate::state_machine::{Operation, StateMachine};
use crate::time::Timestamp;
use crate::wire::{
    Consistency, MAX_WAIT_MS, MemberView, Message, PartitionStatus, Refusal, Request, Response, SwarmView,
};

/// After the ring has changed, how long the groups wait for it to change again before they move.
const SETTLE: Duration = Duration::from_millis(200);
/// Time between two steps of the groups while any is not where the ring wants it.
const STEP_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two looks at the groups when all seem to be in place.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Least time between two attempts to hand over the leadership of one group.
const TRANSFER_INTERVAL: Duration = Duration::from_millis(500);
/// Most groups, of those that one node leads, that bring up learners at the same time.
const MAX_MOVES: usize = 16;
/// Most requests that wait for a key to change, per node.
const MAX_WAITS: usize = 16 * 1024;
/// Most members that are remembered across a restart.
const MAX_REMEMBERED: usize = 1024;

/// A member as it is remembered across a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) node: NodeId,
    pub(super) weight: u32,
    pub(super) addresses: Vec<String>,
}

/// A founded swarm as one of its members sees it.
#[derive(Debug)]
pub(super) struct Swarm {
    me: NodeId,
    id: SwarmId,
    name: String,
    addresses: Vec<String>,
    partitions: PartitionCount,
    replicas: usize,
    replace_after: Duration,
    membership: Membership,
    ring: Ring,
    /// The members and weights that the ring was made of.
    placed: Vec<(NodeId, u32)>,
    /// Whom this node knew before it restarted. Until they are heard of they keep their places, for as long as
    /// one that died.
    remembered: BTreeMap<NodeId, Remembered>,
    remembered_until: Timestamp,
    /// Whether anything is kept across a restart.
    durable: bool,
    driver: Driver,
    /// Linked members of this swarm.
    linked: BTreeSet<NodeId>,
    /// Who leads each partition and in which term, as far as was heard.
    leaders: Vec<Option<(u64, NodeId)>>,
    /// Partitions that this node has come to lead since it last told.
    new_leads: BTreeSet<PartitionId>,
    /// When the groups are looked at next.
    reconcile_at: Timestamp,
    /// When leadership of a group was last handed over by this node.
    transferred: BTreeMap<PartitionId, Timestamp>,
    waits: Waits,
    exports: Exports,
    /// Whether this node is about to stop: it hands over what it leads, and takes no part in placement.
    stopping: bool,
    /// Linked members that are about to stop.
    // Invariant: all of them are linked.
    others_stopping: BTreeSet<NodeId>,
    /// Whether the members that count may have changed since the ring was made.
    stale_ring: bool,
    /// Blocks of datasets that are kept here.
    blocks: usize,
    complaints: Complaints,
    /// `Some` while leaving: the number of replicas told last.
    leaving: Option<usize>,
    outputs: VecDeque<Output>,
}

/// Requests that wait for a key to change, by the time at which they are answered `Unchanged`.
#[derive(Debug, Default)]
struct Waits {
    // Invariant: both hold the same requests.
    by_time: BTreeSet<(Timestamp, u64)>,
    by_tag: BTreeMap<u64, Timestamp>,
}

impl Waits {
    fn insert(&mut self, due: Timestamp, tag: u64) {
        self.by_time.insert((due, tag));
        self.by_tag.insert(tag, due);
    }

    fn remove(&mut self, tag: u64) {
        if let Some(due) = self.by_tag.remove(&tag) {
            self.by_time.remove(&(due, tag));
        }
    }

    fn next_due(&self) -> Timestamp {
        self.by_time.first().map_or(Timestamp::NEVER, |(due, _)| *due)
    }

    fn pop_due(&mut self, now: Timestamp) -> Option<u64> {
        let (_, tag) = self.by_time.first().copied().filter(|(due, _)| *due <= now)?;
        self.remove(tag);
        Some(tag)
    }
}

/// Who can serve a partition.
enum Route {
    Here,
    There(NodeId),
    Nowhere(Refusal),
}

impl Swarm {
    pub(super) fn new(
        me: NodeId,
        id: SwarmId,
        partitions: PartitionCount,
        config: &CoreConfig,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let identity = Me { node: me, addresses: config.addresses.clone(), weight: config.weight };
        let membership_rng = StdRng::seed_from_u64(rng.next_u64());
        let membership =
            Membership::new(identity, config.incarnation, MembershipConfig::default(), membership_rng, now);
        let exports = Exports::new(rng.next_u64());
        let driver_config = DriverConfig { durable: config.durable, ..DriverConfig::default() };
        let mut driver = Driver::new(me, driver_config, rng, now);
        driver.join(partitions.get());
        Self {
            me,
            id,
            name: config.name.clone(),
            addresses: config.addresses.clone(),
            partitions,
            replicas: config.replicas,
            replace_after: config.replace_after,
            membership,
            ring: Ring::new([(me, config.weight)], partitions, config.replicas),
            placed: vec![(me, config.weight)],
            remembered: BTreeMap::new(),
            remembered_until: Timestamp::ZERO,
            durable: config.durable,
            driver,
            linked: BTreeSet::new(),
            leaders: vec![None; partitions.get() as usize],
            new_leads: BTreeSet::new(),
            reconcile_at: now,
            transferred: BTreeMap::new(),
            waits: Waits::default(),
            exports,
            stopping: false,
            others_stopping: BTreeSet::new(),
            stale_ring: false,
            blocks: 0,
            complaints: Complaints::default(),
            leaving: None,
            outputs: VecDeque::new(),
        }
    }

    /// This node is the swarm's first.
    pub(super) fn found(&mut self, now: Timestamp) {
        self.driver.found(self.partitions.get(), now);
    }

    /// This node was part of the swarm before it restarted.
    pub(super) fn resume(&mut self, members: Vec<Remembered>, stored: Stored, now: Timestamp) {
        for member in &members {
            let (node, addresses) = (member.node, member.addresses.clone());
            self.outputs.push_back(Output::Keep { node, addresses });
        }
        self.remembered = members.into_iter().map(|member| (member.node, member)).collect();
        self.remembered_until = now + self.replace_after;
        self.driver.restore(self.partitions.get(), stored, now);
        let damaged: Vec<_> = self.driver.damaged().collect();
        if !damaged.is_empty() {
            self.outputs.push_back(Output::Event(NodeEvent::Damaged { partitions: damaged }));
        }
        self.place(now);
        self.reconcile_at = now + SETTLE;
    }

    // -- inputs --

    /// All batches up to this one are on the disk.
    pub(super) fn persisted(&mut self, batch: u64, now: Timestamp) {
        self.driver.persisted(batch, now);
    }

    /// The disk is full, or has room again.
    pub(super) fn set_full(&mut self, full: bool) {
        self.driver.set_full(full);
    }

    pub(super) fn note_blocks(&mut self, count: usize) {
        self.blocks = count;
    }

    /// The store wants the state of a partition.
    pub(super) fn keep_state(&mut self, partition: PartitionId) {
        self.driver.keep_state(partition);
    }

    pub(super) fn link_up(&mut self, node: NodeId, now: Timestamp) {
        self.linked.insert(node);
        self.membership.link_up(node, now);
        self.driver.link_up(node, now);
        let leads: Vec<_> = self.my_leads().collect();
        if !leads.is_empty() {
            let message = Message::Leading { swarm: self.id, leads };
            self.outputs.push_back(Output::Send { to: node, message });
        }
        if self.stopping {
            self.tell_stopping(node);
        }
        self.reconcile_soon(now + STEP_INTERVAL);
    }

    pub(super) fn link_down(&mut self, node: NodeId, now: Timestamp) {
        self.linked.remove(&node);
        self.others_stopping.remove(&node);
        self.membership.link_down(node, now);
        self.driver.link_down(node, now);
    }

    pub(super) fn gossip(&mut self, from: NodeId, bytes: &[u8], now: Timestamp) {
        if let Err(error) = self.membership.handle_message(from, bytes, now)
            && let Some(untold) = self.complaints.next(from, "gossip", now)
        {
            tracing::warn!(peer = %from, %error, untold, "gossip refused");
        }
    }

    pub(super) fn groups(&mut self, from: NodeId, messages: Vec<GroupMessage>, now: Timestamp) {
        let odd = self.driver.dropped();
        self.driver.receive(from, messages, now);
        if self.driver.dropped() > odd
            && let Some(untold) = self.complaints.next(from, "groups", now)
        {
            tracing::warn!(peer = %from, untold, "messages of groups refused: no correct replica sends them");
        }
    }

    pub(super) fn leading(&mut self, from: NodeId, leads: &[(PartitionId, u64)]) {
        for (partition, term) in leads {
            self.heard_leader(*partition, *term, from);
        }
    }

    pub(super) fn request(&mut self, tag: u64, request: Request, now: Timestamp) {
        if let Err(response) = self.dispatch(tag, request, now) {
            self.respond(tag, *response);
        }
    }

    pub(super) fn leave(&mut self, now: Timestamp) {
        if self.leaving.is_none() {
            self.leaving = Some(usize::MAX);
            self.membership.update_me(self.addresses.clone(), true, now);
            self.place(now);
        }
    }

    /// This node is about to stop: others are to lead what it leads.
    pub(super) fn hand_over(&mut self, now: Timestamp) {
        if !self.stopping {
            self.stopping = true;
            for node in self.linked.clone() {
                self.tell_stopping(node);
            }
        }
        self.driver.hand_over(&self.others_stopping, now);
        self.reconcile_soon(now + STEP_INTERVAL);
    }

    /// Whether this node leads nothing that another could lead.
    pub(super) fn has_handed_over(&self) -> bool {
        let could_lead = |replica: &ReplicaProgress| {
            replica.voter && replica.live && !self.others_stopping.contains(&replica.node)
        };
        !self
            .partition_ids()
            .filter_map(|partition| self.driver.group(partition))
            .any(|group| group.role == Role::Leader && group.progress.iter().any(could_lead))
    }

    fn tell_stopping(&mut self, to: NodeId) {
        let message = Message::Stopping { swarm: self.id };
        self.outputs.push_back(Output::Send { to, message });
    }

    /// A linked member is about to stop.
    pub(super) fn other_stopping(&mut self, node: NodeId) {
        if self.linked.contains(&node) {
            self.others_stopping.insert(node);
        }
    }

    pub(super) fn set_addresses(&mut self, addresses: Vec<String>, now: Timestamp) {
        self.addresses = addresses;
        self.membership.update_me(self.addresses.clone(), self.leaving.is_some(), now);
    }

    pub(super) fn handle_deadline(&mut self, now: Timestamp) {
        self.membership.handle_deadline(now);
        self.driver.handle_deadline(now);
        while let Some(tag) = self.waits.pop_due(now) {
            self.driver.cancel(tag);
            self.respond(tag, Response::Unchanged);
        }
        self.exports.expire(now);
        if self.reconcile_at <= now {
            self.place(now);
            self.reconcile(now);
        }
    }

    /// Drops everything, because the swarm has dissolved.
    pub(super) fn dissolve(&mut self, outputs: &mut VecDeque<Output>, now: Timestamp) {
        self.driver.dissolve();
        self.drain_driver(now);
        outputs.append(&mut self.outputs);
    }

    // -- outputs --

    pub(super) fn next_deadline(&self) -> Timestamp {
        let driver = self.driver.next_deadline();
        let due = self.waits.next_due().min(self.exports.next_due());
        self.membership.next_deadline().min(driver).min(self.reconcile_at).min(due)
    }

    /// Collects what there is to do; returns whether this node has left.
    pub(super) fn poll(&mut self, outputs: &mut VecDeque<Output>, now: Timestamp) -> bool {
        self.drain_membership(now);
        self.drain_driver(now);
        self.tell_leads();
        let left = self.leaving.is_some() && self.try_to_go(now);
        outputs.append(&mut self.outputs);
        left
    }

    pub(super) fn id(&self) -> SwarmId {
        self.id
    }

    /// For a simulator that judges what happens.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    /// The members and weights that this node's ring was made of.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn placed(&self) -> &[(NodeId, u32)] {
        &self.placed
    }

    pub(super) fn partitions(&self) -> u32 {
        self.partitions.get()
    }

    /// The swarm that this one was to dissolve into, if a partition on this node is sealed.
    pub(super) fn sealed(&self) -> Option<SwarmId> {
        self.driver.replicas().find_map(|partition| self.driver.state(partition)?.sealed())
    }

    /// Whether all others have left without handing anything to this node: there is no swarm here any more.
    pub(super) fn is_deserted(&self) -> bool {
        let unheard = |node: &NodeId| self.membership.member(*node).is_none();
        self.driver.replicas().next().is_none()
            && !self.remembered.keys().any(unheard)
            && self
                .membership
                .members()
                .all(|member| member.node == self.me || member.state == MemberState::Left)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    pub(super) fn status(&self) -> Vec<PartitionStatus> {
        self.partition_ids()
            .filter_map(|partition| {
                let group = self.driver.group(partition)?;
                Some(PartitionStatus {
                    partition,
                    leader: group.leader,
                    has_quorum: group.has_quorum,
                    voters: group.voters.clone(),
                    learners: group.learners.clone(),
                    keys: group.keys as u64,
                    bytes: group.bytes as u64,
                    applied: group.applied,
                    log_entries: group.log_entries as u64,
                    term: group.term,
                    last: group.last,
                    damaged: group.damaged,
                })
            })
            .collect()
    }

    // -- requests --

    /// Hands the request to the driver or passes it on; `Err`: the response, known at once.
    fn dispatch(&mut self, tag: u64, request: Request, now: Timestamp) -> Result<(), Box<Response>> {
        let (swarm, partition, forwarded) = match &request {
            Request::Write { swarm, partition, forwarded, .. }
            | Request::Read { swarm, partition, forwarded, .. }
            | Request::Wait { swarm, partition, forwarded, .. }
            | Request::Export { swarm, partition, forwarded } => (*swarm, *partition, *forwarded),
            Request::Piece { node, export, offset, forwarded } => {
                let (node, export, offset, forwarded) = (*node, *export, *offset, *forwarded);
                if node != self.me && !forwarded && self.linked.contains(&node) {
                    let request = request.forwarded();
                    self.outputs.push_back(Output::Forward { tag, to: node, request });
                    return Ok(());
                }
                let piece = (node == self.me).then(|| self.exports.piece(export, offset, now)).flatten();
                let response = piece.map_or(Response::Refused(Refusal::NoExport), Response::Piece);
                return Err(Box::new(response));
            }
            Request::View => return Err(Box::new(Response::View(self.view(now)))),
            Request::Recover { swarm, partition, empty } => {
                return Err(Box::new(self.recover(*swarm, *partition, *empty, now)));
            }
            // Several renewals are taken apart before they come here.
            Request::Renew { .. }
            | Request::Status
            | Request::Ticket
            | Request::Leave
            | Request::Stop
            // Answered beside the core.
            | Request::Blocks { .. }
            | Request::Work { .. } => {
                return Err(Box::new(Response::Refused(Refusal::BadRequest(
                    "not about one partition".to_owned(),
                ))));
            }
        };
        if swarm != self.id {
            return Err(Box::new(Response::Refused(Refusal::OtherSwarm)));
        }
        self.check(partition, &request)
            .map_err(|why| Box::new(Response::Refused(Refusal::BadRequest(why))))?;
        let stale = matches!(&request, Request::Read { consistency: Consistency::Stale, .. });
        match self.route(partition, stale, forwarded) {
            Route::Here => self.serve(tag, request, now),
            Route::There(to) => {
                self.outputs.push_back(Output::Forward { tag, to, request: request.forwarded() });
                Ok(())
            }
            Route::Nowhere(refusal) => Err(Box::new(Response::Refused(refusal))),
        }
    }

    /// Goes on alone with this node's replica, or with nothing, because the majority is gone for good.
    fn recover(&mut self, swarm: SwarmId, partition: PartitionId, empty: bool, now: Timestamp) -> Response {
        if swarm != self.id {
            return Response::Refused(Refusal::OtherSwarm);
        }
        if partition.0 >= self.partitions() {
            return Response::Refused(Refusal::BadRequest(format!("there is no partition {partition}")));
        }
        let result = if empty {
            let term = self.leaders[partition.0 as usize].map_or(0, |(term, _)| term);
            self.driver.recover_empty(partition, term, now)
        } else {
            self.driver.recover(partition, now)
        };
        match result {
            Ok(()) => {
                tracing::warn!(%partition, empty, "a new generation of the partition begins here");
                self.reconcile_soon(now + STEP_INTERVAL);
                Response::Recovered
            }
            Err(error) => Response::Refused(Refusal::BadRequest(error.to_string())),
        }
    }

    fn serve(&mut self, tag: u64, request: Request, now: Timestamp) -> Result<(), Box<Response>> {
        match request {
            Request::Write { partition, origin, operation, .. } => {
                // What a node asks for on behalf of its swarm may be repeated at will: no session is needed.
                let origin = (!operation.is_administrative()).then_some(origin);
                self.driver.propose(partition, tag, origin, operation, now);
            }
            Request::Read { partition, consistency, query, .. } => {
                if consistency == Consistency::Stale {
                    self.driver.read_stale(partition, tag, &query);
                } else {
                    self.driver.read(partition, tag, query, now);
                }
            }
            Request::Wait { partition, watch, timeout_ms, .. } => {
                if self.waits.by_tag.len() >= MAX_WAITS {
                    return Err(Box::new(Response::Refused(Refusal::Overloaded)));
                }
                let timeout = Duration::from_millis(u64::from(timeout_ms.min(MAX_WAIT_MS)));
                self.waits.insert(now + timeout, tag);
                self.driver.wait(partition, tag, watch, now);
            }
            Request::Export { partition, .. } => {
                let bytes = self.driver.state(partition).map_or(0, StateMachine::bytes);
                if !self.exports.want(tag, bytes, now) {
                    return Err(Box::new(Response::Refused(Refusal::Overloaded)));
                }
                self.driver.export(partition, tag, now);
            }
            Request::Recover { .. }
            | Request::Renew { .. }
            | Request::Piece { .. }
            | Request::View
            | Request::Status
            | Request::Ticket
            | Request::Leave
            | Request::Stop
            | Request::Blocks { .. }
            | Request::Work { .. } => {}
        }
        Ok(())
    }

    /// Whether the request keeps the limits and names the partition that its key belongs to.
    fn check(&self, partition: PartitionId, request: &Request) -> Result<(), String> {
        if partition.0 >= self.partitions() {
            return Err(format!("there is no partition {partition}, only {}", self.partitions()));
        }
        let key = match request {
            Request::Write { operation, .. } => {
                operation.check().map_err(|error| error.to_string())?;
                if matches!(operation, Operation::Seal { into, .. } if *into == self.id) {
                    return Err("a swarm does not dissolve into itself".to_owned());
                }
                if operation.key().is_none() && !operation.is_administrative() {
                    return Err("only a leader proposes this".to_owned());
                }
                if let Operation::Import { items, .. } = operation
                    && items.iter().any(|item| self.ring.partition_of(item.key()) != partition)
                {
                    return Err(format!("a key does not belong to partition {partition}"));
                }
                operation.key()
            }
            Request::Read { query, .. } => {
                query.check().map_err(|error| error.to_string())?;
                query.key()
            }
            Request::Wait { watch, .. } => {
                watch.check().map_err(|error| error.to_string())?;
                Some(watch.key())
            }
            Request::Renew { .. }
            | Request::Export { .. }
            | Request::Piece { .. }
            | Request::View
            | Request::Status
            | Request::Ticket
            | Request::Leave
            | Request::Stop
            | Request::Recover { .. }
            | Request::Blocks { .. }
            | Request::Work { .. } => None,
        };
        match key {
            Some(key) if self.ring.partition_of(key) != partition => {
                Err(format!("the key does not belong to partition {partition}"))
            }
            _ => Ok(()),
        }
    }

    fn route(&self, partition: PartitionId, stale: bool, forwarded: bool) -> Route {
        let holds = self.driver.state(partition).is_some();
        let leader = match self.driver.leader(partition) {
            None if !holds => self.leaders[partition.0 as usize].map(|(_, leader)| leader),
            known => known,
        };
        if holds && (stale || leader == Some(self.me)) {
            return Route::Here;
        }
        let has_quorum = || self.driver.group(partition).is_some_and(|group| group.has_quorum);
        if forwarded {
            return Route::Nowhere(if holds && leader.is_none() && !has_quorum() {
                Refusal::NoQuorum
            } else {
                Refusal::NotLeader { leader }
            });
        }
        if let Some(leader) = leader.filter(|leader| self.linked.contains(leader)) {
            return Route::There(leader);
        }
        if holds {
            return Route::Nowhere(if has_quorum() {
                Refusal::NotLeader { leader: None }
            } else {
                Refusal::NoQuorum
            });
        }
        let replica = self.ring.replicas(partition).iter().copied().find(|node| self.linked.contains(node));
        replica.map_or(Route::Nowhere(Refusal::NoQuorum), Route::There)
    }

    fn respond(&mut self, tag: u64, response: Response) {
        self.outputs.push_back(Output::Respond { tag, response });
    }

    fn view(&self, now: Timestamp) -> SwarmView {
        let on_ring = |node: NodeId| self.ring.members().contains(&node);
        let heard = self.membership.members().map(|member| MemberView {
            node: member.node,
            addresses: member.addresses.clone(),
            weight: member.weight,
            state: member.state,
            since_ms: Some(u64::try_from(now.since(member.since).as_millis()).unwrap_or(u64::MAX)),
            draining: member.draining,
            on_ring: on_ring(member.node),
        });
        let unheard = self.unheard().map(|member| MemberView {
            node: member.node,
            addresses: member.addresses.clone(),
            weight: member.weight,
            state: MemberState::Dead,
            since_ms: None,
            draining: false,
            on_ring: on_ring(member.node),
        });
        let members = heard.chain(unheard).collect();
        let leaders = self
            .partition_ids()
            .map(|partition| match self.driver.group(partition) {
                Some(group) if group.leader.is_some() => group.leader,
                _ => self.leaders[partition.0 as usize].map(|(_, leader)| leader),
            })
            .collect();
        SwarmView {
            swarm: self.id,
            name: self.name.clone(),
            partitions: self.partitions(),
            node: self.me,
            members,
            leaders,
        }
    }

    // -- membership and placement --

    fn drain_membership(&mut self, now: Timestamp) {
        while let Some(output) = self.membership.poll_output() {
            match output {
                membership::Output::Send { to, bytes } => {
                    let message = Message::Gossip { swarm: self.id, bytes };
                    self.outputs.push_back(Output::Send { to, message });
                }
                membership::Output::Changed(change) => self.member_changed(&change),
                membership::Output::Forgotten { node } => self.outputs.push_back(Output::Forget { node }),
            }
        }
        if std::mem::take(&mut self.stale_ring) {
            self.place(now);
            if self.durable {
                let members = self.to_remember();
                self.outputs.push_back(Output::Remember { members });
            }
        }
    }

    /// Whom to look for after a restart: all that have not left, heard of or not.
    fn to_remember(&self) -> Vec<Remembered> {
        let others = self.membership.members().filter(|member| member.node != self.me);
        let heard = others.filter(|member| member.state != MemberState::Left).map(|member| Remembered {
            node: member.node,
            weight: member.weight,
            addresses: member.addresses.clone(),
        });
        heard.chain(self.unheard().cloned()).take(MAX_REMEMBERED).collect()
    }

    /// Whom this node knew before it restarted and has not heard of since.
    fn unheard(&self) -> impl Iterator<Item = &Remembered> {
        self.remembered.values().filter(|member| self.membership.member(member.node).is_none())
    }

    fn member_changed(&mut self, change: &Change) {
        let member = &change.member;
        if member.node != self.me {
            self.outputs.push_back(if member.state == MemberState::Left {
                Output::Forget { node: member.node }
            } else {
                Output::Keep { node: member.node, addresses: member.addresses.clone() }
            });
            if let Some(event) = self.member_event(change) {
                self.outputs.push_back(Output::Event(event));
            }
        }
        self.stale_ring = true;
    }

    fn member_event(&self, change: &Change) -> Option<NodeEvent> {
        let Change { member, before } = change;
        let change = match (before, member.state) {
            (Some(MemberState::Alive), MemberState::Alive) if member.draining => MemberChange::Draining,
            (Some(before), after) if *before == after => return None,
            (None, MemberState::Alive | MemberState::Suspect) => MemberChange::Joined,
            (None, MemberState::Dead | MemberState::Left) => return None,
            (Some(_), MemberState::Alive) => MemberChange::Recovered,
            (Some(_), MemberState::Suspect) => MemberChange::Suspected,
            (Some(_), MemberState::Dead) => MemberChange::Died,
            (Some(_), MemberState::Left) => MemberChange::Left,
        };
        Some(NodeEvent::Member {
            node: member.node,
            change,
            address: member.addresses.first().cloned(),
            alive: self.membership.members().filter(|member| member.state.is_present()).count(),
        })
    }

    /// Computes the ring from the members that count now.
    fn place(&mut self, now: Timestamp) {
        let mut grace_ends = Timestamp::NEVER;
        let mut members: Vec<(NodeId, u32)> = self
            .membership
            .members()
            .filter(|member| {
                let counts = match member.state {
                    MemberState::Alive | MemberState::Suspect => true,
                    MemberState::Dead if now < member.since + self.replace_after => {
                        grace_ends = grace_ends.min(member.since + self.replace_after);
                        true
                    }
                    MemberState::Dead | MemberState::Left => false,
                };
                counts && !member.draining
            })
            .map(|member| (member.node, member.weight))
            .collect();
        for member in self.unheard().filter(|_| now < self.remembered_until) {
            grace_ends = grace_ends.min(self.remembered_until);
            members.push((member.node, member.weight));
        }
        members.sort_unstable();
        self.reconcile_at = self.reconcile_at.min(grace_ends);
        if self.placed != members {
            self.ring = Ring::new(members.iter().copied(), self.partitions, self.replicas);
            self.placed = members;
            self.reconcile_at = now + SETTLE;
        }
    }

    // -- groups --

    fn drain_driver(&mut self, now: Timestamp) {
        while let Some(output) = self.driver.poll_output() {
            match output {
                // Of a durable driver only, and this one is in memory.
                replication::Output::Frame { to, messages } => {
                    let message = Message::Groups { swarm: self.id, messages };
                    self.outputs.push_back(Output::Send { to, message });
                }
                replication::Output::Outcome { tag, result } => self.outcome(tag, result, now),
                replication::Output::Persist { batch, writes } => {
                    self.outputs.push_back(Output::Persist { batch, writes });
                }
                replication::Output::LeaderChanged { partition, leader } => {
                    self.leader_changed(partition, leader, now);
                }
                replication::Output::ReplicaCreated { .. } | replication::Output::ReplicaRemoved { .. } => {
                    self.reconcile_soon(now + STEP_INTERVAL);
                }
            }
        }
    }

    fn outcome(&mut self, tag: u64, outcome: Outcome, now: Timestamp) {
        self.waits.remove(tag);
        self.exports.forget(tag);
        let response = match outcome {
            Outcome::Reply(reply) => Response::Reply(reply),
            Outcome::Answer { answer, stale } => Response::Answer { answer, stale },
            Outcome::Refused(refusal) => Response::Refused(match refusal {
                replication::Refusal::NotLeader { leader } => Refusal::NotLeader { leader },
                replication::Refusal::NoQuorum => Refusal::NoQuorum,
                replication::Refusal::Overloaded => Refusal::Overloaded,
                replication::Refusal::NoReplica => Refusal::NotLeader { leader: None },
                replication::Refusal::TooLarge => Refusal::BadRequest(refusal.to_string()),
                replication::Refusal::StorageFull => Refusal::StorageFull,
            }),
            Outcome::Export(bytes) => {
                let length = bytes.len() as u64;
                let export = self.exports.keep(tag, bytes, now);
                Response::Exported { node: self.me, export, bytes: length }
            }
            Outcome::Unknown => Response::Unknown,
        };
        self.respond(tag, response);
    }

    fn leader_changed(&mut self, partition: PartitionId, leader: Option<NodeId>, now: Timestamp) {
        if let (Some(leader), Some(group)) = (leader, self.driver.group(partition)) {
            let term = group.term;
            self.heard_leader(partition, term, leader);
            if leader == self.me {
                self.new_leads.insert(partition);
                self.reconcile_soon(now + STEP_INTERVAL);
            }
        }
    }

    fn heard_leader(&mut self, partition: PartitionId, term: u64, leader: NodeId) {
        if let Some(known) = self.leaders.get_mut(partition.0 as usize)
            && known.is_none_or(|(known_term, _)| known_term <= term)
        {
            *known = Some((term, leader));
        }
    }

    /// Tells all members which partitions this node has come to lead.
    fn tell_leads(&mut self) {
        if self.new_leads.is_empty() {
            return;
        }
        let told = std::mem::take(&mut self.new_leads);
        let leads: Vec<_> = self.my_leads().filter(|(partition, _)| told.contains(partition)).collect();
        for node in &self.linked {
            let message = Message::Leading { swarm: self.id, leads: leads.clone() };
            self.outputs.push_back(Output::Send { to: *node, message });
        }
    }

    fn my_leads(&self) -> impl Iterator<Item = (PartitionId, u64)> {
        self.partition_ids().filter_map(|partition| {
            let group = self.driver.group(partition)?;
            (group.role == Role::Leader).then_some((partition, group.term))
        })
    }

    fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.partitions()).map(PartitionId)
    }

    fn reconcile_soon(&mut self, at: Timestamp) {
        self.reconcile_at = self.reconcile_at.min(at);
    }

    /// One step of each group that this node leads and that is not where the ring wants it.
    fn reconcile(&mut self, now: Timestamp) {
        if self.stopping {
            self.hand_over(now);
            self.reconcile_at = now + STEP_INTERVAL;
            return;
        }
        let mut moving = 0;
        let mut unsettled = false;
        for partition in self.partition_ids() {
            let Some(group) = self.driver.group(partition).filter(|group| group.role == Role::Leader) else {
                continue;
            };
            if group.changing {
                unsettled = true;
                continue;
            }
            let view = group_view(&group);
            moving += usize::from(!view.learners.is_empty());
            // Who has lost its replica gets another one, when that is gone.
            let is_lost =
                |node: &NodeId| group.progress.iter().any(|replica| replica.lost && replica.node == *node);
            let targets = self.ring.replicas(partition).iter().copied().filter(|node| !is_lost(node));
            let targets: Vec<_> = targets.collect();
            // Who has no room can take nothing in, and must not lead.
            let is_full =
                |node: NodeId| group.progress.iter().any(|replica| replica.full && replica.node == node);
            let stays =
                |node| self.linked.contains(&node) && !self.others_stopping.contains(&node) && !is_full(node);
            let step = next_step(self.me, &view, &targets, stays);
            unsettled |= step.is_some() || !view.learners.is_empty();
            let base = group.config;
            match step {
                Some(Step::AddLearners(nodes)) if moving < MAX_MOVES => {
                    moving += 1;
                    self.change(partition, &replication::Change::AddLearners(nodes), base, now);
                }
                Some(Step::Replace { promote, remove }) => {
                    self.change(partition, &replication::Change::Replace { promote, remove }, base, now);
                }
                Some(Step::Transfer(to)) => self.transfer(partition, to, now),
                Some(Step::AddLearners(_)) | None => {}
            }
        }
        self.reconcile_at = now + if unsettled { STEP_INTERVAL } else { LOOK_INTERVAL };
        self.place(now);
    }

    fn change(&mut self, partition: PartitionId, change: &replication::Change, base: u64, now: Timestamp) {
        if let Err(error) = self.driver.change(partition, base, change, now) {
            tracing::debug!(%partition, %error, "change of replicas refused for now");
        }
    }

    fn transfer(&mut self, partition: PartitionId, to: NodeId, now: Timestamp) {
        let last = self.transferred.get(&partition).copied();
        if last.is_none_or(|last| now >= last + TRANSFER_INTERVAL) && self.driver.transfer(partition, to, now)
        {
            self.transferred.insert(partition, now);
        }
    }

    // -- leaving --

    /// Reports progress; returns whether nothing keeps this node here any more.
    fn try_to_go(&mut self, now: Timestamp) -> bool {
        let others = self.ring.members().iter().any(|node| *node != self.me);
        let held = self.driver.replicas().count() + self.blocks;
        if held > 0 && others {
            if self.leaving != Some(held) {
                self.leaving = Some(held);
                self.outputs.push_back(Output::Event(NodeEvent::Draining { remaining: held }));
            }
            return false;
        }
        // Nothing left to hand over, or nobody to take it.
        self.membership.leave(now);
        self.drain_membership(now);
        true
    }
}

fn group_view(group: &GroupStatus) -> GroupView {
    let caught_up =
        |node: NodeId| group.progress.iter().any(|replica| replica.node == node && replica.caught_up);
    GroupView {
        voters: group.voters.clone(),
        learners: group.learners.iter().map(|node| (*node, caught_up(*node))).collect(),
    }
}
