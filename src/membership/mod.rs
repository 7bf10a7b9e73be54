//! Who is in the swarm: SWIM over our links, without I/O.
//!
//! **Guarantee.** Members that can exchange messages come to agree, within seconds, on who is there and what
//! each says of itself. A crashed member becomes *dead* everywhere; one that says that it leaves becomes *left*;
//! one that was declared dead and lives comes back by itself. All of this is gossip: late, sometimes wrong for
//! a while, and only ever used to *place* replicas and to route, never to decide what was written.
//!
//! **Method.** SWIM with suspicion (A. Das, I. Gupta, A. Motivala, "SWIM: Scalable Weakly-consistent
//! Infection-style Process Group Membership Protocol", 2002), as implemented by the crate `foca`, which knows
//! neither sockets nor clocks. Around it, as experience with it taught:
//! - *Exchange*: on each new link, and every 30 s with one random member, both sides tell all they know, dead
//!   members included. Gossip alone tells a change a limited number of times, and whoever is cut off
//!   meanwhile never hears of it. A linked node that we do not know as alive is sent it each second: this joins
//!   newcomers, and tells those wrongly declared dead, who then refute it.
//! - *Links*: a broken link that is not soon back is a suspicion, as if a probe had failed. A crash breaks the
//!   links to all peers at once, so the time until it is noticed does not depend on who happens to be probed.
//! - *Identity*: what gossips is (node, incarnation) with its addresses, weight, and whether it is draining or
//!   has left. What a member says of itself changes under a new incarnation, and the highest one wins. So do
//!   those who refute their death: **incarnations rise at any time; key on [`NodeId`]**.
//! - *Left*: SWIM only knows "down". A member that leaves takes a last incarnation, marked as left, and declares
//!   that down.
//! - *Source*: a message that does not come from the node it names as its sender is refused, as is anything of
//!   another version, or beyond a bound. What members say about *others* is believed until refuted: members are
//!   admitted by the swarm's secret and taken as honest, a liar among them can make others look dead.
//! - *Memory*: departed members are remembered for an hour, so that late gossip cannot revive them, and at most
//!   1024. What is left of the hour travels with the news, or they would be told back and forth for ever.

mod identity;
mod protocol;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::DecodeError;
use crate::id::NodeId;
use crate::time::Timestamp;

pub use identity::{MAX_ADDRESS_BYTES, MAX_ADDRESSES};
pub use protocol::{MAX_DEPARTED, MAX_GOSSIP_BYTES, MAX_MEMBERS, Membership};

/// What the swarm believes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// Answers probes.
    Alive,
    /// Did not answer a probe and has not refuted it yet.
    Suspect,
    /// Did not refute its suspicion in time.
    Dead,
    /// Said that it leaves, and left.
    Left,
}

impl MemberState {
    /// Whether the member still takes part: alive, or suspected and given time to refute it.
    pub const fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// A member as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Rises whenever the member says something new of itself, or refutes its death.
    pub incarnation: u64,
    /// Where it listens, as multiaddresses. At most [`MAX_ADDRESSES`] of [`MAX_ADDRESS_BYTES`].
    pub addresses: Vec<String>,
    /// Its share of the ring relative to others.
    pub weight: u32,
    /// Whether it is handing over its replicas in order to leave.
    pub draining: bool,
    /// What is believed of it.
    pub state: MemberState,
    /// Since when it is, by this node's clock.
    pub since: Timestamp,
}

/// What this node says of itself at its start.
#[derive(Debug, Clone)]
pub struct Me {
    /// Who.
    pub node: NodeId,
    /// Where it listens, as multiaddresses; those beyond [`MAX_ADDRESSES`] or [`MAX_ADDRESS_BYTES`] are dropped.
    pub addresses: Vec<String>,
    /// Its share of the ring relative to others.
    pub weight: u32,
}

/// What to do, or to know, after an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send these bytes; they may be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// A gossip message, of at most [`MAX_GOSSIP_BYTES`].
        bytes: Vec<u8>,
    },
    /// A member is new, changed its state, or says something new of itself.
    Changed(Change),
    /// A member that is long dead or gone is remembered no longer.
    Forgotten {
        /// Who.
        node: NodeId,
    },
}

/// A change of a member; this node itself included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The member as it is now.
    pub member: Member,
    /// Its state before; `None`: it was not known. Equal to the state now if something else changed.
    pub before: Option<MemberState>,
}

/// Knobs. The defaults suit a LAN, and a machine that is busy: with a faster probe, 48 busy threads on two cores
/// made members look dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipConfig {
    /// How often one member, in turn, is probed; without an answer by the end of it, it is suspected. More than
    /// twice `probe_rtt`, or nearly: the indirect probe has to fit in as well. The mean time until a crash is
    /// suspected by anyone is about one and a half of it.
    pub probe_period: Duration,
    /// How long to wait for the answer of a probed member before others are asked to probe it. Well above the
    /// longest usual round trip; below `probe_period`. Also how long a broken link has to come back before its
    /// other end is suspected.
    pub probe_rtt: Duration,
    /// How long a suspected member has to refute it before it is declared dead. Long enough for the news to get
    /// there and back over a loaded machine.
    pub suspect_after: Duration,
    /// How often pending news is sent to a few members on top of what travels on probes.
    pub gossip_period: Duration,
    /// How often linked nodes that are not known as alive are sent all that we know.
    pub announce_period: Duration,
    /// How often one random member is, whatever happened.
    pub exchange_period: Duration,
    /// How long dead and left members are remembered. Above the longest time that members are cut off from each
    /// other; if it is not, those forgotten may be believed alive again until a probe tells.
    pub remember_departed: Duration,
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_secs(1),
            probe_rtt: Duration::from_millis(500),
            suspect_after: Duration::from_secs(4),
            gossip_period: Duration::from_millis(200),
            announce_period: Duration::from_secs(1),
            exchange_period: Duration::from_secs(30),
            remember_departed: Duration::from_secs(60 * 60),
        }
    }
}

/// Why a message was refused. Nothing of it was used, except as [`Self::Protocol`] says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// Empty, or of another version of the gossip protocol.
    #[error("gossip of an unknown version")]
    Version,
    /// Longer than [`MAX_GOSSIP_BYTES`], or with more members, addresses or longer addresses than allowed.
    #[error("gossip beyond its bounds")]
    TooLong,
    /// Not a gossip message.
    #[error("gossip: {0}")]
    Malformed(#[from] DecodeError),
    /// It names another sender than the node it came from.
    #[error("gossip in the name of {claimed:?} came from {from:?}")]
    NotTheSender {
        /// Whom it names.
        claimed: NodeId,
        /// From whom it came.
        from: NodeId,
    },
    /// It would raise the number of known members above [`MAX_MEMBERS`].
    #[error("more than {MAX_MEMBERS} members")]
    TooManyMembers,
    /// It makes no sense in the protocol. What it says about members may have been used.
    #[error("gossip: {0}")]
    Protocol(String),
}
