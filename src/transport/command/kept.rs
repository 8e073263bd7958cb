// SPDX-License-Identifier: BSD-3-Clause
//! The process that is the server's parent, from its first moment to its last.
//!
//! It is a copy of nbdkit that never becomes another program, hence all of the code in this file,
//! and in `signals`, `descriptors` and `messages`, allocates nothing, takes no lock and cannot panic.
//! It depends on no system call that an older kernel lacks or a container forbids: pidfd_open is not
//! needed by the parent of a process, and close_range can be done without.
//!
//! It was made before nbdkit had threads, and has none itself. So it is the one that can fork when a
//! server has to be started again, and what nbdkit has become since is no business of the server.

use std::ffi::CString;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr::{from_ref, null};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, chmod, open, rmdir, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, listen, recv, send, sendmsg, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, chdir, kill_process, waitid};

use super::descriptors::close_others;
use super::launch::{Program, last_error, out_of_the_way, place};
use super::messages::{End, News, Order};
use super::signals;

/// Nanoseconds that a server may take to end after SIGKILL.
const GRACE: u64 = 2 * SECOND;

const SECOND: u64 = 1_000_000_000;

/// Bytes of the server's words thrown away at a time.
const PIECE: usize = 4096;

/// Connections that may wait for a server, if the system allows as many.
const QUEUE: i32 = 4096;

/// The keeper's name in lists of processes. At most 15 bytes.
const NAME: &std::ffi::CStr = c"nbd-keeper";

/// What the keeper gets to know. All descriptors are out of the way of those that a server gets.
pub struct Kept {
    /// The server.
    pub program: Program,
    /// Its socket, to be removed.
    pub socket: CString,
    /// The same, to listen there.
    pub address: SocketAddrUnix,
    /// The directory with the socket, to be removed.
    pub directory: CString,
    /// How long the server may take to end.
    pub limit: Option<Duration>,
    /// Whether the server may be started again.
    pub again: bool,
    /// To nbdkit.
    pub line: OwnedFd,
    /// Closed by our end, which is all that it is for.
    pub life: OwnedFd,
    /// The server's standard error.
    pub words: OwnedFd,
    /// Where to say why there is no server; closed when there is one.
    pub reporter: Option<OwnedFd>,
}

/// What came through the line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    Order(Order),
    Nothing,
    /// The other end is closed.
    Gone,
}

/// How far the server is on its way to the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody has told it to end.
    Serving,
    /// It was asked to.
    Asked,
    /// It was not given a choice.
    Forced,
}

/// A server that was started, and maybe has ended.
struct Server {
    pid: Pid,
    runs: bool,
    /// Where it says why it could not become the program, if it is not the first one.
    report: Option<OwnedFd>,
}

impl Kept {
    /// In the new process: starts the server, waits, and exits.
    pub fn keep(&mut self) -> ! {
        // Whatever happens, nbdkit's own code must not run on in this copy.
        let _exit = Exit;
        signals::reset();
        // SAFETY: the child only calls `become_program`, which keeps to async-signal-safe functions.
        let forked = unsafe { libc::fork() };
        let server = match forked {
            0 => {
                let errno = self.program.become_program();
                self.fail(errno)
            }
            pid => Pid::from_raw(pid.max(0)).ok_or_else(last_error),
        };
        match server {
            Ok(pid) => match self.settle() {
                Ok(before) => self.watch(pid, before),
                Err(errno) => {
                    let _ = kill_process(pid, Signal::KILL);
                    self.fail(errno)
                }
            },
            Err(errno) => self.fail(errno),
        }
    }

    /// Tells the one who waits for the start of the server that it failed.
    fn fail(&self, errno: Errno) -> ! {
        if let Some(reporter) = &self.reporter {
            tell_why(reporter, errno);
        }
        exit()
    }

    /// Holds on to nothing of nbdkit's, unless a server that is started again will have to get it.
    fn settle(&mut self) -> Result<signals::Before, Errno> {
        let before = signals::settle();
        let _ = rustix::thread::set_name(NAME);
        if !self.again {
            let _ = chdir(c"/");
        }
        for number in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            place(&self.program.null, number)?;
        }
        let fd = AsRawFd::as_raw_fd;
        let reporter = self.reporter.as_ref().map_or(-1, fd);
        let [line, life, words] = [&self.line, &self.life, &self.words].map(fd);
        if self.again {
            self.program.listen_on(None);
            let [null, stderr] = [&self.program.null, &self.program.stderr].map(fd);
            close_others(&[line, life, words, reporter, null, stderr], true);
        } else {
            // `program` is of no more use, and never dropped.
            close_others(&[line, life, words, reporter], false);
        }
        // Nothing may fail from here on. nbdkit waits for this one.
        self.reporter = None;
        Ok(before)
    }

    /// Reports the server's end, and brings it about when nobody is at the other end of the line or
    /// somebody there says so. Starts the server again when it has ended and somebody says so.
    fn watch(&mut self, pid: Pid, before: signals::Before) -> ! {
        let mut server = Server {
            pid,
            runs: true,
            report: None,
        };
        let mut stage = Stage::Serving;
        // When the next stage begins by itself.
        let mut due = None;
        // Poll passes over negative numbers.
        let mut line = self.line.as_raw_fd();
        let mut words = -1;
        loop {
            if server.runs {
                if let Some(end) = server.end() {
                    self.report(News::Ended(end));
                }
            }
            if stage != Stage::Serving && !server.runs {
                break;
            }
            if due.is_some_and(|at| at <= now()) {
                if stage == Stage::Forced {
                    self.report(News::Ended(End::Stuck));
                    break;
                }
                stage = Stage::Forced;
                due = Some(force(server.pid));
            }
            let (news, said) = wait(line, words, due);
            let heard = if news { self.hear() } else { Heard::Nothing };
            if heard == Heard::Gone {
                // Nobody is there any more, not even to take the server's words, which must not
                // stop it now, nor kill it.
                line = -1;
                words = self.words.as_raw_fd();
            }
            match heard {
                Heard::Nothing => (),
                Heard::Order(Order::Start)
                    if self.again && stage == Stage::Serving && !server.runs =>
                {
                    match self.start_again(before) {
                        Ok(next) => server = next,
                        Err(errno) => self.report(News::Ended(End::Unstarted(errno))),
                    }
                }
                // Nobody asks for it while the server runs, nor when it is to end.
                Heard::Order(Order::Start) => (),
                // There is nothing left to be ended.
                _ if !server.runs => stage = Stage::Asked,
                Heard::Order(Order::Kill) if stage != Stage::Forced => {
                    stage = Stage::Forced;
                    due = Some(force(server.pid));
                }
                _ if stage == Stage::Serving => {
                    stage = Stage::Asked;
                    due = ask(server.pid, self.limit);
                }
                _ => (),
            }
            if said && !self.throw_away_words() {
                words = -1;
            }
        }
        // Servers may remove their socket themselves.
        let _ = unlink(self.socket.as_c_str());
        let _ = rmdir(self.directory.as_c_str());
        exit()
    }

    /// Starts the server once more, as it was started first, but with a new socket: the old one is
    /// gone with its last holder, which is how it is known that nobody serves there.
    fn start_again(&mut self, before: signals::Before) -> Result<Server, Errno> {
        let (listener, door) = self.listen()?;
        let (report, reporter) = pipe_with(PipeFlags::CLOEXEC)?;
        let reporter = out_of_the_way(&reporter)?;
        self.program.listen_on(Some(listener));
        // SAFETY: the child only sets signals and calls `become_program`, which keep to
        // async-signal-safe functions.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            before.restore();
            let errno = self.program.become_program();
            tell_why(&reporter, errno);
            exit()
        }
        let pid = Pid::from_raw(forked.max(0)).ok_or_else(last_error);
        self.program.listen_on(None);
        let pid = pid?;
        self.introduce(&door);
        Ok(Server {
            pid,
            runs: true,
            report: Some(report),
        })
    }

    /// A new socket in the place of the old one, and the way to it.
    fn listen(&self) -> Result<(OwnedFd, OwnedFd), Errno> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Servers may remove their socket themselves.
        let _ = unlink(self.socket.as_c_str());
        bind(&socket, &self.address)?;
        // As for the first one: who may use it is for the directory to say.
        chmod(self.socket.as_c_str(), Mode::from_raw_mode(0o666))?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let door = open(self.socket.as_c_str(), flags, Mode::empty())?;
        listen(&socket, QUEUE)?;
        Ok((out_of_the_way(&socket)?, door))
    }

    /// Tells that the server was started again, and where it is.
    fn introduce(&self, door: &OwnedFd) {
        let doors = [door.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        // There is room for one.
        attached.push(SendAncillaryMessage::ScmRights(&doors));
        let message = News::Started.encode();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // Fails when nobody wants to know.
        let _ = sendmsg(&self.line, &[IoSlice::new(&message)], &mut attached, flags);
    }

    fn report(&self, news: News) {
        // Fails when nobody wants to know.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = send(&self.line, &news.encode(), flags);
    }

    fn hear(&self) -> Heard {
        let mut message = [0; 1];
        match recv(&self.line, &mut message, RecvFlags::DONTWAIT) {
            Ok((1, _)) => Heard::Order(Order::decode(message[0])),
            // They may have gone without hearing of the server's end.
            Err(Errno::INTR | Errno::AGAIN | Errno::CONNRESET) => Heard::Nothing,
            _ => Heard::Gone,
        }
    }

    /// False when there will be no more of them.
    fn throw_away_words(&self) -> bool {
        let mut piece = [0; PIECE];
        match rustix::io::read(&self.words, &mut piece) {
            Ok(n) => n > 0,
            Err(errno) => errno == Errno::INTR || errno == Errno::AGAIN,
        }
    }
}

impl Server {
    /// If it has ended since it was last asked: how.
    fn end(&mut self) -> Option<End> {
        // Nobody else waits for the server, so its process id is its own until this succeeds.
        let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let end = match waitid(WaitId::Pid(self.pid), flags) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Exited(code),
                (_, Some(signal)) => End::Killed(signal),
                _ => End::Unknown,
            },
            Ok(None) | Err(Errno::INTR) => return None,
            Err(_) => End::Unknown,
        };
        self.runs = false;
        // The program does not have the other end, nor does anybody else by now.
        let mut errno = [0; size_of::<i32>()];
        match self.report.take() {
            Some(report) if rustix::io::read(&report, &mut errno) == Ok(errno.len()) => {
                let errno = Errno::from_raw_os_error(i32::from_ne_bytes(errno));
                Some(End::Unstarted(errno))
            }
            _ => Some(end),
        }
    }
}

/// In a process that should have become a program.
fn tell_why(reporter: &OwnedFd, errno: Errno) {
    let _ = rustix::io::write(reporter, &errno.raw_os_error().to_ne_bytes());
}

/// Tells a server that runs to end, and returns when its time will be up.
fn ask(server: Pid, limit: Option<Duration>) -> Option<u64> {
    let _ = kill_process(server, Signal::TERM);
    // One that was stopped could not do it.
    let _ = kill_process(server, Signal::CONT);
    let limit = limit?;
    let nanoseconds = limit
        .as_secs()
        .saturating_mul(SECOND)
        .saturating_add(u64::from(limit.subsec_nanos()));
    Some(now().saturating_add(nanoseconds))
}

/// Ends a server that runs, and returns when to give up hope.
fn force(server: Pid) -> u64 {
    let _ = kill_process(server, Signal::KILL);
    now().saturating_add(GRACE)
}

/// Waits until the line or the words can be read, the server ends, or it is time for something.
/// Says whether the first and the second are so.
fn wait(line: RawFd, words: RawFd, due: Option<u64>) -> (bool, bool) {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [entry(line), entry(words)];
    let left = due.map(|at| {
        let left = at.saturating_sub(now());
        libc::timespec {
            tv_sec: (left / SECOND) as libc::time_t,
            tv_nsec: (left % SECOND) as _,
        }
    });
    let timeout = left.as_ref().map_or(null(), from_ref);
    let none = signals::none();
    // The end of the server is a signal, which can come during this call only.
    // SAFETY: all three are valid for the call, and there are two entries.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), 2, timeout, &none) };
    if ready > 0 {
        (fds[0].revents != 0, fds[1].revents != 0)
    } else {
        (false, false)
    }
}

/// Nanoseconds of a clock that nobody sets.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills in what it is given; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64)
        .saturating_mul(SECOND)
        .saturating_add(time.tv_nsec as u64)
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
