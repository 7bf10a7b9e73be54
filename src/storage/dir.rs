//! A data directory: one process, one format, and the small files in it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, File, Lock, RealDisk, is_full};
use super::format;
use crate::id::SwarmId;

/// The format that this code writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// What the file `format` says, before the number.
const FORMAT_TEXT: &str = "roundtable data directory, format ";
const FORMAT_FILE: &str = "format";
const FORMAT_UNFINISHED: &str = "format.tmp";
const LOCK_FILE: &str = "lock";
/// Behind the name of a file that is being written.
pub(super) const UNFINISHED: &str = ".tmp";
/// Behind the name of a swarm whose data is being removed.
const REMOVED: &str = ".removed";
/// Longest small file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A directory that holds what a node keeps across restarts. As long as it is open, no other process opens it.
///
/// In it: `lock`; `format`; small files that the node [`save`](Self::save)s; and of each swarm whose data is
/// here a directory named by its id, which a [`Store`](super::Store) reads and writes.
#[derive(Debug, Clone)]
pub struct DataDir {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    _lock: Box<dyn Lock>,
}

impl DataDir {
    /// Opens a directory, making it if it is missing or empty.
    ///
    /// # Errors
    /// If another process has it open, or it holds something else, or was written by a newer version, or
    /// cannot be read or written. Nothing was changed.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealDisk), path)
    }

    pub(super) fn open_on(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        disk.make_dir(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                OpenError::NotADirectory { path: path.to_owned() }
            }
            _ => io(source),
        })?;
        // Before the lock, which would leave a file in a directory that is not ours.
        is_ours(&disk.list(path).map_err(io)?, path)?;
        let lock = disk
            .lock(&path.join(LOCK_FILE))
            .map_err(io)?
            .ok_or_else(|| OpenError::Locked { path: path.to_owned() })?;
        let names: BTreeSet<String> = disk.list(path).map_err(io)?.into_iter().collect();
        let dir = Self { inner: Arc::new(Inner { disk, path: path.to_owned(), _lock: lock }) };
        if names.contains(FORMAT_FILE) {
            dir.check_format()?;
        } else {
            dir.replace(FORMAT_FILE, format!("{FORMAT_TEXT}{FORMAT}\n").as_bytes()).map_err(io)?;
        }
        for name in names {
            if name.ends_with(REMOVED) {
                dir.inner.disk.remove_dir(&path.join(name)).map_err(io)?;
            } else if name.ends_with(UNFINISHED) && name != FORMAT_UNFINISHED {
                dir.inner.disk.remove(&path.join(name)).map_err(io)?;
            }
        }
        Ok(dir)
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let path = self.inner.path.join(FORMAT_FILE);
        let io = |source| OpenError::Io { path: path.clone(), source };
        let file = self.inner.disk.open(&path).map_err(io)?;
        let text = read_all(&*file).map_err(io)?;
        let number = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.strip_prefix(FORMAT_TEXT)?.strip_suffix('\n')?.parse::<u32>().ok());
        match number {
            Some(found) if found > FORMAT => {
                Err(OpenError::Newer { path: self.inner.path.clone(), found, known: FORMAT })
            }
            Some(FORMAT) => Ok(()),
            _ => Err(OpenError::Unreadable { path }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.inner.disk
    }

    pub(super) fn swarm_path(&self, swarm: SwarmId) -> PathBuf {
        self.inner.path.join(swarm.to_string())
    }

    /// Keeps a small file: afterwards it holds these bytes, durably. Whatever happens meanwhile, it holds either
    /// these or those before. Only the user may read it.
    ///
    /// # Errors
    /// If the disk fails, or the name is not a plain one: letters, digits, `-` and `_`.
    pub fn save(&self, name: &str, contents: &[u8]) -> Result<(), FileError> {
        check(name)?;
        let io = |source| FileError::Io { path: self.inner.path.join(name), source };
        self.replace(name, &format::wrap(contents)).map_err(io)
    }

    /// Reads a small file; `None` if it was never kept.
    ///
    /// # Errors
    /// If the disk fails, or the file is not what was written.
    pub fn load(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        check(name)?;
        load(&*self.inner.disk, &self.inner.path.join(name))
    }

    /// Removes a small file, which needs no room: afterwards it was never kept. It is not an error if it is not there.
    ///
    /// # Errors
    /// If the disk fails, or the name is not a plain one. It may or may not be there then.
    pub fn forget(&self, name: &str) -> Result<(), FileError> {
        check(name)?;
        let path = self.inner.path.join(name);
        let removed = match self.inner.disk.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.and_then(|()| self.inner.disk.sync_dir(&self.inner.path)),
        };
        removed.map_err(|source| FileError::Io { path, source })
    }

    /// The swarms whose data is here.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn swarms(&self) -> Result<Vec<SwarmId>, FileError> {
        let names = self.inner.disk.list(&self.inner.path);
        let names = names.map_err(|source| FileError::Io { path: self.inner.path.clone(), source })?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Removes all data of a swarm; its [`Store`](super::Store) must be closed. It is not an error if there is
    /// none.
    ///
    /// # Errors
    /// If the disk fails. Either all of the data is still there or none of it will be, though its files may
    /// take up room until the directory is opened again.
    pub fn remove_swarm(&self, swarm: SwarmId) -> Result<(), FileError> {
        let path = self.swarm_path(swarm);
        let doomed = self.inner.path.join(format!("{swarm}{REMOVED}"));
        let io = |source| FileError::Io { path: path.clone(), source };
        match self.inner.disk.remove_dir(&doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(io)?,
        }
        match self.inner.disk.rename(&path, &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(io)?,
        }
        self.inner.disk.sync_dir(&self.inner.path).map_err(io)?;
        self.inner.disk.remove_dir(&doomed).map_err(io)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        replace(&*self.inner.disk, &self.inner.path, name, bytes)
    }
}

/// Whether a directory is a data directory, or may become one.
fn is_ours(names: &[String], path: &Path) -> Result<(), OpenError> {
    let new = names.iter().all(|name| [LOCK_FILE, FORMAT_UNFINISHED].contains(&name.as_str()));
    if new || names.iter().any(|name| name == FORMAT_FILE) {
        Ok(())
    } else {
        Err(OpenError::Foreign { path: path.to_owned() })
    }
}

/// Reads a small file of a directory.
pub(super) fn load(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let file = match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(io)?,
    };
    let bytes = read_all(&*file).map_err(io)?;
    match format::unwrap(&bytes) {
        Some(contents) => Ok(Some(contents.to_vec())),
        None => Err(FileError::Damaged { path: path.to_owned() }),
    }
}

/// Puts a small file in the place of what had its name, durably and at once.
pub(super) fn replace(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = dir.join(format!("{name}{UNFINISHED}"));
    let written = disk.create(&unfinished).and_then(|file| {
        file.write_all_at(bytes, 0)?;
        file.sync()
    });
    if written.as_ref().is_err_and(is_full) {
        // What there is of it takes room from others. It goes with the next start at the latest.
        let _ = disk.remove(&unfinished);
    }
    written?;
    disk.rename(&unfinished, &dir.join(name))?;
    disk.sync_dir(dir)
}

fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let size = file.size()?;
    if size > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than such a file ever is"));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let read = file.read_full_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn check(name: &str) -> Result<(), FileError> {
    let plain = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && ![LOCK_FILE, FORMAT_FILE].contains(&name)
        && name.parse::<SwarmId>().is_err();
    if plain { Ok(()) } else { Err(FileError::Name(name.to_owned())) }
}

/// Why a data directory was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// One directory, one process.
    #[error("the data directory {} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It, or what it should be in, is a file.
    #[error("{} cannot be a data directory: it is no directory, or is in none", path.display())]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// It is not empty, and what is in it is not ours.
    #[error("{} is not empty and is no data directory of Roundtable", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// A newer version of Roundtable wrote it.
    #[error(
        "the data directory {} has format {found}, this version of Roundtable knows {known}: use a newer version",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this code knows.
        known: u32,
    },
    /// The file that says which format it has says nothing that makes sense.
    #[error("{} is damaged: the format of the data directory is unknown", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
    /// The disk does not read or write.
    #[error("cannot open {}: {source}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

/// Why a small file was not kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// No name for a small file.
    #[error("{0:?} is no name for a file of a data directory")]
    Name(String),
    /// It is not what was written.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The disk does not read or write.
    #[error("cannot read or write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FileError {
    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}
