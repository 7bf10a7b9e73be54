//! Real nodes in this process, linked over loopback: founding, joining, refusing, merging, leaving.

use std::time::Duration;

use roundtable::net::Secret;
use roundtable::node::{Node, NodeBuilder, NodeEvent, Visitor};
use tempfile::TempDir;
use tokio::sync::broadcast;

/// Longest that anything here may take; a limit, not a wait.
const LIMIT: Duration = Duration::from_secs(30);

/// A machine of its own: nodes on it find each other through its runtime directory.
pub(super) fn machine() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(super) fn on(machine: &TempDir) -> NodeBuilder {
    Node::builder().port(0).runtime_directory(machine.path().join("run"))
}

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(LIMIT, future).await;
    result.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}

pub(super) async fn start(builder: NodeBuilder) -> Node {
    let node = builder.start().await.unwrap();
    within("the node has a swarm", node.ready()).await;
    node
}

/// Waits until every node sees exactly so many members alive, and every partition `replicas` voters.
pub(super) async fn settled(nodes: &[&Node], replicas: usize) {
    let all_in_place = async {
        for node in nodes {
            loop {
                let view = node.client().view().await;
                let status = node.client().status(node.id()).await;
                let seen = view.map_or(0, |view| view.members.iter().filter(|member| member.on_ring).count());
                let placed = status.is_ok_and(|status| {
                    status.replicas.iter().all(|replica| replica.voters.len() == replicas)
                        && !status.replicas.is_empty()
                });
                if seen == nodes.len() && placed {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    within("all members seen and all replicas in place", all_in_place).await;
}

async fn event(events: &mut broadcast::Receiver<NodeEvent>, what: &str, wanted: impl Fn(&NodeEvent) -> bool) {
    let found = async { while !wanted(&events.recv().await.expect(what)) {} };
    within(what, found).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_machine_share_their_keys() {
    let machine = machine();
    let first = start(on(&machine)).await;
    let second = start(on(&machine)).await;
    assert_eq!(first.swarm(), second.swarm());
    within("put", second.client().put("greeting", "hello")).await.unwrap();
    let entry = within("get", first.client().get("greeting")).await.unwrap().unwrap();
    assert_eq!(entry.value, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_started_at_once_on_one_machine_make_one_swarm() {
    let machine = machine();
    let starts = (0..5).map(|_| start(on(&machine)));
    let nodes = within("five nodes", futures::future::join_all(starts)).await;
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    assert!(nodes.iter().all(|node| node.swarm() == nodes[0].swarm()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_all_that_another_machine_needs() {
    let (one, other) = (machine(), machine());
    let first = start(on(&one).swarm("party")).await;
    let second = start(on(&other).join([first.ticket()])).await;
    assert_eq!(second.swarm_name(), "party");
    assert_eq!(first.swarm(), second.swarm());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_is_refused_and_both_sides_say_so() {
    let (one, other) = (machine(), machine());
    let first = start(on(&one)).await;
    let mut first_events = first.events();
    let stranger = on(&other).secret(Secret::random()).join(first.addresses()).start().await.unwrap();
    let mut stranger_events = stranger.events();
    let refused = |event: &NodeEvent| matches!(event, NodeEvent::Refused { reason, .. } | NodeEvent::DialFailed { reason, .. } if reason.contains("secret"));
    event(&mut stranger_events, "the stranger is told", refused).await;
    event(&mut first_events, "the node is told", refused).await;
    assert_eq!(stranger.swarm(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_empty_swarms_that_meet_become_one() {
    let (one, other) = (machine(), machine());
    let secret = Secret::random();
    let first = start(on(&one).secret(secret.clone())).await;
    let second = start(on(&other).secret(secret.clone())).await;
    assert_ne!(first.swarm(), second.swarm());
    // Somebody who knows both makes them meet.
    let matchmaker = on(&machine()).secret(secret).join([first.addresses(), second.addresses()].concat());
    let third = start(matchmaker).await;
    settled(&[&first, &second, &third], 3).await;
    assert_eq!(first.swarm(), second.swarm());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_swarm_gives_way_to_one_with_data() {
    for _ in 0..2 {
        let (one, other) = (machine(), machine());
        let secret = Secret::random();
        let first = start(on(&one).secret(secret.clone())).await;
        first.client().put("key", "value").await.unwrap();
        let second = start(on(&other).secret(secret.clone())).await;
        let matchmaker = on(&machine()).secret(secret).join([first.addresses(), second.addresses()].concat());
        let third = start(matchmaker).await;
        settled(&[&first, &second, &third], 3).await;
        let entry = second.client().get("key").await.unwrap().unwrap();
        assert_eq!(entry.value, b"value");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_swarms_with_data_stay_apart_and_say_so() {
    let (one, other) = (machine(), machine());
    let secret = Secret::random();
    let first = start(on(&one).secret(secret.clone())).await;
    let second = start(on(&other).secret(secret.clone())).await;
    first.client().put("key", "first").await.unwrap();
    second.client().put("key", "second").await.unwrap();
    let (mut first_events, mut second_events) = (first.events(), second.events());
    let matchmaker = on(&machine()).secret(secret).join([first.addresses(), second.addresses()].concat());
    let _third = start(matchmaker).await;
    let apart = |event: &NodeEvent| matches!(event, NodeEvent::Apart { .. });
    // Only those that are linked with the other swarm can know; the third is, and so tells its own.
    tokio::select! {
        () = event(&mut first_events, "the first says so", apart) => {}
        () = event(&mut second_events, "the second says so", apart) => {}
    }
    assert_eq!(first.client().get("key").await.unwrap().unwrap().value, b"first");
    assert_eq!(second.client().get("key").await.unwrap().unwrap().value, b"second");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_three_down_to_one_nothing_is_lost() {
    let machine = machine();
    let nodes = [start(on(&machine)).await, start(on(&machine)).await, start(on(&machine)).await];
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let client = nodes[0].client();
    for index in 0..100 {
        client.put(format!("key{index}"), "value").await.unwrap();
    }
    within("the third leaves", nodes[2].leave()).await;
    within("the second leaves", nodes[1].leave()).await;
    for index in 0..100 {
        let entry = client.get(format!("key{index}")).await.unwrap();
        assert!(entry.is_some(), "key{index} is lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_reads_and_writes_and_is_no_member() {
    let machine = machine();
    let node = start(on(&machine)).await;
    let visitor = Visitor::builder().runtime_directory(machine.path().join("run"));
    let visitor = within("the visitor is linked", visitor.connect()).await.unwrap();
    visitor.client().put("key", "value").await.unwrap();
    assert_eq!(node.client().get("key").await.unwrap().unwrap().value, b"value");
    assert_eq!(visitor.client().view().await.unwrap().members.len(), 1);
    visitor.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_still_looking_stops_at_once() {
    let machine = machine();
    let joiner = on(&machine).join(["127.0.0.1:9"]).start().await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), joiner.leave()).await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_node_is_gone_even_if_a_client_of_it_lives_on() {
    let machine = machine();
    let first = start(on(&machine)).await;
    let second = start(on(&machine)).await;
    settled(&[&first, &second], 2).await;
    let (gone, _client) = (second.id(), second.client());
    drop(second);
    let unlinked = async {
        loop {
            let status = first.client().status(first.id()).await.unwrap();
            if !status.links.contains(&gone) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the link is cut", unlinked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_dials_the_address_again_after_the_node_there_was_replaced() {
    let (one, other) = (machine(), machine());
    let secret = Secret::random();
    // It never founds while this test runs: what links with it has an address that worked and no swarm.
    let waiting = on(&one).secret(secret.clone()).join(["127.0.0.1:9"]).start().await.unwrap();
    let address = waiting.addresses().into_iter().find(|address| address.contains("127.0.0.1")).unwrap();
    let port: u16 = address.rsplit('/').next().unwrap().parse().unwrap();
    let joiner = on(&other).secret(secret.clone()).join([address]).start().await.unwrap();
    let linked = async {
        while !joiner.client().status(joiner.id()).await.is_ok_and(|status| !status.links.is_empty()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the joiner is linked", linked).await;
    drop(waiting);
    let replaced = async {
        loop {
            // As soon as the port is free.
            match on(&one).secret(secret.clone()).port(port).start().await {
                Ok(node) => break node,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let again = within("another node listens there", replaced).await;
    within("the joiner is in its swarm", joiner.ready()).await;
    assert_eq!(joiner.swarm(), again.swarm());
}

/// Tasks of this test's own runtime.
fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_or_was_dropped_leaves_no_task_behind() {
    let machine = machine();
    let before = tasks();
    let nodes = [start(on(&machine)).await, start(on(&machine)).await];
    nodes[0].client().put("key", "value").await.unwrap();
    assert!(tasks() > before);
    within("one leaves", nodes[0].leave()).await;
    drop(nodes);
    let ended = async {
        while tasks() > before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("all tasks have ended", ended).await;
}
