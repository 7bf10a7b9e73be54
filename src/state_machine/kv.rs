//! The keys of one partition, with an index of what expires when and a running total of bytes.
//!
//! **Memory.** There are millions of keys and they are small, so each is one allocation: its numbers, then the
//! key, then the value. The tree holds nothing but pointers to them.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;

use super::command::PartitionTime;
use super::query::{Answer, Entry, KeyBytes, MAX_SCAN_BYTES, MAX_SCAN_ENTRIES};
use crate::id::Version;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot<'a> {
    pub(super) value: &'a [u8],
    pub(super) version: Version,
    /// It is gone as soon as the partition's time is at least this.
    pub(super) expiry: Option<PartitionTime>,
}

impl Slot<'_> {
    fn entry(&self, now: PartitionTime) -> Entry {
        Entry {
            value: self.value.to_vec(),
            version: self.version,
            ttl_ms: self.expiry.map(|expiry| expiry.0.saturating_sub(now.0)),
        }
    }
}

/// Bytes of an item before its expiry or its key.
const FIXED_BYTES: usize = size_of::<u64>() + size_of::<u32>();
const EXPIRY_BYTES: usize = size_of::<u64>();

/// A key and its slot in one piece: version, twice the length of the key (plus one if it expires), expiry if it
/// has one, key, value. Compared by its key alone.
#[derive(Debug, Clone)]
struct Item(Box<[u8]>);

impl Item {
    fn new(key: &[u8], slot: Slot<'_>) -> Self {
        // Whatever comes in is shorter than the longest snapshot, and that is far below 2 GiB.
        let key_length = u32::try_from(key.len()).unwrap_or(u32::MAX) << 1;
        let expiry_bytes = if slot.expiry.is_some() { EXPIRY_BYTES } else { 0 };
        // Exactly as long as it will be, so that boxing it moves nothing.
        let mut bytes = Vec::with_capacity(FIXED_BYTES + expiry_bytes + key.len() + slot.value.len());
        bytes.extend_from_slice(&slot.version.0.to_le_bytes());
        bytes.extend_from_slice(&(key_length | u32::from(slot.expiry.is_some())).to_le_bytes());
        if let Some(expiry) = slot.expiry {
            bytes.extend_from_slice(&expiry.0.to_le_bytes());
        }
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(slot.value);
        Self(bytes.into_boxed_slice())
    }

    fn key(&self) -> &[u8] {
        self.parts().0
    }

    fn slot(&self) -> Slot<'_> {
        self.parts().1
    }

    fn parts(&self) -> (&[u8], Slot<'_>) {
        let (version, rest) = number(&self.0);
        let (length, rest) = rest.split_first_chunk().unwrap_or((&[0; 4], rest));
        let length = u32::from_le_bytes(*length);
        let (expiry, rest) = if length & 1 == 1 {
            let (expiry, rest) = number(rest);
            (Some(PartitionTime(expiry)), rest)
        } else {
            (None, rest)
        };
        let (key, value) = rest.split_at_checked((length >> 1) as usize).unwrap_or((rest, &[]));
        (key, Slot { value, version: Version(version), expiry })
    }
}

/// An item begins with as many bytes as are read from it: [`Item::new`] wrote them.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    let (number, rest) = bytes.split_first_chunk().unwrap_or((&[0; 8], bytes));
    (u64::from_le_bytes(*number), rest)
}

impl Borrow<[u8]> for Item {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(other.key())
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Item {}

/// A map that knows what is due next and how large it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    items: BTreeSet<Item>,
    // Invariant: (t, k) is in `due` exactly when the item of k expires at t.
    due: BTreeSet<(PartitionTime, Box<[u8]>)>,
    // Invariant: bytes == sum over items of key.len() + value.len().
    bytes: usize,
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        // Items are equal if their keys are.
        self.iter().eq(other.iter()) && self.due == other.due && self.bytes == other.bytes
    }
}

impl Eq for Keys {}

impl Keys {
    pub(super) fn get(&self, key: &[u8]) -> Option<Slot<'_>> {
        self.items.get(key).map(Item::slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Slot<'_>)> {
        self.items.iter().map(Item::parts)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn insert(&mut self, key: &[u8], slot: Slot<'_>) {
        self.bytes += key.len() + slot.value.len();
        let old = self.items.replace(Item::new(key, slot));
        if let Some(old) = &old {
            let old = old.slot();
            self.bytes -= key.len() + old.value.len();
            if let Some(expiry) = old.expiry {
                self.due.remove(&(expiry, key.into()));
            }
        }
        if let Some(expiry) = slot.expiry {
            self.due.insert((expiry, key.into()));
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        let Some(old) = self.items.take(key) else {
            return false;
        };
        let old = old.slot();
        self.bytes -= key.len() + old.value.len();
        if let Some(expiry) = old.expiry {
            self.due.remove(&(expiry, key.into()));
        }
        true
    }

    /// Removes what is due at `now`.
    pub(super) fn expire(&mut self, now: PartitionTime) {
        while let Some((expiry, _)) = self.due.first()
            && *expiry <= now
        {
            let Some((_, key)) = self.due.pop_first() else {
                return;
            };
            if let Some(old) = self.items.take(&*key) {
                self.bytes -= key.len() + old.slot().value.len();
            }
        }
    }

    /// When the next key expires.
    pub(super) fn next_due(&self) -> Option<PartitionTime> {
        self.due.first().map(|(expiry, _)| *expiry)
    }

    pub(super) fn entry(&self, key: &[u8], now: PartitionTime) -> Option<Entry> {
        self.get(key).map(|slot| slot.entry(now))
    }

    /// One page of the keys with a prefix, behind `after`.
    pub(super) fn page(&self, prefix: &[u8], after: &[u8], limit: u32, now: PartitionTime) -> Answer {
        let limit = limit.min(MAX_SCAN_ENTRIES) as usize;
        let start =
            if after.is_empty() || after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let mut rest = self
            .items
            .range::<[u8], _>((start, Bound::Unbounded))
            .map(Item::parts)
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        let mut entries = Vec::new();
        let mut bytes = 0;
        while entries.len() < limit
            && bytes <= MAX_SCAN_BYTES
            && let Some((key, slot)) = rest.next()
        {
            bytes += key.len() + slot.value.len();
            entries.push((KeyBytes::from(key), slot.entry(now)));
        }
        Answer::Page { entries, more: rest.peek().is_some() }
    }
}
