//! What gets into the log, what is applied from it, and what the proposer is told.
//!
//! **Rule.** A proposal is answered exactly once, and never with more than is known: with the reply when its own
//! entry (same index *and* term) is applied, *not leader* when it was never in the log or another entry has taken
//! its place, *unknown* when leadership was lost before either was seen.
//!
//! Proposals of one turn travel as one message to the core, so that they reach the followers as one.

use std::time::Duration;

use raft::eraftpb::{self, EntryType};

use super::room::NoRoom;
use super::{Group, Shared};
use crate::codec;
use crate::id::ReplicaId;
use crate::mutation::{Mutation, planted};
use crate::replication::{Outcome, Refusal, convert};
use crate::state_machine::{Command, Operation, Origin, PartitionTime, Reply};
use crate::time::Timestamp;

/// Proposals of one group that are not applied yet.
const MAX_PROPOSALS: usize = 4096;
/// Bytes of entries of one group that are not committed yet.
pub(super) const MAX_UNCOMMITTED_BYTES: usize = 16 * 1024 * 1024;
/// Longest encoded command: the longest value and key, and room for the rest.
const MAX_COMMAND_BYTES: usize = 1024 * 1024 + 64 * 1024;
/// For so long after leadership was lost, proposals may still turn out to be applied (or overwritten).
pub(super) const PENDING_GRACE: Duration = Duration::from_millis(300);

/// So many heartbeats after a quorum was heard, a leader still counts the time as lived in its company: more than
/// one, or it would lag in every pause between two.
const COMPANY_BEATS: f64 = 1.5;
/// Longest time between two looks at the clock that is counted, in heartbeats: a leader looks at each of them, and
/// stood still if it did not.
const MAX_STEP_BEATS: f64 = 1.5;
/// But above this the machine slept, and the world went on: its sleep is counted.
const SLEPT: Duration = Duration::from_secs(5);

/// A proposal in the log that is not applied yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) tag: Option<u64>,
}

impl Group {
    pub(in crate::replication) fn propose(
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
        match self.no_room(shared) {
            None => {}
            Some(NoRoom::AskAgain) => return shared.refuse(tag, Refusal::NotLeader { leader: None }),
            Some(NoRoom::Full) => return shared.refuse(tag, Refusal::StorageFull),
        }
        if let Err(refusal) = self.enqueue(Some(tag), origin, operation, shared) {
            shared.refuse(tag, refusal);
        }
    }

    pub(super) fn enqueue(
        &mut self,
        tag: Option<u64>,
        origin: Option<Origin>,
        operation: Operation,
        shared: &mut Shared,
    ) -> Result<(), Refusal> {
        // Leadership may be so fresh that no turn has noticed it yet.
        self.observe(shared);
        let Some(time) = self.stamp(shared) else {
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
    ///
    /// Counted is only what the leader lived through in the company of a quorum. While it stands still, or hears
    /// nobody, it cannot be told that something is still wanted; and what it says of the time may reach the
    /// others nevertheless, and end leases under the next leader.
    pub(super) fn stamp(&mut self, shared: &Shared) -> Option<PartitionTime> {
        let (now, config) = (shared.now, &shared.config);
        let accompanied = self.heard_by_quorum()? + config.heartbeat.mul_f64(COMPANY_BEATS);
        let state = self.machine.time();
        let lead = self.lead.as_mut()?;
        let step = now.since(lead.counted);
        lead.lived += if step > SLEPT {
            step
        } else {
            step.min(config.heartbeat.mul_f64(MAX_STEP_BEATS)).min(accompanied.since(lead.counted))
        };
        lead.counted = now;
        let lived = u64::try_from(lead.lived.as_millis()).unwrap_or(u64::MAX);
        let mut time = PartitionTime(lead.base.0.saturating_add(lived));
        if state > time {
            // What its predecessor stamped was applied only now. Time goes on from there: it must not stand still
            // until the own count has caught up, which after an idle hour takes an hour.
            lead.base = state;
            lead.lived = Duration::ZERO;
            time = state;
        }
        lead.stamp = lead.stamp.max(time);
        Some(lead.stamp)
    }

    /// The last moment at which a quorum had been heard since; of a leader.
    fn heard_by_quorum(&self) -> Option<Timestamp> {
        let lead = self.lead.as_ref()?;
        let heard = |id: u64| match lead.heard.get(&ReplicaId(id)) {
            _ if id == self.id.0 => Timestamp::NEVER,
            // Its votes were heard.
            heard => heard.copied().unwrap_or(lead.since),
        };
        let voters = self.voting.voters.iter().chain(&self.voting.outgoing);
        voters.map(|id| heard(*id)).filter(|moment| self.voting.has_quorum(|id| heard(id) >= *moment)).max()
    }

    pub(super) fn flush_batch(&mut self, shared: &mut Shared) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let (mut tags, commands): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let term = self.raw.raft.term;
        let first = self.last_index() + 1;
        if planted(Mutation::AckBeforeMajority) {
            self.answer_early(&mut tags, &commands, shared);
        }
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

    /// The planted fault: proposals are answered as if they were committed.
    fn answer_early(&self, tags: &mut [Option<u64>], commands: &[Vec<u8>], shared: &mut Shared) {
        let mut machine = self.machine.clone();
        for ((tag, data), index) in tags.iter_mut().zip(commands).zip(self.last_index() + 1..) {
            if let (Some(tag), Ok(command)) = (tag.take(), codec::decode(data)) {
                shared.outcome(tag, Outcome::Reply(machine.apply(index, command)));
            }
        }
    }

    pub(super) fn apply(&mut self, entries: Vec<eraftpb::Entry>, shared: &mut Shared) {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            let reply = if entry.get_entry_type() == EntryType::EntryNormal {
                self.apply_command(index, &entry.data, shared)
            } else {
                self.apply_config(index, &entry.context, shared);
                // Or, in a group where nothing is written, a restart would forget that the change is done, and ask
                // a replica for its vote that may be gone for good.
                self.keep_commit(shared);
                None
            };
            #[cfg(any(test, feature = "sim"))]
            self.show(&entry, shared);
            self.raw.mut_store().set_applied(index, term);
            self.answer(index, term, reply.as_ref(), shared);
            if self.doomed {
                return;
            }
        }
    }

    /// Shows what was applied to a simulator that judges it.
    #[cfg(any(test, feature = "sim"))]
    fn show(&self, entry: &eraftpb::Entry, shared: &mut Shared) {
        if !shared.observed.on {
            return;
        }
        let is_config = entry.get_entry_type() != EntryType::EntryNormal;
        let mut what = if is_config { entry.context.to_vec() } else { entry.data.to_vec() };
        what.extend_from_slice(&entry.term.to_be_bytes());
        shared.observed.applied.push((self.partition, entry.index, what));
        if is_config && self.roster.config == entry.index {
            let (voters, outgoing) = (self.voting.voters.clone(), self.voting.outgoing.clone());
            let (partition, generation) = (self.partition, entry.term >> 32);
            let config =
                super::super::AppliedConfig { partition, generation, index: entry.index, voters, outgoing };
            shared.observed.configs.push(config);
        }
    }

    /// Tells whoever proposed the entry that was just applied, or one whose place it has taken.
    fn answer(&mut self, index: u64, term: u64, reply: Option<&Reply>, shared: &mut Shared) {
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
            match reply {
                Some(reply) if ours => shared.outcome(tag, Outcome::Reply(reply.clone())),
                _ if pending_index < index => shared.outcome(tag, Outcome::Unknown),
                // Another leader's entry has taken its place: it never happened.
                _ => {
                    let leader = self.leader(shared);
                    shared.refuse(tag, Refusal::NotLeader { leader });
                }
            }
        }
    }

    /// After leadership was lost: those whose entries are neither applied nor overwritten by now.
    pub(super) fn give_up_pending(&mut self, shared: &mut Shared) {
        if self.pending_until.is_none_or(|until| shared.now < until) {
            return;
        }
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

    fn apply_command(&mut self, index: u64, data: &[u8], shared: &mut Shared) -> Option<Reply> {
        if data.is_empty() {
            return None;
        }
        let Ok(mut command) = codec::decode::<Command>(data) else {
            // The same bytes fail on every replica alike.
            shared.dropped += 1;
            return None;
        };
        if planted(Mutation::ExpiryByOwnClock) {
            command.time = command.time.max(PartitionTime(shared.now.as_millis()));
        }
        let watched = self.lead.as_ref().is_some_and(|lead| lead.watcher_count > 0);
        let key = watched.then(|| command.operation.key().map(<[u8]>::to_vec)).flatten();
        let expires = watched && self.machine.next_due().is_some_and(|due| due <= command.time);
        let reply = self.machine.apply(index, command);
        if watched {
            match key {
                Some(key) if !expires => self.notify(Some(&key), shared),
                _ => self.notify(None, shared),
            }
        }
        Some(reply)
    }
}
