//! The network: moves bytes between processes that share a swarm's name and secret. The only module that knows
//! libp2p; it knows nothing of swarms being founded, of members, or of what the bytes mean.
//!
//! **Guarantees.** A process is linked with a node at most once. For each node, [`Inbound::link_up`] and
//! [`Inbound::link_down`] alternate strictly, and requests and messages come only in between. Messages on one
//! link arrive in the order in which they were sent, or the link goes down. A call ends in its response, in
//! [`CallError::NotSent`] (it did not reach a handler) or in [`CallError::Lost`] (nobody knows), never later
//! than its timeout. Whom we were told to [`keep`](Net::keep) or [`dial`](Net::dial) is dialled whenever it is not
//! linked, for ever.
//!
//! **Method.** One task owns the libp2p swarm and only dials, listens and reports. Each connection has two
//! substreams that are polled by tasks of their own (`link`), so no data passes the swarm task. Who may
//! connect is decided in three steps: the Noise handshake over a hash of name and secret (`identity`), a mutual
//! proof (`admission`), and one link per node (`registry`). What to dial and when is a pure function of time
//! (`book`): libp2p by itself does not heal.

mod address;
mod admission;
mod behaviour;
mod book;
mod frame;
mod identity;
mod link;
mod registry;
mod swarm;
#[cfg(test)]
mod tests;
mod ticket;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use libp2p::Multiaddr;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use address::{AddressError, DEFAULT_PORT};
pub use identity::{Identity, Secret, SecretError};
pub(crate) use link::stand_back;
pub use link::{Heartbeat, Responder};
pub use ticket::{Ticket, TicketError};

use crate::id::NodeId;
use crate::wire::{self, PROTOCOL_VERSION, Request, Response, Rpc, RpcError};
use admission::Ourselves;
use book::Book;
use link::{Link, lock};
use registry::Registry;

/// Events that may wait for their reader. Further ones are dropped: they inform, nothing depends on them.
const MAX_WAITING_EVENTS: usize = 256;
/// Refusals and failures that are remembered in order to be reported once.
const MAX_REMEMBERED_REPORTS: usize = 1024;
/// How long [`Net::cut_all`] waits for the links to end, which takes no input or output.
const CUT_LIMIT: Duration = Duration::from_secs(1);
/// How long [`Net::shutdown`] waits for the tasks to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// Whether a process is part of the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It serves.
    Member = 1,
    /// It only asks, and listens nowhere.
    Visitor = 2,
}

impl Role {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Member),
            2 => Some(Self::Visitor),
            _ => None,
        }
    }
}

/// Which port a listen address without one gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortPolicy {
    /// This one; 0 lets the system choose.
    Exact(u16),
    /// The first free one from `base` on, so that several nodes start on one machine without a flag.
    CountUp {
        /// Where to begin.
        base: u16,
        /// How many ports to try. At least 1.
        tries: u16,
    },
}

impl Default for PortPolicy {
    fn default() -> Self {
        Self::CountUp { base: DEFAULT_PORT, tries: 100 }
    }
}

/// What a [`Net`] is started with.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Who this process is. No other living process may have the same.
    pub identity: Identity,
    /// Processes of another name are strangers.
    pub swarm_name: String,
    /// Processes with another secret are strangers. `None`: whoever knows the name may come.
    pub secret: Option<Secret>,
    /// Whether this process serves.
    pub role: Role,
    /// IP addresses to listen at, as `ip`, `ip:port` or multiaddress. `0.0.0.0`: all interfaces. Empty for a
    /// visitor.
    pub listen: Vec<String>,
    /// For listen addresses without a port. All of them get the same.
    pub port: PortPolicy,
    /// Find others on the local network, and be found. Needs a listen address that is not loopback.
    pub mdns: bool,
    /// When a silent link is closed. The same everywhere in a swarm.
    pub heartbeat: Heartbeat,
    /// Spoken here; another one is refused. Not [`PROTOCOL_VERSION`] only in tests.
    pub protocol_version: u8,
}

impl NetConfig {
    /// A member that listens nowhere yet, in an open swarm.
    pub fn new(identity: Identity, swarm_name: impl Into<String>) -> Self {
        Self {
            identity,
            swarm_name: swarm_name.into(),
            secret: None,
            role: Role::Member,
            listen: Vec::new(),
            port: PortPolicy::default(),
            mdns: false,
            heartbeat: Heartbeat::default(),
            protocol_version: PROTOCOL_VERSION,
        }
    }
}

/// Takes what comes in. Called on the tasks of the link: must return soon and must not block.
pub trait Inbound: Send + Sync + 'static {
    /// A link came up. Requests and messages of this link come after this returned.
    fn link_up(&self, link: &LinkInfo);
    /// The link with `node` went down, and why. Nothing of this link comes any more; its pending calls have
    /// failed.
    fn link_down(&self, node: NodeId, reason: &str);
    /// A request. Answer through `respond`, now or later.
    fn request(&self, from: NodeId, role: Role, body: Bytes, respond: Responder);
    /// A one-way message.
    fn message(&self, from: NodeId, body: Bytes);
}

/// A link, as it was a moment ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Who is at the other end.
    pub node: NodeId,
    /// Whether it serves.
    pub role: Role,
    /// Where it is: where we dialled it, or where it came from.
    pub address: String,
    /// Whether it dialled us.
    pub inbound: bool,
    /// How long the link has been up.
    pub age: Duration,
}

/// What happened that is worth telling a user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// An address given to [`Net::dial`] leads to this node, which is linked now.
    Reached {
        /// The address.
        address: String,
        /// Who answers there.
        node: NodeId,
    },
    /// An address given to [`Net::dial`] could not be reached. Said once per address and reason; dialling goes
    /// on.
    DialFailed {
        /// The address.
        address: String,
        /// Why, in words for a user.
        reason: String,
    },
    /// Somebody who does not belong here was met. Said once per address and reason.
    Refused {
        /// Where.
        address: String,
        /// Why, in words for a user.
        reason: String,
    },
    /// We can be reached at another address now.
    NewListenAddress(String),
    /// We cannot be reached at this address any more.
    ListenAddressGone(String),
}

/// Why a [`Net`] did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// An address to listen at is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Another program listens there.
    #[error(
        "port {port} of {ip} is in use by another program; choose another port, or none to let it count up"
    )]
    PortInUse {
        /// The IP address.
        ip: std::net::IpAddr,
        /// The port.
        port: u16,
    },
    /// All ports of [`PortPolicy::CountUp`] are taken.
    #[error("ports {first} to {last} are all in use")]
    AllPortsInUse {
        /// The first one tried.
        first: u16,
        /// The last one tried.
        last: u16,
    },
    /// The system refuses to listen there.
    #[error("cannot listen at {address}: {reason}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// Discovery on the local network is not possible.
    #[error("cannot start mDNS discovery: {0}")]
    Mdns(std::io::Error),
    /// The handshake's keys could not be made.
    #[error("cannot prepare the encrypted transport: {0}")]
    Transport(String),
}

/// Why a call has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request did not reach a handler: nothing was done.
    #[error("not sent: {0}")]
    NotSent(&'static str),
    /// The request left and no response came: it may have been handled.
    #[error("no response: {0}")]
    Lost(&'static str),
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no link to the node.
    #[error("no link")]
    NoLink,
    /// Too much waits to be sent already.
    #[error("too much waits to be sent")]
    Full,
    /// Longer than [`MAX_MESSAGE_BYTES`](crate::codec::MAX_MESSAGE_BYTES).
    #[error("the message is too large")]
    TooLarge,
}

/// The network as a process sees it. Cheap to clone; when the last clone is dropped, all connections are cut.
///
/// [`dial`](Self::dial), [`keep`](Self::keep) and [`want`](Self::want) are wishes and return at once; a link
/// that comes of them is reported to [`Inbound::link_up`]. [`call`](Self::call) and [`send`](Self::send) use
/// the links that there are.
///
/// An [`Inbound`] that holds a `Net` of its own keeps itself alive: end it with [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Net {
    shared: Arc<Shared>,
    /// Cuts everything when the last handle is gone.
    _alive: Arc<DropGuard>,
}

/// What handles and tasks share.
struct Shared {
    us: Ourselves,
    inbound: Arc<dyn Inbound>,
    heartbeat: Heartbeat,
    registry: Arc<Registry>,
    book: Mutex<Book>,
    book_changed: Notify,
    listening: RwLock<BTreeSet<Multiaddr>>,
    events: mpsc::Sender<NetEvent>,
    /// What was said last about an address, so that it is not said again.
    reported: Mutex<HashMap<String, String>>,
    /// Close everything in good order.
    stop: CancellationToken,
    /// Drop everything.
    kill: CancellationToken,
    tasks: TaskTracker,
}

impl Net {
    /// Listens and connects from now on. What comes in is handed to `inbound`.
    ///
    /// # Errors
    /// If it cannot listen where it is told to.
    pub async fn start(
        config: NetConfig,
        inbound: Arc<dyn Inbound>,
    ) -> Result<(Self, mpsc::Receiver<NetEvent>), NetError> {
        let (events, receiver) = mpsc::channel(MAX_WAITING_EVENTS);
        let us = Ourselves {
            node: config.identity.node_id(),
            instance: rand::random(),
            role: config.role,
            version: config.protocol_version,
            secret: config.secret.clone(),
        };
        let kill = CancellationToken::new();
        let alive = Arc::new(kill.clone().drop_guard());
        let shared = Arc::new(Shared {
            inbound,
            heartbeat: config.heartbeat,
            registry: Registry::new(us.node, config.heartbeat),
            book: Mutex::new(Book::new(us.node, rand::random())),
            book_changed: Notify::new(),
            listening: RwLock::default(),
            events,
            reported: Mutex::default(),
            stop: CancellationToken::new(),
            kill,
            tasks: TaskTracker::new(),
            us,
        });
        swarm::start(&config, Arc::clone(&shared)).await?;
        let net = Self { shared, _alive: alive };
        Ok((net, receiver))
    }

    /// This process.
    pub fn node_id(&self) -> NodeId {
        self.shared.us.node
    }

    /// Where this process can be reached now, as multiaddresses: ports as they are, a wildcard as the
    /// addresses of all interfaces.
    pub fn listen_addresses(&self) -> Vec<String> {
        let listening = self.shared.listening.read().unwrap_or_else(PoisonError::into_inner);
        listening.iter().map(ToString::to_string).collect()
    }

    /// Dials an address whenever the node there is not linked, until [`undial`](Self::undial): `host:port`, `ip:port`, a host
    /// or IP alone, or a multiaddress. Reported as [`NetEvent::Reached`] or [`NetEvent::DialFailed`].
    ///
    /// # Errors
    /// If it is not an address that can be dialled.
    pub fn dial(&self, address: &str) -> Result<(), AddressError> {
        let address = address::parse(address)?;
        self.shared.forget_report(&address.to_string());
        lock(&self.shared.book).dial(address, Instant::now());
        self.shared.book_changed.notify_one();
        Ok(())
    }

    /// Ends [`dial`](Self::dial) of the same address.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn undial(&self, address: &str) -> Result<(), AddressError> {
        lock(&self.shared.book).undial(&address::parse(address)?);
        Ok(())
    }

    /// Keeps a link to `node`, which listens at `addresses`, until [`forget`](Self::forget). Addresses that
    /// are none are ignored. Called again, it replaces the addresses.
    #[expect(clippy::needless_pass_by_value, reason = "callers have made it for this")]
    pub fn keep(&self, node: NodeId, addresses: Vec<String>) {
        lock(&self.shared.book).keep(node, dialable(&addresses), Instant::now());
        self.shared.book_changed.notify_one();
    }

    /// Tries for ten seconds to link with `node`, which listens at `addresses`. May be called again at any
    /// time.
    #[expect(clippy::needless_pass_by_value, reason = "callers have made it for this")]
    pub fn want(&self, node: NodeId, addresses: Vec<String>) {
        if self.is_linked(node) {
            return;
        }
        lock(&self.shared.book).want(node, dialable(&addresses), Instant::now());
        self.shared.book_changed.notify_one();
    }

    /// Ends [`keep`](Self::keep) and [`want`](Self::want). A link that is up stays up.
    pub fn forget(&self, node: NodeId) {
        lock(&self.shared.book).forget(node);
    }

    /// Closes the link with `node`, if there is one; the other side hears `why`. If the node is kept, it is
    /// dialled again.
    pub fn close(&self, node: NodeId, why: &str) {
        if let Some(link) = self.link(node) {
            link.close(why);
        }
    }

    /// Cuts all links without a word, and returns when nothing of them comes in any more.
    pub async fn cut_all(&self, why: &str) {
        let links = self.shared.registry.links();
        for link in &links {
            link.abort(why);
        }
        let all_ended = async {
            for link in &links {
                link.ended.cancelled().await;
            }
        };
        if tokio::time::timeout(CUT_LIMIT, all_ended).await.is_err() {
            tracing::warn!("a link does not end");
        }
    }

    /// Whether `node` is linked now.
    pub fn is_linked(&self, node: NodeId) -> bool {
        self.link(node).is_some()
    }

    /// The links that are up, by node.
    pub fn links(&self) -> Vec<LinkInfo> {
        let mut links: Vec<_> = self.shared.registry.links().iter().map(|link| link.info()).collect();
        links.sort_by_key(|link| link.node);
        links
    }

    /// Sends a request and waits for its response, at most `timeout`. Needs a link.
    ///
    /// # Errors
    /// [`CallError`] says whether the request may have been handled.
    pub async fn call(&self, to: NodeId, body: Vec<u8>, timeout: Duration) -> Result<Bytes, CallError> {
        let link = self.link(to).ok_or(CallError::NotSent("no link"))?;
        link.call(&body, timeout).await
    }

    /// Queues a one-way message. It arrives after those sent before, or not at all if the link goes down.
    ///
    /// # Errors
    /// If there is no link or its queue is full: the message is dropped.
    #[expect(clippy::needless_pass_by_value, reason = "callers have made it for this")]
    pub fn send(&self, to: NodeId, body: Vec<u8>) -> Result<(), SendError> {
        self.link(to).ok_or(SendError::NoLink)?.send(&body)
    }

    /// Writes what is queued, closes all links and the listeners, and waits for the tasks to end, a few
    /// seconds at most.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let _ = tokio::time::timeout(SHUTDOWN_LIMIT, self.shared.tasks.wait()).await;
        self.shared.kill.cancel();
    }

    /// Cuts everything at once, as the end of the process would.
    pub fn abort(&self) {
        self.shared.kill.cancel();
    }

    fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.shared.registry.link(node)
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Net({:?})", self.node_id())
    }
}

fn dialable(addresses: &[String]) -> Vec<Multiaddr> {
    addresses.iter().filter_map(|text| address::parse(text).ok()).collect()
}

impl Rpc for Net {
    async fn call(&self, to: NodeId, request: Request, timeout: Duration) -> Result<Response, RpcError> {
        let body = wire::encode(&request);
        let response = Net::call(self, to, body, timeout).await.map_err(|error| match error {
            CallError::NotSent(why) => RpcError::NotSent(why),
            CallError::Lost(why) => RpcError::Lost(why),
        })?;
        wire::decode(&response).map_err(|_| RpcError::Lost("the response is malformed"))
    }

    /// Members only: a visitor cannot be asked.
    fn linked(&self) -> Vec<NodeId> {
        let links = self.links().into_iter();
        links.filter(|link| link.role == Role::Member).map(|link| link.node).collect()
    }

    fn is_linked(&self, node: NodeId) -> bool {
        self.link(node).is_some_and(|link| link.role == Role::Member)
    }

    fn want(&self, node: NodeId, addresses: &[String]) {
        Net::want(self, node, addresses.to_vec());
    }
}

impl Shared {
    fn tell(&self, event: NetEvent) {
        if self.events.try_send(event).is_err() {
            tracing::debug!("nobody reads network events: one is dropped");
        }
    }

    /// Reports an event about an address unless the same was said of it before.
    fn tell_once(&self, address: &str, reason: &str, event: impl FnOnce(String, String) -> NetEvent) {
        let mut reported = lock(&self.reported);
        if reported.get(address).is_some_and(|last| last == reason) {
            return;
        }
        if reported.len() >= MAX_REMEMBERED_REPORTS {
            reported.clear();
        }
        reported.insert(address.to_owned(), reason.to_owned());
        drop(reported);
        self.tell(event(address.to_owned(), reason.to_owned()));
    }

    fn forget_report(&self, address: &str) {
        lock(&self.reported).remove(address);
    }

    fn refused(&self, address: &str, reason: &str) {
        self.tell_once(address, reason, |address, reason| NetEvent::Refused { address, reason });
    }
}
