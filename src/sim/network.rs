//! The simulated network between nodes.
//!
//! **Model.** Each pair of nodes has at most one link, and a link has two lanes in each direction, as real links
//! have: one for messages, one for requests and their responses. A lane is an ordered reliable stream: what goes
//! over it arrives once, whole and in order, late, or not at all because the link broke first. Between the lanes
//! there is no order. A direction that is *blocked* holds what is on its way until it is free again or until the
//! receiver, which hears nothing, gives up the link. Messages, but not requests, may also be lost alone, as a full
//! queue loses them.
//!
//! In an *unruly* network the groups' messages are duplicated and overtake each other as well. No link does that;
//! consensus must not need to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::id::NodeId;
use crate::time::Timestamp;
use crate::wire::{Message, Request, Response};

/// What a node that hears nothing waits before it gives up a link: least and most, in milliseconds.
pub(in crate::node) const SILENCE_MS: (u64, u64) = (2_000, 2_300);

/// Of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum Lane {
    Messages,
    Requests,
}

/// What travels.
#[derive(Debug, Clone)]
pub(in crate::node) enum Parcel {
    Message(Message),
    /// A request that its first node passed on, by the first node's tag.
    Request {
        tag: u64,
        request: Request,
    },
    /// The answer to it.
    Response {
        tag: u64,
        response: Response,
    },
}

/// How the links of a world are.
#[derive(Debug, Clone)]
pub(in crate::node) struct Weather {
    /// Microseconds that a parcel takes, least and most.
    pub(in crate::node) latency_us: (u64, u64),
    /// Share of the messages that a full queue loses.
    pub(in crate::node) loss: f64,
    /// Share of parcels that take up to a hundred times as long, and hold up those behind them.
    pub(in crate::node) straggling: f64,
    /// Groups' messages may come twice and overtake each other.
    pub(in crate::node) unruly: bool,
}

impl Weather {
    pub(in crate::node) fn fair() -> Self {
        Self { latency_us: (80, 600), loss: 0.0, straggling: 0.0, unruly: false }
    }

    /// As good as it gets for long: now and then something is late.
    pub(in crate::node) fn usual() -> Self {
        Self { straggling: 0.001, ..Self::fair() }
    }
}

#[derive(Debug, Default)]
struct Stream {
    parcels: VecDeque<(Timestamp, Parcel)>,
    /// Nothing is delivered before: the lane was blocked until shortly before.
    held_until: Timestamp,
}

#[derive(Debug)]
pub(in crate::node) struct Network {
    pub(in crate::node) weather: Weather,
    /// Directed: nothing gets from the first to the second.
    blocked: BTreeSet<(NodeId, NodeId)>,
    /// Links that stand, by their smaller and larger end, each with a number of its own.
    links: BTreeMap<(NodeId, NodeId), u64>,
    epochs: u64,
    streams: BTreeMap<(NodeId, NodeId, Lane), Stream>,
}

impl Network {
    pub(in crate::node) fn new() -> Self {
        Self {
            weather: Weather::fair(),
            blocked: BTreeSet::new(),
            links: BTreeMap::new(),
            epochs: 0,
            streams: BTreeMap::new(),
        }
    }

    fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
        if a < b { (a, b) } else { (b, a) }
    }

    /// The number of the link between the two, if there is one.
    pub(in crate::node) fn link(&self, a: NodeId, b: NodeId) -> Option<u64> {
        self.links.get(&Self::pair(a, b)).copied()
    }

    pub(in crate::node) fn is_blocked(&self, from: NodeId, to: NodeId) -> bool {
        self.blocked.contains(&(from, to))
    }

    pub(in crate::node) fn block(&mut self, from: NodeId, to: NodeId) -> bool {
        self.blocked.insert((from, to))
    }

    /// Frees every direction; returns the lanes on which something may be due.
    pub(in crate::node) fn unblock_all(
        &mut self,
        now: Timestamp,
        rng: &mut StdRng,
    ) -> Vec<(NodeId, NodeId, Lane)> {
        let mut freed = Vec::new();
        for (from, to) in std::mem::take(&mut self.blocked) {
            // TCP has long been trying less and less often.
            let pause = Duration::from_millis(rng.random_range(1..400));
            for lane in [Lane::Messages, Lane::Requests] {
                if let Some(stream) = self.streams.get_mut(&(from, to, lane)) {
                    stream.held_until = now + pause;
                    freed.push((from, to, lane));
                }
            }
        }
        freed
    }

    /// Makes a link; its number.
    pub(in crate::node) fn connect(&mut self, a: NodeId, b: NodeId) -> u64 {
        self.epochs += 1;
        self.links.insert(Self::pair(a, b), self.epochs);
        self.epochs
    }

    /// The link is no more, and what was on its way is lost.
    pub(in crate::node) fn disconnect(&mut self, a: NodeId, b: NodeId) -> Option<u64> {
        let epoch = self.links.remove(&Self::pair(a, b))?;
        for (from, to) in [(a, b), (b, a)] {
            for lane in [Lane::Messages, Lane::Requests] {
                self.streams.remove(&(from, to, lane));
            }
        }
        Some(epoch)
    }

    /// All that a node is linked with.
    pub(in crate::node) fn peers(&self, node: NodeId) -> Vec<NodeId> {
        let other = |(a, b): &(NodeId, NodeId)| match node {
            _ if *a == node => Some(*b),
            _ if *b == node => Some(*a),
            _ => None,
        };
        self.links.keys().filter_map(other).collect()
    }

    /// Puts a parcel on its way; returns when something may be due at the other end.
    pub(in crate::node) fn send(
        &mut self,
        from: NodeId,
        to: NodeId,
        parcel: Parcel,
        now: Timestamp,
        rng: &mut StdRng,
    ) -> Option<(Lane, Timestamp)> {
        self.link(from, to)?;
        let lane = match parcel {
            Parcel::Message(_) => Lane::Messages,
            Parcel::Request { .. } | Parcel::Response { .. } => Lane::Requests,
        };
        let weather = self.weather.clone();
        if lane == Lane::Messages && rng.random_bool(weather.loss) {
            return None;
        }
        let mut latency = rng.random_range(weather.latency_us.0..=weather.latency_us.1);
        if rng.random_bool(weather.straggling) {
            latency *= rng.random_range(2..100);
        }
        let due = now + Duration::from_micros(latency);
        let stream = self.streams.entry((from, to, lane)).or_default();
        let overtakes = weather.unruly && matches!(parcel, Parcel::Message(Message::Groups { .. }));
        if overtakes && rng.random_bool(0.02) {
            stream.parcels.push_back((due, parcel.clone()));
        }
        stream.parcels.push_back((due, parcel));
        let last = stream.parcels.len() - 1;
        if overtakes && last > 0 && rng.random_bool(0.02) {
            let earlier = rng.random_range(0..last);
            let (first, second) = (stream.parcels[earlier].1.clone(), stream.parcels[last].1.clone());
            if matches!(first, Parcel::Message(Message::Groups { .. })) {
                stream.parcels[earlier].1 = second;
                stream.parcels[last].1 = first;
            }
        }
        Some((lane, due))
    }

    /// The next parcel of a lane, if it is due and gets through. Otherwise when to look again, if that is known.
    pub(in crate::node) fn receive(
        &mut self,
        from: NodeId,
        to: NodeId,
        lane: Lane,
        now: Timestamp,
    ) -> Result<Parcel, Option<Timestamp>> {
        if self.is_blocked(from, to) {
            return Err(None);
        }
        let Some(stream) = self.streams.get_mut(&(from, to, lane)) else { return Err(None) };
        let due = stream.parcels.front().map(|(due, _)| (*due).max(stream.held_until));
        match due {
            Some(due) if due <= now => match stream.parcels.pop_front() {
                Some((_, parcel)) => Ok(parcel),
                None => Err(None),
            },
            due => Err(due),
        }
    }
}
