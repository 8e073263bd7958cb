// SPDX-License-Identifier: BSD-3-Clause
//! Time: the only thread of the client's own that is always there. It makes attempts that do not belong to one client,
//! looks after requests that wait for long, and learns that nbdkit is about to end.
//!
//! It starts when nbdkit has forked and is joined before nbdkit unloads the plugin. With nobody
//! connected it sleeps; while somebody is, it wakes once a second. nbdkit tells of its end in one
//! way only, which prints an error, and calls no `close` then: so all links are registered here, to
//! be closed at the end, and nobody asks before a request has waited for a second.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::helpers::Helpers;
use super::links::Links;
use crate::transport::{Deadline, Wanted};

/// From one inspection to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Something to be done by the thread.
pub type Task = Box<dyn FnOnce() + Send>;

/// The thread, and what it looks after.
#[derive(Debug)]
pub struct Upkeep {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
    helpers: Arc<Helpers>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether nbdkit goes on, asked by a thread that serves no client.
    wanted: Wanted,
    /// How long answers and closing may take once it does not; `None` for ever.
    patience: Option<Duration>,
}

#[derive(Default)]
struct State {
    live: Vec<Arc<Links>>,
    tasks: VecDeque<Task>,
    /// nbdkit is about to end.
    ending: bool,
    /// Nothing new is begun.
    over: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("live", &self.live.len())
            .field("tasks", &self.tasks.len())
            .field("ending", &self.ending)
            .field("over", &self.over)
            .finish()
    }
}

impl Upkeep {
    /// No thread yet. `wanted` is asked on the thread whether nbdkit goes on; `patience` is how long
    /// answers and closing may take once it does not, `None` for ever.
    pub fn new(wanted: Wanted, patience: Option<Duration>) -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                changed: Condvar::new(),
                wanted,
                patience,
            }),
            thread: Mutex::new(None),
            helpers: Arc::default(),
        }
    }

    /// Threads for what takes long, which end with this one.
    pub fn helpers(&self) -> &Arc<Helpers> {
        &self.helpers
    }

    /// Starts the thread, once.
    pub fn start(&self) -> std::io::Result<()> {
        self.helpers.start();
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let inner = self.inner.clone();
            let builder = std::thread::Builder::new().name("nbd-upkeep".to_owned());
            *thread = Some(builder.spawn(move || inner.serve())?);
        }
        Ok(())
    }

    /// Hands a task to the thread. False if it is too late for that.
    pub fn run(&self, task: Task) -> bool {
        let mut state = lock(&self.inner.state);
        if !state.over {
            state.tasks.push_back(task);
            self.inner.changed.notify_all();
        }
        !state.over
    }

    /// Looks after links from now on, until [`Upkeep::forget`]. They may be registered already.
    pub fn register(&self, links: Arc<Links>) {
        let mut state = lock(&self.inner.state);
        if state.live.iter().any(|live| Arc::ptr_eq(live, &links)) {
            return;
        }
        state.live.push(links);
        self.inner.changed.notify_all();
    }

    /// Looks after links no longer, since they are being closed.
    pub fn forget(&self, links: &Links) {
        lock(&self.inner.state)
            .live
            .retain(|live| !std::ptr::eq(&**live, links));
    }

    /// Ends the thread, and closes what is still registered: side by side, within the time that
    /// closing may take. Does nothing the second time.
    pub fn end(&self) {
        {
            let mut state = lock(&self.inner.state);
            state.over = true;
            state.tasks.clear();
            self.inner.changed.notify_all();
        }
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of the thread's has been caught in it.
            let _ = thread.join();
        }
        self.helpers.close();
        let live = std::mem::take(&mut lock(&self.inner.state).live);
        // What hung until now has used up its own time, and nobody else's.
        let until = Deadline::after_maybe(self.inner.patience);
        std::thread::scope(|scope| {
            let mut closing = Vec::new();
            for links in &live {
                let close = move || links.close(until);
                match std::thread::Builder::new().spawn_scoped(scope, close) {
                    Ok(thread) => closing.push(thread),
                    Err(_) => links.close(until),
                }
            }
            // The scope waits for what threads do, not for their end, and that is our code as well.
            for thread in closing {
                // A panic has ended the connection.
                let _ = thread.join();
            }
        });
        // What they waited for is over now.
        self.helpers.join();
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.end();
    }
}

impl Inner {
    fn serve(&self) {
        while let Some(work) = self.wait() {
            // Whatever goes wrong in one task, the others are still to be done.
            let done = catch_unwind(AssertUnwindSafe(|| match work {
                Work::Task(task) => task(),
                Work::Inspect(live) => self.inspect(&live),
            }));
            if done.is_err() {
                log::warn!(target: "upkeep", "internal error in the thread nbd-upkeep");
            }
        }
    }

    /// What to do next; `None` at the end.
    fn wait(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        let until = Deadline::after(INTERVAL);
        loop {
            if state.over {
                return None;
            }
            if let Some(task) = state.tasks.pop_front() {
                return Some(Work::Task(task));
            }
            let left = until.remaining().unwrap_or(INTERVAL);
            state = if state.live.is_empty() {
                self.changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner)
            } else if left.is_zero() {
                return Some(Work::Inspect(state.live.clone()));
            } else {
                self.changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            };
        }
    }

    fn inspect(&self, live: &[Arc<Links>]) {
        let waiting: Vec<_> = live.iter().filter(|links| links.inspect()).collect();
        // There is nothing to close any more.
        lock(&self.state).live.retain(|links| !links.are_gone());
        if waiting.is_empty() {
            return;
        }
        let known = lock(&self.state).ending;
        if !known {
            // Not under the lock: to ask may print a message.
            if (self.wanted)() {
                return;
            }
            lock(&self.state).ending = true;
        }
        let until = Deadline::after_maybe(self.patience);
        for links in waiting {
            links.give_grace(until);
        }
    }
}

enum Work {
    Task(Task),
    Inspect(Vec<Arc<Links>>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
