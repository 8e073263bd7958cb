// SPDX-License-Identifier: BSD-3-Clause
//! Conversations about metadata contexts.

use super::*;
use crate::proto::context::ContextName;

const SET: OptionType = OptionType::SET_META_CONTEXT;
const LIST: OptionType = OptionType::LIST_META_CONTEXT;
const BITMAP: &str = "qemu:dirty-bitmap:b";

fn ack(option: OptionType) -> Vec<u8> {
    reply(option, OptionReply::ACK, b"")
}

fn context(option: OptionType, id: u32, name: &str) -> Vec<u8> {
    let payload = Writer::default().u32(id).bytes(name.as_bytes()).finish();
    reply(option, OptionReply::META_CONTEXT, &payload)
}

fn refused(option: OptionType, error: OptionReply) -> Vec<u8> {
    reply(option, error, b"")
}

/// A server that greets, has structured replies, and says all of this.
fn server(replies: &[Vec<u8>]) -> Vec<u8> {
    compact(HandshakeFlags::all())
        .bytes(&ack(OptionType::STRUCTURED_REPLY))
        .bytes(&replies.concat())
        .finish()
}

/// The same, with extended headers.
fn extended_server(replies: &[Vec<u8>]) -> Vec<u8> {
    newstyle(HandshakeFlags::all())
        .bytes(&ack(OptionType::EXTENDED_HEADERS))
        .bytes(&replies.concat())
        .finish()
}

/// The end of a conversation that leads to an export.
fn opened() -> Vec<u8> {
    [info_export(1 << 20), ack(OptionType::GO)].concat()
}

fn this(name: &str) -> Wish {
    Wish::This(ContextName::new(name.as_bytes()).expect("known"))
}

/// What comes of it with structured replies. With extended headers it is the same.
fn open(export: &str, wish: Wish, replies: &[Vec<u8>]) -> Result<(Export, Vec<u8>), String> {
    let goal = Goal::open(&name(export)).with_wish(wish);
    let open = |server: &[u8]| match pursue(goal.clone(), server) {
        Ok((Outcome::Export(export), sent)) => Ok((*export, sent)),
        Ok((other, _)) => panic!("{other:?}"),
        Err(error) => Err(error.expect("not for want of bytes").to_string()),
    };
    let opened = open(&server(replies));
    match (&opened, open(&extended_server(replies))) {
        (Ok((export, sent)), Ok((wide, sent_wide))) => {
            assert_eq!(wide.framing, Framing::Extended);
            assert!(wide.offers_the_same(export));
            assert_eq!(wide.context, export.context);
            assert_eq!(asked(sent)[2..], asked(&sent_wide)[1..]);
        }
        (Err(error), Err(wide)) => assert_eq!(*error, wide),
        other => panic!("{other:?}"),
    }
    opened
}

/// The options that were sent, in order.
fn asked(sent: &[u8]) -> Vec<u32> {
    let magic = NEWSTYLE_MAGIC.to_be_bytes();
    let places = (0..sent.len()).filter(|at| sent[*at..].starts_with(&magic));
    places
        .map(|at| u32::from_be_bytes(sent[at + 8..at + 12].try_into().expect("an option")))
        .collect()
}

#[test]
fn a_bitmap_is_agreed_by_its_name() {
    let replies = [context(SET, 9, BITMAP), ack(SET), opened()];
    let (export, sent) = open("disk", this(BITMAP), &replies).expect("opens");
    assert_eq!(export.context.as_ref().map(|agreed| agreed.id), Some(9));
    assert!(export.can(TransmissionFlags::READ_ONLY));
    assert_eq!(asked(&sent), [11, 8, 10, 7]);
    let query = Writer::default().string("disk").u32(1).string(BITMAP);
    let query = query.finish();
    assert!(sent.windows(query.len()).any(|bytes| bytes == query));
}

#[test]
fn what_is_demanded_and_not_there_is_an_error_with_what_is() {
    let has = [
        context(LIST, 0, "base:allocation"),
        context(LIST, 0, "x:\u{1b}"),
        ack(LIST),
    ];
    let says = format!(
        "the server has no context {BITMAP} for export \"disk\": it has base:allocation, x:\\u{{1b}}"
    );
    for unset in [
        // None, another one, or an error; what came before an error is void.
        ack(SET),
        [context(SET, 1, "base:allocation"), ack(SET)].concat(),
        refused(SET, OptionReply::ERR_INVALID),
        [
            context(SET, 1, BITMAP),
            refused(SET, OptionReply::ERR_POLICY),
        ]
        .concat(),
    ] {
        let replies = [&[unset][..], &has].concat();
        assert_eq!(
            open("disk", this(BITMAP), &replies).err(),
            Some(says.clone())
        );
    }
    let unlisted = [
        ack(SET),
        context(LIST, 0, "x:y"),
        refused(LIST, OptionReply::ERR_UNSUP),
    ];
    let error = open("disk", this(BITMAP), &unlisted).expect_err("refused");
    assert!(error.ends_with(": it has none"), "{error}");
}

#[test]
fn an_export_that_is_not_there_has_no_contexts_to_speak_of() {
    for wish in [this(BITMAP), Wish::OnlyBitmap] {
        let option = if wish == Wish::OnlyBitmap { LIST } else { SET };
        let replies = [refused(option, OptionReply::ERR_UNKNOWN)];
        let error = open("disk", wish, &replies).expect_err("refused");
        assert!(error.ends_with("no export named \"disk\""), "{error}");
    }
}

#[test]
fn the_only_bitmap_is_found() {
    let replies = [
        context(LIST, 0, "base:allocation"),
        context(LIST, 0, BITMAP),
        ack(LIST),
        context(SET, 3, BITMAP),
        ack(SET),
        opened(),
    ];
    let (export, sent) = open("disk", Wish::OnlyBitmap, &replies).expect("opens");
    assert_eq!(
        export.context_name().map(ToString::to_string).as_deref(),
        Some(BITMAP)
    );
    assert_eq!(asked(&sent), [11, 8, 9, 10, 7]);
    // It may have gone meanwhile.
    let gone = [context(LIST, 0, BITMAP), ack(LIST), ack(SET), ack(LIST)];
    let error = open("disk", Wish::OnlyBitmap, &gone).expect_err("gone");
    assert!(error.starts_with("the server has no context "), "{error}");
}

#[test]
fn servers_that_hang_up_over_it_are_not_asked_without() {
    for wish in [this(BITMAP), Wish::OnlyBitmap] {
        let goal = Goal::open(&name("x")).with_wish(wish);
        for replies in [&[][..], &[ack(SET)]] {
            assert_eq!(below(&goal, &server(replies)), None);
            // The consent to extended headers may have been none.
            let compact = Ladder::default().without_extended();
            let extended = extended_server(replies);
            assert_eq!(below(&goal, &extended), Some(compact));
        }
        let hung_up = compact(HandshakeFlags::all()).finish();
        assert_eq!(below(&goal, &hung_up), None, "structured replies");
        let hung_up = newstyle(HandshakeFlags::all()).finish();
        let compact = Ladder::default().without_extended();
        assert_eq!(below(&goal, &hung_up), Some(compact));
    }
    let goal = Goal::contexts(&name("x"));
    let compact = Ladder::default().without_extended();
    let greeting = newstyle(HandshakeFlags::all()).finish();
    assert_eq!(below(&goal, &greeting), Some(compact));
    assert_eq!(below(&goal, &server(&[])), None);
    // What was learnt elsewhere is no reason not to ask.
    let goal = goal.with_ladder(Ladder::default().without_structured());
    let has = newstyle(HandshakeFlags::all())
        .bytes(&ack(OptionType::STRUCTURED_REPLY))
        .bytes(&context(LIST, 1, "x:y"))
        .bytes(&ack(LIST))
        .finish();
    let (outcome, sent) = pursue(goal, &has).expect("a list");
    assert_eq!(outcome, Outcome::Contexts(vec![b"x:y".to_vec()]));
    assert_eq!(asked(&sent), [8, 9, 2]);
}

/// The questions that are left when the connection ends after this.
fn below(goal: &Goal, server: &[u8]) -> Option<Ladder> {
    let mut machine = Handshake::new(goal.clone());
    let mut rest = server;
    loop {
        match machine.step() {
            Step::Receive(n) => match rest.split_at_checked(n) {
                Some((head, tail)) if machine.received(head).is_ok() => rest = tail,
                _ => return machine.step_down(),
            },
            Step::Done => panic!("done"),
            _ => (),
        }
    }
}

#[test]
fn bitmaps_of_a_list_are_dropped_with_the_question() {
    let goal = Goal::list().with_wish(Wish::ByName);
    let all = Ladder::default();
    let list = |replies: &[Vec<u8>]| {
        let entry = Writer::default().string("a").finish();
        [listing(&[entry]), replies.concat()].concat()
    };
    let unknown = refused(OptionType::EXTENDED_HEADERS, OptionReply::ERR_UNSUP);
    let structured = ack(OptionType::STRUCTURED_REPLY);
    let extended = ack(OptionType::EXTENDED_HEADERS);
    for (replies, expected) in [
        (vec![], all.without_extended()),
        (vec![extended], all.without_extended()),
        (vec![unknown.clone()], all.without_structured()),
        (vec![unknown, structured], all.without_structured()),
    ] {
        assert_eq!(below(&goal, &list(&replies)), Some(expected));
    }
    for ladder in [all.without_structured(), all.without_meta()] {
        let goal = goal.clone().with_ladder(ladder);
        let (_, sent) = pursue(goal, &list(&[])).expect("a list");
        assert_eq!(asked(&sent), [3, 2]);
    }
}

#[test]
fn a_name_may_stand_for_an_export_and_a_bitmap() {
    let unknown = || refused(OptionType::GO, OptionReply::ERR_UNKNOWN);
    let replies = [
        refused(SET, OptionReply::ERR_UNKNOWN),
        unknown(),
        // "a@b" with bitmap "c" first, then "a" with "b@c".
        refused(SET, OptionReply::ERR_UNKNOWN),
        context(SET, 5, "qemu:dirty-bitmap:b@c"),
        ack(SET),
        opened(),
    ];
    let (export, sent) = open("a@b@c", Wish::ByName, &replies).expect("opens");
    let name = export.context_name().map(ToString::to_string);
    assert_eq!(name.as_deref(), Some("qemu:dirty-bitmap:b@c"));
    assert!(export.can(TransmissionFlags::READ_ONLY));
    assert_eq!(asked(&sent), [11, 8, 10, 7, 10, 10, 7]);

    // None of them: the answer to the whole name counts.
    let none = [
        ack(SET),
        unknown(),
        ack(SET),
        context(SET, 1, "qemu:dirty-bitmap:b@c"),
        ack(SET),
        unknown(),
    ];
    let error = open("a@b@c", Wish::ByName, &none).expect_err("nowhere");
    assert!(error.ends_with("no export named \"a@b@c\""), "{error}");
    let error = open("a@b", Wish::Allocation, &[ack(SET), unknown()]).expect_err("plain");
    assert!(error.ends_with("no export named \"a@b\""), "{error}");
}

#[test]
fn an_export_that_is_there_wins() {
    let replies = [context(SET, 1, "base:allocation"), ack(SET), opened()];
    let (export, sent) = open("a@b", Wish::ByName, &replies).expect("opens");
    assert_eq!(export.context_name(), Some(&ContextName::allocation()));
    assert!(!export.can(TransmissionFlags::READ_ONLY));
    assert_eq!(asked(&sent), [11, 8, 10, 7]);
}

/// What is listed by name, of a server that says all of this behind its list.
fn listed(exports: &[&str], replies: &[Vec<u8>]) -> Vec<String> {
    let entries: Vec<_> = exports
        .iter()
        .map(|name| Writer::default().string(name).finish())
        .collect();
    let server = [listing(&entries), replies.concat()].concat();
    let goal = Goal::list().with_wish(Wish::ByName);
    match pursue(goal, &server).expect("a list").0 {
        Outcome::Listing(list) => list.iter().map(|entry| entry.name.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bitmaps_are_listed_behind_the_exports() {
    let unknown = || refused(OptionType::EXTENDED_HEADERS, OptionReply::ERR_UNSUP);
    let structured = [unknown(), ack(OptionType::STRUCTURED_REPLY)].concat();
    let bitmap = |name: &str| context(LIST, 0, &format!("qemu:dirty-bitmap:{name}"));
    for framing in [structured, ack(OptionType::EXTENDED_HEADERS)] {
        let names = listed(
            &["a", "b", "a@x"],
            &[
                framing,
                context(LIST, 0, "base:allocation"),
                bitmap("x"),
                bitmap("y"),
                bitmap("y"),
                ack(LIST),
                // An error voids what came before it, and that export alone has none.
                bitmap("z"),
                refused(LIST, OptionReply::ERR_POLICY),
                bitmap("x"),
                ack(LIST),
            ],
        );
        assert_eq!(names, ["a", "b", "a@x", "a@y", "a@x@x"]);
    }
    let simple = refused(OptionType::STRUCTURED_REPLY, OptionReply::ERR_UNSUP);
    assert_eq!(listed(&["a"], &[unknown(), simple]), ["a"]);
    assert_eq!(listed(&[], &[]), [""; 0]);
}

#[test]
fn a_list_with_bitmaps_is_bounded() {
    let many: Vec<_> = (0..2000).map(|n| format!("export-{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let all: Vec<_> = (0..1000)
        .flat_map(|_| {
            let names = (0..100).map(|n| format!("qemu:dirty-bitmap:{n}"));
            let mut replies: Vec<_> = names.map(|name| context(LIST, 0, &name)).collect();
            replies.push(ack(LIST));
            replies
        })
        .collect();
    let replies = [vec![ack(OptionType::EXTENDED_HEADERS)], all].concat();
    assert_eq!(listed(&many, &replies).len(), 10_000);
}

#[test]
fn contexts_are_listed_as_they_come() {
    let contexts = |server: &[u8]| match pursue(Goal::contexts(&name("disk")), server) {
        Ok((Outcome::Contexts(names), _)) => Ok(names),
        Ok((other, _)) => panic!("{other:?}"),
        Err(error) => Err(error.expect("not for want of bytes").to_string()),
    };
    let has = [context(LIST, 7, "b:c"), context(LIST, 7, "a:b"), ack(LIST)];
    assert_eq!(
        contexts(&server(&has)),
        Ok(vec![b"b:c".to_vec(), b"a:b".to_vec()])
    );
    assert_eq!(contexts(&extended_server(&has)), contexts(&server(&has)));
    let simple = compact(HandshakeFlags::all())
        .bytes(&refused(
            OptionType::STRUCTURED_REPLY,
            OptionReply::ERR_UNSUP,
        ))
        .finish();
    assert_eq!(contexts(&simple), Ok(Vec::new()));
    let unknown = server(&[refused(LIST, OptionReply::ERR_UNKNOWN)]);
    let error = contexts(&unknown).expect_err("refused");
    assert!(error.contains("no export named \"disk\""), "{error}");
    let endless = server(&[context(LIST, 0, "x:y").repeat(1100)]);
    assert!(contexts(&endless).is_err(), "not for ever");
}
