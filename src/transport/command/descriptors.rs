// SPDX-License-Identifier: BSD-3-Clause
//! Which descriptors the keeper holds on to. Like all of the keeper's code, this allocates nothing and
//! cannot panic.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir, open};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::process::{Resource, getrlimit};

use super::launch::FIRST_SOCKET;

/// Where the list of descriptors cannot be read, no more are looked for.
const MANY: u64 = 1 << 20;

/// Bytes of the list at a time.
const PIECE: usize = 4096;

/// Closes all descriptors behind the standard three, but for `kept`; and, with `inherited`, but for
/// those that the program got from us because they outlive exec.
///
/// close_range would need a sorted list and a kernel since 5.9, and it cannot spare the inherited.
pub fn close_others(kept: &[RawFd], inherited: bool) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let goes = |fd: RawFd| {
        fd > libc::STDERR_FILENO && !kept.contains(&fd) && !(inherited && is_inherited(fd))
    };
    let Ok(list) = open(c"/proc/self/fd", flags, Mode::empty()) else {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(MANY);
        (0..most.min(MANY) as RawFd)
            .filter(|fd| goes(*fd))
            .for_each(close);
        return;
    };
    let mut room = [MaybeUninit::uninit(); PIECE];
    // The list goes by number, so it does not matter that it becomes shorter meanwhile.
    let mut entries = RawDir::new(&list, &mut room);
    while let Some(Ok(entry)) = entries.next() {
        match number(entry.file_name().to_bytes()) {
            Some(fd) if fd != list.as_raw_fd() && goes(fd) => close(fd),
            _ => (),
        }
    }
    // `list` is closed by its end.
}

/// Whether a program that this process becomes gets this descriptor. What lies under the number of
/// its socket, it does not.
fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: used for this one call, which fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fd > FIRST_SOCKET && fcntl_getfd(borrowed).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC))
}

/// The number that these digits stand for.
fn number(digits: &[u8]) -> Option<RawFd> {
    digits.iter().try_fold(0, |number: RawFd, digit| {
        let digit = RawFd::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn close(fd: RawFd) {
    // SAFETY: the keeper uses no descriptors but those that are left out.
    unsafe { libc::close(fd) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_in_decimal() {
        for (digits, fd) in [("0", 0), ("7", 7), ("1048576", 1 << 20)] {
            assert_eq!(number(digits.as_bytes()), Some(fd));
        }
        for text in [".", "..", "1x", "99999999999"] {
            assert_eq!(number(text.as_bytes()), None);
        }
    }

    #[test]
    fn what_outlives_exec_is_inherited() {
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let null = null.expect("open");
        assert!(!is_inherited(null.as_raw_fd()));
        rustix::io::fcntl_setfd(&null, FdFlags::empty()).expect("fcntl");
        assert_eq!(
            is_inherited(null.as_raw_fd()),
            null.as_raw_fd() > FIRST_SOCKET
        );
        assert!(!is_inherited(RawFd::MAX));
    }
}
