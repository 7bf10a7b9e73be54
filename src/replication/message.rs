//! What replicas of one group say to each other: our own types, encoded by our own codec.
//!
//! The Raft core's protobuf types never meet bytes from the network: they are made from these in `convert`,
//! after everything here was checked.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::at_most;
use crate::id::{PartitionId, ReplicaId};

/// What one partition's group says to a replica of it on another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMessage {
    /// The group.
    pub partition: PartitionId,
    /// The replica that speaks; it must live on the node that the message comes from.
    pub from: ReplicaId,
    /// The replica that is meant. Of [`Body::Inquiry`] nobody in particular.
    pub to: ReplicaId,
    /// What is said.
    pub body: Body,
}

/// Longest frame of messages to one node, in bytes by [`GroupMessage::weight`]; one message more still travels.
pub(crate) const FRAME_BYTES: usize = 2 * 1024 * 1024;
/// What a message weighs at least, in bytes.
const FIXED: usize = 64;
/// Most messages in one frame.
pub const MAX_FRAME_MESSAGES: usize = FRAME_BYTES / FIXED + 1;
/// Most entries in one message: as many as fit, however short.
pub const MAX_MESSAGE_ENTRIES: usize = 256 * 1024;

impl GroupMessage {
    /// About how many bytes the message takes when encoded; used to keep frames bounded.
    pub(crate) fn weight(&self) -> usize {
        const PER_ENTRY: usize = 24;
        FIXED
            + match &self.body {
                Body::Raft(message) => {
                    message.context.len()
                        + message.entries.iter().map(|entry| PER_ENTRY + entry.data_bytes()).sum::<usize>()
                }
                Body::SnapshotChunk(chunk) => chunk.data.len() + chunk.header.len(),
                Body::SnapshotAck(_) | Body::Inquiry | Body::Retired | Body::Lost => 0,
            }
    }

    /// Bytes that it takes in memory, without what it shares with the frame that it came in.
    pub(crate) fn held_bytes(&self) -> usize {
        let entries = match &self.body {
            Body::Raft(message) => size_of_val(message.entries.as_slice()),
            _ => 0,
        };
        size_of::<Self>() + entries
    }
}

/// The content of a [`GroupMessage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Raft itself.
    Raft(RaftMessage),
    /// A piece of a snapshot, from the leader to a replica that lacks what the log no longer holds.
    SnapshotChunk(SnapshotChunk),
    /// How far the snapshot has arrived.
    SnapshotAck(SnapshotAck),
    /// "Am I still in?": of a replica that has not heard a leader for long. Whoever knows that the group has
    /// removed it answers [`Body::Retired`]; nobody else answers.
    Inquiry,
    /// The group has removed the replica that is addressed, for good: it is to be destroyed.
    Retired,
    /// The replica that speaks has lost what it had promised to keep, and takes no part any more: to a leader,
    /// which is to replace it.
    Lost,
}

impl Body {
    /// Leaves away what takes room on a disk: all entries from the first on that is not empty. (A new leader's first
    /// entry is: without it nobody could read.) Whether anything is left: of a piece of a state nothing.
    pub(super) fn leave_data(&mut self) -> bool {
        match self {
            Self::Raft(message) => message.leave_data(),
            Self::SnapshotChunk(_) => return false,
            Self::SnapshotAck(_) | Self::Inquiry | Self::Retired | Self::Lost => {}
        }
        true
    }
}

/// A Raft message: those kinds that travel, and of each what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftMessage {
    /// Which.
    pub kind: RaftKind,
    /// The sender's term (of votes: the term that they are about).
    pub term: u64,
    /// The term of the entry at `index`.
    pub log_term: u64,
    /// The entry before `entries`; or the last one that matched or is held.
    pub index: u64,
    /// What the sender knows to be committed.
    pub commit: u64,
    /// The term of the entry at `commit`.
    pub commit_term: u64,
    /// Refused. Of a heartbeat's answer: the disk is full, and no entries are taken. Of entries: a new leader begins
    /// with them, and a full disk is to take them as well.
    pub reject: bool,
    /// Where the refusing replica would match.
    pub reject_hint: u64,
    /// Of heartbeats and their responses: the read round. Of votes: whether it is a transfer of leadership.
    #[serde(with = "crate::codec::bytes")]
    pub context: Vec<u8>,
    /// The entries at `index + 1` and following. At most [`MAX_MESSAGE_ENTRIES`].
    #[serde(deserialize_with = "at_most::<_, _, MAX_MESSAGE_ENTRIES>")]
    pub entries: Vec<LogEntry>,
}

impl RaftMessage {
    /// The same of one message.
    pub(super) fn leave_data(&mut self) {
        let empty = self.entries.iter().take_while(|entry| entry.data_bytes() == 0).count();
        self.entries.truncate(empty);
    }

    /// What its entries hold, in bytes.
    pub(super) fn data_bytes(&self) -> usize {
        self.entries.iter().map(LogEntry::data_bytes).sum()
    }

    /// Says that nobody can read before a majority has these entries.
    pub(super) fn mark_beginning(&mut self) {
        self.reject = true;
    }

    /// Whether it says so.
    pub(super) fn is_beginning(&self) -> bool {
        self.kind == RaftKind::Append && self.reject
    }
}

/// The kinds of Raft messages that travel. Those that Raft sends to itself, forwarded proposals and reads, and
/// whole snapshots are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RaftKind {
    /// Leader to follower: entries.
    Append,
    /// Follower to leader.
    AppendResponse,
    /// Candidate to voter.
    Vote,
    /// Voter to candidate.
    VoteResponse,
    /// "Would you vote for me?", before the term is raised.
    PreVote,
    /// The answer to that.
    PreVoteResponse,
    /// Leader to follower.
    Heartbeat,
    /// Follower to leader.
    HeartbeatResponse,
    /// Leader to the follower that is to take over: campaign now.
    TimeoutNow,
}

/// An entry of a group's log as it travels; its index follows from its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The term in which it was proposed.
    pub term: u64,
    /// Whether it changes the group's configuration.
    pub config: bool,
    /// The encoded command; shared by the log, the disk and all followers.
    #[serde(with = "crate::codec::bytes")]
    pub data: Bytes,
    /// Of a configuration change: which.
    #[serde(with = "crate::codec::bytes")]
    pub context: Bytes,
}

impl LogEntry {
    /// What it holds, in bytes.
    pub(crate) fn data_bytes(&self) -> usize {
        self.data.len() + self.context.len()
    }

    /// The same, with bytes of its own.
    pub(super) fn unshared(&self) -> Self {
        let own = Bytes::copy_from_slice;
        Self { data: own(&self.data), context: own(&self.context), ..*self }
    }
}

/// A piece of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Distinguishes the attempts of one sender.
    pub transfer: u64,
    /// The encoded `SnapshotHeader`, in the first piece; empty in the others.
    #[serde(with = "crate::codec::bytes")]
    pub header: Vec<u8>,
    /// Where in the snapshot the piece belongs.
    pub offset: u64,
    /// The piece.
    #[serde(with = "crate::codec::bytes")]
    pub data: Vec<u8>,
}

/// How far a snapshot has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAck {
    /// Which attempt.
    pub transfer: u64,
    /// How it stands.
    pub state: SnapshotState,
}

/// How a transfer stands, as its receiver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotState {
    /// So many bytes have arrived without a gap.
    Received(u64),
    /// All is there and installed (or was not needed any more).
    Installed,
    /// The receiver does not take it now, or it was damaged.
    Refused,
}
