//! Whom a replica supports, and when it seeks to lead.
//!
//! **Rule.** Whoever hears its leader promises to support nobody else for the length of a lease: that is what the
//! leader's reads rest on, so a vote within the promise is not given (except in a transfer, before which the leader
//! has given up its lease), and nobody campaigns within its own.
//!
//! When the leader's link breaks, the survivors do not wait for election timeouts: the one with the lowest id that
//! is linked campaigns as soon as its promise has passed, the next a step later. The core's own timeouts remain,
//! for leaders that fall silent with their links standing; they are drawn from the driver's dice, so that the same
//! seed gives the same run.

use std::time::Duration;

use rand::RngExt;

use super::{Group, Shared};
use crate::id::{NodeId, ReplicaId};
use crate::replication::config::Voting;
use crate::replication::{DriverConfig, Output, Refusal};

/// First and longest pause between campaigns of a leaderless group whose quorum is linked.
const CAMPAIGN_RETRY: Duration = Duration::from_millis(100);
const CAMPAIGN_RETRY_MAX: Duration = Duration::from_millis(1600);

impl Group {
    pub(super) fn relink(&mut self, shared: &Shared) {
        self.quorum_linked = self.initialised && self.reaches_quorum(&self.voting, shared);
    }

    pub(super) fn reaches_quorum(&self, voting: &Voting, shared: &Shared) -> bool {
        voting.has_quorum(|id| {
            self.node_of(ReplicaId(id)).is_some_and(|node| node == shared.me || shared.linked.contains(&node))
        })
    }

    pub(in crate::replication) fn link_changed(&mut self, node: NodeId, up: bool, shared: &mut Shared) {
        self.relink(shared);
        let Some(id) = self.roster.replica_on(node) else {
            return;
        };
        if up {
            return;
        }
        if self.is_leader() {
            self.raw.report_unreachable(id.0);
            if self.raw.raft.lead_transferee == Some(id.0) {
                self.call_off_transfer();
            }
            if !self.quorum_linked {
                self.refuse_reads(Refusal::NoQuorum, shared);
            }
        } else if self.raw.raft.leader_id == id.0 {
            self.plan_campaign(shared);
        }
        self.announce(shared);
    }

    /// Tells who leads, if that changed; and sees to it that somebody will.
    pub(super) fn announce(&mut self, shared: &mut Shared) {
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

    /// Place among the voters that may take over, in the order of their ids; behind all of them if the disk is full.
    fn rank(&self, shared: &Shared) -> u32 {
        let before = self.voting.voters.iter().map(|id| ReplicaId(*id));
        let before = before.filter(|id| *id < self.id && self.is_linked(*id, shared));
        let last = if shared.is_full() { self.voting.voters.len() } else { 0 };
        u32::try_from(before.count() + last).unwrap_or(u32::MAX)
    }

    /// There is no leader to be heard: campaign once the promise has passed, unless a better placed survivor
    /// does so before.
    pub(super) fn plan_campaign(&mut self, shared: &mut Shared) {
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

    pub(in crate::replication) fn on_timer(&mut self, shared: &mut Shared) {
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
        self.settle(shared);
        if self.quorum_linked && self.may_campaign() {
            // An error means that there is nothing to campaign for.
            let _ = self.raw.campaign();
        }
        self.plan_campaign(shared);
    }

    pub(super) fn draw_election_timeout(&mut self, shared: &mut Shared) {
        let (min, max) = election_bounds(&shared.config);
        self.election_ticks = shared.rng.random_range(min..max);
    }

    /// How many ticks of silence it takes until this replica campaigns: as many as may be if the disk is full.
    pub(super) fn election_ticks(&self, shared: &Shared) -> usize {
        if shared.is_full() { election_bounds(&shared.config).1 - 1 } else { self.election_ticks }
    }

    /// The leader was heard: for the length of a lease, no other one is supported.
    pub(super) fn hear(&mut self, shared: &Shared) {
        self.heard_at = shared.now;
        self.promise_until = self.promise_until.max(shared.now + shared.config.lease);
    }

    /// Lets the core write what it has before something that may end in an election: it insists on having
    /// nothing unwritten when it is elected.
    pub(super) fn settle(&mut self, shared: &mut Shared) {
        let log = &self.raw.raft.raft_log;
        if !log.unstable_entries().is_empty() || log.unstable_snapshot().is_some() {
            self.drain(shared);
        }
    }

    /// Whoever elects itself alone leads at once, and must have all of its log on the disk before; others have it
    /// there before their votes go out.
    pub(super) fn may_campaign(&self) -> bool {
        self.unstored.is_empty() || !self.voting.has_quorum(|id| id == self.id.0)
    }

    pub(super) fn settle_if_electing(&mut self, shared: &mut Shared) {
        if !self.is_leader() {
            self.settle(shared);
        }
    }
}

/// Fewest ticks of silence before a campaign, and a tick more than most.
pub(super) fn election_bounds(config: &DriverConfig) -> (usize, usize) {
    let min = config.ticks(config.election_min).max(2);
    (min, config.ticks(config.election_max).max(min + 1))
}
