// SPDX-License-Identifier: BSD-3-Clause
//! Servers that nbdkit starts by `command=`: a place of their own, and proof that they are gone.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::clients::{LIMIT, nbdsh};
use super::nbdkit::{Nbdkit, plugin_args};
use super::process::{ended_within, eventually, pidfd_open};
use super::refusal::{Mode, refusal_with};

/// A directory for a test, with an empty one in it for the plugin's own: TMPDIR.
pub struct Place {
    directory: TempDir,
    private: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let private = directory.path().join("tmp");
        fs::create_dir(&private).expect("make directory");
        Self { directory, private }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// nbdkit in the foreground.
    pub fn start(&self, args: &[&str]) -> Nbdkit {
        Nbdkit::start_with(self.path(), &plugin_args(args), |command| {
            self.prepare(command)
        })
    }

    /// What a command for nbdkit needs in this place.
    pub fn prepare(&self, command: &mut Command) {
        command.env("TMPDIR", &self.private).env("DIR", self.path());
    }

    /// nbdkit must refuse to start; returns its explanation. Nothing may be left when the prompt is back.
    pub fn refusal(&self, mode: Mode, args: &[&str]) -> String {
        let (reason, _) = refusal_with(self.path(), mode, args, |command| self.prepare(command));
        assert_eq!(self.kept(), NOTHING, "left in TMPDIR");
        reason
    }

    /// What the plugin keeps in TMPDIR.
    pub fn kept(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.private)
            .expect("TMPDIR")
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }

    /// nbdkit has ended. Where it had no time to clean up, somebody else does it, and soon.
    pub fn is_clean(&self) {
        eventually("nothing is left in TMPDIR", LIMIT, || {
            self.kept().is_empty().then_some(())
        });
    }

    /// What the server wrote to this file.
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The server, by the process id that it wrote to the file `pid`.
    pub fn server(&self) -> Server {
        let pid = self.file("pid").trim_end().parse().expect("a process id");
        Server {
            pid,
            pidfd: pidfd_open(pid).expect("the server runs"),
        }
    }
}

/// A server that nbdkit started.
pub struct Server {
    pid: u32,
    pidfd: OwnedFd,
}

impl Server {
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.pid).expect("a process id fits");
        // SAFETY: kill takes plain numbers.
        unsafe { libc::kill(pid, signal) };
    }

    /// It must have ended, or be about to.
    pub fn is_gone(&self) {
        assert!(ended_within(&self.pidfd, LIMIT), "the server still runs");
    }

    /// It must have ended and been waited for by whoever had to.
    pub fn is_reaped(&self) {
        let path = format!("/proc/{}/stat", self.pid);
        eventually("the server is no zombie", LIMIT, || {
            (!Path::new(&path).exists()).then_some(())
        });
    }
}

/// What is left in an empty directory.
pub const NOTHING: [PathBuf; 0] = [];

/// nbdkit's memory plugin as the server.
pub const MEMORY: [&str; 4] = ["command=nbdkit", "arg=-f", "arg=memory", "arg=1M"];

/// A shell script as the server; `$DIR` is the test's directory. Its process id goes to a file.
pub fn script(text: &str) -> [String; 3] {
    [
        "command=sh".to_owned(),
        "arg=-c".to_owned(),
        format!("arg=echo $$ > \"$DIR/pid\"\n{text}"),
    ]
}

/// Borrowed, as functions want arguments.
pub fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// What a client that reads finds out about the disk.
pub fn size(front: &Nbdkit) -> String {
    nbdsh(&front.uri(), "h.pread(512, 0)\nprint(h.get_size())")
        .trim_end()
        .to_owned()
}

/// Tells nbdkit to end, which it must do well.
pub fn end(front: &mut Nbdkit) {
    front.ends_well();
}
