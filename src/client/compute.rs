//! Running a program over a dataset, or over keys: the part of the process that wants it run.
//!
//! **Guarantee.** Every record of the input is in exactly one task, and every task has exactly one result, however
//! often it was tried. The output is there only if it was checked: as many records were mapped as the input has, and
//! the pairs that were reduced are those that were made, by number and checksum. Until then nobody sees anything of
//! it. A node that dies costs what it was doing and the runs that it kept, which are made again elsewhere.
//!
//! **Method.** It is a [`job`](super::job): tasks map some blocks into a run, on a node that has them; others fetch a
//! range of all runs and reduce it. What a program is, and how pairs get from one half to the other, is said in
//! [`compute`](crate::compute).

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde_bytes::ByteBuf;

use super::dataset::{Courier, Placement, give_up, seal};
use super::job::{
    self, Attempt, Failure, GivenUp, Made, Next, Part, Parts, Plan, PlanOf, Progress, REST, Sizes,
};
use super::{Client, DatasetError, Error};
use crate::compute::{
    Limits, MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MAX_MEMORY_BYTES, MAX_TIME_MS, ProgramError, ProgramName,
    ProgramNameError, Shape,
};
use crate::dataset::{BlockInfo, DatasetSummary, Format, MAX_BLOCKS, Manifest};
use crate::id::{DatasetId, JobId, NodeId, PartitionId};
use crate::sort::{Fingerprint, RunPart};
use crate::state_machine::MAX_KEY_BYTES;
use crate::wire::{
    Cut, Destination, Errand, MAX_RANGES, MapInput, ProgramRef, RANGE_BLOCKS, Rpc, WorkError, WorkRequest,
    WorkResponse, hexadecimal,
};

/// Bytes of the input for each range, about: it is one task.
const RANGE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of the input that one task maps, about.
const TASK_BYTES: u64 = 16 * 1024 * 1024;
/// Records do not need memory beside their blocks while they are mapped.
const TASK_TABLE_BYTES: u64 = u64::MAX;
/// Most ranges of a result that is told: with [`MAX_TOLD_RANGE_BYTES`] of each it fits into memory.
const MAX_TOLD_RANGES: usize = 16;
/// Ranges before those of the next attempt, in the numbers of blocks.
const RANGES_PER_ATTEMPT: u32 = 1024;
/// How often all members are asked whether they have the program, before nobody can be reached.
const MAX_DESCRIBE_ROUNDS: u32 = 8;

const _: () = assert!(RANGES_PER_ATTEMPT as usize == MAX_RANGES);

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStage {
    /// Mapping the input.
    Mapping,
    /// Reducing ranges and writing them.
    Reducing,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobProgress {
    /// What it is doing.
    pub stage: JobStage,
    /// Bytes of the input that are through this stage. Of keys nobody knows how many there are: 0 of 0.
    pub bytes: u64,
    /// Of so many.
    pub of: u64,
    /// Tasks that have mapped their part of the input, and how many there are.
    pub tasks: (usize, usize),
    /// Of those that have: how many ran on a node that has their part.
    pub local: usize,
    /// Ranges that are reduced, and how many there are. Those in which there is nothing are never reduced.
    pub ranges: (usize, usize),
    /// Attempts that came to nothing, and runs that were lost.
    pub again: u64,
    /// Attempts that were begun beside another one, because that took long.
    pub second_attempts: u64,
}

/// What a job has made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobSummary {
    /// The output; `None`: it was [collected](Job::collect).
    pub output: Option<DatasetSummary>,
    /// Records of the input.
    pub input_records: u64,
    /// Records of the output.
    pub records: u64,
    /// Pairs that `map` made.
    pub pairs: u64,
    /// Pairs that were left of them when they were combined, and went to ranges.
    pub combined_pairs: u64,
    /// Tasks that mapped, and ranges that there were.
    pub tasks: (usize, usize),
    /// Tasks that ran on a node that has their part of the input.
    pub local: usize,
    /// Attempts that came to nothing, and runs that were lost.
    pub again: u64,
    /// Attempts that were begun beside another one, because that took long.
    pub second_attempts: u64,
    /// Blocks of the input that were mapped on a node that did not have them.
    pub fetched_blocks: u64,
    /// Bytes of runs that went from one node to another.
    pub moved_bytes: u64,
    /// Members that do not have the program, and did not take part.
    pub without: Vec<NodeId>,
}

/// Why a job was not done. Unless it says otherwise there is no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The program's name is none. Nothing was done.
    #[error(transparent)]
    Name(#[from] ProgramNameError),
    /// No input was named. Nothing was done.
    #[error("no input was named")]
    NoInput,
    /// No output was named. Nothing was done.
    #[error("no output was named")]
    NoOutput,
    /// The arguments, or the prefix of keys, are too long. Nothing was done.
    #[error(
        "{0}: at most {MAX_ARGUMENTS} arguments of {MAX_ARGUMENT_BYTES} bytes together, and prefixes of {MAX_KEY_BYTES} bytes"
    )]
    Limit(&'static str),
    /// A task is to have more than a node grants. Nothing was done.
    #[error("a task can have at most {MAX_MEMORY_BYTES} bytes of memory and {MAX_TIME_MS} ms of time")]
    Limits,
    /// The input or the output.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// No member can be reached.
    #[error("no member can be reached")]
    NoNode,
    /// None of the members that can be reached has the program.
    #[error("no member has the program `{program}`: not {}", shown(nodes))]
    NoProgram {
        /// Which.
        program: String,
        /// Who said so.
        nodes: Vec<NodeId>,
    },
    /// The program is none: a component that cannot be run. Nothing was done.
    #[error(transparent)]
    Program(ProgramError),
    /// Members have different programs of that name. Nothing was done.
    #[error(
        "members have different versions of `{program}`: {one} is in one and {other} in another; say which"
    )]
    Versions {
        /// Which.
        program: String,
        /// What is the newest in one of them.
        one: u32,
        /// And in another.
        other: u32,
    },
    /// A task failed on every node that it was given to.
    #[error("a task failed {attempts} times, the last time {error}")]
    Task {
        /// How often it was tried.
        attempts: u32,
        /// Why it failed last.
        error: WorkError,
    },
    /// The result is wrong: a node or its memory is faulty, or the program does not always make the same of the same.
    /// It was thrown away.
    #[error("the result is wrong and was thrown away: {0}")]
    Wrong(&'static str),
}

fn shown(nodes: &[NodeId]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("..{}", node.short())).collect();
    nodes.join(", ")
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        Self::Dataset(error.into())
    }
}

impl<R: Rpc> Client<R> {
    /// Begins to describe a job that runs a program, by its name (`word-count`) or name and version
    /// (`word-count@1`), on the members that have it. Ready-made ones are in [`ready`](crate::compute::ready).
    pub fn job(&self, program: &str) -> Job<R> {
        let named = |ProgramName { name, version }| ProgramRef::Named { name, version };
        self.new_job(program.parse().map(named))
    }

    /// As [`Client::job`], for a program that was [shipped](Client::ship).
    pub fn job_of(&self, program: ProgramRef) -> Job<R> {
        self.new_job(Ok(program))
    }

    fn new_job(&self, program: Result<ProgramRef, ProgramNameError>) -> Job<R> {
        Job {
            client: self.clone(),
            program,
            arguments: Vec::new(),
            limits: Limits::default(),
            input: None,
            output: None,
            format: None,
            id: JobId(rand::random()),
            output_id: DatasetId(rand::random()),
        }
    }
}

/// What is computed over.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Input {
    Dataset(Vec<u8>),
    Keys(Vec<u8>),
}

/// A job that is under way, or was not begun yet; made by [`Client::job`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use roundtable::{dataset::Format, node::Node};
/// # let machine = tempfile::tempdir()?;
/// # let node = Node::builder().port(0).runtime_directory(machine.path().join("run")).start().await?;
/// # node.ready().await;
/// let client = node.client();
/// let mut text = client.dataset("text").create(Format::Lines).await?;
/// text.write(b"a rose is a rose\n").await?;
/// text.finish().await?;
/// client.job("word-count").input("text").output("counts").run(|_| {}).await?;
/// let (most, _) = client.job("top").argument("1").input("counts").collect(|_| {}).await?;
/// assert_eq!(most, [b"a\t2"]);
/// # Ok(())
/// # }
/// ```
///
/// To break it off, drop the future of [`run`](Self::run) and call [`cancel`](Self::cancel). If neither is done, the
/// nodes throw away what they keep for it after some minutes.
#[must_use]
pub struct Job<R> {
    client: Client<R>,
    program: Result<ProgramRef, ProgramNameError>,
    arguments: Vec<ByteBuf>,
    limits: Limits,
    input: Option<Input>,
    output: Option<Vec<u8>>,
    format: Option<Format>,
    id: JobId,
    output_id: DatasetId,
}

impl<R: Rpc> Job<R> {
    /// One more argument for the program: at most [`MAX_ARGUMENTS`], of [`MAX_ARGUMENT_BYTES`] together.
    pub fn argument(mut self, argument: impl Into<Vec<u8>>) -> Self {
        self.arguments.push(ByteBuf::from(argument));
        self
    }

    /// Computes over a dataset.
    pub fn input(mut self, dataset: impl Into<Vec<u8>>) -> Self {
        self.input = Some(Input::Dataset(dataset.into()));
        self
    }

    /// Computes over all keys that begin with a prefix (empty: all). A record is the key, a tab, and the value. As with
    /// [`Client::scan`] it is not one moment's picture, and what a task that is tried again sees is what is there then.
    pub fn keys(mut self, prefix: impl Into<Vec<u8>>) -> Self {
        self.input = Some(Input::Keys(prefix.into()));
        self
    }

    /// The dataset that the output becomes, for [`run`](Self::run).
    pub fn output(mut self, dataset: impl Into<Vec<u8>>) -> Self {
        self.output = Some(dataset.into());
        self
    }

    /// What the output's records look like. Default: as those of the input, if they are not reduced; lines instead of
    /// CSV and for keys.
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// What each attempt at a task may use. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs. Returns when the output is there, checked and whole. `progress` hears of every task that ended.
    ///
    /// # Errors
    /// There is no output then, except if the error is [`DatasetError::Store`] with [`Error::Unknown`]: then it may
    /// be there, checked and whole.
    pub async fn run(&self, progress: impl FnMut(JobProgress) + Send) -> Result<JobSummary, JobError> {
        let result = self.try_run(progress).await;
        let is_unknown = matches!(result, Err(JobError::Dataset(DatasetError::Store(Error::Unknown))));
        if result.is_err() && !is_unknown {
            self.cancel().await;
        } else {
            job::end(&self.client, self.id).await;
        }
        result
    }

    /// Runs, and returns the records of the result, at most
    /// [`MAX_TOLD_RANGE_BYTES`](crate::wire::MAX_TOLD_RANGE_BYTES) of each range: what is more needs an [output](Self::output). In the order of the input, or of ranges and keys.
    ///
    /// # Errors
    /// Nothing is left of it then.
    pub async fn collect(
        &self,
        progress: impl FnMut(JobProgress) + Send,
    ) -> Result<(Vec<Vec<u8>>, JobSummary), JobError> {
        let result = self.try_collect(progress).await;
        job::end(&self.client, self.id).await;
        result
    }

    /// Tells the nodes that nothing of it is needed any more.
    pub async fn cancel(&self) {
        job::end(&self.client, self.id).await;
        give_up(&self.client, self.output_id).await;
    }

    async fn try_run(&self, progress: impl FnMut(JobProgress) + Send) -> Result<JobSummary, JobError> {
        let name = self.output.clone().ok_or(JobError::NoOutput)?;
        if self.client.dataset(name.clone()).info().await?.is_some() {
            return Err(DatasetError::Exists.into());
        }
        let (ranges, mut summary, format) = self.carry_out(Some(&name), progress).await?;
        let mut blocks = Vec::new();
        for range in ranges {
            let records: u64 = range.blocks.iter().map(|block| u64::from(block.records)).sum();
            if records != range.records {
                return Err(JobError::Wrong("blocks do not hold what was made"));
            }
            blocks.extend(range.blocks);
        }
        let manifest = Manifest { id: self.output_id, format, blocks };
        if manifest.blocks.len() > MAX_BLOCKS || !manifest.is_sound() {
            return Err(DatasetError::TooLong.into());
        }
        summary.output = Some(manifest.summary());
        seal(&self.client, &name, manifest).await?;
        Ok(summary)
    }

    async fn try_collect(
        &self,
        progress: impl FnMut(JobProgress) + Send,
    ) -> Result<(Vec<Vec<u8>>, JobSummary), JobError> {
        let (ranges, summary, format) = self.carry_out(None, progress).await?;
        let records = ranges.iter().flat_map(|range| format.records(&range.told).map(<[u8]>::to_vec));
        let records: Vec<Vec<u8>> = records.collect();
        if records.len() as u64 != summary.records {
            return Err(JobError::Wrong("nodes did not tell what was made"));
        }
        Ok((records, summary))
    }

    /// All tasks; what came of each range, in order.
    async fn carry_out(
        &self,
        output: Option<&[u8]>,
        mut progress: impl FnMut(JobProgress) + Send,
    ) -> Result<(Vec<Reduced>, JobSummary, Format), JobError> {
        let named = self.program.clone()?;
        self.check()?;
        let source = self.source().await?;
        let courier = Courier::new(self.client.clone()).await?;
        let placement = courier.placement(false).await?;
        let Described { program, shape, without } = self.describe(&courier, named).await?;
        let of = source.bytes();
        let most = if output.is_some() { MAX_RANGES } else { MAX_TOLD_RANGES };
        let ranges = usize::try_from(of.div_ceil(RANGE_BYTES)).unwrap_or(most);
        let ranges = ranges.max(placement.members().len()).clamp(1, most);
        let format = self.format.unwrap_or_else(|| source.output_format(shape));
        let work = Computing {
            job: self.id,
            errand: Errand { program, arguments: self.arguments.clone(), limits: self.limits },
            cut: if shape.reduce { Cut::Keys } else { Cut::Blocks(source.positions()) },
            ranges: u32::try_from(ranges).unwrap_or(u32::MAX),
            format,
            output: output.map(|name| (self.output_id, name.to_vec())),
        };
        let expected = source.records();
        let parts = source.parts(&self.client, &placement).await?;
        let mut plan = Plan::new(parts, ranges).making_of_nothing(shape.reduce);
        let done = job::carry_out(&self.client, &courier, &work, &mut plan, without.clone(), |now| {
            progress(told(now, of));
        });
        done.await.map_err(|failure| self.error(failure))?;
        let mut summary = summary(&plan, expected)?;
        summary.without = without.into_iter().collect();
        Ok((plan.into_ranges(), summary, format))
    }

    fn check(&self) -> Result<(), JobError> {
        let bytes: usize = self.arguments.iter().map(|argument| argument.len()).sum();
        if self.arguments.len() > MAX_ARGUMENTS || bytes > MAX_ARGUMENT_BYTES {
            return Err(JobError::Limit("the arguments are too long"));
        }
        if !self.limits.are_possible() {
            return Err(JobError::Limits);
        }
        match &self.input {
            Some(Input::Keys(prefix)) if prefix.len() > MAX_KEY_BYTES => {
                Err(JobError::Limit("the prefix is too long"))
            }
            _ => Ok(()),
        }
    }

    async fn source(&self) -> Result<Source, JobError> {
        match self.input.clone().ok_or(JobError::NoInput)? {
            Input::Dataset(name) => {
                let manifest = self.client.dataset(name).manifest().await?;
                Ok(Source::Dataset(manifest.ok_or(DatasetError::NotFound)?))
            }
            Input::Keys(prefix) => {
                let partitions = self.client.view().await?.partitions;
                Ok(Source::Keys { prefix, partitions })
            }
        }
    }

    /// Asks the members for the program.
    async fn describe(&self, courier: &Courier<R>, named: ProgramRef) -> Result<Described, JobError> {
        for round in 0..MAX_DESCRIBE_ROUNDS {
            let placement = courier.placement(round > 0).await?;
            let linked = self.client.shared.router.rpc.linked();
            let asked = placement.members().iter().filter(|node| linked.contains(node)).map(|node| {
                let (placement, request) = (&placement, WorkRequest::Describe { program: named.clone() });
                async move { (*node, job::ask(&self.client, placement, *node, request).await) }
            });
            let mut found: Option<(u32, Shape)> = None;
            let mut without = BTreeSet::new();
            for (node, answer) in futures::future::join_all(asked).await {
                match answer {
                    Ok(WorkResponse::Described { version, shape }) => match found {
                        Some((one, other_shape)) if one != version || shape != other_shape => {
                            let program = named_as(&named);
                            return Err(JobError::Versions { program, one, other: version });
                        }
                        _ => found = Some((version, shape)),
                    },
                    Err(WorkError::NoProgram) => drop(without.insert(node)),
                    Err(WorkError::Program { error, .. }) => return Err(JobError::Program(error)),
                    // It may be there for its tasks.
                    Ok(_) | Err(_) => {}
                }
            }
            if let Some((version, shape)) = found {
                let program = match named {
                    ProgramRef::Named { name, .. } => ProgramRef::Named { name, version: Some(version) },
                    shipped @ ProgramRef::Shipped { .. } => shipped,
                };
                return Ok(Described { program, shape, without });
            }
            if !without.is_empty() {
                let nodes = without.into_iter().collect();
                return Err(JobError::NoProgram { program: named_as(&named), nodes });
            }
            tokio::time::sleep(REST).await;
        }
        Err(JobError::NoNode)
    }

    fn error(&self, failure: Failure) -> JobError {
        match failure {
            Failure::Dataset(error) => error.into(),
            Failure::NoNode => JobError::NoNode,
            Failure::NoProgram(nodes) => {
                let program = self.program.as_ref().map(named_as).unwrap_or_default();
                JobError::NoProgram { program, nodes }
            }
            Failure::GivenUp(GivenUp { attempts, error }) => JobError::Task { attempts, error },
        }
    }
}

/// What members say of the program.
struct Described {
    /// With its version.
    program: ProgramRef,
    shape: Shape,
    /// Members that do not have it.
    without: BTreeSet<NodeId>,
}

fn named_as(program: &ProgramRef) -> String {
    match program {
        ProgramRef::Named { name, version } => {
            ProgramName { name: name.clone(), version: *version }.to_string()
        }
        ProgramRef::Shipped { sha256 } => hexadecimal(sha256),
    }
}

/// The input as it was found.
enum Source {
    Dataset(Manifest),
    Keys { prefix: Vec<u8>, partitions: u32 },
}

impl Source {
    fn bytes(&self) -> u64 {
        match self {
            Self::Dataset(manifest) => manifest.bytes(),
            Self::Keys { .. } => 0,
        }
    }

    /// How many records there are, if that is known.
    fn records(&self) -> Option<u64> {
        match self {
            Self::Dataset(manifest) => Some(manifest.records()),
            Self::Keys { .. } => None,
        }
    }

    /// How many places there are in its order.
    fn positions(&self) -> u32 {
        match self {
            Self::Dataset(manifest) => u32::try_from(manifest.blocks.len()).unwrap_or(u32::MAX),
            Self::Keys { partitions, .. } => *partitions,
        }
    }

    fn output_format(&self, shape: Shape) -> Format {
        match self {
            Self::Dataset(Manifest { format: Format::Csv, .. }) if shape.reduce => Format::Lines,
            Self::Dataset(manifest) => manifest.format,
            Self::Keys { .. } => Format::Lines,
        }
    }

    /// Its parts, one for each task.
    async fn parts<R: Rpc>(
        self,
        client: &Client<R>,
        placement: &Placement,
    ) -> Result<Vec<Part<MapInput>>, JobError> {
        match self {
            Self::Dataset(manifest) => {
                let sizes = Sizes { task_bytes: TASK_BYTES, table_bytes: TASK_TABLE_BYTES };
                let parts = job::cut_blocks(&job::input_of(&manifest), placement, sizes).into_iter();
                let format = manifest.format;
                Ok(parts
                    .map(|Part { input: blocks, bytes, holders }| Part {
                        input: MapInput::Blocks { blocks, format },
                        bytes,
                        holders,
                    })
                    .collect())
            }
            Self::Keys { prefix, partitions } => {
                let leaders = client.view().await?.leaders;
                let part = |partition: u32| {
                    let leader = leaders.get(partition as usize).copied().flatten();
                    let input = MapInput::Keys { partition: PartitionId(partition), prefix: prefix.clone() };
                    Part { input, bytes: 0, holders: leader.into_iter().collect() }
                };
                Ok((0..partitions).map(part).collect())
            }
        }
    }
}

/// What the tasks of the job are.
struct Computing {
    job: JobId,
    errand: Errand,
    cut: Cut,
    ranges: u32,
    format: Format,
    /// `None`: ranges are told.
    output: Option<(DatasetId, Vec<u8>)>,
}

/// What is told of a run.
struct Mapped {
    parts: Vec<RunPart>,
    pairs: Fingerprint,
    records: u64,
    made: u64,
    fetched: u32,
}

impl Parts for Mapped {
    fn parts(&self) -> &[RunPart] {
        &self.parts
    }
}

/// What is told of a range.
struct Reduced {
    blocks: Vec<BlockInfo>,
    told: Bytes,
    pairs: Fingerprint,
    records: u64,
    moved: u64,
}

impl job::Work for Computing {
    type Input = MapInput;
    type Run = Mapped;
    type Range = Reduced;

    fn request(&self, attempt: Attempt, plan: &PlanOf<Self>) -> WorkRequest {
        let (job, errand) = (self.job, self.errand.clone());
        match attempt.task {
            Next::Run(at) => {
                let (task, input) = (attempt.run_name(), plan.part(at).input.clone());
                WorkRequest::Map { job, task, errand, input, ranges: self.ranges, cut: self.cut }
            }
            Next::Range(_) => {
                let range = attempt.place();
                let destination = match &self.output {
                    Some((id, name)) => {
                        // No two attempts write blocks of the same numbers.
                        let first = (attempt.number * RANGES_PER_ATTEMPT + range) * RANGE_BLOCKS;
                        Destination::Dataset { id: *id, name: name.clone(), first }
                    }
                    None => Destination::Answer,
                };
                let runs = plan.sources(attempt).to_vec();
                WorkRequest::Reduce { job, range, errand, runs, format: self.format, destination }
            }
        }
    }

    fn made(&self, response: WorkResponse) -> Option<Made<Mapped, Reduced>> {
        match response {
            WorkResponse::Mapped { parts, pairs, records, made, fetched } => {
                Some(Made::Run(Mapped { parts, pairs, records, made, fetched }))
            }
            WorkResponse::Reduced { blocks, told, pairs, records, moved } => {
                Some(Made::Range(Reduced { blocks, told, pairs, records, moved }))
            }
            _ => None,
        }
    }
}

fn told(now: Progress, of: u64) -> JobProgress {
    let Progress { merging, bytes, runs, local, ranges, again, second_attempts } = now;
    let stage = if merging { JobStage::Reducing } else { JobStage::Mapping };
    JobProgress { stage, bytes, of, tasks: runs, local, ranges, again, second_attempts }
}

/// What was made, if it is what it should be.
fn summary(plan: &PlanOf<Computing>, expected: Option<u64>) -> Result<JobSummary, JobError> {
    let now = plan.progress();
    let mut summary = JobSummary {
        output: None,
        input_records: 0,
        records: 0,
        pairs: 0,
        combined_pairs: 0,
        tasks: (now.runs.1, now.ranges.1),
        local: now.local,
        again: now.again,
        second_attempts: now.second_attempts,
        fetched_blocks: 0,
        moved_bytes: 0,
        without: Vec::new(),
    };
    let (mut made, mut reduced) = (Fingerprint::default(), Fingerprint::default());
    for run in plan.made_runs() {
        made = made.and(run.pairs);
        summary.input_records += run.records;
        summary.pairs += run.made;
        summary.fetched_blocks += u64::from(run.fetched);
    }
    for range in plan.made_ranges() {
        reduced = reduced.and(range.pairs);
        summary.records += range.records;
        summary.moved_bytes += range.moved;
    }
    summary.combined_pairs = made.records;
    if expected.is_some_and(|expected| expected != summary.input_records) {
        return Err(JobError::Wrong("another number of records was read than the input has"));
    }
    if made != reduced {
        return Err(JobError::Wrong("other pairs were reduced than were made"));
    }
    Ok(summary)
}

impl<R> fmt::Debug for Job<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("id", &self.id).field("program", &self.program).finish_non_exhaustive()
    }
}
