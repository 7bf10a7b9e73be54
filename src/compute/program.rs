//! What the engine knows of programs: what they have, how one is started, what it is handed, and how it fails.

use std::fmt::{self, Debug};

use serde::{Deserialize, Serialize};

use super::batch::{Groups, MAX_GROUP_BYTES, Pairs, Records};
use super::long::LongGroup;

/// Longest name of a program, in bytes.
pub const MAX_PROGRAM_NAME_BYTES: usize = 64;
/// Most arguments of a job.
pub const MAX_ARGUMENTS: usize = 64;
/// Most bytes of all arguments of a job together.
pub const MAX_ARGUMENT_BYTES: usize = 64 * 1024;
/// Longest text that a program's error has, in bytes; the rest is cut off.
pub const MAX_ERROR_BYTES: usize = 1024;

/// Most bytes of a component: of shipped code.
pub const MAX_COMPONENT_BYTES: usize = 8 * 1024 * 1024;
/// Most memory that an attempt may be granted, in bytes.
pub const MAX_MEMORY_BYTES: u64 = 1024 * 1024 * 1024;
/// Longest time that an attempt may be granted, in milliseconds.
pub const MAX_TIME_MS: u64 = 600_000;

/// What a program has beside `map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// Values of one key can be put together before they go to another node.
    pub combine: bool,
    /// Pairs are brought together by key. Without it they become records as they are, in the order of the input:
    /// the key and, unless it is empty, a tab and the value.
    pub reduce: bool,
}

/// How much one attempt of one task may use. What a native function computes cannot be interrupted: for it `fuel`
/// and `memory_bytes` mean nothing, and `time_ms` is looked at between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Units of work of shipped code, about one for each instruction.
    pub fuel: u64,
    /// Bytes of memory of shipped code.
    pub memory_bytes: u64,
    /// Milliseconds.
    pub time_ms: u64,
    /// Bytes of pairs or records that it hands back, all calls together.
    pub output_bytes: u64,
}

impl Limits {
    /// Whether a node grants so much: at most [`MAX_MEMORY_BYTES`] and [`MAX_TIME_MS`].
    pub fn are_possible(&self) -> bool {
        self.memory_bytes <= MAX_MEMORY_BYTES && self.time_ms <= MAX_TIME_MS
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fuel: 200_000_000_000,
            memory_bytes: 256 * 1024 * 1024,
            time_ms: 120_000,
            output_bytes: 2 * 1024 * 1024 * 1024,
        }
    }
}

/// Something that can be run: native functions or shipped code. Registered or fetched once, shared by all tasks.
pub trait Executable: Send + Sync + Debug {
    /// What the program has.
    fn shape(&self) -> Shape;

    /// A fresh instance for one attempt of one task, with the arguments as the user gave them. Blocks.
    ///
    /// # Errors
    /// If it cannot work with these arguments, or not be started within the limits.
    fn start(&self, arguments: &[Vec<u8>], limits: &Limits) -> Result<Box<dyn Instance>, ProgramError>;
}

/// One attempt of one task. All calls block, and come from one thread at a time. After an error there is no further
/// call. What is handed out is appended to `out`, of which the engine looks at nothing after an error.
pub trait Instance: Send {
    /// Makes pairs of a batch of records.
    ///
    /// # Errors
    /// The task fails with it.
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError>;

    /// Puts values of the same key together. A group may be a part of all the values of its key; what comes out may
    /// be handed in again with others. Keys must stay what they are. Not called unless [`Shape::combine`].
    ///
    /// # Errors
    /// The task fails with it.
    fn combine(&mut self, groups: &Groups, out: &mut Pairs) -> Result<(), ProgramError>;

    /// Makes records of groups; each is whole, and in the order of keys. Not called unless [`Shape::reduce`].
    ///
    /// # Errors
    /// The task fails with it.
    fn reduce(&mut self, groups: &Groups, out: &mut Records) -> Result<(), ProgramError>;

    /// Makes records of one group that is longer than [`MAX_GROUP_BYTES`], in the place of [`reduce`](Self::reduce).
    /// Values that are left are not missed.
    ///
    /// # Errors
    /// The task fails with it. Unless this is implemented: [`ProgramError::GroupTooLong`].
    fn reduce_long(&mut self, group: &mut LongGroup<'_>) -> Result<(), ProgramError> {
        Err(group.too_long())
    }

    /// Makes records of nothing: called once, in the place of [`reduce`](Self::reduce), in a job in which there is no
    /// pair at all. There are none, unless this is implemented.
    ///
    /// # Errors
    /// The task fails with it.
    fn reduce_nothing(&mut self, out: &mut Records) -> Result<(), ProgramError> {
        let _ = out;
        Ok(())
    }
}

/// Why a program did not do its part. It is the program's fault, or that of what it was given: it would happen
/// again. The node is unharmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It says so itself, or panicked.
    #[error("the program failed: {0}")]
    Failed(String),
    /// It cannot work with these arguments.
    #[error("wrong arguments: {0}")]
    Arguments(String),
    /// It did what it must not, and was stopped.
    #[error("the program trapped: {0}")]
    Trapped(String),
    /// It did more than it may.
    #[error("the program used up its fuel of {limit}")]
    OutOfFuel {
        /// [`Limits::fuel`].
        limit: u64,
    },
    /// It took longer than it may.
    #[error("the program took longer than {limit_ms} ms")]
    OutOfTime {
        /// [`Limits::time_ms`].
        limit_ms: u64,
    },
    /// It wanted more memory than it may have.
    #[error("the program wanted more memory than {limit} bytes")]
    OutOfMemory {
        /// [`Limits::memory_bytes`].
        limit: u64,
    },
    /// It handed back more than it may.
    #[error("the program's output is longer than {limit} bytes")]
    TooMuchOutput {
        /// [`Limits::output_bytes`], or that of one call.
        limit: u64,
    },
    /// What it handed back makes no sense.
    #[error("the program's output makes no sense: {0}")]
    BadOutput(String),
    /// A key has more values than can be handed to it at once, and it does not take them in pieces.
    #[error(
        "the values of the key `{key}` are {bytes} bytes together, and at most {MAX_GROUP_BYTES} can be handed to this \
         program: give it a `combine` that keeps them short, or make it of functions of Rust, which take them one by one"
    )]
    GroupTooLong {
        /// The beginning of the key.
        key: String,
        /// Bytes of the key and its values, as far as they were not combined.
        bytes: u64,
    },
    /// It came as a component that is no program.
    #[error("the component is no program: {0}")]
    Component(String),
}

impl ProgramError {
    /// It failed by itself.
    pub fn failed(text: impl fmt::Display) -> Self {
        Self::Failed(bounded(text))
    }

    /// It cannot work with its arguments.
    pub fn arguments(text: impl fmt::Display) -> Self {
        Self::Arguments(bounded(text))
    }

    /// It was stopped.
    pub fn trapped(text: impl fmt::Display) -> Self {
        Self::Trapped(bounded(text))
    }

    /// It is a component, but no program.
    pub fn component(text: impl fmt::Display) -> Self {
        Self::Component(bounded(text))
    }

    /// What it handed back makes no sense.
    pub fn bad_output(text: impl fmt::Display) -> Self {
        Self::BadOutput(bounded(text))
    }
}

/// At most [`MAX_ERROR_BYTES`] of a text.
fn bounded(text: impl fmt::Display) -> String {
    let mut text = text.to_string();
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_errors_are_bounded() {
        let ProgramError::Failed(text) = ProgramError::failed("ä".repeat(MAX_ERROR_BYTES)) else { panic!() };
        assert!(text.len() <= MAX_ERROR_BYTES + 3 && text.ends_with("ä..."));
        assert_eq!(ProgramError::failed("no").to_string(), "the program failed: no");
    }
}
