// SPDX-License-Identifier: BSD-3-Clause
//! `retry=N` under TLS: a connection that breaks, and a key that the server does not know yet, are tried again;
//! a verdict on a certificate is not.

mod common;
mod tls_server;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use common::clients::{LIMIT, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, LOCALHOST, key_of, keys};
use common::process::eventually;
use common::relay::Relay;
use common::scripted::peer::Peer;
use common::scripted::wire::{FIXED_NEWSTYLE, NO_ZEROES, opt, rep};
use common::scripted::{Script, Scripted};
use common::tls::{nbdkit, nbdkit_psk, says};
use tempfile::TempDir;
use tls_server::{Manner, TlsServer};

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool", "psktool"])
}

/// Consents to TLS.
fn consents(peer: &mut Peer) -> io::Result<()> {
    peer.greet(FIXED_NEWSTYLE | NO_ZEROES)?;
    let asked = peer.option()?;
    assert_eq!((asked.option, asked.data), (opt::STARTTLS, Vec::new()));
    peer.reply(opt::STARTTLS, rep::ACK, &[])
}

/// Certificates that nobody needs to be shown.
fn some_certificates() -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = format!("tls-certificates={}", text(&authority.trusting("client")));
    (directory, client)
}

/// Every try meets this server, and there are three of them; returns what is said in the end.
fn three_tries(
    credentials: &[&str],
    script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let script: Script = Arc::new(script);
    let tickets: Vec<_> = (0..5)
        .map(|_| server.play_as(Arc::clone(&script), false))
        .collect();
    let parameters = [&["tls=require", "retry=2"], credentials].concat();
    let front = forward(directory.path(), server.socket(), &parameters);
    assert!(Front::open(front.socket()).is_err(), "opened");
    assert_eq!(server.accepted(), 3, "{}", front.stderr());
    for ticket in tickets.into_iter().take(3) {
        ticket.ended("a try");
    }
    last_words(&front)
}

/// The one line in which nbdkit says what is wrong.
fn last_words(front: &Nbdkit) -> String {
    let stderr = front.stderr();
    let mut lines = stderr.lines().filter(|line| line.contains("error: "));
    let line = lines.next().unwrap_or_else(|| panic!("no word: {stderr}"));
    assert_eq!(lines.next(), None, "one line: {stderr}");
    line.to_owned()
}

#[test]
fn end_behind_the_consent() {
    if !ready() {
        return;
    }
    let (_certificates, client) = some_certificates();
    // It is no attack: nothing was put behind the consent. The plugin may have begun with TLS
    // before it sees the end.
    let line = three_tries(&[&client], |peer| {
        consents(peer)?;
        peer.shutdown(std::net::Shutdown::Both)
    });
    says(&line, &["handshake: "]);
    let ends = ["closed the connection", "reset by peer", "Broken pipe"];
    assert!(ends.iter().any(|end| line.contains(end)), "{line}");
}

#[test]
fn end_in_the_middle_of_the_tls_handshake() {
    if !ready() {
        return;
    }
    let (_certificates, client) = some_certificates();
    let line = three_tries(&[&client], |peer| {
        consents(peer)?;
        // The rest is left unread, and thrown back at the plugin as a reset.
        peer.receive(5).map(drop)
    });
    says(&line, &["handshake", "Connection reset by peer"]);
    let line = three_tries(&[&client], |peer| {
        consents(peer)?;
        let header = peer.receive(5)?;
        peer.receive(u16::from_be_bytes([header[3], header[4]]).into())?;
        peer.shutdown(std::net::Shutdown::Both)
    });
    says(&line, &["handshake", "the server closed the connection"]);
}

#[test]
fn end_right_after_the_tls_handshake() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = format!("tls-certificates={}", text(&authority.trusting("client")));
    let server = Scripted::start(directory.path());
    // Behind TLS is a server that is about to go.
    for _ in 0..3 {
        drop(server.play(|peer| peer.greet(FIXED_NEWSTYLE | NO_ZEROES)));
    }
    let tls = TlsServer::start(
        directory.path(),
        &authority.server("server", LOCALHOST),
        server.socket(),
        &Manner::default(),
    );
    let parameters = [
        "tls=require",
        "tls-hostname=localhost",
        "retry=3",
        client.as_str(),
    ];
    let front = forward(directory.path(), tls.socket(), &parameters);
    let mut client = Front::open(front.socket())
        .unwrap_or_else(|refused| panic!("{refused:?}\n{}", front.stderr()));
    assert_eq!(client.read(0, 512).map(|data| data.len()), Ok(512));
    client.close();
    assert_eq!(server.accepted(), 4, "{}", front.stderr());
}

/// A server that learns the key of alice, or another one, only after it has refused it.
fn learns_the_key(at_first: &[&str]) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let ours = keys(directory.path(), "ours", &["alice"]);
    let theirs = keys(directory.path(), "theirs", at_first);
    let upstream = nbdkit_psk(directory.path(), &theirs, &["memory", "1M"]);
    let psk = format!("tls-psk={}", text(&ours));
    let parameters = ["tls=require", &psk, "tls-username=alice", "retry=15"];
    let front = forward(directory.path(), upstream.socket(), &parameters);
    thread::scope(|scope| {
        scope.spawn(|| {
            eventually("the first try has failed", LIMIT, || {
                front.stderr().contains("will try again").then_some(())
            });
            teach(&theirs, "alice", &key_of(&ours, "alice"));
        });
        let mut client = Front::open(front.socket())
            .unwrap_or_else(|refused| panic!("{refused:?}\n{}", front.stderr()));
        assert_eq!(client.read(0, 512).map(|data| data.len()), Ok(512));
        client.close();
    });
}

/// Replaces what is in a file of keys.
fn teach(file: &Path, user: &str, key: &str) {
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(file)
        .expect("the server's keys");
    writeln!(file, "{user}:{key}").expect("write a key");
}

#[test]
fn server_that_does_not_know_the_user_yet() {
    if !ready() {
        return;
    }
    learns_the_key(&["bob"]);
}

#[test]
fn server_that_has_an_old_key() {
    if !ready() {
        return;
    }
    learns_the_key(&["alice"]);
}

#[test]
fn certificate_that_is_not_accepted_is_looked_at_once() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let theirs = Authority::new(directory.path(), "theirs").server("server", LOCALHOST);
    let ours = Authority::new(directory.path(), "ours").trusting("client");
    let client = format!("tls-certificates={}", text(&ours));
    let upstream = nbdkit(directory.path(), &theirs, &["memory", "1M"]);
    let relay = Relay::unix(directory.path(), "relay.sock", upstream.socket());
    let parameters = ["tls=require", "retry=1000", &client];
    let front = relay.forward(directory.path(), &parameters);
    assert!(Front::open(front.socket()).is_err(), "opened");
    assert_eq!(relay.recordings().len(), 1);
    says(&last_words(&front), &["certificate is not accepted"]);
}

#[test]
fn bytes_behind_the_consent_are_met_once() {
    if !ready() {
        return;
    }
    let (_certificates, client) = some_certificates();
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let ticket = server.play(|peer| {
        peer.greet(FIXED_NEWSTYLE | NO_ZEROES)?;
        peer.option()?;
        let consent = common::scripted::wire::option_reply(opt::STARTTLS, rep::ACK, &[]);
        peer.send(&[&consent[..], b"x"].concat())?;
        peer.expect_closed()
    });
    let parameters = ["tls=require", "retry=1000", client.as_str()];
    let front = forward(directory.path(), server.socket(), &parameters);
    assert!(Front::open(front.socket()).is_err(), "opened");
    ticket.finished("one connection");
    assert_eq!(server.accepted(), 1);
    says(&last_words(&front), &["may be an attack"]);
}
