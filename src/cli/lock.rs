//! `lock` and `elect`: a command that runs while this process holds a lock; and who holds what.
//!
//! The command is the leader of a process group of its own, so that all of it can be ended when the lock is
//! lost. If this process was in the foreground of a terminal, the terminal is handed to that group: it reads
//! what is typed, and Ctrl-C is for it. Otherwise signals that ask this process to end are passed on.

use std::ffi::OsString;
use std::io;
use std::num::NonZeroU32;
use std::process::ExitStatus;
use std::time::Duration;

use futures::TryStreamExt as _;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::connect::{Client, Target, connect};
use super::exit::{Code, Failure};
use super::render::{Output, json_bytes, note, printable};
use super::units;
use crate::client::{LockError, LockGuard, LockMode, LockView, PlaceView};
use crate::net::Net;

/// When the wait is broken off: for the last message to leave.
const FAREWELL: Duration = Duration::from_millis(100);
/// The part of the lease that a command may take to end when its lock is lost: half of what is left then.
const GRACE_SHARE: u32 = 20;
/// What a shell gives for a command that could not be run, and for one that is not there.
const CANNOT_RUN: u8 = 126;
const NOT_THERE: u8 = 127;

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A lock.
    Lock,
    /// One of so many permits.
    Semaphore(NonZeroU32),
    /// An election.
    Election,
}

/// `lock NAME -- COMMAND` and `elect NAME -- COMMAND`.
#[derive(Debug)]
pub(super) struct Run {
    /// The lock's name.
    pub(super) name: Vec<u8>,
    /// What is held.
    pub(super) kind: Kind,
    /// How long to wait; `None`: as long as it takes.
    pub(super) wait: Option<Duration>,
    /// The lease.
    pub(super) lease: Duration,
    /// Between SIGTERM and SIGKILL; `None`: half of what is left of the lease.
    pub(super) grace: Option<Duration>,
    /// What others see.
    pub(super) note: Option<String>,
    /// What to run.
    pub(super) program: OsString,
    /// With these arguments.
    pub(super) args: Vec<OsString>,
}

impl Run {
    pub(super) async fn run(self, target: &Target) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let session = connect(target).await?;
        let guard = tokio::select! {
            guard = self.acquire(&session.client) => guard?,
            _ = signals.next() => {
                tokio::time::sleep(FAREWELL).await;
                return Err(Failure::new(Code::Interrupted, "interrupted: the place in the queue is given up"));
            }
        };
        let outcome = self.hold(&guard, &mut signals).await;
        match guard.release().await {
            Ok(()) => {}
            Err(LockError::Lost) => {
                let message = "the lock was lost while the command ran";
                return Err(Failure::new(Code::LockLost, message));
            }
            Err(error) => note(&format!("roundtable: {error}: the lock is free when its lease is over")),
        }
        outcome
    }

    async fn acquire(&self, client: &Client) -> Result<LockGuard<Net>, Failure> {
        let program = self.program.to_string_lossy();
        let text = self.note.clone().unwrap_or_else(|| format!("{program} ({})", std::process::id()));
        let at_once = self.wait == Some(Duration::ZERO);
        let (name, lease, wait) = (self.name.as_slice(), self.lease, self.wait);
        let guard = match self.kind {
            Kind::Semaphore(permits) => {
                let semaphore = client.semaphore(name, permits.get()).lease(lease).note(text);
                match wait {
                    _ if at_once => semaphore.try_acquire().await,
                    Some(wait) => semaphore.wait(wait).acquire().await,
                    None => semaphore.acquire().await,
                }
            }
            // An election is the lock of its name, and what its leader says is the note.
            Kind::Lock | Kind::Election => {
                let lock = client.lock(name).lease(lease).note(text);
                match wait {
                    _ if at_once => lock.try_acquire().await,
                    Some(wait) => lock.wait(wait).acquire().await,
                    None => lock.acquire().await,
                }
            }
        };
        Ok(guard?)
    }

    /// Runs the command until it ends, or until the lock is lost and it was made to end.
    async fn hold(&self, guard: &LockGuard<Net>, signals: &mut Signals) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env("ROUNDTABLE_LOCK_TOKEN", guard.token().to_string()).kill_on_drop(true);
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt as _;
            command.process_group(0).env("ROUNDTABLE_LOCK_NAME", std::ffi::OsStr::from_bytes(&self.name));
        }
        #[cfg(not(unix))]
        command.env("ROUNDTABLE_LOCK_NAME", String::from_utf8_lossy(&self.name).as_ref());
        let child = command.spawn().map_err(|error| {
            let code = if error.kind() == io::ErrorKind::NotFound { NOT_THERE } else { CANNOT_RUN };
            Failure::new(Code::Command(code), format!("`{}`: {error}", self.program.to_string_lossy()))
        })?;
        let mut group = Group::new(child);
        loop {
            tokio::select! {
                status = group.child.wait() => return passed_on(status?),
                () = guard.lost() => break,
                signal = signals.next() => group.signal(signal),
            }
        }
        group.end(self.grace.unwrap_or(self.lease / GRACE_SHARE)).await;
        Err(Failure::new(Code::LockLost, "the lock was lost while the command ran, and the command ended"))
    }
}

/// The command's own exit code; as a shell does, 128 and the number of the signal that ended it.
fn passed_on(status: ExitStatus) -> Result<(), Failure> {
    let code = match status.code() {
        Some(0) => return Ok(()),
        Some(code) => u8::try_from(code).unwrap_or(u8::MAX),
        None => 128 + signal_of(status),
    };
    Err(Failure::new(Code::Command(code), ""))
}

#[cfg(unix)]
fn signal_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal().and_then(|signal| u8::try_from(signal).ok()).unwrap_or(0)
}

#[cfg(not(unix))]
fn signal_of(_: ExitStatus) -> u8 {
    0
}

#[cfg(unix)]
type Signal = rustix::process::Signal;
#[cfg(not(unix))]
type Signal = ();

/// The command and its children.
#[derive(Debug)]
struct Group {
    child: Child,
    #[cfg(unix)]
    leader: Option<rustix::process::Pid>,
}

#[cfg(unix)]
impl Group {
    fn new(child: Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let leader = pid.and_then(rustix::process::Pid::from_raw);
        let group = Self { child, leader };
        group.take_terminal();
        group
    }

    /// Makes it the foreground of the terminal, if that was ours to give.
    fn take_terminal(&self) {
        use rustix::termios::{tcgetpgrp, tcsetpgrp};
        let stdin = io::stdin();
        let Some(leader) = self.leader else { return };
        if tcgetpgrp(&stdin) == Ok(rustix::process::getpgrp()) && tcsetpgrp(&stdin, leader).is_ok() {
            // It may have been stopped for reading before the terminal was its own.
            self.signal(Signal::CONT);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // That it is gone already is what we want.
            let _ = rustix::process::kill_process_group(leader, signal);
        }
    }

    async fn end(&mut self, grace: Duration) {
        self.signal(Signal::TERM);
        // A stopped one ends only when it goes on.
        self.signal(Signal::CONT);
        // That its leader has ended does not mean that its children have.
        drop(tokio::time::timeout(grace, self.child.wait()).await);
        self.signal(Signal::KILL);
        drop(self.child.wait().await);
    }
}

#[cfg(not(unix))]
impl Group {
    fn new(child: Child) -> Self {
        Self { child }
    }

    fn signal(&mut self, (): Signal) {
        drop(self.child.start_kill());
    }

    async fn end(&mut self, _grace: Duration) {
        drop(self.child.kill().await);
    }
}

/// The signals that ask this process to end.
#[derive(Debug)]
struct Signals {
    #[cfg(unix)]
    streams: [tokio::signal::unix::Signal; 3],
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self { streams: [interrupt?, terminate?, hangup?] })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> Signal {
        let [interrupt, terminate, hangup] = &mut self.streams;
        tokio::select! {
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
        }
    }

    #[cfg(not(unix))]
    #[expect(clippy::unnecessary_wraps, reason = "as on Unix, where it can fail")]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

/// `lock --list`.
#[derive(Debug)]
pub(super) struct List {
    /// Only this lock.
    pub(super) name: Option<Vec<u8>>,
}

impl List {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = &session.client;
        if let Some(name) = self.name {
            let Some(lock) = client.lock_state(name.as_slice()).await? else {
                return Err(Failure::new(Code::NotFound, format!("`{}` is free", printable(&name))));
            };
            output.answer(|| text(&name, &lock), || as_json(&name, &lock))?;
            return Ok(());
        }
        let mut locks = std::pin::pin!(client.locks());
        while let Some((name, lock)) = locks.try_next().await? {
            output.answer(|| text(&name, &lock), || as_json(&name, &lock))?;
        }
        Ok(())
    }
}

/// A lock as lines: one for each holder and each waiter.
pub(super) fn text(name: &[u8], lock: &LockView) -> String {
    let line = |place: &PlaceView| {
        let state = match place.token {
            Some(token) => format!("held\ttoken {token}"),
            None => "waits\t-".to_owned(),
        };
        let (mode, lease) = (mode(place.mode), units::duration(Duration::from_millis(place.lease_ms)));
        format!("{}\t{state}\t{mode}\tlease {lease}\t{}", printable(name), printable(&place.note))
    };
    let lines: Vec<String> = lock.holders.iter().chain(&lock.waiters).map(line).collect();
    lines.join("\n")
}

fn mode(mode: LockMode) -> String {
    match mode {
        LockMode::Exclusive => "exclusive".to_owned(),
        LockMode::Shared => "shared".to_owned(),
        LockMode::Permit { of } => format!("1 of {of}"),
    }
}

fn as_json(name: &[u8], lock: &LockView) -> Value {
    let place = |place: &PlaceView| {
        let mut object = serde_json::Map::new();
        object.insert("token".to_owned(), json!(place.token.map(|token| token.0)));
        object.insert("arrival".to_owned(), json!(place.arrival.0));
        object.insert("mode".to_owned(), json!(mode(place.mode)));
        object.insert("lease_ms".to_owned(), json!(place.lease_ms));
        json_bytes(&mut object, "note", &place.note);
        Value::Object(object)
    };
    let mut object = serde_json::Map::new();
    json_bytes(&mut object, "name", name);
    object.insert("holders".to_owned(), lock.holders.iter().map(place).collect());
    object.insert("waiters".to_owned(), lock.waiters.iter().map(place).collect());
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Claim;
    use crate::id::{FencingToken, SessionId, Version};

    #[test]
    fn holders_and_waiters_are_a_line_each() {
        let place = |token| PlaceView {
            claim: Claim { session: SessionId(1), number: 0 },
            mode: LockMode::Permit { of: 3 },
            arrival: Version(11),
            token,
            lease_ms: 9_500,
            note: b"backup (17)".to_vec(),
        };
        let lock = LockView {
            version: Version(1),
            holders: vec![place(Some(FencingToken(12)))],
            waiters: vec![place(None)],
        };
        assert_eq!(
            text(b"a\n", &lock),
            "a\\n\theld\ttoken 12\t1 of 3\tlease 9.5s\tbackup (17)\na\\n\twaits\t-\t1 of 3\tlease 9.5s\tbackup (17)"
        );
        assert_eq!(as_json(b"a", &lock)["holders"][0]["token"], 12);
        assert_eq!(as_json(b"a", &lock)["waiters"][0]["token"], Value::Null);
        assert_eq!(as_json(b"a", &lock)["waiters"][0]["arrival"], 11);
    }

    #[cfg(unix)]
    #[test]
    fn the_exit_code_is_passed_on() {
        use std::os::unix::process::ExitStatusExt as _;
        let code = |raw| passed_on(ExitStatus::from_raw(raw)).map_err(|failure| failure.code);
        assert_eq!(code(0), Ok(()));
        assert_eq!(code(7 << 8), Err(Code::Command(7)));
        assert_eq!(code(9), Err(Code::Command(137)));
    }
}
