//! Locks with more than one holder.

use std::fmt;
use std::time::Duration;

use super::{Client, LockError, LockGuard, Terms, take_another};
use crate::state_machine::LockMode;
use crate::wire::Rpc;

/// A number of permits for the whole swarm: made by [`Client::semaphore`], which has an example.
pub struct Semaphore<R: Rpc> {
    client: Client<R>,
    terms: Terms,
}

impl<R: Rpc> Semaphore<R> {
    /// As [`Lock::lease`](super::Lock::lease), for each permit.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.terms.lease = lease;
        self
    }

    /// As [`Lock::wait`](super::Lock::wait).
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.terms.wait = Some(wait);
        self
    }

    /// As [`Lock::note`](super::Lock::note).
    #[must_use]
    pub fn note(mut self, note: impl Into<Vec<u8>>) -> Self {
        self.terms.note = note.into();
        self
    }

    /// Takes a permit as soon as one is free and all who asked before have one. Each call is another holder.
    ///
    /// # Errors
    /// [`LockError::NotAcquired`] when the wait is over.
    pub async fn acquire(&self) -> Result<LockGuard<R>, LockError> {
        take_another(&self.client, &self.terms, true).await
    }

    /// Takes a permit if one is free.
    ///
    /// # Errors
    /// [`LockError::NotAcquired`] if none is.
    pub async fn try_acquire(&self) -> Result<LockGuard<R>, LockError> {
        take_another(&self.client, &self.terms, false).await
    }
}

impl<R: Rpc> fmt::Debug for Semaphore<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// Many readers or one writer, in the whole swarm: made by [`Client::rw_lock`], which has an example.
///
/// Fair: whoever reads behind a writer that waits, waits as well.
pub struct RwLock<R: Rpc> {
    client: Client<R>,
    terms: Terms,
}

impl<R: Rpc> RwLock<R> {
    /// As [`Lock::lease`](super::Lock::lease).
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.terms.lease = lease;
        self
    }

    /// As [`Lock::wait`](super::Lock::wait).
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.terms.wait = Some(wait);
        self
    }

    /// As [`Lock::note`](super::Lock::note).
    #[must_use]
    pub fn note(mut self, note: impl Into<Vec<u8>>) -> Self {
        self.terms.note = note.into();
        self
    }

    /// Takes the lock together with other readers. Its token is of use where readers leave traces.
    ///
    /// # Errors
    /// [`LockError::NotAcquired`] when the wait is over.
    pub async fn read(&self) -> Result<LockGuard<R>, LockError> {
        let terms = Terms { mode: LockMode::Shared, ..self.terms.clone() };
        take_another(&self.client, &terms, true).await
    }

    /// Takes the lock alone.
    ///
    /// # Errors
    /// [`LockError::NotAcquired`] when the wait is over.
    pub async fn write(&self) -> Result<LockGuard<R>, LockError> {
        take_another(&self.client, &self.terms, true).await
    }
}

impl<R: Rpc> fmt::Debug for RwLock<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("terms", &self.terms).finish_non_exhaustive()
    }
}

impl<R: Rpc> Client<R> {
    /// A semaphore: so many hold it at the same time. Its permits are those of the lock of this name; who names
    /// another number is held to the smaller one as long as both are there.
    ///
    /// ```
    /// # async fn example<R: roundtable::wire::Rpc>(client: roundtable::client::Client<R>)
    /// # -> Result<(), roundtable::client::LockError> {
    /// let downloads = client.semaphore("downloads", 3);
    /// let permit = downloads.acquire().await?;
    /// // At most three of these run in the whole swarm. Each grant has a token of its own, higher than all before.
    /// client.put_fenced(format!("downloads/{}", permit.token()), "begun", permit.token()).await?;
    /// permit.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn semaphore(&self, name: impl Into<Vec<u8>>, permits: u32) -> Semaphore<R> {
        Semaphore { client: self.clone(), terms: Terms::new(name.into(), LockMode::Permit { of: permits }) }
    }

    /// A lock for many readers or one writer.
    ///
    /// ```
    /// # async fn example<R: roundtable::wire::Rpc>(client: roundtable::client::Client<R>)
    /// # -> Result<(), roundtable::client::LockError> {
    /// let catalogue = client.rw_lock("catalogue");
    /// let (one, other) = (catalogue.read().await?, catalogue.read().await?);
    /// drop((one, other));
    /// let alone = catalogue.write().await?;
    /// client.put_fenced("catalogue/page", "new", alone.token()).await?;
    /// alone.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn rw_lock(&self, name: impl Into<Vec<u8>>) -> RwLock<R> {
        RwLock { client: self.clone(), terms: Terms::new(name.into(), LockMode::Exclusive) }
    }
}
