// SPDX-License-Identifier: BSD-3-Clause
//! Times that may change while nbdkit serves (`control=`): whoever begins something reads the one for it
//! then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A time, or none; nanoseconds, of which 0 is none. Nothing else is ordered by it.
#[derive(Debug, Default)]
pub struct Time(AtomicU64);

impl Time {
    /// This one at first.
    pub fn new(time: Option<Duration>) -> Self {
        let this = Self::default();
        this.set(time);
        this
    }

    /// What it is at present.
    #[inline]
    pub fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            nanoseconds => Some(Duration::from_nanos(nanoseconds)),
        }
    }

    /// For what begins from now on. More than what fits, 584 years, is that.
    pub fn set(&self, time: Option<Duration>) {
        let nanoseconds = time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        self.0.store(nanoseconds, Ordering::Relaxed);
    }
}

/// How long to wait for a server; none is for ever.
#[derive(Debug, Default)]
pub struct Times {
    /// For the connection.
    pub connect: Time,
    /// For the whole handshake.
    pub handshake: Time,
    /// From a request to its complete answer.
    pub request: Time,
    /// For answers in flight and for closing, once a client has left or nbdkit ends.
    pub close: Time,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_what_it_was_set_to() {
        let time = Time::new(Some(Duration::from_millis(1500)));
        assert_eq!(time.get(), Some(Duration::from_millis(1500)));
        time.set(None);
        assert_eq!(time.get(), None);
        time.set(Some(Duration::MAX));
        assert!(
            time.get()
                .is_some_and(|long| long > Duration::from_secs(1 << 33))
        );
    }
}
