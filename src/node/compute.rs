//! A node's part in jobs that run programs: it maps blocks or keys into a run, and reduces a range of all runs.
//!
//! What is pure of it is in [`compute`](crate::compute). A program runs in a thread that computes, when a processor is
//! free; between batches that thread looks whether anybody still waits for what it makes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::memory;
use super::shuffle::{self, Fetching, Filler};
use super::work::{Desk, Room, RunFile, WRITE_BYTES};
use crate::compute::{
    Executable, MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MapTask, Mapped, Partitioning, ProgramError, Ranges,
    Spills, TABLE_BYTES, TaskError, reduce,
};
use crate::dataset::{Format, MAX_BLOCK_BYTES};
use crate::id::{JobId, PartitionId, SwarmId};
use crate::sort::Fingerprint;
use crate::state_machine::MAX_SCAN_BYTES;
use crate::wire::{
    Cut, Destination, Errand, InputRef, MAX_RANGES, MAX_RUNS, MAX_TASK_BLOCKS, MAX_TOLD_RANGE_BYTES,
    MapInput, ProgramRef, RunRef, Site, WorkError, WorkResponse,
};

/// Pages of keys that wait to be mapped.
const WAITING_PAGES: usize = 1;
/// Bytes of pages of keys: one is mapped, some wait, one has come; each as entries and as records, and its last entry
/// may be as long as all others.
const PAGES_BYTES: u64 = (WAITING_PAGES as u64 + 2) * 2 * 2 * MAX_SCAN_BYTES as u64;

/// A part of the input to map.
pub(super) struct MapPart {
    pub(super) job: JobId,
    pub(super) task: u32,
    pub(super) errand: Errand,
    pub(super) input: MapInput,
    pub(super) ranges: u32,
    pub(super) cut: Cut,
}

/// A range to reduce.
pub(super) struct ReduceRange {
    pub(super) swarm: SwarmId,
    pub(super) job: JobId,
    pub(super) range: u32,
    pub(super) errand: Errand,
    pub(super) runs: Vec<RunRef>,
    pub(super) format: Format,
    pub(super) destination: Destination,
}

/// A task that maps into a file.
type FileTask<'a> = MapTask<'a, BufWriter<Metered>, SpillFiles>;

/// A program for one attempt, and what it may use.
struct Attempt {
    executable: Arc<dyn Executable>,
    errand: Errand,
    stop: CancellationToken,
}

impl Attempt {
    /// Bytes of memory that it may grow to by itself.
    fn own_memory(&self) -> u64 {
        match self.errand.program {
            ProgramRef::Shipped { .. } => self.errand.limits.memory_bytes,
            // Nobody knows.
            ProgramRef::Named { .. } => 0,
        }
    }

    fn start(&self) -> Result<Box<dyn crate::compute::Instance>, WorkError> {
        let arguments: Vec<Vec<u8>> =
            self.errand.arguments.iter().map(|argument| argument.to_vec()).collect();
        self.executable
            .start(&arguments, &self.errand.limits)
            .map_err(|error| WorkError::Program { site: Site::Start, error })
    }

    /// Asked between batches: whether to go on, since the thread began.
    fn go_on(&self) -> impl Fn() -> Result<(), TaskError> {
        let began = Clock.now();
        let limit_ms = self.errand.limits.time_ms;
        move || {
            if self.stop.is_cancelled() {
                return Err(TaskError::Ended);
            }
            if Clock.now().since(began) > Duration::from_millis(limit_ms) {
                return Err(ProgramError::OutOfTime { limit_ms }.into());
            }
            Ok(())
        }
    }
}

impl Desk {
    /// Whether arguments keep the limits.
    async fn attempt(&self, errand: Errand, stop: CancellationToken) -> Result<Attempt, WorkError> {
        let bytes: usize = errand.arguments.iter().map(|argument| argument.len()).sum();
        let is_possible = errand.arguments.len() <= MAX_ARGUMENTS
            && bytes <= MAX_ARGUMENT_BYTES
            && errand.limits.are_possible();
        if !is_possible {
            return Err(WorkError::Limit);
        }
        let (_, executable) = self.programs.find(&errand.program, self).await?;
        Ok(Attempt { executable, errand, stop })
    }

    pub(super) async fn map(self: &Arc<Self>, map: MapPart) -> Result<WorkResponse, WorkError> {
        let opened = self.open(map.job)?;
        // Cancelled when nobody waits for this any more.
        let stop = opened.ended.child_token();
        let _guard = stop.clone().drop_guard();
        let attempt = self.attempt(map.errand, stop).await?;
        if map.ranges == 0 || map.ranges as usize > MAX_RANGES {
            return Err(WorkError::Limit);
        }
        let by = match map.cut {
            Cut::Keys => Partitioning::Key,
            Cut::Blocks(blocks) => Partitioning::Position { blocks },
        };
        let ranges = Ranges { count: map.ranges, by };
        let mapping = async {
            let input_bytes = match &map.input {
                MapInput::Blocks { blocks, .. } => memory::of_blocks(blocks),
                MapInput::Keys { .. } => PAGES_BYTES,
            };
            let _memory = self.memory(memory::of_mapping(input_bytes, attempt.own_memory())).await?;
            match map.input {
                MapInput::Blocks { blocks, format } => self.map_blocks(attempt, ranges, blocks, format).await,
                MapInput::Keys { partition, prefix } => {
                    self.map_keys(attempt, ranges, partition, prefix).await
                }
            }
        };
        let mapped = opened.ended.run_until_cancelled(mapping).await.unwrap_or(Err(WorkError::Ended));
        let (file, Mapped { run, records, pairs: made }, fetched) = mapped?;
        self.keep(map.job, map.task, file)?;
        Ok(WorkResponse::Mapped { parts: run.parts, pairs: run.pairs, records, made, fetched })
    }

    async fn map_blocks(
        self: &Arc<Self>,
        attempt: Attempt,
        ranges: Ranges,
        blocks: Vec<InputRef>,
        format: Format,
    ) -> Result<(RunFile, Mapped, u32), WorkError> {
        let is_possible = blocks.len() <= MAX_TASK_BLOCKS
            && blocks.is_sorted_by_key(|block| block.position)
            && blocks.iter().all(|block| block.info.length as usize <= MAX_BLOCK_BYTES);
        if !is_possible {
            return Err(WorkError::Limit);
        }
        let (found, fetched) = self.fetch(&blocks).await?;
        let desk = Arc::clone(self);
        let map = move || {
            let go_on = attempt.go_on();
            let mut task = desk.begin_map(&attempt, ranges, &go_on)?;
            let mut site = Site::Start;
            for (block, (position, bytes)) in blocks.iter().zip(&found) {
                site = Site::Block(block.info.number);
                task.0.block(*position, format.records(bytes)).map_err(|error| failed(error, site))?;
            }
            finish(task, site)
        };
        let (file, mapped) = self.compute(map).await??;
        Ok((file, mapped, fetched))
    }

    async fn map_keys(
        self: &Arc<Self>,
        attempt: Attempt,
        ranges: Ranges,
        partition: PartitionId,
        prefix: Vec<u8>,
    ) -> Result<(RunFile, Mapped, u32), WorkError> {
        let (sender, mut pages) = mpsc::channel(WAITING_PAGES);
        let desk = Arc::clone(self);
        let map = move || {
            let go_on = attempt.go_on();
            let mut task = desk.begin_map(&attempt, ranges, &go_on)?;
            let site = Site::Partition(partition);
            while let Some(page) = pages.blocking_recv() {
                let page: Vec<Vec<u8>> = page;
                let records = page.iter().map(Vec::as_slice);
                task.0.block(partition.0, records).map_err(|error| failed(error, site))?;
            }
            finish(task, site)
        };
        let mapping = self.compute(map);
        let reading = async {
            let mut after = Vec::new();
            loop {
                let page = self.client.page_of(partition, prefix.clone(), after).await;
                let (entries, more) =
                    page.map_err(|error| WorkError::NotRead { partition, reason: error.to_string() })?;
                after = entries.last().map(|(key, _)| key.clone()).unwrap_or_default();
                let records = entries.iter().map(|(key, entry)| [key, &b"\t"[..], &entry.value].concat());
                // Nobody takes it if the program has failed.
                if sender.send(records.collect()).await.is_err() || !more {
                    drop(sender);
                    return Ok(());
                }
            }
        };
        let (mapped, read) = tokio::join!(mapping, reading);
        read?;
        let (file, mapped) = mapped??;
        Ok((file, mapped, 0))
    }

    /// A run file, and what maps into it. Blocks.
    fn begin_map<'a>(
        &self,
        attempt: &Attempt,
        ranges: Ranges,
        go_on: &'a dyn Fn() -> Result<(), TaskError>,
    ) -> Result<(FileTask<'a>, RunFile), WorkError> {
        let instance = attempt.start()?;
        let (file, out) = self.new_run()?;
        let out = Metered { file: out, room: self.room() };
        let spills = SpillFiles { path: file.path().with_extension("spill"), room: self.room() };
        let about = (attempt.executable.shape(), &attempt.errand.limits);
        let out = BufWriter::with_capacity(WRITE_BYTES, out);
        Ok((MapTask::new(instance, about, ranges, TABLE_BYTES, go_on, (out, spills)), file))
    }

    pub(super) async fn reduce(self: &Arc<Self>, range: ReduceRange) -> Result<WorkResponse, WorkError> {
        if range.runs.len() > MAX_RUNS || range.range as usize >= MAX_RANGES {
            return Err(WorkError::Limit);
        }
        let opened = self.open(range.job)?;
        // Cancelled when nobody waits for this any more.
        let stop = opened.ended.child_token();
        let _guard = stop.clone().drop_guard();
        let attempt = self.attempt(range.errand.clone(), stop).await?;
        let reducing = async {
            let _turn = self.merges.acquire().await.map_err(|_| WorkError::Ended)?;
            let _memory = self.memory(memory::of_reducing(&range.runs, attempt.own_memory())).await?;
            self.reduce_range(range, attempt).await
        };
        opened.ended.run_until_cancelled(reducing).await.unwrap_or(Err(WorkError::Ended))
    }

    async fn reduce_range(
        self: &Arc<Self>,
        range: ReduceRange,
        attempt: Attempt,
    ) -> Result<WorkResponse, WorkError> {
        let ReduceRange { swarm, job, range, runs, format, destination, .. } = range;
        let mut fetching = Fetching::begin(self, swarm, job, range, &runs);
        let sources = std::mem::take(&mut fetching.sources);
        let tasks: Vec<u32> = runs.iter().map(|run| run.task).collect();
        // The same for both destinations: what takes a record, and what is reduced.
        let reducing = move |take: &mut dyn FnMut(&[u8]) -> Result<(), TaskError>| {
            let go_on = attempt.go_on();
            let about = (attempt.executable.shape(), &attempt.errand.limits);
            let (instance, mut records, mut encoded) = (attempt.start()?, 0u64, Vec::new());
            let pairs = reduce(instance, about, sources, &go_on, &mut |record| {
                check_record(format, record, &mut encoded)?;
                records += 1;
                take(record)
            });
            let pairs = pairs.map_err(|error| match error {
                TaskError::Source { at } => WorkError::RunLost { task: tasks[at] },
                error => failed(error, Site::Range(range)),
            })?;
            Ok::<(Fingerprint, u64), WorkError>((pairs, records))
        };
        let (blocks, told, (pairs, records)) = match destination {
            Destination::Dataset { id, name, first } => {
                let (mut filler, blocks) = Filler::new(format);
                let reducing = self.compute(move || {
                    let reduced = reducing(&mut |record| filler.push(record).map_err(|_| TaskError::Ended))?;
                    filler.finish().map_err(|_| WorkError::Ended)?;
                    Ok::<_, WorkError>(reduced)
                });
                let writing = shuffle::write(self, (id, &name), first, blocks);
                let (reduced, written) = tokio::join!(reducing, writing);
                // Why it could not be written is the reason for why it could not be reduced.
                (written?, Bytes::new(), reduced??)
            }
            Destination::Answer => {
                let reducing = self.compute(move || {
                    let mut told = Vec::new();
                    let mut too_long = false;
                    let reduced = reducing(&mut |record| {
                        too_long = told.len() + format.encoded_len(record) > MAX_TOLD_RANGE_BYTES;
                        format.append(&mut told, record);
                        if too_long { Err(TaskError::Ended) } else { Ok(()) }
                    });
                    if too_long { Err(WorkError::TooLong) } else { Ok((told, reduced?)) }
                });
                let (told, reduced) = reducing.await??;
                (Vec::new(), told.into(), reduced)
            }
        };
        Ok(WorkResponse::Reduced { blocks, told, pairs, records, moved: fetching.moved() })
    }
}

/// Ends a task that maps.
fn finish((task, mut file): (FileTask<'_>, RunFile), site: Site) -> Result<(RunFile, Mapped), WorkError> {
    let (mapped, out) = task.finish().map_err(|error| failed(error, site))?;
    let out = out.into_inner().map_err(|error| failed(error.into_error().into(), site))?;
    file.complete(mapped.run.parts.clone(), out.room);
    Ok((file, mapped))
}

/// Whether a record is one in the output's format.
fn check_record(format: Format, record: &[u8], encoded: &mut Vec<u8>) -> Result<(), ProgramError> {
    encoded.clear();
    format.append(encoded, record);
    if encoded.len() > MAX_BLOCK_BYTES {
        return Err(ProgramError::bad_output(format!("a record is longer than {MAX_BLOCK_BYTES} bytes")));
    }
    if !format.records(encoded).eq([record]) {
        return Err(ProgramError::bad_output(format!(
            "a record that cannot be written in the format {format}"
        )));
    }
    Ok(())
}

fn failed(error: TaskError, site: Site) -> WorkError {
    match error {
        TaskError::Program(error) => WorkError::Program { site, error },
        TaskError::Io(error) if error.kind() == io::ErrorKind::StorageFull => WorkError::NoRoom,
        TaskError::Io(error) => WorkError::Disk(error.to_string()),
        TaskError::Source { .. } | TaskError::NoRun { .. } => WorkError::Disorder,
        TaskError::Ended => WorkError::Ended,
    }
}

/// A file whose bytes are counted as blocks are.
struct Metered {
    file: File,
    room: Room,
}

impl Write for Metered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room.take(bytes.len() as u64)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Read for Metered {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.read(bytes)
    }
}

impl Seek for Metered {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Files without a name: they go with whoever has them open.
struct SpillFiles {
    path: PathBuf,
    room: Room,
}

impl Spills for SpillFiles {
    type File = Metered;

    fn create(&mut self) -> io::Result<Metered> {
        let file = File::options().read(true).write(true).create_new(true).open(&self.path)?;
        fs::remove_file(&self.path)?;
        Ok(Metered { file, room: self.room.another() })
    }
}
