// SPDX-License-Identifier: BSD-3-Clause
//! A shared connection that was lost is made anew by one attempt, for all who wait for it.

mod common;

use std::path::Path;
use std::thread;
use std::time::Duration;

use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::process::eventually;
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::{Gate, Scripted};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// nbdkit whose shared connection has been lost.
fn after_a_loss(directory: &Path, extra: &[&str]) -> (Scripted, Nbdkit) {
    let server = Scripted::start(directory);
    let dies = server.play(|peer| peer.negotiate(&Offer::default()));
    let extra = [&["shared=true"], extra].concat();
    let front = forward(directory, server.socket(), &extra);
    dies.finished("the first connection");
    (server, front)
}

/// Waits until so many clients wait for an export. nbdkit has one thread for each until then.
fn until_waiting(front: &Nbdkit, clients: usize) {
    eventually("the clients wait", LIMIT, || {
        (front.stderr().matches("nbd: open readonly").count() >= clients).then_some(())
    });
}

#[test]
fn one_attempt_is_enough_for_all() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, front) = after_a_loss(directory.path(), &[]);
    let (here, end) = (Gate::default(), Gate::default());
    server.play({
        let (here, end) = (here.clone(), end.clone());
        move |_: &mut Peer| {
            here.open();
            end.pass();
            Ok(())
        }
    });
    thread::scope(|scope| {
        let open = || Front::open(front.socket()).map(drop);
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
        here.pass();
        until_waiting(&front, clients.len());
        // All of them are told by the end of this one connection.
        end.open();
        for client in clients {
            assert!(client.join().expect("an answer").is_err());
        }
    });
    assert_eq!(server.accepted(), 2);
    assert!(Front::open(front.socket()).is_ok(), "the server is back");
}

#[test]
fn an_attempt_outlives_the_client_that_began_it() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, front) = after_a_loss(directory.path(), &[]);
    let idle = front.idle_threads();
    let (here, go_on) = (Gate::default(), Gate::default());
    server.play({
        let (here, go_on) = (here.clone(), go_on.clone());
        move |peer: &mut Peer| {
            here.open();
            go_on.pass();
            peer.negotiate(&Offer::default())?;
            peer.serve(&mut Disk::new(1 << 20))
        }
    });
    // A client in a process of its own, since only its end makes it leave.
    let uri = front.uri();
    let mut command = common::clients::nbdsh_command();
    let first = common::process::Guarded::spawn(command.args(["-u", &uri, "-c", "pass"]));
    here.pass();
    drop(first);
    eventually("the first client has left", LIMIT, || {
        (front.threads() <= idle).then_some(())
    });
    thread::scope(|scope| {
        let second = scope.spawn(|| Front::open(front.socket()));
        until_waiting(&front, 2);
        go_on.open();
        let mut second = second.join().expect("an answer").expect("an export");
        assert_eq!(second.read(512, 512), Ok(pattern(512, 512)));
    });
    assert_eq!(server.accepted(), 2);
}

#[test]
fn an_attempt_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    // With the default times it may take minutes.
    let (server, mut front) = after_a_loss(directory.path(), &["retry=1000"]);
    let here = Gate::default();
    server.play({
        let here = here.clone();
        move |peer: &mut Peer| {
            here.open();
            peer.expect_closed()
        }
    });
    let mut command = common::clients::nbdsh_command();
    let uri = front.uri();
    let client = common::process::Guarded::spawn(command.args(["-u", &uri, "-c", "pass"]));
    here.pass();
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some(), "{}", front.stderr());
    drop(client);
}
