// SPDX-License-Identifier: BSD-3-Clause
//! One goal after the other over one connection.

use super::*;
use crate::proto::request::encode_option;

/// The types of the options in `sent`.
fn options(sent: &[u8]) -> Vec<u32> {
    sent.windows(12)
        .filter(|window| window.starts_with(b"IHAVEOPT"))
        .map(|window| u32::from(window[11]))
        .collect()
}

fn ack(option: OptionType) -> Vec<u8> {
    reply(option, OptionReply::ACK, b"")
}

fn context(id: u32) -> Vec<u8> {
    let payload = Writer::default().u32(id).bytes(b"base:allocation").finish();
    reply(
        OptionType::SET_META_CONTEXT,
        OptionReply::META_CONTEXT,
        &payload,
    )
}

fn refusal(option: OptionType, code: OptionReply) -> Vec<u8> {
    reply(option, code, b"")
}

/// Asks a machine that is at rest.
fn ask(
    machine: &mut Handshake,
    goal: Goal,
    server: &[Vec<u8>],
) -> Result<(Outcome, Vec<u8>), Option<Error>> {
    assert!(machine.is_at_rest());
    machine.ask(goal).map_err(Some)?;
    go_on(machine, &server.concat())
}

fn export(outcome: Outcome) -> Export {
    match outcome {
        Outcome::Export(export) => *export,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_list_and_a_description_are_followed_by_transmission() {
    let mut machine = Handshake::new(Goal::list());
    let server = newstyle(HandshakeFlags::all()).bytes(&ack(OptionType::LIST));
    let (outcome, sent) = go_on(&mut machine, &server.finish()).expect("list");
    assert_eq!(outcome, Outcome::Listing(Vec::new()));
    assert_eq!(options(&sent), [3]);
    assert_eq!(
        machine.goodbye(),
        encode_option(OptionType::ABORT, &[]),
        "it may be left here"
    );

    let told = Writer::default().u16(InfoType::NAME.0).bytes(b"disk");
    let told = reply(OptionType::INFO, OptionReply::INFO, &told.finish());
    let described = [told, ack(OptionType::INFO)];
    let (outcome, sent) = ask(&mut machine, Goal::describe_default(), &described).expect("info");
    let canonical_name = Some(name("disk"));
    let described = Described {
        canonical_name,
        ..Described::default()
    };
    assert_eq!(outcome, Outcome::Described(described));
    assert_eq!(options(&sent), [6]);

    let opened = [
        refusal(OptionType::EXTENDED_HEADERS, OptionReply::ERR_UNSUP),
        ack(OptionType::STRUCTURED_REPLY),
        context(7),
        ack(OptionType::SET_META_CONTEXT),
        info_export(4096),
        ack(OptionType::GO),
    ];
    let (outcome, sent) = ask(&mut machine, Goal::open(&name("disk")), &opened).expect("go");
    assert_eq!(options(&sent), [11, 8, 10, 7]);
    let export = export(outcome);
    assert_eq!((export.size, context_id(&export)), (4096, Some(7)));
    assert_eq!(export.canonical_name, None, "that was told of another");
    assert!(!machine.is_at_rest());
    assert!(machine.goodbye().is_empty(), "transmission has begun");
}

#[test]
fn after_a_refusal_another_export_can_be_opened() {
    let unknown = refusal(OptionType::EXTENDED_HEADERS, OptionReply::ERR_UNSUP);
    for (agreed, framing) in [
        (
            [unknown, ack(OptionType::STRUCTURED_REPLY)].concat(),
            Framing::Structured,
        ),
        (ack(OptionType::EXTENDED_HEADERS), Framing::Extended),
    ] {
        let mut machine = Handshake::new(Goal::open(&name("no")));
        let server = newstyle(HandshakeFlags::all())
            .bytes(&agreed)
            .bytes(&context(7))
            .bytes(&ack(OptionType::SET_META_CONTEXT))
            .bytes(&info_export(1))
            .bytes(&refusal(OptionType::GO, OptionReply::ERR_UNKNOWN));
        let error = go_on(&mut machine, &server.finish()).expect_err("refused");
        assert!(matches!(error, Some(Error::Refused(_))));

        let opened = [
            ack(OptionType::SET_META_CONTEXT),
            info_export(2),
            ack(OptionType::GO),
        ];
        // What was learnt elsewhere meanwhile does not undo what is agreed here.
        let goal = Goal::open(&name("yes")).with_ladder(Ladder::default().without_extended());
        let (outcome, sent) = ask(&mut machine, goal, &opened).expect("go");
        assert_eq!(options(&sent), [10, 7], "{framing} are agreed already");
        let export = export(outcome);
        assert_eq!(export.framing, framing);
        assert_eq!(
            context_id(&export),
            None,
            "a context counts for the export that it was chosen for"
        );
    }
}

#[test]
fn with_extended_headers_there_is_no_way_back_to_export_name() {
    let mut machine = Handshake::new(Goal::open(&name("no")));
    let server = newstyle(HandshakeFlags::all())
        .bytes(&ack(OptionType::EXTENDED_HEADERS))
        .bytes(&ack(OptionType::SET_META_CONTEXT))
        .bytes(&refusal(OptionType::GO, OptionReply::ERR_UNKNOWN));
    go_on(&mut machine, &server.finish()).expect_err("refused");
    let ladder = Ladder::default().without_go().without_meta();
    let goal = Goal::open(&name("yes")).with_ladder(ladder);
    let opened = [info_export(2), ack(OptionType::GO)];
    let (_, sent) = ask(&mut machine, goal, &opened).expect("go");
    assert_eq!(options(&sent), [7]);
}

#[test]
fn what_was_refused_is_not_asked_again() {
    let mut machine = Handshake::new(Goal::open(&name("no")));
    let server = compact(HandshakeFlags::all())
        .bytes(&refusal(
            OptionType::STRUCTURED_REPLY,
            OptionReply::ERR_UNSUP,
        ))
        .bytes(&refusal(OptionType::GO, OptionReply::ERR_UNKNOWN));
    go_on(&mut machine, &server.finish()).expect_err("refused");
    let opened = [info_export(2), ack(OptionType::GO)];
    let (_, sent) = ask(&mut machine, Goal::open(&name("yes")), &opened).expect("go");
    assert_eq!(options(&sent), [7]);
}

#[test]
fn a_server_that_is_going_away_is_asked_nothing_more() {
    let mut machine = Handshake::new(Goal::list());
    let refusal = refusal(OptionType::LIST, OptionReply::ERR_SHUTDOWN);
    let server = newstyle(HandshakeFlags::all()).bytes(&refusal);
    go_on(&mut machine, &server.finish()).expect_err("refused");
    assert!(!machine.is_at_rest());
    assert_eq!(machine.goodbye(), encode_option(OptionType::ABORT, &[]));
}

#[test]
fn tls_is_done_once_and_counts_for_all_that_follows() {
    let goal = |goal: Goal| goal.with_tls(TlsPolicy::Require);
    let mut machine = Handshake::new(goal(Goal::list()));
    let server = newstyle(HandshakeFlags::all())
        .bytes(&ack(OptionType::STARTTLS))
        .bytes(&ack(OptionType::LIST));
    let (_, sent) = go_on(&mut machine, &server.finish()).expect("list");
    assert_eq!(options(&sent), [5, 3]);
    let opened = [
        refusal(OptionType::EXTENDED_HEADERS, OptionReply::ERR_UNSUP),
        refusal(OptionType::STRUCTURED_REPLY, OptionReply::ERR_UNSUP),
        info_export(2),
        ack(OptionType::GO),
    ];
    // Whatever this goal says of TLS.
    let (_, sent) = ask(&mut machine, Goal::open(&name("")), &opened).expect("go");
    assert_eq!(options(&sent), [11, 8, 7]);
}

#[test]
fn servers_without_options_are_asked_nothing_before_they_are_entered() {
    let mut machine = Handshake::new(Goal::list());
    let flags = newstyle(HandshakeFlags::NO_ZEROES).finish();
    let (outcome, sent) = go_on(&mut machine, &flags).expect("list");
    assert!(matches!(outcome, Outcome::Listing(list) if list.len() == 1));
    assert_eq!(sent.len(), 4, "the flags are answered");
    assert!(machine.goodbye().is_empty(), "there is no word for it");
    let size = Writer::default().u64(4096).u16(FLAGS).finish();
    let (outcome, sent) = ask(&mut machine, Goal::open(&name("x")), &[size]).expect("entered");
    assert_eq!(options(&sent), [1]);
    assert_eq!(export(outcome).size, 4096);
}

#[test]
fn an_oldstyle_server_has_told_everything_at_first() {
    let server = Writer::default()
        .u64(INIT_MAGIC)
        .u64(OLDSTYLE_MAGIC)
        .u64(12345)
        .u32(u32::from(FLAGS))
        .bytes(&[0; PADDING_LENGTH]);
    let mut machine = Handshake::new(Goal::list());
    let (outcome, _) = go_on(&mut machine, &server.finish()).expect("list");
    assert!(matches!(outcome, Outcome::Listing(list) if list.len() == 1));
    let (outcome, _) = ask(&mut machine, Goal::describe_default(), &[]).expect("description");
    assert_eq!(outcome, Outcome::Described(Described::default()));
    let (outcome, sent) = ask(&mut machine, Goal::open(&name("")), &[]).expect("entered");
    assert_eq!(export(outcome).size, 12345);
    assert!(sent.is_empty() && machine.goodbye().is_empty());
}
