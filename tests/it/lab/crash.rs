//! Nodes are killed under load: clients notice a pause and nothing else.

use std::time::Duration;

use super::judge::Story;
use super::load::{KEYS, Work};
use super::{Lab, measured, now, rounds, say};

/// From a `kill -9` until every key had a write acknowledged again.
const WRITABLE_LIMIT: Duration = Duration::from_millis(500);
const NODES: usize = 5;
const WRITERS: usize = 16;
/// Operations before and after what happens: enough for several on each key.
const SOME: usize = 2_000;

#[test]
fn a_killed_node_is_a_pause_and_nothing_else() {
    let Some(mut lab) = Lab::open_swarm(NODES, NODES) else { return };
    let mut slowest = Duration::ZERO;
    let rounds = rounds(1);
    let (mut story, mut at_the_end) = (Story::default(), Vec::new());
    for round in 0..rounds {
        let victim = (round + 1) % NODES;
        let host = lab.visitors()[0];
        let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
        load.goes_on(SOME);
        let before = now();
        lab.kill(victim);
        let killed = now();
        load.goes_on(SOME);
        let seen = load.stop();
        say(&format!("round {}: node {victim} killed; {} operations", round + 1, seen.len()));
        let mut this_round = Story::default();
        this_round.add(seen.clone());
        story.add(seen);
        let (pause, keys) = this_round.longest_pause(killed, WRITABLE_LIMIT);
        slowest = slowest.max(pause);
        say(&format!("{keys} of {KEYS} keys were written within {WRITABLE_LIMIT:?} of the kill"));
        measured("the longest that a key took no write", pause, WRITABLE_LIMIT);
        let (longest, which) = this_round.slowest_since(before);
        say(&format!(
            "the longest operation: {longest:.3?} ({which}); no write at all was acknowledged for {:.3?}; {}/s",
            this_round.longest_silence(before),
            this_round.rate()
        ));
        story.assert_no_error();
        at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
        story.assert_nothing_lost(&at_the_end);
        if round + 1 < rounds {
            lab.up(victim, &["--lan", "--open"]);
            lab.settled();
        }
    }
    story.assert_linearizable(&at_the_end);
    say(&format!("{rounds} nodes killed, one after the other: the longest pause was {slowest:.3?}"));
}
