// SPDX-License-Identifier: BSD-3-Clause
//! TCP, by host and service name: the addresses of the host are tried side by side, each a little later than
//! the one before it, and the first that answers wins (RFC 8305, "happy eyeballs").
//!
//! All of them are waited for by the thread that calls.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_nodelay, socket_error};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::keepalive::{self, Keepalive};
use super::resolve::resolve;
use super::{Deadline, Error, Stream};

/// How long an address is waited for before the next one is tried beside it ("Connection Attempt
/// Delay").
const HEAD_START: Duration = Duration::from_millis(250);

/// Most addresses that are tried, a descriptor each: how many there are is the name server's choice.
const MOST: usize = 64;

/// Connects to the first address of `host` that answers, and tells which that is.
pub fn open(
    host: &str,
    port: &str,
    keepalive: Option<Keepalive>,
    deadline: Deadline,
) -> Result<(Stream, SocketAddr), Error> {
    let mut addresses = interleaved(resolve(host, port, deadline)?);
    addresses.truncate(MOST);
    let mut race = Race::new(addresses, deadline);
    loop {
        let (fd, address) = race.winner()?;
        match finish(fd, keepalive) {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => race.failed(address, error),
        }
    }
}

/// Makes a stream of a socket that is connected.
fn finish(fd: OwnedFd, keepalive: Option<Keepalive>) -> Result<Stream, Error> {
    let stream = Stream::new(fd);
    stream.make_blocking()?;
    // Requests are sent whole, so waiting for more to send would only cost time.
    // spec: Protocol phases: SHOULD: no waiting for more to send (TCP_NODELAY)
    set_tcp_nodelay(stream.as_fd(), true).map_err(Error::io("setsockopt"))?;
    keepalive::apply(stream.as_fd(), keepalive).map_err(Error::io("setsockopt"))?;
    Ok(stream)
}

/// The addresses with their families in turn, so that a family without a way does not take the head
/// start of all its addresses. Within a family the order is the resolver's.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            return turns;
        }
        turns.extend(one.into_iter().chain(other));
    }
}

/// Attempts to connect to the addresses of one host.
struct Race {
    deadline: Deadline,
    head_start: Duration,
    /// Not tried yet.
    left: std::vec::IntoIter<SocketAddr>,
    /// When the next one is tried; at once where nothing is waited for.
    next: Instant,
    waiting: Vec<(SocketAddr, OwnedFd)>,
    failures: Vec<(SocketAddr, Error)>,
}

impl Race {
    fn new(addresses: Vec<SocketAddr>, deadline: Deadline) -> Self {
        // Where time is short all of them get a part of it.
        let part = deadline.share(addresses.len()).remaining();
        Self {
            deadline,
            head_start: part.map_or(HEAD_START, |part| part.min(HEAD_START)),
            left: addresses.into_iter(),
            next: Instant::now(),
            waiting: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// The first socket that is connected. To be asked again if it is of no use.
    fn winner(&mut self) -> Result<(OwnedFd, SocketAddr), Error> {
        loop {
            while self.waiting.is_empty() || Instant::now() >= self.next {
                let Some(address) = self.left.next() else {
                    break;
                };
                self.next = Instant::now() + self.head_start;
                match begin(&address) {
                    Ok((fd, true)) => return Ok((fd, address)),
                    Ok((fd, false)) => self.waiting.push((address, fd)),
                    Err(error) => self.failed(address, error),
                }
            }
            if self.waiting.is_empty() {
                return Err(self.lost());
            }
            if let Some(winner) = self.wait()? {
                return Ok(winner);
            }
            match self.deadline.check() {
                Ok(()) => (),
                Err(Error::Timeout(_)) => return Err(self.late()),
                Err(error) => return Err(error),
            }
        }
    }

    /// An address came to nothing: the next one has no reason to wait.
    fn failed(&mut self, address: SocketAddr, error: Error) {
        self.next = Instant::now();
        self.failures.push((address, error));
    }

    /// Waits until one is connected, or another has to be tried, or it is time to look at the deadline.
    fn wait(&mut self) -> Result<Option<(OwnedFd, SocketAddr)>, Error> {
        let until_next = match self.left.as_slice() {
            [] => None,
            _ => Some(self.next.saturating_duration_since(Instant::now())),
        };
        let slice = until_next.into_iter().chain(self.deadline.slice()).min();
        let slice = slice.and_then(|slice| Timespec::try_from(slice).ok());
        let mut fds: Vec<_> = self
            .waiting
            .iter()
            .map(|(_, fd)| PollFd::new(fd, PollFlags::OUT))
            .collect();
        match poll(&mut fds, slice.as_ref()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(errno) => return Err(Error::io("poll")(errno)),
        }
        let ended: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for place in (0..ended.len()).filter(|place| ended[*place]).rev() {
            let (address, fd) = self.waiting.remove(place);
            match socket_error(&fd) {
                Ok(Ok(())) => return Ok(Some((fd, address))),
                Ok(Err(errno)) => self.failed(address, Error::Connect(errno)),
                Err(errno) => self.failed(address, Error::io("getsockopt")(errno)),
            }
        }
        Ok(None)
    }

    /// None is left.
    fn lost(&mut self) -> Error {
        match &mut self.failures[..] {
            [] => Error::Resolve("no address".to_owned()),
            [(_, error)] => error.clone(),
            failures => Error::Addresses(failures.to_vec()),
        }
    }

    /// The time is over.
    fn late(&mut self) -> Error {
        let passed = self.deadline.passed();
        if self.failures.is_empty() && self.left.as_slice().is_empty() && self.waiting.len() == 1 {
            return passed;
        }
        for (address, _) in self.waiting.drain(..) {
            self.failures.push((address, passed.clone()));
        }
        self.lost()
    }
}

/// Begins to connect. Whether that is done already.
fn begin(address: &SocketAddr) -> Result<(OwnedFd, bool), Error> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(family, SocketType::STREAM, flags, None).map_err(Error::io("socket"))?;
    match connect(&fd, address) {
        Ok(()) => Ok((fd, true)),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok((fd, false)),
        Err(errno) => Err(Error::Connect(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

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

    /// A listener on an address of the loopback interface that takes nobody in: its queue is full.
    fn full(address: &str) -> (TcpListener, Vec<TcpStream>) {
        let listener = TcpListener::bind((address, 0)).expect("bind");
        rustix::net::listen(&listener, 0).expect("a queue of length 0");
        let at = listener.local_addr().expect("address");
        let connect = |_| TcpStream::connect_timeout(&at, Duration::from_millis(200)).ok();
        (listener, (0..16).map_while(connect).collect())
    }

    fn refusing() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.local_addr().expect("address")
    }

    fn race(addresses: &[SocketAddr], most: Duration) -> Result<SocketAddr, Error> {
        let mut race = Race::new(addresses.to_vec(), Deadline::after(most));
        race.winner().map(|(_, address)| address)
    }

    #[test]
    fn families_take_turns() {
        let address = |text: &str| text.parse::<SocketAddr>().expect(text);
        let six = ["[::1]:1", "[::2]:1", "[::3]:1"].map(address);
        let four = ["192.0.2.1:1", "192.0.2.2:1"].map(address);
        let all = [six[0], six[1], six[2], four[0], four[1]];
        let turns = interleaved(all.to_vec());
        assert_eq!(turns, [six[0], four[0], six[1], four[1], six[2]]);
        let turns = interleaved(vec![four[0], four[1], six[0]]);
        assert_eq!(
            turns,
            [four[0], six[0], four[1]],
            "the first stays the first"
        );
        assert_eq!(interleaved(Vec::new()), []);
    }

    #[test]
    fn silent_addresses_cost_their_head_starts_only() {
        let silent: Vec<_> = (0..8).map(|_| full("127.0.0.1")).collect();
        let alive = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = |listener: &TcpListener| listener.local_addr().expect("address");
        let mut all: Vec<_> = silent.iter().map(|(full, _)| address(full)).collect();
        all.push(address(&alive));
        let begun = Instant::now();
        assert_eq!(race(&all, Duration::from_secs(600)), Ok(address(&alive)));
        let took = begun.elapsed();
        // One after the other it would be 600 s / 9 each. The bound leaves room for a loaded machine.
        assert!(took >= HEAD_START * 8, "each has its head start: {took:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn an_address_that_refuses_has_no_head_start() {
        let alive = TcpListener::bind("127.0.0.1:0").expect("bind");
        let alive = alive.local_addr().map(|address| (alive, address));
        let (_listener, alive) = alive.expect("address");
        let mut all = vec![refusing(); 200];
        all.push(alive);
        let begun = Instant::now();
        assert_eq!(race(&all, Duration::from_secs(600)), Ok(alive));
        assert!(begun.elapsed() < HEAD_START * 200);
    }

    #[test]
    fn a_slow_address_may_win_when_all_others_have_failed() {
        // It takes the first one in as soon as one of those that wait is taken out.
        let (listener, waiting) = full("127.0.0.1");
        let slow = listener.local_addr().expect("address");
        let taker = std::thread::spawn(move || {
            for _ in &waiting {
                listener.accept().expect("accept");
            }
            (listener, waiting)
        });
        assert_eq!(race(&[slow, refusing()], Duration::from_secs(60)), Ok(slow));
        taker.join().expect("the server");
    }

    #[test]
    fn who_is_late_is_named_with_all_others() {
        let (silent, _waiting) = full("127.0.0.1");
        let (silent, dead) = (silent.local_addr().expect("address"), refusing());
        let brief = Duration::from_millis(300);
        let error = race(&[silent, dead], brief).expect_err("nobody answers");
        let after = "timed out after 0.3 seconds";
        assert_eq!(
            error.to_string(),
            format!("{dead}: Connection refused; {silent}: {after}")
        );
        assert_eq!(error.errno(), libc::EIO, "as for one address");
        // All were tried before the time was over.
        let error = race(&[silent; 5], brief).expect_err("nobody answers");
        assert_eq!(error.to_string().matches(after).count(), 5, "{error}");
        let alone = race(&[silent], brief).expect_err("it does not answer");
        assert_eq!(alone, Error::Timeout(brief));
        let refused = race(&[dead, dead], brief).expect_err("nobody is there");
        assert_eq!(refused.errno(), libc::ESHUTDOWN);
        assert!(refused.is_transient());
    }

    #[test]
    fn who_is_not_wanted_any_more_is_left() {
        let (silent, _waiting) = full("127.0.0.1");
        let silent = silent.local_addr().expect("address");
        let deadline = Deadline::NEVER.while_wanted(Some(|| false));
        let mut race = Race::new(vec![silent, silent], deadline);
        assert_eq!(race.winner().err(), Some(Error::Unwanted));
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
