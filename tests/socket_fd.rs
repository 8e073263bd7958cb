// SPDX-License-Identifier: BSD-3-Clause
//! `socket-fd=`: a connection that somebody else made.

mod common;

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use common::clients::{LIMIT, nbdsh};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args};
use common::need;
use common::process::{eventually, hand_over, run_ok};
use common::refusal::{MODES, Mode, refusal, refusal_with};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::errno;
use common::tcp::{TcpServer, V4};
use common::upstream::memory;

/// A number that nothing else in nbdkit has.
const NUMBER: i32 = 100;
const PARAMETER: &str = "socket-fd=100";

/// nbdkit with `socket` as descriptor 100.
fn start(directory: &Path, socket: &impl AsFd) -> Nbdkit {
    Nbdkit::start_with(directory, &plugin_args(&[PARAMETER]), |command| {
        hand_over(command, socket, NUMBER);
    })
}

/// A connection to `server`, as somebody else would make it.
fn connect(server: &Nbdkit) -> UnixStream {
    UnixStream::connect(server.socket()).expect("the server listens")
}

/// nbdkit must refuse to start with `descriptor` as number 100; returns why.
fn refused(mode: Mode, descriptor: impl Into<OwnedFd>) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    let descriptor: OwnedFd = descriptor.into();
    let args = [PARAMETER, "handshake-timeout=1"];
    let (reason, all) = refusal_with(directory.path(), mode, &args, |command| {
        hand_over(command, &descriptor, NUMBER);
    });
    assert_eq!(all.lines().count(), 1, "{all}");
    reason
}

#[test]
fn connected_unix_socket() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let front = start(directory.path(), &connect(&server));
    let script = "print(h.get_size(), h.pread(512, 0) == bytes(512))";
    assert_eq!(nbdsh(&front.uri(), script).trim_end(), "1048576 True");
}

#[test]
fn connected_tcp_socket() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let port: u16 = server.port().parse().expect("a number");
    let stream = TcpStream::connect((V4, port)).expect("the server listens");
    let front = start(directory.path(), &stream);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.get_size())").trim_end(),
        "1048576"
    );
}

#[test]
fn non_blocking_socket() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let stream = connect(&server);
    stream.set_nonblocking(true).expect("our own socket");
    let front = start(directory.path(), &stream);
    assert_eq!(
        nbdsh(&front.uri(), "print(len(h.pread(1 << 20, 0)))").trim_end(),
        "1048576"
    );
}

#[test]
fn pair_of_sockets_is_used_and_ended_as_the_protocol_demands() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let server = thread::spawn(move || {
        let mut peer = Peer::new(ours, false);
        peer.negotiate(&Offer::default())?;
        // Returns only after NBD_CMD_DISC and the end of the connection.
        peer.serve(&mut Disk::new(Offer::default().size))
    });
    let mut front = start(directory.path(), &theirs);
    drop(theirs);
    let mut client = Front::open(front.socket()).expect("opens");
    assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
    client.close();
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).expect("nbdkit ends").success());
    let end = server.join().expect("the server's checks");
    assert!(end.is_ok(), "{end:?}");
}

#[test]
fn all_clients_share_it() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let front = start(directory.path(), &connect(&server));
    let mut clients: Vec<_> = (0..3)
        .map(|_| Front::open(front.socket()).expect("opens"))
        .collect();
    for client in &mut clients {
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    clients.into_iter().for_each(Front::close);
    let again = Front::open(front.socket()).expect("opens after the others left");
    again.close();
}

#[test]
fn it_goes_to_the_background_with_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let stream = connect(&server);
    let front = Daemon::start_with(directory.path(), &[PARAMETER], |command| {
        hand_over(command, &stream, NUMBER);
    });
    drop(stream);
    assert_eq!(
        nbdsh(&front.uri(), "print(len(h.pread(512, 0)))").trim_end(),
        "512"
    );
    assert!(front.terminate(LIMIT), "{}", front.stderr());
}

/// As with inetd, or `StandardInput=socket` of systemd: nbdkit has another use for that number.
#[test]
fn it_may_be_standard_input() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let args = ["socket-fd=0"];
    let size = |uri: &str| nbdsh(uri, "print(h.get_size(), len(h.pread(512, 0)))");

    let stream = connect(&server);
    let front = Nbdkit::start_with(directory.path(), &plugin_args(&args), |command| {
        hand_over(command, &stream, 0);
    });
    assert_eq!(size(&front.uri()).trim_end(), "1048576 512");

    let stream = connect(&server);
    let front = Daemon::start_with(directory.path(), &args, |command| {
        hand_over(command, &stream, 0);
    });
    assert_eq!(size(&front.uri()).trim_end(), "1048576 512");
    assert!(front.terminate(LIMIT), "{}", front.stderr());

    let stream = connect(&server);
    let mut command = Command::new("nbdkit");
    command.args(["-U", "-"]).args(plugin_args(&args));
    command.args(["--run", "nbdinfo --size \"$uri\""]);
    hand_over(&mut command, &stream, 0);
    assert_eq!(run_ok(&mut command, LIMIT), "1048576\n");
}

#[test]
fn captive_command_does_not_inherit_it() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let stream = connect(&server);
    let mut command = Command::new("nbdkit");
    command
        .args(["-U", "-"])
        .args(plugin_args(&[PARAMETER]))
        .args([
            "--run",
            "nbdinfo --size \"$uri\"; test -e /proc/$$/fd/100 || echo closed",
        ]);
    hand_over(&mut command, &stream, NUMBER);
    assert_eq!(run_ok(&mut command, LIMIT), "1048576\nclosed\n");
}

#[test]
fn connection_that_is_lost_cannot_be_made_again() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let mut front = start(directory.path(), &connect(&server));
    let mut client = Front::open(front.socket()).expect("opens");
    server.signal(libc::SIGKILL);
    eventually("the loss is noticed", LIMIT, || {
        matches!(client.read(0, 512), Err(errno::EIO | errno::ESHUTDOWN)).then_some(())
    });

    let before = front.stderr().len();
    assert!(Front::open(front.socket()).is_err(), "nobody is there");
    let stderr = front.stderr();
    let said = &stderr[before..];
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert!(said.contains("socket-fd=100"), "{said}");
    assert!(front.alive());
}

#[test]
fn lost_connection_is_not_tried_again() {
    if !need("nbdkit") {
        return;
    }
    // No time cures it, so retry= must not make the client wait.
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let stream = connect(&server);
    let args = plugin_args(&[PARAMETER, "retry=1000"]);
    let front = Nbdkit::start_with(directory.path(), &args, |command| {
        hand_over(command, &stream, NUMBER);
    });
    let mut client = Front::open(front.socket()).expect("opens");
    server.signal(libc::SIGKILL);
    eventually("the loss is noticed", LIMIT, || {
        client.read(0, 512).is_err().then_some(())
    });
    assert!(Front::open(front.socket()).is_err(), "nobody is there");
}

#[test]
fn what_is_no_socket_is_refused_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let line = refused(mode, File::open("/dev/null").expect("/dev/null"));
        assert!(line.contains("socket-fd=100"), "{mode:?}: {line}");
        assert!(line.contains("non-socket"), "{mode:?}: {line}");
    }
}

#[test]
fn number_that_is_not_open_is_refused_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    let line = refusal(&["socket-fd=1000"]);
    assert!(line.contains("socket-fd=1000"), "{line}");
    assert!(line.contains("Bad file descriptor"), "{line}");
}

#[test]
fn datagram_socket_is_refused_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    let (one, _other) = UnixDatagram::pair().expect("socket pair");
    let line = refused(Mode::Foreground, one);
    assert!(line.contains("socket-fd=100"), "{line}");
}

#[test]
fn socket_that_only_listens_is_refused_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let listener = UnixListener::bind(directory.path().join("socket")).expect("listen");
    let line = refused(Mode::Foreground, listener);
    assert!(line.contains("socket-fd=100"), "{line}");
}

#[test]
fn socket_whose_other_end_is_gone_is_refused_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let (one, other) = UnixStream::pair().expect("socket pair");
        drop(other);
        let line = refused(mode, one);
        assert!(line.contains("socket-fd=100: "), "{mode:?}: {line}");
    }
}

#[test]
fn negative_number_is_refused() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(refusal(&["socket-fd=-1"]), "socket-fd must be >= 0");
}
