//! Redlock over five Redis masters that know nothing of each other, as its specification says it.
//! See <https://redis.io/docs/latest/develop/use/patterns/distributed-locks/>.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::time::{sleep, timeout_at};

use crate::load::{Client, Sample, Step, Task, measure};
use crate::redis_cluster::{all_answer, server};
use crate::resp::{Connection, Reply, command};
use crate::servers::{Servers, free_ports};
use crate::setup::Setup;

const MASTERS: usize = 5;
/// More than half of them.
const MAJORITY: usize = MASTERS / 2 + 1;
/// How long a lock is held at most.
const VALIDITY: Duration = Duration::from_secs(10);
/// A server that takes longer to answer is passed over.
const SERVER_TIMEOUT: Duration = Duration::from_millis(50);
/// By how much the clocks of servers may drift apart, as a part of the validity ...
const DRIFT_DIVISOR: u32 = 100;
/// ... and this much for the resolution of expiry.
const DRIFT_SPARE: Duration = Duration::from_millis(2);
/// A client that did not get the lock asks again after a random time below this. The specification names none; of
/// 0.2 ms to 200 ms, what gave most cycles with 16 clients on one lock. Shorter ones wait less and do less.
const RETRY_BELOW: Duration = Duration::from_millis(50);
/// Random bytes that tell the holder.
const TOKEN_BYTES: usize = 20;
/// Deletes the lock only if it is still ours.
const RELEASE: &str =
    r#"if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end"#;

/// Five masters that serve.
#[derive(Debug)]
pub(crate) struct Redlock {
    servers: Servers,
    ports: Vec<u16>,
    /// The digest of [`RELEASE`], by which the servers know it.
    release: String,
}

impl Redlock {
    pub(crate) async fn start(setup: &Setup, strace: Option<&PathBuf>) -> Result<Self> {
        let mut servers = Servers::new(setup.scratch.join("redlock"), strace)?;
        let ports = free_ports(MASTERS)?;
        for (number, port) in ports.iter().enumerate() {
            let name = format!("redlock-{number}");
            let command = server(setup, &servers, &name, *port)?;
            servers.start(&name, &command)?;
        }
        servers.wait_until("every redis answers", async || all_answer(&ports).await).await?;
        let mut release = String::new();
        for port in &ports {
            release = Connection::open(*port).await?.call(&["SCRIPT", "LOAD", RELEASE]).await?.text()?;
        }
        Ok(Self { servers, ports, release })
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    pub(crate) async fn measure(&mut self, task: Task) -> Result<Sample> {
        let mut clients = Vec::with_capacity(task.clients);
        for _ in 0..task.clients {
            let mut client = RedlockClient {
                ports: self.ports.clone(),
                connections: Vec::new(),
                release: self.release.clone(),
                rng: StdRng::from_rng(&mut rand::rng()),
            };
            client.connections.resize_with(MASTERS, || None);
            client.connect().await;
            clients.push(client);
        }
        measure(&mut self.servers, clients, task).await
    }
}

/// One client, with a connection of its own to each master.
struct RedlockClient {
    ports: Vec<u16>,
    /// `None`: failed, or did not answer in time; opened anew before the next use.
    connections: Vec<Option<Connection>>,
    release: String,
    rng: StdRng,
}

impl RedlockClient {
    /// Opens what is not open.
    async fn connect(&mut self) {
        for (port, connection) in self.ports.iter().zip(&mut self.connections) {
            if connection.is_none() {
                *connection = Connection::open(*port).await.ok();
            }
        }
    }

    /// Sends a command to all masters at the same time; of how many the reply is `yes`.
    async fn ask(&mut self, parts: &[&[u8]], yes: impl Fn(&Reply) -> bool) -> usize {
        let deadline = tokio::time::Instant::now() + SERVER_TIMEOUT;
        let mut bytes = Vec::new();
        command(&mut bytes, parts);
        self.connect().await;
        for slot in &mut self.connections {
            if let Some(connection) = slot
                && !matches!(timeout_at(deadline, connection.send(&bytes)).await, Ok(Ok(())))
            {
                *slot = None;
            }
        }
        let mut count = 0;
        for slot in &mut self.connections {
            let Some(connection) = slot else { continue };
            match timeout_at(deadline, connection.reply()).await {
                Ok(Ok(reply)) => count += usize::from(yes(&reply)),
                _ => *slot = None,
            }
        }
        count
    }

    async fn acquire(&mut self, lock: &str) -> Vec<u8> {
        let mut token = vec![0; TOKEN_BYTES];
        let validity = VALIDITY.as_millis().to_string();
        loop {
            self.rng.fill_bytes(&mut token);
            let start = Instant::now();
            let set: [&[u8]; 6] = [b"SET", lock.as_bytes(), &token, b"NX", b"PX", validity.as_bytes()];
            let granted = self.ask(&set, |reply| matches!(reply, Reply::Simple(_))).await;
            let drift = VALIDITY / DRIFT_DIVISOR + DRIFT_SPARE;
            if granted >= MAJORITY && start.elapsed() + drift < VALIDITY {
                return token;
            }
            self.release(lock, &token).await;
            let delay = self.rng.random_range(Duration::ZERO..RETRY_BELOW);
            sleep(delay).await;
        }
    }

    /// Gives the lock back wherever it can be; elsewhere it expires.
    async fn release(&mut self, lock: &str, token: &[u8]) {
        let digest = self.release.clone();
        let release: [&[u8]; 5] = [b"EVALSHA", digest.as_bytes(), b"1", lock.as_bytes(), token];
        self.ask(&release, |reply| *reply == Reply::Integer(1)).await;
    }
}

impl Client for RedlockClient {
    async fn step(&mut self, step: Step<'_>) -> Result<()> {
        let Step::Cycle { lock } = step else { bail!("Redlock has only locks") };
        let token = self.acquire(lock).await;
        self.release(lock, &token).await;
        Ok(())
    }
}
