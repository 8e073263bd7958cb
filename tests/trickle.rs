// SPDX-License-Identifier: BSD-3-Clause
//! The deadline of a request holds while bytes keep coming, or going: a server that never pauses and never ends
//! is late like others.

mod common;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use common::scripted::Gate;
use common::scripted::bench::{Bench, LENGTH, OFFSET, lost};
use common::scripted::disk::{pattern, piece};
use common::scripted::peer::{Offer, Peer, Request};
use common::scripted::wire::{self, DONE, MORE, cmd, errno};

/// What these tests start the plugin with.
const TIMEOUT: &str = "request-timeout=1";
/// When a request must have failed, counted from when it was sent. Each reply here would take longer.
const IN_TIME: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(5);
/// Between two pieces of a trickle.
const PAUSE: Duration = Duration::from_millis(10);
/// Where reads point to that get no answer at all.
const SILENT: u64 = 256 << 10;
/// Received straight into the buffer of its owner.
const LARGE: u32 = 64 << 10;

type Pieces = Box<dyn Iterator<Item = Vec<u8>>>;

/// Says that it is over when the plugin hangs up; a reply that comes to its end is a failure.
fn trickle(peer: &mut Peer, pieces: Pieces, pause: Duration) -> io::Result<()> {
    for piece in pieces {
        peer.send(&piece)?;
        if peer.readable_within(pause) {
            return peer.expect_closed();
        }
    }
    panic!("the deadline did not hold");
}

fn bytewise(reply: Vec<u8>) -> Pieces {
    Box::new(reply.into_iter().map(|byte| vec![byte]))
}

/// Reads of so many bytes, sent in this order, must all fail at the deadline, although the answer to the one at
/// [`OFFSET`] keeps coming, in `pieces` with a `pause` after each.
fn row(
    reads: &[(u64, u32)],
    offer: Offer,
    pause: Duration,
    pieces: impl Fn(&Request) -> Pieces + Send + Sync + 'static,
) {
    let mut bench = Bench::new(&[TIMEOUT]);
    let arrived: Vec<Gate> = reads.iter().map(|_| Gate::default()).collect();
    let ticket = bench.play({
        let arrived = arrived.clone();
        move |peer| {
            peer.negotiate(&offer)?;
            let mut answered = None;
            for gate in &arrived {
                let request = peer.request()?;
                if request.offset == OFFSET {
                    answered = Some(pieces(&request));
                }
                gate.open();
            }
            trickle(peer, answered.expect("a read at OFFSET"), pause)
        }
    });

    let mut front = bench.open();
    let started = Instant::now();
    // The first one receives, another one waits.
    let mut cookies = Vec::new();
    for ((offset, length), gate) in reads.iter().zip(&arrived) {
        cookies.push(front.submit_read(*offset, *length));
        gate.pass();
    }
    for cookie in cookies {
        lost("trickle", front.wait_read(cookie).map(drop));
    }
    in_time(started);
    front.close();
    ticket.ended("trickle");
    says(&bench, "no complete answer: timed out");
    bench.serves_the_next("trickle");
}

fn in_time(started: Instant) {
    let elapsed = started.elapsed();
    assert!(IN_TIME.contains(&elapsed), "failed after {elapsed:?}");
}

fn says(bench: &Bench, words: &str) {
    let log = bench.nbdkit().stderr();
    assert!(log.contains(words), "says {words:?}: {log}");
}

/// The reply to the only request trickles, and the reply to another one than that whose thread receives.
fn own_and_other(
    length: u32,
    offer: &Offer,
    pause: Duration,
    pieces: impl Fn(&Request) -> Pieces + Clone + Send + Sync + 'static,
) {
    let (slow, silent) = ((OFFSET, length), (SILENT, LENGTH));
    row(&[slow], offer.clone(), pause, pieces.clone());
    row(&[silent, slow], offer.clone(), pause, pieces);
}

#[test]
fn a_simple_reply_byte_by_byte() {
    own_and_other(LENGTH, &Offer::simple(), PAUSE, |read| {
        let data = pattern(OFFSET, read.length as usize);
        bytewise(wire::join(&[&wire::simple(read.cookie, 0), &data]))
    });
}

#[test]
fn a_large_simple_reply_byte_by_byte() {
    own_and_other(LARGE, &Offer::simple(), PAUSE, |read| {
        let data = pattern(OFFSET, read.length as usize);
        bytewise(wire::join(&[&wire::simple(read.cookie, 0), &data]))
    });
}

#[test]
fn a_chunk_byte_by_byte() {
    own_and_other(LENGTH, &Offer::default(), PAUSE, |read| {
        bytewise(piece(DONE, read.cookie, OFFSET, read.length))
    });
}

#[test]
fn a_row_of_small_chunks() {
    own_and_other(LARGE, &Offer::default(), PAUSE, |read| {
        let (cookie, end) = (read.cookie, OFFSET + u64::from(read.length));
        Box::new((OFFSET..end).map(move |at| piece(MORE, cookie, at, 1)))
    });
}

#[test]
fn a_flood_of_error_chunks() {
    // Any number of them is legal, and none ends the reply. They come faster than they are taken.
    own_and_other(LENGTH, &Offer::default(), Duration::ZERO, |read| {
        let error = wire::error(MORE, read.cookie, errno::EIO, b"once more");
        Box::new(std::iter::repeat(error.repeat(2000)))
    });
}

/// One request gets no answer while two others at a time do, and each of those makes room for a new one. The
/// silent one is the first of three to be sent, or the last.
fn starves(place: usize) {
    let mut bench = Bench::new(&[TIMEOUT]);
    let arrived = [Gate::default(), Gate::default(), Gate::default()];
    let ticket = bench.play({
        let arrived = arrived.clone();
        move |peer| {
            peer.negotiate(&Offer::simple())?;
            let mut busy = VecDeque::new();
            for gate in &arrived {
                let request = peer.request()?;
                if request.offset != SILENT {
                    busy.push_back(request);
                }
                gate.open();
            }
            while let Some(request) = busy.pop_front() {
                let data = pattern(request.offset, request.length as usize);
                let reply = wire::join(&[&wire::simple(request.cookie, 0), &data]);
                peer.answered(&request);
                for piece in reply.chunks(reply.len() / 4) {
                    peer.send(piece)?;
                    // Nothing comes meanwhile but the end.
                    peer.readable_within(PAUSE);
                }
                busy.push_back(peer.request()?);
            }
            Ok(())
        }
    });

    let mut front = bench.open();
    let mut offsets = vec![OFFSET, 2 * OFFSET];
    offsets.insert(place, SILENT);
    let mut busy = VecDeque::new();
    let mut silent = None;
    let mut started = Instant::now();
    for (offset, gate) in offsets.into_iter().zip(&arrived) {
        if offset == SILENT {
            started = Instant::now();
            silent = Some(front.submit_read(offset, LENGTH));
        } else {
            busy.push_back((offset, front.submit_read(offset, LENGTH)));
        }
        gate.pass();
    }
    while let Some((offset, cookie)) = busy.pop_front() {
        match front.wait_read(cookie) {
            Ok(data) => assert_eq!(data, pattern(offset, LENGTH as usize)),
            error => {
                lost("busy", error.map(drop));
                break;
            }
        }
        assert!(started.elapsed() < IN_TIME.end, "the deadline did not hold");
        busy.push_back((offset, front.submit_read(offset, LENGTH)));
    }
    let silent = silent.expect("one of three");
    lost("silent", front.wait_read(silent).map(drop));
    in_time(started);
    front.close();
    ticket.ended("starved");
    says(
        &bench,
        &format!("{LENGTH} bytes at offset {SILENT}: no complete answer: timed out"),
    );
    bench.serves_the_next("starved");
}

#[test]
fn one_is_forgotten_that_receives_for_the_others() {
    starves(0);
}

#[test]
fn one_is_forgotten_that_others_receive_for() {
    starves(2);
}

#[test]
fn a_write_that_is_taken_byte_by_byte() {
    let mut bench = Bench::new(&[TIMEOUT]);
    let offer = Offer {
        size: 64 << 20,
        ..Offer::default()
    };
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let write = peer.request_header()?;
        assert_eq!(write.kind, cmd::WRITE);
        for _ in 0..write.length {
            peer.receive(1)?;
        }
        panic!("the deadline did not hold");
    });
    let mut front = bench.open();
    let started = Instant::now();
    lost("write", front.write(0, &vec![1; 32 << 20]));
    in_time(started);
    front.close();
    ticket.ended("write");
    says(&bench, "no complete answer: timed out");
    bench.serves_the_next("write");
}
