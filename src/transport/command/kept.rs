//! The process that is the server's parent, from its first moment to its last.
//!
//! It is a copy of nbdkit that never becomes another program, hence all of the code in this file
//! allocates nothing, takes no lock and cannot panic. It depends on no system call that an older
//! kernel lacks or a container forbids: pidfd_open is not needed by the parent of a process, and
//! close_range can be done without.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{from_ref, null, null_mut};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, RawDir, open, rmdir, unlink};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{
    Pid, Resource, Signal, WaitId, WaitIdOptions, chdir, getrlimit, kill_process, waitid,
};

use super::keeper::{End, Order};
use super::launch::{Program, last_error, place};

/// Where the keeper has what it needs, behind the standard three.
const LINE: RawFd = 3;
const LIFE: RawFd = 4;
const WORDS: RawFd = 5;

/// Nanoseconds that a server may take to end after SIGKILL.
const GRACE: u64 = 2 * SECOND;

const SECOND: u64 = 1_000_000_000;

/// Bytes of the server's words thrown away at a time.
const PIECE: usize = 4096;

/// Where the list of descriptors cannot be read, no more are looked for.
const MANY: u64 = 1 << 20;

/// The keeper's name in lists of processes. At most 15 bytes.
const NAME: &std::ffi::CStr = c"nbd-keeper";

/// Signals that nbdkit's whole process group may get. The keeper must outlive nbdkit.
const IGNORED: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// What the keeper gets to know.
pub struct Kept {
    /// The server.
    pub program: Program,
    /// Its socket, to be removed.
    pub socket: CString,
    /// The directory with the socket, to be removed.
    pub directory: CString,
    /// How long the server may take to end.
    pub limit: Option<Duration>,
    /// To nbdkit.
    pub line: OwnedFd,
    /// Closed by our end, which is all that it is for.
    pub life: OwnedFd,
    /// The server's standard error.
    pub words: OwnedFd,
    /// Where to say why there is no server.
    pub reporter: OwnedFd,
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

impl Kept {
    /// In the new process: starts the server, waits, and exits.
    pub fn keep(&mut self) -> ! {
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
        match server {
            Ok(server) => match self.settle() {
                Ok(()) => self.watch(server),
                Err(errno) => {
                    let _ = kill_process(server, Signal::KILL);
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
    fn settle(&self) -> Result<(), Errno> {
        for signal in IGNORED {
            // SAFETY: to ignore a signal is no code of ours.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        hear_of_children();
        let _ = rustix::thread::set_name(NAME);
        let _ = chdir(c"/");
        for number in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            place(&self.program.null, number)?;
        }
        place(&self.line, LINE)?;
        place(&self.life, LIFE)?;
        place(&self.words, WORDS)?;
        close_from(WORDS + 1);
        // Nothing may fail from here on. nbdkit waits for this one.
        close(self.reporter.as_raw_fd());
        Ok(())
    }

    /// Reports the server's end, and brings it about when nobody is at the other end of the line or
    /// somebody there says so.
    fn watch(&self, server: Pid) -> ! {
        let mut stage = Stage::Serving;
        let mut runs = true;
        // When the next stage begins by itself.
        let mut due = None;
        // Poll passes over negative numbers.
        let mut line = LINE;
        let mut words = -1;
        loop {
            if runs {
                if let Some(end) = end_of(server) {
                    report(end);
                    runs = false;
                }
            }
            if stage != Stage::Serving && !runs {
                break;
            }
            if due.is_some_and(|at| at <= now()) {
                if stage == Stage::Forced {
                    report(End::Stuck);
                    break;
                }
                stage = Stage::Forced;
                due = Some(force(server));
            }
            let (news, said) = wait(line, words, due);
            let heard = if news { hear() } else { Heard::Nothing };
            if heard == Heard::Gone {
                // Nobody is there any more, not even to take the server's words, which must not
                // stop it now, nor kill it.
                line = -1;
                words = WORDS;
            }
            match heard {
                Heard::Nothing => (),
                // There is nothing left to be ended.
                _ if !runs => stage = Stage::Asked,
                Heard::Order(Order::Kill) if stage != Stage::Forced => {
                    stage = Stage::Forced;
                    due = Some(force(server));
                }
                _ if stage == Stage::Serving => {
                    stage = Stage::Asked;
                    due = ask(server, self.limit);
                }
                _ => (),
            }
            if said && !throw_away_words() {
                words = -1;
            }
        }
        // Servers may remove their socket themselves.
        let _ = unlink(self.socket.as_c_str());
        let _ = rmdir(self.directory.as_c_str());
        exit()
    }
}

/// If the server has ended: how.
fn end_of(server: Pid) -> Option<End> {
    // Nobody else waits for the server, so its process id is its own until this succeeds.
    match waitid(
        WaitId::Pid(server),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    ) {
        Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Exited(code),
            (_, Some(signal)) => End::Killed(signal),
            _ => End::Unknown,
        }),
        Ok(None) | Err(Errno::INTR) => None,
        Err(_) => Some(End::Unknown),
    }
}

fn report(end: End) {
    // SAFETY: settled, and open until the end.
    let line = unsafe { BorrowedFd::borrow_raw(LINE) };
    // Fails when nobody wants to know.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = send(line, &end.encode(), flags);
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

fn hear() -> Heard {
    // SAFETY: settled, and open until the end.
    let line = unsafe { BorrowedFd::borrow_raw(LINE) };
    let mut message = [0; 1];
    match recv(line, &mut message, RecvFlags::DONTWAIT) {
        Ok((1, _)) => Heard::Order(Order::decode(message[0])),
        // They may have gone without hearing of the server's end.
        Err(Errno::INTR | Errno::AGAIN | Errno::CONNRESET) => Heard::Nothing,
        _ => Heard::Gone,
    }
}

/// False when there will be no more of them.
fn throw_away_words() -> bool {
    // SAFETY: settled, and open until the end.
    let words = unsafe { BorrowedFd::borrow_raw(WORDS) };
    let mut piece = [0; PIECE];
    match rustix::io::read(words, &mut piece) {
        Ok(n) => n > 0,
        Err(errno) => errno == Errno::INTR || errno == Errno::AGAIN,
    }
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
    let none = no_signals();
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

/// nbdkit and its parents may block or ignore signals; a server expects neither.
fn reset_signals() {
    block(&no_signals());
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: the default action is no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Lets the end of a child interrupt [`wait`], and nothing else.
fn hear_of_children() {
    extern "C" fn nothing(_: libc::c_int) {}
    let mut children = no_signals();
    // SAFETY: the set is a valid one.
    unsafe { libc::sigaddset(&mut children, libc::SIGCHLD) };
    block(&children);
    // SAFETY: the handler does nothing, which it may do at any time.
    unsafe { libc::signal(libc::SIGCHLD, nothing as *const () as libc::sighandler_t) };
}

fn no_signals() -> libc::sigset_t {
    let mut none = MaybeUninit::uninit();
    // SAFETY: fills in the set that it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: it was filled in.
    unsafe { none.assume_init() }
}

/// Blocks these signals and no others.
fn block(signals: &libc::sigset_t) {
    // SAFETY: the set is a valid one; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, signals, null_mut()) };
}

/// Closes all descriptors from `first` on.
fn close_from(first: RawFd) {
    // SAFETY: this process uses no descriptors but those that it leaves out.
    if unsafe { libc::syscall(libc::SYS_close_range, first, RawFd::MAX, 0) } != 0 {
        close_each_from(first);
    }
}

/// Likewise where Linux is older than 5.9, or somebody has forbidden the call.
fn close_each_from(first: RawFd) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(list) = open(c"/proc/self/fd", flags, Mode::empty()) else {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(MANY);
        (first..most.min(MANY) as RawFd).for_each(close);
        return;
    };
    let mut room = [MaybeUninit::uninit(); PIECE];
    // The list goes by number, so it does not matter that it becomes shorter meanwhile.
    let mut entries = RawDir::new(&list, &mut room);
    while let Some(Ok(entry)) = entries.next() {
        match number(entry.file_name().to_bytes()) {
            Some(fd) if fd >= first && fd != list.as_raw_fd() => close(fd),
            _ => (),
        }
    }
    // `list` is closed by its end.
}

/// The number that these digits stand for.
fn number(digits: &[u8]) -> Option<RawFd> {
    digits.iter().try_fold(0, |number: RawFd, digit| {
        let digit = RawFd::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn close(fd: RawFd) {
    // SAFETY: as for `close_from`.
    unsafe { libc::close(fd) };
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
    fn descriptors_are_named_in_decimal() {
        for (digits, fd) in [("0", 0), ("7", 7), ("1048576", 1 << 20)] {
            assert_eq!(number(digits.as_bytes()), Some(fd));
        }
        for text in [".", "..", "1x", "99999999999"] {
            assert_eq!(number(text.as_bytes()), None);
        }
    }
}
