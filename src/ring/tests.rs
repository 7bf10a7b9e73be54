//! What the ring promises, over random members.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    reason = "statistics of small numbers, which the test prints"
)]

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::placement::{owner_bounds, replica_bounds};
use super::*;
use crate::id::{NodeId, PartitionId};

fn node(rng: &mut StdRng) -> NodeId {
    NodeId::from_public_key(rng.random())
}

fn nodes(seed: u64, count: usize) -> Vec<(NodeId, u32)> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|_| (node(&mut rng), DEFAULT_WEIGHT)).collect()
}

fn partitions(count: u32) -> PartitionCount {
    PartitionCount::new(count).expect("in range")
}

/// Every partition has min(replicas, n) distinct members of the ring, and nobody is above a bound.
fn check(members: &[(NodeId, u32)], ring: &Ring, replicas: usize) {
    let width = replicas.min(members.len());
    for partition in ring.partitions().iter() {
        let mut set = ring.replicas(partition).to_vec();
        assert_eq!(ring.owner(partition), set.first().copied());
        set.sort_unstable();
        set.dedup();
        assert_eq!(set.len(), width);
        assert!(set.iter().all(|node| ring.members().contains(node)));
    }
    let mut members = members.to_vec();
    members.sort_unstable();
    let owns = owner_bounds(&members, ring.partitions());
    let holds = replica_bounds(&members, ring.partitions(), width);
    let total_weight: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let share_of = |weight: u32| f64::from(weight) / total_weight * f64::from(ring.partitions().get());
    let cut = members
        .iter()
        .any(|(_, weight)| share_of(*weight) * width as f64 > f64::from(ring.partitions().get()));
    for (index, (node, weight)) in members.iter().enumerate() {
        let (owned, held) = ring.share(*node);
        assert!(owned <= owns[index], "{node:?} owns {owned}, bound {}", owns[index]);
        assert!(held <= holds[index], "{node:?} holds {held}, bound {}", holds[index]);
        // The bounds themselves, computed the plain way.
        let ceil = |load: f64| (load - 1e-9).ceil() as usize;
        assert!(owned <= ceil(1.25 * share_of(*weight)));
        assert!(cut || held <= ceil(1.25 * share_of(*weight) * width as f64));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn sets_are_full_and_loads_bounded_and_order_is_irrelevant(
        seed: u64,
        weights in prop_oneof![
            prop::collection::vec(Just(1u32), 1..=10),
            prop::collection::vec(1u32..=4, 1..=24),
            prop::collection::vec(prop_oneof![Just(1u32), Just(2u32), 1u32..=MAX_WEIGHT], 1..=8),
        ],
        count in prop_oneof![1u32..=16, Just(64u32), Just(100), 1u32..=300],
        replicas in 1usize..=5,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut members: Vec<_> = weights.into_iter().map(|weight| (node(&mut rng), weight)).collect();
        let ring = Ring::new(members.iter().copied(), partitions(count), replicas);
        check(&members, &ring, replicas);
        members.shuffle(&mut rng);
        prop_assert_eq!(&ring, &Ring::new(members.iter().copied(), partitions(count), replicas));
        prop_assert!(plan(&ring, &ring).is_empty());
    }
}

#[test]
fn bounds_hold_for_every_small_swarm() {
    for n in 1..=10 {
        for seed in 0..40 {
            let members = nodes(seed, n);
            for count in [1, 2, 3, 7, 16, 64, 256] {
                let ring = Ring::new(members.iter().copied(), partitions(count), DEFAULT_REPLICAS);
                check(&members, &ring, DEFAULT_REPLICAS);
            }
        }
    }
}

#[test]
fn bounds_hold_for_very_unequal_weights() {
    for light in 1..=8 {
        for heavy in 1..=3 {
            for seed in 0..10 {
                let mut members = nodes(seed, light + heavy);
                for (_, weight) in &mut members[..heavy] {
                    *weight = MAX_WEIGHT;
                }
                let ring = Ring::new(members.iter().copied(), partitions(64), DEFAULT_REPLICAS);
                check(&members, &ring, DEFAULT_REPLICAS);
            }
        }
    }
}

/// Mean share of replicas moved and of owners changed, in units of 1/n, when one of n members leaves (which is
/// the mirror image of joining as the n-th).
fn moved(n: usize, count: u32, seeds: u64) -> (f64, f64) {
    let (mut replicas, mut owners) = (0, 0);
    for seed in 0..seeds {
        let members = nodes(seed * 1000 + n as u64, n);
        let with = Ring::new(members.iter().copied(), partitions(count), DEFAULT_REPLICAS);
        let without = Ring::new(members[1..].iter().copied(), partitions(count), DEFAULT_REPLICAS);
        let leave = plan(&with, &without);
        let join = plan(&without, &with);
        let added = |moves: &[Move]| moves.iter().map(|change| change.add.len()).sum::<usize>();
        assert_eq!(added(&join), leave.iter().map(|change| change.remove.len()).sum::<usize>());
        replicas += added(&leave).max(added(&join));
        owners += leave.iter().filter(|change| change.owner_changed).count();
    }
    let share = |moves: usize, of: f64| moves as f64 / (of * seeds as f64) * n as f64;
    let width = DEFAULT_REPLICAS as f64;
    (share(replicas, f64::from(count) * width), share(owners, f64::from(count)))
}

#[test]
fn a_join_or_leave_moves_at_most_one_and_a_half_shares() {
    for count in [64, 256] {
        for n in 4..=20 {
            let (replicas, owners) = moved(n, count, 20);
            println!("P={count} n={n}: replicas moved {replicas:.2}/n, owners changed {owners:.2}/n");
            assert!(replicas <= 1.5, "P={count} n={n}: {replicas:.2}/n of the replicas moved");
        }
    }
}

#[test]
fn three_members_or_fewer_hold_everything() {
    for n in 1..=3 {
        let members = nodes(7, n);
        let ring = Ring::new(members.iter().copied(), partitions(64), DEFAULT_REPLICAS);
        for (node, _) in &members {
            assert_eq!(ring.share(*node).1, 64);
        }
    }
}

#[test]
fn a_plan_names_what_changes_and_nothing_else() {
    let members = nodes(1, 8);
    let old = Ring::new(members[..7].iter().copied(), partitions(64), DEFAULT_REPLICAS);
    let new = Ring::new(members.iter().copied(), partitions(64), DEFAULT_REPLICAS);
    let moves = plan(&old, &new);
    for partition in old.partitions().iter() {
        let mut set = old.replicas(partition).to_vec();
        if let Some(change) = moves.iter().find(|change| change.partition == partition) {
            set.retain(|node| !change.remove.contains(node));
            set.extend(&change.add);
            assert_eq!(change.owner_changed, old.owner(partition) != new.owner(partition));
        }
        set.sort_unstable();
        let mut expected = new.replicas(partition).to_vec();
        expected.sort_unstable();
        assert_eq!(set, expected);
    }
}

#[test]
fn a_ring_of_nobody_is_empty_and_answers() {
    let ring = Ring::new([], partitions(64), DEFAULT_REPLICAS);
    assert!(ring.is_empty());
    assert_eq!(ring.owner(PartitionId(0)), None);
    assert_eq!(ring.partition_of(b"abc"), ring.partitions().partition_of(ring.token_of(b"abc")));
    let one = Ring::new(nodes(1, 1), partitions(64), DEFAULT_REPLICAS);
    assert!(one.replicas(PartitionId(64)).is_empty());
    assert!(one.replicas(PartitionId(u32::MAX)).is_empty());
    assert_eq!(plan(&ring, &one).len(), 64);
}

#[test]
fn the_ring_does_not_change_from_build_to_build() {
    let members = (0..5u8).map(|byte| (NodeId::from_public_key([byte; 32]), u32::from(byte) + 1));
    let ring = Ring::new(members, partitions(16), DEFAULT_REPLICAS);
    let placed: Vec<String> = ring
        .partitions()
        .iter()
        .map(|partition| {
            ring.replicas(partition).iter().map(|node| node.public_key()[0].to_string()).collect()
        })
        .collect();
    assert_eq!(
        placed.join(" "),
        "324 204 314 104 034 324 342 214 142 423 342 120 234 312 213 413",
        "nodes of different builds would place differently: this is a new protocol version"
    );
}
