//! Backups that are broken off: what is called a backup is whole, and the one before it is still there.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;

use super::process::Process;
use super::{LIMIT, Lab, within};

/// Enough that a backup takes its time.
const FILL: [&str; 10] =
    ["bench", "--op", "put", "--clients", "16", "--seconds", "3", "--value-size", "60000", "--keep"];

impl Lab {
    /// Begins a backup, and halts it when it has begun to write.
    fn half_a_backup(&self, file: &PathBuf, partial: &PathBuf) -> Process {
        let mut command = self.roundtable(0);
        command.arg("backup").arg(file);
        let mut backup = Process::spawn(command, &self.file("broken-off"));
        within(LIMIT, "the backup has begun", || {
            fs::metadata(partial).is_ok_and(|file| file.len() > 0).then_some(())
        });
        backup.signal(Signal::STOP);
        within(LIMIT, "it stands still", || backup.is_stopped().then_some(()));
        assert!(backup.try_ended().is_none() && partial.exists(), "it was too quick");
        backup
    }
}

#[test]
fn a_backup_that_is_broken_off_is_none_and_spoils_none() {
    let mut lab = Lab::this_machine();
    lab.up(0, &[]);
    lab.ready(0);
    assert_eq!(lab.cli(0, &FILL).code, Some(0));
    let (file, partial) = (lab.file("all.backup"), lab.file("all.backup.partial"));
    let make = || lab.cli(0, &["backup", file.to_str().expect("a name")]);
    assert_eq!(make().code, Some(0));
    let first = fs::read(&file).expect("a backup");

    let mut interrupted = lab.half_a_backup(&file, &partial);
    interrupted.signal(Signal::INT);
    interrupted.signal(Signal::CONT);
    assert_eq!(interrupted.ended(LIMIT).code(), Some(130), "{}", interrupted.output());
    assert!(interrupted.output().contains("there is no backup"), "{}", interrupted.output());
    assert!(!partial.exists() && fs::read(&file).expect("a backup") == first);

    let mut killed = lab.half_a_backup(&file, &partial);
    killed.signal(Signal::KILL);
    killed.ended(LIMIT);
    assert!(fs::read(&file).expect("a backup") == first);
    // What the dead one left is taken over.
    let said = make();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!partial.exists() && fs::metadata(&file).expect("a backup").len() > 0);
}
