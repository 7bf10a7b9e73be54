//! Pairs in memory, brought together by key.
//!
//! Keys lie one after the other, values as well, each with the place of the next of its group. A group is found by
//! the hash of its key in an index of open addresses. Values that have come lately are apart from those that are
//! kept: when they have become many, each group that has some is handed to the program to be combined, with what is
//! kept of it, and what comes back takes the place of that. So a key of which there are millions takes the room of a
//! few, and groups to which nothing comes cost nothing.

use std::hint::black_box;
use std::io::{self, Write};
use std::mem;
use std::ops::Range;

use super::batch::{Groups, MAX_BATCH_BYTES, Pairs};
use super::hash::{Ranges, hash};
use super::program::{Instance, ProgramError};
use super::run::RunWriter;
use super::{BATCH_BYTES, check_pair};
use crate::sort::prefix;

/// Bytes of late values that are combined: few enough for a processor's cache, many enough that what is done for each
/// group does not count.
pub(super) const COMBINE_BYTES: usize = 1024 * 1024;
/// Before each value: where the next one is, and its length; 32 bits each.
const HEAD_BYTES: usize = 8;
/// No value.
const NONE: u32 = u32::MAX;
/// Pairs whose groups are looked for at once.
pub(super) const AHEAD: usize = 32;
/// Slots of the index at first.
const FIRST_SLOTS: usize = 1024;

/// Values of a group, in one of the two heaps.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u32,
    last: u32,
}

const EMPTY: Chain = Chain { first: NONE, last: NONE };

/// The pairs of one key.
#[derive(Debug, Clone, Copy)]
struct Group {
    hash: u64,
    key: u32,
    key_length: u32,
    kept: Chain,
    late: Chain,
}

/// Values, each with the place of the next.
#[derive(Debug, Default)]
struct Heap(Vec<u8>);

impl Heap {
    fn push(&mut self, chain: &mut Chain, value: &[u8]) {
        let at = number(self.0.len());
        self.0.extend_from_slice(&NONE.to_le_bytes());
        self.0.extend_from_slice(&number(value.len()).to_le_bytes());
        self.0.extend_from_slice(value);
        if chain.first == NONE {
            chain.first = at;
        } else {
            self.0[chain.last as usize..][..4].copy_from_slice(&at.to_le_bytes());
        }
        chain.last = at;
    }

    /// A value and where the next one of its chain is.
    fn get(&self, at: u32) -> (&[u8], u32) {
        let head = &self.0[at as usize..][..HEAD_BYTES];
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        (&self.0[at as usize + HEAD_BYTES..][..number(4) as usize], number(0))
    }

    fn values(&self, chain: Chain) -> impl Iterator<Item = &[u8]> {
        let mut next = chain.first;
        std::iter::from_fn(move || {
            let (value, behind) = if next == NONE { return None } else { self.get(next) };
            next = behind;
            Some(value)
        })
    }

    /// Puts a value in the place of a chain of one, if it is as long.
    fn replace(&mut self, chain: Chain, value: &[u8]) -> bool {
        if chain.first == NONE || chain.first != chain.last || self.get(chain.first).0.len() != value.len() {
            return false;
        }
        self.0[chain.first as usize + HEAD_BYTES..][..value.len()].copy_from_slice(value);
        true
    }
}

/// Pairs, by key.
#[derive(Debug)]
pub(super) struct Table {
    ranges: Ranges,
    /// [`COMBINE_BYTES`] but in tests.
    combine_bytes: usize,
    keys: Vec<u8>,
    groups: Vec<Group>,
    /// Numbers of groups and one; 0: free.
    // Invariant: a power of two long, and at least a quarter is free.
    index: Vec<u32>,
    kept: Heap,
    /// Bytes of `kept` that belong to no group any more.
    garbage: usize,
    late: Heap,
    /// Groups that have late values.
    touched: Vec<u32>,
    /// Used again and again: groups to combine, which they are, with what is kept of them, and what comes of them.
    batch: Groups,
    batched: Vec<(u32, Chain)>,
    combined: Pairs,
}

impl Table {
    pub(super) fn new(ranges: Ranges, combine_bytes: usize) -> Self {
        Self {
            ranges,
            combine_bytes,
            keys: Vec::new(),
            groups: Vec::new(),
            index: vec![0; FIRST_SLOTS],
            kept: Heap::default(),
            garbage: 0,
            late: Heap::default(),
            touched: Vec::new(),
            batch: Groups::default(),
            batched: Vec::new(),
            combined: Pairs::default(),
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.keys.len()
            + self.kept.0.len()
            + self.late.0.len()
            + self.groups.len() * size_of::<Group>()
            + (self.index.len() + self.touched.len()) * size_of::<u32>()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The hashes of the keys of some pairs. What is needed to find their groups is read on the way, of all of them
    /// before any is looked for: so the processor waits for memory once, and not for each.
    pub(super) fn look_ahead(&self, pairs: &Pairs, some: Range<usize>) -> [u64; AHEAD] {
        let (mut hashes, mut slots) = ([0; AHEAD], [0; AHEAD]);
        for ((at, found), slot) in some.zip(&mut hashes).zip(&mut slots) {
            *found = hash(pairs.get(at).0);
            *slot = self.index[low(*found) & (self.index.len() - 1)];
        }
        for slot in slots {
            if let Some(group) = (slot as usize).checked_sub(1).and_then(|group| self.groups.get(group)) {
                black_box(self.keys.get(group.key as usize));
            }
        }
        hashes
    }

    /// One more pair, with the hash of its key.
    pub(super) fn insert(&mut self, hash: u64, key: &[u8], value: &[u8]) {
        let at = self.group_of(hash, key);
        let group = &mut self.groups[at];
        if group.late.first == NONE {
            self.touched.push(number(at));
        }
        self.late.push(&mut group.late, value);
    }

    /// The group of a key, which is made if there is none.
    fn group_of(&mut self, hash: u64, key: &[u8]) -> usize {
        if let Some(group) = self.find(key, hash) {
            return group;
        }
        if (self.groups.len() + 1) * 4 > self.index.len() * 3 {
            self.grow();
        }
        let (at, key_length) = (number(self.keys.len()), number(key.len()));
        self.keys.extend_from_slice(key);
        self.groups.push(Group { hash, key: at, key_length, kept: EMPTY, late: EMPTY });
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

    /// Whether there is enough to combine.
    pub(super) fn wants_to_combine(&self) -> bool {
        self.late.0.len() >= self.combine_bytes
    }

    /// Lets the program combine the values of each group that has late ones and more than one in all.
    pub(super) fn combine(&mut self, instance: &mut dyn Instance) -> Result<(), ProgramError> {
        let (mut late, mut touched) = (mem::take(&mut self.late), mem::take(&mut self.touched));
        self.batch.clear();
        self.batched.clear();
        for at in touched.drain(..) {
            let group = &mut self.groups[at as usize];
            let (kept, new) = (mem::replace(&mut group.kept, EMPTY), mem::replace(&mut group.late, EMPTY));
            if kept.first == NONE && new.first == new.last {
                self.kept.push(&mut group.kept, late.get(new.first).0);
                continue;
            }
            self.batch_group((at, kept), (&late, new), instance)?;
        }
        self.combine_batch(instance)?;
        // What they have allocated is used again.
        late.0.clear();
        (self.late, self.touched) = (late, touched);
        if self.garbage > self.combine_bytes.max(self.kept.0.len() / 2) {
            self.compact();
        }
        Ok(())
    }

    /// Puts a group into the batch: what is kept of it, and its late values.
    fn batch_group(
        &mut self,
        (at, kept): (u32, Chain),
        (late, new): (&Heap, Chain),
        instance: &mut dyn Instance,
    ) -> Result<(), ProgramError> {
        if self.batch.bytes().len() >= BATCH_BYTES {
            self.combine_batch(instance)?;
        }
        self.begin_group(at, kept)?;
        // Read from its own heap, so that what is combined in between can be written to the other.
        let mut next = kept.first;
        while next != NONE {
            let (value, behind) = self.kept.get(next);
            if self.batch.bytes().len() + value.len() > MAX_BATCH_BYTES {
                self.combine_batch(instance)?;
                self.begin_group(at, EMPTY)?;
            }
            self.batch.push_value(self.kept.get(next).0).map_err(ProgramError::bad_output)?;
            next = behind;
        }
        for value in late.values(new) {
            if self.batch.bytes().len() + value.len() > MAX_BATCH_BYTES {
                self.combine_batch(instance)?;
                self.begin_group(at, EMPTY)?;
            }
            self.batch.push_value(value).map_err(ProgramError::bad_output)?;
        }
        Ok(())
    }

    fn begin_group(&mut self, at: u32, kept: Chain) -> Result<(), ProgramError> {
        let Group { key, key_length, .. } = self.groups[at as usize];
        self.batched.push((at, kept));
        let key = &self.keys[key as usize..][..key_length as usize];
        self.batch.push_key(key).map_err(ProgramError::bad_output)
    }

    /// Lets the program combine what was collected.
    fn combine_batch(&mut self, instance: &mut dyn Instance) -> Result<(), ProgramError> {
        let mut combined = mem::take(&mut self.combined);
        let mut batched = mem::take(&mut self.batched);
        combined.clear();
        if !self.batch.is_empty() {
            instance.combine(&self.batch, &mut combined)?;
        }
        self.batch.clear();
        // Mostly one pair of each group, in their order.
        let mut expected = batched.iter().copied();
        for (key, value) in combined.iter() {
            check_pair(key, value)?;
            let (at, was) = match expected.next() {
                Some((at, was)) if self.key(at as usize) == key => (at as usize, was),
                _ => {
                    let other = || ProgramError::bad_output("`combine` made a key that it was not given");
                    (self.find(key, hash(key)).ok_or_else(other)?, EMPTY)
                }
            };
            let is_first = self.groups[at].kept.first == NONE;
            if is_first && self.kept.replace(was, value) {
                self.groups[at].kept = was;
            } else {
                if was.first != NONE {
                    // About as much as it is instead of.
                    self.garbage += HEAD_BYTES + value.len();
                }
                self.kept.push(&mut self.groups[at].kept, value);
            }
        }
        batched.clear();
        (self.combined, self.batched) = (combined, batched);
        Ok(())
    }

    /// Leaves the garbage behind.
    fn compact(&mut self) {
        let kept = mem::take(&mut self.kept);
        for group in &mut self.groups {
            let values = mem::replace(&mut group.kept, EMPTY);
            kept.values(values).for_each(|value| self.kept.push(&mut group.kept, value));
        }
        self.garbage = 0;
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
        for (range, _, at) in order {
            let Group { kept, late, .. } = self.groups[at as usize];
            for value in self.kept.values(kept).chain(self.late.values(late)) {
                out.push(range, self.key(at as usize), value)?;
            }
        }
        *self = Self::new(self.ranges, self.combine_bytes);
        Ok(())
    }
}

/// What a table holds is bounded far below 32 bits.
fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower bits are meant")]
fn low(hash: u64) -> usize {
    hash as usize
}
