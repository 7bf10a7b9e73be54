//! The ring: an immutable map token -> partition -> replica set.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::placement;
use super::token::{PartitionCount, Token};
use crate::id::{NodeId, PartitionId};

/// Replicas per partition: with three, any one member may crash and every partition still has a majority.
pub const DEFAULT_REPLICAS: usize = 3;

/// Weight of a member that says nothing else. Weights are relative: a member of weight 2 holds twice what one
/// of weight 1 holds. 1, and not more, because the cost of computing a ring grows with the weights.
pub const DEFAULT_WEIGHT: u32 = 1;

/// Highest weight; higher ones count as this, and 0 counts as 1.
pub const MAX_WEIGHT: u32 = 100;

/// Which members hold which partition. Immutable, cheap to clone, equal for equal members.
///
/// Guarantees, for P partitions and n members of which N = min(`replicas`, n) hold each partition:
/// - the members' order does not matter, only their set;
/// - every partition has exactly N distinct replicas, the first of which is its *owner*, who should lead;
/// - bounded loads: no member holds more than 1.25 times its weighted share of the N x P replicas (rounded up);
///   and none owns more than 1.25 times its weighted share of the P partitions (rounded up);
/// - a member that joins or leaves moves little more than its own share.
///
/// A member cannot hold a partition twice, so the share of one that is much heavier than the others ends at P,
/// and the lighter ones share the rest by their weights.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring(Arc<Inner>);

#[derive(PartialEq, Eq)]
struct Inner {
    partitions: PartitionCount,
    /// Ascending, distinct.
    members: Vec<NodeId>,
    /// Members per partition: min(replicas, members).
    width: usize,
    /// Of partition p, `replicas[p * width..][..width]`: the owner, then the others as they come clockwise.
    replicas: Vec<NodeId>,
}

impl Ring {
    /// The ring of these members and their weights (see [`DEFAULT_WEIGHT`]). A member named twice counts once,
    /// with the higher weight.
    pub fn new(
        members: impl IntoIterator<Item = (NodeId, u32)>,
        partitions: PartitionCount,
        replicas: usize,
    ) -> Self {
        let mut weights = BTreeMap::new();
        for (node, weight) in members {
            let known = weights.entry(node).or_insert(0);
            *known = weight.clamp(1, MAX_WEIGHT).max(*known);
        }
        let weights: Vec<(NodeId, u32)> = weights.into_iter().collect();
        let width = replicas.min(weights.len());
        let replicas = placement::place(&weights, partitions, width);
        Self(Arc::new(Inner {
            partitions,
            members: weights.into_iter().map(|(node, _)| node).collect(),
            width,
            replicas,
        }))
    }

    /// Where a key stands.
    pub fn token_of(&self, key: &[u8]) -> Token {
        Token::of_key(key)
    }

    /// The partition that a key belongs to.
    pub fn partition_of(&self, key: &[u8]) -> PartitionId {
        self.0.partitions.partition_of(Token::of_key(key))
    }

    /// The members that hold a partition, the owner first. Empty if the ring has no member or no such
    /// partition.
    pub fn replicas(&self, partition: PartitionId) -> &[NodeId] {
        let start = usize::try_from(partition.0).unwrap_or(usize::MAX).saturating_mul(self.0.width);
        self.0.replicas.get(start..start.saturating_add(self.0.width)).unwrap_or_default()
    }

    /// The member that should lead a partition.
    pub fn owner(&self, partition: PartitionId) -> Option<NodeId> {
        self.replicas(partition).first().copied()
    }

    /// The members, ascending.
    pub fn members(&self) -> &[NodeId] {
        &self.0.members
    }

    /// Into how many partitions the ring is cut.
    pub fn partitions(&self) -> PartitionCount {
        self.0.partitions
    }

    /// How many partitions a member owns, and how many it holds (the owned ones included).
    pub fn share(&self, node: NodeId) -> (usize, usize) {
        let mut share = (0, 0);
        for partition in self.0.partitions.iter() {
            let replicas = self.replicas(partition);
            share.0 += usize::from(replicas.first() == Some(&node));
            share.1 += usize::from(replicas.contains(&node));
        }
        share
    }

    /// Whether the ring has no member.
    pub fn is_empty(&self) -> bool {
        self.0.members.is_empty()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("partitions", &self.0.partitions.get())
            .field("members", &self.0.members)
            .field("width", &self.0.width)
            .finish_non_exhaustive()
    }
}
