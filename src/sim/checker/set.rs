//! Whether a set lost an element: what was acknowledged is there in the end, and nothing is there that nobody added.

use std::collections::BTreeMap;

/// What is known of an element from whoever added it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// Acknowledged.
    Surely,
    /// The answer did not come.
    Perhaps,
    /// Refused: it was never added.
    Never,
}

/// Everything that must not be, in words: `added` is what was asked for, `found` what is there in the end.
pub(crate) fn violations(added: &BTreeMap<Vec<u8>, Added>, found: &[Vec<u8>]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
    for element in found {
        *counts.entry(element).or_default() += 1;
    }
    for (element, added) in added {
        let count = counts.remove(element.as_slice()).unwrap_or(0);
        let name = element.escape_ascii();
        match added {
            Added::Surely if count == 0 => wrong.push(format!("{name} was acknowledged and is gone")),
            Added::Never if count > 0 => wrong.push(format!("{name} was refused and is there")),
            _ if count > 1 => wrong.push(format!("{name} is there {count} times")),
            _ => {}
        }
    }
    wrong.extend(counts.keys().map(|element| format!("nobody added {}", element.escape_ascii())));
    wrong
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// A history of a set that works.
    fn good(seed: u64) -> (BTreeMap<Vec<u8>, Added>, Vec<Vec<u8>>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut found = Vec::new();
        let mut added = BTreeMap::new();
        for number in 0..rng.random_range(10..100) {
            let element = format!("e{number}").into_bytes();
            let what = [Added::Surely, Added::Surely, Added::Perhaps, Added::Never][rng.random_range(0..4)];
            if what == Added::Surely || (what == Added::Perhaps && rng.random()) {
                found.push(element.clone());
            }
            added.insert(element, what);
        }
        // One of each kind, to plant faults at.
        added.extend([(b"sure".to_vec(), Added::Surely), (b"never".to_vec(), Added::Never)]);
        found.push(b"sure".to_vec());
        (added, found)
    }

    #[test]
    fn good_histories_pass() {
        for seed in 0..1000 {
            let (added, found) = good(seed);
            assert_eq!(violations(&added, &found), Vec::<String>::new(), "seed {seed}");
        }
    }

    #[test]
    fn planted_faults_are_found() {
        for seed in 0..300 {
            let (added, found) = good(seed);
            let lost: Vec<_> = found.iter().filter(|element| *element != b"sure").cloned().collect();
            assert_eq!(violations(&added, &lost), ["sure was acknowledged and is gone"]);
            let with = |element: &[u8]| [found.clone(), vec![element.to_vec()]].concat();
            assert_eq!(violations(&added, &with(b"never")), ["never was refused and is there"]);
            assert_eq!(violations(&added, &with(b"sure")), ["sure is there 2 times"]);
            assert_eq!(violations(&added, &with(b"stranger")), ["nobody added stranger"]);
        }
    }
}
