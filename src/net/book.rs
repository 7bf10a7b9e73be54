//! The address book: whom to dial, where, and when to try again.
//!
//! libp2p forgets an address after one failed dial and never dials again by itself, so a swarm that was cut
//! would stay cut. Here every wish stays until it is fulfilled, withdrawn or too old, and is tried with a
//! backoff that doubles and is jittered. Pure: time and chance are arguments.
//!
//! Two nodes that wish for each other would dial at the same moment and throw one connection away; so the
//! smaller one dials at once and the other a little later. It is a saving, not a rule: if both dial,
//! admission sorts it out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p::Multiaddr;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::id::NodeId;

/// First wait after a failed dial; doubles with each further failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait between two dials of a node or address that is wished for.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Longest wait between two dials of a stranger that discovery named and that refused us or was refused.
const MAX_STRANGER_BACKOFF: Duration = Duration::from_secs(60);
/// How much later than the smaller node the larger one dials.
const LARGER_WAITS: Duration = Duration::from_millis(500);
/// How long a node is dialled for [`want`](Book::want).
const WANT_LASTS: Duration = Duration::from_secs(10);
/// Most wishes in the book; per node.
const MAX_WISHES: usize = 4096;
/// Most wishes that only discovery made: whoever floods it must not crowd out the others.
const MAX_HINTED: usize = 1024;
/// Most addresses per wish.
const MAX_ADDRESSES: usize = 16;

/// Whom a dial is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A node whose name is known.
    Node(NodeId),
    /// Whoever answers at an address that a user gave.
    Address(Multiaddr),
}

/// How a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody answered, or the link broke: try again soon.
    Unreachable,
    /// Somebody answered and is not one of us: if only discovery named him, he is probably no friend.
    Stranger,
}

#[derive(Debug, Default)]
struct Wish {
    /// Dial until told otherwise.
    kept: bool,
    /// Dial until then.
    wanted_until: Option<Instant>,
    /// Named by a user or by the swarm.
    addresses: Vec<Multiaddr>,
    /// Named by discovery.
    hints: BTreeSet<Multiaddr>,
    failures: u32,
    strange: bool,
    next_dial: Option<Instant>,
    dialling: bool,
}

impl Wish {
    fn is_live(&self, now: Instant) -> bool {
        self.kept || !self.hints.is_empty() || self.wanted_until.is_some_and(|until| now < until)
    }
}

/// The wishes of one node.
#[derive(Debug)]
pub(super) struct Book {
    us: NodeId,
    rng: StdRng,
    wishes: BTreeMap<Target, Wish>,
    linked: BTreeSet<NodeId>,
}

impl Book {
    pub(super) fn new(us: NodeId, seed: u64) -> Self {
        Self { us, rng: StdRng::seed_from_u64(seed), wishes: BTreeMap::new(), linked: BTreeSet::new() }
    }

    /// Keeps a link to `node` from now on.
    pub(super) fn keep(&mut self, node: NodeId, addresses: Vec<Multiaddr>, now: Instant) {
        let first = self.first_dial(node, now);
        if let Some(wish) = self.wish(Target::Node(node)) {
            let is_news = !wish.kept || wish.addresses != addresses;
            wish.kept = true;
            wish.set_addresses(addresses);
            if is_news {
                wish.dial_by(first);
            }
        }
    }

    /// Tries for a while to link with `node`.
    pub(super) fn want(&mut self, node: NodeId, addresses: Vec<Multiaddr>, now: Instant) {
        if let Some(wish) = self.wish(Target::Node(node)) {
            wish.wanted_until = Some(now + WANT_LASTS);
            if !addresses.is_empty() {
                wish.set_addresses(addresses);
            }
            // A wish that is failing keeps its backoff: callers may ask as often as they like.
            let soon = if wish.failures == 0 { now } else { now + MAX_BACKOFF };
            wish.dial_by(soon);
        }
    }

    /// Ends [`keep`](Self::keep) and [`want`](Self::want). What discovery says is not forgotten: it says it once.
    pub(super) fn forget(&mut self, node: NodeId) {
        if let Some(wish) = self.wishes.get_mut(&Target::Node(node)) {
            wish.kept = false;
            wish.wanted_until = None;
            wish.addresses.clear();
        }
    }

    /// Dials an address until it leads to a link.
    pub(super) fn dial(&mut self, address: Multiaddr, now: Instant) {
        if let Some(wish) = self.wish(Target::Address(address.clone())) {
            wish.kept = true;
            wish.addresses = vec![address];
            wish.failures = 0;
            wish.next_dial = Some(now);
        }
    }

    /// Ends [`dial`](Self::dial).
    pub(super) fn undial(&mut self, address: &Multiaddr) {
        self.wishes.remove(&Target::Address(address.clone()));
    }

    /// Discovery says that `node` may be found at `address`.
    pub(super) fn hint(&mut self, node: NodeId, address: Multiaddr, now: Instant) {
        if node == self.us {
            return;
        }
        let is_new = !self.wishes.contains_key(&Target::Node(node));
        if is_new && self.wishes.values().filter(|wish| !wish.hints.is_empty()).count() >= MAX_HINTED {
            return;
        }
        let first = self.first_dial(node, now);
        if let Some(wish) = self.wish(Target::Node(node))
            && wish.hints.len() < MAX_ADDRESSES
            && wish.hints.insert(address)
        {
            wish.failures = 0;
            wish.dial_by(first);
        }
    }

    /// Discovery has not heard from `address` for long.
    pub(super) fn unhint(&mut self, node: NodeId, address: &Multiaddr) {
        if let Some(wish) = self.wishes.get_mut(&Target::Node(node)) {
            wish.hints.remove(address);
        }
    }

    /// A link came up: nothing to dial while it lasts.
    pub(super) fn link_up(&mut self, node: NodeId) {
        self.linked.insert(node);
        if let Some(wish) = self.wishes.get_mut(&Target::Node(node)) {
            wish.failures = 0;
            wish.strange = false;
            wish.next_dial = None;
        }
    }

    /// A link went down: dial again if it is wished for.
    pub(super) fn link_down(&mut self, node: NodeId, now: Instant) {
        self.linked.remove(&node);
        let first = self.first_dial(node, now);
        if let Some(wish) = self.wishes.get_mut(&Target::Node(node)) {
            wish.dial_by(first);
        }
    }

    /// A dial led to a link, whether it made it or found it there.
    pub(super) fn succeeded(&mut self, target: &Target) {
        match target {
            Target::Node(_) => {
                if let Some(wish) = self.wishes.get_mut(target) {
                    wish.dialling = false;
                }
            }
            Target::Address(_) => {
                self.wishes.remove(target);
            }
        }
    }

    /// A dial led to nothing.
    pub(super) fn failed(&mut self, target: &Target, failure: Failure, now: Instant) {
        let jitter = self.rng.random_range(0.75..1.25);
        if let Some(wish) = self.wishes.get_mut(target) {
            wish.dialling = false;
            wish.strange = failure == Failure::Stranger;
            let most = if wish.strange && !wish.kept { MAX_STRANGER_BACKOFF } else { MAX_BACKOFF };
            let backoff = (FIRST_BACKOFF * 2u32.saturating_pow(wish.failures.min(16))).min(most);
            wish.failures += 1;
            wish.next_dial = Some(now + backoff.mul_f64(jitter));
        }
    }

    /// The dials that are due. Each must be answered by [`succeeded`](Self::succeeded) or
    /// [`failed`](Self::failed).
    pub(super) fn due(&mut self, now: Instant) -> Vec<(Target, Vec<Multiaddr>)> {
        let linked = &self.linked;
        let is_linked = |target: &Target| matches!(target, Target::Node(node) if linked.contains(node));
        self.wishes.retain(|_, wish| wish.dialling || wish.is_live(now));
        let mut due = Vec::new();
        for (target, wish) in &mut self.wishes {
            if wish.dialling || is_linked(target) || wish.next_dial.is_none_or(|at| now < at) {
                continue;
            }
            let mut addresses = wish.addresses.clone();
            addresses.extend(wish.hints.iter().filter(|hint| !wish.addresses.contains(hint)).cloned());
            wish.next_dial = None;
            if !addresses.is_empty() {
                wish.dialling = true;
                due.push((target.clone(), addresses));
            }
        }
        due
    }

    /// When [`due`](Self::due) has something next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.wishes
            .iter()
            .filter(|(target, wish)| {
                !wish.dialling && !matches!(target, Target::Node(node) if self.linked.contains(node))
            })
            .filter_map(|(_, wish)| wish.next_dial)
            .min()
    }

    fn first_dial(&self, node: NodeId, now: Instant) -> Instant {
        if self.us < node { now } else { now + LARGER_WAITS }
    }

    /// The wish for a target; `None` if the book is full, or the target is ourselves.
    fn wish(&mut self, target: Target) -> Option<&mut Wish> {
        let is_full = self.wishes.len() >= MAX_WISHES && !self.wishes.contains_key(&target);
        (!is_full && target != Target::Node(self.us)).then(|| self.wishes.entry(target).or_default())
    }
}

impl Wish {
    fn set_addresses(&mut self, mut addresses: Vec<Multiaddr>) {
        addresses.truncate(MAX_ADDRESSES);
        self.addresses = addresses;
    }

    fn dial_by(&mut self, at: Instant) {
        self.next_dial = Some(self.next_dial.map_or(at, |planned| planned.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(seed: u8) -> NodeId {
        NodeId::from_public_key([seed; 32])
    }

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_smaller_node_dials_first() {
        let now = start();
        for (us, them, expected) in [(1, 2, now), (2, 1, now + LARGER_WAITS)] {
            let mut book = Book::new(node(us), 0);
            book.keep(node(them), vec![address(1)], now);
            assert_eq!(book.next_deadline(), Some(expected));
        }
    }

    #[test]
    fn a_kept_node_is_dialled_for_ever_with_a_bounded_backoff() {
        let mut now = start();
        let mut book = Book::new(node(1), 0);
        book.keep(node(2), vec![address(1)], now);
        for _ in 0..50 {
            let due = book.due(now);
            assert_eq!(due.len(), 1);
            assert!(book.due(now + MAX_BACKOFF * 10).is_empty(), "one dial at a time");
            book.failed(&due[0].0, Failure::Stranger, now);
            let next = book.next_deadline().unwrap();
            assert!(next > now && next <= now + MAX_BACKOFF.mul_f64(1.25));
            now = next;
        }
        book.forget(node(2));
        assert!(book.due(now + MAX_BACKOFF).is_empty());
    }

    #[test]
    fn a_linked_node_is_not_dialled_until_the_link_breaks() {
        let now = start();
        let mut book = Book::new(node(1), 0);
        book.keep(node(2), vec![address(1)], now);
        book.link_up(node(2));
        assert!(book.due(now + millis(9000)).is_empty());
        book.link_down(node(2), now);
        assert_eq!(book.due(now).len(), 1);
    }

    #[test]
    fn what_is_wanted_is_dialled_for_a_while_only() {
        let now = start();
        let mut book = Book::new(node(9), 0);
        book.want(node(2), vec![address(1)], now);
        let (target, _) = book.due(now).remove(0);
        book.failed(&target, Failure::Unreachable, now);
        assert_eq!(book.due(now + millis(5000)).len(), 1);
        book.failed(&target, Failure::Unreachable, now + millis(5000));
        assert!(book.due(now + WANT_LASTS).is_empty());
        assert_eq!(book.next_deadline(), None);
    }

    #[test]
    fn asking_again_and_again_does_not_shorten_the_backoff() {
        let mut now = start();
        let mut book = Book::new(node(1), 0);
        let mut dials = 0;
        for _ in 0..1000 {
            book.want(node(2), vec![address(1)], now);
            for (target, _) in book.due(now) {
                dials += 1;
                book.failed(&target, Failure::Unreachable, now);
            }
            now += millis(10);
        }
        assert!(dials < 15, "{dials} dials in 10 s");
    }

    #[test]
    fn a_typed_address_is_dialled_until_it_leads_to_a_link() {
        let now = start();
        let mut book = Book::new(node(1), 0);
        book.dial(address(1), now);
        let (target, _) = book.due(now).remove(0);
        book.failed(&target, Failure::Unreachable, now);
        let later = now + MAX_BACKOFF;
        assert_eq!(book.due(later).len(), 1);
        book.succeeded(&target);
        assert!(book.due(later + MAX_BACKOFF).is_empty());
    }

    #[test]
    fn a_stranger_that_discovery_named_is_left_alone_for_longer_and_longer() {
        let mut now = start();
        let end = now + Duration::from_secs(600);
        let mut book = Book::new(node(1), 0);
        let mut dials = 0;
        book.hint(node(2), address(1), now);
        while now < end {
            let (target, _) = book.due(now).remove(0);
            dials += 1;
            book.hint(node(2), address(1), now);
            book.failed(&target, Failure::Stranger, now);
            now = book.next_deadline().unwrap();
        }
        assert!(dials < 30, "{dials} dials in 10 min");
    }

    #[test]
    fn we_do_not_dial_ourselves() {
        let now = start();
        let mut book = Book::new(node(1), 0);
        book.keep(node(1), vec![address(1)], now);
        book.hint(node(1), address(1), now);
        assert!(book.due(now).is_empty());
    }
}
