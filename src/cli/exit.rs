//! How a command ends: the documented exit codes, and one line that says what happened, whether anything was
//! changed, and what to do.

use std::io;
use std::process::ExitCode;

use serde_json::json;

use super::render::{Format, note};

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// None of the others.
    Failed,
    /// The command line contradicts itself.
    Usage,
    /// The key is not there.
    NotFound,
    /// The key is not as it was expected to be.
    Conflict,
    /// No majority of the replicas could be reached. Not applied.
    NoQuorum,
    /// No node, or no swarm, could be reached. Not applied.
    Unreachable,
    /// The request was under way when the time was up. It may have been applied.
    Unknown,
    /// The lock was not free until the end of the wait. The command was not run.
    NotAcquired,
    /// The lock was lost while the command ran.
    LockLost,
    /// A second interrupt.
    Interrupted,
    /// What the command that was run under a lock ended with.
    Command(u8),
}

impl Code {
    /// The number itself.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::NoQuorum => 5,
            Self::Unreachable => 6,
            Self::Unknown => 7,
            Self::NotAcquired => 8,
            Self::LockLost => 9,
            Self::Interrupted => 130,
            Self::Command(number) => number,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The exit code.
    pub(super) code: Code,
    /// One line; empty: nothing is said.
    pub(super) message: String,
}

impl Failure {
    /// A failure with its code and its line.
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A failure that no code of its own stands for.
    pub(super) fn other(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, message)
    }

    /// Writes the line to standard error and gives the exit code.
    pub(super) fn report(&self, format: Format) -> ExitCode {
        if !self.message.is_empty() {
            match format {
                Format::Text => note(&format!("roundtable: {}", self.message)),
                Format::Json => note(&self.json().to_string()),
            }
        }
        self.code.into()
    }

    fn json(&self) -> serde_json::Value {
        let applied = if self.code == Code::Unknown { "maybe" } else { "no" };
        json!({"error": self.message, "code": self.code.number(), "applied": applied})
    }
}

/// An output that is gone (`| head`) ends the command quietly, any other trouble with it is said.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::other(""),
            _ => Self::other(format!("standard input or output: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_errors_say_whether_it_happened() {
        let unknown = Failure::new(Code::Unknown, "time is up");
        assert_eq!(unknown.json(), json!({"error": "time is up", "code": 7, "applied": "maybe"}));
        assert_eq!(Failure::other("x").json()["applied"], "no");
    }

    #[test]
    fn a_closed_pipe_is_no_news() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.message.is_empty());
    }
}
