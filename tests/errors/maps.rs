// SPDX-License-Identifier: BSD-3-Clause
//! What is said of extents that cannot be had.

use std::fs::File;
use std::process::Command;

use super::common::clients::{LIMIT, text};
use super::common::nbdkit::Nbdkit;
use super::common::plugin;
use super::common::process::run;
use super::common::scripted::peer::Offer;
use super::common::scripted::wire::{self, opt, rep};
use super::{Case, last_error, scripted_opening, starting};

pub const CASES: &[Case] = &[
    Case {
        item: "‘extents=by-name’ needs ‘dynamic-export=true’",
        text: "‘extents=by-name’ needs ‘dynamic-export=true’",
        happen: |dir| starting(dir, &["socket=s", "extents=by-name"]),
    },
    Case {
        item: "cannot use ‘extents=list’ with ‘dynamic-export’: it is about one ‘export’",
        text: "cannot use ‘extents=list’ with ‘dynamic-export’: it is about one ‘export’",
        happen: |dir| starting(dir, &["socket=s", "dynamic-export=1", "extents=list"]),
    },
    Case {
        item: "cannot use ‘extents=list’ with nbdkit -s: standard output is the client's",
        text: "cannot use ‘extents=list’ with nbdkit -s: standard output is the client's",
        happen: |_| {
            let mut command = Command::new("nbdkit");
            command.arg("-s").arg(plugin());
            command.args(["socket=s", "extents=list"]);
            last_error(&String::from_utf8_lossy(&run(&mut command, LIMIT).stderr))
                .trim_end()
                .to_owned()
        },
    },
    Case {
        item: "cannot use ‘extents=list’ with ‘servers’: which contexts there are is a question for one server",
        text: "cannot use ‘extents=list’ with ‘servers’: which contexts there are is a question for one server",
        happen: |dir| {
            let two = ["socket=s", "socket=t", "servers=failover", "extents=list"];
            starting(dir, &two)
        },
    },
    Case {
        item: "cannot use ‘extents’ other than base:allocation with ‘servers’, unless servers-same-disk=true says \
               that there is one disk: each has a map of its own",
        text: "cannot use ‘extents’ other than base:allocation with ‘servers’, unless servers-same-disk=true says \
               that there is one disk: each has a map of its own",
        happen: |dir| {
            let map = "extents=qemu:dirty-bitmap:b";
            starting(dir, &["socket=s", "socket=t", "servers=spread", map])
        },
    },
    Case {
        item: "cannot use ‘probe’ with ‘extents=list’: it tells the contexts, too",
        text: "cannot use ‘probe’ with ‘extents=list’: it tells the contexts, too",
        happen: |dir| starting(dir, &["socket=s", "probe=1", "extents=list"]),
    },
    Case {
        item: "cannot use ‘probe’ with nbdkit -s: standard output is the client's",
        text: "cannot use ‘probe’ with nbdkit -s: standard output is the client's",
        happen: |_| {
            let mut command = Command::new("nbdkit");
            command.arg("-s").arg(plugin());
            command.args(["socket=s", "probe=json"]);
            last_error(&String::from_utf8_lossy(&run(&mut command, LIMIT).stderr))
                .trim_end()
                .to_owned()
        },
    },
    Case {
        item: "cannot write to standard output",
        text: "cannot write to standard output",
        happen: |dir| {
            let server = Nbdkit::start(dir, &["memory", "1M"]);
            let full = File::options().write(true).open("/dev/full");
            let mut command = Command::new("nbdkit");
            command.arg(plugin());
            command.arg(format!("socket={}", text(server.socket())));
            let output = command
                .arg("probe=1")
                .stdout(full.expect("there is one"))
                .output();
            let output = output.expect("nbdkit");
            last_error(&String::from_utf8_lossy(&output.stderr))
                .trim_end()
                .to_owned()
        },
    },
    Case {
        item: "cannot use ‘quirks=X’ with ‘extents’ other than base:allocation: no context is asked for then",
        text: "cannot use ‘quirks=no-meta’ with ‘extents’ other than base:allocation: no context is asked for then",
        happen: |dir| {
            let extents = "extents=qemu:dirty-bitmap:b";
            starting(dir, &["socket=s", "quirks=no-meta", extents])
        },
    },
    Case {
        item: "cannot use ‘quirks=no-opt-go’ with ‘extents=by-name’: only NBD_OPT_GO tells which exports there are \
               not",
        text: "cannot use ‘quirks=no-opt-go’ with ‘extents=by-name’: only NBD_OPT_GO tells which exports there are \
               not",
        happen: |dir| {
            let by_name = ["dynamic-export=true", "extents=by-name"];
            starting(
                dir,
                &[&["socket=s", "quirks=no-opt-go"], &by_name[..]].concat(),
            )
        },
    },
    Case {
        item: "handshake: the server has no context X for export \"X\": ...",
        text: "DIR/scripted.sock: handshake: the server has no context qemu:dirty-bitmap:b for export \"\": it \
               has none",
        happen: |dir| {
            let offer = Offer {
                contexts: Vec::new(),
                ..Offer::default()
            };
            let extents = ["extents=qemu:dirty-bitmap:b"];
            scripted_opening(dir, &extents, move |peer| peer.negotiate(&offer))
        },
    },
    Case {
        item: "handshake: the server has several dirty bitmaps for export \"X\": ... name one of them",
        text: "DIR/scripted.sock: handshake: the server has several dirty bitmaps for export \"\": \
               qemu:dirty-bitmap:a, qemu:dirty-bitmap:b: name one of them",
        happen: |dir| {
            scripted_opening(dir, &["extents=qemu:dirty-bitmap:*"], |peer| {
                let asked = peer.greet_until(opt::LIST_META_CONTEXT, &Offer::default())?;
                for (id, name) in [(1, "qemu:dirty-bitmap:a"), (2, "qemu:dirty-bitmap:b")] {
                    peer.reply(asked.option, rep::META_CONTEXT, &wire::context(id, name))?;
                }
                peer.reply(asked.option, rep::ACK, &[])?;
                peer.expect_closed()
            })
        },
    },
];
