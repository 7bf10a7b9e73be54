//! Clients of the store: each does one thing at a time and remembers what it was told.
//!
//! Kinds of keys: registers (put, get, delete), swapped ones (compare-and-swap, get), counters (increment, get),
//! brief ones (put with a time to live, get), and a set, whose elements are keys of their own, spread over all
//! partitions.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::calls::{Ask, Calls, Done};
use super::checker::set::Added;
use super::checker::{Op, Pending, Recorder, Ret};
use super::world::{Alarm, MAX_GAIN_PPM, World};
use crate::client::Error;
use crate::id::{NodeId, PartitionId, SessionId, Version};
use crate::state_machine::{Answer, Operation, Origin, Query, Reply};

/// How many there are.
const CLIENTS: usize = 8;
/// And so many more that only read, each time beside another node, most often the leader that was cut off lately, if
/// there is one: it must not answer with what is old.
const READERS: usize = 4;
/// How often a reader is with that leader then, and another client writes what it led.
const DRAWN_TO_DEPOSED: f64 = 0.7;
pub(super) const REGISTERS: [&str; 4] = ["r0", "r1", "r2", "r3"];
const SWAPPED: [&str; 2] = ["s0", "s1"];
const COUNTERS: [&str; 3] = ["n0", "n1", "n2"];
const BRIEF: [&str; 2] = ["b0", "b1"];
/// What every element of the set begins with.
pub(super) const ELEMENT: &str = "e.";

#[derive(Debug)]
enum Doing {
    Key { pending: Pending, key: String, reads: bool },
    Element(Vec<u8>),
}

#[derive(Debug)]
struct Client {
    session: SessionId,
    /// The next number of its writes, by partition.
    sequences: BTreeMap<PartitionId, u64>,
    /// Its name in the history; another one after each outcome that it does not know.
    name: u32,
    anchor: Option<NodeId>,
    doing: Option<Doing>,
    /// Of keys that are swapped, the version seen last.
    seen: BTreeMap<String, Option<Version>>,
}

/// All clients, and the history that they make.
#[derive(Debug)]
pub(super) struct Clients {
    all: Vec<Client>,
    /// Whose call it is.
    by_call: BTreeMap<u64, usize>,
    pub(super) recorder: Recorder,
    pub(super) elements: BTreeMap<Vec<u8>, Added>,
    /// Values are told apart by this.
    number: u64,
    names: u32,
    /// Milliseconds of thought between two operations, at most.
    think_ms: u64,
    is_closing: bool,
    pub(super) completed: u64,
    pub(super) unknown: u64,
    pub(super) failed: u64,
}

impl Clients {
    /// Some sit beside a node and share its fate when the network is cut, others reach all that is up.
    pub(super) fn new(world: &mut World, nodes: &[NodeId], think_ms: u64) -> Self {
        let mut all = Vec::new();
        for number in 0..CLIENTS + READERS {
            let anchor = if number % 2 == 0 { nodes.choose(&mut world.rng).copied() } else { None };
            all.push(Client {
                session: SessionId(world.rng.random()),
                sequences: BTreeMap::new(),
                name: u32::try_from(number).unwrap_or(u32::MAX),
                anchor,
                doing: None,
                seen: BTreeMap::new(),
            });
            world.alarm(Duration::from_millis(number as u64), Alarm::Client(number));
        }
        Self {
            all,
            by_call: BTreeMap::new(),
            recorder: Recorder::default(),
            elements: BTreeMap::new(),
            number: 0,
            names: 1000,
            think_ms,
            is_closing: false,
            completed: 0,
            unknown: 0,
            failed: 0,
        }
    }

    /// Nothing new is begun.
    pub(super) fn close(&mut self) {
        self.is_closing = true;
    }

    pub(super) fn owns(&self, call: u64) -> bool {
        self.by_call.contains_key(&call)
    }

    /// A client has thought and does something.
    pub(super) fn act(&mut self, world: &mut World, calls: &mut Calls, index: usize) {
        if self.is_closing {
            return;
        }
        self.recorder.set_time(Duration::from_micros(world.now.as_micros()));
        self.number += 1;
        let number = self.number;
        let drawn = world.deposed.filter(|_| world.rng.random_bool(DRAWN_TO_DEPOSED));
        let (key, op, operation) = self.draw(world, index, number, drawn.map(|(_, led)| led));
        let client = &mut self.all[index];
        if index >= CLIENTS {
            let somewhere = world.up().choose(&mut world.rng).copied();
            client.anchor = drawn.map(|(leader, _)| leader).or(somewhere);
        }
        let partition = world.partition_of(key.as_bytes());
        let ask = match operation {
            Some(operation) => {
                let next = client.sequences.entry(partition).or_default();
                let sequence = *next;
                *next += 1;
                let origin = Origin { session: client.session, sequence, settled_below: sequence };
                Ask::Write(operation, origin)
            }
            None => Ask::Read(Query::Get { key: key.clone().into_bytes() }),
        };
        client.doing = Some(match op {
            Some(op) => {
                let reads = op == Op::Get;
                Doing::Key { pending: self.recorder.invoke(client.name, key.as_bytes(), op), key, reads }
            }
            None => Doing::Element(key.into_bytes()),
        });
        let call = if index >= CLIENTS {
            calls.begin_beside(world, partition, ask, client.anchor)
        } else {
            calls.begin(world, partition, ask, client.anchor)
        };
        self.by_call.insert(call, index);
    }

    /// The key, the operation as the history knows it (of an element: `None`), and what is written (`None`: a read).
    fn draw(
        &mut self,
        world: &mut World,
        index: usize,
        number: u64,
        led: Option<&str>,
    ) -> (String, Option<Op>, Option<Operation>) {
        let rng = &mut world.rng;
        let value = number.to_string().into_bytes();
        let mut pick = |keys: &[&str]| keys.choose(rng).copied().unwrap_or_default().to_owned();
        let (register, swapped, counter, brief) =
            (pick(&REGISTERS), pick(&SWAPPED), pick(&COUNTERS), pick(&BRIEF));
        let bytes = |key: &str| key.as_bytes().to_vec();
        let register = led.map_or(register, str::to_owned);
        if index >= CLIENTS {
            return (register, Some(Op::Get), None);
        }
        if led.is_some() {
            let operation = Operation::Put { key: bytes(&register), value: value.clone(), ttl_ms: None };
            return (register, Some(Op::Put(value)), Some(operation));
        }
        match rng.random_range(0..100) {
            0..14 => (register, Some(Op::Get), None),
            14..26 => {
                let operation = Operation::Put { key: bytes(&register), value: value.clone(), ttl_ms: None };
                (register, Some(Op::Put(value)), Some(operation))
            }
            26..30 => {
                let operation = Operation::Delete { key: bytes(&register) };
                (register, Some(Op::Delete), Some(operation))
            }
            30..36 => (swapped, Some(Op::Get), None),
            36..46 => {
                let expected = self.all[index].seen.get(&swapped).copied().flatten();
                let key = bytes(&swapped);
                let operation =
                    Operation::CompareAndSwap { key, expected, value: value.clone(), ttl_ms: None };
                (swapped, Some(Op::Swap(expected, value)), Some(operation))
            }
            46..62 => {
                let by = rng.random_range(1..1000);
                let operation = Operation::Increment { key: bytes(&counter), by };
                (counter, Some(Op::Increment(by)), Some(operation))
            }
            62..68 => (counter, Some(Op::Get), None),
            68..76 => (brief, Some(Op::Get), None),
            76..84 => {
                let ttl_ms = rng.random_range(200..1500);
                let operation =
                    Operation::Put { key: bytes(&brief), value: value.clone(), ttl_ms: Some(ttl_ms) };
                (brief, Some(Op::PutFor(value, least_life(ttl_ms))), Some(operation))
            }
            _ => {
                let key = format!("{ELEMENT}{number}");
                let operation = Operation::Put { key: bytes(&key), value, ttl_ms: None };
                (key, None, Some(operation))
            }
        }
    }

    /// A call of one of them is over.
    pub(super) fn done(&mut self, world: &mut World, call: u64, done: Done) {
        let Some(index) = self.by_call.remove(&call) else { return };
        self.recorder.set_time(Duration::from_micros(world.now.as_micros()));
        let result = told(done);
        match &result {
            Ok(_) => self.completed += 1,
            Err(Error::Unknown) => self.unknown += 1,
            Err(_) => self.failed += 1,
        }
        let client = &mut self.all[index];
        match client.doing.take() {
            Some(Doing::Key { pending, key, reads }) => {
                match &result {
                    Ok(Ret::Entry(entry)) => {
                        client.seen.insert(key, entry.as_ref().map(|(_, version)| *version));
                    }
                    Ok(Ret::Written(version)) => drop(client.seen.insert(key, Some(*version))),
                    Ok(Ret::Conflict(version)) => drop(client.seen.insert(key, *version)),
                    _ => {}
                }
                if matches!(result, Err(Error::Unknown)) {
                    self.names += 1;
                    client.name = self.names;
                }
                // A read that was not answered happened nowhere.
                pending.settle(if reads { result.map_err(|_| Error::NoQuorum) } else { result });
            }
            Some(Doing::Element(element)) => {
                let added = match result {
                    Ok(_) => Added::Surely,
                    Err(Error::Unknown) => Added::Perhaps,
                    Err(_) => Added::Never,
                };
                self.elements.insert(element, added);
            }
            None => {}
        }
        let think = world.ms(1, self.think_ms);
        world.alarm(think, Alarm::Client(index));
    }
}

/// What a client of the library would have been told.
fn told(done: Done) -> Result<Ret, Error> {
    Ok(match done {
        Done::Reply(Reply::Written { version }) => Ret::Written(version),
        Done::Reply(Reply::Deleted { existed }) => Ret::Deleted(existed),
        Done::Reply(Reply::Incremented { value, .. }) => Ret::Sum(value),
        Done::Reply(Reply::Conflict { version }) => Ret::Conflict(version),
        Done::Answer(Answer::Entry(entry)) => Ret::Entry(entry.map(|entry| (entry.value, entry.version))),
        Done::Unknown => return Err(Error::Unknown),
        _ => return Err(Error::NoQuorum),
    })
}

/// The shortest time for which a key that was put for so long must be there: the clock of whoever leads may be fast,
/// and a partition's time is in whole milliseconds.
fn least_life(ttl_ms: u64) -> Duration {
    let fast = u64::try_from(1_000_000 + MAX_GAIN_PPM).unwrap_or(u64::MAX);
    Duration::from_micros((ttl_ms * 1000 * 1_000_000 / fast).saturating_sub(2_000))
}
