// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit in the background, where it is nobody's child and has the directory `/`.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::clients::LIMIT;
use super::nbdkit::uri;
use super::process::{Guarded, ended_within, eventually, pidfd_open};

/// nbdkit with the plugin as a daemon. It is killed when this is dropped, with everything that it started.
pub struct Daemon {
    /// The process that the user started; it has ended, but all that it left is still in its process group.
    started: Guarded,
    pid: u32,
    pidfd: OwnedFd,
    socket: PathBuf,
}

impl Daemon {
    /// Starts nbdkit in the working directory `directory` and waits until the user has the prompt back, which
    /// must mean that nbdkit serves.
    pub fn start(directory: &Path, args: &[&str]) -> Self {
        Self::start_with(directory, args, |_| ())
    }

    /// [`Daemon::start`], with something done to the command before it runs.
    pub fn start_with(directory: &Path, args: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let socket = directory.join("daemon.sock");
        let pidfile = directory.join("daemon.pid");
        let mut command = Command::new("nbdkit");
        command
            .current_dir(directory)
            .arg("-U")
            .arg(&socket)
            .arg("-P")
            .arg(&pidfile)
            .args(super::nbdkit::plugin_args(args));
        prepare(&mut command);
        let mut started = Guarded::spawn(&mut command);
        let status = started.wait_timeout(LIMIT);
        assert!(
            status.is_some_and(|status| status.success()),
            "{status:?}: {command:?}\n{}",
            started.stderr()
        );
        let pid = eventually("the daemon writes its pid file", LIMIT, || {
            fs::read_to_string(&pidfile).ok()?.trim_end().parse().ok()
        });
        let pidfd = pidfd_open(pid)
            .unwrap_or_else(|error| panic!("daemon {pid}: {error}\n{}", started.stderr()));
        Self {
            started,
            pid,
            pidfd,
            socket,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The URI of the default export.
    pub fn uri(&self) -> String {
        uri(&self.socket, "")
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What nbdkit wrote to stderr so far, before and after it went to the background.
    pub fn stderr(&self) -> String {
        self.started.stderr()
    }

    /// Ends it as `kill` does; false if it is still there after `timeout`.
    pub fn terminate(&self, timeout: Duration) -> bool {
        let pid = libc::pid_t::try_from(self.pid).expect("a process id fits");
        // SAFETY: kill takes plain numbers; at worst the process has ended by itself.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        ended_within(&self.pidfd, timeout)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.started.kill_group();
        ended_within(&self.pidfd, LIMIT);
    }
}
