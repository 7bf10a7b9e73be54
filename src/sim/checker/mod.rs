//! Was it linearizable? Records what clients saw and searches for an order that explains it.
//!
//! **Property.** Of each key there is an order of its operations such that every operation lies between its
//! invocation and its return, and every answer is what a single key would have answered in that order; versions
//! grow along it.
//!
//! **Method.** Linearizability is local, so keys are judged one by one (Herlihy and Wing, *Linearizability*,
//! 1990). Of one key: the search of Wing and Gong with Lowe's memo of visited pairs of done operations and state
//! (Lowe, *Testing for Linearizability*, 2017).
//!
//! An operation whose outcome is unknown stays open for ever: it may take effect at any later moment, or never.
//! None is dropped because nobody saw its value: a delete that found something, a conflict, or a sum may be its
//! only trace. To keep the search short, open operations are tried only where the known ones get stuck.
//!
//! A key that was put for a time may be gone as soon as that time has passed, by the clock of the history, and
//! not before; when it must be gone is not judged, because a partition's time stands still without a leader.
//!
//! Running out of steps is a verdict of its own, [`Verdict::GaveUp`], and no pass.

pub(crate) mod locks;
mod search;
pub(crate) mod set;
#[cfg(test)]
mod tests;
mod timeline;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::client::{Error, Outcome};
use crate::id::Version;
use serde::{Deserialize, Serialize};

/// Steps of the search for one key before it gives up.
pub(crate) const MAX_STEPS: usize = 20_000_000;

/// What a client asks of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Op {
    Get,
    Put(Vec<u8>),
    /// The same, to be gone after a while: at least so long it stays. Such a key is not to be incremented.
    PutFor(Vec<u8>, Duration),
    Delete,
    Swap(Option<Version>, Vec<u8>),
    Increment(i64),
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ret {
    Entry(Option<(Vec<u8>, Version)>),
    Written(Version),
    Deleted(bool),
    Conflict(Option<Version>),
    Sum(i64),
    NotAnInteger,
}

/// One operation as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) client: u32,
    pub(crate) op: Op,
    pub(crate) invoked: u64,
    /// When it returned, and what; `None`: that is not known, it is open for ever.
    pub(crate) returned: Option<(u64, Ret)>,
    /// By the clock of the history: when it was invoked and when it returned.
    pub(crate) at: (Duration, Duration),
}

/// What all clients saw, by key.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    keys: BTreeMap<Vec<u8>, Vec<Record>>,
    /// Invocations and returns so far: the order of the history.
    stamp: u64,
    /// Its clock, for keys that expire.
    now: Duration,
}

/// Records a history. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<History>>);

impl Recorder {
    /// Notes that a client is about to ask. A client asks one thing at a time, and takes a new number after an
    /// outcome that it does not know.
    pub(crate) fn invoke(&self, client: u32, key: &[u8], op: Op) -> Pending {
        self.with(|history| {
            let (invoked, now) = (history.tick(), history.now);
            let records = history.keys.entry(key.to_vec()).or_default();
            records.push(Record { client, op, invoked, returned: None, at: (now, Duration::MAX) });
            Pending { recorder: self.clone(), key: key.to_vec(), index: records.len() - 1 }
        })
    }

    /// It is this time now: needed where keys expire.
    pub(crate) fn set_time(&self, now: Duration) {
        self.with(|history| history.now = now);
    }

    /// The history so far; what has not returned is open.
    pub(crate) fn history(&self) -> History {
        self.with(|history| {
            let mut history = history.clone();
            for records in history.keys.values_mut() {
                records.retain(|record| record.invoked != NEVER);
            }
            history
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut History) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Invocation stamp of an operation that is known not to have happened.
const NEVER: u64 = u64::MAX;

impl History {
    fn tick(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }
}

/// An operation that was invoked and has not returned. Dropped, it stays open for ever.
#[derive(Debug)]
#[must_use = "dropped, the operation counts as one whose outcome is unknown"]
pub(crate) struct Pending {
    recorder: Recorder,
    key: Vec<u8>,
    index: usize,
}

impl Pending {
    /// It was answered.
    pub(crate) fn ok(self, ret: Ret) {
        self.edit(|record, stamp, now| {
            record.returned = Some((stamp, ret));
            record.at.1 = now;
        });
    }

    /// It certainly did not happen, and never will.
    pub(crate) fn failed(self) {
        self.edit(|record, _, _| record.invoked = NEVER);
    }

    /// It may have happened, or may happen yet.
    pub(crate) fn unknown(self) {
        drop(self);
    }

    /// It returned to a client of the store.
    pub(crate) fn settle(self, result: Result<Ret, Error>) {
        match result {
            Ok(ret) => self.ok(ret),
            Err(Error::Conflict { version }) => self.ok(Ret::Conflict(version)),
            Err(Error::NotAnInteger) => self.ok(Ret::NotAnInteger),
            Err(error) if error.outcome() == Outcome::NotApplied => self.failed(),
            Err(_) => self.unknown(),
        }
    }

    fn edit(&self, edit: impl FnOnce(&mut Record, u64, Duration)) {
        self.recorder.with(|history| {
            let (stamp, now) = (history.tick(), history.now);
            let records = history.keys.get_mut(&self.key);
            if let Some(record) = records.and_then(|records| records.get_mut(self.index)) {
                edit(record, stamp, now);
            }
        });
    }
}

/// The judgement on a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// No order explains this; the shortest of the failing keys' histories, shortened.
    Violation(Counterexample),
    /// The search took too long for this key.
    GaveUp(Vec<u8>),
}

/// Operations on one key that no order explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counterexample {
    pub(crate) key: Vec<u8>,
    pub(crate) records: Vec<Record>,
}

impl History {
    /// Judges every key.
    pub(crate) fn check(&self) -> Verdict {
        let mut worst: Option<Counterexample> = None;
        let mut gave_up = None;
        for (key, records) in &self.keys {
            match search::is_linearizable(records, MAX_STEPS) {
                Some(true) => {}
                Some(false) => {
                    let records = shorten(records);
                    let shorter = worst.as_ref().is_none_or(|worst| records.len() < worst.records.len());
                    if shorter {
                        let key = key.clone();
                        worst = Some(Counterexample { key, records });
                    }
                }
                None => gave_up = Some(key.clone()),
            }
        }
        match (worst, gave_up) {
            (Some(worst), _) => Verdict::Violation(worst),
            (None, Some(key)) => Verdict::GaveUp(key),
            (None, None) => Verdict::Linearizable,
        }
    }

    /// Number of operations recorded.
    pub(crate) fn len(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }
}

/// Steps for each attempt to shorten: an attempt that takes longer is not worth it.
const SHORTEN_STEPS: usize = 200_000;

/// A history as short as can be that still fails: cut off behind the first return that cannot be explained,
/// then without the answers that are not needed for the contradiction. Only what has no effect may be left out
/// without making a contradiction of its own.
fn shorten(records: &[Record]) -> Vec<Record> {
    let fails = |records: &[Record]| search::is_linearizable(records, SHORTEN_STEPS) == Some(false);
    let mut ends: Vec<u64> =
        records.iter().filter_map(|record| record.returned.as_ref().map(|(at, _)| *at)).collect();
    ends.sort_unstable();
    // A longer prefix of a failing history fails as well.
    let first = ends.partition_point(|end| !fails(&prefix(records, *end)));
    let mut shortest = match ends.get(first) {
        Some(end) => prefix(records, *end),
        None => records.to_vec(),
    };
    let mut at = shortest.len();
    while at > 0 {
        at -= 1;
        let record = &shortest[at];
        // An open operation can only explain more, so it stays.
        let has_no_effect = matches!(
            &record.returned,
            Some((_, Ret::Entry(_) | Ret::Conflict(_) | Ret::NotAnInteger | Ret::Deleted(false)))
        );
        if has_no_effect {
            let left_out = shortest.remove(at);
            if !fails(&shortest) {
                shortest.insert(at, left_out);
            }
        }
    }
    shortest
}

/// What was known at a moment.
fn prefix(records: &[Record], end: u64) -> Vec<Record> {
    records
        .iter()
        .filter(|record| record.invoked <= end)
        .map(|record| {
            let returned = record.returned.clone().filter(|(at, _)| *at <= end);
            let answered = if returned.is_some() { record.at.1 } else { Duration::MAX };
            Record { returned, at: (record.at.0, answered), ..record.clone() }
        })
        .collect()
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.escape_ascii();
        writeln!(f, "no order explains these {} operations on {key}:", self.records.len())?;
        for record in &self.records {
            writeln!(f, "  {record}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.returned.as_ref().map_or_else(|| "...".to_owned(), |(at, _)| at.to_string());
        write!(f, "[{:>6} {end:>6}] client {}: {}", self.invoked, self.client, self.op)?;
        match &self.returned {
            Some((_, ret)) => write!(f, " -> {ret}"),
            None => write!(f, " -> unknown"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get => write!(f, "get"),
            Self::Put(value) => write!(f, "put {}", value.escape_ascii()),
            Self::PutFor(value, life) => write!(f, "put {} for {life:?}", value.escape_ascii()),
            Self::Delete => write!(f, "delete"),
            Self::Swap(expected, value) => {
                write!(f, "swap {} for {}", Place(*expected), value.escape_ascii())
            }
            Self::Increment(by) => write!(f, "increment by {by}"),
        }
    }
}

impl fmt::Display for Ret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(None) => write!(f, "absent"),
            Self::Entry(Some((value, version))) => {
                write!(f, "{} at v{version}", value.escape_ascii())
            }
            Self::Written(version) => write!(f, "v{version}"),
            Self::Deleted(true) => write!(f, "deleted"),
            Self::Deleted(false) => write!(f, "was absent"),
            Self::Conflict(version) => write!(f, "conflict, is {}", Place(*version)),
            Self::Sum(sum) => write!(f, "{sum}"),
            Self::NotAnInteger => write!(f, "not an integer"),
        }
    }
}

/// Where a key is.
struct Place(Option<Version>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(version) => write!(f, "v{version}"),
            None => write!(f, "absent"),
        }
    }
}
