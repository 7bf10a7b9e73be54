//! One block to its replicas, or back from one of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::super::{Client, Error, lock};
use super::{DatasetError, Placement};
use crate::dataset::{BlockId, BlockInfo};
use crate::id::NodeId;
use crate::time::Timestamp;
use crate::wire::{BlockRefusal, BlockRequest, BlockResponse, Refusal, Request, Response, Rpc, RpcError};

/// A placement older than this is asked for anew before the next block.
const PLACEMENT_TTL: Duration = Duration::from_secs(2);
/// How long a block may take to be kept, if the client's deadline is not longer: it is up to 1 MiB, and durable nodes
/// sync it.
const PUT_LIMIT: Duration = Duration::from_secs(30);
/// Pause before a node is asked again.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest time with one placement before it is asked for anew.
const ROUND_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for one node to return a block before another is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long the last replicas are waited for when a majority has a block: they get it anyway, from their fellows if
/// not from here.
const LAGGARD_GRACE: Duration = Duration::from_millis(200);

/// What all blocks of one writer or reader share.
pub(crate) struct Courier<R> {
    pub(super) client: Client<R>,
    placement: Mutex<(Arc<Placement>, Timestamp)>,
}

impl<R: Rpc> Courier<R> {
    pub(crate) async fn new(client: Client<R>) -> Result<Arc<Self>, DatasetError> {
        let placement = fetch(&client).await?;
        let now = client.now();
        Ok(Arc::new(Self { client, placement: Mutex::new((placement, now)) }))
    }

    /// Where blocks belong: as known lately, or asked for anew if that fails.
    pub(crate) async fn placement(&self, fresh: bool) -> Result<Arc<Placement>, DatasetError> {
        let (known, at) = lock(&self.placement).clone();
        if !fresh && self.client.now().since(at) < PLACEMENT_TTL {
            return Ok(known);
        }
        let Ok(found) = fetch(&self.client).await else { return Ok(known) };
        if found.swarm() != known.swarm() {
            return Err(DatasetError::Dissolved);
        }
        *lock(&self.placement) = (Arc::clone(&found), self.client.now());
        Ok(found)
    }

    /// Brings a block to its replicas; returns when a majority of them has it.
    pub(crate) async fn put(
        &self,
        block: BlockId,
        name: &[u8],
        checksum: u32,
        bytes: &Bytes,
    ) -> Result<(), DatasetError> {
        let deadline = self.client.now() + self.client.deadline.max(PUT_LIMIT);
        let mut fresh = false;
        loop {
            let placement = self.placement(fresh).await?;
            let replicas = placement.replicas(block);
            let needed = Placement::majority(replicas.len());
            let until = deadline.min(self.client.now() + ROUND_LIMIT);
            let mut puts: FuturesUnordered<_> = replicas
                .iter()
                .map(|node| {
                    let (name, bytes) = (name.to_vec(), bytes.clone());
                    let request = BlockRequest::Put { block, name, checksum, bytes };
                    self.put_at(&placement, *node, request, until)
                })
                .collect();
            let (mut stored, mut reason) = (0, None);
            let linked = self.client.shared.router.rpc.linked();
            let linked = replicas.iter().filter(|node| linked.contains(node)).count();
            // Who cannot even be sent to is not waited for when enough others have it.
            while stored < needed || stored < linked {
                let limit = if stored >= needed { LAGGARD_GRACE } else { until.since(self.client.now()) };
                match tokio::time::timeout(limit, puts.next()).await {
                    Ok(Some(Ok(()))) => stored += 1,
                    Ok(Some(Err(refusal))) => reason = refusal.or(reason),
                    Ok(None) | Err(_) => break,
                }
            }
            if stored >= needed {
                return Ok(());
            }
            // Who has no room will have none in a second either.
            if self.client.now() >= deadline || matches!(reason, Some(BlockRefusal::Full { .. })) {
                return Err(DatasetError::NotKept { stored, needed, reason });
            }
            fresh = true;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Brings a block to one node. An error: what it said if it refused.
    async fn put_at(
        &self,
        placement: &Placement,
        node: NodeId,
        request: BlockRequest,
        until: Timestamp,
    ) -> Result<(), Option<BlockRefusal>> {
        loop {
            match self.ask(placement, node, request.clone(), until.since(self.client.now())).await {
                Answered::Yes(BlockResponse::Stored) => return Ok(()),
                Answered::Yes(BlockResponse::Refused(refusal)) => return Err(Some(refusal)),
                Answered::Yes(_) | Answered::Never => return Err(None),
                Answered::NotNow if self.client.now() + PAUSE >= until => return Err(None),
                Answered::NotNow => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Fetches a block from whoever has it.
    pub(crate) async fn get(&self, block: BlockId, info: BlockInfo) -> Result<Bytes, DatasetError> {
        let deadline = self.client.now() + self.client.deadline;
        let mut fresh = false;
        loop {
            let placement = self.placement(fresh).await?;
            for node in self.holders(&placement, block) {
                let limit = deadline.since(self.client.now()).min(ANSWER_LIMIT);
                let answer = self.ask(&placement, node, BlockRequest::Get { block }, limit).await;
                if let Answered::Yes(BlockResponse::Block { bytes, .. }) = answer
                    && bytes.len() == info.length as usize
                    && crc32c::crc32c(&bytes) == info.checksum
                {
                    return Ok(bytes);
                }
            }
            if self.client.now() >= deadline {
                return Err(DatasetError::BlockMissing { number: block.number });
            }
            fresh = true;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Who may have a block: this node, its replicas (not always the same one first), then whoever is linked.
    pub(crate) fn holders(&self, placement: &Placement, block: BlockId) -> Vec<NodeId> {
        let rpc = &self.client.shared.router.rpc;
        let mut nodes = placement.replicas(block).to_vec();
        let turn = block.number as usize % nodes.len().max(1);
        nodes.rotate_left(turn);
        if let Some(at) = rpc.home().and_then(|home| nodes.iter().position(|node| *node == home)) {
            nodes.swap(0, at);
        }
        for node in rpc.linked() {
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        nodes
    }

    async fn ask(
        &self,
        placement: &Placement,
        node: NodeId,
        request: BlockRequest,
        limit: Duration,
    ) -> Answered {
        let rpc = &self.client.shared.router.rpc;
        let request = Request::Blocks { swarm: placement.swarm(), request };
        match rpc.call(node, request, limit).await {
            Ok(Response::Blocks(response)) => Answered::Yes(response),
            // To keep or fetch a block twice is no harm.
            Ok(Response::Refused(Refusal::Overloaded | Refusal::NotServing)) | Err(RpcError::Lost(_)) => {
                Answered::NotNow
            }
            Ok(_) => Answered::Never,
            Err(RpcError::NotSent(_)) => {
                rpc.want(node, placement.addresses(node));
                Answered::NotNow
            }
        }
    }
}

enum Answered {
    Yes(BlockResponse),
    /// It may do so a little later.
    NotNow,
    /// It does not do what is asked.
    Never,
}

async fn fetch<R: Rpc>(client: &Client<R>) -> Result<Arc<Placement>, Error> {
    let view = client.view().await?;
    Ok(Arc::new(Placement::of(&view).ok_or(Error::Unreachable)?))
}
