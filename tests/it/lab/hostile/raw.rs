//! A program that speaks libp2p and the admission exchange, and then says whatever it likes: written from what is on
//! the wire, with nothing of the library's own network.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use hmac::{Hmac, Mac as _};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt as _, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse, Transport as _};
use libp2p::core::upgrade::Version;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::identity::Keypair;
use libp2p::{noise, tcp, yamux};
use roundtable::id::NodeId;
use roundtable::net::Ticket;
use roundtable::wire::PROTOCOL_VERSION;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Longest that the other end may take for a step.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where requests, responses and heartbeats go.
pub(super) const REQUESTS: &str = "/roundtable/requests";
/// Where one-way messages go.
pub(super) const MESSAGES: &str = "/roundtable/messages";
/// The kind of a request among frames.
const REQUEST: u8 = 1;
/// The kind of a message.
const MESSAGE: u8 = 5;
const WELCOME: u8 = 0;
const MEMBER: u8 = 1;

type Wish = oneshot::Sender<SubstreamBox>;

/// A connection with a node, after the handshake.
pub(super) struct Raw {
    us: NodeId,
    them: NodeId,
    /// Substreams that are to be opened.
    wanted: mpsc::Sender<Wish>,
    /// Works while this is there.
    _driving: JoinSet<()>,
}

/// One end of an admission exchange, as the other hears it.
#[derive(Debug, Clone)]
pub(super) struct Introduction {
    pub(super) hello: Vec<u8>,
    pub(super) proof: Vec<u8>,
}

/// A link, as far as the node knows.
pub(super) struct RawLink {
    pub(super) connection: Raw,
    pub(super) requests: SubstreamBox,
    pub(super) messages: SubstreamBox,
    pub(super) introduction: Introduction,
}

impl Raw {
    /// Connects to a node of the swarm that the ticket is of.
    pub(super) async fn dial(ticket: &Ticket, address: &str) -> io::Result<Self> {
        let keypair = Keypair::generate_ed25519();
        let noise = noise::Config::new(&keypair).expect("keys").with_prologue(prologue(ticket));
        let mut transport = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
            .upgrade(Version::V1)
            .authenticate(noise)
            .multiplex(yamux::Config::default())
            .boxed();
        let address: Multiaddr = address.parse().expect("an address");
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = transport.dial(address, options).map_err(io::Error::other)?;
        let (peer, muxer) = patient(dial).await?;
        let node = |peer: &libp2p::PeerId| NodeId::from_peer_id_bytes(&peer.to_bytes()).expect("a node");
        let (us, them) = (node(&keypair.public().to_peer_id()), node(&peer));
        let (wanted, wishes) = mpsc::channel(1);
        let mut driving = JoinSet::new();
        driving.spawn(drive(muxer, wishes));
        Ok(Self { us, them, wanted, _driving: driving })
    }

    /// Opens a substream and agrees on its protocol.
    pub(super) async fn open(&self, protocol: &str) -> io::Result<SubstreamBox> {
        let (wish, opened) = oneshot::channel();
        self.wanted.send(wish).await.map_err(io::Error::other)?;
        let mut stream = patient(opened).await?;
        let mut offer = b"\x13/multistream/1.0.0\n".to_vec();
        offer.push(u8::try_from(protocol.len() + 1).expect("a short name"));
        offer.extend_from_slice(protocol.as_bytes());
        offer.push(b'\n');
        let mut echo = vec![0; offer.len()];
        patient(async {
            stream.write_all(&offer).await?;
            stream.flush().await?;
            stream.read_exact(&mut echo).await
        })
        .await?;
        assert_eq!(echo, offer, "it agrees to the protocol");
        Ok(stream)
    }

    /// Says who we are: as is right, or by what somebody said once. Returns their verdict, and what was said.
    pub(super) async fn introduce(
        &self,
        stream: &mut SubstreamBox,
        ticket: &Ticket,
        replayed: Option<&Introduction>,
    ) -> io::Result<(u8, Introduction)> {
        let nonce: [u8; 32] = rand::random();
        let instance: [u8; 16] = rand::random();
        let hello = [b"RTBL", &[PROTOCOL_VERSION, 49, 0, MEMBER][..], &nonce, &instance].concat();
        let mut said = Introduction { hello, proof: Vec::new() };
        if let Some(replayed) = replayed {
            said.hello.clone_from(&replayed.hello);
        }
        let exchange = async {
            stream.write_all(&said.hello).await?;
            stream.flush().await?;
            let mut theirs = [0; 56];
            stream.read_exact(&mut theirs).await?;
            assert_eq!(&theirs[..4], b"RTBL");
            let mut mac = Hmac::<Sha256>::new_from_slice(ticket.secret.as_ref().expect("one").as_bytes())
                .expect("a key of any length will do");
            mac.update(b"roundtable admission\0");
            for (node, hello) in [(self.us, said.hello.as_slice()), (self.them, theirs.as_slice())] {
                mac.update(node.public_key());
                mac.update(&hello[7..]);
            }
            said.proof = match replayed {
                Some(replayed) => replayed.proof.clone(),
                None => mac.finalize().into_bytes().to_vec(),
            };
            stream.write_all(&said.proof).await?;
            stream.write_all(&[WELCOME]).await?;
            stream.flush().await?;
            let mut answer = [0; 33];
            stream.read_exact(&mut answer).await?;
            Ok::<u8, io::Error>(answer[32])
        };
        let verdict = patient(exchange).await?;
        Ok((verdict, said))
    }

    /// All of the above, rightly: a member in good standing, so far.
    pub(super) async fn link(ticket: &Ticket, address: &str) -> RawLink {
        let connection = Self::dial(ticket, address).await.expect("it lets us in");
        // In the order in which a node opens them.
        let mut requests = connection.open(REQUESTS).await.expect("a substream");
        let messages = connection.open(MESSAGES).await.expect("a substream");
        let introduced = connection.introduce(&mut requests, ticket, None).await;
        let (verdict, introduction) = introduced.expect("it introduces itself");
        assert_eq!(verdict, WELCOME);
        RawLink { connection, requests, messages, introduction }
    }
}

/// Lets a connection work until it ends, or nobody has it any more.
async fn drive(mut muxer: StreamMuxerBox, mut wishes: mpsc::Receiver<Wish>) {
    let mut open: Option<Wish> = None;
    poll_fn(move |context| {
        loop {
            if open.is_none() {
                match wishes.poll_recv(context) {
                    Poll::Ready(Some(wish)) => open = Some(wish),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            match muxer.poll_outbound_unpin(context) {
                Poll::Ready(Ok(stream)) => drop(open.take().map(|wish| wish.send(stream))),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(inbound) = muxer.poll_inbound_unpin(context) {
            if inbound.is_err() {
                return Poll::Ready(());
            }
        }
        match muxer.poll_unpin(context) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
}

impl RawLink {
    pub(super) fn id(&self) -> NodeId {
        self.connection.us
    }

    /// Writes a request without waiting for anything.
    pub(super) async fn ask(&mut self, number: u64, body: &[u8]) -> io::Result<()> {
        patient(self.requests.write_all(&frame(REQUEST, number, body))).await
    }

    pub(super) async fn say(&mut self, body: &[u8]) -> io::Result<()> {
        patient(async {
            self.messages.write_all(&frame(MESSAGE, 0, body)).await?;
            self.messages.flush().await
        })
        .await
    }
}

/// A frame as links carry it.
pub(super) fn frame(kind: u8, number: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(9 + body.len()).expect("short");
    [&length.to_le_bytes()[..], &[kind], &number.to_le_bytes(), body].concat()
}

/// Reads to the end; whether there was one.
pub(super) async fn ends(stream: &mut SubstreamBox) -> bool {
    let mut sink = vec![0; 1 << 16];
    let read = async {
        while let Ok(count) = stream.read(&mut sink).await {
            if count == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.is_ok()
}

async fn patient<T, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: impl Future<Output = Result<T, E>>,
) -> io::Result<T> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(done) => done.map_err(io::Error::other),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What both ends hash before the first encrypted byte.
fn prologue(ticket: &Ticket) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(b"roundtable prologue\0");
    hash.update((ticket.name.len() as u64).to_le_bytes());
    hash.update(&ticket.name);
    match &ticket.secret {
        None => hash.update([0]),
        Some(secret) => {
            hash.update([1]);
            hash.update(secret.as_bytes());
        }
    }
    hash.finalize().to_vec()
}
