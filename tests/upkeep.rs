// SPDX-License-Identifier: BSD-3-Clause
//! The end of what looks after connections.
//!
//! This links the crate: from outside it cannot be seen how far a thread has come.

mod common;
#[path = "common/open.rs"]
mod open;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::nbdkit::Nbdkit;
use common::need;
use log::{LevelFilter, Log, Metadata, Record};
use nbdkit_nbd_plugin::client::times::{Time, Times};
use nbdkit_nbd_plugin::client::upkeep::Upkeep;
use open::open;

/// Connections.
const MANY: usize = 8;

/// Threads that said something, and are at their very end.
static GONE: AtomicUsize = AtomicUsize::new(0);

/// Whoever says something takes a moment to end.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        thread::sleep(Duration::from_millis(100));
        GONE.fetch_add(1, Ordering::SeqCst);
    }
}

thread_local! {
    static SLOW: Slow = const { Slow };
}

struct Listener;

impl Log for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &Record<'_>) {
        SLOW.with(|_| ());
    }

    fn flush(&self) {}
}

/// nbdkit unloads the plugin next, with the code that threads end with.
#[test]
fn no_thread_is_left_at_the_end() {
    if !need("nbdkit") {
        return;
    }
    log::set_logger(&Listener).expect("there is no other logger");
    log::set_max_level(LevelFilter::Debug);
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Nbdkit::start(directory.path(), &["memory", "1M"]);
    let times = Arc::new(Times {
        close: Time::new(Some(Duration::from_secs(20))),
        ..Times::default()
    });
    let upkeep = Upkeep::new(|| true, times);
    for _ in 0..MANY {
        let client = open(server.socket()).expect("open");
        upkeep.register(client.links().clone());
    }
    upkeep.end(Vec::new());
    assert_eq!(GONE.load(Ordering::SeqCst), MANY);
}
