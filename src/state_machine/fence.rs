//! The highest fencing token that each key was written with, so that a holder whose lock has passed on cannot
//! write over its successor's work. It outlives the key, or the late write would come in through a delete.

use std::collections::BTreeMap;

use super::command::Reply;
use crate::id::FencingToken;

/// Keys of one partition that were ever written with a token.
pub const MAX_FENCED: usize = 65_536;

/// What a token costs beside its key, in bytes.
const TOKEN_BYTES: usize = 8;

/// Tokens by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fences {
    tokens: BTreeMap<Vec<u8>, FencingToken>,
    // Invariant: bytes == sum over tokens of key.len() + TOKEN_BYTES.
    bytes: usize,
}

impl Fences {
    /// Lets a write with this token through and remembers it. `Err`: it must not be applied, and this is its
    /// answer.
    pub(super) fn pass(&mut self, key: &[u8], token: FencingToken) -> Result<(), Reply> {
        if let Some(current) = self.tokens.get_mut(key) {
            if *current > token {
                return Err(Reply::Fenced { current: *current });
            }
            *current = token;
            return Ok(());
        }
        if self.tokens.len() >= MAX_FENCED {
            return Err(Reply::TooManyFenced);
        }
        self.restore(key.to_vec(), token);
        Ok(())
    }

    pub(super) fn restore(&mut self, key: Vec<u8>, token: FencingToken) {
        self.bytes += key.len() + TOKEN_BYTES;
        self.tokens.insert(key, token);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, FencingToken)> {
        self.tokens.iter().map(|(key, token)| (key, *token))
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.tokens.contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
