// SPDX-License-Identifier: BSD-3-Clause
//! What goes wrong with a server of `command=`, at its start and at its end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::common::clients::LIMIT;
use super::common::nbdkit::{Nbdkit, plugin_args};
use super::common::process::{eventually, run};
use super::common::refusal::{Mode, refusal_with};
use super::common::started::{Place, script, size, strs};
use super::{Case, last_error, starting};

pub const CASES: &[Case] = &[
    Case {
        item: "‘command-timeout’ parameter should only be used with ‘command’",
        text: "‘command-timeout’ parameter should only be used with ‘command’",
        happen: |dir| starting(dir, &["socket=s", "command-timeout=1"]),
    },
    Case {
        item: "command: cannot start X: ...",
        text: "command: cannot start /no/such/program: No such file or directory",
        happen: |dir| starting(dir, &["command=/no/such/program"]),
    },
    Case {
        item: "command: cannot make a directory in X: ...",
        text: "command: cannot make a directory in DIR/missing: No such file or directory",
        happen: |dir| {
            let missing = |command: &mut Command| {
                command.env("TMPDIR", dir.join("missing"));
            };
            refusal_with(dir, Mode::Foreground, &["command=true"], missing).0
        },
    },
    Case {
        item: "command=X: connect: the server exited with status N: ...",
        text: "command=sh: connect: the server exited with status 3: no disk (a server must support socket \
               activation and stay in the foreground)",
        happen: |dir| failing(dir, "echo no disk >&2; exit 3"),
    },
    Case {
        item: "command=X: connect: the server was killed by signal N: ...",
        text: "command=sh: connect: the server was killed by signal 9: no memory",
        happen: |dir| failing(dir, "echo no memory >&2; kill -9 $$"),
    },
    Case {
        item: "command=X: connect: the server could not be started again: ...",
        text: "command=DIR/server: connect: the server could not be started again: No such file or \
               directory",
        happen: |dir| {
            let server = dir.join("server");
            std::fs::write(&server, "#!/bin/sh\nrm $0; exit 1\n").expect("write");
            std::fs::set_permissions(&server, PermissionsExt::from_mode(0o700)).expect("chmod");
            starting(dir, &["command=DIR/server", "reconnect=1", "retry=1"])
        },
    },
    Case {
        item: "command=X: waiting for the server to end; another SIGTERM kills it",
        text: "warning: command=sh: waiting for the server to end; another SIGTERM kills it",
        happen: |_| {
            let place = Place::new();
            let front = waiting(&place, NEVER, &[]);
            eventually("the wait is told", LIMIT, || warned(&front))
        },
    },
    Case {
        item: "command=X: the server was killed by signal N, ...",
        text: "warning: command=sh: the server was killed by signal 9, as another signal to end asked for",
        happen: |_| {
            let place = Place::new();
            let mut front = waiting(&place, NEVER, &[]);
            eventually("nbdkit listens to signals again", LIMIT, || {
                front.signal(libc::SIGTERM);
                front.wait_timeout(std::time::Duration::from_millis(200))
            });
            last_error(&front.stderr())
        },
    },
    Case {
        item: "command=X: the server was killed by signal N, ...",
        text: "warning: command=sh: the server was killed by signal 9, since command-timeout was over",
        happen: |_| ended(NEVER, &["command-timeout=200ms"]),
    },
    Case {
        item: "command=X: the server was killed by signal N when it was told to end",
        text: "warning: command=sh: the server was killed by signal 9 when it was told to end",
        happen: |_| ended("kill -9 $$", &[]),
    },
    Case {
        item: "command=X: the server exited with status N when it was told to end",
        text: "warning: command=sh: the server exited with status 5 when it was told to end",
        happen: |_| ended("exit 5", &[]),
    },
    Case {
        item: "command=X: the server was told to end, but it still runs",
        text: "warning: command=sh: the server was told to end, but it still runs",
        happen: unusable,
    },
];

/// Nobody can wait so long.
const NEVER: &str = "sleep 1000";

/// Why nbdkit does not start with this script as its server.
fn failing(dir: &Path, script: &str) -> String {
    starting(dir, &["command=sh", "arg=-c", &format!("arg={script}")])
}

/// nbdkit that waits for its server, which was told to end and does `last`.
fn waiting(place: &Place, last: &str, parameters: &[&str]) -> Nbdkit {
    // A nbdkit serves, as a child of the script.
    let server = script(&format!(
        "trap 'echo yes > \"$DIR/asked\"; {last}' TERM
         sh -c 'export LISTEN_PID=$$; exec nbdkit --exit-with-parent -f memory 1M' &
         while :; do wait; done"
    ));
    let args = [&strs(&server), parameters].concat();
    let front = place.start(&args);
    assert_eq!(size(&front), "1048576");
    front.signal(libc::SIGTERM);
    eventually("the server is told to end", LIMIT, || {
        place.path().join("asked").exists().then_some(())
    });
    front
}

/// What nbdkit says last about the end of such a server.
fn ended(last: &str, parameters: &[&str]) -> String {
    let place = Place::new();
    let mut front = waiting(&place, last, parameters);
    assert!(front.wait_timeout(LIMIT).is_some(), "{}", front.stderr());
    last_error(&front.stderr())
}

fn warned(front: &Nbdkit) -> Option<String> {
    let stderr = front.stderr();
    stderr.contains("error: ").then(|| last_error(&stderr))
}

/// A server that says nothing, and does not end when it is told to.
fn unusable(dir: &Path) -> String {
    let place = Place::new();
    let server = script("trap '' TERM; while :; do sleep 0.2; done");
    let limits = ["handshake-timeout=100ms", "command-timeout=8"];
    let mut command = Command::new("nbdkit");
    command
        .current_dir(dir)
        .args(["-U", "-", "-f"])
        .args(plugin_args(&[&strs(&server)[..], &limits].concat()));
    place.prepare(&mut command);
    let output = run(&mut command, LIMIT);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // The one that keeps nbdkit from starting comes first or last; this is about the other.
    let told = stderr
        .lines()
        .find(|line| line.contains("error: warning: "));
    last_error(told.unwrap_or_else(|| panic!("no warning:\n{stderr}")))
}
