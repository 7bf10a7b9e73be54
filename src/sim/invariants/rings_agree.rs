//! **Property.** Some time after the last change, every member has made the same ring, of the members that are there:
//! membership converges (SWIM: Das, Gupta, Motivala, 2002) and the ring is a function of it alone.

use std::collections::BTreeSet;

use super::Violation;
use crate::id::NodeId;
use crate::node::sim::world::World;

pub(in crate::node::sim) fn check(world: &mut World) -> Result<(), Violation> {
    let members: BTreeSet<NodeId> = world.up().into_iter().collect();
    let swarms = world.swarms();
    if swarms.len() != 1 {
        return Err(Violation::new("rings agree", format!("there are several swarms: {swarms:?}")));
    }
    for (node, machine) in &mut world.machines {
        let Some(swarm) = machine.core.as_mut().and_then(|core| core.serving()) else { continue };
        let placed: BTreeSet<NodeId> = swarm.placed().iter().map(|(node, _)| *node).collect();
        if placed != members {
            let what = format!("the ring of {node:?} is of {placed:?}, there are {members:?}");
            return Err(Violation::new("rings agree", what));
        }
    }
    Ok(())
}
