//! A deterministic simulator: whole nodes in simulated time, under faults, judged after every step.
//!
//! **Problem.** What a swarm promises must hold whatever crashes, pauses, joins, leaves or is cut off, in whatever
//! order. Real processes show only the orders that a machine happens to produce, and never the same one twice.
//!
//! **Method.** As `FoundationDB` and `TigerBeetle` do it: the protocol code takes time and chance as arguments, so many nodes
//! run on one thread with a clock and a network that a seeded random number generator decides over. One seed is
//! one run, bit for bit: [`simulate`] with the same seed gives the same [`Report::digest`].
//!
//! **What runs** is the whole node above its links and its store: membership, ring, placement, all Raft groups, state
//! machines, forwarding of requests, founding, joining, leaving, restarts (`node::core` and everything below it). **What does
//! not**: the tasks and queues of `node::runtime`, libp2p, sockets and frames, the files of `storage`, the library's
//! client, swarms that meet and merge, and who finds whom. Those are tested by real processes (`tests/it`).
//!
//! - `world`: machines, network and one queue of events; the faults as verbs; `network`, `machine`, `disk`,
//!   `clock`: what each of them permits;
//! - `storm`: which faults strike when; `calls`, `clients`, `contenders`: who uses the swarm meanwhile;
//! - `invariants`: one property, one file; `checker`: was it linearizable, were locks exclusive and fair, did the
//!   set lose nothing.

mod calls;
mod checker;
mod clients;
pub(super) mod clock;
mod contenders;
mod disk;
pub(super) mod invariants;
pub(super) mod machine;
pub(super) mod network;
mod run;
mod storm;
#[cfg(test)]
mod tests;
pub(super) mod world;

pub use run::{Failure, Options, Report, simulate};
