//! Who a process is, and what a swarm shares: a key pair, and a secret.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use libp2p::identity::{Keypair, ed25519};
use sha2::{Digest, Sha256};

use crate::id::NodeId;

/// Longest secret file that is read, in bytes.
const MAX_SECRET_FILE_BYTES: u64 = 4096;

/// A node's Ed25519 key pair. Whoever holds it *is* the node.
#[derive(Clone)]
pub struct Identity {
    pair: ed25519::Keypair,
}

impl Identity {
    /// A new node.
    pub fn generate() -> Self {
        Self { pair: ed25519::Keypair::generate() }
    }

    /// The identity with these 32 secret bytes, as [`to_bytes`](Self::to_bytes) gave them.
    ///
    /// # Panics
    /// Never: every 32 bytes are an Ed25519 secret key.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let secret =
            ed25519::SecretKey::try_from_bytes(&mut bytes).expect("every 32 bytes are an Ed25519 secret key");
        Self { pair: secret.into() }
    }

    /// The 32 secret bytes, to be kept where nobody else reads them.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.secret().as_ref());
        bytes
    }

    /// The node's name.
    pub fn node_id(&self) -> NodeId {
        NodeId::from_public_key(self.pair.public().to_bytes())
    }

    pub(super) fn keypair(&self) -> Keypair {
        self.pair.clone().into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.node_id())
    }
}

/// What the members of a swarm share and nobody else knows: 256 random bits.
///
/// Written as base58; 64 hexadecimal digits are read as well. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new secret, from the system's randomness.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The secret with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The secret as base58, to be written to a file that nobody else reads.
    pub fn to_text(&self) -> String {
        bs58::encode(self.0).into_string()
    }

    /// Reads the secret from a file that holds its text.
    ///
    /// # Errors
    /// If the file cannot be read or holds no secret.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let io = |source| SecretError::File { path: path.display().to_string(), source };
        if std::fs::metadata(path).map_err(io)?.len() > MAX_SECRET_FILE_BYTES {
            return Err(SecretError::Malformed);
        }
        std::fs::read_to_string(path).map_err(io)?.parse()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() == 64
            && let Some(bytes) = from_hex(text)
        {
            return Ok(Self(bytes));
        }
        let mut bytes = [0; 32];
        match bs58::decode(text).onto(&mut bytes) {
            Ok(32) => Ok(Self(bytes)),
            _ => Err(SecretError::Malformed),
        }
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The text is not a secret.
    #[error("not a secret: expected 32 bytes as base58 or as 64 hexadecimal digits")]
    Malformed,
    /// The file cannot be read.
    #[error("cannot read the secret file {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// What both ends of a connection must agree on before the first encrypted byte: protocol, swarm name, secret.
/// Whoever differs in one of them fails in the Noise handshake. The protocol *version* is not part of it, so
/// that a peer of another version can be told so.
pub(super) fn prologue(swarm_name: &str, secret: Option<&Secret>) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(b"roundtable prologue\0");
    hash.update((swarm_name.len() as u64).to_le_bytes());
    hash.update(swarm_name);
    match secret {
        None => hash.update([0]),
        Some(secret) => {
            hash.update([1]);
            hash.update(secret.0);
        }
    }
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_and_a_secret_survive_their_text() {
        let identity = Identity::generate();
        let copy = Identity::from_bytes(identity.to_bytes());
        assert_eq!(copy.node_id(), identity.node_id());
        assert_eq!(copy.keypair().public().to_peer_id().to_string(), copy.node_id().to_string());

        let secret = Secret::random();
        assert_eq!(format!(" {}\n", secret.to_text()).parse::<Secret>().unwrap(), secret);
        assert_eq!("ab".repeat(32).parse::<Secret>().unwrap(), Secret([0xab; 32]));
        for bad in ["", "hello", "0OIl", &"ab".repeat(40)] {
            assert!(bad.parse::<Secret>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret([7; 32]);
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn every_part_counts_in_the_prologue() {
        let secret = Secret([7; 32]);
        let all = [
            prologue("a", None),
            prologue("b", None),
            prologue("a", Some(&secret)),
            prologue("a", Some(&Secret([8; 32]))),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|b| a != b));
        }
    }
}
