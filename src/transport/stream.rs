// SPDX-License-Identifier: BSD-3-Clause
//! A connected socket, plain or under TLS: sending never waits, receiving may, waiting is apart.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_error};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, recvmsg,
    sendmsg, shutdown,
};

use super::ssh::Tunnel;
use super::tls::{Facts, Prepared, Session};
use super::{Deadline, Doorbell, Error, Lookout};
use crate::proto::handshake::TlsEstablished;
use crate::stats;

/// Longest that a receive waits for the first byte before it comes back without: whoever waits for
/// long has other duties besides.
pub const PAUSE: Duration = Duration::from_secs(1);

/// How soon a send is tried again that waits for something which another thread receives.
const STUCK: Duration = Duration::from_millis(10);

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
    fd: Arc<OwnedFd>,
    tls: Option<Session>,
    /// The program at the other end, which ends with the stream. Last, so that it has seen the
    /// end of the stream when it is waited for.
    tunnel: Option<Arc<Tunnel>>,
}

impl Stream {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Arc::new(fd),
            tls: None,
            tunnel: None,
        }
    }

    /// A stream to a program of ours.
    pub(super) fn through(fd: OwnedFd, tunnel: Arc<Tunnel>) -> Self {
        Self {
            tunnel: Some(tunnel),
            ..Self::new(fd)
        }
    }

    /// That program.
    pub(super) fn tunnel(&self) -> Option<&Tunnel> {
        self.tunnel.as_deref()
    }

    /// What is behind an error, if there is a program that can tell.
    fn explain(&self, error: Error) -> Error {
        match &self.tunnel {
            Some(tunnel) => tunnel.explain(error),
            None => error,
        }
    }

    /// What TLS came to, if it is on.
    pub fn tls(&self) -> Option<stats::Tls> {
        self.tls.as_ref().map(Session::terms)
    }

    /// Whether TLS is on.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// How TLS protects it, if it does.
    pub fn tls_facts(&self) -> Option<Facts> {
        self.tls.as_ref().map(Session::facts)
    }

    /// Puts TLS over a plain stream. Nothing that came in clear may be left: whoever can put bytes
    /// behind the server's consent to TLS could otherwise have them taken for the server's
    /// ("NBD_OPT_STARTTLS").
    pub fn start_tls(
        &mut self,
        prepared: &Prepared<'_>,
        deadline: Deadline,
    ) -> Result<TlsEstablished, Error> {
        let peek = |flags| recv(&self.fd, &mut [0; 1], flags | RecvFlags::PEEK).map(|(n, _)| n);
        // A server that closed the connection behind its consent is no attacker.
        if finish_receive(peek, Blocking::No)?.is_some() {
            return Err(Error::Tls(
                "bytes in clear followed the server's consent to TLS, which may be an attack"
                    .to_owned(),
            ));
        }
        let session = Session::establish(self.fd.clone(), prepared, |readable, writable| {
            let until = match readable || writable {
                true => deadline,
                false => Deadline::after(Duration::ZERO),
            };
            self.wait(readable, writable, None, until)?;
            deadline.check()
        })
        .map_err(|error| self.explain(error))?;
        self.tls = Some(session);
        Ok(TlsEstablished::by_transport())
    }

    /// Waits until a connection that was begun without blocking has come about.
    pub(super) fn finish_connecting(self, deadline: Deadline) -> Result<Self, Error> {
        if self.wait(false, true, None, deadline)?.expired {
            return Err(deadline.passed());
        }
        socket_error(&self.fd)
            .map_err(Error::io("getsockopt"))?
            .map_err(Error::Connect)?;
        self.make_blocking()?;
        Ok(self)
    }

    /// Receiving waits only in blocking mode; sending never does, whatever the mode.
    pub(super) fn make_blocking(&self) -> Result<(), Error> {
        let flags = fcntl_getfl(&self.fd).map_err(Error::io("fcntl"))?;
        fcntl_setfl(&self.fd, flags - OFlags::NONBLOCK).map_err(Error::io("fcntl"))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends what fits at once; `None` if nothing does.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> Result<Option<usize>, Error> {
        self.send_some(pieces).map_err(|error| self.explain(error))
    }

    fn send_some(&self, pieces: &[IoSlice<'_>]) -> Result<Option<usize>, Error> {
        if let Some(tls) = &self.tls {
            return tls.send(pieces);
        }
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
    /// to wait, or if nothing came for [`PAUSE`]. Under TLS it never waits, and there may have been
    /// something to receive that is no data. The end of the stream is [`Error::Closed`].
    pub fn receive(&self, buffer: &mut [u8], blocking: Blocking) -> Result<Option<usize>, Error> {
        self.receive_some(buffer, blocking)
            .map_err(|error| self.explain(error))
    }

    fn receive_some(&self, buffer: &mut [u8], blocking: Blocking) -> Result<Option<usize>, Error> {
        if let Some(tls) = &self.tls {
            return tls.receive(buffer);
        }
        finish_receive(
            |flags| recv(&self.fd, &mut *buffer, flags).map(|(n, _)| n),
            blocking,
        )
    }

    /// From now on a receive that waits comes back after [`PAUSE`] if nothing arrives.
    pub fn limit_receiving(&self) -> Result<(), Error> {
        set_socket_timeout(&self.fd, Timeout::Recv, Some(PAUSE)).map_err(Error::io("setsockopt"))
    }

    /// A place to watch this stream from. None under TLS, which holds what the socket does not show.
    pub fn lookout(&self) -> Option<Lookout> {
        let plain = self.tls.is_none();
        plain.then(|| Lookout::new(self.fd.clone()))
    }

    /// Like [`Stream::receive`], into several buffers in turn; under TLS into the first only.
    pub fn receive_vectored(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        blocking: Blocking,
    ) -> Result<Option<usize>, Error> {
        self.receive_vector(buffers, blocking)
            .map_err(|error| self.explain(error))
    }

    fn receive_vector(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        blocking: Blocking,
    ) -> Result<Option<usize>, Error> {
        if let Some(tls) = &self.tls {
            return match buffers.first_mut() {
                Some(first) => tls.receive(first),
                None => Ok(None),
            };
        }
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
    /// doorbell rings, or the deadline passes. [`Error::Unwanted`] if nobody wants that any more.
    pub fn wait(
        &self,
        readable: bool,
        writable: bool,
        doorbell: Option<&Doorbell>,
        deadline: Deadline,
    ) -> Result<Ready, Error> {
        if readable && self.tls.as_ref().is_some_and(Session::may_hold_more) {
            // What TLS has already taken from the socket does not show there.
            deadline.check_wanted()?;
            return Ok(Ready {
                readable: true,
                expired: deadline.has_passed(),
                ..Ready::default()
            });
        }
        // A send that needs what another thread receives is tried again and again.
        let stuck = writable && self.tls.as_ref().is_some_and(Session::is_stuck);
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, readable);
        events.set(PollFlags::OUT, writable && !stuck);
        let mut fds = [
            PollFd::new(&self.fd, events),
            // Without a doorbell the second entry is not passed on.
            PollFd::new(doorbell.map_or(&*self.fd, |bell| &bell.fd), PollFlags::IN),
        ];
        let count = if doorbell.is_some() { 2 } else { 1 };
        let until = match stuck {
            true => deadline.within(STUCK),
            false => deadline,
        };
        loop {
            match poll(&mut fds[..count], until.timespec().as_ref()) {
                Ok(0) => match until.check() {
                    Ok(()) => continue,
                    Err(Error::Timeout(_)) => {
                        return Ok(Ready {
                            writable: stuck,
                            expired: deadline.has_passed(),
                            ..Ready::default()
                        });
                    }
                    Err(error) => return Err(error),
                },
                // A server that is slow, but never silent for long, holds nobody either.
                Ok(_) | Err(Errno::INTR) => break deadline.check_wanted()?,
                Err(errno) => {
                    return Err(Error::Io {
                        call: "poll",
                        errno,
                    });
                }
            }
        }
        let mut ready = Ready {
            // Also when there is something to do: a server that never pauses is late like others.
            expired: deadline.has_passed(),
            ..Ready::default()
        };
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

    /// Waits for what still comes, until the deadline, and throws it away. Whether the server has closed
    /// its side. TLS is not asked: a session that has failed says so again and again, and not whether
    /// anybody is there.
    pub fn discard(&self, deadline: Deadline) -> bool {
        let mut scrap = [0; 64 * 1024];
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, deadline.timespec().as_ref()) {
                Ok(0) | Err(Errno::INTR) => return false,
                // A poll that fails says nothing of the server; the receive does.
                Ok(_) | Err(_) => (),
            }
            match recv(&self.fd, &mut scrap, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return true,
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) if deadline.has_passed() => return false,
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => (),
                Err(_) => return true,
            }
        }
    }

    /// Tells the server that nothing more will be sent.
    pub fn finish_sending(&self) {
        if let Some(tls) = &self.tls {
            tls.finish_sending();
        }
        // Fails only when the connection is gone, which the next receive reports.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    /// Ends both directions: a blocked send or receive of any thread returns. Bytes that have
    /// already arrived can still be received.
    pub fn hang_up(&self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
        if let Some(tunnel) = &self.tunnel {
            tunnel.kill();
        }
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
            Err(Errno::AGAIN) => return Ok(None),
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
    /// The deadline has passed, whatever else happened.
    pub expired: bool,
}
