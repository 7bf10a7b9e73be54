//! Nodes are killed again and again, one or all at once, and come back with what is on their disks: nothing that was
//! acknowledged is lost, nothing happens twice, and nothing moves.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};

use super::super::judge::Story;
use super::super::load::Work;
use super::{Lab, Standing, now, pass, say, seed, since};
use crate::lab::rounds;

const NODES: usize = 3;
const WRITERS: usize = 16;
/// After so many kills the swarm is looked at while nothing happens, and the clients are new ones.
const KILLS_IN_A_ROW: usize = 10;
/// Operations that must return before the next kill.
const SOME: usize = 400;

#[test]
fn nodes_killed_at_any_moment_lose_nothing() {
    let mut rng = StdRng::seed_from_u64(seed());
    let Some(mut lab) = Lab::durable_swarm(NODES) else { return };
    let standing = Standing::of(&mut lab);
    let host = lab.visitors()[0];
    let kills = rounds(5);
    let (mut story, mut of_all) = (Story::default(), 0);
    let begin = now();
    for part in (0..kills).step_by(KILLS_IN_A_ROW) {
        let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
        for kill in part..kills.min(part + KILLS_IN_A_ROW) {
            load.goes_on(SOME);
            pass(Duration::from_millis(rng.random_range(0..400)));
            // The short form tries both as well.
            if kill % 4 == 2 || rng.random_ratio(1, 8) {
                of_all += 1;
                everybody(&mut lab, &mut rng);
            } else {
                one(&mut lab, &standing, &mut rng);
            }
            // At times the next comes before this one is back in its place.
            if rng.random_bool(0.5) {
                lab.settled();
            }
        }
        standing.assert_unchanged(&mut lab);
        load.goes_on(SOME);
        story.add(load.stop());
        say(&format!("{} of {kills} kills, {} operations", kills.min(part + KILLS_IN_A_ROW), story.len()));
    }
    let mut at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    // And what the memory of the nodes holds is on their disks.
    everybody(&mut lab, &mut rng);
    standing.assert_unchanged(&mut lab);
    let from_disk = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&from_disk);
    at_the_end.extend(from_disk);
    say(&format!(
        "{kills} kills, {of_all} of them of all nodes, in {:.0?}: {} operations, {} acknowledged writes, {}/s; \
         records that were cut off {}; errors {:?}",
        since(begin),
        story.len(),
        story.acknowledged(),
        story.rate(),
        lab.heard("was not finished and is cut off"),
        story.errors(),
    ));
    story.assert_linearizable(&at_the_end);
}

/// Kills a node and starts it again after a while; nobody takes its place meanwhile.
fn one(lab: &mut Lab, standing: &Standing, rng: &mut StdRng) {
    let victim = rng.random_range(0..NODES);
    lab.kill(victim);
    pass(Duration::from_millis(rng.random_range(0..1_500)));
    for ((node, partition), voters) in lab.places() {
        assert_eq!(voters, standing.places[&(node, partition)], "partition {partition} moved");
    }
    lab.up_durable(victim);
    lab.ready(victim);
}

/// Kills all nodes at once and starts them in any order.
fn everybody(lab: &mut Lab, rng: &mut StdRng) {
    lab.kill_all();
    let mut order: Vec<usize> = (0..NODES).collect();
    order.shuffle(rng);
    for node in order {
        pass(Duration::from_millis(rng.random_range(0..400)));
        lab.up_durable(node);
    }
    for node in 0..NODES {
        lab.ready(node);
    }
}
