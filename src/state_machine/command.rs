//! What a partition's log holds, and what applying it answers.

use serde::{Deserialize, Serialize};

use super::MAX_RAISED;
use super::import::{ImportState, Imported, MAX_IMPORTED, MAX_IMPORTED_BYTES, check_items};
use super::lock::{
    Claim, LockMode, MAX_HOLDERS, MAX_LEASE_MS, MAX_RENEWED, MIN_LEASE_MS, check_lease, check_note,
};
use crate::dataset::{MAX_BLOCK_BYTES, MAX_BLOCKS, Manifest};
use crate::id::{DatasetId, FencingToken, SessionId, SwarmId, Version};

/// Longest key, in bytes; the shortest is 1.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// A moment in a partition's own time, in milliseconds since its founding.
///
/// The partition's leader stamps each command: the time at which it took over plus what has passed since on its
/// own clock, as far as it was awake and heard a quorum. So partition time never goes back, does not follow jumps of
/// any wall clock, and stands still while there is no leader that can be told anything: something may expire late,
/// never early. Replicas only compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PartitionTime(pub u64);

/// One entry of a partition's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Stamped by the leader when it proposes.
    pub time: PartitionTime,
    /// Who asked, for exactly-once retries; `None` for what the leader proposes by itself.
    pub origin: Option<Origin>,
    /// What to do.
    pub operation: Operation,
}

/// Names a client's write, so that a retry of it is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The client's session.
    pub session: SessionId,
    /// Number of the write among those of the session to this partition; a retry carries the same one.
    pub sequence: u64,
    /// Every write of the session to this partition numbered below this has been answered or given up: its
    /// remembered answer may be forgotten, and should it still arrive it must not be applied. At most `sequence`.
    pub settled_below: u64,
}

/// A change to a partition's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Set a key. Answered by [`Reply::Written`].
    Put {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// Its new value.
        #[serde(with = "crate::codec::bytes")]
        value: Vec<u8>,
        /// Milliseconds until it expires; `None`: it stays.
        ttl_ms: Option<u64>,
    },
    /// Remove a key. Answered by [`Reply::Deleted`].
    Delete {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
    },
    /// Set a key if it is at the expected version. Answered by [`Reply::Written`] or [`Reply::Conflict`].
    CompareAndSwap {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// The version that it must be at; `None`: it must be absent.
        expected: Option<Version>,
        /// Its new value.
        #[serde(with = "crate::codec::bytes")]
        value: Vec<u8>,
        /// Milliseconds until it expires; `None`: it stays.
        ttl_ms: Option<u64>,
    },
    /// Add to a key that holds a decimal integer; an absent key counts as 0, and its time to live is kept.
    /// Answered by [`Reply::Incremented`] or [`Reply::NotAnInteger`].
    Increment {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// How much to add; may be negative.
        by: i64,
    },
    /// Change when a key expires; the value stays. Answered by [`Reply::Written`] or [`Reply::NotFound`].
    Expire {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// Milliseconds from now; `None`: never.
        ttl_ms: Option<u64>,
    },
    /// Nothing but the passing of time: what is due expires. Proposed by the leader.
    Advance,
    /// Take no more writes because this swarm is about to dissolve into another; accepted only while the
    /// partition holds no key and remembers no session. A seal of another attempt is taken over, unless that
    /// one sealed the first partition later: so the order in which attempts took the first partition decides
    /// everywhere. Answered by [`Reply::Sealed`], [`Reply::NotEmpty`], [`Reply::Unsealed`] if a later attempt
    /// holds it, or [`Reply::Dissolved`] if it is too late.
    Seal {
        /// The swarm that remains.
        into: SwarmId,
        /// Whose seal it is: random, drawn for each attempt to dissolve the swarm.
        attempt: u128,
        /// What the first partition answered to this attempt; `None`: this is the first partition.
        epoch: Option<Version>,
    },
    /// Take writes again, if the seal is still this attempt's. Answered by [`Reply::Unsealed`].
    Unseal {
        /// Whose seal to break.
        attempt: u128,
    },
    /// Never take writes again, if the seal is still this attempt's. All partitions of the swarm are sealed by
    /// the attempt; applying this to the first of them is the moment at which the swarm has dissolved.
    /// Answered by [`Reply::Dissolved`], or [`Reply::Unsealed`] if the seal was broken or taken over.
    Dissolve {
        /// Whose seal it must be.
        attempt: u128,
        /// What the first partition answered to this attempt's seal.
        epoch: Version,
    },
    /// Take a lock, or a place in its queue. Answered by [`Reply::Granted`], [`Reply::Queued`],
    /// [`Reply::NotAcquired`], [`Reply::AlreadyHeld`] or [`Reply::TooManyLocks`].
    Acquire {
        /// The lock.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// For whom.
        claim: Claim,
        /// With whom it can be held at the same time.
        mode: LockMode,
        /// How long the holder, or the waiter, is believed without a renewal, in milliseconds.
        lease_ms: u64,
        /// Whether to wait if it is not free.
        wait: bool,
        /// What the holder says of itself.
        #[serde(with = "crate::codec::bytes")]
        note: Vec<u8>,
    },
    /// Give leases their full length again: those of all that a session holds and waits for in the partition.
    /// Answered by [`Reply::Renewed`].
    Renew {
        /// Any of the locks: it names the partition.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Whose.
        session: SessionId,
        /// Numbers of the session's claims; at most [`MAX_RENEWED`].
        numbers: Vec<u64>,
    },
    /// Give up a lock, or a place in its queue. Answered by [`Reply::Released`] or [`Reply::NotHeld`].
    Release {
        /// The lock.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Whose.
        claim: Claim,
    },
    /// Change what a holder says of itself. Answered by [`Reply::Granted`] or [`Reply::NotHeld`].
    Proclaim {
        /// The lock.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Whose.
        claim: Claim,
        /// What it says now.
        #[serde(with = "crate::codec::bytes")]
        note: Vec<u8>,
    },
    /// Set a key, unless it was written with a higher token. Answered by [`Reply::Written`],
    /// [`Reply::Fenced`] or [`Reply::TooManyFenced`].
    PutFenced {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// Its new value.
        #[serde(with = "crate::codec::bytes")]
        value: Vec<u8>,
        /// Milliseconds until it expires; `None`: it stays.
        ttl_ms: Option<u64>,
        /// Of the lock under which this is written.
        token: FencingToken,
    },
    /// Remove a key, unless it was written with a higher token. Answered by [`Reply::Deleted`],
    /// [`Reply::Fenced`] or [`Reply::TooManyFenced`].
    DeleteFenced {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// Of the lock under which this is removed.
        token: FencingToken,
    },
    /// Hand out only versions and tokens higher than `above` from now on; no effect if that is so already.
    /// Answered by [`Reply::Raised`].
    Raise {
        /// At most [`MAX_RAISED`].
        above: Version,
    },
    /// Put back a part of a backup. Answered by [`Reply::Imported`], whether this part was the next one or not;
    /// [`Reply::NotEmpty`] if the partition holds something else than this backup, or [`Reply::TooManyFenced`].
    Import {
        /// Which backup.
        backup: u128,
        /// Of the part, counted for this partition; 0 begins.
        number: u64,
        /// At most [`MAX_IMPORTED`], and [`MAX_IMPORTED_BYTES`] of keys and values unless it is one alone.
        items: Vec<Imported>,
    },
    /// Give a dataset its name: from now on it is there. All its blocks must be kept by a majority of their replicas.
    /// Answered by [`Reply::DatasetSealed`], [`Reply::DatasetExists`] or [`Reply::TooManyDatasets`].
    SealDataset {
        /// The name.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// The dataset.
        manifest: Manifest,
    },
    /// Remove a dataset; the nodes then drop its blocks. Answered by [`Reply::DatasetRemoved`].
    RemoveDataset {
        /// The name.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Only this one; `None`: whichever has the name.
        id: Option<DatasetId>,
    },
}

impl Operation {
    /// The key, lock or dataset that the operation is about, if any: it decides the partition.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Put { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. }
            | Self::Increment { key, .. }
            | Self::Expire { key, .. }
            | Self::PutFenced { key, .. }
            | Self::DeleteFenced { key, .. }
            | Self::Acquire { name: key, .. }
            | Self::Renew { name: key, .. }
            | Self::Release { name: key, .. }
            | Self::Proclaim { name: key, .. }
            | Self::SealDataset { name: key, .. }
            | Self::RemoveDataset { name: key, .. } => Some(key),
            Self::Advance
            | Self::Seal { .. }
            | Self::Unseal { .. }
            | Self::Dissolve { .. }
            | Self::Raise { .. }
            | Self::Import { .. } => None,
        }
    }

    /// Whether this is about the partition as a whole, and changes nothing when repeated: it needs no session.
    pub fn is_administrative(&self) -> bool {
        self.is_for_members() || matches!(self, Self::Raise { .. } | Self::Import { .. })
    }

    /// Whether only a node may ask for this, on behalf of its swarm.
    pub fn is_for_members(&self) -> bool {
        matches!(self, Self::Seal { .. } | Self::Unseal { .. } | Self::Dissolve { .. })
    }

    /// Whether the partition may hold something after this that it did not hold before: a sealed one refuses it.
    pub fn is_about_content(&self) -> bool {
        self.key().is_some() || matches!(self, Self::Import { .. })
    }

    /// Whether the operation is within the limits; to be asked before it is sent and before it is proposed.
    ///
    /// # Errors
    /// The limit that it exceeds.
    pub fn check(&self) -> Result<(), LimitError> {
        if let Some(key) = self.key() {
            check_key(key)?;
        }
        match self {
            Self::Put { value, ttl_ms, .. }
            | Self::CompareAndSwap { value, ttl_ms, .. }
            | Self::PutFenced { value, ttl_ms, .. } => {
                at_most("value", value, MAX_VALUE_BYTES)?;
                check_ttl(*ttl_ms)
            }
            Self::Expire { ttl_ms, .. } => check_ttl(*ttl_ms),
            Self::Acquire { mode, lease_ms, note, .. } => {
                mode.check()?;
                check_lease(*lease_ms)?;
                check_note(note)
            }
            Self::Proclaim { note, .. } => check_note(note),
            Self::Raise { above } if above.0 > MAX_RAISED => Err(LimitError::Raised),
            Self::Import { items, .. } => check_items(items),
            Self::SealDataset { manifest, .. } if !manifest.is_sound() => Err(LimitError::Blocks),
            Self::Renew { numbers, .. } if numbers.len() > MAX_RENEWED => Err(LimitError::Renewals),
            _ => Ok(()),
        }
    }
}

/// What is asked for is beyond a limit. Nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// Longer than allowed.
    #[error("the {what} is {size} bytes long, at most {limit} are allowed")]
    TooLarge {
        /// What is: the key, the value, ...
        what: &'static str,
        /// Its length in bytes.
        size: usize,
        /// The longest allowed, in bytes.
        limit: usize,
    },
    /// The shortest key is one byte long.
    #[error("the key is empty, at least 1 byte is needed")]
    EmptyKey,
    /// The shortest time to live is a millisecond.
    #[error("the time to live is zero, at least 1 ms is needed")]
    ZeroTtl,
    /// A lease of another length would be no use.
    #[error("a lease is between {MIN_LEASE_MS} ms and {} minutes long", MAX_LEASE_MS / 60_000)]
    Lease,
    /// A semaphore without permits, or with too many.
    #[error("a semaphore has 1 to {MAX_HOLDERS} permits")]
    Permits,
    /// More claims in one renewal than allowed.
    #[error("one renewal covers at most {MAX_RENEWED} claims")]
    Renewals,
    /// There must be room for later versions.
    #[error("versions cannot be raised by more than {MAX_RAISED}")]
    Raised,
    /// More of a backup in one part than allowed.
    #[error("a part of a backup has at most {MAX_IMPORTED} items and {MAX_IMPORTED_BYTES} bytes")]
    Imports,
    /// A dataset beyond its limits.
    #[error("a dataset has at most {MAX_BLOCKS} blocks of {MAX_BLOCK_BYTES} bytes")]
    Blocks,
}

pub(super) fn check_key(key: &[u8]) -> Result<(), LimitError> {
    if key.is_empty() {
        return Err(LimitError::EmptyKey);
    }
    at_most("key", key, MAX_KEY_BYTES)
}

pub(super) fn at_most(what: &'static str, bytes: &[u8], limit: usize) -> Result<(), LimitError> {
    let size = bytes.len();
    if size > limit {
        return Err(LimitError::TooLarge { what, size, limit });
    }
    Ok(())
}

pub(super) fn check_ttl(ttl_ms: Option<u64>) -> Result<(), LimitError> {
    if ttl_ms == Some(0) {
        return Err(LimitError::ZeroTtl);
    }
    Ok(())
}

/// What applying a command answers. A retry is answered as the first attempt was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The key is now at this version.
    Written {
        /// The key's new version.
        version: Version,
    },
    /// The key is gone.
    Deleted {
        /// Whether it was there before.
        existed: bool,
    },
    /// The counter's new value.
    Incremented {
        /// After the addition.
        value: i64,
        /// The key's new version.
        version: Version,
    },
    /// Nothing changed: the key is not at the expected version.
    Conflict {
        /// Where it is; `None`: absent.
        version: Option<Version>,
    },
    /// Nothing changed: the key is absent.
    NotFound,
    /// Nothing changed: the value is no decimal integer, or the sum would not fit 64 bits.
    NotAnInteger,
    /// Nothing was done (by this copy of the write): it was settled before it arrived.
    Settled,
    /// Nothing changed: more sessions are alive than the partition remembers.
    TooManySessions,
    /// Nothing changed: the partition is sealed because its swarm dissolves into another; or the answer to `Seal`.
    Sealed {
        /// The swarm that remains.
        into: SwarmId,
        /// Orders attempts: the log index at which the first partition was sealed.
        epoch: Version,
    },
    /// `Seal` was refused: the partition holds keys, or did lately. Or `Import` was: it holds something else than
    /// the backup.
    NotEmpty,
    /// The partition is not sealed by this attempt (any more).
    Unsealed,
    /// The partition is sealed for good.
    Dissolved {
        /// The swarm that remains.
        into: SwarmId,
    },
    /// The leader's own command was applied.
    Advanced,
    /// The claim holds the lock.
    Granted {
        /// Higher than that of every grant of the lock before.
        token: FencingToken,
    },
    /// The claim waits for the lock.
    Queued {
        /// Holders and waiters before it.
        ahead: u32,
    },
    /// Nothing changed: the lock is not free, and the claim was not to wait.
    NotAcquired {
        /// Holders and waiters before it.
        ahead: u32,
    },
    /// Nothing changed: the claim holds the lock already.
    AlreadyHeld {
        /// Of its grant.
        token: FencingToken,
    },
    /// Nothing changed: the lock, or the partition, has as many holders and waiters as it can have.
    TooManyLocks,
    /// The leases of these claims have their full length again; all others of the renewal are gone.
    Renewed {
        /// Number and, if it holds, token of each.
        alive: Vec<(u64, Option<FencingToken>)>,
    },
    /// The claim neither holds the lock nor waits for it any more.
    Released {
        /// Whether it held it.
        held: bool,
    },
    /// Nothing changed: the claim does not hold (or, when released, does not wait for) the lock.
    NotHeld,
    /// Nothing changed: the key was written with a higher token.
    Fenced {
        /// The highest.
        current: FencingToken,
    },
    /// Nothing changed: too many keys of the partition were written with tokens.
    TooManyFenced,
    /// Every later version and token of the partition is higher than this.
    Raised {
        /// At least what was asked for.
        highest: Version,
    },
    /// How far the partition is with the backup.
    Imported {
        /// After this part.
        state: ImportState,
    },
    /// The dataset has its name.
    DatasetSealed {
        /// When it was sealed.
        version: Version,
    },
    /// Nothing changed: another dataset has the name.
    DatasetExists {
        /// Which.
        id: DatasetId,
    },
    /// The name is free.
    DatasetRemoved {
        /// Which dataset had it; `None`: none, or another one than was meant, and nothing changed.
        id: Option<DatasetId>,
    },
    /// Nothing changed: the partition knows as many datasets, or as much of them, as it can.
    TooManyDatasets,
}
