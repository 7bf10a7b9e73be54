//! NATS JetStream, three servers: a key-value bucket with three replicas.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::ConnectOptions;
use async_nats::jetstream::kv::Store;
use async_nats::jetstream::stream::{Config, DiscardPolicy, LastRawMessageErrorKind};
use bytes::Bytes;
use tokio::time::timeout;

use crate::failover::{self, Connect, Outage};
use crate::load::{Client, FILLERS, Missing, Sample, Step, Task, fill, measure};
use crate::servers::{Servers, free_ports};
use crate::setup::Setup;

const SERVERS: usize = 3;
const BUCKET: &str = "bench";
/// Most clients that share one connection.
const CLIENTS_PER_CONNECTION: usize = 64;
/// Servers that have not yet elected anybody may leave a request without an answer: it is sent again then.
const STARTED_WITHIN: Duration = Duration::from_secs(2);

fn name(number: usize) -> String {
    format!("nats-{number}")
}

/// A cluster that serves, with an empty bucket.
#[derive(Debug)]
pub(crate) struct Nats {
    servers: Servers,
    /// Where they listen.
    urls: Vec<String>,
    /// Which of them leads the bucket's stream: a request to another would only take one hop more.
    leader: usize,
}

impl Nats {
    pub(crate) async fn start(setup: &Setup, strace: Option<&PathBuf>) -> Result<Self> {
        let mut servers = Servers::new(setup.scratch.join("nats"), strace)?;
        let ports = free_ports(2 * SERVERS)?;
        let (client_ports, route_ports) = ports.split_at(SERVERS);
        let url = |port: &u16| format!("nats://127.0.0.1:{port}");
        let routes = route_ports.iter().map(url).collect::<Vec<_>>().join(",");
        for number in 0..SERVERS {
            let mut command = Command::new(&setup.nats_server);
            command.args(["--name", &name(number), "--addr", "127.0.0.1"]);
            command.args(["--port", &client_ports[number].to_string()]);
            command.args(["--cluster_name", "peers", "--cluster", &url(&route_ports[number])]);
            command.args(["--routes", &routes]);
            command.arg("--jetstream").arg("--store_dir").arg(servers.make_dir(&name(number))?);
            servers.start(&name(number), &command)?;
        }
        let urls: Vec<String> = client_ports.iter().map(url).collect();
        let mut leader = None;
        servers
            .wait_until("NATS has a bucket whose replicas are all there", async || {
                leader = timeout(STARTED_WITHIN, leader_of_bucket(&urls[0])).await??;
                Ok(leader.is_some())
            })
            .await?;
        let leader = leader.context("nobody leads the bucket")?;
        let leader =
            (0..SERVERS).find(|number| name(*number) == leader).context("an unknown server leads")?;
        Ok(Self { servers, urls, leader })
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Kills the leader of the bucket's stream.
    pub(crate) async fn fail(&mut self) -> Result<Outage> {
        let servers = &mut self.servers;
        failover::measure(AnyServer { urls: self.urls.clone() }, || servers.kill(&name(self.leader))).await
    }

    pub(crate) async fn fill(&mut self, keys: usize) -> Result<usize> {
        fill(self.clients(FILLERS).await?, keys).await
    }

    pub(crate) async fn measure(&mut self, task: Task) -> Result<Sample> {
        let clients = self.clients(task.clients).await?;
        measure(&mut self.servers, clients, task).await
    }

    async fn clients(&self, count: usize) -> Result<Vec<NatsClient>> {
        let mut connections = Vec::new();
        for _ in 0..count.div_ceil(CLIENTS_PER_CONNECTION) {
            connections.push(NatsClient::open(&self.urls[self.leader]).await?);
        }
        Ok(connections.iter().cycle().take(count).cloned().collect())
    }
}

/// Makes the bucket if it is not there. Nobody, until all its replicas are there.
async fn leader_of_bucket(url: &str) -> Result<Option<String>> {
    // What `create_key_value` makes; it insists on answers that came with NATS 2.10.
    let config = Config {
        name: format!("KV_{BUCKET}"),
        subjects: vec![format!("$KV.{BUCKET}.>")],
        num_replicas: SERVERS,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..Config::default()
    };
    let stream = connect(url).await?.create_stream(config).await?;
    let cluster = stream.get_info().await?.cluster.context("no cluster")?;
    let others = cluster.replicas.iter().filter(|replica| replica.current).count();
    Ok(cluster.leader.filter(|_| others == SERVERS - 1))
}

async fn connect(url: &str) -> Result<async_nats::jetstream::Context> {
    // A lost server is left to whoever asked for it.
    let options = ConnectOptions::new().ignore_discovered_servers();
    Ok(async_nats::jetstream::new(options.connect(url).await?))
}

/// A client of whichever server answers first, in turn.
#[derive(Debug, Clone)]
struct AnyServer {
    urls: Vec<String>,
}

impl Connect for AnyServer {
    type Client = NatsClient;

    async fn connect(&self) -> Result<NatsClient> {
        for url in &self.urls {
            if let Ok(client) = NatsClient::open(url).await {
                return Ok(client);
            }
        }
        bail!("no server of NATS answers")
    }
}

/// One client, on a connection that some share.
#[derive(Debug, Clone)]
struct NatsClient {
    bucket: Store,
}

impl NatsClient {
    async fn open(url: &str) -> Result<Self> {
        Ok(Self { bucket: connect(url).await?.get_key_value(BUCKET).await? })
    }
}

impl Client for NatsClient {
    async fn step(&mut self, step: Step<'_>) -> Result<()> {
        match step {
            Step::Put { key, value } => {
                self.bucket.put(key, Bytes::copy_from_slice(value)).await?;
            }
            Step::Get { key } => {
                // The bucket's own `get` is answered by any replica, which may not yet have what was acknowledged.
                let subject = format!("{}{key}", self.bucket.prefix);
                let message = self.bucket.stream.get_last_raw_message_by_subject(&subject).await;
                if let Err(error) = message {
                    ensure!(error.kind() != LastRawMessageErrorKind::NoMessageFound, Missing);
                    return Err(error.into());
                }
            }
            Step::Cycle { .. } => bail!("NATS has no locks"),
        }
        Ok(())
    }
}
