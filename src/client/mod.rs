//! The typed API: every operation on the store, from a member, a visitor or the simulator alike.
//!
//! **Guarantee.** Per key, operations are linearizable. A write that succeeds was applied exactly once, however
//! often it had to be sent; one that fails says whether it may have been applied ([`Error::outcome`]).
//!
//! **Method.** A [`Client`] routes each operation in one hop to the leader of the key's partition, follows
//! redirects, and tries again inside the operation's deadline. Writes carry a session and a number, by which a
//! partition recognises a retry.

mod backup;
mod call;
mod compute;
mod dataset;
mod error;
mod job;
mod lock;
mod outbox;
mod router;
mod scan;
mod session;
mod shipped;
mod sort;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite};

pub use crate::state_machine::{Claim, Entry, LimitError, LockMode, LockView, MAX_DEADLINE, PlaceView};
pub use backup::{
    BackupError, BackupProgress, BackupSummary, FileError, RESTORE_LEAP, RestoreError, RestoreProgress,
    RestoreSummary,
};
pub use compute::{Job, JobError, JobProgress, JobStage, JobSummary};
pub(crate) use dataset::Courier;
pub use dataset::{Dataset, DatasetError, DatasetReader, DatasetWriter, Placement};
pub use error::{Error, Outcome};
pub use lock::{DEFAULT_LEASE, Election, Leader, Leadership, Lock, LockError, LockGuard, RwLock, Semaphore};
pub use shipped::ShipError;
pub use sort::{Sort, SortError, SortProgress, SortStage, SortSummary};

use crate::id::{NodeId, PartitionId, SessionId, Version};
use crate::state_machine::{Operation, Query, Reply, Watch};
use crate::time::Timestamp;
use crate::wire::{Consistency, NodeStatus, Request, Response, Rpc, SwarmView};
use call::{Action, Call, ask, unexpected};
use router::Router;
use session::Session;

/// How long an operation may take unless told otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a partition may answer that it has no quorum before the caller is told: well above the duration of
/// a failover, so that a crash of one node is only a pause, and well below [`DEFAULT_DEADLINE`].
pub const DEFAULT_PATIENCE: Duration = Duration::from_millis(1500);

/// Reads the time; the clock must count suspend, see [`MAX_DEADLINE`].
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The keys and entries of a [`Client::scan`].
pub type Entries = BoxStream<'static, Result<(Vec<u8>, Entry), Error>>;

/// Speaks to a swarm. Cheap to clone; clones share the session and what is known of the swarm.
pub struct Client<R> {
    shared: Arc<Shared<R>>,
    deadline: Duration,
    patience: Duration,
    consistency: Consistency,
}

struct Shared<R> {
    router: Router<R>,
    session: Arc<Session>,
    clock: Clock,
    keeper: lock::Keeper,
}

impl<R: Rpc> Client<R> {
    /// A client over a network. `rng` draws the session, which must not be drawn twice in the life of a swarm:
    /// outside the simulator it is seeded by the system.
    pub fn new(rpc: R, clock: Clock, mut rng: StdRng) -> Self {
        let session = Arc::new(Session::new(SessionId(rng.random())));
        let router = Router::new(rpc, Arc::clone(&clock), rng);
        Self {
            shared: Arc::new(Shared { router, session, clock, keeper: lock::Keeper::default() }),
            deadline: DEFAULT_DEADLINE,
            patience: DEFAULT_PATIENCE,
            consistency: Consistency::default(),
        }
    }

    /// A clone whose operations take at most `deadline`; no longer than [`MAX_DEADLINE`].
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline: deadline.min(MAX_DEADLINE), ..self.clone() }
    }

    /// A clone that waits so long for a quorum to come back before it says [`Error::NoQuorum`]. Less than a
    /// failover takes (about half a second) turns every crash of a node into errors; more than the deadline has
    /// no effect.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// A clone whose reads are answered by any replica from what it has, also without a quorum. They may be
    /// old, never invented. Writes are not affected.
    #[must_use]
    pub fn stale(&self) -> Self {
        Self { consistency: Consistency::Stale, ..self.clone() }
    }

    /// Reads a key; `None` if it is absent.
    ///
    /// # Errors
    /// If it was not answered before the deadline.
    pub async fn get(&self, key: impl Into<Vec<u8>>) -> Result<Option<Entry>, Error> {
        let query = Query::Get { key: key.into() };
        query.check()?;
        Call::new(self, Action::Ask { query }).run().await?.entry()
    }

    /// Reads a key from any replica: [`Client::stale`] for one read.
    ///
    /// # Errors
    /// If no replica answered before the deadline.
    pub async fn get_stale(&self, key: impl Into<Vec<u8>>) -> Result<Option<Entry>, Error> {
        self.stale().get(key).await
    }

    /// Sets a key; it stays until it is deleted. Returns the key's new version.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether it may have been applied.
    pub async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<Version, Error> {
        self.set(key.into(), value.into(), None).await
    }

    /// Sets a key that expires after `ttl` (rounded up to a millisecond). Returns the key's new version.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether it may have been applied.
    pub async fn put_with_ttl(
        &self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
        ttl: Duration,
    ) -> Result<Version, Error> {
        self.set(key.into(), value.into(), Some(ttl)).await
    }

    async fn set(&self, key: Vec<u8>, value: Vec<u8>, ttl: Option<Duration>) -> Result<Version, Error> {
        let ttl_ms = ttl.map(ttl_ms);
        self.write(Operation::Put { key, value, ttl_ms }).await.and_then(version)
    }

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether it may have been applied.
    pub async fn delete(&self, key: impl Into<Vec<u8>>) -> Result<bool, Error> {
        let key = key.into();
        match self.write(Operation::Delete { key }).await? {
            Reply::Deleted { existed } => Ok(existed),
            other => Err(failure(&other)),
        }
    }

    /// Sets a key if it is at the `expected` version (`None`: if it is absent). Returns its new version.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is at another one; otherwise as [`Client::put`].
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Vec<u8>>,
        expected: Option<Version>,
        value: impl Into<Vec<u8>>,
    ) -> Result<Version, Error> {
        self.swap(key.into(), expected, value.into(), None).await
    }

    /// [`Client::compare_and_swap`] to a value that expires after `ttl`.
    ///
    /// # Errors
    /// As [`Client::compare_and_swap`].
    pub async fn compare_and_swap_with_ttl(
        &self,
        key: impl Into<Vec<u8>>,
        expected: Option<Version>,
        value: impl Into<Vec<u8>>,
        ttl: Duration,
    ) -> Result<Version, Error> {
        self.swap(key.into(), expected, value.into(), Some(ttl)).await
    }

    async fn swap(
        &self,
        key: Vec<u8>,
        expected: Option<Version>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> Result<Version, Error> {
        let operation = Operation::CompareAndSwap { key, expected, value, ttl_ms: ttl.map(ttl_ms) };
        self.write(operation).await.and_then(version)
    }

    /// Adds to a key that holds a decimal integer (absent: 0); returns the sum. Its time to live is kept.
    ///
    /// # Errors
    /// [`Error::NotAnInteger`] if it holds something else; otherwise as [`Client::put`].
    pub async fn increment(&self, key: impl Into<Vec<u8>>, by: i64) -> Result<i64, Error> {
        let key = key.into();
        match self.write(Operation::Increment { key, by }).await? {
            Reply::Incremented { value, .. } => Ok(value),
            other => Err(failure(&other)),
        }
    }

    /// Lets a key expire after `ttl`, or never. Returns the key's new version.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the key is absent; otherwise as [`Client::put`].
    pub async fn expire(&self, key: impl Into<Vec<u8>>, ttl: Option<Duration>) -> Result<Version, Error> {
        let key = key.into();
        let ttl_ms = ttl.map(ttl_ms);
        self.write(Operation::Expire { key, ttl_ms }).await.and_then(version)
    }

    /// All keys that begin with `prefix` (empty: all), in the order of their bytes.
    ///
    /// Not one moment's picture: each page of each partition is linearizable by itself. A key that is there
    /// from the beginning to the end of the scan is in it exactly once. The deadline is that of each page. The
    /// stream ends after its first error.
    pub fn scan(&self, prefix: impl Into<Vec<u8>>) -> Entries {
        scan::scan(self.clone(), prefix.into()).boxed()
    }

    /// Waits until a key is there in another version than `seen` (`None`: until it is there) and returns it;
    /// `None` if that did not happen before the deadline. A delete alone is no change.
    ///
    /// # Errors
    /// If nobody could be asked.
    pub async fn wait_for_change(
        &self,
        key: impl Into<Vec<u8>>,
        seen: Option<Version>,
    ) -> Result<Option<Entry>, Error> {
        let key = key.into();
        let begun = self.now();
        let first = self.wait_once(key.clone(), seen).await?;
        let left = self.deadline.saturating_sub(self.now().since(begun));
        match (first, seen) {
            // Gone: what comes next is news, whatever its version.
            (None, Some(_)) if !left.is_zero() => self.with_deadline(left).wait_once(key, None).await,
            (first, _) => Ok(first),
        }
    }

    async fn wait_once(&self, key: Vec<u8>, seen: Option<Version>) -> Result<Option<Entry>, Error> {
        let watch = Watch::Key { key, seen };
        watch.check()?;
        Call::new(self, Action::Wait(watch)).run().await?.entry()
    }

    /// The swarm as a linked node sees it now.
    ///
    /// # Errors
    /// If no node answered before the deadline.
    pub async fn view(&self) -> Result<SwarmView, Error> {
        match ask(self, None, Request::View).await? {
            Response::View(view) => {
                self.shared.router.note(&view);
                Ok(view)
            }
            _ => Err(unexpected()),
        }
    }

    /// The swarm as a certain node sees it now.
    ///
    /// # Errors
    /// If it did not answer before the deadline.
    pub async fn view_of(&self, node: NodeId) -> Result<SwarmView, Error> {
        match ask(self, Some(node), Request::View).await? {
            Response::View(view) => Ok(view),
            _ => Err(unexpected()),
        }
    }

    /// How a node is.
    ///
    /// # Errors
    /// If it did not answer before the deadline.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, Error> {
        match ask(self, Some(node), Request::Status).await? {
            Response::Status(status) => Ok(*status),
            _ => Err(unexpected()),
        }
    }

    /// The string that lets another machine join; from any linked node.
    ///
    /// # Errors
    /// If no node answered before the deadline.
    pub async fn ticket(&self) -> Result<String, Error> {
        match ask(self, None, Request::Ticket).await? {
            Response::Ticket(ticket) => Ok(ticket),
            _ => Err(unexpected()),
        }
    }

    /// Writes everything that the swarm holds to a file (or whatever else takes bytes): keys, what is left of their
    /// time to live, and the tokens that keys were written with. Not locks.
    ///
    /// Each partition is one moment's picture, of a moment after this was begun: whatever was acknowledged before
    /// is in it. Partitions are of different moments. In memory are at most a few partitions at a time. What was
    /// written is whole only if this succeeds. The deadline is that of each step.
    ///
    /// # Errors
    /// If a partition could not be read, or the file not be written. What was written is of no use then.
    pub async fn backup<W: AsyncWrite + Unpin + Send>(
        &self,
        file: &mut W,
        progress: impl FnMut(BackupProgress) + Send,
    ) -> Result<BackupSummary, BackupError> {
        backup::backup(self, file, progress).await
    }

    /// Puts back what [`Client::backup`] wrote, into this swarm, which must hold nothing; it may have another
    /// number of partitions. The whole file is read and verified before anything is changed.
    ///
    /// Versions and fencing tokens go on above all that the other swarm had handed out until the backup, and above
    /// the next [`RESTORE_LEAP`] of them. Keys that somebody writes meanwhile are kept as they write them. If this
    /// is interrupted, the same file can be given again, by any client, and it goes on where it was: what was put
    /// back before and changed or removed since then stays so. The deadline is that of each step.
    ///
    /// # Errors
    /// Each says what the swarm holds then.
    pub async fn restore<F: AsyncRead + AsyncSeek + Unpin + Send>(
        &self,
        file: &mut F,
        progress: impl FnMut(RestoreProgress) + Send,
    ) -> Result<RestoreSummary, RestoreError> {
        backup::restore(self, file, progress).await
    }

    /// Tells a node to hand everything over and leave; returns as soon as it has begun.
    ///
    /// # Errors
    /// If it did not answer before the deadline: it may be leaving.
    pub async fn leave(&self, node: NodeId) -> Result<(), Error> {
        match ask(self, Some(node), Request::Leave).await? {
            Response::Leaving => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Tells a node to hand over what it leads and to end, so that it can come back with what is on its disk;
    /// returns as soon as it has begun.
    ///
    /// # Errors
    /// If it keeps nothing on disk, it refuses. If it did not answer before the deadline, it may be ending.
    pub async fn stop(&self, node: NodeId) -> Result<(), Error> {
        match ask(self, Some(node), Request::Stop).await? {
            Response::Leaving => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Makes `node`'s replica of a partition the first of a new generation of its group, because the majority is
    /// gone for good; with `empty`, begins it with nothing, because no replica is left. **What was acknowledged
    /// and never reached that replica is lost**; versions and tokens leap above all that were handed out.
    ///
    /// # Errors
    /// If the node refused: it has a quorum after all, or nothing to begin with. If it did not answer before the
    /// deadline, it may have done so.
    pub async fn recover(&self, node: NodeId, partition: PartitionId, empty: bool) -> Result<(), Error> {
        let swarm = self.view().await?.swarm;
        match ask(self, Some(node), Request::Recover { swarm, partition, empty }).await? {
            Response::Recovered => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn write(&self, operation: Operation) -> Result<Reply, Error> {
        operation.check()?;
        match Call::new(self, Action::Write(operation)).run().await? {
            call::Outcome::Reply(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }

    /// The view by which operations are routed.
    async fn known_view(&self) -> Result<Arc<SwarmView>, Error> {
        if let Some(view) = self.shared.router.cached() {
            return Ok(view);
        }
        self.view().await?;
        self.shared.router.fetch().await.ok_or(Error::Unreachable)
    }

    fn now(&self) -> Timestamp {
        (self.shared.clock)()
    }
}

impl<R> Clone for Client<R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), ..*self }
    }
}

impl<R> fmt::Debug for Client<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.shared.session)
            .field("deadline", &self.deadline)
            .field("patience", &self.patience)
            .field("consistency", &self.consistency)
            .finish_non_exhaustive()
    }
}

fn version(reply: Reply) -> Result<Version, Error> {
    match reply {
        Reply::Written { version } => Ok(version),
        other => Err(failure(&other)),
    }
}

/// The error that a reply stands for.
fn failure(reply: &Reply) -> Error {
    match reply {
        Reply::Conflict { version } => Error::Conflict { version: *version },
        Reply::NotFound => Error::NotFound,
        Reply::NotAnInteger => Error::NotAnInteger,
        Reply::Fenced { current } => Error::Fenced { current: *current },
        Reply::TooManyFenced => Error::TooManyFenced,
        _ => unexpected(),
    }
}

/// Rounded up, and at least one: a key that is to expire at once still has to expire.
fn ttl_ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// What is behind our mutexes stays whole: no code that holds one can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
