//! Datasets on real nodes: what was put comes back, whatever happens to nodes and disks meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roundtable::client::{Client, DatasetError};
use roundtable::dataset::{DatasetSummary, Format, MAX_BLOCK_BYTES};
use roundtable::node::{Node, Visitor};
use roundtable::wire::{BlockRefusal, Rpc};
use tempfile::TempDir;

use super::swarm::{machine, on, settled, start, within};

/// Time between two looks at something that is to become so.
const LOOK: Duration = Duration::from_millis(20);

/// Lines of random letters, not the same twice.
pub(super) fn lines(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut data = Vec::with_capacity(bytes + 200);
    while data.len() < bytes {
        let length = rng.next_u32() % 150;
        data.extend((0..length).map(|_| b'a' + u8::try_from(rng.next_u32() % 26).unwrap()));
        data.push(b'\n');
    }
    data
}

pub(super) async fn put<R: Rpc>(client: &Client<R>, name: &str, data: &[u8]) -> DatasetSummary {
    let mut writer = client.dataset(name).create(Format::Lines).await.unwrap();
    for piece in data.chunks(100_000) {
        writer.write(piece).await.unwrap();
    }
    writer.finish().await.unwrap()
}

pub(super) async fn get<R: Rpc>(client: &Client<R>, name: &str) -> Result<Vec<u8>, DatasetError> {
    let blocks: Vec<_> = client.dataset(name).read().await?.blocks().try_collect().await?;
    Ok(blocks.concat())
}

/// Directories of durable nodes.
struct Disks(TempDir);

impl Disks {
    fn new() -> Self {
        Self(machine())
    }

    fn of(&self, node: usize) -> PathBuf {
        self.0.path().join(node.to_string())
    }

    /// The files of all blocks of one node.
    fn blocks(&self, node: usize) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        collect(&self.of(node).join("blocks"), &mut found);
        found
    }

    /// Waits until so many copies of blocks are on these nodes.
    async fn hold(&self, nodes: &[usize], copies: usize) {
        let hold = async {
            while nodes.iter().map(|node| self.blocks(*node).len()).sum::<usize>() != copies {
                tokio::time::sleep(LOOK).await;
            }
        };
        within(&format!("{copies} copies on the nodes {nodes:?}"), hold).await;
    }
}

fn collect(directory: &Path, found: &mut BTreeMap<String, PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            collect(&path, found);
        } else if name.parse::<u32>().is_ok() {
            found.insert(name, path);
        }
    }
}

async fn durable(machine: &TempDir, disks: &Disks, count: usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 0..count {
        let builder = on(machine).data_dir(disks.of(number)).replace_after(Duration::from_secs(1));
        nodes.push(start(builder).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), count.min(3)).await;
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_comes_back_byte_for_byte() {
    let machine = machine();
    let nodes = [start(on(&machine)).await, start(on(&machine)).await, start(on(&machine)).await];
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let visitor = Visitor::builder().runtime_directory(machine.path().join("run"));
    let visitor = within("the visitor is linked", visitor.connect()).await.unwrap();
    let client = visitor.client();
    let data = lines(5 << 20, 1);
    let summary = within("put", put(&client, "words", &data)).await;
    assert_eq!((summary.bytes, summary.blocks), (data.len() as u64, 6));
    assert_eq!(summary.records, Format::Lines.records(&data).count() as u64);
    for node in &nodes {
        assert_eq!(within("get", get(&node.client(), "words")).await.unwrap(), data);
    }
    assert_eq!(within("get", get(&client, "words")).await.unwrap(), data);
    assert_eq!(client.dataset("words").create(Format::Lines).await.unwrap_err(), DatasetError::Exists);

    // Records, of any bytes, one by one; and nothing at all.
    let mut writer = client.dataset("records").create(Format::Records).await.unwrap();
    for record in [&b"one\n"[..], b"", &[0xff; 1000]] {
        writer.write_record(record).await.unwrap();
    }
    let too_long = writer.write_record(&vec![0; MAX_BLOCK_BYTES]).await.unwrap_err();
    assert_eq!(too_long, DatasetError::Record(Format::Records));
    assert_eq!(writer.finish().await.unwrap().records, 3);
    let bytes = get(&client, "records").await.unwrap();
    assert_eq!(Format::Records.records(&bytes).nth(2), Some(&[0xff; 1000][..]));
    assert_eq!(put(&client, "empty", b"").await.blocks, 0);
    assert_eq!(get(&client, "empty").await.unwrap(), b"");

    let mut names: Vec<_> = client.datasets().map(|dataset| dataset.unwrap().0).collect().await;
    names.sort();
    assert_eq!(names, [&b"empty"[..], b"records", b"words"]);
    assert!(client.dataset("words").remove().await.unwrap());
    assert!(!client.dataset("words").remove().await.unwrap());
    assert_eq!(get(&client, "words").await.unwrap_err(), DatasetError::NotFound);
    visitor.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_dropped_when_their_dataset_is_removed_or_given_up() {
    let (machine, disks) = (machine(), Disks::new());
    let nodes = durable(&machine, &disks, 2).await;
    let client = nodes[0].client();
    let data = lines(3 << 20, 2);
    let blocks = put(&client, "removed", &data).await.blocks as usize;
    disks.hold(&[0, 1], 2 * blocks).await;
    client.dataset("removed").remove().await.unwrap();
    disks.hold(&[0, 1], 0).await;
    let mut writer = client.dataset("given up").create(Format::Lines).await.unwrap();
    writer.write(&data).await.unwrap();
    disks.hold(&[0, 1], 2 * (blocks - 1)).await;
    writer.abort().await;
    disks.hold(&[0, 1], 0).await;
    // Two write under one name: one of them has it.
    let mut late = client.dataset("contested").create(Format::Lines).await.unwrap();
    late.write(&data).await.unwrap();
    put(&client, "contested", b"first\n").await;
    assert_eq!(late.finish().await.unwrap_err(), DatasetError::Exists);
    assert_eq!(get(&client, "contested").await.unwrap(), b"first\n");
    disks.hold(&[0, 1], 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_lost_block_is_never_served_and_made_anew() {
    let (machine, disks) = (machine(), Disks::new());
    let nodes = durable(&machine, &disks, 3).await;
    let client = nodes[0].client();
    let data = lines(3 << 20, 3);
    let blocks = put(&client, "words", &data).await.blocks as usize;
    assert_eq!(blocks, 4);
    disks.hold(&[0, 1, 2], 3 * blocks).await;
    let whole = |path: &PathBuf| fs::read(path).unwrap();
    let files: Vec<PathBuf> = disks.blocks(0).into_values().collect();
    let before: Vec<Vec<u8>> = files.iter().map(whole).collect();
    // One bit, the end, everything; the node's own client asks its own node first.
    let mut flipped = before[0].clone();
    flipped[500_000] ^= 1;
    fs::write(&files[0], flipped).unwrap();
    fs::write(&files[1], &before[1][..before[1].len() - 1]).unwrap();
    fs::remove_file(&files[2]).unwrap();
    assert_eq!(within("get", get(&client, "words")).await.unwrap(), data);
    let healed = async {
        while files.iter().zip(&before).any(|(file, before)| fs::read(file).ok().as_ref() != Some(before)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    within("the files are as they were", healed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_while_a_dataset_is_put_loses_nothing() {
    let (machine, disks) = (machine(), Disks::new());
    let mut nodes = durable(&machine, &disks, 4).await;
    let client = nodes[0].client();
    let data = lines(12 << 20, 4);
    let mut writer = client.dataset("words").create(Format::Lines).await.unwrap();
    let (first, second) = data.split_at(data.len() / 2);
    within("the first half", writer.write(first)).await.unwrap();
    let died = nodes.pop().unwrap();
    drop(died);
    within("the second half", writer.write(second)).await.unwrap();
    let blocks = within("sealed", writer.finish()).await.unwrap().blocks as usize;
    assert_eq!(within("get", get(&client, "words")).await.unwrap(), data);
    // The ring goes on without it, and every block has three replicas again.
    disks.hold(&[0, 1, 2], 3 * blocks).await;
    assert_eq!(within("get", get(&nodes[1].client(), "words")).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_hands_its_blocks_over_first() {
    let (machine, disks) = (machine(), Disks::new());
    let nodes = durable(&machine, &disks, 1).await;
    let data = lines(3 << 20, 5);
    let blocks = put(&nodes[0].client(), "words", &data).await.blocks as usize;
    let other = start(on(&machine).data_dir(disks.of(1))).await;
    settled(&[&nodes[0], &other], 2).await;
    within("the first leaves", nodes[0].leave()).await;
    disks.hold(&[1], blocks).await;
    assert_eq!(within("get", get(&other.client(), "words")).await.unwrap(), data);
    assert_eq!(disks.blocks(0).len(), 0);
    // It comes back from its disk with them.
    other.stop().await;
    drop(other);
    let again = start(on(&machine).data_dir(disks.of(1))).await;
    assert_eq!(within("get", get(&again.client(), "words")).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_room_says_so() {
    let machine = machine();
    let node = start(on(&machine).block_budget(2 << 20)).await;
    let client = node.client();
    let mut writer = client.dataset("large").create(Format::Lines).await.unwrap();
    let data = lines(4 << 20, 6);
    let result = match writer.write(&data).await {
        Ok(()) => writer.finish().await.map(drop),
        Err(error) => {
            writer.abort().await;
            Err(error)
        }
    };
    let full =
        DatasetError::NotKept { stored: 0, needed: 1, reason: Some(BlockRefusal::Full { limit: 2 << 20 }) };
    assert_eq!(result.unwrap_err(), full);
    // What was given up makes room.
    let small = lines(1 << 20, 7);
    let fits = async {
        loop {
            let mut writer = client.dataset("small").create(Format::Lines).await.unwrap();
            if writer.write(&small).await.is_ok() && writer.finish().await.is_ok() {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    within("there is room again", fits).await;
    assert_eq!(get(&client, "small").await.unwrap(), small);
}
