// SPDX-License-Identifier: BSD-3-Clause
//! Where all clients' operations pass, so that they can be held from outside (`control=`): who is inside
//! is counted, and once it is shut nobody comes in.
//!
//! The count and the bar are one number, so that nobody slips through between a look at the one and at
//! the other. There are several of them, one for each of a few threads: threads that count with the same
//! one would wait for each other's processor.

use std::time::Duration;

use super::sync::{AtomicU32, Condvar, Mutex, MutexGuard, Ordering, lock, wait};

/// How many counts there are.
const COUNTS: usize = if cfg!(loom) { 1 } else { 16 };

/// In a count: nobody comes in.
const SHUT: u32 = 1 << 31;

/// How many are inside, those that share it; aligned so that neighbours do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicU32);

/// See the module.
#[derive(Debug)]
pub struct Turnstile {
    counts: [Count; COUNTS],
    room: Mutex<Room>,
    changed: Condvar,
}

/// Those who are held.
#[derive(Debug, Default)]
struct Room {
    waiting: usize,
    shut: bool,
}

impl Default for Turnstile {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| Count::default()),
            room: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl Turnstile {
    /// Goes in, unless it is shut.
    #[inline]
    pub(super) fn pass(&self) -> Option<Inside<'_>> {
        let count = &self.counts[own_count()].0;
        // What comes after it is not to be seen before it.
        if count.fetch_add(1, Ordering::AcqRel) & SHUT == 0 {
            return Some(Inside(count));
        }
        count.fetch_sub(1, Ordering::Release);
        None
    }

    /// Lets nobody in from now on.
    pub(super) fn shut(&self) {
        self.room().shut = true;
        for Count(count) in &self.counts {
            count.fetch_or(SHUT, Ordering::AcqRel);
        }
    }

    /// Lets everybody in.
    pub(super) fn open(&self) {
        for Count(count) in &self.counts {
            count.fetch_and(!SHUT, Ordering::AcqRel);
        }
        self.room().shut = false;
        self.changed.notify_all();
    }

    /// How many are inside. While it is shut, those who only try are counted, too.
    pub(super) fn inside(&self) -> usize {
        let count = |count: &Count| count.0.load(Ordering::Acquire) & !SHUT;
        self.counts.iter().map(|one| count(one) as usize).sum()
    }

    /// How many wait before it.
    pub(super) fn waiting(&self) -> usize {
        self.room().waiting
    }

    /// Waits until it is open, so long at most.
    pub(super) fn hold(&self, most: Duration) {
        let mut room = self.room();
        if room.shut {
            room.waiting += 1;
            room = wait(&self.changed, room, Some(most));
            room.waiting -= 1;
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        lock(&self.room)
    }
}

/// Being inside.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a AtomicU32);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // Whoever finds nobody inside is to see what was done there.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// With which count this thread counts.
#[cfg(not(loom))]
fn own_count() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;

    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        /// It has nothing to be dropped.
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    match OWN.get() {
        usize::MAX => {
            let own = NEXT.fetch_add(1, Ordering::Relaxed) % COUNTS;
            OWN.set(own);
            own
        }
        own => own,
    }
}

#[cfg(loom)]
fn own_count() -> usize {
    0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_is_inside_is_counted_and_nobody_passes_while_it_is_shut() {
        let turnstile = Turnstile::default();
        let one = turnstile.pass().expect("open");
        let two = turnstile.pass().expect("open");
        assert_eq!(turnstile.inside(), 2);
        turnstile.shut();
        assert!(turnstile.pass().is_none());
        assert_eq!(turnstile.inside(), 2, "who tried is not inside");
        drop((one, two));
        assert_eq!(turnstile.inside(), 0);
        turnstile.open();
        assert!(turnstile.pass().is_some());
    }

    #[test]
    fn who_is_held_is_counted_and_goes_on_when_it_opens() {
        let turnstile = Turnstile::default();
        turnstile.hold(Duration::from_secs(3600));
        turnstile.shut();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while turnstile.pass().is_none() {
                    turnstile.hold(Duration::from_secs(3600));
                }
            });
            let late = std::time::Instant::now() + Duration::from_secs(20);
            while turnstile.waiting() == 0 {
                assert!(std::time::Instant::now() < late, "nobody waits");
                std::thread::yield_now();
            }
            turnstile.open();
        });
        assert_eq!((turnstile.waiting(), turnstile.inside()), (0, 0));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;

    /// Nothing is done inside once it was shut and found empty, and all that was done before is seen.
    #[test]
    fn loom_nobody_is_inside_once_it_was_shut_and_empty() {
        loom::model(|| {
            let turnstile = Arc::new(Turnstile::default());
            let done = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (turnstile, done) = (turnstile.clone(), done.clone());
                    loom::thread::spawn(move || {
                        if let Some(_inside) = turnstile.pass() {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            turnstile.shut();
            let empty = turnstile.inside() == 0;
            let seen = done.load(Ordering::Relaxed);
            for thread in threads {
                thread.join().expect("no panic");
            }
            let after = done.load(Ordering::Relaxed);
            assert!(
                !empty || seen == after,
                "something was done in a closed room"
            );
        });
    }
}
