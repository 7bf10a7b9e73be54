//! The pieces that every operation pays for, one by one, so that a regression has a name: `cargo bench --bench micro`.
//!
//! What consists of several of them is measured by `driver` (a write through three Raft drivers), `link` (a round trip
//! over an encrypted link) and `storage` (syncs).

#![expect(clippy::wildcard_imports, reason = "modules only group what is measured")]

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use roundtable::codec::{decode, encode};
use roundtable::id::{NodeId, PartitionId, ReplicaId, SessionId, SwarmId};
use roundtable::replication::{Body, GroupMessage, LogEntry, RaftKind, RaftMessage};
use roundtable::ring::{DEFAULT_WEIGHT, PartitionCount, Ring};
use roundtable::state_machine::{
    Claim, Command, LockMode, Operation, Origin, PartitionTime, Query, StateMachine,
};
use roundtable::wire::{Message, Request};

fn main() {
    divan::main();
}

fn key(number: u64) -> Vec<u8> {
    format!("bench/{number:08}").into_bytes()
}

fn put(number: u64) -> Operation {
    Operation::Put { key: key(number), value: vec![7; 100], ttl_ms: None }
}

fn command(sequence: u64, operation: Operation) -> Command {
    let origin = Origin { session: SessionId(7), sequence, settled_below: sequence };
    Command { time: PartitionTime(sequence), origin: Some(origin), operation }
}

mod ring {
    use super::*;

    fn members(count: u8) -> impl Iterator<Item = (NodeId, u32)> {
        (0..count).map(|number| (NodeId::from_public_key([number; 32]), DEFAULT_WEIGHT))
    }

    fn partitions(count: u32) -> PartitionCount {
        PartitionCount::try_from(count).expect("a power of two")
    }

    /// From a key to the members that hold it.
    #[divan::bench]
    fn lookup(bencher: Bencher<'_, '_>) {
        let ring = Ring::new(members(100), partitions(256), 3);
        let key = key(1);
        bencher.bench_local(|| ring.replicas(ring.partition_of(divan::black_box(&key)))[0]);
    }

    /// Where everything is, for so many members and partitions.
    #[divan::bench(args = [(3, 64), (9, 64), (100, 256)])]
    fn placement(bencher: Bencher<'_, '_>, (count, of): (u8, u32)) {
        bencher.bench_local(|| Ring::new(members(divan::black_box(count)), partitions(of), 3));
    }
}

mod codec {
    use super::*;

    fn request() -> Request {
        let origin = Origin { session: SessionId(7), sequence: 70_000, settled_below: 69_990 };
        Request::Write {
            swarm: SwarmId(1 << 100),
            partition: PartitionId(40),
            origin,
            operation: put(1),
            forwarded: false,
        }
    }

    /// Appends of one entry each to so many groups, as they share a frame.
    fn appends(count: u32) -> Message {
        let append = |partition: u32| {
            let entry = LogEntry {
                term: 3,
                config: false,
                data: encode(&command(70_000, put(u64::from(partition)))).into(),
                context: Vec::new().into(),
            };
            let raft = RaftMessage {
                kind: RaftKind::Append,
                term: 3,
                log_term: 3,
                index: 70_000,
                commit: 69_999,
                commit_term: 3,
                reject: false,
                reject_hint: 0,
                context: Vec::new(),
                entries: vec![entry],
            };
            let (from, to) = (ReplicaId(1), ReplicaId(2));
            GroupMessage { partition: PartitionId(partition), from, to, body: Body::Raft(raft) }
        };
        Message::Groups { swarm: SwarmId(1 << 100), messages: (0..count).map(append).collect() }
    }

    #[divan::bench]
    fn encode_put(bencher: Bencher<'_, '_>) {
        let request = request();
        bencher.bench_local(|| encode(divan::black_box(&request)));
    }

    #[divan::bench]
    fn decode_put(bencher: Bencher<'_, '_>) {
        let bytes = encode(&request());
        bencher.bench_local(|| decode::<Request>(divan::black_box(&bytes)));
    }

    #[divan::bench(args = [1, 16])]
    fn encode_appends(bencher: Bencher<'_, '_>, count: u32) {
        let message = appends(count);
        bencher.counter(ItemsCount::new(count)).bench_local(|| encode(divan::black_box(&message)));
    }

    #[divan::bench(args = [1, 16])]
    fn decode_appends(bencher: Bencher<'_, '_>, count: u32) {
        let bytes = encode(&appends(count));
        bencher.counter(ItemsCount::new(count)).bench_local(|| decode::<Message>(divan::black_box(&bytes)));
    }
}

mod state_machine {
    use super::*;

    fn filled(keys: u64) -> StateMachine {
        let mut machine = StateMachine::default();
        for number in 0..keys {
            machine.apply(number + 1, command(number + 1, put(number)));
        }
        machine
    }

    /// Overwrites one of so many keys.
    #[divan::bench(args = [100, 10_000, 100_000])]
    fn put_over(bencher: Bencher<'_, '_>, keys: u64) {
        let mut machine = filled(keys);
        let mut index = keys;
        bencher
            .with_inputs(|| {
                index += 1;
                (index, command(index, put(index.wrapping_mul(7919) % keys)))
            })
            .bench_local_values(|(index, command)| machine.apply(index, command));
    }

    #[divan::bench(args = [100, 10_000, 100_000])]
    fn get(bencher: Bencher<'_, '_>, keys: u64) {
        let machine = filled(keys);
        let query = Query::Get { key: key(keys / 3) };
        bencher.bench_local(|| machine.query(divan::black_box(&query)));
    }

    /// Taken and given back.
    #[divan::bench]
    fn lock_cycle(bencher: Bencher<'_, '_>) {
        let mut machine = StateMachine::default();
        let mut index = 0;
        bencher.bench_local(|| {
            let claim = Claim { session: SessionId(7), number: index };
            let acquire = Operation::Acquire {
                name: key(1),
                claim,
                mode: LockMode::Exclusive,
                lease_ms: 10_000,
                wait: false,
                note: Vec::new(),
            };
            machine.apply(index + 1, command(index + 1, acquire));
            index += 2;
            machine.apply(index, command(index, Operation::Release { name: key(1), claim }))
        });
    }

    #[divan::bench(args = [10_000])]
    fn snapshot(bencher: Bencher<'_, '_>, keys: u64) {
        let machine = filled(keys);
        bencher.counter(BytesCount::new(machine.bytes())).bench_local(|| machine.snapshot());
    }
}
