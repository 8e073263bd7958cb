// SPDX-License-Identifier: BSD-3-Clause
//! How long to wait between tries to come back.

use std::time::Duration;

/// Doubling delays.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    next: Duration,
    max: Duration,
}

impl Delays {
    /// From `first` on, up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            next: first.min(max),
            max,
        }
    }

    /// The next delay. `dice` from 0 to 255 takes up to a quarter off, so that many who lost the same
    /// server do not come back at once. After an outage of `lasted` nobody waits for longer than
    /// a quarter of that: whoever was away for a moment is back in a moment.
    pub fn next(&mut self, dice: u8, lasted: Duration) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.max);
        let delay = delay - delay * u32::from(dice) / (4 * 255);
        // The first try is not to be made at once, again and again, where nothing takes time.
        delay.min((lasted / 4).max(FLOOR))
    }
}

/// Shortest time for which the length of an outage counts.
const FLOOR: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn milliseconds(first: u64, max: u64, dice: u8) -> Vec<u128> {
        let mut delays = Delays::new(Duration::from_millis(first), Duration::from_millis(max));
        (0..5)
            .map(|_| delays.next(dice, LONG).as_millis())
            .collect()
    }

    #[test]
    fn delays_double_up_to_the_greatest() {
        assert_eq!(milliseconds(100, 500, 0), [100, 200, 400, 500, 500]);
        assert_eq!(milliseconds(700, 500, 0), [500; 5]);
    }

    #[test]
    fn jitter_takes_a_quarter_off_at_most() {
        assert_eq!(milliseconds(100, 400, 255), [75, 150, 300, 300, 300]);
    }

    #[test]
    fn nobody_waits_longer_than_a_part_of_the_outage() {
        let mut delays = Delays::new(Duration::from_secs(1), Duration::from_secs(8));
        assert_eq!(delays.next(0, Duration::ZERO), FLOOR);
        assert_eq!(delays.next(0, Duration::from_millis(1200)).as_millis(), 300);
        assert_eq!(delays.next(0, LONG).as_secs(), 4);
    }
}
