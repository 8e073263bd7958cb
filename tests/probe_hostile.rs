// SPDX-License-Identifier: BSD-3-Clause
//! `probe=` before servers that hang up over questions, fall silent, or say what would do harm.

mod common;

use std::io;
use std::os::unix::net::UnixListener;
use std::thread;

use serde_json::json;

use common::nbdkit::printed;
use common::probed::{answer, report, socket, suggested, told};
use common::scripted::Scripted;
use common::scripted::peer::{Asked, Offer, Peer};
use common::scripted::wire::{self, flag, opt, rep};
use common::{need, need_all};

/// A scripted connection that is answered as by `offer`, and hangs up where one of `fatal` is asked.
fn hangs_up(server: &Scripted, offer: Offer, fatal: &'static [u32]) {
    server.play(move |peer| {
        peer.greet(offer.handshake_flags)?;
        loop {
            let asked = peer.option()?;
            if fatal.contains(&asked.option) || !answered(peer, asked.option, &asked.data, &offer)?
            {
                return Ok(());
            }
        }
    });
}

/// What the scripted server does not know by itself.
fn answered(peer: &mut Peer, option: u32, data: &[u8], offer: &Offer) -> io::Result<bool> {
    match option {
        opt::INFO if offer.go => {
            let export = wire::join(&[
                &0_u16.to_be_bytes(),
                &offer.size.to_be_bytes(),
                &offer.flags.to_be_bytes(),
            ]);
            peer.reply(option, rep::INFO, &export)?;
            peer.reply(option, rep::ACK, &[])?;
        }
        opt::ABORT => return Ok(false),
        _ => {
            let asked = Asked {
                option,
                data: data.to_vec(),
            };
            return Ok(!peer.answer_option(&asked, offer)?);
        }
    }
    Ok(true)
}

#[test]
fn questions_that_a_server_dies_of_are_told_and_suggested_away() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let place = socket(server.socket());
    for (fatal, quirks) in [
        (&[opt::EXTENDED_HEADERS][..], "quirks=no-extended"),
        (
            &[opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY],
            "quirks=no-extended,no-structured",
        ),
        (&[opt::SET_META_CONTEXT], "quirks=no-meta"),
    ] {
        let fatal: &'static [u32] = Box::leak(fatal.to_vec().into_boxed_slice());
        for _ in 0..=fatal.len() {
            hangs_up(&server, Offer::default(), fatal);
        }
        let seen = report(&[&place]);
        assert_eq!(suggested(&seen), [quirks]);
        assert_eq!(seen["export"]["size"], 1 << 20);
    }
    hangs_up(&server, Offer::default(), &[opt::EXTENDED_HEADERS]);
    hangs_up(&server, Offer::default(), &[opt::EXTENDED_HEADERS]);
    let seen = told(&[&place]);
    assert!(
        seen.contains("NBD_OPT_EXTENDED_HEADERS: the server hung up\n"),
        "{seen}"
    );
    // And with the quirk it is not asked at all.
    hangs_up(&server, Offer::default(), &[opt::EXTENDED_HEADERS]);
    let seen = report(&[&place, "quirks=no-extended"]);
    assert_eq!(answer(&seen, "NBD_OPT_EXTENDED_HEADERS"), "not asked");
    assert_eq!(suggested(&seen), [""; 0]);
}

/// A server that tells of an export to those only who open it.
#[test]
fn a_server_from_before_info_is_opened_and_left() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let offer = Offer {
        go: false,
        flags: flag::HAS_FLAGS | flag::READ_ONLY,
        ..Offer::simple()
    };
    let ticket = server.play(move |peer| {
        peer.greet(offer.handshake_flags)?;
        loop {
            let asked = peer.option()?;
            if peer.answer_option(&asked, &offer)? {
                break;
            }
        }
        let request = peer.request()?;
        assert_eq!(request.kind, wire::cmd::DISC);
        peer.expect_closed()
    });
    let seen = report(&[&socket(server.socket())]);
    ticket.finished("it is told that it is left");
    assert_eq!(answer(&seen, "NBD_OPT_INFO"), "refused NBD_REP_ERR_UNSUP");
    assert_eq!(seen["export"]["size"], 1 << 20);
    assert_eq!(seen["round_trip"]["rounds"], 5, "a refusal takes as long");
    assert_eq!(suggested(&seen), ["connections=4"], "read-only");
}

/// Names and texts in which everything stands that could mean more than it says.
#[test]
fn hostile_names_are_one_line_and_arrive_whole() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    const NAME: &str = "\"\\\n\u{1b}[2J\u{202e}$(reboot)'\u{7f}\t";
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let place = socket(server.socket());
    let answer_all = |peer: &mut Peer| {
        let offer = Offer::default();
        peer.greet(offer.handshake_flags)?;
        loop {
            let asked = peer.option()?;
            match asked.option {
                opt::LIST => {
                    for name in [NAME.as_bytes(), b"caf\xe9"] {
                        let length = u32::try_from(name.len()).expect("short");
                        let entry = wire::join(&[&length.to_be_bytes(), name, NAME.as_bytes()]);
                        peer.reply(opt::LIST, rep::SERVER, &entry)?;
                    }
                    peer.reply(opt::LIST, rep::ACK, &[])?;
                }
                opt::LIST_META_CONTEXT => {
                    let context = wire::join(&[&[0; 4], b"x:", NAME.as_bytes()]);
                    peer.reply(asked.option, rep::META_CONTEXT, &context)?;
                    peer.reply(asked.option, rep::ACK, &[])?;
                }
                opt::EXTENDED_HEADERS => {
                    peer.reply(asked.option, rep::ERR_POLICY, NAME.as_bytes())?
                }
                _ if !answered(peer, asked.option, &asked.data, &offer)? => return Ok(()),
                _ => (),
            }
        }
    };
    server.play(answer_all);
    let seen = report(&[&place]);
    let exports = seen["exports"]["first"].as_array().expect("a list");
    assert_eq!(exports[0]["name"], NAME);
    assert_eq!(exports[0]["description"], NAME);
    assert_eq!(exports[1]["name_hex"], "636166e9");
    assert_eq!(seen["export"]["contexts"], json!([format!("x:{NAME}")]));
    server.play(answer_all);
    let seen = told(&[&place]);
    let odd = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!seen.contains(odd), "{seen:?}");
    assert!(seen.contains("caf\\xe9"), "{seen}");
    server.play(answer_all);
    let (_, stdout, _) = printed(&[&place, "probe=json"]);
    assert!(
        !stdout.trim_end().contains(|c: char| odd(c) || c == '\n'),
        "{stdout:?}"
    );
}

/// What is suggested is there to be typed: a name that shows as another one is none to suggest.
#[test]
fn a_name_that_shows_as_another_is_not_suggested() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let place = socket(server.socket());
    for (name, suggests) in [("disk", true), ("a\u{202e}b", false)] {
        let answer_all = move |peer: &mut Peer| {
            let offer = Offer::default();
            peer.greet(offer.handshake_flags)?;
            loop {
                let asked = peer.option()?;
                match asked.option {
                    opt::LIST => {
                        let length = u32::try_from(name.len()).expect("short");
                        let entry = wire::join(&[&length.to_be_bytes(), name.as_bytes()]);
                        peer.reply(opt::LIST, rep::SERVER, &entry)?;
                        peer.reply(opt::LIST, rep::ACK, &[])?;
                    }
                    opt::INFO => peer.reply(opt::INFO, rep::ERR_UNKNOWN, b"")?,
                    _ if !answered(peer, asked.option, &asked.data, &offer)? => return Ok(()),
                    _ => (),
                }
            }
        };
        server.play(answer_all);
        let seen = told(&[&place]);
        assert_eq!(seen.contains("export=disk"), suggests, "{seen:?}");
        assert!(!seen.contains('\u{202e}'), "{seen:?}");
    }
}

#[test]
fn a_list_without_end_is_cut() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    server.play(|peer| {
        let offer = Offer::default();
        let mut sizes = 0;
        peer.greet(offer.handshake_flags)?;
        loop {
            let asked = peer.option()?;
            match asked.option {
                opt::LIST => {
                    let replies: Vec<_> = (0..20_000_u32)
                        .map(|number| {
                            let name = format!("{number:06}");
                            let entry = wire::join(&[&6_u32.to_be_bytes(), name.as_bytes()]);
                            wire::option_reply(opt::LIST, rep::SERVER, &entry)
                        })
                        .collect();
                    peer.send(&replies.concat())?;
                    peer.reply(opt::LIST, rep::ACK, &[])?;
                }
                option => {
                    sizes += u32::from(option == opt::INFO);
                    // One for the export, five that are timed, and the sizes.
                    assert!(sizes <= 106, "{sizes}");
                    if !answered(peer, option, &asked.data, &offer)? {
                        return Ok(());
                    }
                }
            }
        }
    });
    let seen = report(&[&socket(server.socket())]);
    assert_eq!(seen["exports"]["total"], 10_000);
    let first = seen["exports"]["first"].as_array().expect("a list");
    assert_eq!(first.len(), 100);
    assert!(first.iter().all(|entry| entry["size"] == 1 << 20));
}

#[test]
fn a_server_that_is_silent_is_an_error_in_time() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("mute");
    let listener = UnixListener::bind(&path).expect("listen");
    let mute = thread::spawn(move || listener.accept().map(|(stream, _)| stream));
    let (status, stdout, stderr) = printed(&[&socket(&path), "handshake-timeout=1", "probe=json"]);
    assert_eq!((status, &*stdout), (Some(1), ""), "{stderr}");
    assert!(
        stderr.contains("handshake: timed out after 1 second"),
        "{stderr}"
    );
    drop(mute.join());
}

#[test]
fn nobody_there_is_the_usual_message() {
    if !need("nbdkit") {
        return;
    }
    for form in ["probe=1", "probe=json"] {
        let (status, stdout, stderr) = printed(&["socket=/nowhere/s", form]);
        assert_eq!((status, &*stdout), (Some(1), ""), "{stderr}");
        assert_eq!(
            stderr,
            "nbdkit: error: /nowhere/s: connect: No such file or directory\n"
        );
    }
}

/// A child of nbdkit's looks names up as long as there may be no thread.
#[test]
fn a_host_that_has_no_name_is_told_once() {
    if !need("nbdkit") {
        return;
    }
    for connects_early in ["probe=1", "shared=true"] {
        let (status, stdout, stderr) = printed(&["hostname=no host", connects_early]);
        assert_eq!((status, &*stdout), (Some(1), ""), "{stderr}");
        let told = "no host:10809: connect: cannot look up the name: ";
        assert!(stderr.contains(told), "{stderr}");
        assert_eq!(stderr.matches("cannot look up").count(), 1, "{stderr}");
    }
}
