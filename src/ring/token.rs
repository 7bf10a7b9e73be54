//! Positions on the circle: SHA-1 of a key, or of a member's virtual node.
//!
//! The circle has 2^160 positions and is cut into P equal arcs, the partitions. SHA-1 is not there for secrecy:
//! whoever chooses keys can choose their partition, and could with any public hash.

use std::fmt;

use sha1::{Digest, Sha1};

use crate::id::{NodeId, PartitionId};

/// Most partitions that a ring can have.
pub const MAX_PARTITIONS: u32 = 4096;

/// A position on the circle of 2^160 positions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token([u8; 20]);

impl Token {
    /// Where a key stands.
    pub fn of_key(key: &[u8]) -> Self {
        Self(Sha1::digest(key).into())
    }

    /// Where a member's virtual node stands; members have many of them, numbered from 0.
    pub fn of_virtual_node(node: NodeId, index: u32) -> Self {
        let mut hash = Sha1::new();
        hash.update(node.public_key());
        hash.update(index.to_be_bytes());
        Self(hash.finalize().into())
    }

    /// The 20 bytes, most significant first.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// The 64 most significant bits. Distances are compared by them alone: two of the at most some 100,000
    /// positions of a ring share them with a probability below 10^-9, and then the node id breaks the tie.
    pub(super) fn position(self) -> u64 {
        let (most_significant, _) = self.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
        u64::from_be_bytes(*most_significant)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({self})")
    }
}

/// Into how many partitions a ring is cut: 1 to [`MAX_PARTITIONS`], fixed when the swarm is founded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartitionCount(u32);

impl PartitionCount {
    /// A ring of `count` partitions.
    ///
    /// # Errors
    /// If `count` is 0 or above [`MAX_PARTITIONS`].
    pub const fn new(count: u32) -> Result<Self, PartitionCountError> {
        if count == 0 || count > MAX_PARTITIONS {
            return Err(PartitionCountError(count));
        }
        Ok(Self(count))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The partition on whose arc `token` lies.
    pub fn partition_of(self, token: Token) -> PartitionId {
        let scaled = (u128::from(token.position()) * u128::from(self.0)) >> 64;
        // Invariant: scaled < P <= 4096, because position < 2^64.
        PartitionId(u32::try_from(scaled).unwrap_or(self.0 - 1))
    }

    /// All partitions, in order.
    pub fn iter(self) -> impl Iterator<Item = PartitionId> {
        (0..self.0).map(PartitionId)
    }

    /// The first position of a partition's arc: the least one that [`partition_of`](Self::partition_of) maps
    /// to it.
    pub(super) fn start_of(self, partition: PartitionId) -> u64 {
        let start = (u128::from(partition.0) << 64).div_ceil(u128::from(self.0));
        u64::try_from(start).unwrap_or(u64::MAX)
    }
}

impl TryFrom<u32> for PartitionCount {
    type Error = PartitionCountError;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        Self::new(count)
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of partitions that no ring has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} partitions: must be 1 to {MAX_PARTITIONS}")]
pub struct PartitionCountError(u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_where_sha_1_puts_it() {
        assert_eq!(Token::of_key(b"abc").to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn arcs_begin_where_their_partition_begins_and_cover_the_circle() {
        let token_at = |position: u64| {
            let mut bytes = [0; 20];
            bytes[..8].copy_from_slice(&position.to_be_bytes());
            Token(bytes)
        };
        for count in [1, 2, 3, 5, 64, 100, 4095, 4096] {
            let count = PartitionCount::new(count).expect("in range");
            for partition in count.iter() {
                let start = count.start_of(partition);
                assert_eq!(count.partition_of(token_at(start)), partition);
                if partition.0 > 0 {
                    assert_eq!(count.partition_of(token_at(start - 1)).0, partition.0 - 1);
                }
            }
            assert_eq!(count.partition_of(Token([0xff; 20])).0, count.get() - 1);
        }
    }

    #[test]
    fn counts_out_of_range_are_refused() {
        assert!(PartitionCount::new(0).is_err());
        assert!(PartitionCount::new(4097).is_err());
    }
}
