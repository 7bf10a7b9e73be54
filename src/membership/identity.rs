//! What gossips, and its bytes: foca's packets in our codec, and our own exchange.

use foca::{Header, Message};
use serde::{Deserialize, Serialize};

use super::{Me, MembershipError};
use crate::codec::{self, DecodeError};
use crate::id::NodeId;

use bytes::{Buf, BufMut};

/// Most addresses of one member.
pub const MAX_ADDRESSES: usize = 8;

/// Longest address of a member, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 256;

/// Most members in one exchange message; more go into further messages. With the bounds above: below 1 MiB.
pub(super) const MAX_ENTRIES_PER_EXCHANGE: usize = 256;

/// A member as the protocol knows it. Two are equal if node and incarnation are; what else it says of itself is
/// fixed by the incarnation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    pub(super) incarnation: u64,
    pub(super) addresses: Vec<String>,
    pub(super) weight: u32,
    pub(super) draining: bool,
    pub(super) left: bool,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (self.node, self.incarnation) == (other.node, other.incarnation)
    }
}

impl Eq for Identity {}

impl foca::Identity for Identity {
    type Addr = NodeId;

    /// How a member that was declared dead comes back. One that left does not want to.
    fn renew(&self) -> Option<Self> {
        (!self.left).then(|| Self { incarnation: self.incarnation.saturating_add(1), ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

impl Identity {
    pub(super) fn new(me: Me, incarnation: u64) -> Self {
        let addresses = bounded(me.addresses);
        Self { node: me.node, incarnation, addresses, weight: me.weight, draining: false, left: false }
    }

    /// One of which only the name is known: enough to send to it, never stored.
    pub(super) fn named(node: NodeId, incarnation: u64) -> Self {
        Self { node, incarnation, addresses: Vec::new(), weight: 0, draining: false, left: false }
    }

    /// Whether both say the same of themselves.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let said = |identity: &Self| (identity.weight, identity.draining, identity.left);
        self.addresses == other.addresses && said(self) == said(other)
    }

    fn is_within_bounds(&self) -> bool {
        self.addresses.len() <= MAX_ADDRESSES
            && self.addresses.iter().all(|address| address.len() <= MAX_ADDRESS_BYTES)
    }
}

/// The addresses that may be gossiped.
pub(super) fn bounded(mut addresses: Vec<String>) -> Vec<String> {
    addresses.retain(|address| address.len() <= MAX_ADDRESS_BYTES);
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// A gossip message, behind its version byte.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Gossip {
    /// A packet of the SWIM protocol.
    Swim(#[serde(with = "crate::codec::bytes")] Vec<u8>),
    /// (A part of) all that the sender knows.
    Exchange {
        entries: Vec<Entry>,
        /// Whether the receiver shall answer alike.
        reply: bool,
    },
}

/// A member as its SWIM rules compare it, and how long the news is worth remembering.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    /// Within one incarnation of the identity: raised to refute suspicion.
    pub(super) refutation: u16,
    pub(super) standing: Standing,
    /// Of a member that is down: for how many milliseconds it shall still be remembered.
    pub(super) remember_ms: u64,
}

impl Entry {
    pub(super) fn to_update(&self) -> foca::Member<Identity> {
        foca::Member::new(self.identity.clone(), self.refutation, self.standing.into())
    }
}

/// `foca::State`, which does not serialize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    Alive,
    Suspect,
    Down,
}

impl From<foca::State> for Standing {
    fn from(state: foca::State) -> Self {
        match state {
            foca::State::Alive => Self::Alive,
            foca::State::Suspect => Self::Suspect,
            foca::State::Down => Self::Down,
        }
    }
}

impl From<Standing> for foca::State {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Alive => Self::Alive,
            Standing::Suspect => Self::Suspect,
            Standing::Down => Self::Down,
        }
    }
}

impl Gossip {
    /// Refuses what is longer than any node of this version makes it.
    pub(super) fn check_bounds(&self) -> Result<(), MembershipError> {
        match self {
            Self::Swim(_) => Ok(()),
            Self::Exchange { entries, .. } => {
                let fits = entries.len() <= MAX_ENTRIES_PER_EXCHANGE
                    && entries.iter().all(|entry| entry.identity.is_within_bounds());
                if fits { Ok(()) } else { Err(MembershipError::TooLong) }
            }
        }
    }
}

/// A SWIM packet, all of it well-formed and within bounds.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) sender: Identity,
    /// To which incarnation of the receiver it is addressed.
    pub(super) addressed_to: u64,
    /// All that it tells of, the sender included.
    pub(super) named: Vec<Identity>,
}

/// Reads a SWIM packet as foca will, before foca does.
pub(super) fn inspect(mut packet: &[u8]) -> Result<Packet, MembershipError> {
    let mut codec = PacketCodec;
    let header = foca::Codec::decode_header(&mut codec, &mut packet)?;
    let mut named = vec![header.src.clone()];
    if packet.len() >= 2 {
        for _ in 0..packet.get_u16() {
            let member = foca::Codec::<Identity>::decode_member(&mut codec, &mut packet)?;
            named.push(member.id().clone());
        }
    }
    if !packet.is_empty() {
        return Err(DecodeError::TrailingBytes(packet.len()).into());
    }
    Ok(Packet { sender: header.src, addressed_to: header.dst.incarnation, named })
}

/// Each item as a length of two bytes and our codec's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct PacketCodec;

/// Who is meant, without what it says of itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Name(NodeId, u64);

impl From<&Identity> for Name {
    fn from(identity: &Identity) -> Self {
        Self(identity.node, identity.incarnation)
    }
}

impl From<Name> for Identity {
    fn from(Name(node, incarnation): Name) -> Self {
        Self::named(node, incarnation)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireHeader {
    src: Identity,
    src_refutation: u16,
    dst: Name,
    message: WireMessage,
}

/// `foca::Message` without the custom broadcasts, which we do not use.
#[derive(Debug, Serialize, Deserialize)]
enum WireMessage {
    Ping(u8),
    Ack(u8),
    PingReq { target: Name, number: u8 },
    IndirectPing { origin: Name, number: u8 },
    IndirectAck { target: Name, number: u8 },
    ForwardedAck { origin: Name, number: u8 },
    Announce,
    Feed,
    Gossip,
    TurnUndead,
}

#[derive(Debug, Serialize, Deserialize)]
struct WireMember {
    identity: Identity,
    refutation: u16,
    standing: Standing,
}

/// An item that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum PacketError {
    /// The packet has no room for it.
    #[error("no room in the packet")]
    Full,
    /// We neither send nor take it.
    #[error("custom broadcast")]
    Broadcast,
    /// It ends too early.
    #[error("ends too early")]
    Short,
    /// Its identity has too many or too long addresses.
    #[error("beyond its bounds")]
    TooLong,
    /// It is something else.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

impl From<PacketError> for MembershipError {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::TooLong => Self::TooLong,
            PacketError::Malformed(error) => Self::Malformed(error),
            PacketError::Full | PacketError::Broadcast | PacketError::Short => {
                Self::Protocol(error.to_string())
            }
        }
    }
}

impl foca::Codec<Identity> for PacketCodec {
    type Error = PacketError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), PacketError> {
        let message = match &header.message {
            Message::Ping(number) => WireMessage::Ping(*number),
            Message::Ack(number) => WireMessage::Ack(*number),
            Message::PingReq { target, probe_number } => {
                WireMessage::PingReq { target: target.into(), number: *probe_number }
            }
            Message::IndirectPing { origin, probe_number } => {
                WireMessage::IndirectPing { origin: origin.into(), number: *probe_number }
            }
            Message::IndirectAck { target, probe_number } => {
                WireMessage::IndirectAck { target: target.into(), number: *probe_number }
            }
            Message::ForwardedAck { origin, probe_number } => {
                WireMessage::ForwardedAck { origin: origin.into(), number: *probe_number }
            }
            Message::Announce => WireMessage::Announce,
            Message::Feed => WireMessage::Feed,
            Message::Gossip => WireMessage::Gossip,
            Message::TurnUndead => WireMessage::TurnUndead,
            Message::Broadcast => return Err(PacketError::Broadcast),
        };
        let header = WireHeader {
            src: header.src.clone(),
            src_refutation: header.src_incarnation,
            dst: (&header.dst).into(),
            message,
        };
        put_item(&header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, PacketError> {
        let header: WireHeader = get_item(buf)?;
        if !header.src.is_within_bounds() {
            return Err(PacketError::TooLong);
        }
        let message = match header.message {
            WireMessage::Ping(number) => Message::Ping(number),
            WireMessage::Ack(number) => Message::Ack(number),
            WireMessage::PingReq { target, number } => {
                Message::PingReq { target: target.into(), probe_number: number }
            }
            WireMessage::IndirectPing { origin, number } => {
                Message::IndirectPing { origin: origin.into(), probe_number: number }
            }
            WireMessage::IndirectAck { target, number } => {
                Message::IndirectAck { target: target.into(), probe_number: number }
            }
            WireMessage::ForwardedAck { origin, number } => {
                Message::ForwardedAck { origin: origin.into(), probe_number: number }
            }
            WireMessage::Announce => Message::Announce,
            WireMessage::Feed => Message::Feed,
            WireMessage::Gossip => Message::Gossip,
            WireMessage::TurnUndead => Message::TurnUndead,
        };
        Ok(Header {
            src: header.src,
            src_incarnation: header.src_refutation,
            dst: header.dst.into(),
            message,
        })
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Identity>,
        buf: impl BufMut,
    ) -> Result<(), PacketError> {
        let member = WireMember {
            identity: member.id().clone(),
            refutation: member.incarnation(),
            standing: member.state().into(),
        };
        put_item(&member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Identity>, PacketError> {
        let member: WireMember = get_item(buf)?;
        if !member.identity.is_within_bounds() {
            return Err(PacketError::TooLong);
        }
        Ok(foca::Member::new(member.identity, member.refutation, member.standing.into()))
    }
}

fn put_item<T: Serialize>(item: &T, mut buf: impl BufMut) -> Result<(), PacketError> {
    let bytes = codec::encode(item);
    let length = u16::try_from(bytes.len()).map_err(|_| PacketError::Full)?;
    if buf.remaining_mut() < bytes.len() + 2 {
        return Err(PacketError::Full);
    }
    buf.put_u16(length);
    buf.put_slice(&bytes);
    Ok(())
}

fn get_item<T: serde::de::DeserializeOwned>(mut buf: impl Buf) -> Result<T, PacketError> {
    if buf.remaining() < 2 {
        return Err(PacketError::Short);
    }
    let length = usize::from(buf.get_u16());
    if buf.remaining() < length {
        return Err(PacketError::Short);
    }
    Ok(codec::decode(&buf.copy_to_bytes(length))?)
}
