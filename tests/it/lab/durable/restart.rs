//! Nodes are stopped and started in peace: a rolling restart that nobody notices, and a whole swarm that is switched
//! off and on.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};

use super::super::judge::Story;
use super::super::load::Work;
use super::{FLAGS, LIMIT, Lab, Standing, now, pass, say, seed, since, within};
use crate::lab::network::address;
use crate::lab::{measured, rounds};

const WRITERS: usize = 16;
/// Operations between one restart and the next.
const SOME: usize = 1_000;
/// The longest that an operation may take while nodes are restarted one after the other.
const PAUSE_LIMIT: Duration = Duration::from_secs(1);

/// Restarts five nodes one after the other under load, each as soon as the one before serves.
fn rolling(stop: impl Fn(&mut Lab, usize)) {
    const NODES: usize = 5;
    let Some(mut lab) = Lab::durable_swarm(NODES) else { return };
    let standing = Standing::of(&mut lab);
    let host = lab.visitors()[0];
    let mut story = Story::default();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds(1) {
        let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
        load.goes_on(SOME);
        let begin = now();
        for node in 0..NODES {
            let asked = now();
            stop(&mut lab, node);
            let stopped = since(asked);
            lab.up_durable(node);
            lab.settled();
            say(&format!(
                "node {node} stopped within {stopped:.2?} and was back in its place after {:.2?}",
                since(asked)
            ));
            load.goes_on(SOME);
        }
        let mut this_round = Story::default();
        let seen = load.stop();
        this_round.add(seen.clone());
        story.add(seen);
        let (longest, which) = this_round.slowest_since(begin);
        slowest = slowest.max(longest);
        say(&format!(
            "round {}: {} operations, {}/s; the longest took {longest:.3?} ({which}); no write at all was \
             acknowledged for {:.3?}; errors {:?}",
            round + 1,
            this_round.len(),
            this_round.rate(),
            this_round.longest_silence(begin),
            this_round.errors(),
        ));
        this_round.assert_no_error();
        standing.assert_unchanged(&mut lab);
    }
    measured("the longest operation in a rolling restart", slowest, PAUSE_LIMIT);
    let at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
}

#[test]
fn a_rolling_restart_by_signals_fails_no_operation() {
    rolling(|lab, node| {
        lab.stop(node);
    });
}

#[test]
fn a_rolling_restart_by_command_fails_no_operation() {
    rolling(|lab, node| {
        let said = lab.cli(node, &["leave", "--restart"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        lab.gone(node);
    });
}

/// Writes, ends all nodes, starts them in any order, reads.
#[derive(Debug)]
struct Switched {
    lab: Lab,
    standing: Standing,
    story: Story,
    rng: StdRng,
}

impl Switched {
    const NODES: usize = 5;

    fn on() -> Option<Self> {
        let rng = StdRng::seed_from_u64(seed());
        let mut lab = Lab::durable_swarm(Self::NODES)?;
        let standing = Standing::of(&mut lab);
        Some(Self { lab, standing, story: Story::default(), rng })
    }

    fn write(&mut self) {
        let host = self.lab.visitors()[0];
        let mut load = self.lab.load(host, &self.lab.addresses(), WRITERS, Work::Mixed);
        load.goes_on(SOME);
        self.story.add(load.stop());
        self.story.assert_no_error();
    }

    /// Starts all nodes with these flags, in any order, the last one later than the others.
    fn start(&mut self, flags: impl Fn(usize) -> Vec<&'static str>, late: Duration) {
        let mut order: Vec<usize> = (0..Self::NODES).collect();
        order.shuffle(&mut self.rng);
        let begin = now();
        let last = order.pop();
        for node in order {
            pass(Duration::from_millis(self.rng.random_range(0..300)));
            self.lab.up_durable_with(node, &flags(node));
        }
        if !late.is_zero() {
            // Without the last one all can be served.
            let found = within(LIMIT, "a node answers", || {
                let node = *self.lab.nodes.keys().next()?;
                let said = self.lab.cli(node, &["put", "while/one/is/missing", "yes", "--timeout", "10s"]);
                (said.code == Some(0)).then_some(since(begin))
            });
            say(&format!("four of five serve {found:.2?} after the first was started"));
            pass(late);
        }
        if let Some(node) = last {
            self.lab.up_durable_with(node, &flags(node));
        }
        self.lab.settled();
        say(&format!("five nodes are in their places {:.2?} after the first was started", since(begin)));
    }

    fn check(&mut self) {
        self.standing.assert_unchanged(&mut self.lab);
        let host = self.lab.visitors()[0];
        let read = self.lab.each_key(host, &self.lab.addresses(), Work::ReadEachOnce);
        self.story.assert_nothing_lost(&read);
        self.story.assert_linearizable(&read);
    }
}

#[test]
fn a_whole_swarm_is_stopped_and_started() {
    let Some(mut swarm) = Switched::on() else { return };
    for round in 0..rounds(1) {
        swarm.write();
        // One after the other, so that the last ones are alone.
        for node in 0..Switched::NODES {
            let took = swarm.lab.stop(node);
            say(&format!("round {}: node {node} stopped within {took:.2?}", round + 1));
        }
        swarm.start(|_| FLAGS.to_vec(), Duration::ZERO);
        swarm.check();
    }
}

#[test]
fn a_whole_swarm_is_killed_and_started_and_one_node_comes_late() {
    let Some(mut swarm) = Switched::on() else { return };
    for _ in 0..rounds(1) {
        swarm.write();
        swarm.lab.kill_all();
        swarm.start(|_| FLAGS.to_vec(), Duration::from_secs(5));
        swarm.check();
    }
}

#[test]
fn a_whole_swarm_comes_back_at_other_ports() {
    let Some(mut swarm) = Switched::on() else { return };
    swarm.write();
    swarm.lab.kill_all();
    // By what they remember of each other they find nobody: by multicast DNS they do.
    let moved = |node| [&FLAGS[..], &["--port", ["7501", "7502", "7503", "7504", "7505"][node]]].concat();
    swarm.start(moved, Duration::ZERO);
    let join: Vec<String> =
        (0..Switched::NODES).map(|node| format!("{}:{}", address(node), 7501 + node)).collect();
    swarm.standing.assert_unchanged(&mut swarm.lab);
    let host = swarm.lab.visitors()[0];
    let read = swarm.lab.each_key(host, &join, Work::ReadEachOnce);
    swarm.story.assert_nothing_lost(&read);
    swarm.story.assert_linearizable(&read);
}

#[test]
fn a_node_comes_back_at_another_port_where_nothing_announces_it() {
    let Some(mut lab) = Lab::bridge(3) else { return };
    let flags = |node: usize, port: &'static str| {
        let mut flags = vec!["--lan", "--open", "--no-mdns", "--port", port];
        if node > 0 {
            flags.extend(["--join", "10.77.0.1:7400"]);
        }
        flags
    };
    for node in 0..3 {
        lab.up_durable_with(node, &flags(node, "7400"));
        lab.ready(node);
    }
    let standing = Standing::of(&mut lab);
    // Also the one by which the others came. It knows where they were.
    for node in [2, 0] {
        lab.stop(node);
        lab.up_durable_with(node, &["--lan", "--open", "--no-mdns", "--port", "7499"]);
        standing.assert_unchanged(&mut lab);
    }
    // And then all of them: each is found by one that still stands.
    for node in [1, 0] {
        lab.kill(node);
        lab.up_durable_with(node, &["--lan", "--open", "--no-mdns", "--port", "7477"]);
        standing.assert_unchanged(&mut lab);
    }
}

#[test]
fn a_node_that_was_given_up_comes_back_and_nothing_is_lost() {
    const NODES: usize = 5;
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    let flags = [&FLAGS[..], &["--replace-after", "1s"]].concat();
    for node in 0..NODES {
        lab.up_durable_with(node, &flags);
    }
    lab.settled();
    let (ids, swarm) = (lab.ids(), lab.swarm(0));
    let host = lab.visitors()[0];
    let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
    for round in 0..rounds(1) {
        let node = (round + 1) % NODES;
        load.goes_on(SOME);
        let killed = now();
        lab.kill(node);
        // The others make up for it, and what it has on its disk is of no group any more.
        lab.settled();
        say(&format!("round {}: node {node} made up for {:.2?} after its end", round + 1, since(killed)));
        load.goes_on(SOME);
        let started = now();
        lab.up_durable_with(node, &flags);
        lab.settled();
        say(&format!("and back in its place {:.2?} after its start", since(started)));
        assert_eq!((lab.ids(), lab.swarm(node)), (ids.clone(), swarm.clone()));
    }
    load.goes_on(SOME);
    let mut story = Story::default();
    story.add(load.stop());
    story.assert_no_error();
    let mut at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    // Nothing of what is on the disks takes the place of what the swarm went on with.
    lab.kill_all();
    for node in 0..NODES {
        lab.up_durable_with(node, &flags);
    }
    lab.settled();
    let from_disk = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&from_disk);
    at_the_end.extend(from_disk);
    story.assert_linearizable(&at_the_end);
    assert_eq!(lab.heard("are made anew"), 0);
}
