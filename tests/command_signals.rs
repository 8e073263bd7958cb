// SPDX-License-Identifier: BSD-3-Clause
//! The signals of the process that waits for a server to end. One test, which has a process for itself.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbdkit_nbd_plugin::transport::command::Child;

static HEARD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn hear(_: libc::c_int) {
    HEARD.fetch_add(1, Ordering::Relaxed);
}

/// What happens at a signal: handler, flags, and whether SIGHUP is blocked meanwhile.
fn disposition(signal: libc::c_int) -> (usize, libc::c_int, bool) {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks only, and fills in what it is given.
    let asked = unsafe { libc::sigaction(signal, null_mut(), action.as_mut_ptr()) };
    assert_eq!(asked, 0);
    // SAFETY: filled in.
    let action = unsafe { action.assume_init() };
    // SAFETY: the set is valid.
    let blocks = unsafe { libc::sigismember(&action.sa_mask, libc::SIGHUP) };
    (action.sa_sigaction, action.sa_flags, blocks == 1)
}

/// As nbdkit does, but with a mask, so that a difference would show.
fn handle(signal: libc::c_int) {
    // SAFETY: all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = hear as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the set is valid.
    unsafe { libc::sigaddset(&mut action.sa_mask, libc::SIGHUP) };
    // SAFETY: the handler touches one atomic.
    assert_eq!(unsafe { libc::sigaction(signal, &action, null_mut()) }, 0);
}

#[test]
fn handlers_are_ours_for_the_wait_only() {
    const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];
    SIGNALS.into_iter().for_each(handle);
    let before = SIGNALS.map(disposition);

    let place = tempfile::tempdir().expect("temporary directory");
    let asked = place.path().join("asked");
    let script = format!(
        "trap 'echo yes > {}' TERM; echo yes > {}; while :; do sleep 0.1; done",
        asked.display(),
        place.path().join("ready").display()
    );
    let argv = ["/bin/sh", "-c", &script].map(OsString::from);
    let child = Child::start(&argv, None, false).expect("a shell");
    child.after_fork().expect("a thread");
    assert_eq!(SIGNALS.map(disposition), before);
    let ready = place.path().join("ready");
    let limit = Instant::now() + Duration::from_secs(20);
    while !ready.exists() {
        assert!(Instant::now() < limit);
        thread::yield_now();
    }

    // A signal that a thread of its own gets: it need not be the one that waits.
    let impatient = thread::spawn(move || {
        while !asked.exists() {
            assert!(Instant::now() < limit);
            thread::yield_now();
        }
        assert_ne!(disposition(libc::SIGTERM).0, hear as *const () as usize);
        while disposition(libc::SIGTERM).0 != hear as *const () as usize {
            assert!(Instant::now() < limit, "the signals do not end the wait");
            // SAFETY: takes a plain number.
            unsafe { libc::raise(libc::SIGTERM) };
            thread::sleep(Duration::from_millis(20));
        }
    });
    child.end();
    assert_eq!(SIGNALS.map(disposition), before);
    impatient.join().expect("no panic");
    let obituary = child.obituary().expect("an end");
    assert!(obituary.contains("killed by signal 9"), "{obituary}");
    // At most the last one came too late for the wait.
    let heard = HEARD.load(Ordering::Relaxed);
    assert!(heard <= 1, "{heard}");

    // The handlers work as before.
    // SAFETY: takes a plain number.
    unsafe { libc::raise(libc::SIGTERM) };
    assert_eq!(HEARD.load(Ordering::Relaxed), heard + 1);
    child.end();
}
