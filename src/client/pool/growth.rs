// SPDX-License-Identifier: BSD-3-Clause
//! How a pool gets another connection: aside as load asks, on trial where something may be written, and
//! from a server that was not tried yet when all are gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Member, PATIENCE, Pool};
use crate::client::connection::Connection;
use crate::stats::Event;
use crate::transport::Deadline;

impl Pool {
    #[cold]
    pub(super) fn grow(self: &Arc<Self>) {
        if !self.may_grow.swap(false, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        let begun = self
            .helpers
            .run("nbd-connect", Box::new(move || this.add()));
        if !begun {
            // Before nbdkit has forked there is none.
            self.may_grow.store(true, Ordering::Release);
        }
    }

    /// Opens one more connection.
    fn add(self: &Arc<Self>) {
        let opener = &self.opener;
        let Some((at, count)) = self.next_server() else {
            return;
        };
        let opened = match opener.open_at(at, Some(PATIENCE)) {
            Ok(opened) => opened,
            Err(error) => {
                let lives = self.living().any(|member| !member.plain.is_over());
                opener.declined(at, count, lives, &error);
                self.fails(at);
                return;
            }
        };
        let was = (self.volume.export(), self.protection);
        if let Some(difference) = opened.difference(was) {
            opener.leave_out(opened, difference);
            self.fails(at);
            return;
        }
        let member = self.member(opened);
        let mut state = self.lock();
        if state.closed || state.stopped {
            drop(state);
            self.see_off(Some(member));
            return;
        }
        if !opener.may_write(self.volume.export()) {
            self.push(member);
            return;
        }
        state.candidate = Some(member);
        state.trials += 1;
        self.trial.store(state.trials, Ordering::Release);
    }

    /// To which server the next connection goes, and how many have been made to it. Of several at once it
    /// is the one with the fewest.
    fn next_server(&self) -> Option<(usize, usize)> {
        let places: Vec<usize> = self.all().map(|member| member.at).collect();
        let oldest = *places.first()?;
        let servers = match self.opener.is_spread() {
            true => 0..self.opener.servers(),
            false => oldest..oldest + 1,
        };
        let count = |at: usize| places.iter().filter(|place| **place == at).count();
        let failed = self.lock().failed.clone();
        let next = servers
            .filter(|at| !failed.contains(at))
            .map(|at| (count(at), at))
            .filter(|(count, at)| *count < self.opener.most(*at))
            .min()
            .map(|(count, at)| (at, count));
        let eager = self.opener.is_spread() && next.is_some_and(|(_, count)| count == 0);
        self.eager.store(eager, Ordering::Relaxed);
        next
    }

    /// There is nothing more to be had from a server; perhaps from another.
    fn fails(&self, at: usize) {
        self.lock().failed.insert(at);
        let more = self.opener.is_spread() && self.next_server().is_some();
        self.may_grow.store(more, Ordering::Release);
    }

    /// When all are gone: looks for a server that was not tried yet. Whether anything is to be had.
    #[cold]
    pub(super) fn seek(&self) -> bool {
        if !self.opener.is_spread() {
            return false;
        }
        let mut state = self.lock();
        while state.seeking {
            drop(state);
            if !self.hold(|state| !state.seeking) {
                return false;
            }
            state = self.lock();
        }
        if state.closed || self.living().next().is_some() {
            return !state.closed;
        }
        state.seeking = true;
        drop(state);
        let _seeking = Seeking(self);
        while let Some((at, 0)) = self.next_server() {
            let was = (self.volume.export(), self.protection);
            match self.opener.open_at(at, None) {
                Ok(opened) => match opened.difference(was) {
                    None => {
                        let member = self.member(opened);
                        let mut state = self.lock();
                        state.last = None;
                        self.opener.options.note(Event::Replaced);
                        self.push(member);
                        return true;
                    }
                    Some(difference) => drop(self.opener.leave_out(opened, difference)),
                },
                // Whose client has left has looked in vain for itself alone.
                Err(error) if error.is_unwanted() => return false,
                Err(error) => log::debug!("{error}"),
            }
            self.lock().failed.insert(at);
        }
        false
    }

    /// A request has been answered that was sent while a connection was on this trial: the server that it
    /// leads to is the one of the others.
    #[cold]
    pub(super) fn admit(&self, trial: u64) {
        let mut state = self.lock();
        if self.trial.load(Ordering::Acquire) != trial {
            return;
        }
        self.trial.store(0, Ordering::Release);
        if let Some(member) = state.candidate.take() {
            self.push(member);
        }
    }

    /// To be called under the lock, but for the first one.
    pub(super) fn push(&self, member: Member) {
        let count = self.count.load(Ordering::Acquire);
        if let Some(place) = self.members.get(count) {
            let _ = place.set(member);
            self.count.store(count + 1, Ordering::Release);
        }
        if count > 0 {
            log::debug!("{}: {} connections", self.opener.server, count + 1);
        }
        let more = count + 1 < self.members.len();
        self.may_grow.store(more, Ordering::Release);
    }

    /// Leaves a connection that is of no use.
    pub(super) fn see_off(&self, member: Option<Member>) {
        if let Some(member) = member {
            self.close(member.plain.into_first());
        }
    }

    fn close(&self, connection: Connection) {
        let timeout = self.opener.options.times.close.get();
        let close = move || connection.close(Deadline::after_maybe(timeout));
        // If there are no threads any more, it is closed without a word.
        self.helpers.run("nbd-close", Box::new(close));
    }
}

/// The duty of ending the search for another server.
struct Seeking<'a>(&'a Pool);

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        self.0.lock().seeking = false;
        self.0.changed.notify_all();
    }
}
