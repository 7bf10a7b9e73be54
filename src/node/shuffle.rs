//! What all jobs do with a range: its part of each run is fetched from the node that keeps it, and what comes of it is
//! written as blocks.
//!
//! The runs are read ahead by a task each; a thread takes what they bring ([`Source`]) and fills blocks ([`Filler`]),
//! which go to their replicas as any writer's do ([`write`]). Each waits for the next when it is ahead, so what is in
//! memory is bounded by a few parts per run and a few blocks.

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
use crate::wire::{
    MAX_PART_BYTES, RANGE_BLOCKS, Refusal, Request, Response, Rpc, RpcError, RunRef, WorkError, WorkRequest,
    WorkResponse,
};

/// Parts of a run that wait to be merged, beside the one that is and the one that is being fetched.
const READ_AHEAD: usize = 1;
/// Blocks that wait for their turn to be written.
const WAITING_BLOCKS: usize = 1;
/// Blocks on their way to their replicas at the same time.
const MAX_UNDER_WAY: usize = 3;
/// Longest wait for a part of a run.
const PART_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of runs that one range has in memory: parts are shorter when runs are many, down to [`MIN_PART_BYTES`].
const RANGE_BYTES: usize = 64 * 1024 * 1024;
/// Parts that there are of a run: one is merged, some wait, and one has come and cannot wait yet.
const PARTS_PER_RUN: usize = READ_AHEAD + 2;
/// Shortest part that is asked for.
const MIN_PART_BYTES: usize = 16 * 1024;
/// Parts that are asked for at the same time, for one range.
const MAX_ASKED_PARTS: usize = 32;
/// Longest time that a node may be too busy to hand out a part before its run is lost.
const BUSY_LIMIT: Duration = Duration::from_secs(30);
/// How often a part is asked for in vain before its run is lost.
const MAX_TRIES: u32 = 4;
/// Pause before it is asked for again.
const PAUSE: Duration = Duration::from_millis(100);

/// A range of all runs, on its way here. Nothing goes on when this is dropped.
pub(super) struct Fetching {
    /// The parts of each run.
    pub(super) sources: Vec<Source>,
    moved: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Fetching {
    /// Begins to fetch a range.
    pub(super) fn begin(desk: &Desk, swarm: SwarmId, job: JobId, range: u32, runs: &[RunRef]) -> Self {
        let moved = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let mut sources = Vec::with_capacity(runs.len());
        let turns = Arc::new(Semaphore::new(MAX_ASKED_PARTS));
        let limit = part_bytes(runs.len());
        for run in runs {
            let (sender, receiver) = mpsc::channel(READ_AHEAD);
            let far = run.node != desk.me;
            let (rpc, turns) = (desk.rpc.clone(), Arc::clone(&turns));
            let moved = far.then(|| Arc::clone(&moved));
            tasks.spawn(Fetch { rpc, swarm, job, range, run: *run, limit, turns, moved }.run(sender));
            sources.push(Source { parts: receiver, left: run.bytes });
        }
        Self { sources, moved, _tasks: tasks }
    }

    /// Bytes of these runs that are in memory at once, at most.
    pub(super) fn memory(runs: &[RunRef]) -> u64 {
        let at_once = u64::from(part_bytes(runs.len())) * PARTS_PER_RUN as u64;
        runs.iter().map(|run| run.bytes.min(at_once)).sum()
    }

    /// Bytes that came from other nodes so far.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

/// How long parts are if there are so many runs.
fn part_bytes(runs: usize) -> u32 {
    let part = RANGE_BYTES / PARTS_PER_RUN / runs.max(1);
    u32::try_from(part.max(MIN_PART_BYTES)).unwrap_or(MAX_PART_BYTES).min(MAX_PART_BYTES)
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
pub(super) struct Source {
    parts: mpsc::Receiver<Bytes>,
    /// Bytes that are still to come.
    left: u64,
}

/// A run ended before it should.
pub(super) struct CutShort;

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

/// A block of the output.
pub(super) struct Full {
    bytes: Vec<u8>,
    records: u32,
}

/// Fills blocks with records. Blocks while two wait to be written.
pub(super) struct Filler {
    format: Format,
    block: Vec<u8>,
    records: u32,
    full: mpsc::Sender<Full>,
}

/// Nobody writes the blocks any more.
pub(super) struct NotTaken;

impl Filler {
    /// What it fills is to be given to [`write`].
    pub(super) fn new(format: Format) -> (Self, mpsc::Receiver<Full>) {
        let (full, blocks) = mpsc::channel(WAITING_BLOCKS);
        (Self { format, block: Vec::with_capacity(MAX_BLOCK_BYTES), records: 0, full }, blocks)
    }

    /// The next record; it must be possible in the format, and not longer than a block.
    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), NotTaken> {
        if self.block.len() + self.format.encoded_len(record) > MAX_BLOCK_BYTES {
            let bytes = std::mem::replace(&mut self.block, Vec::with_capacity(MAX_BLOCK_BYTES));
            self.send(bytes)?;
        }
        self.format.append(&mut self.block, record);
        self.records += 1;
        Ok(())
    }

    /// There are no more.
    pub(super) fn finish(mut self) -> Result<(), NotTaken> {
        let bytes = std::mem::take(&mut self.block);
        if self.records > 0 { self.send(bytes) } else { Ok(()) }
    }

    fn send(&mut self, bytes: Vec<u8>) -> Result<(), NotTaken> {
        let full = Full { bytes, records: std::mem::take(&mut self.records) };
        self.full.blocking_send(full).map_err(|_| NotTaken)
    }
}

/// Brings blocks to their replicas as they come; they have the numbers from `first` on.
pub(super) async fn write(
    desk: &Desk,
    (dataset, name): (DatasetId, &[u8]),
    first: u32,
    mut blocks: mpsc::Receiver<Full>,
) -> Result<Vec<BlockInfo>, WorkError> {
    let not_written = |error: DatasetError| WorkError::NotWritten(error.to_string());
    let courier = Courier::new(desk.client.clone()).await.map_err(not_written)?;
    let name: Arc<[u8]> = name.into();
    let mut under_way: JoinSet<Result<BlockInfo, DatasetError>> = JoinSet::new();
    let mut kept = Vec::new();
    let mut number = first;
    while let Some(Full { bytes, records }) = blocks.recv().await {
        let id = BlockId { dataset, number };
        number = number.wrapping_add(1);
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
