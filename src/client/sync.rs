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

pub use self::sleeping::{Sleeper, Waker, sleeper};

/// Locks, also after a panic elsewhere: what a panic interrupts is a connection, and the panic
/// guard declares that dead before anyone else looks at the protected data.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sleep of one thread, with a token: a wake-up that comes first makes the next sleep return at
/// once. A sleep may also end for no reason.
#[cfg(not(loom))]
mod sleeping {
    use std::marker::PhantomData;
    use std::thread::{Thread, current, park, park_timeout};
    use std::time::Duration;

    /// The right to sleep; stays on its thread.
    #[derive(Debug)]
    pub struct Sleeper(PhantomData<*const ()>);

    /// Wakes the thread that made it.
    #[derive(Clone, Debug)]
    pub struct Waker(Thread);

    /// Both for the current thread.
    pub fn sleeper() -> (Sleeper, Waker) {
        (Sleeper(PhantomData), Waker(current()))
    }

    impl Sleeper {
        /// Sleeps until woken, or for as long as `limit` says.
        pub fn sleep(&self, limit: Option<Duration>) {
            match limit {
                None => park(),
                Some(limit) => park_timeout(limit),
            }
        }
    }

    impl Waker {
        /// Ends the sleep, or the next one.
        pub fn wake(&self) {
            self.0.unpark();
        }
    }
}

/// The same by its contract. loom's own `park` mistakes other blocking for parking, so it is built
/// from a lock and a condition here.
#[cfg(loom)]
mod sleeping {
    use super::{Condvar, Mutex, lock};
    use loom::sync::Arc;
    use std::time::Duration;

    #[derive(Debug)]
    pub struct Sleeper(Arc<(Mutex<bool>, Condvar)>);

    #[derive(Clone, Debug)]
    pub struct Waker(Arc<(Mutex<bool>, Condvar)>);

    pub fn sleeper() -> (Sleeper, Waker) {
        let token = Arc::new((Mutex::new(false), Condvar::new()));
        (Sleeper(token.clone()), Waker(token))
    }

    impl Sleeper {
        pub fn sleep(&self, _limit: Option<Duration>) {
            let mut token = lock(&self.0.0);
            while !*token {
                token = self
                    .0
                    .1
                    .wait(token)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            *token = false;
        }
    }

    impl Waker {
        pub fn wake(&self) {
            *lock(&self.0.0) = true;
            self.0.1.notify_one();
        }
    }
}
