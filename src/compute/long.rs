//! A group that is too long to be handed to a program at once.

use std::fmt;

use super::TaskError;
use super::batch::{Groups, MAX_BATCH_BYTES, Records};
use super::program::ProgramError;

/// Bytes of values that come at once, about; one more value may come with them.
pub(super) const PIECE_BYTES: usize = MAX_BATCH_BYTES;
/// Longest part of a key that an error names, in bytes.
const NAMED_KEY_BYTES: usize = 64;

/// A group that is longer than [`MAX_GROUP_BYTES`](super::MAX_GROUP_BYTES): its values come in pieces, and its records
/// are taken as they are made, so that a program never holds more of either than it wants to.
pub struct LongGroup<'a> {
    key: &'a [u8],
    pieces: Pieces<'a>,
    taker: Taker<'a>,
}

/// Replaces what is in its argument by the next values; `false`: there are none any more.
type Pull<'a> = dyn FnMut(&mut Groups) -> Result<bool, TaskError> + 'a;
type Take<'a> = dyn FnMut(&Records) -> Result<(), TaskError> + 'a;

/// The values of a long group.
pub(super) struct Pieces<'a> {
    pull: &'a mut Pull<'a>,
    failed: Option<TaskError>,
}

/// Takes the records of a long group.
pub(super) struct Taker<'a> {
    take: &'a mut Take<'a>,
    failed: Option<TaskError>,
}

impl<'a> LongGroup<'a> {
    pub(super) fn new(key: &'a [u8], pull: &'a mut Pull<'a>, take: &'a mut Take<'a>) -> Self {
        Self { key, pieces: Pieces { pull, failed: None }, taker: Taker { take, failed: None } }
    }

    /// Its key.
    pub fn key(&self) -> &[u8] {
        self.key
    }

    /// Puts the next values into `piece`, as one group, instead of what is in it; `false`: there are none any more.
    pub fn next_piece(&mut self, piece: &mut Groups) -> bool {
        self.pieces.next(piece)
    }

    /// Takes records out of `records`, which is empty then.
    pub fn take(&mut self, records: &mut Records) {
        self.taker.take(records);
    }

    pub(super) fn split(&mut self) -> (&[u8], &mut Pieces<'a>, &mut Taker<'a>) {
        (self.key, &mut self.pieces, &mut self.taker)
    }

    /// What is said where such a group cannot be reduced: how long it is, for which all of it is looked at.
    pub fn too_long(&mut self) -> ProgramError {
        let (mut piece, mut bytes) = (Groups::default(), self.key.len() as u64);
        while self.next_piece(&mut piece) {
            bytes += (piece.bytes().len() - self.key.len()) as u64;
        }
        let named = &self.key[..self.key.len().min(NAMED_KEY_BYTES)];
        ProgramError::GroupTooLong { key: named.escape_ascii().to_string(), bytes }
    }

    /// What went wrong beside the program.
    pub(super) fn failed(self) -> Option<TaskError> {
        self.pieces.failed.or(self.taker.failed)
    }
}

impl Pieces<'_> {
    pub(super) fn next(&mut self, piece: &mut Groups) -> bool {
        if self.failed.is_some() {
            return false;
        }
        match (self.pull)(piece) {
            Ok(is_there) => is_there,
            Err(error) => {
                self.failed = Some(error);
                false
            }
        }
    }
}

impl Taker<'_> {
    pub(super) fn take(&mut self, records: &mut Records) {
        if self.failed.is_none() {
            self.failed = (self.take)(records).err();
        }
        records.clear();
    }
}

impl fmt::Debug for LongGroup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongGroup").field("key", &self.key.escape_ascii().to_string()).finish_non_exhaustive()
    }
}
