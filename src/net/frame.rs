//! Frames: how a byte stream is cut into requests, responses and messages.
//!
//! A frame is `u32 length, u8 kind, u64 correlation id, body`, little endian; the length counts what follows
//! it. A length that a peer claims is checked before memory is reserved for it, and memory is only ever
//! reserved for bytes that have arrived.

use bytes::{Buf, Bytes, BytesMut};

use crate::codec::MAX_MESSAGE_BYTES;

/// Bytes of the length field of a frame.
const LENGTH_BYTES: usize = 4;
/// Bytes that `length` counts besides the body: kind and correlation id.
const TAG_BYTES: usize = 9;
/// Bytes of a frame with an empty body.
pub(super) const FRAME_OVERHEAD_BYTES: usize = LENGTH_BYTES + TAG_BYTES;
/// Longest body of a frame, in bytes.
pub(super) const MAX_BODY_BYTES: usize = MAX_MESSAGE_BYTES;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A request; answered by exactly one frame with the same correlation id.
    Request = 1,
    /// The answer to a request.
    Response = 2,
    /// The answer to a request that got no response: the handler dropped it.
    NotServed = 3,
    /// The answer to a request that was not looked at: too many are unanswered.
    Overloaded = 4,
    /// A one-way message.
    Message = 5,
    /// Nothing, but the sender lives.
    Heartbeat = 6,
    /// The sender closes the link; the body says why.
    Goodbye = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::NotServed,
            4 => Self::Overloaded,
            5 => Self::Message,
            6 => Self::Heartbeat,
            7 => Self::Goodbye,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) body: Bytes,
}

/// Appends a frame to `buffer`. The caller has checked the body against [`MAX_BODY_BYTES`].
pub(super) fn append(buffer: &mut Vec<u8>, kind: Kind, id: u64, body: &[u8]) {
    debug_assert!(body.len() <= MAX_BODY_BYTES);
    let length = u32::try_from(TAG_BYTES + body.len()).unwrap_or(u32::MAX);
    buffer.reserve(FRAME_OVERHEAD_BYTES + body.len());
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.push(kind as u8);
    buffer.extend_from_slice(&id.to_le_bytes());
    buffer.extend_from_slice(body);
}

/// Cuts what arrives into frames. Bodies share the memory that they arrived in.
#[derive(Debug, Default)]
pub(super) struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    /// Takes in bytes that have arrived.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((length, _)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > TAG_BYTES + MAX_BODY_BYTES {
            return Err(FrameError::TooLong { bytes: length });
        }
        if length < TAG_BYTES {
            return Err(FrameError::Malformed);
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        let mut body = self.buffer.split_to(length).freeze();
        let kind = Kind::from_byte(body.get_u8()).ok_or(FrameError::Malformed)?;
        let id = body.get_u64_le();
        Ok(Some(Frame { kind, id, body }))
    }
}

/// Bytes that are no frames; the link is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {bytes} bytes was announced, at most {} are allowed", TAG_BYTES + MAX_BODY_BYTES)]
    TooLong { bytes: usize },
    #[error("a malformed frame was received")]
    Malformed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            cut in 1..64usize,
        ) {
            let mut stream = Vec::new();
            for (id, body) in (0u64..).zip(&bodies) {
                append(&mut stream, Kind::Request, id, body);
            }
            let mut reader = FrameReader::default();
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                reader.feed(piece);
                while let Some(frame) = reader.next().unwrap() {
                    prop_assert_eq!(frame.id, read.len() as u64);
                    read.push(frame.body.to_vec());
                }
            }
            prop_assert_eq!(read, bodies);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = FrameReader::default();
            reader.feed(&bytes);
            while let Ok(Some(_)) = reader.next() {}
        }
    }

    #[test]
    fn an_announced_length_beyond_the_limit_is_refused_before_the_body_arrives() {
        let mut reader = FrameReader::default();
        reader.feed(&u32::MAX.to_le_bytes());
        assert!(matches!(reader.next(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut reader = FrameReader::default();
        reader.feed(&9u32.to_le_bytes());
        reader.feed(&[99, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reader.next(), Err(FrameError::Malformed));
    }
}
