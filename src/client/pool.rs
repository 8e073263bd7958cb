// SPDX-License-Identifier: BSD-3-Clause
//! A way with several connections, each of which lives and ends with what it was made for: without
//! `reconnect=`.
//!
//! The first one is there when the pool is. Further ones are opened aside, one after another, when a
//! request finds all of them busy, and nobody waits for them. Requests go where the fewest bytes are
//! outstanding. A connection that is lost is dropped while others live, and what was on its way over it
//! is made once more over another; the last one ends as a plain way does.
//!
//! **All connections of a pool lead to one instance of the server**, or nothing can be written over any of
//! them. So whoever is alive proves that what others have written is not lost, and a flush over any of
//! them makes it permanent (`NBD_FLAG_CAN_MULTI_CONN`). Two things see to that: a new connection is on
//! trial until a request that was sent after it was made is answered over one that had been there before;
//! and after the first loss there are no new ones.

mod growth;
mod leaving;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::error::{Cause, Error, Lost, Server};
use super::helpers::Helpers;
use super::lasting::ASK;
use super::loan::Buffer;
use super::opener::{Entered, Opener};
use super::plain::{OwnFlushes, Plain, changes};
use super::volume::Volume;
use crate::proto::WireError;
use crate::proto::chunks::Descriptor;
use crate::proto::consts::Command;
use crate::proto::request::Request;
use crate::session::gate::Protection;
use crate::stats::Event;
use crate::transport::Deadline;

/// How long one more connection may take, for each of its two steps.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What a request costs the server beside its payload, in bytes of payload.
const REQUEST: u64 = 4096;

/// What a request has at least that goes over a connection which had to be found first.
const LEAST: Duration = Duration::from_secs(1);

/// How long one who waits for the end of a lost connection does so before looking whether its client is
/// still there.
const SLICE: Duration = Duration::from_millis(250);

thread_local! {
    /// The member that this thread used last, of whatever pool: its place, or its number in the session.
    /// It has nothing to be dropped.
    static KEPT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// The member that this thread used last.
pub(super) fn kept() -> u64 {
    KEPT.get()
}

/// This thread uses that member.
pub(super) fn keep(number: u64) {
    KEPT.set(number);
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    opener: Opener,
    volume: Arc<Volume>,
    protection: Protection,
    helpers: Arc<Helpers>,
    /// In the order in which they came; those that are lost keep their place.
    members: Box<[OnceLock<Member>]>,
    count: AtomicUsize,
    /// Another one may be looked for: nobody does, and there is hope.
    may_grow: AtomicBool,
    /// There are servers that are to have a connection whatever the load.
    eager: AtomicBool,
    /// The number of the trial that a connection is on; 0 for none.
    trial: AtomicU64,
    /// Where the next look for the least busy one begins.
    turn: AtomicUsize,
    /// A flush of our own.
    own: OwnFlushes,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The connection on trial.
    candidate: Option<Member>,
    trials: u64,
    /// Something was lost, or is left: nothing is added any more.
    stopped: bool,
    /// Servers from which nothing more is to be had.
    failed: BTreeSet<usize>,
    /// Servers to which a connection is on its way, each as often as there is one.
    opening: Vec<usize>,
    /// Servers for which somebody's time was too short, and how often.
    late: BTreeMap<usize, u32>,
    /// Somebody looks for a server that was not tried yet.
    seeking: bool,
    closed: bool,
    /// The loss of the last one.
    last: Option<Arc<Lost>>,
}

#[derive(Debug)]
struct Member {
    plain: Plain,
    /// Which of several servers it leads to.
    at: usize,
    /// What is outstanding, bytes.
    load: AtomicU64,
    /// It is lost, or its server is going away: nothing new is sent.
    gone: AtomicBool,
    /// Nothing that was sent over it will be carried out any more.
    buried: AtomicBool,
}

/// What a request's time is for.
#[derive(Clone, Copy, Debug)]
enum Renewal {
    /// For one connection: the next one has as much.
    Each,
    /// For all that is done.
    Never,
}

/// What is to be done with a request whose connection is gone.
enum Next {
    /// It is made once more over another.
    Over,
    /// The server goes away, and this was the last one: as for a plain way.
    Alone,
    Fail(Error),
}

impl Pool {
    pub(super) fn new(
        opener: Opener,
        volume: Arc<Volume>,
        helpers: Arc<Helpers>,
        first: Entered,
    ) -> Self {
        let places = opener.places();
        let spread = opener.is_spread();
        let protection = first.protection;
        let pool = Self {
            members: (0..places).map(|_| OnceLock::new()).collect(),
            count: AtomicUsize::new(0),
            may_grow: AtomicBool::new(false),
            eager: AtomicBool::new(spread),
            trial: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            own: OwnFlushes::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            opener,
            volume,
            protection,
            helpers,
        };
        let member = pool.member(first);
        let spare = pool.push(&mut pool.lock(), member);
        debug_assert!(spare.is_none(), "there is a place for the first one");
        pool
    }

    /// The server's name for messages.
    pub(super) fn server(&self) -> &Server {
        &self.opener.server
    }

    fn member(&self, opened: Entered) -> Member {
        let (opener, volume) = (self.opener.clone(), self.volume.clone());
        Member {
            at: opened.at,
            plain: Plain::new(opener, volume, opened.connection, opened.protection),
            load: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            buried: AtomicBool::new(false),
        }
    }

    // Requests.

    /// Sends a request and waits for its answer; if its connection is lost, over another one.
    pub(super) fn submit(
        self: &Arc<Self>,
        request: Request,
        buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        self.carry_out(request, buffer, deadline, Renewal::Each, false)
    }

    /// Makes every answered change permanent, over whichever connection.
    pub(super) fn flush(self: &Arc<Self>, deadline: &Deadline) -> Result<(), Error> {
        self.flush_within(deadline, Renewal::Each)
    }

    // spec: Ordering of messages and writes: MUST NOT: with several connections no flush before the replies to the writes
    fn flush_within(self: &Arc<Self>, deadline: &Deadline, renewal: Renewal) -> Result<(), Error> {
        // Whoever writes from now on is not covered.
        let wrote = self.take_wrote();
        let request = Request::new(Command::FLUSH, 0, 0u32);
        let result = self.carry_out(request, Buffer::None, deadline, renewal, wrote);
        if result.is_err() && wrote {
            self.all().for_each(|member| member.plain.note_wrote());
        }
        result.map(drop)
    }

    /// `wrote` if it is a flush of something.
    fn carry_out(
        self: &Arc<Self>,
        request: Request,
        mut buffer: Buffer<'_>,
        deadline: &Deadline,
        renewal: Renewal,
        wrote: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        let cost = cost(request);
        let mut until = *deadline;
        // To look for another connection is no part of the time for one.
        let again = || match renewal {
            Renewal::Each => Deadline::after_maybe(deadline.length()),
            Renewal::Never => *deadline,
        };
        let mut search = until;
        let mut moved: Option<Arc<Lost>> = None;
        loop {
            let Some(member) = self.choose() else {
                if search.has_passed() || !self.seek(&search) {
                    return Err(self.is_ended(moved));
                }
                // Too late a request would end the new connection for everybody.
                if until.remaining().is_some_and(|left| left < LEAST) {
                    until = again().sooner(Deadline::after(LEAST));
                }
                continue;
            };
            let trial = self.trial.load(Ordering::Acquire);
            let mut result = {
                let _load = Load::new(&member.load, cost);
                member.plain.attempt(request, &mut buffer, &until)
            };
            let Err(Error::Lost(lost)) = &result else {
                if trial != 0 && is_answer(&result) {
                    self.admit(trial);
                }
                if let Some(lost) = moved {
                    self.tell(&lost);
                }
                return result;
            };
            let lost = lost.clone();
            match self.leave_out(member, &lost, request, &again()) {
                Next::Over => {
                    until = again();
                    search = until;
                    if until.has_passed() {
                        return Err(Error::Lost(lost));
                    }
                    moved.get_or_insert(lost);
                    self.opener.options.note(Event::SentAgain);
                }
                Next::Alone => {
                    if wrote || self.take_wrote() {
                        member.plain.note_wrote();
                    }
                    let buffer = &mut buffer;
                    member.plain.go_on(&mut result, request, buffer, &until);
                    return result;
                }
                Next::Fail(error) => return Err(error),
            }
        }
    }

    /// Where to send: where this thread was the last time if nothing is outstanding there, else where the
    /// least is. `None` if all are gone.
    fn choose(self: &Arc<Self>) -> Option<&Member> {
        let count = self.count.load(Ordering::Acquire);
        if self.eager.load(Ordering::Relaxed) && self.may_grow.load(Ordering::Relaxed) {
            self.grow();
        }
        let kept = usize::try_from(kept()).ok().filter(|kept| *kept < count);
        let kept = kept.and_then(|kept| self.members[kept].get());
        if let Some(member) = kept.filter(|member| member.is_free()) {
            return Some(member);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let order = (0..count).map(|n| (turn.wrapping_add(n)) % count);
        let living = order.filter_map(|at| {
            let member = self.members[at].get()?;
            let load = member.load.load(Ordering::Relaxed);
            (!member.is_gone()).then_some((load, at, member))
        });
        let (load, at, member) = living.min_by_key(|(load, ..)| *load)?;
        keep(at as u64);
        if load > 0 && self.may_grow.load(Ordering::Relaxed) {
            self.grow();
        }
        Some(member)
    }

    fn all(&self) -> impl Iterator<Item = &Member> {
        let count = self.count.load(Ordering::Acquire);
        self.members[..count].iter().filter_map(OnceLock::get)
    }

    fn lives(&self) -> bool {
        self.living().next().is_some()
    }

    fn living(&self) -> impl Iterator<Item = &Member> {
        self.all().filter(|member| !member.is_gone())
    }

    /// Whether anything was written over any connection that no flush has made permanent since. Nothing
    /// was, as far as they know, from now on.
    fn take_wrote(&self) -> bool {
        // All of them are to be asked.
        self.all()
            .fold(false, |wrote, member| member.plain.take_wrote() | wrote)
    }

    // Losses.

    /// Leaves a connection out that is gone, and says what becomes of a request that was on its way over
    /// it. What changes something is not to be made again before the server has got to the end of what
    /// it has received. If that was the last one, another is looked for `until` then.
    fn leave_out(
        self: &Arc<Self>,
        member: &Member,
        lost: &Arc<Lost>,
        request: Request,
        until: &Deadline,
    ) -> Next {
        let mut state = self.lock();
        let others = self.living().any(|other| !std::ptr::eq(other, member));
        let announced = matches!(lost.cause(), Cause::Announced);
        let candidate = state.candidate.take();
        self.trial.store(0, Ordering::Release);
        match self.opener.is_spread() {
            true => drop(state.failed.insert(member.at)),
            false => {
                self.may_grow.store(false, Ordering::Release);
                state.stopped = true;
            }
        }
        if announced && !others && !member.is_gone() {
            drop(state);
            self.see_off(candidate);
            return match self.await_all_left() {
                true => Next::Alone,
                false => Next::Fail(Error::Lost(lost.clone())),
            };
        }
        let first = !member.gone.swap(true, Ordering::AcqRel);
        if !others {
            state.last.get_or_insert_with(|| lost.clone());
        }
        let last = state.last.clone();
        drop(state);
        self.see_off(candidate);
        if first {
            self.end(member, announced);
        }
        if matches!(lost.cause(), Cause::GivenUp(_)) || !(others || self.seek(until)) {
            return Next::Fail(Error::Lost(last.unwrap_or_else(|| lost.clone())));
        }
        log::debug!("{lost}; {request} is made over another connection");
        match !changes(request.command) || self.await_burial(member) {
            true => Next::Over,
            false => Next::Fail(Error::Lost(lost.clone())),
        }
    }

    /// Sees a connection that is gone to its end, aside.
    fn end(self: &Arc<Self>, member: &Member, announced: bool) {
        let place = self.all().position(|other| std::ptr::eq(other, member));
        let (this, place) = (self.clone(), place.unwrap_or(usize::MAX));
        let task = move || {
            let Some(member) = this.members.get(place).and_then(OnceLock::get) else {
                return;
            };
            let _burial = Burial(&this, member);
            let deadline = Deadline::after_maybe(this.opener.options.times.close.get());
            let goes_on = || !this.helpers.is_closed();
            match announced {
                // What was written over it, another's flush makes permanent.
                true => drop(member.plain.first().retire(false, deadline, goes_on)),
                false => member.plain.first().bury(deadline, goes_on),
            }
        };
        if !self.helpers.run("nbd-bury", Box::new(task)) {
            // nbdkit ends, and nobody waits for last words.
            member.plain.first().give_up();
            drop(Burial(self, member));
        }
    }

    /// Waits until nothing that was sent over a lost connection will be carried out any more. False if
    /// nobody waits for what comes then.
    fn await_burial(&self, member: &Member) -> bool {
        // That has an end of its own.
        let buried = |_: &State| member.buried.load(Ordering::Acquire);
        self.hold(&Deadline::NEVER, buried).is_some()
    }

    /// Waits until nothing is answered any more over those that were left: the last one is left for another
    /// server, perhaps, and what was written is flushed before. False if nobody waits for what comes then.
    fn await_all_left(&self) -> bool {
        let left = || self.all().filter(|member| member.is_gone());
        let buried = left().all(|member| self.await_burial(member));
        // Whoever has just been answered notes what it has written.
        left().for_each(|member| member.plain.await_notes());
        buried
    }

    /// Waits until that is so, under the lock that is given back. `None` if this thread's client does not
    /// wait for it, or not any longer.
    fn hold(
        &self,
        until: &Deadline,
        is_so: impl Fn(&State) -> bool,
    ) -> Option<MutexGuard<'_, State>> {
        let wanted = self.opener.options.wanted;
        let mut asked = Instant::now();
        let mut state = self.lock();
        while !is_so(&state) {
            state = self
                .changed
                .wait_timeout(state, until.within(SLICE).remaining().unwrap_or(SLICE))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if is_so(&state) {
                break;
            }
            if until.has_passed() {
                return None;
            }
            if asked.elapsed() < ASK {
                continue;
            }
            asked = Instant::now();
            drop(state);
            // Not under the lock: to ask may print a message.
            if !wanted.is_none_or(|wanted| wanted()) {
                return None;
            }
            state = self.lock();
        }
        Some(state)
    }

    /// Why nothing can be sent any more.
    fn is_ended(&self, moved: Option<Arc<Lost>>) -> Error {
        match self.lock().last.clone().or(moved) {
            Some(lost) => Error::Lost(lost),
            None => Error::Unwanted(self.opener.server.clone()),
        }
    }

    /// Tells once of a loss that others make good.
    fn tell(&self, lost: &Lost) {
        if !matches!(lost.cause(), Cause::Announced) && lost.tell_once() {
            let others = self.living().count();
            let noun = if others == 1 { "one" } else { "ones" };
            log::error!("{lost}; going on over {others} other {noun}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn is_free(&self) -> bool {
        self.load.load(Ordering::Relaxed) == 0 && !self.is_gone()
    }
}

/// Whether it came from the server, and not from somebody who did not even ask.
fn is_answer<T>(result: &Result<T, Error>) -> bool {
    match result {
        Ok(_) => true,
        Err(Error::Failed { error, .. }) => !matches!(error, WireError::TooLong),
        Err(_) => false,
    }
}

/// What a request counts as while it is outstanding.
pub(super) fn cost(request: Request) -> u64 {
    match request.command {
        Command::READ | Command::WRITE => REQUEST + request.length,
        _ => REQUEST,
    }
}

/// A request that is outstanding.
#[derive(Debug)]
pub(super) struct Load<'a>(&'a AtomicU64, u64);

impl<'a> Load<'a> {
    pub(super) fn new(load: &'a AtomicU64, cost: u64) -> Self {
        load.fetch_add(cost, Ordering::Relaxed);
        Self(load, cost)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The duty of telling that a connection is buried.
struct Burial<'a>(&'a Pool, &'a Member);

impl Drop for Burial<'_> {
    fn drop(&mut self) {
        let state = self.0.lock();
        self.1.buried.store(true, Ordering::Release);
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::errno::NbdErrno;

    #[test]
    fn only_what_the_server_said_tells_that_it_is_there() {
        let server: Server = "server".into();
        let request = Request::new(Command::TRIM, 0, 1_u64 << 32);
        let failed = |error| {
            Err::<(), _>(Error::Failed {
                server: server.clone(),
                request,
                error,
            })
        };
        assert!(is_answer(&Ok(())));
        assert!(is_answer(&failed(WireError::server(NbdErrno::EIO, b""))));
        let crowded = Error::Crowded {
            server: server.clone(),
            request,
            timeout: Deadline::after(Duration::ZERO).passed(),
        };
        assert!(!is_answer(&Err::<(), _>(crowded)));
        assert!(!is_answer(&failed(WireError::TooLong)));
    }
}
