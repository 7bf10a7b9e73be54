//! Which range a key belongs to: the same on every node and in every build, since runs that were made on different
//! nodes meet in one range.

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

/// A number made of a key, all of whose bits depend on all of its bytes. Eight bytes at a time are folded in by a
/// multiplication, as in wyhash.
pub(super) fn hash(key: &[u8]) -> u64 {
    let mut state = SEED ^ (key.len() as u64).wrapping_mul(MULTIPLIER);
    let (chunks, tail) = key.as_chunks::<8>();
    for chunk in chunks {
        state = fold(state ^ u64::from_le_bytes(*chunk), MULTIPLIER);
    }
    if !tail.is_empty() {
        state = fold(state ^ little(tail), SEED);
    }
    fold(state, MULTIPLIER)
}

/// The number that up to seven bytes are.
fn little(tail: &[u8]) -> u64 {
    tail.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Both halves of a product.
fn fold(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let lower = product as u64;
    let upper = (product >> 64) as u64;
    lower ^ upper
}

/// How pairs are shared out among ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// How many; at least 1.
    pub count: u32,
    /// How pairs get there.
    pub by: Partitioning,
}

/// What decides about a pair's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioning {
    /// Its key.
    Key,
    /// The place of its block among so many: the output keeps the order of the input.
    Position {
        /// Blocks of the input.
        blocks: u32,
    },
}

impl Ranges {
    /// The range of a key with this [`hash`]. Uses the upper bits; tables use the lower ones.
    pub(super) fn of_hash(self, hash: u64) -> u32 {
        scale(hash, u64::from(self.count), 64)
    }

    /// The range of what comes from a block.
    pub(super) fn of_block(self, position: u32, blocks: u32) -> u32 {
        let scaled = u64::from(position) * u64::from(self.count) / u64::from(blocks.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX).min(self.count.saturating_sub(1))
    }
}

fn scale(number: u64, by: u64, bits: u32) -> u32 {
    u32::try_from((u128::from(number) * u128::from(by)) >> bits).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_in_every_build() {
        let hashes: Vec<u64> = [&b""[..], b"a", b"roundtable", b"12345678"].map(hash).to_vec();
        assert_eq!(hashes, RECORDED);
    }

    const RECORDED: [u64; 4] = [
        14_544_503_408_999_129_173,
        6_855_529_048_938_543_555,
        5_369_830_995_596_375_965,
        7_065_037_799_775_310_664,
    ];

    #[test]
    fn ranges_get_about_the_same() {
        let ranges = Ranges { count: 7, by: Partitioning::Key };
        let mut found = [0u32; 7];
        for number in 0..70_000u32 {
            found[ranges.of_hash(hash(format!("key {number}").as_bytes())) as usize] += 1;
        }
        assert!(found.iter().all(|count| (9_500..10_500).contains(count)), "{found:?}");
    }

    #[test]
    fn blocks_keep_their_order() {
        let ranges = Ranges { count: 5, by: Partitioning::Position { blocks: 17 } };
        let found: Vec<u32> = (0..17).map(|position| ranges.of_block(position, 17)).collect();
        assert!(found.is_sorted());
        assert_eq!((found[0], found[16]), (0, 4));
        let few = Ranges { count: 5, ..ranges };
        assert!((0..2).all(|position| few.of_block(position, 2) < 5));
    }
}
