//! Contenders for one lock, in processes of their own, while nodes are killed, paused, cut off, join and leave, and
//! while the contenders themselves stand still, or are cut off, for longer than their leases. The judges are in
//! [`checker::locks`](crate::checker::locks).
//!
//! Rounds: each begins with every trouble once, in random order, and goes on with troubles drawn at random until
//! `ROUNDTABLE_LAB_SECONDS` are over. `ROUNDTABLE_LAB_SEED` repeats a run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};
use roundtable::node::Visitor;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::process::Process;
use super::{LIMIT, Lab, measured, now, rounds, say, setting, since, within};
use crate::checker::locks::{Away, Section, Wish, fairness, violations};
use crate::contender::Contender;

/// Where contenders find what to do.
const PLAN: &str = "ROUNDTABLE_TEST_CONTENDER";
const NODES: usize = 5;
const FLAGS: [&str; 4] = ["--lan", "--open", "--replace-after", "1s"];
const LEASE: Duration = Duration::from_secs(2);
/// Longer than a lease: what is away for so long has lost what it had.
const TOO_LONG: Duration = Duration::from_secs(3);

const _: () = assert!(TOO_LONG.as_millis() > LEASE.as_millis());
/// Pauses until one has met a holder within its section: three in four meet somebody else.
const MAX_PAUSES: usize = 30;
/// Contenders in each of the processes.
const CONTENDERS: u32 = 4;
/// Processes on each of the two hosts for clients.
const PROCESSES: usize = 2;
/// How often a process looks whether it stood still.
const PULSE: Duration = Duration::from_millis(50);
/// Above the time to the next grant after a holder's crash, without its lease.
const AFTER_CRASH: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    join: Vec<String>,
    runtime_dir: PathBuf,
    output: PathBuf,
    process: u32,
    contenders: u32,
    /// Whether the store is told the tokens.
    fenced: bool,
    /// What the lock protects.
    key: String,
    /// In each section.
    stay: Stay,
}

/// How long a contender stays in a section.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Stay {
    UpTo(Duration),
    Exactly(Duration),
    /// Until its process is told to end.
    UntilTheEnd,
}

impl Stay {
    async fn pass(self, ended: &AtomicBool) {
        match self {
            Self::UpTo(longest) => {
                let long = rand::rng().random_range(Duration::ZERO..=longest);
                tokio::time::sleep(long).await;
            }
            Self::Exactly(long) => tokio::time::sleep(long).await,
            Self::UntilTheEnd => {
                while !ended.load(Ordering::Relaxed) {
                    tokio::time::sleep(PULSE).await;
                }
            }
        }
    }
}

impl Plan {
    /// Contenders that come and go quickly.
    fn quick(lab: &Lab) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let process = STARTED.fetch_add(1, Ordering::Relaxed);
        Self {
            join: lab.addresses(),
            runtime_dir: lab.file(&format!("contender{process}.run")),
            output: lab.file(&format!("contender{process}.history")),
            process,
            contenders: CONTENDERS,
            fenced: true,
            key: "guarded".to_owned(),
            stay: Stay::UpTo(Duration::from_millis(15)),
        }
    }

    /// One that stays in each section for so long.
    fn one_that_stays(lab: &Lab, stay: Stay) -> Self {
        Self { contenders: 1, stay, ..Self::quick(lab) }
    }
}

/// A line of a history.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Section(Section),
    Away(Away),
}

/// Contenders at work.
#[derive(Debug)]
struct Contenders {
    process: Process,
    number: u32,
    host: usize,
    history: File,
    /// What was read of it and is no whole line yet.
    rest: String,
    sections: Vec<Section>,
    away: Vec<Away>,
}

impl Lab {
    fn contend(&self, host: usize, plan: &Plan) -> Contenders {
        let program = std::env::current_exe().expect("a program");
        let mut command = self.command(host, &program);
        command.args(["--exact", "lab::locks::contender", "--nocapture"]);
        command.env(PLAN, serde_json::to_string(plan).expect("a plan"));
        File::create(&plan.output).expect("a file");
        let process = Process::spawn(command, &self.file(&format!("contender{}.log", plan.process)));
        let history = File::open(&plan.output).expect("a history");
        let (rest, sections, away) = (String::new(), Vec::new(), Vec::new());
        Contenders { process, number: plan.process, host, history, rest, sections, away }
    }

    /// The node that leads the partition of a name.
    fn leader_of(&mut self, name: &str) -> usize {
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        let ids: BTreeMap<String, usize> = nodes.into_iter().map(|node| (self.id(node), node)).collect();
        within(LIMIT, "the partition has a leader", || {
            let place = self.json(self.visitors()[0], &["where", name, "--join", &self.addresses()[0]])?;
            ids.get(place["leader"].as_str()?).copied()
        })
    }
}

impl Contenders {
    /// Reads on in what they write.
    fn read(&mut self) {
        self.history.read_to_string(&mut self.rest).expect("a history");
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        for line in self.rest[..whole].lines() {
            match serde_json::from_str(line).expect("a line of a history") {
                Line::Section(section) => self.sections.push(section),
                Line::Away(away) => self.away.push(away),
            }
        }
        self.rest.drain(..whole);
    }

    fn goes_on(&mut self, sections: usize) {
        self.read();
        let enough = self.sections.len() + sections;
        within(LIMIT, "the contenders go on", || {
            self.read();
            (self.sections.len() >= enough).then_some(())
        });
    }

    fn pause_and_go_on(&mut self) {
        self.process.signal(Signal::STOP);
        pass(TOO_LONG);
        assert!(self.process.is_stopped(), "it runs");
        self.process.signal(Signal::CONT);
        self.goes_on(1);
    }

    fn stop(&mut self) {
        self.process.close_input();
        let status = self.process.ended(LIMIT);
        assert!(status.success(), "a contender failed ({status}): {}", self.process.output());
        self.read();
    }
}

/// No test of its own: what [`Contenders`] run in another process.
#[test]
fn contender() {
    let Some(plan) = setting(PLAN) else { return };
    let plan: Plan = serde_json::from_str(&plan).expect("a plan");
    let log = Log(Arc::new(Mutex::new(File::options().append(true).open(&plan.output).expect("a file"))));
    let stopped = Arc::new(AtomicBool::new(false));
    {
        let stopped = Arc::clone(&stopped);
        // The end of its input ends it, and so does the end of the test that started it.
        std::thread::spawn(move || {
            drop(std::io::stdin().read_to_end(&mut Vec::new()));
            stopped.store(true, Ordering::Relaxed);
        });
    }
    {
        let (log, process) = (log.clone(), plan.process);
        std::thread::spawn(move || {
            loop {
                let from = now();
                std::thread::sleep(PULSE);
                let to = now();
                if to.saturating_sub(from) > LEASE / 4 {
                    // Its places may be over until its next renewal has arrived.
                    log.write(&Line::Away(Away { process, from, to: to + LEASE }));
                }
            }
        });
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let visitor = Visitor::builder().runtime_directory(&plan.runtime_dir).join(&plan.join).timeout(LIMIT);
        let visitor = visitor.connect().await.expect("a swarm");
        let mut tasks = JoinSet::new();
        for lane in 0..plan.contenders {
            let mut contender = Contender {
                client: visitor.client(),
                lock: "lock".to_owned(),
                key: plan.key.clone(),
                lease: LEASE,
                fenced: plan.fenced,
                process: plan.process,
                lane,
                wishes: 0,
            };
            let (stopped, log) = (Arc::clone(&stopped), log.clone());
            let stay = plan.stay;
            tasks.spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok(section) = contender.section(stay.pass(&stopped), now).await {
                        log.write(&Line::Section(section));
                    }
                }
            });
        }
        tasks.join_all().await;
        visitor.close().await;
    });
}

/// The file of a history.
#[derive(Debug, Clone)]
struct Log(Arc<Mutex<File>>);

impl Log {
    fn write(&self, line: &Line) {
        let mut line = serde_json::to_vec(line).expect("a line");
        line.push(b'\n');
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(&line)
            .expect("the history is written");
    }
}

/// What happens to nodes and contenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// A node is killed, and another comes.
    Kill,
    /// A node leaves, and another joins.
    Leave,
    /// A node stands still, for longer than a lease.
    Pause,
    /// A node is cut off from all others, clients too.
    Cut,
    /// Nothing passes from a node.
    CutFrom,
    /// Nothing passes to a node.
    CutTo,
    /// Packets from and to a node are lost, each by chance.
    Lose,
    /// Little passes to the node that all depend on.
    Slow,
    /// A process of contenders stands still, for longer than its lease.
    PauseContenders,
    /// A host of contenders is cut off, for longer than their leases.
    CutContenders,
}

const TROUBLES: [Trouble; 10] = [
    Trouble::Kill,
    Trouble::Leave,
    Trouble::Pause,
    Trouble::Cut,
    Trouble::CutFrom,
    Trouble::CutTo,
    Trouble::Lose,
    Trouble::Slow,
    Trouble::PauseContenders,
    Trouble::CutContenders,
];

/// A swarm, contenders on it, and chance.
struct Contest {
    lab: Lab,
    rng: StdRng,
    all: Vec<Contenders>,
    /// Cut off from all nodes, or nearly so from the one that they depend on, by this test.
    away: Vec<Away>,
    /// Those that took effect.
    fired: BTreeMap<Trouble, usize>,
    /// Packets that cuts kept back.
    kept_back: u64,
}

impl Contest {
    fn one_after_another(&mut self, trouble: Trouble) {
        let lasts = Duration::from_millis(self.rng.random_range(500..4_000));
        // Every second time it meets the one node that all depend on.
        let node =
            if self.rng.random() { self.lab.leader_of("lock") } else { self.rng.random_range(0..NODES) };
        say(&format!("{:.1?}: {trouble:?}, node {node}, {lasts:?}", now()));
        let hosts = self.lab.visitors();
        let others: Vec<usize> = (0..NODES).chain(hosts).filter(|other| *other != node).collect();
        match trouble {
            Trouble::Kill => {
                // Two of three replicas that are killed take what they have along, rightly.
                self.lab.settled();
                self.lab.kill(node);
                pass(lasts);
                self.lab.up(node, &FLAGS);
            }
            Trouble::Leave => {
                self.lab.terminate(node);
                pass(lasts);
                self.lab.up(node, &FLAGS);
            }
            Trouble::Pause => {
                self.lab.pause(node);
                pass(lasts.max(TOO_LONG));
                assert!(self.lab.node(node).is_stopped(), "it runs");
                self.lab.resume(node);
            }
            Trouble::Cut => self.cut(lasts, |lab| lab.cut(&[node], &others)),
            Trouble::CutFrom => self.cut(lasts, |lab| lab.cut_one_way(&[node], &others)),
            Trouble::CutTo => self.cut(lasts, |lab| lab.cut_one_way(&others, &[node])),
            Trouble::Lose => {
                let (leader, from) = (self.lab.leader_of("lock"), now());
                self.cut(lasts, |lab| lab.lose(&[node], 15));
                if node == leader {
                    self.are_late(from);
                }
            }
            Trouble::Slow => {
                // To others too little goes.
                let leader = self.lab.leader_of("lock");
                let from = now();
                self.lab.network().slow(leader, 100, 400);
                pass(lasts);
                let met = self.lab.network().fast(leader);
                assert!(met > 0, "nothing had to wait");
                self.are_late(from);
            }
            Trouble::PauseContenders => {
                let some = self.rng.random_range(0..self.all.len());
                self.all[some].pause_and_go_on();
            }
            Trouble::CutContenders => {
                let host = hosts[self.rng.random_range(0..hosts.len())];
                let nodes: Vec<usize> = (0..NODES).collect();
                let from = now();
                self.cut(TOO_LONG, |lab| lab.cut(&[host], &nodes));
                // Until its links are made anew: with a backoff, and after what was sent before was given up.
                let to = now() + LEASE * 2;
                let cut_off = self.all.iter().filter(|contenders| contenders.host == host);
                self.away.extend(cut_off.map(|contenders| Away { process: contenders.number, from, to }));
            }
        }
        *self.fired.entry(trouble).or_default() += 1;
        self.goes_on();
    }

    /// From then on packets to and from the leader were dropped. TCP sends them again later and later, each time after
    /// twice as long: so some renewals have come after the lease, or will.
    fn are_late(&mut self, from: Duration) {
        let to = now() + LEASE * 2;
        self.away.extend(self.all.iter().map(|all| Away { process: all.number, from, to }));
    }

    /// Waits until each process has had the lock again; if that does not happen, says how it stands.
    fn goes_on(&mut self) {
        let before: Vec<usize> = self.all.iter().map(|all| all.sections.len()).collect();
        let end = now() + LIMIT;
        loop {
            self.all.iter_mut().for_each(Contenders::read);
            let counts = self.all.iter().map(|all| all.sections.len());
            let stuck: Vec<u32> = counts
                .zip(&before)
                .zip(&self.all)
                .filter(|((count, before), _)| count <= *before)
                .map(|(_, all)| all.number)
                .collect();
            if stuck.is_empty() {
                return;
            }
            if now() >= end {
                let host = self.lab.visitors()[0];
                for address in self.lab.addresses() {
                    for words in [&["lock", "--list", "lock"][..], &["where", "lock"], &["where", "guarded"]]
                    {
                        let said = self.lab.cli(host, &[words, &["--join", &address]].concat());
                        say(&format!("{address}: {words:?}: {} {}", said.out, said.err));
                    }
                }
                for all in &mut self.all {
                    let (ended, last) = (all.process.try_ended(), all.sections.last());
                    say(&format!(
                        "process {} on host {}, ended: {ended:?}, last {last:?}; {}",
                        all.number,
                        all.host,
                        all.process.output()
                    ));
                }
                panic!("contenders of processes {stuck:?} did not go on at {:?}", now());
            }
            pass(PULSE);
        }
    }

    /// Cuts, waits, and heals; the cut must have met something.
    fn cut(&mut self, lasts: Duration, cut: impl FnOnce(&Lab)) {
        cut(&self.lab);
        pass(lasts);
        let kept_back = self.lab.network().kept_back();
        assert!(kept_back > 0, "nothing went where the cut was");
        self.kept_back += kept_back;
        self.lab.heal();
    }

    /// Everything until now, judged.
    fn judge(&mut self) {
        self.all.iter_mut().for_each(Contenders::read);
        let sections: Vec<Section> = self.all.iter().flat_map(|all| all.sections.iter().cloned()).collect();
        let mut away = self.away.clone();
        away.extend(self.all.iter().flat_map(|all| all.away.iter().copied()));
        let count = |what: fn(&Section) -> bool| sections.iter().filter(|section| what(section)).count();
        let fairness = fairness(&sections, &away);
        let waited = sections.iter().map(|section| section.granted.saturating_sub(section.asked)).max();
        say(&format!(
            "{} sections, {} refused by the store, {} lost; the longest wait {:.3?}; {} saw others wait, {} places of \
             those who were away were over; fired {:?}, {} packets kept back",
            sections.len(),
            count(|section| section.fenced),
            count(|section| section.lost),
            waited.unwrap_or_default(),
            fairness.judged,
            fairness.excused,
            self.fired,
            self.kept_back,
        ));
        let found = violations(&sections);
        assert!(found.is_empty(), "{found:#?}");
        assert!(fairness.found.is_empty(), "{:#?}", fairness.found);
        assert!(fairness.judged > sections.len() / 2, "too few saw others wait");
        assert!(count(|section| section.fenced && section.lost) > 0, "no holder was paused past its lease");
        let missing: Vec<_> = TROUBLES.iter().filter(|trouble| !self.fired.contains_key(trouble)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

#[test]
fn sections_under_a_lock_are_one_after_the_other_and_in_turn_whatever_happens() {
    let seed = setting("ROUNDTABLE_LAB_SEED").map_or_else(rand::random, |seed| seed.parse().expect("a seed"));
    let seconds = setting("ROUNDTABLE_LAB_SECONDS").map_or(0, |seconds| seconds.parse().expect("seconds"));
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    say(&format!("ROUNDTABLE_LAB_SEED={seed}"));
    for node in 0..NODES {
        lab.up(node, &FLAGS);
    }
    lab.settled();
    let hosts = lab.visitors().into_iter().flat_map(|host| std::iter::repeat_n(host, PROCESSES));
    let all: Vec<Contenders> = hosts.map(|host| lab.contend(host, &Plan::quick(&lab))).collect();
    let rng = StdRng::seed_from_u64(seed);
    let mut contest = Contest { lab, rng, all, away: Vec::new(), fired: BTreeMap::new(), kept_back: 0 };
    for contenders in &mut contest.all {
        contenders.goes_on(5);
    }
    for round in 0..rounds(1) {
        say(&format!("round {}", round + 1));
        let begun = now();
        let mut troubles = TROUBLES;
        troubles.shuffle(&mut contest.rng);
        for trouble in troubles {
            contest.one_after_another(trouble);
        }
        while since(begun) < Duration::from_secs(seconds) {
            let trouble = TROUBLES[contest.rng.random_range(0..TROUBLES.len())];
            contest.one_after_another(trouble);
        }
        if round == 0 {
            // A holder that stands still within its section is what all this is about.
            for _ in 0..MAX_PAUSES {
                if contest.all.iter().any(|all| all.sections.iter().any(|section| section.fenced)) {
                    break;
                }
                contest.one_after_another(Trouble::PauseContenders);
            }
        }
        contest.judge();
    }
    contest.all.iter_mut().for_each(Contenders::stop);
    contest.judge();
}

/// The instrument itself: without tokens, holders that stand still past their leases are caught.
#[test]
fn without_tokens_the_judge_finds_the_overlap() {
    let Some(mut lab) = Lab::bridge(1) else { return };
    lab.up(0, &FLAGS);
    lab.settled();
    let [one, other] = lab.visitors();
    let stays = Plan::one_that_stays(&lab, Stay::Exactly(LEASE / 2));
    let mut stopped = lab.contend(one, &Plan { fenced: false, ..stays });
    let mut others = lab.contend(other, &Plan { fenced: false, ..Plan::quick(&lab) });
    others.goes_on(1);
    let number = stopped.number;
    let is_inside = || {
        let lock = lab.json(other, &["lock", "--list", "lock", "--join", &lab.addresses()[0]])?;
        let wish = Wish::of(lock["holders"][0]["note"].as_str()?.as_bytes())?;
        (wish.process == number).then_some(())
    };
    within(LIMIT, "a holder is stopped within its section", || {
        // Now and then it has left before it is stopped.
        within(LIMIT, "its turn has come", is_inside);
        stopped.pause_and_go_on();
        others.goes_on(1);
        let sections = [&stopped.sections[..], &others.sections].concat();
        violations(&sections).iter().any(|one| one.contains("overlap")).then_some(())
    });
    stopped.stop();
    others.stop();
}

/// Three nodes at rest, and what is between them and the contenders.
#[test]
fn the_next_is_granted_in_one_round_trip_and_one_round_of_the_partition() {
    let Some(mut lab) = Lab::bridge(3) else { return };
    for node in 0..3 {
        lab.up(node, &FLAGS);
    }
    lab.settled();
    // What the lock protects has its name, and so its partition: a write to it is one round trip and one round.
    let plan = || Plan {
        key: "lock".to_owned(),
        ..Plan::one_that_stays(&lab, Stay::Exactly(Duration::from_millis(20)))
    };
    let mut all = lab.visitors().map(|host| lab.contend(host, &plan()));
    for contenders in &mut all {
        contenders.goes_on(200);
    }
    all.iter_mut().for_each(Contenders::stop);
    let mut sections: Vec<Section> = all.into_iter().flat_map(|all| all.sections).collect();
    sections.sort_by_key(|section| section.token);
    // Who had asked well before the one before it let go.
    let waited = |pair: &[Section]| {
        let (before, next) = (&pair[0], &pair[1]);
        (next.asked + Duration::from_millis(5) < before.released)
            .then(|| next.granted.saturating_sub(before.released))
    };
    let mut waits: Vec<Duration> = sections.windows(2).filter_map(waited).collect();
    let mut writes: Vec<Duration> = sections.iter().map(|section| section.wrote_within).collect();
    waits.sort_unstable();
    writes.sort_unstable();
    let (wait, write) = (waits[waits.len() / 2], writes[writes.len() / 2]);
    say(&format!("of {} hand-overs the median took {wait:.3?}, of as many writes {write:.3?}", waits.len()));
    measured("from release to the next grant (median)", wait, write * 3 / 2 + Duration::from_micros(200));
    assert!(violations(&sections).is_empty() && fairness(&sections, &[]).found.is_empty());
}

#[test]
fn a_killed_holder_is_followed_within_its_lease_and_a_second() {
    let Some(mut lab) = Lab::bridge(3) else { return };
    for node in 0..3 {
        lab.up(node, &FLAGS);
    }
    lab.settled();
    let [one, other] = lab.visitors();
    let slowest = (0..rounds(1)).map(|_| {
        let holder = lab.contend(one, &Plan::one_that_stays(&lab, Stay::UntilTheEnd));
        let held = || lab.json(other, &["lock", "--list", "lock", "--join", &lab.addresses()[0]]);
        within(LIMIT, "the lock is held", held);
        let mut next = lab.contend(other, &Plan::quick(&lab));
        within(LIMIT, "others wait", || {
            held().and_then(|lock| lock["waiters"].as_array().map(Vec::len)).filter(|waiters| *waiters > 0)
        });
        // Renewed at the latest moment before.
        pass(LEASE / 3);
        let killed = now();
        holder.process.signal(Signal::KILL);
        next.goes_on(1);
        let took = next.sections[0].granted.saturating_sub(killed);
        next.stop();
        took
    });
    let slowest = slowest.max().expect("a round");
    measured("from `kill -9` of a holder to the next grant", slowest, LEASE + AFTER_CRASH);
}

#[test]
fn who_waits_keeps_the_place_when_the_leader_is_killed() {
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    for node in 0..NODES {
        lab.up(node, &FLAGS);
    }
    for _ in 0..rounds(1) {
        lab.settled();
        let leader = lab.leader_of("lock");
        let addresses = lab.addresses();
        let survivor = &addresses[(leader + 1) % NODES];
        let [one, other] = lab.visitors();
        // It holds the lock while the leader dies, and the others queue up behind it.
        let mut holder = lab.contend(one, &Plan::one_that_stays(&lab, Stay::UntilTheEnd));
        let list = |lab: &Lab| lab.json(one, &["lock", "--list", "lock", "--join", survivor]);
        within(LIMIT, "the lock is held", || list(&lab));
        let briefly = || Plan::one_that_stays(&lab, Stay::Exactly(Duration::from_millis(10)));
        let mut waiting: Vec<Contenders> =
            [one, other, one, other].map(|host| lab.contend(host, &briefly())).into_iter().collect();
        let arrivals = |lock: serde_json::Value| -> Option<Vec<u64>> {
            lock["waiters"].as_array()?.iter().map(|waiter| waiter["arrival"].as_u64()).collect()
        };
        let queue = within(LIMIT, "all wait", || {
            list(&lab).and_then(arrivals).filter(|waiters| waiters.len() == waiting.len())
        });
        let killed = now();
        lab.kill(leader);
        within(LIMIT, "another leads", || list(&lab));
        holder.stop();
        for contenders in &mut waiting {
            contenders.goes_on(1);
        }
        let first = holder.sections[0].clone();
        assert!(first.granted < killed && !first.lost, "the holder lost its lock: {first:?}");
        let mut served: Vec<Section> = waiting.iter().map(|all| all.sections[0].clone()).collect();
        served.sort_by_key(|section| section.token);
        let order: Vec<u64> = served.iter().filter_map(|one| Some(one.queue.as_ref()?.holder.0)).collect();
        assert_eq!(order, queue, "those who waited were not served in turn");
        let took = served[0].granted.saturating_sub(first.released);
        measured("from release to the next grant, the leader killed meanwhile", took, AFTER_CRASH);
        waiting.iter_mut().for_each(Contenders::stop);
        lab.up(leader, &FLAGS);
    }
}

fn pass(time: Duration) {
    let begin = now();
    within(LIMIT, "some time passes", || (since(begin) >= time).then_some(()));
}
