//! What travels between nodes: messages, their encoding, and the one seam to the network.
//!
//! *Requests* are answered ([`Rpc`]); *messages* are one-way and may be lost. Everything above this module is
//! pure; `net` carries the bytes, the simulator carries the values.

mod blocks;
#[cfg(test)]
mod fuzz;
mod message;
#[cfg(test)]
mod recorded;
mod work;

use std::future::Future;
use std::time::Duration;

pub use crate::codec::{DecodeError, MAX_MESSAGE_BYTES, decode, encode};
pub use blocks::{BlockRefusal, BlockRequest, BlockResponse, MAX_ASKED_BLOCKS};
pub use message::{
    Consistency, Hello, MAX_PIECE_BYTES, MAX_RENEWALS, MAX_WAIT_MS, MemberView, Message, NodeStatus,
    PROTOCOL_VERSION, PartitionStatus, Refusal, Renewal, Renewed, Request, Response, StorageStatus,
    SwarmState, SwarmView,
};
pub(crate) use work::hexadecimal;
pub use work::{
    Cut, Destination, Errand, InputRef, MAX_BLOCK_SAMPLES, MAX_PART_BYTES, MAX_RANGES, MAX_RUNS,
    MAX_TASK_BLOCKS, MAX_TOLD_KEY_BYTES, MAX_TOLD_RANGE_BYTES, MapInput, ProgramRef, RANGE_BLOCKS, RunRef,
    Site, WorkError, WorkRequest, WorkResponse,
};

use crate::id::NodeId;

/// Sends a request to a node and returns its response: all that a client knows of the network.
pub trait Rpc: Clone + Send + Sync + 'static {
    /// Asks `to` and waits for its response, at most `timeout`.
    ///
    /// # Errors
    /// [`RpcError::NotSent`]: the request did not leave, it was not applied. [`RpcError::Lost`]: it left, and
    /// the response did not come; it may have been applied.
    fn call(
        &self,
        to: NodeId,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, RpcError>> + Send;

    /// The nodes that can be asked without dialling first, this node itself included if it is one.
    fn linked(&self) -> Vec<NodeId>;

    /// Whether `node` is one of them.
    fn is_linked(&self, node: NodeId) -> bool {
        self.linked().contains(&node)
    }

    /// The node that asks, if it is one: its swarm is the swarm that is meant. A visitor has none.
    fn home(&self) -> Option<NodeId> {
        None
    }

    /// Wishes for a link to `node`, which listens at `addresses`; returns at once. Keeps trying for a while.
    fn want(&self, node: NodeId, addresses: &[String]);
}

/// Why there is no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// There is no link to the node, or its queue is full. Not applied.
    #[error("not sent: {0}")]
    NotSent(&'static str),
    /// The link broke or the time was up while the response was awaited. May have been applied.
    #[error("no response: {0}")]
    Lost(&'static str),
}
