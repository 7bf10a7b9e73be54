//! Tests of the store: on a real disk, and on one in memory that loses power, flips bits and runs full.

mod faults;
mod fuzz;
mod memory;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memory::MemoryDisk;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::*;
use crate::id::{PartitionId, ReplicaId, SwarmId};
use crate::replication::{HardState, LogEntry, Stored, StoredState, Write};

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
    LogEntry { term: 1, config: false, data: format!("entry {index}").into(), context: Bytes::new() }
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

fn open(dir: &DataDir) -> (Store, Recovered) {
    Store::open(dir, SWARM, small(), |_| {}).unwrap()
}

/// A data directory on a disk in memory.
fn in_memory() -> (MemoryDisk, DataDir) {
    let disk = MemoryDisk::with_dir(Path::new("/data"));
    let dir = DataDir::open_on(Arc::new(disk.clone()), Path::new("/data")).unwrap();
    (disk, dir)
}

/// The newest segment of the log.
fn last_segment(disk: &MemoryDisk) -> PathBuf {
    let files = disk.files(&Path::new("/data").join(SWARM.to_string()));
    files.into_iter().rfind(|path| path.extension().is_some_and(|kind| kind == "log")).unwrap()
}

/// Where the bodies of the records of a segment end.
fn ends(segment: &[u8]) -> Vec<usize> {
    let mark = u64::from_le_bytes(*segment.first_chunk().unwrap());
    let mut ends = Vec::new();
    while let Some((_, record)) = format::next_record(segment, ends.last().copied().unwrap_or(0), mark) {
        ends.push(record.end);
    }
    ends
}

/// Changes a byte within the place where this text stands.
fn damage(disk: &MemoryDisk, path: &Path, text: &str) {
    disk.tamper(path, |bytes| {
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
        bytes[at] ^= 1;
    });
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

#[tokio::test]
async fn a_file_system_that_takes_no_blocks_is_written_through_the_page_cache() {
    // Of another size, or none at all.
    for error in [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported] {
        let (disk, dir) = in_memory();
        let (store, _) = open(&dir);
        let writes = [append(3, 1, 5), append(4, 1, 2), append(3, 6, 3)];
        store.submit(1, writes[..1].to_vec()).unwrap();
        persisted(&store, 1).await;
        disk.refuse_blocks(error);
        store.submit(2, writes[1..].to_vec()).unwrap();
        persisted(&store, 2).await;
        drop(store);
        disk.restore_power(&mut StdRng::seed_from_u64(1));
        let (_store, recovered) = open(&dir);
        assert_eq!(recovered.stored, expect(&writes));
    }
}

#[tokio::test]
async fn entries_that_are_read_lie_one_behind_the_other() {
    let (_disk, dir) = in_memory();
    let (store, _) = open(&dir);
    for batch in 0..10 {
        store.submit(batch + 1, vec![append(3, 5 * batch + 1, 5)]).unwrap();
    }
    persisted(&store, 10).await;
    drop(store);
    let (_store, recovered) = open(&dir);
    let entries = &recovered.stored.replicas[&PartitionId(3)].entries;
    let places = entries.iter().map(|entry| entry.data.as_ptr_range());
    let places: Vec<_> = places.collect();
    assert_eq!(places.len(), 50);
    assert!(places.windows(2).all(|pair| pair[0].end == pair[1].start));
}

#[tokio::test]
async fn a_record_that_was_not_finished_is_cut_off() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    for (batch, writes) in [(1, append(0, 1, 1)), (2, append(1, 1, 3))] {
        store.submit(batch, vec![writes]).unwrap();
        persisted(&store, batch).await;
    }
    drop(store);
    damage(&disk, &last_segment(&disk), "entry 3");

    let (store, recovered) = open(&dir);
    assert!(matches!(recovered.findings[..], [Finding::Torn { segment: 1, .. }]), "{:?}", recovered.findings);
    assert_eq!(recovered.stored, expect(&[append(0, 1, 1)]));
    store.submit(1, vec![append(1, 1, 2)]).unwrap();
    store.close().await.unwrap();
    drop(store);

    let (_store, recovered) = open(&dir);
    assert_eq!(recovered.findings, []);
    assert_eq!(recovered.stored, expect(&[append(0, 1, 1), append(1, 1, 2)]));
}

#[tokio::test]
async fn damage_in_the_middle_is_said_with_its_place_and_harms_only_whom_it_hit() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    let writes = [append(0, 1, 1), append(1, 1, 3), append(2, 1, 1), append(0, 2, 1)];
    for (batch, write) in (1..).zip(&writes) {
        store.submit(batch, vec![write.clone()]).unwrap();
        persisted(&store, batch).await;
    }
    // The end is orderly: so even the last record is known to have been there.
    store.close().await.unwrap();
    drop(store);
    damage(&disk, &last_segment(&disk), "entry 3");

    let (_store, recovered) = open(&dir);
    let [Finding::Corrupt { segment: 1, offset, lost: 1 }, Finding::Damaged { partition: PartitionId(1) }] =
        recovered.findings[..]
    else {
        panic!("{:?}", recovered.findings);
    };
    assert!(offset > 0);
    assert!(recovered.findings[0].to_string().contains(&format!("damaged at {offset}")));
    let whole = expect(&writes);
    for (partition, replica) in &recovered.stored.replicas {
        assert_eq!(replica.damaged, *partition == PartitionId(1));
        assert!(replica.damaged || *replica == whole.replicas[partition]);
    }
}

#[tokio::test]
async fn damage_to_the_zeros_between_two_records_is_said_and_costs_nothing() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    let writes = [append(0, 1, 1), append(1, 1, 3)];
    for (batch, write) in (1..).zip(&writes) {
        store.submit(batch, vec![write.clone()]).unwrap();
        persisted(&store, batch).await;
    }
    store.close().await.unwrap();
    drop(store);
    let mut changed = 0;
    disk.tamper(&last_segment(&disk), |bytes| {
        let ends = ends(bytes);
        for end in &ends[..ends.len() - 1] {
            if !end.is_multiple_of(format::ALIGN_BYTES) {
                bytes[*end] ^= 1;
                changed += 1;
            }
        }
    });
    assert!(changed > 0, "all records end where the next begins");

    let (_store, recovered) = open(&dir);
    let told = |finding: &Finding| matches!(finding, Finding::Debris { segment: 1, .. });
    assert!(recovered.findings.iter().all(told), "{:?}", recovered.findings);
    assert_eq!(recovered.findings.len(), changed);
    assert_eq!(recovered.stored, expect(&writes));
}

#[tokio::test]
async fn a_record_that_is_cut_behind_its_body_is_not_finished() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    let before = append(0, 1, 1);
    store.submit(1, vec![before.clone()]).unwrap();
    persisted(&store, 1).await;
    // One of them ends before the next record may begin.
    for count in 1..=8 {
        store.submit(1 + count, vec![append(1, 1, count)]).unwrap();
        persisted(&store, 1 + count).await;
        let disk = disk.copy();
        let mut cut = false;
        disk.tamper(&last_segment(&disk), |bytes| {
            let end = *ends(bytes).last().unwrap();
            cut = !end.is_multiple_of(format::ALIGN_BYTES);
            bytes.truncate(end);
        });
        if cut {
            let dir = DataDir::open_on(Arc::new(disk), Path::new("/data")).unwrap();
            let (_store, recovered) = open(&dir);
            assert!(matches!(recovered.findings[..], [Finding::Torn { .. }]), "{:?}", recovered.findings);
            assert_eq!(
                recovered.stored.replicas[&PartitionId(0)],
                expect(&[before]).replicas[&PartitionId(0)]
            );
            return;
        }
    }
    panic!("all records end where the next would begin");
}

#[tokio::test]
async fn damage_to_the_last_record_is_told_from_a_crash_when_it_was_idle_or_ended_orderly() {
    for orderly in [false, true] {
        let (disk, dir) = in_memory();
        let idle = StoreConfig { seal_after: Duration::from_millis(1), ..small() };
        let (store, _) = Store::open(&dir, SWARM, idle, |_| {}).unwrap();
        store.submit(1, vec![append(0, 1, 3)]).unwrap();
        persisted(&store, 1).await;
        if orderly {
            store.close().await.unwrap();
        } else {
            let before = store.stats().log_bytes;
            while store.stats().log_bytes == before {
                tokio::task::yield_now().await;
            }
        }
        drop(store);
        damage(&disk, &last_segment(&disk), "entry 3");
        let (_store, recovered) = open(&dir);
        assert!(
            matches!(recovered.findings[0], Finding::Corrupt { lost: 1, .. }),
            "{:?}",
            recovered.findings
        );
    }
}

#[tokio::test]
async fn a_sector_that_cannot_be_read_damages_only_what_was_in_it() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    store.submit(1, vec![append(0, 1, 1), state(1, 4)]).unwrap();
    store.close().await.unwrap();
    drop(store);
    let files = disk.files(&Path::new("/data").join(SWARM.to_string()));
    let file = files.iter().find(|path| path.extension().is_some_and(|kind| kind == "state")).unwrap();
    disk.make_unreadable(file, 0);

    let (_store, recovered) = open(&dir);
    assert!(recovered.stored.replicas[&PartitionId(1)].damaged);
    assert_eq!(
        recovered.stored.replicas[&PartitionId(0)],
        expect(&[append(0, 1, 1)]).replicas[&PartitionId(0)]
    );
    assert!(
        recovered.findings.iter().any(|finding| matches!(finding, Finding::Unreadable { offset: 0, .. }))
    );
}

#[tokio::test]
async fn a_log_without_its_end_is_refused() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    for batch in 1..400 {
        store.submit(batch, vec![append(0, batch, 1), append(1, batch, 1)]).unwrap();
        persisted(&store, batch).await;
    }
    store.close().await.unwrap();
    drop(store);
    assert!(!last_segment(&disk).ends_with("0000000001.log"));
    disk.tamper(&last_segment(&disk), Vec::clear);
    let error = Store::open(&dir, SWARM, small(), |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::Forgotten { .. }), "{error}");
}

#[tokio::test]
async fn a_replica_that_nobody_remembers_keeps_the_store_from_being_opened() {
    let born = append(1, 1, 1);
    let gone = Write::Destroy { partition: PartitionId(0), replica: ReplicaId(1) };
    for (lost, after) in [(born.clone(), append(0, 2, 1)), (gone, append(1, 1, 1))] {
        let (disk, dir) = in_memory();
        let (store, _) = open(&dir);
        let mark = append(2, 1, 2);
        for (batch, writes) in [(1, vec![append(0, 1, 1)]), (2, vec![lost, mark]), (3, vec![after])] {
            store.submit(batch, writes).unwrap();
            persisted(&store, batch).await;
        }
        drop(store);
        damage(&disk, &last_segment(&disk), "entry 2");
        let error = Store::open(&dir, SWARM, small(), |_| {}).unwrap_err();
        assert!(matches!(error, StoreError::Forgotten { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_name_of_the_log_is_found_again() {
    for spoil in [|bytes: &mut Vec<u8>| bytes.clear(), |bytes: &mut Vec<u8>| bytes[14] ^= 1] {
        let (disk, dir) = in_memory();
        let (store, _) = open(&dir);
        store.submit(1, vec![append(0, 1, 1)]).unwrap();
        store.close().await.unwrap();
        drop(store);
        disk.tamper(&Path::new("/data").join(SWARM.to_string()).join("log"), spoil);
        let (_store, recovered) = open(&dir);
        assert_eq!(recovered.stored, expect(&[append(0, 1, 1)]));
    }
}

/// Submits, waits, and answers what the store asks for, as a driver would.
async fn serve(store: &Store, stored: &mut Stored, batch: &mut u64, write: Write) {
    let mut writes = vec![write];
    while !writes.is_empty() {
        for write in &writes {
            stored.apply(write.clone()).unwrap();
        }
        *batch += 1;
        store.submit(*batch, std::mem::take(&mut writes)).unwrap();
        loop {
            match store.next_event().await {
                Event::Persisted(so_far) if so_far >= *batch => break,
                Event::WantState(partitions) => {
                    // Of the last entry it is not known yet that it is committed: it is appended once more.
                    for partition in partitions {
                        let last = stored.replicas[&partition].last();
                        writes.extend([state(partition.0, last - 1), append(partition.0, last, 1)]);
                    }
                }
                event => panic!("{event:?}"),
            }
        }
    }
}

#[tokio::test]
async fn the_log_is_cut_when_states_cover_it_and_its_files_are_used_again() {
    let home = TempDir::new().unwrap();
    let dir = DataDir::open(home.path()).unwrap();
    let (store, _) = open(&dir);
    let mut stored = Stored::default();
    let mut batch = 0;
    let mut longest = 0;
    // One partition is written rarely: its entries must not be lost with the segments around them.
    for round in 1..800 {
        serve(&store, &mut stored, &mut batch, append(1, 5 * round - 4, 5)).await;
        if round % 100 == 0 {
            serve(&store, &mut stored, &mut batch, append(0, round / 100, 1)).await;
        }
        longest = longest.max(store.stats().log_bytes);
    }
    assert!(longest < 4 * 16 * 1024, "{longest}");
    assert!(store.stats().bytes_written > 3 * longest, "{:?} {longest}", store.stats());
    let files = std::fs::read_dir(home.path().join(SWARM.to_string())).unwrap().count();
    assert!(files <= 4 + 2 + 2, "{files} files");
    drop(store);
    let (_store, recovered) = open(&dir);
    assert_eq!(recovered.findings, []);
    assert_eq!(recovered.stored, stored);
}

#[tokio::test]
async fn a_full_disk_is_said_and_what_waits_is_written_when_there_is_room() {
    let (disk, dir) = in_memory();
    let config = StoreConfig { retry_after: Duration::from_millis(1), ..small() };
    let (store, _) = Store::open(&dir, SWARM, config, |_| {}).unwrap();
    disk.set_capacity(Some(disk.used() + 20 * 1024));
    let mut submitted = Vec::new();
    let mut full = false;
    let (mut last, mut index) = (0, 0);
    // It is full when the reserve is used up, or when there is no room for a state.
    while !full {
        last += 1;
        let write = if last % 10 == 0 { state(0, index) } else { append(0, index + 1, 1) };
        index += u64::from(last % 10 != 0);
        submitted.push(write.clone());
        store.submit(last, vec![write]).unwrap();
        full = loop {
            match store.next_event().await {
                Event::Persisted(so_far) if so_far == last => break false,
                Event::Full => break true,
                _ => {}
            }
        };
    }
    // What is submitted now waits, or goes into the reserve.
    last += 1;
    let partition_two = append(2, 1, 1);
    submitted.push(partition_two.clone());
    store.submit(last, vec![partition_two]).unwrap();
    disk.set_capacity(None);
    let (mut room, mut kept) = (false, false);
    while !room || !kept {
        match store.next_event().await {
            Event::Persisted(so_far) if so_far == last => kept = true,
            Event::Room => room = true,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    drop(store);
    let (_store, recovered) = open(&dir);
    assert_eq!(recovered.findings, []);
    assert_eq!(recovered.stored, expect(&submitted));
}

#[tokio::test]
async fn a_full_disk_does_not_keep_a_store_from_closing() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    disk.set_capacity(Some(disk.used()));
    // Nor from being opened.
    store.submit(1, vec![state(0, 1)]).unwrap();
    assert!(matches!(store.next_event().await, Event::Full));
    store.close().await.unwrap_err();
    drop(store);
    let (_store, recovered) = open(&dir);
    assert_eq!(recovered.stored, Stored::default());
}

#[tokio::test]
async fn a_store_is_opened_on_a_full_disk_and_says_so_at_once() {
    let (disk, dir) = in_memory();
    // Without a reserve, so that nothing at all can be written.
    let config = StoreConfig { retry_after: Duration::from_millis(1), reserve_bytes: 0, ..small() };
    let open = || Store::open(&dir, SWARM, config.clone(), |_| {});
    let (store, _) = open().unwrap();
    let writes = [vote(3, 2), append(3, 1, 5), append(4, 1, 2), state(3, 2), append(3, 6, 3)];
    store.submit(1, writes.to_vec()).unwrap();
    persisted(&store, 1).await;
    // As a crash.
    drop(store);
    disk.set_capacity(Some(disk.used()));
    for _ in 0..3 {
        let (store, recovered) = open().unwrap();
        assert_eq!(recovered.findings, []);
        assert_eq!(recovered.stored, expect(&writes));
        assert!(matches!(store.next_event().await, Event::Full));
        store.close().await.unwrap();
    }
    let (store, _) = open().unwrap();
    store.submit(1, vec![append(4, 3, 1)]).unwrap();
    assert!(matches!(store.next_event().await, Event::Full));
    disk.set_capacity(None);
    let (mut room, mut kept) = (false, false);
    while !room || !kept {
        match store.next_event().await {
            Event::Persisted(1) => kept = true,
            Event::Room => room = true,
            event => panic!("{event:?}"),
        }
    }
    drop(store);
    let after = [&writes[..], &[append(4, 3, 1)]].concat();
    assert_eq!(open().unwrap().1.stored, expect(&after));
}

#[tokio::test]
async fn what_was_lost_must_be_written_down_so_a_full_disk_is_an_error_then_and_nothing_is_changed() {
    let (disk, dir) = in_memory();
    let config = StoreConfig { reserve_bytes: 0, ..small() };
    let open = || Store::open(&dir, SWARM, config.clone(), |_| {});
    let (store, _) = open().unwrap();
    for batch in 1..=3 {
        store.submit(batch, vec![append(u32::try_from(batch).unwrap(), 1, 1)]).unwrap();
        persisted(&store, batch).await;
    }
    store.close().await.unwrap();
    drop(store);
    let segment = last_segment(&disk);
    damage(&disk, &segment, "entry 1");
    disk.set_capacity(Some(disk.used()));
    let (before, files) = (disk.used(), disk.files(segment.parent().unwrap()));
    for _ in 0..2 {
        assert!(open().unwrap_err().is_full());
        assert_eq!((disk.used(), disk.files(segment.parent().unwrap())), (before, files.clone()));
    }
    disk.set_capacity(None);
    let (_store, recovered) = open().unwrap();
    assert_eq!(recovered.stored.replicas.values().filter(|replica| replica.damaged).count(), 1);
}

#[tokio::test]
async fn a_failed_sync_is_the_end() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    store.submit(1, vec![append(0, 1, 1)]).unwrap();
    persisted(&store, 1).await;
    disk.fail_next_sync();
    store.submit(2, vec![append(0, 2, 1)]).unwrap();
    let failed = loop {
        match store.next_event().await {
            Event::Failed(error) => break error,
            Event::Persisted(batch) => assert!(batch < 2, "it was not"),
            _ => {}
        }
    };
    assert!(failed.raw_os_error().is_some(), "{failed}");
    assert!(matches!(store.submit(3, vec![append(0, 3, 1)]), Err(SubmitError::Closed)));
    store.close().await.unwrap_err();
}

#[tokio::test]
async fn what_comes_during_a_sync_is_one_record_and_too_much_is_refused() {
    let (disk, dir) = in_memory();
    let config = StoreConfig { queue_batches: 10, ..small() };
    let (store, _) = Store::open(&dir, SWARM, config, |_| {}).unwrap();
    disk.hold_syncs(true);
    for batch in 1..=10 {
        assert!(store.has_room());
        store.submit(batch, vec![append(0, batch, 1)]).unwrap();
    }
    assert!(!store.has_room());
    let refused = store.submit(11, vec![append(0, 11, 1)]);
    assert!(matches!(refused, Err(SubmitError::Busy(writes)) if writes == [append(0, 11, 1)]));
    let before = disk.syncs();
    disk.hold_syncs(false);
    persisted(&store, 10).await;
    assert!(store.has_room());
    // The first alone or with some others, then all the rest; and a reserve may be laid in.
    assert!(disk.syncs() - before <= 4, "{} syncs", disk.syncs() - before);
}

#[tokio::test]
async fn a_dropped_store_lets_go_of_its_files() {
    let (disk, dir) = in_memory();
    let (store, _) = open(&dir);
    disk.hold_syncs(true);
    store.submit(1, vec![append(0, 1, 1)]).unwrap();
    disk.hold_syncs(false);
    drop(store);
    let (_store, recovered) = open(&dir);
    let kept = expect(&[append(0, 1, 1)]);
    assert!([kept, Stored::default()].contains(&recovered.stored));
}

#[test]
fn one_directory_one_process() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("node");
    let dir = DataDir::open(&path).unwrap();
    let error = DataDir::open(&path).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains(path.to_str().unwrap()), "{error}");
    drop(dir);
    DataDir::open(&path).unwrap();
}

#[test]
fn other_directories_and_newer_formats_are_left_alone() {
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join("thesis.tex"), "hello").unwrap();
    assert!(matches!(DataDir::open(home.path()), Err(OpenError::Foreign { .. })));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "it left something there");
    for path in ["thesis.tex", "thesis.tex/node"] {
        let error = DataDir::open(&home.path().join(path)).unwrap_err().to_string();
        assert!(error.contains("it is no directory, or is in none"), "{error}");
    }

    let path = home.path().join("node");
    drop(DataDir::open(&path).unwrap());
    std::fs::write(path.join("format"), "roundtable data directory, format 2\n").unwrap();
    let error = DataDir::open(&path).unwrap_err().to_string();
    assert!(error.contains("format 2") && error.contains("newer version"), "{error}");
    std::fs::write(path.join("format"), "roundtable data directory, format ?\n").unwrap();
    assert!(matches!(DataDir::open(&path), Err(OpenError::Unreadable { .. })));
}

#[test]
fn small_files_are_kept_whole_and_for_the_user_alone() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("node");
    let dir = DataDir::open(&path).unwrap();
    assert_eq!(dir.load("identity").unwrap(), None);
    dir.save("identity", b"one").unwrap();
    dir.save("identity", b"two").unwrap();
    assert_eq!(dir.load("identity").unwrap().unwrap(), b"two");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("identity"))), (0o700, 0o600));

    let mut bytes = std::fs::read(path.join("identity")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path.join("identity"), bytes).unwrap();
    assert!(matches!(dir.load("identity"), Err(FileError::Damaged { .. })));
    for name in ["", "../x", "lock", "format", &SWARM.to_string()] {
        assert!(matches!(dir.save(name, b""), Err(FileError::Name(_))), "{name}");
        assert!(matches!(dir.forget(name), Err(FileError::Name(_))), "{name}");
    }
    dir.forget("identity").unwrap();
    dir.forget("identity").unwrap();
    assert_eq!(dir.load("identity").unwrap(), None);
}

#[tokio::test]
async fn a_swarm_is_removed_with_all_that_is_in_it() {
    let home = TempDir::new().unwrap();
    let dir = DataDir::open(home.path()).unwrap();
    let (store, _) = open(&dir);
    store.submit(1, vec![append(0, 1, 1), state(1, 2)]).unwrap();
    store.close().await.unwrap();
    drop(store);
    dir.save("identity", b"me").unwrap();
    assert_eq!(dir.swarms().unwrap(), [SWARM]);
    dir.remove_swarm(SWARM).unwrap();
    dir.remove_swarm(SWARM).unwrap();
    assert_eq!(dir.swarms().unwrap(), []);
    assert_eq!(open(&dir).1.stored, Stored::default());
    assert_eq!(dir.load("identity").unwrap().unwrap(), b"me");
}

/// What the kept directory of the first format holds.
fn first_format() -> Vec<Write> {
    let replica = ReplicaId(7);
    let partition = PartitionId(5);
    let configured =
        LogEntry { term: 3, config: true, data: vec![0, 255].into(), context: b"who".to_vec().into() };
    let from_leader = StoredState { index: 900, term: 3, header: vec![9; 3], data: vec![0; 1000] };
    vec![
        append(0, 1, 4),
        vote(0, 2),
        state(0, 2),
        Write::State { partition, replica, replaces_log: true, state: from_leader },
        Write::Append { partition, replica, first: 901, entries: vec![configured] },
        append(9, 1, 1),
        Write::Destroy { partition: PartitionId(9), replica: ReplicaId(1) },
        append(0, 5, 200),
        append(0, 100, 500),
        append(0, 600, 400),
        append(11, 1, 1),
    ]
}

fn first_format_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1")
}

#[test]
fn the_first_format_is_read() {
    let home = TempDir::new().unwrap();
    let swarm = SWARM.to_string();
    std::fs::create_dir(home.path().join(&swarm)).unwrap();
    for dir in ["", &swarm] {
        for entry in std::fs::read_dir(first_format_path().join(dir)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), home.path().join(dir).join(entry.file_name())).unwrap();
            }
        }
    }
    let dir = DataDir::open(home.path()).unwrap();
    assert_eq!(dir.load("identity").unwrap().unwrap(), [7; 32]);
    let (_store, recovered) = open(&dir);
    assert_eq!(recovered.findings, []);
    assert_eq!(recovered.stored, expect(&first_format()));
}

#[tokio::test]
#[ignore = "writes tests/data/format-1, which must never change: for the next format, copy this"]
async fn write_the_first_format() {
    let dir = DataDir::open(&first_format_path()).unwrap();
    dir.save("identity", &[7; 32]).unwrap();
    let (store, _) = Store::open(&dir, SWARM, StoreConfig { reserve_bytes: 0, ..small() }, |_| {}).unwrap();
    for (batch, write) in (1..).zip(first_format()) {
        store.submit(batch, vec![write]).unwrap();
        persisted(&store, batch).await;
    }
    store.close().await.unwrap();
}
