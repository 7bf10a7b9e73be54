//! `leave`: a node hands over everything it holds, and ends; or, to come back, only what it leads.

use std::time::Duration;

use serde_json::json;

use super::connect::{Client, Session, Target, connect};
use super::exit::{Code, Failure};
use super::inspect::{member_named, name};
use super::render::Output;
use crate::client::Error;
use crate::id::NodeId;
use crate::membership::MemberState;

/// Between two looks at how far the node is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one look may take: a node that is gone does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// `leave`.
#[derive(Debug)]
pub(super) struct Leave {
    /// Which node; `None`: the only one of this user on this machine.
    pub(super) node: Option<String>,
    /// It is to come back.
    pub(super) restart: bool,
}

impl Leave {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = &session.client;
        let node = self.node(&session).await?;
        if self.restart {
            return stop(client, node, output).await;
        }
        client.leave(node).await?;
        let soon = client.with_deadline(ANSWER_LIMIT);
        let mut before = None;
        loop {
            // The others know at once when it has left; the last of a swarm is gone when nobody is linked.
            match soon.view().await {
                Ok(view) => match view.members.iter().find(|member| member.node == node) {
                    Some(member) if member.state == MemberState::Dead => {
                        return Err(Failure::other(
                            "it died while it was leaving: what only it held is lost",
                        ));
                    }
                    Some(member) if member.state != MemberState::Left => {}
                    _ => break,
                },
                Err(Error::Unreachable | Error::TimedOut | Error::NotServing) => {
                    if session.linked_node().is_none() {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
            if let Ok(status) = soon.status(node).await {
                let remaining = status.replicas.len();
                if before != Some(remaining) {
                    before = Some(remaining);
                    output.answer(
                        || format!("{} is leaving: {remaining} replicas to hand over", name(node)),
                        || json!({"event": "draining", "node": node.to_string(), "remaining": remaining}),
                    )?;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        output.answer(
            || format!("{} has left", name(node)),
            || json!({"event": "left", "node": node.to_string()}),
        )?;
        Ok(())
    }

    async fn node(&self, session: &Session) -> Result<NodeId, Failure> {
        let what = if self.restart { "stop" } else { "leave" };
        match (&self.node, session.local_nodes()) {
            (Some(text), _) => member_named(&session.client, text).await,
            (None, [node]) => Ok(*node),
            (None, []) => Err(Failure::new(
                Code::Usage,
                format!("no node of yours runs here: say which one should {what}"),
            )),
            (None, several) => {
                let names: Vec<String> = several.iter().map(|node| name(*node)).collect();
                let names = names.join(", ");
                let message = format!("several nodes run here, say which one should {what}: {names}");
                Err(Failure::new(Code::Usage, message))
            }
        }
    }
}

/// Lets the node end and waits until it is gone, or back already: whoever watches over it may be quick.
async fn stop(client: &Client, node: NodeId, output: Output) -> Result<(), Failure> {
    let before = client.status(node).await?;
    client.stop(node).await?;
    output.answer(
        || format!("{} hands over what it leads and ends", name(node)),
        || json!({"event": "stopping", "node": node.to_string()}),
    )?;
    let soon = client.with_deadline(ANSWER_LIMIT);
    loop {
        match soon.status(node).await {
            Ok(status) if status.uptime_ms < before.uptime_ms => {
                output.answer(
                    || format!("{} has ended, and is back", name(node)),
                    || json!({"event": "restarted", "node": node.to_string()}),
                )?;
                return Ok(());
            }
            // No link to it can be made any more.
            Err(Error::Unreachable) => break,
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    output.answer(
        || format!("{} has ended; start it again with the same --data-dir to go on", name(node)),
        || json!({"event": "stopped", "node": node.to_string()}),
    )?;
    Ok(())
}
