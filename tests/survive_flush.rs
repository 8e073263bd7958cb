// SPDX-License-Identifier: BSD-3-Clause
//! What a flush promises, and what it does not when it fails or when the server has none.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::fs;
use std::time::Duration;

use common::clients::LIMIT;
use common::need;
use common::refusal::{MODES, refusal_in};
use common::scripted::wire::{cmd, errno, flag};
use torture::block::content;
use torture::client::Client;
use torture::ordeal::Stage;
use torture::setup::{FLAGS, Setup};
use torture::trace::event::{Event, Request, What};
use torture::volatile::Volatile;

const PATIENT: [&str; 2] = ["reconnect=30", "reconnect-delay=10ms:100ms"];
const DATA: [u8; 4096] = [7; 4096];
const OTHER: [u8; 4096] = [8; 4096];

/// The requests of this kind that came to the server.
fn arrived(log: &[Event], wanted: u16) -> Vec<Request> {
    let requests = log.iter().filter_map(|event| match &event.what {
        What::Arrive(request) if request.kind == wanted => Some(request.clone()),
        _ => None,
    });
    requests.collect()
}

/// The server has died, and left these bytes.
fn is_durable(stage: &Stage, offset: usize, expected: &[u8]) {
    let bytes = fs::read(stage.server.backing()).expect("the backing file");
    // Without printing them.
    let same = bytes[offset..offset + expected.len()] == *expected;
    assert!(same, "{}", stage.front.stderr());
}

/// A client whose write the server answered, and whose flush it failed.
fn after_a_failed_flush() -> (Stage, Client) {
    let setup = Setup {
        flush_fails: 1,
        ..Setup::default()
    };
    let stage = Stage::new(setup, &PATIENT);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    assert_eq!(client.flush(), Err(errno::EIO), "the client is told");
    (stage, client)
}

#[test]
fn unflushed_writes_come_back() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &PATIENT);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    client.write(4096, &DATA).expect("a write");
    client.write(4096, &OTHER).expect("a write");
    client
        .call(cmd::WRITE_ZEROES, 0, 0, 2048, &[])
        .expect("zeroes");
    client.write(5120, &DATA[..1024]).expect("a short write");
    stage.restart(|_| ());
    let mut expected = [DATA, OTHER].concat();
    expected[..2048].fill(0);
    expected[5120..6144].fill(DATA[0]);
    assert_eq!(client.read(0, 8192), Ok(expected.clone()));
    client.flush().expect("a flush");
    stage.server.kill();
    is_durable(&stage, 0, &expected);
}

#[test]
fn flushed_writes_are_not_sent_again() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &PATIENT);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    client.flush().expect("a flush");
    client
        .call(cmd::WRITE, 1, 4096, 4096, &DATA)
        .expect("a FUA write");
    stage.restart(|_| ());
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()));
    let log = stage.server.log();
    let again = log.iter().filter(
        |event| matches!(&event.what, What::Arrive(request) if event.epoch == 2 && request.kind == cmd::WRITE),
    );
    assert_eq!(again.count(), 0);
}

#[test]
fn failed_flush_releases_nothing() {
    if !need("nbdkit") {
        return;
    }
    let (mut stage, mut client) = after_a_failed_flush();
    stage.restart(|setup| setup.flush_fails = 0);
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()));
}

/// The classic lie: the server forgot what it could not write, and its next flush succeeds.
#[test]
fn flush_after_a_failed_one_is_true() {
    if !need("nbdkit") {
        return;
    }
    let (mut stage, mut client) = after_a_failed_flush();
    client.flush().expect("the second flush");
    stage.server.kill();
    is_durable(&stage, 0, &DATA);
}

#[test]
fn idle_plugin_flushes_by_itself() {
    if !need("nbdkit") {
        return;
    }
    let stage = Stage::new(Setup::default(), &PATIENT);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    common::process::eventually("a flush that nobody asked for", LIMIT, || {
        (!arrived(&stage.server.log(), cmd::FLUSH).is_empty()).then_some(())
    });
}

#[test]
fn client_that_leaves_is_flushed_first() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &PATIENT);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    client.close(LIMIT);
    // nbdkit may close its client's connection before it tells the plugin.
    let left = |event: &Event| matches!(event.what, What::Close);
    common::process::eventually("the server is left", LIMIT, || {
        stage.server.log().iter().any(left).then_some(())
    });
    stage.server.kill();
    is_durable(&stage, 0, &DATA);
}

#[test]
fn client_that_leaves_a_lost_server_loses_nothing_to_who_comes_later() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &[&PATIENT[..], &["shared=true"]].concat());
    let mut leaving = stage.client();
    let mut staying = stage.client();
    staying.write(4096, &OTHER).expect("a write");
    leaving.write(0, &DATA).expect("a write");
    stage.server.kill();
    leaving.close(LIMIT);
    stage.server.again(|_| ());
    assert_eq!(
        staying.read(0, 8192),
        Ok([DATA.as_slice(), &OTHER].concat())
    );
}

/// Connections that idle are not read: the loss of one can be unseen while another is made to the new server.
fn unseen(flags: u16) {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        flags,
        ..Setup::default()
    };
    let mut stage = Stage::new(setup, &PATIENT);
    let mut idle = stage.client();
    let mut busy = stage.client();
    idle.write(0, &DATA).expect("a write");
    busy.write(4096, &OTHER).expect("a write");
    stage.restart(|_| ());
    assert_eq!(busy.read(0, 4096), Ok(DATA.to_vec()), "another's write");
    busy.flush().expect("a flush");
    stage.restart(|_| ());
    assert_eq!(busy.read(4096, 4096), Ok(OTHER.to_vec()));
    idle.write(8192, &DATA).expect("a write");
    idle.flush().expect("a flush");
    stage.server.kill();
    is_durable(&stage, 0, &[DATA, OTHER, DATA].concat());
}

#[test]
fn unseen_loss_of_an_idle_connection() {
    unseen(FLAGS);
}

#[test]
fn unseen_loss_of_an_idle_connection_with_one_cache_for_all() {
    unseen(FLAGS | flag::CAN_MULTI_CONN);
}

#[test]
fn newcomer_sees_what_others_have_not_flushed() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &PATIENT);
    let mut idle = stage.client();
    idle.write(0, &DATA).expect("a write");
    stage.restart(|_| ());
    let mut new = stage.client();
    assert_eq!(new.read(0, 4096), Ok(DATA.to_vec()));
    new.flush().expect("a flush");
    assert_eq!(idle.read(0, 4096), Ok(DATA.to_vec()));
}

#[test]
fn server_with_fua_and_no_flush() {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        flags: FLAGS & !flag::SEND_FLUSH,
        ..Setup::default()
    };
    let mut stage = Stage::new(setup, &PATIENT);
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    client
        .call(cmd::WRITE_ZEROES, 0, 4096, 4096, &[])
        .expect("zeroes");
    let log = stage.server.log();
    for kind in [cmd::WRITE, cmd::WRITE_ZEROES] {
        let requests = arrived(&log, kind);
        assert!(!requests.is_empty(), "kind {kind}");
        assert!(requests.iter().all(|request| request.fua), "kind {kind}");
    }
    stage.restart(|_| ());
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()));
}

#[test]
fn server_with_neither_is_refused() {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        flags: FLAGS & !flag::SEND_FLUSH & !flag::SEND_FUA,
        ..Setup::default()
    };
    let stage = Stage::new(setup.clone(), &PATIENT);
    assert!(Client::open(stage.front.socket()).is_err());
    stage.says(&["FLUSH", "FUA", "replay=0"]);
    let stage = Stage::new(setup, &[&PATIENT[..], &["replay=0"]].concat());
    stage.client().write(0, &DATA).expect("a write");
}

#[test]
fn server_with_neither_is_refused_at_the_start_if_shared() {
    if !need("nbdkit") {
        return;
    }
    let setup = Setup {
        flags: FLAGS & !flag::SEND_FLUSH & !flag::SEND_FUA,
        ..Setup::default()
    };
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Volatile::start(directory.path(), setup);
    let parameters = server.parameters();
    let mut args: Vec<&str> = parameters.iter().map(String::as_str).collect();
    args.extend(PATIENT);
    args.push("shared=true");
    for mode in MODES {
        let reason = refusal_in(directory.path(), mode, &args);
        assert!(
            reason.contains("FLUSH") && reason.contains("replay=0"),
            "{reason}"
        );
    }
}

#[test]
fn without_replay_a_flush_after_a_loss_fails_for_good() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(
        Setup::default(),
        &[&PATIENT[..], &["replay=0", "shared=true"]].concat(),
    );
    let mut writing = stage.client();
    let mut other = stage.client();
    writing.write(0, &DATA).expect("a write");
    stage.restart(|_| ());
    writing.read(0, 4096).expect("a read, of whatever");
    for _ in 0..3 {
        assert!(writing.flush().is_err(), "a write was lost");
    }
    for _ in 0..2 {
        assert!(other.flush().is_err(), "of whoever it was");
    }
    let mut new = stage.client();
    new.write(0, &OTHER).expect("a write");
    new.flush().expect("nothing of its own was lost");
    assert!(writing.flush().is_err(), "still");
}

#[test]
fn without_replay_a_loss_of_nothing_is_none() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &[&PATIENT[..], &["replay=0"]].concat());
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    client.flush().expect("a flush");
    stage.restart(|_| ());
    assert_eq!(client.read(0, 4096), Ok(DATA.to_vec()));
    client.flush().expect("nothing was lost");
}

#[test]
fn failed_replay_ends_it_and_all_are_told() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &[&PATIENT[..], &["shared=true"]].concat());
    let mut clients = [stage.client(), stage.client()];
    for (number, client) in (0..).zip(&mut clients) {
        client.write(number * 4096, &DATA).expect("a write");
    }
    stage.restart(|setup| {
        setup.changes_fail = errno::ENOSPC;
        setup.changes_fail_from = 1;
    });
    for client in &mut clients {
        assert!(client.flush().is_err(), "a flush of what is no more");
        assert!(client.write(0, &OTHER).is_err(), "for good");
        assert!(client.flush().is_err(), "for good");
    }
    let found = arrived(&stage.server.log(), cmd::WRITE);
    let other = content(&OTHER);
    assert!(found.iter().all(|write| !write.contents.contains(&other)));
    assert!(stage.front.alive());
}

#[test]
fn writes_wait_for_room_in_the_journal() {
    if !need("nbdkit") {
        return;
    }
    let stage = Stage::new(Setup::default(), &[&PATIENT[..], &["replay=64K"]].concat());
    let mut client = stage.client();
    let sent = 64;
    for number in 0..sent {
        client.submit(cmd::WRITE, 0, number * 16384, 16384, &DATA.repeat(4));
    }
    for _ in 0..sent {
        let answer = client.next(Duration::from_secs(20)).expect("an answer");
        assert_eq!(answer.error, 0);
    }
    let flushes = arrived(&stage.server.log(), cmd::FLUSH).len();
    assert!(flushes >= 4, "{flushes} flushes for 16 times the journal");
}

/// One write that alone is longer than the journal.
#[test]
fn write_longer_than_the_journal() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &[&PATIENT[..], &["replay=64K"]].concat());
    let mut client = stage.client();
    let long = DATA.repeat(64);
    client.write(0, &long).expect("a long write");
    stage.restart(|_| ());
    assert_eq!(client.read(0, long.len() as u64), Ok(long));
}
