//! What libp2p needs from us: on every connection the dialer opens two substreams, the listener accepts them,
//! and both are handed out as soon as they are there. No byte is read here and none passes through the swarm.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::iter;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Ready, ready};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, Stream, StreamProtocol, mdns};

/// Connections being made, in each direction; per node.
const MAX_PENDING_CONNECTIONS: u32 = 64;
/// Connections, both directions together; per node.
const MAX_CONNECTIONS: u32 = 512;
/// Connections with one peer: one, and a second while two simultaneous dials are sorted out.
const MAX_CONNECTIONS_PER_PEER: u32 = 2;

/// All behaviours of a node. The derive's own code is most of what is compiled here: keep it small.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    channels: Channels,
}

impl Behaviour {
    pub(super) fn new(mdns: Option<mdns::tokio::Behaviour>, deadline: Duration) -> Self {
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING_CONNECTIONS))
            .with_max_pending_outgoing(Some(MAX_PENDING_CONNECTIONS))
            .with_max_established(Some(MAX_CONNECTIONS))
            .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER));
        Self {
            limits: connection_limits::Behaviour::new(limits),
            mdns: mdns.into(),
            channels: Channels { deadline, events: VecDeque::new() },
        }
    }
}

/// One of the two substreams of a connection. Two, so that bulk on one does not use up the window of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// Admission, then requests, responses and heartbeats.
    Requests,
    /// One-way messages.
    Messages,
}

impl Channel {
    fn protocol(self) -> StreamProtocol {
        StreamProtocol::new(match self {
            Self::Requests => "/roundtable/requests",
            Self::Messages => "/roundtable/messages",
        })
    }
}

/// Reports of each connection, once, its two substreams or why they did not come about.
#[derive(Debug)]
pub(super) struct Channels {
    deadline: Duration,
    /// At most one event per connection, and connections are limited.
    events: VecDeque<ChannelsEvent>,
}

/// The two substreams of a connection, or why there are none.
#[derive(Debug)]
pub(super) struct ChannelsEvent {
    pub(super) connection: ConnectionId,
    pub(super) outcome: Result<(Stream, Stream), String>,
}

impl NetworkBehaviour for Channels {
    type ConnectionHandler = Handler;
    type ToSwarm = ChannelsEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(Vec::new(), self.deadline))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(vec![Channel::Messages, Channel::Requests], self.deadline))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        connection: ConnectionId,
        outcome: THandlerOutEvent<Self>,
    ) {
        self.events.push_back(ChannelsEvent { connection, outcome });
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.events.pop_front() {
            Some(event) => Poll::Ready(ToSwarm::GenerateEvent(event)),
            None => Poll::Pending,
        }
    }
}

/// One per connection. The connection lives until the substreams were handed out, and then as long as they do:
/// dropping them closes it.
pub(super) struct Handler {
    to_open: Vec<Channel>,
    requests: Option<Stream>,
    messages: Option<Stream>,
    failure: Option<String>,
    deadline: Pin<Box<tokio::time::Sleep>>,
    done: bool,
}

impl Handler {
    fn new(to_open: Vec<Channel>, deadline: Duration) -> Self {
        Self {
            to_open,
            requests: None,
            messages: None,
            failure: None,
            deadline: Box::pin(tokio::time::sleep(deadline)),
            done: false,
        }
    }

    /// Streams beyond the two are dropped.
    fn opened(&mut self, stream: Stream, channel: Channel) {
        if self.done {
            return;
        }
        let place = match channel {
            Channel::Requests => &mut self.requests,
            Channel::Messages => &mut self.messages,
        };
        place.get_or_insert(stream);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Result<(Stream, Stream), String>;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(None), ())
    }

    fn connection_keep_alive(&self) -> bool {
        !self.done
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Offer, (), Self::ToBehaviour>> {
        if self.done {
            return Poll::Pending;
        }
        if let Some(channel) = self.to_open.pop() {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Offer(Some(channel)), ()),
            });
        }
        let outcome = match (self.requests.take(), self.messages.take()) {
            (Some(requests), Some(messages)) => Ok((requests, messages)),
            (requests, messages) => {
                if self.failure.is_none() && self.deadline.as_mut().poll(cx).is_ready() {
                    self.failure = Some("it was silent after the handshake".to_owned());
                }
                let Some(failure) = self.failure.take() else {
                    self.requests = requests;
                    self.messages = messages;
                    return Poll::Pending;
                };
                Err(failure)
            }
        };
        self.done = true;
        Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(outcome))
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, channel),
                ..
            })
            | ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, channel),
                ..
            }) => self.opened(stream, channel),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                self.failure = Some(match error {
                    StreamUpgradeError::NegotiationFailed => {
                        "it is a libp2p program, but not Roundtable".to_owned()
                    }
                    StreamUpgradeError::Timeout => "it was silent after the handshake".to_owned(),
                    StreamUpgradeError::Io(error) => format!("the connection broke ({error})"),
                    StreamUpgradeError::Apply(never) => match never {},
                });
            }
            _ => {}
        }
    }
}

/// The protocols of a substream: one that we open, or all that we accept.
#[derive(Debug, Clone)]
pub(super) struct Offer(Option<Channel>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = iter::Flatten<std::array::IntoIter<Option<StreamProtocol>, 2>>;

    fn protocol_info(&self) -> Self::InfoIter {
        let offered = |channel| (self.0.is_none() || self.0 == Some(channel)).then(|| channel.protocol());
        [offered(Channel::Requests), offered(Channel::Messages)].into_iter().flatten()
    }
}

fn named(protocol: &StreamProtocol) -> Channel {
    if *protocol == Channel::Requests.protocol() { Channel::Requests } else { Channel::Messages }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = (Stream, Channel);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, named(&protocol))))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = (Stream, Channel);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, named(&protocol))))
    }
}
