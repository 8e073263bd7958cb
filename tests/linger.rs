// SPDX-License-Identifier: BSD-3-Clause
//! `linger=TIME`: the connection of a client that has left serves the next one.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::clients::{LIMIT, attempt, nbdsh, nbdsh_command, nbdsh_unconnected, program};
use common::counted::Counted;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, uri};
use common::pair::{Pair, Upstream};
use common::process::{Guarded, eventually};
use common::relay::{Recording, Relay};
use common::tcp::{TcpServer, V4};
use common::{need, need_all, plugin};

const FOREVER: &[&str] = &["dynamic-export=true", "linger=forever"];

fn pair(extra: &[&str]) -> Pair<Counted> {
    Pair::with(Counted::start, extra)
}

/// A client that reads, of the export `name`.
fn read(front: &Nbdkit, name: &str) {
    nbdsh(&front.uri_export(name), "h.pread(512, 0); h.shutdown()");
}

/// A relay before a server, and a front before it.
fn relayed(extra: &[&str]) -> (tempfile::TempDir, Counted, Relay, Nbdkit) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Counted::start(directory.path());
    let relay = Relay::unix(directory.path(), "relay.sock", server.socket());
    let front = relay.forward(directory.path(), extra);
    (directory, server, relay, front)
}

/// Waits until that many ways are kept: the front has no client's thread any more.
fn rests(front: &Nbdkit) {
    eventually("no client is there", LIMIT, || {
        (front.threads() <= 2).then_some(())
    });
}

#[test]
fn programs_one_after_the_other_are_seen_once() {
    if !need_all(&["nbdinfo", "nbdcopy", "qemu-img"]) {
        return;
    }
    for extra in [
        &["export=disk", "linger=forever"][..],
        FOREVER,
        &["dynamic-export=true", "linger=60", "reconnect=10"],
    ] {
        let mut pair = pair(extra);
        let front = pair.front.uri();
        // nbdkit lets go of a client before the plugin hears of it.
        program("nbdinfo", &[&front]);
        rests(&pair.front);
        program("nbdcopy", &["--connections=1", &front, "null:"]);
        rests(&pair.front);
        program("qemu-img", &["info", &front]);
        rests(&pair.front);
        program("nbdinfo", &["--map", &front]);
        assert_eq!(
            pair.server.count("preconnect"),
            1,
            "{}",
            pair.front.stderr()
        );
        assert_eq!(pair.server.count("open"), 1);
        assert_eq!(pair.server.count("close"), 0);
        // What is kept is left in good order when nbdkit ends.
        pair.front.ends_well();
        pair.server.await_count("close", 1);
        let log = pair.front.stderr();
        assert!(!log.contains("error: "), "{log}");
    }
}

#[test]
fn a_server_for_one_client_serves_two() {
    if !need_all(&["qemu-nbd", "nbdinfo", "nbdcopy", "nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = common::upstream::noise_file(directory.path(), "disk.img", 1 << 20, 5);
    let (socket, copy) = (
        directory.path().join("once.sock"),
        directory.path().join("copy.img"),
    );
    // Without -t, it ends when its first client leaves.
    let mut server = Guarded::spawn(
        Command::new("qemu-nbd")
            .arg("-k")
            .arg(&socket)
            .args(["-f", "raw"])
            .arg(&image),
    );
    eventually("qemu-nbd listens", LIMIT, || socket.exists().then_some(()));
    let mut front = forward(directory.path(), &socket, &["linger=forever"]);
    program("nbdinfo", &[&front.uri()]);
    nbdcopy(&front.uri(), &copy);
    common::clients::assert_same_bytes(&image, &copy);
    assert!(server.alive());
    front.ends_well();
    let status = server.wait_timeout(LIMIT);
    assert!(status.is_some_and(|status| status.success()));
}

/// A client that is still there when another comes: the server has no room for that one, but what the first
/// one leaves is given to it.
#[test]
fn who_waits_for_room_is_given_what_is_left() {
    if !need_all(&["qemu-nbd", "nbdkit", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = common::upstream::noise_file(directory.path(), "disk.img", 1 << 20, 5);
    let server = common::upstream::qemu_nbd(directory.path(), &image, "raw", "disk", &["-e", "1"]);
    for (export, command) in [("disk", "--size"), ("", "--list")] {
        let front = forward(directory.path(), server.socket(), FOREVER);
        let go = front.socket().with_extension("go");
        let script = format!(
            "h.pread(512, 0)
import os, time
while not os.path.exists('{}'): time.sleep(0.01)
h.shutdown()",
            go.display()
        );
        let uri = front.uri_export("disk");
        let mut first = Guarded::spawn(nbdsh_command().args(["-u", &uri, "-c", &script]));
        let connected = |times: usize| {
            let log = || front.stderr().matches(": connected").count();
            eventually("it has connected", LIMIT, || (log() == times).then_some(()));
        };
        connected(1);
        let mut info = Command::new("nbdinfo");
        let mut second = Guarded::spawn(info.args([command, &front.uri_export(export)]));
        connected(2);
        fs::write(&go, "").expect("write a file");
        for client in [&mut first, &mut second] {
            let status = client.wait_timeout(LIMIT);
            let log = front.stderr();
            assert!(
                status.is_some_and(|status| status.success()),
                "{command}: {log}"
            );
        }
    }
}

fn nbdcopy(from: &str, to: &Path) {
    let to = to.display().to_string();
    program("nbdcopy", &["--connections=1", from, &to]);
}

#[test]
fn what_was_written_is_flushed_before_it_is_kept() {
    if !need("nbdkit") {
        return;
    }
    for extra in [
        FOREVER,
        &["dynamic-export=true", "linger=9", "reconnect=10"],
    ] {
        let pair = pair(extra);
        nbdsh(
            &pair.front.uri(),
            "h.pwrite(bytearray(512), 0); h.shutdown()",
        );
        pair.server.await_count("flush", 1);
        read(&pair.front, "");
        rests(&pair.front);
        assert_eq!(pair.server.count("flush"), 1, "nothing was written since");
        assert_eq!(pair.server.count("preconnect"), 1);
    }
}

#[test]
fn what_nobody_wants_in_time_is_left() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(&["dynamic-export=true", "linger=300ms"]);
    read(&pair.front, "");
    pair.server.await_count("close", 1);
    read(&pair.front, "");
    assert_eq!(pair.server.visits(), (2, 2));
}

#[test]
fn another_export_is_another_connection_and_never_one_too_many() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(FOREVER);
    read(&pair.front, "disk");
    read(&pair.front, "other");
    // There was one client at a time, so there is one connection at a time.
    pair.server.await_count("close", 1);
    read(&pair.front, "other");
    assert_eq!(pair.server.count("preconnect"), 2);
}

#[test]
fn as_many_are_kept_as_there_were_clients_at_once() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(FOREVER);
    let script = "
def visit():
    handles = []
    for i in range(3):
        g = nbd.NBD()
        g.connect_uri('URI')
        handles.append(g)
    for g in handles: g.pread(512, 0)
    for g in handles: g.shutdown()
visit()
";
    let script = script.replace("URI", &pair.front.uri());
    nbdsh_unconnected(&script);
    rests(&pair.front);
    nbdsh_unconnected(&script);
    rests(&pair.front);
    assert_eq!(pair.server.count("preconnect"), 3);
    assert_eq!(pair.server.count("close"), 0);
}

#[test]
fn one_that_dies_while_it_is_kept_is_replaced_unnoticed() {
    if !need("nbdkit") {
        return;
    }
    for extra in [
        FOREVER,
        &["dynamic-export=true", "linger=60", "reconnect=10"],
    ] {
        let (_directory, server, relay, front) = relayed(extra);
        read(&front, "");
        rests(&front);
        relay.cut_now();
        read(&front, "");
        assert_eq!(server.count("preconnect"), 2);
        let log = front.stderr();
        assert!(!log.contains("error: "), "{log}");
    }
}

#[test]
fn one_that_dies_while_it_is_kept_is_noticed_without_a_client() {
    if !need("nbdkit") {
        return;
    }
    let (_directory, _server, relay, front) = relayed(FOREVER);
    let before = front.descriptors();
    read(&front, "");
    rests(&front);
    relay.cut_now();
    eventually("its socket is closed", LIMIT, || {
        (front.descriptors() <= before).then_some(())
    });
}

#[test]
fn one_on_which_a_request_failed_is_not_kept() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(
        |directory| Counted::with(directory, &["pread=echo EIO no >&2; exit 1"]),
        FOREVER,
    );
    for _ in 0..2 {
        nbdsh(
            &pair.front.uri(),
            "
try:
    h.pread(512, 0)
    assert False
except nbd.Error:
    h.shutdown()
",
        );
    }
    assert_eq!(pair.server.visits(), (2, 2));
}

#[test]
fn the_retry_filter_gets_a_new_one() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(
        |directory| {
            let mark = directory.join("failed").display().to_string();
            let pread = format!(
                "pread=[ -e {mark} ] || {{ touch {mark}; echo EIO no >&2; exit 1; }}; \
                 head -c $3 /dev/zero"
            );
            Counted::with(directory, &[&pread])
        },
        &[
            "--filter=retry",
            "retry-delay=1",
            "dynamic-export=true",
            "linger=forever",
        ],
    );
    read(&pair.front, "");
    pair.server.await_count("preconnect", 2);
    pair.server.await_count("close", 1);
}

#[test]
fn clients_from_different_hosts_have_different_ones() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Counted::start(directory.path());
    let front = TcpServer::start(
        V4,
        &[
            &plugin().display().to_string(),
            &format!("socket={}", server.socket().display()),
            FOREVER[0],
            FOREVER[1],
        ],
    );
    // Each from an address of its own, with a port of its own each time.
    let script = "
import socket
def visit(host):
    s = socket.socket()
    s.bind((host, 0))
    s.connect(('127.0.0.1', PORT))
    g = nbd.NBD()
    g.set_export_name('disk')
    g.connect_socket(s.detach())
    g.pread(512, 0)
    g.shutdown()
for host in HOSTS: visit(host)
";
    let visit = |hosts: &str| {
        nbdsh_unconnected(
            &script
                .replace("PORT", &front.port())
                .replace("HOSTS", hosts),
        );
    };
    visit("['127.0.0.1', '127.0.0.1']");
    eventually(
        "the second one had the connection of the first",
        LIMIT,
        || (server.count("preconnect") == 1).then_some(()),
    );
    visit("['127.0.0.2']");
    server.await_count("preconnect", 2);
    server.await_count("close", 1);
}

#[test]
fn where_it_is_shared_nothing_else_is_kept() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(&["export=disk", "shared=true", "linger=forever"]);
    read(&pair.front, "");
    read(&pair.front, "");
    assert_eq!(pair.server.count("preconnect"), 1);
}

#[test]
fn a_list_makes_room_where_there_is_room_for_one() {
    if !need_all(&["qemu-nbd", "nbdinfo", "qemu-img"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = common::upstream::noise_file(directory.path(), "disk.img", 1 << 20, 5);
    let server = common::upstream::qemu_nbd(directory.path(), &image, "raw", "disk", &["-e", "1"]);
    let front = forward(directory.path(), server.socket(), FOREVER);
    let name = uri(front.socket(), "disk");
    read(&front, "disk");
    rests(&front);
    // The one connection that this qemu-nbd has room for is kept, and of no use for a list.
    let listed = attempt("nbdinfo", &["--list", "--json", &front.uri()]);
    assert!(listed.status.success(), "{}", front.stderr());
    program("nbdinfo", &["--size", &name]);
}

/// Who took it over would be told of a loss that was not its own.
#[test]
fn one_that_has_lost_one_of_its_connections_is_not_given_away() {
    for mode in [&[][..], &["reconnect=20"]] {
        if !need("nbdkit") {
            return;
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let slow = ["--filter=delay", "memory", "1M", "rdelay=5ms"];
        let upstream = Nbdkit::start(directory.path(), &slow);
        let relay = Relay::unix(directory.path(), "relay", upstream.socket());
        let extra = [&["connections=2", "linger=forever"], mode].concat();
        let front = relay.forward(directory.path(), &extra);
        let mut client = Front::of(&front);
        eventually("two connections", LIMIT, || {
            let reads: Vec<_> = (0..8).map(|n| client.submit_read(n * 512, 512)).collect();
            for read in reads {
                assert!(client.wait_read(read).is_ok());
            }
            // A request has come over the second one, too.
            let magic = 0x2560_9513_u32.to_be_bytes();
            let asked = |wire: &Recording| wire.to_server.windows(4).any(|four| four == magic);
            let recordings = relay.recordings();
            (recordings.len() == 2 && recordings.iter().all(asked)).then_some(())
        });
        client.close();
        rests(&front);
        relay.cut_one(1);
        let mut next = Front::of(&front);
        assert_eq!(next.read(0, 512).map(drop), Ok(()));
        assert_eq!(relay.connections(), 3, "{mode:?}: a way of its own");
        assert_eq!(front.errors(), [""; 0], "{mode:?}");
    }
}
