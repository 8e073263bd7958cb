// SPDX-License-Identifier: BSD-3-Clause
//! What can be done to all ways at once from outside (`control=`): to look at them, to hold all requests
//! with everything flushed, and to leave all connections for new ones.
//!
//! A hold is whole or there is none: whoever asks for one that cannot be had within its time, or does not
//! wait for the answer, finds everything as it was.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::come_to_rest;
use super::error::Error;
use super::links::Links;
use super::report::{JournalReport, WayReport, WayState};
use super::turnstile::Turnstile;
use super::upkeep::{Task, Upkeep};
use crate::transport::{Deadline, about, seconds};

/// So many ways are flushed at once.
const FLUSHERS: usize = 8;

/// How soon it is looked again whether anybody still waits for the answer.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// One at a time.
    #[error("another drain or reconnect is under way")]
    Busy,
    /// What is in flight takes longer.
    #[error("{inside} in flight not answered within {timeout}; nothing is held")]
    InFlight {
        /// How many.
        inside: String,
        /// How long it was waited for.
        timeout: String,
    },
    /// A client that has left may have something to be flushed yet.
    #[error("clients that have left not seen off within {0}; nothing is held")]
    Leaving(String),
    /// A flush has failed.
    #[error("flush: {0}; nothing is held")]
    Flush(Error),
    /// A flush takes longer.
    #[error("flush not answered within {0}; nothing is held")]
    FlushLate(String),
    /// Somebody else has ended it.
    #[error("ended by resume")]
    Resumed,
    /// Nobody waits for it.
    #[error("given up, as nobody waits for it")]
    GivenUp,
    /// There are no threads for it.
    #[error("nbdkit is about to end")]
    Ending,
    /// A lost connection is the end, and so is one that is left.
    #[error("connections are not made anew, as reconnect= is off")]
    NoReconnect,
    /// The server does not come back, or not so soon.
    #[error("{away} of {all} not back within {timeout}, and still tried: {why}")]
    Away {
        /// How many ways are without a connection.
        away: usize,
        /// How many there are.
        all: usize,
        /// How long it was waited for.
        timeout: String,
        /// What the first of them has to say.
        why: String,
    },
}

/// Whether requests are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// They go on.
    Open,
    /// They are about to be, or are for a moment.
    Closing,
    /// They are, for so long.
    Drained(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Open,
    /// By whom, as there may be another one after it.
    Closing(u64),
    Drained(Instant),
}

/// What can be seen from outside.
#[derive(Debug)]
pub struct Report {
    /// Whether requests are held.
    pub hold: Hold,
    /// How many requests of clients are being carried out.
    pub inside: usize,
    /// How many wait because of the hold.
    pub waiting: usize,
    /// All ways.
    pub ways: Vec<WayReport>,
    /// All journals.
    pub journals: Vec<JournalReport>,
}

/// See the module.
#[derive(Debug)]
pub struct Helm {
    upkeep: Arc<Upkeep>,
    turnstile: Arc<Turnstile>,
    /// Whether lost connections are made anew.
    comes_back: bool,
    phase: Mutex<Phase>,
    turns: AtomicU64,
    over: AtomicBool,
}

impl Helm {
    /// Over all ways that `upkeep` looks after, and all operations that pass by the `turnstile`.
    pub fn new(upkeep: Arc<Upkeep>, turnstile: Arc<Turnstile>, comes_back: bool) -> Self {
        Self {
            upkeep,
            turnstile,
            comes_back,
            phase: Mutex::new(Phase::Open),
            turns: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// What can be seen.
    pub fn report(&self) -> Report {
        let live = self.upkeep.live();
        let mut journals: Vec<JournalReport> = Vec::new();
        for links in &live {
            let volume = links.volume();
            if !journals.iter().any(|known| known.number == volume.number()) {
                journals.extend(volume.journal());
            }
        }
        let hold = match *self.phase() {
            Phase::Open => Hold::Open,
            Phase::Closing(_) => Hold::Closing,
            Phase::Drained(since) => Hold::Drained(since.elapsed()),
        };
        Report {
            hold,
            inside: self.turnstile.inside(),
            waiting: self.turnstile.waiting(),
            ways: live.iter().map(|links| links.report()).collect(),
            journals,
        }
    }

    /// Holds all requests, waits for the answers of those in flight, and flushes. Nothing is answered from
    /// then on until [`Helm::resume`]. `wanted` tells whether anybody waits for that.
    pub fn drain(&self, within: Duration, wanted: &dyn Fn() -> bool) -> Result<(), Refusal> {
        if matches!(*self.phase(), Phase::Drained(_)) {
            return Ok(());
        }
        let closed = self.close(Deadline::after(within), wanted)?;
        let mut phase = self.phase();
        if !closed.lasts(&phase) {
            return Err(Refusal::Resumed);
        }
        *phase = Phase::Drained(Instant::now());
        drop(phase);
        closed.keep();
        log::error!("control: drained: requests wait until resume");
        Ok(())
    }

    /// Lets requests go on. Whether any were held.
    pub fn resume(&self) -> bool {
        let mut phase = self.phase();
        let was = std::mem::replace(&mut *phase, Phase::Open);
        let held = !matches!(was, Phase::Open);
        if held {
            self.turnstile.open();
        }
        drop(phase);
        if let Phase::Drained(since) = was {
            log::error!("control: resumed after {}", about(since.elapsed()));
        }
        held
    }

    /// Leaves all connections for new ones, with everything answered and flushed before; requests wait
    /// meanwhile. How many ways have one.
    pub fn reconnect(&self, within: Duration, wanted: &dyn Fn() -> bool) -> Result<usize, Refusal> {
        if !self.comes_back {
            return Err(Refusal::NoReconnect);
        }
        let until = Deadline::after(within);
        let held = matches!(*self.phase(), Phase::Drained(_));
        // Where they are held already, they are to be held afterwards.
        let _closed = match held {
            true => None,
            false => Some(self.close(until, wanted)?),
        };
        let live = self.upkeep.live();
        live.iter().for_each(|links| links.replace_connections());
        let away = |links: &Arc<Links>| match links.report().state {
            WayState::Away { why, .. } => Some(format!("{}: {why}", links.server())),
            WayState::Up | WayState::Over(_) => None,
        };
        let back = || live.iter().all(|links| away(links).is_none());
        come_to_rest(until, || back() || !self.goes_on(wanted));
        let missing: Vec<_> = live.iter().filter_map(away).collect();
        match missing.first() {
            None => {
                let up = |links: &&Arc<Links>| matches!(links.report().state, WayState::Up);
                Ok(live.iter().filter(up).count())
            }
            Some(_) if !self.goes_on(wanted) => Err(self.interrupted()),
            Some(why) => Err(Refusal::Away {
                away: missing.len(),
                all: live.len(),
                timeout: seconds(within),
                why: why.clone(),
            }),
        }
    }

    /// nbdkit ends: whatever is under way is given up.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether it does.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Runs a task that may take long on a thread of its own. False if there can be none.
    pub fn run(&self, task: Task) -> bool {
        self.upkeep.helpers().run("nbd-control", task)
    }

    /// Holds all requests, and has everything answered and flushed. It is as before once what this gives
    /// back is gone.
    fn close(&self, until: Deadline, wanted: &dyn Fn() -> bool) -> Result<Closed<'_>, Refusal> {
        let mut phase = self.phase();
        match *phase {
            Phase::Open => (),
            Phase::Closing(_) | Phase::Drained(_) => return Err(Refusal::Busy),
        }
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        *phase = Phase::Closing(turn);
        self.turnstile.shut();
        drop(phase);
        let closed = Closed { helm: self, turn };
        let timeout = || seconds(until.length().unwrap_or_default());
        let goes_on = || self.goes_on(wanted) && closed.lasts(&self.phase());
        come_to_rest(until, || self.turnstile.inside() == 0 || !goes_on());
        if !goes_on() {
            return Err(self.interrupted());
        }
        let inside = self.turnstile.inside();
        if inside > 0 {
            return Err(Refusal::InFlight {
                inside: match inside {
                    1 => "1 request".to_owned(),
                    more => format!("{more} requests"),
                },
                timeout: timeout(),
            });
        }
        self.flush_all(until, &goes_on, timeout)?;
        // Whoever was leaving before that is none of those that were flushed, and flushes itself.
        come_to_rest(until, || self.upkeep.leaving() == 0 || !goes_on());
        if !goes_on() {
            return Err(self.interrupted());
        }
        match self.upkeep.leaving() {
            0 => Ok(closed),
            _ => Err(Refusal::Leaving(timeout())),
        }
    }

    /// Flushes all ways, each over its own connections; a flush that takes too long goes on by itself.
    fn flush_all(
        &self,
        until: Deadline,
        goes_on: &dyn Fn() -> bool,
        timeout: impl Fn() -> String,
    ) -> Result<(), Refusal> {
        let live = self.upkeep.live();
        let mut awaited = live.len();
        let queue = Arc::new(Mutex::new(live));
        let (sender, results) = mpsc::channel();
        for _ in 0..FLUSHERS.min(awaited) {
            let (queue, sender) = (queue.clone(), sender.clone());
            let flush = move || {
                let next = || {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    queue.pop()
                };
                while let Some(links) = next() {
                    // Who waited for it may have given up.
                    let _ = sender.send(links.settle());
                }
            };
            self.upkeep.helpers().run("nbd-flush", Box::new(flush));
        }
        drop(sender);
        let mut failure = None;
        while awaited > 0 {
            match results.recv_timeout(until.within(LOOK_AGAIN).remaining().unwrap_or(LOOK_AGAIN)) {
                Ok(result) => {
                    awaited -= 1;
                    failure = failure.or(result.err());
                }
                // Nobody is left who could flush the rest.
                Err(RecvTimeoutError::Disconnected) => return Err(Refusal::Ending),
                Err(RecvTimeoutError::Timeout) if !goes_on() => return Err(self.interrupted()),
                Err(RecvTimeoutError::Timeout) if until.has_passed() => {
                    return Err(Refusal::FlushLate(timeout()));
                }
                Err(RecvTimeoutError::Timeout) => (),
            }
        }
        failure.map_or(Ok(()), |error| Err(Refusal::Flush(error)))
    }

    fn goes_on(&self, wanted: &dyn Fn() -> bool) -> bool {
        !self.over.load(Ordering::Acquire) && wanted()
    }

    fn is_closing(&self) -> bool {
        matches!(*self.phase(), Phase::Closing(_))
    }

    fn interrupted(&self) -> Refusal {
        if self.over.load(Ordering::Acquire) {
            Refusal::Ending
        } else if self.is_closing() {
            Refusal::GivenUp
        } else {
            Refusal::Resumed
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests are held by whoever has this, unless somebody else lets them go on.
struct Closed<'a> {
    helm: &'a Helm,
    turn: u64,
}

impl Closed<'_> {
    /// Whether nobody has.
    fn lasts(&self, phase: &Phase) -> bool {
        matches!(phase, Phase::Closing(turn) if *turn == self.turn)
    }

    /// They are held beyond that.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut phase = self.helm.phase();
        if self.lasts(&phase) {
            *phase = Phase::Open;
            self.helm.turnstile.open();
        }
    }
}
