//! The turn: everything that the core has ready, written, sent and applied, once per group however much came in.
//!
//! **Rule.** The order is the core's contract: write, then send what rests on what was written, then apply, then
//! tell the core. Nothing may be fed to the core between its `ready` and its `advance` (it panics), so whatever
//! follows from applying waits for the next round of the loop.

use raft::{SnapshotStatus, StateRole, eraftpb};

use super::lead::Lead;
use super::proposals::PENDING_GRACE;
use super::{Group, Shared};
use crate::id::ReplicaId;
use crate::replication::message::Body;
use crate::replication::{DriverConfig, Refusal, convert};

/// Entries and bytes that a follower keeps, should it lead next.
const FOLLOWER_LOG_ENTRIES: usize = 4096;
const FOLLOWER_LOG_BYTES: usize = 16 * 1024 * 1024;

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

    pub(super) fn route(&mut self, messages: Vec<eraftpb::Message>, shared: &mut Shared) {
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

    /// Time has passed; `beat`: leaders say that they lead.
    pub(in crate::replication) fn tick(&mut self, beat: bool, shared: &mut Shared) {
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
        self.give_up_pending(shared);
        if leads && self.is_leader() {
            self.lead_tick(shared);
        }
        self.tick_transfers(shared);
        self.inquire(shared);
    }
}
