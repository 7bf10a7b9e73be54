//! How much memory the parts that a node has in jobs may take, all together.
//!
//! What a task will need at most is known before it begins, from what it is asked to do. It waits until so much is
//! free, in the order of asking; one that needs more than there is begins when it is alone. What is counted: blocks of
//! the input and of the output, tables, parts of runs, and the memory that shipped code may grow to. What is not: what
//! functions of Rust allocate themselves, and what is on its way in links.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::shuffle::Fetching;
use crate::compute::{MAX_GROUP_BYTES, TABLE_BYTES};
use crate::dataset::MAX_BLOCK_BYTES;
use crate::wire::{InputRef, RunRef};

/// Bytes of memory for jobs, per node, unless told otherwise.
pub const DEFAULT_JOB_MEMORY: u64 = 1024 * 1024 * 1024;
/// The least that a node can be told: every ordinary task fits into it.
pub const MIN_JOB_MEMORY: u64 = 128 * 1024 * 1024;

/// What is counted in.
const UNIT_BYTES: u64 = 1024;
/// Bytes that sorting needs for each record beside it: its place and its beginning, in vectors that grow.
const RECORD_BYTES: u64 = 64;
/// Bytes that sorting needs for each record whose key is no record: where it ends.
const KEY_END_BYTES: u64 = 8;
/// Blocks of the output that are being filled, wait, or are on their way, each of the latter once for each replica.
const OUTPUT_BLOCKS: u64 = 12;
/// Of a table and of the order in which it is written, beside what counts as its bytes: vectors that grow.
const TABLE_TIMES: u64 = 2;

/// The memory for jobs.
#[derive(Debug)]
pub(super) struct Memory {
    free: Arc<Semaphore>,
    units: u32,
}

/// Some of it; given back with this.
#[derive(Debug)]
pub(super) struct Taken {
    _units: OwnedSemaphorePermit,
}

impl Memory {
    /// So many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let units = units(bytes);
        Self { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits until so much is free; `None`: the node ends.
    pub(super) async fn take(&self, bytes: u64) -> Option<Taken> {
        let wanted = units(bytes).min(self.units);
        let units = Arc::clone(&self.free).acquire_many_owned(wanted).await.ok()?;
        Some(Taken { _units: units })
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// What blocks need that are the input of something.
pub(super) fn of_blocks(blocks: &[InputRef]) -> u64 {
    blocks.iter().map(|block| u64::from(block.info.length)).sum()
}

/// What it takes to sort blocks; `makes_keys`: keys are no records.
pub(super) fn of_sorting(blocks: &[InputRef], makes_keys: bool) -> u64 {
    let records: u64 = blocks.iter().map(|block| u64::from(block.info.records)).sum();
    let bytes = of_blocks(blocks);
    // A key is about as long as its record at most; the vector of keys grows.
    let keys = if makes_keys { 2 * bytes + records * KEY_END_BYTES } else { 0 };
    bytes + records * RECORD_BYTES + keys
}

/// What it takes to map input of so many bytes, by a program that may have so much memory of its own.
pub(super) fn of_mapping(input_bytes: u64, own_bytes: u64) -> u64 {
    input_bytes + TABLE_TIMES * TABLE_BYTES as u64 + own_bytes
}

/// What it takes to merge these runs, and to write what comes of them.
pub(super) fn of_merging(runs: &[RunRef]) -> u64 {
    Fetching::memory(runs) + OUTPUT_BLOCKS * MAX_BLOCK_BYTES as u64
}

/// What it takes to reduce these runs, by a program that may have so much memory of its own: beside merging, a group
/// that is collected, and the same once more as it is handed over.
pub(super) fn of_reducing(runs: &[RunRef], own_bytes: u64) -> u64 {
    let bytes: u64 = runs.iter().map(|run| run.bytes).sum();
    of_merging(runs) + 2 * bytes.min(MAX_GROUP_BYTES as u64) + own_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn no_more_is_taken_than_there_is() {
        const MIB: u64 = 1024 * 1024;
        let memory = Memory::new(MIN_JOB_MEMORY);
        let (one, other) = (memory.take(100 * MIB).await.unwrap(), memory.take(28 * MIB).await.unwrap());
        assert!(memory.take(1).now_or_never().is_none());
        drop(other);
        let small = memory.take(20 * MIB).now_or_never().flatten().unwrap();
        // Who needs more than there is waits until nobody else has any; those behind wait for it.
        let mut large = Box::pin(memory.take(500 * MIB));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(memory.take(1).now_or_never().is_none());
        drop(one);
        assert!(large.as_mut().now_or_never().is_none());
        drop(small);
        let large = large.now_or_never().flatten().unwrap();
        assert!(memory.take(1).now_or_never().is_none());
        drop(large);
        assert!(memory.take(MIN_JOB_MEMORY).now_or_never().is_some());
    }

    #[test]
    fn the_least_is_enough_for_every_ordinary_task() {
        use crate::dataset::{BlockId, BlockInfo};
        use crate::id::{DatasetId, NodeId};
        // As many blocks, and as many records, as one task of a sort has: 16 MiB, and 64 MiB beside them at 40 bytes.
        let block = |number| InputRef {
            position: number,
            block: BlockId { dataset: DatasetId(1), number },
            info: BlockInfo { number, length: 1 << 20, records: 104_857, checksum: 0 },
        };
        let blocks: Vec<InputRef> = (0..16).map(block).collect();
        assert!(of_sorting(&blocks, false) <= MIN_JOB_MEMORY, "{}", of_sorting(&blocks, false));
        assert!(of_mapping(16 << 20, 0) <= MIN_JOB_MEMORY);
        let run = |task| RunRef { node: NodeId::from_public_key([1; 32]), task, bytes: 1 << 30 };
        let runs: Vec<RunRef> = (0..1000).map(run).collect();
        assert!(of_reducing(&runs, 0) <= MIN_JOB_MEMORY, "{}", of_reducing(&runs, 0));
    }
}
