// SPDX-License-Identifier: BSD-3-Clause
//! The three deadlines: for connecting, for the whole handshake, and for each request.

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use common::clients::{LIMIT, attempt, nbdsh, nbdsh_unconnected, program};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::process::eventually;
use common::scripted::Gate;
use common::scripted::bench::Bench;
use common::scripted::disk::{Disk, pattern};
use common::scripted::farm::{self, Farm, Fate};
use common::scripted::peer::Offer;
use common::scripted::wire::errno;
use common::upstream::{memory, noise_file, qemu_nbd};
use common::{need, need_all};

#[test]
fn stopped_server_fails_the_handshake_at_its_deadline() {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let mut front = forward(
        directory.path(),
        upstream.socket(),
        &["handshake-timeout=500ms"],
    );
    // The kernel accepts connections for a stopped process, so connecting works and nothing follows.
    upstream.stop();
    let output = attempt("nbdinfo", &["--size", &front.uri()]);
    assert!(!output.status.success(), "nobody answers");
    let log = front.stderr();
    let error = log
        .lines()
        .find(|line| line.contains("error:"))
        .unwrap_or_else(|| panic!("no error in: {log}"));
    assert!(error.contains("handshake"), "names the phase: {error}");

    upstream.signal(libc::SIGCONT);
    assert_eq!(
        program("nbdinfo", &["--size", &front.uri()]).trim_end(),
        "1048576"
    );
    assert!(front.alive());
}

#[test]
fn server_that_is_taken_fails_the_second_client_at_the_deadline() {
    if !need_all(&["nbdkit", "nbdinfo", "qemu-nbd"]) {
        return;
    }
    // Left to itself qemu-nbd serves one client; the next one is connected, and greeted when the first goes.
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 1 << 20, 82);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &["-e", "1"]);
    let front = forward(
        directory.path(),
        upstream.socket(),
        &["export=disk", "handshake-timeout=500ms"],
    );
    let script = format!(
        "
h.connect_uri('{uri}')
second = nbd.NBD()
try:
    second.connect_uri('{uri}')
    print('two clients')
except nbd.Error:
    print('one client')
print(len(h.pread(512, 0)))
h.shutdown()
",
        uri = front.uri()
    );
    assert_eq!(nbdsh_unconnected(&script), "one client\n512\n");
}

#[test]
fn full_listen_queue_fails_the_connection_at_its_deadline() {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("full.sock");
    let listener = UnixListener::bind(&socket).expect("listen");
    let waiting = fill_queue(&listener, &socket);
    let mut front = forward(directory.path(), &socket, &["connect-timeout=500ms"]);
    let output = attempt("nbdinfo", &["--size", &front.uri()]);
    assert!(!output.status.success(), "nobody accepts");
    let log = front.stderr();
    let error = log
        .lines()
        .find(|line| line.contains("error:"))
        .unwrap_or_else(|| panic!("no error in: {log}"));
    assert!(error.contains("connect"), "names the phase: {error}");
    assert!(front.alive());
    drop(waiting);
}

#[test]
fn slow_request_fails_at_its_deadline() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(
        directory.path(),
        &["--filter=delay", "memory", "1M", "rdelay=300"],
    );
    let mut front = forward(
        directory.path(),
        upstream.socket(),
        &["request-timeout=500ms"],
    );
    let script = "
h.pwrite(bytes(512), 0)
try:
    h.pread(512, 0)
    print('fine')
except nbd.Error as error:
    print(error.errno)
";
    let errno = nbdsh(&front.uri(), script);
    assert!(
        ["EIO\n", "ESHUTDOWN\n"].contains(&errno.as_str()),
        "{errno}"
    );
    assert!(front.alive());
}

#[test]
fn all_pieces_of_a_request_have_one_deadline() {
    if !need("nbdkit") {
        return;
    }
    // The server takes 4 KiB at once, and its time for each of the pieces is less than the request's.
    let bench = Bench::new(&["request-timeout=1"]);
    bench.play(|peer| {
        let mut disk = Disk::new(1 << 20);
        peer.negotiate(&Offer {
            block_sizes: Some((1, 4096, 4096)),
            ..Offer::default()
        })?;
        loop {
            let request = peer.request()?;
            peer.silence(Duration::from_millis(600))?;
            peer.answer(&request, &mut disk)?;
        }
    });
    let mut client = bench.open();
    assert_eq!(client.read(0, 4096), Ok(pattern(0, 4096)));
    assert_eq!(client.read(0, 8192), Err(errno::EIO));
}

#[test]
fn requests_within_their_deadline_are_not_disturbed() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(
        directory.path(),
        &["--filter=delay", "memory", "1M", "rdelay=50ms"],
    );
    let front = forward(directory.path(), upstream.socket(), &["request-timeout=30"]);
    assert_eq!(
        nbdsh(
            &front.uri(),
            "for n in range(5): print(len(h.pread(512, 0)))"
        ),
        "512\n".repeat(5)
    );
}

#[test]
fn idle_connection_outlives_the_request_deadline() {
    if !need("nbdkit") {
        return;
    }
    // The deadline counts from each request, not from the last sign of life.
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(
        directory.path(),
        upstream.socket(),
        &["request-timeout=200ms"],
    );
    let script = "
import select
h.pread(512, 0)
select.select([], [], [], 0.6)
print(len(h.pread(512, 0)))
";
    assert_eq!(nbdsh(&front.uri(), script).trim_end(), "512");
}

#[test]
fn stopped_server_does_not_keep_a_client_from_leaving() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &[]);
    // One connection to settle the counts, then one whose server is stopped when it closes.
    nbdsh(&front.uri(), "h.pread(512, 0)");
    let settled = common::process::eventually("the connection is closed", LIMIT, || {
        front
            .stderr()
            .contains("exiting worker thread")
            .then(|| front.descriptors())
    });
    let script = format!(
        "import os, signal\nh.pread(512, 0)\nos.kill({}, signal.SIGSTOP)\nh.shutdown()",
        upstream.pid()
    );
    nbdsh(&front.uri(), &script);
    common::process::eventually("its descriptors are closed", LIMIT, || {
        (front.descriptors() <= settled).then_some(())
    });
    upstream.signal(libc::SIGCONT);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.get_size())").trim_end(),
        "1048576"
    );
}

/// One that says that it is going away, and does not greet whoever comes instead.
#[test]
fn request_that_needs_another_connection_fails_at_its_deadline() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let gate = Gate::default();
    let farm = Farm::start_with(directory.path(), 20, {
        let gate = gate.clone();
        move |number| {
            if number > 0 {
                gate.pass();
            }
            farm::offer()
        }
    });
    let front = forward(directory.path(), farm.socket(), &["request-timeout=500ms"]);
    let mut client = Front::of(&front);
    farm.meets(0, Fate::Go);
    assert_eq!(client.read(4096, 512), Err(errno::ESHUTDOWN));
    assert_eq!(farm.accepted(), 2, "another one was looked for");
    // That was in vain for this request alone.
    gate.open();
    eventually("another connection is found", LIMIT, || {
        let read = client.read(4096, 512);
        let found = read != Err(errno::ESHUTDOWN);
        found.then(|| assert_eq!(read, Ok(pattern(4096, 512))))
    });
}

/// Connects without ever accepting until the queue of `listener` takes no more.
fn fill_queue(listener: &UnixListener, socket: &std::path::Path) -> Vec<UnixStream> {
    use std::os::fd::AsRawFd;
    // SAFETY: listen takes a descriptor, which `listener` keeps open, and a number.
    let shortened = unsafe { libc::listen(listener.as_raw_fd(), 0) };
    assert_eq!(shortened, 0, "a queue of length zero holds one connection");
    vec![UnixStream::connect(socket).expect("the first one fits")]
}
