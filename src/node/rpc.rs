//! Requests from within a node: to itself through its queue, to others through the network.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::blocks::Blocks;
use super::clock::Clock;
use super::runtime::{Input, Respond};
use crate::id::NodeId;
use crate::net::Net;
use crate::wire::{Request, Response, Rpc, RpcError};

/// How a client inside a node reaches the swarm.
#[derive(Debug, Clone)]
pub struct NodeRpc {
    pub(super) me: NodeId,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) net: Net,
    pub(super) blocks: Arc<Blocks>,
}

impl Rpc for NodeRpc {
    async fn call(&self, to: NodeId, request: Request, timeout: Duration) -> Result<Response, RpcError> {
        if to != self.me {
            return Rpc::call(&self.net, to, request, timeout).await;
        }
        if let Request::Blocks { swarm, request } = request {
            // Not through the core.
            let answer = tokio::time::timeout(timeout, self.blocks.ask(swarm, request)).await;
            return answer.map_err(|_| RpcError::Lost("time is up"));
        }
        let (respond, response) = oneshot::channel();
        if let Request::Work { swarm, request } = request {
            // A caller that gave up is no error.
            self.blocks.assign(swarm, request, |response| drop(respond.send(response)));
            return answered(timeout, response).await;
        }
        let input =
            Input::Request { request, respond: Respond::Here(respond), arrived: Clock.now(), held: None };
        self.inputs.try_send(input).map_err(|_| RpcError::NotSent("the node's queue is full"))?;
        answered(timeout, response).await
    }

    fn linked(&self) -> Vec<NodeId> {
        let mut nodes = vec![self.me];
        nodes.extend(Rpc::linked(&self.net));
        nodes
    }

    fn is_linked(&self, node: NodeId) -> bool {
        node == self.me || self.net.is_linked(node)
    }

    fn home(&self) -> Option<NodeId> {
        Some(self.me)
    }

    fn want(&self, node: NodeId, addresses: &[String]) {
        Rpc::want(&self.net, node, addresses);
    }
}

async fn answered(timeout: Duration, response: oneshot::Receiver<Response>) -> Result<Response, RpcError> {
    match tokio::time::timeout(timeout, response).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(_)) => Err(RpcError::Lost("the node stopped")),
        Err(_) => Err(RpcError::Lost("time is up")),
    }
}
