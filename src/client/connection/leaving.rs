// SPDX-License-Identifier: BSD-3-Clause
//! How a connection is left: in good order, softly, or to be buried.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Cause, Connection, Lost};
use crate::client::loan::Buffer;
use crate::proto::consts::Command;
use crate::proto::request::{Cookie, Request};
use crate::transport::{self, Blocking, Deadline};

/// How long a server that is going away may take to close its side.
const COURTESY: Duration = Duration::from_millis(500);

/// How soon it is looked again whether a connection that nobody waits for has come to rest.
const AWAIT_IDLE: Duration = Duration::from_millis(2);

/// How soon it is asked again whether a connection is still to be buried.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Connection {
    /// What is in flight may be answered until then, and no longer. The first one counts.
    pub fn give_grace(&self, until: Deadline) {
        self.lock_grace().get_or_insert(until);
    }

    /// Until when what is in flight may be answered, if nobody wants more of the connection.
    pub fn grace(&self) -> Option<Deadline> {
        *self.lock_grace()
    }

    pub(super) fn lock_grace(&self) -> MutexGuard<'_, Option<Deadline>> {
        self.grace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says goodbye and waits until the server has closed its side, or until the deadline. No
    /// request may be in flight.
    pub fn close(&self, deadline: Deadline) {
        if self.lost.get().is_some() {
            return;
        }
        // spec: Terminating the transmission phase: SHOULD: nothing is in flight when NBD_CMD_DISC is sent
        self.say_goodbye(deadline);
        let mut scrap = [0; 4096];
        let ended = loop {
            match self.stream.wait(true, false, None, deadline) {
                Ok(ready) if ready.expired => break deadline.passed(),
                Ok(_) => (),
                Err(error) => break error,
            }
            // A server that never stops sending is cut off by the deadline, too.
            match self.stream.receive(&mut scrap, Blocking::No) {
                Ok(_) if deadline.has_passed() => break deadline.passed(),
                Ok(_) => (),
                Err(error) => break error,
            }
        };
        match ended {
            transport::Error::Closed => log::debug!("{}: disconnected", self.server),
            error => log::debug!("{}: disconnect: {error}", self.server),
        }
        self.stream.hang_up();
    }

    /// Nothing new is sent from now on, since another connection is to take its place. What its end is
    /// for whoever asks.
    pub fn replace(&self) -> Arc<Lost> {
        let replaced = || Arc::new(Lost::new(self.server.clone(), Cause::Replaced));
        self.closing.get_or_init(replaced).clone()
    }

    /// Leaves for a server that said that it is going away: once what is in flight was answered,
    /// after a flush if that is wanted, and all before the deadline. Whether the flush was good, if
    /// it was wanted. What is still in flight then ends with the connection.
    pub fn retire(&self, flush: bool, deadline: Deadline, goes_on: impl Fn() -> bool) -> bool {
        self.await_idle(deadline, &goes_on);
        let mut good = true;
        if flush {
            let request = Request::new(Command::FLUSH, 0, 0_u32);
            let answer = self.carry_out(request, &mut Buffer::None, &deadline, true);
            if let Err(error) = &answer {
                log::debug!("{error}");
            }
            good = answer.is_ok();
        }
        match self.is_idle() {
            // All is answered: that the server closes its side, too, is a courtesy.
            true => self.close(deadline.within(COURTESY)),
            // What is in flight will not be answered any more, and nobody looks after it from now on.
            false => self.fail(Cause::Announced),
        }
        good
    }

    /// Sees a connection to its end that was given up. A server may go on carrying out what it has
    /// received, so it is waited for until it has closed its side, or until the deadline. Then it is
    /// closed, and what was sent over it will not be carried out later.
    pub fn bury(&self, deadline: Deadline, goes_on: impl Fn() -> bool) {
        self.stream.finish_sending();
        self.await_idle(deadline, &goes_on);
        // Nobody else may take what comes for an answer. Who has just been told that its request is over
        // may not have given the role back yet.
        let mut role = self.inflight.try_read();
        while role.is_none() && self.is_idle() && goes_on() && !deadline.has_passed() {
            std::thread::sleep(AWAIT_IDLE);
            role = self.inflight.try_read();
        }
        let may_go_on = || role.is_some() && goes_on() && !deadline.has_passed();
        while may_go_on() && !self.stream.discard(deadline.within(LOOK_AGAIN)) {}
        self.stream.hang_up();
    }

    /// Waits until nothing is in flight.
    fn await_idle(&self, deadline: Deadline, goes_on: &impl Fn() -> bool) {
        come_to_rest(deadline, || self.is_idle() || !goes_on());
    }

    /// Sends `NBD_CMD_DISC`, which has no reply, and nothing after it. No request may be in flight.
    pub fn say_goodbye(&self, deadline: Deadline) {
        if self.disconnected.swap(true, Ordering::AcqRel) {
            return;
        }
        let goodbye = Request::new(Command::DISC, 0, 0_u32).encode(Cookie(0), self.framing);
        if let Err(error) = self.stream.send_all(goodbye.bytes(), deadline) {
            log::debug!("{}: NBD_CMD_DISC: {error}", self.server);
        }
        // spec: Request types: MUST NOT: nothing is sent after NBD_CMD_DISC
        // spec: Terminating the transmission phase: SHOULD: TLS is ended before the connection is
        self.stream.finish_sending();
    }
}

/// Waits until that is so, or until the deadline. Those who could tell have other things to do than to
/// tell somebody whom it is of interest to once in a long time.
pub fn come_to_rest(deadline: Deadline, is_so: impl Fn() -> bool) {
    while !is_so() && !deadline.has_passed() {
        let pause = deadline.within(AWAIT_IDLE).remaining();
        std::thread::sleep(pause.unwrap_or(AWAIT_IDLE));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::client::connection::Patience;
    use crate::proto::consts::TransmissionFlags;
    use crate::proto::export::Export;
    use crate::proto::framing::Framing;
    use crate::transport::unix;

    #[test]
    fn who_looks_again_does_not_hang_up_on_a_server_that_is_to_be_waited_for() {
        let (ours, theirs) = unix::pair();
        let export = Export::new(1 << 20, TransmissionFlags::HAS_FLAGS, Framing::Simple);
        let patience = Patience {
            lasting: true,
            ..Patience::default()
        };
        let connection =
            Connection::new("it".into(), ours, &export, patience, Arc::default(), None);
        let connection = connection.expect("a connection");
        let no_reply = [0xee; 16];
        for _ in 0..3 {
            let sent = theirs.send(&[IoSlice::new(&no_reply)]);
            assert_eq!(sent, Ok(Some(16)), "the plugin still takes it");
            assert!(connection.is_over());
        }
        let lost = connection.loss().expect("a loss");
        assert!(matches!(lost.cause(), Cause::Violation(_)), "{lost}");
        // It has said that it sends nothing more, and throws away what comes until the server says so, too.
        theirs.finish_sending();
        connection.bury(Deadline::NEVER, || true);
        let closed = theirs.send(&[IoSlice::new(&no_reply)]);
        assert!(closed.is_err(), "{closed:?}");
    }
}
