// SPDX-License-Identifier: BSD-3-Clause
//! Leaving before transmission, after a refusal or a list: nobody waits for the other for long, and no server
//! has reason to complain.

mod common;

use std::io;
use std::net::Shutdown;
use std::path::Path;

use common::front::Front;
use common::nbdkit::forward;
use common::need_all;
use common::scripted::bench::Bench;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{opt, rep};
use common::upstream::{Server, nbd_server, noise_file, qemu_nbd};

/// Refuses the export and takes the goodbye.
fn refuse(peer: &mut Peer) -> io::Result<()> {
    peer.greet_until(opt::GO, &Offer::default())?;
    peer.reply(opt::GO, rep::ERR_UNKNOWN, b"gone")?;
    assert_eq!(peer.option()?.option, opt::ABORT);
    Ok(())
}

#[test]
fn the_plugin_stops_sending_first_and_still_takes_the_answer() {
    let mut bench = Bench::new(&[]);
    bench.refuses("waits for the client to close", "gone", |peer| {
        refuse(peer)?;
        peer.reply(opt::ABORT, rep::ACK, &[])?;
        peer.expect_closed()?;
        // Only one direction is closed: this would be an error otherwise.
        peer.reply(opt::ABORT, rep::ACK, &[])?;
        peer.drained()
    });
    bench.refuses("answers when the client has closed", "gone", |peer| {
        refuse(peer)?;
        peer.expect_closed()?;
        peer.reply(opt::ABORT, rep::ACK, &[])?;
        peer.drained()
    });
}

#[test]
fn a_server_that_closes_its_side_only_is_left() {
    Bench::new(&[]).refuses("closes half", "gone", |peer| {
        refuse(peer)?;
        peer.shutdown(Shutdown::Write)?;
        peer.expect_closed_entirely()
    });
}

#[test]
fn a_server_that_never_closes_is_left() {
    Bench::new(&[]).refuses("never closes", "gone", |peer| {
        refuse(peer)?;
        peer.expect_closed_entirely()
    });
}

/// A server that is asked for a wrong name must not say that the connection broke, which it begins with
/// `complaint`. It may say so once: before it was asked it was tried by a connection that did break.
fn no_complaint(server: &Server, directory: &Path, complaint: &str) {
    let nbdkit = forward(directory, server.socket(), &["export=wrong"]);
    for _ in 0..5 {
        assert!(Front::open(nbdkit.socket()).is_err());
    }
    let ours = nbdkit.stderr();
    assert!(ours.contains("no export named \"wrong\""), "{ours}");
    let theirs = server.stderr();
    assert!(theirs.matches(complaint).count() <= 1, "{theirs}");
}

#[test]
fn qemu_nbd_does_not_complain() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "disk", 1 << 20, 3);
    let server = qemu_nbd(directory.path(), &image, "raw", "right", &["-v"]);
    no_complaint(&server, directory.path(), "option negotiation failed");
}

#[test]
fn nbd_server_does_not_complain() {
    if !need_all(&["nbdkit", "nbd-server", "socat"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "disk", 1 << 20, 4);
    let server = nbd_server(directory.path(), &image, "right", &[]);
    no_complaint(&server, directory.path(), "Negotiation failed");
}
