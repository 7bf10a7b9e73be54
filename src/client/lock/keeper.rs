//! The one task of a client that renews all the locks it holds and all the places where it waits.
//!
//! Each third of a lease, one request for each partition says which claims are still wanted; the answer says
//! which are alive. A claim is trusted for its lease, less a margin for clocks that run at different rates,
//! after the moment before the last request that was answered left. When that is over the claim is lost, for
//! good: a renewal that is answered later does not bring it back, because its holder may have been told.
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
use crate::client::router::partition_of;
use crate::client::{Client, DEFAULT_PATIENCE, Error, Shared, lock};
use crate::id::{FencingToken, PartitionId};
use crate::state_machine::{MAX_RENEWED, Operation, Reply};
use crate::time::Timestamp;
use crate::wire::{Consistency, Rpc};

/// A renewal that failed is tried again after this part of the lease.
const RETRY_SHARE: u32 = 10;
/// A lease is renewed when this part of it is over.
const RENEW_SHARE: u32 = 3;
/// Least time for one renewal.
const MIN_DEADLINE: Duration = Duration::from_millis(50);
/// The part of a lease that is not relied on, for clocks that run at different rates.
const MARGIN_SHARE: u32 = 10;
/// And at least so much of it, for the granularity of timers.
const MIN_MARGIN: Duration = Duration::from_millis(10);

/// What the holder of a claim may believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) struct Trust {
    /// Of the grant, if it holds.
    pub(super) token: Option<FencingToken>,
    /// Until then, by the client's clock.
    pub(super) until: Timestamp,
    /// No longer, whatever the clock says.
    pub(super) lost: bool,
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

    /// The partition knows the claim since a request that was sent at `sent`: from now on it is renewed.
    pub(super) fn keep<R: Rpc>(&self, tenure: &Tenure<R>, sent: Timestamp, token: Option<FencingToken>) {
        let number = tenure.claim.number;
        let mut book = lock(&self.book);
        let Book { kept, trust, .. } = &mut *book;
        let Some(trust) = trust.get(&number) else { return };
        trust.send_modify(|trust| {
            trust.until = trusted_until(sent, tenure.lease);
            trust.token = token;
        });
        let next = sent + tenure.lease / RENEW_SHARE;
        kept.insert(number, Kept { name: tenure.name.clone(), lease: tenure.lease, next });
        if !book.renewing {
            book.renewing = true;
            let renewer = renew(Arc::downgrade(&tenure.client.shared), Arc::clone(&self.news));
            book.tasks.spawn(renewer);
        }
        book.runtime = Handle::try_current().ok();
        drop(book);
        self.news.notify_one();
    }

    /// A waiter was told that it holds the lock.
    pub(super) fn granted(&self, number: u64, token: FencingToken) {
        if let Some(trust) = lock(&self.book).trust.get(&number) {
            trust.send_modify(|trust| trust.token = Some(token));
        }
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

    /// What is to be renewed now, in requests; and how long there is nothing to do, unless for ever.
    fn plan(
        &self,
        now: Timestamp,
        under_way: &BTreeSet<PartitionId>,
        place: impl Fn(&[u8]) -> PartitionId,
    ) -> (Vec<Batch>, Option<Duration>) {
        let mut book = lock(&self.book);
        let Book { kept, trust, .. } = &mut *book;
        // Whose trust is over is lost, before anything else is said of it.
        kept.retain(|number, _| {
            trust.get(number).is_some_and(|trust| {
                let over = now >= trust.borrow().until;
                if over {
                    trust.send_modify(|trust| trust.lost = true);
                }
                !over
            })
        });
        let mut due = BTreeSet::new();
        let mut wake = Timestamp::NEVER;
        for (number, one) in &*kept {
            let partition = place(&one.name);
            if !under_way.contains(&partition) {
                if one.next <= now {
                    due.insert(partition);
                } else {
                    wake = wake.min(one.next);
                }
            }
            if let Some(trust) = trust.get(number) {
                wake = wake.min(trust.borrow().until);
            }
        }
        let mut batches: BTreeMap<PartitionId, Vec<Batch>> = BTreeMap::new();
        for (number, one) in kept {
            let partition = place(&one.name);
            if !due.contains(&partition) {
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
        let pause = (wake < Timestamp::NEVER).then(|| wake.since(now));
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
            let lost = known.lost || now >= known.until;
            match alive.get(number) {
                Some(token) if !lost => {
                    one.next = sent + one.lease / RENEW_SHARE;
                    let until = trusted_until(sent, one.lease).max(known.until);
                    trust.send_modify(|trust| {
                        trust.until = until;
                        trust.token = trust.token.or(*token);
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
    let mut under_way: BTreeMap<PartitionId, usize> = BTreeMap::new();
    let mut renewals: FuturesUnordered<BoxFuture<'static, PartitionId>> = FuturesUnordered::new();
    loop {
        let pause = {
            let Some(shared) = shared.upgrade() else { return };
            let view = shared.router.cached();
            let place = |name: &[u8]| view.as_ref().map_or(PartitionId(0), |view| partition_of(name, view));
            let busy: BTreeSet<PartitionId> = under_way.keys().copied().collect();
            let (batches, pause) = shared.keeper.plan((shared.clock)(), &busy, place);
            for batch in batches {
                *under_way.entry(batch.partition).or_default() += 1;
                renewals.push(Box::pin(renew_batch(Arc::clone(&shared), batch)));
            }
            pause
        };
        tokio::select! {
            () = news.notified() => {}
            Some(partition) = renewals.next() => {
                if let Some(count) = under_way.get_mut(&partition) {
                    *count -= 1;
                    if *count == 0 {
                        under_way.remove(&partition);
                    }
                }
            }
            () = tokio::time::sleep(pause.unwrap_or_default().min(CLOCK_SLICE)), if pause.is_some() => {}
        }
    }
}

async fn renew_batch<R: Rpc>(shared: Arc<Shared<R>>, batch: Batch) -> PartitionId {
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
    let sent = client.now();
    let answer = client.write(operation).await;
    client.shared.keeper.renewed(&batch, sent, answer, client.now());
    batch.partition
}
