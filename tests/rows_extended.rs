// SPDX-License-Identifier: BSD-3-Clause
//! Rows X of the catalogue: servers that agree to extended headers and then misbehave. What the other rows show
//! of structured replies they show of extended headers, too: see `Bench::row`.

mod common;

use common::front::Front;
use common::scripted::bench::{Ask, Bench, LENGTH, OFFSET, Verdict, all};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Request};
use common::scripted::wire::{self, DONE, MORE, chunk_type, cmd, errno, opt, rep};

fn id() -> u32 {
    Offer::default().contexts[0].0
}

/// A row about a request to a server with extended headers.
fn row(
    bench: &mut Bench,
    row: &str,
    ask: &Ask,
    verdict: Verdict,
    reply: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
) {
    bench.row(row, &Offer::extended(), ask, verdict, reply);
}

/// The right data for the whole of a read.
fn whole(request: &Request, offset: u64) -> Vec<u8> {
    let (start, length) = (request.offset, request.length as usize);
    let payload = wire::join(&[&start.to_be_bytes(), &pattern(start, length)]);
    wire::extended_chunk(
        DONE,
        chunk_type::OFFSET_DATA,
        request.cookie,
        offset,
        &payload,
    )
}

#[test]
fn a_good_answer_to_each_command_reaches_the_client() {
    let mut bench = Bench::new(&[]);
    row(&mut bench, "read", &Ask::read(), Verdict::Fine, |request| {
        whole(request, request.offset)
    });
    for kind in [
        cmd::WRITE,
        cmd::FLUSH,
        cmd::TRIM,
        cmd::WRITE_ZEROES,
        cmd::CACHE,
    ] {
        let ask = Ask::command(kind);
        row(
            &mut bench,
            &format!("command {kind}"),
            &ask,
            Verdict::Fine,
            |request| {
                let kind = chunk_type::NONE;
                wire::extended_chunk(DONE, kind, request.cookie, request.offset, &[])
            },
        );
    }
}

#[test]
fn extents_of_64_bits_are_cut_at_the_end_of_the_export() {
    const REST: u32 = (1 << 20) - OFFSET as u32;
    let mut bench = Bench::new(&[]);
    let extents = Verdict::Extents(&[(REST, 3)]);
    for length in [1 << 32, (1 << 32) + 1, 1 << 63, u64::MAX] {
        row(
            &mut bench,
            &format!("B3 {length}"),
            &Ask::status(),
            extents,
            move |request| {
                let payload = wire::extended_status(id(), 2, &[(length, 3), (length, 0)]);
                let kind = chunk_type::BLOCK_STATUS_EXT;
                wire::extended_chunk(DONE, kind, request.cookie, request.offset, &payload)
            },
        );
    }
    let masked = Verdict::Extents(&[(LENGTH, 1)]);
    row(&mut bench, "B6 bits", &Ask::status(), masked, |request| {
        let payload = wire::extended_status(id(), 1, &[(LENGTH.into(), 0xffff_ffff_ffff_fffd)]);
        let kind = chunk_type::BLOCK_STATUS_EXT;
        wire::extended_chunk(DONE, kind, request.cookie, request.offset, &payload)
    });
}

/// Sixteen or twenty bytes are all that comes: whoever waits for 32 waits for ever. The next connection does without
/// extended headers, so that each has an nbdkit of its own.
#[test]
fn x1_a_compact_reply_kills_the_connection_at_once() {
    let play = |name: &str, ask: &Ask, got: &str, reply: fn(&Request) -> Vec<u8>| {
        for dribble in [false, true] {
            let mut bench = Bench::new(&[]);
            bench.kills_once(name, &Offer::extended(), ask, dribble, reply);
            let told = format!(
                "protocol violation: a message of {got} replies although extended headers were agreed \
                 (quirks=no-extended does without them)"
            );
            let log = bench.nbdkit().stderr();
            assert!(log.contains(&told), "{told}\n{log}");
        }
    };
    for kind in [cmd::READ, cmd::WRITE, cmd::FLUSH] {
        let ask = if kind == cmd::READ {
            Ask::read()
        } else {
            Ask::command(kind)
        };
        let name = format!("X1 simple, command {kind}");
        play(&name, &ask, "simple", |request| {
            wire::simple(request.cookie, 0)
        });
        let name = format!("X1 simple error, command {kind}");
        play(&name, &ask, "simple", |request| {
            wire::simple(request.cookie, errno::EIO)
        });
    }
    let trim = Ask::command(cmd::TRIM);
    play("X1 none", &trim, "structured", |request| {
        wire::none(request.cookie)
    });
    play("X1 data", &Ask::read(), "structured", |request| {
        all(DONE, request.cookie)
    });
}

#[test]
fn x2_a_reply_about_another_offset_kills_the_connection() {
    let mut bench = Bench::new(&[]);
    for offset in [
        0,
        OFFSET - 1,
        OFFSET + u64::from(LENGTH),
        OFFSET | 1 << 63,
        u64::MAX,
    ] {
        let name = format!("X2 read, offset {offset}");
        row(
            &mut bench,
            &name,
            &Ask::read(),
            Verdict::Dead,
            move |request| whole(request, offset),
        );
        let name = format!("X2 trim, offset {offset}");
        let ask = Ask::command(cmd::TRIM);
        row(&mut bench, &name, &ask, Verdict::Dead, move |request| {
            wire::extended_chunk(DONE, chunk_type::NONE, request.cookie, offset, &[])
        });
    }
}

#[test]
fn x3_a_length_that_nothing_has_kills_the_connection_and_takes_no_memory() {
    let mut bench = Bench::new(&[]);
    let lengths = [
        (32 << 20) + 9,
        u32::MAX.into(),
        (1 << 32) + 520,
        1 << 63,
        u64::MAX,
    ];
    for kind in [
        chunk_type::NONE,
        chunk_type::OFFSET_DATA,
        chunk_type::ERROR,
        chunk_type::BLOCK_STATUS_EXT,
        0x7fff,
    ] {
        for length in lengths {
            let name = format!("X3 chunk {kind:#x}, length {length}");
            row(
                &mut bench,
                &name,
                &Ask::read(),
                Verdict::Dead,
                move |request| {
                    let cookie = request.cookie;
                    wire::extended_header(MORE, kind, cookie, request.offset, length)
                },
            );
        }
    }
    // As in row C16.
    let peak = bench.peak_address_space_kib();
    assert!(peak < 3 << 20, "nbdkit's address space once was {peak} KiB");
}

#[test]
fn x4_the_status_chunk_of_the_other_framing_fails_the_query() {
    let mut bench = Bench::new(&[]);
    let fails = Verdict::Fails(errno::EIO);
    row(
        &mut bench,
        "X4 type 5 after option 11",
        &Ask::status(),
        fails,
        |request| {
            let payload = wire::join(&[&id().to_be_bytes(), &LENGTH.to_be_bytes(), &[0; 4]]);
            let kind = chunk_type::BLOCK_STATUS;
            wire::extended_chunk(DONE, kind, request.cookie, request.offset, &payload)
        },
    );
    bench.row(
        "X4 type 6 without option 11",
        &Offer::default(),
        &Ask::status(),
        fails,
        |request| {
            let payload = wire::extended_status(id(), 1, &[(LENGTH.into(), 0)]);
            wire::chunk(DONE, chunk_type::BLOCK_STATUS_EXT, request.cookie, &payload)
        },
    );
}

#[test]
fn x5_descriptors_that_do_not_add_up_fail_the_query() {
    let mut bench = Bench::new(&[]);
    let fails = Verdict::Fails(errno::EIO);
    let good = wire::extended_status(id(), 1, &[(LENGTH.into(), 0)]);
    for length in [0, 4, 7, 8, 9, 16, 20, 23] {
        let payload = good[..length].to_vec();
        let name = format!("X5 payload of {length} bytes");
        row(&mut bench, &name, &Ask::status(), fails, move |request| {
            let kind = chunk_type::BLOCK_STATUS_EXT;
            wire::extended_chunk(DONE, kind, request.cookie, request.offset, &payload)
        });
    }
    for count in [0, 2, 1 << 28, u32::MAX] {
        let name = format!("X5 {count} of one descriptor");
        row(&mut bench, &name, &Ask::status(), fails, move |request| {
            let payload = wire::extended_status(id(), count, &[(LENGTH.into(), 0)]);
            let kind = chunk_type::BLOCK_STATUS_EXT;
            wire::extended_chunk(DONE, kind, request.cookie, request.offset, &payload)
        });
    }
    row(
        &mut bench,
        "B2 no length",
        &Ask::status(),
        fails,
        |request| {
            let payload = wire::extended_status(id(), 1, &[(0, 0)]);
            let kind = chunk_type::BLOCK_STATUS_EXT;
            wire::extended_chunk(DONE, kind, request.cookie, request.offset, &payload)
        },
    );
}

#[test]
fn m2_an_unknown_cookie_and_c15_a_chunk_too_many_kill_the_connection() {
    let mut bench = Bench::new(&[]);
    row(&mut bench, "M2", &Ask::read(), Verdict::Dead, |request| {
        let cookie = request.cookie ^ 1 << 40;
        wire::extended_chunk(DONE, chunk_type::NONE, cookie, request.offset, &[])
    });
    let ask = Ask::command(cmd::TRIM);
    row(
        &mut bench,
        "C15",
        &ask,
        Verdict::DeadAfter(Ok(())),
        |request| {
            let (cookie, offset) = (request.cookie, request.offset);
            wire::extended_chunk(DONE, chunk_type::NONE, cookie, offset, &[]).repeat(2)
        },
    );
}

#[test]
fn p9_after_option_11_a_refusal_of_go_is_final() {
    let mut bench = Bench::new(&[]);
    let says = "server refused NBD_OPT_GO: the server does not know it, although it agreed to extended headers \
                (quirks=no-extended)";
    bench.refuses("P9", says, |peer| {
        let offer = Offer::extended();
        peer.greet_until(opt::GO, &offer)?;
        peer.reply(opt::GO, rep::ERR_UNSUP, b"")?;
        let asked = peer.option()?;
        assert_eq!(asked.option, opt::ABORT, "and nothing else");
        Ok(())
    });
}

#[test]
fn whatever_the_refusal_of_option_11_structured_replies_come_next() {
    let mut bench = Bench::new(&[]);
    for error in [
        rep::ERR_UNSUP,
        rep::ERR_POLICY,
        rep::ERR_INVALID,
        rep::ERR_PLATFORM,
        rep::ERR_SHUTDOWN,
        rep::ERR_TOO_BIG,
        rep::ERR_EXT_HEADER_REQD,
        0x8000_00ff,
    ] {
        bench.opens(
            &format!("option 11 refused with {error:#x}"),
            &Offer::default(),
            move |peer, offer| {
                peer.greet_until(opt::EXTENDED_HEADERS, offer)?;
                peer.reply(opt::EXTENDED_HEADERS, error, b"no")?;
                let asked = peer.option()?;
                assert_eq!(asked.option, opt::STRUCTURED_REPLY);
                peer.answer_option(&asked, offer)?;
                peer.finish_options(offer)
            },
            |front| {
                assert_eq!(
                    front.read(OFFSET, LENGTH),
                    Ok(pattern(OFFSET, LENGTH as usize))
                )
            },
        );
    }
}

/// The disk of a server with extended headers works like any other.
#[test]
fn a_disk_with_extended_headers_is_served() {
    let bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        let offer = Offer::extended();
        peer.negotiate(&offer)?;
        peer.serve(&mut Disk::new(offer.size))
    });
    let mut front: Front = bench.open_structured();
    assert_eq!(front.read(0, 1 << 20), Ok(pattern(0, 1 << 20)));
    assert_eq!(front.write(512, &[7; 4096]), Ok(()));
    assert_eq!(front.zero(1024, 512, 0), Ok(()));
    assert_eq!(front.trim(0, 512), Ok(()));
    assert_eq!(front.flush(), Ok(()));
    let expected = [vec![7; 512], vec![0; 512], vec![7; 512]].concat();
    assert_eq!(front.read(512, 1536), Ok(expected));
    assert_eq!(
        front.status(0, 1 << 20),
        Ok(vec![(512 << 10, 0), (256 << 10, 3), (256 << 10, 0)])
    );
    front.close();
    ticket.finished("served");
}
