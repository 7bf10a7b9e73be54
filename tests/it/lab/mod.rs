//! The lab: real processes on real networks, tried as their users and their enemies would.
//!
//! Nodes are processes of the `roundtable` binary; their machines are network namespaces on one bridge, which the
//! [`Lab`] makes, cuts, heals and removes. Clients under load are processes too ([`load`]), and write down what
//! they saw; [`judge`] says whether that was right. Where namespaces cannot be made, what needs them is skipped,
//! with a line that says so.
//!
//! What must be right is asserted always. Limits of time and memory are printed always, and asserted where
//! measuring makes sense: with `ROUNDTABLE_LAB_STRICT=1`, and `ROUNDTABLE_LAB_BIN` naming a release binary.
//! `ROUNDTABLE_LAB_ROUNDS` repeats what goes in rounds.

mod backup;
mod bounds;
mod chaos;
mod command;
mod crash;
mod cut;
mod durable;
mod hostile;
mod judge;
mod load;
mod locks;
mod movement;
mod network;
mod process;
mod recovery;
mod start;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tempfile::TempDir;

use network::{Network, address};
use process::Process;

/// Longest that anything here may take that has no limit of its own; a limit, not a wait.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Where a node listens if nothing is said and nobody else is there.
const PORT: u16 = 7400;

/// The monotonic clock of this machine: the same in all processes.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(
        u64::try_from(time.tv_sec).expect("after the start"),
        u32::try_from(time.tv_nsec).expect("below 1e9"),
    )
}

/// How long ago that was.
fn since(moment: Duration) -> Duration {
    now().saturating_sub(moment)
}

/// Looks until the condition is met.
fn within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = now() + limit;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Tells a result, past the capture of the test harness.
fn say(text: &str) {
    // An error stream that is gone is no reason to fail.
    let _ = writeln!(std::io::stderr().lock(), "lab: {text}");
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// How often something is repeated that goes in rounds.
fn rounds(default: usize) -> usize {
    setting("ROUNDTABLE_LAB_ROUNDS").map_or(default, |rounds| rounds.parse().expect("a number of rounds"))
}

/// Tells a measured time, and, where measuring makes sense, holds it against its limit.
fn measured(what: &str, took: Duration, limit: Duration) {
    say(&format!("{what}: {:.3} s (limit {:.1} s)", took.as_secs_f64(), limit.as_secs_f64()));
    let strict = setting("ROUNDTABLE_LAB_STRICT").is_some();
    assert!(!strict || took <= limit, "{what} took {took:?}, the limit is {limit:?}");
}

/// How a command ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
    took: Duration,
}

/// One machine of the lab, or this machine.
#[derive(Debug)]
struct Host {
    namespace: Option<String>,
    runtime_dir: PathBuf,
}

/// Nodes on their machines.
#[derive(Debug)]
struct Lab {
    // In the order in which they are dropped: processes before their network, the right to use the machine last.
    nodes: BTreeMap<usize, Process>,
    ended: Vec<Process>,
    /// What is set in the environment of a node.
    environment: BTreeMap<usize, Vec<(&'static str, OsString)>>,
    /// How many seconds the clocks of a node are ahead of this machine's.
    clocks: BTreeMap<usize, u64>,
    hosts: Vec<Host>,
    network: Option<Network>,
    directory: TempDir,
    _turn: File,
}

impl Lab {
    /// So many machines on one bridge, each with an own user: node `i` runs on host `i`. Two more hosts,
    /// [`Lab::visitors`], are for clients. `None`: cannot be made here.
    fn bridge(nodes: usize) -> Option<Self> {
        let turn = turn();
        if let Some(missing) = Network::missing() {
            say(&format!("skipped: {missing}"));
            return None;
        }
        Some(Self::on(Some(Network::bridge(nodes + 2)), nodes + 2, turn))
    }

    /// One machine that has no network at all: all nodes run on host 0. `None`: cannot be made here.
    fn machine_without_network() -> Option<Self> {
        let turn = turn();
        if let Some(missing) = Network::missing() {
            say(&format!("skipped: {missing}"));
            return None;
        }
        Some(Self::on(Some(Network::loopback()), 1, turn))
    }

    /// This machine, for a user of its own: all nodes run on host 0.
    fn this_machine() -> Self {
        Self::on(None, 1, turn())
    }

    fn on(network: Option<Network>, hosts: usize, turn: File) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let host = |host: usize| Host {
            namespace: network.as_ref().map(|network| network.host(host)),
            runtime_dir: directory.path().join(format!("run{host}")),
        };
        let hosts = (0..hosts).map(host).collect();
        Self {
            nodes: BTreeMap::new(),
            ended: Vec::new(),
            environment: BTreeMap::new(),
            clocks: BTreeMap::new(),
            hosts,
            network,
            directory,
            _turn: turn,
        }
    }

    /// The two hosts without a node.
    fn visitors(&self) -> [usize; 2] {
        [self.hosts.len() - 2, self.hosts.len() - 1]
    }

    fn host_of(&self, node: usize) -> usize {
        if self.hosts.len() == 1 { 0 } else { node }
    }

    /// A command that runs on a host as its user.
    fn command(&self, host: usize, program: &Path) -> Command {
        let host = &self.hosts[host];
        let mut command = match &host.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let ours = |(name, _): (OsString, OsString)| {
            name.to_str().is_some_and(|name| name.starts_with("ROUNDTABLE_")).then_some(name)
        };
        for name in std::env::vars_os().filter_map(ours) {
            command.env_remove(name);
        }
        command.env("ROUNDTABLE_RUNTIME_DIR", &host.runtime_dir).env("NO_COLOR", "1");
        if let Some(log) = setting("ROUNDTABLE_LOG") {
            command.env("ROUNDTABLE_LOG", log);
        }
        command
    }

    fn roundtable(&self, host: usize) -> Command {
        self.command(host, Path::new(&binary()))
    }

    /// A node's own program: in a time namespace, if its clocks are not this machine's.
    fn node_command(&self, node: usize) -> Command {
        let host = self.host_of(node);
        let Some(ahead) = self.clocks.get(&node) else { return self.roundtable(host) };
        let mut command = self.command(host, Path::new("unshare"));
        let ahead = ahead.to_string();
        command.args(["-T", "--monotonic", &ahead, "--boottime", &ahead, "--"]).arg(binary());
        command
    }

    /// A place for a file.
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts node `i` with these flags. Does not wait for anything.
    fn up(&mut self, node: usize, flags: &[&str]) {
        assert!(!self.nodes.contains_key(&node), "node {node} runs");
        let mut command = self.node_command(node);
        command.arg("up").args(flags);
        command.envs(self.environment.get(&node).into_iter().flatten().map(|(name, value)| (name, value)));
        let output = self.file(&format!("node{node}-{}.log", self.ended.len()));
        self.nodes.insert(node, Process::spawn(command, &output));
    }

    /// Waits until node `i` is in a swarm; since its start.
    fn ready(&mut self, node: usize) -> Duration {
        let node = self.node(node);
        within(LIMIT, "the node has a swarm", || {
            let output = node.output();
            ["founded the swarm", "joined the swarm", "back in the swarm"]
                .iter()
                .any(|text| output.contains(text))
                .then_some(())
        });
        since(node.started)
    }

    fn node(&mut self, node: usize) -> &mut Process {
        self.nodes.get_mut(&node).unwrap_or_else(|| panic!("node {node} does not run"))
    }

    /// Waits until node `i` has written this; returns the line.
    fn says(&mut self, node: usize, text: &str) -> String {
        self.node(node).says(text, LIMIT)
    }

    /// The id of node `i`.
    fn id(&mut self, node: usize) -> String {
        let line = self.says(node, " listens on ");
        line.split(' ').nth(1).expect("node ID listens on").to_owned()
    }

    /// `kill -9`.
    fn kill(&mut self, node: usize) {
        let mut process = self.nodes.remove(&node).expect("it runs");
        process.signal(Signal::KILL);
        process.ended(LIMIT);
        self.ended.push(process);
    }

    /// `kill -9` of all nodes at the same time.
    fn kill_all(&mut self) {
        for process in self.nodes.values() {
            process.signal(Signal::KILL);
        }
        for (_, mut process) in std::mem::take(&mut self.nodes) {
            process.ended(LIMIT);
            self.ended.push(process);
        }
    }

    /// Asks node `i` to leave, as Ctrl-C and a service manager do; waits until it has.
    fn terminate(&mut self, node: usize) {
        // One that has only just been started does not listen to signals yet.
        self.ready(node);
        let mut process = self.nodes.remove(&node).expect("it runs");
        process.signal(Signal::TERM);
        let status = process.ended(LIMIT);
        self.ended.push(process);
        assert!(status.success(), "node {node} left with {status}");
    }

    /// Waits until node `i`, which has been told to leave, has ended well.
    fn gone(&mut self, node: usize) {
        let mut process = self.nodes.remove(&node).expect("it runs");
        let status = process.ended(LIMIT);
        self.ended.push(process);
        assert!(status.success(), "node {node} left with {status}");
    }

    /// Stops the process of node `i` where it is, as a suspended laptop does.
    fn pause(&mut self, node: usize) {
        self.node(node).signal(Signal::STOP);
    }

    /// Lets it go on.
    fn resume(&mut self, node: usize) {
        self.node(node).signal(Signal::CONT);
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("a lab with a network")
    }

    /// Nothing passes between these and those any more.
    fn cut(&self, these: &[usize], those: &[usize]) {
        self.network().cut_one_way(these, those);
        self.network().cut_one_way(those, these);
    }

    /// Nothing passes from these to those any more.
    fn cut_one_way(&self, from: &[usize], to: &[usize]) {
        self.network().cut_one_way(from, to);
    }

    /// So many of a hundred packets from and to these are lost.
    fn lose(&self, hosts: &[usize], percent: u32) {
        self.network().lose(hosts, percent);
    }

    /// Everything passes again.
    fn heal(&self) {
        self.network().heal();
    }

    /// Types a command on a host.
    fn cli(&self, host: usize, words: &[&str]) -> Said {
        let mut command = self.roundtable(host);
        command.args(words);
        Self::said(command)
    }

    /// `put` on a host, of what is in a file.
    fn put_file(&self, host: usize, key: &str, file: &Path) -> Said {
        let mut command = self.roundtable(host);
        command.args(["put", key, "-"]).stdin(File::open(file).expect("a file"));
        Self::said(command)
    }

    /// Runs a command to its end.
    fn said(mut command: Command) -> Said {
        let started = now();
        let output = command.output().expect("the binary runs");
        Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: since(started),
        }
    }

    /// `put` on the host of node `i`; must succeed.
    fn put(&self, node: usize, key: &str, value: &str) -> Said {
        let said = self.cli(self.host_of(node), &["put", key, value]);
        assert_eq!(said.code, Some(0), "{said:?}");
        said
    }

    /// `get` on the host of node `i`; must succeed.
    fn get(&self, node: usize, key: &str) -> String {
        let said = self.cli(self.host_of(node), &["get", key]);
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out
    }

    /// A command's answer as JSON; `None`: it failed.
    fn json(&self, host: usize, words: &[&str]) -> Option<Value> {
        let said = self.cli(host, &[words, &["--format", "json", "--timeout", "2s"]].concat());
        // `status` tells by its exit code that a partition has no quorum, and answers nevertheless.
        serde_json::from_str(&said.out).ok()
    }

    /// Who is in the swarm, as node `i` sees it; `None`: it does not answer.
    fn members(&self, node: usize) -> Option<Members> {
        let view = self.json(self.host_of(node), &["members"])?;
        let members = view["members"].as_array()?.iter().filter_map(|member| {
            let text = |name: &str| member[name].as_str().map(str::to_owned);
            let member = Member {
                state: text("state")?,
                weight: u32::try_from(member["weight"].as_u64()?).ok()?,
                on_ring: member["on_ring"].as_bool()?,
            };
            Some((text("node")?, member))
        });
        Some(Members { swarm: view["swarm"].as_str()?.to_owned(), members: members.collect() })
    }

    /// Waits until all nodes agree that exactly they are the swarm.
    fn agreed(&mut self, limit: Duration) {
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        let mut ids: Vec<String> = nodes.iter().map(|&node| self.id(node)).collect();
        ids.sort();
        let end = now() + limit;
        loop {
            // All at once: one that answers late does not make the others look late.
            let views: Vec<Option<Members>> = std::thread::scope(|scope| {
                let asked: Vec<_> = nodes
                    .iter()
                    .map(|&node| {
                        scope.spawn({
                            let lab = &*self;
                            move || lab.members(node)
                        })
                    })
                    .collect();
                asked.into_iter().map(|asked| asked.join().expect("asked")).collect()
            });
            let swarm = views.first().and_then(|view| Some(view.as_ref()?.swarm.clone()));
            let agree = views.iter().flatten().filter(|view| {
                let alive = view.members.iter().filter(|(_, member)| member.state == "alive");
                let mut alive: Vec<&String> = alive.map(|(id, _)| id).collect();
                alive.sort();
                let placed = view.members.iter().filter(|(_, member)| member.on_ring).count();
                Some(&view.swarm) == swarm.as_ref() && alive.iter().copied().eq(&ids) && placed == ids.len()
            });
            if agree.count() == nodes.len() {
                return;
            }
            assert!(now() < end, "no one view within {limit:?}: {views:#?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until all nodes agree who they are, and every partition is where it belongs.
    fn settled(&mut self) {
        self.agreed(LIMIT);
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        let replicas = nodes.len().min(roundtable::node::REPLICAS);
        let ids: Vec<(usize, String)> = nodes.iter().map(|&node| (node, self.id(node))).collect();
        within(LIMIT, "every partition has all its replicas and a leader", || {
            ids.iter()
                .all(|(node, id)| {
                    let Some(status) = self.json(self.host_of(*node), &["status", id]) else { return false };
                    let Some(held) = status["replicas"].as_array() else { return false };
                    let whole = |replica: &Value| {
                        let count = |name: &str| replica[name].as_array().map(Vec::len);
                        count("voters") == Some(replicas)
                            && count("learners") == Some(0)
                            && replica["leader"].is_string()
                    };
                    !held.is_empty() && held.iter().all(whole)
                })
                .then_some(())
        });
    }

    /// Starts the nodes `0..n` of an open swarm at once, and waits until all is in its place.
    fn open_swarm(nodes: usize, hosts: usize) -> Option<Self> {
        let mut lab = Self::bridge(hosts)?;
        for node in 0..nodes {
            lab.up(node, &["--lan", "--open"]);
        }
        lab.settled();
        Some(lab)
    }

    /// The addresses of the nodes that run.
    fn addresses(&self) -> Vec<String> {
        self.nodes.keys().map(|&node| format!("{}:{PORT}", address(node))).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (number, process) in self.ended.iter().enumerate() {
                say(&format!("-- output of ended process {number} --\n{}", process.output()));
            }
            for (number, process) in &self.nodes {
                say(&format!("-- output of node {number} --\n{}", process.output()));
            }
        }
    }
}

/// The program under test.
fn binary() -> String {
    setting("ROUNDTABLE_LAB_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_roundtable").to_owned())
}

/// Whether processes can have clocks of their own here.
fn has_time_namespaces() -> bool {
    let probe = Command::new("unshare").args(["-T", "--boottime", "1", "--", "true"]).output();
    probe.is_ok_and(|output| output.status.success())
}

/// A member as another sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    state: String,
    weight: u32,
    on_ring: bool,
}

/// A node's view of its swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Members {
    swarm: String,
    members: BTreeMap<String, Member>,
}

/// One lab of this user at a time on this machine, whichever processes run its tests: they measure.
fn turn() -> File {
    // Per user: one could not open another's.
    let user = rustix::process::geteuid().as_raw();
    let path = std::env::temp_dir().join(format!("roundtable-lab-{user}.lock"));
    let file = File::options().create(true).write(true).truncate(false).open(path).expect("a lock file");
    file.lock().expect("a lock");
    file
}
