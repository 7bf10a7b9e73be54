//! A node's blocks as others ask for them: beside the core, whose one task must not wait for files or move bulk.
//!
//! Each request costs a task and a thread's time for its file; how many run at once, and how many bytes they bring,
//! is bounded, and what is beyond is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::work::Assignment;
use crate::dataset::BlockId;
use crate::id::{DatasetId, SwarmId};
use crate::storage::{BlockError, BlockStore};
use crate::wire::{
    BlockRefusal, BlockRequest, BlockResponse, MAX_ASKED_BLOCKS, Refusal, Response, WorkRequest,
};

/// Most requests about blocks that are served at the same time, per node.
const MAX_REQUESTS: usize = 64;
/// Most bytes that requests about blocks may bring at the same time, as they were encoded; per node.
const MAX_REQUEST_BYTES: usize = 64 << 20;
/// Most requests of jobs that wait for the task that does them.
const MAX_WAITING_WORK: usize = 256;
/// Most bytes of requests of jobs that wait or are worked on, as they were encoded; per node.
const MAX_WORK_BYTES: usize = 64 << 20;
/// Most damaged blocks that wait to be fetched from other replicas. Further ones are found missing by those.
const MAX_TO_HEAL: usize = 1024;
/// Most datasets that were given up and are to be looked at. Further ones are looked at when their time is over.
const MAX_GIVEN_UP: usize = 1024;

/// The blocks that a node keeps, and those who ask for them.
#[derive(Debug)]
pub(super) struct Blocks {
    store: Arc<BlockStore>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    work_bytes: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Blocks that were found damaged, and the names of their datasets.
    to_heal: Mutex<BTreeMap<BlockId, Vec<u8>>>,
    /// Datasets that somebody says are removed, or will never be sealed.
    given_up: Mutex<BTreeSet<DatasetId>>,
    /// Somebody should look at what is kept.
    look: Notify,
    leaving: AtomicBool,
    /// To the task that does this node's part in jobs.
    work: mpsc::Sender<Assignment>,
}

impl Blocks {
    /// With what is to be done for jobs.
    pub(super) fn new(store: BlockStore) -> (Arc<Self>, mpsc::Receiver<Assignment>) {
        let (work, assignments) = mpsc::channel(MAX_WAITING_WORK);
        let blocks = Arc::new(Self {
            store: Arc::new(store),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            bytes: Arc::new(Semaphore::new(MAX_REQUEST_BYTES)),
            work_bytes: Arc::new(Semaphore::new(MAX_WORK_BYTES)),
            tasks: TaskTracker::new(),
            to_heal: Mutex::default(),
            given_up: Mutex::default(),
            look: Notify::new(),
            leaving: AtomicBool::new(false),
            work,
        });
        (blocks, assignments)
    }

    /// Lets this node do a part of a job, and answers later.
    pub(super) fn assign(
        &self,
        swarm: SwarmId,
        request: WorkRequest,
        respond: impl FnOnce(Response) + Send + 'static,
    ) {
        let respond = Box::new(respond);
        if let Err(full) = self.work.try_send(Assignment { swarm, request, respond }) {
            (full.into_inner().respond)(Response::Refused(Refusal::Overloaded));
        }
    }

    /// Lets this node do a part of a job for a peer that asked by so many bytes, and answers later.
    pub(super) fn assign_peers(
        &self,
        swarm: SwarmId,
        request: WorkRequest,
        request_bytes: usize,
        respond: impl FnOnce(Response) + Send + 'static,
    ) {
        let request_bytes = u32::try_from(request_bytes).unwrap_or(u32::MAX);
        let Ok(held) = Arc::clone(&self.work_bytes).try_acquire_many_owned(request_bytes) else {
            return respond(Response::Refused(Refusal::Overloaded));
        };
        self.assign(swarm, request, move |response| {
            drop(held);
            respond(response);
        });
    }

    /// Why nothing is done here for a swarm, if it is not the one that this node serves.
    pub(super) fn refusal_of(&self, swarm: SwarmId) -> Option<Refusal> {
        match self.store.swarm() {
            Some(ours) if ours == swarm => None,
            Some(_) => Some(Refusal::OtherSwarm),
            None => Some(Refusal::NotServing),
        }
    }

    pub(super) fn store(&self) -> &Arc<BlockStore> {
        &self.store
    }

    /// The node is leaving: it takes no more blocks.
    pub(super) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Relaxed);
    }

    /// Waits until somebody thinks that what is kept should be looked at.
    pub(super) async fn wanted(&self) {
        self.look.notified().await;
    }

    /// The damaged blocks that were found since this was asked last.
    pub(super) fn damaged(&self) -> BTreeMap<BlockId, Vec<u8>> {
        std::mem::take(&mut *lock(&self.to_heal))
    }

    /// The datasets that were given up since this was asked last.
    pub(super) fn given_up(&self) -> BTreeSet<DatasetId> {
        std::mem::take(&mut *lock(&self.given_up))
    }

    /// Answers a peer's request of so many bytes, later.
    pub(super) fn serve(
        self: &Arc<Self>,
        swarm: SwarmId,
        request: BlockRequest,
        request_bytes: usize,
        respond: impl FnOnce(Response) + Send + 'static,
    ) {
        let request_bytes = u32::try_from(request_bytes).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.requests).try_acquire_owned();
        let held = Arc::clone(&self.bytes).try_acquire_many_owned(request_bytes);
        let (Ok(permit), Ok(held)) = (permit, held) else {
            return respond(Response::Refused(Refusal::Overloaded));
        };
        let blocks = Arc::clone(self);
        self.tasks.spawn(async move {
            let response = blocks.answer(swarm, request, permit).await;
            drop(held);
            respond(response);
        });
    }

    /// Answers a request from within this process.
    pub(super) async fn ask(self: &Arc<Self>, swarm: SwarmId, request: BlockRequest) -> Response {
        match Arc::clone(&self.requests).acquire_owned().await {
            Ok(permit) => self.answer(swarm, request, permit).await,
            Err(_) => Response::Refused(Refusal::NotServing),
        }
    }

    async fn answer(
        self: &Arc<Self>,
        swarm: SwarmId,
        request: BlockRequest,
        permit: OwnedSemaphorePermit,
    ) -> Response {
        if let Some(refusal) = self.refusal_of(swarm) {
            return Response::Refused(refusal);
        }
        let blocks = Arc::clone(self);
        let work = move || {
            let response = blocks.work(request);
            // What was begun is counted until it is done, whether somebody still waits for it or not.
            drop(permit);
            response
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(response) => Response::Blocks(response),
            Err(_) => Response::Refused(Refusal::NotServing),
        }
    }

    fn work(&self, request: BlockRequest) -> BlockResponse {
        match request {
            BlockRequest::Put { .. } if self.leaving.load(Ordering::Relaxed) => {
                BlockResponse::Refused(BlockRefusal::Leaving)
            }
            BlockRequest::Put { block, name, checksum, bytes } => {
                if name.is_empty() || name.len() > crate::state_machine::MAX_KEY_BYTES {
                    return BlockResponse::Refused(BlockRefusal::Limit);
                }
                match self.store.put(block, &name, checksum, &bytes) {
                    Ok(()) => BlockResponse::Stored,
                    Err(error) => BlockResponse::Refused(self.refusal(&error)),
                }
            }
            BlockRequest::Get { block } => match self.get(block) {
                Ok((checksum, bytes)) => BlockResponse::Block { checksum, bytes },
                Err(error) => BlockResponse::Refused(self.refusal(&error)),
            },
            BlockRequest::Held { blocks } if blocks.len() > MAX_ASKED_BLOCKS => {
                BlockResponse::Refused(BlockRefusal::Limit)
            }
            BlockRequest::Held { blocks } => BlockResponse::Held(self.store.held(&blocks)),
            BlockRequest::GiveUp { dataset } => {
                let mut given_up = lock(&self.given_up);
                if given_up.len() < MAX_GIVEN_UP {
                    given_up.insert(dataset);
                }
                drop(given_up);
                self.look.notify_one();
                BlockResponse::Noted
            }
        }
    }

    /// Reads a block; a damaged one is noted, to be fetched from another replica. Blocks.
    pub(super) fn get(&self, block: BlockId) -> Result<(u32, Bytes), BlockError> {
        let result = self.store.get(block);
        if let Err(BlockError::Damaged { why, name }) = &result {
            tracing::warn!(dataset = %block.dataset, number = block.number, why, "a block is damaged");
            let mut to_heal = lock(&self.to_heal);
            if to_heal.len() < MAX_TO_HEAL {
                to_heal.insert(block, name.clone());
            }
            drop(to_heal);
            self.look.notify_one();
        }
        result
    }

    fn refusal(&self, error: &BlockError) -> BlockRefusal {
        match error {
            BlockError::NotHeld | BlockError::Damaged { .. } | BlockError::NoSwarm => BlockRefusal::NoBlock,
            BlockError::Full => BlockRefusal::Full { limit: self.store.budget() },
            BlockError::Mismatch => BlockRefusal::Mismatch,
            error => BlockRefusal::Disk(error.to_string()),
        }
    }
}

/// Nothing guarded here is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
