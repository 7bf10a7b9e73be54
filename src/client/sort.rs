//! Sorting a dataset: the part of the process that wants it sorted.
//!
//! **Guarantee.** The output is there only if it has been checked: the same records as the input (but for those that
//! `unique` leaves out), by number and checksum, and in order. Until then nobody sees anything of it. A node that
//! dies costs what it was doing and the runs that it kept, which are made again elsewhere.
//!
//! **Method.** Some records of the input are sampled, and give the splitters. Then it is a [`job`](super::job): tasks
//! sort some blocks into a run, on a node that has them; others fetch a range of all runs, merge it and write it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::dataset::{Courier, give_up, seal};
use super::job::{self, Attempt, Failure, GivenUp, Made, Next, Parts, Plan, PlanOf, REST, Sizes};
use super::{Client, DatasetError, Error};
use crate::dataset::{BlockInfo, DatasetSummary, Manifest};
use crate::id::{DatasetId, JobId};
use crate::sort::{Fingerprint, Order, RunPart, Sample, Splitter, splitters};
use crate::wire::{InputRef, MAX_BLOCK_SAMPLES, MAX_RANGES, Rpc, WorkError, WorkRequest, WorkResponse};

/// Blocks of the input that are sampled, at most.
const SAMPLED_BLOCKS: usize = 128;
/// Samples wished for per range.
const SAMPLES_PER_RANGE: usize = 64;
/// Samples of each of them, at least.
const MIN_BLOCK_SAMPLES: u32 = 16;
/// Blocks that are sampled at the same time.
const SAMPLED_AT_ONCE: usize = 8;
/// How often all who may have a block are asked for samples of it.
const MAX_SAMPLE_ROUNDS: u32 = 8;
/// Bytes of a range, about: it is one task.
const RANGE_BYTES: u64 = 32 * 1024 * 1024;
/// Bytes of the input that one task sorts, about.
const TASK_BYTES: u64 = 16 * 1024 * 1024;
/// Memory that one task needs beside its blocks, at most: for inputs of very short records.
const TASK_TABLE_BYTES: u64 = 64 * 1024 * 1024;
/// What a sort is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortStage {
    /// Looking at some records.
    Sampling,
    /// Sorting blocks into runs.
    Sorting,
    /// Merging ranges and writing them.
    Merging,
}

/// How far a sort is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SortProgress {
    /// What it is doing.
    pub stage: SortStage,
    /// Bytes of the input that are through this stage.
    pub bytes: u64,
    /// Of so many.
    pub of: u64,
    /// Tasks that had to be done again.
    pub again: u64,
}

/// What a sort has made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SortSummary {
    /// The sorted dataset.
    pub output: DatasetSummary,
    /// Records of the input.
    pub records: u64,
    /// Records left out, because an equal one came before them.
    pub dropped: u64,
    /// Tasks that sorted blocks, and ranges that were merged.
    pub tasks: (usize, usize),
    /// Tasks that had to be done again.
    pub again: u64,
    /// Blocks of the input that were sorted on a node that did not have them.
    pub fetched_blocks: u64,
    /// Bytes of runs that went from one node to another.
    pub moved_bytes: u64,
}

/// Why nothing was sorted. Unless it says otherwise there is no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SortError {
    /// The input or the output.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A task failed on every node that it was given to.
    #[error("a task failed {attempts} times, the last time because {error}")]
    Task {
        /// How often it was tried.
        attempts: u32,
        /// Why it failed last.
        error: WorkError,
    },
    /// No member can be reached.
    #[error("no member can be reached")]
    NoNode,
    /// What was written is not what was read, or not in order: a node or its memory is faulty. The output was thrown
    /// away.
    #[error("the result is wrong and was thrown away: {0}")]
    Wrong(&'static str),
}

impl From<Error> for SortError {
    fn from(error: Error) -> Self {
        Self::Dataset(error.into())
    }
}

impl<R: Rpc> Client<R> {
    /// Begins to sort the dataset `input` into a new one named `output`; see [`Sort::run`].
    pub fn sort(&self, input: impl Into<Vec<u8>>, output: impl Into<Vec<u8>>, order: Order) -> Sort<R> {
        Sort {
            client: self.clone(),
            input: input.into(),
            output: output.into(),
            order,
            job: JobId(rand::random()),
            id: DatasetId(rand::random()),
        }
    }
}

/// A sort that is under way, or was not begun yet; made by [`Client::sort`].
///
/// To break it off, drop the future of [`run`](Self::run) and call [`cancel`](Self::cancel). If neither is done, the
/// nodes throw away what they keep for it after some minutes.
pub struct Sort<R> {
    client: Client<R>,
    input: Vec<u8>,
    output: Vec<u8>,
    order: Order,
    job: JobId,
    /// Of the output.
    id: DatasetId,
}

impl<R: Rpc> Sort<R> {
    /// Sorts. Returns when the output is there, checked and whole.
    ///
    /// # Errors
    /// There is no output then, except if the error is [`DatasetError::Store`] with [`Error::Unknown`]: then it may
    /// be there, checked and whole.
    pub async fn run(&self, mut progress: impl FnMut(SortProgress) + Send) -> Result<SortSummary, SortError> {
        let result = self.try_run(&mut progress).await;
        let is_unknown = matches!(result, Err(SortError::Dataset(DatasetError::Store(Error::Unknown))));
        if result.is_err() && !is_unknown {
            self.cancel().await;
        } else {
            self.end().await;
        }
        result
    }

    /// Tells the nodes that nothing of it is needed any more.
    pub async fn cancel(&self) {
        self.end().await;
        give_up(&self.client, self.id).await;
    }

    async fn end(&self) {
        job::end(&self.client, self.job).await;
    }

    async fn try_run(
        &self,
        progress: &mut (impl FnMut(SortProgress) + Send),
    ) -> Result<SortSummary, SortError> {
        let dataset = self.client.dataset(self.input.clone());
        let manifest = dataset.manifest().await?.ok_or(DatasetError::NotFound)?;
        if self.client.dataset(self.output.clone()).info().await?.is_some() {
            return Err(DatasetError::Exists.into());
        }
        let courier = Courier::new(self.client.clone()).await?;
        let of = manifest.bytes();
        progress(SortProgress { stage: SortStage::Sampling, bytes: 0, of, again: 0 });
        let input = job::input_of(&manifest);
        let placement = courier.placement(false).await?;
        let ranges = usize::try_from(of.div_ceil(RANGE_BYTES)).unwrap_or(MAX_RANGES);
        let ranges = ranges.max(placement.members().len()).clamp(1, MAX_RANGES);
        let samples = self.sample(&courier, &manifest, &input, ranges).await?;
        let splitters = splitters(self.order, samples, ranges);
        let sizes = Sizes { task_bytes: TASK_BYTES, table_bytes: TASK_TABLE_BYTES };
        let parts = job::cut_blocks(&input, &placement, sizes);
        let mut plan = Plan::new(parts, splitters.len() + 1);
        let work = Sorting { sort: self, manifest: &manifest, splitters };
        job::carry_out(&self.client, &courier, &work, &mut plan, BTreeSet::new(), |now| {
            let stage = if now.merging { SortStage::Merging } else { SortStage::Sorting };
            progress(SortProgress { stage, bytes: now.bytes, of, again: now.again });
        })
        .await?;
        let blocks = self.check(&plan, &manifest)?;
        let output = Manifest { id: self.id, format: manifest.format, blocks };
        let summary = SortSummary {
            output: output.summary(),
            records: manifest.records(),
            dropped: manifest.records() - output.records(),
            tasks: (plan.progress().runs.1, plan.progress().ranges.1),
            again: plan.progress().again,
            fetched_blocks: plan.made_runs().map(|sorted| u64::from(sorted.fetched)).sum(),
            moved_bytes: plan.made_ranges().map(|merged| merged.moved).sum(),
        };
        if !output.is_sound() {
            return Err(DatasetError::TooLong.into());
        }
        seal(&self.client, &self.output, output).await?;
        Ok(summary)
    }
}

/// What the tasks of a sort are.
struct Sorting<'a, R> {
    sort: &'a Sort<R>,
    manifest: &'a Manifest,
    splitters: Vec<Splitter>,
}

/// What is told of a run.
struct Sorted {
    parts: Vec<RunPart>,
    input: Fingerprint,
    dropped: Fingerprint,
    fetched: u32,
}

impl Parts for Sorted {
    fn parts(&self) -> &[RunPart] {
        &self.parts
    }
}

/// What is told of a range.
struct Merged {
    blocks: Vec<BlockInfo>,
    output: Fingerprint,
    dropped: Fingerprint,
    ends: Option<(Bytes, Bytes)>,
    moved: u64,
}

impl<R: Rpc> job::Work for Sorting<'_, R> {
    type Input = Vec<InputRef>;
    type Run = Sorted;
    type Range = Merged;

    fn request(&self, attempt: Attempt, plan: &PlanOf<Self>) -> WorkRequest {
        let (job, order, format) = (self.sort.job, self.sort.order, self.manifest.format);
        match attempt.task {
            Next::Run(at) => WorkRequest::Sort {
                job,
                task: attempt.run_name(),
                order,
                format,
                splitters: self.splitters.clone(),
                blocks: plan.part(at).input.clone(),
            },
            Next::Range(_) => WorkRequest::Merge {
                job,
                range: attempt.place(),
                order,
                format,
                runs: plan.sources(attempt).to_vec(),
                output: self.sort.id,
                name: self.sort.output.clone(),
            },
        }
    }

    fn made(&self, response: WorkResponse) -> Option<Made<Sorted, Merged>> {
        match response {
            WorkResponse::Sorted { parts, input, dropped, fetched } => {
                Some(Made::Run(Sorted { parts, input, dropped, fetched }))
            }
            WorkResponse::Merged { blocks, output, dropped, ends, moved } => {
                Some(Made::Range(Merged { blocks, output, dropped, ends, moved }))
            }
            _ => None,
        }
    }
}

impl From<Failure> for SortError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Dataset(error) => error.into(),
            Failure::GivenUp(GivenUp { attempts, error }) => Self::Task { attempts, error },
            // There is no program that could be missing.
            Failure::NoNode | Failure::NoProgram(_) => Self::NoNode,
        }
    }
}

impl<R: Rpc> Sort<R> {
    /// Picks records all over the input.
    async fn sample(
        &self,
        courier: &Courier<R>,
        manifest: &Manifest,
        input: &[InputRef],
        ranges: usize,
    ) -> Result<Vec<Sample>, SortError> {
        let step = input.len().div_ceil(SAMPLED_BLOCKS).max(1);
        let sampled: Vec<InputRef> = input.iter().copied().skip(step / 2).step_by(step).collect();
        let wished = ranges * SAMPLES_PER_RANGE / sampled.len().max(1);
        let count = u32::try_from(wished).unwrap_or(u32::MAX).clamp(MIN_BLOCK_SAMPLES, MAX_BLOCK_SAMPLES);
        let format = manifest.format;
        let samples = stream::iter(sampled).map(|block| async move {
            let request = WorkRequest::Sample { order: self.order, format, blocks: vec![block], count };
            let mut last = None;
            for _ in 0..MAX_SAMPLE_ROUNDS {
                let placement = courier.placement(last.is_some()).await?;
                for node in courier.holders(&placement, block.block) {
                    match job::ask(&self.client, &placement, node, request.clone()).await {
                        Ok(WorkResponse::Sampled(samples)) => return Ok(samples),
                        Ok(_) => last = Some(WorkError::Disorder),
                        Err(error) => last = Some(error),
                    }
                }
                tokio::time::sleep(REST).await;
            }
            match last {
                Some(error) => Err(SortError::Task { attempts: MAX_SAMPLE_ROUNDS, error }),
                None => Err(SortError::NoNode),
            }
        });
        let mut samples = samples.buffer_unordered(SAMPLED_AT_ONCE);
        let mut all = Vec::new();
        while let Some(some) = samples.next().await {
            all.extend(some?);
        }
        Ok(all)
    }

    /// The blocks of the output, if it is what it should be.
    fn check(&self, plan: &PlanOf<Sorting<'_, R>>, manifest: &Manifest) -> Result<Vec<BlockInfo>, SortError> {
        let none = (Fingerprint::default(), Fingerprint::default());
        let (input, dropped) = plan
            .made_runs()
            .fold(none, |(input, dropped), sorted| (input.and(sorted.input), dropped.and(sorted.dropped)));
        if input.records != manifest.records() {
            return Err(SortError::Wrong("another number of records was read than the input has"));
        }
        let mut written = dropped;
        let mut last: Option<&[u8]> = None;
        let mut blocks = Vec::new();
        for merged in plan.made_ranges() {
            written = written.and(merged.output).and(merged.dropped);
            if let Some((first, end)) = &merged.ends {
                if last.is_some_and(|last| self.order.keys(last, first) == Ordering::Greater) {
                    return Err(SortError::Wrong("ranges are not in order"));
                }
                last = Some(end);
            }
            let records: u64 = merged.blocks.iter().map(|block| u64::from(block.records)).sum();
            if records != merged.output.records {
                return Err(SortError::Wrong("blocks do not hold what was merged"));
            }
            blocks.extend_from_slice(&merged.blocks);
        }
        if written != input {
            return Err(SortError::Wrong("its records are not those of the input"));
        }
        Ok(blocks)
    }
}

impl<R> fmt::Debug for Sort<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sort").field("job", &self.job).field("order", &self.order).finish_non_exhaustive()
    }
}
