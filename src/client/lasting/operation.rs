// SPDX-License-Identifier: BSD-3-Clause
//! What a request is while it waits and is sent again.

use std::time::Duration;

use crate::client::resume::{Inner, Resume};
use crate::session::{Change, Written};
use crate::transport::{Deadline, Wanted};

/// Shortest time for a request that is sent again, unless `request-timeout` is shorter: what is too
/// late would end the connection for everybody.
const LEAST: Duration = Duration::from_secs(1);

/// A request, over all its sendings.
pub(super) struct Operation {
    pub(super) wanted: Option<Wanted>,
    /// For one sending.
    pub(super) timeout: Option<Duration>,
    pub(super) limit: Option<Duration>,
    /// Time spent without the server, sendings that came to nothing included but for the first.
    pub(super) waited: Duration,
    /// How much of it had been spent when it was last asked whether the client is still there.
    pub(super) asked: Duration,
    /// It was sent, and lost.
    pub(super) again: bool,
    /// It waits for nothing: the client is leaving.
    pub(super) hurried: bool,
    /// Until when all of them must be over, where there is such a time.
    pub(super) end: Option<Deadline>,
}

impl Operation {
    /// Until when one sending must have been answered.
    pub(super) fn deadline(&self) -> Deadline {
        if let Some(end) = self.end {
            return end;
        }
        match (self.timeout, self.limit) {
            (Some(timeout), Some(limit)) if self.again => {
                let left = limit.saturating_sub(self.waited).max(LEAST);
                Deadline::after(timeout.min(left))
            }
            (timeout, _) => Deadline::after_maybe(timeout),
        }
    }

    /// Until when it may wait behind changes: what was sent has had its time for that.
    pub(super) fn in_line(&self) -> Deadline {
        let limit = match self.hurried {
            true => Some(Duration::ZERO),
            false => self.limit,
        };
        let most = match self.again {
            true => limit.map(|limit| limit.saturating_sub(self.waited).max(LEAST)),
            false => {
                let both = self.timeout.zip(limit);
                both.map(|(one, other)| one.saturating_add(other))
            }
        };
        Deadline::after_maybe(most)
    }

    /// A sending that took so long has come to nothing.
    pub(super) fn lost(&mut self, took: Duration) {
        if self.again {
            self.waited += took;
        }
        self.again = true;
    }

    /// Whether there is no time for another sending.
    pub(super) fn is_late(&self) -> bool {
        self.end.is_some_and(|end| end.has_passed())
    }
}

/// What a change has in the session, given back whatever happens.
pub(super) struct Place<'a> {
    pub(super) resume: &'a Resume,
    pub(super) change: Option<Change>,
    /// It was sent, and somebody may have seen what it wrote.
    pub(super) sent: bool,
    pub(super) reserved: Option<Written<'a>>,
}

impl Place<'_> {
    /// The change is over: its place is free.
    pub(super) fn settle(&mut self, inner: &mut Inner) {
        self.change = None;
        self.free(inner);
    }

    fn free(&mut self, inner: &mut Inner) {
        if let Some(written) = self.reserved.take() {
            inner.core.give_back(written);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.change.is_none() && self.reserved.is_none() {
            return;
        }
        let mut inner = self.resume.lock();
        if let Some(change) = self.change.take() {
            inner.core.abandon(change);
        }
        self.free(&mut inner);
        self.resume.tell(inner);
    }
}
