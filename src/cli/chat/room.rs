//! A room of the chat, kept in the store itself.
//!
//! A message takes the next number from the counter `chat/ROOM/head` and is written to
//! `chat/ROOM/<number>`; a listener waits for the counter to change and then reads the new numbers in order.
//! So every listener sees the same messages in the same order, and a newcomer sees the last ones. A number
//! whose message does not come within [`LINE_WAIT`] (its writer died between the two writes) is skipped.
//!
//! Who is in the room is a key per person that expires unless it is renewed.

use std::time::Duration;

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::client::{Client, Error};
use crate::id::Version;
use crate::wire::Rpc;

/// How long a message is kept.
const LINE_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many messages a newcomer sees.
pub(super) const HISTORY: u64 = 20;
/// How long a listener waits for the message behind a number.
const LINE_WAIT: Duration = Duration::from_secs(2);
/// How long a person who is not heard of is still in the room.
const PRESENCE_TTL: Duration = Duration::from_secs(15);
/// How often a person is heard of.
pub(super) const PRESENCE_EVERY: Duration = Duration::from_secs(5);
/// Read at once when many messages are behind.
const READ_AHEAD: usize = 16;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// The sender's name.
    pub(super) nick: String,
    /// What was said.
    pub(super) text: String,
    /// Random, one per running chat: tells one's own messages apart.
    #[serde(default)]
    pub(super) from: u64,
}

/// A room.
#[derive(Debug)]
pub(super) struct Room<R> {
    client: Client<R>,
    name: String,
}

impl<R> Clone for Room<R> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), name: self.name.clone() }
    }
}

impl<R: Rpc> Room<R> {
    /// The room with this name.
    pub(super) fn new(client: Client<R>, name: &str) -> Self {
        Self { client, name: name.to_owned() }
    }

    /// Says something; returns the message's number.
    ///
    /// # Errors
    /// As [`Client::put`]. After [`Error::Unknown`] the message may appear nevertheless.
    pub(super) async fn say(&self, line: &Line) -> Result<u64, Error> {
        let number = self.client.increment(self.key("head"), 1).await?;
        let number = u64::try_from(number).map_err(|_| Error::NotAnInteger)?;
        let json = serde_json::to_vec(line).map_err(|error| Error::Refused(error.to_string()))?;
        self.client.put_with_ttl(self.line_key(number), json, LINE_TTL).await?;
        Ok(number)
    }

    /// Listens from the last [`HISTORY`] messages on.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn listen(&self) -> Result<Listener<R>, Error> {
        let head = self.client.get(self.key("head")).await?;
        let (number, version) = match &head {
            Some(entry) => (number_in(&entry.value)?, Some(entry.version)),
            None => (0, None),
        };
        let mut listener = Listener {
            room: self.clone(),
            version,
            next: number.saturating_sub(HISTORY) + 1,
            waiting: Vec::new(),
        };
        listener.read_to(number, Gap::Skip).await?;
        Ok(listener)
    }

    /// Says that this person is in the room.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub(super) async fn be_present(&self, nick: &str, from: u64) -> Result<(), Error> {
        let key = self.key(&format!("who/{from:016x}"));
        self.client.put_with_ttl(key, nick, PRESENCE_TTL).await?;
        Ok(())
    }

    /// Says that this person has gone.
    ///
    /// # Errors
    /// As [`Client::delete`].
    pub(super) async fn be_gone(&self, from: u64) -> Result<(), Error> {
        self.client.delete(self.key(&format!("who/{from:016x}"))).await?;
        Ok(())
    }

    /// Who is in the room, by name.
    ///
    /// # Errors
    /// As [`Client::scan`].
    pub(super) async fn who(&self) -> Result<Vec<String>, Error> {
        let mut people = self.client.scan(self.key("who/"));
        let mut nicks = Vec::new();
        while let Some(entry) = people.next().await {
            let (_, entry) = entry?;
            nicks.push(String::from_utf8_lossy(&entry.value).into_owned());
        }
        nicks.sort();
        Ok(nicks)
    }

    fn key(&self, rest: &str) -> Vec<u8> {
        format!("chat/{}/{rest}", self.name).into_bytes()
    }

    fn line_key(&self, number: u64) -> Vec<u8> {
        self.key(&format!("{number:020}"))
    }

    /// The message behind a number; `None` if it is not there (any more), or is none.
    async fn line(&self, number: u64, gap: Gap) -> Result<Option<Line>, Error> {
        let key = self.line_key(number);
        let entry = match self.client.get(key.clone()).await? {
            None if gap == Gap::Wait => {
                self.client.with_deadline(LINE_WAIT).wait_for_change(key, None).await?
            }
            entry => entry,
        };
        Ok(entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()))
    }
}

/// What to do about a number without a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// It is old: the message has expired.
    Skip,
    /// It is new: its writer is between its two writes.
    Wait,
}

/// Hears the messages of a room, each once, in order.
#[derive(Debug)]
pub(super) struct Listener<R> {
    room: Room<R>,
    /// Of the counter, when it was read last.
    version: Option<Version>,
    /// Number of the next message to be read.
    next: u64,
    /// Read and not yet given out, the next one last.
    waiting: Vec<(u64, Line)>,
}

impl<R: Rpc> Listener<R> {
    /// Waits for the next message, however long that takes.
    ///
    /// # Errors
    /// If the store does not answer; the listener can go on afterwards and has missed nothing.
    pub(super) async fn next(&mut self) -> Result<(u64, Line), Error> {
        loop {
            if let Some(line) = self.waiting.pop() {
                return Ok(line);
            }
            let head = self.room.client.wait_for_change(self.room.key("head"), self.version).await?;
            // Nothing new within the deadline: wait again.
            let Some(head) = head else { continue };
            self.read_to(number_in(&head.value)?, Gap::Wait).await?;
            self.version = Some(head.version);
        }
    }

    /// What is known and not yet given out.
    pub(super) fn take_waiting(&mut self) -> Vec<(u64, Line)> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.reverse();
        waiting
    }

    /// Reads the messages up to and including number `last`.
    async fn read_to(&mut self, last: u64, gap: Gap) -> Result<(), Error> {
        let room = &self.room;
        let reads = (self.next..=last).map(|number| async move { (number, room.line(number, gap).await) });
        let mut reads = futures::stream::iter(reads).buffered(READ_AHEAD);
        let mut read = Vec::new();
        while let Some((number, line)) = reads.next().await {
            read.extend(line?.map(|line| (number, line)));
        }
        drop(reads);
        read.reverse();
        self.next = self.next.max(last + 1);
        self.waiting = read;
        Ok(())
    }
}

fn number_in(value: &[u8]) -> Result<u64, Error> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Error::NotAnInteger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Node, NodeRpc};

    async fn alone() -> Node {
        let node = Node::builder()
            .port(0)
            .without_runtime_directory()
            .discovery_window(Duration::ZERO)
            .start()
            .await
            .expect("a free port");
        node.ready().await;
        node
    }

    async fn say(room: &Room<NodeRpc>, text: &str) -> u64 {
        let line = Line { nick: "ada".to_owned(), text: text.to_owned(), from: 1 };
        room.say(&line).await.expect("said")
    }

    async fn hear(listener: &mut Listener<NodeRpc>) -> (u64, String) {
        let (number, line) = listener.next().await.expect("heard");
        (number, line.text)
    }

    #[tokio::test]
    async fn all_hear_the_same_messages_in_order() {
        let node = alone().await;
        let room = Room::new(node.client(), "tea");
        let mut early = room.listen().await.expect("listening");
        for (number, text) in [(1, "one"), (2, "two"), (3, "three")] {
            assert_eq!(say(&room, text).await, number);
        }
        let mut late = room.listen().await.expect("listening");
        let waiting: Vec<String> = late.take_waiting().into_iter().map(|(_, line)| line.text).collect();
        assert_eq!(waiting, ["one", "two", "three"]);
        say(&room, "four").await;
        for number in 1..=3 {
            assert_eq!(hear(&mut early).await.0, number);
        }
        assert_eq!(hear(&mut early).await, (4, "four".to_owned()));
        assert_eq!(hear(&mut late).await, (4, "four".to_owned()));
        node.stop().await;
    }

    #[tokio::test]
    async fn a_newcomer_sees_the_last_messages_only() {
        let node = alone().await;
        let room = Room::new(node.client(), "tea");
        for number in 1..=HISTORY + 5 {
            say(&room, &number.to_string()).await;
        }
        let waiting = room.listen().await.expect("listening").take_waiting();
        let numbers: Vec<u64> = waiting.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (6..=HISTORY + 5).collect::<Vec<_>>());
        node.stop().await;
    }

    #[tokio::test]
    async fn a_number_whose_writer_died_is_skipped() {
        let node = alone().await;
        let client = node.client();
        let room = Room::new(client.clone(), "tea");
        let mut listener = room.listen().await.expect("listening");
        client.increment("chat/tea/head", 1).await.expect("a number without a message");
        say(&room, "after it").await;
        assert_eq!(hear(&mut listener).await, (2, "after it".to_owned()));
        node.stop().await;
    }

    #[tokio::test]
    async fn people_come_and_go() {
        let node = alone().await;
        let room = Room::new(node.client(), "tea");
        room.be_present("bob", 2).await.expect("present");
        room.be_present("ada", 1).await.expect("present");
        assert_eq!(room.who().await.expect("answered"), ["ada", "bob"]);
        room.be_gone(2).await.expect("gone");
        assert_eq!(room.who().await.expect("answered"), ["ada"]);
        node.stop().await;
    }
}
