// SPDX-License-Identifier: BSD-3-Clause
//! Memory for what passes through a connection.
//!
//! A buffer of the heap stays with the process when it is given back, in the arena of the thread
//! that happened to take it, and with nbdkit that is another thread for each client. These pages come
//! from the system when they are first used, and go back there. So the size may be what the worst
//! case needs: what is not used costs nothing.

use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};
use rustix::io::Errno;

use super::Error;

/// A buffer, zero at first.
#[derive(Debug)]
pub struct Pages(MmapMut);

impl Pages {
    /// So many bytes, not 0. Fails where the system has no room for them in its books, or the
    /// process has none left in its address space.
    pub fn new(len: usize) -> Result<Self, Error> {
        let pages = MmapMut::map_anon(len).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::NOMEM);
            Error::io("mmap")(errno)
        })?;
        // Or the kernel might see to a few bytes with 2 MiB: buffers lie side by side. Where it has no
        // such pages it says so.
        let _ = pages.advise(Advice::NoHugePage);
        Ok(Self(pages))
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_and_can_be_written() {
        let mut pages = Pages::new(10_000).expect("map memory");
        assert_eq!(*pages, [0; 10_000]);
        pages[9_999] = 1;
        assert_eq!(pages[9_998..], [0, 1]);
    }

    // Where addresses are shorter the system may have as much as can be asked for.
    #[cfg(target_pointer_width = "64")]
    #[test]
    fn what_the_system_does_not_have_is_an_error() {
        let error = Pages::new(isize::MAX as usize).expect_err("no machine has that");
        assert_eq!(error, Error::io("mmap")(Errno::NOMEM));
    }
}
