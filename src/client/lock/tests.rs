//! Stories of holders and waiters on real state machines, with a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::client::tests::{MS, Mood, Net};
use crate::client::{Client, Error, LockError, LockGuard};

const LEASE: Duration = Duration::from_secs(3);

async fn take(client: &Client<Net>, name: &str) -> LockGuard<Net> {
    client.lock(name).lease(LEASE).acquire().await.unwrap()
}

async fn holders(client: &Client<Net>, name: &str) -> usize {
    client.lock_state(name).await.unwrap().map_or(0, |lock| lock.holders.len())
}

/// Two clients of one swarm.
fn two() -> (Net, Client<Net>, Client<Net>) {
    let net = Net::new();
    let (one, other) = (net.client_drawing(1), net.client_drawing(2));
    (net, one, other)
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_is_renewed_and_stays_held() {
    let (net, one, other) = two();
    let guard = take(&one, "a").await;
    assert!(timeout(20 * LEASE, guard.lost()).await.is_err());
    assert!(guard.is_held() && guard.remaining() > LEASE / 2);
    assert!((59..=61).contains(&net.renewals()), "{}", net.renewals());
    let error = other.lock("a").try_acquire().await.unwrap_err();
    assert_eq!(error, LockError::NotAcquired { ahead: 1 });
    guard.release().await.unwrap();
    assert_eq!(holders(&other, "a").await, 0);
}

#[tokio::test(start_paused = true)]
async fn one_renewal_message_covers_all_locks_that_a_node_leads() {
    let (net, one, _) = two();
    // Three of the eight partitions are led by the second node.
    for partition in [0, 3, 5] {
        net.lead(partition, 2);
    }
    let mut guards = Vec::new();
    for number in 0..100 {
        guards.push(take(&one, &format!("lock {number}")).await);
        sleep(7 * MS).await;
    }
    sleep(LEASE).await;
    let before = net.renewal_messages();
    sleep(10 * LEASE).await;
    // Two nodes, three renewals in each lease; though the locks were taken at different times.
    let messages = net.renewal_messages() - before;
    assert!((58..=62).contains(&messages), "{messages}");
    assert!(guards.iter().all(LockGuard::is_held));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_moves_or_falls_silent_holds_up_no_other_renewal() {
    let (net, one, _) = two();
    let mut guards = Vec::new();
    for number in 0..100 {
        guards.push(take(&one, &format!("lock {number}")).await);
    }
    // One moves, and its old leader says so.
    net.lead(3, 2);
    sleep(5 * LEASE).await;
    assert!(guards.iter().all(LockGuard::is_held));
    // Another moves to a node that nobody reaches: what it led is lost, and nothing else.
    net.mood(3, Mood::Silent);
    net.lead(6, 3);
    sleep(5 * LEASE).await;
    let lost = guards.iter().filter(|guard| !guard.is_held()).count();
    assert!((1..40).contains(&lost), "{lost}");
    let messages = net.renewal_messages();
    sleep(5 * LEASE).await;
    let still = guards.iter().filter(|guard| !guard.is_held()).count();
    assert_eq!((still, net.renewal_messages() - messages <= 32), (lost, true));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_stuck_takes_no_other_along() {
    let (net, one, _) = two();
    let mut guards = Vec::new();
    for number in 0..100 {
        guards.push(take(&one, &format!("lock {number}")).await);
    }
    let there = guards.len();
    // The others send on what they are asked, and wait for the same answer.
    net.mood(2, Mood::Forwarding);
    net.mood(3, Mood::Forwarding);
    net.stuck(3);
    let mut least = vec![LEASE; there];
    let end = Instant::now() + 5 * LEASE;
    while Instant::now() < end {
        sleep(10 * MS).await;
        for (least, guard) in least.iter_mut().zip(&guards) {
            *least = guard.remaining().min(*least);
        }
    }
    let lost = guards.iter().filter(|guard| !guard.is_held()).count();
    assert_eq!(lost, net.places(3), "its own are lost, and no others");
    // Two thirds of the lease were left, less what it does not rely on, and one attempt was in vain.
    least.retain(|least| !least.is_zero());
    assert!(least.iter().all(|least| *least > LEASE * 2 / 5), "{:?}", least.iter().min());
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_the_release() {
    let (_, one, other) = two();
    let guard = take(&one, "a").await;
    let mut waiting = JoinSet::new();
    let client = other.clone();
    waiting.spawn(async move { take(&client, "a").await });
    // Far longer than a lease: the place in the queue is renewed as well.
    sleep(5 * LEASE).await;
    assert_eq!(waiting.len(), 1);
    let token = guard.token();
    let start = Instant::now();
    guard.release().await.unwrap();
    let next = waiting.join_next().await.unwrap().unwrap();
    assert!(start.elapsed() < 10 * MS, "{:?}", start.elapsed());
    assert!(next.token() > token && next.is_held());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_leaves_the_queue() {
    let (_, one, other) = two();
    let guard = take(&one, "a").await;
    let start = Instant::now();
    let error = other.lock("a").wait(7 * LEASE).acquire().await.unwrap_err();
    assert_eq!(error, LockError::NotAcquired { ahead: 1 });
    assert!((7 * LEASE..7 * LEASE + 100 * MS).contains(&start.elapsed()));
    // The same, when the future is dropped.
    assert!(timeout(LEASE, take(&other, "a")).await.is_err());
    sleep(10 * MS).await;
    let state = other.lock_state("a").await.unwrap().unwrap();
    assert_eq!((state.holders.len(), state.waiters.len()), (1, 0));
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn who_waits_keeps_the_place_though_nobody_can_be_asked_for_a_while() {
    let (net, one, other) = two();
    let late = net.client_drawing(3);
    let guard = one.lock("a").lease(20 * LEASE).acquire().await.unwrap();
    let mut waiting = JoinSet::new();
    for (number, client, lease) in [(1, &other, LEASE), (2, &late, 20 * LEASE)] {
        let client = client.clone();
        waiting.spawn(async move {
            let guard = client.lock("a").lease(lease).acquire().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            (number, token)
        });
        sleep(10 * MS).await;
    }
    // The partition has no leader for longer than a lease, so its time stands still.
    net.stop_time(true);
    net.cut(true);
    sleep(3 * LEASE).await;
    net.cut(false);
    net.stop_time(false);
    guard.release().await.unwrap();
    let (first, token) = waiting.join_next().await.unwrap().unwrap();
    let (second, later) = waiting.join_next().await.unwrap().unwrap();
    assert_eq!((first, second), (1, 2), "the first was passed over");
    assert!(later > token);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_too_late_is_kept_and_relied_on_after_a_renewal() {
    let (net, one, other) = two();
    let late = net.client_drawing(3);
    let guard = one.lock("a").lease(LEASE / 6).acquire().await.unwrap();
    let mut waiting = JoinSet::new();
    for (number, client, lease) in [(1, &other, LEASE), (2, &late, 20 * LEASE)] {
        let client = client.clone();
        waiting.spawn(async move {
            let guard = client.lock("a").lease(lease).acquire().await.unwrap();
            (number, guard)
        });
        sleep(10 * MS).await;
    }
    // The first waiter's last renewal is more than a lease ago when it hears of its grant: the answer to what it
    // asked before still comes.
    net.stop_time(true);
    net.cut(true);
    sleep(LEASE + 300 * MS).await;
    net.stop_time(false);
    sleep(LEASE / 4).await;
    assert!(!guard.is_held() && waiting.try_join_next().is_none(), "relied on without a renewal");
    net.cut(false);
    let (number, next) = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(number, 1, "the first was passed over");
    assert!(next.is_held() && next.remaining() > LEASE / 2, "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_releases_in_the_background() {
    let (_, one, other) = two();
    drop(take(&one, "a").await);
    let start = Instant::now();
    take(&other, "a").await.release().await.unwrap();
    assert!(start.elapsed() < 20 * MS);
    // Also when the guard was the last that knew of its client.
    let guard = take(&other, "a").await;
    drop(other);
    drop(guard);
    take(&one, "a").await;
    assert!(start.elapsed() < 50 * MS, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_reaches_nobody_knows_before_another_holds() {
    let (net, one, other) = two();
    let guard = take(&one, "a").await;
    sleep(2 * LEASE).await;
    net.cut(true);
    let start = Instant::now();
    guard.lost().await;
    // Renewed up to a third of a lease before, and trusted for nine tenths.
    assert!((LEASE / 2..LEASE).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(!guard.is_held());
    net.cut(false);
    assert_eq!(holders(&other, "a").await, 1, "the lease is not over at the leader");
    let token = guard.token();
    let next = take(&other, "a").await;
    other.put_fenced("k", "new", next.token()).await.unwrap();
    assert_eq!(one.put_fenced("k", "old", token).await, Err(Error::Fenced { current: next.token() }));
    assert_eq!(one.delete_fenced("k", token).await, Err(Error::Fenced { current: next.token() }));
    // A lost lock does not come back.
    guard.lost().await;
    assert_eq!(guard.release().await, Err(LockError::Lost));
    assert!(next.is_held());
}

#[tokio::test(start_paused = true)]
async fn who_lost_a_lock_does_not_wait_to_release_it() {
    let (net, one, other) = two();
    let (guard, another) = (take(&one, "a").await, take(&one, "b").await);
    net.cut(true);
    guard.lost().await;
    another.lost().await;
    let start = Instant::now();
    assert_eq!(guard.release().await, Err(LockError::Lost));
    assert!(start.elapsed() < MS, "it waited for a partition that nobody reaches");
    // One that can be reached is told, and needs not wait for the end of the lease.
    net.cut(false);
    assert_eq!(another.release().await, Err(LockError::Lost));
    sleep(10 * MS).await;
    assert_eq!(holders(&other, "b").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_knows_that_it_lost() {
    let (net, _, other) = two();
    let ahead = Arc::new(AtomicU64::new(0));
    let sleeper = net.client_with(3, Arc::clone(&ahead));
    let guard = take(&sleeper, "a").await;
    sleep(MS).await;
    // Its timers stood still, its clock did not.
    ahead.store(60_000, Ordering::Relaxed);
    assert!(!guard.is_held());
    let start = Instant::now();
    guard.lost().await;
    assert!(start.elapsed() <= 250 * MS);
    drop(take(&other, "a").await);
}

#[tokio::test(start_paused = true)]
async fn one_lock_is_not_taken_twice_unless_that_is_asked_for() {
    let (_, one, _) = two();
    let lock = one.lock("a").lease(LEASE);
    let guard = lock.acquire().await.unwrap();
    assert_eq!(lock.acquire().await.unwrap_err(), LockError::Reentrant);
    // Another one excludes it, in the same client.
    assert!(matches!(one.lock("a").try_acquire().await, Err(LockError::NotAcquired { .. })));
    guard.release().await.unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();

    let lock = one.lock("a").reentrant();
    let (outer, inner) = (lock.acquire().await.unwrap(), lock.acquire().await.unwrap());
    assert_eq!(outer.token(), inner.token());
    inner.release().await.unwrap();
    assert_eq!(holders(&one, "a").await, 1);
    outer.release().await.unwrap();
    assert_eq!(holders(&one, "a").await, 0);
}

#[tokio::test(start_paused = true)]
async fn contenders_are_alone_and_come_in_turn() {
    let net = Net::new();
    let mut contenders = JoinSet::new();
    let inside = Arc::new(AtomicU64::new(0));
    for number in 0..16 {
        let client = net.client_drawing(number);
        let inside = Arc::clone(&inside);
        contenders.spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..20 {
                let guard = take(&client, "a").await;
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                sleep(2 * MS).await;
                inside.fetch_sub(1, Ordering::Relaxed);
                tokens.push((guard.token(), number));
                guard.release().await.unwrap();
            }
            tokens
        });
    }
    let mut grants: Vec<_> = contenders.join_all().await.concat();
    grants.sort_unstable();
    // Everyone asks again at once: after the first turn the order repeats itself.
    let order: Vec<u64> = grants.iter().map(|(_, number)| *number).collect();
    let passed_over = order[16..order.len() - 16]
        .windows(16)
        .filter(|turn| turn.iter().collect::<std::collections::BTreeSet<_>>().len() < 16)
        .count();
    assert_eq!(passed_over, 0, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_semaphore_lets_in_as_many_as_it_has_permits() {
    let (_, one, other) = two();
    let (ours, theirs) = (one.semaphore("pool", 2), other.semaphore("pool", 2));
    let (first, second) = (ours.acquire().await.unwrap(), theirs.try_acquire().await.unwrap());
    assert!(matches!(ours.try_acquire().await, Err(LockError::NotAcquired { ahead: 2 })));
    first.release().await.unwrap();
    ours.try_acquire().await.unwrap();
    second.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn readers_share_and_a_writer_is_alone() {
    let (_, one, other) = two();
    let (ours, theirs) = (one.rw_lock("a"), other.rw_lock("a").wait(10 * MS));
    let (first, second) = (ours.read().await.unwrap(), theirs.read().await.unwrap());
    assert!(theirs.write().await.is_err());
    first.release().await.unwrap();
    second.release().await.unwrap();
    let writer = theirs.write().await.unwrap();
    assert!(theirs.read().await.is_err());
    writer.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_observes_an_election_sees_each_leader() {
    let (_, one, other) = two();
    let election = one.election("boss").lease(LEASE);
    let mut seen = Box::pin(other.election("boss").observe());
    let mut next = async || seen.next().await.unwrap().unwrap();
    assert_eq!(next().await, None);
    let leadership = election.campaign("first").await.unwrap();
    let leader = next().await.unwrap();
    assert_eq!((leader.proclaims, leader.token), (b"first".to_vec(), leadership.token()));
    leadership.proclaim("first, elsewhere").await.unwrap();
    assert_eq!(next().await.unwrap().proclaims, b"first, elsewhere");
    leadership.resign().await.unwrap();
    assert_eq!(next().await, None);
}

#[tokio::test(start_paused = true)]
async fn all_locks_are_listed() {
    let (_, one, other) = two();
    let mut guards = Vec::new();
    for number in 0..250 {
        guards.push(one.lock(format!("{number}")).note("me").acquire().await.unwrap());
    }
    let locks: Vec<_> = other.locks().try_collect().await.unwrap();
    assert_eq!(locks.len(), 250);
    assert!(locks.iter().all(|(_, lock)| lock.holders[0].note == b"me"));
}
