//! Roundtable, three nodes, driven by its own `bench`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failover::{self, Connect, Outage};
use crate::load::{Client, Missing, Op, Sample, Step, Task, VALUE_BYTES};
use crate::scaling::Shape;
use crate::servers::{Servers, stat};
use crate::setup::Setup;

/// Replicas of each partition, if there are as many nodes.
const REPLICAS: usize = 3;
/// A swarm of another name on this machine is left alone.
const SWARM: &str = "peers";
/// Between two looks at the CPU times.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// A `bench` that takes this much longer than it should has failed.
const GRACE: Duration = Duration::from_secs(60);

/// Exit code of a `get` that found nothing.
const NOT_FOUND: i32 = 3;

/// A swarm that serves.
#[derive(Debug)]
pub(crate) struct Roundtable {
    servers: Servers,
    binary: PathBuf,
    runtime_dir: PathBuf,
    shape: Shape,
}

/// What `roundtable status` says of a node.
#[derive(Debug, Deserialize)]
struct Status {
    replicas: Vec<Replica>,
}

/// What `roundtable ring` says.
#[derive(Debug, Deserialize)]
struct Ring {
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    owns: usize,
    leads: usize,
}

#[derive(Debug, Deserialize)]
struct Replica {
    has_quorum: bool,
    voters: Vec<String>,
    learners: Vec<String>,
}

impl Status {
    /// Whether every partition is on as many nodes as it should be. What is only planned does not count.
    fn whole(&self, nodes: usize) -> bool {
        let whole = |replica: &Replica| {
            replica.has_quorum && replica.voters.len() == nodes.min(REPLICAS) && replica.learners.is_empty()
        };
        self.replicas.iter().all(whole)
    }
}

/// What `roundtable bench` says.
#[derive(Debug, Deserialize)]
struct Report {
    operations: u64,
    seconds: f64,
    latency_us: Latency,
    fewest_per_lane: u64,
    most_per_lane: u64,
    failed: u64,
    missing: u64,
    errors: serde_json::Value,
}

#[derive(Debug, Deserialize)]
struct Latency {
    p50: u64,
    p99: u64,
    max: u64,
}

impl Ring {
    /// Whether all are in, and each leads what it owns.
    fn settled(&self, nodes: usize) -> bool {
        self.members.len() == nodes && self.members.iter().all(|member| member.owns == member.leads)
    }
}

impl Roundtable {
    pub(crate) async fn start(setup: &Setup, durable: bool, strace: Option<&PathBuf>) -> Result<Self> {
        Self::start_as(setup, Shape::default(), durable, strace).await
    }

    pub(crate) async fn start_as(
        setup: &Setup,
        shape: Shape,
        durable: bool,
        strace: Option<&PathBuf>,
    ) -> Result<Self> {
        let mut servers = Servers::new(setup.scratch.join("roundtable"), strace)?;
        let runtime_dir = servers.make_dir("run")?;
        make_private(&runtime_dir)?;
        let binary = setup.roundtable.clone();
        for number in 0..shape.nodes {
            let name = name(number);
            let mut command = command(&binary, &runtime_dir);
            command.args(["up", "--partitions", &shape.partitions.to_string()]);
            if durable {
                let data_dir = servers.make_dir(&name)?;
                make_private(&data_dir)?;
                command.arg("--data-dir").arg(data_dir);
            }
            servers.start(&name, &command)?;
        }
        servers
            .wait_until("every node has what it should, and leads what it owns", async || {
                let status: Status = ask(&binary, &runtime_dir, "status")?;
                let ring: Ring = ask(&binary, &runtime_dir, "ring")?;
                Ok(status.whole(shape.nodes) && ring.settled(shape.nodes))
            })
            .await?;
        Ok(Self { servers, binary, runtime_dir, shape })
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Kills a node; each leads about a third of the partitions.
    pub(crate) async fn fail(&mut self) -> Result<Outage> {
        let cli = Cli { binary: self.binary.clone(), runtime_dir: self.runtime_dir.clone() };
        let servers = &mut self.servers;
        failover::measure(cli, || servers.kill(&name(0))).await
    }

    pub(crate) async fn fill(&mut self, keys: usize) -> Result<usize> {
        // It writes every key once before it reads.
        let mut bench = command(&self.binary, &self.runtime_dir);
        bench.args(["bench", "--op", "get", "--clients", "1", "--seconds", "1", "--keep"]);
        bench.args(["--value-size", &VALUE_BYTES.to_string(), "--keys", &keys.to_string()]);
        let answer = tokio::process::Command::from(bench).kill_on_drop(true).output().await?;
        ensure!(answer.status.success(), "roundtable bench: {}", String::from_utf8_lossy(&answer.stdout));
        Ok(keys)
    }

    pub(crate) async fn measure(&mut self, task: Task) -> Result<Sample> {
        let (op, keys) = match task.op {
            Op::Put => ("put", self.shape.keys),
            Op::Get => ("get", self.shape.keys),
            Op::LockDistinct => ("lock", task.clients),
            Op::LockContended => ("lock", 1),
        };
        let mut bench = command(&self.binary, &self.runtime_dir);
        bench.args([
            "bench",
            "--op",
            op,
            "--clients",
            &task.clients.to_string(),
            "--keys",
            &keys.to_string(),
        ]);
        bench.args([
            "--value-size",
            &self.shape.value_bytes.to_string(),
            "--seconds",
            &task.duration.as_secs().to_string(),
        ]);
        // With `--keep` it ends when the clock stops, so the end of its measurement is the end of the process.
        bench.arg("--keep").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

        let fsyncs_before = self.servers.fsyncs()?;
        let mut bench = bench.spawn().context("cannot start roundtable bench")?;
        let deadline = Instant::now() + task.duration + GRACE;
        let mut looks = Vec::new();
        loop {
            let client = stat(bench.id())?;
            looks.push(Look { at: Instant::now(), servers: self.servers.cpu()?, client: client.cpu });
            if client.ended {
                break;
            }
            if Instant::now() > deadline {
                let _ = bench.kill();
                let _ = bench.wait();
                bail!("roundtable bench hangs");
            }
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
        let answer = bench.wait_with_output()?;
        self.servers.check()?;
        if !answer.status.success() {
            let said = [answer.stdout, answer.stderr].concat();
            bail!("roundtable bench ended with {}: {}", answer.status, String::from_utf8_lossy(&said));
        }
        let report: Report = serde_json::from_slice(&answer.stdout).context("what roundtable bench says")?;
        if report.failed > 0 {
            eprintln!("  {} operations failed: {}", report.failed, report.errors);
        }
        let (server_cpu, client_cpu) = cpu_of_last(&looks, Duration::from_secs_f64(report.seconds))?;
        Ok(Sample {
            operations: report.operations,
            seconds: report.seconds,
            p50: report.latency_us.p50,
            p99: report.latency_us.p99,
            max: report.latency_us.max,
            fewest: report.fewest_per_lane,
            most: report.most_per_lane,
            failed: report.failed + report.missing,
            server_cpu: server_cpu.as_secs_f64(),
            client_cpu: client_cpu.as_secs_f64(),
            fsyncs: self.servers.fsyncs()?.zip(fsyncs_before).map(|(after, before)| after - before),
        })
    }
}

/// A client that starts the command line for each operation: it finds a node, connects, and does it once.
#[derive(Debug, Clone)]
struct Cli {
    binary: PathBuf,
    runtime_dir: PathBuf,
}

impl Connect for Cli {
    type Client = Self;

    async fn connect(&self) -> Result<Self> {
        Ok(self.clone())
    }
}

impl Client for Cli {
    async fn step(&mut self, step: Step<'_>) -> Result<()> {
        let mut command = command(&self.binary, &self.runtime_dir);
        match step {
            Step::Put { key, value } => {
                command.args(["put", key]).arg(String::from_utf8_lossy(value).as_ref())
            }
            Step::Get { key } => command.args(["get", key]),
            Step::Cycle { .. } => bail!("only keys"),
        };
        let answer = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
        ensure!(answer.status.code() != Some(NOT_FOUND), Missing);
        ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stdout));
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("node-{number}")
}

/// Whether this build of Roundtable keeps data on disk.
pub(crate) fn keeps_data(setup: &Setup) -> Result<bool> {
    let help =
        Command::new(&setup.roundtable).args(["up", "--help"]).output().context("cannot start roundtable")?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--data-dir"))
}

fn command(binary: &PathBuf, runtime_dir: &PathBuf) -> Command {
    let mut command = Command::new(binary);
    command.env("ROUNDTABLE_RUNTIME_DIR", runtime_dir).env("ROUNDTABLE_SWARM", SWARM);
    command.env("ROUNDTABLE_FORMAT", "json");
    command
}

/// What a command that looks at the swarm says.
fn ask<T: DeserializeOwned>(binary: &PathBuf, runtime_dir: &PathBuf, what: &str) -> Result<T> {
    let answer = command(binary, runtime_dir).arg(what).output()?;
    ensure!(answer.status.success(), "roundtable {what}: {}", String::from_utf8_lossy(&answer.stdout));
    serde_json::from_slice(&answer.stdout).with_context(|| format!("roundtable {what}"))
}

/// Other users must not be able to read it: nodes insist on that.
fn make_private(dir: &PathBuf) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| dir.display().to_string())
}

/// CPU times so far, at one moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    servers: Duration,
    client: Duration,
}

/// What servers and client used in the last `span` before the last look.
fn cpu_of_last(looks: &[Look], span: Duration) -> Result<(Duration, Duration)> {
    let last = looks.last().context("nothing was seen of the bench")?;
    // A bench that measured from its first moment has no look before that.
    let first = looks.iter().rev().find(|look| last.at - look.at >= span).or(looks.first()).unwrap_or(last);
    Ok((last.servers.saturating_sub(first.servers), last.client.saturating_sub(first.client)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bench_does_before_its_clock_starts_does_not_count() {
        let start = Instant::now();
        let looks: Vec<Look> = (0..=10_u64)
            .map(|second| Look {
                at: start + Duration::from_secs(second),
                servers: Duration::from_secs(10 * second),
                client: Duration::from_secs(second),
            })
            .collect();
        let (servers, client) = cpu_of_last(&looks, Duration::from_secs(4)).unwrap();
        assert_eq!((servers, client), (Duration::from_secs(40), Duration::from_secs(4)));
        let (servers, _) = cpu_of_last(&looks, Duration::from_secs(60)).unwrap();
        assert_eq!(servers, Duration::from_secs(100));
    }
}
