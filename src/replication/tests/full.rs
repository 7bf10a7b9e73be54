//! Disks without room: who leads then, and what becomes of writes.

use std::time::Duration;

use super::sim::{Sim, ms};
use super::{P, cluster_with, is_written};
use crate::id::{NodeId, PartitionId};
use crate::replication::{DriverConfig, Outcome, Refusal, Role};

/// Long enough for everything that goes to and fro to do so.
const LONG: Duration = Duration::from_secs(30);
/// A client gives up the search for a leader after more than that.
const PATIENCE: Duration = Duration::from_millis(1500);

fn durable(seed: u64, partitions: u32) -> (Sim, Vec<NodeId>) {
    let (mut sim, nodes) =
        cluster_with(seed, partitions, 3, DriverConfig { durable: true, ..DriverConfig::default() });
    sim.keep_outcomes = true;
    sim.run(ms(700 + seed * 37));
    (sim, nodes)
}

fn leader_and_term(sim: &Sim, partition: PartitionId) -> Option<(NodeId, u64)> {
    let leader = sim.leader(partition)?;
    Some((leader, sim.status(leader, partition)?.term))
}

/// Asks as a client does: whoever leads, again and again, unless it is told that there is no room.
fn put(sim: &mut Sim, partition: PartitionId, key: &[u8]) -> Outcome {
    let mut last = Outcome::Refused(Refusal::NoReplica);
    sim.run_while(PATIENCE, |sim| {
        let Some(leader) = sim.leader(partition) else { return true };
        let tag = sim.put(leader, partition, key, b"value");
        sim.run_while(PATIENCE, |sim| !sim.outcomes.contains_key(&tag));
        last = sim.outcomes[&tag].clone();
        matches!(last, Outcome::Refused(Refusal::NotLeader { .. }))
    });
    last
}

fn is_read(sim: &mut Sim, partition: PartitionId, key: &[u8]) -> bool {
    let leader = sim.leader(partition).unwrap();
    let tag = sim.get(leader, partition, key);
    sim.run(ms(600));
    matches!(sim.outcomes.get(&tag), Some(Outcome::Answer { stale: false, .. }))
}

#[test]
fn a_leader_whose_disk_is_full_hands_over_and_no_write_fails() {
    for seed in 0..20 {
        let (mut sim, nodes) = durable(seed, 4);
        let mut before = Vec::new();
        for partition in (0..4).map(PartitionId) {
            assert_eq!(sim.leader(partition), Some(nodes[0]));
            // More than a follower may lack to be given the leadership.
            before.extend((0..200u8).map(|key| sim.put(nodes[0], partition, &[key], b"value")));
        }
        // There is a reserve for what was handed to the disk before, or even that is used up.
        let is_stuck = seed % 2 == 0;
        if is_stuck {
            sim.fill(nodes[0]);
        } else {
            sim.driver(nodes[0]).set_full(true);
            sim.settle(nodes[0]);
        }
        for partition in (0..4).map(PartitionId) {
            let outcome = put(&mut sim, partition, b"on a full disk");
            assert!(is_written(Some(&outcome)), "{outcome:?}");
        }
        sim.run(ms(600));
        for tag in &before {
            // A disk that hangs does not let it say what it has, so it does not hear what became of it.
            let outcome = sim.outcomes.get(tag);
            let is_unknown = is_stuck && outcome == Some(&Outcome::Unknown);
            assert!(is_written(outcome) || is_unknown, "in flight: {outcome:?}");
        }
        let now: Vec<_> = (0..4).map(|number| leader_and_term(&sim, PartitionId(number))).collect();
        assert!(now.iter().flatten().all(|(leader, _)| *leader != nodes[0]), "{now:?}");
        // It stays so, although the ring wants it back.
        for _ in 0..LONG.as_secs() {
            sim.run(ms(1000));
            for partition in (0..4).map(PartitionId) {
                let (leader, at) = (sim.leader(partition).unwrap(), sim.now);
                assert!(!sim.driver(leader).transfer(partition, nodes[0], at));
                assert!(is_written(Some(&put(&mut sim, partition, b"later"))));
            }
        }
        let later: Vec<_> = (0..4).map(|number| leader_and_term(&sim, PartitionId(number))).collect();
        assert_eq!(now, later);

        // With room it takes in what it lacks, and may lead when it has had room for a while.
        sim.make_room(nodes[0]);
        sim.run(ms(2000));
        for partition in (0..4).map(PartitionId) {
            let (leader, at) = (sim.leader(partition).unwrap(), sim.now);
            let applied = |node| sim.status(node, partition).unwrap().applied;
            assert_eq!(applied(nodes[0]), applied(leader));
            let begun = sim.driver(leader).transfer(partition, nodes[0], at);
            // One that could say nothing at all was never heard to be full.
            assert!(is_stuck || !begun, "too soon");
            sim.settle(leader);
        }
        sim.run(Duration::from_secs(11));
        for partition in (0..4).map(PartitionId) {
            let (leader, at) = (sim.leader(partition).unwrap(), sim.now);
            assert!(leader == nodes[0] || sim.driver(leader).transfer(partition, nodes[0], at));
            sim.settle(leader);
            sim.run_while(ms(500), |sim| sim.leader(partition) != Some(nodes[0]));
            assert!(is_written(Some(&put(&mut sim, partition, b"back"))));
        }
    }
}

#[test]
fn when_a_majority_is_full_writes_are_refused_and_nobody_takes_over() {
    for seed in 0..20 {
        let (mut sim, nodes) = durable(seed, 1);
        assert!(is_written(Some(&put(&mut sim, P, b"key"))));
        // The followers, so that the leader has room itself.
        sim.fill(nodes[1]);
        sim.fill(nodes[2]);
        sim.run(ms(600));
        let before = leader_and_term(&sim, P);
        assert_eq!(before.map(|(leader, _)| leader), Some(nodes[0]));
        assert_eq!(put(&mut sim, P, b"key"), Outcome::Refused(Refusal::StorageFull));
        assert!(is_read(&mut sim, P, b"key"));
        // And all.
        sim.fill(nodes[0]);
        assert_eq!(put(&mut sim, P, b"key"), Outcome::Refused(Refusal::StorageFull));
        sim.run(LONG);
        assert_eq!(leader_and_term(&sim, P), before);
        assert_eq!(put(&mut sim, P, b"key"), Outcome::Refused(Refusal::StorageFull));
        assert!(is_read(&mut sim, P, b"key"));
        // A majority of two has room, without the leader.
        sim.make_room(nodes[1]);
        sim.make_room(nodes[2]);
        sim.run(Duration::from_secs(12));
        assert!(is_written(Some(&put(&mut sim, P, b"key"))));
        assert_ne!(sim.leader(P), Some(nodes[0]));
    }
}

#[test]
fn leadership_does_not_wander_between_full_disks() {
    for seed in 0..20 {
        let (mut sim, nodes) = durable(seed, 1);
        sim.fill(nodes[0]);
        assert!(is_written(Some(&put(&mut sim, P, b"key"))));
        let (second, term) = leader_and_term(&sim, P).unwrap();
        sim.run(ms(600));
        sim.fill(second);
        assert_eq!(put(&mut sim, P, b"key"), Outcome::Refused(Refusal::StorageFull));
        sim.run(LONG);
        assert_eq!(leader_and_term(&sim, P), Some((second, term)));
    }
}

#[test]
fn who_is_told_to_lead_and_does_not_is_asked_once_a_round() {
    let (mut sim, nodes) = durable(1, 1);
    sim.run(ms(600));
    sim.keep_frames = true;
    // They hear all but the order to take over, which a link loses.
    let orders = |sim: &mut Sim| {
        let frames = std::mem::take(&mut sim.frames).into_values().flatten().flatten();
        frames.filter(is_order).count()
    };
    sim.lose = Some(is_order);
    sim.fill(nodes[0]);
    sim.run(ms(700));
    assert_eq!(orders(&mut sim), 1 + 1);
    // Until then whoever wants to write was to ask again.
    assert_eq!(put_once(&mut sim, nodes[0]), Outcome::Refused(Refusal::NotLeader { leader: None }));
    sim.run(ms(400));
    assert_eq!(put_once(&mut sim, nodes[0]), Outcome::Refused(Refusal::StorageFull));
    sim.run(Duration::from_secs(4));
    assert_eq!(orders(&mut sim), 0);
    assert!(is_read(&mut sim, P, b"key"));
    sim.lose = None;
    sim.run(Duration::from_secs(3));
    assert!(is_written(Some(&put(&mut sim, P, b"key"))));
}

fn is_order(message: &crate::replication::GroupMessage) -> bool {
    use crate::replication::{Body, RaftKind};
    matches!(&message.body, Body::Raft(raft) if raft.kind == RaftKind::TimeoutNow)
}

fn put_once(sim: &mut Sim, at: NodeId) -> Outcome {
    let tag = sim.put(at, P, b"key", b"value");
    sim.outcomes[&tag].clone()
}

#[test]
fn a_full_disk_leads_if_nobody_else_can() {
    for seed in 0..20 {
        let (mut sim, nodes) = durable(seed, 4);
        // The best placed survivor is full, the other one is not.
        sim.driver(nodes[1]).set_full(true);
        sim.crash(nodes[0]);
        for partition in (0..4).map(PartitionId) {
            sim.run_while(ms(600), |sim| sim.leader(partition).is_none());
            assert_eq!(sim.leader(partition), Some(nodes[2]));
            sim.run(ms(600));
            // They are two voters of three, and one is full.
            assert_eq!(put(&mut sim, partition, b"key"), Outcome::Refused(Refusal::StorageFull));
            assert!(is_read(&mut sim, partition, b"key"));
        }
        // Both are.
        sim.driver(nodes[2]).set_full(true);
        sim.restart(nodes[0]);
        sim.run(ms(2000));
        sim.crash(nodes[2]);
        sim.driver(nodes[0]).set_full(true);
        for partition in (0..4).map(PartitionId) {
            sim.run_while(ms(2500), |sim| sim.leader(partition).is_none());
            let leader = sim.leader(partition).unwrap();
            assert_eq!(sim.status(leader, partition).unwrap().role, Role::Leader);
            assert!(is_read(&mut sim, partition, b"key"));
        }
    }
}

#[test]
fn a_new_leader_on_full_disks_is_read_from_although_it_begins_with_what_others_had_no_room_for() {
    for seed in 0..20 {
        let (mut sim, nodes) = durable(seed, 1);
        assert!(is_written(Some(&put(&mut sim, P, b"key"))));
        sim.driver(nodes[1]).set_full(true);
        sim.driver(nodes[2]).set_full(true);
        // The leader has not heard of it.
        let unfinished = sim.put(nodes[0], P, b"other", b"value");
        sim.run(ms(600));
        assert_eq!(sim.outcomes.get(&unfinished), None, "nobody else had room");
        sim.driver(nodes[0]).set_full(true);
        // Whose log is longest leads: of those that are left, only one can.
        sim.crash(nodes[0]);
        sim.crash(nodes[2]);
        sim.restart(nodes[0]);
        sim.driver(nodes[0]).set_full(true);
        sim.run_while(ms(5000), |sim| sim.leader(P) != Some(nodes[0]));
        sim.run(ms(1000));
        assert!(is_read(&mut sim, P, b"key"), "seed {seed}");
        assert_eq!(put(&mut sim, P, b"key"), Outcome::Refused(Refusal::StorageFull));
    }
}
