//! Our side of the process between us and a server that we started.
//!
//! nbdkit may fork once more after the server was started, and what stays is not the server's
//! parent then. But somebody has to wait for the server; servers that end with their parent
//! (nbdkit --exit-with-parent) must not end when nbdkit goes to the background; and nobody of
//! nbdkit is asked if it is killed, or gives up because its socket cannot be bound. So the server's
//! parent is a process of its own, which does nothing but wait ([`Kept`]): it reports the server's
//! end, and ends the server and itself when the last process that could use the server is gone, or
//! says so.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::kept::Kept;
use super::launch::{Program, last_error, out_of_the_way};
use super::{is_ready, own_pid};
use crate::transport::Deadline;

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Not even by SIGKILL, at least not soon: a system call of its does not return.
    Stuck,
    /// Somebody ended the keeper.
    Unknown,
}

/// What the keeper is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// End the server; it may take its time.
    End,
    /// End the server by force.
    Kill,
}

/// The keeper of one server, seen from nbdkit.
#[derive(Debug)]
pub struct Keeper {
    /// Carries orders to the keeper, and one message from it: the end. `None` when we have let go.
    pub(super) line: Option<OwnedFd>,
    /// A pipe to which the keeper alone could write, which it never does: it ends with the keeper.
    life: OwnedFd,
    pid: Pid,
    /// The process that has to wait for the keeper.
    parent: i32,
    end: Mutex<Option<End>>,
}

impl Keeper {
    /// Starts a server and its keeper. Returns when the server runs, or with the reason why not.
    /// In the end the keeper removes `socket` and `directory`. It reads `words`, the server's
    /// standard error, when nobody of nbdkit is there to do so. `limit` is how long the server may
    /// take to end.
    pub fn start(
        program: Program,
        socket: CString,
        directory: CString,
        words: &OwnedFd,
        limit: Option<Duration>,
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
            socket,
            directory,
            limit,
            line: out_of_the_way(&other_end)?,
            life: out_of_the_way(&its_life)?,
            words: out_of_the_way(words)?,
            reporter: out_of_the_way(&reporter)?,
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
            end: Mutex::new(None),
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
        let known = || *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let line = self.line.as_ref()?;
        if known().is_some() || !is_ready(line, Deadline::after(patience)) {
            return known();
        }
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        while end.is_none() {
            let mut message = [0; 8];
            *end = match recv(line, &mut message, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => break,
                // The keeper went without hearing our last order; its message is there all the same.
                Err(Errno::INTR | Errno::CONNRESET) => None,
                Ok((n, _)) if n == message.len() => Some(End::decode(message)),
                _ => Some(End::Unknown),
            };
        }
        *end
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

impl Order {
    /// What the message means.
    pub fn decode(message: u8) -> Self {
        if message == Self::Kill as u8 {
            Self::Kill
        } else {
            Self::End
        }
    }
}

impl End {
    /// The message.
    pub fn encode(self) -> [u8; 8] {
        let (how, value) = match self {
            Self::Exited(status) => (0, status),
            Self::Killed(signal) => (1, signal),
            Self::Stuck => (2, 0),
            Self::Unknown => (3, 0),
        };
        ((u64::from(how as u32) << 32) | u64::from(value as u32)).to_ne_bytes()
    }

    fn decode(message: [u8; 8]) -> Self {
        let message = u64::from_ne_bytes(message);
        match (message >> 32, message as u32 as i32) {
            (0, status) => Self::Exited(status),
            (1, signal) => Self::Killed(signal),
            (2, _) => Self::Stuck,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Stuck => f.write_str("does not end, not even by SIGKILL"),
            Self::Unknown => f.write_str("has ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_survives_the_line() {
        for end in [
            End::Exited(0),
            End::Exited(255),
            End::Killed(9),
            End::Stuck,
            End::Unknown,
        ] {
            assert_eq!(End::decode(end.encode()), end);
        }
        for order in [Order::End, Order::Kill] {
            assert_eq!(Order::decode(order as u8), order);
        }
    }
}
