//! What a node tells the program that runs it.

use crate::id::{NodeId, PartitionId, SwarmId};

/// Something that happened to a node or its swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// The node can be reached at this multiaddress.
    Listening(String),
    /// No swarm found yet; still looking.
    Looking,
    /// The node founded a swarm.
    Founded(SwarmId),
    /// The node joined a swarm.
    Joined(SwarmId),
    /// The node is back in the swarm that it was in before it restarted.
    Resumed(SwarmId),
    /// Something on the disk was not as it should be.
    StorageFinding {
        /// What and where, for a person to read.
        finding: String,
    },
    /// On the disk, something of these partitions' replicas was lost: they take no part, and their groups replace
    /// them.
    Damaged {
        /// The partitions.
        partitions: Vec<PartitionId>,
    },
    /// The disk is full: what this node leads goes to others with room, if they are a majority; else writes to it are
    /// refused. Reads go on.
    StorageFull,
    /// The disk has room again.
    StorageRoom,
    /// The disk failed: the node cannot keep what it promises, and has ended as if it had crashed.
    StorageFailed {
        /// For a person to read.
        reason: String,
    },
    /// Somebody asks for a restart: leaderships are handed over; whoever runs the node should call
    /// [`Node::stop`](super::Node::stop) and end.
    Stopping,
    /// A member's standing changed, as this node sees it.
    Member {
        /// Who.
        node: NodeId,
        /// What happened.
        change: MemberChange,
        /// One of its addresses, if known.
        address: Option<String>,
        /// Members alive now, this node included.
        alive: usize,
    },
    /// An address could not be dialled, and why; the node keeps trying.
    DialFailed {
        /// The address.
        address: String,
        /// For a person to read.
        reason: String,
    },
    /// A peer was refused or refused us, and why (another secret, another protocol version, ...).
    Refused {
        /// Its address.
        address: String,
        /// For a person to read.
        reason: String,
    },
    /// Another swarm of the same name and secret was met, both hold data, and so they stay apart.
    Apart {
        /// This node's swarm.
        ours: SwarmId,
        /// The other one.
        theirs: SwarmId,
    },
    /// This node's swarm was empty and gave way to another of the same name.
    Dissolved {
        /// The swarm that is no more.
        from: SwarmId,
        /// The swarm that the node joins.
        into: SwarmId,
    },
    /// The node is leaving and still holds so many replicas and blocks of datasets.
    Draining {
        /// Replicas and blocks still held.
        remaining: usize,
    },
    /// The node has left its swarm and holds nothing.
    Left,
}

/// How a member's standing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberChange {
    /// It is a member, and alive.
    Joined,
    /// It did not answer a probe.
    Suspected,
    /// It was suspected or dead, and is alive.
    Recovered,
    /// It is leaving: it hands over what it holds.
    Draining,
    /// It did not refute its suspicion in time.
    Died,
    /// It left.
    Left,
}
