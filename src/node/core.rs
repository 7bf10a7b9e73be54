//! The whole node without I/O: links, messages, requests and time go in; messages, responses and events come out.
//!
//! [`Core`] holds what is known of the peers it is linked with and the stage that the node is in: searching
//! for a swarm ([`Founding`]), serving in one ([`Swarm`]), or gone. The task that drives it (`runtime`) and the
//! simulator feed it the same way: any of the input methods, then [`Core::poll_output`] until `None`, and
//! [`Core::handle_deadline`] at [`Core::next_deadline`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::data::Resume;
use super::event::NodeEvent;
use super::founding::{Decision, Founding};
use super::swarm::{Remembered, Swarm};
use crate::id::{NodeId, PartitionId, SwarmId};
use crate::replication;
use crate::ring::PartitionCount;
use crate::time::Timestamp;
use crate::wire::{
    Hello, Message, NodeStatus, PartitionStatus, Refusal, Request, Response, StorageStatus, SwarmState,
};

/// Time between the end of one attempt to dissolve this swarm into another and the next.
const MERGE_RETRY: Duration = Duration::from_secs(2);
/// Time after which an attempt of which no end was reported is given up.
const MERGE_PATIENCE: Duration = Duration::from_secs(60);

/// Most other swarms remembered: dissolved ones, and those that stay apart.
const MAX_OTHER_SWARMS: usize = 64;
/// How often a node says hello again: a hello may be lost in a full queue, and without it a peer is not heard.
/// As often it looks whether anything hangs.
const HELLO_INTERVAL: Duration = Duration::from_secs(5);
/// How long at least to look for a swarm after the first one is no more: others know of one, or do the same.
const SECOND_WINDOW: Duration = Duration::from_secs(5);
/// Seals older than this were left behind by an attempt that did not end, and are broken.
const SEAL_PATIENCE: Duration = Duration::from_secs(60);

/// What a node must know to begin.
#[derive(Debug, Clone)]
pub(super) struct CoreConfig {
    /// Name of the swarm.
    pub(super) name: String,
    /// Number of partitions, should this node found.
    pub(super) partitions: PartitionCount,
    /// Replicas of each partition.
    pub(super) replicas: usize,
    /// This node's share of the ring relative to others.
    pub(super) weight: u32,
    /// Told to join: never found.
    pub(super) joining: bool,
    /// How long to look for a swarm before founding one.
    pub(super) discovery_window: Duration,
    /// How long a dead member keeps its place on the ring.
    pub(super) replace_after: Duration,
    /// Where this node listens.
    pub(super) addresses: Vec<String>,
    /// The string that lets others join.
    pub(super) ticket: String,
    /// Whether everything is kept across a restart.
    pub(super) durable: bool,
    /// Of this node's membership; above all that it had in earlier lives.
    pub(super) incarnation: u64,
}

/// What the edge must do.
#[derive(Debug)]
pub(super) enum Output {
    /// Send a message over the link to a peer; it may be lost.
    Send { to: NodeId, message: Message },
    /// Keep that the node is in this swarm, before anything else of it.
    Begin { swarm: SwarmId, partitions: PartitionCount },
    /// Keep nothing of the swarm any more; nor who the node was, if it left.
    Abandon { left: bool },
    /// Look for these after a restart.
    Remember { members: Vec<Remembered> },
    /// Keep these across a restart; report with [`Core::persisted`].
    Persist { batch: u64, writes: Vec<replication::Write> },
    /// Answer a request.
    Respond { tag: u64, response: Response },
    /// Pass a request on, and answer with what comes back.
    Forward { tag: u64, to: NodeId, request: Request },
    /// Keep a link to this member.
    Keep { node: NodeId, addresses: Vec<String> },
    /// No more links to this node.
    Forget { node: NodeId },
    /// Tell whoever runs the node.
    Event(NodeEvent),
    /// Seal all partitions of this swarm, in order to dissolve it into another or, unless it has dissolved
    /// already, to break all seals; report with [`Core::merged`].
    Seal { from: SwarmId, partitions: u32, into: SwarmId, attempt: u128, purpose: Purpose },
    /// This node has left its swarm; nothing more will come.
    Left,
}

/// Why a swarm is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It gives way to another.
    Dissolve,
    /// Seals were left behind: sealed anew, all are this node's to break.
    Break,
}

/// A linked peer.
#[derive(Debug)]
struct Peer {
    /// Whether it is a node; visitors only ask.
    member: bool,
    hello: Option<Hello>,
}

/// Where the node stands.
#[derive(Debug)]
enum Stage {
    Searching(Founding),
    Serving(Box<Swarm>),
    Left,
}

/// A node without I/O.
#[derive(Debug)]
pub(super) struct Core {
    me: NodeId,
    config: CoreConfig,
    rng: StdRng,
    started: Timestamp,
    peers: BTreeMap<NodeId, Peer>,
    stage: Stage,
    /// Whether the swarm is not known to hold a key; see `merge`.
    empty: bool,
    next_merge: Timestamp,
    next_hello: Timestamp,
    /// Since when a partition on this node is sealed and there is no swarm to give way to.
    sealed_since: Option<Timestamp>,
    /// Whether the last look found that all others have left without handing anything over.
    deserted: bool,
    /// Swarms of our name that hold data as ours does, of which the user was told.
    told_apart: BTreeSet<SwarmId>,
    /// Swarms that this node was a member of and that dissolved, and into which: never joined again.
    dissolved: BTreeMap<SwarmId, SwarmId>,
    /// How the disk is, as last told.
    storage: Option<StorageStatus>,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A node that looks for its swarm, or goes on in the one that it was in.
    pub(super) fn new(
        me: NodeId,
        config: CoreConfig,
        resume: Option<Resume>,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let founding = Founding::new(me, config.joining, config.discovery_window, now);
        let mut core = Self {
            me,
            config,
            rng: StdRng::seed_from_u64(seed),
            started: now,
            peers: BTreeMap::new(),
            stage: Stage::Searching(founding),
            empty: true,
            next_merge: now,
            next_hello: now + HELLO_INTERVAL,
            sealed_since: None,
            deserted: false,
            told_apart: BTreeSet::new(),
            dissolved: BTreeMap::new(),
            storage: None,
            outputs: VecDeque::new(),
        };
        match resume {
            Some(resume) => core.resume(resume, now),
            None => core.outputs.push_back(Output::Event(NodeEvent::Looking)),
        }
        core
    }

    fn resume(&mut self, resume: Resume, now: Timestamp) {
        let Resume { swarm: id, partitions, incarnation, members, stored, findings } = resume;
        self.config.incarnation = incarnation;
        let mut swarm = self.new_swarm(id, partitions, now);
        for finding in findings {
            self.outputs.push_back(Output::Event(NodeEvent::StorageFinding { finding }));
        }
        swarm.resume(members, stored, now);
        self.outputs.push_back(Output::Event(NodeEvent::Resumed(id)));
        self.serve(swarm, now);
    }

    // -- inputs --

    /// A link to a peer is up.
    pub(super) fn link_up(&mut self, node: NodeId, member: bool, now: Timestamp) {
        self.peers.insert(node, Peer { member, hello: None });
        if !member {
            return;
        }
        if let Stage::Searching(founding) = &mut self.stage {
            founding.peer_up(node, now);
        }
        let hello = Message::Hello(self.hello());
        self.outputs.push_back(Output::Send { to: node, message: hello });
    }

    /// The link to a peer is gone.
    pub(super) fn link_down(&mut self, node: NodeId, now: Timestamp) {
        let Some(peer) = self.peers.remove(&node) else { return };
        match &mut self.stage {
            Stage::Searching(founding) => founding.peer_down(node),
            Stage::Serving(swarm) if peer.member => swarm.link_down(node, now),
            Stage::Serving(_) | Stage::Left => {}
        }
    }

    /// A message from a linked peer. What is not for this node's swarm, or not from a member, is dropped.
    pub(super) fn message(&mut self, from: NodeId, message: Message, now: Timestamp) {
        let Some(peer) = self.peers.get(&from) else { return };
        if !peer.member {
            return;
        }
        let their_swarm = peer.hello.as_ref().and_then(Hello::swarm);
        let message = match message {
            Message::Hello(hello) => return self.hello_from(from, hello, now),
            Message::Dissolved { from, into } if Some(from) == self.swarm_id() => {
                return self.dissolve(into, now);
            }
            message => message,
        };
        let Stage::Serving(swarm) = &mut self.stage else { return };
        if their_swarm != Some(swarm.id()) {
            return;
        }
        match message {
            Message::Gossip { swarm: id, bytes } if id == swarm.id() => swarm.gossip(from, &bytes, now),
            Message::Groups { swarm: id, messages } if id == swarm.id() => swarm.groups(from, messages, now),
            Message::Leading { swarm: id, leads } if id == swarm.id() => swarm.leading(from, &leads),
            Message::Stopping { swarm: id } if id == swarm.id() => swarm.other_stopping(from),
            _ => {}
        }
    }

    /// A request; the response comes as [`Output::Respond`] (or [`Output::Forward`]) with the same tag.
    pub(super) fn request(&mut self, tag: u64, request: Request, now: Timestamp) {
        let response = match request {
            Request::Status => Response::Status(Box::new(self.status(now))),
            Request::Ticket => Response::Ticket(self.config.ticket.clone()),
            Request::Leave => {
                self.leave(now);
                Response::Leaving
            }
            Request::Stop if self.config.durable => {
                self.hand_over(now);
                self.outputs.push_back(Output::Event(NodeEvent::Stopping));
                Response::Leaving
            }
            Request::Stop => Response::Refused(Refusal::BadRequest(
                "the node keeps nothing on disk, so it cannot come back: let it leave instead".to_owned(),
            )),
            request => match &mut self.stage {
                Stage::Serving(swarm) => {
                    swarm.request(tag, request, now);
                    return;
                }
                Stage::Searching(_) | Stage::Left => Response::Refused(Refusal::NotServing),
            },
        };
        self.outputs.push_back(Output::Respond { tag, response });
    }

    /// Hand everything over and leave; [`Output::Left`] tells when that is done.
    pub(super) fn leave(&mut self, now: Timestamp) {
        match &mut self.stage {
            Stage::Serving(swarm) => swarm.leave(now),
            Stage::Searching(_) => self.left(),
            Stage::Left => {}
        }
    }

    /// All batches of [`Output::Persist`] up to this one are on the disk.
    pub(super) fn persisted(&mut self, batch: u64, now: Timestamp) {
        if let Stage::Serving(swarm) = &mut self.stage {
            swarm.persisted(batch, now);
        }
    }

    /// The disk is full, or has room again.
    pub(super) fn set_full(&mut self, full: bool) {
        if let Stage::Serving(swarm) = &mut self.stage {
            swarm.set_full(full);
        }
        let event = if full { NodeEvent::StorageFull } else { NodeEvent::StorageRoom };
        self.outputs.push_back(Output::Event(event));
    }

    /// So many blocks of datasets are kept here: who leaves hands them over first.
    pub(super) fn note_blocks(&mut self, count: usize) {
        if let Stage::Serving(swarm) = &mut self.stage {
            swarm.note_blocks(count);
        }
    }

    /// The store wants the state of a partition, to cut its log.
    pub(super) fn keep_state(&mut self, partition: PartitionId) {
        if let Stage::Serving(swarm) = &mut self.stage {
            swarm.keep_state(partition);
        }
    }

    /// How the disk is, for [`Request::Status`].
    pub(super) fn note_storage(&mut self, status: StorageStatus) {
        self.storage = Some(status);
    }

    /// Hand over all leaderships, because this node is about to stop; [`Core::has_handed_over`] tells when that is
    /// done.
    pub(super) fn hand_over(&mut self, now: Timestamp) {
        if let Stage::Serving(swarm) = &mut self.stage {
            swarm.hand_over(now);
        }
    }

    /// Whether this node leads nothing that another could lead.
    pub(super) fn has_handed_over(&self) -> bool {
        match &self.stage {
            Stage::Serving(swarm) => swarm.has_handed_over(),
            Stage::Searching(_) | Stage::Left => true,
        }
    }

    /// Whether it is known that this node listens there.
    pub(super) fn listens_at(&self, address: &str) -> bool {
        self.config.addresses.iter().any(|known| known == address)
    }

    /// Where this node listens has changed.
    pub(super) fn set_addresses(&mut self, addresses: Vec<String>, ticket: String, now: Timestamp) {
        self.config.ticket = ticket;
        if self.config.addresses == addresses {
            return;
        }
        self.config.addresses.clone_from(&addresses);
        if let Stage::Serving(swarm) = &mut self.stage {
            swarm.set_addresses(addresses, now);
        }
        self.say_hello();
    }

    /// How the attempt to dissolve this swarm ended: `true`, every partition is sealed for good.
    pub(super) fn merged(&mut self, from: SwarmId, into: SwarmId, sealed: bool, now: Timestamp) {
        if self.swarm_id() != Some(from) {
            return;
        }
        if sealed {
            for node in self.fellows(from) {
                self.outputs.push_back(Output::Send { to: node, message: Message::Dissolved { from, into } });
            }
            self.dissolve(into, now);
        } else {
            self.next_merge = now + MERGE_RETRY;
            self.sealed_since = None;
        }
    }

    /// The swarm is known to hold keys: others of its name give way to it, not it to them.
    pub(super) fn holds_data(&mut self) {
        if std::mem::replace(&mut self.empty, false) {
            self.say_hello();
        }
    }

    /// Time has passed.
    pub(super) fn handle_deadline(&mut self, now: Timestamp) {
        if self.next_hello <= now {
            self.next_hello = now + HELLO_INTERVAL;
            self.say_hello();
            self.look_for_seals(now);
            self.look_for_desertion(now);
        }
        if let Stage::Serving(swarm) = &mut self.stage {
            swarm.handle_deadline(now);
        }
    }

    // -- outputs --

    /// When [`Core::handle_deadline`] is due.
    pub(super) fn next_deadline(&self, now: Timestamp) -> Timestamp {
        match &self.stage {
            Stage::Searching(founding) => match founding.decide(now) {
                Decision::Wait(until) => until.min(self.next_hello),
                Decision::Found | Decision::Join { .. } => now,
            },
            Stage::Serving(swarm) => {
                let merge = self.swarm_to_give_way_to().map_or(Timestamp::NEVER, |_| self.next_merge);
                swarm.next_deadline().min(merge).min(self.next_hello)
            }
            Stage::Left => Timestamp::NEVER,
        }
    }

    /// What to do next; `None`: wait for an input.
    pub(super) fn poll_output(&mut self, now: Timestamp) -> Option<Output> {
        if self.outputs.is_empty() {
            self.advance(now);
        }
        self.outputs.pop_front()
    }

    /// The swarm, once there is one.
    pub(super) fn swarm_id(&self) -> Option<SwarmId> {
        match &self.stage {
            Stage::Serving(swarm) => Some(swarm.id()),
            Stage::Searching(_) | Stage::Left => None,
        }
    }

    /// The replicas that this node holds.
    pub(super) fn replicas(&self) -> Vec<PartitionStatus> {
        match &self.stage {
            Stage::Serving(swarm) => swarm.status(),
            Stage::Searching(_) | Stage::Left => Vec::new(),
        }
    }

    /// The swarm that this node serves in, for a simulator that judges what happens.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn serving(&mut self) -> Option<&mut Swarm> {
        match &mut self.stage {
            Stage::Serving(swarm) => Some(swarm),
            Stage::Searching(_) | Stage::Left => None,
        }
    }

    // -- inside --

    fn advance(&mut self, now: Timestamp) {
        match &mut self.stage {
            Stage::Searching(founding) => match founding.decide(now) {
                Decision::Wait(_) => {}
                Decision::Found => self.found(now),
                Decision::Join { swarm, partitions } => self.join(swarm, partitions, now),
            },
            Stage::Serving(swarm) => {
                let left = swarm.poll(&mut self.outputs, now);
                if left {
                    self.left();
                } else {
                    self.consider_merge(now);
                }
            }
            Stage::Left => {}
        }
    }

    fn found(&mut self, now: Timestamp) {
        let id = SwarmId(self.rng.random());
        let mut swarm = self.new_swarm(id, self.config.partitions, now);
        swarm.found(now);
        self.begin(id, self.config.partitions);
        self.outputs.push_back(Output::Event(NodeEvent::Founded(id)));
        self.serve(swarm, now);
    }

    fn begin(&mut self, swarm: SwarmId, partitions: PartitionCount) {
        if self.config.durable {
            self.outputs.push_back(Output::Begin { swarm, partitions });
        }
    }

    fn abandon(&mut self, left: bool) {
        if self.config.durable {
            self.outputs.push_back(Output::Abandon { left });
        }
    }

    fn join(&mut self, id: SwarmId, partitions: PartitionCount, now: Timestamp) {
        let swarm = self.new_swarm(id, partitions, now);
        self.begin(id, partitions);
        self.outputs.push_back(Output::Event(NodeEvent::Joined(id)));
        self.serve(swarm, now);
    }

    fn new_swarm(&mut self, id: SwarmId, partitions: PartitionCount, now: Timestamp) -> Box<Swarm> {
        Box::new(Swarm::new(self.me, id, partitions, &self.config, self.rng.next_u64(), now))
    }

    fn serve(&mut self, swarm: Box<Swarm>, now: Timestamp) {
        let id = swarm.id();
        self.stage = Stage::Serving(swarm);
        self.empty = true;
        self.say_hello();
        let fellows = self.fellows(id);
        if let Stage::Serving(swarm) = &mut self.stage {
            for node in fellows {
                swarm.link_up(node, now);
            }
        }
    }

    fn hello_from(&mut self, from: NodeId, hello: Hello, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let before = peer.hello.as_ref().and_then(Hello::swarm);
        let after = hello.swarm();
        if let Some((old, into)) = after.and_then(|swarm| self.dissolved.get_key_value(&swarm)) {
            let message = Message::Dissolved { from: *old, into: *into };
            self.outputs.push_back(Output::Send { to: from, message });
            return;
        }
        peer.hello = Some(hello.clone());
        match &mut self.stage {
            Stage::Searching(founding) => founding.hello(from, hello, now),
            Stage::Serving(swarm) if before != after => {
                if after == Some(swarm.id()) {
                    swarm.link_up(from, now);
                } else if before == Some(swarm.id()) {
                    swarm.link_down(from, now);
                }
            }
            Stage::Serving(_) | Stage::Left => {}
        }
    }

    /// A linked swarm of the same name that is not ours, and whether it is not known to hold keys.
    fn other_swarm(&self) -> Option<(SwarmId, bool)> {
        let ours = self.swarm_id()?;
        self.peers
            .values()
            .filter_map(|peer| peer.hello.as_ref())
            .filter_map(|hello| hello.swarm().map(|swarm| (hello.empty, swarm)))
            .filter(|(_, swarm)| *swarm != ours)
            .min()
            .map(|(empty, swarm)| (swarm, empty))
    }

    /// Of two swarms of one name the one that holds nothing gives way, and of two empty ones the larger id.
    fn swarm_to_give_way_to(&self) -> Option<SwarmId> {
        let ours = self.swarm_id()?;
        let (theirs, their_empty) = self.other_swarm()?;
        (self.empty && (!their_empty || ours > theirs)).then_some(theirs)
    }

    fn consider_merge(&mut self, now: Timestamp) {
        let Some((theirs, their_empty)) = self.other_swarm() else { return };
        if self.empty && self.replicas().iter().any(|replica| replica.keys > 0) {
            // No need to try: sealing would only hold up those who write.
            self.holds_data();
        }
        let Stage::Serving(swarm) = &self.stage else { return };
        let (ours, partitions) = (swarm.id(), swarm.partitions());
        if self.told_apart.len() >= MAX_OTHER_SWARMS {
            self.told_apart.pop_first();
        }
        if !self.empty && !their_empty && self.told_apart.insert(theirs) {
            self.outputs.push_back(Output::Event(NodeEvent::Apart { ours, theirs }));
        }
        if let Some(into) = self.swarm_to_give_way_to()
            && self.next_merge <= now
        {
            self.next_merge = now + MERGE_PATIENCE;
            let attempt = self.rng.random();
            let purpose = Purpose::Dissolve;
            self.outputs.push_back(Output::Seal { from: ours, partitions, into, attempt, purpose });
        }
    }

    /// Seals that no attempt will take over, because there is no swarm to give way to, are broken after a while.
    fn look_for_seals(&mut self, now: Timestamp) {
        let Stage::Serving(swarm) = &self.stage else { return };
        let Some(into) = swarm.sealed().filter(|_| self.swarm_to_give_way_to().is_none()) else {
            self.sealed_since = None;
            return;
        };
        if now.since(*self.sealed_since.get_or_insert(now)) >= SEAL_PATIENCE && self.next_merge <= now {
            let (from, partitions) = (swarm.id(), swarm.partitions());
            self.next_merge = now + MERGE_PATIENCE;
            let attempt = self.rng.random();
            let purpose = Purpose::Break;
            self.outputs.push_back(Output::Seal { from, partitions, into, attempt, purpose });
        }
    }

    /// A node that joined while the last member was leaving was handed nothing, and nobody is left to ask.
    fn look_for_desertion(&mut self, now: Timestamp) {
        let Stage::Serving(swarm) = &self.stage else { return };
        let deserted = swarm.is_deserted();
        if std::mem::replace(&mut self.deserted, deserted) && deserted {
            self.search(now);
            self.outputs.push_back(Output::Event(NodeEvent::Looking));
        }
    }

    /// Looks for a swarm from the beginning.
    fn search(&mut self, now: Timestamp) {
        self.abandon(false);
        let window = self.config.discovery_window.max(SECOND_WINDOW);
        let mut founding = Founding::new(self.me, self.config.joining, window, now);
        for (node, peer) in self.peers.iter().filter(|(_, peer)| peer.member) {
            founding.peer_up(*node, now);
            if let Some(hello) = &peer.hello {
                founding.hello(*node, hello.clone(), now);
            }
        }
        self.stage = Stage::Searching(founding);
        self.empty = true;
        self.deserted = false;
        self.sealed_since = None;
        self.next_merge = now;
        self.say_hello();
    }

    fn dissolve(&mut self, into: SwarmId, now: Timestamp) {
        let Stage::Serving(swarm) = &mut self.stage else { return };
        let from = swarm.id();
        let leaving = swarm.is_leaving();
        swarm.dissolve(&mut self.outputs, now);
        self.outputs.push_back(Output::Event(NodeEvent::Dissolved { from, into }));
        if leaving {
            return self.left();
        }
        if self.dissolved.len() >= MAX_OTHER_SWARMS {
            self.dissolved.pop_first();
        }
        self.dissolved.insert(from, into);
        for peer in self.peers.values_mut() {
            // Its fellows will dissolve as well and say so; until then the old swarm must not be joined again.
            peer.hello.take_if(|hello| hello.swarm() == Some(from));
        }
        self.search(now);
    }

    fn left(&mut self) {
        self.stage = Stage::Left;
        self.abandon(true);
        self.outputs.push_back(Output::Event(NodeEvent::Left));
        self.outputs.push_back(Output::Left);
    }

    fn hello(&self) -> Hello {
        let state = match &self.stage {
            Stage::Searching(_) => SwarmState::Unfounded { joining: self.config.joining },
            // Nobody must wait for this node to found.
            Stage::Left => SwarmState::Unfounded { joining: true },
            Stage::Serving(swarm) => {
                SwarmState::Founded { swarm: swarm.id(), partitions: swarm.partitions() }
            }
        };
        Hello { state, empty: self.empty }
    }

    fn say_hello(&mut self) {
        let hello = self.hello();
        for (node, _) in self.peers.iter().filter(|(_, peer)| peer.member) {
            self.outputs.push_back(Output::Send { to: *node, message: Message::Hello(hello.clone()) });
        }
    }

    /// The linked members of a swarm.
    fn fellows(&self, swarm: SwarmId) -> Vec<NodeId> {
        self.peers
            .iter()
            .filter(|(_, peer)| peer.hello.as_ref().and_then(Hello::swarm) == Some(swarm))
            .map(|(node, _)| *node)
            .collect()
    }

    fn status(&self, now: Timestamp) -> NodeStatus {
        NodeStatus {
            node: self.me,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.config.name.clone(),
            state: self.hello().state,
            addresses: self.config.addresses.clone(),
            uptime_ms: u64::try_from(now.since(self.started).as_millis()).unwrap_or(u64::MAX),
            links: self.peers.iter().filter(|(_, peer)| peer.member).map(|(node, _)| *node).collect(),
            leaving: match &self.stage {
                Stage::Serving(swarm) => swarm.is_leaving(),
                Stage::Searching(_) => false,
                Stage::Left => true,
            },
            replicas: self.replicas(),
            storage: self.storage.clone(),
        }
    }
}
