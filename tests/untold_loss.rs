// SPDX-License-Identifier: BSD-3-Clause
//! What was answered and may be lost all the same is told, every time.

mod common;

use std::time::Duration;

use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::process::eventually;
use common::scripted::Scripted;
use common::scripted::disk::Disk;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, errno};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

fn told(front: &Nbdkit, times: usize) {
    let told = || {
        let log = front.stderr();
        let lines = log.lines().filter(|line| line.contains("error: warning: "));
        lines.filter(|line| line.contains("may be lost")).count()
    };
    eventually("it is told", LIMIT, || (told() >= times).then_some(()));
    assert_eq!(told(), times, "{}", front.stderr());
}

/// A client that writes, and whose server is gone by the time that this returns.
fn write_and_lose(server: &Scripted, front: impl FnOnce() -> Nbdkit) -> (Nbdkit, Front) {
    let script = server.play(|peer: &mut Peer| {
        peer.negotiate(&Offer::default())?;
        let write = peer.request()?;
        peer.answer(&write, &mut Disk::new(1 << 20))
    });
    let front = front();
    let mut client = Front::open(front.socket()).expect("an export");
    assert_eq!(client.write(0, &[1; 512]), Ok(()));
    script.finished("the server leaves without a word");
    (front, client)
}

#[test]
fn a_client_that_leaves_after_a_loss() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let start = || forward(directory.path(), server.socket(), &[]);
    let (front, client) = write_and_lose(&server, start);
    client.close();
    told(&front, 1);
}

#[test]
fn nbdkit_that_ends_after_a_loss() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    for extra in [&[][..], &["shared=true"]] {
        let start = || forward(directory.path(), server.socket(), extra);
        let (mut front, client) = write_and_lose(&server, start);
        front.signal(libc::SIGTERM);
        drop(client);
        assert!(front.wait_timeout(LIMIT).is_some(), "{}", front.stderr());
        told(&front, 1);
    }
}

#[test]
fn a_shared_connection_that_is_made_anew_after_a_loss() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let start = || forward(directory.path(), server.socket(), &["shared=true"]);
    let (front, mut client) = write_and_lose(&server, start);
    let mut next = Front::open(front.socket()).expect("an export");
    assert!(next.read(0, 512).is_ok());
    told(&front, 1);
    assert_eq!(client.flush(), Err(errno::ESHUTDOWN));
    told(&front, 1);
}

#[test]
fn a_loss_that_a_request_has_told_of_is_told_once() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let start = || forward(directory.path(), server.socket(), &[]);
    let (front, mut client) = write_and_lose(&server, start);
    assert_eq!(client.flush(), Err(errno::ESHUTDOWN));
    client.close();
    told(&front, 0);
}

#[test]
fn each_final_flush_that_fails() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let front = forward(directory.path(), server.socket(), &[]);
    for times in 1..=2 {
        server.play(|peer: &mut Peer| {
            peer.negotiate(&Offer::simple())?;
            let write = peer.request()?;
            peer.answer(&write, &mut Disk::new(1 << 20))?;
            let flush = peer.request()?;
            peer.send(&wire::simple(flush.cookie, errno::EIO))?;
            peer.answered(&flush);
            peer.expect_closed()
        });
        let mut client = Front::open(front.socket()).expect("an export");
        assert_eq!(client.write(0, &[1; 512]), Ok(()));
        client.close();
        told(&front, times);
    }
}
