//! The edge of a node: one task that owns the [`Core`], and all that feeds it.
//!
//! Frames are decoded on the tasks of their links and queued here; the task takes all that has queued up
//! meanwhile, lets the core handle it, and carries out what the core wants. Nothing that waits runs in it.
//!
//! A retry is recognised only for so long (see [`MAX_DEADLINE`]), so no copy of a request may lie here and be
//! proposed much later: each is stamped when it arrives and refused when it is too old, and when the machine has
//! slept, all links are cut, because what lies in their buffers has no stamp.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::blocks::Blocks;
use super::builder::make_ticket;
use super::clock::Clock;
use super::complaints::Complaints;
use super::core::{Core, Output, Purpose};
use super::data::Data;
use super::event::NodeEvent;
use super::merge;
use super::rpc::NodeRpc;
use crate::codec::{decode, encode};
use crate::id::{NodeId, SwarmId};
use crate::net::{Inbound, LinkInfo, Net, NetEvent, Responder, Role, Secret, stand_back};
use crate::state_machine::MAX_DEADLINE;
use crate::storage;
use crate::time::Timestamp;
use crate::wire::{MAX_RENEWALS, MAX_WAIT_MS, Message, Refusal, Renewed, Request, Response, Rpc, RpcError};

/// Most inputs that wait for the core, per node. Above it requests are refused and messages lost.
pub(super) const MAX_QUEUED_INPUTS: usize = 16 * 1024;
/// Most bytes of peers' requests that wait for the core, as they were encoded; per node. Above it requests are
/// refused.
const MAX_QUEUED_REQUEST_BYTES: usize = 32 << 20;
/// The same for messages, which are lost above it: apart, so that no flood of requests stops consensus.
const MAX_QUEUED_MESSAGE_BYTES: usize = 32 << 20;
/// Longest that a request may have waited for the core. Half of what the sessions allow, see [`MAX_DEADLINE`].
const MAX_HELD: Duration = Duration::from_secs(MAX_DEADLINE.as_secs() / 2);
/// Longest pause between two turns of the task. If far more has passed, the machine slept.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The resolution of tokio's timers.
const TIMER_STEP: Duration = Duration::from_millis(1);
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
    Message { from: NodeId, message: Message, held: Held },
    /// A request, from a peer or from within (then it has no share of the budget), and when it came.
    Request { request: Request, respond: Respond, arrived: Timestamp, held: Option<Held> },
    /// How an attempt to dissolve this swarm ended.
    Merged { from: SwarmId, into: SwarmId, result: merge::Merged },
    /// Leave the swarm.
    Leave,
    /// Hand over leaderships; stopping follows when that is done.
    HandOver(oneshot::Sender<()>),
}

/// An input's share of the budget of bytes, given back when it was handled.
type Held = OwnedSemaphorePermit;

/// Where a response goes.
#[derive(Debug)]
pub(super) enum Respond {
    /// To a peer.
    There(Responder),
    /// To a caller in this process.
    Here(oneshot::Sender<Response>),
    /// To whoever asked for several renewals at once, together with the others; this is so many of them.
    Together(Arc<Together>, usize),
}

impl Respond {
    fn send(self, response: Response) {
        match self {
            Self::There(responder) => responder.send(encode(&response)),
            // A caller that gave up is no error.
            Self::Here(caller) => drop(caller.send(response)),
            Self::Together(others, at) => others.put(at, response.into()),
        }
    }
}

/// The answers to several renewals, which go out together when the last of them is there.
#[derive(Debug)]
pub(super) struct Together(Mutex<Answers>);

#[derive(Debug)]
struct Answers {
    // Invariant: as long as the request had renewals.
    known: Vec<Option<Renewed>>,
    /// Taken when all are known.
    respond: Option<Respond>,
}

impl Together {
    fn new(count: usize, respond: Respond) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Answers { known: vec![None; count], respond: Some(respond) })))
    }

    fn put(&self, at: usize, answer: Renewed) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = answers.known.get_mut(at) {
            *place = Some(answer);
        }
        if answers.known.iter().any(Option::is_none) {
            return;
        }
        let known = std::mem::take(&mut answers.known).into_iter().flatten().collect();
        if let Some(respond) = answers.respond.take() {
            respond.send(Response::Renewals(known));
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
    request_bytes: Arc<Semaphore>,
    message_bytes: Arc<Semaphore>,
    last_turn: Arc<LastTurn>,
    blocks: Arc<Blocks>,
    complaints: Arc<Mutex<Complaints>>,
}

/// The other end of an [`Inlet`].
#[derive(Debug)]
pub(super) struct Inbox {
    inputs: mpsc::Receiver<Input>,
    links: Arc<LinkChanges>,
    wake: Arc<Notify>,
    last_turn: Arc<LastTurn>,
}

/// When the task of the node had its last turn, in microseconds of the clock that counts suspend.
#[derive(Debug)]
struct LastTurn(AtomicU64);

impl LastTurn {
    fn set(&self, now: Timestamp) {
        self.0.store(now.as_micros(), Ordering::Release);
    }

    /// Whether the machine slept and the task has not cut the links yet: what comes now may be old.
    fn is_long_ago(&self, now: Timestamp) -> bool {
        now.since(Timestamp::from_micros(self.0.load(Ordering::Acquire))) > MAX_HELD
    }
}

/// A queue into the core.
pub(super) fn inlet(blocks: Arc<Blocks>) -> (Inlet, Inbox) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_INPUTS);
    let links = Arc::new(LinkChanges::default());
    let wake = Arc::new(Notify::new());
    let last_turn = Arc::new(LastTurn(AtomicU64::new(Clock.now().as_micros())));
    let inlet = Inlet {
        inputs: sender,
        links: Arc::clone(&links),
        wake: Arc::clone(&wake),
        request_bytes: Arc::new(Semaphore::new(MAX_QUEUED_REQUEST_BYTES)),
        message_bytes: Arc::new(Semaphore::new(MAX_QUEUED_MESSAGE_BYTES)),
        last_turn: Arc::clone(&last_turn),
        blocks,
        complaints: Arc::default(),
    };
    (inlet, Inbox { inputs: receiver, links, wake, last_turn })
}

impl Inlet {
    pub(super) fn inputs(&self) -> mpsc::Sender<Input> {
        self.inputs.clone()
    }

    /// Whether to tell what a peer sends that cannot be read.
    fn complaint(&self, about: NodeId, what: &'static str, now: Timestamp) -> Option<u64> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).next(about, what, now)
    }

    /// Queues a request, or refuses it.
    fn accept(&self, from: NodeId, role: Role, body: &Bytes, respond: Respond) {
        let arrived = Clock.now();
        let Some(held) =
            take_share(&self.request_bytes, body.len()).filter(|_| !self.last_turn.is_long_ago(arrived))
        else {
            return respond.send(Response::Refused(Refusal::Overloaded));
        };
        let request = match decode(body) {
            Ok(request) => request,
            Err(error) => {
                if let Some(untold) = self.complaint(from, "request", arrived) {
                    tracing::warn!(peer = %from, %error, untold, "request refused");
                }
                return respond.send(Response::Refused(Refusal::BadRequest(error.to_string())));
            }
        };
        let request = match request {
            Request::Blocks { swarm, request } => {
                return self.blocks.serve(swarm, request, body.len(), move |response| respond.send(response));
            }
            Request::Work { swarm, request } => {
                let respond = move |response| respond.send(response);
                return self.blocks.assign_peers(swarm, request, body.len(), respond);
            }
            request => request,
        };
        if role == Role::Visitor
            && matches!(&request, Request::Write { operation, .. } if operation.is_for_members())
        {
            let why = "only a member may ask for this".to_owned();
            return respond.send(Response::Refused(Refusal::BadRequest(why)));
        }
        let input = Input::Request { request, respond, arrived, held: Some(held) };
        if let Err(full) = self.inputs.try_send(input)
            && let Input::Request { respond, .. } = full.into_inner()
        {
            respond.send(Response::Refused(Refusal::Overloaded));
        }
    }
}

/// A share of the budget for an encoded input; `None`: it is used up.
fn take_share(budget: &Arc<Semaphore>, bytes: usize) -> Option<Held> {
    let bytes = u32::try_from(bytes).ok()?;
    Arc::clone(budget).try_acquire_many_owned(bytes).ok()
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

    fn request(&self, from: NodeId, role: Role, body: Bytes, respond: Responder) {
        self.accept(from, role, &body, Respond::There(respond));
    }

    fn message(&self, from: NodeId, body: Bytes) {
        // Messages may be lost: what sent them repeats what matters.
        let Some(mut held) = take_share(&self.message_bytes, body.len()) else { return };
        let message: Message = match decode(&body) {
            Ok(message) => message,
            Err(error) => {
                if let Some(untold) = self.complaint(from, "message", Clock.now()) {
                    tracing::warn!(peer = %from, %error, untold, "message refused");
                }
                return;
            }
        };
        let more = message.held_bytes().saturating_sub(body.len());
        let Some(more) = take_share(&self.message_bytes, more) else { return };
        held.merge(more);
        drop(self.inputs.try_send(Input::Message { from, message, held }));
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

/// The one timer of a node's task. A new one for every turn would cost a system call nearly every time: tokio wakes
/// its driver for whatever is due a little earlier than all that it knows.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    at: Timestamp,
}

impl Alarm {
    fn new(now: Timestamp) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), at: now }
    }

    /// Rings after `wait` at the latest, give or take what tokio's timers do; it may ring earlier.
    fn set(&mut self, now: Timestamp, wait: Duration) {
        let due = now + wait;
        if self.sleep.is_elapsed() || due + TIMER_STEP < self.at {
            self.sleep.as_mut().reset(Instant::now() + wait);
            self.at = due;
        }
    }

    async fn rings(&mut self) {
        self.sleep.as_mut().await;
    }
}

/// The task of a node.
pub(super) struct Runtime {
    core: Core,
    clock: Clock,
    /// Name of the swarm.
    name: String,
    secret: Option<Secret>,
    /// What is kept on disk; `None`: nothing.
    data: Option<Data>,
    inbox: Inbox,
    net: Net,
    rpc: NodeRpc,
    net_events: mpsc::Receiver<NetEvent>,
    shared: Arc<Shared>,
    pending: HashMap<u64, Respond>,
    /// Those who wait until the leaderships are handed over.
    handing_over: Vec<oneshot::Sender<()>>,
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
            data: None,
            inbox,
            net: rpc.net.clone(),
            rpc,
            net_events,
            shared,
            pending: HashMap::new(),
            handing_over: Vec::new(),
            next_tag: 0,
            forwards: JoinSet::new(),
            merging: JoinSet::new(),
        }
    }

    /// Keeps what is to be kept here.
    pub(super) fn with_data(mut self, data: Option<Data>) -> Self {
        self.data = data;
        self
    }

    /// Runs until told to stop, or until the disk fails; then all is on the disk that can be.
    pub(super) async fn run(mut self) {
        if let Err(reason) = self.serve().await {
            self.event(NodeEvent::StorageFailed { reason });
            // As a crash: nobody must take this node for one that keeps what it promises.
            self.net.abort();
            self.shared.stop.cancel();
            return;
        }
        if let Some(data) = self.data.take() {
            data.close().await;
        }
    }

    /// Runs until told to stop. An error: why the disk failed.
    async fn serve(&mut self) -> Result<(), String> {
        let stop = self.shared.stop.clone();
        let mut inputs = Vec::with_capacity(MAX_TURN_INPUTS);
        let mut alarm = Alarm::new(self.clock.now());
        loop {
            self.carry_out()?;
            let now = self.clock.now();
            let wait = self.core.next_deadline(now).since(now).min(MAX_PAUSE);
            let (has_room, wants) =
                self.data.as_ref().map_or((true, false), |data| (data.has_room(), data.wants()));
            let wait = if wants { Duration::ZERO } else { wait };
            alarm.set(now, wait);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.inbox.wake.notified() => {}
                event = next_disk_event(&mut self.data) => self.disk_event(&event)?,
                // A disk that does not keep up is waited for.
                count = self.inbox.inputs.recv_many(&mut inputs, MAX_TURN_INPUTS), if has_room => {
                    if count == 0 {
                        return Ok(());
                    }
                }
                Some(event) = self.net_events.recv() => self.net_event(event),
                Some(_) = self.forwards.join_next(), if !self.forwards.is_empty() => {}
                Some(_) = self.merging.join_next(), if !self.merging.is_empty() => {}
                () = alarm.rings() => {}
            }
            if has_room {
                self.gather(&mut inputs).await;
            }
            // Whatever else is ready, also when inputs never cease.
            while self.forwards.try_join_next().is_some() {}
            while let Ok(event) = self.net_events.try_recv() {
                self.net_event(event);
            }
            self.notice_sleep().await;
            self.turn(&mut inputs, has_room);
            if let Some(partition) = self.data.as_mut().and_then(Data::wanted) {
                self.core.keep_state(partition);
            }
            let now = self.clock.now();
            if self.core.next_deadline(now) <= now {
                self.core.handle_deadline(now);
            }
        }
    }

    /// Lets all that is ready run, and takes what it brings: it then shares the turn, and so the frames, the write to
    /// the disk and the wake-ups.
    async fn gather(&mut self, inputs: &mut Vec<Input>) {
        stand_back().await;
        while inputs.len() < MAX_TURN_INPUTS
            && let Ok(input) = self.inbox.inputs.try_recv()
        {
            inputs.push(input);
        }
    }

    /// If the machine slept, cuts all links: what lies in their buffers may be too old.
    async fn notice_sleep(&self) {
        if self.inbox.last_turn.is_long_ago(self.clock.now()) {
            tracing::warn!("this machine or process stood still: all links are made anew");
            self.net.cut_all("it stood still").await;
        }
        self.inbox.last_turn.set(self.clock.now());
    }

    /// Handles what has come. Links that came up go first, for that is noted before anything that they deliver is
    /// queued; links that broke go last, for that is noted after: the last word of a node that leaves comes just before.
    fn turn(&mut self, inputs: &mut Vec<Input>, has_room: bool) {
        let broken = self.handle_links();
        if !broken.is_empty() && has_room {
            while let Ok(input) = self.inbox.inputs.try_recv() {
                inputs.push(input);
            }
        }
        for input in inputs.drain(..) {
            self.handle(input);
        }
        for node in broken {
            self.core.link_down(node, self.clock.now());
        }
    }

    /// Tells the core which links came up; which broke and were not made anew is left to the caller.
    fn handle_links(&mut self) -> Vec<NodeId> {
        let now = self.clock.now();
        let mut broken = Vec::new();
        for (node, change) in self.inbox.links.take() {
            match change.up {
                None => broken.push(node),
                Some(role) => {
                    if change.down {
                        self.core.link_down(node, now);
                    }
                    self.core.link_up(node, role == Role::Member, now);
                }
            }
        }
        broken
    }

    fn disk_event(&mut self, event: &storage::Event) -> Result<(), String> {
        if let Some(data) = &mut self.data {
            data.note(event);
        }
        match event {
            storage::Event::Persisted(batch) => self.core.persisted(*batch, self.clock.now()),
            storage::Event::Full => self.core.set_full(true),
            storage::Event::Room => self.core.set_full(false),
            storage::Event::WantState(_) => {}
            storage::Event::Failed(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Message { from, message, held } => {
                self.core.message(from, message, now);
                drop(held);
            }
            Input::Request { respond, arrived, .. } if now.since(arrived) > MAX_HELD => {
                respond.send(Response::Refused(Refusal::Overloaded));
            }
            Input::Request { request, respond, arrived: _, held } => {
                self.request(request, respond, now);
                drop(held);
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
                self.handing_over.push(done);
            }
        }
    }

    fn request(&mut self, request: Request, respond: Respond, now: Timestamp) {
        match request {
            Request::Renew { renewals, .. } if renewals.is_empty() || renewals.len() > MAX_RENEWALS => {
                let why = format!("{} renewals: must be 1 to {MAX_RENEWALS}", renewals.len());
                respond.send(Response::Refused(Refusal::BadRequest(why)));
            }
            // Each is a write of its own, served here or passed on.
            Request::Renew { swarm, renewals } => {
                let together = Together::new(renewals.len(), respond);
                for (at, renewal) in renewals.into_iter().enumerate() {
                    self.ask_core(renewal.alone(swarm), Respond::Together(Arc::clone(&together), at), now);
                }
            }
            request => self.ask_core(request, respond, now),
        }
    }

    fn ask_core(&mut self, request: Request, respond: Respond, now: Timestamp) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.pending.insert(tag, respond);
        if let (Request::Status, Some(data)) = (&request, &self.data) {
            self.core.note_storage(data.status());
        }
        self.core.request(tag, request, now);
    }

    /// Does what the core wants. An error: why the disk failed.
    fn carry_out(&mut self) -> Result<(), String> {
        let now = self.clock.now();
        self.core.note_blocks(self.rpc.blocks.store().count());
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
                Output::Begin { .. }
                | Output::Abandon { .. }
                | Output::Remember { .. }
                | Output::Persist { .. } => {
                    if let Some(data) = &mut self.data {
                        keep(data, &self.name, self.secret.as_ref(), output)?;
                    }
                }
            }
        }
        if !self.handing_over.is_empty() && self.core.has_handed_over() {
            for done in self.handing_over.drain(..) {
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
        let swarm = self.core.swarm_id();
        if self.shared.swarm.send_if_modified(|known| std::mem::replace(known, swarm) != swarm) {
            // What was begun for one swarm must not go on in another.
            self.merging.abort_all();
        }
        Ok(())
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
            let attempt = merge::Attempt { rpc: &rpc, from, partitions, into, id: attempt };
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

/// What has happened on the disk; never anything for a node without one.
async fn next_disk_event(data: &mut Option<Data>) -> storage::Event {
    match data {
        Some(data) => data.next_event().await,
        None => std::future::pending().await,
    }
}

/// Puts on the disk what belongs there. An error: why it failed.
fn keep(data: &mut Data, name: &str, secret: Option<&Secret>, output: Output) -> Result<(), String> {
    let result = match output {
        Output::Begin { swarm, partitions } => data.begin(name, secret, swarm, partitions),
        Output::Abandon { left } => data.abandon(left),
        Output::Remember { members } => {
            data.remember(members);
            Ok(())
        }
        Output::Persist { batch, writes } => {
            data.persist(batch, writes);
            Ok(())
        }
        _ => Ok(()),
    };
    result.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::core::CoreConfig;
    use super::*;
    use crate::id::{PartitionId, SessionId};
    use crate::net::{Identity, NetConfig};
    use crate::ring::PartitionCount;
    use crate::state_machine::{Operation, Origin};
    use crate::wire::{Hello, Renewal, SwarmState};

    fn blocks() -> Arc<Blocks> {
        let place = storage::Place::Temporary(std::env::temp_dir());
        Blocks::new(storage::BlockStore::new(place, 0)).0
    }

    fn runtime(inbox: Inbox, rpc: NodeRpc, net_events: mpsc::Receiver<NetEvent>) -> Runtime {
        let config = CoreConfig {
            name: "test".to_owned(),
            partitions: PartitionCount::new(8).unwrap(),
            replicas: 3,
            weight: 1,
            joining: true,
            discovery_window: Duration::ZERO,
            replace_after: Duration::ZERO,
            addresses: Vec::new(),
            ticket: String::new(),
            durable: false,
            incarnation: 1,
        };
        let core = Core::new(rpc.me, config, None, 0, Clock.now());
        let shared = Arc::new(Shared {
            events: broadcast::channel(8).0,
            swarm: watch::channel(None).0,
            left: CancellationToken::new(),
            stop: CancellationToken::new(),
        });
        Runtime::new(core, "test".to_owned(), None, inbox, rpc, net_events, shared)
    }

    fn write(operation: Operation) -> Bytes {
        let origin = Origin { session: SessionId(1), sequence: 0, settled_below: 0 };
        let (swarm, partition) = (SwarmId(1), PartitionId(0));
        encode(&Request::Write { swarm, partition, origin, operation, forwarded: false }).into()
    }

    fn put(bytes: usize) -> Bytes {
        write(Operation::Put { key: b"k".to_vec(), value: vec![0; bytes], ttl_ms: None })
    }

    /// What is refused at the door; `None`: it was let in.
    fn ask(inlet: &Inlet, role: Role, body: &Bytes) -> Option<Response> {
        let (respond, mut response) = oneshot::channel();
        inlet.accept(NodeId::from_public_key([1; 32]), role, body, Respond::Here(respond));
        response.try_recv().ok()
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_bytes() {
        let (inlet, mut inbox) = inlet(blocks());
        let peer = NodeId::from_public_key([1; 32]);
        let request = put(1 << 20);
        let fitting = MAX_QUEUED_REQUEST_BYTES / request.len();
        for _ in 0..fitting {
            assert_eq!(ask(&inlet, Role::Member, &request), None);
        }
        let overloaded = Some(Response::Refused(Refusal::Overloaded));
        assert_eq!(ask(&inlet, Role::Member, &request), overloaded);
        // Messages have a budget of their own.
        let gossip = Message::Gossip { swarm: SwarmId(1), bytes: vec![0; 1 << 20] };
        let message = Bytes::from(encode(&gossip));
        for _ in 0..100 {
            inlet.message(peer, message.clone());
        }
        assert_eq!(inbox.inputs.len(), fitting + MAX_QUEUED_MESSAGE_BYTES / message.len());
        // What was taken out makes room.
        drop(inbox.inputs.recv().await);
        assert_eq!(ask(&inlet, Role::Member, &request), None);
        assert_eq!(ask(&inlet, Role::Member, &request), overloaded);
    }

    #[test]
    fn a_visitor_may_not_seal() {
        let (inlet, _inbox) = inlet(blocks());
        let seal = write(Operation::Seal { into: SwarmId(2), attempt: 1, epoch: None });
        assert!(matches!(ask(&inlet, Role::Visitor, &seal), Some(Response::Refused(Refusal::BadRequest(_)))));
        assert_eq!(ask(&inlet, Role::Member, &seal), None);
        assert_eq!(ask(&inlet, Role::Visitor, &put(1)), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn renewals_that_come_together_are_answered_together() {
        let (inlet, inbox) = inlet(blocks());
        let config = NetConfig::new(Identity::generate(), "test");
        let (net, net_events) = Net::start(config, Arc::new(inlet.clone())).await.unwrap();
        let rpc = NodeRpc { me: net.node_id(), inputs: inlet.inputs(), net: net.clone(), blocks: blocks() };
        let mut runtime = runtime(inbox, rpc, net_events);
        let mut handle = |count: usize| {
            let renewal = |number| Renewal {
                partition: PartitionId(number),
                origin: Origin { session: SessionId(1), sequence: 0, settled_below: 0 },
                name: b"lock".to_vec(),
                numbers: vec![1, 2],
            };
            let renewals = (0..u32::try_from(count).unwrap()).map(renewal).collect();
            let (respond, mut response) = oneshot::channel();
            let request = Request::Renew { swarm: SwarmId(1), renewals };
            let respond = Respond::Here(respond);
            runtime.handle(Input::Request { request, respond, arrived: Clock.now(), held: None });
            runtime.carry_out().unwrap();
            response.try_recv().unwrap()
        };
        let each = Renewed::Refused(Refusal::NotServing);
        assert_eq!(handle(3), Response::Renewals(vec![each.clone(); 3]));
        assert_eq!(handle(MAX_RENEWALS), Response::Renewals(vec![each; MAX_RENEWALS]));
        for wrong in [0, MAX_RENEWALS + 1] {
            assert!(matches!(handle(wrong), Response::Refused(Refusal::BadRequest(_))));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_last_word_of_a_link_is_heard() {
        let (inlet, inbox) = inlet(blocks());
        let config = NetConfig::new(Identity::generate(), "test");
        let (net, net_events) = Net::start(config, Arc::new(inlet.clone())).await.unwrap();
        let rpc = NodeRpc { me: net.node_id(), inputs: inlet.inputs(), net: net.clone(), blocks: blocks() };
        let mut runtime = runtime(inbox, rpc, net_events);
        let peer = NodeId::from_public_key([1; 32]);
        let state = SwarmState::Founded { swarm: SwarmId(1), partitions: 8 };
        inlet.links.up(peer, Role::Member);
        inlet.message(peer, encode(&Message::Hello(Hello { state, empty: false })).into());
        let mut inputs = Vec::new();
        inputs.push(runtime.inbox.inputs.try_recv().unwrap());
        runtime.turn(&mut inputs, true);
        runtime.carry_out().unwrap();
        assert_eq!(runtime.core.swarm_id(), Some(SwarmId(1)));
        inlet.message(peer, encode(&Message::Dissolved { from: SwarmId(1), into: SwarmId(2) }).into());
        inlet.link_down(peer, "it left");
        runtime.turn(&mut inputs, true);
        assert_eq!(runtime.core.swarm_id(), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_older_than_a_session_allows_is_not_handled() {
        let (inlet, inbox) = inlet(blocks());
        let mut config = NetConfig::new(Identity::generate(), "test");
        config.listen = vec!["127.0.0.1:0".to_owned()];
        let (net, net_events) = Net::start(config, Arc::new(inlet.clone())).await.unwrap();
        let rpc = NodeRpc { me: net.node_id(), inputs: inlet.inputs(), net: net.clone(), blocks: blocks() };
        let mut runtime = runtime(inbox, rpc, net_events);
        let mut handle = |arrived| {
            let (respond, mut response) = oneshot::channel();
            let respond = Respond::Here(respond);
            runtime.handle(Input::Request { request: Request::Ticket, respond, arrived, held: None });
            runtime.carry_out().unwrap();
            response.try_recv().unwrap()
        };
        let now = Clock.now();
        assert_eq!(handle(now), Response::Ticket(String::new()));
        let old = now - MAX_HELD - Duration::from_millis(1);
        assert_eq!(handle(old), Response::Refused(Refusal::Overloaded));

        // The machine sleeps, with a link.
        let (peer_inlet, _peer_inbox) = super::inlet(blocks());
        let config = NetConfig::new(Identity::generate(), "test");
        let (peer, _events) = Net::start(config, Arc::new(peer_inlet)).await.unwrap();
        peer.dial(&net.listen_addresses()[0]).unwrap();
        while !net.is_linked(peer.node_id()) {
            runtime.inbox.wake.notified().await;
        }
        runtime.notice_sleep().await;
        assert!(net.is_linked(peer.node_id()));
        runtime.inbox.last_turn.set(old);
        let overloaded = Some(Response::Refused(Refusal::Overloaded));
        assert_eq!(ask(&inlet, Role::Member, &put(1)), overloaded);
        runtime.notice_sleep().await;
        // The other side links again, but not at once.
        assert!(!net.is_linked(peer.node_id()));
        assert_eq!(ask(&inlet, Role::Member, &put(1)), None);
    }
}
