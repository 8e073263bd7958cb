// SPDX-License-Identifier: BSD-3-Clause
//! What is said of statistics that cannot be written, and of slow requests.

use std::fs;

use super::common::clients::LIMIT;
use super::common::front::Front;
use super::common::nbdkit::{Nbdkit, forward};
use super::common::process::eventually;
use super::common::upstream::memory;
use super::{Case, last_error, starting};

pub const CASES: &[Case] = &[
    Case {
        item: "‘KEY’ parameter should only be used with ‘stats’",
        text: "‘stats-interval’ parameter should only be used with ‘stats’",
        happen: |dir| starting(dir, &["socket=s", "stats-interval=10"]),
    },
    Case {
        item: "stats: FILE: not a regular file",
        text: "stats: DIR: not a regular file",
        happen: |dir| starting(dir, &["socket=s", "stats=DIR"]),
    },
    Case {
        item: "stats: FILE: ...",
        text: "stats: DIR/none/stats: No such file or directory",
        happen: |dir| starting(dir, &["socket=s", "stats=DIR/none/stats"]),
    },
    Case {
        item: "stats: FILE: ...; requests are served all the same",
        text: "stats: DIR/there/stats: No such file or directory; requests are served all the same",
        happen: |dir| {
            let there = dir.join("there");
            fs::create_dir(&there).expect("a directory");
            let server = memory(dir, "1M");
            let file = format!("stats={}", there.join("stats").display());
            let front = forward(dir, server.socket(), &[&file, "stats-interval=100ms"]);
            eventually("the directory is gone", LIMIT, || {
                // The file, or another one beside it, may be made meanwhile.
                fs::remove_dir_all(&there).ok()
            });
            told(&front)
        },
    },
    Case {
        item: "slow request: ...",
        text: "DIR/...: slow request: read offset=0 length=512 took ... ms: queue ... ms, server ... ms",
        happen: |dir| {
            let server = memory(dir, "1M");
            let front = forward(dir, server.socket(), &["slow-log=0.000001"]);
            let mut client = Front::open(front.socket()).expect("opens");
            client.read(0, 512).expect("reads");
            told(&front)
        },
    },
];

/// The last error, once there is one.
fn told(front: &Nbdkit) -> String {
    eventually("it is told", LIMIT, || front.errors().pop());
    last_error(&front.stderr())
}
