//! Redis Cluster: three masters, a replica of each, and `WAIT 1` after every write.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::failover::{self, Connect, Outage};
use crate::load::{Client, FILLERS, Missing, Sample, Step, Task, fill, measure};
use crate::resp::{Connection, Reply, command};
use crate::servers::{Servers, free_ports};
use crate::setup::Setup;

const MASTERS: usize = 3;
/// Slots that a cluster's keys are spread over.
const SLOTS: u16 = 16_384;
/// How long `WAIT` waits for the replica before it gives up and the write counts as failed.
const WAIT_MILLIS: &str = "5000";
/// After how long a silent master is replaced, as in Redis' own tutorial; a server's default is three times as long.
const NODE_TIMEOUT_MILLIS: &str = "5000";
/// Commands that may wait for a shared connection.
const SHARED_QUEUE: usize = 1024;
/// Most commands that a shared connection sends at a time.
const SHARED_BATCH: usize = 256;

/// Where writes are before they are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// In the memory of two.
    Memory,
    /// In the append-only files of two, flushed.
    Flushed,
}

/// How clients use connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    /// Each client has its own to each master, and sends `SET` and `WAIT` in one go.
    Own,
    /// All clients share one to each master; what queues up meanwhile is sent together, with one `WAIT` for all
    /// the writes in it.
    Shared,
}

/// A cluster that serves.
#[derive(Debug)]
pub(crate) struct RedisCluster {
    servers: Servers,
    connections: Connections,
    /// Where all of them listen.
    ports: Vec<u16>,
    slots: Arc<Slots>,
}

impl RedisCluster {
    pub(crate) async fn start(
        setup: &Setup,
        durability: Durability,
        connections: Connections,
        strace: Option<&PathBuf>,
    ) -> Result<Self> {
        let mut servers = Servers::new(setup.scratch.join("redis-cluster"), strace)?;
        let ports = free_ports(4 * MASTERS)?;
        let (ports, bus_ports) = ports.split_at(2 * MASTERS);
        for (number, (port, bus_port)) in ports.iter().zip(bus_ports).enumerate() {
            let name = name(number);
            let mut command = server(setup, &servers, &name, *port)?;
            command.args(["--cluster-enabled", "yes", "--cluster-port", &bus_port.to_string()]);
            command.args(["--cluster-node-timeout", NODE_TIMEOUT_MILLIS]);
            if durability == Durability::Flushed {
                command.args(["--appendonly", "yes", "--appendfsync", "always"]);
            }
            servers.start(&name, &command)?;
        }
        servers.wait_until("every redis answers", async || all_answer(ports).await).await?;

        let mut create = Command::new(&setup.redis_cli);
        create.args(["--cluster", "create"]);
        create.args(ports.iter().map(|port| format!("127.0.0.1:{port}")));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let outcome = create.output().context("cannot start redis-cli")?;
        ensure!(
            outcome.status.success(),
            "redis-cli --cluster create: {}",
            String::from_utf8_lossy(&outcome.stdout)
        );

        servers
            .wait_until("the redis cluster serves with its replicas", async || serves(ports).await)
            .await?;
        let slots = Slots::ask(ports[0]).await?;
        Ok(Self { servers, connections, ports: ports.to_vec(), slots: Arc::new(slots) })
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Kills a master.
    pub(crate) async fn fail(&mut self) -> Result<Outage> {
        let victim =
            self.slots.masters.first().and_then(|port| self.ports.iter().position(|other| other == port));
        let victim = name(victim.context("no master")?);
        let servers = &mut self.servers;
        failover::measure(AnyServer { ports: self.ports.clone() }, || servers.kill(&victim)).await
    }

    pub(crate) async fn fill(&mut self, keys: usize) -> Result<usize> {
        let clients = self.own_clients(FILLERS).await?;
        fill(clients, keys).await
    }

    async fn own_clients(&self, count: usize) -> Result<Vec<OwnClient>> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(OwnClient::open(Arc::clone(&self.slots)).await?);
        }
        Ok(clients)
    }

    pub(crate) async fn measure(&mut self, task: Task) -> Result<Sample> {
        match self.connections {
            Connections::Own => {
                let clients = self.own_clients(task.clients).await?;
                measure(&mut self.servers, clients, task).await
            }
            Connections::Shared => {
                let mut masters = Vec::with_capacity(MASTERS);
                for port in &self.slots.masters {
                    masters.push(share(Connection::open(*port).await?));
                }
                let client = SharedClient { slots: Arc::clone(&self.slots), masters };
                let clients = (0..task.clients).map(|_| client.clone()).collect();
                measure(&mut self.servers, clients, task).await
            }
        }
    }
}

fn name(number: usize) -> String {
    format!("redis-{number}")
}

/// The command of a server that keeps nothing on disk unless told otherwise.
pub(crate) fn server(setup: &Setup, servers: &Servers, name: &str, port: u16) -> Result<Command> {
    let mut command = Command::new(&setup.redis_server);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
    command.arg(servers.make_dir(name)?);
    Ok(command)
}

/// Whether a server on each of `ports` answers.
pub(crate) async fn all_answer(ports: &[u16]) -> Result<bool> {
    for port in ports {
        Connection::open(*port).await?.call(&["PING"]).await?.text()?;
    }
    Ok(true)
}

/// Whether every node sees the cluster whole, and every master has a replica that is up to date.
async fn serves(ports: &[u16]) -> Result<bool> {
    let mut replicas = 0;
    for port in ports {
        let mut connection = Connection::open(*port).await?;
        let cluster = connection.call(&["CLUSTER", "INFO"]).await?.text()?;
        let replication = connection.call(&["INFO", "replication"]).await?.text()?;
        if !cluster.contains("cluster_state:ok") || !cluster.contains("cluster_known_nodes:6") {
            return Ok(false);
        }
        replicas += replication.matches("state=online").count();
    }
    Ok(replicas == MASTERS)
}

/// Which master has which keys.
#[derive(Debug)]
struct Slots {
    /// The ports of the masters.
    masters: Vec<u16>,
    /// For each slot, which of them.
    owner: Vec<usize>,
}

impl Slots {
    /// As the server at `port` sees it.
    async fn ask(port: u16) -> Result<Self> {
        Self::parse(Connection::open(port).await?.call(&["CLUSTER", "SLOTS"]).await?)
    }

    /// Reads a reply to `CLUSTER SLOTS`: of each range the first slot, the last slot, the master, its replicas.
    fn parse(reply: Reply) -> Result<Self> {
        let mut masters = Vec::new();
        let mut owner = vec![usize::MAX; usize::from(SLOTS)];
        for range in reply.array()? {
            let mut range = range.array()?.into_iter();
            let mut number = || range.next().context("short reply to CLUSTER SLOTS")?.integer();
            let (first, last) = (usize::try_from(number()?)?, usize::try_from(number()?)?);
            let master = range.next().context("a range without a master")?.array()?;
            let port =
                u16::try_from(master.into_iter().nth(1).context("a master without a port")?.integer()?)?;
            let index = masters.iter().position(|known| *known == port).unwrap_or_else(|| {
                masters.push(port);
                masters.len() - 1
            });
            owner.get_mut(first..=last).context("no such slot")?.fill(index);
        }
        ensure!(!owner.contains(&usize::MAX), "slots without a master");
        Ok(Self { masters, owner })
    }

    /// Which master has `key`. The load's keys have no hash tags.
    fn master_of(&self, key: &str) -> usize {
        self.owner[usize::from(crc16(key.as_bytes()) % SLOTS)]
    }
}

/// CRC-16/XMODEM, by which Redis Cluster spreads keys.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 }
        })
    })
}

/// One client with connections of its own.
struct OwnClient {
    slots: Arc<Slots>,
    connections: Vec<Connection>,
    out: Vec<u8>,
}

impl OwnClient {
    async fn open(slots: Arc<Slots>) -> Result<Self> {
        let mut connections = Vec::with_capacity(MASTERS);
        for port in &slots.masters {
            connections.push(Connection::open(*port).await?);
        }
        Ok(Self { slots, connections, out: Vec::new() })
    }
}

/// A client of the masters that any server which answers knows of.
#[derive(Debug, Clone)]
struct AnyServer {
    ports: Vec<u16>,
}

impl Connect for AnyServer {
    type Client = OwnClient;

    async fn connect(&self) -> Result<OwnClient> {
        for port in &self.ports {
            if let Ok(slots) = Slots::ask(*port).await
                && let Ok(client) = OwnClient::open(Arc::new(slots)).await
            {
                return Ok(client);
            }
        }
        bail!("no redis knows masters that answer")
    }
}

impl Client for OwnClient {
    async fn step(&mut self, step: Step<'_>) -> Result<()> {
        self.out.clear();
        match step {
            Step::Put { key, value } => {
                command(&mut self.out, &[b"SET", key.as_bytes(), value]);
                command(&mut self.out, &[b"WAIT", b"1", WAIT_MILLIS.as_bytes()]);
                let connection = &mut self.connections[self.slots.master_of(key)];
                connection.send(&self.out).await?;
                connection.reply().await?.ok()?;
                acknowledged(connection.reply().await?)
            }
            Step::Get { key } => {
                command(&mut self.out, &[b"GET", key.as_bytes()]);
                let connection = &mut self.connections[self.slots.master_of(key)];
                connection.send(&self.out).await?;
                found(connection.reply().await?)
            }
            Step::Cycle { .. } => bail!("Redis Cluster has no locks; see Redlock"),
        }
    }
}

/// Whether a replica has it, by the reply to `WAIT`.
fn acknowledged(reply: Reply) -> Result<()> {
    ensure!(reply.integer()? >= 1, "no replica acknowledged the write");
    Ok(())
}

fn found(reply: Reply) -> Result<()> {
    ensure!(!matches!(reply.ok()?, Reply::Bulk(None)), Missing);
    Ok(())
}

/// A command on its way to a shared connection.
struct Shared {
    command: Vec<u8>,
    write: bool,
    answer: oneshot::Sender<Result<Reply>>,
}

/// What a shared connection waits for.
enum Awaited {
    /// The reply to a read.
    Read(oneshot::Sender<Result<Reply>>),
    /// The reply to a write, whose `WAIT` is still to come.
    Write(oneshot::Sender<Result<Reply>>),
    /// The reply to the `WAIT` for all writes before it.
    Wait,
}

/// Serves many clients by one connection, until all of them are gone.
fn share(connection: Connection) -> mpsc::Sender<Shared> {
    let (sender, mut queue) = mpsc::channel::<Shared>(SHARED_QUEUE);
    let (awaited, mut expected) = mpsc::channel::<Awaited>(SHARED_QUEUE);
    let (mut out, mut replies) = connection.split();
    tokio::spawn(async move {
        let mut batch = Vec::with_capacity(SHARED_BATCH);
        let mut bytes = Vec::new();
        while queue.recv_many(&mut batch, SHARED_BATCH).await > 0 {
            bytes.clear();
            let mut waits = Vec::with_capacity(batch.len() + 1);
            for shared in batch.drain(..) {
                bytes.extend_from_slice(&shared.command);
                waits.push(if shared.write {
                    Awaited::Write(shared.answer)
                } else {
                    Awaited::Read(shared.answer)
                });
            }
            if waits.iter().any(|wait| matches!(wait, Awaited::Write(_))) {
                command(&mut bytes, &[b"WAIT", b"1", WAIT_MILLIS.as_bytes()]);
                waits.push(Awaited::Wait);
            }
            if out.write_all(&bytes).await.is_err() {
                return;
            }
            for wait in waits {
                if awaited.send(wait).await.is_err() {
                    return;
                }
            }
        }
    });
    tokio::spawn(async move {
        let mut written = Vec::new();
        while let Some(wait) = expected.recv().await {
            // What nobody answers any more is told so by its dropped sender.
            let Ok(reply) = replies.next().await else { return };
            match wait {
                Awaited::Read(answer) => drop(answer.send(Ok(reply))),
                Awaited::Write(answer) => written.push((answer, reply)),
                Awaited::Wait => {
                    let outcome = acknowledged(reply).map_err(|error| error.to_string());
                    for (answer, reply) in written.drain(..) {
                        drop(answer.send(outcome.clone().map(|()| reply).map_err(|error| anyhow!(error))));
                    }
                }
            }
        }
    });
    sender
}

/// One client on connections that all share.
#[derive(Clone)]
struct SharedClient {
    slots: Arc<Slots>,
    masters: Vec<mpsc::Sender<Shared>>,
}

impl SharedClient {
    async fn call(&self, key: &str, parts: &[&[u8]], write: bool) -> Result<Reply> {
        let mut bytes = Vec::new();
        command(&mut bytes, parts);
        let (answer, reply) = oneshot::channel();
        let shared = Shared { command: bytes, write, answer };
        if self.masters[self.slots.master_of(key)].send(shared).await.is_err() {
            bail!("redis closed the connection");
        }
        reply.await.context("redis closed the connection")?
    }
}

impl Client for SharedClient {
    async fn step(&mut self, step: Step<'_>) -> Result<()> {
        match step {
            Step::Put { key, value } => {
                self.call(key, &[b"SET", key.as_bytes(), value], true).await?.ok()?;
                Ok(())
            }
            Step::Get { key } => found(self.call(key, &[b"GET", key.as_bytes()], false).await?),
            Step::Cycle { .. } => bail!("Redis Cluster has no locks; see Redlock"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_where_redis_puts_them() {
        // Of the cluster specification.
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // CLUSTER KEYSLOT foo
        assert_eq!(crc16(b"foo") % SLOTS, 12_182);
    }

    #[test]
    fn every_slot_has_the_master_of_its_range() {
        let node = |port| {
            Reply::Array(vec![
                Reply::Bulk(Some(b"127.0.0.1".to_vec())),
                Reply::Integer(port),
                Reply::Bulk(None),
            ])
        };
        let range = |first, last, port| {
            Reply::Array(vec![Reply::Integer(first), Reply::Integer(last), node(port), node(port + 1)])
        };
        let slots = Slots::parse(Reply::Array(vec![range(8192, 16_383, 7), range(0, 8191, 5)])).unwrap();
        assert_eq!(slots.masters, [7, 5]);
        assert_eq!(slots.masters[slots.master_of("foo")], 7);
        assert!(Slots::parse(Reply::Array(vec![range(0, 8191, 5)])).is_err());
    }
}
