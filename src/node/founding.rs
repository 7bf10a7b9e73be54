//! From alone to a swarm: find one and join it, or found one, and never two where one was meant.
//!
//! A node without a swarm listens for a while (the *discovery window*). If it is linked with a member of a
//! founded swarm it joins that. If it has only met nodes as swarmless as itself, the smallest id among them
//! founds and the others wait for it. If it has met nobody it founds alone. A node that was told to join never
//! founds. Two nodes that found apart because they met too late are the business of `merge`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{NodeId, SwarmId};
use crate::ring::PartitionCount;
use crate::time::Timestamp;
use crate::wire::{Hello, SwarmState};

/// How long a node that has no swarm waits for a peer to say hello before it counts as absent.
const HELLO_GRACE: Duration = Duration::from_secs(1);

/// The search of one node for its swarm.
#[derive(Debug)]
pub(super) struct Founding {
    me: NodeId,
    /// Told to join: never found.
    joining: bool,
    /// No founding before this moment.
    listen_until: Timestamp,
    /// Linked members, whether of a swarm or not, and since when.
    peers: BTreeMap<NodeId, (Timestamp, Option<Hello>)>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing before this moment, unless a peer says something.
    Wait(Timestamp),
    /// Found a swarm.
    Found,
    /// Join this swarm.
    Join { swarm: SwarmId, partitions: PartitionCount },
}

impl Founding {
    pub(super) fn new(me: NodeId, joining: bool, window: Duration, now: Timestamp) -> Self {
        Self { me, joining, listen_until: now + window, peers: BTreeMap::new() }
    }

    pub(super) fn peer_up(&mut self, node: NodeId, now: Timestamp) {
        self.peers.insert(node, (now, None));
    }

    pub(super) fn peer_down(&mut self, node: NodeId) {
        self.peers.remove(&node);
    }

    pub(super) fn hello(&mut self, node: NodeId, hello: Hello, now: Timestamp) {
        let since = self.peers.get(&node).map_or(now, |(since, _)| *since);
        self.peers.insert(node, (since, Some(hello)));
    }

    pub(super) fn decide(&self, now: Timestamp) -> Decision {
        if let Some((swarm, partitions)) = self.swarm_to_join() {
            return Decision::Join { swarm, partitions };
        }
        if self.joining {
            return Decision::Wait(Timestamp::NEVER);
        }
        if now < self.listen_until {
            return Decision::Wait(self.listen_until);
        }
        let silent_until = self
            .peers
            .values()
            .filter(|(_, hello)| hello.is_none())
            .map(|(since, _)| *since + HELLO_GRACE)
            .max()
            .unwrap_or(now);
        if now < silent_until {
            return Decision::Wait(silent_until);
        }
        if self.founders().all(|peer| self.me < peer) {
            Decision::Found
        } else {
            Decision::Wait(Timestamp::NEVER)
        }
    }

    /// The swarm to join among those met: one that is not known to be empty rather than one that may be, then
    /// the smallest id, so that all who see the same choose the same.
    fn swarm_to_join(&self) -> Option<(SwarmId, PartitionCount)> {
        self.peers
            .values()
            .filter_map(|(_, hello)| match hello {
                Some(Hello { state: SwarmState::Founded { swarm, partitions }, empty, .. }) => {
                    let partitions = PartitionCount::new(*partitions).ok()?;
                    Some((*empty, *swarm, partitions))
                }
                _ => None,
            })
            .min_by_key(|(empty, swarm, _)| (*empty, *swarm))
            .map(|(_, swarm, partitions)| (swarm, partitions))
    }

    /// The peers that would found if this node did not.
    fn founders(&self) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter_map(|(node, (_, hello))| match hello {
            Some(Hello { state: SwarmState::Unfounded { joining: false }, .. }) => Some(*node),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(2);

    fn node(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    fn hello(state: SwarmState, empty: bool) -> Hello {
        Hello { state, empty }
    }

    fn founded(id: u128, empty: bool) -> Hello {
        hello(SwarmState::Founded { swarm: SwarmId(id), partitions: 8 }, empty)
    }

    fn eight() -> PartitionCount {
        PartitionCount::new(8).unwrap()
    }

    fn after(duration: Duration) -> Timestamp {
        Timestamp::ZERO + duration
    }

    #[test]
    fn alone_it_founds_when_the_window_has_passed() {
        let founding = Founding::new(node(1), false, WINDOW, Timestamp::ZERO);
        assert_eq!(founding.decide(Timestamp::ZERO), Decision::Wait(after(WINDOW)));
        assert_eq!(founding.decide(after(WINDOW)), Decision::Found);
    }

    #[test]
    fn only_the_smallest_of_the_swarmless_founds() {
        for me in 1..=3 {
            let mut founding = Founding::new(node(me), false, WINDOW, Timestamp::ZERO);
            for other in (1..=3).filter(|other| *other != me) {
                founding.peer_up(node(other), Timestamp::ZERO);
                let state = SwarmState::Unfounded { joining: false };
                founding.hello(node(other), hello(state, true), Timestamp::ZERO);
            }
            assert_eq!(founding.decide(after(WINDOW)) == Decision::Found, me == 1);
        }
    }

    #[test]
    fn when_the_smallest_dies_the_next_founds() {
        let mut founding = Founding::new(node(2), false, WINDOW, Timestamp::ZERO);
        founding.hello(node(1), hello(SwarmState::Unfounded { joining: false }, true), Timestamp::ZERO);
        assert_eq!(founding.decide(after(WINDOW)), Decision::Wait(Timestamp::NEVER));
        founding.peer_down(node(1));
        assert_eq!(founding.decide(after(WINDOW)), Decision::Found);
    }

    #[test]
    fn a_node_told_to_join_never_founds_and_nobody_waits_for_it() {
        let mut joiner = Founding::new(node(1), true, WINDOW, Timestamp::ZERO);
        assert_eq!(joiner.decide(after(WINDOW * 100)), Decision::Wait(Timestamp::NEVER));
        joiner.hello(node(2), founded(7, true), Timestamp::ZERO);
        assert_eq!(joiner.decide(Timestamp::ZERO), Decision::Join { swarm: SwarmId(7), partitions: eight() });

        let mut other = Founding::new(node(2), false, WINDOW, Timestamp::ZERO);
        other.hello(node(1), hello(SwarmState::Unfounded { joining: true }, true), Timestamp::ZERO);
        assert_eq!(other.decide(after(WINDOW)), Decision::Found);
    }

    #[test]
    fn a_silent_peer_is_waited_for_but_not_for_ever() {
        let mut founding = Founding::new(node(2), false, WINDOW, Timestamp::ZERO);
        let linked = after(WINDOW) - Duration::from_millis(1);
        founding.peer_up(node(1), linked);
        assert_eq!(founding.decide(after(WINDOW)), Decision::Wait(linked + HELLO_GRACE));
        assert_eq!(founding.decide(linked + HELLO_GRACE), Decision::Found);
    }

    #[test]
    fn of_two_swarms_the_one_with_data_then_the_smaller_is_joined() {
        let mut founding = Founding::new(node(1), false, WINDOW, Timestamp::ZERO);
        founding.hello(node(2), founded(9, true), Timestamp::ZERO);
        founding.hello(node(3), founded(8, true), Timestamp::ZERO);
        assert_eq!(
            founding.decide(Timestamp::ZERO),
            Decision::Join { swarm: SwarmId(8), partitions: eight() }
        );
        founding.hello(node(4), founded(10, false), Timestamp::ZERO);
        assert_eq!(
            founding.decide(Timestamp::ZERO),
            Decision::Join { swarm: SwarmId(10), partitions: eight() }
        );
    }
}
