//! The clocks of simulated machines: each starts somewhere else and runs at its own rate.

use crate::time::Timestamp;

/// A machine's clock. World time is what no machine sees.
#[derive(Debug, Clone, Copy)]
pub(in crate::node) struct MachineClock {
    /// What it showed at the beginning of the world, in microseconds.
    offset: u64,
    /// How much it gains, in millionths; negative: it loses.
    gain_ppm: i64,
}

impl MachineClock {
    pub(in crate::node) fn new(offset: u64, gain_ppm: i64) -> Self {
        Self { offset, gain_ppm }
    }

    /// What it shows.
    pub(in crate::node) fn show(self, world: Timestamp) -> Timestamp {
        let passed = i128::from(world.as_micros());
        let gained = passed * i128::from(self.gain_ppm) / 1_000_000;
        let shown = u64::try_from(passed + gained).unwrap_or(0);
        Timestamp::from_micros(self.offset.saturating_add(shown))
    }

    /// The first moment at which it shows this.
    pub(in crate::node) fn moment(self, shown: Timestamp) -> Timestamp {
        if shown == Timestamp::NEVER {
            return Timestamp::NEVER;
        }
        let passed = i128::from(shown.as_micros().saturating_sub(self.offset));
        let world = passed * 1_000_000 / i128::from(1_000_000 + self.gain_ppm);
        let mut moment = Timestamp::from_micros(u64::try_from(world).unwrap_or(0));
        // Division rounds: at most a few steps.
        while self.show(moment) < shown {
            moment = Timestamp::from_micros(moment.as_micros() + 1);
        }
        moment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_comes_at_its_moment_and_not_before() {
        for gain in [-50_000, -17, 0, 3, 50_000] {
            let clock = MachineClock::new(7_000_000, gain);
            for shown in [7_000_000, 7_000_001, 7_123_456, 93_000_000] {
                let shown = Timestamp::from_micros(shown);
                let moment = clock.moment(shown);
                assert!(clock.show(moment) >= shown, "{gain}");
                if moment > Timestamp::ZERO {
                    let before = Timestamp::from_micros(moment.as_micros() - 1);
                    assert!(clock.show(before) < shown, "{gain}");
                }
            }
        }
    }
}
