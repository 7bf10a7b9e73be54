//! The same range of several runs, as one.

use bytes::Bytes;

use super::run::{Cursor, CursorError};
use crate::sort::{MergeError, sift_down};

/// A key and a value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// Merges parts of runs, each of which comes in pieces that may be cut anywhere.
#[derive(Debug)]
pub(super) struct PairMerge<S> {
    cursors: Vec<Cursor<S>>,
    /// Cursors that are not at their end.
    // Invariant: a heap, the next pair's cursor first.
    heap: Vec<u32>,
    /// The first cursor's pair was returned: it is to go on.
    taken: bool,
}

impl<E, S: Iterator<Item = Result<Bytes, E>>> PairMerge<S> {
    /// Reads the first piece of each source.
    pub(super) fn new(sources: impl IntoIterator<Item = S>) -> Result<Self, MergeError<E>> {
        let mut cursors: Vec<Cursor<S>> = sources.into_iter().map(Cursor::new).collect();
        let mut heap = Vec::with_capacity(cursors.len());
        for (number, (at, cursor)) in (0..).zip(cursors.iter_mut().enumerate()) {
            if cursor.advance().map_err(|error| failed(at, error))? {
                heap.push(number);
            }
        }
        let mut merge = Self { cursors, heap, taken: false };
        for at in (0..merge.heap.len() / 2).rev() {
            merge.sift_down(at);
        }
        Ok(merge)
    }

    /// The next pair in the order of keys; `None`: there is none any more.
    // Not an iterator: what it returns lies in its own buffers.
    pub(super) fn next_pair(&mut self) -> Result<Option<Pair<'_>>, MergeError<E>> {
        self.go_on()?;
        let Some(first) = self.heap.first() else { return Ok(None) };
        self.taken = true;
        let cursor = &self.cursors[*first as usize];
        Ok(Some((cursor.key(), cursor.value())))
    }

    /// The value of the next pair, if that has this key.
    pub(super) fn next_value_of(&mut self, key: &[u8]) -> Result<Option<&[u8]>, MergeError<E>> {
        self.go_on()?;
        let Some(first) = self.heap.first() else { return Ok(None) };
        let cursor = &self.cursors[*first as usize];
        self.taken = cursor.key() == key;
        Ok(self.taken.then(|| cursor.value()))
    }

    /// Leaves the pair behind that was returned last.
    fn go_on(&mut self) -> Result<(), MergeError<E>> {
        if std::mem::take(&mut self.taken)
            && let Some(first) = self.heap.first().map(|first| *first as usize)
        {
            if !self.cursors[first].advance().map_err(|error| failed(first, error))? {
                self.heap.swap_remove(0);
            }
            self.sift_down(0);
        }
        Ok(())
    }

    fn sift_down(&mut self, at: usize) {
        let cursors = &self.cursors;
        sift_down(&mut self.heap, at, |one, other| cursors[one as usize].is_before(&cursors[other as usize]));
    }
}

fn failed<E>(at: usize, error: CursorError<E>) -> MergeError<E> {
    match error {
        CursorError::Source(error) => MergeError::Source { at, error },
        CursorError::NoRun => MergeError::NoRun { at },
    }
}
