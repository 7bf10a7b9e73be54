//! Tests of whole clusters, linked into one program, and the instruments that judge them.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

// Where the instruments that are shared with the simulator find what they judge.
#[cfg(test)]
use roundtable::state_machine;
use roundtable::{client, id};

mod backup;
#[allow(dead_code, unused, reason = "the simulator uses more of it")]
#[path = "../../src/sim/checker/mod.rs"]
mod checker;
mod computing;
mod contender;
mod datasets;
mod durable;
mod first_format;
mod hasty;
mod lab;
mod locks;
#[cfg(feature = "wasm")]
mod shipping;
mod skew;
mod sorting;
mod swarm;
#[cfg(feature = "wasm")]
#[path = "../../src/wasm/written.rs"]
mod written;
