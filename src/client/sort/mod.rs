//! Sorting a dataset: the part of the process that wants it sorted.
//!
//! **Guarantee.** The output is there only if it has been checked: the same records as the input (but for those that
//! `unique` leaves out), by number and checksum, and in order. Until then nobody sees anything of it. A node that
//! dies costs what it was doing and the runs that it kept, which are made again elsewhere.
//!
//! **Method.** This process asks and waits; it moves no record. Some records of the input are sampled, and give the
//! splitters. Then there are two kinds of tasks: one sorts some blocks into a run, on a node that has them; one
//! fetches a range of all runs, merges it and writes it. [`Plan`] knows which tasks are to be done next, which are
//! done, and which must be done again. No node is special, and if this process ends, what nodes keep for the job
//! goes after a while.

mod plan;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::task::JoinSet;

use super::dataset::{Courier, Placement, give_up, seal};
use super::{Client, DatasetError, Error};
use crate::dataset::{BlockId, BlockInfo, DatasetSummary, Manifest};
use crate::id::{DatasetId, JobId, NodeId};
use crate::sort::{Order, Sample, Splitter, splitters};
use crate::time::Timestamp;
use crate::wire::{
    InputRef, MAX_BLOCK_SAMPLES, MAX_RANGES, Request, Response, Rpc, RpcError, WorkError, WorkRequest,
    WorkResponse,
};
use plan::{GivenUp, Next, Plan, Sizes};

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
/// Tasks that a node has at the same time from one job.
const TASKS_PER_NODE: usize = 2;
/// Longest that one task may take.
const TASK_LIMIT: Duration = Duration::from_secs(600);
/// How long nothing is asked of a node that failed.
const REST: Duration = Duration::from_millis(500);
/// Time between two looks for nodes that are back.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time without any node that can be asked.
const LONELY_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for a node to note that the job is over: it would find out by itself.
const END_LIMIT: Duration = Duration::from_millis(500);

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

/// How one task ended.
struct Ended {
    task: Next,
    node: NodeId,
    result: Result<WorkResponse, WorkError>,
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
        let request = WorkRequest::End { job: self.job };
        self.client.shared.router.tell_linked(END_LIMIT, |swarm| Request::Work { swarm, request }).await;
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
        let input: Vec<InputRef> = (0..)
            .zip(&manifest.blocks)
            .map(|(position, info)| InputRef {
                position,
                block: BlockId { dataset: manifest.id, number: info.number },
                info: *info,
            })
            .collect();
        let placement = courier.placement(false).await?;
        let ranges = usize::try_from(of.div_ceil(RANGE_BYTES)).unwrap_or(MAX_RANGES);
        let ranges = ranges.max(placement.members().len()).clamp(1, MAX_RANGES);
        let samples = self.sample(&courier, &manifest, &input, ranges).await?;
        let splitters = Arc::new(splitters(self.order, samples, ranges));
        let sizes = Sizes { task_bytes: TASK_BYTES, table_bytes: TASK_TABLE_BYTES };
        let mut plan = Plan::new(&input, &placement, splitters.len() + 1, sizes);
        let work = Work { sort: self, manifest: &manifest, splitters: Arc::clone(&splitters) };
        self.carry_out(&courier, &work, &mut plan, progress).await?;
        let blocks = self.check(&plan, &manifest)?;
        let output = Manifest { id: self.id, format: manifest.format, blocks };
        let summary = SortSummary {
            output: output.summary(),
            records: manifest.records(),
            dropped: manifest.records() - output.records(),
            tasks: plan.tasks(),
            again: plan.again(),
            fetched_blocks: plan.fetched(),
            moved_bytes: plan.merged().map(|merged| merged.moved).sum(),
        };
        if !output.is_sound() {
            return Err(DatasetError::TooLong.into());
        }
        seal(&self.client, &self.output, output).await?;
        Ok(summary)
    }
}

/// What tasks are made of.
struct Work<'a, R> {
    sort: &'a Sort<R>,
    manifest: &'a Manifest,
    splitters: Arc<Vec<Splitter>>,
}

impl<R: Rpc> Work<'_, R> {
    fn request(&self, task: Next, plan: &Plan) -> WorkRequest {
        let (job, order, format) = (self.sort.job, self.sort.order, self.manifest.format);
        match task {
            Next::Sort(at) => WorkRequest::Sort {
                job,
                task: u32::try_from(at).unwrap_or(u32::MAX),
                order,
                format,
                splitters: self.splitters.to_vec(),
                blocks: plan.blocks(at).to_vec(),
            },
            Next::Merge(at) => WorkRequest::Merge {
                job,
                range: u32::try_from(at).unwrap_or(u32::MAX),
                order,
                format,
                runs: plan.runs(at).to_vec(),
                output: self.sort.id,
                name: self.sort.output.clone(),
            },
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
                    match ask(&self.client, &placement, node, request.clone()).await {
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

    /// Gives tasks to nodes until all are done.
    async fn carry_out(
        &self,
        courier: &Courier<R>,
        work: &Work<'_, R>,
        plan: &mut Plan,
        progress: &mut (impl FnMut(SortProgress) + Send),
    ) -> Result<(), SortError> {
        let of = work.manifest.bytes();
        let mut running = JoinSet::new();
        let mut crew = Crew::default();
        while !plan.is_done() {
            let placement = courier.placement(false).await?;
            let now = self.client.now();
            for (task, node) in crew.assign(&self.client, &placement, plan, now) {
                let request = work.request(task, plan);
                let (client, placement) = (self.client.clone(), Arc::clone(&placement));
                running.spawn(async move {
                    let result = ask(&client, &placement, node, request).await;
                    Ended { task, node, result }
                });
            }
            if running.is_empty() && crew.is_lonely(now) {
                return Err(SortError::NoNode);
            }
            let ended = tokio::select! {
                Some(ended) = running.join_next(), if !running.is_empty() => ended,
                () = tokio::time::sleep(LOOK_INTERVAL) => continue,
            };
            // It is never cancelled, and a panic is one of this program.
            let Ended { task, node, result } = ended.map_err(|_| SortError::NoNode)?;
            crew.ended(node, &result, self.client.now());
            if let Err(error) = &result {
                tracing::debug!(peer = %node, ?task, %error, "a task is done again");
            }
            if let (Next::Merge(at), Err(WorkError::RunLost { task })) = (task, &result) {
                let linked = self.client.shared.router.rpc.linked();
                let keeper = plan.runs(at).iter().find(|run| run.task == *task).map(|run| run.node);
                if let Some(gone) = keeper.filter(|node| !linked.contains(node)) {
                    plan.lose_node(gone);
                }
            }
            plan.ended(task, node, result)
                .map_err(|GivenUp { attempts, error }| SortError::Task { attempts, error })?;
            let (merging, bytes) = plan.progress();
            let stage = if merging { SortStage::Merging } else { SortStage::Sorting };
            progress(SortProgress { stage, bytes, of, again: plan.again() });
        }
        Ok(())
    }

    /// The blocks of the output, if it is what it should be.
    fn check(&self, plan: &Plan, manifest: &Manifest) -> Result<Vec<BlockInfo>, SortError> {
        let (input, dropped) = plan.sorted();
        if input.records != manifest.records() {
            return Err(SortError::Wrong("another number of records was read than the input has"));
        }
        let mut written = dropped;
        let mut last: Option<&[u8]> = None;
        let mut blocks = Vec::new();
        for merged in plan.merged() {
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

/// The nodes that work for a sort.
#[derive(Debug, Default)]
struct Crew {
    /// How many tasks each has.
    busy: BTreeMap<NodeId, usize>,
    /// Those that failed, and until when nothing is asked of them.
    resting: BTreeMap<NodeId, Timestamp>,
    /// Since when nobody can be asked.
    lonely_since: Option<Timestamp>,
}

impl Crew {
    /// Gives tasks to those who have room for one, to each in turn.
    fn assign<R: Rpc>(
        &mut self,
        client: &Client<R>,
        placement: &Placement,
        plan: &mut Plan,
        now: Timestamp,
    ) -> Vec<(Next, NodeId)> {
        let rpc = &client.shared.router.rpc;
        let linked = rpc.linked();
        for node in placement.members().iter().filter(|node| !linked.contains(node)) {
            rpc.want(*node, placement.addresses(*node));
        }
        let mut given = Vec::new();
        let mut reached = false;
        for room in 1..=TASKS_PER_NODE {
            for node in placement.members().iter().filter(|node| linked.contains(node)) {
                if self.resting.get(node).is_some_and(|until| now < *until) {
                    continue;
                }
                reached = true;
                if self.busy.get(node).is_none_or(|busy| *busy < room)
                    && let Some(task) = plan.next_for(*node)
                {
                    plan.begin(task);
                    *self.busy.entry(*node).or_default() += 1;
                    given.push((task, *node));
                }
            }
        }
        self.lonely_since = if reached { None } else { Some(*self.lonely_since.get_or_insert(now)) };
        given
    }

    fn is_lonely(&self, now: Timestamp) -> bool {
        self.lonely_since.is_some_and(|since| now.since(since) >= LONELY_LIMIT)
    }

    fn ended(&mut self, node: NodeId, result: &Result<WorkResponse, WorkError>, now: Timestamp) {
        if let Some(busy) = self.busy.get_mut(&node) {
            *busy -= 1;
        }
        // Whose run is lost is not to blame.
        if result.as_ref().is_err_and(|error| !matches!(error, WorkError::RunLost { .. })) {
            self.resting.insert(node, now + REST);
        }
    }
}

/// Lets a node do something.
async fn ask<R: Rpc>(
    client: &Client<R>,
    placement: &Placement,
    node: NodeId,
    request: WorkRequest,
) -> Result<WorkResponse, WorkError> {
    let rpc = &client.shared.router.rpc;
    let request = Request::Work { swarm: placement.swarm(), request };
    match rpc.call(node, request, TASK_LIMIT).await {
        Ok(Response::Work(WorkResponse::Failed(error))) => Err(error),
        Ok(Response::Work(response)) => Ok(response),
        Ok(Response::Refused(refusal)) => Err(WorkError::Refused(refusal.to_string())),
        Ok(_) => Err(WorkError::Disorder),
        Err(error @ (RpcError::NotSent(_) | RpcError::Lost(_))) => Err(WorkError::Refused(error.to_string())),
    }
}

impl<R> fmt::Debug for Sort<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sort").field("job", &self.job).field("order", &self.order).finish_non_exhaustive()
    }
}
