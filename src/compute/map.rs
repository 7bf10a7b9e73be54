//! The first half of a job, for some blocks: their records become pairs, the pairs a run.
//!
//! What is in memory is bounded: pairs are collected in a table, and when that is full it is *spilled*, as a run of
//! its own. At the end the spilled runs are merged into one; mostly there are none. Without `reduce` nothing is
//! collected: pairs go into the run as they come, by the place of their block.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem;

use bytes::Bytes;

use super::batch::{Pairs, Records};
use super::hash::{Partitioning, Ranges};
use super::merge::PairMerge;
use super::program::{Instance, Limits, ProgramError, Shape};
use super::run::{PairRun, RunWriter};
use super::table::{AHEAD, COMBINE_BYTES, Table};
use super::{BATCH_BYTES, Budget, TaskError, check_pair};
use crate::sort::MergeError;

/// Bytes of pairs that a task has in memory, beside one batch.
pub const TABLE_BYTES: usize = 32 * 1024 * 1024;
/// Most spilled runs of one task.
const MAX_SPILLS: usize = 256;
/// Bytes of a spilled run that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// Where spilled runs go.
pub trait Spills {
    /// A place for one: written first, then read.
    type File: Read + Write + Seek;

    /// An empty one.
    ///
    /// # Errors
    /// If there is none.
    fn create(&mut self) -> io::Result<Self::File>;
}

/// What a task has mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// What was written.
    pub run: PairRun,
    /// Records of the input.
    pub records: u64,
    /// Pairs that `map` made of them.
    pub pairs: u64,
}

/// Maps blocks into a run.
pub struct MapTask<'a, W: Write, S: Spills> {
    instance: Box<dyn Instance>,
    shape: Shape,
    ranges: Ranges,
    output: Budget,
    table_bytes: usize,
    /// Says whether to go on; asked between batches.
    go_on: &'a dyn Fn() -> Result<(), TaskError>,
    out: RunWriter<W>,
    table: Table,
    spills: S,
    spilled: Vec<(S::File, PairRun)>,
    records: Records,
    pairs: Pairs,
    /// The block that is being mapped, and how many pairs were made of it.
    place: (u32, u32),
    /// Records of the input, and pairs made of them.
    counts: (u64, u64),
}

impl<'a, W: Write, S: Spills> MapTask<'a, W, S> {
    /// Pairs that do not fit into `table_bytes` ([`TABLE_BYTES`] but in tests) are spilled.
    pub fn new(
        instance: Box<dyn Instance>,
        (shape, limits): (Shape, &Limits),
        ranges: Ranges,
        table_bytes: usize,
        go_on: &'a dyn Fn() -> Result<(), TaskError>,
        (out, spills): (W, S),
    ) -> Self {
        Self {
            instance,
            shape,
            ranges,
            output: Budget::new(limits.output_bytes),
            table_bytes,
            go_on,
            out: RunWriter::new(out, ranges.count),
            table: Table::new(ranges, COMBINE_BYTES.min(table_bytes / 8)),
            spills,
            spilled: Vec::new(),
            records: Records::default(),
            pairs: Pairs::default(),
            place: (0, 0),
            counts: (0, 0),
        }
    }

    /// Maps the records of a block that stands at this place in the input, or the next ones of the same. Blocks come
    /// in ascending order.
    ///
    /// # Errors
    /// The task has failed then.
    pub fn block<'r>(
        &mut self,
        position: u32,
        records: impl IntoIterator<Item = &'r [u8]>,
    ) -> Result<(), TaskError> {
        if self.place.0 != position {
            self.place = (position, 0);
        }
        for record in records {
            if !self.records.is_empty() && self.records.bytes().len() + record.len() > BATCH_BYTES {
                self.map()?;
            }
            self.records.push(record).map_err(ProgramError::bad_output)?;
        }
        self.map()
    }

    /// Hands the batch to the program and takes in what it makes of it.
    fn map(&mut self) -> Result<(), TaskError> {
        if self.records.is_empty() {
            return Ok(());
        }
        (self.go_on)()?;
        let mut pairs = mem::take(&mut self.pairs);
        pairs.clear();
        self.instance.map(&self.records, &mut pairs)?;
        self.output.spend(pairs.bytes().len())?;
        self.counts.0 += self.records.len() as u64;
        self.counts.1 += pairs.len() as u64;
        self.records.clear();
        match self.ranges.by {
            Partitioning::Key => self.collect(&pairs)?,
            Partitioning::Position { blocks } => self.write_in_order(&pairs, blocks)?,
        }
        self.pairs = pairs;
        Ok(())
    }

    /// Brings pairs together by key.
    fn collect(&mut self, pairs: &Pairs) -> Result<(), TaskError> {
        for start in (0..pairs.len()).step_by(AHEAD) {
            let some = start..pairs.len().min(start + AHEAD);
            let hashes = self.table.look_ahead(pairs, some.clone());
            for (at, hash) in some.zip(hashes) {
                let (key, value) = pairs.get(at);
                check_pair(key, value)?;
                self.table.insert(hash, key, value);
                self.keep_in_bounds()?;
            }
        }
        Ok(())
    }

    /// Writes pairs as records, by the place of their block.
    fn write_in_order(&mut self, pairs: &Pairs, blocks: u32) -> Result<(), TaskError> {
        for (key, value) in pairs.iter() {
            check_pair(key, value)?;
            let (position, made) = self.place;
            let mut place = [0; 8];
            place[..4].copy_from_slice(&position.to_be_bytes());
            place[4..].copy_from_slice(&made.to_be_bytes());
            let next = made.checked_add(1);
            self.place.1 = next.ok_or_else(|| ProgramError::bad_output("too many pairs"))?;
            let range = self.ranges.of_block(position, blocks);
            if value.is_empty() {
                self.out.push(range, &place, key)?;
            } else {
                self.out.push(range, &place, &[key, b"\t", value].concat())?;
            }
        }
        Ok(())
    }

    fn keep_in_bounds(&mut self) -> Result<(), TaskError> {
        if self.shape.combine && self.table.wants_to_combine() {
            self.table.combine(&mut *self.instance)?;
        }
        if self.table.bytes() >= self.table_bytes {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), TaskError> {
        if self.spilled.len() >= MAX_SPILLS {
            return Err(ProgramError::TooMuchOutput { limit: (MAX_SPILLS * self.table_bytes) as u64 }.into());
        }
        if self.shape.combine {
            self.table.combine(&mut *self.instance)?;
        }
        let mut file = self.spills.create()?;
        let mut out = io::BufWriter::with_capacity(READ_BYTES, &mut file);
        let mut writer = RunWriter::new(&mut out, self.ranges.count);
        self.table.write(&mut writer)?;
        let (run, _) = writer.finish();
        out.flush()?;
        drop(out);
        self.spilled.push((file, run));
        Ok(())
    }

    /// Writes what is left; the run, and where it was written to.
    ///
    /// # Errors
    /// The task has failed then.
    pub fn finish(mut self) -> Result<(Mapped, W), TaskError> {
        if self.shape.combine {
            self.table.combine(&mut *self.instance)?;
        }
        if self.spilled.is_empty() {
            self.table.write(&mut self.out)?;
        } else {
            if !self.table.is_empty() {
                self.spill()?;
            }
            let mut offsets = vec![0; self.spilled.len()];
            for range in 0..self.ranges.count {
                (self.go_on)()?;
                merge_spilled(&mut self.spilled, &mut offsets, range, &mut self.out)?;
            }
        }
        let (run, out) = self.out.finish();
        Ok((Mapped { run, records: self.counts.0, pairs: self.counts.1 }, out))
    }
}

impl<W: Write, S: Spills> fmt::Debug for MapTask<'_, W, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapTask")
            .field("ranges", &self.ranges)
            .field("spilled", &self.spilled.len())
            .finish_non_exhaustive()
    }
}

/// Writes one range of all spilled runs. `offsets`: where it begins in each, which is moved behind it.
fn merge_spilled<F: Read + Seek, W: Write>(
    spilled: &mut [(F, PairRun)],
    offsets: &mut [u64],
    range: u32,
    out: &mut RunWriter<W>,
) -> Result<(), TaskError> {
    let mut parts = Vec::with_capacity(spilled.len());
    for ((file, run), offset) in spilled.iter_mut().zip(offsets) {
        let bytes = run.parts[range as usize].bytes;
        file.seek(SeekFrom::Start(*offset))?;
        *offset += bytes;
        parts.push(Part { file, left: bytes });
    }
    let mut merge = PairMerge::new(parts).map_err(spill_error)?;
    while let Some((key, value)) = merge.next_pair().map_err(spill_error)? {
        out.push(range, key, value)?;
    }
    Ok(())
}

/// A range of a spilled run, in pieces.
struct Part<'a, F> {
    file: &'a mut F,
    left: u64,
}

impl<F: Read> Iterator for Part<'_, F> {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        let length = usize::try_from(self.left).unwrap_or(READ_BYTES).min(READ_BYTES);
        if length == 0 {
            return None;
        }
        self.left -= length as u64;
        let mut piece = vec![0; length];
        Some(self.file.read_exact(&mut piece).map(|()| piece.into()))
    }
}

fn spill_error(error: MergeError<io::Error>) -> TaskError {
    match error {
        MergeError::Source { error, .. } => TaskError::Io(error),
        MergeError::NoRun { .. } => {
            TaskError::Io(io::Error::new(io::ErrorKind::InvalidData, "a spilled run is damaged"))
        }
    }
}
