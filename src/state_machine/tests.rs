use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::id::{FencingToken, SessionId};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// A partition and the next index of its log.
#[derive(Default)]
struct Partition {
    state: StateMachine,
    index: u64,
    time: u64,
}

impl Partition {
    fn at(&mut self, time: u64) -> &mut Self {
        self.time = time;
        self
    }

    fn apply(&mut self, origin: impl Into<Option<Origin>>, operation: Operation) -> Reply {
        let origin = origin.into();
        self.index += 1;
        let time = PartitionTime(self.time);
        self.state.apply(self.index, Command { time, origin, operation })
    }

    fn run(&mut self, operation: Operation) -> Reply {
        self.apply(None, operation)
    }

    fn get(&self, key: &str) -> Option<Entry> {
        match self.state.query(&Query::Get { key: key.into() }) {
            Answer::Entry(entry) => entry,
            other => panic!("{other:?}"),
        }
    }

    fn scan(&self, prefix: &str, after: &str, limit: u32) -> (Vec<String>, bool) {
        let query = Query::Scan { prefix: prefix.into(), after: after.into(), limit };
        match self.state.query(&query) {
            Answer::Page { entries, more } => (
                entries.into_iter().map(|(key, _)| String::from_utf8(key.into_vec()).unwrap()).collect(),
                more,
            ),
            other => panic!("{other:?}"),
        }
    }
}

fn put(key: &str, value: &str, ttl_ms: Option<u64>) -> Operation {
    Operation::Put { key: key.into(), value: value.into(), ttl_ms }
}

fn increment(key: &str, by: i64) -> Operation {
    Operation::Increment { key: key.into(), by }
}

fn origin(session: u128, sequence: u64, settled_below: u64) -> Origin {
    Origin { session: SessionId(session), sequence, settled_below }
}

#[test]
fn a_retry_is_answered_as_the_first_attempt_and_changes_nothing() {
    let mut partition = Partition::default();
    let first = partition.apply(origin(1, 0, 0), increment("n", 5));
    assert_eq!(first, Reply::Incremented { value: 5, version: Version(1) });
    partition.run(put("n", "100", None));
    assert_eq!(partition.apply(origin(1, 0, 0), increment("n", 5)), first);
    assert_eq!(partition.get("n").unwrap().value, b"100");
    // A refusal by the operation itself is remembered as well: the key has changed, the answer has not.
    let cas = Operation::CompareAndSwap { key: "n".into(), expected: None, value: vec![], ttl_ms: None };
    let conflict = partition.apply(origin(1, 1, 0), cas.clone());
    assert_eq!(conflict, Reply::Conflict { version: Some(Version(2)) });
    partition.run(Operation::Delete { key: "n".into() });
    assert_eq!(partition.apply(origin(1, 1, 1), cas), conflict);
}

#[test]
fn a_settled_write_that_still_arrives_is_not_applied() {
    let mut partition = Partition::default();
    partition.apply(origin(1, 7, 7), put("k", "new", None));
    assert_eq!(partition.apply(origin(1, 6, 3), put("k", "old", None)), Reply::Settled);
    assert_eq!(partition.get("k").unwrap().value, b"new");
    // Pruned by a later write.
    partition.apply(origin(1, 9, 9), increment("n", 1));
    assert_eq!(partition.apply(origin(1, 7, 7), increment("n", 1)), Reply::Settled);
    // Writes in flight together may arrive in any order.
    partition.apply(origin(2, 5, 4), increment("m", 1));
    partition.apply(origin(2, 4, 4), increment("m", 1));
    assert_eq!(partition.get("m").unwrap().value, b"2");
}

#[test]
fn an_idle_session_is_forgotten_and_a_busy_one_is_not() {
    let ttl = u64::try_from(SESSION_TTL.as_millis()).unwrap();
    let mut partition = Partition::default();
    partition.apply(origin(1, 0, 0), increment("n", 1));
    partition.apply(origin(2, 0, 0), increment("n", 1));
    let due = partition.state.next_due().unwrap();
    assert!(due.0 >= ttl && due.0 < ttl + 10_000, "{due:?}");
    partition.at(ttl - 1).apply(origin(2, 1, 0), increment("n", 1));
    partition.at(due.0).run(Operation::Advance);
    assert_eq!(partition.state.sessions.len(), 1);
    partition.apply(origin(2, 0, 0), increment("n", 1));
    assert_eq!(partition.get("n").unwrap().value, b"3");
}

#[test]
fn one_session_may_not_hoard_answers() {
    let mut partition = Partition::default();
    for sequence in 0..MAX_REMEMBERED as u64 {
        partition.apply(origin(1, sequence, 0), increment("n", 1));
    }
    let next = MAX_REMEMBERED as u64;
    assert_eq!(partition.apply(origin(1, next, 0), increment("n", 1)), Reply::TooManySessions);
    // The refusal is not remembered: with room, the same write goes through.
    assert_eq!(
        partition.apply(origin(1, next, 1), increment("n", 1)),
        Reply::Incremented { value: 1025, version: Version(partition.index) }
    );
}

#[test]
fn a_full_partition_forgets_idle_sessions_but_none_that_may_retry() {
    let guard = u64::try_from(SESSION_GUARD.as_millis()).unwrap();
    let mut partition = Partition::default();
    for session in 0..MAX_SESSIONS as u128 {
        partition.apply(origin(session, 0, 0), Operation::Advance);
    }
    let newcomer = origin(u128::MAX, 0, 0);
    partition.at(guard - 1);
    assert_eq!(partition.apply(newcomer, increment("n", 1)), Reply::TooManySessions);
    // An old session may still write.
    assert!(matches!(
        partition.apply(origin(3, 1, 1), increment("n", 1)),
        Reply::Incremented { value: 1, .. }
    ));
    partition.at(guard);
    assert!(matches!(partition.apply(newcomer, increment("n", 1)), Reply::Incremented { value: 2, .. }));
    assert_eq!(partition.state.sessions.len(), MAX_SESSIONS);
}

#[test]
fn keys_expire_when_due_and_not_before() {
    let mut partition = Partition::default();
    partition.at(1000).run(put("a", "1", Some(50)));
    partition.run(put("b", "1", Some(50)));
    partition.run(put("c", "1", Some(50)));
    partition.run(put("d", "1", Some(50)));
    assert_eq!(partition.state.next_due(), Some(PartitionTime(1050)));
    partition.at(1049).run(put("a", "2", None)); // clears it
    partition.run(increment("b", 1)); // keeps it
    let expire = |ttl_ms| Operation::Expire { key: "c".into(), ttl_ms };
    assert_eq!(partition.run(expire(Some(1000))), Reply::Written { version: Version(7) });
    assert_eq!(partition.get("b").unwrap().ttl_ms, Some(1));
    partition.at(1050).run(Operation::Advance);
    assert_eq!(partition.get("a").unwrap().ttl_ms, None);
    assert_eq!(partition.get("b"), None);
    assert_eq!(partition.get("d"), None);
    assert_eq!(partition.get("c").unwrap().ttl_ms, Some(999));
    // A stamp from before is no way back.
    partition.at(10).run(expire(Some(1)));
    assert_eq!(partition.state.time(), PartitionTime(1050));
    partition.at(1051).run(Operation::Advance);
    assert_eq!(partition.run(expire(None)), Reply::NotFound);
    assert_eq!(partition.state.next_due(), None);
    assert_eq!(partition.state.len(), 1);
}

#[test]
fn what_is_no_integer_or_does_not_fit_is_left_alone() {
    let mut partition = Partition::default();
    partition.run(put("text", "1x", None));
    partition.run(put("max", "9223372036854775807", None));
    assert_eq!(partition.run(increment("text", 1)), Reply::NotAnInteger);
    assert_eq!(partition.run(increment("max", 1)), Reply::NotAnInteger);
    assert_eq!(partition.get("max").unwrap().version, Version(2));
    assert!(matches!(
        partition.run(increment("max", -8)),
        Reply::Incremented { value: 9_223_372_036_854_775_799, .. }
    ));
}

#[test]
fn only_the_attempt_that_holds_the_seal_breaks_or_keeps_it() {
    let into = SwarmId(1);
    let seal = |attempt| Operation::Seal { into, attempt, epoch: None };
    let epoch = |reply| match reply {
        Reply::Sealed { epoch, .. } => epoch,
        other => panic!("{other:?}"),
    };
    let mut partition = Partition::default();
    let first = epoch(partition.run(seal(1)));
    // Another attempt takes over; the first can neither finish nor undo it.
    let second = epoch(partition.run(seal(2)));
    assert!(second > first);
    assert_eq!(partition.run(Operation::Dissolve { attempt: 1, epoch: first }), Reply::Unsealed);
    partition.run(Operation::Unseal { attempt: 1 });
    assert_eq!(partition.state.sealed(), Some(into));
    // Once dissolved it stays so.
    assert_eq!(partition.run(Operation::Dissolve { attempt: 2, epoch: second }), Reply::Dissolved { into });
    assert_eq!(partition.run(seal(3)), Reply::Dissolved { into });
    partition.run(Operation::Unseal { attempt: 2 });
    assert_eq!(partition.state.sealed(), Some(into));
}

#[test]
fn attempts_hold_seals_in_the_order_in_which_they_took_the_first_partition() {
    let into = SwarmId(1);
    let seal = |attempt, epoch| Operation::Seal { into, attempt, epoch: Some(Version(epoch)) };
    let mut partition = Partition::default();
    partition.run(seal(2, 20));
    // The earlier attempt comes too late: it can neither take the seal over nor break it.
    assert_eq!(partition.run(seal(1, 10)), Reply::Unsealed);
    partition.run(Operation::Unseal { attempt: 1 });
    let refused = partition.apply(origin(1, 0, 0), put("k", "v", None));
    assert_eq!(refused, Reply::Sealed { into, epoch: Version(20) });
}

#[test]
fn a_late_copy_of_a_seal_does_not_let_its_attempt_dissolve_the_swarm() {
    let into = SwarmId(1);
    let seal = |attempt| Operation::Seal { into, attempt, epoch: None };
    let mut first_partition = Partition::default();
    let Reply::Sealed { epoch, .. } = first_partition.run(seal(1)) else { panic!() };
    first_partition.run(seal(2));
    first_partition.run(seal(1));
    assert_eq!(first_partition.run(Operation::Dissolve { attempt: 1, epoch }), Reply::Unsealed);
}

#[test]
fn a_partition_that_remembers_a_session_is_not_sealed() {
    let mut partition = Partition::default();
    partition.apply(origin(1, 0, 0), put("k", "v", None));
    partition.run(Operation::Delete { key: "k".into() });
    assert_eq!(partition.run(Operation::Seal { into: SwarmId(1), attempt: 1, epoch: None }), Reply::NotEmpty);
}

#[test]
fn a_sealed_partition_takes_no_write_until_it_is_unsealed() {
    let into = SwarmId(1);
    let epoch = Version(1);
    let seal = |attempt| Operation::Seal { into, attempt, epoch: Some(epoch) };
    let mut partition = Partition::default();
    partition.run(put("k", "v", None));
    assert_eq!(partition.run(seal(1)), Reply::NotEmpty);
    partition.run(Operation::Delete { key: "k".into() });
    assert_eq!(partition.run(seal(1)), Reply::Sealed { into, epoch });
    let write = |partition: &mut Partition| partition.apply(origin(1, 0, 0), increment("n", 1));
    assert_eq!(write(&mut partition), Reply::Sealed { into, epoch });
    assert_eq!(partition.state.sealed(), Some(into));
    assert!(partition.state.is_empty());
    assert_eq!(partition.run(Operation::Unseal { attempt: 1 }), Reply::Unsealed);
    // The same write, tried again, happens now and only once.
    assert!(matches!(write(&mut partition), Reply::Incremented { value: 1, .. }));
    assert!(matches!(write(&mut partition), Reply::Incremented { value: 1, .. }));
}

#[test]
fn scans_turn_pages_without_gaps() {
    let mut partition = Partition::default();
    for key in ["a", "b", "b/1", "b/2", "b/3", "c"] {
        partition.run(put(key, "", None));
    }
    assert_eq!(partition.scan("b", "", 2), (vec!["b".to_owned(), "b/1".to_owned()], true));
    assert_eq!(partition.scan("b", "b/1", 2), (vec!["b/2".to_owned(), "b/3".to_owned()], false));
    assert_eq!(partition.scan("b", "a", 1), (vec!["b".to_owned()], true));
    assert_eq!(partition.scan("b", "c", 9), (vec![], false));
    assert_eq!(partition.scan("", "", u32::MAX).0.len(), 6);
}

#[test]
fn a_page_ends_after_the_entry_that_fills_it() {
    let mut partition = Partition::default();
    let value = "x".repeat(MAX_VALUE_BYTES);
    for key in ["a", "b", "c"] {
        partition.run(put(key, &value, None));
    }
    let (keys, more) = partition.scan("", "", 10);
    assert_eq!((keys.len(), more), (1, true));
}

#[test]
fn limits_are_named_with_the_size_that_exceeds_them() {
    let text = |operation: Operation| operation.check().unwrap_err().to_string();
    assert_eq!(
        text(put(&"k".repeat(5000), "", None)),
        "the key is 5000 bytes long, at most 4096 are allowed"
    );
    assert_eq!(
        text(put("k", &"v".repeat(MAX_VALUE_BYTES + 1), None)),
        "the value is 1048577 bytes long, at most 1048576 are allowed"
    );
    assert!(text(put("", "", None)).contains("empty"));
    assert!(text(put("k", "", Some(0))).contains("zero"));
    assert_eq!(put(&"k".repeat(MAX_KEY_BYTES), &"v".repeat(MAX_VALUE_BYTES), Some(1)).check(), Ok(()));
}

/// What the documentation says, in the simplest way: a list, searched from the front.
#[derive(Default)]
struct Model {
    time: u64,
    keys: Vec<Held>,
}

/// Key, value, version, expiry.
type Held = (Vec<u8>, Vec<u8>, u64, Option<u64>);

impl Model {
    fn apply(&mut self, index: u64, time: u64, operation: &Operation) -> Reply {
        self.time = self.time.max(time);
        let now = self.time;
        self.keys.retain(|(.., due)| due.is_none_or(|due| due > now));
        let Some(key) = operation.key() else {
            return Reply::Advanced;
        };
        let at = self.keys.iter().position(|(found, ..)| found == key);
        let old = at.map(|at| self.keys[at].clone());
        let version = Version(index);
        let due = |ttl: &Option<u64>| ttl.map(|ttl| now + ttl);
        let (value, due, reply) = match operation {
            Operation::Put { value, ttl_ms, .. } => (value.clone(), due(ttl_ms), Reply::Written { version }),
            Operation::Delete { .. } => {
                self.keys.retain(|(found, ..)| found != key);
                let existed = at.is_some();
                return Reply::Deleted { existed };
            }
            Operation::CompareAndSwap { expected, value, ttl_ms, .. } => {
                let found = old.map(|(_, _, version, _)| Version(version));
                if found != *expected {
                    return Reply::Conflict { version: found };
                }
                (value.clone(), due(ttl_ms), Reply::Written { version })
            }
            Operation::Increment { by, .. } => {
                let (text, due) = old.map_or((b"0".to_vec(), None), |(_, value, _, due)| (value, due));
                let Ok(value) = String::from_utf8(text).unwrap().parse::<i64>() else {
                    return Reply::NotAnInteger;
                };
                let value = value + by;
                (value.to_string().into_bytes(), due, Reply::Incremented { value, version })
            }
            Operation::Expire { ttl_ms, .. } => match old {
                Some((_, value, ..)) => (value, due(ttl_ms), Reply::Written { version }),
                None => return Reply::NotFound,
            },
            _ => unreachable!(),
        };
        self.keys.retain(|(found, ..)| found != key);
        self.keys.push((key.to_vec(), value, index, due));
        reply
    }
}

fn operations() -> impl Strategy<Value = Operation> {
    let key = || "[ab]{1,2}".prop_map(String::into_bytes);
    let value = || "[0-9]{1,3}|x".prop_map(String::into_bytes);
    let ttl = || option::of(0u64..60);
    prop_oneof![
        (key(), value(), ttl()).prop_map(|(key, value, ttl_ms)| Operation::Put { key, value, ttl_ms }),
        key().prop_map(|key| Operation::Delete { key }),
        (key(), option::of(1u64..40), value(), ttl()).prop_map(|(key, expected, value, ttl_ms)| {
            Operation::CompareAndSwap { key, expected: expected.map(Version), value, ttl_ms }
        }),
        (key(), -9i64..9).prop_map(|(key, by)| Operation::Increment { key, by }),
        (key(), ttl()).prop_map(|(key, ttl_ms)| Operation::Expire { key, ttl_ms }),
        Just(Operation::Advance),
    ]
}

/// Operations with their times, which go forth and, as stamps of a new leader might, back.
fn histories() -> impl Strategy<Value = Vec<(u64, Operation)>> {
    vec((0u64..40, operations()), 0..60).prop_map(|steps| {
        let mut now = 0;
        steps
            .into_iter()
            .map(|(step, operation)| {
                now += step;
                (now.saturating_sub(10), operation)
            })
            .collect()
    })
}

fn origins() -> impl Strategy<Value = Option<Origin>> {
    option::of((0u128..3, 0u64..30, 0u64..10)).prop_map(|numbers| {
        let (session, sequence, behind) = numbers?;
        Some(origin(session, sequence, sequence.saturating_sub(behind)))
    })
}

/// Operations on locks, and writes with tokens.
fn lock_operations() -> impl Strategy<Value = Operation> {
    let name = || "[ab]".prop_map(String::into_bytes);
    let claim =
        || (0u128..3, 0u64..5).prop_map(|(session, number)| Claim { session: SessionId(session), number });
    prop_oneof![
        (name(), claim(), any::<bool>(), 1u64..DAY_MS).prop_map(|(name, claim, alone, lease_ms)| {
            let mode = if alone { LockMode::Exclusive } else { LockMode::Permit { of: 2 } };
            Operation::Acquire { name, claim, mode, lease_ms, wait: true, note: b"note".to_vec() }
        }),
        (name(), claim()).prop_map(|(name, claim)| Operation::Release { name, claim }),
        (name(), 0u64..9)
            .prop_map(|(key, token)| Operation::DeleteFenced { key, token: FencingToken(token) }),
    ]
}

/// A state with keys, locks, sessions and answers in it.
fn states() -> impl Strategy<Value = StateMachine> {
    let operations = || prop_oneof![operations(), lock_operations()];
    vec((origins(), 0u64..DAY_MS / 100, operations()), 0..80).prop_map(|steps| {
        let mut partition = Partition::default();
        for (origin, time, operation) in steps {
            partition.at(time).apply(origin, operation);
        }
        partition.state
    })
}

proptest! {
    #[test]
    fn agrees_with_the_model(history in histories()) {
        let mut partition = Partition::default();
        let mut model = Model::default();
        for (time, operation) in history {
            let reply = partition.at(time).run(operation.clone());
            prop_assert_eq!(reply, model.apply(partition.index, time, &operation));
            model.keys.sort();
            let state = &partition.state;
            let held: Vec<_> = state
                .keys
                .iter()
                .map(|(key, slot)| {
                    (key.to_vec(), slot.value.to_vec(), slot.version.0, slot.expiry.map(|due| due.0))
                })
                .collect();
            prop_assert_eq!(&held, &model.keys);
            let bytes: usize = held.iter().map(|(key, value, ..)| key.len() + value.len()).sum();
            prop_assert_eq!(state.bytes(), bytes);
            let due = held.iter().filter_map(|(.., due)| *due).min();
            prop_assert_eq!(state.next_due().map(|due| due.0), due);
        }
    }

    /// However often and in whatever order attempts arrive: each write happens once.
    #[test]
    fn retries_happen_exactly_once(
        attempts in vec((0u128..3, 0u64..6, 0u64..1000), 1..100),
    ) {
        let mut partition = Partition::default();
        let mut answers = std::collections::BTreeMap::new();
        for (session, sequence, time) in attempts {
            let reply = partition
                .at(time)
                .apply(origin(session, sequence, 0), increment("n", 1));
            let first = answers.entry((session, sequence)).or_insert(reply.clone());
            prop_assert_eq!(&*first, &reply);
        }
        let value = String::from_utf8(partition.get("n").unwrap().value).unwrap();
        prop_assert_eq!(value.parse(), Ok(answers.len()));
    }

    #[test]
    fn a_snapshot_restores_the_state(state in states()) {
        let bytes = state.snapshot();
        let restored = StateMachine::restore(&bytes).unwrap();
        prop_assert_eq!(&restored, &state);
        prop_assert_eq!(restored.snapshot(), bytes);
    }

    /// From a snapshot or from the beginning of the log: what follows comes out the same.
    #[test]
    fn replicas_stay_equal(
        state in states(),
        log in vec((origins(), 0u64..DAY_MS / 50, operations()), 0..40),
    ) {
        let mut caught_up = StateMachine::restore(&state.snapshot()).unwrap();
        let mut state = state;
        for (index, (origin, time, operation)) in (1000..).zip(log) {
            let command = Command { time: PartitionTime(time), origin, operation };
            prop_assert_eq!(
                state.apply(index, command.clone()),
                caught_up.apply(index, command)
            );
        }
        prop_assert_eq!(state.snapshot(), caught_up.snapshot());
    }

    #[test]
    fn a_damaged_snapshot_is_refused(state in states(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let bytes = state.snapshot();
        let at = at.index(bytes.len());
        prop_assert!(StateMachine::restore(&bytes[..at]).is_err());
        let mut flipped = bytes;
        flipped[at] ^= 1 << bit;
        prop_assert!(StateMachine::restore(&flipped).is_err());
    }

    /// With a checksum that is right, whatever the bytes say: an error or a state, and no panic.
    #[test]
    fn a_forged_snapshot_is_survived(
        state in states(),
        at in any::<prop::sample::Index>(),
        forged in vec(any::<u8>(), 0..12),
    ) {
        use sha1::{Digest, Sha1};
        let bytes = state.snapshot();
        let mut body = bytes[..bytes.len() - 20].to_vec();
        let at = at.index(body.len());
        let end = (at + forged.len()).min(body.len());
        body.splice(at..end, forged);
        let checksum = Sha1::digest(&body);
        body.extend_from_slice(&checksum);
        if let Ok(mut state) = StateMachine::restore(&body) {
            let advance = Command {
                time: PartitionTime(u64::MAX),
                origin: None,
                operation: Operation::Advance,
            };
            state.apply(u64::MAX, advance);
            state.snapshot();
        }
    }
}
