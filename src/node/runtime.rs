//! The edge of a node: one task that owns the [`Core`], and all that feeds it.
//!
//! Frames are decoded on the tasks of their links and queued here; the task takes all that has queued up
//! meanwhile, lets the core handle it, and carries out what the core wants. Nothing that waits runs in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::builder::make_ticket;
use super::clock::Clock;
use super::core::{Core, Output, Purpose};
use super::event::NodeEvent;
use super::merge;
use super::rpc::NodeRpc;
use crate::codec::{decode, encode};
use crate::id::{NodeId, SwarmId};
use crate::net::{Inbound, LinkInfo, Net, NetEvent, Responder, Role, Secret};
use crate::wire::{MAX_WAIT_MS, Message, Refusal, Request, Response, Rpc, RpcError};

/// Most inputs that wait for the core, per node. Above it requests are refused and messages lost.
pub(super) const MAX_QUEUED_INPUTS: usize = 16 * 1024;
/// Most inputs handled between two looks at what the core wants done.
const MAX_TURN_INPUTS: usize = 1024;
/// Most requests that are being passed on, per node.
const MAX_FORWARDS: usize = 4096;
/// How long a request that is passed on may take, beyond what it asks to wait by itself.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);

/// What the core is fed.
#[derive(Debug)]
pub(super) enum Input {
    /// A message from a linked peer.
    Message { from: NodeId, message: Message },
    /// A request, from a peer or from within.
    Request { request: Request, respond: Respond },
    /// How an attempt to dissolve this swarm ended.
    Merged { from: SwarmId, into: SwarmId, result: merge::Merged },
    /// Leave the swarm.
    Leave,
    /// Hand over leaderships; stopping follows.
    HandOver(oneshot::Sender<()>),
}

/// Where a response goes.
#[derive(Debug)]
pub(super) enum Respond {
    /// To a peer.
    There(Responder),
    /// To a caller in this process.
    Here(oneshot::Sender<Response>),
}

impl Respond {
    fn send(self, response: Response) {
        match self {
            Self::There(responder) => responder.send(encode(&response)),
            // A caller that gave up is no error.
            Self::Here(caller) => drop(caller.send(response)),
        }
    }
}

/// What links came and went since the core last looked: at most one entry per node, however often it changed.
#[derive(Debug, Default)]
struct LinkChanges(Mutex<BTreeMap<NodeId, LinkChange>>);

#[derive(Debug, Clone, Copy, Default)]
struct LinkChange {
    /// The link that the core knows is gone.
    down: bool,
    /// There is a (new) link, to a member or a visitor.
    up: Option<Role>,
}

impl LinkChanges {
    fn up(&self, node: NodeId, role: Role) {
        self.change(node, |change| change.up = Some(role));
    }

    fn down(&self, node: NodeId) {
        self.change(node, |change| *change = LinkChange { down: true, up: None });
    }

    fn change(&self, node: NodeId, change: impl FnOnce(&mut LinkChange)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default());
    }

    fn take(&self) -> BTreeMap<NodeId, LinkChange> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Receives what links deliver, on their tasks.
#[derive(Debug, Clone)]
pub(super) struct Inlet {
    inputs: mpsc::Sender<Input>,
    links: Arc<LinkChanges>,
    wake: Arc<Notify>,
}

/// The other end of an [`Inlet`].
#[derive(Debug)]
pub(super) struct Inbox {
    inputs: mpsc::Receiver<Input>,
    links: Arc<LinkChanges>,
    wake: Arc<Notify>,
}

/// A queue into the core.
pub(super) fn inlet() -> (Inlet, Inbox) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_INPUTS);
    let links = Arc::new(LinkChanges::default());
    let wake = Arc::new(Notify::new());
    let inlet = Inlet { inputs: sender, links: Arc::clone(&links), wake: Arc::clone(&wake) };
    (inlet, Inbox { inputs: receiver, links, wake })
}

impl Inlet {
    pub(super) fn inputs(&self) -> mpsc::Sender<Input> {
        self.inputs.clone()
    }
}

impl Inbound for Inlet {
    fn link_up(&self, link: &LinkInfo) {
        self.links.up(link.node, link.role);
        self.wake.notify_one();
    }

    fn link_down(&self, node: NodeId, _reason: &str) {
        self.links.down(node);
        self.wake.notify_one();
    }

    fn request(&self, from: NodeId, _role: Role, body: Bytes, respond: Responder) {
        let respond = Respond::There(respond);
        match decode(&body) {
            Ok(request) => {
                if let Err(full) = self.inputs.try_send(Input::Request { request, respond })
                    && let Input::Request { respond, .. } = full.into_inner()
                {
                    respond.send(Response::Refused(Refusal::Overloaded));
                }
            }
            Err(error) => {
                tracing::warn!(peer = %from, %error, "request refused");
                respond.send(Response::Refused(Refusal::BadRequest(error.to_string())));
            }
        }
    }

    fn message(&self, from: NodeId, body: Bytes) {
        match decode(&body) {
            // Messages may be lost: what sent them repeats what matters.
            Ok(message) => drop(self.inputs.try_send(Input::Message { from, message })),
            Err(error) => tracing::warn!(peer = %from, %error, "message refused"),
        }
    }
}

/// What the task of a node shares with its handle.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) events: broadcast::Sender<NodeEvent>,
    /// The swarm, once there is one.
    pub(super) swarm: watch::Sender<Option<SwarmId>>,
    /// Set when the node has left its swarm.
    pub(super) left: CancellationToken,
    /// Set to end the task.
    pub(super) stop: CancellationToken,
}

/// The task of a node.
pub(super) struct Runtime {
    core: Core,
    clock: Clock,
    /// Name of the swarm.
    name: String,
    secret: Option<Secret>,
    inbox: Inbox,
    net: Net,
    rpc: NodeRpc,
    net_events: mpsc::Receiver<NetEvent>,
    shared: Arc<Shared>,
    pending: HashMap<u64, Respond>,
    next_tag: u64,
    forwards: JoinSet<()>,
    merging: JoinSet<()>,
}

impl Runtime {
    pub(super) fn new(
        core: Core,
        name: String,
        secret: Option<Secret>,
        inbox: Inbox,
        rpc: NodeRpc,
        net_events: mpsc::Receiver<NetEvent>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            core,
            clock: Clock,
            name,
            secret,
            inbox,
            net: rpc.net.clone(),
            rpc,
            net_events,
            shared,
            pending: HashMap::new(),
            next_tag: 0,
            forwards: JoinSet::new(),
            merging: JoinSet::new(),
        }
    }

    /// Runs until told to stop.
    pub(super) async fn run(mut self) {
        let stop = self.shared.stop.clone();
        let mut inputs = Vec::with_capacity(MAX_TURN_INPUTS);
        loop {
            self.carry_out();
            let now = self.clock.now();
            let wait = self.core.next_deadline(now).since(now);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.inbox.wake.notified() => {}
                count = self.inbox.inputs.recv_many(&mut inputs, MAX_TURN_INPUTS) => {
                    if count == 0 {
                        return;
                    }
                }
                Some(event) = self.net_events.recv() => self.net_event(event),
                Some(_) = self.forwards.join_next(), if !self.forwards.is_empty() => {}
                Some(_) = self.merging.join_next(), if !self.merging.is_empty() => {}
                () = tokio::time::sleep(wait) => {}
            }
            // Whatever else is ready, also when inputs never cease.
            while self.forwards.try_join_next().is_some() {}
            while let Ok(event) = self.net_events.try_recv() {
                self.net_event(event);
            }
            // Links first: what a link delivers is queued after its coming up was noted.
            self.handle_links();
            for input in inputs.drain(..) {
                self.handle(input);
            }
            let now = self.clock.now();
            if self.core.next_deadline(now) <= now {
                self.core.handle_deadline(now);
            }
        }
    }

    fn handle_links(&mut self) {
        let now = self.clock.now();
        for (node, change) in self.inbox.links.take() {
            if change.down {
                self.core.link_down(node, now);
            }
            if let Some(role) = change.up {
                self.core.link_up(node, role == Role::Member, now);
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Message { from, message } => self.core.message(from, message, now),
            Input::Request { request, respond } => {
                let tag = self.next_tag;
                self.next_tag += 1;
                self.pending.insert(tag, respond);
                self.core.request(tag, request, now);
            }
            Input::Merged { from, into, result } => match result {
                merge::Merged::Dissolved { into } => self.core.merged(from, into, true, now),
                merge::Merged::HoldsData if self.core.swarm_id() == Some(from) => {
                    self.core.holds_data();
                    self.core.merged(from, into, false, now);
                }
                merge::Merged::HoldsData => {}
                merge::Merged::Failed => self.core.merged(from, into, false, now),
            },
            Input::Leave => self.core.leave(now),
            Input::HandOver(done) => {
                self.core.hand_over(now);
                self.carry_out();
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
    }

    fn carry_out(&mut self) {
        let now = self.clock.now();
        while let Some(output) = self.core.poll_output(now) {
            match output {
                Output::Send { to, message } => {
                    if let Err(error) = self.net.send(to, encode(&message)) {
                        tracing::debug!(peer = %to, %error, "message not sent");
                    }
                }
                Output::Respond { tag, response } => {
                    if let Some(respond) = self.pending.remove(&tag) {
                        respond.send(response);
                    }
                }
                Output::Forward { tag, to, request } => self.forward(tag, to, request),
                Output::Keep { node, addresses } => self.net.keep(node, addresses),
                Output::Forget { node } => self.net.forget(node),
                Output::Event(event) => self.event(event),
                Output::Seal { from, partitions, into, attempt, purpose } => {
                    self.seal(from, partitions, into, attempt, purpose);
                }
                Output::Left => self.shared.left.cancel(),
            }
        }
        let swarm = self.core.swarm_id();
        if self.shared.swarm.send_if_modified(|known| std::mem::replace(known, swarm) != swarm) {
            // What was begun for one swarm must not go on in another.
            self.merging.abort_all();
        }
    }

    fn event(&self, event: NodeEvent) {
        tracing::debug!(?event);
        // Nobody listening is no error.
        drop(self.shared.events.send(event));
    }

    fn forward(&mut self, tag: u64, to: NodeId, request: Request) {
        let Some(respond) = self.pending.remove(&tag) else { return };
        if self.forwards.len() >= MAX_FORWARDS {
            respond.send(Response::Refused(Refusal::Overloaded));
            return;
        }
        let (writes, asked) = match &request {
            Request::Write { .. } => (true, 0),
            Request::Wait { timeout_ms, .. } => (false, (*timeout_ms).min(MAX_WAIT_MS)),
            _ => (false, 0),
        };
        let timeout = FORWARD_TIMEOUT + Duration::from_millis(u64::from(asked));
        let net = self.net.clone();
        self.forwards.spawn(async move {
            let response = match Rpc::call(&net, to, request, timeout).await {
                Ok(response) => response,
                Err(RpcError::Lost(_)) if writes => Response::Unknown,
                Err(_) => Response::Refused(Refusal::NotLeader { leader: None }),
            };
            respond.send(response);
        });
    }

    fn seal(&mut self, from: SwarmId, partitions: u32, into: SwarmId, attempt: u128, purpose: Purpose) {
        while self.merging.try_join_next().is_some() {}
        if !self.merging.is_empty() {
            // One at a time; an attempt has bounded steps.
            self.core.merged(from, into, false, self.clock.now());
            return;
        }
        let rpc = self.rpc.clone();
        self.merging.spawn(async move {
            let attempt = merge::Attempt { rpc: &rpc, from, partitions, into, attempt };
            let result = match purpose {
                Purpose::Dissolve => attempt.dissolve().await,
                Purpose::Break => attempt.break_seals().await,
            };
            drop(rpc.inputs.send(Input::Merged { from, into, result }).await);
        });
    }

    fn net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::DialFailed { address, reason } => {
                self.event(NodeEvent::DialFailed { address, reason });
            }
            NetEvent::Refused { address, reason } => self.event(NodeEvent::Refused { address, reason }),
            NetEvent::NewListenAddress(_) | NetEvent::ListenAddressGone(_) => {
                if let NetEvent::NewListenAddress(address) = event
                    && !self.core.listens_at(&address)
                {
                    self.event(NodeEvent::Listening(address));
                }
                let addresses = self.net.listen_addresses();
                let ticket = make_ticket(&self.name, self.secret.as_ref(), &addresses);
                self.core.set_addresses(addresses, ticket, self.clock.now());
            }
            _ => {}
        }
    }
}
