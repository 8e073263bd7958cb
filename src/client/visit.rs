// SPDX-License-Identifier: BSD-3-Clause
//! A client's operation: its deadline, its passage where all of them can be held, and its pieces.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Client;
use super::error::Error;
use super::lasting::ASK;
use super::turnstile::{Inside, Turnstile};
use crate::stats::{Event, Stats};
use crate::transport::{Deadline, Wanted};

/// How long one who is held waits before looking around.
const SLICE: Duration = Duration::from_millis(250);

/// Shortest time for a request that was held, unless `request-timeout` is shorter: what is too late would
/// end the connection for everybody.
const LEAST: Duration = Duration::from_secs(1);

/// An operation: until when it must have ended, and that it is inside.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    deadline: Deadline,
    _inside: Option<Inside<'a>>,
}

impl Deref for Visit<'_> {
    type Target = Deadline;

    fn deref(&self) -> &Deadline {
        &self.deadline
    }
}

/// Whether a client whose operations are held is still there. One of them asks for all, since to ask may
/// print a message.
#[derive(Debug, Default)]
pub(super) struct Attendance {
    asking: AtomicBool,
    left: AtomicBool,
}

impl Attendance {
    /// False if the client has left, or nbdkit ends.
    fn is_wanted(&self, wanted: Wanted) -> bool {
        if self.left.load(Ordering::Relaxed) {
            return false;
        }
        if self.asking.swap(true, Ordering::Acquire) {
            return true;
        }
        let goes_on = wanted();
        self.left.fetch_or(!goes_on, Ordering::Relaxed);
        self.asking.store(false, Ordering::Release);
        goes_on
    }
}

/// An operation in several pieces. Each of them may be quick where all of them are not, and a request
/// that is answered in time is looked after by nobody.
pub(super) struct Pieces<'a> {
    client: &'a Client,
    /// Whom to tell of them.
    stats: Option<&'a Stats>,
    begun: u32,
    /// When it was last asked whether anybody waits for the end.
    asked: Option<Instant>,
    /// Nobody does, and until then is time for what is left.
    until: Option<Deadline>,
}

impl Pieces<'_> {
    /// To be called before each piece. Reads no clock for the first one.
    pub(super) fn next(&mut self) -> Result<(), Error> {
        self.begun = self.begun.saturating_add(1);
        if self.begun == 1 {
            return Ok(());
        }
        if let Some(stats) = self.stats {
            let (cut, pieces) = if self.begun == 2 { (1, 2) } else { (0, 1) };
            stats.add(Event::Cut, cut);
            stats.add(Event::Piece, pieces);
        }
        let Some(wanted) = self.client.wanted else {
            return Ok(());
        };
        if let Some(until) = &self.until {
            return match until.has_passed() {
                true => Err(Error::GivenUp {
                    server: self.client.links.server().clone(),
                    timeout: until.passed(),
                }),
                false => Ok(()),
            };
        }
        let now = Instant::now();
        if now.duration_since(*self.asked.get_or_insert(now)) >= ASK {
            self.asked = Some(now);
            if !wanted() {
                self.until = Some(Deadline::after_maybe(self.client.times.close.get()));
            }
        }
        Ok(())
    }
}

impl Client {
    /// Since the server takes less at once.
    pub(super) fn pieces(&self) -> Pieces<'_> {
        Pieces {
            stats: self.stats.as_deref(),
            ..self.steps()
        }
    }

    /// For another reason: nobody counts them.
    pub(super) fn steps(&self) -> Pieces<'_> {
        Pieces {
            client: self,
            stats: None,
            begun: 0,
            asked: None,
            until: None,
        }
    }

    /// Begins an operation, once it may. Until when it must have ended, all its requests together, counts
    /// from now.
    #[inline(always)]
    pub(super) fn begin(&self) -> Result<Visit<'_>, Error> {
        let deadline = Deadline::after_maybe(self.times.request.get());
        let Some(turnstile) = &self.turnstile else {
            return Ok(Visit {
                deadline,
                _inside: None,
            });
        };
        match turnstile.pass() {
            Some(inside) => Ok(Visit {
                deadline,
                _inside: Some(inside),
            }),
            None => self.wait_to_begin(turnstile, deadline),
        }
    }

    #[cold]
    fn wait_to_begin<'a>(
        &'a self,
        turnstile: &'a Turnstile,
        deadline: Deadline,
    ) -> Result<Visit<'a>, Error> {
        let mut asked = Instant::now();
        loop {
            turnstile.hold(deadline.within(SLICE).remaining().unwrap_or(SLICE));
            if let Some(inside) = turnstile.pass() {
                let deadline = match (deadline.remaining(), deadline.length()) {
                    (Some(left), Some(length)) if left < LEAST => {
                        Deadline::after(length.min(LEAST))
                    }
                    _ => deadline,
                };
                return Ok(Visit {
                    deadline,
                    _inside: Some(inside),
                });
            }
            if deadline.has_passed() {
                return Err(Error::Held {
                    server: self.links.server().clone(),
                    timeout: deadline.passed(),
                });
            }
            if asked.elapsed() < ASK {
                continue;
            }
            asked = Instant::now();
            let wanted = self.wanted;
            if wanted.is_some_and(|wanted| !self.attendance.is_wanted(wanted)) {
                return Err(Error::Unwanted(self.links.server().clone()));
            }
        }
    }
}
