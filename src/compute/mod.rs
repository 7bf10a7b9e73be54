//! Computing over what does not fit into memory, on several nodes: everything of it that needs no network and no
//! disk of its own.
//!
//! **Guarantee.** Whatever way the input is cut into tasks, and the pairs into ranges, what comes out is what one
//! process would make that maps all records, puts together what has the same key, and reduces each group: provided
//! that the program's `combine` may be applied to any part of a group, in any order, any number of times.
//!
//! **Method.** A *program* ([`Executable`]) says what is done with records; what it is handed, and hands back, are
//! packed batches ([`Records`], [`Pairs`], [`Groups`]), so that it costs few calls, few allocations, and one copy to
//! hand them to code that has a memory of its own.
//!
//! After `MapReduce` (Dean and Ghemawat, 2004), with its combiners.

mod batch;
mod program;

pub use batch::{
    BadBatch, BatchFull, Groups, MAX_BATCH_BYTES, MAX_GROUP_BYTES, MAX_OUTPUT_BATCH_BYTES, Pairs, Records,
    Values,
};
pub use program::{
    Executable, Instance, Limits, MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MAX_ERROR_BYTES, MAX_PROGRAM_NAME_BYTES,
    ProgramError, Shape,
};
