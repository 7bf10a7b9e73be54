//! Tests of whole clusters, linked into one program, and the instruments that judge them.

mod checker;
mod lab;
mod locks;
mod swarm;
