// SPDX-License-Identifier: BSD-3-Clause
//! Rows H of the catalogue: servers that misbehave before the first option.

mod common;

use std::io;
use std::time::Duration;

use common::front::Front;
use common::scripted::bench::{Ask, Bench, LENGTH, OFFSET, Verdict, lost};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, FIXED_NEWSTYLE, NO_ZEROES, RESERVED_MAGICS, cmd, flag};

/// Sends `bytes` and then nothing more, until the plugin loses patience.
fn stall_after(bytes: Vec<u8>) -> impl Fn(&mut Peer) -> io::Result<()> {
    move |peer| {
        peer.send(&bytes)?;
        peer.expect_closed()
    }
}

#[test]
fn h1_a_server_that_says_nothing_or_too_little_is_given_up_at_the_deadline() {
    let mut bench = Bench::new(&["handshake-timeout=2"]);
    let before = bench.nbdkit().stderr().len();
    let greeting = wire::greeting(FIXED_NEWSTYLE | NO_ZEROES);
    let tickets: Vec<_> = (0..greeting.len())
        .map(|count| bench.play(stall_after(greeting[..count].to_vec())))
        .collect();

    // All at once: together they take one deadline, not eighteen.
    std::thread::scope(|scope| {
        for _ in 0..greeting.len() {
            let socket = bench.socket();
            scope.spawn(|| assert!(Front::open(socket).is_err(), "opened on half a greeting"));
        }
    });

    for (count, ticket) in tickets.into_iter().enumerate() {
        ticket.finished(&format!("silent after {count} bytes"));
    }
    let stderr = bench.nbdkit().stderr();
    let errors = stderr[before..]
        .lines()
        .filter(|line| line.contains("error: ") && line.contains("handshake"));
    assert_eq!(
        errors.count(),
        greeting.len(),
        "one explanation each\n{stderr}"
    );
    bench.serves_the_next("H1");
}

#[test]
fn h1_the_deadline_holds_for_the_whole_handshake_not_for_each_byte() {
    let mut bench = Bench::new(&["handshake-timeout=2"]);
    // A byte every 300 ms would need five seconds for the greeting alone.
    let ticket = bench.play(|peer| {
        for byte in wire::greeting(FIXED_NEWSTYLE | NO_ZEROES) {
            peer.send(&[byte])?;
            peer.silence(Duration::from_millis(300))?;
        }
        Ok(())
    });

    assert!(Front::open(bench.socket()).is_err());

    assert_eq!(ticket.end(), common::scripted::End::Left);
    bench.serves_the_next("H1");
}

#[test]
fn h2_a_server_that_closes_during_the_greeting_is_refused() {
    let mut bench = Bench::new(&[]);
    let greeting = wire::greeting(FIXED_NEWSTYLE | NO_ZEROES);
    for count in 0..=greeting.len() {
        let part = greeting[..count].to_vec();
        // After the 18th byte it is the client's flags that are cut off.
        bench.refuses(&format!("H2 closes after {count} bytes"), "", move |peer| {
            peer.send(&part)
        });
    }
}

#[test]
fn h3_something_that_is_not_an_nbd_server_is_refused() {
    let mut bench = Bench::new(&[]);
    const STRANGER: &str = "not an NBD server";
    let mut openings: Vec<(String, &str, Vec<u8>)> = vec![
        (
            "HTTP".into(),
            "not an NBD server (this is a web server)",
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec(),
        ),
        (
            "SSH".into(),
            "not an NBD server (this is an SSH server)",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n".to_vec(),
        ),
        (
            "a short one".into(),
            "not an NBD server (this is an SSH server)",
            b"SSH-2.0-Go\r\n".to_vec(),
        ),
        (
            "TLS alert".into(),
            STRANGER,
            wire::join(&[&[0x15, 3, 1, 0, 2, 2, 40], &[0; 16]]),
        ),
    ];
    for magic in RESERVED_MAGICS {
        openings.push((
            format!("{magic:#x}"),
            STRANGER,
            wire::join(&[&magic.to_be_bytes(), &[0; 20]]),
        ));
    }

    for (name, says, opening) in openings {
        bench.refuses(&format!("H3 {name}"), says, stall_after(opening));
    }
}

#[test]
fn h4_an_unknown_second_magic_is_refused() {
    let opening = wire::join(&[&wire::INIT_MAGIC.to_be_bytes(), &[0x42; 16]]);
    Bench::new(&[]).refuses("H4", "", stall_after(opening));
}

#[test]
fn h5_an_oldstyle_server_may_be_empty() {
    let offer = Offer {
        size: 0,
        ..Offer::simple()
    };
    Bench::new(&[]).opens("H5 size 0", &offer, Peer::greet_oldstyle, |front| {
        assert_eq!(front.export().size, 0);
        assert_eq!(front.flush(), Ok(()));
    });
}

#[test]
fn h5_the_upper_half_of_oldstyle_flags_and_the_padding_are_ignored() {
    let offer = Offer::simple();
    Bench::new(&[]).opens(
        "H5 junk in a greeting",
        &offer,
        |peer, offer| {
            peer.promise(offer);
            peer.send(&wire::oldstyle_greeting(
                offer.size,
                0xffff_0000 | u32::from(offer.flags),
                0xaa,
            ))
        },
        |front| {
            assert_eq!(front.export().size, 1 << 20);
            assert_eq!(
                front.read(OFFSET, LENGTH),
                Ok(pattern(OFFSET, LENGTH as usize))
            );
        },
    );
}

#[test]
fn h5_an_oldstyle_server_without_has_flags_has_no_abilities() {
    let abilities = flag::SEND_FLUSH | flag::SEND_TRIM | flag::SEND_FUA | flag::READ_ONLY;
    let offer = Offer {
        flags: 0,
        ..Offer::simple()
    };
    Bench::new(&[]).opens(
        "H5 no HAS_FLAGS",
        &offer,
        move |peer, offer| {
            peer.promise(offer);
            peer.send(&wire::oldstyle_greeting(
                offer.size,
                u32::from(abilities),
                0,
            ))
        },
        |front| {
            assert_eq!(
                front.export().flags & (flag::SEND_FLUSH | flag::SEND_TRIM),
                0
            );
            assert_eq!(
                front.read(OFFSET, LENGTH),
                Ok(pattern(OFFSET, LENGTH as usize))
            );
        },
    );
}

#[test]
fn h5_an_oldstyle_greeting_cut_in_its_padding_is_refused() {
    let mut bench = Bench::new(&[]);
    let greeting = wire::oldstyle_greeting(1 << 20, 1, 0);
    for count in [16, 24, 28, 29, 100, 151] {
        let part = greeting[..count].to_vec();
        bench.refuses(&format!("H5 cut after {count} bytes"), "", move |peer| {
            peer.send(&part)
        });
    }
}

#[test]
fn h6_unknown_handshake_flags_are_ignored_and_not_echoed() {
    let offer = Offer {
        handshake_flags: 0xffff,
        ..Offer::default()
    };
    Bench::new(&[]).opens(
        "H6",
        &offer,
        |peer, offer| {
            peer.negotiate(offer)?;
            assert_eq!(peer.client_flags(), u32::from(FIXED_NEWSTYLE | NO_ZEROES));
            Ok(())
        },
        |front| {
            assert_eq!(
                front.read(OFFSET, LENGTH),
                Ok(pattern(OFFSET, LENGTH as usize))
            )
        },
    );
}

#[test]
fn h6_flags_that_were_not_offered_are_not_sent() {
    let offer = Offer {
        handshake_flags: FIXED_NEWSTYLE,
        ..Offer::default()
    };
    Bench::new(&[]).opens(
        "H6 FIXED_NEWSTYLE alone",
        &offer,
        |peer, offer| {
            peer.negotiate(offer)?;
            assert_eq!(peer.client_flags(), u32::from(FIXED_NEWSTYLE));
            Ok(())
        },
        |front| {
            assert_eq!(
                front.read(OFFSET, LENGTH),
                Ok(pattern(OFFSET, LENGTH as usize))
            )
        },
    );
}

#[test]
fn h7_a_server_without_fixed_newstyle_is_only_asked_for_the_export() {
    let mut bench = Bench::new(&[]);
    for handshake_flags in [0, NO_ZEROES] {
        let offer = Offer {
            handshake_flags,
            ..Offer::simple()
        };
        bench.opens(
            &format!("H7 handshake flags {handshake_flags}"),
            &offer,
            |peer, offer| {
                peer.greet(offer.handshake_flags)?;
                let asked = peer.option()?;
                assert_eq!(asked.option, wire::opt::EXPORT_NAME);
                assert!(peer.answer_option(&asked, offer)?);
                Ok(())
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

#[test]
fn h7_missing_padding_is_waited_for_until_the_deadline() {
    let offer = Offer::simple();
    let answer = wire::join(&[&offer.size.to_be_bytes(), &offer.flags.to_be_bytes()]);
    Bench::new(&["handshake-timeout=2"]).refuses("H7 padding missing", "", move |peer| {
        peer.greet(0)?;
        peer.option()?;
        peer.send(&answer)?;
        peer.expect_closed()
    });
}

#[test]
fn h7_padding_that_was_waived_is_garbage_before_the_first_reply() {
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        handshake_flags: NO_ZEROES,
        ..Offer::simple()
    };
    let ticket = bench.play(move |peer| {
        peer.greet(offer.handshake_flags)?;
        let asked = peer.option()?;
        peer.answer_option(&asked, &offer)?;
        peer.send(&[0; 124])?;
        let request = peer.request()?;
        assert_eq!(request.kind, cmd::READ);
        peer.answer(&request, &mut Disk::new(offer.size))?;
        peer.expect_closed()
    });

    // Whether opening already notices depends on whether the padding comes in the same packet.
    if let Ok(mut front) = Front::open(bench.socket()) {
        lost("H7", front.read(OFFSET, LENGTH).map(drop));
    }

    ticket.ended("H7");
    bench.serves_the_next("H7");
}

/// The row that proves the bench itself: a good server, played through every verdict's machinery.
#[test]
fn a_good_server_is_served() {
    let mut bench = Bench::new(&[]);
    for offer in [Offer::default(), Offer::simple()] {
        let structured = offer.structured;
        bench.row(
            "good",
            &offer,
            &Ask::read(),
            Verdict::Fine,
            move |request| Disk::new(1 << 20).answer(request, structured, None),
        );
    }
}
