//! Which nodes keep a block: a pure function of the members, as for keys.

use std::collections::BTreeMap;
use std::fmt;

use crate::dataset::BlockId;
use crate::id::{NodeId, SwarmId};
use crate::ring::{DEFAULT_REPLICAS, PartitionCount, Ring};
use crate::wire::SwarmView;

/// Where blocks belong, by one view of the swarm.
#[derive(Clone)]
pub struct Placement {
    swarm: SwarmId,
    ring: Ring,
    addresses: BTreeMap<NodeId, Vec<String>>,
    draining: Vec<NodeId>,
}

impl Placement {
    /// By this view; `None`: it has an impossible number of partitions.
    pub fn of(view: &SwarmView) -> Option<Self> {
        let partitions = PartitionCount::new(view.partitions).ok()?;
        let members = view.members.iter().filter(|member| member.on_ring);
        let members = members.map(|member| (member.node, member.weight));
        Some(Self {
            swarm: view.swarm,
            ring: Ring::new(members, partitions, DEFAULT_REPLICAS),
            addresses: view.members.iter().map(|member| (member.node, member.addresses.clone())).collect(),
            draining: view
                .members
                .iter()
                .filter(|member| member.draining)
                .map(|member| member.node)
                .collect(),
        })
    }

    /// The swarm.
    pub fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// The members that keep blocks, ascending.
    pub fn members(&self) -> &[NodeId] {
        self.ring.members()
    }

    /// Whether a member is handing over what it holds.
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.draining.contains(&node)
    }

    /// The nodes that should keep a block.
    pub fn replicas(&self, block: BlockId) -> &[NodeId] {
        self.ring.replicas(self.ring.partition_of(&block.key()))
    }

    /// How many of so many replicas must have a block before it counts as kept.
    pub fn majority(replicas: usize) -> usize {
        replicas / 2 + 1
    }

    /// Where a node listens.
    pub(in crate::client) fn addresses(&self, node: NodeId) -> &[String] {
        self.addresses.get(&node).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement")
            .field("swarm", &self.swarm)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}
