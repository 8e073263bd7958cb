// SPDX-License-Identifier: BSD-3-Clause
//! What is said of a server that was lost, with `reconnect=`, and of what is lost with it.

use std::io;
use std::path::Path;

use super::common::clients::LIMIT;
use super::common::front::Front;
use super::common::nbdkit::{Nbdkit, forward};
use super::common::process::eventually;
use super::common::scripted::Scripted;
use super::common::scripted::peer::{Offer, Peer};
use super::common::scripted::wire::{self, DONE, errno, flag};
use super::{Case, opening};

pub const CASES: &[Case] = &[
    Case {
        item: "...; trying again for ...",
        text: "DIR/scripted.sock: connection lost: the server closed the connection; trying again for up to \
               30 seconds",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30"], goes);
            lost.front.read(0, 512).expect("served in the end");
            lost.says("trying again")
        },
    },
    Case {
        item: "...; trying again for ...",
        text: "DIR/scripted.sock: connection lost: the server closed the connection; trying again for as \
               long as it takes",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=forever"], goes);
            lost.front.read(0, 512).expect("served in the end");
            lost.says("trying again")
        },
    },
    Case {
        item: "connected again after ...",
        text: "DIR/scripted.sock: connected again after ... second...",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30"], goes);
            lost.front.read(0, 512).expect("served in the end");
            lost.says("connected again")
        },
    },
    Case {
        item: "still not back after ...: ...",
        text: "DIR/scripted.sock: still not back after ... second...: handshake: the server closed the \
               connection (waiting for its greeting)",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=1"], goes);
            lost.server.close_others(true);
            lost.front.submit_read(0, 512);
            lost.says("still not back")
        },
    },
    Case {
        item: "...; not back within ...",
        text: "DIR/scripted.sock: connection lost: the server closed the connection; not back within \
               1 second (handshake: the server closed the connection (waiting for its greeting))",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=1"], goes);
            lost.server.close_others(true);
            assert_eq!(lost.front.read(0, 512), Err(errno::EIO));
            lost.says("not back within")
        },
    },
    Case {
        item: "the server is back, but ...",
        text: "DIR/scripted.sock: the server is back, but the export had 1048576 bytes, and has 512; its \
               clients have to open it anew",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30"], goes);
            lost.server.play(|peer| {
                peer.negotiate(&Offer {
                    size: 512,
                    ..Offer::default()
                })?;
                peer.expect_closed()
            });
            assert_eq!(lost.front.read(0, 512), Err(errno::EIO));
            lost.says("is back")
        },
    },
    Case {
        item: "... (5 times in a row)...",
        text: "DIR/scripted.sock: connection lost: protocol violation: ... (5 times in a row); its clients \
               have to open it anew",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30"], babbles);
            for _ in 1..5 {
                lost.server.play(|peer| {
                    peer.negotiate(&Offer::default())?;
                    babbles(peer)
                });
            }
            assert_eq!(lost.front.read(0, 512), Err(errno::EIO));
            lost.says("in a row")
        },
    },
    Case {
        item: "what was written before the connection was lost could not be written again: ...",
        text: "DIR/scripted.sock: what was written before the connection was lost could not be written \
               again: NBD_CMD_WRITE of 512 bytes at offset 0: server answered NBD_ENOSPC (full); its clients \
               have to open it anew",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30"], takes_a_write);
            lost.server.play(|peer| {
                peer.negotiate(&Offer::default())?;
                let replayed = peer.request()?;
                peer.send(&wire::error(DONE, replayed.cookie, errno::ENOSPC, b"full"))?;
                peer.expect_closed()
            });
            lost.front.write(0, &[7; 512]).expect("a write");
            assert_eq!(lost.front.read(0, 512), Err(errno::EIO));
            lost.says("could not be written again")
        },
    },
    Case {
        item: "what was written since the last flush may be lost: the last client has left",
        text: "warning: DIR/scripted.sock: what was written since the last flush may be lost: the last client \
               has left",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30"], takes_a_write);
            lost.server.close_others(true);
            lost.front.write(0, &[7; 512]).expect("a write");
            let Lost {
                server: _server,
                nbdkit,
                front,
            } = lost;
            front.close();
            says(&nbdkit, "error: ", "has left")
        },
    },
    Case {
        item: "...; what was written since the last flush may be lost",
        text: "warning: DIR/scripted.sock: connection lost: the server closed the connection; what was \
               written since the last flush may be lost",
        happen: |dir| {
            let mut lost = Lost::new(dir, &[], takes_a_write);
            lost.front.write(0, &[7; 512]).expect("a write");
            let Lost {
                server: _server,
                nbdkit,
                front,
            } = lost;
            // The server goes at the flush.
            front.close();
            says(&nbdkit, "error: ", "may be lost")
        },
    },
    Case {
        item: "what was written before the connection was lost may be missing, and nothing makes it \
               permanent (replay=0)",
        text: "DIR/scripted.sock: what was written before the connection was lost may be missing, and nothing \
               makes it permanent (replay=0)",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30", "replay=0"], takes_a_write);
            lost.front.write(0, &[7; 512]).expect("a write");
            assert_eq!(lost.front.flush(), Err(errno::EIO));
            lost.says("may be missing")
        },
    },
    Case {
        item: "the server has neither NBD_CMD_FLUSH nor NBD_CMD_FLAG_FUA, ...",
        text: "DIR/scripted.sock: the server has neither NBD_CMD_FLUSH nor NBD_CMD_FLAG_FUA, so nothing that is \
               written can be known to be permanent, and all of it would have to be kept for a reconnection: \
               use replay=0, or nbdkit -r",
        happen: |dir| {
            let server = Scripted::start(dir);
            server.play(|peer| {
                peer.negotiate(&Offer {
                    flags: flag::HAS_FLAGS | flag::SEND_WRITE_ZEROES,
                    ..Offer::default()
                })?;
                peer.request().map(drop)
            });
            opening(&forward(dir, server.socket(), &["reconnect=30"]))
        },
    },
    Case {
        item: "given up, as nobody waits for it any more",
        text: "DIR/scripted.sock: given up, as nobody waits for it any more",
        happen: |dir| {
            let mut lost = Lost::new(dir, &["reconnect=30"], goes);
            lost.server.close_others(true);
            lost.front.submit_read(0, 512);
            lost.says("trying again");
            let Lost {
                server: _server,
                nbdkit,
                front,
            } = lost;
            drop(front);
            says(&nbdkit, "debug: ", "given up")
        },
    },
];

/// A server that will be lost, and who finds out.
struct Lost {
    front: Front,
    nbdkit: Nbdkit,
    server: Scripted,
}

impl Lost {
    /// `script` plays what follows the handshake on the first connection; then it ends.
    fn new(dir: &Path, parameters: &[&str], script: fn(&mut Peer) -> io::Result<()>) -> Self {
        let server = Scripted::start(dir);
        server.play(move |peer| {
            peer.negotiate(&Offer::default())?;
            script(peer)
        });
        let hurried: &[&str] = match parameters {
            [] => &[],
            _ => &["reconnect-delay=10ms:100ms"],
        };
        let parameters = [hurried, parameters].concat();
        let nbdkit = forward(dir, server.socket(), &parameters);
        let front = Front::open(nbdkit.socket()).expect("opens");
        Self {
            front,
            nbdkit,
            server,
        }
    }

    fn says(&self, words: &str) -> String {
        says(&self.nbdkit, "error: ", words)
    }
}

/// Takes a request, and is gone.
fn goes(peer: &mut Peer) -> io::Result<()> {
    peer.request().map(drop)
}

/// Answers a request with something else.
fn babbles(peer: &mut Peer) -> io::Result<()> {
    peer.request()?;
    peer.send(&[0xaa; 64])
}

/// Answers a write, and is gone at the next request.
fn takes_a_write(peer: &mut Peer) -> io::Result<()> {
    let write = peer.request()?;
    peer.send(&wire::none(write.cookie))?;
    peer.request().map(drop)
}

/// What nbdkit says behind `kind` in a line with these words, perhaps a moment later.
pub fn says(nbdkit: &Nbdkit, kind: &str, words: &str) -> String {
    eventually(words, LIMIT, || {
        let log = nbdkit.stderr();
        let line = log
            .lines()
            .find(|line| line.contains(kind) && line.contains(words))?;
        line.split_once(kind).map(|(_, text)| text.to_owned())
    })
}
