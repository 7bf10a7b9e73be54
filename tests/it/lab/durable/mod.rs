//! Nodes that keep everything on their disks: killed, stopped, started again, on disks that fail.

mod crash;
mod disk;
mod fault;
mod full;
mod many;
mod restart;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::{LIMIT, Lab, now, say, setting, since, within};

/// Finds its swarm by multicast DNS; who is in is what the directories remember.
const FLAGS: [&str; 2] = ["--lan", "--open"];

/// Where the replicas are: of each partition as each node sees it, the nodes that vote in its group.
type Places = BTreeMap<(usize, u64), Vec<String>>;

impl Lab {
    /// Starts the nodes `0..n` of an open swarm at once, each with a directory of its own, and waits until all is in
    /// its place.
    fn durable_swarm(nodes: usize) -> Option<Self> {
        let mut lab = Self::bridge(nodes)?;
        for node in 0..nodes {
            lab.up_durable(node);
        }
        lab.settled();
        Some(lab)
    }

    /// The directory of node `i`.
    fn data_dir(&self, node: usize) -> PathBuf {
        self.file(&format!("data{node}"))
    }

    /// Starts node `i` with its directory. Does not wait for anything.
    fn up_durable(&mut self, node: usize) {
        self.up_durable_with(node, &FLAGS);
    }

    fn up_durable_with(&mut self, node: usize, flags: &[&str]) {
        let dir = self.data_dir(node);
        let dir = dir.to_str().expect("a name");
        self.up(node, &[flags, &["--data-dir", dir]].concat());
    }

    /// Asks node `i` to stop, as a service manager does; how long it took.
    fn stop(&mut self, node: usize) -> Duration {
        // One that has only just been started does not listen to signals yet.
        self.ready(node);
        let asked = now();
        self.node(node).signal(Signal::TERM);
        self.gone(node);
        since(asked)
    }

    /// Where all replicas are, as every node sees those that it holds.
    fn places(&mut self) -> Places {
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        let mut places = Places::new();
        for node in nodes {
            let id = self.id(node);
            let status =
                within(LIMIT, "a node tells how it is", || self.json(self.host_of(node), &["status", &id]));
            for replica in status["replicas"].as_array().expect("replicas") {
                let voters = replica["voters"].as_array().expect("voters").iter();
                let mut voters: Vec<String> =
                    voters.map(|voter| voter.as_str().expect("an id").to_owned()).collect();
                voters.sort();
                places.insert((node, replica["partition"].as_u64().expect("a number")), voters);
            }
        }
        places
    }

    /// The ids of all nodes that run.
    fn ids(&mut self) -> BTreeMap<usize, String> {
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        nodes.into_iter().map(|node| (node, self.id(node))).collect()
    }

    /// The swarm, as node `i` sees it.
    fn swarm(&self, node: usize) -> String {
        within(LIMIT, "a node tells its swarm", || self.members(node)).swarm
    }

    /// How often some node that has run or runs said this.
    fn heard(&self, text: &str) -> usize {
        let said = |output: String| output.matches(text).count();
        self.ended.iter().chain(self.nodes.values()).map(|process| said(process.output())).sum()
    }
}

/// Everything about a swarm that a restart must not change.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    swarm: String,
    ids: BTreeMap<usize, String>,
    places: Places,
}

impl Standing {
    /// How it is now that all is in its place.
    fn of(lab: &mut Lab) -> Self {
        lab.settled();
        let node = *lab.nodes.keys().next().expect("a node");
        Self { swarm: lab.swarm(node), ids: lab.ids(), places: lab.places() }
    }

    /// It is again as it was, and nothing had to be made anew.
    fn assert_unchanged(&self, lab: &mut Lab) {
        let now = Self::of(lab);
        assert_eq!(self.swarm, now.swarm, "another swarm");
        assert_eq!(self.ids, now.ids, "other nodes");
        assert_eq!(self.places, now.places, "replicas have moved");
        assert_eq!(lab.heard("are made anew"), 0, "a disk that never failed has lost something");
    }
}

/// The seed of a run's chances, told so that the run can be repeated.
fn seed() -> u64 {
    let seed = setting("ROUNDTABLE_LAB_SEED").map_or_else(rand::random, |seed| seed.parse().expect("a seed"));
    say(&format!("ROUNDTABLE_LAB_SEED={seed}"));
    seed
}

/// Lets some time pass.
fn pass(time: Duration) {
    let begin = now();
    within(LIMIT, "some time passes", || (since(begin) >= time).then_some(()));
}
