// SPDX-License-Identifier: BSD-3-Clause
//! A bell for a thread that waits for a stream.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::Error;

/// Wakes a thread that waits for a stream, from another thread.
#[derive(Debug)]
pub struct Doorbell {
    pub(super) fd: OwnedFd,
}

impl Doorbell {
    /// A bell that has not rung.
    pub fn new() -> Result<Self, Error> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).map_err(Error::io("eventfd"))?;
        Ok(Self { fd })
    }

    /// Wakes whoever waits, now or the next time.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then the bell is already ringing.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Lets it be silent until it is rung again.
    pub fn quieten(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
