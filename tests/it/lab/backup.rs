//! Backups that are broken off: what is called a backup is whole, and the one before it is still there.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;

use super::process::Process;
use super::{LIMIT, Lab, within};

/// So many values of so many bytes: a backup of them takes its time.
const VALUES: usize = 64;
const VALUE_BYTES: usize = 1024 * 1024;

impl Lab {
    /// Writes what there is to back up.
    fn fill_up(&self) {
        let value = self.file("value");
        fs::write(&value, vec![7; VALUE_BYTES]).expect("a file");
        for number in 0..VALUES {
            let said = self.put_file(0, &format!("value/{number}"), &value);
            assert_eq!(said.code, Some(0), "{said:?}");
        }
    }

    /// Begins a backup, and halts it when it has begun to write; `None`: it was too quick.
    fn half_a_backup(&self, file: &PathBuf, partial: &PathBuf) -> Option<Process> {
        let mut command = self.roundtable(0);
        command.arg("backup").arg(file);
        let mut backup = Process::spawn(command, &self.file("broken-off"));
        within(LIMIT, "the backup has begun", || {
            let has_begun = fs::metadata(partial).is_ok_and(|file| file.len() > 0);
            (has_begun || backup.try_ended().is_some()).then_some(())
        });
        if backup.try_ended().is_some() {
            return None;
        }
        backup.signal(Signal::STOP);
        within(LIMIT, "it stands still", || {
            (backup.is_stopped() || backup.try_ended().is_some()).then_some(())
        });
        partial.exists().then_some(backup)
    }
}

#[test]
fn a_backup_that_is_broken_off_is_none_and_spoils_none() {
    let mut lab = Lab::this_machine();
    lab.up(0, &[]);
    lab.ready(0);
    lab.fill_up();
    let (file, partial) = (lab.file("all.backup"), lab.file("all.backup.partial"));
    let make = || lab.cli(0, &["backup", file.to_str().expect("a name")]);
    assert_eq!(make().code, Some(0));

    within(LIMIT, "a backup is interrupted before it is whole", || {
        let first = fs::read(&file).expect("a backup");
        let mut interrupted = lab.half_a_backup(&file, &partial)?;
        interrupted.signal(Signal::INT);
        interrupted.signal(Signal::CONT);
        let code = interrupted.ended(LIMIT).code();
        if code == Some(0) {
            return None;
        }
        assert_eq!(code, Some(130), "{}", interrupted.output());
        assert!(interrupted.output().contains("there is no backup"), "{}", interrupted.output());
        assert!(!partial.exists() && fs::read(&file).expect("a backup") == first);
        Some(())
    });

    within(LIMIT, "a backup is killed before it is whole", || {
        let first = fs::read(&file).expect("a backup");
        let mut killed = lab.half_a_backup(&file, &partial)?;
        killed.signal(Signal::KILL);
        killed.ended(LIMIT);
        assert!(partial.exists() && fs::read(&file).expect("a backup") == first);
        Some(())
    });
    // What the dead one left is taken over.
    let said = make();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!partial.exists() && fs::metadata(&file).expect("a backup").len() > 0);
}
