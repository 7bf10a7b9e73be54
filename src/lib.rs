//! Roundtable: processes that find each other, share one ring, and keep data on it that a crash does not lose.
//!
//! The modules, from the bottom up; each uses only those above it in this list:
//!
//! - [`id`], [`time`], [`codec`]: names, moments, bytes;
//! - [`membership`]: who is in the swarm (SWIM);
//! - [`ring`]: which members hold which partition, a pure function of the members;
//! - [`dataset`]: how data is cut into blocks, and what is known of them;
//! - [`sort`]: sorting what does not fit into memory, without network and disk;
//! - [`compute`]: programs over what does not fit into memory, without network and disk;
//! - `wasm` (with the feature `wasm`): programs that come as WebAssembly components; the only module that knows
//!   wasmtime;
//! - [`state_machine`]: what one partition replicates;
//! - [`replication`]: all Raft groups of a node as one driver without I/O;
//! - [`storage`]: what a node keeps on its disk; the only module that touches it for data;
//! - [`wire`]: what travels, and the seam to the network;
//! - [`net`]: the only module that knows libp2p;
//! - [`client`]: the typed API;
//! - [`node`]: all of it assembled into a running process;
//! - [`cli`]: the command line;
//! - `sim` (with the feature `sim`): whole nodes in simulated time, under faults, and what judges them.
//!
//! How it works and why it may be relied upon, as text: [`docs`].

pub mod cli;
pub mod client;
pub mod codec;
pub mod compute;
pub mod dataset;
pub mod docs;
pub mod id;
pub mod membership;
#[cfg(feature = "mutations")]
pub mod mutation;
#[cfg(not(feature = "mutations"))]
mod mutation;
pub mod net;
pub mod node;
pub mod replication;
pub mod ring;
pub mod sort;
pub mod state_machine;
pub mod storage;
pub mod time;
#[cfg(feature = "wasm")]
pub mod wasm;
pub mod wire;

#[cfg(feature = "sim")]
pub use node::sim;
