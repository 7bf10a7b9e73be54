//! The client over a network that exists only here: real state machines behind nodes that do what a test says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use rand::SeedableRng;
use tokio::time::{Instant, sleep};

use super::*;
use crate::id::PartitionId;
use crate::id::SwarmId;
use crate::membership::MemberState;
use crate::state_machine::{Answer, Command, MAX_LISTED, Origin, PartitionTime, StateMachine};
use crate::wire::{MemberView, Refusal, RpcError};

const PARTITIONS: u32 = 8;
/// Exports come in pieces of so many bytes.
const PIECE_BYTES: usize = 1000;
pub(super) const MS: Duration = Duration::from_millis(1);

pub(super) fn node(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

/// What happens to the next request about data.
#[derive(Debug, Clone)]
enum Fault {
    /// It is applied, and the answer is lost.
    LoseAnswer,
    /// It is lost on the way.
    LoseRequest,
    /// It is applied later, and the sender never hears of it.
    Delay,
    /// It cannot be sent.
    NotSent,
    /// Nobody answers until the time is up.
    Silence,
    /// It is applied, and the leader does not know.
    Unknown,
    Refuse(Refusal),
}

/// What a node answers to every request about data.
#[derive(Debug, Clone)]
pub(super) enum Mood {
    Sound,
    /// Sends on what it cannot answer.
    Forwarding,
    Silent,
    Refusing(Refusal),
}

struct World {
    swarm: SwarmId,
    /// Of all partitions but those in `leads`.
    leader: NodeId,
    leads: BTreeMap<PartitionId, NodeId>,
    /// Partitions that answer nothing.
    stuck: BTreeSet<PartitionId>,
    linked: Vec<NodeId>,
    /// The node that asks, if it is one.
    home: Option<NodeId>,
    /// Linked nodes of another swarm of the same name.
    others: BTreeMap<NodeId, SwarmId>,
    moods: BTreeMap<NodeId, Mood>,
    partitions: Vec<StateMachine>,
    start: Instant,
    /// The partitions' time stands still here, as it does without a leader; and how long it has stood.
    stopped: Option<Instant>,
    stood: Duration,
    index: u64,
    faults: VecDeque<Fault>,
    /// Once the script is used up: one request in `.0` meets one of these faults.
    chaos: Option<(u32, Vec<Fault>, StdRng)>,
    delayed: Vec<Request>,
    asked: Vec<NodeId>,
    views: u32,
    wanted: Vec<NodeId>,
    /// Renewals that arrived, and the messages that brought them.
    renewals: usize,
    renewal_messages: usize,
    exports: Vec<Vec<u8>>,
    /// So many pieces of exports are asked for in vain.
    gone: usize,
}

/// Three nodes; the first leads all partitions; all are linked and the second and third redirect.
#[derive(Clone)]
pub(super) struct Net(Arc<Mutex<World>>);

impl Net {
    pub(super) fn new() -> Self {
        Self::of(SwarmId(7), PARTITIONS)
    }

    pub(super) fn of(swarm: SwarmId, partitions: u32) -> Self {
        Self(Arc::new(Mutex::new(World {
            swarm,
            leader: node(1),
            leads: BTreeMap::new(),
            stuck: BTreeSet::new(),
            linked: vec![node(1), node(2), node(3)],
            home: None,
            others: BTreeMap::new(),
            moods: BTreeMap::new(),
            partitions: vec![StateMachine::default(); partitions as usize],
            start: Instant::now(),
            stopped: None,
            stood: Duration::ZERO,
            index: 0,
            faults: VecDeque::new(),
            chaos: None,
            delayed: Vec::new(),
            asked: Vec::new(),
            views: 0,
            wanted: Vec::new(),
            renewals: 0,
            renewal_messages: 0,
            exports: Vec::new(),
            gone: 0,
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.0)
    }

    /// So many pieces of exports are asked for in vain: the export is gone.
    pub(super) fn lose_exports(&self, pieces: usize) {
        self.world().gone = pieces;
    }

    /// The states of all partitions.
    pub(super) fn states(&self) -> Vec<StateMachine> {
        self.world().partitions.clone()
    }

    /// From now on one request in `one_in` is lost on the way there or back, or refused.
    pub(super) fn trouble(&self, one_in: u32) {
        let faults = vec![
            Fault::LoseAnswer,
            Fault::LoseRequest,
            Fault::Delay,
            Fault::NotSent,
            Fault::Refuse(Refusal::Overloaded),
        ];
        self.world().chaos = Some((one_in, faults, StdRng::seed_from_u64(1)));
    }

    fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.world().faults.extend(faults);
    }

    pub(super) fn mood(&self, number: u8, mood: Mood) {
        self.world().moods.insert(node(number), mood);
    }

    pub(super) fn client(&self) -> Client<Net> {
        self.client_drawing(1)
    }

    pub(super) fn client_drawing(&self, seed: u64) -> Client<Net> {
        self.client_with(seed, Arc::default())
    }

    /// A client whose clock is ahead of the runtime's timers by so many milliseconds.
    pub(super) fn client_with(&self, seed: u64, ahead: Arc<AtomicU64>) -> Client<Net> {
        let start = Instant::now();
        let clock =
            move || Timestamp::ZERO + start.elapsed() + Duration::from_millis(ahead.load(Ordering::Relaxed));
        Client::new(self.clone(), Arc::new(clock), StdRng::seed_from_u64(seed))
    }

    pub(super) fn renewals(&self) -> usize {
        self.world().renewals
    }

    pub(super) fn renewal_messages(&self) -> usize {
        self.world().renewal_messages
    }

    /// From now on this node leads the partition.
    pub(super) fn lead(&self, partition: u32, number: u8) {
        self.world().leads.insert(PartitionId(partition), node(number));
    }

    /// Locks that were taken in a partition and not given back.
    pub(super) fn places(&self, partition: u32) -> usize {
        let query = Query::Locks { after: Vec::new(), limit: MAX_LISTED };
        match self.world().partitions[partition as usize].query(&query) {
            Answer::Locks { locks, .. } => locks.len(),
            other => panic!("no locks: {other:?}"),
        }
    }

    /// From now on the partition answers nothing.
    pub(super) fn stuck(&self, partition: u32) {
        self.world().stuck.insert(PartitionId(partition));
    }

    /// From now on the partitions' time stands still, or goes on.
    pub(super) fn stop_time(&self, stop: bool) {
        let mut world = self.world();
        let stood = world.stopped.take().map_or(Duration::ZERO, |since| since.elapsed());
        world.stood += stood;
        world.stopped = stop.then(Instant::now);
    }

    /// From now on nobody is reached, or everybody again.
    pub(super) fn cut(&self, cut: bool) {
        for number in 1..=3 {
            self.mood(number, if cut { Mood::Silent } else { Mood::Sound });
        }
    }

    fn asked(&self) -> usize {
        self.world().asked.len()
    }
}

impl World {
    fn leader_of(&self, partition: PartitionId) -> NodeId {
        self.leads.get(&partition).copied().unwrap_or(self.leader)
    }

    fn leader_for(&self, request: &Request) -> NodeId {
        match request {
            Request::Write { partition, .. }
            | Request::Read { partition, .. }
            | Request::Wait { partition, .. } => self.leader_of(*partition),
            _ => self.leader,
        }
    }

    fn view(&self, from: NodeId) -> SwarmView {
        let member = |number| MemberView {
            node: node(number),
            addresses: vec![format!("/memory/{number}")],
            weight: 1,
            state: MemberState::Alive,
            since_ms: Some(1_000),
            draining: false,
            on_ring: true,
        };
        let other = self.others.get(&from);
        SwarmView {
            swarm: other.copied().unwrap_or(self.swarm),
            name: "test".to_owned(),
            partitions: u32::try_from(self.partitions.len()).unwrap(),
            node: from,
            members: other.map_or(1..=3, |_| 9..=9).map(member).collect(),
            leaders: (0..u32::try_from(self.partitions.len()).unwrap())
                .map(|number| Some(self.leader_of(PartitionId(number))))
                .collect(),
        }
    }

    /// What is due at the time of the runtime expires, as the leader would see to it.
    fn advance(&mut self, partition: PartitionId) {
        self.run(partition, None, Operation::Advance);
    }

    fn run(&mut self, partition: PartitionId, origin: Option<Origin>, operation: Operation) -> Reply {
        self.index += 1;
        let passed = self.stopped.unwrap_or_else(Instant::now).duration_since(self.start + self.stood);
        let elapsed = u64::try_from(passed.as_millis()).unwrap();
        let command = Command { time: PartitionTime(elapsed), origin, operation };
        self.partitions[partition.0 as usize].apply(self.index, command)
    }

    fn apply(&mut self, request: &Request) -> Response {
        match request {
            Request::Write { partition, origin, operation, .. } => {
                self.renewals += usize::from(matches!(operation, Operation::Renew { .. }));
                let view = self.view(self.leader);
                if let Operation::Import { items, .. } = operation {
                    for item in items {
                        assert_eq!(router::partition_of(item.key(), &view), *partition);
                    }
                }
                assert_eq!(operation.check(), Ok(()));
                let origin = (!operation.is_administrative()).then_some(*origin);
                Response::Reply(self.run(*partition, origin, operation.clone()))
            }
            Request::Read { partition, consistency, query, .. } => {
                self.advance(*partition);
                Response::Answer {
                    answer: self.partitions[partition.0 as usize].query(query),
                    stale: *consistency == Consistency::Stale,
                }
            }
            Request::Export { partition, .. } => {
                let export = self.partitions[partition.0 as usize].snapshot();
                let bytes = export.len() as u64;
                self.exports.push(export);
                Response::Exported { node: self.leader, export: self.exports.len() as u64, bytes }
            }
            Request::Piece { .. } if self.gone > 0 => {
                self.gone -= 1;
                Response::Refused(Refusal::NoExport)
            }
            Request::Piece { export, offset, .. } => {
                let at = usize::try_from(*export).unwrap() - 1;
                let rest = &self.exports[at][usize::try_from(*offset).unwrap()..];
                Response::Piece(rest[..rest.len().min(PIECE_BYTES)].to_vec())
            }
            other => panic!("not about data: {other:?}"),
        }
    }

    fn is_for_another_swarm(&self, request: &Request) -> bool {
        match request {
            Request::Write { swarm, .. }
            | Request::Read { swarm, .. }
            | Request::Wait { swarm, .. }
            | Request::Export { swarm, .. } => *swarm != self.swarm,
            _ => false,
        }
    }

    fn next_fault(&mut self) -> Option<Fault> {
        if let Some(fault) = self.faults.pop_front() {
            return Some(fault);
        }
        let (one_in, faults, rng) = self.chaos.as_mut()?;
        if rng.random_range(0..*one_in) > 0 {
            return None;
        }
        let fault = faults[rng.random_range(0..faults.len())].clone();
        Some(fault)
    }

    /// Before or after others: what was delayed arrives at last.
    fn deliver_some(&mut self) {
        while let Some((_, _, rng)) = &mut self.chaos
            && !self.delayed.is_empty()
            && rng.random_bool(0.5)
        {
            let at = rng.random_range(0..self.delayed.len());
            let request = self.delayed.swap_remove(at);
            self.apply(&request);
        }
    }
}

impl Rpc for Net {
    async fn call(&self, to: NodeId, request: Request, timeout: Duration) -> Result<Response, RpcError> {
        self.world().renewal_messages += usize::from(matches!(
            &request,
            Request::Renew { .. } | Request::Write { operation: Operation::Renew { .. }, .. }
        ));
        let Request::Renew { swarm, renewals } = request else {
            return self.call_one(to, request, timeout).await;
        };
        let mut answers = Vec::new();
        for renewal in renewals {
            answers.push(self.call_one(to, renewal.alone(swarm), timeout).await?.into());
        }
        Ok(Response::Renewals(answers))
    }

    fn linked(&self) -> Vec<NodeId> {
        self.world().linked.clone()
    }

    fn home(&self) -> Option<NodeId> {
        self.world().home
    }

    fn want(&self, node: NodeId, addresses: &[String]) {
        assert_eq!(addresses.len(), 1);
        self.world().wanted.push(node);
    }
}

impl Net {
    async fn call_one(&self, to: NodeId, request: Request, timeout: Duration) -> Result<Response, RpcError> {
        sleep(MS).await;
        let silence = async {
            sleep(timeout.saturating_sub(MS)).await;
            Err(RpcError::Lost("time is up"))
        };
        let (waits, mood) = {
            let mut world = self.world();
            if !world.linked.contains(&to) {
                return Err(RpcError::NotSent("no link"));
            }
            let mood = world.moods.get(&to).cloned().unwrap_or(Mood::Sound);
            (matches!(request, Request::Wait { .. }), {
                if !matches!(request, Request::View | Request::Ticket) {
                    world.asked.push(to);
                }
                mood
            })
        };
        if !matches!(mood, Mood::Silent) && self.world().is_for_another_swarm(&request) {
            return Ok(Response::Refused(Refusal::OtherSwarm));
        }
        match (&request, &mood) {
            (_, Mood::Silent) => return silence.await,
            (Request::Write { partition, .. }, _) if self.world().stuck.contains(partition) => {
                return silence.await;
            }
            (Request::View, _) => {
                let mut world = self.world();
                world.views += 1;
                return Ok(Response::View(world.view(to)));
            }
            (Request::Ticket, _) => return Ok(Response::Ticket("rt1".to_owned())),
            (Request::Leave, _) => return Ok(Response::Leaving),
            (_, Mood::Refusing(refusal)) => return Ok(Response::Refused(refusal.clone())),
            (_, Mood::Sound) => {
                let leader = self.world().leader_for(&request);
                let stale = matches!(request, Request::Read { consistency: Consistency::Stale, .. });
                if leader != to && !stale {
                    return Ok(Response::Refused(Refusal::NotLeader { leader: Some(leader) }));
                }
            }
            (_, Mood::Forwarding) => {}
        }
        if waits {
            return self.wait(request).await;
        }
        let fault = {
            let mut world = self.world();
            world.deliver_some();
            world.next_fault()
        };
        match fault {
            None => Ok(self.world().apply(&request)),
            Some(Fault::LoseAnswer) => {
                self.world().apply(&request);
                Err(RpcError::Lost("link broke"))
            }
            Some(Fault::LoseRequest) => Err(RpcError::Lost("link broke")),
            Some(Fault::Delay) => {
                self.world().delayed.push(request);
                Err(RpcError::Lost("link broke"))
            }
            Some(Fault::NotSent) => Err(RpcError::NotSent("queue is full")),
            Some(Fault::Silence) => silence.await,
            Some(Fault::Unknown) => {
                self.world().apply(&request);
                Ok(Response::Unknown)
            }
            Some(Fault::Refuse(refusal)) => Ok(Response::Refused(refusal)),
        }
    }

    async fn wait(&self, request: Request) -> Result<Response, RpcError> {
        let Request::Wait { partition, watch, timeout_ms, .. } = request else {
            panic!("no wait");
        };
        for _ in 0..timeout_ms {
            sleep(MS).await;
            self.world().advance(partition);
            if let Some(answer) = self.world().partitions[partition.0 as usize].look(&watch) {
                return Ok(Response::Answer { answer, stale: false });
            }
        }
        Ok(Response::Unchanged)
    }
}

#[tokio::test(start_paused = true)]
async fn every_operation_does_what_it_says() {
    let client = Net::new().client();
    assert_eq!(client.get("k").await, Ok(None));
    let first = client.put("k", "v").await.unwrap();
    let entry = client.get("k").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version, entry.ttl_ms), (&b"v"[..], first, None));
    let second = client.compare_and_swap("k", Some(first), "w").await.unwrap();
    assert_eq!(
        client.compare_and_swap("k", Some(first), "x").await,
        Err(Error::Conflict { version: Some(second) })
    );
    assert_eq!(client.increment("k", 1).await, Err(Error::NotAnInteger));
    assert_eq!(client.delete("k").await, Ok(true));
    assert_eq!(client.delete("k").await, Ok(false));
    assert_eq!(client.increment("n", 3).await, Ok(3));
    assert_eq!(client.increment("n", -1).await, Ok(2));
    assert_eq!(client.expire("k", None).await, Err(Error::NotFound));
    client.put_with_ttl("t", "v", Duration::from_nanos(1)).await.unwrap();
    assert_eq!(client.ticket().await, Ok("rt1".to_owned()));
    assert_eq!(client.leave(node(2)).await, Ok(()));
    assert_eq!(client.view().await.unwrap().partitions, PARTITIONS);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_gone_is_waited_for_until_it_is_back() {
    let net = Net::new();
    let (client, other) = (net.client_drawing(1), net.client_drawing(2));
    let seen = other.put("k", "1").await.unwrap();
    other.delete("k").await.unwrap();
    let asked = net.asked();
    assert_eq!(client.with_deadline(500 * MS).wait_for_change("k", Some(seen)).await, Ok(None));
    assert!(net.asked() < asked + 5, "asked {} times", net.asked() - asked);
    let back = async {
        sleep(100 * MS).await;
        other.put("k", "2").await.unwrap()
    };
    let (found, version) = tokio::join!(client.wait_for_change("k", Some(seen)), back);
    assert_eq!(found.unwrap().unwrap().version, version);
}

#[tokio::test(start_paused = true)]
async fn limits_are_checked_before_anything_is_sent() {
    let net = Net::new();
    let error = net.client().put("k", vec![0; 2 << 20]).await.unwrap_err();
    assert!(matches!(error, Error::Limit(LimitError::TooLarge { what: "value", size: 2_097_152, .. })));
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(net.client().get("").await, Err(Error::Limit(LimitError::EmptyKey)));
    assert_eq!(net.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_leader_is_asked_in_one_hop_and_the_view_once() {
    let net = Net::new();
    let client = net.client();
    for key in 0..50 {
        client.put(format!("k{key}"), "v").await.unwrap();
    }
    assert_eq!(net.world().asked, vec![node(1); 50]);
    assert_eq!(net.world().views, 1);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_followed_at_once_and_remembered() {
    let net = Net::new();
    let client = net.client();
    client.put("k", "1").await.unwrap();
    net.world().leader = node(2);
    let start = Instant::now();
    client.put("k", "2").await.unwrap();
    assert!(start.elapsed() < 5 * MS);
    client.put("k", "3").await.unwrap();
    assert_eq!(net.world().asked, [1, 1, 2, 2].map(node));
}

#[tokio::test(start_paused = true)]
async fn nodes_that_point_at_each_other_end_at_the_deadline() {
    let net = Net::new();
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        let leader = Some(node(to));
        net.mood(from, Mood::Refusing(Refusal::NotLeader { leader }));
    }
    let start = Instant::now();
    let error = net.client().put("k", "v").await.unwrap_err();
    assert_eq!((error.outcome(), error), (Outcome::NotApplied, Error::NoQuorum));
    assert_eq!(start.elapsed().as_secs(), 5);
    // With pauses between the rounds.
    assert!(net.asked() < 200, "{}", net.asked());
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_link_is_wished_for_and_reached_through_others() {
    let net = Net::new();
    net.world().linked = vec![node(2)];
    net.mood(2, Mood::Forwarding);
    let client = net.client();
    assert!(client.put("k", "v").await.is_ok());
    assert_eq!(net.world().wanted, [node(1)]);
    net.world().linked.push(node(1));
    client.put("k", "w").await.unwrap();
    assert_eq!(net.world().asked, [2, 1].map(node));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_happens_once() {
    let net = Net::new();
    let client = net.client();
    net.script([Fault::LoseAnswer, Fault::LoseAnswer]);
    assert_eq!(client.increment("n", 1).await, Ok(1));
    net.script([Fault::Unknown, Fault::LoseRequest, Fault::NotSent]);
    assert_eq!(client.increment("n", 1).await, Ok(2));
    // A swap that was applied is answered as applied, although its expectation does not hold any more.
    net.script([Fault::LoseAnswer]);
    assert!(client.compare_and_swap("c", None, "v").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_never_answered_is_unknown() {
    let net = Net::new();
    let client = net.client();
    client.put("k", "v").await.unwrap();
    net.script([Fault::LoseRequest]);
    net.script(vec![Fault::Refuse(Refusal::NoQuorum); 10_000]);
    let start = Instant::now();
    let error = client.put("k", "w").await.unwrap_err();
    assert_eq!((error.outcome(), error), (Outcome::MayBeApplied, Error::Unknown));
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_failover_is_only_a_pause() {
    let net = Net::new();
    let client = net.client();
    client.put("k", "v").await.unwrap();
    net.mood(1, Mood::Refusing(Refusal::NoQuorum));
    net.mood(2, Mood::Refusing(Refusal::NotLeader { leader: None }));
    net.mood(3, Mood::Refusing(Refusal::NoQuorum));
    let heal = async {
        sleep(1000 * MS).await;
        net.mood(1, Mood::Silent);
        net.mood(2, Mood::Sound);
        net.mood(3, Mood::Sound);
        net.world().leader = node(3);
    };
    let (result, ()) = tokio::join!(client.put("k", "w"), heal);
    assert!(result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_side_without_quorum_says_so_well_before_the_deadline_and_serves_stale_reads() {
    let net = Net::new();
    let client = net.client();
    client.put("k", "v").await.unwrap();
    net.world().linked = vec![node(2), node(3)];
    for number in [2, 3] {
        net.mood(number, Mood::Refusing(Refusal::NoQuorum));
    }
    let start = Instant::now();
    let error = client.put("k", "w").await.unwrap_err();
    assert_eq!((error.outcome(), error), (Outcome::NotApplied, Error::NoQuorum));
    assert_eq!(client.get("k").await, Err(Error::NoQuorum));
    let elapsed = start.elapsed();
    assert!(elapsed >= 3000 * MS && elapsed < 3800 * MS, "{elapsed:?}");
    for number in [2, 3] {
        net.mood(number, Mood::Sound);
    }
    assert_eq!(client.get_stale("k").await.unwrap().unwrap().value, b"v");
}

/// Neither node holds a replica, and the leader that they know is on the other side.
#[tokio::test(start_paused = true)]
async fn a_side_that_knows_only_a_leader_beyond_reach_says_so_before_the_deadline() {
    let net = Net::new();
    net.world().linked = vec![node(2), node(3)];
    let start = Instant::now();
    assert_eq!(net.client().put("k", "v").await, Err(Error::NoQuorum));
    let elapsed = start.elapsed();
    assert!(elapsed >= 3000 * MS && elapsed < 3300 * MS, "{elapsed:?}");
    // With a link, there is hope until the deadline.
    net.script(vec![Fault::Refuse(Refusal::NotLeader { leader: Some(node(3)) }); 10_000]);
    net.world().linked.push(node(1));
    let start = Instant::now();
    assert_eq!(net.client().put("k", "v").await, Err(Error::NoQuorum));
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_silent_leader_costs_one_attempt_and_not_the_deadline() {
    let net = Net::new();
    let client = net.client();
    client.put("k", "v").await.unwrap();
    net.mood(1, Mood::Silent);
    net.mood(2, Mood::Forwarding);
    net.mood(3, Mood::Forwarding);
    let start = Instant::now();
    client.put("k", "w").await.unwrap();
    let elapsed = start.elapsed();
    assert!(elapsed < 1200 * MS, "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_link_the_swarm_is_unreachable() {
    let net = Net::new();
    let client = net.client();
    net.world().linked.clear();
    let client = client.with_deadline(300 * MS);
    let start = Instant::now();
    assert_eq!(client.put("k", "v").await, Err(Error::Unreachable));
    assert_eq!(client.ticket().await, Err(Error::Unreachable));
    assert_eq!(client.scan("").try_next().await, Err(Error::Unreachable));
    assert_eq!(start.elapsed().as_millis(), 900);
    // A link that comes back within the deadline is used.
    let relink = async {
        sleep(100 * MS).await;
        net.world().linked.push(node(1));
    };
    let (result, ()) = tokio::join!(client.put("k", "v"), relink);
    assert!(result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_leader_is_given_time() {
    let net = Net::new();
    let client = net.client();
    net.script(vec![Fault::Refuse(Refusal::Overloaded); 5]);
    let start = Instant::now();
    client.put("k", "v").await.unwrap();
    assert!(start.elapsed() > 70 * MS);
    net.script(vec![Fault::Refuse(Refusal::Overloaded); 1000]);
    assert_eq!(client.put("k", "v").await, Err(Error::Overloaded));
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_follow_into_another_swarm() {
    let net = Net::new();
    let client = net.client();
    client.put("k", "v").await.unwrap();
    net.script([Fault::Silence]);
    let change = async {
        sleep(200 * MS).await;
        net.world().swarm = SwarmId(8);
    };
    let (result, ()) = tokio::join!(client.put("k", "w"), change);
    assert_eq!(result, Err(Error::Unknown));
    // A new write goes there.
    assert!(client.put("k", "w").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_the_change_or_with_the_deadline() {
    let net = Net::new();
    let client = net.client().with_deadline(Duration::from_secs(20));
    let seen = client.put("k", "v").await.unwrap();
    assert_eq!(client.wait_for_change("k", Some(seen)).await, Ok(None));
    let write = async {
        sleep(12_000 * MS).await;
        client.put("k", "w").await.unwrap()
    };
    let start = Instant::now();
    let (entry, version) = tokio::join!(client.wait_for_change("k", Some(seen)), write);
    assert_eq!(entry.unwrap().unwrap().version, version);
    assert!(start.elapsed() < 12_010 * MS);
    assert_eq!(client.wait_for_change("k", None).await.unwrap().unwrap().value, b"w");
}

#[tokio::test(start_paused = true)]
async fn a_scan_is_sorted_over_all_partitions_and_pages() {
    let net = Net::new();
    let client = net.client();
    // More than one page per partition: 8192 / 8 are 1024, bounded by MAX_SCAN_ENTRIES.
    let keys: Vec<String> = (0..10_000).map(|key| format!("a{key:05}")).collect();
    for key in &keys {
        client.put(key.as_str(), "v").await.unwrap();
    }
    client.put("b", "v").await.unwrap();
    net.script([Fault::LoseAnswer, Fault::NotSent]);
    let found: Vec<_> = client.scan("a").map_ok(|(key, _)| key).try_collect().await.unwrap();
    let expected: Vec<_> = keys.iter().map(|key| key.clone().into_bytes()).collect();
    assert!(found == expected, "{} of {}", found.len(), expected.len());
    let none: Vec<_> = client.scan("c").try_collect().await.unwrap();
    assert!(none.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_write_does_not_hold_up_the_session() {
    let net = Net::new();
    let client = net.client();
    net.script([Fault::Silence]);
    let cancelled = tokio::time::timeout(100 * MS, client.put("k", "v")).await;
    assert!(cancelled.is_err());
    for _ in 0..2000 {
        client.put("k", "w").await.unwrap();
    }
}

/// Whatever is lost, delayed or refused: an increment that succeeded counted once, one that failed not at all,
/// and one that is unknown at most once.
#[tokio::test(start_paused = true)]
async fn under_chaos_every_write_happens_as_its_answer_says() {
    let (mut ok, mut unknown, mut refused) = (0, 0, 0);
    for seed in 0..150 {
        let net = Net::new();
        let faults = vec![
            Fault::LoseAnswer,
            Fault::LoseRequest,
            Fault::Delay,
            Fault::NotSent,
            Fault::Unknown,
            Fault::Refuse(Refusal::NotLeader { leader: None }),
            Fault::Refuse(Refusal::NotLeader { leader: Some(node(2)) }),
            Fault::Refuse(Refusal::Overloaded),
            Fault::Refuse(Refusal::NotServing),
        ];
        let one_in = if seed % 3 == 0 { 1 } else { 2 };
        net.world().chaos = Some((one_in, faults, StdRng::seed_from_u64(seed)));
        net.mood(2, Mood::Forwarding);
        // Three clients, each with two tasks.
        let clients: Vec<_> = (0..3).map(|client| net.client_drawing(seed * 10 + client)).collect();
        let tasks = (0..6).map(|task| {
            let client = clients[task / 2].with_deadline(400 * MS);
            async move {
                let mut results = Vec::new();
                for _ in 0..10 {
                    results.push(client.increment("n", 1).await);
                }
                results
            }
        });
        let results = futures::future::join_all(tasks).await.concat();
        {
            // What is still under way arrives at last.
            let mut world = net.world();
            let delayed = std::mem::take(&mut world.delayed);
            for request in delayed {
                world.apply(&request);
            }
            world.chaos = None;
        }
        let entry = net.client_drawing(u64::MAX).get("n").await.unwrap();
        let value = entry.map_or(0, |entry| String::from_utf8(entry.value).unwrap().parse().unwrap());
        let mut sums: Vec<i64> = results.iter().flatten().copied().collect();
        let maybe = results
            .iter()
            .filter(|result| matches!(result, Err(error) if error.outcome() == Outcome::MayBeApplied))
            .count();
        assert!(
            sums.len() <= value && value <= sums.len() + maybe,
            "seed {seed}: {value} counted, {} succeeded, {maybe} unknown",
            sums.len()
        );
        ok += sums.len();
        unknown += maybe;
        refused += results.len() - sums.len() - maybe;
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len() + maybe + refused_in(&results), results.len(), "seed {seed}");
    }
    // The run counts only if all of it occurred.
    assert!(ok > 1000 && unknown > 100 && refused > 0, "{ok} {unknown} {refused}");
}

fn refused_in(results: &[Result<i64, Error>]) -> usize {
    results
        .iter()
        .filter(|result| matches!(result, Err(error) if error.outcome() == Outcome::NotApplied))
        .count()
}

#[test]
fn a_time_to_live_is_rounded_up() {
    assert_eq!(ttl_ms(Duration::ZERO), 1);
    assert_eq!(ttl_ms(Duration::from_micros(1001)), 2);
    assert_eq!(ttl_ms(Duration::MAX), u64::MAX);
}

/// The numbers of a session must not be taken for retries in the swarm that follows one that dissolved.
#[tokio::test(start_paused = true)]
async fn an_acknowledged_write_survives_the_change_to_another_swarm() {
    let net = Net::new();
    let client = net.client();
    assert_eq!(client.get("k").await, Ok(None));
    net.world().swarm = SwarmId(8);
    client.put("k", "one").await.unwrap();
    sleep(MS * 500).await;
    net.script([Fault::NotSent]);
    client.put("k", "two").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap().value, b"two");
}

/// A net with a node of another swarm of the same name.
fn two_swarms() -> Net {
    let net = Net::new();
    net.world().linked.push(node(9));
    net.world().others.insert(node(9), SwarmId(8));
    net
}

async fn swarm_of(client: &Client<Net>) -> Option<SwarmId> {
    client.shared.router.fetch().await.map(|view| view.swarm)
}

#[tokio::test(start_paused = true)]
async fn a_client_within_a_node_means_the_swarm_of_its_node() {
    let net = two_swarms();
    for (home, swarm) in [(node(1), SwarmId(7)), (node(9), SwarmId(8))] {
        net.world().home = Some(home);
        for seed in 0..20 {
            let client = net.client_drawing(seed);
            assert_eq!(swarm_of(&client).await, Some(swarm));
            assert_eq!(client.view().await.unwrap().swarm, swarm);
        }
    }
    // Also when that changes.
    let client = net.client();
    assert_eq!(swarm_of(&client).await, Some(SwarmId(8)));
    net.world().home = Some(node(1));
    assert_eq!(swarm_of(&client).await, Some(SwarmId(7)));
}

#[tokio::test(start_paused = true)]
async fn a_visitor_stays_with_its_swarm_as_long_as_a_member_is_linked() {
    let net = Net::new();
    let client = net.client();
    assert_eq!(swarm_of(&client).await, Some(SwarmId(7)));
    net.world().linked = vec![node(1), node(9)];
    net.world().others.insert(node(9), SwarmId(8));
    net.cut(true);
    assert_eq!(swarm_of(&client).await, None);
    // The member is in another swarm now: follow it.
    net.cut(false);
    net.world().swarm = SwarmId(6);
    assert_eq!(swarm_of(&client).await, Some(SwarmId(6)));
    // All members are gone.
    net.world().linked = vec![node(9)];
    assert_eq!(swarm_of(&client).await, Some(SwarmId(8)));
}

#[tokio::test(start_paused = true)]
async fn who_lost_its_only_link_dials_the_others_it_knows() {
    let net = Net::new();
    net.world().linked = vec![node(1)];
    let client = net.client();
    client.put("k", "one").await.unwrap();
    net.world().linked.clear();
    assert_eq!(client.with_deadline(300 * MS).put("k", "two").await, Err(Error::Unreachable));
    let wanted: BTreeSet<_> = net.world().wanted.drain(..).collect();
    assert!(wanted.contains(&node(2)) && wanted.contains(&node(3)), "{wanted:?}");
    // Also for questions that are not about a key.
    assert!(client.with_deadline(300 * MS).view().await.is_err());
    assert!(net.world().wanted.contains(&node(2)));
}
