// SPDX-License-Identifier: BSD-3-Clause
//! One option asked for the sake of the answer.

use super::*;

fn question(option: OptionType) -> Goal {
    Goal::question(option, &name("disk"))
}

/// A machine that has greeted a server with options, asked this, and got that.
fn asked(option: OptionType, code: OptionReply) -> (Handshake, Result<Outcome, Option<Error>>) {
    let mut machine = Handshake::new(question(option));
    let server = newstyle(HandshakeFlags::all())
        .bytes(&reply(option, code, b""))
        .finish();
    let answer = go_on(&mut machine, &server).map(|(outcome, _)| outcome);
    (machine, answer)
}

#[test]
fn consent_and_refusal_are_answers_and_more_may_be_asked() {
    for option in [OptionType::STRUCTURED_REPLY, OptionType::EXTENDED_HEADERS] {
        let (machine, answer) = asked(option, OptionReply::ACK);
        assert_eq!(answer, Ok(Outcome::Agreed));
        assert!(machine.is_at_rest());
        let (mut machine, answer) = asked(option, OptionReply::ERR_UNSUP);
        assert!(matches!(answer, Err(Some(Error::Refused(_)))));
        assert!(machine.is_at_rest());
        // Without what was refused, and without asking for it again.
        let info = reply(OptionType::SET_META_CONTEXT, OptionReply::ERR_UNSUP, b"");
        machine
            .ask(question(OptionType::SET_META_CONTEXT))
            .expect("legal");
        let answer = go_on(&mut machine, &info);
        assert!(matches!(answer, Err(Some(Error::Refused(refusal)))
            if refusal.option == OptionType::SET_META_CONTEXT));
    }
}

/// Nothing but TLS may follow, so nothing does.
#[test]
fn after_consent_to_tls_there_is_not_even_a_goodbye() {
    let (machine, answer) = asked(OptionType::STARTTLS, OptionReply::ACK);
    assert_eq!(answer, Ok(Outcome::Agreed));
    assert!(!machine.is_at_rest());
    assert_eq!(machine.goodbye(), b"");
    let (machine, _) = asked(OptionType::STARTTLS, OptionReply::ERR_POLICY);
    assert_ne!(machine.goodbye(), b"");
}

#[test]
fn what_was_not_answered_is_known_until_it_is() {
    let mut machine = Handshake::new(question(OptionType::LIST));
    let greeting = newstyle(HandshakeFlags::all()).finish();
    assert_eq!(go_on(&mut machine, &greeting), Err(None));
    assert_eq!(machine.unanswered(), Some(OptionType::LIST));
    assert_eq!(machine.style(), Some(Style::FixedNewstyle));
    let entry = reply(OptionType::LIST, OptionReply::SERVER, &[0; 4]);
    assert_eq!(go_on(&mut machine, &entry), Err(None));
    assert_eq!(machine.unanswered(), None);
}

#[test]
fn who_takes_no_questions_is_asked_none() {
    let flags = HandshakeFlags::empty();
    let (outcome, sent) =
        pursue(question(OptionType::LIST), &newstyle(flags).finish()).expect("it ends");
    assert_eq!(outcome, Outcome::NoOptions);
    assert_eq!(sent, [0; 4], "the client's flags");
}
