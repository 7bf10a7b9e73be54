//! Admission: before anything else is said on a connection, both ends prove that they belong here.
//!
//! The Noise handshake already fails for a stranger (see `identity::prologue`). What remains: that both speak
//! the same protocol version, that both know the secret *now* (a proof over fresh nonces and both names, so
//! that nothing recorded can be replayed), and that a node is linked once.
//!
//! Each end sends a hello, then its proof, then a verdict; the link exists when both verdicts say yes. The
//! hello begins with a mark and the version, whatever the version, so that two versions can name each other.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::Role;
use super::identity::Secret;
use crate::id::NodeId;

/// What every hello of every version begins with.
const MARK: [u8; 4] = *b"RTBL";
/// Longest hello of any version that is read past, in bytes.
const MAX_HELLO_BYTES: usize = 1024;
/// Bytes behind the header of a hello of this version: role, nonce, instance.
const HELLO_BYTES: usize = 1 + 32 + 16;
/// Key of the proof in a swarm without a secret, where it proves only that both speak this protocol.
const OPEN_KEY: &[u8] = b"roundtable open swarm";

/// Drawn at each start: tells a node's process from another process with a copy of its key.
pub(super) type Instance = [u8; 16];

/// What this process says of itself.
#[derive(Debug, Clone)]
pub(super) struct Ourselves {
    pub(super) node: NodeId,
    pub(super) instance: Instance,
    pub(super) role: Role,
    pub(super) version: u8,
    pub(super) secret: Option<Secret>,
}

/// What the other end has proven to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) role: Role,
    pub(super) instance: Instance,
}

/// What an end makes of the other in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Be linked.
    Welcome = 0,
    /// We are linked by another connection, or just becoming so.
    Superfluous = 1,
    /// Another process is alive under the same name.
    Duplicate = 2,
    /// The proof is wrong.
    WrongSecret = 3,
    /// No more links are taken.
    Full = 4,
}

impl Verdict {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Welcome,
            1 => Self::Superfluous,
            2 => Self::Duplicate,
            3 => Self::WrongSecret,
            4 => Self::Full,
            _ => return None,
        })
    }
}

/// Why the exchange failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdmissionError {
    #[error("it speaks protocol version {theirs}, this program speaks version {ours}")]
    OtherVersion { ours: u8, theirs: u8 },
    #[error("it is not Roundtable")]
    NotRoundtable,
    #[error("the connection broke ({0})")]
    Broken(#[from] std::io::Error),
}

/// Says who we are and hears who they are. `Ok(Err(..))`: their proof is wrong, and they should be told.
pub(super) async fn introduce<S>(
    stream: &mut S,
    us: &Ourselves,
    peer: NodeId,
) -> Result<Result<Peer, Verdict>, AdmissionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    introduce_with(stream, us, peer, rand::random()).await
}

async fn introduce_with<S>(
    stream: &mut S,
    us: &Ourselves,
    peer: NodeId,
    our_nonce: [u8; 32],
) -> Result<Result<Peer, Verdict>, AdmissionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = Vec::with_capacity(7 + HELLO_BYTES);
    hello.extend_from_slice(&MARK);
    hello.push(us.version);
    hello.extend_from_slice(&u16::try_from(HELLO_BYTES).unwrap_or(u16::MAX).to_le_bytes());
    hello.push(us.role as u8);
    hello.extend_from_slice(&our_nonce);
    hello.extend_from_slice(&us.instance);
    stream.write_all(&hello).await?;
    stream.flush().await?;

    let mut header = [0; 7];
    stream.read_exact(&mut header).await?;
    let [mark @ .., version, low, high] = header;
    if mark != MARK {
        return Err(AdmissionError::NotRoundtable);
    }
    let length = usize::from(u16::from_le_bytes([low, high]));
    if version != us.version {
        // Read past it, so that closing does not discard what we sent.
        stream.read_exact(&mut vec![0; length.min(MAX_HELLO_BYTES)]).await?;
        return Err(AdmissionError::OtherVersion { ours: us.version, theirs: version });
    }
    if length != HELLO_BYTES {
        return Err(AdmissionError::NotRoundtable);
    }
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    let their_role = Role::from_byte(hello[0]).ok_or(AdmissionError::NotRoundtable)?;
    let mut their_nonce = [0; 32];
    their_nonce.copy_from_slice(&hello[1..33]);
    let mut instance = [0; 16];
    instance.copy_from_slice(&hello[33..]);

    let ours = (us.node, us.role, our_nonce, us.instance);
    let theirs = (peer, their_role, their_nonce, instance);
    let proof = mac(us.secret.as_ref(), ours, theirs).finalize().into_bytes();
    stream.write_all(&proof).await?;
    stream.flush().await?;
    let mut their_proof = [0; 32];
    stream.read_exact(&mut their_proof).await?;
    if mac(us.secret.as_ref(), theirs, ours).verify_slice(&their_proof).is_err() {
        return Ok(Err(Verdict::WrongSecret));
    }
    Ok(Ok(Peer { role: their_role, instance }))
}

/// Sends our verdict and hears theirs.
pub(super) async fn conclude<S>(stream: &mut S, ours: Verdict) -> Result<Verdict, AdmissionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&[ours as u8]).await?;
    stream.flush().await?;
    let mut theirs = [0];
    stream.read_exact(&mut theirs).await?;
    Verdict::from_byte(theirs[0]).ok_or(AdmissionError::NotRoundtable)
}

/// One end of a connection: name, role, nonce, instance.
type End = (NodeId, Role, [u8; 32], Instance);

/// What the end `from` proves to the end `to`. Not symmetric: a proof cannot be sent back as one's own.
fn mac(secret: Option<&Secret>, from: End, to: End) -> Hmac<Sha256> {
    let key = secret.map_or(OPEN_KEY, |secret| secret.as_bytes().as_slice());
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("a key of any length will do");
    mac.update(b"roundtable admission\0");
    for (node, role, nonce, instance) in [from, to] {
        mac.update(node.public_key());
        mac.update(&[role as u8]);
        mac.update(&nonce);
        mac.update(&instance);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    fn node(seed: u8, secret: Option<Secret>) -> Ourselves {
        Ourselves {
            node: NodeId::from_public_key([seed; 32]),
            instance: [seed; 16],
            role: Role::Member,
            version: 1,
            secret,
        }
    }

    type Outcome = Result<Result<Peer, Verdict>, AdmissionError>;

    async fn meet(a: &Ourselves, b: &Ourselves, seen_as: NodeId) -> (Outcome, Outcome) {
        let (left, right) = tokio::io::duplex(4096);
        let (mut left, mut right) = (left.compat(), right.compat());
        tokio::join!(introduce(&mut left, a, b.node), introduce(&mut right, b, seen_as))
    }

    #[tokio::test]
    async fn who_shares_the_secret_is_admitted() {
        for secret in [None, Some(Secret::random())] {
            let (a, b) = (node(1, secret.clone()), node(2, secret));
            let (left, right) = meet(&a, &b, a.node).await;
            assert_eq!(left.unwrap().unwrap().instance, b.instance);
            assert_eq!(right.unwrap().unwrap().instance, a.instance);
        }
    }

    #[tokio::test]
    async fn another_secret_or_another_name_is_not() {
        let (a, b) = (node(1, Some(Secret::random())), node(2, Some(Secret::random())));
        let (left, right) = meet(&a, &b, a.node).await;
        assert_eq!(left.unwrap(), Err(Verdict::WrongSecret));
        assert_eq!(right.unwrap(), Err(Verdict::WrongSecret));

        let secret = Some(Secret::random());
        let (a, b) = (node(1, secret.clone()), node(2, secret));
        let (_, right) = meet(&a, &b, NodeId::from_public_key([3; 32])).await;
        assert_eq!(right.unwrap(), Err(Verdict::WrongSecret));
    }

    #[tokio::test]
    async fn two_versions_name_each_other() {
        let (a, mut b) = (node(1, None), node(2, None));
        b.version = 9;
        let (left, right) = meet(&a, &b, a.node).await;
        let (left, right) = (left.unwrap_err().to_string(), right.unwrap_err().to_string());
        assert_eq!(left, "it speaks protocol version 9, this program speaks version 1");
        assert_eq!(right, "it speaks protocol version 1, this program speaks version 9");
    }

    /// An exchange as it was when this version was spoken first, of both ends: hello, proof, verdict.
    const RECORDED_VERSION: u8 = 3;
    const OURS: [&str; 3] = [
        "5254424c03310001111111111111111111111111111111111111111111111111111111111111111101010101010101010101010101010101",
        "a8a87edf0c1c499279125b7f81691dfbed9d05316657d4122c1caeca215e496f",
        "00",
    ];
    const THEIRS: [&str; 3] = [
        "5254424c03310001222222222222222222222222222222222222222222222222222222222222222202020202020202020202020202020202",
        "0ab6e6e3afe5dea33701833aeeba4fe9ebda29d7bf69676c8a8daf6a33760b45",
        "00",
    ];

    fn bytes(recorded: &[&str]) -> Vec<u8> {
        let digits: Vec<char> = recorded.concat().chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    /// Plays the other end of the recorded exchange to an end that speaks `version`; what it said, and what it heard.
    async fn replay(version: u8) -> (Vec<u8>, Result<Verdict, AdmissionError>) {
        let us = Ourselves { version, ..node(1, Some(Secret::from_bytes([7; 32]))) };
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut ours = ours.compat();
        theirs.write_all(&bytes(&THEIRS)).await.unwrap();
        let heard = match introduce_with(&mut ours, &us, NodeId::from_public_key([2; 32]), [0x11; 32]).await {
            Ok(Ok(peer)) => {
                assert_eq!((peer.role, peer.instance), (Role::Member, [2; 16]));
                conclude(&mut ours, Verdict::Welcome).await
            }
            Ok(Err(verdict)) => Ok(verdict),
            Err(error) => Err(error),
        };
        drop(ours);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        (said, heard)
    }

    #[tokio::test]
    async fn a_recorded_exchange_is_understood() {
        let (said, heard) = replay(RECORDED_VERSION).await;
        assert_eq!(heard.unwrap(), Verdict::Welcome);
        assert_eq!(said, bytes(&OURS), "whoever spoke version {RECORDED_VERSION} would not understand this");
    }

    #[tokio::test]
    async fn a_recorded_exchange_of_another_version_is_refused_clearly() {
        let (said, heard) = replay(RECORDED_VERSION + 1).await;
        let heard = heard.unwrap_err().to_string();
        assert_eq!(heard, "it speaks protocol version 3, this program speaks version 4");
        // And they hear what they need to say the same.
        assert!(said.starts_with(b"RTBL\x04"));
    }

    #[tokio::test]
    async fn a_reflected_proof_proves_nothing() {
        let a = node(1, Some(Secret::random()));
        let (left, right) = tokio::io::duplex(4096);
        let mut left = left.compat();
        let mirror = async {
            let (mut read, mut write) = tokio::io::split(right);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        };
        let outcome = tokio::select! {
            outcome = introduce(&mut left, &a, NodeId::from_public_key([2; 32])) => outcome,
            () = mirror => unreachable!("the mirror outlives the exchange"),
        };
        assert_eq!(outcome.unwrap(), Err(Verdict::WrongSecret));
    }
}
