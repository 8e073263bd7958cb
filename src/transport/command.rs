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

#[allow(unsafe_code)]
mod keeper;
#[allow(unsafe_code)]
mod launch;
#[cfg(test)]
mod tests;
mod words;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::getpid;

use self::keeper::Keeper;
use self::launch::{Program, c_string};
use self::words::{Echo, Words};
use super::{Deadline, Error, Stream, unix};
use crate::proto::codec::printable;

/// The sockets of a process close a moment before it can be seen to be dead.
const DYING: Duration = Duration::from_millis(200);

/// Bytes of a program's name in messages.
const NAME: usize = 200;

/// A server that we started. It ends when all processes that have a copy of this are gone, and
/// before that by [`Child::end`].
#[derive(Debug)]
pub struct Child {
    name: String,
    home: Home,
    keeper: Keeper,
    words: Arc<Words>,
    listener: Mutex<Option<JoinHandle<()>>>,
    /// The process that uses the server, once that is settled.
    user: AtomicI32,
}

impl Child {
    /// Starts a program. Its descriptor 3 is a listening Unix socket in a directory that only this
    /// user can enter.
    pub fn start(argv: &[OsString]) -> Result<Self, Error> {
        Self::start_with(argv, Echo::Stderr)
    }

    fn start_with(argv: &[OsString], echo: Echo) -> Result<Self, Error> {
        let name = argv.first().map_or_else(String::new, |program| {
            printable(program.as_encoded_bytes(), NAME)
        });
        let home = Home::new()?;
        Self::start_in(&home, argv, &name, echo)
            .inspect_err(|_| home.remove())
            .map(|(keeper, words)| Self {
                name,
                home: home.clone(),
                keeper,
                words: Arc::new(words),
                listener: Mutex::new(None),
                user: AtomicI32::new(0),
            })
    }

    fn start_in(
        home: &Home,
        argv: &[OsString],
        name: &str,
        echo: Echo,
    ) -> Result<(Keeper, Words), Error> {
        let socket = home.socket();
        let listener = UnixListener::bind(&socket).map_err(|error| Error::Io {
            call: "bind",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })?;
        let (words, stderr) = Words::pipe(echo)?;
        let start = || {
            Keeper::start(
                Program::new(argv, &listener.into(), &stderr)?,
                c_string(socket.as_os_str().as_bytes())?,
                c_string(home.directory.as_os_str().as_bytes())?,
            )
        };
        let keeper = start().map_err(|errno| Error::Spawn {
            command: name.to_owned(),
            errno,
        })?;
        Ok((keeper, words))
    }

    /// The program, as messages name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One more connection, which comes about when the server accepts it: servers speak first, and
    /// the first byte has arrived when this returns.
    pub fn connect(&self, deadline: Deadline) -> Result<Stream, Error> {
        self.try_connect(deadline)
            .map_err(|error| self.explain(error))
    }

    /// If the server has ended: how, and its last words.
    pub fn obituary(&self) -> Option<String> {
        self.obituary_within(Duration::ZERO)
    }

    /// The reason behind the failure of a connection, if it is that the server has ended.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Connect(_) | Error::Closed | Error::Io { .. } | Error::Timeout(_) => self
                .obituary_within(DYING)
                .map_or(error, Error::ServerEnded),
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

    /// Ends the server, by force if need be: takes at most a few seconds. Does nothing in another
    /// process than the one that uses the server, nor the second time.
    pub fn end(&self) {
        if self.user.load(Ordering::Relaxed) != own_pid() {
            return;
        }
        self.keeper.dismiss();
        self.words.stop();
        if let Some(listener) = lock(&self.listener).take() {
            // The thread panicked if this fails, which has been reported.
            let _ = listener.join();
        }
    }

    fn try_connect(&self, deadline: Deadline) -> Result<Stream, Error> {
        let stream = unix::open(&self.home.socket(), deadline)?;
        while !self.poll_greeting(&stream, deadline)? {}
        match recv(
            stream.as_fd(),
            &mut [0; 1],
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        ) {
            Ok((0, _)) => Err(Error::Closed),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(stream),
            Err(errno) => Err(Error::Connect(errno)),
        }
    }

    /// True when there is something to receive. Takes the server's words meanwhile: as long as no
    /// thread does, a talkative server would wait for us.
    fn poll_greeting(&self, stream: &Stream, deadline: Deadline) -> Result<bool, Error> {
        let words = self.words.more();
        let mut fds = [
            PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN),
            // When there are no more words this entry is not passed on.
            PollFd::from_borrowed_fd(words.unwrap_or(stream.as_fd()), PollFlags::IN),
        ];
        let count = 1 + usize::from(words.is_some());
        match poll(&mut fds[..count], deadline.timespec().as_ref()) {
            // That may have been a slice of the time only.
            Ok(0) => deadline.check()?,
            Ok(_) | Err(Errno::INTR) => (),
            Err(errno) => {
                return Err(Error::Io {
                    call: "poll",
                    errno,
                });
            }
        }
        let greeted = !fds[0].revents().is_empty();
        if !fds[1].revents().is_empty() {
            self.words.take();
        }
        Ok(greeted)
    }

    fn obituary_within(&self, patience: Duration) -> Option<String> {
        let end = self.keeper.wait(patience)?;
        let words = self.words.last_lines();
        Some(if words.is_empty() {
            format!("the server {end}")
        } else {
            format!("the server {end}: {words}")
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
        self.keeper.let_go();
    }
}

/// A directory with a socket in it.
#[derive(Clone, Debug)]
struct Home {
    directory: PathBuf,
}

impl Home {
    fn new() -> Result<Self, Error> {
        let wanted = std::path::absolute(std::env::temp_dir()).unwrap_or_default();
        // A name of the length that the real one will have.
        let candidate = Self {
            directory: wanted.join("nbdkit-nbd-XXXXXX"),
        };
        let parent = if unix::fits(&candidate.socket()) {
            &wanted
        } else {
            Path::new("/tmp")
        };
        let directory = launch::private_directory(parent).map_err(Error::io("mkdtemp"))?;
        Ok(Self { directory })
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// For as long as there is no keeper to do so.
    fn remove(&self) {
        let _ = std::fs::remove_file(self.socket());
        let _ = std::fs::remove_dir(&self.directory);
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
