//! Which writes a partition has already applied, so that a retry changes nothing.
//!
//! **Problem.** A client that lost the answer to a write cannot know whether it was applied. Sending it again
//! may apply it twice: a counter counts twice, or an old value comes back over a newer one.
//!
//! **Method** (Ongaro, *Consensus: Bridging Theory and Practice*, section 6.3). Each client session numbers its
//! writes to the partition and sends with each the number below which all are settled. The partition remembers
//! the answer of every applied write that is not settled, answers a repeated number from memory, and refuses an
//! unremembered number below the settled ones: it was applied and pruned, or given up.
//!
//! **Why forgetting is safe.** A session is forgotten [`SESSION_TTL`] after its last write here, or, when the
//! partition is full of sessions, not before [`SESSION_GUARD`]. A client never sends a write later than
//! [`MAX_DEADLINE`] after its first attempt, by a clock that counts suspend, so each of its retries meets the
//! session alive: the last write of the session here is not older than the retried one. What remains is a copy
//! that sat in a queue of a node for longer; a node must not propose a request that it has held for
//! [`MAX_DEADLINE`], which leaves `SESSION_GUARD - MAX_DEADLINE` for the copy to travel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::command::{Origin, PartitionTime, Reply};
use crate::id::SessionId;

/// Longest time, from its first attempt, during which a client may send a write.
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// A session that wrote nothing for so long is forgotten; in partition time. Far above [`MAX_DEADLINE`].
pub const SESSION_TTL: Duration = Duration::from_secs(15 * 60);
/// In a partition full of sessions, one that wrote nothing for so long gives way; in partition time.
pub const SESSION_GUARD: Duration = Duration::from_secs(3 * 60);
/// Sessions that one partition remembers.
pub const MAX_SESSIONS: usize = 65_536;
/// Answers that one session may have remembered in one partition: a client keeps the distance between its
/// oldest unsettled write to a partition and its newest below this.
pub const MAX_REMEMBERED: usize = 1024;
/// Answers that one partition remembers for all its sessions.
pub const MAX_REMEMBERED_IN_ALL: usize = 262_144;

/// Forgetting sessions is no hurry: the leader is woken for it at multiples of this, in milliseconds, so that
/// many sessions cost one log entry.
const SWEEP_MS: u64 = 10_000;

const _: () = assert!(MAX_DEADLINE.as_secs() * 3 <= SESSION_GUARD.as_secs());
const _: () = assert!(SESSION_GUARD.as_secs() < SESSION_TTL.as_secs());

/// What is known of one session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Session {
    /// The highest `settled_below` seen.
    pub(super) floor: u64,
    /// Time of its last write.
    pub(super) seen: PartitionTime,
    // Invariant: every number is >= floor, and there are at most MAX_REMEMBERED.
    pub(super) answers: BTreeMap<u64, Reply>,
}

/// The sessions of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    // Invariant: (t, s) is in `idle` exactly when by_id[s].seen == t.
    idle: BTreeSet<(PartitionTime, SessionId)>,
    // Invariant: remembered == sum over sessions of answers.len().
    remembered: usize,
}

impl Sessions {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.by_id.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Notes that a write arrived. `Err`: it must not be applied, and this is its answer. After `Ok` it is
    /// applied and, unless it was refused, [`Sessions::remember`]ed.
    pub(super) fn admit(&mut self, origin: Origin, now: PartitionTime) -> Result<(), Reply> {
        self.make_room(now);
        if !self.by_id.contains_key(&origin.session) {
            if self.by_id.len() >= MAX_SESSIONS {
                return Err(Reply::TooManySessions);
            }
            self.idle.insert((now, origin.session));
        }
        let session =
            self.by_id.entry(origin.session).or_insert_with(|| Session { seen: now, ..Session::default() });
        if session.seen != now {
            self.idle.remove(&(session.seen, origin.session));
            self.idle.insert((now, origin.session));
            session.seen = now;
        }
        session.floor = session.floor.max(origin.settled_below);
        // Before pruning: a client that contradicts itself still gets the true answer.
        let answer = session.answers.get(&origin.sequence).cloned();
        while let Some(oldest) = session.answers.first_entry()
            && *oldest.key() < session.floor
        {
            oldest.remove();
            self.remembered -= 1;
        }
        if let Some(answer) = answer {
            return Err(answer);
        }
        if origin.sequence < session.floor {
            return Err(Reply::Settled);
        }
        if session.answers.len() >= MAX_REMEMBERED || self.remembered >= MAX_REMEMBERED_IN_ALL {
            return Err(Reply::TooManySessions);
        }
        Ok(())
    }

    /// Keeps the answer of an admitted write that was applied.
    pub(super) fn remember(&mut self, origin: Origin, reply: Reply) {
        if let Some(session) = self.by_id.get_mut(&origin.session)
            && session.answers.insert(origin.sequence, reply).is_none()
        {
            self.remembered += 1;
        }
    }

    /// Forgets the sessions that have been idle for [`SESSION_TTL`].
    pub(super) fn expire(&mut self, now: PartitionTime) {
        while let Some((seen, _)) = self.idle.first()
            && after(*seen, SESSION_TTL) <= now
        {
            self.forget_idlest();
        }
    }

    /// When the leader should next see to [`Sessions::expire`].
    pub(super) fn next_due(&self) -> Option<PartitionTime> {
        let (seen, _) = self.idle.first()?;
        let due = after(*seen, SESSION_TTL).0;
        Some(PartitionTime(due.checked_next_multiple_of(SWEEP_MS).unwrap_or(due)))
    }

    /// Puts back a session from a snapshot. `false`: it is there already.
    pub(super) fn restore(&mut self, id: SessionId, floor: u64, seen: PartitionTime) -> bool {
        let session = Session { floor, seen, answers: BTreeMap::new() };
        self.idle.insert((seen, id));
        self.by_id.insert(id, session).is_none()
    }

    /// Puts back an answer from a snapshot. `false`: it cannot have been there.
    pub(super) fn restore_answer(&mut self, id: SessionId, sequence: u64, reply: Reply) -> bool {
        let Some(session) = self.by_id.get_mut(&id) else {
            return false;
        };
        if sequence < session.floor || session.answers.len() >= MAX_REMEMBERED {
            return false;
        }
        self.remembered += 1;
        session.answers.insert(sequence, reply).is_none()
    }

    fn make_room(&mut self, now: PartitionTime) {
        while (self.by_id.len() >= MAX_SESSIONS || self.remembered >= MAX_REMEMBERED_IN_ALL)
            && let Some((seen, _)) = self.idle.first()
            && after(*seen, SESSION_GUARD) <= now
        {
            self.forget_idlest();
        }
    }

    fn forget_idlest(&mut self) {
        if let Some((_, id)) = self.idle.pop_first()
            && let Some(session) = self.by_id.remove(&id)
        {
            self.remembered -= session.answers.len();
        }
    }
}

fn after(time: PartitionTime, duration: Duration) -> PartitionTime {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    PartitionTime(time.0.saturating_add(ms))
}
