//! `leave`: a node hands over everything it holds, and ends.

use std::time::Duration;

use serde_json::json;

use super::connect::{Target, connect};
use super::exit::{Code, Failure};
use super::inspect::{member_named, name};
use super::render::Output;
use crate::client::Error;
use crate::membership::MemberState;

/// Between two looks at how far the node is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one look may take: a node that is gone does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// `leave`.
#[derive(Debug)]
pub(super) struct Leave {
    /// Which node; `None`: the only one that is linked.
    pub(super) node: Option<String>,
    /// It is to come back.
    pub(super) restart: bool,
}

impl Leave {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = &session.client;
        let node = match &self.node {
            Some(text) => member_named(client, text).await?,
            None => match session.local_nodes() {
                [node] => *node,
                [] => {
                    return Err(Failure::new(
                        Code::Usage,
                        "no node of yours runs here: say which one should leave",
                    ));
                }
                several => {
                    let names: Vec<String> = several.iter().map(|node| name(*node)).collect();
                    return Err(Failure::new(
                        Code::Usage,
                        format!("several nodes run here, say which one should leave: {}", names.join(", ")),
                    ));
                }
            },
        };
        if self.restart {
            client.stop(node).await?;
            return output
                .answer(
                    || format!("{} hands over what it leads and ends; start it again to go on", name(node)),
                    || json!({"event": "stopping", "node": node.to_string()}),
                )
                .map_err(Failure::from);
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
}
