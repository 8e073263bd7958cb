// SPDX-License-Identifier: BSD-3-Clause
//! One live connection: submitting requests, sending them, and what its end means for them.
//!
//! Reading and writing progress independently. A send never blocks while it holds anything that a
//! reader needs; a sender that must wait for room takes the reading role meanwhile if nobody has
//! it, because the server may be waiting for its replies to be drained.

mod leaving;
mod sending;

pub use self::leaving::come_to_rest;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use once_cell::sync::OnceCell;

use super::error::{Cause, Error, Lost, Server};
use super::flight::Flight;
use super::inflight::{Inflight, ReadingRole, Seen};
use super::loan::Buffer;
use super::manners::Manners;
use super::outbox::Outbox;
use super::receiver::{LARGE, Receiver, Wire};
use super::report::ConnectionReport;
use super::sync::lookout;
use super::times::Times;
use crate::proto::WireError;
use crate::proto::chunks::Descriptor;
use crate::proto::consts::Command;
use crate::proto::context::Context;
use crate::proto::errno::NbdErrno;
use crate::proto::export::{Agreed, Export};
use crate::proto::framing::Framing;
use crate::proto::request::{Cookie, Request};
use crate::stats::{self, Event, Stats};
use crate::transport::{self, Blocking, Deadline, Doorbell, PAUSE, Stream, Wanted};

type Role<'a> = ReadingRole<'a, Flight, Receiver>;

/// How long a connection goes on without answers.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    /// Whether the client that a request is for is still there, asked on the thread that makes the
    /// request. `None` where others use the connection too: it does not end with one of them.
    pub wanted: Option<Wanted>,
    /// How long answers may take after that.
    pub times: Arc<Times>,
    /// Whether another connection takes its place when it is lost, and this one is buried first:
    /// see [`Connection::bury`].
    pub lasting: bool,
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Connection {
    server: Server,
    stream: Stream,
    inflight: Inflight<Flight, Receiver>,
    outbox: Outbox,
    framing: Framing,
    context: Option<Context>,
    patience: Patience,
    manners: Arc<Manners>,
    /// Reads in flight that are too large for the receive buffer to be of use.
    large_reads: AtomicU32,
    lost: OnceCell<Arc<Lost>>,
    /// The server said that it is going away: nothing new is sent.
    closing: OnceCell<Arc<Lost>>,
    /// Until when what is in flight may still be answered, once nobody wants more of this
    /// connection.
    grace: Mutex<Option<Deadline>>,
    /// What was in flight at the last inspection.
    seen: Mutex<Seen>,
    /// `NBD_CMD_DISC` was sent: nothing at all is sent.
    disconnected: AtomicBool,
    /// Who wants to know how long requests are at the server.
    stats: Option<Arc<Stats>>,
    opened: Instant,
}

impl Connection {
    /// Takes over a stream whose handshake led to `export`.
    pub fn new(
        server: Server,
        stream: Stream,
        export: &Export,
        patience: Patience,
        manners: Arc<Manners>,
        stats: Option<Arc<Stats>>,
    ) -> Result<Self, transport::Error> {
        stream.limit_receiving()?;
        let receiver = Receiver::new(export.framing)?;
        Ok(Self {
            inflight: Inflight::new(receiver, Doorbell::new()?, lookout(&stream)),
            server,
            stream,
            outbox: Outbox::new(),
            framing: export.framing,
            context: export.context.as_ref().map(Agreed::read),
            patience,
            manners,
            large_reads: AtomicU32::new(0),
            lost: OnceCell::new(),
            closing: OnceCell::new(),
            grace: Mutex::default(),
            seen: Mutex::default(),
            disconnected: AtomicBool::new(false),
            stats,
            opened: Instant::now(),
        })
    }

    /// Sends a request and waits for its answer, until the deadline. `buffer` is the payload of a
    /// write or the room for a read, exactly as long as the request; it is not touched any more once
    /// this returns. For a status query the result is its descriptors.
    #[inline]
    pub fn submit(
        &self,
        request: Request,
        buffer: &mut Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        self.carry_out(request, buffer, deadline, false)
    }

    /// One function for both, and everything in it: it is the way of each request. `last` if it is the
    /// last one before the connection is left.
    #[inline(never)]
    fn carry_out(
        &self,
        request: Request,
        buffer: &mut Buffer<'_>,
        deadline: &Deadline,
        last: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        if request.is_long() && self.framing != Framing::Extended {
            return Err(Error::too_long(&self.server, request));
        }
        let mut cookie = Cookie(0);
        let ticket = self.inflight.claim(deadline, |given| {
            cookie = given;
            Flight::new(request, given, self.framing, self.context, buffer)
        });
        let Some(ticket) = ticket else {
            return Err(Error::Crowded {
                server: self.server.clone(),
                request,
                timeout: deadline.passed(),
            });
        };
        // Only now: whoever ends the connection after this check finds the claimed slot.
        if let Err(error) = self.check_usable(last) {
            drop(ticket);
            return Err(error);
        }
        let _fuse = Fuse(self);
        let large = request.length >= LARGE.into();
        let heavy = request.command == Command::WRITE && large;
        let large = request.command == Command::READ && large;
        if large {
            self.large_reads.fetch_add(1, Ordering::Relaxed);
        }
        if log::log_enabled!(log::Level::Trace) {
            trace(&self.server, request, cookie);
        }
        let own = Own {
            request: &request,
            index: ticket.index(),
            deadline,
        };
        if let Some(batch) = self.outbox.post(own.index, heavy) {
            self.send(Some(batch), own);
        }
        ticket.wait(
            deadline,
            || self.fail(Cause::Deadline(request, deadline.passed())),
            || self.look(),
            || self.send(None, own),
            |role| self.receive(role, own),
        );
        let flight = ticket.finish();
        if flight.is_timed() {
            stats::at_server(flight.time_at_server());
        }
        if large {
            self.large_reads.fetch_sub(1, Ordering::Relaxed);
        }
        self.conclude(&request, flight)
    }

    /// The server's name for messages.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What is to be seen of it from outside.
    pub fn report(&self) -> ConnectionReport {
        ConnectionReport {
            server: self.server.clone(),
            age: self.opened.elapsed(),
            tls: self.stream.has_tls(),
            in_flight: self.inflight.count(),
        }
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.inflight.is_idle()
    }

    /// Whether no request was ever made.
    pub fn is_unused(&self) -> bool {
        self.inflight.is_unused()
    }

    /// Whether its server said that it is going away.
    pub fn is_leaving(&self) -> bool {
        self.closing.get().is_some()
    }

    /// Ends it after a panic, and says so.
    pub fn failed_by_panic(&self) -> Error {
        self.fail(Cause::Panic);
        let lost = || Arc::new(Lost::new(self.server.clone(), Cause::Panic));
        Error::Lost(self.lost.get_or_init(lost).clone())
    }

    /// Ends it, since nobody wants anything more of it.
    pub fn give_up(&self) {
        self.fail(Cause::GivenUp(transport::Error::Unwanted));
        self.stream.hang_up();
    }

    /// Ends it while the server may be at work on what it has received, which is to be waited for: see
    /// [`Connection::bury`]. Else that may be carried out later than what others send from now on.
    pub fn give_up_softly(&self, cause: Cause) {
        self.fail(cause);
    }

    /// Whether it is known to be gone, or was left for a server that said that it is going away: there
    /// is nothing to be done for it any more.
    pub fn is_gone(&self) -> bool {
        self.lost.get().is_some() || self.disconnected.load(Ordering::Acquire)
    }

    /// Why it is gone, if nobody was told yet; told it is then.
    pub fn untold_loss(&self) -> Option<&Lost> {
        let lost = self.lost.get().filter(|lost| lost.tell_once())?;
        Some(lost)
    }

    /// Whether it is gone without a word. Looks for the end of the stream if nobody else does.
    pub fn is_lost(&self) -> bool {
        self.closing.get().is_none() && self.is_over()
    }

    /// How it was lost, or left. Looks for the end of the stream if nobody else does.
    pub fn loss(&self) -> Option<Arc<Lost>> {
        self.is_over();
        self.lost.get().or(self.closing.get()).cloned()
    }

    /// Whether no new request will succeed. Looks for the end of the stream if nobody else does.
    pub fn is_over(&self) -> bool {
        if let Some(mut role) = self.inflight.try_read() {
            self.receive_once(&mut role, Blocking::No);
        }
        self.check_usable(false).is_err()
    }

    fn check_usable(&self, last: bool) -> Result<(), Error> {
        if let Some(lost) = self.lost.get() {
            return Err(Error::Lost(lost.clone()));
        }
        if let Some(announced) = self.closing.get().filter(|_| !last) {
            return Err(Error::Lost(announced.clone()));
        }
        Ok(())
    }

    /// Looks after requests that wait for long. Returns whether there are any: their owners find out
    /// whether anybody still wants the answer, and if not, or once `grace` was given, the connection
    /// ends when the time for that is over. If there are none, no time is running: whoever has been
    /// answered may still have to be flushed, and what made that wait may be another connection.
    pub fn inspect(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = self.inflight.inspect(&mut seen);
        if !waits {
            *self.lock_grace() = None;
        } else if let Some(grace) = self.grace() {
            if grace.has_passed() && self.lost.get().is_none() {
                self.fail(Cause::GivenUp(grace.passed()));
            }
        }
        waits
    }

    /// Finds out whether the client that this thread's request is for is still there.
    fn look(&self) {
        if self.grace().is_none() && self.patience.wanted.is_some_and(|wanted| !wanted()) {
            self.give_grace(Deadline::after_maybe(self.patience.times.close.get()));
        }
    }

    /// Receives as a waiting owner of a request, no longer than until its deadline.
    fn receive(&self, role: &mut Role<'_>, own: Own<'_>) {
        let deadline = own.deadline;
        // A receive into a caller's buffer holds its slot's lock. In clear nobody wants it meanwhile; but
        // under TLS a request may be answered before its sender knows that it is sent.
        let waits = !deadline.is_never() || self.stream.has_tls();
        if waits && self.lost.get().is_none() {
            match self.stream.wait(true, false, None, deadline.within(PAUSE)) {
                Ok(_) if deadline.has_passed() => {
                    self.fail(Cause::Deadline(*own.request, deadline.passed()));
                }
                Ok(ready) if !ready.readable => return,
                Ok(_) => (),
                Err(error) => self.fail(error.into()),
            }
        }
        // Under TLS something may have been readable that is not a byte of ours.
        self.receive_once(
            role,
            match waits {
                true => Blocking::No,
                false => Blocking::Yes,
            },
        );
    }

    /// Receives once and notes whose requests are over. On a lost connection ends all requests.
    fn receive_once(&self, role: &mut Role<'_>, blocking: Blocking) {
        // After a panic the next reader must not use the stream.
        let _fuse = Fuse(self);
        let wire = Wire {
            server: &self.server,
            stream: &self.stream,
            inflight: &self.inflight,
            large_reads: self.large_reads.load(Ordering::Relaxed) > 0,
        };
        // What comes after its end is nobody's.
        if self.lost.get().is_none() {
            let (receiver, over) = role.parts();
            if let Err(cause) = receiver.round(wire, blocking, over) {
                self.fail(cause);
            }
        }
        if self.lost.get().is_some() {
            self.inflight.abandon(|flight| flight.lost = true);
        }
    }

    /// Declares the connection lost. The first cause counts; later ones are its consequences.
    fn fail(&self, cause: Cause) {
        let lost = self.lost.get_or_init(|| {
            let lost = Lost::new(self.server.clone(), cause);
            // Whoever needs the connection tells the user.
            log::trace!("{lost}");
            self.manners.learn(&lost);
            self.count_loss(lost.cause());
            Arc::new(lost)
        });
        // Whoever buries it sees to the rest; what is in flight ends with the next look of whoever
        // receives.
        let soft = self.patience.lasting && lost.cause().leaves_server_at_work();
        match soft {
            true => self.stream.finish_sending(),
            false => self.stream.hang_up(),
        }
    }

    /// What has ended it counts as a loss, unless somebody here has left it, or it counts already.
    fn count_loss(&self, cause: &Cause) {
        let left = matches!(cause, Cause::GivenUp(_)) || self.disconnected.load(Ordering::Acquire);
        if let Some(stats) = self
            .stats
            .as_ref()
            .filter(|_| !left && self.closing.get().is_none())
        {
            stats.count(Event::Lost);
        }
    }

    /// What became of a request that is over.
    #[inline]
    fn conclude(&self, request: &Request, flight: Flight) -> Result<Vec<Descriptor>, Error> {
        if flight.lost {
            let lost = self
                .lost
                .get_or_init(|| Arc::new(Lost::new(self.server.clone(), Cause::Panic)));
            return Err(Error::Lost(lost.clone()));
        }
        let result = flight.reply.finish();
        if let Err(WireError::Server { errno, .. }) = &result {
            // spec: Terminating the transmission phase: MUST: NBD_ESHUTDOWN is answered by NBD_CMD_DISC
            if *errno == NbdErrno::ESHUTDOWN {
                let announced = self.closing.get_or_init(|| {
                    self.count_loss(&Cause::Announced);
                    Arc::new(Lost::new(self.server.clone(), Cause::Announced))
                });
                return Err(Error::Lost(announced.clone()));
            }
        }
        result.map_err(|error| Error::Failed {
            server: self.server.clone(),
            request: *request,
            error,
        })
    }
}

/// Out of the way of those who do not trace.
#[cold]
fn trace(server: &Server, request: Request, cookie: Cookie) {
    log::trace!(
        "{server}: request with {cookie}: {request}{}",
        request.flags
    );
}

/// Ends the connection when the thread that holds it panics, so that nobody waits for ever.
struct Fuse<'a>(&'a Connection);

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Cause::Panic);
        }
    }
}

/// The request that a thread waits for while it works for others too.
#[derive(Clone, Copy)]
struct Own<'a> {
    request: &'a Request,
    index: usize,
    deadline: &'a Deadline,
}
