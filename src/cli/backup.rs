//! `backup` and `restore`: everything that a swarm holds into a file, and back.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;

use super::connect::{Session, Target, connect};
use super::exit::{Code, Failure};
use super::render::{Output, note};
use super::units;
use crate::client::{BackupError, BackupSummary, RestoreError, RestoreSummary};

/// Behind the file's name until it is whole.
const PARTIAL: &str = ".partial";

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
            let mut partial = Partial::create(&self.file)?;
            let summary = session.client.backup(&mut partial.file, progress).await?;
            partial.finish().await.map_err(|error| unwritable(&self.file, &error))?;
            summary
        };
        bar.finish_and_clear();
        Ok(summary)
    }
}

/// A file that is not whole yet; removed when dropped before it is.
#[derive(Debug)]
struct Partial {
    file: tokio::fs::File,
    path: PathBuf,
    whole: PathBuf,
    finished: bool,
}

impl Partial {
    fn create(whole: &Path) -> Result<Self, Failure> {
        let mut name = OsString::from(whole);
        name.push(PARTIAL);
        let path = PathBuf::from(name);
        let file = lock(&path).map_err(|error| unwritable(&path, &error))?;
        Ok(Self { file: tokio::fs::File::from_std(file), path, whole: whole.to_owned(), finished: false })
    }

    /// On the disk, and then under its name.
    async fn finish(mut self) -> io::Result<()> {
        self.file.sync_all().await?;
        tokio::fs::rename(&self.path, &self.whole).await?;
        self.finished = true;
        let directory = self.whole.parent().filter(|parent| !parent.as_os_str().is_empty());
        // So that the new name is on the disk as well. Not every system lets a directory be opened.
        if let Ok(directory) = tokio::fs::File::open(directory.unwrap_or(Path::new("."))).await {
            directory.sync_all().await?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // What remains is taken over by the next backup.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens an empty file that no other process writes to, or takes over what a process that ended left there.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another backup writes to it"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Between the opening and the lock, another backup may have been finished and have taken the name away.
        if is_still_at(&file, path)? {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_still_at(_file: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
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

    #[tokio::test]
    async fn a_file_has_its_name_only_when_it_is_whole() {
        use tokio::io::AsyncWriteExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let whole = directory.path().join("file");
        let partial = directory.path().join("file.partial");
        let names = || std::fs::read_dir(directory.path()).expect("it is there").count();

        // One that fails leaves nothing, and the file of before stays.
        std::fs::write(&whole, "before").expect("written");
        let mut failing = Partial::create(&whole).expect("created");
        failing.file.write_all(b"half").await.expect("written");
        assert!(partial.exists());
        let error = Partial::create(&whole).expect_err("another one writes");
        assert!(error.message.contains("another backup"), "{}", error.message);
        drop(failing);
        assert_eq!((names(), std::fs::read(&whole).expect("read")), (1, b"before".to_vec()));

        // What a killed process left is taken over.
        std::fs::write(&partial, "left behind, and longer than what follows").expect("written");
        let mut second = Partial::create(&whole).expect("created");
        second.file.write_all(b"whole").await.expect("written");
        second.finish().await.expect("finished");
        assert_eq!((names(), std::fs::read(&whole).expect("read")), (1, b"whole".to_vec()));
    }

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
