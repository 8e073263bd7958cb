// SPDX-License-Identifier: BSD-3-Clause
//! `quirks=`: what a server is not asked, or not for so much at once, and the messages that lead there.

mod common;

use std::sync::{Arc, Mutex, PoisonError};

use common::front::Front;
use common::need;
use common::scripted::Ticket;
use common::scripted::bench::{Bench, LENGTH, OFFSET};
use common::scripted::disk::{Disk, pattern};
use common::scripted::offer::Request;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, cmd, errno, opt};

/// A server with everything, which must be asked these options in this order.
fn asked(bench: &Bench, options: &'static [u32]) -> Ticket {
    bench.play(move |peer| {
        let offer = Offer::extended();
        peer.greet(offer.handshake_flags)?;
        for option in options {
            let asked = peer.option()?;
            assert_eq!(asked.option, *option, "of {options:?}");
            peer.answer_option(&asked, &offer)?;
        }
        peer.serve(&mut Disk::new(offer.size))
    })
}

#[test]
fn each_word_takes_its_questions_away() {
    if !need("nbdkit") {
        return;
    }
    let rows: [(&str, &'static [u32]); 9] = [
        (
            "extended",
            &[opt::EXTENDED_HEADERS, opt::SET_META_CONTEXT, opt::GO],
        ),
        ("no-meta", &[opt::EXTENDED_HEADERS, opt::GO]),
        (
            "no-extended",
            &[opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, opt::GO],
        ),
        ("no-extended,no-meta", &[opt::STRUCTURED_REPLY, opt::GO]),
        ("no-structured", &[opt::GO]),
        (
            "no-opt-go",
            &[
                opt::STRUCTURED_REPLY,
                opt::SET_META_CONTEXT,
                opt::EXPORT_NAME,
            ],
        ),
        (
            "no-opt-go,no-meta",
            &[opt::STRUCTURED_REPLY, opt::EXPORT_NAME],
        ),
        ("no-opt-go,no-structured", &[opt::EXPORT_NAME]),
        (
            "max-zero=1M",
            &[opt::EXTENDED_HEADERS, opt::SET_META_CONTEXT, opt::GO],
        ),
    ];
    for (quirks, options) in rows {
        let bench = Bench::new(&[&format!("quirks={quirks}")]);
        let ticket = asked(&bench, options);
        let mut front = bench.open();
        assert_eq!(
            front.read(OFFSET, LENGTH),
            Ok(pattern(OFFSET, LENGTH as usize)),
            "{quirks}"
        );
        assert_eq!(front.write(0, &[1; 512]), Ok(()), "{quirks}");
        front.close();
        ticket.finished(quirks);
    }
}

/// A server that must not be asked about the default export by an option that is GO in all but name.
#[test]
fn without_go_there_is_no_info_either() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&["dynamic-export=true", "quirks=no-opt-go,no-structured"]);
    let ticket = asked(&bench, &[opt::EXPORT_NAME]);
    let mut front = Front::open_as(bench.socket(), "", false).expect("opens");
    assert_eq!(front.read(0, 512), Ok(pattern(0, 512)));
    front.close();
    ticket.finished("the default export");
}

/// What a server was asked: command, offset and length.
type Log = Arc<Mutex<Vec<(u16, u64, u32)>>>;

/// A server that answers what is longer than its limit for a command with an error, and everything else well.
fn limited(bench: &Bench, offer: Offer, error: u32, limit: fn(u16) -> u32) -> Log {
    let log = Log::default();
    let asked = Arc::clone(&log);
    bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let mut disk = Disk::new(offer.size);
        loop {
            let request = peer.request()?;
            let Request {
                kind,
                offset,
                length,
                cookie,
                ..
            } = request;
            if kind == cmd::DISC {
                return peer.expect_closed();
            }
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push((kind, offset, length));
            drop(asked);
            if length > limit(kind) {
                peer.answered(&request);
                let payload = wire::error_payload(error, b"");
                let (flags, kind) = (wire::DONE, wire::chunk_type::ERROR);
                peer.send(&wire::extended_chunk(flags, kind, cookie, offset, &payload))?;
            } else {
                peer.answer(&request, &mut disk)?;
            }
        }
    });
    log
}

fn lengths(log: &Log) -> Vec<u32> {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.drain(..).map(|(_, _, length)| length).collect()
}

#[test]
fn sizes_are_kept_from_the_first_request_on() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&["quirks=max-request=64k,max-status=128k,max-zero=256k"]);
    // Nothing is ever declined.
    let log = limited(
        &bench,
        Offer::extended(),
        errno::EINVAL,
        |kind| match kind {
            cmd::READ | cmd::WRITE => 64 << 10,
            cmd::BLOCK_STATUS => 128 << 10,
            _ => 256 << 10,
        },
    );
    let mut front = bench.open_structured();
    assert_eq!(front.read(512, 200 << 10), Ok(pattern(512, 200 << 10)));
    assert_eq!(lengths(&log), [65536, 65536, 65536, 8192]);
    assert_eq!(front.write(0, &[1; 100 << 10]), Ok(()));
    assert_eq!(lengths(&log), [65536, 36864]);
    assert_eq!(front.status(0, 1 << 20), Ok(vec![(128 << 10, 0)]));
    assert_eq!(lengths(&log), [128 << 10]);
    assert_eq!(front.trim(0, 512 << 10), Ok(()));
    assert_eq!(front.zero(512 << 10, 300 << 10, 0), Ok(()));
    assert_eq!(lengths(&log), [262_144, 262_144, 262_144, 45056]);
    front.close();
}

#[test]
fn limits_are_whole_blocks_and_one_at_least() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&["quirks=max-request=512,max-status=9728,max-zero=9728"]);
    let offer = Offer {
        block_sizes: Some((4096, 4096, 1 << 20)),
        ..Offer::extended()
    };
    let log = limited(&bench, offer, errno::EINVAL, |_| u32::MAX);
    let mut front = bench.open_structured();
    assert_eq!(front.read(0, 12288), Ok(pattern(0, 12288)));
    assert_eq!(lengths(&log), [4096; 3]);
    assert_eq!(front.trim(0, 12288), Ok(()));
    assert_eq!(lengths(&log), [8192, 4096]);
    assert_eq!(front.status(0, 12288), Ok(vec![(8192, 0)]));
    assert_eq!(lengths(&log), [8192]);
    front.close();
}

#[test]
fn a_declined_status_query_is_cut_and_that_is_remembered() {
    if !need("nbdkit") {
        return;
    }
    for error in [errno::EINVAL, errno::EOVERFLOW] {
        let bench = Bench::new(&[]);
        let offer = Offer {
            size: 1 << 40,
            block_sizes: Some((1, 4096, 1 << 20)),
            ..Offer::extended()
        };
        let log = limited(&bench, offer, error, |kind| match kind {
            cmd::BLOCK_STATUS => 1 << 20,
            _ => u32::MAX,
        });
        let mut front = bench.open_structured();
        assert_eq!(front.status(1 << 30, 1 << 30), Ok(vec![(1 << 20, 0)]));
        assert_eq!(lengths(&log), [1 << 30, 1 << 20]);
        assert_eq!(front.status(2 << 30, 1 << 30), Ok(vec![(1 << 20, 0)]));
        assert_eq!(lengths(&log), [1 << 20]);
        front.close();
    }
}

#[test]
fn other_errors_of_a_status_query_are_not_about_its_length() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    let log = limited(&bench, Offer::extended(), errno::EIO, |_| 512);
    let mut front = bench.open_structured();
    assert_eq!(front.status(0, 1 << 20), Err(errno::EIO));
    assert_eq!(lengths(&log), [1 << 20]);
    front.close();
}

/// A server that says nothing of its limit and has one.
#[test]
fn who_declines_much_payload_is_told_by_the_quirk() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    let log = limited(&bench, Offer::extended(), errno::EINVAL, |_| 128 << 10);
    let mut front = bench.open_structured();
    let says = |front: &mut Front, length: u32| {
        let before = bench.nbdkit().stderr().len();
        assert_eq!(front.read(0, length).map(drop), Err(errno::EINVAL));
        let said = bench.nbdkit().stderr();
        said[before..].to_owned()
    };
    let long = says(&mut front, 256 << 10);
    let text = "NBD_CMD_READ of 262144 bytes at offset 0: server answered NBD_EINVAL (it may be too \
                long: quirks=max-request=SIZE)";
    assert!(long.contains(text), "{long}");
    assert_eq!(lengths(&log), [256 << 10]);
    front.close();
}
