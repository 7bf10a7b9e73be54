//! Requests that may travel together: those that wait for the same node go out in one message.
//!
//! A renewal is a call of its own, with its number, its retries and its redirects; only the first attempt is shared.
//! Its answers come together, when the last is known. So a partition that has moved costs the others nothing, and one
//! that is stuck costs them that attempt.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::lock;
use crate::id::{NodeId, SwarmId};
use crate::wire::{MAX_RENEWALS, Renewal, Request, Response, Rpc, RpcError};

/// What waits to be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Vec<Letter>>,
    filled: Notify,
}

/// One request, and where its answer goes.
#[derive(Debug)]
struct Letter {
    to: NodeId,
    request: Request,
    timeout: Duration,
    answer: oneshot::Sender<Result<Response, RpcError>>,
}

/// Requests for one node.
#[derive(Debug)]
pub(super) struct Bundle {
    to: NodeId,
    letters: Vec<Letter>,
}

impl Outbox {
    /// As [`Rpc::call`]; sent by whoever takes it out.
    pub(super) async fn call(
        &self,
        to: NodeId,
        request: Request,
        timeout: Duration,
    ) -> Result<Response, RpcError> {
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).push(Letter { to, request, timeout, answer });
        self.filled.notify_one();
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(RpcError::Lost("the client is gone")),
            Err(_) => Err(RpcError::Lost("time is up")),
        }
    }

    /// Waits until there is something to send.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Takes out what waits: all for one node together, as far as it fits into one message.
    pub(super) fn take(&self) -> Vec<Bundle> {
        let mut by_node: BTreeMap<(NodeId, Option<SwarmId>), Vec<Bundle>> = BTreeMap::new();
        for letter in std::mem::take(&mut *lock(&self.waiting)) {
            let to = letter.to;
            let swarm = Renewal::of(&letter.request).map(|(swarm, _)| swarm);
            let bundles = by_node.entry((to, swarm)).or_default();
            match bundles.last_mut() {
                Some(bundle) if swarm.is_some() && bundle.letters.len() < MAX_RENEWALS => {
                    bundle.letters.push(letter);
                }
                _ => bundles.push(Bundle { to, letters: vec![letter] }),
            }
        }
        by_node.into_values().flatten().collect()
    }
}

impl Bundle {
    /// Sends it, and gives each request its answer.
    pub(super) async fn deliver<R: Rpc>(self, rpc: R) {
        let renewals: Vec<_> =
            self.letters.iter().filter_map(|letter| Renewal::of(&letter.request)).collect();
        // Each caller looks at the clock by itself.
        let timeout = self.letters.iter().map(|letter| letter.timeout).max().unwrap_or_default();
        let request = match (&self.letters[..], renewals.first()) {
            ([alone], _) => alone.request.clone(),
            (_, Some(&(swarm, _))) => {
                Request::Renew { swarm, renewals: renewals.into_iter().map(|(_, renewal)| renewal).collect() }
            }
            (_, None) => return,
        };
        let answer = rpc.call(self.to, request, timeout).await;
        let answers = match answer {
            Ok(Response::Renewals(answers)) if answers.len() == self.letters.len() => {
                answers.into_iter().map(|answer| Ok(answer.into())).collect()
            }
            answer => vec![answer; self.letters.len()],
        };
        for (letter, answer) in self.letters.into_iter().zip(answers) {
            // A caller whose time was up is gone.
            drop(letter.answer.send(answer));
        }
    }
}
