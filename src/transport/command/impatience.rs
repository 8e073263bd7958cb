// SPDX-License-Identifier: BSD-3-Clause
//! Whether the user has lost patience: a signal to end that comes while a server is being waited for.
//!
//! nbdkit handles `SIGTERM` and `SIGINT` by noting that it has to end. While it does end that is no
//! news, so for the time of the wait the signals get a handler of ours, and their own one back
//! afterwards. Which of nbdkit's threads a signal reaches makes no difference: the handler sets a
//! flag, at which the one who waits looks now and then.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::launch::last_error;

/// Signals that say that it takes too long.
const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// Whether one of them came.
static CAME: AtomicBool = AtomicBool::new(false);

/// The process whose signals say something else; -1 for none.
static MESSENGER: AtomicI32 = AtomicI32::new(-1);

/// Those who wait at the moment, and what the handlers were before. More than one wait only in
/// tests, where several servers live in one process.
static WAITING: Mutex<(usize, [Option<libc::sigaction>; SIGNALS.len()])> =
    Mutex::new((0, [None; SIGNALS.len()]));

/// Listens to signals until it is dropped.
#[derive(Debug)]
pub struct Impatience(());

impl Impatience {
    /// Listens, but not to `messenger`. nbdkit that runs the command of `--run` is one: it says once
    /// that the command has ended, which may well be after the terminal has interrupted all of them.
    pub fn listen(messenger: Option<i32>) -> Self {
        let mut waiting = waiting();
        let (count, before) = &mut *waiting;
        if *count == 0 {
            MESSENGER.store(messenger.unwrap_or(-1), Ordering::Relaxed);
            CAME.store(false, Ordering::Relaxed);
            for (signal, before) in SIGNALS.into_iter().zip(before) {
                // Without a handler there is no second way out, and the first one still works.
                *before = handle(signal, &ours()).ok();
            }
        }
        *count += 1;
        Self(())
    }

    /// Whether somebody has lost patience since [`Impatience::forget`].
    pub fn is_over(&self) -> bool {
        CAME.load(Ordering::Relaxed)
    }

    /// What came until now does not count.
    pub fn forget(&self) {
        CAME.store(false, Ordering::Relaxed);
    }
}

impl Drop for Impatience {
    fn drop(&mut self) {
        let mut waiting = waiting();
        let (count, before) = &mut *waiting;
        *count -= 1;
        if *count == 0 {
            for (signal, before) in SIGNALS.into_iter().zip(before) {
                if let Some(before) = before.take() {
                    // It was in force before, so it cannot be refused.
                    let _ = handle(signal, &before);
                }
            }
        }
    }
}

fn waiting() -> MutexGuard<'static, (usize, [Option<libc::sigaction>; SIGNALS.len()])> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Only touches atomics and what it was given, as befits a handler.
extern "C" fn note(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: SA_SIGINFO promises a valid pointer.
    let info = unsafe { &*info };
    // SAFETY: signals that a process sent have this field, and for others it is a number as well.
    let sender = unsafe { info.si_pid() };
    if sender != MESSENGER.load(Ordering::Relaxed) {
        CAME.store(true, Ordering::Relaxed);
    }
}

fn ours() -> libc::sigaction {
    // SAFETY: all zeroes is a valid value of this plain C structure, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = note as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    action
}

/// Sets what happens at a signal, and returns what would have happened.
fn handle(signal: libc::c_int, action: &libc::sigaction) -> Result<libc::sigaction, Errno> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: both are valid for the call, and the handler is one that may run at any time.
    match unsafe { libc::sigaction(signal, action, before.as_mut_ptr()) } {
        // SAFETY: success fills it in.
        0 => Ok(unsafe { before.assume_init() }),
        _ => Err(last_error()),
    }
}
