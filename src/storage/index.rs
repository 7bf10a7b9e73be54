//! What the store knows of all replicas without holding their entries: enough to write summaries, and to say
//! which segments and state files are still needed.

use std::collections::{BTreeMap, VecDeque};

use super::format::{Item, Outline, StateFile, Summary};
use crate::id::{PartitionId, ReplicaId};

/// What is known, after each write that was applied. Agrees with what
/// [`Stored::apply`](crate::replication::Stored::apply) makes of the same writes.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) summary: Summary,
    /// Of each replica: from which index on its entries lie in which segment; both rise.
    runs: BTreeMap<PartitionId, VecDeque<Run>>,
    /// State files that nothing names any more.
    obsolete: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    segment: u64,
}

impl Index {
    /// How many writes of a partition there were.
    pub(super) fn count(&self, partition: PartitionId) -> u64 {
        self.summary.counts.get(&partition).copied().unwrap_or(0)
    }

    /// Takes a write into account that lies in a segment.
    pub(super) fn apply(&mut self, item: &Item<'_>, segment: u64) {
        let partition = item.partition();
        *self.summary.counts.entry(partition).or_default() += 1;
        match item {
            Item::Append { replica, first, entries, .. } => {
                self.append(partition, *replica, *first, entries.len() as u64, segment);
            }
            Item::HardState { replica, term, vote, commit, .. } => {
                let outline = self.outline(partition, *replica);
                (outline.term, outline.vote, outline.commit) = (*term, *vote, *commit);
            }
            Item::State { replica, replaces_log, file, .. } => {
                self.state(partition, *replica, *replaces_log, *file);
            }
            Item::Destroy { replica, .. } => {
                self.summary.table += 1;
                if self.summary.replicas.get(&partition).is_some_and(|outline| outline.replica <= *replica) {
                    self.forget(partition);
                }
                let destroyed = self.summary.destroyed.entry(partition).or_insert(*replica);
                *destroyed = (*destroyed).max(*replica);
            }
        }
    }

    fn append(&mut self, partition: PartitionId, replica: ReplicaId, first: u64, entries: u64, segment: u64) {
        let outline = self.outline(partition, replica);
        if first > outline.last + 1 || first < outline.first {
            outline.damaged = true;
            return;
        }
        outline.last = first + entries - 1;
        let runs = self.runs.entry(partition).or_default();
        while runs.back().is_some_and(|run| run.first >= first) {
            runs.pop_back();
        }
        if entries > 0 && runs.back().is_none_or(|run| run.segment != segment) {
            runs.push_back(Run { first, segment });
        }
    }

    fn state(&mut self, partition: PartitionId, replica: ReplicaId, replaces_log: bool, file: StateFile) {
        let outline = self.outline(partition, replica);
        let all = replaces_log || file.index >= outline.last;
        if !all && file.index + 1 < outline.first {
            outline.damaged = true;
            self.obsolete.push(file.name(partition, replica));
            return;
        }
        let before = outline.state.replace(file);
        outline.first = file.index + 1;
        if all {
            outline.last = file.index;
        }
        if let Some(before) =
            before.filter(|before| before.name(partition, replica) != file.name(partition, replica))
        {
            self.obsolete.push(before.name(partition, replica));
        }
        if let Some(runs) = self.runs.get_mut(&partition) {
            if all {
                runs.clear();
            }
            while runs.get(1).is_some_and(|next| next.first <= file.index + 1) {
                runs.pop_front();
            }
        }
    }

    /// The replica of this id; one of another id gives way.
    fn outline(&mut self, partition: PartitionId, replica: ReplicaId) -> &mut Outline {
        if self.summary.replicas.get(&partition).is_none_or(|outline| outline.replica != replica) {
            self.summary.table += 1;
            self.forget(partition);
        }
        self.summary.replicas.entry(partition).or_insert_with(|| Outline::new(replica))
    }

    fn forget(&mut self, partition: PartitionId) {
        self.runs.remove(&partition);
        if let Some(outline) = self.summary.replicas.remove(&partition)
            && let Some(file) = outline.state
        {
            self.obsolete.push(file.name(partition, outline.replica));
        }
    }

    /// Forgets where the entries of a replica lie.
    pub(super) fn forget_place(&mut self, partition: PartitionId) {
        self.runs.remove(&partition);
    }

    /// Forgets where the entries of all other replicas lie.
    pub(super) fn retain(&mut self, replicas: &BTreeMap<PartitionId, Outline>) {
        self.runs.retain(|partition, _| replicas.contains_key(partition));
    }

    pub(super) fn mark_damaged(&mut self, partition: PartitionId) {
        if let Some(outline) = self.summary.replicas.get_mut(&partition) {
            outline.damaged = true;
        }
    }

    /// State files that nothing names any more, each told once.
    pub(super) fn take_obsolete(&mut self) -> Vec<String> {
        std::mem::take(&mut self.obsolete)
    }

    /// The names of all state files in use.
    pub(super) fn state_files(&self) -> impl Iterator<Item = String> + '_ {
        let named = |(partition, outline): (&PartitionId, &Outline)| {
            outline.state.map(|file| file.name(*partition, outline.replica))
        };
        self.summary.replicas.iter().filter_map(named)
    }

    /// Bytes of all state files in use.
    pub(super) fn state_bytes(&self) -> u64 {
        self.summary.replicas.values().filter_map(|outline| outline.state).map(|file| file.bytes).sum()
    }

    /// The first segment that holds an entry which no state covers. `sparing`: not for the sake of a damaged
    /// replica, whose entries serve nobody but a recovery.
    pub(super) fn oldest_needed(&self, sparing: bool) -> Option<u64> {
        let counts = |partition| !sparing || !self.summary.replicas.get(partition).is_none_or(|o| o.damaged);
        let runs = self.runs.iter().filter(|(partition, _)| counts(partition));
        runs.filter_map(|(_, runs)| runs.front()).map(|run| run.segment).min()
    }

    /// The partitions that need a segment.
    pub(super) fn holders(&self, segment: u64) -> impl Iterator<Item = PartitionId> + '_ {
        self.runs.keys().copied().filter(move |partition| self.holds(*partition, segment))
    }

    /// Whether a partition needs a segment, or one before it.
    pub(super) fn holds(&self, partition: PartitionId, segment: u64) -> bool {
        let first = self.runs.get(&partition).and_then(VecDeque::front);
        first.is_some_and(|run| run.segment <= segment)
    }
}
