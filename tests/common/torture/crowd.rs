// SPDX-License-Identifier: BSD-3-Clause
//! Writers side by side, and what happens to their server meanwhile.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::writer::{Mix, Story, Writer};

/// By when the plugin must have come back and some requests must have been answered.
const PROGRESS: Duration = Duration::from_secs(30);

/// How each of them writes.
#[derive(Clone, Copy)]
pub struct Manner {
    pub mix: Mix,
    /// Requests in flight.
    pub depth: usize,
    /// All but the first leave after so many answers, and come again; 0: never.
    pub stay: u64,
}

/// Lets them write until `meanwhile` returns. They are given back with nothing in flight; or the first panic of
/// any thread, once all have ended.
pub fn write<'s>(
    story: &'s Story,
    writers: Vec<Writer<'s>>,
    socket: &Path,
    manner: Manner,
    meanwhile: impl FnOnce(),
) -> Result<Vec<Writer<'s>>, Box<dyn Any + Send>> {
    thread::scope(|scope| {
        let handles: Vec<_> = writers
            .into_iter()
            .enumerate()
            .map(|(number, mut writer)| {
                scope.spawn(move || {
                    let ran = catch_unwind(AssertUnwindSafe(|| {
                        // When all have left, the journal goes with them.
                        let stay = if number == 0 { 0 } else { manner.stay };
                        writer.run(manner.mix, manner.depth, stay, socket);
                    }));
                    // Whoever fails lets the others end.
                    if let Err(panic) = ran {
                        story.stop.store(true, Ordering::SeqCst);
                        story.may_fail.store(true, Ordering::SeqCst);
                        resume_unwind(panic);
                    }
                    writer
                })
            })
            .collect();
        let ended = catch_unwind(AssertUnwindSafe(meanwhile));
        story.stop.store(true, Ordering::SeqCst);
        let writers: Vec<_> = handles.into_iter().map(|handle| handle.join()).collect();
        let writers: Result<Vec<Writer>, _> = writers.into_iter().collect();
        writers.and_then(|writers| ended.map(|()| writers))
    })
}

/// Waits until `done` says so of the progress, which must never end before; false if somebody has failed.
pub fn wait(story: &Story, what: &str, mut done: impl FnMut(u64) -> bool) -> bool {
    let mut deadline = Instant::now() + PROGRESS;
    let mut last = 0;
    loop {
        let progress = story.progress.load(Ordering::SeqCst);
        if story.stop.load(Ordering::SeqCst) {
            return false;
        }
        if done(progress) {
            return true;
        }
        if progress != last {
            last = progress;
            deadline = Instant::now() + PROGRESS;
        }
        assert!(Instant::now() < deadline, "{what}: no progress");
        thread::sleep(Duration::from_millis(1));
    }
}
