//! The commands on keys: put, get, del, cas, incr, expire, scan, watch.

use std::io::Read as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Map, Value, json};

use super::connect::{Target, connect};
use super::exit::{Code, Failure};
use super::render::{Output, json_bytes, printable, write_line};
use crate::client::Error;
use crate::id::{FencingToken, Version};
use crate::state_machine::{Entry, MAX_VALUE_BYTES};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The command line.
    Given(Vec<u8>),
    /// Standard input, to its end.
    Stdin,
}

impl Source {
    /// The value; refused before anything is sent if it is too large.
    fn read(self) -> Result<Vec<u8>, Failure> {
        let value = match self {
            Self::Given(value) => value,
            Self::Stdin => {
                let mut value = Vec::new();
                let one_too_many = MAX_VALUE_BYTES as u64 + 1;
                std::io::stdin().lock().take(one_too_many).read_to_end(&mut value)?;
                value
            }
        };
        if value.len() > MAX_VALUE_BYTES {
            return Err(Failure::other(format!(
                "the value is larger than {MAX_VALUE_BYTES} bytes: nothing was written"
            )));
        }
        Ok(value)
    }
}

/// `put`.
#[derive(Debug)]
pub(super) struct Put {
    /// The key.
    pub(super) key: Vec<u8>,
    /// Its new value.
    pub(super) value: Source,
    /// How long it stays.
    pub(super) ttl: Option<Duration>,
    /// Of the lock under which it is written.
    pub(super) token: Option<FencingToken>,
}

impl Put {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let value = self.value.read()?;
        let session = connect(target).await?;
        let (client, key) = (&session.client, self.key);
        let version = match (self.token, self.ttl) {
            (None, None) => client.put(key, value).await,
            (None, Some(ttl)) => client.put_with_ttl(key, value, ttl).await,
            (Some(token), None) => client.put_fenced(key, value, token).await,
            (Some(token), Some(ttl)) => client.put_fenced_with_ttl(key, value, ttl, token).await,
        };
        written(version?, output)
    }
}

/// `get`.
#[derive(Debug)]
pub(super) struct Get {
    /// The key.
    pub(super) key: Vec<u8>,
    /// Whether any replica may answer.
    pub(super) stale: bool,
}

impl Get {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = if self.stale { session.client.stale() } else { session.client.clone() };
        let Some(entry) = client.get(self.key.as_slice()).await? else {
            return Err(not_there(&self.key));
        };
        if output.json() {
            write_line(&entry_json(&self.key, &entry).to_string())?;
        } else {
            output.raw(&entry.value)?;
        }
        Ok(())
    }
}

/// `del`.
#[derive(Debug)]
pub(super) struct Del {
    /// The key.
    pub(super) key: Vec<u8>,
    /// Of the lock under which it is removed.
    pub(super) token: Option<FencingToken>,
}

impl Del {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let (client, key) = (&session.client, self.key.as_slice());
        let existed = match self.token {
            Some(token) => client.delete_fenced(key, token).await?,
            None => client.delete(key).await?,
        };
        if !existed {
            return Err(not_there(&self.key));
        }
        output.answer(|| "deleted".to_owned(), || json!({"deleted": true}))?;
        Ok(())
    }
}

/// How a key must be for `cas` to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expectation {
    /// At this version.
    Version(u64),
    /// Not there.
    Absent,
}

/// `cas`.
#[derive(Debug)]
pub(super) struct Cas {
    /// The key.
    pub(super) key: Vec<u8>,
    /// Its new value.
    pub(super) value: Source,
    /// How it must be.
    pub(super) expected: Expectation,
    /// How long it stays.
    pub(super) ttl: Option<Duration>,
}

impl Cas {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let value = self.value.read()?;
        let session = connect(target).await?;
        let client = &session.client;
        let expected = match self.expected {
            Expectation::Version(version) => Some(Version(version)),
            Expectation::Absent => None,
        };
        let version = match self.ttl {
            Some(ttl) => client.compare_and_swap_with_ttl(self.key, expected, value, ttl).await,
            None => client.compare_and_swap(self.key, expected, value).await,
        };
        written(version?, output)
    }
}

/// `incr`.
#[derive(Debug)]
pub(super) struct Incr {
    /// The key.
    pub(super) key: Vec<u8>,
    /// How much to add.
    pub(super) by: i64,
}

impl Incr {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let value = session.client.increment(self.key, self.by).await?;
        output.answer(|| value.to_string(), || json!({"value": value}))?;
        Ok(())
    }
}

/// `expire`.
#[derive(Debug)]
pub(super) struct Expire {
    /// The key.
    pub(super) key: Vec<u8>,
    /// From now on; `None`: never.
    pub(super) ttl: Option<Duration>,
}

impl Expire {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        match session.client.expire(self.key.as_slice(), self.ttl).await {
            Ok(version) => written(version, output),
            Err(Error::NotFound) => Err(not_there(&self.key)),
            Err(error) => Err(error.into()),
        }
    }
}

/// `scan`.
#[derive(Debug)]
pub(super) struct Scan {
    /// What the keys begin with.
    pub(super) prefix: Vec<u8>,
    /// At most so many.
    pub(super) limit: Option<NonZeroUsize>,
    /// Whether any replica may answer.
    pub(super) stale: bool,
}

impl Scan {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = if self.stale { session.client.stale() } else { session.client.clone() };
        let limit = self.limit.map_or(usize::MAX, NonZeroUsize::get);
        let mut entries = client.scan(self.prefix).take(limit);
        while let Some(entry) = entries.next().await {
            let (key, entry) = entry?;
            output.answer(|| entry_line(&key, &entry), || entry_json(&key, &entry))?;
        }
        Ok(())
    }
}

/// `watch`.
#[derive(Debug)]
pub(super) struct Watch {
    /// The key.
    pub(super) key: Vec<u8>,
    /// End after so many lines.
    pub(super) count: Option<NonZeroUsize>,
}

impl Watch {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let mut seen = None;
        let mut left = self.count.map(NonZeroUsize::get);
        while left != Some(0) {
            // A wait that ends without a change begins anew.
            let Some(entry) = session.client.wait_for_change(self.key.as_slice(), seen).await? else {
                continue;
            };
            output.answer(
                || format!("version {}: {}", entry.version, printable(&entry.value)),
                || entry_json(&self.key, &entry),
            )?;
            seen = Some(entry.version);
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}

fn written(version: Version, output: Output) -> Result<(), Failure> {
    output.answer(|| format!("version {version}"), || json!({"version": version.0}))?;
    Ok(())
}

fn not_there(key: &[u8]) -> Failure {
    Failure::new(Code::NotFound, format!("`{}` is not there", printable(key)))
}

/// An entry as a line of `scan`.
pub(super) fn entry_line(key: &[u8], entry: &Entry) -> String {
    format!("{}\t{}\t{}", printable(key), entry.version, printable(&entry.value))
}

fn entry_json(key: &[u8], entry: &Entry) -> Value {
    let mut object = Map::new();
    json_bytes(&mut object, "key", key);
    json_bytes(&mut object, "value", &entry.value);
    object.insert("version".to_owned(), json!(entry.version.0));
    object.insert("ttl_ms".to_owned(), json!(entry.ttl_ms));
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_whatever_it_holds() {
        let entry =
            Entry { value: b"two\nlines\tand \xff".to_vec(), version: Version(12), ttl_ms: Some(500) };
        assert_eq!(entry_line(b"k", &entry), "k\t12\ttwo\\nlines\\tand \\xff");
        assert_eq!(entry_json(b"k", &entry)["value_encoding"], "base64");
        assert_eq!(entry_json(b"k", &entry)["ttl_ms"], 500);
    }

    #[test]
    fn a_value_that_is_too_large_is_refused_before_anything_is_sent() {
        let failure = Source::Given(vec![0; MAX_VALUE_BYTES + 1]).read().expect_err("too large");
        assert!(failure.message.contains("nothing was written"));
        assert!(Source::Given(vec![0; MAX_VALUE_BYTES]).read().is_ok());
    }
}
