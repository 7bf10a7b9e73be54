//! The simulator is tested: it repeats itself, and short runs hold.

use super::{Options, simulate};

#[test]
fn the_same_seed_gives_the_same_run() {
    let options = Options { operations: 100, full_digest: true, ..Options::default() };
    for seed in 0..2 {
        let (first, second) = (simulate(seed, &options), simulate(seed, &options));
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
        assert_ne!(first.digest, simulate(seed + 100, &options).digest);
    }
}

/// `ROUNDTABLE_SEED=n` runs that one, `ROUNDTABLE_SEEDS=n` so many.
#[test]
fn nothing_is_violated() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("ROUNDTABLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ROUNDTABLE_SEEDS").unwrap_or(3),
    };
    let options = Options { operations: 600, ..Options::default() };
    for seed in seeds {
        let report = simulate(seed, &options);
        assert_eq!(report.failure, None, "seed {seed} (ROUNDTABLE_SEED={seed})");
        assert!(report.operations >= 600, "{report:?}");
    }
}

/// What finds nothing proves nothing: every planted fault is found, soon.
#[cfg(feature = "mutations")]
#[test]
fn planted_faults_are_found() {
    use crate::mutation::{Mutation, plant};
    for mutation in Mutation::ALL {
        let finder = (0..20).find_map(|seed| {
            plant(Some(mutation));
            let report = simulate(seed, &Options::default());
            plant(None);
            Some((seed, report.failure?.property))
        });
        assert!(finder.is_some(), "{mutation:?} was not found in 20 seeds");
    }
}
