//! What a run is told: where the programs are, and what to measure.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};

use crate::peer::Peer;
use crate::{roundtable, zookeeper};

/// Measures Roundtable beside what its users would otherwise pick, in one run, and prints tables.
#[derive(Debug, Clone, Parser)]
#[command(name = "benches/peers/run", version)]
pub(crate) struct Setup {
    /// Only this (repeatable, or with commas)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODE")]
    only: Vec<Mode>,
    /// Only these, in this order (with commas)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEERS")]
    peers: Vec<Peer>,
    /// Clients at work at the same time, in kv mode (with commas)
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256], value_parser = clients)]
    pub(crate) clients: Vec<usize>,
    /// Clients at work at the same time, in locks mode
    #[arg(long, default_value_t = 16, value_parser = clients)]
    pub(crate) lock_clients: usize,
    /// How long each measurement takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How often each is measured; the tables show medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How often a leader is killed, in failover mode; each time everything is started afresh
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// How many keys are written in idle mode
    #[arg(long, default_value_t = 1_000_000, value_parser = idle_keys)]
    idle_keys: usize,
    /// One round of one second each: to see that it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Leave out the pass that counts fsyncs
    #[arg(long)]
    pub(crate) no_fsyncs: bool,
    /// Write every single sample to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) raw: Option<PathBuf>,
    /// Instead: what Roundtable costs with more nodes, partitions and keys, and with larger values; draw that into
    /// this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["only", "peers", "raw"])]
    pub(crate) scaling: Option<PathBuf>,
    /// An empty directory on a disk, for all servers
    #[arg(long, env = "PEERS_SCRATCH", hide = true)]
    pub(crate) scratch: PathBuf,
    #[arg(long, env = "PEERS_ROUNDTABLE", hide = true)]
    pub(crate) roundtable: PathBuf,
    #[arg(long, env = "PEERS_REDIS_SERVER", hide = true)]
    pub(crate) redis_server: PathBuf,
    #[arg(long, env = "PEERS_REDIS_CLI", hide = true)]
    pub(crate) redis_cli: PathBuf,
    #[arg(long, env = "PEERS_ETCD", hide = true)]
    pub(crate) etcd: PathBuf,
    #[arg(long, env = "PEERS_NATS_SERVER", hide = true)]
    pub(crate) nats_server: PathBuf,
    #[arg(long, env = "PEERS_JAVA", hide = true)]
    java: Option<PathBuf>,
    /// ZooKeeper's classes, with colons
    #[arg(long, env = "PEERS_ZOOKEEPER", hide = true)]
    zookeeper: Option<OsString>,
    #[arg(long, env = "PEERS_STRACE", hide = true)]
    pub(crate) strace: PathBuf,
}

/// What a server in Java is started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Java<'a> {
    pub(crate) program: &'a Path,
    /// Where its classes are.
    pub(crate) classes: &'a OsStr,
}

/// Keys in idle mode when it must be quick.
const QUICK_IDLE_KEYS: usize = 10_000;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Puts and gets of 100-byte values.
    Kv,
    /// Acquiring and releasing locks.
    Locks,
    /// `kill -9` of a leader or master
    Failover,
    /// What they cost while nobody uses them, and bytes per key
    Idle,
}

impl Setup {
    /// What is measured.
    pub(crate) fn modes(&self) -> Vec<Mode> {
        if self.only.is_empty() { Mode::value_variants().to_vec() } else { self.only.clone() }
    }

    /// Who is measured in `mode`. Who was not named and cannot take part in this build is left out.
    pub(crate) fn peers(&self, mode: Mode) -> Result<Vec<Peer>> {
        let mut peers = Vec::new();
        let asked = if self.peers.is_empty() { Peer::value_variants() } else { &self.peers };
        for peer in asked.iter().filter(|peer| peer.does(mode)) {
            match self.can_run(*peer) {
                Ok(()) => peers.push(*peer),
                Err(error) if self.peers.is_empty() => eprintln!("{} is left out: {error:#}", peer.label()),
                Err(error) => return Err(error),
            }
        }
        Ok(peers)
    }

    fn can_run(&self, peer: Peer) -> Result<()> {
        match peer {
            Peer::RoundtableDisk if !roundtable::keeps_data(self)? => {
                bail!("this build of roundtable has no --data-dir")
            }
            Peer::ZooKeeper => self.zookeeper().map(drop),
            _ => Ok(()),
        }
    }

    /// What ZooKeeper is started with.
    pub(crate) fn zookeeper(&self) -> Result<Java<'_>> {
        Ok(Java {
            program: self.java.as_deref().context("there is no java")?,
            classes: self.zookeeper.as_deref().context("ZooKeeper's classes are not there")?,
        })
    }

    /// How long each measurement takes; whole seconds.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { self.seconds })
    }

    /// How often each is measured.
    pub(crate) fn rounds(&self, mode: Mode) -> u32 {
        match mode {
            _ if self.quick => 1,
            Mode::Kv | Mode::Locks => self.rounds,
            Mode::Failover => self.kills,
            Mode::Idle => 1,
        }
    }

    /// How many keys are written in idle mode.
    pub(crate) fn idle_keys(&self) -> usize {
        if self.quick { self.idle_keys.min(QUICK_IDLE_KEYS) } else { self.idle_keys }
    }

    /// What ran where, for the reader of the tables.
    pub(crate) fn describe(&self) -> Result<String> {
        let cores = std::thread::available_parallelism()?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().next().unwrap_or("?").to_owned();
        let mut versions = Vec::new();
        for program in [&self.roundtable, &self.redis_server, &self.etcd, &self.nats_server] {
            let output = Command::new(program).arg("--version").output();
            let output = output.with_context(|| format!("cannot start {}", program.display()))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = text.lines().next().unwrap_or_default().to_owned();
            // `Redis server v=7.0.15 sha=...`: what follows tells nothing.
            versions.push(line.split(" sha=").next().unwrap_or_default().to_owned());
        }
        if let Ok(java) = self.zookeeper() {
            versions.push(zookeeper::version(java)?);
        }
        Ok(format!(
            "{cores} cores shared by all servers and the load generator, Linux {}, load before {load}; {}. \
             Medians of {} rounds of {} s; each round starts every peer afresh, one after the other.",
            kernel.trim(),
            versions.join(", "),
            self.rounds(Mode::Kv),
            self.duration().as_secs(),
        ))
    }
}

fn idle_keys(text: &str) -> Result<usize, String> {
    match text.parse() {
        // Names of keys have eight digits.
        Ok(number @ 1..=99_999_999) => Ok(number),
        _ => Err("a number from 1 to 99999999".to_owned()),
    }
}

fn clients(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1024) => Ok(number),
        _ => Err("a number from 1 to 1024".to_owned()),
    }
}
