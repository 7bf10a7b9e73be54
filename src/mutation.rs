//! Faults that can be planted, to show that the simulator finds them.
//!
//! Without the feature `mutations`, [`planted`] is `false` at compile time and nothing of this is left. With it the
//! crate refuses to be built as a release, because it would hold planted faults.

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!("the feature `mutations` plants faults: it is for `cargo test` and `--profile sim` only");

/// A fault: each is a mistake that one could make.
#[cfg_attr(
    not(feature = "mutations"),
    allow(dead_code, unreachable_pub, reason = "planted only with the feature")
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A leader acknowledges a write as soon as it has it itself.
    AckBeforeMajority,
    /// A leader that ever had a lease serves reads without asking anybody.
    StaleLease,
    /// Every replica lets keys and leases expire by its own clock.
    ExpiryByOwnClock,
    /// A replica is given the id of one that was lost or removed.
    ReplicaIdReused,
    /// A node that lost its disk comes back under its own name, and its replicas vote before they have a state.
    WipedNodeVotes,
    /// Snapshots leave out which writes were applied.
    RetryTableDropped,
    /// Fencing tokens are counted, and the count is not in snapshots.
    TokenRestarts,
}

/// Whether this fault is planted in what runs on this thread.
#[cfg(not(feature = "mutations"))]
#[inline]
pub(crate) const fn planted(_: Mutation) -> bool {
    false
}

#[cfg(feature = "mutations")]
mod planting {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Whether this fault is planted in what runs on this thread.
    pub(crate) fn planted(mutation: Mutation) -> bool {
        PLANTED.get() == Some(mutation)
    }

    /// Plants a fault in what runs on this thread from now on; `None`: none.
    pub fn plant(mutation: Option<Mutation>) {
        PLANTED.set(mutation);
    }

    impl Mutation {
        /// All of them.
        pub const ALL: [Self; 7] = [
            Self::AckBeforeMajority,
            Self::StaleLease,
            Self::ExpiryByOwnClock,
            Self::ReplicaIdReused,
            Self::WipedNodeVotes,
            Self::RetryTableDropped,
            Self::TokenRestarts,
        ];
    }
}

#[cfg(feature = "mutations")]
pub use planting::plant;
#[cfg(feature = "mutations")]
pub(crate) use planting::planted;
