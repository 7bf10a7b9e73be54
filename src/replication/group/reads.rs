//! Reads and waits: when the state may be read as it is, and what is asked when it may not.
//!
//! **Rule.** A read is answered from a state that has every write acknowledged before the read began. Either a
//! quorum confirms, *after* the read came, that this replica still leads (a round: Ongaro 6.4), and the state has
//! reached the index committed then; or an earlier round's lease still runs: each follower that answered promised
//! to support nobody else for a while after it was asked, so nobody else can have acknowledged anything. In both
//! cases an entry of the leader's own term must be applied first: before that it does not know what its
//! predecessors had committed.
//!
//! A wait is a read whose answer waits for the next change; it ends with the leadership.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Group, Shared};
use crate::mutation::{Mutation, planted};
use crate::replication::{Outcome, Refusal};
use crate::state_machine::{Query, Watch};
use crate::time::Timestamp;

/// Reads of one group that await a read round.
const MAX_READS: usize = 4096;
/// Waits of one group.
const MAX_WATCHERS: usize = 4096;
/// A read round without an answer is asked again after this time.
const ROUND_RETRY: Duration = Duration::from_millis(100);
/// Attempts of one read round that are still counted.
const MAX_ROUND_ATTEMPTS: usize = 32;
/// The share of the promised time that a leader uses: the rest is for clocks that run at different rates.
const LEASE_SHARE: f64 = 0.8;

/// A linearizable read that awaits a round, or a wait that awaits its first look.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) tag: u64,
    pub(super) ask: Ask,
}

#[derive(Debug)]
pub(super) enum Ask {
    Query(Query),
    Wait(Watch),
    Export,
}

/// A `ReadIndex` round: the reads that joined before it was first asked, and when it was asked.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) attempts: VecDeque<(u64, Timestamp)>,
    pub(super) reads: VecDeque<Read>,
    /// The quorum answered: the reads wait until this index is applied.
    pub(super) confirmed: Option<u64>,
}

impl Group {
    pub(in crate::replication) fn read(&mut self, tag: u64, query: Query, shared: &mut Shared) {
        self.ask(Read { tag, ask: Ask::Query(query) }, shared);
    }

    pub(in crate::replication) fn wait(&mut self, tag: u64, watch: Watch, shared: &mut Shared) {
        shared.waits.insert(tag, self.partition);
        self.ask(Read { tag, ask: Ask::Wait(watch) }, shared);
    }

    pub(in crate::replication) fn export(&mut self, tag: u64, shared: &mut Shared) {
        self.ask(Read { tag, ask: Ask::Export }, shared);
    }

    /// Answers whatever the driver knows without asking anyone.
    pub(in crate::replication) fn read_stale(&self, tag: u64, query: &Query, shared: &mut Shared) {
        if !self.initialised {
            return shared.refuse(tag, Refusal::NoReplica);
        }
        let answer = self.machine.query(query);
        shared.outcome(tag, Outcome::Answer { answer, stale: true });
    }

    /// The caller of a wait no longer waits.
    pub(in crate::replication) fn cancel(&mut self, tag: u64) {
        let Some(lead) = &mut self.lead else {
            return;
        };
        lead.waiting.retain(|read| read.tag != tag);
        if let Some(round) = &mut lead.round {
            round.reads.retain(|read| read.tag != tag);
        }
        let mut gone = 0;
        lead.watchers.retain(|_, waits| {
            let before = waits.len();
            waits.retain(|(wait, _)| *wait != tag);
            gone += before - waits.len();
            !waits.is_empty()
        });
        lead.watcher_count -= gone;
    }

    fn ask(&mut self, read: Read, shared: &mut Shared) {
        if let Some(refusal) = self.refusal(shared) {
            return shared.refuse(read.tag, refusal);
        }
        self.observe(shared);
        let now = shared.now;
        let lease = shared.config.lease;
        if self.holds_lease(now) {
            let early = self.lead.as_ref().is_some_and(|lead| {
                lead.round.is_none() && now + lease.mul_f64(LEASE_SHARE / 3.0) >= lead.lease_until
            });
            if early {
                self.begin_round(shared);
            }
            return self.serve(read, shared);
        }
        let Some(lead) = &mut self.lead else {
            return shared.refuse(read.tag, Refusal::NotLeader { leader: None });
        };
        let queued = lead.waiting.len() + lead.round.as_ref().map_or(0, |round| round.reads.len());
        if queued >= MAX_READS {
            return shared.refuse(read.tag, Refusal::Overloaded);
        }
        lead.waiting.push_back(read);
        self.begin_round(shared);
    }

    /// Whether reads may be served from the state as it is: nobody else can lead, and the state has all that
    /// was ever acknowledged.
    fn holds_lease(&self, now: Timestamp) -> bool {
        self.is_leader()
            && self.raw.store().applied().1 == self.raw.raft.term
            && self.lead.as_ref().is_some_and(|lead| {
                let runs = now < lead.lease_until
                    || (lead.lease_until > Timestamp::ZERO && planted(Mutation::StaleLease));
                !lead.transferred && lead.term == self.raw.raft.term && runs
            })
    }

    /// Asks a quorum whether this replica still leads, unless that is being asked already (reads that came
    /// after the question wait for the next one) or cannot be asked yet.
    fn begin_round(&mut self, shared: &mut Shared) {
        if !self.is_leader() || !self.raw.raft.commit_to_current_term() {
            return;
        }
        let Some(lead) = &mut self.lead else {
            return;
        };
        if lead.round.is_some() {
            return;
        }
        let context = shared.next_id();
        lead.round = Some(Round {
            attempts: VecDeque::from([(context, shared.now)]),
            reads: std::mem::take(&mut lead.waiting),
            confirmed: None,
        });
        self.raw.read_index(context.to_be_bytes().to_vec());
    }

    /// Asks again: the messages of the round may be lost.
    pub(super) fn retry_round(&mut self, shared: &mut Shared) {
        let Some(round) = self.lead.as_mut().and_then(|lead| lead.round.as_mut()) else {
            return;
        };
        let last = round.attempts.back().map_or(Timestamp::ZERO, |(_, asked)| *asked);
        if round.confirmed.is_some() || shared.now.since(last) < ROUND_RETRY {
            return;
        }
        if round.attempts.len() >= MAX_ROUND_ATTEMPTS {
            round.attempts.pop_front();
        }
        let context = shared.next_id();
        round.attempts.push_back((context, shared.now));
        self.raw.read_index(context.to_be_bytes().to_vec());
    }

    pub(super) fn confirm_round(&mut self, context: &[u8], index: u64, shared: &Shared) {
        let lease = shared.config.lease.mul_f64(LEASE_SHARE);
        let Ok(context) = context.try_into().map(u64::from_be_bytes) else {
            return;
        };
        let Some(lead) = &mut self.lead else {
            return;
        };
        let Some(round) = &mut lead.round else {
            return;
        };
        let Some((_, asked)) = round.attempts.iter().find(|(attempt, _)| *attempt == context) else {
            return;
        };
        lead.lease_until = lead.lease_until.max(*asked + lease);
        round.confirmed = Some(round.confirmed.map_or(index, |earlier| earlier.max(index)));
    }

    /// Answers the reads whose round is confirmed and whose index is applied. Whether anything new was asked.
    pub(super) fn finish_round(&mut self, shared: &mut Shared) -> bool {
        let applied = self.applied();
        let Some(lead) = &mut self.lead else {
            return false;
        };
        let confirmed = lead.round.as_ref().and_then(|round| round.confirmed);
        if confirmed.is_some_and(|index| index <= applied) {
            let reads = lead.round.take().map(|round| round.reads).unwrap_or_default();
            for read in reads {
                self.serve(read, shared);
            }
        }
        if self.holds_lease(shared.now) {
            let waiting = self.lead.as_mut().map(|lead| std::mem::take(&mut lead.waiting));
            for read in waiting.unwrap_or_default() {
                self.serve(read, shared);
            }
        }
        let idle = self.lead.as_ref().is_some_and(|lead| lead.round.is_none() && !lead.waiting.is_empty());
        if idle && self.raw.raft.commit_to_current_term() {
            self.begin_round(shared);
            return true;
        }
        false
    }

    /// Answers from the state as it is.
    pub(super) fn serve(&mut self, read: Read, shared: &mut Shared) {
        let tag = read.tag;
        match read.ask {
            Ask::Query(query) => {
                let answer = self.machine.query(&query);
                shared.outcome(tag, Outcome::Answer { answer, stale: false });
            }
            Ask::Export => shared.outcome(tag, Outcome::Export(self.machine.snapshot())),
            Ask::Wait(watch) => {
                if let Some(answer) = self.machine.look(&watch) {
                    return shared.outcome(tag, Outcome::Answer { answer, stale: false });
                }
                match &mut self.lead {
                    Some(lead) if lead.watcher_count < MAX_WATCHERS => {
                        lead.watcher_count += 1;
                        lead.watchers.entry(watch.key().to_vec()).or_default().push((tag, watch));
                    }
                    Some(_) => shared.refuse(tag, Refusal::Overloaded),
                    None => shared.refuse(tag, Refusal::NotLeader { leader: None }),
                }
            }
        }
    }

    /// Answers the waits that are due, of those for the key or lock of this name (`None`: of all).
    pub(super) fn notify(&mut self, key: Option<&[u8]>, shared: &mut Shared) {
        let Some(lead) = &mut self.lead else {
            return;
        };
        let keys: Vec<Vec<u8>> = match key {
            Some(key) if lead.watchers.contains_key(key) => vec![key.to_vec()],
            Some(_) => return,
            None => lead.watchers.keys().cloned().collect(),
        };
        for key in keys {
            let Some(waits) = lead.watchers.get_mut(&key) else {
                continue;
            };
            let before = waits.len();
            waits.retain(|(tag, watch)| match self.machine.look(watch) {
                Some(answer) => {
                    shared.outcome(*tag, Outcome::Answer { answer, stale: false });
                    false
                }
                None => true,
            });
            lead.watcher_count -= before - waits.len();
            if waits.is_empty() {
                lead.watchers.remove(&key);
            }
        }
    }

    pub(super) fn refuse_reads(&mut self, refusal: Refusal, shared: &mut Shared) {
        let Some(lead) = &mut self.lead else {
            return;
        };
        let round = lead.round.take().map(|round| round.reads).unwrap_or_default();
        let waiting = std::mem::take(&mut lead.waiting);
        let watchers = std::mem::take(&mut lead.watchers);
        lead.watcher_count = 0;
        for read in round.into_iter().chain(waiting) {
            shared.refuse(read.tag, refusal);
        }
        for (tag, _) in watchers.into_values().flatten() {
            shared.refuse(tag, refusal);
        }
    }
}
