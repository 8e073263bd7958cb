// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit's way with parameter values.

use std::ffi::{CStr, OsString, c_char};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::{Zeroize, Zeroizing};

use super::sys;

/// Makes a path absolute against the directory in which the user started nbdkit, since nbdkit
/// changes to `/` in the background. `None` if nbdkit refused it, with its own message.
pub fn absolute_path(path: &CStr) -> Option<PathBuf> {
    // SAFETY: a terminated string; the result is new memory or null.
    let absolute = unsafe { sys::nbdkit_absolute_path(path.as_ptr()) };
    if absolute.is_null() {
        return None;
    }
    // SAFETY: not null, so a terminated string.
    let bytes = unsafe { CStr::from_ptr(absolute) }.to_bytes().to_vec();
    // SAFETY: nbdkit allocated it with malloc for us to free, and nothing refers to it any more.
    unsafe { libc::free(absolute.cast()) };
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// The password that a value gives in one of nbdkit's ways: itself, `-` to ask on the terminal,
/// `+FILE`, or `-FD`. `None` if nbdkit refused it, with its own message.
pub fn password(value: &CStr) -> Option<Zeroizing<Vec<u8>>> {
    let mut password: *mut c_char = null_mut();
    // SAFETY: a terminated string, and a place for the result that outlives the call.
    let result = unsafe { sys::nbdkit_read_password(value.as_ptr(), &raw mut password) };
    if result != 0 || password.is_null() {
        return None;
    }
    // SAFETY: not null, so a terminated string.
    let length = unsafe { CStr::from_ptr(password) }.count_bytes();
    // SAFETY: so many initialised bytes that nobody else knows of.
    let bytes = unsafe { std::slice::from_raw_parts_mut(password.cast::<u8>(), length) };
    let copy = Zeroizing::new(bytes.to_vec());
    bytes.zeroize();
    // SAFETY: nbdkit allocated it with malloc for us to free, and nothing refers to it any more.
    unsafe { libc::free(password.cast()) };
    Some(copy)
}

/// nbdkit has told the plugin of its end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Says whether nbdkit ends. It may do so without having been told to, when its one client has left
/// (`nbdkit -s`), and then its sleep goes on.
pub fn set_ending(ending: bool) {
    ENDING.store(ending, Ordering::Release);
}

/// nbdkit has forked, and its sleep can be used.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// nbdkit has forked for the last time.
pub fn note_fork() {
    RUNNING.store(true, Ordering::Release);
}

/// Whether standard input and output are not a client's (`nbdkit -s`). To be asked before `get_ready`
/// has ended.
#[must_use]
pub fn is_stdio_free() -> bool {
    // SAFETY: takes nothing.
    unsafe { sys::nbdkit_stdio_safe() == 1 }
}

fn is_ending() -> bool {
    ENDING.load(Ordering::Acquire)
}

/// Whether the client that this thread serves is still there, and nbdkit goes on; on a thread that
/// serves no client, whether nbdkit goes on. nbdkit has no question for that, but its sleep ends
/// early, with an error of nbdkit's own that everybody sees. So it is asked only where somebody has
/// waited for long. Before `after_fork` it cannot be asked, and the answer is yes.
#[must_use]
pub fn is_wanted() -> bool {
    // SAFETY: takes two numbers.
    let goes_on = || unsafe { sys::nbdkit_nanosleep(0, 1) == 0 };
    let running = RUNNING.load(Ordering::Acquire);
    !running || (!is_ending() && goes_on())
}

/// Whether the client of the running callback has TLS. nbdkit says so with a message of its own where
/// there is no client, and then the answer is no.
pub fn is_tls() -> bool {
    // SAFETY: reads a thread-local of nbdkit's.
    unsafe { sys::nbdkit_is_tls() == 1 }
}

/// The host of the client that this thread serves, as the bytes of its address without its port. `None`
/// where this nbdkit cannot tell, or has no client on this thread; then it may say so.
pub fn peer_host() -> Option<Box<[u8]>> {
    let mut host = [0; 32];
    // SAFETY: so many bytes to be written, and the result is how many were.
    let length = unsafe { sys::nbd_shim_peer_host(host.as_mut_ptr(), host.len()) };
    host.get(..length)
        .filter(|host| !host.is_empty())
        .map(Into::into)
}

/// Sleeps for a second. False if nbdkit, or the client that waits, ends before that; nbdkit has
/// said so then. Not to be called before `after_fork`: nbdkit's pipe that ends the sleep is made
/// after `get_ready`.
#[must_use]
pub fn sleep_a_second() -> bool {
    // SAFETY: takes two numbers.
    let slept = unsafe { sys::nbdkit_nanosleep(1, 0) == 0 };
    slept && !is_ending()
}
