// SPDX-License-Identifier: BSD-3-Clause
//! Rows B of the catalogue: servers that misbehave when asked for block status.

mod common;

use common::scripted::Gate;
use common::scripted::bench::{Ask, Bench, LENGTH, OFFSET, Verdict};
use common::scripted::disk::Disk;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, DONE, MORE, cmd, cmd_flag, errno};

const HALF: u32 = LENGTH / 2;

/// The id that the scripted server gives to `base:allocation`.
fn id() -> u32 {
    Offer::default().contexts[0].0
}

/// A row about a status query without flags.
fn status(
    bench: &mut Bench,
    row: &str,
    verdict: Verdict,
    reply: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
) {
    bench.row(
        row,
        &Offer::default(),
        &Ask::status(),
        verdict,
        move |request| reply(request.cookie),
    );
}

/// A row about a status query for one extent.
fn status_one(
    bench: &mut Bench,
    row: &str,
    verdict: Verdict,
    reply: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
) {
    let ask = Ask {
        flags: cmd_flag::REQ_ONE,
        ..Ask::status()
    };
    bench.row(row, &Offer::default(), &ask, verdict, move |request| {
        assert_eq!(request.flags, cmd_flag::REQ_ONE, "the flag is passed on");
        reply(request.cookie)
    });
}

#[test]
fn a_good_answer_reaches_the_client() {
    status(
        &mut Bench::new(&[]),
        "good",
        Verdict::Extents(&[(HALF, 0), (HALF, 3)]),
        |cookie| wire::status(DONE, cookie, id(), &[(HALF, 0), (HALF, 3)]),
    );
}

#[test]
fn the_end_of_the_reply_may_be_a_chunk_of_its_own() {
    status(
        &mut Bench::new(&[]),
        "NONE at the end",
        Verdict::Extents(&[(LENGTH, 3)]),
        |cookie| {
            wire::join(&[
                &wire::status(MORE, cookie, id(), &[(LENGTH, 3)]),
                &wire::none(cookie),
            ])
        },
    );
}

#[test]
fn b1_success_without_an_answer_is_an_error() {
    let mut bench = Bench::new(&[]);
    status(
        &mut bench,
        "B1 chunk",
        Verdict::Fails(errno::EIO),
        wire::none,
    );
    status_one(
        &mut bench,
        "B1 chunk, one extent",
        Verdict::Fails(errno::EIO),
        wire::none,
    );
}

#[test]
fn b2_extents_of_no_length_are_skipped_where_others_cover_the_query() {
    let mut bench = Bench::new(&[]);
    type Extents = &'static [(u32, u32)];
    let fails = Verdict::Fails(errno::EIO);
    let whole = Verdict::Extents(&[(LENGTH, 3)]);
    let rows: [(&str, Extents, Verdict, Verdict); 6] = [
        ("none", &[], fails, fails),
        ("empty", &[(0, 0)], fails, fails),
        ("first empty", &[(0, 0), (LENGTH, 3)], whole, whole),
        ("last empty", &[(LENGTH, 3), (0, 0)], whole, whole),
        (
            "middle empty",
            &[(HALF, 3), (0, 0), (HALF, 3)],
            whole,
            Verdict::Extents(&[(HALF, 3)]),
        ),
        (
            "empty and too short",
            &[(HALF, 3), (0, 0)],
            fails,
            Verdict::Extents(&[(HALF, 3)]),
        ),
    ];
    for (row, extents, all, one) in rows {
        status(&mut bench, &format!("B2 {row}"), all, |cookie| {
            wire::status(DONE, cookie, id(), extents)
        });
        let row = format!("B2 {row}, one extent asked for");
        status_one(&mut bench, &row, one, |cookie| {
            wire::status(DONE, cookie, id(), extents)
        });
    }
}

#[test]
fn b2_extents_of_a_length_that_does_not_add_up_fail_the_query() {
    let mut bench = Bench::new(&[]);
    let whole = wire::join(&[&id().to_be_bytes(), &LENGTH.to_be_bytes(), &[0; 4], &[0; 8]]);
    for length in [0, 3, 5, 11, 13, 19] {
        let payload = whole[..length].to_vec();
        status(
            &mut bench,
            &format!("B2 payload of {length} bytes"),
            Verdict::Fails(errno::EIO),
            move |cookie| wire::chunk(DONE, wire::chunk_type::BLOCK_STATUS, cookie, &payload),
        );
    }
}

#[test]
fn b3_extents_may_pass_the_end_of_the_request_but_not_of_the_export() {
    const REST: u32 = (1 << 20) - OFFSET as u32;
    let mut bench = Bench::new(&[]);
    status(
        &mut bench,
        "B3 a little longer",
        Verdict::Extents(&[(HALF, 0), (LENGTH, 3)]),
        |cookie| wire::status(DONE, cookie, id(), &[(HALF, 0), (LENGTH, 3)]),
    );
    status(
        &mut bench,
        "B3 one too long",
        Verdict::Extents(&[(REST, 3)]),
        |cookie| wire::status(DONE, cookie, id(), &[(u32::MAX, 3)]),
    );
    status(
        &mut bench,
        "B3 last too long",
        Verdict::Extents(&[(HALF, 3), (REST - HALF, 0)]),
        |cookie| wire::status(DONE, cookie, id(), &[(HALF, 3), (u32::MAX, 0)]),
    );
    // Nobody asked for what follows the extent that reaches the end.
    status(
        &mut bench,
        "B3 far too many",
        Verdict::Extents(&[(LENGTH, 0)]),
        |cookie| {
            wire::status(
                DONE,
                cookie,
                id(),
                &[(LENGTH, 0), (u32::MAX, 3), (u32::MAX, 0), (u32::MAX, 3)],
            )
        },
    );
    status(
        &mut bench,
        "B3 equal neighbours",
        Verdict::Extents(&[(REST, 3)]),
        |cookie| wire::status(DONE, cookie, id(), &[(HALF, 3), (u32::MAX, 3)]),
    );
}

#[test]
fn b4_with_req_one_the_first_extent_counts() {
    let mut bench = Bench::new(&[]);
    status_one(
        &mut bench,
        "B4 two extents",
        Verdict::Extents(&[(HALF, 3)]),
        |cookie| wire::status(DONE, cookie, id(), &[(HALF, 3), (HALF, 0)]),
    );
    status_one(
        &mut bench,
        "B4 too long",
        Verdict::Extents(&[(LENGTH, 3)]),
        |cookie| wire::status(DONE, cookie, id(), &[(4096, 3)]),
    );
}

#[test]
fn b5_a_context_that_answers_twice_fails_the_query() {
    status(
        &mut Bench::new(&[]),
        "B5",
        Verdict::Fails(errno::EIO),
        |cookie| {
            let once = |flags| wire::status(flags, cookie, id(), &[(LENGTH, 0)]);
            wire::join(&[&once(MORE), &once(DONE)])
        },
    );
}

#[test]
fn b6_unknown_contexts_are_ignored() {
    let mut bench = Bench::new(&[]);
    let unknown = id() + 1;
    status(
        &mut bench,
        "B6 before",
        Verdict::Extents(&[(LENGTH, 3)]),
        move |cookie| {
            let noise = wire::status(MORE, cookie, unknown, &[(HALF, 7), (HALF, 9)]);
            wire::join(&[&noise, &wire::status(DONE, cookie, id(), &[(LENGTH, 3)])])
        },
    );
    status(
        &mut bench,
        "B6 after",
        Verdict::Extents(&[(LENGTH, 3)]),
        move |cookie| {
            let answer = wire::status(MORE, cookie, id(), &[(LENGTH, 3)]);
            wire::join(&[
                &answer,
                &wire::status(DONE, cookie, unknown, &[(HALF, 7), (HALF, 9)]),
            ])
        },
    );
    status(
        &mut bench,
        "B6 alone",
        Verdict::Fails(errno::EIO),
        move |cookie| wire::status(DONE, cookie, unknown, &[(LENGTH, 0)]),
    );
}

#[test]
fn b6_unknown_status_bits_are_masked() {
    let mut bench = Bench::new(&[]);
    status(
        &mut bench,
        "B6 hole",
        Verdict::Extents(&[(LENGTH, 1)]),
        |cookie| wire::status(DONE, cookie, id(), &[(LENGTH, 0xffff_fffd)]),
    );
    // Equal once the unknown bits are gone, hence one extent.
    status(
        &mut bench,
        "B6 data",
        Verdict::Extents(&[(LENGTH, 0)]),
        |cookie| wire::status(DONE, cookie, id(), &[(HALF, 4), (HALF, 0x8000_0000)]),
    );
}

#[test]
fn b7_a_million_extents_are_cut_somewhere() {
    const COUNT: u32 = (1 << 20) + 1;
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        size: 4 << 20,
        ..Offer::default()
    };
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let request = peer.request()?;
        // Alternating, so that none can be joined with its neighbour.
        let extents: Vec<(u32, u32)> = (0..COUNT).map(|i| (1, i % 2 * 3)).collect();
        peer.send(&wire::status(DONE, request.cookie, id(), &extents))?;
        peer.answered(&request);
        peer.serve(&mut Disk::new(offer.size))
    });

    let mut front = bench.open_structured();
    let extents = front
        .status(0, COUNT)
        .expect("the beginning is a good answer");
    assert!(
        !extents.is_empty() && extents.len() <= 1 << 20,
        "{} extents",
        extents.len()
    );
    assert!(
        extents
            .iter()
            .zip(0..)
            .all(|(extent, i)| *extent == (1, i % 2 * 3))
    );
    front.close();

    ticket.finished("B7");
    bench.serves_the_next("B7");
}

/// Sixteen queries for one extent each, and answers of very many extents that do not end.
#[test]
fn b7_what_nobody_asked_for_takes_no_memory() {
    const COUNT: u32 = 1 << 18;
    let mut bench = Bench::new(&["--threads=16"]);
    let offer = Offer {
        size: 1 << 40,
        ..Offer::default()
    };
    let (sent, measured) = (Gate::default(), Gate::default());
    let ticket = bench.play({
        let (sent, measured) = (sent.clone(), measured.clone());
        move |peer| {
            peer.negotiate(&offer)?;
            let extents = vec![(LENGTH, 0); COUNT as usize];
            let requests: Vec<_> = (0..16).map(|_| peer.request()).collect::<Result<_, _>>()?;
            for request in &requests {
                peer.send(&wire::status(MORE, request.cookie, id(), &extents))?;
            }
            peer.drained()?;
            sent.open();
            measured.pass();
            for request in &requests {
                peer.send(&wire::none(request.cookie))?;
                peer.answered(request);
            }
            peer.serve(&mut Disk::new(offer.size))
        }
    });

    let mut front = bench.open_structured();
    let before = bench.resident_kib();
    let queries: Vec<u64> = (0..16)
        .map(|i| front.submit(cmd::BLOCK_STATUS, cmd_flag::REQ_ONE, i << 30, 1 << 30, &[]))
        .collect();
    sent.pass();
    let grown = bench.resident_kib().saturating_sub(before);
    measured.open();
    for query in queries {
        let answer = front.wait_success(query).map(|success| success.extents);
        assert_eq!(answer, Ok(vec![(LENGTH, 0)]));
    }
    front.close();

    assert!(grown < 8 << 10, "{grown} KiB for sixteen extents");
    ticket.finished("B7 sixteen");
    bench.serves_the_next("B7 sixteen");
}

#[test]
fn b9_a_server_that_cannot_tell_after_all_fails_the_query_only() {
    let mut bench = Bench::new(&[]);
    for error in [errno::EINVAL, errno::ENOTSUP] {
        status(
            &mut bench,
            &format!("B9 simple error {error}"),
            Verdict::Fails(errno::EINVAL),
            move |cookie| wire::simple(cookie, error),
        );
        status(
            &mut bench,
            &format!("B9 chunk error {error}"),
            Verdict::Fails(errno::EINVAL),
            move |cookie| wire::error(DONE, cookie, error, b"not aligned"),
        );
    }
}

#[test]
fn b10_small_steps_through_a_large_query_are_bounded() {
    const STEP: u32 = 512;
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        size: 1 << 40,
        ..Offer::default()
    };
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        loop {
            let request = peer.request()?;
            if request.kind == wire::cmd::DISC {
                return peer.expect_closed();
            }
            assert_eq!(request.kind, wire::cmd::BLOCK_STATUS);
            assert!(request.offset + u64::from(request.length) <= offer.size);
            peer.send(&wire::status(DONE, request.cookie, id(), &[(STEP, 0)]))?;
            peer.answered(&request);
        }
    });

    let mut front = bench.open_structured();
    let mut offset = OFFSET;
    for _ in 0..10 {
        let extents = front.status(offset, 0xffff_fe00).expect("some progress");
        let covered: u64 = extents.iter().map(|(length, _)| u64::from(*length)).sum();
        assert!(
            covered >= u64::from(STEP) && covered % u64::from(STEP) == 0,
            "covered {covered}"
        );
        offset += covered;
    }
    front.close();

    ticket.finished("B10");
    bench.serves_the_next("B10");
}
