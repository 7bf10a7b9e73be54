//! Disks that fail, are slow, or change what was written: a node says so, serves nothing wrong, and has in the end
//! all that was acknowledged.
//!
//! Failing and slow disks are made by a few lines of C between a node and the C library; where there is no C compiler,
//! what needs them is skipped.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::judge::Story;
use super::super::load::{Seen, Work};
use super::disk::{files, flip, middle, records, written};
use super::{LIMIT, Lab, Standing, now, say, seed, since, within};
use crate::lab::rounds;

const NODES: usize = 3;
const WRITERS: usize = 16;
/// Operations before and after what happens.
const SOME: usize = 600;
/// What a sync of a slow disk takes.
const SLOW_SYNC: Duration = Duration::from_millis(300);
/// What half of the reads may take there: they wait for no disk.
const READ_LIMIT: Duration = Duration::from_millis(100);

/// Makes the disk of a node fail.
#[derive(Debug)]
struct Faults {
    library: PathBuf,
}

impl Faults {
    /// Compiles what goes between a node and the C library; `None`: that is not possible here.
    fn compile(lab: &Lab) -> Option<Self> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/lab/durable/fault.c");
        let library = lab.file("fault.so");
        let compiler =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output();
        let Ok(output) = compiler else {
            say("skipped: no C compiler");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(Self { library })
    }

    /// Puts it between node `i`, which is not started yet, and its disk.
    fn between(&self, lab: &mut Lab, node: usize) {
        let set = [
            ("LD_PRELOAD", OsString::from(&self.library)),
            ("ROUNDTABLE_FAULT", Self::file(lab, node).into()),
            ("ROUNDTABLE_FAULT_DIR", lab.data_dir(node).into()),
        ];
        lab.environment.insert(node, set.to_vec());
    }

    fn file(lab: &Lab, node: usize) -> PathBuf {
        lab.file(&format!("fault{node}"))
    }

    /// From now on this happens.
    fn set(lab: &Lab, node: usize, fault: &str) {
        // Renamed, so that no half of it is read.
        let unfinished = lab.file("fault.tmp");
        fs::write(&unfinished, fault).expect("a file");
        fs::rename(unfinished, Self::file(lab, node)).expect("renamed");
    }

    /// A swarm whose nodes all have such disks.
    fn swarm() -> Option<Lab> {
        let mut lab = Lab::bridge(NODES)?;
        let faults = Self::compile(&lab)?;
        for node in 0..NODES {
            faults.between(&mut lab, node);
            lab.up_durable(node);
        }
        lab.settled();
        Some(lab)
    }
}

/// Everything is there, also when another node than the one that had trouble is gone.
fn assert_whole(lab: &mut Lab, standing: &Standing, story: &Story, troubled: usize) {
    let host = lab.visitors()[0];
    let with = Standing::of(lab);
    assert_eq!((&with.swarm, &with.ids, &with.places), (&standing.swarm, &standing.ids, &standing.places));
    let mut read = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&read);
    lab.kill((troubled + 1) % NODES);
    let again = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&again);
    read.extend(again);
    story.assert_linearizable(&read);
}

#[test]
fn a_node_whose_disk_fails_to_sync_ends_and_the_others_go_on() {
    let Some(mut lab) = Faults::swarm() else { return };
    let standing = Standing::of(&mut lab);
    let mut story = Story::default();
    let mut load = lab.load(lab.visitors()[0], &lab.addresses(), WRITERS, Work::Mixed);
    load.goes_on(SOME);
    let failed = now();
    Faults::set(&lab, 1, "sync-fails");
    let why = lab.says(1, "the disk failed");
    let mut process = lab.nodes.remove(&1).expect("it runs");
    let status = process.ended(LIMIT);
    let output = process.output();
    lab.ended.push(process);
    say(&format!("it ended ({status}) {:.2?} after its disk failed: {why}", since(failed)));
    assert_eq!(status.code(), Some(1));
    assert!(output.contains("start it again with the same --data-dir"), "{output}");
    load.goes_on(SOME);
    Faults::set(&lab, 1, "");
    lab.up_durable(1);
    lab.settled();
    load.goes_on(SOME);
    story.add(load.stop());
    say(&format!("{} operations; errors {:?}", story.len(), story.errors()));
    story.assert_no_error();
    assert_eq!(lab.heard("are made anew"), 0);
    assert_whole(&mut lab, &standing, &story, 1);
}

#[test]
fn slow_disks_make_writes_slow_and_reads_hardly() {
    let Some(lab) = Faults::swarm() else { return };
    let mut story = Story::default();
    let host = lab.visitors()[0];
    let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
    load.goes_on(SOME);
    for node in 0..NODES {
        Faults::set(&lab, node, &format!("sync-slow {}", SLOW_SYNC.as_millis()));
    }
    let slow = now();
    load.goes_on(SOME);
    let seen = load.stop();
    let median = |reads: bool| {
        let of_kind = |seen: &&Seen| seen.invoked > slow && (seen.op == crate::checker::Op::Get) == reads;
        let mut took: Vec<Duration> = seen.iter().filter(of_kind).map(Seen::took).collect();
        took.sort_unstable();
        took.get(took.len() / 2).copied().unwrap_or_default()
    };
    let (reads, writes) = (median(true), median(false));
    story.add(seen.clone());
    say(&format!(
        "syncs that take {SLOW_SYNC:?} more: half of the writes took less than {writes:.3?}, half of the reads less \
         than {reads:.3?}; errors {:?}",
        story.errors()
    ));
    story.assert_no_error();
    assert!(writes >= SLOW_SYNC, "a write was acknowledged before it was on any two disks");
    assert!(reads <= READ_LIMIT, "reads wait for the disk");
    let at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
}

#[test]
fn a_write_torn_by_the_end_of_the_process_costs_nothing() {
    let Some(mut lab) = Faults::swarm() else { return };
    let standing = Standing::of(&mut lab);
    let mut story = Story::default();
    let mut load = lab.load(lab.visitors()[0], &lab.addresses(), WRITERS, Work::Mixed);
    for node in 0..NODES {
        load.goes_on(SOME);
        Faults::set(&lab, node, "write-tears");
        let mut process = lab.nodes.remove(&node).expect("it runs");
        let status = process.ended(LIMIT);
        lab.ended.push(process);
        assert_eq!(status.code(), None, "it was killed in the middle of a write");
        Faults::set(&lab, node, "");
        lab.up_durable(node);
        lab.settled();
    }
    load.goes_on(SOME);
    story.add(load.stop());
    say(&format!(
        "{NODES} writes torn; records cut off {}; {} operations; errors {:?}",
        lab.heard("was not finished and is cut off"),
        story.len(),
        story.errors()
    ));
    // Three ends in short order: a client that has not redialled the first when the last is gone asks in vain for a
    // moment, and hears so. That nothing was lost is what counts.
    assert_eq!(lab.heard("are made anew"), 0);
    assert_whole(&mut lab, &standing, &story, 1);
}

/// Damages the files of a node that is stopped, and starts it again.
fn damaged(damage: impl Fn(&Lab, usize)) {
    const VICTIM: usize = 1;
    let Some(mut lab) = Lab::durable_swarm(NODES) else { return };
    let standing = Standing::of(&mut lab);
    let mut story = Story::default();
    let mut load = lab.load(lab.visitors()[0], &lab.addresses(), WRITERS, Work::Mixed);
    load.goes_on(SOME);
    lab.stop(VICTIM);
    damage(&lab, VICTIM);
    let started = now();
    lab.up_durable(VICTIM);
    let found = lab.says(VICTIM, "on the disk: ");
    let lost = lab.says(VICTIM, "are made anew from the other replicas");
    say(&format!("{found}; {lost}"));
    lab.settled();
    let id = lab.id(VICTIM);
    within(LIMIT, "no replica is damaged any more", || {
        let status = lab.json(VICTIM, &["status", &id])?;
        let replicas = status["replicas"].as_array()?;
        replicas
            .iter()
            .all(|replica| replica["damaged"] == false && replica["has_quorum"] == true)
            .then_some(())
    });
    say(&format!("healed {:.2?} after its start", since(started)));
    load.goes_on(SOME);
    story.add(load.stop());
    story.assert_no_error();
    assert_whole(&mut lab, &standing, &story, VICTIM);
}

#[test]
fn a_byte_changed_in_the_middle_of_a_log_is_noticed_and_healed() {
    damaged(|lab, node| {
        let log = files(&lab.data_dir(node), ".log").pop().expect("a log");
        flip(&log, middle(&log));
    });
}

#[test]
fn a_byte_changed_anywhere_in_a_log_is_never_served() {
    let mut rng = StdRng::seed_from_u64(seed());
    let Some(mut lab) = Lab::durable_swarm(NODES) else { return };
    let standing = Standing::of(&mut lab);
    let host = lab.visitors()[0];
    let mut story = Story::default();
    let (mut healed, mut harmless) = (0, 0);
    for _ in 0..rounds(2) {
        let victim = rng.random_range(0..NODES);
        let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
        load.goes_on(SOME);
        lab.stop(victim);
        let log = files(&lab.data_dir(victim), ".log").pop().expect("a log");
        let at = rng.random_range(0..written(&log));
        say(&format!("byte {at} of the log of node {victim} is changed"));
        flip(&log, at);
        let before = lab.heard("are made anew");
        lab.up_durable(victim);
        lab.settled();
        if lab.heard("are made anew") > before {
            healed += 1;
        } else {
            // It was in what is there twice, or in a summary of what nothing was lost of.
            harmless += 1;
        }
        load.goes_on(SOME);
        story.add(load.stop());
        story.assert_no_error();
        let now = Standing::of(&mut lab);
        assert_eq!((&now.ids, &now.places), (&standing.ids, &standing.places));
        story.assert_nothing_lost(&lab.each_key(host, &lab.addresses(), Work::ReadEachOnce));
    }
    say(&format!("bytes changed: {healed} cost something that was healed, {harmless} nothing"));
    assert_whole(&mut lab, &standing, &story, 1);
}

#[test]
fn a_lost_state_is_noticed_and_healed() {
    damaged(|lab, node| {
        let states = files(&lab.data_dir(node), ".state");
        fs::remove_file(states.first().expect("a state")).expect("removed");
    });
}

#[test]
fn a_log_cut_in_its_last_record_starts_as_if_nothing_was() {
    let Some(mut lab) = Lab::durable_swarm(NODES) else { return };
    let standing = Standing::of(&mut lab);
    let mut story = Story::default();
    let load = {
        let mut load = lab.load(lab.visitors()[0], &lab.addresses(), WRITERS, Work::Mixed);
        load.goes_on(SOME);
        load
    };
    story.add(load.stop());
    // At rest the last record says only that all before it were written.
    let id = lab.id(1);
    let length = |lab: &Lab| lab.json(1, &["status", &id])?["storage"]["log_bytes"].as_u64();
    let mut before = (length(&lab), now());
    within(LIMIT, "the store is at rest", || {
        let bytes = Some(length(&lab)?);
        if bytes != before.0 {
            before = (bytes, now());
        }
        (since(before.1) > Duration::from_secs(2)).then_some(())
    });
    lab.kill(1);
    let log = files(&lab.data_dir(1), ".log").pop().expect("a log");
    let records = records(&log);
    let [.., last, proof] = &records[..] else { panic!("too few: {records:?}") };
    // Unless the last record ends where a block does.
    let gap = proof.begin > last.end;
    let end = written(&log);
    fs::File::options().write(true).open(&log).expect("a log").set_len(end - 3).expect("cut");
    lab.up_durable(1);
    standing.assert_unchanged(&mut lab);
    let told = lab.heard("on the disk: ");
    assert_eq!(told, usize::from(!gap), "behind a gap a proof that was cut off is nothing to tell");
    assert_whole(&mut lab, &standing, &story, 1);
}
