//! **Property.** Some time after the last change, every group has a leader, and its voters are the replicas that the
//! ring wants: none of them is on a node that left, or that died and was replaced.

use std::collections::BTreeSet;

use super::Violation;
use crate::id::{NodeId, PartitionId};
use crate::node::sim::world::World;
use crate::replication::Role;
use crate::ring::Ring;

pub(in crate::node) fn check(world: &mut World) -> Result<(), Violation> {
    let wrong = |what| Err(Violation::new("no removed node votes", what));
    let members = world.up();
    let ring = Ring::new(members.iter().map(|node| (*node, 1)), world.partition_count(), 3);
    let mut led = BTreeSet::new();
    for (node, machine) in &mut world.machines {
        let Some(swarm) = machine.core.as_mut().and_then(|core| core.serving()) else { continue };
        for partition in (0..world.setting.partitions).map(PartitionId) {
            let Some(group) = swarm.driver().group(partition) else { continue };
            let targets: BTreeSet<NodeId> = ring.replicas(partition).iter().copied().collect();
            let voters: BTreeSet<NodeId> = group.voters.iter().copied().collect();
            if voters != targets || group.changing || group.damaged {
                return wrong(format!(
                    "{partition:?} on {node:?} has {voters:?}, the ring wants {targets:?}"
                ));
            }
            if group.role == Role::Leader {
                led.insert(partition);
            }
        }
    }
    if led.len() != world.setting.partitions as usize {
        return wrong(format!("only {} partitions have a leader", led.len()));
    }
    Ok(())
}

/// Whether every group that a node holds is led by its owner, the ring's first replica.
#[cfg(test)]
pub(in crate::node) fn owners_lead(world: &mut World) -> bool {
    let members = world.up();
    let ring = Ring::new(members.iter().map(|node| (*node, 1)), world.partition_count(), 3);
    world.machines.values_mut().all(|machine| {
        let Some(swarm) = machine.core.as_mut().and_then(|core| core.serving()) else { return true };
        (0..world.setting.partitions).map(PartitionId).all(|partition| {
            swarm.driver().group(partition).is_none_or(|group| group.leader == ring.owner(partition))
        })
    })
}
