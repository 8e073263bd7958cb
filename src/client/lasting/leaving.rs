// SPDX-License-Identifier: BSD-3-Clause
//! How a client leaves a way that outlives its connections.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::members::tell;
use super::{ASK, Lasting};
use crate::client::error::{Cause, Error, Server};
use crate::client::report::{WayReport, WayState};
use crate::client::resume::{Inner, Phase, SLICE, Up, Way};
use crate::session::Core;
use crate::transport::{self, Deadline};

impl Lasting {
    /// Leaves: flushes what this way wrote, and says goodbye. A server that is lost is not waited for.
    pub(in crate::client) fn close(self: &Arc<Self>, deadline: Deadline) {
        let resume = self.resume();
        let grace = |up: &Up| up.connection.grace();
        let deadline = self.ups().iter().find_map(grace).unwrap_or(deadline);
        self.await_own_flush(deadline);
        let ups = self.ups();
        if !ups.is_empty() && ups.iter().all(|up| up.connection.is_idle()) {
            self.flush_finally(&ups, deadline);
        }
        let mut inner = resume.lock();
        let Inner { core, ways, .. } = &mut *inner;
        let Some(way) = ways.remove(&self.way) else {
            return;
        };
        // Without a journal nobody but its member knows of it.
        let unflushed = core.has_unflushed() || core.losses() > way.losses;
        let mut open: Vec<_> = way.ups().map(|up| up.connection.clone()).collect();
        way.ups().for_each(|up| core.left(up.member));
        let grave = match way.phase {
            Phase::Away(away) => away.grave,
            Phase::New | Phase::Up(_) | Phase::Over => None,
        };
        let last = ways.is_empty() && unflushed;
        resume.tell(inner);
        if !open.is_empty() {
            tell(&way.dropped, open.len());
        }
        if let Some(grave) = grave {
            self.bury_aside(grave);
        }
        for coming in way.coming.iter().chain(&way.joining) {
            // What was written over it again may still be carried out.
            coming.give_up_softly(Cause::GivenUp(transport::Error::Unwanted));
        }
        if last {
            log::error!(
                "warning: {}: what was written since the last flush may be lost: the last client has \
                 left",
                self.server()
            );
        }
        open.retain(|connection| {
            let idle = connection.is_idle();
            match self.own.load(Ordering::Acquire) > 0 {
                _ if idle => connection.say_goodbye(deadline),
                // A thread of ours is to end, and with it what it waits for.
                true => connection.give_up(),
                false => log::debug!("{}: left with requests in flight", self.server()),
            }
            idle
        });
        // All have been told: their servers end side by side.
        open.iter()
            .for_each(|connection| connection.close(deadline));
    }

    /// Leaves all connections for new ones, as if the server had said that it is going away.
    pub(in crate::client) fn replace_connections(self: &Arc<Self>) {
        for up in self.ups() {
            let replaced = up.connection.replace();
            self.lost(&up.connection, &replaced);
        }
    }

    /// Flushes what this way wrote, on behalf of no client; a server that is lost is not waited for.
    pub(in crate::client) fn settle(self: &Arc<Self>) -> Result<(), Error> {
        let wants = {
            let inner = self.resume().lock();
            let core = &inner.core;
            let way = inner.ways.get(&self.way);
            let mut ups = way.into_iter().flat_map(|way| way.ups()).peekable();
            match ups.peek() {
                Some(_) => ups.any(|up| core.wants_flush(up.member)),
                None => core.has_unflushed(),
            }
        };
        match wants {
            true if self.can_flush() => self.flush_on_our_own(),
            true => Err(Error::no_flush(self.server())),
            false => Ok(()),
        }
    }

    pub(in crate::client) fn report(&self) -> WayReport {
        let inner = self.resume().lock();
        let core = &inner.core;
        let way = inner.ways.get(&self.way);
        let state = match (core.doom(), way.map(|way| &way.phase)) {
            (Some(why), _) => WayState::Over(Some(why.clone())),
            (None, Some(Phase::Up(_))) => WayState::Up,
            (None, Some(Phase::Away(away))) => WayState::Away {
                lasts: away.since.elapsed(),
                tries: away.outage.tries(),
                why: away
                    .outage
                    .last()
                    .unwrap_or_else(|| away.outage.lost().cause().to_string()),
            },
            (None, Some(Phase::New | Phase::Over) | None) => WayState::Over(None),
        };
        let ups = way.into_iter().flat_map(|way| way.ups());
        WayReport {
            server: self.server().clone(),
            export: self.opener.export.clone(),
            state,
            connections: ups.map(|up| up.connection.report()).collect(),
            unflushed: core.has_unflushed(),
        }
    }

    /// Whether the server is there, and has all connections open; looks for the end of the streams.
    pub(in crate::client) fn is_alive(&self) -> bool {
        let doomed = self.resume().lock().core.doom().is_some();
        let ups = self.ups();
        !doomed && !ups.is_empty() && ups.iter().all(|up| !up.connection.is_over())
    }

    /// The name of the server that it is connected to.
    pub(in crate::client) fn server_at_present(&self) -> Server {
        let ups = self.ups();
        let up = ups.first().map(|up| up.connection.server());
        up.unwrap_or(self.server()).clone()
    }

    /// Whether what is kept to be written again is older than what others may have written, who found another
    /// export meanwhile.
    pub(in crate::client) fn is_outdated(&self) -> bool {
        self.volume.is_superseded() && self.resume().lock().core.has_unflushed()
    }

    /// Whether it is away because all servers, which are there, differ from what they were.
    pub(in crate::client) fn is_elsewhere(&self) -> bool {
        let inner = self.resume().lock();
        match inner.ways.get(&self.way).map(|way| &way.phase) {
            Some(Phase::Away(away)) => away.outage.differs(),
            _ => false,
        }
    }

    /// Looks whether its connections have ended, and if all have, waits for the first try to come back, or
    /// as long as one who has all the time in the world does without looking around.
    pub(in crate::client) fn find_out(self: &Arc<Self>) {
        if !self.has_lost_any() {
            return;
        }
        let until = Deadline::after(ASK);
        let resume = self.resume();
        let mut inner = resume.lock();
        let tries = |way: &Way| match &way.phase {
            Phase::Away(away) => away.outage.tries(),
            _ => 1,
        };
        while inner.core.doom().is_none()
            && inner.ways.get(&self.way).is_some_and(|way| tries(way) == 0)
            && !until.has_passed()
        {
            inner = resume.hold(inner, SLICE);
        }
    }

    /// Whether nothing was ever asked of its connections.
    pub(in crate::client) fn is_unused(&self) -> bool {
        let ups = self.ups();
        !ups.is_empty() && ups.iter().all(|up| up.connection.is_unused())
    }

    /// Flushes what this way wrote. Whether it can be given to another client then.
    pub(in crate::client) fn rest(self: &Arc<Self>, deadline: Deadline) -> bool {
        self.await_own_flush(deadline);
        let fit = || {
            let ups = self.ups();
            let fit = |up: &Up| !up.connection.is_over() && up.connection.is_idle();
            (!ups.is_empty() && ups.iter().all(fit)).then_some(ups)
        };
        let Some(ups) = fit() else {
            return false;
        };
        self.flush_finally(&ups, deadline) && fit().is_some()
    }

    /// Flushes what this way wrote, if need be. Whether that was good.
    fn flush_finally(self: &Arc<Self>, ups: &[Up], deadline: Deadline) -> bool {
        let wants = |core: &Core| ups.iter().any(|up| core.wants_flush(up.member));
        if !self.can_flush() || !wants(&self.resume().lock().core) {
            return true;
        }
        let mut operation = self.operation(&deadline);
        operation.timeout = deadline.remaining();
        operation.end = Some(deadline);
        operation.wanted = None;
        operation.hurried = true;
        let flushed = self.flush_for(&mut operation, None);
        if let Err(error) = &flushed {
            log::debug!("{error}");
        }
        flushed.is_ok()
    }

    fn ups(&self) -> Vec<Up> {
        let inner = self.resume().lock();
        let way = inner.ways.get(&self.way);
        let ups = way.into_iter().flat_map(|way| way.ups());
        ups.cloned().collect()
    }

    /// A flush of our own that is on its way is the one that whoever leaves would ask for.
    fn await_own_flush(&self, deadline: Deadline) {
        let resume = self.resume();
        let mut inner = resume.lock();
        while self.own.load(Ordering::Acquire) > 0 && !deadline.has_passed() {
            let is_up = |way: &Way| matches!(way.phase, Phase::Up(_));
            if !inner.ways.get(&self.way).is_some_and(is_up) {
                break;
            }
            let most = deadline.within(SLICE).remaining().unwrap_or(SLICE);
            inner = resume.hold(inner, most);
        }
    }
}
