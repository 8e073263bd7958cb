// SPDX-License-Identifier: BSD-3-Clause
//! What is said of the socket for commands, and of what commands do.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::common::control::{Commander, parameter};
use super::common::front::Front;
use super::common::nbdkit::{Nbdkit, forward};
use super::common::upstream::memory;
use super::reconnect::says;
use super::{Case, starting};

pub const CASES: &[Case] = &[
    Case {
        item: "control=FILE: somebody listens there already",
        text: "control=DIR/taken: somebody listens there already",
        happen: |dir| {
            let _taken = UnixListener::bind(dir.join("taken")).expect("a socket");
            starting(dir, &["socket=s", "control=DIR/taken"])
        },
    },
    Case {
        item: "control=FILE: there is a file that is no socket",
        text: "control=DIR/file: there is a file that is no socket",
        happen: |dir| {
            fs::write(dir.join("file"), "").expect("a file");
            starting(dir, &["socket=s", "control=DIR/file"])
        },
    },
    Case {
        item: "control=FILE: its directory: ...",
        text: "control=DIR/none/socket: its directory: No such file or directory",
        happen: |dir| starting(dir, &["socket=s", "control=DIR/none/socket"]),
    },
    Case {
        item: "KEY=VALUE: must ...",
        text: "control=/...: must be at most 107 bytes long with its directory, as it is a Unix socket",
        happen: |dir| {
            let long = format!("control=/{}", "s".repeat(107));
            starting(dir, &["socket=s", &long])
        },
    },
    Case {
        item: "not sent, as all requests wait until control=... says resume: ...",
        text: "DIR/nbdkit-...: not sent, as all requests wait until control=... says resume: timed out after \
               0.2 seconds",
        happen: |dir| {
            let mut stand = Stand::new(dir, &["request-timeout=200ms"]);
            stand.commander.does("drain");
            assert!(stand.client.read(0, 512).is_err());
            says(&stand.front, "error: ", "says resume")
        },
    },
    Case {
        item: "left for a new connection, as control=... says; trying again for ...",
        text: "DIR/nbdkit-...: left for a new connection, as control=... says; trying again for up to 30 seconds",
        happen: |dir| {
            let mut stand = Stand::new(dir, &["reconnect=30"]);
            stand.commander.does("reconnect");
            says(&stand.front, "error: ", "left for a new connection")
        },
    },
    Case {
        item: "control: drained: requests wait until resume",
        text: "control: drained: requests wait until resume",
        happen: |dir| {
            let mut stand = Stand::new(dir, &[]);
            stand.commander.does("drain");
            says(&stand.front, "error: ", "drained")
        },
    },
    Case {
        item: "control: resumed after ...",
        text: "control: resumed after ... second...",
        happen: |dir| {
            let mut stand = Stand::new(dir, &[]);
            stand.commander.does("drain");
            stand.commander.does("resume");
            says(&stand.front, "error: ", "resumed")
        },
    },
];

/// Somebody who gives commands, and a client.
struct Stand {
    client: Front,
    commander: Commander,
    front: Nbdkit,
    _server: Nbdkit,
}

impl Stand {
    fn new(dir: &Path, extra: &[&str]) -> Self {
        let server = memory(dir, "1M");
        let control = parameter(dir);
        let front = forward(dir, server.socket(), &[&[control.as_str()], extra].concat());
        Self {
            client: Front::of(&front),
            commander: Commander::new(dir),
            front,
            _server: server,
        }
    }
}
