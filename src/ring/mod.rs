//! Which members hold which partition: a pure function of the set of members.
//!
//! Every node computes the ring by itself from what it knows of the swarm; two nodes that know the same members
//! compute the same ring, without a word between them. What a partition *accepts* is decided by its own Raft
//! group, never here: a ring that is late or wrong misplaces replicas for a while and loses nothing.
//!
//! - [`Token`]: where a key or a member stands on the circle, by SHA-1;
//! - [`Ring`]: the map token -> partition -> replica set;
//! - `placement` (private): who holds what, with bounded loads;
//! - [`plan()`]: the difference of two rings.

mod placement;
mod plan;
#[expect(clippy::module_inception, reason = "the file of the type `Ring`, named after it like its siblings")]
mod ring;
mod token;

pub use plan::{Move, plan};
pub use ring::{DEFAULT_REPLICAS, DEFAULT_WEIGHT, MAX_WEIGHT, Ring};
pub use token::{MAX_PARTITIONS, PartitionCount, PartitionCountError, Token};

#[cfg(test)]
mod tests;
