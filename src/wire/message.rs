//! The requests, responses and messages themselves. Any change here is a new [`PROTOCOL_VERSION`].

use serde::{Deserialize, Serialize};

use super::blocks::{BlockRequest, BlockResponse};
use super::work::{WorkRequest, WorkResponse};
use crate::codec::at_most;
use crate::id::{NodeId, PartitionId, SwarmId};
use crate::replication::{GroupMessage, MAX_FRAME_MESSAGES};
use crate::ring::MAX_PARTITIONS;
use crate::state_machine::{Answer, Operation, Origin, Query, Reply, Watch};

/// Spoken by this build. Peers that speak another one are refused when the link is made.
pub const PROTOCOL_VERSION: u8 = 6;

/// Longest [`Request::Wait`], in milliseconds: one caller that vanished costs the leader no more than this.
pub const MAX_WAIT_MS: u32 = 30_000;
/// Most partitions in one [`Request::Renew`]: with the longest names and most claims in each, it still fits into a
/// message.
pub const MAX_RENEWALS: usize = 128;

/// Longest [`Response::Piece`].
pub const MAX_PIECE_BYTES: usize = 1024 * 1024;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began. Answered by the partition's leader, with a quorum.
    #[default]
    Linearizable,
    /// Answered by any replica from what it has, also without a quorum. May be old, never invented.
    Stale,
}

/// What a node can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Change a partition. Answered by [`Response::Reply`].
    Write {
        /// The swarm that is meant: partitions and the numbers of writes are its own.
        swarm: SwarmId,
        /// The partition that the operation's key belongs to.
        partition: PartitionId,
        /// For exactly-once retries.
        origin: Origin,
        /// What to do.
        operation: Operation,
        /// Sent on by a node that is not the leader: not to be sent on again.
        forwarded: bool,
    },
    /// Read from a partition. Answered by [`Response::Answer`].
    Read {
        /// The swarm that is meant: partitions and the numbers of writes are its own.
        swarm: SwarmId,
        /// The partition.
        partition: PartitionId,
        /// How fresh.
        consistency: Consistency,
        /// The question.
        query: Query,
        /// Sent on by a node that cannot answer: not to be sent on again.
        forwarded: bool,
    },
    /// Renew what a client holds and waits for in several partitions: one message for all that the node leads. Each
    /// renewal is a write of its own, as if it had come as a [`Request::Write`]. Answered by
    /// [`Response::Renewals`].
    Renew {
        /// The swarm that is meant: partitions and the numbers of writes are its own.
        swarm: SwarmId,
        /// At most [`MAX_RENEWALS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_RENEWALS>")]
        renewals: Vec<Renewal>,
    },
    /// Wait until something has changed. Linearizable. Answered by [`Response::Answer`], or by
    /// [`Response::Unchanged`].
    Wait {
        /// The swarm that is meant: partitions and the numbers of writes are its own.
        swarm: SwarmId,
        /// The partition that the key or lock belongs to.
        partition: PartitionId,
        /// What to wait for.
        watch: Watch,
        /// How long to wait, in milliseconds; then [`Response::Unchanged`]. Bounded by [`MAX_WAIT_MS`].
        timeout_ms: u32,
        /// Sent on by a node that is not the leader: not to be sent on again.
        forwarded: bool,
    },
    /// Take a partition's whole state at one moment and keep it for a while, to be fetched in pieces: see
    /// [`Request::Piece`]. Linearizable. Answered by [`Response::Exported`].
    Export {
        /// The swarm that is meant: partitions and the numbers of writes are its own.
        swarm: SwarmId,
        /// The partition.
        partition: PartitionId,
        /// Sent on by a node that is not the leader: not to be sent on again.
        forwarded: bool,
    },
    /// The next bytes of an export. Answered by [`Response::Piece`], or refused with [`Refusal::NoExport`].
    Piece {
        /// Who keeps it: [`Response::Exported::node`].
        node: NodeId,
        /// Which: [`Response::Exported::export`].
        export: u64,
        /// How many bytes were fetched before. At the end of the export: it is not needed any more.
        offset: u64,
        /// Sent on by a node that does not keep it: not to be sent on again.
        forwarded: bool,
    },
    /// Who is in the swarm and who leads what. Answered by [`Response::View`].
    View,
    /// How the node is. Answered by [`Response::Status`].
    Status,
    /// The string that lets another machine join. Answered by [`Response::Ticket`].
    Ticket,
    /// Hand everything over and leave the swarm. Answered by [`Response::Leaving`] at once; progress is in
    /// [`NodeStatus`].
    Leave,
    /// Hand over what the node leads and end, to come back with what is on its disk. Answered by
    /// [`Response::Leaving`] at once, or refused if it keeps nothing.
    Stop,
    /// Make the node's replica of a partition the first and only one of a new generation of its group, because
    /// the majority is gone for good. Answered by [`Response::Recovered`].
    Recover {
        /// The swarm that is meant.
        swarm: SwarmId,
        /// The partition.
        partition: PartitionId,
        /// Begin with nothing: no replica is left anywhere. Refused if this node holds one.
        empty: bool,
    },
    /// About blocks of datasets. Answered by [`Response::Blocks`], beside the node's core.
    Blocks {
        /// The swarm that is meant.
        swarm: SwarmId,
        /// What about them.
        request: BlockRequest,
    },
    /// A part of a job. Answered by [`Response::Work`], beside the node's core.
    Work {
        /// The swarm that is meant.
        swarm: SwarmId,
        /// What to do.
        request: WorkRequest,
    },
}

impl Request {
    /// The same request, marked as sent on.
    #[must_use]
    pub fn forwarded(mut self) -> Self {
        match &mut self {
            Self::Write { forwarded, .. }
            | Self::Read { forwarded, .. }
            | Self::Wait { forwarded, .. }
            | Self::Export { forwarded, .. }
            | Self::Piece { forwarded, .. } => {
                *forwarded = true;
            }
            Self::Renew { .. }
            | Self::View
            | Self::Status
            | Self::Ticket
            | Self::Leave
            | Self::Stop
            | Self::Recover { .. }
            | Self::Blocks { .. }
            | Self::Work { .. } => {}
        }
        self
    }
}

/// The write of an [`Operation::Renew`] among others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The partition that the locks belong to.
    pub partition: PartitionId,
    /// For exactly-once retries; also whose claims they are.
    pub origin: Origin,
    /// Any of the locks.
    #[serde(with = "crate::codec::bytes")]
    pub name: Vec<u8>,
    /// Numbers of the claims.
    pub numbers: Vec<u64>,
}

impl Renewal {
    /// What can be sent together with others: the swarm and the renewal, if the request is to write one.
    #[must_use]
    pub fn of(request: &Request) -> Option<(SwarmId, Self)> {
        match request {
            Request::Write {
                swarm,
                partition,
                origin,
                operation: Operation::Renew { name, session, numbers },
                forwarded: false,
            } if *session == origin.session => {
                let (name, numbers) = (name.clone(), numbers.clone());
                Some((*swarm, Self { partition: *partition, origin: *origin, name, numbers }))
            }
            _ => None,
        }
    }

    /// The request to write it alone.
    #[must_use]
    pub fn alone(self, swarm: SwarmId) -> Request {
        let Self { partition, origin, name, numbers } = self;
        let operation = Operation::Renew { name, session: origin.session, numbers };
        Request::Write { swarm, partition, origin, operation, forwarded: false }
    }
}

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The write was applied (by this attempt or an earlier one); or, as the reply itself says, was not.
    Reply(Reply),
    /// What was asked for.
    Answer {
        /// The answer.
        answer: Answer,
        /// Whether it may be old: it was asked for as stale.
        stale: bool,
    },
    /// What came of each renewal, in the order of the request.
    Renewals(Vec<Renewed>),
    /// The time of a [`Request::Wait`] is up and nothing has changed.
    Unchanged,
    /// The export is kept.
    Exported {
        /// By whom.
        node: NodeId,
        /// Its name there.
        export: u64,
        /// Its length.
        bytes: u64,
    },
    /// The next bytes of an export, at most [`MAX_PIECE_BYTES`].
    Piece(#[serde(with = "crate::codec::bytes")] Vec<u8>),
    /// The swarm as the node sees it.
    View(SwarmView),
    /// How the node is.
    Status(Box<NodeStatus>),
    /// A ticket.
    Ticket(String),
    /// The node is leaving, or ending.
    Leaving,
    /// The partition begins anew with what this node has of it.
    Recovered,
    /// Nothing was done.
    Refused(Refusal),
    /// The write was proposed, and leadership was lost before it was known to be committed: it may or may not
    /// be applied. A retry under the same origin is safe.
    Unknown,
    /// About blocks of datasets.
    Blocks(BlockResponse),
    /// A part of a job.
    Work(WorkResponse),
}

/// What a node answers to one of several renewals: as the response of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renewed {
    /// [`Response::Reply`].
    Reply(Reply),
    /// [`Response::Refused`].
    Refused(Refusal),
    /// [`Response::Unknown`].
    Unknown,
}

impl From<Response> for Renewed {
    fn from(response: Response) -> Self {
        match response {
            Response::Reply(reply) => Self::Reply(reply),
            Response::Refused(refusal) => Self::Refused(refusal),
            // Nothing else answers a write.
            _ => Self::Unknown,
        }
    }
}

impl From<Renewed> for Response {
    fn from(renewed: Renewed) -> Self {
        match renewed {
            Renewed::Reply(reply) => Self::Reply(reply),
            Renewed::Refused(refusal) => Self::Refused(refusal),
            Renewed::Unknown => Self::Unknown,
        }
    }
}

/// Why a node did nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Another replica leads the partition.
    #[error("not the leader")]
    NotLeader {
        /// Who does, as far as the node knows.
        leader: Option<NodeId>,
    },
    /// The partition has no quorum that the node could reach.
    #[error("no quorum")]
    NoQuorum,
    /// The node's queue is full.
    #[error("overloaded")]
    Overloaded,
    /// The disk of the partition's leader is full.
    #[error("storage full")]
    StorageFull,
    /// The node has no swarm yet, or is leaving it.
    #[error("not serving")]
    NotServing,
    /// The request is meant for another swarm than the node's.
    #[error("the node is in another swarm")]
    OtherSwarm,
    /// The node does not keep that export, or not any more.
    #[error("the export is gone")]
    NoExport,
    /// The request contradicts itself or a limit.
    #[error("bad request: {0}")]
    BadRequest(String),
}

/// A message between members; one-way, and may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Who I am and whether I have a swarm: the first message on every link, and again when it changes.
    Hello(Hello),
    /// Membership gossip of the swarm.
    Gossip {
        /// Only members of the same swarm listen.
        swarm: SwarmId,
        /// What the membership protocol says.
        #[serde(with = "crate::codec::bytes")]
        bytes: Vec<u8>,
    },
    /// What the partitions' groups say to each other: all groups of one turn in one message.
    Groups {
        /// Only members of the same swarm listen.
        swarm: SwarmId,
        /// In the order in which they must be handled. At most [`MAX_FRAME_MESSAGES`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_FRAME_MESSAGES>")]
        messages: Vec<GroupMessage>,
    },
    /// The partitions that the sender has come to lead, each with its term: what one-hop routing is made of.
    Leading {
        /// Only members of the same swarm listen.
        swarm: SwarmId,
        /// Partition and term, of each partition once.
        #[serde(deserialize_with = "at_most::<_, _, { MAX_PARTITIONS as usize }>")]
        leads: Vec<(PartitionId, u64)>,
    },
    /// The sender is about to stop, and to come back: until its link is gone, leaderships are not for it.
    Stopping {
        /// Only members of the same swarm listen.
        swarm: SwarmId,
    },
    /// The sender's swarm has dissolved into another: every partition was empty and is sealed.
    Dissolved {
        /// The swarm that is no more.
        from: SwarmId,
        /// The swarm to join.
        into: SwarmId,
    },
}

/// Whether a node has a swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwarmState {
    /// Looking for one, and founds one if it finds none.
    Unfounded {
        /// It was told to join: it never founds.
        joining: bool,
    },
    /// Member of one.
    Founded {
        /// Which.
        swarm: SwarmId,
        /// Into how many partitions its ring is cut.
        partitions: u32,
    },
    /// No member, only a client.
    Visitor,
}

/// What a node says of itself on a new link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its swarm, or that it has none.
    pub state: SwarmState,
    /// Whether its swarm is known to it to hold no key: an empty swarm gives way to one with data.
    pub empty: bool,
}

impl Message {
    /// About how many bytes it takes in memory, where that may be far more than it took on the wire.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Self::Groups { messages, .. } => messages.iter().map(GroupMessage::held_bytes).sum(),
            Self::Leading { leads, .. } => size_of_val(leads.as_slice()),
            Self::Hello(_) | Self::Gossip { .. } | Self::Stopping { .. } | Self::Dissolved { .. } => 0,
        }
    }
}

impl Hello {
    /// The swarm that the node is a member of, if any.
    pub fn swarm(&self) -> Option<SwarmId> {
        match self.state {
            SwarmState::Founded { swarm, .. } => Some(swarm),
            SwarmState::Unfounded { .. } | SwarmState::Visitor => None,
        }
    }
}

/// The swarm as one node sees it: all that is needed to compute the ring and to route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmView {
    /// The swarm.
    pub swarm: SwarmId,
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: u32,
    /// The node that answers.
    pub node: NodeId,
    /// All members that count for placement, and those that lately left or died.
    pub members: Vec<MemberView>,
    /// Of each partition, who leads it as far as the node knows.
    pub leaders: Vec<Option<NodeId>>,
}

/// A member as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Who.
    pub node: NodeId,
    /// Where it listens, as multiaddresses.
    pub addresses: Vec<String>,
    /// Its share of the ring relative to others.
    pub weight: u32,
    /// `alive`, `suspect`, `dead` or `left`.
    pub state: crate::membership::MemberState,
    /// For how long it has been so, in milliseconds by the clock of the node that answers. `None`: that node knows
    /// the member from before its own restart and has not heard of it since.
    pub since_ms: Option<u64>,
    /// Whether it is handing over its replicas in order to leave.
    pub draining: bool,
    /// Whether it counts for placement now.
    pub on_ring: bool,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Version of the program.
    pub version: String,
    /// The swarm's name.
    pub name: String,
    /// Its swarm, or that it has none.
    pub state: SwarmState,
    /// Where it listens, as multiaddresses.
    pub addresses: Vec<String>,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// Nodes it is linked with.
    pub links: Vec<NodeId>,
    /// Whether it is leaving.
    pub leaving: bool,
    /// The replicas that it holds.
    pub replicas: Vec<PartitionStatus>,
    /// Its data directory; `None`: it keeps nothing across a restart.
    pub storage: Option<StorageStatus>,
}

/// How a node's data directory is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StorageStatus {
    /// Where it is.
    pub path: String,
    /// Whether the disk is full: writes are refused, reads go on.
    pub full: bool,
    /// Syncs since the start.
    pub fsyncs: u64,
    /// Bytes written since the start.
    pub bytes_written: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of the partitions' states.
    pub state_bytes: u64,
}

/// One replica as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: PartitionId,
    /// Who leads, as far as known.
    pub leader: Option<NodeId>,
    /// Whether this replica leads and reaches a quorum, or follows a leader that it hears.
    pub has_quorum: bool,
    /// The nodes whose replicas vote.
    pub voters: Vec<NodeId>,
    /// The nodes whose replicas are being brought up.
    pub learners: Vec<NodeId>,
    /// Keys held.
    pub keys: u64,
    /// Bytes of keys and values held.
    pub bytes: u64,
    /// Log index applied last.
    pub applied: u64,
    /// Entries kept in the log.
    pub log_entries: u64,
    /// Raft's term.
    pub term: u64,
    /// Index and term of the last entry held, applied or not: who holds most is the freshest.
    pub last: (u64, u64),
    /// Something of the replica was lost on the disk: it takes no part, and is replaced by its group.
    pub damaged: bool,
}
