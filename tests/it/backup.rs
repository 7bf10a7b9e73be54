//! A backup of real nodes under load, put back into a swarm that is founded anew.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use roundtable::client::{BackupError, Error, RestoreError};
use roundtable::id::FencingToken;
use roundtable::node::Visitor;
use tokio::task::JoinSet;

use super::swarm::{machine, on, settled, start, within};

/// So that a partition's export takes several pieces.
const VALUE_BYTES: usize = 4000;
const KEYS: usize = 2000;
const WRITERS: usize = 4;

fn value(key: usize) -> Vec<u8> {
    key.to_be_bytes().into_iter().cycle().take(VALUE_BYTES).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_is_in_it() {
    let old_machine = machine();
    let old = [
        start(on(&old_machine).partitions(4)).await,
        start(on(&old_machine)).await,
        start(on(&old_machine)).await,
    ];
    settled(&old.iter().collect::<Vec<_>>(), 3).await;
    let client = old[0].client();
    let mut writes = JoinSet::new();
    for writer in 0..WRITERS {
        let client = client.clone();
        writes.spawn(async move {
            for key in (writer..KEYS).step_by(WRITERS) {
                client.put(format!("key{key}"), value(key)).await.unwrap();
            }
        });
    }
    within("all keys are written", writes.join_all()).await;
    let guard = client.lock("lock").acquire().await.unwrap();
    client.put_fenced("fenced", "v", guard.token()).await.unwrap();

    // Counters go on while the backup is made; what they were when it began is known.
    let acknowledged: Arc<[AtomicI64; WRITERS]> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = old[1].client();
        let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        writers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let value = client.increment(format!("count{writer}"), 1).await.unwrap();
                acknowledged[writer].store(value, Ordering::SeqCst);
            }
        });
    }
    while acknowledged.iter().any(|count| count.load(Ordering::SeqCst) < 10) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before: Vec<i64> = acknowledged.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    // By somebody who is no member.
    let visitor = Visitor::builder().runtime_directory(old_machine.path().join("run"));
    let visitor = within("the visitor is linked", visitor.connect()).await.unwrap();
    let mut file = Vec::new();
    let summary = within("backup", visitor.client().backup(&mut file, |_| {})).await.unwrap();
    let after: Vec<i64> = acknowledged.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    stop.store(true, Ordering::Relaxed);
    writers.join_all().await;
    assert_eq!((summary.partitions, summary.keys), (4, (KEYS + WRITERS + 1) as u64));
    let mut highest = 0;
    for entry in ["fenced", "key0", "key1", "key2"] {
        highest = highest.max(client.get(entry).await.unwrap().unwrap().version.0);
    }

    let new_machine = machine();
    let new = [start(on(&new_machine).partitions(7)).await, start(on(&new_machine)).await];
    settled(&new.iter().collect::<Vec<_>>(), 2).await;
    let visitor = Visitor::builder().runtime_directory(new_machine.path().join("run"));
    let visitor = within("the visitor is linked", visitor.connect()).await.unwrap();
    let mut seen = 0;
    let restore =
        async { visitor.client().restore(&mut Cursor::new(&file), |progress| seen = progress.keys).await };
    let restored = within("restore", restore).await.unwrap();
    assert_eq!((restored.keys, restored.kept, seen), (summary.keys, 0, summary.keys));
    let client = new[1].client();
    for key in 0..KEYS {
        let entry = client.get(format!("key{key}")).await.unwrap().unwrap();
        assert_eq!(entry.value, value(key), "key{key}");
    }
    for writer in 0..WRITERS {
        let entry = client.get(format!("count{writer}")).await.unwrap().unwrap();
        let count: i64 = String::from_utf8(entry.value).unwrap().parse().unwrap();
        // What was under way when the backup ended may not have been acknowledged yet.
        let range = before[writer]..=after[writer] + 1;
        assert!(range.contains(&count), "count{writer}: {count} is not in {range:?}");
        assert!(entry.version.0 > highest);
        assert!(client.increment(format!("count{writer}"), 1).await.unwrap() == count + 1);
    }
    assert!(client.put("key0", "w").await.unwrap().0 > highest);

    // The lock is free, its next token is higher, and the old holder's late write is refused.
    let old_token = guard.token();
    let new_guard = client.lock("lock").wait(Duration::ZERO).acquire().await.unwrap();
    assert!(new_guard.token() > old_token);
    client.put_fenced("fenced", "w", new_guard.token()).await.unwrap();
    let late = client.put_fenced("fenced", "late", old_token).await;
    assert!(matches!(late, Err(Error::Fenced { current }) if current == new_guard.token()), "{late:?}");
    let lower = FencingToken(old_token.0 - 1);
    assert!(matches!(client.put_fenced("fenced", "later", lower).await, Err(Error::Fenced { .. })));

    // Again, it changes nothing; another one is refused, and a damaged one as well.
    let again = client.restore(&mut Cursor::new(&file), |_| {}).await.unwrap();
    assert_eq!(again.before, summary.keys);
    assert_eq!(client.get("key0").await.unwrap().unwrap().value, b"w");
    let mut other = Vec::new();
    old[2].client().backup(&mut other, |_| {}).await.unwrap();
    let refused = client.restore(&mut Cursor::new(&other), |_| {}).await;
    assert!(matches!(refused, Err(RestoreError::NotEmpty)), "{refused:?}");
    let middle = file.len() / 2;
    file[middle] ^= 1;
    let refused = client.restore(&mut Cursor::new(&file), |_| {}).await;
    assert!(matches!(refused, Err(RestoreError::File(_))), "{refused:?}");
    visitor.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_though_a_node_leaves_and_fails_without_a_quorum() {
    let machine = machine();
    let nodes = [start(on(&machine)).await, start(on(&machine)).await, start(on(&machine)).await];
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let client = nodes[0].client();
    for key in 0..200 {
        client.put(format!("key{key}"), value(key)).await.unwrap();
    }
    let mut file = Vec::new();
    let (summary, ()) = tokio::join!(client.backup(&mut file, |_| {}), nodes[1].leave());
    assert_eq!(summary.unwrap().keys, 200);
    settled(&[&nodes[0], &nodes[2]], 2).await;

    let [first, _gone, third] = nodes;
    drop(third);
    let failed = within("backup fails", first.client().backup(&mut Vec::new(), |_| {})).await;
    let Err(BackupError::Partition { error, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(error, Error::NoQuorum);
}
