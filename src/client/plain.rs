// SPDX-License-Identifier: BSD-3-Clause
//! A way with one connection, with which it lives and ends.
//!
//! The one exception is `NBD_ESHUTDOWN`: the server has said that it is going away, nothing is lost
//! yet, and the specification wants the connection left ("Terminating the transmission phase"). What
//! is in flight is answered first, what was written is flushed, and then one try is made to go on
//! over a new connection, through the gate.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Opener;
use super::connection::{Connection, come_to_rest};
use super::error::Error;
use super::loan::Buffer;
use super::report::{WayReport, WayState};
use super::volume::Volume;
use crate::proto::chunks::Descriptor;
use crate::proto::consts::{Command, CommandFlags, TransmissionFlags};
use crate::proto::request::Request;
use crate::session::gate::Protection;
use crate::stats::Event;
use crate::transport::{Deadline, PAUSE};

/// What changes something that a flush makes permanent.
const CHANGES: [Command; 3] = [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES];

/// Whether a request changes something that a flush makes permanent.
pub(super) fn changes(command: Command) -> bool {
    CHANGES.contains(&command)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Plain {
    opener: Opener,
    volume: Arc<Volume>,
    protection: Protection,
    first: Connection,
    /// Something was written that no flush has made permanent since.
    wrote: AtomicBool,
    /// Changes that have yet to be noted there: whoever leaves the connection waits for that.
    changing: AtomicU32,
    /// A flush of our own.
    own: OwnFlushes,
    successor: Mutex<Successor>,
    settled: Condvar,
}

#[derive(Debug, Default)]
struct Successor {
    connection: Option<Arc<Connection>>,
    /// Somebody is looking for one.
    sought: bool,
    /// None was found, and none is looked for any more.
    missing: bool,
}

impl Plain {
    pub(super) fn new(
        opener: Opener,
        volume: Arc<Volume>,
        first: Connection,
        protection: Protection,
    ) -> Self {
        Self {
            opener,
            volume,
            protection,
            first,
            wrote: AtomicBool::new(false),
            changing: AtomicU32::new(0),
            own: OwnFlushes::default(),
            successor: Mutex::default(),
            settled: Condvar::new(),
        }
    }

    #[inline(always)]
    pub(super) fn submit(
        &self,
        request: Request,
        mut buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        // If another has taken its place, the first one is leaving, too.
        let mut result = self.send(&self.first, request, &mut buffer, deadline);
        // Looking into the result, or moving it, would cost more than all that is here besides.
        if self.first.is_leaving() {
            self.go_on(&mut result, request, &mut buffer, deadline);
        }
        result
    }

    /// Sends a request over the connection that there was first, and leaves it at that.
    pub(super) fn attempt(
        &self,
        request: Request,
        buffer: &mut Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        self.send(&self.first, request, buffer, deadline)
    }

    #[inline(always)]
    pub(super) fn change(
        &self,
        request: Request,
        buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        self.submit(request, buffer, deadline).map(drop)
    }

    /// Sends a request once, and notes what has to be flushed.
    #[inline(always)]
    fn send(
        &self,
        connection: &Connection,
        request: Request,
        buffer: &mut Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        let lasting = request.flags.contains(CommandFlags::FUA);
        if lasting || !CHANGES.contains(&request.command) {
            return connection.submit(request, buffer, deadline);
        }
        self.changing.fetch_add(1, Ordering::AcqRel);
        let result = connection.submit(request, buffer, deadline);
        // Afterwards, as whoever flushed meanwhile has not covered it. What failed may have been made
        // in part, but not by a server that has only said that it is going away.
        let refused = connection.is_leaving() && result.as_ref().is_err_and(Error::is_announced);
        if !refused && !self.wrote.load(Ordering::Relaxed) {
            self.wrote.store(true, Ordering::Release);
        }
        self.changing.fetch_sub(1, Ordering::AcqRel);
        result
    }

    pub(super) fn flush(&self, deadline: &Deadline) -> Result<(), Error> {
        // Whoever writes from now on is not covered.
        let wrote = self.wrote.swap(false, Ordering::AcqRel);
        let request = Request::new(Command::FLUSH, 0, 0_u32);
        let nothing = &mut Buffer::None;
        let mut result = self.with(|connection| connection.submit(request, nothing, deadline));
        if result.is_err() && wrote {
            self.wrote.store(true, Ordering::Release);
        }
        self.go_on(&mut result, request, &mut Buffer::None, deadline);
        result.map(drop)
    }

    /// What becomes of a request: if it was only told that the server is going away, it is made once
    /// more over another connection.
    #[cold]
    pub(super) fn go_on(
        &self,
        result: &mut Result<Vec<Descriptor>, Error>,
        request: Request,
        buffer: &mut Buffer<'_>,
        deadline: &Deadline,
    ) {
        let mut sought = false;
        while result.as_ref().is_err_and(Error::is_announced) {
            let mut state = self.lock();
            while state.sought {
                if deadline.has_passed() {
                    return;
                }
                let most = deadline.within(PAUSE).remaining().unwrap_or(PAUSE);
                (state, _) = self
                    .settled
                    .wait_timeout(state, most)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let current = state.connection.clone();
            let current = current.as_deref().unwrap_or(&self.first);
            if current.is_leaving() {
                if state.missing || sought {
                    // One try it is. The next request makes another.
                    drop(state);
                    self.retire(current);
                    return;
                }
                sought = true;
                state.sought = true;
                drop(state);
                self.seek(current, *deadline);
                continue;
            }
            drop(state);
            self.opener.options.note(Event::SentAgain);
            *result = self.send(current, request, buffer, deadline);
        }
    }

    /// Leaves a connection and finds one that takes its place, or finds that there is none.
    fn seek(&self, old: &Connection, until: Deadline) {
        // Whatever happens, nobody waits for ever.
        let seeking = Seeking(self);
        let found = self.succeed(old, until);
        let mut state = self.lock();
        match found {
            Ok(connection) => state.connection = Some(Arc::new(connection)),
            // Whose client has left, or whose time is over, has looked in vain for itself alone.
            Err(for_good) => state.missing = for_good,
        }
        drop(state);
        drop(seeking);
    }

    /// Leaves a connection whose server is going away. Whether nothing that was written over it can
    /// be lost.
    fn retire(&self, connection: &Connection) -> bool {
        let deadline = Deadline::after_maybe(self.opener.options.times.close.get());
        // Whatever is answered until then is to be flushed, too.
        come_to_rest(deadline, || self.changing.load(Ordering::Acquire) == 0);
        // What no flush can make permanent stays noted.
        let can_flush = self.volume.export().can(TransmissionFlags::SEND_FLUSH);
        let flush = can_flush && self.wrote.swap(false, Ordering::AcqRel);
        let good = connection.retire(flush, deadline, || true);
        if !good {
            self.wrote.store(true, Ordering::Release);
        }
        good
    }

    /// Leaves a connection, and finds another that offers no less; or finds out whether that is in vain
    /// for good.
    fn succeed(&self, old: &Connection, until: Deadline) -> Result<Connection, bool> {
        if !self.retire(old) {
            log::debug!(
                "{}: not left for another connection: what was written could not be flushed",
                self.opener.server
            );
            return Err(true);
        }
        match self.opener.open_instead(until) {
            Ok(opened) => {
                let was = (self.volume.export(), self.protection);
                match opened.difference(was) {
                    None => {
                        self.opener.options.note(Event::Replaced);
                        Ok(opened.connection)
                    }
                    Some(difference) => {
                        log::debug!("{}: {difference}", self.opener.server);
                        let patience = self.opener.options.times.close.get();
                        opened.connection.close(Deadline::after_maybe(patience));
                        Err(true)
                    }
                }
            }
            Err(error) => {
                log::debug!("{error}");
                Err(!error.is_unwanted() && !until.has_passed())
            }
        }
    }

    pub(super) fn is_over(&self) -> bool {
        // One whose server is going away has a successor, as long as none was looked for in vain.
        let missing = self.lock().missing;
        missing || self.with(Connection::is_lost)
    }

    /// Whether the server still has the connection open; looks for the end of the stream.
    pub(super) fn is_alive(&self) -> bool {
        !self.lock().missing && self.with(|connection| !connection.is_over())
    }

    /// Whether nothing was ever asked of it.
    pub(super) fn is_unused(&self) -> bool {
        self.with(Connection::is_unused)
    }

    /// Flushes if something was written. Whether it can be given to another client then.
    pub(super) fn rest(&self, deadline: Deadline) -> bool {
        let can_flush = self.volume.export().can(TransmissionFlags::SEND_FLUSH);
        let flush = can_flush && self.wrote.load(Ordering::Acquire);
        self.is_fit() && (!flush || self.flush(&deadline).is_ok()) && self.is_fit()
    }

    /// Whether its connection is open, and nothing is in flight.
    pub(super) fn is_fit(&self) -> bool {
        self.is_alive() && self.with(Connection::is_idle)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.with(Connection::is_gone)
    }

    pub(super) fn close(&self, deadline: Deadline) {
        self.end_own(deadline);
        self.with(|connection| {
            let deadline = connection.grace().unwrap_or(deadline);
            match connection.is_over() {
                true => self.tell_of_loss(),
                false if self.wrote.load(Ordering::Acquire) => self.flush_finally(deadline),
                false => (),
            }
            match connection.is_idle() {
                true => connection.close(deadline),
                false => log::debug!("{}: left with requests in flight", self.opener.server),
            }
        });
    }

    fn flush_finally(&self, deadline: Deadline) {
        if !self.volume.export().can(TransmissionFlags::SEND_FLUSH) {
            return;
        }
        if let Err(error) = self.flush(&deadline) {
            // Not once for each kind: every time it is other data.
            log::error!("warning: {error}; what was written since the last flush may be lost");
        }
    }

    pub(super) fn report(&self) -> WayReport {
        let over = self.is_over();
        WayReport {
            server: self.opener.server.clone(),
            export: self.opener.export.clone(),
            state: if over {
                WayState::Over(None)
            } else {
                WayState::Up
            },
            connections: if over {
                Vec::new()
            } else {
                vec![self.with(Connection::report)]
            },
            unflushed: self.wrote.load(Ordering::Acquire),
        }
    }

    /// Flushes if something was written, on behalf of no client.
    pub(super) fn settle(&self) -> Result<(), Error> {
        let own = Own::new(&self.own);
        if !own.is_needed(|| self.has_written()) {
            return Ok(());
        }
        if !self.volume.export().can(TransmissionFlags::SEND_FLUSH) {
            return Err(Error::no_flush(&self.opener.server));
        }
        self.flush(&Deadline::after_maybe(
            self.opener.options.times.request.get(),
        ))
    }

    /// Ends a flush of our own: a thread of ours is to end, and with it what it waits for.
    fn end_own(&self, deadline: Deadline) {
        if self.own.is_busy() {
            come_to_rest(deadline, || !self.own.is_busy());
            if self.own.is_busy() {
                self.with(Connection::give_up);
            }
        }
    }

    /// Says goodbye over a connection that is well, and waits for nothing.
    pub(super) fn say_goodbye(&self, deadline: Deadline) {
        self.with(|connection| {
            if connection.is_idle() && !connection.is_gone() {
                connection.say_goodbye(deadline);
            }
        });
    }

    /// Waits until the server has closed its side.
    pub(super) fn finish(&self, deadline: Deadline) {
        self.with(|connection| match connection.is_idle() {
            true => connection.close(deadline),
            false => log::debug!("{}: left with requests in flight", self.opener.server),
        });
    }

    /// The connection that there was first.
    pub(super) fn first(&self) -> &Connection {
        &self.first
    }

    /// The same, when nobody uses it.
    pub(super) fn into_first(self) -> Connection {
        self.first
    }

    /// Until when what is in flight may be answered, if nobody wants more of it.
    pub(super) fn grace(&self) -> Option<Deadline> {
        self.with(Connection::grace)
    }

    /// Whether something was written that no flush has made permanent since. Nothing was, from now on.
    pub(super) fn take_wrote(&self) -> bool {
        self.wrote.load(Ordering::Acquire) && self.wrote.swap(false, Ordering::AcqRel)
    }

    /// The same, with nothing changed.
    pub(super) fn has_written(&self) -> bool {
        self.wrote.load(Ordering::Acquire)
    }

    /// Waits until everybody has noted what was written over a connection on which nothing is in flight.
    pub(super) fn await_notes(&self) {
        let deadline = Deadline::after_maybe(self.opener.options.times.close.get());
        come_to_rest(deadline, || self.changing.load(Ordering::Acquire) == 0);
    }

    /// Something was, as far as this connection is to know.
    pub(super) fn note_wrote(&self) {
        self.wrote.store(true, Ordering::Release);
    }

    /// Tells of a loss that no request has found out about, if that matters to what was answered.
    pub(super) fn tell_of_doubt(&self) {
        if !self.wrote.load(Ordering::Acquire) {
            return;
        }
        if let Some(lost) = self.untold_loss() {
            log::error!("warning: {lost}; what was written since the last flush may be lost");
        }
    }

    /// The same, and otherwise for those who want to know everything.
    fn tell_of_loss(&self) {
        self.tell_of_doubt();
        if let Some(lost) = self.untold_loss() {
            log::debug!("{lost}");
        }
    }

    /// How the connection was lost, if nobody was told yet; told it is then.
    pub(super) fn untold_loss(&self) -> Option<String> {
        self.with(|connection| connection.untold_loss().map(ToString::to_string))
    }

    pub(super) fn inspect(&self) -> bool {
        self.with(Connection::inspect)
    }

    pub(super) fn give_grace(&self, until: Deadline) {
        self.with(|connection| connection.give_grace(until));
    }

    /// The connection for the next request.
    fn with<T>(&self, act: impl FnOnce(&Connection) -> T) -> T {
        let successor = self.lock().connection.clone();
        act(successor.as_deref().unwrap_or(&self.first))
    }

    fn lock(&self) -> MutexGuard<'_, Successor> {
        self.successor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flushes that no client has asked for, and that are on their way.
#[derive(Debug, Default)]
pub(super) struct OwnFlushes(AtomicU32);

impl OwnFlushes {
    pub(super) fn is_busy(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

/// One of them, or the question whether there is to be one.
pub(super) struct Own<'a>(&'a AtomicU32);

impl<'a> Own<'a> {
    pub(super) fn new(OwnFlushes(count): &'a OwnFlushes) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }

    /// Whether there is anything to be flushed. What another one is about to flush is noted as written no
    /// more, and only when that one is over and has failed it is again.
    pub(super) fn is_needed(&self, wrote: impl Fn() -> bool) -> bool {
        wrote() || self.0.load(Ordering::Acquire) > 1 || wrote()
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The duty of ending the search for a successor.
struct Seeking<'a>(&'a Plain);

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        self.0.lock().sought = false;
        self.0.settled.notify_all();
    }
}
