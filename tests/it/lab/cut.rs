//! The network is cut, heals, passes one way only; a node stands still and goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use roundtable::id::NodeId;
use roundtable::ring::{DEFAULT_REPLICAS, PartitionCount, Ring};

use super::judge::Story;
use super::load::{KEYS, Seen, Work, is_deleted, key_name};
use super::{LIMIT, Lab, measured, now, say, since, within};
use crate::checker::Ret;

const NODES: usize = 5;
const SOME: usize = 1_000;
/// From a cut until the side with a majority of a key's replicas serves it.
const SERVES_LIMIT: Duration = Duration::from_secs(5);
/// Longest until the other side says that it cannot: the clients' deadline.
const REFUSES_LIMIT: Duration = Duration::from_secs(5);
/// From the heal until all have one view of the membership.
const HEAL_LIMIT: Duration = Duration::from_secs(10);
/// How long a node stands still.
const PAUSE: Duration = Duration::from_secs(5);

/// Of each key, how many of its replicas are on these nodes.
fn replicas_on(lab: &mut Lab, nodes: &[usize]) -> Vec<usize> {
    let view = lab.members(nodes[0]).expect("it answers");
    let members = view.members.iter().filter(|(_, member)| member.on_ring);
    let members = members.map(|(id, member)| (id.parse::<NodeId>().expect("an id"), member.weight));
    let partitions = PartitionCount::new(roundtable::node::DEFAULT_PARTITIONS).expect("a number");
    let ring = Ring::new(members, partitions, DEFAULT_REPLICAS);
    let side: BTreeSet<NodeId> = nodes.iter().map(|&node| lab.id(node).parse().expect("an id")).collect();
    let on_side = |key: u32| {
        let replicas = ring.replicas(ring.partition_of(key_name(key).as_bytes()));
        replicas.iter().filter(|node| side.contains(node)).count()
    };
    (0..KEYS).map(on_side).collect()
}

fn addresses(nodes: &[usize]) -> Vec<String> {
    nodes.iter().map(|&node| format!("{}:{}", super::address(node), super::PORT)).collect()
}

#[test]
fn each_side_of_a_cut_serves_what_it_has_a_majority_of() {
    let Some(mut lab) = Lab::open_swarm(NODES, NODES) else { return };
    let (few, many) = ([0, 1], [2, 3, 4]);
    let [with_few, with_many] = lab.visitors();
    let on_many = replicas_on(&mut lab, &many);
    let mut story = Story::default();
    story.add(lab.each_key(with_many, &lab.addresses(), Work::WriteEachOnce));
    let mut loads = [
        lab.load(with_few, &addresses(&few), 8, Work::Mixed),
        lab.load(with_many, &addresses(&many), 8, Work::Mixed),
    ];
    for load in &mut loads {
        load.goes_on(SOME);
    }

    let cut = now();
    lab.cut(&[&few[..], &[with_few]].concat(), &[&many[..], &[with_many]].concat());
    let (at_few, at_many) = std::thread::scope(|scope| {
        let lab = &lab;
        let write = |host, join: Vec<String>| lab.each_key_patiently(host, &join, Work::WriteEachOnce);
        let few = scope.spawn(move || write(with_few, addresses(&few)));
        let many = scope.spawn(move || write(with_many, addresses(&many)));
        (few.join().expect("probed"), many.join().expect("probed"))
    });
    let refused = |seen: &&Seen| on_many[seen.key as usize] >= 2;
    let no_quorum = |seen: &Seen| seen.result.as_ref().is_err_and(|trouble| trouble.no_quorum);
    let later = within(LIMIT, "the two know that they are alone", || {
        let later = lab.each_key(with_few, &addresses(&few), Work::WriteEachOnce);
        story.add(later.clone());
        later.iter().filter(refused).all(no_quorum).then_some(later)
    });
    let stale = lab.each_key(with_few, &addresses(&few), Work::ReadEachOnceStale);

    let mut slowest = [Duration::ZERO; 2];
    let mut served = [0; 2];
    for (side, probe) in [(0, &at_few), (1, &at_many)] {
        for seen in probe {
            if (on_many[seen.key as usize] >= 2) == (side == 1) {
                assert!(seen.result.is_ok(), "side {side} has a majority: {seen:?}");
                slowest[side] = slowest[side].max(seen.returned.saturating_sub(cut));
                served[side] += 1;
            } else {
                assert!(seen.result.is_err(), "side {side} has no majority: {seen:?}");
            }
        }
    }
    // What a leader on this side had accepted before it knew may still happen after the heal: nobody can say.
    let at_once = at_few.iter().filter(refused).filter(|seen| no_quorum(seen)).count();
    say(&format!("of {} keys refused by the two, {at_once} were refused for good at once", served[1]));
    say(&format!("of {KEYS} keys the two serve {}, the three serve {}", served[0], served[1]));
    measured("the three serve what they have a majority of, after", slowest[1], SERVES_LIMIT);
    let refusals = later.iter().filter(refused).map(Seen::took);
    measured("the two refuse the rest within", refusals.max().unwrap_or_default(), REFUSES_LIMIT);
    let mut read = 0;
    for seen in &stale {
        // Where the two have no replica at all, they have nothing to answer from.
        if on_many[seen.key as usize] < DEFAULT_REPLICAS {
            let answered =
                matches!(&seen.result, Ok(Ret::Entry(entry)) if entry.is_some() || is_deleted(seen.key));
            assert!(answered, "stale read: {seen:?}");
            read += 1;
        }
    }
    say(&format!("the two serve stale reads of all {read} keys that they have a replica of"));
    // What people see: the exit code, within the deadline.
    let key = (0..KEYS).find(|&key| on_many[key as usize] >= 2).expect("most keys");
    let said = lab.cli(0, &["put", &key_name(key), "x"]);
    assert_eq!(said.code, Some(5), "{said:?}");
    say(&format!("`put` on the smaller side after {:.2?}: {}", said.took, said.err.trim()));

    for load in &mut loads {
        load.goes_on(1);
    }
    lab.heal();
    let healed = now();
    lab.agreed(LIMIT);
    measured("one view of the membership after the heal", since(healed), HEAL_LIMIT);
    for load in &mut loads {
        load.goes_on(SOME);
    }
    for load in loads {
        story.add(load.stop());
    }
    story.add(at_few);
    story.add(at_many);
    say(&format!("{} operations, {}/s; errors {:?}", story.len(), story.rate(), story.errors()));
    end(&lab, with_many, &story);
}

/// All is as it was acknowledged, and was so all the time.
fn end(lab: &Lab, host: usize, story: &Story) {
    let at_the_end = within(LIMIT, "every key can be read", || {
        let read = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
        read.iter().all(|seen| seen.result.is_ok()).then_some(read)
    });
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
}

#[test]
fn a_network_that_passes_one_way_only_does_no_harm() {
    let Some(mut lab) = Lab::open_swarm(NODES, NODES) else { return };
    let host = lab.visitors()[1];
    let mut load = lab.load(host, &lab.addresses(), 16, Work::Mixed);
    load.goes_on(SOME);
    let cut = now();
    lab.cut_one_way(&[0, 1], &[2, 3, 4]);
    within(LIMIT, "some time passes", || (since(cut) > PAUSE).then_some(()));
    load.goes_on(1);
    lab.heal();
    let healed = now();
    lab.agreed(LIMIT);
    measured("one view of the membership after the heal", since(healed), HEAL_LIMIT);
    load.goes_on(SOME);
    let mut story = Story::default();
    story.add(load.stop());
    let (longest, which) = story.slowest_since(cut);
    say(&format!(
        "{} operations, {}/s, the longest {longest:.2?} ({which}); errors {:?}",
        story.len(),
        story.rate(),
        story.errors()
    ));
    end(&lab, host, &story);
}

#[test]
fn a_leader_that_stood_still_answers_no_old_read() {
    let Some(mut lab) = Lab::open_swarm(3, 3) else { return };
    let [host, other] = lab.visitors();
    let all = lab.addresses();
    let mut load = lab.load(host, &all, 16, Work::Mixed);
    // Readers that know no other node than the one that will stand still: their questions wait in its queues.
    let mut readers = lab.load(other, &addresses(&[0]), 16, Work::Reads);
    load.goes_on(SOME);
    readers.goes_on(SOME);
    let paused = now();
    lab.pause(0);
    within(LIMIT, "some time passes", || (since(paused) > PAUSE).then_some(()));
    lab.resume(0);
    load.goes_on(SOME);
    readers.goes_on(SOME);
    lab.agreed(LIMIT);
    let mut story = Story::default();
    story.add(load.stop());
    let (pause, _) = story.longest_pause(paused, SERVES_LIMIT);
    measured("the longest that a key took no write", pause, SERVES_LIMIT);
    story.assert_no_error();
    story.add(readers.stop());
    let (longest, which) = story.slowest_since(paused);
    say(&format!(
        "{} operations, the longest {longest:.2?} ({which}); errors of readers {:?}",
        story.len(),
        story.errors()
    ));
    end(&lab, host, &story);
}
