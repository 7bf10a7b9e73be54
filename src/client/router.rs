//! Which node to ask: a cached view of the swarm and of who leads what, corrected by what nodes answer.
//!
//! The cache is a hint. A wrong one costs a hop or a retry, never a wrong answer: the node that is asked knows
//! whether it leads.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::{Clock, lock};
use crate::id::{NodeId, PartitionId, SwarmId};
use crate::ring::{PartitionCount, Token};
use crate::time::Timestamp;
use crate::wire::{MemberView, Request, Response, Rpc, SwarmView};

/// Nodes asked at once for their view.
const VIEW_FANOUT: usize = 3;
/// Longest wait for a view.
const VIEW_TIMEOUT: Duration = Duration::from_secs(1);
/// Members wished for at once when those that are linked are of no use.
const REACH_OUT: usize = 3;
/// Views are asked for no more often than this, per client.
const VIEW_INTERVAL: Duration = Duration::from_millis(100);

/// The partition of a key in the swarm of `view`.
pub(super) fn partition_of(key: &[u8], view: &SwarmView) -> PartitionId {
    // Views without a possible number of partitions are not learned.
    PartitionCount::new(view.partitions)
        .map_or(PartitionId(0), |count| count.partition_of(Token::of_key(key)))
}

pub(super) struct Router<R> {
    pub(super) rpc: R,
    clock: Clock,
    pub(super) rng: Mutex<StdRng>,
    routes: Mutex<Routes>,
    /// Held while a view is asked for: one flight at a time.
    flight: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Routes {
    view: Option<Arc<SwarmView>>,
    // Invariant: as long as the view has partitions.
    leaders: Vec<Option<NodeId>>,
    /// A node contradicted the view: it is not to be used before it was asked for again.
    distrusted: bool,
    /// When a view was last asked for.
    asked: Option<Timestamp>,
}

/// Nodes that one call has asked without success.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// In this round; forgotten when the call backs off.
    pub(super) tried: BTreeSet<NodeId>,
    /// Did not answer at all: asked again only if nobody else is left.
    pub(super) silent: BTreeSet<NodeId>,
}

/// Whom to ask next.
pub(super) enum Target {
    Node(NodeId),
    /// All that are linked have been asked in this round.
    AllTried,
    /// There is no link.
    NoLink,
}

impl<R: Rpc> Router<R> {
    pub(super) fn new(rpc: R, clock: Clock, rng: StdRng) -> Self {
        Self {
            rpc,
            clock,
            rng: Mutex::new(rng),
            routes: Mutex::default(),
            flight: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn cached(&self) -> Option<Arc<SwarmView>> {
        lock(&self.routes).view.clone()
    }

    /// The view by which to route, unless a node contradicted it.
    pub(super) fn trusted(&self) -> Option<Arc<SwarmView>> {
        let routes = lock(&self.routes);
        routes.view.clone().filter(|_| !routes.distrusted)
    }

    /// A node contradicted the view of `swarm`: every call asks for a new one before it goes on. The old one
    /// is kept until then, because of two linked swarms of one name the known one is preferred.
    pub(super) fn distrust(&self, swarm: SwarmId) {
        let mut routes = lock(&self.routes);
        routes.distrusted |= routes.view.as_ref().is_some_and(|view| view.swarm == swarm);
    }

    /// Asks for a view, unless someone just did, and returns the best one known.
    pub(super) async fn refresh(&self) -> Option<Arc<SwarmView>> {
        let arrived = (self.clock)();
        let _flight = self.flight.lock().await;
        {
            let mut routes = lock(&self.routes);
            let now = (self.clock)();
            if routes.asked.is_some_and(|asked| asked >= arrived || now.since(asked) < VIEW_INTERVAL) {
                return routes.view.clone();
            }
            routes.asked = Some(now);
        }
        self.fetch().await.or_else(|| self.cached())
    }

    /// Asks some linked nodes for their view at once and takes the first.
    ///
    /// Two swarms of one name may both be linked. A client within a node takes its node's word alone. A visitor
    /// stays with the swarm that it knows as long as a member of it is linked, unless such a member is in another
    /// one now.
    pub(super) async fn fetch(&self) -> Option<Arc<SwarmView>> {
        let known = self.cached();
        let is_known = |node| known.as_ref().is_some_and(|known| is_member(known, node));
        let mut nodes = match self.rpc.home() {
            Some(home) => vec![home],
            None => self.rpc.linked(),
        };
        nodes.shuffle(&mut lock(&self.rng));
        nodes.sort_by_key(|node| !is_known(*node));
        nodes.truncate(VIEW_FANOUT);
        let reaches_known = nodes.iter().any(|node| is_known(*node));
        if !reaches_known {
            self.reach_out();
        }
        let ask = |node| async move { (node, self.rpc.call(node, Request::View, VIEW_TIMEOUT).await) };
        let mut answers: FuturesUnordered<_> = nodes.into_iter().map(ask).collect();
        let mut other = None;
        while let Some((node, answer)) = answers.next().await {
            let Ok(Response::View(view)) = answer else {
                continue;
            };
            if !is_sound(&view) {
                continue;
            }
            if known.as_ref().is_none_or(|known| known.swarm == view.swarm) {
                return Some(self.learn(view));
            }
            if is_known(node) || !reaches_known {
                other = Some(view);
            }
        }
        other.map(|view| self.learn(view))
    }

    /// Wishes for links to some members that the last view names: those that were linked may all be gone.
    pub(super) fn reach_out(&self) {
        let Some(view) = self.cached() else { return };
        let linked = self.rpc.linked();
        let is_new = |member: &&MemberView| member.state.is_present() && !linked.contains(&member.node);
        let members: Vec<_> = view.members.iter().filter(is_new).collect();
        let chosen: Vec<_> = members.sample(&mut lock(&self.rng), REACH_OUT).collect();
        for member in chosen {
            self.rpc.want(member.node, &member.addresses);
        }
    }

    /// A node has shown its view to the caller: where members are is worth knowing, if it is the known swarm.
    pub(super) fn note(&self, view: &SwarmView) {
        if is_sound(view) && self.cached().is_none_or(|known| known.swarm == view.swarm) {
            self.learn(view.clone());
        }
    }

    fn learn(&self, view: SwarmView) -> Arc<SwarmView> {
        let mut routes = lock(&self.routes);
        let same = routes.view.as_ref().is_some_and(|old| old.swarm == view.swarm);
        if !same || routes.leaders.len() != view.leaders.len() {
            routes.leaders.clone_from(&view.leaders);
        } else {
            for (known, told) in routes.leaders.iter_mut().zip(&view.leaders) {
                *known = told.or(*known);
            }
        }
        let view = Arc::new(view);
        routes.view = Some(Arc::clone(&view));
        routes.distrusted = false;
        view
    }

    /// Who leads a partition, as far as is known.
    pub(super) fn leader(&self, partition: PartitionId) -> Option<NodeId> {
        lock(&self.routes).leaders.get(partition.0 as usize).copied().flatten()
    }

    /// A node said who leads.
    pub(super) fn set_leader(&self, partition: PartitionId, leader: NodeId) {
        if let Some(known) = lock(&self.routes).leaders.get_mut(partition.0 as usize) {
            *known = Some(leader);
        }
    }

    /// `node` does not lead, or does not answer.
    pub(super) fn forget_leader(&self, partition: PartitionId, node: NodeId) {
        if let Some(known) = lock(&self.routes).leaders.get_mut(partition.0 as usize) {
            known.take_if(|leader| *leader == node);
        }
    }

    /// The leader if it can be asked; otherwise any node that may send it on.
    pub(super) fn target(&self, view: &SwarmView, partition: PartitionId, asked: &Asked) -> Target {
        if let Some(leader) = self.leader(partition) {
            if !self.rpc.is_linked(leader) {
                let member = view.members.iter().find(|member| member.node == leader);
                let addresses = member.map_or(&[][..], |member| &member.addresses);
                self.rpc.want(leader, addresses);
            } else if !asked.tried.contains(&leader) && !asked.silent.contains(&leader) {
                return Target::Node(leader);
            }
        }
        let linked = self.rpc.linked();
        if linked.is_empty() {
            self.reach_out();
            return Target::NoLink;
        }
        let mut pool: Vec<NodeId> = linked.into_iter().filter(|node| !asked.tried.contains(node)).collect();
        narrow(&mut pool, |node| is_member(view, node));
        narrow(&mut pool, |node| !asked.silent.contains(&node));
        match pool.choose(&mut lock(&self.rng)) {
            Some(node) => Target::Node(*node),
            None => Target::AllTried,
        }
    }
}

impl<R: Rpc> Router<R> {
    /// Tells all linked nodes something about the swarm. Who does not answer within the limit is not waited for.
    pub(super) async fn tell_linked(&self, limit: Duration, request: impl FnOnce(SwarmId) -> Request) {
        let Some(view) = self.cached() else { return };
        let request = request(view.swarm);
        let tell = |node| {
            let request = request.clone();
            async move { drop(self.rpc.call(node, request, limit).await) }
        };
        futures::future::join_all(self.rpc.linked().into_iter().map(tell)).await;
    }

    /// Whom to ask for what only `node` has: itself, or, as long as there is no link to it, somebody who may send
    /// it on.
    pub(super) fn towards(&self, node: NodeId) -> Option<NodeId> {
        if self.rpc.is_linked(node) {
            return Some(node);
        }
        let linked = self.rpc.linked();
        let view = self.cached();
        let member = view.iter().flat_map(|view| &view.members).find(|member| member.node == node);
        if let Some(member) = member {
            self.rpc.want(node, &member.addresses);
        }
        linked.choose(&mut lock(&self.rng)).copied()
    }
}

/// Whether it can be routed by.
fn is_sound(view: &SwarmView) -> bool {
    PartitionCount::new(view.partitions).is_ok() && view.leaders.len() == view.partitions as usize
}

fn is_member(view: &SwarmView, node: NodeId) -> bool {
    view.members.iter().any(|member| member.node == node)
}

/// Keeps what `fits`, if anything does.
fn narrow(pool: &mut Vec<NodeId>, fits: impl Fn(NodeId) -> bool) {
    if pool.iter().any(|node| fits(*node)) {
        pool.retain(|node| fits(*node));
    }
}
