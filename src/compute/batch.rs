//! Many byte strings in one buffer: what programs are handed, and what they hand back.
//!
//! A batch is bytes, and where each string in them ends, as numbers of 32 bits. So it costs two allocations however
//! many strings there are, and none if it is used again.

/// Most bytes of a batch that is handed to [`map`](super::Instance::map) or [`combine`](super::Instance::combine):
/// a single record or value may be this long.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Most bytes of one group, key and values together, and so of a batch that is handed to
/// [`reduce`](super::Instance::reduce).
pub const MAX_GROUP_BYTES: usize = 16 * 1024 * 1024;
/// Most bytes that a program may hand back from one call.
pub const MAX_OUTPUT_BATCH_BYTES: usize = 64 * 1024 * 1024;

/// A batch has no room for more: it would be longer than [`MAX_OUTPUT_BATCH_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a batch is longer than {MAX_OUTPUT_BATCH_BYTES} bytes")]
pub struct BatchFull;

/// Bytes and ends that are no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadBatch {
    /// An end is before the one before it, or behind the bytes; or bytes are left behind the last.
    #[error("its ends do not cut its bytes")]
    Ends,
    /// The number of strings is not what such a batch has.
    #[error("its number of strings is wrong")]
    Count,
    /// It is longer than [`MAX_OUTPUT_BATCH_BYTES`].
    #[error("it is longer than {MAX_OUTPUT_BATCH_BYTES} bytes")]
    TooLong,
}

/// Byte strings, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Packed {
    bytes: Vec<u8>,
    // Invariant: ascending, and the last is the length of `bytes` (none: that is 0).
    ends: Vec<u32>,
}

impl Packed {
    fn from_parts(bytes: Vec<u8>, ends: Vec<u32>) -> Result<Self, BadBatch> {
        if bytes.len() > MAX_OUTPUT_BATCH_BYTES {
            return Err(BadBatch::TooLong);
        }
        let last = ends.last().map_or(0, |end| *end as usize);
        if last != bytes.len() || !ends.is_sorted() {
            return Err(BadBatch::Ends);
        }
        Ok(Self { bytes, ends })
    }

    fn push(&mut self, string: &[u8]) -> Result<(), BatchFull> {
        let end = self.bytes.len() + string.len();
        if end > MAX_OUTPUT_BATCH_BYTES {
            return Err(BatchFull);
        }
        self.bytes.extend_from_slice(string);
        // Within 32 bits, by the limit above.
        self.ends.push(u32::try_from(end).map_err(|_| BatchFull)?);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], ends: impl Iterator<Item = u32>) -> Result<(), BadBatch> {
        let (kept, start) = (self.ends.len(), self.bytes.len());
        if start + bytes.len() > MAX_OUTPUT_BATCH_BYTES {
            return Err(BadBatch::TooLong);
        }
        // Within 32 bits, by the limit above.
        let start = u32::try_from(start).map_err(|_| BadBatch::TooLong)?;
        let (mut last, mut is_ascending) = (0, true);
        self.ends.extend(ends.map(|end| {
            is_ascending &= last <= end;
            last = end;
            start.wrapping_add(end)
        }));
        if !is_ascending || last as usize != bytes.len() {
            self.ends.truncate(kept);
            return Err(BadBatch::Ends);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn get(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.bytes[start..self.ends[at] as usize]
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// A batch of records, without what ends them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Records(Packed);

impl Records {
    /// From bytes and where each record in them ends.
    ///
    /// # Errors
    /// If they do not agree, or are too long.
    pub fn from_parts(bytes: Vec<u8>, ends: Vec<u32>) -> Result<Self, BadBatch> {
        Packed::from_parts(bytes, ends).map(Self)
    }

    /// One more.
    ///
    /// # Errors
    /// If there is no room. Nothing was changed then.
    pub fn push(&mut self, record: &[u8]) -> Result<(), BatchFull> {
        self.0.push(record)
    }

    /// More of them: bytes, and where each record in them ends.
    ///
    /// # Errors
    /// If they do not agree, or there is no room. Nothing was changed then.
    pub fn append(&mut self, bytes: &[u8], ends: impl Iterator<Item = u32>) -> Result<(), BadBatch> {
        self.0.append(bytes, ends)
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|at| self.0.get(at))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Where in [`bytes`](Self::bytes) each ends.
    pub fn ends(&self) -> &[u32] {
        &self.0.ends
    }

    /// None any more; what was allocated stays.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A batch of keys and values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pairs(Packed);

impl Pairs {
    /// From bytes and where in them ends each key and, behind it, its value: two ends for each pair.
    ///
    /// # Errors
    /// If they do not agree, or are too long.
    pub fn from_parts(bytes: Vec<u8>, ends: Vec<u32>) -> Result<Self, BadBatch> {
        if !ends.len().is_multiple_of(2) {
            return Err(BadBatch::Count);
        }
        Packed::from_parts(bytes, ends).map(Self)
    }

    /// One more.
    ///
    /// # Errors
    /// If there is no room. Nothing was changed then.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), BatchFull> {
        if self.0.bytes.len() + key.len() + value.len() > MAX_OUTPUT_BATCH_BYTES {
            return Err(BatchFull);
        }
        self.0.push(key)?;
        self.0.push(value)
    }

    /// More of them: bytes, and where in them ends each key and, behind it, its value.
    ///
    /// # Errors
    /// If they do not agree, or there is no room. Nothing was changed then.
    pub fn append(&mut self, bytes: &[u8], ends: impl ExactSizeIterator<Item = u32>) -> Result<(), BadBatch> {
        if !ends.len().is_multiple_of(2) {
            return Err(BadBatch::Count);
        }
        self.0.append(bytes, ends)
    }

    /// All of them: key, value.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        (0..self.len()).map(|at| self.get(at))
    }

    /// One of them, counted from 0.
    pub(super) fn get(&self, at: usize) -> (&[u8], &[u8]) {
        (self.0.get(2 * at), self.0.get(2 * at + 1))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.ends.len() / 2
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Where in [`bytes`](Self::bytes) each key and each value ends.
    pub fn ends(&self) -> &[u32] {
        &self.0.ends
    }

    /// None any more; what was allocated stays.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A batch of keys, each with its values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    /// Each key, and behind it its values.
    strings: Packed,
    /// How many values each key has.
    // Invariant: each number and one, together, are the number of strings.
    counts: Vec<u32>,
}

impl Groups {
    /// A key; its values are to follow.
    ///
    /// # Errors
    /// If there is no room. Nothing was changed then.
    pub fn push_key(&mut self, key: &[u8]) -> Result<(), BatchFull> {
        self.strings.push(key)?;
        self.counts.push(0);
        Ok(())
    }

    /// One more value of the last key. Without any key there is none to have it, and nothing happens.
    ///
    /// # Errors
    /// If there is no room. Nothing was changed then.
    pub fn push_value(&mut self, value: &[u8]) -> Result<(), BatchFull> {
        let Some(count) = self.counts.last_mut() else { return Ok(()) };
        self.strings.push(value)?;
        *count += 1;
        Ok(())
    }

    /// All of them: key, values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Values<'_>)> {
        let mut at = 0;
        self.counts.iter().map(move |count| {
            let key = self.strings.get(at);
            let values = Values { groups: self, at: at + 1, end: at + 1 + *count as usize };
            at = values.end;
            (key, values)
        })
    }

    /// How many values the first key has.
    pub(super) fn values_of_first(&self) -> usize {
        self.counts.first().map_or(0, |count| *count as usize)
    }

    /// One of them, counted from 0.
    pub(super) fn value_of_first(&self, at: usize) -> &[u8] {
        self.strings.get(1 + at)
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> &[u8] {
        &self.strings.bytes
    }

    /// Where in [`bytes`](Self::bytes) each key and, behind it, each of its values ends.
    pub fn ends(&self) -> &[u32] {
        &self.strings.ends
    }

    /// How many values each key has.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// None any more; what was allocated stays.
    pub fn clear(&mut self) {
        self.strings.clear();
        self.counts.clear();
    }
}

/// The values of a key.
#[derive(Debug, Clone)]
pub struct Values<'a> {
    groups: &'a Groups,
    at: usize,
    end: usize,
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.at == self.end {
            return None;
        }
        self.at += 1;
        Some(self.groups.strings.get(self.at - 1))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.at, Some(self.end - self.at))
    }
}

impl ExactSizeIterator for Values<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20)
    }

    proptest! {
        #[test]
        fn what_comes_out_is_what_was_pushed(keys in strings(), values in strings()) {
            let (mut records, mut pairs, mut groups) =
                (Records::default(), Pairs::default(), Groups::default());
            for key in &keys {
                records.push(key).unwrap();
                groups.push_key(key).unwrap();
                for value in &values {
                    pairs.push(key, value).unwrap();
                    groups.push_value(value).unwrap();
                }
            }
            prop_assert!(records.iter().eq(keys.iter()));
            let all = keys.iter().flat_map(|key| values.iter().map(move |value| (&key[..], &value[..])));
            prop_assert!(pairs.iter().eq(all));
            prop_assert_eq!(groups.len(), keys.len());
            for ((key, found), wanted) in groups.iter().zip(&keys) {
                prop_assert_eq!(key, wanted);
                prop_assert!(found.eq(values.iter()));
            }
            let mut twice = records.clone();
            twice.append(records.bytes(), records.ends().iter().copied()).unwrap();
            prop_assert!(twice.iter().eq(records.iter().chain(records.iter())));
            let again = Records::from_parts(records.bytes().to_vec(), records.ends().to_vec());
            prop_assert_eq!(again, Ok(records));
            let again = Pairs::from_parts(pairs.bytes().to_vec(), pairs.ends().to_vec());
            prop_assert_eq!(again, Ok(pairs));
        }

        #[test]
        fn nonsense_is_no_batch(
            bytes in prop::collection::vec(any::<u8>(), 0..8),
            ends in prop::collection::vec(0..10u32, 0..6),
        ) {
            if let Ok(records) = Records::from_parts(bytes.clone(), ends.clone()) {
                prop_assert_eq!(records.iter().map(<[u8]>::len).sum::<usize>(), bytes.len());
            }
            let (mut records, mut pairs) = (Records::default(), Pairs::default());
            records.push(b"before").unwrap();
            pairs.push(b"be", b"fore").unwrap();
            let is_batch = Records::from_parts(bytes.clone(), ends.clone()).is_ok();
            prop_assert_eq!(records.append(&bytes, ends.iter().copied()).is_ok(), is_batch);
            let is_batch = is_batch && ends.len().is_multiple_of(2);
            prop_assert_eq!(pairs.append(&bytes, ends.iter().copied()).is_ok(), is_batch);
            prop_assert_eq!(records.iter().next(), Some(&b"before"[..]));
            prop_assert_eq!(pairs.bytes().len(), if is_batch { 6 + bytes.len() } else { 6 });
            if let Ok(pairs) = Pairs::from_parts(bytes.clone(), ends) {
                prop_assert_eq!(pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>(), bytes.len());
            }
        }
    }

    #[test]
    fn a_batch_is_bounded() {
        let mut records = Records::default();
        records.push(&vec![0; MAX_OUTPUT_BATCH_BYTES]).unwrap();
        assert_eq!(records.push(b"x"), Err(BatchFull));
        assert_eq!(records.len(), 1);
        let mut pairs = Pairs::default();
        assert_eq!(pairs.push(&vec![0; MAX_OUTPUT_BATCH_BYTES], b"x"), Err(BatchFull));
        assert!(pairs.is_empty() && pairs.bytes().is_empty());
        assert_eq!(Records::from_parts(b"abc".to_vec(), vec![2]), Err(BadBatch::Ends));
        assert_eq!(Records::from_parts(b"abc".to_vec(), vec![4, 3]), Err(BadBatch::Ends));
        assert_eq!(Pairs::from_parts(b"abc".to_vec(), vec![3]), Err(BadBatch::Count));
    }
}
