// SPDX-License-Identifier: BSD-3-Clause
//! Rows C2, C3, C5, C8, C18 and C19 of the catalogue: a structured read succeeds when data and holes
//! covered every byte exactly once, in whatever pieces and order, and never otherwise.

mod common;

use common::scripted::bench::{Ask, Bench, LENGTH, OFFSET, Verdict, all};
use common::scripted::disk::{Disk, HOLE, pattern, piece};
use common::scripted::peer::{Offer, Request};
use common::scripted::wire::{self, DONE, MORE, cmd_flag, errno};

const END: u64 = OFFSET + LENGTH as u64;

#[test]
fn c2_a_read_with_missing_bytes_fails() {
    let mut bench = Bench::new(&[]);
    let half = LENGTH / 2;
    let middle = OFFSET + u64::from(half);
    let fails = Verdict::Fails(errno::EIO);

    bench.read_row("C2 nothing", fails, wire::none);
    bench.read_row("C2 first half", fails, move |cookie| {
        piece(DONE, cookie, OFFSET, half)
    });
    bench.read_row("C2 second half", fails, move |cookie| {
        piece(DONE, cookie, middle, half)
    });
    bench.read_row("C2 half and NONE", fails, move |cookie| {
        wire::join(&[&piece(MORE, cookie, OFFSET, half), &wire::none(cookie)])
    });
    bench.read_row("C2 first byte missing", fails, |cookie| {
        piece(DONE, cookie, OFFSET + 1, LENGTH - 1)
    });
    bench.read_row("C2 last byte missing", fails, |cookie| {
        piece(DONE, cookie, OFFSET, LENGTH - 1)
    });
    bench.read_row("C2 middle byte missing", fails, move |cookie| {
        wire::join(&[
            &piece(MORE, cookie, OFFSET, half),
            &piece(DONE, cookie, middle + 1, half - 1),
        ])
    });
    bench.read_row("C2 byte missing before a hole", fails, move |cookie| {
        wire::join(&[
            &piece(MORE, cookie, OFFSET, half),
            &wire::hole(DONE, cookie, middle + 1, half - 1),
        ])
    });
}

#[test]
fn c3_bytes_that_come_twice_fail_the_read() {
    let mut bench = Bench::new(&[]);
    let half = LENGTH / 2;
    let middle = OFFSET + u64::from(half);

    bench.read_row(
        "C3 everything twice",
        Verdict::Fails(errno::EIO),
        |cookie| wire::join(&[&all(MORE, cookie), &all(DONE, cookie)]),
    );
    bench.read_row(
        "C3 one byte twice",
        Verdict::Fails(errno::EIO),
        move |cookie| {
            wire::join(&[
                &piece(MORE, cookie, OFFSET, half),
                &piece(DONE, cookie, middle - 1, half + 1),
            ])
        },
    );
    bench.read_row(
        "C3 right sum with a gap",
        Verdict::Fails(errno::EIO),
        move |cookie| {
            wire::join(&[
                &piece(MORE, cookie, OFFSET, half),
                &piece(DONE, cookie, OFFSET, half),
            ])
        },
    );
    bench.read_row(
        "C3 right sum, gap first",
        Verdict::Fails(errno::EIO),
        move |cookie| {
            wire::join(&[
                &piece(MORE, cookie, middle, half),
                &piece(DONE, cookie, middle - 1, half),
            ])
        },
    );
    bench.read_row("C3 hole over data", Verdict::Fails(errno::EIO), |cookie| {
        wire::join(&[
            &all(MORE, cookie),
            &wire::hole(DONE, cookie, OFFSET, LENGTH),
        ])
    });
    bench.read_row("C3 data over hole", Verdict::Fails(errno::EIO), |cookie| {
        wire::join(&[
            &wire::hole(MORE, cookie, OFFSET, LENGTH),
            &all(DONE, cookie),
        ])
    });
}

#[test]
fn c5_content_outside_of_the_request_fails_the_read() {
    let mut bench = Bench::new(&[]);
    for (row, offset) in [
        ("below", 0),
        ("just below", OFFSET - u64::from(LENGTH)),
        ("straddling the start", OFFSET - 1),
        ("straddling the end", OFFSET + 1),
        ("above", END),
        ("past the export", 1 << 40),
        ("wrapping around", u64::MAX - 3),
        ("wrapping to the request", u64::MAX - u64::from(LENGTH) + 1),
    ] {
        bench.read_row(
            &format!("C5 data {row}"),
            Verdict::Fails(errno::EIO),
            move |cookie| wire::data(DONE, cookie, offset, &[0x66; LENGTH as usize]),
        );
        bench.read_row(
            &format!("C5 hole {row}"),
            Verdict::Fails(errno::EIO),
            move |cookie| wire::hole(DONE, cookie, offset, LENGTH),
        );
    }
    bench.read_row(
        "C5 data one byte too long",
        Verdict::Fails(errno::EIO),
        |cookie| wire::data(DONE, cookie, OFFSET, &[0x66; LENGTH as usize + 1]),
    );
}

/// nbdkit keeps DF to itself, so the server never sees it here, and two chunks are as good as one.
#[test]
fn c8_content_may_come_in_two_chunks() {
    let half = LENGTH / 2;
    let ask = Ask {
        flags: cmd_flag::DF,
        ..Ask::read()
    };
    Bench::new(&[]).row(
        "C8",
        &Offer::default(),
        &ask,
        Verdict::Fine,
        move |request| {
            let cookie = request.cookie;
            wire::join(&[
                &piece(MORE, cookie, OFFSET + u64::from(half), half),
                &piece(DONE, cookie, OFFSET, half),
            ])
        },
    );
}

/// A read of one MiB that `reply` answers must give `expected`.
fn large_read(
    row: &str,
    expected: &[u8],
    reply: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
) {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(move |peer| {
        peer.negotiate(&Offer::default())?;
        let request = peer.request()?;
        assert_eq!((request.offset, request.length), (0, 1 << 20));
        peer.send(&reply(&request))?;
        peer.answered(&request);
        peer.serve(&mut Disk::new(1 << 20))
    });

    let mut front = bench.open();
    let data = front.read(0, 1 << 20);
    assert!(
        data.as_deref() == Ok(expected),
        "{row}: wrong data, or {:?}",
        data.map(drop)
    );
    front.close();

    ticket.finished(row);
    bench.serves_the_next(row);
}

/// Chunks of the pattern, each `size` bytes, over one MiB.
fn cut(cookie: u64, size: u32) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    (0..(1 << 20) / size).map(move |i| piece(MORE, cookie, u64::from(i) * u64::from(size), size))
}

#[test]
fn c18_a_large_read_may_come_byte_by_byte() {
    large_read("C18 bytes", &pattern(0, 1 << 20), |request| {
        let mut reply: Vec<u8> = cut(request.cookie, 1).flatten().collect();
        reply.extend(wire::none(request.cookie));
        reply
    });
}

#[test]
fn c18_a_large_read_may_come_backwards() {
    large_read("C18 backwards", &pattern(0, 1 << 20), |request| {
        let mut reply: Vec<u8> = cut(request.cookie, 64).rev().flatten().collect();
        reply.extend(wire::none(request.cookie));
        reply
    });
}

#[test]
fn c18_a_large_read_may_come_as_every_other_chunk_first() {
    // The worst case for keeping track of what is still missing: as many gaps as there can be.
    large_read("C18 combed", &pattern(0, 1 << 20), |request| {
        let even = cut(request.cookie, 16).step_by(2);
        let odd = cut(request.cookie, 16).skip(1).step_by(2);
        let mut reply: Vec<u8> = even.chain(odd).flatten().collect();
        reply.extend(wire::none(request.cookie));
        reply
    });
}

#[test]
fn c18_a_large_read_may_alternate_between_holes_and_data() {
    const SIZE: u32 = 64;
    let mut expected = pattern(0, 1 << 20);
    for hole in expected.chunks_mut(SIZE as usize).step_by(2) {
        hole.fill(0);
    }
    large_read("C18 alternating", &expected, |request| {
        let cookie = request.cookie;
        let mut reply = Vec::new();
        for i in 0..(1 << 20) / SIZE {
            let offset = u64::from(i * SIZE);
            reply.extend(match i % 2 {
                0 => wire::hole(MORE, cookie, offset, SIZE),
                _ => piece(MORE, cookie, offset, SIZE),
            });
        }
        reply.extend(wire::none(cookie));
        reply
    });
}

#[test]
fn c18_chunks_of_sixteen_reads_may_interleave() {
    const READ: u32 = 64 << 10;
    const CHUNK: u32 = 512;
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        let requests: Vec<Request> = (0..16).map(|_| peer.request()).collect::<Result<_, _>>()?;
        for i in 0..READ / CHUNK {
            for request in &requests {
                // Odd reads come backwards, even ones forwards.
                let at = if request.offset / u64::from(READ) % 2 == 0 {
                    i
                } else {
                    READ / CHUNK - 1 - i
                };
                let flags = if i == READ / CHUNK - 1 { DONE } else { MORE };
                peer.send(&piece(
                    flags,
                    request.cookie,
                    request.offset + u64::from(at * CHUNK),
                    CHUNK,
                ))?;
            }
        }
        requests.iter().for_each(|request| peer.answered(request));
        peer.serve(&mut Disk::new(1 << 20))
    });

    let mut front = bench.open();
    let reads: Vec<(u64, u64)> = (0..16)
        .map(|i| i * u64::from(READ))
        .map(|offset| (offset, front.submit_read(offset, READ)))
        .collect();
    for (offset, cookie) in reads {
        assert_eq!(
            front.wait_read(cookie),
            Ok(pattern(offset, READ as usize)),
            "read at {offset}"
        );
    }
    front.close();

    ticket.finished("C18 interleaved");
    bench.serves_the_next("C18 interleaved");
}

#[test]
fn c18_holes_read_as_zeroes() {
    let ask = Ask {
        offset: HOLE.start,
        ..Ask::read()
    };
    Bench::new(&[]).row(
        "C18 hole",
        &Offer::default(),
        &ask,
        Verdict::Fine,
        |request| wire::hole(DONE, request.cookie, request.offset, request.length),
    );
}

#[test]
fn c19_a_server_that_leaves_in_the_middle_of_data_fails_the_read() {
    let mut bench = Bench::new(&[]);
    for sent in [1, 19, 20, 27, 28, 29, 300, 539] {
        let row = format!("C19 closes after {sent} bytes");
        bench.hangs_up(
            &row,
            &Offer::default(),
            &Ask::read(),
            Verdict::Dead,
            move |request| all(DONE, request.cookie)[..sent].to_vec(),
        );
    }
}

#[test]
fn c19_a_server_that_stalls_in_the_middle_of_data_is_given_up_at_the_deadline() {
    Bench::new(&["request-timeout=2"]).read_row("C19 stalls", Verdict::Dead, |cookie| {
        all(DONE, cookie)[..300].to_vec()
    });
}
