// SPDX-License-Identifier: BSD-3-Clause
//! Threads that come back to lost servers, beside the one thread that is always there: coming back
//! waits for a server, and no front client, and no inspection, is to wait for another's server.
//!
//! None is started before nbdkit has forked, and all are joined before nbdkit unloads the plugin.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::upkeep::Task;

/// The threads.
#[derive(Debug, Default)]
pub struct Helpers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// nbdkit has forked, and does not end yet.
    open: bool,
    threads: Vec<JoinHandle<()>>,
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
        let name = name.to_owned();
        let guarded = move || {
            if catch_unwind(AssertUnwindSafe(task)).is_err() {
                log::warn!(target: "helpers", "internal error in a thread that reconnects");
            }
        };
        match std::thread::Builder::new().name(name).spawn(guarded) {
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
        self.lock().open = false;
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
