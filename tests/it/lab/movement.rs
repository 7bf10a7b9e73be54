//! Nodes come and go in peace: nobody notices.

use std::time::Duration;

use serde_json::Value;

use super::judge::Story;
use super::load::Work;
use super::{LIMIT, Lab, measured, now, say, since, within};

const SOME: usize = 1_500;
/// Until `leave` has handed over little data and says so.
const LEAVE_LIMIT: Duration = Duration::from_secs(4);

#[test]
fn a_node_joins_and_another_leaves_unnoticed() {
    let Some(mut lab) = Lab::open_swarm(4, 5) else { return };
    let host = lab.visitors()[0];
    let mut load = lab.load(host, &lab.addresses(), 16, Work::Mixed);
    load.goes_on(SOME);
    let begin = now();
    lab.up(4, &["--lan", "--open"]);
    lab.settled();
    say(&format!("a node joined under load and all was in its place after {:.2?}", since(begin)));
    load.goes_on(SOME);
    let leaving = now();
    lab.terminate(1);
    say(&format!("a node left under load within {:.2?}", since(leaving)));
    lab.settled();
    say(&format!("and all was in its place after {:.2?}", since(leaving)));
    load.goes_on(SOME);
    let mut story = Story::default();
    story.add(load.stop());
    let at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    let (longest, which) = story.slowest_since(begin);
    say(&format!("{} operations, {}/s; the longest took {longest:.3?} ({which})", story.len(), story.rate()));
    story.assert_no_error();
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
    balanced(&lab, 0);
}

#[test]
fn three_nodes_leave_down_to_one() {
    let Some(mut lab) = Lab::open_swarm(3, 3) else { return };
    let host = lab.visitors()[0];
    let mut story = Story::default();
    story.add(lab.each_key(host, &lab.addresses(), Work::WriteEachOnce));
    story.assert_no_error();
    let started = now();
    let left = lab.cli(2, &["leave"]);
    assert_eq!(left.code, Some(0), "{left:?}");
    measured("`leave` of one of three", left.took, LEAVE_LIMIT);
    lab.gone(2);
    lab.terminate(1);
    say(&format!("from three nodes to one took {:.2?}", since(started)));
    let at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
    // The last has nobody to hand over to, and goes nevertheless.
    let left = lab.cli(0, &["leave"]);
    assert_eq!(left.code, Some(0), "{left:?}");
    lab.gone(0);
}

/// No member holds more than its share of the replicas, by the bound; and what it holds is what the ring says.
fn balanced(lab: &Lab, node: usize) {
    let ring = within(LIMIT, "the ring tells who leads each partition", || {
        let ring = lab.json(node, &["ring"])?;
        let leads = ring["members"].as_array()?.iter().map(|member| member["leads"].as_u64());
        (leads.sum::<Option<u64>>() == ring["partitions"].as_u64()).then_some(ring)
    });
    let members = ring["members"].as_array().expect("members");
    let holds = |member: &Value| member["holds"].as_u64().expect("a number");
    let replicas: u64 = members.iter().map(holds).sum();
    // 1.25 times the mean, rounded up to whole replicas.
    let most = (replicas * 5).div_ceil(members.len() as u64 * 4);
    let fullest = members.iter().map(holds).max().unwrap_or(0);
    let leads: Vec<u64> = members.iter().map(|member| member["leads"].as_u64().unwrap_or(0)).collect();
    say(&format!(
        "{replicas} replicas on {} members, at most {fullest} (bound {most}); leads {leads:?}",
        members.len()
    ));
    assert!(fullest <= most, "{ring}");
}
