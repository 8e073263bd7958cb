// SPDX-License-Identifier: BSD-3-Clause
//! How TCP finds out that the other host is gone: by asking in a silence, and by not waiting longer
//! than a while for what it has sent to arrive.

use std::time::Duration;

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
    set_tcp_user_timeout,
};

/// The longest silence that Linux can be told (MAX_TCP_KEEPIDLE).
pub const LONGEST: Duration = Duration::from_secs(32767);

/// Questions without an answer after which the other host is gone.
const PROBES: u32 = 3;

/// Linux counts silence and intervals in whole seconds, and takes zero for an error.
const SECOND: Duration = Duration::from_secs(1);

/// The times of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first question.
    idle: Duration,
    /// From question to question.
    interval: Duration,
    /// How long what was sent may go unacknowledged. This alone ends a connection on which something
    /// is under way, and it also wins over the number of the questions.
    unacknowledged: Duration,
}

impl Keepalive {
    /// The times that follow from the first of them, which is [`LONGEST`] at most.
    pub fn new(idle: Duration) -> Self {
        let idle = idle.min(LONGEST);
        Self {
            idle: whole_seconds(idle),
            interval: whole_seconds(idle / 3),
            unacknowledged: (idle * 2).max(SECOND),
        }
    }

    fn apply(&self, socket: impl AsFd) -> Result<(), Errno> {
        // The longest is a little more than 2^25.
        let milliseconds = u32::try_from(self.unacknowledged.as_millis()).unwrap_or(u32::MAX);
        set_tcp_keepidle(&socket, self.idle)?;
        set_tcp_keepintvl(&socket, self.interval)?;
        set_tcp_keepcnt(&socket, PROBES)?;
        set_tcp_user_timeout(&socket, milliseconds)
    }
}

/// Lets a connection find out. Without times of ours the kernel's are used.
pub fn apply(socket: impl AsFd, times: Option<Keepalive>) -> Result<(), Errno> {
    set_socket_keepalive(&socket, true)?;
    times.map_or(Ok(()), |times| times.apply(&socket))
}

/// Rounded up, and one at least.
fn whole_seconds(time: Duration) -> Duration {
    let up = u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(time.as_secs() + up).max(SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt::{
        socket_keepalive, tcp_keepcnt, tcp_keepidle, tcp_keepintvl, tcp_user_timeout,
    };

    /// What the kernel has: whether it asks, the silence, the interval, the questions, and the
    /// milliseconds.
    fn read(socket: &TcpStream) -> Result<(bool, u64, u64, u32, u32), Errno> {
        Ok((
            socket_keepalive(socket)?,
            tcp_keepidle(socket)?.as_secs(),
            tcp_keepintvl(socket)?.as_secs(),
            tcp_keepcnt(socket)?,
            tcp_user_timeout(socket)?,
        ))
    }

    fn socket() -> (TcpListener, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let socket = TcpStream::connect(address).expect("connect");
        (listener, socket)
    }

    #[test]
    fn the_kernel_has_all_times() {
        for (idle, expected) in [
            (Duration::from_secs(30), (true, 30, 10, 3, 60_000)),
            (Duration::from_secs(10), (true, 10, 4, 3, 20_000)),
            (Duration::from_millis(1500), (true, 2, 1, 3, 3000)),
            (Duration::from_secs(1), (true, 1, 1, 3, 2000)),
            (Duration::from_millis(200), (true, 1, 1, 3, 1000)),
            (LONGEST, (true, 32767, 10923, 3, 65_534_000)),
        ] {
            let (_listener, socket) = socket();
            apply(&socket, Some(Keepalive::new(idle))).expect("taken");
            assert_eq!(read(&socket), Ok(expected), "{idle:?}");
        }
    }

    #[test]
    fn without_times_the_kernels_are_used() {
        let (_listener, socket) = socket();
        let before = read(&socket).expect("readable");
        apply(&socket, None).expect("taken");
        let (_, idle, interval, count, timeout) = before;
        assert_eq!(read(&socket), Ok((true, idle, interval, count, timeout)));
    }
}
