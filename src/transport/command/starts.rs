// SPDX-License-Identifier: BSD-3-Clause
//! How often a server may be started again: one that cannot live must not keep a processor busy.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Starts within [`SPAN`].
pub const MOST: usize = 10;

/// A minute.
const SPAN: Duration = Duration::from_secs(60);

/// When the last starts were, the oldest first.
#[derive(Debug, Default)]
pub struct Starts(VecDeque<Instant>);

impl Starts {
    /// Counts a start that happens now; or tells how long none may happen.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let left = |at: &Instant| SPAN.saturating_sub(now.saturating_duration_since(*at));
        self.0.retain(|at| !left(at).is_zero());
        if self.0.len() >= MOST {
            return Err(self.0.front().map_or(SPAN, left));
        }
        self.0.push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_in_a_minute_are_enough() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut starts = Starts::default();
        for second in 0..10 {
            assert_eq!(starts.admit(at(second)), Ok(()), "{second}");
        }
        assert_eq!(starts.admit(at(10)), Err(Duration::from_secs(50)));
        assert_eq!(starts.admit(at(59)), Err(Duration::from_secs(1)));
        // What was refused does not count.
        assert_eq!(starts.admit(at(60)), Ok(()));
        assert_eq!(starts.admit(at(60)), Err(Duration::from_secs(1)));
        assert_eq!(starts.admit(at(61)), Ok(()));
        for _ in 0..8 {
            assert_eq!(starts.admit(at(1000)), Ok(()));
        }
    }
}
