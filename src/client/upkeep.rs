// SPDX-License-Identifier: BSD-3-Clause
//! Time: the only thread of the client's own that is always there. It makes attempts that do not belong to one client,
//! looks after requests that wait for long, and learns that nbdkit is about to end.
//!
//! It starts when nbdkit has forked and is joined before nbdkit unloads the plugin. With nobody
//! connected it sleeps; while somebody is, it wakes once a second. nbdkit tells of its end in one
//! way only, which prints an error, and calls no `close` then: so all links are registered here, to
//! be closed at the end, and nobody asks before a request has waited for a second.
//!
//! It also does a [`Chore`], whenever the [`Bell`] rings or the chore's own time has come.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::helpers::Helpers;
use super::links::Links;
use super::times::Times;
use crate::transport::{Deadline, Wanted};

/// From one inspection to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Something to be done by the thread.
pub type Task = Box<dyn FnOnce() + Send>;

/// Something that is to be looked after now and then.
pub trait Chore: fmt::Debug + Send + Sync {
    /// Does what is due, without waiting for any server. Returns after what time it is to be asked
    /// again at the latest; `None` if only the bell will tell.
    fn look(self: Arc<Self>) -> Option<Duration>;
}

/// Closes something, until a deadline.
pub type Closing = Box<dyn FnOnce(Deadline) + Send>;

/// Calls the thread to its chore. It owns a share of what it needs, and so can be rung by anybody, also
/// when everything else is gone.
#[derive(Clone)]
pub struct Bell(Arc<Inner>);

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        lock(&self.0.state).rung = true;
        self.0.changed.notify_all();
    }

    /// Sees to it that the chore is looked at when that time has passed, or before.
    pub fn ring_within(&self, time: Duration) {
        let mut state = lock(&self.0.state);
        let at = Deadline::after(time);
        let sooner = |known: Deadline| known.remaining() <= at.remaining();
        if !state.chore_at.is_some_and(sooner) {
            state.chore_at = Some(at);
            self.0.changed.notify_all();
        }
    }

    /// Whether both call the same thread.
    pub fn is_the_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

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
    /// How long answers and closing may take once it does not.
    times: Arc<Times>,
}

#[derive(Default)]
struct State {
    live: Vec<Arc<Links>>,
    /// How many are just being closed, or come to rest.
    leaving: usize,
    tasks: VecDeque<Task>,
    chore: Option<Weak<dyn Chore>>,
    /// The chore is to be done now.
    rung: bool,
    /// When it is to be done without that.
    chore_at: Option<Deadline>,
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
    /// No thread yet. `wanted` is asked on the thread whether nbdkit goes on; `times` says how long
    /// answers and closing may take once it does not.
    pub fn new(wanted: Wanted, times: Arc<Times>) -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                changed: Condvar::new(),
                wanted,
                times,
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

    /// What is to be looked after from now on.
    pub fn take_on(&self, chore: Weak<dyn Chore>) {
        lock(&self.inner.state).chore = Some(chore);
    }

    /// What calls the thread to that.
    pub fn bell(&self) -> Bell {
        Bell(self.inner.clone())
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

    /// Looks after links from now on, until [`Upkeep::forget`]. They may be registered already. False if
    /// it is too late for that.
    pub fn register(&self, links: Arc<Links>) -> bool {
        let mut state = lock(&self.inner.state);
        if state.over {
            return false;
        }
        if !state.live.iter().any(|live| Arc::ptr_eq(live, &links)) {
            state.live.push(links);
            self.inner.changed.notify_all();
        }
        true
    }

    /// All links that are looked after at present.
    pub(super) fn live(&self) -> Vec<Arc<Links>> {
        lock(&self.inner.state).live.clone()
    }

    /// Looks after links no longer, since they are being closed: until what this gives back is gone.
    pub fn forget(&self, links: &Links) -> Leaving<'_> {
        let mut state = lock(&self.inner.state);
        state.live.retain(|live| !std::ptr::eq(&**live, links));
        state.leaving += 1;
        Leaving(&self.inner)
    }

    /// Closes links that nobody uses any more, within the time that closing may take.
    pub fn close(&self, links: &Links) {
        let _leaving = self.forget(links);
        links.close(Deadline::after_maybe(self.inner.times.close.get()));
    }

    /// Does that on a thread of its own, or at once if there can be none.
    pub fn close_aside(self: &Arc<Self>, links: Arc<Links>) {
        let (this, theirs) = (self.clone(), links.clone());
        let begun = self
            .helpers
            .run("nbd-leave", Box::new(move || this.close(&theirs)));
        if !begun {
            self.close(&links);
        }
    }

    /// How many are just being closed: they may have to be flushed yet.
    pub(super) fn leaving(&self) -> usize {
        lock(&self.inner.state).leaving
    }

    /// Ends the thread, and closes what is still registered, and `more`: side by side, within the time
    /// that closing may take. Does nothing the second time.
    pub fn end(&self, more: Vec<Closing>) {
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
        let until = Deadline::after_maybe(self.inner.times.close.get());
        std::thread::scope(|scope| {
            let mut closing = Vec::new();
            for close in more {
                let close = move || close(until);
                // Without a thread it is left without a word.
                closing.extend(std::thread::Builder::new().spawn_scoped(scope, close));
            }
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

/// Links that are being closed, with what they may have to flush.
#[derive(Debug)]
#[must_use = "they are closed until this is gone"]
pub struct Leaving<'a>(&'a Inner);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).leaving -= 1;
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.end(Vec::new());
    }
}

impl Inner {
    fn serve(&self) {
        while let Some(work) = self.wait() {
            // Whatever goes wrong in one task, the others are still to be done.
            let done = catch_unwind(AssertUnwindSafe(|| match work {
                Work::Task(task) => task(),
                Work::Inspect(live) => self.inspect(&live),
                Work::Chore(chore) => self.do_chore(&chore),
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
            let due = state.chore_at.is_some_and(|at| at.has_passed());
            if due {
                // What rings before has it looked at, too, but later there may be more.
                state.chore_at = None;
            }
            if std::mem::take(&mut state.rung) || due {
                if let Some(chore) = state.chore.as_ref().and_then(Weak::upgrade) {
                    return Some(Work::Chore(chore));
                }
            }
            let left = until.remaining().unwrap_or(INTERVAL);
            let inspected = !state.live.is_empty();
            if inspected && left.is_zero() {
                return Some(Work::Inspect(state.live.clone()));
            }
            let chore = state.chore_at.and_then(|at| at.remaining());
            let left = chore.into_iter().chain(inspected.then_some(left)).min();
            state = match left {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn do_chore(&self, chore: &Arc<dyn Chore>) {
        let next = chore.clone().look().map(Deadline::after);
        let mut state = lock(&self.state);
        let known = state.chore_at.into_iter().chain(next);
        state.chore_at = known.min_by_key(Deadline::remaining);
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
        let until = Deadline::after_maybe(self.times.close.get());
        for links in waiting {
            links.give_grace(until);
        }
    }
}

enum Work {
    Task(Task),
    Inspect(Vec<Arc<Links>>),
    Chore(Arc<dyn Chore>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
