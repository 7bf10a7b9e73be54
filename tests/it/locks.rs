//! Locks on real nodes in this process: alone, in turn, and with growing tokens, while nodes come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roundtable::client::{Client, Error, LockError};
use roundtable::id::NodeId;
use roundtable::node::Node;
use roundtable::ring::{PartitionCount, Token};
use roundtable::wire::Rpc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::checker::locks::{Section, violations};
use super::contender::Contender;
use super::swarm::{machine, on, settled, start, within};

const LEASE: Duration = Duration::from_secs(2);
const CONTENDERS: usize = 8;

/// Who leads the partition of a name.
async fn leader_of<R: Rpc>(client: &Client<R>, name: &str) -> NodeId {
    let find = async {
        loop {
            if let Ok(view) = client.view().await {
                let count = PartitionCount::new(view.partitions).expect("a number of partitions");
                let partition = count.partition_of(Token::of_key(name.as_bytes()));
                if let Some(leader) = view.leaders[partition.0 as usize] {
                    return leader;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the partition has a leader", find).await
}

/// Takes the lock again and again, until told to stop.
async fn contend<R: Rpc>(mut contender: Contender<R>, stop: Arc<AtomicBool>, begun: Instant) -> Vec<Section> {
    let mut sections = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match contender.section(std::future::ready(()), || begun.elapsed()).await {
            Ok(section) => sections.push(section),
            // While nodes go, somebody may be the last to hear of it.
            Err(LockError::Store(_) | LockError::Lost) => {}
            Err(error) => panic!("{error}"),
        }
    }
    sections
}

#[tokio::test(flavor = "multi_thread")]
async fn contenders_exclude_each_other_while_nodes_come_leave_and_die() {
    let machine = machine();
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..4 {
        nodes.push(start(on(&machine).replace_after(Duration::from_secs(2))).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let mut contenders = JoinSet::new();
    for number in 0..CONTENDERS {
        // The first two nodes stay.
        let contender = Contender {
            client: nodes[number % 2].client(),
            lock: "lock".to_owned(),
            key: "guarded".to_owned(),
            lease: LEASE,
            fenced: true,
            process: u32::try_from(number).unwrap(),
            lane: 0,
            wishes: 0,
        };
        contenders.spawn(contend(contender, Arc::clone(&stop), begun));
    }
    let pause = || tokio::time::sleep(Duration::from_secs(1));
    pause().await;
    within("the fourth leaves", nodes.pop().unwrap().leave()).await;
    nodes.push(start(on(&machine).replace_after(Duration::from_secs(2))).await);
    pause().await;
    // The third dies without a word.
    drop(nodes.remove(2));
    pause().await;
    nodes.push(start(on(&machine)).await);
    pause().await;
    stop.store(true, Ordering::Relaxed);
    let sections = within("all contenders end", contenders.join_all()).await;
    let sections = sections.concat();
    let accepted = sections.iter().filter(|section| section.left.is_some()).count();
    assert!(accepted > 100, "only {accepted} sections were accepted");
    let found = violations(&sections);
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_keep_their_places_when_the_leader_dies() {
    let machine = machine();
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..3 {
        nodes.push(start(on(&machine)).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let leader = leader_of(&nodes[0].client(), "lock").await;
    let at = nodes.iter().position(|node| node.id() == leader).unwrap();
    let dying = nodes.remove(at);

    let lease = Duration::from_secs(20);
    let holder = nodes[0].client();
    let guard = holder.lock("lock").lease(lease).acquire().await.unwrap();
    let mut waiting = JoinSet::new();
    for number in 0..5 {
        let client = nodes[number % 2].client();
        waiting.spawn(async move {
            let guard = client.lock("lock").lease(lease).acquire().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            (number, token)
        });
        let queued = async {
            while holder.lock_state("lock").await.unwrap().unwrap().waiters.len() <= number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("the place is taken", queued).await;
    }
    drop(dying);
    assert!(guard.is_held());
    let first = guard.token();
    within("release", guard.release()).await.unwrap();
    // Whose answer came first says nothing: who was served first has the lowest token.
    let served = within("all are served", waiting.join_all()).await;
    let mut by_token: Vec<_> = served.into_iter().map(|(number, token)| (token, number)).collect();
    by_token.sort_unstable();
    assert!(by_token[0].0 > first);
    assert_eq!(by_token.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holder_is_followed_within_its_lease_and_a_second() {
    let machine = machine();
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..3 {
        nodes.push(start(on(&machine)).await);
    }
    // The fourth has threads and sockets of its own, which end at once, as those of a process do.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let fourth = on(&machine);
    let fourth = process.spawn(async move { start(fourth).await }).await.unwrap();
    let mut all: Vec<_> = nodes.iter().collect();
    all.push(&fourth);
    settled(&all, 3).await;
    let survivor = nodes[0].client();
    let mut name = "lock".to_owned();
    while leader_of(&survivor, &name).await == fourth.id() {
        name.push('k');
    }
    let lock = fourth.client().lock(name.as_str()).lease(LEASE);
    let guard = process.spawn(async move { lock.acquire().await.unwrap() }).await.unwrap();
    let token = guard.token();
    process.shutdown_background();
    let start = Instant::now();
    let next = within("the next is served", survivor.lock(name).acquire()).await.unwrap();
    assert!(start.elapsed() < LEASE + Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(next.token() > token);
    survivor.put_fenced("key", "new", next.token()).await.unwrap();
    assert_eq!(survivor.put_fenced("key", "old", token).await, Err(Error::Fenced { current: next.token() }));
    within("the dead one knows", guard.lost()).await;
    assert!(!guard.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_locks_are_renewed_together_also_while_partitions_move() {
    let machine = machine();
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..3 {
        nodes.push(start(on(&machine)).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let client = nodes[0].client();
    let mut guards = Vec::new();
    for number in 0..100 {
        guards.push(client.lock(format!("lock {number}")).lease(LEASE).acquire().await.unwrap());
    }
    nodes.push(start(on(&machine)).await);
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    within("the second leaves", nodes.remove(1).leave()).await;
    tokio::time::sleep(LEASE * 2).await;
    for guard in guards {
        assert!(guard.is_held(), "{guard:?}");
        guard.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_with_a_lock_is_not_empty() {
    use roundtable::net::Secret;
    let (one, other) = (machine(), machine());
    let secret = Secret::random();
    let first = start(on(&one).secret(secret.clone())).await;
    let guard = first.client().lock("lock").acquire().await.unwrap();
    let second = start(on(&other).secret(secret.clone())).await;
    let matchmaker = on(&machine()).secret(secret).join([first.addresses(), second.addresses()].concat());
    let third = start(matchmaker).await;
    settled(&[&first, &second, &third], 3).await;
    let state = second.client().lock_state("lock").await.unwrap().unwrap();
    assert_eq!(state.holders[0].token, Some(guard.token()));
}
