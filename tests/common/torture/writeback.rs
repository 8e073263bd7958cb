// SPDX-License-Identifier: BSD-3-Clause
//! A real server whose unflushed writes are in its own memory alone, and die with it: nbdkit's cache filter in
//! write-back mode.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::clients::{LIMIT, text};
use crate::common::nbdkit::Nbdkit;
use crate::common::process::{ended_within, eventually, pidfd_open};

/// The server, in one life or between two.
pub struct Server {
    socket: PathBuf,
    pidfile: PathBuf,
    /// What is durable.
    pub backing: PathBuf,
    /// Its options.
    options: Vec<String>,
    /// None if it is dead, or nbdkit has started it.
    process: Option<Nbdkit>,
    by_command: bool,
}

impl Server {
    /// Its disk is full of zeroes. It is started, unless nbdkit does that.
    pub fn new(directory: &Path, size: u64, options: &[String], by_command: bool) -> Self {
        let backing = directory.join("backing");
        let file = fs::File::create(&backing).expect("the backing file");
        file.set_len(size).expect("its length");
        let mut server = Self {
            socket: directory.join("server.sock"),
            pidfile: directory.join("server.pid"),
            backing,
            options: options.to_vec(),
            process: None,
            by_command,
        };
        server.again();
        server
    }

    fn args(&self) -> Vec<String> {
        let file = ["--filter=cache", "file", text(&self.backing)];
        let cache = ["cache=writeback", "cache-min-block-size=4K"];
        let fixed = [&file[..], &cache].concat();
        let fixed = fixed.into_iter().map(str::to_owned);
        self.options.iter().cloned().chain(fixed).collect()
    }

    /// Where it is, as parameters of the plugin.
    pub fn parameters(&self) -> Vec<String> {
        if !self.by_command {
            return vec![format!("socket={}", text(&self.socket))];
        }
        let pidfile = ["-f", "-P", text(&self.pidfile)].map(str::to_owned);
        let args = pidfile.into_iter().chain(self.args());
        let args = args.map(|arg| format!("arg={arg}"));
        ["command=nbdkit".to_owned()]
            .into_iter()
            .chain(args)
            .collect()
    }

    /// The next life begins, unless that is another's affair.
    pub fn again(&mut self) {
        if !self.by_command {
            let _ = fs::remove_file(&self.socket);
            self.process = Some(Nbdkit::start_at(&self.socket, &self.args()));
        }
    }

    /// SIGKILL, once it is there.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(libc::SIGKILL);
            assert!(process.wait_timeout(LIMIT).is_some(), "it does not die");
            return;
        }
        let pid: u32 = eventually("nbdkit has started the server", LIMIT, || {
            let pid = fs::read_to_string(&self.pidfile).ok()?;
            pid.strip_suffix('\n')?.parse().ok()
        });
        fs::remove_file(&self.pidfile).expect("remove");
        let pidfd = pidfd_open(pid).expect("the server runs");
        // SAFETY: kill takes plain numbers.
        unsafe {
            libc::kill(
                libc::pid_t::try_from(pid).expect("a process id"),
                libc::SIGKILL,
            )
        };
        assert!(ended_within(&pidfd, LIMIT), "it does not die");
    }
}
