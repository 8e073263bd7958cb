// SPDX-License-Identifier: BSD-3-Clause
//! How a server wants to be asked: what the user knows of that, and what was learnt.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::Lost;
use crate::proto::export::Limits;
use crate::proto::ladder::Ladder;

/// For how long a server that does not know extended headers is not asked for them again: a round trip
/// less for each client of many, and no more than a minute lost when the server is replaced by a newer one.
const COMPACT_FOR: Duration = Duration::from_secs(60);

/// How the server of one [`Options`](super::Options) is asked: with all questions that the user allows,
/// until a connection on which one was not asked led to an export where another had not, or until it has
/// agreed to extended headers and not kept to that. And how many connections it has been found to admit
/// for one client.
#[derive(Debug)]
pub struct Manners {
    ladder: Mutex<Ladder>,
    /// What was asked where an export was reached.
    answered: Mutex<Option<Ladder>>,
    limits: Limits,
    /// It is asked for extended headers each time.
    asks_again: bool,
    admits: AtomicUsize,
    /// When it last said that it does not know extended headers.
    compact: Mutex<Option<Instant>>,
}

impl Default for Manners {
    fn default() -> Self {
        Self::new(Ladder::default(), Limits::default(), false)
    }
}

impl Manners {
    /// What the user allows. `asks_again` for extended headers each time, also where the server has just
    /// said that it does not know them.
    pub fn new(ladder: Ladder, limits: Limits, asks_again: bool) -> Self {
        Self {
            ladder: Mutex::new(ladder),
            answered: Mutex::default(),
            limits,
            asks_again,
            admits: AtomicUsize::new(usize::MAX),
            compact: Mutex::new(None),
        }
    }

    /// How many connections to have for one client, at most.
    pub(super) fn admits(&self) -> usize {
        self.admits.load(Ordering::Relaxed)
    }

    /// The server does not admit more than that.
    pub(super) fn found_admits(&self, most: usize) {
        self.admits.fetch_min(most.max(1), Ordering::Relaxed);
    }

    /// What to ask.
    pub(super) fn ladder(&self) -> Ladder {
        self.ladder_at(Instant::now())
    }

    fn ladder_at(&self, now: Instant) -> Ladder {
        let ladder = *lock(&self.ladder);
        match *lock(&self.compact) {
            Some(said) if now.saturating_duration_since(said) < COMPACT_FOR => {
                ladder.without_extended()
            }
            _ => ladder,
        }
    }

    /// What to ask when a connection is to take the place of another, or to stand beside it: what that one
    /// was `asked`, whatever was learnt since, or it could offer less. How replies are framed is a
    /// connection's own affair.
    pub(super) fn ladder_again(&self, asked: Option<Ladder>) -> Ladder {
        let ladder = self.ladder();
        match asked {
            Some(asked) if ladder.has_extended() => asked,
            Some(asked) => asked.without_extended(),
            None => ladder,
        }
    }

    /// All these questions led to an export.
    pub(super) fn found_answers(&self, asked: Ladder) {
        let mut answered = lock(&self.answered);
        // Extended headers are dropped where others are kept, so the newest word on them counts.
        *answered = Some(answered.map_or(asked, |before| asked.with_those_of(before)));
    }

    /// Whether the server has answered before what it would not be asked any more one step down. Then it
    /// has another reason to hang up.
    pub(super) fn has_answered(&self, above: Ladder, below: Ladder) -> bool {
        lock(&self.answered).is_some_and(|answered| answered.has_any_between(above, below))
    }

    /// The server does not know extended headers.
    pub(super) fn found_compact(&self) {
        if !self.asks_again {
            *lock(&self.compact) = Some(Instant::now());
        }
    }

    /// How much to ask for at once.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Remembers a way that led to an export after another, `tried`, had not. What neither had asked, as
    /// the server had just said that it does not know it, is asked again when that is old.
    pub(super) fn remember(&self, tried: Ladder, reached: Ladder) {
        let mut ladder = lock(&self.ladder);
        *ladder = ladder.without_those_between(tried, reached);
        drop(ladder);
        // It has been asked more than once.
        let mut answered = lock(&self.answered);
        *answered = answered.map(|before| before.without_those_between(tried, reached));
    }

    /// Remembers what the loss of a connection tells. A server that has agreed to extended headers and
    /// does not know them gets no other connection for that alone: those who come next do without.
    pub(super) fn learn(&self, lost: &Lost) {
        if lost.cause().is_of_extended_headers() {
            {
                let mut ladder = lock(&self.ladder);
                *ladder = ladder.without_extended();
            }
            // Not under the lock: whoever takes the log may be slow.
            log::info!("{}: not asked for extended headers any more", lost.server());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_headers_that_are_unknown_are_asked_for_again_after_a_minute() {
        let manners = Manners::default();
        let now = Instant::now();
        assert_eq!(manners.ladder_at(now), Ladder::default());
        manners.found_compact();
        let without = Ladder::default().without_extended();
        assert_eq!(manners.ladder_at(now), without);
        let minute = Instant::now() + COMPACT_FOR;
        assert_eq!(manners.ladder_at(minute), Ladder::default());
    }

    #[test]
    fn a_question_that_was_dropped_meanwhile_takes_no_other_along() {
        let manners = Manners::default();
        manners.found_compact();
        let tried = manners.ladder_at(Instant::now());
        manners.remember(tried, tried.without_meta());
        let minute = Instant::now() + COMPACT_FOR;
        assert_eq!(
            manners.ladder_at(minute),
            Ladder::default().without_meta(),
            "extended headers are asked for again"
        );
    }

    #[test]
    fn who_does_without_go_asks_for_no_extended_headers() {
        let manners = Manners::default();
        manners.found_compact();
        let tried = manners.ladder_at(Instant::now());
        manners.remember(tried, tried.without_go());
        let minute = Instant::now() + COMPACT_FOR;
        assert_eq!(manners.ladder_at(minute), Ladder::default().without_go());
    }
}
