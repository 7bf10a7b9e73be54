//! Putting back what a backup holds, part by part, each part exactly once.
//!
//! **Problem.** A restore writes for a while, and may be interrupted and begun again, by another process that
//! knows nothing of the first. What was put back already, and has been changed or removed since, must then stay
//! as it is.
//!
//! **Method.** The same backup is always cut into the same parts, numbered for each partition from 0, and the
//! partition remembers which backup is being put back and which part is next. Any other part changes nothing:
//! so the parts need no session, and a restore that is begun again goes on where the first one stopped. Part 0
//! begins, and is taken only by a partition that holds nothing. A key that is there when its part comes was
//! written meanwhile, and stays.

use serde::{Deserialize, Serialize};

use super::StateMachine;
use super::command::{LimitError, MAX_KEY_BYTES, MAX_VALUE_BYTES, Reply, at_most, check_key, check_ttl};
use super::fence::MAX_FENCED;
use crate::id::{FencingToken, Version};

/// Most keys and tokens of one part.
pub const MAX_IMPORTED: usize = 1024;
/// A part ends before the item that would take it over this many bytes of keys and values; one item may be
/// longer by itself.
pub const MAX_IMPORTED_BYTES: usize = 256 * 1024;

const _: () = assert!(MAX_IMPORTED_BYTES < MAX_KEY_BYTES + MAX_VALUE_BYTES);

/// Something that a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Imported {
    /// A key.
    Key {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// Its value.
        #[serde(with = "crate::codec::bytes")]
        value: Vec<u8>,
        /// Milliseconds until it expires; `None`: it stays.
        ttl_ms: Option<u64>,
    },
    /// The highest token that a key was ever written with.
    Fence {
        /// The key.
        #[serde(with = "crate::codec::bytes")]
        key: Vec<u8>,
        /// The token.
        token: FencingToken,
    },
}

impl Imported {
    /// The key that it is about: it decides the partition.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Key { key, .. } | Self::Fence { key, .. } => key,
        }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Key { key, value, .. } => key.len() + value.len(),
            Self::Fence { key, .. } => key.len(),
        }
    }
}

/// How far a partition is with a backup that is being put back, or has been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportState {
    /// Which backup.
    pub backup: u128,
    /// The part that is next.
    pub next: u64,
    /// Keys of the parts before that were not put back, because they had been written meanwhile.
    pub kept: u64,
}

/// Whether a part is within the limits.
pub(super) fn check_items(items: &[Imported]) -> Result<(), LimitError> {
    if items.len() > MAX_IMPORTED || items.iter().map(Imported::bytes).sum::<usize>() > MAX_IMPORTED_BYTES {
        // One item alone may be as long as a write.
        if items.len() != 1 {
            return Err(LimitError::Imports);
        }
    }
    items.iter().try_for_each(|item| {
        check_key(item.key())?;
        match item {
            Imported::Key { value, ttl_ms, .. } => {
                at_most("value", value, MAX_VALUE_BYTES)?;
                check_ttl(*ttl_ms)
            }
            Imported::Fence { .. } => Ok(()),
        }
    })
}

impl StateMachine {
    /// Puts back one part of a backup, if it is the next.
    pub(super) fn import(
        &mut self,
        backup: u128,
        number: u64,
        items: Vec<Imported>,
        version: Version,
    ) -> Reply {
        let mut state = match self.import {
            Some(state) if state.backup == backup => state,
            _ if number == 0 && self.is_empty() => ImportState { backup, next: 0, kept: 0 },
            _ => return Reply::NotEmpty,
        };
        if number == state.next {
            let is_new =
                |item: &&Imported| matches!(item, Imported::Fence { key, .. } if !self.fences.contains(key));
            if self.fences.len() + items.iter().filter(is_new).count() > MAX_FENCED {
                return Reply::TooManyFenced;
            }
            for item in items {
                match item {
                    Imported::Key { key, .. } if self.keys.get(&key).is_some() => state.kept += 1,
                    Imported::Key { key, value, ttl_ms } => {
                        self.set(&key, &value, version, ttl_ms);
                    }
                    // Whatever token came later is as good.
                    Imported::Fence { key, token } => drop(self.fences.pass(&key, token)),
                }
            }
            state.next = state.next.saturating_add(1);
        }
        self.import = Some(state);
        Reply::Imported { state }
    }

    /// Everything in it that a backup can put back: keys, and then the tokens that keys were written with. Not
    /// locks, whose holders know nothing of another swarm, and not sessions.
    pub fn imports(&self) -> impl Iterator<Item = Imported> {
        let now = self.time;
        let keys = self.keys.iter().map(move |(key, slot)| {
            let ttl_ms = slot.expiry.map(|expiry| expiry.0.saturating_sub(now.0).max(1));
            Imported::Key { key: key.to_vec(), value: slot.value.to_vec(), ttl_ms }
        });
        keys.chain(self.fences.iter().map(|(key, token)| Imported::Fence { key: key.clone(), token }))
    }
}
