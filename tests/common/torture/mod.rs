// SPDX-License-Identifier: BSD-3-Clause
//! What proves that no acknowledged write is lost: a server whose cache dies with it, clients that know what they
//! wrote, and checkers of what both have logged.
//!
//! - `setup` says how a server behaves, `server` is that server, `volatile` starts and kills it; `writeback`
//!   is one that others wrote;
//! - `block` is what the clients write, `client` sends it, `writer` chooses it at random, `crowd` lets several do so,
//!   `ordeal` puts all together;
//! - `history` judges what the clients saw, `trace` what the server saw.
//!
//! A test file that uses this must declare it itself (`#[path]`), since the server is the test binary once more:
//! it runs the ignored test `torture::server::volatile_server`.

// Every test file is its own crate and uses its own part of this module.
#![allow(dead_code)]

pub mod block;
pub mod client;
pub mod crowd;
pub mod history;
pub mod ordeal;
pub mod server;
pub mod setup;
pub mod trace;
pub mod volatile;
pub mod writeback;
pub mod writer;

use std::env;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds of a clock that all processes of this machine share.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).expect("after the start of the machine");
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).expect("below a second")
}

/// The seed of a test: `TORTURE_SEED`, or a new one. It is printed, and the harness shows that if the test fails. It
/// repeats what is asked and when the server dies, counted in requests; not what threads do meanwhile.
pub fn seed() -> u64 {
    let seed = match env::var("TORTURE_SEED") {
        Ok(text) => text.parse().expect("TORTURE_SEED is a number"),
        Err(_) => {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970");
            u64::from(since.subsec_nanos()) ^ (since.as_secs() << 20)
        }
    };
    println!("TORTURE_SEED={seed}");
    seed
}

/// How many kills a test makes: `KILLS`, or what it has by itself. None stays none.
pub fn kills(usual: usize) -> usize {
    if usual == 0 {
        return 0;
    }
    env::var("KILLS").map_or(usual, |text| text.parse().expect("KILLS is a number"))
}

/// A server that nbdkit starts by `command=` is started again ten times in a minute at most: how long it has to live,
/// and how often it may die then, if it shall die so often.
pub fn by_command(kills: usize) -> (Duration, usize) {
    const STARTS: usize = 10;
    // As each takes as long as that.
    const MOST: usize = 50;
    match kills < STARTS {
        true => (Duration::ZERO, kills),
        false => (Duration::from_millis(6100), kills.min(MOST)),
    }
}

/// Numbers that look random, the same for the same seed: splitmix64.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another sequence, of which this one says the beginning.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`, which must not be zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
