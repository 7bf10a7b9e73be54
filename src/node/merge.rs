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

use crate::client::Client;
use crate::id::{PartitionId, SwarmId};
use crate::state_machine::{Operation, Reply};
use crate::wire::Rpc;

/// Longest that one partition may take to answer.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Seals every partition of the swarm that `rpc` reaches.
pub(super) async fn seal_all<R: Rpc>(rpc: R, into: SwarmId, attempt: u128) -> Merged {
    let client = Client::new(rpc).with_deadline(STEP_TIMEOUT);
    let Ok(view) = client.view().await else { return Merged::Failed };
    let mut sealed = Vec::new();
    let mut result = Merged::Sealed;
    for partition in (0..view.partitions).map(PartitionId) {
        // Also when the answer is lost the seal may be there.
        sealed.push(partition);
        match client.administer(partition, Operation::Seal { into, attempt }).await {
            Ok(Reply::Sealed { .. }) => {}
            Ok(Reply::Dissolved { .. }) => return Merged::Sealed,
            Ok(Reply::NotEmpty) => result = Merged::HoldsData,
            Ok(_) | Err(_) => result = Merged::Failed,
        }
        if result != Merged::Sealed {
            break;
        }
    }
    if result == Merged::Sealed {
        match client.administer(PartitionId(0), Operation::Dissolve { attempt }).await {
            Ok(Reply::Dissolved { .. }) => return Merged::Sealed,
            // It may have happened: breaking the seals would be wrong, trying again is not.
            Err(_) => return Merged::Failed,
            Ok(_) => result = Merged::Failed,
        }
    }
    for partition in sealed.into_iter().rev() {
        if let Err(error) = client.administer(partition, Operation::Unseal { attempt }).await {
            tracing::warn!(%partition, %error, "a seal may remain until the next attempt");
        }
    }
    result
}
