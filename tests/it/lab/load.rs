//! Clients under load, in processes of their own: what they do, and what they write down.
//!
//! A network namespace takes a process inside it, so the test binary runs itself there: the test [`worker`] does
//! nothing unless the environment says what. Each operation is one line in a file, with its invocation and its
//! return by the monotonic clock, which all processes of this machine share; so the files of several workers make
//! one history.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};
use roundtable::client::{Client, Error, Outcome};
use roundtable::id::Version;
use roundtable::net::Net;
use roundtable::node::Visitor;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::process::Process;
use super::{LIMIT, Lab, now, within};
use crate::checker::{Op, Ret};

/// Where a worker finds what to do.
const PLAN: &str = "ROUNDTABLE_TEST_WORKER";
/// Of each operation.
const DEADLINE: Duration = Duration::from_secs(5);
/// Keys in use: enough that each partition is led somewhere by a few.
pub(super) const KEYS: u32 = 160;
/// Between two operations of a client: a steady load, not the machine's limit.
const PACE: Duration = Duration::from_millis(4);
/// What [`Work::Fill`] writes to each key.
pub(super) const FILLED_BYTES: usize = 100;
/// Writes that are under way at a time.
const FILLERS: usize = 256;
/// Longest that it may take.
const FILL_LIMIT: Duration = Duration::from_secs(3600);
/// Client numbers that a worker may use.
const CLIENT_NUMBERS: u32 = 1_000_000;

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Work {
    /// All operations on all keys, until it is stopped.
    Mixed,
    /// Reads of all keys, until it is stopped.
    Reads,
    /// One write to every key, all at once.
    WriteEachOnce,
    /// One read of every key.
    ReadEachOnce,
    /// One stale read of every key.
    ReadEachOnceStale,
    /// One write each to so many other keys, all that go at a time; nothing is written down.
    Fill(u32),
}

#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    work: Work,
    join: Vec<String>,
    runtime_dir: PathBuf,
    output: PathBuf,
    clients: usize,
    first_client: u32,
    deadline: Duration,
}

/// One operation as its client saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) client: u32,
    pub(super) key: u32,
    pub(super) op: Op,
    pub(super) invoked: Duration,
    pub(super) returned: Duration,
    pub(super) result: Result<Ret, Trouble>,
    /// A stale read: bound to nothing.
    pub(super) stale: bool,
}

impl Seen {
    pub(super) fn took(&self) -> Duration {
        self.returned.saturating_sub(self.invoked)
    }

    /// The version that it wrote, if it was acknowledged.
    pub(super) fn wrote(&self) -> Option<Version> {
        match &self.result {
            Ok(Ret::Written(version)) => Some(*version),
            _ => None,
        }
    }

    /// Whether it wrote something, acknowledged.
    pub(super) fn acknowledged(&self) -> bool {
        matches!(self.result, Ok(Ret::Written(_) | Ret::Sum(_) | Ret::Deleted(true)))
    }
}

/// Why an operation did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub(super) text: String,
    /// Whether it may have been applied nevertheless.
    pub(super) unknown: bool,
    /// Whether it was `NoQuorum`.
    pub(super) no_quorum: bool,
}

/// Whether a key is used as a counter.
pub(super) fn is_counter(key: u32) -> bool {
    key % 4 == 3
}

/// Whether a key is deleted now and then.
pub(super) fn is_deleted(key: u32) -> bool {
    key % 4 == 2
}

/// A key as the store knows it.
pub(super) fn key_name(key: u32) -> String {
    format!("lab/{key}")
}

/// A key of those that [`Work::Fill`] writes.
pub(super) fn filled_name(key: u32) -> String {
    format!("many/{key}")
}

/// Clients at work.
#[derive(Debug)]
pub(super) struct Load {
    process: Process,
    output: PathBuf,
}

impl Lab {
    /// Lets so many clients work from a host, by the nodes at these addresses.
    pub(super) fn load(&self, host: usize, join: &[String], clients: usize, work: Work) -> Load {
        self.load_within(DEADLINE, host, join, clients, work)
    }

    /// The same, of clients that wait so long for each answer.
    fn load_within(
        &self,
        deadline: Duration,
        host: usize,
        join: &[String],
        clients: usize,
        work: Work,
    ) -> Load {
        static WORKERS: AtomicU32 = AtomicU32::new(0);
        let number = WORKERS.fetch_add(1, Ordering::Relaxed);
        let plan = Plan {
            work,
            join: join.to_vec(),
            runtime_dir: self.file(&format!("worker{number}.run")),
            output: self.file(&format!("worker{number}.history")),
            clients,
            first_client: number * CLIENT_NUMBERS,
            deadline,
        };
        let program = std::env::current_exe().expect("a program");
        let mut command = self.command(host, &program);
        command.args(["--exact", "lab::load::worker", "--nocapture"]);
        command.env(PLAN, serde_json::to_string(&plan).expect("a plan"));
        File::create(&plan.output).expect("a file");
        let process = Process::spawn(command, &self.file(&format!("worker{number}.log")));
        Load { process, output: plan.output }
    }

    /// Writes so many values, from a host.
    pub(super) fn fill(&self, host: usize, join: &[String], keys: u32) {
        let mut load = self.load(host, join, FILLERS, Work::Fill(keys));
        let status = load.process.ended(FILL_LIMIT);
        assert!(status.success(), "a worker failed ({status}): {}", load.process.output());
    }

    /// Does something with each key once, from a host; what was seen.
    pub(super) fn each_key(&self, host: usize, join: &[String], work: Work) -> Vec<Seen> {
        self.load(host, join, 32, work).finish()
    }

    /// The same, of patient clients: how long an answer took is for others to judge.
    pub(super) fn each_key_patiently(&self, host: usize, join: &[String], work: Work) -> Vec<Seen> {
        self.load_within(LIMIT / 4, host, join, 32, work).finish()
    }
}

impl Load {
    /// What was seen so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let text = std::fs::read_to_string(&self.output).expect("a history");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of a history")).collect()
    }

    /// Waits until so many more operations have returned: there is a load.
    pub(super) fn goes_on(&mut self, operations: usize) {
        let mut history = File::open(&self.output).expect("a history");
        history.seek(SeekFrom::End(0)).expect("a history");
        let mut count = 0;
        within(LIMIT, "the load goes on", || {
            let mut more = Vec::new();
            history.read_to_end(&mut more).expect("a history");
            count += more.split(|byte| *byte == b'\n').count() - 1;
            (count >= operations).then_some(())
        });
    }

    /// Lets the clients end what they are at, and stop; what they saw.
    pub(super) fn stop(mut self) -> Vec<Seen> {
        self.process.close_input();
        self.finish()
    }

    /// Waits for the end of the work; what was seen.
    fn finish(mut self) -> Vec<Seen> {
        let status = self.process.ended(LIMIT);
        assert!(status.success(), "a worker failed ({status}): {}", self.process.output());
        self.seen()
    }
}

/// No test of its own: what a [`Load`] runs in another process.
#[test]
fn worker() {
    let Some(plan) = super::setting(PLAN) else { return };
    let plan: Plan = serde_json::from_str(&plan).expect("a plan");
    let stopped = Arc::new(AtomicBool::new(false));
    if matches!(plan.work, Work::Mixed | Work::Reads) {
        let stopped = Arc::clone(&stopped);
        // The end of its input ends it, and so does the end of the test that started it.
        std::thread::spawn(move || {
            drop(std::io::stdin().read_to_end(&mut Vec::new()));
            stopped.store(true, Ordering::Relaxed);
        });
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(work(&plan, &stopped));
}

async fn work(plan: &Plan, stopped: &Arc<AtomicBool>) {
    let visitor = Visitor::builder()
        .runtime_directory(&plan.runtime_dir)
        .join(&plan.join)
        .timeout(LIMIT)
        .connect()
        .await
        .expect("a swarm");
    let log = File::options().append(true).open(&plan.output).expect("a file");
    let shared = Arc::new(Shared {
        log: Mutex::new(log),
        next_client: AtomicU32::new(plan.first_client),
        next_value: AtomicU64::new(0),
        next_key: AtomicU32::new(0),
        stopped: Arc::clone(stopped),
    });
    let clients = if plan.work == Work::WriteEachOnce { KEYS as usize } else { plan.clients };
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let client = Worker {
            shared: Arc::clone(&shared),
            client: visitor.client().with_deadline(plan.deadline),
            number: shared.next_client.fetch_add(1, Ordering::Relaxed),
            first_number: plan.first_client,
            versions: vec![None; KEYS as usize],
            rng: StdRng::seed_from_u64(u64::from(plan.first_client) + number as u64),
        };
        tasks.spawn(client.run(plan.work));
    }
    tasks.join_all().await;
    visitor.close().await;
}

#[derive(Debug)]
struct Shared {
    log: Mutex<File>,
    next_client: AtomicU32,
    next_value: AtomicU64,
    next_key: AtomicU32,
    stopped: Arc<AtomicBool>,
}

/// One client.
#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    client: Client<Net>,
    number: u32,
    first_number: u32,
    /// The version of each key that it saw last.
    versions: Vec<Option<Version>>,
    rng: StdRng,
}

impl Worker {
    async fn run(mut self, work: Work) {
        match work {
            Work::Mixed | Work::Reads => {
                let mut keys: Vec<u32> = (0..KEYS).collect();
                keys.shuffle(&mut self.rng);
                for key in keys.into_iter().cycle() {
                    if self.shared.stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let op = if work == Work::Reads { Op::Get } else { self.draw(key) };
                    self.perform(key, op, false).await;
                    tokio::time::sleep(PACE).await;
                }
            }
            Work::WriteEachOnce | Work::ReadEachOnce | Work::ReadEachOnceStale => loop {
                let key = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
                if key >= KEYS {
                    return;
                }
                let op = match work {
                    Work::WriteEachOnce if is_counter(key) => Op::Increment(1),
                    Work::WriteEachOnce => Op::Put(self.value()),
                    _ => Op::Get,
                };
                self.perform(key, op, work == Work::ReadEachOnceStale).await;
            },
            Work::Fill(keys) => loop {
                let key = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
                if key >= keys {
                    return;
                }
                self.client.put(filled_name(key), vec![b'v'; FILLED_BYTES]).await.expect("written");
            },
        }
    }

    fn draw(&mut self, key: u32) -> Op {
        let chance = self.rng.random_range(0..100);
        match chance {
            0..20 => Op::Get,
            _ if is_counter(key) => Op::Increment(1),
            20..35 => Op::Swap(self.versions[key as usize], self.value()),
            35..45 if is_deleted(key) => Op::Delete,
            _ => Op::Put(self.value()),
        }
    }

    /// A value that nobody else writes.
    fn value(&self) -> Vec<u8> {
        let number = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.first_number).into_bytes()
    }

    async fn perform(&mut self, key: u32, op: Op, stale: bool) {
        let invoked = now();
        let name = key_name(key);
        let answer = match op.clone() {
            Op::Get => {
                let read =
                    if stale { self.client.get_stale(name).await } else { self.client.get(name).await };
                read.map(|entry| Ret::Entry(entry.map(|entry| (entry.value, entry.version))))
            }
            Op::Put(value) => self.client.put(name, value).await.map(Ret::Written),
            Op::PutFor(value, life) => self.client.put_with_ttl(name, value, life).await.map(Ret::Written),
            Op::Delete => self.client.delete(name).await.map(Ret::Deleted),
            Op::Swap(expected, value) => {
                self.client.compare_and_swap(name, expected, value).await.map(Ret::Written)
            }
            Op::Increment(by) => self.client.increment(name, by).await.map(Ret::Sum),
        };
        let returned = now();
        let result = match answer {
            Ok(ret) => Ok(ret),
            Err(Error::Conflict { version }) => Ok(Ret::Conflict(version)),
            Err(Error::NotAnInteger) => Ok(Ret::NotAnInteger),
            Err(error) => Err(Trouble {
                text: error.to_string(),
                unknown: error.outcome() == Outcome::MayBeApplied,
                no_quorum: error == Error::NoQuorum,
            }),
        };
        match &result {
            Ok(Ret::Written(version) | Ret::Entry(Some((_, version)))) => {
                self.versions[key as usize] = Some(*version);
            }
            Ok(Ret::Conflict(version)) => self.versions[key as usize] = *version,
            Ok(Ret::Entry(None) | Ret::Deleted(_)) => self.versions[key as usize] = None,
            _ => {}
        }
        let client = self.number;
        if result.as_ref().is_err_and(|trouble| trouble.unknown) {
            // The operation stays open: who goes on is somebody else.
            self.number = self.shared.next_client.fetch_add(1, Ordering::Relaxed);
        }
        let seen = Seen { client, key, op, invoked, returned, result, stale };
        let mut line = serde_json::to_vec(&seen).expect("a line");
        line.push(b'\n');
        let mut log = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.write_all(&line).expect("the history is written");
    }
}
