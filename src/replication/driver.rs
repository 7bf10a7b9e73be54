//! The driver: all groups of a node, fed by inputs, drained by turns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;

use super::durable::{Stored, Write};
use super::group::{Damaged, Full, Group};
use super::message::{Body, FRAME_BYTES, GroupMessage, RaftKind};
use super::shared::Shared;
use super::{Change, ChangeError, DriverConfig, GroupStatus, Output, RecoverError, Refusal};
use crate::id::{NodeId, PartitionId, ReplicaId};
use crate::mutation::{Mutation, planted};
use crate::state_machine::{Operation, Origin, Query, StateMachine, Watch};
use crate::time::Timestamp;

/// How often a replica that lost something asks whether its group has removed it.
const INQUIRE_DAMAGED: Duration = Duration::from_secs(5);

/// All Raft groups of a node, without I/O, clock or hidden randomness.
///
/// Call any of the inputs, then [`Driver::poll_output`] until it returns `None`; call
/// [`Driver::handle_deadline`] when [`Driver::next_deadline`] has come.
#[derive(Debug)]
pub struct Driver {
    shared: Shared,
    partitions: u32,
    groups: BTreeMap<PartitionId, Group>,
    /// Of each group, the highest replica that lived here and was destroyed: late messages to it do not bring
    /// it back.
    destroyed: BTreeMap<PartitionId, ReplicaId>,
    /// Replicas of which something was lost on the disk. They take no part any more: their leaders are told, and
    /// replace them. What is left of them is kept for [`Driver::recover`].
    damaged: BTreeMap<PartitionId, Damaged>,
    /// Groups that this turn has touched.
    touched: BTreeSet<PartitionId>,
    /// Groups in which something waits for the next tick; the others are looked at with each heartbeat.
    restless: BTreeSet<PartitionId>,
    next_tick: Timestamp,
    ticks: usize,
}

impl Driver {
    /// The driver of node `me`, without any group.
    pub fn new(me: NodeId, config: DriverConfig, rng: StdRng, now: Timestamp) -> Self {
        let next_tick = now + config.tick;
        Self {
            shared: Shared::new(me, config, rng, now),
            partitions: 0,
            groups: BTreeMap::new(),
            destroyed: BTreeMap::new(),
            damaged: BTreeMap::new(),
            touched: BTreeSet::new(),
            restless: BTreeSet::new(),
            next_tick,
            ticks: 0,
        }
    }

    /// Founds all groups: this node becomes the only voter of each and leads it at once.
    ///
    /// # Panics
    /// Never: a founder's configuration is one that the Raft core takes.
    pub fn found(&mut self, partitions: u32, now: Timestamp) {
        self.advance_to(now);
        self.partitions = partitions;
        for partition in (0..partitions).map(PartitionId) {
            let group =
                Group::founding(partition, &mut self.shared).expect("a founder's configuration is sound");
            self.groups.insert(partition, group);
            self.touched.insert(partition);
        }
    }

    /// Takes part in a swarm of so many partitions: replicas are created when their leaders address them.
    pub fn join(&mut self, partitions: u32) {
        self.partitions = partitions;
    }

    /// Takes up what this node was part of before it restarted. Replicas of which something was lost take no
    /// part; [`Driver::damaged`] names them.
    pub fn restore(&mut self, partitions: u32, stored: Stored, now: Timestamp) {
        self.advance_to(now);
        self.partitions = partitions;
        self.destroyed = stored.destroyed;
        for (partition, replica) in stored.replicas {
            if partition.0 >= partitions {
                self.shared.dropped += 1;
                continue;
            }
            match Group::restored(partition, replica, &mut self.shared) {
                Ok(group) => {
                    self.groups.insert(partition, group);
                    self.touched.insert(partition);
                }
                Err(damaged) => {
                    self.damaged.insert(partition, *damaged);
                }
            }
        }
    }

    /// All batches of [`Output::Persist`] up to this one are on the disk.
    pub fn persisted(&mut self, batch: u64, now: Timestamp) {
        self.advance_to(now);
        for partition in self.shared.awaited(batch) {
            self.with(partition, |group, shared| group.persisted(batch, shared));
        }
    }

    /// Keeps the state of a partition as it is now, and once more what its log holds behind it, so that nothing
    /// that was written before need be kept. Of a replica that lost something there is no newer state.
    pub fn keep_state(&mut self, partition: PartitionId) {
        if let Some(group) = self.groups.get(&partition) {
            group.keep_anew(&mut self.shared);
        }
    }

    /// Whether the disk is full: then nothing is proposed here, and reads go on. What is led here is handed over to
    /// those that have room, if they are a majority.
    pub fn set_full(&mut self, full: bool) {
        let now = self.shared.now;
        self.shared.full = full.then(|| self.shared.full.unwrap_or(Full::since(now)));
        if full {
            for partition in self.led() {
                self.with(partition, Group::seek_relief);
            }
        }
    }

    fn led(&self) -> Vec<PartitionId> {
        self.groups.iter().filter(|(_, group)| group.is_leader()).map(|(partition, _)| *partition).collect()
    }

    /// The partitions whose replica on this node has lost something.
    pub fn damaged(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.damaged.keys().copied()
    }

    /// Makes the replica on this node the first and only one of a new generation of its group, with all that its
    /// log holds: the majority of its group is gone for good. **What was acknowledged and never reached this
    /// replica is lost**, and should the majority live after all, so is what it goes on to acknowledge.
    ///
    /// # Errors
    /// Nothing was done; the error says why.
    pub fn recover(&mut self, partition: PartitionId, now: Timestamp) -> Result<(), RecoverError> {
        self.advance_to(now);
        let old;
        if let Some(group) = self.groups.get_mut(&partition) {
            old = group.id();
            group.recover(&mut self.shared)?;
        } else {
            let damaged = self.damaged.get(&partition).ok_or(RecoverError::NoReplica)?;
            old = damaged.stored.replica;
            let group = Group::recovered(partition, damaged, &mut self.shared)?;
            self.groups.insert(partition, group);
            self.damaged.remove(&partition);
        }
        self.note_destroyed(partition, old);
        self.touched.insert(partition);
        Ok(())
    }

    fn note_destroyed(&mut self, partition: PartitionId, replica: ReplicaId) {
        let destroyed = self.destroyed.entry(partition).or_insert(replica);
        *destroyed = (*destroyed).max(replica);
    }

    /// Begins a new generation of a group with nothing: no replica of it with a state is left anywhere. `term` is
    /// the highest that is known of it.
    ///
    /// # Errors
    /// If this node holds a replica that [`Driver::recover`] takes, or one that is being brought up; nothing was
    /// done.
    pub fn recover_empty(
        &mut self,
        partition: PartitionId,
        term: u64,
        now: Timestamp,
    ) -> Result<(), RecoverError> {
        self.advance_to(now);
        let mut old = None;
        if let Some(group) = self.groups.get(&partition) {
            if !group.is_empty_and_alone(&self.shared) {
                return Err(RecoverError::NotEmpty);
            }
            old = Some(group.id());
        } else if let Some(damaged) = self.damaged.get(&partition) {
            if damaged.holds_state() {
                return Err(RecoverError::NotEmpty);
            }
            old = Some(damaged.stored.replica);
        }
        let last_here = old.into_iter().chain(self.destroyed.get(&partition).copied()).max();
        let group = Group::anew(partition, term, last_here.unwrap_or(ReplicaId(0)), &mut self.shared)?;
        self.damaged.remove(&partition);
        if let Some(mut old) = self.groups.insert(partition, group) {
            old.close(&mut self.shared);
        }
        if let Some(replica) = old {
            self.note_destroyed(partition, replica);
            self.shared.keep(Write::Destroy { partition, replica });
        }
        self.touched.insert(partition);
        Ok(())
    }

    /// Drops every group: this node's swarm is no more. What was asked is answered.
    pub fn dissolve(&mut self) {
        self.partitions = 0;
        for (_, mut group) in std::mem::take(&mut self.groups) {
            group.close(&mut self.shared);
        }
        self.destroyed.clear();
        self.damaged.clear();
        self.shared.forget_writes();
        self.touched.clear();
        self.restless.clear();
        self.shared.outbox.clear();
        self.shared.timers.clear();
    }

    fn advance_to(&mut self, now: Timestamp) {
        self.shared.now = self.shared.now.max(now);
    }

    /// Lets a group work; afterwards it belongs to the turn, unless the group destroyed it.
    fn with<T>(
        &mut self,
        partition: PartitionId,
        work: impl FnOnce(&mut Group, &mut Shared) -> T,
    ) -> Option<T> {
        let group = self.groups.get_mut(&partition)?;
        let result = work(group, &mut self.shared);
        if group.is_doomed() {
            self.destroy(partition);
        } else {
            self.touched.insert(partition);
        }
        Some(result)
    }

    fn destroy(&mut self, partition: PartitionId) {
        let Some(mut group) = self.groups.remove(&partition) else {
            return;
        };
        group.close(&mut self.shared);
        self.touched.remove(&partition);
        self.restless.remove(&partition);
        self.note_destroyed(partition, group.id());
        self.shared.keep(Write::Destroy { partition, replica: group.id() });
        self.shared.outputs.push_back(Output::ReplicaRemoved { partition });
    }

    /// Proposes an operation; [`Output::Outcome`] tells what became of it.
    pub fn propose(
        &mut self,
        partition: PartitionId,
        tag: u64,
        origin: Option<Origin>,
        operation: Operation,
        now: Timestamp,
    ) {
        self.advance_to(now);
        let served = self.with(partition, |group, shared| {
            group.propose(tag, origin, operation, shared);
        });
        self.refuse_unless(served, tag);
    }

    /// Reads linearizably.
    pub fn read(&mut self, partition: PartitionId, tag: u64, query: Query, now: Timestamp) {
        self.advance_to(now);
        let served = self.with(partition, |group, shared| group.read(tag, query, shared));
        self.refuse_unless(served, tag);
    }

    /// Reads from what this node has, which may be old.
    pub fn read_stale(&mut self, partition: PartitionId, tag: u64, query: &Query) {
        let served = self.groups.get(&partition).map(|group| group.read_stale(tag, query, &mut self.shared));
        self.refuse_unless(served, tag);
    }

    /// Reads a partition's whole state linearizably, as a snapshot.
    pub fn export(&mut self, partition: PartitionId, tag: u64, now: Timestamp) {
        self.advance_to(now);
        let served = self.with(partition, |group, shared| group.export(tag, shared));
        self.refuse_unless(served, tag);
    }

    /// Answers as soon as what is watched has changed; linearizable from the first look on. Ends with an
    /// answer, with a refusal when leadership is lost, or by [`Driver::cancel`].
    pub fn wait(&mut self, partition: PartitionId, tag: u64, watch: Watch, now: Timestamp) {
        self.advance_to(now);
        let served = self.with(partition, |group, shared| group.wait(tag, watch, shared));
        self.refuse_unless(served, tag);
    }

    /// Nobody waits for this wait any more: it gets no outcome.
    pub fn cancel(&mut self, tag: u64) {
        if let Some(partition) = self.shared.waits.remove(&tag)
            && let Some(group) = self.groups.get_mut(&partition)
        {
            group.cancel(tag);
        }
    }

    fn refuse_unless(&mut self, served: Option<()>, tag: u64) {
        if served.is_none() {
            self.shared.refuse(tag, Refusal::NoReplica);
        }
    }

    /// Takes what another node's groups say. What is odd is dropped and counted.
    pub fn receive(&mut self, from: NodeId, messages: Vec<GroupMessage>, now: Timestamp) {
        self.advance_to(now);
        if from == self.shared.me {
            return;
        }
        for message in messages {
            self.receive_one(from, message);
        }
    }

    fn receive_one(&mut self, from: NodeId, mut message: GroupMessage) {
        let partition = message.partition;
        if partition.0 >= self.partitions {
            self.shared.dropped += 1;
            return;
        }
        if message.body == Body::Inquiry {
            let removed =
                self.groups.get(&partition).filter(|group| group.has_removed(message.from)).map(Group::id);
            if let Some(me) = removed {
                let answer = Group::message(partition, me, message.from, Body::Retired);
                self.shared.send(from, answer);
            }
            return;
        }
        let to = message.to;
        if let Some(full) = &mut self.shared.full
            && !full.fit(&mut message.body)
        {
            // No room for it now; it is sent again.
            return;
        }
        if let Some(group) = self.groups.get(&partition) {
            if to == group.id() {
                self.with(partition, |group, shared| group.receive(from, message, shared));
            } else if to > group.id() && !group.inquired_lately(self.shared.now) {
                // The group has taken this node in again under a new id: so the replica here was removed. That
                // is for the group to say, and then the new one is created.
                self.with(partition, Group::ask_whether_in);
            } else if to < group.id() && group.has_removed(message.from) && message.body != Body::Retired {
                // Of an older generation, to one that is no more: its replicas may have found a majority of their
                // own, and would never ask.
                let answer = Group::message(partition, group.id(), message.from, Body::Retired);
                self.shared.send(from, answer);
            }
            return;
        }
        let from_leader = match &message.body {
            Body::Raft(raft) => match raft.kind {
                RaftKind::Append | RaftKind::Heartbeat => true,
                RaftKind::Vote | RaftKind::PreVote => planted(Mutation::WipedNodeVotes),
                _ => false,
            },
            Body::SnapshotChunk(_) => true,
            _ => false,
        };
        if self.is_for_damaged(from, &message, from_leader) {
            return;
        }
        if !from_leader || to.0 == 0 {
            return;
        }
        if self.destroyed.get(&partition).is_some_and(|destroyed| to <= *destroyed) {
            // It may be late. But one that was never brought up is destroyed without its group's leave: who still counts
            // on it must hear of that.
            self.shared.send(from, Group::message(partition, to, message.from, Body::Lost));
            return;
        }
        let Ok(group) = Group::blank(partition, to, &mut self.shared) else {
            self.shared.dropped += 1;
            return;
        };
        self.groups.insert(partition, group);
        self.shared.outputs.push_back(Output::ReplicaCreated { partition });
        self.with(partition, |group, shared| group.receive(from, message, shared));
    }

    /// A replica that lost something says so to its leader, until its group has removed it. Whether the message
    /// was about it.
    fn is_for_damaged(&mut self, from: NodeId, message: &GroupMessage, from_leader: bool) -> bool {
        let partition = message.partition;
        let Some(replica) = self.damaged.get(&partition).map(|damaged| damaged.stored.replica) else {
            return false;
        };
        let removed = message.to == replica && message.body == Body::Retired;
        // The group has taken this node in again: so it has removed what was here.
        let successor = message.to > replica && from_leader;
        if removed || successor {
            self.damaged.remove(&partition);
            self.note_destroyed(partition, replica);
            self.shared.keep(Write::Destroy { partition, replica });
        } else if message.to == replica {
            let answer = Group::message(partition, replica, message.from, Body::Lost);
            self.shared.send(from, answer);
        }
        !successor
    }

    /// The link to a node stands.
    pub fn link_up(&mut self, node: NodeId, now: Timestamp) {
        self.advance_to(now);
        if self.shared.linked.insert(node) {
            self.link_changed(node, true);
        }
    }

    /// The link to a node is broken: its leaderships are taken over as soon as that is safe.
    pub fn link_down(&mut self, node: NodeId, now: Timestamp) {
        self.advance_to(now);
        if self.shared.linked.remove(&node) {
            self.shared.outbox.remove(&node);
            self.link_changed(node, false);
        }
    }

    fn link_changed(&mut self, node: NodeId, up: bool) {
        for (partition, group) in &mut self.groups {
            group.link_changed(node, up, &mut self.shared);
            self.touched.insert(*partition);
        }
    }

    /// Changes who is in a group that this node leads. `based_on` is the [`GroupStatus::config`] that the
    /// change was decided on; under any other it is refused, so that two who decide do not mix. That the change
    /// was accepted does not mean that it will happen: watch [`Driver::group`].
    ///
    /// # Errors
    /// Nothing was done; the error says why.
    pub fn change(
        &mut self,
        partition: PartitionId,
        based_on: u64,
        change: &Change,
        now: Timestamp,
    ) -> Result<(), ChangeError> {
        self.advance_to(now);
        self.with(partition, |group, shared| group.change(based_on, change, shared))
            .unwrap_or(Err(ChangeError::NotLeader))
    }

    /// Hands the leadership of a group to its voter on `to`, if that is linked, has caught up, and says that its
    /// disk has room. Whether that was begun; proposals are refused until it is done or called off, after half a second.
    pub fn transfer(&mut self, partition: PartitionId, to: NodeId, now: Timestamp) -> bool {
        self.advance_to(now);
        self.with(partition, |group, shared| group.transfer(to, shared)).unwrap_or(false)
    }

    /// Hands over every leadership to whoever is best placed and not among those `stopping` as well: before a stop.
    /// How many were begun.
    pub fn hand_over(&mut self, stopping: &BTreeSet<NodeId>, now: Timestamp) -> usize {
        self.advance_to(now);
        let led = self.led();
        let mut hand_over = |partition: &PartitionId| {
            self.with(*partition, |group, shared| group.hand_over(stopping, shared)).unwrap_or(false)
        };
        led.iter().filter(|partition| hand_over(partition)).count()
    }

    /// When [`Driver::handle_deadline`] is to be called next.
    pub fn next_deadline(&self) -> Timestamp {
        match self.shared.timers.first() {
            _ if self.groups.is_empty() && self.damaged.is_empty() => Timestamp::NEVER,
            Some((at, _)) => self.next_look().min(*at),
            None => self.next_look(),
        }
    }

    /// The next tick in which there is something to do.
    fn next_look(&self) -> Timestamp {
        let ticks = if self.restless.is_empty() { self.ticks_to_beat() } else { 1 };
        self.next_tick + self.shared.config.tick * (ticks - 1)
    }

    /// How many ticks from now on leaders say that they lead.
    fn ticks_to_beat(&self) -> u32 {
        let beat = self.shared.config.ticks(self.shared.config.heartbeat);
        u32::try_from(beat - self.ticks % beat).unwrap_or(u32::MAX)
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now: Timestamp) {
        self.advance_to(now);
        let now = self.shared.now;
        while let Some((at, partition)) = self.shared.timers.first().copied()
            && at <= now
        {
            self.shared.timers.pop_first();
            self.with(partition, Group::on_timer);
        }
        if now < self.next_look() {
            return;
        }
        let tick = self.shared.config.tick;
        // After a pause, time that was not lived through is not made up for: up to the next heartbeat, then on from here.
        let mut passed = 1;
        while passed < self.ticks_to_beat() && self.next_tick + tick * passed <= now {
            passed += 1;
        }
        let beat = passed == self.ticks_to_beat();
        self.next_tick = self.next_tick + tick * passed;
        if self.next_tick <= now {
            self.next_tick = now + tick;
        }
        let before = self.ticks;
        self.ticks += passed as usize;
        let looked_at: Vec<_> = if beat {
            self.groups.keys().copied().collect()
        } else {
            self.restless.iter().copied().collect()
        };
        let ticks = self.ticks;
        for partition in looked_at {
            self.with(partition, |group, shared| group.tick(ticks, beat, shared));
        }
        let inquire = self.shared.config.ticks(INQUIRE_DAMAGED);
        if before / inquire < self.ticks / inquire {
            for (partition, damaged) in &self.damaged {
                for node in self.shared.linked.clone() {
                    let inquiry =
                        Group::message(*partition, damaged.stored.replica, ReplicaId(0), Body::Inquiry);
                    self.shared.send(node, inquiry);
                }
            }
        }
    }

    /// The next thing to be done. Handles the groups that were touched since, each once.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.shared.outputs.pop_front() {
            return Some(output);
        }
        while let Some(partition) = self.touched.pop_first() {
            let Some(group) = self.groups.get_mut(&partition) else {
                continue;
            };
            group.drain(&mut self.shared);
            if group.is_doomed() {
                self.destroy(partition);
            } else if group.is_restless(&self.shared) {
                self.restless.insert(partition);
            } else {
                self.restless.remove(&partition);
            }
        }
        // First, so that the disk works while others do.
        if let Some(persist) = self.shared.close_batch() {
            self.shared.outputs.push_back(persist);
        }
        for (to, messages) in std::mem::take(&mut self.shared.outbox) {
            let mut frame = Vec::new();
            let mut bytes = 0;
            for message in messages {
                bytes += message.weight();
                frame.push(message);
                if bytes >= FRAME_BYTES {
                    let messages = std::mem::take(&mut frame);
                    self.shared.outputs.push_back(Output::Frame { to, messages });
                    bytes = 0;
                }
            }
            if !frame.is_empty() {
                self.shared.outputs.push_back(Output::Frame { to, messages: frame });
            }
        }
        self.shared.outputs.pop_front()
    }

    /// How the replica of a partition on this node is; `None` if there is none.
    pub fn group(&self, partition: PartitionId) -> Option<GroupStatus> {
        match self.groups.get(&partition) {
            Some(group) => Some(group.status(&self.shared)),
            None => Some(self.damaged.get(&partition)?.status.clone()),
        }
    }

    /// Who leads a partition, if this node has a replica of it and knows a leader that it is linked with.
    pub fn leader(&self, partition: PartitionId) -> Option<NodeId> {
        self.groups.get(&partition)?.leader(&self.shared)
    }

    /// The partitions of which this node has a replica (perhaps without data yet).
    pub fn replicas(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.groups.keys().copied()
    }

    /// The state of a partition as this node has applied it; `None` without a replica with data.
    pub fn state(&self, partition: PartitionId) -> Option<&StateMachine> {
        self.groups.get(&partition)?.machine()
    }

    /// Messages that were dropped because no correct replica sends them.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped
    }

    /// From now on, what is applied is gathered for [`Driver::take_observed`].
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn observe(&mut self) {
        self.shared.observed.on = true;
    }

    /// What was applied since the last call.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn take_observed(&mut self) -> super::Observed {
        let on = self.shared.observed.on;
        std::mem::replace(&mut self.shared.observed, super::Observed { on, ..super::Observed::default() })
    }

    /// The groups that this node believes to lead, each with its term.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn leading(&self) -> impl Iterator<Item = (PartitionId, u64)> {
        self.groups.iter().filter(|(_, group)| group.is_leader()).map(|(id, group)| (*id, group.term()))
    }
}
