// SPDX-License-Identifier: BSD-3-Clause
//! A server that announces its end again and again: what was left for it is let go of.

mod common;

use common::front::Front;
use common::nbdkit::forward;
use common::need;
use common::process::eventually;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, cmd, errno};
use common::scripted::{Gate, Scripted};
use std::time::Duration;

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);
const ROUNDS: usize = 10;

#[test]
fn a_shared_connection_that_was_left_is_closed() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let end = Gate::default();
    // Where a round takes long there may be more than one for it.
    for _ in 0..3 * ROUNDS {
        let end = end.clone();
        server.play(move |peer: &mut Peer| {
            peer.negotiate(&Offer::simple())?;
            loop {
                let request = peer.request()?;
                if request.kind == cmd::DISC {
                    // It does not even close them.
                    end.pass();
                    return Ok(());
                }
                peer.send(&wire::simple(request.cookie, errno::ESHUTDOWN))?;
                peer.answered(&request);
            }
        });
    }
    let front = forward(directory.path(), server.socket(), &["shared=true"]);
    let mut first = None;
    for _ in 0..ROUNDS {
        let mut client = Front::open(front.socket()).expect("an export");
        assert_eq!(client.read(0, 512), Err(errno::ESHUTDOWN));
        client.close();
        first.get_or_insert_with(|| front.descriptors());
    }
    // The first one, and the one that the next client would find.
    let most = first.expect("rounds");
    eventually("the connections are closed", LIMIT, || {
        (front.descriptors() <= most).then_some(())
    });
    end.open();
}
