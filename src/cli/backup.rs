//! `backup` and `restore`: everything that a swarm holds into a file, and back.

use std::io;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;

use super::connect::{Session, Target, connect};
use super::exit::{Code, Failure};
use super::partial::Partial;
use super::render::{Output, note};
use super::units;
use crate::client::{BackupError, BackupSummary, RestoreError, RestoreSummary};

/// `backup`.
#[derive(Debug)]
pub(super) struct Backup {
    /// Where to; `-`: standard output.
    pub(super) file: PathBuf,
}

impl Backup {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let to_stdout = self.file.as_os_str() == "-";
        if to_stdout && output.terminal {
            return Err(Failure::new(Code::Usage, "a backup is not for a terminal: name a file, or pipe it"));
        }
        let session = connect(target).await?;
        let start = Instant::now();
        let summary = tokio::select! {
            summary = self.write(&session, to_stdout) => summary?,
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(Code::Interrupted, "interrupted: there is no backup"));
            }
        };
        let took = start.elapsed();
        let BackupSummary { swarm, name, partitions, keys, bytes, .. } = &summary;
        let text = || {
            let (keys, bytes) = (units::count(*keys), units::bytes(*bytes));
            let took = units::duration(took);
            format!("{keys} keys of {partitions} partitions of the swarm `{name}`: {bytes} in {took}")
        };
        let json = || {
            json!({"swarm": swarm.to_string(), "name": name, "partitions": partitions, "keys": keys,
                "bytes": bytes, "seconds": took.as_secs_f64()})
        };
        if to_stdout {
            note(&if output.json() { json().to_string() } else { text() });
        } else {
            output.answer(text, json)?;
        }
        Ok(())
    }

    async fn write(&self, session: &Session, to_stdout: bool) -> Result<BackupSummary, Failure> {
        let bar = bar("{bar:40} {pos}/{len} partitions, {msg}");
        let progress = |progress: crate::client::BackupProgress| {
            bar.set_length(u64::from(progress.of));
            bar.set_position(u64::from(progress.partitions));
            let (keys, bytes) = (units::count(progress.keys), units::bytes(progress.bytes));
            bar.set_message(format!("{keys} keys, {bytes}"));
        };
        let summary = if to_stdout {
            session.client.backup(&mut tokio::io::stdout(), progress).await?
        } else {
            let mut partial = Partial::create(&self.file).map_err(|error| unwritable(&self.file, &error))?;
            let summary = session.client.backup(&mut partial.file, progress).await?;
            partial.finish().await.map_err(|error| unwritable(&self.file, &error))?;
            summary
        };
        bar.finish_and_clear();
        Ok(summary)
    }
}

/// `restore`.
#[derive(Debug)]
pub(super) struct Restore {
    /// What `backup` wrote.
    pub(super) file: PathBuf,
}

impl Restore {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let shown = self.file.display();
        let unreadable = |error: io::Error| Failure::other(format!("{shown}: {error}: nothing was restored"));
        let mut file = tokio::fs::File::open(&self.file).await.map_err(unreadable)?;
        let length = file.metadata().await.map_err(unreadable)?.len();
        let session = connect(target).await?;
        let start = Instant::now();
        let bar = bar("{bar:40} {percent:>3}% {msg}");
        let progress = |progress: crate::client::RestoreProgress| {
            if progress.of == 0 {
                bar.set_length(length);
                bar.set_position(progress.verified);
                bar.set_message("verifying");
            } else {
                bar.set_length(progress.of);
                bar.set_position(progress.keys);
                bar.set_message(format!("restoring: {} keys", units::count(progress.keys)));
            }
        };
        let summary = session.client.restore(&mut file, progress).await?;
        bar.finish_and_clear();
        let took = start.elapsed();
        let RestoreSummary { swarm, name, keys, before, kept, above } = &summary;
        output.answer(
            || {
                let mut text = vec![format!("{} keys of the swarm `{name}`", units::count(*keys))];
                if *before > 0 {
                    let before = units::count(*before);
                    text.push(format!("{before} of them by an earlier run (what was changed since stays)"));
                }
                if *kept > 0 {
                    let kept = units::count(*kept);
                    text.push(format!("{kept} not, because they had been written meanwhile"));
                }
                let text = text.join(", ");
                format!("{text}: restored in {}; locks are not", units::duration(took))
            },
            || {
                json!({"swarm": swarm.to_string(), "name": name, "keys": keys, "before": before, "kept": kept,
                    "above": above.0, "seconds": took.as_secs_f64()})
            },
        )?;
        Ok(())
    }
}

/// A bar on standard error; nothing when that is no terminal.
fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("{}: {error}: there is no backup", path.display()))
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        let message = format!("{error}: there is no backup");
        match error {
            BackupError::Partition { error, .. } | BackupError::Store(error) => {
                Self::new(Self::from(error).code, message)
            }
            BackupError::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => error.into(),
            BackupError::Io(_) => Self::other(message),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let code = match &error {
            RestoreError::NotEmpty => Code::Conflict,
            RestoreError::Store(error) => Self::from(error.clone()).code,
            RestoreError::Interrupted { error, .. } => match &**error {
                RestoreError::Store(error) => Self::from(error.clone()).code,
                _ => Code::Failed,
            },
            _ => Code::Failed,
        };
        let advice = match &error {
            RestoreError::NotEmpty => {
                "nothing was restored; a backup is put back into a swarm that is founded anew"
            }
            RestoreError::Interrupted { .. } => {
                "the swarm holds a part of the backup; give the same file again to go on, what is written \
                 meanwhile stays"
            }
            _ => "nothing was restored",
        };
        Self::new(code, format!("{error}: {advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Error;
    use crate::id::PartitionId;

    #[test]
    fn failures_say_what_is_there_now() {
        let error = BackupError::Partition { partition: PartitionId(3), error: Error::NoQuorum };
        let failure = Failure::from(error);
        assert_eq!(failure.code, Code::NoQuorum);
        assert!(failure.message.ends_with("there is no backup"), "{}", failure.message);
        let failure = Failure::from(RestoreError::NotEmpty);
        assert_eq!(failure.code, Code::Conflict);
        let error = Box::new(RestoreError::Store(Error::TimedOut));
        let failure = Failure::from(RestoreError::Interrupted { keys: 3, of: 9, error });
        assert_eq!(failure.code, Code::Unreachable);
        assert!(failure.message.contains("3 of 9") && failure.message.contains("same file again"));
    }
}
