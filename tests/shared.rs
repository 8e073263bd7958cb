// SPDX-License-Identifier: BSD-3-Clause
//! `shared=true`: one connection to the server, made before nbdkit serves, and used by all clients.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::clients::{LIMIT, nbdcopy, nbdsh, text};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::process::{Guarded, eventually, run_ok};
use common::refusal::{MODES, refusal_in};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{errno, flag};
use common::scripted::{Gate, Scripted};
use common::upstream::{memory, noise_file};
use common::{need, need_all};

/// A server that counts connections, and nbdkit before it with one shared connection.
fn shared(directory: &Path) -> (Scripted, Nbdkit) {
    let server = Scripted::start(directory);
    let front = forward(directory, server.socket(), &["shared=true"]);
    (server, front)
}

fn lost(answer: Result<Vec<u8>, u32>) -> bool {
    matches!(answer, Err(errno::EIO | errno::ESHUTDOWN))
}

#[test]
fn connection_is_there_before_the_first_client() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, _front) = shared(directory.path());
    assert_eq!(server.accepted(), 1);
}

#[test]
fn clients_at_the_same_time_use_one_connection() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, front) = shared(directory.path());
    let mut clients: Vec<_> = (0..3).map(|_| Front::of(&front)).collect();
    for client in &mut clients {
        assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
    }
    assert_eq!(server.accepted(), 1);
    clients.into_iter().for_each(Front::close);
    server.no_complaints("three clients");
}

#[test]
fn clients_one_after_another_use_one_connection() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, front) = shared(directory.path());
    for _ in 0..3 {
        let mut client = Front::of(&front);
        assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
        client.close();
    }
    assert_eq!(server.accepted(), 1);
    server.no_complaints("three clients");
}

#[test]
fn without_it_every_client_has_its_own() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let front = forward(directory.path(), server.socket(), &["shared=false"]);
    assert_eq!(server.accepted(), 0, "nobody asked for anything yet");
    let _first = Front::of(&front);
    let _second = Front::of(&front);
    assert_eq!(server.accepted(), 2);
}

#[test]
fn answers_find_the_client_that_asked() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (server, front) = shared(directory.path());
    thread::scope(|scope| {
        for client in 0..4u64 {
            let mut asking = Front::of(&front);
            scope.spawn(move || {
                for round in 0..50 {
                    let offset = (client * 50 + round) * 512;
                    assert_eq!(asking.read(offset, 512), Ok(pattern(offset, 512)));
                }
                asking.close();
            });
        }
    });
    server.no_complaints("four clients");
}

#[test]
fn what_one_client_wrote_the_other_reads() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_server, front) = shared(directory.path());
    let (mut writer, mut reader) = (Front::of(&front), Front::of(&front));
    assert_eq!(writer.write(8192, &[9; 512]), Ok(()));
    assert_eq!(reader.read(8192, 512), Ok(vec![9; 512]));
}

#[test]
fn whole_disk_is_copied_over_several_clients() {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", 8 << 20, 71);
    let upstream = common::upstream::file(directory.path(), &disk);
    let front = forward(directory.path(), upstream.socket(), &["shared=true"]);
    let copy = directory.path().join("copy");
    nbdcopy(&["--connections=4", &front.uri(), text(&copy)]);
    common::clients::assert_same_bytes(&copy, &disk);
}

#[test]
fn readonly_option_of_nbdkit_is_honoured() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &["-r", "shared=true"]);
    assert_ne!(Front::of(&front).export().flags & flag::READ_ONLY, 0);
}

#[test]
fn missing_server_stops_nbdkit_before_it_serves() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let socket = directory.path().join("nobody.sock");
        let socket = format!("socket={}", text(&socket));
        let line = refusal_in(directory.path(), mode, &[&socket, "shared=true"]);
        assert!(line.contains("nobody.sock: connect: "), "{mode:?}: {line}");
        assert!(
            !directory.path().join("front.pid").exists(),
            "{mode:?}: nbdkit says that it serves"
        );
    }
}

#[test]
fn refused_export_stops_nbdkit_before_it_serves() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let strict = [
        "--filter=exportname",
        "memory",
        "1M",
        "exportname-strict=true",
        "exportname=right",
    ];
    let upstream = Nbdkit::start(directory.path(), &strict);
    let socket = format!("socket={}", text(upstream.socket()));
    for mode in MODES {
        let line = refusal_in(
            directory.path(),
            mode,
            &[&socket, "export=wrong", "shared=true"],
        );
        assert!(line.contains("handshake: "), "{mode:?}: {line}");
        assert!(line.contains("wrong"), "{mode:?}: {line}");
    }
}

#[test]
fn silent_server_stops_nbdkit_at_the_deadline() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Scripted::start(directory.path());
        let ticket = server.play(Peer::expect_closed);
        let socket = format!("socket={}", text(server.socket()));
        let args = [&socket, "shared=true", "handshake-timeout=500ms"];
        let line = refusal_in(directory.path(), mode, &args);
        assert!(line.contains("timed out"), "{mode:?}: {line}");
        ticket.finished("silent server");
    }
}

#[test]
fn nbdkit_can_be_ended_while_it_waits_for_the_server() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let connected = Gate::default();
    let ticket = server.play({
        let connected = connected.clone();
        move |peer| {
            connected.open();
            peer.expect_closed()
        }
    });
    let socket = format!("socket={}", text(server.socket()));
    let mut command = Command::new("nbdkit");
    command
        .current_dir(directory.path())
        .args(["-f", "-U", "front.sock"])
        .args(plugin_args(&[&socket, "shared=true"]));
    let mut nbdkit = Guarded::spawn(&mut command);
    connected.pass();
    nbdkit.signal(libc::SIGTERM);
    // Long before the handshake's deadline.
    let ended = nbdkit.wait_timeout(Duration::from_secs(10));
    assert!(ended.is_some(), "{}", nbdkit.stderr());
    ticket.finished("silent server");
}

#[test]
fn connection_survives_the_way_to_the_background() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let socket = format!("socket={}", text(server.socket()));
    let front = Daemon::start(directory.path(), &[&socket, "shared=true"]);
    assert_eq!(
        server.accepted(),
        1,
        "connected before the prompt came back"
    );

    // Several clients at a time, so that replies are received by a thread that was started after the fork.
    let mut clients: Vec<_> = (0..3)
        .map(|_| Front::open(front.socket()).expect("opens"))
        .collect();
    let asked: Vec<_> = clients
        .iter_mut()
        .map(|client| client.submit_read(4096, 512))
        .collect();
    for (client, cookie) in clients.iter().zip(asked) {
        assert_eq!(client.wait_read(cookie), Ok(pattern(4096, 512)));
    }
    clients.into_iter().for_each(Front::close);

    assert!(front.terminate(LIMIT), "{}", front.stderr());
    assert_eq!(server.accepted(), 1);
    server.no_complaints("daemon");
}

#[test]
fn captive_command_finds_the_connection() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let socket = format!("socket={}", text(upstream.socket()));
    let mut command = Command::new("nbdkit");
    command
        .args(["-U", "-"])
        .args(plugin_args(&[&socket, "shared=true"]))
        .arg("--run")
        .arg("/usr/bin/python3 -mnbd -u \"$uri\" -c 'print(h.pread(4, 0))'");
    assert_eq!(
        run_ok(&mut command, LIMIT).trim_end(),
        "bytearray(b'\\x00\\x00\\x00\\x00')"
    );
}

/// The server must see NBD_CMD_DISC when nbdkit ends, and then the end of the connection.
fn ends_politely(start: impl FnOnce(&Path, &str) -> Box<dyn FnOnce()>) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let ticket = server.play(|peer| {
        let offer = Offer::default();
        peer.negotiate(&offer)?;
        // Returns only after NBD_CMD_DISC.
        peer.serve(&mut Disk::new(offer.size))
    });
    let end = start(
        directory.path(),
        &format!("socket={}", text(server.socket())),
    );
    end();
    ticket.finished("the end of nbdkit");
}

#[test]
fn server_is_told_when_nbdkit_ends() {
    if !need("nbdkit") {
        return;
    }
    ends_politely(|directory, socket| {
        let mut front = Nbdkit::start(directory, &plugin_args(&[socket, "shared=true"]));
        Box::new(move || {
            front.signal(libc::SIGTERM);
            let status = front.wait_timeout(LIMIT).expect("nbdkit ends");
            assert!(status.success(), "{}", front.stderr());
        })
    });
}

#[test]
fn server_is_told_when_the_daemon_ends() {
    if !need("nbdkit") {
        return;
    }
    ends_politely(|directory, socket| {
        let front = Daemon::start(directory, &[socket, "shared=true"]);
        Box::new(move || {
            let mut client = Front::open(front.socket()).expect("opens");
            assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
            client.close();
            assert!(front.terminate(LIMIT), "{}", front.stderr());
        })
    });
}

#[test]
fn server_is_told_when_nbdkit_ends_under_a_client() {
    if !need("nbdkit") {
        return;
    }
    // nbdkit does not tell the plugin of clients that are there, or have just left, when it ends.
    ends_politely(|directory, socket| {
        let mut front = Nbdkit::start(directory, &plugin_args(&[socket, "shared=true"]));
        Box::new(move || {
            let client = Front::of(&front);
            front.signal(libc::SIGTERM);
            drop(client);
            let status = front.wait_timeout(LIMIT).expect("nbdkit ends");
            assert!(status.success(), "{}", front.stderr());
        })
    });
}

#[test]
fn server_that_keeps_the_connection_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let mut front = forward(directory.path(), upstream.socket(), &["shared=true"]);
    Front::of(&front).close();
    upstream.stop();
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).expect("nbdkit ends").success());
}

#[test]
fn new_client_gets_a_new_connection_after_the_server_came_back() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("upstream.sock");
    let mut upstream = Nbdkit::start_at(&socket, &["memory", "1M"]);
    let front = forward(directory.path(), &socket, &["shared=true"]);
    let mut old = Front::of(&front);
    assert_eq!(old.read(0, 512), Ok(vec![0; 512]));

    upstream.signal(libc::SIGKILL);
    upstream.wait_timeout(LIMIT).expect("killed");
    fs::remove_file(&socket).expect("a killed server leaves its socket");
    let _returned = Nbdkit::start_at(&socket, &["memory", "2M"]);
    eventually("the loss is noticed", LIMIT, || {
        lost(old.read(0, 512)).then_some(())
    });

    let size = nbdsh(&front.uri(), "h.pread(512, 0)\nprint(h.get_size())");
    assert_eq!(size.trim_end(), "2097152");
    assert!(
        lost(old.read(0, 512)),
        "the old client's disk has gone: another one has taken its place"
    );
}

#[test]
fn clients_without_a_server_are_refused_until_it_is_back() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("upstream.sock");
    let mut upstream = Nbdkit::start_at(&socket, &["memory", "1M"]);
    let mut front = forward(directory.path(), &socket, &["shared=true"]);
    let mut witness = Front::of(&front);
    upstream.signal(libc::SIGKILL);
    upstream.wait_timeout(LIMIT).expect("killed");
    eventually("the loss is noticed", LIMIT, || {
        lost(witness.read(0, 512)).then_some(())
    });

    for _ in 0..3 {
        assert!(Front::open(front.socket()).is_err(), "there is no server");
    }
    assert!(front.alive());
    fs::remove_file(&socket).expect("a killed server leaves its socket");
    let _returned = Nbdkit::start_at(&socket, &["memory", "1M"]);
    assert_eq!(Front::of(&front).read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn connection_that_was_lost_while_idle_is_not_given_to_the_next_client() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let dies = server.play(|peer| peer.negotiate(&Offer::default()));
    let front = forward(directory.path(), server.socket(), &["shared=true"]);
    dies.finished("the first connection");

    // Nobody used the connection when it ended, so nobody could notice.
    let mut client = Front::of(&front);
    assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
    assert_eq!(server.accepted(), 2);
}

#[test]
fn clients_that_come_together_after_a_loss_share_again() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let dies = server.play(|peer| {
        peer.negotiate(&Offer::default())?;
        // The first request is the last.
        peer.request().map(drop)
    });
    let front = forward(directory.path(), server.socket(), &["shared=true"]);
    assert!(lost(Front::of(&front).read(0, 512)));
    dies.finished("the first connection");

    let clients: Vec<Front> = thread::scope(|scope| {
        let opening: Vec<_> = (0..4).map(|_| scope.spawn(|| Front::of(&front))).collect();
        opening
            .into_iter()
            .map(|client| client.join().expect("opens"))
            .collect()
    });
    for mut client in clients {
        assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
    }
    assert_eq!(server.accepted(), 2);
}

#[test]
fn loss_is_told_once_to_the_user() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let enough = Gate::default();
    let dies = server.play({
        let enough = enough.clone();
        move |peer| {
            peer.negotiate(&Offer::default())?;
            enough.pass();
            Ok(())
        }
    });
    let front = forward(directory.path(), server.socket(), &["shared=true"]);
    let mut clients: Vec<_> = (0..3).map(|_| Front::of(&front)).collect();
    enough.open();
    dies.finished("the shared connection");
    for client in &mut clients {
        assert!(lost(client.read(0, 512)));
    }
    let stderr = front.stderr();
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
}
