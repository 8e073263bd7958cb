// SPDX-License-Identifier: BSD-3-Clause
//! Several connections of one way: which one a request goes over, how another one joins, and what becomes
//! of one that is lost while others live.
//!
//! A new one is opened aside when a request finds all of them busy. It joins as every new connection
//! does: the journal is written over it first, so that it makes no difference whether the server has lost
//! its cache meanwhile. One that is lost is dropped, and replaced when there is reason to open another;
//! only with the last of them the way is lost, and comes back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Lasting;
use crate::client::connection::Connection;
use crate::client::error::{Cause, Error, Lost};
use crate::client::opener::Entered;
use crate::client::pool::{Load, PATIENCE, cost, keep, kept};
use crate::client::resume::{Inner, Phase, Up};
use crate::client::sync::MutexGuard;
use crate::proto::consts::Command;
use crate::proto::request::Request;
use crate::session::gate;
use crate::stats::Event;

/// Whether another connection is to be opened.
#[derive(Debug, Default)]
pub(in crate::client) struct Growth {
    /// Somebody is opening one.
    busy: AtomicBool,
    /// None is to be opened before the next inspection.
    rests: AtomicBool,
    /// There are servers that are to have one whatever the load.
    eager: AtomicBool,
    /// Lost ones that nothing has taken the place of yet.
    missing: AtomicU32,
    /// What came of it at each server: how often it failed, or that it is to be left at that.
    tries: Mutex<BTreeMap<usize, u32>>,
}

/// A server from which nothing more is to be had.
const NEVER: u32 = u32::MAX;

impl Growth {
    /// `eager` if several servers are to have connections whatever the load.
    pub(super) fn new(eager: bool) -> Self {
        Self {
            eager: AtomicBool::new(eager),
            ..Self::default()
        }
    }

    /// There was none to be had from a server, or never will be.
    fn failed(&self, at: usize, for_good: bool) {
        let mut tries = self.lock();
        let tries = tries.entry(at).or_default();
        *tries = if for_good {
            NEVER
        } else {
            tries.saturating_add(1)
        };
    }

    /// One more has come: whether it takes the place of a lost one.
    fn fills_a_gap(&self) -> bool {
        let less = |missing: u32| missing.checked_sub(1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.missing.fetch_update(set, get, less).is_ok()
    }

    fn tries(&self, at: usize) -> u32 {
        self.lock().get(&at).copied().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, u32>> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lasting {
    /// Over which of several connections a request goes: the one that this thread used last, if nothing
    /// is outstanding there, else where the least is. Without a journal a flush goes over the oldest: it
    /// was there before all that it is about.
    pub(super) fn choose(&self, inner: &Inner, oldest: Up, request: Request) -> Up {
        let Some(way) = inner.ways.get(&self.way) else {
            return oldest;
        };
        let flush = request.command == Command::FLUSH;
        if way.more.is_empty() || (flush && self.terms.replay == 0) {
            return oldest;
        }
        let load = |up: &Up| {
            let load = up.load.as_ref();
            load.map_or(0, |load| load.load(Ordering::Relaxed))
        };
        let last = way.ups().find(|up| kept() == up.member.number());
        if let Some(up) = last.filter(|up| load(up) == 0) {
            return up.clone();
        }
        let least = way.ups().min_by_key(|up| load(up));
        let up = least.map_or(oldest, Up::clone);
        keep(up.member.number());
        up
    }

    /// Notes what is outstanding, and opens another connection if that was some already.
    pub(super) fn load<'a>(self: &Arc<Self>, up: &'a Up, request: Request) -> Option<Load<'a>> {
        let load = up.load.as_ref()?;
        let busy = load.load(Ordering::Relaxed) > 0;
        let load = Load::new(load, cost(request));
        let growth = &self.growth;
        let rests = growth.rests.load(Ordering::Relaxed);
        let busy = busy || growth.eager.load(Ordering::Relaxed);
        if busy && !rests && !growth.busy.load(Ordering::Relaxed) {
            self.grow();
        }
        Some(load)
    }

    #[cold]
    fn grow(self: &Arc<Self>) {
        if self.growth.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        let begun = self.helpers.run(
            "nbd-connect",
            Box::new(move || {
                let _busy = Busy(&this.growth);
                this.add();
            }),
        );
        if !begun {
            drop(Busy(&self.growth));
        }
    }

    /// Opens one more connection.
    fn add(self: &Arc<Self>) {
        let Some((at, count)) = self.next_server() else {
            self.growth.rests.store(true, Ordering::Relaxed);
            return;
        };
        let opened = match self.opener.open_at(at, Some(self.again(PATIENCE))) {
            Ok(opened) => opened,
            Err(error) => {
                self.growth.rests.store(true, Ordering::Relaxed);
                self.growth.failed(at, false);
                let lives = !self.has_lost_any();
                self.opener.declined(at, count, lives, &error);
                return;
            }
        };
        let was = (self.volume.export(), self.protection);
        if let Some(difference) = gate::difference(was, (&opened.offer, opened.protection)) {
            self.growth.failed(at, true);
            self.opener.leave_out(opened, difference);
            return;
        }
        let Entered {
            connection, offer, ..
        } = opened;
        // It may lead to a server that was started anew.
        if self.has_lost_any() {
            connection.close(self.close_deadline());
            return;
        }
        let maximum = offer.maximum_payload();
        self.volume.found_payload(maximum);
        let goes_on = || !self.helpers.is_closed();
        self.growth.lock().remove(&at);
        let error = match self.settle_in((connection, at), maximum, true, goes_on) {
            Ok(true) if self.growth.fills_a_gap() => {
                return self.opener.options.note(Event::Replaced);
            }
            Ok(_) => return,
            Err(error) => error,
        };
        self.growth.rests.store(true, Ordering::Relaxed);
        log::debug!("{error}");
        let hung = matches!(&error, Error::Lost(lost)
            if matches!(lost.cause(), Cause::GivenUp(_) | Cause::Stalled(_)));
        self.growth
            .failed(at, hung || matches!(error, Error::Failed { .. }));
    }

    /// To which server the next connection goes, and how many there are already. Of several at once it is
    /// the one that has failed least, and then has the fewest.
    fn next_server(&self) -> Option<(usize, usize)> {
        let ups: Vec<usize> = {
            let inner = self.resume().lock();
            inner.ways.get(&self.way)?.ups().map(|up| up.at).collect()
        };
        let oldest = *ups.first()?;
        let servers = match self.opener.is_spread() {
            true => 0..self.opener.servers(),
            false => oldest..oldest + 1,
        };
        let count = |at: usize| ups.iter().filter(|up| **up == at).count();
        let next = servers
            .map(|at| (self.growth.tries(at), count(at), at))
            .filter(|(tries, count, at)| *tries < NEVER && *count < self.opener.most(*at))
            .min()
            .map(|(_, count, at)| (at, count));
        let eager = self.opener.is_spread() && next.is_some_and(|(_, count)| count == 0);
        self.growth.eager.store(eager, Ordering::Relaxed);
        next
    }

    /// Looks whether one of the connections is gone, of which nobody knows yet.
    pub(super) fn has_lost_any(self: &Arc<Self>) -> bool {
        let connections: Vec<_> = {
            let inner = self.resume().lock();
            let way = inner.ways.get(&self.way);
            let ups = way.into_iter().flat_map(|way| way.ups());
            ups.map(|up| up.connection.clone()).collect()
        };
        let mut any = connections.is_empty();
        for connection in &connections {
            if let Some(lost) = connection.loss() {
                any = true;
                self.lost(connection, &lost);
            }
        }
        any
    }

    /// One of several connections is lost, and the others go on. Gives the lock back if it was not.
    pub(super) fn drop_one<'a>(
        self: &Arc<Self>,
        mut inner: MutexGuard<'a, Inner>,
        connection: &Arc<Connection>,
        lost: &Arc<Lost>,
    ) -> Option<MutexGuard<'a, Inner>> {
        let inner_ref = &mut *inner;
        let Some(way) = inner_ref.ways.get_mut(&self.way) else {
            return Some(inner);
        };
        let Some(up) = way.drop_one(connection) else {
            return Some(inner);
        };
        inner_ref.core.lost(up.member);
        let announced = lost.cause().is_farewell();
        match lost.cause() {
            Cause::GivenUp(_) => {
                // Whoever would wait for it has left. The others are closed when it is.
                if let Phase::Up(oldest) = std::mem::replace(&mut way.phase, Phase::Over) {
                    way.more.insert(0, oldest);
                }
            }
            Cause::Announced | Cause::Replaced => way.leaving = true,
            Cause::Violation(_) => way.violations += 1,
            _ => (),
        }
        if !announced {
            way.dropped.push(lost.clone());
        }
        way.calm = false;
        self.growth.missing.fetch_add(1, Ordering::Relaxed);
        self.growth.rests.store(true, Ordering::Relaxed);
        self.resume().tell(inner);
        log::debug!("{lost}; others go on");
        match announced {
            true => self.retire_aside(up),
            false => self.bury_aside(up),
        }
        None
    }

    /// Leaves a connection whose server is going away, while others go on. The journal has what was
    /// written over it.
    fn retire_aside(self: &Arc<Self>, up: Up) {
        let (this, last) = (self.clone(), up.clone());
        let retire = move || {
            let goes_on = || !this.helpers.is_closed();
            up.connection.retire(false, this.close_deadline(), goes_on);
            let mut inner = this.resume().lock();
            inner.core.buried(up.member);
            this.resume().tell(inner);
        };
        if !self.helpers.run("nbd-retire", Box::new(retire)) {
            last.connection.give_up();
            let mut inner = self.resume().lock();
            inner.core.buried(last.member);
            self.resume().tell(inner);
        }
    }

    /// Tells of losses that others have made good, in one line, and lets others be opened in the place of
    /// what was lost.
    pub(super) fn inspect_members(&self, mut inner: MutexGuard<'_, Inner>) {
        let Some(way) = inner.ways.get_mut(&self.way) else {
            return;
        };
        let dropped = std::mem::take(&mut way.dropped);
        let left = way.ups().count();
        let rests = !std::mem::replace(&mut way.calm, true) || way.leaving;
        drop(inner);
        self.growth.rests.store(rests, Ordering::Relaxed);
        tell(&dropped, left);
    }
}

/// Tells of losses that others have made good, in one line.
pub(super) fn tell(dropped: &[Arc<Lost>], left: usize) {
    let Some(lost) = dropped.first() else {
        return;
    };
    for lost in dropped {
        lost.tell_once();
    }
    let also = match dropped.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    log::error!("{lost}{also}; going on over {left}");
}

/// The duty of noting that nobody opens one any more.
struct Busy<'a>(&'a Growth);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}
