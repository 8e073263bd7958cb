// SPDX-License-Identifier: BSD-3-Clause
//! A message of TLS itself of which the rest is late. Until then OpenSSL sends nothing, which nobody can help; but
//! nobody must turn round and round meanwhile, and what waits to be sent must be sent then.

mod common;
mod tls_server;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use common::clients::text;
use common::front::Front;
use common::nbdkit::forward;
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::upstream::memory;
use tls_server::{HELD_BACK, Manner, TlsServer};

/// Hundredths of a second for which a process has used the processors.
fn used(pid: u32) -> i64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let fields: Vec<i64> = fields.split(' ').flat_map(str::parse).collect();
    // See proc_pid_stat(5); the state is no number, so the time in user mode is the eleventh.
    fields[10] + fields[11]
}

#[test]
fn half_a_ticket() {
    if !need_all(&["nbdkit", "certtool"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = authority.client("client", &[]);
    let client = format!("tls-certificates={}", text(&client));
    let server = authority.server("server", LOCALHOST);
    let upstream = memory(directory.path(), "16M");
    let manner = Manner {
        half_ticket_after: Some(15),
        ..Manner::default()
    };
    let tls = TlsServer::start(directory.path(), &server, upstream.socket(), &manner);
    let parameters = ["tls=require", "tls-hostname=localhost", &client];
    let nbdkit = forward(directory.path(), tls.socket(), &parameters);
    let mut front = Front::open(nbdkit.socket())
        .unwrap_or_else(|refused| panic!("{refused:?}\n{}", nbdkit.stderr()));
    let (began, before) = (Instant::now(), used(nbdkit.pid()));
    // One of these brings the server to its ticket. What follows has to wait then, and most of that is asked
    // when the plugin has the half of it: a pause makes that likely, and the test does not depend on it.
    for _ in 0..20 {
        let mut asked = vec![front.submit_read(0, 4096)];
        thread::sleep(Duration::from_millis(10));
        asked.extend((1..8).map(|n| front.submit_read(n << 20, 4096)));
        for cookie in asked {
            assert_eq!(front.wait_read(cookie), Ok(vec![0; 4096]));
        }
    }
    let took = began.elapsed();
    assert!(took >= HELD_BACK, "nothing was held back: {took:?}");
    let used = used(nbdkit.pid()) - before;
    assert!(used < 20, "{used} hundredths of a second in {took:?}");
    front.close();
}
