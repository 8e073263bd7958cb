// SPDX-License-Identifier: BSD-3-Clause
//! How a pool gets another connection: aside as load asks, on trial where something may be written, and
//! from a server that was not tried yet when all are gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Member, PATIENCE, Pool, State};
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
        let mut state = self.lock();
        // Where all are gone it is for those to look who have the time.
        let next = self.lives().then(|| self.next_server(&state));
        let Some((at, _)) = next.flatten() else {
            return;
        };
        let reserved = Reserved::new(self, &mut state, at);
        drop(state);
        let count = self.all().filter(|member| member.at == at).count();
        let opened = match opener.open_at(at, Some(opener.again(PATIENCE))) {
            Ok(opened) => opened,
            Err(error) => {
                let lives = self.living().any(|member| !member.plain.is_over());
                opener.declined(at, count, lives, &error);
                let mut state = self.lock();
                if self.lives() {
                    drop(state);
                    return self.fails(reserved);
                }
                // Nothing is left to go on over, and whoever looks for a server waits longer for it.
                return reserved.give_back(&mut state);
            }
        };
        let was = (self.volume.export(), self.protection);
        if let Some(difference) = opened.difference(was) {
            opener.leave_out(opened, difference);
            return self.fails(reserved);
        }
        let member = self.member(opened);
        let mut state = self.lock();
        reserved.give_back(&mut state);
        let spare = if state.closed || state.stopped {
            Some(member)
        } else if state.failed.contains(&at) {
            // It may lead to a server that was started anew.
            self.look_further(&state);
            Some(member)
        } else if !opener.may_write(self.volume.export()) {
            if !self.lives() {
                opener.options.note(Event::Replaced);
            }
            self.push(&mut state, member)
        } else {
            state.trials += 1;
            self.trial.store(state.trials, Ordering::Release);
            state.candidate.replace(member)
        };
        drop(state);
        self.see_off(spare);
    }

    /// To which server the next connection goes, and how many there are already. Of several at once it is
    /// the one with the fewest. What is on trial counts, and what is on its way: of those that are not, each
    /// finds a place.
    fn next_server(&self, state: &State) -> Option<(usize, usize)> {
        let members = || self.all().chain(&state.candidate).map(|member| member.at);
        let oldest = members().next()?;
        let places: Vec<usize> = members().chain(state.opening.iter().copied()).collect();
        let servers = match self.opener.is_spread() {
            true => 0..self.opener.servers(),
            false => oldest..oldest + 1,
        };
        let count = |at: usize| places.iter().filter(|place| **place == at).count();
        let late = |at: usize| state.late.get(&at).copied().unwrap_or_default();
        let next = servers
            .filter(|at| !state.failed.contains(at))
            .map(|at| (count(at), late(at), at))
            .filter(|(count, _, at)| *count < self.opener.most(*at))
            .min()
            .map(|(count, _, at)| (at, count));
        let eager = self.opener.is_spread() && next.is_some_and(|(_, count)| count == 0);
        self.eager.store(eager, Ordering::Relaxed);
        next
    }

    /// There is nothing more to be had from a server; perhaps from another.
    fn fails(&self, reserved: Reserved<'_>) {
        let mut state = self.lock();
        state.failed.insert(reserved.at);
        reserved.give_back(&mut state);
        self.look_further(&state);
    }

    /// Whether another connection may be looked for. To be called under the lock.
    fn look_further(&self, state: &State) {
        let may = self.opener.is_spread() && !state.closed && self.next_server(state).is_some();
        self.may_grow.store(may, Ordering::Release);
    }

    /// When all are gone: looks for a server that was not tried yet. Whether anything is to be had; whoever
    /// looks does so `until` then, and as long as its client is there. One at a time looks, and none that is
    /// being opened aside is opened once more: its end is waited for.
    #[cold]
    pub(super) fn seek(&self, until: &Deadline) -> bool {
        if !self.opener.is_spread() {
            return false;
        }
        let ready = |state: &State| state.closed || self.lives();
        let Some(mut state) = self.hold(until, |state| !state.seeking || ready(state)) else {
            return false;
        };
        if ready(&state) {
            return !state.closed;
        }
        state.seeking = true;
        drop(state);
        let _seeking = Seeking(self);
        log::debug!(
            "{}: all connections are lost; looking for another server",
            self.opener.server
        );
        let was = (self.volume.export(), self.protection);
        loop {
            let may = |state: &State| {
                ready(state) || state.opening.is_empty() || self.untried(state).is_some()
            };
            let Some(mut state) = self.hold(until, may) else {
                return false;
            };
            if ready(&state) {
                return !state.closed;
            }
            let Some(at) = self.untried(&state).filter(|_| !until.has_passed()) else {
                return false;
            };
            let reserved = Reserved::new(self, &mut state, at);
            drop(state);
            match self.opener.open_until(at, *until) {
                Ok(opened) => match opened.difference(was) {
                    None => {
                        let member = self.member(opened);
                        let mut state = self.lock();
                        reserved.give_back(&mut state);
                        let spare = match state.closed {
                            true => Some(member),
                            false => self.push(&mut state, member),
                        };
                        if spare.is_none() {
                            self.opener.options.note(Event::Replaced);
                            return true;
                        }
                        state.failed.insert(at);
                        drop(state);
                        self.see_off(spare);
                        continue;
                    }
                    Some(difference) => drop(self.opener.leave_out(opened, difference)),
                },
                // Whose client has left has looked in vain for itself alone.
                Err(error) if error.is_unwanted() => return false,
                Err(error) => {
                    log::debug!("{error}");
                    if until.has_passed() {
                        // Others may have more time. They begin with those that nobody has waited for.
                        *self.lock().late.entry(at).or_default() += 1;
                        return false;
                    }
                }
            }
            let mut state = self.lock();
            state.failed.insert(at);
            reserved.give_back(&mut state);
        }
    }

    /// A server to which no connection was made, nor is on its way.
    fn untried(&self, state: &State) -> Option<usize> {
        let next = self.next_server(state).filter(|(_, count)| *count == 0);
        next.map(|(at, _)| at)
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
        let candidate = state.candidate.take();
        let spare = candidate.and_then(|member| self.push(&mut state, member));
        drop(state);
        self.see_off(spare);
    }

    /// Requests may go over it from now on. It comes back if there is no place for it: whoever has it then
    /// sees it off.
    #[must_use]
    pub(super) fn push(&self, state: &mut State, member: Member) -> Option<Member> {
        let count = self.count.load(Ordering::Acquire);
        let spare = match self.members.get(count) {
            Some(place) => place.set(member).err(),
            None => Some(member),
        };
        if spare.is_some() {
            self.may_grow.store(false, Ordering::Release);
            return spare;
        }
        self.count.store(count + 1, Ordering::Release);
        state.last = None;
        if count > 0 {
            log::debug!("{}: {} connections", self.opener.server, count + 1);
        }
        let more = count + 1 < self.members.len() && state.candidate.is_none();
        self.may_grow.store(more, Ordering::Release);
        None
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

/// A place for a connection that is on its way to a server. Nobody else counts on it meanwhile, so that
/// there are no more connections than places.
struct Reserved<'a> {
    pool: &'a Pool,
    at: usize,
}

impl<'a> Reserved<'a> {
    fn new(pool: &'a Pool, state: &mut State, at: usize) -> Self {
        state.opening.push(at);
        Self { pool, at }
    }

    /// What comes of it is noted under the same lock.
    fn give_back(self, state: &mut State) {
        self.forget(state);
        std::mem::forget(self);
    }

    fn forget(&self, state: &mut State) {
        if let Some(own) = state.opening.iter().position(|at| *at == self.at) {
            state.opening.swap_remove(own);
        }
        self.pool.changed.notify_all();
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.forget(&mut self.pool.lock());
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
