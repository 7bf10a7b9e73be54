//! The membership state machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, Notification, PeriodicParams, Runtime, Timer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::identity::{self, Entry, Gossip, Identity, MAX_ENTRIES_PER_EXCHANGE, PacketCodec, Standing};
use super::{Change, Me, Member, MemberState, MembershipConfig, MembershipError, Output};
use crate::codec;
use crate::id::NodeId;
use crate::time::Timestamp;

/// Longest gossip message, in bytes.
pub const MAX_GOSSIP_BYTES: usize = 1024 * 1024;

/// Most members that a node knows, in whatever state; a message that names more is refused.
pub const MAX_MEMBERS: usize = 8192;

/// Most dead and left members that a node remembers; the one that would be forgotten first goes first.
pub const MAX_DEPARTED: usize = 1024;

/// First byte of every gossip message.
const GOSSIP_VERSION: u8 = 1;

/// Longest SWIM packet, in bytes: a header and some dozens of members.
const MAX_PACKET_BYTES: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");

/// Members asked to probe one that did not answer, and members told of pending news at once.
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).expect("not zero");

/// How often a node tells a piece of news: enough for some thousand members.
const MAX_TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(12).expect("not zero");

/// A departure this recent is news for others too; an older one is told in exchanges only.
const FRESH: Duration = Duration::from_secs(60);

/// Who is in the swarm, as this node knows it.
///
/// Inputs: [`handle_message`](Self::handle_message), [`link_up`](Self::link_up),
/// [`link_down`](Self::link_down), [`update_me`](Self::update_me), [`leave`](Self::leave), and
/// [`handle_deadline`](Self::handle_deadline) at [`next_deadline`](Self::next_deadline). After each, take all of
/// [`poll_output`](Self::poll_output). What is known: [`members`](Self::members).
pub struct Membership {
    foca: Foca<Identity, PacketCodec, StdRng, NoCustomBroadcast>,
    effects: Effects,
    config: MembershipConfig,
    rng: StdRng,
    me: NodeId,
    /// This node included. Invariant: of foca's members, each is here with the same incarnation; departed ones
    /// are at most `MAX_DEPARTED` after each deadline.
    records: BTreeMap<NodeId, Record>,
    links: BTreeSet<NodeId>,
    /// Members whose link broke, and when to suspect them unless it is back.
    lost: BTreeMap<NodeId, Timestamp>,
    /// Members that we suspect for their link: when to declare which incarnation and refutation of them dead.
    on_notice: BTreeMap<NodeId, (Timestamp, u64, u16)>,
    /// foca's timers, in order; the number keeps equal moments apart.
    timers: BTreeMap<(Timestamp, u64), Timer<Identity>>,
    timers_set: u64,
    next_announce: Timestamp,
    next_exchange: Timestamp,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Record {
    member: Member,
    /// When to forget a departed member; `NEVER` while it is present.
    forget_at: Timestamp,
}

/// What foca wants done.
#[derive(Debug, Default)]
struct Effects {
    packets: Vec<(NodeId, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Identity>)>,
}

impl Runtime<Identity> for Effects {
    /// Changes are found by comparing foca's members with ours: its notifications do not tell of suspicion.
    fn notify(&mut self, _: Notification<'_, Identity>) {}

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to.node, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((after, event));
    }
}

impl Membership {
    /// A swarm of this node alone. `incarnation` must be higher than any this node had in earlier lives; 1 for
    /// a new node.
    pub fn new(me: Me, incarnation: u64, config: MembershipConfig, mut rng: StdRng, now: Timestamp) -> Self {
        let identity = Identity::new(me, incarnation);
        let mut this = Self {
            me: identity.node,
            foca: Foca::new(identity, swim_config(&config), StdRng::from_rng(&mut rng), PacketCodec),
            effects: Effects::default(),
            rng,
            records: BTreeMap::new(),
            links: BTreeSet::new(),
            lost: BTreeMap::new(),
            on_notice: BTreeMap::new(),
            timers: BTreeMap::new(),
            timers_set: 0,
            next_announce: now + config.announce_period,
            next_exchange: now + config.exchange_period,
            outputs: VecDeque::new(),
            config,
        };
        this.settle(&BTreeMap::new(), now);
        this
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// All known members, this node included, and those that left or died lately. By node.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.records.values().map(|record| &record.member)
    }

    /// What is known of a node.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.records.get(&node).map(|record| &record.member)
    }

    /// What to do next; `None`: nothing until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_deadline`](Self::handle_deadline) next, at the latest.
    pub fn next_deadline(&self) -> Timestamp {
        if self.has_left() {
            return Timestamp::NEVER;
        }
        // A round of gossip without anything to spread would only wake the node: it is held with what comes next.
        let quiet = self.foca.updates_backlog() == 0;
        let mut due =
            self.timers.iter().filter(|(_, timer)| !(quiet && matches!(timer, Timer::PeriodicGossip(_))));
        let swim = due.next().map_or(Timestamp::NEVER, |((at, _), _)| *at);
        let lost = self.lost.values().copied();
        let on_notice = self.on_notice.values().map(|(at, _, _)| *at);
        let links = lost.chain(on_notice).min().unwrap_or(Timestamp::NEVER);
        swim.min(links).min(self.next_announce).min(self.next_exchange)
    }

    /// There is a link to `node`, a member (or one to be) of our swarm and no visitor: tells it all we know, and
    /// goes on each second until it is known as alive.
    pub fn link_up(&mut self, node: NodeId, now: Timestamp) {
        if node == self.me {
            return;
        }
        self.links.insert(node);
        self.lost.remove(&node);
        self.introduce(node, now);
        self.settle(&BTreeMap::new(), now);
    }

    /// There is no link to `node` any more, which makes it suspect unless the link is soon back: a crash is
    /// known to all peers by their broken links before the first probe fails. Who lives refutes it through
    /// others.
    pub fn link_down(&mut self, node: NodeId, now: Timestamp) {
        self.links.remove(&node);
        if self.is_present(node) && node != self.me {
            self.lost.entry(node).or_insert(now + self.config.probe_rtt);
        }
    }

    /// Says something new of this node to all.
    pub fn update_me(&mut self, addresses: Vec<String>, draining: bool, now: Timestamp) {
        let addresses = identity::bounded(addresses);
        let me = self.foca.identity();
        if self.has_left() || (&me.addresses, me.draining) == (&addresses, draining) {
            return;
        }
        let incarnation = me.incarnation.saturating_add(1);
        let me = Identity { incarnation, addresses, draining, ..me.clone() };
        self.become_identity(me);
        self.settle(&BTreeMap::new(), now);
    }

    /// Leaves: tells everybody, and takes no part from then on. Call it when nothing is left to hand over, and
    /// give the messages time to go out before closing the links.
    pub fn leave(&mut self, now: Timestamp) {
        if self.has_left() {
            return;
        }
        let me = self.foca.identity();
        let incarnation = me.incarnation.saturating_add(1);
        self.become_identity(Identity { incarnation, left: true, ..me.clone() });
        let result = self.foca.leave_cluster(&mut self.effects);
        log_refused("leave", result);
        // Linked nodes are told of every new identity, see `settle`.
        let unlinked: Vec<NodeId> = self.others_present().filter(|node| !self.links.contains(node)).collect();
        for node in unlinked {
            self.send_exchange(node, &[self.entry_of_me()], false);
        }
        self.settle(&BTreeMap::new(), now);
        self.timers.clear();
    }

    /// Takes a message that came from `from`.
    ///
    /// # Errors
    /// If it is refused; see [`MembershipError`]. A member of the same version that behaves never causes one.
    pub fn handle_message(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<(), MembershipError> {
        if bytes.len() > MAX_GOSSIP_BYTES {
            return Err(MembershipError::TooLong);
        }
        let Some((&GOSSIP_VERSION, body)) = bytes.split_first() else {
            return Err(MembershipError::Version);
        };
        if from == self.me {
            return Err(MembershipError::NotTheSender { claimed: self.me, from });
        }
        let gossip: Gossip = codec::decode(body)?;
        gossip.check_bounds()?;
        match gossip {
            Gossip::Swim(packet) => self.handle_packet(from, &packet, now),
            Gossip::Exchange { entries, reply } => self.handle_exchange(from, &entries, reply, now),
        }
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now: Timestamp) {
        if self.has_left() {
            return;
        }
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let result = self.foca.handle_timer(entry.remove(), &mut self.effects);
            log_refused("timer", result);
            // The timers that this set come after those that are due, not before.
            self.settle(&BTreeMap::new(), now);
        }
        self.suspect_lost(now);
        if self.next_announce <= now {
            self.next_announce = now + self.config.announce_period;
            self.forget_departed(now);
            let unknown: Vec<NodeId> =
                self.links.iter().copied().filter(|node| !self.is_present(*node)).collect();
            for node in unknown {
                self.introduce(node, now);
            }
            self.question_suspects(now);
        }
        if self.next_exchange <= now {
            self.next_exchange = now + self.config.exchange_period;
            let present: Vec<NodeId> = self.others_present().collect();
            if !present.is_empty() {
                let chosen = present[self.rng.random_range(0..present.len())];
                self.send_exchange(chosen, &self.all_entries(now), true);
            }
        }
        self.settle(&BTreeMap::new(), now);
    }

    /// Suspects those whose link did not come back, and declares dead those who did not refute it. foca does
    /// the same to those who do not answer its probes, and lets nobody else start it.
    fn suspect_lost(&mut self, now: Timestamp) {
        let due: Vec<NodeId> =
            self.lost.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        for node in due {
            self.lost.remove(&node);
            let member = self.foca.iter_members().find(|member| member.id().node == node);
            if let Some((identity, refutation)) =
                member.map(|member| (member.id().clone(), member.incarnation()))
            {
                let notice = (now + self.config.suspect_after, identity.incarnation, refutation);
                self.on_notice.insert(node, notice);
                self.judge(foca::Member::new(identity, refutation, foca::State::Suspect));
            }
        }
        let due: Vec<NodeId> =
            self.on_notice.iter().filter(|(_, (at, _, _))| *at <= now).map(|(node, _)| *node).collect();
        for node in due {
            let Some((_, incarnation, refutation)) = self.on_notice.remove(&node) else {
                continue;
            };
            let unrefuted = self.foca.iter_members().find(|member| {
                *member.id() == Identity::named(node, incarnation)
                    && member.incarnation() == refutation
                    && member.state() == foca::State::Suspect
            });
            if let Some(identity) = unrefuted.map(|member| member.id().clone()) {
                self.judge(foca::Member::new(identity, refutation, foca::State::Down));
            }
        }
    }

    /// Tells those whom we suspect, so that they can refute it: gossip is not bound to reach them, and foca
    /// waits for its own suspicions only. The answer to an announcement carries the refutation.
    fn question_suspects(&mut self, now: Timestamp) {
        let suspects: Vec<foca::Member<Identity>> = self
            .foca
            .iter_members()
            .filter(|member| member.state() == foca::State::Suspect)
            .cloned()
            .collect();
        for suspect in suspects {
            let entry = self.entry_of(&suspect, now);
            self.send_exchange(suspect.id().node, &[entry], false);
            let result = self.foca.announce(suspect.id().clone(), &mut self.effects);
            log_refused("question", result);
        }
    }

    fn judge(&mut self, update: foca::Member<Identity>) {
        let result = self.foca.apply_many(std::iter::once(update), true, &mut self.effects);
        log_refused("link", result);
    }

    fn handle_packet(&mut self, from: NodeId, packet: &[u8], now: Timestamp) -> Result<(), MembershipError> {
        let packet_read = identity::inspect(packet)?;
        let claimed = packet_read.sender.node;
        if claimed != from {
            return Err(MembershipError::NotTheSender { claimed, from });
        }
        self.check_room(&packet_read.named)?;
        if self.has_left() {
            return Ok(());
        }
        if packet_read.addressed_to > self.foca.identity().incarnation {
            self.outbid(packet_read.addressed_to);
        }
        self.outbid_rumours(&packet_read.named);
        let result = self.foca.handle_data(packet, &mut self.effects);
        self.settle(&BTreeMap::new(), now);
        result.map_err(|error| MembershipError::Protocol(error.to_string()))
    }

    fn handle_exchange(
        &mut self,
        from: NodeId,
        entries: &[Entry],
        reply: bool,
        now: Timestamp,
    ) -> Result<(), MembershipError> {
        let named: Vec<Identity> = entries.iter().map(|entry| entry.identity.clone()).collect();
        self.check_room(&named)?;
        if self.has_left() {
            // It may have missed it.
            self.send_exchange(from, &[self.entry_of_me()], false);
            return Ok(());
        }
        self.outbid_rumours(&named);
        self.contradict(from, &named, now);
        let remember =
            |entry: &Entry| Duration::from_millis(entry.remember_ms).min(self.config.remember_departed);
        let down = |entry: &&Entry| entry.standing == Standing::Down;
        let forget_at: BTreeMap<NodeId, Timestamp> =
            entries.iter().filter(down).map(|entry| (entry.identity.node, now + remember(entry))).collect();
        let worth_telling = self.config.remember_departed.saturating_sub(FRESH);
        let (old, news): (Vec<&Entry>, Vec<&Entry>) =
            entries.iter().partition(|entry| down(entry) && remember(entry) < worth_telling);
        let news = news.into_iter().map(Entry::to_update);
        let result = self.foca.apply_many(news, true, &mut self.effects);
        log_refused("exchange", result);
        let old = old.into_iter().filter(|entry| entry.remember_ms > 0).map(Entry::to_update);
        let result = self.foca.apply_many(old, false, &mut self.effects);
        log_refused("exchange", result);
        self.settle(&forget_at, now);
        if reply {
            self.send_exchange(from, &self.all_entries(now), false);
        }
        Ok(())
    }

    /// Refuses a message that names more new members than there is room for.
    fn check_room(&self, named: &[Identity]) -> Result<(), MembershipError> {
        let nodes = named.iter().map(|identity| identity.node);
        let new: BTreeSet<NodeId> = nodes.filter(|node| !self.records.contains_key(node)).collect();
        if self.records.len() + new.len() > MAX_MEMBERS {
            return Err(MembershipError::TooManyMembers);
        }
        Ok(())
    }

    fn has_left(&self) -> bool {
        self.foca.identity().left
    }

    fn is_present(&self, node: NodeId) -> bool {
        self.member(node).is_some_and(|member| member.state.is_present())
    }

    fn others_present(&self) -> impl Iterator<Item = NodeId> {
        self.members()
            .filter(|member| member.state.is_present() && member.node != self.me)
            .map(|member| member.node)
    }

    /// Tells `node` who we are and all we know, and asks for the same.
    fn introduce(&mut self, node: NodeId, now: Timestamp) {
        if self.has_left() {
            self.send_exchange(node, &[self.entry_of_me()], false);
            return;
        }
        let result = self.foca.announce(Identity::named(node, 0), &mut self.effects);
        log_refused("announce", result);
        self.send_exchange(node, &self.all_entries(now), true);
    }

    /// Takes on a new identity of this node, and goes on under it at once.
    fn become_identity(&mut self, me: Identity) {
        let result = self.foca.change_identity(me, &mut self.effects);
        log_refused("change of identity", result);
    }

    fn entry_of_me(&self) -> Entry {
        Entry {
            identity: self.foca.identity().clone(),
            // The lowest, as foca does not tell the present one; it travels on every packet.
            refutation: 0,
            standing: if self.has_left() { Standing::Down } else { Standing::Alive },
            remember_ms: as_millis(self.config.remember_departed),
        }
    }

    fn entry_of(&self, member: &foca::Member<Identity>, now: Timestamp) -> Entry {
        let forget_at = self.records.get(&member.id().node).map_or(now, |record| record.forget_at);
        Entry {
            identity: member.id().clone(),
            refutation: member.incarnation(),
            standing: member.state().into(),
            remember_ms: as_millis(forget_at.since(now)),
        }
    }

    fn all_entries(&self, now: Timestamp) -> Vec<Entry> {
        let others = self.foca.iter_membership_state().filter(|member| member.id().node != self.me);
        let mut entries = vec![self.entry_of_me()];
        entries.extend(others.map(|member| self.entry_of(member, now)));
        entries
    }

    fn send_exchange(&mut self, to: NodeId, entries: &[Entry], reply: bool) {
        let parts = entries.chunks(MAX_ENTRIES_PER_EXCHANGE);
        let last = parts.len().saturating_sub(1);
        for (part, entries) in parts.enumerate() {
            let reply = reply && part == last;
            self.send(to, &Gossip::Exchange { entries: entries.to_vec(), reply });
        }
    }

    fn send(&mut self, to: NodeId, gossip: &Gossip) {
        let mut bytes = vec![GOSSIP_VERSION];
        bytes.extend(codec::encode(gossip));
        debug_assert!(bytes.len() <= MAX_GOSSIP_BYTES);
        self.outputs.push_back(Output::Send { to, bytes });
    }

    /// After each input to foca: carries its effects out and takes over what it knows. `forget_at`: of members
    /// that may just have been learned as departed, when to forget them.
    fn settle(&mut self, forget_at: &BTreeMap<NodeId, Timestamp>, now: Timestamp) {
        self.drop_rumours();
        let known = self.member(self.me).map(|member| member.incarnation);
        if known != Some(self.foca.identity().incarnation) {
            // foca waits for a message to its new identity before it probes again; the members it knows are
            // still there.
            let result = self.foca.apply_many(std::iter::empty(), false, &mut self.effects);
            log_refused("new identity", result);
            for node in self.links.clone() {
                self.send_exchange(node, &[self.entry_of_me()], false);
            }
        }
        for (to, packet) in std::mem::take(&mut self.effects.packets) {
            self.send(to, &Gossip::Swim(packet));
        }
        for (after, timer) in std::mem::take(&mut self.effects.timers) {
            self.timers.insert((now + after, self.timers_set), timer);
            self.timers_set += 1;
        }
        self.take_over(forget_at, now);
    }

    /// Others may believe in an incarnation of this node that is above its present one, or in the same one
    /// saying something else: of an earlier life, or a lie. It would win over us everywhere, so go above it.
    fn outbid_rumours(&mut self, named: &[Identity]) {
        let node = self.me;
        for rumour in named.iter().filter(|identity| identity.node == node) {
            let me = self.foca.identity();
            let above = rumour.incarnation > me.incarnation;
            if above || (rumour == me && !rumour.says_the_same(me)) {
                self.outbid(rumour.incarnation);
            }
        }
    }

    fn outbid(&mut self, incarnation: u64) {
        let incarnation = incarnation.saturating_add(1);
        self.become_identity(Identity { incarnation, ..self.foca.identity().clone() });
    }

    /// If we know another meaning of the incarnation that `from` has, tell it: only it can settle this, by
    /// taking a higher one.
    fn contradict(&mut self, from: NodeId, named: &[Identity], now: Timestamp) {
        let Some(said) = named.iter().find(|identity| identity.node == from) else {
            return;
        };
        let known = self.foca.iter_membership_state().find(|member| member.id() == said);
        if let Some(known) = known.filter(|member| !member.id().says_the_same(said)) {
            let entry = self.entry_of(known, now);
            self.send_exchange(from, &[entry], false);
        }
    }

    /// foca takes rumours about us for members; they are not.
    fn drop_rumours(&mut self) {
        let rumours: Vec<Identity> = self
            .foca
            .iter_membership_state()
            .filter(|member| member.id().node == self.me)
            .map(|member| member.id().clone())
            .collect();
        for rumour in rumours {
            let result = self.foca.handle_timer(Timer::RemoveDown(rumour), &mut self.effects);
            log_refused("rumour", result);
        }
    }

    /// Brings our records to what foca knows, and reports what changed.
    fn take_over(&mut self, forget_at: &BTreeMap<NodeId, Timestamp>, now: Timestamp) {
        let me = self.foca.identity();
        let mine = (me, if me.left { MemberState::Left } else { MemberState::Alive });
        let others =
            self.foca.iter_membership_state().filter(|member| member.id().node != self.me).map(|member| {
                let state = match member.state() {
                    _ if member.id().left => MemberState::Left,
                    foca::State::Alive => MemberState::Alive,
                    foca::State::Suspect => MemberState::Suspect,
                    foca::State::Down => MemberState::Dead,
                };
                (member.id(), state)
            });
        for (identity, state) in std::iter::once(mine).chain(others) {
            let record = self.records.get_mut(&identity.node);
            let before = record.as_ref().map(|record| record.member.state);
            if let Some(record) = record
                && record.member.incarnation == identity.incarnation
                && before == Some(state)
            {
                continue;
            }
            let previous = self.records.get(&identity.node).map(|record| &record.member);
            let member = Member {
                node: identity.node,
                incarnation: identity.incarnation,
                addresses: identity.addresses.clone(),
                weight: identity.weight,
                draining: identity.draining,
                state,
                since: previous.filter(|member| member.state == state).map_or(now, |member| member.since),
            };
            let says_the_same = previous.is_some_and(|previous| {
                (&previous.addresses, previous.weight, previous.draining, previous.state)
                    == (&member.addresses, member.weight, member.draining, member.state)
            });
            let was_departed = before.is_some_and(|state| !state.is_present());
            let forget_at = match self.records.get(&identity.node) {
                _ if state.is_present() => Timestamp::NEVER,
                Some(record) if was_departed => record.forget_at,
                _ => forget_at.get(&identity.node).copied().unwrap_or(now + self.config.remember_departed),
            };
            // Of a member that departed before we heard of it, the news says how long ago that was.
            let member = match before {
                None if !state.is_present() => {
                    Member { since: forget_at - self.config.remember_departed, ..member }
                }
                _ => member,
            };
            if !says_the_same {
                self.outputs.push_back(Output::Changed(Change { member: member.clone(), before }));
            }
            self.records.insert(identity.node, Record { member, forget_at });
        }
    }

    /// Forgets departed members whose time is over, and the next ones if there are too many.
    fn forget_departed(&mut self, now: Timestamp) {
        let mut departed: Vec<(Timestamp, NodeId)> = self
            .records
            .iter()
            .filter(|(_, record)| record.forget_at < Timestamp::NEVER)
            .map(|(node, record)| (record.forget_at, *node))
            .collect();
        departed.sort_unstable();
        let surplus = departed.len().saturating_sub(MAX_DEPARTED);
        for (index, (forget_at, node)) in departed.into_iter().enumerate() {
            if index >= surplus && forget_at > now {
                break;
            }
            if let Some(record) = self.records.remove(&node) {
                self.outputs.push_back(Output::Forgotten { node });
                let timer = Timer::RemoveDown(Identity::named(node, record.member.incarnation));
                let result = self.foca.handle_timer(timer, &mut self.effects);
                log_refused("forgetting", result);
            }
        }
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("me", &self.me)
            .field("records", &self.records)
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

fn swim_config(config: &MembershipConfig) -> foca::Config {
    foca::Config {
        probe_period: config.probe_period,
        probe_rtt: config.probe_rtt,
        num_indirect_probes: FANOUT,
        max_transmissions: MAX_TRANSMISSIONS,
        suspect_to_down_after: config.suspect_after,
        // We forget, see `forget_departed`.
        remove_down_after: None,
        max_packet_size: MAX_PACKET_BYTES,
        notify_down_members: true,
        // Exchanges do that.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams { frequency: config.gossip_period, num_members: FANOUT }),
    }
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// For foca's answers to our own inputs: what it refuses there does not stop it, and the next exchange repairs.
fn log_refused(what: &str, result: Result<(), foca::Error>) {
    if let Err(error) = result {
        tracing::warn!(%error, "membership: {what}");
    }
}
