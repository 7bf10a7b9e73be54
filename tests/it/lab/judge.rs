//! Judges what clients saw: by the checker, and by simpler oracles that need no trust in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roundtable::id::Version;

use super::load::{KEYS, Seen, is_counter, is_deleted, key_name};
use super::say;
use crate::checker::{Op, Pending, Recorder, Ret, Verdict};

/// All that the clients of a test saw.
#[derive(Debug, Default)]
pub(super) struct Story {
    seen: Vec<Seen>,
}

impl Story {
    /// Adds what some clients saw.
    pub(super) fn add(&mut self, seen: Vec<Seen>) {
        self.seen.extend(seen);
    }

    /// How often each error was seen.
    pub(super) fn errors(&self) -> BTreeMap<&str, usize> {
        let mut errors = BTreeMap::new();
        for trouble in self.seen.iter().filter_map(|seen| seen.result.as_ref().err()) {
            *errors.entry(trouble.text.as_str()).or_insert(0) += 1;
        }
        errors
    }

    /// No client saw an error.
    pub(super) fn assert_no_error(&self) {
        let errors = self.errors();
        let first = self.seen.iter().find(|seen| seen.result.is_err());
        assert!(errors.is_empty(), "clients saw {errors:?}; first {first:?}");
    }

    /// The longest that an operation took of those under way at or after a moment, and what it was.
    pub(super) fn slowest_since(&self, moment: Duration) -> (Duration, String) {
        let slowest = self.seen.iter().filter(|seen| seen.returned >= moment).max_by_key(|seen| seen.took());
        slowest.map_or((Duration::ZERO, String::new()), |seen| {
            (seen.took(), format!("{} on {}", seen.op, key_name(seen.key)))
        })
    }

    /// The longest that a key took no write after a moment: of each acknowledged write that was under way then
    /// or began later, the time until it was acknowledged. Also, how many keys were written within `window`.
    pub(super) fn longest_pause(&self, after: Duration, window: Duration) -> (Duration, usize) {
        let written: Vec<&Seen> =
            self.seen.iter().filter(|seen| seen.acknowledged() && seen.returned > after).collect();
        let within = written.iter().filter(|seen| seen.returned <= after + window).map(|seen| seen.key);
        let keys = within.collect::<BTreeSet<u32>>().len();
        let pause = written.iter().map(|seen| seen.returned.saturating_sub(seen.invoked.max(after))).max();
        (pause.unwrap_or_default(), keys)
    }

    /// The longest that a write took of those that were under way at a moment or began before another one, counted
    /// from the first moment. Those that were never acknowledged count until then.
    pub(super) fn longest_write(&self, from: Duration, until: Duration) -> Duration {
        let concerned = self
            .seen
            .iter()
            .filter(|seen| !matches!(seen.op, Op::Get) && seen.invoked < until && seen.returned > from);
        let took = concerned.map(|seen| seen.returned.saturating_sub(seen.invoked.max(from)));
        took.max().unwrap_or_default()
    }

    /// The longest time between two acknowledged writes, over all keys together, since a moment.
    pub(super) fn longest_silence(&self, since: Duration) -> Duration {
        let acknowledged = self.seen.iter().filter(|seen| seen.acknowledged());
        let mut times: Vec<Duration> =
            acknowledged.map(|seen| seen.returned).filter(|at| *at >= since).collect();
        times.push(since);
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }

    /// Operations per second while the load lasted.
    pub(super) fn rate(&self) -> u64 {
        let first = self.seen.iter().map(|seen| seen.invoked).min().unwrap_or_default();
        let last = self.seen.iter().map(|seen| seen.returned).max().unwrap_or_default();
        let millis = u64::try_from(last.saturating_sub(first).as_millis()).unwrap_or(u64::MAX).max(1);
        self.seen.len() as u64 * 1000 / millis
    }

    /// Number of acknowledged writes.
    pub(super) fn acknowledged(&self) -> usize {
        self.seen.iter().filter(|seen| seen.acknowledged()).count()
    }

    /// Number of operations.
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// Every acknowledged write is in what was read of each key at the end: by versions, and by sums.
    pub(super) fn assert_nothing_lost(&self, at_the_end: &[Seen]) {
        for key in 0..KEYS {
            let name = key_name(key);
            let read = at_the_end.iter().find(|seen| seen.key == key).expect("every key was read");
            let entry = match &read.result {
                Ok(Ret::Entry(entry)) => entry,
                other => panic!("{name} cannot be read at the end: {other:?}"),
            };
            let of_key = || self.seen.iter().filter(|seen| seen.key == key);
            if is_counter(key) {
                let count = |wanted: &dyn Fn(&Seen) -> bool| {
                    let fitting = of_key().filter(|seen| matches!(seen.op, Op::Increment(_)) && wanted(seen));
                    i64::try_from(fitting.count()).expect("few")
                };
                let acknowledged = count(&|seen| seen.result.is_ok());
                let unknown = count(&|seen| seen.result.as_ref().is_err_and(|trouble| trouble.unknown));
                let sum = entry.as_ref().map_or(0, |(value, _)| {
                    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a sum")
                });
                assert!(
                    (acknowledged..=acknowledged + unknown).contains(&sum),
                    "{name} is {sum}; {acknowledged} increments were acknowledged, {unknown} are unknown"
                );
            } else if !is_deleted(key) {
                let newest = of_key().filter_map(Seen::wrote).max();
                let held: Option<Version> = entry.as_ref().map(|(_, version)| *version);
                assert!(held >= newest, "{name} is at {held:?}, {newest:?} was acknowledged");
            }
        }
    }

    /// What was seen is linearizable, and so is what was read at the end.
    pub(super) fn assert_linearizable(&self, at_the_end: &[Seen]) {
        let recorder = Recorder::default();
        let bound: Vec<&Seen> = self.seen.iter().chain(at_the_end).filter(|seen| !seen.stale).collect();
        // Of two events at the same time the invocation counts as the earlier: that claims less.
        let mut events: Vec<(Duration, bool, usize)> = Vec::new();
        for (index, seen) in bound.iter().enumerate() {
            events.push((seen.invoked, false, index));
            events.push((seen.returned, true, index));
        }
        events.sort_unstable();
        let mut pending: BTreeMap<usize, Pending> = BTreeMap::new();
        for (_, returns, index) in events {
            let seen = bound[index];
            if !returns {
                let invoked = recorder.invoke(seen.client, key_name(seen.key).as_bytes(), seen.op.clone());
                pending.insert(index, invoked);
            } else if let Some(pending) = pending.remove(&index) {
                match &seen.result {
                    Ok(ret) => pending.ok(ret.clone()),
                    Err(trouble) if trouble.unknown => pending.unknown(),
                    Err(_) => pending.failed(),
                }
            }
        }
        match recorder.history().check() {
            Verdict::Linearizable => say(&format!("{} operations are linearizable", bound.len())),
            Verdict::Violation(counterexample) => panic!("not linearizable: {counterexample}"),
            Verdict::GaveUp(key) => panic!("cannot judge {}", key.escape_ascii()),
        }
    }
}
