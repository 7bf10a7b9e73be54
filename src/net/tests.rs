//! Several networks in one process, on loopback, at ports that the system chooses.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

/// Longest wait for something that must happen. Only a failing test waits that long.
const SOON: Duration = Duration::from_secs(20);
/// Time-out of calls that are expected to be answered.
const CALL: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Up { node: NodeId, inbound: bool },
    Down { node: NodeId, reason: String },
    Message(Bytes),
}

/// Echoes requests, or holds them until told otherwise; remembers the rest.
struct Handler {
    seen: mpsc::Sender<Seen>,
    holds: bool,
    held: Mutex<Vec<Responder>>,
    holding: Notify,
}

impl Inbound for Handler {
    fn link_up(&self, link: &LinkInfo) {
        let _ = self.seen.try_send(Seen::Up { node: link.node, inbound: link.inbound });
    }

    fn link_down(&self, node: NodeId, reason: &str) {
        let _ = self.seen.try_send(Seen::Down { node, reason: reason.to_owned() });
    }

    fn request(&self, _: NodeId, _: Role, body: Bytes, respond: Responder) {
        if self.holds {
            lock(&self.held).push(respond);
            self.holding.notify_one();
        } else {
            respond.send(body.to_vec());
        }
    }

    fn message(&self, _: NodeId, body: Bytes) {
        let _ = self.seen.try_send(Seen::Message(body));
    }
}

/// A network under test.
struct Peer {
    net: Net,
    handler: Arc<Handler>,
    seen: mpsc::Receiver<Seen>,
    events: mpsc::Receiver<NetEvent>,
}

fn config() -> NetConfig {
    NetConfig {
        listen: vec!["127.0.0.1".into()],
        port: PortPolicy::Exact(0),
        ..NetConfig::new(Identity::generate(), "test")
    }
}

/// Two configurations, the one with the smaller node first.
fn two_configs() -> (NetConfig, NetConfig) {
    let (a, b) = (config(), config());
    if a.identity.node_id() < b.identity.node_id() { (a, b) } else { (b, a) }
}

async fn start_with(config: NetConfig, holds: bool) -> Peer {
    let (sender, seen) = mpsc::channel(100_000);
    let handler = Arc::new(Handler { seen: sender, holds, held: Mutex::default(), holding: Notify::new() });
    let (net, events) = Net::start(config, handler.clone()).await.unwrap();
    Peer { net, handler, seen, events }
}

async fn start(config: NetConfig) -> Peer {
    start_with(config, false).await
}

impl Peer {
    fn id(&self) -> NodeId {
        self.net.node_id()
    }

    fn address(&self) -> String {
        self.net.listen_addresses()[0].clone()
    }

    fn port(&self) -> u16 {
        self.address().rsplit('/').next().unwrap().parse().unwrap()
    }

    async fn next(&mut self) -> Seen {
        tokio::time::timeout(SOON, self.seen.recv()).await.expect("nothing was seen").unwrap()
    }

    async fn until_up(&mut self, expected: NodeId) {
        match self.next().await {
            Seen::Up { node, .. } => assert_eq!(node, expected),
            other => panic!("{other:?}"),
        }
    }

    async fn until_down(&mut self, expected: NodeId) -> String {
        match self.next().await {
            Seen::Down { node, reason } => {
                assert_eq!(node, expected);
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next event that is not about listening.
    async fn event(&mut self) -> NetEvent {
        loop {
            let event = tokio::time::timeout(SOON, self.events.recv()).await.expect("no event").unwrap();
            if !matches!(event, NetEvent::NewListenAddress(_)) {
                return event;
            }
        }
    }

    async fn refusal(&mut self) -> String {
        match self.event().await {
            NetEvent::Refused { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Returns when `count` requests are held.
    async fn until_holding(&self, count: usize) {
        let wait = async {
            loop {
                let holding = self.handler.holding.notified();
                if lock(&self.handler.held).len() >= count {
                    return;
                }
                holding.await;
            }
        };
        tokio::time::timeout(SOON, wait).await.expect("requests arrive");
    }
}

/// Links `a` to `b` by dialling.
async fn link(a: &mut Peer, b: &mut Peer) {
    a.net.dial(&b.address()).unwrap();
    a.until_up(b.id()).await;
    b.until_up(a.id()).await;
}

async fn linked_pair() -> (Peer, Peer) {
    let (mut a, mut b) = (start(config()).await, start(config()).await);
    link(&mut a, &mut b).await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_ends_in_a_link_that_both_see() {
    let (mut a, b) = linked_pair().await;
    let address = b.address();
    assert_eq!(a.event().await, NetEvent::Reached { address: address.clone(), node: b.id() });
    let links = a.net.links();
    assert_eq!(links.len(), 1);
    assert_eq!((links[0].node, links[0].inbound, &links[0].address), (b.id(), false, &address));
    assert!(b.net.links()[0].inbound);
    assert_eq!(Rpc::linked(&a.net), [b.id()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_in_flight_get_their_own_answers() {
    let (a, b) = linked_pair().await;
    let mut calls = tokio::task::JoinSet::new();
    for caller in 0..100u32 {
        let (net, to) = (a.net.clone(), b.id());
        calls.spawn(async move {
            let calls = (0..100u32).map(|i| {
                let body = format!("{caller} {i}").into_bytes();
                let net = &net;
                async move { assert_eq!(net.call(to, body.clone(), CALL).await.unwrap(), body) }
            });
            futures::future::join_all(calls).await;
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    assert_eq!(a.net.link(b.id()).unwrap().pending_calls(), 0);
    let large = vec![7; crate::codec::MAX_MESSAGE_BYTES];
    assert_eq!(a.net.call(b.id(), large.clone(), CALL).await.unwrap(), large);
    let too_large = vec![7; crate::codec::MAX_MESSAGE_BYTES + 1];
    assert!(matches!(a.net.call(b.id(), too_large, CALL).await, Err(CallError::NotSent(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_in_order() {
    let (a, mut b) = linked_pair().await;
    for i in 0..20_000u32 {
        a.net.send(b.id(), i.to_le_bytes().to_vec()).unwrap();
    }
    for i in 0..20_000u32 {
        assert_eq!(b.next().await, Seen::Message(i.to_le_bytes().to_vec().into()));
    }
    assert_eq!(a.net.send(a.id(), Vec::new()), Err(SendError::NoLink));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_messages() {
    let (a, b) = linked_pair().await;
    let large = vec![0; crate::codec::MAX_MESSAGE_BYTES];
    // Written faster than any link takes it: nothing awaits in between.
    let sent: Vec<_> = (0..1000).map(|_| a.net.send(b.id(), large.clone())).collect();
    assert_eq!(sent[0], Ok(()));
    assert!(sent.contains(&Err(SendError::Full)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_secret_or_name_is_refused_and_both_say_so() {
    let secret = Some(Secret::random());
    let ours = NetConfig { secret, ..config() };
    let others = [
        NetConfig { secret: Some(Secret::random()), ..config() },
        config(),
        NetConfig { secret: ours.secret.clone(), swarm_name: "other".into(), ..config() },
    ];
    for other in others {
        let mut a = start(ours.clone()).await;
        let mut b = start(other).await;
        a.net.dial(&b.address()).unwrap();
        assert!(a.refusal().await.contains("another secret or swarm name"));
        assert!(b.refusal().await.contains("another secret or swarm name"));
        assert!(a.net.links().is_empty() && b.net.links().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_version_is_refused_and_both_name_both() {
    let mut a = start(config()).await;
    let mut b = start(NetConfig { protocol_version: 77, ..config() }).await;
    a.net.dial(&b.address()).unwrap();
    let ours = PROTOCOL_VERSION;
    assert_eq!(
        a.refusal().await,
        format!("it speaks protocol version 77, this program speaks version {ours}")
    );
    assert_eq!(
        b.refusal().await,
        format!("it speaks protocol version {ours}, this program speaks version 77")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_changes_nothing() {
    let (mut a, mut b) = (start(config()).await, start(config()).await);
    let garbage = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        u32::MAX.to_le_bytes().to_vec(),
        [b"\x13/multistream/1.0.0\n\x07/noise\n".to_vec(), vec![0xff; 70_000]].concat(),
    ];
    let port = b.port();
    let attack = tokio::task::spawn_blocking(move || {
        for bytes in garbage {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            // The other side may hang up in the middle.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    attack.await.unwrap();
    assert!(matches!(b.event().await, NetEvent::Refused { .. }));
    link(&mut a, &mut b).await;
    assert_eq!(a.net.call(b.id(), b"still here".to_vec(), CALL).await.unwrap(), "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_roundtable_is_told_from_a_closed_port() {
    let mut a = start(config()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let http = async {
        use tokio::io::AsyncWriteExt;
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nno\r\n").await;
            open.push(stream);
        }
    };
    a.net.dial(&address.to_string()).unwrap();
    tokio::select! {
        reason = a.refusal() => assert_eq!(reason, "something that is not Roundtable answers there"),
        () = http => {}
    }
    drop(listener);
    match a.event().await {
        NetEvent::DialFailed { reason, .. } => assert!(reason.contains("connection refused"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_unanswered_requests_are_refused_unharmed() {
    let mut a = start(config()).await;
    let mut b = start_with(config(), true).await;
    link(&mut a, &mut b).await;
    let limit = 4096;
    let held: Vec<_> = (0..limit)
        .map(|_| {
            let (net, to) = (a.net.clone(), b.id());
            async move { net.call(to, Vec::new(), CALL).await }
        })
        .collect();
    let mut calls = tokio::task::JoinSet::new();
    for call in held {
        calls.spawn(call);
    }
    b.until_holding(limit).await;
    assert_eq!(a.net.call(b.id(), Vec::new(), CALL).await, Err(CallError::NotSent("the node is overloaded")));
    let mut held = std::mem::take(&mut *lock(&b.handler.held));
    drop(held.pop());
    for respond in held {
        respond.send(b"late".to_vec());
    }
    let mut lost = 0;
    while let Some(outcome) = calls.join_next().await {
        match outcome.unwrap() {
            Ok(body) => assert_eq!(body, "late"),
            Err(CallError::Lost(_)) => lost += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(lost, 1, "the one whose responder was dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_dies_fails_the_calls_that_wait_for_it() {
    let mut a = start(config()).await;
    let mut b = start_with(config(), true).await;
    link(&mut a, &mut b).await;
    let (net, id) = (a.net.clone(), b.id());
    let mut calls = tokio::task::JoinSet::new();
    calls.spawn(async move { net.call(id, Vec::new(), CALL).await });
    b.until_holding(1).await;
    drop(b);
    assert_eq!(calls.join_next().await.unwrap().unwrap(), Err(CallError::Lost("the link broke")));
    a.until_down(id).await;
    assert!(!a.net.is_linked(id));
    assert_eq!(a.net.call(id, Vec::new(), CALL).await, Err(CallError::NotSent("no link")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_leaves_nothing_behind() {
    let mut a = start(config()).await;
    let mut b = start_with(config(), true).await;
    link(&mut a, &mut b).await;
    let call = a.net.call(b.id(), Vec::new(), Duration::from_millis(20));
    assert_eq!(call.await, Err(CallError::Lost("the time was up")));
    let call = a.net.call(b.id(), Vec::new(), CALL);
    tokio::select! {
        _ = call => panic!("nobody answers"),
        () = b.until_holding(2) => {}
    }
    assert_eq!(a.net.link(b.id()).unwrap().pending_calls(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_end_in_one_link_that_both_keep() {
    for _ in 0..10 {
        let (mut a, mut b) = (start(config()).await, start(config()).await);
        a.net.dial(&b.address()).unwrap();
        b.net.dial(&a.address()).unwrap();
        a.until_up(b.id()).await;
        b.until_up(a.id()).await;
        // Both dials are settled, whichever way, when both addresses are reported as reached.
        assert!(matches!(a.event().await, NetEvent::Reached { .. }));
        assert!(matches!(b.event().await, NetEvent::Reached { .. }));
        assert_eq!(a.net.call(b.id(), b"1".to_vec(), CALL).await.unwrap(), "1");
        assert_eq!(b.net.call(a.id(), b"2".to_vec(), CALL).await.unwrap(), "2");
        assert_ne!(a.net.links()[0].inbound, b.net.links()[0].inbound, "the same connection");
        assert!(a.seen.is_empty() && b.seen.is_empty(), "no link went down for it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_node_is_found_again_after_its_restart() {
    for smaller_restarts in [true, false] {
        let (small, large) = two_configs();
        let (stays, mut restarts) = if smaller_restarts { (large, small) } else { (small, large) };
        let mut a = start(stays).await;
        let mut b = start(restarts.clone()).await;
        a.net.keep(b.id(), vec![b.address()]);
        a.until_up(b.id()).await;
        b.until_up(a.id()).await;
        let id = b.id();
        restarts.port = PortPolicy::Exact(b.port());
        b.net.shutdown().await;
        assert_eq!(a.until_down(id).await, "closed by the other side: it shuts down");
        let mut b = start(restarts).await;
        a.until_up(id).await;
        b.until_up(a.id()).await;
        assert_eq!(a.net.call(id, b"again".to_vec(), CALL).await.unwrap(), "again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_link_comes_back_if_kept_and_not_if_forgotten() {
    let (mut a, mut b) = (start(config()).await, start(config()).await);
    a.net.keep(b.id(), vec![b.address()]);
    a.until_up(b.id()).await;
    b.until_up(a.id()).await;
    // More often than a node may have connections to another: each must really be closed.
    for _ in 0..5 {
        a.net.close(b.id(), "a test");
        assert_eq!(a.until_down(b.id()).await, "closed here: a test");
        assert_eq!(b.until_down(a.id()).await, "closed by the other side: a test");
        a.until_up(b.id()).await;
        b.until_up(a.id()).await;
    }

    a.net.forget(b.id());
    a.net.close(b.id(), "a test");
    a.until_down(b.id()).await;
    b.until_down(a.id()).await;
    let wait = tokio::time::timeout(Duration::from_millis(300), a.seen.recv()).await;
    assert!(wait.is_err(), "{wait:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitor_is_served_and_known_as_one() {
    let mut a = start(config()).await;
    let mut visitor = start(NetConfig { role: Role::Visitor, listen: Vec::new(), ..config() }).await;
    assert!(visitor.net.listen_addresses().is_empty());
    visitor.net.want(a.id(), vec![a.address()]);
    visitor.until_up(a.id()).await;
    a.until_up(visitor.id()).await;
    assert_eq!(a.net.links()[0].role, Role::Visitor);
    assert_eq!(Rpc::linked(&a.net), []);
    assert_eq!(visitor.net.call(a.id(), b"x".to_vec(), CALL).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_with_the_same_identity_is_refused_and_both_sides_say_so() {
    let original = config();
    let mut a = start(config()).await;
    let mut b = start(original.clone()).await;
    link(&mut a, &mut b).await;
    assert!(matches!(a.event().await, NetEvent::Reached { .. }));
    let mut copy = start(original).await;
    copy.net.dial(&a.address()).unwrap();
    assert!(a.refusal().await.contains("a second process presents the identity"));
    assert!(copy.refusal().await.contains("another process runs with this node's identity"));
    assert!(copy.net.links().is_empty());
    assert_eq!(a.net.call(b.id(), b"x".to_vec(), CALL).await.unwrap(), "x");

    copy.net.undial(&a.address()).unwrap();
    copy.net.dial(&b.address()).unwrap();
    assert!(copy.refusal().await.contains("with this node's identity"));
    assert!(b.refusal().await.contains("with this node's identity"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialling_oneself_is_nothing_to_talk_about() {
    let (mut a, mut b) = (start(config()).await, start(config()).await);
    a.net.dial(&format!("localhost:{}", a.port())).unwrap();
    a.net.dial(&a.address()).unwrap();
    // What comes after the self-dials have been judged is the first thing that is said.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    link(&mut a, &mut b).await;
    let event = a.event().await;
    assert!(matches!(event, NetEvent::Reached { .. }), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_link_is_closed() {
    let attentive = Heartbeat { interval: Duration::from_millis(50), limit: Duration::from_millis(200) };
    let mute = Heartbeat { interval: Duration::from_secs(600), limit: Duration::from_secs(6000) };
    let mut a = start(NetConfig { heartbeat: attentive, ..config() }).await;
    let mut b = start(NetConfig { heartbeat: mute, ..config() }).await;
    link(&mut a, &mut b).await;
    assert_eq!(a.until_down(b.id()).await, "no heartbeat for 200ms");
    assert_eq!(b.until_down(a.id()).await, "connection closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_links_can_be_cut_and_are_made_again() {
    let (mut a, mut b) = linked_pair().await;
    a.net.keep(b.id(), vec![b.address()]);
    a.net.cut_all("it slept").await;
    // Told before `cut_all` returned.
    assert!(
        matches!(a.seen.try_recv(), Ok(Seen::Down { node, reason }) if node == b.id() && reason == "it slept")
    );
    b.until_down(a.id()).await;
    a.until_up(b.id()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_link_stays_up() {
    let heartbeat = Heartbeat { interval: Duration::from_millis(50), limit: Duration::from_millis(400) };
    let mut a = start(NetConfig { heartbeat, ..config() }).await;
    let mut b = start(NetConfig { heartbeat, ..config() }).await;
    link(&mut a, &mut b).await;
    let wait = tokio::time::timeout(Duration::from_millis(1200), a.seen.recv()).await;
    assert!(wait.is_err(), "{wait:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_said_or_counted_past() {
    let a = start(config()).await;
    let taken = PortPolicy::Exact(a.port());
    let handler = a.handler.clone();
    let error = Net::start(NetConfig { port: taken, ..config() }, handler).await.unwrap_err();
    assert!(error.to_string().contains("is in use by another program"), "{error}");

    let counting = PortPolicy::CountUp { base: a.port(), tries: 50 };
    let b = start(NetConfig { port: counting, ..config() }).await;
    let c = start(NetConfig { port: counting, ..config() }).await;
    assert!(a.port() < b.port() && b.port() < c.port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_shutdown_nothing_is_left() {
    let (a, mut b) = linked_pair().await;
    let port = a.port();
    a.net.send(b.id(), b"last words".to_vec()).unwrap();
    a.net.shutdown().await;
    assert!(a.net.shared.tasks.is_empty());
    assert!(a.net.links().is_empty());
    assert_eq!(b.next().await, Seen::Message("last words".into()));
    assert_eq!(b.until_down(a.id()).await, "closed by the other side: it shuts down");
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}
