//! Where the chat writes: plain lines into a pipe, or lines above the one that is being typed.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::ExternalPrinter;

use crate::cli::render::write_line;

/// Writes whole lines; can be shared.
#[derive(Clone)]
pub(super) struct Screen {
    /// `None`: plain standard output.
    printer: Option<Arc<Mutex<dyn ExternalPrinter + Send>>>,
}

impl Screen {
    /// Plain lines.
    pub(super) fn plain() -> Self {
        Self { printer: None }
    }

    /// Lines above the one that is being typed.
    pub(super) fn above(printer: impl ExternalPrinter + Send + 'static) -> Self {
        Self { printer: Some(Arc::new(Mutex::new(printer))) }
    }

    /// Whether a person types at it.
    pub(super) fn is_typed_at(&self) -> bool {
        self.printer.is_some()
    }

    /// Writes a text of one or more lines. What others wrote is made printable by the caller.
    pub(super) fn line(&self, text: &str) -> io::Result<()> {
        match &self.printer {
            None => write_line(text),
            Some(printer) => {
                let mut printer = printer.lock().unwrap_or_else(PoisonError::into_inner);
                printer.print(format!("{text}\n")).map_err(io::Error::other)
            }
        }
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen").field("is_typed_at", &self.is_typed_at()).finish()
    }
}
