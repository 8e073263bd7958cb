// SPDX-License-Identifier: BSD-3-Clause
//! Signals, as the keeper takes them and as a server expects them. Like all of the keeper's code, this
//! allocates nothing and cannot panic.

use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Signals that nbdkit's whole process group may get. The keeper must outlive nbdkit.
const IGNORED: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Which of [`IGNORED`] were ignored before. A server that is started again is to find them as the
/// first one did.
#[derive(Clone, Copy, Debug)]
pub struct Before([bool; IGNORED.len()]);

/// nbdkit and its parents may block or ignore signals; a server expects neither.
pub fn reset() {
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: the default action is no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    block(&none());
}

/// From now on the keeper outlives what ends nbdkit, and the end of a child can interrupt a call that
/// has [`none`] blocked, and nothing else.
pub fn settle() -> Before {
    extern "C" fn nothing(_: libc::c_int) {}
    let before = IGNORED.map(|signal| {
        // SAFETY: to ignore a signal is no code of ours.
        let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
        before == libc::SIG_IGN
    });
    let mut children = none();
    // SAFETY: the set is a valid one.
    unsafe { libc::sigaddset(&mut children, libc::SIGCHLD) };
    block(&children);
    // SAFETY: the handler does nothing, which it may do at any time.
    unsafe { libc::signal(libc::SIGCHLD, nothing as *const () as libc::sighandler_t) };
    Before(before)
}

impl Before {
    /// In a child of the keeper: all signals are as the first server found them. It had handlers for
    /// none of them, as the program that a process becomes has not.
    pub fn restore(self) {
        for (signal, ignored) in IGNORED.into_iter().zip(self.0) {
            if !ignored {
                // SAFETY: the default action is no code of ours.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
        }
        reset();
    }
}

/// The set without any.
pub fn none() -> libc::sigset_t {
    let mut none = MaybeUninit::uninit();
    // SAFETY: fills in the set that it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: it was filled in.
    unsafe { none.assume_init() }
}

/// Blocks these signals and no others.
fn block(signals: &libc::sigset_t) {
    // SAFETY: the set is a valid one; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, signals, null_mut()) };
}
