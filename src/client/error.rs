// SPDX-License-Identifier: BSD-3-Clause
//! What goes wrong between a request and its answer, in words for the user and as a number.
//!
//! Every error is cheap to clone, because all who wait on a connection get the same cause when it
//! is lost.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::proto::consts::{Command, CommandFlags, OptionReply};
use crate::proto::errno::NbdErrno;
use crate::proto::handshake;
use crate::proto::request::Request;
use crate::proto::{Violation, WireError};
use crate::transport;

/// A server's address, as messages name it.
pub type Server = Arc<str>;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The connection never came to the point of transmission.
    #[error("{server}: {cause}")]
    Open {
        /// Which server.
        server: Server,
        /// Where it stopped and why.
        cause: Arc<OpenError>,
    },
    /// The connection is gone, and the request with it.
    #[error(transparent)]
    Lost(Arc<Lost>),
    /// The server failed this request; the connection is healthy.
    #[error("{server}: {request}: {error}{}", hint(request, error))]
    Failed {
        /// Which server.
        server: Server,
        /// Which request.
        request: Request,
        /// How.
        error: WireError,
    },
    /// All places for requests in flight were taken until the request's time was over.
    #[error("{server}: {request}: not sent, as no earlier request was answered: {timeout}")]
    Crowded {
        /// Which server.
        server: Server,
        /// Which request.
        request: Request,
        /// The time.
        timeout: transport::Error,
    },
    /// All requests were held until its time was over.
    #[error("{server}: not sent, as all requests wait until control=... says resume: {timeout}")]
    Held {
        /// Which server.
        server: Server,
        /// The time.
        timeout: transport::Error,
    },
    /// It was not carried out to its end, since nobody waits for that.
    #[error("{server}: given up, as the client has left or nbdkit was told to end: {timeout}")]
    GivenUp {
        /// Which server.
        server: Server,
        /// The time that was left for it.
        timeout: transport::Error,
    },
    /// Nobody waits for it any more, and the server is not there.
    #[error("{0}: given up, as nobody waits for it any more")]
    Unwanted(Server),
    /// The server was lost and did not come back in the time that requests wait for it.
    #[error(transparent)]
    Outage(Arc<Outage>),
    /// What the server was lost with cannot be had back, or not all of it.
    #[error("{server}: {why}")]
    Doomed {
        /// Which server.
        server: Server,
        /// What stands in the way.
        why: Arc<str>,
    },
    /// The server was lost with changes that no flush had made permanent, and none were kept.
    #[error(
        "{0}: what was written before the connection was lost may be missing, and nothing makes it \
         permanent (replay=0)"
    )]
    Unflushed(Server),
    /// The request must not be sent to this server.
    #[error("{server}: {what}")]
    Unsupported {
        /// Which server.
        server: Server,
        /// Why not.
        what: String,
        /// The error number for it.
        errno: i32,
    },
}

impl Error {
    /// Opening came to nothing because nobody waits for it any more.
    pub fn unwanted(server: Server) -> Self {
        Self::Open {
            server,
            cause: Arc::new(OpenError::Connect(transport::Error::Unwanted)),
        }
    }

    /// A flush is wanted, and the server has none.
    #[cold]
    pub(super) fn no_flush(server: &Server) -> Self {
        Self::Unsupported {
            server: server.clone(),
            what: "the server has no NBD_CMD_FLUSH, so nothing makes permanent what was written \
                   without NBD_CMD_FLAG_FUA"
                .to_owned(),
            errno: libc::EIO,
        }
    }

    /// The request is longer than the headers of a connection can say, and was not sent: whoever asks
    /// for so much can ask for less. Another connection may have had extended headers.
    #[cold]
    pub(super) fn too_long(server: &Server, request: Request) -> Self {
        Self::Failed {
            server: server.clone(),
            request,
            error: WireError::TooLong,
        }
    }

    /// Whether opening again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Open { cause, .. } => cause.is_transient(),
            // While the journal was written to a server that is killed again and again.
            Self::Lost(lost) => matches!(
                lost.cause,
                Cause::Transport(_)
                    | Cause::Deadline(..)
                    | Cause::Stalled(_)
                    | Cause::Announced
                    | Cause::Replaced
            ),
            _ => false,
        }
    }

    /// Whether it was given up since something better came up.
    pub fn is_superseded(&self) -> bool {
        matches!(self, Self::Open { cause, .. } if matches!(&**cause, OpenError::Superseded))
    }

    /// Whether the server said that it is going away.
    pub(super) fn is_announced(&self) -> bool {
        matches!(self, Self::Lost(lost) if matches!(lost.cause, Cause::Announced))
    }

    /// Whether the server broke the protocol while the connection was opened.
    pub(super) fn is_violation(&self) -> bool {
        matches!(self, Self::Open { cause, .. }
            if matches!(&**cause, OpenError::Handshake(handshake::Error::Violation(_))))
    }

    /// Whether it came to nothing only because nobody waited any more. nbdkit has said so then.
    pub fn is_unwanted(&self) -> bool {
        match self {
            Self::Unwanted(_) => true,
            Self::Open { cause, .. } => matches!(
                &**cause,
                OpenError::Connect(transport::Error::Unwanted)
                    | OpenError::Unwelcome(transport::Error::Unwanted)
                    | OpenError::Broken {
                        error: transport::Error::Unwanted,
                        ..
                    }
            ),
            _ => false,
        }
    }

    /// Its text as a part of one that names the server already.
    pub(super) fn without(&self, server: &Server) -> String {
        let text = self.to_string();
        let rest = text.strip_prefix(&**server);
        match rest.and_then(|rest| rest.strip_prefix(": ")) {
            Some(rest) => rest.to_owned(),
            None => text,
        }
    }

    /// This machine's error number, for nbdkit.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Open { .. } => libc::EIO,
            Self::Lost(lost) => lost.cause.errno(),
            Self::Failed { request, error, .. } => match error.errno() {
                // An answer to a fast zero only; nbdkit would take it for a hint that zeroes should
                // be written, and some versions do that wrongly.
                libc::ENOTSUP if !request.flags.contains(CommandFlags::FAST_ZERO) => libc::EINVAL,
                errno => errno,
            },
            Self::Crowded { .. } | Self::Held { .. } => libc::EIO,
            Self::GivenUp { .. } | Self::Unwanted(_) => libc::ESHUTDOWN,
            // Never ESHUTDOWN, which tells clients to leave: the tries go on.
            Self::Outage(_) | Self::Doomed { .. } | Self::Unflushed(_) => libc::EIO,
            Self::Unsupported { errno, .. } => *errno,
        }
    }
}

/// What may help against an error, for messages. A server's limit that it has not told shows as an error
/// that it also has other reasons for.
fn hint(request: &Request, error: &WireError) -> &'static str {
    /// Hardly a server takes less.
    const LONG: u64 = 64 * 1024;
    let declined = [NbdErrno::EINVAL, NbdErrno::EOVERFLOW];
    match (request.command, error) {
        (Command::READ | Command::WRITE, WireError::Server { errno, .. })
            if request.length > LONG && declined.contains(errno) =>
        {
            " (it may be too long: quirks=max-request=SIZE)"
        }
        _ => "",
    }
}

/// Where opening stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The files that TLS needs are of no use.
    #[error("{0}")]
    Credentials(transport::Error),
    /// The server could not be reached.
    #[error("connect: {0}")]
    Connect(transport::Error),
    /// The connection broke during the handshake.
    #[error("handshake: {error} (waiting for {awaited})")]
    Broken {
        /// How.
        error: transport::Error,
        /// What the server owed us then.
        awaited: String,
    },
    /// The connection broke at the point where servers refuse a client's certificate.
    #[error(
        "handshake: {0} (right after TLS was established: the server may have refused our certificate, \
         tls-certificates=)"
    )]
    Unwelcome(transport::Error),
    /// TLS came to a verdict, ours or the server's.
    #[error("handshake: {0}")]
    Tls(transport::Error),
    /// The handshake failed.
    #[error("handshake: {0}")]
    Handshake(handshake::Error),
    /// Something better came up.
    #[error("connect: given up for another connection")]
    Superseded,
    /// A thread of ours panicked on the way.
    #[error("internal error while opening it")]
    Panic,
    /// Something else stood in the way.
    #[error("{0}")]
    System(transport::Error),
}

impl OpenError {
    /// Whether trying again later may help: the server may still be starting, or be back soon. A
    /// server that answered and said no will say it again.
    fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_transient(),
            Self::Broken { error, .. } | Self::Unwelcome(error) | Self::Tls(error) => {
                error.is_transient()
            }
            Self::System(_) => true,
            Self::Handshake(handshake::Error::Refused(refusal)) => {
                refusal.reply == OptionReply::ERR_SHUTDOWN
            }
            Self::Credentials(_) | Self::Handshake(_) | Self::Superseded | Self::Panic => false,
        }
    }
}

/// A connection that is gone, and why.
#[derive(Debug)]
pub struct Lost {
    server: Server,
    cause: Cause,
    told: AtomicBool,
}

impl Lost {
    pub(super) fn new(server: Server, cause: Cause) -> Self {
        Self {
            server,
            cause,
            told: AtomicBool::new(false),
        }
    }

    /// Whose connection it was.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// What ended it.
    pub(super) fn cause(&self) -> &Cause {
        &self.cause
    }

    /// True for the first who asks: the loss is told to the user once, not by every waiter.
    pub fn tell_once(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Announced | Cause::Replaced => write!(f, "{}: {}", self.server, self.cause),
            _ => write!(f, "{}: connection lost: {}", self.server, self.cause),
        }
    }
}

impl std::error::Error for Lost {}

/// A server that was lost, and what came of coming back to it.
#[derive(Debug)]
pub struct Outage {
    lost: Arc<Lost>,
    /// How long requests wait; `None` for ever.
    limit: Option<Duration>,
    told: AtomicBool,
    /// How many tries have failed.
    tries: AtomicU32,
    /// Why the last try failed.
    last: Mutex<Option<String>>,
    /// In the last try all servers were there, and none was what it had been.
    differs: AtomicBool,
}

impl Outage {
    pub(super) fn new(lost: Arc<Lost>, limit: Option<Duration>) -> Self {
        Self {
            lost,
            limit,
            told: AtomicBool::new(false),
            tries: AtomicU32::new(0),
            last: Mutex::default(),
            differs: AtomicBool::new(false),
        }
    }

    /// True for the first who asks: an outage is told to the user once, not by every waiter.
    pub fn tell_once(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// The loss that it began with.
    pub(super) fn lost(&self) -> &Arc<Lost> {
        &self.lost
    }

    /// A try has failed.
    pub(super) fn note(&self, failure: &Error) {
        let differs = matches!(failure, Error::Unsupported { .. });
        self.differs.store(differs, Ordering::Relaxed);
        let failure = failure.without(&self.lost.server);
        self.tries.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// How many tries have failed.
    pub(super) fn tries(&self) -> u32 {
        self.tries.load(Ordering::Relaxed)
    }

    /// Whether whoever comes now would find other servers than those that are waited for.
    pub(super) fn differs(&self) -> bool {
        self.differs.load(Ordering::Relaxed)
    }

    /// Why the last try failed, if one did.
    pub(super) fn last(&self) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; not back", self.lost)?;
        if let Some(limit) = self.limit {
            write!(f, " within {}", transport::seconds(limit))?;
        }
        match self.last() {
            Some(last) => write!(f, " ({last})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Outage {}

/// What ended a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Cause {
    /// The transport failed.
    #[error(transparent)]
    Transport(#[from] transport::Error),
    /// The server broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    /// A request was not answered in time. A late answer could hit a buffer that is somebody
    /// else's by then, so the connection cannot be kept.
    #[error("{0}: no complete answer: {1}")]
    Deadline(Request, transport::Error),
    /// The server answered that it is going away, so nothing more is asked of it.
    #[error("the server is shutting down")]
    Announced,
    /// It is left for a new one, as the user wants it.
    #[error("left for a new connection, as control=... says")]
    Replaced,
    /// Nobody wants anything more of the connection, and what was in flight was not answered in the
    /// time that is left then.
    #[error("no answer after the client has left, or nbdkit was told to end: {0}")]
    GivenUp(transport::Error),
    /// Nothing of the journal that is written over it is answered, and others are held meanwhile.
    #[error("no answer to what is written again, which others wait for: {0}")]
    Stalled(transport::Error),
    /// One of our threads panicked while it served the connection.
    #[error("internal error while serving it")]
    Panic,
}

impl Cause {
    /// Whether the server may go on carrying out what it has received: it was ours to end the connection,
    /// or nothing could be sent any more, which says nothing of the other direction.
    pub(super) fn leaves_server_at_work(&self) -> bool {
        matches!(
            self,
            Self::Deadline(..)
                | Self::Stalled(_)
                | Self::Violation(_)
                | Self::GivenUp(_)
                | Self::Transport(_)
        )
    }

    /// Whether the server has sent headers of another form after it had agreed to extended ones.
    pub(super) fn is_of_extended_headers(&self) -> bool {
        matches!(self, Self::Violation(Violation::Framing { .. }))
    }

    /// Whether it is left in good order: what is in flight is answered first.
    pub(super) fn is_farewell(&self) -> bool {
        matches!(self, Self::Announced | Self::Replaced)
    }

    fn errno(&self) -> i32 {
        match self {
            Self::Transport(error) | Self::Deadline(_, error) | Self::Stalled(error) => {
                error.errno()
            }
            Self::Announced | Self::Replaced | Self::GivenUp(_) => libc::ESHUTDOWN,
            Self::Violation(_) | Self::Panic => libc::EIO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enotsup_is_an_answer_to_fast_zeroes_only() {
        let failed = |flags| Error::Failed {
            server: "server".into(),
            request: Request::new(Command::WRITE_ZEROES, 0, 512_u32).with(flags),
            error: WireError::Server {
                errno: NbdErrno::ENOTSUP,
                text: String::new(),
            },
        };
        assert_eq!(failed(CommandFlags::FAST_ZERO).errno(), libc::ENOTSUP);
        assert_eq!(failed(CommandFlags::FUA).errno(), libc::EINVAL);
    }
}
