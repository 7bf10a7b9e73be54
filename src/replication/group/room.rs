//! Disks that are full, and who takes writes then.
//!
//! **Rule.** A replica whose disk is full takes no entries but empty ones, which new leaders begin with. It still says
//! how far its log agrees, hears what is committed, votes, and serves reads; and it says with every answer to a
//! heartbeat that it is full. A leader takes proposals only if its own disk and those of a majority have room; what it
//! took before goes on.
//!
//! **A new leader may begin with what others had no room for**: proposals that an earlier one took before it heard of
//! their disks. While these are not committed nobody can read. So if a majority is full a new leader sends them
//! marked, and a full replica takes what is marked: a bounded part of the reserve is for that. There are no more of
//! them than were on their way when the disks became full; what exceeds the bound waits for room, and so do reads of
//! its partition.
//!
//! A leader whose own disk is full hands over to a voter with room, if those with room are a majority without it: so
//! one full disk of three stops nothing. **Nobody plays ping-pong**: leadership goes only to who has said in this term
//! that it has room and has not said otherwise lately, each such voter is tried once in a while, and a full replica
//! stands for election behind all others.

use std::time::Duration;

use super::{Group, Shared};
use crate::id::ReplicaId;
use crate::replication::message::Body;
use crate::time::Timestamp;

/// A replica that was full is given no leadership before it has had room for so long.
const ROOM_SETTLED: Duration = Duration::from_secs(10);
/// For so long after its disk was found full a leader sends proposers away to ask again, while it looks for another
/// one; after that they are told. Shorter than the patience of a client.
const RELIEF_WITHIN: Duration = Duration::from_secs(1);
/// When all that have room were offered the leadership, and none took it: so long until the next round.
const RELIEF_AGAIN: Duration = Duration::from_secs(5);
/// What all replicas of a node together take onto a full disk of what new leaders begin with, in bytes: half of a
/// store's default reserve. The rest is for votes and empty entries.
const BEGINNINGS_BYTES: usize = 2 * 1024 * 1024;

/// A disk that is full.
#[derive(Debug, Clone, Copy)]
pub(in crate::replication) struct Full {
    since: Timestamp,
    /// What is left of [`BEGINNINGS_BYTES`].
    left: usize,
}

impl Full {
    pub(in crate::replication) fn since(now: Timestamp) -> Self {
        Self { since: now, left: BEGINNINGS_BYTES }
    }

    /// Leaves away of a message what there is no room for; whether anything is left.
    pub(in crate::replication) fn fit(&mut self, body: &mut Body) -> bool {
        if let Body::Raft(raft) = body
            && raft.is_beginning()
            && let Some(left) = self.left.checked_sub(raft.data_bytes())
        {
            self.left = left;
            return true;
        }
        body.leave_data()
    }
}

/// What a follower says of its disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Whether it was full at the last heartbeat.
    full: bool,
    /// When it last was.
    full_at: Option<Timestamp>,
}

impl Room {
    fn was_full(self, now: Timestamp) -> bool {
        self.full || self.full_at.is_some_and(|at| now.since(at) < ROOM_SETTLED)
    }
}

impl Group {
    /// A follower has answered a heartbeat.
    pub(super) fn note_room(&mut self, id: ReplicaId, full: bool, shared: &Shared) {
        if let Some(lead) = &mut self.lead {
            let before = lead.room.get(&id).and_then(|room| room.full_at);
            let full_at = if full { Some(shared.now) } else { before };
            lead.room.insert(id, Room { full, full_at });
        }
    }

    fn room(&self, id: ReplicaId) -> Option<Room> {
        self.lead.as_ref()?.room.get(&id).copied()
    }

    /// Whether a follower says that it takes no entries.
    pub(super) fn is_full(&self, id: ReplicaId) -> bool {
        self.room(id).is_some_and(|room| room.full)
    }

    /// Whether a follower is full, or was lately.
    pub(super) fn was_full(&self, id: ReplicaId, shared: &Shared) -> bool {
        self.room(id).is_some_and(|room| room.was_full(shared.now))
    }

    /// Whether a follower may lead as far as its disk is concerned; nobody knows before its first answer.
    pub(super) fn may_lead(&self, id: ReplicaId, shared: &Shared) -> bool {
        self.room(id).is_some_and(|room| !room.was_full(shared.now))
    }

    /// Whether a majority, without this replica, lives and has room.
    fn others_have_room(&self, shared: &Shared) -> bool {
        self.voting.has_quorum(|id| {
            let id = ReplicaId(id);
            id != self.id && self.is_live(id, shared) && !self.is_full(id)
        })
    }

    /// Whether so many others are full that nothing that is proposed now would get onto the disks of a majority.
    fn others_lack_room(&self, shared: &Shared) -> bool {
        // Every proposal asks, and hardly ever is any disk full.
        self.lead.as_ref().is_some_and(|lead| lead.room.values().any(|room| room.full))
            && !self.voting.has_quorum(|id| {
                let id = ReplicaId(id);
                id == self.id || (self.is_linked(id, shared) && !self.is_full(id))
            })
    }

    /// Whether nobody can read before what this new leader begins with is on full disks as well.
    pub(super) fn begins_on_full_disks(&self, shared: &Shared) -> bool {
        !self.raw.raft.commit_to_current_term() && self.others_lack_room(shared)
    }

    /// What becomes of proposals, if it is not for them to be taken: of a leader.
    pub(super) fn no_room(&self, shared: &Shared) -> Option<NoRoom> {
        if self.is_being_relieved(shared) {
            return Some(NoRoom::AskAgain);
        }
        (shared.is_full() || self.others_lack_room(shared)).then_some(NoRoom::Full)
    }

    /// Whether another one is likely to lead soon, because the disk is full here.
    fn is_being_relieved(&self, shared: &Shared) -> bool {
        let Some((full, lead)) = shared.full.zip(self.lead.as_ref()) else {
            return false;
        };
        shared.now.since(full.since.max(lead.since)) < RELIEF_WITHIN && self.others_have_room(shared)
    }

    /// Hands over if the disk is full here and somebody is there to hand over to.
    pub(in crate::replication) fn seek_relief(&mut self, shared: &mut Shared) {
        if !self.seeks_relief(shared) || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let Some(lead) = &self.lead else {
            return;
        };
        let with_room = self.voting.voters.iter().map(|id| ReplicaId(*id));
        let with_room = with_room.filter(|id| *id != self.id && self.may_lead(*id, shared));
        let (offered, mut left): (Vec<_>, Vec<_>) = with_room.partition(|id| lead.offered.contains(id));
        // Whoever has most of the log takes over soonest.
        left.sort_by_key(|id| std::cmp::Reverse(self.raw.raft.prs().get(id.0).map_or(0, |has| has.matched)));
        if left.is_empty() && !offered.is_empty() {
            if let Some(lead) = &mut self.lead {
                lead.offered.clear();
                lead.relief_at = shared.now + RELIEF_AGAIN;
            }
            return;
        }
        // Who has not caught up is asked again with the next tick.
        let heir = left.into_iter().find(|id| self.hand_to(*id, shared));
        if let Some((heir, lead)) = heir.zip(self.lead.as_mut()) {
            lead.offered.insert(heir);
        }
    }

    /// Whether there may be somebody to hand over to, now or with the next tick.
    pub(super) fn seeks_relief(&self, shared: &Shared) -> bool {
        shared.is_full()
            && self.is_leader()
            && self.lead.as_ref().is_some_and(|lead| shared.now >= lead.relief_at)
            && self.others_have_room(shared)
    }
}

/// Why a leader takes no proposals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// Another one will lead soon.
    AskAgain,
    /// The disk is full here, or at too many others.
    Full,
}
