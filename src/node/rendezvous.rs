//! How processes of one user on one machine find each other without any network: the runtime directory.
//!
//! Each node keeps one file there with its swarm's name, its addresses and the secret; the directory is the
//! user's alone (mode 0700), and so is the file. The file is locked as long as its node lives, so a reader can
//! tell a live node from what a crash left behind, and removes the latter. One more lock per swarm name lets
//! exactly one process at a time look for its swarm and found it: several nodes started at once on a machine
//! with nothing but a loopback interface end in one swarm.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time between two looks at a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// Longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// Most nodes of one swarm on one machine that are read.
const MAX_REGISTRATIONS: usize = 256;

/// The runtime directory.
#[derive(Debug, Clone)]
pub(super) struct Rendezvous {
    directory: PathBuf,
}

/// What a node tells the other processes of its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registration {
    /// Name of the swarm.
    pub(super) swarm: String,
    /// The node's id.
    pub(super) node: String,
    /// Where it listens, as multiaddresses.
    pub(super) addresses: Vec<String>,
    /// The swarm's secret as text; `None`: an open swarm.
    pub(super) secret: Option<String>,
}

/// Removes the registration when dropped.
#[derive(Debug)]
pub(super) struct Registered {
    path: PathBuf,
    _lock: File,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Held while looking for a swarm of one name, or founding it.
#[derive(Debug)]
pub(super) struct FoundingLock {
    _file: File,
}

impl Rendezvous {
    /// The directory given, or the user's own: `$XDG_RUNTIME_DIR/roundtable`, else one in the directory for
    /// temporary files. Made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made, or belongs to another user or is open to others.
    pub(super) fn open(directory: Option<PathBuf>) -> io::Result<Self> {
        let directory = directory.unwrap_or_else(default_directory);
        make_private_directory(&directory)?;
        Ok(Self { directory })
    }

    /// Waits, at most `timeout`, until no other process looks for this swarm or founds it; `None`: time is up.
    pub(super) async fn lock(&self, swarm: &str, timeout: Duration) -> io::Result<Option<FoundingLock>> {
        let path = self.directory.join(format!("{}.founding", file_name(swarm)));
        let file = private_file().create(true).truncate(false).open(path)?;
        let waiting = async {
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(()),
                    Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
        };
        match tokio::time::timeout(timeout, waiting).await {
            Ok(locked) => locked.map(|()| Some(FoundingLock { _file: file })),
            Err(_) => Ok(None),
        }
    }

    /// The live nodes of a swarm on this machine.
    pub(super) fn nodes(&self, swarm: &str) -> Vec<Registration> {
        let Ok(files) = fs::read_dir(&self.directory) else { return Vec::new() };
        files
            .filter_map(Result::ok)
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "node"))
            .filter_map(|path| read_live(&path))
            .filter(|registration| registration.swarm == swarm)
            .take(MAX_REGISTRATIONS)
            .collect()
    }

    /// Tells the other processes of this user where this node is, until the answer is dropped.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn register(&self, registration: &Registration) -> io::Result<Registered> {
        let name = file_name(&registration.node);
        let path = self.directory.join(format!("{name}.node"));
        let unfinished = self.directory.join(format!("{name}.new"));
        let mut file = private_file().create(true).truncate(true).open(&unfinished)?;
        file.lock()?;
        file.write_all(&serde_json::to_vec(registration).map_err(io::Error::other)?)?;
        fs::rename(&unfinished, &path)?;
        Ok(Registered { path, _lock: file })
    }
}

/// Reads a registration if its node lives; removes it if not.
fn read_live(path: &Path) -> Option<Registration> {
    let file = OpenOptions::new().read(true).open(path).ok()?;
    if file.try_lock_shared().is_ok() {
        let _ = fs::remove_file(path);
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A name as a file name: nothing in it may mean something to the file system.
fn file_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.bytes().all(plain) && !name.is_empty() && name.len() <= 64 {
        name.to_owned()
    } else {
        format!("x{}", bs58::encode(name).into_string())
    }
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn default_directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        return PathBuf::from(directory).join("roundtable");
    }
    #[cfg(unix)]
    let name = format!("roundtable-{}", rustix::process::getuid().as_raw());
    #[cfg(not(unix))]
    let name = "roundtable";
    std::env::temp_dir().join(name)
}

#[cfg(unix)]
fn make_private_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let metadata = fs::symlink_metadata(directory)?;
    let mine = metadata.uid() == rustix::process::getuid().as_raw();
    if !metadata.is_dir() || !mine || metadata.mode() & 0o077 != 0 {
        let message = format!("{} must be a directory of yours with mode 0700", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_private_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(swarm: &str, node: &str) -> Registration {
        Registration { swarm: swarm.to_owned(), node: node.to_owned(), addresses: vec![], secret: None }
    }

    fn rendezvous() -> (tempfile::TempDir, Rendezvous) {
        let directory = tempfile::tempdir().unwrap();
        let rendezvous = Rendezvous::open(Some(directory.path().join("run"))).unwrap();
        (directory, rendezvous)
    }

    #[test]
    fn a_node_is_found_as_long_as_it_lives() {
        let (_directory, rendezvous) = rendezvous();
        let wanted = registration("a swarm/with a name", "n1");
        let registered = rendezvous.register(&wanted).unwrap();
        let _other = rendezvous.register(&registration("other", "n2")).unwrap();
        assert_eq!(rendezvous.nodes(&wanted.swarm), vec![wanted.clone()]);
        drop(registered);
        assert!(rendezvous.nodes(&wanted.swarm).is_empty());
    }

    #[test]
    fn what_a_crash_left_behind_is_removed() {
        let (_directory, rendezvous) = rendezvous();
        let path = rendezvous.directory.join("crashed.node");
        fs::write(&path, serde_json::to_vec(&registration("default", "crashed")).unwrap()).unwrap();
        assert!(rendezvous.nodes("default").is_empty());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn one_at_a_time_founds() {
        let (_directory, rendezvous) = rendezvous();
        let wait = Duration::from_millis(50);
        let first = rendezvous.lock("default", wait).await.unwrap();
        assert!(first.is_some());
        assert!(rendezvous.lock("default", wait).await.unwrap().is_none());
        assert!(rendezvous.lock("other", wait).await.unwrap().is_some());
        drop(first);
        assert!(rendezvous.lock("default", wait).await.unwrap().is_some());
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Rendezvous::open(Some(open)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
