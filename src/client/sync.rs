// SPDX-License-Identifier: BSD-3-Clause
//! The synchronisation primitives of this room, so that loom can replace them under test.

#[cfg(loom)]
pub use loom::{
    sync::atomic::{AtomicU32, Ordering},
    sync::{Condvar, Mutex, MutexGuard},
};

#[cfg(not(loom))]
pub use std::{
    sync::atomic::{AtomicU32, Ordering},
    sync::{Condvar, Mutex, MutexGuard},
};

#[cfg(not(loom))]
pub use crate::transport::Lookout;

pub use self::sleeping::Berths;
#[cfg(loom)]
pub use self::watching::Lookout;

/// Locks, also after a panic elsewhere: what a panic interrupts is a connection, and the panic
/// guard declares that dead before anyone else looks at the protected data.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits until notified, or for as long as `limit` says. May end for no reason.
pub fn wait<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Option<std::time::Duration>,
) -> MutexGuard<'a, T> {
    match limit {
        // loom knows no time.
        #[cfg(not(loom))]
        Some(limit) => {
            condvar
                .wait_timeout(guard, limit)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0
        }
        _ => condvar
            .wait(guard)
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    }
}

/// Where threads sleep, each in a numbered berth, and are woken, many at once.
///
/// Whoever wants to sleep takes the epoch, then announces that it is about to sleep, and looks a
/// last time for a reason to stay awake. A call after the epoch was taken, to this berth or one of
/// its neighbours, makes the sleep return at once; a sleep may also end for no reason.
#[cfg(not(loom))]
mod sleeping {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use rustix::thread::futex::{Flags, wait_bitset, wake_bitset};
    use rustix::time::{ClockId, Timespec, clock_gettime};

    use super::{AtomicU32, Ordering};

    /// Berths in one word of the kernel's: one bit of its mask each.
    const WORD: usize = u32::BITS as usize;

    /// Berths 0 to 63.
    #[derive(Debug, Default)]
    pub struct Berths {
        epochs: [AtomicU32; 2],
    }

    impl Berths {
        /// To be taken before sleep is announced.
        pub fn epoch(&self, berth: usize) -> u32 {
            self.epochs[berth / WORD].load(Ordering::Acquire)
        }

        /// Sleeps until called, or for as long as `limit` says.
        pub fn sleep(&self, berth: usize, epoch: u32, limit: Option<Duration>) {
            let Some(mask) = NonZeroU32::new(1 << (berth % WORD)) else {
                return;
            };
            let until = limit.and_then(|limit| {
                let now = clock_gettime(ClockId::Monotonic);
                // Beyond the clock's range is as good as for ever.
                now.checked_add(Timespec::try_from(limit).ok()?)
            });
            // A failure says that the epoch has changed, that time is up or that a signal came.
            let _ = wait_bitset(
                &self.epochs[berth / WORD],
                Flags::PRIVATE,
                epoch,
                until.as_ref(),
                mask,
            );
        }

        /// Calls a set of berths, one bit each: one system call for each half that is not empty.
        pub fn wake(&self, berths: u64) {
            for (word, epoch) in self.epochs.iter().enumerate() {
                if let Some(mask) = NonZeroU32::new((berths >> (word * WORD)) as u32) {
                    epoch.fetch_add(1, Ordering::Release);
                    // Fails for no reason that a correct address leaves.
                    let _ = wake_bitset(epoch, Flags::PRIVATE, WORD as u32, mask);
                }
            }
        }
    }
}

/// The same by its contract.
#[cfg(loom)]
mod sleeping {
    use super::{AtomicU32, Condvar, Mutex, Ordering, lock};
    use std::time::Duration;

    #[derive(Debug)]
    pub struct Berths {
        epoch: AtomicU32,
        /// The kernel's queue.
        asleep: Mutex<u64>,
        called: Condvar,
    }

    impl Default for Berths {
        fn default() -> Self {
            Self {
                epoch: AtomicU32::new(0),
                asleep: Mutex::new(0),
                called: Condvar::new(),
            }
        }
    }

    impl Berths {
        pub fn epoch(&self, _berth: usize) -> u32 {
            self.epoch.load(Ordering::Acquire)
        }

        pub fn sleep(&self, berth: usize, epoch: u32, _limit: Option<Duration>) {
            let mut asleep = lock(&self.asleep);
            // As in the kernel: it is compared once, and then only a call to this berth counts.
            if self.epoch.load(Ordering::Acquire) != epoch {
                return;
            }
            *asleep |= 1 << berth;
            while *asleep & (1 << berth) != 0 {
                asleep = self
                    .called
                    .wait(asleep)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
        }

        pub fn wake(&self, berths: u64) {
            self.epoch.fetch_add(1, Ordering::Release);
            *lock(&self.asleep) &= !berths;
            self.called.notify_all();
        }
    }
}

/// A place to watch a stream from, if it can be watched; in models nobody watches real ones.
pub fn lookout(stream: &crate::transport::Stream) -> Option<Lookout> {
    #[cfg(not(loom))]
    return stream.lookout();
    #[cfg(loom)]
    return stream.lookout().and(None);
}

/// A stream's lookout by its contract.
#[cfg(loom)]
mod watching {
    use super::{Condvar, Mutex, lock};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[derive(Debug, Default)]
    pub struct Lookout {
        state: Mutex<State>,
        changed: Condvar,
    }

    #[derive(Debug, Default)]
    struct State {
        looks: bool,
        readable: bool,
        called: bool,
    }

    /// Not for loom: whether any interleaving of any model came there.
    static WATCHED: AtomicBool = AtomicBool::new(false);

    impl Lookout {
        pub fn was_watched_from() -> bool {
            WATCHED.load(Ordering::Relaxed)
        }

        pub fn open(&self) -> bool {
            true
        }

        pub fn look(&self, whether: bool) {
            self.change(|state| state.looks = whether);
        }

        pub fn call(&self) {
            self.change(|state| state.called = true);
        }

        /// Whether the stream has something now.
        pub fn show(&self, readable: bool) {
            self.change(|state| state.readable = readable);
        }

        fn change(&self, how: impl FnOnce(&mut State)) {
            how(&mut lock(&self.state));
            self.changed.notify_all();
        }

        pub fn watch(&self, _limit: Duration) {
            WATCHED.store(true, Ordering::Relaxed);
            let mut state = lock(&self.state);
            while !(state.called || state.looks && state.readable) {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            state.called = false;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::{Duration, Instant};

    /// In both halves and at their edges: who is called wakes, and nobody else.
    #[test]
    fn a_call_wakes_the_berths_that_it_names() {
        let (berths, called, awake) = (Berths::default(), AtomicU64::new(0), AtomicU64::new(0));
        // Nobody sleeps for ever: the test would hang where it should fail.
        let (patience, at_last) = (Duration::from_secs(10), Duration::from_secs(30));
        let start = Instant::now();
        let sleep = |berth: usize| {
            while start.elapsed() < at_last {
                let epoch = berths.epoch(berth);
                if called.load(Ordering::Acquire) & (1 << berth) != 0 {
                    break;
                }
                berths.sleep(berth, epoch, Some(at_last));
            }
            awake.fetch_or(1 << berth, Ordering::AcqRel);
        };
        let until_awake = |berths: u64| {
            let start = Instant::now();
            while awake.load(Ordering::Acquire) != berths {
                assert!(start.elapsed() < patience, "nobody woke");
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            for berth in [0, 31, 32, 63] {
                let sleep = &sleep;
                scope.spawn(move || sleep(berth));
            }
            let mut all = 0;
            for call in [1 << 0, 1 << 63, 1 << 31 | 1 << 32] {
                all |= call;
                called.store(all, Ordering::Release);
                berths.wake(call);
                until_awake(all);
            }
        });
    }

    #[test]
    fn a_sleep_ends_when_its_time_is_up() {
        let berths = Berths::default();
        let limit = Duration::from_millis(5);
        let start = Instant::now();
        // It may end early for no reason, so it says nothing by itself.
        while start.elapsed() < limit {
            berths.sleep(40, berths.epoch(40), Some(limit));
        }
    }
}
