//! Nodes find each other: on one machine, on a network, by a ticket; and keep strangers out.

use std::time::Duration;

use roundtable::net::{Secret, Ticket};

use super::network::address;
use super::{LIMIT, Lab, measured, now, rounds, say, since, within};

/// From the second node's start to its first served write.
const FIRST_PUT_LIMIT: Duration = Duration::from_secs(3);

/// Starts a second node and writes through it at once; the first reads it.
fn second_serves(mut lab: Lab, what: &str, flags: &[&str]) {
    lab.up(1, flags);
    let started = now();
    lab.ready(1);
    lab.put(1, "greeting", "hello");
    measured(&format!("{what}: the second node's start to its first put"), since(started), FIRST_PUT_LIMIT);
    lab.agreed(LIMIT);
    assert_eq!(lab.get(0, "greeting"), "hello");
}

#[test]
fn two_nodes_on_this_machine_need_no_flag() {
    let mut lab = Lab::this_machine();
    lab.up(0, &[]);
    lab.ready(0);
    second_serves(lab, "one machine", &[]);
}

#[test]
fn two_nodes_on_a_machine_without_network_need_no_flag() {
    let Some(mut lab) = Lab::machine_without_network() else { return };
    lab.up(0, &[]);
    lab.ready(0);
    second_serves(lab, "loopback only", &[]);
}

#[test]
fn an_open_swarm_needs_multicast_dns_alone() {
    let Some(mut lab) = Lab::bridge(2) else { return };
    lab.up(0, &["--lan", "--open"]);
    lab.ready(0);
    second_serves(lab, "--lan --open", &["--lan", "--open"]);
}

#[test]
fn a_shared_secret_and_multicast_dns_are_enough() {
    let Some(mut lab) = Lab::bridge(2) else { return };
    let file = secret_file(&lab, "secret");
    let flags = ["--lan", "--secret-file", file.as_str()];
    lab.up(0, &flags);
    lab.ready(0);
    second_serves(lab, "--lan --secret-file", &flags);
}

#[test]
fn a_ticket_is_enough_without_multicast_dns() {
    let Some(mut lab) = Lab::bridge(2) else { return };
    lab.up(0, &["--lan", "--no-mdns"]);
    lab.ready(0);
    let ticket = lab.cli(0, &["ticket"]).out.trim().to_owned();
    second_serves(lab, "--join TICKET --no-mdns", &["--no-mdns", "--join", &ticket]);
}

#[test]
fn a_machine_that_gets_another_address_is_joined_there() {
    let Some(mut lab) = Lab::bridge(2) else { return };
    lab.up(0, &["--lan", "--no-mdns"]);
    lab.ready(0);
    lab.network().add_address(0, "10.78.0.1");
    lab.network().add_address(1, "10.78.0.2");
    lab.says(0, "listening on 10.78.0.1:");
    let ticket = within(LIMIT, "the ticket names the new address", || {
        let text = lab.cli(0, &["ticket"]).out.trim().to_owned();
        let ticket: Ticket = text.parse().expect("a ticket");
        ticket.addresses.iter().any(|address| address.contains("/10.78.0.1/")).then_some(text)
    });
    second_serves(lab, "--join TICKET at the new address", &["--no-mdns", "--join", &ticket]);
}

#[test]
fn another_secret_is_refused_and_both_sides_say_so() {
    let Some(mut lab) = Lab::bridge(2) else { return };
    let (ours, theirs) = (secret_file(&lab, "ours"), secret_file(&lab, "theirs"));
    lab.up(0, &["--lan", "--secret-file", &ours]);
    lab.ready(0);
    lab.put(0, "key", "value");
    lab.up(1, &["--lan", "--secret-file", &theirs, "--join", "10.77.0.1:7400"]);
    for node in [1, 0] {
        let line = lab.says(node, "secret");
        say(&format!("node {node} about the other secret: {line}"));
    }
    assert_eq!(lab.cli(1, &["status"]).code, Some(6), "the stranger has no swarm");
    assert_eq!(lab.get(0, "key"), "value");
    let members = lab.members(0).expect("it answers");
    assert_eq!(members.members.len(), 1, "{members:?}");
}

#[test]
fn five_nodes_started_at_once_make_one_swarm() {
    let rounds = rounds(2);
    let mut slowest = Duration::ZERO;
    for round in 1..=rounds {
        let Some(mut lab) = Lab::bridge(5) else { return };
        let started = now();
        for node in 0..5 {
            lab.up(node, &["--lan", "--open"]);
        }
        lab.agreed(LIMIT);
        let took = since(started);
        for node in 0..5 {
            let line = lab.says(node, " listens on ");
            assert!(line.contains(&address(node)), "node {node} does not say how others reach it: {line}");
        }
        slowest = slowest.max(took);
        let founders = (0..5).filter(|&node| lab.node(node).output().contains("founded the swarm")).count();
        say(&format!("round {round}: one swarm of five after {took:.2?}, founders: {founders}"));
    }
    say(&format!("five at once: one swarm in {rounds} of {rounds} rounds, the slowest after {slowest:.2?}"));
}

pub(super) fn secret_file(lab: &Lab, name: &str) -> String {
    let file = lab.file(name);
    std::fs::write(&file, Secret::random().to_text()).expect("a secret file");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("private");
    }
    file.to_str().expect("a name").to_owned()
}
