//! The datasets whose names belong to a partition: what is known of their blocks, which are elsewhere.
//!
//! A dataset is there from the entry that seals it to the one that removes it, and never changes. Its name can be
//! given to another one only when it is gone.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::command::Reply;
use super::query::{Answer, KeyBytes};
use crate::dataset::{BlockInfo, DatasetSummary, Manifest};
use crate::id::{DatasetId, Version};

/// Datasets whose names belong to one partition.
pub const MAX_DATASETS: usize = 1024;
/// Bytes that the manifests of one partition may take up: they are in every snapshot of it.
pub const MAX_MANIFEST_BYTES: usize = 64 * 1024 * 1024;
/// Most datasets of one page of [`Query::Datasets`](super::Query::Datasets).
pub const MAX_LISTED_DATASETS: u32 = 256;

/// A sealed dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedDataset {
    /// When it was sealed, by the log of its name's partition.
    pub version: Version,
    /// What it is.
    pub summary: DatasetSummary,
    /// Its blocks in order, if they were asked for.
    pub blocks: Option<Vec<BlockInfo>>,
}

/// Manifests by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Datasets {
    sealed: BTreeMap<Vec<u8>, (Version, Manifest)>,
    // Invariant: bytes == sum over `sealed` of cost().
    bytes: usize,
}

/// Bytes that a dataset takes up here.
fn cost(name: &[u8], manifest: &Manifest) -> usize {
    name.len() + size_of::<(Version, Manifest)>() + manifest.blocks.len() * size_of::<BlockInfo>()
}

impl Datasets {
    pub(super) fn seal(&mut self, name: Vec<u8>, manifest: Manifest, version: Version) -> Reply {
        match self.sealed.get(&name) {
            Some((version, known)) if known.id == manifest.id => {
                return Reply::DatasetSealed { version: *version };
            }
            Some((_, known)) => return Reply::DatasetExists { id: known.id },
            None => {}
        }
        if self.sealed.len() >= MAX_DATASETS || self.bytes + cost(&name, &manifest) > MAX_MANIFEST_BYTES {
            return Reply::TooManyDatasets;
        }
        self.restore(name, version, manifest);
        Reply::DatasetSealed { version }
    }

    /// Removes a dataset; with `id`, only that one.
    pub(super) fn remove(&mut self, name: &[u8], id: Option<DatasetId>) -> Reply {
        let is_meant = |known: &Manifest| id.is_none_or(|id| id == known.id);
        if !self.sealed.get(name).is_some_and(|(_, known)| is_meant(known)) {
            return Reply::DatasetRemoved { id: None };
        }
        let removed = self.sealed.remove(name);
        if let Some((_, manifest)) = &removed {
            self.bytes -= cost(name, manifest);
        }
        Reply::DatasetRemoved { id: removed.map(|(_, manifest)| manifest.id) }
    }

    pub(super) fn restore(&mut self, name: Vec<u8>, version: Version, manifest: Manifest) {
        self.bytes += cost(&name, &manifest);
        self.sealed.insert(name, (version, manifest));
    }

    pub(super) fn get(&self, name: &[u8], with_blocks: bool) -> Option<SealedDataset> {
        self.sealed.get(name).map(|(version, manifest)| SealedDataset {
            version: *version,
            summary: manifest.summary(),
            blocks: with_blocks.then(|| manifest.blocks.clone()),
        })
    }

    pub(super) fn page(&self, after: &[u8], limit: u32) -> Answer {
        let start = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let mut rest = self.sealed.range::<[u8], _>((start, Bound::Unbounded)).peekable();
        let mut datasets = Vec::new();
        while datasets.len() < limit.min(MAX_LISTED_DATASETS) as usize
            && let Some((name, (version, manifest))) = rest.next()
        {
            let (version, summary) = (*version, manifest.summary());
            datasets.push((KeyBytes::from(name.clone()), SealedDataset { version, summary, blocks: None }));
        }
        Answer::Datasets { datasets, more: rest.peek().is_some() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, Version, &Manifest)> {
        self.sealed.iter().map(|(name, (version, manifest))| (name, *version, manifest))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sealed.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, Operation, PartitionTime, Query, StateMachine};
    use super::*;
    use crate::dataset::{Format, MAX_BLOCKS};

    struct Partition(StateMachine, u64);

    impl Partition {
        fn run(&mut self, operation: Operation) -> Reply {
            operation.check().unwrap();
            self.1 += 1;
            self.0.apply(self.1, Command { time: PartitionTime(self.1), origin: None, operation })
        }

        fn seal(&mut self, name: &str, id: u128, blocks: u32) -> Reply {
            let name = name.into();
            self.run(Operation::SealDataset { name, manifest: manifest(id, blocks) })
        }

        fn ids(&self, after: &str, limit: u32) -> (Vec<u128>, bool) {
            match self.0.query(&Query::Datasets { after: after.into(), limit }) {
                Answer::Datasets { datasets, more } => {
                    (datasets.into_iter().map(|(_, dataset)| dataset.summary.id.0).collect(), more)
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn manifest(id: u128, blocks: u32) -> Manifest {
        let info = |number| BlockInfo { number, length: 10 + number, records: 2, checksum: u32::MAX };
        Manifest { id: DatasetId(id), format: Format::Csv, blocks: (0..blocks).map(info).collect() }
    }

    #[test]
    fn a_sealed_dataset_stays_as_it_is_until_it_is_removed() {
        let mut partition = Partition(StateMachine::default(), 0);
        assert_eq!(partition.seal("a", 1, 3), Reply::DatasetSealed { version: Version(1) });
        // Again, as a retry that forgot its number would.
        assert_eq!(partition.seal("a", 1, 3), Reply::DatasetSealed { version: Version(1) });
        assert_eq!(partition.seal("a", 2, 1), Reply::DatasetExists { id: DatasetId(1) });
        let Answer::Dataset(Some(found)) =
            partition.0.query(&Query::Dataset { name: b"a".to_vec(), with_blocks: true })
        else {
            panic!("it is there")
        };
        assert_eq!((found.summary.bytes, found.summary.records, found.summary.blocks), (33, 6, 3));
        assert_eq!(found.blocks, Some(manifest(1, 3).blocks));
        assert!(!partition.0.is_empty());
        // Another one than is meant is left alone.
        let wrong = Operation::RemoveDataset { name: b"a".to_vec(), id: Some(DatasetId(2)) };
        assert_eq!(partition.run(wrong), Reply::DatasetRemoved { id: None });
        let right = Operation::RemoveDataset { name: b"a".to_vec(), id: None };
        assert_eq!(partition.run(right), Reply::DatasetRemoved { id: Some(DatasetId(1)) });
        assert!(partition.0.is_empty());
        assert_eq!(partition.0.bytes(), 0);
        assert_eq!(partition.seal("a", 2, 1), Reply::DatasetSealed { version: Version(6) });
    }

    #[test]
    fn datasets_are_listed_page_by_page_and_survive_a_snapshot() {
        let mut partition = Partition(StateMachine::default(), 0);
        for id in 1..=5u8 {
            partition.seal(&char::from(b'a' + id).to_string(), id.into(), id.into());
        }
        assert_eq!(partition.ids("", 2), (vec![1, 2], true));
        assert_eq!(partition.ids("c", 2), (vec![3, 4], true));
        assert_eq!(partition.ids("e", 99), (vec![5], false));
        let snapshot = partition.0.snapshot();
        assert_eq!(snapshot[0], 4, "older programs must not read a part of it");
        let restored = StateMachine::restore(&snapshot).unwrap();
        assert_eq!(restored, partition.0);
        assert_eq!(restored.bytes(), partition.0.bytes());
        for cut in 1..40 {
            assert!(StateMachine::restore(&snapshot[..snapshot.len() - cut]).is_err());
        }
    }

    #[test]
    fn names_and_manifests_are_bounded() {
        let mut partition = Partition(StateMachine::default(), 0);
        for id in 0..MAX_DATASETS {
            assert!(matches!(partition.seal(&format!("d{id}"), id as u128, 0), Reply::DatasetSealed { .. }));
        }
        assert_eq!(partition.seal("one more", u128::MAX, 0), Reply::TooManyDatasets);
        let most = u32::try_from(MAX_BLOCKS).unwrap();
        let seal = |blocks| Operation::SealDataset { name: b"n".to_vec(), manifest: manifest(1, blocks) };
        assert!(seal(most).check().is_ok());
        assert!(crate::codec::encode(&seal(most)).len() < 1024 * 1024);
        assert!(seal(most + 1).check().is_err());
        let mut large = Partition(StateMachine::default(), 0);
        let fitting = MAX_MANIFEST_BYTES / cost(b"d0", &manifest(0, most));
        for id in 0..=fitting {
            let reply = large.seal(&format!("d{id}"), id as u128, most);
            assert_eq!(matches!(reply, Reply::TooManyDatasets), id == fitting, "{id}: {reply:?}");
        }
    }
}
