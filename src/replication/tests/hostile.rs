//! A member that says anything at all: nothing that it says makes the driver panic.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::cluster;
use super::sim::{ms, node_id};
use crate::codec;
use crate::id::{PartitionId, ReplicaId};
use crate::replication::config::{ConfigStep, Roster, Voting};
use crate::replication::snapshot::{SnapshotHeader, digest};
use crate::replication::{
    Body, GroupMessage, LogEntry, RaftKind, RaftMessage, SnapshotAck, SnapshotChunk, SnapshotState,
};
use crate::state_machine::StateMachine;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..12u64,
        1 => Just(u64::MAX),
        1 => Just(1 << 60),
        1 => any::<u64>(),
    ]
}

fn kind() -> impl Strategy<Value = RaftKind> {
    prop::sample::select(vec![
        RaftKind::Append,
        RaftKind::AppendResponse,
        RaftKind::Vote,
        RaftKind::VoteResponse,
        RaftKind::PreVote,
        RaftKind::PreVoteResponse,
        RaftKind::Heartbeat,
        RaftKind::HeartbeatResponse,
        RaftKind::TimeoutNow,
    ])
}

fn step() -> impl Strategy<Value = ConfigStep> {
    prop_oneof![
        (number(), 0..5u8).prop_map(|(id, node)| ConfigStep::AddLearner(ReplicaId(id), node_id(node))),
        number().prop_map(|id| ConfigStep::Promote(ReplicaId(id))),
        number().prop_map(|id| ConfigStep::Demote(ReplicaId(id))),
        number().prop_map(|id| ConfigStep::Remove(ReplicaId(id))),
    ]
}

fn entry() -> impl Strategy<Value = LogEntry> {
    let context =
        prop_oneof![vec(any::<u8>(), 0..8), vec(step(), 0..4).prop_map(|steps| codec::encode(&steps)),];
    (number(), any::<bool>(), vec(any::<u8>(), 0..8), context).prop_map(|(term, config, data, context)| {
        LogEntry { term, config, data: data.into(), context: context.into() }
    })
}

fn raft() -> impl Strategy<Value = Body> {
    let context = prop_oneof![
        4 => Just(Vec::new()),
        1 => Just(raft::CAMPAIGN_TRANSFER.to_vec()),
        2 => (0..40u64).prop_map(|round| round.to_be_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..100),
    ];
    (
        (kind(), number(), number(), number()),
        (number(), number(), any::<bool>(), number()),
        context,
        vec(entry(), 0..4),
    )
        .prop_map(
            |(
                (kind, term, log_term, index),
                (commit, commit_term, reject, reject_hint),
                context,
                entries,
            )| {
                Body::Raft(RaftMessage {
                    kind,
                    term,
                    log_term,
                    index,
                    commit,
                    commit_term,
                    reject,
                    reject_hint,
                    context,
                    entries,
                })
            },
        )
}

fn ids() -> impl Strategy<Value = Vec<u64>> {
    vec(1..5u64, 0..4)
}

fn header() -> impl Strategy<Value = Vec<u8>> {
    let roster = (prop::collection::btree_map(1..6u64, 0..5u8, 0..5), number(), number());
    let state = StateMachine::default().snapshot();
    let right = (state.len() as u64, digest(&state));
    (
        (number(), number(), number()),
        (ids(), ids(), ids(), ids(), any::<bool>()),
        roster,
        prop_oneof![3 => Just(right), 1 => number().prop_map(|total| (total, [0; 20]))],
    )
        .prop_map(
            |(
                (leader_term, index, term),
                (voters, learners, outgoing, next, auto_leave),
                roster,
                (total, digest),
            )| {
                codec::encode(&SnapshotHeader {
                    leader_term,
                    index,
                    term,
                    voting: Voting { voters, learners, outgoing, learners_next: next, auto_leave },
                    roster: Roster {
                        replicas: roster
                            .0
                            .into_iter()
                            .map(|(id, node)| (ReplicaId(id), node_id(node)))
                            .collect::<BTreeMap<_, _>>(),
                        last_replica: roster.1,
                        config: roster.2,
                    },
                    total,
                    digest,
                })
            },
        )
}

fn body() -> impl Strategy<Value = Body> {
    let data = prop_oneof![Just(StateMachine::default().snapshot()), vec(any::<u8>(), 0..8)];
    let header = prop_oneof![4 => header(), 1 => vec(any::<u8>(), 0..60)];
    let chunk = (0..60u64, header, prop_oneof![3 => Just(0), 1 => number()], data).prop_map(
        |(transfer, header, offset, data)| {
            Body::SnapshotChunk(SnapshotChunk { transfer, header, offset, data })
        },
    );
    let state = prop_oneof![
        number().prop_map(SnapshotState::Received),
        Just(SnapshotState::Installed),
        Just(SnapshotState::Refused),
    ];
    let ack =
        (0..60u64, state).prop_map(|(transfer, state)| Body::SnapshotAck(SnapshotAck { transfer, state }));
    prop_oneof![
        12 => raft(),
        4 => chunk,
        2 => ack,
        1 => Just(Body::Inquiry),
        1 => Just(Body::Retired),
    ]
}

fn message() -> impl Strategy<Value = GroupMessage> {
    let replica = || prop_oneof![10 => 1..5u64, 1 => number()];
    (0..4u32, replica(), replica(), body()).prop_map(|(partition, from, to, body)| GroupMessage {
        partition: PartitionId(partition),
        from: ReplicaId(from),
        to: ReplicaId(to),
        body,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_that_is_said_makes_a_driver_panic(
        steps in vec((0..3usize, 0..4u8, vec(message(), 1..6), 0..400u64), 1..60),
    ) {
        // Nodes 1 and 2 hold two groups, node 3 only asks to be let in.
        let (mut sim, mut nodes) = cluster(1, 3, 2);
        nodes.push(sim.start(3));
        sim.checks = false;
        for (at, from, messages, pause) in steps {
            let now = sim.now;
            sim.driver(nodes[at]).receive(node_id(from), messages, now);
            sim.settle(nodes[at]);
            let number = u8::try_from(pause % 7).unwrap_or_default();
            let now = sim.now;
            sim.driver(nodes[at]).propose(
                PartitionId(u32::from(number % 3)),
                pause,
                None,
                crate::state_machine::Operation::Delete { key: vec![number] },
                now,
            );
            sim.run(ms(pause / 8));
        }
        sim.run(ms(3000));
    }
}
