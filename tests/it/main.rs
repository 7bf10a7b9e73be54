//! Tests of whole clusters, linked into one program, and the instruments that judge them.

mod checker;
mod locks;
mod swarm;
