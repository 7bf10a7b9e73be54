//! Who is in the swarm.

use serde::{Deserialize, Serialize};

/// What the swarm believes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// Answers probes.
    Alive,
    /// Did not answer a probe and has not refuted it yet.
    Suspect,
    /// Did not refute its suspicion in time.
    Dead,
    /// Said that it leaves, and left.
    Left,
}
