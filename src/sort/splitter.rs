//! Where one range ends and the next begins.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::Position;
use super::key::Order;
use crate::dataset::Format;

/// Longest part of a key or record that a splitter holds, in bytes. What is longer is cut: a splitter need not be a
/// record, only stand somewhere between two.
pub const MAX_SPLITTER_KEY_BYTES: usize = 256;

/// The beginning of a range: what is not before it in the order of the output belongs to the range or a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Splitter {
    #[serde(with = "crate::codec::bytes")]
    key: Vec<u8>,
    /// Empty unless records with equal keys are compared as a whole.
    #[serde(with = "crate::codec::bytes")]
    record: Vec<u8>,
    /// Among records that are equal, the first of the range.
    position: Position,
}

/// A record that stands for others around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    splitter: Splitter,
    /// Bytes of those that it stands for.
    weight: u64,
}

impl Splitter {
    fn new(order: Order, key: &[u8], record: &[u8], position: Position) -> Self {
        let cut = |bytes: &[u8]| bytes[..bytes.len().min(MAX_SPLITTER_KEY_BYTES)].to_vec();
        let record = if order.has_last_resort() { cut(record) } else { Vec::new() };
        // Of equal keys one remains, so all of them must meet in one range.
        let position = if order.unique { Position::default() } else { position };
        Self { key: cut(key), record, position }
    }

    /// Whether a record comes before this.
    pub(super) fn is_behind(&self, order: Order, key: &[u8], record: &[u8], position: Position) -> bool {
        let position = if order.unique { Position::default() } else { position };
        order.records((key, record, position), (&self.key, &self.record, self.position)) == Ordering::Less
    }

    /// Whether it keeps the limits; to be asked of what came from elsewhere.
    pub fn is_sound(&self) -> bool {
        self.key.len() <= MAX_SPLITTER_KEY_BYTES && self.record.len() <= MAX_SPLITTER_KEY_BYTES
    }

    fn compare(&self, order: Order, other: &Self) -> Ordering {
        order.records((&self.key, &self.record, self.position), (&other.key, &other.record, other.position))
    }
}

/// Picks at most `count` records of a block, evenly.
pub fn sample(order: Order, format: Format, block: u32, bytes: &[u8], count: usize) -> Vec<Sample> {
    let records = format.records(bytes).count();
    let count = count.clamp(1, records.max(1));
    let weight = (bytes.len() / count) as u64;
    let mut made = Vec::new();
    let mut picked = Vec::with_capacity(count);
    for (record, content) in format.records(bytes).enumerate() {
        // The middle one of each of `count` runs of records.
        if (2 * picked.len() + 1) * records / (2 * count) == record {
            let position = Position { block, record: u32::try_from(record).unwrap_or(u32::MAX) };
            let key = order.key_of(format, content, &mut made);
            let splitter = Splitter::new(order, key, content, position);
            picked.push(Sample { splitter, weight });
        }
    }
    picked
}

/// Cuts what the samples stand for into about equal ranges: at most `ranges`, fewer if there is not enough to tell
/// them apart.
pub fn splitters(order: Order, mut samples: Vec<Sample>, ranges: usize) -> Vec<Splitter> {
    samples.sort_by(|one, other| one.splitter.compare(order, &other.splitter));
    let total: u64 = samples.iter().map(|sample| sample.weight).sum();
    let mut chosen: Vec<Splitter> = Vec::new();
    let mut before = 0;
    for Sample { splitter, weight } in samples {
        let wanted = u128::from(total) * (chosen.len() as u128 + 1) / ranges.max(1) as u128;
        let is_new = chosen.last().is_none_or(|last| last.compare(order, &splitter) == Ordering::Less);
        if chosen.len() + 1 < ranges && u128::from(before) >= wanted && is_new {
            chosen.push(splitter);
        }
        before += weight;
    }
    chosen
}
