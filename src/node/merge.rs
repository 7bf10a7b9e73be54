//! Two swarms of one name meet: the empty one gives way, and no acknowledged write goes with it.
//!
//! That a swarm is empty must be *made* true, not looked up: a write could be acknowledged behind the look. So
//! the node that meets the other swarm seals every partition of its own, through Raft; a partition accepts the
//! seal only while it holds nothing, and takes no write under it. The seals belong to one attempt. When all
//! partitions are sealed, one more command to the *first* partition decides: if its seal is still this
//! attempt's, the swarm has dissolved, for good. Another attempt, on another node, takes the seals over in the
//! same order, the first partition first; the log index of that first seal (the *epoch*) orders the attempts,
//! and no partition lets an earlier attempt take a seal from a later one. So at most one attempt reaches the
//! decision with all seals in its hands; one that fails breaks its own seals, the first partition last. What
//! remains is to tell the members, who then join the other swarm.

use std::time::Duration;

use super::rpc::NodeRpc;
use crate::id::{PartitionId, SessionId, SwarmId, Version};
use crate::state_machine::{Operation, Origin, Reply};
use crate::wire::{Request, Response, Rpc};

/// Longest that one partition may take to answer.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two requests to a partition that has no leader at the moment.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// No session: these operations may be repeated.
const NOBODY: Origin = Origin { session: SessionId(0), sequence: 0, settled_below: 0 };

/// How an attempt to dissolve a swarm ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merged {
    /// The swarm has dissolved, by this attempt or an earlier one.
    Dissolved {
        /// The swarm that remains.
        into: SwarmId,
    },
    /// It holds keys: it stays.
    HoldsData,
    /// Some partition did not answer, or another attempt is under way: to be tried again.
    Failed,
}

/// One attempt to dissolve a swarm into another, or to undo what an earlier one left behind.
pub(super) struct Attempt<'a> {
    /// Reaches the partitions through this node.
    pub(super) rpc: &'a NodeRpc,
    /// The swarm of this node.
    pub(super) from: SwarmId,
    /// How many partitions it has.
    pub(super) partitions: u32,
    /// The swarm that remains.
    pub(super) into: SwarmId,
    /// Random: whose the seals are.
    pub(super) id: u128,
}

impl Attempt<'_> {
    /// Tries to dissolve the swarm.
    pub(super) async fn dissolve(&self) -> Merged {
        let mut epoch = None;
        for partition in 0..self.partitions {
            let failed = match self.ask(partition, self.seal(epoch)).await {
                Some(Reply::Sealed { epoch: sealed, .. }) => {
                    epoch.get_or_insert(sealed);
                    continue;
                }
                Some(Reply::Dissolved { into }) => return Merged::Dissolved { into },
                Some(Reply::NotEmpty) => Merged::HoldsData,
                _ => Merged::Failed,
            };
            // Also when the answer was lost the seal may be there.
            self.unseal(partition).await;
            return failed;
        }
        let Some(epoch) = epoch else { return Merged::Failed };
        match self.ask(0, Operation::Dissolve { attempt: self.id, epoch }).await {
            Some(Reply::Dissolved { into }) => Merged::Dissolved { into },
            Some(_) => {
                self.unseal(self.partitions - 1).await;
                Merged::Failed
            }
            // It may have happened: to break the seals would be wrong, to try again is not.
            None => Merged::Failed,
        }
    }

    /// Breaks all seals that were left behind, unless they turn out to be for good.
    pub(super) async fn break_seals(&self) -> Merged {
        let mut epoch = None;
        for partition in 0..self.partitions {
            match self.ask(partition, self.seal(epoch)).await {
                Some(Reply::Sealed { epoch: sealed, .. }) => {
                    epoch.get_or_insert(sealed);
                }
                Some(Reply::Dissolved { into }) => return Merged::Dissolved { into },
                // Without the first there is no order; that one is tried again.
                _ if epoch.is_none() => return Merged::Failed,
                _ => {}
            }
        }
        self.unseal(self.partitions.saturating_sub(1)).await;
        Merged::Failed
    }

    fn seal(&self, epoch: Option<Version>) -> Operation {
        Operation::Seal { into: self.into, attempt: self.id, epoch }
    }

    /// Breaks this attempt's seals from the given partition down to the first.
    async fn unseal(&self, last: u32) {
        for partition in (0..=last).rev() {
            if self.ask(partition, Operation::Unseal { attempt: self.id }).await.is_none() {
                tracing::warn!(partition, "a seal may remain for a while");
            }
        }
    }

    /// Asks a partition until it answers; `None`: time is up, and it may have happened.
    async fn ask(&self, partition: u32, operation: Operation) -> Option<Reply> {
        let request = Request::Write {
            swarm: self.from,
            partition: PartitionId(partition),
            origin: NOBODY,
            operation,
            forwarded: false,
        };
        let asking = async {
            loop {
                let response = self.rpc.call(self.rpc.me, request.clone(), STEP_TIMEOUT).await;
                if let Ok(Response::Reply(reply)) = response {
                    return reply;
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::time::timeout(STEP_TIMEOUT, asking).await.ok()
    }
}
