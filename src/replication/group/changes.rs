//! Who is in the group, who is to lead it, and replicas that go.
//!
//! **Rule.** A change is based on one configuration and refused under any other; only a replica that has caught up
//! and is alive is given a vote; the new configuration must be able to decide. Replica ids are never reused: one
//! that is removed is removed for good, and must hear of it, or it would keep its data and ask for votes for ever.
//! So the leader tells it for a while, and a replica that nobody leads asks around.
//!
//! A voter goes in two changes: first it is demoted to a learner, then the learner is removed. A voter removed at
//! once would destroy itself while other voters may not have heard yet that the configuration in which it counted
//! is over; if the leader died at that moment, they could need its vote for ever. Whoever takes part in deciding
//! the second change has heard of the end of the first.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::{Group, Shared};
use crate::codec;
use crate::id::{NodeId, ReplicaId};
use crate::mutation::{Mutation, planted};
use crate::replication::config::{ConfigStep, Voting};
use crate::replication::message::Body;
use crate::replication::{Change, ChangeError, MAX_REPLICAS, convert};
use crate::time::Timestamp;

/// A transfer of leadership that takes longer is called off.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(500);
/// A replica that has not heard a leader for so long asks whether it is still in.
const INQUIRE_AFTER: Duration = Duration::from_secs(5);
/// Not more often than this.
const INQUIRE_AGAIN: Duration = Duration::from_millis(100);
/// A replica that never got its state and hears nothing for so long is dropped.
const UNINITIALISED_AFTER: Duration = Duration::from_secs(30);
/// A leader repeats to a removed replica that it is removed, for so long.
const RETIRED_NOTICES: Duration = Duration::from_secs(3);

impl Group {
    pub(in crate::replication) fn change(
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
                if planted(Mutation::ReplicaIdReused) {
                    next = (1..=next)
                        .find(|id| !self.roster.replicas.contains_key(&ReplicaId(*id)))
                        .unwrap_or(next);
                }
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
            steps.push(if voters.remove(&id.0) { ConfigStep::Demote(id) } else { ConfigStep::Remove(id) });
        }
        // The new configuration must be able to decide, or leaving the joint one would hang.
        let after = Voting { voters: voters.into_iter().collect(), ..Voting::default() };
        if !self.reaches_quorum(&after, shared) {
            return Err(ChangeError::NoQuorum);
        }
        Ok(steps)
    }

    pub(super) fn apply_config(&mut self, index: u64, context: &[u8], shared: &mut Shared) {
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
        self.retire_removed(shared);
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

    /// Forgets the replicas that are in no configuration any more, and tells them.
    fn retire_removed(&mut self, shared: &mut Shared) {
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
                lead.lost.remove(&id);
                lead.room.remove(&id);
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
    }

    /// Hands leadership to the replica on `to`, unless its disk is or was full lately. Whether that was begun.
    pub(in crate::replication) fn transfer(&mut self, to: NodeId, shared: &mut Shared) -> bool {
        self.observe(shared);
        let Some(id) = self.roster.replica_on(to) else {
            return false;
        };
        self.may_lead(id, shared) && self.hand_to(id, shared)
    }

    /// Hands leadership to a voter that has caught up. Whether that was begun.
    pub(super) fn hand_to(&mut self, id: ReplicaId, shared: &mut Shared) -> bool {
        self.observe(shared);
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

    /// The leader goes on leading. The order to campaign may have gone out nevertheless.
    pub(super) fn call_off_transfer(&mut self) {
        if let Some(lead) = &mut self.lead {
            lead.transfer_until = None;
        }
        self.raw.raft.abort_leader_transfer();
    }

    /// Hands leadership to whoever is best placed and not among those `stopping`; to a full disk if there is none
    /// with room, for that still serves reads. Whether that was begun.
    pub(in crate::replication) fn hand_over(
        &mut self,
        stopping: &BTreeSet<NodeId>,
        shared: &mut Shared,
    ) -> bool {
        let mut candidates: Vec<(bool, Reverse<u64>, ReplicaId)> = self
            .roster
            .replicas
            .iter()
            .filter(|(id, node)| self.voting.voters.contains(&id.0) && !stopping.contains(node))
            .filter_map(|(id, _)| {
                let matched = self.raw.raft.prs().get(id.0)?.matched;
                Some((self.is_full(*id), Reverse(matched), *id))
            })
            .collect();
        candidates.sort_unstable();
        candidates.into_iter().any(|(_, _, id)| self.hand_to(id, shared))
    }

    /// A replica that nobody leads asks whether the group still counts it in.
    pub(super) fn inquire(&mut self, shared: &mut Shared) {
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
    pub(in crate::replication) fn ask_whether_in(&mut self, shared: &mut Shared) {
        self.inquired_at = shared.now;
        for node in shared.linked.clone() {
            shared.send(node, Self::message(self.partition, self.id, ReplicaId(0), Body::Inquiry));
        }
    }

    pub(in crate::replication) fn inquired_lately(&self, now: Timestamp) -> bool {
        now.since(self.inquired_at) < INQUIRE_AGAIN
    }
}
