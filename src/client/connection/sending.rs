// SPDX-License-Identifier: BSD-3-Clause
//! How requests are sent: by one thread at a time, which sends what others have posted, too.

use std::io::IoSlice;

use super::{Connection, Own};
use crate::client::error::Cause;
use crate::client::flight::Flight;
use crate::client::inflight::{LoadGuard, SlotSet};
use crate::client::outbox::{BATCH, Batch, Next};
use crate::transport::{self, Blocking, Deadline, PAUSE};

impl Connection {
    /// The duty of sending: this batch, and whatever gathers meanwhile.
    pub(super) fn send(&self, batch: Option<Batch>, own: Own<'_>) {
        let mut duty = Duty {
            connection: self,
            batch,
            held: true,
        };
        if duty.batch.is_none() {
            duty.next(own);
        }
        while let Some(batch) = &duty.batch {
            if let Err(error) = self.send_batch(batch, own) {
                self.fail(match error {
                    timeout @ transport::Error::Timeout(_) => {
                        Cause::Deadline(*own.request, timeout)
                    }
                    error => Cause::Transport(error),
                });
            }
            duty.next(own);
        }
    }

    fn send_batch(&self, batch: &Batch, own: Own<'_>) -> Result<(), transport::Error> {
        // Mostly it is one request, and all of it is sent at once.
        let mut sent = match batch.only().filter(|_| self.lost.get().is_none()) {
            Some(index) => match self.send_one(index)? {
                Some(sent) => sent,
                None => return Ok(()),
            },
            None => 0,
        };
        // Where each request ends, counted from the first byte of the batch.
        let mut ends = [0; BATCH];
        while self.lost.get().is_none() {
            // The locks are held for a send that does not block, and given up before a wait. What
            // was sent whole is left alone: it may be being answered.
            let mut loads = [const { None }; BATCH];
            let mut pieces = [(); 2 * BATCH].map(|()| IoSlice::new(&[]));
            let mut count = 0;
            let mut skip = sent;
            for (place, index) in batch.iter().enumerate() {
                if ends[place] == 0 || ends[place] > sent {
                    loads[place] = Some(self.inflight.load(index));
                } else {
                    skip = sent - ends[place];
                }
            }
            let mut end = sent - skip;
            for (place, load) in loads.iter().enumerate() {
                let Some(flight) = load.as_ref().and_then(LoadGuard::get) else {
                    continue;
                };
                for bytes in [flight.header.bytes(), flight.loan.source()] {
                    if !bytes.is_empty() {
                        pieces[count] = IoSlice::new(bytes);
                        count += 1;
                        end += bytes.len();
                    }
                }
                ends[place] = end;
            }
            let mut rest = &mut pieces[..count];
            IoSlice::advance_slices(&mut rest, skip);
            if self.stats.is_some() {
                let pending = loads.iter().flatten().filter_map(LoadGuard::get);
                pending.for_each(Flight::note_sent);
            }
            match self.stream.send(rest)? {
                Some(n) => sent += n,
                None => {
                    drop(loads);
                    self.wait_to_send(own)?;
                    continue;
                }
            }
            if sent == end {
                break;
            }
        }
        Ok(())
    }

    /// Sends what fits of a request. How much of it that was; `None` if it was all.
    fn send_one(&self, index: usize) -> Result<Option<usize>, transport::Error> {
        let load = self.inflight.load(index);
        let Some(flight) = load.get() else {
            return Ok(None);
        };
        let payload = flight.loan.source();
        let header = flight.header.bytes();
        let pieces = [IoSlice::new(header), IoSlice::new(payload)];
        let count = if payload.is_empty() { 1 } else { 2 };
        if self.stats.is_some() {
            flight.note_sent();
        }
        let sent = self.stream.send(&pieces[..count])?.unwrap_or(0);
        Ok((sent < header.len() + payload.len()).then_some(sent))
    }

    /// Waits until there is room to send, and sees to it that somebody receives meanwhile.
    fn wait_to_send(&self, own: Own<'_>) -> Result<(), transport::Error> {
        // Whose request is answered already has no deadline any more. Those whose requests are
        // sent here mind theirs themselves, and end the connection if need be.
        let deadline = match self.inflight.is_replied(own.index) {
            true => &Deadline::NEVER,
            false => own.deadline,
        };
        let pause = deadline.within(PAUSE);
        if let Some(mut role) = self.inflight.try_read_as_sender() {
            let ready = self.stream.wait(true, true, None, pause)?;
            if ready.readable {
                self.receive_once(&mut role, Blocking::No);
            }
        } else {
            let doorbell = self.inflight.doorbell();
            self.stream.wait(false, true, Some(doorbell), pause)?;
        }
        if self.inflight.is_to_look(own.index) {
            self.look();
        }
        if deadline.has_passed() && !self.inflight.is_replied(own.index) {
            return Err(deadline.passed());
        }
        Ok(())
    }
}

/// The duty of sending. Every request in a batch is marked as sent when the batch is given up, on
/// a lost connection and in a panic too: its owner waits for that.
struct Duty<'a> {
    connection: &'a Connection,
    batch: Option<Batch>,
    /// Neither passed on nor at its end.
    held: bool,
}

impl Duty<'_> {
    fn next(&mut self, own: Own<'_>) {
        let inflight = &self.connection.inflight;
        let mut wake = self.give_up_batch();
        let answered = inflight.is_replied(own.index);
        let pass = |waiting: &mut dyn Iterator<Item = usize>| match answered {
            true => inflight.pass_duty(waiting),
            false => None,
        };
        match self.connection.outbox.next(pass) {
            Next::Send(batch) => self.batch = Some(batch),
            Next::Passed(heir) => {
                self.held = false;
                wake |= heir;
            }
            Next::Leave => self.held = false,
        }
        inflight.wake(wake);
    }

    /// Marks all requests of the batch as sent. Returns whom to wake.
    fn give_up_batch(&mut self) -> SlotSet {
        let mut wake = 0;
        for index in self.batch.take().iter().flat_map(Batch::iter) {
            wake |= self.connection.inflight.sent(index);
        }
        wake
    }
}

impl Drop for Duty<'_> {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        // A panic. Nobody else will send what has gathered, and its owners must not wait for it.
        self.connection.fail(Cause::Panic);
        let mut wake = self.give_up_batch();
        while let Next::Send(batch) = self.connection.outbox.next(|_| None) {
            self.batch = Some(batch);
            wake |= self.give_up_batch();
        }
        self.connection.inflight.wake(wake);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::connection::Patience;
    use crate::proto::consts::TransmissionFlags;
    use crate::proto::export::Export;
    use crate::proto::framing::Framing;
    use crate::transport::Stream;
    use crate::transport::unix;

    /// A connection, and its server's end.
    fn connection() -> (Connection, Stream) {
        let (ours, theirs) = unix::pair();
        let export = Export::new(1 << 20, TransmissionFlags::HAS_FLAGS, Framing::Simple);
        let patience = Patience::default();
        let connection = Connection::new(
            "server".into(),
            ours,
            &export,
            patience,
            Arc::default(),
            None,
        );
        (connection.expect("a connection"), theirs)
    }

    #[test]
    fn a_panic_between_two_batches_does_not_lose_the_duty_of_sending() {
        let (connection, _server) = connection();
        assert!(connection.outbox.post(0, false).is_some());
        assert!(connection.outbox.post(1, false).is_none(), "0 is on duty");
        drop(Duty {
            connection: &connection,
            batch: None,
            held: true,
        });
        assert!(connection.is_gone(), "nobody sent the request of 1");
        assert!(connection.inflight.load(1).get().is_none());
        assert!(connection.outbox.post(2, false).is_some(), "free again");
    }
}
