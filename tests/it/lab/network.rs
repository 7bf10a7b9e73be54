//! Machines on a network, made of network namespaces: nothing of it touches the real network of this machine.
//!
//! Each host is a namespace with one interface, `10.77.0.<host + 1>/24`, on a bridge in one more namespace. The
//! bridge's own packet filter is what cuts and heals: connections on either side just see silence.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Networks made by this process so far: part of their names.
static MADE: AtomicU32 = AtomicU32::new(0);

/// The network; it is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Network {
    prefix: String,
    hosts: usize,
}

impl Network {
    /// What is missing here to make one, if anything is.
    pub(super) fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces take root".to_owned());
        }
        for tool in ["ip", "nft", "tc"] {
            let found = Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if found.is_err() {
                return Some(format!("`{tool}` is not installed"));
            }
        }
        let probe = Network::named(0);
        let made = attempt(&["ip", "netns", "add", &probe.switch()])
            && attempt(&["ip", "-n", &probe.switch(), "link", "add", "br0", "type", "bridge"])
            && filter(&probe.switch(), FILTER);
        (!made).then(|| "this kernel or container makes no network namespaces and bridges".to_owned())
    }

    /// So many hosts on one bridge.
    pub(super) fn bridge(hosts: usize) -> Self {
        let network = Self::named(hosts);
        let switch = network.switch();
        run(&["ip", "netns", "add", &switch]);
        run(&[
            "ip",
            "-n",
            &switch,
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
            "forward_delay",
            "0",
        ]);
        run(&["ip", "-n", &switch, "link", "set", "br0", "up"]);
        for host in 0..hosts {
            let (name, port, address) = (network.host(host), port(host), format!("{}/24", address(host)));
            run(&["ip", "netns", "add", &name]);
            run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
            run(&[
                "ip", "link", "add", "eth0", "netns", &name, "type", "veth", "peer", "name", &port, "netns",
                &switch,
            ]);
            run(&["ip", "-n", &switch, "link", "set", &port, "master", "br0"]);
            run(&["ip", "-n", &switch, "link", "set", &port, "up"]);
            run(&["ip", "-n", &name, "addr", "add", &address, "dev", "eth0"]);
            run(&["ip", "-n", &name, "link", "set", "eth0", "up"]);
            run(&["ip", "-n", &name, "route", "add", "default", "dev", "eth0"]);
        }
        assert!(filter(&switch, FILTER), "no packet filter on the bridge");
        network
    }

    /// One host with a loopback interface and nothing else.
    pub(super) fn loopback() -> Self {
        let network = Self::named(1);
        run(&["ip", "netns", "add", &network.host(0)]);
        run(&["ip", "-n", &network.host(0), "link", "set", "lo", "up"]);
        network
    }

    /// The namespace of a host.
    pub(super) fn host(&self, host: usize) -> String {
        format!("{}h{host}", self.prefix)
    }

    /// Gives a host one more address.
    pub(super) fn add_address(&self, host: usize, address: &str) {
        run(&["ip", "-n", &self.host(host), "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
    }

    /// Lets nothing pass from these to those.
    pub(super) fn cut_one_way(&self, from: &[usize], to: &[usize]) {
        let set = |hosts: &[usize]| hosts.iter().map(|&host| port(host)).collect::<Vec<_>>().join(", ");
        let (from, to) = (set(from), set(to));
        let rule = format!("add rule bridge cut f iifname {{ {from} }} oifname {{ {to} }} counter drop\n");
        assert!(filter(&self.switch(), &rule), "cannot cut: {rule}");
    }

    /// Loses so many of a hundred packets that go from or to these, each by chance.
    pub(super) fn lose(&self, hosts: &[usize], percent: u32) {
        let ports = hosts.iter().map(|&host| port(host)).collect::<Vec<_>>().join(", ");
        for side in ["iifname", "oifname"] {
            let chance = format!("numgen random mod 100 < {percent}");
            let rule = format!("add rule bridge cut f {side} {{ {ports} }} {chance} counter drop\n");
            assert!(filter(&self.switch(), &rule), "cannot lose: {rule}");
        }
    }

    /// Lets no more than so much pass to a host, and what has to wait wait for so long at most; then it is lost.
    pub(super) fn slow(&self, host: usize, kbit: u32, wait_ms: u32) {
        let (switch, port) = (self.switch(), port(host));
        let (rate, wait) = (format!("{kbit}kbit"), format!("{wait_ms}ms"));
        run(&[
            "tc", "-n", &switch, "qdisc", "replace", "dev", &port, "root", "tbf", "rate", &rate, "burst",
            "16kb", "latency", &wait,
        ]);
    }

    /// Lets what goes to a host pass as fast as it can again; packets that had to wait or were lost meanwhile.
    pub(super) fn fast(&self, host: usize) -> u64 {
        let (switch, port) = (self.switch(), port(host));
        let words = ["-n", &switch, "-s", "qdisc", "show", "dev", &port, "root"];
        let output = Command::new("tc").args(words).output().expect("the tool runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        run(&["tc", "-n", &switch, "qdisc", "del", "dev", &port, "root"]);
        // "... (dropped 1, overlimits 2 requeues 0)"
        let count = told.split("overlimits ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        count.unwrap_or_else(|| panic!("no count in {told:?}"))
    }

    /// Packets that the cuts which are in force have kept back.
    pub(super) fn kept_back(&self) -> u64 {
        let switch = self.switch();
        let words = ["netns", "exec", switch.as_str(), "nft", "list", "chain", "bridge", "cut", "f"];
        let output = Command::new("ip").args(words).output().expect("the tool runs");
        assert!(output.status.success(), "the cuts are not told: {output:?}");
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let counts =
            listed.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// Lets everything pass again.
    pub(super) fn heal(&self) {
        assert!(filter(&self.switch(), "flush chain bridge cut f\n"), "cannot heal");
    }

    fn named(hosts: usize) -> Self {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self { prefix: format!("rt{}x{number}", std::process::id()), hosts }
    }

    fn switch(&self) -> String {
        format!("{}sw", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..self.hosts).map(|host| self.host(host)).chain([self.switch()]) {
            attempt(&["ip", "netns", "del", &name]);
        }
    }
}

const FILTER: &str =
    "table bridge cut {\n chain f {\n  type filter hook forward priority 0; policy accept;\n }\n}\n";

/// Where a host is.
pub(super) fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// Its interface at the bridge.
fn port(host: usize) -> String {
    format!("v{host}")
}

fn attempt(words: &[&str]) -> bool {
    let command =
        Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the tool runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn filter(namespace: &str, rules: &str) -> bool {
    let nft = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut nft) = nft else { return false };
    let written = nft.stdin.take().is_some_and(|mut stdin| stdin.write_all(rules.as_bytes()).is_ok());
    nft.wait().is_ok_and(|status| status.success()) && written
}
