use super::*;
use crate::compute::ProgramError;
use crate::dataset::{BlockId, BlockInfo};
use crate::id::{DatasetId, SwarmId};
use crate::membership::MemberState;
use crate::wire::{MemberView, Site, SwarmView};

const SIZES: Sizes = Sizes { task_bytes: 400, table_bytes: 4000 };
const NOW: Timestamp = Timestamp::ZERO;

/// What is told of a run here.
#[derive(Debug)]
struct Run(Vec<RunPart>);

impl Parts for Run {
    fn parts(&self) -> &[RunPart] {
        &self.0
    }
}

type TestPlan = Plan<Vec<InputRef>, Run, ()>;

fn node(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

fn placement(nodes: u8) -> Placement {
    let member = |number| MemberView {
        node: node(number),
        addresses: Vec::new(),
        weight: 1,
        state: MemberState::Alive,
        since_ms: None,
        draining: false,
        on_ring: true,
    };
    let members = (1..=nodes).map(member).collect();
    let view = SwarmView {
        swarm: SwarmId(1),
        name: "test".to_owned(),
        partitions: 64,
        node: node(1),
        members,
        leaders: vec![None; 64],
    };
    Placement::of(&view).unwrap()
}

fn input(blocks: u32) -> Vec<InputRef> {
    let block = |number| InputRef {
        position: number,
        block: BlockId { dataset: DatasetId(9), number },
        info: BlockInfo { number, length: 100, records: 10, checksum: 0 },
    };
    (0..blocks).map(block).collect()
}

fn plan(blocks: u32, nodes: u8, ranges: usize) -> TestPlan {
    Plan::new(cut_blocks(&input(blocks), &placement(nodes), SIZES), ranges)
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a node answers")]
fn run(ranges: usize) -> Result<Made<Run, ()>, WorkError> {
    Ok(Made::Run(Run(vec![RunPart { bytes: 10, records: 1 }; ranges])))
}

const RANGE: Result<Made<Run, ()>, WorkError> = Ok(Made::Range(()));

fn at(seconds: u64) -> Timestamp {
    NOW + Duration::from_secs(seconds)
}

#[test]
fn every_block_is_in_one_task_and_shares_are_even() {
    for nodes in 1..=7 {
        let plan = plan(400, nodes, 3);
        let mut seen: Vec<u32> =
            plan.parts.iter().flat_map(|part| &part.input).map(|block| block.position).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..400));
        // As many as a task can hold, but for one of each node.
        assert!(plan.parts.len() <= 100 + usize::from(nodes), "{nodes}: {}", plan.parts.len());
        assert!(plan.parts.iter().all(|part| !part.holders.is_empty() && part.bytes <= 400));
    }
}

#[test]
fn ranges_are_merged_when_all_runs_are_there() {
    let mut plan = plan(8, 1, 2);
    let mut attempts = Vec::new();
    for task in [Next::Run(0), Next::Run(1)] {
        assert_eq!(plan.next_for(node(1), NOW), Some(task));
        attempts.push(plan.begin(task, node(1), NOW));
    }
    assert_eq!(plan.next_for(node(1), NOW), None);
    plan.ended(attempts[0], run(2), NOW).unwrap();
    assert_eq!((plan.next_for(node(1), NOW), plan.progress().bytes), (None, 400));
    plan.ended(attempts[1], run(2), NOW).unwrap();
    for range in [0, 1] {
        assert_eq!(plan.next_for(node(1), NOW), Some(Next::Range(range)));
        let attempt = plan.begin(Next::Range(range), node(1), NOW);
        assert_eq!(plan.sources(attempt).len(), 2);
        assert!(!plan.is_done());
        plan.ended(attempt, RANGE, NOW).unwrap();
    }
    assert!(plan.is_done());
    let progress = plan.progress();
    assert_eq!((progress.merging, progress.bytes, progress.again), (true, 800, 0));
    assert_eq!((progress.runs, progress.local, progress.ranges), ((2, 2), 2, (2, 2)));
}

#[test]
fn a_range_that_holds_nothing_needs_nobody() {
    let mut plan = plan(4, 1, 3);
    let attempt = plan.begin(Next::Run(0), node(1), NOW);
    let some = RunPart { bytes: 10, records: 1 };
    let made = Run(vec![RunPart::default(), some, RunPart::default()]);
    plan.ended(attempt, Ok(Made::Run(made)), NOW).unwrap();
    assert_eq!(plan.next_for(node(1), NOW), Some(Next::Range(1)));
    let attempt = plan.begin(Next::Range(1), node(1), NOW);
    plan.ended(attempt, RANGE, NOW).unwrap();
    assert!(plan.is_done());
    assert!(TestPlan::new(Vec::new(), 2).is_done());
    // Unless something is made of nothing, once.
    let mut plan = TestPlan::new(Vec::new(), 2).making_of_nothing(true);
    assert!(!plan.is_done());
    let attempt = plan.begin(plan.next_for(node(1), NOW).unwrap(), node(1), NOW);
    assert_eq!((attempt.task, plan.next_for(node(1), NOW)), (Next::Range(0), None));
    plan.ended(attempt, Ok(Made::Range(())), NOW).unwrap();
    assert!(plan.is_done());
}

#[test]
fn only_what_was_lost_is_done_again() {
    let mut plan = plan(8, 2, 2);
    let begun = [0, 1].map(|task| plan.begin(Next::Run(task), node(u8::try_from(task).unwrap() + 1), NOW));
    for attempt in begun {
        plan.ended(attempt, run(2), NOW).unwrap();
    }
    let first = plan.begin(Next::Range(0), node(1), NOW);
    let second = plan.begin(Next::Range(1), node(1), NOW);
    // The second node dies: both merges notice, and its run is made again, once.
    let lost = || Err(WorkError::RunLost { task: begun[1].run_name() });
    plan.ended(first, lost(), NOW).unwrap();
    assert_eq!(plan.next_for(node(1), NOW), Some(Next::Run(1)));
    let again = plan.begin(Next::Run(1), node(1), NOW);
    plan.ended(again, run(2), NOW).unwrap();
    plan.ended(second, lost(), NOW).unwrap();
    // Not the one that was made meanwhile.
    assert_eq!(plan.next_for(node(1), NOW), Some(Next::Range(0)));
    for range in [0, 1] {
        let attempt = plan.begin(Next::Range(range), node(1), NOW);
        assert!(plan.sources(attempt).iter().all(|run| run.node == node(1)));
        plan.ended(attempt, RANGE, NOW).unwrap();
    }
    assert!(plan.is_done());
    assert_eq!(plan.progress().again, 3);
}

#[test]
fn all_that_a_node_kept_is_lost_with_it() {
    let mut plan = plan(12, 1, 1);
    let mut attempts = Vec::new();
    for (task, on) in [(0, 1), (1, 2), (2, 2)] {
        attempts.push(plan.begin(Next::Run(task), node(on), NOW));
        plan.ended(attempts[task], run(1), NOW).unwrap();
    }
    let attempt = plan.begin(Next::Range(0), node(1), NOW);
    plan.ended(attempt, Err(WorkError::RunLost { task: attempts[1].run_name() }), NOW).unwrap();
    plan.lose_node(node(2));
    for task in [1, 2] {
        assert_eq!(plan.next_for(node(1), NOW), Some(Next::Run(task)));
        let attempt = plan.begin(Next::Run(task), node(1), NOW);
        plan.ended(attempt, run(1), NOW).unwrap();
    }
    assert_eq!(plan.next_for(node(1), NOW), Some(Next::Range(0)));
    assert_eq!(plan.progress().again, 3);
}

#[test]
fn what_fails_everywhere_is_given_up() {
    let mut plan = plan(1, 1, 1);
    for failure in 1..=MAX_ATTEMPTS {
        let attempt = plan.begin(Next::Run(0), node(1), NOW);
        let result = plan.ended(attempt, Err(WorkError::NoRoom), NOW);
        assert_eq!(result.is_err(), failure == MAX_ATTEMPTS);
    }
}

#[test]
fn a_program_that_fails_gets_a_second_chance_elsewhere() {
    let mut plan = plan(1, 2, 1);
    let failed = || Err(WorkError::Program { site: Site::Block(0), error: ProgramError::failed("no") });
    let attempt = plan.begin(Next::Run(0), node(1), NOW);
    plan.ended(attempt, failed(), NOW).unwrap();
    // First left to others, but not for ever.
    assert_eq!(plan.next_for(node(1), at(1)), None);
    assert_eq!(plan.next_for(node(2), at(1)), Some(Next::Run(0)));
    assert_eq!(plan.next_for(node(1), at(2)), Some(Next::Run(0)));
    let attempt = plan.begin(Next::Run(0), node(2), at(1));
    let GivenUp { attempts, error } = plan.ended(attempt, failed(), at(1)).unwrap_err();
    assert_eq!((attempts, error), (2, failed().unwrap_err()));
}

#[test]
fn a_node_without_the_program_has_not_failed() {
    let mut plan = plan(1, 1, 1);
    for _ in 0..3 * MAX_ATTEMPTS {
        let attempt = plan.begin(Next::Run(0), node(1), NOW);
        plan.ended(attempt, Err(WorkError::NoProgram), NOW).unwrap();
    }
    assert_eq!(plan.progress().again, 0);
}

#[test]
fn a_straggler_is_tried_elsewhere_and_the_first_result_counts() {
    let mut plan = plan(8, 2, 1);
    let (slow, fast) = (Next::Run(0), Next::Run(1));
    let first = plan.begin(slow, node(1), NOW);
    let other = plan.begin(fast, node(2), NOW);
    // As long as nothing is known of how long it takes, nothing takes too long.
    assert_eq!(plan.next_for(node(2), at(100)), None);
    plan.ended(other, run(1), at(4)).unwrap();
    assert_eq!(plan.next_for(node(2), at(8)), None);
    assert_eq!(plan.next_for(node(1), at(9)), None);
    assert_eq!(plan.next_for(node(2), at(9)), Some(slow));
    let second = plan.begin(slow, node(2), at(9));
    assert_ne!(first.run_name(), second.run_name());
    // No third one.
    assert_eq!(plan.next_for(node(3), at(30)), None);
    plan.ended(second, run(1), at(12)).unwrap();
    plan.ended(first, run(1), at(13)).unwrap();
    let attempt = plan.begin(Next::Range(0), node(1), at(13));
    let sources: Vec<u32> = plan.sources(attempt).iter().map(|run| run.task).collect();
    assert_eq!(sources, [second.run_name(), other.run_name()]);
    plan.ended(attempt, RANGE, at(14)).unwrap();
    let progress = plan.progress();
    assert!(plan.is_done());
    assert_eq!((progress.second_attempts, progress.again), (1, 0));
}

#[test]
fn a_second_attempt_that_fails_does_no_harm() {
    let mut plan = plan(8, 2, 1);
    let first = plan.begin(Next::Run(0), node(1), NOW);
    let other = plan.begin(Next::Run(1), node(2), NOW);
    plan.ended(other, run(1), at(1)).unwrap();
    let second = plan.begin(Next::Run(0), node(2), at(9));
    plan.ended(second, Err(WorkError::NoRoom), at(10)).unwrap();
    plan.ended(first, run(1), at(11)).unwrap();
    assert_eq!(plan.next_for(node(1), at(11)), Some(Next::Range(0)));
}
