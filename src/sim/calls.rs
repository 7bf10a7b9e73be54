//! What a client does with one operation, from the first attempt to its answer or its deadline: the rules of
//! `client::call`, without tasks. Every copy of a write carries the same number.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::world::{Alarm, CallId, World};
use crate::id::{NodeId, PartitionId};
use crate::state_machine::{Answer, Operation, Origin, Query, Reply, Watch};
use crate::time::Timestamp;
use crate::wire::{Consistency, Refusal, Request, Response};

/// Longest wait for the answer to one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Without a quorum for so long, a client gives up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest that a client tries.
const DEADLINE: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    Write(Operation, Origin),
    Read(Query),
    Wait(Watch, Duration),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    Reply(Reply),
    Answer(Answer),
    /// Of a wait: nothing has changed.
    Unchanged,
    /// It certainly did not happen.
    Failed,
    /// It may have happened, or may happen yet.
    Unknown,
}

/// A call that is open.
#[derive(Debug)]
struct Call {
    ask: Ask,
    partition: PartitionId,
    anchor: Option<NodeId>,
    /// Whom to ask first, whoever leads.
    first: Option<NodeId>,
    deadline: Timestamp,
    attempt: u32,
    asked: Option<NodeId>,
    /// An attempt left and was not answered.
    maybe: bool,
    no_quorum_since: Option<Timestamp>,
    hops: u32,
}

/// All calls of all clients, and what they have learned about leaders.
#[derive(Debug, Default)]
pub(super) struct Calls {
    open: BTreeMap<u64, Call>,
    next: u64,
    leaders: BTreeMap<PartitionId, NodeId>,
}

impl Calls {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Begins a call for a client that sits beside `anchor`.
    pub(super) fn begin(
        &mut self,
        world: &mut World,
        partition: PartitionId,
        ask: Ask,
        anchor: Option<NodeId>,
    ) -> u64 {
        self.begin_at(world, partition, ask, anchor, None)
    }

    /// The same for a client that asks the node beside it first.
    pub(super) fn begin_beside(
        &mut self,
        world: &mut World,
        partition: PartitionId,
        ask: Ask,
        node: Option<NodeId>,
    ) -> u64 {
        self.begin_at(world, partition, ask, node, node)
    }

    fn begin_at(
        &mut self,
        world: &mut World,
        partition: PartitionId,
        ask: Ask,
        anchor: Option<NodeId>,
        first: Option<NodeId>,
    ) -> u64 {
        let call = self.next;
        self.next += 1;
        let extra = if let Ask::Wait(_, wait) = &ask { *wait } else { Duration::ZERO };
        let open = Call {
            ask,
            partition,
            anchor,
            first,
            deadline: world.now + DEADLINE + extra,
            attempt: 0,
            asked: None,
            maybe: false,
            no_quorum_since: None,
            hops: 0,
        };
        self.open.insert(call, open);
        self.attempt(world, call);
        call
    }

    fn attempt(&mut self, world: &mut World, call: u64) {
        let Some(open) = self.open.get_mut(&call) else { return };
        open.attempt += 1;
        let id = CallId { call, attempt: open.attempt };
        let reached: Vec<NodeId> =
            world.up().into_iter().filter(|node| world.reaches(open.anchor, *node)).collect();
        let leader = self.leaders.get(&open.partition).copied();
        // Now and then not by what is known, so that nodes have something to pass on.
        let known = leader.filter(|leader| reached.contains(leader) && world.rng.random_bool(0.9));
        let first = open.first.take().filter(|first| reached.contains(first));
        let Some(node) = first.or(known).or_else(|| reached.choose(&mut world.rng).copied()) else {
            return rest(world, call);
        };
        open.asked = Some(node);
        let swarm = world.swarm_of(node);
        let partition = open.partition;
        let mut patience = ATTEMPT_TIMEOUT;
        let request = match open.ask.clone() {
            Ask::Write(operation, origin) => {
                Request::Write { swarm, partition, origin, operation, forwarded: false }
            }
            Ask::Read(query) => {
                let consistency = Consistency::Linearizable;
                Request::Read { swarm, partition, consistency, query, forwarded: false }
            }
            Ask::Wait(watch, wait) => {
                patience += wait;
                let timeout_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
                Request::Wait { swarm, partition, watch, timeout_ms, forwarded: false }
            }
        };
        world.ask(node, id, request);
        world.alarm(patience, Alarm::Attempt(id));
    }

    /// A pause is over: another attempt, or the end.
    pub(super) fn retry(&mut self, world: &mut World, call: u64) -> Option<Done> {
        let open = self.open.get_mut(&call)?;
        let hopeless = open.no_quorum_since.is_some_and(|since| world.now.since(since) >= PATIENCE);
        if world.now >= open.deadline || (hopeless && !open.maybe) {
            return self.end(call);
        }
        open.hops = 0;
        self.attempt(world, call);
        None
    }

    fn end(&mut self, call: u64) -> Option<Done> {
        let open = self.open.remove(&call)?;
        let is_write = matches!(open.ask, Ask::Write(..));
        Some(if open.maybe && is_write { Done::Unknown } else { Done::Failed })
    }

    /// An attempt takes too long.
    pub(super) fn timed_out(&mut self, world: &mut World, id: CallId) {
        if let Some(open) = self.open.get_mut(&id.call).filter(|open| open.attempt == id.attempt) {
            open.maybe = true;
            self.forget_leader(id.call);
            // So that a late answer to this attempt is not heard.
            if let Some(open) = self.open.get_mut(&id.call) {
                open.attempt += 1;
            }
            rest(world, id.call);
        }
    }

    fn forget_leader(&mut self, call: u64) {
        if let Some(open) = self.open.get(&call)
            && self.leaders.get(&open.partition) == open.asked.as_ref()
        {
            self.leaders.remove(&open.partition);
        }
    }

    /// A response has come; what came of the call, if it is over.
    pub(super) fn answered(
        &mut self,
        world: &mut World,
        id: CallId,
        response: Option<Response>,
    ) -> Option<Done> {
        let open = self.open.get_mut(&id.call).filter(|open| open.attempt == id.attempt)?;
        if let (Some(anchor), Some(node)) = (open.anchor, open.asked)
            && !world.reaches(Some(anchor), node)
        {
            // It does not get through to the client.
            return None;
        }
        open.attempt += 1;
        let done = match response {
            Some(Response::Reply(reply)) => Done::Reply(reply),
            Some(Response::Answer { answer, stale: false }) => Done::Answer(answer),
            Some(Response::Unchanged) => Done::Unchanged,
            Some(Response::Refused(refusal)) => return self.refused(world, id.call, refusal),
            // Lost, or not known.
            _ => {
                open.maybe = true;
                open.no_quorum_since = None;
                self.forget_leader(id.call);
                rest(world, id.call);
                return None;
            }
        };
        if let Some(node) = open.asked
            && world.core(node).is_some()
        {
            self.leaders.entry(open.partition).or_insert(node);
        }
        self.open.remove(&id.call);
        Some(done)
    }

    fn refused(&mut self, world: &mut World, call: u64, refusal: Refusal) -> Option<Done> {
        let open = self.open.get_mut(&call)?;
        match refusal {
            Refusal::NotLeader { leader: Some(leader) } if open.hops < 4 => {
                open.hops += 1;
                self.leaders.insert(open.partition, leader);
                self.attempt(world, call);
            }
            Refusal::StorageFull | Refusal::BadRequest(_) => return self.end(call),
            refusal => {
                if matches!(refusal, Refusal::NoQuorum | Refusal::NotLeader { .. }) {
                    open.no_quorum_since.get_or_insert(world.now);
                }
                self.forget_leader(call);
                rest(world, call);
            }
        }
        None
    }
}

/// A while before the next attempt.
fn rest(world: &mut World, call: u64) {
    let pause = world.ms(5, 100);
    world.alarm(pause, Alarm::Retry(call));
}
