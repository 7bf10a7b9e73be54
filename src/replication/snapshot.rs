//! Snapshots on their way: cut into pieces, with a window, so that one large partition neither fills a frame
//! nor delays the heartbeats of the others.
//!
//! Go-back-N: the receiver takes pieces in order only and says how far it got; without progress the sender
//! starts again from there, and gives up after a while. A checksum covers the whole.

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use std::time::Duration;

use super::config::{Roster, Voting};
use super::message::SnapshotChunk;
use crate::id::{NodeId, ReplicaId};
use crate::state_machine::StateMachine;
use crate::time::Timestamp;

/// Bytes of one piece.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
/// Pieces sent ahead of what the receiver confirmed.
const WINDOW_CHUNKS: usize = 4;
/// Largest snapshot taken in, in bytes.
pub(super) const MAX_SNAPSHOT_BYTES: u64 = 1024 * 1024 * 1024;
/// Largest description of a snapshot taken in, in bytes.
pub(super) const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Snapshots that a node sends at the same time; others wait for the next heartbeat.
pub(super) const MAX_OUTGOING: usize = 4;
/// Snapshots that a node takes in at the same time.
pub(super) const MAX_INCOMING: usize = 8;
/// Without progress for so long, the sender starts again behind what was confirmed.
const RESEND_AFTER: Duration = Duration::from_millis(400);
/// Without progress for so long, both sides give up.
const ABANDON_AFTER: Duration = Duration::from_secs(10);

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotHeader {
    /// The term of the leader that sends it.
    pub(super) leader_term: u64,
    /// The entry applied last, and its term.
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) voting: Voting,
    pub(super) roster: Roster,
    /// Bytes of the state machine's part.
    pub(super) total: u64,
    /// SHA-1 of these bytes.
    pub(super) digest: [u8; 20],
}

/// The checksum of a snapshot.
pub(super) fn digest(data: &[u8]) -> [u8; 20] {
    Sha1::digest(data).into()
}

/// A snapshot on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) node: NodeId,
    pub(super) transfer: u64,
    header: Vec<u8>,
    data: Vec<u8>,
    confirmed: usize,
    next: usize,
    started: bool,
    progress_at: Timestamp,
    sent_at: Timestamp,
}

impl Outgoing {
    pub(super) fn new(
        node: NodeId,
        transfer: u64,
        header: &SnapshotHeader,
        data: Vec<u8>,
        now: Timestamp,
    ) -> Self {
        Self {
            node,
            transfer,
            header: crate::codec::encode(header),
            data,
            confirmed: 0,
            next: 0,
            started: false,
            progress_at: now,
            sent_at: now,
        }
    }

    /// The pieces that may be sent now.
    pub(super) fn pieces(&mut self, now: Timestamp) -> Vec<SnapshotChunk> {
        let mut pieces = Vec::new();
        let end = self.data.len().min(self.confirmed + WINDOW_CHUNKS * CHUNK_BYTES);
        while self.next < end || !self.started {
            self.started = true;
            let until = end.min(self.next + CHUNK_BYTES);
            pieces.push(self.piece(self.next, until));
            self.next = until;
            self.sent_at = now;
        }
        pieces
    }

    fn piece(&self, from: usize, until: usize) -> SnapshotChunk {
        SnapshotChunk {
            transfer: self.transfer,
            header: if from == 0 { self.header.clone() } else { Vec::new() },
            offset: from as u64,
            data: self.data[from..until].to_vec(),
        }
    }

    /// The receiver has this many bytes.
    pub(super) fn confirm(&mut self, received: u64, now: Timestamp) {
        let received = usize::try_from(received).unwrap_or(usize::MAX);
        if received > self.confirmed && received <= self.data.len() {
            self.confirmed = received;
            self.next = self.next.max(received);
            self.progress_at = now;
        }
    }

    /// What to send again because nothing moved; `Err` if it is time to give up.
    pub(super) fn retry(&mut self, now: Timestamp) -> Result<Vec<SnapshotChunk>, GaveUp> {
        if now.since(self.progress_at) > ABANDON_AFTER {
            return Err(GaveUp);
        }
        if now.since(self.progress_at.max(self.sent_at)) <= RESEND_AFTER {
            return Ok(Vec::new());
        }
        self.next = self.confirmed;
        self.started = false;
        Ok(self.pieces(now))
    }
}

/// No progress for too long.
#[derive(Debug)]
pub(super) struct GaveUp;

/// A snapshot on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) from: ReplicaId,
    pub(super) transfer: u64,
    pub(super) header: SnapshotHeader,
    pub(super) data: Vec<u8>,
    progress_at: Timestamp,
}

impl Incoming {
    pub(super) fn new(from: ReplicaId, transfer: u64, header: SnapshotHeader, now: Timestamp) -> Self {
        // Not reserved by what the header claims: memory follows what arrives.
        Self { from, transfer, header, data: Vec::new(), progress_at: now }
    }

    /// Takes a piece if it is the next.
    pub(super) fn take(&mut self, chunk: &SnapshotChunk, now: Timestamp) {
        let end = chunk.offset.saturating_add(chunk.data.len() as u64);
        if chunk.offset == self.data.len() as u64 && end <= self.header.total && !chunk.data.is_empty() {
            self.data.extend_from_slice(&chunk.data);
            self.progress_at = now;
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.data.len() as u64 == self.header.total
    }

    pub(super) fn is_abandoned(&self, now: Timestamp) -> bool {
        now.since(self.progress_at) > ABANDON_AFTER
    }
}

/// A snapshot that has arrived whole, is sound, and only has to be agreed to by the Raft core.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) header: SnapshotHeader,
    pub(super) machine: StateMachine,
    /// What the machine was restored from.
    pub(super) data: Vec<u8>,
}
