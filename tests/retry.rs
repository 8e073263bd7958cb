// SPDX-License-Identifier: BSD-3-Clause
//! `retry=N`: what time can cure is tried again, a second later; what it cannot is not.

mod common;

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{LIMIT, nbdsh_command, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::need;
use common::process::{Guarded, eventually};
use common::refusal::{MODES, refusal_in};
use common::scripted::disk::pattern;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{opt, rep};
use common::scripted::{Script, Scripted};
use common::upstream::memory;

/// Long before a thousand tries would be over.
const SOON: Duration = Duration::from_secs(10);

/// A server that is going down in the middle of a handshake.
fn hangs_up(_: &mut Peer) -> io::Result<()> {
    Ok(())
}

/// Refuses the export with this error.
fn refuses(error: u32) -> impl Fn(&mut Peer) -> io::Result<()> {
    move |peer| {
        let asked = peer.greet_until(opt::GO, &Offer::default())?;
        peer.reply(asked.option, error, b"no such disk here")?;
        peer.expect_closed()
    }
}

/// How often the plugin connects for one client before it gives up, when every try meets this server.
fn tries(
    retry: &str,
    script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
) -> usize {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let script: Script = Arc::new(script);
    // More scripts than there will be tries: a connection without a script would be served.
    let tickets: Vec<_> = (0..5)
        .map(|_| server.play_as(Arc::clone(&script), false))
        .collect();
    let front = forward(directory.path(), server.socket(), &[retry]);
    assert!(Front::open(front.socket()).is_err(), "opened");
    let accepted = server.accepted();
    for (number, ticket) in tickets.into_iter().take(accepted).enumerate() {
        ticket.ended(&format!("try {number}"));
    }
    let stderr = front.stderr();
    assert_eq!(stderr.matches("error: ").count(), 1, "one line: {stderr}");
    accepted
}

#[test]
fn nothing_is_tried_twice_by_default() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(tries("retry=0", hangs_up), 1);
}

#[test]
fn as_many_more_tries_as_the_user_said() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(tries("retry=2", hangs_up), 3);
}

#[test]
fn wrong_export_name_is_not_tried_again() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(tries("retry=3", refuses(rep::ERR_UNKNOWN)), 1);
}

#[test]
fn refusal_by_policy_is_not_tried_again() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(tries("retry=3", refuses(rep::ERR_POLICY)), 1);
    assert_eq!(tries("retry=3", refuses(rep::ERR_TLS_REQD)), 1);
}

#[test]
fn what_is_no_nbd_server_is_not_tried_again() {
    if !need("nbdkit") {
        return;
    }
    let web = |peer: &mut Peer| {
        peer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")?;
        peer.expect_closed()
    };
    assert_eq!(tries("retry=3", web), 1);
}

#[test]
fn server_that_was_shutting_down_is_tried_again() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let old = server.play(refuses(rep::ERR_SHUTDOWN));
    let front = forward(directory.path(), server.socket(), &["retry=3"]);
    let mut client = Front::open(front.socket()).expect("the second try succeeds");
    assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
    old.ended("the server that goes");
    assert_eq!(server.accepted(), 2);
}

/// Waits until the plugin has found nobody at the socket.
fn was_tried(stderr: impl Fn() -> String) {
    eventually("the first try fails", LIMIT, || {
        stderr().contains("No such file").then_some(())
    });
}

#[test]
fn server_that_appears_later_is_reached() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("later.sock");
    let front = forward(directory.path(), &socket, &["retry=60"]);
    let (mut client, _server) = thread::scope(|scope| {
        let client = scope.spawn(|| Front::open(front.socket()).expect("opens in the end"));
        was_tried(|| front.stderr());
        // Not started by the other thread, with which it would end.
        let server = Nbdkit::start_at(&socket, &["memory", "1M"]);
        (client.join().expect("no panic"), server)
    });
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    let stderr = front.stderr();
    assert_eq!(stderr.matches("error: ").count(), 0, "it worked: {stderr}");
}

#[test]
fn each_client_has_all_the_tries() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let front = forward(directory.path(), server.socket(), &["retry=1"]);
    for _ in 0..2 {
        let bad = server.play(hangs_up);
        let client = Front::open(front.socket()).expect("the second try succeeds");
        bad.finished("the first try");
        client.close();
    }
    assert_eq!(server.accepted(), 4);
}

#[test]
fn tries_are_a_second_apart() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let bad = server.play(hangs_up);
    let front = forward(directory.path(), server.socket(), &["retry=1"]);
    let begun = Instant::now();
    Front::open(front.socket()).expect("the second try succeeds");
    bad.finished("the first try");
    assert!(begun.elapsed() >= Duration::from_secs(1), "not at once");
}

// While nbdkit waits for the next try.

#[test]
fn sigterm_ends_nbdkit_between_tries() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let nobody = directory.path().join("nobody.sock");
    let mut front = forward(directory.path(), &nobody, &["retry=1000"]);
    let _client = Guarded::spawn(nbdsh_command().args(["-u", &front.uri(), "-c", "pass"]));
    was_tried(|| front.stderr());
    front.signal(libc::SIGTERM);
    let status = front.wait_timeout(SOON);
    assert!(status.is_some(), "{}", front.stderr());
}

#[test]
fn client_that_leaves_ends_the_tries() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let nobody = directory.path().join("nobody.sock");
    let mut front = forward(directory.path(), &nobody, &["retry=1000"]);
    let idle = front.idle_threads();
    let client = Guarded::spawn(nbdsh_command().args(["-u", &front.uri(), "-c", "pass"]));
    was_tried(|| front.stderr());
    drop(client);
    eventually("nbdkit gives up on the client", SOON, || {
        (front.threads() <= idle).then_some(())
    });
    assert!(front.alive());
}

// At the start, for a shared connection.

#[test]
fn shared_connection_is_tried_again_before_nbdkit_serves() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let bad = server.play(hangs_up);
    let front = forward(
        directory.path(),
        server.socket(),
        &["shared=true", "retry=3"],
    );
    bad.finished("the first try");
    assert_eq!(server.accepted(), 2);
    let mut client = Front::open(front.socket()).expect("opens");
    assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
}

#[test]
fn failure_after_the_last_try_stops_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Scripted::start(directory.path());
        let tickets: Vec<_> = (0..3).map(|_| server.play(hangs_up)).collect();
        let socket = format!("socket={}", text(server.socket()));
        let line = refusal_in(directory.path(), mode, &[&socket, "shared=true", "retry=1"]);
        assert!(line.contains("handshake: "), "{mode:?}: {line}");
        assert_eq!(server.accepted(), 2, "{mode:?}");
        drop(tickets);
    }
}

/// nbdkit that tries for ever to make its shared connection.
fn trying_to_start(directory: &Path) -> Guarded {
    let socket = format!("socket={}", text(&directory.join("nobody.sock")));
    let mut command = Command::new("nbdkit");
    command
        .current_dir(directory)
        .args(["-f", "-U", "front.sock"])
        .args(plugin_args(&[&socket, "shared=true", "retry=1000"]));
    Guarded::spawn(&mut command)
}

#[test]
fn sigterm_ends_nbdkit_between_tries_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut nbdkit = trying_to_start(directory.path());
    was_tried(|| nbdkit.stderr());
    nbdkit.signal(libc::SIGTERM);
    let ended = nbdkit.wait_timeout(SOON);
    assert!(ended.is_some(), "{}", nbdkit.stderr());
}

#[test]
fn server_that_is_there_needs_no_second_try() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &["retry=5"]);
    let client = Front::open(front.socket()).expect("opens");
    assert_eq!(client.export().size, 1 << 20);
    client.close();
}
