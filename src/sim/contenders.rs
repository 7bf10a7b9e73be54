//! Contenders for locks: each wishes, waits in the queue, writes under its token when it begins and again when it ends,
//! looks at the queue in between, and lets go. They trust a grant no longer than their lease has run by their own
//! clock since they sent what was acknowledged last.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;

use super::calls::{Ask, Calls, Done};
use super::checker::locks::{Queue, Section, Wish};
use super::invariants::Violation;
use super::world::{Alarm, MAX_WAIT, World};
use crate::id::{FencingToken, NodeId, PartitionId, SessionId, Version};
use crate::state_machine::{
    Answer, Claim, LockMode, LockView, Operation, Origin, PlaceState, Query, Reply, Watch,
};
use crate::time::Timestamp;

/// Contenders, two to each lock.
const CONTENDERS: usize = 4;
pub(super) const LOCKS: usize = 2;
const LEASE: Duration = Duration::from_millis(1500);
/// What a holder trusts of its lease: clocks run at different rates.
const TRUST: f64 = 0.9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    Acquire,
    Wait,
    Enter,
    Look,
    Leave,
    Release,
}

#[derive(Debug)]
struct Contender {
    lock: Vec<u8>,
    guarded: Vec<u8>,
    session: SessionId,
    /// Renewals have one of their own: they are under way beside everything else.
    renewing: SessionId,
    sequences: BTreeMap<(bool, PartitionId), u64>,
    wish: Wish,
    anchor: Option<NodeId>,
    step: Step,
    began: Timestamp,
    asked: Timestamp,
    /// When the last request was sent that kept its place and was acknowledged.
    kept: Timestamp,
    section: Option<Section>,
    lost: bool,
}

/// All of them, and what they saw.
#[derive(Debug)]
pub(super) struct Contenders {
    all: Vec<Contender>,
    by_call: BTreeMap<u64, (usize, bool, Timestamp)>,
    pub(super) sections: Vec<Section>,
    is_closing: bool,
    pub(super) completed: u64,
}

impl Contenders {
    pub(super) fn new(world: &mut World, nodes: &[NodeId]) -> Self {
        let mut all = Vec::new();
        for number in 0..CONTENDERS {
            let lock = number % LOCKS;
            let process = u32::try_from(number).unwrap_or(u32::MAX);
            all.push(Contender {
                lock: format!("lock{lock}").into_bytes(),
                guarded: format!("guarded{lock}").into_bytes(),
                session: SessionId(world.rng.random()),
                renewing: SessionId(world.rng.random()),
                sequences: BTreeMap::new(),
                wish: Wish { process, lane: u32::try_from(lock).unwrap_or(0), number: 0 },
                anchor: (number == 0).then(|| nodes.first().copied()).flatten(),
                step: Step::Idle,
                began: Timestamp::ZERO,
                asked: Timestamp::ZERO,
                kept: Timestamp::ZERO,
                section: None,
                lost: false,
            });
            world.alarm(Duration::from_millis(5), Alarm::Contender(number));
            world.alarm(LEASE / 3, Alarm::Renew(number));
        }
        Self { all, by_call: BTreeMap::new(), sections: Vec::new(), is_closing: false, completed: 0 }
    }

    /// Nothing new is begun.
    pub(super) fn close(&mut self) {
        self.is_closing = true;
    }

    pub(super) fn owns(&self, call: u64) -> bool {
        self.by_call.contains_key(&call)
    }

    /// The sections under one lock.
    pub(super) fn sections_of(&self, lock: usize) -> Vec<Section> {
        let of_it = self.sections.iter().filter(|section| section.wish.lane as usize == lock);
        of_it.cloned().collect()
    }

    fn begin(
        &mut self,
        world: &mut World,
        calls: &mut Calls,
        index: usize,
        is_renewal: bool,
        what: Result<Operation, Ask>,
    ) {
        let contender = &mut self.all[index];
        let key = match &what {
            Ok(operation) | Err(Ask::Write(operation, _)) => operation.key().unwrap_or_default(),
            Err(Ask::Read(query)) => query.key().unwrap_or_default(),
            Err(Ask::Wait(watch, _)) => watch.key(),
        };
        let partition = world.partition_of(key);
        let ask = match what {
            Ok(operation) => {
                let session = if is_renewal { contender.renewing } else { contender.session };
                let next = contender.sequences.entry((is_renewal, partition)).or_default();
                let sequence = *next;
                *next += 1;
                Ask::Write(operation, Origin { session, sequence, settled_below: sequence })
            }
            Err(ask) => ask,
        };
        let call = calls.begin(world, partition, ask, contender.anchor);
        self.by_call.insert(call, (index, is_renewal, world.now));
    }

    fn claim(&self, index: usize) -> Claim {
        let contender = &self.all[index];
        Claim { session: contender.session, number: u64::from(contender.wish.number) }
    }

    /// A contender has thought, or has worked under its lock for a while.
    pub(super) fn act(&mut self, world: &mut World, calls: &mut Calls, index: usize) {
        let claim = self.claim(index);
        let contender = &mut self.all[index];
        let name = contender.lock.clone();
        match contender.step {
            Step::Idle if !self.is_closing => {
                contender.step = Step::Acquire;
                contender.asked = world.now;
                contender.kept = world.now;
                contender.lost = false;
                let note = contender.wish.note();
                let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
                let mode = LockMode::Exclusive;
                let acquire = Operation::Acquire { name, claim, mode, lease_ms, wait: true, note };
                self.begin(world, calls, index, false, Ok(acquire));
            }
            Step::Look => {
                let look = Ask::Read(Query::Lock { name });
                self.begin(world, calls, index, false, Err(look));
            }
            Step::Leave => self.write(world, calls, index),
            _ => {}
        }
    }

    /// The first or last write of a section.
    fn write(&mut self, world: &mut World, calls: &mut Calls, index: usize) {
        let contender = &mut self.all[index];
        let Some(section) = &contender.section else { return };
        let (key, value) = (contender.guarded.clone(), contender.wish.note());
        let put = Operation::PutFenced { key, value, ttl_ms: None, token: section.token };
        contender.began = world.now;
        self.begin(world, calls, index, false, Ok(put));
    }

    /// Time to renew, if there is anything to keep.
    pub(super) fn renew(&mut self, world: &mut World, calls: &mut Calls, index: usize) {
        world.alarm(LEASE / 3, Alarm::Renew(index));
        let claim = self.claim(index);
        let contender = &self.all[index];
        let under_way = self.by_call.values().any(|(owner, is_renewal, _)| *owner == index && *is_renewal);
        if under_way || matches!(contender.step, Step::Idle | Step::Acquire | Step::Release) {
            return;
        }
        let (name, session) = (contender.lock.clone(), contender.session);
        let renew = Operation::Renew { name, session, numbers: vec![claim.number] };
        self.begin(world, calls, index, true, Ok(renew));
    }

    /// A call of one of them is over.
    pub(super) fn done(&mut self, world: &mut World, calls: &mut Calls, call: u64, done: Done) {
        let Some((index, is_renewal, sent)) = self.by_call.remove(&call) else { return };
        self.completed += u64::from(!matches!(done, Done::Failed | Done::Unknown));
        self.notice_loss(world, index);
        if is_renewal {
            return self.renewed(index, sent, &done);
        }
        match self.all[index].step {
            Step::Acquire | Step::Wait => self.heard_of_place(world, calls, index, sent, &done),
            Step::Enter | Step::Leave => self.written(world, calls, index, &done),
            Step::Look => {
                if let Done::Answer(Answer::Lock(Some(view))) = done {
                    self.seen(world, index, &view);
                }
                self.all[index].step = Step::Leave;
                let work = world.ms(1, 40);
                world.alarm(work, Alarm::Contender(index));
            }
            Step::Release => self.rest(world, index),
            Step::Idle => {}
        }
    }

    /// By its own clock the lease may be over.
    fn notice_loss(&mut self, world: &World, index: usize) {
        let contender = &mut self.all[index];
        contender.lost |= world.now.since(contender.kept) >= LEASE.mul_f64(TRUST);
    }

    fn renewed(&mut self, index: usize, sent: Timestamp, done: &Done) {
        let number = u64::from(self.all[index].wish.number);
        let contender = &mut self.all[index];
        if let Done::Reply(Reply::Renewed { alive }) = done {
            if alive.iter().any(|(alive, _)| *alive == number) {
                contender.kept = contender.kept.max(sent);
            } else {
                contender.lost = true;
            }
        }
    }

    fn heard_of_place(
        &mut self,
        world: &mut World,
        calls: &mut Calls,
        index: usize,
        sent: Timestamp,
        done: &Done,
    ) {
        let is_first = self.all[index].step == Step::Acquire;
        match done {
            Done::Reply(Reply::Granted { token } | Reply::AlreadyHeld { token })
            | Done::Answer(Answer::Place(PlaceState::Held { token })) => {
                self.granted(world, calls, index, *token);
            }
            Done::Reply(Reply::Queued { .. }) => {
                self.all[index].kept = sent;
                self.wait(world, calls, index);
            }
            Done::Answer(Answer::Place(PlaceState::Gone)) => {
                self.check_excuse(world, index);
                self.release(world, calls, index);
            }
            _ if is_first => self.release(world, calls, index),
            // Unchanged, or there was nobody to ask.
            _ if self.all[index].lost => self.release(world, calls, index),
            _ => self.wait(world, calls, index),
        }
    }

    /// A place is not lost while its lease runs.
    fn check_excuse(&self, world: &mut World, index: usize) {
        let contender = &self.all[index];
        let kept = world.now.since(contender.kept);
        if !contender.lost && kept < LEASE.mul_f64(TRUST) {
            let what = format!("{:?} lost its place {kept:?} into a lease of {LEASE:?}", contender.wish);
            world.violate(Violation::new("leases are kept", what));
        }
    }

    fn wait(&mut self, world: &mut World, calls: &mut Calls, index: usize) {
        let claim = self.claim(index);
        let contender = &mut self.all[index];
        contender.step = Step::Wait;
        let watch = Watch::Place { name: contender.lock.clone(), claim };
        self.begin(world, calls, index, false, Err(Ask::Wait(watch, MAX_WAIT)));
    }

    fn granted(&mut self, world: &mut World, calls: &mut Calls, index: usize, token: FencingToken) {
        let contender = &mut self.all[index];
        contender.section = Some(Section {
            wish: contender.wish,
            token,
            asked: since_start(contender.asked),
            granted: since_start(world.now),
            released: Duration::ZERO,
            entered: None,
            left: None,
            wrote_within: Duration::ZERO,
            queue: None,
            fenced: false,
            lost: false,
        });
        contender.step = Step::Enter;
        self.write(world, calls, index);
    }

    fn written(&mut self, world: &mut World, calls: &mut Calls, index: usize, done: &Done) {
        let contender = &mut self.all[index];
        let is_first = contender.step == Step::Enter;
        let Some(section) = &mut contender.section else { return };
        match done {
            Done::Reply(Reply::Written { version }) if is_first => {
                section.entered = Some(*version);
                contender.step = Step::Look;
                let work = world.ms(1, 40);
                return world.alarm(work, Alarm::Contender(index));
            }
            Done::Reply(Reply::Written { version }) => {
                section.left = Some(*version);
                section.wrote_within = world.now.since(contender.began);
            }
            Done::Reply(Reply::Fenced { .. }) => section.fenced = true,
            _ => {}
        }
        self.release(world, calls, index);
    }

    /// What it sees of the queue, if it holds the lock.
    fn seen(&mut self, world: &World, index: usize, view: &LockView) {
        let claim = self.claim(index);
        let contender = &mut self.all[index];
        let Some(section) = &mut contender.section else { return };
        if let Some(me) = view.holders.iter().find(|holder| holder.claim == claim) {
            let waiters = view.waiters.iter();
            let waiters = waiters.filter_map(|place| Some((place.arrival, Wish::of(&place.note)?)));
            let (holder, waiters): (Version, _) = (me.arrival, waiters.collect());
            section.queue = Some(Queue { at: since_start(world.now), holder, waiters });
        }
    }

    fn release(&mut self, world: &mut World, calls: &mut Calls, index: usize) {
        let claim = self.claim(index);
        let contender = &mut self.all[index];
        contender.step = Step::Release;
        if let Some(mut section) = contender.section.take() {
            section.released = since_start(world.now);
            section.lost = contender.lost;
            self.sections.push(section);
        }
        let name = contender.lock.clone();
        self.begin(world, calls, index, false, Ok(Operation::Release { name, claim }));
    }

    fn rest(&mut self, world: &mut World, index: usize) {
        let contender = &mut self.all[index];
        contender.step = Step::Idle;
        // A wish is never repeated: it may have lost its place.
        contender.wish.number += 1;
        let think = world.ms(1, 120);
        world.alarm(think, Alarm::Contender(index));
    }
}

fn since_start(moment: Timestamp) -> Duration {
    Duration::from_micros(moment.as_micros())
}
