//! The turn: everything that the core has ready, written, sent and applied, once per group however much came in.
//!
//! **Rule.** The order is the core's contract: write, then send what rests on what was written, then apply, then
//! tell the core. Nothing may be fed to the core between its `ready` and its `advance` (it panics), so whatever
//! follows from applying waits for the next round of the loop.
//!
//! A leader's appends go out while its own disk writes (Ongaro 10.2.1); everything else that a replica says waits
//! until all that it wrote before is on the disk, and so does the core's opinion of what this replica has. The one
//! exception is the answer to a heartbeat: it says who is followed in which term, and nothing of the log, so a
//! slow disk delays no reads.

use raft::{SnapshotStatus, StateRole, eraftpb};

use super::lead::Lead;
use super::proposals::PENDING_GRACE;
use super::{Group, Shared};
use crate::id::ReplicaId;
use crate::replication::durable::{HardState, Write};
use crate::replication::message::{Body, RaftKind};
use crate::replication::{Refusal, convert};

/// The log is kept up to this part of the state's bytes: a replica that lags further is sent the state, which where
/// this is what cuts is no more than so many times the log. What is kept for nobody costs each write, as it pushes what
/// is needed out of the processor's caches.
const LOG_SHARE: usize = 4;
/// But so many bytes of it in any case: some 35 entries of 100-byte values, when a state is not much more than that.
const LOG_BYTES_MIN: usize = 8 * 1024;

/// What may be said, and what the core is told, once a batch is on the disk.
#[derive(Debug)]
pub(super) struct Unstored {
    batch: u64,
    /// The core's number of what was written.
    ready: u64,
    messages: Vec<eraftpb::Message>,
}

impl Group {
    /// Handles everything that the core has ready.
    pub(in crate::replication) fn drain(&mut self, shared: &mut Shared) {
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
            self.compact(shared);
            self.announce(shared);
        }
    }

    fn handle_ready(&mut self, shared: &mut Shared) {
        let kept = shared.kept();
        let mut ready = self.raw.ready();
        let number = ready.number();
        if !ready.snapshot().is_empty() {
            self.take_over_snapshot(shared);
        }
        self.write(ready.take_entries(), ready.hs().cloned(), shared);
        let mut messages = ready.take_messages();
        let mut resting = ready.take_persisted_messages();
        if self.term_batch > shared.persisted {
            // Who elected itself alone leads before that is on the disk: and would, after a crash, lead again in
            // the same term, with other entries.
            resting.extend(std::mem::take(&mut messages));
        }
        let read_states = ready.take_read_states();
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        self.route(messages, shared);
        self.hold_back(number, shared.kept() > kept, resting, shared);
        self.apply(committed, shared);
        if self.doomed {
            return;
        }
        self.tell_applied();
        for state in read_states {
            self.confirm_round(&state.request_ctx, state.index, shared);
        }
    }

    /// Tells the core what is applied: of a snapshot only when that is on the disk.
    fn tell_applied(&mut self) {
        let applied = self.applied();
        let log = &self.raw.raft.raft_log;
        if applied == log.applied || applied > log.persisted {
            return;
        }
        let last = self.last_index();
        self.raw.advance_apply_to(applied);
        if self.is_leader() && self.last_index() > last {
            // The core has decided to leave a joint configuration; it would say so only with the next heartbeat.
            self.raw.raft.bcast_append();
        }
    }

    /// Entries, and what goes with them. That more is committed is not worth a write of its own (unless it is a
    /// change of the configuration), but it goes with every entry: so whoever has an entry that was proposed under a
    /// configuration knows on its disk that this was committed. A replica that comes back acts by the latest
    /// configuration that it knows as committed, and one that is two behind the group's lacks an entry that a majority
    /// of its own has, so that nobody votes for it.
    fn write(
        &mut self,
        entries: Vec<eraftpb::Entry>,
        hard_state: Option<eraftpb::HardState>,
        shared: &mut Shared,
    ) {
        if let Some(hard_state) = hard_state {
            self.raw.mut_store().set_hard_state(hard_state);
        }
        let state = convert::from_core_hard_state(self.raw.store().hard_state());
        let voted = (state.term, state.vote) != (self.kept.term, self.kept.vote);
        if voted && shared.config.durable {
            self.term_batch = shared.batch();
        }
        let Some(first) = entries.first().map(|entry| entry.index) else {
            if voted {
                self.keep_hard_state(state, shared);
            }
            return;
        };
        if shared.config.durable {
            let (partition, replica) = (self.partition, self.id);
            let kept = entries.iter().map(convert::from_core_entry).collect();
            shared.keep(Write::Append { partition, replica, first, entries: kept });
            self.keep_hard_state(state, shared);
        }
        self.raw.mut_store().append(entries);
    }

    /// Keeps how far is committed.
    pub(super) fn keep_commit(&mut self, shared: &mut Shared) {
        let state = convert::from_core_hard_state(self.raw.store().hard_state());
        self.keep_hard_state(state, shared);
    }

    fn keep_hard_state(&mut self, state: HardState, shared: &mut Shared) {
        if state != self.kept {
            self.kept = state;
            shared.keep(Write::HardState { partition: self.partition, replica: self.id, state });
        }
    }

    /// Lets `messages` wait until all that was written is on the disk.
    fn hold_back(
        &mut self,
        ready: u64,
        wrote: bool,
        mut messages: Vec<eraftpb::Message>,
        shared: &mut Shared,
    ) {
        let batch = if wrote { Some(shared.batch()) } else { self.unstored.back().map(|last| last.batch) };
        let Some(batch) = batch else {
            self.raw.on_persist_ready(ready);
            return self.route(messages, shared);
        };
        if self.term_batch <= shared.persisted {
            let is_beat = |message: &eraftpb::Message| {
                message.get_msg_type() == eraftpb::MessageType::MsgHeartbeatResponse
            };
            let beats = messages.extract_if(.., |message| is_beat(message)).collect::<Vec<_>>();
            self.route(beats, shared);
        }
        self.unstored.push_back(Unstored { batch, ready, messages });
        shared.await_batch(batch, self.partition);
    }

    /// Batches up to this one are on the disk.
    pub(in crate::replication) fn persisted(&mut self, batch: u64, shared: &mut Shared) {
        while self.unstored.front().is_some_and(|first| first.batch <= batch)
            && let Some(stored) = self.unstored.pop_front()
        {
            self.raw.on_persist_ready(stored.ready);
            self.route(stored.messages, shared);
        }
        self.tell_applied();
    }

    pub(super) fn route(&mut self, messages: Vec<eraftpb::Message>, shared: &mut Shared) {
        for mut message in messages {
            let to = ReplicaId(message.to);
            if message.get_msg_type() == eraftpb::MessageType::MsgSnapshot {
                self.send_snapshot(to, shared);
                continue;
            }
            let (Some(node), Some(mut raft)) = (self.node_of(to), convert::from_core(&mut message)) else {
                continue;
            };
            match raft.kind {
                RaftKind::Append if !self.is_full(to) => {}
                RaftKind::Append if self.begins_on_full_disks(shared) => raft.mark_beginning(),
                // It would not take them. That its log agrees so far, and what is committed, it is told.
                RaftKind::Append => raft.leave_data(),
                RaftKind::HeartbeatResponse => raft.reject = shared.is_full(),
                _ => {}
            }
            shared.send(node, Self::message(self.partition, self.id, to, Body::Raft(raft)));
        }
    }

    /// Notices a change of role, term or leader.
    pub(super) fn observe(&mut self, shared: &mut Shared) {
        let (term, role) = (self.raw.raft.term, self.raw.raft.state);
        if (term, role) == self.seen && (role == StateRole::Leader) == self.lead.is_some() {
            return;
        }
        let stepped_down = term == self.seen.0 && self.seen.1 == StateRole::Leader;
        self.seen = (term, role);
        self.draw_election_timeout(shared);
        if self.lead.as_ref().is_some_and(|lead| role != StateRole::Leader || lead.term != term) {
            self.end_lead(stepped_down, shared);
        }
        if role == StateRole::Leader && self.lead.is_none() {
            self.campaign_at = None;
            self.campaigns = 0;
            self.lead = Some(Lead::new(term, shared.now, self.machine.time()));
        }
    }

    /// Whether this replica leads, and followers can be told of more that is committed than at the last tick. A message
    /// of its own for every commit would double what the groups say; followers apply a tick later what no further entry
    /// told them of.
    fn has_more_committed(&mut self, shared: &Shared) -> bool {
        if self.lead.is_none() {
            return false;
        }
        let committed = self.raw.raft.raft_log.committed;
        let followers = self.raw.raft.prs().iter().filter(|(id, _)| self.is_linked(ReplicaId(**id), shared));
        let by_all =
            followers.map(|(_, progress)| progress.matched.min(committed)).min().unwrap_or(committed);
        let Some(lead) = &mut self.lead else { return false };
        let more = lead.told < committed || lead.told_all < by_all;
        lead.told = committed;
        lead.told_all = by_all;
        more
    }

    fn end_lead(&mut self, stepped_down: bool, shared: &mut Shared) {
        // In the same term only for want of a quorum.
        let refusal =
            if stepped_down { Refusal::NoQuorum } else { Refusal::NotLeader { leader: self.leader(shared) } };
        self.refuse_reads(refusal, shared);
        self.lead = None;
        self.pending_until = Some(shared.now + PENDING_GRACE);
        for id in self.outgoing.keys().copied().collect::<Vec<_>>() {
            self.end_outgoing(id, SnapshotStatus::Failure, shared);
        }
    }

    /// Cuts the log behind what is applied and what live followers have. Some of it is kept for those whose link
    /// was away for a moment, and by followers, should they lead next; beyond the cap nobody is waited for.
    fn compact(&mut self, shared: &Shared) {
        let config = &shared.config;
        let log = self.raw.store();
        // The core may still want to look at what it has not been told is applied.
        let applied = log.applied().0.min(self.raw.raft.raft_log.applied);
        let over = |entries: usize, bytes: usize| log.len() > entries || log.bytes() > bytes;
        let share = (self.machine.bytes() / LOG_SHARE).max(LOG_BYTES_MIN);
        let (entries, bytes) = (config.log_entries, config.log_bytes.min(share));
        if !over(entries, bytes) {
            return;
        }
        let up_to = if !self.is_leader() || over(config.log_entries_cap, config.log_bytes_cap) {
            applied
        } else {
            let progress = self.raw.raft.prs().iter();
            let needed = progress
                // Whom the core has not heard since it last counted may be well nevertheless.
                .filter(|(id, progress)| progress.recent_active || self.is_linked(ReplicaId(**id), shared))
                .filter(|(id, _)| **id != self.id.0)
                .map(|(_, progress)| progress.matched.max(progress.pending_snapshot))
                .min();
            needed.unwrap_or(applied).min(applied)
        };
        // Not for every entry anew.
        self.raw.mut_store().compact(up_to, entries - entries / 4, bytes - bytes / 4);
    }

    /// Whether something waits for the next tick, and not only for the next heartbeat.
    pub(in crate::replication) fn is_restless(&self, shared: &Shared) -> bool {
        let waits = !self.initialised
            || self.pending_until.is_some()
            || self.campaign_at.is_some()
            || self.incoming.is_some()
            || !self.outgoing.is_empty();
        let Some(lead) = &self.lead else {
            return waits || self.raw.raft.leader_id == 0;
        };
        let beat = u64::try_from(shared.config.heartbeat.as_millis()).unwrap_or(u64::MAX);
        let soon = lead.stamp.0.saturating_add(beat);
        waits
            || lead.told_all < self.raw.raft.raft_log.committed
            || lead.round.is_some()
            || lead.transfer_until.is_some()
            || self.seeks_relief(shared)
            || !lead.retired.is_empty()
            || !self.voting.outgoing.is_empty()
            || self.machine.next_due().is_some_and(|due| due.0 <= soon)
    }

    /// Lets the core know of ticks. A leader's counts time for two things: whether it still hears a quorum, and
    /// heartbeats of its own, which differ in phase between groups, so that an idle node would send a frame in every
    /// tick: it learns of them with ours.
    fn tick_core(&mut self, passed: usize, beat: bool) {
        let elapsed = &mut self.raw.raft.election_elapsed;
        if self.lead.is_some() && !beat {
            *elapsed += passed;
        } else if passed > 0 {
            *elapsed += passed - 1;
            self.raw.tick();
        }
    }

    /// It is the driver's tick of this number; `beat`: leaders say that they lead.
    pub(in crate::replication) fn tick(&mut self, tick: usize, beat: bool, shared: &mut Shared) {
        let now = shared.now;
        let leads = self.is_leader();
        let passed = tick - std::mem::replace(&mut self.ticked, tick).min(tick);
        // Who heard of its leader meanwhile counts from then on.
        let since = if leads { shared.config.heartbeat } else { now.since(self.heard_at) };
        let passed = passed.min(shared.config.ticks(since));
        if self.has_more_committed(shared) || beat {
            self.raw.ping();
        }
        if leads || now >= self.promise_until {
            // The core drew from its own source after a change of role; ours is the one that counts.
            self.raw.raft.set_randomized_election_timeout(self.election_ticks(shared));
            self.settle_if_electing(shared);
            if leads || self.may_campaign() {
                self.tick_core(passed, beat);
            }
        }
        self.give_up_pending(shared);
        if leads && self.is_leader() {
            self.lead_tick(shared);
        }
        self.tick_transfers(shared);
        self.inquire(shared);
    }
}
