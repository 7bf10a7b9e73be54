//! How a replica is, as others may see it.
//!
//! **Rule.** A replica is *live* by what it said itself and by its link, and *caught up* only if live: a record of
//! the past would make a dead learner a voter, and a group of two with one dead voter decides nothing any more.

use raft::{ProgressState, StateRole};

use super::{Group, Shared};
use crate::id::ReplicaId;
use crate::replication::{GroupStatus, Refusal, ReplicaProgress, Role};

/// A learner that lacks no more entries than this has caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;

impl Group {
    pub(in crate::replication) fn status(&self, shared: &Shared) -> GroupStatus {
        let raft = &self.raw.raft;
        let nodes =
            |ids: &[u64]| ids.iter().filter_map(|id| self.node_of(ReplicaId(*id))).collect::<Vec<_>>();
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            _ if !self.voting.votes(self.id.0) => Role::Learner,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
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
            progress: if role == Role::Leader { self.progress(shared) } else { Vec::new() },
            has_quorum: if role == Role::Leader { self.quorum_linked } else { hears_leader },
            keys: self.machine.len(),
            bytes: self.machine.bytes(),
            applied: self.applied(),
            committed: raft.raft_log.committed,
            last: (self.last_index(), raft.raft_log.last_term()),
            log_entries: self.raw.store().len(),
            sealed: self.machine.sealed(),
            damaged: false,
        }
    }

    /// Of a leader: how the others are.
    fn progress(&self, shared: &Shared) -> Vec<ReplicaProgress> {
        let others = self.roster.replicas.iter().filter(|(id, _)| **id != self.id);
        others
            .filter_map(|(id, node)| {
                let matched = self.raw.raft.prs().get(id.0)?.matched;
                Some(ReplicaProgress {
                    node: *node,
                    voter: self.voting.votes(id.0),
                    matched,
                    lag: self.last_index().saturating_sub(matched),
                    live: self.is_live(*id, shared),
                    caught_up: self.is_caught_up(*id, shared),
                    lost: self.lead.as_ref().is_some_and(|lead| lead.lost.contains(id)),
                    full: self.was_full(*id, shared),
                })
            })
            .collect()
    }

    pub(super) fn is_changing(&self) -> bool {
        !self.voting.outgoing.is_empty() || (self.is_leader() && self.raw.raft.has_pending_conf())
    }

    pub(super) fn is_live(&self, id: ReplicaId, shared: &Shared) -> bool {
        let heard = self.lead.as_ref().and_then(|lead| lead.heard.get(&id));
        heard.is_some_and(|at| shared.now.since(*at) < shared.config.election_min)
            && self.is_linked(id, shared)
    }

    pub(super) fn is_caught_up(&self, id: ReplicaId, shared: &Shared) -> bool {
        self.is_live(id, shared)
            && self.raw.raft.prs().get(id.0).is_some_and(|progress| {
                progress.state != ProgressState::Snapshot
                    // However short the log: without the state it could not even vote.
                    && progress.matched > 0
                    && progress.matched + CAUGHT_UP_ENTRIES >= self.last_index()
            })
    }

    /// Why this replica does not serve now, if so.
    pub(super) fn refusal(&self, shared: &Shared) -> Option<Refusal> {
        if self.is_leader() {
            return (!self.quorum_linked).then_some(Refusal::NoQuorum);
        }
        let leader = self.leader(shared);
        if leader.is_none() && self.initialised && !self.quorum_linked {
            return Some(Refusal::NoQuorum);
        }
        Some(Refusal::NotLeader { leader })
    }
}
