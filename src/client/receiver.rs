//! Receiving replies: what the holder of the reading role does.
//!
//! One buffer takes in as much as a single receive yields, usually many small replies at once.
//! Headers and small payloads are copied from it to where they belong. The rest of a large payload
//! is received straight into the caller's buffer; and while large reads are in flight only a
//! header's worth is asked for, so that little of their payload passes through here.

use std::io::IoSliceMut;

use super::connection::Flight;
use super::error::Cause;
use super::inflight::{Inflight, SlotSet};
use crate::proto::Violation;
use crate::proto::chunks::{MAX_TAKE, Step};
use crate::proto::consts::Command;
use crate::proto::reply::{Decoded, decode};
use crate::proto::request::Cookie;
use crate::transport::{Blocking, Error, Stream};

/// Size of the receive buffer, bytes: a dozen and more replies of 4 KiB.
const BUFFER: usize = 128 * 1024;
/// Least part of a payload, bytes, that is received directly rather than through the buffer.
pub const LARGE: u32 = 16 * 1024;
/// Bytes asked for at once while large reads are in flight.
const SIP: usize = 512;

// The largest piece that must be contiguous fits the buffer, and also one sip more.
const _: () = assert!(MAX_TAKE + SIP <= BUFFER);

/// The state between receives.
#[derive(Debug)]
pub struct Receiver {
    buffer: Box<[u8]>,
    /// Received and not yet used: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// The request in the middle of whose reply the stream stands.
    current: Option<Cookie>,
    structured: bool,
    /// A round is under way or did not come to its end.
    torn: bool,
}

/// What a receiver works on.
#[derive(Clone, Copy)]
pub struct Wire<'a> {
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

impl Receiver {
    /// Nothing received yet. `structured` tells whether structured replies were agreed.
    pub fn new(structured: bool) -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            current: None,
            structured,
            torn: false,
        }
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

    /// Receives once; false if nothing was there.
    fn receive(&mut self, wire: Wire<'_>, blocking: Blocking) -> Result<bool, Cause> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if let Some(cookie) = self.current {
                let direct = wire.inflight.with_cookie(cookie, |_, flight| {
                    self.receive_payload(wire, blocking, flight)
                });
                if let Some(Some(received)) = direct {
                    return Ok(received?);
                }
            }
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.appetite(wire);
        let received = wire
            .stream
            .receive(&mut self.buffer[self.end..][..room], blocking)?;
        self.end += received.unwrap_or(0);
        Ok(received.is_some())
    }

    /// How many bytes to ask for.
    fn appetite(&self, wire: Wire<'_>) -> usize {
        let free = self.buffer.len() - self.end;
        if wire.large_reads {
            // What is buffered may be the beginning of a piece that must be contiguous.
            free.min(if self.end > 0 { SIP + MAX_TAKE } else { SIP })
        } else {
            free
        }
    }

    /// Receives into the caller's buffer where a large piece of payload is due; `None` where not.
    /// What comes behind it spills into the receive buffer.
    fn receive_payload(
        &mut self,
        wire: Wire<'_>,
        blocking: Blocking,
        flight: &mut Flight,
    ) -> Option<Result<bool, Error>> {
        let Step::Fill { at, len } = flight.reply.step() else {
            return None;
        };
        if len < LARGE {
            return None;
        }
        let room = self.appetite(wire);
        let target = flight
            .loan
            .target()
            .get_mut(at as usize..)?
            .get_mut(..len as usize)?;
        let mut pieces = [
            IoSliceMut::new(target),
            IoSliceMut::new(&mut self.buffer[..room]),
        ];
        Some(
            wire.stream
                .receive_vectored(&mut pieces, blocking)
                .map(|received| {
                    let got = received.unwrap_or(0);
                    let direct = got.min(len as usize);
                    self.end = got - direct;
                    if direct > 0 {
                        flight.reply.moved(direct as u32);
                    }
                    received.is_some()
                }),
        )
    }

    /// Uses up the buffer as far as it goes.
    fn digest(&mut self, wire: Wire<'_>, over: &mut SlotSet) -> Result<(), Cause> {
        loop {
            let header = match self.current {
                Some(_) => None,
                None => match decode(&self.buffer[self.start..self.end], self.structured)? {
                    Decoded::Need => return Ok(()),
                    Decoded::Header(header, used) => {
                        self.start += used;
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
                    log::trace!(
                        "{} cookie 0x{:x}: {header:?}",
                        flight.reply.request(),
                        cookie.0
                    );
                    flight.reply.begin(header, self.structured)?;
                }
                let pause = self.feed(flight)?;
                if flight.reply.step() == Step::Done {
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

/// The part of a caller's buffer that a step names. The reply machine checked the range against
/// the request, and the request's length is the buffer's; should that ever fail, no byte is
/// written and the connection ends.
fn room(target: &mut [u8], at: u32, len: u32) -> Result<&mut [u8], Violation> {
    target
        .get_mut(at as usize..)
        .and_then(|rest| rest.get_mut(..len as usize))
        .ok_or(Violation::Misfit(Command::READ))
}
