//! Complaints about peers: one that sends nonsense without end must not fill the log.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeId;
use crate::time::Timestamp;

/// How often a peer is complained about at most, for one reason.
const INTERVAL: Duration = Duration::from_secs(10);
/// Peers and reasons that are remembered. More of them than links: then all are forgotten, and may be told of again.
const MAX_REMEMBERED: usize = 1024;

/// Who was complained about when, and how often not since.
#[derive(Debug, Default)]
pub(super) struct Complaints(BTreeMap<(NodeId, &'static str), (Timestamp, u64)>);

impl Complaints {
    /// There is a reason to complain. `Some`: it is to be told now, after so many that were not; `None`: it was told a
    /// short while ago.
    pub(super) fn next(&mut self, peer: NodeId, what: &'static str, now: Timestamp) -> Option<u64> {
        if let Some((told, untold)) = self.0.get_mut(&(peer, what)) {
            if now.since(*told) < INTERVAL {
                *untold += 1;
                return None;
            }
            *told = now;
            return Some(std::mem::take(untold));
        }
        if self.0.len() >= MAX_REMEMBERED {
            self.0.clear();
        }
        self.0.insert((peer, what), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_is_told_of_now_and_then_and_none_is_left_out() {
        let mut complaints = Complaints::default();
        let at = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
        let [one, other] = [1, 2].map(|number| NodeId::from_public_key([number; 32]));
        assert_eq!(complaints.next(one, "x", at(0)), Some(0));
        assert_eq!(complaints.next(other, "x", at(1)), Some(0));
        assert_eq!(complaints.next(one, "x", at(1)), None);
        assert_eq!(complaints.next(one, "x", at(9)), None);
        assert_eq!(complaints.next(one, "y", at(9)), Some(0));
        assert_eq!(complaints.next(one, "x", at(10)), Some(2));
        assert_eq!(complaints.next(one, "x", at(11)), None);
        for number in 0..5000_u32 {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            assert_eq!(complaints.next(NodeId::from_public_key(key), "x", at(12)), Some(0));
        }
        assert!(complaints.0.len() <= MAX_REMEMBERED);
    }
}
