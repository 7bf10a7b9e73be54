//! The judges of locks, judged: a leader that measures leases at a tenth of their length is found out.
//!
//! One node, in this process, on a paused clock: a real state machine and the real client, between them a leader
//! whose clock runs too fast. Its locks are granted to the next while the holder, by the lease that it was promised,
//! rightly trusts in its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use roundtable::client::Client;
use roundtable::id::{NodeId, SwarmId};
use roundtable::state_machine::{Command, Operation, Origin, PartitionTime, Reply, StateMachine};
use roundtable::time::Timestamp;
use roundtable::wire::{Request, Response, Rpc, RpcError, SwarmView};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::checker::locks::{Section, fairness, violations};
use super::contender::Contender;

const SWARM: SwarmId = SwarmId(1);
const LEASE: Duration = Duration::from_secs(2);
/// From one side to the other.
const WAY: Duration = Duration::from_millis(1);
/// Longer than a tenth of the lease: the hasty leader has granted the lock to somebody else by then.
const STAY: Duration = Duration::from_millis(300);
const CONTENDERS: u32 = 4;
const SECTIONS: usize = 10;

/// The one partition, and how fast its leader's clock runs.
#[derive(Debug)]
struct Partition {
    machine: StateMachine,
    index: u64,
    started: Instant,
    haste: u32,
}

impl Partition {
    fn run(&mut self, origin: Option<Origin>, operation: Operation) -> Reply {
        self.index += 1;
        let elapsed = (self.started.elapsed() * self.haste).as_millis();
        let time = PartitionTime(elapsed.try_into().unwrap());
        self.machine.apply(self.index, Command { time, origin, operation })
    }
}

/// A network of one node.
#[derive(Debug, Clone)]
struct Leader(Arc<Mutex<Partition>>);

impl Leader {
    fn node() -> NodeId {
        NodeId::from_public_key([1; 32])
    }

    fn view() -> SwarmView {
        SwarmView {
            swarm: SWARM,
            name: "test".to_owned(),
            partitions: 1,
            node: Self::node(),
            members: Vec::new(),
            leaders: vec![Some(Self::node())],
        }
    }

    fn client(&self, seed: u64) -> Client<Self> {
        let start = Instant::now();
        let clock = move || Timestamp::ZERO + start.elapsed();
        Client::new(self.clone(), Arc::new(clock), StdRng::seed_from_u64(seed))
    }
}

impl Rpc for Leader {
    async fn call(&self, _: NodeId, request: Request, timeout: Duration) -> Result<Response, RpcError> {
        sleep(WAY).await;
        let answer = match request {
            Request::View => Response::View(Self::view()),
            Request::Write { origin, operation, .. } => {
                Response::Reply(self.0.lock().unwrap().run(Some(origin), operation))
            }
            Request::Read { query, .. } => {
                let mut partition = self.0.lock().unwrap();
                partition.run(None, Operation::Advance);
                Response::Answer { answer: partition.machine.query(&query), stale: false }
            }
            Request::Wait { watch, .. } => {
                let look = async {
                    loop {
                        sleep(WAY).await;
                        let mut partition = self.0.lock().unwrap();
                        partition.run(None, Operation::Advance);
                        if let Some(answer) = partition.machine.look(&watch) {
                            return Response::Answer { answer, stale: false };
                        }
                    }
                };
                tokio::time::timeout(timeout, look).await.unwrap_or(Response::Unchanged)
            }
            other => panic!("not asked here: {other:?}"),
        };
        sleep(WAY).await;
        Ok(answer)
    }

    fn linked(&self) -> Vec<NodeId> {
        vec![Self::node()]
    }

    fn want(&self, _: NodeId, _: &[String]) {}
}

/// What contenders saw of a leader with this haste.
async fn contended(haste: u32, fenced: bool) -> Vec<Section> {
    let started = Instant::now();
    let partition = Partition { machine: StateMachine::default(), index: 0, started, haste };
    let leader = Leader(Arc::new(Mutex::new(partition)));
    let mut contenders = JoinSet::new();
    for process in 0..CONTENDERS {
        let mut contender = Contender {
            client: leader.client(u64::from(process)),
            lock: "lock".to_owned(),
            key: "guarded".to_owned(),
            lease: LEASE,
            fenced,
            process,
            lane: 0,
            wishes: 0,
        };
        contenders.spawn(async move {
            let mut sections = Vec::new();
            for _ in 0..SECTIONS {
                let stay = async { sleep(STAY).await };
                sections.extend(contender.section(stay, || started.elapsed()).await);
            }
            sections
        });
    }
    let all = timeout(Duration::from_secs(600), contenders.join_all()).await;
    all.expect("the contenders end").concat()
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_keeps_to_the_leases_passes() {
    for fenced in [true, false] {
        let sections = contended(1, fenced).await;
        assert_eq!(sections.len(), CONTENDERS as usize * SECTIONS);
        let found = violations(&sections);
        assert!(found.is_empty(), "{found:#?}");
        let fairness = fairness(&sections, &[]);
        assert!(fairness.found.is_empty() && fairness.judged > 0, "{fairness:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_leases_early_is_found_out_when_nothing_is_fenced() {
    let sections = contended(10, false).await;
    let found = violations(&sections);
    assert!(found.iter().any(|one| one.contains("overlap")), "{found:#?}");
    // It also takes places away from waiters that are there.
    let found = fairness(&sections, &[]).found;
    assert!(found.iter().any(|one| one.contains("lost its place")), "{found:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_store_keeps_sections_apart_even_then() {
    let sections = contended(10, true).await;
    assert!(sections.iter().any(|section| section.fenced), "nobody was overtaken");
    let found = violations(&sections);
    assert!(!found.iter().any(|one| one.contains("overlap")), "{found:#?}");
    // But its holders were not told, as they should have been.
    assert!(found.iter().any(|one| one.contains("not told")), "{found:#?}");
}
