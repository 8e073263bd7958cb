// SPDX-License-Identifier: BSD-3-Clause
//! What was learnt about how a server wants to be asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::proto::handshake::Ladder;

/// The questions that the server of one [`Options`](super::Options) is asked: all of them, until a
/// connection on which one was not asked led to an export where another had not. And how many
/// connections it has been found to admit for one client.
#[derive(Debug)]
pub struct Manners {
    ladder: Mutex<Ladder>,
    admits: AtomicUsize,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            ladder: Mutex::default(),
            admits: AtomicUsize::new(usize::MAX),
        }
    }
}

impl Manners {
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

    /// Remembers a way that led to an export after another had not.
    pub(super) fn remember(&self, ladder: Ladder) {
        *self.lock() = ladder;
    }

    fn lock(&self) -> MutexGuard<'_, Ladder> {
        self.ladder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
