//! `sim`: runs seeds of the simulator and says what they violate.
//!
//! ```text
//! cargo run --profile sim --no-default-features --features sim --bin sim -- --seeds 1000
//! cargo run --profile sim --no-default-features --features sim --bin sim -- --seed 17 --trace
//! cargo run --profile sim --no-default-features --features mutations --bin sim -- --mutations
//! ```

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use roundtable::sim::{Options, Report, simulate};
use tracing_subscriber::EnvFilter;

/// Whole nodes in simulated time, under faults, judged after every step. Exit code 1 if anything is violated.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this one only
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Print every step (of one seed)
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Operations of clients in each run, at least
    #[arg(long, default_value_t = 2_000)]
    operations: u64,
    /// Threads; each runs seeds of its own
    #[arg(long)]
    threads: Option<usize>,
    /// Plant each known fault and say which of the seeds finds it first. Exit code 1 if one is not found
    #[cfg(feature = "mutations")]
    #[arg(long)]
    mutations: bool,
    /// Where pictures of violated histories go
    #[arg(long, default_value = "target/sim")]
    pictures: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // What the nodes log, `ROUNDTABLE_LOG=debug`: of one seed, beside its trace.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("ROUNDTABLE_LOG").unwrap_or_else(|_| EnvFilter::new("off")))
        .with_writer(std::io::stderr)
        .init();
    #[cfg(feature = "mutations")]
    if args.mutations {
        return find_mutations(args.seeds.min(20), args.operations);
    }
    let seeds = match args.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => args.first..args.first.saturating_add(args.seeds),
    };
    let options =
        Options { operations: args.operations, full_digest: args.seed.is_some(), trace: args.trace };
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(available).max(1);
    let progress = indicatif::ProgressBar::new(seeds.end - seeds.start);
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let report = simulate(seed, &options);
                    progress.suspend(|| show(&report, &args));
                    progress.inc(1);
                    if let Ok(mut sum) = sum.lock() {
                        sum.add(report);
                    }
                }
            });
        }
    });
    progress.finish_and_clear();
    let Ok(sum) = sum.into_inner() else { return ExitCode::FAILURE };
    say(&sum.to_string());
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plants each fault and looks for a seed that finds it.
#[cfg(feature = "mutations")]
fn find_mutations(seeds: u64, operations: u64) -> ExitCode {
    use roundtable::mutation::{Mutation, plant};
    let options = Options { operations, ..Options::default() };
    // What a planted fault makes panic is a find, and needs no backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let mut all_found = true;
    for mutation in Mutation::ALL {
        let found: Vec<(u64, String)> = (0..seeds)
            .filter_map(|seed| {
                plant(Some(mutation));
                let report = simulate(seed, &options);
                plant(None);
                Some((seed, report.failure?.property))
            })
            .collect();
        let first = found.first().map(|(seed, by)| format!("first by seed {seed}: {by}"));
        say(&format!(
            "{mutation:?}: {} of {seeds} seeds find it; {}",
            found.len(),
            first.as_deref().unwrap_or("none")
        ));
        all_found &= !found.is_empty();
    }
    if all_found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whoever reads may have gone.
fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

fn show(report: &Report, args: &Args) {
    for line in &report.trace {
        say(line);
    }
    if args.seed.is_some() {
        say(&format!(
            "seed {}: digest {:016x}, {:?} simulated",
            report.seed, report.digest, report.simulated
        ));
    }
    let Some(failure) = &report.failure else { return };
    say(&format!("seed {} violates: {}\n{}", report.seed, failure.property, failure.what.trim_end()));
    if let Some(picture) = &failure.picture {
        let path = args.pictures.join(format!("seed-{}.svg", report.seed));
        let written = std::fs::create_dir_all(&args.pictures).and_then(|()| std::fs::write(&path, picture));
        match written {
            Ok(()) => say(&format!("picture: {}", path.display())),
            Err(error) => say(&format!("no picture, {}: {error}", path.display())),
        }
    }
    say(&format!(
        "again: cargo run --profile sim --no-default-features --features sim --bin sim -- --seed {} --trace",
        report.seed
    ));
}

/// What all runs were together.
#[derive(Debug, Default)]
struct Sum {
    runs: u64,
    operations: u64,
    fewest_operations: Option<u64>,
    unknown: u64,
    refused: u64,
    sections: u64,
    simulated: Duration,
    recovery: Vec<Duration>,
    convergence: Vec<Duration>,
    counts: BTreeMap<&'static str, u64>,
    failed: Vec<u64>,
}

impl Sum {
    fn add(&mut self, report: Report) {
        self.runs += 1;
        self.operations += report.operations;
        let fewest = self.fewest_operations.unwrap_or(u64::MAX).min(report.operations);
        self.fewest_operations = Some(fewest);
        self.unknown += report.unknown;
        self.refused += report.refused;
        self.sections += report.sections;
        self.simulated += report.simulated;
        self.recovery.extend(report.recovery);
        self.convergence.extend(report.convergence);
        for (what, count) in report.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if report.failure.is_some() {
            self.failed.push(report.seed);
        }
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} seeds, {:.1} h simulated: {} operations answered (at least {} in each), {} unknown, {} refused, {} \
             sections under locks",
            self.runs,
            self.simulated.as_secs_f64() / 3600.0,
            self.operations,
            self.fewest_operations.unwrap_or(0),
            self.unknown,
            self.refused,
            self.sections,
        )?;
        let counts: Vec<_> = self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        writeln!(f, "{}", counts.join(", "))?;
        writeln!(f, "from the heal until every partition serves: {}", Percentiles(&self.recovery))?;
        writeln!(f, "from the heal until all is in place: {}", Percentiles(&self.convergence))?;
        match self.failed.len() {
            0 => write!(f, "nothing violated"),
            count => write!(f, "{count} seeds violate something: {:?}", self.failed),
        }
    }
}

struct Percentiles<'a>(&'a [Duration]);

impl std::fmt::Display for Percentiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.to_vec();
        sorted.sort_unstable();
        let Some(last) = sorted.len().checked_sub(1) else { return write!(f, "-") };
        let at = |percent: usize| sorted[last * percent / 100];
        write!(f, "p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, most {:.1?}", at(50), at(90), at(99), at(100))
    }
}
