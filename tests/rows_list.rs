// SPDX-License-Identifier: BSD-3-Clause
//! Rows P12 and P14 of the catalogue: servers that misbehave when they are asked for their exports.

mod common;

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::clients::{attempt, canonical_name};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::scripted::disk::Disk;
use common::scripted::peer::{Asked, Offer, Peer, left};
use common::scripted::wire::{self, info, opt, rep};
use common::scripted::{End, Scripted};

const DYNAMIC: &[&str] = &["dynamic-export=true"];

/// A reply that lists `name`.
fn server_reply(name: &str, description: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).expect("short");
    wire::option_reply(
        opt::LIST,
        rep::SERVER,
        &wire::join(&[
            &length.to_be_bytes(),
            name.as_bytes(),
            description.as_bytes(),
        ]),
    )
}

fn ack() -> Vec<u8> {
    wire::option_reply(opt::LIST, rep::ACK, &[])
}

/// A scripted server that answers LIST with `answer`, and nbdkit before it.
struct Listing {
    nbdkit: Nbdkit,
    server: Scripted,
    _directory: tempfile::TempDir,
}

impl Listing {
    fn new(extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Scripted::start(directory.path());
        let nbdkit = forward(
            directory.path(),
            server.socket(),
            &[DYNAMIC, extra].concat(),
        );
        Self {
            nbdkit,
            server,
            _directory: directory,
        }
    }

    /// nbdkit's client asks for the list while the server does this.
    fn list(
        &self,
        answer: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> (Result<Vec<String>, String>, End) {
        let answer = Arc::new(answer);
        let ticket = self.server.play(move |peer| {
            let asked = greet_until_list(peer)?;
            assert!(asked.data.is_empty(), "LIST has no data");
            answer(peer)
        });
        let script = format!(
            "
h.set_opt_mode(True)
h.connect_unix('{}')
h.opt_list(lambda name, description: print(name))
",
            self.nbdkit.socket().display()
        );
        let output = attempt("/usr/bin/python3", &["-mnbd", "-c", &script]);
        let names = if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text.lines().map(str::to_owned).collect())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        };
        (names, ticket.end())
    }

    /// Whatever the list was, the export opens.
    fn still_opens(&mut self, row: &str) {
        assert!(self.nbdkit.alive(), "{row}: {}", self.nbdkit.stderr());
        match Front::open_as(self.nbdkit.socket(), "disk", false) {
            Ok(front) => assert_eq!(front.export().size, 1 << 20, "{row}"),
            Err(error) => panic!("{row}: {error:?}\n{}", self.nbdkit.stderr()),
        }
        self.server.no_complaints(row);
    }
}

/// Negotiates until LIST comes; structured replies may be agreed on the way, or not.
fn greet_until_list(peer: &mut Peer) -> io::Result<Asked> {
    peer.greet_until(opt::LIST, &Offer::default())
}

/// The plugin leaves, politely or not, and a good server closes the connection then.
fn take_leave(peer: &mut Peer) -> io::Result<()> {
    match peer.option() {
        Ok(asked) => assert_eq!(asked.option, opt::ABORT),
        Err(error) if left(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

#[test]
fn p12_server_that_refuses_to_list_still_opens() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    for error in [
        rep::ERR_UNSUP,
        rep::ERR_POLICY,
        rep::ERR_INVALID,
        rep::ERR_PLATFORM,
    ] {
        let row = format!("LIST refused with {error:#x}");
        let (_, end) = listing.list(move |peer| {
            peer.reply(opt::LIST, error, b"no list for you")?;
            peer.expect_closed()
        });
        assert!(!matches!(end, End::Failed(_)), "{row}: {end:?}");
        listing.still_opens(&row);
    }
}

#[test]
fn p12_server_that_hangs_up_over_the_list_still_opens() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    let (_, end) = listing.list(|_| Ok(()));
    assert_eq!(end, End::Finished);
    listing.still_opens("hangs up");
}

#[test]
fn p12_endless_list_ends_at_a_limit_or_the_deadline() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&["handshake-timeout=1"]);
    let begun = Instant::now();
    let (_, end) = listing.list(|peer| {
        for number in 0u64.. {
            peer.send(&server_reply(&format!("export-{number}"), ""))?;
        }
        Ok(())
    });
    assert_eq!(end, End::Left, "the plugin must lose patience");
    assert!(begun.elapsed() < Duration::from_secs(20), "a hang bound");
    assert!(resident_kib(&listing.nbdkit) < 256 << 10, "bounded memory");
    listing.still_opens("endless list");
}

#[test]
fn p12_list_that_drips_ends_at_the_deadline() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&["handshake-timeout=1"]);
    let (_, end) = listing.list(|peer| {
        // Each reply comes long before any deadline for one read would have passed.
        for number in 0..40 {
            peer.send(&server_reply(&format!("export-{number}"), ""))?;
            if peer.readable_within(Duration::from_millis(300)) {
                return peer.expect_closed();
            }
        }
        Err(io::Error::other("the plugin is too patient"))
    });
    assert!(!matches!(end, End::Failed(_)), "{end:?}");
    listing.still_opens("dripping list");
}

#[test]
fn p12_hundred_thousand_exports() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    let (names, end) = listing.list(|peer| {
        let mut all = Vec::new();
        for number in 0..100_000 {
            all.extend(server_reply(&format!("export-{number}"), ""));
        }
        all.extend(ack());
        peer.send(&all)?;
        take_leave(peer)
    });
    assert!(!matches!(end, End::Failed(_)), "{end:?}");
    // nbdkit itself takes 10,000 exports. Which ones are shown, if any, is not promised; that it lives, is.
    if let Ok(names) = names {
        assert!(names.len() <= 100_000);
        assert!(names.iter().all(|name| name.starts_with("export-")));
    }
    listing.still_opens("100,000 exports");
}

#[test]
fn p12_lengths_that_lie_are_not_believed() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    for claimed in [5u32, 4096, 4097, 1 << 20, u32::MAX - 4, u32::MAX] {
        let row = format!("4 bytes that claim to be {claimed}");
        let (names, end) = listing.list(move |peer| {
            let payload = wire::join(&[&claimed.to_be_bytes(), b"name"]);
            peer.send(&wire::option_reply(opt::LIST, rep::SERVER, &payload))?;
            peer.send(&ack())?;
            take_leave(peer)
        });
        assert!(!matches!(end, End::Failed(_)), "{row}: {end:?}");
        if let Ok(names) = names {
            assert!(names.iter().all(String::is_empty), "{row}: {names:?}");
        }
        listing.still_opens(&row);
    }
    // An ordinary nbdkit reserves a few hundred MiB of address space: stacks, malloc arenas.
    assert!(resident_kib(&listing.nbdkit) < 128 << 10, "bounded memory");
}

#[test]
fn p12_payload_too_short_for_a_length() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    for length in 0..4 {
        let row = format!("SERVER with {length} bytes");
        let (_, end) = listing.list(move |peer| {
            peer.send(&wire::option_reply(
                opt::LIST,
                rep::SERVER,
                &vec![0; length],
            ))?;
            peer.send(&ack())?;
            take_leave(peer)
        });
        assert!(!matches!(end, End::Failed(_)), "{row}: {end:?}");
        listing.still_opens(&row);
    }
}

#[test]
fn p12_payload_of_four_gigabytes_is_not_awaited() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    let (_, end) = listing.list(|peer| {
        peer.send(&wire::option_reply_header(opt::LIST, rep::SERVER, u32::MAX))?;
        peer.expect_closed()
    });
    assert!(!matches!(end, End::Failed(_)), "{end:?}");
    listing.still_opens("4 GiB");
}

#[test]
fn p12_error_after_some_exports_does_not_end_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    let (names, end) = listing.list(|peer| {
        peer.send(&server_reply("first", ""))?;
        peer.reply(opt::LIST, rep::ERR_SHUTDOWN, b"going down")?;
        peer.expect_closed()
    });
    assert!(!matches!(end, End::Failed(_)), "{end:?}");
    // What came before an error is void.
    if let Ok(names) = names {
        assert!(!names.contains(&"first".to_owned()), "{names:?}");
    }
    listing.still_opens("error in the middle");
}

#[test]
fn p12_same_name_twice_and_terminal_codes_are_harmless() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    let (names, end) = listing.list(|peer| {
        peer.send(&server_reply("twin", "one"))?;
        peer.send(&server_reply("twin", "two"))?;
        peer.send(&server_reply("bell", "\u{1b}[2J\u{7}"))?;
        peer.send(&ack())?;
        take_leave(peer)
    });
    assert!(!matches!(end, End::Failed(_)), "{end:?}");
    let names = names.expect("a list");
    assert!(names.contains(&"twin".to_owned()), "{names:?}");
    assert!(
        !listing.nbdkit.stderr().contains('\u{1b}'),
        "terminal codes in the log"
    );
    listing.still_opens("twins");
}

#[test]
fn p12_names_that_nbdkit_cannot_have_are_left_out() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    let (names, end) = listing.list(|peer| {
        peer.send(&server_reply("before", ""))?;
        peer.send(&server_reply("zero\0inside", ""))?;
        peer.send(&server_reply("after", ""))?;
        peer.send(&ack())?;
        take_leave(peer)
    });
    assert!(!matches!(end, End::Failed(_)), "{end:?}");
    assert_eq!(names, Ok(vec!["before".to_owned(), "after".to_owned()]));
    listing.still_opens("odd names");
}

#[test]
fn p14_abort_without_an_answer_does_not_keep_the_client_waiting() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    let begun = Instant::now();
    let (names, end) = listing.list(|peer| {
        peer.send(&server_reply("disk", ""))?;
        peer.send(&ack())?;
        // ABORT may come now. It is not answered, and the connection is kept.
        peer.expect_closed()
    });
    assert_eq!(names, Ok(vec!["disk".to_owned()]));
    assert_eq!(end, End::Finished, "the plugin closes by itself");
    assert!(begun.elapsed() < Duration::from_secs(12), "a hang bound");
    listing.still_opens("silent after ABORT");
}

#[test]
fn p14_abort_answered_late_or_by_closing() {
    if !need("nbdkit") {
        return;
    }
    let mut listing = Listing::new(&[]);
    for late in [true, false] {
        let (names, end) = listing.list(move |peer| {
            peer.send(&server_reply("disk", ""))?;
            peer.send(&ack())?;
            if late {
                peer.readable_within(Duration::from_millis(300));
                // The plugin may be gone by now.
                let _ = peer.reply(opt::ABORT, rep::ACK, &[]);
                return peer.expect_closed();
            }
            Ok(())
        });
        let stderr = listing.nbdkit.stderr();
        assert_eq!(names, Ok(vec!["disk".to_owned()]), "late: {late}: {stderr}");
        assert!(!matches!(end, End::Failed(_)), "late: {late}: {end:?}");
        listing.still_opens("ABORT");
    }
}

/// Plays a server that tells `name` of the default export when that is opened.
fn canonical(name: &'static [u8]) -> (Listing, String) {
    let listing = Listing::new(&[]);
    let ticket = listing.server.play(move |peer| {
        let offer = Offer::default();
        peer.greet(offer.handshake_flags)?;
        loop {
            let asked = peer.option()?;
            if asked.option == opt::GO {
                assert_eq!(asked.go().0, b"");
                let told = wire::info_payload(info::NAME, name);
                peer.reply(opt::GO, rep::INFO, &told)?;
                peer.send_infos(&offer)?;
                peer.accept_go(&offer)?;
                return peer.serve(&mut Disk::new(offer.size));
            } else if peer.answer_option(&asked, &offer)? {
                return peer.serve(&mut Disk::new(offer.size));
            }
        }
    });
    let seen = canonical_name(listing.nbdkit.socket());
    ticket.ended("GO to the default export");
    (listing, seen)
}

#[test]
fn canonical_name_comes_with_the_default_export_that_is_opened() {
    if !need("nbdkit") {
        return;
    }
    let (mut listing, seen) = canonical(b"real name");
    assert_eq!(seen, "real name");
    listing.still_opens("canonical name");
}

#[test]
fn canonical_name_that_nbdkit_cannot_have_is_ignored() {
    if !need("nbdkit") {
        return;
    }
    let (mut listing, seen) = canonical(b"zero\0inside");
    assert_eq!(seen, "");
    listing.still_opens("odd canonical name");
}

/// How much memory nbdkit has at the moment, in KiB.
fn resident_kib(nbdkit: &Nbdkit) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", nbdkit.pid())).expect("it runs");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a VmRSS line")
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}
