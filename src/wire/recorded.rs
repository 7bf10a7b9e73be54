//! What travels, as it was encoded when this version of the protocol was spoken first: nodes of one version that were
//! built at different times must understand each other.
//!
//! If this fails, the encoding has changed: [`PROTOCOL_VERSION`] must rise, and what is here be recorded anew.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::id::{PartitionId, ReplicaId, SessionId, SwarmId, Version};
use crate::replication::{Body, GroupMessage, LogEntry, RaftKind, RaftMessage};
use crate::state_machine::{Answer, Entry, Operation, Origin, Query, Reply};

const RECORDED_VERSION: u8 = 3;
const SWARM: SwarmId = SwarmId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
const PARTITION: PartitionId = PartitionId(300);

fn assert_recorded<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, recorded: &str) {
    use std::fmt::Write as _;
    let bytes = encode(value);
    let mut hex = String::new();
    for byte in &bytes {
        write!(hex, "{byte:02x}").unwrap();
    }
    assert_eq!(hex, recorded, "{value:?}");
    assert_eq!(&decode::<T>(&bytes).unwrap(), value);
}

#[test]
fn what_members_tell_each_other() {
    assert_eq!(PROTOCOL_VERSION, RECORDED_VERSION);
    let state = SwarmState::Founded { swarm: SWARM, partitions: 64 };
    assert_recorded(&Message::Hello(Hello { state, empty: false }), "HELLO");
    assert_recorded(&Message::Leading { swarm: SWARM, leads: vec![(PARTITION, 7)] }, "LEADING");
    assert_recorded(&Message::Stopping { swarm: SWARM }, "STOPPING");
    let append = RaftMessage {
        kind: RaftKind::Append,
        term: 7,
        log_term: 6,
        index: 70_000,
        commit: 69_999,
        commit_term: 6,
        reject: false,
        reject_hint: 0,
        context: Vec::new(),
        entries: vec![LogEntry { term: 7, config: false, data: vec![1, 2, 3], context: Vec::new() }],
    };
    let message =
        GroupMessage { partition: PARTITION, from: ReplicaId(1), to: ReplicaId(2), body: Body::Raft(append) };
    assert_recorded(&Message::Groups { swarm: SWARM, messages: vec![message] }, "GROUPS");
}

#[test]
fn what_clients_ask_and_are_answered() {
    let origin = Origin { session: SessionId(5), sequence: 9, settled_below: 8 };
    let operation = Operation::Put { key: b"key".to_vec(), value: b"value".to_vec(), ttl_ms: Some(1000) };
    let write = Request::Write { swarm: SWARM, partition: PARTITION, origin, operation, forwarded: false };
    assert_recorded(&write, "WRITE");
    assert_recorded(&Response::Reply(Reply::Written { version: Version(71_000) }), "REPLY");
    let read = Request::Read {
        swarm: SWARM,
        partition: PARTITION,
        consistency: Consistency::Linearizable,
        query: Query::Get { key: b"key".to_vec() },
        forwarded: true,
    };
    assert_recorded(&read, "READ");
    let entry = Entry { value: b"value".to_vec(), version: Version(71_000), ttl_ms: None };
    assert_recorded(&Response::Answer { answer: Answer::Entry(Some(entry)), stale: false }, "ANSWER");
    assert_recorded(&Request::View, "VIEW");
    let leader = Some(NodeId::from_public_key([3; 32]));
    assert_recorded(&Response::Refused(Refusal::NotLeader { leader }), "NOT_LEADER");
    assert_recorded(&Response::Refused(Refusal::StorageFull), "FULL");
}
