// SPDX-License-Identifier: BSD-3-Clause
//! Fences around blocks that are read, changed in part and written back: nothing else changes them
//! meanwhile.
//!
//! All clients have the same fences, whatever export they have open: names may stand for one disk, and
//! that cannot be known here. Changes of whole blocks do not shut each other out, as they do not
//! without fences.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::sync::{Condvar, Mutex, MutexGuard, lock, wait};
use crate::session::Span;
use crate::transport::{Deadline, Error};

/// How long one waits before looking whether there is a reason to give up.
const SLICE: Duration = Duration::from_millis(250);

/// Whom else a fence keeps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whoever wants to be alone.
    Shared,
    /// Everybody.
    Alone,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Fences {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Those who are inside and those who wait, in the order in which they came.
    places: BTreeMap<u64, (Span, Kind)>,
    waiting: usize,
}

impl State {
    fn queue(&mut self, span: Span, kind: Kind) -> u64 {
        let number = self.next;
        self.next += 1;
        self.places.insert(number, (span, kind));
        number
    }

    /// Whether nobody is in the way who came before. So nobody waits for those who came later.
    fn is_free(&self, number: u64, span: Span, kind: Kind) -> bool {
        self.places.range(..number).all(|(_, (other, theirs))| {
            (kind, *theirs) == (Kind::Shared, Kind::Shared) || !other.overlaps(span)
        })
    }
}

/// A fence; it is gone when this is.
#[derive(Debug)]
pub struct Fence<'a> {
    fences: &'a Fences,
    number: u64,
}

impl Fences {
    /// Waits until it can be put up. `patience` is for the wait, if there is one.
    pub fn enter(
        &self,
        span: Span,
        kind: Kind,
        patience: impl FnOnce() -> Deadline,
    ) -> Result<Fence<'_>, Error> {
        let mut state = self.lock();
        let number = state.queue(span, kind);
        let fence = Fence {
            fences: self,
            number,
        };
        if state.is_free(number, span, kind) {
            return Ok(fence);
        }
        state.waiting += 1;
        drop(state);
        let patience = patience();
        let mut given_up = Ok(());
        let mut state = self.lock();
        while given_up.is_ok() && !state.is_free(number, span, kind) {
            state = wait(&self.changed, state, Some(SLICE));
            if !state.is_free(number, span, kind) {
                drop(state);
                // Not under the lock: to ask may print a message.
                given_up = patience.check();
                state = self.lock();
            }
        }
        state.waiting -= 1;
        drop(state);
        given_up.map(|()| fence)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Fence<'_> {
    fn drop(&mut self) {
        let mut state = self.fences.lock();
        state.places.remove(&self.number);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.fences.changed.notify_all();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NOW: fn() -> Deadline = || Deadline::after(Duration::ZERO);

    #[test]
    fn whoever_is_alone_keeps_out_all_who_overlap() {
        let fences = Fences::default();
        let enter = |start, kind| fences.enter(Span::new(start, 10), kind, NOW);
        let alone = enter(10, Kind::Alone).expect("nobody is there");
        for kind in [Kind::Shared, Kind::Alone] {
            for start in [1, 10, 19] {
                assert!(enter(start, kind).is_err(), "{start} {kind:?}");
            }
            for start in [0, 20] {
                assert!(enter(start, kind).is_ok(), "{start} {kind:?}");
            }
        }
        drop(alone);
        assert!(enter(10, Kind::Alone).is_ok(), "nothing is left behind");
    }

    #[test]
    fn whole_blocks_are_changed_side_by_side() {
        let fences = Fences::default();
        let enter = |kind| fences.enter(Span::new(0, 10), kind, NOW);
        let both = [enter(Kind::Shared), enter(Kind::Shared)];
        assert!(both.iter().all(Result::is_ok));
        assert!(enter(Kind::Alone).is_err());
        drop(both);
        assert!(enter(Kind::Alone).is_ok());
    }

    #[test]
    fn those_who_came_first_go_first() {
        let mut state = State::default();
        let span = Span::new(0, 10);
        let first = state.queue(span, Kind::Shared);
        let alone = state.queue(span, Kind::Alone);
        let last = state.queue(span, Kind::Shared);
        assert!(state.is_free(first, span, Kind::Shared));
        assert!(!state.is_free(alone, span, Kind::Alone));
        assert!(
            !state.is_free(last, span, Kind::Shared),
            "or whoever wants to be alone would wait for ever"
        );
        state.places.remove(&first);
        assert!(state.is_free(alone, span, Kind::Alone));
        assert!(!state.is_free(last, span, Kind::Shared));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::thread;
    use std::sync::Arc;

    /// A block of two bytes, which a server reads and writes as a whole.
    #[derive(Default)]
    struct World {
        fences: Fences,
        block: Mutex<[u8; 2]>,
    }

    impl World {
        fn change_one(&self, fenced: bool, at: usize) {
            let span = Span::new(0, 2);
            let enter = || self.fences.enter(span, Kind::Alone, || Deadline::NEVER);
            let _fence = fenced.then(|| enter().expect("no deadline"));
            let mut block = *lock(&self.block);
            block[at] = 1;
            *lock(&self.block) = block;
        }

        fn change_both(&self) {
            let span = Span::new(0, 2);
            let _fence = self.fences.enter(span, Kind::Shared, || Deadline::NEVER);
            *lock(&self.block) = [2; 2];
        }
    }

    fn model(first: fn(&World), second: fn(&World), end: fn([u8; 2])) {
        loom::model(move || {
            let world = Arc::new(World::default());
            let other = world.clone();
            let thread = thread::spawn(move || first(&other));
            second(&world);
            thread.join().expect("no panic");
            end(*lock(&world.block));
        });
    }

    #[test]
    fn loom_changes_of_parts_are_both_kept() {
        let end = |block| assert_eq!(block, [1; 2]);
        model(|w| w.change_one(true, 0), |w| w.change_one(true, 1), end);
    }

    #[test]
    fn loom_a_change_of_all_is_not_undone() {
        let end = |block: [u8; 2]| assert_eq!(block[1], 2);
        model(|w| w.change_one(true, 0), World::change_both, end);
    }

    #[test]
    #[should_panic(expected = "left")]
    fn loom_without_fences_one_is_lost() {
        let end = |block| assert_eq!(block, [1; 2]);
        model(|w| w.change_one(false, 0), |w| w.change_one(false, 1), end);
    }
}
