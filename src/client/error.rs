//! What can go wrong, and whether it happened nevertheless.

use crate::id::{FencingToken, Version};
use crate::state_machine::LimitError;

/// Why an operation did not succeed. [`Error::outcome`] says what that means for the data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key is absent. Nothing changed.
    #[error("not found")]
    NotFound,
    /// The key is not at the expected version. Nothing changed.
    #[error("conflict: the key is {}", at(*version))]
    Conflict {
        /// Where it is; `None`: it is absent.
        version: Option<Version>,
    },
    /// The value is no decimal integer, or the sum does not fit 64 bits. Nothing changed.
    #[error("the value is not an integer, or the sum does not fit 64 bits")]
    NotAnInteger,
    /// The key was written with a higher token, by somebody who got the lock later. Nothing changed.
    #[error("fenced: the key was written with the token {current}, of a later holder")]
    Fenced {
        /// The highest token that the key was written with.
        current: FencingToken,
    },
    /// The partition cannot remember the token of yet another key. Nothing changed.
    #[error("too many keys are written with tokens")]
    TooManyFenced,
    /// A key or value is beyond its limit. Nothing was sent.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The partition of the key has no majority on this side. Not applied.
    #[error("no quorum: no majority of the key's replicas can be reached")]
    NoQuorum,
    /// The nodes asked, or this client's own share of writes, were full until the deadline. Not applied.
    #[error("overloaded")]
    Overloaded,
    /// The disk of the node that leads the key's partition is full. Not applied; reads go on.
    #[error("storage full: the disk of the node that leads this key's partition is full")]
    StorageFull,
    /// No node could be asked. Not applied.
    #[error("unreachable: no node of the swarm answers")]
    Unreachable,
    /// The swarm was dissolving into another, or had none yet, until the deadline. Not applied.
    #[error("the swarm does not serve now")]
    NotServing,
    /// A write left, and no answer to it came before the deadline: it may have been applied, or may be yet.
    #[error("unknown: no answer came in time, the write may have been applied")]
    Unknown,
    /// A question left, and no answer to it came before the deadline.
    #[error("no answer came in time")]
    TimedOut,
    /// The swarm that was read dissolved into another meanwhile: read again.
    #[error("the swarm dissolved into another meanwhile")]
    Dissolved,
    /// A node refused the request as wrong. Not applied.
    #[error("refused: {0}")]
    Refused(String),
}

/// Whether an operation that failed took place nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing changed, and nothing will.
    NotApplied,
    /// It may have been applied, or may be yet.
    MayBeApplied,
}

impl Error {
    /// Whether the operation took place nevertheless.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown => Outcome::MayBeApplied,
            Self::NotFound
            | Self::Conflict { .. }
            | Self::NotAnInteger
            | Self::Fenced { .. }
            | Self::TooManyFenced
            | Self::Limit(_)
            | Self::NoQuorum
            | Self::Overloaded
            | Self::StorageFull
            | Self::Unreachable
            | Self::NotServing
            | Self::TimedOut
            | Self::Dissolved
            | Self::Refused(_) => Outcome::NotApplied,
        }
    }
}

fn at(version: Option<Version>) -> String {
    version.map_or_else(|| "absent".to_owned(), |version| format!("at version {version}"))
}
