//! How soon a node with many keys is back, and what they cost.
//!
//! `ROUNDTABLE_LAB_KEYS=1000000` for many.

use std::time::Duration;

use super::super::load::{FILLED_BYTES, filled_name};
use super::super::network::address;
use super::{LIMIT, Lab, now, say, setting, since, within};
use crate::lab::{PORT, measured};

const NODES: usize = 3;
/// From the start of a process to its serving, with each million of keys.
const READY_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_node_with_many_keys_is_soon_back() {
    let keys: u32 =
        setting("ROUNDTABLE_LAB_KEYS").map_or(2_000, |keys| keys.parse().expect("a number of keys"));
    let Some(mut lab) = Lab::bridge(NODES) else { return };
    for node in 0..NODES {
        lab.up_durable(node);
    }
    lab.settled();
    let empty = lab.node(1).resident_kib();
    let begin = now();
    lab.fill(lab.visitors()[0], &lab.addresses(), keys);
    say(&format!("{keys} values of {FILLED_BYTES} bytes written in {:.1?}", since(begin)));
    let told = |lab: &mut Lab, what: &str| {
        let id = lab.id(1);
        let status = within(LIMIT, "a node tells how it is", || lab.json(1, &["status", &id]));
        let resident = lab.node(1).resident_kib();
        say(&format!(
            "{what}: {} keys, {} bytes of keys and values; on the disk {} bytes of log, {} of states; resident {} KiB, \
             empty {empty} KiB: {} bytes per key beyond that",
            status["keys"],
            status["bytes"],
            status["storage"]["log_bytes"],
            status["storage"]["state_bytes"],
            resident,
            resident.saturating_sub(empty) * 1024 / u64::from(keys),
        ));
        // Followers hear a moment later than the client that the last writes are committed.
        status["keys"].as_u64().filter(|held| *held >= u64::from(keys))
    };
    within(LIMIT, "the node has all keys", || told(&mut lab, "before the restart"));

    lab.stop(1);
    lab.up_durable(1);
    let back = lab.ready(1);
    let address = format!("{}:{PORT}", address(1));
    let served = within(Duration::from_secs(600), "it serves", || {
        let read = lab.cli(1, &["get", &filled_name(keys - 1), "--join", &address, "--timeout", "1s"]);
        (read.code == Some(0)).then(|| since(lab.nodes[&1].started))
    });
    lab.settled();
    let in_place = since(lab.nodes[&1].started);
    say(&format!(
        "a node with {keys} keys: back {back:.2?} after its start, read from {served:.2?} after it, in its place {in_place:.2?} after it"
    ));
    within(LIMIT, "the node has all keys again", || told(&mut lab, "after the restart"));
    measured("start to serving", served, READY_LIMIT * keys.div_ceil(1_000_000));
}
