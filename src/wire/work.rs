//! What the process that runs a job asks of nodes, and they of each other. As requests about blocks, this is
//! answered beside the node's core.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::at_most;
use crate::compute::{Limits, MAX_ARGUMENTS, ProgramError, Shape};
use crate::dataset::{BlockId, BlockInfo, Format};
use crate::id::{DatasetId, JobId, NodeId, PartitionId};
use crate::sort::{Fingerprint, Order, RunPart, Sample, Splitter};

/// Most blocks that one task sorts or maps, or one request samples.
pub const MAX_TASK_BLOCKS: usize = 64;
/// Most ranges of a job.
pub const MAX_RANGES: usize = 1024;
/// Most runs of a job: the tasks that each range is merged from.
pub const MAX_RUNS: usize = 4096;
/// Most samples that are taken of one block.
pub const MAX_BLOCK_SAMPLES: u32 = 256;
/// Most bytes of a run that are handed out at once.
pub const MAX_PART_BYTES: u32 = 512 * 1024;
/// Longest part of the first and last key of a range that is told.
pub const MAX_TOLD_KEY_BYTES: usize = 1024;
/// Most bytes of a range that is told instead of being written.
pub const MAX_TOLD_RANGE_BYTES: usize = 2 * 1024 * 1024;

/// A block of a job's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRef {
    /// Its place in the order of all blocks.
    pub position: u32,
    /// Which.
    pub block: BlockId,
    /// What it is.
    pub info: BlockInfo,
}

/// A program that a job names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProgramRef {
    /// One that the node has from its start.
    Named {
        /// Its name.
        name: String,
        /// `None`: the newest; only when it is asked about.
        version: Option<u32>,
    },
    /// One that was put into the swarm.
    Shipped {
        /// SHA-256 of its code.
        sha256: [u8; 32],
    },
}

/// A hash as people see it.
pub(crate) fn hexadecimal(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// What a task maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapInput {
    /// Blocks of a dataset, in the order of their positions. At most [`MAX_TASK_BLOCKS`].
    Blocks {
        /// Which.
        #[serde(deserialize_with = "at_most::<_, _, MAX_TASK_BLOCKS>")]
        blocks: Vec<InputRef>,
        /// What records look like.
        format: Format,
    },
    /// The keys of a partition that begin with a prefix, in their order. A record is the key, a tab, and the value.
    Keys {
        /// Whose.
        partition: PartitionId,
        /// What they begin with.
        #[serde(with = "crate::codec::bytes")]
        prefix: Vec<u8>,
    },
}

/// How a run is cut into ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// By the hash of keys.
    Keys,
    /// By the place of blocks in the input, which has so many.
    Blocks(u32),
}

/// What becomes of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// Blocks of a dataset.
    Dataset {
        /// Which.
        id: DatasetId,
        /// The name that it will have.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
        /// Its blocks have the numbers from here on, up to the next multiple of [`RANGE_BLOCKS`].
        first: u32,
    },
    /// It is told: at most [`MAX_TOLD_RANGE_BYTES`].
    Answer,
}

/// Blocks that one attempt at a range may write: each attempt has numbers of its own.
pub const RANGE_BLOCKS: u32 = 1 << 16;

/// What is asked of a program in each task of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// Which.
    pub program: ProgramRef,
    /// As the user gave them.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ARGUMENTS>")]
    pub arguments: Vec<serde_bytes::ByteBuf>,
    /// What an attempt may use.
    pub limits: Limits,
}

/// Where a run is, and how much of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRef {
    /// Who keeps it.
    pub node: NodeId,
    /// The task that made it.
    pub task: u32,
    /// Bytes of the range.
    pub bytes: u64,
}

/// A request of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkRequest {
    /// Pick some records of blocks. Answered by [`WorkResponse::Sampled`].
    Sample {
        /// In which order they will be.
        order: Order,
        /// What records look like.
        format: Format,
        /// At most [`MAX_TASK_BLOCKS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_TASK_BLOCKS>")]
        blocks: Vec<InputRef>,
        /// Of each block; at most [`MAX_BLOCK_SAMPLES`].
        count: u32,
    },
    /// Sort blocks into a run, and keep it for those who ask for its parts. Answered by [`WorkResponse::Sorted`].
    Sort {
        /// For which job.
        job: JobId,
        /// Names the run; a task that is done again makes the same.
        task: u32,
        /// In which order.
        order: Order,
        /// What records look like.
        format: Format,
        /// Where ranges begin; fewer than [`MAX_RANGES`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_RANGES>")]
        splitters: Vec<Splitter>,
        /// At most [`MAX_TASK_BLOCKS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_TASK_BLOCKS>")]
        blocks: Vec<InputRef>,
    },
    /// The next bytes of one range of a run. Answered by [`WorkResponse::Part`].
    Part {
        /// Of which job.
        job: JobId,
        /// Which run.
        task: u32,
        /// Which range.
        range: u32,
        /// How many of its bytes were fetched before.
        offset: u64,
        /// At most so many bytes; bounded by [`MAX_PART_BYTES`].
        limit: u32,
    },
    /// Fetch one range of all runs, merge it, and write it as blocks of a dataset. Answered by
    /// [`WorkResponse::Merged`].
    Merge {
        /// Of which job.
        job: JobId,
        /// Which range.
        range: u32,
        /// In which order.
        order: Order,
        /// What records look like.
        format: Format,
        /// At most [`MAX_RUNS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_RUNS>")]
        runs: Vec<RunRef>,
        /// The dataset that the range becomes a part of.
        output: DatasetId,
        /// The name that it will have.
        #[serde(with = "crate::codec::bytes")]
        name: Vec<u8>,
    },
    /// The job is over: whatever is kept for it can go. Answered by [`WorkResponse::Ended`].
    End {
        /// Which.
        job: JobId,
    },
    /// Whether the node has a program, and what it has. Answered by [`WorkResponse::Described`].
    Describe {
        /// Which.
        program: ProgramRef,
    },
    /// Map a part of the input into a run, and keep it for those who ask for its parts. Answered by
    /// [`WorkResponse::Mapped`].
    Map {
        /// For which job.
        job: JobId,
        /// Names the run; each attempt has a name of its own.
        task: u32,
        /// By what.
        errand: Errand,
        /// Of what.
        input: MapInput,
        /// Into how many ranges; at most [`MAX_RANGES`].
        ranges: u32,
        /// How.
        cut: Cut,
    },
    /// Fetch one range of all runs, merge it, and reduce its groups. Answered by [`WorkResponse::Reduced`].
    Reduce {
        /// Of which job.
        job: JobId,
        /// Which range.
        range: u32,
        /// By what.
        errand: Errand,
        /// At most [`MAX_RUNS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_RUNS>")]
        runs: Vec<RunRef>,
        /// What the records that come out look like.
        format: Format,
        /// What becomes of them.
        destination: Destination,
    },
}

/// The answer to a [`WorkRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkResponse {
    /// Of all blocks.
    Sampled(Vec<Sample>),
    /// The run is kept.
    Sorted {
        /// Of each range, how much is in it.
        parts: Vec<RunPart>,
        /// What was sorted.
        input: Fingerprint,
        /// What of it is not in the run, because an equal record came before it.
        dropped: Fingerprint,
        /// Blocks that the node had to fetch from others.
        fetched: u32,
    },
    /// The next bytes; none: that was all.
    Part(Bytes),
    /// The range is written.
    Merged {
        /// Its blocks in order; each is kept by a majority of its replicas.
        blocks: Vec<BlockInfo>,
        /// What is in them.
        output: Fingerprint,
        /// What was left out, because an equal record came before it.
        dropped: Fingerprint,
        /// The keys of its first and last record, as far as they are told; `None`: it is empty.
        ends: Option<(Bytes, Bytes)>,
        /// Bytes that came from other nodes.
        moved: u64,
    },
    /// It is over.
    Ended,
    /// It was not done.
    Failed(WorkError),
    /// The node has the program.
    Described {
        /// In this version; that of shipped code is 0.
        version: u32,
        /// What it has.
        shape: Shape,
    },
    /// The run is kept.
    Mapped {
        /// Of each range, how much is in it.
        parts: Vec<RunPart>,
        /// The pairs in it.
        pairs: Fingerprint,
        /// Records of the input.
        records: u64,
        /// Pairs that were made of them, before any were combined.
        made: u64,
        /// Blocks that the node had to fetch from others.
        fetched: u32,
    },
    /// The range is written, or told.
    Reduced {
        /// Its blocks in order; each is kept by a majority of its replicas.
        blocks: Vec<BlockInfo>,
        /// What is told of it: its records, each with what ends it.
        told: Bytes,
        /// The pairs that it was made of.
        pairs: Fingerprint,
        /// The records that came out.
        records: u64,
        /// Bytes that came from other nodes.
        moved: u64,
    },
}

/// Where a program failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Site {
    /// When it was started.
    Start,
    /// At this block of the input; its number in the dataset.
    Block(u32),
    /// At the keys of a partition.
    Partition(PartitionId),
    /// At this range of keys.
    Range(u32),
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start => f.write_str("when it was started"),
            Self::Block(number) => write!(f, "at block {number} of the input"),
            Self::Partition(partition) => write!(f, "at the keys of partition {}", partition.0),
            Self::Range(range) => write!(f, "when range {range} was reduced"),
        }
    }
}

/// Why a node did not do its part of a job. Nothing is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// The node does not keep that run (any more).
    #[error("the run is gone")]
    NoRun,
    /// A run could not be fetched.
    #[error("the run of task {task} could not be fetched")]
    RunLost {
        /// Which.
        task: u32,
    },
    /// A block of the input was not found on any node.
    #[error("block {number} of the input was not found on any node")]
    BlockMissing {
        /// Its number in its dataset.
        number: u32,
    },
    /// The node has no room for a run.
    #[error("the node has no room for what it sorts")]
    NoRoom,
    /// The output could not be written.
    #[error("the output could not be written: {0}")]
    NotWritten(String),
    /// The request is beyond a limit, or contradicts itself.
    #[error("beyond a limit")]
    Limit,
    /// A run is not what it should be.
    #[error("a run is not in order")]
    Disorder,
    /// The node's disk does not do what it should.
    #[error("the node's disk: {0}")]
    Disk(String),
    /// The node could not be asked, or refused.
    #[error("the node did not do it: {0}")]
    Refused(String),
    /// The job was ended, or the node is about to.
    #[error("the job was ended")]
    Ended,
    /// The node does not have the program.
    #[error("the node does not have the program")]
    NoProgram,
    /// The program did not do its part, and would not do it the next time.
    #[error("{site}: {error}")]
    Program {
        /// Where.
        site: Site,
        /// Why.
        error: ProgramError,
    },
    /// The keys of a partition could not be read.
    #[error("the keys of partition {} could not be read: {reason}", partition.0)]
    NotRead {
        /// Which.
        partition: PartitionId,
        /// Why.
        reason: String,
    },
    /// What would be told is longer than an answer can be.
    #[error("the result is longer than {MAX_TOLD_RANGE_BYTES} bytes: it needs a dataset")]
    TooLong,
}
