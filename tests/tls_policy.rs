// SPDX-License-Identifier: BSD-3-Clause
//! When TLS is used, and what is said before it: with `tls=require` nothing but the wish for it, with `tls=on`
//! nothing either unless the server says that it has none.
//!
//! A wire between the plugin and its server shows every byte.

mod common;

use std::io;
use std::path::PathBuf;

use common::clients::{attempt, nbdinfo, program, text};
use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::relay::{Recording, Relay};
use common::scripted::disk::Disk;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, FIXED_NEWSTYLE, Fields, NO_ZEROES, opt, rep};
use common::scripted::{End, Scripted};
use common::tls::{nbdkit, opens, refused, says};
use tempfile::TempDir;

/// A name that must not be seen on the wire.
const SECRET: &str = "name-of-the-export";

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "nbdinfo", "certtool"])
}

/// What the plugin says before TLS: its handshake flags and the wish for TLS.
fn wish(recording: &Recording) {
    let mut fields = Fields(&recording.to_server);
    assert_eq!(fields.u32() & !3, 0, "handshake flags");
    assert_eq!(fields.u64(), wire::NEWSTYLE_MAGIC);
    assert_eq!(fields.u32(), opt::STARTTLS);
    assert_eq!(fields.u32(), 0, "no data");
}

/// A polite end of a handshake.
fn goodbye() -> Vec<u8> {
    wire::join(&[
        &wire::NEWSTYLE_MAGIC.to_be_bytes(),
        &opt::ABORT.to_be_bytes(),
        &0u32.to_be_bytes(),
    ])
}

/// How long [`wish`] is.
const WISH: usize = 4 + 16;

/// A scripted server behind a wire, and a plugin before it that trusts some authority.
struct Stage {
    // Dropped in this order: nbdkit goes first, so that no script waits for it in vain.
    front: Nbdkit,
    relay: Relay,
    server: Scripted,
    _directory: TempDir,
}

impl Stage {
    fn new(extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        let client = format!("tls-certificates={}", text(&authority.trusting("client")));
        let server = Scripted::start(directory.path());
        let relay = Relay::unix(directory.path(), "relay.sock", server.socket());
        let front = relay.forward(directory.path(), &[&[client.as_str()], extra].concat());
        Self {
            front,
            relay,
            server,
            _directory: directory,
        }
    }

    /// A stage on which the name of the export is a secret.
    fn with(policy: &str) -> Self {
        Self::new(&[policy, &format!("export={SECRET}")])
    }

    /// A server that plays `script` must be refused; returns the reason, and all that the plugin sent it.
    fn refuses(
        &mut self,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> (String, Recording) {
        let played = self.relay.recordings().len();
        let ticket = self.server.play(move |peer| {
            script(peer)?;
            peer.expect_closed()
        });
        let line = refused(&self.front);
        assert_ne!(ticket.end(), End::Left);
        assert!(self.front.alive(), "{}", self.front.stderr());
        let recordings = self.relay.recordings();
        assert_eq!(recordings.len(), played + 1, "no second try: {line}");
        (line, recordings[played].clone())
    }

    /// [`Stage::refuses`], and the plugin said nothing but that it wants TLS, and perhaps goodbye.
    fn refuses_after_the_wish(
        &mut self,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> String {
        let (line, recording) = self.refuses(script);
        wish(&recording);
        let rest = &recording.to_server[WISH..];
        assert!(rest.is_empty() || rest == goodbye(), "{line}\n{rest:02x?}");
        line
    }
}

/// Greets, and takes the wish for TLS.
fn wished(peer: &mut Peer) -> io::Result<()> {
    peer.greet(FIXED_NEWSTYLE | NO_ZEROES)?;
    let asked = peer.option()?;
    assert_eq!((asked.option, asked.data), (opt::STARTTLS, Vec::new()));
    Ok(())
}

/// Answers to the wish for TLS that say no, and a text that goes with each.
const REFUSALS: [u32; 8] = [
    rep::ERR_UNSUP,
    rep::ERR_POLICY,
    rep::ERR_INVALID,
    rep::ERR_PLATFORM,
    rep::ERR_TLS_REQD,
    rep::ERR_SHUTDOWN,
    rep::ERR_TOO_BIG,
    0x8000_00ff,
];

/// Those of them that say that there is no TLS to be had: unknown, switched off, not built in.
const HAS_NONE: [u32; 3] = [rep::ERR_UNSUP, rep::ERR_POLICY, rep::ERR_PLATFORM];

#[test]
fn required_from_an_oldstyle_server() {
    if !ready() {
        return;
    }
    let mut stage = Stage::with("tls=require");
    let (line, recording) = stage.refuses(|peer| peer.greet_oldstyle(&Offer::default()));
    says(&line, &["handshake", "TLS is required", "oldstyle"]);
    assert_eq!(recording.to_server, b"");
}

#[test]
fn required_from_a_newstyle_server_that_is_not_fixed() {
    if !ready() {
        return;
    }
    let mut stage = Stage::with("tls=require");
    for flags in [0, NO_ZEROES] {
        let (line, recording) = stage.refuses(move |peer| peer.send(&wire::greeting(flags)));
        says(&line, &["handshake", "TLS is required"]);
        assert_eq!(recording.to_server, b"");
    }
}

#[test]
fn required_and_refused() {
    if !ready() {
        return;
    }
    let mut stage = Stage::with("tls=require");
    for reply in REFUSALS {
        let line = stage.refuses_after_the_wish(move |peer| {
            wished(peer)?;
            peer.reply(opt::STARTTLS, reply, b"no lock\x1b on this door")?;
            // The conversation is in order, so it is ended in order.
            assert_eq!(peer.option()?.option, opt::ABORT);
            Ok(())
        });
        says(
            &line,
            &["TLS is required", "NBD_OPT_STARTTLS", "on this door"],
        );
        assert!(!line.contains('\x1b'), "{line:?}");
    }
}

#[test]
fn answers_that_make_no_sense() {
    if !ready() {
        return;
    }
    for policy in ["tls=require", "tls=on"] {
        let mut stage = Stage::with(policy);
        for (option, reply, payload) in [
            (opt::STARTTLS, rep::ACK, &b"with data"[..]),
            (opt::STARTTLS, rep::INFO, &[0; 12]),
            (opt::STARTTLS, rep::SERVER, &[0; 4]),
            (opt::STARTTLS, 77, b""),
            (opt::GO, rep::ACK, b""),
            (opt::GO, rep::ERR_UNSUP, b""),
        ] {
            let line = stage.refuses_after_the_wish(move |peer| {
                wished(peer)?;
                peer.reply(option, reply, payload)
            });
            says(&line, &["handshake", "NBD_OPT_STARTTLS"]);
        }
    }
}

#[test]
fn end_instead_of_an_answer() {
    if !ready() {
        return;
    }
    for policy in ["tls=require", "tls=on"] {
        let mut stage = Stage::with(policy);
        let line = stage.refuses_after_the_wish(|peer| {
            wished(peer)?;
            peer.shutdown(std::net::Shutdown::Both)
        });
        says(&line, &["handshake", "closed"]);
    }
}

/// With `tls=on` a server that plays `greeting`, which tells that it has no TLS, and its `warning`.
fn goes_on_in_clear(
    warning: &str,
    greeting: impl Fn(&mut Peer, &Offer) -> io::Result<()> + Send + Sync + 'static,
) {
    let stage = Stage::with("tls=on");
    let ticket = stage.server.play(move |peer| {
        let offer = Offer::default();
        greeting(peer, &offer)?;
        peer.serve(&mut Disk::new(offer.size))
    });
    let log = opens(&stage.front);
    ticket.finished(warning);
    says(&log, &[warning, "going on in clear"]);
    assert_eq!(stage.relay.recordings().len(), 1, "on the same connection");
}

#[test]
fn wanted_from_a_server_that_does_not_know_it() {
    if !ready() {
        return;
    }
    for reply in HAS_NONE {
        goes_on_in_clear("NBD_OPT_STARTTLS", move |peer, offer| {
            wished(peer)?;
            peer.reply(opt::STARTTLS, reply, b"")?;
            peer.finish_options(offer)
        });
    }
}

#[test]
fn wanted_from_servers_of_old() {
    if !ready() {
        return;
    }
    goes_on_in_clear("no TLS", Peer::greet_oldstyle);
    goes_on_in_clear("no TLS", |peer, offer| {
        peer.greet(0)?;
        peer.finish_options(offer)
    });
}

#[test]
fn wanted_and_refused_for_another_reason() {
    if !ready() {
        return;
    }
    // These do not say that the server has no TLS.
    let mut stage = Stage::with("tls=on");
    for reply in REFUSALS {
        if HAS_NONE.contains(&reply) {
            continue;
        }
        let line = stage.refuses_after_the_wish(move |peer| {
            wished(peer)?;
            peer.reply(opt::STARTTLS, reply, b"")
        });
        says(&line, &["NBD_OPT_STARTTLS"]);
    }
}

#[test]
fn switched_off() {
    if !ready() {
        return;
    }
    let stage = Stage::with("tls=off");
    let log = opens(&stage.front);
    assert!(!log.contains("going on in clear"), "{log}");
    stage.server.no_complaints("no TLS was asked for");
    let sent = &stage.relay.recordings()[0].to_server;
    assert!(contains(sent, SECRET.as_bytes()), "as always without TLS");
}

/// Whatever the server sends behind its consent, with `after` it is refused; returns the reason.
fn refuses_after_consent(extra: &[&str], after: &[u8], separately: bool) -> String {
    let mut reason = String::new();
    for policy in ["tls=require", "tls=on"] {
        let export = format!("export={SECRET}");
        let mut stage = Stage::new(&[&[policy, &export], extra].concat());
        let after = after.to_vec();
        let (line, recording) = stage.refuses(move |peer| {
            wished(peer)?;
            let consent = wire::option_reply(opt::STARTTLS, rep::ACK, &[]);
            if !separately {
                return peer.send(&wire::join(&[&consent, &after]));
            }
            peer.send(&consent)?;
            take_record(peer)?;
            peer.send(&after)
        });
        says(&line, &["handshake", "TLS"]);
        wish(&recording);
        assert!(!contains(&recording.to_server, SECRET.as_bytes()));
        only_records(&recording.to_server[WISH..]);
        reason = line;
    }
    reason
}

/// Receives one record, as the plugin's first word under TLS is.
fn take_record(peer: &mut Peer) -> io::Result<()> {
    let header = peer.receive(5)?;
    assert_eq!(header[..2], [22, 3], "a handshake record");
    let length = u16::from_be_bytes([header[3], header[4]]);
    peer.receive(length.into()).map(drop)
}

/// What an attacker would like the plugin to take for the server's word under TLS.
fn forged_answers() -> Vec<u8> {
    wire::join(&[
        &wire::option_reply(opt::EXTENDED_HEADERS, rep::ERR_UNSUP, &[]),
        &wire::option_reply(opt::STRUCTURED_REPLY, rep::ERR_UNSUP, &[]),
        &wire::option_reply(opt::GO, rep::INFO, &wire::info_export(1 << 20, 1)),
        &wire::option_reply(opt::GO, rep::ACK, &[]),
    ])
}

#[test]
fn words_put_behind_the_consent() {
    if !ready() {
        return;
    }
    for words in [forged_answers(), vec![0], vec![21, 3, 3, 0, 2, 1, 0]] {
        let line = refuses_after_consent(&[], &words, false);
        says(&line, &["in clear"]);
    }
}

#[test]
fn words_in_clear_instead_of_tls() {
    if !ready() {
        return;
    }
    refuses_after_consent(&[], &forged_answers(), true);
    refuses_after_consent(&[], &wire::greeting(3), true);
    refuses_after_consent(&[], b"HTTP/1.1 400 Bad Request\r\n\r\n", true);
}

#[test]
fn alert_instead_of_a_handshake() {
    if !ready() {
        return;
    }
    // Fatal: handshake_failure.
    let line = refuses_after_consent(&[], &[21, 3, 3, 0, 2, 2, 40], true);
    says(&line, &["alert"]);
}

#[test]
fn silence_instead_of_a_handshake() {
    if !ready() {
        return;
    }
    let deadline = ["handshake-timeout=300ms"];
    let line = refuses_after_consent(&deadline, &[], true);
    says(&line, &["timed out after 0.3 seconds"]);
    // And in the middle of a record.
    let line = refuses_after_consent(&deadline, &[22, 3, 3, 0, 100, 2, 0], true);
    says(&line, &["timed out after 0.3 seconds"]);
}

#[test]
fn handshake_that_comes_byte_by_byte() {
    if !ready() {
        return;
    }
    // One deadline holds for all of it, TLS included, and not for each byte.
    let mut stage = Stage::new(&["tls=require", "handshake-timeout=500ms"]);
    let (line, _) = stage.refuses(|peer| {
        wished(peer)?;
        peer.reply(opt::STARTTLS, rep::ACK, &[])?;
        take_record(peer)?;
        peer.send(&[22, 3, 3, 0x3f, 0])?;
        for _ in 0..1000 {
            peer.send(&[0])?;
            if peer.readable_within(std::time::Duration::from_millis(20)) {
                break;
            }
        }
        Ok(())
    });
    says(&line, &["handshake"]);
}

/// A server that insists on TLS, and a wire before it.
struct Guarded {
    relay: Relay,
    _server: Nbdkit,
    client: PathBuf,
    // Last, since the others have their sockets in it.
    directory: TempDir,
}

impl Guarded {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        let certificates = authority.server("server", LOCALHOST);
        let client = authority.trusting("client");
        let listed = [
            "eval",
            "list_exports=echo INTERLEAVED; echo name-of-the-export; echo first",
            "default_export=echo name-of-the-export",
            "export_description=echo name-of-the-export",
            "open=printf %s \"$3\"",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
        ];
        let server = nbdkit(directory.path(), &certificates, &listed);
        let relay = Relay::unix(directory.path(), "relay.sock", server.socket());
        Self {
            directory,
            client,
            relay,
            _server: server,
        }
    }

    fn forward(&self, extra: &[&str]) -> Nbdkit {
        let client = format!("tls-certificates={}", text(&self.client));
        let tls = ["tls-hostname=localhost", client.as_str()];
        self.relay
            .forward(self.directory.path(), &[&tls, extra].concat())
    }

    /// On each connection so far: a wish for TLS and a consent, and then nothing that is not TLS.
    fn nothing_leaked(&self) {
        let recordings = self.relay.recordings();
        assert!(!recordings.is_empty(), "nothing to look at");
        for recording in &recordings {
            wish(recording);
            only_records(&recording.to_server[WISH..]);
            let greeting_and_consent = 18 + 20;
            only_records(&recording.from_server[greeting_and_consent..]);
            for bytes in [&recording.to_server, &recording.from_server] {
                assert!(!contains(bytes, SECRET.as_bytes()));
            }
        }
    }
}

/// Nothing but records of TLS, of which the last may be incomplete.
fn only_records(mut bytes: &[u8]) {
    while let [kind, 3, 0..=3, high, low, rest @ ..] = bytes {
        assert!((20..=23).contains(kind), "record of type {kind}");
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        assert!(length <= (16 << 10) + 256, "record of {length} bytes");
        bytes = &rest[length.min(rest.len())..];
    }
    assert!(bytes.len() < 5, "not TLS: {bytes:02x?}");
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn export_name_does_not_leak() {
    if !ready() {
        return;
    }
    for policy in ["tls=require", "tls=on"] {
        let server = Guarded::new();
        let front = server.forward(&[policy, &format!("export={SECRET}")]);
        opens(&front);
        server.nothing_leaked();
    }
}

#[test]
fn questions_for_exports_do_not_leak() {
    if !ready() {
        return;
    }
    for policy in ["tls=require", "tls=on"] {
        let server = Guarded::new();
        let front = server.forward(&[policy, "dynamic-export=true"]);
        let list = program("nbdinfo", &["--list", &front.uri()]);
        assert!(list.contains(SECRET), "{list}");
        // The default export is asked for, and then opened.
        let default = nbdinfo(&front.uri());
        assert_eq!(default["export-size"], 1 << 20, "{default}");
        let named = nbdinfo(&front.uri_export(SECRET));
        assert_eq!(named["export-size"], 1 << 20, "{named}");
        assert!(server.relay.recordings().len() >= 3);
        server.nothing_leaked();
    }
}

#[test]
fn questions_for_exports_are_not_asked_without_tls() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new(&["tls=require", "dynamic-export=true"]);
    for _ in 0..4 {
        // Not each of them need be played.
        drop(stage.server.play(|peer| {
            wished(peer)?;
            peer.reply(opt::STARTTLS, rep::ERR_UNSUP, b"")?;
            assert_eq!(peer.option()?.option, opt::ABORT);
            peer.expect_closed()
        }));
    }
    let output = attempt("nbdinfo", &["--list", &stage.front.uri()]);
    assert!(!output.status.success(), "{output:?}");
    assert!(stage.front.alive());
    let recordings = stage.relay.recordings();
    assert!(!recordings.is_empty(), "the plugin asked for TLS");
    for recording in &recordings {
        wish(recording);
        assert_eq!(recording.to_server[WISH..], goodbye());
    }
}

#[test]
fn server_that_insists_on_tls_is_explained() {
    if !ready() {
        return;
    }
    let server = Guarded::new();
    let front = server.forward(&["tls=off"]);
    let line = refused(&front);
    says(&line, &["handshake", "insists on TLS", "tls=require"]);
}

#[test]
fn server_that_lists_nothing_without_tls() {
    if !ready() {
        return;
    }
    // It insists on TLS for its list, and not for the export.
    let stage = Stage::new(&["tls=off", "dynamic-export=true"]);
    for _ in 0..2 {
        drop(stage.server.play(|peer| {
            let offer = Offer::default();
            peer.greet(offer.handshake_flags)?;
            loop {
                let asked = peer.option()?;
                if [opt::LIST, opt::INFO].contains(&asked.option) {
                    peer.reply(asked.option, rep::ERR_TLS_REQD, b"")?;
                } else if peer.answer_option(&asked, &offer)? {
                    return peer.serve(&mut Disk::new(offer.size));
                }
            }
        }));
    }
    let mut front = Front::open(stage.front.socket()).expect("the export is open to all");
    assert_eq!(front.read(0, 512).map(|data| data.len()), Ok(512));
    front.close();
}

#[test]
fn export_that_needs_tls() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new(&["tls=off", &format!("export={SECRET}")]);
    let (line, _) = stage.refuses(|peer| {
        peer.greet_until(opt::GO, &Offer::default())?;
        peer.reply(opt::GO, rep::ERR_TLS_REQD, b"this one is locked")
    });
    says(
        &line,
        &[
            "NBD_OPT_GO",
            "insists on TLS (use tls=require), or has no export named",
            "this one is locked",
        ],
    );
}
