//! Tests of whole clusters, linked into one program, and the instruments that judge them.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod backup;
mod checker;
mod contender;
mod datasets;
mod durable;
mod first_format;
mod hasty;
mod lab;
mod locks;
mod sorting;
mod swarm;
