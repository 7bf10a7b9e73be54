//! etcd, three members: keys by its KV service, locks by the recipe of its `concurrency` package as its lock
//! service offers it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::{Channel, KvClient, LockClient, LockOptions};
use tonic::transport::Endpoint;

use crate::failover::{self, Connect, Outage};
use crate::load::{Client, FILLERS, Missing, Op, Sample, Step, Task, fill, measure};
use crate::servers::{Servers, free_ports};
use crate::setup::Setup;

const MEMBERS: usize = 3;
/// Most clients that share one HTTP/2 connection: of 1, 4, 16, 64 and 256 what gave most puts and gets per second
/// over all numbers of clients.
const CLIENTS_PER_CONNECTION: usize = 64;
/// A lock's lease outlives the measurement by this much, so that the measured work has no renewals in it.
const LEASE_SPARE: Duration = Duration::from_secs(120);

fn name(number: usize) -> String {
    format!("etcd-{number}")
}

/// A cluster that serves.
#[derive(Debug)]
pub(crate) struct Etcd {
    servers: Servers,
    /// Where they listen.
    urls: Vec<String>,
    /// Which of them leads: a request to another would only take one hop more.
    leader: usize,
}

impl Etcd {
    pub(crate) async fn start(setup: &Setup, strace: Option<&PathBuf>) -> Result<Self> {
        let mut servers = Servers::new(setup.scratch.join("etcd"), strace)?;
        let ports = free_ports(2 * MEMBERS)?;
        let (client_ports, peer_ports) = ports.split_at(MEMBERS);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster = (0..MEMBERS)
            .map(|number| format!("{}={}", name(number), url(peer_ports[number])))
            .collect::<Vec<_>>()
            .join(",");
        for number in 0..MEMBERS {
            let (clients, peers) = (url(client_ports[number]), url(peer_ports[number]));
            let mut command = Command::new(&setup.etcd);
            command.args(["--name", &name(number), "--data-dir"]).arg(servers.make_dir(&name(number))?);
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.args(["--initial-cluster", &cluster, "--initial-cluster-state", "new"]);
            command.args(["--logger", "zap", "--log-level", "error"]);
            servers.start(&name(number), &command)?;
        }
        let mut leader = None;
        servers
            .wait_until("etcd elects a leader that all know", async || {
                let mut leaders = Vec::new();
                for (number, port) in client_ports.iter().enumerate() {
                    let mut client = connect(&url(*port)).await?;
                    let status = client.status().await?;
                    if status.header().map(etcd_client::ResponseHeader::member_id) == Some(status.leader()) {
                        leader = Some(number);
                    }
                    leaders.push(status.leader());
                }
                Ok(leaders[0] != 0 && leaders.iter().all(|leader| *leader == leaders[0]))
            })
            .await?;
        let urls = client_ports.iter().map(|port| url(*port)).collect();
        Ok(Self { servers, urls, leader: leader.context("no member of etcd leads")? })
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Kills the leader.
    pub(crate) async fn fail(&mut self) -> Result<Outage> {
        let servers = &mut self.servers;
        failover::measure(AnyMember { urls: self.urls.clone() }, || servers.kill(&name(self.leader))).await
    }

    pub(crate) async fn fill(&mut self, keys: usize) -> Result<usize> {
        let clients = self.clients(FILLERS, None).await?;
        fill(clients, keys).await
    }

    pub(crate) async fn measure(&mut self, task: Task) -> Result<Sample> {
        let lease = match task.op {
            Op::Put | Op::Get => None,
            Op::LockDistinct | Op::LockContended => Some(task.duration + LEASE_SPARE),
        };
        let clients = self.clients(task.clients, lease).await?;
        measure(&mut self.servers, clients, task).await
    }

    async fn clients(&self, count: usize, lease: Option<Duration>) -> Result<Vec<EtcdClient>> {
        let mut connections = Vec::new();
        for _ in 0..count.div_ceil(CLIENTS_PER_CONNECTION) {
            connections.push(connect(&self.urls[self.leader]).await?);
        }
        let mut clients = Vec::with_capacity(count);
        for (_, connection) in (0..count).zip(connections.iter().cycle()) {
            let mut connection = connection.clone();
            let lease = match lease {
                None => 0,
                Some(lease) => connection.lease_grant(i64::try_from(lease.as_secs())?, None).await?.id(),
            };
            clients.push(EtcdClient { kv: connection.kv_client(), lock: connection.lock_client(), lease });
        }
        Ok(clients)
    }
}

/// A client of whichever member answers first, in turn.
#[derive(Debug, Clone)]
struct AnyMember {
    urls: Vec<String>,
}

impl Connect for AnyMember {
    type Client = EtcdClient;

    async fn connect(&self) -> Result<EtcdClient> {
        for url in &self.urls {
            if let Ok(connection) = connect(url).await {
                return Ok(EtcdClient {
                    kv: connection.kv_client(),
                    lock: connection.lock_client(),
                    lease: 0,
                });
            }
        }
        bail!("no member of etcd answers")
    }
}

async fn connect(url: &str) -> Result<etcd_client::Client> {
    let channel = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await?;
    Ok(etcd_client::Client::from_channel(Channel::Tonic(channel), None).await?)
}

/// One client, on a connection that some share.
struct EtcdClient {
    kv: KvClient,
    lock: LockClient,
    /// Of its locks, as a session of the `concurrency` package has one.
    lease: i64,
}

impl Client for EtcdClient {
    async fn step(&mut self, step: Step<'_>) -> Result<()> {
        match step {
            Step::Put { key, value } => {
                self.kv.put(key, value, None).await?;
            }
            Step::Get { key } => {
                ensure!(!self.kv.get(key, None).await?.kvs().is_empty(), Missing);
            }
            Step::Cycle { lock } => {
                let options = LockOptions::new().with_lease(self.lease);
                let held = self.lock.lock(lock, Some(options)).await?;
                self.lock.unlock(held.key()).await?;
            }
        }
        Ok(())
    }
}
