//! All Raft groups of a node as one driver without I/O.
//!
//! **Problem.** A node holds replicas of many small groups. A task set per group wakes a dozen tasks per write
//! and sends every group's messages by itself; and whatever has its own clock and tasks cannot be simulated.
//!
//! **Guarantee.** Per partition, what was answered with a reply is in the log of a majority and stays;
//! linearizable reads see every write acknowledged before they began; the same inputs, times and seed give the
//! same outputs bit for bit. No message from the network, however odd, makes the driver panic.
//!
//! **Method.** One [`Driver`] is fed proposals, reads, messages, links and time. Inputs only mark groups as
//! touched; [`Driver::poll_output`] then handles each touched group once and packs what all of them have to say
//! to one node into one [`Output::Frame`]. Consensus is `TiKV`'s Raft core (Ongaro's dissertation: pre-vote 9.6,
//! leader transfer 3.10, joint consensus 4.3, `ReadIndex` 6.4); this is the only module that knows it.
//!
//! - **Leases** rest on `ReadIndex` rounds alone: a follower that hears its leader promises, on its own clock, to
//!   support nobody else for [`DriverConfig::lease`]; a leader whose round was confirmed by a quorum serves
//!   reads for four fifths of that, counted from *before* it asked. Leadership transfer overrides promises, so
//!   after one was begun the leader serves no lease reads until the end of its term.
//! - **Failover.** When the leader's link breaks, the survivors do not wait for election timeouts: the first of
//!   them campaigns as soon as its promise has passed, the next a little later. Who still hears the leader
//!   refuses, so a broken link alone disturbs nobody.
//! - **Membership** is named by replica ids that are never reused; a change is based on one configuration and
//!   refused if another is in force. A replica that the group removed is told so, or asks, and destroys itself.
//! - **Memory.** The log is cut behind what is applied; a replica too far behind gets a snapshot in pieces.
//!
//! - **Durability**, if [`DriverConfig::durable`]: the driver tells what to keep as [`Output::Persist`], one batch
//!   for all groups of a turn, and says nothing that rests on it before [`Driver::persisted`]. Otherwise a node
//!   that restarts is a new node.

mod config;
mod convert;
mod driver;
mod durable;
mod group;
mod log;
mod message;
mod shared;
mod snapshot;
#[cfg(test)]
mod tests;

pub use config::DriverConfig;
pub use driver::Driver;
pub use durable::{Gap, HardState, Stored, StoredReplica, StoredState, Write};
pub use message::{
    Body, GroupMessage, LogEntry, MAX_FRAME_MESSAGES, MAX_MESSAGE_ENTRIES, RaftKind, RaftMessage,
    SnapshotAck, SnapshotChunk, SnapshotState,
};

use crate::id::{NodeId, PartitionId, ReplicaId, SwarmId};
use crate::state_machine::{Answer, Reply};

/// What the driver wants done, or has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Keep these across a restart, whole or not at all, behind those of all earlier batches; say
    /// [`Driver::persisted`] when they are on the disk. Only of a driver that is told to be durable.
    Persist {
        /// Names the batch; rises.
        batch: u64,
        /// What to keep.
        writes: Vec<Write>,
    },
    /// Send these to a node, in this order; they may be lost.
    Frame {
        /// To whom.
        to: NodeId,
        /// What all groups have to say.
        messages: Vec<GroupMessage>,
    },
    /// What became of a proposal, read or wait.
    Outcome {
        /// The caller's name for it.
        tag: u64,
        /// What became of it.
        result: Outcome,
    },
    /// A partition has another leader, as far as this node knows.
    LeaderChanged {
        /// The partition.
        partition: PartitionId,
        /// Who leads; `None`: nobody known.
        leader: Option<NodeId>,
    },
    /// A leader has created a replica on this node.
    ReplicaCreated {
        /// The partition.
        partition: PartitionId,
    },
    /// The replica is gone, with its data: its group has removed it.
    ReplicaRemoved {
        /// The partition.
        partition: PartitionId,
    },
}

/// What the groups of a node applied: for a simulator that judges it.
#[cfg(any(test, feature = "sim"))]
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Whether anything is gathered.
    on: bool,
    /// Partition, index, entry and term.
    pub(crate) applied: Vec<(PartitionId, u64, Vec<u8>)>,
    /// Configurations that came into force.
    pub(crate) configs: Vec<AppliedConfig>,
}

/// A configuration of a group, from the moment it is in force on a replica.
#[cfg(any(test, feature = "sim"))]
#[derive(Debug)]
pub(crate) struct AppliedConfig {
    /// Whose.
    pub(crate) partition: PartitionId,
    /// Each recovery of the group begins one, with a term that leaps.
    pub(crate) generation: u64,
    /// Log index.
    pub(crate) index: u64,
    /// Replicas that vote.
    pub(crate) voters: Vec<u64>,
    /// While joint: those of the configuration before.
    pub(crate) outgoing: Vec<u64>,
}

/// What became of a proposal, read or wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The proposal was applied.
    Reply(Reply),
    /// The read was answered.
    Answer {
        /// The answer.
        answer: Answer,
        /// Whether it may be old: that was asked for.
        stale: bool,
    },
    /// The whole state at one moment: what [`StateMachine::restore`](crate::state_machine::StateMachine::restore)
    /// reads.
    Export(Vec<u8>),
    /// Nothing was done.
    Refused(Refusal),
    /// The proposal may or may not be applied: leadership was lost before it was known.
    Unknown,
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another replica leads the partition, or none for the moment.
    #[error("not the leader")]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// This node reaches no quorum of the partition's voters.
    #[error("no quorum")]
    NoQuorum,
    /// A queue is full.
    #[error("overloaded")]
    Overloaded,
    /// This node has no replica of the partition (or none with data yet).
    #[error("no replica")]
    NoReplica,
    /// The command is longer than an entry may be.
    #[error("too large")]
    TooLarge,
    /// The leader's disk is full.
    #[error("storage full")]
    StorageFull,
}

/// A change of who is in a group. Nodes hold at most one replica of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// New replicas that do not vote, to be brought up.
    AddLearners(Vec<NodeId>),
    /// Learners that vote from now on, and replicas that go, in one step (joint consensus).
    Replace {
        /// Learners, caught up and linked.
        promote: Vec<NodeId>,
        /// Voters, which become learners, and learners, which go; not the leader itself. A voter is got rid of
        /// by two changes, the second based on the configuration that the first made.
        remove: Vec<NodeId>,
    },
}

/// Why a group was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead the group.
    #[error("not the leader")]
    NotLeader,
    /// The change is based on another configuration than the one in force.
    #[error("the configuration is {current} by now")]
    Stale {
        /// The one in force.
        current: u64,
    },
    /// An earlier change (or a transfer of leadership) is still under way.
    #[error("another change is under way")]
    Pending,
    /// The leader cannot remove itself: transfer leadership first.
    #[error("the leader cannot remove itself")]
    RemovesLeader,
    /// No replica of the group is on this node, or not one of the kind that the change needs.
    #[error("no such replica")]
    NoSuchReplica(NodeId),
    /// A replica of the group is on this node already.
    #[error("already there")]
    AlreadyThere(NodeId),
    /// The learner has not caught up, or is not linked.
    #[error("not caught up")]
    NotCaughtUp(NodeId),
    /// Too few voters are linked, now or after the change.
    #[error("no quorum")]
    NoQuorum,
    /// Nothing to change, or more replicas than [`MAX_REPLICAS`].
    #[error("nothing or too much to change")]
    Size,
}

/// Why a replica was not made the first of a new generation. Nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// This node holds no replica of the partition.
    #[error("this node holds no replica of the partition")]
    NoReplica,
    /// This node holds a replica: there is something to begin with.
    #[error("this node holds a replica of the partition")]
    NotEmpty,
    /// The replica never got its state, or lost it.
    #[error("the replica holds no state")]
    NoState,
    /// A majority of the voters is linked: it decides by itself.
    #[error("the partition reaches a majority of its voters, or heard its leader a moment ago")]
    HasQuorum,
    /// Versions cannot leap once more: hundreds of thousands of recoveries are behind it.
    #[error("the partition was recovered too often")]
    TooOften,
}

/// Most replicas of one group, voters and learners.
pub const MAX_REPLICAS: usize = 16;

/// What a replica is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Leads.
    Leader,
    /// Votes and follows.
    Follower,
    /// Votes, and seeks to lead.
    Candidate,
    /// Does not vote (yet).
    Learner,
}

/// How a replica is, and as far as it leads, how its group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Its id in the group.
    pub replica: ReplicaId,
    /// What it is.
    pub role: Role,
    /// Raft's term.
    pub term: u64,
    /// Who leads, as far as known.
    pub leader: Option<NodeId>,
    /// Names the configuration: what a [`Change`] must be based on.
    pub config: u64,
    /// Whether a change is being carried out (joint consensus, or not applied yet).
    pub changing: bool,
    /// Who votes (while joint: by the new configuration).
    pub voters: Vec<NodeId>,
    /// Who does not vote yet.
    pub learners: Vec<NodeId>,
    /// Of a leader: how each other replica is.
    pub progress: Vec<ReplicaProgress>,
    /// Whether it leads and reaches a quorum, or follows a leader that it hears.
    pub has_quorum: bool,
    /// Keys held.
    pub keys: usize,
    /// Bytes of keys and values held.
    pub bytes: usize,
    /// Log index applied last.
    pub applied: u64,
    /// Log index known to be committed.
    pub committed: u64,
    /// Index and term of the last entry held.
    pub last: (u64, u64),
    /// Entries kept in the log.
    pub log_entries: usize,
    /// The swarm into which this one dissolves, if the partition is sealed.
    pub sealed: Option<SwarmId>,
    /// Something of the replica was lost on the disk: it takes no part in its group.
    pub damaged: bool,
}

/// How another replica is, as its leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ReplicaProgress {
    /// Where it is.
    pub node: NodeId,
    /// Whether it votes.
    pub voter: bool,
    /// Its log agrees with the leader's up to this index.
    pub matched: u64,
    /// Entries that it lacks.
    pub lag: u64,
    /// Whether it was heard lately and its link stands.
    pub live: bool,
    /// Whether a [`Change`] may promote it, or leadership be transferred to it.
    pub caught_up: bool,
    /// Whether its node says that it has lost what it had promised to keep: it must be replaced.
    pub lost: bool,
    /// Whether its disk is full, or was lately: it takes no entries, and no leadership is given to it.
    pub full: bool,
}
