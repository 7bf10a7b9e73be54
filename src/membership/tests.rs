//! Whole swarms in one thread, over a network that delays, loses and cuts, in simulated time.

#![expect(clippy::print_stdout, reason = "measurements, shown by --nocapture")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::identity::{Entry, Gossip, Identity, Standing};
use super::*;
use crate::codec;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Seeds per scenario.
const SEEDS: u64 = 2;

/// How long after a cut its ends know that the link is down.
const LINK_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Event {
    Deliver { from: usize, to: usize, bytes: Vec<u8> },
    LinkUp(usize, usize),
    LinkDown(usize, usize),
}

struct Swarm {
    now: Timestamp,
    rng: StdRng,
    nodes: Vec<Option<Membership>>,
    ids: Vec<NodeId>,
    /// Nodes of different groups do not reach each other.
    group: Vec<usize>,
    /// A pair that does not reach each other, though both reach all others.
    severed: Option<(usize, usize)>,
    loss: f64,
    events: BTreeMap<(Timestamp, u64), Event>,
    event_count: u64,
    /// Of all that happened: (when, at whom, what).
    changes: Vec<(Timestamp, usize, Change)>,
    messages: u64,
    bytes: u64,
    /// How often a node was woken for what was due.
    deadlines: u64,
}

impl Swarm {
    fn new(count: usize, seed: u64) -> Self {
        let mut swarm = Self {
            // Nodes' clocks do not start at zero.
            now: Timestamp::ZERO + secs(1000),
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            ids: Vec::new(),
            group: Vec::new(),
            severed: None,
            loss: 0.0,
            events: BTreeMap::new(),
            event_count: 0,
            changes: Vec::new(),
            messages: 0,
            bytes: 0,
            deadlines: 0,
        };
        for _ in 0..count {
            swarm.start();
        }
        swarm
    }

    /// Starts one more node, linked with all of its group.
    fn start(&mut self) -> usize {
        let index = self.nodes.len();
        self.ids.push(NodeId::from_public_key(self.rng.random()));
        self.nodes.push(None);
        self.group.push(0);
        self.restart(index, 1);
        index
    }

    /// Starts a node under the name it had.
    fn restart(&mut self, index: usize, incarnation: u64) {
        let id = self.ids[index];
        let me = Me { node: id, addresses: vec![format!("/ip4/10.0.0.{index}/tcp/4747")], weight: 1 };
        let rng = StdRng::seed_from_u64(self.rng.random());
        self.nodes[index] =
            Some(Membership::new(me, incarnation, MembershipConfig::default(), rng, self.now));
        for other in 0..self.nodes.len() {
            if other != index {
                self.link(index, other);
            }
        }
    }

    fn link(&mut self, a: usize, b: usize) {
        if self.nodes[a].is_some() && self.nodes[b].is_some() && self.group[a] == self.group[b] {
            let delay = Duration::from_millis(self.rng.random_range(1..100));
            self.at(delay, Event::LinkUp(a, b));
            self.at(delay, Event::LinkUp(b, a));
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.events.insert((self.now + after, self.event_count), event);
        self.event_count += 1;
    }

    fn kill(&mut self, index: usize) {
        self.nodes[index] = None;
        for other in self.running() {
            self.at(Duration::from_millis(50), Event::LinkDown(other, index));
        }
    }

    fn regroup(&mut self, group: impl Fn(usize) -> usize) {
        let before = std::mem::take(&mut self.group);
        self.group = (0..before.len()).map(group).collect();
        for a in self.running() {
            for b in self.running() {
                let (was, is) = (before[a] == before[b], self.group[a] == self.group[b]);
                if was && !is {
                    self.at(LINK_TIMEOUT, Event::LinkDown(a, b));
                } else if !was && is && a < b {
                    self.link(a, b);
                }
            }
        }
    }

    fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].is_some()).collect()
    }

    fn node(&mut self, index: usize) -> &mut Membership {
        self.nodes[index].as_mut().expect("runs")
    }

    fn drain(&mut self, index: usize) {
        while let Some(output) = self.nodes[index].as_mut().and_then(Membership::poll_output) {
            match output {
                Output::Changed(change) => self.changes.push((self.now, index, change)),
                Output::Forgotten { .. } => {}
                Output::Send { to, bytes } => {
                    self.messages += 1;
                    self.bytes += bytes.len() as u64;
                    let to = self.ids.iter().position(|id| *id == to).expect("a node of ours");
                    if self.rng.random_bool(1.0 - self.loss) {
                        let delay = Duration::from_millis(self.rng.random_range(1..20));
                        self.at(delay, Event::Deliver { from: index, to, bytes });
                    }
                }
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
        self.now = end;
    }

    /// Runs until `done`, asked after each step, or until `end`; says whether it came to be.
    fn run_until(&mut self, end: Timestamp, done: impl Fn(&Self) -> bool) -> bool {
        for index in self.running() {
            self.drain(index);
        }
        loop {
            if done(self) {
                return true;
            }
            let event = self.events.first_key_value().map_or(Timestamp::NEVER, |((at, _), _)| *at);
            let deadlines = self
                .running()
                .into_iter()
                .map(|index| (self.nodes[index].as_ref().expect("runs").next_deadline(), index));
            let (deadline, index) = deadlines.min().unwrap_or((Timestamp::NEVER, 0));
            if event.min(deadline) > end {
                return false;
            }
            self.now = self.now.max(event.min(deadline));
            let now = self.now;
            if deadline < event {
                self.deadlines += 1;
                self.node(index).handle_deadline(now);
                assert!(self.node(index).next_deadline() > now, "a deadline is not handled twice");
                self.drain(index);
                continue;
            }
            let Some((_, event)) = self.events.pop_first() else {
                return false;
            };
            match event {
                Event::Deliver { from, to, bytes } => {
                    let sender = self.ids[from];
                    let severed = self.severed == Some((from.min(to), from.max(to)));
                    if !severed
                        && self.group[from] == self.group[to]
                        && let Some(node) = &mut self.nodes[to]
                    {
                        node.handle_message(sender, &bytes, now).expect("honest members are understood");
                        self.drain(to);
                    }
                }
                Event::LinkUp(at, other) => {
                    let other_id = self.ids[other];
                    if self.group[at] == self.group[other]
                        && self.nodes[other].is_some()
                        && let Some(node) = &mut self.nodes[at]
                    {
                        node.link_up(other_id, now);
                        self.drain(at);
                    }
                }
                Event::LinkDown(at, other) => {
                    let other_id = self.ids[other];
                    if (self.group[at] != self.group[other] || self.nodes[other].is_none())
                        && let Some(node) = &mut self.nodes[at]
                    {
                        node.link_down(other_id, now);
                    }
                }
            }
        }
    }

    fn state(&self, at: usize, of: usize) -> Option<MemberState> {
        self.nodes[at].as_ref()?.member(self.ids[of]).map(|member| member.state)
    }

    /// Whether all that run believe `of` to be `state`.
    fn all_believe(&self, of: usize, state: MemberState) -> bool {
        self.running().into_iter().filter(|at| *at != of).all(|at| self.state(at, of) == Some(state))
    }

    /// Whether all that run see all that run as alive, and nobody else as present.
    fn agree(&self) -> bool {
        self.running().into_iter().all(|at| {
            let node = self.nodes[at].as_ref().expect("runs");
            node.members().all(|member| {
                let runs = self
                    .ids
                    .iter()
                    .position(|id| *id == member.node)
                    .is_some_and(|of| self.nodes[of].is_some());
                if runs { member.state == MemberState::Alive } else { !member.state.is_present() }
            }) && self.running().into_iter().all(|of| self.state(at, of).is_some())
        })
    }

    /// Whether all that run know of all that run what they say of themselves.
    fn is_believed(&self) -> bool {
        let nodes = || self.running().into_iter().filter_map(|at| self.nodes[at].as_ref());
        nodes().all(|node| {
            let says = node.members().find(|member| member.node == node.me()).expect("knows itself");
            nodes().filter_map(|other| other.member(node.me())).all(|known| {
                (&known.addresses, known.weight, known.draining)
                    == (&says.addresses, says.weight, says.draining)
            })
        })
    }

    /// How long it takes until `done`, at most `limit`.
    fn time_until(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        assert!(self.run_until(start + limit, done), "not within {limit:?}: {what}");
        self.now.since(start)
    }
}

/// A swarm in which everyone knows everyone.
fn settled(count: usize, seed: u64) -> Swarm {
    let mut swarm = Swarm::new(count, seed);
    swarm.time_until(secs(2), "all see all", Swarm::agree);
    swarm.run(Duration::from_millis(3000 + seed * 137 % 1000));
    swarm
}

fn worst(seeds: u64, run: impl Fn(u64) -> Duration) -> Duration {
    (0..seeds).map(run).max().unwrap_or_default()
}

#[test]
fn all_see_all_within_two_seconds() {
    for count in [3, 20] {
        let took =
            worst(SEEDS, |seed| Swarm::new(count, seed).time_until(secs(2), "all see all", Swarm::agree));
        println!("{count} nodes: all see all after at most {took:?}");
    }
}

#[test]
fn a_killed_node_is_dead_to_all_within_eight_seconds() {
    for count in [3, 20] {
        let took = worst(SEEDS, |seed| {
            let mut swarm = settled(count, seed);
            swarm.kill(1);
            swarm.time_until(secs(8), "dead to all", |swarm| swarm.all_believe(1, MemberState::Dead))
        });
        println!("{count} nodes: a killed one is dead to all after at most {took:?}");
    }
}

#[test]
fn a_node_that_hangs_with_its_links_open_is_dead_to_all_in_the_end() {
    let took = worst(SEEDS, |seed| {
        let mut swarm = settled(20, seed);
        swarm.nodes[1] = None;
        swarm.time_until(secs(15), "dead to all", |swarm| swarm.all_believe(1, MemberState::Dead))
    });
    println!("20 nodes: one that hangs is dead to all after at most {took:?}");
}

#[test]
fn a_pair_without_a_link_stays_alive_to_each_other() {
    let mut swarm = settled(5, 3);
    let (now, a, b) = (swarm.now, swarm.ids[0], swarm.ids[1]);
    swarm.severed = Some((0, 1));
    swarm.node(0).link_down(b, now);
    swarm.node(1).link_down(a, now);
    swarm.changes.clear();
    swarm.run(secs(120));
    assert!(swarm.agree());
    assert!(swarm.changes.iter().all(|(_, _, change)| change.member.state != MemberState::Dead));
}

#[test]
fn suspicion_is_reported_before_death() {
    use MemberState::{Alive, Dead, Suspect};
    let expected = [(None, Alive), (Some(Alive), Suspect), (Some(Suspect), Dead)];
    let mut swarm = settled(3, 5);
    swarm.kill(1);
    swarm.run(secs(8));
    let of_killed: Vec<_> = swarm
        .changes
        .iter()
        .filter(|(_, at, change)| *at == 0 && change.member.node == swarm.ids[1])
        .map(|(_, _, change)| (change.before, change.member.state))
        .collect();
    assert_eq!(of_killed, expected);
}

#[test]
fn who_leaves_has_left_to_all_within_a_second_and_stays_so() {
    for count in [3, 20] {
        let took = worst(SEEDS, |seed| {
            let mut swarm = settled(count, seed);
            let now = swarm.now;
            swarm.node(2).leave(now);
            let took =
                swarm.time_until(secs(1), "left to all", |swarm| swarm.all_believe(2, MemberState::Left));
            // It lingers for a while, links included, before its process ends.
            swarm.run(secs(2));
            swarm.kill(2);
            swarm.run(secs(40));
            assert!(swarm.all_believe(2, MemberState::Left));
            assert!(swarm.agree());
            took
        });
        println!("{count} nodes: one that leaves has left to all after at most {took:?}");
    }
}

#[test]
fn who_leaves_has_left_even_if_messages_are_lost() {
    for seed in 0..SEEDS {
        let mut swarm = settled(20, seed);
        swarm.loss = 0.2;
        let now = swarm.now;
        swarm.node(2).leave(now);
        swarm.time_until(secs(3), "left to all", |swarm| swarm.all_believe(2, MemberState::Left));
        swarm.kill(2);
    }
}

#[test]
fn after_a_partition_heals_there_is_one_view_within_ten_seconds() {
    for (count, minority) in [(3, 1), (5, 2), (20, 10)] {
        let took = worst(SEEDS, |seed| {
            let mut swarm = settled(count, seed);
            swarm.regroup(|index| usize::from(index < minority));
            swarm.run(secs(60));
            assert_eq!(swarm.state(0, count - 1), Some(MemberState::Dead));
            assert_eq!(swarm.state(count - 1, 0), Some(MemberState::Dead));
            swarm.regroup(|_| 0);
            let took = swarm.time_until(secs(10), "one view", Swarm::agree);
            swarm.run(secs(60));
            assert!(swarm.agree(), "and it lasts");
            took
        });
        println!("{count} nodes: one view {took:?} after the heal, at most");
    }
}

#[test]
fn a_short_cut_harms_nothing() {
    for seed in 0..SEEDS {
        let mut swarm = settled(5, seed);
        swarm.regroup(|index| usize::from(index < 2));
        swarm.run(Duration::from_millis(1500));
        swarm.regroup(|_| 0);
        swarm.time_until(secs(10), "one view", Swarm::agree);
        let dead = swarm.changes.iter().filter(|(_, _, change)| change.member.state == MemberState::Dead);
        assert_eq!(dead.count(), 0, "seed {seed}");
    }
}

#[test]
fn a_node_that_restarts_under_a_new_name_joins() {
    for seed in 0..5 {
        let mut swarm = settled(5, seed);
        swarm.kill(1);
        swarm.run(secs(1));
        let reborn = swarm.start();
        swarm.time_until(secs(2), "joined", |swarm| swarm.all_believe(reborn, MemberState::Alive));
        swarm.time_until(secs(8), "one view", Swarm::agree);
        assert!(swarm.all_believe(1, MemberState::Dead));
    }
}

#[test]
fn a_node_that_restarts_under_its_name_is_back_whatever_incarnation_it_takes() {
    for (away, incarnation) in [(1, 1), (1, 9), (20, 1), (20, 9)] {
        for left in [false, true] {
            let mut swarm = settled(5, 7);
            let now = swarm.now;
            swarm.node(1).update_me(Vec::new(), true, now);
            swarm.run(secs(1));
            if left {
                let now = swarm.now;
                swarm.node(1).leave(now);
                swarm.run(secs(1));
            }
            swarm.kill(1);
            swarm.run(secs(away));
            swarm.restart(1, incarnation);
            swarm.time_until(secs(3), "back", Swarm::agree);
            let id = swarm.ids[1];
            swarm.run(secs(40));
            assert!(swarm.agree());
            let member = swarm.node(0).member(id).expect("known").clone();
            assert!(!member.draining && !member.addresses.is_empty(), "what it says of itself is new");
        }
    }
}

#[test]
fn a_node_that_slept_comes_back() {
    for seed in 0..5 {
        let mut swarm = settled(5, seed);
        let asleep = swarm.nodes[1].take();
        swarm.kill(1);
        swarm.run(secs(60));
        swarm.nodes[1] = asleep;
        let now = swarm.now;
        for other in [0, 2, 3, 4] {
            let id = swarm.ids[other];
            swarm.node(1).link_down(id, now);
        }
        swarm.node(1).handle_deadline(now);
        for other in [0, 2, 3, 4] {
            swarm.link(1, other);
        }
        swarm.time_until(secs(3), "back", Swarm::agree);
        swarm.run(secs(40));
        assert!(swarm.agree());
    }
}

#[test]
fn under_loss_suspicions_are_refuted() {
    let mut suspicions = 0;
    let mut deaths = 0;
    for seed in 0..SEEDS {
        let mut swarm = settled(20, seed);
        swarm.changes.clear();
        swarm.loss = 0.2;
        swarm.run(secs(60));
        let count =
            |state| swarm.changes.iter().filter(|(_, _, change)| change.member.state == state).count();
        suspicions += count(MemberState::Suspect);
        deaths += count(MemberState::Dead);
        swarm.loss = 0.0;
        swarm.time_until(secs(10), "one view", Swarm::agree);
    }
    println!(
        "20 % loss, {SEEDS} times 60 s of 20 nodes: {suspicions} suspicions, {deaths} deaths, none lasted"
    );
    assert!(suspicions > 0, "the loss was felt");
    assert_eq!(deaths, 0);
}

#[test]
fn draining_and_new_addresses_spread() {
    for seed in 0..SEEDS {
        let mut swarm = settled(20, seed);
        let now = swarm.now;
        swarm.node(3).update_me(vec!["/ip4/10.9.9.9/tcp/1".to_owned()], true, now);
        let id = swarm.ids[3];
        swarm.time_until(secs(1), "draining to all", |swarm| {
            swarm.running().into_iter().all(|at| {
                let member = swarm.nodes[at].as_ref().and_then(|node| node.member(id));
                member.is_some_and(|m| m.draining && m.addresses == ["/ip4/10.9.9.9/tcp/1"])
            })
        });
        swarm.run(secs(30));
        assert!(swarm.agree());
        let of_it = |(_, at, change): &&(Timestamp, usize, Change)| *at == 0 && change.member.node == id;
        let last = swarm.changes.iter().rfind(of_it).map(|(_, _, change)| change.clone());
        let last = last.expect("it was told");
        assert_eq!((last.before, last.member.state), (Some(MemberState::Alive), MemberState::Alive));
        assert!(last.member.draining);
    }
}

fn forged(gossip: &Gossip) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend(codec::encode(gossip));
    bytes
}

#[test]
fn a_rumour_of_my_death_is_refuted() {
    for (ahead, left) in [(0, false), (1, false), (5, false), (1000, true)] {
        let mut swarm = settled(5, 11);
        let (liar, victim) = (swarm.ids[0], swarm.ids[1]);
        let incarnation = swarm.node(0).member(victim).expect("known").incarnation;
        let entry = Entry {
            identity: Identity { left, ..Identity::named(victim, incarnation + ahead) },
            refutation: 0,
            standing: Standing::Down,
            remember_ms: 3_600_000,
        };
        let rumour = forged(&Gossip::Exchange { entries: vec![entry], reply: false });
        let now = swarm.now;
        for at in 2..5 {
            swarm.node(at).handle_message(liar, &rumour, now).expect("taken");
            assert!(!swarm.state(at, 1).expect("known").is_present());
        }
        swarm.time_until(secs(5), "refuted", Swarm::agree);
        swarm.run(secs(60));
        assert!(swarm.agree(), "and it lasts");
        let victim = swarm.node(2).member(victim).expect("known");
        assert!(victim.incarnation > incarnation + ahead);
        assert!(!victim.addresses.is_empty(), "it says the same of itself as before");
    }
}

#[test]
fn nobody_speaks_for_another() {
    let mut swarm = settled(3, 1);
    let now = swarm.now;
    let (a, b, c) = (swarm.ids[0], swarm.ids[1], swarm.ids[2]);
    // The first message of node 1 to node 2, delivered as from node 0.
    swarm.node(1).link_up(c, now);
    let mut packets = Vec::new();
    while let Some(output) = swarm.node(1).poll_output() {
        if let Output::Send { bytes, .. } = output {
            packets.push(bytes);
        }
    }
    let swim = packets.iter().find(|bytes| bytes[1] == 0).expect("an announcement");
    let result = swarm.node(2).handle_message(a, swim, now);
    assert!(
        matches!(result, Err(MembershipError::NotTheSender { claimed, from }) if (claimed, from) == (b, a))
    );
    swarm.node(2).handle_message(b, swim, now).expect("from itself it is fine");
}

#[test]
fn what_is_beyond_a_bound_is_refused() {
    let mut swarm = settled(2, 1);
    let (now, from) = (swarm.now, swarm.ids[0]);
    let node = swarm.node(1);
    assert!(matches!(node.handle_message(from, &[], now), Err(MembershipError::Version)));
    assert!(matches!(node.handle_message(from, &[9, 0], now), Err(MembershipError::Version)));
    let long = vec![1; MAX_GOSSIP_BYTES + 1];
    assert!(matches!(node.handle_message(from, &long, now), Err(MembershipError::TooLong)));
    let of =
        |identity: Identity| Entry { identity, refutation: 0, standing: Standing::Alive, remember_ms: 0 };
    let mut identity = Identity::named(from, 9);
    identity.addresses = vec!["a".repeat(MAX_ADDRESS_BYTES + 1)];
    let gossip = forged(&Gossip::Exchange { entries: vec![of(identity)], reply: false });
    assert!(matches!(node.handle_message(from, &gossip, now), Err(MembershipError::TooLong)));
    let mut rng = StdRng::seed_from_u64(3);
    let mut refused = false;
    for _ in 0..=MAX_MEMBERS / 256 {
        let entries =
            (0..256).map(|_| of(Identity::named(NodeId::from_public_key(rng.random()), 1))).collect();
        let gossip = forged(&Gossip::Exchange { entries, reply: false });
        refused |= matches!(node.handle_message(from, &gossip, now), Err(MembershipError::TooManyMembers));
    }
    assert!(refused);
    assert!(node.members().count() <= MAX_MEMBERS);
}

#[test]
fn the_departed_are_forgotten_by_all_and_for_good() {
    let mut swarm = settled(4, 1);
    for _ in 0..3 {
        let fleeting = swarm.start();
        swarm.run(secs(2));
        swarm.kill(fleeting);
        swarm.run(secs(20 * 60));
    }
    let newcomer = swarm.start();
    swarm.run(secs(70 * 60));
    for at in [0, 1, 2, 3, newcomer] {
        assert_eq!(swarm.node(at).members().count(), 5, "only those that run");
    }
}

#[test]
fn no_more_departed_are_remembered_than_the_bound() {
    let mut swarm = settled(2, 1);
    let (now, from) = (swarm.now, swarm.ids[0]);
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..8 {
        let entries = (0..256)
            .map(|_| Entry {
                identity: Identity::named(NodeId::from_public_key(rng.random()), 1),
                refutation: 0,
                standing: Standing::Down,
                remember_ms: 1_000_000,
            })
            .collect();
        let gossip = forged(&Gossip::Exchange { entries, reply: false });
        swarm.node(1).handle_message(from, &gossip, now).expect("taken");
    }
    swarm.node(1).handle_deadline(now + secs(1));
    assert_eq!(swarm.node(1).members().count(), 2 + MAX_DEPARTED);
}

#[test]
fn an_idle_swarm_is_quiet() {
    let mut swarm = settled(20, 1);
    swarm.run(secs(10));
    (swarm.messages, swarm.bytes, swarm.deadlines) = (0, 0, 0);
    swarm.run(secs(60));
    let per_node_second = |count: u64| count / (20 * 60);
    println!(
        "idle, 20 nodes: {} messages/s, {} bytes/s and {} deadlines/s per node",
        per_node_second(swarm.messages),
        per_node_second(swarm.bytes),
        per_node_second(swarm.deadlines)
    );
    assert!(per_node_second(swarm.messages) <= 5);
    assert!(per_node_second(swarm.bytes) <= 2000);
    // A probe, its timeout, and a look round; not five rounds of gossip without news.
    assert!(per_node_second(swarm.deadlines) <= 4);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| {
        let mut swarm = Swarm::new(8, seed);
        swarm.loss = 0.1;
        swarm.run(secs(5));
        swarm.kill(1);
        swarm.regroup(|index| index % 2);
        swarm.run(secs(20));
        swarm.regroup(|_| 0);
        swarm.run(secs(20));
        (swarm.changes, swarm.messages, swarm.bytes)
    };
    assert_eq!(trace(4), trace(4));
    assert_ne!(trace(4), trace(5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn well_formed_lies_do_not_last(
        lies in prop::collection::vec(
            (
                0..5usize,
                1..5usize,
                prop_oneof![1u64..4, 1u64..1000],
                any::<bool>(),
                prop_oneof![Just(0u16), any::<u16>(), Just(u16::MAX)],
                prop_oneof![Just(Standing::Alive), Just(Standing::Suspect), Just(Standing::Down)],
                prop_oneof![Just(0u64), Just(u64::MAX), 0..3_600_000u64],
            ),
            1..20,
        ),
    ) {
        let mut swarm = settled(5, 3);
        for (of, to, incarnation, left, refutation, standing, remember_ms) in lies {
            let identity = Identity { left, ..Identity::named(swarm.ids[of], incarnation) };
            let entries = vec![Entry { identity, refutation, standing, remember_ms }];
            let (liar, now) = (swarm.ids[0], swarm.now);
            let lie = forged(&Gossip::Exchange { entries, reply: false });
            let _ = swarm.node(to).handle_message(liar, &lie, now);
            swarm.run(Duration::from_millis(70));
        }
        swarm.time_until(secs(20), "refuted", Swarm::agree);
        swarm.time_until(secs(120), "what members say of themselves counts", Swarm::is_believed);
    }

    #[test]
    fn bytes_of_a_hostile_peer_do_no_harm(
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut swarm = settled(3, 2);
        let from = swarm.ids[0];
        let mut messages = vec![[&[1, 0][..], &garbage].concat(), [&[1, 1][..], &garbage].concat(), garbage];
        let to = swarm.ids[1];
        let now = swarm.now;
        swarm.node(0).link_up(to, now);
        swarm.node(0).handle_deadline(now + secs(1));
        while let Some(output) = swarm.node(0).poll_output() {
            if let Output::Send { mut bytes, .. } = output {
                messages.push(bytes[..cut.index(bytes.len())].to_vec());
                for (at, byte) in &flips {
                    let at = at.index(bytes.len());
                    bytes[at] ^= byte;
                }
                messages.push(bytes);
            }
        }
        for bytes in messages {
            let _ = swarm.node(1).handle_message(from, &bytes, now);
            while swarm.node(1).poll_output().is_some() {}
        }
        for step in 1..20 {
            let now = now + Duration::from_millis(500 * step);
            swarm.node(1).handle_deadline(now);
            while swarm.node(1).poll_output().is_some() {}
        }
    }
}
