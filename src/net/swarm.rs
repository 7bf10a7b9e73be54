//! The one task that owns the libp2p swarm: it dials, listens and reports, and sees no data.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::num::NonZeroU8;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, ListenerId, TransportError};
use libp2p::core::upgrade::Version;
use libp2p::core::{ConnectedPoint, Transport};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Stream, Swarm, dns, mdns, noise, tcp, yamux};
use tokio::time::Instant;

use super::address::{parse_listen, tcp as tcp_address, without_peer};
use super::admission::{self, AdmissionError, Verdict};
use super::behaviour::{Behaviour, BehaviourEvent, ChannelsEvent};
use super::book::{Failure, Target};
use super::identity::prologue;
use super::link::{self, Link, lock};
use super::{NetConfig, NetError, NetEvent, PortPolicy, Role, Shared};
use crate::id::NodeId;

/// How long a dial, or the handshake of somebody who dialled us, may take.
const DIAL_LIMIT: Duration = Duration::from_secs(2);
/// How long the substreams and then the admission of a new connection may take, each.
const ADMISSION_LIMIT: Duration = Duration::from_secs(5);
/// How long the system may take to name the addresses that it listens at.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);
/// How long a listener on all interfaces waits for the first that others reach, if there is one: the system names
/// the loopback interface first or last, as it likes, and who we are told to be is told by these addresses.
const INTERFACES_LIMIT: Duration = Duration::from_millis(250);
/// How long nothing new must be named until all interfaces are taken to be known.
const INTERFACES_QUIET: Duration = Duration::from_millis(20);
/// How long a refused connection stays open so that the other side reads why.
const LINGER: Duration = Duration::from_millis(250);
/// How long the links have to say goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// A connection to our own name without its other end in this process for so long leads to another process.
const SELF_DIAL_LIMIT: Duration = Duration::from_secs(1);
/// Who failed in the handshake is a stranger unless a friend got through it within this time.
const VISIT_LIMIT: Duration = Duration::from_secs(1);
/// Strangers that are considered at the same time.
const MAX_STRANGERS: usize = 64;
/// Substreams of a connection: two, and a few for a peer that counts differently.
const MAX_SUBSTREAMS: usize = 8;
/// Events of one connection that may wait for the swarm task.
const CONNECTION_EVENTS: usize = 64;
/// Addresses of one node that are dialled at the same time.
const CONCURRENT_DIALS: NonZeroU8 = NonZeroU8::new(8).expect("8 is not 0");

const STRANGER: &str = "it has another secret or swarm name, or is not Roundtable";
const HUNG_UP: &str = "it closed the connection in the handshake";
const NO_PEER: &str = "something that is not Roundtable answers there";

/// Starts listening, then the swarm task.
pub(super) async fn start(config: &NetConfig, shared: Arc<Shared>) -> Result<(), NetError> {
    let keypair = config.identity.keypair();
    let us = keypair.public().to_peer_id();
    let mdns = config
        .mdns
        .then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), us))
        .transpose()
        .map_err(NetError::Mdns)?;
    let tasks = shared.tasks.clone();
    let kill = shared.kill.clone();
    let settings = libp2p::swarm::Config::with_executor(move |task| {
        let kill = kill.clone();
        tasks.spawn(async move { kill.run_until_cancelled(task).await });
    })
    .with_per_connection_event_buffer_size(CONNECTION_EVENTS)
    .with_dial_concurrency_factor(CONCURRENT_DIALS)
    .with_max_negotiating_inbound_streams(MAX_SUBSTREAMS)
    .with_idle_connection_timeout(Duration::ZERO);
    let swarm = Swarm::new(transport(config)?, Behaviour::new(mdns, ADMISSION_LIMIT), us, settings);
    let mut task = SwarmTask {
        swarm,
        port_guards: Vec::new(),
        dials: HashMap::new(),
        connections: HashMap::new(),
        self_dialled: Vec::new(),
        self_accepted: Vec::new(),
        strangers: Vec::new(),
        last_visit: None,
        shared: Arc::clone(&shared),
    };
    task.listen(&config.listen, config.port).await?;
    shared.tasks.spawn(task.run());
    Ok(())
}

fn transport(config: &NetConfig) -> Result<Boxed<(PeerId, StreamMuxerBox)>, NetError> {
    let noise = noise::Config::new(&config.identity.keypair())
        .map_err(|error| NetError::Transport(error.to_string()))?
        .with_prologue(prologue(&config.swarm_name, config.secret.as_ref()));
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(MAX_SUBSTREAMS);
    let tcp = || tcp::tokio::Transport::new(tcp::Config::new().nodelay(true));
    // Without a readable resolver configuration addresses of digits still work, and names by public resolvers.
    let dns = dns::tokio::Transport::system(tcp()).unwrap_or_else(|_| {
        dns::tokio::Transport::custom(tcp(), dns::ResolverConfig::default(), dns::ResolverOpts::default())
    });
    // Not lazy: both ends must have finished before either may find that it dialled itself and hang up.
    Ok(dns.upgrade(Version::V1).authenticate(noise).multiplex(yamux).timeout(DIAL_LIMIT).boxed())
}

struct SwarmTask {
    swarm: Swarm<Behaviour>,
    /// Dropped after the swarm.
    port_guards: Vec<UdpSocket>,
    /// Dials that have no connection yet.
    dials: HashMap<ConnectionId, Target>,
    /// Connections that have no substreams yet.
    connections: HashMap<ConnectionId, Connection>,
    /// Connections to our own name that wait for their other end, in each direction.
    self_dialled: Vec<(Instant, String)>,
    self_accepted: Vec<(Instant, String)>,
    /// Who failed in the handshake lately: when, from where, how.
    strangers: Vec<(Instant, String, &'static str)>,
    /// When somebody who dialled us got through the handshake.
    last_visit: Option<Instant>,
    shared: Arc<Shared>,
}

/// A new connection, before admission.
struct Connection {
    id: ConnectionId,
    peer: PeerId,
    address: Multiaddr,
    /// What we dialled it for; `None` if the other side dialled.
    target: Option<Target>,
    inbound: bool,
}

impl SwarmTask {
    async fn run(mut self) {
        let kill = self.shared.kill.clone();
        kill.run_until_cancelled(async {
            let stop = self.shared.stop.clone();
            stop.run_until_cancelled(self.serve()).await;
            let registry = Arc::clone(&self.shared.registry);
            let drive = async {
                loop {
                    self.swarm.select_next_some().await;
                }
            };
            tokio::select! {
                () = drive => {}
                () = registry.emptied() => {}
                () = tokio::time::sleep(GOODBYE_LIMIT) => {}
            }
        })
        .await;
        for link in self.shared.registry.links() {
            link.abort("this process ends");
        }
    }

    async fn serve(&mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            self.dial_what_is_due();
            self.report_copies();
            self.report_strangers();
            let deadline = self.next_deadline();
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                () = shared.book_changed.notified() => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let copies = self.self_dialled.iter().chain(&self.self_accepted);
        let copies = copies.map(|(at, _)| *at + SELF_DIAL_LIMIT).min();
        let strangers = self.strangers.iter().map(|(at, ..)| *at + VISIT_LIMIT).min();
        let dial = lock(&self.shared.book).next_deadline();
        copies.into_iter().chain(strangers).chain(dial).min()
    }

    /// Listens at all of `addresses`, and returns when the system has named what it listens at.
    async fn listen(&mut self, addresses: &[String], policy: PortPolicy) -> Result<(), NetError> {
        let parsed: Vec<_> = addresses.iter().map(|text| parse_listen(text)).collect::<Result<_, _>>()?;
        let (first, tries) = match policy {
            PortPolicy::Exact(port) => (port, 1),
            PortPolicy::CountUp { base, tries } => (base, tries.max(1)),
        };
        let last = first.saturating_add(tries - 1);
        let mut waiting = Vec::new();
        for port in first..=last {
            match self.bind(&parsed, port) {
                Ok(listeners) => {
                    waiting = listeners;
                    break;
                }
                Err(NetError::PortInUse { port: taken, .. }) if taken == port && tries > 1 => {
                    if port == last {
                        return Err(NetError::AllPortsInUse { first, last });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let deadline = Instant::now() + LISTEN_LIMIT;
        while !waiting.is_empty() {
            let event =
                tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await.map_err(|_| {
                    NetError::Listen {
                        address: addresses.join(", "),
                        reason: "the system names no address".to_owned(),
                    }
                })?;
            if let SwarmEvent::NewListenAddr { listener_id, .. } = &event {
                waiting.retain(|waiting| waiting != listener_id);
            }
            self.handle(event);
        }
        if parsed.iter().any(|(ip, _)| ip.is_unspecified()) {
            self.hear_of_all_interfaces().await;
        }
        Ok(())
    }

    /// A listener on all interfaces gets to know them one by one.
    async fn hear_of_all_interfaces(&mut self) {
        let limit = Instant::now() + INTERFACES_LIMIT;
        loop {
            let until =
                if self.is_reachable() { limit.min(Instant::now() + INTERFACES_QUIET) } else { limit };
            match tokio::time::timeout_at(until, self.swarm.select_next_some()).await {
                Ok(event) => self.handle(event),
                Err(_) => return,
            }
        }
    }

    /// Whether it listens at an address that other machines can mean.
    fn is_reachable(&self) -> bool {
        let is_loopback = |address: &Multiaddr| match address.iter().next() {
            Some(Protocol::Ip4(ip)) => ip.is_loopback(),
            Some(Protocol::Ip6(ip)) => ip.is_loopback(),
            _ => false,
        };
        let listening = self.shared.listening.read().unwrap_or_else(PoisonError::into_inner);
        listening.iter().any(|address| !is_loopback(address))
    }

    /// Binds all addresses or none; those without a port to `port`.
    fn bind(&mut self, addresses: &[(IpAddr, Option<u16>)], port: u16) -> Result<Vec<ListenerId>, NetError> {
        let mut listeners = Vec::new();
        let mut guards = Vec::new();
        for &(ip, own_port) in addresses {
            let port = own_port.unwrap_or(port);
            let bound = guard_port(ip, port).and_then(|guard| {
                guards.extend(guard);
                self.swarm.listen_on(tcp_address(ip, port)).map_err(into_io)
            });
            match bound {
                Ok(listener) => listeners.push(listener),
                Err(error) => {
                    for listener in listeners {
                        self.swarm.remove_listener(listener);
                    }
                    return Err(if error.kind() == io::ErrorKind::AddrInUse {
                        NetError::PortInUse { ip, port }
                    } else {
                        NetError::Listen { address: format!("{ip} port {port}"), reason: error.to_string() }
                    });
                }
            }
        }
        self.port_guards.extend(guards);
        Ok(listeners)
    }

    fn dial_what_is_due(&mut self) {
        let now = Instant::now();
        let due = lock(&self.shared.book).due(now);
        for (target, addresses) in due {
            let opts = match &target {
                Target::Node(node) => match PeerId::from_bytes(&node.to_peer_id_bytes()) {
                    Ok(peer) => DialOpts::peer_id(peer)
                        .condition(PeerCondition::Always)
                        .addresses(addresses.iter().map(without_peer).collect())
                        .allocate_new_port()
                        .build(),
                    Err(_) => continue,
                },
                Target::Address(address) => {
                    DialOpts::unknown_peer_id().address(address.clone()).allocate_new_port().build()
                }
            };
            let id = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    self.dials.insert(id, target);
                }
                Err(error) => self.dial_failed(&target, &error),
            }
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Channels(event)) => self.handle_channels(event),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.handle_discovery(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let (address, inbound) = match endpoint {
                    ConnectedPoint::Dialer { address, .. } => (without_peer(&address), false),
                    ConnectedPoint::Listener { send_back_addr, .. } => {
                        self.last_visit = Some(Instant::now());
                        (send_back_addr, true)
                    }
                };
                let connection = Connection {
                    id: connection_id,
                    peer: peer_id,
                    address,
                    target: self.dials.remove(&connection_id),
                    inbound,
                };
                self.connections.insert(connection_id, connection);
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                if let Some(connection) = self.connections.remove(&connection_id) {
                    let reason = "it closed the connection right after the handshake";
                    self.shared.not_linked(&connection, Failure::Unreachable, reason);
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(target) = self.dials.remove(&connection_id) {
                    self.dial_failed(&target, &error);
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.handle_failed_visit(&send_back_addr, &error);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::debug!(%address, "listening");
                let mut listening = self.shared.listening.write().unwrap_or_else(PoisonError::into_inner);
                if listening.insert(address.clone()) {
                    self.shared.tell(NetEvent::NewListenAddress(address.to_string()));
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                let mut listening = self.shared.listening.write().unwrap_or_else(PoisonError::into_inner);
                if listening.remove(&address) {
                    self.shared.tell(NetEvent::ListenAddressGone(address.to_string()));
                }
            }
            SwarmEvent::ListenerClosed { reason, .. } => tracing::warn!(?reason, "a listener closed"),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed to accept"),
            _ => {}
        }
    }

    fn handle_channels(&mut self, event: ChannelsEvent) {
        let Some(connection) = self.connections.remove(&event.connection) else {
            return;
        };
        match event.outcome {
            Ok((requests, messages)) => {
                let served = serve(Arc::clone(&self.shared), connection, requests, messages);
                self.shared.tasks.spawn(served);
            }
            Err(reason) => self.shared.refuse(&connection, &reason),
        }
    }

    fn handle_discovery(&mut self, event: mdns::Event) {
        let now = Instant::now();
        let mut book = lock(&self.shared.book);
        match event {
            mdns::Event::Discovered(found) => {
                for (peer, address) in found {
                    if let Some(node) = NodeId::from_peer_id_bytes(&peer.to_bytes()) {
                        book.hint(node, without_peer(&address), now);
                    }
                }
            }
            mdns::Event::Expired(gone) => {
                for (peer, address) in gone {
                    if let Some(node) = NodeId::from_peer_id_bytes(&peer.to_bytes()) {
                        book.unhint(node, &without_peer(&address));
                    }
                }
            }
        }
    }

    fn dial_failed(&mut self, target: &Target, error: &DialError) {
        let now = Instant::now();
        let (failure, address, reason) = match error {
            DialError::LocalPeerId { address } => {
                lock(&self.shared.book).met_ourselves(target, now);
                self.met_ourselves(&without_peer(address));
                return;
            }
            // libp2p does not dial where we listen ourselves.
            DialError::NoAddresses => {
                let mut book = lock(&self.shared.book);
                match target {
                    Target::Address(_) => book.met_ourselves(target, now),
                    Target::Node(_) => book.failed(target, Failure::Unreachable, now),
                }
                return;
            }
            DialError::WrongPeerId { obtained, address } => {
                (Failure::Unreachable, Some(address), format!("another node answers there: {obtained}"))
            }
            DialError::Transport(errors) => match strangest(errors) {
                Some((address, cause)) => (cause.failure(), Some(address), cause.to_string()),
                None => (Failure::Unreachable, None, "no address to dial".to_owned()),
            },
            DialError::Denied { .. } => {
                (Failure::Unreachable, None, "there are too many connections already".to_owned())
            }
            other => (Failure::Unreachable, None, other.to_string()),
        };
        tracing::debug!(?target, reason, "dial failed");
        lock(&self.shared.book).failed(target, failure, now);
        match (target, address) {
            (Target::Address(typed), _) => self.shared.dial_failed(typed, failure, &reason),
            (Target::Node(_), Some(address)) if failure == Failure::Stranger => {
                self.shared.refused(&without_peer(address).to_string(), &reason);
            }
            _ => {}
        }
    }

    /// Somebody dialled us and did not get through the handshake.
    fn handle_failed_visit(&mut self, from: &Multiaddr, error: &ListenError) {
        match error {
            ListenError::LocalPeerId { .. } => {
                let now = Instant::now();
                if self.self_dialled.pop().is_none() {
                    self.self_accepted.push((now, host(from)));
                }
            }
            ListenError::Transport(TransportError::Other(error)) => match cause_of(error) {
                Cause::Stranger | Cause::HungUp => self.met_a_stranger(from, STRANGER),
                Cause::NotRoundtable => self.met_a_stranger(from, "it does not speak Roundtable"),
                Cause::Unreachable(reason) => tracing::debug!(%from, reason, "a visitor did not finish"),
            },
            other => tracing::debug!(%from, error = %other, "a visitor was not let in"),
        }
    }

    /// A friend that dials several of our addresses hangs up on all but one, perhaps in the middle of the
    /// handshake, and looks like a stranger then: wait whether a friend comes.
    fn met_a_stranger(&mut self, from: &Multiaddr, reason: &'static str) {
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.push((Instant::now(), host(from), reason));
        }
    }

    fn report_strangers(&mut self) {
        let now = Instant::now();
        let (shared, friend) = (&self.shared, self.last_visit);
        self.strangers.retain(|(since, from, reason)| {
            let is_over = now >= *since + VISIT_LIMIT;
            if is_over && friend.is_none_or(|friend| friend + VISIT_LIMIT < *since) {
                shared.refused(from, reason);
            }
            !is_over
        });
    }

    /// A dial led to our own name: to ourselves (then we also see it arrive), or to a copy of us.
    fn met_ourselves(&mut self, address: &Multiaddr) {
        let listening = self.shared.listening.read().unwrap_or_else(PoisonError::into_inner);
        let is_us = listening.contains(address);
        drop(listening);
        if self.self_accepted.pop().is_none() {
            let address = if is_us { String::new() } else { address.to_string() };
            self.self_dialled.push((Instant::now(), address));
        }
    }

    fn report_copies(&mut self) {
        let now = Instant::now();
        let shared = &self.shared;
        for waiting in [&mut self.self_dialled, &mut self.self_accepted] {
            waiting.retain(|(since, address)| {
                let is_over = now >= *since + SELF_DIAL_LIMIT;
                if is_over && !address.is_empty() {
                    shared.refused(
                        address,
                        "another process runs there with this node's identity: was its data directory copied?",
                    );
                }
                !is_over
            });
        }
    }
}

/// Admits a connection, or not, and runs the link that it becomes.
async fn serve(shared: Arc<Shared>, connection: Connection, mut requests: Stream, messages: Stream) {
    let Some(node) = NodeId::from_peer_id_bytes(&connection.peer.to_bytes()) else {
        shared.refuse(&connection, NO_PEER);
        return;
    };
    let admitted = tokio::select! {
        admitted = tokio::time::timeout(ADMISSION_LIMIT, admit(&shared, &connection, node, &mut requests)) => {
            admitted.unwrap_or_else(|_| Err(Denial::Broken("it did not finish the admission".to_owned())))
        }
        () = shared.stop.cancelled() => return,
        () = shared.kill.cancelled() => return,
    };
    let (peer, claim) = match admitted {
        Ok(admitted) => admitted,
        Err(denial) => {
            shared.denied(&connection, node, denial);
            // Closing at once could discard what the other side has yet to read.
            let heard = async {
                requests.close().await?;
                requests.read(&mut [0]).await
            };
            let _ = tokio::time::timeout(LINGER, heard).await;
            return;
        }
    };
    let link = Link::new(node, peer.role, connection.address.to_string(), connection.inbound);
    claim.activate(&link).await;
    lock(&shared.book).link_up(node, peer.role == Role::Member, Instant::now());
    shared.dial_succeeded(&connection, node);
    shared.inbound.link_up(&link.info());
    let end = {
        let mut running =
            std::pin::pin!(link::run(&link, requests, messages, &shared.inbound, shared.heartbeat));
        tokio::select! {
            reason = &mut running => reason,
            () = shared.stop.cancelled() => { link.close("it shuts down"); running.await }
            () = shared.kill.cancelled() => { link.abort("this process ends"); running.await }
        }
    };
    tracing::debug!(?node, end, "link down");
    claim.withdraw(&link);
    lock(&shared.book).link_down(node, Instant::now());
    shared.book_changed.notify_one();
    shared.inbound.link_down(node, &end);
    drop(claim);
}

/// Why a connection did not become a link.
enum Denial {
    Verdict { ours: Verdict, theirs: Verdict },
    Stranger(String),
    Broken(String),
}

impl From<AdmissionError> for Denial {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Broken(_) => Self::Broken(error.to_string()),
            AdmissionError::OtherVersion { .. } | AdmissionError::NotRoundtable => {
                Self::Stranger(error.to_string())
            }
        }
    }
}

async fn admit(
    shared: &Shared,
    connection: &Connection,
    node: NodeId,
    stream: &mut Stream,
) -> Result<(admission::Peer, super::registry::Claim), Denial> {
    let introduced = admission::introduce(stream, &shared.us, node).await?;
    let claimed = match introduced {
        Err(verdict) => Err(verdict),
        Ok(peer) => {
            shared.registry.claim(node, peer.instance, connection.id).await.map(|claim| (peer, claim))
        }
    };
    let ours = claimed.as_ref().err().copied().unwrap_or(Verdict::Welcome);
    let theirs = admission::conclude(stream, ours).await?;
    match (claimed, theirs) {
        (Ok(admitted), Verdict::Welcome) => Ok(admitted),
        _ => Err(Denial::Verdict { ours, theirs }),
    }
}

impl Shared {
    fn dial_succeeded(&self, connection: &Connection, node: NodeId) {
        let Some(target) = &connection.target else { return };
        lock(&self.book).succeeded(target, node, Instant::now());
        if let Target::Address(address) = target {
            self.forget_report(&address.to_string());
            self.tell(NetEvent::Reached { address: address.to_string(), node });
        }
    }

    fn dial_failed(&self, typed: &Multiaddr, failure: Failure, reason: &str) {
        match failure {
            // It was right, and the node is gone now: nothing that the user could correct.
            Failure::Unreachable if lock(&self.book).has_answered(typed) => {}
            Failure::Stranger => self.refused(&typed.to_string(), reason),
            Failure::Unreachable => self.tell_once(&typed.to_string(), reason, |address, reason| {
                NetEvent::DialFailed { address, reason }
            }),
        }
    }

    /// A connection led to nothing; if we dialled it, we will again.
    fn not_linked(&self, connection: &Connection, failure: Failure, reason: &str) {
        let Some(target) = &connection.target else { return };
        lock(&self.book).failed(target, failure, Instant::now());
        self.book_changed.notify_one();
        if let Target::Address(typed) = target {
            self.dial_failed(typed, failure, reason);
        }
    }

    /// The other end does not belong here: say so.
    fn refuse(&self, connection: &Connection, reason: &str) {
        self.not_linked(connection, Failure::Stranger, reason);
        match &connection.target {
            Some(Target::Address(_)) => {}
            Some(Target::Node(_)) => self.refused(&connection.address.to_string(), reason),
            None => self.refused(&host(&connection.address), reason),
        }
    }

    fn denied(&self, connection: &Connection, node: NodeId, denial: Denial) {
        match denial {
            Denial::Stranger(reason) => self.refuse(connection, &reason),
            Denial::Broken(reason) => {
                tracing::debug!(?node, reason, "admission failed");
                self.not_linked(connection, Failure::Unreachable, &reason);
            }
            Denial::Verdict { ours, theirs } => match (ours, theirs) {
                (Verdict::WrongSecret, _) | (_, Verdict::WrongSecret) => {
                    self.refuse(connection, "it has another secret");
                }
                (Verdict::Duplicate, _) => {
                    let reason = format!(
                        "a second process presents the identity of {node}, which is linked and alive: was a data directory copied?"
                    );
                    self.refuse(connection, &reason);
                }
                (_, Verdict::Duplicate) => self.refuse(
                    connection,
                    "another process runs with this node's identity: was its data directory copied?",
                ),
                (Verdict::Full, _) | (_, Verdict::Full) => {
                    self.not_linked(connection, Failure::Unreachable, "there are too many links already");
                }
                // Two dials crossed: the other connection is the link, or about to be.
                _ if self.registry.link(node).is_some() => self.dial_succeeded(connection, node),
                _ => {
                    if let Some(target) = &connection.target {
                        lock(&self.book).failed(target, Failure::Unreachable, Instant::now());
                        self.book_changed.notify_one();
                    }
                }
            },
        }
    }
}

/// What a failed connection comes down to.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    /// It speaks Noise, but over another name or secret.
    Stranger,
    /// It closed the connection in the middle of the Noise handshake. Who dials does so if the other end is a
    /// stranger.
    HungUp,
    NotRoundtable,
    Unreachable(String),
}

impl Cause {
    fn failure(&self) -> Failure {
        match self {
            Self::Stranger | Self::NotRoundtable => Failure::Stranger,
            Self::HungUp | Self::Unreachable(_) => Failure::Unreachable,
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stranger => f.write_str(STRANGER),
            Self::NotRoundtable => f.write_str(NO_PEER),
            Self::HungUp => f.write_str(HUNG_UP),
            Self::Unreachable(reason) => f.write_str(reason),
        }
    }
}

/// Of several addresses that failed, the one that says most.
fn strangest(errors: &[(Multiaddr, TransportError<io::Error>)]) -> Option<(&Multiaddr, Cause)> {
    let causes = errors.iter().map(|(address, error)| {
        let cause = match error {
            TransportError::Other(error) => cause_of(error),
            TransportError::MultiaddrNotSupported(_) => {
                Cause::Unreachable("this kind of address cannot be dialled".to_owned())
            }
        };
        (address, cause)
    });
    causes.min_by_key(|(_, cause)| cause.failure() != Failure::Stranger)
}

/// libp2p wraps errors in errors, some of which only show in their text.
fn cause_of(error: &io::Error) -> Cause {
    let mut kind = None;
    let mut texts = Vec::new();
    let mut is_noise = false;
    let mut is_negotiation = false;
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        is_noise |= error.is::<noise::Error>();
        is_negotiation |= error.is::<libp2p::core::upgrade::NegotiationError>();
        texts.push(error.to_string());
        next = match error.downcast_ref::<io::Error>() {
            Some(io) => {
                if io.kind() != io::ErrorKind::Other {
                    kind = Some(io.kind());
                }
                io.get_ref().map(|inner| inner as &(dyn Error + 'static))
            }
            None => error.source(),
        };
    }
    let is_cut = matches!(
        kind,
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    );
    let is_timeout =
        kind == Some(io::ErrorKind::TimedOut) || texts.iter().any(|text| text.contains("Timeout"));
    match kind {
        _ if is_noise && is_cut => Cause::HungUp,
        _ if is_noise => Cause::Stranger,
        _ if is_cut => Cause::Unreachable(HUNG_UP.to_owned()),
        _ if is_negotiation => Cause::NotRoundtable,
        _ if is_timeout => Cause::Unreachable(format!("no answer within {DIAL_LIMIT:?}")),
        Some(io::ErrorKind::ConnectionRefused) => {
            Cause::Unreachable("nobody listens there (connection refused)".to_owned())
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            Cause::Unreachable("there is no route to it".to_owned())
        }
        _ => Cause::Unreachable(texts.pop().unwrap_or_default()),
    }
}

fn into_io(error: TransportError<io::Error>) -> io::Error {
    match error {
        TransportError::MultiaddrNotSupported(address) => {
            io::Error::new(io::ErrorKind::Unsupported, format!("{address} is not supported"))
        }
        TransportError::Other(error) => {
            let mut next: Option<&(dyn Error + 'static)> = Some(&error);
            while let Some(error) = next {
                let io = error.downcast_ref::<io::Error>();
                if let Some(code) = io.and_then(io::Error::raw_os_error) {
                    return io::Error::from_raw_os_error(code);
                }
                next = match io {
                    Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
                    None => error.source(),
                };
            }
            error
        }
    }
}

/// libp2p listens with `SO_REUSEPORT`: a second process of the same user could bind the same port and would get
/// half of the connections. So whoever listens at a TCP port also holds the UDP port of that number, which the
/// system gives to one process only, and looks whether another program listens.
fn guard_port(ip: IpAddr, port: u16) -> io::Result<Option<UdpSocket>> {
    if port == 0 {
        return Ok(None);
    }
    let guard = UdpSocket::bind((ip, port))?;
    drop(TcpListener::bind((ip, port))?);
    Ok(Some(guard))
}

/// The host of an address, without the port that a dialler came from.
fn host(address: &Multiaddr) -> String {
    let host: Multiaddr = address.iter().take_while(|part| !matches!(part, Protocol::Tcp(_))).collect();
    host.to_string()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
