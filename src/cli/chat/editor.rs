//! Where lines come from: an editor with history and completion on a terminal, or a pipe.
//!
//! Both block, so each has a thread of its own and hands its lines over one by one.

use std::io::{self, BufRead as _};
use std::path::PathBuf;
use std::thread;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Context, Editor, Helper, Highlighter, Hinter, Validator};
use tokio::sync::mpsc;

use super::line::COMMANDS;
use super::screen::Screen;

/// Lines that wait while one is being worked on.
const QUEUE: usize = 1;
/// Longest line that is taken from a pipe, in bytes; above the longest value.
const MAX_LINE_BYTES: u64 = 2 * 1024 * 1024;

/// Reads from standard input, to its end.
pub(super) fn from_pipe() -> io::Result<mpsc::Receiver<io::Result<String>>> {
    let (sender, lines) = mpsc::channel(QUEUE);
    thread::Builder::new().name("lines".to_owned()).spawn(move || {
        loop {
            let line = next_line();
            let last = line.is_err();
            if let Some(line) = line.transpose()
                && sender.blocking_send(line).is_ok()
                && !last
            {
                continue;
            }
            return;
        }
    })?;
    Ok(lines)
}

/// One line of standard input; `None` at its end.
fn next_line() -> io::Result<Option<String>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
    if read == 0 {
        return Ok(None);
    }
    if !bytes.ends_with(b"\n") && bytes.len() as u64 == MAX_LINE_BYTES {
        return Err(io::Error::other("a line is too long"));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Reads from the terminal. Ends at Ctrl-D, or Ctrl-C.
pub(super) fn from_terminal() -> Result<(mpsc::Receiver<io::Result<String>>, Screen), ReadlineError> {
    let mut editor: Editor<Commands, DefaultHistory> = Editor::new()?;
    editor.set_helper(Some(Commands));
    let history = history_file();
    if let Some(file) = &history {
        // The first time there is none.
        let _ = editor.load_history(file);
    }
    let screen = Screen::above(editor.create_external_printer()?);
    let (sender, lines) = mpsc::channel(QUEUE);
    thread::Builder::new().name("editor".to_owned()).spawn(move || edit(editor, history, &sender))?;
    Ok((lines, screen))
}

fn edit(
    mut editor: Editor<Commands, DefaultHistory>,
    history: Option<PathBuf>,
    sender: &mpsc::Sender<io::Result<String>>,
) {
    loop {
        match editor.readline("> ") {
            Ok(line) => {
                // A line that is not remembered is no reason to stop.
                let _ = editor.add_history_entry(line.as_str());
                let quit = line.trim() == "/quit";
                if sender.blocking_send(Ok(line)).is_err() || quit {
                    break;
                }
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
            Err(error) => {
                let _ = sender.blocking_send(Err(io::Error::other(error)));
                break;
            }
        }
    }
    if let Some(file) = history {
        let _ = editor.save_history(&file);
    }
}

/// In the user's directory for state; `None` if there is none or it cannot be made.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    let directory = state.join("roundtable");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("chat_history"))
}

/// Completes commands.
#[derive(Debug, Helper, Highlighter, Hinter, Validator)]
struct Commands;

impl Completer for Commands {
    type Candidate = Pair;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        Ok((0, completions(line.get(..cursor).unwrap_or(line))))
    }
}

/// The commands that begin with what was typed.
fn completions(typed: &str) -> Vec<Pair> {
    if !typed.starts_with('/') || typed.contains(' ') {
        return Vec::new();
    }
    let fitting = COMMANDS.iter().filter_map(|(usage, _)| {
        let (name, takes_words) = match usage.split_once(' ') {
            Some((name, _)) => (name, true),
            None => (*usage, false),
        };
        name.starts_with(typed).then(|| Pair {
            display: (*usage).to_owned(),
            replacement: if takes_words { format!("{name} ") } else { name.to_owned() },
        })
    });
    fitting.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replacements(typed: &str) -> Vec<String> {
        completions(typed).into_iter().map(|pair| pair.replacement).collect()
    }

    #[test]
    fn commands_are_completed_and_messages_are_not() {
        assert_eq!(replacements("/ge"), ["/get "]);
        assert_eq!(replacements("/wh"), ["/where ", "/who"]);
        assert_eq!(replacements("/").len(), COMMANDS.len());
        assert!(replacements("hello").is_empty());
        assert!(replacements("/get k").is_empty());
    }
}
