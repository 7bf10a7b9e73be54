//! What is kept of partitions for those who fetch it in pieces: bounded in number, bytes and time.
//!
//! An export is made at once and whole, so that it is one moment's picture, and is dropped when it was fetched or
//! when nobody has asked for it for a while. Who comes too late starts again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::time::Timestamp;
use crate::wire::MAX_PIECE_BYTES;

/// Exports that one node keeps, those that are being made included.
const MAX_EXPORTS: usize = 8;
/// Bytes beyond which a node makes no further export; a single one may be longer.
const MAX_EXPORT_BYTES: usize = 512 * 1024 * 1024;
/// An export that nobody asked for during this time is dropped.
const EXPORT_TTL: Duration = Duration::from_secs(30);
/// After this time it gives way to another one, if there is no room: whoever fetched it may have died. Well below the
/// time for which clients ask again.
const EXPORT_IDLE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Export {
    bytes: Vec<u8>,
    dropped_at: Timestamp,
}

/// The exports of one node.
#[derive(Debug)]
pub(super) struct Exports {
    kept: BTreeMap<u64, Export>,
    /// Tags of requests for one, not made yet, and about how long it will be.
    wanted: BTreeMap<u64, usize>,
    // Invariant: (t, e) is in `due` exactly when kept[e].dropped_at == t.
    due: BTreeSet<(Timestamp, u64)>,
    // Invariant: bytes == sum over `kept` of bytes.len() and over `wanted`.
    bytes: usize,
    next: u64,
}

impl Exports {
    /// `first` is the name of the first export. It must be random: a name from before a restart of the node must
    /// not lead to another export.
    pub(super) fn new(first: u64) -> Self {
        Self { kept: BTreeMap::new(), wanted: BTreeMap::new(), due: BTreeSet::new(), bytes: 0, next: first }
    }

    /// Notes that an export of about `bytes` will be made for this request. `false`: there is no room.
    pub(super) fn want(&mut self, tag: u64, bytes: usize, now: Timestamp) -> bool {
        while !self.has_room(bytes) {
            let idle = self.due.first().filter(|(due, _)| *due + EXPORT_IDLE <= now + EXPORT_TTL);
            let Some((_, name)) = idle.copied() else { return false };
            self.remove(name);
        }
        self.bytes += bytes;
        self.wanted.insert(tag, bytes);
        true
    }

    fn has_room(&self, bytes: usize) -> bool {
        let exports = self.kept.len() + self.wanted.len();
        exports == 0 || (exports < MAX_EXPORTS && self.bytes.saturating_add(bytes) <= MAX_EXPORT_BYTES)
    }

    /// The request has come to nothing (or is no request for an export).
    pub(super) fn forget(&mut self, tag: u64) {
        self.bytes -= self.wanted.remove(&tag).unwrap_or(0);
    }

    /// Keeps the export that was made for this request; its name.
    pub(super) fn keep(&mut self, tag: u64, bytes: Vec<u8>, now: Timestamp) -> u64 {
        self.forget(tag);
        let name = self.next;
        self.next = self.next.wrapping_add(1);
        self.bytes += bytes.len();
        let dropped_at = now + EXPORT_TTL;
        self.due.insert((dropped_at, name));
        self.kept.insert(name, Export { bytes, dropped_at });
        name
    }

    /// The bytes from `offset` on; `None`: there is no such export, or not any more. To ask for what is behind its
    /// end is to say that it is not needed any more.
    pub(super) fn piece(&mut self, name: u64, offset: u64, now: Timestamp) -> Option<Vec<u8>> {
        let export = self.kept.get_mut(&name)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| export.bytes.get(offset..));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
            self.remove(name);
            return Some(Vec::new());
        };
        let piece = rest[..rest.len().min(MAX_PIECE_BYTES)].to_vec();
        self.due.remove(&(export.dropped_at, name));
        export.dropped_at = now + EXPORT_TTL;
        self.due.insert((export.dropped_at, name));
        Some(piece)
    }

    /// When [`Exports::expire`] is due.
    pub(super) fn next_due(&self) -> Timestamp {
        self.due.first().map_or(Timestamp::NEVER, |(due, _)| *due)
    }

    /// Drops what nobody asked for.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some((due, name)) = self.due.first().copied()
            && due <= now
        {
            self.remove(name);
        }
    }

    fn remove(&mut self, name: u64) {
        if let Some(export) = self.kept.remove(&name) {
            self.bytes -= export.bytes.len();
            self.due.remove(&(export.dropped_at, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1);

    #[test]
    fn an_export_is_fetched_in_pieces_and_dropped_at_its_end() {
        let mut exports = Exports::new(u64::MAX);
        let bytes: Vec<u8> = (0..=255).cycle().take(MAX_PIECE_BYTES * 2 + 5).collect();
        assert!(exports.want(1, 100, NOW));
        let name = exports.keep(1, bytes.clone(), NOW);
        let mut fetched = Vec::new();
        while fetched.len() < bytes.len() {
            // An answer may be lost: the same piece again.
            exports.piece(name, fetched.len() as u64, NOW).unwrap();
            fetched.extend(exports.piece(name, fetched.len() as u64, NOW).unwrap());
        }
        assert_eq!(fetched, bytes);
        assert_eq!(exports.piece(name, fetched.len() as u64, NOW), Some(Vec::new()));
        assert_eq!(exports.piece(name, 0, NOW), None);
        assert_eq!((exports.bytes, exports.next_due()), (0, Timestamp::NEVER));
    }

    #[test]
    fn what_nobody_asks_for_is_dropped() {
        let mut exports = Exports::new(7);
        let (a, b) = (exports.keep(1, vec![1; 10], NOW), exports.keep(2, vec![2; 10], NOW));
        let later = NOW + EXPORT_TTL / 2;
        exports.piece(b, 0, later).unwrap();
        exports.expire(exports.next_due());
        assert_eq!(exports.piece(a, 0, later), None);
        assert_eq!(exports.piece(b, 9, later), Some(vec![2]));
        exports.expire(later + EXPORT_TTL);
        assert_eq!((exports.kept.len(), exports.bytes), (0, 0));
    }

    #[test]
    fn number_and_bytes_are_bounded_but_one_always_fits() {
        let mut exports = Exports::new(7);
        assert!(exports.want(1, MAX_EXPORT_BYTES * 2, NOW));
        assert!(!exports.want(2, 1, NOW));
        exports.forget(1);
        exports.forget(1);
        for tag in 0..MAX_EXPORTS as u64 {
            assert!(exports.want(tag, 1, NOW));
        }
        assert!(!exports.want(99, 1, NOW));
        let name = exports.keep(0, vec![0; 1], NOW);
        assert!(!exports.want(99, 1, NOW));
        exports.piece(name, 1, NOW);
        assert!(exports.want(99, 1, NOW));
    }

    #[test]
    fn those_of_the_dead_give_way() {
        let mut exports = Exports::new(7);
        let names: Vec<u64> =
            (0..MAX_EXPORTS as u64).map(|tag| exports.keep(tag, vec![1; 10], NOW)).collect();
        let later = NOW + EXPORT_IDLE;
        // This one is still being fetched.
        exports.piece(names[0], 0, later).unwrap();
        assert!(!exports.want(98, 1, NOW + EXPORT_IDLE / 2));
        assert!(exports.want(99, 1, later));
        assert_eq!(exports.piece(names[1], 0, later), None);
        assert!(exports.piece(names[0], 0, later).is_some());
    }
}
