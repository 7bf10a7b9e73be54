//! The second half of a job, for one range: the range's part of every run is merged, and each group reduced.
//!
//! In memory is one batch of groups. A group that is long is combined as it comes; if it stays longer than
//! [`MAX_GROUP_BYTES`], or the program has no `combine`, its values are read while the program takes them, piece by
//! piece ([`LongGroup`]).

use std::mem;

use bytes::Bytes;

use super::batch::{Groups, MAX_BATCH_BYTES, MAX_GROUP_BYTES, Pairs, Records};
use super::long::{LongGroup, PIECE_BYTES};
use super::merge::PairMerge;
use super::program::{Instance, Limits, ProgramError, Shape};
use super::{BATCH_BYTES, Budget, TaskError, check_pair};
use crate::sort::{Fingerprint, MergeError};

/// Merges the parts of one range, and hands the records that are made of it to `record`, in order. Returns the pairs
/// that were consumed. Between batches `go_on` is asked whether to. A range in which there is nothing is given to it
/// only if there is nothing in any.
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
        if reducer.pair(key, value)? == Room::None {
            reducer.reduce_long(&mut merge, &mut consumed)?;
        }
    }
    if consumed.records == 0 {
        reducer.reduce_nothing()?;
    } else {
        reducer.finish()?;
    }
    Ok(consumed)
}

/// Whether there is room for more values of the group that is being collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Left,
    None,
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
    fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<Room, TaskError> {
        if self.values.is_empty() || self.key != key {
            self.end_group()?;
            self.key.clear();
            self.key.extend_from_slice(key);
            self.combine_at = BATCH_BYTES;
        }
        self.add_value(value)
    }

    fn add_value(&mut self, value: &[u8]) -> Result<Room, TaskError> {
        self.values.push(b"", value).map_err(ProgramError::bad_output)?;
        if self.combines && self.values.bytes().len() >= self.combine_at {
            self.combine()?;
            self.combine_at = BATCH_BYTES.max(self.values.bytes().len() * 2);
        }
        let is_full = self.key.len() + self.values.bytes().len() > MAX_GROUP_BYTES;
        Ok(if is_full { Room::None } else { Room::Left })
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

    /// Reduces the groups that wait.
    fn reduce(&mut self) -> Result<(), TaskError> {
        if self.whole.is_empty() {
            return Ok(());
        }
        (self.go_on)()?;
        self.out.clear();
        self.instance.reduce(&self.whole, &mut self.out)?;
        self.whole.clear();
        hand_out(&self.out, &mut self.output, self.record)
    }

    /// Reduces the group that is being collected, which is long, with all that is still to come of it.
    fn reduce_long<E, S: Iterator<Item = Result<Bytes, E>>>(
        &mut self,
        merge: &mut PairMerge<S>,
        consumed: &mut Fingerprint,
    ) -> Result<(), TaskError> {
        self.reduce()?;
        let key = mem::take(&mut self.key);
        let (mut collected, mut next) = (mem::take(&mut self.values), 0);
        let Self { instance, go_on, output, record, .. } = self;
        let mut pull = |piece: &mut Groups| {
            go_on()?;
            piece.clear();
            piece.push_key(&key).map_err(ProgramError::bad_output)?;
            let mut is_there = false;
            while piece.bytes().len() - key.len() < PIECE_BYTES {
                let value = if next < collected.len() {
                    next += 1;
                    collected.get(next - 1).1
                } else {
                    // Its room is not needed any more.
                    (collected, next) = (Pairs::default(), 0);
                    let Some(value) = merge.next_value_of(&key).map_err(source_error)? else { break };
                    consumed.add_pair(&key, value);
                    value
                };
                piece.push_value(value).map_err(ProgramError::bad_output)?;
                is_there = true;
            }
            Ok(is_there)
        };
        let mut take = |records: &Records| hand_out(records, output, *record);
        let mut group = LongGroup::new(&key, &mut pull, &mut take);
        let reduced = instance.reduce_long(&mut group);
        // Whatever the program made of it.
        if let Some(failed) = group.failed() {
            return Err(failed);
        }
        reduced?;
        while let Some(value) = merge.next_value_of(&key).map_err(source_error)? {
            consumed.add_pair(&key, value);
        }
        Ok(())
    }

    fn reduce_nothing(mut self) -> Result<(), TaskError> {
        self.instance.reduce_nothing(&mut self.out)?;
        hand_out(&self.out, &mut self.output, self.record)
    }

    fn finish(mut self) -> Result<(), TaskError> {
        self.end_group()?;
        self.reduce()
    }
}

fn hand_out(
    records: &Records,
    output: &mut Budget,
    record: &mut dyn FnMut(&[u8]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    output.spend(records.bytes().len())?;
    records.iter().try_for_each(record)
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn source_error<E>(error: MergeError<E>) -> TaskError {
    match error {
        MergeError::Source { at, .. } => TaskError::Source { at },
        MergeError::NoRun { at } => TaskError::NoRun { at },
    }
}
