//! The knobs of the driver, and who is in a group.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, ReplicaId};

/// Timing of all groups of a node. All nodes of a swarm must agree on `lease`.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// How often the driver looks at groups in which something waits; at all of them with each heartbeat. Everything
    /// below is counted in ticks, except the lease.
    pub tick: Duration,
    /// How often a leader says that it leads. At least twice the round trip.
    pub heartbeat: Duration,
    /// Shortest time without a leader's message after which a follower campaigns, if its link did not break.
    pub election_min: Duration,
    /// Longest such time; the time is drawn anew for every term.
    pub election_max: Duration,
    /// What a follower promises with each heartbeat: for so long it supports no other leader. A leader serves
    /// reads for four fifths of it (the rest is for clocks of different rate) after it asked a quorum.
    pub lease: Duration,
    /// How much later each next survivor campaigns when the leader's link breaks.
    pub campaign_step: Duration,
    /// Entries that are kept for followers that lag, by leaders and by those who may lead next.
    pub log_entries: usize,
    /// Bytes of entries that are kept for them, at most: fewer if the state is small.
    pub log_bytes: usize,
    /// Entries beyond which even a live follower is left behind and gets a snapshot.
    pub log_entries_cap: usize,
    /// Bytes beyond which even a live follower is left behind and gets a snapshot.
    pub log_bytes_cap: usize,
    /// Whether everything is kept across restarts: then nothing is said that rests on a write before
    /// [`Driver::persisted`](super::Driver::persisted) says that it is on the disk.
    pub durable: bool,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            heartbeat: Duration::from_millis(400),
            election_min: Duration::from_secs(1),
            election_max: Duration::from_secs(2),
            lease: Duration::from_millis(150),
            campaign_step: Duration::from_millis(60),
            log_entries: 1024,
            log_bytes: 8 * 1024 * 1024,
            log_entries_cap: 16 * 1024,
            log_bytes_cap: 64 * 1024 * 1024,
            durable: false,
        }
    }
}

impl DriverConfig {
    /// `duration` in ticks, at least one.
    pub(crate) fn ticks(&self, duration: Duration) -> usize {
        let ticks = duration.as_micros() / self.tick.as_micros().max(1);
        usize::try_from(ticks).unwrap_or(usize::MAX).max(1)
    }
}

/// Who has which replica, and the configuration in force: replicated with the log, carried in snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roster {
    /// Where the replicas are: voters, learners, and voters on their way out.
    pub(crate) replicas: BTreeMap<ReplicaId, NodeId>,
    /// The highest id that the group ever gave; ids are never reused.
    pub(crate) last_replica: u64,
    /// Log index of the configuration change applied last: names the configuration.
    pub(crate) config: u64,
}

impl Roster {
    /// The replica on `node`.
    pub(crate) fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.replicas.iter().find(|(_, holder)| **holder == node).map(|(id, _)| *id)
    }

    /// Whether the group once had this replica and has removed it.
    pub(crate) fn has_removed(&self, id: ReplicaId) -> bool {
        id.0 <= self.last_replica && !self.replicas.contains_key(&id)
    }
}

/// One step of a configuration change, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ConfigStep {
    /// A new replica that does not vote.
    AddLearner(ReplicaId, NodeId),
    /// A learner votes from now on.
    Promote(ReplicaId),
    /// A voter does not vote any more.
    Demote(ReplicaId),
    /// A replica that does not vote is no more.
    Remove(ReplicaId),
}

/// The voters and learners by id: what the Raft core calls its conf state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voting {
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
    pub(crate) outgoing: Vec<u64>,
    pub(crate) learners_next: Vec<u64>,
    pub(crate) auto_leave: bool,
}

impl Voting {
    /// Whether the Raft core accepts it (it panics on what it does not), every replica in it is on the roster,
    /// and `me` is in it.
    pub(crate) fn is_sound(&self, roster: &Roster, me: ReplicaId) -> bool {
        let unique = |ids: &[u64]| {
            let set: std::collections::BTreeSet<_> = ids.iter().collect();
            set.len() == ids.len() && !set.contains(&0)
        };
        let lists = [&self.voters, &self.learners, &self.outgoing, &self.learners_next];
        !self.voters.is_empty()
            && lists.iter().all(|ids| unique(ids))
            && lists
                .iter()
                .flat_map(|ids| ids.iter())
                .all(|id| roster.replicas.contains_key(&ReplicaId(*id)) && *id <= roster.last_replica)
            && self.learners.iter().all(|id| !self.voters.contains(id) && !self.outgoing.contains(id))
            && self.learners_next.iter().all(|id| self.outgoing.contains(id) && !self.voters.contains(id))
            && (!self.outgoing.is_empty() || (self.learners_next.is_empty() && !self.auto_leave))
            && [&self.voters, &self.learners, &self.outgoing].iter().any(|ids| ids.contains(&me.0))
    }

    /// Whether the nodes for which `up` holds form a quorum (in a joint configuration: of both halves).
    pub(crate) fn has_quorum(&self, up: impl Fn(u64) -> bool) -> bool {
        let majority =
            |ids: &[u64]| ids.is_empty() || ids.iter().filter(|id| up(**id)).count() > ids.len() / 2;
        majority(&self.voters) && majority(&self.outgoing)
    }

    /// Whether `id` votes.
    pub(crate) fn votes(&self, id: u64) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }
}
