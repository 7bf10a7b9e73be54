//! The one place that touches the fields of the Raft core's protobuf types, in the style that both of its
//! codecs share.

#![allow(clippy::field_reassign_with_default, reason = "the two codecs share no other way to fill a message")]

use bytes::Bytes;
use raft::eraftpb;
use raft::eraftpb::{ConfChangeTransition, ConfChangeType, EntryType, MessageType};

use super::config::{ConfigStep, Voting};
use super::durable::HardState;
use super::message::{LogEntry, RaftKind, RaftMessage};
use crate::id::ReplicaId;

/// Our form of a message of the Raft core; `None` of those that do not travel.
pub(super) fn from_core(message: &mut eraftpb::Message) -> Option<RaftMessage> {
    let kind = match message.get_msg_type() {
        MessageType::MsgAppend => RaftKind::Append,
        MessageType::MsgAppendResponse => RaftKind::AppendResponse,
        MessageType::MsgRequestVote => RaftKind::Vote,
        MessageType::MsgRequestVoteResponse => RaftKind::VoteResponse,
        MessageType::MsgRequestPreVote => RaftKind::PreVote,
        MessageType::MsgRequestPreVoteResponse => RaftKind::PreVoteResponse,
        MessageType::MsgHeartbeat => RaftKind::Heartbeat,
        MessageType::MsgHeartbeatResponse => RaftKind::HeartbeatResponse,
        MessageType::MsgTimeoutNow => RaftKind::TimeoutNow,
        _ => return None,
    };
    let entries = message.take_entries().into_iter().map(|entry| from_core_entry(&entry)).collect();
    Some(RaftMessage {
        kind,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.to_vec(),
        entries,
    })
}

/// A checked message in the Raft core's form.
pub(super) fn to_core(from: ReplicaId, to: ReplicaId, message: RaftMessage) -> eraftpb::Message {
    let mut core = eraftpb::Message::default();
    core.set_msg_type(match message.kind {
        RaftKind::Append => MessageType::MsgAppend,
        RaftKind::AppendResponse => MessageType::MsgAppendResponse,
        RaftKind::Vote => MessageType::MsgRequestVote,
        RaftKind::VoteResponse => MessageType::MsgRequestVoteResponse,
        RaftKind::PreVote => MessageType::MsgRequestPreVote,
        RaftKind::PreVoteResponse => MessageType::MsgRequestPreVoteResponse,
        RaftKind::Heartbeat => MessageType::MsgHeartbeat,
        RaftKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
        RaftKind::TimeoutNow => MessageType::MsgTimeoutNow,
    });
    core.from = from.0;
    core.to = to.0;
    core.term = message.term;
    core.log_term = message.log_term;
    core.index = message.index;
    core.commit = message.commit;
    core.commit_term = message.commit_term;
    core.reject = message.reject;
    core.reject_hint = message.reject_hint;
    core.context = message.context.into();
    let entries: Vec<_> = to_core_entries(message.index + 1, message.entries).collect();
    core.set_entries(entries.into());
    core
}

/// Our form of an entry.
pub(super) fn from_core_entry(entry: &eraftpb::Entry) -> LogEntry {
    let config = entry.get_entry_type() != EntryType::EntryNormal;
    LogEntry {
        term: entry.term,
        config,
        // The core's own encoding of a configuration change stays here: `context` says all of it.
        data: if config { Bytes::new() } else { entry.data.clone() },
        context: entry.context.clone(),
    }
}

/// Entries in the Raft core's form; the first has the index `first`.
pub(super) fn to_core_entries(
    first: u64,
    entries: impl IntoIterator<Item = LogEntry>,
) -> impl Iterator<Item = eraftpb::Entry> {
    entries.into_iter().zip(first..).map(|(entry, index)| {
        let mut core = eraftpb::Entry::default();
        core.set_entry_type(if entry.config { EntryType::EntryConfChangeV2 } else { EntryType::EntryNormal });
        core.term = entry.term;
        core.index = index;
        core.data = entry.data;
        core.context = entry.context;
        core
    })
}

/// Our form of what the core must not forget beside its log.
pub(super) fn from_core_hard_state(state: &eraftpb::HardState) -> HardState {
    HardState { term: state.term, vote: state.vote, commit: state.commit }
}

/// The same in the core's form.
pub(super) fn to_core_hard_state(state: HardState) -> eraftpb::HardState {
    let mut core = eraftpb::HardState::default();
    core.term = state.term;
    core.vote = state.vote;
    core.commit = state.commit;
    core
}

/// Proposals of one turn as one message, so that they travel as one.
pub(super) fn proposals(me: ReplicaId, commands: Vec<Vec<u8>>) -> eraftpb::Message {
    let entries: Vec<_> = commands
        .into_iter()
        .map(|data| {
            let mut entry = eraftpb::Entry::default();
            // Kept for long, so without the room that the encoder had left.
            entry.data = Bytes::copy_from_slice(&data);
            entry
        })
        .collect();
    let mut message = eraftpb::Message::default();
    message.set_msg_type(MessageType::MsgPropose);
    message.from = me.0;
    message.set_entries(entries.into());
    message
}

/// The core's form of a configuration change; no steps: leave the joint configuration.
pub(super) fn conf_change(steps: &[ConfigStep]) -> eraftpb::ConfChangeV2 {
    let mut change = eraftpb::ConfChangeV2::default();
    let single = |id: &ReplicaId, kind: ConfChangeType| {
        let mut single = eraftpb::ConfChangeSingle::default();
        single.node_id = id.0;
        single.set_change_type(kind);
        single
    };
    let singles: Vec<_> = steps
        .iter()
        .map(|step| match step {
            ConfigStep::AddLearner(id, _) | ConfigStep::Demote(id) => {
                single(id, ConfChangeType::AddLearnerNode)
            }
            ConfigStep::Promote(id) => single(id, ConfChangeType::AddNode),
            ConfigStep::Remove(id) => single(id, ConfChangeType::RemoveNode),
        })
        .collect();
    // One learner more or less changes no quorum: the simple way. Everything else by joint consensus, which
    // the core leaves by itself.
    let simple = matches!(steps, [] | [ConfigStep::AddLearner(..)]);
    change.set_transition(if simple { ConfChangeTransition::Auto } else { ConfChangeTransition::Implicit });
    change.set_changes(singles.into());
    change
}

/// The core's form of a configuration.
pub(super) fn to_conf_state(voting: &Voting) -> eraftpb::ConfState {
    let mut state = eraftpb::ConfState::default();
    state.set_voters(voting.voters.clone());
    state.set_learners(voting.learners.clone());
    state.set_voters_outgoing(voting.outgoing.clone());
    state.set_learners_next(voting.learners_next.clone());
    state.auto_leave = voting.auto_leave;
    state
}

/// Our form of a configuration, in the order of the ids.
pub(super) fn from_conf_state(state: &eraftpb::ConfState) -> Voting {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    Voting {
        voters: sorted(state.get_voters()),
        learners: sorted(state.get_learners()),
        outgoing: sorted(state.get_voters_outgoing()),
        learners_next: sorted(state.get_learners_next()),
        auto_leave: state.auto_leave,
    }
}

/// The description of a snapshot without its data.
pub(super) fn snapshot(index: u64, term: u64, voting: &Voting) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = index;
    metadata.term = term;
    metadata.set_conf_state(to_conf_state(voting));
    snapshot
}

/// The message by which the core takes in a snapshot whose data has arrived and been checked.
pub(super) fn snapshot_message(
    from: ReplicaId,
    to: ReplicaId,
    term: u64,
    snapshot: eraftpb::Snapshot,
) -> eraftpb::Message {
    let mut message = eraftpb::Message::default();
    message.set_msg_type(MessageType::MsgSnapshot);
    message.from = from.0;
    message.to = to.0;
    message.term = term;
    message.set_snapshot(snapshot);
    message
}
