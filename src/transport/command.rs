// SPDX-License-Identifier: BSD-3-Clause
//! A server that we start ourselves, with a listening socket of ours (systemd's socket
//! activation).
//!
//! It is started while nbdkit can still fail, and used by the process that nbdkit forks later. Until
//! [`Child::after_fork`] there are no threads. A third process, the keeper, is the server's parent
//! and ends it.
//!
//! The socket's path is kept, but not the listening socket: with the last process that holds it,
//! the kernel refuses new connections and ends those that nobody accepted. That is how a server
//! that is gone, or that serves one client only, is told from one that is busy.
//!
//! If the user wants to come back to a server that was lost, one that has ended is started again by
//! its keeper when somebody wants to connect to it.

mod again;
#[allow(unsafe_code)]
mod descriptors;
mod home;
#[allow(unsafe_code)]
mod impatience;
#[allow(unsafe_code)]
mod keeper;
#[allow(unsafe_code)]
mod kept;
#[allow(unsafe_code)]
pub(super) mod launch;
mod messages;
#[allow(unsafe_code)]
mod signals;
mod starts;
#[cfg(test)]
mod tests;
pub(super) mod words;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{getpid, getppid};

use self::home::Home;
use self::impatience::Impatience;
use self::keeper::Keeper;
use self::launch::{Program, c_string};
use self::messages::{End, Order};
use self::words::{Echo, Words};
use super::{Deadline, Error, Stream};
use crate::proto::codec::printable;

pub use self::again::Obituary;

/// The sockets of a process close a moment before it can be seen to be dead.
const DYING: Duration = Duration::from_millis(200);

/// How long a start may go on before the server's last lines are passed on without knowing what
/// becomes of it.
const HOLD: Duration = Duration::from_secs(1);

/// How long a server takes to end before the user is told what is waited for; and how long one is
/// waited for that nothing was written to.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a signal to end still counts as the first one: some senders send it twice, to the
/// process and to its group.
const TWICE: Duration = Duration::from_millis(100);

/// How often to look for another signal while waiting, and what else has changed.
const GLANCE: Duration = Duration::from_millis(50);

/// How long to wait after force: longer than the keeper does.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// The status of a shell, and of who follows its example, that ended because of SIGTERM.
const BY_SIGTERM: i32 = 128 + libc::SIGTERM;

/// Bytes of a program's name in messages.
const NAME: usize = 200;

/// Behind the end of a server that never said a word to us.
const HINT: &str = "a server must support socket activation and stay in the foreground";

/// A server that we started. It is told to end when all processes that have a copy of this are gone,
/// and before that by [`Child::end`].
#[derive(Debug)]
pub struct Child {
    name: String,
    home: Home,
    keeper: Keeper,
    words: Arc<Words>,
    listener: Mutex<Option<JoinHandle<()>>>,
    /// How long the server may take to end.
    limit: Option<Duration>,
    /// Whether it is started again when it has ended and somebody wants to connect.
    again: bool,
    /// The process that started the server.
    starter: i32,
    /// The process that uses the server, once that is settled.
    user: AtomicI32,
    /// Whether the server has ever said something to a client.
    spoke: AtomicBool,
    /// Whether the server was waited for to its end.
    over: AtomicBool,
}

impl Child {
    /// Starts a program. Its descriptor 3 is a listening Unix socket in a directory that only this
    /// user can enter. `limit` is how long it may take to end when it is told to; after that it is
    /// killed. With `again`, [`Child::connect`] starts it again when it has ended by itself.
    pub fn start(argv: &[OsString], limit: Option<Duration>, again: bool) -> Result<Self, Error> {
        Self::start_with(argv, limit, again, Echo::Stderr)
    }

    fn start_with(
        argv: &[OsString],
        limit: Option<Duration>,
        again: bool,
        echo: Echo,
    ) -> Result<Self, Error> {
        let name = match argv.first() {
            Some(program) if !program.is_empty() => printable(program.as_encoded_bytes(), NAME),
            _ => "\"\"".to_owned(),
        };
        let (home, listener) = Home::new()?;
        let start = || {
            let (words, stderr) = Words::pipe(echo)?;
            let start = || {
                Keeper::start(
                    Program::new(argv, &listener.into(), &stderr)?,
                    c_string(home.socket().as_os_str().as_bytes())?,
                    c_string(home.directory.as_os_str().as_bytes())?,
                    words.reading_end(),
                    limit,
                    again,
                )
            };
            let keeper = start().map_err(|errno| Error::Spawn {
                command: name.clone(),
                errno,
            })?;
            Ok((keeper, words))
        };
        let (keeper, words) = start().inspect_err(|_| home::remove(&home.directory))?;
        Ok(Self {
            name,
            home,
            keeper,
            words: Arc::new(words),
            listener: Mutex::new(None),
            limit,
            again,
            starter: own_pid(),
            user: AtomicI32::new(0),
            spoke: AtomicBool::new(false),
            over: AtomicBool::new(false),
        })
    }

    /// The program, as messages name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until there is something to receive from a new connection: servers speak first, so the
    /// server has accepted it then.
    pub fn await_greeting(&self, stream: &Stream, deadline: Deadline) -> Result<(), Error> {
        let result = match self.watch_for_greeting(stream, deadline) {
            Ok(()) => Ok(()),
            Err(error @ Error::Timeout(_)) => Err(self.ended(self.obituary()).unwrap_or(error)),
            Err(error) => Err(self.explain(error)),
        };
        match &result {
            Ok(()) => {
                self.spoke.store(true, Ordering::Relaxed);
                self.words.release();
            }
            // Its last lines are in the error.
            Err(Error::ServerEnded(_)) => (),
            Err(_) => self.words.release(),
        }
        result
    }

    /// What is awaited by [`Child::await_greeting`], in words.
    pub fn awaited(&self) -> String {
        match self.spoke.load(Ordering::Relaxed) {
            true => "the server's first word".to_owned(),
            false => format!("the server's first word; {HINT}"),
        }
    }

    /// If the server has ended: how, and its last words.
    pub fn obituary(&self) -> Option<String> {
        self.obituary_within(Duration::ZERO)
    }

    /// The reason behind the failure of a connection, if it is that the server has ended.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Connect(_) | Error::Closed | Error::Io { .. } | Error::Timeout(_) => {
                self.ended(self.obituary_within(DYING)).unwrap_or(error)
            }
            other => other,
        }
    }

    /// To be called when nbdkit has forked for the last time: threads can run from now on, and
    /// this process is the one that ends the server.
    pub fn after_fork(&self) -> Result<(), Error> {
        self.user.store(own_pid(), Ordering::Relaxed);
        let mut listener = lock(&self.listener);
        if listener.is_none() {
            let words = self.words.clone();
            let thread = std::thread::Builder::new()
                .name("nbd-server-log".to_owned())
                .spawn(move || words.listen());
            *listener = Some(thread.map_err(|error| Error::Io {
                call: "thread",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            })?);
        }
        Ok(())
    }

    /// Tells the server to end, and waits until it has: as long as it takes, up to the limit. A
    /// signal to end that nbdkit gets meanwhile ends it by force. Does nothing in another process
    /// than the one that uses the server, nor the second time.
    ///
    /// Whoever has a connection should have left by it before.
    pub fn end(&self) {
        if self.user.load(Ordering::Relaxed) != own_pid() || self.over.swap(true, Ordering::Relaxed)
        {
            return;
        }
        match self.keeper.wait(Duration::ZERO) {
            // It has ended by itself, of which those were told who missed it.
            Some(_) if !self.keeper.is_starting() => {
                self.keeper.tell(Order::End);
                self.keeper.is_gone(Deadline::after(LAST_WAIT));
            }
            _ => self.see_off(),
        }
        self.words.stop();
        if let Some(listener) = lock(&self.listener).take() {
            // The thread panicked if this fails, which has been reported.
            let _ = listener.join();
        }
    }

    fn see_off(&self) {
        // The process that started the server is still our parent if it runs the command of --run.
        let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        let impatience = Impatience::listen((parent == self.starter).then_some(parent));
        self.keeper.tell(Order::End);
        let begin = Instant::now();
        let mut told = false;
        let mut forced = None;
        while !self.keeper.is_gone(Deadline::after(GLANCE)) {
            if lock(&self.listener).is_none() {
                self.words.relay();
            }
            if begin.elapsed() < TWICE {
                impatience.forget();
            }
            match forced {
                None if impatience.is_over() => {
                    self.keeper.tell(Order::Kill);
                    forced = Some(Deadline::after(LAST_WAIT));
                }
                Some(deadline) if deadline.has_passed() => break,
                _ => (),
            }
            // A line of ours would not come through where nobody reads, and hold us up.
            if !told && begin.elapsed() >= PATIENCE && !words::is_stderr_stuck() {
                told = true;
                log::warn!(
                    target: "command-end",
                    "command={}: waiting for the server to end; another SIGTERM kills it",
                    self.name
                );
            }
        }
        self.judge(begin.elapsed(), forced.is_some());
    }

    /// Tells of an end that may have cost something.
    fn judge(&self, took: Duration, forced: bool) {
        let end = self.keeper.wait(Duration::ZERO).unwrap_or(End::Stuck);
        let why = match end {
            End::Killed(libc::SIGKILL) if forced => ", as another signal to end asked for",
            End::Killed(libc::SIGKILL) if self.limit.is_some_and(|limit| took >= limit) => {
                ", since command-timeout was over"
            }
            End::Exited(0 | BY_SIGTERM) | End::Killed(libc::SIGTERM) | End::Unknown => {
                log::debug!("command={}: the server {end}", self.name);
                return;
            }
            End::Exited(_) | End::Killed(_) => " when it was told to end",
            End::Stuck | End::Unstarted(_) => "",
        };
        let words = self.words.last_lines(!self.is_in_background());
        let colon = if words.is_empty() { "" } else { ": " };
        log::warn!(
            target: "command-killed",
            "command={}: the server {end}{why}{colon}{words}",
            self.name
        );
    }

    /// Waits for the greeting. While no thread listens to the server, its words are taken here: a
    /// talkative server would wait for us.
    fn watch_for_greeting(&self, stream: &Stream, deadline: Deadline) -> Result<(), Error> {
        let alone = lock(&self.listener).is_none();
        if alone {
            self.words.hold();
        }
        let hold = Deadline::after(HOLD);
        let mut held = alone;
        let mut may_end = true;
        loop {
            let words = self.words.more().filter(|_| alone);
            let news = self.keeper.news().filter(|_| may_end);
            let entry = |fd: Option<_>| match fd {
                Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
                None => PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty()),
            };
            let mut fds = [entry(Some(stream.as_fd())), entry(words), entry(news)];
            let until = if held {
                hold.sooner(deadline)
            } else {
                deadline
            };
            match poll(&mut fds, until.timespec().as_ref()) {
                Ok(_) | Err(Errno::INTR) => (),
                Err(errno) => {
                    return Err(Error::Io {
                        call: "poll",
                        errno,
                    });
                }
            }
            let [greeted, said, ended] = fds.map(|fd| !fd.revents().is_empty());
            if said && words.is_some() {
                self.words.relay();
            }
            if greeted {
                if let Some(result) = peek(stream) {
                    return result;
                }
            }
            if ended && news.is_some() {
                match self.keeper.wait(Duration::ZERO) {
                    // It may have left a child behind which serves.
                    Some(End::Exited(0)) => may_end = false,
                    Some(_) => return Err(Error::Closed),
                    None => (),
                }
            }
            deadline.check()?;
            if held && hold.has_passed() {
                held = false;
                self.words.release();
            }
        }
    }

    fn obituary_within(&self, patience: Duration) -> Option<String> {
        let end = self.keeper.wait(patience)?;
        // What is tried again is told to few: then the words are passed on as well.
        let told_to_all = !self.again;
        let words = self
            .words
            .last_lines(told_to_all && !self.is_in_background());
        let hint = match end {
            End::Exited(_) if !self.spoke.load(Ordering::Relaxed) => format!(" ({HINT})"),
            _ => String::new(),
        };
        Some(if words.is_empty() {
            format!("the server {end}{hint}")
        } else {
            format!("the server {end}: {words}{hint}")
        })
    }

    /// Whether nbdkit has gone to the background, where its messages go to the system's log.
    fn is_in_background(&self) -> bool {
        let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        own_pid() != self.starter && parent != self.starter
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
        self.keeper.let_go();
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        // A server that could not be used: nothing was written to it, so that nothing is lost if it
        // is left alone with its keeper.
        let deadline = Deadline::after(PATIENCE);
        while !self.keeper.is_gone(Deadline::after(GLANCE)) {
            self.words.relay();
            if deadline.has_passed() {
                log::warn!(
                    target: "command-end",
                    "command={}: the server was told to end, but it still runs",
                    self.name
                );
                break;
            }
        }
        self.words.finish();
    }
}

/// Looks at the first byte of a connection; `None` if there is none yet.
pub(super) fn peek(stream: &Stream) -> Option<Result<(), Error>> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match recv(stream.as_fd(), &mut [0; 1], flags) {
        Ok((0, _)) => Some(Err(Error::Closed)),
        Ok(_) => Some(Ok(())),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(errno) => Some(Err(Error::Connect(errno))),
    }
}

/// Whether there is something to read, or will be before the deadline.
fn is_ready(fd: &OwnedFd, deadline: Deadline) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, deadline.timespec().as_ref()) {
            Err(Errno::INTR) => (),
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

fn own_pid() -> i32 {
    getpid().as_raw_nonzero().get()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
