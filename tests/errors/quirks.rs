// SPDX-License-Identifier: BSD-3-Clause
//! Messages that name the quirk by which a server can be used after all, and those about quirks.

use std::path::Path;

use super::common::front::Front;
use super::common::nbdkit::forward;
use super::common::scripted::Scripted;
use super::common::scripted::peer::Offer;
use super::common::scripted::wire::{self, errno, opt, rep};
use super::{Case, last_error, scripted_opening, serving, starting};

pub const CASES: &[Case] = &[
    Case {
        item: "KEY=VALUE: must ...",
        text: "quirks=no-such: must be a list, with commas, of no-opt-go, no-structured, no-extended, extended, \
               no-meta, max-request=SIZE, max-status=SIZE and max-zero=SIZE",
        happen: |dir| starting(dir, &["socket=s", "quirks=no-such"]),
    },
    Case {
        item: "KEY=VALUE: must ...",
        text: "quirks=max-request=1000: must be a multiple of 512, from 512 to 64M",
        happen: |dir| starting(dir, &["socket=s", "quirks=no-meta,max-request=1000"]),
    },
    Case {
        item: "KEY=VALUE: must ...",
        text: "quirks=max-zero=0: must be a multiple of 512, and not 0",
        happen: |dir| starting(dir, &["socket=s", "quirks=max-zero=0"]),
    },
    Case {
        item: "quirks: ‘X’ is given twice",
        text: "quirks: ‘no-meta’ is given twice",
        happen: |dir| starting(dir, &["socket=s", "quirks=no-meta,no-meta"]),
    },
    Case {
        item: "quirks: cannot mix ‘extended’ with ‘X’",
        text: "quirks: cannot mix ‘extended’ with ‘no-opt-go’",
        happen: |dir| starting(dir, &["socket=s", "quirks=extended,no-opt-go"]),
    },
    Case {
        item: "handshake: ... (waiting for its reply to X; quirks=VALUE does not ask)",
        text: "DIR/scripted.sock: handshake: timed out after 0.1 seconds (waiting for its reply to \
               NBD_OPT_EXTENDED_HEADERS; quirks=no-extended does not ask)",
        happen: |dir| silent(dir, opt::EXTENDED_HEADERS),
    },
    Case {
        item: "handshake: ... (waiting for its reply to X; quirks=VALUE does not ask)",
        text: "DIR/scripted.sock: handshake: timed out after 0.1 seconds (waiting for its reply to \
               NBD_OPT_STRUCTURED_REPLY; quirks=no-structured does not ask)",
        happen: |dir| silent(dir, opt::STRUCTURED_REPLY),
    },
    Case {
        item: "handshake: ... (waiting for its reply to X; quirks=VALUE does not ask)",
        text: "DIR/scripted.sock: handshake: timed out after 0.1 seconds (waiting for its reply to \
               NBD_OPT_SET_META_CONTEXT; quirks=no-meta does not ask)",
        happen: |dir| silent(dir, opt::SET_META_CONTEXT),
    },
    Case {
        item: "handshake: ... (waiting for its reply to X; quirks=VALUE does not ask)",
        text: "DIR/scripted.sock: handshake: timed out after 0.1 seconds (waiting for its reply to \
               NBD_OPT_GO; quirks=no-opt-go does not ask)",
        happen: |dir| silent(dir, opt::GO),
    },
    Case {
        item: "handshake: server refused NBD_OPT_GO: the server does not know it, although it agreed to extended \
               headers (quirks=no-extended)",
        text: "DIR/scripted.sock: handshake: server refused NBD_OPT_GO: the server does not know it, although it \
               agreed to extended headers (quirks=no-extended)",
        happen: |dir| {
            scripted_opening(dir, &[], |peer| {
                peer.greet_until(opt::GO, &Offer::extended())?;
                peer.reply(opt::GO, rep::ERR_UNSUP, b"")?;
                peer.expect_closed()
            })
        },
    },
    Case {
        item: "handshake: server refused NBD_OPT_GO: the export needs extended headers",
        text: "DIR/scripted.sock: handshake: server refused NBD_OPT_GO: the export needs extended headers",
        happen: |dir| {
            scripted_opening(dir, &["quirks=no-extended"], |peer| {
                peer.greet_until(opt::GO, &Offer::default())?;
                peer.reply(opt::GO, rep::ERR_EXT_HEADER_REQD, b"")?;
                peer.expect_closed()
            })
        },
    },
    Case {
        item: "server answered ... (it may be too long: quirks=max-request=SIZE)",
        text: "DIR/scripted.sock: NBD_CMD_READ of 131072 bytes at offset 0: server answered NBD_EINVAL (it may be \
               too long: quirks=max-request=SIZE)",
        happen: too_long,
    },
    Case {
        item: "connection lost: protocol violation: a message of X although extended headers were agreed \
               (quirks=no-extended does without them)",
        text: "DIR/scripted.sock: connection lost: protocol violation: a message of simple replies although \
               extended headers were agreed (quirks=no-extended does without them)",
        happen: |dir| {
            serving(dir, &Offer::extended(), |peer| {
                let request = peer.request()?;
                peer.send(&wire::simple(request.cookie, errno::EIO))?;
                peer.expect_closed()
            })
        },
    },
];

/// What is told of a server that falls silent when it is asked this.
fn silent(dir: &Path, option: u32) -> String {
    scripted_opening(dir, &["handshake-timeout=100ms"], move |peer| {
        peer.greet_until(option, &Offer::default())?;
        peer.expect_closed()
    })
}

/// What is told of a server that takes less at once than it says.
fn too_long(dir: &Path) -> String {
    let server = Scripted::start(dir);
    server.play(|peer| {
        peer.negotiate(&Offer::default())?;
        let request = peer.request()?;
        peer.send(&wire::error(wire::DONE, request.cookie, errno::EINVAL, b""))
    });
    let nbdkit = forward(dir, server.socket(), &[]);
    let mut front = Front::open(nbdkit.socket()).expect("opens");
    let answer = front.read(0, 128 << 10).map(drop);
    assert_eq!(answer, Err(errno::EINVAL));
    last_error(&nbdkit.stderr())
}
