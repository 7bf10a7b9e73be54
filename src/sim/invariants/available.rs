//! **Property.** At the latest [`LIMIT`] after everything that was cut, stopped or crashed is back, every partition takes
//! a write and answers a linearizable read of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Violation;
use crate::id::PartitionId;
use crate::time::Timestamp;

/// The longest that a partition may need.
pub(in crate::node::sim) const LIMIT: Duration = Duration::from_secs(10);

/// Which partitions have served since the heal.
#[derive(Debug)]
pub(in crate::node::sim) struct Available {
    healed: Timestamp,
    // Of each partition: whether it has taken a write, and when it answered the read behind it.
    served: BTreeMap<PartitionId, Option<Timestamp>>,
}

impl Available {
    pub(in crate::node::sim) fn new(partitions: u32, healed: Timestamp) -> Self {
        let served = (0..partitions).map(|partition| (PartitionId(partition), None)).collect();
        Self { healed, served }
    }

    /// The partition has answered a read of what was written after the heal.
    pub(in crate::node::sim) fn serves(&mut self, partition: PartitionId, now: Timestamp) {
        if let Some(served) = self.served.get_mut(&partition) {
            served.get_or_insert(now);
        }
    }

    /// How long it took until all served; `None`: not yet.
    pub(in crate::node::sim) fn took(&self) -> Option<Duration> {
        let served: Option<Vec<Timestamp>> = self.served.values().copied().collect();
        Some(served?.into_iter().max()?.since(self.healed))
    }

    pub(in crate::node::sim) fn check(&self) -> Result<(), Violation> {
        let missing: Vec<_> = self
            .served
            .iter()
            .filter(|(_, served)| served.is_none())
            .map(|(partition, _)| *partition)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let what = format!("{LIMIT:?} after the heal, these serve neither reads nor writes: {missing:?}");
        Err(Violation::new("available after the heal", what))
    }
}
