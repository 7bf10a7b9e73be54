//! What a peer may send instead of a message: every decoder takes any bytes, and says so if they are none.
//!
//! Bytes are drawn near what is really sent: a corpus of recorded messages, changed, cut and stuffed, and bytes that the
//! codec gives a meaning (variants, and the markers of long integers that claim huge lengths).

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::codec::{MAX_MESSAGE_BYTES, decode, encode};

/// Requests, responses and messages as they were recorded; see `recorded`.
const CORPUS: [&str; 16] = [
    "0001fe100f0e0d0c0b0a0908070605040302014000",
    "03fe100f0e0d0c0b0a09080706050403020101fb2c0107",
    "04fe100f0e0d0c0b0a090807060504030201",
    "02fe100f0e0d0c0b0a09080706050403020101fb2c01010200000706fc70110100fc6f110100060000000107000301020300",
    "00fe100f0e0d0c0b0a090807060504030201fb2c0105090800036b65790576616c756501fbe80300",
    "0000fc58150100",
    "01fe100f0e0d0c0b0a090807060504030201fb2c010000036b657901",
    "0100010576616c7565fc581501000000",
    "06",
    "0b00010303030303030303030303030303030303030303030303030303030303030303",
    "0b03",
    "0dfe100f0e0d0c0b0a090807060504030201060710000a776f72642d636f756e740101010361726701020304000102090404640afc70110100000300",
    "0dfe100f0e0d0c0b0a09080706050403020106071101050505050505050505050505050505050505050505050505050505050505050501036172670102030401fb2c0105757365722f030140",
    "0dfe100f0e0d0c0b0a090807060504030201070701000a776f72642d636f756e74010101036172670102030401030303030303030303030303030303030303030303030303030303030303030310fb2c01000008036f7574fc00000100",
    "0e080104640afc7011010002610a050601fb2c01",
    "0e050b01040301",
];

fn recorded() -> impl Strategy<Value = Vec<u8>> {
    select(&CORPUS[..]).prop_map(from_hex)
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// A byte that means something to the codec, or any.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![4 => 0u8..40, 2 => 250u8..=255, 1 => any::<u8>()]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let changed = (recorded(), vec((any::<Index>(), byte()), 0..4), any::<Index>(), vec(byte(), 0..12));
    let changed = changed.prop_map(|(mut bytes, changes, at, stuffing)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let at = at.index(bytes.len() + 1);
        let behind = bytes.split_off(at);
        bytes.extend(stuffing);
        bytes.extend(behind);
        bytes
    });
    prop_oneof![changed, vec(byte(), 0..80)]
}

/// Decodes as often as it will, and what was understood is understood again. Whether it was.
fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = decode::<T>(bytes) else { return false };
    let again = encode(&value);
    assert!(again.len() <= MAX_MESSAGE_BYTES);
    assert_eq!(decode::<T>(&again).unwrap(), value);
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in bytes()) {
        survives::<Message>(&bytes);
        survives::<Request>(&bytes);
        survives::<Response>(&bytes);
    }

    #[test]
    fn what_was_cut_short_is_refused(bytes in recorded(), at in any::<Index>()) {
        let at = at.index(bytes.len());
        let whole = (decode::<Message>(&bytes), decode::<Request>(&bytes), decode::<Response>(&bytes));
        let cut = &bytes[..at];
        // It may be the beginning of something shorter, but never the same.
        prop_assert!(!matches!((whole.0, decode::<Message>(cut)), (Ok(whole), Ok(cut)) if whole == cut));
        prop_assert!(!matches!((whole.1, decode::<Request>(cut)), (Ok(whole), Ok(cut)) if whole == cut));
        prop_assert!(!matches!((whole.2, decode::<Response>(cut)), (Ok(whole), Ok(cut)) if whole == cut));
    }
}

#[test]
fn the_corpus_is_what_is_sent() {
    let known = CORPUS.iter().filter(|text| {
        let bytes = from_hex(text);
        survives::<Message>(&bytes) || survives::<Request>(&bytes) || survives::<Response>(&bytes)
    });
    assert_eq!(known.count(), CORPUS.len());
}
