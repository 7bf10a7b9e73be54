//! The one task of a client that renews all the locks it holds and all the places where it waits.
//!
//! When a third of the lease of a claim is over, one message to the node that leads its partition renews all the
//! claims that this node knows, partition by partition; the answer says which are alive. A holder's claim is
//! trusted for its lease, less a margin for clocks that run at different rates, after the moment before the last
//! request that was answered left. When that is over the claim is lost, for good: a renewal that is answered later
//! does not bring it back, because its holder may have been told.
//!
//! A waiter trusts in nothing yet: it is asked for until the partition says that its place is gone, so that nobody
//! loses a place only because nobody could be asked. What is granted to it counts once a request that was sent
//! less than a lease ago was answered.
//!
//! The tasks are in a [`JoinSet`] that goes away with the last clone of the client, and they with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{CLOCK_SLICE, Tenure};
use crate::client::call::{Action, Call, Outcome, unexpected};
use crate::client::outbox::Outbox;
use crate::client::router::partition_of;
use crate::client::{Client, DEFAULT_PATIENCE, Error, Shared, lock};
use crate::id::{FencingToken, NodeId, PartitionId};
use crate::state_machine::{MAX_RENEWED, Operation, Reply};
use crate::time::Timestamp;
use crate::wire::{Consistency, Rpc};

/// A renewal that failed is tried again after this part of the lease.
const RETRY_SHARE: u32 = 10;
/// A lease is renewed when this part of it is over.
const RENEW_SHARE: u32 = 3;
/// When half of the time until its next renewal is over, it travels with others that are due: so those that were
/// taken at different times are soon renewed at the same time.
const EARLY_SHARE: u32 = 2;
/// Least time for one renewal, and for one attempt of it.
const MIN_DEADLINE: Duration = Duration::from_millis(50);
/// The part of the time for a renewal that its first attempt may take: a node that fell silent must not eat it all.
const ATTEMPT_SHARE: u32 = 3;
/// Longest first attempt.
const MAX_ATTEMPT: Duration = Duration::from_secs(1);
/// The part of a lease that is not relied on, for clocks that run at different rates.
const MARGIN_SHARE: u32 = 10;
/// And at least so much of it, for the granularity of timers.
const MIN_MARGIN: Duration = Duration::from_millis(10);

/// What the holder of a claim may believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) struct Trust {
    /// Of the grant, if it holds.
    pub(super) token: Option<FencingToken>,
    /// Until then, by the client's clock, if it holds; a waiter is not lost when this is over.
    pub(super) until: Timestamp,
    /// No longer, whatever the clock says.
    pub(super) lost: bool,
}

impl Trust {
    /// Whether it holds or waits, as far as is known.
    pub(super) fn is_alive(&self, now: Timestamp) -> bool {
        !self.lost && (self.token.is_none() || now < self.until)
    }
}

/// A claim that is renewed.
#[derive(Debug)]
struct Kept {
    name: Vec<u8>,
    lease: Duration,
    /// When it is renewed next.
    next: Timestamp,
}

#[derive(Debug, Default)]
struct Book {
    next_number: u64,
    kept: BTreeMap<u64, Kept>,
    trust: BTreeMap<u64, watch::Sender<Trust>>,
    /// When the renewals are looked at next; never, while nothing is kept.
    wake: Timestamp,
    renewing: bool,
    tasks: JoinSet<()>,
    runtime: Option<Handle>,
}

/// Keeps what a client holds.
#[derive(Debug, Default)]
pub(in crate::client) struct Keeper {
    book: Mutex<Book>,
    /// There is something new to keep.
    news: Arc<Notify>,
}

impl Keeper {
    /// A number for a new claim, and where to learn how it is.
    pub(super) fn begin(&self) -> (u64, watch::Receiver<Trust>) {
        let mut book = lock(&self.book);
        let number = book.next_number;
        book.next_number += 1;
        let (sender, receiver) = watch::channel(Trust { token: None, until: Timestamp::NEVER, lost: false });
        book.trust.insert(number, sender);
        (number, receiver)
    }

    /// The partition knows the claim since a request that was sent at `sent`: from now on it is renewed. Whether
    /// it holds the lock by now; a grant that was told too late to be relied on is asked for again.
    pub(super) fn keep<R: Rpc>(
        &self,
        tenure: &Tenure<R>,
        sent: Timestamp,
        token: Option<FencingToken>,
        now: Timestamp,
    ) -> bool {
        let number = tenure.claim.number;
        let until = trusted_until(sent, tenure.lease);
        let token = token.filter(|_| now < until);
        let mut book = lock(&self.book);
        let Book { kept, trust, .. } = &mut *book;
        let Some(trust) = trust.get(&number) else { return false };
        trust.send_modify(|trust| {
            trust.until = until;
            trust.token = token;
        });
        let next = sent + tenure.lease / RENEW_SHARE;
        kept.insert(number, Kept { name: tenure.name.clone(), lease: tenure.lease, next });
        // Most locks are given back long before: they are not worth a look each.
        let is_news = next < book.wake;
        if !book.renewing {
            book.renewing = true;
            let renewer = renew(Arc::downgrade(&tenure.client.shared), Arc::clone(&self.news));
            book.tasks.spawn(renewer);
        }
        book.runtime = Handle::try_current().ok();
        drop(book);
        if is_news {
            self.news.notify_one();
        }
        token.is_some()
    }

    /// A waiter was told that it holds the lock; whether it can rely on that. If not, that is asked for at once.
    pub(super) fn granted(&self, number: u64, token: FencingToken, now: Timestamp) -> bool {
        let mut book = lock(&self.book);
        let Book { kept, trust, .. } = &mut *book;
        let Some(trust) = trust.get(&number) else { return false };
        let trusted = now < trust.borrow().until;
        if trusted {
            trust.send_modify(|trust| trust.token = Some(token));
        } else if let Some(one) = kept.get_mut(&number) {
            one.next = now;
            self.news.notify_one();
        }
        trusted
    }

    /// The claim is no longer wanted.
    pub(super) fn forget(&self, number: u64) {
        let mut book = lock(&self.book);
        book.kept.remove(&number);
        book.trust.remove(&number);
    }

    /// Writes in the background, if there is a runtime; what comes of it nobody learns.
    pub(super) fn write_later<R: Rpc>(&self, client: Client<R>, operation: Operation) {
        let mut book = lock(&self.book);
        while book.tasks.try_join_next().is_some() {}
        let Some(runtime) = Handle::try_current().ok().or_else(|| book.runtime.clone()) else {
            return;
        };
        let write = async move {
            // The lease ends by itself if this fails.
            if let Err(error) = client.write(operation).await {
                tracing::debug!(%error, "a lock was not released");
            }
        };
        book.tasks.spawn_on(write, &runtime);
    }

    /// What is to be renewed now, in requests; and how long there is nothing to look at, unless for ever.
    fn plan(
        &self,
        now: Timestamp,
        under_way: &BTreeSet<PartitionId>,
        place: impl Fn(&[u8]) -> (PartitionId, Option<NodeId>),
    ) -> (Vec<Batch>, Option<Duration>) {
        let mut book = lock(&self.book);
        let Book { kept, trust, .. } = &mut *book;
        // Whose trust is over is lost, before anything else is said of it.
        kept.retain(|number, _| {
            trust.get(number).is_some_and(|trust| {
                let over = !trust.borrow().is_alive(now);
                if over {
                    trust.send_modify(|trust| trust.lost = true);
                }
                !over
            })
        });
        let mut due = BTreeSet::new();
        let mut soon = BTreeMap::new();
        let mut wake = Timestamp::NEVER;
        for (number, one) in &*kept {
            let (partition, leader) = place(&one.name);
            if !under_way.contains(&partition) {
                if one.next <= now {
                    due.insert(leader);
                } else {
                    wake = wake.min(one.next);
                }
                if one.next - one.lease / RENEW_SHARE / EARLY_SHARE <= now {
                    soon.insert(partition, leader);
                }
            }
            if let Some(trust) = trust.get(number).map(|trust| *trust.borrow())
                && trust.token.is_some()
            {
                wake = wake.min(trust.until);
            }
        }
        soon.retain(|_, leader| due.contains(leader));
        let mut batches: BTreeMap<PartitionId, Vec<Batch>> = BTreeMap::new();
        for (number, one) in kept {
            let (partition, _) = place(&one.name);
            if !soon.contains_key(&partition) {
                continue;
            }
            let batches = batches.entry(partition).or_default();
            match batches.last_mut() {
                Some(batch) if batch.numbers.len() < MAX_RENEWED => {
                    batch.numbers.push(*number);
                    batch.lease = batch.lease.min(one.lease);
                }
                _ => batches.push(Batch {
                    partition,
                    name: one.name.clone(),
                    numbers: vec![*number],
                    lease: one.lease,
                }),
            }
        }
        let pause = (wake < Timestamp::NEVER).then(|| wake.since(now).min(CLOCK_SLICE));
        book.wake = pause.map_or(Timestamp::NEVER, |pause| now + pause);
        (batches.into_values().flatten().collect(), pause)
    }

    /// Takes the answer to a renewal that was sent at `sent`.
    fn renewed(&self, batch: &Batch, sent: Timestamp, answer: Result<Reply, Error>, now: Timestamp) {
        let mut book = lock(&self.book);
        let Book { kept, trust, .. } = &mut *book;
        let alive: Option<BTreeMap<u64, Option<FencingToken>>> = match answer {
            Ok(Reply::Renewed { alive }) => Some(alive.into_iter().collect()),
            _ => None,
        };
        for number in &batch.numbers {
            let (Some(one), Some(trust)) = (kept.get_mut(number), trust.get(number)) else {
                continue;
            };
            let Some(alive) = &alive else {
                one.next = now + one.lease / RETRY_SHARE;
                continue;
            };
            let known = *trust.borrow();
            match alive.get(number) {
                Some(token) if known.is_alive(now) => {
                    one.next = sent + one.lease / RENEW_SHARE;
                    let until = trusted_until(sent, one.lease).max(known.until);
                    trust.send_modify(|trust| {
                        trust.until = until;
                        trust.token = trust.token.or(token.filter(|_| now < until));
                    });
                }
                _ => {
                    trust.send_modify(|trust| trust.lost = true);
                    kept.remove(number);
                }
            }
        }
    }
}

/// One renewal.
#[derive(Debug)]
struct Batch {
    partition: PartitionId,
    /// Any of the locks.
    name: Vec<u8>,
    numbers: Vec<u64>,
    /// The shortest.
    lease: Duration,
}

fn trusted_until(sent: Timestamp, lease: Duration) -> Timestamp {
    sent + lease.saturating_sub((lease / MARGIN_SHARE).max(MIN_MARGIN))
}

async fn renew<R: Rpc>(shared: Weak<Shared<R>>, news: Arc<Notify>) {
    let outbox = Arc::new(Outbox::default());
    let mut under_way: BTreeMap<PartitionId, usize> = BTreeMap::new();
    let mut renewals: FuturesUnordered<BoxFuture<'static, PartitionId>> = FuturesUnordered::new();
    let mut deliveries: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        let pause = {
            let Some(shared) = shared.upgrade() else { return };
            let view = shared.router.cached();
            let place = |name: &[u8]| {
                let partition = view.as_ref().map_or(PartitionId(0), |view| partition_of(name, view));
                (partition, shared.router.leader(partition))
            };
            let busy: BTreeSet<PartitionId> = under_way.keys().copied().collect();
            let (batches, pause) = shared.keeper.plan((shared.clock)(), &busy, place);
            for batch in batches {
                *under_way.entry(batch.partition).or_default() += 1;
                renewals.push(Box::pin(renew_batch(Arc::clone(&shared), Arc::clone(&outbox), batch)));
            }
            pause
        };
        tokio::select! {
            // All that is to be sent is in the outbox before that is emptied.
            biased;
            () = news.notified() => {}
            Some(partition) = renewals.next() => {
                if let Some(count) = under_way.get_mut(&partition) {
                    *count -= 1;
                    if *count == 0 {
                        under_way.remove(&partition);
                    }
                }
            }
            () = outbox.filled() => {
                let Some(shared) = shared.upgrade() else { return };
                for bundle in outbox.take() {
                    deliveries.push(Box::pin(bundle.deliver(shared.router.rpc.clone())));
                }
            }
            Some(()) = deliveries.next() => {}
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

async fn renew_batch<R: Rpc>(shared: Arc<Shared<R>>, outbox: Arc<Outbox>, batch: Batch) -> PartitionId {
    let client = Client {
        deadline: (batch.lease / RENEW_SHARE).max(MIN_DEADLINE),
        patience: DEFAULT_PATIENCE,
        consistency: Consistency::default(),
        shared,
    };
    let operation = Operation::Renew {
        name: batch.name.clone(),
        session: client.shared.session.id(),
        numbers: batch.numbers.clone(),
    };
    let attempt_timeout = (client.deadline / ATTEMPT_SHARE).clamp(MIN_DEADLINE, MAX_ATTEMPT);
    let sent = client.now();
    let call = Call::new(&client, Action::Write(operation)).through(&outbox, attempt_timeout);
    let answer = match call.run().await {
        Ok(Outcome::Reply(reply)) => Ok(reply),
        Ok(_) => Err(unexpected()),
        Err(error) => Err(error),
    };
    client.shared.keeper.renewed(&batch, sent, answer, client.now());
    batch.partition
}
