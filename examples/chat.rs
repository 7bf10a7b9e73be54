//! A chat without a server, on nothing but the store: how to build such a client.
//!
//! ```sh
//! cargo run --example chat -- ada       # in one terminal
//! cargo run --example chat -- bob       # in another one
//! echo 'hello' | cargo run --example chat -- cleo
//! ```
//!
//! Each runs a node of its own; the nodes of one machine find each other. A message takes the next number from a
//! counter and is written under that number; everybody waits for the counter to change and reads what is new. So
//! all see the same messages in the same order. Ends with the input. (`roundtable chat` is the grown-up one.)

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::time::Duration;

use roundtable::client::{Client, Entry};
use roundtable::node::{Node, NodeRpc};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::watch;
use tokio::task::JoinSet;

const HEAD: &str = "chat/head";
/// A message is kept for a day.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long to wait for a message whose number is already taken.
const GAP: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let nick = std::env::args().nth(1).unwrap_or_else(|| "guest".to_owned());
    let node = Node::builder().swarm("chat-example").start().await?;
    node.ready().await;
    let client = node.client();
    println!("you are {nick} on node ..{}", node.id().short());

    let (heard_sender, mut heard) = watch::channel(0);
    let mut tasks = JoinSet::new();
    let head = client.get(HEAD).await?;
    tasks.spawn(listen(client.clone(), head, heard_sender));

    let mut last = 0;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        if !line.trim().is_empty() {
            last = say(&client, &format!("{nick}: {}", line.trim())).await?;
        }
    }

    // The input has ended: hear what was said last, then hand over what this node holds.
    heard.wait_for(|&number| number >= last).await?;
    tasks.shutdown().await;
    node.leave().await;
    Ok(())
}

/// Says something; returns the message's number.
async fn say(client: &Client<NodeRpc>, text: &str) -> Result<i64, roundtable::client::Error> {
    let number = client.increment(HEAD, 1).await?;
    client.put_with_ttl(line(number), text, KEPT).await?;
    Ok(number)
}

/// Prints every message that is said after the counter was at `head`, in order.
async fn listen(client: Client<NodeRpc>, mut head: Option<Entry>, heard: watch::Sender<i64>) {
    loop {
        let (seen, last) = head.as_ref().map_or((None, 0), |head| (Some(head.version), count(head)));
        // Answers as soon as the counter is at another version than the one seen; no polling.
        let Ok(Some(now)) = client.wait_for_change(HEAD, seen).await else {
            continue; // Nothing new within the deadline, or nobody answered: wait again.
        };
        for number in last + 1..=count(&now) {
            // The number is taken before the message is written, so it may not be there yet.
            let message = client.with_deadline(GAP).wait_for_change(line(number), None).await;
            if let Ok(Some(message)) = message {
                println!("{}", String::from_utf8_lossy(&message.value));
            }
            heard.send_replace(number);
        }
        head = Some(now);
    }
}

fn count(head: &Entry) -> i64 {
    String::from_utf8_lossy(&head.value).parse().unwrap_or(0)
}

fn line(number: i64) -> String {
    format!("chat/{number:020}")
}
