//! Sorting on real nodes, against the plainest sort there is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use roundtable::client::{Client, DatasetError, SortError, SortStage};
use roundtable::dataset::Format;
use roundtable::node::{Node, Visitor};
use roundtable::sort::{Key, Order};
use roundtable::wire::Rpc;

use super::datasets::{get, lines, put};
use super::swarm::{machine, on, settled, start, within};

/// Time between two looks at something that is to become so.
const LOOK: Duration = Duration::from_millis(20);

async fn three(machine: &tempfile::TempDir) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(start(on(machine).replace_after(Duration::from_secs(1))).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    nodes
}

async fn sort<R: Rpc>(client: &Client<R>, input: &str, output: &str, order: Order) -> Vec<u8> {
    let sort = client.sort(input, output, order);
    within("sort", sort.run(|_| {})).await.unwrap();
    within("get", get(client, output)).await.unwrap()
}

/// Lines in an order, each with its end.
fn joined<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    lines.into_iter().flat_map(|line| [line, b"\n"].concat()).collect()
}

fn split(data: &[u8]) -> Vec<&[u8]> {
    Format::Lines.records(data).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sorted_is_what_a_plain_sort_gives() {
    let machine = machine();
    let nodes = three(&machine).await;
    let visitor = Visitor::builder().runtime_directory(machine.path().join("run"));
    let visitor = within("the visitor is linked", visitor.connect()).await.unwrap();
    let client = visitor.client();
    let data = lines(6 << 20, 11);
    put(&client, "words", &data).await;
    let mut wanted = split(&data);
    wanted.sort_unstable();
    assert_eq!(sort(&client, "words", "sorted", Order::default()).await, joined(wanted.iter().copied()));
    let reverse = Order { reverse: true, ..Order::default() };
    assert_eq!(
        sort(&nodes[1].client(), "words", "reversed", reverse).await,
        joined(wanted.iter().rev().copied())
    );
    // Short lines: many are equal.
    let short: Vec<u8> = data.iter().map(|byte| if *byte < b'w' { *byte } else { b'\n' }).collect();
    put(&client, "short", &short).await;
    let mut wanted = split(&short);
    wanted.sort_unstable();
    wanted.dedup();
    let unique = Order { unique: true, ..Order::default() };
    assert_eq!(sort(&client, "short", "unique", unique).await, joined(wanted));

    let errors = [
        (client.sort("none", "output", Order::default()), DatasetError::NotFound),
        (client.sort("words", "sorted", Order::default()), DatasetError::Exists),
    ];
    for (sort, error) in errors {
        assert_eq!(sort.run(|_| {}).await.unwrap_err(), SortError::Dataset(error));
    }
    put(&client, "empty", b"").await;
    assert_eq!(sort(&client, "empty", "sorted empty", Order::default()).await, b"");
    visitor.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_fields_and_one_key_of_most_records() {
    let machine = machine();
    let nodes = three(&machine).await;
    let client = nodes[0].client();
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    // Name, number, and what makes it the only one of its kind; nine of ten have the same number.
    let records: Vec<(i64, String)> = (0..60_000)
        .map(|row| {
            let number = if random() % 10 < 9 { 42 } else { i64::try_from(random() % 2000).unwrap() - 1000 };
            (number, format!("name{} {number} {row}", random() % 100))
        })
        .collect();
    let data = joined(records.iter().map(|(_, line)| line.as_bytes()));
    put(&client, "rows", &data).await;
    let by = Order { key: Key::Fields { first: 2, last: 2 }, numeric: true, ..Order::default() };

    let mut wanted: Vec<_> = records.iter().collect();
    wanted.sort_by(|one, other| one.0.cmp(&other.0).then_with(|| one.1.cmp(&other.1)));
    assert_eq!(
        sort(&client, "rows", "by number", by).await,
        joined(wanted.iter().map(|row| row.1.as_bytes()))
    );
    let mut wanted: Vec<_> = records.iter().collect();
    wanted.sort_by_key(|row| std::cmp::Reverse(row.0));
    let stable = Order { stable: true, reverse: true, ..by };
    assert_eq!(
        sort(&client, "rows", "stable", stable).await,
        joined(wanted.iter().map(|row| row.1.as_bytes()))
    );
    let mut wanted: Vec<_> = records.iter().collect();
    wanted.sort_by_key(|row| row.0);
    wanted.dedup_by_key(|row| row.0);
    let unique = Order { unique: true, ..by };
    assert_eq!(
        sort(&client, "rows", "unique", unique).await,
        joined(wanted.iter().map(|row| row.1.as_bytes()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_while_sorting_costs_only_its_own_work() {
    for stage in [SortStage::Sorting, SortStage::Merging] {
        let machine = machine();
        let mut nodes = three(&machine).await;
        nodes.push(start(on(&machine).replace_after(Duration::from_secs(1))).await);
        settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
        let client = nodes[0].client();
        let data = lines(48 << 20, 12);
        within("put", put(&client, "words", &data)).await;
        let dies = nodes.pop().unwrap();
        let reached = AtomicBool::new(false);
        let sort = client.sort("words", "sorted", Order::default());
        let sorting = sort.run(|progress| {
            // Something of the stage is done, and something is not.
            if progress.stage == stage && progress.bytes > 0 && progress.bytes < progress.of {
                reached.store(true, Ordering::Relaxed);
            }
        });
        let killing = async {
            while !reached.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(dies);
        };
        let (summary, ()) = within("sort", async { tokio::join!(sorting, killing) }).await;
        let summary = summary.unwrap();
        let mut wanted = split(&data);
        wanted.sort_unstable();
        assert!(within("get", get(&client, "sorted")).await.unwrap() == joined(wanted), "{stage:?}");
        let (sorts, merges) = summary.tasks;
        assert!(summary.again < (sorts + merges) as u64, "{summary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sort_that_is_broken_off_leaves_nothing() {
    let machine = machine();
    let node = start(on(&machine).block_budget(64 << 20)).await;
    let client = node.client();
    let data = lines(20 << 20, 13);
    within("put", put(&client, "words", &data)).await;
    let begun = AtomicBool::new(false);
    let sort = client.sort("words", "sorted", Order::default());
    tokio::select! {
        result = sort.run(|progress| begun.store(progress.stage == SortStage::Merging, Ordering::Relaxed)) => {
            panic!("it was to be broken off: {result:?}");
        }
        () = async {
            while !begun.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } => {}
    }
    sort.cancel().await;
    assert!(client.dataset("sorted").info().await.unwrap().is_none());
    // What it took of the room is given back: the same fits again and again.
    fits_again_and_again(&client, &data).await;
    let left: Vec<_> = client.datasets().try_collect().await.unwrap();
    assert_eq!(left.len(), 1);
}

/// That a node has room for these lines, as often as they are put there and removed.
pub(super) async fn fits_again_and_again<R: Rpc>(client: &Client<R>, data: &[u8]) {
    for round in 0..4 {
        let again = async {
            loop {
                let name = format!("copy {round}");
                let mut writer = client.dataset(name.as_str()).create(Format::Lines).await.unwrap();
                if writer.write(data).await.is_ok() && writer.finish().await.is_ok() {
                    break client.dataset(name.as_str()).remove().await.unwrap();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        assert!(within("there is room", again).await);
    }
}

/// What the command says when it is typed: exit code and standard output.
pub(super) fn roundtable(machine: &tempfile::TempDir, words: &[&str]) -> (i32, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_roundtable"))
        .current_dir(machine.path())
        .arg("--runtime-dir")
        .arg(machine.path().join("run"))
        .args(words)
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn datasets_and_sorting_as_they_are_typed() {
    let machine = machine();
    let _node = start(on(&machine)).await;
    let file = |name: &str| machine.path().join(name);
    std::fs::write(file("in.txt"), "pear 3\napple 20\nfig 100\n").unwrap();
    let typed = |line: &str| roundtable(&machine, &line.split(' ').collect::<Vec<_>>());
    assert_eq!(typed("data put fruit in.txt").0, 0);
    assert_eq!(typed("data put fruit in.txt").0, 4);
    assert_eq!(typed("data get none").0, 3);
    assert_eq!(typed("data put other none.txt").0, 1);
    assert_eq!(typed("data get fruit").1, "pear 3\napple 20\nfig 100\n");
    assert_eq!(typed("sort fruit").1, "apple 20\nfig 100\npear 3\n");
    // From a dataset to a dataset, from a file to a file, and the other way where a path says so.
    assert_eq!(typed("sort fruit --by 2 -n --output sorted").0, 0);
    assert_eq!(typed("data get sorted copy.txt").0, 0);
    assert_eq!(std::fs::read_to_string(file("copy.txt")).unwrap(), "pear 3\napple 20\nfig 100\n");
    assert_eq!(typed("sort in.txt --by 2 -nr --output out.txt").0, 0);
    assert_eq!(std::fs::read_to_string(file("out.txt")).unwrap(), "fig 100\napple 20\npear 3\n");
    assert_eq!(typed("sort fruit --output ./fruit.txt").0, 0);
    assert_eq!(std::fs::read_to_string(file("fruit.txt")).unwrap(), "apple 20\nfig 100\npear 3\n");
    assert_eq!(typed("sort none --output x").0, 3);
    let (code, listed) = typed("data list --format json");
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert_eq!((code, names), (0, vec!["fruit".into(), "sorted".into()]));
    assert_eq!(listed[0]["records"], 3);
    assert_eq!(typed("data rm fruit").0, 0);
    assert_eq!(typed("data rm fruit").0, 3);
}
