// SPDX-License-Identifier: BSD-3-Clause
//! What was learnt about how a server wants to be asked.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::proto::handshake::Ladder;

/// The questions that the server of one [`Options`](super::Options) is asked: all of them, until a
/// connection on which one was not asked led to an export where another had not.
#[derive(Debug, Default)]
pub struct Manners(Mutex<Ladder>);

impl Manners {
    /// What to ask.
    pub(super) fn ladder(&self) -> Ladder {
        *self.lock()
    }

    /// Remembers a way that led to an export after another had not.
    pub(super) fn remember(&self, ladder: Ladder) {
        *self.lock() = ladder;
    }

    fn lock(&self) -> MutexGuard<'_, Ladder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
