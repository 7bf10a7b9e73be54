//! Sorting what does not fit into memory, on several nodes: everything of it that needs no network and no disk.
//!
//! **Guarantee.** Whatever way the input is cut into tasks, and the key space into ranges, the ranges one after the
//! other are the input in order: the order of GNU `sort` in the C locale, for the same wish.
//!
//! **Method.** A sample of the input gives [`Splitter`]s, which cut everything into ranges of about equal size
//! ([`splitters`]). Each task sorts some blocks in memory into a *run*, cut at the splitters ([`sort_into_run`]).
//! Each range is then merged from its part of every run ([`Merge`]). Splitters may fall between records that are
//! equal: they say at which position of the input the next range begins, so that one key of which there are very
//! many is shared out among ranges like any other. Input and output are compared by a [`Fingerprint`] that does not
//! depend on order.
//!
//! After `TeraSort` and the sort of GNU coreutils.

mod key;
mod merge;
mod run;
mod splitter;
#[cfg(test)]
mod tests;

pub(crate) use key::prefix;
pub use key::{Key, KeyError, Order};
pub(crate) use merge::sift_down;
pub use merge::{Merge, MergeError, Merged};
pub use run::{InputBlock, Run, RunPart, sort_into_run};
pub use splitter::{MAX_SPLITTER_KEY_BYTES, Sample, Splitter, sample, splitters};

use serde::{Deserialize, Serialize};

/// Where a record stands in the input: its block's place in the order of blocks, and its own in the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// Of the block, counted from 0.
    pub block: u32,
    /// Of the record within, counted from 0.
    pub record: u32,
}

/// What some records amount to, in whatever order: their number, and a sum over their checksums. Two sets of records
/// of which one lacks, repeats or changes some have different ones, but for chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// How many.
    pub records: u64,
    /// Sum of what is made of each one's CRC-32C and length.
    pub sum: u64,
}

impl Fingerprint {
    /// One more record.
    pub fn add(&mut self, record: &[u8]) {
        self.add_checksum(crc32c::crc32c(record), record.len());
    }

    /// One more record, which is a key and a value.
    pub fn add_pair(&mut self, key: &[u8], value: &[u8]) {
        // Where the key ends counts as well.
        let checksum = crc32c::crc32c_append(crc32c::crc32c(key), value);
        self.add_checksum(checksum, (key.len() << 11) + key.len() + value.len());
    }

    fn add_checksum(&mut self, checksum: u32, length: usize) {
        let mut mixed = u64::from(checksum) | ((length as u64) << 32);
        // The finalizer of splitmix64: equal sums of such numbers are no more likely than chance.
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.sum = self.sum.wrapping_add(mixed ^ (mixed >> 31));
        self.records += 1;
    }

    /// Those of another set as well.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { records: self.records + other.records, sum: self.sum.wrapping_add(other.sum) }
    }
}
