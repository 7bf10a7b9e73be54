//! CPU of consensus alone: three drivers in this thread, 64 groups: `cargo bench --bench driver`.
//!
//! Leaders are spread over the nodes; frames are encoded and decoded as on a link, but nothing is sent. Time is that
//! of the thread (what all three nodes together take), so that a busy machine disturbs little.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roundtable::codec;
use roundtable::id::{NodeId, PartitionId, SessionId};
use roundtable::replication::{
    Change, ChangeError, Driver, DriverConfig, GroupMessage, Outcome, Output, Role,
};
use roundtable::state_machine::{Operation, Origin, Query};
use roundtable::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Groups, each with a replica on every node.
const GROUPS: u32 = 64;
/// CPU time of each round.
const ROUND: Duration = Duration::from_secs(2);
/// Bytes of a value.
const VALUE_BYTES: usize = 100;
/// Different keys per group.
const KEYS: u16 = 1000;

struct Cluster {
    nodes: Vec<Driver>,
    inboxes: Vec<Vec<(NodeId, Vec<u8>)>>,
    /// Of each group, which node leads.
    leaders: Vec<usize>,
    next_tag: u64,
    /// Calls under way, by tag: whose they are.
    calls: BTreeMap<u64, usize>,
    /// Who may call again.
    idle: Vec<usize>,
    answered: u64,
    frames: u64,
    bytes: u64,
    rng: StdRng,
}

fn id(node: usize) -> NodeId {
    NodeId::from_public_key([u8::try_from(node).unwrap_or(0) + 1; 32])
}

fn clock(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn now() -> Timestamp {
    Timestamp::from_micros(u64::try_from(clock(ClockId::Monotonic).as_micros()).unwrap_or(u64::MAX))
}

impl Cluster {
    fn new() -> Self {
        let now = now();
        let driver = |node: usize| {
            let rng = StdRng::seed_from_u64(node as u64);
            Driver::new(id(node), DriverConfig::default(), rng, now)
        };
        let mut nodes: Vec<Driver> = (0..3).map(driver).collect();
        nodes[0].found(GROUPS, now);
        for node in &mut nodes[1..] {
            node.join(GROUPS);
        }
        for (number, node) in nodes.iter_mut().enumerate() {
            for other in (0..3).filter(|other| *other != number) {
                node.link_up(id(other), now);
            }
        }
        let mut cluster = Self {
            nodes,
            inboxes: vec![Vec::new(); 3],
            leaders: vec![0; GROUPS as usize],
            next_tag: 0,
            calls: BTreeMap::new(),
            idle: Vec::new(),
            answered: 0,
            frames: 0,
            bytes: 0,
            rng: StdRng::seed_from_u64(1),
        };
        cluster.grow();
        cluster
    }

    /// All nodes vote in all groups, and lead a third of them.
    fn grow(&mut self) {
        let others = vec![id(1), id(2)];
        for partition in (0..GROUPS).map(PartitionId) {
            self.change(partition, &Change::AddLearners(others.clone()));
            let ready = |cluster: &Self| {
                cluster.nodes[0].group(partition).is_some_and(|status| {
                    !status.changing && status.progress.iter().all(|replica| replica.caught_up)
                })
            };
            self.turn_until(ready);
            self.change(partition, &Change::Replace { promote: others.clone(), remove: vec![] });
            let leader = partition.0 as usize % 3;
            if leader != 0 {
                let ready =
                    |cluster: &Self| cluster.nodes[0].group(partition).is_some_and(|status| !status.changing);
                self.turn_until(ready);
                self.nodes[0].transfer(partition, id(leader), now());
            }
            self.turn_until(|cluster| {
                cluster.nodes[leader].group(partition).is_some_and(|status| status.role == Role::Leader)
            });
            self.leaders[partition.0 as usize] = leader;
        }
    }

    fn change(&mut self, partition: PartitionId, change: &Change) {
        loop {
            let config = self.nodes[0].group(partition).map_or(0, |status| status.config);
            match self.nodes[0].change(partition, config, change, now()) {
                Ok(()) => return,
                // The first entry of its term, or the change before, is not applied yet.
                Err(ChangeError::Pending) => self.turn(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn turn_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.turn();
        }
    }

    /// Each node takes what came in, does what is due, and says what it has to say.
    fn turn(&mut self) {
        for node in 0..self.nodes.len() {
            let now = now();
            for (from, frame) in std::mem::take(&mut self.inboxes[node]) {
                let messages: Vec<GroupMessage> = codec::decode(&frame).expect("our own frame");
                self.nodes[node].receive(from, messages, now);
            }
            if self.nodes[node].next_deadline() <= now {
                self.nodes[node].handle_deadline(now);
            }
            while let Some(output) = self.nodes[node].poll_output() {
                self.output(node, output);
            }
        }
    }

    fn output(&mut self, node: usize, output: Output) {
        match output {
            Output::Frame { to, messages } => {
                let frame = codec::encode(&messages);
                self.frames += 1;
                self.bytes += frame.len() as u64;
                if let Some(to) = (0..3).find(|other| id(*other) == to) {
                    self.inboxes[to].push((id(node), frame));
                }
            }
            Output::Outcome { tag, result } => {
                assert!(matches!(result, Outcome::Reply(_) | Outcome::Answer { .. }), "{result:?}");
                self.idle.extend(self.calls.remove(&tag));
                self.answered += 1;
            }
            _ => {}
        }
    }

    /// Everyone who is idle calls.
    fn call(&mut self, writes: bool) {
        for caller in std::mem::take(&mut self.idle) {
            self.next_tag += 1;
            self.calls.insert(self.next_tag, caller);
            let partition = self.rng.random_range(0..GROUPS);
            let leader = self.leaders[partition as usize];
            let key = self.rng.random_range(0..KEYS).to_be_bytes().repeat(8);
            let (partition, tag) = (PartitionId(partition), self.next_tag);
            if writes {
                let session = SessionId(caller as u128);
                let origin = Some(Origin { session, sequence: tag, settled_below: tag });
                let operation = Operation::Put { key, value: vec![7; VALUE_BYTES], ttl_ms: None };
                self.nodes[leader].propose(partition, tag, origin, operation, now());
            } else {
                self.nodes[leader].read(partition, tag, Query::Get { key }, now());
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    fn round(&mut self, what: &str, in_flight: usize) {
        self.idle = (0..in_flight).collect();
        (self.answered, self.frames, self.bytes) = (0, 0, 0);
        let begun = clock(ClockId::ThreadCPUTime);
        let mut used = Duration::ZERO;
        while used < ROUND {
            // The clock costs a system call.
            for _ in 0..16 {
                self.call(what == "write");
                self.turn();
            }
            used = clock(ClockId::ThreadCPUTime).saturating_sub(begun);
        }
        let answered = self.answered as f64;
        println!(
            "{what:<6} {in_flight:>9} {:>10.2} {:>12.2} {:>11.0}",
            used.as_secs_f64() * 1e6 / answered,
            self.frames as f64 / answered,
            self.bytes as f64 / answered,
        );
        self.turn_until(|cluster| cluster.calls.is_empty());
    }

    /// Nobody asks for anything: the share of a core that the three take.
    fn idle(&mut self) {
        let begun = (clock(ClockId::ThreadCPUTime), now());
        while now().since(begun.1) < ROUND {
            self.turn();
            std::thread::sleep(Duration::from_millis(5));
        }
        let used = clock(ClockId::ThreadCPUTime).saturating_sub(begun.0);
        println!("idle: {:.2} % of a core", used.as_secs_f64() / now().since(begun.1).as_secs_f64() * 100.0);
    }
}

fn main() {
    let mut cluster = Cluster::new();
    cluster.idle();
    println!("       in flight    us (CPU)   frames each  bytes each");
    for what in ["write", "read"] {
        for in_flight in [1, 16, 256] {
            cluster.round(what, in_flight);
        }
    }
}
