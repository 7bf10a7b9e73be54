//! From what its user says to a running node.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::blocks::Blocks;
use super::clock::Clock;
use super::core::{Core, CoreConfig};
use super::data::{Data, DataError, Found, FoundSwarm};
use super::memory::{DEFAULT_JOB_MEMORY, MIN_JOB_MEMORY};
use super::programs::{Programs, ProgramsError};
use super::rendezvous::{FoundingLock, Registration, Rendezvous};
use super::rpc::NodeRpc;
use super::runtime::{Runtime, Shared, inlet};
use super::{Node, Parts};
use crate::compute::Program;
use crate::net::{Identity, Net, NetConfig, NetError, PortPolicy, Secret, Ticket, TicketError};
use crate::ring::{DEFAULT_WEIGHT, MAX_WEIGHT, PartitionCount, PartitionCountError};
use crate::storage::{BlockStore, DEFAULT_BLOCK_BUDGET, Place, Progress};

/// Name of the swarm if none is given.
pub const DEFAULT_SWARM: &str = "default";
/// Number of partitions of a swarm if none is given: few enough that what comes in at the same time shares turns and
/// writes to the disk, and enough for even shares of ten members.
pub const DEFAULT_PARTITIONS: u32 = 32;
/// Replicas of each partition, as far as there are members.
pub const REPLICAS: usize = 3;
/// Longest name of a swarm, in bytes.
pub const MAX_SWARM_NAME_BYTES: usize = 64;
/// Events that wait for a slow listener, per listener; older ones are lost to it.
const EVENT_QUEUE: usize = 1024;
/// Where blocks of datasets are in the data directory.
const BLOCKS: &str = "blocks";
/// How long to wait for another process of this user that is founding the same swarm.
const FOUNDING_LOCK_TIMEOUT: Duration = Duration::from_secs(15);
/// How long nodes of this user on this machine, which are known to live, are given to answer.
const LOCAL_WINDOW: Duration = Duration::from_secs(3);

/// Who can reach a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reach {
    /// Processes of the same user on this machine: it listens on the loopback interface alone.
    #[default]
    ThisMachine,
    /// Whoever is on the network and knows the secret: it listens on all interfaces, and says so by mDNS.
    Lan,
    /// Whoever can connect to these multiaddresses and knows the secret.
    Exact(Vec<String>),
}

/// Collects what a node needs to know; everything has a default. See [`Node::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct NodeBuilder {
    swarm: String,
    reach: Reach,
    port: Option<u16>,
    open: bool,
    secret: Option<Secret>,
    join: Vec<String>,
    mdns: Option<bool>,
    partitions: u32,
    weight: u32,
    replace_after: Duration,
    discovery_window: Duration,
    runtime_directory: RuntimeDirectory,
    data_dir: Option<PathBuf>,
    loading: Option<Loading>,
    block_budget: u64,
    job_memory: u64,
    programs: Vec<Program>,
}

/// Hears how far the reading of the data directory is.
#[derive(Clone)]
struct Loading(Arc<dyn Fn(Progress) + Send + Sync>);

impl fmt::Debug for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loading")
    }
}

#[derive(Debug, Clone)]
enum RuntimeDirectory {
    None,
    Default,
    At(PathBuf),
}

impl Default for NodeBuilder {
    fn default() -> Self {
        Self {
            swarm: DEFAULT_SWARM.to_owned(),
            reach: Reach::default(),
            port: None,
            open: false,
            secret: None,
            join: Vec::new(),
            mdns: None,
            partitions: DEFAULT_PARTITIONS,
            weight: DEFAULT_WEIGHT,
            replace_after: Duration::from_secs(30),
            discovery_window: Duration::from_secs(2),
            runtime_directory: RuntimeDirectory::Default,
            data_dir: None,
            loading: None,
            block_budget: DEFAULT_BLOCK_BUDGET,
            job_memory: DEFAULT_JOB_MEMORY,
            programs: Vec::new(),
        }
    }
}

impl NodeBuilder {
    /// Name of the swarm: nodes of different names do not talk. Default [`DEFAULT_SWARM`]; 1 to
    /// [`MAX_SWARM_NAME_BYTES`] bytes.
    pub fn swarm(mut self, name: impl Into<String>) -> Self {
        self.swarm = name.into();
        self
    }

    /// Who can reach the node. Default [`Reach::ThisMachine`].
    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// The port to listen on; 0: any free one. Default: the first free one from 7400 on, so that several nodes
    /// start on one machine. No meaning with [`Reach::Exact`].
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// No secret: whoever reaches the node may join and read and write everything. Default `false`.
    pub fn open(mut self, open: bool) -> Self {
        self.open = open;
        self
    }

    /// The swarm's secret: who does not have it fails in the handshake. Default: that of a ticket or of the
    /// swarm's other nodes on this machine, else a new random one.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Joins by these addresses (`192.168.1.7:7400`, multiaddresses) or tickets (`rt1...`), and never founds.
    pub fn join(mut self, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.join = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Whether to look for peers by multicast DNS. Default: only with [`Reach::Lan`].
    pub fn mdns(mut self, mdns: bool) -> Self {
        self.mdns = Some(mdns);
        self
    }

    /// Into how many partitions the ring is cut if this node founds; fixed from then on. More: finer balance,
    /// smaller batches. 1 to 4096, default [`DEFAULT_PARTITIONS`]; for swarms of more than ten members, five for each.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// This node's share of the ring relative to the others'. Default 1.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// How long a dead member keeps its place on the ring: long enough for a restart or a short cut to move
    /// nothing, short enough that a second crash does not meet it. Default 30 s.
    pub fn replace_after(mut self, grace: Duration) -> Self {
        self.replace_after = grace;
        self
    }

    /// How long to look for a swarm before founding one. Default 2 s. On this machine alone nobody waits: the
    /// runtime directory tells at once.
    pub fn discovery_window(mut self, window: Duration) -> Self {
        self.discovery_window = window;
        self
    }

    /// Where nodes and commands of one user on one machine find each other. Default: the user's own runtime
    /// directory.
    pub fn runtime_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.runtime_directory = RuntimeDirectory::At(directory.into());
        self
    }

    /// No runtime directory: the node is found by the network alone.
    pub fn without_runtime_directory(mut self) -> Self {
        self.runtime_directory = RuntimeDirectory::None;
        self
    }

    /// Keeps everything in this directory, so that the node comes back from a restart or a crash as the one it was;
    /// made if it is missing. A node whose directory says that it is in a swarm goes on there, whatever
    /// [`join`](Self::join) says, and never founds another. One directory, one process. Default: nothing is kept.
    pub fn data_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(directory.into());
        self
    }

    /// Tells how far the reading of the data directory is, now and then, from another thread.
    pub fn on_loading(mut self, hear: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.loading = Some(Loading(Arc::new(hear)));
        self
    }

    /// How many bytes of blocks of datasets the node keeps at most: below its data directory, or, without one, in the
    /// system's directory for temporary files. Default [`DEFAULT_BLOCK_BUDGET`].
    pub fn block_budget(mut self, bytes: u64) -> Self {
        self.block_budget = bytes;
        self
    }

    /// How many bytes of memory jobs and sorts take at most on this node, all tasks together; a task that would need
    /// more waits until others have ended. Meant is what the node needs for them, and shipped code; what functions of
    /// Rust allocate themselves is not in it. Less than [`MIN_JOB_MEMORY`] is taken as that. Default
    /// [`DEFAULT_JOB_MEMORY`].
    pub fn job_memory(mut self, bytes: u64) -> Self {
        self.job_memory = bytes.max(MIN_JOB_MEMORY);
        self
    }

    /// Registers a program that jobs can name, beside the [ready-made](crate::compute::ready) ones; repeatable. A job
    /// runs on the members that have its program.
    pub fn program(mut self, program: Program) -> Self {
        self.programs.push(program);
        self
    }

    /// Starts the node. It listens when this returns; whether it has a swarm yet tells [`Node::ready`].
    ///
    /// # Errors
    /// If what was said contradicts itself or the node cannot listen. Nothing has happened then.
    pub async fn start(self) -> Result<Node, StartError> {
        self.check()?;
        let programs = Arc::new(Programs::new(&self.programs)?);
        let (tickets, addresses) = split(&self.join)?;
        if let Some(other) = tickets.iter().find(|ticket| ticket.name != self.swarm) {
            // A ticket says all: no need to repeat the swarm's name, but none to contradict it either.
            if self.swarm != DEFAULT_SWARM {
                return Err(StartError::OtherSwarm { ticket: other.name.clone(), swarm: self.swarm });
            }
        }
        let found = self.open_data().await?;
        let (data, identity, kept) = match found {
            Some(Found { data, identity, swarm }) => (Some(data), identity, swarm),
            None => (None, Identity::generate(), None),
        };
        let asked = tickets.first().map_or_else(|| self.swarm.clone(), |ticket| ticket.name.clone());
        let swarm = match &kept {
            Some(kept) if kept.name != asked && asked != DEFAULT_SWARM => {
                return Err(StartError::OtherSwarmKept { kept: kept.name.clone(), swarm: asked });
            }
            Some(kept) => kept.name.clone(),
            None => asked,
        };

        let rendezvous = self.rendezvous();
        let lock = match &rendezvous {
            // Also who knows its swarm: of those that start at the same time, the next sees who came before.
            Some(rendezvous) if self.join.is_empty() => lock(rendezvous, &swarm).await,
            _ => None,
        };
        let neighbours = rendezvous.as_ref().map(|rendezvous| rendezvous.nodes(&swarm)).unwrap_or_default();
        let secret = self.choose_secret(kept.as_ref(), &tickets, &neighbours);

        let me = identity.node_id();
        let (blocks, assignments) = Blocks::new(self.block_store());
        let (inlet, inbox) = inlet(Arc::clone(&blocks));
        let mut config = NetConfig::new(identity, swarm.as_str());
        config.secret.clone_from(&secret);
        config.listen = self.listen();
        config.port = self.port.map_or_else(PortPolicy::default, PortPolicy::Exact);
        config.mdns = self.mdns.unwrap_or(self.reach == Reach::Lan);
        let (net, net_events) = Net::start(config, Arc::new(inlet.clone())).await?;
        let known = tickets.iter().flat_map(|ticket| ticket.addresses.iter());
        for address in known.chain(&addresses) {
            net.dial(address).map_err(|error| StartError::Address(error.to_string()))?;
        }
        for address in neighbours.iter().flat_map(|neighbour| neighbour.addresses.iter()) {
            // Written by another process; what is no address is no neighbour.
            drop(net.dial(address));
        }

        let discovery_window = match (&self.reach, neighbours.is_empty(), lock.is_some()) {
            // Nobody of this user's is here, nobody else could be reached: no need to wait.
            (Reach::ThisMachine, true, true) if self.mdns != Some(true) => Duration::ZERO,
            (Reach::ThisMachine, false, _) => self.discovery_window.max(LOCAL_WINDOW),
            _ => self.discovery_window,
        };
        let listening = net.listen_addresses();
        let ticket = make_ticket(&swarm, secret.as_ref(), &listening);
        let core_config = CoreConfig {
            name: swarm.clone(),
            partitions: PartitionCount::new(self.partitions)?,
            replicas: REPLICAS,
            weight: self.weight,
            joining: !self.join.is_empty(),
            discovery_window,
            replace_after: self.replace_after,
            addresses: listening,
            ticket,
            durable: data.is_some(),
            incarnation: 1,
        };
        let resume = kept.map(|kept| kept.resume);
        let core = Core::new(me, core_config, resume, rand::rng().random(), Clock.now());
        let rpc = NodeRpc { me, inputs: inlet.inputs(), net, blocks };
        let shared = Arc::new(Shared {
            events: broadcast::channel(EVENT_QUEUE).0,
            swarm: watch::channel(None).0,
            left: CancellationToken::new(),
            stop: CancellationToken::new(),
        });
        let runtime = Runtime::new(
            core,
            swarm.clone(),
            secret.clone(),
            inbox,
            rpc.clone(),
            net_events,
            Arc::clone(&shared),
        )
        .with_data(data);
        let node = Node::assemble(Parts {
            rpc,
            shared,
            swarm,
            secret,
            runtime,
            assignments,
            programs,
            job_memory: self.job_memory,
        });
        node.keep_registered(rendezvous, lock);
        Ok(node)
    }

    fn block_store(&self) -> BlockStore {
        let place = match &self.data_dir {
            Some(directory) => Place::Kept(directory.join(BLOCKS)),
            None => Place::Temporary(std::env::temp_dir()),
        };
        BlockStore::new(place, self.block_budget)
    }

    /// Reads what the data directory holds, if there is one.
    async fn open_data(&self) -> Result<Option<Found>, StartError> {
        let Some(path) = self.data_dir.clone() else { return Ok(None) };
        let loading = self.loading.clone();
        let open = move || {
            Data::open(&path, |progress| {
                if let Some(Loading(hear)) = &loading {
                    hear(progress);
                }
            })
        };
        match tokio::task::spawn_blocking(open).await {
            Ok(found) => Ok(Some(found?)),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn check(&self) -> Result<(), StartError> {
        if self.swarm.is_empty() || self.swarm.len() > MAX_SWARM_NAME_BYTES {
            return Err(StartError::SwarmName(self.swarm.len()));
        }
        if self.open && self.secret.is_some() {
            return Err(StartError::OpenWithSecret);
        }
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            return Err(StartError::Weight(self.weight));
        }
        PartitionCount::new(self.partitions)?;
        Ok(())
    }

    fn rendezvous(&self) -> Option<Rendezvous> {
        let directory = match &self.runtime_directory {
            RuntimeDirectory::None => return None,
            RuntimeDirectory::Default => None,
            RuntimeDirectory::At(directory) => Some(directory.clone()),
        };
        Rendezvous::open(directory)
            .inspect_err(|error| tracing::warn!(%error, "no runtime directory: local commands will not find this node"))
            .ok()
    }

    fn choose_secret(
        &self,
        kept: Option<&FoundSwarm>,
        tickets: &[Ticket],
        neighbours: &[Registration],
    ) -> Option<Secret> {
        if self.open {
            return None;
        }
        if let Some(secret) = &self.secret {
            return Some(secret.clone());
        }
        if let Some(ticket) = tickets.first() {
            return ticket.secret.clone();
        }
        if let Some(kept) = kept {
            return kept.secret.clone();
        }
        if let Some(neighbour) = neighbours.first() {
            return neighbour.secret.as_deref().and_then(|secret| secret.parse().ok());
        }
        // To join by address alone, without a secret, only an open swarm lets one in.
        self.join.is_empty().then(Secret::random)
    }

    fn listen(&self) -> Vec<String> {
        match &self.reach {
            Reach::Exact(addresses) => addresses.clone(),
            Reach::ThisMachine => vec!["127.0.0.1".to_owned()],
            Reach::Lan => vec!["0.0.0.0".to_owned()],
        }
    }
}

/// Waits for its turn to look for the swarm or found it, among the processes of this user.
async fn lock(rendezvous: &Rendezvous, swarm: &str) -> Option<FoundingLock> {
    match rendezvous.lock(swarm, FOUNDING_LOCK_TIMEOUT).await {
        Ok(lock) => lock,
        Err(error) => {
            tracing::warn!(%error, "cannot lock in the runtime directory");
            None
        }
    }
}

/// Tells tickets from addresses.
pub(super) fn split(join: &[String]) -> Result<(Vec<Ticket>, Vec<String>), StartError> {
    let (mut tickets, mut addresses) = (Vec::new(), Vec::new());
    for text in join {
        if Ticket::looks_like(text) {
            tickets.push(text.parse()?);
        } else {
            addresses.push(text.clone());
        }
    }
    Ok((tickets, addresses))
}

/// The string that lets others join: reachable addresses if there are any, else those of this machine.
pub(super) fn make_ticket(swarm: &str, secret: Option<&Secret>, listening: &[String]) -> String {
    let is_loopback =
        |address: &&String| address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1/");
    let far: Vec<String> = listening.iter().filter(|address| !is_loopback(address)).cloned().collect();
    let addresses = if far.is_empty() { listening.to_vec() } else { far };
    Ticket { name: swarm.to_owned(), secret: secret.cloned(), addresses }.to_string()
}

/// Why a node did not start. Nothing has happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The swarm's name is empty or too long.
    #[error("the swarm's name is {0} bytes long, 1 to {MAX_SWARM_NAME_BYTES} are allowed")]
    SwarmName(usize),
    /// Both a secret and none.
    #[error("an open swarm has no secret")]
    OpenWithSecret,
    /// A weight out of range.
    #[error("a weight of {0} is out of range: 1 to {MAX_WEIGHT} are allowed")]
    Weight(u32),
    /// A number of partitions out of range.
    #[error(transparent)]
    Partitions(#[from] PartitionCountError),
    /// Programs that cannot be registered.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// A ticket that is none.
    #[error("bad ticket: {0}")]
    Ticket(#[from] TicketError),
    /// The ticket is for a swarm of another name.
    #[error("the ticket is for the swarm `{ticket}`, not `{swarm}`")]
    OtherSwarm {
        /// The name in the ticket.
        ticket: String,
        /// The name asked for.
        swarm: String,
    },
    /// The data directory is of a swarm of another name.
    #[error("the data directory is of the swarm `{kept}`, not `{swarm}`")]
    OtherSwarmKept {
        /// The name in the directory.
        kept: String,
        /// The name asked for.
        swarm: String,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An address that is none.
    #[error("bad address: {0}")]
    Address(String),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
}
