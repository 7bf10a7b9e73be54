//! Which nodes are linked, and who may become so: one link per node, agreed by both ends.
//!
//! Two nodes that dial each other at the same moment have two connections. Both ends must keep the same one,
//! and neither should see a link go down for it. So of every two nodes **the smaller one decides**: a
//! connection is superfluous if it says so, and the larger one follows. As one end decides alone and in one
//! place, there is nothing to disagree about; the larger end replaces what it had when the smaller one
//! welcomes it on a new connection.
//!
//! A second process under the name of a linked node is a copied identity, or the same node restarted so fast
//! that its old connection was not seen to break. Which of the two is found out by listening: the old link is
//! given the time of two heartbeats. If it speaks, the newcomer is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use libp2p::swarm::ConnectionId;
use tokio::sync::Notify;

use super::admission::{Instance, Verdict};
use super::link::{Heartbeat, Link, lock};
use crate::id::NodeId;

/// Links and claims; per node.
const MAX_LINKS: usize = 512;

/// The links of a process.
#[derive(Debug)]
pub(super) struct Registry {
    us: NodeId,
    heartbeat: Heartbeat,
    /// Claimed or linked. At most one connection per node.
    slots: Mutex<HashMap<NodeId, Slot>>,
    /// What callers look at: the linked ones.
    links: RwLock<HashMap<NodeId, Arc<Link>>>,
    emptied: Notify,
}

#[derive(Debug)]
struct Slot {
    connection: ConnectionId,
    instance: Instance,
    link: Option<Arc<Link>>,
}

/// The right to become the link with a node; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    registry: Arc<Registry>,
    node: NodeId,
    connection: ConnectionId,
    instance: Instance,
}

impl Registry {
    pub(super) fn new(us: NodeId, heartbeat: Heartbeat) -> Arc<Self> {
        Arc::new(Self {
            us,
            heartbeat,
            slots: Mutex::default(),
            links: RwLock::default(),
            emptied: Notify::new(),
        })
    }

    pub(super) fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.get(&node).cloned()
    }

    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.values().cloned().collect()
    }

    /// Returns when no link and no claim is left.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if lock(&self.slots).is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Decides whether a connection may become the link with `node`.
    pub(super) async fn claim(
        self: &Arc<Self>,
        node: NodeId,
        instance: Instance,
        connection: ConnectionId,
    ) -> Result<Claim, Verdict> {
        let claim = || Claim { registry: Arc::clone(self), node, connection, instance };
        loop {
            let old = {
                let mut slots = lock(&self.slots);
                let is_full = slots.len() >= MAX_LINKS;
                match slots.get(&node) {
                    None if is_full => return Err(Verdict::Full),
                    None => {
                        let slot = Slot { connection, instance, link: None };
                        slots.insert(node, slot);
                        return Ok(claim());
                    }
                    Some(slot) if slot.instance == instance && node < self.us => return Ok(claim()),
                    Some(slot) if slot.instance == instance => return Err(Verdict::Superfluous),
                    Some(Slot { link: Some(link), .. }) => Arc::clone(link),
                    // Two processes of one name at the same moment: one after the other.
                    Some(Slot { link: None, .. }) => return Err(Verdict::Superfluous),
                }
            };
            let reads = old.reads();
            tokio::select! {
                () = tokio::time::sleep(self.heartbeat.interval * 5 / 2) => {}
                () = old.ended.cancelled() => continue,
            }
            if old.reads() != reads {
                return Err(Verdict::Duplicate);
            }
            old.abort("silent, and replaced by a new process of the same node");
            old.ended.cancelled().await;
        }
    }

    fn publish(&self, link: &Arc<Link>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.insert(link.node, Arc::clone(link));
    }

    fn withdraw(&self, link: &Link) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.remove(&link.node);
    }
}

impl Claim {
    /// Makes `link` the link with the node, after an older one has ended.
    pub(super) async fn activate(&self, link: &Arc<Link>) {
        loop {
            let old = {
                let mut slots = lock(&self.registry.slots);
                match slots.get(&self.node) {
                    Some(Slot { connection, link: Some(old), .. }) if *connection != self.connection => {
                        Arc::clone(old)
                    }
                    _ => {
                        let slot = Slot {
                            connection: self.connection,
                            instance: self.instance,
                            link: Some(Arc::clone(link)),
                        };
                        slots.insert(self.node, slot);
                        break;
                    }
                }
            };
            old.abort("replaced by a newer connection");
            old.ended.cancelled().await;
        }
        self.registry.publish(link);
    }

    /// The link is over: callers do not see it any more, but no other takes its place before it has ended.
    pub(super) fn withdraw(&self, link: &Link) {
        self.registry.withdraw(link);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut slots = lock(&self.registry.slots);
        let is_ours = |slot: &Slot| slot.connection == self.connection;
        if slots.get(&self.node).is_some_and(is_ours)
            && let Some(Slot { link: Some(link), .. }) = slots.remove(&self.node)
        {
            // Normally done long ago; here for the case that the handler panicked.
            self.registry.withdraw(&link);
            link.ended.cancel();
        }
        if slots.is_empty() {
            self.registry.emptied.notify_waiters();
        }
    }
}
