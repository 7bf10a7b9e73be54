//! Nodes with data directories: all of them restarted, most of them lost for good, one stopped to come back. The
//! commands are run as a person runs them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use roundtable::client::Error;
use roundtable::id::{NodeId, PartitionId, Version};
use roundtable::node::{Node, NodeBuilder, StartError};
use serde_json::Value;
use tempfile::TempDir;

use super::swarm::{machine, on, settled, start, within};

/// A node of this machine that keeps everything under a name.
fn durable(machine: &TempDir, name: &str) -> NodeBuilder {
    on(machine).data_dir(machine.path().join(name)).partitions(16).replace_after(Duration::from_secs(3))
}

/// Starts it, as soon as the one that crashed has let go of the directory.
async fn start_again(machine: &TempDir, name: &str) -> Node {
    let started = async {
        loop {
            match durable(machine, name).start().await {
                Ok(node) => break node,
                Err(StartError::Data(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let node = within("the directory is free", started).await;
    within("the node has a swarm", node.ready()).await;
    node
}

/// The port at which a node of this machine listens.
fn port(node: &Node) -> u16 {
    let address = node.addresses().into_iter().next().unwrap();
    address.split('/').skip_while(|part| *part != "tcp").nth(1).unwrap().parse().unwrap()
}

/// By what they remember, each finds another one than it looks for.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_at_each_others_ports_find_each_other() {
    let machine = machine();
    let names = ["a", "b", "c"];
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(start(durable(&machine, name)).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    fill(&nodes[0], 0..20).await;
    let mut ports: Vec<u16> = nodes.iter().map(port).collect();
    for node in nodes {
        within("it stops", node.stop()).await;
    }
    ports.rotate_left(1);
    // They wait for their turn, so that each sees who was before it.
    let run = machine.path().join("run");
    let turn = File::create(run.join("default.founding")).unwrap();
    turn.lock().unwrap();
    let starting = names.iter().zip(ports).map(|(name, port)| start(durable(&machine, name).port(port)));
    let mut starting = Box::pin(futures::future::join_all(starting));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut starting).await.is_err());
    let is_node = |name: std::ffi::OsString| name.to_string_lossy().ends_with(".node");
    let registered =
        std::fs::read_dir(&run).unwrap().filter(|file| is_node(file.as_ref().unwrap().file_name()));
    assert_eq!(registered.count(), 0, "somebody did not wait");
    drop(turn);
    let nodes = starting.await;
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    read_all(&nodes[0], 0..20).await;
}

/// The partitions that a node holds, with the keys in each.
async fn holds(node: &Node) -> BTreeMap<PartitionId, u64> {
    let status = node.client().status(node.id()).await.unwrap();
    status.replicas.iter().map(|replica| (replica.partition, replica.keys)).collect()
}

async fn fill(node: &Node, keys: std::ops::Range<u32>) {
    let client = node.client();
    for key in keys {
        client.put(format!("key{key}"), key.to_string()).await.unwrap();
    }
}

/// Everything is there, as soon as there is a leader again.
async fn read_all(node: &Node, keys: std::ops::Range<u32>) {
    let client = node.client().with_patience(Duration::from_secs(20)).with_deadline(Duration::from_secs(20));
    for key in keys {
        let entry = client.get(format!("key{key}")).await.unwrap();
        assert_eq!(entry.unwrap().value, key.to_string().into_bytes());
    }
}

/// Runs a command on this machine.
async fn command(machine: &TempDir, line: &str) -> Output {
    let mut command = roundtable(machine);
    command.args(line.split_whitespace());
    let what = format!("roundtable {line}");
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    within(&what, ended).await.unwrap()
}

fn roundtable(machine: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundtable"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("ROUNDTABLE_")) {
            command.env_remove(name);
        }
    }
    command.arg("--runtime-dir").arg(machine.path().join("run")).stdin(Stdio::null());
    command
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json_lines(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_that_is_switched_off_comes_back_as_it_was() {
    let machine = machine();
    let names = ["a", "b", "c", "d"];
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(start(durable(&machine, name)).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let swarm = nodes[0].swarm();
    fill(&nodes[0], 0..100).await;
    nodes[1].client().increment("count", 7).await.unwrap();
    let version = nodes[0].client().get("key5").await.unwrap().unwrap().version;

    // By the switch at the wall, and by the book; in another order each time.
    for (round, order) in [[2, 0, 3, 1], [3, 2, 1, 0]].into_iter().enumerate() {
        let mut before = Vec::new();
        for node in &nodes {
            before.push((node.id(), holds(node).await.into_keys().collect::<Vec<_>>()));
        }
        if round == 0 {
            drop(nodes);
        } else {
            for node in nodes {
                within("it stops", node.stop()).await;
            }
        }
        let mut back: Vec<(usize, Node)> = Vec::new();
        for at in order {
            let node = start_again(&machine, names[at]).await;
            // From its own disk, before anybody could bring it anything.
            assert_eq!((node.id(), holds(&node).await.into_keys().collect::<Vec<_>>()), before[at]);
            back.push((at, node));
        }
        back.sort_by_key(|(at, _)| *at);
        nodes = back.into_iter().map(|(_, node)| node).collect();
        assert!(nodes.iter().all(|node| node.swarm() == swarm));
        read_all(&nodes[2], 0..100).await;
        settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
        for (node, before) in nodes.iter().zip(&before) {
            assert_eq!(holds(node).await.into_keys().collect::<Vec<_>>(), before.1, "a replica has moved");
        }
    }
    let client = nodes[3].client();
    assert_eq!(client.increment("count", 1).await.unwrap(), 8);
    assert_eq!(client.get("key5").await.unwrap().unwrap().version, version);
    assert!(client.put("key5", "5").await.unwrap() > version);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_two_of_three_are_gone_for_good_the_third_goes_on() {
    let machine = machine();
    let survivor = start(durable(&machine, "a")).await;
    let lost = start(durable(&machine, "b")).await;
    let gone = start(durable(&machine, "c")).await;
    settled(&[&survivor, &lost, &gone], 3).await;
    fill(&survivor, 0..60).await;
    let before = survivor.client().put("last", "word").await.unwrap();

    let output = command(&machine, "recover").await;
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("nothing to recover"), "{output:?}");

    let lost_id = lost.id();
    drop((lost, gone));
    let unlinked = async {
        while !survivor.client().status(survivor.id()).await.unwrap().links.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the links are cut", unlinked).await;
    let refused = within("put", survivor.client().put("key", "value")).await;
    assert!(matches!(refused, Err(Error::NoQuorum)), "{refused:?}");

    let output = command(&machine, "status").await;
    assert_eq!(code(&output), Some(5), "{output:?}");
    let said = text(&output.stdout);
    assert!(
        said.contains("partitions 0-15: voters") && said.contains("..") && said.contains("missing"),
        "{said}"
    );
    let short = lost_id.short();
    assert!(said.contains(&format!("..{short} at 127.0.0.1:")), "{said}");

    // Explained, and not done.
    let output = command(&machine, "recover").await;
    let said = text(&output.stdout);
    assert_eq!(code(&output), Some(5), "{output:?}");
    assert!(said.contains("partitions 0-15 (16): no quorum") && said.contains("the freshest"), "{said}");
    assert!(said.contains(&format!("missing   ..{short}")) && said.contains("First try to bring"), "{said}");
    assert!(text(&output.stderr).contains("nothing was changed"), "{output:?}");
    assert!(survivor.client().put("key", "value").await.is_err());

    // One partition, then all.
    let output = command(&machine, "recover --force --partition 3 --format json").await;
    assert_eq!(code(&output), Some(0), "{output:?}");
    let lines = json_lines(&output);
    assert_eq!(lines[0]["groups"][0]["partitions"], serde_json::json!([3]));
    assert_eq!((&lines[1]["event"], &lines[1]["partition"]), (&"recovered".into(), &3.into()));
    assert_eq!((&lines[2]["event"], &lines[2]["serving"]), (&"done".into(), &1.into()));
    let output = command(&machine, "recover --force").await;
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("15 partitions serve again"), "{output:?}");
    let output = command(&machine, "status").await;
    assert_eq!(code(&output), Some(0), "{output:?}");

    read_all(&survivor, 0..60).await;
    let after = survivor.client().put("last", "again").await.unwrap();
    assert!(after > before && after > Version(1 << 40), "{before:?} {after:?}");
    fill(&survivor, 60..70).await;

    // A new one joins.
    let newcomer = start(durable(&machine, "d")).await;
    settled(&[&survivor, &newcomer], 2).await;
    read_all(&newcomer, 0..70).await;

    // One that was lost comes back after all, as who it was, and takes over what is there now.
    let back = start_again(&machine, "b").await;
    assert_eq!(back.id(), lost_id);
    settled(&[&survivor, &newcomer, &back], 3).await;
    read_all(&back, 0..70).await;
    drop(survivor);
    read_all(&back, 0..70).await;
    assert_eq!(back.client().get("last").await.unwrap().unwrap().version, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_everywhere_begins_anew_only_if_told_to() {
    let machine = machine();
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(start(on(&machine).partitions(16)).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let survivor = nodes.remove(0);
    fill(&survivor, 0..60).await;
    // A follower hears last that a write is committed.
    let held = within("the survivor has all of what it holds", async {
        loop {
            let held = holds(&survivor).await;
            let mut fullest = held.clone();
            for node in &nodes {
                for (partition, keys) in holds(node).await {
                    fullest.entry(partition).and_modify(|fullest| *fullest = keys.max(*fullest));
                }
            }
            if held == fullest {
                break held;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let kept: u64 = held.values().sum();
    assert!(held.len() < 16 && kept < 60);
    drop(nodes);

    let output = command(&machine, "recover --force --format json").await;
    assert_eq!(code(&output), Some(5), "{output:?}");
    let lines = json_lines(&output);
    let groups = lines[0]["groups"].as_array().unwrap();
    let lost = groups.iter().find(|group| group["condition"] == "lost").unwrap();
    assert_eq!(lost["heir"], survivor.id().to_string());
    let done = lines.last().unwrap();
    assert_eq!((&done["serving"], &done["remaining"]), (&held.len().into(), &lost["partitions"]));
    let keys = async |node: &Node| holds(node).await.values().sum::<u64>();
    assert_eq!(keys(&survivor).await, kept);

    let output = command(&machine, "recover --force").await;
    assert_eq!(code(&output), Some(5), "{output:?}");
    assert!(text(&output.stderr).contains("--abandon-lost"), "{output:?}");
    let output = command(&machine, "recover --force --abandon-lost").await;
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("begins with nothing"), "{output:?}");
    assert_eq!((holds(&survivor).await.len(), keys(&survivor).await), (16, kept));
    fill(&survivor, 0..60).await;
    read_all(&survivor, 0..60).await;
}

/// A node in a process of its own.
struct Up {
    child: Child,
    node: NodeId,
    output: BufReader<std::process::ChildStdout>,
}

impl Up {
    fn start(machine: &TempDir, flags: &str) -> Self {
        let mut command = roundtable(machine);
        command.arg("up").args(flags.split_whitespace());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let first = line_with(&mut output, "listens on");
        let node = first.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self { child, node, output }
    }

    fn says(&mut self, what: &str) {
        line_with(&mut self.output, what);
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // One that has ended already is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn line_with(output: &mut impl BufRead, what: &str) -> String {
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended before it said {what:?}");
    }
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_to_come_back_says_when_it_is_gone() {
    let machine = machine();
    let directory = |name| format!("--partitions 8 --data-dir {}", machine.path().join(name).display());
    let mut first = Up::start(&machine, &directory("a"));
    first.says("founded");
    let mut second = Up::start(&machine, &directory("b"));
    second.says("joined");
    assert_eq!(code(&command(&machine, "put greeting hello").await), Some(0));

    // Which of them?
    let output = command(&machine, "leave --restart").await;
    assert_eq!(code(&output), Some(2), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("which one should stop") && said.contains(&second.node.short()), "{said}");

    for (round, node) in [&mut first, &mut second].into_iter().enumerate() {
        let line = format!("leave --restart {}{}", node.node, [" --format json", ""][round]);
        let output = command(&machine, &line).await;
        assert_eq!(code(&output), Some(0), "{output:?}");
        let said = text(&output.stdout);
        if round == 0 {
            let events: Vec<_> = json_lines(&output).iter().map(|line| line["event"].clone()).collect();
            assert_eq!(events, ["stopping", "stopped"]);
        } else {
            assert!(said.contains("hands over what it leads") && said.contains("has ended"), "{said}");
        }
        node.says("stopping: asked to restart");
        assert!(node.child.wait().unwrap().success());
        let id = node.node;
        *node = Up::start(&machine, &directory(["a", "b"][round]));
        assert_eq!(node.node, id);
        node.says("back in the swarm");
    }
    let output = command(&machine, "get greeting --timeout 20s").await;
    assert_eq!((code(&output), text(&output.stdout)), (Some(0), "hello".to_owned()), "{output:?}");

    // One that could not come back is not stopped.
    let mut fleeting = Up::start(&machine, "");
    fleeting.says("joined");
    for format in ["", " --format json"] {
        let output = command(&machine, &format!("leave --restart {}{format}", fleeting.node)).await;
        assert_eq!(code(&output), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("keeps nothing on disk") && said.contains("let it leave instead"), "{said}");
    }
    let output = command(&machine, &format!("leave {}", fleeting.node)).await;
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("has left"), "{output:?}");
    fleeting.says("left");
    assert!(fleeting.child.wait().unwrap().success());
}
