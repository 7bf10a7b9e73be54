//! Locks: to be the only one, one of few, or the first of a queue, in the whole swarm.
//!
//! **Guarantee.** Of an exclusive lock, the partition that owns its name never has two holders, and serves those
//! who wait in the order in which they came. A holder is told ([`LockGuard::lost`]) *before* its lease can have
//! run out there, by its own clock, which counts suspend. But a holder can be paused between looking and acting:
//! so whatever the lock protects should refuse the [`token`](LockGuard::token) of a holder that was overtaken,
//! as [`Client::put_fenced`] does.
//!
//! **Method.** A grant is a write to the partition; who has to wait asks to be told of the change of its place,
//! and is told by a message as soon as that is applied. One task of the client renews all that it holds and
//! waits for, with one message to each node that leads any of it ([`keeper`]). Trust in a lock is counted from the moment
//! *before* the last acknowledged request was sent, so no delay on the way can make it too long.

mod election;
mod keeper;
mod semaphore;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::watch;

pub use election::{Election, Leader, Leadership};
pub use semaphore::{RwLock, Semaphore};

use super::call::{Action, Call, Outcome, Place, unexpected};
use super::{Client, Error, lock, ttl_ms, version};
use crate::id::{FencingToken, PartitionId, Version};
use crate::state_machine::{
    Answer, Claim, LockMode, LockView, MAX_DEADLINE, MAX_LISTED, Operation, PlaceState, Query, Reply, Watch,
};
use crate::time::Timestamp;
use crate::wire::Rpc;
pub(super) use keeper::Keeper;
use keeper::Trust;

/// The lease of a lock unless told otherwise: how long the others wait for a holder that crashed.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(10);

/// Before a watch that failed is tried again.
const WATCH_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at the clock: timers of the runtime stand still while the machine sleeps, leases do not.
const CLOCK_SLICE: Duration = Duration::from_millis(250);

/// How a lock is asked for.
#[derive(Debug, Clone)]
struct Terms {
    name: Vec<u8>,
    mode: LockMode,
    lease: Duration,
    wait: Option<Duration>,
    note: Vec<u8>,
}

impl Terms {
    fn new(name: Vec<u8>, mode: LockMode) -> Self {
        Self { name, mode, lease: DEFAULT_LEASE, wait: None, note: Vec::new() }
    }
}

/// One who wants a lock: made by [`Client::lock`], which has an example.
///
/// It holds the lock at most once; two that are made for the same name exclude each other, also within one
/// process.
pub struct Lock<R: Rpc> {
    client: Client<R>,
    terms: Terms,
    reentrant: bool,
    /// What it holds or waits for now.
    current: Mutex<Weak<Tenure<R>>>,
}

impl<R: Rpc> Lock<R> {
    /// How long the lock stays taken when its holder falls silent; also how long a waiter keeps its place.
    /// Renewed by itself at a third of this. Shorter: a crash is overcome sooner. Longer: a longer pause of the
    /// holder or of the network is survived. From 100 ms to an hour; [`DEFAULT_LEASE`] unless told otherwise.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.terms.lease = lease;
        self
    }

    /// How long to wait for the lock; without this, as long as it takes.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.terms.wait = Some(wait);
        self
    }

    /// What others see of the holder, and of who waits: at most 1 KiB.
    #[must_use]
    pub fn note(mut self, note: impl Into<Vec<u8>>) -> Self {
        self.terms.note = note.into();
        self
    }

    /// Lets [`Lock::acquire`] succeed while this very `Lock` is held: the lock is released with the last guard.
    #[must_use]
    pub fn reentrant(mut self) -> Self {
        self.reentrant = true;
        self
    }

    /// Takes the lock as soon as all who asked before have had it.
    ///
    /// Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// [`LockError::NotAcquired`] when the wait is over; [`LockError::Reentrant`] if this `Lock` is held already.
    pub async fn acquire(&self) -> Result<LockGuard<R>, LockError> {
        self.take(true).await
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// [`LockError::NotAcquired`] if it is not; otherwise as [`Lock::acquire`].
    pub async fn try_acquire(&self) -> Result<LockGuard<R>, LockError> {
        self.take(false).await
    }

    async fn take(&self, wait: bool) -> Result<LockGuard<R>, LockError> {
        let begin = || {
            // Looking and beginning are one step: two that come at once must not both find nothing.
            let mut current = lock(&self.current);
            match current.upgrade().filter(|tenure| tenure.is_alive()) {
                Some(tenure) if self.reentrant && tenure.token().is_some() => Ok(Begun::Held(tenure)),
                Some(_) => Err(LockError::Reentrant),
                None => {
                    let tenure = Arc::new(Tenure::begin(self.client.clone(), &self.terms));
                    *current = Arc::downgrade(&tenure);
                    Ok(Begun::New(tenure))
                }
            }
        };
        take(&self.client, &self.terms, wait, begin).await
    }
}

impl<R: Rpc> fmt::Debug for Lock<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// What an acquire begins with.
enum Begun<R: Rpc> {
    New(Arc<Tenure<R>>),
    /// It is held already, and may be taken again.
    Held(Arc<Tenure<R>>),
}

/// Takes a lock on these terms; each call is another holder.
async fn take_another<R: Rpc>(
    client: &Client<R>,
    terms: &Terms,
    wait: bool,
) -> Result<LockGuard<R>, LockError> {
    take(client, terms, wait, || Ok(Begun::New(Arc::new(Tenure::begin(client.clone(), terms))))).await
}

/// Takes a lock on these terms. `begin` makes each claim that is needed for it.
async fn take<R: Rpc>(
    client: &Client<R>,
    terms: &Terms,
    wait: bool,
    begin: impl Fn() -> Result<Begun<R>, LockError>,
) -> Result<LockGuard<R>, LockError> {
    let until = terms.wait.map_or(Timestamp::NEVER, |wait| client.now() + wait);
    loop {
        let tenure = match begin()? {
            Begun::New(tenure) => tenure,
            Begun::Held(tenure) => return Ok(LockGuard { tenure }),
        };
        if let Some(ahead) = tenure.ask(terms, wait).await?
            && wait
            && let PlaceState::Waiting { .. } = tenure.wait(until).await
        {
            // So that nobody waits for us; should that fail, no longer than our lease.
            drop(tenure.release().await);
            return Err(LockError::NotAcquired { ahead });
        }
        if tenure.token().is_some() && tenure.is_alive() {
            return Ok(LockGuard { tenure });
        }
        // The place was lost while it was waited for, or the answer came too late to be of use: once more.
        if !wait || client.now() >= until {
            return Err(LockError::Lost);
        }
    }
}

/// One claim, from asking to release; releases itself in the background when it is dropped.
struct Tenure<R: Rpc> {
    client: Client<R>,
    name: Vec<u8>,
    claim: Claim,
    lease: Duration,
    trust: watch::Receiver<Trust>,
    /// The partition knows nothing of the claim (any more).
    over: Mutex<bool>,
}

impl<R: Rpc> Tenure<R> {
    fn begin(client: Client<R>, terms: &Terms) -> Self {
        let shared = &client.shared;
        let (number, trust) = shared.keeper.begin();
        let claim = Claim { session: shared.session.id(), number };
        Self { name: terms.name.clone(), claim, lease: terms.lease, trust, over: Mutex::new(true), client }
    }

    /// Whether it holds or waits, as far as is known.
    fn is_alive(&self) -> bool {
        let trust = *self.trust.borrow();
        trust.is_alive(self.client.now())
    }

    fn token(&self) -> Option<FencingToken> {
        self.trust.borrow().token
    }

    /// Sends the wish. `None`: it is granted; otherwise, holders and waiters that came first.
    async fn ask(&self, terms: &Terms, wait: bool) -> Result<Option<u32>, LockError> {
        let operation = Operation::Acquire {
            name: self.name.clone(),
            claim: self.claim,
            mode: terms.mode,
            lease_ms: ttl_ms(self.lease),
            wait,
            note: terms.note.clone(),
        };
        operation.check().map_err(Error::from)?;
        *lock(&self.over) = false;
        let sent = self.client.now();
        let reply = self.client.write(operation).await;
        let keeper = &self.client.shared.keeper;
        match reply {
            Ok(Reply::Granted { token } | Reply::AlreadyHeld { token }) => {
                let trusted = keeper.keep(self, sent, Some(token), self.client.now());
                Ok((!trusted).then_some(0))
            }
            Ok(Reply::Queued { ahead }) => {
                keeper.keep(self, sent, None, self.client.now());
                Ok(Some(ahead))
            }
            Ok(Reply::NotAcquired { ahead }) => {
                *lock(&self.over) = true;
                Err(LockError::NotAcquired { ahead })
            }
            Ok(Reply::TooManyLocks) => {
                *lock(&self.over) = true;
                Err(LockError::Full)
            }
            Ok(_) => Err(unexpected().into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the claim holds the lock, or has lost its place, at most until `until`.
    async fn wait(&self, until: Timestamp) -> PlaceState {
        let mut trust = self.trust.clone();
        loop {
            let remaining = until.since(self.client.now());
            if remaining.is_zero() {
                return PlaceState::Waiting { ahead: 0 };
            }
            let client = self.client.with_deadline(remaining.min(MAX_DEADLINE));
            let watch = Watch::Place { name: self.name.clone(), claim: self.claim };
            let told = tokio::select! {
                told = Call::new(&client, Action::Wait(watch)).run() => told,
                // The renewal, too, tells of the grant, and of the loss.
                state = changed(&mut trust) => return state,
            };
            match told {
                Ok(Outcome::Answer(Answer::Place(state @ PlaceState::Held { token }))) => {
                    if self.client.shared.keeper.granted(self.claim.number, token, self.client.now()) {
                        return state;
                    }
                    // Nobody could be asked for too long. A renewal is under way, and tells whether it still holds.
                    let told = tokio::time::timeout(remaining, changed(&mut trust)).await;
                    return told.unwrap_or(PlaceState::Waiting { ahead: 0 });
                }
                Ok(Outcome::Answer(Answer::Place(PlaceState::Gone))) => return PlaceState::Gone,
                // The place is in the partition's state, whoever leads it: it is kept as long as it is renewed.
                Ok(_) => {}
                Err(_) => tokio::time::sleep(WATCH_PAUSE.min(remaining)).await,
            }
        }
    }

    async fn release(&self) -> Result<(), LockError> {
        if !self.is_alive() {
            // The partition is told in the background: whoever lost a lock has no time to wait for one that cannot
            // be reached.
            return Err(LockError::Lost);
        }
        let operation = Operation::Release { name: self.name.clone(), claim: self.claim };
        self.client.shared.keeper.forget(self.claim.number);
        let reply = self.client.write(operation).await?;
        *lock(&self.over) = true;
        match reply {
            Reply::Released { held: true } => Ok(()),
            Reply::Released { .. } | Reply::NotHeld => Err(LockError::Lost),
            _ => Err(unexpected().into()),
        }
    }
}

/// Waits until a waiter holds or is gone.
async fn changed(trust: &mut watch::Receiver<Trust>) -> PlaceState {
    match trust.wait_for(|trust| trust.lost || trust.token.is_some()).await.map(|trust| *trust) {
        Ok(Trust { lost: false, token: Some(token), .. }) => PlaceState::Held { token },
        _ => PlaceState::Gone,
    }
}

impl<R: Rpc> Drop for Tenure<R> {
    fn drop(&mut self) {
        let keeper = &self.client.shared.keeper;
        keeper.forget(self.claim.number);
        if !*lock(&self.over) {
            let operation = Operation::Release { name: self.name.clone(), claim: self.claim };
            keeper.write_later(self.client.clone(), operation);
        }
    }
}

/// A lock that is held. Dropping it releases the lock in the background, as well as that goes;
/// [`LockGuard::release`] tells whether it went.
pub struct LockGuard<R: Rpc> {
    tenure: Arc<Tenure<R>>,
}

impl<R: Rpc> LockGuard<R> {
    /// Of this grant: higher than that of every grant of the lock before.
    pub fn token(&self) -> FencingToken {
        self.tenure.token().unwrap_or_default()
    }

    /// The lock's name.
    pub fn name(&self) -> &[u8] {
        &self.tenure.name
    }

    /// Whether the lock can still be relied on. Between looking and acting, it may cease to be:
    /// see [`Client::put_fenced`].
    pub fn is_held(&self) -> bool {
        self.tenure.is_alive()
    }

    /// How long the lock can be relied on without a further renewal.
    pub fn remaining(&self) -> Duration {
        let trust = *self.tenure.trust.borrow();
        if trust.lost { Duration::ZERO } else { trust.until.since(self.tenure.client.now()) }
    }

    /// Waits until the lock can no longer be relied on: renewals were not acknowledged for most of a lease, the
    /// machine slept or the process was paused for so long, or the partition says that the lease is over.
    /// Resolves before another can hold the lock, if this process runs at that time; else as soon as it runs.
    /// The future does not keep the lock; after a release it resolves as well.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<R> {
        let mut trust = self.tenure.trust.clone();
        let clock = Arc::clone(&self.tenure.client.shared.clock);
        async move {
            loop {
                let Trust { until, lost, .. } = *trust.borrow_and_update();
                let left = until.since(clock());
                if lost || left.is_zero() {
                    return;
                }
                tokio::select! {
                    changed = trust.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(left.min(CLOCK_SLICE)) => {}
                }
            }
        }
    }

    /// Gives the lock to the next; of a reentrant lock, only when this is the last guard.
    ///
    /// # Errors
    /// [`LockError::Lost`], at once, if it was lost before; what was done under it may have met another holder.
    pub async fn release(self) -> Result<(), LockError> {
        match Arc::try_unwrap(self.tenure) {
            Ok(tenure) => tenure.release().await,
            Err(_) => Ok(()),
        }
    }
}

impl<R: Rpc> fmt::Debug for LockGuard<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("name", &String::from_utf8_lossy(self.name()))
            .field("token", &self.token())
            .field("remaining", &self.remaining())
            .finish()
    }
}

/// Why a lock is not held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Others held it, or were before us, until the end of the wait. Our place is given up.
    #[error("not acquired: {ahead} held it or came first")]
    NotAcquired {
        /// Holders and waiters before us, when we asked.
        ahead: u32,
    },
    /// This [`Lock`] is held already, or waits to be.
    #[error(
        "not acquired: it is held, or waited for, by the same `Lock`; make another, or make it reentrant"
    )]
    Reentrant,
    /// The lease was over before this. What was done under the lock may have met another holder.
    #[error("lost: the lease was over")]
    Lost,
    /// The lock, or its partition, has as many holders and waiters as it can have. Nothing changed.
    #[error("not acquired: too many hold or wait")]
    Full,
    /// The store did not do what was asked. A lock that may have been acquired is released.
    #[error(transparent)]
    Store(#[from] Error),
}

impl<R: Rpc> Client<R> {
    /// One who wants the lock of this name. Locks and keys do not know of each other: a lock may have the name
    /// of a key.
    ///
    /// ```
    /// # async fn example<R: roundtable::wire::Rpc>(client: roundtable::client::Client<R>)
    /// # -> Result<(), roundtable::client::LockError> {
    /// use std::time::Duration;
    ///
    /// let lock = client.lock("invoices").lease(Duration::from_secs(5)).wait(Duration::from_secs(30));
    /// let guard = lock.acquire().await?;
    /// tokio::select! {
    ///     done = client.put_fenced("invoices/last", "1204", guard.token()) => drop(done?),
    ///     () = guard.lost() => return Err(roundtable::client::LockError::Lost),
    /// }
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock(&self, name: impl Into<Vec<u8>>) -> Lock<R> {
        let terms = Terms::new(name.into(), LockMode::Exclusive);
        Lock { client: self.clone(), terms, reentrant: false, current: Mutex::new(Weak::new()) }
    }

    /// [`Client::put`], refused if the key was ever written with a higher token: by somebody who got the lock
    /// later. Writes without a token are not refused.
    ///
    /// # Errors
    /// [`Error::Fenced`] if it was; otherwise as [`Client::put`].
    pub async fn put_fenced(
        &self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
        token: FencingToken,
    ) -> Result<Version, Error> {
        self.set_fenced(key.into(), value.into(), None, token).await
    }

    /// [`Client::put_fenced`] of a value that expires after `ttl`. The token is remembered though the key is gone.
    ///
    /// # Errors
    /// As [`Client::put_fenced`].
    pub async fn put_fenced_with_ttl(
        &self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
        ttl: Duration,
        token: FencingToken,
    ) -> Result<Version, Error> {
        self.set_fenced(key.into(), value.into(), Some(ttl), token).await
    }

    async fn set_fenced(
        &self,
        key: Vec<u8>,
        value: Vec<u8>,
        ttl: Option<Duration>,
        token: FencingToken,
    ) -> Result<Version, Error> {
        let operation = Operation::PutFenced { key, value, ttl_ms: ttl.map(ttl_ms), token };
        self.write(operation).await.and_then(version)
    }

    /// [`Client::delete`], refused like [`Client::put_fenced`]. The token is remembered though the key is gone.
    ///
    /// # Errors
    /// As [`Client::put_fenced`].
    pub async fn delete_fenced(&self, key: impl Into<Vec<u8>>, token: FencingToken) -> Result<bool, Error> {
        match self.write(Operation::DeleteFenced { key: key.into(), token }).await? {
            Reply::Deleted { existed } => Ok(existed),
            other => Err(super::failure(&other)),
        }
    }

    /// Who holds a lock and who waits for it; `None` if it is free.
    ///
    /// # Errors
    /// If it was not answered before the deadline.
    pub async fn lock_state(&self, name: impl Into<Vec<u8>>) -> Result<Option<LockView>, Error> {
        let query = Query::Lock { name: name.into() };
        query.check()?;
        match Call::new(self, Action::Ask { query }).run().await? {
            Outcome::Answer(Answer::Lock(view)) => Ok(view),
            _ => Err(unexpected()),
        }
    }

    /// All locks that are held, partition by partition; in each, in the order of the bytes of their names. Not
    /// one moment's picture. The stream ends after its first error.
    pub fn locks(&self) -> impl Stream<Item = Result<(Vec<u8>, LockView), Error>> + Send + 'static {
        let client = self.clone();
        stream::once(async move {
            let view = client.known_view().await?;
            let swarm = view.swarm;
            let pages = (0..view.partitions).map(PartitionId).map(move |partition| {
                let place = Place { swarm, partition };
                let first = Some((client.clone(), place, Vec::new()));
                Ok::<_, Error>(stream::try_unfold(first, next_locks).map_ok(stream_of).try_flatten())
            });
            Ok::<_, Error>(stream::iter(pages).try_flatten())
        })
        .try_flatten()
    }

    /// Waits until a lock's holders, or what they say of themselves, are others than at `seen` (`None`: it was
    /// free); the outer `None`: that did not happen before the deadline.
    async fn wait_for_holders(
        &self,
        name: Vec<u8>,
        seen: Option<Version>,
    ) -> Result<Option<Option<LockView>>, Error> {
        let watch = Watch::Lock { name, seen };
        watch.check()?;
        match Call::new(self, Action::Wait(watch)).run().await? {
            Outcome::Answer(Answer::Lock(view)) => Ok(Some(view)),
            Outcome::Unchanged => Ok(None),
            _ => Err(unexpected()),
        }
    }
}

type Named = (Vec<u8>, LockView);

fn stream_of(locks: Vec<Named>) -> impl Stream<Item = Result<Named, Error>> + Send {
    stream::iter(locks).map(Ok)
}

/// The locks of one partition behind a name, and where to go on.
type Behind<R> = Option<(Client<R>, Place, Vec<u8>)>;

async fn next_locks<R: Rpc>(from: Behind<R>) -> Result<Option<(Vec<Named>, Behind<R>)>, Error> {
    let Some((client, place, after)) = from else {
        return Ok(None);
    };
    let query = Query::Locks { after: after.clone(), limit: MAX_LISTED };
    match Call::new(&client, Action::Scan { place, query }).run().await? {
        Outcome::Answer(Answer::Locks { locks, more }) => {
            let locks: Vec<Named> = locks.into_iter().map(|(name, view)| (name.into_vec(), view)).collect();
            let last = locks.last().map(|(name, _)| name.clone());
            // A page that does not go on would be asked for for ever.
            let next = match last {
                Some(last) if more && last > after => Some((client, place, last)),
                _ if more => return Err(unexpected()),
                _ => None,
            };
            Ok(Some((locks, next)))
        }
        _ => Err(unexpected()),
    }
}
