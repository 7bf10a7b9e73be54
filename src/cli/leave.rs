//! `leave`: a node hands over everything it holds, and ends.

use std::time::Duration;

use serde_json::json;

use super::connect::{Target, connect};
use super::exit::{Code, Failure};
use super::inspect::{choose, name};
use super::render::Output;
use crate::client::Error;

/// Between two looks at how far the node is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// `leave`.
#[derive(Debug)]
pub(super) struct Leave {
    /// Which node; `None`: the only one that is linked.
    pub(super) node: Option<String>,
}

impl Leave {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = &session.client;
        let node = match &self.node {
            Some(text) => {
                let view = client.view().await?;
                choose(text, view.members.iter().map(|member| member.node))?
            }
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
        client.leave(node).await?;
        let mut before = None;
        loop {
            match client.status(node).await {
                Ok(status) => {
                    let remaining = status.replicas.len();
                    if before != Some(remaining) {
                        before = Some(remaining);
                        output.answer(
                            || format!("{} is leaving: {remaining} replicas to hand over", name(node)),
                            || json!({"event": "draining", "node": node.to_string(), "remaining": remaining}),
                        )?;
                    }
                }
                // It is gone when it does not answer any more.
                Err(Error::Unreachable | Error::TimedOut | Error::NotServing) => break,
                Err(error) => return Err(error.into()),
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
