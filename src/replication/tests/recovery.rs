//! A majority that is gone for good, replicas that lost something, and those who come back to find their group gone
//! on without them.

use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::sim::{Sim, ms};
use super::{P, apply_change, cluster_with, grow};
use crate::id::{FencingToken, NodeId, PartitionId, SessionId};
use crate::replication::{Change, ChangeError, Driver, DriverConfig, LogEntry, Outcome, RecoverError, Role};
use crate::state_machine::{Answer, Claim, LockMode, Operation, Reply};

/// Nothing that was handed out before a recovery is as high.
const LEAP: u64 = 1 << 40;
/// A replica that heard a leader within so long is not recovered.
const LEADERLESS: u64 = 5_000;
/// Longer than it takes a replica without a leader to ask whether it is still in.
const ASKED: u64 = 5_500;

/// Three nodes with disks, voters of one partition.
fn three(seed: u64) -> (Sim, [NodeId; 3]) {
    let (mut sim, nodes) =
        cluster_with(seed, 1, 3, DriverConfig { durable: true, ..DriverConfig::default() });
    sim.keep_outcomes = true;
    (sim, nodes.try_into().unwrap())
}

/// Writes that were acknowledged, and are on every node.
fn fill(sim: &mut Sim, keys: std::ops::Range<u8>) {
    let leader = sim.leader(P).unwrap();
    let before = sim.counts.get("writes").copied().unwrap_or(0);
    for key in keys.clone() {
        sim.put(leader, P, &[key], &[b'v', key]);
        sim.run(ms(1));
    }
    sim.run_while(ms(2000), |sim| {
        sim.counts.get("writes").copied().unwrap_or(0) < before + keys.len() as u64
    });
    sim.run(ms(600));
}

/// Every key is read, linearizably, as soon as that is possible; the history knows which versions are too old.
fn read_all(sim: &mut Sim, keys: std::ops::Range<u8>) {
    for key in keys {
        let mut tag = None;
        sim.run_while(ms(3000), |sim| {
            let answered =
                tag.is_some_and(|tag| matches!(sim.outcomes.get(&tag), Some(Outcome::Answer { .. })));
            let refused = tag.is_none_or(|tag| matches!(sim.outcomes.get(&tag), Some(Outcome::Refused(_))));
            if refused && let Some(leader) = sim.leader(P) {
                tag = Some(sim.get(leader, P, &[key]));
            }
            !answered
        });
        let Outcome::Answer { answer: Answer::Entry(entry), .. } = &sim.outcomes[&tag.unwrap()] else {
            panic!("not an entry");
        };
        assert_eq!(entry.as_ref().map(|entry| &entry.value[..]), Some(&[b'v', key][..]));
    }
}

/// Takes a lock that nobody has; returns its token.
fn lock(sim: &mut Sim, at: NodeId, number: u64) -> FencingToken {
    let claim = Claim { session: SessionId(99), number };
    let (name, note) = (number.to_be_bytes().to_vec(), Vec::new());
    let acquire =
        Operation::Acquire { name, claim, mode: LockMode::Exclusive, lease_ms: 60_000, wait: false, note };
    let (now, tag) = (sim.now, 1 << 40 | number);
    sim.driver(at).propose(P, tag, None, acquire, now);
    sim.settle(at);
    sim.run_while(ms(2000), |sim| !sim.outcomes.contains_key(&tag));
    match &sim.outcomes[&tag] {
        Outcome::Reply(Reply::Granted { token, .. }) => *token,
        other => panic!("{other:?}"),
    }
}

fn recover(sim: &mut Sim, at: NodeId) -> Result<(), RecoverError> {
    let now = sim.now;
    let result = sim.driver(at).recover(P, now);
    sim.settle(at);
    result
}

fn version(sim: &mut Sim, at: NodeId, key: u8) -> u64 {
    sim.driver(at).state(P).unwrap().version(&[key]).unwrap().0
}

/// Whoever leads at `at` adds `other`, as soon as it can.
fn want_in(sim: &mut Sim, at: NodeId, other: NodeId) {
    sim.run_while(ms(1000), |sim| {
        let config = sim.status(at, P).unwrap().config;
        let now = sim.now;
        let result = sim.driver(at).change(P, config, &Change::AddLearners(vec![other]), now);
        sim.settle(at);
        result == Err(ChangeError::Pending)
    });
}

fn leads(sim: &Sim, node: NodeId) -> bool {
    sim.leader(P) == Some(node)
}

fn same_state(sim: &mut Sim, nodes: &[NodeId]) {
    let first = sim.driver(nodes[0]).state(P).cloned();
    assert!(first.is_some());
    for node in nodes {
        assert_eq!(sim.driver(*node).state(P).cloned(), first, "{node:?}");
    }
}

#[test]
fn a_survivor_goes_on_with_all_that_reached_it() {
    for seed in 0..12 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..20);
        let token = lock(&mut sim, a, 1);
        let highest = version(&mut sim, a, 19);
        sim.run(ms(600));
        // The leader, a follower, and one that has just come back itself.
        let survivor = [a, b, c][usize::try_from(seed % 3).unwrap()];
        let others: Vec<_> = [a, b, c].into_iter().filter(|node| *node != survivor).collect();
        for node in &others {
            sim.crash(*node);
        }
        if seed % 4 == 0 {
            sim.crash(survivor);
            sim.restart(survivor);
        }
        sim.run(ms(LEADERLESS));
        assert!(sim.leader(P).is_none());
        assert_eq!(recover(&mut sim, survivor), Ok(()));
        assert_eq!(sim.status(survivor, P).unwrap().voters, [survivor]);
        sim.run_while(ms(1000), |sim| !leads(sim, survivor));

        // Everything is there, writes go on, and nothing is handed out twice.
        read_all(&mut sim, 0..20);
        let later = lock(&mut sim, survivor, 2);
        assert!(later > token && later.0 > LEAP, "{later:?} after {token:?}");
        fill(&mut sim, 20..30);
        let leapt = version(&mut sim, survivor, 20);
        assert!(leapt > highest && leapt > LEAP);

        // The new generation is on the disk.
        sim.crash(survivor);
        sim.run(ms(50));
        sim.restart(survivor);
        sim.run_while(ms(3000), |sim| !leads(sim, survivor));
        read_all(&mut sim, 0..30);

        // An old member is told, and begins anew.
        sim.restart(others[0]);
        assert_eq!(sim.driver(others[0]).state(P).unwrap().len(), 20);
        sim.run_while(ms(ASKED), |sim| sim.status(others[0], P).is_some());
        grow(&mut sim, P, &[survivor, others[0]]);
        sim.run(ms(600));
        same_state(&mut sim, &[survivor, others[0]]);
        fill(&mut sim, 30..31);
        let last = version(&mut sim, survivor, 30);
        assert!(last > leapt);

        // And its disk knows nothing of the old generation any more.
        sim.crash(others[0]);
        sim.restart(others[0]);
        assert!(sim.status(others[0], P).unwrap().replica.0 > u64::from(u32::MAX));
        read_all(&mut sim, 0..31);
    }
}

/// Both that were given up come back on the far side of a cut, and are a majority of the old group.
#[test]
fn an_older_generation_gives_way_even_if_it_leads_itself() {
    for seed in 0..12 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..10);
        sim.crash(b);
        sim.crash(c);
        sim.run(ms(LEADERLESS));
        assert_eq!(recover(&mut sim, a), Ok(()));
        sim.run_while(ms(1000), |sim| !leads(sim, a));
        fill(&mut sim, 10..20);

        for other in [b, c] {
            sim.blocked.insert((a, other));
            sim.blocked.insert((other, a));
            sim.restart(other);
        }
        let is_leader = |sim: &Sim, node| sim.status(node, P).is_some_and(|s| s.role == Role::Leader);
        sim.run_while(ms(3000), |sim| !is_leader(sim, b) && !is_leader(sim, c));
        assert!(is_leader(&sim, a), "the new one goes on meanwhile");
        sim.blocked.clear();
        sim.run_while(ms(ASKED + 1000), |sim| sim.status(b, P).is_some() || sim.status(c, P).is_some());

        grow(&mut sim, P, &[a, b, c]);
        sim.run(ms(600));
        same_state(&mut sim, &[a, b, c]);
        read_all(&mut sim, 0..20);
        assert_eq!(sim.driver(c).state(P).unwrap().len(), 20);
    }
}

/// Somebody recovers on both sides of a cut: one of the two must give way, and always the same.
#[test]
fn of_two_new_generations_one_gives_way() {
    for seed in 0..6 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..10);
        sim.crash(c);
        sim.checks = false;
        for (from, to) in [(a, b), (b, a)] {
            sim.blocked.insert((from, to));
            sim.schedule(ms(1), from, super::sim::Event::Link(to, false));
        }
        sim.run(ms(LEADERLESS + 100));
        assert_eq!(recover(&mut sim, a), Ok(()));
        assert_eq!(recover(&mut sim, b), Ok(()));
        sim.run(ms(500));
        let ids = [a, b].map(|node| sim.status(node, P).unwrap().replica);
        let (stays, goes) = if ids[0] > ids[1] { (a, b) } else { (b, a) };
        sim.blocked.clear();
        for (from, to) in [(a, b), (b, a)] {
            sim.schedule(ms(1), from, super::sim::Event::Link(to, true));
        }
        sim.run(ms(10));
        // Both want the other one in, as the ring does.
        want_in(&mut sim, a, b);
        want_in(&mut sim, b, a);
        sim.run(ms(2000));
        let status = sim.status(goes, P).unwrap();
        assert_eq!((status.role, status.leader), (Role::Learner, Some(stays)), "{}", sim.describe());
        assert_eq!(sim.status(stays, P).unwrap().role, Role::Leader);
    }
}

#[test]
fn it_is_refused_while_a_majority_can_decide() {
    for seed in 0..6 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..5);
        for node in [a, b, c] {
            assert_eq!(recover(&mut sim, node), Err(RecoverError::HasQuorum));
        }
        sim.crash(a);
        // In the middle of the failover, and after it.
        for _ in 0..200 {
            sim.run(ms(7));
            assert_eq!(recover(&mut sim, b), Err(RecoverError::HasQuorum));
            assert_eq!(recover(&mut sim, c), Err(RecoverError::HasQuorum));
        }
        let leader = sim.leader(P).unwrap();
        assert!(sim.status(leader, P).unwrap().replica.0 <= 3);
        read_all(&mut sim, 0..5);
        let now = sim.now;
        assert_eq!(sim.driver(b).recover_empty(P, 0, now), Err(RecoverError::NotEmpty));
        let stranger = sim.start(9);
        assert_eq!(recover(&mut sim, stranger), Err(RecoverError::NoReplica));
    }
}

/// Removes a replica and takes its node in again, as the leader's node does with one that says it is lost.
fn replace_lost(sim: &mut Sim, lost: NodeId, all: &[NodeId]) {
    let others: Vec<_> = all.iter().copied().filter(|node| *node != lost).collect();
    sim.run_while(ms(2000), |sim| {
        let Some(leader) = sim.leader(P) else { return true };
        let progress = sim.status(leader, P).unwrap().progress;
        !progress.iter().any(|replica| replica.node == lost && replica.lost)
    });
    grow(sim, P, &others);
    sim.run_while(ms(ASKED), |sim| sim.status(lost, P).is_some());
    grow(sim, P, all);
}

#[test]
fn a_replica_that_lost_something_takes_no_part_and_is_replaced() {
    for seed in 0..12 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..20);
        sim.crash(c);
        fill(&mut sim, 20..25);
        sim.restart_damaged(c, |stored| {
            let replica = stored.replicas.get_mut(&P).unwrap();
            match seed % 3 {
                0 => replica.damaged = true,
                1 => {
                    replica.entries.pop_front();
                    replica.first += 1;
                }
                _ => {
                    let state = replica.state.as_mut().unwrap();
                    let middle = state.data.len() / 2;
                    state.data[middle] ^= 1;
                }
            }
        });
        let status = sim.status(c, P).unwrap();
        assert!(status.damaged && !status.has_quorum && status.role == Role::Learner);
        assert!(sim.driver(c).state(P).is_none(), "what it has is not served");
        replace_lost(&mut sim, c, &[a, b, c]);
        sim.run(ms(600));
        assert!(!sim.status(c, P).unwrap().damaged);
        same_state(&mut sim, &[a, b, c]);

        // It counts again: with it alone the others' writes go on.
        sim.crash(a);
        sim.run_while(ms(3000), |sim| sim.leader(P).is_none());
        fill(&mut sim, 25..30);
        read_all(&mut sim, 0..30);
        sim.crash(c);
        sim.restart(c);
    }
}

/// Its vote would count, and its log is not what it said.
#[test]
fn one_that_lost_something_does_not_vote_even_if_it_is_needed() {
    for seed in 0..6 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..5);
        sim.crash(c);
        sim.restart_damaged(c, |stored| stored.replicas.get_mut(&P).unwrap().damaged = true);
        sim.crash(a);
        sim.run(ms(10_000));
        assert_eq!(sim.leader(P), None);
        assert!(!sim.status(b, P).unwrap().has_quorum);
        // When the third is back they are enough.
        sim.restart(a);
        read_all(&mut sim, 0..5);
    }
}

/// Two of three are damaged and the sound one never comes back: what follows on a damaged one's state is taken, up
/// to the first entry that was lost.
#[test]
fn a_damaged_replica_is_recovered_up_to_its_first_gap() {
    for seed in 0..6 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..20);
        for node in [a, b, c] {
            sim.crash(node);
        }
        let gap = if seed % 2 == 0 { 10 } else { 20 };
        for node in [b, c] {
            sim.restart_damaged(node, |stored| {
                let replica = stored.replicas.get_mut(&P).unwrap();
                replica.damaged = true;
                let mut writes =
                    replica.entries.iter_mut().filter(|entry| !entry.data.is_empty() && !entry.config);
                if let Some(lost) = writes.nth(gap) {
                    *lost = LogEntry { term: 0, config: false, data: Bytes::new(), context: Bytes::new() };
                }
            });
        }
        sim.run(ms(LEADERLESS));
        assert_eq!(sim.leader(P), None);
        let (status, last) = (sim.status(b, P).unwrap(), sim.disks[&b].stored.replicas[&P].last());
        assert_eq!(status.last.0 < last, gap == 10, "{status:?}");
        assert_eq!(recover(&mut sim, b), Ok(()));
        sim.run_while(ms(1000), |sim| !leads(sim, b));
        assert_eq!(sim.driver(b).state(P).unwrap().len(), gap);
        // The first of them, and only they.
        for key in 0..20u8 {
            let there = sim.driver(b).state(P).unwrap().version(&[key]).is_some();
            assert_eq!(there, usize::from(key) < gap);
        }
        // The other one is told, and is taken in.
        sim.run_while(ms(ASKED), |sim| sim.status(c, P).is_some());
        grow(&mut sim, P, &[b, c]);
        sim.run(ms(600));
        same_state(&mut sim, &[b, c]);
    }
}

#[test]
fn a_partition_of_which_nothing_is_left_begins_above_all_that_it_handed_out() {
    for seed in 0..6 {
        let (mut sim, [a, b, c]) = three(seed);
        fill(&mut sim, 0..5);
        sim.crash(b);
        sim.crash(c);
        sim.run(ms(LEADERLESS));
        assert_eq!(recover(&mut sim, a), Ok(()));
        sim.run_while(ms(1000), |sim| !leads(sim, a));
        let token = lock(&mut sim, a, 1);
        assert!(token.0 > LEAP);
        let id = sim.status(a, P).unwrap().replica;

        // One without any replica begins it anew; it does not even know the term.
        let heir = sim.start(9);
        sim.crash(a);
        let now = sim.now;
        assert_eq!(sim.driver(heir).recover(P, now), Err(RecoverError::NoReplica));
        assert_eq!(sim.driver(heir).recover_empty(P, 0, now), Ok(()));
        sim.settle(heir);
        sim.history = super::history::History::default();
        sim.run_while(ms(1000), |sim| !leads(sim, heir));
        assert_eq!(sim.driver(heir).state(P).unwrap().len(), 0);
        let later = lock(&mut sim, heir, 2);
        assert!(later > token, "{later:?} after {token:?}");
        assert!(sim.status(heir, P).unwrap().replica > id);

        // All that came before give way, also the generation in between.
        for node in [a, b] {
            sim.restart(node);
        }
        // The one in between decides alone, so it asks nobody; but the ring wants another one in.
        sim.run_while(ms(1000), |sim| sim.status(a, P).unwrap().role != Role::Leader);
        want_in(&mut sim, a, heir);
        for node in [a, b] {
            sim.run_while(ms(ASKED), |sim| sim.status(node, P).is_some());
        }
        assert_eq!(sim.driver(heir).recover_empty(P, 0, now), Err(RecoverError::NotEmpty));

        // Twice: what is known of the term counts.
        let term = sim.status(heir, P).unwrap().term;
        sim.crash(heir);
        let now = sim.now;
        assert_eq!(sim.driver(b).recover_empty(P, term, now), Ok(()));
        sim.settle(b);
        sim.run_while(ms(1000), |sim| sim.status(b, P).unwrap().role != Role::Leader);
        assert!(lock(&mut sim, b, 3) > later);
    }
}

/// Its only replica lost its state: it is as if there were none.
#[test]
fn a_replica_without_a_state_gives_way_to_a_new_beginning() {
    let (mut sim, [a, b, c]) = three(1);
    fill(&mut sim, 0..5);
    for node in [a, b, c] {
        sim.crash(node);
    }
    sim.restart_damaged(a, |stored| stored.replicas.get_mut(&P).unwrap().state = None);
    assert_eq!(sim.status(a, P).unwrap().last, (0, 0));
    assert_eq!(recover(&mut sim, a), Err(RecoverError::NoState));
    let now = sim.now;
    assert_eq!(sim.driver(a).recover_empty(P, 0, now), Ok(()));
    sim.settle(a);
    sim.run_while(ms(1000), |sim| !leads(sim, a));
    sim.run(ms(50));
    sim.crash(a);
    sim.restart(a);
    sim.run_while(ms(3000), |sim| !leads(sim, a));
    assert_eq!(sim.disks[&a].stored.destroyed[&PartitionId(0)].0, 1);
}

/// The one that grows is not the leader's business while it has lost something.
#[test]
fn a_damaged_learner_is_removed_and_added_again() {
    let (mut sim, [a, b, c]) = three(3);
    fill(&mut sim, 0..5);
    let d = sim.start(4);
    apply_change(&mut sim, P, &Change::AddLearners(vec![d]));
    sim.run(ms(600));
    sim.crash(d);
    sim.restart_damaged(d, |stored| stored.replicas.get_mut(&P).unwrap().damaged = true);
    sim.run_while(ms(2000), |sim| {
        let progress = sim.status(a, P).unwrap().progress;
        !progress.iter().any(|replica| replica.node == d && replica.lost)
    });
    apply_change(&mut sim, P, &Change::Replace { promote: vec![], remove: vec![d] });
    sim.run_while(ms(ASKED), |sim| sim.status(d, P).is_some());
    grow(&mut sim, P, &[a, b, c, d]);
    sim.run(ms(600));
    same_state(&mut sim, &[a, b, c, d]);
}

/// Found by the simulator: a learner that was never brought up gave up waiting, and its leader, when it came back,
/// went on speaking to a replica that was no more.
#[test]
fn a_learner_that_gave_up_waiting_is_removed_and_added_again() {
    let (mut sim, [a, b, c]) = three(4);
    fill(&mut sim, 0..5);
    let d = sim.start(4);
    apply_change(&mut sim, P, &Change::AddLearners(vec![d]));
    sim.run_while(ms(1000), |sim| sim.status(d, P).is_none());
    for node in [a, b, c] {
        sim.link(node, d, false, (0, 0));
    }
    sim.run_while(ms(40_000), |sim| sim.status(d, P).is_some());
    for node in [a, b, c] {
        sim.link(node, d, true, (0, 0));
    }
    sim.run_while(ms(2000), |sim| {
        let progress = sim.status(a, P).unwrap().progress;
        !progress.iter().any(|replica| replica.node == d && replica.lost)
    });
    apply_change(&mut sim, P, &Change::Replace { promote: vec![], remove: vec![d] });
    grow(&mut sim, P, &[a, b, c, d]);
    sim.run(ms(600));
    same_state(&mut sim, &[a, b, c, d]);
}

/// Found by the simulator: the third voter came, nothing was written afterwards, all machines lost power, and one of the
/// first two never came back. The others had forgotten that they are a majority.
#[test]
fn after_a_blackout_a_new_voter_counts_even_if_nothing_was_written_since_it_came() {
    for seed in 0..20 {
        let (mut sim, nodes) = three(seed);
        sim.run(ms(2000));
        for node in nodes {
            sim.crash(node);
        }
        let lost = nodes[usize::from(seed % 2 == 1)];
        for node in nodes.into_iter().filter(|node| *node != lost) {
            sim.restart(node);
        }
        sim.run_while(ms(10_000), |sim| sim.leader(P).is_none());
    }
}

/// Bytes that tell when nobody holds any of them.
struct Owned(Vec<u8>, #[expect(dead_code, reason = "what counts is that it is dropped")] Arc<()>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn what_a_replica_was_read_from_is_let_go() {
    let (mut sim, nodes) = cluster_with(1, 2, 3, DriverConfig { durable: true, ..DriverConfig::default() });
    for number in 0..3_000u32 {
        sim.put(nodes[0], PartitionId(number % 2), &number.to_be_bytes(), b"value");
        if number % 100 == 0 {
            sim.run(ms(10));
        }
    }
    sim.run(ms(1_000));
    let applied = sim.status(nodes[1], P).unwrap().applied;
    sim.crash(nodes[1]);
    let mut stored = sim.disks[&nodes[1]].stored.clone();
    let in_use = Arc::new(());
    for replica in stored.replicas.values_mut() {
        let bytes: Vec<u8> = replica.entries.iter().flat_map(|entry| entry.data.to_vec()).collect();
        let mut all = Bytes::from_owner(Owned(bytes, Arc::clone(&in_use)));
        for entry in &mut replica.entries {
            entry.data = all.split_to(entry.data.len());
        }
        assert!(replica.entries.len() > 1_000);
    }
    stored.replicas.get_mut(&PartitionId(1)).unwrap().damaged = true;
    let (config, rng) = (sim.config.clone(), StdRng::seed_from_u64(1));
    let mut driver = Driver::new(nodes[1], config, rng, sim.now);
    driver.restore(2, stored, sim.now);
    assert_eq!(Arc::strong_count(&in_use), 1, "something is held that is not needed");
    let status = driver.group(P).unwrap();
    assert!(status.log_entries > 40 && status.applied + 100 > applied, "{status:?}");
    assert!(driver.group(PartitionId(1)).unwrap().damaged);
}
