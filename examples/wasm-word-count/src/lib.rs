//! Counts words: shipped code, which every node of a swarm can run.
//!
//! ```text
//! rustup target add wasm32-wasip2
//! cargo build --release --target wasm32-wasip2
//! roundtable run target/wasm32-wasip2/release/word_count.wasm --input text --output counts
//! ```
//!
//! To write a program of your own, take this directory, and `program.wit`, and change this file.

mod job;

use job::{Job, Pairs, Records, Values};

struct WordCount;

export_job!(WordCount);

impl Job for WordCount {
    const COMBINES: bool = true;
    const REDUCES: bool = true;

    fn start(arguments: Vec<Vec<u8>>) -> Result<Self, String> {
        if arguments.is_empty() { Ok(Self) } else { Err("there are none".to_owned()) }
    }

    /// Each word, once.
    fn map(&mut self, record: &[u8], out: &mut Pairs) -> Result<(), String> {
        for word in record.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            out.push(word, &1u64.to_le_bytes());
        }
        Ok(())
    }

    /// How often a word is there, in some of the text.
    fn combine(&mut self, word: &[u8], counts: Values<'_>, out: &mut Pairs) -> Result<(), String> {
        out.push(word, &sum(counts)?.to_le_bytes());
        Ok(())
    }

    /// A line for each word.
    fn reduce(&mut self, word: &[u8], counts: Values<'_>, out: &mut Records) -> Result<(), String> {
        out.push(&[word, format!("\t{}", sum(counts)?).as_bytes()].concat());
        Ok(())
    }
}

fn sum(counts: Values<'_>) -> Result<u64, String> {
    counts
        .map(|count| count.try_into().map(u64::from_le_bytes).map_err(|_| "a count is no number".to_owned()))
        .sum()
}
