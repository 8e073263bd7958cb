// SPDX-License-Identifier: BSD-3-Clause
//! Our side of the process between us and a server that we started.
//!
//! nbdkit may fork once more after the server was started, and what stays is not the server's
//! parent then. But somebody has to wait for the server; servers that end with their parent
//! (nbdkit --exit-with-parent) must not end when nbdkit goes to the background; and nobody of
//! nbdkit is asked if it is killed, or gives up because its socket cannot be bound. So the server's
//! parent is a process of its own, which does nothing but wait ([`Kept`]): it reports the server's
//! end, starts the server again when it is asked to, and ends the server and itself when the last
//! process that could use the server is gone, or says so.

use std::ffi::CString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, recvmsg, send, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::kept::Kept;
use super::launch::{Program, last_error, out_of_the_way};
use super::messages::{self, End, News, Order};
use super::starts::Starts;
use super::{GLANCE, is_ready, lock, own_pid};
use crate::transport::{Deadline, Error};

/// The keeper of one server, seen from nbdkit.
#[derive(Debug)]
pub struct Keeper {
    /// Carries orders to the keeper, and news from it. `None` when we have let go.
    pub(super) line: Option<OwnedFd>,
    /// A pipe to which the keeper alone could write, which it never does: it ends with the keeper.
    life: OwnedFd,
    pid: Pid,
    /// The process that has to wait for the keeper.
    parent: i32,
    known: Mutex<Known>,
}

/// What the keeper has told so far.
#[derive(Debug, Default)]
struct Known {
    /// The end of the server, unless it was started again since.
    end: Option<End>,
    /// It was told to start the server, and has not answered yet.
    asked: bool,
    /// How often it has answered.
    answers: u64,
    /// The socket of the server that was started last, until somebody takes it.
    door: Option<OwnedFd>,
    /// When it was told so.
    starts: Starts,
    /// It has ended itself.
    gone: bool,
}

/// Why a server was not started again.
#[derive(Debug)]
pub enum Refused {
    /// It was so often that the next time must wait for so long.
    TooOften(Duration),
    /// The deadline passed, or nobody wants it any more.
    GivenUp(Error),
}

impl Keeper {
    /// Starts a server and its keeper. Returns when the server runs, or with the reason why not.
    /// In the end the keeper removes `socket` and `directory`. It reads `words`, the server's
    /// standard error, when nobody of nbdkit is there to do so. `limit` is how long the server may
    /// take to end. Only with `again` can the server be started again.
    pub fn start(
        program: Program,
        socket: CString,
        directory: CString,
        words: &OwnedFd,
        limit: Option<Duration>,
        again: bool,
    ) -> Result<Self, Errno> {
        let (report, reporter) = pipe_with(PipeFlags::CLOEXEC)?;
        let (life, its_life) = pipe_with(PipeFlags::CLOEXEC)?;
        let (line, other_end) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut kept = Kept {
            program,
            address: SocketAddrUnix::new(socket.as_c_str())?,
            socket,
            directory,
            limit,
            again,
            line: out_of_the_way(&other_end)?,
            life: out_of_the_way(&its_life)?,
            words: out_of_the_way(words)?,
            reporter: Some(out_of_the_way(&reporter)?),
        };
        // SAFETY: the child only calls `keep`, which keeps to async-signal-safe functions.
        let forked = unsafe { libc::fork() };
        let pid = match forked {
            0 => kept.keep(),
            pid => Pid::from_raw(pid.max(0)).ok_or_else(last_error)?,
        };
        drop((kept, reporter, its_life, other_end));
        let keeper = Self {
            line: Some(line),
            life,
            pid,
            parent: own_pid(),
            known: Mutex::default(),
        };
        // The end of the report without a word means that exec closed it.
        let mut errno = [0; size_of::<i32>()];
        loop {
            match rustix::io::read(&report, &mut errno) {
                Err(Errno::INTR) => (),
                Ok(n) if n == errno.len() => {
                    keeper.tell(Order::End);
                    // There is no server that it would have to wait for.
                    keeper.is_gone(Deadline::NEVER);
                    return Err(Errno::from_raw_os_error(i32::from_ne_bytes(errno)));
                }
                _ => return Ok(keeper),
            }
        }
    }

    /// How the server ended; `None` if it runs on for so long.
    pub fn wait(&self, patience: Duration) -> Option<End> {
        let line = self.line.as_ref()?;
        if let Some(end) = self.news_by_now(line).end {
            return Some(end);
        }
        is_ready(line, Deadline::after(patience));
        self.news_by_now(line).end
    }

    /// Whether the keeper was told to start the server again, and has not done it yet.
    pub fn is_starting(&self) -> bool {
        self.line
            .as_ref()
            .is_some_and(|line| self.news_by_now(line).asked)
    }

    /// How often the server was started again, or could not be.
    pub fn starts(&self) -> u64 {
        lock(&self.known).answers
    }

    /// Has a server started again that has ended, and returns its new socket. Whoever finds that
    /// somebody else does so waits for it, and gets none. `before` runs just before the start.
    pub fn start_again(
        &self,
        before: impl FnOnce(),
        deadline: Deadline,
    ) -> Result<Option<OwnedFd>, Refused> {
        let Some(line) = &self.line else {
            return Ok(None);
        };
        let mut known = self.news_by_now(line);
        if known.end.is_none() || known.gone {
            return Ok(None);
        }
        if !known.asked {
            let admitted = known.starts.admit(Instant::now());
            admitted.map_err(Refused::TooOften)?;
            before();
            known.asked = true;
            self.tell(Order::Start);
        }
        let answers = known.answers;
        drop(known);
        loop {
            // Somebody else may take the news meanwhile, who also waits for them.
            is_ready(line, deadline.within(GLANCE));
            let mut known = self.news_by_now(line);
            if known.answers != answers {
                return Ok(known.door.take());
            }
            drop(known);
            deadline.check().map_err(Refused::GivenUp)?;
        }
    }

    /// What is known, with all that the keeper has told by now.
    fn news_by_now(&self, line: &OwnedFd) -> MutexGuard<'_, Known> {
        let mut known = lock(&self.known);
        while !known.gone && (known.asked || known.end.is_none()) {
            match receive(line) {
                Ok(Some((news, door))) => known.learn(news, door),
                Ok(None) => break,
                // The keeper went without hearing our last order; its message is there all the same.
                Err(Errno::INTR | Errno::CONNRESET) => (),
                Err(_) => known.lose(),
            }
        }
        known
    }

    /// What to poll for the news of the server's end.
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.line.as_ref().map(AsFd::as_fd)
    }

    /// Gives an order, whoever else could still use the server.
    pub fn tell(&self, order: Order) {
        if let Some(line) = &self.line {
            // Fails only when the keeper is gone.
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _ = send(line, &[order as u8], flags);
        }
    }

    #[cfg(test)]
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Leaves it to others to end the server. If there are none, that is now.
    pub fn let_go(&mut self) {
        self.line = None;
    }

    /// Whether the keeper has ended, and with it the server, or does so before the deadline.
    pub fn is_gone(&self, deadline: Deadline) -> bool {
        let gone = is_ready(&self.life, deadline);
        // To others than its parent the number may mean another process.
        if gone && self.parent == own_pid() {
            // Fails the second time. The keeper is about to exit, or has.
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
        }
        gone
    }
}

impl Known {
    fn learn(&mut self, news: News, door: Option<OwnedFd>) {
        self.end = match news {
            News::Ended(end) => Some(end),
            News::Started => {
                self.door = door;
                None
            }
        };
        // The end of a server that was to be started means that it was not.
        self.answer();
    }

    /// There will be no more news.
    fn lose(&mut self) {
        self.gone = true;
        self.end.get_or_insert(End::Unknown);
        self.answer();
    }

    fn answer(&mut self) {
        if self.asked {
            self.asked = false;
            self.answers += 1;
        }
    }
}

/// Takes one message, with the socket that may be attached to it. `None` if there is none yet.
fn receive(line: &OwnedFd) -> Result<Option<(News, Option<OwnedFd>)>, Errno> {
    let mut message = [0; messages::LENGTH];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(
        line,
        &mut [IoSliceMut::new(&mut message)],
        &mut attached,
        flags,
    );
    let length = match received {
        Ok(received) if !received.flags.contains(ReturnFlags::TRUNC) => received.bytes,
        Ok(_) => 0,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if length != message.len() {
        return Err(Errno::PIPE);
    }
    let door = attached.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Some((News::decode(message), door)))
}
