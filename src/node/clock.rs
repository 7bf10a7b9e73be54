//! The one place that reads a clock.

use crate::time::Timestamp;

/// This machine's clock: never goes back, and counts the time that the machine was suspended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock;

impl Clock {
    #[cfg(unix)]
    #[expect(clippy::unused_self, reason = "the other platforms keep a start")]
    pub(crate) fn now(self) -> Timestamp {
        // Linux's monotonic clock stands still in suspend; macOS's and the BSDs' does not.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const COUNTS_SUSPEND: rustix::time::ClockId = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const COUNTS_SUSPEND: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
        let time = rustix::time::clock_gettime(COUNTS_SUSPEND);
        let micros = time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000;
        Timestamp::from_micros(micros)
    }

    #[cfg(not(unix))]
    #[expect(clippy::disallowed_methods, reason = "the one clock reader")]
    pub(crate) fn now(self) -> Timestamp {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        Timestamp::ZERO + START.get_or_init(Instant::now).elapsed()
    }
}
