//! Two swarms of one name meet: the empty one gives way, and no acknowledged write goes with it.
//!
//! That a swarm is empty must be *made* true, not looked up: a write could be acknowledged behind the look. So
//! the node that meets the other swarm seals every partition of its own, through Raft; a partition accepts the
//! seal only while it holds nothing, and takes no write under it. The seals belong to one attempt. When all
//! partitions are sealed, one more command to the *first* partition decides: if its seal is still this
//! attempt's, the swarm has dissolved, for good. Another attempt, on another node, takes the seals over in the
//! same order, the first partition first, so at most one attempt reaches the decision; one that fails breaks
//! its own seals, the first partition last. Answers are lost with the partitions, so what remains is to tell
//! the members, who then join the other swarm.

use std::time::Duration;

use super::rpc::NodeRpc;
use crate::id::{PartitionId, SessionId, SwarmId};
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
    /// The swarm has dissolved.
    Sealed,
    /// It holds keys: it stays.
    HoldsData,
    /// Some partition did not answer, or another attempt is under way: to be tried again.
    Failed,
}

/// Breaks all seals that were left behind, unless they turn out to be for good.
pub(super) async fn break_seals(rpc: &NodeRpc, partitions: u32, into: SwarmId, attempt: u128) -> Merged {
    let partitions = (0..partitions).map(PartitionId);
    for partition in partitions.clone() {
        if let Some(Reply::Dissolved { .. }) = ask(rpc, partition, Operation::Seal { into, attempt }).await {
            return Merged::Sealed;
        }
    }
    unseal(rpc, partitions, attempt).await;
    Merged::Failed
}

/// Breaks the seals of an attempt, the first partition's last.
async fn unseal(rpc: &NodeRpc, sealed: impl DoubleEndedIterator<Item = PartitionId>, attempt: u128) {
    for partition in sealed.rev() {
        if ask(rpc, partition, Operation::Unseal { attempt }).await.is_none() {
            tracing::warn!(%partition, "a seal may remain for a while");
        }
    }
}

/// Tries to dissolve the swarm of this node, which has so many partitions, into another.
pub(super) async fn seal_all(rpc: &NodeRpc, partitions: u32, into: SwarmId, attempt: u128) -> Merged {
    let mut sealed = Vec::new();
    let mut result = Merged::Sealed;
    for partition in (0..partitions).map(PartitionId) {
        // Also when the answer is lost the seal may be there.
        sealed.push(partition);
        match ask(rpc, partition, Operation::Seal { into, attempt }).await {
            Some(Reply::Sealed { .. }) => {}
            Some(Reply::Dissolved { .. }) => return Merged::Sealed,
            Some(Reply::NotEmpty) => result = Merged::HoldsData,
            _ => result = Merged::Failed,
        }
        if result != Merged::Sealed {
            break;
        }
    }
    if result == Merged::Sealed {
        match ask(rpc, PartitionId(0), Operation::Dissolve { attempt }).await {
            Some(Reply::Dissolved { .. }) => return Merged::Sealed,
            // It may have happened: to break the seals would be wrong, to try again is not.
            None => return Merged::Failed,
            Some(_) => result = Merged::Failed,
        }
    }
    unseal(rpc, sealed.into_iter(), attempt).await;
    result
}

/// Asks a partition until it answers; `None`: time is up, and it may have happened.
async fn ask(rpc: &NodeRpc, partition: PartitionId, operation: Operation) -> Option<Reply> {
    let request = Request::Write { partition, origin: NOBODY, operation, forwarded: false };
    let asking = async {
        loop {
            if let Ok(Response::Reply(reply)) = rpc.call(rpc.me, request.clone(), STEP_TIMEOUT).await {
                return reply;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    };
    tokio::time::timeout(STEP_TIMEOUT, asking).await.ok()
}
