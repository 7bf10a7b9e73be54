//! A snapshot comes from another node: any bytes are read, with the right checksum over them or not.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sha1::{Digest, Sha1};

use super::*;
use crate::id::SessionId;

/// A state with something of everything.
fn state() -> StateMachine {
    let mut state = StateMachine::default();
    let session = SessionId(7);
    let claim = |number| Claim { session, number };
    let (name, note) = (b"lock".to_vec(), b"note".to_vec());
    let acquire = |number| Operation::Acquire {
        name: name.clone(),
        claim: claim(number),
        mode: LockMode::Exclusive,
        lease_ms: 1000,
        wait: true,
        note: note.clone(),
    };
    let token = crate::id::FencingToken(3);
    let operations = [
        Operation::Put { key: b"a".to_vec(), value: b"1".to_vec(), ttl_ms: Some(500) },
        Operation::Increment { key: b"n".to_vec(), by: 5 },
        acquire(1),
        acquire(2),
        Operation::PutFenced { key: b"f".to_vec(), value: b"v".to_vec(), ttl_ms: None, token },
    ];
    for (index, operation) in (1..).zip(operations) {
        let origin = Some(Origin { session, sequence: index, settled_below: 0 });
        state.apply(index, Command { time: PartitionTime(index), origin, operation });
    }
    state
}

fn survives(bytes: &[u8]) {
    if let Ok(state) = StateMachine::restore(bytes) {
        // What was understood is a state like any other.
        let again = StateMachine::restore(&state.snapshot());
        assert_eq!(again.as_ref().ok(), Some(&state));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_bytes_make_restoring_panic(
        changes in vec((any::<Index>(), prop_oneof![0u8..20, 250u8..=255, any::<u8>()]), 0..6),
        cut in any::<Index>(),
        stuffing in vec(any::<u8>(), 0..20),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = state().snapshot();
        survives(&bytes);
        bytes.truncate(bytes.len() - 20);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(stuffing);
        survives(&bytes);
        // As one who may send snapshots would do it.
        let checksum = Sha1::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        survives(&bytes);
    }
}
