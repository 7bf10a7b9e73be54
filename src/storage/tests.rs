//! Tests of the store: on a real disk, and on one in memory that loses power, flips bits and runs full.

use tempfile::TempDir;

use super::*;
use crate::id::{PartitionId, ReplicaId, SwarmId};
use crate::replication::{HardState, LogEntry, StoredState, Write};

const SWARM: SwarmId = SwarmId(0x5ca1_ab1e);

/// A small store: what takes long in a large one comes quickly.
fn small() -> StoreConfig {
    StoreConfig {
        segment_bytes: 16 * 1024,
        log_bytes: 32 * 1024,
        reserve_bytes: 8 * 1024,
        ..StoreConfig::default()
    }
}

fn entry(index: u64) -> LogEntry {
    LogEntry { term: 1, config: false, data: format!("entry {index}").into_bytes(), context: Vec::new() }
}

fn append(partition: u32, first: u64, count: u64) -> Write {
    Write::Append {
        partition: PartitionId(partition),
        replica: ReplicaId(1),
        first,
        entries: (first..first + count).map(entry).collect(),
    }
}

fn vote(partition: u32, term: u64) -> Write {
    let state = HardState { term, vote: 1, commit: 0 };
    Write::HardState { partition: PartitionId(partition), replica: ReplicaId(1), state }
}

fn state(partition: u32, index: u64) -> Write {
    let data = format!("state at {index}").repeat(50).into_bytes();
    Write::State {
        partition: PartitionId(partition),
        replica: ReplicaId(1),
        replaces_log: false,
        state: StoredState { index, term: 1, header: vec![7; 20], data },
    }
}

fn expect(writes: &[Write]) -> Stored {
    let mut stored = Stored::default();
    for write in writes {
        stored.apply(write.clone()).unwrap();
    }
    stored
}

async fn persisted(store: &Store, batch: u64) {
    loop {
        match store.next_event().await {
            Event::Persisted(so_far) if so_far >= batch => return,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_was_persisted_is_there_again() {
    let home = TempDir::new().unwrap();
    let dir = DataDir::open(home.path()).unwrap();
    let (store, recovered) = Store::open(&dir, SWARM, StoreConfig::default(), |_| {}).unwrap();
    assert_eq!(recovered.stored, Stored::default());
    assert_eq!(recovered.findings, []);

    let writes = [vote(3, 2), append(3, 1, 5), append(4, 1, 2), state(3, 2), append(3, 5, 3)];
    store.submit(1, writes[..2].to_vec()).unwrap();
    store.submit(2, writes[2..].to_vec()).unwrap();
    persisted(&store, 2).await;
    store.close().await.unwrap();
    assert!(matches!(store.submit(3, Vec::new()), Err(SubmitError::Closed)));
    drop(store);

    let mut told = Vec::new();
    let (_store, recovered) = Store::open(&dir, SWARM, small(), |progress| told.push(progress)).unwrap();
    assert_eq!(recovered.stored, expect(&writes));
    assert_eq!(recovered.findings, []);
    assert!(told.last().is_some_and(|last| last.read > 0 && last.read <= last.total));
}
