//! Everything that a swarm holds into a file, and back into an empty swarm.
//!
//! `file` is what the file looks like, `fetch` takes the partitions out of a swarm, `restore` puts them back.

mod fetch;
mod file;
mod restore;
#[cfg(test)]
mod tests;

pub use fetch::{BackupError, BackupProgress, BackupSummary};
pub use file::FileError;
pub use restore::{RESTORE_LEAP, RestoreError, RestoreProgress, RestoreSummary};

pub(super) use fetch::backup;
pub(super) use restore::restore;
