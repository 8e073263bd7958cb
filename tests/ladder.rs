// SPDX-License-Identifier: BSD-3-Clause
//! Servers that hang up over a question, or lose their place in the stream: each new connection asks one
//! question less, and what helped is remembered.

mod common;

use std::fs;
use std::io;
use std::time::Duration;

use common::front::Front;
use common::scripted::bench::{Bench, LENGTH, OFFSET};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, opt, rep};
use common::scripted::{Gate, Ticket};

/// How a server takes a question that it does not know.
#[derive(Clone, Copy, Debug)]
enum Manner {
    HangsUp,
    Resets,
    Garbage,
    AnswersAnother,
}

const MANNERS: [Manner; 4] = [
    Manner::HangsUp,
    Manner::Resets,
    Manner::Garbage,
    Manner::AnswersAnother,
];

/// A connection that goes wrong when `option` is asked; what comes before is answered as by `offer`.
fn fails_at(bench: &Bench, option: u32, offer: Offer, manner: Manner) -> Ticket {
    bench.play(move |peer| {
        peer.greet(offer.handshake_flags)?;
        // The options that are asked first.
        let mut before = match (option, manner) {
            (opt::EXTENDED_HEADERS, Manner::Resets) => 0,
            (opt::STRUCTURED_REPLY, Manner::Resets) => 1,
            (_, Manner::Resets) => panic!("how many are asked before?"),
            _ => u32::MAX,
        };
        loop {
            if before == 0 {
                // To close with the question unread is a reset.
                assert!(peer.readable_within(Duration::from_secs(20)));
                return Ok(());
            }
            before -= 1;
            let asked = peer.option()?;
            if asked.option == option {
                break;
            }
            assert!(!peer.answer_option(&asked, &offer)?, "never asked");
        }
        match manner {
            Manner::HangsUp | Manner::Resets => return Ok(()),
            Manner::Garbage => peer.send(&[0x20; 64])?,
            Manner::AnswersAnother => {
                peer.send(&wire::option_reply(opt::LIST, rep::ERR_UNSUP, b""))?;
            }
        }
        peer.expect_closed()
    })
}

/// A connection on which `options` are asked, in this order, and that is served.
fn asked(bench: &Bench, options: &'static [u32], offer: Offer) -> Ticket {
    bench.play(move |peer| {
        peer.greet(offer.handshake_flags)?;
        for option in options {
            let asked = peer.option()?;
            assert_eq!(asked.option, *option, "of {options:?}");
            peer.answer_option(&asked, &offer)?;
        }
        peer.serve(&mut Disk::new(offer.size))
    })
}

fn opens(bench: &Bench) {
    let mut front = bench.open();
    let data = front.read(OFFSET, LENGTH);
    assert_eq!(data, Ok(pattern(OFFSET, LENGTH as usize)));
    front.close();
}

/// What is asked first, and is the newest.
#[test]
fn extended_headers_are_not_asked_for_again() {
    let compact = &[opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, opt::GO];
    for manner in MANNERS {
        let bench = Bench::new(&[]);
        let row = format!("{manner:?}");
        let first = fails_at(&bench, opt::EXTENDED_HEADERS, Offer::default(), manner);
        let second = asked(&bench, compact, Offer::default());
        opens(&bench);
        first.ended(&row);
        second.finished(&row);

        let third = asked(&bench, compact, Offer::default());
        opens(&bench);
        third.finished(&row);
    }
}

/// Nobody is at fault, but each question takes the way there and back.
#[test]
fn who_does_not_know_extended_headers_is_not_asked_by_each_client() {
    let compact = &[opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, opt::GO];
    let all = &[
        opt::EXTENDED_HEADERS,
        opt::STRUCTURED_REPLY,
        opt::SET_META_CONTEXT,
        opt::GO,
    ];
    let bench = Bench::with(&[]);
    for (client, options) in [&all[..], compact, compact].into_iter().enumerate() {
        let seen = asked(&bench, options, Offer::default());
        opens(&bench);
        seen.finished(&format!("client {client}"));
    }
}

/// A server that consents and then loses its place has consented to nothing.
#[test]
fn a_consent_that_leads_to_nothing_is_not_asked_for_again() {
    for option in [opt::SET_META_CONTEXT, opt::GO] {
        let bench = Bench::new(&[]);
        let first = fails_at(&bench, option, Offer::extended(), Manner::Garbage);
        let compact = &[opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, opt::GO];
        let second = asked(&bench, compact, Offer::default());
        opens(&bench);
        first.ended("extended headers");
        second.finished("structured replies");
    }
}

/// Servers with one consent each are met on the way down.
#[test]
fn the_ladder_is_gone_down_step_by_step() {
    let bench = Bench::new(&["export=disk"]);
    let manner = Manner::HangsUp;
    let first = fails_at(&bench, opt::EXTENDED_HEADERS, Offer::default(), manner);
    let second = fails_at(&bench, opt::STRUCTURED_REPLY, Offer::default(), manner);
    let third = fails_at(&bench, opt::GO, Offer::simple(), manner);
    let fourth = asked(&bench, &[opt::EXPORT_NAME], Offer::simple());
    opens(&bench);
    for (ticket, row) in [(first, "11"), (second, "8"), (third, "7"), (fourth, "1")] {
        ticket.finished(row);
    }
}

#[test]
fn structured_replies_are_not_asked_for_again() {
    for manner in MANNERS {
        let bench = Bench::new(&[]);
        let row = format!("{manner:?}");
        let first = fails_at(&bench, opt::STRUCTURED_REPLY, Offer::default(), manner);
        let second = asked(&bench, &[opt::GO], Offer::simple());
        opens(&bench);
        first.ended(&row);
        second.finished(&row);

        // The next client begins where this one ended.
        let third = asked(&bench, &[opt::GO], Offer::simple());
        opens(&bench);
        third.finished(&row);
    }
}

#[test]
fn a_server_that_stands_nothing_is_asked_by_export_name() {
    let bench = Bench::new(&["export=disk"]);
    let manner = Manner::HangsUp;
    let first = fails_at(&bench, opt::STRUCTURED_REPLY, Offer::default(), manner);
    let second = fails_at(&bench, opt::GO, Offer::simple(), manner);
    let third = asked(&bench, &[opt::EXPORT_NAME], Offer::simple());
    opens(&bench);
    first.finished("option 8");
    second.finished("GO");
    third.finished("EXPORT_NAME");

    let fourth = asked(&bench, &[opt::EXPORT_NAME], Offer::simple());
    opens(&bench);
    fourth.finished("remembered");
}

#[test]
fn what_was_agreed_before_go_is_kept_and_what_was_refused_is_not_asked_again() {
    for manner in [Manner::HangsUp, Manner::Garbage, Manner::AnswersAnother] {
        let bench = Bench::new(&[]);
        let first = fails_at(&bench, opt::GO, Offer::default(), manner);
        let options = &[
            opt::STRUCTURED_REPLY,
            opt::SET_META_CONTEXT,
            opt::EXPORT_NAME,
        ];
        let second = asked(&bench, options, Offer::default());
        opens(&bench);
        first.ended("GO");
        second.finished("EXPORT_NAME with structured replies");

        let bench = Bench::new(&[]);
        let first = fails_at(&bench, opt::GO, Offer::simple(), manner);
        let second = asked(&bench, &[opt::EXPORT_NAME], Offer::simple());
        opens(&bench);
        first.ended("GO");
        second.finished("EXPORT_NAME alone");
    }
}

#[test]
fn a_server_that_loses_its_place_over_contexts_is_not_asked_for_them() {
    let bench = Bench::new(&[]);
    let first = fails_at(
        &bench,
        opt::SET_META_CONTEXT,
        Offer::default(),
        Manner::Garbage,
    );
    let second = asked(&bench, &[opt::GO], Offer::simple());
    opens(&bench);
    first.ended("SET_META_CONTEXT");
    second.finished("GO");
}

#[test]
fn what_did_not_help_is_not_remembered() {
    let bench = Bench::with(&[]);
    let before = bench.nbdkit().stderr().len();
    let first = fails_at(
        &bench,
        opt::STRUCTURED_REPLY,
        Offer::default(),
        Manner::HangsUp,
    );
    let second = bench.play(|peer| {
        peer.greet_until(opt::GO, &Offer::simple())?;
        peer.reply(opt::GO, rep::ERR_UNKNOWN, b"no such disk")?;
        peer.expect_closed()
    });
    assert!(Front::open(bench.socket()).is_err());
    first.finished("option 8");
    second.finished("GO");
    bench.explained("refused", before, "no such disk");

    let third = asked(
        &bench,
        &[opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, opt::GO],
        Offer::default(),
    );
    opens(&bench);
    third.finished("all over again, but for what the server has said that it does not know");
}

/// Opening must fail on the connection that plays `script`, and for what it `says`. A second connection would
/// be served well.
fn no_step(
    bench: &Bench,
    says: &str,
    script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
) {
    let before = bench.nbdkit().stderr().len();
    let ticket = bench.play(script);
    assert!(Front::open(bench.socket()).is_err());
    ticket.ended(says);
    bench.explained(says, before, says);
}

#[test]
fn silence_is_no_reason_to_ask_less() {
    let bench = Bench::new(&["handshake-timeout=1"]);
    for option in [opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY, opt::GO] {
        no_step(&bench, "timed out", move |peer| {
            peer.greet_until(option, &Offer::default())?;
            peer.expect_closed()
        });
    }
}

#[test]
fn an_answer_that_breaks_off_or_an_early_end_is_no_reason_to_ask_less() {
    let bench = Bench::new(&[]);
    no_step(&bench, "its greeting", |_| Ok(()));
    no_step(&bench, "NBD_OPT_GO", |peer| {
        peer.greet_until(opt::GO, &Offer::default())?;
        peer.send_infos(&Offer::default())
    });
}

#[test]
fn a_refusal_by_closing_is_told_as_such() {
    let bench = Bench::new(&["export=other"]);
    let before = bench.nbdkit().stderr().len();
    let simple = Offer::simple;
    let tickets = [
        fails_at(&bench, opt::STRUCTURED_REPLY, simple(), Manner::HangsUp),
        fails_at(&bench, opt::GO, simple(), Manner::HangsUp),
        fails_at(&bench, opt::EXPORT_NAME, simple(), Manner::HangsUp),
    ];
    assert!(Front::open(bench.socket()).is_err());
    for ticket in tickets {
        ticket.finished("closes on everything");
    }
    let says = "servers refuse an export, here \"other\", by closing";
    bench.explained("refused", before, says);
}

#[test]
fn a_server_that_is_gone_after_the_question_is_told_by_the_question() {
    let bench = Bench::new(&[]);
    let before = bench.nbdkit().stderr().len();
    let here = bench.server().socket().to_owned();
    let away = here.with_extension("away");
    let ticket = bench.play({
        let (here, away) = (here.clone(), away.clone());
        move |peer| {
            peer.greet_until(opt::STRUCTURED_REPLY, &Offer::default())?;
            fs::rename(&here, &away)
        }
    });
    let refused = Front::open(bench.socket()).is_err();
    fs::rename(&away, &here).expect("the server is back");
    assert!(refused);
    ticket.finished("gone");
    bench.explained("gone", before, "its reply to NBD_OPT_STRUCTURED_REPLY");
}

/// NBD_OPT_INFO is NBD_OPT_GO in all but name.
#[test]
fn a_server_that_does_not_stand_go_is_not_asked_for_its_default_export() {
    let bench = Bench::new(&["dynamic-export=true"]);
    let by_name = |name: &str| {
        let mut front = Front::open_as(bench.socket(), name, false).expect("opens");
        assert_eq!(front.read(0, 512), Ok(pattern(0, 512)));
        front.close();
    };
    let tickets = [
        fails_at(&bench, opt::GO, Offer::simple(), Manner::HangsUp),
        asked(&bench, &[opt::EXPORT_NAME], Offer::simple()),
    ];
    by_name("disk");
    for ticket in tickets {
        ticket.finished("the first client");
    }
    let ticket = asked(&bench, &[opt::EXPORT_NAME], Offer::simple());
    by_name("");
    ticket.finished("the default export");
}

/// What is asked where extended headers are not.
const COMPACT: &[u32] = &[opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, opt::GO];

/// A connection whose server agrees to extended headers, and answers the first request without them.
fn forgets_extended_headers(bench: &Bench) -> Ticket {
    bench.play(|peer| {
        peer.negotiate(&Offer::extended())?;
        let request = peer.request()?;
        peer.send(&wire::simple(request.cookie, 0))?;
        peer.expect_closed()
    })
}

#[test]
fn who_forgets_extended_headers_is_not_asked_for_them_again() {
    let bench = Bench::new(&[]);
    let forgets = forgets_extended_headers(&bench);
    let mut front = bench.open();
    let answer = front.write(OFFSET, &[1; 512]);
    assert!(answer.is_err(), "nobody knows whether it was carried out");
    front.close();
    forgets.ended("it agrees and forgets");
    let log = bench.nbdkit().stderr();
    assert!(log.contains("quirks=no-extended does without"), "{log}");
    for _ in 0..2 {
        let served = asked(&bench, COMPACT, Offer::default());
        opens(&bench);
        served.finished("asked without");
    }
}

#[test]
fn with_reconnect_the_request_is_sent_again_without_them() {
    let bench = Bench::new(&["reconnect=20", "reconnect-delay=10ms"]);
    let forgets = forgets_extended_headers(&bench);
    let served = asked(&bench, COMPACT, Offer::default());
    let mut front = bench.open();
    let answer = front.read(OFFSET, LENGTH);
    assert_eq!(answer, Ok(pattern(OFFSET, LENGTH as usize)));
    front.close();
    forgets.ended("it agrees and forgets");
    served.finished("asked without");
}

/// It is restarting, perhaps. Whoever is asked less offers less, and would do so for as long as nbdkit runs.
#[test]
fn what_was_answered_before_is_asked_again_after_a_hang_up() {
    let bench = Bench::with(&[]);
    let all = &[
        opt::EXTENDED_HEADERS,
        opt::STRUCTURED_REPLY,
        opt::SET_META_CONTEXT,
        opt::GO,
    ];
    let first = asked(&bench, all, Offer::default());
    opens(&bench);
    first.finished("it answers all");
    for &option in COMPACT {
        let drops = fails_at(&bench, option, Offer::default(), Manner::HangsUp);
        let again = asked(&bench, COMPACT, Offer::default());
        opens(&bench);
        drops.finished("it hangs up once");
        again.finished("it is asked the same");
    }
}

/// A client with unflushed data whose connection is lost, and another one that was asked less meanwhile, since the
/// server has hung up over contexts twice. Then `back` plays what the first one meets.
fn comes_back<T>(bench: &Bench, back: impl FnOnce() -> T) -> (Front, T) {
    let cut = Gate::default();
    let lost = bench.play({
        let cut = cut.clone();
        move |peer| {
            let offer = Offer::default();
            let mut disk = Disk::new(offer.size);
            peer.negotiate(&offer)?;
            let request = peer.request()?;
            peer.answer(&request, &mut disk)?;
            cut.pass();
            Ok(())
        }
    });
    let mut stays = bench.open();
    assert_eq!(stays.write(OFFSET, &[1; 512]), Ok(()));
    let (once, twice) = (no_contexts(bench), no_contexts(bench));
    let less = asked(bench, &[opt::GO], Offer::simple());
    opens(bench);
    for (drops, row) in [(once, "once"), (twice, "twice")] {
        drops.finished(row);
    }
    less.finished("asked less");
    let back = back();
    cut.open();
    lost.finished("the connection that is cut");
    (stays, back)
}

fn no_contexts(bench: &Bench) -> Ticket {
    fails_at(
        bench,
        opt::SET_META_CONTEXT,
        Offer::default(),
        Manner::HangsUp,
    )
}

/// What others have learnt is no reason to offer less to a client that has seen it all.
#[test]
fn who_comes_back_asks_what_was_answered_before() {
    let bench = Bench::with(&["reconnect=20", "reconnect-delay=10ms"]);
    let (mut stays, back) = comes_back(&bench, || asked(&bench, COMPACT, Offer::default()));
    let data = stays.read(OFFSET, 512);
    assert_eq!(data.as_deref(), Ok(&[1; 512][..]), "written again");
    stays.close();
    back.finished("it was asked for all that it had");
}

/// Nor is it stuck for ever with a server that has become an older one.
#[test]
fn who_is_offered_less_again_and_again_is_told() {
    let bench = Bench::with(&["reconnect=forever", "reconnect-delay=10ms:10ms"]);
    let (mut stays, _) = comes_back(&bench, || {
        for _ in 0..11 {
            drop(no_contexts(&bench));
            drop(asked(&bench, &[opt::GO], Offer::simple()));
        }
    });
    assert!(stays.read(OFFSET, 512).is_err());
    let log = bench.nbdkit().stderr();
    assert!(log.contains("the server is back, but"), "{log}");
}
