// SPDX-License-Identifier: BSD-3-Clause
//! `nbdkit-nbdctl`, the program that people give commands with.

mod common;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use common::clients::{LIMIT, text};
use common::control::{Commander, parameter};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::process::{Guarded, eventually, run, run_ok};
use common::upstream::memory;
use common::{manual, need, need_all};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_nbdkit-nbdctl");

fn start(extra: &[&str]) -> (TempDir, Nbdkit, Nbdkit, String) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let control = parameter(directory.path());
    let args = [&[control.as_str()], extra].concat();
    let front = forward(directory.path(), server.socket(), &args);
    let path = text(Commander::new(directory.path()).path()).to_owned();
    (directory, front, server, path)
}

fn nbdctl(args: &[&str]) -> Output {
    run(Command::new(PROGRAM).args(args), LIMIT)
}

/// What it prints when it must succeed.
fn prints(args: &[&str]) -> String {
    let output = nbdctl(args);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {told}");
    assert_eq!(told, "");
    String::from_utf8(output.stdout).expect("text")
}

/// What it says when it fails, and with which status.
fn fails(args: &[&str]) -> (Option<i32>, String) {
    let output = nbdctl(args);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
    let told = String::from_utf8(output.stderr).expect("text");
    let told = told.strip_prefix("nbdkit-nbdctl: ").expect("its name");
    (output.status.code(), told.trim_end().to_owned())
}

#[test]
fn people_get_a_table_and_programs_get_json() {
    if !need("nbdkit") {
        return;
    }
    let (_directory, front, _server, path) = start(&["reconnect=30"]);
    let mut client = Front::of(&front);
    client.write(0, &[1; 512]).expect("a write");
    let table = prints(&[&path, "status"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "running: 0 in flight, 0 waiting, 1 way");
    assert!(lines[1].starts_with("SERVER"), "{table}");
    assert!(
        lines[2].contains("  \"\"") && lines[2].contains("  up "),
        "{table}"
    );
    assert!(lines[3].starts_with("COMMAND"), "{table}");
    assert!(lines[4].starts_with("write    1         0"), "{table}");
    assert!(lines[5].starts_with("journal: "), "{table}");
    assert!(table.contains(" reconnect=30"), "{table}");
    for args in [[&*path, "status", "--json"], ["--json", &path, "status"]] {
        let line = prints(&args);
        let status: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(status["ways"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn commands_are_given() {
    if !need("nbdkit") {
        return;
    }
    let (directory, front, _server, path) = start(&["reconnect=30"]);
    let mut client = Front::of(&front);
    assert_eq!(
        prints(&[&path, "drain", "20"]),
        "drained: requests wait until resume\n"
    );
    let read = client.submit_read(0, 512);
    Commander::new(directory.path()).await_number("waiting", 1);
    assert_eq!(prints(&[&path, "resume"]), "requests go on\n");
    assert_eq!(client.wait_read(read), Ok(vec![0; 512]));
    assert_eq!(prints(&[&path, "reconnect"]), "1 connected anew\n");
    assert_eq!(prints(&[&path, "set", "request-timeout=20"]), "set\n");
    assert_eq!(prints(&[&path, "log", "on"]), "each request is told of\n");
    assert!(prints(&[&path, "version"]).contains(env!("CARGO_PKG_VERSION")));
    assert!(prints(&[&path, "help"]).contains("reconnect [TIME]"));
}

#[test]
fn what_is_not_done_is_told_with_status_one() {
    if !need("nbdkit") {
        return;
    }
    let (directory, mut front, _server, path) = start(&[]);
    let (status, told) = fails(&[&path, "set", "port=1"]);
    assert_eq!(status, Some(1));
    assert!(told.starts_with("set: ‘port’ cannot be changed"), "{told}");
    let (status, told) = fails(&[&path, &"s".repeat(5000)]);
    assert_eq!(status, Some(1));
    assert_eq!(told, "a command is at most 4096 bytes long");
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut to_a_full_disk = Command::new(PROGRAM);
    to_a_full_disk
        .args([path.as_str(), "version"])
        .stdout(full.expect("Linux has it"));
    let output = to_a_full_disk.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("the answer cannot be written: No space left"),
        "{told}"
    );
    let output = nbdctl(&["--json", &path, "reconnect"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["ok"], false);
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some());
    let (status, told) = fails(&[&path, "status"]);
    assert_eq!(status, Some(1));
    assert!(
        told.contains("there is no such socket: does nbdkit run with control="),
        "{told}"
    );
    drop(UnixListener::bind(&path).expect("a socket"));
    let (status, told) = fails(&[&path, "status"]);
    assert_eq!(status, Some(1));
    assert!(told.contains("nobody listens there"), "{told}");
    let long = format!("{}/{}", directory.path().display(), "s".repeat(108));
    let (status, told) = fails(&[&long, "status"]);
    assert_eq!(
        (status, told.contains("os error")),
        (Some(1), false),
        "{told}"
    );
}

#[test]
fn wrong_usage_is_told_with_status_two() {
    for args in [
        &[][..],
        &["/path"],
        &["--jsno", "/path", "status"],
        &["--\x1b[31m", "/path", "status"],
        &["/path", "a\nb"],
        &["/path", "watch", "x"],
    ] {
        let (status, told) = fails(args);
        assert_eq!(status, Some(2), "{args:?}: {told}");
        assert!(told.ends_with("; see nbdkit-nbdctl --help"), "{told}");
        assert!(!told.contains('\x1b'), "{told:?}");
    }
}

#[test]
fn help_and_manual_name_the_same_commands() {
    let help = prints(&["--help"]);
    let page = manual::file("nbdkit-nbdctl.pod");
    let (_, commands) = help.split_once("Commands:\n").expect("commands");
    let words = |line: &str| {
        line.strip_prefix("  ")?
            .split("  ")
            .next()
            .map(str::to_owned)
    };
    let named: Vec<String> = commands
        .lines()
        .filter_map(words)
        .filter(|line| !line.is_empty())
        .collect();
    assert!(named.len() >= 11, "{named:?}");
    for name in named {
        let first = name.split([' ', ',']).next().unwrap_or_default();
        assert!(page.contains(&format!("=item B<{first}>")), "{name}");
    }
    let version = prints(&["--version"]);
    let number = env!("CARGO_PKG_VERSION");
    let expected = format!("nbdkit-nbdctl {number} (nbd_client=rust/{number})\n");
    assert_eq!(version, expected);
    assert_eq!(prints(&["-h"]), help);
    assert!(help.lines().all(|line| line.len() <= 80));
}

/// Without a terminal each table is printed below the last one.
#[test]
fn watch_ends_with_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let (_directory, mut front, _server, path) = start(&[]);
    let mut watch = Guarded::spawn(Command::new(PROGRAM).args([&path, "watch"]));
    eventually("two tables", LIMIT, || {
        (watch.stdout().matches("running: ").count() >= 2).then_some(())
    });
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some());
    let ended = watch.wait_timeout(LIMIT);
    assert!(
        ended.is_some_and(|status| status.success()),
        "{}",
        watch.stderr()
    );
    assert!(
        watch.stderr().contains("nbdkit has ended"),
        "{}",
        watch.stderr()
    );
    assert!(!watch.stdout().contains('\x1b'));
}

#[test]
fn watch_draws_on_a_terminal() {
    if !need_all(&["nbdkit", "script"]) {
        return;
    }
    let (directory, mut front, _server, path) = start(&[]);
    let out = directory.path().join("typescript");
    let command = format!("{PROGRAM} {path} watch");
    let mut script = Command::new("script");
    let mut script = Guarded::spawn(script.args(["-q", "-c", &command, text(&out)]));
    let shown = || std::fs::read_to_string(&out).unwrap_or_default();
    eventually("it is drawn twice", LIMIT, || {
        (shown().matches("\x1b[H").count() >= 2).then_some(())
    });
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).is_some());
    assert!(script.wait_timeout(LIMIT).is_some());
    let shown = shown();
    assert!(
        shown.contains("\x1b[2J") && shown.contains("\x1b[K"),
        "{shown:?}"
    );
}

/// Whoever listens at the path need not be the plugin, and the path itself is anybody's.
#[test]
fn nothing_that_others_say_reaches_a_terminal_raw() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join(OsStr::from_bytes(b"\xff\x1b[31m"));
    let status = || run(Command::new(PROGRAM).arg(&path).arg("status"), LIMIT);
    let output = status();
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.contains("/\u{fffd}\\u{1b}[31m: there is no"), "{told}");
    let listener = UnixListener::bind(&path).expect("a socket");
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut line = String::new();
        let mut asked = BufReader::new(stream.try_clone().expect("a second one"));
        asked.read_line(&mut line).expect("a command");
        stream.write_all(b"ok\n\x1b[2J\tred\n\n").expect("read");
        line
    });
    let output = status();
    assert_eq!(other.join().expect("no panic"), "text status\n");
    let shown = String::from_utf8(output.stdout).expect("text");
    assert_eq!(shown, "\\u{1b}[2J\\tred\n");
}

#[test]
fn permission_is_what_is_missing() {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !need("nbdkit") || !root {
        println!("SKIP: {}: needs root", common::test_name());
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let (directory, _front, _server, path) = start(&[]);
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), all).expect("chmod");
    // Where it was built nobody else may be.
    let program = directory.path().join("nbdctl");
    // Not by this process: what another thread starts meanwhile would have it open for writing.
    run_ok(
        Command::new("cp").args([Path::new(PROGRAM), &program]),
        LIMIT,
    );
    let mut command = Command::new(program);
    let output = run(command.args([&path, "status"]).uid(65534).gid(65534), LIMIT);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("permission denied: it is for nbdkit's own user alone"),
        "{told}"
    );
}
