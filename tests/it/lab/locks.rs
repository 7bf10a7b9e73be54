//! Contenders for one lock, in processes of their own, while nodes are killed, paused, cut off, join and leave,
//! and while the contenders themselves stand still for longer than their leases.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roundtable::client::{Client, Error};
use roundtable::id::{FencingToken, Version};
use roundtable::net::Net;
use roundtable::node::Visitor;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::process::Process;
use super::{LIMIT, Lab, now, rounds, say, setting, since, within};
use crate::checker::locks::{Section, violations};

/// Where a contender finds what to do.
const PLAN: &str = "ROUNDTABLE_TEST_CONTENDER";
const NODES: usize = 5;
const FLAGS: [&str; 4] = ["--lan", "--open", "--replace-after", "1s"];
const LEASE: Duration = Duration::from_secs(2);
/// Contenders in each of the processes.
const CONTENDERS: usize = 4;
/// Processes on each of the two hosts for clients.
const PROCESSES: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    join: Vec<String>,
    runtime_dir: PathBuf,
    output: PathBuf,
    /// Whether the store is told the tokens.
    fenced: bool,
}

/// Contenders at work.
#[derive(Debug)]
struct Contenders {
    process: Process,
    output: PathBuf,
}

impl Lab {
    fn contend(&self, host: usize, join: &[String], fenced: bool) -> Contenders {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let plan = Plan {
            join: join.to_vec(),
            runtime_dir: self.file(&format!("contender{number}.run")),
            output: self.file(&format!("contender{number}.history")),
            fenced,
        };
        let program = std::env::current_exe().expect("a program");
        let mut command = self.command(host, &program);
        command.args(["--exact", "lab::locks::contender", "--nocapture"]);
        command.env(PLAN, serde_json::to_string(&plan).expect("a plan"));
        File::create(&plan.output).expect("a file");
        let process = Process::spawn(command, &self.file(&format!("contender{number}.log")));
        Contenders { process, output: plan.output }
    }
}

impl Contenders {
    fn seen(&self) -> Vec<Section> {
        let text = std::fs::read_to_string(&self.output).expect("a history");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of a history")).collect()
    }

    fn goes_on(&self, sections: usize) {
        let before = self.seen().len();
        within(LIMIT, "the contenders go on", || (self.seen().len() >= before + sections).then_some(()));
    }

    fn stop(mut self) -> Vec<Section> {
        self.process.close_input();
        let status = self.process.ended(LIMIT);
        assert!(status.success(), "a contender failed ({status}): {}", self.process.output());
        self.seen()
    }
}

/// No test of its own: what a [`Contenders`] runs in another process.
#[test]
fn contender() {
    let Some(plan) = setting(PLAN) else { return };
    let plan: Plan = serde_json::from_str(&plan).expect("a plan");
    let stopped = Arc::new(AtomicBool::new(false));
    {
        let stopped = Arc::clone(&stopped);
        // The end of its input ends it, and so does the end of the test that started it.
        std::thread::spawn(move || {
            drop(std::io::stdin().read_to_end(&mut Vec::new()));
            stopped.store(true, Ordering::Relaxed);
        });
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let visitor = Visitor::builder().runtime_directory(&plan.runtime_dir).join(&plan.join).timeout(LIMIT);
        let visitor = visitor.connect().await.expect("a swarm");
        let log = Arc::new(Mutex::new(File::options().append(true).open(&plan.output).expect("a file")));
        let mut tasks = JoinSet::new();
        for _ in 0..CONTENDERS {
            let (client, stopped, log) = (visitor.client(), Arc::clone(&stopped), Arc::clone(&log));
            tasks.spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    let Some(section) = section(&client, plan.fenced).await else { continue };
                    let mut line = serde_json::to_vec(&section).expect("a line");
                    line.push(b'\n');
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.write_all(&line).expect("the history is written");
                }
            });
        }
        tasks.join_all().await;
        visitor.close().await;
    });
}

/// One critical section of a holder that looks at nothing while it is inside: the store alone protects it.
async fn section(client: &Client<Net>, fenced: bool) -> Option<Section> {
    let asked = now();
    let guard = client.lock("lock").lease(LEASE).wait(Duration::from_secs(20)).acquire().await.ok()?;
    let granted = now();
    let token = guard.token();
    let entered = write(client, token, fenced).await;
    let stay = Duration::from_millis(rand::rng().random_range(0..15));
    tokio::time::sleep(stay).await;
    let left = write(client, token, fenced).await;
    let lost = !guard.is_held();
    // Should that fail, the lease ends by itself.
    drop(guard.release().await);
    Some(Section {
        token,
        asked,
        granted,
        fenced: [&entered, &left].iter().any(|write| matches!(write, Err(Error::Fenced { .. }))),
        entered: entered.ok(),
        left: left.ok(),
        lost,
    })
}

async fn write(client: &Client<Net>, token: FencingToken, fenced: bool) -> Result<Version, Error> {
    if fenced {
        client.put_fenced("guarded", token.to_string(), token).await
    } else {
        client.put("guarded", token.to_string()).await
    }
}

#[test]
fn sections_under_a_lock_are_one_after_the_other_whatever_happens() {
    let seed = setting("ROUNDTABLE_LAB_SEED").map_or_else(rand::random, |seed| seed.parse().expect("a seed"));
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    say(&format!("ROUNDTABLE_LAB_SEED={seed}"));
    let mut rng = StdRng::seed_from_u64(seed);
    for node in 0..NODES {
        lab.up(node, &FLAGS);
    }
    lab.settled();
    let hosts = lab.visitors();
    let all: Vec<Contenders> = hosts
        .iter()
        .flat_map(|host| std::iter::repeat_n(*host, PROCESSES))
        .map(|host| lab.contend(host, &lab.addresses(), true))
        .collect();
    for contenders in &all {
        contenders.goes_on(5);
    }
    for round in 0..rounds(6) {
        let node = rng.random_range(0..NODES);
        let lasts = Duration::from_millis(rng.random_range(500..4_000));
        // Each of them once, then as it comes.
        match if round < 6 { round } else { rng.random_range(0..6) } {
            0 => {
                say("a process of contenders stands still for longer than its lease");
                let paused = &all[rng.random_range(0..all.len())];
                paused.process.signal(Signal::STOP);
                pass(LEASE + lasts);
                paused.process.signal(Signal::CONT);
            }
            1 => {
                say(&format!("node {node} is killed"));
                lab.settled();
                lab.kill(node);
                pass(lasts);
                lab.up(node, &FLAGS);
            }
            2 => {
                say(&format!("node {node} leaves"));
                lab.terminate(node);
                pass(lasts);
                lab.up(node, &FLAGS);
            }
            3 => {
                say(&format!("node {node} stands still for {lasts:?}"));
                lab.pause(node);
                pass(lasts);
                lab.resume(node);
            }
            4 => {
                say(&format!("node {node} is cut off for {lasts:?}"));
                let others: Vec<usize> = (0..NODES).chain(hosts).filter(|other| *other != node).collect();
                lab.cut(&[node], &others);
                pass(lasts);
                lab.heal();
            }
            _ => {
                say(&format!("nothing passes from node {node} for {lasts:?}"));
                let others: Vec<usize> = (0..NODES).chain(hosts).filter(|other| *other != node).collect();
                lab.cut_one_way(&[node], &others);
                pass(lasts);
                lab.heal();
            }
        }
        for contenders in &all {
            contenders.goes_on(1);
        }
    }
    let sections: Vec<Section> = all.into_iter().flat_map(Contenders::stop).collect();
    let count = |what: fn(&Section) -> bool| sections.iter().filter(|section| what(section)).count();
    say(&format!(
        "{} sections, {} refused by the store, {} lost",
        sections.len(),
        count(|section| section.fenced),
        count(|section| section.lost),
    ));
    let found = violations(&sections);
    assert!(found.is_empty(), "{found:#?}");
}

/// The instrument itself: without tokens, holders that stand still past their leases are caught.
#[test]
fn without_tokens_the_judge_finds_the_overlap() {
    let Some(mut lab) = Lab::bridge(1) else { return };
    lab.up(0, &FLAGS);
    lab.settled();
    let hosts = lab.visitors();
    let all = hosts.map(|host| lab.contend(host, &lab.addresses(), false));
    let overlaps = || {
        let sections: Vec<Section> = all.iter().flat_map(Contenders::seen).collect();
        violations(&sections).iter().any(|one| one.contains("overlap")).then_some(())
    };
    within(LIMIT, "a holder is stopped within its section", || {
        for contenders in &all {
            contenders.goes_on(3);
        }
        all[0].process.signal(Signal::STOP);
        pass(LEASE * 3 / 2);
        all[0].process.signal(Signal::CONT);
        pass(Duration::from_millis(300));
        overlaps()
    });
    for contenders in all {
        contenders.stop();
    }
}

fn pass(time: Duration) {
    let begin = now();
    within(LIMIT, "some time passes", || (since(begin) >= time).then_some(()));
}
