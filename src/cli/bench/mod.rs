//! `bench`: a load generator, and what it measured.
//!
//! Closed loop: each of `clients` times `pipeline` tasks sends its next operation when the last one is answered.
//! So a slow answer also delays what would have been sent meanwhile, as it would in a program that waits for
//! its answers; a rate that is given from outside is not simulated. All tasks share `connections` visitors.

mod report;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connect::{Client, Session, Target, connect};
use super::exit::Failure;
use super::render::Output;
use crate::client::{Error, LockError};
use report::Report;

/// Most operations under way at the same time: each is a task and a histogram in this process.
pub(super) const MAX_UNDER_WAY: usize = 4096;
/// Operations under way while the keys are written before, and removed after.
const BULK_UNDER_WAY: usize = 256;
/// Between two looks at the progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// The measured range: below counts as this much.
const LEAST_NANOS: u64 = 1_000;
/// The measured range: above counts as this much; longer than any deadline.
const MOST_NANOS: u64 = 120_000_000_000;
/// Three significant digits.
const DIGITS: u8 = 3;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mix {
    /// Writes.
    Put,
    /// Reads.
    Get,
    /// Half of each.
    Mixed,
    /// Takes and releases locks. The keys are shared out among the clients, and each takes its own in turn: so no
    /// two contend, and all meet fast and slow partitions alike. With as many keys as clients, each has one lock
    /// and stays with its partition; with fewer, clients contend; one key is one contended lock.
    Lock,
}

/// `bench`.
#[derive(Debug, Clone)]
pub(super) struct Bench {
    /// What is done.
    pub(super) mix: Mix,
    /// Clients at work at the same time.
    pub(super) clients: usize,
    /// Operations that each client has under way.
    pub(super) pipeline: usize,
    /// Different keys.
    pub(super) keys: usize,
    /// Size of a value.
    pub(super) value_bytes: usize,
    /// How long.
    pub(super) duration: Duration,
    /// Separate visitors.
    pub(super) connections: usize,
    /// Whether any replica may answer a get.
    pub(super) stale: bool,
    /// Leave the keys in the store.
    pub(super) keep: bool,
}

impl Bench {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let mut sessions: Vec<Session> = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            sessions.push(connect(target).await?);
        }
        let first = &sessions[0].client;
        if matches!(self.mix, Mix::Get | Mix::Mixed) {
            self.load(first).await?;
        }
        let report = self.measure(&sessions).await?;
        if !self.keep && self.mix != Mix::Lock {
            self.clear(first).await?;
        }
        output.answer(|| report.text(), || report.json())?;
        Ok(())
    }

    /// Writes every key once, so that a get finds one.
    async fn load(&self, client: &Client) -> Result<(), Failure> {
        let bar = bar(self.keys as u64, "writing keys");
        let mut rng = StdRng::seed_from_u64(0);
        let writes = (0..self.keys).map(|number| {
            let value = value(&mut rng, self.value_bytes);
            let bar = bar.clone();
            async move {
                client.put(key(number), value).await?;
                bar.inc(1);
                Ok::<(), Error>(())
            }
        });
        stream::iter(writes).buffer_unordered(BULK_UNDER_WAY).try_collect::<()>().await?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Removes the keys.
    async fn clear(&self, client: &Client) -> Result<(), Failure> {
        let bar = bar(self.keys as u64, "removing keys");
        let removals = (0..self.keys).map(|number| {
            let bar = bar.clone();
            async move {
                client.delete(key(number)).await?;
                bar.inc(1);
                Ok::<(), Error>(())
            }
        });
        stream::iter(removals).buffer_unordered(BULK_UNDER_WAY).try_collect::<()>().await?;
        bar.finish_and_clear();
        Ok(())
    }

    async fn measure(&self, sessions: &[Session]) -> Result<Report, Failure> {
        let done = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let end = start + self.duration;
        let mut workers = JoinSet::new();
        for (number, session) in (0..self.clients).zip(sessions.iter().cycle()) {
            for lane in 0..self.pipeline {
                let client = if self.stale { session.client.stale() } else { session.client.clone() };
                let lane = number * self.pipeline + lane;
                let worker = Worker {
                    client,
                    locks: OwnLocks::of(lane, self.clients * self.pipeline, self.keys),
                    plan: self.clone(),
                    // The same choice of keys in each run, another one in each worker.
                    rng: StdRng::seed_from_u64(lane as u64),
                    done: Arc::clone(&done),
                    tally: Tally::new()?,
                };
                workers.spawn(worker.run(end));
            }
        }

        let mut per_second = Vec::new();
        let mut tally = Tally::new()?;
        let bar = bar(self.duration.as_millis().try_into().unwrap_or(u64::MAX), "measuring");
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        let mut seconds = tokio::time::interval_at(start + Duration::from_secs(1), Duration::from_secs(1));
        let mut counted = 0;
        loop {
            tokio::select! {
                worker = workers.join_next() => match worker {
                    Some(Ok(part)) => tally.add(&part),
                    Some(Err(error)) => return Err(Failure::other(format!("a worker failed: {error}"))),
                    None => break,
                },
                _ = progress.tick() => {
                    let passed = start.elapsed().min(self.duration);
                    bar.set_position(passed.as_millis().try_into().unwrap_or(u64::MAX));
                    bar.set_message(format!("measuring: {} operations", done.load(Ordering::Relaxed)));
                }
                _ = seconds.tick() => {
                    let now = done.load(Ordering::Relaxed);
                    per_second.push(now - counted);
                    counted = now;
                }
            }
        }
        let elapsed = start.elapsed();
        bar.finish_and_clear();
        Ok(Report {
            plan: self.clone(),
            elapsed,
            latencies: tally.latencies,
            errors: tally.errors,
            missing: tally.missing,
            cycles: (tally.fewest, tally.most),
            per_second,
        })
    }
}

/// What one worker, or all of them, counted.
#[derive(Debug)]
struct Tally {
    /// Of successful operations, in nanoseconds.
    latencies: Histogram<u64>,
    /// By kind.
    errors: BTreeMap<String, u64>,
    /// Gets that found nothing.
    missing: u64,
    /// Of the worker that did least, and of the one that did most.
    fewest: u64,
    most: u64,
}

impl Tally {
    fn new() -> Result<Self, Failure> {
        let latencies = Histogram::new_with_bounds(LEAST_NANOS, MOST_NANOS, DIGITS)
            .map_err(|error| Failure::other(format!("histogram: {error}")))?;
        Ok(Self { latencies, errors: BTreeMap::new(), missing: 0, fewest: u64::MAX, most: 0 })
    }

    fn add(&mut self, other: &Self) {
        // Both have the same bounds, so this cannot fail.
        let _ = self.latencies.add(&other.latencies);
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_insert(0) += count;
        }
        self.missing += other.missing;
        self.fewest = self.fewest.min(other.latencies.len());
        self.most = self.most.max(other.latencies.len());
    }
}

/// The locks of one worker, in turn.
#[derive(Debug)]
struct OwnLocks {
    first: usize,
    step: usize,
    count: usize,
    turn: usize,
}

impl OwnLocks {
    /// The share of worker `lane` of so many.
    fn of(lane: usize, lanes: usize, keys: usize) -> Self {
        let first = lane % keys;
        Self { first, step: lanes, count: (keys - first).div_ceil(lanes), turn: 0 }
    }

    fn next(&mut self) -> usize {
        let number = self.first + self.turn * self.step;
        self.turn = (self.turn + 1) % self.count;
        number
    }
}

/// One operation after the other.
struct Worker {
    client: Client,
    /// The locks that it takes, when it takes locks.
    locks: OwnLocks,
    plan: Bench,
    rng: StdRng,
    done: Arc<AtomicU64>,
    tally: Tally,
}

impl Worker {
    async fn run(mut self, end: Instant) -> Tally {
        while Instant::now() < end {
            let key = key(self.rng.random_range(0..self.plan.keys));
            let write = match self.plan.mix {
                Mix::Put => true,
                Mix::Get | Mix::Lock => false,
                Mix::Mixed => self.rng.random(),
            };
            let value = if write { value(&mut self.rng, self.plan.value_bytes) } else { Vec::new() };
            let start = Instant::now();
            let outcome = if self.plan.mix == Mix::Lock {
                self.cycle().await.map(|()| true)
            } else if write {
                self.client.put(key, value).await.map(|_| true).map_err(LockError::from)
            } else {
                self.client.get(key).await.map(|entry| entry.is_some()).map_err(LockError::from)
            };
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            match outcome {
                Ok(found) => {
                    self.tally.latencies.saturating_record(nanos);
                    self.tally.missing += u64::from(!found);
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => *self.tally.errors.entry(kind(&error)).or_insert(0) += 1,
            }
        }
        self.tally
    }

    async fn cycle(&mut self) -> Result<(), LockError> {
        self.client.lock(key(self.locks.next())).acquire().await?.release().await
    }
}

/// The words of an error before its details, which differ from case to case.
fn kind(error: &LockError) -> String {
    let text = error.to_string();
    text.split(':').next().unwrap_or_default().to_owned()
}

fn key(number: usize) -> Vec<u8> {
    format!("bench/{number:08}").into_bytes()
}

fn value(rng: &mut StdRng, bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    rng.fill_bytes(&mut value);
    value
}

/// A bar on standard error; nothing when that is no terminal.
fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {percent:>3}% {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::OwnLocks;

    fn some_of(lane: usize, lanes: usize, keys: usize) -> Vec<usize> {
        let mut locks = OwnLocks::of(lane, lanes, keys);
        (0..5).map(|_| locks.next()).collect()
    }

    #[test]
    fn locks_are_shared_out_and_taken_in_turn() {
        assert_eq!(some_of(1, 4, 10), [1, 5, 9, 1, 5]);
        assert_eq!(some_of(3, 4, 10), [3, 7, 3, 7, 3]);
        let all: Vec<usize> = (0..16).flat_map(|lane| some_of(lane, 16, 10_000)).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn with_few_keys_each_keeps_to_one_lock() {
        assert_eq!(some_of(3, 16, 16), [3; 5]);
        assert_eq!(some_of(9, 16, 8), [1; 5]);
        assert_eq!(some_of(9, 16, 1), [0; 5]);
    }
}
