//! One range of a sort: fetched from the nodes that keep its runs, merged, and written as blocks of the output.
//!
//! The runs are read ahead by a task each; a thread merges what they bring and fills blocks, which go to their
//! replicas as any writer's do. Each waits for the next when it is ahead, so what is in memory is bounded by a few
//! parts per run and a few blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::rpc::NodeRpc;
use super::work::Desk;
use crate::client::{Courier, DatasetError};
use crate::dataset::{BlockId, BlockInfo, Format, MAX_BLOCK_BYTES};
use crate::id::{DatasetId, JobId, SwarmId};
use crate::sort::{Fingerprint, Merge, MergeError, Order};
use crate::wire::{
    MAX_PART_BYTES, MAX_TOLD_KEY_BYTES, Refusal, Request, Response, Rpc, RpcError, RunRef, WorkError,
    WorkRequest, WorkResponse,
};

/// Parts of a run that wait to be merged, beside the one that is and the one that is being fetched.
const READ_AHEAD: usize = 1;
/// Blocks that wait for their turn to be written.
const WAITING_BLOCKS: usize = 1;
/// Blocks on their way to their replicas at the same time.
const MAX_UNDER_WAY: usize = 3;
/// Longest wait for a part of a run.
const PART_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of runs that one merge has in memory, about: parts are shorter when runs are many.
const MERGE_BYTES: usize = 64 * 1024 * 1024;
/// Shortest part that is asked for.
const MIN_PART_BYTES: usize = 16 * 1024;
/// Parts that one merge asks for at the same time.
const MAX_ASKED_PARTS: usize = 32;
/// Longest time that a node may be too busy to hand out a part before its run is lost.
const BUSY_LIMIT: Duration = Duration::from_secs(30);
/// How often a part is asked for in vain before its run is lost.
const MAX_TRIES: u32 = 4;
/// Pause before it is asked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// Blocks of one range have numbers from the range times this on.
const RANGE_BLOCKS: u32 = 1 << 16;

/// A range to merge.
#[derive(Debug)]
pub(super) struct MergeRange {
    pub(super) swarm: SwarmId,
    pub(super) job: JobId,
    pub(super) range: u32,
    pub(super) order: Order,
    pub(super) format: Format,
    pub(super) runs: Vec<RunRef>,
    pub(super) output: DatasetId,
    pub(super) name: Vec<u8>,
}

/// A block of the output.
struct Full {
    bytes: Vec<u8>,
    records: u32,
}

/// What was merged.
struct Summed {
    output: Fingerprint,
    dropped: Fingerprint,
    ends: Option<(Bytes, Bytes)>,
}

impl MergeRange {
    pub(super) async fn run(self, desk: &Arc<Desk>) -> Result<WorkResponse, WorkError> {
        let moved = Arc::new(AtomicU64::new(0));
        // Dropped with this, and with them the queues, so that nothing goes on if this does not.
        let mut fetching = JoinSet::new();
        let mut sources = Vec::with_capacity(self.runs.len());
        let turns = Arc::new(Semaphore::new(MAX_ASKED_PARTS));
        // Of each run one part is being merged and one waits.
        let part = MERGE_BYTES / (READ_AHEAD + 1) / self.runs.len().max(1);
        let part = u32::try_from(part.max(MIN_PART_BYTES)).unwrap_or(MAX_PART_BYTES).min(MAX_PART_BYTES);
        for run in &self.runs {
            let (sender, receiver) = mpsc::channel(READ_AHEAD);
            let far = run.node != desk.me;
            let fetch = Fetch {
                rpc: desk.rpc.clone(),
                swarm: self.swarm,
                job: self.job,
                range: self.range,
                run: *run,
                limit: part,
                turns: Arc::clone(&turns),
                moved: far.then(|| Arc::clone(&moved)),
            };
            fetching.spawn(fetch.run(sender));
            sources.push(Source { parts: receiver, left: run.bytes });
        }
        let (full, blocks) = mpsc::channel(WAITING_BLOCKS);
        let (order, format) = (self.order, self.format);
        let merging = desk.compute(move || merge(order, format, sources, &full));
        let (merged, written) = tokio::join!(merging, self.write(desk, blocks));
        let tasks: Vec<u32> = self.runs.iter().map(|run| run.task).collect();
        // Why it could not be written is the reason for why it could not be merged.
        let blocks = written?;
        let Summed { output, dropped, ends } = merged?.map_err(|error| match error {
            Failed::Merge(MergeError::Source { at, .. }) => WorkError::RunLost { task: tasks[at] },
            Failed::Merge(_) => WorkError::Disorder,
            Failed::NotTaken => WorkError::Ended,
        })?;
        let moved = moved.load(Ordering::Relaxed);
        Ok(WorkResponse::Merged { blocks, output, dropped, ends, moved })
    }

    /// Brings blocks to their replicas as they come.
    async fn write(
        &self,
        desk: &Desk,
        mut blocks: mpsc::Receiver<Full>,
    ) -> Result<Vec<BlockInfo>, WorkError> {
        let not_written = |error: DatasetError| WorkError::NotWritten(error.to_string());
        let courier = Courier::new(desk.client.clone()).await.map_err(not_written)?;
        let name: Arc<[u8]> = self.name.clone().into();
        let mut under_way: JoinSet<Result<BlockInfo, DatasetError>> = JoinSet::new();
        let mut kept = Vec::new();
        let mut number = self.range * RANGE_BLOCKS;
        while let Some(Full { bytes, records }) = blocks.recv().await {
            let id = BlockId { dataset: self.output, number };
            number += 1;
            if number.is_multiple_of(RANGE_BLOCKS) {
                return Err(WorkError::Limit);
            }
            let (courier, name) = (Arc::clone(&courier), Arc::clone(&name));
            under_way.spawn(async move { put(&courier, id, &name, bytes, records).await });
            while under_way.len() >= MAX_UNDER_WAY {
                kept.extend(take(&mut under_way).await.map_err(not_written)?);
            }
        }
        while let Some(block) = take(&mut under_way).await.map_err(not_written)? {
            kept.push(block);
        }
        kept.sort_unstable_by_key(|block| block.number);
        Ok(kept)
    }
}

async fn put(
    courier: &Courier<NodeRpc>,
    id: BlockId,
    name: &[u8],
    bytes: Vec<u8>,
    records: u32,
) -> Result<BlockInfo, DatasetError> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let (checksum, bytes) = (crc32c::crc32c(&bytes), Bytes::from(bytes));
    courier.put(id, name, checksum, &bytes).await?;
    Ok(BlockInfo { number: id.number, length, records, checksum })
}

async fn take(
    under_way: &mut JoinSet<Result<BlockInfo, DatasetError>>,
) -> Result<Option<BlockInfo>, DatasetError> {
    match under_way.join_next().await {
        None => Ok(None),
        Some(Ok(kept)) => kept.map(Some),
        Some(Err(error)) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Nobody cancels them.
            Err(_) => Ok(None),
        },
    }
}

/// Fetches one range of one run, part by part.
struct Fetch {
    rpc: NodeRpc,
    swarm: SwarmId,
    job: JobId,
    range: u32,
    run: RunRef,
    /// Bytes of a part.
    limit: u32,
    turns: Arc<Semaphore>,
    /// Counts what came from another node; `None`: it is this one.
    moved: Option<Arc<AtomicU64>>,
}

impl Fetch {
    async fn run(self, parts: mpsc::Sender<Bytes>) {
        let mut offset = 0;
        while offset < self.run.bytes {
            // That it ends too early tells that something failed.
            let Some(part) = self.part(offset).await else { return };
            offset += part.len() as u64;
            if let Some(moved) = &self.moved {
                moved.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
            if part.is_empty() || parts.send(part).await.is_err() {
                return;
            }
        }
    }

    async fn part(&self, offset: u64) -> Option<Bytes> {
        let Self { job, range, run: RunRef { node, task, .. }, limit, .. } = *self;
        let (mut tries, mut busy) = (0, Duration::ZERO);
        while tries < MAX_TRIES && busy < BUSY_LIMIT {
            let turn = self.turns.acquire().await.ok()?;
            let request = WorkRequest::Part { job, task, range, offset, limit };
            let request = Request::Work { swarm: self.swarm, request };
            match self.rpc.call(node, request, PART_LIMIT).await {
                Ok(Response::Work(WorkResponse::Part(bytes))) => return Some(bytes),
                Ok(Response::Work(_)) => return None,
                Ok(Response::Refused(Refusal::Overloaded)) => busy += PAUSE,
                Err(RpcError::NotSent(_) | RpcError::Lost(_)) | Ok(_) => tries += 1,
            }
            drop(turn);
            tokio::time::sleep(PAUSE).await;
        }
        None
    }
}

/// The parts of a run as the thread that merges takes them.
struct Source {
    parts: mpsc::Receiver<Bytes>,
    /// Bytes that are still to come.
    left: u64,
}

/// A run ended before it should.
struct CutShort;

impl Iterator for Source {
    type Item = Result<Bytes, CutShort>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let part = self.parts.blocking_recv().filter(|part| part.len() as u64 <= self.left);
        let Some(part) = part else {
            self.left = 0;
            return Some(Err(CutShort));
        };
        self.left -= part.len() as u64;
        Some(Ok(part))
    }
}

enum Failed {
    Merge(MergeError<CutShort>),
    /// Nobody writes the blocks any more.
    NotTaken,
}

impl From<MergeError<CutShort>> for Failed {
    fn from(error: MergeError<CutShort>) -> Self {
        Self::Merge(error)
    }
}

/// Merges sources into blocks. Blocks.
fn merge(
    order: Order,
    format: Format,
    sources: Vec<Source>,
    full: &mpsc::Sender<Full>,
) -> Result<Summed, Failed> {
    let mut merge = Merge::new(order, format, sources)?;
    let mut output = Fingerprint::default();
    let mut ends: Option<(Bytes, Bytes)> = None;
    let (mut last_key, mut block, mut records) = (Vec::new(), Vec::with_capacity(MAX_BLOCK_BYTES), 0);
    let told = |key: &[u8]| Bytes::copy_from_slice(&key[..key.len().min(MAX_TOLD_KEY_BYTES)]);
    while let Some(merged) = merge.next_record()? {
        if ends.is_none() {
            ends = Some((told(merged.key), Bytes::new()));
        }
        if block.len() + format.encoded_len(merged.record) > MAX_BLOCK_BYTES {
            let bytes = std::mem::replace(&mut block, Vec::with_capacity(MAX_BLOCK_BYTES));
            let next = Full { bytes, records: std::mem::take(&mut records) };
            full.blocking_send(next).map_err(|_| Failed::NotTaken)?;
        }
        format.append(&mut block, merged.record);
        records += 1;
        output.add(merged.record);
        last_key.clear();
        last_key.extend_from_slice(&merged.key[..merged.key.len().min(MAX_TOLD_KEY_BYTES)]);
    }
    if let Some((_, last)) = &mut ends {
        *last = Bytes::from(last_key);
    }
    if records > 0 {
        full.blocking_send(Full { bytes: block, records }).map_err(|_| Failed::NotTaken)?;
    }
    Ok(Summed { output, dropped: merge.dropped(), ends })
}
