//! How Roundtable works, and why it may be relied upon: text for engineers, no code.
//!
//! For those who know etcd, Redis Cluster or Hazelcast and want to know what is the same here and what is not.
//! What is written here was checked against the code; numbers are the values of the named constants.
//!
//! - [`architecture`]: the idea, the layers, the life of a put and of a get, founding, placement, moving;
//! - [`consistency`]: what is promised, the arguments for it, what is assumed, and what is not promised;
//! - [`protocol`]: what travels, byte by byte as far as it matters, and the bound of everything;
//! - [`storage`]: what a durable node keeps on its disk: the format, what it rests on, and why this one;
//! - [`shipped_code`]: programs that come as WebAssembly components: their interface, and what they can do and use;
//! - [`operations`]: few nodes, what to do when something fails, and how long it takes;
//! - [`testing`]: each promise, the faults that it was tested under, and what is not promised;
//! - [`performance`]: what an operation costs and where that goes, how it grows, and what the defaults rest on;
//! - [`glossary`]: one word, one meaning.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("consistency.md")]
pub mod consistency {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("storage.md")]
pub mod storage {}

#[doc = include_str!("shipped_code.md")]
pub mod shipped_code {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("glossary.md")]
pub mod glossary {}
