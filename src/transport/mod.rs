// SPDX-License-Identifier: BSD-3-Clause
//! Ways to reach a server, and the one kind of byte stream that all of them give.
//!
//! A [`Stream`] is sent to without blocking and received from either way; waiting is a separate
//! step, so that whoever waits can also listen for a [`Doorbell`] and obey a [`Deadline`].

pub mod command;
mod deadline;
mod doorbell;
#[allow(unsafe_code)]
pub mod fd;
pub mod keepalive;
mod lookout;
mod pages;
#[allow(unsafe_code)]
pub mod resolve;
pub mod ssh;
mod stream;
pub mod tcp;
pub mod tls;
pub mod unix;
pub mod vsock;

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use crate::proto::codec::printable;

pub use self::deadline::{Deadline, Wanted};
pub use self::doorbell::Doorbell;
pub use self::lookout::Lookout;
pub use self::pages::Pages;
pub use self::stream::{Blocking, PAUSE, Ready, Stream};

/// Why a server could not be reached, or no longer can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No connection came about.
    #[error("{}", describe(*.0))]
    Connect(Errno),
    /// None of several addresses took the connection.
    #[error("{}", each(.0))]
    Addresses(Vec<(SocketAddr, Self)>),
    /// The host or service name means nothing.
    #[error("cannot look up the name: {0}")]
    Resolve(String),
    /// A socket that is good for one connection has had it.
    #[error("the socket was good for one connection, which has ended")]
    UsedUp,
    /// TLS failed, and would fail again.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server did not go on with the handshake of TLS: it may not know our pre-shared key, or not
    /// yet, or just be restarting.
    #[error("TLS: {0}")]
    TlsRefused(String),
    /// A program could not be started.
    #[error("cannot start {command}: {}{}", describe(*.errno), spawn_hint(command, *.errno))]
    Spawn {
        /// Which one.
        command: String,
        /// Why not.
        errno: Errno,
    },
    /// What a program needs could not be made.
    #[error("cannot {what} in {path}: {}", describe(*.errno))]
    Make {
        /// What should have been done.
        what: &'static str,
        /// The directory in which it should have been done.
        path: String,
        /// Why not.
        errno: Errno,
    },
    /// The server that we started has ended: how, its last words, and whether that is final.
    #[error("{0}")]
    ServerEnded(command::Obituary),
    /// The ssh that was the connection has ended: how, and its last words.
    #[error("{0}")]
    TunnelEnded(String),
    /// The server closed the connection where it should not have.
    #[error("the server closed the connection")]
    Closed,
    /// A system call failed.
    #[error("{call}: {}", describe(*.errno))]
    Io {
        /// Which one.
        call: &'static str,
        /// Its error number.
        errno: Errno,
    },
    /// Nobody waits for it any more: the client has left, or nbdkit was told to end.
    #[error("given up, as nobody waits for it any more")]
    Unwanted,
    /// The deadline passed.
    #[error("timed out after {}", seconds(*.0))]
    Timeout(Duration),
    /// The deadline passed, and it is known what took so long.
    #[error("timed out after {}: {what}", seconds(*.after))]
    TimeoutDuring {
        /// How long it was away at first.
        after: Duration,
        /// What was waited for.
        what: &'static str,
    },
}

impl Error {
    /// Turns the failure of a system call into an error that names it.
    fn io(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Io { call, errno }
    }

    /// Whether TLS itself came to a verdict, ours or the server's, on a connection that worked.
    pub fn is_of_tls(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::TlsRefused(_))
    }

    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::UsedUp
            | Self::Unwanted
            | Self::Tls(_)
            | Self::Spawn { .. }
            | Self::Make { .. } => false,
            Self::ServerEnded(obituary) => obituary.is_provisional(),
            _ => true,
        }
    }

    /// The error number for requests that fail with it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Timeout(_) | Self::TimeoutDuring { .. } => libc::EIO,
            Self::Addresses(failures) => failures
                .last()
                .map_or(libc::ESHUTDOWN, |(_, error)| error.errno()),
            _ => libc::ESHUTDOWN,
        }
    }
}

/// The system's text for an error number.
fn describe(errno: Errno) -> String {
    describe_io(&errno.into())
}

/// The text of an error, without the number that Rust appends.
pub(crate) fn describe_io(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Of more addresses than this a message does not tell: how many there are is the name server's choice.
const TOLD: usize = 8;

/// What became of each address.
fn each(failures: &[(SocketAddr, Error)]) -> String {
    let each = failures
        .iter()
        .take(TOLD)
        .map(|(address, error)| format!("{address}: {error}"));
    let mut text = each.collect::<Vec<_>>().join("; ");
    if failures.len() > TOLD {
        text.push_str(&format!("; and {} more", failures.len() - TOLD));
    }
    text
}

/// What may be behind a program that is not there.
fn spawn_hint(command: &str, errno: Errno) -> &'static str {
    if errno == Errno::NOENT && command.contains(char::is_whitespace) {
        " (no shell is involved: each argument goes into an arg= of its own)"
    } else {
        ""
    }
}

/// A time as messages tell it.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds == 1.0 {
        "1 second".to_owned()
    } else {
        format!("{seconds} seconds")
    }
}

/// [`seconds`] for what was measured: to a tenth, and never none.
pub(crate) fn about(duration: Duration) -> String {
    let tenths = duration.as_millis().div_ceil(100).max(1);
    seconds(Duration::from_millis(
        u64::try_from(tenths * 100).unwrap_or(u64::MAX),
    ))
}

/// Where a server is.
#[derive(Debug)]
pub enum Target {
    /// A Unix domain socket, by absolute path.
    Unix(PathBuf),
    /// A TCP host and service.
    Tcp {
        /// Name or address.
        host: String,
        /// Number or name.
        port: String,
        /// The times after which a silent host is gone; `None` leaves them to the kernel.
        keepalive: Option<keepalive::Keepalive>,
    },
    /// A virtio socket.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port number.
        port: u32,
    },
    /// Through ssh.
    Ssh(ssh::Ssh),
    /// A socket that was connected for us.
    Inherited(fd::Inherited),
    /// A server that we started.
    Child(command::Child),
}

impl Target {
    /// Connects, before the deadline.
    pub fn connect(&self, deadline: Deadline) -> Result<Stream, Error> {
        let stream = match self {
            Self::Tcp {
                host,
                port,
                keepalive,
            } => {
                let (stream, address) = tcp::open(host, port, *keepalive, deadline)?;
                log::debug!("{self}: connected to {address}");
                return Ok(stream);
            }
            Self::Unix(path) => unix::open(path, deadline)?,
            Self::Vsock { cid, port } => vsock::open(*cid, *port, deadline)?,
            Self::Ssh(ssh) => {
                // What it starts is told there, and a connection it is only if the server speaks.
                return ssh.open(deadline);
            }
            Self::Inherited(socket) => socket.open()?,
            Self::Child(child) => child.connect(deadline)?,
        };
        log::debug!("{self}: connected");
        Ok(stream)
    }

    /// nbdkit has forked for the last time: threads can run from now on.
    pub fn after_fork(&self) -> Result<(), Error> {
        match self {
            Self::Child(child) => child.after_fork(),
            Self::Ssh(ssh) => ssh.after_fork(),
            Self::Unix(_) | Self::Tcp { .. } | Self::Vsock { .. } | Self::Inherited(_) => Ok(()),
        }
    }

    /// nbdkit ends: so does what was started. Connections should have been left by now.
    pub fn end(&self) {
        match self {
            Self::Child(child) => child.end(),
            Self::Ssh(ssh) => ssh.end(),
            Self::Unix(_) | Self::Tcp { .. } | Self::Vsock { .. } | Self::Inherited(_) => (),
        }
    }

    /// Waits until a new connection has really come about, where that is to be seen by the first
    /// byte only. It belongs to the handshake: a server may need as long to open its disk.
    pub fn await_greeting(&self, stream: &Stream, deadline: Deadline) -> Result<(), Error> {
        match self {
            Self::Child(child) => child.await_greeting(stream, deadline),
            Self::Ssh(ssh) => ssh.await_greeting(stream, deadline),
            _ => Ok(()),
        }
    }

    /// What [`Target::await_greeting`] waits for, in words.
    pub fn awaited(&self) -> String {
        match self {
            Self::Child(child) => child.awaited(),
            Self::Ssh(_) => "ssh, and the server's first word".to_owned(),
            _ => "the server's first word".to_owned(),
        }
    }

    /// Whether [`Target::connect`] brings a server back that has ended.
    pub fn starts_again(&self) -> bool {
        match self {
            Self::Child(child) => child.starts_again(),
            _ => false,
        }
    }

    /// If the server is one that we started, and it has ended: how, and its last words.
    pub fn obituary(&self) -> Option<String> {
        match self {
            // Asked when a connection is lost, a moment before the end can be seen.
            Self::Child(child) => match child.explain(Error::Closed) {
                Error::ServerEnded(obituary) => Some(obituary.to_string()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Bytes of a name in messages: a host's is not longer, nor is a socket's path.
const NAME: usize = 255;

/// The name of the place, as messages give it: whatever the user typed, it is one line.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => f.write_str(&printable(path.as_os_str().as_bytes(), NAME)),
            Self::Tcp { host, port, .. } => {
                let port = printable(port.as_bytes(), NAME);
                match (host.contains(':'), printable(host.as_bytes(), NAME)) {
                    (true, host) => write!(f, "[{host}]:{port}"),
                    (false, host) => write!(f, "{host}:{port}"),
                }
            }
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Ssh(ssh) => write!(f, "{ssh}"),
            Self::Inherited(socket) => write!(f, "socket-fd={}", socket.number()),
            Self::Child(child) => write!(f, "command={}", child.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_sentences() {
        assert_eq!(
            Error::Connect(Errno::NOENT).to_string(),
            "No such file or directory"
        );
        assert_eq!(
            Error::Timeout(Duration::from_millis(1500)).to_string(),
            "timed out after 1.5 seconds"
        );
    }

    #[test]
    fn a_target_has_a_printable_name() {
        let tcp = |host: &str, port: &str| Target::Tcp {
            host: host.to_owned(),
            port: port.to_owned(),
            keepalive: None,
        };
        for (target, name) in [
            (Target::Unix("/a\n\u{1b}b".into()), "/a\\n\\u{1b}b"),
            (tcp("h", "nbd"), "h:nbd"),
            (tcp("::1", "1"), "[::1]:1"),
            (tcp("a\r", "b\u{7f}"), "a\\r:b\\u{7f}"),
            (Target::Vsock { cid: 2, port: 3 }, "vsock:2:3"),
        ] {
            assert_eq!(target.to_string(), name);
        }
    }

    #[test]
    fn the_sooner_of_two_deadlines_counts() {
        let soon = Deadline::after(Duration::from_secs(1));
        let late = Deadline::after(Duration::from_secs(100));
        for deadline in [
            soon.sooner(late),
            late.sooner(soon),
            Deadline::NEVER.sooner(soon),
        ] {
            assert!(deadline.remaining() <= Some(Duration::from_secs(1)));
        }
        assert!(Deadline::NEVER.sooner(Deadline::NEVER).is_never());
        assert!(!soon.sooner(Deadline::NEVER).is_never());
    }

    #[test]
    fn a_message_names_a_few_addresses_only() {
        let failure = |port| {
            let address = SocketAddr::from(([192, 0, 2, 1], port));
            (address, Error::Connect(Errno::CONNREFUSED))
        };
        let error = |most| Error::Addresses((1..=most).map(failure).collect()).to_string();
        assert!(error(8).ends_with("192.0.2.1:8: Connection refused"));
        assert!(error(9).ends_with("192.0.2.1:8: Connection refused; and 1 more"));
    }

    #[test]
    fn a_program_with_spaces_is_no_command_line() {
        let error = |command: &str, errno| Error::Spawn {
            command: command.to_owned(),
            errno,
        };
        let hint = "(no shell is involved: each argument goes into an arg= of its own)";
        let with = error("qemu-nbd -f raw", Errno::NOENT).to_string();
        assert!(with.ends_with(hint), "{with}");
        for (command, errno) in [("qemu-nbd", Errno::NOENT), ("a b", Errno::ACCESS)] {
            let without = error(command, errno).to_string();
            assert!(!without.contains(hint), "{without}");
        }
    }

    #[test]
    fn a_doorbell_wakes_a_waiter_once() {
        let (a, _b) = unix::pair();
        let bell = Doorbell::new().expect("eventfd");
        bell.ring();
        bell.ring();
        let soon = Deadline::after(Duration::from_millis(1));
        let first = a.wait(true, false, Some(&bell), soon).expect("poll");
        assert!(!first.expired && !first.readable);
        let second = a.wait(true, false, Some(&bell), soon).expect("poll");
        assert!(second.expired);
    }
}
