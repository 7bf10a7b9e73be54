//! What a node costs at rest, and how soon it is there.

use std::time::Duration;

use super::{Lab, measured, say, setting};

/// Resident memory of an idle node.
const MEMORY_LIMIT_KIB: u64 = 40 * 1024;
/// From a node's start to its being a member, when it joins.
const READY_LIMIT: Duration = Duration::from_secs(1);

#[test]
fn an_idle_node_is_small_and_soon_ready() {
    let Some(mut lab) = Lab::bridge(3) else { return };
    lab.up(0, &["--lan", "--open"]);
    lab.ready(0);
    for node in [1, 2] {
        lab.up(node, &["--lan", "--open"]);
        let ready = lab.ready(node);
        measured(&format!("node {node}: start to ready, joining"), ready, READY_LIMIT);
    }
    lab.settled();
    for node in 0..3 {
        let resident = lab.node(node).resident_kib();
        say(&format!("node {node}: {resident} KiB resident (limit {MEMORY_LIMIT_KIB})"));
        let strict = setting("ROUNDTABLE_LAB_STRICT").is_some();
        assert!(!strict || resident <= MEMORY_LIMIT_KIB, "{resident} KiB resident");
    }
}
