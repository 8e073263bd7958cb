//! Conversations in memory: a list of what the server says, and what must come of it.

use super::*;
use crate::proto::codec::Writer;
use crate::proto::consts::{HandshakeFlags, InfoType, OPTION_REPLY_MAGIC, OptionReply};
use proptest::prelude::*;

const FLAGS: u16 = 0x0d0d;

/// Plays `server` to a handshake. The result is the export and everything the client sent.
fn play(export: &str, server: &[u8]) -> Result<(Export, Vec<u8>), Option<Error>> {
    let mut machine = Handshake::new(Goal::new(export).expect("short name"));
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
            Step::Done(export) => return Ok((*export, sent)),
        }
    }
}

fn newstyle(flags: HandshakeFlags) -> Writer {
    Writer::default()
        .u64(INIT_MAGIC)
        .u64(NEWSTYLE_MAGIC)
        .u16(flags.bits())
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
        .bytes(&reply(OptionType::STRUCTURED_REPLY, OptionReply::ACK, b""))
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
    assert!(export.structured);
    assert_eq!(export.base_allocation, Some(7));
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
    assert!(!export.structured);
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
    let server = newstyle(HandshakeFlags::FIXED_NEWSTYLE)
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
    let server = newstyle(HandshakeFlags::all())
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
fn an_option_that_never_stops_is_a_violation() {
    let mut server = newstyle(HandshakeFlags::all())
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
