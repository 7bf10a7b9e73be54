//! A node's part in jobs: it sorts or maps blocks into runs, hands out parts of them, and merges or reduces ranges.
//!
//! Runs are files beside the node's blocks, and count as such. They go when the job ends, or when nobody has asked
//! for anything of the job for a while: whoever ran it may be gone. How many tasks compute at the same time is
//! bounded by the machine's processors, and by the memory that all of them may take together.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::blocks::Blocks;
use super::clock::Clock;
use super::compute::{MapPart, ReduceRange};
use super::memory::{self, Memory, Taken};
use super::merge_range::MergeRange;
use super::programs::Programs;
use super::rpc::NodeRpc;
use crate::client::{Client, Courier, DatasetError};
use crate::dataset::{Format, MAX_BLOCK_BYTES};
use crate::id::{JobId, NodeId, SwarmId};
use crate::sort::{InputBlock, Order, Run, RunPart, Sample, Splitter, sample, sort_into_run};
use crate::storage::BlockStore;
use crate::time::Timestamp;
use crate::wire::{
    InputRef, MAX_BLOCK_SAMPLES, MAX_PART_BYTES, MAX_RANGES, MAX_RUNS, MAX_TASK_BLOCKS, Refusal, Response,
    WorkError, WorkRequest, WorkResponse,
};

/// Requests of jobs that a node works on or hands out parts for at the same time. Further ones are refused.
const MAX_WORK: usize = 256;
/// Merges that read ahead beside those that a processor works on. Further ones wait for their turn.
const READING_AHEAD: usize = 1;
/// Jobs that a node keeps something for.
const MAX_JOBS: usize = 64;
/// What is kept for a job goes when nobody has asked for anything of it for so long.
const JOB_TTL: Duration = Duration::from_secs(300);
/// Time between two looks for jobs that are over.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes of a run that are written at once.
pub(super) const WRITE_BYTES: usize = 256 * 1024;
/// Bytes of the node's room for blocks that are taken at once for a run whose length is not known.
const ROOM_BYTES: u64 = 1024 * 1024;
/// Bytes that a run has at most beside each record.
const RECORD_OVERHEAD_BYTES: u64 = 12;
/// Where runs are, beside the blocks.
const RUNS: &str = "runs";

/// Work for a node, and where the answer goes.
pub(super) struct Assignment {
    pub(super) swarm: SwarmId,
    pub(super) request: WorkRequest,
    pub(super) respond: Box<dyn FnOnce(Response) + Send>,
}

/// The task that does a node's part in jobs.
pub(super) struct Worker {
    pub(super) me: NodeId,
    pub(super) rpc: NodeRpc,
    pub(super) client: Client<NodeRpc>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) programs: Arc<Programs>,
    /// Bytes of memory for all tasks together.
    pub(super) memory: u64,
    pub(super) assignments: mpsc::Receiver<Assignment>,
    pub(super) stop: CancellationToken,
}

impl Worker {
    pub(super) async fn run(mut self) {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let desk = Arc::new(Desk {
            me: self.me,
            rpc: self.rpc.clone(),
            client: self.client.clone(),
            blocks: Arc::clone(&self.blocks),
            programs: Arc::clone(&self.programs),
            memory: Memory::new(self.memory),
            processors: Arc::new(Semaphore::new(processors)),
            merges: Semaphore::new(processors + READING_AHEAD),
            jobs: Mutex::default(),
            directory: Mutex::default(),
            files: AtomicU64::new(0),
        });
        let mut work = JoinSet::new();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                Some(_) = work.join_next(), if !work.is_empty() => {}
                _ = looks.tick() => desk.expire(Clock.now()),
                assignment = self.assignments.recv() => {
                    let Some(Assignment { swarm, request, respond }) = assignment else { return };
                    if work.len() >= MAX_WORK {
                        respond(Response::Refused(Refusal::Overloaded));
                        continue;
                    }
                    let desk = Arc::clone(&desk);
                    work.spawn(async move { respond(desk.answer(swarm, request).await) });
                }
            }
        }
    }
}

/// What all tasks of a node share.
pub(super) struct Desk {
    pub(super) me: NodeId,
    pub(super) rpc: NodeRpc,
    pub(super) client: Client<NodeRpc>,
    blocks: Arc<Blocks>,
    pub(super) programs: Arc<Programs>,
    memory: Memory,
    processors: Arc<Semaphore>,
    /// Merges under way: each reads thousands of runs.
    pub(super) merges: Semaphore,
    jobs: Mutex<BTreeMap<JobId, Job>>,
    /// Where runs are, once there was one.
    directory: Mutex<Option<PathBuf>>,
    files: AtomicU64,
}

/// What is kept for a job.
struct Job {
    used: Timestamp,
    ended: CancellationToken,
    /// Shared with all tasks that are under way.
    tasks: Arc<()>,
    runs: BTreeMap<u32, Arc<RunFile>>,
}

/// A task that is under way: its job is kept as long.
pub(super) struct Opened {
    /// Tells that the job has ended.
    pub(super) ended: CancellationToken,
    _task: Arc<()>,
}

/// A run on the disk; removed with its last user.
pub(super) struct RunFile {
    path: PathBuf,
    parts: Vec<RunPart>,
    room: Room,
}

impl RunFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It was written; what it takes of the node's room for blocks.
    pub(super) fn complete(&mut self, parts: Vec<RunPart>, room: Room) {
        (self.parts, self.room) = (parts, room);
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        // What stays goes with the directory.
        let _ = fs::remove_file(&self.path);
    }
}

/// What something takes of a node's room for blocks; given back with it.
pub(super) struct Room {
    store: Arc<BlockStore>,
    taken: u64,
    /// Of what was taken.
    used: u64,
}

impl Room {
    /// So many bytes more.
    pub(super) fn take(&mut self, bytes: u64) -> io::Result<()> {
        let needed = (self.used + bytes).saturating_sub(self.taken);
        if needed > 0 {
            let more = needed.max(ROOM_BYTES);
            if !self.store.reserve(more) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.taken += more;
        }
        self.used += bytes;
        Ok(())
    }

    /// For something else, of which there is nothing yet.
    pub(super) fn another(&self) -> Self {
        Self { store: Arc::clone(&self.store), taken: 0, used: 0 }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.store.release(self.taken);
    }
}

/// A task that sorts.
struct SortTask {
    job: JobId,
    task: u32,
    order: Order,
    format: Format,
    splitters: Vec<Splitter>,
    blocks: Vec<InputRef>,
}

impl Desk {
    async fn answer(self: &Arc<Self>, swarm: SwarmId, request: WorkRequest) -> Response {
        if let Some(refusal) = self.blocks.refusal_of(swarm) {
            return Response::Refused(refusal);
        }
        let result = match request {
            WorkRequest::End { job } => {
                self.end(job);
                return Response::Work(WorkResponse::Ended);
            }
            WorkRequest::Sample { order, format, blocks, count } => {
                self.sample(order, format, blocks, count).await
            }
            WorkRequest::Sort { job, task, order, format, splitters, blocks } => {
                let task = SortTask { job, task, order, format, splitters, blocks };
                self.sort_unless_ended(task).await
            }
            WorkRequest::Part { job, task, range, offset, limit } => {
                let limit = u64::from(limit.min(MAX_PART_BYTES));
                self.part(job, task, range, offset, limit).await
            }
            WorkRequest::Merge { job, range, order, format, runs, output, name } => {
                let merge = MergeRange { swarm, job, range, order, format, runs, output, name };
                self.merge_unless_ended(merge).await
            }
            WorkRequest::Describe { program } => {
                let found = self.programs.find(&program, self).await;
                found.map(|(version, found)| WorkResponse::Described { version, shape: found.shape() })
            }
            WorkRequest::Map { job, task, errand, input, ranges, cut } => {
                self.map(MapPart { job, task, errand, input, ranges, cut }).await
            }
            WorkRequest::Reduce { job, range, errand, runs, format, destination } => {
                self.reduce(ReduceRange { swarm, job, range, errand, runs, format, destination }).await
            }
        };
        Response::Work(result.unwrap_or_else(WorkResponse::Failed))
    }

    async fn sort_unless_ended(self: &Arc<Self>, task: SortTask) -> Result<WorkResponse, WorkError> {
        if !is_possible(task.order, &task.blocks)
            || task.splitters.len() >= MAX_RANGES
            || !task.splitters.iter().all(Splitter::is_sound)
        {
            return Err(WorkError::Limit);
        }
        let opened = self.open(task.job)?;
        let sorting = async {
            let _memory = self.memory(memory::of_sorting(&task.blocks, !task.order.is_whole())).await?;
            self.sort(task).await
        };
        opened.ended.run_until_cancelled(sorting).await.unwrap_or(Err(WorkError::Ended))
    }

    async fn merge_unless_ended(self: &Arc<Self>, merge: MergeRange) -> Result<WorkResponse, WorkError> {
        if !merge.order.key.is_sound() || merge.runs.len() > MAX_RUNS || merge.range as usize >= MAX_RANGES {
            return Err(WorkError::Limit);
        }
        let opened = self.open(merge.job)?;
        let merged = async {
            let _turn = self.merges.acquire().await.map_err(|_| WorkError::Ended)?;
            let _memory = self.memory(memory::of_merging(&merge.runs)).await?;
            merge.run(self).await
        };
        opened.ended.run_until_cancelled(merged).await.unwrap_or(Err(WorkError::Ended))
    }

    async fn sample(
        self: &Arc<Self>,
        order: Order,
        format: Format,
        blocks: Vec<InputRef>,
        count: u32,
    ) -> Result<WorkResponse, WorkError> {
        if !is_possible(order, &blocks) || count > MAX_BLOCK_SAMPLES {
            return Err(WorkError::Limit);
        }
        let _memory = self.memory(memory::of_blocks(&blocks)).await?;
        let (found, _) = self.fetch(&blocks).await?;
        let pick = move || -> Vec<Sample> {
            let picked = found
                .iter()
                .flat_map(|(position, bytes)| sample(order, format, *position, bytes, count as usize));
            picked.collect()
        };
        Ok(WorkResponse::Sampled(self.compute(pick).await?))
    }

    async fn sort(self: &Arc<Self>, task: SortTask) -> Result<WorkResponse, WorkError> {
        let (found, fetched) = self.fetch(&task.blocks).await?;
        let records: u64 = task.blocks.iter().map(|block| u64::from(block.info.records)).sum();
        let most =
            found.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() + records * RECORD_OVERHEAD_BYTES;
        let desk = Arc::clone(self);
        let SortTask { job, task, order, format, splitters, .. } = task;
        let sorted = self.compute(move || {
            let blocks: Vec<_> =
                found.iter().map(|(position, bytes)| InputBlock { position: *position, bytes }).collect();
            desk.write_run(most, |out| sort_into_run(order, format, &splitters, &blocks, out))
        });
        let (file, run) = sorted.await??;
        self.keep(job, task, file)?;
        let Run { parts, input, dropped } = run;
        Ok(WorkResponse::Sorted { parts, input, dropped, fetched })
    }

    /// Writes a run of at most `most` bytes to a file. Blocks.
    fn write_run(
        &self,
        most: u64,
        sort: impl FnOnce(&mut BufWriter<File>) -> io::Result<Run>,
    ) -> Result<(RunFile, Run), WorkError> {
        let (mut file, out) = self.new_run()?;
        file.room.take(most).map_err(disk)?;
        let mut out = BufWriter::with_capacity(WRITE_BYTES, out);
        let run = sort(&mut out).map_err(disk)?;
        out.flush().map_err(disk)?;
        file.parts.clone_from(&run.parts);
        Ok((file, run))
    }

    /// An empty run. Blocks.
    pub(super) fn new_run(&self) -> Result<(RunFile, File), WorkError> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.directory().map_err(disk)?.join(number.to_string());
        // From here on, whatever happens, the file and its room are given back.
        let file = RunFile { path, parts: Vec::new(), room: self.room() };
        let out = File::create(&file.path).map_err(disk)?;
        Ok((file, out))
    }

    /// None of the node's room for blocks yet.
    pub(super) fn room(&self) -> Room {
        Room { store: Arc::clone(self.blocks.store()), taken: 0, used: 0 }
    }

    fn directory(&self) -> io::Result<PathBuf> {
        let mut directory = lock(&self.directory);
        match &*directory {
            Some(path) => Ok(path.clone()),
            None => Ok(directory.insert(self.blocks.store().scratch(RUNS)?).clone()),
        }
    }

    async fn part(
        &self,
        job: JobId,
        task: u32,
        range: u32,
        offset: u64,
        limit: u64,
    ) -> Result<WorkResponse, WorkError> {
        let run = {
            let mut jobs = lock(&self.jobs);
            let job = jobs.get_mut(&job).ok_or(WorkError::NoRun)?;
            job.used = Clock.now();
            Arc::clone(job.runs.get(&task).ok_or(WorkError::NoRun)?)
        };
        let range = range as usize;
        let part = run.parts.get(range).ok_or(WorkError::NoRun)?;
        // Behind its end there is nothing.
        let offset = offset.min(part.bytes);
        let start = run.parts[..range].iter().map(|part| part.bytes).sum::<u64>() + offset;
        let length = (part.bytes - offset).min(limit);
        let read = move || -> io::Result<Bytes> {
            let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            let mut file = File::open(&run.path)?;
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut bytes)?;
            Ok(bytes.into())
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(bytes)) => Ok(WorkResponse::Part(bytes)),
            Ok(Err(error)) => Err(WorkError::Disk(error.to_string())),
            Err(_) => Err(WorkError::Ended),
        }
    }

    /// The bytes of blocks with their positions, from this node or, where it has none, from others; and how many
    /// came from others.
    pub(super) async fn fetch(&self, wanted: &[InputRef]) -> Result<(Vec<(u32, Bytes)>, u32), WorkError> {
        let blocks = Arc::clone(&self.blocks);
        let local: Vec<InputRef> = wanted.to_vec();
        let read = move || -> Vec<Option<Bytes>> {
            let read = |wanted: &InputRef| {
                let (checksum, bytes) = blocks.get(wanted.block).ok()?;
                (checksum == wanted.info.checksum).then_some(bytes)
            };
            local.iter().map(read).collect()
        };
        let local = tokio::task::spawn_blocking(read).await.map_err(|_| WorkError::Ended)?;
        let mut courier: Option<Arc<Courier<NodeRpc>>> = None;
        let (mut found, mut fetched) = (Vec::with_capacity(wanted.len()), 0);
        for (wanted, local) in wanted.iter().zip(local) {
            let bytes = if let Some(bytes) = local {
                bytes
            } else {
                let missing = |_: DatasetError| WorkError::BlockMissing { number: wanted.block.number };
                let courier = match &mut courier {
                    Some(courier) => courier,
                    none => none.insert(Courier::new(self.client.clone()).await.map_err(missing)?),
                };
                fetched += 1;
                courier.get(wanted.block, wanted.info).await.map_err(missing)?
            };
            found.push((wanted.position, bytes));
        }
        Ok((found, fetched))
    }

    /// Waits until there is so much memory for a task.
    pub(super) async fn memory(&self, bytes: u64) -> Result<Taken, WorkError> {
        self.memory.take(bytes).await.ok_or(WorkError::Ended)
    }

    /// Lets a thread compute, when a processor is free.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        let processor = Arc::clone(&self.processors).acquire_owned().await.map_err(|_| WorkError::Ended)?;
        let work = move || {
            let result = work();
            // Not before it is done, whether somebody still waits for it or not.
            drop(processor);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| WorkError::Ended)
    }

    /// Takes part in a job.
    pub(super) fn open(&self, job: JobId) -> Result<Opened, WorkError> {
        let mut jobs = lock(&self.jobs);
        if jobs.len() >= MAX_JOBS && !jobs.contains_key(&job) {
            return Err(WorkError::NoRoom);
        }
        let now = Clock.now();
        let job = jobs.entry(job).or_insert_with(|| Job {
            used: now,
            ended: CancellationToken::new(),
            tasks: Arc::default(),
            runs: BTreeMap::new(),
        });
        job.used = now;
        Ok(Opened { ended: job.ended.clone(), _task: Arc::clone(&job.tasks) })
    }

    pub(super) fn keep(&self, job: JobId, task: u32, file: RunFile) -> Result<(), WorkError> {
        let mut jobs = lock(&self.jobs);
        let job = jobs.get_mut(&job).ok_or(WorkError::Ended)?;
        job.used = Clock.now();
        if job.runs.len() >= MAX_RUNS {
            return Err(WorkError::Limit);
        }
        let before = job.runs.insert(task, Arc::new(file));
        drop(jobs);
        drop(before);
        Ok(())
    }

    fn end(&self, job: JobId) {
        let ended = lock(&self.jobs).remove(&job);
        if let Some(job) = ended {
            job.ended.cancel();
        }
    }

    fn expire(&self, now: Timestamp) {
        let is_over = |job: &Job| now.since(job.used) >= JOB_TTL && Arc::strong_count(&job.tasks) == 1;
        let over: Vec<JobId> =
            lock(&self.jobs).iter().filter(|(_, job)| is_over(job)).map(|(id, _)| *id).collect();
        for job in over {
            self.end(job);
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn disk(error: io::Error) -> WorkError {
    match error.kind() {
        io::ErrorKind::StorageFull => WorkError::NoRoom,
        _ => WorkError::Disk(error.to_string()),
    }
}

/// Whether blocks and order keep the limits.
fn is_possible(order: Order, blocks: &[InputRef]) -> bool {
    order.key.is_sound()
        && blocks.len() <= MAX_TASK_BLOCKS
        && blocks.iter().all(|block| block.info.length as usize <= MAX_BLOCK_BYTES)
}

/// Nothing guarded here is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
