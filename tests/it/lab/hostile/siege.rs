//! Three nodes with a secret, at work, and those who mean them ill: strangers without the secret, and members who have
//! it and break every rule. The nodes stay up, their clients' work goes on and is right, their memory and their logs
//! are bounded, and they say who it was.
//!
//! What a member says that is well formed is believed: lies about elections or about a log are outside of it. Those
//! below are caught, or do no harm.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roundtable::codec;
use roundtable::dataset::{BlockId, BlockInfo, Format};
use roundtable::id::{DatasetId, JobId, NodeId, PartitionId, ReplicaId, SwarmId};
use roundtable::net::{Identity, Inbound, LinkInfo, Net, NetConfig, Responder, Role, Secret, Ticket};
use roundtable::node::DEFAULT_PARTITIONS;
use roundtable::replication::{Body, GroupMessage, LogEntry, RaftKind, RaftMessage, SnapshotChunk};
use roundtable::sort::Order;
use roundtable::wire::{
    BlockRefusal, BlockRequest, BlockResponse, Hello, InputRef, Message, Request, Response, Rpc, RunRef,
    SwarmState, WorkError, WorkRequest, WorkResponse,
};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::raw::{self, Raw, RawLink, ends};
use crate::lab::judge::Story;
use crate::lab::load::{Load, Work};
use crate::lab::{LIMIT, Lab, say, within};

const NODES: usize = 3;
/// Most that a node may take in memory, whatever it is sent: the budgets of its queues, twice, and itself.
const MEMORY_LIMIT_KIB: u64 = 320 * 1024;
/// Longest log of a node that is flooded with what it refuses.
const LOG_LIMIT_BYTES: usize = 256 * 1024;
/// Operations between two attacks.
const SOME: usize = 200;
/// Time that a request may take.
const CALL: Duration = Duration::from_secs(20);
/// The verdict on a wrong proof.
const WRONG_SECRET: u8 = 3;

/// Nodes under attack, and clients that go on.
struct Siege {
    lab: Lab,
    runtime: Runtime,
    ticket: Ticket,
    /// Of each node, where it is.
    addresses: Vec<String>,
    swarm: SwarmId,
    nodes: Vec<NodeId>,
    load: Load,
    most_kib: u64,
}

impl Siege {
    fn begin() -> Self {
        let mut lab = Lab::this_machine();
        let file = crate::lab::start::secret_file(&lab, "secret");
        for node in 0..NODES {
            lab.up(node, &["--secret-file", &file, "--replace-after", "1s"]);
            lab.ready(node);
        }
        lab.settled();
        let text = lab.cli(0, &["ticket"]).out.trim().to_owned();
        let ids: Vec<String> = (0..NODES).map(|node| lab.id(node)).collect();
        let addresses = (0..NODES).map(|node| {
            let line = lab.says(node, " listens on ");
            let port = line.rsplit(':').next().expect("a port").trim().to_owned();
            format!("/ip4/127.0.0.1/tcp/{port}")
        });
        let addresses = addresses.collect();
        let members = lab.members(0).expect("it answers");
        let load = lab.load(0, std::slice::from_ref(&text), 8, Work::Mixed);
        let mut siege = Self {
            runtime: Runtime::new().expect("a runtime"),
            ticket: text.parse().expect("a ticket"),
            addresses,
            swarm: members.swarm.parse().expect("a swarm"),
            nodes: ids.iter().map(|id| id.parse().expect("a node")).collect(),
            load,
            most_kib: 0,
            lab,
        };
        siege.load.goes_on(SOME);
        siege
    }

    /// The clients' work goes on, and nobody has grown too large.
    fn goes_on(&mut self, after: &str) {
        self.load.goes_on(SOME);
        for node in 0..NODES {
            let resident = self.lab.node(node).resident_kib();
            self.most_kib = self.most_kib.max(resident);
            assert!(resident <= MEMORY_LIMIT_KIB, "node {node} holds {resident} KiB after {after}");
        }
    }

    /// Node 0 says that it was this one, and what it did.
    fn named(&mut self, who: NodeId, what: &str) {
        let who = who.to_string();
        let node = self.lab.node(0);
        within(LIMIT, &format!("node 0 says what {who} did: {what}"), || {
            let output = node.output();
            output.lines().any(|line| line.contains(&who) && line.contains(what)).then_some(())
        });
    }

    /// Everybody is there, and all that was acknowledged.
    fn end(mut self) {
        self.lab.settled();
        self.load.goes_on(SOME);
        let mut story = Story::default();
        story.add(self.load.stop());
        let at_the_end = self.lab.each_key(0, &[self.ticket.to_string()], Work::ReadEachOnce);
        story.assert_no_error();
        story.assert_nothing_lost(&at_the_end);
        story.assert_linearizable(&at_the_end);
        for node in 0..NODES {
            let output = self.lab.node(node).output();
            assert!(!output.contains("panicked"), "{output}");
            assert!(output.len() <= LOG_LIMIT_BYTES, "node {node} has written {} bytes", output.len());
        }
        say(&format!("{} operations went on; no node held more than {} KiB", story.len(), self.most_kib));
    }

    /// A member of the same swarm, as it says, linked with node 0.
    fn member(&self) -> RawLink {
        let hello = Hello {
            state: SwarmState::Founded { swarm: self.swarm, partitions: DEFAULT_PARTITIONS },
            empty: false,
        };
        self.runtime.block_on(async {
            let mut link = Raw::link(&self.ticket, &self.addresses[0]).await;
            link.say(&codec::encode(&Message::Hello(hello))).await.expect("it listens");
            link
        })
    }

    /// Tells node 0 something so many times, or until it has heard enough.
    fn flood(&self, member: &mut RawLink, message: &[u8], times: usize) {
        self.runtime.block_on(async {
            for _ in 0..times {
                if member.say(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[test]
fn strangers_do_not_get_in_by_what_others_said() {
    let mut siege = Siege::begin();
    let ticket = siege.ticket.clone();
    let address = siege.addresses[0].clone();
    let other = Ticket { secret: Some(Secret::random()), ..ticket.clone() };
    // A friend that came at the same moment would be taken for it.
    within(LIMIT, "node 0 says that it refused a stranger", || {
        assert!(siege.runtime.block_on(Raw::dial(&other, &address)).is_err(), "another secret got through");
        siege.lab.node(0).output().contains("refused 127.0.0.1: it has another secret").then_some(())
    });
    siege.goes_on("another secret");

    let said = siege.runtime.block_on(Raw::link(&ticket, &address)).introduction;
    let guessed = raw::Introduction { proof: vec![7; 32], ..said.clone() };
    for introduction in [said, guessed] {
        let verdict = siege.runtime.block_on(async {
            let stranger = Raw::dial(&ticket, &address).await.expect("it listens");
            let mut requests = stranger.open(raw::REQUESTS).await.expect("a substream");
            let _messages = stranger.open(raw::MESSAGES).await.expect("a substream");
            let (verdict, _) =
                stranger.introduce(&mut requests, &ticket, Some(&introduction)).await.expect("a verdict");
            assert!(ends(&mut requests).await, "it is let go");
            verdict
        });
        assert_eq!(verdict, WRONG_SECRET, "a proof that is not fresh was taken");
    }
    siege.lab.says(0, "it has another secret");

    // Half of an admission, and nothing more.
    siege.runtime.block_on(async {
        let stranger = Raw::dial(&ticket, &address).await.expect("it listens");
        let mut requests = stranger.open(raw::REQUESTS).await.expect("a substream");
        assert!(ends(&mut requests).await, "who says nothing is let go");
    });
    siege.goes_on("silence");
    siege.end();
}

#[test]
fn who_breaks_the_framing_is_cut_off_and_named() {
    let mut siege = Siege::begin();
    let four_gib = u32::MAX.to_le_bytes().to_vec();
    let no_kind = raw::frame(99, 0, b"?");
    let no_tag = 3_u32.to_le_bytes().to_vec();
    let broken = [(four_gib, "4294967295 bytes"), (no_kind, "malformed frame"), (no_tag, "malformed frame")];
    for (bytes, what) in broken {
        for on_messages in [false, true] {
            let mut member = siege.member();
            let who = member.id();
            siege.runtime.block_on(async {
                use futures::AsyncWriteExt as _;
                let stream = if on_messages { &mut member.messages } else { &mut member.requests };
                // It may be cut off before it has said all of it.
                let _ = stream.write_all(&[&bytes[..], &[0; 4096]].concat()).await;
                let _ = stream.flush().await;
                assert!(ends(&mut member.requests).await, "it goes on with who breaks the framing");
            });
            siege.named(who, what);
        }
        siege.goes_on(what);
    }

    // More substreams than a link has, until it is told to stop.
    let member = siege.member();
    let opened = siege.runtime.block_on(async {
        let mut opened = Vec::new();
        while opened.len() < 1000
            && let Ok(stream) = member.connection.open(raw::MESSAGES).await
        {
            opened.push(stream);
        }
        opened.len()
    });
    assert!(opened < 1000, "substreams have no end");
    say(&format!("{opened} more substreams were opened"));
    siege.goes_on("substreams");

    // It asks and asks, and reads no answer.
    let mut deaf = siege.member();
    let who = deaf.id();
    siege.runtime.block_on(async {
        let request = codec::encode(&Request::View);
        let mut number = 0;
        while deaf.ask(number, &request).await.is_ok() {
            number += 1;
            assert!(number < 10_000_000, "nobody minds that it reads nothing");
        }
    });
    siege.named(who, "does not read what it asked for");
    siege.goes_on("answers that nobody reads");

    // Frames that never end, on both substreams of several links; they hold what has arrived.
    let mut endless: Vec<RawLink> = (0..4).map(|_| siege.member()).collect();
    siege.runtime.block_on(async {
        use futures::AsyncWriteExt as _;
        let long = raw::frame(5, 0, &vec![0; codec::MAX_MESSAGE_BYTES]);
        for member in &mut endless {
            for stream in [&mut member.messages, &mut member.requests] {
                stream.write_all(&long[..long.len() - 1]).await.expect("it listens");
                stream.flush().await.expect("it listens");
            }
        }
    });
    siege.goes_on("frames without an end");
    drop(endless);
    siege.end();
}

#[test]
fn what_members_say_that_cannot_be_is_dropped_and_they_are_named() {
    let mut siege = Siege::begin();
    let mut member = siege.member();
    let who = member.id();

    // Nothing that can be read, very often: named, and not once for each.
    siege.flood(&mut member, b"\xff\xff\xff\xff", 50_000);
    siege.named(who, "message refused");
    siege.goes_on("messages that cannot be read");

    // All that a frame can hold of the shortest messages there are.
    let swarm = siege.swarm;
    let inquiry =
        GroupMessage { partition: PartitionId(0), from: ReplicaId(1), to: ReplicaId(0), body: Body::Inquiry };
    let many = |count| codec::encode(&Message::Groups { swarm, messages: vec![inquiry.clone(); count] });
    let long = many((codec::MAX_MESSAGE_BYTES - 64) / 4);
    assert!(long.len() > codec::MAX_MESSAGE_BYTES / 2 && long.len() <= codec::MAX_MESSAGE_BYTES);
    siege.flood(&mut member, &long, 32);
    siege.goes_on("long frames of short messages");
    siege.flood(&mut member, &many(4096), 2000);
    siege.goes_on("many frames of short messages");

    // The same with entries, renewals and leaderships.
    let entry = LogEntry { term: 0, config: false, data: Bytes::new(), context: Bytes::new() };
    let entries = vec![entry; (codec::MAX_MESSAGE_BYTES - 1024) / 4];
    let append = raft(RaftKind::Append, 1, entries);
    let message =
        GroupMessage { partition: PartitionId(0), from: ReplicaId(9), to: ReplicaId(9), body: append };
    siege.flood(&mut member, &codec::encode(&Message::Groups { swarm, messages: vec![message] }), 16);
    siege.goes_on("a frame of empty entries");
    let leads = vec![(PartitionId(70_000), 1); 500_000];
    siege.flood(&mut member, &codec::encode(&Message::Leading { swarm, leads }), 32);
    siege.goes_on("leaderships of partitions that do not exist");

    // Raft in another's name, in groups that do not exist, with numbers beyond all sense, and states of any length.
    let mut bogus = Vec::new();
    for kind in [
        RaftKind::Append,
        RaftKind::Vote,
        RaftKind::PreVote,
        RaftKind::Heartbeat,
        RaftKind::TimeoutNow,
        RaftKind::VoteResponse,
        RaftKind::AppendResponse,
    ] {
        for partition in 0..64 {
            for replica in 1..=3 {
                for (from, to) in [(replica, 1), (replica, 2), (replica, 3)] {
                    // Whoever these replicas are, they do not live where this comes from.
                    bogus.push(group(partition, from, to, raft(kind, 1 << 40, Vec::new())));
                }
            }
            bogus.push(group(partition, u64::MAX, 1, raft(kind, 1, Vec::new())));
            bogus.push(group(partition, 4, 1, raft(kind, u64::MAX, Vec::new())));
        }
        bogus.push(group(1 << 20, 1, 1, raft(kind, 1 << 40, Vec::new())));
        bogus.push(group(u32::MAX, 1, 1, raft(kind, 1, Vec::new())));
    }
    let header = vec![0xff; 60];
    let chunk = |offset| SnapshotChunk { transfer: 1, header: header.clone(), offset, data: vec![1; 1000] };
    bogus.extend([0, 1 << 40, u64::MAX].map(|at| group(0, 1, 1, Body::SnapshotChunk(chunk(at)))));
    for some in bogus.chunks(500) {
        let message = codec::encode(&Message::Groups { swarm, messages: some.to_vec() });
        siege.flood(&mut member, &message, 20);
    }
    siege.named(who, "messages of groups refused");
    siege.goes_on("bogus Raft messages");

    // Everybody is dead, says somebody; and somebody else says it in their names.
    for rumour in 1..=40 {
        for incarnation in [rumour, rumour << 20, rumour << 40] {
            let dead: Vec<Entry> = siege.nodes.iter().map(|node| Entry::down(*node, incarnation)).collect();
            let bytes = gossip(&Gossip::Exchange { entries: dead, reply: false });
            siege.flood(&mut member, &codec::encode(&Message::Gossip { swarm, bytes }), 1);
        }
    }
    siege.goes_on("rumours that everybody is dead");
    let entries = vec![Entry::down(siege.nodes[0], 1); 50_000];
    let long = gossip(&Gossip::Exchange { entries, reply: true });
    siege.flood(&mut member, &codec::encode(&Message::Gossip { swarm, bytes: long }), 4);
    siege.flood(&mut member, &codec::encode(&Message::Gossip { swarm, bytes: vec![1; 50] }), 20_000);
    siege.named(who, "gossip refused");
    siege.goes_on("gossip without sense");

    // Another swarm's, and ours dissolved into nothing.
    let elsewhere = SwarmId(1);
    siege.flood(&mut member, &codec::encode(&Message::Groups { swarm: elsewhere, messages: bogus }), 5);
    siege.flood(&mut member, &codec::encode(&Message::Stopping { swarm }), 1000);
    siege.goes_on("messages of another swarm");
    drop(member);
    siege.end();
}

#[test]
fn what_is_asked_beyond_all_limits_is_refused() {
    let mut siege = Siege::begin();
    let net = siege.runtime.block_on(visit(&siege.ticket, &siege.addresses[0]));
    let (swarm, node) = (siege.swarm, siege.nodes[0]);
    let ask = |request: Request| {
        let answer = siege.runtime.block_on(Rpc::call(&net, node, request, CALL));
        answer.expect("an answer")
    };
    let blocks = |request| match ask(Request::Blocks { swarm, request }) {
        Response::Blocks(response) => response,
        Response::Refused(refusal) => panic!("{refusal}"),
        other => panic!("{other:?}"),
    };
    let block = BlockId { dataset: DatasetId(7), number: 3 };
    let put = |name: Vec<u8>, checksum, bytes: usize| BlockRequest::Put {
        block,
        name,
        checksum,
        bytes: vec![0; bytes].into(),
    };
    assert_eq!(blocks(BlockRequest::Get { block }), BlockResponse::Refused(BlockRefusal::NoBlock));
    for (name, bytes) in [(Vec::new(), 10), (vec![b'n'; 100_000], 10), (b"n".to_vec(), 3 << 20)] {
        let response = blocks(put(name, 0, bytes));
        assert!(matches!(response, BlockResponse::Refused(_)), "{response:?}");
    }
    let wrong = blocks(put(b"n".to_vec(), 12345, 100));
    assert_eq!(wrong, BlockResponse::Refused(BlockRefusal::Mismatch));
    let response =
        ask(Request::Blocks { swarm, request: BlockRequest::Held { blocks: vec![block; 200_000] } });
    assert!(is_refusal(&response), "{response:?}");
    let response = ask(Request::Blocks { swarm: SwarmId(9), request: BlockRequest::Get { block } });
    assert!(matches!(response, Response::Refused(_)), "{response:?}");

    let (order, format) = (Order::default(), Format::Lines);
    let info = BlockInfo { number: 3, length: 100, records: u32::MAX, checksum: 1 };
    let input = |length| InputRef { position: 0, block, info: BlockInfo { length, ..info } };
    let job = JobId(5);
    let sort = |blocks| WorkRequest::Sort { job, task: 0, order, format, splitters: Vec::new(), blocks };
    let merge = |range, runs| WorkRequest::Merge {
        job,
        range,
        order,
        format,
        runs,
        output: DatasetId(8),
        name: b"out".to_vec(),
    };
    let run = RunRef { node: NodeId::from_public_key([9; 32]), task: 1, bytes: u64::MAX };
    let refused = [
        WorkRequest::Sample { order, format, blocks: vec![input(100); 1000], count: 1 },
        WorkRequest::Sample { order, format, blocks: vec![input(100)], count: u32::MAX },
        WorkRequest::Sample { order, format, blocks: vec![input(u32::MAX)], count: 1 },
        WorkRequest::Sample { order, format, blocks: vec![input(100)], count: 1 },
        sort(vec![input(100); 100_000]),
        sort(vec![input(u32::MAX)]),
        sort(vec![input(100)]),
        WorkRequest::Part { job, task: 9, range: u32::MAX, offset: u64::MAX, limit: u32::MAX },
        WorkRequest::Part { job: JobId(77), task: 0, range: 0, offset: 0, limit: 1 },
        merge(u32::MAX, Vec::new()),
        merge(0, vec![run; 50_000]),
        merge(0, vec![run]),
    ];
    for request in refused {
        let response = ask(Request::Work { swarm, request: request.clone() });
        assert!(is_refusal(&response), "{request:?}: {response:?}");
    }
    // A job that never was is over.
    let ended = ask(Request::Work { swarm, request: WorkRequest::End { job: JobId(99) } });
    assert_eq!(ended, Response::Work(WorkResponse::Ended));
    siege.goes_on("requests beyond limits");

    // As many at once as a link takes, each as long as can be.
    let floods = [
        Request::Blocks { swarm, request: put(vec![b'n'; 10], 0, 3 << 20) },
        Request::Blocks { swarm, request: BlockRequest::Held { blocks: vec![block; 200_000] } },
        Request::Work { swarm, request: sort(vec![input(100); 200_000]) },
        Request::Work { swarm, request: merge(0, vec![run; 60_000]) },
        Request::Work { swarm, request: merge(0, vec![run; 4_000]) },
        Request::Renew { swarm, renewals: vec![renewal(); 200_000] },
    ];
    for request in floods {
        let kind = format!("{request:?}").chars().take(60).collect::<String>();
        let refused = siege.runtime.block_on(async {
            let calls = (0..200).map(|_| Rpc::call(&net, node, request.clone(), CALL));
            let answers = futures::future::join_all(calls).await;
            answers.iter().filter(|answer| !answer.as_ref().is_ok_and(|answer| !is_refusal(answer))).count()
        });
        assert_eq!(refused, 200, "{kind} was done");
        siege.goes_on(&kind);
    }
    siege.runtime.block_on(net.shutdown());
    siege.end();
}

fn is_refusal(response: &Response) -> bool {
    matches!(
        response,
        Response::Refused(_)
            | Response::Blocks(BlockResponse::Refused(_))
            | Response::Work(WorkResponse::Failed(
                WorkError::Limit
                    | WorkError::BlockMissing { .. }
                    | WorkError::NoRun
                    | WorkError::RunLost { .. }
                    | WorkError::NoRoom
                    | WorkError::Ended
                    | WorkError::NotWritten(_)
            ))
    )
}

fn renewal() -> roundtable::wire::Renewal {
    use roundtable::id::SessionId;
    let origin = roundtable::state_machine::Origin { session: SessionId(1), sequence: 0, settled_below: 0 };
    roundtable::wire::Renewal { partition: PartitionId(0), origin, name: Vec::new(), numbers: Vec::new() }
}

fn group(partition: u32, from: u64, to: u64, body: Body) -> GroupMessage {
    GroupMessage { partition: PartitionId(partition), from: ReplicaId(from), to: ReplicaId(to), body }
}

fn raft(kind: RaftKind, term: u64, entries: Vec<LogEntry>) -> Body {
    Body::Raft(RaftMessage {
        kind,
        term,
        log_term: 1,
        index: 5,
        commit: 0,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        context: Vec::new(),
        entries,
    })
}

/// Gossip as it travels: what `membership` encodes.
#[derive(Serialize)]
#[allow(dead_code, reason = "the variants have the places that they have on the wire")]
enum Gossip {
    Swim(Vec<u8>),
    Exchange { entries: Vec<Entry>, reply: bool },
}

#[derive(Clone, Serialize)]
struct Entry {
    node: NodeId,
    incarnation: u64,
    addresses: Vec<String>,
    weight: u32,
    draining: bool,
    left: bool,
    refutation: u16,
    /// Alive, suspect, down.
    standing: u32,
    remember_ms: u64,
}

impl Entry {
    fn down(node: NodeId, incarnation: u64) -> Self {
        Self {
            node,
            incarnation,
            addresses: Vec::new(),
            weight: 1,
            draining: false,
            left: false,
            refutation: 60_000,
            standing: 2,
            remember_ms: 3_600_000,
        }
    }
}

fn gossip(gossip: &Gossip) -> Vec<u8> {
    [&[1][..], &codec::encode(gossip)].concat()
}

/// Hears nothing.
struct Deaf(Arc<tokio::sync::Notify>);

impl Inbound for Deaf {
    fn link_up(&self, _: &LinkInfo) {
        self.0.notify_one();
    }

    fn link_down(&self, _: NodeId, _: &str) {}

    fn request(&self, _: NodeId, _: Role, _: Bytes, _: Responder) {}

    fn message(&self, _: NodeId, _: Bytes) {}
}

/// A client that knows the secret.
async fn visit(ticket: &Ticket, address: &str) -> Net {
    let linked = Arc::new(tokio::sync::Notify::new());
    let mut config = NetConfig::new(Identity::generate(), ticket.name.clone());
    config.secret.clone_from(&ticket.secret);
    config.role = Role::Visitor;
    let (net, _) = Net::start(config, Arc::new(Deaf(Arc::clone(&linked)))).await.expect("a network");
    net.dial(address).expect("an address");
    tokio::time::timeout(CALL, linked.notified()).await.expect("a link");
    net
}
