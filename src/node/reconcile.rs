//! From where the ring wants a partition's replicas to where they are: one safe step at a time.
//!
//! Only a group's leader takes steps, and each step is a Raft membership change that is refused unless it is
//! based on the group's present configuration, so two nodes that both believe to lead cannot undo each other.
//! The order keeps every intermediate state at least as safe as the one before: first bring newcomers up as
//! learners, which costs no quorum; then, once they have caught up and are linked, let them vote and drop
//! those that the ring no longer wants in one joint change; then hand leadership to the owner; a leader that
//! is to go hands over first and is dropped by its successor.

use crate::id::NodeId;

/// A group as its leader sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct GroupView {
    /// The nodes whose replicas vote.
    pub(super) voters: Vec<NodeId>,
    /// The nodes whose replicas are being brought up, and whether each has caught up.
    pub(super) learners: Vec<(NodeId, bool)>,
}

/// The next step of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Bring these nodes up.
    AddLearners(Vec<NodeId>),
    /// Let these learners vote and drop these replicas, at once.
    Replace { promote: Vec<NodeId>, remove: Vec<NodeId> },
    /// Hand leadership to this voter.
    Transfer(NodeId),
}

/// The step that brings the group led by `me` closer to `targets` (the ring's replica set, owner first);
/// `None`: nothing to do, or nothing that would be safe now.
pub(super) fn next_step(
    me: NodeId,
    group: &GroupView,
    targets: &[NodeId],
    linked: impl Fn(NodeId) -> bool,
) -> Option<Step> {
    let linked = |node: NodeId| node == me || linked(node);
    let is_voter = |node: &NodeId| group.voters.contains(node);
    let is_learner = |node: &NodeId| group.learners.iter().any(|(learner, _)| learner == node);

    if !is_voter(&me) {
        // A change that was decided before it came to lead has taken its vote. Only another can give it back.
        let mut heirs = targets.iter().chain(&group.voters).copied();
        return heirs.find(|node| is_voter(node) && linked(*node)).map(Step::Transfer);
    }

    let missing: Vec<NodeId> = targets
        .iter()
        .copied()
        .filter(|node| !is_voter(node) && !is_learner(node) && linked(*node))
        .collect();
    if !missing.is_empty() {
        return Some(Step::AddLearners(missing));
    }

    let still_catching_up =
        group.learners.iter().any(|(node, caught_up)| !caught_up && targets.contains(node) && linked(*node));
    if !still_catching_up && let Some(step) = replacement(me, group, targets, &linked) {
        return Some(step);
    }

    let owner = *targets.first()?;
    if owner != me && is_voter(&owner) && linked(owner) {
        return Some(Step::Transfer(owner));
    }
    if !targets.contains(&me) {
        let heir = targets.iter().copied().find(|node| is_voter(node) && linked(*node))?;
        return Some(Step::Transfer(heir));
    }
    None
}

/// Promotes the learners that are ready and removes what the ring no longer wants, as far as that leaves no
/// fewer voters than the ring asks for and a linked majority among those that remain.
fn replacement(
    me: NodeId,
    group: &GroupView,
    targets: &[NodeId],
    linked: &impl Fn(NodeId) -> bool,
) -> Option<Step> {
    let promote: Vec<NodeId> = group
        .learners
        .iter()
        .filter(|(node, caught_up)| *caught_up && targets.contains(node) && linked(*node))
        .map(|(node, _)| *node)
        .collect();
    let unwanted_learners =
        group.learners.iter().map(|(node, _)| *node).filter(|node| !targets.contains(node));
    let mut unwanted_voters: Vec<NodeId> =
        group.voters.iter().copied().filter(|node| *node != me && !targets.contains(node)).collect();
    // Those that cannot be reached go first: they are what weighs on the quorum.
    unwanted_voters.sort_by_key(|node| linked(*node));
    let removable = (group.voters.len() + promote.len()).saturating_sub(targets.len());
    unwanted_voters.truncate(removable);

    let voters_after: Vec<NodeId> =
        group.voters.iter().chain(&promote).copied().filter(|node| !unwanted_voters.contains(node)).collect();
    let linked_after = voters_after.iter().filter(|node| linked(**node)).count();
    if linked_after * 2 <= voters_after.len() {
        return None;
    }
    let remove: Vec<NodeId> = unwanted_voters.into_iter().chain(unwanted_learners).collect();
    (!promote.is_empty() || !remove.is_empty()).then_some(Step::Replace { promote, remove })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    fn nodes(ns: &[u8]) -> Vec<NodeId> {
        ns.iter().map(|n| node(*n)).collect()
    }

    fn group(voters: &[u8], learners: &[(u8, bool)]) -> GroupView {
        GroupView {
            voters: nodes(voters),
            learners: learners.iter().map(|(n, caught_up)| (node(*n), *caught_up)).collect(),
        }
    }

    fn step(group: &GroupView, targets: &[u8], unlinked: &[u8]) -> Option<Step> {
        next_step(node(1), group, &nodes(targets), |node| !nodes(unlinked).contains(&node))
    }

    #[test]
    fn a_leader_without_a_vote_hands_over() {
        let waiting = group(&[2, 3, 4], &[(1, false), (5, true)]);
        assert_eq!(step(&waiting, &[1, 5, 3], &[]), Some(Step::Transfer(node(3))));
        assert_eq!(step(&waiting, &[1, 5, 3], &[3]), Some(Step::Transfer(node(2))));
        assert_eq!(step(&waiting, &[1, 5, 3], &[2, 3, 4]), None);
    }

    #[test]
    fn newcomers_start_as_learners_and_vote_when_they_have_caught_up() {
        assert_eq!(step(&group(&[1], &[]), &[1, 2, 3], &[]), Some(Step::AddLearners(nodes(&[2, 3]))));
        assert_eq!(step(&group(&[1], &[(2, true), (3, false)]), &[1, 2, 3], &[]), None);
        assert_eq!(
            step(&group(&[1], &[(2, true), (3, true)]), &[1, 2, 3], &[]),
            Some(Step::Replace { promote: nodes(&[2, 3]), remove: vec![] })
        );
    }

    #[test]
    fn a_learner_that_died_does_not_hold_up_the_others() {
        assert_eq!(
            step(&group(&[1], &[(2, true), (3, false)]), &[1, 2, 3], &[3]),
            Some(Step::Replace { promote: nodes(&[2]), remove: vec![] })
        );
    }

    #[test]
    fn a_replica_goes_only_when_its_successor_votes() {
        let moving = group(&[1, 2, 3], &[(4, false)]);
        assert_eq!(step(&moving, &[1, 2, 4], &[]), None);
        let ready = group(&[1, 2, 3], &[(4, true)]);
        assert_eq!(
            step(&ready, &[1, 2, 4], &[]),
            Some(Step::Replace { promote: nodes(&[4]), remove: nodes(&[3]) })
        );
    }

    #[test]
    fn a_dead_voter_goes_before_a_live_one() {
        let group = group(&[1, 2, 3], &[(4, true)]);
        assert_eq!(
            step(&group, &[1, 4, 5], &[3, 5]),
            Some(Step::Replace { promote: nodes(&[4]), remove: nodes(&[3]) })
        );
    }

    #[test]
    fn nothing_changes_without_a_linked_majority_afterwards() {
        assert_eq!(step(&group(&[1, 2, 3, 4], &[]), &[1, 2, 3], &[2, 3]), None);
    }

    #[test]
    fn when_members_leave_the_group_shrinks() {
        assert_eq!(
            step(&group(&[1, 2, 3], &[]), &[1, 2], &[]),
            Some(Step::Replace { promote: vec![], remove: nodes(&[3]) })
        );
        assert_eq!(
            step(&group(&[1, 2], &[]), &[1], &[]),
            Some(Step::Replace { promote: vec![], remove: nodes(&[2]) })
        );
    }

    #[test]
    fn leadership_goes_to_the_owner_or_away_from_one_who_leaves() {
        assert_eq!(step(&group(&[1, 2, 3], &[]), &[2, 1, 3], &[]), Some(Step::Transfer(node(2))));
        assert_eq!(step(&group(&[1, 2, 3], &[]), &[2, 1, 3], &[2]), None);
        // 1 leads and is to go: its successors vote, so it hands over; 4 then removes 1.
        assert_eq!(step(&group(&[1, 2, 3, 4], &[]), &[4, 2, 3], &[]), Some(Step::Transfer(node(4))));
        assert_eq!(step(&group(&[1, 2, 3, 4], &[]), &[4, 2, 3], &[4]), Some(Step::Transfer(node(2))));
    }

    #[test]
    fn a_learner_that_is_no_longer_wanted_goes() {
        assert_eq!(
            step(&group(&[1, 2, 3], &[(4, false)]), &[1, 2, 3], &[4]),
            Some(Step::Replace { promote: vec![], remove: nodes(&[4]) })
        );
    }

    #[test]
    fn done_is_done() {
        assert_eq!(step(&group(&[1, 2, 3], &[]), &[1, 3, 2], &[]), None);
    }
}
