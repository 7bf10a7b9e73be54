//! Pairs as they lie in a run: range by range, in each by key.
//!
//! Of each pair the length of its key and one (0: its key is that of the pair before it in the range), the length of
//! its value, both with seven bits in a byte, then key and value.

use std::io::{self, Write};

use bytes::Bytes;

use super::batch::MAX_BATCH_BYTES;
use crate::sort::{Fingerprint, RunPart, prefix};

/// Longest key and value together, in bytes, with what is put before them.
const MAX_PAIR_BYTES: usize = MAX_BATCH_BYTES + 64;
/// Bits of a length in each byte of it.
const LENGTH_BITS: u32 = 7;

/// What a run that was written holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairRun {
    /// Of each range; they follow each other. Their records are pairs.
    pub parts: Vec<RunPart>,
    /// The pairs.
    pub pairs: Fingerprint,
}

/// Writes pairs; they must come in order.
pub(super) struct RunWriter<W> {
    out: W,
    run: PairRun,
    range: usize,
    last: Option<Vec<u8>>,
    head: Vec<u8>,
}

impl<W: Write> RunWriter<W> {
    pub(super) fn new(out: W, ranges: u32) -> Self {
        let run = PairRun { parts: vec![RunPart::default(); ranges as usize], pairs: Fingerprint::default() };
        Self { out, run, range: 0, last: None, head: Vec::new() }
    }

    /// The next pair. Its range is not before that of the last, and in the same range its key is not either.
    pub(super) fn push(&mut self, range: u32, key: &[u8], value: &[u8]) -> io::Result<()> {
        let range = range as usize;
        debug_assert!(self.range <= range && range < self.run.parts.len());
        if range != self.range {
            (self.range, self.last) = (range, None);
        }
        self.head.clear();
        let is_same = self.last.as_deref() == Some(key);
        put_length(if is_same { 0 } else { key.len() + 1 }, &mut self.head);
        put_length(value.len(), &mut self.head);
        self.out.write_all(&self.head)?;
        let mut bytes = self.head.len() + value.len();
        if !is_same {
            debug_assert!(self.last.as_deref().is_none_or(|last| last < key));
            self.out.write_all(key)?;
            bytes += key.len();
            let last = self.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
        }
        self.out.write_all(value)?;
        self.run.parts[range].bytes += bytes as u64;
        self.run.parts[range].records += 1;
        self.run.pairs.add_pair(key, value);
        Ok(())
    }

    /// What was written, and where to.
    pub(super) fn finish(self) -> (PairRun, W) {
        (self.run, self.out)
    }
}

fn put_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let [low, ..] = length.to_le_bytes();
        let low = low & 0x7f;
        length >>= LENGTH_BITS;
        if length == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// A length and how many bytes it takes; `None`: it is cut off. A length beyond all limits is [`MAX_PAIR_BYTES`] + 1.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut found = 0usize;
    for (at, byte) in bytes.iter().enumerate() {
        let shift = LENGTH_BITS * u32::try_from(at).unwrap_or(u32::MAX);
        if shift > 21 {
            return Some((MAX_PAIR_BYTES + 1, at));
        }
        found |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((found, at + 1));
        }
    }
    None
}

/// A part of a run as far as it was read; its bytes come in pieces that may be cut anywhere.
#[derive(Debug)]
pub(super) struct Cursor<S> {
    source: S,
    buffer: Vec<u8>,
    /// Where the next pair begins.
    at: usize,
    key: Vec<u8>,
    has_key: bool,
    /// The present value, in `buffer`.
    value: std::ops::Range<usize>,
    /// The first eight bytes of the key: less means earlier, equal means that keys must be compared.
    prefix: u64,
}

/// Why a cursor cannot go on.
#[derive(Debug)]
pub(super) enum CursorError<E> {
    Source(E),
    /// It is no part of a run.
    NoRun,
}

impl<S> Cursor<S> {
    pub(super) fn new(source: S) -> Self {
        let (buffer, key) = (Vec::new(), Vec::new());
        Self { source, buffer, at: 0, key, has_key: false, value: 0..0, prefix: 0 }
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.buffer[self.value.clone()]
    }

    pub(super) fn is_before(&self, other: &Self) -> bool {
        self.prefix < other.prefix || (self.prefix == other.prefix && self.key < other.key)
    }
}

impl<E, S: Iterator<Item = Result<Bytes, E>>> Cursor<S> {
    /// Goes on to the next pair; `false`: there is none.
    pub(super) fn advance(&mut self) -> Result<bool, CursorError<E>> {
        loop {
            if self.take()? {
                return Ok(true);
            }
            let is_whole = self.at == self.buffer.len();
            match self.source.next() {
                None if is_whole => return Ok(false),
                None => return Err(CursorError::NoRun),
                Some(Err(error)) => return Err(CursorError::Source(error)),
                Some(Ok(piece)) if is_whole => self.buffer = piece.into(),
                Some(Ok(piece)) => {
                    self.buffer.drain(..self.at);
                    self.buffer.extend_from_slice(&piece);
                }
            }
            self.at = 0;
        }
    }

    /// Takes a pair out of the buffer; `false`: it is not there as a whole.
    fn take(&mut self) -> Result<bool, CursorError<E>> {
        let rest = &self.buffer[self.at..];
        let Some((key_length, first)) = length(rest) else { return Ok(false) };
        let Some((value_length, second)) = length(&rest[first..]) else { return Ok(false) };
        let (head, key_bytes) = (first + second, key_length.saturating_sub(1));
        if key_bytes + value_length > MAX_PAIR_BYTES || (key_length == 0 && !self.has_key) {
            return Err(CursorError::NoRun);
        }
        if rest.len() < head + key_bytes + value_length {
            return Ok(false);
        }
        if key_length > 0 {
            let key = &rest[head..head + key_bytes];
            if self.has_key && *key <= self.key[..] {
                return Err(CursorError::NoRun);
            }
            self.key.clear();
            self.key.extend_from_slice(key);
            self.has_key = true;
            self.prefix = prefix(&self.key);
        }
        let start = self.at + head + key_bytes;
        self.value = start..start + value_length;
        self.at = self.value.end;
        Ok(true)
    }
}
