//! A process under test: its output is kept, and it does not outlive its owner.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{now, within};

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    output: PathBuf,
    /// When it was started.
    pub(super) started: Duration,
}

impl Process {
    /// Runs a command, with both its outputs into one file.
    pub(super) fn spawn(mut command: Command, output: &Path) -> Self {
        let file = File::create(output).expect("a file for the output");
        let both = file.try_clone().expect("a second handle");
        let started = now();
        let child = command
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(both)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, output: output.to_owned(), started }
    }

    /// What it has written so far.
    pub(super) fn output(&self) -> String {
        let bytes = std::fs::read(&self.output).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has written this; returns the line.
    pub(super) fn says(&mut self, text: &str, limit: Duration) -> String {
        within(limit, &format!("the output says {text:?}"), || {
            let output = self.output();
            if let Some(line) = output.lines().find(|line| line.contains(text)) {
                return Some(line.to_owned());
            }
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                // What it wrote last may have come between the two looks.
                let found = self.output().lines().find(|line| line.contains(text)).map(str::to_owned);
                return Some(found.unwrap_or_else(|| panic!("ended ({status}) before it said {text:?}")));
            }
            None
        })
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a child of ours");
    }

    /// Whether it stands still.
    pub(super) fn is_stopped(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        status.lines().any(|line| line.starts_with("State:\tT"))
    }

    /// Lets it read the end of its input.
    pub(super) fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// How it has ended, if it has.
    pub(super) fn try_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits until it has ended.
    pub(super) fn ended(&mut self, limit: Duration) -> ExitStatus {
        within(limit, "the process ends", || self.try_ended())
    }

    /// Resident memory, in KiB.
    pub(super) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
