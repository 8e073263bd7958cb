// SPDX-License-Identifier: BSD-3-Clause
//! How a client leaves a way that outlives its connections.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Lasting;
use crate::client::resume::{Inner, Phase, SLICE, Up, Way};
use crate::transport::Deadline;

impl Lasting {
    /// Leaves: flushes what this way wrote, and says goodbye. A server that is lost is not waited for.
    pub(in crate::client) fn close(self: &Arc<Self>, deadline: Deadline) {
        let resume = self.resume();
        let deadline = self
            .up()
            .and_then(|up| up.connection.grace())
            .unwrap_or(deadline);
        self.await_own_flush(deadline);
        let up = self.up();
        let idle = up.as_ref().is_none_or(|up| up.connection.is_idle());
        if let Some(up) = up.as_ref().filter(|_| idle) {
            self.flush_finally(up, deadline);
        }
        let mut inner = resume.lock();
        let Inner { core, ways, .. } = &mut *inner;
        let Some(way) = ways.remove(&self.way) else {
            return;
        };
        // Without a journal nobody but its member knows of it.
        let unflushed = core.has_unflushed() || core.losses() > way.losses;
        let mut grave = None;
        let open = match way.phase {
            Phase::Up(up) => {
                core.left(up.member);
                Some(up.connection)
            }
            Phase::Away(away) => {
                grave = away.grave;
                None
            }
            Phase::New | Phase::Over => None,
        };
        let last = ways.is_empty() && unflushed;
        resume.tell(inner);
        if let Some(grave) = grave {
            self.bury_aside(grave);
        }
        if let Some(coming) = way.coming {
            coming.give_up();
        }
        if last {
            log::error!(
                "warning: {}: what was written since the last flush may be lost: the last client has \
                 left",
                self.server()
            );
        }
        match open {
            Some(connection) if idle => connection.close(deadline),
            // A thread of ours is to end, and with it what it waits for.
            Some(connection) if self.own.load(Ordering::Acquire) > 0 => connection.give_up(),
            Some(_) => log::debug!("{}: left with requests in flight", self.server()),
            None => (),
        }
    }

    /// Whether the server is there, and has the connection open; looks for the end of the stream.
    pub(in crate::client) fn is_alive(&self) -> bool {
        self.up().is_some_and(|up| !up.connection.is_over())
    }

    /// Whether nothing was ever asked of its connection.
    pub(in crate::client) fn is_unused(&self) -> bool {
        self.up().is_some_and(|up| up.connection.is_unused())
    }

    /// Flushes what this way wrote. Whether it can be given to another client then.
    pub(in crate::client) fn rest(self: &Arc<Self>, deadline: Deadline) -> bool {
        self.await_own_flush(deadline);
        let fit = || {
            let up = self.up();
            up.filter(|up| !up.connection.is_over() && up.connection.is_idle())
        };
        let Some(up) = fit() else {
            return false;
        };
        self.flush_finally(&up, deadline) && fit().is_some()
    }

    /// Flushes what this way wrote, if need be. Whether that was good.
    fn flush_finally(self: &Arc<Self>, up: &Up, deadline: Deadline) -> bool {
        if !self.can_flush() || !self.resume().lock().core.wants_flush(up.member) {
            return true;
        }
        let mut operation = self.operation(&deadline);
        operation.timeout = deadline.remaining();
        operation.wanted = None;
        operation.hurried = true;
        let flushed = self.flush_for(&mut operation, None);
        if let Err(error) = &flushed {
            log::debug!("{error}");
        }
        flushed.is_ok()
    }

    fn up(&self) -> Option<Up> {
        match &self.resume().lock().ways.get(&self.way)?.phase {
            Phase::Up(up) => Some(up.clone()),
            _ => None,
        }
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
