//! One run: a swarm is founded, clients use it while faults strike, everything heals, and then it is judged.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use rand::RngExt;

use super::calls::{Ask, Calls, Done};
use super::checker::locks::{fairness, violations};
use super::checker::{Verdict, set};
use super::clients::{Clients, ELEMENT};
use super::contenders::{Contenders, LOCKS};
use super::invariants::available::{self, Available};
use super::invariants::{Violation, no_removed_voter, replicas_agree, rings_agree};
use super::storm::{Durability, Storm};
use super::world::{Alarm, Happening, MAX_GAIN_PPM, Setting, World};
use crate::id::{PartitionId, SessionId};
use crate::state_machine::{Answer, Operation, Origin, Query, Reply};

/// Longest until the swarm has been founded and every replica is where it belongs.
const FOUNDED: Duration = Duration::from_secs(30);
/// Longest time from the heal until all is where it belongs again.
const CONVERGED: Duration = Duration::from_secs(90);
/// How often it is looked at whether that is so.
const LOOK: Duration = Duration::from_millis(250);
/// Longest time of faults, if the clients do not get through with what they are to do.
const LONGEST_STORM: Duration = Duration::from_secs(180);

/// How much is done in one run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The faults end when the clients have completed so many operations, and not before 20 s of simulated time.
    pub operations: u64,
    /// Every step goes into [`Report::digest`], not only what clients saw.
    pub full_digest: bool,
    /// Keep a line for every step: [`Report::trace`].
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { operations: 2_000, full_digest: false, trace: false }
    }
}

/// What a run was.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What must not be, if anything was.
    pub failure: Option<Failure>,
    /// Operations of clients that were answered.
    pub operations: u64,
    /// Operations whose outcome their client never learned.
    pub unknown: u64,
    /// Operations that were refused, and did not happen.
    pub refused: u64,
    /// Critical sections under locks.
    pub sections: u64,
    /// How much time passed in it.
    pub simulated: Duration,
    /// From the heal until every partition had taken a write and answered a read.
    pub recovery: Option<Duration>,
    /// From the heal until every replica was where the ring wants it.
    pub convergence: Option<Duration>,
    /// How often each fault struck, and other things worth counting.
    pub counts: BTreeMap<&'static str, u64>,
    /// A hash of what happened.
    pub digest: u64,
    /// One line for each step, if [`Options::trace`] asks for it.
    pub trace: Vec<String>,
}

/// What must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which property was violated.
    pub property: String,
    /// What was seen; of a history the smallest part that shows it.
    pub what: String,
    /// The same as a picture (SVG), of a history of one key.
    pub picture: Option<String>,
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Self { property: violation.property.to_owned(), what: violation.what, picture: None }
    }
}

/// Runs one seed.
///
/// A panic inside is a failure like any other, with the message on standard error.
pub fn simulate(seed: u64, options: &Options) -> Report {
    let run = AssertUnwindSafe(|| Run::new(seed, options).whole());
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let what = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned();
        Report {
            seed,
            failure: Some(Failure { property: "no panic".to_owned(), what, picture: None }),
            operations: 0,
            unknown: 0,
            refused: 0,
            sections: 0,
            simulated: Duration::ZERO,
            recovery: None,
            convergence: None,
            counts: BTreeMap::new(),
            digest: 0,
            trace: Vec::new(),
        }
    })
}

/// Asks every partition, after the heal, until it serves.
#[derive(Debug)]
struct Prober {
    available: Available,
    /// Whose call: the partition, and whether it is the write.
    by_call: BTreeMap<u64, (PartitionId, bool)>,
    sequences: BTreeMap<PartitionId, u64>,
    /// What the set holds, and the pages that are still to come.
    found: Vec<Vec<u8>>,
    scanned: usize,
}

struct Run {
    seed: u64,
    options: Options,
    world: World,
    calls: Calls,
    clients: Option<Clients>,
    contenders: Option<Contenders>,
    storm: Option<Storm>,
    prober: Option<Prober>,
    recovery: Option<Duration>,
    convergence: Option<Duration>,
}

impl Run {
    fn new(seed: u64, options: &Options) -> Self {
        let setting =
            Setting { partitions: 8, replace_after: Duration::from_secs(30), gain_ppm: MAX_GAIN_PPM };
        let mut world = World::new(seed, setting);
        world.setting.partitions = if world.rng.random() { 8 } else { 16 };
        world.setting.replace_after = Duration::from_millis(world.rng.random_range(2_000..12_000));
        world.setting.gain_ppm = [0, 200, MAX_GAIN_PPM][world.rng.random_range(0..3)];
        world.trace.is_full = options.full_digest || options.trace;
        world.trace.keeps_lines = options.trace;
        Self {
            seed,
            options: options.clone(),
            world,
            calls: Calls::default(),
            clients: None,
            contenders: None,
            storm: None,
            prober: None,
            recovery: None,
            convergence: None,
        }
    }

    fn whole(mut self) -> Report {
        let failure = self.judged().err();
        let world = &mut self.world;
        let (clients, contenders) = (self.clients.as_ref(), self.contenders.as_ref());
        Report {
            seed: self.seed,
            failure,
            operations: clients.map_or(0, |clients| clients.completed)
                + contenders.map_or(0, |contenders| contenders.completed),
            unknown: clients.map_or(0, |clients| clients.unknown),
            refused: clients.map_or(0, |clients| clients.failed),
            sections: contenders.map_or(0, |contenders| contenders.sections.len() as u64),
            simulated: Duration::from_micros(world.now.as_micros()),
            recovery: self.recovery,
            convergence: self.convergence,
            counts: std::mem::take(&mut world.counts),
            digest: world.trace.digest(),
            trace: std::mem::take(&mut world.trace.lines),
        }
    }

    fn judged(&mut self) -> Result<(), Failure> {
        self.found()?;
        self.storm()?;
        self.heal()?;
        self.judge()
    }

    /// The swarm begins: its first nodes start together.
    fn found(&mut self) -> Result<(), Failure> {
        let durable =
            [Durability::None, Durability::All, Durability::Some][self.world.rng.random_range(0..3)];
        let count = self.world.rng.random_range(3..=6);
        for _ in 0..count {
            let durable = durable.draw(&mut self.world);
            self.world.start(durable, false);
            let pause = self.world.ms(0, 100);
            self.run_for(pause)?;
        }
        self.settle(FOUNDED)?;
        let nodes = self.world.up();
        let think_ms = self.world.rng.random_range(20..80);
        self.clients = Some(Clients::new(&mut self.world, &nodes, think_ms));
        self.contenders = Some(Contenders::new(&mut self.world, &nodes));
        self.storm = Some(Storm::new(&mut self.world, durable));
        Ok(())
    }

    fn storm(&mut self) -> Result<(), Failure> {
        let began = self.world.now;
        let wanted = self.options.operations;
        let is_enough = |run: &Self| {
            let lasted = run.world.now.since(began);
            let done = run.clients.as_ref().map_or(0, |clients| clients.completed)
                + run.contenders.as_ref().map_or(0, |contenders| contenders.completed);
            lasted >= LONGEST_STORM || (done >= wanted && lasted >= Duration::from_secs(20))
        };
        while !is_enough(self) {
            self.run_for(LOOK)?;
        }
        Ok(())
    }

    /// Everything comes back; the clients go on for a while.
    fn heal(&mut self) -> Result<(), Failure> {
        let Some(storm) = &mut self.storm else { return Ok(()) };
        let healed = storm.end(&mut self.world);
        self.prober = Some(Prober {
            available: Available::new(self.world.setting.partitions, healed),
            by_call: BTreeMap::new(),
            sequences: BTreeMap::new(),
            found: Vec::new(),
            scanned: 0,
        });
        for partition in (0..self.world.setting.partitions).map(PartitionId) {
            self.probe(partition, true);
        }
        let limit = healed + available::LIMIT;
        while self.world.now < limit
            && self.prober.as_ref().is_some_and(|prober| prober.available.took().is_none())
        {
            self.run_for(Duration::from_millis(50).min(limit.since(self.world.now)))?;
        }
        if let Some(prober) = &self.prober {
            if let Err(mut violation) = prober.available.check() {
                violation.what = format!("{}\n{}", violation.what, self.world.groups());
                return Err(violation.into());
            }
            self.recovery = prober.available.took();
        }
        self.settle(CONVERGED)?;
        self.convergence = Some(self.world.now.since(healed));
        if let Some(clients) = &mut self.clients {
            clients.close();
        }
        if let Some(contenders) = &mut self.contenders {
            contenders.close();
        }
        // Longer than any call, and than any lease.
        self.run_for(Duration::from_secs(15))?;
        replicas_agree::check(&mut self.world)?;
        if !self.calls.is_empty() {
            let what = format!("{:?}", self.calls);
            return Err(Violation::new("every call ends", what).into());
        }
        self.read_set()
    }

    /// Until membership, rings and groups are where they belong.
    fn settle(&mut self, limit: Duration) -> Result<(), Failure> {
        let until = self.world.now + limit;
        loop {
            let rings = rings_agree::check(&mut self.world);
            let placed = rings.and_then(|()| no_removed_voter::check(&mut self.world));
            match placed {
                Ok(()) => return Ok(()),
                Err(violation) if self.world.now >= until => {
                    let groups = self.world.groups();
                    let what = format!("not within {limit:?}: {}\n{groups}", violation.what);
                    return Err(Violation::new(violation.property, what).into());
                }
                Err(_) => self.run_for(LOOK)?,
            }
        }
    }

    /// What the set holds now, by linearizable scans.
    fn read_set(&mut self) -> Result<(), Failure> {
        for partition in (0..self.world.setting.partitions).map(PartitionId) {
            self.scan(partition, Vec::new());
        }
        self.run_for(Duration::from_secs(8))?;
        let scanned = self.prober.as_ref().map_or(0, |prober| prober.scanned);
        if scanned != self.world.setting.partitions as usize {
            let what = format!("only {scanned} partitions could be scanned");
            return Err(Violation::new("available after the heal", what).into());
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<(), Failure> {
        if let (Some(clients), Some(prober)) = (&self.clients, &self.prober) {
            let wrong = set::violations(&clients.elements, &prober.found);
            if !wrong.is_empty() {
                return Err(Violation::new("no element is lost", wrong.join("\n")).into());
            }
            let history = clients.recorder.history();
            self.world.counts.insert("operations judged by key", history.len() as u64);
            match history.check() {
                Verdict::Linearizable => {}
                Verdict::Violation(found) => {
                    return Err(Failure {
                        property: "linearizable".to_owned(),
                        what: found.to_string(),
                        picture: Some(found.svg()),
                    });
                }
                Verdict::GaveUp(key) => {
                    let what = format!("the search for {} took too long", key.escape_ascii());
                    return Err(Violation::new("linearizable", what).into());
                }
            }
        }
        let Some(contenders) = &self.contenders else { return Ok(()) };
        for lock in 0..LOCKS {
            let sections = contenders.sections_of(lock);
            let mut wrong = violations(&sections);
            wrong.extend(fairness(&sections, &[]).found);
            if !wrong.is_empty() {
                return Err(Violation::new("locks are exclusive and fair", wrong.join("\n")).into());
            }
        }
        Ok(())
    }

    fn run_for(&mut self, duration: Duration) -> Result<(), Failure> {
        let until = self.world.now + duration;
        while let Some(happening) = self.world.step(until) {
            self.happened(happening);
        }
        match self.world.violation.clone() {
            Some(violation) => Err(violation.into()),
            None => Ok(()),
        }
    }

    fn happened(&mut self, happening: Happening) {
        let (world, calls) = (&mut self.world, &mut self.calls);
        match happening {
            Happening::Inside => {}
            Happening::Answer(id, response) => {
                if let Some(done) = calls.answered(world, id, response) {
                    self.done(id.call, done);
                }
            }
            Happening::Alarm(Alarm::Attempt(id)) => calls.timed_out(world, id),
            Happening::Alarm(Alarm::Retry(call)) => {
                if let Some(done) = calls.retry(world, call) {
                    self.done(call, done);
                }
            }
            Happening::Alarm(Alarm::Client(index)) => {
                if let Some(clients) = &mut self.clients {
                    clients.act(world, calls, index);
                }
            }
            Happening::Alarm(Alarm::Contender(index)) => {
                if let Some(contenders) = &mut self.contenders {
                    contenders.act(world, calls, index);
                }
            }
            Happening::Alarm(Alarm::Renew(index)) => {
                if let Some(contenders) = &mut self.contenders {
                    contenders.renew(world, calls, index);
                }
            }
            Happening::Alarm(Alarm::Fault) => {
                if let Some(storm) = &mut self.storm {
                    storm.strike(world);
                }
            }
            Happening::Alarm(Alarm::Over(number)) => {
                if let Some(storm) = &mut self.storm {
                    storm.over(world, number);
                }
            }
        }
    }

    /// A call is over: whoever began it goes on.
    fn done(&mut self, call: u64, done: Done) {
        if let Some(clients) = self.clients.as_mut().filter(|clients| clients.owns(call)) {
            clients.done(&mut self.world, call, done);
        } else if let Some(contenders) = self.contenders.as_mut().filter(|contenders| contenders.owns(call)) {
            contenders.done(&mut self.world, &mut self.calls, call, done);
        } else {
            self.probed(call, done);
        }
    }

    // -- probes --

    fn probe(&mut self, partition: PartitionId, writes: bool) {
        let key = self.key_in(partition);
        let Some(prober) = &mut self.prober else { return };
        let ask = if writes {
            let next = prober.sequences.entry(partition).or_default();
            let sequence = *next;
            *next += 1;
            let origin = Origin { session: SessionId(1), sequence, settled_below: sequence };
            Ask::Write(Operation::Put { key, value: b"probe".to_vec(), ttl_ms: None }, origin)
        } else {
            Ask::Read(Query::Get { key })
        };
        let call = self.calls.begin(&mut self.world, partition, ask, None);
        prober.by_call.insert(call, (partition, writes));
    }

    /// A key that belongs to the partition.
    fn key_in(&self, partition: PartitionId) -> Vec<u8> {
        let mut keys = (0..).map(|number: u64| format!("probe{number}").into_bytes());
        keys.find(|key| self.world.partition_of(key) == partition).unwrap_or_default()
    }

    fn probed(&mut self, call: u64, done: Done) {
        let Some(prober) = &mut self.prober else { return };
        let Some((partition, writes)) = prober.by_call.remove(&call) else { return };
        match done {
            Done::Reply(Reply::Written { .. }) => self.probe(partition, false),
            Done::Answer(Answer::Entry(Some(_))) => {
                let now = self.world.now;
                prober.available.serves(partition, now);
            }
            Done::Answer(Answer::Page { entries, more }) => {
                let last = entries.last().map(|(key, _)| key.to_vec()).unwrap_or_default();
                prober.found.extend(entries.into_iter().map(|(key, _)| key.to_vec()));
                if more {
                    self.scan(partition, last);
                } else {
                    prober.scanned += 1;
                }
            }
            _ => self.probe(partition, writes),
        }
    }

    fn scan(&mut self, partition: PartitionId, after: Vec<u8>) {
        let query = Query::Scan { prefix: ELEMENT.as_bytes().to_vec(), after, limit: 1000 };
        let call = self.calls.begin(&mut self.world, partition, Ask::Read(query), None);
        if let Some(prober) = &mut self.prober {
            prober.by_call.insert(call, (partition, false));
        }
    }
}
