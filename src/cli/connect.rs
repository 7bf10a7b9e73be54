//! From what was typed to a node, or to a client of a swarm.
//!
//! TEMPORARY BODY: `stand_in` takes the place of `node::{Node, Visitor}` until they are there; the rest of the
//! command line is written against these signatures.

use std::path::PathBuf;
use std::time::Duration;

use super::exit::{Code, Failure};
use super::up::Up;
use crate::client::Error;
use crate::id::NodeId;

/// Which swarm is meant, and how to reach it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The swarm's name.
    pub(super) swarm: String,
    /// Where its secret is.
    pub(super) secret_file: Option<PathBuf>,
    /// Addresses and tickets.
    pub(super) join: Vec<String>,
    /// Whether to look by multicast DNS.
    pub(super) mdns: bool,
    /// Where the nodes of this machine leave their addresses.
    pub(super) runtime_dir: Option<PathBuf>,
    /// How long an operation may take.
    pub(super) timeout: Duration,
}

pub(super) use stand_in::{MemberChange, Node, NodeEvent, VisitorRpc};

/// The client that every command uses.
pub(super) type Client = crate::client::Client<VisitorRpc>;

/// A connection to a swarm; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Session {
    /// Speaks to the swarm, with the deadline that was asked for.
    pub(super) client: Client,
}

impl Session {
    /// The nodes that can be asked without dialling, those of this machine first.
    pub(super) fn linked(&self) -> Vec<NodeId> {
        Vec::new()
    }
}

/// Connects as a visitor: through the nodes of this machine, or the addresses and tickets given.
pub(super) async fn connect(_target: &Target) -> Result<Session, Failure> {
    Err(Failure::new(Code::Unreachable, "not linked with the library yet"))
}

/// Starts a node.
pub(super) async fn start(_target: &Target, _up: &Up) -> Result<Node, Failure> {
    Err(Failure::other("not linked with the library yet"))
}

/// The addresses behind `--join`, those within tickets included, and whether a secret came with them.
pub(super) fn looked_up(join: &[String]) -> Result<(Vec<String>, bool), Failure> {
    Ok((join.to_vec(), false))
}

/// Whether a secret was given by file or environment.
pub(super) fn has_secret(target: &Target) -> bool {
    target.secret_file.is_some() || std::env::var_os("ROUNDTABLE_SECRET").is_some()
}

/// Says for people what went wrong, whether anything was changed and what to do, with the exit code.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, advice) = match &error {
            Error::NotFound => (Code::NotFound, "nothing was changed"),
            Error::Conflict { .. } => (
                Code::Conflict,
                "nothing was written; read it again and try with that version",
            ),
            Error::NoQuorum => (
                Code::NoQuorum,
                "nothing was changed; `roundtable members` shows who is missing, `get --stale` reads nevertheless",
            ),
            Error::Overloaded => (
                Code::Failed,
                "nothing was changed; try again later or with a longer --timeout",
            ),
            Error::Unreachable => (
                Code::Unreachable,
                "nothing was changed; `roundtable up` starts a node, --join names one elsewhere",
            ),
            Error::NotServing => (
                Code::Unreachable,
                "nothing was changed; try again in a moment, `roundtable status` shows why",
            ),
            Error::TimedOut => (Code::Unreachable, "nothing was changed; try a longer --timeout"),
            Error::Unknown => (Code::Unknown, "read the key to see whether it was"),
            _ => (Code::Failed, "nothing was changed"),
        };
        Self::new(code, format!("{error}: {advice}"))
    }
}

mod stand_in {
    use std::time::Duration;

    use tokio::sync::broadcast;

    use crate::id::{NodeId, SwarmId};
    use crate::wire::{Request, Response, Rpc, RpcError};

    #[derive(Debug, Clone)]
    pub(in crate::cli) struct VisitorRpc;

    impl Rpc for VisitorRpc {
        async fn call(&self, _: NodeId, _: Request, _: Duration) -> Result<Response, RpcError> {
            Err(RpcError::NotSent("stand-in"))
        }
        fn linked(&self) -> Vec<NodeId> {
            Vec::new()
        }
        fn want(&self, _: NodeId, _: &[String]) {}
    }

    #[derive(Debug)]
    pub(in crate::cli) struct Node(broadcast::Sender<NodeEvent>);

    impl Node {
        pub(in crate::cli) fn id(&self) -> NodeId {
            NodeId::from_public_key([0; 32])
        }
        pub(in crate::cli) fn events(&self) -> broadcast::Receiver<NodeEvent> {
            self.0.subscribe()
        }
        pub(in crate::cli) fn addresses(&self) -> Vec<String> {
            Vec::new()
        }
        pub(in crate::cli) fn ticket(&self) -> String {
            String::new()
        }
        pub(in crate::cli) async fn leave(&self) {}
        pub(in crate::cli) async fn stop(&self) {}
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(in crate::cli) enum NodeEvent {
        Listening(String),
        Looking,
        Founded(SwarmId),
        Joined(SwarmId),
        Member {
            node: NodeId,
            change: MemberChange,
            address: Option<String>,
            alive: usize,
        },
        DialFailed {
            address: String,
            reason: String,
        },
        Refused {
            address: String,
            reason: String,
        },
        Apart {
            ours: SwarmId,
            theirs: SwarmId,
        },
        Dissolved {
            from: SwarmId,
            into: SwarmId,
        },
        Draining {
            remaining: usize,
        },
        Left,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in crate::cli) enum MemberChange {
        Joined,
        Suspected,
        Recovered,
        Draining,
        Died,
        Left,
    }
}
