//! ZooKeeper, three servers: keys are znodes, and locks its recipe, an ephemeral sequential znode for each claim.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zookeeper_client::{Acls, CreateMode, CreateOptions, Error};

use crate::failover::{self, Connect, Outage};
use crate::load::{self, Client, FILLERS, KEYS, Missing, Op, Sample, Step, Task, write_keys};
use crate::servers::{Servers, free_ports};
use crate::setup::{Java, Setup};

const SERVERS: usize = 3;
/// As in the scripts that come with ZooKeeper; otherwise Java takes up to a quarter of the machine.
const HEAP: &str = "-Xmx1000m";
const CLASS: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
const CLAIM: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());

fn name(number: usize) -> String {
    format!("zookeeper-{number}")
}

/// An ensemble that serves.
#[derive(Debug)]
pub(crate) struct ZooKeeper {
    servers: Servers,
    /// Where they listen.
    addresses: Vec<String>,
    /// Which of them leads: a write to another would only take one hop more.
    leader: usize,
    /// Whether the znodes of the load are there.
    filled: bool,
}

impl ZooKeeper {
    pub(crate) async fn start(setup: &Setup, strace: Option<&PathBuf>) -> Result<Self> {
        let java = setup.zookeeper()?;
        let mut servers = Servers::new(setup.scratch.join("zookeeper"), strace)?;
        let ports = free_ports(3 * SERVERS)?;
        let (client_ports, ports) = ports.split_at(SERVERS);
        let mut ensemble = String::new();
        for number in 0..SERVERS {
            writeln!(ensemble, "server.{number}=127.0.0.1:{}:{}", ports[number], ports[SERVERS + number])?;
        }
        for (number, port) in client_ports.iter().enumerate() {
            let dir = servers.make_dir(&name(number))?;
            std::fs::write(dir.join("myid"), number.to_string())?;
            let file = dir.join("zoo.cfg");
            // Ticks and limits as in the sample that comes with it; 60 connections from one address would be the most.
            let config = format!(
                "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPortAddress=127.0.0.1\nclientPort={port}\n\
                 maxClientCnxns=0\nadmin.enableServer=false\n{ensemble}",
                dir.display()
            );
            std::fs::write(&file, config)?;
            let mut command = command(java);
            command.args([HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", CLASS]).arg(file);
            servers.start(&name(number), &command)?;
        }
        let addresses: Vec<String> = client_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut leader = None;
        servers
            .wait_until("ZooKeeper has a leader whom all follow", async || {
                let mut followers = 0;
                for (number, address) in addresses.iter().enumerate() {
                    match mode(address).await?.as_deref() {
                        Some("leader") => leader = Some(number),
                        Some("follower") => followers += 1,
                        _ => {}
                    }
                }
                Ok(followers == SERVERS - 1)
            })
            .await?;
        let leader = leader.context("no server of ZooKeeper leads")?;
        Ok(Self { servers, addresses, leader, filled: false })
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Kills the leader.
    pub(crate) async fn fail(&mut self) -> Result<Outage> {
        let servers = &mut self.servers;
        let any = AnyServer { addresses: self.addresses.join(",") };
        failover::measure(any, || servers.kill(&name(self.leader))).await
    }

    pub(crate) async fn fill(&mut self, keys: usize) -> Result<usize> {
        load::fill(self.clients(FILLERS, Put::Create).await?, keys).await
    }

    pub(crate) async fn measure(&mut self, task: Task) -> Result<Sample> {
        if matches!(task.op, Op::Put | Op::Get) && !self.filled {
            write_keys(self.clients(FILLERS, Put::Create).await?, KEYS).await?;
            self.filled = true;
        }
        let clients = self.clients(task.clients, Put::Set).await?;
        load::measure(&mut self.servers, clients, task).await
    }

    async fn clients(&self, count: usize, put: Put) -> Result<Vec<ZooKeeperClient>> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(ZooKeeperClient { session: connect(&self.addresses[self.leader]).await?, put });
        }
        Ok(clients)
    }
}

/// Java, with all of ZooKeeper's classes.
fn command(java: Java<'_>) -> Command {
    let mut command = Command::new(java.program);
    command.arg("-cp").arg(java.classes);
    command
}

/// `3.8.0`, as far as it says so.
pub(crate) fn version(java: Java<'_>) -> Result<String> {
    let output = command(java).arg("org.apache.zookeeper.Version").output();
    let output = output.with_context(|| format!("cannot start {}", java.program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(format!("ZooKeeper {}", text.split(['-', ',']).next().unwrap_or_default()))
}

/// What a server says that it is, if it serves.
async fn mode(address: &str) -> Result<Option<String>> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(b"srvr").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned))
}

/// A new session with one of these servers.
async fn connect(addresses: &str) -> Result<zookeeper_client::Client> {
    Ok(zookeeper_client::Client::connector().with_fail_eagerly().connect(addresses).await?)
}

/// A client of any server that answers.
#[derive(Debug, Clone)]
struct AnyServer {
    /// With commas.
    addresses: String,
}

impl Connect for AnyServer {
    type Client = ZooKeeperClient;

    async fn connect(&self) -> Result<ZooKeeperClient> {
        Ok(ZooKeeperClient { session: connect(&self.addresses).await?, put: Put::Create })
    }
}

/// What a put is.
#[derive(Debug, Clone, Copy)]
enum Put {
    /// A new znode. To try to set it first would be a second write: also what fails goes through the log.
    Create,
    /// New data for a znode that is there.
    Set,
}

/// One client, with a session and so a connection of its own.
struct ZooKeeperClient {
    session: zookeeper_client::Client,
    put: Put,
}

impl ZooKeeperClient {
    /// Returns the claim that holds the lock now.
    async fn acquire(&self, dir: &str) -> Result<String> {
        let prefix = format!("{dir}/claim-");
        let (_, number) = match self.session.create(&prefix, b"", &CLAIM).await {
            Err(Error::NoNode) => {
                match self.session.create(dir, b"", &PERSISTENT).await {
                    Ok(_) | Err(Error::NodeExists) => {}
                    Err(error) => return Err(error.into()),
                }
                self.session.create(&prefix, b"", &CLAIM).await?
            }
            created => created?,
        };
        let claim = format!("{prefix}{number}");
        loop {
            // All have the same prefix, and numbers as many digits.
            let mut claims = self.session.list_children(dir).await?;
            claims.sort_unstable();
            let place = claims.iter().position(|other| claim.ends_with(other.as_str()));
            let place = place.context("the claim is gone")?;
            let Some(before) = place.checked_sub(1) else { return Ok(claim) };
            let (there, gone) =
                self.session.check_and_watch_stat(&format!("{dir}/{}", claims[before])).await?;
            if there.is_some() {
                gone.changed().await;
            }
        }
    }
}

impl Client for ZooKeeperClient {
    async fn step(&mut self, step: Step<'_>) -> Result<()> {
        // Flat, since a znode needs its parent.
        let path = |key: &str| format!("/{}", key.replace('/', "-"));
        match (step, self.put) {
            (Step::Put { key, value }, Put::Create) => {
                self.session.create(&path(key), value, &PERSISTENT).await?;
            }
            (Step::Put { key, value }, Put::Set) => {
                self.session.set_data(&path(key), value, None).await?;
            }
            (Step::Get { key }, _) => {
                let data = self.session.get_data(&path(key)).await;
                ensure!(data != Err(Error::NoNode), Missing);
                data?;
            }
            (Step::Cycle { lock }, _) => {
                let claim = self.acquire(&path(lock)).await?;
                self.session.delete(&claim, None).await?;
            }
        }
        Ok(())
    }
}
