//! `recover`: partitions whose majority is gone for good go on with what is left of them.
//!
//! Asks every member that can be reached how it is, and judges each partition by all answers together: that is
//! [`Look`], which is pure. What it says of a partition must hold for [`WATCHED`], so that a failover is not taken
//! for a loss. Without `--force` it only explains. A partition is never touched while there is a sign that a
//! majority of it may live where this process cannot see it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::connect::{Client, Session, Target, connect};
use super::exit::{Code, Failure};
use super::inspect::{missing_json, missing_text, name, ring_of};
use super::render::{Output, note};
use super::units;
use crate::client::Error;
use crate::id::{NodeId, PartitionId};
use crate::membership::MemberState;
use crate::wire::{MemberView, NodeStatus, PartitionStatus, SwarmState, SwarmView};

/// How long a partition must have been without a quorum: longer than any failover, and than a node refuses to
/// recover a replica that has heard a leader.
const WATCHED: Duration = Duration::from_secs(6);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a member has for its answer to one look.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Members asked at once.
const ASKED_AT_ONCE: usize = 64;
/// Partitions recovered at once.
const RECOVERED_AT_ONCE: usize = 16;

/// `recover`.
#[derive(Debug)]
pub(super) struct Recover {
    /// Which; empty: all.
    pub(super) partitions: Vec<u32>,
    /// Do it, not only say it.
    pub(super) force: bool,
    /// Also begin with nothing where nothing is left.
    pub(super) abandon_lost: bool,
}

impl Recover {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = session.client.with_deadline(ANSWER_LIMIT);
        let first = session.client.view().await?;
        if let Some(wrong) = self.partitions.iter().find(|number| **number >= first.partitions) {
            let message = format!("there is no partition {wrong}: they are 0 to {}", first.partitions - 1);
            return Err(Failure::new(Code::Usage, message));
        }
        let wanted: BTreeSet<PartitionId> = match self.partitions.as_slice() {
            [] => (0..first.partitions).map(PartitionId).collect(),
            some => some.iter().copied().map(PartitionId).collect(),
        };
        let (look, findings) = watch(&client, &first, &wanted).await?;
        output.answer(|| look.text(&findings), || look.json(&findings))?;
        if findings.is_empty() {
            return Ok(());
        }
        let wishes = self.wishes(&findings);
        if wishes.is_empty() || !self.force {
            return Err(Failure::new(Code::NoQuorum, self.what_next(&findings)));
        }
        let asked: BTreeSet<PartitionId> = wishes.iter().map(|wish| wish.partition).collect();
        let refused = carry_out(&session, wishes, output).await?;
        let (_, after) = watch(&client, &first, &wanted).await?;
        conclude(&asked, &refused, &after, output)
    }

    /// What is to be done about what was found.
    fn wishes(&self, findings: &Findings) -> Vec<Wish> {
        let wish = |(partition, condition): (&PartitionId, &Condition)| match condition {
            Condition::Stalled(stalled) => {
                Some(Wish { partition: *partition, node: stalled.survivors.first()?.node, empty: false })
            }
            Condition::Lost { heir: Some(heir) } if self.abandon_lost => {
                Some(Wish { partition: *partition, node: *heir, empty: true })
            }
            _ => None,
        };
        findings.iter().filter_map(wish).collect()
    }

    /// The last line for one who has not forced anything.
    fn what_next(&self, findings: &Findings) -> String {
        let stalled = findings.values().any(|condition| matches!(condition, Condition::Stalled(_)));
        let lost = findings.values().any(|condition| matches!(condition, Condition::Lost { .. }));
        let what = format!("{} cannot serve: nothing was changed", units::partitions(findings.len()));
        match (stalled, lost) {
            (true, _) if !self.force => format!("{what}; if the missing are gone for good: --force"),
            (false, true) if !self.abandon_lost || !self.force => {
                format!("{what}; if nobody who has them comes back: --force --abandon-lost")
            }
            _ => format!("{what}, because nothing can be done from here"),
        }
    }
}

/// One partition to be recovered, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    partition: PartitionId,
    node: NodeId,
    empty: bool,
}

/// Looks until nothing is wrong, or the same has been wrong for [`WATCHED`].
async fn watch(
    client: &Client,
    first: &SwarmView,
    wanted: &BTreeSet<PartitionId>,
) -> Result<(Look, Findings), Failure> {
    let begun = Instant::now();
    let mut throughout = wanted.clone();
    let mut waiting = false;
    loop {
        let look = Look::take(client, first).await?;
        let mut findings = look.findings(wanted);
        throughout.retain(|partition| findings.contains_key(partition));
        if findings.is_empty() {
            return Ok((look, findings));
        }
        if begun.elapsed() >= WATCHED {
            for (partition, condition) in &mut findings {
                if !throughout.contains(partition) {
                    *condition = Condition::Electing;
                }
            }
            return Ok((look, findings));
        }
        if !std::mem::replace(&mut waiting, true) {
            note(&format!(
                "{} without a quorum: watching for {} whether that is only a failover",
                units::partitions(findings.len()),
                units::duration(WATCHED)
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks for all that is wished for; returns what was refused, and why.
async fn carry_out(
    session: &Session,
    wishes: Vec<Wish>,
    output: Output,
) -> Result<BTreeMap<PartitionId, Error>, Failure> {
    let of = wishes.len();
    let mut refused = BTreeMap::new();
    let mut answers = futures::stream::iter(wishes)
        .map(|wish| {
            let client = session.client.clone();
            async move { (wish, client.recover(wish.node, wish.partition, wish.empty).await) }
        })
        .buffer_unordered(RECOVERED_AT_ONCE);
    let mut done = 0;
    while let Some((wish, result)) = answers.next().await {
        done += 1;
        let Wish { partition, node, empty } = wish;
        let (what, why) = match &result {
            Ok(()) if empty => ("begins with nothing", None),
            Ok(()) => ("goes on alone", None),
            Err(error) => ("refuses", Some(error.to_string())),
        };
        let text = || {
            let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("[{done}/{of}] partition {partition}: {} {what}{why}", name(node))
        };
        let json = || {
            json!({"event": if why.is_none() { "recovered" } else { "refused" }, "partition": partition.0,
                "node": node.to_string(), "empty": empty, "reason": why})
        };
        output.answer(text, json)?;
        if let Err(error) = result {
            refused.insert(partition, error);
        }
    }
    Ok(refused)
}

/// What has become of it, by a look at what is there now: an answer may have been lost.
fn conclude(
    asked: &BTreeSet<PartitionId>,
    refused: &BTreeMap<PartitionId, Error>,
    after: &Findings,
    output: Output,
) -> Result<(), Failure> {
    let serving = asked.iter().filter(|partition| !after.contains_key(partition)).count();
    output.answer(
        || {
            format!(
                "{serving} of {} partitions serve again; other copies of them that come back are made anew",
                asked.len()
            )
        },
        || {
            let remaining: Vec<u32> = after.keys().map(|partition| partition.0).collect();
            json!({"event": "done", "serving": serving, "refused": refused.len(), "remaining": remaining})
        },
    )?;
    if after.is_empty() {
        return Ok(());
    }
    let remaining: Vec<PartitionId> = after.keys().copied().collect();
    let advice = "see above, or run it again without --force";
    Err(Failure::new(
        Code::NoQuorum,
        format!("partitions {} do not serve yet: {advice}", units::ranges(&remaining)),
    ))
}

/// Partitions that do not serve, and how it is with each.
type Findings = BTreeMap<PartitionId, Condition>;

/// Why a partition does not serve.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    /// Its majority is missing, and something of it is left.
    Stalled(Stalled),
    /// Nothing of it is left anywhere.
    Lost {
        /// Who would begin it anew.
        heir: Option<NodeId>,
    },
    /// A majority answers: a leader will be elected, or they cannot reach each other.
    Electing,
    /// These may hold more of it: others are linked with them, this process is not.
    Doubtful(Vec<NodeId>),
}

/// What is left of a partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Stalled {
    /// The freshest first.
    survivors: Vec<Survivor>,
    voters: Vec<NodeId>,
    missing: Vec<NodeId>,
    /// Whatever was acknowledged must have reached a survivor.
    lossless: bool,
}

/// A copy of a partition that can be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Survivor {
    node: NodeId,
    damaged: bool,
}

/// What the members that could be reached say, at one moment.
#[derive(Debug)]
struct Look {
    view: SwarmView,
    /// All that anybody knows of.
    members: Vec<MemberView>,
    statuses: BTreeMap<NodeId, NodeStatus>,
}

impl Look {
    async fn take(client: &Client, first: &SwarmView) -> Result<Self, Failure> {
        let view = client.view().await?;
        if view.swarm != first.swarm {
            return Err(Failure::other(
                "the swarm has dissolved into another meanwhile: nothing is known of it",
            ));
        }
        let mut members: BTreeMap<NodeId, MemberView> = BTreeMap::new();
        let mut statuses = BTreeMap::new();
        let mut asked: BTreeSet<NodeId> = BTreeSet::new();
        let mut news = view.members.clone();
        // Those that are asked may know others.
        while !news.is_empty() {
            learn(&mut members, std::mem::take(&mut news));
            let is_new =
                |member: &&MemberView| member.state != MemberState::Left && !asked.contains(&member.node);
            let next: Vec<NodeId> = members.values().filter(is_new).map(|member| member.node).collect();
            asked.extend(&next);
            let mut answers = futures::stream::iter(next)
                .map(|node| async move { (client.status(node).await, client.view_of(node).await) })
                .buffer_unordered(ASKED_AT_ONCE);
            while let Some((status, their_view)) = answers.next().await {
                let Ok(status) = status else { continue };
                if !matches!(status.state, SwarmState::Founded { swarm, .. } if swarm == view.swarm) {
                    continue;
                }
                statuses.insert(status.node, status);
                if let Ok(their_view) = their_view
                    && their_view.swarm == view.swarm
                {
                    news.extend(their_view.members);
                }
            }
        }
        Ok(Self { view, members: members.into_values().collect(), statuses })
    }

    /// What is wrong with those partitions.
    fn findings(&self, wanted: &BTreeSet<PartitionId>) -> Findings {
        let mut replicas: BTreeMap<PartitionId, Vec<(NodeId, &PartitionStatus)>> = BTreeMap::new();
        for (node, status) in &self.statuses {
            for replica in &status.replicas {
                replicas.entry(replica.partition).or_default().push((*node, replica));
            }
        }
        let none = Vec::new();
        let condition = |partition: &PartitionId| {
            let replicas = replicas.get(partition).unwrap_or(&none);
            Some((*partition, self.condition(*partition, replicas)?))
        };
        wanted.iter().filter_map(condition).collect()
    }

    /// How a partition is, of which these replicas were found; `None`: it serves.
    fn condition(
        &self,
        partition: PartitionId,
        replicas: &[(NodeId, &PartitionStatus)],
    ) -> Option<Condition> {
        if replicas.iter().any(|(_, replica)| replica.has_quorum) {
            return None;
        }
        // No term: it has no state.
        let mut copies: Vec<_> = replicas.iter().filter(|(_, replica)| replica.last.1 > 0).collect();
        copies.sort_by_key(|(node, replica)| {
            let (index, term) = replica.last;
            (Reverse((term, index)), replica.damaged, *node)
        });
        let unseen = self.linked_but_unseen();
        let Some((_, freshest)) = copies.first() else {
            // Only a member holds anything.
            let is_member = |node: &NodeId| self.members.iter().any(|member| member.node == *node);
            let holders: Vec<NodeId> = unseen.into_iter().filter(is_member).collect();
            return Some(if holders.is_empty() {
                Condition::Lost { heir: self.heir(partition) }
            } else {
                Condition::Doubtful(holders)
            });
        };
        // What a damaged one knows of the others may be old.
        let sound = copies.iter().find(|(_, replica)| !replica.damaged);
        let mut voters = sound.map_or(&freshest.voters, |(_, replica)| &replica.voters).clone();
        voters.sort_unstable();
        let has_sound_copy =
            |voter: &NodeId| copies.iter().any(|(node, replica)| node == voter && !replica.damaged);
        let present = voters.iter().filter(|voter| has_sound_copy(voter)).count();
        let majority = voters.len() / 2 + 1;
        if present >= majority {
            return Some(Condition::Electing);
        }
        let doubtful: Vec<NodeId> = voters.iter().copied().filter(|node| unseen.contains(node)).collect();
        if !doubtful.is_empty() {
            return Some(Condition::Doubtful(doubtful));
        }
        // Every majority had one of those that are present; and what is not applied may hold other voters.
        let lossless =
            present + majority > voters.len() && !freshest.damaged && freshest.applied == freshest.last.0;
        Some(Condition::Stalled(Stalled {
            survivors: copies
                .iter()
                .map(|(node, replica)| Survivor { node: *node, damaged: replica.damaged })
                .collect(),
            missing: voters.iter().copied().filter(|node| !self.statuses.contains_key(node)).collect(),
            voters,
            lossless,
        }))
    }

    /// Members that others are linked with and that did not answer here.
    fn linked_but_unseen(&self) -> BTreeSet<NodeId> {
        let linked = self.statuses.values().flat_map(|status| &status.links).copied();
        linked.filter(|node| !self.statuses.contains_key(node)).collect()
    }

    /// Who begins anew a partition of which nothing is left: the first that the ring would give it to and that is
    /// there.
    fn heir(&self, partition: PartitionId) -> Option<NodeId> {
        let ring = ring_of(&self.view);
        let placed = ring.as_ref().map_or(&[][..], |ring| ring.replicas(partition));
        let mut all = placed.iter().chain(self.statuses.keys());
        all.find(|node| self.statuses.contains_key(node)).copied()
    }

    // -- what is said --

    fn text(&self, findings: &Findings) -> String {
        let all = self.view.partitions;
        let swarm = format!("swarm `{}` {}", self.view.name, self.view.swarm);
        if findings.is_empty() {
            return format!(
                "{swarm}: nothing to recover, what was asked for has a quorum ({} answered)",
                members(self.statuses.len())
            );
        }
        let mut lines = vec![format!(
            "{swarm}: {} of {all} partitions cannot serve ({} answered)",
            findings.len(),
            members(self.statuses.len())
        )];
        let groups = grouped(findings);
        for (condition, partitions) in &groups {
            lines.push(String::new());
            lines.extend(self.group_text(condition, partitions));
        }
        if groups.keys().any(|condition| matches!(condition, Condition::Stalled(_) | Condition::Lost { .. }))
        {
            lines.push(String::new());
            lines.push(CONSEQUENCES.to_owned());
        }
        lines.join("\n")
    }

    fn group_text(&self, condition: &Condition, partitions: &[PartitionId]) -> Vec<String> {
        let which = match partitions {
            [partition] => format!("partition {partition}"),
            several => format!("partitions {} ({})", units::ranges(several), several.len()),
        };
        let names = |nodes: &[NodeId]| nodes.iter().map(|node| name(*node)).collect::<Vec<_>>().join(", ");
        match condition {
            Condition::Stalled(stalled) => {
                let mut lines = vec![format!("{which}: no quorum, voters {}", names(&stalled.voters))];
                for node in &stalled.missing {
                    lines.push(format!("  missing   {}", missing_text(*node, &self.members)));
                }
                for (place, survivor) in stalled.survivors.iter().enumerate() {
                    let (keys, bytes) = self.holds(survivor.node, partitions);
                    let mut line = format!(
                        "  survives  {}: {} keys, {}",
                        name(survivor.node),
                        units::count(keys),
                        units::bytes(bytes)
                    );
                    if let [partition] = partitions
                        && let Some(replica) = self.replica(survivor.node, *partition)
                    {
                        let (index, term) = replica.last;
                        line = format!("{line}, up to entry {index} of term {term}");
                    }
                    if survivor.damaged {
                        line += ", damaged: its disk has lost a part";
                    }
                    line +=
                        if place == 0 { "; the freshest: it would be kept" } else { "; would be made anew" };
                    lines.push(line);
                }
                lines.push(if stalled.lossless {
                    "  lost      nothing that was acknowledged: it was on each of the voters that are left"
                        .to_owned()
                } else {
                    "  lost      what was acknowledged by the others and never reached the one that is kept"
                        .to_owned()
                });
                lines
            }
            Condition::Lost { heir } => {
                let heir = heir.map_or_else(|| "nobody".to_owned(), name);
                vec![
                    format!("{which}: no member that answers has anything of them"),
                    format!(
                        "  lost      all of their keys and locks; with --abandon-lost they begin with nothing on {heir}"
                    ),
                ]
            }
            Condition::Electing => vec![format!(
                "{which}: a majority of the voters answers here, so they are left alone: a leader is being elected, or they \
                 cannot reach each other"
            )],
            Condition::Doubtful(nodes) => vec![format!(
                "{which}: left alone, because {} does not answer here but is linked with others: run this where it can be \
                 reached",
                names(nodes)
            )],
        }
    }

    /// Keys and bytes of a node's replicas of those partitions.
    fn holds(&self, node: NodeId, partitions: &[PartitionId]) -> (u64, u64) {
        let replicas = partitions.iter().filter_map(|partition| self.replica(node, *partition));
        replicas.fold((0, 0), |(keys, bytes), replica| (keys + replica.keys, bytes + replica.bytes))
    }

    fn replica(&self, node: NodeId, partition: PartitionId) -> Option<&PartitionStatus> {
        self.statuses.get(&node)?.replicas.iter().find(|replica| replica.partition == partition)
    }

    fn json(&self, findings: &Findings) -> Value {
        let answered: Vec<String> = self.statuses.keys().map(ToString::to_string).collect();
        let groups = grouped(findings);
        let groups: Vec<Value> =
            groups.iter().map(|(condition, partitions)| self.group_json(condition, partitions)).collect();
        json!({
            "event": "found",
            "swarm": self.view.swarm.to_string(),
            "name": self.view.name,
            "partitions": self.view.partitions,
            "answered": answered,
            "not_serving": findings.len(),
            "groups": groups,
        })
    }

    fn group_json(&self, condition: &Condition, partitions: &[PartitionId]) -> Value {
        let ids = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>();
        let numbers: Vec<u32> = partitions.iter().map(|partition| partition.0).collect();
        match condition {
            Condition::Stalled(stalled) => {
                let survivors: Vec<Value> = stalled
                    .survivors
                    .iter()
                    .map(|survivor| {
                        let (keys, bytes) = self.holds(survivor.node, partitions);
                        json!({"node": survivor.node.to_string(), "damaged": survivor.damaged, "keys": keys,
                            "bytes": bytes})
                    })
                    .collect();
                let missing: Vec<Value> =
                    stalled.missing.iter().map(|node| missing_json(*node, &self.members)).collect();
                json!({"partitions": numbers, "condition": "stalled", "voters": ids(&stalled.voters),
                    "missing": missing, "survivors": survivors, "lossless": stalled.lossless})
            }
            Condition::Lost { heir } => {
                json!({"partitions": numbers, "condition": "lost", "heir": heir.map(|heir| heir.to_string())})
            }
            Condition::Electing => json!({"partitions": numbers, "condition": "electing"}),
            Condition::Doubtful(nodes) => {
                json!({"partitions": numbers, "condition": "doubtful", "unseen": ids(nodes)})
            }
        }
    }
}

/// What everybody must know before forcing it.
const CONSEQUENCES: &str = "\
First try to bring the missing members back. One that has a --data-dir comes back as who it was, and with a
majority of the voters everything is there and goes on by itself. If they are gone for good, --force
  - lets each partition go on with the copy that is kept, as the only one of a new generation;
  - destroys all other copies, also those of members that come back later: they are made anew;
  - lifts versions and fencing tokens far above all that were handed out, so that none is handed out twice;
  - cannot be undone.";

fn members(count: usize) -> String {
    if count == 1 { "1 member".to_owned() } else { format!("{count} members") }
}

/// Of several views of one member, the one of who knows best: who sees it there, else who has known it gone for
/// longest.
fn learn(members: &mut BTreeMap<NodeId, MemberView>, news: Vec<MemberView>) {
    let rank = |member: &MemberView| {
        (!member.state.is_present(), member.since_ms.is_none(), Reverse(member.since_ms))
    };
    for member in news {
        match members.get(&member.node) {
            Some(known) if rank(known) <= rank(&member) => {}
            _ => drop(members.insert(member.node, member)),
        }
    }
}

/// Partitions of one fate together.
fn grouped(findings: &Findings) -> BTreeMap<&Condition, Vec<PartitionId>> {
    let mut groups: BTreeMap<&Condition, Vec<PartitionId>> = BTreeMap::new();
    for (partition, condition) in findings {
        groups.entry(condition).or_default().push(*partition);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SwarmId;

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    fn member(number: u8) -> MemberView {
        MemberView {
            node: node(number),
            addresses: vec![format!("/ip4/10.0.0.{number}/tcp/7400")],
            weight: 1,
            state: MemberState::Dead,
            since_ms: Some(182_000),
            draining: false,
            on_ring: true,
        }
    }

    /// A replica of one of these voters, without a quorum.
    fn replica(partition: u32, voters: &[u8], last: (u64, u64)) -> PartitionStatus {
        PartitionStatus {
            partition: PartitionId(partition),
            leader: None,
            has_quorum: false,
            voters: voters.iter().map(|number| node(*number)).collect(),
            learners: Vec::new(),
            keys: 10,
            bytes: 1000,
            applied: last.0,
            log_entries: 9,
            term: last.1,
            last,
            damaged: false,
        }
    }

    /// Members 1 to 4 of four partitions; these answer, with these replicas and linked with each other.
    fn look(answers: Vec<(u8, Vec<PartitionStatus>)>) -> Look {
        let links: Vec<NodeId> = answers.iter().map(|(number, _)| node(*number)).collect();
        let statuses = answers.into_iter().map(|(number, replicas)| {
            let status = NodeStatus {
                node: node(number),
                version: "0.1.0".to_owned(),
                name: "default".to_owned(),
                state: SwarmState::Founded { swarm: SwarmId(7), partitions: 4 },
                addresses: Vec::new(),
                uptime_ms: 5_000,
                links: links.iter().copied().filter(|linked| *linked != node(number)).collect(),
                leaving: false,
                replicas,
                storage: None,
            };
            (node(number), status)
        });
        let members: Vec<MemberView> = (1..=4).map(member).collect();
        Look {
            statuses: statuses.collect(),
            members: members.clone(),
            view: SwarmView {
                swarm: SwarmId(7),
                name: "default".to_owned(),
                partitions: 4,
                node: node(1),
                members,
                leaders: vec![None; 4],
            },
        }
    }

    fn find(look: &Look) -> Findings {
        look.findings(&(0..4).map(PartitionId).collect())
    }

    fn stalled(findings: &Findings, partition: u32) -> &Stalled {
        match &findings[&PartitionId(partition)] {
            Condition::Stalled(stalled) => stalled,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_freshest_copy_is_chosen() {
        let damaged = |last| PartitionStatus { damaged: true, ..replica(2, &[1, 2, 3, 4], last) };
        let findings = find(&look(vec![
            (
                1,
                vec![
                    replica(0, &[1, 3, 4], (50, 3)),
                    replica(1, &[1, 2, 3, 4], (50, 3)),
                    damaged((50, 3)),
                    replica(3, &[1, 2, 3, 4], (50, 3)),
                ],
            ),
            (
                2,
                vec![
                    // It does not vote; what it has counts all the same.
                    replica(0, &[1, 3, 4], (51, 3)),
                    replica(1, &[1, 2, 3, 4], (40, 4)),
                    replica(2, &[1, 2, 3, 4], (50, 3)),
                    replica(3, &[1, 2, 3, 4], (50, 3)),
                ],
            ),
        ]));
        let chosen = |partition| stalled(&findings, partition).survivors[0].node;
        assert_eq!([chosen(0), chosen(1), chosen(2)], [node(2); 3]);
        assert_eq!(chosen(3), node(1).min(node(2)));
        assert_eq!(stalled(&findings, 0).missing.len(), 2);
    }

    #[test]
    fn a_majority_that_answers_is_left_alone() {
        let third = |last| PartitionStatus { has_quorum: true, ..replica(2, &[1, 2, 3], last) };
        let findings = find(&look(vec![
            (
                1,
                vec![
                    replica(0, &[1, 2, 3], (50, 3)),
                    replica(1, &[1, 2, 3], (9, 1)),
                    replica(2, &[1, 2, 3], (9, 1)),
                ],
            ),
            (2, vec![replica(0, &[1, 2, 3], (50, 3)), replica(1, &[1, 2, 3], (0, 0)), third((9, 1))]),
        ]));
        assert_eq!(findings.get(&PartitionId(0)), Some(&Condition::Electing));
        // One that has no state cannot vote for anything.
        assert_eq!(stalled(&findings, 1).survivors.len(), 1);
        assert_eq!(findings.get(&PartitionId(2)), None);
        // Nothing of the last was found.
        assert!(matches!(findings[&PartitionId(3)], Condition::Lost { heir: Some(_) }));
    }

    #[test]
    fn a_voter_that_others_see_is_not_missing() {
        let mut look =
            look(vec![(1, vec![replica(0, &[1, 2, 3], (50, 3)), replica(1, &[1, 3, 4], (50, 3))])]);
        look.statuses.get_mut(&node(1)).expect("it answers").links.push(node(2));
        let findings = find(&look);
        assert_eq!(findings[&PartitionId(0)], Condition::Doubtful(vec![node(2)]));
        assert!(matches!(findings[&PartitionId(1)], Condition::Stalled(_)));
        // Whoever is not seen may have what seems to be lost.
        assert_eq!(findings[&PartitionId(2)], Condition::Doubtful(vec![node(2)]));
    }

    #[test]
    fn of_two_voters_one_has_all_that_was_acknowledged() {
        let open = PartitionStatus { applied: 49, ..replica(2, &[1, 2], (50, 3)) };
        let damaged = PartitionStatus { damaged: true, ..replica(3, &[1, 2], (50, 3)) };
        let findings = find(&look(vec![(
            1,
            vec![replica(0, &[1, 2], (50, 3)), replica(1, &[1, 2, 3], (50, 3)), open, damaged],
        )]));
        let lossless = |partition| stalled(&findings, partition).lossless;
        assert_eq!([lossless(0), lossless(1), lossless(2), lossless(3)], [true, false, false, false]);
    }

    #[test]
    fn it_says_what_is_left_who_is_missing_and_what_may_be_lost() {
        let look = look(vec![(1, vec![replica(0, &[1, 2, 3], (50, 3)), replica(1, &[1, 3, 2], (60, 3))])]);
        let findings = find(&look);
        let text = look.text(&findings);
        for part in [
            "4 of 4 partitions cannot serve (1 member answered)".to_owned(),
            "partitions 0, 1 (2): no quorum".to_owned(),
            format!("missing   {} at 10.0.0.2:7400 (dead for 3m 2s)", name(node(2))),
            format!("survives  {}: 20 keys, 2.0 KiB; the freshest", name(node(1))),
            "never reached".to_owned(),
            "partitions 2, 3 (2): no member that answers has anything of them".to_owned(),
            format!("with nothing on {}", name(node(1))),
            "First try to bring the missing members back".to_owned(),
        ] {
            assert!(text.contains(&part), "{part}\n{text}");
        }
        let json = look.json(&findings);
        let group = json["groups"].as_array().and_then(|groups| groups.first()).expect("a group");
        assert_eq!((&group["partitions"], &group["condition"]), (&json!([0, 1]), &json!("stalled")));
        assert_eq!(group["survivors"][0]["keys"], 20);
        assert_eq!(look.text(&Findings::new()).matches("nothing to recover").count(), 1);
    }

    #[test]
    fn only_what_is_asked_for_is_done() {
        let look = look(vec![(1, vec![replica(0, &[1, 2, 3], (50, 3))])]);
        let findings = find(&look);
        let recover = |force, abandon_lost| Recover { partitions: Vec::new(), force, abandon_lost };
        let first = Wish { partition: PartitionId(0), node: node(1), empty: false };
        assert_eq!(recover(true, false).wishes(&findings), [first]);
        let all = recover(true, true).wishes(&findings);
        assert_eq!(all.iter().filter(|wish| wish.empty && wish.node == node(1)).count(), 3);
        assert!(recover(false, false).what_next(&findings).contains("--force"));
        let lost: Findings = findings.into_iter().filter(|(partition, _)| partition.0 > 0).collect();
        assert!(recover(true, false).what_next(&lost).contains("--abandon-lost"));
    }

    #[test]
    fn who_sees_a_member_knows_best() {
        let alive = MemberView { state: MemberState::Alive, since_ms: Some(5), ..member(2) };
        let unheard = MemberView { since_ms: None, ..member(2) };
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let views = [unheard.clone(), member(2), alive.clone()];
            let mut members = BTreeMap::new();
            for at in order {
                learn(&mut members, vec![views[at].clone()]);
            }
            assert_eq!(members[&node(2)], alive);
        }
    }
}
