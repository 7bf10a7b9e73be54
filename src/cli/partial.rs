//! A file that gets its name only when it is whole.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Behind the file's name until it is whole.
const PARTIAL: &str = ".partial";

/// A file that is not whole yet; removed when dropped before it is.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) file: tokio::fs::File,
    path: PathBuf,
    whole: PathBuf,
    finished: bool,
}

impl Partial {
    /// Begins a file that will have that name.
    pub(super) fn create(whole: &Path) -> io::Result<Self> {
        let mut name = OsString::from(whole);
        name.push(PARTIAL);
        let path = PathBuf::from(name);
        let file = lock(&path)?;
        Ok(Self { file: tokio::fs::File::from_std(file), path, whole: whole.to_owned(), finished: false })
    }

    /// On the disk, and then under its name.
    pub(super) async fn finish(mut self) -> io::Result<()> {
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
            // What remains is taken over by the next command.
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
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process writes to it"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Between the opening and the lock, another one may have been finished and have taken the name away.
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(error.to_string().contains("another process"), "{error}");
        drop(failing);
        assert_eq!((names(), std::fs::read(&whole).expect("read")), (1, b"before".to_vec()));

        // What a killed process left is taken over.
        std::fs::write(&partial, "left behind, and longer than what follows").expect("written");
        let mut second = Partial::create(&whole).expect("created");
        second.file.write_all(b"whole").await.expect("written");
        second.finish().await.expect("finished");
        assert_eq!((names(), std::fs::read(&whole).expect("read")), (1, b"whole".to_vec()));
    }
}
