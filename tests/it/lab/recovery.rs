//! How long clients wait, by what happened: for each fault the longest that a write took of all that were under way
//! then or began within the next seconds, on 160 keys that all nodes lead. Durable nodes, so that each comes back.
//!
//! `ROUNDTABLE_LAB_ROUNDS` is how often each kind of fault strikes; one table at the end.

use std::time::Duration;

use super::judge::Story;
use super::load::Work;
use super::{LIMIT, Lab, now, rounds, say, since, within};

const NODES: usize = 5;
const CLIENTS: usize = 8;
/// How long a node stands still or is cut off.
const LASTS: Duration = Duration::from_secs(4);
/// Writes that begin so long after a fault are not told to it.
const WINDOW: Duration = Duration::from_secs(3);
/// Operations between two faults.
const SOME: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9` of a node, which leads a fifth of all partitions.
    Killed,
    /// A node is cut off from all others, but not from the clients.
    CutOff,
    /// A node stands still.
    Paused,
    /// A node is told to stop, hands over, and comes back: one step of a rolling restart.
    Restarted,
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::CutOff, Fault::Paused, Fault::Restarted];

impl Fault {
    fn strike(self, lab: &mut Lab, node: usize) {
        match self {
            Self::Killed => {
                lab.kill(node);
                pass(LASTS);
                up(lab, node);
            }
            Self::CutOff => {
                let others: Vec<usize> = (0..NODES).filter(|other| *other != node).collect();
                lab.cut(&[node], &others);
                pass(LASTS);
                assert!(lab.network().kept_back() > 0, "nothing went where the cut was");
                lab.heal();
            }
            Self::Paused => {
                lab.pause(node);
                pass(LASTS);
                assert!(lab.node(node).is_stopped(), "it runs");
                lab.resume(node);
            }
            Self::Restarted => {
                lab.terminate(node);
                up(lab, node);
                pass(LASTS);
            }
        }
    }
}

#[test]
fn clients_wait_for_so_long_by_what_happened() {
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    for node in 0..NODES {
        up(&mut lab, node);
    }
    lab.settled();
    let [one, other] = lab.visitors();
    let mut loads = [one, other].map(|host| lab.load(host, &lab.addresses(), CLIENTS, Work::Mixed));
    let mut struck = Vec::new();
    for round in 0..rounds(1) {
        for fault in FAULTS {
            lab.settled();
            for load in &mut loads {
                load.goes_on(SOME);
            }
            let node = (round + struck.len()) % NODES;
            struck.push((fault, now()));
            fault.strike(&mut lab, node);
        }
    }
    lab.settled();
    for load in &mut loads {
        load.goes_on(SOME);
    }
    let mut story = Story::default();
    for load in loads {
        story.add(load.stop());
    }
    say(&format!("{} operations, {}/s; errors {:?}", story.len(), story.rate(), story.errors()));
    say(
        "fault       count     p50     p90     p99     max  (s until every write of the moment was acknowledged)",
    );
    for fault in FAULTS {
        let of_it = struck.iter().filter(|(kind, _)| *kind == fault);
        let mut waits: Vec<f64> =
            of_it.map(|(_, at)| story.longest_write(*at, *at + WINDOW).as_secs_f64()).collect();
        waits.sort_by(f64::total_cmp);
        let at = |percent: usize| waits[(waits.len() * percent).div_ceil(100).max(1) - 1];
        say(&format!(
            "{:<10} {:>6} {:>7.3} {:>7.3} {:>7.3} {:>7.3}",
            format!("{fault:?}"),
            waits.len(),
            at(50),
            at(90),
            at(99),
            at(100)
        ));
    }
    let at_the_end = lab.each_key(one, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
}

fn up(lab: &mut Lab, node: usize) {
    let data = lab.file(&format!("data{node}"));
    lab.up(node, &["--lan", "--open", "--data-dir", data.to_str().expect("a name")]);
}

fn pass(time: Duration) {
    let begin = now();
    within(LIMIT, "some time passes", || (since(begin) >= time).then_some(()));
}
