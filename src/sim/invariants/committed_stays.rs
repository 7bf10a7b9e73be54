//! **Property.** What one replica has applied at an index, every replica applies there (Ongaro, *Consensus*, 3.2:
//! State Machine Safety); so what is committed never changes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::Violation;
use crate::id::{NodeId, PartitionId};

/// What was applied: by partition, generation (each recovery begins one, with a term that leaps) and index, a hash of
/// the entry and its term.
#[derive(Debug, Default)]
pub(super) struct Committed(BTreeMap<(PartitionId, u64, u64), (u64, NodeId)>);

impl Committed {
    pub(super) fn note(
        &mut self,
        partition: PartitionId,
        index: u64,
        what: &[u8],
        node: NodeId,
    ) -> Result<(), Violation> {
        let term = what.last_chunk().map_or(0, |term| u64::from_be_bytes(*term));
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let hash = hasher.finish();
        let (first, by) = *self.0.entry((partition, term >> 32, index)).or_insert((hash, node));
        if first == hash {
            return Ok(());
        }
        let what =
            format!("{partition:?} at {index}: {by:?} applied one entry, {node:?} another, of term {term}");
        Err(Violation::new("committed entries stay", what))
    }
}
