//! A simulated machine: a node's core, its clock, its disk, and what it passes on: what `node::runtime` is to a real
//! node, without tasks.

use std::collections::{BTreeMap, VecDeque};

use super::clock::MachineClock;
use super::disk::Disk;
use super::world::Event;
use crate::id::NodeId;
use crate::node::core::Core;
use crate::time::Timestamp;

/// A request that was passed on and is not answered yet.
#[derive(Debug, Clone, Copy)]
pub(in crate::node) struct Forwarded {
    pub(in crate::node) to: NodeId,
    /// The link that it went over.
    pub(in crate::node) epoch: u64,
    pub(in crate::node) is_write: bool,
}

#[derive(Debug)]
pub(in crate::node) struct Machine {
    /// `None`: it is down.
    pub(in crate::node) core: Option<Core>,
    pub(in crate::node) clock: MachineClock,
    /// `None`: it keeps nothing.
    pub(super) disk: Option<Disk>,
    /// When its core wants to be called next, in world time.
    pub(in crate::node) due: Timestamp,
    /// It stands still: what would happen to it waits.
    pub(in crate::node) is_paused: bool,
    pub(in crate::node) deferred: VecDeque<Event>,
    /// How often it has started.
    pub(in crate::node) life: u64,
    pub(in crate::node) forwarded: BTreeMap<u64, Forwarded>,
    /// Whom it believes to be linked with, by the link's number.
    pub(in crate::node) links: BTreeMap<NodeId, u64>,
    /// It has been told to leave; it will not come back.
    pub(in crate::node) is_leaving: bool,
    /// It is down for good: it left, or lost all that it had.
    pub(in crate::node) is_gone: bool,
}

impl Machine {
    pub(super) fn new(clock: MachineClock, disk: Option<Disk>) -> Self {
        Self {
            core: None,
            clock,
            disk,
            due: Timestamp::NEVER,
            is_paused: false,
            deferred: VecDeque::new(),
            life: 0,
            forwarded: BTreeMap::new(),
            links: BTreeMap::new(),
            is_leaving: false,
            is_gone: false,
        }
    }

    pub(in crate::node) fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub(in crate::node) fn is_durable(&self) -> bool {
        self.disk.is_some()
    }

    /// Looks when the core is due next.
    pub(in crate::node) fn note_due(&mut self, now: Timestamp) {
        self.due = match &self.core {
            Some(core) if !self.is_paused => {
                self.clock.moment(core.next_deadline(self.clock.show(now))).max(now)
            }
            _ => Timestamp::NEVER,
        };
    }
}
