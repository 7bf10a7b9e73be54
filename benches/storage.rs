//! The store alone, on the disk that holds `ROUNDTABLE_BENCH_DIR` (`/var/tmp` unless set): `cargo bench --bench
//! storage`.
//!
//! Batches of entries of 150 bytes over 64 partitions, each on the disk before the next; the same without waiting;
//! and how long it takes to read a million entries back.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]
#![expect(clippy::cast_precision_loss, reason = "rates need no more")]

use std::path::Path;
use std::time::Duration;

use roundtable::id::{PartitionId, ReplicaId, SwarmId};
use roundtable::replication::{LogEntry, StoredState, Write};
use roundtable::storage::{DataDir, Event, Store, StoreConfig};
use rustix::time::{ClockId, clock_gettime};

const PARTITIONS: usize = 64;
const VALUE_BYTES: usize = 150;
const SWARM: SwarmId = SwarmId(1);
/// Of each round.
const ROUND: Duration = Duration::from_secs(3);
/// Batches under way where nobody waits for each.
const AHEAD: u64 = 64;
/// Entries to read back.
const MANY: u64 = 1_000_000;

fn now(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

fn since(clock: ClockId, begin: Duration) -> Duration {
    now(clock).saturating_sub(begin)
}

/// Where the logs of all partitions end.
struct Logs {
    last: Vec<u64>,
    batch: u64,
    next: usize,
}

impl Logs {
    fn new() -> Self {
        Self { last: vec![0; PARTITIONS], batch: 0, next: 0 }
    }

    /// A turn that appends so many entries, each to another partition.
    fn turn(&mut self, entries: u64) -> (u64, Vec<Write>) {
        self.batch += 1;
        let writes = (0..entries).map(|_| {
            self.next = (self.next + 1) % self.last.len();
            self.last[self.next] += 1;
            let entry = LogEntry {
                term: 1,
                config: false,
                data: vec![7; VALUE_BYTES].into(),
                context: Vec::new().into(),
            };
            let (partition, replica) = named(self.next);
            Write::Append { partition, replica, first: self.last[self.next], entries: vec![entry] }
        });
        (self.batch, writes.collect())
    }

    /// The states that a store asks for; small ones.
    fn states(&mut self, partitions: &[PartitionId]) -> (u64, Vec<Write>) {
        self.batch += 1;
        let writes = partitions.iter().map(|partition| {
            let (partition, replica) = named(partition.0 as usize);
            let index = self.last[partition.0 as usize];
            let state = StoredState { index, term: 1, header: Vec::new(), data: vec![7; 10_000] };
            Write::State { partition, replica, replaces_log: false, state }
        });
        (self.batch, writes.collect())
    }
}

fn named(partition: usize) -> (PartitionId, ReplicaId) {
    (PartitionId(u32::try_from(partition).unwrap_or(0)), ReplicaId(1))
}

/// Takes events until so much is on the disk.
async fn persisted(store: &Store, logs: &mut Logs, batch: u64) -> u64 {
    loop {
        match store.next_event().await {
            Event::Persisted(so_far) if so_far >= batch => return so_far,
            Event::WantState(partitions) => {
                let (batch, writes) = logs.states(&partitions);
                store.submit(batch, writes).expect("there is room");
            }
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

async fn commits(dir: &Path, entries: u64, ahead: u64) {
    let dir = DataDir::open(dir).expect("a data directory");
    dir.remove_swarm(SWARM).expect("nothing is there");
    let (store, _) = Store::open(&dir, SWARM, StoreConfig::default(), |_| {}).expect("a store");
    let mut logs = Logs::new();
    let (begin, cpu) = (now(ClockId::Monotonic), now(ClockId::ProcessCPUTime));
    let mut waits = Vec::new();
    let mut turns = 0_u64;
    let mut done = 0;
    while since(ClockId::Monotonic, begin) < ROUND {
        let (batch, writes) = logs.turn(entries);
        store.submit(batch, writes).expect("there is room");
        turns += 1;
        let asked = now(ClockId::Monotonic);
        if batch >= done + ahead {
            done = persisted(&store, &mut logs, batch + 1 - ahead).await;
            waits.push((since(ClockId::Monotonic, asked)).as_micros());
        }
    }
    store.close().await.expect("all is on the disk");
    let (took, cpu) = (since(ClockId::Monotonic, begin), since(ClockId::ProcessCPUTime, cpu));
    waits.sort_unstable();
    let stats = store.stats();
    let total = turns * entries;
    println!(
        "{entries:3} entries a turn, {ahead:2} turns ahead: {:7.0} turns/s {:8.0} entries/s  wait p50 {} us p99 {} us  \
         CPU {:.1} us/turn  {:.2} syncs/turn  {:.0} bytes/entry",
        turns as f64 / took.as_secs_f64(),
        total as f64 / took.as_secs_f64(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        cpu.as_secs_f64() * 1e6 / turns as f64,
        stats.fsyncs as f64 / turns as f64,
        stats.bytes_written as f64 / total as f64,
    );
}

async fn replay(dir: &Path) {
    let dir = DataDir::open(dir).expect("a data directory");
    dir.remove_swarm(SWARM).expect("nothing is there");
    let config = StoreConfig { log_bytes: u64::MAX, ..StoreConfig::default() };
    let (store, _) = Store::open(&dir, SWARM, config.clone(), |_| {}).expect("a store");
    let mut logs = Logs::new();
    for _ in 0..MANY / 16 {
        let (batch, writes) = logs.turn(16);
        store.submit(batch, writes).expect("there is room");
        if batch % AHEAD == 0 {
            persisted(&store, &mut logs, batch).await;
        }
    }
    store.close().await.expect("all is on the disk");
    let bytes = store.stats().log_bytes;
    drop(store);
    for _ in 0..3 {
        let (begin, cpu) = (now(ClockId::Monotonic), now(ClockId::ProcessCPUTime));
        let (store, recovered) = Store::open(&dir, SWARM, config.clone(), |_| {}).expect("a store");
        let (took, cpu) = (since(ClockId::Monotonic, begin), since(ClockId::ProcessCPUTime, cpu));
        let entries: usize = recovered.stored.replicas.values().map(|replica| replica.entries.len()).sum();
        println!(
            "{entries} entries read back in {:.2} s, CPU {:.2} s: {:.0} MB/s",
            took.as_secs_f64(),
            cpu.as_secs_f64(),
            bytes as f64 / took.as_secs_f64() / 1e6,
        );
        drop(store);
    }
}

#[tokio::main]
async fn main() {
    let home = std::env::var_os("ROUNDTABLE_BENCH_DIR").unwrap_or_else(|| "/var/tmp".into());
    let home = tempfile::TempDir::new_in(home).expect("a directory");
    for entries in [1, 8, 64] {
        for ahead in [1, AHEAD] {
            commits(home.path(), entries, ahead).await;
        }
    }
    replay(home.path()).await;
}
