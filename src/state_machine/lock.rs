//! The locks of one partition: who holds which, who waits, and until when each is believed.
//!
//! **Guarantee.** At each index of the log the holders of a name are compatible: one exclusive holder, or shared
//! ones, or no more than a semaphore has permits. Whoever waits is served in the order of arrival: a request that
//! would fit the holders still waits behind an earlier one that does not, so writers are not starved by readers.
//! Tokens strictly grow over all grants of the partition, whatever ended the grant before.
//!
//! **Leases** are in partition time, which stands still without a leader and never runs ahead of the clock of
//! the one who stamps it: a lease that was granted or renewed by a request ends no earlier than its length after
//! the request was sent. A waiter has a lease as well, and leaves the queue when it is over; with its grant, a
//! new one begins. A holder may therefore trust its lock for the length of its lease after it *sent* the last
//! request that was acknowledged, be that as a waiter or as a holder.
//!
//! **Why a lease alone does not exclude** and what the tokens are for: Kleppmann, *How to do distributed
//! locking* (2016). Leases: Gray and Cheriton (1989).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::command::{LimitError, PartitionTime, Reply, at_most};
use super::query::{Answer, KeyBytes};
use crate::id::{FencingToken, SessionId, Version};
use crate::mutation::{Mutation, planted};

/// Shortest lease, in milliseconds: below it, a renewal that was lost once is the end of the lock.
pub const MIN_LEASE_MS: u64 = 100;
/// Longest lease, in milliseconds: nobody wants to wait longer for a holder that crashed.
pub const MAX_LEASE_MS: u64 = 60 * 60 * 1000;
/// Longest note of a holder or waiter, in bytes.
pub const MAX_NOTE_BYTES: usize = 1024;
/// Holders of one name.
pub const MAX_HOLDERS: u32 = 4096;
/// Waiters of one name.
pub const MAX_WAITERS: usize = 4096;
/// Holders and waiters of one partition.
pub const MAX_PLACES: usize = 65_536;
/// Places that one renewal may cover.
pub const MAX_RENEWED: usize = 1024;
/// Most locks in one page of [`Query::Locks`](super::Query::Locks).
pub const MAX_LISTED: u32 = 100;
/// A page of locks ends with the lock that brings it to so many holders and waiters.
const MAX_LISTED_PLACES: usize = 1000;

/// One wish of a client for one lock, from asking to release. A claim is never used for another name or again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The client's session.
    pub session: SessionId,
    /// Its number in the session.
    pub number: u64,
}

/// With whom a lock can be held at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockMode {
    /// Alone.
    Exclusive,
    /// With others that are shared.
    Shared,
    /// With others that hold a permit, so many in all. If requests name different numbers, the smallest counts.
    Permit {
        /// Number of permits; 1 to [`MAX_HOLDERS`].
        of: u32,
    },
}

impl LockMode {
    pub(super) fn check(self) -> Result<(), LimitError> {
        match self {
            Self::Permit { of } if of == 0 || of > MAX_HOLDERS => Err(LimitError::Permits),
            _ => Ok(()),
        }
    }
}

pub(super) fn check_lease(lease_ms: u64) -> Result<(), LimitError> {
    if (MIN_LEASE_MS..=MAX_LEASE_MS).contains(&lease_ms) { Ok(()) } else { Err(LimitError::Lease) }
}

pub(super) fn check_note(note: &[u8]) -> Result<(), LimitError> {
    at_most("note", note, MAX_NOTE_BYTES)
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) name: Vec<u8>,
    pub(super) claim: Claim,
    pub(super) mode: LockMode,
    pub(super) lease_ms: u64,
    pub(super) note: Vec<u8>,
}

/// How a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlaceState {
    /// It holds the lock.
    Held {
        /// Of its grant.
        token: FencingToken,
    },
    /// It waits.
    Waiting {
        /// Holders and waiters before it.
        ahead: u32,
    },
    /// It neither holds nor waits: released, expired, or never here.
    Gone,
}

/// A lock as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// Changes with every change of the holders or of their notes.
    pub version: Version,
    /// In the order of their grants.
    pub holders: Vec<PlaceView>,
    /// In the order in which they will be served.
    pub waiters: Vec<PlaceView>,
}

/// A holder or waiter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceView {
    /// Whose.
    pub claim: Claim,
    /// How it holds or wants the lock.
    pub mode: LockMode,
    /// Its place in the order of those who asked: the log index at which it did. Who has a lower one is served
    /// first.
    pub arrival: Version,
    /// Of its grant, if it holds.
    pub token: Option<FencingToken>,
    /// Milliseconds until its lease is over, by the partition's time when this was read.
    pub lease_ms: u64,
    /// What it says of itself.
    #[serde(with = "crate::codec::bytes")]
    pub note: Vec<u8>,
}

/// A holder or waiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: Vec<u8>,
    pub(super) mode: LockMode,
    pub(super) lease_ms: u64,
    /// It is gone as soon as the partition's time is at least this.
    pub(super) expiry: PartitionTime,
    pub(super) note: Vec<u8>,
    /// Log index at which it was asked for: its place in the queue.
    pub(super) arrival: Version,
    /// Of its grant; `None`: it waits.
    pub(super) token: Option<FencingToken>,
}

impl Place {
    fn bytes(&self) -> usize {
        self.name.len() + self.note.len()
    }

    fn view(&self, claim: Claim, now: PartitionTime) -> PlaceView {
        PlaceView {
            claim,
            mode: self.mode,
            arrival: self.arrival,
            token: self.token,
            lease_ms: self.expiry.0.saturating_sub(now.0),
            note: self.note.clone(),
        }
    }
}

/// Who holds one name, and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lock {
    /// Log index of the last change of holders or of their notes.
    changed: Version,
    holders: BTreeSet<(FencingToken, Claim)>,
    waiters: BTreeSet<(Version, Claim)>,
}

impl Lock {
    fn new(changed: Version) -> Self {
        Self { changed, holders: BTreeSet::new(), waiters: BTreeSet::new() }
    }
}

/// The locks of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Locks {
    // Invariant: each lock has a holder; without holders, nobody would have to wait.
    by_name: BTreeMap<Vec<u8>, Lock>,
    // Invariant: (t, c) is among the holders of locks[n] exactly when places[c] has the name n and the token t;
    // (a, c) is among the waiters exactly when places[c] has the name n, the arrival a, and no token.
    places: BTreeMap<Claim, Place>,
    // Invariant: (t, c) is in `due` exactly when places[c].expiry == t.
    due: BTreeSet<(PartitionTime, Claim)>,
    // Invariant: bytes == sum over places of name.len() + note.len().
    bytes: usize,
    /// The highest token ever granted.
    last_token: FencingToken,
}

impl Locks {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Holders and waiters.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn last_token(&self) -> FencingToken {
        self.last_token
    }

    /// When the next lease is over.
    pub(super) fn next_due(&self) -> Option<PartitionTime> {
        self.due.first().map(|(due, _)| *due)
    }

    pub(super) fn acquire(&mut self, wish: Wish, wait: bool, index: Version, now: PartitionTime) -> Reply {
        let Wish { name, claim, mode, lease_ms, note } = wish;
        if let Some(place) = self.places.get(&claim) {
            return match place.token {
                Some(token) => Reply::AlreadyHeld { token },
                None => Reply::Queued { ahead: self.ahead(claim) },
            };
        }
        let lock = self.by_name.get(&name);
        let waiters = lock.map_or(0, |lock| lock.waiters.len());
        let at_once = waiters == 0 && lock.is_none_or(|lock| self.admits(lock, mode));
        if !at_once && !wait {
            let ahead = lock.map_or(0, |lock| lock.holders.len() + waiters);
            return Reply::NotAcquired { ahead: count(ahead) };
        }
        if self.places.len() >= MAX_PLACES || (!at_once && waiters >= MAX_WAITERS) {
            return Reply::TooManyLocks;
        }
        let expiry = after(now, lease_ms);
        let place = Place { name: name.clone(), mode, lease_ms, expiry, note, arrival: index, token: None };
        self.insert(claim, place);
        self.by_name.entry(name.clone()).or_insert_with(|| Lock::new(index)).waiters.insert((index, claim));
        self.serve(&name, index, now);
        match self.places.get(&claim).and_then(|place| place.token) {
            Some(token) => Reply::Granted { token },
            None => Reply::Queued { ahead: self.ahead(claim) },
        }
    }

    /// Gives the leases of these claims their full length again.
    pub(super) fn renew(&mut self, session: SessionId, numbers: &[u64], now: PartitionTime) -> Reply {
        let mut alive = Vec::new();
        for number in numbers {
            let claim = Claim { session, number: *number };
            if let Some(place) = self.places.get_mut(&claim) {
                let expiry = after(now, place.lease_ms);
                self.due.remove(&(place.expiry, claim));
                self.due.insert((expiry, claim));
                place.expiry = expiry;
                alive.push((*number, place.token));
            }
        }
        Reply::Renewed { alive }
    }

    pub(super) fn release(&mut self, name: &[u8], claim: Claim, index: Version, now: PartitionTime) -> Reply {
        if self.places.get(&claim).is_none_or(|place| place.name != name) {
            return Reply::NotHeld;
        }
        let held = self.remove(claim, index).is_some_and(|place| place.token.is_some());
        self.serve(name, index, now);
        Reply::Released { held }
    }

    /// Changes what a holder says of itself.
    pub(super) fn proclaim(&mut self, name: &[u8], claim: Claim, note: Vec<u8>, index: Version) -> Reply {
        let held = self.places.get_mut(&claim).filter(|place| place.name == name);
        match held.map(|place| (place.token, place)) {
            Some((Some(token), place)) => {
                self.bytes = self.bytes - place.note.len() + note.len();
                place.note = note;
                if let Some(lock) = self.by_name.get_mut(name) {
                    lock.changed = index;
                }
                Reply::Granted { token }
            }
            _ => Reply::NotHeld,
        }
    }

    /// Removes whoever's lease is over at `now`, then serves those who waited for them.
    pub(super) fn expire(&mut self, index: Version, now: PartitionTime) {
        let mut names = BTreeSet::new();
        // All of them first: a waiter that is gone as well must not be served.
        while let Some((due, claim)) = self.due.first().copied()
            && due <= now
        {
            match self.remove(claim, index) {
                Some(place) => names.insert(place.name),
                None => self.due.remove(&(due, claim)),
            };
        }
        for name in names {
            self.serve(&name, index, now);
        }
    }

    fn insert(&mut self, claim: Claim, place: Place) {
        self.bytes += place.bytes();
        self.due.insert((place.expiry, claim));
        self.places.insert(claim, place);
    }

    fn remove(&mut self, claim: Claim, index: Version) -> Option<Place> {
        let place = self.places.remove(&claim)?;
        self.bytes -= place.bytes();
        self.due.remove(&(place.expiry, claim));
        if let Some(lock) = self.by_name.get_mut(&place.name) {
            match place.token {
                Some(token) => {
                    lock.holders.remove(&(token, claim));
                    lock.changed = index;
                }
                None => {
                    lock.waiters.remove(&(place.arrival, claim));
                }
            }
        }
        Some(place)
    }

    /// Grants a name to those who wait for it, from the front, as long as they fit.
    fn serve(&mut self, name: &[u8], index: Version, now: PartitionTime) {
        while let Some(lock) = self.by_name.get(name)
            && let Some((arrival, claim)) = lock.waiters.first().copied()
            && let Some(mode) = self.places.get(&claim).map(|place| place.mode)
            && self.admits(lock, mode)
        {
            let index = if planted(Mutation::TokenRestarts) { Version(0) } else { index };
            let token = FencingToken(index.0.max(self.last_token.0.saturating_add(1)));
            self.last_token = token;
            if let Some(place) = self.places.get_mut(&claim) {
                let expiry = after(now, place.lease_ms);
                self.due.remove(&(place.expiry, claim));
                self.due.insert((expiry, claim));
                place.expiry = expiry;
                place.token = Some(token);
            }
            if let Some(lock) = self.by_name.get_mut(name) {
                lock.waiters.remove(&(arrival, claim));
                lock.holders.insert((token, claim));
                lock.changed = index;
            }
        }
        if self.by_name.get(name).is_some_and(|lock| lock.holders.is_empty() && lock.waiters.is_empty()) {
            self.by_name.remove(name);
        }
    }

    /// Whether the holders leave room for one more of this mode.
    fn admits(&self, lock: &Lock, mode: LockMode) -> bool {
        let mut holders =
            lock.holders.iter().filter_map(|(_, claim)| self.places.get(claim)).map(|place| place.mode);
        let held = lock.holders.len();
        match mode {
            LockMode::Exclusive => held == 0,
            LockMode::Shared => {
                held < MAX_HOLDERS as usize && holders.all(|holder| holder == LockMode::Shared)
            }
            LockMode::Permit { of } => {
                held < of as usize
                    && holders.all(|holder| matches!(holder, LockMode::Permit { of } if held < of as usize))
            }
        }
    }

    /// Holders and waiters before this claim.
    fn ahead(&self, claim: Claim) -> u32 {
        let Some(place) = self.places.get(&claim) else {
            return 0;
        };
        let Some(lock) = self.by_name.get(&place.name) else {
            return 0;
        };
        let waiting = lock.waiters.range(..(place.arrival, claim)).count();
        count(lock.holders.len() + waiting)
    }

    pub(super) fn place_state(&self, claim: Claim) -> PlaceState {
        match self.places.get(&claim).map(|place| place.token) {
            None => PlaceState::Gone,
            Some(Some(token)) => PlaceState::Held { token },
            Some(None) => PlaceState::Waiting { ahead: self.ahead(claim) },
        }
    }

    /// When a name's holders or their notes changed last; `None`: nobody holds it.
    pub(super) fn changed(&self, name: &[u8]) -> Option<Version> {
        self.by_name.get(name).map(|lock| lock.changed)
    }

    pub(super) fn view(&self, name: &[u8], now: PartitionTime) -> Option<LockView> {
        self.by_name.get(name).map(|lock| self.view_of(lock, now))
    }

    fn view_of(&self, lock: &Lock, now: PartitionTime) -> LockView {
        let view = |claim: &Claim| Some(self.places.get(claim)?.view(*claim, now));
        LockView {
            version: lock.changed,
            holders: lock.holders.iter().filter_map(|(_, claim)| view(claim)).collect(),
            waiters: lock.waiters.iter().filter_map(|(_, claim)| view(claim)).collect(),
        }
    }

    /// One page of the locks behind `after`, in the order of their names.
    pub(super) fn page(&self, after: &[u8], limit: u32, now: PartitionTime) -> Answer {
        use std::ops::Bound;
        let start = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let mut rest = self.by_name.range::<[u8], _>((start, Bound::Unbounded)).peekable();
        let mut locks = Vec::new();
        let mut places = 0;
        while locks.len() < limit.min(MAX_LISTED) as usize
            && places < MAX_LISTED_PLACES
            && let Some((name, lock)) = rest.next()
        {
            places += lock.holders.len() + lock.waiters.len();
            locks.push((KeyBytes::from(name.clone()), self.view_of(lock, now)));
        }
        Answer::Locks { locks, more: rest.peek().is_some() }
    }

    // -- snapshots --

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Claim, &Place)> {
        self.places.iter()
    }

    pub(super) fn versions(&self) -> impl Iterator<Item = (&Vec<u8>, Version)> {
        self.by_name.iter().map(|(name, lock)| (name, lock.changed))
    }

    pub(super) fn restore_last_token(&mut self, token: FencingToken) {
        self.last_token = if planted(Mutation::TokenRestarts) { FencingToken(0) } else { token };
    }

    /// Puts back a lock from a snapshot, without holders and waiters yet.
    pub(super) fn restore_lock(&mut self, name: Vec<u8>, changed: Version) {
        self.by_name.insert(name, Lock::new(changed));
    }

    /// Puts back a holder or waiter. `false`: it cannot have been there.
    pub(super) fn restore_place(&mut self, claim: Claim, place: Place) -> bool {
        if self.places.contains_key(&claim)
            || (place.token > Some(self.last_token) && !planted(Mutation::TokenRestarts))
        {
            return false;
        }
        let Some(lock) = self.by_name.get_mut(&place.name) else {
            return false;
        };
        match place.token {
            Some(token) => lock.holders.insert((token, claim)),
            None => lock.waiters.insert((place.arrival, claim)),
        };
        self.insert(claim, place);
        true
    }

    /// Whether what was put back can have been: no lock without a holder.
    pub(super) fn is_whole(&self) -> bool {
        self.by_name.values().all(|lock| !lock.holders.is_empty())
    }
}

fn after(now: PartitionTime, ms: u64) -> PartitionTime {
    PartitionTime(now.0.saturating_add(ms))
}

fn count(places: usize) -> u32 {
    u32::try_from(places).unwrap_or(u32::MAX)
}
