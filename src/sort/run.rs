//! Some blocks, sorted in memory and cut into ranges.

use std::cmp::Ordering;
use std::io::{self, Write};

use super::key::Order;
use super::splitter::Splitter;
use super::{Fingerprint, Position};
use crate::dataset::Format;

/// Bytes that a run keeps of a record's place, if it must.
pub(super) const POSITION_BYTES: usize = 8;
/// Bytes of a record's length in a run.
pub(super) const LENGTH_BYTES: usize = 4;

/// A block to sort.
#[derive(Debug, Clone, Copy)]
pub struct InputBlock<'a> {
    /// Its place in the order of all blocks of the input.
    pub position: u32,
    /// Whole records.
    pub bytes: &'a [u8],
}

/// The part of a run that is in one range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct RunPart {
    /// Encoded bytes.
    pub bytes: u64,
    /// Records.
    pub records: u64,
}

/// What a run that was written holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Of each range; they follow each other.
    pub parts: Vec<RunPart>,
    /// What was sorted.
    pub input: Fingerprint,
    /// What of it is not in the run, because an equal record came before it.
    pub dropped: Fingerprint,
}

/// Where a record is.
#[derive(Debug, Clone, Copy)]
struct Place {
    block: u32,
    start: u32,
    length: u32,
    record: u32,
}

/// What is moved while sorting: small, and mostly all that is looked at.
#[derive(Debug, Clone, Copy)]
struct Item {
    prefix: u64,
    at: u32,
}

/// The records of some blocks.
struct Table<'a> {
    order: Order,
    blocks: &'a [InputBlock<'a>],
    places: Vec<Place>,
    /// Keys that are no parts of their records, one after the other, and the end of each.
    keys: Vec<u8>,
    ends: Vec<u32>,
}

impl Table<'_> {
    fn record(&self, at: u32) -> &[u8] {
        let Place { block, start, length, .. } = self.places[at as usize];
        &self.blocks[block as usize].bytes[start as usize..][..length as usize]
    }

    fn key(&self, at: u32) -> &[u8] {
        if self.order.is_whole() {
            return self.record(at);
        }
        let start = if at == 0 { 0 } else { self.ends[at as usize - 1] };
        &self.keys[start as usize..self.ends[at as usize] as usize]
    }

    fn position(&self, at: u32) -> Position {
        let Place { block, record, .. } = self.places[at as usize];
        Position { block: self.blocks[block as usize].position, record }
    }

    fn compare(&self, one: &Item, other: &Item) -> Ordering {
        let parts = |item: &Item| (self.key(item.at), self.record(item.at), self.position(item.at));
        one.prefix.cmp(&other.prefix).then_with(|| self.order.records(parts(one), parts(other)))
    }
}

/// Sorts the records of some blocks and writes them, range by range. In memory are, beside the blocks, 32 bytes per
/// record and, unless keys are whole records, the keys.
///
/// # Errors
/// If it cannot be written, or there are more than 2^32 records or bytes of keys.
pub fn sort_into_run(
    order: Order,
    format: Format,
    splitters: &[Splitter],
    blocks: &[InputBlock<'_>],
    out: &mut impl Write,
) -> io::Result<Run> {
    let mut table = Table { order, blocks, places: Vec::new(), keys: Vec::new(), ends: Vec::new() };
    let (mut items, input) = collect(&mut table, format)?;
    items.sort_unstable_by(|one, other| table.compare(one, other));
    let mut run =
        Run { parts: vec![RunPart::default(); splitters.len() + 1], input, dropped: Fingerprint::default() };
    let mut range = 0;
    let mut last: Option<u32> = None;
    for item in items {
        let (key, record, position) = (table.key(item.at), table.record(item.at), table.position(item.at));
        if order.unique && last.is_some_and(|last| table.key(last) == key) {
            run.dropped.add(record);
            continue;
        }
        last = Some(item.at);
        while splitters.get(range).is_some_and(|splitter| !splitter.is_behind(order, key, record, position)) {
            range += 1;
        }
        let length = u32::try_from(record.len()).map_err(io::Error::other)?;
        out.write_all(&length.to_le_bytes())?;
        let mut bytes = LENGTH_BYTES + record.len();
        if order.needs_positions() {
            out.write_all(&position.block.to_le_bytes())?;
            out.write_all(&position.record.to_le_bytes())?;
            bytes += POSITION_BYTES;
        }
        out.write_all(record)?;
        run.parts[range].bytes += bytes as u64;
        run.parts[range].records += 1;
    }
    Ok(run)
}

/// Finds the records and makes their keys.
fn collect(table: &mut Table<'_>, format: Format) -> io::Result<(Vec<Item>, Fingerprint)> {
    let mut items = Vec::new();
    let mut input = Fingerprint::default();
    let mut made = Vec::new();
    for (block, input_block) in table.blocks.iter().enumerate() {
        let block = u32::try_from(block).map_err(io::Error::other)?;
        let base = input_block.bytes.as_ptr() as usize;
        for (record, bytes) in format.records(input_block.bytes).enumerate() {
            let at = u32::try_from(table.places.len()).map_err(io::Error::other)?;
            let start = bytes.as_ptr() as usize - base;
            let number = |number: usize| u32::try_from(number).map_err(io::Error::other);
            let (start, length, record) = (number(start)?, number(bytes.len())?, number(record)?);
            table.places.push(Place { block, start, length, record });
            let key = table.order.key_of(format, bytes, &mut made);
            items.push(Item { prefix: table.order.prefix(key), at });
            if !table.order.is_whole() {
                table.keys.extend_from_slice(key);
                table.ends.push(number(table.keys.len())?);
            }
            input.add(bytes);
        }
    }
    Ok((items, input))
}
