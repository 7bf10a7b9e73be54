//! The client's half of exactly-once: numbers for its writes.
//!
//! Writes are numbered per partition, because a partition remembers only [`MAX_REMEMBERED`] unsettled answers:
//! with one numbering for all, one partition without quorum would stall the writes to every other. The numbers
//! of a partition go on when its swarm dissolves and another one follows: were they drawn anew, a write could
//! be taken for the retry of an older one by whoever is not told which of the swarms is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::lock;
use crate::id::{PartitionId, SessionId, SwarmId};
use crate::state_machine::{MAX_REMEMBERED, Origin};

/// The numbers of one session.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    windows: Mutex<BTreeMap<PartitionId, Window>>,
    /// The oldest write of some partition was settled.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Window {
    next: u64,
    // Invariant: all numbers are below `next`, and none is further below than MAX_REMEMBERED.
    unsettled: BTreeSet<u64>,
}

impl Window {
    fn settled_below(&self) -> u64 {
        self.unsettled.first().copied().unwrap_or(self.next)
    }

    fn begin(&mut self) -> Option<u64> {
        if self.next - self.settled_below() >= MAX_REMEMBERED as u64 {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.unsettled.insert(sequence);
        Some(sequence)
    }
}

impl Session {
    pub(super) fn new(id: SessionId) -> Self {
        Self { id, windows: Mutex::default(), settled: Notify::new() }
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    /// Draws the number of a new write; waits while too many are unsettled, at most `patience`.
    pub(super) async fn begin(
        self: &Arc<Self>,
        swarm: SwarmId,
        partition: PartitionId,
        patience: Duration,
    ) -> Option<InFlight> {
        let wait = async {
            loop {
                // Before looking, or a write settled in between would wake nobody.
                let mut settled = std::pin::pin!(self.settled.notified());
                settled.as_mut().enable();
                if let Some(in_flight) = self.try_begin(swarm, partition) {
                    return in_flight;
                }
                settled.await;
            }
        };
        match self.try_begin(swarm, partition) {
            Some(in_flight) => Some(in_flight),
            None => tokio::time::timeout(patience, wait).await.ok(),
        }
    }

    fn try_begin(self: &Arc<Self>, swarm: SwarmId, partition: PartitionId) -> Option<InFlight> {
        let sequence = lock(&self.windows).entry(partition).or_default().begin()?;
        Some(InFlight { session: Arc::clone(self), swarm, partition, sequence })
    }
}

/// A write that is not settled; dropping it settles it: answered, given up or cancelled, it is not sent again.
#[derive(Debug)]
pub(super) struct InFlight {
    session: Arc<Session>,
    swarm: SwarmId,
    partition: PartitionId,
    sequence: u64,
}

impl InFlight {
    /// The swarm for which the number was drawn.
    pub(super) fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// What the next attempt carries.
    pub(super) fn origin(&self) -> Origin {
        let settled_below = lock(&self.session.windows).get(&self.partition).map_or(0, Window::settled_below);
        Origin { session: self.session.id, sequence: self.sequence, settled_below }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let oldest = lock(&self.session.windows).get_mut(&self.partition).is_some_and(|window| {
            let oldest = window.settled_below() == self.sequence;
            window.unsettled.remove(&self.sequence);
            oldest
        });
        if oldest {
            self.session.settled.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWARM: SwarmId = SwarmId(1);
    const MOMENT: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn settled_below_follows_the_oldest_unsettled_write() {
        let session = Arc::new(Session::new(SessionId(1)));
        let begin = || async { session.begin(SWARM, PartitionId(0), MOMENT).await.unwrap() };
        let (a, b) = (begin().await, begin().await);
        drop(b);
        assert_eq!(begin().await.origin().settled_below, 0);
        drop(a);
        let last = begin().await.origin();
        assert_eq!((last.sequence, last.settled_below), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_go_on_in_the_next_swarm() {
        let session = Arc::new(Session::new(SessionId(1)));
        let first = session.begin(SWARM, PartitionId(0), MOMENT).await.unwrap();
        let next = session.begin(SwarmId(2), PartitionId(0), MOMENT).await.unwrap();
        assert_eq!((first.swarm(), first.origin().sequence), (SWARM, 0));
        assert_eq!((next.swarm(), next.origin().sequence), (SwarmId(2), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_write_stalls_its_own_partition_only() {
        let session = Arc::new(Session::new(SessionId(1)));
        let begin = |partition| session.begin(SWARM, PartitionId(partition), MOMENT);
        let stuck = begin(0).await.unwrap();
        for _ in 1..MAX_REMEMBERED {
            begin(0).await.unwrap();
        }
        assert!(begin(0).await.is_none());
        assert!(begin(1).await.is_some());
        let (waiting, ()) = tokio::join!(begin(0), async { drop(stuck) });
        assert!(waiting.is_some());
    }
}
