// SPDX-License-Identifier: BSD-3-Clause
//! `control=`: requests are held and let go on, with all kinds of ways to the server, and while programs work.

mod common;

use std::fs;
use std::process::Command;

use common::clients::{LIMIT, assert_same_bytes, text};
use common::control::{KINDS, Stand};
use common::front::Front;
use common::need_all;
use common::process::{Guarded, eventually};
use common::scripted::wire::{cmd, errno};
use common::upstream::noise_file;

#[test]
fn drain_flushes_and_holds_everything_until_resume() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        let stand = Stand::new(kind);
        let mut commander = stand.commander();
        let mut fronts = [Front::of(&stand.front), Front::of(&stand.front)];
        for front in &mut fronts {
            front.write(4096, &[1; 512]).expect("a write");
        }
        let flushes = || stand.relay.requests(3);
        let before = flushes();
        commander.does("drain");
        assert!(flushes() > before, "{kind:?}: not flushed");
        let ways = commander.status()["ways"].clone();
        for way in ways.as_array().expect("a list") {
            assert_eq!(way["unflushed"], false, "{kind:?}: {way}");
        }
        let passed = stand.relay.passed();
        let held: Vec<[u64; 4]> = fronts
            .iter_mut()
            .map(|front| {
                [
                    front.submit_write(4096, &[2; 512]),
                    front.submit(cmd::WRITE_ZEROES, 0, 8192, 512, &[]),
                    front.submit(cmd::TRIM, 0, 16384, 512, &[]),
                    front.submit(cmd::FLUSH, 0, 0, 0, &[]),
                ]
            })
            .collect();
        // A read is served from nowhere else, either.
        let read = fronts[0].submit_read(0, 512);
        commander.await_number("waiting", 9);
        commander.does("drain");
        assert_eq!(commander.number("in_flight"), 0, "{kind:?}");
        assert_eq!(
            stand.relay.passed(),
            passed,
            "{kind:?}: something was asked"
        );
        let answer = commander.does("resume");
        assert_eq!(answer["held"], true);
        for (front, held) in fronts.iter().zip(&held) {
            for cookie in held {
                assert_eq!(front.wait(*cookie), Ok(()), "{kind:?}");
            }
        }
        assert_eq!(fronts[0].wait_read(read), Ok(vec![0; 512]), "{kind:?}");
        assert_eq!(fronts[1].read(4096, 512), Ok(vec![2; 512]), "{kind:?}");
        assert_eq!(commander.does("resume")["held"], false);
    }
}

#[test]
fn clients_may_come_and_go_while_requests_are_held() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        let stand = Stand::new(kind);
        let mut commander = stand.commander();
        let mut stays = Front::of(&stand.front);
        commander.does("drain");
        let held = stays.submit_read(0, 512);
        Front::of(&stand.front).close();
        let mut leaves = Front::of(&stand.front);
        leaves.submit_read(0, 512);
        commander.await_number("waiting", 2);
        // It does not say goodbye, and nobody waits for its answer.
        drop(leaves);
        commander.await_number("waiting", 1);
        commander.does("resume");
        assert_eq!(stays.wait_read(held), Ok(vec![0; 512]), "{kind:?}");
    }
}

#[test]
fn with_nobody_connected_all_commands_are_answered() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&["reconnect=30"]);
    let mut commander = stand.commander();
    for command in [
        "help",
        "version",
        "status",
        "drain",
        "reconnect",
        "resume",
        "log off",
    ] {
        commander.does(command);
    }
    assert_eq!(commander.status()["ways"], serde_json::json!([]));
    Front::of(&stand.front).read(0, 512).expect("served");
}

#[test]
fn a_drain_that_cannot_be_had_in_time_leaves_everything_as_it_was() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        let stand = Stand::new(kind);
        let mut commander = stand.commander();
        let mut front = Front::of(&stand.front);
        front.read(0, 512).expect("served");
        stand.stop_server();
        let read = front.submit_read(0, 512);
        commander.await_number("in_flight", 1);
        assert_eq!(
            commander.refuses("drain 200ms"),
            "drain: 1 request in flight not answered within 0.2 seconds; nothing is held",
            "{kind:?}"
        );
        assert_eq!(commander.status()["state"], "running");
        stand.continue_server();
        assert_eq!(front.wait_read(read), Ok(vec![0; 512]));
        assert_eq!(front.read(0, 512), Ok(vec![0; 512]));
    }
}

#[test]
fn a_flush_that_takes_longer_ends_no_connection() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        let stand = Stand::new(kind);
        let mut commander = stand.commander();
        let mut front = Front::of(&stand.front);
        // With a journal nothing is flushed unasked for a second.
        front.write(0, &[1; 512]).expect("a write");
        stand.stop_server();
        assert_eq!(
            commander.refuses("drain 200ms"),
            "drain: flush not answered within 0.2 seconds; nothing is held",
            "{kind:?}"
        );
        // The first flush is still on its way.
        assert_eq!(
            commander.refuses("drain 200ms"),
            "drain: flush not answered within 0.2 seconds; nothing is held",
            "{kind:?}: a second time"
        );
        stand.continue_server();
        assert_eq!(front.read(0, 512), Ok(vec![1; 512]), "{kind:?}");
        commander.does("drain");
        commander.does("resume");
        assert!(
            !stand.front.stderr().contains("connection lost"),
            "{kind:?}"
        );
    }
}

/// What it has written is flushed as it leaves, and the answer to a drain says that it is.
#[test]
fn a_client_that_is_leaving_is_waited_for() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        if kind.contains(&"shared=true") {
            continue;
        }
        let stand = Stand::new(&[kind, &["close-timeout=100"]].concat());
        let mut commander = stand.commander();
        let mut front = Front::of(&stand.front);
        front.write(0, &[1; 512]).expect("a write");
        stand.stop_server();
        drop(front);
        eventually("it leaves", LIMIT, || {
            (commander.status()["ways"] == serde_json::json!([])).then_some(())
        });
        assert_eq!(
            commander.refuses("drain 200ms"),
            "drain: clients that have left not seen off within 0.2 seconds; nothing is held",
            "{kind:?}"
        );
        stand.continue_server();
        commander.does("drain");
        assert!(stand.relay.requests(3) > 0, "{kind:?}: not flushed");
    }
}

#[test]
fn who_hangs_up_before_the_answer_has_not_drained() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&[]);
    let mut commander = stand.commander();
    let mut front = Front::of(&stand.front);
    stand.stop_server();
    let read = front.submit_read(0, 512);
    commander.await_number("in_flight", 1);
    let mut another = stand.commander();
    another.send(b"drain\n");
    commander.await_state("closing");
    assert_eq!(
        commander.refuses("drain"),
        "drain: another drain or reconnect is under way"
    );
    drop(another);
    commander.await_state("running");
    stand.continue_server();
    assert_eq!(front.wait_read(read), Ok(vec![0; 512]));
}

#[test]
fn resume_ends_a_drain_that_is_under_way() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&[]);
    let mut commander = stand.commander();
    let mut front = Front::of(&stand.front);
    stand.stop_server();
    let read = front.submit_read(0, 512);
    commander.await_number("in_flight", 1);
    let mut another = stand.commander();
    another.send(b"drain\n");
    commander.await_state("closing");
    commander.does("resume");
    assert_eq!(another.answer()["error"], "drain: ended by resume");
    stand.continue_server();
    assert_eq!(front.wait_read(read), Ok(vec![0; 512]));
}

/// Whoever waits is told that nbdkit ends, and nobody waits for a resume that never comes.
#[test]
fn nbdkit_ends_while_requests_are_held() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        let mut stand = Stand::new(kind);
        let mut commander = stand.commander();
        let mut front = Front::of(&stand.front);
        front.write(0, &[1; 512]).expect("a write");
        commander.does("drain");
        let held = [front.submit_read(0, 512), front.submit_write(0, &[2; 512])];
        commander.await_number("waiting", 2);
        stand.front.signal(libc::SIGTERM);
        for cookie in held {
            assert!(front.wait_success(cookie).is_err(), "{kind:?}");
        }
        // nbdkit itself waits for clients that stay.
        drop(front);
        let ended = stand.front.wait_timeout(LIMIT);
        assert!(ended.is_some_and(|status| status.success()), "{kind:?}");
        assert!(!commander.path().exists(), "{kind:?}");
        assert_eq!(commander.line(), None);
    }
}

#[test]
fn nbdkit_ends_while_a_drain_waits_for_a_server_that_hangs() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        let mut stand = Stand::new(&[kind, &["close-timeout=500ms"]].concat());
        let mut commander = stand.commander();
        let mut front = Front::of(&stand.front);
        front.write(0, &[1; 512]).expect("a write");
        stand.stop_server();
        commander.send(b"drain 1000\n");
        let mut another = stand.commander();
        another.await_state("closing");
        drop(front);
        stand.front.signal(libc::SIGTERM);
        let ended = stand.front.wait_timeout(LIMIT);
        assert!(ended.is_some(), "{kind:?}: {}", stand.front.stderr());
        assert!(!commander.path().exists(), "{kind:?}");
        stand.continue_server();
    }
}

#[test]
fn a_request_that_is_held_fails_when_its_time_is_over() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS {
        let stand = Stand::new(&[kind, &["request-timeout=300ms"]].concat());
        let mut commander = stand.commander();
        let mut front = Front::of(&stand.front);
        commander.does("drain");
        assert_eq!(front.read(0, 512), Err(errno::EIO), "{kind:?}");
        commander.does("resume");
        assert_eq!(front.read(0, 512), Ok(vec![0; 512]), "{kind:?}");
    }
}

/// Commands for as long as a program works, which must see nothing of them.
fn works(stand: &Stand, command: &mut Command) {
    let mut commander = stand.commander();
    let mut program = Guarded::spawn(command);
    let mut held = 0;
    while program.alive() {
        commander.does("drain");
        let (passed, connections) = (stand.relay.passed(), stand.relay.connections());
        // Whoever is there waits, or has ended.
        eventually("requests wait", LIMIT, || {
            (!program.alive() || commander.number("waiting") > 0).then_some(())
        });
        assert_eq!(commander.number("in_flight"), 0);
        let waits = commander.number("waiting") > 0;
        // To open a connection is no request, and one that waits does not leave.
        if waits && stand.relay.connections() == connections {
            assert_eq!(
                stand.relay.passed(),
                passed,
                "something was asked meanwhile"
            );
            held += 1;
        }
        commander.does("resume");
        commander.does("set request-timeout=30");
        commander.does("reconnect");
        commander.does("set reconnect-delay=1ms:5ms");
    }
    let status = program.wait_timeout(LIMIT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{command:?}: {}{}{}",
        program.stdout(),
        program.stderr(),
        stand.front.stderr()
    );
    assert!(held > 0, "nothing was ever held");
}

#[test]
fn fio_verifies_while_it_is_drained_and_reconnected() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let stand = Stand::new(&["reconnect=30"]);
    let uri = format!("--uri={}", stand.front.uri());
    let mut command = Command::new("fio");
    command.current_dir(stand.path()).args([
        "--name=verified",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bs=4k",
        "--size=8M",
        "--io_size=24M",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=64",
        "--verify_state_save=0",
        "--randseed=7",
    ]);
    works(&stand, &mut command);
}

#[test]
fn nbdcopy_copies_while_it_is_drained_and_reconnected() {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let stand = Stand::new(&["reconnect=30"]);
    let image = noise_file(stand.path(), "image", 16 << 20, 43);
    let copy = stand.path().join("copy");
    let uri = stand.front.uri();
    let size = "--request-size=16384";
    for args in [[size, text(&image), &uri], [size, &uri, text(&copy)]] {
        works(&stand, Command::new("nbdcopy").arg("--flush").args(args));
    }
    assert_same_bytes(&copy, &image);
    fs::remove_file(copy).expect("the copy");
}
