//! What nodes and clients ask each other about blocks of datasets. Not for the core of a node: it is answered beside
//! it, from its files.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::at_most;
use crate::dataset::BlockId;
use crate::id::DatasetId;

/// Most blocks in one [`BlockRequest::Held`].
pub const MAX_ASKED_BLOCKS: usize = 4096;

/// A request about blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockRequest {
    /// Keep a block. Answered by [`BlockResponse::Stored`] when it is kept.
    Put {
        /// Which.
        block: BlockId,
        /// The name that its dataset has, or is to have when it is sealed.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// CRC-32C of the bytes.
        checksum: u32,
        /// At most [`MAX_BLOCK_BYTES`](crate::dataset::MAX_BLOCK_BYTES).
        bytes: Bytes,
    },
    /// A block's bytes. Answered by [`BlockResponse::Block`].
    Get {
        /// Which.
        block: BlockId,
    },
    /// Which of these the node keeps. Answered by [`BlockResponse::Held`].
    Held {
        /// At most [`MAX_ASKED_BLOCKS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_ASKED_BLOCKS>")]
        blocks: Vec<BlockId>,
    },
    /// The dataset was removed, or will never be sealed: unless its partition says otherwise, its blocks can be dropped
    /// now. Answered by [`BlockResponse::Noted`].
    GiveUp {
        /// Which.
        dataset: DatasetId,
    },
}

/// The answer to a [`BlockRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockResponse {
    /// The block is kept: on the disk, if the node is durable.
    Stored,
    /// The block. Its bytes agree with the checksum that it was kept with.
    Block {
        /// CRC-32C of the bytes.
        checksum: u32,
        /// The bytes.
        bytes: Bytes,
    },
    /// In the order of the request.
    Held(Vec<bool>),
    /// It will be done.
    Noted,
    /// Nothing was done.
    Refused(BlockRefusal),
}

/// Why a node did nothing with a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum BlockRefusal {
    /// The node does not keep it; or did, and it was damaged, and is being made anew.
    #[error("the node does not keep that block")]
    NoBlock,
    /// The node keeps as many bytes of blocks as it may, or its disk is full.
    #[error("the node has no room for more blocks (its limit is {limit} bytes)")]
    Full {
        /// What it may keep, in bytes.
        limit: u64,
    },
    /// The node is leaving.
    #[error("the node is leaving")]
    Leaving,
    /// The bytes do not agree with their checksum, or with the block that is kept.
    #[error("the block's bytes are not those that its checksum is of")]
    Mismatch,
    /// The request is beyond a limit.
    #[error("beyond a limit")]
    Limit,
    /// The node's disk does not do what it should.
    #[error("the node's disk: {0}")]
    Disk(String),
}
