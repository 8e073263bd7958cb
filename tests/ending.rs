// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit ends when it is told to, and lets go of a client that has left, whatever the server does.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::process::eventually;
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{cmd, errno};
use common::scripted::{Gate, Scripted};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// The server takes one request and never answers; `taken` opens when it is there.
fn silent_once(server: &Scripted, taken: &Gate) {
    let taken = taken.clone();
    server.play(move |peer: &mut Peer| {
        peer.negotiate(&Offer::default())?;
        peer.request()?;
        taken.open();
        peer.expect_closed()
    });
}

fn open(front: &Nbdkit) -> Front {
    Front::open(front.socket()).unwrap_or_else(|error| panic!("{error:?}\n{}", front.stderr()))
}

/// A client whose read hangs at the server.
fn hanging_client(server: &Scripted, front: &Nbdkit) -> (Front, u64) {
    let taken = Gate::default();
    silent_once(server, &taken);
    let mut client = open(front);
    let read = client.submit_read(0, 512);
    taken.pass();
    (client, read)
}

fn start(directory: &Path, extra: &[&str]) -> (Scripted, Nbdkit) {
    let server = Scripted::start(directory);
    let front = forward(directory, server.socket(), extra);
    (server, front)
}

/// nbdkit must end, and not before `least`.
fn ends(front: &mut Nbdkit, least: Duration) {
    let start = Instant::now();
    front.ends_well();
    assert!(start.elapsed() >= least, "after {:?}", start.elapsed());
}

#[test]
fn a_request_that_hangs_does_not_keep_nbdkit_whose_client_waits() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, mut front) = start(directory.path(), &["close-timeout=300ms"]);
    let (client, read) = hanging_client(&server, &front);
    front.signal(libc::SIGTERM);
    assert_eq!(client.wait_read(read), Err(errno::ESHUTDOWN));
    drop(client);
    ends(&mut front, Duration::ZERO);
    let log = front.stderr();
    assert!(
        log.contains("no answer after the client has left, or nbdkit was told to end"),
        "{log}"
    );
}

#[test]
fn a_request_that_hangs_does_not_keep_nbdkit_whose_client_has_gone() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, mut front) = start(directory.path(), &["close-timeout=300ms"]);
    let (client, _read) = hanging_client(&server, &front);
    drop(client);
    ends(&mut front, Duration::ZERO);
}

#[test]
fn a_client_that_leaves_a_hanging_request_takes_its_connection_along() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, front) = start(directory.path(), &["close-timeout=300ms"]);
    let idle = front.idle_threads();
    let (client, _read) = hanging_client(&server, &front);
    drop(client);
    eventually("nbdkit lets go of the client", LIMIT, || {
        (front.threads() <= idle).then_some(())
    });
    let mut next = open(&front);
    assert_eq!(next.read(0, 512), Ok(pattern(0, 512)));
}

#[test]
fn an_answer_within_close_timeout_still_counts() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, mut front) = start(directory.path(), &["close-timeout=20"]);
    let (taken, answer) = (Gate::default(), Gate::default());
    server.play({
        let (taken, answer) = (taken.clone(), answer.clone());
        move |peer: &mut Peer| {
            let mut disk = Disk::new(1 << 20);
            peer.negotiate(&Offer::default())?;
            let request = peer.request()?;
            taken.open();
            answer.pass();
            peer.answer(&request, &mut disk)?;
            peer.serve(&mut disk)
        }
    });
    let mut client = open(&front);
    let read = client.submit_read(512, 512);
    taken.pass();
    front.signal(libc::SIGTERM);
    eventually("nbdkit notices its end", LIMIT, || {
        front
            .stderr()
            .contains("aborting sleep because of server shut down")
            .then_some(())
    });
    answer.open();
    assert_eq!(client.wait_read(read), Ok(pattern(512, 512)));
    drop(client);
    ends(&mut front, Duration::ZERO);
}

#[test]
fn a_hanging_request_in_a_shared_connection_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let taken = Gate::default();
    silent_once(&server, &taken);
    let extra = ["shared=true", "close-timeout=300ms"];
    let mut front = forward(directory.path(), server.socket(), &extra);
    let mut client = open(&front);
    client.submit_read(0, 512);
    taken.pass();
    drop(client);
    ends(&mut front, Duration::ZERO);
}

#[test]
fn a_server_that_does_not_read_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, mut front) = start(directory.path(), &["close-timeout=300ms"]);
    let (negotiated, ended) = (Gate::default(), Gate::default());
    server.play({
        let (negotiated, ended) = (negotiated.clone(), ended.clone());
        move |peer: &mut Peer| {
            peer.negotiate(&Offer {
                size: 64 << 20,
                ..Offer::default()
            })?;
            negotiated.open();
            ended.pass();
            Ok(())
        }
    });
    let mut client = open(&front);
    negotiated.pass();
    client.submit_write(0, &vec![7; 8 << 20]);
    drop(client);
    ends(&mut front, Duration::ZERO);
    ended.open();
}

#[test]
fn a_server_that_says_nothing_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    // With the default times a handshake may take minutes.
    let (server, mut front) = start(directory.path(), &[]);
    let accepted = Gate::default();
    server.play({
        let accepted = accepted.clone();
        move |peer: &mut Peer| {
            accepted.open();
            peer.expect_closed()
        }
    });
    let socket = front.socket().to_owned();
    let client = std::thread::spawn(move || Front::open(&socket).map(drop));
    accepted.pass();
    ends(&mut front, Duration::ZERO);
    // nbdkit refuses the export, or just closes the connection: to the client that is a panic.
    assert!(!matches!(client.join(), Ok(Ok(()))));
}

#[test]
fn an_ordinary_end_says_nothing() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    for extra in [&[][..], &["shared=true"]] {
        let server = Scripted::start(&tempfile::tempdir_in(&directory).expect("directory").keep());
        let mut front = forward(directory.path(), server.socket(), extra);
        let mut client = open(&front);
        assert_eq!(client.read(0, 512), Ok(pattern(0, 512)));
        client.close();
        let mut client = open(&front);
        assert_eq!(client.write(0, &[1; 512]), Ok(()));
        front.signal(libc::SIGTERM);
        drop(client);
        ends(&mut front, Duration::ZERO);
        let log = front.stderr();
        assert!(!log.contains("error:"), "{log}");
        server.no_complaints("an ordinary end");
    }
}

/// What the server is asked when a client leaves after `ask`, or is still there when nbdkit ends.
fn last_requests(quit: bool, offer: Offer, ask: impl FnOnce(&mut Front)) -> Vec<u16> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, mut front) = start(directory.path(), &[]);
    let (tell, told) = std::sync::mpsc::channel();
    let script = server.play(move |peer: &mut Peer| {
        let mut disk = Disk::new(offer.size);
        peer.negotiate(&offer)?;
        loop {
            let request = peer.request()?;
            let _ = tell.send(request.kind);
            if request.kind == cmd::DISC {
                return Ok(());
            }
            peer.answer(&request, &mut disk)?;
        }
    });
    let mut client = open(&front);
    ask(&mut client);
    if quit {
        front.signal(libc::SIGTERM);
    }
    client.close();
    script.finished("the server is left with NBD_CMD_DISC");
    ends(&mut front, Duration::ZERO);
    told.iter().collect()
}

#[test]
fn whoever_wrote_is_flushed_before_the_server_is_left() {
    if !need("nbdkit") {
        return;
    }
    let write = |client: &mut Front| assert_eq!(client.write(0, &[1; 512]), Ok(()));
    for quit in [false, true] {
        assert_eq!(
            last_requests(quit, Offer::default(), write),
            [cmd::WRITE, cmd::FLUSH, cmd::DISC],
            "nbdkit ends: {quit}"
        );
    }
}

#[test]
fn nobody_is_flushed_without_need() {
    if !need("nbdkit") {
        return;
    }
    let read = |client: &mut Front| assert!(client.read(0, 512).is_ok());
    let flushed = |client: &mut Front| {
        assert_eq!(client.write(0, &[1; 512]), Ok(()));
        assert_eq!(client.flush(), Ok(()));
    };
    let permanent = |client: &mut Front| {
        let fua = common::scripted::wire::cmd_flag::FUA;
        let cookie = client.submit(cmd::WRITE, fua, 0, 512, &[1; 512]);
        assert_eq!(client.wait(cookie), Ok(()));
    };
    for quit in [false, true] {
        let asked = |ask: &dyn Fn(&mut Front)| last_requests(quit, Offer::default(), ask);
        assert_eq!(asked(&read), [cmd::READ, cmd::DISC]);
        assert_eq!(asked(&flushed), [cmd::WRITE, cmd::FLUSH, cmd::DISC]);
        assert_eq!(asked(&permanent), [cmd::WRITE, cmd::DISC]);
    }
}

#[test]
fn a_final_flush_that_fails_is_told() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, mut front) = start(directory.path(), &[]);
    let script = server.play(|peer: &mut Peer| {
        let mut disk = Disk::new(1 << 20);
        peer.negotiate(&Offer::simple())?;
        let write = peer.request()?;
        peer.answer(&write, &mut disk)?;
        let flush = peer.request()?;
        peer.send(&common::scripted::wire::simple(flush.cookie, errno::EIO))?;
        peer.answered(&flush);
        peer.expect_closed()
    });
    let mut client = open(&front);
    assert_eq!(client.write(0, &[1; 512]), Ok(()));
    client.close();
    script.ended("a failed flush");
    ends(&mut front, Duration::ZERO);
    let log = front.stderr();
    let told = "warning: ";
    let line = log.lines().find(|line| line.contains(told));
    assert!(
        line.is_some_and(
            |line| line.contains("NBD_CMD_FLUSH: server answered NBD_EIO")
                && line.contains("since the last flush may be lost")
        ),
        "{log}"
    );
}
