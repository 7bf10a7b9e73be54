//! Several runs into one.

use std::cmp::Ordering;

use bytes::Bytes;

use super::key::Order;
use super::run::{LENGTH_BYTES, POSITION_BYTES};
use super::{Fingerprint, Position};
use crate::dataset::{Format, MAX_RECORD_BYTES};

/// Merges parts of runs, each of which comes in pieces that may be cut anywhere.
#[derive(Debug)]
pub struct Merge<S> {
    order: Order,
    format: Format,
    cursors: Vec<Cursor<S>>,
    /// Cursors that are not at their end.
    // Invariant: a heap, the next record's cursor first.
    heap: Vec<u32>,
    /// The key of the record that was returned last.
    last: Option<(u64, Vec<u8>)>,
    /// The first cursor's record was returned: it is to go on.
    taken: bool,
    dropped: Fingerprint,
}

/// The next record of a merge.
#[derive(Debug, Clone, Copy)]
pub struct Merged<'a> {
    /// Without what ends it.
    pub record: &'a [u8],
    /// What it is compared by.
    pub key: &'a [u8],
}

/// One run as far as it was read.
#[derive(Debug)]
struct Cursor<S> {
    source: S,
    buffer: Vec<u8>,
    /// Where the next record begins.
    at: usize,
    /// Of the present record.
    start: usize,
    position: Position,
    prefix: u64,
    key: Vec<u8>,
}

/// Why a merge cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError<E> {
    /// A source failed.
    #[error("source {at}: {error}")]
    Source {
        /// Which, in the order in which they were given.
        at: usize,
        /// Why.
        error: E,
    },
    /// A source is no run, or not in order.
    #[error("source {at} is not a run")]
    NoRun {
        /// Which, in the order in which they were given.
        at: usize,
    },
}

impl<E, S: Iterator<Item = Result<Bytes, E>>> Merge<S> {
    /// Reads the first piece of each source.
    ///
    /// # Errors
    /// If a source fails.
    pub fn new(
        order: Order,
        format: Format,
        sources: impl IntoIterator<Item = S>,
    ) -> Result<Self, MergeError<E>> {
        let mut cursors: Vec<Cursor<S>> = sources.into_iter().map(Cursor::new).collect();
        let mut heap = Vec::with_capacity(cursors.len());
        for (number, at) in (0..).zip(0..cursors.len()) {
            if cursors[at].advance(order, format, at)? {
                heap.push(number);
            }
        }
        let dropped = Fingerprint::default();
        let mut merge = Self { order, format, cursors, heap, last: None, taken: false, dropped };
        for at in (0..merge.heap.len() / 2).rev() {
            merge.sift_down(at);
        }
        Ok(merge)
    }

    /// The next record in order; `None`: there is none any more.
    ///
    /// # Errors
    /// If a source fails, or was not in order.
    // Not an iterator: what it returns lies in its own buffers.
    pub fn next_record(&mut self) -> Result<Option<Merged<'_>>, MergeError<E>> {
        loop {
            if std::mem::take(&mut self.taken) {
                self.go_on()?;
            }
            let Some(first) = self.heap.first().map(|first| *first as usize) else { return Ok(None) };
            self.taken = true;
            let cursor = &self.cursors[first];
            let key = cursor.key(self.order);
            match &mut self.last {
                Some((prefix, last)) => match cursor.prefix.cmp(prefix) {
                    Ordering::Greater => {
                        *prefix = cursor.prefix;
                        last.clear();
                        last.extend_from_slice(key);
                    }
                    Ordering::Less => return Err(MergeError::NoRun { at: first }),
                    Ordering::Equal => match self.order.keys(last, key) {
                        Ordering::Greater => return Err(MergeError::NoRun { at: first }),
                        Ordering::Equal if self.order.unique => {
                            self.dropped.add(cursor.record());
                            continue;
                        }
                        Ordering::Equal => {}
                        Ordering::Less => {
                            last.clear();
                            last.extend_from_slice(key);
                        }
                    },
                },
                None => self.last = Some((cursor.prefix, key.to_vec())),
            }
            let cursor = &self.cursors[first];
            return Ok(Some(Merged { record: cursor.record(), key: cursor.key(self.order) }));
        }
    }

    /// What was left out so far, because an equal record came before it.
    pub fn dropped(&self) -> Fingerprint {
        self.dropped
    }

    /// Goes on to the next record of the first cursor.
    fn go_on(&mut self) -> Result<(), MergeError<E>> {
        let Some(first) = self.heap.first().map(|first| *first as usize) else { return Ok(()) };
        if !self.cursors[first].advance(self.order, self.format, first)? {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    fn sift_down(&mut self, at: usize) {
        let (cursors, order) = (&self.cursors, self.order);
        sift_down(&mut self.heap, at, |one, other| {
            cursors[one as usize].is_before(&cursors[other as usize], order)
        });
    }
}

/// Puts what is at a place of a heap where it belongs, if only it may be wrong: no further from the first than what
/// it is before.
pub(crate) fn sift_down(heap: &mut [u32], mut at: usize, is_before: impl Fn(u32, u32) -> bool) {
    loop {
        let (left, right) = (2 * at + 1, 2 * at + 2);
        let mut least = at;
        for child in [left, right] {
            if child < heap.len() && is_before(heap[child], heap[least]) {
                least = child;
            }
        }
        if least == at {
            return;
        }
        heap.swap(at, least);
        at = least;
    }
}

impl<S> Cursor<S> {
    fn new(source: S) -> Self {
        let (buffer, key) = (Vec::new(), Vec::new());
        Self { source, buffer, at: 0, start: 0, position: Position::default(), prefix: 0, key }
    }

    fn record(&self) -> &[u8] {
        &self.buffer[self.start..self.at]
    }

    fn key(&self, order: Order) -> &[u8] {
        if order.is_whole() { self.record() } else { &self.key }
    }

    fn is_before(&self, other: &Self, order: Order) -> bool {
        match self.prefix.cmp(&other.prefix) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => {
                let one = (self.key(order), self.record(), self.position);
                let other = (other.key(order), other.record(), other.position);
                order.records(one, other) == Ordering::Less
            }
        }
    }
}

impl<E, S: Iterator<Item = Result<Bytes, E>>> Cursor<S> {
    /// Goes on to the next record; `false`: there is none.
    fn advance(&mut self, order: Order, format: Format, number: usize) -> Result<bool, MergeError<E>> {
        let head = LENGTH_BYTES + if order.needs_positions() { POSITION_BYTES } else { 0 };
        loop {
            let rest = &self.buffer[self.at..];
            if let Some((length, behind)) = rest.split_first_chunk::<LENGTH_BYTES>() {
                let length = u32::from_le_bytes(*length) as usize;
                if length > MAX_RECORD_BYTES {
                    return Err(MergeError::NoRun { at: number });
                }
                if rest.len() >= head + length {
                    if head > LENGTH_BYTES {
                        self.position = position(behind);
                    }
                    self.start = self.at + head;
                    self.at = self.start + length;
                    let mut made = std::mem::take(&mut self.key);
                    let key = order.key_of(format, self.record(), &mut made);
                    let prefix = order.prefix(key);
                    if !order.is_whole() && made.is_empty() {
                        // A part of the record.
                        made.extend_from_slice(order.key_of(format, self.record(), &mut Vec::new()));
                    }
                    (self.prefix, self.key) = (prefix, made);
                    return Ok(true);
                }
            }
            let is_whole = rest.is_empty();
            match self.source.next() {
                None if is_whole => return Ok(false),
                None => return Err(MergeError::NoRun { at: number }),
                Some(Err(error)) => return Err(MergeError::Source { at: number, error }),
                Some(Ok(piece)) if is_whole => self.buffer = piece.into(),
                Some(Ok(piece)) => {
                    self.buffer.drain(..self.at);
                    self.buffer.extend_from_slice(&piece);
                }
            }
            self.at = 0;
        }
    }
}

fn position(bytes: &[u8]) -> Position {
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    Position { block: number(0), record: number(4) }
}
