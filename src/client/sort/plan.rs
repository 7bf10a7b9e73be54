//! Which tasks of a sort are to be done next, on which node; which are done, and which must be done again.
//!
//! Pure: it is told what was begun and how it ended.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::Placement;
use crate::dataset::{BlockInfo, MAX_BLOCK_BYTES};
use crate::id::NodeId;
use crate::sort::{Fingerprint, RunPart};
use crate::wire::{InputRef, MAX_RUNS, MAX_TASK_BLOCKS, RunRef, WorkError, WorkResponse};

/// Bytes of memory that a record needs beside itself while its task sorts.
const RECORD_BYTES: u64 = 40;
/// How often one task is tried.
pub(super) const MAX_ATTEMPTS: u32 = 12;

/// How large tasks are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes of the input that one task sorts, about.
    pub(super) task_bytes: u64,
    /// Memory that one task needs beside its blocks, unless a single block needs more.
    pub(super) table_bytes: u64,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Sort the blocks of this task.
    Sort(usize),
    /// Merge this range.
    Merge(usize),
}

#[derive(Debug)]
enum State<T> {
    Waiting,
    Running,
    Done(NodeId, T),
}

#[derive(Debug)]
struct SortTask {
    blocks: Vec<InputRef>,
    bytes: u64,
    /// Nodes that have all of them.
    holders: BTreeSet<NodeId>,
    state: State<Sorted>,
    attempts: u32,
}

#[derive(Debug)]
struct Sorted {
    parts: Vec<RunPart>,
    input: Fingerprint,
    dropped: Fingerprint,
    fetched: u32,
}

#[derive(Debug)]
struct MergeTask {
    state: State<Merged>,
    attempts: u32,
    /// Where the runs were when it was begun.
    runs: Vec<RunRef>,
}

/// A range that is written.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) blocks: Vec<BlockInfo>,
    pub(super) output: Fingerprint,
    pub(super) dropped: Fingerprint,
    pub(super) ends: Option<(bytes::Bytes, bytes::Bytes)>,
    pub(super) moved: u64,
}

/// All tasks of a sort.
#[derive(Debug)]
pub(super) struct Plan {
    sorts: Vec<SortTask>,
    merges: Vec<MergeTask>,
    again: u64,
}

/// A task failed too often.
#[derive(Debug)]
pub(super) struct GivenUp {
    pub(super) attempts: u32,
    pub(super) error: WorkError,
}

impl Plan {
    /// Cuts the input into tasks whose blocks one node has, about as many bytes for each node.
    pub(super) fn new(input: &[InputRef], placement: &Placement, ranges: usize, sizes: Sizes) -> Self {
        // Few and large enough tasks that all their runs can be merged at once.
        let total: u64 = input.iter().map(|block| u64::from(block.info.length)).sum();
        let least = total / (MAX_RUNS as u64 / 2);
        let sizes = Sizes { task_bytes: sizes.task_bytes.max(least), ..sizes };
        let mut shares: BTreeMap<NodeId, (u64, Vec<InputRef>)> =
            placement.members().iter().map(|node| (*node, (0, Vec::new()))).collect();
        for block in input {
            let replicas = placement.replicas(block.block);
            let least = replicas.iter().min_by_key(|node| shares.get(node).map_or(0, |(bytes, _)| *bytes));
            let Some((bytes, blocks)) = least.and_then(|node| shares.get_mut(node)) else { continue };
            *bytes += u64::from(block.info.length);
            blocks.push(*block);
        }
        let tasks = shares.into_values().flat_map(|(_, blocks)| cut(blocks, sizes));
        let sorts = tasks.map(|blocks| SortTask::new(blocks, placement)).collect();
        let merge = || MergeTask { state: State::Waiting, attempts: 0, runs: Vec::new() };
        Self { sorts, merges: (0..ranges).map(|_| merge()).collect(), again: 0 }
    }

    /// What a node can do now, if anything.
    pub(super) fn next_for(&self, node: NodeId) -> Option<Next> {
        let is_waiting = |task: &&SortTask| matches!(task.state, State::Waiting);
        if self.sorts.iter().any(|task| !matches!(task.state, State::Done(..))) {
            let waiting = self.sorts.iter().enumerate().filter(|(_, task)| is_waiting(task));
            // Its own; otherwise the one that comes last for those who have it.
            let own = waiting.clone().find(|(_, task)| task.holders.contains(&node));
            return own.or_else(|| waiting.clone().next_back()).map(|(at, _)| Next::Sort(at));
        }
        let waiting =
            self.merges.iter().enumerate().filter(|(_, merge)| matches!(merge.state, State::Waiting));
        let largest = waiting.max_by_key(|(at, _)| (self.range_bytes(*at), std::cmp::Reverse(*at)));
        largest.map(|(at, _)| Next::Merge(at))
    }

    fn range_bytes(&self, range: usize) -> u64 {
        self.done_sorts().filter_map(|(_, _, sorted)| sorted.parts.get(range)).map(|part| part.bytes).sum()
    }

    fn done_sorts(&self) -> impl Iterator<Item = (usize, NodeId, &Sorted)> {
        self.sorts.iter().enumerate().filter_map(|(at, task)| match &task.state {
            State::Done(node, sorted) => Some((at, *node, sorted)),
            _ => None,
        })
    }

    /// It was given to a node.
    pub(super) fn begin(&mut self, task: Next) {
        match task {
            Next::Sort(at) => {
                self.sorts[at].state = State::Running;
                self.sorts[at].attempts += 1;
            }
            Next::Merge(at) => {
                let runs = self.done_sorts().filter_map(|(task, node, sorted)| {
                    let bytes = sorted.parts.get(at)?.bytes;
                    Some(RunRef { node, task: u32::try_from(task).ok()?, bytes }).filter(|_| bytes > 0)
                });
                let runs = runs.collect();
                self.merges[at].runs = runs;
                self.merges[at].state = State::Running;
                self.merges[at].attempts += 1;
            }
        }
    }

    /// The blocks of a task that sorts.
    pub(super) fn blocks(&self, at: usize) -> &[InputRef] {
        &self.sorts[at].blocks
    }

    /// What a range is merged from; it was begun.
    pub(super) fn runs(&self, at: usize) -> &[RunRef] {
        &self.merges[at].runs
    }

    /// How a task ended that a node was given.
    pub(super) fn ended(
        &mut self,
        task: Next,
        node: NodeId,
        result: Result<WorkResponse, WorkError>,
    ) -> Result<(), GivenUp> {
        let ranges = self.merges.len();
        let error = match (task, result) {
            (Next::Sort(at), Ok(WorkResponse::Sorted { parts, input, dropped, fetched }))
                if parts.len() == ranges =>
            {
                let sorted = Sorted { parts, input, dropped, fetched };
                self.sorts[at].state = State::Done(node, sorted);
                return Ok(());
            }
            (Next::Merge(at), Ok(WorkResponse::Merged { blocks, output, dropped, ends, moved })) => {
                self.merges[at].state = State::Done(node, Merged { blocks, output, dropped, ends, moved });
                return Ok(());
            }
            (_, Ok(WorkResponse::Failed(error)) | Err(error)) => error,
            (_, Ok(_)) => WorkError::Disorder,
        };
        self.again += 1;
        let attempts = match task {
            Next::Sort(at) => {
                self.sorts[at].state = State::Waiting;
                self.sorts[at].attempts
            }
            Next::Merge(at) => {
                self.merges[at].state = State::Waiting;
                if let WorkError::RunLost { task } = error {
                    self.lose(at, task as usize);
                }
                self.merges[at].attempts
            }
        };
        if attempts >= MAX_ATTEMPTS {
            return Err(GivenUp { attempts, error });
        }
        Ok(())
    }

    /// A run could not be fetched from where it was when the merge of a range was begun: it is made again, unless it
    /// was already.
    fn lose(&mut self, range: usize, task: usize) {
        let was_at = self.merges[range].runs.iter().find(|run| run.task as usize == task).map(|run| run.node);
        if let Some(lost) = self.sorts.get_mut(task)
            && matches!(lost.state, State::Done(node, _) if Some(node) == was_at)
        {
            lost.state = State::Waiting;
            self.again += 1;
        }
    }

    /// A node is gone, and what it kept with it: all of that is made again, not only what somebody has asked for.
    pub(super) fn lose_node(&mut self, gone: NodeId) {
        for task in &mut self.sorts {
            if matches!(task.state, State::Done(node, _) if node == gone) {
                task.state = State::Waiting;
                self.again += 1;
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.merges.iter().all(|merge| matches!(merge.state, State::Done(..)))
            && self.sorts.iter().all(|task| matches!(task.state, State::Done(..)))
    }

    /// Whether any range can be merged, and bytes of the input that are through that stage.
    pub(super) fn progress(&self) -> (bool, u64) {
        let sorted: u64 = self
            .sorts
            .iter()
            .filter(|task| matches!(task.state, State::Done(..)))
            .map(|task| task.bytes)
            .sum();
        if self.sorts.iter().any(|task| !matches!(task.state, State::Done(..))) {
            return (false, sorted);
        }
        let is_merged = |range: &usize| matches!(self.merges[*range].state, State::Done(..));
        let all: u64 = (0..self.merges.len()).map(|range| self.range_bytes(range)).sum();
        let merged: u64 = (0..self.merges.len()).filter(is_merged).map(|range| self.range_bytes(range)).sum();
        let scaled = u128::from(sorted) * u128::from(merged) / u128::from(all.max(1));
        (true, u64::try_from(scaled).unwrap_or(sorted))
    }

    /// The ranges that are written, in order.
    pub(super) fn merged(&self) -> impl Iterator<Item = &Merged> {
        self.merges.iter().filter_map(|merge| match &merge.state {
            State::Done(_, merged) => Some(merged),
            _ => None,
        })
    }

    /// What all tasks have sorted, and what they have left out.
    pub(super) fn sorted(&self) -> (Fingerprint, Fingerprint) {
        let none = (Fingerprint::default(), Fingerprint::default());
        self.done_sorts().fold(none, |(input, dropped), (_, _, sorted)| {
            (input.and(sorted.input), dropped.and(sorted.dropped))
        })
    }

    /// Tasks that sort, and ranges.
    pub(super) fn tasks(&self) -> (usize, usize) {
        (self.sorts.len(), self.merges.len())
    }

    /// Tasks that had to be done again.
    pub(super) fn again(&self) -> u64 {
        self.again
    }

    /// Blocks that were sorted on a node that did not have them.
    pub(super) fn fetched(&self) -> u64 {
        self.done_sorts().map(|(_, _, sorted)| u64::from(sorted.fetched)).sum()
    }
}

impl SortTask {
    fn new(blocks: Vec<InputRef>, placement: &Placement) -> Self {
        let mut holders: BTreeSet<NodeId> = placement.members().iter().copied().collect();
        for block in &blocks {
            holders.retain(|node| placement.replicas(block.block).contains(node));
        }
        let bytes = blocks.iter().map(|block| u64::from(block.info.length)).sum();
        Self { blocks, bytes, holders, state: State::Waiting, attempts: 0 }
    }
}

/// Cuts the blocks of one node into tasks.
fn cut(blocks: Vec<InputRef>, sizes: Sizes) -> Vec<Vec<InputRef>> {
    let mut tasks: Vec<Vec<InputRef>> = Vec::new();
    let (mut bytes, mut table) = (0, 0);
    for block in blocks {
        let length = u64::from(block.info.length).min(MAX_BLOCK_BYTES as u64);
        let memory = u64::from(block.info.records) * RECORD_BYTES;
        match tasks.last_mut() {
            Some(task)
                if task.len() < MAX_TASK_BLOCKS
                    && bytes + length <= sizes.task_bytes
                    && table + memory <= sizes.table_bytes =>
            {
                task.push(block);
            }
            _ => {
                tasks.push(vec![block]);
                (bytes, table) = (0, 0);
            }
        }
        bytes += length;
        table += memory;
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::BlockId;
    use crate::id::{DatasetId, SwarmId};
    use crate::membership::MemberState;
    use crate::wire::{MemberView, SwarmView};

    const SIZES: Sizes = Sizes { task_bytes: 400, table_bytes: 4000 };

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

    fn sorted(ranges: usize) -> WorkResponse {
        let none = Fingerprint::default();
        let parts = vec![RunPart { bytes: 10, records: 1 }; ranges];
        WorkResponse::Sorted { parts, input: none, dropped: none, fetched: 0 }
    }

    fn merged() -> WorkResponse {
        let none = Fingerprint::default();
        WorkResponse::Merged { blocks: Vec::new(), output: none, dropped: none, ends: None, moved: 0 }
    }

    #[test]
    fn every_block_is_in_one_task_and_shares_are_even() {
        for nodes in 1..=7 {
            let placement = placement(nodes);
            let plan = Plan::new(&input(400), &placement, 3, SIZES);
            let mut seen: Vec<u32> =
                plan.sorts.iter().flat_map(|task| &task.blocks).map(|block| block.position).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..400));
            // As many as a task can hold, but for one of each node.
            assert!(plan.sorts.len() <= 100 + usize::from(nodes), "{nodes}: {}", plan.sorts.len());
            assert!(plan.sorts.iter().all(|task| !task.holders.is_empty() && task.bytes <= 400));
        }
    }

    #[test]
    fn ranges_are_merged_when_all_is_sorted() {
        let mut plan = Plan::new(&input(8), &placement(1), 2, SIZES);
        let (first, second) = (Next::Sort(0), Next::Sort(1));
        for task in [first, second] {
            assert_eq!(plan.next_for(node(1)), Some(task));
            plan.begin(task);
        }
        assert_eq!(plan.next_for(node(1)), None);
        plan.ended(first, node(1), Ok(sorted(2))).unwrap();
        assert_eq!((plan.next_for(node(1)), plan.progress()), (None, (false, 400)));
        plan.ended(second, node(1), Ok(sorted(2))).unwrap();
        for range in [0, 1] {
            assert_eq!(plan.next_for(node(1)), Some(Next::Merge(range)));
            plan.begin(Next::Merge(range));
            assert_eq!(plan.runs(range).len(), 2);
            assert!(!plan.is_done());
            plan.ended(Next::Merge(range), node(1), Ok(merged())).unwrap();
        }
        assert!(plan.is_done());
        assert_eq!((plan.progress(), plan.again()), ((true, 800), 0));
    }

    #[test]
    fn only_what_was_lost_is_done_again() {
        let mut plan = Plan::new(&input(8), &placement(2), 2, SIZES);
        for task in [Next::Sort(0), Next::Sort(1)] {
            plan.begin(task);
        }
        plan.ended(Next::Sort(0), node(1), Ok(sorted(2))).unwrap();
        plan.ended(Next::Sort(1), node(2), Ok(sorted(2))).unwrap();
        plan.begin(Next::Merge(0));
        plan.begin(Next::Merge(1));
        // The second node dies: both merges notice, and its run is made again, once.
        let lost = || Err(WorkError::RunLost { task: 1 });
        plan.ended(Next::Merge(0), node(1), lost()).unwrap();
        assert_eq!(plan.next_for(node(1)), Some(Next::Sort(1)));
        plan.begin(Next::Sort(1));
        plan.ended(Next::Sort(1), node(1), Ok(sorted(2))).unwrap();
        plan.ended(Next::Merge(1), node(1), lost()).unwrap();
        // Not the one that was made meanwhile.
        assert_eq!(plan.next_for(node(1)), Some(Next::Merge(0)));
        plan.begin(Next::Merge(0));
        assert!(plan.runs(0).iter().all(|run| run.node == node(1)));
        plan.ended(Next::Merge(0), node(1), Ok(merged())).unwrap();
        plan.begin(Next::Merge(1));
        plan.ended(Next::Merge(1), node(1), Ok(merged())).unwrap();
        assert!(plan.is_done());
        assert_eq!(plan.again(), 3);
    }

    #[test]
    fn all_that_a_node_kept_is_lost_with_it() {
        let mut plan = Plan::new(&input(12), &placement(1), 1, SIZES);
        for (task, on) in [(0, 1), (1, 2), (2, 2)] {
            plan.begin(Next::Sort(task));
            plan.ended(Next::Sort(task), node(on), Ok(sorted(1))).unwrap();
        }
        plan.begin(Next::Merge(0));
        plan.ended(Next::Merge(0), node(1), Err(WorkError::RunLost { task: 1 })).unwrap();
        plan.lose_node(node(2));
        for task in [1, 2] {
            assert_eq!(plan.next_for(node(1)), Some(Next::Sort(task)));
            plan.begin(Next::Sort(task));
            plan.ended(Next::Sort(task), node(1), Ok(sorted(1))).unwrap();
        }
        assert_eq!(plan.next_for(node(1)), Some(Next::Merge(0)));
        assert_eq!(plan.again(), 3);
    }

    #[test]
    fn what_fails_everywhere_is_given_up() {
        let mut plan = Plan::new(&input(1), &placement(1), 1, SIZES);
        for attempt in 1..=MAX_ATTEMPTS {
            plan.begin(Next::Sort(0));
            let result = plan.ended(Next::Sort(0), node(1), Err(WorkError::NoRoom));
            assert_eq!(result.is_err(), attempt == MAX_ATTEMPTS);
        }
    }
}
