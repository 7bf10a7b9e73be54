//! What ends a record.

use std::fmt;
use std::str::FromStr;

use memchr::{memchr, memchr2};
use serde::{Deserialize, Serialize};

use super::MAX_RECORD_BYTES;

/// Bytes of a record's length in [`Format::Records`].
const LENGTH_BYTES: usize = 4;

/// How records are told apart. What is written is kept byte for byte: the format only says where it may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Format {
    /// Each record ends with a line end (`\n`); the last may lack it.
    #[default]
    Lines,
    /// Before each record its length, as 32 bits little endian.
    Records,
    /// Like lines, but a line end within double quotes does not end a record (RFC 4180). A title line is a record
    /// like any other.
    Csv,
}

impl Format {
    /// Where the record that begins at the start of `bytes` ends, what ends it included; `None`: not in `bytes`.
    /// `searched`: up to where it was looked for before, which is updated.
    ///
    /// # Errors
    /// If its length says that it is longer than any record.
    pub(super) fn end(self, bytes: &[u8], searched: &mut Search) -> Result<Option<usize>, RecordError> {
        let end = match self {
            Self::Lines => memchr(b'\n', &bytes[searched.at..]).map(|at| searched.at + at + 1),
            Self::Csv => loop {
                let Some(at) = memchr2(b'\n', b'"', &bytes[searched.at..]) else { break None };
                let at = searched.at + at;
                searched.at = at + 1;
                match bytes[at] {
                    b'"' => searched.quoted = !searched.quoted,
                    _ if !searched.quoted => break Some(at + 1),
                    _ => {}
                }
            },
            Self::Records => match bytes.first_chunk::<LENGTH_BYTES>() {
                Some(length) => {
                    let end = LENGTH_BYTES + u32::from_le_bytes(*length) as usize;
                    if end > MAX_RECORD_BYTES {
                        return Err(RecordError::TooLong);
                    }
                    (end <= bytes.len()).then_some(end)
                }
                None => None,
            },
        };
        match end {
            Some(_) => *searched = Search::default(),
            None => searched.at = bytes.len(),
        }
        Ok(end)
    }

    /// A record's own bytes, without what ends it or its length.
    pub(super) fn content(self, record: &[u8]) -> &[u8] {
        match self {
            Self::Lines | Self::Csv => record.strip_suffix(b"\n").unwrap_or(record),
            Self::Records => &record[LENGTH_BYTES.min(record.len())..],
        }
    }

    /// Appends a record, with what ends it or its length. The content must be possible in this format.
    pub fn append(self, out: &mut Vec<u8>, content: &[u8]) {
        match self {
            Self::Lines | Self::Csv => {
                out.extend_from_slice(content);
                out.push(b'\n');
            }
            Self::Records => {
                let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(content);
            }
        }
    }

    /// Bytes of a record with such a content.
    pub fn encoded_len(self, content: &[u8]) -> usize {
        match self {
            Self::Lines | Self::Csv => content.len() + 1,
            Self::Records => content.len() + LENGTH_BYTES,
        }
    }

    /// The records of a block, without what ends them.
    pub fn records(self, block: &[u8]) -> Records<'_> {
        Records { format: self, rest: block }
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Records => "records",
            Self::Csv => "csv",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Lines, Self::Records, Self::Csv]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| format!("`{text}` is no format: write lines, records or csv"))
    }
}

/// How far the end of a record was looked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Search {
    at: usize,
    /// Within double quotes.
    quoted: bool,
}

/// Why bytes are no records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A record is longer than [`MAX_RECORD_BYTES`].
    #[error("a record is longer than {MAX_RECORD_BYTES} bytes")]
    TooLong,
    /// The data ends in the middle of a record.
    #[error("the data ends in the middle of a record")]
    CutShort,
}

/// The records of a block.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    format: Format,
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.format.end(self.rest, &mut Search::default()).ok().flatten();
        // The last line of a dataset may lack its end.
        let (record, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(self.format.content(record))
    }
}
