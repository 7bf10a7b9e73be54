//! Reads the blocks that nobody reads, slowly: damage is found while there are other replicas to heal it from.
//!
//! Whoever reads a damaged block drops it and has it fetched from another replica ([`Blocks::get`]). This does no more
//! than read every block once in a round, one at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::blocks::Blocks;
use super::clock::Clock;
use crate::dataset::BlockId;
use crate::time::Timestamp;

/// Time between two blocks, of at most 1 MiB each: a node that is full (16 GiB) is through in four and a half hours.
const BLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// Time between the beginnings of two rounds, at least.
const ROUND_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// The task that reads a node's blocks.
pub(super) struct Scrub {
    pub(super) blocks: Arc<Blocks>,
    pub(super) stop: CancellationToken,
}

/// Where it is. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounds {
    /// There is nothing to be read until then.
    Rest { until: Timestamp },
    /// Everything up to this block was read.
    Round { began: Timestamp, read: Option<BlockId> },
}

impl Rounds {
    /// What is to be read now, of what is kept: `next` knows which block comes behind another one.
    fn next(
        &mut self,
        now: Timestamp,
        next: impl FnOnce(Option<BlockId>) -> Option<BlockId>,
    ) -> Option<BlockId> {
        let (began, read) = match *self {
            Self::Rest { until } if now < until => return None,
            Self::Rest { .. } => (now, None),
            Self::Round { began, read } => (began, read),
        };
        let found = next(read);
        *self = match found {
            Some(_) => Self::Round { began, read: found },
            None => Self::Rest { until: began + ROUND_INTERVAL },
        };
        found
    }
}

impl Scrub {
    pub(super) async fn run(self) {
        let mut rounds = Rounds::Rest { until: Clock.now() };
        let reading = async {
            loop {
                tokio::time::sleep(BLOCK_INTERVAL).await;
                self.read_next(&mut rounds).await;
            }
        };
        let _: Option<()> = self.stop.run_until_cancelled(reading).await;
    }

    async fn read_next(&self, rounds: &mut Rounds) {
        let store = self.blocks.store();
        let Some(block) = rounds.next(Clock.now(), |read| store.next_after(read)) else { return };
        let blocks = Arc::clone(&self.blocks);
        // What is wrong was noted, and said.
        let _ = tokio::task::spawn_blocking(move || drop(blocks.get(block))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DatasetId, SwarmId};
    use crate::storage::{BlockStore, Place};

    const SWARM: SwarmId = SwarmId(7);

    fn block(dataset: u128, number: u32) -> BlockId {
        BlockId { dataset: DatasetId(dataset), number }
    }

    #[test]
    fn every_block_is_read_once_in_a_round_and_rounds_do_not_follow_at_once() {
        let mut kept = vec![block(1, 0), block(1, 4), block(2, 0)];
        let start = Timestamp::ZERO;
        let mut rounds = Rounds::Rest { until: start };
        let mut read = |now, kept: &[BlockId]| {
            rounds.next(now, |read| kept.iter().copied().find(|block| read.is_none_or(|read| *block > read)))
        };
        assert_eq!(read(start, &kept), Some(kept[0]));
        // What goes meanwhile is not missed, and what comes is read if its turn is yet to come.
        kept.remove(1);
        kept.insert(0, block(0, 9));
        kept.push(block(2, 1));
        assert_eq!(read(start, &kept), Some(block(2, 0)));
        assert_eq!(read(start, &kept), Some(block(2, 1)));
        assert_eq!(read(start, &kept), None);
        let almost = start + ROUND_INTERVAL - Duration::from_millis(1);
        assert_eq!(read(almost, &kept), None);
        assert_eq!(read(start + ROUND_INTERVAL, &kept), Some(block(0, 9)));
    }

    #[tokio::test]
    async fn a_damaged_block_is_found_though_nobody_asks_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let (blocks, _work) =
            Blocks::new(BlockStore::new(Place::Kept(directory.path().join("blocks")), 1000));
        blocks.store().enter(SWARM).unwrap();
        for number in 0..3 {
            let bytes = [b'x'; 100];
            blocks.store().put(block(1, number), b"name", crc32c::crc32c(&bytes), &bytes).unwrap();
        }
        let swarm = directory.path().join("blocks").join(SWARM.to_string());
        let path = swarm.join(DatasetId(1).to_string()).join("1");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[50] ^= 1;
        std::fs::write(&path, bytes).unwrap();

        let scrub = Scrub { blocks: Arc::clone(&blocks), stop: CancellationToken::new() };
        let mut rounds = Rounds::Rest { until: Timestamp::ZERO };
        for damaged in [vec![], vec![block(1, 1)], vec![]] {
            scrub.read_next(&mut rounds).await;
            // To be fetched from another replica.
            assert_eq!(blocks.damaged().into_keys().collect::<Vec<_>>(), damaged);
        }
        assert_eq!(blocks.store().numbers(DatasetId(1)), [0, 2]);
    }
}
