// SPDX-License-Identifier: BSD-3-Clause
//! Through ssh(1): a program that we start for each connection, whose standard input and output are
//! the connection.
//!
//! With a TCP port ssh is asked to connect to it (`-W`), with a Unix socket to run `nc -U` on the
//! other host. No shell of this host has a part in it, and nothing that is given to ssh can be taken
//! for an option.
//!
//! ssh does not ask anybody anything unless nbdkit has a terminal to itself. How it ended, and what
//! it said last, takes the place of "the server closed the connection".

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{env, fmt};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::command::launch::ignore_interruptions;
use super::command::peek;
use super::command::words::{Echo, Words};
use super::{Deadline, Error, Stream};
use crate::proto::codec::printable;

/// The program, looked for in `$PATH`.
const SSH: &str = "ssh";

/// What ssh has to be told whatever its configuration says: nothing is forwarded but this one
/// connection, not even the agent, and it is not left to a process that outlives it.
const ALWAYS: [&str; 6] = [
    "-T",
    "-a",
    "-x",
    "-oClearAllForwardings=yes",
    "-oControlMaster=no",
    "-oRemoteCommand=none",
];

/// How long ssh may take to end by itself when its connection has ended.
const GRACE: Duration = Duration::from_millis(500);

/// The output of a process closes a moment before it can be seen to be dead. An ssh whose connection
/// the server has ended lives on until we have left it, too, and has nothing to tell.
const DYING: Duration = Duration::from_millis(200);

/// How long the kernel may take to end a killed process.
const KILLED: Duration = Duration::from_secs(2);

/// Which way to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Who to be on the other host; it passes [`is_safe_user`].
    pub user: Option<String>,
    /// The other host; it passes [`is_safe_host`].
    pub host: String,
    /// Where its ssh server listens, if not where ssh looks for it.
    pub port: Option<u16>,
    /// Whether ssh compresses.
    pub compress: bool,
    /// The NBD server.
    pub server: Far,
}

/// An NBD server as the other host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Far {
    /// A port on its loopback interface.
    Tcp(u16),
    /// A Unix socket; a relative path is one from the user's home directory.
    Unix(PathBuf),
}

/// Whether ssh takes this for a host and nothing else. Its configuration may hand it to a shell
/// (`ProxyCommand`, `Match exec`).
pub fn is_safe_host(host: &str) -> bool {
    let safe = |c: char| c.is_alphanumeric() || ".-_:%".contains(c);
    !host.is_empty() && !host.starts_with('-') && host.chars().all(safe)
}

/// Whether ssh takes this for a user and nothing else. Names of other systems have backslashes and
/// at signs in them.
pub fn is_safe_user(user: &str) -> bool {
    let unsafe_ = |c: char| c.is_control() || c.is_whitespace() || "'\"`$;&<>|(){}".contains(c);
    !user.is_empty()
        && !user.starts_with('-')
        && !user.ends_with('\\')
        && !user.chars().any(unsafe_)
}

impl Route {
    /// What ssh is started with.
    fn arguments(&self, patience: Option<Duration>, may_ask: bool) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ALWAYS.iter().map(Into::into).collect();
        if !may_ask {
            arguments.push("-oBatchMode=yes".into());
        }
        if let Some(patience) = patience {
            // Whole seconds, and not none, which would be no limit.
            let seconds = patience.as_secs_f64().ceil().max(1.0);
            arguments.push(format!("-oConnectTimeout={seconds}").into());
        }
        if self.compress {
            arguments.push("-C".into());
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".into(), port.to_string().into()]);
        }
        if let Some(user) = &self.user {
            arguments.extend(["-l".into(), user.into()]);
        }
        if let Far::Tcp(port) = self.server {
            arguments.extend(["-W".into(), format!("localhost:{port}").into()]);
        }
        arguments.extend(["--".into(), OsString::from(&self.host)]);
        if let Far::Unix(path) = &self.server {
            arguments.push(relay(path));
        }
        arguments
    }
}

/// What the other host's shell is to do: connect a Unix socket to the standard input and output.
fn relay(path: &Path) -> OsString {
    let mut command = b"nc -U ".to_vec();
    let path = path.as_os_str().as_bytes();
    command.push(b'\'');
    if path.starts_with(b"-") {
        command.extend_from_slice(b"./");
    }
    for &byte in path {
        match byte {
            // Outside of the quotes, as there is no way to write it inside.
            b'\'' => command.extend_from_slice(b"'\\''"),
            byte => command.push(byte),
        }
    }
    command.push(b'\'');
    OsString::from_vec(command)
}

/// As messages name it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh:")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        match &self.server {
            Far::Tcp(port) => write!(f, ":{port}"),
            Far::Unix(path) => write!(f, ":{}", printable(path.as_os_str().as_bytes(), 108)),
        }
    }
}

/// A server behind ssh.
#[derive(Debug)]
pub struct Ssh {
    route: Route,
    /// Whether threads can run.
    threads: AtomicBool,
    /// Connections that somebody may still have.
    tunnels: Mutex<Vec<Weak<Tunnel>>>,
}

impl Ssh {
    /// Prepares; ssh must be there.
    pub fn new(route: Route) -> Result<Self, Error> {
        let path = env::var_os("PATH").unwrap_or_default();
        let there = |directory: PathBuf| access(directory.join(SSH), Access::EXEC_OK).is_ok();
        if !env::split_paths(&path).any(there) {
            return Err(cannot_start(Errno::NOENT));
        }
        Ok(Self {
            route,
            threads: AtomicBool::new(false),
            tunnels: Mutex::default(),
        })
    }

    /// Starts ssh for one more connection. Whether it gets anywhere shows when the server speaks, or
    /// does not: that is for the handshake to find out.
    pub fn open(&self, deadline: Deadline) -> Result<Stream, Error> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(Error::io("socketpair"))?;
        let output = theirs.try_clone().map_err(|error| Error::Io {
            call: "dup",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::MFILE),
        })?;
        let (words, stderr) = Words::pipe(Echo::Stderr)?;
        let arguments = self.route.arguments(deadline.remaining(), may_ask());
        log::debug!("{self}: starting ssh {}", shown(&arguments));
        let mut command = Command::new(SSH);
        command
            .args(arguments)
            .stdin(theirs)
            .stdout(output)
            .stderr(stderr);
        ignore_interruptions(&mut command);
        let child = command
            .spawn()
            .map_err(|error| cannot_start(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        // The command holds the other end open as well.
        drop(command);
        let tunnel = Arc::new(Tunnel {
            process: Arc::new(Process::new(child)),
            words: Arc::new(words),
            listener: Mutex::new(None),
        });
        let mut tunnels = lock(&self.tunnels);
        tunnels.retain(|tunnel| tunnel.strong_count() > 0);
        tunnels.push(Arc::downgrade(&tunnel));
        drop(tunnels);
        Ok(Stream::through(ours, tunnel))
    }

    /// Waits until there is something to receive from a new connection, which has come about then.
    pub fn await_greeting(&self, stream: &Stream, deadline: Deadline) -> Result<(), Error> {
        let Some(tunnel) = stream.tunnel() else {
            return Ok(());
        };
        let result = tunnel
            .watch_for_greeting(stream, deadline)
            .map_err(|error| tunnel.explain(error));
        // Its last lines are in this error, and otherwise nowhere yet.
        if !matches!(result, Err(Error::TunnelEnded(_))) {
            tunnel.words.release();
        }
        result?;
        if self.threads.load(Ordering::Acquire) {
            tunnel.listen()?;
        }
        Ok(())
    }

    /// To be called when nbdkit has forked for the last time: threads can run from now on.
    pub fn after_fork(&self) -> Result<(), Error> {
        self.threads.store(true, Ordering::Release);
        self.living().iter().try_for_each(|tunnel| tunnel.listen())
    }

    /// To be called at the end, when all connections have been left: no thread and no ssh outlives
    /// it, whoever has forgotten about a connection.
    pub fn end(&self) {
        let living = self.living();
        // All at once, since they are waited for one after another.
        living.iter().for_each(|tunnel| tunnel.kill());
        living.iter().for_each(|tunnel| tunnel.end());
    }

    fn living(&self) -> Vec<Arc<Tunnel>> {
        lock(&self.tunnels)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl fmt::Display for Ssh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.route.fmt(f)
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.end();
    }
}

fn cannot_start(errno: Errno) -> Error {
    Error::Spawn {
        command: SSH.to_owned(),
        errno,
    }
}

/// Whether somebody is there to be asked for a password: nbdkit is what the terminal is used for.
fn may_ask() -> bool {
    let stdin = std::io::stdin();
    stdin.is_terminal()
        && rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp())
}

fn shown(arguments: &[OsString]) -> String {
    let shown = |argument: &OsString| printable(argument.as_bytes(), 200);
    arguments.iter().map(shown).collect::<Vec<_>>().join(" ")
}

/// The ssh of one connection. It ends with this, and is waited for.
#[derive(Debug)]
pub struct Tunnel {
    process: Arc<Process>,
    words: Arc<Words>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Tunnel {
    /// The reason behind the failure of the connection, if it is that ssh has ended badly.
    pub fn explain(&self, error: Error) -> Error {
        let is_end = matches!(error, Error::Closed | Error::Connect(_) | Error::Io { .. });
        if !is_end || self.process.killed.load(Ordering::Relaxed) {
            return error;
        }
        let Some(end) = self.process.wait(DYING) else {
            return error;
        };
        let words = self.words.last_lines(true);
        match (end, words.as_str()) {
            // It does not say much about how it ended if the server closed the connection.
            (None, "") => error,
            (Some(status), "") if status.signal().is_none() => error,
            (Some(status), _) if status.success() => error,
            (end, words) => Error::TunnelEnded(said(end, words)),
        }
    }

    /// Waits for the greeting. No thread listens to ssh yet, so its words are taken here: the last of
    /// them may become the reason why there is no connection.
    fn watch_for_greeting(&self, stream: &Stream, deadline: Deadline) -> Result<(), Error> {
        self.words.hold();
        loop {
            let words = self.words.more();
            let mut fds = [
                PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN),
                // When there are no more words this entry is not passed on.
                PollFd::from_borrowed_fd(words.unwrap_or(stream.as_fd()), PollFlags::IN),
            ];
            let count = 1 + usize::from(words.is_some());
            match poll(&mut fds[..count], deadline.timespec().as_ref()) {
                Ok(_) | Err(Errno::INTR) => (),
                Err(errno) => return Err(Error::io("poll")(errno)),
            }
            let [greeted, said] = fds.map(|fd| !fd.revents().is_empty());
            if said && words.is_some() {
                self.words.relay();
            }
            if greeted {
                if let Some(result) = peek(stream) {
                    return result;
                }
            }
            deadline.check()?;
        }
    }

    /// Ends ssh, without waiting for that.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Starts to pass on what ssh says.
    fn listen(&self) -> Result<(), Error> {
        let mut listener = lock(&self.listener);
        if listener.is_none() {
            let (process, words) = (self.process.clone(), self.words.clone());
            let thread = std::thread::Builder::new()
                .name("nbd-ssh-log".to_owned())
                .spawn(move || {
                    words.listen();
                    // So that an ssh that has ended is no zombie until the connection is left.
                    process.wait(GRACE);
                });
            *listener = Some(thread.map_err(|error| Error::Io {
                call: "thread",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            })?);
        }
        Ok(())
    }

    /// Ends ssh, by force if it does not do so by itself, and waits for it.
    fn end(&self) {
        if self.process.wait(GRACE).is_none() {
            self.process.kill();
            self.process.wait(KILLED);
        }
        match lock(&self.listener).take() {
            Some(listener) => {
                self.words.stop();
                // The thread panicked if this fails, which has been reported.
                let _ = listener.join();
            }
            None => self.words.finish(),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.end();
    }
}

fn said(end: Option<ExitStatus>, words: &str) -> String {
    let how = match end.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("exited with status {code}"),
        Some((_, Some(signal))) => format!("was killed by signal {signal}"),
        _ => "has ended".to_owned(),
    };
    match words {
        "" => format!("ssh {how}"),
        words => format!("ssh {how}: {words}"),
    }
}

/// A process that may be our child, or that of the nbdkit which forked us.
#[derive(Debug)]
struct Process {
    child: Mutex<Child>,
    /// Whose child it is.
    parent: u32,
    /// None where the kernel does not have them.
    handle: Option<OwnedFd>,
    /// Whether its end is our doing.
    killed: AtomicBool,
}

impl Process {
    fn new(child: Child) -> Self {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Self {
            // Nobody has waited for it yet, so that the number is still its own.
            handle: pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()),
            child: Mutex::new(child),
            parent: std::process::id(),
            killed: AtomicBool::new(false),
        }
    }

    fn is_ours(&self) -> bool {
        self.parent == std::process::id()
    }

    /// Waits for its end, but not longer than this. `Some(None)` if it has ended, and somebody else
    /// knows how.
    fn wait(&self, patience: Duration) -> Option<Option<ExitStatus>> {
        let until = Instant::now() + patience;
        loop {
            if self.is_ours() {
                match lock(&self.child).try_wait() {
                    Ok(Some(status)) => return Some(Some(status)),
                    Ok(None) => (),
                    // nbdkit was started with SIGCHLD ignored.
                    Err(_) => return Some(None),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            match &self.handle {
                Some(handle) => {
                    let mut fds = [PollFd::new(handle, PollFlags::IN)];
                    let timeout = Deadline::after(left).timespec();
                    let ended = poll(&mut fds, timeout.as_ref()).is_ok_and(|n| n > 0);
                    if ended && !self.is_ours() {
                        return Some(None);
                    }
                }
                None if left.is_zero() => (),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
            if left.is_zero() {
                return None;
            }
        }
    }

    fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        match &self.handle {
            // Fails if it has ended, or is another user's.
            Some(handle) => drop(pidfd_send_signal(handle, Signal::KILL)),
            None if self.is_ours() => drop(lock(&self.child).kill()),
            // The end of its input has to be enough.
            None => (),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
