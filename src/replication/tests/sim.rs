//! A deterministic world for drivers: latency, loss, duplication, reordering, cuts, pauses, crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::history::{Before, History, Write};
use crate::id::{NodeId, PartitionId, Version};
use crate::replication::{
    Driver, DriverConfig, GroupMessage, GroupStatus, Outcome, Output, Role, Stored, Write as Kept,
};
use crate::state_machine::{Answer, Operation, Query, Reply, Watch};
use crate::time::Timestamp;

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn node_id(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

pub(super) enum Event {
    Deliver(NodeId, Vec<GroupMessage>),
    Link(NodeId, bool),
    /// The disk has written up to this batch, of the node's so-manieth life.
    Stored(u32, u64),
}

/// What a node finds when it comes back.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) stored: Stored,
    /// Handed over and not written yet, with its batch and when that will be.
    under_way: VecDeque<(u64, Vec<Kept>)>,
    done_at: Timestamp,
    lives: u32,
    /// Nothing is written.
    is_stuck: bool,
}

pub(super) struct Node {
    pub(super) driver: Driver,
    pub(super) paused_until: Timestamp,
}

#[derive(Clone)]
pub(super) struct Faults {
    pub(super) loss: f64,
    pub(super) duplication: f64,
    pub(super) latency_us: (u64, u64),
    pub(super) straggler: f64,
}

impl Faults {
    pub(super) fn none() -> Self {
        Self { loss: 0.0, duplication: 0.0, latency_us: (200, 1_000), straggler: 0.0 }
    }
}

/// What a client did and has not been told yet.
pub(super) enum Call {
    Put {
        partition: PartitionId,
        key: Vec<u8>,
        value: Vec<u8>,
        floor: u64,
    },
    /// One attempt of a write under a session, by its number in the history.
    Write(usize),
    Get {
        partition: PartitionId,
        key: Vec<u8>,
        before: Before,
    },
    Wait {
        partition: PartitionId,
        key: Vec<u8>,
        seen: Option<Version>,
        before: Before,
    },
}

#[expect(clippy::struct_excessive_bools, reason = "each switches one thing that a test wants")]
pub(super) struct Sim {
    pub(super) seed: u64,
    pub(super) now: Timestamp,
    pub(super) rng: StdRng,
    pub(super) config: DriverConfig,
    pub(super) partitions: u32,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) crashed: BTreeSet<NodeId>,
    /// Of durable nodes.
    pub(super) disks: BTreeMap<NodeId, Disk>,
    pub(super) disk_latency_us: (u64, u64),
    queue: BTreeMap<(Timestamp, u64), (NodeId, Event)>,
    sequence: u64,
    pub(super) faults: Faults,
    /// Directed: frames from the first to the second are lost.
    pub(super) blocked: BTreeSet<(NodeId, NodeId)>,
    pub(super) trace: DefaultHasher,
    pub(super) tracing: bool,
    leaders: BTreeMap<(PartitionId, u64), NodeId>,
    /// What was applied: by partition, generation (each recovery begins one, with a term that leaps) and index.
    log: BTreeMap<(PartitionId, u64, u64), Vec<u8>>,
    next_tag: u64,
    pub(super) calls: BTreeMap<u64, Call>,
    /// Where each call was made.
    called: BTreeMap<u64, NodeId>,
    /// Frames sent, by sender and receiver.
    pub(super) frames: BTreeMap<(NodeId, NodeId), Vec<Vec<GroupMessage>>>,
    pub(super) keep_frames: bool,
    /// Frames with such a message are lost.
    pub(super) lose: Option<fn(&GroupMessage) -> bool>,
    /// Off in the company of liars, who can break any promise.
    pub(super) checks: bool,
    pub(super) outcomes: BTreeMap<u64, Outcome>,
    pub(super) keep_outcomes: bool,
    pub(super) history: History,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Disk {
    fn write(&mut self, writes: Vec<Kept>) {
        for write in writes {
            self.stored.apply(write).expect("a driver leaves no gaps");
        }
    }

    fn written(&mut self, batch: u64) {
        while self.under_way.front().is_some_and(|(first, _)| *first <= batch) {
            let (_, writes) = self.under_way.pop_front().unwrap();
            self.write(writes);
        }
    }
}

impl Sim {
    pub(super) fn new(seed: u64, partitions: u32, config: DriverConfig) -> Self {
        Self {
            seed,
            now: Timestamp::from_micros(1_000_000),
            rng: StdRng::seed_from_u64(seed),
            config,
            partitions,
            nodes: BTreeMap::new(),
            crashed: BTreeSet::new(),
            disks: BTreeMap::new(),
            disk_latency_us: (100, 2_000),
            queue: BTreeMap::new(),
            sequence: 0,
            faults: Faults::none(),
            blocked: BTreeSet::new(),
            trace: DefaultHasher::new(),
            tracing: false,
            leaders: BTreeMap::new(),
            log: BTreeMap::new(),
            next_tag: 1,
            calls: BTreeMap::new(),
            called: BTreeMap::new(),
            frames: BTreeMap::new(),
            keep_frames: false,
            lose: None,
            checks: true,
            outcomes: BTreeMap::new(),
            keep_outcomes: false,
            history: History::default(),
            counts: BTreeMap::new(),
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A new node; the first one founds. All are linked.
    pub(super) fn start(&mut self, number: u8) -> NodeId {
        let id = node_id(number);
        let rng = StdRng::seed_from_u64(self.seed ^ (u64::from(number) << 32));
        let mut driver = Driver::new(id, self.config.clone(), rng, self.now);
        driver.observe();
        self.disks.insert(id, Disk::default());
        if self.nodes.is_empty() && self.crashed.is_empty() {
            driver.found(self.partitions, self.now);
        } else {
            driver.join(self.partitions);
        }
        for (peer, node) in &mut self.nodes {
            driver.link_up(*peer, self.now);
            node.driver.link_up(id, self.now);
        }
        self.enter(id, driver);
        id
    }

    /// The node's disk has no room left: not even for what was handed over already.
    pub(super) fn fill(&mut self, id: NodeId) {
        self.disks.get_mut(&id).unwrap().is_stuck = true;
        self.driver(id).set_full(true);
        self.settle(id);
    }

    /// There is room again, and what waited is written.
    pub(super) fn make_room(&mut self, id: NodeId) {
        let now = self.now;
        let disk = self.disks.get_mut(&id).unwrap();
        disk.is_stuck = false;
        disk.done_at = now;
        let lives = disk.lives;
        let last = disk.under_way.back().map(|(batch, _)| *batch);
        self.driver(id).set_full(false);
        if let Some(batch) = last {
            self.schedule(ms(1), id, Event::Stored(lives, batch));
        }
        self.settle(id);
    }

    /// A durable node that crashed comes back with what was on its disk.
    pub(super) fn restart(&mut self, id: NodeId) {
        self.come_back(id);
        let damaged = self.driver(id).damaged().count();
        assert_eq!(damaged, 0, "nothing was lost: {:?}", self.disks[&id].stored);
    }

    /// The same of one whose disk did not keep everything.
    pub(super) fn restart_damaged(&mut self, id: NodeId, damage: impl FnOnce(&mut Stored)) {
        damage(&mut self.disks.get_mut(&id).unwrap().stored);
        self.come_back(id);
        assert_ne!(self.driver(id).damaged().count(), 0, "nothing was lost");
    }

    fn come_back(&mut self, id: NodeId) {
        assert!(self.crashed.remove(&id), "it runs");
        let disk = self.disks.get_mut(&id).unwrap();
        disk.lives += 1;
        let stored = disk.stored.clone();
        let seed = self.rng.random();
        let mut driver = Driver::new(id, self.config.clone(), StdRng::seed_from_u64(seed), self.now);
        driver.observe();
        driver.restore(self.partitions, stored, self.now);
        for peer in self.ids() {
            driver.link_up(peer, self.now);
            // Behind the report of the crash, should the peer be asleep.
            self.schedule(ms(6), peer, Event::Link(id, true));
        }
        self.enter(id, driver);
        self.count("restarts");
    }

    fn enter(&mut self, id: NodeId, driver: Driver) {
        let node = Node { driver, paused_until: Timestamp::ZERO };
        self.nodes.insert(id, node);
        for peer in self.ids() {
            self.settle(peer);
        }
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub(super) fn driver(&mut self, id: NodeId) -> &mut Driver {
        &mut self.nodes.get_mut(&id).unwrap().driver
    }

    pub(super) fn status(&self, id: NodeId, partition: PartitionId) -> Option<GroupStatus> {
        self.nodes.get(&id)?.driver.group(partition)
    }

    pub(super) fn schedule(&mut self, after: Duration, to: NodeId, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), (to, event));
    }

    /// Both ends see the link break or stand, each after its own delay.
    pub(super) fn link(&mut self, a: NodeId, b: NodeId, up: bool, after: (u64, u64)) {
        for (to, peer) in [(a, b), (b, a)] {
            let delay = ms(self.rng.random_range(after.0..=after.1));
            self.schedule(delay, to, Event::Link(peer, up));
        }
    }

    pub(super) fn crash(&mut self, id: NodeId) {
        self.nodes.remove(&id);
        self.lose_unwritten(id);
        // What it had not heard of links yet is nothing to its next life.
        self.queue.retain(|_, (to, event)| *to != id || !matches!(event, Event::Link(..)));
        self.calls.retain(|tag, _| self.called[tag] != id);
        self.crashed.insert(id);
        for peer in self.ids() {
            let delay = ms(self.rng.random_range(0..=5));
            self.schedule(delay, peer, Event::Link(id, false));
        }
    }

    /// Of what the disk had not written, some first batches may be there all the same.
    fn lose_unwritten(&mut self, id: NodeId) {
        let disk = self.disks.get_mut(&id).unwrap();
        let spared = self.rng.random_range(0..=disk.under_way.len());
        for (_, writes) in std::mem::take(&mut disk.under_way).into_iter().take(spared) {
            disk.write(writes);
        }
        disk.done_at = Timestamp::ZERO;
    }

    fn persist(&mut self, id: NodeId, batch: u64, writes: Vec<Kept>) {
        let (low, high) = self.disk_latency_us;
        let latency = Duration::from_micros(self.rng.random_range(low..=high));
        let now = self.now;
        let disk = self.disks.get_mut(&id).unwrap();
        disk.under_way.push_back((batch, writes));
        disk.done_at = disk.done_at.max(now + latency);
        let (after, lives) = (disk.done_at.since(now), disk.lives);
        self.schedule(after, id, Event::Stored(lives, batch));
    }

    /// Takes all outputs of a node.
    pub(super) fn settle(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let mut outputs = Vec::new();
        while let Some(output) = node.driver.poll_output() {
            outputs.push(output);
        }
        let applied = node.driver.take_observed().applied;
        let checked = if self.checks { self.partitions } else { 0 };
        for partition in (0..checked).map(PartitionId) {
            if let Some(status) = node.driver.group(partition)
                && status.role == Role::Leader
            {
                let other = *self.leaders.entry((partition, status.term)).or_insert(id);
                assert_eq!(other, id, "two leaders of {partition:?} in term {}", status.term);
            }
        }
        for (partition, index, what) in applied.into_iter().filter(|_| self.checks) {
            let term = u64::from_be_bytes(*what.last_chunk().unwrap());
            let first = self.log.entry((partition, term >> 32, index)).or_insert_with(|| what.clone());
            assert_eq!(*first, what, "{partition:?} differs at {index}");
        }
        for output in outputs {
            if self.tracing {
                format!("{:?} {id:?} {output:?}", self.now).hash(&mut self.trace);
            }
            match output {
                Output::Frame { to, messages } => self.transmit(id, to, &messages),
                Output::Outcome { tag, result } => self.outcome(tag, result),
                Output::ReplicaCreated { .. } => self.count("created"),
                Output::ReplicaRemoved { .. } => self.count("removed"),
                Output::LeaderChanged { .. } => self.count("leader changes"),
                Output::Persist { batch, writes } => self.persist(id, batch, writes),
            }
        }
    }

    fn transmit(&mut self, from: NodeId, to: NodeId, messages: &[GroupMessage]) {
        if self.keep_frames {
            self.frames.entry((from, to)).or_default().push(messages.to_vec());
        }
        if self.blocked.contains(&(from, to)) || self.rng.random_bool(self.faults.loss) {
            return;
        }
        if self.lose.is_some_and(|is_lost| messages.iter().any(is_lost)) {
            return;
        }
        if messages.iter().any(|message| matches!(message.body, crate::replication::Body::SnapshotChunk(_))) {
            self.count("snapshot frames");
        }
        let copies = 1 + usize::from(self.rng.random_bool(self.faults.duplication));
        for _ in 0..copies {
            let (low, high) = self.faults.latency_us;
            let mut latency = self.rng.random_range(low..=high);
            if self.rng.random_bool(self.faults.straggler) {
                latency *= 30;
            }
            let event = Event::Deliver(from, messages.to_vec());
            self.schedule(Duration::from_micros(latency), to, event);
        }
    }

    fn outcome(&mut self, tag: u64, result: Outcome) {
        if self.keep_outcomes {
            self.outcomes.insert(tag, result.clone());
        }
        let Some(call) = self.calls.remove(&tag) else {
            return;
        };
        match (call, result) {
            (Call::Put { partition, key, value, floor }, Outcome::Reply(Reply::Written { version })) => {
                assert!(version.0 > floor, "a write of {partition:?} went back in time");
                self.history.stood(&(partition, key), version.0, &value);
                self.count("writes");
            }
            (Call::Write(number), Outcome::Reply(reply)) => {
                self.count(match reply {
                    _ if self.history.writes[number].answer.is_some() => "answered again",
                    Reply::Settled => "settled",
                    Reply::Conflict { .. } => "conflicts",
                    Reply::Incremented { .. } => "increments",
                    Reply::Deleted { .. } => "deletes",
                    _ => "session writes",
                });
                self.history.answered(number, &reply);
            }
            (Call::Put { .. } | Call::Write(_), Outcome::Unknown) => self.count("unknown"),
            (
                call @ (Call::Get { .. } | Call::Wait { .. }),
                Outcome::Answer { answer: Answer::Entry(entry), stale: false },
            ) => {
                let (partition, key, before) = match call {
                    Call::Wait { partition, key, seen, before } => {
                        self.count("waits");
                        assert_ne!(seen, entry.as_ref().map(|entry| entry.version), "nothing changed");
                        (partition, key, before)
                    }
                    Call::Get { partition, key, before } => (partition, key, before),
                    _ => unreachable!(),
                };
                self.history.read(&(partition, key), before, entry.as_ref(), self.now);
                if entry.is_none() {
                    self.count("absent");
                }
                self.count("reads");
            }
            (_, Outcome::Refused(refusal)) => {
                self.count(match refusal {
                    crate::replication::Refusal::NoQuorum => "no quorum",
                    _ => "refused",
                });
            }
            (_, other) => panic!("unexpected outcome {other:?}"),
        }
    }

    fn tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    pub(super) fn put(&mut self, at: NodeId, partition: PartitionId, key: &[u8], value: &[u8]) -> u64 {
        let tag = self.tag();
        let (key, value) = (key.to_vec(), value.to_vec());
        let call = Call::Put {
            partition,
            key: key.clone(),
            value: value.clone(),
            floor: self.history.floor(partition, &key),
        };
        self.calls.insert(tag, call);
        self.called.insert(tag, at);
        let now = self.now;
        let operation = Operation::Put { key, value, ttl_ms: None };
        self.driver(at).propose(partition, tag, None, operation, now);
        self.settle(at);
        tag
    }

    /// Sends a write of the history, for the first time or again.
    pub(super) fn attempt(&mut self, at: NodeId, write: usize) {
        let tag = self.tag();
        self.calls.insert(tag, Call::Write(write));
        self.called.insert(tag, at);
        let now = self.now;
        let origin = self.history.origin(write);
        let Write { partition, ref operation, .. } = self.history.writes[write];
        let operation = operation.clone();
        self.driver(at).propose(partition, tag, Some(origin), operation, now);
        self.settle(at);
    }

    pub(super) fn get(&mut self, at: NodeId, partition: PartitionId, key: &[u8]) -> u64 {
        let tag = self.tag();
        let before = self.history.before(partition, key);
        let call = Call::Get { partition, key: key.to_vec(), before };
        self.calls.insert(tag, call);
        self.called.insert(tag, at);
        let now = self.now;
        self.driver(at).read(partition, tag, Query::Get { key: key.to_vec() }, now);
        self.settle(at);
        tag
    }

    pub(super) fn wait(
        &mut self,
        at: NodeId,
        partition: PartitionId,
        key: &[u8],
        seen: Option<Version>,
    ) -> u64 {
        let tag = self.tag();
        let before = self.history.before(partition, key);
        let call = Call::Wait { partition, key: key.to_vec(), seen, before };
        self.calls.insert(tag, call);
        self.called.insert(tag, at);
        let now = self.now;
        let watch = Watch::Key { key: key.to_vec(), seen };
        self.driver(at).wait(partition, tag, watch, now);
        self.settle(at);
        tag
    }

    /// When something happens next.
    fn next_at(&self) -> Timestamp {
        let event = self.queue.first_key_value().map_or(Timestamp::NEVER, |((at, _), _)| *at);
        self.nodes
            .values()
            .map(|node| node.driver.next_deadline().max(node.paused_until))
            .fold(event, Timestamp::min)
    }

    /// Lets the world go on until `until`.
    pub(super) fn run_until(&mut self, until: Timestamp) {
        loop {
            let at = self.next_at().max(self.now);
            if at > until {
                self.now = until;
                return;
            }
            self.now = at;
            while let Some(entry) = self.queue.first_entry()
                && entry.key().0 <= at
            {
                let (to, event) = entry.remove();
                let Some(node) = self.nodes.get_mut(&to) else {
                    continue;
                };
                if node.paused_until > at {
                    let until = node.paused_until;
                    self.sequence += 1;
                    self.queue.insert((until, self.sequence), (to, event));
                    continue;
                }
                match event {
                    Event::Deliver(from, messages) => node.driver.receive(from, messages, at),
                    Event::Link(peer, true) if !self.crashed.contains(&peer) => node.driver.link_up(peer, at),
                    Event::Link(_, true) => {}
                    Event::Link(peer, false) => node.driver.link_down(peer, at),
                    Event::Stored(lives, batch) => {
                        let disk = self.disks.get_mut(&to).unwrap();
                        if disk.lives == lives && !disk.is_stuck {
                            disk.written(batch);
                            node.driver.persisted(batch, at);
                        }
                    }
                }
                self.settle(to);
            }
            for id in self.ids() {
                let node = self.nodes.get_mut(&id).unwrap();
                if node.paused_until <= at && node.driver.next_deadline() <= at {
                    node.driver.handle_deadline(at);
                    self.settle(id);
                }
            }
        }
    }

    pub(super) fn run(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    /// Runs until something holds; how long that took.
    pub(super) fn run_while(
        &mut self,
        limit: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while holds(self) {
            assert!(self.now.since(start) < limit, "still so after {limit:?}: {}", self.describe());
            self.run(ms(1));
        }
        self.now.since(start)
    }

    /// The node that leads with a quorum, by its own opinion, in the highest term.
    pub(super) fn leader(&self, partition: PartitionId) -> Option<NodeId> {
        self.nodes
            .iter()
            .filter_map(|(id, node)| Some((node.driver.group(partition)?, *id)))
            .filter(|(status, _)| status.role == Role::Leader && status.has_quorum)
            .max_by_key(|(status, _)| status.term)
            .map(|(_, id)| id)
    }

    pub(super) fn describe(&self) -> String {
        use std::fmt::Write;
        let mut text = format!("\nseed {} at {:?}\n", self.seed, self.now);
        for (id, node) in &self.nodes {
            for partition in (0..self.partitions).map(PartitionId) {
                if let Some(s) = node.driver.group(partition) {
                    writeln!(
                        text,
                        "{id:?} {partition:?} {:?} {:?} term {} leader {:?} config {} changing {} voters {:?} \
                         learners {:?} quorum {} applied {} committed {} progress {:?}",
                        s.replica,
                        s.role,
                        s.term,
                        s.leader,
                        s.config,
                        s.changing,
                        s.voters,
                        s.learners,
                        s.has_quorum,
                        s.applied,
                        s.committed,
                        s.progress
                    )
                    .unwrap();
                }
            }
        }
        text
    }
}
