//! The difference of two rings: what has to move.

use super::ring::Ring;
use crate::id::{NodeId, PartitionId};

/// What changes for one partition from one ring to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: PartitionId,
    /// Members that hold it only in the new ring, in the new ring's order.
    pub add: Vec<NodeId>,
    /// Members that hold it only in the old ring, in the old ring's order.
    pub remove: Vec<NodeId>,
    /// Whether another member should lead it.
    pub owner_changed: bool,
}

/// The moves that turn `old` into `new`, by partition; partitions that stay as they are do not occur. A
/// partition that one of the rings does not have is held by nobody there.
pub fn plan(old: &Ring, new: &Ring) -> Vec<Move> {
    old.partitions()
        .max(new.partitions())
        .iter()
        .filter_map(|partition| {
            let (before, after) = (old.replicas(partition), new.replicas(partition));
            let only_in = |these: &[NodeId], others: &[NodeId]| -> Vec<NodeId> {
                these.iter().filter(|node| !others.contains(node)).copied().collect()
            };
            let change = Move {
                partition,
                add: only_in(after, before),
                remove: only_in(before, after),
                owner_changed: before.first() != after.first(),
            };
            let unchanged = change.add.is_empty() && change.remove.is_empty() && !change.owner_changed;
            (!unchanged).then_some(change)
        })
        .collect()
}
