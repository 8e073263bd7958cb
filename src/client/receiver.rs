// SPDX-License-Identifier: BSD-3-Clause
//! Receiving replies: what the holder of the reading role does.
//!
//! One buffer takes in as much as a single receive yields, usually many small replies at once.
//! Headers and small payloads are copied from it to where they belong. Where the buffer is used up
//! in the middle of a payload, the rest is received straight into the caller's buffer, and what
//! comes behind it, the next header at least, spills into this one. How much is asked for beyond
//! what is due is a question of what is likely to come: see `appetite.rs`.

mod appetite;
#[cfg(all(test, not(loom)))]
mod tests;

use std::io::IoSliceMut;
use std::ops::Range;

use super::error::Cause;
use super::flight::Flight;
use super::inflight::{Inflight, SlotSet};
use crate::proto::Violation;
use crate::proto::chunks::{MAX_TAKE, Step};
use crate::proto::consts::Command;
use crate::proto::framing::Framing;
use crate::proto::reply::{Decoded, Header, MAX_HEADER_LENGTH, decode};
use crate::proto::request::Cookie;
use crate::transport::{self, Blocking, Pages, Stream};
use appetite::Appetite;
pub use appetite::LARGE;

/// Size of the receive buffer, bytes: a dozen and more replies of 4 KiB.
const BUFFER: usize = 128 * 1024;

// Whatever must be contiguous fits the buffer.
const _: () = assert!(MAX_TAKE <= BUFFER && MAX_HEADER_LENGTH <= BUFFER);

/// The state between receives.
#[derive(Debug)]
pub struct Receiver {
    buffer: Pages,
    /// Received and not yet used: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// The request in the middle of whose reply the stream stands.
    current: Option<Cookie>,
    framing: Framing,
    appetite: Appetite,
    /// A round is under way or did not come to its end.
    torn: bool,
}

/// What a receiver works on.
#[derive(Clone, Copy)]
pub struct Wire<'a> {
    /// The server's name, for messages.
    pub server: &'a str,
    /// Where replies come from.
    pub stream: &'a Stream,
    /// Whose they are.
    pub inflight: &'a Inflight<Flight, Receiver>,
    /// Whether large reads are in flight.
    pub large_reads: bool,
}

/// Why using up the buffer stopped.
#[derive(PartialEq, Eq)]
enum Pause {
    /// More bytes are needed.
    Hungry,
    /// A reply or chunk ended; what follows is a header.
    Header,
}

/// How a receive goes on in the middle of a reply.
enum Next {
    /// So many bytes are due, into the buffer.
    Due(usize),
    /// It is done; true if that ended the payload.
    Received(bool),
}

impl Receiver {
    /// Nothing received yet.
    pub fn new(framing: Framing) -> Result<Self, transport::Error> {
        Ok(Self {
            buffer: Pages::new(BUFFER)?,
            start: 0,
            end: 0,
            current: None,
            framing,
            appetite: Appetite::new(),
            torn: false,
        })
    }

    /// Receives once and deals with all that came. Slots whose requests are over are added to
    /// `over`, to be woken by the caller.
    pub fn round(
        &mut self,
        wire: Wire<'_>,
        blocking: Blocking,
        over: &mut SlotSet,
    ) -> Result<(), Cause> {
        // Where a round did not come to its end, nobody knows what the next byte is: payload could be
        // taken for replies. An error has ended the connection already; so this was a panic.
        if std::mem::replace(&mut self.torn, true) {
            return Err(Cause::Panic);
        }
        if self.receive(wire, blocking)? {
            self.digest(wire, over)?;
        }
        self.torn = false;
        Ok(())
    }

    /// Receives once; false if that changed nothing in the buffer and ended nothing.
    fn receive(&mut self, wire: Wire<'_>, blocking: Blocking) -> Result<bool, Cause> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let due = match self.current {
            None => 0,
            Some(cookie) => match self.go_on(wire, blocking, cookie)? {
                Next::Due(bytes) => bytes,
                Next::Received(more) => return Ok(more),
            },
        };
        let spare = self.spare(wire, due);
        let received = wire.stream.receive(&mut self.buffer[spare], blocking)?;
        self.end += received.unwrap_or(0);
        Ok(received.is_some())
    }

    /// In the middle of a reply: receives payload, if that is due, else says how much is due that
    /// must pass through the buffer.
    fn go_on(&mut self, wire: Wire<'_>, blocking: Blocking, cookie: Cookie) -> Result<Next, Cause> {
        let next = wire.inflight.with_cookie(cookie, |_, flight| {
            Ok(Next::Due(match flight.reply.step() {
                // All that was buffered of it is where it belongs already.
                Step::Fill { at, len } if self.end == 0 => {
                    let received = self.receive_payload(wire, blocking, flight, at, len)?;
                    return Ok(Next::Received(received));
                }
                Step::Take(n) => n.saturating_sub(self.end),
                Step::Skip(len) => len as usize,
                Step::Fill { .. } | Step::Zero { .. } | Step::Header | Step::Done => 0,
            }))
        });
        next.unwrap_or(Ok(Next::Due(0)))
    }

    /// Receives payload into the caller's buffer, while this one is empty. What comes behind it
    /// spills into this one. True if the payload is complete.
    fn receive_payload(
        &mut self,
        wire: Wire<'_>,
        blocking: Blocking,
        flight: &mut Flight,
        at: u32,
        len: u32,
    ) -> Result<bool, Cause> {
        let spill = self.spare(wire, 0);
        let mut pieces = [
            IoSliceMut::new(room(flight.loan.target(), at, len)?),
            IoSliceMut::new(&mut self.buffer[spill]),
        ];
        let received = wire.stream.receive_vectored(&mut pieces, blocking)?;
        let got = received.unwrap_or(0);
        let direct = got.min(len as usize);
        self.end = got - direct;
        if direct > 0 {
            flight.reply.moved(direct as u32);
        }
        Ok(direct == len as usize)
    }

    /// Where in the buffer to receive, behind what is there, if so much is due.
    fn spare(&self, wire: Wire<'_>, due: usize) -> Range<usize> {
        let free = self.end..self.buffer.len();
        self.appetite.room(free, due, wire.large_reads)
    }

    /// Uses up the buffer as far as it goes.
    fn digest(&mut self, wire: Wire<'_>, over: &mut SlotSet) -> Result<(), Cause> {
        loop {
            let header = match self.current {
                Some(_) => None,
                None => match decode(&self.buffer[self.start..self.end], self.framing)? {
                    Decoded::Need => return Ok(()),
                    Decoded::Header(header, used) => {
                        self.start += used;
                        // Not under the slot's lock: whoever takes the log may be slow.
                        if log::log_enabled!(log::Level::Trace) {
                            tell(wire.server, header);
                        }
                        self.current = Some(header.cookie());
                        Some(header)
                    }
                },
            };
            let Some(cookie) = self.current else {
                return Ok(());
            };
            let paused = wire.inflight.with_cookie(cookie, |index, flight| {
                if let Some(header) = header {
                    flight.reply.begin(header, self.framing)?;
                    self.appetite.learn(header, flight.reply.request());
                }
                let pause = self.feed(flight)?;
                if flight.reply.step() == Step::Done {
                    if flight.is_timed() {
                        flight.note_answered();
                    }
                    *over |= wire.inflight.replied(index);
                }
                Ok::<_, Violation>(pause)
            });
            match paused.ok_or(Violation::Cookie(cookie.0))?? {
                Pause::Hungry => return Ok(()),
                Pause::Header => self.current = None,
            }
        }
    }

    /// Carries out the steps of one chunk as far as the buffer goes.
    fn feed(&mut self, flight: &mut Flight) -> Result<Pause, Violation> {
        loop {
            let buffered = &self.buffer[self.start..self.end];
            match flight.reply.step() {
                Step::Header | Step::Done => return Ok(Pause::Header),
                Step::Take(n) => {
                    let Some(bytes) = buffered.get(..n) else {
                        return Ok(Pause::Hungry);
                    };
                    flight.reply.taken(bytes)?;
                    self.start += n;
                }
                Step::Zero { at, len } => {
                    room(flight.loan.target(), at, len)?.fill(0);
                    flight.reply.moved(len);
                }
                Step::Fill { .. } | Step::Skip(_) if buffered.is_empty() => {
                    return Ok(Pause::Hungry);
                }
                Step::Fill { at, len } => {
                    let n = buffered.len().min(len as usize);
                    room(flight.loan.target(), at, n as u32)?.copy_from_slice(&buffered[..n]);
                    flight.reply.moved(n as u32);
                    self.start += n;
                }
                Step::Skip(len) => {
                    let n = buffered.len().min(len as usize);
                    flight.reply.moved(n as u32);
                    self.start += n;
                }
            }
        }
    }
}

/// Apart from its caller, which is the hot path: inlined, it costs that 60 instructions even when
/// nobody listens.
#[cold]
#[inline(never)]
fn tell(server: &str, header: Header) {
    log::trace!("{server}: {header}");
}

/// The part of a caller's buffer that a step names. The reply machine checked the range against
/// the request, and the request's length is the buffer's; should that ever fail, no byte is
/// written and the connection ends.
fn room(target: &mut [u8], at: u32, len: u32) -> Result<&mut [u8], Violation> {
    target
        .get_mut(at as usize..)
        .and_then(|rest| rest.get_mut(..len as usize))
        .ok_or(Violation::Misfit(Command::READ))
}
