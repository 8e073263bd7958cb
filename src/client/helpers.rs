// SPDX-License-Identifier: BSD-3-Clause
//! Threads that come back to lost servers, beside the one thread that is always there: coming back
//! waits for a server, and no front client, and no inspection, is to wait for another's server.
//!
//! None is started before nbdkit has forked, and all are joined before nbdkit unloads the plugin. One that
//! has done its task waits a moment for another of its kind: clients that come and go would begin a
//! thread each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::upkeep::Task;

/// How long a thread waits for another task.
const REST: Duration = Duration::from_secs(1);

/// Most threads that do so.
const MOST_IDLE: usize = 4;

/// The threads.
#[derive(Debug, Default)]
pub struct Helpers {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// nbdkit has forked, and does not end yet.
    open: bool,
    threads: Vec<JoinHandle<()>>,
    idle: Vec<Idle>,
    /// How many have been idle so far.
    count: u64,
}

/// A thread without a task.
#[derive(Debug)]
struct Idle {
    number: u64,
    name: String,
    hand: Sender<Task>,
}

impl Helpers {
    /// nbdkit has forked for the last time.
    pub(super) fn start(&self) {
        self.lock().open = true;
    }

    /// Runs a task on a thread of its own. False if there can be none, or not any more.
    pub fn run(&self, name: &str, task: Task) -> bool {
        let mut state = self.lock();
        let (over, running): (Vec<_>, _) = std::mem::take(&mut state.threads)
            .into_iter()
            .partition(JoinHandle::is_finished);
        state.threads = running;
        for thread in over {
            // Its last steps are code of ours, too, and must not outlive it.
            let _ = thread.join();
        }
        if !state.open {
            return false;
        }
        let mut task = task;
        if let Some(at) = state.idle.iter().position(|idle| idle.name == name) {
            let idle = state.idle.swap_remove(at);
            match idle.hand.send(task) {
                Ok(()) => return true,
                Err(unsent) => task = unsent.0,
            }
        }
        let (name, own) = (name.to_owned(), self.state.clone());
        let body = {
            let name = name.clone();
            move || work(&own, &name, task)
        };
        match std::thread::Builder::new().name(name).spawn(body) {
            Ok(thread) => {
                state.threads.push(thread);
                true
            }
            Err(error) => {
                log::debug!("no thread to reconnect with: {error}");
                false
            }
        }
    }

    /// Starts nothing more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        // Who waits for a task learns that there is none.
        state.idle.clear();
    }

    /// Whether nothing more is started, and what runs should end.
    pub(super) fn is_closed(&self) -> bool {
        !self.lock().open
    }

    /// Waits for the end of all threads, which have been told to end.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut self.lock().threads);
        for thread in threads {
            // A panic of its task has been caught in it.
            let _ = thread.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread: its task, and those that come while it rests.
fn work(state: &Mutex<State>, name: &str, first: Task) {
    let mut next = Some(first);
    while let Some(task) = next.take() {
        if catch_unwind(AssertUnwindSafe(task)).is_err() {
            log::warn!(target: "helpers", "internal error in the thread {name}");
        }
        let (hand, tasks) = channel();
        let number = {
            let mut state = lock(state);
            if !state.open || state.idle.len() >= MOST_IDLE {
                return;
            }
            state.count += 1;
            let number = state.count;
            let name = name.to_owned();
            state.idle.push(Idle { number, name, hand });
            number
        };
        next = tasks.recv_timeout(REST).ok();
        if next.is_none() {
            lock(state).idle.retain(|idle| idle.number != number);
            // Who took it from there before has sent something, or will not.
            next = tasks.recv().ok();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};

    use super::*;

    /// Runs a task, and tells on which thread.
    fn ran(helpers: &Helpers, name: &str) -> ThreadId {
        let (sender, receiver) = mpsc::channel();
        let task = move || sender.send(thread::current().id()).expect("somebody waits");
        assert!(helpers.run(name, Box::new(task)));
        let id = receiver.recv_timeout(Duration::from_secs(20));
        id.expect("the task runs")
    }

    /// Waits until so many threads have nothing to do.
    fn await_idle(helpers: &Helpers, count: usize) {
        let late = std::time::Instant::now() + Duration::from_secs(20);
        while helpers.lock().idle.len() != count {
            assert!(std::time::Instant::now() < late, "{count} idle");
            thread::yield_now();
        }
    }

    #[test]
    fn who_has_done_its_task_takes_the_next_of_its_kind() {
        let helpers = Helpers::default();
        helpers.start();
        let first = ran(&helpers, "one");
        await_idle(&helpers, 1);
        let other = ran(&helpers, "another");
        assert_ne!(first, other, "it would have the wrong name");
        await_idle(&helpers, 2);
        assert_eq!(ran(&helpers, "one"), first);
        helpers.close();
        helpers.join();
    }

    #[test]
    fn who_is_busy_is_not_waited_for() {
        let helpers = Helpers::default();
        helpers.start();
        let (release, held) = mpsc::channel::<()>();
        assert!(helpers.run("one", Box::new(move || held.recv().unwrap_or_default())));
        ran(&helpers, "one");
        drop(release);
        helpers.close();
        helpers.join();
    }

    #[test]
    fn a_panic_ends_its_task_alone() {
        let helpers = Helpers::default();
        helpers.start();
        assert!(helpers.run("one", Box::new(|| panic!("a test"))));
        await_idle(&helpers, 1);
        ran(&helpers, "one");
        helpers.close();
        helpers.join();
    }

    #[test]
    fn nobody_rests_for_long_or_beyond_the_end() {
        let helpers = Helpers::default();
        helpers.start();
        ran(&helpers, "one");
        await_idle(&helpers, 1);
        await_idle(&helpers, 0);
        ran(&helpers, "one");
        await_idle(&helpers, 1);
        helpers.close();
        // Not only after the rest.
        helpers.join();
        assert!(!helpers.run("one", Box::new(|| ())));
    }
}
