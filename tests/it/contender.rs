//! One who wants a lock again and again, and writes down what it saw while it held it: for the judges of
//! [`checker::locks`](super::checker::locks).

use std::time::Duration;

use roundtable::client::{Client, Error, LockError};
use roundtable::id::{FencingToken, Version};
use roundtable::wire::Rpc;

use super::checker::locks::{Queue, Section, Wish};

/// How it goes about it.
#[derive(Debug)]
pub(crate) struct Contender<R: Rpc> {
    pub(crate) client: Client<R>,
    pub(crate) lock: String,
    /// What the lock protects.
    pub(crate) key: String,
    pub(crate) lease: Duration,
    /// Whether the store is told the tokens.
    pub(crate) fenced: bool,
    pub(crate) process: u32,
    pub(crate) lane: u32,
    /// Wishes so far.
    pub(crate) wishes: u32,
}

impl<R: Rpc> Contender<R> {
    /// One critical section of a holder that looks at nothing while it is inside: the store alone protects it.
    pub(crate) async fn section(
        &mut self,
        stay: impl Future<Output = ()>,
        now: impl Fn() -> Duration,
    ) -> Result<Section, LockError> {
        let wish = Wish { process: self.process, lane: self.lane, number: self.wishes };
        self.wishes += 1;
        let asked = now();
        let lock = self.client.lock(self.lock.as_str()).lease(self.lease).note(wish.note());
        let guard = lock.acquire().await?;
        let granted = now();
        let token = guard.token();
        let entered = self.write(token).await;
        let queue = self.look(token, &now).await;
        stay.await;
        let begun = now();
        let left = self.write(token).await;
        let wrote_within = now().saturating_sub(begun);
        let lost = !guard.is_held();
        let released = now();
        // Should that fail, the lease ends by itself.
        drop(guard.release().await);
        Ok(Section {
            wish,
            token,
            asked,
            granted,
            released,
            fenced: [&entered, &left].iter().any(|write| matches!(write, Err(Error::Fenced { .. }))),
            entered: entered.ok(),
            left: left.ok(),
            wrote_within,
            queue,
            lost,
        })
    }

    async fn write(&self, token: FencingToken) -> Result<Version, Error> {
        let (key, value) = (self.key.as_str(), token.to_string());
        if self.fenced {
            self.client.put_fenced(key, value, token).await
        } else {
            self.client.put(key, value).await
        }
    }

    /// The queue as it is while this one holds the lock.
    async fn look(&self, token: FencingToken, now: impl Fn() -> Duration) -> Option<Queue> {
        let view = self.client.lock_state(self.lock.as_str()).await.ok()??;
        let at = now();
        let [holder] = &view.holders[..] else { panic!("an exclusive lock with holders {:?}", view.holders) };
        if holder.token != Some(token) {
            return None;
        }
        let waiters = view.waiters.iter().filter_map(|place| Some((place.arrival, Wish::of(&place.note)?)));
        Some(Queue { at, holder: holder.arrival, waiters: waiters.collect() })
    }
}
