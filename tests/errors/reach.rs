// SPDX-License-Identifier: BSD-3-Clause
//! What goes wrong on the way to a server.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use super::common::clients::program;
use super::common::nbdkit::{Nbdkit, forward, plugin_args};
use super::common::refusal::{Mode, refusal_with};
use super::{Case, opening, starting};

pub const CASES: &[Case] = &[
    Case {
        item: "KEY: could not decipher boolean (X)",
        text: "shared: could not decipher boolean (maybe)",
        happen: |dir| starting(dir, &["socket=s", "shared=maybe"]),
    },
    Case {
        item: "KEY: must not be a URI: write uri=URI",
        text: "hostname: must not be a URI: write uri=URI",
        happen: |dir| starting(dir, &["hostname=nbd://localhost"]),
    },
    Case {
        item: "KEY=VALUE: must ...",
        text: "hostname=localhost:10809: must be the host alone: write hostname=localhost port=10809",
        happen: |dir| starting(dir, &["hostname=localhost:10809"]),
    },
    Case {
        item: "KEY=VALUE: must ...",
        text: "port=no-such-service: must be the name of a TCP service that this system knows (see \
               services(5)), or a number",
        happen: |dir| starting(dir, &["hostname=localhost", "port=no-such-service"]),
    },
    Case {
        item: "KEY: could not parse number: \"X\": ...",
        text: "vsock_cid: could not parse number: \"host\": not a number (parameter ‘vsock’)",
        happen: |dir| starting(dir, &["vsock=host"]),
    },
    Case {
        item: "uri: ...",
        text: "uri: nbd:unix:PATH is not a URI: write nbd+unix:///EXPORT?socket=PATH",
        happen: |dir| starting(dir, &["nbd:unix:/run/nbd.sock"]),
    },
    Case {
        item: "uri: cannot start ssh: ...",
        text: "uri: cannot start ssh: No such file or directory",
        happen: |dir| {
            let nbdkit = program("sh", &["-c", "command -v nbdkit"]);
            symlink(nbdkit.trim_end(), dir.join("nbdkit")).expect("link");
            let only_nbdkit = |command: &mut Command| {
                command.env("PATH", dir);
            };
            refusal_with(dir, Mode::Foreground, &["nbd+ssh://far/"], only_nbdkit).0
        },
    },
    Case {
        item: "connect: ssh exited with status N: ...",
        text: "ssh:far:10809: connect: ssh exited with status 255: no route",
        happen: |dir| {
            let ssh = dir.join("ssh");
            fs::write(&ssh, "#!/bin/sh\necho no route >&2\nexit 255\n").expect("write");
            fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("mode");
            let path = std::env::var("PATH").unwrap_or_default();
            let ours_first = |command: &mut Command| {
                command.env("PATH", format!("{}:{path}", dir.display()));
            };
            let args = plugin_args(&["nbd+ssh://far/"]);
            opening(&Nbdkit::start_with(dir, &args, ours_first))
        },
    },
    Case {
        item: "connect: ...",
        text: "DIR/full: connect: timed out after 0.1 seconds: the server's queue of connections is full",
        happen: full,
    },
];

/// A Unix socket at which somebody waits, and there is no room for a second.
fn full(dir: &Path) -> String {
    use std::os::fd::AsRawFd;
    let path = dir.join("full");
    let listener = UnixListener::bind(&path).expect("bind");
    // SAFETY: listen takes plain numbers; called again it only changes the length of the queue.
    let shortened = unsafe { libc::listen(listener.as_raw_fd(), 0) };
    assert_eq!(shortened, 0, "a queue of length 0");
    let _waiting = UnixStream::connect(&path).expect("there is room for one");
    opening(&forward(dir, &path, &["connect-timeout=100ms"]))
}
