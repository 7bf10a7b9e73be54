//! A running node: everything below, assembled.
//!
//! `Core` is the whole node without I/O; `runtime` drives it with links, a clock and randomness;
//! `builder` makes both from what the user says, with the help of the machine's runtime directory
//! (`rendezvous`). Inside the core: `founding` finds or makes the swarm, `swarm` is the part in it, and
//! `reconcile` moves replicas to where the ring wants them; `merge` dissolves an empty swarm into another.

mod blocks;
mod builder;
mod clock;
mod complaints;
mod compute;
mod core;
mod data;
mod event;
mod export;
mod founding;
mod memory;
mod merge;
mod merge_range;
mod programs;
mod reconcile;
mod rendezvous;
mod repair;
mod rpc;
mod runtime;
mod scrub;
#[cfg_attr(not(feature = "wasm"), path = "unshipped.rs")]
mod shipped;
mod shuffle;
// On top of everything else, but it looks into nodes as nobody else does.
#[cfg(any(test, feature = "sim"))]
#[path = "../sim/mod.rs"]
pub mod sim;
mod swarm;
#[cfg(test)]
mod tests;
mod visitor;
mod work;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

pub use builder::{
    DEFAULT_PARTITIONS, DEFAULT_SWARM, MAX_SWARM_NAME_BYTES, NodeBuilder, REPLICAS, Reach, StartError,
};
pub use data::DataError;
pub use event::{MemberChange, NodeEvent};
pub use memory::{DEFAULT_JOB_MEMORY, MIN_JOB_MEMORY};
pub use programs::ProgramsError;
pub use rpc::NodeRpc;
pub use visitor::{ConnectError, Visitor, VisitorBuilder};

use crate::client::Client;
use crate::id::{NodeId, SwarmId};
use crate::net::Secret;
use crate::wire::Rpc;
use clock::Clock;
use programs::Programs;
use rendezvous::{FoundingLock, Registration, Rendezvous};
use repair::Repair;
use runtime::{Input, Runtime, Shared};
use scrub::Scrub;
use work::{Assignment, Worker};

/// Longest that a node which looks for its swarm keeps other processes of this user from doing so.
const LOOKING_LIMIT: Duration = Duration::from_secs(10);
/// Longest that a node which stops waits until others lead what it has led.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);

/// A member of a swarm, running in this process.
///
/// Made by [`Node::builder`]; ends with [`Node::leave`] (hands everything over first), [`Node::stop`], or, as a
/// crash would, when dropped. State is in memory: what a node holds goes with it, and lives on in the other
/// replicas.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let machine = tempfile::tempdir()?;
/// use roundtable::node::Node;
///
/// let node = Node::builder()
/// #   .port(0).runtime_directory(machine.path().join("run"))
///     .start()
///     .await?;
/// node.ready().await;
/// node.client().put("greeting", "hello").await?;
/// node.leave().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Node {
    rpc: NodeRpc,
    shared: Arc<Shared>,
    swarm: String,
    secret: Option<Secret>,
    tasks: Mutex<JoinSet<()>>,
    /// Listens from before the start, until somebody takes it.
    first_events: Mutex<Option<broadcast::Receiver<NodeEvent>>>,
}

/// A client on this machine's clock, with a session that nobody else draws.
fn new_client<R: Rpc>(rpc: R) -> Client<R> {
    Client::new(rpc, Arc::new(|| Clock.now()), rand::make_rng())
}

/// What a node is made of.
struct Parts {
    rpc: NodeRpc,
    shared: Arc<Shared>,
    swarm: String,
    secret: Option<Secret>,
    runtime: Runtime,
    assignments: mpsc::Receiver<Assignment>,
    programs: Arc<Programs>,
    job_memory: u64,
}

impl Node {
    /// Begins to describe a node; everything has a default.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    fn assemble(parts: Parts) -> Self {
        let first_events = parts.shared.events.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(parts.runtime.run());
        let repair = Repair {
            me: parts.rpc.me,
            client: new_client(parts.rpc.clone()),
            blocks: Arc::clone(&parts.rpc.blocks),
            rpc: parts.rpc.clone(),
            stop: parts.shared.stop.clone(),
        };
        tasks.spawn(repair.run());
        let scrub = Scrub { blocks: Arc::clone(&parts.rpc.blocks), stop: parts.shared.stop.clone() };
        tasks.spawn(scrub.run());
        let worker = Worker {
            me: parts.rpc.me,
            client: new_client(parts.rpc.clone()),
            blocks: Arc::clone(&parts.rpc.blocks),
            rpc: parts.rpc.clone(),
            programs: parts.programs,
            memory: parts.job_memory,
            assignments: parts.assignments,
            stop: parts.shared.stop.clone(),
        };
        tasks.spawn(worker.run());
        Self {
            rpc: parts.rpc,
            shared: parts.shared,
            swarm: parts.swarm,
            secret: parts.secret,
            tasks: Mutex::new(tasks),
            first_events: Mutex::new(Some(first_events)),
        }
    }

    /// Lets the other processes of this user find the node as long as it runs, and go on with their own search
    /// as soon as it has a swarm.
    fn keep_registered(&self, rendezvous: Option<Rendezvous>, lock: Option<FoundingLock>) {
        let Some(rendezvous) = rendezvous else { return };
        let registration = Registration {
            swarm: self.swarm.clone(),
            node: self.id().to_string(),
            addresses: self.addresses(),
            secret: self.secret.as_ref().map(Secret::to_text),
        };
        let registered = rendezvous
            .register(&registration)
            .inspect_err(|error| tracing::warn!(%error, "local commands will not find this node"));
        let mut swarm = self.shared.swarm.subscribe();
        let stop = self.shared.stop.clone();
        self.tasks().spawn(async move {
            let found = tokio::time::timeout(LOOKING_LIMIT, swarm.wait_for(Option::is_some));
            drop(stop.run_until_cancelled(found).await);
            drop(lock);
            stop.cancelled().await;
            drop(registered);
        });
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.rpc.me
    }

    /// Name of its swarm.
    pub fn swarm_name(&self) -> &str {
        &self.swarm
    }

    /// Its swarm, once it has one.
    pub fn swarm(&self) -> Option<SwarmId> {
        *self.shared.swarm.borrow()
    }

    /// Where it listens, as multiaddresses.
    pub fn addresses(&self) -> Vec<String> {
        self.rpc.net.listen_addresses()
    }

    /// The string that lets other machines join (`roundtable up --join ...`). It contains the swarm's secret.
    pub fn ticket(&self) -> String {
        builder::make_ticket(&self.swarm, self.secret.as_ref(), &self.addresses())
    }

    /// A client of the swarm that this node is a member of. Cheap; every clone of it is the same session.
    pub fn client(&self) -> Client<NodeRpc> {
        new_client(self.rpc.clone())
    }

    /// What happens to the node and its swarm: the first listener hears all since the start, further ones what
    /// happens from now on. A listener that is too slow misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<NodeEvent> {
        let first = self.first_events.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| self.shared.events.subscribe())
    }

    /// Waits until the node has a swarm: at once, within the discovery window, or, for a node that was told to
    /// join, as long as it takes.
    pub async fn ready(&self) -> SwarmId {
        let mut swarm = self.shared.swarm.subscribe();
        loop {
            if let Some(id) = *swarm.borrow_and_update() {
                return id;
            }
            if swarm.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the node has left its swarm, because it was told to: by [`Node::leave`], or by a client.
    pub async fn left(&self) {
        self.shared.left.cancelled().await;
    }

    /// Hands over everything that the node holds, leaves the swarm and stops. Takes as long as it takes; events
    /// tell the progress. With nobody to hand over to, what it held is gone.
    pub async fn leave(&self) {
        if self.rpc.inputs.send(Input::Leave).await.is_ok() {
            self.left().await;
        }
        self.end().await;
    }

    /// Hands over leaderships and stops, without handing over what the node holds: the others go on from their
    /// replicas. With fewer than three members data may be lost.
    pub async fn stop(&self) {
        let (done, handed_over) = oneshot::channel();
        if self.rpc.inputs.send(Input::HandOver(done)).await.is_ok() {
            // What was not handed over by then is taken over, as after a crash.
            drop(tokio::time::timeout(HAND_OVER_LIMIT, handed_over).await);
        }
        self.end().await;
    }

    async fn end(&self) {
        // First the links, so that what is queued on them still goes out.
        self.rpc.net.shutdown().await;
        self.shared.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks());
        tasks.join_all().await;
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    /// As a crash: also clients that live on lose their links.
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.rpc.net.abort();
    }
}
