//! Which tasks of a job are to be done next, on which node; which are done, and which must be done again.
//!
//! A job has two kinds of tasks: some make *runs* of parts of the input, and then some merge a *range* of all runs
//! each. What else they do, and what comes of it, only their job knows. Each attempt at a task has a number of its
//! own, and of several the first that ends well counts, whatever the others do: so every task has exactly one result,
//! and what an attempt leaves behind is never mistaken for what another one has.
//!
//! Pure: it is told what was begun and how it ended, and when that was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::client::Placement;
use crate::dataset::MAX_BLOCK_BYTES;
use crate::id::NodeId;
use crate::sort::RunPart;
use crate::time::Timestamp;
use crate::wire::{InputRef, MAX_RUNS, MAX_TASK_BLOCKS, RunRef, WorkError};

/// Bytes of memory that a record needs beside itself while its task sorts.
const RECORD_BYTES: u64 = 40;
/// How often one task is tried.
pub(in crate::client) const MAX_ATTEMPTS: u32 = 12;
/// How often one task is tried whose program fails: it would fail again.
const MAX_PROGRAM_FAILURES: u32 = 2;
/// Numbers of attempts that a task may have; a power of two.
const ATTEMPTS: u32 = 16;
/// How long a task that a program has failed on one node is left to others.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(2);
/// A task that takes no longer is no straggler.
const STRAGGLER_AFTER: Duration = Duration::from_secs(3);
/// A task that takes no longer than so many times what others took is no straggler.
const STRAGGLER_TIMES: u32 = 2;

const _: () = assert!(MAX_ATTEMPTS < ATTEMPTS);

/// How large tasks are.
#[derive(Debug, Clone, Copy)]
pub(in crate::client) struct Sizes {
    /// Bytes of the input that one task makes a run of, about.
    pub(in crate::client) task_bytes: u64,
    /// Memory that one task needs beside its blocks, unless a single block needs more.
    pub(in crate::client) table_bytes: u64,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) enum Next {
    /// Make the run of this task.
    Run(usize),
    /// Merge this range.
    Range(usize),
}

/// An attempt at something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) struct Attempt {
    /// At what.
    pub(in crate::client) task: Next,
    /// Which; each has another number.
    pub(in crate::client) number: u32,
    /// Who was given it.
    pub(in crate::client) node: NodeId,
}

/// A part of the input.
#[derive(Debug, Clone)]
pub(in crate::client) struct Part<I> {
    /// Which.
    pub(in crate::client) input: I,
    /// How large it is, for shares and progress.
    pub(in crate::client) bytes: u64,
    /// Nodes that have all of it.
    pub(in crate::client) holders: BTreeSet<NodeId>,
}

/// What a task that makes a run has told of it.
pub(in crate::client) trait Parts {
    /// Of each range, how much is in it.
    fn parts(&self) -> &[RunPart];
}

/// What came of an attempt.
#[derive(Debug)]
pub(in crate::client) enum Made<F, S> {
    /// A run.
    Run(F),
    /// A range.
    Range(S),
}

/// What is known of a task, and what came of it.
#[derive(Debug)]
struct State<T> {
    running: Vec<Running>,
    begun: u32,
    failures: u32,
    /// Where its program failed, and when last.
    failed_on: BTreeSet<NodeId>,
    failed_at: Timestamp,
    done: Option<Done<T>>,
}

#[derive(Debug)]
struct Running {
    number: u32,
    node: NodeId,
    since: Timestamp,
    /// Of a range: where its runs were.
    runs: Vec<RunRef>,
}

#[derive(Debug)]
struct Done<T> {
    number: u32,
    node: NodeId,
    made: T,
}

/// All tasks of a job. `I`: a part of the input; `F`: what is told of a run, `S`: of a range.
#[derive(Debug)]
pub(in crate::client) struct Plan<I, F, S> {
    parts: Vec<Part<I>>,
    runs: Vec<State<F>>,
    ranges: Vec<State<S>>,
    /// Bytes of each range in the runs that are there.
    range_bytes: Vec<u64>,
    /// Something is made even if there is nothing in any range.
    makes_of_nothing: bool,
    /// How long tasks took that ended well: those that make runs, those that merge ranges.
    took: [Vec<Duration>; 2],
    again: u64,
    second_attempts: u64,
}

/// A task failed too often.
#[derive(Debug)]
pub(in crate::client) struct GivenUp {
    pub(in crate::client) attempts: u32,
    pub(in crate::client) error: WorkError,
}

impl<T> State<T> {
    fn new() -> Self {
        Self {
            running: Vec::new(),
            begun: 0,
            failures: 0,
            failed_on: BTreeSet::new(),
            failed_at: Timestamp::default(),
            done: None,
        }
    }

    fn is_waiting(&self) -> bool {
        self.done.is_none() && self.running.is_empty()
    }

    /// Whether it waits, and not for another node than this.
    fn is_for(&self, node: NodeId, now: Timestamp) -> bool {
        self.is_waiting() && (!self.failed_on.contains(&node) || now.since(self.failed_at) >= LEFT_TO_OTHERS)
    }

    fn begin(&mut self, node: NodeId, runs: Vec<RunRef>, now: Timestamp) -> u32 {
        let number = self.begun % ATTEMPTS;
        self.begun += 1;
        self.running.push(Running { number, node, since: now, runs });
        number
    }

    /// Since when its only attempt runs, if a second one on this node makes sense.
    fn straggles(&self, node: NodeId, now: Timestamp, usual: Duration) -> Option<Duration> {
        match &self.running[..] {
            [only] if self.done.is_none() && only.node != node && self.begun < MAX_ATTEMPTS => {
                Some(now.since(only.since))
                    .filter(|took| *took > STRAGGLER_AFTER.max(usual * STRAGGLER_TIMES))
            }
            _ => None,
        }
    }
}

impl<I, F: Parts, S> Plan<I, F, S> {
    /// So many ranges of the runs that are made of these parts.
    pub(in crate::client) fn new(parts: Vec<Part<I>>, ranges: usize) -> Self {
        Self {
            runs: parts.iter().map(|_| State::new()).collect(),
            parts,
            ranges: (0..ranges).map(|_| State::new()).collect(),
            range_bytes: vec![0; ranges],
            makes_of_nothing: false,
            took: [Vec::new(), Vec::new()],
            again: 0,
            second_attempts: 0,
        }
    }

    /// Something is to be made even if there is nothing in any range: of the first.
    pub(in crate::client) fn making_of_nothing(self, makes_of_nothing: bool) -> Self {
        Self { makes_of_nothing, ..self }
    }

    /// What a node can do now, if anything.
    pub(in crate::client) fn next_for(&self, node: NodeId, now: Timestamp) -> Option<Next> {
        if self.has_all_runs() {
            let waiting = self.open_ranges().filter(|range| self.ranges[*range].is_for(node, now));
            let largest = waiting.max_by_key(|range| (self.range_bytes[*range], std::cmp::Reverse(*range)));
            let straggler = || straggler(&self.ranges, &self.took[1], node, now);
            return largest.or_else(straggler).map(Next::Range);
        }
        let waiting = (0..self.runs.len()).filter(|at| self.runs[*at].is_for(node, now));
        // Its own; otherwise the one that comes last for those who have it.
        let own = waiting.clone().find(|at| self.parts[*at].holders.contains(&node));
        let any = own.or_else(|| waiting.clone().next_back());
        any.or_else(|| straggler(&self.runs, &self.took[0], node, now)).map(Next::Run)
    }

    fn has_all_runs(&self) -> bool {
        self.runs.iter().all(|run| run.done.is_some())
    }

    /// Ranges that are to be done and are not.
    fn open_ranges(&self) -> impl Iterator<Item = usize> {
        let of_nothing = self.makes_of_nothing && self.range_bytes.iter().all(|bytes| *bytes == 0);
        (0..self.ranges.len()).filter(move |range| {
            let is_meant = self.range_bytes[*range] > 0 || (of_nothing && *range == 0);
            is_meant && self.ranges[*range].done.is_none()
        })
    }

    /// It is given to a node.
    pub(in crate::client) fn begin(&mut self, task: Next, node: NodeId, now: Timestamp) -> Attempt {
        let number = match task {
            Next::Run(at) => {
                self.second_attempts += u64::from(!self.runs[at].running.is_empty());
                self.runs[at].begin(node, Vec::new(), now)
            }
            Next::Range(at) => {
                self.second_attempts += u64::from(!self.ranges[at].running.is_empty());
                let runs = self.done_runs().filter_map(|(task, done)| {
                    let bytes = done.made.parts().get(at)?.bytes;
                    Some(RunRef { node: done.node, task: run_name(task, done.number), bytes })
                        .filter(|_| bytes > 0)
                });
                let runs = runs.collect();
                self.ranges[at].begin(node, runs, now)
            }
        };
        Attempt { task, number, node }
    }

    fn done_runs(&self) -> impl Iterator<Item = (usize, &Done<F>)> {
        self.runs.iter().enumerate().filter_map(|(at, run)| Some((at, run.done.as_ref()?)))
    }

    /// A part of the input.
    pub(in crate::client) fn part(&self, at: usize) -> &Part<I> {
        &self.parts[at]
    }

    /// What an attempt merges a range from; it was begun.
    pub(in crate::client) fn sources(&self, attempt: Attempt) -> &[RunRef] {
        let Next::Range(at) = attempt.task else { return &[] };
        let running = self.ranges[at].running.iter().find(|running| running.number == attempt.number);
        running.map_or(&[], |running| &running.runs)
    }

    /// How an attempt ended.
    pub(in crate::client) fn ended(
        &mut self,
        attempt: Attempt,
        result: Result<Made<F, S>, WorkError>,
        now: Timestamp,
    ) -> Result<(), GivenUp> {
        let error = match (attempt.task, result) {
            (Next::Run(at), Ok(Made::Run(made))) if made.parts().len() == self.ranges.len() => {
                let parts: Vec<u64> = made.parts().iter().map(|part| part.bytes).collect();
                if let Some(took) = self.runs[at].succeed(attempt, made, now) {
                    self.took[0].push(took);
                    self.range_bytes.iter_mut().zip(parts).for_each(|(all, bytes)| *all += bytes);
                }
                return Ok(());
            }
            (Next::Range(at), Ok(Made::Range(made))) => {
                self.took[1].extend(self.ranges[at].succeed(attempt, made, now));
                return Ok(());
            }
            (_, Ok(_)) => WorkError::Disorder,
            (_, Err(error)) => error,
        };
        let matters = match attempt.task {
            Next::Run(at) => self.runs[at].fail(attempt, error, now)?,
            Next::Range(at) => {
                let lost = if let WorkError::RunLost { task } = error { Some(task) } else { None };
                let matters = self.ranges[at].fail(attempt, error, now)?;
                if let Some(lost) = lost.filter(|_| matters) {
                    self.lose(lost);
                }
                matters
            }
        };
        self.again += u64::from(matters);
        Ok(())
    }

    /// Who keeps the run of that name, if it is still the one that counts.
    pub(in crate::client) fn keeper(&self, name: u32) -> Option<NodeId> {
        let done = self.runs.get((name / ATTEMPTS) as usize)?.done.as_ref()?;
        (done.number == name % ATTEMPTS).then_some(done.node)
    }

    /// A run could not be fetched: it is made again, unless it was already.
    fn lose(&mut self, name: u32) {
        if self.keeper(name).is_some() {
            self.forget((name / ATTEMPTS) as usize);
        }
    }

    fn forget(&mut self, at: usize) {
        let Some(done) = self.runs[at].done.take() else { return };
        for (all, part) in self.range_bytes.iter_mut().zip(done.made.parts()) {
            *all -= part.bytes;
        }
        self.again += 1;
    }

    /// A node is gone, and what it kept with it: all of that is made again, not only what somebody has asked for.
    pub(in crate::client) fn lose_node(&mut self, gone: NodeId) {
        for at in 0..self.runs.len() {
            if self.runs[at].done.as_ref().is_some_and(|done| done.node == gone) {
                self.forget(at);
            }
        }
    }

    /// Whether there is nothing to do any more. A range in which there is nothing needs nothing.
    pub(in crate::client) fn is_done(&self) -> bool {
        self.has_all_runs() && self.open_ranges().next().is_none()
    }

    /// How far it is.
    pub(in crate::client) fn progress(&self) -> Progress {
        let is_done = |at: &usize| self.runs[*at].done.is_some();
        let through: u64 = (0..self.runs.len()).filter(is_done).map(|at| self.parts[at].bytes).sum();
        let runs = self.done_runs().count();
        let local =
            self.done_runs().filter(|(at, done)| self.parts[*at].holders.contains(&done.node)).count();
        let merging = self.has_all_runs();
        let merged = |range: &usize| self.ranges[*range].done.is_some();
        let all: u64 = self.range_bytes.iter().sum();
        let done: u64 = (0..self.ranges.len()).filter(merged).map(|range| self.range_bytes[range]).sum();
        let scaled = u128::from(through) * u128::from(done) / u128::from(all.max(1));
        Progress {
            merging,
            bytes: if merging { u64::try_from(scaled).unwrap_or(through) } else { through },
            runs: (runs, self.runs.len()),
            local,
            ranges: ((0..self.ranges.len()).filter(merged).count(), self.ranges.len()),
            again: self.again,
            second_attempts: self.second_attempts,
        }
    }

    /// What is known of the runs, in the order of the input.
    pub(in crate::client) fn made_runs(&self) -> impl Iterator<Item = &F> {
        self.done_runs().map(|(_, done)| &done.made)
    }

    /// What is known of the ranges, in order; of those that hold anything.
    pub(in crate::client) fn into_ranges(self) -> Vec<S> {
        self.ranges.into_iter().filter_map(|range| Some(range.done?.made)).collect()
    }

    /// What is known of the ranges, in order; of those that hold anything.
    pub(in crate::client) fn made_ranges(&self) -> impl Iterator<Item = &S> {
        self.ranges.iter().filter_map(|range| range.done.as_ref().map(|done| &done.made))
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) struct Progress {
    /// All runs are there.
    pub(in crate::client) merging: bool,
    /// Bytes of the input that are through this stage.
    pub(in crate::client) bytes: u64,
    /// Runs that are there, of so many.
    pub(in crate::client) runs: (usize, usize),
    /// Runs that were made where their part of the input is.
    pub(in crate::client) local: usize,
    /// Ranges that are done, of so many.
    pub(in crate::client) ranges: (usize, usize),
    /// Attempts that came to nothing, and runs that were lost.
    pub(in crate::client) again: u64,
    /// Attempts that were begun although another one was under way, because that took long.
    pub(in crate::client) second_attempts: u64,
}

impl<T> State<T> {
    /// An attempt ended well; how long it took, if it is the first that did.
    fn succeed(&mut self, attempt: Attempt, made: T, now: Timestamp) -> Option<Duration> {
        let at = self.running.iter().position(|running| running.number == attempt.number)?;
        let running = self.running.swap_remove(at);
        if self.done.is_some() {
            return None;
        }
        self.done = Some(Done { number: attempt.number, node: attempt.node, made });
        Some(now.since(running.since))
    }

    /// An attempt failed; whether that matters, because none has ended well.
    fn fail(&mut self, attempt: Attempt, error: WorkError, now: Timestamp) -> Result<bool, GivenUp> {
        self.running.retain(|running| running.number != attempt.number);
        if self.done.is_some() {
            return Ok(false);
        }
        let most = match error {
            // It was not even begun.
            WorkError::NoProgram => return Ok(false),
            WorkError::Program { .. } | WorkError::TooLong => {
                self.failed_on.insert(attempt.node);
                self.failed_at = now;
                MAX_PROGRAM_FAILURES
            }
            _ => MAX_ATTEMPTS,
        };
        self.failures += 1;
        if self.failures >= most { Err(GivenUp { attempts: self.failures, error }) } else { Ok(true) }
    }
}

/// The task whose only attempt has been running for much longer than others took, when half of them are done.
fn straggler<T>(tasks: &[State<T>], took: &[Duration], node: NodeId, now: Timestamp) -> Option<usize> {
    if took.len() * 2 < tasks.len() {
        return None;
    }
    let mut took = took.to_vec();
    let middle = took.len() / 2;
    let usual = if took.is_empty() { Duration::ZERO } else { *took.select_nth_unstable(middle).1 };
    let since = |at: usize| Some((tasks[at].straggles(node, now, usual)?, at));
    (0..tasks.len()).filter_map(since).max().map(|(_, at)| at)
}

/// What the run of an attempt is called.
fn run_name(task: usize, number: u32) -> u32 {
    u32::try_from(task).unwrap_or(u32::MAX / ATTEMPTS) * ATTEMPTS + number
}

impl Attempt {
    /// What the run is called that it makes.
    pub(in crate::client) fn run_name(self) -> u32 {
        let (Next::Run(task) | Next::Range(task)) = self.task;
        run_name(task, self.number)
    }

    /// The number of its task.
    pub(in crate::client) fn place(self) -> u32 {
        let (Next::Run(task) | Next::Range(task)) = self.task;
        u32::try_from(task).unwrap_or(u32::MAX)
    }
}

/// Cuts blocks into parts whose blocks one node has, about as many bytes for each node.
pub(in crate::client) fn cut_blocks(
    input: &[InputRef],
    placement: &Placement,
    sizes: Sizes,
) -> Vec<Part<Vec<InputRef>>> {
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
    let shares = shares.into_values().flat_map(|(_, blocks)| cut(blocks, sizes));
    shares.map(|blocks| part(blocks, placement)).collect()
}

fn part(blocks: Vec<InputRef>, placement: &Placement) -> Part<Vec<InputRef>> {
    let mut holders: BTreeSet<NodeId> = placement.members().iter().copied().collect();
    for block in &blocks {
        holders.retain(|node| placement.replicas(block.block).contains(node));
    }
    let bytes = blocks.iter().map(|block| u64::from(block.info.length)).sum();
    Part { input: blocks, bytes, holders }
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
mod tests;
