//! The disk of a simulated node: slow at times, full at times, and it keeps of what was not written yet only some
//! first batches when its machine loses power.
//!
//! What the files look like is the business of `storage`, which has its own tests of torn and damaged ones; here a
//! batch is there whole or not at all, as `storage` promises.

use std::collections::VecDeque;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::id::SwarmId;
use crate::node::data::Resume;
use crate::node::swarm::Remembered;
use crate::replication::{Stored, Write};
use crate::ring::PartitionCount;
use crate::time::Timestamp;

/// Incarnations that one life of a node may use up, as in `node::data`.
const INCARNATIONS_PER_LIFE: u64 = 1 << 32;

/// What a node finds when it comes back.
#[derive(Debug, Default)]
pub(super) struct Disk {
    swarm: Option<SwarmFile>,
    stored: Stored,
    /// Handed over and not written yet.
    under_way: VecDeque<(u64, Vec<Write>)>,
    done_at: Timestamp,
    /// How often the node has started with this disk.
    lives: u64,
    /// Until then nothing is written: the disk is full, or hangs.
    pub(super) stuck_until: Timestamp,
    /// Microseconds that a batch takes, least and most.
    pub(super) latency_us: (u64, u64),
}

#[derive(Debug)]
struct SwarmFile {
    id: SwarmId,
    partitions: PartitionCount,
    members: Vec<Remembered>,
    /// The members as written before: a crash may leave these.
    members_before: Vec<Remembered>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self { latency_us: (100, 2_000), ..Self::default() }
    }

    /// The node enters a swarm. On the disk before anything else is done.
    pub(super) fn begin(&mut self, id: SwarmId, partitions: PartitionCount) {
        let members = Vec::new();
        self.swarm = Some(SwarmFile { id, partitions, members_before: members.clone(), members });
        self.stored = Stored::default();
    }

    /// Nothing of the swarm is kept.
    pub(super) fn abandon(&mut self) {
        self.swarm = None;
        self.stored = Stored::default();
        self.under_way.clear();
    }

    pub(super) fn remember(&mut self, members: Vec<Remembered>) {
        if let Some(swarm) = &mut self.swarm {
            swarm.members_before = std::mem::replace(&mut swarm.members, members);
        }
    }

    /// Takes a batch; returns when it will be written.
    pub(super) fn persist(
        &mut self,
        batch: u64,
        writes: Vec<Write>,
        rng: &mut StdRng,
        now: Timestamp,
    ) -> Timestamp {
        let (low, high) = self.latency_us;
        let latency = std::time::Duration::from_micros(rng.random_range(low..=high));
        self.under_way.push_back((batch, writes));
        self.done_at = self.done_at.max(self.stuck_until).max(now + latency);
        self.done_at
    }

    /// Everything up to this batch is written.
    pub(super) fn written(&mut self, batch: u64) {
        while self.under_way.front().is_some_and(|(first, _)| *first <= batch)
            && let Some((_, writes)) = self.under_way.pop_front()
        {
            self.write(writes);
        }
    }

    fn write(&mut self, writes: Vec<Write>) {
        for write in writes {
            self.stored.apply(write).expect("a driver leaves no gaps");
        }
    }

    /// Power is lost. Of what was not written, some first batches may be there all the same.
    pub(super) fn lose_unwritten(&mut self, rng: &mut StdRng) {
        let spared = rng.random_range(0..=self.under_way.len());
        for (_, writes) in std::mem::take(&mut self.under_way).into_iter().take(spared) {
            self.write(writes);
        }
        self.done_at = Timestamp::ZERO;
        self.stuck_until = Timestamp::ZERO;
        if let Some(swarm) = &mut self.swarm
            && rng.random_bool(0.2)
        {
            swarm.members = swarm.members_before.clone();
        }
    }

    /// The node starts with what is here; `None`: it is in no swarm.
    pub(super) fn open(&mut self) -> Option<Resume> {
        self.lives += 1;
        let swarm = self.swarm.as_ref()?;
        if self.stored.replicas.is_empty() && swarm.members.is_empty() {
            // It was never really in it.
            self.swarm = None;
            return None;
        }
        Some(Resume {
            swarm: swarm.id,
            partitions: swarm.partitions,
            incarnation: (self.lives + 1) * INCARNATIONS_PER_LIFE,
            members: swarm.members.clone(),
            stored: self.stored.clone(),
            findings: Vec::new(),
        })
    }
}
