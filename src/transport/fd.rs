// SPDX-License-Identifier: BSD-3-Clause
//! Sockets that are only numbers to Rust: one that the user opened, and an address family that
//! the standard library does not know.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::{Error, Stream};

/// The first number that is not standard input, output or error.
const FIRST_FREE: RawFd = 3;

/// A connected socket that nbdkit was started with. It is good for one connection.
#[derive(Debug)]
pub struct Inherited {
    number: RawFd,
    fd: Mutex<Option<OwnedFd>>,
}

impl Inherited {
    /// Takes over descriptor `number`, which must be a stream socket.
    pub fn new(number: RawFd) -> Result<Self, Error> {
        if number < 0 {
            return Err(Error::Connect(Errno::BADF));
        }
        // SAFETY: borrowed for this function only; if nothing is open under this number the system
        // calls below say so.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl_getfd(borrowed).map_err(Error::Connect)?;
        if socket_type(borrowed).map_err(Error::Connect)? != SocketType::STREAM {
            return Err(Error::Connect(Errno::PROTOTYPE));
        }
        if number < FIRST_FREE {
            // nbdkit puts something else in its place when it goes into the background.
            let fd = fcntl_dupfd_cloexec(borrowed, FIRST_FREE).map_err(Error::io("fcntl"))?;
            return Ok(Self::with(number, fd));
        }
        // Programs that nbdkit starts must not keep the connection open.
        fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC).map_err(Error::io("fcntl"))?;
        // SAFETY: it is open, and the user handed it to this plugin by its number; nbdkit itself
        // does not know of it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Self::with(number, fd))
    }

    fn with(number: RawFd, fd: OwnedFd) -> Self {
        Self {
            number,
            fd: Mutex::new(Some(fd)),
        }
    }

    /// The connection, once.
    pub fn open(&self) -> Result<Stream, Error> {
        let fd = self
            .fd
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let stream = Stream::new(fd.ok_or(Error::UsedUp)?);
        stream.make_blocking()?;
        Ok(stream)
    }

    /// The descriptor's number.
    pub fn number(&self) -> RawFd {
        self.number
    }
}

/// Starts connecting a `AF_VSOCK` socket.
pub fn connect_vsock(fd: &OwnedFd, cid: u32, port: u32) -> Result<(), Error> {
    // SAFETY: all zeroes is a valid value of this plain C structure.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    // SAFETY: the address is alive for the call and as long as it is said to be.
    let result = unsafe {
        libc::connect(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        Some(Errno::INPROGRESS | Errno::INTR) => Ok(()),
        errno => Err(Error::Connect(errno.unwrap_or(Errno::IO))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn an_inherited_socket_is_good_for_one_connection() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        let inherited = Inherited::new(a.into_raw_fd()).expect("a socket");
        assert!(inherited.open().is_ok());
        assert_eq!(inherited.open().err(), Some(Error::UsedUp));
    }

    #[test]
    fn what_is_no_stream_socket_is_refused() {
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        assert_eq!(
            Inherited::new(file.as_raw_fd()).err(),
            Some(Error::Connect(Errno::NOTSOCK))
        );
        assert_eq!(Inherited::new(-1).err(), Some(Error::Connect(Errno::BADF)));
    }
}
