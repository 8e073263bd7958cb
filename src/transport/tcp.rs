// SPDX-License-Identifier: BSD-3-Clause
//! TCP, by host and service name: every address of the host is tried before the deadline.

use std::net::SocketAddr;

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::keepalive::{self, Keepalive};
use super::resolve::resolve;
use super::{Deadline, Error, Stream};

/// Connects to the first address of `host` that answers, and tells which that is. The time until the deadline is shared
/// out among the addresses that are left, so that one dead address does not use it all up.
pub fn open(
    host: &str,
    port: &str,
    keepalive: Option<Keepalive>,
    deadline: Deadline,
) -> Result<(Stream, SocketAddr), Error> {
    let addresses = resolve(host, port, deadline)?;
    let mut failure = Error::Resolve("no address".to_owned());
    for (tried, address) in addresses.iter().enumerate() {
        match open_one(address, keepalive, deadline.share(addresses.len() - tried)) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => {
                // The only one is told anyway.
                if addresses.len() > 1 {
                    log::debug!("{address}: {error}");
                }
                failure = error;
            }
        }
        if deadline.has_passed() {
            return Err(deadline.passed());
        }
    }
    Err(failure)
}

fn open_one(
    address: &SocketAddr,
    keepalive: Option<Keepalive>,
    deadline: Deadline,
) -> Result<Stream, Error> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(family, SocketType::STREAM, flags, None).map_err(Error::io("socket"))?;
    match connect(&fd, address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => (),
        Err(errno) => return Err(Error::Connect(errno)),
    }
    let stream = Stream::new(fd).finish_connecting(deadline)?;
    // Requests are sent whole, so waiting for more to send would only cost time.
    // spec: Protocol phases: SHOULD: no waiting for more to send (TCP_NODELAY)
    set_tcp_nodelay(stream.as_fd(), true).map_err(Error::io("setsockopt"))?;
    keepalive::apply(stream.as_fd(), keepalive).map_err(Error::io("setsockopt"))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn connects_by_number_and_name() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port().to_string();
        let taken = |host| open(host, &port, None, soon()).expect("connected").1;
        let address = listener.local_addr().expect("address");
        assert_eq!(taken("127.0.0.1"), address);
        assert_eq!(taken("localhost"), address, "IPv6 first, then IPv4");
    }

    #[test]
    fn a_connection_has_the_times_of_its_target() {
        use rustix::net::sockopt::{tcp_keepidle, tcp_user_timeout};
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port().to_string();
        let times = Keepalive::new(Duration::from_secs(7));
        let (stream, _) = open("127.0.0.1", &port, Some(times), soon()).expect("connected");
        assert_eq!(tcp_keepidle(stream.as_fd()), Ok(Duration::from_secs(7)));
        assert_eq!(tcp_user_timeout(stream.as_fd()), Ok(14_000));
    }

    #[test]
    fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port().to_string();
        drop(listener);
        assert_eq!(
            open("127.0.0.1", &port, None, soon()).err(),
            Some(Error::Connect(Errno::CONNREFUSED))
        );
    }

    #[test]
    fn service_names_are_looked_up() {
        let error = open("127.0.0.1", "no-such-service", None, soon()).err();
        assert!(matches!(error, Some(Error::Resolve(_))), "{error:?}");
    }
}
