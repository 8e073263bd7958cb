// SPDX-License-Identifier: BSD-3-Clause
//! What all threads of the server share. One lock makes the log's order the order of what happened.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use crate::common::scripted::wire::{self, cmd, errno};
use crate::torture::setup::Setup;
use crate::torture::trace::event::{Event, Request, What};
use crate::torture::{Rng, now};

use super::cache::{Cache, Change};
use super::schedule::{Job, Schedule};

pub struct World {
    pub setup: Setup,
    pub schedule: Schedule,
    state: Mutex<State>,
}

struct State {
    cache: Cache,
    log: File,
    rng: Rng,
    /// Arrivals, applications and answers.
    steps: u64,
    arrived: u64,
    changes: u64,
    flushes: u64,
    connections: u64,
    live: Vec<Weak<Connection>>,
    reading: u64,
    peak: u64,
}

/// How a request came.
#[derive(Clone, Copy)]
pub struct Arrival {
    tick: u64,
    /// Its answer will get lost.
    lost: bool,
    /// It was put off since its connection had broken.
    pub late: bool,
}

/// What became of a request.
pub struct Outcome {
    error: u32,
    lost: bool,
    data: Vec<u8>,
    change: Option<Change>,
}

impl World {
    pub fn new(setup: Setup) -> Arc<Self> {
        let backing = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&setup.backing)
            .expect("the backing file");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&setup.log)
            .expect("the log");
        let mut rng = Rng::new(setup.seed);
        let world = Arc::new(Self {
            schedule: Schedule::new(rng.fork()),
            state: Mutex::new(State {
                cache: Cache::new(backing, setup.size),
                log,
                rng,
                steps: 0,
                arrived: 0,
                changes: 0,
                flushes: 0,
                connections: 0,
                live: Vec::new(),
                reading: 0,
                peak: 0,
            }),
            setup,
        });
        let multi = world.setup.multi();
        world.log(0, What::Start { multi });
        world
    }

    pub fn log(&self, connection: u64, what: What) {
        self.write(&mut self.state(), connection, what);
    }

    /// The number of a new connection.
    pub fn accepted(&self) -> u64 {
        let mut state = self.state();
        state.connections += 1;
        state.connections
    }

    /// Requests can come on a connection.
    pub fn open(&self, connection: &Arc<Connection>) {
        let mut state = self.state();
        state.live.retain(|other| other.strong_count() > 0);
        state.live.push(Arc::downgrade(connection));
        self.write(&mut state, connection.number, What::Open);
    }

    pub fn connections(&self) -> u64 {
        self.state().connections
    }

    pub fn arrived(&self) -> u64 {
        self.state().arrived
    }

    /// The most reads that were in flight at one time.
    pub fn peak(&self) -> u64 {
        self.state().peak
    }

    /// Dies at once, as by SIGKILL, after chance has decided what is durable.
    pub fn die(&self) -> ! {
        self.die_with(&mut self.state())
    }

    fn die_with(&self, state: &mut State) -> ! {
        let mut rng = state.rng.fork();
        state.cache.crash(&mut rng);
        kill_process(getpid(), Signal::KILL).expect("a signal to ourselves");
        process::abort();
    }

    /// Takes a request, which will be done later.
    pub fn arrive(&self, connection: &Arc<Connection>, request: Request, payload: Vec<u8>) {
        let mut delay = self.schedule.delay(self.setup.delay);
        let arrival;
        {
            let mut state = self.state();
            state.arrived += 1;
            self.write(&mut state, connection.number, What::Arrive(request.clone()));
            self.step(&mut state);
            arrival = Arrival {
                tick: state.cache.flush_arrives(),
                lost: state.arrived == self.setup.drops,
                late: false,
            };
            if request.kind == cmd::READ {
                delay += self.setup.slow * 1000;
                state.reading += 1;
                state.peak = state.peak.max(state.reading);
            }
            if state.arrived == self.setup.goes_at {
                connection.go();
            }
        }
        if self.setup.silent {
            connection.less();
            return;
        }
        let connection = Arc::clone(connection);
        let job = if connection.going() {
            Job::Answer(connection, request, Outcome::error(errno::ESHUTDOWN))
        } else {
            Job::Apply(connection, request, payload, arrival)
        };
        self.schedule.add(now() + delay, job);
    }

    /// Does a request; the answer is for later.
    pub fn apply(
        &self,
        connection: &Arc<Connection>,
        request: Request,
        payload: &[u8],
        arrival: Arrival,
    ) {
        let mut state = self.state();
        let tick = arrival.tick;
        let mut outcome = self.outcome(&mut state, connection.number, &request, payload, tick);
        outcome.lost = arrival.lost;
        if outcome.error == 0 {
            let contents = match request.kind {
                cmd::READ => state.cache.contents(request.offset, request.length),
                _ => Vec::new(),
            };
            let what = What::Apply {
                cookie: request.cookie,
                contents,
            };
            self.write(&mut state, connection.number, what);
        }
        self.step(&mut state);
        drop(state);
        let due = now() + self.schedule.delay(self.setup.delay);
        let job = Job::Answer(Arc::clone(connection), request, outcome);
        self.schedule.add(due, job);
    }

    fn outcome(
        &self,
        state: &mut State,
        connection: u64,
        request: &Request,
        payload: &[u8],
        tick: u64,
    ) -> Outcome {
        let (offset, length) = (request.offset, request.length);
        let end = offset.checked_add(length);
        if request.kind != cmd::FLUSH && end.is_none_or(|end| end > self.setup.size) {
            return Outcome::error(errno::EINVAL);
        }
        let block = u64::from(self.setup.blocks.0.max(1));
        if offset % block != 0 || length % block != 0 {
            return Outcome::error(errno::EINVAL);
        }
        let mut outcome = Outcome::error(0);
        match request.kind {
            cmd::READ => outcome.data = state.cache.read(offset, length),
            cmd::CACHE => {}
            cmd::FLUSH => {
                state.flushes += 1;
                if self.setup.flush_fails == state.flushes {
                    state.cache.drop_dirty();
                    return Outcome::error(errno::EIO);
                }
                let own = (!self.setup.multi()).then_some(connection);
                if state.rng.chance(30) {
                    state.cache.flush_all();
                } else {
                    state.cache.flush(tick, own);
                }
            }
            cmd::WRITE | cmd::WRITE_ZEROES | cmd::TRIM => {
                state.changes += 1;
                if self.setup.changes_fail_from != 0
                    && state.changes >= self.setup.changes_fail_from
                {
                    return Outcome::error(self.setup.changes_fail);
                }
                let bytes = (request.kind == cmd::WRITE).then_some(payload);
                // A server may do nothing at all for a trim.
                if request.kind != cmd::TRIM || state.rng.chance(50) {
                    let change = state.cache.change(connection, offset, length, bytes);
                    if request.fua {
                        state.cache.force(change);
                    }
                    outcome.change = Some(change);
                }
            }
            _ => return Outcome::error(errno::EINVAL),
        }
        outcome
    }

    /// Answers a request.
    pub fn answer(&self, connection: &Connection, request: &Request, outcome: &Outcome) {
        let lost;
        {
            let mut state = self.state();
            if request.kind == cmd::READ {
                state.reading -= 1;
            }
            lost = outcome.lost || connection.is_cut();
            if !lost {
                if let Some(change) = outcome.change {
                    state.cache.answered(change);
                }
                let what = What::Reply {
                    cookie: request.cookie,
                    error: outcome.error,
                };
                self.write(&mut state, connection.number, what);
                self.step(&mut state);
            }
        }
        if self.setup.violates {
            connection.send(b"this is no reply of the protocol");
        } else if !lost {
            connection.reply(request, outcome, self.schedule.delay(2) == 0);
        }
        connection.less();
    }

    fn step(&self, state: &mut State) {
        state.steps += 1;
        if self.setup.die_at != 0 && state.steps >= self.setup.die_at {
            self.die_with(state);
        }
        if self.setup.cut_every != 0 && state.steps % self.setup.cut_every == 0 {
            for connection in state.live.drain(..).filter_map(|live| live.upgrade()) {
                connection.cut();
            }
        }
    }

    fn write(&self, state: &mut State, connection: u64, what: What) {
        let event = Event {
            at: now(),
            epoch: self.setup.epoch,
            connection,
            what,
        };
        state
            .log
            .write_all(event.to_line().as_bytes())
            .expect("write to the log");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outcome {
    fn error(error: u32) -> Self {
        Self {
            error,
            lost: false,
            data: Vec::new(),
            change: None,
        }
    }
}

/// A connection on which requests come.
pub struct Connection {
    pub number: u64,
    structured: bool,
    source: UnixStream,
    out: Mutex<UnixStream>,
    open: Mutex<Open>,
    changed: Condvar,
}

#[derive(Default)]
struct Open {
    requests: usize,
    going: bool,
    cut: bool,
}

impl Connection {
    pub fn new(number: u64, source: UnixStream, stream: UnixStream, structured: bool) -> Self {
        // Who does not take answers must not hold others up.
        let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
        Self {
            number,
            structured,
            source,
            out: Mutex::new(stream),
            open: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub fn more(&self) {
        self.open().requests += 1;
    }

    fn less(&self) {
        self.open().requests -= 1;
        self.changed.notify_all();
    }

    /// From now on all requests are answered with ESHUTDOWN.
    fn go(&self) {
        self.open().going = true;
    }

    /// Takes no more requests, does those that came, at its leisure, and answers none of them.
    fn cut(&self) {
        self.open().cut = true;
        // The thread that takes requests sees their end.
        let _ = self.source.shutdown(Shutdown::Read);
    }

    pub fn is_cut(&self) -> bool {
        self.open().cut
    }

    fn going(&self) -> bool {
        self.open().going
    }

    /// Waits until all that came was answered.
    pub fn wait_idle(&self) {
        let open = self.open();
        drop(
            self.changed
                .wait_timeout_while(open, Duration::from_secs(30), |open| open.requests > 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(&self, request: &Request, outcome: &Outcome, in_two: bool) {
        let cookie = request.cookie;
        let reads = request.kind == cmd::READ && outcome.error == 0;
        let message = match (self.structured, outcome.error) {
            (true, 0) if reads && in_two && outcome.data.len() > 1 => {
                let (one, two) = outcome.data.split_at(outcome.data.len() / 2);
                let middle = request.offset + one.len() as u64;
                wire::join(&[
                    &wire::data(wire::MORE, cookie, middle, two),
                    &wire::data(wire::DONE, cookie, request.offset, one),
                ])
            }
            (true, 0) if reads => wire::data(wire::DONE, cookie, request.offset, &outcome.data),
            (true, 0) => wire::none(cookie),
            (true, error) => wire::error(wire::DONE, cookie, error, b"told to"),
            (false, error) => wire::join(&[&wire::simple(cookie, error), &outcome.data]),
        };
        self.send(&message);
    }

    fn send(&self, message: &[u8]) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.write_all(message).is_err() {
            // Half an answer may be out: nothing can follow it.
            let _ = out.shutdown(Shutdown::Both);
            thread::yield_now();
        }
    }
}
