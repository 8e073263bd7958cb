// SPDX-License-Identifier: BSD-3-Clause
//! How a way comes back to a server that was lost: the old connection is buried, a new one made and
//! led through the gate, the journal written over it, and only then does anybody else use it.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::error::{Error, Outage, Server};
use super::lasting::{ASK, Lasting};
use super::open::{Again, hung_up};
use super::opener::Entered;
use super::resume::{Inner, Phase, SLICE, Up};
use crate::proto::consts::TransmissionFlags;
use crate::proto::export::Export;
use crate::session::delay::Delays;
use crate::session::gate;
use crate::session::gate::Protection;
use crate::stats::Event;
use crate::transport::{Deadline, about};

/// So often a server may hang up over what was asked before, and offer less when it is asked less.
const STUBBORN: u32 = 10;

/// So many violations of the protocol in a row end the session.
const VIOLATIONS: u32 = 5;

/// Shortest time for a try to come back, for each of its two steps.
const LEAST_TRY: Duration = Duration::from_secs(5);

/// When to remind of an outage that has no limit.
const REMINDER: Duration = Duration::from_secs(60);

/// How a try has ended.
enum Try {
    Back,
    Failed(Error),
    Over,
}

impl Lasting {
    /// Starts a thread that comes back, unless there is one. Before nbdkit has forked there can be
    /// none; the next inspection makes up for it.
    pub(super) fn begin_to_come_back(self: &Arc<Self>) {
        let mut inner = self.resume().lock();
        let away = inner.ways.get_mut(&self.way).map(|way| &mut way.phase);
        let Some(Phase::Away(away)) = away else {
            return;
        };
        if std::mem::replace(&mut away.thread, true) {
            return;
        }
        drop(inner);
        let this = self.clone();
        let begun = self
            .helpers
            .run("nbd-reconnect", Box::new(move || this.come_back()));
        if !begun {
            self.no_thread();
        }
    }

    fn delays(&self) -> Delays {
        let first = self.terms.first.get().unwrap_or_default();
        Delays::new(first, self.terms.max.get().unwrap_or_default())
    }

    fn no_thread(&self) {
        let mut inner = self.resume().lock();
        if let Some(Phase::Away(away)) = inner.ways.get_mut(&self.way).map(|way| &mut way.phase) {
            away.thread = false;
        }
    }

    fn come_back(&self) {
        let thread = Thread(self);
        let resume = self.resume();
        let (grave, outage, lost_at) = {
            let mut inner = resume.lock();
            match inner.ways.get_mut(&self.way).map(|way| &mut way.phase) {
                Some(Phase::Away(away)) => (away.grave.clone(), away.outage.clone(), away.since),
                _ => return,
            }
        };
        if let Some(up) = grave {
            self.bury(&up, &outage);
        }
        if self.has_violated_enough() {
            self.end(&too_often(
                &Error::Lost(outage.lost().clone()),
                self.server(),
            ));
            return;
        }
        loop {
            let delay = self.next_delay(lost_at);
            if !self.pause(delay) {
                return;
            }
            log::debug!("{}: trying to reconnect", self.server());
            match self.try_once(lost_at.elapsed()) {
                Try::Back => {
                    let away = about(lost_at.elapsed());
                    self.opener.options.note(Event::Replaced);
                    let server = self.server_at_present();
                    log::error!("{server}: connected again after {away}");
                    // It may have been lost again, and then another thread cares for it.
                    std::mem::forget(thread);
                    return;
                }
                Try::Over => return,
                Try::Failed(why) => {
                    log::debug!("{why}");
                    outage.note(&why);
                    // Somebody may wait for just that.
                    resume.tell(resume.lock());
                }
            }
            self.remind();
        }
    }

    /// Says once that the server is still away, when a third of the time is over. A try may take longer
    /// than that.
    pub(super) fn remind(&self) {
        let after = self.terms.limit.get().map_or(REMINDER, |limit| limit / 3);
        let mut inner = self.resume().lock();
        if inner.core.doom().is_some() {
            // It is back, and of no use.
            return;
        }
        let Some(Phase::Away(away)) = inner.ways.get_mut(&self.way).map(|way| &mut way.phase)
        else {
            return;
        };
        let lasted = away.since.elapsed();
        if away.reminded || lasted < after {
            return;
        }
        away.reminded = true;
        let outage = away.outage.clone();
        drop(inner);
        let last = outage.last();
        let last = last.as_deref().unwrap_or("the first try has not ended");
        log::error!(
            "{}: still not back after {}: {last}",
            self.server(),
            about(lasted)
        );
    }

    /// How long to wait before the next try. A server that takes connections and loses them before it
    /// has answered anything has been away all the time.
    fn next_delay(&self, lost_at: Instant) -> Duration {
        let dice = RandomState::new().hash_one(0) as u8;
        let mut inner = self.resume().lock();
        let mut none = None;
        let way = inner.ways.get_mut(&self.way);
        let (since, delays) = way
            .map_or(&mut none, |way| &mut way.flapping)
            .get_or_insert_with(|| (lost_at, self.delays()));
        // Each try may start a server, which may happen ten times only in a minute.
        let lasted = match self.opener.options.target.starts_again() {
            true => Duration::MAX,
            false => since.elapsed(),
        };
        delays.next(dice, lasted)
    }

    /// Sees the old connection to its end, so that nothing is carried out later that is sent again.
    fn bury(&self, up: &Up, outage: &Outage) {
        let deadline = self.close_deadline();
        let goes_on = || self.goes_on();
        match outage.lost().cause() {
            cause if cause.is_farewell() => {
                let can_flush = self.volume.export().can(TransmissionFlags::SEND_FLUSH);
                let flush = can_flush && self.resume().lock().core.has_unflushed();
                up.connection.retire(flush, deadline, goes_on);
            }
            _ => up.connection.bury(deadline, goes_on),
        }
        let mut inner = self.resume().lock();
        inner.core.buried(up.member);
        if let Some(Phase::Away(away)) = inner.ways.get_mut(&self.way).map(|way| &mut way.phase) {
            away.grave = None;
        }
        self.resume().tell(inner);
    }

    pub(super) fn close_deadline(&self) -> Deadline {
        Deadline::after_maybe(self.opener.options.times.close.get())
    }

    fn goes_on(&self) -> bool {
        self.is_away(&self.resume().lock())
    }

    fn is_away(&self, inner: &Inner) -> bool {
        let phase = inner.ways.get(&self.way).map(|way| &way.phase);
        inner.core.doom().is_none() && matches!(phase, Some(Phase::Away(_)))
    }

    /// Waits. False if nobody wants the server back any more.
    fn pause(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        let mut inner = self.resume().lock();
        while self.is_away(&inner) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            inner = self.resume().hold(inner, left);
        }
        false
    }

    /// What several servers are held against.
    fn was(&self) -> Option<(&Export, Protection)> {
        Some((self.volume.export(), self.protection))
    }

    /// What this way has asked before; and if the server hung up over that, the next time what others have
    /// learnt meanwhile.
    pub(super) fn again(&self, most: Duration) -> Again {
        match self.asks_less.load(Ordering::Relaxed) {
            true => Again { most, asked: None },
            false => self.opener.again(most),
        }
    }

    /// Tries once. A server that was away for so `long` may take as long, but not keep the next try
    /// from being made for ever: what hangs may belong to one that is gone.
    fn try_once(&self, long: Duration) -> Try {
        let most = match self.opener.options.target.starts_again() {
            true => Duration::MAX,
            false => long.max(LEAST_TRY),
        };
        let Entered {
            connection,
            offer,
            protection,
            at,
        } = match self.opener.open(Some(self.again(most)), self.was()) {
            Ok(opened) => opened,
            Err(error) => {
                let hung_up = matches!(&error, Error::Open { cause, .. } if hung_up(cause));
                self.asks_less.fetch_xor(hung_up, Ordering::Relaxed);
                if error.is_violation() && self.count_violation() {
                    return self.end(&too_often(&error, self.server()));
                }
                return match &error {
                    // All of several servers are there, and others use them as they are now.
                    Error::Unsupported { what, .. } if self.volume.is_superseded() => {
                        self.end(&format!("the server is back, but {what}"))
                    }
                    _ => Try::Failed(error),
                };
            }
        };
        let was = (self.volume.export(), self.protection);
        // Of several servers those that differ are left out already.
        if let Some(difference) = gate::difference(was, (&offer, protection)) {
            connection.close(self.close_deadline());
            let less = self.asks_less.swap(false, Ordering::Relaxed)
                && Some(offer.asked) != self.opener.asked;
            if less && self.offers_less.fetch_add(1, Ordering::Relaxed) < STUBBORN {
                // It was asked less, and there may be more: it may just be restarting.
                return Try::Failed(Error::Unsupported {
                    server: self.server().clone(),
                    what: difference,
                    errno: libc::EIO,
                });
            }
            return self.end(&format!("the server is back, but {difference}"));
        }
        if self.is_outdated() {
            connection.close(self.close_deadline());
            return self.end("the server is back, but the export was another one meanwhile");
        }
        self.volume.found_payload(offer.maximum_payload());
        let maximum = offer.maximum_payload();
        match self.settle_in((connection, at), maximum, false, || self.goes_on()) {
            Ok(true) => Try::Back,
            Ok(false) => Try::Over,
            Err(error @ Error::Lost(_)) => Try::Failed(error),
            Err(error) => self.end(&format!(
                "what was written before the connection was lost could not be written again: {}",
                error.without(self.server())
            )),
        }
    }

    /// Makes a new connection a member: the journal is written over it, and then it is served. False if
    /// nobody wants it any more; an error is what became of the journal. `beside` others that are served.
    pub(super) fn settle_in(
        &self,
        (connection, at): (Connection, usize),
        maximum: u32,
        beside: bool,
        wanted: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        let resume = self.resume();
        let begun = Instant::now();
        let mut inner = resume.lock();
        let up = Up {
            connection: Arc::new(connection),
            member: inner.core.born(),
            maximum,
            at,
            load: self.several.then(Arc::default),
        };
        // Not only by this client: others may have filled the journal.
        let nothing = beside && self.volume.export().can(TransmissionFlags::READ_ONLY);
        let mut asked = begun;
        let mut gone = false;
        let pieces = loop {
            match inner.ways.get_mut(&self.way) {
                Some(way) if !gone && way.takes(beside) => {
                    way.place(beside)
                        .get_or_insert_with(|| up.connection.clone());
                }
                way => {
                    if let Some(way) = way {
                        *way.place(beside) = None;
                    }
                    inner.core.left(up.member);
                    drop(inner);
                    up.connection.close(self.close_deadline());
                    return Ok(false);
                }
            }
            if nothing {
                // Nor was anything written.
                break Vec::new();
            }
            if !inner.has_respite(&up.connection) {
                if let Some(pieces) = inner.core.begin_rewrite(up.member, true) {
                    break pieces;
                }
            }
            inner = resume.hold(inner, SLICE);
            if asked.elapsed() >= ASK {
                asked = Instant::now();
                // Not under the lock: to ask may print a message.
                drop(inner);
                gone = !wanted();
                inner = resume.lock();
            }
        };
        drop(inner);
        let held = Instant::now();
        let written = self.rewrite(&up.connection, up.maximum, &pieces, wanted);
        let took = begun.elapsed();
        if written.is_err() {
            self.forget(&up, held);
        }
        if !pieces.is_empty() {
            self.opener.options.maps.note_server();
        }
        let mut inner = resume.lock();
        if written.is_ok() && !nothing {
            inner.core.end_rewrite(up.member, true);
        }
        let mut served = false;
        if let Some(way) = inner.ways.get_mut(&self.way) {
            *way.place(beside) = None;
            // Beside others it is of use only if they are still there.
            served = written.is_ok() && (!beside || way.takes(beside));
            match (served, beside) {
                (true, true) => way.more.push(up.clone()),
                (true, false) => {
                    way.phase = Phase::Up(up.clone());
                    way.leaving = false;
                }
                (false, _) => (),
            }
        }
        if written.is_ok() && !served {
            // Its client has left meanwhile.
            inner.core.left(up.member);
        }
        resume.tell(inner);
        written?;
        if !pieces.is_empty() {
            let bytes: u64 = pieces.iter().map(|piece| piece.length).sum();
            log::debug!(
                "{}: wrote {bytes} bytes again, which were not flushed, in {}",
                self.server(),
                about(took)
            );
        }
        if !served {
            up.connection.close(self.close_deadline());
        }
        Ok(served)
    }

    /// A connection over which the journal could not be written is no member any more, once nothing of
    /// that will be carried out later. Everybody was held since then.
    fn forget(&self, up: &Up, held: Instant) {
        self.resume().lock().core.lost(up.member);
        up.connection
            .bury(self.close_deadline(), || !self.helpers.is_closed());
        up.connection.give_up();
        let mut inner = self.resume().lock();
        inner.core.buried(up.member);
        inner.give_respite(&up.connection, held.elapsed());
        self.resume().tell(inner);
    }

    fn count_violation(&self) -> bool {
        let mut inner = self.resume().lock();
        let Some(way) = inner.ways.get_mut(&self.way) else {
            return false;
        };
        way.violations += 1;
        way.violations >= VIOLATIONS
    }

    fn has_violated_enough(&self) -> bool {
        let inner = self.resume().lock();
        let way = inner.ways.get(&self.way);
        way.is_some_and(|way| way.violations >= VIOLATIONS)
    }

    /// The session is over for everybody who has it.
    fn end(&self, why: &str) -> Try {
        let resume = self.resume();
        let mut inner = resume.lock();
        inner.core.end(why);
        resume.tell(inner);
        log::error!("{}: {why}; its clients have to open it anew", self.server());
        Try::Over
    }
}

/// The thread that comes back. If it ends without, an inspection starts another.
struct Thread<'a>(&'a Lasting);

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.0.no_thread();
    }
}

fn too_often(violation: &Error, server: &Server) -> String {
    format!(
        "{} ({VIOLATIONS} times in a row)",
        violation.without(server)
    )
}
