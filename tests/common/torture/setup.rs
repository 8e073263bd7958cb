// SPDX-License-Identifier: BSD-3-Clause
//! How a volatile server behaves. It goes to the server's process as text, in the environment.

use std::path::PathBuf;

use crate::common::scripted::wire::flag;

/// Everything that a good server of today offers.
pub const FLAGS: u16 = flag::HAS_FLAGS
    | flag::SEND_FLUSH
    | flag::SEND_FUA
    | flag::SEND_TRIM
    | flag::SEND_WRITE_ZEROES
    | flag::SEND_CACHE;

/// One life of a server; numbers of times count from one, and zero is never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Its Unix socket; beside it, with `.ctl` added, is the one where it takes orders.
    pub socket: PathBuf,
    /// Listens on TCP, 127.0.0.1, instead; 0: does not. Which port it is is chosen at the start.
    pub port: u16,
    /// What is durable.
    pub backing: PathBuf,
    pub log: PathBuf,
    /// Which of the server's lives this is.
    pub epoch: u64,
    pub seed: u64,
    pub size: u64,
    pub flags: u16,
    /// Minimum, preferred and maximum block size; all zero: not told.
    pub blocks: (u32, u32, u32),
    /// The name that it gives the export; empty: none.
    pub name: String,
    /// A directory with its certificate; empty: no TLS.
    pub tls: PathBuf,
    /// Dies of itself at this arrival, application or answer.
    pub die_at: u64,
    /// Breaks all connections at each so-manieth arrival, application or answer, and lives on.
    pub cut_every: u64,
    /// Waits for at most so many microseconds before it applies, and again before it answers.
    pub delay: u64,
    /// Waits for so many microseconds before each read.
    pub slow: u64,
    /// This flush is answered with EIO, and what was dirty is no more.
    pub flush_fails: u64,
    /// Changes fail with this error from the given arrival of one on.
    pub changes_fail: u32,
    pub changes_fail_from: u64,
    /// Does not answer this request, as if the answer got lost.
    pub drops: u64,
    /// Says ESHUTDOWN to this request and all later ones of its connection, and does not do them.
    pub goes_at: u64,
    /// Accepts connections and never says anything.
    pub mute: bool,
    /// Answers no request.
    pub silent: bool,
    /// Sends nonsense in place of the first answer of each connection.
    pub violates: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            socket: PathBuf::new(),
            port: 0,
            backing: PathBuf::new(),
            log: PathBuf::new(),
            epoch: 1,
            seed: 1,
            size: 4 << 20,
            flags: FLAGS,
            blocks: (1, 4096, 32 << 20),
            name: String::new(),
            tls: PathBuf::new(),
            die_at: 0,
            cut_every: 0,
            delay: 300,
            slow: 0,
            flush_fails: 0,
            changes_fail: 0,
            changes_fail_from: 0,
            drops: 0,
            goes_at: 0,
            mute: false,
            silent: false,
            violates: false,
        }
    }
}

impl Setup {
    pub fn multi(&self) -> bool {
        self.flags & flag::CAN_MULTI_CONN != 0
    }

    /// Where it takes orders.
    pub fn control(&self) -> PathBuf {
        self.socket.with_extension("ctl")
    }

    pub fn to_text(&self) -> String {
        let path = |path: &PathBuf| path.to_str().expect("a plain path").to_owned();
        let (minimum, preferred, maximum) = self.blocks;
        [
            path(&self.socket),
            self.port.to_string(),
            path(&self.backing),
            path(&self.log),
            self.epoch.to_string(),
            self.seed.to_string(),
            self.size.to_string(),
            self.flags.to_string(),
            minimum.to_string(),
            preferred.to_string(),
            maximum.to_string(),
            self.name.clone(),
            path(&self.tls),
            self.die_at.to_string(),
            self.cut_every.to_string(),
            self.delay.to_string(),
            self.slow.to_string(),
            self.flush_fails.to_string(),
            self.changes_fail.to_string(),
            self.changes_fail_from.to_string(),
            self.drops.to_string(),
            self.goes_at.to_string(),
            self.mute.to_string(),
            self.silent.to_string(),
            self.violates.to_string(),
        ]
        .join("\n")
    }

    pub fn from_text(text: &str) -> Self {
        let mut lines = text.split('\n');
        let mut next = || lines.next().expect("a line for each part of a setup");
        fn number<T: std::str::FromStr>(text: &str) -> T {
            match text.parse() {
                Ok(number) => number,
                Err(_) => panic!("part of a setup: {text}"),
            }
        }
        Self {
            socket: next().into(),
            port: number(next()),
            backing: next().into(),
            log: next().into(),
            epoch: number(next()),
            seed: number(next()),
            size: number(next()),
            flags: number(next()),
            blocks: (number(next()), number(next()), number(next())),
            name: next().to_owned(),
            tls: next().into(),
            die_at: number(next()),
            cut_every: number(next()),
            delay: number(next()),
            slow: number(next()),
            flush_fails: number(next()),
            changes_fail: number(next()),
            changes_fail_from: number(next()),
            drops: number(next()),
            goes_at: number(next()),
            mute: number(next()),
            silent: number(next()),
            violates: number(next()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_way_to_the_server() {
        let setup = Setup {
            socket: "/a/b.sock".into(),
            epoch: 3,
            name: "disk".to_owned(),
            blocks: (512, 4096, 65536),
            drops: 9,
            violates: true,
            ..Setup::default()
        };
        assert_eq!(Setup::from_text(&setup.to_text()), setup);
    }
}
