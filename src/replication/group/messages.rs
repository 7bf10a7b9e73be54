//! What others say, before the Raft core sees it.
//!
//! **Rule.** The core trusts its peers: it panics on what no correct replica says. So every message is checked
//! here, against the roster (a replica speaks from its own node only) and against what the core would assert; what
//! fails is dropped and counted. No message, however odd, may make the driver panic.

use super::{Group, Shared};
use crate::id::{NodeId, PartitionId, ReplicaId};
use crate::mutation::{Mutation, planted};
use crate::replication::convert;
use crate::replication::message::{Body, GroupMessage, RaftKind, RaftMessage};

/// Where a node says it is, of replicas that the roster does not know (yet).
const MAX_HINTS: usize = 32;
/// Longest context of a message, in bytes.
const MAX_CONTEXT_BYTES: usize = 64;
/// Terms and indices beyond this are nonsense: far from where arithmetic overflows.
pub(super) const MAX_NUMBER: u64 = 1 << 60;
/// The Raft core's mark of a vote that overrides leases.
const TRANSFER_CONTEXT: &[u8] = raft::CAMPAIGN_TRANSFER;

impl Group {
    pub(in crate::replication) fn message(
        partition: PartitionId,
        from: ReplicaId,
        to: ReplicaId,
        body: Body,
    ) -> GroupMessage {
        GroupMessage { partition, from, to, body }
    }

    /// Takes a message for this replica. What is odd is dropped and counted.
    pub(in crate::replication) fn receive(
        &mut self,
        node: NodeId,
        message: GroupMessage,
        shared: &mut Shared,
    ) {
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
            // Only a replica that has a later configuration says so. A leader learns it from its own log; but not
            // that a later generation of its group has begun, with replicas that it never made.
            Body::Retired => self.doomed = !self.is_leader() || from.0 > self.roster.last_replica,
            Body::Lost => {
                if let Some(lead) = &mut self.lead {
                    lead.lost.insert(from);
                }
            }
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
            RaftKind::Append => !rival && self.is_sane_append(message),
            RaftKind::Heartbeat => !rival && (old || message.commit <= last),
            // To one that led, and came back with less of its log than it had sent, it is of no interest.
            RaftKind::AppendResponse => old || !self.is_leader() || message.reject || message.index <= last,
            RaftKind::Vote | RaftKind::PreVote => {
                (self.initialised || planted(Mutation::WipedNodeVotes)) && message.log_term <= message.term
            }
            RaftKind::TimeoutNow
            | RaftKind::HeartbeatResponse
            | RaftKind::VoteResponse
            | RaftKind::PreVoteResponse => true,
        }
    }

    fn is_sane_append(&self, message: &RaftMessage) -> bool {
        let mut term = message.log_term.max(1);
        let ordered = message.entries.iter().all(|entry| {
            let fits = entry.term >= term && entry.term <= message.term;
            term = entry.term;
            fits
        });
        ordered
            && message.log_term <= message.term
            && (message.log_term == 0) == (message.index == 0)
            // A replica without state starts from a snapshot, never from the log's beginning.
            && (self.initialised || message.index > 0)
    }

    fn step(&mut self, from: ReplicaId, mut message: RaftMessage, shared: &mut Shared) -> bool {
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
                if !self.may_campaign() {
                    return true;
                }
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
                    if message.kind == RaftKind::HeartbeatResponse {
                        self.note_room(from, std::mem::take(&mut message.reject), shared);
                    }
                }
            }
        }
        let core = convert::to_core(from, self.id, message);
        self.raw.step(core).is_ok()
    }
}
