// SPDX-License-Identifier: BSD-3-Clause
//! What a front client has at hand at the server between its questions: a desk for each thread.
//!
//! nbdkit has no name for a client. But each connection to it has a thread, on which it lists, asks for
//! the default export, opens and closes, and which ends with it. So what one of these leads to, and the
//! next can go on with, lies on the desk of the thread:
//!
//! - a *negotiation* at rest, after a list or a refusal;
//! - the *default* export: asking for its name has opened it, and the `open` that follows takes it over;
//! - a *way* that was opened and closed without a request, which is how nbdkit answers `NBD_OPT_INFO`.
//!
//! The end of the thread is the sign that the client has left. It is seen by a thread-local's
//! destructor, at a time when nbdkit may have unloaded the plugin: all it does is to set a flag and to
//! ring a bell, both of which it owns a share of. The library itself stays (it is linked `nodelete`).
//! Whoever hears the bell leaves what lies there. Some threads do not end with a client: those of a
//! filter, or nbdkit's only one (`-s`). What lies on a desk untouched for [`IDLE`] is left, too.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::Error;
use super::lot::Kept;
use super::negotiation::Negotiation;
use super::opener::Entered;
use super::upkeep::Bell;
use crate::proto::name::ExportName;

/// How long something lies on a desk.
pub const IDLE: Duration = Duration::from_secs(10);

/// What lies on a desk.
#[derive(Debug, Default)]
pub struct Hand {
    /// At rest.
    pub negotiation: Option<Negotiation>,
    /// What asking for the default export came to.
    pub default: Option<DefaultExport>,
    /// What the server calls its default export, if it was only asked for that. Not worth keeping by itself.
    pub default_name: Option<ExportName>,
    /// Opened, and not used.
    pub way: Option<Kept>,
}

/// The default export, or why it could not be opened, under the name that nbdkit was told.
#[derive(Debug)]
pub struct DefaultExport {
    /// The name.
    pub name: ExportName,
    /// Whether it was opened for somebody who will write nothing.
    pub readonly: bool,
    /// The open export.
    pub entered: Result<Entered, Error>,
}

impl Hand {
    fn is_empty(&self) -> bool {
        self.negotiation.is_none() && self.default.is_none() && self.way.is_none()
    }
}

/// All desks on which something lies.
pub struct Desks {
    state: Mutex<State>,
    bell: Bell,
}

#[derive(Default)]
struct State {
    desks: Vec<Arc<Desk>>,
    /// Nothing is put on a desk any more.
    over: bool,
}

#[derive(Default)]
struct Desk {
    /// Its thread has ended.
    left: AtomicBool,
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    hand: Hand,
    /// Whether the front client had TLS when it was put there: what comes before that is no matter of
    /// the one who comes after it.
    tls: bool,
    since: Option<Instant>,
}

/// A thread's hold on its desk.
struct Seat {
    desk: Arc<Desk>,
    /// Of the same server: it is as good as its address.
    bell: Bell,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.desk.left.store(true, Ordering::Release);
        if !lock(&self.desk.place).hand.is_empty() {
            self.bell.ring();
        }
    }
}

thread_local! {
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

impl fmt::Debug for Desks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Desks")
            .field("desks", &state.desks.len())
            .field("over", &state.over)
            .finish_non_exhaustive()
    }
}

impl Desks {
    /// Nothing lies anywhere. The bell is rung when a thread has ended that left something.
    pub fn new(bell: Bell) -> Self {
        Self {
            state: Mutex::default(),
            bell,
        }
    }

    /// Takes what lies on this thread's desk; what lies there from before TLS, or with TLS if there is
    /// none now, comes second, and is to be left.
    pub fn take(&self, tls: bool) -> (Hand, Option<Hand>) {
        let Some(desk) = self.own_desk() else {
            return Default::default();
        };
        lock(&self.state)
            .desks
            .retain(|other| !Arc::ptr_eq(other, &desk));
        let mut place = lock(&desk.place);
        let hand = std::mem::take(&mut place.hand);
        match place.tls == tls || hand.is_empty() {
            true => (hand, None),
            false => (Hand::default(), Some(hand)),
        }
    }

    /// Puts something on this thread's desk, which is empty. What it gives back cannot lie there, and is
    /// to be left.
    pub fn put(&self, tls: bool, hand: Hand) -> Option<Hand> {
        if hand.is_empty() {
            return None;
        }
        let Some(desk) = self.own_desk() else {
            return Some(hand);
        };
        let mut state = lock(&self.state);
        if state.over {
            return Some(hand);
        }
        *lock(&desk.place) = Place {
            hand,
            tls,
            since: Some(Instant::now()),
        };
        state.desks.push(desk);
        drop(state);
        self.bell.ring_within(IDLE);
        None
    }

    /// What is to be left, since its client has left or has been idle.
    pub fn due(&self) -> Vec<Hand> {
        let mut due = Vec::new();
        lock(&self.state).desks.retain(|desk| {
            let mut place = lock(&desk.place);
            let idle = place.since.is_none_or(|since| since.elapsed() >= IDLE);
            let left = idle || desk.left.load(Ordering::Acquire);
            if left {
                due.push(std::mem::take(&mut place.hand));
            }
            !left
        });
        due
    }

    /// After what time something may be due though no bell rings.
    pub fn next(&self) -> Option<Duration> {
        let state = lock(&self.state);
        let since = |desk: &Arc<Desk>| lock(&desk.place).since;
        let oldest = state.desks.iter().filter_map(since).min();
        oldest.map(|since| IDLE.saturating_sub(since.elapsed()))
    }

    /// Clears all desks for good.
    pub fn close(&self) -> Vec<Hand> {
        let mut state = lock(&self.state);
        state.over = true;
        let desks = std::mem::take(&mut state.desks);
        let clear = |desk: &Arc<Desk>| std::mem::take(&mut lock(&desk.place).hand);
        desks.iter().map(clear).collect()
    }

    /// This thread's desk; none where the thread is about to end.
    fn own_desk(&self) -> Option<Arc<Desk>> {
        SEAT.try_with(|seat| {
            let mut seat = seat.borrow_mut();
            let known = seat
                .as_ref()
                .filter(|seat| seat.bell.is_the_same(&self.bell));
            if let Some(seat) = known {
                return seat.desk.clone();
            }
            let desk = Arc::<Desk>::default();
            *seat = Some(Seat {
                desk: desk.clone(),
                bell: self.bell.clone(),
            });
            desk
        })
        .ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
