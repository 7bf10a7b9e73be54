//! A backup of one swarm, put back into another; both exist only here.

use std::io::Cursor;
use std::time::Duration;

use tokio::time::sleep;

use super::super::tests::{MS, Mood, Net};
use super::super::{Client, Entry, Error};
use super::*;
use crate::id::{FencingToken, SwarmId, Version};
use crate::state_machine::{MAX_IMPORTED_BYTES, StateMachine};
use crate::wire::Refusal;

const OLD: SwarmId = SwarmId(7);
const NEW: SwarmId = SwarmId(8);

async fn backup_of(client: &Client<Net>) -> Result<(Vec<u8>, BackupSummary), BackupError> {
    let mut file = Vec::new();
    let summary = client.backup(&mut file, |_| {}).await?;
    assert_eq!(summary.bytes, file.len() as u64);
    Ok((file, summary))
}

async fn put_back(client: &Client<Net>, file: &[u8]) -> Result<RestoreSummary, RestoreError> {
    client.restore(&mut Cursor::new(file.to_vec()), |_| {}).await
}

async fn value(client: &Client<Net>, key: &str) -> Option<Vec<u8>> {
    client.get(key).await.unwrap().map(|entry| entry.value)
}

/// A client of a swarm with so many keys.
async fn swarm_with(keys: usize) -> Client<Net> {
    let client = Net::of(OLD, 8).client();
    for key in 0..keys {
        client.put(format!("key{key}"), format!("value{key}")).await.unwrap();
    }
    client
}

async fn assert_all_there(client: &Client<Net>, keys: usize) {
    for key in 0..keys {
        assert_eq!(value(client, &format!("key{key}")).await.unwrap(), format!("value{key}").into_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn everything_comes_back_in_a_swarm_of_another_number_of_partitions() {
    for partitions in [1, 3, 8, 21] {
        let old = swarm_with(300).await;
        old.put_with_ttl("short", "v", Duration::from_secs(60)).await.unwrap();
        old.put("long", "v".repeat(MAX_IMPORTED_BYTES * 2)).await.unwrap();
        let guard = old.lock("lock").acquire().await.unwrap();
        old.put_fenced("fenced", "v", guard.token()).await.unwrap();
        old.put_fenced("gone", "v", guard.token()).await.unwrap();
        old.delete("gone").await.unwrap();
        sleep(Duration::from_secs(20)).await;
        let mut seen = Vec::new();
        let mut file = Vec::new();
        let summary = old.backup(&mut file, |progress| seen.push(progress)).await.unwrap();
        assert_eq!((summary.swarm, summary.partitions, summary.keys), (OLD, 8, 303));
        assert!(seen.is_sorted_by_key(|progress| progress.keys));
        let last = seen.last().unwrap();
        assert_eq!((last.partitions, last.of, last.keys), (8, 8, 303));

        let new = Net::of(NEW, partitions).client_drawing(2);
        let mut seen = Vec::new();
        let restored = new.restore(&mut Cursor::new(file), |progress| seen.push(progress)).await.unwrap();
        assert_eq!((restored.swarm, restored.keys, restored.before, restored.kept), (OLD, 303, 0, 0));
        assert!(seen.is_sorted_by_key(|progress| (progress.verified, progress.keys)));
        assert_eq!((seen.last().unwrap().keys, seen.last().unwrap().of), (303, 303));
        assert_all_there(&new, 300).await;
        assert_eq!(value(&new, "long").await.unwrap().len(), MAX_IMPORTED_BYTES * 2);
        let Entry { version, ttl_ms, .. } = new.get("short").await.unwrap().unwrap();
        assert!((30_000..=40_000).contains(&ttl_ms.unwrap()), "{ttl_ms:?}");

        // Numbers go on above all that were handed out, and the locks are free.
        assert!(version > summary.highest && restored.above > summary.highest);
        assert!(new.put("key0", "w").await.unwrap() > restored.above);
        let old_token = guard.token();
        let guard = new.lock("lock").acquire().await.unwrap();
        assert!(guard.token().0 > restored.above.0);
        new.put_fenced("gone", "w", guard.token()).await.unwrap();
        for key in ["fenced", "gone"] {
            let lower = FencingToken(old_token.0 - 1);
            let refused = new.put_fenced(key, "late", lower).await;
            assert!(matches!(refused, Err(Error::Fenced { .. })), "{key}: {refused:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_lost_and_exports_that_go_away_are_asked_for_again() {
    let net = Net::of(OLD, 8);
    let old = net.client();
    for key in 0..200 {
        old.put(format!("key{key}"), format!("value{key}")).await.unwrap();
    }
    net.lose_exports(3);
    net.trouble(5);
    let (file, _) = backup_of(&old).await.unwrap();
    let net = Net::of(NEW, 5);
    let new = net.client_drawing(2);
    net.trouble(5);
    let restored = put_back(&new, &file).await.unwrap();
    assert_eq!((restored.keys, restored.kept), (200, 0));
    assert_all_there(&new, 200).await;
}

#[tokio::test(start_paused = true)]
async fn an_export_that_is_always_gone_ends_the_backup() {
    let net = Net::of(OLD, 2);
    let client = net.client();
    client.put("k", "v").await.unwrap();
    net.lose_exports(usize::MAX);
    let error = backup_of(&client).await.unwrap_err();
    assert!(matches!(error, BackupError::Partition { error: Error::TimedOut, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_without_quorum_ends_the_backup() {
    let net = Net::of(OLD, 2);
    for number in 1..=3 {
        net.mood(number, Mood::Refusing(Refusal::NoQuorum));
    }
    let error = backup_of(&net.client()).await.unwrap_err();
    assert!(matches!(error, BackupError::Partition { error: Error::NoQuorum, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_what_was_written_is_refused_before_anything_is_changed() {
    let (file, _) = backup_of(&swarm_with(20).await).await.unwrap();
    let net = Net::of(NEW, 3);
    let new = net.client_drawing(2);
    let untouched = net.states();
    let mut wrong: Vec<Vec<u8>> = (0..file.len()).step_by(7).map(|at| file[..at].to_vec()).collect();
    for at in (0..file.len()).step_by(11) {
        let mut flipped = file.clone();
        flipped[at] ^= 1 << (at % 8);
        wrong.push(flipped);
    }
    wrong.push([&file[..], b"x"].concat());
    for file in wrong {
        let error = put_back(&new, &file).await.unwrap_err();
        assert!(matches!(error, RestoreError::File(_)), "{error}");
    }
    assert_eq!(net.states(), untouched);
    // Two bytes behind the magic: the format.
    let mut later = file.clone();
    later[18] = 2;
    let error = put_back(&new, &later).await.unwrap_err();
    assert!(matches!(error, RestoreError::File(FileError::Format(2))), "{error}");
    let error = put_back(&new, b"something else entirely").await.unwrap_err();
    assert!(matches!(error, RestoreError::File(FileError::NotABackup)), "{error}");
    assert_eq!(net.states(), untouched);
    put_back(&new, &file).await.unwrap();
    assert_all_there(&new, 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_swarm_that_holds_something_is_refused_and_not_changed() {
    let (file, _) = backup_of(&swarm_with(20).await).await.unwrap();
    let net = Net::of(NEW, 3);
    let new = net.client_drawing(2);
    new.put("mine", "v").await.unwrap();
    let highest = |net: &Net| net.states().iter().map(StateMachine::highest).max();
    let before = highest(&net);
    let error = put_back(&new, &file).await.unwrap_err();
    assert!(matches!(error, RestoreError::NotEmpty), "{error}");
    assert!(highest(&net) < before.map(|version| Version(version.0 + 10)));
    assert_eq!(value(&new, "key0").await, None);
    assert_eq!(value(&new, "mine").await.unwrap(), b"v");
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_was_interrupted_goes_on_and_loses_nothing_newer() {
    const KEYS: usize = 30_000;
    let (file, _) = backup_of(&swarm_with(KEYS).await).await.unwrap();
    let net = Net::of(NEW, 3);
    let new = net.client_drawing(2);
    let interrupt = async {
        while net.states().iter().map(StateMachine::len).sum::<usize>() < KEYS / 3 {
            sleep(MS).await;
        }
        net.cut(true);
    };
    let (first, ()) = tokio::join!(put_back(&new, &file), interrupt);
    let Err(RestoreError::Interrupted { keys, of, error }) = first else { panic!("{first:?}") };
    assert_eq!(of, KEYS as u64);
    assert!(keys < of, "{keys}");
    assert!(matches!(*error, RestoreError::Store(Error::TimedOut)), "{error}");

    net.cut(false);
    // What is there is changed or removed, what is not there yet is written.
    let there: Vec<_> = net.states().iter().flat_map(|state| state.imports().collect::<Vec<_>>()).collect();
    let there: Vec<String> =
        there.iter().map(|item| String::from_utf8(item.key().to_vec()).unwrap()).collect();
    new.put(there[0].as_str(), "newer").await.unwrap();
    new.delete(there[1].as_str()).await.unwrap();
    let missing = (0..KEYS).map(|key| format!("key{key}")).find(|key| !there.contains(key)).unwrap();
    new.put(missing.as_str(), "newer").await.unwrap();

    // By another client, which knows nothing.
    let again = put_back(&net.client_drawing(3), &file).await.unwrap();
    assert_eq!((again.keys, again.kept), (KEYS as u64, 1));
    assert!(again.before >= keys, "{} of {keys}", again.before);
    assert_eq!(value(&new, &there[0]).await.unwrap(), b"newer");
    assert_eq!(value(&new, &there[1]).await, None);
    assert_eq!(value(&new, &missing).await.unwrap(), b"newer");
    let held: usize = net.states().iter().map(StateMachine::len).sum();
    assert_eq!(held, KEYS - 1);
    // Once more changes nothing.
    let states: Vec<usize> = net.states().iter().map(StateMachine::len).collect();
    let once_more = put_back(&new, &file).await.unwrap();
    assert_eq!(once_more.before, KEYS as u64);
    assert_eq!(net.states().iter().map(StateMachine::len).collect::<Vec<_>>(), states);
    // Another backup does not go there.
    let (other, _) = backup_of(&swarm_with(3).await).await.unwrap();
    assert!(matches!(put_back(&new, &other).await, Err(RestoreError::NotEmpty)));
}

#[test]
fn both_can_be_run_on_any_task() {
    fn sendable<T: Send>(_: &T) {}
    let check = |client: &Client<Net>| {
        let (mut file, mut source) = (Vec::new(), Cursor::new(Vec::new()));
        sendable(&client.backup(&mut file, |_| {}));
        sendable(&client.restore(&mut source, |_| {}));
    };
    let _ = check;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_higher_than_any_lock_gives_does_not_prevent_a_restore() {
    let old = Net::of(OLD, 8).client();
    let foreign = FencingToken(u64::MAX - 1);
    old.put_fenced("k", "v", foreign).await.unwrap();
    let (file, _) = backup_of(&old).await.unwrap();
    let new = Net::of(NEW, 3).client_drawing(2);
    put_back(&new, &file).await.unwrap();
    let late = new.put_fenced("k", "late", FencingToken(foreign.0 - 1)).await;
    assert_eq!(late, Err(Error::Fenced { current: foreign }));
    assert!(new.put_fenced("k", "w", foreign).await.is_ok());
}
