//! What each node holds when nine of ten records have the same key: no more than twice its share, and nothing fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roundtable::compute::Program;
use roundtable::dataset::Format;
use roundtable::node::{MIN_JOB_MEMORY, Node};
use roundtable::sort::{Key, Order};
use roundtable::wire::{RANGE_BLOCKS, Rpc};
use tempfile::TempDir;

use super::datasets::{get, put};
use super::swarm::{machine, on, settled, start, within};

const NODES: usize = 5;
const REPLICAS: usize = 3;
/// Of them, 90 % in one key: more than a program can be handed at once.
const DATA_BYTES: usize = 24 << 20;
/// Time between two looks at the disks.
const LOOK: Duration = Duration::from_millis(2);

/// Lines of a hundred bytes: a key, a number, and what fills them.
fn rows() -> Vec<u8> {
    let row = |number: usize| {
        // Scattered, and no two the same.
        let scattered = number.wrapping_mul(7_919) % 1_000_003;
        let key = if number.is_multiple_of(10) { format!("k{scattered:09}") } else { "everybody".to_owned() };
        format!("{key:10} {scattered:010} {:077}\n", 0)
    };
    (0..DATA_BYTES / 100).flat_map(|number| row(number).into_bytes()).collect()
}

/// What is on the disk of a node: bytes of runs, and bytes of each block of a dataset by its number.
struct Disk(PathBuf);

impl Disk {
    fn runs(&self) -> u64 {
        files(&self.0.join("blocks/runs")).into_iter().map(|(_, bytes)| bytes).sum()
    }

    fn blocks(&self, swarm: &str, dataset: &str) -> BTreeMap<u32, u64> {
        let files = files(&self.0.join("blocks").join(swarm).join(dataset));
        files.into_iter().filter_map(|(name, bytes)| Some((name.parse().ok()?, bytes))).collect()
    }
}

fn files(directory: &Path) -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let entries = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        // It may be gone by now.
        Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.len()))
    });
    entries.collect()
}

/// The most that each of these disks had of runs, from now on until it is told.
struct Watch {
    stop: Arc<AtomicBool>,
    most: std::thread::JoinHandle<Vec<u64>>,
}

impl Watch {
    fn begin(disks: &TempDir) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, disks) = (Arc::clone(&stop), (0..NODES).map(|node| disk(disks, node)));
        let disks: Vec<Disk> = disks.collect();
        let most = std::thread::spawn(move || {
            let mut most = vec![0; NODES];
            while !stopped.load(Ordering::Relaxed) {
                for (most, disk) in most.iter_mut().zip(&disks) {
                    *most = disk.runs().max(*most);
                }
                std::thread::sleep(LOOK);
            }
            most
        });
        Self { stop, most }
    }

    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.most.join().unwrap()
    }
}

fn disk(disks: &TempDir, node: usize) -> Disk {
    Disk(disks.path().join(node.to_string()))
}

/// Five nodes with disks of their own, the least memory for jobs, and a program that has no `combine`: each line by its
/// key, and back again.
async fn five(machine: &TempDir, disks: &TempDir) -> Vec<Node> {
    let regroup = || {
        Program::new("regroup", 1)
            .map(|line, out| {
                let (key, rest) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap());
                out.pair(key, rest);
            })
            .reduce(|key, values, out| values.for_each(|rest| out.record(&[key, &rest].concat())))
    };
    let mut nodes = Vec::new();
    for node in 0..NODES {
        let builder = on(machine).data_dir(disk(disks, node).0).job_memory(MIN_JOB_MEMORY);
        nodes.push(start(builder.program(regroup())).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), REPLICAS).await;
    nodes
}

/// Whether nobody held more than twice its share of runs and of the output; returns the bytes of each range.
async fn check_shares<R: Rpc>(
    nodes: &[Node],
    disks: &TempDir,
    client: &roundtable::client::Client<R>,
    (output, runs): (&str, Vec<u64>),
) -> Vec<u64> {
    let share = (DATA_BYTES / NODES) as u64;
    assert!(runs.iter().all(|held| (1..=2 * share).contains(held)), "runs of a share of {share}: {runs:?}");
    let id = client.dataset(output).info().await.unwrap().unwrap().summary.id.to_string();
    let swarm = nodes[0].swarm().unwrap().to_string();
    let blocks: Vec<_> = (0..NODES).map(|node| disk(disks, node).blocks(&swarm, &id)).collect();
    let held: Vec<u64> = blocks.iter().map(|blocks| blocks.values().sum()).collect();
    let share = share * REPLICAS as u64;
    assert!(held.iter().all(|held| (1..=2 * share).contains(held)), "output of a share of {share}: {held:?}");
    let mut ranges: BTreeMap<u32, u64> = BTreeMap::new();
    for (number, bytes) in blocks.into_iter().flatten().collect::<BTreeMap<_, _>>() {
        *ranges.entry(number / RANGE_BLOCKS).or_default() += bytes;
    }
    ranges.into_values().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sort_gives_nobody_more_than_twice_its_share() {
    let (machine, disks) = (machine(), tempfile::tempdir().unwrap());
    let nodes = five(&machine, &disks).await;
    let client = nodes[0].client();
    let data = rows();
    within("put", put(&client, "rows", &data)).await;
    let mut wanted: Vec<&[u8]> = Format::Lines.records(&data).collect();
    wanted.sort_by_key(|line| &line[..10]);
    // Of the records with that key it says which come first only by where they stood.
    let order = Order { key: Key::Fields { first: 1, last: 1 }, stable: true, ..Order::default() };
    let watch = Watch::begin(&disks);
    let sort = client.sort("rows", "sorted", order);
    within("sort", sort.run(|_| {})).await.unwrap();
    let ranges = check_shares(&nodes, &disks, &client, ("sorted", watch.end())).await;
    assert_eq!(ranges.len(), NODES);
    let share = (DATA_BYTES / NODES) as u64;
    assert!(ranges.iter().all(|bytes| *bytes <= 2 * share), "ranges of a share of {share}: {ranges:?}");
    let sorted = within("get", get(&client, "sorted")).await.unwrap();
    assert!(Format::Lines.records(&sorted).eq(wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gives_nobody_more_than_twice_its_share() {
    let (machine, disks) = (machine(), tempfile::tempdir().unwrap());
    let nodes = five(&machine, &disks).await;
    let client = nodes[0].client();
    let data = rows();
    within("put", put(&client, "rows", &data)).await;
    let watch = Watch::begin(&disks);
    let job = client.job("regroup").input("rows").output("regrouped");
    let summary = within("the job", job.run(|_| {})).await.unwrap();
    check_shares(&nodes, &disks, &client, ("regrouped", watch.end())).await;
    assert_eq!((summary.again, summary.combined_pairs), (0, (DATA_BYTES / 100) as u64));
    let regrouped = within("get", get(&client, "regrouped")).await.unwrap();
    let lines = |data| {
        let mut lines: Vec<&[u8]> = Format::Lines.records(data).collect();
        lines.sort_unstable();
        lines
    };
    assert!(lines(&regrouped) == lines(&data));
}
