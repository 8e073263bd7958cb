// SPDX-License-Identifier: BSD-3-Clause
//! How a pool ends, is left, or is kept for another client.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Member, Pool, Renewal};
use crate::client::connection::come_to_rest;
use crate::client::error::Error;
use crate::client::plain::Own;
use crate::client::report::{WayReport, WayState};
use crate::proto::consts::TransmissionFlags;
use crate::transport::Deadline;

impl Pool {
    pub(in crate::client) fn is_over(&self) -> bool {
        self.living().all(|member| member.plain.is_over())
    }

    /// Whether the server still has all connections open; looks for the end of the streams. Who takes a way
    /// over that has lost one would be told of a loss that was none of its own.
    pub(in crate::client) fn is_alive(&self) -> bool {
        let alive = |member: &Member| !member.is_gone() && member.plain.is_alive();
        self.all().all(alive)
    }

    /// Whether nothing was ever asked of any of them.
    pub(in crate::client) fn is_unused(&self) -> bool {
        self.all().all(|member| member.plain.is_unused())
    }

    /// Flushes if something was written. Whether it can be given to another client then: one that has
    /// lost a member gets no new ones.
    pub(in crate::client) fn rest(self: &Arc<Self>, deadline: Deadline) -> bool {
        let fit = |member: &Member| !member.is_gone() && member.plain.is_fit();
        let fit = || self.all().all(fit);
        let flush = self.take_wrote();
        if flush {
            self.all().for_each(|member| member.plain.note_wrote());
        }
        let flush = flush && self.volume.export().can(TransmissionFlags::SEND_FLUSH);
        let flushed = || self.flush_within(&deadline, Renewal::Never).is_ok();
        fit() && (!flush || flushed()) && fit()
    }

    pub(in crate::client) fn is_gone(&self) -> bool {
        self.all()
            .all(|member| member.is_gone() || member.plain.is_gone())
    }

    pub(in crate::client) fn report(&self) -> WayReport {
        let living = || self.living().filter(|member| !member.plain.is_over());
        let over = living().next().is_none();
        WayReport {
            server: self.server().clone(),
            export: self.opener.export.clone(),
            state: if over {
                WayState::Over(None)
            } else {
                WayState::Up
            },
            connections: living()
                .flat_map(|member| member.plain.report().connections)
                .collect(),
            unflushed: self.all().any(|member| member.plain.report().unflushed),
        }
    }

    /// Flushes if something was written, on behalf of no client.
    pub(in crate::client) fn settle(self: &Arc<Self>) -> Result<(), Error> {
        let own = Own::new(&self.own);
        let wrote = || self.all().any(|member| member.plain.has_written());
        if !own.is_needed(wrote) {
            return Ok(());
        }
        if !self.volume.export().can(TransmissionFlags::SEND_FLUSH) {
            return Err(Error::no_flush(self.server()));
        }
        let timeout = self.opener.options.times.request.get();
        self.flush(&Deadline::after_maybe(timeout))
    }

    /// Ends a flush of our own: a thread of ours is to end, and with it what it waits for.
    fn end_own(&self, deadline: Deadline) {
        if self.own.is_busy() {
            come_to_rest(deadline, || !self.own.is_busy());
            if self.own.is_busy() {
                self.all().for_each(|member| member.plain.first().give_up());
            }
        }
    }

    pub(in crate::client) fn leave(self: &Arc<Self>, deadline: Deadline) {
        self.end_own(deadline);
        let candidate = {
            let mut state = self.lock();
            state.closed = true;
            self.trial.store(0, Ordering::Release);
            self.may_grow.store(false, Ordering::Release);
            state.candidate.take()
        };
        let deadline = self
            .living()
            .find_map(|member| member.plain.grace())
            .unwrap_or(deadline);
        if self.is_over() {
            self.tell_of_doubt();
            if let Some(lost) = self.all().find_map(|member| member.plain.untold_loss()) {
                log::debug!("{lost}");
            }
        } else if self.take_wrote() {
            self.all().for_each(|member| member.plain.note_wrote());
            self.flush_finally(deadline);
        }
        // All of them first, so that their servers end side by side.
        let leaving = || self.living().chain(&candidate);
        leaving().for_each(|member| member.plain.say_goodbye(deadline));
        leaving().for_each(|member| member.plain.finish(deadline));
    }

    fn flush_finally(self: &Arc<Self>, deadline: Deadline) {
        if !self.volume.export().can(TransmissionFlags::SEND_FLUSH) {
            return;
        }
        if let Err(error) = self.flush_within(&deadline, Renewal::Never) {
            // Not once for each kind: every time it is other data.
            log::error!("warning: {error}; what was written since the last flush may be lost");
        }
    }

    /// Tells of losses that no request has found out about, if that matters to what was answered.
    pub(in crate::client) fn tell_of_doubt(&self) {
        let wrote = self.take_wrote();
        if wrote {
            self.all().for_each(|member| member.plain.note_wrote());
        }
        if !wrote || !self.is_over() {
            return;
        }
        if let Some(lost) = self.all().find_map(|member| member.plain.untold_loss()) {
            log::error!("warning: {lost}; what was written since the last flush may be lost");
        }
    }

    pub(in crate::client) fn inspect(&self) -> bool {
        // All of them are to be looked at.
        self.all()
            .fold(false, |waits, member| member.plain.inspect() | waits)
    }

    pub(in crate::client) fn give_grace(&self, until: Deadline) {
        self.all().for_each(|member| member.plain.give_grace(until));
    }
}
