//! What all jobs have in common: tasks are given to nodes, again if need be, until all of them are done.
//!
//! The process that wants the job done asks and waits; it moves no data. [`Plan`] knows what is to be done next, and
//! what a job's tasks really are its [`Work`] says. No node is special, and if this process ends, what nodes keep
//! for the job goes after a while.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

pub(super) use plan::{Attempt, GivenUp, Made, Next, Part, Parts, Plan, Progress, Sizes, cut_blocks};

use super::dataset::{Courier, Placement};
use super::{Client, DatasetError};
use crate::dataset::{BlockId, Manifest};
use crate::id::{JobId, NodeId};
use crate::time::Timestamp;
use crate::wire::{InputRef, Request, Response, Rpc, RpcError, WorkError, WorkRequest, WorkResponse};

/// Tasks that a node has at the same time from one job.
const TASKS_PER_NODE: usize = 2;
/// Longest that one task may take.
const TASK_LIMIT: Duration = Duration::from_secs(600);
/// How long nothing is asked of a node that failed.
pub(super) const REST: Duration = Duration::from_millis(500);
/// Time between two looks for nodes that are back, or for stragglers.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time without any node that can be asked.
const LONELY_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for a node to note that the job is over: it would find out by itself.
const END_LIMIT: Duration = Duration::from_millis(500);

/// What the tasks of a job are.
pub(super) trait Work {
    /// A part of the input.
    type Input;
    /// What is told of a run.
    type Run: Parts;
    /// What is told of a range.
    type Range;

    /// What is asked of the node that was given an attempt.
    fn request(&self, attempt: Attempt, plan: &Plan<Self::Input, Self::Run, Self::Range>) -> WorkRequest;

    /// What an answer means; `None`: it is the answer to something else.
    fn made(&self, response: WorkResponse) -> Option<Made<Self::Run, Self::Range>>;
}

/// The plan of a job.
pub(super) type PlanOf<W> = Plan<<W as Work>::Input, <W as Work>::Run, <W as Work>::Range>;

/// Why a job was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody says where blocks belong.
    Dataset(DatasetError),
    /// No member can be reached.
    NoNode,
    /// None of those that can be reached has the program.
    NoProgram(Vec<NodeId>),
    /// A task failed too often.
    GivenUp(GivenUp),
}

impl From<DatasetError> for Failure {
    fn from(error: DatasetError) -> Self {
        Self::Dataset(error)
    }
}

/// The blocks of a dataset as the input of a job.
pub(super) fn input_of(manifest: &Manifest) -> Vec<InputRef> {
    let block = |(position, info): (u32, &crate::dataset::BlockInfo)| InputRef {
        position,
        block: BlockId { dataset: manifest.id, number: info.number },
        info: *info,
    };
    (0..).zip(&manifest.blocks).map(block).collect()
}

/// Gives tasks to nodes until all are done. `without`: members that are known not to have the program. `progress`
/// hears of every task that ended.
pub(super) async fn carry_out<R: Rpc, W: Work>(
    client: &Client<R>,
    courier: &Courier<R>,
    work: &W,
    plan: &mut PlanOf<W>,
    without: BTreeSet<NodeId>,
    mut progress: impl FnMut(Progress),
) -> Result<(), Failure> {
    let mut running = JoinSet::new();
    let mut crew = Crew { without, ..Crew::default() };
    while !plan.is_done() {
        let placement = courier.placement(false).await?;
        let now = client.now();
        for attempt in crew.assign(client, &placement, plan, now) {
            let request = work.request(attempt, plan);
            let (client, placement) = (client.clone(), Arc::clone(&placement));
            running.spawn(async move {
                let result = ask(&client, &placement, attempt.node, request).await;
                (attempt, result)
            });
        }
        if running.is_empty() {
            crew.check(now)?;
        }
        let ended = tokio::select! {
            Some(ended) = running.join_next(), if !running.is_empty() => ended,
            () = tokio::time::sleep(LOOK_INTERVAL) => continue,
        };
        // It is never cancelled, and a panic is one of this program.
        let (attempt, result) = ended.map_err(|_| Failure::NoNode)?;
        let now = client.now();
        crew.ended(attempt.node, result.as_ref().err(), now);
        if let Err(error) = &result {
            tracing::debug!(peer = %attempt.node, task = ?attempt.task, %error, "a task is done again");
        }
        if let Err(WorkError::RunLost { task }) = &result {
            let linked = client.shared.router.rpc.linked();
            if let Some(gone) = plan.keeper(*task).filter(|node| !linked.contains(node)) {
                plan.lose_node(gone);
            }
        }
        let result = result.and_then(|response| work.made(response).ok_or(WorkError::Disorder));
        plan.ended(attempt, result, now).map_err(Failure::GivenUp)?;
        progress(plan.progress());
    }
    Ok(())
}

/// Tells the nodes that nothing of a job is needed any more.
pub(super) async fn end<R: Rpc>(client: &Client<R>, job: JobId) {
    let request = WorkRequest::End { job };
    client.shared.router.tell_linked(END_LIMIT, |swarm| Request::Work { swarm, request }).await;
}

/// The nodes that work for a job.
#[derive(Debug, Default)]
struct Crew {
    /// How many tasks each has.
    busy: BTreeMap<NodeId, usize>,
    /// Those that failed, and until when nothing is asked of them.
    resting: BTreeMap<NodeId, Timestamp>,
    /// Those that do not have the program.
    without: BTreeSet<NodeId>,
    /// Since when nobody can be asked.
    lonely_since: Option<Timestamp>,
    /// All who can be reached lack the program.
    all_without: bool,
}

impl Crew {
    /// Gives tasks to those who have room for one, to each in turn.
    fn assign<R: Rpc, I, F: Parts, S>(
        &mut self,
        client: &Client<R>,
        placement: &Placement,
        plan: &mut Plan<I, F, S>,
        now: Timestamp,
    ) -> Vec<Attempt> {
        let rpc = &client.shared.router.rpc;
        let linked = rpc.linked();
        for node in placement.members().iter().filter(|node| !linked.contains(node)) {
            rpc.want(*node, placement.addresses(*node));
        }
        let linked: Vec<NodeId> =
            placement.members().iter().copied().filter(|node| linked.contains(node)).collect();
        self.all_without = !linked.is_empty() && linked.iter().all(|node| self.without.contains(node));
        let mut given = Vec::new();
        let mut reached = false;
        for room in 1..=TASKS_PER_NODE {
            for node in linked.iter().filter(|node| !self.without.contains(node)) {
                if self.resting.get(node).is_some_and(|until| now < *until) {
                    continue;
                }
                reached = true;
                if self.busy.get(node).is_none_or(|busy| *busy < room)
                    && let Some(task) = plan.next_for(*node, now)
                {
                    *self.busy.entry(*node).or_default() += 1;
                    given.push(plan.begin(task, *node, now));
                }
            }
        }
        self.lonely_since = if reached { None } else { Some(*self.lonely_since.get_or_insert(now)) };
        given
    }

    /// Whether there is any hope, when nobody has a task.
    fn check(&self, now: Timestamp) -> Result<(), Failure> {
        if self.all_without {
            return Err(Failure::NoProgram(self.without.iter().copied().collect()));
        }
        let is_lonely = self.lonely_since.is_some_and(|since| now.since(since) >= LONELY_LIMIT);
        if is_lonely { Err(Failure::NoNode) } else { Ok(()) }
    }

    fn ended(&mut self, node: NodeId, error: Option<&WorkError>, now: Timestamp) {
        if let Some(busy) = self.busy.get_mut(&node) {
            *busy -= 1;
        }
        match error {
            // Whose run is lost, or who was given a bad program, is not to blame.
            None | Some(WorkError::RunLost { .. } | WorkError::Program { .. } | WorkError::TooLong) => {}
            Some(WorkError::NoProgram) => drop(self.without.insert(node)),
            Some(_) => drop(self.resting.insert(node, now + REST)),
        }
    }
}

/// Lets a node do something.
pub(super) async fn ask<R: Rpc>(
    client: &Client<R>,
    placement: &Placement,
    node: NodeId,
    request: WorkRequest,
) -> Result<WorkResponse, WorkError> {
    let rpc = &client.shared.router.rpc;
    let request = Request::Work { swarm: placement.swarm(), request };
    match rpc.call(node, request, TASK_LIMIT).await {
        Ok(Response::Work(WorkResponse::Failed(error))) => Err(error),
        Ok(Response::Work(response)) => Ok(response),
        Ok(Response::Refused(refusal)) => Err(WorkError::Refused(refusal.to_string())),
        Ok(_) => Err(WorkError::Disorder),
        Err(error @ (RpcError::NotSent(_) | RpcError::Lost(_))) => Err(WorkError::Refused(error.to_string())),
    }
}
