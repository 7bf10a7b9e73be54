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

const RECORDED_VERSION: u8 = 6;
const SWARM: SwarmId = SwarmId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
const PARTITION: PartitionId = PartitionId(300);

/// The encoding of what can be read back from it.
fn encoded<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> String {
    let bytes = encode(value);
    assert_eq!(&decode::<T>(&bytes).unwrap(), value);
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn what_members_tell_each_other() {
    let mut told = Vec::new();
    assert_eq!(PROTOCOL_VERSION, RECORDED_VERSION);
    let state = SwarmState::Founded { swarm: SWARM, partitions: 64 };
    told.push(encoded(&Message::Hello(Hello { state, empty: false })));
    told.push(encoded(&Message::Leading { swarm: SWARM, leads: vec![(PARTITION, 7)] }));
    told.push(encoded(&Message::Stopping { swarm: SWARM }));
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
        entries: vec![LogEntry {
            term: 7,
            config: false,
            data: vec![1, 2, 3].into(),
            context: Vec::new().into(),
        }],
    };
    let message =
        GroupMessage { partition: PARTITION, from: ReplicaId(1), to: ReplicaId(2), body: Body::Raft(append) };
    told.push(encoded(&Message::Groups { swarm: SWARM, messages: vec![message] }));
    assert_eq!(
        told,
        [
            "0001fe100f0e0d0c0b0a0908070605040302014000",
            "03fe100f0e0d0c0b0a09080706050403020101fb2c0107",
            "04fe100f0e0d0c0b0a090807060504030201",
            "02fe100f0e0d0c0b0a09080706050403020101fb2c01010200000706fc70110100fc6f110100060000000107000301020300",
        ]
    );
}

#[test]
fn what_clients_ask_and_are_answered() {
    let mut told = Vec::new();
    let origin = Origin { session: SessionId(5), sequence: 9, settled_below: 8 };
    let operation = Operation::Put { key: b"key".to_vec(), value: b"value".to_vec(), ttl_ms: Some(1000) };
    let write = Request::Write { swarm: SWARM, partition: PARTITION, origin, operation, forwarded: false };
    told.push(encoded(&write));
    told.push(encoded(&Response::Reply(Reply::Written { version: Version(71_000) })));
    let read = Request::Read {
        swarm: SWARM,
        partition: PARTITION,
        consistency: Consistency::Linearizable,
        query: Query::Get { key: b"key".to_vec() },
        forwarded: true,
    };
    told.push(encoded(&read));
    let entry = Entry { value: b"value".to_vec(), version: Version(71_000), ttl_ms: None };
    told.push(encoded(&Response::Answer { answer: Answer::Entry(Some(entry)), stale: false }));
    told.push(encoded(&Request::View));
    let leader = Some(NodeId::from_public_key([3; 32]));
    told.push(encoded(&Response::Refused(Refusal::NotLeader { leader })));
    told.push(encoded(&Response::Refused(Refusal::StorageFull)));
    assert_eq!(
        told,
        [
            "00fe100f0e0d0c0b0a090807060504030201fb2c0105090800036b65790576616c756501fbe80300",
            "0000fc58150100",
            "01fe100f0e0d0c0b0a090807060504030201fb2c010000036b657901",
            "0100010576616c7565fc581501000000",
            "06",
            "0b00010303030303030303030303030303030303030303030303030303030303030303",
            "0b03",
        ]
    );
}

#[test]
fn what_jobs_ask_of_nodes() {
    use crate::compute::{Limits, ProgramError, Shape};
    use crate::dataset::{BlockId, BlockInfo, Format};
    use crate::id::{DatasetId, JobId};
    use crate::sort::{Fingerprint, RunPart};

    let request = |request| encoded(&Request::Work { swarm: SWARM, request });
    let response = |response| encoded(&Response::Work(response));
    let (job, node) = (JobId(7), NodeId::from_public_key([3; 32]));
    let program = ProgramRef::Named { name: "word-count".to_owned(), version: Some(1) };
    let limits = Limits { fuel: 1, memory_bytes: 2, time_ms: 3, output_bytes: 4 };
    let arguments = vec![serde_bytes::ByteBuf::from(&b"arg"[..])];
    let errand = Errand { program: program.clone(), arguments, limits };
    let block = BlockId { dataset: DatasetId(9), number: 4 };
    let info = BlockInfo { number: 4, length: 100, records: 10, checksum: 70_000 };
    let blocks = vec![InputRef { position: 2, block, info }];
    let input = MapInput::Blocks { blocks, format: Format::Lines };
    let keys = MapInput::Keys { partition: PARTITION, prefix: b"user/".to_vec() };
    let shipped = ProgramRef::Shipped { sha256: [5; 32] };
    let dataset = Destination::Dataset { id: DatasetId(8), name: b"out".to_vec(), first: 65_536 };
    let runs = vec![RunRef { node, task: 16, bytes: 300 }];
    let pairs = Fingerprint { records: 5, sum: 6 };
    let (format, range) = (Format::Lines, 1);
    let told = [
        request(WorkRequest::Describe { program }),
        request(WorkRequest::Map { job, task: 16, errand: errand.clone(), input, ranges: 3, cut: Cut::Keys }),
        request(WorkRequest::Map {
            job,
            task: 17,
            errand: Errand { program: shipped, ..errand.clone() },
            input: keys,
            ranges: 3,
            cut: Cut::Blocks(64),
        }),
        request(WorkRequest::Reduce {
            job,
            range,
            errand: errand.clone(),
            runs: runs.clone(),
            format,
            destination: dataset,
        }),
        request(WorkRequest::Reduce { job, range, errand, runs, format, destination: Destination::Answer }),
        response(WorkResponse::Described { version: 1, shape: Shape { combine: true, reduce: false } }),
        response(WorkResponse::Mapped {
            parts: vec![RunPart { bytes: 300, records: 5 }],
            pairs,
            records: 10,
            made: 50,
            fetched: 0,
        }),
        response(WorkResponse::Reduced {
            blocks: vec![info],
            told: b"a\n".to_vec().into(),
            pairs,
            records: 1,
            moved: 300,
        }),
        response(WorkResponse::Failed(WorkError::NoProgram)),
        response(WorkResponse::Failed(WorkError::Program {
            site: Site::Block(4),
            error: ProgramError::OutOfFuel { limit: 1 },
        })),
        response(WorkResponse::Failed(WorkError::TooLong)),
    ];
    assert_eq!(
        told,
        [
            "0dfe100f0e0d0c0b0a09080706050403020105000a776f72642d636f756e740101",
            "0dfe100f0e0d0c0b0a090807060504030201060710000a776f72642d636f756e740101010361726701020304000102090404640afc70110100000300",
            "0dfe100f0e0d0c0b0a09080706050403020106071101050505050505050505050505050505050505050505050505050505050505050501036172670102030401fb2c0105757365722f030140",
            "0dfe100f0e0d0c0b0a090807060504030201070701000a776f72642d636f756e74010101036172670102030401030303030303030303030303030303030303030303030303030303030303030310fb2c01000008036f7574fc00000100",
            "0dfe100f0e0d0c0b0a090807060504030201070701000a776f72642d636f756e74010101036172670102030401030303030303030303030303030303030303030303030303030303030303030310fb2c010001",
            "0e06010100",
            "0e0701fb2c010505060a3200",
            "0e080104640afc7011010002610a050601fb2c01",
            "0e050a",
            "0e050b01040301",
            "0e050d",
        ]
    );
}
