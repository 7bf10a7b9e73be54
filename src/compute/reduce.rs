//! The second half of a job, for one range: the range's part of every run is merged, and each group reduced.
//!
//! In memory is one batch of groups. A group that is long is combined as it comes; if it stays longer than
//! [`MAX_GROUP_BYTES`], or the program has no `combine`, the task fails and says so.

use std::mem;

use bytes::Bytes;

use super::batch::{Groups, MAX_BATCH_BYTES, MAX_GROUP_BYTES, Pairs, Records};
use super::merge::PairMerge;
use super::program::{Instance, Limits, ProgramError, Shape};
use super::{BATCH_BYTES, Budget, TaskError, check_pair};
use crate::sort::{Fingerprint, MergeError};

/// Longest part of a key that an error names, in bytes.
const NAMED_KEY_BYTES: usize = 64;

/// Merges the parts of one range, and hands the records that are made of it to `record`, in order. Returns the pairs
/// that were consumed. Between batches `go_on` is asked whether to.
///
/// # Errors
/// The task has failed then.
pub fn reduce<E, S: Iterator<Item = Result<Bytes, E>>>(
    instance: Box<dyn Instance>,
    (shape, limits): (Shape, &Limits),
    sources: impl IntoIterator<Item = S>,
    go_on: &dyn Fn() -> Result<(), TaskError>,
    record: &mut dyn FnMut(&[u8]) -> Result<(), TaskError>,
) -> Result<Fingerprint, TaskError> {
    let mut consumed = Fingerprint::default();
    let mut merge = PairMerge::new(sources).map_err(source_error)?;
    if !shape.reduce {
        while let Some((key, value)) = merge.next_pair().map_err(source_error)? {
            consumed.add_pair(key, value);
            record(value)?;
        }
        return Ok(consumed);
    }
    let mut reducer = Reducer {
        instance,
        combines: shape.combine,
        output: Budget::new(limits.output_bytes),
        go_on,
        record,
        whole: Groups::default(),
        key: Vec::new(),
        values: Pairs::default(),
        combine_at: BATCH_BYTES,
        out: Records::default(),
    };
    while let Some((key, value)) = merge.next_pair().map_err(source_error)? {
        consumed.add_pair(key, value);
        reducer.pair(key, value)?;
    }
    reducer.finish()?;
    Ok(consumed)
}

struct Reducer<'a> {
    instance: Box<dyn Instance>,
    combines: bool,
    output: Budget,
    go_on: &'a dyn Fn() -> Result<(), TaskError>,
    record: &'a mut dyn FnMut(&[u8]) -> Result<(), TaskError>,
    /// Groups that wait to be reduced.
    whole: Groups,
    /// The group that is being collected: pairs of one key.
    key: Vec<u8>,
    values: Pairs,
    /// Its values are combined when they have so many bytes.
    combine_at: usize,
    /// Used again and again.
    out: Records,
}

impl Reducer<'_> {
    fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), TaskError> {
        if self.values.is_empty() || self.key != key {
            self.end_group()?;
            self.key.clear();
            self.key.extend_from_slice(key);
            self.combine_at = BATCH_BYTES;
        }
        self.add_value(value)
    }

    fn add_value(&mut self, value: &[u8]) -> Result<(), TaskError> {
        self.values.push(b"", value).map_err(ProgramError::bad_output)?;
        if self.combines && self.values.bytes().len() >= self.combine_at {
            self.combine()?;
            self.combine_at = BATCH_BYTES.max(self.values.bytes().len() * 2);
        }
        if self.key.len() + self.values.bytes().len() > MAX_GROUP_BYTES {
            let named = &self.key[..self.key.len().min(NAMED_KEY_BYTES)];
            let key = named.escape_ascii().to_string();
            return Err(ProgramError::GroupTooLong { key }.into());
        }
        Ok(())
    }

    /// Lets the program shorten the group that is being collected.
    fn combine(&mut self) -> Result<(), TaskError> {
        let values = mem::take(&mut self.values);
        let mut batch = Groups::default();
        for (_, value) in values.iter() {
            if batch.bytes().len() + value.len() > MAX_BATCH_BYTES {
                self.combine_batch(&mut batch)?;
            }
            if batch.is_empty() {
                batch.push_key(&self.key).map_err(ProgramError::bad_output)?;
            }
            batch.push_value(value).map_err(ProgramError::bad_output)?;
        }
        self.combine_batch(&mut batch)
    }

    fn combine_batch(&mut self, batch: &mut Groups) -> Result<(), TaskError> {
        if batch.is_empty() {
            return Ok(());
        }
        (self.go_on)()?;
        let mut combined = Pairs::default();
        self.instance.combine(batch, &mut combined)?;
        batch.clear();
        for (key, value) in combined.iter() {
            check_pair(key, value)?;
            if key != self.key {
                return Err(ProgramError::bad_output("`combine` made a key that it was not given").into());
            }
            self.values.push(b"", value).map_err(ProgramError::bad_output)?;
        }
        Ok(())
    }

    /// The group that was collected is whole.
    fn end_group(&mut self) -> Result<(), TaskError> {
        if self.values.is_empty() {
            return Ok(());
        }
        let bytes = self.key.len() + self.values.bytes().len();
        if !self.whole.is_empty() && self.whole.bytes().len() + bytes > BATCH_BYTES {
            self.reduce()?;
        }
        self.whole.push_key(&self.key).map_err(ProgramError::bad_output)?;
        for (_, value) in self.values.iter() {
            self.whole.push_value(value).map_err(ProgramError::bad_output)?;
        }
        self.values.clear();
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), TaskError> {
        (self.go_on)()?;
        self.out.clear();
        self.instance.reduce(&self.whole, &mut self.out)?;
        self.whole.clear();
        self.output.spend(self.out.bytes().len())?;
        for record in self.out.iter() {
            (self.record)(record)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), TaskError> {
        self.end_group()?;
        if self.whole.is_empty() { Ok(()) } else { self.reduce() }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn source_error<E>(error: MergeError<E>) -> TaskError {
    match error {
        MergeError::Source { at, .. } => TaskError::Source { at },
        MergeError::NoRun { at } => TaskError::NoRun { at },
    }
}
