//! The commands that look: members, ring, where, status, ticket.
//!
//! What is shown is one node's view; the functions that make reports of it are pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::connect::{Client, Session, Target, connect};
use super::exit::{Code, Failure};
use super::render::{Output, Table, json_bytes, printable};
use super::units;
use crate::id::{NodeId, PartitionId};
use crate::membership::MemberState;
use crate::ring::{DEFAULT_REPLICAS, PartitionCount, Ring, Token};
use crate::wire::{MemberView, NodeStatus, SwarmState, SwarmView};

/// `members`.
pub(super) async fn members(target: &Target, output: Output) -> Result<(), Failure> {
    let view = connect(target).await?.client.view().await?;
    output.answer(|| members_text(&view, output), || members_json(&view))?;
    Ok(())
}

/// `ring`.
pub(super) async fn ring(target: &Target, output: Output) -> Result<(), Failure> {
    let view = connect(target).await?.client.view().await?;
    output.answer(|| ring_text(&view, output), || ring_json(&view))?;
    Ok(())
}

/// `ticket`.
pub(super) async fn ticket(target: &Target, output: Output) -> Result<(), Failure> {
    let ticket = connect(target).await?.client.ticket().await?;
    output.answer(|| ticket.clone(), || json!({"ticket": ticket}))?;
    Ok(())
}

/// `where`.
#[derive(Debug)]
pub(super) struct Where {
    /// The key.
    pub(super) key: Vec<u8>,
}

impl Where {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let view = connect(target).await?.client.view().await?;
        let place = Place::of(&self.key, &view)?;
        output.answer(|| place.text(&view), || place.json())?;
        Ok(())
    }
}

/// `status`.
#[derive(Debug)]
pub(super) struct Status {
    /// Which node; `None`: the nearest.
    pub(super) node: Option<String>,
}

impl Status {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = &session.client;
        let node = match &self.node {
            Some(text) => member_named(client, text).await?,
            None => nearest(&session)?,
        };
        let status = client.status(node).await?;
        output.answer(|| status_text(&status), || status_json(&status))?;
        verdict(&status)
    }
}

/// The node that this process is linked with.
pub(super) fn nearest(session: &Session) -> Result<NodeId, Failure> {
    session
        .linked_node()
        .ok_or_else(|| Failure::new(Code::Unreachable, "no node answers; `roundtable up` starts one"))
}

/// The member that the end of an id names.
pub(super) async fn member_named(client: &Client, text: &str) -> Result<NodeId, Failure> {
    let view = client.view().await?;
    choose(text, view.members.iter().map(|member| member.node))
}

/// Finds a node by its id or the end of it, with or without the leading dots.
fn choose(text: &str, nodes: impl Iterator<Item = NodeId>) -> Result<NodeId, Failure> {
    let end = text.trim_start_matches('.');
    let fitting: Vec<NodeId> = nodes.filter(|node| node.to_string().ends_with(end)).collect();
    match fitting.as_slice() {
        [node] if !end.is_empty() => Ok(*node),
        [] => {
            Err(Failure::other(format!("no member's id ends with `{end}`; `roundtable members` lists them")))
        }
        _ => {
            Err(Failure::other(format!("{} members' ids end with `{end}`: write more of it", fitting.len())))
        }
    }
}

/// A node's name for people.
pub(super) fn name(node: NodeId) -> String {
    format!("..{}", node.short())
}

/// An address for people: `192.168.1.7:7400` instead of `/ip4/192.168.1.7/tcp/7400`.
pub(super) fn plain_address(address: &str) -> String {
    let parts: Vec<&str> = address.split('/').collect();
    match parts.as_slice() {
        ["", "ip6", host, "tcp", port, ..] => format!("[{host}]:{port}"),
        ["", _, host, "tcp", port, ..] => format!("{host}:{port}"),
        ["", _, host] => (*host).to_owned(),
        _ => address.to_owned(),
    }
}

/// The word for a member's standing.
pub(super) fn standing(member: &MemberView) -> &'static str {
    match member.state {
        MemberState::Alive if member.draining => "leaving",
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Dead => "dead",
        MemberState::Left => "left",
    }
}

/// The members as a table.
pub(super) fn members_text(view: &SwarmView, output: Output) -> String {
    let leads = leads(view);
    let mut table = Table::new(&["NODE", "STATE", "ADDRESS", "WEIGHT", "LEADS"]);
    for member in &view.members {
        let here = if member.node == view.node { " *" } else { "" };
        table.row([
            name(member.node) + here,
            standing(member).to_owned(),
            member.addresses.first().map_or_else(|| "-".to_owned(), |address| plain_address(address)),
            member.weight.to_string(),
            leads.get(&member.node).copied().unwrap_or(0).to_string(),
        ]);
    }
    let alive = alive(view);
    let led = view.leaders.iter().flatten().count();
    format!(
        "{}\n\nswarm `{}` {}: {alive} alive, {led} of {} partitions have a leader; * answered",
        table.render(output),
        view.name,
        view.swarm,
        view.partitions,
    )
}

/// How many members are alive or suspected.
pub(super) fn alive(view: &SwarmView) -> usize {
    let counts = |member: &&MemberView| matches!(member.state, MemberState::Alive | MemberState::Suspect);
    view.members.iter().filter(counts).count()
}

fn leads(view: &SwarmView) -> BTreeMap<NodeId, usize> {
    let mut leads = BTreeMap::new();
    for leader in view.leaders.iter().flatten() {
        *leads.entry(*leader).or_insert(0) += 1;
    }
    leads
}

fn members_json(view: &SwarmView) -> Value {
    let leads = leads(view);
    let members: Vec<Value> = view
        .members
        .iter()
        .map(|member| {
            json!({
                "node": member.node.to_string(),
                "state": standing(member),
                "addresses": member.addresses,
                "weight": member.weight,
                "on_ring": member.on_ring,
                "leads": leads.get(&member.node).copied().unwrap_or(0),
            })
        })
        .collect();
    json!({
        "swarm": view.swarm.to_string(),
        "name": view.name,
        "partitions": view.partitions,
        "answered_by": view.node.to_string(),
        "alive": alive(view),
        "members": members,
    })
}

/// The ring that follows from a view; `None` if the view's number of partitions is none.
fn ring_of(view: &SwarmView) -> Option<Ring> {
    let partitions = PartitionCount::new(view.partitions).ok()?;
    let placed = view.members.iter().filter(|member| member.on_ring);
    Some(Ring::new(placed.map(|member| (member.node, member.weight)), partitions, DEFAULT_REPLICAS))
}

/// One member's part of the ring.
#[derive(Debug, PartialEq)]
struct Share {
    node: NodeId,
    weight: u32,
    owns: usize,
    holds: usize,
    leads: usize,
    /// What it holds, relative to its weighted share; 1.0 is perfect.
    load: f64,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "at most 4096 partitions and a few members; two digits are shown"
)]
fn shares(view: &SwarmView) -> Vec<Share> {
    let Some(ring) = ring_of(view) else {
        return Vec::new();
    };
    let placed: Vec<&MemberView> = view.members.iter().filter(|member| member.on_ring).collect();
    let leads = leads(view);
    let weights: u32 = placed.iter().map(|member| member.weight).sum();
    let replicas = DEFAULT_REPLICAS.min(placed.len()) * view.partitions as usize;
    placed
        .into_iter()
        .map(|member| {
            let (owns, holds) = ring.share(member.node);
            // Nobody can hold a partition twice: the share of a heavy member ends at all partitions.
            let share = replicas as f64 * f64::from(member.weight) / f64::from(weights.max(1));
            let share = share.min(f64::from(view.partitions));
            Share {
                node: member.node,
                weight: member.weight,
                owns,
                holds,
                leads: leads.get(&member.node).copied().unwrap_or(0),
                load: holds as f64 / share.max(f64::MIN_POSITIVE),
            }
        })
        .collect()
}

/// The ring as a table.
pub(super) fn ring_text(view: &SwarmView, output: Output) -> String {
    let shares = shares(view);
    let mut table = Table::new(&["NODE", "WEIGHT", "OWNS", "HOLDS", "LEADS NOW", "LOAD"]);
    for share in &shares {
        table.row([
            name(share.node),
            share.weight.to_string(),
            share.owns.to_string(),
            share.holds.to_string(),
            share.leads.to_string(),
            format!("{:.2}", share.load),
        ]);
    }
    let replicas = DEFAULT_REPLICAS.min(shares.len());
    let fullest = shares.iter().map(|share| share.load).fold(0.0, f64::max);
    format!(
        "{}\n\n{} partitions, {replicas} {} of each; the fullest member holds {fullest:.2} times its share (bound 1.25)",
        table.render(output),
        view.partitions,
        if replicas == 1 { "replica" } else { "replicas" },
    )
}

fn ring_json(view: &SwarmView) -> Value {
    let members: Vec<Value> = shares(view)
        .iter()
        .map(|share| {
            json!({
                "node": share.node.to_string(),
                "weight": share.weight,
                "owns": share.owns,
                "holds": share.holds,
                "leads": share.leads,
                "load": (share.load * 1000.0).round() / 1000.0,
            })
        })
        .collect();
    json!({"partitions": view.partitions, "members": members})
}

/// Where a key is.
#[derive(Debug)]
pub(super) struct Place {
    key: Vec<u8>,
    token: Token,
    partition: PartitionId,
    partitions: u32,
    /// The owner first.
    replicas: Vec<NodeId>,
    leader: Option<NodeId>,
    answered_by: NodeId,
}

impl Place {
    /// Finds a key by what a node sees of the swarm.
    pub(super) fn of(key: &[u8], view: &SwarmView) -> Result<Self, Failure> {
        let ring = ring_of(view).ok_or_else(|| Failure::other("the node's view of the swarm is damaged"))?;
        let partition = ring.partition_of(key);
        let leader =
            usize::try_from(partition.0).ok().and_then(|index| view.leaders.get(index).copied().flatten());
        Ok(Self {
            key: key.to_vec(),
            token: ring.token_of(key),
            partition,
            partitions: view.partitions,
            replicas: ring.replicas(partition).to_vec(),
            leader,
            answered_by: view.node,
        })
    }

    /// A line per fact.
    pub(super) fn text(&self, view: &SwarmView) -> String {
        let at = |node: &NodeId| {
            let member = view.members.iter().find(|member| member.node == *node);
            match member.and_then(|member| member.addresses.first()) {
                Some(address) => format!("{} at {}", name(*node), plain_address(address)),
                None => name(*node),
            }
        };
        let replicas: Vec<String> = self.replicas.iter().map(|node| name(*node)).collect();
        let path = match self.leader {
            Some(leader) => format!("here -> {}, one hop to the leader", at(&leader)),
            None => {
                "here -> any replica, which waits for a leader: writes may end with `no quorum`".to_owned()
            }
        };
        let lines = [
            ("key", printable(&self.key)),
            ("token", format!("{} (its SHA-1)", hex(self.token.as_bytes()))),
            ("partition", format!("{} of {}", self.partition, self.partitions)),
            ("owner", self.replicas.first().map_or_else(|| "nobody".to_owned(), at)),
            ("leader", self.leader.as_ref().map_or_else(|| "none known".to_owned(), at)),
            ("replicas", replicas.join(", ")),
            ("path", path),
        ];
        let lines = lines.map(|(title, text)| format!("{title:<9}  {text}"));
        lines.join("\n")
    }

    fn json(&self) -> Value {
        let mut object = serde_json::Map::new();
        json_bytes(&mut object, "key", &self.key);
        let replicas: Vec<String> = self.replicas.iter().map(ToString::to_string).collect();
        object.insert("token".to_owned(), json!(hex(self.token.as_bytes())));
        object.insert("partition".to_owned(), json!(self.partition.0));
        object.insert("partitions".to_owned(), json!(self.partitions));
        object.insert("owner".to_owned(), json!(replicas.first()));
        object.insert("leader".to_owned(), json!(self.leader.map(|leader| leader.to_string())));
        object.insert("replicas".to_owned(), json!(replicas));
        object.insert("answered_by".to_owned(), json!(self.answered_by.to_string()));
        Value::Object(object)
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16));
    bytes.iter().flat_map(digits).flatten().collect()
}

/// What a node's replicas come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    replicas: usize,
    leads: usize,
    without_quorum: usize,
    keys: u64,
    bytes: u64,
    log_entries: u64,
}

fn totals(status: &NodeStatus) -> Totals {
    let mut totals = Totals { replicas: status.replicas.len(), ..Totals::default() };
    for replica in &status.replicas {
        totals.leads += usize::from(replica.leader == Some(status.node));
        totals.without_quorum += usize::from(!replica.has_quorum);
        totals.keys += replica.keys;
        totals.bytes += replica.bytes;
        totals.log_entries += replica.log_entries;
    }
    totals
}

fn swarm_text(status: &NodeStatus) -> String {
    match status.state {
        SwarmState::Unfounded { joining: true } => {
            format!("`{}`: not joined yet, keeps trying", status.name)
        }
        SwarmState::Unfounded { joining: false } => format!("`{}`: looking for it", status.name),
        SwarmState::Founded { swarm, partitions } => {
            format!("`{}` {swarm}, {partitions} partitions", status.name)
        }
        SwarmState::Visitor => format!("`{}`: a visitor, not a member", status.name),
    }
}

fn status_text(status: &NodeStatus) -> String {
    let totals = totals(status);
    let serving = match verdict(status) {
        Ok(()) if status.leaving => "leaving".to_owned(),
        Ok(()) => "serving".to_owned(),
        Err(failure) => failure.message,
    };
    let links: Vec<String> = status.links.iter().map(|node| name(*node)).collect();
    let lines = [
        ("node", status.node.to_string()),
        ("state", serving),
        ("swarm", swarm_text(status)),
        ("addresses", status.addresses.join(" ")),
        ("links", format!("{} {}", links.len(), links.join(" "))),
        (
            "replicas",
            format!(
                "{} ({} led here, {} without quorum)",
                totals.replicas, totals.leads, totals.without_quorum
            ),
        ),
        (
            "data",
            format!(
                "{} keys, {}, {} log entries",
                units::count(totals.keys),
                units::bytes(totals.bytes),
                units::count(totals.log_entries)
            ),
        ),
        ("up", units::duration(Duration::from_millis(status.uptime_ms))),
        ("version", status.version.clone()),
    ];
    lines.map(|(title, text)| format!("{title:<9}  {}", text.trim_end())).join("\n")
}

fn status_json(status: &NodeStatus) -> Value {
    let totals = totals(status);
    let swarm = match status.state {
        SwarmState::Founded { swarm, .. } => Some(swarm.to_string()),
        SwarmState::Unfounded { .. } | SwarmState::Visitor => None,
    };
    let ids = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>();
    let replicas: Vec<Value> = status
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "partition": replica.partition.0,
                "leader": replica.leader.map(|leader| leader.to_string()),
                "has_quorum": replica.has_quorum,
                "voters": ids(&replica.voters),
                "learners": ids(&replica.learners),
                "keys": replica.keys,
                "bytes": replica.bytes,
                "applied": replica.applied,
                "log_entries": replica.log_entries,
            })
        })
        .collect();
    json!({
        "node": status.node.to_string(),
        "version": status.version,
        "name": status.name,
        "swarm": swarm,
        "serving": verdict(status).is_ok(),
        "leaving": status.leaving,
        "addresses": status.addresses,
        "uptime_ms": status.uptime_ms,
        "links": ids(&status.links),
        "leads": totals.leads,
        "without_quorum": totals.without_quorum,
        "keys": totals.keys,
        "bytes": totals.bytes,
        "log_entries": totals.log_entries,
        "replicas": replicas,
    })
}

/// Whether the node serves, as `status` says it by its exit code.
fn verdict(status: &NodeStatus) -> Result<(), Failure> {
    match status.state {
        SwarmState::Founded { .. } => {}
        SwarmState::Unfounded { .. } | SwarmState::Visitor => {
            return Err(Failure::new(Code::Unreachable, "the node has no swarm yet"));
        }
    }
    match totals(status).without_quorum {
        0 => Ok(()),
        some => Err(Failure::new(
            Code::NoQuorum,
            format!("{some} of {} replicas have no quorum", status.replicas.len()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::Format;
    use crate::id::SwarmId;
    use crate::wire::PartitionStatus;

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    fn member(number: u8) -> MemberView {
        MemberView {
            node: node(number),
            addresses: vec![format!("/ip4/10.0.0.{number}/tcp/7400")],
            weight: 1,
            state: MemberState::Alive,
            draining: false,
            on_ring: true,
        }
    }

    fn view(members: u8) -> SwarmView {
        let mut view = SwarmView {
            swarm: SwarmId(7),
            name: "default".to_owned(),
            partitions: 64,
            node: node(1),
            members: (1..=members).map(member).collect(),
            leaders: vec![None; 64],
        };
        let ring = ring_of(&view).expect("64 partitions");
        view.leaders = (0..64).map(|number| ring.owner(PartitionId(number))).collect();
        view
    }

    fn plain() -> Output {
        Output::plain(Format::Text)
    }

    #[test]
    fn the_shares_of_a_ring_add_up_and_keep_the_bound() {
        let shares = shares(&view(5));
        assert_eq!(shares.iter().map(|share| share.owns).sum::<usize>(), 64);
        assert_eq!(shares.iter().map(|share| share.holds).sum::<usize>(), 3 * 64);
        assert_eq!(shares.iter().map(|share| share.leads).sum::<usize>(), 64);
        assert!(shares.iter().all(|share| share.load <= 1.27), "{shares:?}");
    }

    #[test]
    fn a_member_that_left_is_shown_and_holds_nothing() {
        let mut view = view(3);
        view.members[2].state = MemberState::Left;
        view.members[2].on_ring = false;
        assert_eq!(shares(&view).len(), 2);
        let text = members_text(&view, plain());
        assert!(text.contains("left"), "{text}");
        assert!(text.contains("2 alive"), "{text}");
        assert!(ring_text(&view, plain()).contains("2 replicas of each"));
    }

    #[test]
    fn where_names_the_leader_and_the_path() {
        let mut view = view(4);
        let place = Place::of(b"greeting", &view).expect("placed");
        let leader = place.leader.expect("led");
        let text = place.text(&view);
        assert!(text.contains(&format!("here -> {}", name(leader))), "{text}");
        assert_eq!(place.replicas.len(), 3);
        assert_eq!(place.json()["leader"], leader.to_string());

        view.leaders.clear();
        let place = Place::of(b"greeting", &view).expect("placed");
        assert!(place.text(&view).contains("none known"));
    }

    #[test]
    fn nodes_are_chosen_by_the_end_of_their_id() {
        let nodes = [node(1), node(2)];
        let choose = |text: &str| choose(text, nodes.iter().copied());
        assert_eq!(choose(&node(1).to_string()), Ok(node(1)));
        assert_eq!(choose(&name(node(2))), Ok(node(2)));
        assert!(choose("nobody").is_err());
        assert!(choose("").is_err());
    }

    #[test]
    fn status_says_by_its_code_whether_the_node_serves() {
        let mut status = NodeStatus {
            node: node(1),
            version: "0.1.0".to_owned(),
            name: "default".to_owned(),
            state: SwarmState::Unfounded { joining: false },
            addresses: Vec::new(),
            uptime_ms: 5_000,
            links: Vec::new(),
            leaving: false,
            replicas: Vec::new(),
            storage: None,
        };
        assert_eq!(verdict(&status).expect_err("no swarm").code, Code::Unreachable);
        status.state = SwarmState::Founded { swarm: SwarmId(7), partitions: 64 };
        assert_eq!(verdict(&status), Ok(()));
        assert!(status_text(&status).contains("serving"));
        status.replicas.push(PartitionStatus {
            partition: PartitionId(0),
            leader: None,
            has_quorum: false,
            voters: vec![node(1), node(2)],
            learners: Vec::new(),
            keys: 3,
            bytes: 300,
            applied: 9,
            log_entries: 9,
            term: 1,
            last: (0, 0),
            damaged: false,
        });
        assert_eq!(verdict(&status).expect_err("no quorum").code, Code::NoQuorum);
        assert!(status_text(&status).contains("1 of 1 replicas have no quorum"));
        assert_eq!(status_json(&status)["keys"], 3);
    }

    #[test]
    fn addresses_are_shown_as_people_write_them() {
        assert_eq!(plain_address("/ip4/192.168.1.7/tcp/7400"), "192.168.1.7:7400");
        assert_eq!(plain_address("/ip6/::1/tcp/7400"), "[::1]:7400");
        assert_eq!(plain_address("/dns4/host/tcp/1/p2p/x"), "host:1");
        assert_eq!(plain_address("/ip4/10.0.0.7"), "10.0.0.7");
        assert_eq!(plain_address("nonsense"), "nonsense");
    }
}
