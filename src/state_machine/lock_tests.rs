//! The lock table against what its documentation says, written down in the simplest way.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::id::{FencingToken, SessionId};

const LEASE: u64 = 1000;
const MODES: [LockMode; 4] =
    [LockMode::Exclusive, LockMode::Shared, LockMode::Permit { of: 2 }, LockMode::Permit { of: 3 }];

/// A partition and the next index of its log.
#[derive(Default)]
struct Partition {
    state: StateMachine,
    index: u64,
    time: u64,
}

impl Partition {
    fn run(&mut self, operation: Operation) -> Reply {
        self.index += 1;
        let command = Command { time: PartitionTime(self.time), origin: None, operation };
        self.state.apply(self.index, command)
    }

    fn acquire(&mut self, number: u64, mode: LockMode) -> Reply {
        self.run(acquire("lock", number, mode, LEASE, true))
    }

    fn release(&mut self, number: u64) -> Reply {
        self.run(Operation::Release { name: "lock".into(), claim: claim(number) })
    }

    fn renew(&mut self, numbers: &[u64]) -> Reply {
        let session = claim(0).session;
        self.run(Operation::Renew { name: "lock".into(), session, numbers: numbers.to_vec() })
    }

    fn state_of(&self, number: u64) -> PlaceState {
        match self.state.query(&Query::Place { name: "lock".into(), claim: claim(number) }) {
            Answer::Place(state) => state,
            other => panic!("{other:?}"),
        }
    }

    fn holders(&self, name: &str) -> Vec<u64> {
        match self.state.query(&Query::Lock { name: name.into() }) {
            Answer::Lock(lock) => lock
                .map_or(Vec::new(), |lock| lock.holders.iter().map(|holder| holder.claim.number).collect()),
            other => panic!("{other:?}"),
        }
    }
}

fn claim(number: u64) -> Claim {
    Claim { session: SessionId(1), number }
}

fn acquire(name: &str, number: u64, mode: LockMode, lease_ms: u64, wait: bool) -> Operation {
    let note = format!("note {number}").into_bytes();
    Operation::Acquire { name: name.into(), claim: claim(number), mode, lease_ms, wait, note }
}

fn granted(token: u64) -> Reply {
    Reply::Granted { token: FencingToken(token) }
}

#[test]
fn who_came_first_is_served_first() {
    let mut partition = Partition::default();
    assert_eq!(partition.acquire(1, LockMode::Exclusive), granted(1));
    assert_eq!(partition.acquire(2, LockMode::Exclusive), Reply::Queued { ahead: 1 });
    assert_eq!(partition.acquire(3, LockMode::Exclusive), Reply::Queued { ahead: 2 });
    assert_eq!(partition.release(1), Reply::Released { held: true });
    assert_eq!(partition.holders("lock"), [2]);
    // Who gives up its place lets the next one move up.
    assert_eq!(partition.acquire(4, LockMode::Exclusive), Reply::Queued { ahead: 2 });
    assert_eq!(partition.release(3), Reply::Released { held: false });
    assert_eq!(partition.state_of(4), PlaceState::Waiting { ahead: 1 });
    partition.release(2);
    assert_eq!(partition.holders("lock"), [4]);
    partition.release(4);
    assert!(partition.state.is_empty());
    assert_eq!(partition.release(4), Reply::NotHeld);
}

#[test]
fn who_does_not_wait_is_told_that_it_is_not_free() {
    let mut partition = Partition::default();
    partition.acquire(1, LockMode::Exclusive);
    let answer = partition.run(acquire("lock", 2, LockMode::Exclusive, LEASE, false));
    assert_eq!(answer, Reply::NotAcquired { ahead: 1 });
    assert_eq!(partition.state_of(2), PlaceState::Gone);
    assert_eq!(partition.acquire(1, LockMode::Exclusive), Reply::AlreadyHeld { token: FencingToken(1) });
}

#[test]
fn a_lease_that_is_not_renewed_ends_and_a_renewed_one_does_not() {
    let mut partition = Partition::default();
    for number in 1..=3 {
        partition.acquire(number, LockMode::Exclusive);
    }
    partition.time = LEASE - 1;
    // The second waits no more; nobody asked for the fourth.
    let alive = vec![(1, Some(FencingToken(1))), (3, None)];
    assert_eq!(partition.renew(&[1, 3, 4]), Reply::Renewed { alive });
    partition.time = LEASE;
    partition.run(Operation::Advance);
    assert_eq!(partition.state_of(2), PlaceState::Gone);
    assert_eq!(partition.holders("lock"), [1]);
    assert_eq!(partition.state.next_due(), Some(PartitionTime(2 * LEASE - 1)));
    // When all leases end at the same time, none of those whose lease is over is served.
    partition.time = 2 * LEASE - 1;
    partition.run(Operation::Advance);
    assert!(partition.holders("lock").is_empty());
    assert!(partition.state.is_empty());
}

#[test]
fn a_grant_begins_a_lease() {
    let mut partition = Partition::default();
    partition.acquire(1, LockMode::Exclusive);
    partition.time = LEASE - 1;
    partition.acquire(2, LockMode::Exclusive);
    partition.time = LEASE;
    partition.run(Operation::Advance);
    assert_eq!(partition.holders("lock"), [2]);
    assert_eq!(partition.state.next_due(), Some(PartitionTime(2 * LEASE)));
}

#[test]
fn a_reader_behind_a_writer_waits() {
    let mut partition = Partition::default();
    partition.acquire(1, LockMode::Shared);
    partition.acquire(2, LockMode::Shared);
    partition.acquire(3, LockMode::Exclusive);
    assert_eq!(partition.acquire(4, LockMode::Shared), Reply::Queued { ahead: 3 });
    partition.acquire(5, LockMode::Shared);
    partition.release(1);
    partition.release(2);
    assert_eq!(partition.holders("lock"), [3]);
    partition.release(3);
    assert_eq!(partition.holders("lock"), [4, 5]);
    // Also of those that were granted at the same moment one is the later.
    let tokens = [4, 5].map(|number| partition.state_of(number));
    assert_ne!(tokens[0], tokens[1]);
}

#[test]
fn a_semaphore_has_as_many_holders_as_permits() {
    let mut partition = Partition::default();
    let mode = LockMode::Permit { of: 2 };
    partition.acquire(1, mode);
    partition.acquire(2, mode);
    assert_eq!(partition.acquire(3, mode), Reply::Queued { ahead: 2 });
    partition.release(2);
    assert_eq!(partition.holders("lock"), [1, 3]);
    // Of numbers that differ the smallest counts.
    partition.run(acquire("lock", 4, LockMode::Permit { of: 9 }, LEASE, true));
    assert_eq!(partition.holders("lock"), [1, 3]);
}

#[test]
fn tokens_grow_though_the_lock_was_forgotten() {
    let mut partition = Partition::default();
    for number in 1..=3 {
        partition.acquire(number, LockMode::Shared);
    }
    for number in 1..=3 {
        partition.release(number);
    }
    partition.acquire(4, LockMode::Exclusive);
    for number in 5..=9 {
        partition.acquire(number, LockMode::Shared);
    }
    partition.release(4);
    let PlaceState::Held { token: last } = partition.state_of(9) else { panic!("not held") };
    assert_eq!(last, FencingToken(17));
    partition.state = StateMachine::restore(&partition.state.snapshot()).unwrap();
    for number in 5..=9 {
        partition.release(number);
    }
    assert!(partition.index < 100);
    partition.index = 13;
    let Reply::Granted { token } = partition.acquire(10, LockMode::Exclusive) else { panic!("not granted") };
    assert!(token > last);
}

#[test]
fn a_note_is_the_holders_to_change() {
    let mut partition = Partition::default();
    partition.acquire(1, LockMode::Exclusive);
    partition.acquire(2, LockMode::Exclusive);
    let proclaim =
        |number| Operation::Proclaim { name: "lock".into(), claim: claim(number), note: b"new".to_vec() };
    let watch = |seen| Watch::Lock { name: "lock".into(), seen: Some(Version(seen)) };
    assert_eq!(partition.state.look(&watch(1)), None);
    assert_eq!(partition.run(proclaim(2)), Reply::NotHeld);
    assert_eq!(partition.run(proclaim(1)), granted(1));
    let Some(Answer::Lock(Some(lock))) = partition.state.look(&watch(1)) else { panic!("no change seen") };
    assert_eq!((lock.version, lock.holders[0].note.as_slice()), (Version(4), &b"new"[..]));
    assert_eq!(partition.state.look(&watch(4)), None);
}

#[test]
fn who_watches_its_place_learns_of_the_grant_and_of_the_loss() {
    let mut partition = Partition::default();
    partition.acquire(1, LockMode::Exclusive);
    partition.acquire(2, LockMode::Exclusive);
    let watch = |number| Watch::Place { name: "lock".into(), claim: claim(number) };
    assert_eq!(partition.state.look(&watch(2)), None);
    assert_eq!(partition.state.look(&watch(3)), Some(Answer::Place(PlaceState::Gone)));
    partition.release(1);
    let held = PlaceState::Held { token: FencingToken(3) };
    assert_eq!(partition.state.look(&watch(2)), Some(Answer::Place(held)));
}

#[test]
fn a_lower_token_is_refused_also_after_a_delete() {
    let mut partition = Partition::default();
    let put = |token| Operation::PutFenced {
        key: "k".into(),
        value: "v".into(),
        ttl_ms: None,
        token: FencingToken(token),
    };
    let delete = |token| Operation::DeleteFenced { key: "k".into(), token: FencingToken(token) };
    let fenced = |token| Reply::Fenced { current: FencingToken(token) };
    assert_eq!(partition.run(put(5)), Reply::Written { version: Version(1) });
    assert_eq!(partition.run(put(5)), Reply::Written { version: Version(2) });
    assert_eq!(partition.run(put(4)), fenced(5));
    assert_eq!(partition.run(delete(4)), fenced(5));
    assert_eq!(partition.run(delete(6)), Reply::Deleted { existed: true });
    assert!(partition.state.len() == 0 && !partition.state.is_empty());
    partition.state = StateMachine::restore(&partition.state.snapshot()).unwrap();
    assert_eq!(partition.run(put(5)), fenced(6));
    assert_eq!(partition.run(Operation::Seal { into: SwarmId(1), attempt: 1, epoch: None }), Reply::NotEmpty);
}

#[test]
fn a_partition_with_a_lock_is_not_sealed() {
    let mut partition = Partition::default();
    partition.acquire(1, LockMode::Exclusive);
    assert!(partition.state.bytes() > 0);
    assert_eq!(partition.run(Operation::Seal { into: SwarmId(1), attempt: 1, epoch: None }), Reply::NotEmpty);
    partition.release(1);
    assert_eq!(partition.state.bytes(), 0);
    let sealed = partition.run(Operation::Seal { into: SwarmId(1), attempt: 1, epoch: None });
    assert!(matches!(sealed, Reply::Sealed { .. }));
}

#[test]
fn the_queue_of_a_name_is_bounded() {
    let mut partition = Partition::default();
    let waiters = MAX_WAITERS as u64;
    for number in 0..=waiters {
        partition.acquire(number, LockMode::Exclusive);
    }
    assert_eq!(partition.acquire(waiters + 1, LockMode::Exclusive), Reply::TooManyLocks);
    partition.release(0);
    assert_eq!(partition.acquire(waiters + 1, LockMode::Exclusive), Reply::Queued { ahead: count() });
    fn count() -> u32 {
        u32::try_from(MAX_WAITERS).unwrap()
    }
}

#[test]
fn limits_of_locks_are_checked() {
    let check = |mode, lease_ms| acquire("lock", 1, mode, lease_ms, true).check();
    assert_eq!(check(LockMode::Exclusive, MIN_LEASE_MS), Ok(()));
    assert_eq!(check(LockMode::Exclusive, MIN_LEASE_MS - 1), Err(LimitError::Lease));
    assert_eq!(check(LockMode::Exclusive, MAX_LEASE_MS + 1), Err(LimitError::Lease));
    assert_eq!(check(LockMode::Permit { of: 0 }, LEASE), Err(LimitError::Permits));
    assert!(acquire("", 1, LockMode::Shared, LEASE, true).check().is_err());
    let numbers = vec![0; MAX_RENEWED + 1];
    let renew = Operation::Renew { name: "lock".into(), session: SessionId(1), numbers };
    assert_eq!(renew.check(), Err(LimitError::Renewals));
}

/// A queue per name: holders and waiters in the order in which they came.
#[derive(Default)]
struct Model {
    time: u64,
    queues: BTreeMap<&'static str, Vec<Wanted>>,
    last_token: u64,
}

#[derive(Debug, Clone)]
struct Wanted {
    number: u64,
    mode: LockMode,
    lease: u64,
    until: u64,
    token: Option<u64>,
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Acquire {
        name: &'static str,
        mode: LockMode,
        lease: u64,
        wait: bool,
    },
    /// Of one of the claims made before.
    Release(prop::sample::Index),
    Renew(Vec<prop::sample::Index>),
    Pass(u64),
    Snapshot,
}

impl Model {
    fn serve(&mut self, index: u64) {
        for queue in self.queues.values_mut() {
            loop {
                let held: Vec<LockMode> =
                    queue.iter().filter(|one| one.token.is_some()).map(|one| one.mode).collect();
                let Some(next) = queue.iter_mut().find(|one| one.token.is_none()) else { break };
                let fits = held.iter().chain([&next.mode]).all(|mode| match (mode, next.mode) {
                    (LockMode::Exclusive, _) | (_, LockMode::Exclusive) => held.is_empty(),
                    (LockMode::Shared, LockMode::Shared) => true,
                    (LockMode::Permit { of }, LockMode::Permit { .. }) => held.len() < *of as usize,
                    _ => false,
                });
                if !fits {
                    break;
                }
                self.last_token = index.max(self.last_token + 1);
                next.token = Some(self.last_token);
                next.until = self.time + next.lease;
            }
        }
    }

    fn expire(&mut self, index: u64) {
        let time = self.time;
        for queue in self.queues.values_mut() {
            queue.retain(|one| one.until > time);
        }
        self.serve(index);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || prop_oneof![3 => Just("a"), 1 => Just("b")];
    let step = prop_oneof![
        4 => (name(), 0usize..MODES.len(), 1u64..200, any::<bool>()).prop_map(|(name, mode, lease, wait)| {
            Step::Acquire { name, mode: MODES[mode], lease, wait }
        }),
        3 => any::<prop::sample::Index>().prop_map(Step::Release),
        2 => vec(any::<prop::sample::Index>(), 0..4).prop_map(Step::Renew),
        2 => (0u64..80).prop_map(Step::Pass),
        1 => Just(Step::Snapshot),
    ];
    vec(step, 0..120)
}

proptest! {
    /// Who holds, who waits, in which order, with which tokens and until when: as the model says. And apart from
    /// the model: holders are compatible, tokens grow, nobody is passed over.
    #[test]
    fn agrees_with_the_model(steps in steps()) {
        let mut partition = Partition::default();
        let mut model = Model::default();
        let mut claims: Vec<(&'static str, u64)> = vec![("a", 0)];
        let mut tokens_seen: BTreeMap<u64, u64> = BTreeMap::new();
        for (number, step) in (1u64..).zip(steps) {
            match step {
                Step::Acquire { name, mode, lease, wait } => {
                    let reply = partition.run(acquire(name, number, mode, lease, wait));
                    model.expire(partition.index);
                    let until = model.time + lease;
                    let queue = model.queues.entry(name).or_default();
                    queue.push(Wanted { number, mode, lease, until, token: None });
                    model.serve(partition.index);
                    let queue = model.queues.get_mut(name).unwrap();
                    let token = queue.last().unwrap().token;
                    let ahead = u32::try_from(queue.len() - 1).unwrap();
                    let expected = match token {
                        Some(token) => granted(token),
                        None if wait => Reply::Queued { ahead },
                        None => {
                            queue.pop();
                            Reply::NotAcquired { ahead }
                        }
                    };
                    prop_assert_eq!(reply, expected);
                    claims.push((name, number));
                }
                Step::Release(which) => {
                    let (name, number) = *which.get(&claims);
                    let reply =
                        partition.run(Operation::Release { name: name.into(), claim: claim(number) });
                    model.expire(partition.index);
                    let queue = model.queues.entry(name).or_default();
                    let expected = match queue.iter().position(|one| one.number == number) {
                        Some(at) => Reply::Released { held: queue.remove(at).token.is_some() },
                        None => Reply::NotHeld,
                    };
                    model.serve(partition.index);
                    prop_assert_eq!(reply, expected);
                }
                Step::Renew(which) => {
                    let numbers: Vec<u64> = which.iter().map(|which| which.get(&claims).1).collect();
                    partition.renew(&numbers);
                    model.expire(partition.index);
                    for queue in model.queues.values_mut() {
                        for one in queue.iter_mut().filter(|one| numbers.contains(&one.number)) {
                            one.until = model.time + one.lease;
                        }
                    }
                }
                Step::Pass(time) => {
                    partition.time += time;
                    model.time += time;
                    partition.run(Operation::Advance);
                    model.expire(partition.index);
                }
                Step::Snapshot => {
                    let bytes = partition.state.snapshot();
                    let restored = StateMachine::restore(&bytes).unwrap();
                    prop_assert_eq!(&restored, &partition.state);
                    prop_assert_eq!(restored.snapshot(), bytes);
                    partition.state = restored;
                }
            }
            let mut bytes = 0;
            let mut due = Vec::new();
            for name in ["a", "b"] {
                let queue = model.queues.get(name).cloned().unwrap_or_default();
                bytes += queue.iter().map(|one| 1 + format!("note {}", one.number).len()).sum::<usize>();
                due.extend(queue.iter().map(|one| one.until));
                let Answer::Lock(view) = partition.state.query(&Query::Lock { name: name.into() }) else {
                    unreachable!()
                };
                let places = view.map_or(Vec::new(), |view| [view.holders, view.waiters].concat());
                let found: Vec<_> = places
                    .iter()
                    .map(|place| (place.claim.number, place.token.map(|token| token.0), place.lease_ms))
                    .collect();
                let mut wanted: Vec<_> = queue
                    .iter()
                    .map(|one| (one.number, one.token, one.until - model.time))
                    .collect();
                // Holders by their tokens, which is by their arrival.
                wanted.sort_by_key(|(.., token, _)| token.is_none());
                prop_assert_eq!(&found, &wanted);
                for (number, token, _) in found {
                    let Some(token) = token else { continue };
                    if let Some(known) = tokens_seen.get(&number) {
                        prop_assert_eq!(*known, token);
                        continue;
                    }
                    // A grant of a later arrival, or after any other, has a higher token.
                    let highest = tokens_seen.values().max().copied().unwrap_or(0);
                    prop_assert!(token > highest);
                    tokens_seen.insert(number, token);
                }
            }
            prop_assert_eq!(partition.state.bytes(), bytes);
            prop_assert_eq!(partition.state.next_due().map(|due| due.0), due.into_iter().min());
        }
    }
}
