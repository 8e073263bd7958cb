// SPDX-License-Identifier: BSD-3-Clause
//! A running nbdkit, and one that forwards through the plugin under test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::clients::LIMIT;
use super::plugin;
use super::process::{Guarded, eventually, run};

/// How long a server may take until it listens. Generous: the machine may be busy.
const START: Duration = Duration::from_secs(20);

/// A running `nbdkit -f -U SOCKET ...`, never a daemon. It ends when this is dropped.
pub struct Nbdkit {
    process: Guarded,
    socket: PathBuf,
}

impl Nbdkit {
    /// Starts nbdkit in `directory` and waits until it listens.
    pub fn start<S: AsRef<OsStr>>(directory: &Path, args: &[S]) -> Self {
        Self::start_with(directory, args, |_| ())
    }

    /// [`Nbdkit::start`], with something done to the command before it runs.
    pub fn start_with<S: AsRef<OsStr>>(
        directory: &Path,
        args: &[S],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        // Several servers may share one directory: a chain of forwarders, or an upstream and its front.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket = directory.join(format!("nbdkit-{number}.sock"));
        Self::start_prepared(&socket, args, prepare)
    }

    /// Starts nbdkit on the socket given, for servers that come back where another one was.
    pub fn start_at<S: AsRef<OsStr>>(socket: &Path, args: &[S]) -> Self {
        Self::start_prepared(socket, args, |_| ())
    }

    fn start_prepared<S: AsRef<OsStr>>(
        socket: &Path,
        args: &[S],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        // nbdkit writes the pid file once it listens. To connect instead would be seen by the plugin.
        let pidfile = socket.with_extension("pid");
        let _ = fs::remove_file(&pidfile);
        let mut command = Command::new("nbdkit");
        command
            .arg("-f")
            .arg("-U")
            .arg(socket)
            .arg("-P")
            .arg(&pidfile)
            .args(args);
        prepare(&mut command);
        let mut process = Guarded::spawn(&mut command);
        eventually("nbdkit listens", START, || {
            if !process.alive() {
                panic!("nbdkit ended at once: {command:?}\n{}", process.stderr());
            }
            fs::read_to_string(&pidfile)
                .ok()
                .filter(|pid| pid.ends_with('\n'))
        });
        Self {
            process,
            socket: socket.to_owned(),
        }
    }

    /// The socket it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The URI of the default export.
    pub fn uri(&self) -> String {
        self.uri_export("")
    }

    /// The URI of the export `name`, which must not need percent-encoding.
    pub fn uri_export(&self, name: &str) -> String {
        uri(&self.socket, name)
    }

    /// The process id of nbdkit.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What nbdkit wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// The errors and warnings that it has told.
    pub fn errors(&self) -> Vec<String> {
        let stderr = self.stderr();
        let errors = stderr.lines().filter(|line| line.contains("error: "));
        errors.map(str::to_owned).collect()
    }

    /// The one line that explains what went wrong; there must not be another.
    pub fn explanation(&self) -> String {
        explanation(&self.stderr())
    }

    /// Tells nbdkit to end, which it must do well.
    pub fn ends_well(&mut self) {
        self.signal(libc::SIGTERM);
        let status = self.wait_timeout(LIMIT);
        assert!(
            status.is_some_and(|status| status.success()),
            "{status:?}: {}",
            self.stderr()
        );
    }

    /// Whether nbdkit is still running.
    pub fn alive(&mut self) -> bool {
        self.process.alive()
    }

    /// Sends a signal to nbdkit.
    pub fn signal(&self, signal: libc::c_int) {
        self.process.signal(signal);
    }

    /// Stops nbdkit, until SIGCONT. When this returns all its threads stand still, and nothing is answered.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let threads = format!("/proc/{}/task", self.pid());
        eventually("all its threads stand still", START, || {
            let mut threads = fs::read_dir(&threads).ok()?.flatten();
            let stands = |entry: fs::DirEntry| {
                let status = fs::read_to_string(entry.path().join("status"));
                status.is_ok_and(|status| status.contains("\nState:\tT"))
            };
            threads.all(stands).then_some(())
        });
    }

    /// Waits for nbdkit to end, but not longer than `timeout`.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<ExitStatus> {
        self.process.wait_timeout(timeout)
    }

    /// How many descriptors nbdkit has open.
    pub fn descriptors(&self) -> usize {
        self.count("fd")
    }

    /// How many threads nbdkit has.
    pub fn threads(&self) -> usize {
        self.count("task")
    }

    /// How many threads it has that forwards and has no client: its own and the plugin's, which nbdkit
    /// starts a moment after it has said that it is there.
    pub fn idle_threads(&self) -> usize {
        eventually("the plugin's thread is there", START, || {
            Some(self.threads()).filter(|threads| *threads >= 2)
        })
    }

    fn count(&self, what: &str) -> usize {
        let path = format!("/proc/{}/{what}", self.pid());
        fs::read_dir(&path)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
            .count()
    }
}

/// The URI of export `name` on a Unix socket.
pub fn uri(socket: &Path, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

/// `nbdkit -v PLUGIN socket=UPSTREAM`, listening in `directory`.
///
/// Elements of `extra` that start with `-` are options of nbdkit itself (`-r`, `--filter=delay`,
/// `-Dnbd.verbose=1`) and go before the plugin; the others are parameters and follow it.
pub fn forward(directory: &Path, upstream: &Path, extra: &[&str]) -> Nbdkit {
    Nbdkit::start(directory, &forward_args(upstream, extra))
}

/// The arguments that [`forward`] gives to nbdkit, for tests that start it in their own way.
pub fn forward_args(upstream: &Path, extra: &[&str]) -> Vec<String> {
    let socket = format!("socket={}", upstream.display());
    plugin_args(&[&[socket.as_str()], extra].concat())
}

/// [`forward`] for servers that are reached in another way: `args` are all there is.
pub fn through(directory: &Path, args: &[&str]) -> Nbdkit {
    Nbdkit::start(directory, &plugin_args(args))
}

/// `-v`, options of nbdkit, the plugin, its parameters.
pub fn plugin_args(args: &[&str]) -> Vec<String> {
    let (options, parameters): (Vec<&str>, Vec<&str>) =
        args.iter().partition(|arg| arg.starts_with('-'));
    let mut all = vec!["-v".to_owned()];
    all.extend(options.into_iter().map(str::to_owned));
    all.push(super::plugin().display().to_string());
    all.extend(parameters.into_iter().map(str::to_owned));
    all
}

/// The one line of a log that explains what went wrong; there must not be another. nbdkit puts
/// `error: ` before warnings, too.
pub fn explanation(log: &str) -> String {
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("error: ") && !line.contains("error: warning: "))
        .collect();
    assert_eq!(errors.len(), 1, "one explanation:\n{log}");
    errors[0].to_owned()
}

/// `nbdkit PLUGIN ...` that prints and ends: its status, and what came on standard output and standard error.
pub fn printed(args: &[&str]) -> (Option<i32>, String, String) {
    printed_with(args, |_| ())
}

/// [`printed`], with something done to the command before it runs.
pub fn printed_with(
    args: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> (Option<i32>, String, String) {
    let mut command = Command::new("nbdkit");
    command.arg(plugin()).args(args);
    prepare(&mut command);
    let output = run(&mut command, LIMIT);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}
