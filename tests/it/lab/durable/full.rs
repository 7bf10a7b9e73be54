//! Disks without room: writes are refused and say why, reads go on, and when there is room so do writes.

use std::fs::{self, File};

use super::super::judge::Story;
use super::super::load::{KEYS, Work, key_name};
use super::disk::SmallDisk;
use super::{LIMIT, Lab, Standing, now, say, since, within};

const NODES: usize = 3;
const WRITERS: usize = 16;
const DISK_MEBIBYTES: u32 = 64;
/// Operations before and after what happens.
const SOME: usize = 1_000;
/// A value that soon fills what is left.
const LARGE: usize = 512 * 1024;

#[test]
fn a_full_disk_stops_writes_and_nothing_else() {
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    let mut disks = Vec::new();
    for node in 0..NODES {
        let Some(disk) = SmallDisk::mount(&lab.data_dir(node), DISK_MEBIBYTES) else {
            return say("skipped: no file system can be mounted here");
        };
        disks.push(disk);
        lab.up_durable(node);
    }
    let standing = Standing::of(&mut lab);
    let host = lab.visitors()[0];
    let mut story = Story::default();
    let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
    load.goes_on(SOME);

    for disk in &disks {
        disk.fill();
    }
    let large = lab.file("large");
    fs::write(&large, vec![7; LARGE]).expect("a file");
    let refused = within(LIMIT, "a write is refused", || {
        let mut put = lab.roundtable(0);
        let input = File::open(&large).expect("a file");
        let output = put.args(["put", "large", "-"]).stdin(input).output().expect("the binary runs");
        (!output.status.success()).then_some(output)
    });
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    say(&format!("a put on full disks: exit code {:?}, {}", refused.status.code(), why.trim()));
    assert!(why.contains("storage full") && why.contains("nothing was changed"), "{why}");
    assert_eq!(refused.status.code(), Some(1));
    for node in 0..NODES {
        lab.says(node, "the disk is full");
    }
    // Every key is still read, by whoever asks.
    load.goes_on(SOME);
    let read = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    assert!(read.iter().all(|seen| seen.result.is_ok()), "{read:?}");
    story.add(read);

    // A node dies on its full disk. It cannot promise anything there, but has what it promised.
    lab.kill(1);
    let died = now();
    disks[1].make_room();
    lab.up_durable(1);
    lab.ready(1);
    lab.settled();
    say(&format!("a node killed on a full disk was back in its place after {:.2?}", since(died)));
    disks[1].fill();

    let roomy = now();
    for disk in &disks {
        disk.make_room();
    }
    within(LIMIT, "writes go on", || {
        (0..KEYS)
            .step_by(16)
            .all(|key| lab.cli(0, &["put", &format!("after/{}", key_name(key)), "x"]).code == Some(0))
            .then_some(())
    });
    say(&format!("writes went on {:.2?} after there was room", since(roomy)));
    for node in [0, 2] {
        lab.says(node, "room again");
    }
    load.goes_on(SOME);
    story.add(load.stop());
    let errors: Vec<String> = story.errors().into_keys().map(str::to_owned).collect();
    say(&format!("{} operations; errors {:?}", story.len(), story.errors()));
    assert!(errors.iter().any(|error| error.contains("storage full")), "{errors:?}");

    // And all of them die.
    lab.kill_all();
    for node in 0..NODES {
        lab.up_durable(node);
    }
    standing.assert_unchanged(&mut lab);
    let at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
}
