// SPDX-License-Identifier: BSD-3-Clause
//! A server comes back and is another one, or a worse one: nobody may take it for the one that was lost.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::fs;

use common::clients::text;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::pki::{self, Authority, LOCALHOST, TOOLS};
use common::scripted::wire::{cmd, flag};
use common::{need, need_all};
use torture::ordeal::Stage;
use torture::setup::{FLAGS, Setup};
use torture::trace::event::What;

const PATIENT: [&str; 2] = ["reconnect=30", "reconnect-delay=10ms:100ms"];
/// For what ends only when the time is over.
const BRIEF: [&str; 2] = ["reconnect=1", "reconnect-delay=10ms:100ms"];
const DATA: [u8; 4096] = [7; 4096];

/// A server with `was` comes back so changed that the session must end, and the user must be told these words.
fn ends(was: Setup, extra: &[&str], change: impl FnOnce(&mut Setup), words: &[&str]) {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(was, &[&PATIENT, extra].concat());
    stage.loses();
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    stage.restart(change);
    for _ in 0..2 {
        assert!(client.read(0, 4096).is_err(), "served by another one");
    }
    assert!(client.write(0, &DATA).is_err(), "written to another one");
    assert!(client.flush().is_err(), "flushed, though a write was lost");
    stage.says(words);
    let told = stage.errors();
    let told = told
        .iter()
        .filter(|line| words.iter().all(|word| line.contains(word)));
    assert_eq!(told.count(), 1, "told once: {:#?}", stage.errors());
    // Who comes later has nothing to lose.
    let size = stage.server.setup().size;
    let mut later = stage.client();
    assert_eq!(later.size, size);
    later.read(0, 4096).expect("a later client's read");
    let log = stage.server.log();
    let changes = log.iter().filter(
        |event| matches!(&event.what, What::Arrive(request) if event.epoch == 2 && request.kind == cmd::WRITE),
    );
    assert_eq!(changes.count(), 0, "replayed to another one");
    assert!(stage.front.alive());
}

#[test]
fn larger() {
    let change = |setup: &mut Setup| {
        setup.size *= 2;
        let file = fs::File::options().write(true).open(&setup.backing);
        file.and_then(|file| file.set_len(setup.size))
            .expect("a longer file");
    };
    ends(Setup::default(), &[], change, &["4194304", "8388608"]);
}

#[test]
fn smaller() {
    let change = |setup: &mut Setup| setup.size /= 2;
    ends(Setup::default(), &[], change, &["4194304", "2097152"]);
}

#[test]
fn smaller_and_shared() {
    let change = |setup: &mut Setup| setup.size /= 2;
    let words = ["4194304", "2097152"];
    ends(Setup::default(), &["shared=true"], change, &words);
}

#[test]
fn read_only() {
    let change = |setup: &mut Setup| setup.flags |= flag::READ_ONLY;
    ends(Setup::default(), &[], change, &["read-only"]);
}

#[test]
fn fewer_flags() {
    let change = |setup: &mut Setup| setup.flags &= !flag::SEND_TRIM;
    ends(Setup::default(), &[], change, &["NBD_FLAG_SEND_TRIM"]);
}

/// A server that has forgotten how to tell extents, or speaks as servers did long ago.
#[test]
fn without_contexts_or_oldstyle_now() {
    if !need("nbdkit") {
        return;
    }
    for mode in ["--no-sr", "-o"] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let socket = directory.path().join("server.sock");
        let memory = ["memory", "1M"];
        let server = Nbdkit::start_at(&socket, &memory);
        let front = forward(directory.path(), &socket, &PATIENT);
        let mut client = Front::of(&front);
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]), "{mode}");
        drop(server);
        fs::remove_file(&socket).expect("remove");
        let _server = Nbdkit::start_at(&socket, &[&[mode], &memory[..]].concat());
        assert!(
            client.read(0, 512).is_err(),
            "{mode}: served by another one"
        );
        client.close();
        let told = front.errors();
        let told = told
            .iter()
            .filter(|line| line.contains(", and has it no more"));
        assert_eq!(told.count(), 1, "{mode}: {:#?}", front.errors());
        let mut later = Front::of(&front);
        assert_eq!(later.read(0, 512), Ok(vec![0; 512]), "{mode}");
        later.close();
    }
}

#[test]
fn another_name() {
    let was = Setup {
        name: "disk".to_owned(),
        ..Setup::default()
    };
    let change = |setup: &mut Setup| setup.name = "other".to_owned();
    ends(was, &[], change, &["\"disk\"", "\"other\""]);
}

#[test]
fn larger_blocks() {
    let was = Setup {
        blocks: (512, 4096, 1 << 20),
        ..Setup::default()
    };
    let change = |setup: &mut Setup| setup.blocks.0 = 4096;
    ends(was, &[], change, &["512", "4096"]);
}

#[test]
fn more_than_it_was_is_welcome() {
    if !need("nbdkit") {
        return;
    }
    let was = Setup {
        flags: FLAGS & !flag::SEND_TRIM,
        blocks: (512, 4096, 1 << 20),
        ..Setup::default()
    };
    let mut stage = Stage::new(was, &PATIENT);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    stage.restart(|setup| {
        setup.flags = FLAGS;
        setup.blocks = (1, 4096, 2 << 20);
    });
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()));
}

#[test]
fn requests_are_cut_to_a_smaller_maximum() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &PATIENT);
    let mut client = stage.client();
    let data = vec![9; 256 << 10];
    client.write(0, &data).expect("a write before the loss");
    stage.restart(|setup| setup.blocks.2 = 64 << 10);
    assert_eq!(client.read(0, 256 << 10), Ok(data.clone()));
    client.write(1 << 20, &data).expect("a long write");
    let mut longest = 0;
    for event in stage.server.log() {
        if let (2, What::Arrive(request)) = (event.epoch, event.what) {
            longest = longest.max(request.length);
        }
    }
    assert_eq!(longest, 64 << 10, "cut, the replay too");
}

#[test]
fn tls_is_required_now() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let certificates = authority.server("server", LOCALHOST);
    let mut stage = Stage::new(Setup::default(), &BRIEF);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    stage.restart(|setup| setup.tls = certificates);
    assert!(client.read(0, 4096).is_err());
    stage.says(&["TLS"]);
}

/// A server with TLS, and a client of the plugin that trusts its authority.
struct Secure {
    stage: Stage,
    authority: Authority,
    other: Authority,
    certificates: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

fn secure(extra: impl Fn(&std::path::Path) -> Vec<String>) -> Secure {
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let other = Authority::new(directory.path(), "other");
    let certificates = authority.server("server", LOCALHOST);
    let trusting = format!("tls-certificates={}", text(&authority.trusting("client")));
    let mut parameters = vec![
        "tls=require".to_owned(),
        "tls-hostname=localhost".to_owned(),
        trusting,
    ];
    parameters.extend(extra(&certificates));
    let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
    let setup = Setup {
        tls: certificates.clone(),
        ..Setup::default()
    };
    Secure {
        stage: Stage::new(setup, &parameters),
        authority,
        other,
        certificates,
        _directory: directory,
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn renewed_certificate_is_accepted() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    let mut secure = secure(|_| owned(&PATIENT));
    let mut client = secure.stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    secure
        .authority
        .renew_server(&secure.certificates, LOCALHOST);
    secure.stage.restart(|_| ());
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()));
    client.flush().expect("a flush");
}

#[test]
fn certificate_of_another_is_not_and_may_be_put_right() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    let mut secure = secure(|_| owned(&PATIENT));
    let mut client = secure.stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    secure.other.renew_server(&secure.certificates, LOCALHOST);
    secure.stage.restart(|_| ());
    let read = client.submit(cmd::READ, 0, 0, 4096, &[]);
    secure.stage.server.wait_connections(3);
    assert!(client.waits(), "served by somebody else");
    secure
        .authority
        .renew_server(&secure.certificates, LOCALHOST);
    secure.stage.restart(|_| ());
    assert_eq!(client.wait(read), Ok(DATA.to_vec()));
}

#[test]
fn certificate_of_another_fails_when_the_time_is_over() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    let mut secure = secure(|_| owned(&BRIEF));
    let mut client = secure.stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    secure.other.renew_server(&secure.certificates, LOCALHOST);
    secure.stage.restart(|_| ());
    assert!(client.read(0, 4096).is_err());
    secure.stage.says(&["certificate"]);
    secure.stage.is_told_nothing();
}

#[test]
fn another_key_than_the_pinned_one_is_told_nothing() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    let mut secure = secure(|certificates| {
        let mut parameters = owned(&BRIEF);
        parameters.push(format!("tls-pin={}", pki::pin(certificates)));
        parameters
    });
    let mut client = secure.stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    secure
        .authority
        .renew_server(&secure.certificates, LOCALHOST);
    secure.stage.restart(|_| ());
    assert!(client.read(0, 4096).is_err());
    assert!(client.flush().is_err());
    secure.stage.says(&["tls-pin"]);
    secure.stage.is_told_nothing();
}
