// SPDX-License-Identifier: BSD-3-Clause
//! A place from which to see that a stream has something, while others may receive from it.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::OnceCell;
use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create, modify, wait};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::Doorbell;

const STREAM: EventData = EventData::new_u64(0);
const BELL: EventData = EventData::new_u64(1);

/// Watches a stream that others receive from. It can be told not to look while they do: unlike
/// `poll`, it then is not woken by what they receive.
#[derive(Debug)]
pub struct Lookout {
    stream: Arc<OwnedFd>,
    /// Made when it is first needed: most streams never have one. None if the system has no more.
    place: OnceCell<Option<Place>>,
}

#[derive(Debug)]
struct Place {
    epoll: OwnedFd,
    bell: Doorbell,
}

impl Lookout {
    pub(super) fn new(stream: Arc<OwnedFd>) -> Self {
        Self {
            stream,
            place: OnceCell::new(),
        }
    }

    /// Makes it usable. False if it cannot be.
    pub fn open(&self) -> bool {
        let place = self.place.get_or_init(|| self.make().ok());
        place.is_some()
    }

    fn make(&self) -> Result<Place, Errno> {
        let bell = Doorbell::new().map_err(|_| Errno::MFILE)?;
        let epoll = create(CreateFlags::CLOEXEC)?;
        add(&epoll, &bell.fd, BELL, EventFlags::IN)?;
        add(&epoll, &self.stream, STREAM, EventFlags::empty())?;
        Ok(Place { epoll, bell })
    }

    /// Looks at the stream from now on, or no longer. What is there already is seen, too.
    pub fn look(&self, whether: bool) {
        if let Some(Some(place)) = self.place.get() {
            let events = match whether {
                true => EventFlags::IN,
                false => EventFlags::empty(),
            };
            // Fails for no reason that valid descriptors leave.
            let _ = modify(&place.epoll, &self.stream, STREAM, events);
        }
    }

    /// Calls whoever watches, now or the next time.
    pub fn call(&self) {
        if let Some(Some(place)) = self.place.get() {
            place.bell.ring();
        }
    }

    /// Watches until something is seen, or until called, or for as long as `limit` says. May end for
    /// no reason.
    pub fn watch(&self, limit: Duration) {
        let Some(Some(place)) = self.place.get() else {
            return;
        };
        let mut events = [MaybeUninit::uninit(); 2];
        let limit = Timespec::try_from(limit).ok();
        // Fails for no reason but a signal.
        let seen = wait(&place.epoll, &mut events, limit.as_ref());
        if seen.is_ok_and(|(seen, _)| seen.iter().any(|event| { event.data } == BELL)) {
            place.bell.quieten();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::transport::unix::pair;
    use std::io::IoSlice;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_watch_ends_for_what_is_there_for_a_call_and_in_time() {
        let (stream, peer) = pair();
        let lookout = stream.lookout().expect("no TLS");
        assert!(lookout.open());
        lookout.call();
        lookout.watch(LONG);
        peer.send(&[IoSlice::new(&[1])]).expect("sent");
        // The call is answered and nobody looks, so only time ends this.
        lookout.watch(Duration::from_millis(5));
        lookout.look(true);
        lookout.watch(LONG);
        // What is there counts also for who begins to look later.
        lookout.look(false);
        lookout.look(true);
        lookout.watch(LONG);
    }
}
