//! What can be read from a partition.

use serde::{Deserialize, Serialize};

use super::command::{LimitError, MAX_KEY_BYTES, at_most, check_key};
use super::datasets::SealedDataset;
use super::import::ImportState;
use super::lock::{Claim, LockView, PlaceState};
use crate::id::Version;

/// Most entries of one page of a scan.
pub const MAX_SCAN_ENTRIES: u32 = 1000;
/// A page of a scan ends after the entry that takes it over this many bytes of keys and values.
pub const MAX_SCAN_BYTES: usize = 1024 * 1024;

/// A question to one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// One key. Answered by [`Answer::Entry`].
    Get {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
    },
    /// The partition's keys with a prefix, in the order of their bytes. Answered by [`Answer::Page`].
    Scan {
        /// What the keys begin with.
        #[serde(with = "crate::codec::bytes")]
        prefix: Vec<u8>,
        /// Begin behind this key; empty: at the first.
        #[serde(with = "crate::codec::bytes")]
        after: Vec<u8>,
        /// At most so many entries; bounded by [`MAX_SCAN_ENTRIES`].
        limit: u32,
    },
    /// Who holds a lock and who waits for it. Answered by [`Answer::Lock`].
    Lock {
        /// The lock.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
    },
    /// How a claim is. Answered by [`Answer::Place`].
    Place {
        /// The lock.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Whose.
        claim: Claim,
    },
    /// The partition's locks that are held, in the order of the bytes of their names. Answered by
    /// [`Answer::Locks`].
    Locks {
        /// Begin behind this lock; empty: at the first.
        #[serde(with = "crate::codec::bytes")]
        after: Vec<u8>,
        /// At most so many; bounded by [`MAX_LISTED`](super::MAX_LISTED).
        limit: u32,
    },
    /// Whether the partition holds anything, and how far it is with a backup. Answered by [`Answer::Contents`].
    Contents,
    /// A sealed dataset. Answered by [`Answer::Dataset`].
    Dataset {
        /// Its name.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Whether its blocks are wanted too.
        with_blocks: bool,
    },
    /// The partition's datasets, in the order of the bytes of their names. Answered by [`Answer::Datasets`].
    Datasets {
        /// Begin behind this name; empty: at the first.
        #[serde(with = "crate::codec::bytes")]
        after: Vec<u8>,
        /// At most so many; bounded by [`MAX_LISTED_DATASETS`](super::MAX_LISTED_DATASETS).
        limit: u32,
    },
}

impl Query {
    /// The key, lock or dataset that the question is about, if it is about one.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Get { key }
            | Self::Lock { name: key }
            | Self::Place { name: key, .. }
            | Self::Dataset { name: key, .. } => Some(key),
            Self::Scan { .. } | Self::Locks { .. } | Self::Contents | Self::Datasets { .. } => None,
        }
    }

    /// Whether the question is within the limits; to be asked before it is sent and before it is answered.
    ///
    /// # Errors
    /// The limit that it exceeds.
    pub fn check(&self) -> Result<(), LimitError> {
        match self {
            Self::Get { key }
            | Self::Lock { name: key }
            | Self::Place { name: key, .. }
            | Self::Dataset { name: key, .. } => check_key(key),
            Self::Locks { after, .. } | Self::Datasets { after, .. } => {
                at_most("name to go on from", after, MAX_KEY_BYTES)
            }
            Self::Scan { prefix, after, .. } => [("prefix", prefix), ("key to go on from", after)]
                .into_iter()
                .try_for_each(|(what, bytes)| at_most(what, bytes, MAX_KEY_BYTES)),
            Self::Contents => Ok(()),
        }
    }
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Query::Get`]: the entry, or `None` if the key is absent.
    Entry(Option<Entry>),
    /// To [`Query::Scan`].
    Page {
        /// In the order of their keys.
        entries: Vec<(KeyBytes, Entry)>,
        /// Whether there are more behind the last.
        more: bool,
    },
    /// To [`Query::Lock`]: who holds it, or `None` if nobody does.
    Lock(Option<LockView>),
    /// To [`Query::Place`].
    Place(PlaceState),
    /// To [`Query::Locks`].
    Locks {
        /// In the order of their names.
        locks: Vec<(KeyBytes, LockView)>,
        /// Whether there are more behind the last.
        more: bool,
    },
    /// To [`Query::Contents`].
    Contents {
        /// No key, no lock, no dataset, and no token that a key was written with.
        empty: bool,
        /// The backup that was put back last, if any was.
        import: Option<ImportState>,
    },
    /// To [`Query::Dataset`]: `None`: there is none of that name.
    Dataset(Option<SealedDataset>),
    /// To [`Query::Datasets`].
    Datasets {
        /// In the order of their names.
        datasets: Vec<(KeyBytes, SealedDataset)>,
        /// Whether there are more behind the last.
        more: bool,
    },
}

/// A change to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watch {
    /// A key is not at the version `seen`, or gone. Answered by [`Answer::Entry`].
    Key {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// The version that the caller knows; `None`: it knows the key as absent.
        seen: Option<Version>,
    },
    /// A claim no longer waits: it holds the lock, or has lost its place. Answered by [`Answer::Place`].
    Place {
        /// The lock.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Whose.
        claim: Claim,
    },
    /// A lock's holders or their notes have changed. Answered by [`Answer::Lock`].
    Lock {
        /// The lock.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// The [`LockView::version`] that the caller knows; `None`: it knows the lock as free.
        seen: Option<Version>,
    },
}

impl Watch {
    /// The key or lock that is watched.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Key { key, .. } | Self::Place { name: key, .. } | Self::Lock { name: key, .. } => key,
        }
    }

    /// Whether the watch is within the limits; to be asked before it is sent and before it is kept.
    ///
    /// # Errors
    /// The limit that it exceeds.
    pub fn check(&self) -> Result<(), LimitError> {
        check_key(self.key())
    }
}

/// A key in a page.
pub type KeyBytes = serde_bytes::ByteBuf;

/// A key's value and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The value.
    #[serde(with = "crate::codec::bytes")]
    pub value: Vec<u8>,
    /// The key's version.
    pub version: Version,
    /// Milliseconds until it expires, by the partition's time when it was read; `None`: it stays.
    pub ttl_ms: Option<u64>,
}
