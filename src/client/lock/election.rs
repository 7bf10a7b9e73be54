//! Elections: the holder of a lock leads, and what it says of itself is what the others see.

use std::fmt;
use std::time::Duration;

use futures::{Stream, stream};

use super::{Client, Error, LockError, LockGuard, Terms, take_another, unexpected};
use crate::id::{FencingToken, Version};
use crate::state_machine::{LockMode, LockView, Operation, Reply};
use crate::wire::Rpc;

/// An election: made by [`Client::election`], which has an example.
pub struct Election<R: Rpc> {
    client: Client<R>,
    terms: Terms,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// What it proclaims.
    pub proclaims: Vec<u8>,
    /// Of its leadership: higher than that of every leader before.
    pub token: FencingToken,
}

impl<R: Rpc> Election<R> {
    /// As [`Lock::lease`](super::Lock::lease): so long nobody leads after a leader has crashed.
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

    /// Waits until it is our turn to lead, and says `proclaims` to those who observe.
    ///
    /// # Errors
    /// [`LockError::NotAcquired`] when the wait is over.
    pub async fn campaign(&self, proclaims: impl Into<Vec<u8>>) -> Result<Leadership<R>, LockError> {
        let terms = Terms { note: proclaims.into(), ..self.terms.clone() };
        let guard = take_another(&self.client, &terms, true).await?;
        Ok(Leadership { guard })
    }

    /// Who leads now.
    ///
    /// # Errors
    /// If it was not answered before the deadline.
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        Ok(leader(self.client.lock_state(self.terms.name.clone()).await?))
    }

    /// Who leads, now and each time that this changes, told by a message; changes that follow each other quickly
    /// may be seen as one. The stream ends after its first error.
    pub fn observe(&self) -> impl Stream<Item = Result<Option<Leader>, Error>> + Send + 'static {
        let from = (self.client.clone(), self.terms.name.clone(), Seen::Nothing);
        stream::try_unfold(from, |(client, name, seen)| async move {
            let mut seen = seen;
            loop {
                let view = match seen {
                    Seen::Nothing => client.lock_state(name.clone()).await?,
                    Seen::Version(version) => match client.wait_for_holders(name.clone(), version).await? {
                        Some(view) => view,
                        None => continue,
                    },
                };
                seen = Seen::Version(view.as_ref().map(|view| view.version));
                return Ok(Some((leader(view), (client, name, seen))));
            }
        })
    }
}

enum Seen {
    Nothing,
    Version(Option<Version>),
}

fn leader(view: Option<LockView>) -> Option<Leader> {
    let holder = view?.holders.into_iter().next()?;
    Some(Leader { proclaims: holder.note, token: holder.token? })
}

impl<R: Rpc> fmt::Debug for Election<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// We lead. Dropping it resigns in the background.
pub struct Leadership<R: Rpc> {
    guard: LockGuard<R>,
}

impl<R: Rpc> Leadership<R> {
    /// Higher than that of every leader before: for [`Client::put_fenced`].
    pub fn token(&self) -> FencingToken {
        self.guard.token()
    }

    /// Says something else to those who observe.
    ///
    /// # Errors
    /// [`LockError::Lost`] if somebody else leads by now, or nobody.
    pub async fn proclaim(&self, proclaims: impl Into<Vec<u8>>) -> Result<(), LockError> {
        let tenure = &self.guard.tenure;
        let operation =
            Operation::Proclaim { name: tenure.name.clone(), claim: tenure.claim, note: proclaims.into() };
        match tenure.client.write(operation).await? {
            Reply::Granted { .. } => Ok(()),
            Reply::NotHeld => Err(LockError::Lost),
            _ => Err(unexpected().into()),
        }
    }

    /// As [`LockGuard::lost`].
    pub async fn lost(&self) {
        self.guard.lost().await;
    }

    /// As [`LockGuard::is_held`].
    pub fn is_held(&self) -> bool {
        self.guard.is_held()
    }

    /// Lets the next one lead.
    ///
    /// # Errors
    /// As [`LockGuard::release`].
    pub async fn resign(self) -> Result<(), LockError> {
        self.guard.release().await
    }
}

impl<R: Rpc> fmt::Debug for Leadership<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("guard", &self.guard).finish()
    }
}

impl<R: Rpc> Client<R> {
    /// An election among those who campaign under this name; its leader is the holder of the lock of this name.
    ///
    /// ```
    /// # async fn example<R: roundtable::wire::Rpc>(client: roundtable::client::Client<R>)
    /// # -> Result<(), roundtable::client::LockError> {
    /// let election = client.election("scheduler");
    /// let leadership = election.campaign("node-7 at 10.0.0.7:80").await?;
    /// assert_eq!(election.leader().await?.unwrap().token, leadership.token());
    /// leadership.proclaim("node-7 at 10.0.0.7:81").await?;
    /// client.put_fenced("schedule", "nightly", leadership.token()).await?;
    /// tokio::select! {
    ///     () = leadership.lost() => {}
    ///     // () = lead() => {}
    /// }
    /// leadership.resign().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn election(&self, name: impl Into<Vec<u8>>) -> Election<R> {
        Election { client: self.clone(), terms: Terms::new(name.into(), LockMode::Exclusive) }
    }
}
