//! Names of things: newtypes, so that one cannot stand where another is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node: the 32 bytes of its Ed25519 public key.
///
/// A node *is* its data: the key is drawn together with the (empty) storage and never outlives it. A process
/// that lost its data is a new node with a new `NodeId`. Consensus relies on this: a node that forgot what it
/// voted for must not be mistaken for the one that voted.
///
/// Shown as a libp2p peer id (`12D3Koo...`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId([u8; 32]);

/// What libp2p puts before an Ed25519 key to make a peer id: identity multihash of a protobuf-encoded key.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl NodeId {
    /// The node with this Ed25519 public key.
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The Ed25519 public key.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The bytes of the libp2p peer id.
    pub fn to_peer_id_bytes(self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// The node behind the bytes of a libp2p peer id; `None` unless it holds an Ed25519 key.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    /// The last six characters of the peer id: enough for a person to tell nodes apart.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 6..].to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_peer_id_bytes()).into_string())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId(..{})", self.short())
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = bs58::decode(text).into_vec().map_err(|_| ParseIdError("node id"))?;
        Self::from_peer_id_bytes(&bytes).ok_or(ParseIdError("node id"))
    }
}

/// A swarm: 128 random bits drawn by its founder. Two swarms may share a name, never an id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SwarmId(pub u128);

impl fmt::Display for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmId({self})")
    }
}

impl FromStr for SwarmId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 {
            return Err(ParseIdError("swarm id"));
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseIdError("swarm id"))
    }
}

/// A dataset: 128 random bits drawn by whoever begins to write it. A name can be given to another dataset later, an
/// id never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DatasetId(pub u128);

impl fmt::Display for DatasetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for DatasetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatasetId({self})")
    }
}

impl FromStr for DatasetId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 {
            return Err(ParseIdError("dataset id"));
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseIdError("dataset id"))
    }
}

/// A job that several nodes work on: 128 random bits drawn by whoever runs it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u128);

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({:08x}..)", self.0 >> 96)
    }
}

/// A share of the key space, and the Raft group that replicates it: `0..partitions`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId(pub u32);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// One replica of one partition, as its Raft group knows it: 1, 2, 3, ... in the order in which the group took
/// them in. Never reused within a group, not even for the same node: a replica that was removed, or whose node
/// lost its data, comes back under a new id. (A founder that returned under its old id after a wipe replayed
/// the founding log and elected itself.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u64);

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A client session: random, drawn by the client; names its writes together with their sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u128);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({:08x}..)", self.0 >> 96)
    }
}

/// The version of a key: the log index, in the key's partition, of the write that made it, plus what the partition
/// was raised by (see [`Operation::Raise`](crate::state_machine::Operation::Raise)).
/// Grows with every write of the key and is never reused, not even after a delete.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Says which of two grants of a lock is the later one: each grant of a name has a higher token than every one
/// before it. Whatever a lock protects can refuse a holder that was paused past its lease, by comparing tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FencingToken(pub u64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{}", self.0)
    }
}

/// A text that is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {0}")]
pub struct ParseIdError(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_id_reads_what_it_prints() {
        let id = NodeId::from_public_key([7; 32]);
        assert!(id.to_string().starts_with("12D3Koo"));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("12D3Koo".parse::<NodeId>().is_err());
    }

    #[test]
    fn swarm_id_reads_what_it_prints() {
        let id = SwarmId(0x00ab_cdef);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("ab".parse::<SwarmId>().is_err());
    }
}
