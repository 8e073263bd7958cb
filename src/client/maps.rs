// SPDX-License-Identifier: BSD-3-Clause
//! Maps in bulk: what a server has told of its extents is not asked again.
//!
//! Without `extents-cache=` that is so for clients that cannot write, and within one `sweep` from the
//! beginning of the disk to its end: whoever goes back is told anew. With it a `cache` holds what all
//! clients were told, until one of them changes it. Neither outlives the connection that it came over:
//! the server behind the next one may be another.
//!
//! What the exports of a server have to do with each other cannot be known here, so that a change by
//! any client counts for all of them.

mod cache;
mod sweep;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::cache::Cache;
use self::sweep::{Sweep, upto};
pub use self::sweep::{WIDEST, WIDEST_EXTENDED};
use super::error::Error;
use crate::proto::chunks::Descriptor;
use crate::proto::request::Request;

/// How long an answer is good for the rest of a sweep, where others may write to the server's disk.
const FRESH: Duration = Duration::from_secs(30);

/// What all clients have in common.
#[derive(Debug)]
pub struct Maps {
    cache: Option<Mutex<Cache>>,
    /// Some client may write while another one is told of extents.
    counts: bool,
    /// Changes that have begun, and those that have ended.
    begun: AtomicU64,
    ended: AtomicU64,
    /// Connections that were made, and journals that were written.
    servers: AtomicU64,
}

impl Default for Maps {
    fn default() -> Self {
        Self::new(0, false)
    }
}

impl Maps {
    /// `size` is the memory for what is kept of all exports, bytes; none for 0. `many` if clients choose among
    /// exports.
    pub fn new(size: u64, many: bool) -> Self {
        Self {
            cache: (size > 0).then(|| Mutex::new(Cache::new(size))),
            counts: many || size > 0,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            servers: AtomicU64::new(0),
        }
    }

    /// Whether changes have to be told.
    pub fn counts_changes(&self) -> bool {
        self.counts
    }

    /// Whether what was told is kept for all clients.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// From now on the server may be another one, or has other content.
    pub fn note_server(&self) {
        self.servers.fetch_add(1, Ordering::SeqCst);
        if let Some(mut cache) = self.cache() {
            cache.forget();
        }
    }

    /// A change begins; it has ended when the result goes.
    pub fn begin_change(&self, request: Request) -> Change<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let cache = self.cache();
        Change {
            maps: self,
            range: cache.map(|mut cache| cache.begin_change(request.offset, request.length)),
            open: true,
        }
    }

    /// Whether all of a range of a volume is known to be zero.
    pub fn is_zero(&self, volume: u64, offset: u64, length: u64) -> bool {
        self.cache()
            .is_some_and(|cache| cache.is_zero(volume, offset, length))
    }

    fn cache(&self) -> Option<MutexGuard<'_, Cache>> {
        let cache = self.cache.as_ref()?;
        Some(cache.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What an answer depends on; `None` while something is being changed.
    fn state(&self) -> Option<State> {
        // In this order: what ended before it was counted as begun is no reason to wait.
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        let servers = self.servers.load(Ordering::SeqCst);
        (begun == ended).then_some(State { begun, servers })
    }
}

/// A change under way.
#[derive(Debug)]
pub struct Change<'a> {
    maps: &'a Maps,
    range: Option<cache::Change>,
    open: bool,
}

impl Change<'_> {
    /// The server's answer has come, or it has not.
    pub fn answered<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.open = !matches!(
            result,
            Ok(_) | Err(Error::Failed { .. } | Error::Crowded { .. } | Error::Unsupported { .. })
        );
        result
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if let (Some(mut cache), Some(range)) = (self.maps.cache(), self.range) {
            cache.end_change(range, self.open);
        }
        // A change without an answer has no end: nothing is kept of a sweep any more.
        if !self.open {
            self.maps.ended.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What an answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    begun: u64,
    servers: u64,
}

/// The map of one client.
#[derive(Debug)]
pub struct Map {
    maps: Arc<Maps>,
    volume: u64,
    state: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    sweep: Sweep,
    /// What the kept answer depends on, and when it came.
    since: Option<(State, Instant)>,
}

/// A client's question.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// From where on.
    pub offset: u64,
    /// How much, bytes.
    pub length: u64,
    /// One extent will do.
    pub one: bool,
    /// The most that the server can be asked for from there, bytes.
    pub most: u64,
    /// The most that it is asked for beyond what is wanted.
    pub widest: u64,
}

impl Question {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// The part of an answer that the client wants, and where that ends.
    fn cut(&self, extents: &[Descriptor]) -> (Vec<Descriptor>, u64) {
        let extents = match self.one {
            true => upto(extents, 1),
            false => upto(extents, self.length),
        };
        let lengths = extents.iter().map(|extent| extent.length);
        let length = lengths.fold(0, u64::saturating_add);
        let end = self.offset.saturating_add(length).min(self.end());
        (extents, end)
    }
}

impl Map {
    /// The map of a client of a volume.
    pub fn new(maps: Arc<Maps>, volume: u64) -> Self {
        Self {
            maps,
            volume,
            state: Mutex::default(),
        }
    }

    /// Answers a question by what is known, or else by `ask`, which asks the server for so many bytes
    /// and for one extent, if that will do. `alive` tells whether the server is still there.
    pub fn answer(
        &self,
        question: Question,
        alive: impl FnOnce() -> bool,
        ask: impl Fn(u64, bool) -> Result<Vec<Descriptor>, Error>,
    ) -> Result<Vec<Descriptor>, Error> {
        let known = self.known(question);
        if !known.is_empty() && alive() {
            let (extents, end) = question.cut(&known);
            self.lock().sweep.told(end);
            return Ok(extents);
        }
        let (length, one) = {
            let mut kept = self.lock();
            let one = question.one && !kept.sweep.goes_on(question.offset);
            let length = kept
                .sweep
                .plan(question.offset, question.length, question.widest);
            (length.min(question.most), one)
        };
        let asking = Asking::begin(&self.maps);
        let mut answer = ask(length, one);
        let asked_more = length > question.length || one != question.one;
        if asked_more && matches!(answer, Err(Error::Failed { .. })) {
            self.lock().sweep.narrow();
            answer = ask(question.length, question.one);
        }
        let all = answer?;
        let (extents, end) = question.cut(&all);
        self.keep(asking, question.offset, &all, end);
        Ok(extents)
    }

    fn known(&self, question: Question) -> Vec<Descriptor> {
        let length = if question.one { 1 } else { question.length };
        if let Some(cache) = self.maps.cache() {
            return cache.known(self.volume, question.offset, length);
        }
        let mut kept = self.lock();
        let valid = kept.since.is_some_and(|(state, since)| {
            self.maps.state() == Some(state) && since.elapsed() < FRESH
        });
        if !valid {
            kept.sweep.forget();
        }
        kept.sweep.known(question.offset, length)
    }

    fn keep(&self, mut asking: Asking<'_>, offset: u64, all: &[Descriptor], end: u64) {
        let mut kept = self.lock();
        kept.sweep.told(end);
        if let Some(mut cache) = self.maps.cache() {
            if let Some(query) = asking.query.take() {
                cache.end_query(query, self.volume, offset, all);
            }
            return;
        }
        kept.since = asking
            .state
            .filter(|state| self.maps.state() == Some(*state))
            .map(|state| (state, asking.begun));
        match kept.since {
            Some(_) => kept.sweep.keep(offset, all, end),
            None => kept.sweep.forget(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question to the server.
struct Asking<'a> {
    maps: &'a Maps,
    state: Option<State>,
    query: Option<cache::Query>,
    begun: Instant,
}

impl<'a> Asking<'a> {
    fn begin(maps: &'a Maps) -> Self {
        Self {
            maps,
            state: maps.state(),
            query: maps.cache().map(|mut cache| cache.begin_query()),
            begun: Instant::now(),
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let (Some(mut cache), Some(query)) = (self.maps.cache(), self.query) {
            cache.abandon_query(query);
        }
    }
}
