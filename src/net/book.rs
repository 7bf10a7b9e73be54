//! The address book: whom to dial, where, and when to try again.
//!
//! libp2p forgets an address after one failed dial and never dials again by itself, so a swarm that was cut
//! would stay cut. Here every wish stays until it is withdrawn or too old, rests while it is fulfilled, and is
//! tried with a backoff that doubles and is jittered. An address that a user gave rests while the node that
//! answered there is linked: when that node is gone, another may be there. Pure: time and chance are arguments.
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
/// Longest wait between two dials of a node or address that is wished for, as long as that is news.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Who has not been reached for long is dialled after this share of that time: so the wait grows after a minute.
const PATIENCE_SHARE: u32 = 30;
/// Longest wait between two dials of a node that is kept, however long it has not been reached.
const MAX_KEPT_BACKOFF: Duration = Duration::from_secs(30);
/// Longest wait between two dials of an address where nobody answers, while there are links to members.
const MAX_ADDRESS_BACKOFF: Duration = Duration::from_secs(30);
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
    /// Of an address: who answered there last.
    led_to: Option<NodeId>,
    /// Dial until then.
    wanted_until: Option<Instant>,
    /// Named by a user or by the swarm.
    addresses: Vec<Multiaddr>,
    /// Named by discovery.
    hints: BTreeSet<Multiaddr>,
    failures: u32,
    /// When the first of these failures was.
    failing_since: Option<Instant>,
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
    /// Who is linked, and whether as a member.
    linked: BTreeMap<NodeId, bool>,
}

impl Book {
    pub(super) fn new(us: NodeId, seed: u64) -> Self {
        Self { us, rng: StdRng::seed_from_u64(seed), wishes: BTreeMap::new(), linked: BTreeMap::new() }
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

    /// Dials an address whenever the node there is not linked.
    pub(super) fn dial(&mut self, address: Multiaddr, now: Instant) {
        if let Some(wish) = self.wish(Target::Address(address.clone())) {
            wish.kept = true;
            wish.addresses = vec![address];
            wish.start_anew();
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
            wish.start_anew();
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
    pub(super) fn link_up(&mut self, node: NodeId, is_member: bool, now: Instant) {
        self.linked.insert(node, is_member);
        let mut is_return = false;
        if let Some(wish) = self.wishes.get_mut(&Target::Node(node)) {
            is_return = is_member && wish.kept && wish.patience(now) > MAX_BACKOFF;
            wish.start_anew();
            wish.strange = false;
            wish.next_dial = None;
        }
        if is_return {
            // Where one comes back that was away for long, a cut has healed: others may be back too.
            self.hasten(now);
        }
    }

    /// Dials all soon that are kept.
    fn hasten(&mut self, now: Instant) {
        for wish in self.wishes.values_mut().filter(|wish| wish.kept && wish.next_dial.is_some()) {
            wish.dial_by(now + MAX_BACKOFF);
        }
    }

    /// A link went down: dial again if it is wished for.
    pub(super) fn link_down(&mut self, node: NodeId, now: Instant) {
        self.linked.remove(&node);
        let first = self.first_dial(node, now);
        if let Some(wish) = self.wishes.get_mut(&Target::Node(node)) {
            wish.dial_by(first);
        }
        for wish in self.wishes.values_mut().filter(|wish| wish.led_to == Some(node)) {
            // If the node is also dialled by its name, that goes first.
            wish.dial_by(now + MAX_BACKOFF);
        }
        if self.is_isolated() {
            self.hasten(now);
        }
    }

    /// A dial led to a link with `node`, whether it made it or found it there.
    pub(super) fn succeeded(&mut self, target: &Target, node: NodeId, now: Instant) {
        let is_linked = self.linked.contains_key(&node);
        if let Some(wish) = self.wishes.get_mut(target) {
            wish.dialling = false;
            if matches!(target, Target::Address(_)) {
                wish.led_to = Some(node);
                wish.start_anew();
                if !is_linked {
                    wish.dial_by(now + MAX_BACKOFF);
                }
            }
        }
    }

    /// A dial led to this very process. An address that does so is dropped.
    pub(super) fn met_ourselves(&mut self, target: &Target, now: Instant) {
        match target {
            Target::Address(_) => drop(self.wishes.remove(target)),
            Target::Node(_) => self.failed(target, Failure::Stranger, now),
        }
    }

    /// Whether an address once led to a link.
    pub(super) fn has_answered(&self, address: &Multiaddr) -> bool {
        self.wishes.get(&Target::Address(address.clone())).is_some_and(|wish| wish.led_to.is_some())
    }

    /// A dial led to nothing.
    pub(super) fn failed(&mut self, target: &Target, failure: Failure, now: Instant) {
        let jitter = self.rng.random_range(0.75..1.25);
        let is_isolated = self.is_isolated();
        if let Some(wish) = self.wishes.get_mut(target) {
            wish.dialling = false;
            wish.strange = failure == Failure::Stranger;
            wish.failing_since.get_or_insert(now);
            let most = match target {
                Target::Address(_) if !is_isolated => MAX_ADDRESS_BACKOFF,
                Target::Node(_) if wish.strange && !wish.kept => MAX_STRANGER_BACKOFF,
                Target::Node(_) if wish.kept => wish.patience(now),
                _ => MAX_BACKOFF,
            };
            let backoff = (FIRST_BACKOFF * 2u32.saturating_pow(wish.failures.min(16))).min(most);
            wish.failures += 1;
            wish.next_dial = Some(now + backoff.mul_f64(jitter));
        }
    }

    /// The dials that are due. Each must be answered by [`succeeded`](Self::succeeded) or
    /// [`failed`](Self::failed).
    pub(super) fn due(&mut self, now: Instant) -> Vec<(Target, Vec<Multiaddr>)> {
        self.wishes.retain(|_, wish| wish.dialling || wish.is_live(now));
        let mut due = Vec::new();
        for (target, wish) in &mut self.wishes {
            if wish.dialling
                || wish.is_fulfilled(target, &self.linked)
                || wish.next_dial.is_none_or(|at| now < at)
            {
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
            .filter(|(target, wish)| !wish.dialling && !wish.is_fulfilled(target, &self.linked))
            .filter_map(|(_, wish)| wish.next_dial)
            .min()
    }

    /// Whether no member is linked.
    fn is_isolated(&self) -> bool {
        !self.linked.values().any(|is_member| *is_member)
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
    fn is_fulfilled(&self, target: &Target, linked: &BTreeMap<NodeId, bool>) -> bool {
        let node = match target {
            Target::Node(node) => Some(node),
            Target::Address(_) => self.led_to.as_ref(),
        };
        node.is_some_and(|node| linked.contains_key(node))
    }

    fn start_anew(&mut self) {
        self.failures = 0;
        self.failing_since = None;
    }

    /// Longest wait until the next dial of a node that is kept.
    fn patience(&self, now: Instant) -> Duration {
        let failing = self.failing_since.map_or(Duration::ZERO, |since| now.duration_since(since));
        (failing / PATIENCE_SHARE).clamp(MAX_BACKOFF, MAX_KEPT_BACKOFF)
    }

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
        let (begin, mut dials) = (now, 0);
        while now < begin + Duration::from_secs(3600) {
            let due = book.due(now);
            assert_eq!(due.len(), 1);
            assert!(book.due(now + MAX_KEPT_BACKOFF * 10).is_empty(), "one dial at a time");
            book.failed(&due[0].0, Failure::Stranger, now);
            let next = book.next_deadline().unwrap();
            let is_news = now < begin + Duration::from_secs(60);
            let most = if is_news { MAX_BACKOFF } else { MAX_KEPT_BACKOFF };
            assert!(next > now && next <= now + most.mul_f64(1.25));
            (now, dials) = (next, dials + 1);
        }
        // Every two seconds it would be 1800.
        assert!(dials > 120 && dials < 260, "{dials} dials in an hour");
        book.forget(node(2));
        assert!(book.due(now + MAX_KEPT_BACKOFF * 2).is_empty());
    }

    #[test]
    fn where_one_comes_back_the_others_are_dialled_soon_and_a_hint_is_followed_at_once() {
        let mut now = start();
        let mut book = Book::new(node(1), 0);
        let is_far = |book: &Book, now| book.next_deadline().unwrap() > now + MAX_BACKOFF;
        for away in [2, 3] {
            book.keep(node(away), vec![address(1)], now);
        }
        for _ in 0..200 {
            for (target, _) in book.due(now) {
                book.failed(&target, Failure::Unreachable, now);
            }
            now = book.next_deadline().unwrap();
        }
        for (target, _) in book.due(now) {
            book.failed(&target, Failure::Unreachable, now);
        }
        now = book.next_deadline().unwrap() - millis(3000);
        assert!(is_far(&book, now));
        book.link_up(node(2), true, now);
        assert!(!is_far(&book, now));
        book.hint(node(3), address(2), now);
        assert_eq!(book.due(now + LARGER_WAITS).len(), 1);
        // From then on it is news again.
        book.failed(&Target::Node(node(3)), Failure::Unreachable, now);
        assert!(!is_far(&book, now));
    }

    #[test]
    fn a_linked_node_is_not_dialled_until_the_link_breaks() {
        let now = start();
        let mut book = Book::new(node(1), 0);
        book.keep(node(2), vec![address(1)], now);
        book.link_up(node(2), true, now);
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
    fn a_typed_address_is_dialled_whenever_the_node_there_is_not_linked() {
        let now = start();
        let mut book = Book::new(node(1), 0);
        book.dial(address(1), now);
        let (target, _) = book.due(now).remove(0);
        book.failed(&target, Failure::Unreachable, now);
        let later = now + MAX_BACKOFF;
        assert_eq!(book.due(later).len(), 1);
        book.link_up(node(2), true, now);
        book.succeeded(&target, node(2), later);
        assert!(book.due(later + MAX_BACKOFF).is_empty());
        assert_eq!(book.next_deadline(), None);
        book.link_down(node(2), later);
        assert_eq!(book.due(later + MAX_BACKOFF).len(), 1);
        // The link was gone before the dial was known to have led to it.
        book.succeeded(&target, node(2), later);
        assert_eq!(book.due(later + MAX_BACKOFF).len(), 1);
        // Another node answers there now.
        book.link_up(node(3), true, now);
        book.succeeded(&target, node(3), later);
        book.link_down(node(2), later);
        assert!(book.due(later + MAX_BACKOFF).is_empty());
    }

    /// Dials of an address at which nobody answers any more.
    fn dials_of_a_dead_address(is_alone: bool, during: Duration) -> usize {
        let mut now = start();
        let end = now + during;
        let mut book = Book::new(node(1), 0);
        book.dial(address(1), now);
        let (target, _) = book.due(now).remove(0);
        book.link_up(node(2), true, now);
        book.succeeded(&target, node(2), now);
        book.link_up(node(3), !is_alone, now);
        book.link_down(node(2), now);
        let mut dials = 0;
        while now < end {
            for (target, _) in book.due(now) {
                dials += 1;
                book.failed(&target, Failure::Unreachable, now);
            }
            now = book.next_deadline().unwrap();
        }
        dials
    }

    #[test]
    fn an_address_that_somebody_left_for_good_is_dialled_less_and_less_unless_nobody_else_is_linked() {
        let hour = Duration::from_secs(3600);
        let with_others = dials_of_a_dead_address(false, hour);
        assert!(with_others < 160, "{with_others}");
        let alone = dials_of_a_dead_address(true, hour);
        assert!(alone > 1400, "{alone}");
    }

    #[test]
    fn the_loss_of_the_last_link_hastens_what_was_given() {
        let mut now = start();
        let mut book = Book::new(node(1), 0);
        book.dial(address(1), now);
        book.link_up(node(2), true, now);
        for _ in 0..20 {
            let (target, _) = book.due(now).remove(0);
            book.failed(&target, Failure::Unreachable, now);
            now = book.next_deadline().unwrap();
        }
        let (target, _) = book.due(now).remove(0);
        book.failed(&target, Failure::Unreachable, now);
        assert!(book.next_deadline().unwrap() > now + MAX_BACKOFF * 5);
        book.link_down(node(2), now);
        assert!(book.next_deadline().unwrap() <= now + MAX_BACKOFF);
    }

    #[test]
    fn an_address_of_our_own_is_dropped() {
        let now = start();
        let mut book = Book::new(node(1), 0);
        book.dial(address(1), now);
        let (target, _) = book.due(now).remove(0);
        book.met_ourselves(&target, now);
        assert!(book.due(now + MAX_BACKOFF * 10).is_empty());
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
