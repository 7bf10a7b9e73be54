//! Who is measured. To add one: a variant here, and a file with its servers and its client.

use std::path::PathBuf;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::etcd::Etcd;
use crate::failover::Outage;
use crate::load::{Sample, Task};
use crate::nats::Nats;
use crate::redis_cluster::{Connections, Durability, RedisCluster};
use crate::redlock::Redlock;
use crate::roundtable::Roundtable;
use crate::servers::Servers;
use crate::setup::{Mode, Setup};
use crate::zookeeper::ZooKeeper;

/// After the start and after writing many keys it may still have something to do.
const SETTLE: Duration = Duration::from_secs(3);

/// Who can be measured, in the order of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// etcd, three members
    Etcd,
    /// ZooKeeper, three servers
    #[value(name = "zookeeper")]
    #[serde(rename = "zookeeper")]
    ZooKeeper,
    /// NATS JetStream, three servers, a key-value bucket with three replicas
    Nats,
    /// Redis Cluster in memory, 3 masters and 3 replicas, WAIT 1
    Redis,
    /// The same through connections that all clients share
    RedisShared,
    /// The same with its append-only file flushed at every write
    RedisDisk,
    /// Redlock over five Redis masters in memory
    Redlock,
    /// Roundtable, three nodes in memory
    Roundtable,
    /// Roundtable, three nodes with --data-dir
    RoundtableDisk,
}

impl Peer {
    /// What the tables call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ZooKeeper => "ZooKeeper",
            Self::Nats => "NATS JetStream KV",
            Self::Redis => "Redis Cluster, memory",
            Self::RedisShared => "Redis Cluster, memory, shared connections",
            Self::RedisDisk => "Redis Cluster, disk",
            Self::Redlock => "Redlock",
            Self::Roundtable => "Roundtable, memory",
            Self::RoundtableDisk => "Roundtable, disk",
        }
    }

    /// What an answer from it means.
    pub(crate) fn promise(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Self::Etcd, Mode::Kv | Mode::Failover | Mode::Idle) => {
                "put: on the disk of two of three; get: linearizable; failover loses nothing"
            }
            (Self::ZooKeeper, Mode::Kv | Mode::Failover | Mode::Idle) => {
                "put: setData, in kv mode, or create, on the disk of two of three; get: getData without sync, from the \
                 leader, which asks nobody and may be stale after a cut (a follower may always be); failover loses \
                 nothing; unencrypted"
            }
            (Self::Nats, _) => {
                "put: in the files of two of three, not flushed before the answer: an outage of power may lose \
                 acknowledged writes; get: the stream's leader, by STREAM.MSG.GET, which asks nobody and may be stale \
                 after a cut (the bucket's own get is answered by any replica, and may always be); a crash of one server \
                 loses nothing; unencrypted"
            }
            (Self::Redis | Self::RedisShared, _) => {
                "put: in the memory of two of two; get: from the master, may be stale after a cut; failover may lose \
                 acknowledged writes; unencrypted"
            }
            (Self::RedisDisk, _) => {
                "put: in the flushed append-only files of two of two; get: from the master, may be stale after a cut; \
                 failover may lose acknowledged writes; unencrypted"
            }
            (Self::Roundtable, Mode::Kv | Mode::Failover | Mode::Idle) => {
                "put: in the memory of two of three; get: linearizable; failover loses nothing, a crash of all loses \
                 everything; encrypted"
            }
            (Self::RoundtableDisk, Mode::Kv | Mode::Failover | Mode::Idle) => {
                "put: on the disk of two of three; get: linearizable; failover loses nothing; encrypted"
            }
            (Self::Etcd, Mode::Locks) => {
                "on the disk of two of three; waiters in order; a growing revision that the holder may use to fence"
            }
            (Self::ZooKeeper, Mode::Locks) => {
                "on the disk of two of three; waiters in order; a growing number that the holder may use to fence"
            }
            (Self::Redlock, _) => {
                "in the memory of three of five; by clocks alone, no fencing token, no order among waiters"
            }
            (Self::Roundtable, Mode::Locks) => {
                "in the memory of two of three; waiters in order; a fencing token with every grant"
            }
            (Self::RoundtableDisk, Mode::Locks) => {
                "on the disk of two of three; waiters in order; a fencing token with every grant"
            }
        }
    }

    /// Whether it has what `mode` measures.
    pub(crate) fn does(self, mode: Mode) -> bool {
        match self {
            Self::Etcd | Self::ZooKeeper | Self::Roundtable | Self::RoundtableDisk => true,
            Self::Nats | Self::Redis | Self::RedisDisk => mode != Mode::Locks,
            // Its servers are those of the other rows.
            Self::RedisShared => mode == Mode::Kv,
            Self::Redlock => mode == Mode::Locks,
        }
    }

    /// How many servers have each key.
    pub(crate) fn copies(self) -> usize {
        match self {
            Self::Redis | Self::RedisShared | Self::RedisDisk => 2,
            Self::Etcd | Self::ZooKeeper | Self::Nats | Self::Roundtable | Self::RoundtableDisk => 3,
            Self::Redlock => 5,
        }
    }

    /// Whether it has anything to flush.
    pub(crate) fn durable(self) -> bool {
        matches!(self, Self::Etcd | Self::ZooKeeper | Self::Nats | Self::RedisDisk | Self::RoundtableDisk)
    }

    /// Starts it afresh. With `strace`, its fsyncs are counted, which slows them down.
    pub(crate) async fn start(self, setup: &Setup, strace: Option<&PathBuf>) -> Result<Running> {
        let redis = |durability, connections| RedisCluster::start(setup, durability, connections, strace);
        Ok(match self {
            Self::Etcd => Running::Etcd(Etcd::start(setup, strace).await?),
            Self::ZooKeeper => Running::ZooKeeper(ZooKeeper::start(setup, strace).await?),
            Self::Nats => Running::Nats(Nats::start(setup, strace).await?),
            Self::Redis => Running::Redis(redis(Durability::Memory, Connections::Own).await?),
            Self::RedisShared => Running::Redis(redis(Durability::Memory, Connections::Shared).await?),
            Self::RedisDisk => Running::Redis(redis(Durability::Flushed, Connections::Own).await?),
            Self::Redlock => Running::Redlock(Redlock::start(setup, strace).await?),
            Self::Roundtable => Running::Roundtable(Roundtable::start(setup, false, strace).await?),
            Self::RoundtableDisk => Running::Roundtable(Roundtable::start(setup, true, strace).await?),
        })
    }
}

/// What a peer costs that nobody uses.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Idle {
    /// Its servers.
    pub(crate) nodes: usize,
    /// How long it was looked at.
    pub(crate) seconds: f64,
    /// CPU seconds of all servers in that time.
    pub(crate) cpu: f64,
    /// Resident memory of all servers, in bytes, without keys.
    pub(crate) memory: u64,
    /// Keys that were written then.
    pub(crate) keys: usize,
    /// Resident memory of all servers, in bytes, with these keys.
    pub(crate) full: u64,
}

/// A peer that serves. When it is dropped, its servers and their data are gone.
#[derive(Debug)]
pub(crate) enum Running {
    Etcd(Etcd),
    ZooKeeper(ZooKeeper),
    Nats(Nats),
    Redis(RedisCluster),
    Redlock(Redlock),
    Roundtable(Roundtable),
}

impl Running {
    /// Looks at it while nobody uses it, and again when it holds `keys` keys, or as many as there is time for.
    pub(crate) async fn idle(&mut self, duration: Duration, keys: usize) -> Result<Idle> {
        tokio::time::sleep(SETTLE).await;
        let cpu = self.servers().cpu()?;
        tokio::time::sleep(duration).await;
        let cpu = self.servers().cpu()?.saturating_sub(cpu);
        let memory = self.servers().memory()?;
        let keys = match self {
            Self::Etcd(etcd) => etcd.fill(keys).await?,
            Self::ZooKeeper(zookeeper) => zookeeper.fill(keys).await?,
            Self::Nats(nats) => nats.fill(keys).await?,
            Self::Redis(redis) => redis.fill(keys).await?,
            Self::Redlock(_) => bail!("Redlock keeps no keys"),
            Self::Roundtable(roundtable) => roundtable.fill(keys).await?,
        };
        tokio::time::sleep(SETTLE).await;
        let nodes = self.servers().count();
        Ok(Idle {
            nodes,
            seconds: duration.as_secs_f64(),
            cpu: cpu.as_secs_f64(),
            memory,
            keys,
            full: self.servers().memory()?,
        })
    }

    /// Takes one measurement, and counts the fsyncs in it if it was started to be traced.
    pub(crate) async fn measure(&mut self, task: Task) -> Result<Sample> {
        match self {
            Self::Etcd(etcd) => etcd.measure(task).await,
            Self::ZooKeeper(zookeeper) => zookeeper.measure(task).await,
            Self::Nats(nats) => nats.measure(task).await,
            Self::Redis(redis) => redis.measure(task).await,
            Self::Redlock(redlock) => redlock.measure(task).await,
            Self::Roundtable(roundtable) => roundtable.measure(task).await,
        }
    }

    /// Kills a leader, and says what that did. Afterwards only the rest of it serves.
    pub(crate) async fn fail(&mut self) -> Result<Outage> {
        match self {
            Self::Etcd(etcd) => etcd.fail().await,
            Self::ZooKeeper(zookeeper) => zookeeper.fail().await,
            Self::Nats(nats) => nats.fail().await,
            Self::Redis(redis) => redis.fail().await,
            Self::Redlock(_) => bail!("Redlock has no leader"),
            Self::Roundtable(roundtable) => roundtable.fail().await,
        }
    }

    fn servers(&self) -> &Servers {
        match self {
            Self::Etcd(etcd) => etcd.servers(),
            Self::ZooKeeper(zookeeper) => zookeeper.servers(),
            Self::Nats(nats) => nats.servers(),
            Self::Redis(redis) => redis.servers(),
            Self::Redlock(redlock) => redlock.servers(),
            Self::Roundtable(roundtable) => roundtable.servers(),
        }
    }
}
