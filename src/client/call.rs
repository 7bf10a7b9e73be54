//! One operation, from the first attempt to its answer or its deadline.
//!
//! **Rules.** What was refused is tried again, at another node at once or after a pause. What left without an
//! answer is tried again too, a write under the same number, so that it happens once. Only the deadline ends
//! this, or a partition that has no quorum for longer than a failover takes. At the end the error says whether
//! the write may have been applied: as soon as one attempt of it was lost, no later refusal can deny that.
//!
//! Every attempt names the swarm that it is meant for, and is refused by a node of another. If the swarm has
//! dissolved, a write that may have been applied there ends as unknown; any other goes to the next swarm.

use std::time::Duration;

use rand::RngExt;

use super::error::Error;
use super::lock;
use super::outbox::Outbox;
use super::router::{Asked, Target, partition_of};
use super::session::InFlight;
use super::{Client, Entry};
use crate::id::{NodeId, PartitionId, SessionId, SwarmId};
use crate::state_machine::{Answer, Operation, Origin, Query, Reply, Watch};
use crate::time::Timestamp;
use crate::wire::{MAX_WAIT_MS, Refusal, Request, Response, Rpc, RpcError, SwarmView};

/// Longest wait for the answer to the first attempt: a node that fell silent must not eat the whole deadline.
/// Doubles with each attempt that was lost, so that a large value gets through a slow link.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest single wait for a change, so that a leader that fell silent costs no more.
const WAIT_SLICE: Duration = Duration::from_secs(5);
/// First pause before trying again; doubles up to [`MAX_PAUSE`], less a random part.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause before trying again.
const MAX_PAUSE: Duration = Duration::from_millis(200);
/// Nodes tried in one round, without a pause between.
const MAX_HOPS: u32 = 4;

const _: () = assert!(WAIT_SLICE.as_millis() <= MAX_WAIT_MS as u128);

/// No session: what is changed in its name may be changed again.
const NOBODY: Origin = Origin { session: SessionId(0), sequence: 0, settled_below: 0 };

/// What to do.
pub(super) enum Action {
    Write(Operation),
    /// A question about one key or lock.
    Ask {
        query: Query,
    },
    /// A question about a partition.
    Scan {
        place: Place,
        query: Query,
    },
    /// A change of a partition as a whole, which may be repeated at will: whoever asks for it need not know whether
    /// one that failed was applied, and is told why it failed instead.
    WritePartition {
        place: Place,
        operation: Operation,
    },
    Export {
        place: Place,
    },
    Wait(Watch),
}

impl Action {
    fn is_write(&self) -> bool {
        matches!(self, Self::Write(_) | Self::WritePartition { .. })
    }
}

/// A partition of a certain swarm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) swarm: SwarmId,
    pub(super) partition: PartitionId,
}

/// What came of it.
pub(super) enum Outcome {
    Reply(Reply),
    Answer(Answer),
    Exported { node: NodeId, export: u64, bytes: u64 },
    Unchanged,
}

impl Outcome {
    pub(super) fn entry(self) -> Result<Option<Entry>, Error> {
        match self {
            Self::Answer(Answer::Entry(entry)) => Ok(entry),
            Self::Unchanged => Ok(None),
            Self::Reply(_) | Self::Answer(_) | Self::Exported { .. } => Err(unexpected()),
        }
    }
}

/// The answer to something else: a node that does not speak our protocol after all.
pub(super) fn unexpected() -> Error {
    Error::Refused("the node answered something else than was asked".to_owned())
}

/// What to do after an attempt.
enum Next {
    Done(Outcome),
    Fail(Error),
    /// Ask another node at once.
    Hop,
    /// Ask again after a pause.
    Pause,
}

/// The state of one operation.
pub(super) struct Call<'a, R> {
    client: &'a Client<R>,
    action: Action,
    deadline: Timestamp,
    /// Where the last attempt went.
    swarm: Option<SwarmId>,
    asked: Asked,
    attempt_timeout: Duration,
    pause: Duration,
    /// The view that is known may be the cause of the failure.
    doubts: bool,
    /// Since when nodes have said that there is no quorum.
    no_quorum_since: Option<Timestamp>,
    /// Since when no node could say whom to ask.
    no_leader_since: Option<Timestamp>,
    /// The last definite failure; what is reported at the deadline.
    last: Error,
    in_flight: Option<InFlight>,
    /// A write left and was not answered.
    maybe_applied: bool,
    /// A wait was told that nothing changed.
    heard: bool,
    /// Where the first attempt is left for the node, to travel with others; `None`: it is sent alone.
    outbox: Option<&'a Outbox>,
}

impl<'a, R: Rpc> Call<'a, R> {
    pub(super) fn new(client: &'a Client<R>, action: Action) -> Self {
        Self {
            client,
            action,
            deadline: client.now() + client.deadline,
            swarm: None,
            asked: Asked::default(),
            attempt_timeout: ATTEMPT_TIMEOUT,
            pause: MIN_PAUSE,
            doubts: false,
            no_quorum_since: None,
            no_leader_since: None,
            last: Error::Unreachable,
            in_flight: None,
            maybe_applied: false,
            heard: false,
            outbox: None,
        }
    }

    /// Lets its first attempt travel with others, and wait no longer than `attempt_timeout` for its answer.
    pub(super) fn through(self, outbox: &'a Outbox, attempt_timeout: Duration) -> Self {
        Self { outbox: Some(outbox), attempt_timeout, ..self }
    }

    pub(super) async fn run(mut self) -> Result<Outcome, Error> {
        loop {
            let mut hops = 0;
            // One round: several nodes without a pause.
            loop {
                match self.attempt().await {
                    Next::Done(outcome) => return Ok(outcome),
                    Next::Fail(_) if self.maybe_applied => return Err(Error::Unknown),
                    Next::Fail(error) => return Err(error),
                    Next::Pause => break,
                    Next::Hop => hops += 1,
                }
                if hops >= MAX_HOPS || self.remaining().is_zero() {
                    break;
                }
            }
            if self.is_hopeless() || self.remaining().is_zero() {
                return self.give_up();
            }
            self.rest().await;
        }
    }

    fn remaining(&self) -> Duration {
        self.deadline.since(self.client.now())
    }

    /// Whether there was no quorum for so long that it is no failover. A node that knows no leader may only be
    /// late: it is given twice the time that is given to one that knows that there is no quorum.
    fn is_hopeless(&self) -> bool {
        let now = self.client.now();
        let patience = self.client.patience;
        let is_over = |since: Option<Timestamp>, limit| since.is_some_and(|since| now.since(since) >= limit);
        !self.maybe_applied
            && (is_over(self.no_quorum_since, patience) || is_over(self.no_leader_since, patience * 2))
    }

    /// Somebody who might serve the partition was reached.
    fn hope(&mut self) {
        self.no_quorum_since = None;
        self.no_leader_since = None;
    }

    fn give_up(self) -> Result<Outcome, Error> {
        match self.action {
            _ if self.maybe_applied => Err(Error::Unknown),
            // Of a wait, the deadline is the expected end.
            Action::Wait(_) if self.heard => Ok(Outcome::Unchanged),
            _ => Err(self.last),
        }
    }

    async fn rest(&mut self) {
        let jitter = lock(&self.client.shared.router.rng).random_range(0.5..1.0);
        let pause = self.pause.mul_f64(jitter).min(self.remaining());
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        self.asked.tried.clear();
    }

    async fn attempt(&mut self) -> Next {
        let router = &self.client.shared.router;
        let known = match router.trusted() {
            Some(view) if !self.doubts => Some(view),
            // Bounded by the deadline, however many calls want a view.
            _ => tokio::time::timeout(self.remaining(), router.refresh()).await.ok().flatten(),
        };
        self.doubts = false;
        let Some(view) = known else {
            self.last = Error::Unreachable;
            return Next::Pause;
        };
        let partition = match &self.action {
            Action::Write(operation) => match operation.key() {
                Some(key) => partition_of(key, &view),
                None => return Next::Fail(Error::Refused("not a client's operation".to_owned())),
            },
            Action::Ask { query } => partition_of(query.key().unwrap_or_default(), &view),
            Action::Wait(watch) => partition_of(watch.key(), &view),
            Action::Scan { place, .. } | Action::WritePartition { place, .. } | Action::Export { place } => {
                if place.swarm != view.swarm {
                    return Next::Fail(Error::Dissolved);
                }
                place.partition
            }
        };
        if self.swarm.replace(view.swarm).is_some_and(|before| before != view.swarm) {
            // What the nodes answered was about another swarm.
            self.asked = Asked::default();
            self.hope();
        }
        if let Err(next) = self.number(&view, partition).await {
            return next;
        }
        let node = match router.target(&view, partition, &self.asked) {
            Target::Node(node) => node,
            Target::AllTried => return Next::Pause,
            Target::NoLink => {
                self.last = Error::Unreachable;
                return Next::Pause;
            }
        };
        self.asked.tried.insert(node);
        let remaining = self.remaining();
        if remaining.is_zero() {
            return Next::Pause;
        }
        let (request, timeout) = self.request(view.swarm, partition, remaining);
        // What did not come through together is tried again alone: one that is stuck holds up the others' answers.
        let answer = match self.outbox.take() {
            Some(outbox) => outbox.call(node, request, timeout).await,
            None => router.rpc.call(node, request, timeout).await,
        };
        self.judge(node, view.swarm, partition, answer)
    }

    /// Sees to it that a write has its number, drawn for the swarm to which it goes.
    async fn number(&mut self, view: &SwarmView, partition: PartitionId) -> Result<(), Next> {
        if !matches!(self.action, Action::Write(_)) {
            return Ok(());
        }
        match &self.in_flight {
            Some(in_flight) if in_flight.swarm() == view.swarm => return Ok(()),
            // The swarm that would recognise the retry is no more.
            Some(_) if self.maybe_applied => return Err(Next::Fail(Error::Unknown)),
            _ => {}
        }
        // Settled first, or it could be what it waits for.
        self.in_flight = None;
        let session = &self.client.shared.session;
        self.in_flight = session.begin(view.swarm, partition, self.remaining()).await;
        if self.in_flight.is_none() {
            self.last = Error::Overloaded;
            return Err(Next::Pause);
        }
        Ok(())
    }

    fn request(&self, swarm: SwarmId, partition: PartitionId, remaining: Duration) -> (Request, Duration) {
        let timeout = remaining.min(self.attempt_timeout);
        let forwarded = false;
        let consistency = self.client.consistency;
        let read = |query| Request::Read { swarm, partition, consistency, query, forwarded };
        match (&self.action, &self.in_flight) {
            (Action::Write(operation), Some(in_flight)) => {
                let request = Request::Write {
                    swarm,
                    partition,
                    origin: in_flight.origin(),
                    operation: operation.clone(),
                    forwarded,
                };
                (request, timeout)
            }
            (Action::Write(_), None) => unreachable!("a write has a number before it is sent"),
            (Action::WritePartition { operation, .. }, _) => {
                let (origin, operation) = (NOBODY, operation.clone());
                (Request::Write { swarm, partition, origin, operation, forwarded }, timeout)
            }
            (Action::Ask { query } | Action::Scan { query, .. }, _) => (read(query.clone()), timeout),
            (Action::Export { .. }, _) => (Request::Export { swarm, partition, forwarded }, timeout),
            (Action::Wait(watch), _) => {
                let slice = remaining.min(WAIT_SLICE);
                let request = Request::Wait {
                    swarm,
                    partition,
                    watch: watch.clone(),
                    timeout_ms: u32::try_from(slice.as_millis()).unwrap_or(MAX_WAIT_MS),
                    forwarded,
                };
                (request, slice + ATTEMPT_TIMEOUT)
            }
        }
    }

    fn judge(
        &mut self,
        node: NodeId,
        swarm: SwarmId,
        partition: PartitionId,
        answer: Result<Response, RpcError>,
    ) -> Next {
        let write = self.action.is_write();
        let export = matches!(self.action, Action::Export { .. });
        match answer {
            Ok(Response::Reply(reply)) if write => self.judge_reply(reply),
            Ok(Response::Exported { node, export: name, bytes }) if export => {
                Next::Done(Outcome::Exported { node, export: name, bytes })
            }
            Ok(Response::Answer { answer, .. }) if !write && !export => Next::Done(Outcome::Answer(answer)),
            Ok(Response::Unchanged) if matches!(self.action, Action::Wait(_)) => {
                // The leader is well; it is asked again until the deadline.
                self.heard = true;
                self.asked = Asked::default();
                self.hope();
                self.pause = MIN_PAUSE;
                Next::Pause
            }
            Ok(Response::Unknown) if write => {
                self.lost(node, partition);
                Next::Pause
            }
            Ok(Response::Refused(refusal)) => self.judge_refusal(node, swarm, partition, refusal),
            Ok(_) => Next::Fail(unexpected()),
            Err(RpcError::NotSent(_)) => {
                self.last = Error::Unreachable;
                self.silence(node, partition);
                Next::Hop
            }
            Err(RpcError::Lost(_)) => {
                self.asked.silent.insert(node);
                self.attempt_timeout *= 2;
                self.lost(node, partition);
                Next::Hop
            }
        }
    }

    fn judge_reply(&mut self, reply: Reply) -> Next {
        match reply {
            Reply::Sealed { .. } | Reply::Dissolved { .. } => {
                self.last = Error::NotServing;
                self.doubts = true;
                Next::Pause
            }
            Reply::TooManySessions => {
                self.last = Error::Overloaded;
                Next::Pause
            }
            // Our own numbers are not settled while we send them; whoever thinks so knows more than we do.
            Reply::Settled => {
                self.maybe_applied = true;
                Next::Fail(Error::Unknown)
            }
            reply => Next::Done(Outcome::Reply(reply)),
        }
    }

    fn judge_refusal(
        &mut self,
        node: NodeId,
        swarm: SwarmId,
        partition: PartitionId,
        refusal: Refusal,
    ) -> Next {
        let router = &self.client.shared.router;
        match refusal {
            Refusal::NotLeader { leader: Some(leader) } if leader != node => {
                self.last = Error::NoQuorum;
                router.set_leader(partition, leader);
                if router.rpc.is_linked(leader) {
                    self.no_leader_since = None;
                } else {
                    self.no_leader_since.get_or_insert(self.client.now());
                }
                Next::Hop
            }
            Refusal::NotLeader { .. } => {
                self.last = Error::NoQuorum;
                self.no_leader_since.get_or_insert(self.client.now());
                router.forget_leader(partition, node);
                self.doubts = true;
                Next::Pause
            }
            Refusal::NoQuorum => {
                self.last = Error::NoQuorum;
                self.no_quorum_since.get_or_insert(self.client.now());
                router.forget_leader(partition, node);
                self.doubts = true;
                Next::Hop
            }
            Refusal::Overloaded => {
                self.last = Error::Overloaded;
                self.hope();
                Next::Pause
            }
            Refusal::StorageFull => Next::Fail(Error::StorageFull),
            Refusal::NotServing => {
                self.last = Error::NotServing;
                self.silence(node, partition);
                Next::Hop
            }
            Refusal::OtherSwarm => {
                self.last = Error::NotServing;
                router.distrust(swarm);
                Next::Hop
            }
            // Of an export that was never asked for.
            Refusal::NoExport => Next::Fail(unexpected()),
            Refusal::BadRequest(reason) => {
                // The next call shall not repeat it by the same view.
                router.distrust(swarm);
                Next::Fail(Error::Refused(reason))
            }
        }
    }

    /// An attempt left, and what came of it is not known.
    fn lost(&mut self, node: NodeId, partition: PartitionId) {
        self.last = Error::TimedOut;
        self.hope();
        self.maybe_applied |= matches!(self.action, Action::Write(_));
        self.client.shared.router.forget_leader(partition, node);
        self.doubts = true;
    }

    /// The node cannot serve us.
    fn silence(&mut self, node: NodeId, partition: PartitionId) {
        self.asked.silent.insert(node);
        self.client.shared.router.forget_leader(partition, node);
        self.doubts = true;
    }
}

/// Asks one node, which need not be linked yet, something that can be asked any number of times. `None`: the node
/// that asks if it is one, otherwise any.
pub(super) async fn ask<R: Rpc>(
    client: &Client<R>,
    to: Option<NodeId>,
    request: Request,
) -> Result<Response, Error> {
    let router = &client.shared.router;
    let deadline = client.now() + client.deadline;
    let mut pause = MIN_PAUSE;
    let mut last = Error::Unreachable;
    let mut turn = 0;
    loop {
        let linked = router.rpc.linked();
        let node = match to.or(router.rpc.home()) {
            Some(node) => Some(node),
            None if linked.is_empty() => {
                router.reach_out();
                None
            }
            None => Some(linked[turn % linked.len()]),
        };
        turn += 1;
        if let Some(node) = node {
            if !linked.contains(&node) {
                let view = match router.cached() {
                    // Without it nobody knows where the node is.
                    None => router.fetch().await,
                    known => known,
                };
                let member = view.iter().flat_map(|view| &view.members).find(|member| member.node == node);
                let addresses = member.map_or(&[][..], |member| &member.addresses);
                router.rpc.want(node, addresses);
            }
            let timeout = deadline.since(client.now()).min(ATTEMPT_TIMEOUT);
            match router.rpc.call(node, request.clone(), timeout).await {
                Ok(Response::Refused(Refusal::BadRequest(reason))) => {
                    return Err(Error::Refused(reason));
                }
                Ok(Response::Refused(Refusal::Overloaded)) => last = Error::Overloaded,
                Ok(Response::Refused(_)) => last = Error::NotServing,
                Ok(response) => return Ok(response),
                Err(RpcError::NotSent(_)) => last = Error::Unreachable,
                Err(RpcError::Lost(_)) => last = Error::TimedOut,
            }
        }
        let remaining = deadline.since(client.now());
        if remaining.is_zero() {
            return Err(last);
        }
        tokio::time::sleep(pause.min(remaining)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
