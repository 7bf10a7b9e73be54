//! bincode with a limit, always: a length that a peer claims is checked before memory is reserved for it.

use std::fmt;
use std::marker::PhantomData;

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Longest encoded request, response or message, in bytes. Above the longest value plus key plus overhead.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Most values are no longer than this when they are encoded, so that no buffer grows under way.
const USUAL_BYTES: usize = 256;
/// Room is made for so many elements of a sequence before they are read; for more of them when they are there.
const RESERVED_ELEMENTS: usize = 64;

/// Part of the protocol version: little endian, variable-length integers.
const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_MESSAGE_BYTES>> =
    config::standard().with_limit::<MAX_MESSAGE_BYTES>();

/// Encodes a value.
///
/// # Panics
/// Never for the types of this crate: they have no unencodable parts, and what they hold is bounded where it
/// enters (keys, values, pages, batches).
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    bincode::serde::encode_into_std_write(value, &mut bytes, config::standard())
        .expect("our own types encode");
    bytes
}

/// Decodes exactly one value from all of `bytes`.
///
/// # Errors
/// If the bytes are not a `T`, or claim to be longer than [`MAX_MESSAGE_BYTES`], or something follows.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, read) = bincode::serde::borrow_decode_from_slice(bytes, CONFIG)?;
    if read != bytes.len() {
        return Err(DecodeError::TrailingBytes(bytes.len() - read));
    }
    Ok(value)
}

/// Reads a sequence of at most `MAX` elements: a few bytes of a message may be a hundred times as many in memory.
/// For `#[serde(deserialize_with = "...")]`.
///
/// # Errors
/// If it has more; before they are read.
pub(crate) fn at_most<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Elements<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let claimed = sequence.size_hint().unwrap_or(0);
            if claimed > MAX {
                return Err(A::Error::custom(format_args!("{claimed} elements, at most {MAX} are allowed")));
            }
            let mut elements = Vec::with_capacity(claimed.min(RESERVED_ELEMENTS));
            while let Some(element) = sequence.next_element()? {
                elements.push(element);
            }
            Ok(elements)
        }
    }

    deserializer.deserialize_seq(Elements::<T, MAX>(PhantomData))
}

/// Byte strings, encoded as `serde_bytes` does it. For `#[serde(with = "...")]`.
///
/// Read by copying them out of what was received: bincode's own way asks for memory full of zeros first, and with
/// glibc that is memory which was not just freed, for every key and value that goes through a node.
pub(crate) mod bytes {
    use std::fmt;
    use std::marker::PhantomData;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        bytes: &impl AsRef<[u8]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes.as_ref())
    }

    pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: From<Vec<u8>>,
    {
        struct Copied<T>(PhantomData<T>);

        impl<T: From<Vec<u8>>> Visitor<'_> for Copied<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a byte string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<T, E> {
                Ok(bytes.to_vec().into())
            }
        }

        deserializer.deserialize_bytes(Copied(PhantomData))
    }
}

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not a value of the expected type, or too long.
    #[error("malformed: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// The value ended before the bytes did.
    #[error("{0} bytes behind the end")]
    TrailingBytes(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_length_beyond_the_limit_is_refused_before_allocation() {
        let mut bytes = vec![253];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<Vec<u8>>(&bytes).is_err());
    }

    #[test]
    fn more_elements_than_allowed_are_refused() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Few(#[serde(deserialize_with = "at_most::<_, _, 3>")] Vec<u64>);
        assert_eq!(decode::<Few>(&encode(&vec![1_u64, 2, 3])).unwrap(), Few(vec![1, 2, 3]));
        let refused = decode::<Few>(&encode(&vec![1_u64, 2, 3, 4])).unwrap_err().to_string();
        assert!(refused.contains("4 elements, at most 3 are allowed"), "{refused}");
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32);
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes), Err(DecodeError::TrailingBytes(1))));
    }
}
