//! The keys of one partition, with an index of what expires when and a running total of bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::command::PartitionTime;
use super::query::{Answer, Entry, KeyBytes, MAX_SCAN_BYTES, MAX_SCAN_ENTRIES};
use crate::id::Version;

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) value: Vec<u8>,
    pub(super) version: Version,
    /// It is gone as soon as the partition's time is at least this.
    pub(super) expiry: Option<PartitionTime>,
}

impl Slot {
    fn entry(&self, now: PartitionTime) -> Entry {
        Entry {
            value: self.value.clone(),
            version: self.version,
            ttl_ms: self.expiry.map(|expiry| expiry.0.saturating_sub(now.0)),
        }
    }
}

/// A map that knows what is due next and how large it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Keys {
    slots: BTreeMap<Vec<u8>, Slot>,
    // Invariant: (t, k) is in `due` exactly when slots[k].expiry == Some(t).
    due: BTreeSet<(PartitionTime, Vec<u8>)>,
    // Invariant: bytes == sum over slots of key.len() + value.len().
    bytes: usize,
}

impl Keys {
    pub(super) fn get(&self, key: &[u8]) -> Option<&Slot> {
        self.slots.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Slot)> {
        self.slots.iter()
    }

    pub(super) fn into_iter(self) -> impl Iterator<Item = (Vec<u8>, Slot)> {
        self.slots.into_iter()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn insert(&mut self, key: Vec<u8>, slot: Slot) {
        if let Some(expiry) = slot.expiry {
            self.due.insert((expiry, key.clone()));
        }
        self.bytes += slot.value.len();
        if let Some(old) = self.slots.get_mut(&key) {
            let old = std::mem::replace(old, slot);
            self.bytes -= old.value.len();
            // Unless the new slot expires at the same moment and has just made this very mark.
            if let Some(expiry) = old.expiry
                && self.slots[&key].expiry != Some(expiry)
            {
                self.due.remove(&(expiry, key));
            }
        } else {
            self.bytes += key.len();
            self.slots.insert(key, slot);
        }
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) -> bool {
        let Some(old) = self.slots.remove(&key) else {
            return false;
        };
        self.bytes -= key.len() + old.value.len();
        if let Some(expiry) = old.expiry {
            self.due.remove(&(expiry, key));
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
            if let Some(old) = self.slots.remove(&key) {
                self.bytes -= key.len() + old.value.len();
            }
        }
    }

    /// When the next key expires.
    pub(super) fn next_due(&self) -> Option<PartitionTime> {
        self.due.first().map(|(expiry, _)| *expiry)
    }

    pub(super) fn entry(&self, key: &[u8], now: PartitionTime) -> Option<Entry> {
        self.slots.get(key).map(|slot| slot.entry(now))
    }

    /// One page of the keys with a prefix, behind `after`.
    pub(super) fn page(&self, prefix: &[u8], after: &[u8], limit: u32, now: PartitionTime) -> Answer {
        let limit = limit.min(MAX_SCAN_ENTRIES) as usize;
        let start =
            if after.is_empty() || after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let mut rest = self
            .slots
            .range::<[u8], _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        let mut entries = Vec::new();
        let mut bytes = 0;
        while entries.len() < limit
            && bytes <= MAX_SCAN_BYTES
            && let Some((key, slot)) = rest.next()
        {
            bytes += key.len() + slot.value.len();
            entries.push((KeyBytes::from(key.clone()), slot.entry(now)));
        }
        Answer::Page { entries, more: rest.peek().is_some() }
    }
}
