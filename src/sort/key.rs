//! What records are compared by.
//!
//! Of each record a key is made, as bytes that are compared as bytes, whatever is wished: numbers become bytes in
//! the same order. Reversing is done in the comparison.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use memchr::memchr2;
use serde::{Deserialize, Serialize};

use super::Position;
use crate::dataset::Format;

/// Which part of a record is its key. Counted from 1, as in the command `sort`; what is not there is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Key {
    /// All of it.
    #[default]
    Whole,
    /// These fields: of lines and records, runs of bytes that are no blanks (spaces and tabs); of CSV, what commas
    /// separate, without quotes. Each ends the comparison before the next begins.
    Fields {
        /// The first.
        first: u32,
        /// The last.
        last: u32,
    },
    /// These bytes.
    Bytes {
        /// The first.
        first: u32,
        /// The last.
        last: u32,
    },
}

/// How records are ordered.
#[expect(clippy::struct_excessive_bools, reason = "each is a wish of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Order {
    /// By this.
    pub key: Key,
    /// The key begins with a decimal number (blanks before it, a minus sign and a fraction are allowed), and that is
    /// compared. A key without one counts as 0.
    pub numeric: bool,
    /// The other way round.
    pub reverse: bool,
    /// Of records whose keys are equal only the first of the input remains.
    pub unique: bool,
    /// Records whose keys are equal stay in the order of the input; otherwise they are compared as a whole.
    pub stable: bool,
}

/// Behind a field or a number in a key: less than all that they hold in practice.
const FIELD_END: u8 = 0;
const NEGATIVE: u8 = 0;
const ZERO: u8 = 1;
const POSITIVE: u8 = 2;

impl Order {
    /// Whether records must remember where they stood: whoever is equal by key is told apart by that.
    pub fn needs_positions(&self) -> bool {
        (self.stable || self.unique) && !self.is_whole()
    }

    /// Whether records with equal keys are equal.
    pub fn is_whole(&self) -> bool {
        self.key == Key::Whole && !self.numeric
    }

    /// Whether records whose keys are equal are compared as a whole.
    pub(super) fn has_last_resort(&self) -> bool {
        !self.stable && !self.unique && !self.is_whole()
    }

    /// A record's key; made in `made` unless it is a part of the record.
    pub fn key_of<'a>(&self, format: Format, record: &'a [u8], made: &'a mut Vec<u8>) -> &'a [u8] {
        made.clear();
        match self.key {
            Key::Whole if !self.numeric => record,
            Key::Whole => {
                number(record, made);
                made
            }
            Key::Bytes { first, last } => {
                let bytes = slice(record, first, last);
                if !self.numeric {
                    return bytes;
                }
                number(bytes, made);
                made
            }
            Key::Fields { first, last } => {
                if format == Format::Csv {
                    csv_fields(record, first, last, |field| self.add_field(field, made));
                } else {
                    let fields = record.split(|byte| matches!(byte, b' ' | b'\t'));
                    let fields = fields.filter(|field| !field.is_empty());
                    let count = (last - first + 1) as usize;
                    for field in fields.skip(first as usize - 1).take(count) {
                        self.add_field(field, made);
                    }
                }
                if made.is_empty() {
                    self.add_field(b"", made);
                }
                made
            }
        }
    }

    fn add_field(&self, field: &[u8], made: &mut Vec<u8>) {
        if self.numeric {
            number(field, made);
        } else {
            made.extend_from_slice(field);
            made.push(FIELD_END);
        }
    }

    /// Compares two keys.
    pub fn keys(&self, one: &[u8], other: &[u8]) -> Ordering {
        if self.reverse { other.cmp(one) } else { one.cmp(other) }
    }

    /// Compares two records of which the keys are known, in the order of the output. Equal are only those that are
    /// equal byte for byte or, if records do not remember where they stood, as good as equal.
    pub(super) fn records(
        &self,
        (one_key, one, one_at): (&[u8], &[u8], Position),
        (other_key, other, other_at): (&[u8], &[u8], Position),
    ) -> Ordering {
        self.keys(one_key, other_key)
            .then_with(|| if self.has_last_resort() { self.keys(one, other) } else { Ordering::Equal })
            .then(one_at.cmp(&other_at))
    }

    /// As [`prefix()`], in the order of the output.
    pub(super) fn prefix(&self, key: &[u8]) -> u64 {
        let prefix = prefix(key);
        if self.reverse { !prefix } else { prefix }
    }
}

/// The first eight bytes of a key as a number, of a shorter one with zeros behind it: less means earlier, equal means
/// that the keys must be compared.
pub(crate) fn prefix(key: &[u8]) -> u64 {
    if let Some(bytes) = key.first_chunk::<8>() {
        u64::from_be_bytes(*bytes)
    } else {
        let mut bytes = [0; 8];
        bytes[..key.len()].copy_from_slice(key);
        u64::from_be_bytes(bytes)
    }
}

fn slice(bytes: &[u8], first: u32, last: u32) -> &[u8] {
    let start = (first as usize - 1).min(bytes.len());
    let end = (last as usize).min(bytes.len()).max(start);
    &bytes[start..end]
}

/// Appends the number that a text begins with, so that bytes are in the order of numbers: sign, number of digits
/// before the point, digits. Of a negative number all of that inverted, with an end that is greater than any digit.
fn number(text: &[u8], made: &mut Vec<u8>) {
    let blanks = text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let text = &text[blanks..];
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let zeros = text.iter().take_while(|byte| **byte == b'0').count();
    let text = &text[zeros..];
    let whole = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (whole, rest) = text.split_at(whole);
    let fraction = rest.strip_prefix(b".").unwrap_or_default();
    let fraction = &fraction[..fraction.iter().take_while(|byte| byte.is_ascii_digit()).count()];
    let kept = fraction.iter().rposition(|byte| *byte != b'0').map_or(0, |at| at + 1);
    let fraction = &fraction[..kept];
    if whole.is_empty() && fraction.is_empty() {
        return made.push(ZERO);
    }
    made.push(if negative { NEGATIVE } else { POSITIVE });
    let start = made.len();
    made.extend_from_slice(&u32::try_from(whole.len()).unwrap_or(u32::MAX).to_be_bytes());
    made.extend_from_slice(whole);
    made.extend_from_slice(fraction);
    made.push(FIELD_END);
    if negative {
        made[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

/// Hands out fields of a CSV record, without their quotes.
fn csv_fields(record: &[u8], first: u32, last: u32, mut field: impl FnMut(&[u8])) {
    let mut rest = record.strip_suffix(b"\r").unwrap_or(record);
    for number in 1..=last {
        let (end, quoted) = csv_field_end(rest);
        if number >= first {
            if quoted { field(&unquoted(&rest[..end])) } else { field(&rest[..end]) }
        }
        if end == rest.len() {
            return;
        }
        rest = &rest[end + 1..];
    }
}

/// What a field with quotes means: of two quotes within quotes one is meant.
fn unquoted(field: &[u8]) -> Vec<u8> {
    let mut meant = Vec::with_capacity(field.len());
    let mut quoted = false;
    let mut bytes = field.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'"' {
            meant.push(byte);
        } else if quoted && bytes.next_if_eq(&b'"').is_some() {
            meant.push(b'"');
        } else {
            quoted = !quoted;
        }
    }
    meant
}

/// Where the first field ends, and whether there are quotes in it.
fn csv_field_end(rest: &[u8]) -> (usize, bool) {
    let (mut at, mut quotes, mut quoted) = (0, false, false);
    while let Some(found) = memchr2(b',', b'"', &rest[at..]) {
        at += found;
        match rest[at] {
            b'"' => (quotes, quoted) = (true, !quoted),
            _ if !quoted => return (at, quotes),
            _ => {}
        }
        at += 1;
    }
    (rest.len(), quotes)
}

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no key: write a field (2), fields (2-3), or bytes (bytes:1-10), counted from 1")]
pub struct KeyError(String);

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || KeyError(text.to_owned());
        let (bytes, range) = text.strip_prefix("bytes:").map_or((false, text), |range| (true, range));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| match text.parse::<u32>() {
            Ok(number) if number > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
            _ => Err(wrong()),
        };
        let (first, last) = (number(first)?, number(last)?);
        match bytes {
            _ if last < first => Err(wrong()),
            true => Ok(Self::Bytes { first, last }),
            false => Ok(Self::Fields { first, last }),
        }
    }
}

impl Key {
    /// Whether its numbers are possible; to be asked of what came from elsewhere.
    pub fn is_sound(self) -> bool {
        match self {
            Self::Whole => true,
            Self::Fields { first, last } | Self::Bytes { first, last } => first > 0 && first <= last,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole records"),
            Self::Fields { first, last } => write!(f, "{first}-{last}"),
            Self::Bytes { first, last } => write!(f, "bytes:{first}-{last}"),
        }
    }
}
