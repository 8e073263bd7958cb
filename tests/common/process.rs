// SPDX-License-Identifier: BSD-3-Clause
//! Child processes that cannot outlive their test, and deadlines in place of sleeps.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How much of a child's output is read back; a chatty child keeps the rest in its temporary file.
const OUTPUT_LIMIT: u64 = 16 << 20;

/// A child process in a process group of its own. Dropping it kills the group and reaps the child.
///
/// The kernel also kills the child when the thread that started it ends (PR_SET_PDEATHSIG), so a test that
/// is killed leaves nothing behind. Hence: start a child on the thread that will outlive it.
pub struct Guarded {
    child: Child,
    pidfd: OwnedFd,
    stdout: File,
    stderr: File,
}

impl Guarded {
    /// Starts `command` with no input and its output captured in unnamed files, which need no reader and
    /// so can never block the child.
    pub fn spawn(command: &mut Command) -> Self {
        let stdout = tempfile::tempfile().expect("temporary file for stdout");
        let stderr = tempfile::tempfile().expect("temporary file for stderr");
        command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().expect("duplicate descriptor"))
            .stderr(stderr.try_clone().expect("duplicate descriptor"))
            .process_group(0);
        // SAFETY: die_with_parent only makes async-signal-safe system calls.
        unsafe { command.pre_exec(die_with_parent) };
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {command:?}: {error}"),
        };
        let pidfd = pidfd_open(child.id()).expect("pidfd of our own child");
        Self {
            child,
            pidfd,
            stdout,
            stderr,
        }
    }

    /// The process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the child wrote to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&contents(&self.stdout)).into_owned()
    }

    /// What the child wrote to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&contents(&self.stderr)).into_owned()
    }

    /// Sends a signal to the child alone.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id fits");
        // SAFETY: kill takes plain numbers; the child is not reaped while `self` is borrowed mutably nowhere.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "kill {pid}: {}", io::Error::last_os_error());
    }

    /// Whether the child is still running.
    pub fn alive(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("wait for our own child")
            .is_none()
    }

    /// Waits for the end of the child, but not longer than `timeout`.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<ExitStatus> {
        ended_within(&self.pidfd, timeout);
        self.child.try_wait().expect("wait for our own child")
    }

    /// Kills the whole process group, also when the child itself has ended.
    pub fn kill_group(&self) {
        self.signal_group(libc::SIGKILL);
    }

    /// Sends a signal to the whole process group.
    pub fn signal_group(&self, signal: libc::c_int) {
        let group = libc::pid_t::try_from(self.child.id()).expect("a process id fits");
        // SAFETY: killpg takes plain numbers. The leader's id stays reserved while any member lives, and a
        // group without members only gives an error, which is what we want then.
        unsafe { libc::killpg(group, signal) };
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill_group();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end. At the deadline it is killed and the test fails with everything it printed.
pub fn run(command: &mut Command, timeout: Duration) -> Output {
    let mut child = Guarded::spawn(command);
    match child.wait_timeout(timeout) {
        Some(status) => Output {
            status,
            stdout: contents(&child.stdout),
            stderr: contents(&child.stderr),
        },
        None => panic!(
            "still running after {timeout:?}: {command:?}\nstdout: {}\nstderr: {}",
            child.stdout(),
            child.stderr()
        ),
    }
}

/// [`run`], and the command must succeed; returns its stdout.
pub fn run_ok(command: &mut Command, timeout: Duration) -> String {
    let output = run(command, timeout);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}: {command:?}\nstdout: {stdout}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// Asks `probe` again and again until it answers; the only polling loop of the tests.
pub fn eventually<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Gives the child of `command` a copy of `descriptor` under the number `number`, open across exec.
///
/// The number should be one that nothing else in the child has: 3, or from 100 on.
pub fn hand_over(command: &mut Command, descriptor: &impl AsFd, number: RawFd) {
    let copy = descriptor
        .as_fd()
        .try_clone_to_owned()
        .expect("duplicate descriptor");
    let duplicate = move || {
        let result = if copy.as_raw_fd() == number {
            // A duplicate of itself would keep the flag that closes it at exec.
            // SAFETY: fcntl with F_SETFD takes plain numbers and is async-signal-safe.
            unsafe { libc::fcntl(number, libc::F_SETFD, 0) }
        } else {
            // SAFETY: dup2 takes plain numbers and is async-signal-safe.
            unsafe { libc::dup2(copy.as_raw_fd(), number) }
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure only makes these system calls.
    unsafe { command.pre_exec(duplicate) };
}

/// Lets the child of `command` have no descriptors but the standard three, whatever this process has.
pub fn inherit_nothing(command: &mut Command) {
    let close = || {
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
        // SAFETY: close_range takes plain numbers and is async-signal-safe.
        match unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes this system call.
    unsafe { command.pre_exec(close) };
}

/// Lets the child of `command` ignore none of a terminal's signals, as it does where the tests were
/// started in the background or by nohup. What its parent ignores, the plugin leaves alone.
pub fn ignore_nothing(command: &mut Command) {
    let reset = || {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: the default action is no code of ours, and signal is async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure only makes these system calls.
    unsafe { command.pre_exec(reset) };
}

/// Whether the process behind `pidfd` ends before `timeout` is over.
pub fn ended_within(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd {
            fd: pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            1 => return true,
            0 if deadline <= Instant::now() => return false,
            _ => {}
        }
    }
}

/// Reads by position, since the child shares (and moves) the file's offset.
fn contents(file: &File) -> Vec<u8> {
    let length = file
        .metadata()
        .expect("size of captured output")
        .len()
        .min(OUTPUT_LIMIT);
    let mut bytes = vec![0; usize::try_from(length).expect("bounded above")];
    file.read_exact_at(&mut bytes, 0)
        .expect("captured output is only ever appended to");
    bytes
}

/// Runs in the child between fork and exec.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A descriptor for a process; it becomes readable when the process has ended.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes a process id and flags, both plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).expect("descriptors are small numbers");
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
