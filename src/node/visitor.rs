//! A client without a node: linked to the swarm, holding nothing, no member.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::builder::{DEFAULT_SWARM, StartError, split};
use super::new_client;
use super::rendezvous::Rendezvous;
use crate::client::Client;
use crate::id::NodeId;
use crate::net::{Identity, Inbound, LinkInfo, Net, NetConfig, NetError, NetEvent, Responder, Role, Secret};

/// How long to try to reach the swarm if nothing else is said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most reasons for which addresses failed that an error repeats.
const MAX_REASONS: usize = 4;

/// Collects what a visitor needs to know; see [`Visitor::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct VisitorBuilder {
    swarm: String,
    secret: Option<Secret>,
    join: Vec<String>,
    timeout: Duration,
    runtime_directory: Option<PathBuf>,
}

impl VisitorBuilder {
    /// Name of the swarm. Default: that of the ticket, else [`DEFAULT_SWARM`].
    pub fn swarm(mut self, name: impl Into<String>) -> Self {
        self.swarm = name.into();
        self
    }

    /// The swarm's secret. Default: that of the ticket or of the nodes on this machine.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Addresses or tickets of the swarm. Default: the nodes of this user on this machine.
    pub fn join(mut self, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.join = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// How long to try to reach the swarm. Default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the nodes of this user on this machine are found.
    pub fn runtime_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.runtime_directory = Some(directory.into());
        self
    }

    /// Links to the swarm.
    ///
    /// # Errors
    /// If no node of it can be reached.
    pub async fn connect(self) -> Result<Visitor, ConnectError> {
        let (tickets, mut addresses) = split(&self.join)?;
        let swarm = tickets.first().map_or_else(|| self.swarm.clone(), |ticket| ticket.name.clone());
        addresses.extend(tickets.iter().flat_map(|ticket| ticket.addresses.iter().cloned()));
        let neighbours = Rendezvous::open(self.runtime_directory.clone())
            .map(|rendezvous| rendezvous.nodes(&swarm))
            .unwrap_or_default();
        let secret = self
            .secret
            .or_else(|| tickets.first().and_then(|ticket| ticket.secret.clone()))
            .or_else(|| neighbours.first()?.secret.as_deref()?.parse().ok());
        let local: Vec<NodeId> =
            neighbours.iter().filter_map(|neighbour| neighbour.node.parse().ok()).collect();
        if self.join.is_empty() {
            addresses.extend(neighbours.into_iter().flat_map(|neighbour| neighbour.addresses));
            if addresses.is_empty() {
                return Err(ConnectError::NoNode { swarm });
            }
        }

        let linked = Arc::new(Notify::new());
        let mut config = NetConfig::new(Identity::generate(), swarm.as_str());
        config.secret = secret;
        config.role = Role::Visitor;
        let (net, mut events) = Net::start(config, Arc::new(Door { linked: Arc::clone(&linked) })).await?;
        for address in &addresses {
            net.dial(address).map_err(|error| StartError::Address(error.to_string()))?;
        }
        let mut reasons = Vec::new();
        let reached =
            tokio::time::timeout(self.timeout, first_link(&linked, &mut events, &mut reasons)).await;
        if reached.is_err() {
            net.shutdown().await;
            reasons.dedup();
            reasons.truncate(MAX_REASONS);
            return Err(ConnectError::Unreachable { swarm, reasons });
        }
        Ok(Visitor { net, local, _events: events })
    }
}

async fn first_link(linked: &Notify, events: &mut mpsc::Receiver<NetEvent>, reasons: &mut Vec<String>) {
    loop {
        tokio::select! {
            () = linked.notified() => return,
            Some(event) = events.recv() => match event {
                NetEvent::DialFailed { address, reason } | NetEvent::Refused { address, reason } => {
                    let reason = format!("{address}: {reason}");
                    if !reasons.contains(&reason) && reasons.len() < MAX_REASONS {
                        reasons.push(reason);
                    }
                }
                _ => {}
            },
        }
    }
}

/// A client of a swarm that runs in other processes: linked to it, but no member, and holding nothing.
#[derive(Debug)]
pub struct Visitor {
    net: Net,
    local: Vec<NodeId>,
    _events: mpsc::Receiver<NetEvent>,
}

impl Visitor {
    /// Begins to describe a visitor; everything has a default.
    pub fn builder() -> VisitorBuilder {
        VisitorBuilder {
            swarm: DEFAULT_SWARM.to_owned(),
            secret: None,
            join: Vec::new(),
            timeout: CONNECT_TIMEOUT,
            runtime_directory: None,
        }
    }

    /// A client of the swarm. Cheap; every clone of it is the same session.
    pub fn client(&self) -> Client<Net> {
        new_client(self.net.clone())
    }

    /// A node that the visitor is linked with, if there is one at the moment.
    pub fn linked_node(&self) -> Option<NodeId> {
        self.net.links().first().map(|link| link.node)
    }

    /// The swarm's nodes that this user ran on this machine when the visitor connected.
    pub fn local_nodes(&self) -> &[NodeId] {
        &self.local
    }

    /// Closes the links.
    pub async fn close(self) {
        self.net.shutdown().await;
    }
}

impl Client<Net> {
    /// A client of the swarm at an address (`192.168.1.7:7400`, a multiaddress) or of a ticket (`rt1...`), as a
    /// visitor: linked as long as the client or a clone of it lives. An address alone leads into an open swarm,
    /// or into one whose secret a node of this user on this machine has; [`Visitor::builder`] takes a secret.
    ///
    /// # Errors
    /// If no node of the swarm can be reached. Nothing has happened then.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let machine = tempfile::tempdir()?;
    /// use roundtable::client::Client;
    /// use roundtable::node::Node;
    ///
    /// let node = Node::builder()
    ///     .swarm("example")
    /// #   .port(0).runtime_directory(machine.path().join("run"))
    ///     .start()
    ///     .await?;
    /// let client = Client::connect(node.ticket()).await?;
    /// client.put("greeting", "hello").await?;
    /// # node.leave().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(to: impl Into<String>) -> Result<Self, ConnectError> {
        Ok(Visitor::builder().join([to.into()]).connect().await?.client())
    }
}

/// What a visitor does with what it is sent: nothing.
#[derive(Debug)]
struct Door {
    linked: Arc<Notify>,
}

impl Inbound for Door {
    fn link_up(&self, _link: &LinkInfo) {
        self.linked.notify_one();
    }

    fn link_down(&self, _node: NodeId, _reason: &str) {}

    fn request(&self, _from: NodeId, _role: Role, _body: Bytes, _respond: Responder) {}

    fn message(&self, _from: NodeId, _body: Bytes) {}
}

fn listed(reasons: &[String]) -> String {
    reasons.iter().flat_map(|reason| ["; ", reason]).collect()
}

/// Why the swarm was not reached. Nothing has happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody to ask.
    #[error("no node of the swarm `{swarm}` runs on this machine for this user")]
    NoNode {
        /// The swarm.
        swarm: String,
    },
    /// Nobody answered.
    #[error("no node of the swarm `{swarm}` was reached{}", listed(reasons))]
    Unreachable {
        /// The swarm.
        swarm: String,
        /// Why, for each address as far as known.
        reasons: Vec<String>,
    },
    /// What was said contradicts itself.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
}
