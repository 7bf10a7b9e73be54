//! What a sort is measured against: records, and the plainest program that sorts them. `benches/sort.sh` builds and runs
//! it; it uses nothing but the standard library.
//!
//! ```sh
//! sort make BYTES > FILE       # records of 100 bytes, always the same
//! sort skewed BYTES > FILE     # nine of ten have the same first 10 bytes, their key
//! sort equal BYTES > FILE      # nine of ten are the same from the first byte to the last
//! sort sort FILE > FILE        # in the order of bytes, all in memory
//! ```

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::io::{self, BufWriter, Write};

/// As in the sort benchmark's text records: a key, a number, and what fills the record, with its line end.
const RECORD_BYTES: usize = 100;
const KEY_BYTES: usize = 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
    match arguments[..] {
        [kind @ ("make" | "skewed" | "equal"), bytes] => {
            let bytes: usize = bytes.parse().map_err(io::Error::other)?;
            make(kind, bytes / RECORD_BYTES, &mut out)?;
        }
        ["sort", file] => {
            let data = std::fs::read(file)?;
            let mut lines: Vec<&[u8]> = data.split_inclusive(|byte| *byte == b'\n').collect();
            lines.sort_unstable();
            for line in lines {
                out.write_all(line)?;
            }
        }
        // As `cargo bench` calls it.
        _ => println!("it is run by benches/sort.sh"),
    }
    out.flush()
}

fn make(kind: &str, records: usize, out: &mut impl Write) -> io::Result<()> {
    // The multiplier and increment are Knuth's.
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for number in 0..records {
        let is_same = kind != "make" && random() % 10 > 0;
        let mut record = [b'~'; RECORD_BYTES];
        for byte in &mut record[..KEY_BYTES] {
            // What can be printed and is no blank, as in the sort benchmark.
            let drawn = b'!' + u8::try_from(random() % 94).unwrap_or(0);
            *byte = if is_same { b'M' } else { drawn };
        }
        let number = if is_same && kind == "equal" { 0 } else { number };
        let mut rest = &mut record[KEY_BYTES..];
        write!(rest, "  {number:032X}  ")?;
        let filling = number % 26;
        rest.fill(b'A' + u8::try_from(filling).unwrap_or(0));
        record[RECORD_BYTES - 1] = b'\n';
        out.write_all(&record)?;
    }
    Ok(())
}
