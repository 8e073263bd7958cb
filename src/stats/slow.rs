// SPDX-License-Identifier: BSD-3-Clause
//! Requests that took long, and how many lines a second there are about them: a slow server must
//! not fill a disk.

use std::fmt;
use std::time::Duration;

use super::Asked;

/// Lines in a second.
pub const LINES: u32 = 10;

/// A request that took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// What it asked.
    pub asked: Asked,
    /// Where.
    pub offset: u64,
    /// For how much.
    pub length: u64,
    /// How long nothing of it was at the server.
    pub queue: Duration,
    /// How long it, or a piece of it, was.
    pub server: Duration,
    /// How many of its kind were not told since the last line.
    pub untold: u64,
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (queue, server) = (millis(self.queue), millis(self.server));
        let total = millis(self.queue.saturating_add(self.server));
        write!(
            f,
            "slow request: {} offset={} length={} took {total} ms: queue {queue} ms, server {server} ms",
            self.asked.name(),
            self.offset,
            self.length,
        )?;
        match self.untold {
            0 => Ok(()),
            untold => write!(f, " ({untold} more before it were not told)"),
        }
    }
}

/// With three decimals.
fn millis(time: Duration) -> String {
    let micros = time.as_micros();
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

/// How many lines there may be.
#[derive(Debug, Default)]
pub struct Limiter {
    /// The second that is counted in.
    second: u64,
    told: u32,
    untold: u64,
}

impl Limiter {
    /// Whether there may be a line in this second, and if so how many there should have been since
    /// the last one.
    pub fn line(&mut self, now: Duration) -> Option<u64> {
        if now.as_secs() != self.second {
            self.second = now.as_secs();
            self.told = 0;
        }
        if self.told == LINES {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_told_of_with_the_next() {
        let mut limiter = Limiter::default();
        let at = Duration::from_millis;
        for _ in 0..LINES {
            assert_eq!(limiter.line(at(999)), Some(0));
        }
        assert_eq!(limiter.line(at(999)), None);
        assert_eq!(limiter.line(at(999)), None);
        assert_eq!(limiter.line(at(1000)), Some(2));
        assert_eq!(limiter.line(at(1001)), Some(0));
    }

    #[test]
    fn a_line_has_all_that_is_known() {
        let slow = Slow {
            asked: Asked::Read,
            offset: 4096,
            length: 512,
            queue: Duration::from_micros(1),
            server: Duration::from_micros(2_020_030),
            untold: 0,
        };
        let line = "slow request: read offset=4096 length=512 took 2020.031 ms: \
                    queue 0.001 ms, server 2020.030 ms";
        assert_eq!(slow.to_string(), line);
        let slow = Slow { untold: 7, ..slow };
        let more = " (7 more before it were not told)";
        assert_eq!(slow.to_string(), format!("{line}{more}"));
    }
}
