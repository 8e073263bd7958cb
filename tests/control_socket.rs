// SPDX-License-Identifier: BSD-3-Clause
//! `control=`: the socket itself, and whoever connects to it and does not behave.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use common::clients::{LIMIT, text};
use common::control::{Commander, NAME, parameter};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::pair::Pair;
use common::process::{eventually, run};
use common::upstream::memory;
use common::{need, need_all};
use tempfile::TempDir;

/// Most who may be connected at once.
const MOST: usize = 16;

/// Long enough that all is refused beyond it.
const LONGEST: usize = 4096;

fn start(extra: &[&str]) -> (TempDir, Nbdkit, Nbdkit) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let control = parameter(directory.path());
    let args = [&[control.as_str()], extra].concat();
    let front = forward(directory.path(), server.socket(), &args);
    (directory, front, server)
}

/// What nbdkit says when it does not start.
fn refusal(directory: &Path, socket: &Path, control: &str) -> String {
    let upstream = format!("socket={}", socket.display());
    let mut command = Command::new("nbdkit");
    command.current_dir(directory).args(["-f", "-U", "-"]);
    command.args(plugin_args(&[&upstream, control]));
    let output = run(&mut command, LIMIT);
    assert!(!output.status.success(), "it starts");
    common::nbdkit::explanation(&String::from_utf8_lossy(&output.stderr))
}

#[test]
fn socket_is_for_its_user_alone_and_gone_at_the_end() {
    if !need("nbdkit") {
        return;
    }
    let (directory, mut front, _server) = start(&[]);
    let mut commander = Commander::new(directory.path());
    commander.status();
    let found = fs::symlink_metadata(commander.path()).expect("a socket");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some());
    assert!(!commander.path().exists());
}

/// Only root can become somebody else.
#[test]
fn socket_belongs_to_the_user_that_nbdkit_becomes() {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !need("nbdkit") || !root {
        println!("SKIP: {}: needs root", common::test_name());
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(directory.path(), all).expect("chmod");
    let server = memory(directory.path(), "1M");
    let args = [&parameter(directory.path()), "-unobody", "-gnogroup"];
    let mut front = forward(directory.path(), server.socket(), &args);
    let mut commander = Commander::new(directory.path());
    commander.status();
    let found = fs::symlink_metadata(commander.path()).expect("a socket");
    assert_eq!((found.uid(), found.mode() & 0o777), (65534, 0o600));
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some());
    assert!(!commander.path().exists());
}

#[test]
fn a_relative_path_is_where_the_user_is() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let upstream = format!("socket={}", server.socket().display());
    let control = format!("control={NAME}");
    // It goes to the background, and to the directory /.
    let daemon = Daemon::start(directory.path(), &[&upstream, &control]);
    let mut commander = Commander::new(directory.path());
    commander.status();
    assert!(daemon.terminate(LIMIT));
    assert!(!commander.path().exists());
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    if !need("nbdkit") {
        return;
    }
    let (directory, front, server) = start(&[]);
    let path = Commander::new(directory.path()).path().to_owned();
    front.signal(libc::SIGKILL);
    eventually("nobody listens any more", LIMIT, || {
        UnixStream::connect(&path).err()
    });
    assert!(path.exists(), "who is killed leaves it behind");
    let control = parameter(directory.path());
    let _again = forward(directory.path(), server.socket(), &[&control]);
    Commander::new(directory.path()).status();
}

#[test]
fn what_is_in_the_way_is_told_and_left_alone() {
    if !need("nbdkit") {
        return;
    }
    let (directory, _front, server) = start(&[]);
    let place = directory.path();
    let mut commander = Commander::new(place);
    let told = |control: &str| refusal(place, server.socket(), control);

    let path = commander.path().display().to_string();
    let alive = told(&parameter(place));
    assert!(
        alive.ends_with(&format!("control={path}: somebody listens there already")),
        "{alive}"
    );
    commander.status();

    fs::write(place.join("file"), "precious").expect("a file");
    let file = told("control=file");
    assert!(
        file.ends_with("/file: there is a file that is no socket"),
        "{file}"
    );
    assert_eq!(fs::read(place.join("file")).expect("there"), b"precious");

    let none = told("control=none/socket");
    assert!(
        none.ends_with("/none/socket: its directory: No such file or directory"),
        "{none}"
    );
    let long = told(&format!("control={}", "s".repeat(108)));
    assert!(
        long.contains("control=") && long.contains("must be at most 107 bytes long"),
        "{long}"
    );
    let empty = told("control=");
    assert!(empty.ends_with("control=: must not be empty"), "{empty}");
}

/// The wrong kind of socket is somebody's, too.
#[test]
fn another_kind_of_socket_is_left_alone() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let path = directory.path().join("datagrams");
    let _bound = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    let told = refusal(directory.path(), server.socket(), "control=datagrams");
    assert!(
        told.ends_with("/datagrams: somebody listens there already"),
        "{told}"
    );
    assert!(path.exists());
}

#[test]
fn a_socket_that_is_not_ours_any_more_stays() {
    if !need("nbdkit") {
        return;
    }
    let (directory, mut front, _server) = start(&[]);
    let path = Commander::new(directory.path()).path().to_owned();
    fs::remove_file(&path).expect("the socket");
    let _another = UnixListener::bind(&path).expect("another one");
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some());
    assert!(path.exists());
}

/// Nobody who has connected is the next one's trouble, nor that of nbdkit's clients.
#[test]
fn ten_clients_that_hammer_are_all_answered() {
    if !need("nbdkit") {
        return;
    }
    let (directory, front, _server) = start(&["reconnect=30"]);
    let mut client = Front::of(&front);
    thread::scope(|scope| {
        for number in 0..10 {
            let directory = &directory;
            scope.spawn(move || {
                let mut commander = Commander::new(directory.path());
                for round in 0..100 {
                    match (number + round) % 5 {
                        0 => drop(commander.status()),
                        1 => drop(commander.refuses("nonsense")),
                        2 => drop(commander.does("set request-timeout=20")),
                        3 => drop(commander.does("help")),
                        // Others may be at it, or end it.
                        _ => drop(commander.ask("drain 5")),
                    }
                    if round % 10 == 9 {
                        commander.ask("resume");
                        drop(commander);
                        commander = Commander::new(directory.path());
                    }
                }
            });
        }
    });
    Commander::new(directory.path()).does("resume");
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn garbage_is_refused_and_ends_nothing() {
    if !need("nbdkit") {
        return;
    }
    let (directory, front, _server) = start(&[]);
    let mut commander = Commander::new(directory.path());
    for garbage in [
        &b"\n"[..],
        b"\0\0\0\n",
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n",
        b"status status\n",
    ] {
        commander.send(garbage);
        assert_eq!(commander.answer()["ok"], false, "{garbage:?}");
    }
    let mut lines = commander;
    lines.send(b"version\nversion\nversion\n");
    for _ in 0..3 {
        assert_eq!(lines.answer()["ok"], true);
    }
    // What is too long has no end that could be looked for.
    for end in ["", "\n"] {
        let mut long = Commander::new(directory.path());
        let line = format!("{}{end}", "s".repeat(LONGEST + 1));
        long.send(line.as_bytes());
        let told = long.answer()["error"].to_string();
        assert!(told.contains("at most 4096 bytes"), "{told}");
        assert_eq!(long.line(), None);
    }
    let mut longest = Commander::new(directory.path());
    let told = longest.refuses(&"s".repeat(LONGEST));
    assert!(told.starts_with("unknown command"), "{told}");
    assert_eq!(Front::of(&front).read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn who_sends_nothing_more_is_answered() {
    if !need("nbdkit") {
        return;
    }
    let (directory, _front, _server) = start(&[]);
    for line in ["version\n", "version", "version\nversion"] {
        let mut commander = Commander::new(directory.path());
        commander.send(line.as_bytes());
        commander.finish();
        for _ in line.split_whitespace() {
            assert_eq!(commander.answer()["ok"], true, "{line:?}");
        }
        assert_eq!(commander.line(), None, "{line:?}");
    }
    // Who does not even wait for the answer has asked for it all the same.
    Commander::new(directory.path()).does("drain");
    Commander::new(directory.path()).send(b"resume\n");
    Commander::new(directory.path()).await_state("running");
}

/// Half a command, and an answer that nobody takes, are in nobody's way.
#[test]
fn who_is_slow_keeps_nobody_waiting() {
    if !need("nbdkit") {
        return;
    }
    let (directory, mut front, _server) = start(&[]);
    let mut half = Commander::new(directory.path());
    half.send(b"sta");
    let deaf = UnixStream::connect(half.path()).expect("connected");
    deaf.set_nonblocking(true).expect("nonblocking");
    // Until nothing more is taken, since no answer is.
    let mut sent = 0;
    eventually("nothing more is taken", LIMIT, || {
        use std::io::Write;
        for _ in 0..1000 {
            match (&deaf).write(b"help\n") {
                Ok(count) => sent += count,
                Err(_) => return Some(()),
            }
        }
        None
    });
    assert!(sent > 0);
    for _ in 0..10 {
        Commander::new(directory.path()).status();
    }
    half.send(b"tus\n");
    assert_eq!(half.answer()["ok"], true);
    assert_eq!(Front::of(&front).read(0, 512), Ok(vec![0; 512]));
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some(), "{}", front.stderr());
}

#[test]
fn there_are_so_many_at_once_and_no_more() {
    if !need("nbdkit") {
        return;
    }
    let (directory, front, _server) = start(&[]);
    let mut all: Vec<Commander> = (0..MOST)
        .map(|_| Commander::new(directory.path()))
        .collect();
    all.iter_mut().for_each(|one| drop(one.status()));
    let mut more = Commander::new(directory.path());
    assert_eq!(more.answer()["error"], "16 are connected already");
    assert_eq!(more.line(), None);
    let descriptors = front.descriptors();
    all.pop();
    eventually("there is room again", LIMIT, || {
        let mut next = Commander::new(directory.path());
        next.send(b"version\n");
        (next.answer()["ok"] == true).then_some(())
    });
    drop(all);
    eventually("what they had is given back", LIMIT, || {
        (front.descriptors() <= descriptors - MOST).then_some(())
    });
}

/// Without the parameter there is no thread and no file.
#[test]
fn nothing_is_there_unless_it_is_asked_for() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let without = Pair::new(&["memory", "1M"], &[]);
    let before = without.front.idle_threads();
    let (directory, front, _server) = start(&[]);
    Commander::new(directory.path());
    assert_eq!(front.idle_threads(), before + 1);
    let names: Vec<_> = fs::read_dir(without.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert!(names.iter().all(|name| text(Path::new(name)) != NAME));
}
