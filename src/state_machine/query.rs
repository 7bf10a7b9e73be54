//! What can be read from a partition.

use serde::{Deserialize, Serialize};

use super::command::{LimitError, MAX_KEY_BYTES, at_most, check_key};
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
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
    /// The partition's keys with a prefix, in the order of their bytes. Answered by [`Answer::Page`].
    Scan {
        /// What the keys begin with.
        #[serde(with = "serde_bytes")]
        prefix: Vec<u8>,
        /// Begin behind this key; empty: at the first.
        #[serde(with = "serde_bytes")]
        after: Vec<u8>,
        /// At most so many entries; bounded by [`MAX_SCAN_ENTRIES`].
        limit: u32,
    },
}

impl Query {
    /// Whether the question is within the limits; to be asked before it is sent and before it is answered.
    ///
    /// # Errors
    /// The limit that it exceeds.
    pub fn check(&self) -> Result<(), LimitError> {
        match self {
            Self::Get { key } => check_key(key),
            Self::Scan { prefix, after, .. } => [("prefix", prefix), ("key to go on from", after)]
                .into_iter()
                .try_for_each(|(what, bytes)| at_most(what, bytes, MAX_KEY_BYTES)),
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
}

/// A key in a page.
pub type KeyBytes = serde_bytes::ByteBuf;

/// A key's value and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// The key's version.
    pub version: Version,
    /// Milliseconds until it expires, by the partition's time when it was read; `None`: it stays.
    pub ttl_ms: Option<u64>,
}
