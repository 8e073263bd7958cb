// SPDX-License-Identifier: BSD-3-Clause
//! A Unix domain stream socket, by path.

use std::path::Path;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{Deadline, Error, Stream};

/// Size of `sun_path` in a Unix socket address, bytes.
const SUN_PATH: usize = 108;

/// Bytes in flight towards a server that we would like: enough for a write of a usual size, and
/// little enough to stay in a processor's own cache on the way. Linux doubles it.
const SEND_BUFFER: usize = 256 * 1024;

/// Whether `path` fits a Unix socket address, its terminating zero byte included. Linux does not
/// insist on the zero byte, but programs do: no server could be listening on a longer name.
pub fn fits(path: &Path) -> bool {
    path.as_os_str().len() < SUN_PATH
}

/// Connects to the socket at `path`. A full queue of connections is waited for until the deadline:
/// it means that the server is busy, not that it is gone.
pub fn open(path: &Path, deadline: Deadline) -> Result<Stream, Error> {
    let address = SocketAddrUnix::new(path).map_err(Error::Connect)?;
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::io("socket"))?;
    loop {
        // unix(7): connect obeys the send timeout, and fails with EAGAIN when it has passed. A queue
        // without room is the only thing that it waits for.
        deadline.check_during("the server's queue of connections is full")?;
        set_socket_timeout(&fd, Timeout::Send, deadline.slice())
            .map_err(Error::io("setsockopt"))?;
        match connect(&fd, &address) {
            Ok(()) => break,
            Err(Errno::AGAIN | Errno::INTR) => (),
            Err(errno) => return Err(Error::Connect(errno)),
        }
    }
    set_socket_timeout(&fd, Timeout::Send, None).map_err(Error::io("setsockopt"))?;
    // So that the sender of a usual write need not wait for room. A refusal is no reason to fail.
    let _ = set_socket_send_buffer_size(&fd, SEND_BUFFER);
    Ok(Stream::new(fd))
}

/// Two connected streams, for tests.
#[cfg(test)]
pub fn pair() -> (Stream, Stream) {
    let (a, b) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socketpair");
    (Stream::new(a), Stream::new(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_limit_of_a_path_is_107_bytes() {
        assert!(fits(Path::new(&format!("/{}", "x".repeat(106)))));
        assert!(!fits(Path::new(&format!("/{}", "x".repeat(107)))));
    }

    #[test]
    fn a_full_queue_is_waited_for_until_the_deadline() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        // The standard library's backlog is large; shrink it to one.
        rustix::net::listen(&listener, 0).expect("listen");
        let brief = Duration::from_millis(50);
        let _first = open(&path, Deadline::after(brief)).expect("first");
        let error = open(&path, Deadline::after(brief)).expect_err("there is no room");
        assert_eq!(
            error.to_string(),
            "timed out after 0.05 seconds: the server's queue of connections is full"
        );
    }
}
