//! The process between us and a server that we started.
//!
//! nbdkit may fork once more after the server was started, and what stays is not the server's
//! parent then. But somebody has to wait for the server; servers that end with their parent
//! (nbdkit --exit-with-parent) must not end when nbdkit goes to the background; and nobody of
//! nbdkit is asked if it is killed, or gives up because its socket cannot be bound. So the server's
//! parent is a process of its own, which does nothing but wait: it reports the server's end, and
//! ends the server and itself when the last process that could use the server is gone, or says so.
//!
//! It is a copy of nbdkit that never becomes another program, hence all of its code, which is from
//! [`Kept::keep`] on, allocates nothing, takes no lock and cannot panic.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, ptr};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{rmdir, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, chdir, pidfd_open, pidfd_send_signal, waitid,
};

use super::is_ready;
use super::launch::{Program, last_error, out_of_the_way, place};
use crate::transport::Deadline;

/// Seconds that a server may take to end after SIGTERM, and after SIGKILL.
const GRACE: i64 = 2;

/// How long the keeper may take altogether.
const PATIENCE: Duration = Duration::from_secs(2 * GRACE as u64 + 1);

/// The keeper's name in lists of processes. At most 15 bytes.
const NAME: &std::ffi::CStr = c"nbd-keeper";

/// Signals that nbdkit's whole process group may get. The keeper must outlive nbdkit.
const IGNORED: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Somebody ended the keeper.
    Unknown,
}

/// Our side: the keeper of one server.
#[derive(Debug)]
pub struct Keeper {
    /// Carries one message from the keeper: the end. `None` when we have let go.
    pub(super) line: Option<OwnedFd>,
    process: OwnedFd,
    end: Mutex<Option<End>>,
}

impl Keeper {
    /// Starts a server and its keeper. Returns when the server runs, or with the reason why not.
    /// In the end the keeper removes `socket` and `directory`.
    pub fn start(program: Program, socket: CString, directory: CString) -> Result<Self, Errno> {
        let (report, reporter) = pipe_with(PipeFlags::CLOEXEC)?;
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
            line: out_of_the_way(&other_end)?,
            reporter: out_of_the_way(&reporter)?,
        };
        // SAFETY: the child only calls `keep`, which keeps to async-signal-safe functions.
        let forked = unsafe { libc::fork() };
        let pid = match forked {
            0 => kept.keep(),
            pid => Pid::from_raw(pid.max(0)).ok_or_else(last_error)?,
        };
        drop((kept, reporter, other_end));
        let keeper = Self {
            line: Some(line),
            process: pidfd_open(pid, PidfdFlags::empty())?,
            end: Mutex::new(None),
        };
        // The end of the report without a word means that exec closed it.
        let mut errno = [0; size_of::<i32>()];
        loop {
            match rustix::io::read(&report, &mut errno) {
                Err(Errno::INTR) => (),
                Ok(n) if n == errno.len() => {
                    keeper.dismiss();
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
        if end.is_none() {
            let mut message = [0; 8];
            *end = match recv(line, &mut message, RecvFlags::DONTWAIT) {
                Err(Errno::INTR | Errno::AGAIN) => None,
                Ok((n, _)) if n == message.len() => Some(End::decode(message)),
                _ => Some(End::Unknown),
            };
        }
        *end
    }

    /// Ends the server and the keeper, whoever else could still use the server.
    pub fn dismiss(&self) {
        if let Some(line) = &self.line {
            // Fails only when the keeper is gone.
            let _ = shutdown(line, Shutdown::Write);
            self.reap();
        }
    }

    /// Leaves it to others to end the server. If there are none, that is now.
    pub fn let_go(&mut self) {
        self.line = None;
        self.reap();
    }

    fn reap(&self) {
        if is_ready(&self.process, Deadline::after(PATIENCE)) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            // Fails if we are not the keeper's parent; then that is gone, and init will do it.
            let _ = waitid(WaitId::PidFd(self.process.as_fd()), options);
        }
    }
}

impl End {
    fn encode(self) -> [u8; 8] {
        let (how, value) = match self {
            Self::Exited(status) => (0, status),
            Self::Killed(signal) => (1, signal),
            Self::Unknown => (2, 0),
        };
        ((u64::from(how as u32) << 32) | u64::from(value as u32)).to_ne_bytes()
    }

    fn decode(message: [u8; 8]) -> Self {
        let message = u64::from_ne_bytes(message);
        match (message >> 32, message as u32 as i32) {
            (0, status) => Self::Exited(status),
            (1, signal) => Self::Killed(signal),
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("has ended"),
        }
    }
}

/// The keeper's side.
struct Kept {
    program: Program,
    socket: CString,
    directory: CString,
    line: OwnedFd,
    reporter: OwnedFd,
}

impl Kept {
    /// In the new process: starts the server, waits, and exits.
    fn keep(&mut self) -> ! {
        // Whatever happens, nbdkit's own code must not run on in this copy.
        let _exit = Exit;
        reset_signals();
        // SAFETY: the child only calls `become_program`, which keeps to async-signal-safe functions.
        let forked = unsafe { libc::fork() };
        let server = match forked {
            0 => {
                let errno = self.program.become_program();
                self.fail(errno)
            }
            pid => Pid::from_raw(pid.max(0)).ok_or_else(last_error),
        };
        // Nobody else waits for the server, so its process id is still its own.
        match server.and_then(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Ok(server) => match self.settle(&server) {
                Ok(()) => self.watch(&server),
                Err(errno) => {
                    let _ = pidfd_send_signal(&server, Signal::KILL);
                    self.fail(errno)
                }
            },
            Err(errno) => self.fail(errno),
        }
    }

    /// Tells the one who waits for the start of the server that it failed.
    fn fail(&self, errno: Errno) -> ! {
        let _ = rustix::io::write(&self.reporter, &errno.raw_os_error().to_ne_bytes());
        exit()
    }

    /// Holds on to nothing of nbdkit's.
    fn settle(&self, server: &OwnedFd) -> Result<(), Errno> {
        for signal in IGNORED {
            // SAFETY: to ignore a signal is no code of ours.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let _ = rustix::thread::set_name(NAME);
        let _ = chdir(c"/");
        for number in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            place(&self.program.null, number)?;
        }
        let (line, server) = (self.line.as_raw_fd(), server.as_raw_fd());
        let (low, high) = (line.min(server), line.max(server));
        close_range(libc::STDERR_FILENO + 1, low - 1)?;
        close_range(low + 1, high - 1)?;
        close_range(high + 1, RawFd::MAX)
    }

    /// Reports the server's end, and brings it about when nobody is at the other end of the line.
    fn watch(&self, server: &OwnedFd) -> ! {
        let mut fds = [
            PollFd::new(&self.line, PollFlags::IN),
            PollFd::new(server, PollFlags::IN),
        ];
        let mut runs = true;
        loop {
            let count = if runs { 2 } else { 1 };
            let _ = poll(&mut fds[..count], None);
            let dismissed = !fds[0].revents().is_empty();
            if runs && !fds[1].revents().is_empty() {
                self.report_end(server);
                runs = false;
            }
            if dismissed {
                break;
            }
        }
        if runs {
            end(server);
            self.report_end(server);
        }
        // Servers may remove their socket themselves.
        let _ = unlink(self.socket.as_c_str());
        let _ = rmdir(self.directory.as_c_str());
        exit()
    }

    fn report_end(&self, server: &OwnedFd) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(server.as_fd()), options);
        let end = match status {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Exited(code),
                (_, Some(signal)) => End::Killed(signal),
                _ => End::Unknown,
            },
            _ => End::Unknown,
        };
        // Fails when nobody wants to know.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = send(&self.line, &end.encode(), flags);
    }
}

/// Ends a server, by force if need be.
fn end(server: &OwnedFd) {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut fds = [PollFd::new(server, PollFlags::IN)];
        let grace = Timespec {
            tv_sec: GRACE,
            tv_nsec: 0,
        };
        if pidfd_send_signal(server, signal).is_err() || poll(&mut fds, Some(&grace)) == Ok(1) {
            return;
        }
    }
}

/// nbdkit and its parents may block or ignore signals; a server expects neither, and the keeper has
/// to hear of its child.
fn reset_signals() {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills in the set that it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was filled in; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: the default action is no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Closes the descriptors from `first` to `last`, if there are any.
fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: this process uses no descriptors but those that it leaves out.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

fn exit() -> ! {
    // SAFETY: ends this process without running anything of the one that it was forked from.
    unsafe { libc::_exit(127) }
}

/// Exits when it is dropped, which only a panic would do.
struct Exit;

impl Drop for Exit {
    fn drop(&mut self) {
        exit()
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
            End::Unknown,
        ] {
            assert_eq!(End::decode(end.encode()), end);
        }
    }
}
