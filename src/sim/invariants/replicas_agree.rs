//! **Property.** Replicas of a partition that have applied the same commands are equal, whether they applied them one by
//! one or were restored from a snapshot.

use std::collections::BTreeMap;

use super::Violation;
use crate::id::PartitionId;
use crate::node::sim::world::World;
use crate::state_machine::StateMachine;

pub(in crate::node::sim) fn check(world: &mut World) -> Result<(), Violation> {
    let partitions = world.setting.partitions;
    let mut first: BTreeMap<(PartitionId, u64), (crate::id::NodeId, StateMachine)> = BTreeMap::new();
    for (node, machine) in &mut world.machines {
        let Some(swarm) = machine.core.as_mut().and_then(|core| core.serving()) else { continue };
        for partition in (0..partitions).map(PartitionId) {
            let driver = swarm.driver();
            let Some(applied) = driver.group(partition).map(|group| group.applied) else { continue };
            let Some(state) = driver.state(partition) else { continue };
            match first.get(&(partition, applied)) {
                Some((other, known)) if known != state => {
                    let what = format!("{partition:?} at {applied} differs on {other:?} and {node:?}");
                    return Err(Violation::new("replicas agree", what));
                }
                Some(_) => {}
                None => drop(first.insert((partition, applied), (*node, state.clone()))),
            }
        }
    }
    Ok(())
}
