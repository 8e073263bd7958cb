// SPDX-License-Identifier: BSD-3-Clause
//! What nbdkit and the keeper say to each other, byte by byte. The keeper allocates nothing, so
//! neither does this.

use std::fmt;

use rustix::io::Errno;

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
    /// It was to be started again, which failed.
    Unstarted(Errno),
}

/// What the keeper is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// End the server; it may take its time.
    End,
    /// End the server by force.
    Kill,
    /// Start the server again, which has ended. The answer is [`News`].
    Start,
}

/// What the keeper tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The server has ended, or was not started.
    Ended(End),
    /// It was started again. Its new socket comes with the message.
    Started,
}

/// Bytes of news.
pub const LENGTH: usize = 8;

impl Order {
    /// What the message means.
    pub fn decode(message: u8) -> Self {
        match message {
            _ if message == Self::Kill as u8 => Self::Kill,
            _ if message == Self::Start as u8 => Self::Start,
            _ => Self::End,
        }
    }
}

impl News {
    /// The message.
    pub fn encode(self) -> [u8; LENGTH] {
        let (kind, value) = match self {
            Self::Ended(End::Exited(status)) => (0, status),
            Self::Ended(End::Killed(signal)) => (1, signal),
            Self::Ended(End::Stuck) => (2, 0),
            Self::Ended(End::Unknown) => (3, 0),
            Self::Ended(End::Unstarted(errno)) => (4, errno.raw_os_error()),
            Self::Started => (5, 0),
        };
        ((u64::from(kind as u32) << 32) | u64::from(value as u32)).to_ne_bytes()
    }

    /// What the message means.
    pub fn decode(message: [u8; LENGTH]) -> Self {
        let message = u64::from_ne_bytes(message);
        match (message >> 32, message as u32 as i32) {
            (0, status) => Self::Ended(End::Exited(status)),
            (1, signal) => Self::Ended(End::Killed(signal)),
            (2, _) => Self::Ended(End::Stuck),
            (4, errno) => Self::Ended(End::Unstarted(Errno::from_raw_os_error(errno))),
            (5, _) => Self::Started,
            _ => Self::Ended(End::Unknown),
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
            Self::Unstarted(errno) => {
                let why = crate::transport::describe(*errno);
                write!(f, "could not be started again: {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_survive_the_line() {
        for news in [
            News::Ended(End::Exited(0)),
            News::Ended(End::Exited(255)),
            News::Ended(End::Killed(9)),
            News::Ended(End::Stuck),
            News::Ended(End::Unknown),
            News::Ended(End::Unstarted(Errno::NOENT)),
            News::Started,
        ] {
            assert_eq!(News::decode(news.encode()), news);
        }
        for order in [Order::End, Order::Kill, Order::Start] {
            assert_eq!(Order::decode(order as u8), order);
        }
    }
}
