// SPDX-License-Identifier: BSD-3-Clause
//! Servers that keep TLS busy: with messages that are no data, without end. They hold a connection no longer
//! than its deadlines say, and where there is none they end it.

mod common;
mod tls_server;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::clients::text;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::scripted::Scripted;
use common::scripted::bench::{lost, still_lost};
use common::scripted::peer::Peer;
use common::scripted::wire::{FIXED_NEWSTYLE, NO_ZEROES, opt, rep};
use common::tls::{refused, says};
use common::upstream::memory;
use tempfile::TempDir;
use tls_server::{Manner, TlsServer};

/// Far more than any deadline here, and far less than the floods last.
const SOON: Duration = Duration::from_secs(8);
/// How long a flood in a handshake lasts.
const FLOOD: Duration = Duration::from_secs(20);

/// HelloRequest, of TLS 1.2, which may be sent at any time and is ignored in a handshake; in a record of its own.
const HELLO_REQUEST: [u8; 9] = [22, 3, 3, 0, 4, 0, 0, 0, 0];

fn in_time(began: Instant, what: &str) {
    let took = began.elapsed();
    assert!(took < SOON, "{what}: {took:?}");
}

/// What is said of a server that consents to TLS and then sends this again and again, with pauses.
fn refuses(again: Vec<u8>, pause: Duration, extra: &[&str]) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let ticket = server.play(move |peer: &mut Peer| -> io::Result<()> {
        peer.greet(FIXED_NEWSTYLE | NO_ZEROES)?;
        peer.option()?;
        peer.reply(opt::STARTTLS, rep::ACK, &[])?;
        peer.receive(5)?;
        let began = Instant::now();
        while began.elapsed() < FLOOD {
            peer.send(&again)?;
            if !pause.is_zero() {
                // Everything that the plugin has to say was said at the beginning.
                std::thread::sleep(pause);
            }
        }
        Ok(())
    });
    let parameters = [&["tls=require", "tls-verify=false"], extra].concat();
    let front = forward(directory.path(), server.socket(), &parameters);
    let began = Instant::now();
    let line = refused(&front);
    in_time(began, &line);
    ticket.ended(&line);
    line
}

#[test]
fn hello_requests_in_the_handshake() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    // In small records and in large ones, at full speed.
    let records = HELLO_REQUEST.repeat(5000);
    let mut large = vec![22, 3, 3, 0x40, 0];
    large.resize(5 + 0x4000, 0);
    for flood in [records, large] {
        let none = ["handshake-timeout=0"];
        let line = refuses(flood.clone(), Duration::ZERO, &none);
        says(
            &line,
            &["handshake: TLS: the server sends messages", "without end"],
        );
        let line = refuses(flood, Duration::ZERO, &["handshake-timeout=2"]);
        says(&line, &["handshake: "]);
    }
}

#[test]
fn hello_requests_at_leisure() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    // So few that only the deadline can end it.
    let some = HELLO_REQUEST.to_vec();
    let line = refuses(some, Duration::from_millis(2), &["handshake-timeout=1"]);
    says(&line, &["timed out after 1 second"]);
}

/// From right to left: a server, TLS that at some point sends nothing but new keys, nbdkit with the plugin.
struct Chain {
    front: Nbdkit,
    _tls: TlsServer,
    _server: Nbdkit,
    _directory: TempDir,
}

impl Chain {
    fn new(records: usize, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        let client = format!("tls-certificates={}", text(&authority.trusting("client")));
        let certificates: PathBuf = authority.server("server", LOCALHOST);
        let server = memory(directory.path(), "16M");
        let manner = Manner {
            only_keys_after: Some(records),
            ..Manner::default()
        };
        let tls = TlsServer::start(directory.path(), &certificates, server.socket(), &manner);
        let parameters = ["tls=require", "tls-hostname=localhost", &client];
        let front = forward(
            directory.path(),
            tls.socket(),
            &[&parameters, extra].concat(),
        );
        Self {
            front,
            _tls: tls,
            _server: server,
            _directory: directory,
        }
    }
}

fn ready() -> bool {
    need_all(&["nbdkit", "certtool"])
}

#[test]
fn new_keys_instead_of_the_rest_of_the_handshake() {
    if !ready() {
        return;
    }
    let chain = Chain::new(1, &["handshake-timeout=2"]);
    let began = Instant::now();
    says(&refused(&chain.front), &["handshake: "]);
    in_time(began, "told");
}

#[test]
fn new_keys_instead_of_an_answer() {
    if !ready() {
        return;
    }
    for extra in [&[][..], &["request-timeout=100ms"]] {
        let chain = Chain::new(40, extra);
        let mut front = Front::open(chain.front.socket())
            .unwrap_or_else(|refused| panic!("{refused:?}\n{}", chain.front.stderr()));
        let began = Instant::now();
        let what = format!("{extra:?}");
        // The answer has more records than it will get.
        lost(&what, front.read(0, 8 << 20).map(drop));
        in_time(began, &what);
        still_lost(&what, &mut front);
        let stderr = chain.front.stderr();
        let reason = match extra.is_empty() {
            true => "the server sends messages of TLS without end, and no data",
            false => "timed out after 0.1 seconds",
        };
        says(&stderr, &[reason]);
        front.close();
    }
}
