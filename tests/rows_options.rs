// SPDX-License-Identifier: BSD-3-Clause
//! Rows P of the catalogue: servers that misbehave while options are negotiated.

mod common;

use std::io;
use std::time::Duration;

use common::front::Front;
use common::scripted::End;
use common::scripted::bench::{Bench, LENGTH, OFFSET, lost};
use common::scripted::disk::{HOLE, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, cmd, info, opt, rep};

/// The options that every opening goes through, in this order.
const OPTIONS: [u32; 4] = [
    opt::EXTENDED_HEADERS,
    opt::STRUCTURED_REPLY,
    opt::SET_META_CONTEXT,
    opt::GO,
];

/// Behaves until `option`, answers that with `bytes`, and leaves the rest to the plugin.
fn answers(
    option: u32,
    bytes: Vec<u8>,
) -> impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static {
    move |peer| {
        peer.greet_until(option, &Offer::default())?;
        peer.send(&bytes)?;
        peer.expect_closed()
    }
}

/// Behaves until GO, and answers that with `bytes` before the proper infos and the ACK.
fn go_with(bytes: Vec<u8>) -> impl Fn(&mut Peer, &Offer) -> io::Result<()> + Send + Sync + 'static {
    move |peer, offer| {
        peer.greet_until(opt::GO, offer)?;
        peer.send(&bytes)?;
        peer.send_infos(offer)?;
        peer.accept_go(offer)
    }
}

fn reads(front: &mut Front) {
    assert_eq!(
        front.read(OFFSET, LENGTH),
        Ok(pattern(OFFSET, LENGTH as usize))
    );
}

/// Whether the server's extents reach the client. Without them nbdkit calls everything allocated.
fn extents_are(on: bool, front: &mut Front) {
    reads(front);
    let expected = if on {
        vec![(4096, 0), (4096, 3)]
    } else {
        vec![(8192, 0)]
    };
    assert_eq!(front.status(HOLE.start - 4096, 8192), Ok(expected));
}

fn info(kind: u16, content: &[u8]) -> Vec<u8> {
    wire::option_reply(opt::GO, rep::INFO, &wire::info_payload(kind, content))
}

#[test]
fn p1_a_reply_with_the_wrong_magic_or_to_another_option_is_refused() {
    let mut bench = Bench::new(&[]);
    for option in OPTIONS {
        let mut magic = wire::option_reply(option, rep::ACK, &[]);
        magic[0] ^= 0x80;
        bench.refuses(
            &format!("P1 wrong magic for option {option}"),
            "",
            answers(option, magic),
        );

        let echo = wire::option_reply(option + 1, rep::ACK, &[]);
        bench.refuses(
            &format!("P1 echo of option {}", option + 1),
            "",
            answers(option, echo),
        );
    }
}

#[test]
fn p2_a_reply_of_four_gigabytes_is_refused_without_allocating() {
    let mut bench = Bench::new(&[]);
    for (option, kind) in [
        (opt::EXTENDED_HEADERS, rep::ACK),
        (opt::EXTENDED_HEADERS, rep::ERR_UNSUP),
        (opt::STRUCTURED_REPLY, rep::ACK),
        (opt::STRUCTURED_REPLY, rep::ERR_POLICY),
        (opt::SET_META_CONTEXT, rep::META_CONTEXT),
        (opt::GO, rep::INFO),
        (opt::GO, rep::ACK),
        (opt::GO, rep::ERR_UNKNOWN),
    ] {
        let header = wire::option_reply_header(option, kind, u32::MAX);
        bench.refuses(
            &format!("P2 option {option}, type {kind:#x}"),
            "",
            answers(option, header),
        );
    }
    let peak = bench.peak_address_space_kib();
    // An ordinary nbdkit reserves a few hundred MiB: stacks and malloc arenas of 16 threads.
    assert!(peak < 3 << 20, "nbdkit's address space once was {peak} KiB");
}

#[test]
fn p2_replies_too_short_for_their_type_are_refused() {
    let mut bench = Bench::new(&[]);
    for length in 0..2 {
        let reply = wire::option_reply(opt::GO, rep::INFO, &vec![0; length]);
        bench.refuses(
            &format!("P2 INFO of {length} bytes"),
            "",
            answers(opt::GO, reply),
        );
    }
    for length in 0..4 {
        let reply = wire::option_reply(opt::SET_META_CONTEXT, rep::META_CONTEXT, &vec![0; length]);
        let row = format!("P2 META_CONTEXT of {length} bytes");
        bench.refuses(&row, "", answers(opt::SET_META_CONTEXT, reply));
    }
}

#[test]
fn p3_the_payload_of_an_ack_is_skipped() {
    let mut bench = Bench::new(&[]);
    for option in OPTIONS {
        bench.opens(
            &format!("P3 ACK of option {option}"),
            &Offer::default(),
            move |peer, offer| {
                let asked = peer.greet_until(option, offer)?;
                match option {
                    opt::GO => peer.send_infos(offer)?,
                    opt::SET_META_CONTEXT => {
                        let id = offer.contexts[0].0;
                        peer.agree_context(id);
                        peer.reply(
                            option,
                            rep::META_CONTEXT,
                            &wire::context(id, "base:allocation"),
                        )?;
                    }
                    opt::EXTENDED_HEADERS => peer.agree_extended(),
                    _ => peer.agree_structured(),
                }
                peer.promise(offer);
                peer.reply(asked.option, rep::ACK, b"surprise")?;
                if option == opt::GO {
                    Ok(())
                } else {
                    peer.finish_options(offer)
                }
            },
            |front| extents_are(true, front),
        );
    }
}

#[test]
fn p4_unknown_reply_types_are_refused() {
    let mut bench = Bench::new(&[]);
    for option in OPTIONS {
        for kind in [0, 5, 0x7fff_ffff] {
            let reply = wire::option_reply(option, kind, b"");
            bench.refuses(
                &format!("P4 type {kind:#x} for option {option}"),
                "",
                answers(option, reply),
            );
        }
    }
}

#[test]
fn p4_unknown_errors_are_errors() {
    let mut bench = Bench::new(&[]);
    let unknown = 0x8000_00ff;

    bench.opens(
        "P4 unknown error to STRUCTURED_REPLY",
        &Offer::simple(),
        refusing(opt::STRUCTURED_REPLY, unknown),
        |front| {
            extents_are(false, front);
        },
    );
    bench.opens(
        "P4 unknown error to SET_META_CONTEXT",
        &Offer::default(),
        refusing(opt::SET_META_CONTEXT, unknown),
        |front| {
            extents_are(false, front);
        },
    );
    let reply = wire::option_reply(opt::GO, unknown, b"not today");
    bench.refuses(
        "P4 unknown error to GO",
        "not today",
        answers(opt::GO, reply),
    );
}

/// Answers `option` with an error and everything else as it should be.
fn refusing(
    option: u32,
    error: u32,
) -> impl Fn(&mut Peer, &Offer) -> io::Result<()> + Send + Sync + 'static {
    move |peer, offer| {
        peer.greet_until(option, offer)?;
        peer.reply(option, error, b"not here")?;
        peer.finish_options(offer)
    }
}

#[test]
fn p5_a_go_without_a_proper_export_info_is_refused() {
    let mut bench = Bench::new(&[]);
    let ack = wire::option_reply(opt::GO, rep::ACK, &[]);
    let export = wire::info_export(1 << 20, 1);
    let other = wire::info_export(2 << 20, 1);

    let one = |payload: &[u8]| wire::option_reply(opt::GO, rep::INFO, payload);
    bench.refuses("P5 no INFO_EXPORT", "", answers(opt::GO, ack.clone()));
    for (row, reply) in [
        ("P5 length 11", one(&export[..11])),
        ("P5 length 13", one(&wire::join(&[&export, &[0]]))),
        ("P5 two sizes", wire::join(&[&one(&export), &one(&other)])),
    ] {
        bench.refuses(row, "", answers(opt::GO, wire::join(&[&reply, &ack])));
    }
}

#[test]
fn p6_strange_infos_are_ignored_and_never_reach_the_log_as_they_are() {
    let mut bench = Bench::new(&[]);
    let long = vec![b'n'; wire::MAX_STRING + 1];
    for (row, bytes) in [
        ("P6 unknown type", info(0x2a, b"whatever")),
        ("P6 unknown type, no content", info(0xffff, b"")),
        ("P6 name too long", info(info::NAME, &long)),
        ("P6 description too long", info(info::DESCRIPTION, &long)),
        (
            "P6 invalid UTF-8",
            info(info::DESCRIPTION, b"caf\xe9 \xff\xfe"),
        ),
        ("P6 NUL inside", info(info::DESCRIPTION, b"one\0two")),
        ("P6 NUL inside the name", info(info::NAME, b"one\0two")),
        (
            "P6 escape codes",
            info(info::DESCRIPTION, b"\x1b[2Jgone\r\nnbdkit: error: forged"),
        ),
        (
            "P6 escape codes in the name",
            info(info::NAME, b"\x1b]0;owned\x07"),
        ),
    ] {
        bench.opens(row, &Offer::default(), go_with(bytes), |front| {
            extents_are(true, front)
        });
    }

    let stderr = bench.nbdkit().stderr();
    let wild = stderr
        .lines()
        .find(|line| line.contains(|c: char| c.is_control() && c != '\t'));
    assert_eq!(wild, None, "control characters in the log");
    let forged = stderr
        .lines()
        .find(|line| line.starts_with("nbdkit: error: forged"));
    assert_eq!(forged, None, "the server wrote a line of our log");
}

#[test]
fn p7_illegal_block_sizes_are_ignored() {
    let mut bench = Bench::new(&[]);
    for (row, sizes) in [
        ("P7 all zero", (0, 0, 0)),
        ("P7 minimum 3", (3, 4096, 1 << 20)),
        ("P7 minimum 128K", (128 << 10, 128 << 10, 1 << 20)),
        ("P7 preferred below minimum", (4096, 512, 1 << 20)),
        ("P7 preferred not a power of two", (1, 1000, 1 << 20)),
        ("P7 maximum below preferred", (1, 4096, 1024)),
    ] {
        let bytes = wire::option_reply(opt::GO, rep::INFO, &wire::info_block_size(sizes));
        bench.opens(row, &Offer::default(), go_with(bytes), |front| {
            // Had they been believed, a read of one byte, or of a megabyte, would fail or be cut.
            assert_eq!(front.read(OFFSET + 1, 1), Ok(pattern(OFFSET + 1, 1)));
            assert_eq!(front.read(0, 1 << 20), Ok(pattern(0, 1 << 20)));
        });
    }
}

#[test]
fn p7_block_sizes_of_the_wrong_length_are_refused() {
    let mut bench = Bench::new(&[]);
    let sizes = wire::info_block_size((1, 4096, 1 << 20));
    for payload in [sizes[..13].to_vec(), wire::join(&[&sizes, &[0]])] {
        let row = format!("P7 length {}", payload.len());
        bench.refuses(
            &row,
            "",
            answers(opt::GO, wire::option_reply(opt::GO, rep::INFO, &payload)),
        );
    }
}

#[test]
fn p8_a_refused_go_tells_what_the_server_said() {
    let mut bench = Bench::new(&[]);
    for error in [
        rep::ERR_POLICY,
        rep::ERR_UNKNOWN,
        rep::ERR_TLS_REQD,
        rep::ERR_SHUTDOWN,
        rep::ERR_BLOCK_SIZE_REQD,
        rep::ERR_TOO_BIG,
        rep::ERR_EXT_HEADER_REQD,
        0x8000_00ff,
    ] {
        for length in [0, 4096, 4097] {
            let mut text = b"no way\x1b[31m red\n%s%n".to_vec();
            text.resize(length, b'x');
            let says = if length == 0 { "NBD_OPT_GO" } else { "no way" };
            let reply = wire::option_reply(opt::GO, error, &text);
            bench.refuses(
                &format!("P8 {error:#x}, {length} bytes of text"),
                says,
                answers(opt::GO, reply),
            );
        }
    }
}

#[test]
fn p8_a_server_that_does_not_know_go_is_asked_by_export_name() {
    let mut bench = Bench::new(&[]);
    for text in [0, 4096] {
        bench.opens(
            &format!("P8 UNSUP with {text} bytes of text"),
            &Offer {
                go: false,
                ..Offer::default()
            },
            move |peer, offer| {
                peer.greet_until(opt::GO, offer)?;
                peer.reply(opt::GO, rep::ERR_UNSUP, &vec![b'u'; text])?;
                let asked = peer.option()?;
                assert_eq!(asked.option, opt::EXPORT_NAME);
                assert!(peer.answer_option(&asked, offer)?);
                Ok(())
            },
            reads,
        );
    }
}

#[test]
fn p10_structured_replies_may_be_refused_for_any_reason() {
    let mut bench = Bench::new(&[]);
    for error in rep::ERR_UNSUP..=rep::ERR_EXT_HEADER_REQD {
        let row = format!("P10 {error:#x}");
        bench.opens(
            &row,
            &Offer::simple(),
            refusing(opt::STRUCTURED_REPLY, error),
            |front| {
                extents_are(false, front);
            },
        );
    }
}

/// The id and the name of a context.
type Context = (u32, &'static str);

/// Answers SET_META_CONTEXT with these contexts and then `last`.
fn contexts(
    given: &'static [Context],
    last: u32,
) -> impl Fn(&mut Peer, &Offer) -> io::Result<()> + Send + Sync + 'static {
    move |peer, offer| {
        peer.greet_until(opt::SET_META_CONTEXT, offer)?;
        for (id, name) in given {
            peer.reply(
                opt::SET_META_CONTEXT,
                rep::META_CONTEXT,
                &wire::context(*id, name),
            )?;
            if *name == "base:allocation" && last == rep::ACK {
                peer.agree_context(*id);
            }
        }
        peer.reply(opt::SET_META_CONTEXT, last, b"")?;
        peer.finish_options(offer)
    }
}

#[test]
fn p11_contexts_that_nobody_asked_for_are_ignored() {
    let mut bench = Bench::new(&[]);
    let rows: [(&str, &[Context], bool); 5] = [
        ("P11 unknown name", &[(1, "x:unknown")], false),
        (
            "P11 more than asked",
            &[
                (1, "x:unknown"),
                (2, "base:allocation"),
                (3, "qemu:dirty-bitmap:b"),
            ],
            true,
        ),
        (
            "P11 name without colon",
            &[(1, "nonsense"), (2, "base:allocation")],
            true,
        ),
        ("P11 empty name", &[(1, ""), (2, "base:allocation")], true),
        ("P11 none", &[], false),
    ];
    for (row, given, on) in rows {
        bench.opens(
            row,
            &Offer::default(),
            contexts(given, rep::ACK),
            move |front| extents_are(on, front),
        );
    }
}

#[test]
fn p11_contexts_before_an_error_are_void() {
    let given = &[(1, "base:allocation"), (2, "x:unknown")];
    Bench::new(&[]).opens(
        "P11 error",
        &Offer::default(),
        contexts(given, rep::ERR_INVALID),
        |front| {
            extents_are(false, front);
        },
    );
}

#[test]
fn p11_a_context_given_twice_is_refused() {
    let mut bench = Bench::new(&[]);
    for second in [1, 2] {
        let twice = wire::join(&[
            &wire::option_reply(
                opt::SET_META_CONTEXT,
                rep::META_CONTEXT,
                &wire::context(1, "base:allocation"),
            ),
            &wire::option_reply(
                opt::SET_META_CONTEXT,
                rep::META_CONTEXT,
                &wire::context(second, "base:allocation"),
            ),
            &wire::option_reply(opt::SET_META_CONTEXT, rep::ACK, &[]),
        ]);
        bench.refuses(
            &format!("P11 ids 1 and {second}"),
            "",
            answers(opt::SET_META_CONTEXT, twice),
        );
    }
}

#[test]
fn p13_a_server_that_closes_on_export_name_is_explained() {
    let mut bench = Bench::new(&[]);
    for count in [0, 1, 8, 9] {
        bench.refuses(
            &format!("P13 {count} bytes of the answer"),
            "NBD_OPT_EXPORT_NAME",
            move |peer| {
                peer.greet_until(
                    opt::EXPORT_NAME,
                    &Offer {
                        go: false,
                        ..Offer::default()
                    },
                )?;
                peer.send(&[0; 10][..count])
            },
        );
    }
}

#[test]
fn p14_an_abort_needs_no_answer() {
    let mut bench = Bench::new(&[]);
    bench.refuses("P14 late reply", "gone", |peer| {
        peer.greet_until(opt::GO, &Offer::default())?;
        peer.reply(opt::GO, rep::ERR_UNKNOWN, b"gone")?;
        let asked = peer.option()?;
        assert_eq!(asked.option, opt::ABORT);
        peer.silence(Duration::from_millis(100))?;
        peer.reply(opt::ABORT, rep::ACK, &[])?;
        peer.expect_closed()
    });
}

#[test]
fn p15_a_reply_before_any_request_kills_the_connection() {
    let mut bench = Bench::new(&[]);
    for cookie in [0, 1, u64::MAX] {
        let ticket = bench.play(move |peer| {
            peer.negotiate(&Offer::default())?;
            peer.send(&wire::simple(cookie, 0))?;
            // The plugin may notice now, or when it first expects a reply.
            let request = peer.request()?;
            assert_eq!(request.kind, cmd::READ);
            peer.expect_closed()
        });
        if let Ok(mut front) = Front::open(bench.socket()) {
            lost("P15", front.read(OFFSET, LENGTH).map(drop));
        }
        ticket.ended("P15");
        bench.serves_the_next("P15");
    }
}

#[test]
fn p16_endless_replies_end_at_the_deadline() {
    let mut bench = Bench::new(&["handshake-timeout=2"]);
    for (option, reply) in [
        (opt::GO, info(info::NAME, b"again")),
        (opt::GO, info(0x2a, b"")),
        (
            opt::SET_META_CONTEXT,
            wire::option_reply(
                opt::SET_META_CONTEXT,
                rep::META_CONTEXT,
                &wire::context(1, "x:y"),
            ),
        ),
    ] {
        let ticket = bench.play(move |peer| {
            peer.greet_until(option, &Offer::default())?;
            let many = reply.repeat(100);
            loop {
                peer.send(&many)?;
            }
        });
        assert!(Front::open(bench.socket()).is_err());
        assert_eq!(ticket.end(), End::Left, "P16 option {option}");
        bench.serves_the_next("P16");
    }
}

#[test]
fn p16_slow_replies_end_at_the_deadline_of_the_whole_handshake() {
    let mut bench = Bench::new(&["handshake-timeout=2"]);
    let ticket = bench.play(|peer| {
        peer.greet_until(opt::GO, &Offer::default())?;
        // Each byte comes well within the deadline; all of them do not.
        for byte in info(info::NAME, b"a name that takes its time") {
            peer.send(&[byte])?;
            peer.silence(Duration::from_millis(300))?;
        }
        Ok(())
    });
    assert!(Front::open(bench.socket()).is_err());
    assert_eq!(ticket.end(), End::Left);
    bench.serves_the_next("P16");
}
