//! The keys of one partition, with an index of what expires when and a running total of bytes.
//!
//! **Memory.** There are millions of keys and they are small, so each is one allocation: its numbers, then the
//! key, then the value. The tree holds pointers to them, and of each key its *head*.
//!
//! **Heads.** On its way to a key a tree compares it with a dozen others or two, and each of them would have to be
//! fetched from wherever it lies. So the tree itself has the first eight bytes of each, behind what all keys of the
//! partition begin with (`user:`, for example), and only keys that agree in those are compared as a whole.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::iter;
use std::ops::Bound;

use super::command::PartitionTime;
use super::query::{Answer, Entry, KeyBytes, MAX_SCAN_BYTES, MAX_SCAN_ENTRIES};
use crate::id::Version;
use crate::sort::prefix;

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
/// So many keys are many: making all their heads anew takes a tenth of a millisecond or more.
const MANY: usize = 1024;

/// A key and its slot in one piece: version, twice the length of the key (plus one if it expires), expiry if it
/// has one, key, value. Compared by its key alone.
#[derive(Debug, Clone)]
struct Item {
    head: u64,
    bytes: Box<[u8]>,
}

impl Item {
    fn new(Place { head, key }: Place<'_>, slot: Slot<'_>) -> Self {
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
        Self { head, bytes: bytes.into_boxed_slice() }
    }

    fn slot(&self) -> Slot<'_> {
        self.parts().1
    }

    fn parts(&self) -> (&[u8], Slot<'_>) {
        let (version, rest) = number(&self.bytes);
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

/// Where a key belongs in the tree.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    /// The [`prefix`] of what comes behind the bytes that all keys share.
    head: u64,
    key: &'a [u8],
}

/// What has a place. All that are compared with each other begin with the same bytes, as many as their heads leave out.
trait Placed {
    fn head(&self) -> u64;
    fn key(&self) -> &[u8];
}

impl Placed for Place<'_> {
    fn head(&self) -> u64 {
        self.head
    }

    fn key(&self) -> &[u8] {
        self.key
    }
}

impl Placed for Item {
    fn head(&self) -> u64 {
        self.head
    }

    fn key(&self) -> &[u8] {
        self.parts().0
    }
}

/// By their heads, and by their keys if these do not tell.
fn order(one: &(impl Placed + ?Sized), other: &(impl Placed + ?Sized)) -> Ordering {
    one.head().cmp(&other.head()).then_with(|| one.key().cmp(other.key()))
}

impl<'a> Borrow<dyn Placed + 'a> for Item {
    fn borrow(&self) -> &(dyn Placed + 'a) {
        self
    }
}

impl Ord for dyn Placed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        order(self, other)
    }
}

impl PartialOrd for dyn Placed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Placed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Placed + '_ {}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        order(self, other)
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Item {}

/// A map that knows what is due next and how large it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    // Invariant: each key begins with `shared`, and its head is of what comes behind that.
    items: BTreeSet<Item>,
    shared: Box<[u8]>,
    /// How many keys there were when their heads were last made anew.
    made_anew_at: usize,
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
        self.items.get::<dyn Placed>(&self.place(key)?).map(Item::slot)
    }

    /// Where a key belongs, unless it cannot be there.
    fn place<'a>(&self, key: &'a [u8]) -> Option<Place<'a>> {
        let rest = key.strip_prefix(&*self.shared)?;
        Some(Place { head: prefix(rest), key })
    }

    /// Where a key belongs that is to be there. If it does not begin as all others do, it makes anew what they share,
    /// and their heads. Many keys that are not yet twice as many as the last time give up half of what they share: so it
    /// is not done for each byte of the first key, but two dozen times at most for a million keys.
    fn make_place<'a>(&mut self, key: &'a [u8]) -> Place<'a> {
        if self.items.is_empty() {
            self.shared = key.into();
        } else if !key.starts_with(&self.shared) {
            let mut common = iter::zip(&self.shared, key).take_while(|(one, other)| one == other).count();
            if (MANY..2 * self.made_anew_at).contains(&self.items.len()) {
                common = common.min(self.shared.len() / 2);
            }
            self.made_anew_at = self.items.len();
            self.shared = key[..common].into();
            let items = std::mem::take(&mut self.items).into_iter();
            self.items =
                items.map(|item| Item { head: prefix(&item.key()[common..]), bytes: item.bytes }).collect();
        }
        Place { head: prefix(&key[self.shared.len()..]), key }
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
        let place = self.make_place(key);
        let old = self.items.replace(Item::new(place, slot));
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
        let Some(old) = self.take(key) else {
            return false;
        };
        let old = old.slot();
        self.bytes -= key.len() + old.value.len();
        if let Some(expiry) = old.expiry {
            self.due.remove(&(expiry, key.into()));
        }
        true
    }

    fn take(&mut self, key: &[u8]) -> Option<Item> {
        self.items.take::<dyn Placed>(&self.place(key)?)
    }

    /// Removes what is due at `now`.
    pub(super) fn expire(&mut self, now: PartitionTime) {
        while let Some((expiry, _)) = self.due.first()
            && *expiry <= now
        {
            let Some((_, key)) = self.due.pop_first() else {
                return;
            };
            if let Some(old) = self.take(&key) {
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
        let beginning = after.is_empty() || after < prefix;
        let from = if beginning { prefix } else { after };
        let place = self.place(from);
        let start: Bound<&dyn Placed> = match &place {
            Some(place) if beginning => Bound::Included(place),
            Some(place) => Bound::Excluded(place),
            None if *from < *self.shared => Bound::Unbounded,
            // All keys are before it.
            None => return Answer::Page { entries: Vec::new(), more: false },
        };
        let mut rest = self
            .items
            .range::<dyn Placed, _>((start, Bound::Unbounded))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Keys that share much, little or nothing, and differ early, late, or only in that one is longer by zeros.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let beginning = prop::sample::select(vec!["", "u", "user:", "user:1234", "user:12345678"]);
        let rest = prop::collection::vec(prop::sample::select(vec![0, b'0', b':', 255]), 0..11);
        (beginning, rest).prop_map(|(beginning, rest)| [beginning.as_bytes(), &rest].concat())
    }

    #[test]
    fn the_heads_of_many_keys_are_not_made_anew_for_each_byte_that_they_share() {
        const LONGEST: usize = 4096;
        let slot = Slot { value: b"", version: Version(1), expiry: None };
        let mut keys = Keys::default();
        let many = (0..MANY as u64).map(|number| [&[b'k'; LONGEST][..], &number.to_be_bytes()].concat());
        many.for_each(|key| keys.insert(&key, slot));
        let mut made_anew = 0;
        for length in (0..LONGEST).rev() {
            let before = keys.shared.len();
            keys.insert(&[b'k'; LONGEST][..length], slot);
            made_anew += usize::from(keys.shared.len() != before);
            assert!(keys.get(&[b'k'; LONGEST][..length]).is_some());
        }
        assert!(made_anew <= 16, "{made_anew} times");
        assert_eq!(keys.len(), MANY + LONGEST);
        assert!(keys.iter().map(|(key, _)| key).is_sorted());
    }

    #[test]
    fn numbers_that_grow_longer_cost_no_more_of_what_keys_share_than_they_must() {
        let slot = Slot { value: b"", version: Version(1), expiry: None };
        let mut keys = Keys::default();
        for number in 0..200_000 {
            keys.insert(format!("user:{number:012}").as_bytes(), slot);
        }
        assert_eq!(&*keys.shared, b"user:000000");
    }

    proptest! {
        #[test]
        fn keys_are_found_and_listed_as_in_a_plain_map(
            steps in prop::collection::vec((0..3_u8, key(), key()), 1..200)
        ) {
            let mut keys = Keys::default();
            let mut plain = BTreeMap::new();
            for (number, (step, key, prefix)) in (1..).zip(steps) {
                let value = key.clone();
                if step == 0 {
                    prop_assert_eq!(keys.remove(&key), plain.remove(&key).is_some());
                } else {
                    keys.insert(&key, Slot { value: &value, version: Version(number), expiry: None });
                    plain.insert(key.clone(), number);
                }
                let found = keys.get(&prefix).map(|slot| slot.version.0);
                prop_assert_eq!(found, plain.get(&prefix).copied());
                let all: Vec<_> = keys.iter().map(|(key, slot)| (key.to_vec(), slot.version.0)).collect();
                prop_assert_eq!(all, plain.clone().into_iter().collect::<Vec<_>>());
                prop_assert_eq!(keys.bytes(), plain.keys().map(|key| 2 * key.len()).sum::<usize>());
                // A page of what begins with the one, behind the other.
                let Answer::Page { entries, more } = keys.page(&prefix, &key, 5, PartitionTime(0)) else {
                    unreachable!("a page was asked for");
                };
                let entries: Vec<_> =
                    entries.into_iter().map(|(key, entry)| (key.to_vec(), entry.version.0)).collect();
                let behind = |other: &Vec<u8>| other.starts_with(&prefix) && (key.is_empty() || *other > key);
                let expected: Vec<_> = plain.clone().into_iter().filter(|(other, _)| behind(other)).collect();
                prop_assert_eq!(more, expected.len() > 5);
                prop_assert_eq!(&entries[..], &expected[..expected.len().min(5)]);
            }
        }
    }
}
