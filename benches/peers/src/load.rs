//! The closed loop that drives a peer from this process, and what one measurement says.
//!
//! Each client sends its next operation when the last one is answered: the same loop, the same keys and the same
//! values as in `roundtable bench`.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::servers::Servers;

/// Different keys, chosen at random.
pub(crate) const KEYS: usize = 10_000;
/// Clients at work at the same time where many keys are written and nothing is measured.
pub(crate) const FILLERS: usize = 256;
/// Size of a value.
pub(crate) const VALUE_BYTES: usize = 100;
/// The measured range: below counts as this much.
const LEAST_NANOS: u64 = 1_000;
/// The measured range: above counts as this much.
const MOST_NANOS: u64 = 120_000_000_000;
/// Three significant digits.
const DIGITS: u8 = 3;
/// Many keys are written for no longer than this: what is slow has fewer then.
const FILL_WITHIN: Duration = Duration::from_secs(180);
/// A measurement that takes this much longer than it should has failed.
const GRACE: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Op {
    /// Acknowledged writes.
    Put,
    /// Reads of keys that are there.
    Get,
    /// Taking and releasing a lock, each client its own.
    LockDistinct,
    /// Taking and releasing one lock, all clients the same.
    LockContended,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    /// What.
    pub(crate) op: Op,
    /// Clients at work at the same time.
    pub(crate) clients: usize,
    /// How long.
    pub(crate) duration: Duration,
}

/// What a measurement says. Times are in microseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// Successful operations.
    pub(crate) operations: u64,
    /// Until the last answer.
    pub(crate) seconds: f64,
    /// Median latency.
    pub(crate) p50: u64,
    /// 99th percentile.
    pub(crate) p99: u64,
    /// The longest.
    pub(crate) max: u64,
    /// Operations of the client that did fewest.
    pub(crate) fewest: u64,
    /// Operations of the client that did most.
    pub(crate) most: u64,
    /// Operations that failed.
    pub(crate) failed: u64,
    /// CPU seconds of all servers.
    pub(crate) server_cpu: f64,
    /// CPU seconds of the load generator.
    pub(crate) client_cpu: f64,
    /// Calls of fsync and fdatasync by all servers, where they were counted.
    pub(crate) fsyncs: Option<u64>,
}

/// One step of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// Write, and wait until it is acknowledged as the peer's row promises.
    Put { key: &'a str, value: &'a [u8] },
    /// Read; not to find the key is the error [`Missing`].
    Get { key: &'a str },
    /// Take and release.
    Cycle { lock: &'a str },
}

/// What a peer that answered says of a key that should be there.
#[derive(Debug)]
pub(crate) struct Missing;

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key that was written is not there")
    }
}

impl std::error::Error for Missing {}

/// One closed loop's way to a peer; connected before the clock starts.
pub(crate) trait Client: Send + 'static {
    /// Does one step. After an error the client is not used again.
    fn step(&mut self, step: Step<'_>) -> impl Future<Output = Result<()>> + Send;
}

/// Runs `task` with `clients`, and says what happened.
pub(crate) async fn measure<C: Client>(
    servers: &mut Servers,
    mut clients: Vec<C>,
    task: Task,
) -> Result<Sample> {
    if task.op == Op::Get {
        clients = write_keys(clients, KEYS).await?;
    }
    let fsyncs_before = servers.fsyncs()?;
    let server_before = servers.cpu()?;
    let client_before = own_cpu();
    let start = Instant::now();
    let end = start + task.duration;
    let mut loops = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        loops.spawn(closed_loop(client, number, task.op, end));
    }
    let mut all = Tally::new()?;
    let collect = async {
        while let Some(tally) = loops.join_next().await {
            all.add(tally??)?;
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::time::timeout(task.duration + GRACE, collect).await.context("clients hang")??;
    let seconds = start.elapsed().as_secs_f64();
    let client_cpu = own_cpu().saturating_sub(client_before).as_secs_f64();
    servers.check()?;
    let server_cpu = servers.cpu()?.saturating_sub(server_before).as_secs_f64();
    let fsyncs = servers.fsyncs()?.zip(fsyncs_before).map(|(after, before)| after - before);
    if all.latencies.is_empty() {
        return Err(all.first_error.unwrap_or_else(|| anyhow!("no operation ended")));
    }
    if let Some(error) = all.first_error {
        eprintln!("  {} operations failed, the first: {error:#}", all.failed);
    }
    let micros = |nanos: u64| nanos.div_ceil(1000);
    Ok(Sample {
        operations: all.latencies.len(),
        seconds,
        p50: micros(all.latencies.value_at_percentile(50.0)),
        p99: micros(all.latencies.value_at_percentile(99.0)),
        max: micros(all.latencies.max()),
        fewest: all.fewest,
        most: all.most,
        failed: all.failed,
        server_cpu,
        client_cpu,
        fsyncs,
    })
}

/// Writes `keys` keys once each, and gives the clients back.
pub(crate) async fn write_keys<C: Client>(clients: Vec<C>, keys: usize) -> Result<Vec<C>> {
    Ok(write_before(clients, keys, None).await?.0)
}

/// Writes `keys` keys once each, or as many as there is time for, and says how many.
pub(crate) async fn fill<C: Client>(clients: Vec<C>, keys: usize) -> Result<usize> {
    Ok(write_before(clients, keys, Some(Instant::now() + FILL_WITHIN)).await?.1)
}

async fn write_before<C: Client>(
    clients: Vec<C>,
    keys: usize,
    end: Option<Instant>,
) -> Result<(Vec<C>, usize)> {
    let every = clients.len();
    let mut loops = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        loops.spawn(async move {
            let mut rng = StdRng::seed_from_u64(number as u64);
            let mut value = [0; VALUE_BYTES];
            let mut written = 0;
            for key in (number..keys).step_by(every) {
                if end.is_some_and(|end| Instant::now() >= end) {
                    break;
                }
                rng.fill_bytes(&mut value);
                client.step(Step::Put { key: &key_name(key), value: &value }).await?;
                written += 1;
            }
            Ok::<_, anyhow::Error>((client, written))
        });
    }
    let (mut back, mut written) = (Vec::with_capacity(every), 0);
    while let Some(client) = loops.join_next().await {
        let (client, count) = client?.context("writing the keys")?;
        back.push(client);
        written += count;
    }
    Ok((back, written))
}

async fn closed_loop<C: Client>(mut client: C, number: usize, op: Op, end: Instant) -> Result<Tally> {
    // The same choice of keys in each run, another one in each client.
    let mut rng = StdRng::seed_from_u64(number as u64);
    let mut tally = Tally::new()?;
    let lock = key_name(if op == Op::LockDistinct { number } else { 0 });
    let mut value = [0; VALUE_BYTES];
    while Instant::now() < end {
        let key = key_name(rng.random_range(0..KEYS));
        let step = match op {
            Op::Put => {
                rng.fill_bytes(&mut value);
                Step::Put { key: &key, value: &value }
            }
            Op::Get => Step::Get { key: &key },
            Op::LockDistinct | Op::LockContended => Step::Cycle { lock: &lock },
        };
        let start = Instant::now();
        let outcome = client.step(step).await;
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match outcome {
            Ok(()) => tally.latencies.saturating_record(nanos),
            Err(error) => {
                tally.failed += 1;
                tally.first_error = Some(error);
                break;
            }
        }
    }
    tally.fewest = tally.latencies.len();
    tally.most = tally.latencies.len();
    Ok(tally)
}

fn key_name(number: usize) -> String {
    format!("bench/{number:08}")
}

/// CPU time of this process so far.
fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What one client, or all of them, counted.
#[derive(Debug)]
struct Tally {
    /// Of successful operations, in nanoseconds.
    latencies: Histogram<u64>,
    fewest: u64,
    most: u64,
    failed: u64,
    first_error: Option<anyhow::Error>,
}

impl Tally {
    fn new() -> Result<Self> {
        let latencies = Histogram::new_with_bounds(LEAST_NANOS, MOST_NANOS, DIGITS)?;
        Ok(Self { latencies, fewest: u64::MAX, most: 0, failed: 0, first_error: None })
    }

    fn add(&mut self, other: Self) -> Result<()> {
        self.latencies.add(&other.latencies)?;
        self.fewest = self.fewest.min(other.fewest);
        self.most = self.most.max(other.most);
        self.failed += other.failed;
        self.first_error = self.first_error.take().or(other.first_error);
        Ok(())
    }
}
