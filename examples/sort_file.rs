//! Sorts a file on three nodes, which this process brings along.
//!
//! ```sh
//! cargo run --example sort_file                 # 200,000 lines that it makes up
//! cargo run --example sort_file -- README.md    # the lines of a file
//! ```
//!
//! Each node sorts the blocks that it has; then each merges a part of the key space, which it fetches from the
//! others. No node, and not this program, ever holds all of the data in memory.

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::pin::pin;

use futures::StreamExt as _;
use roundtable::client::SortSummary;
use roundtable::dataset::Format;
use roundtable::node::{Node, NodeBuilder};
use roundtable::sort::Order;
use tokio::io::AsyncReadExt as _;

/// On this machine only, on any free port, and apart from every other swarm of this user.
fn builder() -> NodeBuilder {
    Node::builder().swarm("sort-example").port(0).without_runtime_directory()
}

/// Numbered lines in an order that looks like none.
fn made_up() -> Vec<u8> {
    let scattered = (0..200_000u64).map(|line| line * 7_919 % 200_003);
    scattered.flat_map(|number| format!("line {number:06}\n").into_bytes()).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let first = builder().start().await?;
    first.ready().await;
    let mut others = Vec::new();
    for _ in 0..2 {
        let node = builder().join([first.ticket()]).start().await?;
        node.ready().await;
        others.push(node);
    }
    let client = first.client();

    // The input is a dataset: cut into blocks, each kept by three nodes.
    let mut writer = client.dataset("input").create(Format::Lines).await?;
    if let Some(path) = std::env::args().nth(1) {
        let mut file = tokio::fs::File::open(path).await?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = file.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            writer.write(&buffer[..count]).await?;
        }
    } else {
        writer.write(&made_up()).await?;
    }
    let input = writer.finish().await?;
    println!("{} lines in {} blocks", input.records, input.blocks);

    // Whole lines, as bytes. Other orders: by fields, numbers, the other way round, each key once.
    let order = Order::default();
    let sort = client.sort("input", "sorted", order);
    let SortSummary { tasks, moved_bytes, .. } = sort.run(|_| {}).await?;
    println!("sorted by {} tasks into {} ranges; {moved_bytes} bytes went between nodes", tasks.0, tasks.1);

    // The output is a dataset as well; it was checked before it was there.
    let reader = client.dataset("sorted").read().await?;
    let mut blocks = pin!(reader.blocks());
    if let Some(block) = blocks.next().await {
        for line in Format::Lines.records(&block?).take(3) {
            println!("  {}", String::from_utf8_lossy(line));
        }
        println!("  ...");
    }
    Ok(())
}
