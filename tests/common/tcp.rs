// SPDX-License-Identifier: BSD-3-Clause
//! Servers and dead ends on TCP. Every port is the kernel's choice and held from the beginning, so that tests
//! that run at the same time cannot take each other's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use super::process::{Guarded, hand_over};

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A listener on a port of its own.
pub fn listen(address: IpAddr) -> TcpListener {
    TcpListener::bind((address, 0)).unwrap_or_else(|error| panic!("listen on {address}: {error}"))
}

pub fn port(listener: &TcpListener) -> u16 {
    local(listener).port()
}

fn local(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("a listener has an address")
}

/// Whether this machine has IPv6; a container may not.
pub fn has_v6() -> bool {
    let has = TcpListener::bind((V6, 0)).is_ok();
    if !has {
        println!("SKIP: {}: no ::1 on this machine", super::test_name());
    }
    has
}

/// nbdkit that serves on a listener of ours.
pub struct TcpServer {
    _process: Guarded,
    port: u16,
}

impl TcpServer {
    /// `nbdkit args` on a port of its own. It may be connected to at once.
    pub fn start(address: IpAddr, args: &[&str]) -> Self {
        Self::start_on(&listen(address), args)
    }

    /// `nbdkit args` on `listener`.
    pub fn start_on(listener: &TcpListener, args: &[&str]) -> Self {
        Self {
            _process: activate(listener, args),
            port: port(listener),
        }
    }

    pub fn port(&self) -> String {
        self.port.to_string()
    }
}

/// Starts `nbdkit args` by socket activation.
fn activate(listener: &TcpListener, args: &[&str]) -> Guarded {
    let mut command = Command::new("sh");
    command
        .args(["-c", "export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"", "sh"])
        .args(["nbdkit", "-f"])
        .args(args);
    hand_over(&mut command, listener, 3);
    Guarded::spawn(&mut command)
}

/// A listener that takes nobody in any more: its queue is full, so the kernel lets whoever connects wait.
pub struct Full {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Full {
    pub fn new() -> Self {
        Self::from(listen(V4))
    }

    pub fn port(&self) -> String {
        port(&self.listener).to_string()
    }
}

impl From<TcpListener> for Full {
    fn from(listener: TcpListener) -> Self {
        // SAFETY: listen takes plain numbers; called again it only changes the length of the queue.
        let result = unsafe { libc::listen(listener.as_raw_fd(), 0) };
        assert_eq!(result, 0, "a queue of length 0");
        // How many fit in a queue of length 0 is up to the kernel: one, for Linux.
        let address = local(&listener);
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let waiting: Vec<_> = (0..16).map_while(connect).collect();
        assert!(waiting.len() < 16, "the queue never gets full");
        Self {
            listener,
            _waiting: waiting,
        }
    }
}
