//! Ways to reach a server, and the one kind of byte stream that all of them give.
//!
//! A [`Stream`] is sent to without blocking and received from either way; waiting is a separate
//! step, so that whoever waits can also listen for a [`Doorbell`] and obey a [`Deadline`].

mod deadline;
pub mod unix;

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, recvmsg,
    sendmsg, shutdown,
};

pub use self::deadline::Deadline;

/// Why a server could not be reached, or no longer can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No connection came about.
    #[error("{}", describe(*.0))]
    Connect(Errno),
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
    /// The deadline passed.
    #[error("timed out after {}", seconds(*.0))]
    Timeout(Duration),
}

impl Error {
    /// The error number for requests that fail with it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Closed | Self::Io { .. } | Self::Connect(_) => libc::ESHUTDOWN,
            Self::Timeout(_) => libc::EIO,
        }
    }
}

/// The system's text for an error number, without Rust's suffix.
fn describe(errno: Errno) -> String {
    let text = errno.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds == 1.0 {
        "1 second".to_owned()
    } else {
        format!("{seconds} seconds")
    }
}

/// Whether a receive may wait for the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// Wait.
    Yes,
    /// Come back at once.
    No,
}

/// A connected socket.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Sends what fits at once; `None` if nothing does.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> Result<Option<usize>, Error> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match sendmsg(&self.fd, pieces, &mut SendAncillaryBuffer::default(), flags) {
                Ok(n) => return Ok(Some(n)),
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => {
                    return Err(Error::Io {
                        call: "send",
                        errno,
                    });
                }
            }
        }
    }

    /// Receives into `buffer`, at least one byte. `None` if nothing is there and `blocking` forbids
    /// to wait. The end of the stream is [`Error::Closed`].
    pub fn receive(&self, buffer: &mut [u8], blocking: Blocking) -> Result<Option<usize>, Error> {
        finish_receive(
            |flags| recv(&self.fd, &mut *buffer, flags).map(|(n, _)| n),
            blocking,
        )
    }

    /// Like [`Stream::receive`], into several buffers in turn.
    pub fn receive_vectored(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        blocking: Blocking,
    ) -> Result<Option<usize>, Error> {
        finish_receive(
            |flags| {
                recvmsg(
                    &self.fd,
                    buffers,
                    &mut RecvAncillaryBuffer::default(),
                    flags,
                )
                .map(|message| message.bytes)
            },
            blocking,
        )
    }

    /// Waits until the stream can be received from (`readable`) or sent to (`writable`), or the
    /// doorbell rings. False at the deadline.
    pub fn wait(
        &self,
        readable: bool,
        writable: bool,
        doorbell: Option<&Doorbell>,
        deadline: Deadline,
    ) -> Result<Ready, Error> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, readable);
        events.set(PollFlags::OUT, writable);
        let mut fds = [
            PollFd::new(&self.fd, events),
            // Without a doorbell the second entry is not passed on.
            PollFd::new(doorbell.map_or(&self.fd, |bell| &bell.fd), PollFlags::IN),
        ];
        let count = if doorbell.is_some() { 2 } else { 1 };
        let timeout = deadline.timespec();
        match poll(&mut fds[..count], timeout.as_ref()) {
            Ok(0) => {
                return Ok(Ready {
                    expired: true,
                    ..Ready::default()
                });
            }
            Ok(_) | Err(Errno::INTR) => (),
            Err(errno) => {
                return Err(Error::Io {
                    call: "poll",
                    errno,
                });
            }
        }
        let mut ready = Ready::default();
        let stream = fds[0].revents();
        // An error or hang-up is found out by the next send or receive.
        let broken = stream.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        ready.readable = readable && (broken || stream.contains(PollFlags::IN));
        ready.writable = writable && (broken || stream.contains(PollFlags::OUT));
        if let Some(bell) = doorbell {
            if fds[1].revents().contains(PollFlags::IN) {
                bell.quieten();
            }
        }
        Ok(ready)
    }

    /// Sends all of `bytes` before the deadline.
    pub fn send_all(&self, mut bytes: &[u8], deadline: Deadline) -> Result<(), Error> {
        while !bytes.is_empty() {
            match self.send(&[IoSlice::new(bytes)])? {
                Some(n) => bytes = &bytes[n..],
                None if self.wait(false, true, None, deadline)?.expired => {
                    return Err(deadline.passed());
                }
                None => (),
            }
        }
        Ok(())
    }

    /// Receives exactly as many bytes as `buffer` holds before the deadline.
    pub fn receive_exact(&self, buffer: &mut [u8], deadline: Deadline) -> Result<(), Error> {
        let mut got = 0;
        while got < buffer.len() {
            if self.wait(true, false, None, deadline)?.expired {
                return Err(deadline.passed());
            }
            got += self.receive(&mut buffer[got..], Blocking::No)?.unwrap_or(0);
        }
        Ok(())
    }

    /// Tells the server that nothing more will be sent.
    pub fn finish_sending(&self) {
        // Fails only when the connection is gone, which the next receive reports.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    /// Ends both directions: a blocked send or receive of any thread returns. Bytes that have
    /// already arrived can still be received.
    pub fn hang_up(&self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}

fn finish_receive(
    mut receive: impl FnMut(RecvFlags) -> Result<usize, Errno>,
    blocking: Blocking,
) -> Result<Option<usize>, Error> {
    let flags = match blocking {
        Blocking::Yes => RecvFlags::empty(),
        Blocking::No => RecvFlags::DONTWAIT,
    };
    loop {
        match receive(flags) {
            Ok(0) => return Err(Error::Closed),
            Ok(n) => return Ok(Some(n)),
            Err(Errno::INTR) => (),
            Err(Errno::AGAIN) if blocking == Blocking::No => return Ok(None),
            Err(errno) => {
                return Err(Error::Io {
                    call: "receive",
                    errno,
                });
            }
        }
    }
}

/// What a [`Stream::wait`] found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// A receive will not block.
    pub readable: bool,
    /// A send will not block.
    pub writable: bool,
    /// The deadline passed and nothing else happened.
    pub expired: bool,
}

/// Wakes a thread that waits for a stream, from another thread.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// A bell that has not rung.
    pub fn new() -> Result<Self, Error> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).map_err(|errno| Error::Io {
            call: "eventfd",
            errno,
        })?;
        Ok(Self { fd })
    }

    /// Wakes whoever waits, now or the next time.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then the bell is already ringing.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    fn quieten(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
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
