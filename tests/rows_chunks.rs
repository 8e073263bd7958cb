// SPDX-License-Identifier: BSD-3-Clause
//! Rows C of the catalogue, except what is about the bytes of a read (rows_coverage.rs): servers that send
//! malformed, misplaced or unknown chunks. Where the header of a chunk says how long it is, the fault is the
//! request's and the connection lives.

mod common;

use common::scripted::bench::{Ask, Bench, LENGTH, OFFSET, Verdict, all};
use common::scripted::disk::piece;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, DONE, MORE, chunk_type, cmd, errno};

const END: u64 = OFFSET + LENGTH as u64;

#[test]
fn c1_none_must_be_the_last_chunk_and_empty() {
    let mut bench = Bench::new(&[]);
    bench.read_row("C1 without DONE", Verdict::Fails(errno::EIO), |cookie| {
        wire::join(&[
            &all(MORE, cookie),
            &wire::chunk(MORE, chunk_type::NONE, cookie, &[]),
        ])
    });
    bench.read_row("C1 with payload", Verdict::Fails(errno::EIO), |cookie| {
        wire::join(&[
            &all(MORE, cookie),
            &wire::chunk(DONE, chunk_type::NONE, cookie, b"x"),
        ])
    });
}

#[test]
fn c4_data_without_data_fails_the_read() {
    let mut bench = Bench::new(&[]);
    for length in [8, 7, 0] {
        bench.read_row(
            &format!("C4 length {length}"),
            Verdict::Fails(errno::EIO),
            move |cookie| {
                wire::chunk(
                    DONE,
                    chunk_type::OFFSET_DATA,
                    cookie,
                    &OFFSET.to_be_bytes()[..length],
                )
            },
        );
    }
}

#[test]
fn c6_malformed_holes_fail_the_read() {
    let mut bench = Bench::new(&[]);
    let good = wire::join(&[&OFFSET.to_be_bytes(), &LENGTH.to_be_bytes()]);
    for (row, payload) in [
        ("length 11", good[..11].to_vec()),
        ("length 13", wire::join(&[&good, &[0]])),
    ] {
        bench.read_row(
            &format!("C6 {row}"),
            Verdict::Fails(errno::EIO),
            move |cookie| wire::chunk(DONE, chunk_type::OFFSET_HOLE, cookie, &payload),
        );
    }
    for size in [0, u32::MAX] {
        bench.read_row(
            &format!("C6 size {size}"),
            Verdict::Fails(errno::EIO),
            move |cookie| wire::hole(DONE, cookie, OFFSET, size),
        );
    }
}

#[test]
fn c7_chunks_that_do_not_belong_to_the_command_fail_it() {
    let mut bench = Bench::new(&[]);
    for kind in [
        cmd::WRITE,
        cmd::FLUSH,
        cmd::TRIM,
        cmd::WRITE_ZEROES,
        cmd::CACHE,
        cmd::BLOCK_STATUS,
    ] {
        let ask = Ask::command(kind);
        bench.row(
            &format!("C7 data to command {kind}"),
            &Offer::default(),
            &ask,
            Verdict::Fails(errno::EIO),
            |request| all(DONE, request.cookie),
        );
        bench.row(
            &format!("C7 hole to command {kind}"),
            &Offer::default(),
            &ask,
            Verdict::Fails(errno::EIO),
            |request| wire::hole(DONE, request.cookie, OFFSET, LENGTH),
        );
    }
    for kind in [cmd::READ, cmd::WRITE] {
        let ask = Ask::command(kind);
        bench.row(
            &format!("C7 status to command {kind}"),
            &Offer::default(),
            &ask,
            Verdict::Fails(errno::EIO),
            |request| {
                wire::status(
                    DONE,
                    request.cookie,
                    Offer::default().contexts[0].0,
                    &[(LENGTH, 0)],
                )
            },
        );
    }
}

#[test]
fn c9_unknown_chunk_types_fail_the_read() {
    let mut bench = Bench::new(&[]);
    for kind in [3, 4, 6, 7, 0x7fff] {
        bench.read_row(
            &format!("C9 type {kind:#x}"),
            Verdict::Fails(errno::EIO),
            move |cookie| {
                wire::join(&[
                    &wire::chunk(MORE, kind, cookie, &[0; 16]),
                    &all(DONE, cookie),
                ])
            },
        );
    }
}

#[test]
fn c10_unknown_error_chunks_are_errors() {
    let mut bench = Bench::new(&[]);
    for kind in [0x8000, 0x8003, 0xffff] {
        bench.read_row(
            &format!("C10 type {kind:#x}"),
            Verdict::Fails(errno::ENOSPC),
            move |cookie| {
                let payload = wire::join(&[
                    &wire::error_payload(errno::ENOSPC, b"full"),
                    b"and something new",
                ]);
                wire::chunk(DONE, kind, cookie, &payload)
            },
        );
    }
}

#[test]
fn c11_error_chunks_that_do_not_add_up_are_errors() {
    let mut bench = Bench::new(&[]);
    let whole = wire::error_payload(errno::EIO, b"");
    for length in [0, 3, 4, 5] {
        let payload = whole[..length].to_vec();
        bench.read_row(
            &format!("C11 length {length}"),
            Verdict::Fails(errno::EIO),
            move |cookie| wire::chunk(DONE, chunk_type::ERROR, cookie, &payload),
        );
    }
    bench.read_row(
        "C11 message longer than the rest",
        Verdict::Fails(errno::EIO),
        |cookie| {
            let mut payload = wire::error_payload(errno::EIO, b"text");
            payload.pop();
            wire::chunk(DONE, chunk_type::ERROR, cookie, &payload)
        },
    );
    bench.read_row(
        "C11 no room for the offset",
        Verdict::Fails(errno::EIO),
        |cookie| {
            let payload = wire::join(&[&wire::error_payload(errno::EIO, b"text"), &[0; 7]]);
            wire::chunk(DONE, chunk_type::ERROR_OFFSET, cookie, &payload)
        },
    );
}

/// nbd-server 3.25 to 3.27 do this at every bad sector.
#[test]
fn c11_the_number_counts_although_the_length_of_the_text_is_swapped() {
    let mut bench = Bench::new(&[]);
    let fails = Verdict::Fails(errno::ENOSPC);
    bench.read_row("C11 swapped", fails, |cookie| {
        let mut payload = wire::error_payload(errno::ENOSPC, b"Write failed\0");
        payload.swap(4, 5);
        wire::chunk(DONE, chunk_type::ERROR, cookie, &payload)
    });
    let stderr = bench.nbdkit().stderr();
    assert!(stderr.contains("NBD_ENOSPC (Write failed)"), "{stderr}");
}

#[test]
fn c11_strange_error_texts_are_only_texts() {
    let mut bench = Bench::new(&[]);
    for (row, text) in [
        ("long text", vec![b'x'; 4097]),
        ("longest text", vec![b'x'; 65535]),
        ("NUL", b"one\0two".to_vec()),
        (
            "escape codes",
            b"\x1b[2J\r\nnbdkit: error: forged %s%n".to_vec(),
        ),
        ("not UTF-8", b"caf\xe9".to_vec()),
    ] {
        bench.read_row(
            &format!("C11 {row}"),
            Verdict::Fails(errno::EPERM),
            move |cookie| wire::error(DONE, cookie, errno::EPERM, &text),
        );
    }

    let stderr = bench.nbdkit().stderr();
    let wild = stderr
        .lines()
        .find(|line| line.contains(|c: char| c.is_control() && c != '\t'));
    assert_eq!(wild, None, "control characters in the log");
    assert!(
        !stderr
            .lines()
            .any(|line| line.starts_with("nbdkit: error: forged")),
        "the server wrote our log"
    );
}

#[test]
fn c12_an_error_chunk_without_an_error_is_still_an_error() {
    Bench::new(&[]).read_row("C12", Verdict::Fails(errno::EIO), |cookie| {
        wire::error(DONE, cookie, 0, b"")
    });
}

#[test]
fn c13_the_first_error_fails_the_whole_read() {
    let mut bench = Bench::new(&[]);
    let fails = Verdict::Fails(errno::ENOSPC);
    bench.read_row("C13 error, then data", fails, |cookie| {
        wire::join(&[
            &wire::error(MORE, cookie, errno::ENOSPC, b""),
            &all(DONE, cookie),
        ])
    });
    bench.read_row("C13 error, data, NONE", fails, |cookie| {
        wire::join(&[
            &wire::error(MORE, cookie, errno::ENOSPC, b""),
            &all(MORE, cookie),
            &wire::none(cookie),
        ])
    });
    bench.read_row("C13 data, then error with offset inside", fails, |cookie| {
        wire::join(&[
            &all(MORE, cookie),
            &wire::error_at(DONE, cookie, errno::ENOSPC, b"bad sector", OFFSET + 7),
        ])
    });
    for outside in [0, END, u64::MAX] {
        bench.read_row(
            &format!("C13 error with offset {outside}"),
            fails,
            move |cookie| wire::error_at(DONE, cookie, errno::ENOSPC, b"", outside),
        );
    }
    bench.read_row("C13 two errors", fails, |cookie| {
        wire::join(&[
            &wire::error(MORE, cookie, errno::ENOSPC, b"first"),
            &wire::error(DONE, cookie, errno::EPERM, b""),
        ])
    });
}

#[test]
fn c14_an_error_without_end_is_given_up_at_the_deadline() {
    Bench::new(&["request-timeout=2"]).read_row("C14", Verdict::Dead, |cookie| {
        wire::error(MORE, cookie, errno::EIO, b"")
    });
}

#[test]
fn c15_a_chunk_after_the_last_one_kills_the_connection() {
    let mut bench = Bench::new(&[]);
    bench.read_row("C15 NONE", Verdict::DeadAfter(Ok(())), |cookie| {
        wire::join(&[&all(DONE, cookie), &wire::none(cookie)])
    });
    bench.read_row("C15 data", Verdict::DeadAfter(Ok(())), |cookie| {
        wire::join(&[&all(DONE, cookie), &all(DONE, cookie)])
    });
}

#[test]
fn c16_enormous_chunks_are_refused_without_allocating() {
    let mut bench = Bench::new(&[]);
    for length in [u32::MAX, (32 << 20) + 9] {
        for kind in [
            chunk_type::NONE,
            chunk_type::OFFSET_DATA,
            chunk_type::OFFSET_HOLE,
            chunk_type::BLOCK_STATUS,
            chunk_type::ERROR,
            chunk_type::ERROR_OFFSET,
            0x8003,
        ] {
            bench.read_row(
                &format!("C16 type {kind:#x}, length {length}"),
                Verdict::Dead,
                move |cookie| {
                    wire::join(&[&wire::chunk_header(DONE, kind, cookie, length), &[0; 64]])
                },
            );
        }
    }
    // An ordinary nbdkit reserves a few hundred MiB: stacks and malloc arenas of 16 threads.
    let peak = bench.peak_address_space_kib();
    assert!(peak < 3 << 20, "nbdkit's address space once was {peak} KiB");
}

#[test]
fn c17_unknown_chunk_flags_are_ignored() {
    Bench::new(&[]).read_row("C17", Verdict::Fine, |cookie| {
        wire::join(&[
            &piece(0xfffe, cookie, OFFSET, 256),
            &piece(0xffff, cookie, OFFSET + 256, LENGTH - 256),
        ])
    });
}

#[test]
fn c20_success_may_be_a_chunk_or_a_simple_reply() {
    let mut bench = Bench::new(&[]);
    for kind in [
        cmd::WRITE,
        cmd::FLUSH,
        cmd::TRIM,
        cmd::WRITE_ZEROES,
        cmd::CACHE,
    ] {
        let ask = Ask::command(kind);
        bench.row(
            &format!("C20 chunk to command {kind}"),
            &Offer::default(),
            &ask,
            Verdict::Fine,
            |request| wire::none(request.cookie),
        );
        bench.row(
            &format!("C20 simple to command {kind}"),
            &Offer::default(),
            &ask,
            Verdict::Fine,
            |request| wire::simple(request.cookie, 0),
        );
    }
}
