//! Whole nodes in simulated time, one story at a time.
//!
//! The world is the simulator's ([`sim`](super::sim)), without its storms: here the test decides what goes wrong. A story is
//! told in few verbs: start, kill, cut, heal, leave, put, get, run. Each is repeated for several seeds; a failing one
//! is named in the panic.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;

use super::core::Core;
use super::event::NodeEvent;
use super::sim::invariants::no_removed_voter;
use super::sim::world::{CallId, Happening, Setting, World};
use crate::id::{NodeId, PartitionId, SessionId, SwarmId};
use crate::ring::PartitionCount;
use crate::state_machine::{Answer, Operation, Origin, Query, Reply};
use crate::time::Timestamp;
use crate::wire::{Consistency, Refusal, Request, Response};

const PARTITIONS: u32 = 16;
/// Time between two attempts of a client.
const RETRY: Duration = Duration::from_millis(20);

struct Story {
    seed: u64,
    world: World,
    /// Responses to the test's own requests.
    responses: BTreeMap<CallId, Option<Response>>,
    next_call: u64,
    writes: u64,
}

impl Story {
    fn new(seed: u64) -> Self {
        let setting = Setting { partitions: PARTITIONS, replace_after: Duration::from_secs(30), gain_ppm: 0 };
        let world = World::new(seed, setting);
        Self { seed, world, responses: BTreeMap::new(), next_call: 0, writes: 0 }
    }

    // -- verbs --

    /// Starts a node, which meets all others within a few milliseconds.
    fn start(&mut self) -> NodeId {
        self.world.start(false, false)
    }

    /// As many nodes as wanted, all in one swarm and with all replicas in place.
    fn swarm(&mut self, size: usize) -> Vec<NodeId> {
        let nodes: Vec<NodeId> = (0..size).map(|_| self.start()).collect();
        self.settle();
        nodes
    }

    fn kill(&mut self, node: NodeId) {
        self.world.crash(node, false);
        self.world.machines.get_mut(&node).unwrap().is_gone = true;
    }

    /// The two sides do not hear each other from now on; the links notice it after a while.
    fn cut(&mut self, left: &[NodeId], right: &[NodeId]) {
        for a in left {
            for b in right {
                self.world.block(*a, *b);
                self.world.block(*b, *a);
            }
        }
    }

    fn leave(&mut self, node: NodeId) {
        self.world.leave(node);
        self.run_until(Duration::from_secs(20), "it has left", |story| story.world.machines[&node].is_gone);
    }

    /// The swarm that a request to `node` is meant for, if it has one.
    fn swarm_of(&self, node: NodeId) -> SwarmId {
        self.world.swarm_of(node)
    }

    /// Puts until it is acknowledged, as a client does: same origin, next node if one refuses.
    fn put(&mut self, via: &[NodeId], key: &str, value: &str) -> Reply {
        let partition = partition_of(key);
        let operation = Operation::Put { key: key.into(), value: value.into(), ttl_ms: None };
        let origin = Origin { session: SessionId(7), sequence: self.writes, settled_below: self.writes };
        self.writes += 1;
        let deadline = self.now() + Duration::from_secs(5);
        for attempt in 0.. {
            let node = via[attempt % via.len()];
            let swarm = self.swarm_of(node);
            let operation = operation.clone();
            let request = Request::Write { swarm, partition, origin, operation, forwarded: false };
            if let Some(Response::Reply(reply)) = self.call(node, request) {
                return reply;
            }
            assert!(self.now() < deadline, "seed {}: put of {key} takes longer than 5 s", self.seed);
            self.run(RETRY);
        }
        unreachable!()
    }

    /// A linearizable get, retried as a client does.
    fn get(&mut self, via: &[NodeId], key: &str) -> Option<String> {
        let deadline = self.now() + Duration::from_secs(5);
        for attempt in 0.. {
            let node = via[attempt % via.len()];
            let request = read(self.swarm_of(node), key, Consistency::Linearizable);
            if let Some(Response::Answer { answer: Answer::Entry(entry), .. }) = self.call(node, request) {
                return entry.map(|entry| String::from_utf8(entry.value).unwrap());
            }
            assert!(self.now() < deadline, "seed {}: get of {key} takes longer than 5 s", self.seed);
            self.run(RETRY);
        }
        unreachable!()
    }

    /// One request to one node; `None`: no response within a second.
    fn call(&mut self, node: NodeId, request: Request) -> Option<Response> {
        let id = CallId { call: self.next_call, attempt: 0 };
        self.next_call += 1;
        self.world.ask(node, id, request);
        let deadline = self.now() + Duration::from_secs(1);
        while !self.responses.contains_key(&id) && self.step(deadline) {}
        self.responses.remove(&id).flatten()
    }

    fn run(&mut self, duration: Duration) {
        let until = self.now() + duration;
        while self.step(until) {}
    }

    fn run_until(&mut self, limit: Duration, what: &str, done: impl Fn(&mut Self) -> bool) {
        let until = self.now() + limit;
        while !done(self) {
            assert!(self.step(until), "seed {}: not within {limit:?}: {what}", self.seed);
        }
    }

    /// Lets the next thing happen, unless it is after `until`.
    fn step(&mut self, until: Timestamp) -> bool {
        let happening = self.world.step(until);
        assert_eq!(self.world.violation, None, "seed {}", self.seed);
        match happening {
            Some(Happening::Answer(id, response)) => drop(self.responses.insert(id, response)),
            Some(Happening::Inside | Happening::Alarm(_)) => {}
            None => return false,
        }
        true
    }

    /// Until all nodes are in one swarm and every partition has its replicas, and its leader, where the ring wants them.
    fn settle(&mut self) {
        let until = self.now() + Duration::from_secs(15);
        while !self.in_place() {
            assert!(self.now() < until, "seed {}: not in place: {}", self.seed, self.world.groups());
            self.run(Duration::from_millis(10));
        }
    }

    // -- looking --

    fn now(&self) -> Timestamp {
        self.world.now
    }

    fn core(&self, node: NodeId) -> &Core {
        self.world.core(node).unwrap()
    }

    /// Replicas held by each node, by the nodes' own word.
    fn replicas(&self, node: NodeId) -> BTreeSet<PartitionId> {
        self.core(node).replicas().into_iter().map(|status| status.partition).collect()
    }

    fn in_place(&mut self) -> bool {
        let swarms = self.world.swarms();
        swarms.len() == 1
            && !swarms.contains(&None)
            && no_removed_voter::check(&mut self.world).is_ok()
            && no_removed_voter::owners_lead(&mut self.world)
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

fn for_seeds(tell: impl Fn(&mut Story)) {
    for seed in 0..10 {
        tell(&mut Story::new(seed));
    }
}

#[test]
fn nodes_started_together_end_in_one_swarm() {
    for_seeds(|story| {
        for _ in 0..5 {
            story.start();
            let pause = Duration::from_millis(story.world.rng.random_range(0..100));
            story.run(pause);
        }
        story.settle();
        let founded = |event: &&NodeEvent| matches!(event, NodeEvent::Founded(_));
        assert_eq!(story.world.events.values().flatten().filter(founded).count(), 1);
    });
}

#[test]
fn what_is_put_anywhere_is_read_everywhere() {
    for_seeds(|story| {
        let nodes = story.swarm(4);
        for (index, key) in keys(20).enumerate() {
            story.put(&[nodes[index % 4]], &key, "value");
            for node in &nodes {
                assert_eq!(story.get(&[*node], &key).as_deref(), Some("value"));
            }
        }
    });
}

#[test]
fn a_crash_loses_nothing_and_is_over_soon() {
    for_seeds(|story| {
        let mut nodes = story.swarm(5);
        for key in keys(40) {
            story.put(&nodes, &key, "before");
        }
        let victim = nodes.remove(story.world.rng.random_range(0..5));
        story.kill(victim);
        let killed = story.now();
        for key in keys(40) {
            assert_eq!(story.get(&nodes, &key).as_deref(), Some("before"));
            story.put(&nodes, &key, "after");
        }
        let took = story.now().since(killed);
        assert!(took < Duration::from_millis(500), "seed {}: {took:?}", story.seed);
        // In time its replicas are made anew elsewhere.
        story.run(Duration::from_secs(40));
        story.settle();
        for key in keys(40) {
            assert_eq!(story.get(&nodes, &key).as_deref(), Some("after"));
        }
    });
}

#[test]
fn a_minority_says_so_and_reads_stale_and_the_majority_goes_on() {
    for_seeds(|story| {
        let nodes = story.swarm(3);
        for key in keys(10) {
            story.put(&nodes, &key, "before");
        }
        story.run(Duration::from_secs(1));
        let (minority, majority) = (nodes[0], &nodes[1..]);
        let swarm = story.swarm_of(minority);
        story.cut(&[minority], majority);
        story.run(Duration::from_secs(3));
        for key in keys(10) {
            story.put(majority, &key, "after");
            let refused = story.call(minority, read(swarm, &key, Consistency::Linearizable));
            assert_eq!(refused, Some(Response::Refused(Refusal::NoQuorum)), "seed {}", story.seed);
            let stale = story.call(minority, read(swarm, &key, Consistency::Stale));
            let Some(Response::Answer { answer: Answer::Entry(Some(entry)), stale: true }) = stale else {
                panic!("seed {}: {stale:?}", story.seed);
            };
            assert_eq!(entry.value, b"before");
        }
        story.world.heal();
        story.run(Duration::from_secs(10));
        story.settle();
        for key in keys(10) {
            assert_eq!(story.get(&[minority], &key).as_deref(), Some("after"));
        }
    });
}

#[test]
fn nodes_join_and_leave_and_nothing_is_lost() {
    for_seeds(|story| {
        let mut nodes = story.swarm(1);
        for key in keys(30) {
            story.put(&nodes, &key, "value");
        }
        for _ in 0..4 {
            nodes.push(story.start());
            story.settle();
        }
        while nodes.len() > 1 {
            let leaver = nodes.remove(story.world.rng.random_range(0..nodes.len()));
            story.leave(leaver);
            assert!(story.world.events[&leaver].contains(&NodeEvent::Left));
            for key in keys(30) {
                assert_eq!(story.get(&nodes, &key).as_deref(), Some("value"), "seed {}", story.seed);
            }
        }
        assert_eq!(story.replicas(nodes[0]).len(), PARTITIONS as usize);
    });
}

#[test]
fn who_stops_hands_over_what_it_leads_and_is_handed_nothing_back() {
    for_seeds(|story| {
        let nodes = story.swarm(3);
        let stopping = nodes[story.world.rng.random_range(0..3)];
        let leads = |story: &Story| {
            let replicas = story.core(stopping).replicas();
            replicas.iter().filter(|replica| replica.leader == Some(stopping)).count()
        };
        assert!(leads(story) > 0, "seed {}", story.seed);
        story.world.with(stopping, Core::hand_over);
        let handed_over = |story: &mut Story| story.core(stopping).has_handed_over();
        story.run_until(Duration::from_millis(200), "all is handed over", handed_over);
        // It owns partitions, and while it is linked their leaders know that it could lead them.
        for _ in 0..20 {
            story.run(Duration::from_millis(50));
            assert_eq!(leads(story), 0, "seed {}", story.seed);
        }
        let others: Vec<NodeId> = nodes.into_iter().filter(|node| *node != stopping).collect();
        story.put(&others, "key", "value");
    });
}

#[test]
fn a_node_told_to_join_waits_until_there_is_a_swarm() {
    let mut story = Story::new(1);
    story.world.start(false, true);
    story.run(Duration::from_secs(60));
    assert_eq!(story.world.swarms(), BTreeSet::from([None]));
    story.start();
    story.settle();
}

#[test]
fn a_lost_hello_is_said_again() {
    let mut story = Story::new(5);
    story.swarm(2);
    story.world.network.weather.loss = 1.0;
    // Told to join, or it would found.
    let third = story.world.start(false, true);
    story.run(Duration::from_millis(50));
    assert_eq!(story.world.swarm_of(third), SwarmId(0), "nothing was lost");
    story.world.network.weather.loss = 0.0;
    story.settle();
}

#[test]
fn nobody_waits_for_a_node_that_has_left_to_found() {
    let mut story = Story::new(3);
    let gone = story.start();
    story.settle();
    story.world.with(gone, Core::leave);
    // Newcomers until one would wait for it: only the smallest of the swarmless founds.
    let newcomer = loop {
        let newcomer = story.start();
        if newcomer > gone {
            break newcomer;
        }
        story.kill(newcomer);
    };
    story.run(Duration::from_secs(5));
    assert!(story.core(newcomer).swarm_id().is_some());
}

#[test]
fn a_joiner_does_not_place_anything_on_the_long_dead() {
    let mut story = Story::new(1);
    let mut nodes = story.swarm(4);
    let victim = nodes.remove(1);
    story.kill(victim);
    story.run(Duration::from_secs(60));
    story.settle();
    let joiner = story.start();
    for _ in 0..50 {
        story.run(Duration::from_millis(100));
        let Some(Response::View(view)) = story.call(joiner, Request::View) else { continue };
        assert!(!view.members.iter().any(|member| member.node == victim && member.on_ring));
    }
    story.settle();
}

#[test]
fn a_crash_at_the_end_of_a_move_leaves_every_partition_a_quorum() {
    // The worst moment: a leader has just dropped a voter and dies before the others heard of it.
    for seed in 0..20 {
        let mut story = Story::new(seed);
        let nodes = story.swarm(4);
        story.kill(nodes[1]);
        story.run(Duration::from_secs(5));
        for partition in (0..PARTITIONS).map(PartitionId) {
            let up = story.world.up();
            let served = up.iter().map(|node| story.core(*node)).any(|core| {
                core.replicas().iter().any(|replica| replica.partition == partition && replica.has_quorum)
            });
            assert!(served, "seed {seed}: {partition} is down");
        }
    }
}

#[test]
fn who_joined_as_the_last_member_left_looks_again() {
    let mut story = Story::new(11);
    let last = story.start();
    story.settle();
    // It has been told and has not got round to it.
    let now = story.now();
    let machine = story.world.machines.get_mut(&last).unwrap();
    let shown = machine.clock.show(now);
    machine.core.as_mut().unwrap().leave(shown);
    let joiner = story.start();
    // The link comes up and the hello is answered before the one that leaves has told anybody.
    story.run(Duration::from_millis(50));
    story.world.with(last, |_, _| {});
    story.run(Duration::from_secs(30));
    assert_eq!(story.replicas(joiner).len(), PARTITIONS as usize);
}

#[test]
fn a_request_for_another_swarm_is_not_served() {
    let mut story = Story::new(1);
    let nodes = story.swarm(2);
    story.put(&nodes, "k", "v");
    let other = SwarmId(story.swarm_of(nodes[0]).0 ^ 1);
    for node in nodes {
        for consistency in [Consistency::Linearizable, Consistency::Stale] {
            let answer = story.call(node, read(other, "k", consistency));
            assert_eq!(answer, Some(Response::Refused(Refusal::OtherSwarm)));
        }
    }
}
