// SPDX-License-Identifier: BSD-3-Clause
//! What is counted: requests of one kind, each sent when the one before it is answered.
//!
//! The server belongs to the parent process, which valgrind does not run. It is the scripted one
//! of the tests, because a small reply is a single write of it: nbdkit sends header and payload
//! apart, and whether they arrive together is chance, but costs the client a receive or not. A
//! long reply comes in pieces, each when the one before it has been taken.

use std::hint::black_box;
use std::io;
use std::path::Path;

use nbdkit_nbd_plugin::client::Client;
use nbdkit_nbd_plugin::client::error::Error;

use crate::common::scripted::disk::Disk;
use crate::common::scripted::peer::{Offer, Peer};
use crate::common::scripted::wire::cmd;
use crate::open::open;

/// How many requests the figure is the mean of.
pub const REQUESTS: u64 = 200;
/// Requests before those: what is done once for a thread or a connection is not counted.
const WARM_UP: u64 = 20;

/// Bytes of a reply that are sent at once. A Unix socket's queue takes so many in one go.
const PIECE: usize = 32 << 10;

/// Part of the name of the function that is counted.
pub const COUNTED: &str = "counted_requests";

/// One kind of request.
pub struct Scenario {
    /// As in the list of figures.
    pub name: &'static str,
    offer: fn() -> Offer,
    command: u16,
    length: usize,
}

pub const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "read-4k-simple",
        offer: Offer::simple,
        command: cmd::READ,
        length: 4 << 10,
    },
    Scenario {
        name: "read-4k-structured",
        offer: Offer::default,
        command: cmd::READ,
        length: 4 << 10,
    },
    Scenario {
        name: "write-4k",
        offer: Offer::default,
        command: cmd::WRITE,
        length: 4 << 10,
    },
    Scenario {
        name: "read-4k-extended",
        offer: Offer::extended,
        command: cmd::READ,
        length: 4 << 10,
    },
    Scenario {
        name: "write-4k-extended",
        offer: Offer::extended,
        command: cmd::WRITE,
        length: 4 << 10,
    },
    Scenario {
        name: "read-256k",
        offer: Offer::default,
        command: cmd::READ,
        length: 256 << 10,
    },
];

impl Scenario {
    /// The server's side, in the parent process.
    pub fn serve(&self, peer: &mut Peer) -> io::Result<()> {
        let offer = (self.offer)();
        let mut disk = Disk::new(offer.size);
        peer.negotiate(&offer)?;
        loop {
            let request = peer.request()?;
            if request.kind == cmd::DISC {
                return peer.expect_closed();
            }
            let reply = peer.right_answer(&request, &mut disk);
            peer.answered(&request);
            for piece in reply.chunks(PIECE) {
                peer.send(piece)?;
                peer.drained()?;
            }
        }
    }

    /// The client's side, under valgrind.
    pub fn run(&self, socket: &Path) -> Result<(), Error> {
        let client = open(socket)?;
        let mut buffer = vec![1; self.length];
        self.requests(&client, &mut buffer, WARM_UP)?;
        counted_requests(self, &client, &mut buffer)?;
        client.close();
        Ok(())
    }

    fn requests(&self, client: &Client, buffer: &mut [u8], count: u64) -> Result<(), Error> {
        for _ in 0..count {
            match self.command {
                cmd::READ => client.read(black_box(buffer), 0)?,
                _ => client.write(black_box(buffer), 0, false)?,
            }
        }
        Ok(())
    }
}

/// Valgrind counts while this runs; see [`COUNTED`].
#[inline(never)]
fn counted_requests(scenario: &Scenario, client: &Client, buffer: &mut [u8]) -> Result<(), Error> {
    scenario.requests(client, buffer, REQUESTS)
}
