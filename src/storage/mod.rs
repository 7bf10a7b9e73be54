//! What a node keeps on its disk.
//!
//! **Problem.** A node holds replicas of many groups. Each must have on its disk what it promised before it
//! promises it, and a disk syncs a few thousand times a second at best. After a crash at any moment all of it
//! must be there again; and what a bad disk changed must never be taken for what was written.
//!
//! **Guarantee.** What was reported as [`Event::Persisted`] is in the [`Stored`] that [`Store::open`] returns,
//! behind it perhaps the beginning of what was not reported yet, each batch whole or not at all, and nothing
//! else. If the disk lost something of that, the replicas that lost it are marked as damaged, and those of which it
//! cannot be proven that they did not.
//!
//! **Method.** One log for all replicas, in segments: a thread takes all batches that wait, writes them as one
//! record and syncs once. States are files of their own. The format, what it rests on, and the measurements
//! behind it: [`docs::storage`](crate::docs::storage).
//!
//! This is the only module that touches the disk for data.

mod blocks;
mod dir;
mod disk;
mod format;
mod index;
mod replay;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use blocks::{BlockError, BlockStore, DEFAULT_BLOCK_BUDGET, Place};
pub use dir::{DataDir, FORMAT, FileError, OpenError};
pub use replay::Finding;
pub use store::{Event, Store, SubmitError};

use crate::replication::Stored;

/// How a [`Store`] works.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Length of a segment of the log. Smaller ones are given up earlier; each costs a summary of all replicas
    /// (some 60 bytes each) and three syncs. 64 MiB.
    pub segment_bytes: u64,
    /// How long the log may be before fresh states are asked for, so that it can be cut; never less than twice
    /// the bytes of all states. Longer: less is written, a start takes longer. 64 MiB.
    pub log_bytes: u64,
    /// Blocks allocated ahead of what is written, as a reserve for a full disk: with it replicas go on voting and
    /// the log can be cut. No more than a segment. 4 MiB.
    pub reserve_bytes: u64,
    /// Batches that may wait before [`Store::has_room`] says no. 1024.
    pub queue_batches: usize,
    /// Bytes that may wait before [`Store::has_room`] says no. 32 MiB.
    pub queue_bytes: usize,
    /// After so long without anything to write, it is proven on the disk that all before was written. Damage to
    /// the very last record is told from a crash only then. 1 s.
    pub seal_after: Duration,
    /// How often a full disk is tried again. 500 ms.
    pub retry_after: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            log_bytes: 64 * 1024 * 1024,
            reserve_bytes: 4 * 1024 * 1024,
            queue_batches: 1024,
            queue_bytes: 32 * 1024 * 1024,
            seal_after: Duration::from_secs(1),
            retry_after: Duration::from_millis(500),
        }
    }
}

/// What was there when a store was opened.
#[derive(Debug)]
pub struct Recovered {
    /// What the kept writes amount to.
    pub stored: Stored,
    /// What was not as it should be; empty after an orderly end. Each was logged.
    pub findings: Vec<Finding>,
}

/// How far the reading of a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes read.
    pub read: u64,
    /// Bytes to read at most.
    pub total: u64,
}

/// What a store has done since it was opened, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Syncs of files and directories.
    pub fsyncs: u64,
    /// Bytes written to log and states, reserves included.
    pub bytes_written: u64,
    /// Length of the log.
    pub log_bytes: u64,
    /// Bytes of all states.
    pub state_bytes: u64,
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// So much of the log is damaged that it is not known which replicas were here. What they promised is
    /// forgotten, so this node must not take part under its old identity: remove the swarm's data *and* the
    /// identity, and join as a new node.
    #[error("{} is damaged: it is not known any more which replicas were there", path.display())]
    Forgotten {
        /// The swarm's directory.
        path: PathBuf,
    },
    /// A small file was not read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The disk does not read or write. What is there was not harmed.
    #[error("cannot read or write {}: {source}", path.display())]
    Io {
        /// The swarm's directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Forgotten { .. } => false,
            Self::File(error) => error.is_full(),
            Self::Io { source, .. } => disk::is_full(source),
        }
    }
}
