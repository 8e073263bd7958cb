//! What goes wrong between a request and its answer, in words for the user and as a number.
//!
//! Every error is cheap to clone, because all who wait on a connection get the same cause when it
//! is lost.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    #[error("{server}: {request}: {error}")]
    Failed {
        /// Which server.
        server: Server,
        /// Which request.
        request: Request,
        /// How.
        error: WireError,
    },
    /// The server announced that it is going away, so nothing more is asked of it.
    #[error("{0}: the server is shutting down")]
    ShuttingDown(Server),
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
    /// This machine's error number, for nbdkit.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Open { .. } => libc::EIO,
            Self::Lost(lost) => lost.cause.errno(),
            Self::Failed { error, .. } => error.errno(),
            Self::ShuttingDown(_) => libc::ESHUTDOWN,
            Self::Unsupported { errno, .. } => *errno,
        }
    }
}

/// Where opening stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
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
    /// The handshake failed.
    #[error("handshake: {0}")]
    Handshake(handshake::Error),
    /// Something else stood in the way.
    #[error("{0}")]
    System(transport::Error),
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

    /// True for the first who asks: the loss is told to the user once, not by every waiter.
    pub fn tell_once(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: connection lost: {}", self.server, self.cause)
    }
}

impl std::error::Error for Lost {}

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
    /// One of our threads panicked while it served the connection.
    #[error("internal error while serving it")]
    Panic,
}

impl Cause {
    fn errno(&self) -> i32 {
        match self {
            Self::Transport(error) | Self::Deadline(_, error) => error.errno(),
            Self::Violation(_) | Self::Panic => libc::EIO,
        }
    }
}
