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
use crate::wire::{MemberView, NodeStatus, StorageStatus, SwarmState, SwarmView};

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
        // Only for the names and addresses of those that are missing.
        let members = client.view_of(node).await.map(|view| view.members).unwrap_or_default();
        output.answer(|| status_text(&status, &members), || status_json(&status, &members))?;
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
        MemberState::Dead if member.since_ms.is_none() => "unheard",
        MemberState::Dead => "dead",
        MemberState::Left => "left",
    }
}

/// A member that is missing: its name, where it was and since when it has been away, as far as that is known.
pub(super) fn missing_text(node: NodeId, members: &[MemberView]) -> String {
    let Some(member) = members.iter().find(|member| member.node == node) else {
        return format!("{} (known by its id only)", name(node));
    };
    let at = member.addresses.first().map_or_else(String::new, |at| format!(" at {}", plain_address(at)));
    let state = match (member.state, member.since_ms) {
        (MemberState::Dead, None) => "not heard of since this node started".to_owned(),
        (MemberState::Alive, _) => "no link to it".to_owned(),
        (_, Some(ms)) => {
            format!("{} for {}", standing(member), units::duration(Duration::from_millis(ms)))
        }
        (_, None) => standing(member).to_owned(),
    };
    format!("{}{at} ({state})", name(node))
}

/// The same for programs.
pub(super) fn missing_json(node: NodeId, members: &[MemberView]) -> Value {
    let member = members.iter().find(|member| member.node == node);
    json!({
        "node": node.to_string(),
        "addresses": member.map(|member| &member.addresses),
        "state": member.map(standing),
        "since_ms": member.and_then(|member| member.since_ms),
    })
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
pub(super) fn ring_of(view: &SwarmView) -> Option<Ring> {
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
    damaged: usize,
    keys: u64,
    bytes: u64,
    log_entries: u64,
}

fn totals(status: &NodeStatus) -> Totals {
    let mut totals = Totals { replicas: status.replicas.len(), ..Totals::default() };
    for replica in &status.replicas {
        totals.leads += usize::from(replica.leader == Some(status.node));
        totals.without_quorum += usize::from(!replica.has_quorum);
        totals.damaged += usize::from(replica.damaged);
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

/// Partitions whose replica on a node has no quorum, and who is missing: partitions of one fate together.
#[derive(Debug, PartialEq, Eq)]
struct Stalled {
    partitions: Vec<PartitionId>,
    voters: Vec<NodeId>,
    missing: Vec<NodeId>,
    damaged: bool,
}

fn stalled(status: &NodeStatus) -> Vec<Stalled> {
    let mut groups: BTreeMap<(bool, Vec<NodeId>), Vec<PartitionId>> = BTreeMap::new();
    for replica in status.replicas.iter().filter(|replica| !replica.has_quorum) {
        let mut voters = replica.voters.clone();
        voters.sort_unstable();
        groups.entry((replica.damaged, voters)).or_default().push(replica.partition);
    }
    let is_missing = |node: &NodeId| *node != status.node && !status.links.contains(node);
    groups
        .into_iter()
        .map(|((damaged, voters), partitions)| Stalled {
            partitions,
            missing: voters.iter().copied().filter(is_missing).collect(),
            voters,
            damaged,
        })
        .collect()
}

impl Stalled {
    fn text(&self, members: &[MemberView]) -> String {
        let partitions = units::ranges(&self.partitions);
        let names: Vec<String> = self.voters.iter().map(|node| name(*node)).collect();
        if self.damaged {
            return format!(
                "  partitions {partitions}: damaged on this node's disk; made anew from the others ({}), if they are a majority",
                names.join(", ")
            );
        }
        let missing: Vec<String> = self.missing.iter().map(|node| missing_text(*node, members)).collect();
        let missing = match missing.as_slice() {
            [] => "all of them are linked, so a leader may be elected any moment".to_owned(),
            missing => format!("missing {}", missing.join(", ")),
        };
        format!("  partitions {partitions}: voters {}; {missing}", names.join(", "))
    }

    fn json(&self, members: &[MemberView]) -> Value {
        let ids = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>();
        let partitions: Vec<u32> = self.partitions.iter().map(|partition| partition.0).collect();
        let missing: Vec<Value> = self.missing.iter().map(|node| missing_json(*node, members)).collect();
        json!({
            "partitions": partitions,
            "damaged": self.damaged,
            "voters": ids(&self.voters),
            "missing": missing,
        })
    }
}

fn storage_text(storage: &StorageStatus) -> String {
    let full = if storage.full { "; FULL: takes no writes, serves reads" } else { "" };
    format!(
        "{}: log {}, states {}, {} syncs{full}",
        storage.path,
        units::bytes(storage.log_bytes),
        units::bytes(storage.state_bytes),
        units::count(storage.fsyncs),
    )
}

fn storage_json(storage: &StorageStatus) -> Value {
    json!({
        "path": storage.path,
        "full": storage.full,
        "fsyncs": storage.fsyncs,
        "bytes_written": storage.bytes_written,
        "log_bytes": storage.log_bytes,
        "state_bytes": storage.state_bytes,
    })
}

fn status_text(status: &NodeStatus, members: &[MemberView]) -> String {
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
                "{} ({} led here, {} without quorum{})",
                totals.replicas,
                totals.leads,
                totals.without_quorum,
                if totals.damaged > 0 { format!(", {} damaged", totals.damaged) } else { String::new() }
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
        (
            "disk",
            status
                .storage
                .as_ref()
                .map_or_else(|| "none: nothing outlives a restart".to_owned(), storage_text),
        ),
        ("up", units::duration(Duration::from_millis(status.uptime_ms))),
        ("version", status.version.clone()),
    ];
    let mut lines: Vec<String> =
        lines.iter().map(|(title, text)| format!("{title:<9}  {}", text.trim_end())).collect();
    let stalled = stalled(status);
    if !stalled.is_empty() {
        lines.push("without quorum:".to_owned());
        lines.extend(stalled.iter().map(|stalled| stalled.text(members)));
        lines.push(
            "bring the missing back; if they are gone for good, `roundtable recover` says what is left"
                .to_owned(),
        );
    }
    lines.join("\n")
}

fn status_json(status: &NodeStatus, members: &[MemberView]) -> Value {
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
                "term": replica.term,
                "last_index": replica.last.0,
                "last_term": replica.last.1,
                "damaged": replica.damaged,
            })
        })
        .collect();
    let stalled: Vec<Value> = stalled(status).iter().map(|stalled| stalled.json(members)).collect();
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
        "damaged": totals.damaged,
        "stalled": stalled,
        "storage": status.storage.as_ref().map(storage_json),
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
            since_ms: Some(1_000),
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
        let text = status_text(&status, &[]);
        assert!(text.contains("serving") && text.contains("nothing outlives"), "{text}");
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
        assert!(status_text(&status, &[]).contains("1 of 1 replicas have no quorum"));
        assert_eq!(status_json(&status, &[])["keys"], 3);
    }

    #[test]
    fn status_names_who_is_missing_and_since_when() {
        let stalled = |partition, voters: &[u8], damaged| PartitionStatus {
            partition: PartitionId(partition),
            leader: None,
            has_quorum: false,
            voters: voters.iter().map(|number| node(*number)).collect(),
            learners: Vec::new(),
            keys: 3,
            bytes: 300,
            applied: 9,
            log_entries: 9,
            term: 1,
            last: (9, 1),
            damaged,
        };
        let mut status = NodeStatus {
            node: node(1),
            version: "0.1.0".to_owned(),
            name: "default".to_owned(),
            state: SwarmState::Founded { swarm: SwarmId(7), partitions: 64 },
            addresses: Vec::new(),
            uptime_ms: 5_000,
            links: vec![node(4)],
            leaving: false,
            replicas: vec![
                stalled(0, &[1, 2, 3], false),
                stalled(1, &[3, 2, 1], false),
                stalled(2, &[1, 2, 3], false),
                stalled(7, &[1, 2, 4], true),
                stalled(9, &[1, 4], false),
            ],
            storage: Some(StorageStatus {
                path: "/var/lib/roundtable".to_owned(),
                full: true,
                log_bytes: 2048,
                ..StorageStatus::default()
            }),
        };
        let mut members = [member(2), member(3)];
        members[0].state = MemberState::Dead;
        members[0].since_ms = Some(182_000);
        members[1].state = MemberState::Dead;
        members[1].since_ms = None;
        let text = status_text(&status, &members);
        let line = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).expect(start);
        let both = line("partitions 0-2:");
        assert!(both.contains(&format!("{} at 10.0.0.2:7400 (dead for 3m 2s)", name(node(2)))), "{both}");
        assert!(both.contains("10.0.0.3:7400 (not heard of since this node started)"), "{both}");
        assert!(line("partitions 7:").contains("damaged"), "{text}");
        assert!(line("partitions 9:").contains("all of them are linked"), "{text}");
        assert!(line("disk").contains("/var/lib/roundtable: log 2.0 KiB") && line("disk").contains("FULL"));
        assert!(line("replicas").contains("5 without quorum, 1 damaged"), "{text}");
        assert!(text.contains("roundtable recover"), "{text}");

        let json = status_json(&status, &members);
        assert_eq!(json["stalled"].as_array().map(Vec::len), Some(3));
        let both = json["stalled"].as_array().into_iter().flatten();
        let both = both.into_iter().find(|group| group["partitions"] == json!([0, 1, 2])).expect("a group");
        assert!(both["missing"][0]["node"].as_str().is_some());
        assert_eq!(both["missing"].as_array().map(Vec::len), Some(2));
        assert_eq!((&json["damaged"], &json["storage"]["full"]), (&json!(1), &json!(true)));

        status.replicas.clear();
        status.storage = None;
        let text = status_text(&status, &members);
        assert!(!text.contains("recover"), "{text}");
        assert_eq!(status_json(&status, &members)["storage"], Value::Null);
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
