//! A data directory as the first format had it, written by a node of that time and kept in `tests/data`: today's nodes
//! go on from it.
//!
//! `ROUNDTABLE_TEST_FIXTURE=DIR cargo test --test it first_format` writes one like it. The zeros behind the log's last
//! record are not kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use roundtable::client::Error;
use roundtable::id::{FencingToken, Version};
use roundtable::node::{Node, NodeEvent};

use super::swarm::{machine, on, start, within};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/node-format-1");
/// What the fixture's names are, as they were drawn when it was written.
const NODE: &str = "12D3KooWKMZ3obZrDPddQhZyHjsgqF5s28g3FT2WSqTHAHP9C3ZU";
const SWARM: &str = "d0af0fa8c2c6329560c3a6ddb36bf3ae";
const PARTITIONS: u32 = 3;
const KEYS: u32 = 12;

fn key(number: u32) -> String {
    format!("kept/{number}")
}

/// Writes the fixture.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "what the constants above must say")]
async fn written() {
    let Some(dir) = std::env::var_os("ROUNDTABLE_TEST_FIXTURE").map(PathBuf::from) else { return };
    let machine = machine();
    let node = start(on(&machine).partitions(PARTITIONS).data_dir(&dir)).await;
    println!("node {}, swarm {}", node.id(), node.swarm().unwrap());
    let client = node.client();
    for number in 0..KEYS {
        client.put(key(number), format!("value {number}")).await.unwrap();
    }
    client.put(key(0), "written again").await.unwrap();
    client.delete(key(1)).await.unwrap();
    client.increment("counter", 41).await.unwrap();
    client.put_with_ttl("short-lived", "soon gone", Duration::from_secs(1)).await.unwrap();
    let guard =
        client.lock("held").lease(Duration::from_secs(3600)).note("by the first").acquire().await.unwrap();
    client.put_fenced("fenced", "by the holder", guard.token()).await.unwrap();
    println!("token {}", guard.token());
    // It is not released: its holder is gone when the node comes back.
    std::mem::forget(guard);
    node.stop().await;
    for file in logs(&dir) {
        let bytes = fs::read(&file).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
        File::options().write(true).open(file).unwrap().set_len(end).unwrap();
    }
    fs::remove_file(dir.join("lock")).unwrap();
}

fn logs(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let swarm =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let files = fs::read_dir(swarm).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log"))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}

/// Everything in the fixture is what was written.
async fn assert_kept(node: &Node) {
    let client = node.client();
    let text = async |key: String| {
        let entry = within("get", client.get(key)).await.unwrap()?;
        Some((String::from_utf8(entry.value).unwrap(), entry.version))
    };
    assert_eq!(text(key(0)).await.unwrap().0, "written again");
    assert_eq!(text(key(1)).await, None);
    for number in 2..KEYS {
        let (value, version) = text(key(number)).await.unwrap();
        assert_eq!(value, format!("value {number}"));
        assert!(version > Version(0));
    }
    assert_eq!(text("short-lived".to_owned()).await, None);
    assert_eq!(text("fenced".to_owned()).await.unwrap().0, "by the holder");
    let lock = within("lock", client.lock_state("held")).await.unwrap().expect("the lock is held");
    assert_eq!(lock.holders.len(), 1);
    assert_eq!(lock.holders[0].note, b"by the first");
    let held = client.lock("held").wait(Duration::ZERO).acquire().await;
    assert!(held.is_err(), "the lock is held");
    let late = within("put", client.put_fenced("fenced", "too late", FencingToken(1))).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_from_the_first_format() {
    let machine = machine();
    let dir = machine.path().join("data");
    copy(Path::new(FIXTURE), &dir);
    let begin = async || start(on(&machine).data_dir(&dir)).await;

    let node = begin().await;
    let mut events = node.events();
    assert_eq!(node.id().to_string(), NODE);
    assert_eq!(node.swarm().unwrap().to_string(), SWARM);
    assert_kept(&node).await;
    let (before, sum) = {
        let client = node.client();
        (
            within("put", client.put("new", "one")).await.unwrap(),
            client.increment("counter", 1).await.unwrap(),
        )
    };
    assert_eq!(sum, 42);
    while let Ok(event) = events.try_recv() {
        let damage = matches!(event, NodeEvent::Damaged { .. } | NodeEvent::StorageFinding { .. });
        assert!(!damage, "{event:?}");
    }
    node.stop().await;

    // And what it has written since goes with it.
    let node = begin().await;
    assert_kept(&node).await;
    let entry = within("get", node.client().get("new")).await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (&b"one"[..], before));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_refused_and_nothing_is_changed() {
    let machine = machine();
    let dir = machine.path().join("data");
    copy(Path::new(FIXTURE), &dir);
    let format = dir.join("format");
    let newer = fs::read_to_string(&format).unwrap().replace("format 1", "format 2");
    fs::write(&format, &newer).unwrap();
    let refused = on(&machine).data_dir(&dir).start().await.unwrap_err().to_string();
    assert!(refused.contains("has format 2, this version of Roundtable knows 1"), "{refused}");
    assert_eq!(fs::read_to_string(&format).unwrap(), newer);
}
