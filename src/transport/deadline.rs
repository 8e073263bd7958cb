// SPDX-License-Identifier: BSD-3-Clause
//! A point in time by which something must have happened, or never; and who wants it to happen.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::event::Timespec;

use super::Error;

/// Longest that a wait goes on before it is asked again whether anybody wants its end.
const SLICE: Duration = Duration::from_millis(250);

/// How long nobody is asked. To ask may have side effects, messages among them, which must not be
/// seen where nothing was slow.
const UNASKED: Duration = Duration::from_secs(1);

/// Answers whether whoever waits should go on.
pub type Wanted = fn() -> bool;

thread_local! {
    /// When the answer on this thread was yes. It has no destructor, which could outlive the library.
    static LAST_YES: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// When to give up: when a point in time has passed, or when nobody wants the result any more.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The point in time and how long it was away at first; `None` for never.
    at: Option<(Instant, Duration)>,
    /// Whom to ask, and from when on.
    wanted: Option<(Instant, Wanted)>,
}

impl Deadline {
    /// There is all the time in the world. Reads no clock.
    pub const NEVER: Self = Self {
        at: None,
        wanted: None,
    };

    /// So long from now.
    pub fn after(duration: Duration) -> Self {
        Self {
            at: Instant::now()
                .checked_add(duration)
                .map(|at| (at, duration)),
            wanted: None,
        }
    }

    /// The same, but also to give up when `wanted` says no. It is asked on the thread that waits,
    /// now and then, once a second of waiting has passed.
    pub fn while_wanted(self, wanted: Option<Wanted>) -> Self {
        Self {
            wanted: wanted.map(|wanted| (Instant::now() + UNASKED, wanted)),
            ..self
        }
    }

    /// This deadline, or `limit` from now if that is earlier.
    pub fn within(self, limit: Duration) -> Self {
        match self.remaining() {
            Some(left) if left <= limit => self,
            _ => Self {
                wanted: self.wanted,
                ..Self::after(limit)
            },
        }
    }

    /// A deadline after a third of the time that is left.
    pub fn third(&self) -> Self {
        self.share(3)
    }

    /// So long from now, or never where no time is given.
    pub fn after_maybe(duration: Option<Duration>) -> Self {
        duration.map_or(Self::NEVER, Self::after)
    }

    /// Time left: `None` for ever, zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.at
            .map(|(at, _)| at.saturating_duration_since(Instant::now()))
    }

    /// A deadline for the first of `parts` equal parts of the time that is left.
    pub fn share(&self, parts: usize) -> Self {
        match self.remaining() {
            None => *self,
            Some(left) => Self {
                wanted: self.wanted,
                ..Self::after(left / u32::try_from(parts.max(1)).unwrap_or(u32::MAX))
            },
        }
    }

    /// The one of the two that passes first.
    pub fn sooner(self, other: Self) -> Self {
        match (self.at, other.at) {
            (Some((a, _)), Some((b, _))) if b < a => other,
            (None, _) => other,
            _ => self,
        }
    }

    /// How far away it was when it was made; `None` for ever.
    pub fn length(&self) -> Option<Duration> {
        self.at.map(|(_, length)| length)
    }

    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// Whether it will ever pass.
    pub fn is_never(&self) -> bool {
        self.at.is_none()
    }

    /// The error to fail with once it has passed.
    pub fn passed(&self) -> Error {
        Error::Timeout(self.at.map_or(Duration::ZERO, |(_, full)| full))
    }

    /// How long to wait before [`Deadline::check`]: all the time left, or a slice of it. `None` for
    /// ever.
    pub(super) fn slice(&self) -> Option<Duration> {
        let slice = self.wanted.map(|_| SLICE);
        match (self.remaining(), slice) {
            (Some(left), Some(slice)) => Some(left.min(slice)),
            (left, slice) => left.or(slice),
        }
    }

    /// Whether to go on waiting: an error if the deadline has passed, or if nobody wants the result.
    pub fn check(&self) -> Result<(), Error> {
        if self.has_passed() {
            return Err(self.passed());
        }
        self.check_wanted()
    }

    /// An error if nobody wants the result. A yes is good for a while: what is asked may sleep, and
    /// much that comes in small pieces is waited for very often.
    pub(super) fn check_wanted(&self) -> Result<(), Error> {
        let Some((from, wanted)) = self.wanted else {
            return Ok(());
        };
        let now = Instant::now();
        let recent = |last: Instant| now.saturating_duration_since(last) < SLICE;
        if now < from || LAST_YES.get().is_some_and(recent) {
            return Ok(());
        }
        let answer = wanted();
        LAST_YES.set(answer.then_some(now));
        if answer { Ok(()) } else { Err(Error::Unwanted) }
    }

    /// [`Deadline::check`], where it is known what is waited for.
    pub(super) fn check_during(&self, what: &'static str) -> Result<(), Error> {
        self.check().map_err(|error| match error {
            Error::Timeout(after) => Error::TimeoutDuring { after, what },
            error => error,
        })
    }

    /// The time to wait for until it is to be asked again, as poll(2) wants it.
    pub fn timespec(&self) -> Option<Timespec> {
        // A remainder beyond the range of a time_t is as good as never.
        self.slice().and_then(|left| Timespec::try_from(left).ok())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// nbdkit's answer takes longer than a poll, and a list of exports is a hundred thousand of them.
    #[test]
    fn who_says_yes_is_not_asked_at_once_again() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let count = || {
            ASKED.fetch_add(1, Ordering::Relaxed);
            true
        };
        let begun = Instant::now();
        let deadline = Deadline {
            wanted: Some((begun, count)),
            ..Deadline::NEVER
        };
        for _ in 0..1000 {
            assert!(deadline.check().is_ok());
        }
        let most = 1 + begun.elapsed().as_millis() / SLICE.as_millis();
        let asked = ASKED.load(Ordering::Relaxed);
        assert!(asked >= 1 && u128::from(asked) <= most, "{asked} of {most}");
    }

    #[test]
    fn who_says_no_says_it_each_time() {
        let deadline = Deadline {
            wanted: Some((Instant::now(), || false)),
            ..Deadline::NEVER
        };
        for _ in 0..2 {
            assert!(matches!(deadline.check(), Err(Error::Unwanted)));
        }
    }
}
