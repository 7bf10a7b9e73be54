//! What must hold, one property in one file.
//!
//! After every step, of the node that the step was about ([`Judge::look`]): [`one_leader`], [`committed_stays`],
//! [`quorums_intersect`]. After the heal: [`available`], [`rings_agree`], [`no_removed_voter`], [`replicas_agree`].

pub(in crate::node) mod available;
mod committed_stays;
pub(in crate::node) mod no_removed_voter;
mod one_leader;
mod quorums_intersect;
pub(in crate::node) mod replicas_agree;
pub(in crate::node) mod rings_agree;

use std::collections::BTreeMap;
use std::fmt;

use crate::id::{NodeId, PartitionId, SwarmId};
use crate::node::core::Core;
use crate::time::Timestamp;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) struct Violation {
    /// Which property, in a word or two.
    pub(in crate::node) property: &'static str,
    /// What was seen.
    pub(in crate::node) what: String,
}

impl Violation {
    pub(in crate::node) fn new(property: &'static str, what: String) -> Self {
        Self { property, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.what)
    }
}

/// Looks at a node after every step of it.
#[derive(Debug, Default)]
pub(in crate::node) struct Judge(BTreeMap<SwarmId, Seen>);

/// What was seen in one swarm.
#[derive(Debug, Default)]
struct Seen {
    leaders: one_leader::Leaders,
    committed: committed_stays::Committed,
    configurations: quorums_intersect::Configurations,
    changed: BTreeMap<PartitionId, Timestamp>,
}

impl Judge {
    /// When the voters of a group changed last.
    pub(in crate::node) fn changed(&self, partition: PartitionId) -> Option<Timestamp> {
        self.0.values().filter_map(|seen| seen.changed.get(&partition).copied()).max()
    }

    pub(in crate::node) fn look(
        &mut self,
        node: NodeId,
        core: &mut Core,
        now: Timestamp,
    ) -> Result<(), Violation> {
        let Some(swarm) = core.serving() else { return Ok(()) };
        let seen = self.0.entry(swarm.id()).or_default();
        let driver = swarm.driver();
        driver.observe();
        for (partition, term) in driver.leading() {
            seen.leaders.note(partition, term, node)?;
        }
        let observed = driver.take_observed();
        for (partition, index, what) in observed.applied {
            seen.committed.note(partition, index, &what, node)?;
        }
        for config in observed.configs {
            let partition = config.partition;
            if seen.configurations.note(config)? {
                seen.changed.insert(partition, now);
            }
        }
        Ok(())
    }
}
