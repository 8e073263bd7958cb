// SPDX-License-Identifier: BSD-3-Clause
//! Conversations in memory: a list of what the server says, and what must come of it.

mod again;
mod contexts;
mod ladder;
mod questions;

use super::*;
use crate::proto::codec::Writer;
use crate::proto::consts::{HandshakeFlags, InfoType, OPTION_REPLY_MAGIC, OptionReply};
use proptest::prelude::*;

const FLAGS: u16 = 0x0d0d;

fn name(text: &str) -> ExportName {
    ExportName::new(text).expect("a name")
}

/// Plays `server` to a handshake. The result is the export and everything the client sent.
fn play(export: &str, server: &[u8]) -> Result<(Export, Vec<u8>), Option<Error>> {
    let goal = Goal::open(&name(export));
    match pursue(goal, server)? {
        (Outcome::Export(export), sent) => Ok((*export, sent)),
        (other, _) => panic!("{other:?}"),
    }
}

/// Plays `server` to a handshake with any goal, which is left afterwards.
fn pursue(goal: Goal, server: &[u8]) -> Result<(Outcome, Vec<u8>), Option<Error>> {
    let mut machine = Handshake::new(goal);
    let (outcome, sent) = go_on(&mut machine, server)?;
    Ok((outcome, [sent, machine.goodbye()].concat()))
}

/// Plays `server` to a handshake until its goal is reached.
fn go_on(machine: &mut Handshake, server: &[u8]) -> Result<(Outcome, Vec<u8>), Option<Error>> {
    let mut sent = Vec::new();
    let mut rest = server;
    loop {
        match machine.step() {
            Step::Send(bytes) => sent.extend(bytes),
            Step::Receive(n) => {
                let Some((head, tail)) = rest.split_at_checked(n) else {
                    return Err(None);
                };
                machine.received(head).map_err(Some)?;
                rest = tail;
            }
            Step::StartTls => {
                sent.extend(b"<TLS>");
                machine.tls_established(TlsEstablished::by_transport());
            }
            Step::Done => return Ok((machine.outcome().expect("done"), sent)),
        }
    }
}

fn newstyle(flags: HandshakeFlags) -> Writer {
    Writer::default()
        .u64(INIT_MAGIC)
        .u64(NEWSTYLE_MAGIC)
        .u16(flags.bits())
}

/// The greeting of a server that knows no extended headers, and its answer to who asks for them.
fn compact(flags: HandshakeFlags) -> Writer {
    let unknown = reply(OptionType::EXTENDED_HEADERS, OptionReply::ERR_UNSUP, b"");
    newstyle(flags).bytes(&unknown)
}

fn reply(option: OptionType, reply: OptionReply, payload: &[u8]) -> Vec<u8> {
    Writer::default()
        .u64(OPTION_REPLY_MAGIC)
        .u32(option.0)
        .u32(reply.0)
        .u32(payload.len() as u32)
        .bytes(payload)
        .finish()
}

fn info_export(size: u64) -> Vec<u8> {
    let payload = Writer::default()
        .u16(InfoType::EXPORT.0)
        .u64(size)
        .u16(FLAGS);
    reply(OptionType::GO, OptionReply::INFO, &payload.finish())
}

/// A server with everything: structured replies, the context with id 7, block sizes, texts.
fn full_server() -> Vec<u8> {
    let unknown = reply(OptionType::EXTENDED_HEADERS, OptionReply::ERR_UNSUP, b"");
    full_server_with(&[
        unknown,
        reply(OptionType::STRUCTURED_REPLY, OptionReply::ACK, b""),
    ])
}

fn context_id(export: &Export) -> Option<u32> {
    export.context.as_ref().map(|agreed| agreed.id)
}

/// The same, with other answers to the first questions.
fn full_server_with(framing: &[Vec<u8>]) -> Vec<u8> {
    let context = Writer::default().u32(7).bytes(b"base:allocation").finish();
    let sizes = Writer::default()
        .u16(InfoType::BLOCK_SIZE.0)
        .u32(1)
        .u32(4096)
        .u32(1 << 20)
        .finish();
    let text = Writer::default()
        .u16(InfoType::DESCRIPTION.0)
        .bytes(b"a disk")
        .finish();
    newstyle(HandshakeFlags::all())
        .bytes(&framing.concat())
        .bytes(&reply(
            OptionType::SET_META_CONTEXT,
            OptionReply::META_CONTEXT,
            &context,
        ))
        .bytes(&reply(OptionType::SET_META_CONTEXT, OptionReply::ACK, b""))
        .bytes(&reply(OptionType::GO, OptionReply::INFO, &sizes))
        .bytes(&reply(OptionType::GO, OptionReply::INFO, &text))
        .bytes(&info_export(1 << 30))
        .bytes(&reply(OptionType::GO, OptionReply::ACK, b""))
        .finish()
}

#[test]
fn a_full_server_is_understood() {
    let (export, _) = play("disk", &full_server()).expect("handshake");
    assert_eq!(export.size, 1 << 30);
    assert_eq!(export.framing, Framing::Structured);
    assert_eq!(context_id(&export), Some(7));
    assert_eq!(export.description.as_deref(), Some("a disk"));
    assert_eq!(export.block_sizes, BlockSizes::checked(1, 4096, 1 << 20));
}

#[test]
fn an_oldstyle_server_is_understood() {
    let server = Writer::default()
        .u64(INIT_MAGIC)
        .u64(OLDSTYLE_MAGIC)
        .u64(12345)
        .u32(0xffff_0000 | u32::from(FLAGS))
        .bytes(&[0xaa; PADDING_LENGTH])
        .finish();
    let (export, sent) = play("ignored", &server).expect("handshake");
    assert_eq!(export.size, 12345);
    assert_eq!(export.framing, Framing::Simple);
    assert!(sent.is_empty(), "an oldstyle client says nothing");
}

const PADDING_LENGTH: usize = crate::proto::consts::PADDING;

#[test]
fn without_fixed_newstyle_only_export_name_is_sent() {
    let server = newstyle(HandshakeFlags::NO_ZEROES)
        .u64(4096)
        .u16(FLAGS)
        .finish();
    let (export, sent) = play("x", &server).expect("handshake");
    assert_eq!(export.size, 4096);
    let expected = Writer::default()
        .u32(u32::from(HandshakeFlags::NO_ZEROES.bits()))
        .u64(NEWSTYLE_MAGIC)
        .u32(OptionType::EXPORT_NAME.0)
        .string("x")
        .finish();
    assert_eq!(sent, expected);
}

#[test]
fn unsupported_go_falls_back_to_export_name() {
    let server = compact(HandshakeFlags::FIXED_NEWSTYLE)
        .bytes(&reply(
            OptionType::STRUCTURED_REPLY,
            OptionReply::ERR_UNSUP,
            b"",
        ))
        .bytes(&info_export(1))
        .bytes(&reply(OptionType::GO, OptionReply::ERR_UNSUP, b"what?"))
        .u64(8192)
        .u16(FLAGS)
        .bytes(&[0; PADDING_LENGTH])
        .finish();
    let (export, _) = play("", &server).expect("handshake");
    assert_eq!(export.size, 8192, "facts told before the error are void");
}

#[test]
fn a_refusal_carries_the_servers_text_made_printable() {
    let server = compact(HandshakeFlags::all())
        .bytes(&reply(
            OptionType::STRUCTURED_REPLY,
            OptionReply::ERR_POLICY,
            b"",
        ))
        .bytes(&reply(
            OptionType::GO,
            OptionReply::ERR_UNKNOWN,
            b"no\x1bway",
        ))
        .finish();
    let error = play("x", &server)
        .expect_err("refused")
        .expect("not cut short");
    assert_eq!(
        error.to_string(),
        "server refused NBD_OPT_GO: no export named \"x\" (no\\u{1b}way)"
    );
}

#[test]
fn a_long_text_of_a_server_is_cut() {
    let refusal = reply(OptionType::LIST, OptionReply::ERR_POLICY, &[b'x'; 5000]);
    let server = newstyle(HandshakeFlags::all()).bytes(&refusal).finish();
    let error = pursue(Goal::list(), &server).expect_err("refused");
    let told = error.expect("not cut short").to_string();
    assert!(
        told.ends_with(&format!("({}...)", "x".repeat(200))),
        "{told}"
    );
}

#[test]
fn a_server_that_insists_on_tls_is_told_with_what_to_do() {
    let refused = |goal: Goal, replies: &[Vec<u8>]| {
        let server = newstyle(HandshakeFlags::all())
            .bytes(&replies.concat())
            .finish();
        let error = pursue(goal, &server).expect_err("refused");
        error.expect("not cut short").to_string()
    };
    let insists = |option| reply(option, OptionReply::ERR_TLS_REQD, b"");
    let opening = [
        insists(OptionType::EXTENDED_HEADERS),
        insists(OptionType::STRUCTURED_REPLY),
        insists(OptionType::GO),
    ];
    assert_eq!(
        refused(Goal::open(&name("x")), &opening),
        "server refused NBD_OPT_GO: it insists on TLS (use tls=require), or has no export named \"x\""
    );
    assert_eq!(
        refused(Goal::list(), &[insists(OptionType::LIST)]),
        "server refused NBD_OPT_LIST: it insists on TLS (use tls=require)"
    );
    let consent = reply(OptionType::STARTTLS, OptionReply::ACK, b"");
    assert_eq!(
        refused(
            Goal::open(&name("x")).with_tls(TlsPolicy::Require),
            &[&[consent][..], &opening].concat()
        ),
        "server refused NBD_OPT_GO: it insists on TLS, which the connection has"
    );
}

#[test]
fn who_greets_like_another_is_recognised() {
    for (greeting, told) in [
        (&b"SSH-2.0-OpenSSH_9.2p1"[..], "this is an SSH server"),
        (b"SSH-2.0-Go\r\n", "this is an SSH server"),
        (b"HTTP/1.0 200 OK\r\n", "this is a web server"),
        (
            b"220 mail.example.org ESMTP",
            "it sent 0x323230206d61696c instead of NBDMAGIC",
        ),
    ] {
        let error = play("", greeting).expect_err("no NBD server");
        let told = format!("not an NBD server ({told})");
        assert_eq!(error.expect("not cut short").to_string(), told);
    }
}

#[test]
fn an_option_that_never_stops_is_a_violation() {
    let mut server = compact(HandshakeFlags::all())
        .bytes(&reply(
            OptionType::STRUCTURED_REPLY,
            OptionReply::ERR_UNSUP,
            b"",
        ))
        .finish();
    for _ in 0..2000 {
        server.extend(info_export(5));
    }
    assert_eq!(
        play("", &server).err(),
        Some(Some(Violation::OptionFlood(OptionType::GO).into()))
    );
}

/// What a client that requires TLS makes of a server.
fn require(server: &[u8]) -> Result<(Outcome, Vec<u8>), Option<Error>> {
    let goal = Goal::open(&name("secret"));
    pursue(goal.with_tls(TlsPolicy::Require), server)
}

#[test]
fn nothing_is_asked_before_tls() {
    let server = newstyle(HandshakeFlags::all())
        .bytes(&reply(OptionType::STARTTLS, OptionReply::ACK, b""))
        .bytes(&full_server()[18..])
        .finish();
    let (outcome, sent) = require(&server).expect("handshake");
    assert!(matches!(outcome, Outcome::Export(_)));
    let starttls = crate::proto::request::encode_option(OptionType::STARTTLS, &[]);
    assert_eq!(sent[4..4 + starttls.len()], starttls);
    assert!(sent[4 + starttls.len()..].starts_with(b"<TLS>"));
}

#[test]
fn required_tls_is_never_done_without() {
    let oldstyle = Writer::default()
        .u64(INIT_MAGIC)
        .u64(OLDSTYLE_MAGIC)
        .bytes(&[0; 136])
        .finish();
    let unfixed = newstyle(HandshakeFlags::NO_ZEROES).bytes(&[0; 10]).finish();
    let refusing = |with| {
        newstyle(HandshakeFlags::all())
            .bytes(&reply(OptionType::STARTTLS, with, b"no"))
            .bytes(&full_server()[18..])
            .finish()
    };
    for server in [
        oldstyle,
        unfixed,
        refusing(OptionReply::ERR_UNSUP),
        refusing(OptionReply::ERR_POLICY),
        refusing(OptionReply::ERR_PLATFORM),
        refusing(OptionReply::ERR_TLS_REQD),
    ] {
        let error = require(&server)
            .expect_err("refused")
            .expect("not cut short");
        assert!(error.to_string().starts_with("TLS is required"), "{error}");
    }
}

#[test]
fn a_payload_in_the_consent_to_tls_is_a_violation() {
    let server = newstyle(HandshakeFlags::all())
        .bytes(&reply(OptionType::STARTTLS, OptionReply::ACK, b"x"))
        .finish();
    assert!(matches!(require(&server), Err(Some(Error::Violation(_)))));
}

#[test]
fn allowed_tls_is_done_without_only_if_the_server_has_none() {
    let serve = |with| {
        newstyle(HandshakeFlags::all())
            .bytes(&reply(OptionType::STARTTLS, with, b""))
            .bytes(&full_server()[18..])
            .finish()
    };
    let allow = || Goal::open(&name("")).with_tls(TlsPolicy::Allow);
    for none in [
        OptionReply::ERR_UNSUP,
        OptionReply::ERR_PLATFORM,
        OptionReply::ERR_POLICY,
    ] {
        assert!(pursue(allow(), &serve(none)).is_ok());
    }
    assert!(pursue(allow(), &serve(OptionReply::ERR_INVALID)).is_err());
}

/// A server that lists these payloads.
fn listing(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut server = newstyle(HandshakeFlags::all());
    for entry in entries {
        server = server.bytes(&reply(OptionType::LIST, OptionReply::SERVER, entry));
    }
    let ack = reply(OptionType::LIST, OptionReply::ACK, b"");
    server.bytes(&ack).finish()
}

#[test]
fn a_list_keeps_what_adds_up() {
    let server = listing(&[
        Writer::default().string("").bytes(b"the default").finish(),
        Writer::default().string("disk/1").finish(),
        Writer::default().string("nul\0").finish(),
        Writer::default().string(b"caf\xe9").finish(),
        Writer::default().u32(u32::MAX).bytes(b"x").finish(),
        Writer::default().string("x".repeat(4097)).finish(),
        Writer::default().u16(1).finish(),
    ]);
    let (outcome, sent) = pursue(Goal::list(), &server).expect("list");
    let listed = |text: &[u8], description: &str| Listed {
        name: ExportName::new(text).expect("a name"),
        description: description.to_owned(),
    };
    assert_eq!(
        outcome,
        Outcome::Listing(vec![
            listed(b"", "the default"),
            listed(b"disk/1", ""),
            listed(b"caf\xe9", ""),
        ])
    );
    let abort = crate::proto::request::encode_option(OptionType::ABORT, &[]);
    assert!(sent.ends_with(&abort), "the server is told that we leave");
}

#[test]
fn a_list_is_bounded() {
    let entry = Writer::default().string("x").finish();
    let (outcome, _) = pursue(Goal::list(), &listing(&vec![entry; 100_000])).expect("list");
    assert!(matches!(outcome, Outcome::Listing(list) if list.len() == 10_000));
}

#[test]
fn a_lists_texts_are_bounded_too() {
    let entry = Writer::default()
        .string("x".repeat(4096))
        .bytes(&[b'y'; 4096])
        .finish();
    let (outcome, _) = pursue(Goal::list(), &listing(&vec![entry; 2000])).expect("list");
    assert!(matches!(outcome, Outcome::Listing(list) if list.len() == (4 << 20) / 8192));
}

#[test]
fn a_refused_list_is_an_error() {
    let server = newstyle(HandshakeFlags::all())
        .bytes(&reply(
            OptionType::LIST,
            OptionReply::SERVER,
            &Writer::default().string("x").finish(),
        ))
        .bytes(&reply(OptionType::LIST, OptionReply::ERR_POLICY, b""))
        .finish();
    let error = pursue(Goal::list(), &server).expect_err("refused");
    assert_eq!(
        error.expect("not cut short").to_string(),
        "server refused NBD_OPT_LIST: forbidden by the server's policy"
    );
}

#[test]
fn the_default_exports_name_is_asked_for() {
    let told = Writer::default()
        .u16(InfoType::NAME.0)
        .bytes(b"disk")
        .finish();
    let server = newstyle(HandshakeFlags::all())
        .bytes(&reply(OptionType::INFO, OptionReply::INFO, &told))
        .bytes(&reply(OptionType::INFO, OptionReply::ACK, b""))
        .finish();
    let (outcome, _) = pursue(Goal::describe_default(), &server).expect("info");
    let canonical_name = Some(name("disk"));
    let described = Described {
        canonical_name,
        ..Described::default()
    };
    assert_eq!(outcome, Outcome::Described(described));
}

#[test]
fn an_empty_list_is_empty() {
    let (outcome, _) = pursue(Goal::list(), &listing(&[])).expect("list");
    assert_eq!(outcome, Outcome::Listing(Vec::new()));
}

#[test]
fn sizes_above_two_to_the_63_are_refused() {
    for size in [1 << 63, u64::MAX] {
        let server = newstyle(HandshakeFlags::NO_ZEROES)
            .u64(size)
            .u16(FLAGS)
            .finish();
        assert_eq!(
            play("", &server).err(),
            Some(Some(Violation::Size(size).into()))
        );
    }
}

/// Nobody knows how large such an export is.
#[test]
fn an_option_reply_is_never_taken_for_a_size() {
    let refusal = reply(OptionType::EXPORT_NAME, OptionReply::ERR_UNKNOWN, b"");
    let server = newstyle(HandshakeFlags::NO_ZEROES).bytes(&refusal).finish();
    assert!(matches!(
        play("", &server),
        Err(Some(Error::Violation(Violation::OptionContent(
            OptionType::EXPORT_NAME,
            _
        ))))
    ));
}

proptest! {
    /// Damage of one bit never makes the machine panic, ask for unbounded input, or loop.
    #[test]
    fn a_damaged_bit_is_survived(bit in 0usize..full_server().len() * 8) {
        let mut server = full_server();
        server[bit / 8] ^= 1 << (bit % 8);
        let _ = play("disk", &server);
    }

    #[test]
    fn random_bytes_are_survived(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let server = newstyle(HandshakeFlags::all()).bytes(&tail).finish();
        let _ = play("disk", &server);
    }
}
