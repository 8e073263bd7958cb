// SPDX-License-Identifier: BSD-3-Clause
//! `control=`: connections are left for new ones, times are changed, and what there is can be seen.

mod common;

use common::clients::{LIMIT, text};
use common::control::{Commander, KINDS, Stand, parameter};
use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::process::eventually;
use common::relay::Others;
use common::scripted::wire::errno;
use common::upstream::memory;

#[test]
fn reconnect_leaves_all_connections_for_new_ones() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in KINDS
        .into_iter()
        .filter(|kind| kind.contains(&"reconnect=30"))
    {
        let stand = Stand::new(kind);
        let mut commander = stand.commander();
        let mut fronts = [Front::of(&stand.front), Front::of(&stand.front)];
        for front in &mut fronts {
            front.write(0, &[1; 512]).expect("a write");
        }
        let before = stand.relay.connections();
        let ways = commander.does("reconnect")["ways"]
            .as_u64()
            .expect("a number");
        let shared = kind.contains(&"shared=true");
        assert_eq!(ways, if shared { 1 } else { 2 }, "{kind:?}");
        let after = stand.relay.connections();
        assert!(
            after >= before + ways as usize,
            "{kind:?}: {before}, {after}"
        );
        let status = commander.status();
        assert_eq!(status["state"], "running");
        for way in status["ways"].as_array().expect("a list") {
            assert_eq!(way["state"], "up", "{kind:?}: {way}");
        }
        for front in &mut fronts {
            assert_eq!(front.read(0, 512), Ok(vec![1; 512]), "{kind:?}");
        }
        // Nothing was to be written again.
        assert!(!stand.front.stderr().contains("wrote 512 bytes again"));
    }
}

/// Without a journal what was not flushed may be lost with a server. Whoever was there hears so of each flush,
/// and nobody is told before that client has left that everything is permanent.
#[test]
fn nothing_is_called_drained_while_a_client_would_hear_otherwise() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&["reconnect=30", "reconnect-delay=10ms:50ms", "replay=0"]);
    let mut commander = stand.commander();
    let mut was_there = Front::of(&stand.front);
    was_there.write(0, &[1; 512]).expect("a write");
    stand.relay.cut_now();
    assert_eq!(was_there.read(0, 512), Ok(vec![1; 512]), "it is back");
    let mut came_later = Front::of(&stand.front);
    came_later.write(0, &[2; 512]).expect("a write");
    for command in ["drain", "reconnect"] {
        let why = commander.refuses(command);
        assert!(
            why.contains("may be missing, and nothing makes it permanent"),
            "{why}"
        );
    }
    assert_eq!(was_there.flush(), Err(errno::EIO));
    assert_eq!(came_later.flush(), Ok(()));
    was_there.close();
    eventually("one client is left", LIMIT, || {
        let status = commander.status();
        (status["ways"].as_array()?.len() == 1).then_some(())
    });
    commander.does("drain");
    commander.does("resume");
    commander.does("reconnect");
}

/// Who has drained may do so, and is still drained.
#[test]
fn reconnect_while_drained_lets_nobody_go_on() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&["reconnect=30"]);
    let mut commander = stand.commander();
    let mut front = Front::of(&stand.front);
    commander.does("drain");
    let read = front.submit_read(0, 512);
    commander.does("reconnect");
    assert_eq!(stand.relay.connections(), 2);
    commander.await_number("waiting", 1);
    assert_eq!(commander.status()["state"], "drained");
    commander.does("resume");
    assert_eq!(front.wait_read(read), Ok(vec![0; 512]));
}

#[test]
fn reconnect_needs_reconnections() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&["connections=2"]);
    let mut commander = stand.commander();
    let mut front = Front::of(&stand.front);
    assert_eq!(
        commander.refuses("reconnect"),
        "reconnect: connections are not made anew, as reconnect= is off"
    );
    assert_eq!(front.read(0, 512), Ok(vec![0; 512]));
    assert_eq!(commander.status()["state"], "running");
}

/// Clients wait for it as for any lost server.
#[test]
fn a_server_that_does_not_take_the_new_connection_is_told() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&["reconnect=30", "reconnect-delay=10ms:50ms"]);
    let mut commander = stand.commander();
    let mut front = Front::of(&stand.front);
    front.read(0, 512).expect("served");
    stand.relay.plan(None, Others::Refused);
    let why = commander.refuses("reconnect 500ms");
    let begin = "reconnect: 1 of 1 not back within 0.5 seconds, and still tried: ";
    assert!(why.starts_with(begin), "{why}");
    let way = eventually("tries are counted", LIMIT, || {
        let way = commander.status()["ways"][0].clone();
        (way["tries"].as_u64() > Some(1)).then_some(way)
    });
    assert_eq!(way["state"], "away");
    assert!(way["away_seconds"].as_f64() > Some(0.0), "{way}");
    let read = front.submit_read(0, 512);
    commander.await_number("in_flight", 1);
    stand.relay.plan(None, Others::Well);
    assert_eq!(front.wait_read(read), Ok(vec![0; 512]));
}

#[test]
fn times_that_are_set_count_for_what_comes_after() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for kind in [&[][..], &["reconnect=1000", "close-timeout=200ms"]] {
        let stand = Stand::new(kind);
        let mut commander = stand.commander();
        let mut front = Front::of(&stand.front);
        front.read(0, 512).expect("served");
        commander.does("set request-timeout=200ms");
        let settings = commander.status()["settings"].clone();
        assert_eq!(settings["request-timeout"], 0.2);
        stand.stop_server();
        let read = front.submit_read(0, 512);
        if kind.is_empty() {
            assert!(front.wait_read(read).is_err());
        } else {
            // It is sent again and waits, and what is waited for is counted anew.
            eventually("the server counts as lost", LIMIT, || {
                (commander.status()["ways"][0]["state"] == "away").then_some(())
            });
            commander.does("set reconnect=1ms");
            assert_eq!(front.wait_read(read), Err(errno::EIO));
        }
        stand.continue_server();
    }
}

#[test]
fn what_cannot_be_set_is_refused() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&[]);
    let mut commander = stand.commander();
    let before = commander.status()["settings"].clone();
    for (change, why) in [
        (
            "socket=/s",
            "set: ‘socket’ cannot be changed while nbdkit runs, only: connect-timeout",
        ),
        (
            "request-timeout=soon",
            "set: request-timeout=soon: must be a time such as",
        ),
        (
            "reconnect=0",
            "set: ‘reconnect’ cannot be turned on or off while nbdkit runs",
        ),
        (
            "reconnect=5",
            "set: ‘reconnect’ cannot be turned on or off while nbdkit runs",
        ),
        (
            "linger=5",
            "set: ‘linger’ cannot be turned on or off while nbdkit runs",
        ),
    ] {
        let told = commander.refuses(&format!("set {change}"));
        assert!(told.starts_with(why), "{told}");
    }
    assert_eq!(commander.status()["settings"], before);
}

#[test]
fn what_lingers_is_left_when_it_is_to_linger_no_more() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&["linger=forever"]);
    let mut commander = stand.commander();
    Front::of(&stand.front).close();
    assert_eq!(commander.status()["settings"]["linger"], "forever");
    let ways = |commander: &mut Commander| commander.status()["ways"].as_array().map(Vec::len);
    assert_eq!(ways(&mut commander), Some(1));
    commander.does("set linger=0");
    eventually("it is left", LIMIT, || {
        (ways(&mut commander) == Some(0)).then_some(())
    });
}

/// Without `-v` as well: nobody starts a service with it, and then needs it.
#[test]
fn requests_are_told_of_while_the_log_is_on() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let plugin = common::plugin();
    let socket = format!("socket={}", server.socket().display());
    let control = parameter(directory.path());
    let args = [text(&plugin), &socket, &control];
    let front = Nbdkit::start(directory.path(), &args);
    let mut commander = Commander::new(directory.path());
    let mut client = Front::of(&front);
    client.read(0, 512).expect("served");
    commander.does("log on");
    client.read(1024, 512).expect("served");
    commander.does("log off");
    client.read(2048, 512).expect("served");
    client.close();
    let told = front.stderr();
    assert!(
        !told.contains("at offset 0") && !told.contains("at offset 2048"),
        "{told}"
    );
    assert!(told.contains("debug: ") && told.contains("NBD_CMD_READ of 512 bytes at offset 1024"));
}

#[test]
fn a_lost_server_is_in_the_status() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let stand = Stand::new(&["reconnect=30", "reconnect-delay=10ms:50ms"]);
    let mut commander = stand.commander();
    let mut front = Front::of(&stand.front);
    front.write(0, &[1; 512]).expect("a write");
    let status = commander.status();
    assert_eq!(status["journals"][0]["entries"], 1, "{status}");
    assert_eq!(status["journals"][0]["bytes"], 512);
    let way = &status["ways"][0];
    assert_eq!(way["state"], "up");
    assert_eq!(way["unflushed"], true);
    assert_eq!(way["connections"][0]["tls"], false);
    assert_eq!(way["server"], text(stand.relay.socket()));
    stand.relay.plan(None, Others::Refused);
    stand.relay.cut_now();
    eventually("it is away", LIMIT, || {
        let way = commander.status()["ways"][0].clone();
        (way["state"] == "away" && way["tries"].as_u64() > Some(0)).then_some(())
    });
    stand.relay.plan(None, Others::Well);
    front.flush().expect("a flush");
    assert_eq!(commander.status()["journals"][0]["bytes"], 0);
}
