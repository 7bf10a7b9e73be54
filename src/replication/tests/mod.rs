//! The driver in a deterministic world.

mod chaos;
mod sim;

use sim::{Sim, ms};

use crate::id::{NodeId, PartitionId};
use crate::replication::{Change, DriverConfig, Outcome, Refusal, Role};

const P: PartitionId = PartitionId(0);

/// Brings up `count` nodes, all voters of all groups.
fn cluster(seed: u64, partitions: u32, count: u8) -> (Sim, Vec<NodeId>) {
    cluster_with(seed, partitions, count, DriverConfig::default())
}

fn cluster_with(seed: u64, partitions: u32, count: u8, config: DriverConfig) -> (Sim, Vec<NodeId>) {
    let mut sim = Sim::new(seed, partitions, config);
    let nodes: Vec<_> = (1..=count).map(|number| sim.start(number)).collect();
    for partition in (0..partitions).map(PartitionId) {
        grow(&mut sim, partition, &nodes);
    }
    (sim, nodes)
}

fn apply_change(sim: &mut Sim, partition: PartitionId, change: &Change) {
    let leader = sim.leader(partition).unwrap();
    let config = sim.status(leader, partition).unwrap().config;
    let now = sim.now;
    sim.driver(leader).change(partition, config, change, now).unwrap();
    sim.settle(leader);
    sim.run_while(ms(5000), |sim| {
        let status = sim.status(leader, partition).unwrap();
        status.config == config || status.changing
    });
}

/// Makes exactly `nodes` the voters; the leader must be among them.
fn grow(sim: &mut Sim, partition: PartitionId, nodes: &[NodeId]) {
    let leader = sim.leader(partition).unwrap();
    let status = sim.status(leader, partition).unwrap();
    let new: Vec<_> = nodes
        .iter()
        .copied()
        .filter(|node| !status.voters.contains(node))
        .collect();
    if !new.is_empty() {
        apply_change(sim, partition, &Change::AddLearners(new.clone()));
        sim.run_while(ms(5000), |sim| {
            let status = sim.status(leader, partition).unwrap();
            !status.progress.iter().all(|replica| replica.caught_up)
        });
    }
    let remove: Vec<_> = status
        .voters
        .iter()
        .copied()
        .filter(|node| !nodes.contains(node))
        .collect();
    apply_change(sim, partition, &Change::Replace { promote: new, remove });
}

#[test]
fn three_nodes_replicate() {
    let (mut sim, nodes) = cluster(1, 3, 3);
    for partition in (0..3).map(PartitionId) {
        for number in 0..10u8 {
            sim.put(nodes[0], partition, &[number], b"value");
        }
    }
    sim.run(ms(300));
    assert_eq!(sim.counts["writes"], 30);
    for node in &nodes {
        for partition in (0..3).map(PartitionId) {
            let state = sim.driver(*node).state(partition).unwrap();
            assert_eq!(state.len(), 10);
        }
    }
    sim.get(nodes[0], P, &[3]);
    sim.run(ms(10));
    assert_eq!(sim.counts["reads"], 1);
    assert_eq!(sim.status(nodes[1], P).unwrap().role, Role::Follower);
    sim.keep_outcomes = true;
    let tag = sim.put(nodes[1], P, &[3], b"elsewhere");
    assert_eq!(
        sim.outcomes[&tag],
        Outcome::Refused(Refusal::NotLeader {
            leader: Some(nodes[0])
        })
    );
}
