//! A point in time by which something must have happened, or never.

use std::time::{Duration, Instant};

use rustix::event::Timespec;

use super::Error;

/// Longest wait without looking up.
const SLICE: Duration = Duration::from_millis(250);

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The point in time and how long it was away at first; `None` for never.
    at: Option<(Instant, Duration)>,
}

impl Deadline {
    /// There is all the time in the world. Reads no clock.
    pub const NEVER: Self = Self { at: None };

    /// So long from now.
    pub fn after(duration: Duration) -> Self {
        Self {
            at: Instant::now()
                .checked_add(duration)
                .map(|at| (at, duration)),
        }
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
            None => Self::NEVER,
            Some(left) => Self::after(left / u32::try_from(parts.max(1)).unwrap_or(u32::MAX)),
        }
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

    /// [`Deadline::passed`], where it is known what was waited for.
    pub(super) fn passed_during(&self, what: &'static str) -> Error {
        match self.passed() {
            Error::Timeout(after) => Error::TimeoutDuring { after, what },
            error => error,
        }
    }

    /// This deadline, or [`SLICE`] from now, whichever comes first: for waits that nothing can
    /// wake, and that have to look up now and then.
    pub(super) fn slice(&self) -> Self {
        match self.remaining() {
            Some(left) if left < SLICE => *self,
            _ => Self::after(SLICE),
        }
    }

    /// Time left, as poll(2) wants it.
    pub(super) fn timespec(&self) -> Option<Timespec> {
        // A remainder beyond the range of a time_t is as good as never.
        self.remaining()
            .and_then(|left| Timespec::try_from(left).ok())
    }
}
