//! Whole nodes in simulated time: many [`Core`]s, a network that the test decides over, no task and no clock.
//!
//! A story is told in few verbs: start, kill, cut, heal, leave, put, get, run. Each is repeated for several
//! seeds; a failing one is named in the panic.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::core::{Core, CoreConfig, Output};
use super::event::NodeEvent;
use crate::id::{NodeId, PartitionId, SessionId, SwarmId};
use crate::ring::{PartitionCount, Ring};
use crate::state_machine::{Answer, Operation, Origin, Query, Reply};
use crate::time::Timestamp;
use crate::wire::{Consistency, Message, Refusal, Request, Response};

const PARTITIONS: u32 = 16;
/// How long until a cut is noticed by the links on both sides.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);
/// Time between two attempts of a client.
const RETRY: Duration = Duration::from_millis(20);

/// What is under way in the simulated network.
enum Event {
    LinkUp(NodeId, NodeId),
    LinkDown(NodeId, NodeId),
    Message { from: NodeId, to: NodeId, message: Message },
    Request { from: NodeId, tag: u64, to: NodeId, request: Request },
    Response { tag: u64, response: Response },
}

struct World {
    seed: u64,
    rng: StdRng,
    now: Timestamp,
    sequence: u64,
    queue: BTreeMap<(Timestamp, u64), Event>,
    nodes: BTreeMap<NodeId, Core>,
    links: BTreeSet<(NodeId, NodeId)>,
    /// Pairs that do not hear each other.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Forwarded requests: the tag at the second node -> the first node and its tag.
    forwarded: BTreeMap<(NodeId, u64), (NodeId, u64)>,
    /// Responses to the test's own requests.
    responses: BTreeMap<u64, Response>,
    events: BTreeMap<NodeId, Vec<NodeEvent>>,
    left: BTreeSet<NodeId>,
    next_tag: u64,
    writes: u64,
    /// The next hello from the first to the second is lost.
    lose_hello: Option<(NodeId, NodeId)>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            now: Timestamp::from_micros(1_000_000),
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: BTreeMap::new(),
            links: BTreeSet::new(),
            cut: BTreeSet::new(),
            forwarded: BTreeMap::new(),
            responses: BTreeMap::new(),
            events: BTreeMap::new(),
            left: BTreeSet::new(),
            next_tag: 0,
            writes: 0,
            lose_hello: None,
        }
    }

    // -- verbs --

    /// Starts a node, which meets all others within a few milliseconds.
    fn start(&mut self) -> NodeId {
        self.start_with(false)
    }

    fn start_with(&mut self, joining: bool) -> NodeId {
        let me = NodeId::from_public_key(self.rng.random());
        let config = CoreConfig {
            name: "sim".to_owned(),
            partitions: PartitionCount::new(PARTITIONS).unwrap(),
            replicas: 3,
            weight: 1,
            joining,
            discovery_window: Duration::from_secs(2),
            replace_after: Duration::from_secs(30),
            addresses: vec![me.to_string()],
            ticket: String::new(),
            durable: false,
            incarnation: 1,
        };
        let seed = self.rng.random();
        let others: Vec<NodeId> = self.nodes.keys().copied().collect();
        self.nodes.insert(me, Core::new(me, config, None, seed, self.now));
        for other in others {
            self.link(me, other);
        }
        me
    }

    /// As many nodes as wanted, all in one swarm and with all replicas in place.
    fn swarm(&mut self, size: usize) -> Vec<NodeId> {
        let nodes: Vec<NodeId> = (0..size).map(|_| self.start()).collect();
        self.settle();
        nodes
    }

    fn kill(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        // A broken link fails the calls that wait on it.
        let (waiting, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.forwarded).into_iter().partition(|((at, _), _)| *at == node);
        self.forwarded = others.into_iter().collect();
        for (_, (_, tag)) in waiting {
            self.schedule(Duration::from_millis(1), Event::Response { tag, response: Response::Unknown });
        }
        for (a, b) in self.links.clone() {
            if a == node || b == node {
                self.unlink(a, b);
            }
        }
    }

    /// The two sides do not hear each other from now on; the links notice it after a while.
    fn cut(&mut self, left: &[NodeId], right: &[NodeId]) {
        for a in left {
            for b in right {
                self.cut.extend([(*a, *b), (*b, *a)]);
                self.schedule(HEARTBEAT_LIMIT, Event::LinkDown(*a, *b));
                self.schedule(HEARTBEAT_LIMIT, Event::LinkDown(*b, *a));
                self.links.remove(&(*a, *b));
                self.links.remove(&(*b, *a));
            }
        }
    }

    fn heal(&mut self) {
        for (a, b) in std::mem::take(&mut self.cut) {
            if a < b {
                self.link(a, b);
            }
        }
    }

    fn leave(&mut self, node: NodeId) {
        let now = self.now;
        self.nodes.get_mut(&node).unwrap().leave(now);
        self.drain(node);
        self.run_until(Duration::from_secs(20), "it has left", |world| world.left.contains(&node));
        self.kill(node);
    }

    /// The swarm that a request to `node` is meant for, if it has one.
    fn swarm_of(&self, node: NodeId) -> SwarmId {
        self.nodes.get(&node).and_then(Core::swarm_id).unwrap_or(SwarmId(0))
    }

    /// Puts until it is acknowledged, as a client does: same origin, next node if one refuses.
    fn put(&mut self, via: &[NodeId], key: &str, value: &str) -> Reply {
        let partition = partition_of(key);
        let operation = Operation::Put { key: key.into(), value: value.into(), ttl_ms: None };
        let origin = Origin { session: SessionId(7), sequence: self.writes, settled_below: self.writes };
        self.writes += 1;
        let deadline = self.now + Duration::from_secs(5);
        for attempt in 0.. {
            let node = via[attempt % via.len()];
            let swarm = self.swarm_of(node);
            let operation = operation.clone();
            let request = Request::Write { swarm, partition, origin, operation, forwarded: false };
            if let Some(Response::Reply(reply)) = self.call(node, request) {
                return reply;
            }
            assert!(self.now < deadline, "seed {}: put of {key} takes longer than 5 s", self.seed);
            self.run(RETRY);
        }
        unreachable!()
    }

    /// A linearizable get, retried as a client does.
    fn get(&mut self, via: &[NodeId], key: &str) -> Option<String> {
        let deadline = self.now + Duration::from_secs(5);
        for attempt in 0.. {
            let node = via[attempt % via.len()];
            let request = read(self.swarm_of(node), key, Consistency::Linearizable);
            if let Some(Response::Answer { answer: Answer::Entry(entry), .. }) = self.call(node, request) {
                return entry.map(|entry| String::from_utf8(entry.value).unwrap());
            }
            assert!(self.now < deadline, "seed {}: get of {key} takes longer than 5 s", self.seed);
            self.run(RETRY);
        }
        unreachable!()
    }

    /// One request to one node; `None`: no response within a second.
    fn call(&mut self, node: NodeId, request: Request) -> Option<Response> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let now = self.now;
        self.nodes.get_mut(&node)?.request(tag, request, now);
        self.drain(node);
        let deadline = self.now + Duration::from_secs(1);
        while !self.responses.contains_key(&tag) && self.now < deadline && self.step(deadline) {}
        self.responses.remove(&tag)
    }

    fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.step(until) {}
        self.now = until;
    }

    fn run_until(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) {
        let until = self.now + limit;
        while !done(self) {
            assert!(self.step(until), "seed {}: not within {limit:?}: {what}", self.seed);
        }
    }

    /// Until all nodes are in one swarm and every partition has its replicas where the ring wants them.
    fn settle(&mut self) {
        self.run_until(Duration::from_secs(15), "one swarm, all replicas in place", World::in_place);
    }

    // -- looking --

    fn swarms(&self) -> BTreeSet<Option<SwarmId>> {
        self.nodes.values().map(Core::swarm_id).collect()
    }

    /// Replicas held by each node, by the nodes' own word.
    fn replicas(&self, node: NodeId) -> BTreeSet<PartitionId> {
        self.nodes[&node].replicas().into_iter().map(|status| status.partition).collect()
    }

    fn in_place(&self) -> bool {
        if self.swarms().len() != 1 || self.swarms().contains(&None) {
            return false;
        }
        let count = PartitionCount::new(PARTITIONS).unwrap();
        let ring = Ring::new(self.nodes.keys().map(|node| (*node, 1)), count, 3);
        self.nodes.iter().all(|(node, core)| {
            core.replicas().iter().all(|status| {
                let mut voters = status.voters.clone();
                let mut targets = ring.replicas(status.partition).to_vec();
                let owner = targets[0];
                voters.sort();
                targets.sort();
                voters == targets && status.leader == Some(owner)
            }) && core.replicas().len() == ring.share(*node).1
        })
    }

    // -- the machinery --

    fn link(&mut self, a: NodeId, b: NodeId) {
        let delay = Duration::from_micros(self.rng.random_range(1_000..10_000));
        self.links.extend([(a, b), (b, a)]);
        self.schedule(delay, Event::LinkUp(a, b));
        self.schedule(delay, Event::LinkUp(b, a));
    }

    fn unlink(&mut self, a: NodeId, b: NodeId) {
        self.links.remove(&(a, b));
        self.schedule(Duration::from_millis(1), Event::LinkDown(a, b));
    }

    fn schedule(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    /// Lets the next thing happen, unless it is after `until`.
    fn step(&mut self, until: Timestamp) -> bool {
        let timer = self.nodes.iter().map(|(node, core)| (core.next_deadline(self.now), *node)).min();
        let event = self.queue.first_key_value().map(|(at, _)| *at);
        match (timer, event) {
            (Some((due, node)), event) if due <= until && event.is_none_or(|(at, _)| due < at) => {
                self.now = self.now.max(due);
                let now = self.now;
                self.nodes.get_mut(&node).unwrap().handle_deadline(now);
                self.drain(node);
                true
            }
            (_, Some(at)) if at.0 <= until => {
                let event = self.queue.remove(&at).unwrap();
                self.now = self.now.max(at.0);
                self.deliver(event);
                true
            }
            _ => false,
        }
    }

    fn deliver(&mut self, event: Event) {
        let now = self.now;
        let linked = |links: &BTreeSet<_>, a: NodeId, b: NodeId| links.contains(&(a, b));
        match event {
            Event::LinkUp(at, peer) => {
                if linked(&self.links, at, peer)
                    && let Some(core) = self.nodes.get_mut(&at)
                {
                    core.link_up(peer, true, now);
                    self.drain(at);
                }
            }
            Event::LinkDown(at, peer) => {
                if let Some(core) = self.nodes.get_mut(&at) {
                    core.link_down(peer, now);
                    self.drain(at);
                }
            }
            Event::Message { from, to, message: Message::Hello(_) }
                if self.lose_hello == Some((from, to)) =>
            {
                self.lose_hello = None;
            }
            Event::Message { from, to, message } => {
                if linked(&self.links, from, to)
                    && let Some(core) = self.nodes.get_mut(&to)
                {
                    core.message(from, message, now);
                    self.drain(to);
                }
            }
            Event::Request { from, tag, to, request } => {
                if linked(&self.links, from, to)
                    && let Some(core) = self.nodes.get_mut(&to)
                {
                    let second = self.next_tag;
                    self.next_tag += 1;
                    self.forwarded.insert((to, second), (from, tag));
                    core.request(second, request, now);
                    self.drain(to);
                } else {
                    self.schedule(Duration::ZERO, Event::Response { tag, response: Response::Unknown });
                }
            }
            Event::Response { tag, response } => {
                self.responses.insert(tag, response);
            }
        }
    }

    fn drain(&mut self, node: NodeId) {
        let now = self.now;
        while let Some(output) = self.nodes.get_mut(&node).and_then(|core| core.poll_output(now)) {
            let delay = Duration::from_micros(self.rng.random_range(50..500));
            match output {
                Output::Send { to, message } => {
                    // A link keeps order: later messages do not overtake.
                    let event = Event::Message { from: node, to, message };
                    self.schedule(Duration::from_micros(200), event);
                }
                Output::Respond { tag, response } => match self.forwarded.remove(&(node, tag)) {
                    Some((_, tag)) => self.schedule(delay, Event::Response { tag, response }),
                    None => drop(self.responses.insert(tag, response)),
                },
                Output::Forward { tag, to, request } => {
                    self.schedule(delay, Event::Request { from: node, tag, to, request });
                }
                Output::Event(event) => self.events.entry(node).or_default().push(event),
                Output::Left => drop(self.left.insert(node)),
                // Links stay up by themselves here, and merging is tested on real nodes.
                Output::Begin { .. }
                | Output::Abandon { .. }
                | Output::Remember { .. }
                | Output::Persist { .. }
                | Output::Keep { .. }
                | Output::Forget { .. }
                | Output::Seal { .. } => {}
            }
        }
    }
}

fn partition_of(key: &str) -> PartitionId {
    let count = PartitionCount::new(PARTITIONS).unwrap();
    count.partition_of(crate::ring::Token::of_key(key.as_bytes()))
}

fn read(swarm: SwarmId, key: &str, consistency: Consistency) -> Request {
    let query = Query::Get { key: key.into() };
    Request::Read { swarm, partition: partition_of(key), consistency, query, forwarded: false }
}

fn keys(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|index| format!("key{index}"))
}

fn for_seeds(story: impl Fn(&mut World)) {
    for seed in 0..10 {
        story(&mut World::new(seed));
    }
}

#[test]
fn nodes_started_together_end_in_one_swarm() {
    for_seeds(|world| {
        for _ in 0..5 {
            world.start();
            let pause = Duration::from_millis(world.rng.random_range(0..100));
            world.run(pause);
        }
        world.settle();
        let founded = |event: &&NodeEvent| matches!(event, NodeEvent::Founded(_));
        assert_eq!(world.events.values().flatten().filter(founded).count(), 1);
    });
}

#[test]
fn what_is_put_anywhere_is_read_everywhere() {
    for_seeds(|world| {
        let nodes = world.swarm(4);
        for (index, key) in keys(20).enumerate() {
            world.put(&[nodes[index % 4]], &key, "value");
            for node in &nodes {
                assert_eq!(world.get(&[*node], &key).as_deref(), Some("value"));
            }
        }
    });
}

#[test]
fn a_crash_loses_nothing_and_is_over_soon() {
    for_seeds(|world| {
        let mut nodes = world.swarm(5);
        for key in keys(40) {
            world.put(&nodes, &key, "before");
        }
        let victim = nodes.remove(world.rng.random_range(0..5));
        world.kill(victim);
        let killed = world.now;
        for key in keys(40) {
            assert_eq!(world.get(&nodes, &key).as_deref(), Some("before"));
            world.put(&nodes, &key, "after");
        }
        let took = world.now.since(killed);
        assert!(took < Duration::from_millis(500), "seed {}: {took:?}", world.seed);
        // In time its replicas are made anew elsewhere.
        world.run(Duration::from_secs(40));
        world.settle();
        for key in keys(40) {
            assert_eq!(world.get(&nodes, &key).as_deref(), Some("after"));
        }
    });
}

#[test]
fn a_minority_says_so_and_reads_stale_and_the_majority_goes_on() {
    for_seeds(|world| {
        let nodes = world.swarm(3);
        for key in keys(10) {
            world.put(&nodes, &key, "before");
        }
        world.run(Duration::from_secs(1));
        let (minority, majority) = (nodes[0], &nodes[1..]);
        let swarm = world.swarm_of(minority);
        world.cut(&[minority], majority);
        world.run(Duration::from_secs(3));
        for key in keys(10) {
            world.put(majority, &key, "after");
            let refused = world.call(minority, read(swarm, &key, Consistency::Linearizable));
            assert_eq!(refused, Some(Response::Refused(Refusal::NoQuorum)), "seed {}", world.seed);
            let stale = world.call(minority, read(swarm, &key, Consistency::Stale));
            let Some(Response::Answer { answer: Answer::Entry(Some(entry)), stale: true }) = stale else {
                panic!("seed {}: {stale:?}", world.seed);
            };
            assert_eq!(entry.value, b"before");
        }
        world.heal();
        world.run(Duration::from_secs(10));
        world.settle();
        for key in keys(10) {
            assert_eq!(world.get(&[minority], &key).as_deref(), Some("after"));
        }
    });
}

#[test]
fn nodes_join_and_leave_and_nothing_is_lost() {
    for_seeds(|world| {
        let mut nodes = world.swarm(1);
        for key in keys(30) {
            world.put(&nodes, &key, "value");
        }
        for _ in 0..4 {
            nodes.push(world.start());
            world.settle();
        }
        while nodes.len() > 1 {
            let leaver = nodes.remove(world.rng.random_range(0..nodes.len()));
            world.leave(leaver);
            assert!(world.events[&leaver].contains(&NodeEvent::Left));
            for key in keys(30) {
                assert_eq!(world.get(&nodes, &key).as_deref(), Some("value"), "seed {}", world.seed);
            }
        }
        assert_eq!(world.replicas(nodes[0]).len(), PARTITIONS as usize);
    });
}

#[test]
fn who_stops_hands_over_what_it_leads_and_is_handed_nothing_back() {
    for_seeds(|world| {
        let nodes = world.swarm(3);
        let stopping = nodes[world.rng.random_range(0..3)];
        let leads = |world: &World| {
            let replicas = world.nodes[&stopping].replicas();
            replicas.iter().filter(|replica| replica.leader == Some(stopping)).count()
        };
        assert!(leads(world) > 0, "seed {}", world.seed);
        let now = world.now;
        world.nodes.get_mut(&stopping).unwrap().hand_over(now);
        world.drain(stopping);
        let handed_over = |world: &World| world.nodes[&stopping].has_handed_over();
        world.run_until(Duration::from_millis(200), "all is handed over", handed_over);
        // It owns partitions, and while it is linked their leaders know that it could lead them.
        for _ in 0..20 {
            world.run(Duration::from_millis(50));
            assert_eq!(leads(world), 0, "seed {}", world.seed);
        }
        let others: Vec<NodeId> = nodes.into_iter().filter(|node| *node != stopping).collect();
        world.put(&others, "key", "value");
    });
}

#[test]
fn a_node_told_to_join_waits_until_there_is_a_swarm() {
    let mut world = World::new(1);
    world.start_with(true);
    world.run(Duration::from_secs(60));
    assert_eq!(world.swarms(), BTreeSet::from([None]));
    world.start();
    world.settle();
}

#[test]
fn a_lost_hello_is_said_again() {
    let mut world = World::new(5);
    let nodes = world.swarm(2);
    let third = world.start();
    world.lose_hello = Some((nodes[0], third));
    world.settle();
    assert_eq!(world.lose_hello, None);
}

#[test]
fn nobody_waits_for_a_node_that_has_left_to_found() {
    let mut world = World::new(3);
    let gone = world.start();
    world.settle();
    let now = world.now;
    world.nodes.get_mut(&gone).unwrap().leave(now);
    world.drain(gone);
    // Newcomers until one would wait for it: only the smallest of the swarmless founds.
    let newcomer = loop {
        let newcomer = world.start();
        if newcomer > gone {
            break newcomer;
        }
        world.kill(newcomer);
    };
    world.run(Duration::from_secs(5));
    assert!(world.nodes[&newcomer].swarm_id().is_some());
}

#[test]
fn a_joiner_does_not_place_anything_on_the_long_dead() {
    let mut world = World::new(1);
    let mut nodes = world.swarm(4);
    let victim = nodes.remove(1);
    world.kill(victim);
    world.run(Duration::from_secs(60));
    world.settle();
    let joiner = world.start();
    for _ in 0..50 {
        world.run(Duration::from_millis(100));
        let Some(Response::View(view)) = world.call(joiner, Request::View) else { continue };
        assert!(!view.members.iter().any(|member| member.node == victim && member.on_ring));
    }
    world.settle();
}

#[test]
fn a_crash_at_the_end_of_a_move_leaves_every_partition_a_quorum() {
    // The worst moment: a leader has just dropped a voter and dies before the others heard of it.
    for seed in 0..20 {
        let mut world = World::new(seed);
        let nodes = world.swarm(4);
        world.kill(nodes[1]);
        world.run(Duration::from_secs(5));
        for partition in (0..PARTITIONS).map(PartitionId) {
            let served = world.nodes.values().any(|core| {
                core.replicas().iter().any(|replica| replica.partition == partition && replica.has_quorum)
            });
            assert!(served, "seed {seed}: {partition} is down");
        }
    }
}

#[test]
fn who_joined_as_the_last_member_left_looks_again() {
    let mut world = World::new(11);
    let last = world.start();
    world.settle();
    let now = world.now;
    world.nodes.get_mut(&last).unwrap().leave(now);
    let joiner = world.start();
    // The link comes up and the hello is answered before the one that leaves has told anybody.
    world.run(Duration::from_millis(50));
    world.drain(last);
    world.kill(last);
    world.run(Duration::from_secs(30));
    assert_eq!(world.replicas(joiner).len(), PARTITIONS as usize);
}

#[test]
fn a_request_for_another_swarm_is_not_served() {
    let mut world = World::new(1);
    let nodes = world.swarm(2);
    world.put(&nodes, "k", "v");
    let other = SwarmId(world.swarm_of(nodes[0]).0 ^ 1);
    for node in nodes {
        for consistency in [Consistency::Linearizable, Consistency::Stale] {
            let answer = world.call(node, read(other, "k", consistency));
            assert_eq!(answer, Some(Response::Refused(Refusal::OtherSwarm)));
        }
    }
}
