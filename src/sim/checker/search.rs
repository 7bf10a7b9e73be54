//! The search for an order of one key's operations.

use std::collections::HashSet;
use std::time::Duration;

use crate::id::Version;

use super::{Op, Record, Ret};

/// A key, as far as its answers tell.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Model {
    entry: Option<Held>,
    /// The highest version told so far: whatever is written later has a higher one.
    floor: u64,
}

/// What the key holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Held {
    value: Vec<u8>,
    /// If an answer has told it: writes whose answer is unknown, and increments, do not tell theirs. Whoever sees
    /// it next does.
    version: Option<Version>,
    /// From then on it may have expired.
    lives_until: Option<Duration>,
}

impl Model {
    /// The state after the record's operation, if it can be answered like that here; of an open one, if it has an
    /// effect.
    fn step(&self, record: &Record) -> Option<Self> {
        let ret = record.returned.as_ref().map(|(_, ret)| ret);
        let stays = self.answer(record, ret);
        stays.or_else(|| self.expired(record.at.1)?.answer(record, ret))
    }

    /// The state after the key has expired, if it can have by then.
    fn expired(&self, by: Duration) -> Option<Self> {
        let lives_until = self.entry.as_ref()?.lives_until?;
        (lives_until <= by).then(|| self.delete())
    }

    fn answer(&self, record: &Record, ret: Option<&Ret>) -> Option<Self> {
        let op = &record.op;
        match (op, ret) {
            (Op::Get, Some(Ret::Entry(None))) => self.entry.is_none().then(|| self.clone()),
            (Op::Get, Some(Ret::Entry(Some((value, version))))) => {
                if self.entry.as_ref()?.value == *value {
                    self.at(Some(*version))
                } else {
                    None
                }
            }
            (Op::Put(value), Some(Ret::Written(version))) => self.write(value.clone(), Some(*version)),
            (Op::Put(value), None) => self.write(value.clone(), None),
            (Op::PutFor(value, life), Some(Ret::Written(version))) => {
                Some(self.write(value.clone(), Some(*version))?.mortal(record.at.0 + *life))
            }
            (Op::PutFor(value, life), None) => {
                Some(self.write(value.clone(), None)?.mortal(record.at.0 + *life))
            }
            (Op::Delete, Some(Ret::Deleted(existed))) => {
                (self.entry.is_some() == *existed).then(|| self.delete())
            }
            (Op::Delete, None) => self.entry.is_some().then(|| self.delete()),
            (Op::Swap(expected, value), Some(Ret::Written(version))) => {
                self.at(*expected)?.write(value.clone(), Some(*version))
            }
            (Op::Swap(expected, value), None) => self.at(*expected)?.write(value.clone(), None),
            (Op::Swap(expected, _), Some(Ret::Conflict(found))) => {
                if found == expected {
                    None
                } else {
                    self.at(*found)
                }
            }
            (Op::Increment(by), Some(Ret::Sum(sum))) => {
                if self.sum(*by)? == *sum {
                    self.write(sum.to_string().into_bytes(), None)
                } else {
                    None
                }
            }
            (Op::Increment(by), None) => self.write(self.sum(*by)?.to_string().into_bytes(), None),
            (Op::Increment(by), Some(Ret::NotAnInteger)) => self.sum(*by).is_none().then(|| self.clone()),
            // An open read has no effect, and other answers do not belong to the question.
            _ => None,
        }
    }

    /// The same, now that the version is told: possible if it was the same or not told before.
    fn at(&self, version: Option<Version>) -> Option<Self> {
        match (&self.entry, version) {
            (None, None) => Some(self.clone()),
            (Some(Held { version: Some(held), .. }), Some(version)) => {
                (*held == version).then(|| self.clone())
            }
            (Some(Held { value, version: None, lives_until }), Some(version)) => {
                let mut told = self.write(value.clone(), Some(version))?;
                told.entry.as_mut()?.lives_until = *lives_until;
                Some(told)
            }
            _ => None,
        }
    }

    /// The same, but the key may be gone from then on.
    fn mortal(mut self, until: Duration) -> Self {
        if let Some(held) = &mut self.entry {
            held.lives_until = Some(until);
        }
        self
    }

    fn write(&self, value: Vec<u8>, version: Option<Version>) -> Option<Self> {
        let floor = match version {
            Some(version) if version.0 <= self.floor => return None,
            Some(version) => version.0,
            None => self.floor,
        };
        Some(Self { entry: Some(Held { value, version, lives_until: None }), floor })
    }

    fn delete(&self) -> Self {
        Self { entry: None, floor: self.floor }
    }

    fn sum(&self, by: i64) -> Option<i64> {
        match &self.entry {
            None => Some(by),
            Some(Held { value, .. }) => std::str::from_utf8(value).ok()?.parse::<i64>().ok()?.checked_add(by),
        }
    }
}

/// An invocation or return of the operation with an index.
#[derive(Debug, Clone, Copy)]
enum Event {
    Call(usize),
    Return,
}

/// The events of what returned, in their order, as a list from which operations are lifted out and put back.
/// Position 0 is the head.
struct Events {
    kinds: Vec<Event>,
    stamps: Vec<u64>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Of an operation's call, where its return is.
    ends: Vec<usize>,
}

impl Events {
    fn new(records: &[Record]) -> Self {
        let mut all: Vec<(u64, usize, bool)> = Vec::new();
        for (index, record) in records.iter().enumerate() {
            if let Some((at, _)) = &record.returned {
                all.push((record.invoked, index, true));
                all.push((*at, index, false));
            }
        }
        all.sort_unstable_by_key(|(stamp, ..)| *stamp);
        let mut list = Self {
            kinds: vec![Event::Return],
            stamps: vec![0],
            next: (1..=all.len() + 1).collect(),
            previous: (0..=all.len() + 1).map(|position| position.saturating_sub(1)).collect(),
            ends: vec![0; all.len() + 1],
        };
        let mut starts = vec![0; records.len()];
        for (position, (stamp, index, is_call)) in (1..).zip(all) {
            list.stamps.push(stamp);
            list.kinds.push(if is_call {
                starts[index] = position;
                Event::Call(index)
            } else {
                list.ends[starts[index]] = position;
                Event::Return
            });
        }
        list
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn lift(&mut self, start: usize) {
        for position in [start, self.ends[start]] {
            let (previous, next) = (self.previous[position], self.next[position]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    fn put_back(&mut self, start: usize) {
        for position in [self.ends[start], start] {
            let (previous, next) = (self.previous[position], self.next[position]);
            self.next[previous] = position;
            self.previous[next] = position;
        }
    }
}

/// What is tried next.
#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// The event at this position.
    Known(usize),
    /// The open operation with this number, if it was invoked before the stamp.
    Open(usize, u64),
}

/// Of each open operation the open one before it that would do as well in its place: as neither ever ends, only the
/// order of their invocation sets them apart, and the earlier one may come wherever the later one may. So it is tried
/// first, and many operations of unknown outcome do not make the search try each of their subsets.
fn twins(records: &[Record], open: &[usize]) -> Vec<Option<usize>> {
    let seen: HashSet<&[u8]> = records
        .iter()
        .filter_map(|record| match &record.returned {
            Some((_, Ret::Entry(Some((value, _))))) => Some(value.as_slice()),
            _ => None,
        })
        .collect();
    let adds = records.iter().any(|record| matches!(record.op, Op::Increment(_)));
    let (mut deletion, mut unseen) = (None, None);
    let mut twins = vec![None; records.len()];
    for &index in open {
        let last = match &records[index].op {
            Op::Delete => &mut deletion,
            // That something was there, but not what, has told upon others.
            Op::Put(value) if !adds && !seen.contains(value.as_slice()) => &mut unseen,
            _ => continue,
        };
        twins[index] = last.replace(index);
    }
    twins
}

/// Whether an order explains the records of one key; `None`: not found out within `steps`.
pub(super) fn is_linearizable(records: &[Record], steps: usize) -> Option<bool> {
    let mut events = Events::new(records);
    let mut open: Vec<usize> =
        (0..records.len()).filter(|index| records[*index].returned.is_none()).collect();
    open.sort_unstable_by_key(|index| records[*index].invoked);
    let twins = twins(records, &open);
    let mut missing = records.len() - open.len();
    let mut done = vec![0u64; records.len().div_ceil(64)];
    let mut model = Model::default();
    let mut visited = HashSet::new();
    let mut trail: Vec<(Cursor, Model)> = Vec::new();
    let mut cursor = Cursor::Known(events.first());
    for _ in 0..steps {
        if missing == 0 {
            return Some(true);
        }
        let candidate = match cursor {
            Cursor::Known(position) => match events.kinds[position] {
                Event::Call(index) => Some(index),
                // Nothing that begins behind this return can come before it.
                Event::Return => {
                    cursor = Cursor::Open(0, events.stamps[position]);
                    continue;
                }
            },
            Cursor::Open(number, before) => {
                open.get(number).copied().filter(|index| records[*index].invoked < before)
            }
        };
        let Some(index) = candidate else {
            // All has been tried from here: take the last choice back.
            let Some((choice, before)) = trail.pop() else {
                return Some(false);
            };
            model = before;
            let index = match choice {
                Cursor::Known(position) => {
                    events.put_back(position);
                    missing += 1;
                    match events.kinds[position] {
                        Event::Call(index) => index,
                        Event::Return => unreachable!("returns are no choices"),
                    }
                }
                Cursor::Open(number, _) => open[number],
            };
            done[index / 64] &= !(1 << (index % 64));
            cursor = behind(choice, &events);
            continue;
        };
        let record = &records[index];
        let bit = 1 << (index % 64);
        let is_done = |index: usize| done[index / 64] & (1 << (index % 64)) != 0;
        let may_come = !is_done(index) && twins[index].is_none_or(is_done);
        if may_come && let Some(after) = model.step(record) {
            done[index / 64] |= bit;
            if visited.insert((done.clone(), after.clone())) {
                trail.push((cursor, std::mem::replace(&mut model, after)));
                if let Cursor::Known(position) = cursor {
                    events.lift(position);
                    missing -= 1;
                }
                cursor = Cursor::Known(events.first());
                continue;
            }
            done[index / 64] &= !bit;
        }
        cursor = behind(cursor, &events);
    }
    None
}

fn behind(cursor: Cursor, events: &Events) -> Cursor {
    match cursor {
        Cursor::Known(position) => Cursor::Known(events.next[position]),
        Cursor::Open(number, before) => Cursor::Open(number + 1, before),
    }
}

/// The same by trying every order: what the search is measured against.
#[cfg(test)]
pub(super) fn tries_every_order(records: &[Record]) -> bool {
    fn go(records: &[Record], done: &mut [bool], model: &Model) -> bool {
        let undone = || (0..records.len()).filter(|index| !done[*index]);
        let Some(first_return) =
            undone().filter_map(|index| records[index].returned.as_ref()).map(|(at, _)| *at).min()
        else {
            return true;
        };
        let candidates: Vec<usize> =
            undone().filter(|index| records[*index].invoked < first_return).collect();
        candidates.into_iter().any(|index| {
            let record = &records[index];
            let Some(after) = model.step(record) else {
                return false;
            };
            done[index] = true;
            let found = go(records, done, &after);
            done[index] = false;
            found
        })
    }
    go(records, &mut vec![false; records.len()], &Model::default())
}
