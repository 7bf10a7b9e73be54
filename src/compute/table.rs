//! Pairs in memory, brought together by key.
//!
//! Keys lie one after the other, values as well, each with the place of the next of its group. A group is found by
//! the hash of its key in an index of open addresses. When values have become many, those of groups with more than
//! one are handed to the program to be combined, and what comes back takes their place: so a key of which there are
//! millions takes the room of a few.

use std::io::{self, Write};

use super::batch::{Groups, MAX_BATCH_BYTES, Pairs};
use super::hash::{Ranges, hash};
use super::program::{Instance, ProgramError};
use super::run::{RunWriter, prefix};
use super::{BATCH_BYTES, check_pair};

/// Bytes of values that are there at least before they are combined: few enough for a processor's cache, many
/// enough that the work beside the values does not count.
const COMBINE_BYTES: usize = 1024 * 1024;
/// Before each value: where the next one is, and its length; 32 bits each.
const HEAD_BYTES: usize = 8;
/// No value.
const NONE: u32 = u32::MAX;
/// Slots of the index at first.
const FIRST_SLOTS: usize = 1024;

/// The pairs of one key.
#[derive(Debug, Clone, Copy)]
struct Group {
    hash: u64,
    key: u32,
    key_length: u32,
    first: u32,
    last: u32,
    /// Values.
    count: u32,
}

/// Pairs, by key.
#[derive(Debug)]
pub(super) struct Table {
    ranges: Ranges,
    keys: Vec<u8>,
    values: Vec<u8>,
    groups: Vec<Group>,
    /// Numbers of groups and one; 0: free.
    // Invariant: a power of two long, and at least a quarter is free.
    index: Vec<u32>,
    /// Values are combined when they have so many bytes.
    combine_at: usize,
    /// Used again and again.
    batch: Groups,
    batched: Vec<u32>,
    combined: Pairs,
}

impl Table {
    pub(super) fn new(ranges: Ranges) -> Self {
        Self {
            ranges,
            keys: Vec::new(),
            values: Vec::new(),
            groups: Vec::new(),
            index: vec![0; FIRST_SLOTS],
            combine_at: COMBINE_BYTES,
            batch: Groups::default(),
            batched: Vec::new(),
            combined: Pairs::default(),
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.keys.len()
            + self.values.len()
            + self.groups.len() * size_of::<Group>()
            + self.index.len() * size_of::<u32>()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        let group = self.group_of(key);
        self.add_value(group, value);
    }

    /// The group of a key, which is made if there is none.
    fn group_of(&mut self, key: &[u8]) -> usize {
        let hash = hash(key);
        if let Some(group) = self.find(key, hash) {
            return group;
        }
        if (self.groups.len() + 1) * 4 > self.index.len() * 3 {
            self.grow();
        }
        let group = Group {
            hash,
            key: number(self.keys.len()),
            key_length: number(key.len()),
            first: NONE,
            last: NONE,
            count: 0,
        };
        self.keys.extend_from_slice(key);
        self.groups.push(group);
        let slot = self.free_slot(hash);
        self.index[slot] = number(self.groups.len());
        self.groups.len() - 1
    }

    fn find(&self, key: &[u8], hash: u64) -> Option<usize> {
        let mask = self.index.len() - 1;
        let mut slot = low(hash) & mask;
        loop {
            let group = (self.index[slot] as usize).checked_sub(1)?;
            if self.groups[group].hash == hash && self.key(group) == key {
                return Some(group);
            }
            slot = (slot + 1) & mask;
        }
    }

    fn free_slot(&self, hash: u64) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = low(hash) & mask;
        while self.index[slot] != 0 {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.index = vec![0; self.index.len() * 2];
        for group in 0..self.groups.len() {
            let slot = self.free_slot(self.groups[group].hash);
            self.index[slot] = number(group + 1);
        }
    }

    fn key(&self, group: usize) -> &[u8] {
        let Group { key, key_length, .. } = self.groups[group];
        &self.keys[key as usize..][..key_length as usize]
    }

    fn add_value(&mut self, group: usize, value: &[u8]) {
        let at = number(self.values.len());
        self.values.extend_from_slice(&NONE.to_le_bytes());
        self.values.extend_from_slice(&number(value.len()).to_le_bytes());
        self.values.extend_from_slice(value);
        let group = &mut self.groups[group];
        if group.count == 0 {
            group.first = at;
        } else {
            self.values[group.last as usize..][..4].copy_from_slice(&at.to_le_bytes());
        }
        group.last = at;
        group.count += 1;
    }

    /// Whether there is enough to combine.
    pub(super) fn wants_to_combine(&self) -> bool {
        self.values.len() >= self.combine_at
    }

    /// Lets the program combine the values of each group that has more than one.
    pub(super) fn combine(&mut self, instance: &mut dyn Instance) -> Result<(), ProgramError> {
        let values = std::mem::take(&mut self.values);
        self.batch.clear();
        self.batched.clear();
        for at in 0..self.groups.len() {
            let Group { first, count, .. } = self.groups[at];
            self.groups[at] = Group { first: NONE, last: NONE, count: 0, ..self.groups[at] };
            if count == 1 {
                self.add_value(at, value_at(&values, first).0);
                continue;
            }
            if self.batch.bytes().len() >= BATCH_BYTES {
                self.combine_batch(instance)?;
            }
            self.begin_group(at)?;
            let mut next = first;
            while next != NONE {
                let (value, behind) = value_at(&values, next);
                if self.batch.bytes().len() + value.len() > MAX_BATCH_BYTES {
                    self.combine_batch(instance)?;
                    self.begin_group(at)?;
                }
                self.batch.push_value(value).map_err(ProgramError::bad_output)?;
                next = behind;
            }
        }
        self.combine_batch(instance)?;
        // What remains is worth combining again when as much has come to it.
        self.combine_at = COMBINE_BYTES.max(self.values.len() * 2);
        Ok(())
    }

    fn begin_group(&mut self, at: usize) -> Result<(), ProgramError> {
        let Group { key, key_length, .. } = self.groups[at];
        let key = &self.keys[key as usize..][..key_length as usize];
        self.batched.push(number(at));
        self.batch.push_key(key).map_err(ProgramError::bad_output)
    }

    /// Lets the program combine what was collected.
    fn combine_batch(&mut self, instance: &mut dyn Instance) -> Result<(), ProgramError> {
        let mut combined = std::mem::take(&mut self.combined);
        combined.clear();
        if !self.batch.is_empty() {
            instance.combine(&self.batch, &mut combined)?;
        }
        self.batch.clear();
        // Mostly one pair of each group, in their order.
        let mut expected = self.batched.iter().map(|group| *group as usize).collect::<Vec<_>>().into_iter();
        for (key, value) in combined.iter() {
            check_pair(key, value)?;
            let group = match expected.next() {
                Some(group) if self.key(group) == key => Some(group),
                _ => self.find(key, hash(key)),
            };
            let other = || ProgramError::bad_output("`combine` made a key that it was not given");
            self.add_value(group.ok_or_else(other)?, value);
        }
        self.batched.clear();
        self.combined = combined;
        Ok(())
    }

    /// Writes all pairs in order; none are left.
    pub(super) fn write<W: Write>(&mut self, out: &mut RunWriter<W>) -> io::Result<()> {
        let mut order: Vec<(u32, u64, u32)> = (0..)
            .zip(&self.groups)
            .enumerate()
            .map(|(at, (number, group))| (self.ranges.of_hash(group.hash), prefix(self.key(at)), number))
            .collect();
        order.sort_unstable_by(|one, other| {
            let keys = || self.key(one.2 as usize).cmp(self.key(other.2 as usize));
            (one.0, one.1).cmp(&(other.0, other.1)).then_with(keys)
        });
        for (range, _, group) in order {
            let mut next = self.groups[group as usize].first;
            while next != NONE {
                let (value, behind) = value_at(&self.values, next);
                out.push(range, self.key(group as usize), value)?;
                next = behind;
            }
        }
        self.keys.clear();
        self.values.clear();
        self.groups.clear();
        self.index = vec![0; FIRST_SLOTS];
        self.combine_at = COMBINE_BYTES;
        Ok(())
    }
}

/// A value and where the next one of its group is.
fn value_at(values: &[u8], at: u32) -> (&[u8], u32) {
    let head = &values[at as usize..][..HEAD_BYTES];
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    (&values[at as usize + HEAD_BYTES..][..number(4) as usize], number(0))
}

/// What a table holds is bounded far below 32 bits.
fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower bits are meant")]
fn low(hash: u64) -> usize {
    hash as usize
}
