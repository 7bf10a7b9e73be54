//! `up`: runs a node until it is told to end, and says what happens, one line per event.
//!
//! The first interrupt (Ctrl-C, SIGTERM, SIGHUP) lets the node leave: it hands over all that it holds. The
//! second ends the process at once. A node with a data directory only stops: it hands over what it leads.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::connect::{Target, looked_up, secret, start};
use super::exit::{Code, Failure};
use super::inspect::{name, plain_address};
use super::render::{Output, note};
use crate::id::PartitionId;
use crate::node::{MemberChange, Node, NodeEvent, Reach};

/// `up`.
#[derive(Debug)]
pub(super) struct Up {
    /// Where it listens; `None`: as far away as the nodes that it joins.
    pub(super) reach: Option<Reach>,
    /// The port; `None`: the first free one.
    pub(super) port: Option<u16>,
    /// No secret.
    pub(super) open: bool,
    /// Into how many partitions a new swarm is cut; `None`: the default.
    pub(super) partitions: Option<u32>,
    /// Where everything is kept; `None`: nowhere.
    pub(super) data_dir: Option<PathBuf>,
    /// Grace for crashed members; `None`: the default.
    pub(super) replace_after: Option<Duration>,
    /// Bytes of datasets that are kept at most; `None`: the default.
    pub(super) data_limit: Option<u64>,
    /// Bytes of memory for jobs and sorts; `None`: the default.
    pub(super) job_memory: Option<u64>,
    /// Share relative to others; `None`: the default.
    pub(super) weight: Option<u32>,
}

impl Up {
    pub(super) async fn run(self, target: Target, output: Output) -> Result<(), Failure> {
        let (addresses, secret_came_along) = looked_up(&target.join)?;
        let reach = self.reach.clone().unwrap_or_else(|| reach_of(&addresses));
        let far = reach != Reach::ThisMachine;
        if far && !target.join.is_empty() && !self.open && !secret_came_along && secret(&target)?.is_none() {
            return Err(Failure::new(
                Code::Usage,
                "to join by a bare address takes the swarm's secret: give a ticket (`roundtable ticket` prints one) \
                 or --secret-file; if the swarm has none, say --open",
            ));
        }
        if self.open && !far {
            return Err(Failure::new(
                Code::Usage,
                "--open needs --lan, --listen or --join: without them only this machine can come",
            ));
        }
        if self.open {
            note(&output.warning(
                "WARNING: no secret: whoever reaches this machine can join, read and write everything",
            ));
        }

        let mut interrupts = Interrupts::new()?;
        let node = start(&target, &self, reach).await?;
        let mut events = node.events();
        introduce(&node, output)?;
        let story = Story {
            swarm: target.swarm,
            invitation: far.then(|| {
                let open = if self.open { "--open " } else { "" };
                format!("roundtable up {open}--join {}", node.ticket())
            }),
        };
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => {
                        story.tell(&event, output)?;
                        match event {
                            NodeEvent::Left | NodeEvent::Stopping => {
                                node.stop().await;
                                return Ok(());
                            }
                            NodeEvent::StorageFailed { .. } => {
                                return Err(Failure::other(
                                    "the disk failed, so this node cannot keep what it promises: nothing more was \
                                     acknowledged; once the disk is sound, start it again with the same --data-dir",
                                ));
                            }
                            _ => {}
                        }
                    }
                    Err(RecvError::Lagged(missed)) => {
                        note(&format!("({missed} events came too fast to be shown)"));
                    }
                    Err(RecvError::Closed) => return Err(Failure::other("the node ended by itself")),
                },
                () = interrupts.next() => break,
            }
        }

        if self.data_dir.is_some() {
            note("stopping: others take over what this node leads; it comes back with the same --data-dir");
            node.stop().await;
            return Ok(());
        }
        note("leaving: what this node holds is handed over; interrupt again to end at once");
        let mut leaving = std::pin::pin!(node.leave());
        loop {
            tokio::select! {
                () = &mut leaving => return Ok(()),
                Ok(event) = events.recv() => story.tell(&event, output)?,
                () = interrupts.next() => {
                    return Err(Failure::new(
                        Code::Interrupted,
                        "ended at once: what was not handed over is lost unless others hold it as well",
                    ));
                }
            }
        }
    }
}

/// A node listens as far away as the nodes that it joins: by this machine's addresses, on this machine.
fn reach_of(join: &[String]) -> Reach {
    let near = |address: &String| {
        let parts = address.trim_start_matches('/').split('/').collect::<Vec<_>>();
        let host = match parts.as_slice() {
            ["ip4" | "ip6" | "dns" | "dns4" | "dns6", host, ..] => host,
            _ => address.as_str(),
        };
        ["127.", "::1", "[::1]", "localhost"].iter().any(|near| host.starts_with(near))
    };
    if join.iter().all(near) { Reach::ThisMachine } else { Reach::Lan }
}

/// Says who the node is and where it listens: that was settled before anybody could hear of it as an event.
fn introduce(node: &Node, output: Output) -> io::Result<()> {
    let addresses = node.addresses();
    output.answer(
        || {
            let plain: Vec<String> = addresses.iter().map(|address| plain_address(address)).collect();
            format!("node {} listens on {}", node.id(), plain.join(", "))
        },
        || json!({"event": "started", "node": node.id().to_string(), "addresses": addresses}),
    )
}

/// What is known when an event is told.
#[derive(Debug)]
struct Story {
    swarm: String,
    /// The command that joins from another machine; `None`: none can.
    invitation: Option<String>,
}

impl Story {
    fn tell(&self, event: &NodeEvent, output: Output) -> io::Result<()> {
        output.answer(|| self.text(event), || self.json(event))
    }

    fn text(&self, event: &NodeEvent) -> String {
        match event {
            NodeEvent::Listening(address) => format!("listening on {}", plain_address(address)),
            NodeEvent::Looking => format!("looking for the swarm `{}`", self.swarm),
            NodeEvent::Founded(swarm) => {
                format!("founded the swarm `{}` {swarm}{}", self.swarm, self.invitation())
            }
            NodeEvent::Joined(swarm) => {
                format!("joined the swarm `{}` {swarm}{}", self.swarm, self.invitation())
            }
            NodeEvent::Member { node, change, address, alive } => {
                let (sign, what) = words(*change);
                let at = match (change, address) {
                    (MemberChange::Joined | MemberChange::Recovered, Some(address)) => {
                        format!(" at {}", plain_address(address))
                    }
                    _ => String::new(),
                };
                format!("members: {alive} alive ({sign} {}{what}{at})", name(*node))
            }
            NodeEvent::DialFailed { address, reason } => {
                format!("cannot reach {}: {reason}; still trying", plain_address(address))
            }
            NodeEvent::Refused { address, reason } => format!("refused {}: {reason}", plain_address(address)),
            NodeEvent::Apart { ours, theirs } => format!(
                "another swarm is called `{}` too: ours is {ours}, theirs {theirs}; both hold keys, so they stay apart",
                self.swarm
            ),
            NodeEvent::Dissolved { from, into } => {
                format!("this swarm ({from}) was empty and gives way to {into}")
            }
            NodeEvent::Resumed(swarm) => {
                format!("back in the swarm `{}` {swarm}{}", self.swarm, self.invitation())
            }
            NodeEvent::Damaged { partitions } => format!(
                "the disk has lost something of partitions {}: they are made anew from the other replicas",
                numbers(partitions)
            ),
            NodeEvent::StorageFinding { finding } => format!("on the disk: {finding}"),
            NodeEvent::StorageFull => {
                "the disk is full: others with room take the writes, if they are a majority; reads go on"
                    .to_owned()
            }
            NodeEvent::StorageRoom => "the disk has room again: writes go on".to_owned(),
            NodeEvent::StorageFailed { reason } => format!("the disk failed: {reason}"),
            NodeEvent::Stopping => "stopping: asked to restart".to_owned(),
            NodeEvent::Draining { remaining } => format!("leaving: {remaining} replicas to hand over"),
            NodeEvent::Left => "left".to_owned(),
        }
    }

    /// The line to paste elsewhere.
    fn invitation(&self) -> String {
        match &self.invitation {
            Some(command) => format!("\nto join from another machine:\n  {command}"),
            None => String::new(),
        }
    }

    fn json(&self, event: &NodeEvent) -> Value {
        match event {
            NodeEvent::Listening(address) => json!({"event": "listening", "address": address}),
            NodeEvent::Looking => json!({"event": "looking", "name": self.swarm}),
            NodeEvent::Founded(swarm) => {
                json!({"event": "founded", "swarm": swarm.to_string(), "invitation": self.invitation})
            }
            NodeEvent::Joined(swarm) => {
                json!({"event": "joined", "swarm": swarm.to_string(), "invitation": self.invitation})
            }
            NodeEvent::Member { node, change, address, alive } => json!({
                "event": "member",
                "node": node.to_string(),
                "change": change_name(*change),
                "address": address,
                "alive": alive,
            }),
            NodeEvent::DialFailed { address, reason } => {
                json!({"event": "dial_failed", "address": address, "reason": reason})
            }
            NodeEvent::Refused { address, reason } => {
                json!({"event": "refused", "address": address, "reason": reason})
            }
            NodeEvent::Apart { ours, theirs } => {
                json!({"event": "apart", "ours": ours.to_string(), "theirs": theirs.to_string()})
            }
            NodeEvent::Dissolved { from, into } => {
                json!({"event": "dissolved", "from": from.to_string(), "into": into.to_string()})
            }
            NodeEvent::Resumed(swarm) => {
                json!({"event": "resumed", "swarm": swarm.to_string(), "invitation": self.invitation})
            }
            NodeEvent::Damaged { partitions } => {
                let partitions: Vec<u32> = partitions.iter().map(|partition| partition.0).collect();
                json!({"event": "damaged", "partitions": partitions})
            }
            NodeEvent::StorageFinding { finding } => json!({"event": "storage_finding", "finding": finding}),
            NodeEvent::StorageFull => json!({"event": "storage_full"}),
            NodeEvent::StorageRoom => json!({"event": "storage_room"}),
            NodeEvent::StorageFailed { reason } => json!({"event": "storage_failed", "reason": reason}),
            NodeEvent::Stopping => json!({"event": "stopping"}),
            NodeEvent::Draining { remaining } => json!({"event": "draining", "remaining": remaining}),
            NodeEvent::Left => json!({"event": "left"}),
        }
    }
}

fn numbers(partitions: &[PartitionId]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A sign, and the words behind the node's name.
fn words(change: MemberChange) -> (char, &'static str) {
    match change {
        MemberChange::Joined => ('+', ""),
        MemberChange::Recovered => ('+', " is back"),
        MemberChange::Suspected => ('?', " does not answer"),
        MemberChange::Draining => ('~', " is leaving"),
        MemberChange::Died => ('-', " is dead"),
        MemberChange::Left => ('-', " left"),
    }
}

fn change_name(change: MemberChange) -> &'static str {
    match change {
        MemberChange::Joined => "joined",
        MemberChange::Recovered => "recovered",
        MemberChange::Suspected => "suspected",
        MemberChange::Draining => "draining",
        MemberChange::Died => "died",
        MemberChange::Left => "left",
    }
}

/// The signals that ask a process to end.
#[derive(Debug)]
struct Interrupts {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 3],
}

impl Interrupts {
    /// From now on these signals do not end the process by themselves.
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            signals: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ],
        })
    }

    #[cfg(not(unix))]
    #[expect(clippy::unnecessary_wraps, reason = "as on Unix, where it can fail")]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits for the next one.
    #[cfg(unix)]
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NodeId, SwarmId};

    fn story(invitation: Option<&str>) -> Story {
        Story { swarm: "default".to_owned(), invitation: invitation.map(str::to_owned) }
    }

    fn member(change: MemberChange, alive: usize) -> NodeEvent {
        NodeEvent::Member {
            node: NodeId::from_public_key([7; 32]),
            change,
            address: Some("/ip4/192.168.1.7/tcp/7400".to_owned()),
            alive,
        }
    }

    #[test]
    fn each_membership_change_is_one_line() {
        let node = name(NodeId::from_public_key([7; 32]));
        for (change, alive, line) in [
            (MemberChange::Joined, 3, format!("members: 3 alive (+ {node} at 192.168.1.7:7400)")),
            (MemberChange::Suspected, 3, format!("members: 3 alive (? {node} does not answer)")),
            (MemberChange::Recovered, 3, format!("members: 3 alive (+ {node} is back at 192.168.1.7:7400)")),
            (MemberChange::Draining, 3, format!("members: 3 alive (~ {node} is leaving)")),
            (MemberChange::Died, 2, format!("members: 2 alive (- {node} is dead)")),
            (MemberChange::Left, 2, format!("members: 2 alive (- {node} left)")),
        ] {
            assert_eq!(story(None).text(&member(change, alive)), line);
        }
    }

    #[test]
    fn the_invitation_is_a_command_to_paste_and_only_shown_where_it_helps() {
        let founded = NodeEvent::Founded(SwarmId(7));
        assert!(!story(None).text(&founded).contains("--join"));
        let text = story(Some("roundtable up --join rt1abc")).text(&founded);
        assert!(text.ends_with("\n  roundtable up --join rt1abc"), "{text}");
    }

    #[test]
    fn events_are_json_lines_too() {
        let json = story(None).json(&member(MemberChange::Died, 2));
        assert_eq!(json["event"], "member");
        assert_eq!(json["change"], "died");
        assert_eq!(json["alive"], 2);
    }

    #[test]
    fn a_node_listens_as_far_as_those_it_joins() {
        let reach = |address: &str| reach_of(&[address.to_owned()]);
        assert_eq!(reach_of(&[]), Reach::ThisMachine);
        for near in ["/ip4/127.0.0.1/tcp/7400", "127.0.0.1:7400", "/ip6/::1/tcp/7400", "localhost:7400"] {
            assert_eq!(reach(near), Reach::ThisMachine, "{near}");
        }
        for far in ["/ip4/192.168.1.7/tcp/7400", "192.168.1.7:7400", "/dns4/host/tcp/7400"] {
            assert_eq!(reach(far), Reach::Lan, "{far}");
        }
    }
}
