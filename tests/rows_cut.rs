// SPDX-License-Identifier: BSD-3-Clause
//! Row Z1 of the catalogue: the connection breaks after every single byte of a conversation.

mod common;

use std::io;
use std::time::Duration;

use common::front::Front;
use common::process::eventually;
use common::scripted::End;
use common::scripted::bench::{Bench, LENGTH, OFFSET, lost};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{FIXED_NEWSTYLE, NO_ZEROES, cmd};

/// How the server speaks until transmission begins.
type Handshake = fn(&mut Peer, &Offer) -> io::Result<()>;

/// How the conversation went, from the client's side.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Refused,
    Opened,
    Read,
}

/// The whole conversation: handshake, one read, goodbye.
fn talk(peer: &mut Peer, offer: &Offer, handshake: Handshake) -> io::Result<()> {
    handshake(peer, offer)?;
    peer.serve(&mut Disk::new(offer.size))
}

/// The client's half of it.
fn listen(bench: &Bench) -> Reached {
    let Ok(mut front) = Front::open(bench.socket()) else {
        return Reached::Refused;
    };
    let data = front.read(OFFSET, LENGTH);
    front.close();
    match data {
        Ok(data) => {
            assert_eq!(data, pattern(OFFSET, LENGTH as usize));
            Reached::Read
        }
        error => {
            lost("a broken connection", error.map(drop));
            Reached::Opened
        }
    }
}

fn cut_at_every_byte(offer: &Offer, handshake: Handshake) {
    let mut bench = Bench::new(&[]);
    bench.serves_the_next("before");

    // The first, complete conversation tells how long it is.
    let (sent, length) = std::sync::mpsc::channel();
    let whole = bench.play({
        let offer = offer.clone();
        move |peer| {
            handshake(peer, &offer)?;
            let before = peer.sent();
            peer.serve(&mut Disk::new(offer.size))?;
            sent.send((before, peer.sent())).map_err(io::Error::other)
        }
    });
    assert_eq!(listen(&bench), Reached::Read);
    whole.finished("the whole conversation");
    let (handshake_length, length) = length.recv().expect("the script ended well");
    assert!(length > handshake_length);

    let quiet = bench.nbdkit().descriptors();
    // Where a question was not answered the plugin tries without it, and finds nobody.
    bench.server().close_others(true);
    for count in 0..length {
        let ticket = bench.play({
            let offer = offer.clone();
            move |peer| {
                peer.cut_after(count);
                talk(peer, &offer, handshake)
            }
        });
        let expected = if count < handshake_length {
            Reached::Refused
        } else {
            Reached::Opened
        };
        assert_eq!(
            listen(&bench),
            expected,
            "cut after {count} of {handshake_length}, {length} bytes"
        );
        assert_eq!(ticket.end(), End::Left, "cut after {count} bytes");
    }

    bench.server().close_others(false);
    bench.serves_the_next("after all cuts");
    eventually(
        "every descriptor is closed again",
        Duration::from_secs(10),
        || (bench.nbdkit().descriptors() <= quiet).then_some(()),
    );
}

#[test]
fn z1_fixed_newstyle_with_structured_replies() {
    let offer = Offer {
        block_sizes: Some((1, 4096, 32 << 20)),
        ..Offer::default()
    };
    cut_at_every_byte(&offer, Peer::negotiate);
}

#[test]
fn z1_fixed_newstyle_with_simple_replies() {
    cut_at_every_byte(&Offer::simple(), Peer::negotiate);
}

#[test]
fn z1_export_name_without_padding() {
    let offer = Offer {
        go: false,
        handshake_flags: FIXED_NEWSTYLE | NO_ZEROES,
        ..Offer::simple()
    };
    cut_at_every_byte(&offer, Peer::negotiate);
}

#[test]
fn z1_export_name_with_padding() {
    cut_at_every_byte(
        &Offer {
            handshake_flags: 0,
            ..Offer::simple()
        },
        Peer::negotiate,
    );
}

#[test]
fn z1_oldstyle() {
    cut_at_every_byte(&Offer::simple(), Peer::greet_oldstyle);
}

/// The other direction: the server leaves after it took so many bytes of the plugin's requests.
#[test]
fn z1_requests_that_are_not_taken_to_their_end() {
    let mut bench = Bench::new(&[]);
    let request = 28 + LENGTH as usize;
    for count in (0..28).chain([28, 29, request - 1]) {
        let ticket = bench.play(move |peer| {
            peer.negotiate(&Offer::simple())?;
            peer.receive(count).map(drop)
        });
        let mut front = bench.open();
        let write = front.submit(cmd::WRITE, 0, OFFSET, LENGTH, &[1; LENGTH as usize]);
        lost(
            &format!("left after {count} bytes of the request"),
            front.wait(write),
        );
        front.close();
        ticket.finished("the script");
    }
    bench.serves_the_next("after all");
}
