//! Counts words on three nodes, which this process brings along, with functions of its own.
//!
//! ```sh
//! cargo run --example word_count                # of a text that it makes up
//! cargo run --example word_count -- README.md   # of a file
//! ```
//!
//! The same without a line of code, in any swarm: `roundtable run word-count --input README.md`.
//!
//! Each node maps the blocks that it has, and adds up what it finds; then each reduces a part of the words, which it
//! fetches from the others.

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;

use roundtable::compute::{Program, sum};
use roundtable::dataset::Format;
use roundtable::node::{Node, NodeBuilder};

/// What is run: registered in each node, under a name and a version.
fn words() -> Program {
    Program::new("words", 1)
        // Of each record, here a line: keys and values.
        .map(|line, out| {
            for word in line.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
                out.pair(&word.to_ascii_lowercase(), &1u64.to_le_bytes());
            }
        })
        // Some values of a key into one, wherever they meet.
        .combine(|_word, counts, count| count.extend_from_slice(&sum(counts).to_le_bytes()))
        // A key and what is left of its values, into records.
        .reduce(|word, counts, out| {
            out.record(format!("{} {}", String::from_utf8_lossy(word), sum(counts)).as_bytes());
        })
}

/// On this machine only, on any free port, and apart from every other swarm of this user.
fn builder() -> NodeBuilder {
    Node::builder().swarm("word-count-example").port(0).without_runtime_directory().program(words())
}

fn made_up() -> Vec<u8> {
    let verses = (1..=20_000).rev().map(|count| format!("{count} peers around the table, {count} peers;\n"));
    verses.flat_map(String::into_bytes).collect()
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
    let text = match std::env::args().nth(1) {
        Some(path) => tokio::fs::read(path).await?,
        None => made_up(),
    };
    let mut writer = client.dataset("text").create(Format::Lines).await?;
    writer.write(&text).await?;
    writer.finish().await?;

    // The output is a dataset as well; it is checked before it is there.
    let summary = client.job("words").input("text").output("counts").run(|_| {}).await?;
    let (tasks, ranges) = summary.tasks;
    println!("{} lines, {} different words", summary.input_records, summary.records);
    println!("{tasks} tasks, {} where their blocks are; {ranges} ranges", summary.local);
    println!("{} pairs, {} of them left to be reduced", summary.pairs, summary.combined_pairs);

    // A result that is small need not become a dataset. This program is one that every node has.
    let top = client.job("top").argument("3").argument("2").input("counts");
    let (most, _) = top.collect(|_| {}).await?;
    for record in most {
        println!("  {}", String::from_utf8_lossy(&record));
    }
    Ok(())
}
