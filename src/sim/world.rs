//! The simulated world: machines, the network between them, and one queue of all that is going to happen.
//!
//! One thread, one random number generator, no clock but its own: the same seed gives the same world. Whoever
//! drives it calls [`World::step`] and is told what concerns clients; the verbs (start, crash, pause, block, ...)
//! are the faults.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::clock::MachineClock;
use super::disk::Disk;
use super::invariants::{Judge, Violation};
use super::machine::{Forwarded, Machine};
use super::network::{Lane, Network, Parcel, SILENCE_MS};
use crate::id::{NodeId, PartitionId, SwarmId};
use crate::node::core::{Core, CoreConfig, Output};
use crate::node::event::NodeEvent;
use crate::ring::{PartitionCount, Token};
use crate::time::Timestamp;
use crate::wire::{Message, Refusal, Request, Response};

/// How long a request that is passed on may take, as in `node::runtime`; waits are bounded by their callers.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait that a client of the simulation asks for.
pub(in crate::node) const MAX_WAIT: Duration = Duration::from_secs(5);
/// Clocks gain or lose at most so much, in millionths: fifty times what the worst quartz does, and well below what
/// the leases allow for.
pub(in crate::node) const MAX_GAIN_PPM: i64 = 50_000;

/// What is going to happen.
#[derive(Debug, Clone)]
pub(in crate::node) enum Event {
    /// A link is gone, as `at` sees it.
    LinkDown { at: NodeId, peer: NodeId, epoch: u64 },
    /// `at` gives up the link if it still hears nothing.
    Silence { at: NodeId, peer: NodeId, epoch: u64 },
    /// The two try to link.
    Connect { a: NodeId, b: NodeId },
    /// Something may be due on a lane.
    Look { from: NodeId, to: NodeId, lane: Lane },
    /// A parcel that came while its receiver stood still.
    Arrived { from: NodeId, to: NodeId, parcel: Parcel },
    /// A client's request arrives.
    Ask { node: NodeId, call: CallId, request: Request },
    /// A response arrives at a client; `None`: its connection broke.
    Answer { call: CallId, response: Option<Response> },
    /// The disk has written up to this batch.
    Persisted { node: NodeId, life: u64, batch: u64 },
    /// What was passed on took too long.
    ForwardTimeout { node: NodeId, life: u64, tag: u64 },
    /// A machine goes on after a pause.
    Wake { node: NodeId },
    /// A machine starts again.
    Restart { node: NodeId },
    /// Whoever drives the world wants to be told.
    Alarm(Alarm),
}

/// One attempt of a client's call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::node) struct CallId {
    pub(in crate::node) call: u64,
    pub(in crate::node) attempt: u32,
}

/// What whoever drives the world wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::node) enum Alarm {
    /// The attempt takes too long.
    Attempt(CallId),
    /// A pause between two attempts is over.
    Retry(u64),
    /// A client has thought.
    Client(usize),
    /// A contender for a lock has something to do.
    Contender(usize),
    /// Its lease is to be renewed.
    Renew(usize),
    /// The next fault.
    Fault,
    /// A fault that lasts is over.
    Over(u32),
}

/// What a step was, as far as it concerns clients.
#[derive(Debug)]
pub(in crate::node) enum Happening {
    /// Nothing.
    Inside,
    /// A response to an attempt; `None`: its connection broke.
    Answer(CallId, Option<Response>),
    /// It is time.
    Alarm(Alarm),
}

/// Who waits for a node's answer.
#[derive(Debug, Clone, Copy)]
enum Asker {
    Client(CallId),
    Node { node: NodeId, tag: u64 },
}

/// What all nodes of a world are told.
#[derive(Debug, Clone, Copy)]
pub(in crate::node) struct Setting {
    pub(in crate::node) partitions: u32,
    pub(in crate::node) replace_after: Duration,
    /// Clocks gain or lose at most so much.
    pub(in crate::node) gain_ppm: i64,
}

/// What happened, for a person to read and for comparing two runs.
#[derive(Debug, Default)]
pub(in crate::node) struct Trace {
    digest: DefaultHasher,
    /// Whether every step goes into the digest and the lines.
    pub(in crate::node) is_full: bool,
    /// Whether lines are kept.
    pub(in crate::node) keeps_lines: bool,
    pub(in crate::node) lines: Vec<String>,
}

impl Trace {
    fn note(&mut self, now: Timestamp, what: &dyn std::fmt::Debug) {
        if self.is_full {
            let line = format!("{now:?} {what:?}");
            line.hash(&mut self.digest);
            if self.keeps_lines {
                self.lines.push(line);
            }
        }
    }

    /// Of a run with the same seed it is the same.
    pub(in crate::node) fn digest(&self) -> u64 {
        self.digest.finish()
    }
}

#[derive(Debug)]
pub(in crate::node) struct World {
    pub(in crate::node) rng: StdRng,
    pub(in crate::node) now: Timestamp,
    pub(in crate::node) setting: Setting,
    queue: BTreeMap<(Timestamp, u64), Event>,
    sequence: u64,
    pub(in crate::node) machines: BTreeMap<NodeId, Machine>,
    pub(in crate::node) network: Network,
    asked: BTreeMap<(NodeId, u64), Asker>,
    next_tag: u64,
    pub(in crate::node) judge: Judge,
    pub(in crate::node) violation: Option<Violation>,
    /// A leader that is cut off just now, and a key that it led.
    pub(in crate::node) deposed: Option<(NodeId, &'static str)>,
    pub(in crate::node) trace: Trace,
    pub(in crate::node) counts: BTreeMap<&'static str, u64>,
    pub(in crate::node) events: BTreeMap<NodeId, Vec<NodeEvent>>,
}

impl World {
    pub(in crate::node) fn new(seed: u64, setting: Setting) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Timestamp::from_micros(1_000_000),
            setting,
            queue: BTreeMap::new(),
            sequence: 0,
            machines: BTreeMap::new(),
            network: Network::new(),
            asked: BTreeMap::new(),
            next_tag: 0,
            judge: Judge::default(),
            violation: None,
            deposed: None,
            trace: Trace::default(),
            counts: BTreeMap::new(),
            events: BTreeMap::new(),
        }
    }

    pub(in crate::node) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(in crate::node) fn ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(low * 1000..=high * 1000))
    }

    pub(in crate::node) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    pub(in crate::node) fn partition_of(&self, key: &[u8]) -> PartitionId {
        self.partition_count().partition_of(Token::of_key(key))
    }

    pub(in crate::node) fn partition_count(&self) -> PartitionCount {
        PartitionCount::new(self.setting.partitions).expect("a world's number of partitions is possible")
    }

    // -- verbs --

    /// A new machine with an empty node, which meets all others within a few milliseconds.
    pub(in crate::node) fn start(&mut self, durable: bool, joining: bool) -> NodeId {
        let me = NodeId::from_public_key(self.rng.random());
        let most = self.setting.gain_ppm;
        let clock = MachineClock::new(self.rng.random_range(0..1 << 36), self.rng.random_range(-most..=most));
        let disk = durable.then(Disk::new);
        self.machines.insert(me, Machine::new(clock, disk));
        self.boot(me, joining);
        me
    }

    fn boot(&mut self, me: NodeId, joining: bool) {
        let seed = self.rng.random();
        let (now, partitions) = (self.now, self.partition_count());
        let Some(machine) = self.machines.get_mut(&me) else { return };
        let config = CoreConfig {
            name: "sim".to_owned(),
            partitions,
            replicas: 3,
            weight: 1,
            joining,
            discovery_window: Duration::from_secs(2),
            replace_after: self.setting.replace_after,
            addresses: vec![me.to_string()],
            ticket: String::new(),
            durable: machine.is_durable(),
            incarnation: 1,
        };
        let resume = machine.disk.as_mut().and_then(Disk::open);
        // Who was told to leave and crashed comes back as a member like any other.
        machine.is_leaving = false;
        machine.life += 1;
        machine.core = Some(Core::new(me, config, resume, seed, machine.clock.show(now)));
        for other in self.machines.keys().copied().filter(|other| *other != me).collect::<Vec<_>>() {
            let soon = self.ms(1, 10);
            self.schedule(soon, Event::Connect { a: me, b: other });
        }
        self.drain(me);
    }

    /// The machine stops at once; `power`: so that nobody is told, and the disk keeps only what was written.
    pub(in crate::node) fn crash(&mut self, node: NodeId, power: bool) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if machine.core.take().is_none() {
            return;
        }
        machine.due = Timestamp::NEVER;
        machine.is_paused = false;
        machine.deferred.clear();
        machine.forwarded.clear();
        machine.links.clear();
        if let Some(disk) = &mut machine.disk {
            // What a process that dies has handed to the kernel is written; what it still held is not.
            disk.lose_unwritten(&mut self.rng);
        }
        let asked = std::mem::take(&mut self.asked).into_iter();
        let (of_it, others): (Vec<_>, Vec<_>) = asked.partition(|((at, _), _)| *at == node);
        self.asked = others.into_iter().collect();
        for (_, asker) in of_it {
            if let (Asker::Client(call), false) = (asker, power) {
                let soon = self.ms(1, 5);
                self.schedule(soon, Event::Answer { call, response: None });
            }
        }
        for peer in self.network.peers(node) {
            let Some(epoch) = self.network.disconnect(node, peer) else { continue };
            let unheard = power || self.network.is_blocked(node, peer);
            let after = if unheard { self.ms(SILENCE_MS.0, SILENCE_MS.1) } else { self.ms(0, 5) };
            self.schedule(after, Event::LinkDown { at: peer, peer: node, epoch });
        }
    }

    /// A machine that is down starts again with what is on its disk.
    pub(in crate::node) fn restart_in(&mut self, node: NodeId, after: Duration) {
        self.schedule(after, Event::Restart { node });
    }

    /// The machine stands still, with its links, until it is woken.
    pub(in crate::node) fn pause(&mut self, node: NodeId, pause: Duration) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if !machine.is_up() || machine.is_paused {
            return;
        }
        machine.is_paused = true;
        machine.due = Timestamp::NEVER;
        self.schedule(pause, Event::Wake { node });
        for peer in self.network.peers(node) {
            self.watch_silence(peer, node);
        }
    }

    /// From now on nothing gets from `from` to `to`.
    pub(in crate::node) fn block(&mut self, from: NodeId, to: NodeId) {
        if from != to && self.network.block(from, to) {
            self.watch_silence(to, from);
        }
    }

    fn watch_silence(&mut self, at: NodeId, peer: NodeId) {
        if let Some(epoch) = self.network.link(at, peer) {
            let after = self.ms(SILENCE_MS.0, SILENCE_MS.1);
            self.schedule(after, Event::Silence { at, peer, epoch });
        }
    }

    /// Everything gets through again.
    pub(in crate::node) fn heal(&mut self) {
        for (from, to, lane) in self.network.unblock_all(self.now, &mut self.rng) {
            self.schedule(Duration::ZERO, Event::Look { from, to, lane });
        }
    }

    pub(in crate::node) fn leave(&mut self, node: NodeId) {
        self.with(node, Core::leave);
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.is_leaving = true;
        }
    }

    /// Lets a core work, then does what it wants.
    pub(in crate::node) fn with(&mut self, node: NodeId, work: impl FnOnce(&mut Core, Timestamp)) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let shown = machine.clock.show(now);
        if let Some(core) = &mut machine.core {
            work(core, shown);
            self.drain(node);
        }
    }

    // -- looking --

    pub(in crate::node) fn core(&self, node: NodeId) -> Option<&Core> {
        self.machines.get(&node)?.core.as_ref()
    }

    /// The machines that are up.
    pub(in crate::node) fn up(&self) -> Vec<NodeId> {
        self.machines.iter().filter(|(_, machine)| machine.is_up()).map(|(node, _)| *node).collect()
    }

    pub(in crate::node) fn swarms(&self) -> BTreeSet<Option<SwarmId>> {
        self.machines.values().filter_map(|machine| Some(machine.core.as_ref()?.swarm_id())).collect()
    }

    pub(in crate::node) fn swarm_of(&self, node: NodeId) -> SwarmId {
        self.core(node).and_then(Core::swarm_id).unwrap_or(SwarmId(0))
    }

    /// Every replica of every group, a line each, for a person to read.
    pub(in crate::node) fn groups(&mut self) -> String {
        let mut lines = Vec::new();
        for (node, machine) in &mut self.machines {
            let leaving = if machine.is_leaving { ", leaving" } else { "" };
            let Some(swarm) = machine.core.as_mut().and_then(Core::serving) else { continue };
            for partition in (0..self.setting.partitions).map(PartitionId) {
                let Some(group) = swarm.driver().group(partition) else { continue };
                lines.push(format!(
                    "{partition:?} {node:?}{leaving}: {:?} {:?} in term {}, follows {:?}, applied {} of {:?}, voters {:?}, \
                     learners {:?}{}{}",
                    group.replica,
                    group.role,
                    group.term,
                    group.leader,
                    group.applied,
                    group.last,
                    group.voters,
                    group.learners,
                    if group.changing { ", changing" } else { "" },
                    if group.damaged { ", damaged" } else { "" },
                ));
            }
        }
        lines.sort();
        lines.join("\n")
    }

    // -- clients --

    /// Whether a client that sits beside `anchor` gets through to a node; `None`: it sits everywhere.
    pub(in crate::node) fn reaches(&self, anchor: Option<NodeId>, node: NodeId) -> bool {
        anchor.is_none_or(|anchor| {
            anchor == node
                || !(self.network.is_blocked(anchor, node) || self.network.is_blocked(node, anchor))
        })
    }

    pub(in crate::node) fn ask(&mut self, node: NodeId, call: CallId, request: Request) {
        let after = self.trip();
        self.schedule(after, Event::Ask { node, call, request });
    }

    fn trip(&mut self) -> Duration {
        let (low, high) = self.network.weather.latency_us;
        let late = if self.rng.random_bool(self.network.weather.straggling) { 300 } else { 1 };
        Duration::from_micros(self.rng.random_range(low..=high) * late)
    }

    pub(in crate::node) fn alarm(&mut self, after: Duration, alarm: Alarm) {
        self.schedule(after, Event::Alarm(alarm));
    }

    // -- the machinery --

    fn schedule(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), event);
    }

    /// Lets the next thing happen, unless it is after `until` or something has been violated.
    pub(in crate::node) fn step(&mut self, until: Timestamp) -> Option<Happening> {
        if self.violation.is_some() {
            return None;
        }
        let timer = self.machines.iter().map(|(node, machine)| (machine.due, *node)).min();
        let event = self.queue.first_key_value().map(|(at, _)| *at);
        match (timer, event) {
            (Some((due, node)), event) if due <= until && event.is_none_or(|(at, _)| due < at) => {
                self.now = self.now.max(due);
                self.trace.note(self.now, &("due", node));
                self.with(node, Core::handle_deadline);
                Some(Happening::Inside)
            }
            (_, Some(at)) if at.0 <= until => {
                let (_, event) = self.queue.pop_first()?;
                self.now = self.now.max(at.0);
                self.trace.note(self.now, &event);
                Some(self.happen(event))
            }
            _ => {
                self.now = self.now.max(until);
                None
            }
        }
    }

    fn happen(&mut self, event: Event) -> Happening {
        match event {
            Event::Alarm(alarm) => return Happening::Alarm(alarm),
            Event::Answer { call, response } => return Happening::Answer(call, response),
            Event::Look { from, to, lane } => self.look(from, to, lane),
            Event::Silence { at, peer, epoch } => self.silence(at, peer, epoch),
            Event::Connect { a, b } => self.connect(a, b),
            Event::Wake { node } => self.wake(node),
            Event::Restart { node } => {
                if self.machines.get(&node).is_some_and(|machine| !machine.is_up() && !machine.is_gone) {
                    self.count("restarts");
                    self.boot(node, true);
                }
            }
            Event::LinkDown { at, .. } => self.come(at, event),
            Event::Arrived { to, .. } => self.come(to, event),
            Event::Ask { node, .. } | Event::Persisted { node, .. } | Event::ForwardTimeout { node, .. } => {
                self.come(node, event);
            }
        }
        Happening::Inside
    }

    /// Something happens to a node: now, or when it wakes.
    fn come(&mut self, node: NodeId, event: Event) {
        match self.machines.get_mut(&node) {
            Some(machine) if machine.is_paused => machine.deferred.push_back(event),
            _ => self.reach(event),
        }
    }

    /// Ends a pause before its time.
    pub(in crate::node) fn wake_now(&mut self, node: NodeId) {
        self.schedule(Duration::ZERO, Event::Wake { node });
    }

    fn wake(&mut self, node: NodeId) {
        let Some(machine) = self.machines.get_mut(&node).filter(|machine| machine.is_paused) else { return };
        machine.is_paused = false;
        machine.note_due(self.now);
        // Whether its timers or what has come meanwhile is seen to first is chance.
        if self.rng.random() {
            self.with(node, Core::handle_deadline);
        }
        while let Some(event) = self.machines.get_mut(&node).and_then(|machine| machine.deferred.pop_front())
        {
            self.reach(event);
        }
    }

    fn reach(&mut self, event: Event) {
        match event {
            Event::LinkDown { at, peer, epoch } => self.link_down(at, peer, epoch),
            Event::Arrived { from, to, parcel } => self.deliver(from, to, parcel),
            Event::Ask { node, call, request } => {
                if self.core(node).is_none() {
                    let soon = self.ms(1, 2);
                    return self.schedule(soon, Event::Answer { call, response: None });
                }
                self.request(node, Asker::Client(call), request);
            }
            Event::Persisted { node, life, batch } => {
                let Some(machine) = self.machines.get_mut(&node) else { return };
                if machine.life != life || !machine.is_up() {
                    return;
                }
                if let Some(disk) = &mut machine.disk {
                    disk.written(batch);
                }
                self.with(node, |core, now| core.persisted(batch, now));
            }
            Event::ForwardTimeout { node, life, tag }
                if self.machines.get(&node).is_some_and(|machine| machine.life == life) =>
            {
                self.forward_lost(node, tag);
            }
            _ => {}
        }
    }

    fn link_up(&mut self, at: NodeId, peer: NodeId, epoch: u64) {
        if self.network.link(at, peer) != Some(epoch) {
            return;
        }
        let Some(machine) = self.machines.get_mut(&at).filter(|machine| machine.is_up()) else { return };
        let before = machine.links.get(&peer).copied();
        if let Some(before) = before {
            self.link_down(at, peer, before);
        }
        if let Some(machine) = self.machines.get_mut(&at) {
            machine.links.insert(peer, epoch);
        }
        self.with(at, |core, now| core.link_up(peer, true, now));
    }

    fn link_down(&mut self, at: NodeId, peer: NodeId, epoch: u64) {
        let Some(machine) = self.machines.get_mut(&at) else { return };
        if machine.links.get(&peer) != Some(&epoch) {
            return;
        }
        machine.links.remove(&peer);
        let lost = |sent: &Forwarded| sent.to == peer && sent.epoch == epoch;
        let tags: Vec<u64> =
            machine.forwarded.iter().filter(|(_, sent)| lost(sent)).map(|(tag, _)| *tag).collect();
        self.with(at, |core, now| core.link_down(peer, now));
        for tag in tags {
            self.forward_lost(at, tag);
        }
    }

    /// `at` has heard nothing from `peer` for long, if that is still so.
    fn silence(&mut self, at: NodeId, peer: NodeId, epoch: u64) {
        let stands_still = |node| self.machines.get(&node).is_some_and(|machine: &Machine| machine.is_paused);
        if self.network.link(at, peer) != Some(epoch)
            || !(self.network.is_blocked(peer, at) || stands_still(peer))
        {
            return;
        }
        if stands_still(at) {
            return self.schedule(Duration::from_millis(500), Event::Silence { at, peer, epoch });
        }
        // The other end is told at once, if it can be told.
        let told = !self.network.is_blocked(at, peer);
        self.network.disconnect(at, peer);
        self.count("links given up");
        self.schedule(Duration::ZERO, Event::LinkDown { at, peer, epoch });
        let after = if told { self.ms(0, 2) } else { self.ms(SILENCE_MS.0, SILENCE_MS.1) };
        self.schedule(after, Event::LinkDown { at: peer, peer: at, epoch });
        let again = self.ms(50, 1_000);
        self.schedule(again, Event::Connect { a: at, b: peer });
    }

    fn connect(&mut self, a: NodeId, b: NodeId) {
        let is_gone = |node| self.machines.get(&node).is_none_or(|machine: &Machine| machine.is_gone);
        if is_gone(a) || is_gone(b) || self.network.link(a, b).is_some() {
            return;
        }
        let is_ready = |node| {
            self.machines.get(&node).is_some_and(|machine: &Machine| machine.is_up() && !machine.is_paused)
        };
        if !is_ready(a) || !is_ready(b) || self.network.is_blocked(a, b) || self.network.is_blocked(b, a) {
            let again = self.ms(100, 1_000);
            return self.schedule(again, Event::Connect { a, b });
        }
        let epoch = self.network.connect(a, b);
        self.link_up(a, b, epoch);
        self.link_up(b, a, epoch);
    }

    fn look(&mut self, from: NodeId, to: NodeId, lane: Lane) {
        loop {
            match self.network.receive(from, to, lane, self.now) {
                Ok(parcel) => self.come(to, Event::Arrived { from, to, parcel }),
                Err(Some(due)) => {
                    return self.schedule(due.since(self.now), Event::Look { from, to, lane });
                }
                Err(None) => return,
            }
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, parcel: Parcel) {
        match parcel {
            Parcel::Message(message) => self.with(to, |core, now| core.message(from, message, now)),
            Parcel::Request { tag, request } => {
                self.request(to, Asker::Node { node: from, tag }, request);
            }
            Parcel::Response { tag, response } => {
                let Some(machine) = self.machines.get_mut(&to) else { return };
                if machine.forwarded.remove(&tag).is_some() {
                    self.respond(to, tag, response);
                }
            }
        }
    }

    fn request(&mut self, node: NodeId, asker: Asker, request: Request) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.asked.insert((node, tag), asker);
        self.with(node, |core, now| core.request(tag, request, now));
    }

    /// What was passed on under this tag is not going to be answered.
    fn forward_lost(&mut self, node: NodeId, tag: u64) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if let Some(sent) = machine.forwarded.remove(&tag) {
            let refused = Response::Refused(Refusal::NotLeader { leader: None });
            self.respond(node, tag, if sent.is_write { Response::Unknown } else { refused });
        }
    }

    fn respond(&mut self, node: NodeId, tag: u64, response: Response) {
        match self.asked.remove(&(node, tag)) {
            Some(Asker::Client(call)) => {
                let after = self.trip();
                self.schedule(after, Event::Answer { call, response: Some(response) });
            }
            Some(Asker::Node { node: first, tag }) => {
                self.send(node, first, Parcel::Response { tag, response });
            }
            None => {}
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, parcel: Parcel) {
        if let Some((lane, due)) = self.network.send(from, to, parcel, self.now, &mut self.rng) {
            self.schedule(due.since(self.now), Event::Look { from, to, lane });
        }
    }

    fn forward(&mut self, node: NodeId, tag: u64, to: NodeId, request: Request) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let link =
            machine.links.get(&to).copied().filter(|epoch| self.network.link(node, to) == Some(*epoch));
        let life = machine.life;
        let is_write = matches!(request, Request::Write { .. });
        let Some(epoch) = link else {
            let refused = Response::Refused(Refusal::NotLeader { leader: None });
            return self.respond(node, tag, refused);
        };
        machine.forwarded.insert(tag, Forwarded { to, epoch, is_write });
        let wait = if matches!(request, Request::Wait { .. }) { MAX_WAIT } else { Duration::ZERO };
        self.send(node, to, Parcel::Request { tag, request });
        self.schedule(FORWARD_TIMEOUT + wait, Event::ForwardTimeout { node, life, tag });
    }

    /// Does what a core wants, then judges what it did.
    fn drain(&mut self, node: NodeId) {
        let now = self.now;
        loop {
            let Some(machine) = self.machines.get_mut(&node) else { return };
            let shown = machine.clock.show(now);
            let Some(output) = machine.core.as_mut().and_then(|core| core.poll_output(shown)) else { break };
            self.trace.note(now, &(node, &output));
            match output {
                Output::Send { to, message } => self.send_message(node, to, message),
                Output::Respond { tag, response } => self.respond(node, tag, response),
                Output::Forward { tag, to, request } => self.forward(node, tag, to, request),
                Output::Event(event) => self.events.entry(node).or_default().push(event),
                Output::Left => {
                    self.left(node);
                    return;
                }
                Output::Seal { from, into, .. } => {
                    // Nobody merges here: swarms that meet are tested on real nodes.
                    self.with(node, |core, now| core.merged(from, into, false, now));
                    return;
                }
                // Links stay up by themselves here.
                Output::Keep { .. } | Output::Forget { .. } => {}
                Output::Begin { .. }
                | Output::Abandon { .. }
                | Output::Remember { .. }
                | Output::Persist { .. } => self.keep(node, output),
            }
        }
        let Some(machine) = self.machines.get_mut(&node) else { return };
        machine.note_due(now);
        if let Some(core) = &mut machine.core
            && let Err(violation) = self.judge.look(node, core, now)
        {
            self.violate(violation);
        }
    }

    fn send_message(&mut self, from: NodeId, to: NodeId, message: Message) {
        self.send(from, to, Parcel::Message(message));
    }

    fn keep(&mut self, node: NodeId, output: Output) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let life = machine.life;
        let Some(disk) = &mut machine.disk else { return };
        match output {
            Output::Begin { swarm, partitions } => disk.begin(swarm, partitions),
            Output::Abandon { .. } => disk.abandon(),
            Output::Remember { members } => disk.remember(members),
            Output::Persist { batch, writes } => {
                let done = disk.persist(batch, writes, &mut self.rng, now);
                self.schedule(done.since(now), Event::Persisted { node, life, batch });
            }
            _ => {}
        }
    }

    /// It has handed everything over, and its process ends.
    fn left(&mut self, node: NodeId) {
        self.count("leaves done");
        // Its last words go out first.
        for peer in self.network.peers(node) {
            while let Ok(parcel) = self.network.receive(node, peer, Lane::Messages, Timestamp::NEVER) {
                self.come(peer, Event::Arrived { from: node, to: peer, parcel });
            }
        }
        self.crash(node, false);
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.is_gone = true;
        }
    }
}
