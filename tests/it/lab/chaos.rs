//! One trouble after the other, drawn at random: whatever the clients saw, it was linearizable, and nothing that
//! was acknowledged is lost.
//!
//! Rounds of: a node is killed and a new one comes; one leaves and a new one comes; one stands still; the network
//! is cut, both ways or one way; packets of some hosts are lost; the link of one is slow. The clocks of the nodes are
//! up to a year apart. State is in memory, so a node is killed only when every partition has all its
//! replicas: two of three killed at once take their data along, rightly. `ROUNDTABLE_LAB_SEED` repeats a run.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};

use super::judge::Story;
use super::load::Work;
use super::{LIMIT, Lab, has_time_namespaces, now, rounds, say, setting, since, within};

const NODES: usize = 5;
/// What waits longer at a slow link is lost.
const SLOW_WAIT_MS: u32 = 400;
/// A crashed node is replaced at once, so that the next may crash.
const FLAGS: [&str; 4] = ["--lan", "--open", "--replace-after", "1s"];

#[test]
fn whatever_happens_nothing_is_lost_and_all_is_linearizable() {
    let seed = setting("ROUNDTABLE_LAB_SEED").map_or_else(rand::random, |seed| seed.parse().expect("a seed"));
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    say(&format!("ROUNDTABLE_LAB_SEED={seed}"));
    let mut rng = StdRng::seed_from_u64(seed);
    if has_time_namespaces() {
        // A clock that is read may not be set from outside, but it may have begun at any time.
        lab.clocks = (0..NODES).map(|node| (node, rng.random_range(0..365 * 86_400))).collect();
    } else {
        say("this kernel has no time namespaces: all clocks are one");
    }
    for node in 0..NODES {
        lab.up(node, &FLAGS);
    }
    lab.settled();
    let hosts = lab.visitors();
    let mut loads = hosts.map(|host| lab.load(host, &lab.addresses(), 8, Work::Mixed));
    for _ in 0..rounds(4) {
        let node = rng.random_range(0..NODES);
        let lasts = Duration::from_millis(rng.random_range(200..4_000));
        match rng.random_range(0..7) {
            0 => {
                say(&format!("node {node} is killed"));
                lab.settled();
                lab.kill(node);
                pass(lasts);
                lab.up(node, &FLAGS);
            }
            1 => {
                say(&format!("node {node} leaves"));
                lab.terminate(node);
                pass(lasts);
                lab.up(node, &FLAGS);
            }
            2 => {
                say(&format!("node {node} stands still for {lasts:?}"));
                lab.pause(node);
                pass(lasts);
                lab.resume(node);
            }
            3 => {
                let percent = rng.random_range(1..=20);
                let mut all: Vec<usize> = (0..NODES).chain(hosts).collect();
                all.shuffle(&mut rng);
                let some = &all[..rng.random_range(1..all.len())];
                say(&format!("{percent} % of the packets of {some:?} are lost for {lasts:?}"));
                lab.lose(some, percent);
                pass(lasts);
                lab.heal();
            }
            4 => {
                let kbit = rng.random_range(200..2_000);
                say(&format!("{kbit} kbit/s pass to node {node} for {lasts:?}"));
                lab.network().slow(node, kbit, SLOW_WAIT_MS);
                pass(lasts);
                let met = lab.network().fast(node);
                say(&format!("{met} times a packet had to wait"));
            }
            cut => {
                // The clients may be on either side, too.
                let mut all: Vec<usize> = (0..NODES).chain(hosts).collect();
                all.shuffle(&mut rng);
                let (some, others) = all.split_at(rng.random_range(1..all.len()));
                if cut == 5 {
                    say(&format!("{some:?} are cut from {others:?} for {lasts:?}"));
                    lab.cut(some, others);
                } else {
                    say(&format!("nothing passes from {some:?} to {others:?} for {lasts:?}"));
                    lab.cut_one_way(some, others);
                }
                pass(lasts);
                lab.heal();
            }
        }
        // At times the next comes at once.
        if rng.random_bool(0.5) {
            lab.agreed(LIMIT);
        }
    }
    lab.settled();
    for load in &mut loads {
        load.goes_on(500);
    }
    let mut story = Story::default();
    for load in loads {
        story.add(load.stop());
    }
    say(&format!("{} operations, {}/s; errors {:?}", story.len(), story.rate(), story.errors()));
    let at_the_end = lab.each_key(hosts[0], &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
}

fn pass(time: Duration) {
    let begin = now();
    within(LIMIT, "some time passes", || (since(begin) >= time).then_some(()));
}
