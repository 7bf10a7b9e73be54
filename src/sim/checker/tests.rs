//! The checker is checked: good histories pass, planted faults are found.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::Error;
use crate::id::Version;
use crate::state_machine::{Answer, Command, Operation, PartitionTime, Query, Reply, StateMachine};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{History, Op, Pending, Recorder, Ret, Verdict};

const CLIENTS: usize = 5;
/// The key that is only ever put for [`LIFE`].
const BRIEF: &[u8] = b"b";
/// The key that is planted to expire early.
const EARLY: &[u8] = b"early";
const LIFE: Duration = Duration::from_millis(100);

/// What a store may do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A read is answered from before a write that had returned.
    StaleRead,
    /// A write is acknowledged and never applied.
    LostWrite,
    /// An increment is applied twice.
    DoubleIncrement,
    /// A key is gone before its time.
    EarlyExpiry,
}

/// Clients at work on a true state machine, one step of one of them at a time.
struct Play {
    rng: StdRng,
    store: StateMachine,
    index: u64,
    recorder: Recorder,
    /// At work: what was asked, and the answer once it took effect.
    working: BTreeMap<usize, (Vec<u8>, Op, Pending, Option<Ret>)>,
    /// Given up by their clients, not yet without effect.
    floating: Vec<(Vec<u8>, Op)>,
    numbers: Vec<u32>,
    keys: u8,
    /// In milliseconds.
    now: u64,
}

impl Play {
    fn new(seed: u64, keys: u8) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            store: StateMachine::default(),
            index: 0,
            recorder: Recorder::default(),
            working: BTreeMap::new(),
            floating: Vec::new(),
            numbers: (0..).take(CLIENTS).collect(),
            keys,
            now: 0,
        }
    }

    fn run(&mut self, steps: usize, one_unknown_in: u32) {
        for _ in 0..steps {
            let passed = self.rng.random_range(0..10);
            self.wait(passed);
            let client = self.rng.random_range(0..CLIENTS);
            match self.working.remove(&client) {
                None => {
                    let key = vec![b'a' + self.rng.random_range(0..self.keys)];
                    let op = self.draw(&key);
                    let pending = self.recorder.invoke(self.numbers[client], &key, op.clone());
                    self.working.insert(client, (key, op, pending, None));
                }
                Some((key, op, pending, ret)) if self.rng.random_range(0..one_unknown_in) == 0 => {
                    pending.unknown();
                    self.numbers[client] += 100;
                    if ret.is_none() {
                        self.floating.push((key, op));
                    }
                }
                Some((key, op, pending, None)) => {
                    let ret = self.apply(&key, &op);
                    self.working.insert(client, (key, op, pending, Some(ret)));
                }
                Some((_, _, pending, Some(ret))) => pending.ok(ret),
            }
            if !self.floating.is_empty() && self.rng.random_bool(0.05) {
                let (key, op) = self.floating.swap_remove(0);
                self.apply(&key, &op);
            }
        }
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        self.recorder.set_time(Duration::from_millis(self.now));
    }

    /// Everybody comes to an end.
    fn finish(&mut self) {
        for (_, (key, op, pending, ret)) in std::mem::take(&mut self.working) {
            let ret = ret.unwrap_or_else(|| self.apply(&key, &op));
            pending.ok(ret);
        }
    }

    fn draw(&mut self, key: &[u8]) -> Op {
        // Unique, so that values tell their writes apart.
        let number: i64 = self.rng.random_range(1..1 << 40);
        if key == BRIEF {
            let value = number.to_string().into_bytes();
            return if self.rng.random() { Op::PutFor(value, LIFE) } else { Op::Get };
        }
        match self.rng.random_range(0..10) {
            0..4 => Op::Get,
            4..6 => Op::Put(number.to_string().into_bytes()),
            6 => Op::Delete,
            7 => {
                let now = self.store.version(key);
                let is_wrong = self.rng.random_bool(0.2);
                Op::Swap(if is_wrong { None } else { now }, b"text".to_vec())
            }
            _ => Op::Increment(number),
        }
    }

    fn apply(&mut self, key: &[u8], op: &Op) -> Ret {
        let key = key.to_vec();
        let operation = match op.clone() {
            Op::Get => return self.read(key),
            Op::Put(value) => Operation::Put { key, value, ttl_ms: None },
            Op::PutFor(value, life) => {
                let ttl_ms = u64::try_from(life.as_millis()).ok();
                Operation::Put { key, value, ttl_ms }
            }
            Op::Delete => Operation::Delete { key },
            Op::Swap(expected, value) => Operation::CompareAndSwap { key, expected, value, ttl_ms: None },
            Op::Increment(by) => Operation::Increment { key, by },
        };
        self.index += 1;
        let command = Command { time: PartitionTime(self.now), origin: None, operation };
        match self.store.apply(self.index, command) {
            Reply::Written { version } => Ret::Written(version),
            Reply::Deleted { existed } => Ret::Deleted(existed),
            Reply::Incremented { value, .. } => Ret::Sum(value),
            Reply::Conflict { version } => Ret::Conflict(version),
            Reply::NotAnInteger => Ret::NotAnInteger,
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, key: Vec<u8>) -> Ret {
        self.advance(self.now);
        match self.store.query(&Query::Get { key }) {
            Answer::Entry(entry) => Ret::Entry(entry.map(|entry| (entry.value, entry.version))),
            other => panic!("{other:?}"),
        }
    }

    fn advance(&mut self, to: u64) {
        self.index += 1;
        let (time, operation) = (PartitionTime(to), Operation::Advance);
        self.store.apply(self.index, Command { time, origin: None, operation });
    }

    /// One client alone does something from beginning to end.
    fn alone(&mut self, key: &[u8], op: &Op) {
        let pending = self.recorder.invoke(1000, key, op.clone());
        let ret = self.apply(key, op);
        pending.ok(ret);
    }

    /// The fault happens while others are at work.
    fn plant(&mut self, fault: Fault) {
        if fault == Fault::EarlyExpiry {
            // A key of its own: an open write of long ago might explain why it is gone.
            self.alone(EARLY, &Op::PutFor(b"0".to_vec(), LIFE));
            let late = u64::try_from(LIFE.as_millis()).unwrap();
            self.wait(late / 2);
            self.advance(self.now + late);
            return self.alone(EARLY, &Op::Get);
        }
        let key = b"a".as_slice();
        match fault {
            Fault::StaleRead => {
                // A value that only this write can have left: an absence might be an open delete's.
                self.alone(key, &Op::Put(b"0".to_vec()));
                let old = self.read(key.to_vec());
                self.alone(key, &Op::Put(b"1".to_vec()));
                self.recorder.invoke(1001, key, Op::Get).ok(old);
            }
            Fault::LostWrite => {
                self.alone(key, &Op::Put(b"1".to_vec()));
                self.index += 1;
                let ret = Ret::Written(Version(self.index));
                self.recorder.invoke(1001, key, Op::Put(b"2".to_vec())).ok(ret);
                self.alone(key, &Op::Get);
            }
            Fault::DoubleIncrement => {
                let by = self.rng.random_range(1..1 << 40);
                self.alone(key, &Op::Put(b"1".to_vec()));
                self.alone(key, &Op::Increment(by));
                self.apply(key, &Op::Increment(by));
                self.alone(key, &Op::Get);
            }
            Fault::EarlyExpiry => {}
        }
    }

    fn history(&self) -> History {
        self.recorder.history()
    }
}

#[test]
fn good_histories_pass() {
    for seed in 0..1000 {
        let mut play = Play::new(seed, 2);
        play.run(300, if seed % 2 == 0 { u32::MAX } else { 30 });
        if seed % 3 == 0 {
            play.finish();
        }
        assert_eq!(play.history().check(), Verdict::Linearizable, "seed {seed}");
    }
}

#[test]
fn planted_faults_are_found() {
    let mut longest = 0;
    let faults = [Fault::StaleRead, Fault::LostWrite, Fault::DoubleIncrement, Fault::EarlyExpiry];
    for (seed, fault) in (0..800).zip(faults.into_iter().cycle()) {
        let mut play = Play::new(seed, 2);
        play.run(150, 30);
        play.plant(fault);
        play.run(150, 30);
        match play.history().check() {
            Verdict::Violation(found) => {
                assert_eq!(found.key, if fault == Fault::EarlyExpiry { EARLY } else { b"a" });
                longest = longest.max(found.records.len());
            }
            verdict => panic!("seed {seed}: {fault:?} was not found: {verdict:?}"),
        }
    }
    assert!(longest < 150, "a counterexample of {longest} operations is none to read");
}

/// Every order of a few operations with answers drawn at random, most of them impossible.
#[test]
fn agrees_with_trying_every_order() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let recorder = Recorder::default();
        let mut pending = Vec::new();
        for client in 0..rng.random_range(2..6) {
            let version = Version(rng.random_range(1..4));
            let value = vec![b'0' + rng.random_range(0..2)];
            let (op, ret) = match rng.random_range(0..6) {
                0 => (Op::Get, Ret::Entry(None)),
                1 => (Op::Get, Ret::Entry(Some((value, version)))),
                2 => (Op::Put(value), Ret::Written(version)),
                3 => (Op::Delete, Ret::Deleted(rng.random())),
                4 => (Op::Swap(Some(version), value), Ret::Written(Version(version.0 + 1))),
                _ => (Op::Increment(1), Ret::Sum(rng.random_range(0..3))),
            };
            pending.push((recorder.invoke(client, b"k", op), ret));
            while !pending.is_empty() && rng.random_bool(0.4) {
                let (pending, ret) = pending.swap_remove(rng.random_range(0..pending.len()));
                pending.ok(ret);
            }
        }
        // What is still pending is open.
        drop(pending);
        let history = recorder.history();
        let records = &history.keys[b"k".as_slice()];
        let expected = super::search::tries_every_order(records);
        assert_eq!(
            super::search::is_linearizable(records, super::MAX_STEPS),
            Some(expected),
            "seed {seed}: {records:?}"
        );
        if expected { good += 1 } else { bad += 1 }
    }
    assert!(good > 2000 && bad > 2000, "{good} {bad}");
}

#[test]
fn a_long_history_is_judged_quickly() {
    let mut play = Play::new(1, 26);
    play.run(120_000, 2000);
    let history = play.history();
    assert!(history.len() > 35_000, "{}", history.len());
    assert_eq!(history.check(), Verdict::Linearizable);
}

#[test]
fn many_operations_of_unknown_outcome_are_judged_quickly() {
    let recorder = Recorder::default();
    for number in 0..20u8 {
        recorder.invoke(0, b"k", Op::Put(vec![number])).unknown();
        recorder.invoke(1, b"k", Op::Delete).unknown();
    }
    let mut version = 0;
    for _ in 0..15 {
        version += 1;
        recorder.invoke(2, b"k", Op::Put(b"seen".to_vec())).ok(Ret::Written(Version(version)));
        recorder.invoke(2, b"k", Op::Get).ok(Ret::Entry(None));
    }
    let judge = |recorder: &Recorder| {
        super::search::is_linearizable(&recorder.history().keys[b"k".as_slice()], 2_000_000)
    };
    assert_eq!(judge(&recorder), Some(true));
    let never_written = Some((b"never".to_vec(), Version(version)));
    recorder.invoke(2, b"k", Op::Get).ok(Ret::Entry(never_written));
    assert_eq!(judge(&recorder), Some(false));
}

#[test]
fn a_counterexample_can_be_read() {
    let recorder = Recorder::default();
    let k = b"k".as_slice();
    let slow = recorder.invoke(9, k, Op::Put(b"z".to_vec()));
    recorder.invoke(1, k, Op::Put(b"x".to_vec())).ok(Ret::Written(Version(1)));
    recorder.invoke(2, k, Op::Get).ok(Ret::Entry(Some((b"x".to_vec(), Version(1)))));
    recorder.invoke(1, k, Op::Delete).ok(Ret::Deleted(true));
    recorder.invoke(2, k, Op::Get).ok(Ret::Entry(Some((b"x".to_vec(), Version(1)))));
    recorder.invoke(2, k, Op::Get).ok(Ret::Entry(None));
    drop(slow);
    let Verdict::Violation(found) = recorder.history().check() else {
        panic!("not found");
    };
    assert_eq!(
        found.to_string(),
        "no order explains these 4 operations on k:\n\
        \x20 [     1    ...] client 9: put z -> unknown\n\
        \x20 [     2      3] client 1: put x -> v1\n\
        \x20 [     6      7] client 1: delete -> deleted\n\
        \x20 [     8      9] client 2: get -> x at v1\n"
    );
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never_but_only_once() {
    let play = |answers: &[&str]| {
        let recorder = Recorder::default();
        let put = |value: &str| Op::Put(value.into());
        recorder.invoke(1, b"k", put("1")).ok(Ret::Written(Version(1)));
        recorder.invoke(2, b"k", put("2")).settle(Err(Error::Unknown));
        recorder.invoke(3, b"k", put("3")).settle(Err(Error::NoQuorum));
        for (answer, version) in answers.iter().zip(5..) {
            let version = Version(if *answer == "1" { 1 } else { version });
            let ret = Ret::Entry(Some((answer.as_bytes().to_vec(), version)));
            recorder.invoke(4, b"k", Op::Get).ok(ret);
        }
        recorder.history().check() == Verdict::Linearizable
    };
    assert!(play(&["1", "1"]));
    assert!(play(&["1", "2"]));
    assert!(!play(&["2", "1"]), "it came and went");
    assert!(!play(&["2", "2"]), "its version changed");
    assert!(!play(&["3"]), "it was refused");
}

#[test]
fn an_unknown_write_may_be_seen_by_its_traces_alone() {
    let recorder = Recorder::default();
    recorder.invoke(1, b"k", Op::Put(b"5".to_vec())).unknown();
    recorder.invoke(2, b"k", Op::Increment(1)).ok(Ret::Sum(6));
    recorder.invoke(3, b"k", Op::Swap(Some(Version(9)), b"x".to_vec())).unknown();
    recorder.invoke(2, b"k", Op::Delete).ok(Ret::Deleted(true));
    recorder.invoke(2, b"k", Op::Put(b"y".to_vec())).ok(Ret::Written(Version(12)));
    assert_eq!(recorder.history().check(), Verdict::Linearizable);
    // Versions that do not grow are a violation by themselves.
    recorder.invoke(2, b"k", Op::Put(b"y".to_vec())).ok(Ret::Written(Version(11)));
    assert!(matches!(recorder.history().check(), Verdict::Violation(_)));
}
