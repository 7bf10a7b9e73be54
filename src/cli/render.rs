//! What goes to standard output: text for people and pipes, JSON for programs.
//!
//! Text is coloured only on a terminal, and never under `NO_COLOR`. Bytes that are not printable are escaped,
//! so that a value cannot play tricks with a terminal; only `get` writes raw bytes. A reader that goes away
//! (`| head`) ends the command quietly.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};

use serde_json::{Value, json};

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Format {
    /// For people, and for line-oriented tools when piped.
    #[default]
    Text,
    /// One JSON value per answer, on one line.
    Json,
}

/// Standard output, with what is known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    /// How answers are written.
    pub(super) format: Format,
    /// Whether a person looks at it.
    pub(super) terminal: bool,
    colour: bool,
}

impl Output {
    /// Standard output of this process.
    pub(super) fn stdout(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { format, terminal, colour: terminal && !no_colour }
    }

    /// An output that is no terminal.
    #[cfg(test)]
    pub(super) fn plain(format: Format) -> Self {
        Self { format, terminal: false, colour: false }
    }

    /// Whether answers are JSON.
    pub(super) fn json(self) -> bool {
        self.format == Format::Json
    }

    /// Writes raw bytes, with a line end behind them only for a person.
    pub(super) fn raw(self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        if self.terminal {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// Writes the answer in the chosen format; only the chosen one is made.
    pub(super) fn answer(
        self,
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> Value,
    ) -> io::Result<()> {
        match self.format {
            Format::Text => write_line(&text()),
            Format::Json => write_line(&json().to_string()),
        }
    }

    /// `text` in bold on a terminal with colours.
    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// `text` as a warning on a terminal with colours.
    pub(super) fn warning(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    fn paint(self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes one line to standard output.
pub(super) fn write_line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Writes one line to standard error; an error stream that is gone is no reason to fail.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Bytes as one printable line: UTF-8 text as it is, everything else escaped as in a Rust string.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            // A String takes everything.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Bytes in JSON: the text itself, or Base64 when it is not UTF-8; `name_encoding` says which.
pub(super) fn json_bytes(object: &mut serde_json::Map<String, Value>, name: &str, bytes: &[u8]) {
    let (text, encoding) = match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), "utf8"),
        Err(_) => (base64(bytes), "base64"),
    };
    object.insert(name.to_owned(), json!(text));
    object.insert(format!("{name}_encoding"), json!(encoding));
}

/// Base64 of RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            if place <= chunk.len() {
                let index = (bits >> (18 - 6 * place)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// A table: columns as wide as their widest cell, two spaces between, no lines.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub(super) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|&title| title.to_owned()).collect()] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, its titles in bold where there are colours; no line end behind the last row.
    pub(super) fn render(&self, output: Output) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let lines = self.rows.iter().enumerate().map(|(number, row)| {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> = cells.map(|(cell, &width)| format!("{cell:width$}")).collect();
            let line = line.join("  ").trim_end().to_owned();
            if number == 0 { output.bold(&line) } else { line }
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output { format: Format::Text, terminal: false, colour: false };

    #[test]
    fn base64_agrees_with_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn bytes_that_could_move_a_cursor_are_escaped() {
        assert_eq!(printable(b"plain \xc3\xa9"), "plain é");
        assert_eq!(printable(b"\x1b[2J\n\xff"), "\\u{1b}[2J\\n\\xff");
    }

    #[test]
    fn json_says_how_bytes_are_encoded() {
        let mut object = serde_json::Map::new();
        json_bytes(&mut object, "key", b"a");
        json_bytes(&mut object, "value", b"\xff");
        assert_eq!(
            Value::Object(object),
            json!({"key": "a", "key_encoding": "utf8", "value": "/w==", "value_encoding": "base64"})
        );
    }

    #[test]
    fn tables_align_and_are_plain_when_piped() {
        let mut table = Table::new(&["NODE", "STATE"]);
        table.row(["..9fK2aQ".to_owned(), "alive".to_owned()]);
        table.row(["..b".to_owned(), "left".to_owned()]);
        assert_eq!(table.render(PLAIN), "NODE      STATE\n..9fK2aQ  alive\n..b       left");
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let colour = Output { colour: true, ..PLAIN };
        assert_eq!(PLAIN.bold("x"), "x");
        assert_eq!(colour.bold("x"), "\x1b[1mx\x1b[0m");
    }
}
