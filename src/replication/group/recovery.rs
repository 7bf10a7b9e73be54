//! What is kept across a restart, how it is taken up again, and a minority that goes on alone.
//!
//! **Rule.** A replica that comes back is the one that it was: it has its term and vote, all entries that it ever
//! said it had, and a state at or before what was committed; everything else follows from Raft. What it promised
//! to its leader on its own clock it has forgotten, so it supports nobody for the length of a promise.
//!
//! *Recovery* is the way out when a majority is gone for good, and only a person may take it: the survivor makes
//! itself the only voter of a new generation of the group. It takes over all that is in its log, committed or not:
//! what was acknowledged and reached it is there. Replica ids, term, versions and tokens leap beyond everything
//! that the majority may have given out without it. So replicas of the old generation are to it like removed
//! ones: they are told so, and destroy themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::messages::MAX_NUMBER;
use super::{Group, Shared};
use crate::codec;
use crate::id::{PartitionId, ReplicaId};
use crate::replication::config::{Roster, Voting};
use crate::replication::durable::{StoredReplica, StoredState, Write};
use crate::replication::log::{self, Log};
use crate::replication::{GroupStatus, HardState, LogEntry, RecoverError, Role, convert};
use crate::state_machine::{Command, StateMachine};

/// How far term and replica ids leap in a recovery: beyond what the lost majority can have used meanwhile.
const GENERATION: u64 = 1 << 32;
/// The same of versions and tokens.
const VERSION_LEAP: u64 = 1 << 40;
/// So many recoveries of a partition may be behind one of which nothing is left, not even the knowledge of them.
const FORGOTTEN_GENERATIONS: u64 = 1 << 10;

/// A replica that has heard a leader within so long is not recovered: its group may yet decide by itself.
const LEADERLESS_FOR: Duration = Duration::from_secs(5);

/// Who is in the group, beside a state.
#[derive(Serialize, Deserialize)]
struct StateHeader {
    voting: Voting,
    roster: Roster,
}

/// What was kept, and is not what a replica can go on from: it takes no part any more.
#[derive(Debug)]
pub(in crate::replication) struct Damaged {
    pub(in crate::replication) stored: StoredReplica,
    pub(in crate::replication) status: GroupStatus,
}

impl Damaged {
    fn new(mut stored: StoredReplica) -> Self {
        for entry in &mut stored.entries {
            *entry = entry.unshared();
        }
        Self { status: Group::damaged_status(&stored), stored }
    }

    /// Whether it can be recovered from.
    pub(in crate::replication) fn holds_state(&self) -> bool {
        self.status.last.1 > 0
    }
}

/// Of a damaged replica's log, what follows on its state without a gap.
fn usable_entries<'a>(stored: &'a StoredReplica, state: &StoredState) -> impl Iterator<Item = &'a LogEntry> {
    let follows = stored.first == state.index + 1;
    let mut term = state.term.max(1);
    // The place of one that was lost is held by an entry of term 0.
    stored.entries.iter().take_while(move |entry| {
        let fits = follows && entry.term >= term;
        term = entry.term;
        fits
    })
}

impl Group {
    /// Keeps the state as it is now.
    pub(super) fn keep_state(&self, shared: &mut Shared) {
        if shared.config.durable && self.initialised {
            self.keep_as_state(false, self.machine.snapshot(), shared);
        }
    }

    /// Keeps the state as it is now, and behind it, once more, the entries that are not applied yet: nothing that
    /// was written before is needed afterwards.
    pub(in crate::replication) fn keep_anew(&self, shared: &mut Shared) {
        self.keep_state(shared);
        let entries: Vec<_> = self.raw.store().unapplied().map(convert::from_core_entry).collect();
        if !entries.is_empty() {
            let (partition, replica, first) = (self.partition, self.id, self.applied() + 1);
            shared.keep(Write::Append { partition, replica, first, entries });
        }
    }

    /// The same, of a state whose snapshot is at hand.
    pub(super) fn keep_as_state(&self, replaces_log: bool, data: Vec<u8>, shared: &mut Shared) {
        let (index, term) = self.raw.store().applied();
        let header = codec::encode(&StateHeader { voting: self.voting.clone(), roster: self.roster.clone() });
        let state = StoredState { index, term, header, data };
        let (partition, replica) = (self.partition, self.id);
        shared.keep(Write::State { partition, replica, replaces_log, state });
    }

    /// The replica that was here before a restart.
    pub(in crate::replication) fn restored(
        partition: PartitionId,
        stored: StoredReplica,
        shared: &mut Shared,
    ) -> Result<Self, Box<Damaged>> {
        let Some(Kept { roster, voting, machine, log }) = Kept::new(&stored) else {
            return Err(Box::new(Damaged::new(stored)));
        };
        let initialised = machine.is_some();
        let Ok(mut group) = Self::make(partition, stored.replica, log, roster, voting, shared) else {
            return Err(Box::new(Damaged::new(stored)));
        };
        group.machine = machine.unwrap_or_default();
        group.initialised = initialised;
        group.kept = stored.hard_state;
        group.promise_until = shared.now + shared.config.lease;
        group.relink(shared);
        group.plan_campaign(shared);
        // Before the next one is made: what was read of this one is gone then, but for the end of its log.
        drop(stored);
        group.drain(shared);
        group.raw.mut_store().unshare();
        Ok(group)
    }

    /// Makes this replica the first and only one of a new generation of the group.
    pub(in crate::replication) fn recover(&mut self, shared: &mut Shared) -> Result<(), RecoverError> {
        let led = if self.is_leader() { self.quorum_linked } else { self.leader(shared).is_some() };
        if led || (!self.is_leader() && shared.now.since(self.heard_at) < LEADERLESS_FOR) {
            return Err(RecoverError::HasQuorum);
        }
        if !self.initialised {
            return Err(RecoverError::NoState);
        }
        self.drain(shared);
        self.close(shared);
        let survivor = Survivor {
            replica: self.id,
            index: self.applied(),
            machine: self.machine.clone(),
            entries: self.raw.store().unapplied().map(convert::from_core_entry).collect(),
            term: self.raw.raft.term,
            last_replica: self.roster.last_replica,
        };
        *self = Self::next_generation(self.partition, survivor, shared)?;
        Ok(())
    }

    /// The same from what was kept of a replica that lost a part.
    pub(in crate::replication) fn recovered(
        partition: PartitionId,
        damaged: &Damaged,
        shared: &mut Shared,
    ) -> Result<Self, RecoverError> {
        let Damaged { stored, .. } = damaged;
        let state = stored.state.as_ref().ok_or(RecoverError::NoState)?;
        let header: StateHeader = codec::decode(&state.header).map_err(|_| RecoverError::NoState)?;
        let machine = StateMachine::restore(&state.data).map_err(|_| RecoverError::NoState)?;
        let survivor = Survivor {
            replica: stored.replica,
            machine,
            index: state.index,
            entries: usable_entries(stored, state).cloned().collect(),
            term: stored.hard_state.term.max(state.term),
            last_replica: header.roster.last_replica.max(stored.replica.0),
        };
        Self::next_generation(partition, survivor, shared)
    }

    /// Whether nothing can be begun with this replica, and nobody leads it: it may give way to a new beginning.
    pub(in crate::replication) fn is_empty_and_alone(&self, shared: &Shared) -> bool {
        !self.initialised
            && self.leader(shared).is_none()
            && shared.now.since(self.heard_at) >= LEADERLESS_FOR
    }

    /// A new generation of a group of which nothing is left. `term` is the highest that is known of it, `replica`
    /// the last one that was here.
    pub(in crate::replication) fn anew(
        partition: PartitionId,
        term: u64,
        replica: ReplicaId,
        shared: &mut Shared,
    ) -> Result<Self, RecoverError> {
        // Each recovery has raised the term by one generation, replica ids by less than two, versions by one leap.
        let generations = term / GENERATION + FORGOTTEN_GENERATIONS;
        let mut machine = StateMachine::default();
        machine.raise_by(generations.saturating_mul(VERSION_LEAP)).map_err(|_| RecoverError::TooOften)?;
        let survivor = Survivor {
            replica: ReplicaId(0),
            machine,
            index: log::FOUNDING.0,
            entries: Vec::new(),
            term: generations * GENERATION,
            last_replica: replica.0.max(2 * generations * GENERATION),
        };
        Self::next_generation(partition, survivor, shared)
    }

    /// How a replica is that lost a part, as far as it can be told.
    fn damaged_status(stored: &StoredReplica) -> GroupStatus {
        let state = stored.state.as_ref();
        let header = state.and_then(|state| codec::decode::<StateHeader>(&state.header).ok());
        let machine = state.and_then(|state| StateMachine::restore(&state.data).ok());
        // What it cannot be recovered from does not count.
        let state = state.filter(|_| header.is_some() && machine.is_some());
        let nodes = |ids: fn(&Voting) -> &Vec<u64>| {
            let header = header.as_ref();
            let ids = header.map_or(&[][..], |header| ids(&header.voting));
            let node = |id: &u64| header?.roster.replicas.get(&ReplicaId(*id)).copied();
            ids.iter().filter_map(node).collect()
        };
        let last = state.map_or((0, 0), |state| {
            let entries = usable_entries(stored, state);
            entries.fold((state.index, state.term), |(index, _), entry| (index + 1, entry.term))
        });
        GroupStatus {
            replica: stored.replica,
            role: Role::Learner,
            term: stored.hard_state.term,
            leader: None,
            config: 0,
            changing: false,
            voters: nodes(|voting| &voting.voters),
            learners: nodes(|voting| &voting.learners),
            progress: Vec::new(),
            has_quorum: false,
            keys: machine.as_ref().map_or(0, StateMachine::len),
            bytes: machine.as_ref().map_or(0, StateMachine::bytes),
            applied: state.map_or(0, |state| state.index),
            committed: stored.hard_state.commit,
            last,
            log_entries: stored.entries.len(),
            sealed: None,
            damaged: true,
        }
    }

    fn next_generation(
        partition: PartitionId,
        survivor: Survivor,
        shared: &mut Shared,
    ) -> Result<Self, RecoverError> {
        let Survivor { replica, mut machine, mut index, entries, term, last_replica } = survivor;
        for entry in entries {
            index += 1;
            if !entry.config
                && let Ok(command) = codec::decode::<Command>(&entry.data)
            {
                machine.apply(index, command);
            }
        }
        machine.raise_by(VERSION_LEAP).map_err(|_| RecoverError::TooOften)?;
        // Two survivors that are recovered by mistake must not take each other for their own replica.
        let leap = GENERATION + shared.rng.random_range(0..GENERATION);
        let id = ReplicaId((last_replica + leap).min(MAX_NUMBER));
        let term = (term + GENERATION).min(MAX_NUMBER);
        let roster =
            Roster { replicas: BTreeMap::from([(id, shared.me)]), last_replica: id.0, config: index };
        let voting = Voting { voters: vec![id.0], ..Voting::default() };
        let hard_state = HardState { term, vote: 0, commit: index };
        let log = Log::restored(convert::to_core_hard_state(hard_state), (index, term), &voting, []);
        let mut group =
            Self::make(partition, id, log, roster, voting, shared).map_err(|_| RecoverError::NoState)?;
        group.machine = machine;
        if replica.0 > 0 {
            shared.keep(Write::Destroy { partition, replica });
        }
        group.begin_alone(shared).map_err(|_| RecoverError::NoState)?;
        Ok(group)
    }
}

/// What a survivor brings into the next generation.
struct Survivor {
    replica: ReplicaId,
    machine: StateMachine,
    index: u64,
    entries: Vec<LogEntry>,
    term: u64,
    last_replica: u64,
}

/// A stored replica in the form in which it works.
struct Kept {
    roster: Roster,
    voting: Voting,
    /// `None`: it never had a state.
    machine: Option<StateMachine>,
    log: Log,
}

impl Kept {
    /// `None`: it cannot be gone on from.
    fn new(stored: &StoredReplica) -> Option<Self> {
        let StoredReplica { replica, hard_state, state, entries, .. } = stored;
        if !stored.is_whole() || hard_state.commit > stored.last() {
            return None;
        }
        let Some(state) = state else {
            // Nothing is appended to a replica without a state.
            let mut log = Log::empty();
            log.set_hard_state(convert::to_core_hard_state(*hard_state));
            return entries.is_empty().then(|| Self {
                roster: Roster::default(),
                voting: Voting::default(),
                machine: None,
                log,
            });
        };
        let StateHeader { voting, roster } = codec::decode(&state.header).ok()?;
        let machine = StateMachine::restore(&state.data).ok()?;
        if !voting.is_sound(&roster, *replica) || !entries.iter().map(|entry| entry.term).is_sorted() {
            return None;
        }
        let hard_state = HardState {
            term: hard_state.term.max(state.term),
            // Not for anybody in a term of which only the state tells.
            vote: if hard_state.term < state.term { 0 } else { hard_state.vote },
            commit: hard_state.commit.max(state.index),
        };
        let entries = convert::to_core_entries(stored.first, entries.iter().cloned());
        let core_state = convert::to_core_hard_state(hard_state);
        let log = Log::restored(core_state, (state.index, state.term), &voting, entries);
        Some(Self { roster, voting, machine: Some(machine), log })
    }
}
