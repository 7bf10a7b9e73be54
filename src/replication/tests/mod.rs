//! The driver in a deterministic world.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chaos;
mod full;
mod history;
mod hostile;
mod recovery;
mod sim;

use std::collections::BTreeSet;
use std::time::Duration;

use history::{BRIEF, COUNT};
use sim::{Sim, ms};

use crate::codec;
use crate::id::{NodeId, PartitionId, SessionId};
use crate::replication::{
    Change, ChangeError, DriverConfig, GroupMessage, Outcome, Output, Refusal, Role, Write,
};
use crate::state_machine::{Answer, Operation, Query};

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
    let mut config = 0;
    // What came before may not be on the disk yet.
    sim.run_while(ms(5000), |sim| {
        config = sim.status(leader, partition).unwrap().config;
        let now = sim.now;
        let result = sim.driver(leader).change(partition, config, change, now);
        sim.settle(leader);
        assert!(matches!(result, Ok(()) | Err(ChangeError::Pending)), "{result:?}");
        result.is_err()
    });
    sim.run_while(ms(5000), |sim| {
        let status = sim.status(leader, partition).unwrap();
        status.config == config || status.changing
    });
}

/// Makes exactly `nodes` the voters; the leader must be among them.
fn grow(sim: &mut Sim, partition: PartitionId, nodes: &[NodeId]) {
    let leader = sim.leader(partition).unwrap();
    let status = sim.status(leader, partition).unwrap();
    let new: Vec<_> = nodes.iter().copied().filter(|node| !status.voters.contains(node)).collect();
    if !new.is_empty() {
        apply_change(sim, partition, &Change::AddLearners(new.clone()));
        sim.run_while(ms(5000), |sim| {
            let status = sim.status(leader, partition).unwrap();
            !status.progress.iter().all(|replica| replica.caught_up)
        });
    }
    let remove: Vec<_> = status.voters.iter().copied().filter(|node| !nodes.contains(node)).collect();
    apply_change(sim, partition, &Change::Replace { promote: new, remove: remove.clone() });
    if !remove.is_empty() {
        // They were voters and are learners now.
        apply_change(sim, partition, &Change::Replace { promote: vec![], remove });
    }
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
    assert_eq!(sim.outcomes[&tag], Outcome::Refused(Refusal::NotLeader { leader: Some(nodes[0]) }));
}

#[test]
fn followers_apply_within_a_tick_what_no_further_entry_tells_them_of() {
    for seed in 0..20 {
        let (mut sim, nodes) = cluster(seed, 1, 3);
        for number in 1..=20u8 {
            sim.put(nodes[0], P, &[number], b"value");
            sim.run(DriverConfig::default().tick + ms(5));
            for node in &nodes {
                assert_eq!(sim.driver(*node).state(P).unwrap().len(), usize::from(number));
            }
        }
    }
}

fn is_written(outcome: Option<&Outcome>) -> bool {
    matches!(outcome, Some(Outcome::Reply(_)))
}

#[test]
fn survivors_take_over_at_once_when_the_leader_is_gone() {
    for seed in 0..20 {
        let (mut sim, nodes) = cluster(seed, 8, 3);
        sim.keep_outcomes = true;
        let pause = sim.seed * 37;
        sim.run(ms(700 + pause));
        sim.crash(nodes[0]);
        let crashed = sim.now;
        for partition in (0..8).map(PartitionId) {
            sim.run_while(ms(200), |sim| {
                let Some(leader) = sim.leader(partition) else {
                    return true;
                };
                let tag = sim.put(leader, partition, b"key", b"value");
                sim.run(ms(4));
                !is_written(sim.outcomes.get(&tag))
            });
        }
        assert!(sim.now.since(crashed) < ms(240), "{:?}", sim.now.since(crashed));
    }
}

/// The followers have lost the leader, the leader knows nothing of it: it must not serve what is old. The world
/// checks every read against what was acknowledged before.
#[test]
fn a_leader_that_was_replaced_without_knowing_serves_nothing_old() {
    for seed in 0..40u64 {
        let (mut sim, nodes) = cluster(seed, 1, 3);
        let old = nodes[0];
        sim.put(old, P, b"key", b"old");
        sim.run(ms(500 + seed * 13));
        sim.get(old, P, b"key");
        sim.run(ms(3));
        // The lease is fresh now.
        let asleep = seed % 2 == 1;
        for other in [nodes[1], nodes[2]] {
            sim.blocked.insert((old, other));
            sim.blocked.insert((other, old));
            sim.schedule(ms(seed % 7), other, sim::Event::Link(old, false));
        }
        let mut taken_over = false;
        for step in 0..1500u64 {
            sim.run(ms(1));
            if asleep && step == 20 {
                sim.nodes.get_mut(&old).unwrap().paused_until = sim.now + ms(400);
            }
            if sim.nodes[&old].paused_until <= sim.now {
                sim.get(old, P, b"key");
            }
            for new in [nodes[1], nodes[2]] {
                if sim.status(new, P).unwrap().role == Role::Leader {
                    taken_over = true;
                    sim.put(new, P, b"key", b"new");
                    sim.get(new, P, b"key");
                }
            }
        }
        assert!(taken_over);
        assert!(sim.counts["reads"] > 100, "{:?}", sim.counts);
    }
}

/// The same with the hand-over of leadership, which overrides promises: its order to campaign comes late.
#[test]
fn no_lease_survives_the_beginning_of_a_transfer() {
    for seed in 0..40u64 {
        let (mut sim, nodes) = cluster(seed, 1, 3);
        let old = nodes[0];
        sim.put(old, P, b"key", b"old");
        sim.run(ms(300));
        sim.get(old, P, b"key");
        sim.run(ms(5));
        let now = sim.now;
        assert!(sim.driver(old).transfer(P, nodes[1], now));
        sim.settle(old);
        // The order to campaign is on its way; that it was followed, the old leader does not hear.
        for other in [nodes[1], nodes[2]] {
            sim.blocked.insert((other, old));
        }
        sim.faults.latency_us = (100, 200 + seed * 100);
        for _ in 0..300 {
            sim.run(ms(1));
            for node in nodes.clone() {
                if sim.status(node, P).unwrap().role == Role::Leader {
                    sim.put(node, P, b"key", b"new");
                    sim.get(node, P, b"key");
                }
            }
        }
    }
}

#[test]
fn leadership_moves_on_request_without_losing_a_proposal() {
    let (mut sim, nodes) = cluster(3, 16, 3);
    sim.keep_outcomes = true;
    let mut tags = Vec::new();
    for partition in (0..16).map(PartitionId) {
        tags.push(sim.put(nodes[0], partition, b"key", b"value"));
    }
    let now = sim.now;
    assert_eq!(sim.driver(nodes[0]).hand_over(&BTreeSet::new(), now), 16);
    sim.settle(nodes[0]);
    sim.run(ms(20));
    for tag in tags {
        assert!(is_written(sim.outcomes.get(&tag)), "{:?}", sim.outcomes.get(&tag));
    }
    for partition in (0..16).map(PartitionId) {
        assert_ne!(sim.leader(partition), Some(nodes[0]));
    }
    // Not to one that cannot.
    let leader = sim.leader(P).unwrap();
    sim.driver(leader).link_down(nodes[0], now);
    sim.settle(leader);
    assert!(!sim.driver(leader).transfer(P, nodes[0], now));
}

#[test]
fn a_transfer_to_a_node_that_goes_is_called_off_at_once() {
    let (mut sim, nodes) = cluster(4, 1, 3);
    sim.keep_outcomes = true;
    sim.run(ms(300));
    let now = sim.now;
    assert!(sim.driver(nodes[0]).transfer(P, nodes[1], now));
    // It goes with the order to campaign.
    sim.crash(nodes[1]);
    sim.run(ms(20));
    let tag = sim.put(nodes[0], P, b"key", b"value");
    sim.run(ms(20));
    assert!(is_written(sim.outcomes.get(&tag)), "{:?}", sim.outcomes.get(&tag));
}

#[test]
fn a_group_grows_and_shrinks_and_keeps_what_it_has() {
    let mut sim = Sim::new(5, 4, DriverConfig::default());
    let a = sim.start(1);
    let b = sim.start(2);
    let c = sim.start(3);
    sim.run(ms(100));
    for (round, nodes) in (0u8..).zip([vec![a, b], vec![a, b, c], vec![a, c], vec![a]]) {
        for partition in (0..4).map(PartitionId) {
            sim.put(a, partition, &[round], b"value");
            grow(&mut sim, partition, &nodes);
        }
        sim.run(ms(50));
        for node in [a, b, c] {
            let held = sim.driver(node).replicas().count();
            assert_eq!(held, if nodes.contains(&node) { 4 } else { 0 }, "{}", sim.describe());
        }
    }
    assert_eq!(sim.driver(a).state(P).unwrap().len(), 4);
    let status = sim.status(a, P).unwrap();
    assert_eq!((status.voters, status.learners, status.changing), (vec![a], vec![], false));
}

#[test]
fn a_change_based_on_another_configuration_is_refused() {
    let (mut sim, nodes) = cluster(5, 1, 2);
    let extra = sim.start(3);
    let config = sim.status(nodes[0], P).unwrap().config;
    let now = sim.now;
    let add = Change::AddLearners(vec![extra]);
    let leader = sim.driver(nodes[0]);
    assert_eq!(leader.change(P, config - 1, &add, now), Err(ChangeError::Stale { current: config }));
    assert_eq!(leader.change(P, config, &add, now), Ok(()));
    assert_eq!(leader.change(P, config, &add, now), Err(ChangeError::Pending));
    sim.settle(nodes[0]);
    sim.run(ms(1));
    let replace = |promote: Vec<_>, remove: Vec<_>| Change::Replace { promote, remove };
    let config = sim.run_while(ms(100), |sim| sim.status(nodes[0], P).unwrap().learners.is_empty());
    assert!(config < ms(10));
    let config = sim.status(nodes[0], P).unwrap().config;
    let now = sim.now;
    let leader = sim.driver(nodes[0]);
    assert_eq!(
        leader.change(P, config, &replace(vec![extra], vec![]), now),
        Err(ChangeError::NotCaughtUp(extra))
    );
    assert_eq!(
        leader.change(P, config, &replace(vec![], vec![nodes[0]]), now),
        Err(ChangeError::RemovesLeader)
    );
    assert_eq!(leader.change(P, config, &add, now), Err(ChangeError::AlreadyThere(extra)));
    assert_eq!(sim.driver(nodes[1]).change(P, config, &add, now), Err(ChangeError::NotLeader));
}

#[test]
fn a_newcomer_gets_megabytes_in_pieces() {
    for (seed, loss) in [(1, 0.0), (2, 0.15)] {
        let mut sim = Sim::new(seed, 1, DriverConfig::default());
        let a = sim.start(1);
        sim.run(ms(100));
        // More than one message may ever be.
        for number in 0..5u8 {
            sim.put(a, P, &[number], &vec![number; 1024 * 1024]);
        }
        assert_eq!(sim.counts["writes"], 5);
        assert!(sim.driver(a).state(P).unwrap().snapshot().len() > codec::MAX_MESSAGE_BYTES);
        let b = sim.start(2);
        sim.faults.loss = loss;
        sim.keep_frames = true;
        let config = sim.status(a, P).unwrap().config;
        let now = sim.now;
        sim.driver(a).change(P, config, &Change::AddLearners(vec![b]), now).unwrap();
        sim.settle(a);
        sim.run_while(ms(9_000), |sim| {
            !sim.status(a, P).unwrap().progress.iter().any(|replica| replica.caught_up)
        });
        assert_eq!(sim.driver(b).state(P).unwrap().len(), 5);
        assert_eq!(sim.driver(b).state(P).cloned(), sim.driver(a).state(P).cloned());
        let frames = &sim.frames[&(a, b)];
        let weight = |frame: &Vec<GroupMessage>| frame.iter().map(GroupMessage::weight).sum::<usize>();
        assert!(frames.iter().map(weight).max().unwrap() < 2 * 1024 * 1024);
        assert!(sim.counts["snapshot frames"] >= 4);
    }
}

#[test]
fn a_minority_says_so_at_once_and_serves_what_it_has() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.keep_outcomes = true;
    sim.put(nodes[0], P, b"key", b"value");
    sim.run(ms(300));
    let now = sim.now;
    let pending = sim.get(nodes[0], P, b"key");
    for other in [nodes[1], nodes[2]] {
        sim.blocked.insert((nodes[0], other));
        sim.driver(nodes[0]).link_down(other, now);
        sim.driver(other).link_down(nodes[0], now);
        sim.settle(other);
    }
    sim.driver(nodes[1]).link_down(nodes[2], now);
    sim.settle(nodes[0]);
    let refused = Outcome::Refused(Refusal::NoQuorum);
    assert!(sim.outcomes.contains_key(&pending));
    for node in [nodes[0], nodes[1]] {
        let put = sim.put(node, P, b"key", b"value");
        let get = sim.get(node, P, b"key");
        assert_eq!((&sim.outcomes[&put], &sim.outcomes[&get]), (&refused, &refused));
        let query = Query::Get { key: b"key".to_vec() };
        sim.driver(node).read_stale(P, 999, &query);
        sim.settle(node);
        assert!(matches!(sim.outcomes[&999], Outcome::Answer { stale: true, .. }));
    }
}

/// The links stand, but nothing gets through: what was asked gets an answer that does not guess.
#[test]
fn a_leader_that_lost_its_quorum_silently_answers_what_it_knows() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.keep_outcomes = true;
    sim.run(ms(500));
    // Nor do the others reach each other, so that nobody follows it.
    for (from, to) in [(0, 1), (0, 2), (1, 2), (2, 1)] {
        sim.blocked.insert((nodes[from], nodes[to]));
    }
    sim.run(ms(200));
    let puts: Vec<_> = (0..5000).map(|_| sim.put(nodes[0], P, b"key", b"value")).collect();
    let get = sim.get(nodes[0], P, b"key");
    let wait = sim.wait(nodes[0], P, b"key", None);
    sim.run(ms(3000));
    let unknown = puts.iter().filter(|tag| sim.outcomes[tag] == Outcome::Unknown).count();
    let overloaded = Outcome::Refused(Refusal::Overloaded);
    let refused = puts.iter().filter(|tag| sim.outcomes[tag] == overloaded).count();
    assert_eq!((unknown, refused), (4096, 904));
    assert_eq!(sim.outcomes[&get], Outcome::Refused(Refusal::NoQuorum));
    assert_eq!(sim.outcomes[&wait], Outcome::Refused(Refusal::NoQuorum));
}

#[test]
fn a_removed_replica_destroys_itself_even_if_it_was_away() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.run(ms(500));
    let gone = nodes[2];
    for other in [nodes[0], nodes[1]] {
        sim.blocked.insert((other, gone));
        sim.blocked.insert((gone, other));
    }
    sim.run(ms(1200));
    grow(&mut sim, P, &nodes[..2]);
    sim.run(ms(8_000));
    assert!(sim.status(gone, P).is_some());
    sim.blocked.clear();
    let healed = sim.now;
    sim.run_while(ms(5_500), |sim| sim.status(gone, P).is_some());
    assert!(sim.now.since(healed) < ms(5_500));
    assert_eq!(sim.status(nodes[0], P).unwrap().term, 2, "it disturbed the others");
}

#[test]
fn the_notice_of_a_removal_is_repeated_while_it_may_be_lost() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    let gone = nodes[2];
    for other in [nodes[0], nodes[1]] {
        sim.blocked.insert((other, gone));
    }
    grow(&mut sim, P, &nodes[..2]);
    sim.run(ms(300));
    assert!(sim.status(gone, P).is_some());
    sim.blocked.clear();
    // Sooner than it would ask or campaign.
    sim.run_while(ms(60), |sim| sim.status(gone, P).is_some());
}

/// A learner never campaigns, so nobody would tell it.
#[test]
fn a_learner_that_was_removed_while_it_was_away_asks() {
    let (mut sim, nodes) = cluster(1, 1, 2);
    let gone = sim.start(3);
    apply_change(&mut sim, P, &Change::AddLearners(vec![gone]));
    sim.run(ms(500));
    for other in &nodes {
        sim.blocked.insert((*other, gone));
    }
    apply_change(&mut sim, P, &Change::Replace { promote: vec![], remove: vec![gone] });
    // The leader no longer repeats its notice.
    sim.run(ms(4000));
    assert!(sim.status(gone, P).is_some());
    sim.blocked.clear();
    sim.run_while(ms(5500), |sim| sim.status(gone, P).is_some());
}

/// The old leader alone knew that the write was committed. The new one has it in its log, but must not be read
/// before it knows, too: before an entry of its own term is applied.
#[test]
fn a_new_leader_is_not_read_before_it_knows_what_was_committed() {
    for seed in 0..30u64 {
        let (mut sim, nodes) = cluster(seed, 1, 3);
        sim.put(nodes[0], P, b"key", b"old");
        sim.run(ms(400 + seed * 11));
        let written = sim.counts["writes"];
        sim.put(nodes[0], P, b"key", b"new");
        // What is under way arrives, but no word of its commitment.
        for other in &nodes[1..] {
            sim.blocked.insert((nodes[0], *other));
        }
        while sim.counts["writes"] == written {
            sim.run(Duration::from_micros(50));
        }
        sim.crash(nodes[0]);
        for survivor in &nodes[1..] {
            let version = sim.driver(*survivor).state(P).unwrap().version(b"key").unwrap().0;
            assert!(version < sim.history.floor(P, b"key"));
        }
        let reads = sim.counts.get("reads").copied().unwrap_or(0);
        sim.run_while(ms(400), |sim| {
            sim.run(Duration::from_micros(100));
            for node in &nodes[1..] {
                sim.get(*node, P, b"key");
            }
            sim.counts.get("reads").copied().unwrap_or(0) < reads + 20
        });
    }
}

#[test]
fn a_retry_after_an_unknown_outcome_is_applied_once() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.keep_outcomes = true;
    sim.run(ms(500));
    let now = sim.now;
    let increment = Operation::Increment { key: COUNT.to_vec(), by: 1 };
    let write = sim.history.begin(SessionId(7), P, increment, now);
    sim.attempt(nodes[0], write);
    // It reaches the others; that they have it, nobody hears.
    for other in &nodes[1..] {
        sim.blocked.insert((*other, nodes[0]));
        sim.schedule(ms(10), *other, sim::Event::Link(nodes[0], false));
    }
    sim.run_while(ms(5000), |sim| !sim.counts.contains_key("unknown"));
    let leader = sim.leader(P).unwrap();
    assert_ne!(leader, nodes[0]);
    sim.attempt(leader, write);
    sim.attempt(leader, write);
    sim.run(ms(50));
    assert_eq!((sim.counts["increments"], sim.counts["answered again"]), (1, 1));
    sim.history.check_count(P, 1);
    let answer = sim.driver(leader).state(P).unwrap().query(&Query::Get { key: COUNT.to_vec() });
    assert!(matches!(answer, Answer::Entry(Some(entry)) if entry.value == b"1"));
}

#[test]
fn a_wait_ends_when_the_key_expires() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.run(ms(300));
    let now = sim.now;
    let put = Operation::Put { key: BRIEF.to_vec(), value: vec![1], ttl_ms: Some(400) };
    let write = sim.history.begin(SessionId(7), P, put, now);
    sim.attempt(nodes[0], write);
    sim.run(ms(10));
    let seen = sim.driver(nodes[0]).state(P).unwrap().version(BRIEF);
    assert!(seen.is_some());
    sim.wait(nodes[0], P, BRIEF, seen);
    // Not before: the history checks that. And soon after, though nobody writes.
    sim.run_while(ms(500), |sim| !sim.counts.contains_key("waits"));
    assert_eq!(sim.counts["absent"], 1);
}

/// The key was written after an idle time, and the new leader applies that only when it leads already: the time to
/// live must not have the idle time added to it.
#[test]
fn partition_time_does_not_stand_still_after_a_take_over() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.put(nodes[0], P, b"key", b"value");
    sim.run(ms(10_000));
    let now = sim.now;
    let put = Operation::Put { key: BRIEF.to_vec(), value: vec![1], ttl_ms: Some(400) };
    let write = sim.history.begin(SessionId(7), P, put, now);
    sim.attempt(nodes[0], write);
    // What is under way arrives, but no word of its commitment.
    for other in &nodes[1..] {
        sim.blocked.insert((nodes[0], *other));
    }
    while !sim.counts.contains_key("session writes") {
        sim.run(Duration::from_micros(50));
    }
    sim.crash(nodes[0]);
    assert_eq!(sim.driver(nodes[1]).state(P).unwrap().version(BRIEF), None);
    sim.run_while(ms(400), |sim| sim.leader(P).is_none());
    sim.run(ms(20));
    let leader = sim.leader(P).unwrap();
    let seen = sim.driver(leader).state(P).unwrap().version(BRIEF);
    assert!(seen.is_some());
    sim.run_while(ms(600), |sim| sim.driver(leader).state(P).unwrap().version(BRIEF).is_some());
}

/// A leader that reaches the others and hears none of them cannot be told that something is still
/// wanted: what it believes of the time must not end leases under the next leader.
#[test]
fn partition_time_stands_still_while_a_leader_hears_no_quorum() {
    for seed in 0..20 {
        let (mut sim, nodes) = cluster(seed, 1, 3);
        sim.run(ms(300));
        let now = sim.now;
        let put = Operation::Put { key: BRIEF.to_vec(), value: vec![1], ttl_ms: Some(900) };
        let write = sim.history.begin(SessionId(7), P, put, now);
        sim.attempt(nodes[0], write);
        sim.run(ms(20));
        for other in &nodes[1..] {
            sim.blocked.insert((*other, nodes[0]));
        }
        sim.run_while(ms(6000), |sim| nodes[1..].iter().all(|node| !leads(sim, *node)));
        let next = *nodes[1..].iter().find(|node| leads(&sim, **node)).unwrap();
        sim.run(ms(10));
        assert!(sim.now.since(now) > ms(900));
        assert!(
            sim.driver(next).state(P).unwrap().version(BRIEF).is_some(),
            "ended by a leader that was alone"
        );
        sim.run_while(ms(1000), |sim| sim.driver(next).state(P).unwrap().version(BRIEF).is_some());
    }
}

/// What is said to a process that stands still is heard only when it goes on: it must not end leases before.
#[test]
fn partition_time_stands_still_while_its_leader_does() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.run(ms(300));
    let now = sim.now;
    let put = Operation::Put { key: BRIEF.to_vec(), value: vec![1], ttl_ms: Some(900) };
    let write = sim.history.begin(SessionId(7), P, put, now);
    sim.attempt(nodes[0], write);
    sim.run(ms(200));
    sim.nodes.get_mut(&nodes[0]).unwrap().paused_until = sim.now + ms(800);
    sim.run(ms(850));
    assert!(leads(&sim, nodes[0]), "it was replaced");
    assert!(sim.driver(nodes[0]).state(P).unwrap().version(BRIEF).is_some());
    sim.run_while(ms(900), |sim| sim.driver(nodes[0]).state(P).unwrap().version(BRIEF).is_some());
}

fn leads(sim: &Sim, node: NodeId) -> bool {
    sim.status(node, P).is_some_and(|status| status.role == Role::Leader)
}

#[test]
fn late_messages_do_not_bring_a_destroyed_replica_back() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.keep_frames = true;
    sim.put(nodes[0], P, b"key", b"value");
    sim.run(ms(600));
    grow(&mut sim, P, &nodes[..2]);
    sim.run(ms(50));
    assert!(sim.status(nodes[2], P).is_none());
    let late = sim.frames[&(nodes[0], nodes[2])].clone();
    assert!(late.len() > 3);
    for frame in late {
        let now = sim.now;
        sim.driver(nodes[2]).receive(nodes[0], frame, now);
        sim.settle(nodes[2]);
        assert!(sim.status(nodes[2], P).is_none());
    }
    // Under a new id it is welcome.
    grow(&mut sim, P, &nodes);
    assert_eq!(sim.status(nodes[2], P).unwrap().replica.0, 4);
}

#[test]
fn a_wait_ends_with_the_next_write_of_its_key() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    sim.keep_outcomes = true;
    let absent = sim.wait(nodes[0], P, b"key", None);
    let called_off = sim.wait(nodes[0], P, b"key", None);
    sim.run(ms(300));
    assert!(!sim.outcomes.contains_key(&absent));
    sim.driver(nodes[0]).cancel(called_off);
    sim.put(nodes[0], P, b"other", b"value");
    sim.run(ms(10));
    assert!(!sim.outcomes.contains_key(&absent));
    sim.put(nodes[0], P, b"key", b"value");
    sim.run(ms(10));
    assert!(matches!(sim.outcomes[&absent], Outcome::Answer { stale: false, .. }));
    assert!(!sim.outcomes.contains_key(&called_off));
    let again = sim.wait(nodes[0], P, b"key", None);
    sim.run(ms(5));
    assert!(sim.outcomes.contains_key(&again), "the key is not as it was seen");
    let version = sim.driver(nodes[0]).state(P).unwrap().version(b"key");
    let stranded = sim.wait(nodes[0], P, b"key", version);
    let now = sim.now;
    sim.driver(nodes[0]).hand_over(&BTreeSet::new(), now);
    sim.settle(nodes[0]);
    sim.run(ms(20));
    assert!(matches!(sim.outcomes[&stranded], Outcome::Refused(Refusal::NotLeader { .. })));
}

#[test]
fn the_log_stays_bounded_and_is_longer_where_the_state_is_large() {
    let (mut sim, nodes) = cluster(1, 1, 3);
    let write = |sim: &mut Sim, count: u32, key: fn(u32) -> u8, bytes: usize| {
        for round in 0..count {
            let mut value = vec![0; bytes];
            value[..4].copy_from_slice(&round.to_be_bytes());
            sim.put(nodes[0], P, &[key(round)], &value);
            if round % 100 == 0 {
                sim.run(ms(2));
            }
        }
        sim.run(ms(600));
        nodes.iter().map(|node| sim.status(*node, P).unwrap().log_entries).collect::<Vec<_>>()
    };
    // Of a state of a few bytes, 8 KiB.
    let lengths = write(&mut sim, 20_000, |_| 1, 4);
    assert!(lengths.iter().all(|length| (30..100).contains(length)), "{lengths:?}");
    // A state of a megabyte.
    write(&mut sim, 64, |round| u8::try_from(round).unwrap_or(0), 16 * 1024);
    let lengths = write(&mut sim, 20_000, |_| 1, 4);
    assert!(lengths.iter().all(|length| (700..=1024).contains(length)), "{lengths:?}");
    assert!(!sim.counts.contains_key("refused"));
}

#[test]
fn idle_groups_share_frames() {
    let (mut sim, nodes) = cluster(1, 64, 3);
    // Leaderships that began at different times still beat together.
    let now = sim.now;
    sim.driver(nodes[0]).transfer(P, nodes[1], now);
    sim.settle(nodes[0]);
    sim.run(ms(630));
    let now = sim.now;
    sim.driver(nodes[1]).transfer(P, nodes[0], now);
    sim.settle(nodes[1]);
    sim.run(ms(600));
    sim.keep_frames = true;
    sim.run(ms(10_000));
    for other in [nodes[1], nodes[2]] {
        let frames = &sim.frames[&(nodes[0], other)];
        assert!(frames.len() <= 40, "{}", frames.len());
        // Now and then the core adds its own.
        assert!(frames.iter().filter(|frame| frame.len() == 64).count() >= 20);
    }
}

#[test]
fn survivors_take_over_at_once_also_when_one_of_them_was_away() {
    for seed in [5, 21] {
        let config = DriverConfig { durable: true, ..DriverConfig::default() };
        let (mut sim, nodes) = cluster_with(seed, 8, 3, config);
        sim.keep_outcomes = true;
        for (victim, next) in [(0, 1), (1, 2), (2, 0)] {
            let (victim, next) = (nodes[victim], nodes[next]);
            let write_to_all = |sim: &mut Sim| {
                for partition in (0..8).map(PartitionId) {
                    if let Some(leader) = sim.leader(partition) {
                        sim.put(leader, partition, b"key", b"value");
                    }
                }
                sim.run(ms(1));
            };
            for _ in 0..50 {
                write_to_all(&mut sim);
            }
            sim.crash(victim);
            for _ in 0..100 {
                write_to_all(&mut sim);
            }
            sim.run(ms(300));
            sim.restart(victim);
            for _ in 0..(50 + seed * 20) {
                write_to_all(&mut sim);
            }
            sim.crash(next);
            let crashed = sim.now;
            for partition in (0..8).map(PartitionId) {
                sim.run_while(ms(3000), |sim| {
                    let Some(leader) = sim.leader(partition) else {
                        return true;
                    };
                    let tag = sim.put(leader, partition, b"key", b"value");
                    sim.run(ms(10));
                    !is_written(sim.outcomes.get(&tag))
                });
            }
            assert!(sim.now.since(crashed) < ms(600), "{:?}", sim.now.since(crashed));
            sim.restart(next);
            sim.run(ms(1000));
        }
    }
}

#[test]
fn a_state_that_is_kept_to_cut_the_log_brings_along_what_is_behind_it() {
    let config = DriverConfig { durable: true, ..DriverConfig::default() };
    let (mut sim, nodes) = cluster_with(3, 1, 3, config);
    sim.run(ms(500));
    // Nobody hears the leader, and nothing that it proposes is decided.
    let leader = sim.leader(P).unwrap();
    for other in nodes.iter().filter(|node| **node != leader) {
        sim.blocked.insert((leader, *other));
    }
    for number in 0..5u8 {
        sim.put(leader, P, &[number], b"undecided");
    }
    sim.run(ms(20));
    let status = sim.status(leader, P).unwrap();
    assert!(status.last.0 >= status.applied + 5);
    sim.driver(leader).keep_state(P);
    let writes: Vec<_> = std::iter::from_fn(|| sim.driver(leader).poll_output())
        .filter_map(|output| match output {
            Output::Persist { writes, .. } => Some(writes),
            _ => None,
        })
        .flatten()
        .collect();
    let [Write::State { state, .. }, Write::Append { first, entries, .. }] = &writes[..] else {
        panic!("{writes:?}");
    };
    assert_eq!((state.index, *first), (status.applied, status.applied + 1));
    assert_eq!(first + entries.len() as u64 - 1, status.last.0);
    // It is what was there already.
    let mut stored = sim.disks[&leader].stored.clone();
    let before = stored.replicas[&P].clone();
    for write in writes {
        stored.apply(write).unwrap();
    }
    let after = &stored.replicas[&P];
    assert_eq!((after.hard_state, after.last()), (before.hard_state, before.last()));
    let behind = before.entries.len() - after.entries.len();
    assert!(before.entries.iter().skip(behind).eq(&after.entries));
}
