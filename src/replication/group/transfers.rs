//! State for a replica that the log can no longer bring up: sent in pieces, and taken over whole.
//!
//! **Rule.** The core learns of a snapshot only when all of it has arrived, its checksum is right and the state
//! machine has restored it: what the core agrees to is then exchanged in one step. The core's own message carries
//! no data. A snapshot is a promise-renewing word of the leader like any other, so that a long transfer does not
//! look like silence.

use raft::SnapshotStatus;

use super::messages::MAX_NUMBER;
use super::{Group, Shared};
use crate::codec;
use crate::id::{NodeId, ReplicaId};
use crate::replication::message::{Body, SnapshotAck, SnapshotChunk, SnapshotState};
use crate::replication::snapshot::{self, Arrived, Incoming, Outgoing, SnapshotHeader};
use crate::replication::{MAX_REPLICAS, Outcome, convert};
use crate::state_machine::StateMachine;

/// Whether a transfer was taken up.
enum Begun {
    Yes,
    /// Not now, or not from the middle.
    Refused,
    /// No correct replica begins so.
    Odd,
}

impl Group {
    pub(super) fn send_snapshot(&mut self, to: ReplicaId, shared: &mut Shared) {
        if !self.is_leader() {
            // It no longer leads, and must not speak as if it led in the new term.
            return self.end_outgoing(to, SnapshotStatus::Failure, shared);
        }
        if self.is_full(to) {
            // Not even made: the core asks again with every heartbeat.
            return self.end_outgoing(to, SnapshotStatus::Failure, shared);
        }
        let replacing = self.outgoing.contains_key(&to);
        let node = self.node_of(to).filter(|node| shared.linked.contains(node));
        let Some(node) = node else {
            return self.end_outgoing(to, SnapshotStatus::Failure, shared);
        };
        if !replacing {
            if shared.outgoing >= snapshot::MAX_OUTGOING {
                return self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
            }
            shared.outgoing += 1;
        }
        let data = self.machine.snapshot();
        let (index, term) = self.raw.store().applied();
        let header = SnapshotHeader {
            leader_term: self.raw.raft.term,
            index,
            term,
            voting: self.voting.clone(),
            roster: self.roster.clone(),
            total: data.len() as u64,
            digest: snapshot::digest(&data),
        };
        let transfer = shared.next_id();
        let mut outgoing = Outgoing::new(node, transfer, &header, data, shared.now);
        for chunk in outgoing.pieces(shared.now) {
            shared.send(node, Self::message(self.partition, self.id, to, Body::SnapshotChunk(chunk)));
        }
        self.outgoing.insert(to, outgoing);
    }

    pub(super) fn end_outgoing(&mut self, to: ReplicaId, status: SnapshotStatus, shared: &mut Shared) {
        if self.outgoing.remove(&to).is_some() {
            shared.outgoing -= 1;
        }
        self.raw.report_snapshot(to.0, status);
    }

    pub(super) fn tick_transfers(&mut self, shared: &mut Shared) {
        if self.incoming.as_ref().is_some_and(|incoming| incoming.is_abandoned(shared.now)) {
            self.drop_incoming(shared);
        }
        if self.outgoing.is_empty() {
            return;
        }
        let mut failed = Vec::new();
        let mut pieces = Vec::new();
        for (id, outgoing) in &mut self.outgoing {
            match outgoing.retry(shared.now) {
                Ok(chunks) if shared.linked.contains(&outgoing.node) => {
                    pieces.extend(chunks.into_iter().map(|chunk| (*id, outgoing.node, chunk)));
                }
                _ => failed.push(*id),
            }
        }
        for (id, node, chunk) in pieces {
            shared.send(node, Self::message(self.partition, self.id, id, Body::SnapshotChunk(chunk)));
        }
        for id in failed {
            self.end_outgoing(id, SnapshotStatus::Failure, shared);
        }
    }

    pub(super) fn take_ack(&mut self, from: ReplicaId, ack: &SnapshotAck, shared: &mut Shared) {
        let Some(outgoing) = self.outgoing.get_mut(&from) else {
            return;
        };
        if outgoing.transfer != ack.transfer {
            return;
        }
        match ack.state {
            SnapshotState::Received(bytes) => {
                outgoing.confirm(bytes, shared.now);
                let node = outgoing.node;
                for chunk in outgoing.pieces(shared.now) {
                    let body = Body::SnapshotChunk(chunk);
                    shared.send(node, Self::message(self.partition, self.id, from, body));
                }
            }
            SnapshotState::Installed => self.end_outgoing(from, SnapshotStatus::Finish, shared),
            SnapshotState::Refused => self.end_outgoing(from, SnapshotStatus::Failure, shared),
        }
    }

    pub(super) fn take_chunk(
        &mut self,
        from: ReplicaId,
        node: NodeId,
        chunk: &SnapshotChunk,
        shared: &mut Shared,
    ) {
        let state = self.chunk_state(from, chunk, shared);
        let Some(state) = state else {
            shared.dropped += 1;
            return;
        };
        let ack = SnapshotAck { transfer: chunk.transfer, state };
        shared.send(node, Self::message(self.partition, self.id, from, Body::SnapshotAck(ack)));
    }

    /// Takes a piece; what to say to it, if anything.
    fn chunk_state(
        &mut self,
        from: ReplicaId,
        chunk: &SnapshotChunk,
        shared: &mut Shared,
    ) -> Option<SnapshotState> {
        if chunk.data.len() > snapshot::CHUNK_BYTES || chunk.header.len() > snapshot::MAX_HEADER_BYTES {
            return None;
        }
        if self.finished_transfer == Some(chunk.transfer) {
            return Some(SnapshotState::Installed);
        }
        let known = self
            .incoming
            .as_ref()
            .is_some_and(|incoming| incoming.from == from && incoming.transfer == chunk.transfer);
        if !known {
            match self.begin_incoming(from, chunk, shared) {
                Begun::Yes => {}
                Begun::Refused => return Some(SnapshotState::Refused),
                Begun::Odd => return None,
            }
        }
        let incoming = self.incoming.as_mut()?;
        incoming.take(chunk, shared.now);
        let received = incoming.data.len() as u64;
        let leader_term = incoming.header.leader_term;
        let complete = incoming.is_complete();
        if leader_term >= self.raw.raft.term {
            // A leader that sends a snapshot leads as well as one that sends heartbeats.
            self.hear(shared);
        }
        if !complete {
            return Some(SnapshotState::Received(received));
        }
        Some(if self.install(shared) {
            self.finished_transfer = Some(chunk.transfer);
            SnapshotState::Installed
        } else {
            SnapshotState::Refused
        })
    }

    /// The first piece of a transfer; one that was under way gives way to it.
    fn begin_incoming(&mut self, from: ReplicaId, chunk: &SnapshotChunk, shared: &mut Shared) -> Begun {
        if chunk.offset != 0 {
            return Begun::Refused;
        }
        let Ok(header) = codec::decode::<SnapshotHeader>(&chunk.header) else {
            return Begun::Odd;
        };
        if !self.is_sound(&header) {
            return Begun::Odd;
        }
        if header.leader_term < self.raw.raft.term {
            return Begun::Refused;
        }
        self.drop_incoming(shared);
        if shared.incoming >= snapshot::MAX_INCOMING {
            return Begun::Refused;
        }
        shared.incoming += 1;
        self.incoming = Some(Incoming::new(from, chunk.transfer, header, shared.now));
        Begun::Yes
    }

    fn is_sound(&self, header: &SnapshotHeader) -> bool {
        header.total <= snapshot::MAX_SNAPSHOT_BYTES
            && (1..=MAX_NUMBER).contains(&header.index)
            && (1..=header.leader_term).contains(&header.term)
            && header.leader_term <= MAX_NUMBER
            && header.roster.last_replica <= MAX_NUMBER
            && header.roster.config <= header.index
            && header.roster.replicas.len() <= 2 * MAX_REPLICAS
            && header.voting.is_sound(&header.roster, self.id)
            && !(self.is_leader() && header.leader_term == self.raw.raft.term)
    }

    pub(super) fn drop_incoming(&mut self, shared: &mut Shared) -> Option<Incoming> {
        let incoming = self.incoming.take();
        if incoming.is_some() {
            shared.incoming -= 1;
        }
        incoming
    }

    /// The snapshot is whole: checks it, then lets the core decide. Whether its state is now part of ours.
    fn install(&mut self, shared: &mut Shared) -> bool {
        let Some(incoming) = self.drop_incoming(shared) else {
            return false;
        };
        let header = incoming.header;
        if snapshot::digest(&incoming.data) != header.digest {
            return false;
        }
        let Ok(machine) = StateMachine::restore(&incoming.data) else {
            return false;
        };
        self.drain(shared);
        let (index, term, leader_term) = (header.index, header.term, header.leader_term);
        let message = convert::snapshot_message(
            incoming.from,
            self.id,
            leader_term,
            convert::snapshot(index, term, &header.voting),
        );
        self.arrived = Some(Arrived { header, machine, data: incoming.data });
        let _ = self.raw.step(message);
        self.drain(shared);
        self.arrived = None;
        self.applied() >= index
    }

    pub(super) fn take_over_snapshot(&mut self, shared: &mut Shared) {
        let Some(arrived) = self.arrived.take() else {
            return;
        };
        let Arrived { header, machine, data } = arrived;
        self.machine = machine;
        self.voting = header.voting;
        self.roster = header.roster;
        self.initialised = true;
        self.hints.retain(|id, _| !self.roster.replicas.contains_key(id));
        self.raw.mut_store().install(header.index, header.term, &self.voting);
        self.keep_as_state(true, data, shared);
        self.relink(shared);
        while self.pending.front().is_some_and(|pending| pending.index <= header.index) {
            if let Some(tag) = self.pending.pop_front().and_then(|pending| pending.tag) {
                shared.outcome(tag, Outcome::Unknown);
            }
        }
    }
}
