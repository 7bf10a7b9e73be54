//! Versions that are raised, and backups that are put back part by part.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::id::{FencingToken, SessionId};

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

    fn put(&mut self, key: &str, value: &str) -> Version {
        match self.run(Operation::Put { key: key.into(), value: value.into(), ttl_ms: None }) {
            Reply::Written { version } => version,
            other => panic!("{other:?}"),
        }
    }

    /// Takes a lock and gives it back: the token of the grant.
    fn grant(&mut self) -> FencingToken {
        let claim = Claim { session: SessionId(1), number: self.index };
        let name = b"lock".to_vec();
        let (mode, lease_ms, wait, note) = (LockMode::Exclusive, 1000, false, Vec::new());
        let granted = self.run(Operation::Acquire { name: name.clone(), claim, mode, lease_ms, wait, note });
        self.run(Operation::Release { name, claim });
        match granted {
            Reply::Granted { token } => token,
            other => panic!("{other:?}"),
        }
    }

    fn raise(&mut self, above: u64) -> Version {
        match self.run(Operation::Raise { above: Version(above) }) {
            Reply::Raised { highest } => highest,
            other => panic!("{other:?}"),
        }
    }

    fn import(&mut self, backup: u128, number: u64, items: Vec<Imported>) -> Reply {
        self.run(Operation::Import { backup, number, items })
    }

    fn value(&self, key: &str) -> Option<Vec<u8>> {
        match self.state.query(&Query::Get { key: key.into() }) {
            Answer::Entry(entry) => entry.map(|entry| entry.value),
            other => panic!("{other:?}"),
        }
    }
}

fn key(key: &str, value: &str) -> Imported {
    Imported::Key { key: key.into(), value: value.into(), ttl_ms: None }
}

fn fenced(key: &str, token: FencingToken) -> Operation {
    Operation::PutFenced { key: key.into(), value: b"v".to_vec(), ttl_ms: None, token }
}

fn imported(backup: u128, next: u64, kept: u64) -> Reply {
    Reply::Imported { state: ImportState { backup, next, kept } }
}

#[test]
fn raised_versions_are_higher_and_never_lowered() {
    let mut partition = Partition::default();
    assert_eq!(partition.put("k", "1"), Version(1));
    assert_eq!(partition.raise(1000), Version(1000));
    assert!(partition.put("k", "2") > Version(1000));
    let before = partition.state.highest();
    partition.raise(0);
    partition.raise(1000);
    assert_eq!(partition.state.highest(), Version(before.0 + 2));
    // A state that lost its majority.
    let before = partition.state.highest();
    partition.state.raise_by(500).unwrap();
    assert!(partition.put("k", "3").0 > before.0 + 500);
}

#[test]
fn a_token_from_before_the_raise_is_refused_after_the_next_grant() {
    let mut partition = Partition::default();
    let old = partition.grant();
    assert!(matches!(partition.run(fenced("k", old)), Reply::Written { .. }));
    partition.raise(1_000_000);
    let new = partition.grant();
    assert!(new.0 > 1_000_000);
    assert!(matches!(partition.run(fenced("k", new)), Reply::Written { .. }));
    assert_eq!(partition.run(fenced("k", old)), Reply::Fenced { current: new });
}

#[test]
fn however_high_they_are_to_be_raised_there_is_room_above() {
    let too_high = Operation::Raise { above: Version(MAX_RAISED + 1) };
    assert_eq!(too_high.check(), Err(LimitError::Raised));
    let mut partition = Partition::default();
    // Whoever proposed it did not ask.
    assert_eq!(partition.raise(u64::MAX), Version(MAX_RAISED + 1));
    assert_eq!(partition.state.raise_by(1), Err(LimitError::Raised));
    assert_eq!(partition.state.raise_by(u64::MAX), Err(LimitError::Raised));
    assert_eq!(partition.put("k", "v"), Version(MAX_RAISED + 2));
    assert_eq!(StateMachine::restore(&partition.state.snapshot()).unwrap(), partition.state);
}

#[test]
fn a_backup_is_put_back_part_by_part_and_each_part_once() {
    let mut partition = Partition::default();
    assert_eq!(partition.import(7, 0, Vec::new()), imported(7, 1, 0));
    assert_eq!(partition.import(7, 1, vec![key("a", "1"), key("b", "1")]), imported(7, 2, 0));
    partition.put("a", "newer");
    partition.run(Operation::Delete { key: b"b".to_vec() });
    // It is begun again, and a copy of a part is late.
    assert_eq!(partition.import(7, 0, Vec::new()), imported(7, 2, 0));
    assert_eq!(partition.import(7, 1, vec![key("a", "1"), key("b", "1")]), imported(7, 2, 0));
    assert_eq!(partition.value("a").unwrap(), b"newer");
    assert_eq!(partition.value("b"), None);
    // Not before its turn.
    assert_eq!(partition.import(7, 3, vec![key("d", "1")]), imported(7, 2, 0));
    assert_eq!(partition.value("d"), None);
    // What was written meanwhile stays, and is counted.
    partition.put("c", "newer");
    assert_eq!(partition.import(7, 2, vec![key("c", "1"), key("d", "1")]), imported(7, 3, 1));
    assert_eq!(partition.value("c").unwrap(), b"newer");
    assert_eq!(partition.value("d").unwrap(), b"1");
    let answer = partition.state.query(&Query::Contents);
    let import = Some(ImportState { backup: 7, next: 3, kept: 1 });
    assert_eq!(answer, Answer::Contents { empty: false, import });
}

#[test]
fn a_backup_is_begun_only_where_nothing_is() {
    let mut partition = Partition::default();
    let version = partition.put("k", "v");
    assert_eq!(partition.import(7, 0, Vec::new()), Reply::NotEmpty);
    partition.run(Operation::Delete { key: b"k".to_vec() });
    // Without a beginning there is no middle.
    assert_eq!(partition.import(7, 1, vec![key("a", "1")]), Reply::NotEmpty);
    assert_eq!(partition.import(7, 0, Vec::new()), imported(7, 1, 0));
    // Another one may take over as long as nothing is put back.
    assert_eq!(partition.import(8, 0, Vec::new()), imported(8, 1, 0));
    assert_eq!(partition.import(8, 1, vec![key("a", "1")]), imported(8, 2, 0));
    assert_eq!(partition.import(7, 0, Vec::new()), Reply::NotEmpty);
    assert!(partition.state.version(b"a").unwrap() > version);
    // A token that a key was written with is something.
    let mut partition = Partition::default();
    partition.run(fenced("k", FencingToken(3)));
    partition.run(Operation::Delete { key: b"k".to_vec() });
    assert_eq!(partition.import(7, 0, Vec::new()), Reply::NotEmpty);
}

#[test]
fn a_sealed_partition_takes_no_backup() {
    let mut partition = Partition::default();
    assert_eq!(partition.import(7, 0, Vec::new()), imported(7, 1, 0));
    partition.run(Operation::Seal { into: SwarmId(2), attempt: 1, epoch: None });
    assert!(matches!(partition.import(7, 1, vec![key("a", "1")]), Reply::Sealed { .. }));
    assert!(partition.state.is_empty());
    partition.run(Operation::Unseal { attempt: 1 });
    assert_eq!(partition.import(7, 1, vec![key("a", "1")]), imported(7, 2, 0));
}

#[test]
fn more_tokens_than_a_partition_remembers_are_refused_whole() {
    let mut partition = Partition::default();
    partition.import(7, 0, Vec::new());
    let fence =
        |number: usize| Imported::Fence { key: number.to_be_bytes().to_vec(), token: FencingToken(1) };
    for number in 0..MAX_FENCED {
        partition.state.fences.restore(number.to_be_bytes().to_vec(), FencingToken(1));
    }
    // Those that it knows are welcome.
    assert_eq!(partition.import(7, 1, vec![fence(0)]), imported(7, 2, 0));
    let part = vec![key("a", "1"), fence(MAX_FENCED)];
    assert_eq!(partition.import(7, 2, part), Reply::TooManyFenced);
    assert_eq!(partition.value("a"), None);
}

#[test]
fn a_part_beyond_its_limits_is_refused() {
    let of = |items: Vec<Imported>| Operation::Import { backup: 1, number: 1, items }.check();
    let long = "v".repeat(MAX_IMPORTED_BYTES);
    assert_eq!(of(vec![key("a", &long)]), Ok(()));
    assert_eq!(of(vec![key("a", &long), key("b", "")]), Err(LimitError::Imports));
    assert_eq!(of(vec![key("a", "1"); MAX_IMPORTED + 1]), Err(LimitError::Imports));
    assert_eq!(of(vec![key("", "1")]), Err(LimitError::EmptyKey));
    let at_once = Imported::Key { key: b"a".to_vec(), value: Vec::new(), ttl_ms: Some(0) };
    assert_eq!(of(vec![at_once]), Err(LimitError::ZeroTtl));
}

#[test]
fn what_a_backup_can_put_back_is_keys_with_what_is_left_of_their_time_and_tokens() {
    let mut partition = Partition { time: 1000, ..Partition::default() };
    partition.put("a", "1");
    partition.run(Operation::Put { key: b"b".to_vec(), value: b"2".to_vec(), ttl_ms: Some(500) });
    let token = partition.grant();
    partition.run(fenced("c", token));
    partition.run(Operation::Delete { key: b"c".to_vec() });
    partition.time = 1200;
    partition.run(Operation::Advance);
    let items: Vec<_> = partition.state.imports().collect();
    let b = Imported::Key { key: b"b".to_vec(), value: b"2".to_vec(), ttl_ms: Some(300) };
    assert_eq!(items, [key("a", "1"), b, Imported::Fence { key: b"c".to_vec(), token }]);
}

/// What may happen to a partition's numbers.
#[derive(Debug, Clone)]
enum Step {
    Put,
    Grant,
    Raise(u64),
    Leap(u64),
    Snapshot,
    Nothing(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Put),
        Just(Step::Grant),
        prop_oneof![0u64..100, any::<u64>()].prop_map(Step::Raise),
        prop_oneof![0u64..100, any::<u64>()].prop_map(Step::Leap),
        Just(Step::Snapshot),
        // The log has entries that are no commands.
        (1u64..5).prop_map(Step::Nothing),
    ];
    vec(step, 0..60)
}

proptest! {
    /// Whatever happens, each version and each token is higher than all before, and `highest` tells the truth.
    #[test]
    fn versions_and_tokens_grow(steps in steps()) {
        let mut partition = Partition::default();
        let mut highest = Version(0);
        for step in steps {
            let given = match step {
                Step::Put => Some(partition.put("k", "v")),
                Step::Grant => Some(Version(partition.grant().0)),
                Step::Raise(above) => {
                    let raised = partition.raise(above);
                    prop_assert!(raised.0 >= above.min(MAX_RAISED));
                    prop_assert!(raised >= highest);
                    None
                }
                Step::Leap(leap) => {
                    let before = partition.state.clone();
                    if partition.state.raise_by(leap).is_err() {
                        prop_assert_eq!(&partition.state, &before);
                    }
                    None
                }
                Step::Snapshot => {
                    let restored = StateMachine::restore(&partition.state.snapshot()).unwrap();
                    prop_assert_eq!(&restored, &partition.state);
                    partition.state = restored;
                    None
                }
                Step::Nothing(entries) => {
                    partition.index += entries;
                    None
                }
            };
            if let Some(given) = given {
                prop_assert!(given > highest);
                highest = given;
            }
            prop_assert!(partition.state.highest() >= highest);
            highest = partition.state.highest();
        }
    }

    /// However parts arrive, again, late or before their turn, the partition holds what it would if each had come
    /// once and in order.
    #[test]
    fn parts_are_put_back_once_and_in_order(arrivals in vec(0u64..6, 0..40)) {
        let part = |number: u64| vec![key(&format!("k{number}"), "v")];
        let mut partition = Partition::default();
        let mut next = 0;
        for number in arrivals {
            let reply = partition.import(9, number, part(number));
            if next == 0 && number > 0 {
                prop_assert_eq!(reply, Reply::NotEmpty);
                continue;
            }
            next += u64::from(number == next);
            prop_assert_eq!(reply, imported(9, next, 0));
        }
        let held: Vec<_> = std::mem::take(&mut partition.state).imports().collect();
        prop_assert_eq!(held, (0..next).flat_map(part).collect::<Vec<_>>());
    }
}
