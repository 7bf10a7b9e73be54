//! What a word count is measured against: a text, and the plainest program that counts its words. `benches/words.sh`
//! builds and runs it; it uses nothing but the standard library.
//!
//! ```sh
//! words make BYTES > FILE        # a text of so many bytes, always the same
//! words skewed BYTES > FILE      # nine of ten lines are the same word
//! words count FILE > FILE        # each word, a tab, and how often it occurs, in the order of bytes
//! ```

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};

/// Different words of a text.
const WORDS: u32 = 200_000;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
    match arguments[..] {
        ["make", bytes] => make(bytes.parse().map_err(io::Error::other)?, &mut out)?,
        ["skewed", bytes] => skewed(bytes.parse().map_err(io::Error::other)?, &mut out)?,
        ["count", file] => count(file, &mut out)?,
        // As `cargo bench` calls it.
        _ => println!("it is run by benches/words.sh"),
    }
    out.flush()
}

/// The multiplier and increment are Knuth's.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

/// Lines of words of which few are frequent and many rare, as in any language: the word of rank `n` about `1 / n` as
/// often as the first.
fn make(bytes: usize, out: &mut impl Write) -> io::Result<()> {
    let mut random = Random(1);
    let mut words: Vec<Vec<u8>> = Vec::new();
    for rank in 1..=WORDS {
        // Frequent words are short.
        let length = 2 + rank.ilog2().min(12) / 2 + random.below(4);
        words.push((0..length).map(|_| b"etaoinshrdlucmfwypvbgkqjxz"[random.below(26) as usize]).collect());
    }
    let (mut written, mut column) = (0, 0);
    while written < bytes {
        // The logarithm of the rank is uniform.
        let bits = random.below(18);
        let rank = (1 << bits) + random.below(1 << bits);
        let word = &words[rank.min(WORDS) as usize - 1];
        out.write_all(word)?;
        column += word.len() + 1;
        written += word.len() + 1;
        let end = if column > 80 { std::mem::take(&mut column) > 0 } else { false };
        out.write_all(if end { b"\n" } else { b" " })?;
    }
    out.write_all(b"\n")
}

fn skewed(bytes: usize, out: &mut impl Write) -> io::Result<()> {
    let mut random = Random(2);
    let mut written = 0;
    while written < bytes {
        let line = if random.below(10) > 0 {
            "everybody\n".to_owned()
        } else {
            format!("somebody-{}\n", random.below(1_000_000))
        };
        out.write_all(line.as_bytes())?;
        written += line.len();
    }
    Ok(())
}

fn count(file: &str, out: &mut impl Write) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(file)?);
    let mut counts: HashMap<Vec<u8>, u64> = HashMap::new();
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        for word in line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => drop(counts.insert(word.to_vec(), 1)),
            }
        }
        line.clear();
    }
    let mut counts: Vec<(Vec<u8>, u64)> = counts.into_iter().collect();
    counts.sort();
    for (word, count) in counts {
        out.write_all(&word)?;
        writeln!(out, "\t{count}")?;
    }
    Ok(())
}
