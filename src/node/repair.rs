//! Sees to it that every block is where the ring wants it, and nowhere else.
//!
//! Each node looks at the blocks that it keeps itself. Of a block's holders the first in the order of its replicas
//! sees to it that all replicas have it; a node that is no replica of it (any more) does the same and then drops
//! it, when all of them say that they have it. Whether a dataset is still there, its partition says. So nobody
//! keeps a list of who has what, and nothing is lost by a node that asks in vain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::blocks::Blocks;
use super::clock::Clock;
use super::rpc::NodeRpc;
use crate::client::{Client, Placement};
use crate::dataset::BlockId;
use crate::id::{DatasetId, NodeId, SwarmId};
use crate::storage::BlockStore;
use crate::time::Timestamp;
use crate::wire::{BlockRequest, BlockResponse, MAX_ASKED_BLOCKS, Response, Rpc, SwarmView};

/// Time between two looks at the ring.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks at all blocks while the ring stays as it is and nothing is missing.
const ROUND_INTERVAL: Duration = Duration::from_secs(30);
/// Blocks of a dataset that is not sealed are dropped when nothing was added to them for so long.
const UNSEALED_TTL: Duration = Duration::from_secs(900);
/// For so long a dataset that was given up is looked for: blocks of it may still have been on their way.
const GIVEN_UP_TTL: Duration = Duration::from_secs(10);
/// Longest wait for an answer about blocks.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The task that looks after a node's blocks.
pub(super) struct Repair {
    pub(super) me: NodeId,
    pub(super) rpc: NodeRpc,
    pub(super) client: Client<NodeRpc>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) stop: CancellationToken,
}

/// What is known of the datasets of which blocks are kept.
#[derive(Debug, Default)]
struct Known {
    datasets: BTreeMap<DatasetId, Dataset>,
    /// Those that were given up, and when.
    given_up: BTreeMap<DatasetId, Timestamp>,
    /// The members that the last complete round was made for.
    settled: Option<(Vec<NodeId>, Timestamp)>,
}

#[derive(Debug)]
struct Dataset {
    /// It was seen sealed: when it is not there any more, it was removed.
    sealed: bool,
    /// Blocks kept when it was last looked at, and since when there are so many.
    count: usize,
    since: Timestamp,
}

impl Repair {
    pub(super) async fn run(self) {
        let mut known = Known::default();
        let stop = self.stop.clone();
        loop {
            let look = async {
                tokio::select! {
                    () = self.blocks.wanted() => known.settled = None,
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
                self.look(&mut known).await;
            };
            if stop.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    async fn look(&self, known: &mut Known) {
        let Some(view) = self.view().await else { return };
        if self.blocks.store().swarm() != Some(view.swarm) {
            *known = Known::default();
            let (store, swarm) = (Arc::clone(self.blocks.store()), view.swarm);
            let entered = tokio::task::spawn_blocking(move || store.enter(swarm)).await;
            if let Ok(Err(error)) = entered {
                tracing::warn!(%error, "the blocks that are kept here cannot be read");
                return;
            }
        }
        self.blocks.set_leaving(view.members.iter().any(|member| member.node == self.me && member.draining));
        let now = Clock.now();
        known.given_up.retain(|_, at| now.since(*at) < GIVEN_UP_TTL);
        known.given_up.extend(self.blocks.given_up().into_iter().map(|id| (id, now)));
        let damaged = self.blocks.damaged();
        if damaged.is_empty() && self.blocks.store().count() == 0 {
            // No ring is made for nothing.
            return;
        }
        let Some(placement) = Placement::of(&view) else { return };
        for (block, name) in damaged {
            self.heal(&placement, block, name).await;
        }
        if self.blocks.store().count() == 0 {
            return;
        }
        let members = placement.members();
        let is_settled = known.settled.as_ref().is_some_and(|(settled, at)| {
            settled == members
                && now.since(*at) < ROUND_INTERVAL
                && known.given_up.is_empty()
                && !placement.is_draining(self.me)
        });
        if !is_settled {
            let members = members.to_vec();
            self.sweep(known, now).await;
            if self.replicate(&placement, known).await {
                known.settled = Some((members, now));
            }
        }
    }

    /// The swarm as this node sees it.
    async fn view(&self) -> Option<SwarmView> {
        match self.rpc.call(self.me, crate::wire::Request::View, ANSWER_LIMIT).await {
            Ok(Response::View(view)) => Some(view),
            _ => None,
        }
    }

    /// Drops what belongs to no dataset any more.
    async fn sweep(&self, known: &mut Known, now: Timestamp) {
        let store = self.blocks.store();
        let kept = store.datasets();
        known.datasets.retain(|id, _| kept.iter().any(|(kept, _)| kept == id));
        for (id, name) in kept {
            let numbers = store.numbers(id);
            let fresh = Dataset { sealed: false, count: 0, since: now };
            let dataset = known.datasets.entry(id).or_insert(fresh);
            let is_new = dataset.count != numbers.len();
            if is_new {
                (dataset.count, dataset.since) = (numbers.len(), now);
            }
            let Ok(found) = self.client.dataset(name.clone()).info().await else { continue };
            match found.filter(|found| found.summary.id == id) {
                // What it consists of is known, and nothing came since.
                Some(_) if dataset.sealed && !is_new => {}
                Some(_) => {
                    let Ok(Some(manifest)) = self.client.dataset(name).manifest().await else { continue };
                    if manifest.id != id {
                        continue;
                    }
                    dataset.sealed = true;
                    let named: BTreeSet<u32> = manifest.blocks.iter().map(|block| block.number).collect();
                    // Written twice, or by an attempt that came to nothing.
                    let unnamed: Vec<u32> =
                        numbers.into_iter().filter(|number| !named.contains(number)).collect();
                    let drop_them = move |store: &BlockStore| {
                        for number in unnamed {
                            store.remove(BlockId { dataset: id, number });
                        }
                    };
                    self.in_store(drop_them).await;
                }
                None if dataset.sealed
                    || known.given_up.contains_key(&id)
                    || now.since(dataset.since) >= UNSEALED_TTL =>
                {
                    tracing::debug!(dataset = %id, "its blocks are dropped");
                    self.in_store(move |store| store.remove_dataset(id)).await;
                }
                None => {}
            }
        }
    }

    /// Brings blocks to where they belong; whether all are there now, as far as this node has to see to it.
    async fn replicate(&self, placement: &Placement, known: &Known) -> bool {
        let swarm = placement.swarm();
        let mut settled = true;
        for (dataset, name) in self.blocks.store().datasets() {
            // As long as it is written, its writer sees to it.
            let is_sealed = known.datasets.get(&dataset).is_some_and(|dataset| dataset.sealed);
            if !is_sealed && !placement.is_draining(self.me) {
                continue;
            }
            let numbers = self.blocks.store().numbers(dataset);
            for numbers in numbers.chunks(MAX_ASKED_BLOCKS) {
                let blocks: Vec<BlockId> =
                    numbers.iter().map(|number| BlockId { dataset, number: *number }).collect();
                let held = self.who_holds(placement, &blocks).await;
                for block in &blocks {
                    settled &= self.see_to(swarm, placement.replicas(*block), *block, &name, &held).await;
                }
            }
        }
        settled
    }

    /// Of each other node that should have any of the blocks, which of them it has. Who does not answer is missing.
    async fn who_holds(
        &self,
        placement: &Placement,
        blocks: &[BlockId],
    ) -> BTreeMap<NodeId, BTreeSet<BlockId>> {
        let mut asked: BTreeMap<NodeId, Vec<BlockId>> = BTreeMap::new();
        for block in blocks {
            for node in placement.replicas(*block).iter().filter(|node| **node != self.me) {
                asked.entry(*node).or_default().push(*block);
            }
        }
        let mut held = BTreeMap::new();
        for (node, blocks) in asked {
            let request = BlockRequest::Held { blocks: blocks.clone() };
            if let Some(BlockResponse::Held(answers)) = self.ask(placement.swarm(), node, request).await
                && answers.len() == blocks.len()
            {
                let blocks = blocks.into_iter().zip(answers).filter(|(_, is_held)| *is_held);
                held.insert(node, blocks.map(|(block, _)| block).collect());
            }
        }
        held
    }

    /// Whether a block is where it belongs now, as far as this node has to see to it.
    async fn see_to(
        &self,
        swarm: SwarmId,
        replicas: &[NodeId],
        block: BlockId,
        name: &[u8],
        held: &BTreeMap<NodeId, BTreeSet<BlockId>>,
    ) -> bool {
        let has = |node: &NodeId| held.get(node).is_some_and(|blocks| blocks.contains(&block));
        let is_replica = replicas.contains(&self.me);
        let before_me = replicas.iter().take_while(|node| **node != self.me);
        if is_replica && before_me.clone().any(has) {
            // The first of the holders does it.
            return true;
        }
        let mut complete = true;
        for node in replicas.iter().filter(|node| **node != self.me && !has(node)) {
            // Who did not answer before is not sent anything.
            complete &= held.contains_key(node) && self.send(swarm, *node, block, name).await;
        }
        if complete && !is_replica && !replicas.is_empty() {
            self.in_store(move |store| store.remove(block)).await;
        }
        complete
    }

    async fn send(&self, swarm: SwarmId, to: NodeId, block: BlockId, name: &[u8]) -> bool {
        let blocks = Arc::clone(&self.blocks);
        let Ok(Ok((checksum, bytes))) = tokio::task::spawn_blocking(move || blocks.get(block)).await else {
            // Damaged, and noted; or dropped meanwhile.
            return false;
        };
        let request = BlockRequest::Put { block, name: name.to_vec(), checksum, bytes };
        let answer = self.ask(swarm, to, request).await;
        if let Some(BlockResponse::Refused(refusal)) = &answer {
            tracing::warn!(peer = %to, %refusal, "a block cannot be brought to where it belongs");
        }
        answer == Some(BlockResponse::Stored)
    }

    /// Fetches a block that was damaged here from another replica.
    async fn heal(&self, placement: &Placement, block: BlockId, name: Vec<u8>) {
        let swarm = placement.swarm();
        for node in placement.replicas(block).iter().filter(|node| **node != self.me) {
            let answer = self.ask(swarm, *node, BlockRequest::Get { block }).await;
            let Some(BlockResponse::Block { checksum, bytes }) = answer else { continue };
            let request = BlockRequest::Put { block, name: name.clone(), checksum, bytes };
            if let Response::Blocks(BlockResponse::Stored) = self.blocks.ask(swarm, request).await {
                tracing::info!(dataset = %block.dataset, number = block.number, "a damaged block is whole again");
                return;
            }
        }
    }

    async fn in_store(&self, work: impl FnOnce(&BlockStore) + Send + 'static) {
        let store = Arc::clone(self.blocks.store());
        // Only the end of the node could end it early, and then the next one does it.
        drop(tokio::task::spawn_blocking(move || work(&store)).await);
    }

    async fn ask(&self, swarm: SwarmId, node: NodeId, request: BlockRequest) -> Option<BlockResponse> {
        let request = crate::wire::Request::Blocks { swarm, request };
        match self.rpc.call(node, request, ANSWER_LIMIT).await {
            Ok(Response::Blocks(response)) => Some(response),
            _ => None,
        }
    }
}
