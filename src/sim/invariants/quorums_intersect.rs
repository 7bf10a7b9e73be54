//! **Property.** Every quorum of a group's configuration has a replica in common with every quorum of the next one
//! (Ongaro, *Consensus*, 4.1 and 4.3): so two majorities can never decide apart from each other. It implies that
//! the voters of consecutive configurations intersect.

use std::collections::BTreeMap;

use super::Violation;
use crate::id::PartitionId;
use crate::replication::AppliedConfig;

/// Log index of the configuration that a founder makes: replica 1 alone.
const FOUNDING: u64 = 1;

/// The halves of a configuration: who votes, and, while joint, who voted before.
type Halves = (Vec<u64>, Vec<u64>);

/// The configurations of each group's generation by their log index.
#[derive(Debug, Default)]
pub(super) struct Configurations(BTreeMap<(PartitionId, u64, u64), Halves>);

impl Configurations {
    /// Takes note of a configuration; whether it was not known before.
    pub(super) fn note(&mut self, config: AppliedConfig) -> Result<bool, Violation> {
        let AppliedConfig { partition, generation, index, voters, outgoing } = config;
        let halves = (sorted(voters), sorted(outgoing));
        if generation == 0 {
            self.0.entry((partition, 0, FOUNDING)).or_insert_with(|| (vec![1], Vec::new()));
        }
        let is_new = !self.0.contains_key(&(partition, generation, index));
        let known = self.0.entry((partition, generation, index)).or_insert_with(|| halves.clone()).clone();
        if known != halves {
            let what = format!("{partition:?} at {index}: {known:?} and {halves:?}");
            return Err(Violation::new("one configuration per index", what));
        }
        let all = &self.0;
        let before = all.range((partition, generation, 0)..(partition, generation, index)).next_back();
        let after = all.range((partition, generation, index + 1)..=(partition, generation, u64::MAX)).next();
        for ((.., at), other) in before.into_iter().chain(after) {
            if !intersect(&halves, other) {
                let what = format!("{partition:?}: {halves:?} at {index} and {other:?} at {at}");
                return Err(Violation::new("quorums of consecutive configurations intersect", what));
            }
        }
        Ok(is_new)
    }
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

/// Whether no quorum of the one is disjoint from a quorum of the other: tried with every set of replicas and the
/// set of all others.
fn intersect(one: &Halves, other: &Halves) -> bool {
    let mut all: Vec<u64> = [&one.0, &one.1, &other.0, &other.1].into_iter().flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    let decides = |halves: &Halves, set: u32, complement: bool| {
        let is_in = |id: &u64| {
            let place = all.binary_search(id).unwrap_or_default();
            (set >> place & 1 == 1) != complement
        };
        let majority =
            |ids: &[u64]| ids.is_empty() || ids.iter().filter(|id| is_in(id)).count() > ids.len() / 2;
        majority(&halves.0) && majority(&halves.1)
    };
    (0..1u32 << all.len()).all(|set| !(decides(one, set, false) && decides(other, set, true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_voter_more_or_less_is_fine_and_two_are_not() {
        let simple = |ids: &[u64]| (ids.to_vec(), Vec::new());
        assert!(intersect(&simple(&[1]), &simple(&[1, 2])));
        assert!(intersect(&simple(&[1, 2, 3]), &simple(&[1, 2, 3, 4])));
        assert!(!intersect(&simple(&[1, 2, 3]), &simple(&[2, 3, 4])));
        assert!(!intersect(&simple(&[1]), &simple(&[1, 2, 3])));
        let joint = (vec![2, 3, 4], vec![1, 2, 3]);
        assert!(intersect(&simple(&[1, 2, 3]), &joint));
        assert!(intersect(&joint, &simple(&[2, 3, 4])));
    }
}
