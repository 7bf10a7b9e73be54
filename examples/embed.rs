//! Three nodes in one process: a program that brings its own replicated store along.
//!
//! ```sh
//! cargo run --example embed
//! ```
//!
//! The first node founds a swarm; the others join it by its ticket, as they would from other machines. What one
//! writes, every other reads, also after one has left.

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::time::Duration;

use futures::StreamExt as _;
use roundtable::node::{Node, NodeBuilder};

/// On this machine only, on any free port, and apart from every other swarm of this user.
fn builder() -> NodeBuilder {
    Node::builder().swarm("embed-example").port(0).without_runtime_directory()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let first = builder().start().await?;
    let swarm = first.ready().await;
    println!("node ..{} founded the swarm {swarm}", first.id().short());

    let mut others = Vec::new();
    for _ in 0..2 {
        let node = builder().join([first.ticket()]).start().await?;
        node.ready().await;
        println!("node ..{} joined", node.id().short());
        others.push(node);
    }

    // A client routes each operation to the node that leads the key's partition; any node's client will do.
    let writer = first.client();
    let version = writer.put("greeting", "hello").await?;
    println!("greeting is at version {version}");

    let reader = others[0].client();
    let entry = reader.get("greeting").await?.ok_or("written just now")?;
    println!("the second node reads: {}", String::from_utf8_lossy(&entry.value));

    // Of two who try to change the same version, one wins.
    reader.compare_and_swap("greeting", Some(version), "good day").await?;
    let loser = writer.compare_and_swap("greeting", Some(version), "goodbye").await;
    println!("the slower one is told: {}", loser.expect_err("the version has changed"));

    // Counters, keys that expire, and lists.
    println!("visit number {}", writer.increment("visits", 1).await?);
    writer.put_with_ttl("session/ada", "open", Duration::from_secs(60)).await?;
    let mut keys = reader.scan("");
    while let Some(entry) = keys.next().await {
        let (key, entry) = entry?;
        println!("  {} is at version {}", String::from_utf8_lossy(&key), entry.version);
    }

    // Leaving hands everything over first: nothing is lost.
    first.leave().await;
    let entry = reader.get("greeting").await?.ok_or("handed over")?;
    println!("the founder has left, and greeting is still: {}", String::from_utf8_lossy(&entry.value));

    for node in others {
        node.leave().await;
    }
    Ok(())
}
