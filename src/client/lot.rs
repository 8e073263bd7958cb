// SPDX-License-Identifier: BSD-3-Clause
//! Where ways to the server are kept that no client has at present, for those who come (`linger=`).
//!
//! A way is given to a client that would have opened the same: see [`Key`]. All ways together, those
//! that clients have and those that are kept, are never more than clients have been at once, so that no
//! server sees more connections than it would without.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::links::Links;
use super::times::Time;
use crate::proto::name::ExportName;

/// Most ways that are kept.
const MOST: usize = 16;

/// What a client must have in common with the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What is opened.
    pub export: ExportName,
    /// Whether nothing will be written.
    pub readonly: bool,
    /// Whether the front client has TLS.
    pub tls: bool,
    /// The front client's host, where that can be told and matters.
    pub peer: Option<Box<[u8]>>,
}

/// A way that a client had.
#[derive(Debug)]
pub struct Kept {
    /// For whom it is.
    pub key: Key,
    /// It was opened as the default export, and the name in its key is what the server calls that.
    pub is_default: bool,
    /// The way.
    pub links: Arc<Links>,
}

/// See the module.
#[derive(Debug)]
pub struct Lot {
    /// How long a way is kept; none is until it is needed, or nbdkit ends.
    linger: Arc<Time>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    parked: Vec<(Instant, Kept)>,
    /// Clients that are there, and most of them so far.
    clients: usize,
    most: usize,
}

impl State {
    /// Takes away what is more than there may be.
    fn overflow(&mut self) -> Vec<Kept> {
        let room = self.most.saturating_sub(self.clients).min(MOST);
        let surplus = self.parked.len().saturating_sub(room);
        self.parked.drain(..surplus).map(|(_, kept)| kept).collect()
    }
}

impl Lot {
    /// An empty lot, in which a way is kept so long; none is for ever.
    pub fn new(linger: Arc<Time>) -> Self {
        Self {
            linger,
            state: Mutex::default(),
        }
    }

    /// A client comes. What is given back with the way for it, if there is one, is to be left before
    /// another connection is made.
    pub fn enter(&self, key: &Key) -> (Option<Kept>, Vec<Kept>) {
        let mut state = self.lock();
        state.clients += 1;
        state.most = state.most.max(state.clients);
        let mut gone = Vec::new();
        let found = self.find(&mut state, key, &mut gone);
        gone.extend(state.overflow());
        (found, gone)
    }

    /// Whether there is a way for such a client.
    pub fn has(&self, key: &Key) -> bool {
        let state = self.lock();
        state.parked.iter().any(|(_, kept)| kept.key == *key)
    }

    /// A way for a client that has come already.
    pub fn take(&self, key: &Key) -> (Option<Kept>, Vec<Kept>) {
        let mut gone = Vec::new();
        let found = self.find(&mut self.lock(), key, &mut gone);
        (found, gone)
    }

    /// The youngest way for such a client that is of use; what is of none is gone.
    fn find(&self, state: &mut State, key: &Key, gone: &mut Vec<Kept>) -> Option<Kept> {
        loop {
            let fits = |(_, kept): &(_, Kept)| kept.key == *key;
            let at = state.parked.iter().rposition(fits)?;
            let (since, kept) = state.parked.remove(at);
            if self.has_time(since) && kept.links.is_alive() {
                return Some(kept);
            }
            gone.push(kept);
        }
    }

    /// All that is kept, to be left.
    pub fn clear(&self) -> Vec<Kept> {
        let parked = std::mem::take(&mut self.lock().parked);
        parked.into_iter().map(|(_, kept)| kept).collect()
    }

    /// What is to be left before a connection is made that is none of a client's yet.
    pub fn make_room(&self) -> Vec<Kept> {
        let mut state = self.lock();
        state.clients += 1;
        let gone = state.overflow();
        state.clients -= 1;
        gone
    }

    /// A client leaves, or did not come about.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.clients = state.clients.saturating_sub(1);
    }

    /// Keeps a way. What is given back is to be left instead.
    pub fn park(&self, kept: Kept) -> Vec<Kept> {
        let mut state = self.lock();
        state.parked.push((Instant::now(), kept));
        state.overflow()
    }

    /// The name of the default export, if a way that such a client may have has learnt it.
    pub fn default_name(&self, tls: bool, peer: Option<&[u8]>) -> Option<ExportName> {
        let state = self.lock();
        let knows = |(since, kept): &&(Instant, Kept)| {
            kept.is_default
                && kept.key.tls == tls
                && kept.key.peer.as_deref() == peer
                && self.has_time(*since)
                && kept.links.is_alive()
        };
        let known = state.parked.iter().rev().find(knows);
        known.map(|(_, kept)| kept.key.export.clone())
    }

    /// What is to be left: its time is over, or it is.
    pub fn due(&self) -> Vec<Kept> {
        let mut state = self.lock();
        let (rest, due) = std::mem::take(&mut state.parked)
            .into_iter()
            .partition(|(since, kept)| self.has_time(*since) && kept.links.is_alive());
        state.parked = rest;
        due.into_iter().map(|(_, kept)| kept).collect()
    }

    /// After what time something may be due; `None` if nothing is kept, or nothing that ends.
    pub fn next(&self) -> Option<Duration> {
        let state = self.lock();
        let (since, _) = state.parked.first()?;
        // A server may end them, too.
        let look = Duration::from_secs(1);
        Some(match self.linger.get() {
            Some(time) => time.saturating_sub(since.elapsed()).min(look),
            None => look,
        })
    }

    fn has_time(&self, since: Instant) -> bool {
        match self.linger.get() {
            Some(time) => since.elapsed() < time,
            None => true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
