// SPDX-License-Identifier: BSD-3-Clause
//! Which questions are asked in which order, and what is left of them where a server does not stand one.

use super::*;

/// Plays `server` until it has no more to say, and the connection ends; the next rung then.
fn rung_below(ladder: Ladder, server: &[u8]) -> Option<Ladder> {
    let mut machine = Handshake::new(Goal::open(&name("")).with_ladder(ladder));
    let mut rest = server;
    loop {
        match machine.step() {
            Step::Send(_) => (),
            Step::Receive(n) => match rest.split_at_checked(n) {
                Some((head, tail)) if machine.received(head).is_ok() => rest = tail,
                _ => return machine.step_down(),
            },
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_question_that_was_not_answered_is_dropped() {
    let all = Ladder::default();
    let compact = all.without_extended();
    let simple = all.without_structured();
    let no_go = all.without_go();
    let nothing = simple.without_go();
    let greeting = newstyle(HandshakeFlags::all()).finish();
    let then = |replies: &[Vec<u8>]| [&greeting[..], &replies.concat()].concat();
    let ack = |option| reply(option, OptionReply::ACK, b"");
    let unknown = |option| reply(option, OptionReply::ERR_UNSUP, b"");
    let extended = ack(OptionType::EXTENDED_HEADERS);
    let no_extended = unknown(OptionType::EXTENDED_HEADERS);
    let structured = ack(OptionType::STRUCTURED_REPLY);
    let plain = unknown(OptionType::STRUCTURED_REPLY);
    let context = ack(OptionType::SET_META_CONTEXT);
    let go = unknown(OptionType::GO);
    let garbage = vec![0; 20];

    type Case<'a> = (&'a [&'a Vec<u8>], Ladder, Option<Ladder>);
    let cases: [Case<'_>; 20] = [
        (&[], all, Some(compact)),
        (&[], compact, Some(simple)),
        (&[&no_extended], all, Some(simple)),
        // Nobody knows what it consented to.
        (&[&extended], all, Some(compact)),
        (&[&extended, &context], all, Some(compact)),
        (
            &[&extended],
            all.without_meta(),
            Some(compact.without_meta()),
        ),
        (&[&structured], compact, Some(simple)),
        (&[&structured, &context], compact, Some(no_go)),
        (&[&no_extended, &structured, &context], all, Some(no_go)),
        (
            &[&structured],
            compact.without_meta(),
            Some(no_go.without_meta()),
        ),
        // What was refused is not asked again.
        (&[&no_extended, &plain], all, Some(nothing)),
        (&[&plain], compact, Some(nothing)),
        (&[], simple, Some(nothing)),
        (&[], no_go, Some(nothing)),
        // Garbage instead of a reply, and the reply to another option.
        (&[&garbage], all, Some(compact)),
        (&[&plain, &plain], compact, Some(nothing)),
        // A refusal by closing, a server that knew the question, and what is no option's fault.
        (&[], nothing, None),
        (&[&plain, &go], compact, None),
        (&[&structured, &context, &info_export(1)], compact, None),
        (&[&extended, &context, &go], all, None),
    ];
    for (replies, from, below) in cases {
        let said = then(&replies.iter().map(|said| said.to_vec()).collect::<Vec<_>>());
        assert_eq!(rung_below(from, &said), below, "{from:?} {said:02x?}");
    }
    assert_eq!(rung_below(all, &greeting[..17]), None);
    assert_eq!(rung_below(all, &garbage), None);
}

/// The options that a client asked.
fn options(sent: &[u8]) -> Vec<u32> {
    sent[4..]
        .windows(12)
        .filter(|window| window.starts_with(b"IHAVEOPT"))
        .map(|window| u32::from(window[11]))
        .collect()
}

#[test]
fn no_more_is_asked_than_the_ladder_allows() {
    let all = Ladder::default();
    let goal = |ladder| Goal::open(&name("x")).with_ladder(ladder);
    let ack = |option| reply(option, OptionReply::ACK, b"");
    let (_, sent) = pursue(goal(all), &full_server()).expect("handshake");
    assert_eq!(options(&sent), [11, 8, 10, 7]);

    let server = full_server_with(&[ack(OptionType::STRUCTURED_REPLY)]);
    let (_, sent) = pursue(goal(all.without_extended()), &server).expect("handshake");
    assert_eq!(options(&sent), [8, 10, 7]);

    let go = [info_export(5), ack(OptionType::GO)].concat();
    let greeting = || newstyle(HandshakeFlags::all());
    let server = greeting().bytes(&go).finish();
    let (_, sent) = pursue(goal(all.without_structured()), &server).expect("handshake");
    assert_eq!(options(&sent), [7]);

    for (option, ladder) in [
        (OptionType::EXTENDED_HEADERS, all.without_meta()),
        (
            OptionType::STRUCTURED_REPLY,
            all.without_extended().without_meta(),
        ),
    ] {
        let server = greeting().bytes(&ack(option)).bytes(&go).finish();
        let (outcome, sent) = pursue(goal(ladder), &server).expect("handshake");
        assert_eq!(options(&sent), [option.0, 7]);
        let none = |export: &Export| export.context.is_none();
        assert!(matches!(outcome, Outcome::Export(export) if none(&export)));
    }

    let server = greeting().u64(5).u16(FLAGS).finish();
    let ladder = all.without_structured().without_go();
    let (_, sent) = pursue(goal(ladder), &server).expect("handshake");
    assert_eq!(options(&sent), [1]);

    let context = Writer::default().u32(7).bytes(b"base:allocation").finish();
    let server = greeting()
        .bytes(&ack(OptionType::STRUCTURED_REPLY))
        .bytes(&reply(
            OptionType::SET_META_CONTEXT,
            OptionReply::META_CONTEXT,
            &context,
        ))
        .bytes(&ack(OptionType::SET_META_CONTEXT))
        .u64(5)
        .u16(FLAGS)
        .finish();
    let (outcome, sent) = pursue(goal(all.without_go()), &server).expect("handshake");
    assert_eq!(options(&sent), [8, 10, 1]);
    let structured =
        |export: &Export| export.framing == Framing::Structured && context_id(export) == Some(7);
    assert!(matches!(outcome, Outcome::Export(export) if structured(&export)));
}

#[test]
fn extended_headers_are_asked_for_first_and_are_all_that_is_needed() {
    let ack = reply(OptionType::EXTENDED_HEADERS, OptionReply::ACK, b"");
    let (export, sent) = play("disk", &full_server_with(&[ack])).expect("handshake");
    assert_eq!(options(&sent), [11, 10, 7]);
    assert_eq!(export.framing, Framing::Extended);
    assert_eq!(context_id(&export), Some(7));
}

#[test]
fn whatever_refuses_extended_headers_leads_to_structured_replies() {
    let errors = (1..12).map(|n| OptionReply(0x8000_0000 + n));
    for refusal in errors.chain([OptionReply(0x8000_00ff)]) {
        let server = full_server_with(&[
            reply(OptionType::EXTENDED_HEADERS, refusal, b"no"),
            reply(OptionType::STRUCTURED_REPLY, OptionReply::ACK, b""),
        ]);
        let (export, sent) = play("disk", &server).expect("handshake");
        assert_eq!(options(&sent), [11, 8, 10, 7], "{refusal}");
        assert_eq!(export.framing, Framing::Structured, "{refusal}");
    }
}

/// There is no way from extended headers to `NBD_OPT_EXPORT_NAME`.
#[test]
fn after_extended_headers_a_server_without_go_is_no_server() {
    let server = newstyle(HandshakeFlags::all())
        .bytes(&reply(OptionType::EXTENDED_HEADERS, OptionReply::ACK, b""))
        .bytes(&reply(OptionType::SET_META_CONTEXT, OptionReply::ACK, b""))
        .bytes(&reply(OptionType::GO, OptionReply::ERR_UNSUP, b""))
        .u64(8192)
        .u16(FLAGS)
        .finish();
    let error = play("", &server).expect_err("refused");
    let told = error.expect("not cut short").to_string();
    assert_eq!(
        told,
        "server refused NBD_OPT_GO: the server does not know it, although it agreed to extended headers \
         (quirks=no-extended)"
    );
}

/// An export may need what the user has forbidden, or what was found to be too much for the server.
#[test]
fn who_needs_extended_headers_says_so() {
    let server = compact(HandshakeFlags::all())
        .bytes(&reply(
            OptionType::STRUCTURED_REPLY,
            OptionReply::ERR_UNSUP,
            b"",
        ))
        .bytes(&reply(
            OptionType::GO,
            OptionReply::ERR_EXT_HEADER_REQD,
            b"",
        ))
        .finish();
    let error = play("", &server).expect_err("refused");
    assert_eq!(
        error.expect("not cut short").to_string(),
        "server refused NBD_OPT_GO: the export needs extended headers"
    );
    // For contexts they are no more than a reason to go on without.
    let server = compact(HandshakeFlags::all())
        .bytes(&reply(OptionType::STRUCTURED_REPLY, OptionReply::ACK, b""))
        .bytes(&reply(
            OptionType::SET_META_CONTEXT,
            OptionReply::ERR_EXT_HEADER_REQD,
            b"",
        ))
        .bytes(&info_export(5))
        .bytes(&reply(OptionType::GO, OptionReply::ACK, b""))
        .finish();
    let (export, _) = play("", &server).expect("handshake");
    assert_eq!(context_id(&export), None);
}
