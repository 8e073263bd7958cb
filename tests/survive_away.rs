// SPDX-License-Identifier: BSD-3-Clause
//! A server that stays away, hangs, babbles, or says that it goes: what clients see meanwhile, and afterwards.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::clients::text;
use common::nbdkit::{Nbdkit, forward_args};
use common::need;
use common::process::eventually;
use common::scripted::wire::{cmd, errno};
use torture::client::Client;
use torture::ordeal::Stage;
use torture::setup::Setup;
use torture::trace::event::What;

const PATIENT: [&str; 2] = ["reconnect=30", "reconnect-delay=10ms:100ms"];
const BRIEF: [&str; 2] = ["reconnect=1", "reconnect-delay=10ms:100ms"];
const DATA: [u8; 4096] = [7; 4096];
const OTHER: [u8; 4096] = [8; 4096];
/// A hang bound.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn gone_for_longer_than_requests_wait() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &BRIEF);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    stage.server.kill();
    let waiting: Vec<u64> = (0..8)
        .map(|number| client.submit(cmd::READ, 0, number * 4096, 4096, &[]))
        .collect();
    for _ in &waiting {
        let answer = client.next(LIMIT).expect("an answer");
        assert_eq!(answer.error, errno::EIO);
    }
    assert_eq!(client.write(4096, &OTHER), Err(errno::EIO), "at once");
    assert_eq!(client.flush(), Err(errno::EIO), "nothing is flushed");
    // The loss, and that requests fail; not one line for each.
    let errors = stage.errors();
    assert!((1..=3).contains(&errors.len()), "{errors:#?}");
    stage.server.again(|_| ());
    eventually("the handle is of use again", LIMIT, || {
        client.read(0, 4096).ok()
    });
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()), "replayed");
    client.write(8192, &OTHER).expect("a write");
    client.flush().expect("a flush");
    stage.server.kill();
    let durable = fs::read(stage.server.backing()).expect("the backing file");
    assert_eq!(durable[..4096], DATA);
    assert_eq!(durable[8192..12288], OTHER);
}

#[test]
fn accepts_and_says_nothing() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &BRIEF);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write before the loss");
    stage.restart(|setup| setup.mute = true);
    assert_eq!(client.read(0, 4096), Err(errno::EIO));
    stage.restart(|setup| setup.mute = false);
    eventually("the handle is of use again", LIMIT, || {
        client.read(0, 4096).ok()
    });
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()), "replayed");
}

#[test]
fn takes_requests_and_answers_none() {
    if !need("nbdkit") {
        return;
    }
    let extra = [&PATIENT[..], &["request-timeout=1"]].concat();
    let setup = Setup {
        silent: true,
        ..Setup::default()
    };
    let mut stage = Stage::new(setup, &extra);
    let mut client = stage.client();
    let write = client.submit(cmd::WRITE, 0, 0, 4096, &DATA);
    // It was sent, given up, and sent again on another connection.
    stage.server.wait_connections(2);
    stage.server.wait_arrived(2);
    stage.restart(|setup| setup.silent = false);
    client.wait(write).expect("a write");
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()));
}

#[test]
fn one_answer_that_never_comes() {
    if !need("nbdkit") {
        return;
    }
    let extra = [&PATIENT[..], &["request-timeout=1"]].concat();
    for kind in [cmd::WRITE, cmd::READ, cmd::FLUSH] {
        let setup = Setup {
            drops: 2,
            ..Setup::default()
        };
        let stage = Stage::new(setup, &extra);
        let mut client = stage.client();
        client.write(0, &DATA).expect("a write");
        let (offset, length) = if kind == cmd::FLUSH {
            (0, 0)
        } else {
            (0, 4096)
        };
        let payload: &[u8] = if kind == cmd::WRITE { &OTHER } else { &[] };
        let answer = client.call(kind, 0, offset, length, payload);
        assert!(answer.is_ok(), "kind {kind}: {answer:?}");
        let now = if kind == cmd::WRITE { OTHER } else { DATA };
        assert_eq!(client.read(0, 4096), Ok(now.to_vec()), "kind {kind}");
    }
}

#[test]
fn five_violations_in_a_row_end_it() {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        violates: true,
        ..Setup::default()
    };
    let stage = Stage::new(setup, &PATIENT);
    let mut client = stage.client();
    assert!(client.read(0, 4096).is_err());
    assert_eq!(stage.server.connections(), 5);
    assert!(client.read(0, 4096).is_err(), "for good");
    assert_eq!(stage.server.connections(), 5);
}

#[test]
fn says_that_it_goes() {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        goes_at: 6,
        ..Setup::default()
    };
    let stage = Stage::new(setup, &PATIENT);
    let mut client = stage.client();
    for number in 0..12 {
        client.write(number * 4096, &DATA).expect("a write");
    }
    for number in 0..12 {
        assert_eq!(client.read(number * 4096, 4096), Ok(DATA.to_vec()));
    }
    client.flush().expect("a flush");
    assert_eq!(stage.server.connections(), 2);
}

#[test]
fn says_that_it_goes_without_reconnect() {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        goes_at: 3,
        ..Setup::default()
    };
    let stage = Stage::new(setup, &[]);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    client.flush().expect("a flush");
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()), "one more try");
    client.write(0, &OTHER).expect("a write");
    assert_eq!(stage.server.connections(), 2);
}

#[test]
fn says_that_it_goes_with_unflushed_data_and_without_reconnect() {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        goes_at: 2,
        ..Setup::default()
    };
    let stage = Stage::new(setup, &[]);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    // This server does not even take the flush that the plugin sends before it leaves.
    assert_eq!(client.read(0, 4096), Err(errno::ESHUTDOWN));
    assert_eq!(stage.errors().len(), 1, "{:#?}", stage.errors());
    let log = stage.server.log();
    let flushes = log
        .iter()
        .filter(|event| matches!(&event.what, What::Arrive(request) if request.kind == cmd::FLUSH));
    assert!(flushes.count() > 0, "left without a flush");
}

/// nbdkit's error filter says ESHUTDOWN for as long as a file is there.
fn error_filter(extra: &[&str]) -> (tempfile::TempDir, Nbdkit, Nbdkit, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("going");
    let upstream = Nbdkit::start(
        directory.path(),
        &[
            "-v",
            "--filter=error",
            "memory",
            "1M",
            "error=ESHUTDOWN",
            "error-rate=100%",
            &format!("error-file={}", text(&file)),
        ],
    );
    let args = forward_args(upstream.socket(), extra);
    let front = Nbdkit::start(directory.path(), &args);
    (directory, upstream, front, file)
}

#[test]
fn error_filter_with_reconnect() {
    if !need("nbdkit") {
        return;
    }
    let (_directory, upstream, front, file) = error_filter(&PATIENT);
    let mut client = Client::open(front.socket()).expect("a client");
    client.write(0, &DATA).expect("a write");
    client.flush().expect("a flush");
    fs::write(&file, "").expect("make a file");
    // nbdkit says so of each connection to it.
    let connections = || upstream.stderr().matches("newstyle negotiation").count();
    let before = connections();
    let read = client.submit(cmd::READ, 0, 0, 4096, &[]);
    eventually("the plugin tries again and again", LIMIT, || {
        (connections() >= before + 3).then_some(())
    });
    assert!(client.waits(), "an answer while the server only goes");
    fs::remove_file(&file).expect("remove the file");
    assert_eq!(client.wait(read), Ok(DATA.to_vec()));
}

#[test]
fn error_filter_without_reconnect() {
    if !need("nbdkit") {
        return;
    }
    let (_directory, _upstream, front, file) = error_filter(&[]);
    let mut client = Client::open(front.socket()).expect("a client");
    client.write(0, &DATA).expect("a write");
    client.flush().expect("a flush");
    fs::write(&file, "").expect("make a file");
    assert_eq!(client.read(0, 4096), Err(errno::ESHUTDOWN));
    fs::remove_file(&file).expect("remove the file");
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()), "goes on");
    client.write(0, &OTHER).expect("a write");
    client.flush().expect("a flush");
}

/// nbdkit's sh plugin says it once.
#[test]
fn sh_plugin_without_reconnect() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let flag = directory.path().join("said");
    let script = directory.path().join("plugin.sh");
    let content = format!(
        "#!/bin/sh\ncase \"$1\" in\nget_size) echo 1048576 ;;\npread)\n  \
         if [ ! -e {flag} ]; then : > {flag}; echo ESHUTDOWN going >&2; exit 1; fi\n  \
         head -c \"$3\" /dev/zero ;;\n*) exit 2 ;;\nesac\n",
        flag = text(&flag)
    );
    fs::write(&script, content).expect("write a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("make it a program");
    let upstream = Nbdkit::start(directory.path(), &["sh", text(&script)]);
    let args = forward_args(upstream.socket(), &[]);
    let front = Nbdkit::start(directory.path(), &args);
    let mut client = Client::open(front.socket()).expect("a client");
    for _ in 0..3 {
        assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
    }
    assert!(flag.exists(), "it was said");
}
