//! Random faults, random membership, random clients; then peace, and everything must be well.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IteratorRandom;

use super::history::{BRIEF, BRIEF_TTL, COUNT, MORTAL, SWAPPED};
use super::sim::{Call, Faults, Sim, ms};
use crate::id::{NodeId, PartitionId, SessionId, Version};
use crate::replication::{Change, DriverConfig, Role};
use crate::state_machine::{Answer, Operation, Query};
use crate::time::Timestamp;

const KEYS: u8 = 4;
/// Seeds that every run of the tests goes through.
const SEEDS: u64 = 240;
/// Client sessions; each has several writes under way.
const SESSIONS: u128 = 3;
/// And those that once found something, before there were sessions: a replica without state was made a voter.
const FINDERS: [u64; 2] = [827, 3079];
/// With sessions: partition time stood still under a new leader.
const SESSION_FINDERS: [u64; 1] = [3183];
/// With disks: a restart under a configuration long gone, because it was not kept what is committed (0); a leader by
/// its own vote alone that led twice in one term (311); a log cut before the core had let go of it (447).
const DISK_FINDERS: [u64; 3] = [0, 311, 447];

fn small_log() -> DriverConfig {
    DriverConfig { log_entries: 24, log_entries_cap: 64, ..DriverConfig::default() }
}

/// What a run has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum World {
    /// Clients without sessions, nodes without disks.
    BeforeSessions,
    /// Nodes without disks.
    Memory,
    /// Everything.
    Disks,
}

struct Chaos {
    sim: Sim,
    next_number: u8,
    /// Nodes that are gone and may still be counted as replicas somewhere.
    links_down: BTreeSet<(NodeId, NodeId)>,
    value: u64,
    /// Clients retry under sessions.
    sessions: bool,
    /// Nodes crash for ever. Then groups never have two voters on purpose: a crash of one would be the end.
    crashes: bool,
    /// Nodes have disks: those that crash come back, then or then.
    returns: BTreeMap<NodeId, Timestamp>,
}

impl Chaos {
    fn new(seed: u64, world: World, tracing: bool) -> Self {
        let mut sim = Sim::new(seed, 2, DriverConfig { durable: world == World::Disks, ..small_log() });
        sim.tracing = tracing;
        let count = sim.rng.random_range(3..=5u8);
        for number in 1..=count {
            sim.start(number);
        }
        Self {
            sim,
            next_number: count + 1,
            links_down: BTreeSet::new(),
            value: 0,
            sessions: world != World::BeforeSessions,
            crashes: seed.is_multiple_of(2),
            returns: BTreeMap::new(),
        }
    }

    fn partition(&mut self) -> PartitionId {
        PartitionId(self.sim.rng.random_range(0..self.sim.partitions))
    }

    fn any_node(&mut self) -> NodeId {
        *self.sim.nodes.keys().choose(&mut self.sim.rng).unwrap()
    }

    /// A node that is awake; often one that believes to lead.
    fn server(&mut self, partition: PartitionId) -> Option<NodeId> {
        let now = self.sim.now;
        let believers = self.sim.rng.random_bool(0.8);
        let nodes = self.sim.nodes.iter().filter(|(_, node)| node.paused_until <= now);
        nodes
            .filter(|(_, node)| {
                !believers || node.driver.group(partition).is_some_and(|status| status.role == Role::Leader)
            })
            .map(|(id, _)| *id)
            .choose(&mut self.sim.rng)
    }

    fn client(&mut self) {
        let partition = self.partition();
        let Some(at) = self.server(partition) else {
            return;
        };
        if self.sessions && self.sim.rng.random_bool(0.5) {
            return self.session_client(at, partition);
        }
        let key = [self.sim.rng.random_range(0..KEYS)];
        match self.sim.rng.random_range(0..10) {
            0..4 => {
                self.value += 1;
                let value = self.value.to_be_bytes();
                self.sim.put(at, partition, &key, &value);
            }
            4 => {
                let seen = self.sim.driver(at).state(partition).and_then(|state| state.version(&key));
                self.sim.wait(at, partition, &key, seen);
            }
            _ => {
                self.sim.get(at, partition, &key);
            }
        }
    }

    /// A client that retries until it knows, and whose copies may come late.
    fn session_client(&mut self, at: NodeId, partition: PartitionId) {
        let keys = [MORTAL, BRIEF, COUNT, SWAPPED];
        let key = *keys.iter().choose(&mut self.sim.rng).unwrap();
        let seen = self.sim.driver(at).state(partition).and_then(|state| state.version(key));
        match self.sim.rng.random_range(0..12) {
            0..4 => {
                let session = SessionId(self.sim.rng.random_range(1..=SESSIONS));
                let operation = self.operation(key, seen);
                let now = self.sim.now;
                let write = self.sim.history.begin(session, partition, operation, now);
                self.sim.attempt(at, write);
            }
            4..8 => {
                let writes = self.sim.history.writes.iter().enumerate();
                let open = writes.filter(|(_, write)| write.partition == partition && write.is_open());
                let Some((number, called_at)) =
                    open.map(|(number, write)| (number, write.called_at)).choose(&mut self.sim.rng)
                else {
                    return;
                };
                if self.sim.now.since(called_at) > ms(2000) && self.sim.rng.random_bool(0.1) {
                    self.sim.history.writes[number].given_up = true;
                    self.sim.count("given up");
                } else {
                    self.sim.attempt(at, number);
                    self.sim.count("retries");
                }
            }
            8 => {
                // A copy that was long under way; whatever became of the write, it changes nothing any more.
                let writes = self.sim.history.writes.iter().enumerate();
                let old = writes.filter(|(_, write)| write.partition == partition && !write.is_open());
                if let Some(number) = old.map(|(number, _)| number).choose(&mut self.sim.rng) {
                    self.sim.attempt(at, number);
                    self.sim.count("late copies");
                }
            }
            9 => {
                self.sim.wait(at, partition, key, seen);
            }
            _ => {
                self.sim.get(at, partition, key);
            }
        }
    }

    fn operation(&mut self, key: &[u8], seen: Option<Version>) -> Operation {
        self.value += 1;
        let (value, key) = (self.value.to_be_bytes().to_vec(), key.to_vec());
        if key == COUNT {
            return Operation::Increment { key, by: 1 };
        }
        if key == SWAPPED {
            return Operation::CompareAndSwap { key, expected: seen, value, ttl_ms: None };
        }
        if key == BRIEF {
            let ttl_ms = u64::try_from(BRIEF_TTL.as_millis()).ok();
            return Operation::Put { key, value, ttl_ms };
        }
        match self.sim.rng.random_range(0..3) {
            0 => Operation::Delete { key },
            1 => Operation::Put { key, value, ttl_ms: Some(self.sim.rng.random_range(1..300)) },
            _ => Operation::Put { key, value, ttl_ms: None },
        }
    }

    /// One step of a random reconciler, by whoever believes to lead.
    fn reconcile(&mut self, target_size: usize) {
        let partition = self.partition();
        let now = self.sim.now;
        let leaders: Vec<_> = self
            .sim
            .nodes
            .iter()
            .filter(|(_, node)| node.paused_until <= now)
            .filter_map(|(id, node)| Some((*id, node.driver.group(partition)?)))
            .filter(|(_, status)| status.role == Role::Leader)
            .collect();
        let Some((leader, status)) = leaders.into_iter().choose(&mut self.sim.rng) else {
            return;
        };
        let alive: Vec<_> = self.sim.ids();
        let size = target_size.min(alive.len());
        let mut target: BTreeSet<NodeId> =
            status.voters.iter().filter(|node| alive.contains(node)).copied().collect();
        if self.sim.rng.random_bool(0.3)
            && let Some(node) = target.iter().copied().choose(&mut self.sim.rng)
        {
            target.remove(&node);
        }
        while target.len() > size {
            target.pop_first();
        }
        while target.len() < size {
            target.insert(*alive.iter().choose(&mut self.sim.rng).unwrap());
        }
        let known: BTreeSet<_> = status.voters.iter().chain(&status.learners).copied().collect();
        let missing: Vec<_> = target.difference(&known).copied().collect();
        if !target.contains(&leader) {
            let to = status.voters.iter().filter(|node| target.contains(node)).copied();
            if let Some(to) = to.choose(&mut self.sim.rng)
                && self.sim.driver(leader).transfer(partition, to, now)
            {
                self.sim.count("transfers");
            }
            self.sim.settle(leader);
            target.insert(leader);
        }
        let change = if missing.is_empty() {
            let ready = |node: &NodeId| {
                status.progress.iter().any(|replica| replica.node == *node && replica.caught_up)
            };
            let promote: Vec<_> =
                status.learners.iter().filter(|node| target.contains(node) && ready(node)).copied().collect();
            let waiting = status.learners.iter().any(|node| target.contains(node) && !ready(node));
            let mut remove: Vec<_> = known.difference(&target).copied().collect();
            if waiting && self.crashes {
                return;
            }
            if waiting {
                // Voters stay until their successors are there.
                remove.retain(|node| status.learners.contains(node) || !alive.contains(node));
            }
            Change::Replace { promote, remove }
        } else {
            Change::AddLearners(missing)
        };
        if self.sim.driver(leader).change(partition, status.config, &change, now).is_ok() {
            self.sim.count("changes");
        }
        self.sim.settle(leader);
    }

    /// Whether every group survives the loss of `gone` for certain, by everyone's opinion.
    fn may_crash(&self, gone: NodeId) -> bool {
        if !self.crashes || self.sim.nodes.len() <= 3 {
            return false;
        }
        self.sim.nodes.values().all(|node| {
            (0..self.sim.partitions).map(PartitionId).all(|partition| {
                let Some(status) = node.driver.group(partition) else {
                    return true;
                };
                let dead = |node: &NodeId| *node == gone || !self.sim.nodes.contains_key(node);
                let lost = status.voters.iter().filter(|node| dead(node)).count();
                !status.changing && lost * 2 < status.voters.len() && lost <= 1 && {
                    let known: usize =
                        status.voters.iter().filter(|n| !self.sim.nodes.contains_key(*n)).count();
                    known == 0
                }
            })
        })
    }

    fn break_link(&mut self, a: NodeId, b: NodeId, both: bool) {
        self.sim.blocked.insert((a, b));
        if both {
            self.sim.blocked.insert((b, a));
        }
        // Sometimes the link says so at once, sometimes heartbeats have to miss first.
        let after = if self.sim.rng.random_bool(0.5) { (0, 50) } else { (1500, 2500) };
        self.links_down.insert((a, b));
        self.sim.link(a, b, false, after);
    }

    fn heal(&mut self) {
        self.sim.blocked.clear();
        for (a, b) in std::mem::take(&mut self.links_down) {
            // Behind every report of a break that is still under way.
            self.sim.link(a, b, true, (2600, 2700));
        }
    }

    /// One loses power, or all do at the same time; they come back one by one.
    fn power_cut(&mut self) {
        let all = self.sim.rng.random_bool(0.2);
        let victims = if all { self.sim.ids() } else { vec![self.any_node()] };
        self.sim.count(if all { "blackouts" } else { "power cuts" });
        for victim in victims {
            self.sim.crash(victim);
            let back = self.sim.now + ms(self.sim.rng.random_range(10..3000));
            self.returns.insert(victim, back);
        }
    }

    fn come_back(&mut self) {
        let now = self.sim.now;
        let due: Vec<_> = self.returns.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.returns.remove(&id);
            self.sim.restart(id);
        }
    }

    fn disk_fault(&mut self) {
        let kind = self.sim.rng.random_range(0..10);
        if kind < 3 {
            // A store wants to cut its log.
            let (node, partition) = (self.any_node(), self.partition());
            self.sim.driver(node).keep_state(partition);
            self.sim.settle(node);
            self.sim.count("states kept");
        } else if kind < 5 {
            let slowest = *[2_000, 20_000, 300_000].iter().choose(&mut self.sim.rng).unwrap();
            self.sim.disk_latency_us = (100, slowest);
            self.sim.count("other disks");
        } else {
            self.power_cut();
        }
    }

    fn fault(&mut self) {
        if self.sim.config.durable && self.sim.rng.random_bool(0.3) {
            return self.disk_fault();
        }
        let kind = self.sim.rng.random_range(0..12);
        match kind {
            0 | 1 => {
                let victim = self.any_node();
                if self.may_crash(victim) {
                    self.sim.crash(victim);
                    self.sim.count("crashes");
                    let number = self.next_number;
                    self.next_number += 1;
                    self.sim.start(number);
                }
            }
            2 | 3 => {
                // A leader falls asleep; the others notice at once, late, or not.
                let partition = self.partition();
                let Some(victim) = self.server(partition) else {
                    return;
                };
                let length = ms(self.sim.rng.random_range(50..4000));
                let until = self.sim.now + length;
                self.sim.nodes.get_mut(&victim).unwrap().paused_until = until;
                self.sim.count("pauses");
            }
            4..7 => {
                // One against the rest, both ways or one way.
                let victim = self.any_node();
                let both = self.sim.rng.random_bool(0.6);
                for other in self.sim.ids() {
                    if other != victim {
                        if self.sim.rng.random_bool(0.5) || both {
                            self.break_link(victim, other, both);
                        } else {
                            self.break_link(other, victim, both);
                        }
                    }
                }
                self.sim.count("cuts");
            }
            7 => {
                let a = self.any_node();
                let b = self.any_node();
                if a != b {
                    self.break_link(a, b, true);
                    self.sim.count("pair cuts");
                }
            }
            8 => {
                let partition = self.partition();
                if let Some(leader) = self.sim.leader(partition) {
                    let now = self.sim.now;
                    if self.sim.nodes[&leader].paused_until <= now {
                        self.sim.driver(leader).hand_over(&BTreeSet::new(), now);
                        self.sim.settle(leader);
                        self.sim.count("hand-overs");
                    }
                }
            }
            9 => {
                self.sim.faults = Faults {
                    loss: self.sim.rng.random_range(0.0..0.2),
                    duplication: self.sim.rng.random_range(0.0..0.2),
                    latency_us: (200, self.sim.rng.random_range(1_000..30_000)),
                    straggler: self.sim.rng.random_range(0.0..0.03),
                };
            }
            _ => self.heal(),
        }
    }

    fn storm(&mut self, length: Duration) {
        let end = self.sim.now + length;
        let mut next_fault = self.sim.now + ms(600);
        let mut next_reconcile = self.sim.now;
        while self.sim.now < end {
            let step = self.sim.rng.random_range(1_000..12_000);
            self.sim.run(Duration::from_micros(step));
            self.come_back();
            if self.sim.nodes.is_empty() {
                continue;
            }
            self.client();
            if self.sim.now >= next_fault {
                self.fault();
                next_fault = self.sim.now + ms(self.sim.rng.random_range(50..700));
            }
            if self.sim.now >= next_reconcile {
                let size = if self.crashes { 3 } else { self.sim.rng.random_range(1..=4) };
                self.reconcile(size);
                next_reconcile = self.sim.now + ms(self.sim.rng.random_range(20..250));
            }
        }
    }

    /// The faults end; everything must come back, and nothing may be missing.
    fn peace(&mut self) {
        self.heal();
        self.sim.faults = Faults::none();
        self.sim.disk_latency_us = (100, 2_000);
        for id in std::mem::take(&mut self.returns).into_keys() {
            self.sim.restart(id);
        }
        // Every report of a link that is still under way, every pause.
        self.sim.run(ms(4500));
        let healed: Timestamp = self.sim.now;
        for partition in (0..self.sim.partitions).map(PartitionId) {
            let left = ms(10_000).saturating_sub(self.sim.now.since(healed));
            self.sim.run_while(left, |sim| {
                let Some(leader) = sim.leader(partition) else {
                    return true;
                };
                sim.keep_outcomes = true;
                let tag = sim.put(leader, partition, b"peace", b"yes");
                sim.run(ms(20));
                !matches!(sim.outcomes.get(&tag), Some(crate::replication::Outcome::Reply(_)))
            });
            let leader = self.sim.leader(partition).unwrap();
            self.settle_writes(leader, partition);
            let state = self.sim.nodes[&leader].driver.state(partition).unwrap();
            let floors = self.sim.history.floors.iter().filter(|((of, _), _)| *of == partition);
            for ((_, key), floor) in floors.filter(|((_, key), _)| key != MORTAL && key != BRIEF) {
                let version = state.version(key).map_or(0, |version| version.0);
                assert!(version >= *floor, "lost: {partition:?} {key:?} {version} < {floor}");
            }
        }
        // Replicas that were removed have heard of it, or ask.
        self.sim.run(ms(6500));
        for partition in (0..self.sim.partitions).map(PartitionId) {
            let leader = self.sim.leader(partition).unwrap();
            let status = self.sim.status(leader, partition).unwrap();
            for id in self.sim.ids() {
                let member = status.voters.contains(&id) || status.learners.contains(&id);
                let held = self.sim.status(id, partition).is_some();
                assert!(member || !held, "{id:?} still holds {partition:?}: {}", self.sim.describe());
            }
            self.compare_states(leader, partition);
        }
        let open = self.sim.calls.values().filter(|call| !matches!(call, Call::Wait { .. }));
        assert_eq!(open.count(), 0, "a call was never answered");
        assert_eq!(
            self.sim.nodes.values().map(|node| node.driver.dropped()).sum::<u64>(),
            0,
            "a correct replica said something odd"
        );
    }

    /// Every write that is open is answered now, by whichever copy; the count is right.
    fn settle_writes(&mut self, leader: NodeId, partition: PartitionId) {
        let writes = self.sim.history.writes.iter().enumerate();
        let open: Vec<_> = writes
            .filter(|(_, write)| write.partition == partition && write.is_open())
            .map(|(number, _)| number)
            .collect();
        for number in open {
            self.sim.attempt(leader, number);
        }
        self.sim.run(ms(100));
        let state = self.sim.nodes[&leader].driver.state(partition).unwrap();
        let count = match state.query(&Query::Get { key: COUNT.to_vec() }) {
            Answer::Entry(Some(entry)) => std::str::from_utf8(&entry.value).unwrap().parse().unwrap(),
            _ => 0,
        };
        self.sim.history.check_count(partition, count);
    }

    /// Long after the last write: what was brief is gone, without being asked for, and all are equal.
    fn compare_states(&self, leader: NodeId, partition: PartitionId) {
        let state = self.sim.nodes[&leader].driver.state(partition).unwrap();
        assert_eq!(state.version(BRIEF), None, "it should have expired");
        for (id, node) in &self.sim.nodes {
            let applied = |id| self.sim.status(id, partition).map(|status| status.applied);
            if let Some(other) = node.driver.state(partition) {
                assert_eq!(applied(*id), applied(leader), "{}", self.sim.describe());
                assert!(other.snapshot() == state.snapshot(), "{id:?} differs from {leader:?}");
            }
        }
    }
}

fn run(seed: u64, world: World, tracing: bool) -> Chaos {
    let mut chaos = Chaos::new(seed, world, tracing);
    chaos.storm(ms(8000));
    chaos.peace();
    chaos
}

/// `ROUNDTABLE_SEED=n` runs that one, `ROUNDTABLE_SEEDS=n` so many. What happened, by its name.
fn run_all(finders: &[(u64, World)], world: World) -> Option<BTreeMap<&'static str, u64>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds: Vec<_> = if let Some(seed) = number("ROUNDTABLE_SEED") {
        vec![finders.iter().copied().find(|(known, _)| *known == seed).unwrap_or((seed, world))]
    } else {
        let common = (0..number("ROUNDTABLE_SEEDS").unwrap_or(SEEDS)).map(|seed| (seed, world));
        common.chain(finders.iter().copied()).collect()
    };
    let single = seeds.len() == 1;
    let mut counts = BTreeMap::<&str, u64>::new();
    let mut failed = Vec::new();
    for (seed, world) in seeds {
        match std::panic::catch_unwind(|| run(seed, world, false)) {
            Ok(chaos) => {
                for (what, count) in &chaos.sim.counts {
                    *counts.entry(what).or_default() += count;
                }
            }
            Err(error) if single => std::panic::resume_unwind(error),
            Err(_) => failed.push(seed),
        }
    }
    assert!(failed.is_empty(), "failing seeds (ROUNDTABLE_SEED=n): {failed:?}");
    (!single).then_some(counts)
}

/// A run counts only if its faults fired.
fn assert_all_happened(counts: &BTreeMap<&'static str, u64>, what: &[&str]) {
    for what in what {
        assert!(counts.get(what).copied().unwrap_or(0) > 0, "no {what}: {counts:?}");
    }
    assert!(counts["writes"] > 1000 && counts["reads"] > 1000, "{counts:?}");
}

const FAULTS: [&str; 5] = ["pauses", "cuts", "changes", "transfers", "removed"];
const CLIENTS: [&str; 11] = [
    "snapshot frames",
    "unknown",
    "retries",
    "late copies",
    "answered again",
    "settled",
    "given up",
    "increments",
    "conflicts",
    "deletes",
    "waits",
];

#[test]
fn nothing_is_lost_and_everything_comes_back() {
    let finders = FINDERS.map(|seed| (seed, World::BeforeSessions));
    let session_finders = SESSION_FINDERS.map(|seed| (seed, World::Memory));
    let finders = [&finders[..], &session_finders[..]].concat();
    if let Some(counts) = run_all(&finders, World::Memory) {
        assert_all_happened(&counts, &FAULTS);
        assert_all_happened(&counts, &CLIENTS);
        assert_all_happened(&counts, &["crashes", "absent"]);
    }
}

#[test]
fn what_was_acknowledged_outlives_power_cuts_of_all() {
    let finders = DISK_FINDERS.map(|seed| (seed, World::Disks));
    if let Some(counts) = run_all(&finders, World::Disks) {
        assert_all_happened(&counts, &FAULTS);
        assert_all_happened(&counts, &CLIENTS);
        assert_all_happened(&counts, &["power cuts", "blackouts", "restarts", "other disks", "states kept"]);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| run(seed, World::Disks, true).sim.trace.finish();
    for seed in [7, 8] {
        assert_eq!(trace(seed), trace(seed));
    }
    assert_ne!(trace(7), trace(8));
}
