//! Disks without room: writes are refused and say why, reads go on, and when there is room so do writes.

use std::fs;

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
        let said = lab.put_file(0, "large", &large);
        (said.code != Some(0)).then_some(said)
    });
    say(&format!("a put on full disks: exit code {:?}, {}", refused.code, refused.err.trim()));
    let why = &refused.err;
    assert!(why.contains("storage full") && why.contains("nothing was changed"), "{why}");
    assert_eq!(refused.code, Some(1));
    for node in 0..NODES {
        lab.says(node, "the disk is full");
    }
    // Every key is still read, by whoever asks.
    load.goes_on(SOME);
    let read = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    assert!(read.iter().all(|seen| seen.result.is_ok()), "{read:?}");
    story.add(read);

    // A node dies on its full disk, and comes back on it; and once more, after an orderly end.
    lab.kill(1);
    let died = now();
    disks[1].fill();
    lab.up_durable(1);
    lab.ready(1);
    lab.settled();
    say(&format!("a node killed on a full disk was back in its place after {:.2?}", since(died)));
    lab.is_full(1);
    lab.stop(1);
    disks[1].fill();
    lab.up_durable(1);
    lab.ready(1);
    lab.settled();
    lab.is_full(1);
    let read = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    assert!(read.iter().all(|seen| seen.result.is_ok()), "{read:?}");
    story.add(read);

    // All of them at once: they elect leaders, and everything is read.
    lab.kill_all();
    let died = now();
    for disk in &disks {
        disk.fill();
    }
    for node in 0..NODES {
        lab.up_durable(node);
    }
    standing.assert_unchanged(&mut lab);
    let read = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    say(&format!("all were killed on full disks; every key was read after {:.2?}", since(died)));
    assert!(read.iter().all(|seen| seen.result.is_ok()), "{read:?}");
    story.add(read);
    for node in 0..NODES {
        lab.is_full(node);
    }
    let refused = lab.cli(0, &["put", "small", "x"]);
    assert!(refused.err.contains("storage full"), "{}", refused.err);
    load.goes_on(SOME);

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
    for node in 0..NODES {
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

#[test]
fn one_full_disk_of_three_stops_nothing() {
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    let Some(disk) = SmallDisk::mount(&lab.data_dir(0), DISK_MEBIBYTES) else {
        return say("skipped: no file system can be mounted here");
    };
    for node in 0..NODES {
        lab.up_durable(node);
    }
    let standing = Standing::of(&mut lab);
    let (host, full) = (lab.visitors()[0], lab.id(0));
    let mut story = Story::default();
    let mut load = lab.load(host, &lab.addresses(), WRITERS, Work::Mixed);
    load.goes_on(SOME);
    let owned = lab.owned_by(&full);
    within(LIMIT, "everybody leads what it owns", || (lab.led_by(&full) == owned).then_some(()));

    disk.fill();
    let filled = now();
    // It is noticed when the reserve cannot be made whole: so that this does not wait for the load to use it up.
    let large = lab.file("large");
    fs::write(&large, vec![7; LARGE]).expect("a file");
    for number in 0..4 {
        let said = lab.put_file(1, &format!("large/{number}"), &large);
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    lab.is_full(0);
    let noticed = now();
    within(LIMIT, "others lead", || (lab.led_by(&full) == 0).then_some(()));
    say(&format!(
        "{owned} partitions had another leader {:.2?} after the disk was found full",
        since(noticed)
    ));
    load.goes_on(4 * SOME);
    assert_eq!(lab.led_by(&full), 0, "leadership came back to a full disk");
    // It is killed and comes back on its full disk, and is still no obstacle.
    lab.kill(0);
    disk.fill();
    lab.up_durable(0);
    lab.ready(0);
    lab.settled();
    lab.is_full(0);
    load.goes_on(SOME);
    let read = lab.each_key(lab.host_of(0), &lab.addresses(), Work::ReadEachOnce);
    assert!(read.iter().all(|seen| seen.result.is_ok()), "{read:?}");
    story.add(read);
    assert_eq!(lab.led_by(&full), 0, "a full disk was elected");

    let roomy = now();
    disk.make_room();
    lab.says(0, "room again");
    within(LIMIT, "it leads again what it owns", || (lab.led_by(&full) == owned).then_some(()));
    say(&format!("it led all again {:.2?} after there was room", since(roomy)));
    load.goes_on(SOME);
    story.add(load.stop());
    say(&format!(
        "{} operations, longest pause of a write {:.2?}",
        story.len(),
        story.longest_write(filled, roomy)
    ));
    story.assert_no_error();
    standing.assert_unchanged(&mut lab);
    let at_the_end = lab.each_key(host, &lab.addresses(), Work::ReadEachOnce);
    story.assert_nothing_lost(&at_the_end);
    story.assert_linearizable(&at_the_end);
}

#[test]
fn a_newcomer_to_a_full_disk_says_what_it_needs() {
    let Some(mut lab) = Lab::bridge(1) else { return };
    let Some(disk) = SmallDisk::mount(&lab.data_dir(0), DISK_MEBIBYTES) else {
        return say("skipped: no file system can be mounted here");
    };
    // Its directory is below the one that is the disk, which is not empty.
    disk.fill();
    let dir = lab.data_dir(0).join("node");
    let dir = dir.to_str().expect("a name").to_owned();
    lab.up(0, &["--lan", "--open", "--data-dir", &dir]);
    let mut process = lab.nodes.remove(&0).expect("it was started");
    let status = process.ended(LIMIT);
    let output = process.output();
    lab.ended.push(process);
    let said = output.lines().last().unwrap_or_default();
    say(&format!("a newcomer to a full disk ends with {status}: {said}"));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("no room in") && said.contains("free at least 16 MiB"), "{output}");
    disk.make_room();
    lab.up(0, &["--lan", "--open", "--data-dir", &dir]);
    lab.says(0, "founded the swarm");
}

impl Lab {
    /// Node `i` says that its disk is full, and so does its status.
    fn is_full(&mut self, node: usize) {
        self.says(node, "the disk is full");
        let id = self.id(node);
        within(LIMIT, "the status says that the disk is full", || {
            let status = self.json(self.host_of(node), &["status", &id])?;
            (status["storage"]["full"] == true).then_some(())
        });
    }

    /// How many partitions a node is to lead.
    fn owned_by(&mut self, id: &str) -> usize {
        let ring = within(LIMIT, "the ring is told", || self.json(0, &["ring"]));
        let members = ring["members"].as_array().expect("members");
        let member = members.iter().find(|member| member["node"] == *id).expect("a member");
        usize::try_from(member["owns"].as_u64().expect("a number")).expect("a few")
    }

    /// How many partitions a node leads, as all others see it.
    fn led_by(&mut self, id: &str) -> usize {
        let other = self.nodes.keys().copied().max().expect("a node");
        let other_id = self.id(other);
        let status = within(LIMIT, "a node tells who leads", || {
            self.json(self.host_of(other), &["status", &other_id])
        });
        let replicas = status["replicas"].as_array().expect("replicas").iter();
        replicas.filter(|replica| replica["leader"] == *id).count()
    }
}
