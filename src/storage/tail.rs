//! The end of a segment as it is written past the page cache.
//!
//! **Problem.** A commit is a few kilobytes, and a node makes thousands a second. By way of the page cache each is
//! copied into pages that nobody reads, which are then looked for, marked and written: two fifths of the processor's time
//! that a commit costs are spent there, and not at the device.
//!
//! **Method.** The records go to the device from memory of our own, and are durable when the write returns
//! ([`Disk::open_durable`]). Such writes are of whole blocks. So the block in which the last record ends is remembered,
//! and written again with the next one; what follows in it is zeros.

use std::io;
use std::path::Path;

use super::disk::{BLOCK_BYTES, Disk, File};

/// Room for so many bytes is kept between two records; more only while it is needed.
const KEPT_BYTES: usize = 256 * 1024;

/// Appends records to a file, each durable when it is written.
#[derive(Debug)]
pub(super) struct Tail {
    file: Box<dyn File>,
    /// Whole blocks; `begin` is where the first of them goes.
    begin: u64,
    /// The bytes of the block that is not full yet: the next record follows on them.
    begun: Vec<u8>,
    /// Where the blocks of a write are put together.
    room: Vec<u8>,
}

impl Tail {
    /// The end of a file, behind `offset`; `None`: this cannot be done here, for whatever reason.
    pub(super) fn open(disk: &dyn Disk, path: &Path, cached: &dyn File, offset: u64) -> Option<Self> {
        let file = disk.open_durable(path)?;
        let begin = offset - offset % BLOCK_BYTES as u64;
        let mut begun = vec![0; usize::try_from(offset - begin).ok()?];
        let read = cached.read_full_at(&mut begun, begin).ok()?;
        (read == begun.len()).then_some(Self { file, begin, begun, room: Vec::new() })
    }

    /// Writes a record behind the last one; up to where the file was written.
    ///
    /// # Errors
    /// Nothing counts as written: the next record goes to the same place.
    pub(super) fn write(&mut self, record: &[u8]) -> io::Result<u64> {
        let end = self.begun.len() + record.len();
        let length = end.next_multiple_of(BLOCK_BYTES);
        if self.room.len() < length + BLOCK_BYTES {
            self.room.resize(length + BLOCK_BYTES, 0);
        }
        let aligned = self.room.as_ptr().align_offset(BLOCK_BYTES);
        let blocks = &mut self.room[aligned..aligned + length];
        blocks[..self.begun.len()].copy_from_slice(&self.begun);
        blocks[self.begun.len()..end].copy_from_slice(record);
        blocks[end..].fill(0);
        self.file.write_all_at(blocks, self.begin)?;
        let written = self.begin + length as u64;
        let full = end - end % BLOCK_BYTES;
        self.begun.clear();
        self.begun.extend_from_slice(&blocks[full..end]);
        self.begin += full as u64;
        self.room.truncate(KEPT_BYTES);
        self.room.shrink_to(KEPT_BYTES);
        Ok(written)
    }
}
