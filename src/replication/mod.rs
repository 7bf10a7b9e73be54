//! All Raft groups of a node as one driver without I/O.

use serde::{Deserialize, Serialize};

use crate::id::PartitionId;

/// What one partition's group says to a replica of it on another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMessage {
    /// The group.
    pub partition: PartitionId,
}
