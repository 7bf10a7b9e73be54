//! What one partition replicates: a deterministic function of its log.

mod command;
mod query;

use std::collections::BTreeMap;

pub use command::{Command, MAX_KEY_BYTES, MAX_VALUE_BYTES, Operation, Origin, PartitionTime, Reply};
pub use query::{Answer, Entry, KeyBytes, MAX_SCAN_BYTES, MAX_SCAN_ENTRIES, Query};

use crate::id::{SwarmId, Version};

/// The state of one partition.
#[derive(Debug, Clone, Default)]
pub struct StateMachine {
    time: PartitionTime,
    keys: BTreeMap<Vec<u8>, (Vec<u8>, Version)>,
}

impl StateMachine {
    /// Applies the command at `index` of the log.
    pub fn apply(&mut self, index: u64, command: Command) -> Reply {
        self.time = self.time.max(command.time);
        let version = Version(index);
        match command.operation {
            Operation::Put { key, value, .. } => {
                self.keys.insert(key, (value, version));
                Reply::Written { version }
            }
            _ => Reply::Advanced,
        }
    }

    /// Answers a question from the state as it is.
    pub fn query(&self, query: &Query) -> Answer {
        match query {
            Query::Get { key } => Answer::Entry(self.keys.get(key).map(|(value, version)| Entry {
                value: value.clone(),
                version: *version,
                ttl_ms: None,
            })),
            Query::Scan { .. } => Answer::Page {
                entries: Vec::new(),
                more: false,
            },
        }
    }

    /// The version of a key; `None` if it is absent.
    pub fn version(&self, key: &[u8]) -> Option<Version> {
        self.keys.get(key).map(|(_, version)| *version)
    }

    /// The partition's time: the latest stamp applied.
    pub fn time(&self) -> PartitionTime {
        self.time
    }

    /// When something is next due (a key or a session): the leader then proposes [`Operation::Advance`].
    pub fn next_due(&self) -> Option<PartitionTime> {
        None
    }

    /// The swarm into which this one dissolves, if the partition is sealed.
    pub fn sealed(&self) -> Option<SwarmId> {
        None
    }

    /// Number of keys held.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Bytes of keys and values held.
    pub fn bytes(&self) -> usize {
        self.keys
            .iter()
            .map(|(key, (value, _))| key.len() + value.len())
            .sum()
    }

    /// Everything, encoded: what [`StateMachine::restore`] reads.
    pub fn snapshot(&self) -> Vec<u8> {
        crate::codec::encode(&(self.time, &self.keys))
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// If the bytes are not a snapshot.
    pub fn restore(snapshot: &[u8]) -> Result<Self, crate::codec::DecodeError> {
        let (time, keys) = crate::codec::decode(snapshot)?;
        Ok(Self { time, keys })
    }
}
