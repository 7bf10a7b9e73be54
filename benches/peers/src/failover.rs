//! What a crash costs: how long writes wait after `kill -9` of a leader, and how many acknowledged ones are lost.
//!
//! A few writers write new keys, one after the other, all over the key space. One that meets the dead leader's part
//! of it tries again, with a new connection, until a write is acknowledged. Afterwards every key that was
//! acknowledged is read.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::load::{Client, Missing, Step};

/// Few, so that the outage is not hidden behind a queue, and enough to meet every part of the key space at once.
const WRITERS: usize = 4;
/// Writes go on for this long before the kill ...
const BEFORE: Duration = Duration::from_secs(2);
/// ... and at least this long after it ...
const AFTER: Duration = Duration::from_secs(3);
/// ... until no writer has waited for longer than this ...
const CALM: Duration = Duration::from_secs(1);
/// ... or this has passed.
const GIVE_UP: Duration = Duration::from_secs(60);
/// A write that is not answered by then is given up; the next one takes a new connection. Short, because what is sent
/// while nobody leads may hang until it is sent again (etcd), and then this is the resolution of the outage.
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between two attempts to connect.
const RECONNECT_EVERY: Duration = Duration::from_millis(10);
/// How often a key is asked for before it counts as unread.
const READ_ATTEMPTS: u32 = 10;
/// What is written.
const VALUE: &[u8] = b"acknowledged";

/// How a client finds its way to a peer, also after some of its servers died.
pub(crate) trait Connect: Clone + Send + Sync + 'static {
    /// What it connects.
    type Client: Client;
    /// A new client, by any server that answers.
    fn connect(&self) -> impl Future<Output = Result<Self::Client>> + Send;
}

/// What one kill did.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Outage {
    /// The longest that any writer had no write acknowledged, from the kill on.
    pub(crate) seconds: f64,
    /// Writes that were acknowledged, before and after.
    pub(crate) acknowledged: u64,
    /// Of these, how many were not there afterwards.
    pub(crate) lost: u64,
    /// Of these, how many could not be read afterwards: nobody answered.
    pub(crate) unread: u64,
}

/// Writes, lets `kill` kill, writes on, and reads.
pub(crate) async fn measure<C: Connect>(connect: C, kill: impl FnOnce() -> Result<()>) -> Result<Outage> {
    let start = Instant::now();
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let latest: Arc<Vec<AtomicU64>> = Arc::new((0..WRITERS).map(|_| AtomicU64::new(0)).collect());
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let (connect, latest, end) = (connect.clone(), Arc::clone(&latest), Arc::clone(&end));
        writers.spawn(async move { write(&connect, number, start, &latest[number], &end).await });
    }
    sleep(BEFORE).await;
    let killed = micros_since(start);
    kill()?;
    loop {
        sleep(RECONNECT_EVERY).await;
        let now = micros_since(start);
        let waits = latest.iter().map(|latest| now.saturating_sub(latest.load(Ordering::Relaxed))).max();
        let calm = Duration::from_micros(waits.unwrap_or(0)) < CALM;
        let passed = Duration::from_micros(now - killed);
        if (calm && passed >= AFTER) || passed >= GIVE_UP {
            ensure!(calm, "no writer gets on {} s after the kill", GIVE_UP.as_secs());
            end.store(now, Ordering::Relaxed);
            break;
        }
    }

    let mut longest = 0;
    let mut readers = JoinSet::new();
    let mut acknowledged = 0;
    while let Some(written) = writers.join_next().await {
        let written = written?;
        ensure!(written.iter().any(|write| write.at < killed), "no write was acknowledged before the kill");
        for pair in written.windows(2) {
            longest = longest.max(pair[1].at.saturating_sub(pair[0].at.max(killed)));
        }
        acknowledged += written.len() as u64;
        let connect = connect.clone();
        readers.spawn(async move { read(&connect, &written).await });
    }
    let (mut lost, mut unread) = (0, 0);
    while let Some(part) = readers.join_next().await {
        let part = part?;
        lost += part.0;
        unread += part.1;
    }
    Ok(Outage { seconds: Duration::from_micros(longest).as_secs_f64(), acknowledged, lost, unread })
}

/// A write that was acknowledged.
#[derive(Debug)]
struct Written {
    key: String,
    /// When, in microseconds since the start.
    at: u64,
}

async fn write<C: Connect>(
    connect: &C,
    number: usize,
    start: Instant,
    latest: &AtomicU64,
    end: &AtomicU64,
) -> Vec<Written> {
    let mut written = Vec::new();
    let mut client = None;
    // A key is never written again: what became of an attempt that failed is not known.
    for count in 0_u64.. {
        if micros_since(start) >= end.load(Ordering::Relaxed) {
            break;
        }
        if client.is_none() {
            client = timeout(ATTEMPT, connect.connect()).await.ok().and_then(Result::ok);
        }
        let Some(mut connected) = client.take() else {
            sleep(RECONNECT_EVERY).await;
            continue;
        };
        let key = format!("failover/{number}/{count}");
        if let Ok(Ok(())) = timeout(ATTEMPT, connected.step(Step::Put { key: &key, value: VALUE })).await {
            let at = micros_since(start);
            latest.store(at, Ordering::Relaxed);
            written.push(Written { key, at });
            client = Some(connected);
        } else {
            sleep(RECONNECT_EVERY).await;
        }
    }
    written
}

/// How many are lost, and how many could not be read.
async fn read<C: Connect>(connect: &C, written: &[Written]) -> (u64, u64) {
    let (mut lost, mut unread) = (0, 0);
    let mut client = None;
    'keys: for Written { key, .. } in written {
        for _ in 0..READ_ATTEMPTS {
            if client.is_none() {
                client = timeout(ATTEMPT, connect.connect()).await.ok().and_then(Result::ok);
            }
            if let Some(connected) = &mut client {
                match timeout(ATTEMPT, connected.step(Step::Get { key })).await {
                    Ok(Ok(())) => continue 'keys,
                    Ok(Err(error)) if error.is::<Missing>() => {
                        lost += 1;
                        continue 'keys;
                    }
                    _ => client = None,
                }
            }
            sleep(RECONNECT_EVERY).await;
        }
        unread += 1;
    }
    (lost, unread)
}

fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use anyhow::bail;

    use super::*;

    /// Refuses everything for a while after it was killed, and forgets every tenth key.
    #[derive(Debug, Clone, Default)]
    struct Forgetful {
        keys: Arc<Mutex<HashSet<String>>>,
        dead_until: Arc<Mutex<Option<Instant>>>,
    }

    impl Forgetful {
        fn dead(&self) -> bool {
            self.dead_until.lock().unwrap().is_some_and(|until| Instant::now() < until)
        }
    }

    impl Connect for Forgetful {
        type Client = Self;
        async fn connect(&self) -> Result<Self> {
            ensure!(!self.dead(), "refused");
            Ok(self.clone())
        }
    }

    impl Client for Forgetful {
        async fn step(&mut self, step: Step<'_>) -> Result<()> {
            ensure!(!self.dead(), "refused");
            sleep(Duration::from_millis(5)).await;
            match step {
                Step::Put { key, .. } if key.ends_with('7') => Ok(()),
                Step::Put { key, .. } => {
                    self.keys.lock().unwrap().insert(key.to_owned());
                    Ok(())
                }
                Step::Get { key } => {
                    ensure!(self.keys.lock().unwrap().contains(key), Missing);
                    Ok(())
                }
                Step::Cycle { .. } => bail!("no locks"),
            }
        }
    }

    #[tokio::test]
    async fn the_outage_and_what_was_lost_are_seen() {
        let peer = Forgetful::default();
        let outage = Duration::from_millis(700);
        let killed = peer.clone();
        let seen = measure(peer, || {
            *killed.dead_until.lock().unwrap() = Some(Instant::now() + outage);
            Ok(())
        })
        .await
        .unwrap();
        assert!(seen.seconds >= outage.as_secs_f64(), "{seen:?}");
        assert!(seen.lost > 0 && seen.lost < seen.acknowledged / 5, "{seen:?}");
        assert_eq!(seen.unread, 0, "{seen:?}");
    }
}
