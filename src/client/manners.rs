// SPDX-License-Identifier: BSD-3-Clause
//! How a server wants to be asked: what the user knows of that, and what was learnt.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::Lost;
use crate::proto::export::Limits;
use crate::proto::handshake::Ladder;

/// How the server of one [`Options`](super::Options) is asked: with all questions that the user allows,
/// until a connection on which one was not asked led to an export where another had not, or until it has
/// agreed to extended headers and not kept to that. And how many connections it has been found to admit
/// for one client.
#[derive(Debug)]
pub struct Manners {
    ladder: Mutex<Ladder>,
    limits: Limits,
    admits: AtomicUsize,
}

impl Default for Manners {
    fn default() -> Self {
        Self::new(Ladder::default(), Limits::default())
    }
}

impl Manners {
    /// What the user allows.
    pub fn new(ladder: Ladder, limits: Limits) -> Self {
        Self {
            ladder: Mutex::new(ladder),
            limits,
            admits: AtomicUsize::new(usize::MAX),
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
        *self.lock()
    }

    /// How much to ask for at once.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Remembers a way that led to an export after another had not.
    pub(super) fn remember(&self, ladder: Ladder) {
        *self.lock() = ladder;
    }

    /// Remembers what the loss of a connection tells. A server that has agreed to extended headers and
    /// does not know them gets no other connection for that alone: those who come next do without.
    pub(super) fn learn(&self, lost: &Lost) {
        if lost.cause().is_of_extended_headers() {
            let mut ladder = self.lock();
            *ladder = ladder.without_extended();
            log::info!("{}: not asked for extended headers any more", lost.server());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ladder> {
        self.ladder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
