//! What a dataset is: a name, and under it a list of blocks that never changes.
//!
//! **Problem.** What is sorted or counted is larger than any value, and larger than what one node has in memory.
//!
//! **Method.** Data is cut into blocks of at most [`MAX_BLOCK_BYTES`], each a run of whole records ([`Format`],
//! [`Cutter`]). Blocks are files on the nodes, placed by the same ring as keys ([`BlockId::key`]); they do not go
//! through Raft. What does is the [`Manifest`]: which blocks, how long, with which checksum. It is *sealed* under
//! the dataset's name when all of them are kept by a majority of their replicas, and from then on nothing of the
//! dataset changes: so a block needs no version, and any copy of it that agrees with its checksum is the block.

mod cut;
mod format;

pub use cut::{Block, CutError, Cutter};
pub use format::{Format, RecordError, Records};

use serde::{Deserialize, Serialize};

use crate::id::DatasetId;

/// Longest block, in bytes: one frame carries it, and other frames do not wait long behind it.
pub const MAX_BLOCK_BYTES: usize = 1024 * 1024;
/// Longest record, in bytes, what ends it or its length included: a record is in one block.
pub const MAX_RECORD_BYTES: usize = MAX_BLOCK_BYTES;
/// Most blocks of a dataset: up to 32 GiB. Its manifest is then as long as the longest value.
pub const MAX_BLOCKS: usize = 32 * 1024;
/// Most encoded bytes of a [`BlockInfo`]: four numbers of 32 bits.
const MAX_INFO_BYTES: usize = 20;

const _: () = assert!(MAX_BLOCKS * MAX_INFO_BYTES < 1024 * 1024);

/// Names a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockId {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Its number there: as chosen by who wrote it, no two the same. The manifest has the order.
    pub number: u32,
}

impl BlockId {
    /// What is hashed to place the block on the ring.
    pub fn key(&self) -> [u8; 20] {
        let mut key = [0; 20];
        key[..16].copy_from_slice(&self.dataset.0.to_be_bytes());
        key[16..].copy_from_slice(&self.number.to_be_bytes());
        key
    }
}

/// What a manifest says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// [`BlockId::number`].
    pub number: u32,
    /// Bytes.
    pub length: u32,
    /// Records.
    pub records: u32,
    /// CRC-32C of its bytes.
    pub checksum: u32,
}

/// Everything that is known of a dataset but its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Drawn by its writer.
    pub id: DatasetId,
    /// What its records look like.
    pub format: Format,
    /// Its blocks in order. At most [`MAX_BLOCKS`].
    pub blocks: Vec<BlockInfo>,
}

impl Manifest {
    /// Bytes of all blocks.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.length)).sum()
    }

    /// Records of all blocks.
    pub fn records(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.records)).sum()
    }

    /// Whether it keeps the limits.
    pub fn is_sound(&self) -> bool {
        self.blocks.len() <= MAX_BLOCKS
            && self.blocks.iter().all(|block| block.length as usize <= MAX_BLOCK_BYTES)
    }

    /// What is told of it in a list.
    pub fn summary(&self) -> DatasetSummary {
        let blocks = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        DatasetSummary {
            id: self.id,
            format: self.format,
            blocks,
            records: self.records(),
            bytes: self.bytes(),
        }
    }
}

/// A dataset in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSummary {
    /// Which.
    pub id: DatasetId,
    /// What its records look like.
    pub format: Format,
    /// Number of blocks.
    pub blocks: u32,
    /// Number of records.
    pub records: u64,
    /// Bytes of all blocks.
    pub bytes: u64,
}
