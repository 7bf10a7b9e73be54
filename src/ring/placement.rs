//! Who holds what: consistent hashing with virtual nodes and bounded loads.
//!
//! **Problem.** Replica sets must follow from the members alone, be spread by weight, and change little when a
//! member comes or goes. Walking clockwise from the partition to the next N members does the first and the last,
//! but with few partitions some members hold twice their share.
//!
//! **Method.** Consistent hashing with bounded loads (V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent
//! Hashing with Bounded Loads", 2016): a member takes no more than 1.25 times its share; what would be too much
//! goes on clockwise to the next member with room. There, the outcome depends on the order in which partitions
//! are placed, and one early change can shift all later ones. Here, the order is that of the *distances*: of all
//! (partition, member) pairs, the one with the shortest way clockwise from the partition to a virtual node of
//! the member is placed first. A pair's distance does not depend on the other members, so this is a stable
//! matching, in which both sides prefer the nearer, and a change displaces only pairs that are farther apart:
//! measured, a join or leave of one of 4 to 20 members moves 0.97/n to 1.2/n of the replicas (the least possible
//! is 1/n). Ownership moves as little, but for small shares rounded differently: with 64 partitions the bound is
//! 5 for 19 members and 4 for 20, and the twentieth moves 2.5/n of the owners. That costs a hand-over, no data.
//!
//! Two passes: first the replica sets, then each partition's owner among its replicas, by the same rule with the
//! bound on owned partitions.
//!
//! **Corner.** The last partitions may find every member with room among those that already hold them. Then
//! places are swapped along a shortest augmenting path, as in maximum bipartite matching; it exists whenever any
//! assignment within the bounds does. For replica sets one always does: no capacity exceeds P and together they
//! are at least N x P. For owners too if no member's share is cut at P: m members whose sets contain all replicas
//! of k partitions have room for N x k replicas, so, as ceil(N x) <= N ceil(x), to own k of them (Hall's
//! condition). With weights so unequal that a share is cut, the tests have found no exception; if there is one,
//! the least loaded replica relative to its bound owns one partition more.

use std::collections::VecDeque;

use super::token::{PartitionCount, Token};
use crate::id::NodeId;

/// Virtual nodes of a member per unit of weight. By measurement (4 to 20 members): with 8, up to half as many
/// moves again; from 32 on nothing more is gained, and each costs a hash per ring.
const VIRTUAL_NODES_PER_WEIGHT: u32 = 32;

/// The bound on a member's load relative to its share: 5/4.
const BOUND: (u64, u64) = (5, 4);

/// A partition's preference for a member: clockwise distance to its next virtual node, and the member's index.
type Preference = (u64, usize);

/// The replica sets, one after the other, `width` members each, the owner first. `members` is ascending and
/// distinct, `width` at most its length.
pub(super) fn place(members: &[(NodeId, u32)], partitions: PartitionCount, width: usize) -> Vec<NodeId> {
    if width == 0 {
        return Vec::new();
    }
    let everyone = preferences(members, partitions);
    let sets = Assignment::solve(&everyone, width, &replica_bounds(members, partitions, width)).chosen;

    let among_replicas: Vec<Vec<Preference>> = everyone
        .iter()
        .zip(&sets)
        .map(|(preferences, set)| {
            preferences.iter().filter(|(_, member)| set.contains(member)).copied().collect()
        })
        .collect();
    let owners = Assignment::solve(&among_replicas, 1, &owner_bounds(members, partitions)).chosen;

    let mut replicas = Vec::with_capacity(among_replicas.len() * width);
    for (set, owner) in among_replicas.iter().zip(owners) {
        let others = set.iter().map(|(_, member)| *member).filter(|member| !owner.contains(member));
        replicas.extend(owner.iter().copied().chain(others).map(|member| members[member].0));
    }
    debug_assert_eq!(replicas.len(), among_replicas.len() * width);
    replicas
}

/// Most partitions that each member may own.
pub(super) fn owner_bounds(members: &[(NodeId, u32)], partitions: PartitionCount) -> Vec<usize> {
    let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let partitions = u64::from(partitions.get());
    members.iter().map(|(_, weight)| bound(u64::from(*weight) * partitions, total, partitions)).collect()
}

/// Most replicas that each member may hold. Nobody can hold more than one of each partition: a share above that
/// is cut, and the rest divided among the others by their weights.
pub(super) fn replica_bounds(
    members: &[(NodeId, u32)],
    partitions: PartitionCount,
    width: usize,
) -> Vec<usize> {
    let partitions = u64::from(partitions.get());
    let mut by_weight: Vec<(u64, usize)> =
        members.iter().enumerate().map(|(member, (_, weight))| (u64::from(*weight), member)).collect();
    by_weight.sort_unstable_by(|a, b| b.cmp(a));

    let mut replicas = partitions * width as u64;
    let mut total: u64 = by_weight.iter().map(|(weight, _)| weight).sum();
    let mut bounds = vec![0; members.len()];
    let mut cutting = true;
    for (weight, member) in by_weight {
        cutting = cutting && weight * replicas >= partitions * total;
        if cutting {
            bounds[member] = bound(partitions, 1, partitions);
            replicas -= partitions;
            total -= weight;
        } else {
            bounds[member] = bound(weight * replicas, total, partitions);
        }
    }
    bounds
}

/// 1.25 times the share `numerator / denominator`, rounded up, at most `partitions`.
fn bound(numerator: u64, denominator: u64, partitions: u64) -> usize {
    let bound = (BOUND.0 * numerator).div_ceil(BOUND.1 * denominator).min(partitions);
    usize::try_from(bound).unwrap_or(usize::MAX)
}

/// Of each partition, all members, the next clockwise first.
fn preferences(members: &[(NodeId, u32)], partitions: PartitionCount) -> Vec<Vec<Preference>> {
    let starts: Vec<u64> = partitions.iter().map(|partition| partitions.start_of(partition)).collect();
    let mut preferences = vec![Vec::with_capacity(members.len()); starts.len()];
    for (member, (node, weight)) in members.iter().enumerate() {
        let mut positions: Vec<u64> = (0..weight * VIRTUAL_NODES_PER_WEIGHT)
            .map(|index| Token::of_virtual_node(*node, index).position())
            .collect();
        positions.sort_unstable();
        for (start, preferences) in starts.iter().zip(&mut preferences) {
            let next = positions.partition_point(|position| position < start) % positions.len();
            preferences.push((positions[next].wrapping_sub(*start), member));
        }
    }
    for preferences in &mut preferences {
        preferences.sort_unstable();
    }
    preferences
}

/// Members assigned to partitions under way.
struct Assignment<'a> {
    preferences: &'a [Vec<Preference>],
    bounds: &'a [usize],
    /// Per partition. Invariant: distinct, and each among the partition's preferences.
    chosen: Vec<Vec<usize>>,
    /// Per member, how often it is chosen. Invariant: `loads[m] <= bounds[m]`, unless no assignment keeps that.
    loads: Vec<usize>,
}

impl<'a> Assignment<'a> {
    /// Gives each partition `width` of its preferences, so that no member is given more than its bound.
    fn solve(preferences: &'a [Vec<Preference>], width: usize, bounds: &'a [usize]) -> Self {
        let mut this = Self {
            preferences,
            bounds,
            chosen: vec![Vec::with_capacity(width); preferences.len()],
            loads: vec![0; bounds.len()],
        };
        let mut pairs: Vec<(u64, usize, usize)> = Vec::new();
        for (partition, preferences) in preferences.iter().enumerate() {
            pairs.extend(preferences.iter().map(|(distance, member)| (*distance, partition, *member)));
        }
        pairs.sort_unstable();
        for (_, partition, member) in pairs {
            if this.chosen[partition].len() < width && this.has_room(member) {
                this.give(partition, member);
            }
        }
        for partition in 0..preferences.len() {
            while this.chosen[partition].len() < width {
                if !this.augment(partition) {
                    this.exceed(partition);
                }
            }
        }
        this
    }

    fn has_room(&self, member: usize) -> bool {
        self.loads[member] < self.bounds[member]
    }

    fn give(&mut self, partition: usize, member: usize) {
        debug_assert!(!self.chosen[partition].contains(&member));
        self.chosen[partition].push(member);
        self.loads[member] += 1;
    }

    fn take(&mut self, partition: usize, member: usize) {
        self.chosen[partition].retain(|chosen| *chosen != member);
        self.loads[member] -= 1;
    }

    /// Gives `needy` one member more by a chain of swaps: it takes a place of a full member, the partition that
    /// had the place takes another, ..., until a member with room is reached. Breadth first, so the chain is
    /// as short as possible. False if there is none.
    fn augment(&mut self, needy: usize) -> bool {
        // The member whose place the partition would give up.
        let mut gives_up: Vec<Option<usize>> = vec![None; self.chosen.len()];
        // The partition that would take the member.
        let mut taken_by: Vec<Option<usize>> = vec![None; self.loads.len()];
        let mut seen = vec![false; self.chosen.len()];
        let mut queue = VecDeque::from([needy]);
        seen[needy] = true;
        while let Some(partition) = queue.pop_front() {
            for &(_, member) in &self.preferences[partition] {
                if taken_by[member].is_some() || self.chosen[partition].contains(&member) {
                    continue;
                }
                taken_by[member] = Some(partition);
                if self.has_room(member) {
                    self.swap_back(member, &gives_up, &taken_by);
                    return true;
                }
                for (other, chosen) in self.chosen.iter().enumerate() {
                    if !seen[other] && chosen.contains(&member) {
                        seen[other] = true;
                        gives_up[other] = Some(member);
                        queue.push_back(other);
                    }
                }
            }
        }
        false
    }

    /// Carries out the chain that ends at `last`, from its end to its start.
    fn swap_back(&mut self, last: usize, gives_up: &[Option<usize>], taken_by: &[Option<usize>]) {
        let mut next = Some(last);
        while let Some(member) = next {
            let Some(partition) = taken_by[member] else { return };
            next = gives_up[partition];
            if let Some(given_up) = next {
                self.take(partition, given_up);
            }
            self.give(partition, member);
        }
    }

    /// Gives `partition` the member that is then least loaded relative to its bound.
    fn exceed(&mut self, partition: usize) {
        let least_loaded = self.preferences[partition]
            .iter()
            .map(|(_, member)| *member)
            .filter(|member| !self.chosen[partition].contains(member))
            .min_by(|a, b| {
                let load = |m: usize, other: usize| (self.loads[m] + 1) * self.bounds[other].max(1);
                load(*a, *b).cmp(&load(*b, *a)).then(a.cmp(b))
            });
        if let Some(member) = least_loaded {
            self.give(partition, member);
        }
    }
}
