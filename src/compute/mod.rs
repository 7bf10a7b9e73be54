//! Computing over what does not fit into memory, on several nodes: everything of it that needs no network and no
//! disk of its own.
//!
//! **Guarantee.** Whatever way the input is cut into tasks, and the pairs into ranges, what comes out is what one
//! process would make that maps all records, puts together what has the same key, and reduces each group: provided
//! that the program's `combine` may be applied to any part of a group, in any order, any number of times.
//!
//! **Method.** A *program* ([`Executable`]) says what is done with records; what it is handed, and hands back, are
//! packed batches ([`Records`], [`Pairs`], [`Groups`]), so that it costs few calls, few allocations, and one copy to
//! hand them to code that has a memory of its own. A task maps some blocks ([`MapTask`]) into a *run*: pairs, brought
//! together by key and combined in memory, cut into ranges by the hash of their keys, each range in the order of
//! keys. Each range is then merged from its part of every run, and its groups reduced ([`reduce`](reduce())); a long
//! one in pieces ([`LongGroup`]). A program without `reduce` goes the same way, but that the ranges are those of the
//! input's blocks: so its output keeps the order of the input. What is in memory is bounded in both halves, also if
//! most records have the same key.
//!
//! Functions of Rust become a program by [`Program`]; some are [ready-made](ready).
//!
//! After `MapReduce` (Dean and Ghemawat, 2004), with its combiners.

mod batch;
mod hash;
mod long;
mod map;
mod merge;
mod native;
mod program;
pub mod ready;
mod reduce;
mod run;
mod table;
#[cfg(test)]
mod tests;

use std::io;

pub use batch::{
    BadBatch, BatchFull, Groups, MAX_BATCH_BYTES, MAX_GROUP_BYTES, MAX_OUTPUT_BATCH_BYTES, Pairs, Records,
    Values,
};
pub use hash::{Partitioning, Ranges};
pub use long::LongGroup;
pub use map::{MapTask, Mapped, Spills, TABLE_BYTES};
pub use native::{AllValues, PairSink, Program, ProgramName, ProgramNameError, RecordSink, Value};
pub use program::{
    Executable, Instance, Limits, MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MAX_COMPONENT_BYTES, MAX_ERROR_BYTES,
    MAX_MEMORY_BYTES, MAX_PROGRAM_NAME_BYTES, MAX_TIME_MS, ProgramError, Shape,
};
pub use ready::sum;
pub use reduce::reduce;
pub use run::PairRun;

/// Bytes of a batch that is handed to a program, about: it fits the cache of a processor, and a call costs little
/// beside it.
const BATCH_BYTES: usize = 64 * 1024;

/// Why a task failed. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// What it writes, or spills.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A source failed.
    #[error("source {at} failed")]
    Source {
        /// Which, in the order in which they were given.
        at: usize,
    },
    /// A source is no run, or not in order.
    #[error("source {at} is not a run")]
    NoRun {
        /// Which, in the order in which they were given.
        at: usize,
    },
    /// It was told to end.
    #[error("the task was told to end")]
    Ended,
}

/// Bytes that a task may still hand back.
#[derive(Debug)]
struct Budget {
    limit: u64,
    left: u64,
}

impl Budget {
    fn new(limit: u64) -> Self {
        Self { limit, left: limit }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ProgramError> {
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.ok_or(ProgramError::TooMuchOutput { limit: self.limit })?;
        Ok(())
    }
}

/// Whether a pair is short enough.
fn check_pair(key: &[u8], value: &[u8]) -> Result<(), ProgramError> {
    if key.len() + value.len() > MAX_BATCH_BYTES {
        return Err(ProgramError::bad_output(format!("a pair is longer than {MAX_BATCH_BYTES} bytes")));
    }
    Ok(())
}
