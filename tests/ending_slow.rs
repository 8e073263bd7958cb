// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit ends when it is told to also where a server is slow but never silent for long.

mod common;

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, FIXED_NEWSTYLE, NO_ZEROES, cmd, errno, flag, rep};
use common::scripted::{Gate, Scripted};

/// Generous: the machine may be busy. What is slow takes much longer.
const LIMIT: Duration = Duration::from_secs(15);

fn ends(front: &mut Nbdkit) {
    front.signal(libc::SIGTERM);
    let start = Instant::now();
    let status = front.wait_timeout(LIMIT);
    let log = front.stderr();
    assert!(status.is_some_and(|status| status.success()), "{log}");
    assert!(start.elapsed() < LIMIT);
}

/// The plugin cuts this into a thousand pieces, each of which takes the server a moment.
fn long_zero(directory: &Path, leave: bool, extra: &[&str]) {
    let server = Scripted::start(directory);
    let begun = Gate::default();
    server.play({
        let begun = begun.clone();
        move |peer: &mut Peer| {
            let offer = Offer {
                size: 1 << 30,
                flags: flag::HAS_FLAGS | flag::SEND_FLUSH,
                ..Offer::default()
            };
            peer.negotiate(&offer)?;
            loop {
                let request = peer.request()?;
                if request.kind == cmd::DISC {
                    return Ok(());
                }
                begun.open();
                thread::sleep(Duration::from_millis(50));
                peer.send(&wire::none(request.cookie))?;
                peer.answered(&request);
            }
        }
    });
    let extra = [&["close-timeout=300ms"], extra].concat();
    let mut front = forward(directory, server.socket(), &extra);
    let mut client = Front::open(front.socket()).expect("an export");
    let zero = client.submit(cmd::WRITE_ZEROES, 0, 0, 1 << 30, &[]);
    begun.pass();
    if !leave {
        front.signal(libc::SIGTERM);
        assert_eq!(client.wait(zero), Err(errno::ESHUTDOWN));
    }
    drop(client);
    ends(&mut front);
}

#[test]
fn a_long_range_in_pieces_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    long_zero(directory.path(), true, &[]);
}

#[test]
fn a_long_range_in_pieces_does_not_keep_nbdkit_whose_client_waits() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    long_zero(directory.path(), false, &[]);
}

#[test]
fn a_long_range_in_pieces_does_not_keep_nbdkit_in_shared_mode() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    long_zero(directory.path(), true, &["shared=true"]);
}

/// A message of minutes, one byte after the other.
fn trickle(peer: &mut Peer, begun: &Gate) -> io::Result<()> {
    peer.greet(FIXED_NEWSTYLE | NO_ZEROES)?;
    let asked = peer.option()?;
    peer.send(&wire::option_reply_header(
        asked.option,
        rep::ERR_UNSUP,
        4000,
    ))?;
    begun.open();
    loop {
        peer.send(b"x")?;
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_handshake_that_trickles_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let begun = Gate::default();
    server.play({
        let begun = begun.clone();
        move |peer: &mut Peer| trickle(peer, &begun)
    });
    let mut front = forward(directory.path(), server.socket(), &[]);
    let socket = front.socket().to_owned();
    let client = thread::spawn(move || Front::open(&socket).map(drop));
    begun.pass();
    ends(&mut front);
    assert!(!matches!(client.join(), Ok(Ok(()))), "no export");
}
