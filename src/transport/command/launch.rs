// SPDX-License-Identifier: BSD-3-Clause
//! What the standard library's `Command` cannot do when a program is started: give it a chosen
//! descriptor, and its own process id in its environment; or let it ignore signals.
//!
//! Between fork and exec only async-signal-safe functions may be called: everything that needs
//! memory is prepared before.

use std::ffi::{CString, OsStr, OsString, c_char};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr::null;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::getpid;

/// First descriptor of socket activation (sd_listen_fds(3)).
pub const FIRST_SOCKET: RawFd = 3;

/// Descriptors for the program are prepared from this number on, so that none of them lies where
/// another one has to go: the three that every program has, and the listening socket.
const OUT_OF_THE_WAY: RawFd = FIRST_SOCKET + 1;

/// Variables of socket activation that may have been meant for ourselves.
const ACTIVATION: [&str; 4] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// The variable that holds the process id, and room for its digits and a final zero.
const LISTEN_PID: &[u8; 11] = b"LISTEN_PID=";
const DIGITS: usize = 10;

/// A program to be, complete in every byte.
#[derive(Debug)]
pub struct Program {
    _argv: Vec<CString>,
    _environment: Vec<CString>,
    argv_pointers: Vec<*const c_char>,
    environment_pointers: Vec<*const c_char>,
    pid: [u8; LISTEN_PID.len() + DIGITS + 1],
    /// The null device.
    pub null: OwnedFd,
    /// Where it complains.
    pub stderr: OwnedFd,
    listener: Option<OwnedFd>,
}

impl Program {
    /// `argv` with `listener` for socket activation, `stderr`, and nothing to read or print to.
    pub fn new(argv: &[OsString], listener: &OwnedFd, stderr: &OwnedFd) -> Result<Self, Errno> {
        if argv.is_empty() {
            return Err(Errno::NOENT);
        }
        let argv: Vec<_> = argv
            .iter()
            .map(|arg| c_string(arg.as_bytes()))
            .collect::<Result<_, _>>()?;
        let environment = environment()?;
        let end = || std::iter::once(null());
        let pointer = |text: &CString| text.as_ptr();
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let mut pid = [0; LISTEN_PID.len() + DIGITS + 1];
        pid[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
        Ok(Self {
            argv_pointers: argv.iter().map(pointer).chain(end()).collect(),
            // The first place is for the variable that is not known yet.
            environment_pointers: end()
                .chain(environment.iter().map(pointer))
                .chain(end())
                .collect(),
            _argv: argv,
            _environment: environment,
            pid,
            null: out_of_the_way(&null)?,
            stderr: out_of_the_way(stderr)?,
            listener: Some(out_of_the_way(listener)?),
        })
    }

    /// In a new process: becomes the program. Returns only if that fails.
    pub fn become_program(&mut self) -> Errno {
        match self.arrange() {
            Ok(()) => self.exec(),
            Err(errno) => errno,
        }
    }

    /// Replaces the listening socket for the next time. It must be [`out_of_the_way`].
    pub fn listen_on(&mut self, listener: Option<OwnedFd>) {
        self.listener = listener;
    }

    fn arrange(&mut self) -> Result<(), Errno> {
        place(&self.null, libc::STDIN_FILENO)?;
        place(&self.null, libc::STDOUT_FILENO)?;
        place(&self.stderr, libc::STDERR_FILENO)?;
        place(self.listener.as_ref().ok_or(Errno::BADF)?, FIRST_SOCKET)?;
        write_number(
            &mut self.pid[LISTEN_PID.len()..],
            getpid().as_raw_nonzero().get().unsigned_abs(),
        );
        self.environment_pointers[0] = self.pid.as_ptr().cast();
        Ok(())
    }

    fn exec(&self) -> Errno {
        // SAFETY: all three are C strings or lists of them that end with a null pointer, and
        // `self` keeps them alive. The first argument is there, `new` made sure.
        unsafe {
            libc::execvpe(
                self.argv_pointers[0],
                self.argv_pointers.as_ptr(),
                self.environment_pointers.as_ptr(),
            )
        };
        last_error()
    }
}

/// Our environment, but for what the program is told about its socket. The name is the one that
/// systemd and libnbd give to sockets without a name.
fn environment() -> Result<Vec<CString>, Errno> {
    let ours = std::env::vars_os()
        .filter(|(name, _)| !ACTIVATION.iter().any(|theirs| name == OsStr::new(theirs)))
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    ["LISTEN_FDS=1", "LISTEN_FDNAMES=unknown"]
        .into_iter()
        .map(|text| text.as_bytes().to_vec())
        .chain(ours)
        .map(|text| c_string(&text))
        .collect()
}

/// A C string, unless there is a zero byte in it.
pub fn c_string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

/// A copy that [`place`] will not overwrite.
pub fn out_of_the_way(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    fcntl_dupfd_cloexec(fd, OUT_OF_THE_WAY)
}

/// In a new process: puts a descriptor where it outlives exec.
pub fn place(fd: &OwnedFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: what lies under these numbers belongs to this process, which uses no more of its
    // descriptors than it was given.
    match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

/// Writes decimal digits without asking for memory. `text` is zeroed and long enough.
fn write_number(text: &mut [u8], number: u32) {
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut left = number;
    for digit in text[..digits].iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
}

/// Why the C library's last function failed.
pub fn last_error() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Makes a directory that only we can enter.
pub fn private_directory(parent: &Path) -> Result<PathBuf, Errno> {
    let mut path = parent.join("nbdkit-nbd-XXXXXX").into_os_string().into_vec();
    path.push(0);
    // SAFETY: the template is writable and ends with a zero byte.
    if unsafe { libc::mkdtemp(path.as_mut_ptr().cast()) }.is_null() {
        return Err(last_error());
    }
    path.pop();
    Ok(OsString::from_vec(path).into())
}

/// Lets a program ignore the signals that a terminal or a service manager sends to nbdkit and all
/// that it started: what nbdkit still has to say to a server goes through that program.
pub fn ignore_interruptions(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let ignore = || {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: to ignore a signal is no code of ours.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: signal is async-signal-safe, and nothing else is called.
    unsafe { command.pre_exec(ignore) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for (number, digits) in [(0, "0"), (7, "7"), (10, "10"), (u32::MAX, "4294967295")] {
            let mut text = [0; DIGITS + 1];
            write_number(&mut text, number);
            let end = text.iter().position(|byte| *byte == 0).expect("a zero");
            assert_eq!(text[..end], *digits.as_bytes());
        }
    }

    #[test]
    fn a_directory_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().expect("temporary directory");
        let path = private_directory(parent.path()).expect("a directory");
        let mode = path.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        assert_eq!(private_directory(&path.join("no")), Err(Errno::NOENT));
    }
}
