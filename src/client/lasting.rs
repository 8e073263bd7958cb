// SPDX-License-Identifier: BSD-3-Clause
//! A way that outlives its connections: while the server is lost, requests wait in their own
//! threads, and are sent again by them. How it comes back is `comeback.rs`.
//!
//! There may be several connections at once: `members.rs`. The way is lost when all of them are.
//!
//! Each request asks [`Inner::pass`], under the lock of the export's session, whether it may be sent,
//! is sent without it, and then asks the session what the answer is worth.

mod flush;
mod leaving;
mod loss;
mod members;
mod operation;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use self::members::Growth;
use self::operation::{Operation, Place};
use super::Opener;
use super::connection::Connection;
use super::error::{Error, Outage, Server};
use super::helpers::Helpers;
use super::loan::Buffer;
use super::resume::{Inner, Pass, Phase, Resume, SLICE, Terms, Up, WayId};
use super::sync::MutexGuard;
use super::volume::Volume;
use crate::proto::chunks::Descriptor;
use crate::proto::consts::{Command, CommandFlags, TransmissionFlags};
use crate::proto::request::Request;
use crate::session::gate::Protection;
use crate::session::{Change, Core, Sending, Span, Worth, Written};
use crate::stats::Event;
use crate::transport::{Deadline, Wanted};

/// How long a request waits before it asks whether its client is still there, and then from one
/// time to the next: to ask may print a message.
pub(super) const ASK: Duration = Duration::from_secs(1);

/// After so many inspections without a request, a second each, memory that is only kept for what may
/// come is given back: writes come in bursts.
const REST: u32 = 30;

/// A way that outlives its connections.
#[derive(Debug)]
pub(super) struct Lasting {
    pub(super) opener: Opener,
    pub(super) volume: Arc<Volume>,
    pub(super) terms: Arc<Terms>,
    pub(super) helpers: Arc<Helpers>,
    pub(super) way: WayId,
    pub(super) protection: Protection,
    /// Flushes of our own that are on their way.
    pub(super) own: AtomicU32,
    /// Whether there may be several connections at once.
    pub(super) several: bool,
    pub(super) growth: Growth,
    /// The server hung up over what this way has asked: the next try asks what was learnt.
    pub(super) asks_less: AtomicBool,
    /// How often it offered less then.
    pub(super) offers_less: AtomicU32,
}

impl Lasting {
    /// Makes a new connection one of the export's: what others have written, and no flush has made
    /// permanent, is written over it first, since its server may be another than theirs by now.
    pub(super) fn open(
        opener: Opener,
        volume: Arc<Volume>,
        terms: Arc<Terms>,
        helpers: Arc<Helpers>,
        connection: (Connection, usize),
        protection: Protection,
        maximum: u32,
    ) -> Result<Self, Error> {
        let session = volume.session().expect("a lasting way has a session");
        let way = session.lock().admit();
        let several = opener.may_have_several(volume.export());
        let eager = opener.is_spread();
        let lasting = Self {
            opener,
            volume,
            terms,
            helpers,
            way,
            protection,
            own: AtomicU32::new(0),
            several,
            growth: Growth::new(eager),
            asks_less: AtomicBool::new(false),
            offers_less: AtomicU32::new(0),
        };
        let wanted = lasting.opener.options.wanted;
        let wanted = move || wanted.is_none_or(|wanted| wanted());
        let error = match lasting.settle_in(connection, maximum, false, wanted) {
            Ok(true) => return Ok(lasting),
            Ok(false) => Error::unwanted(lasting.server().clone()),
            Err(error) => error,
        };
        lasting.resume().lock().ways.remove(&way);
        Err(error)
    }

    pub(super) fn server(&self) -> &Server {
        &self.opener.server
    }

    pub(super) fn resume(&self) -> &Resume {
        self.volume.session().expect("a lasting way has a session")
    }

    fn operation(&self, deadline: &Deadline) -> Operation {
        Operation {
            wanted: self.opener.options.wanted,
            timeout: deadline.length(),
            limit: self.terms.limit.get(),
            waited: Duration::ZERO,
            asked: Duration::ZERO,
            again: false,
            hurried: false,
            end: None,
        }
    }

    /// A request that was begun then, if that matters, was lost with its connection.
    fn send_again(&self, operation: &mut Operation, begun: Option<Instant>) {
        operation.lost(begun.map_or(Duration::ZERO, |begun| begun.elapsed()));
        self.opener.options.note(Event::SentAgain);
    }

    /// Sends a request that changes nothing, as often as it takes.
    pub(super) fn submit(
        self: &Arc<Self>,
        request: Request,
        mut buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        let mut operation = self.operation(deadline);
        let span = Span::new(request.offset, request.length);
        loop {
            let may = |core: &Core| core.may_read(span);
            let (mut inner, up) = self.enter(&mut operation, request, may, |_| ())?;
            let sending = inner.core.send_read(up.member);
            drop(inner);
            let begun = operation.timeout.map(|_| Instant::now());
            let answer = self.send(&up, request, &mut buffer, &operation.deadline());
            match answer {
                Err(Error::Lost(lost)) => {
                    self.lost(&up.connection, &lost);
                    self.send_again(&mut operation, begun);
                }
                answer => {
                    let mut inner = self.resume().lock();
                    if inner.core.has_read(sending) == Worth::Counts {
                        inner.answered_well(self.way);
                        return answer;
                    }
                }
            }
        }
    }

    /// Sends a request that changes something, as often as it takes.
    pub(super) fn change(
        self: &Arc<Self>,
        request: Request,
        mut buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        let mut operation = self.operation(deadline);
        let resume = self.resume();
        let payload = match &buffer {
            Buffer::Source(bytes) => *bytes,
            _ => &[],
        };
        let written = match request.command {
            Command::WRITE => Written::Bytes(payload),
            Command::WRITE_ZEROES => Written::Zeroes {
                no_hole: request.flags.contains(CommandFlags::NO_HOLE),
            },
            _ => Written::Trimmed,
        };
        let mut place = Place {
            resume,
            change: None,
            sent: false,
            reserved: None,
        };
        let asked_fua = request.flags.contains(CommandFlags::FUA);
        let export = self.volume.export();
        let has_flush = export.can(TransmissionFlags::SEND_FLUSH);
        let has_fua = export.can(TransmissionFlags::SEND_FUA);
        let room = asked_fua || self.reserve(&mut place, written, &mut operation)?;
        // Without room the change is made permanent before it is answered; so it is where the
        // server has no other way to do so (the refusal to open sees to it that it has one).
        let fua = asked_fua || (has_fua && (!room || !has_flush));
        let flush_too = !room && !fua && has_flush;
        if place.reserved.is_none() && has_flush && resume.lock().core.is_overfull() {
            // Or it would grow for as long as the server flushes nothing.
            self.flush_for(&mut operation, None)?;
        }
        let mut request = request;
        request.flags.set(CommandFlags::FUA, fua);
        loop {
            let (change, sending, up) =
                self.enter_change(&mut operation, request, &mut place, fua)?;
            let begun = operation.timeout.map(|_| Instant::now());
            let answer = self.send(&up, request, &mut buffer, &operation.deadline());
            let lost = match &answer {
                Err(Error::Lost(lost)) => Some(lost),
                _ => None,
            };
            if let Some(lost) = lost {
                self.lost(&up.connection, lost);
                self.send_again(&mut operation, begun);
                continue;
            }
            if answer.is_ok() && flush_too {
                if resume.lock().core.written_through(change, sending) == Worth::SendAgain {
                    continue;
                }
                let flushed = self.flush_for(&mut operation, None);
                let mut inner = resume.lock();
                if let Err(error) = flushed {
                    // Whatever that counts for, nobody waits for it any more.
                    let _ = inner.core.refused(change, sending, false);
                    inner.core.abandon(change);
                    place.settle(&mut inner);
                    resume.tell(inner);
                    return Err(error);
                }
                if inner.core.made_permanent(change, sending) == Worth::SendAgain {
                    continue;
                }
                place.settle(&mut inner);
                resume.tell(inner);
                return Ok(());
            }
            let mut inner = resume.lock();
            let worth = match &answer {
                Ok(_) => inner.core.changed(change, sending, fua, written),
                Err(Error::Crowded { .. }) => {
                    inner.core.withdrawn(change, sending, fua);
                    Worth::Counts
                }
                Err(_) => inner.core.refused(change, sending, fua),
            };
            if worth == Worth::SendAgain {
                continue;
            }
            place.settle(&mut inner);
            inner.answered_well(self.way);
            let filling = inner.core.is_filling() && inner.wants_quiet_flush(self.way);
            resume.tell(inner);
            if filling {
                self.flush_quietly();
            }
            return answer.map(drop);
        }
    }

    /// Room in the journal for a change; if there is none, also not after a flush, it has to be made
    /// permanent at once, and this is false.
    fn reserve<'a>(
        self: &Arc<Self>,
        place: &mut Place<'a>,
        written: Written<'a>,
        operation: &mut Operation,
    ) -> Result<bool, Error> {
        for flushed in [false, true] {
            let mut inner = self.resume().lock();
            if inner.core.reserve(written) {
                place.reserved = Some(written);
                return Ok(true);
            }
            if flushed || !inner.core.would_fit(written) {
                break;
            }
            drop(inner);
            if let Err(error) = self.flush_for(operation, None) {
                if !matches!(error, Error::Failed { .. }) {
                    return Err(error);
                }
                log::debug!("{error}");
            }
        }
        Ok(false)
    }

    /// Waits until a change may be sent, and notes that it is.
    fn enter_change(
        &self,
        operation: &mut Operation,
        request: Request,
        place: &mut Place<'_>,
        lasting: bool,
    ) -> Result<(Change, Sending, Up), Error> {
        let span = Span::new(request.offset, request.length);
        loop {
            let queued = Cell::new(place.change);
            let sent = place.sent;
            let may = |core: &Core| queued.get().is_none_or(|change| core.may_change(change));
            let away = |inner: &mut Inner| {
                // What was never sent holds up nobody while its own server is lost.
                if let Some(change) = queued.get().filter(|_| !sent) {
                    queued.set(None);
                    inner.core.abandon(change);
                }
            };
            let entered = self.enter(operation, request, may, away);
            place.change = queued.get();
            let (mut inner, up) = entered?;
            let change = *place.change.get_or_insert_with(|| inner.core.queue(span));
            if inner.core.may_change(change) {
                let sending = inner.core.send_change(change, up.member, lasting);
                place.sent = true;
                return Ok((change, sending, up));
            }
        }
    }

    /// Waits until a request may be sent. The lock comes with the answer, so that nothing changes
    /// before what follows from it is noted. `away` is done before it waits for a lost server.
    fn enter(
        &self,
        operation: &mut Operation,
        request: Request,
        may: impl Fn(&Core) -> bool,
        away: impl Fn(&mut Inner),
    ) -> Result<(MutexGuard<'_, Inner>, Up), Error> {
        let resume = self.resume();
        let mut inner = resume.lock();
        let mut ordered: Option<Deadline> = None;
        loop {
            operation.limit = self.terms.limit.get();
            let outage = match inner.pass(self.server(), self.way, operation.limit, &may) {
                Pass::Send(up) if self.several => {
                    let up = self.choose(&inner, up, request);
                    return Ok((inner, up));
                }
                Pass::Send(up) => return Ok((inner, up)),
                Pass::Fail(error) => return Err(error),
                Pass::Hold(outage) => outage,
            };
            if operation.hurried {
                if let Some(outage) = outage {
                    return Err(Error::Outage(outage));
                }
            }
            if outage.is_some() {
                away(&mut inner);
            }
            let counts = outage.is_some() && !inner.stands_still();
            // Behind others' changes, whatever is in front may have waited itself; or behind its own first
            // sending, which its server may still carry out.
            let in_line = match operation.again {
                false => !counts,
                true => outage.is_none() && !inner.stands_still(),
            };
            let (begun, credit) = (Instant::now(), inner.credit);
            inner = resume.hold(inner, SLICE);
            let slice = begun.elapsed();
            if counts {
                operation.waited += slice;
            }
            let credit = inner.credit.saturating_sub(credit);
            operation.waited = operation.waited.saturating_sub(credit);
            self.check(operation, slice, outage)?;
            if in_line {
                let until = *ordered.get_or_insert_with(|| operation.in_line());
                if until.has_passed() {
                    return Err(Error::Crowded {
                        server: self.server().clone(),
                        request,
                        timeout: until.passed(),
                    });
                }
            }
            inner = self.ask(operation, inner)?;
        }
    }

    /// Asks, from time to time, whether the request's client still waits. One asks for all that share
    /// the answer, since to ask may print a message; and so not under the lock.
    fn ask<'a>(
        &'a self,
        operation: &mut Operation,
        mut inner: MutexGuard<'a, Inner>,
    ) -> Result<MutexGuard<'a, Inner>, Error> {
        let Some(wanted) = operation.wanted else {
            return Ok(inner);
        };
        let no = || Err(Error::Unwanted(self.server().clone()));
        if inner.is_unwanted(self.way) {
            return no();
        }
        if operation.asked < ASK || inner.asking {
            return Ok(inner);
        }
        operation.asked = Duration::ZERO;
        inner.asking = true;
        drop(inner);
        let goes_on = wanted();
        // Of all clients' ways only a thread that serves none can tell which of both it is.
        let ends = !goes_on && self.opener.shared && !asked_aside(wanted);
        let resume = self.resume();
        let mut inner = resume.lock();
        inner.asking = false;
        if goes_on {
            return Ok(inner);
        }
        inner.ending |= ends;
        if let Some(way) = inner.ways.get_mut(&self.way) {
            way.unwanted |= !self.opener.shared;
        }
        resume.tell(inner);
        no()
    }

    fn check(
        &self,
        operation: &mut Operation,
        slice: Duration,
        outage: Option<Arc<Outage>>,
    ) -> Result<(), Error> {
        operation.asked += slice;
        match (operation.limit, outage) {
            (Some(limit), Some(outage)) if operation.waited >= limit => Err(Error::Outage(outage)),
            _ => Ok(()),
        }
    }

    /// Sends a request once. A server that came back may take less payload at once than the one that
    /// nbdkit was told of.
    pub(super) fn send(
        self: &Arc<Self>,
        up: &Up,
        request: Request,
        buffer: &mut Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        let _load = self.load(up, request);
        let has_payload = [Command::READ, Command::WRITE].contains(&request.command);
        if !has_payload || request.length <= up.maximum.into() {
            return up.connection.submit(request, buffer, deadline);
        }
        let pieces = super::split::pieces(request.offset, request.length, up.maximum as usize);
        self.opener.options.note(Event::Cut);
        for (offset, length) in pieces {
            self.opener.options.note(Event::Piece);
            let from = (offset - request.offset) as usize;
            let piece = Request {
                offset,
                length: length as u64,
                ..request
            };
            up.connection
                .submit(piece, &mut buffer.part(from..from + length), deadline)?;
        }
        Ok(Vec::new())
    }

    pub(super) fn losses(&self) -> u64 {
        self.resume().lock().core.losses()
    }

    pub(super) fn is_over(&self) -> bool {
        let inner = self.resume().lock();
        inner.core.doom().is_some()
            || inner
                .ways
                .get(&self.way)
                .is_none_or(|way| matches!(way.phase, Phase::Over))
    }

    /// Whether it was closed. Until then something may have to be said in the end.
    pub(super) fn is_closed(&self) -> bool {
        !self.resume().lock().ways.contains_key(&self.way)
    }

    /// Looks after requests that wait for long, after what is unflushed with nobody asking for
    /// anything, and after an outage without a thread.
    pub(super) fn inspect(self: &Arc<Self>) -> bool {
        let mut inner = self.resume().lock();
        let Inner { core, ways, .. } = &mut *inner;
        let Some(way) = ways.get_mut(&self.way) else {
            return false;
        };
        let coming = way.coming.iter().chain(&way.joining);
        let mut connections: Vec<_> = coming.cloned().collect();
        connections.extend(way.ups().map(|up| up.connection.clone()));
        match &way.phase {
            Phase::Up(_) => {
                let idle = std::mem::replace(&mut way.seen, core.events()) == core.events();
                let own = self.own.load(Ordering::Acquire) > 0;
                way.idle = if idle { way.idle.saturating_add(1) } else { 0 };
                if way.idle == REST {
                    core.rest();
                }
                let wants = |core: &Core| way.ups().any(|up| core.wants_flush(up.member));
                if idle && !own && !way.quiet && self.can_flush() && wants(core) {
                    let this = self.clone();
                    self.helpers
                        .run("nbd-flush", Box::new(move || this.flush_quietly()));
                }
                if self.several {
                    self.inspect_members(inner);
                }
            }
            Phase::Away(away) => {
                let thread = away.thread;
                drop(inner);
                if !thread {
                    self.begin_to_come_back();
                }
                self.remind();
            }
            Phase::New | Phase::Over => drop(inner),
        }
        // All of them are to be looked at.
        connections
            .iter()
            .fold(false, |waits, connection| connection.inspect() | waits)
    }

    fn can_flush(&self) -> bool {
        self.volume.export().can(TransmissionFlags::SEND_FLUSH)
    }

    pub(super) fn give_grace(&self, until: Deadline) {
        let inner = self.resume().lock();
        let Some(way) = inner.ways.get(&self.way) else {
            return;
        };
        let served = way.ups().map(|up| &up.connection);
        for connection in served.chain(&way.coming).chain(&way.joining) {
            connection.give_grace(until);
        }
    }
}

/// Asks on a thread that serves no client whether nbdkit goes on.
fn asked_aside(wanted: Wanted) -> bool {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, wanted);
        thread.map_or(true, |thread| thread.join().unwrap_or(true))
    })
}

impl Inner {
    /// Whether a flush that nobody has asked for is of use: none is on its way, and the last one has
    /// not failed.
    fn wants_quiet_flush(&self, way: WayId) -> bool {
        self.core.may_flush() && self.ways.get(&way).is_some_and(|way| !way.quiet)
    }

    /// A server that answers well keeps to the protocol, and is there.
    fn answered_well(&mut self, way: WayId) {
        if let Some(way) = self.ways.get_mut(&way) {
            way.violations = 0;
            way.flapping = None;
        }
    }
}
