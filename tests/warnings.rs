// SPDX-License-Identifier: BSD-3-Clause
//! What a user must know although everything works: shown without -v, once for each kind.

mod common;

use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need;
use common::process::eventually;
use common::scripted::Scripted;
use common::scripted::disk::Disk;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{opt, rep};
use std::time::Duration;

/// nbdkit before the server, not verbose.
fn quiet(directory: &std::path::Path, server: &Scripted, extra: &[&str]) -> Nbdkit {
    let socket = format!("socket={}", server.socket().display());
    let plugin = common::plugin().display().to_string();
    let args = [&[plugin.as_str(), socket.as_str()], extra].concat();
    Nbdkit::start(directory, &args)
}

/// A server that has no TLS.
fn in_clear(peer: &mut Peer) -> std::io::Result<()> {
    let offer = Offer::default();
    let asked = peer.greet_until(opt::STARTTLS, &offer)?;
    peer.reply(asked.option, rep::ERR_UNSUP, b"")?;
    peer.finish_options(&offer)?;
    peer.serve(&mut Disk::new(offer.size))
}

#[test]
fn going_on_in_clear_is_told_once() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let front = quiet(directory.path(), &server, &["tls=on"]);
    for _ in 0..3 {
        let script = server.play(in_clear);
        let mut client = Front::open(front.socket()).expect("an export");
        assert!(client.read(0, 512).is_ok());
        client.close();
        script.ended("a client");
    }
    let log = front.stderr();
    let warnings: Vec<&str> = log.lines().collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(
        warnings[0].contains("error: warning: /")
            && warnings[0].contains(": server refused NBD_OPT_STARTTLS")
            && warnings[0].ends_with("going on in clear"),
        "{log}"
    );
}

/// Of several servers each is told of, by its name.
#[test]
fn each_server_without_tls_is_told() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let other = directory.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let servers = [Scripted::start(directory.path()), Scripted::start(&other)];
    let second = format!("socket={}", servers[1].socket().display());
    let extra = ["servers=spread", "tls=on", &second];
    let front = quiet(directory.path(), &servers[0], &extra);
    let scripts = servers.each_ref().map(|server| server.play(in_clear));
    let mut client = Front::open(front.socket()).expect("an export");
    assert!(client.read(0, 512).is_ok());
    client.close();
    for script in scripts {
        script.ended("a client");
    }
    let log = front.stderr();
    for server in &servers {
        let name = format!("{}: server refused", server.socket().display());
        let told = |line: &str| line.contains(&name) && line.ends_with("; going on in clear");
        assert_eq!(log.lines().filter(|line| told(line)).count(), 1, "{log}");
    }
}

/// What is told of an oldstyle server.
fn told_of_oldstyle(extra: &str) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let front = quiet(directory.path(), &server, &[extra]);
    server.play(|peer: &mut Peer| {
        let offer = Offer::simple();
        peer.greet_oldstyle(&offer)?;
        peer.serve(&mut Disk::new(offer.size))
    });
    Front::open(front.socket()).expect("an export").close();
    front.stderr()
}

#[test]
fn an_oldstyle_server_without_tls_is_told() {
    if !need("nbdkit") {
        return;
    }
    let log = told_of_oldstyle("tls=on");
    assert!(
        log.ends_with(": oldstyle servers have no TLS; going on in clear\n"),
        "{log}"
    );
}

#[test]
fn a_name_that_an_oldstyle_server_cannot_know_is_told() {
    if !need("nbdkit") {
        return;
    }
    let log = told_of_oldstyle("export=disk");
    assert!(
        log.ends_with(": oldstyle server: it has one export only, the name \"disk\" is ignored\n"),
        "{log}"
    );
    assert_eq!(told_of_oldstyle("export="), "", "nothing was ignored");
}

#[test]
fn a_handshake_that_takes_long_says_what_it_waits_for() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let front = quiet(directory.path(), &server, &["handshake-timeout=3"]);
    server.play(|peer: &mut Peer| peer.expect_closed());
    std::thread::scope(|scope| {
        let client = scope.spawn(|| Front::open(front.socket()).map(drop));
        eventually("the warning", Duration::from_secs(20), || {
            front.stderr().contains("warning: ").then_some(())
        });
        assert!(client.join().expect("an answer").is_err());
    });
    let log = front.stderr();
    let warning = log.lines().next().unwrap_or_default();
    assert!(
        warning.ends_with("handshake: still waiting for its greeting"),
        "{log}"
    );
    assert!(log.contains("timed out after 3 seconds"), "{log}");
}

#[test]
fn nothing_is_told_where_nothing_is_wrong() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let front = quiet(directory.path(), &server, &[]);
    let mut client = Front::open(front.socket()).expect("an export");
    assert!(client.write(0, &[1; 512]).is_ok());
    client.close();
    assert_eq!(front.stderr(), "");
}
