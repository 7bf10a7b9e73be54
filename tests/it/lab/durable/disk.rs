//! A small disk for a node, and what is done to the files on it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Fills up what room there is.
const BALLAST: &str = "ballast";

/// A file system in memory of a few MiB. Nodes that still use it when it goes keep it until they end.
#[derive(Debug)]
pub(super) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one in the place of a directory; `None`: that is not possible here.
    pub(super) fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(path).expect("a place to mount on");
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self { path: path.to_owned() })
    }

    /// Takes all room that there is.
    pub(super) fn fill(&self) {
        let mut ballast =
            File::options().create(true).append(true).open(self.path.join(BALLAST)).expect("a file");
        for bytes in [1 << 20, 1 << 12] {
            while ballast.write_all(&vec![1; bytes]).is_ok() {}
        }
    }

    /// Makes room again.
    pub(super) fn make_room(&self) {
        fs::remove_file(self.path.join(BALLAST)).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What cannot be unmounted goes with the machine.
        drop(Command::new("umount").arg("--lazy").arg(&self.path).output());
    }
}

/// The files of a data directory's only swarm whose names end so; the newest log last.
pub(super) fn files(data_dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = |path: &Path| {
        let entries = fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path());
        entries.collect::<Vec<_>>()
    };
    let swarm = entries(data_dir).into_iter().find(|path| path.is_dir()).expect("a swarm");
    let name = |path: &PathBuf| path.to_str().expect("a name").to_owned();
    let mut files: Vec<PathBuf> =
        entries(&swarm).into_iter().filter(|path| name(path).ends_with(suffix)).collect();
    files.sort();
    files
}

/// Where the written part of a log ends: behind it are zeros.
pub(super) fn written(log: &Path) -> u64 {
    let bytes = fs::read(log).expect("a log");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// A record of a log.
#[derive(Debug)]
pub(super) struct Record {
    is_data: bool,
    pub(super) begin: usize,
    /// Where its body begins.
    body: usize,
    /// Where the next one may begin.
    pub(super) end: usize,
}

/// The records of a log.
pub(super) fn records(log: &Path) -> Vec<Record> {
    const HEAD_BYTES: usize = 32;
    let bytes = fs::read(log).expect("a log");
    let mark = &bytes[..8];
    let places = (0..bytes.len() - HEAD_BYTES).step_by(8).filter(|at| bytes[*at..].starts_with(mark));
    let record = |begin: usize| {
        let length = u32::from_le_bytes(*bytes[begin + 16..].first_chunk().expect("a head"));
        let body = begin + HEAD_BYTES;
        let end = (body + length as usize).next_multiple_of(8);
        Record { is_data: bytes[begin + 20] == 1, begin, body, end }
    };
    places.map(record).collect()
}

/// Where the body begins of the data record in the middle of a log. It says something that nothing else does, unlike a
/// summary or the zeros between two records.
pub(super) fn middle(log: &Path) -> u64 {
    let data: Vec<Record> = records(log).into_iter().filter(|record| record.is_data).collect();
    data[data.len() / 2].body as u64
}

/// Changes a byte.
pub(super) fn flip(file: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(file).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
}
