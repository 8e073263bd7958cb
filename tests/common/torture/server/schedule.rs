// SPDX-License-Identifier: BSD-3-Clause
//! Requests are done, and answered, when their time has come, whatever their order was.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::torture::trace::event::Request;
use crate::torture::{Rng, now};

use super::world::{Arrival, Connection, Outcome, World};

/// How many threads do what is due: one that cannot send must not stop the others.
const THREADS: usize = 4;

/// How much later a request may be done whose connection has broken, microseconds.
const LATE: u64 = 60_000;

pub enum Job {
    Apply(Arc<Connection>, Request, Vec<u8>, Arrival),
    Answer(Arc<Connection>, Request, Outcome),
}

pub struct Schedule {
    due: Mutex<Due>,
    changed: Condvar,
}

struct Due {
    jobs: BTreeMap<(u64, Reverse<u64>), Job>,
    count: u64,
    rng: Rng,
}

impl Schedule {
    pub fn new(rng: Rng) -> Self {
        Self {
            due: Mutex::new(Due {
                jobs: BTreeMap::new(),
                count: 0,
                rng,
            }),
            changed: Condvar::new(),
        }
    }

    /// At most `limit` microseconds, in nanoseconds. Many are short, few long, so that order changes.
    pub fn delay(&self, limit: u64) -> u64 {
        let mut due = self.due();
        let limit = if due.rng.chance(10) { limit * 4 } else { limit };
        match limit {
            0 => 0,
            limit => due.rng.below(limit) * 1000,
        }
    }

    pub fn add(&self, at: u64, job: Job) {
        let mut due = self.due();
        due.count += 1;
        let key = (at, Reverse(due.count));
        due.jobs.insert(key, job);
        self.changed.notify_one();
    }

    fn next(&self) -> Job {
        let mut due = self.due();
        loop {
            let now = now();
            let wait = match due.jobs.first_entry() {
                Some(first) if first.key().0 <= now => return first.remove(),
                Some(first) => first.key().0 - now,
                None => 1_000_000_000,
            };
            due = self
                .changed
                .wait_timeout(due, Duration::from_nanos(wait))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn start(world: &Arc<World>) {
    for _ in 0..THREADS {
        let world = Arc::clone(world);
        thread::spawn(move || {
            loop {
                match world.schedule.next() {
                    // A server goes on with what was queued, and takes its time.
                    Job::Apply(connection, request, payload, arrival)
                        if connection.is_cut() && !arrival.late =>
                    {
                        let at = now() + world.schedule.delay(LATE);
                        let mut late = arrival;
                        late.late = true;
                        world
                            .schedule
                            .add(at, Job::Apply(connection, request, payload, late));
                    }
                    Job::Apply(connection, request, payload, arrival) => {
                        world.apply(&connection, request, &payload, arrival);
                    }
                    Job::Answer(connection, request, outcome) => {
                        world.answer(&connection, &request, &outcome);
                    }
                }
            }
        });
    }
}
