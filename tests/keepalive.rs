// SPDX-License-Identifier: BSD-3-Clause
//! `keepalive=`: what the kernel is told to do about a silent host.

mod common;

use std::fs;

use common::front::Front;
use common::nbdkit::{forward, through};
use common::need;
use common::process::eventually;
use common::tcp::{TcpServer, V4};
use common::upstream::memory;

/// The next thing that the kernel will do for the one connection to this port on the loopback interface:
/// which timer runs (2 is keepalive), and in how many seconds it is over. `None` while it does another thing,
/// such as to wait for an acknowledgement.
fn timer(port: &str) -> Option<(u64, u64)> {
    let port: u16 = port.parse().expect("a port");
    let remote = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").expect("the table of connections");
    let fields: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        // 01 is a connection that is established.
        .find(|fields| fields[2] == remote && fields[3] == "01")?;
    let (which, when) = fields[5].split_once(':')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    // Hundredths of a second, whatever the kernel counts in.
    Some((number(which)?, number(when)? / 100)).filter(|(which, _)| *which == 2)
}

/// The seconds in which the kernel asks, of an nbdkit with these parameters.
fn asks_in(parameters: &[&str]) -> u64 {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let port = format!("port={}", server.port());
    let args = [&["hostname=127.0.0.1", &port], parameters].concat();
    let front = through(directory.path(), &args);
    let mut client = Front::open(front.socket()).expect("opens");
    assert!(client.read(0, 512).is_ok());
    let (_, seconds) = eventually("it is silent", common::clients::LIMIT, || {
        timer(&server.port())
    });
    client.close();
    seconds
}

#[test]
fn kernel_asks_after_the_time_given() {
    if !need("nbdkit") {
        return;
    }
    let seconds = asks_in(&["keepalive=3000"]);
    assert!((2900..=3000).contains(&seconds), "{seconds}");
}

#[test]
fn kernel_has_its_own_time_otherwise() {
    if !need("nbdkit") {
        return;
    }
    let own = fs::read_to_string("/proc/sys/net/ipv4/tcp_keepalive_time").expect("readable");
    let own: u64 = own.trim().parse().expect("a number");
    for parameters in [&[][..], &["keepalive=0"]] {
        let seconds = asks_in(parameters);
        assert!(seconds <= own && seconds + 100 > own, "{seconds} of {own}");
    }
}

#[test]
fn only_verbose_tells_where_it_has_no_effect() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &["keepalive=10"]);
    let told = "keepalive has no effect, as this is not TCP";
    let stderr = front.stderr();
    let lines: Vec<_> = stderr.lines().filter(|line| line.contains(told)).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    assert!(lines[0].contains("debug: "), "{lines:?}");
}
