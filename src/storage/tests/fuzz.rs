//! The reader of the log takes any bytes: what is not a log is said to be none, or to be damaged; it never panics, and never
//! makes up a replica that was not there.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// A disk with a small log on it: all that the tests change.
fn disk() -> MemoryDisk {
    let (disk, dir) = in_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, _) = open(&dir);
        for batch in 1..8 {
            let partition = u32::try_from(batch % 3).unwrap();
            store.submit(batch, vec![vote(partition, batch), append(partition, batch / 3 + 1, 1)]).unwrap();
            persisted(&store, batch).await;
        }
        store.close().await.unwrap();
    });
    disk
}

fn reads(disk: &MemoryDisk) {
    let dir = DataDir::open_on(Arc::new(disk.clone()), Path::new("/data")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Refused is fine.
        if let Ok((_store, recovered)) = Store::open(&dir, SWARM, small(), |_| {}) {
            for partition in recovered.stored.replicas.keys() {
                assert!(partition.0 < 3, "{partition} was never written");
            }
        }
    });
}

#[test]
fn a_log_that_is_cut_anywhere_near_the_end_of_a_record() {
    let disk = disk();
    let segment = last_segment(&disk);
    let mut all = Vec::new();
    disk.tamper(&segment, |bytes| all = ends(bytes));
    assert!(all.len() > 7);
    for end in all {
        for length in end - 1..end + format::ALIGN_BYTES {
            let disk = disk.copy();
            disk.tamper(&segment, |bytes| bytes.truncate(length));
            let dir = DataDir::open_on(Arc::new(disk), Path::new("/data")).unwrap();
            let opened = Store::open(&dir, SWARM, small(), |_| {});
            assert!(
                matches!(opened, Ok(_) | Err(StoreError::Forgotten { .. })),
                "cut at {length}: {opened:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn bytes_written_over_a_log(
        changes in vec((any::<Index>(), vec(any::<u8>(), 1..40)), 1..4),
        file in any::<Index>(),
    ) {
        let disk = disk();
        let files = disk.files(&Path::new("/data").join(SWARM.to_string()));
        disk.tamper(&files[file.index(files.len())], |bytes| {
            for (at, new) in &changes {
                let at = at.index(bytes.len().max(1));
                for (old, new) in bytes.iter_mut().skip(at).zip(new) {
                    *old = *new;
                }
            }
        });
        reads(&disk);
    }

    #[test]
    fn bytes_instead_of_a_log(garbage in vec(any::<u8>(), 0..600)) {
        let disk = disk();
        disk.tamper(&last_segment(&disk), |bytes| {
            bytes.iter_mut().zip(garbage.iter().chain(std::iter::repeat(&0))).for_each(|(old, new)| *old = *new);
        });
        reads(&disk);
    }
}
