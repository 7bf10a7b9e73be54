//! **Property.** Of each group there is at most one leader in each term (Ongaro, *Consensus*, 3.2: Election Safety).

use std::collections::BTreeMap;

use super::Violation;
use crate::id::{NodeId, PartitionId};

/// Who led what in which term.
#[derive(Debug, Default)]
pub(super) struct Leaders(BTreeMap<(PartitionId, u64), NodeId>);

impl Leaders {
    pub(super) fn note(&mut self, partition: PartitionId, term: u64, node: NodeId) -> Result<(), Violation> {
        let first = *self.0.entry((partition, term)).or_insert(node);
        if first == node {
            return Ok(());
        }
        let what = format!("{first:?} and {node:?} both lead {partition:?} in term {term}");
        Err(Violation::new("one leader per term", what))
    }
}
