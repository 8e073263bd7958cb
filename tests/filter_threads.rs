// SPDX-License-Identifier: BSD-3-Clause
//! A filter's own thread makes requests, of which nbdkit does not know when it ends.

mod common;

use std::time::Duration;

use common::front::Front;
use common::nbdkit::forward;
use common::need;
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::cmd;
use common::scripted::{Gate, Scripted};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_request_of_a_filter_does_not_outlive_the_plugin() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let extra = ["--filter=readahead", "close-timeout=300ms"];
    let mut front = forward(directory.path(), server.socket(), &extra);
    let hangs = Gate::default();
    server.play({
        let hangs = hangs.clone();
        move |peer: &mut Peer| {
            let mut disk = Disk::new(1 << 20);
            peer.negotiate(&Offer::default())?;
            loop {
                let request = peer.request()?;
                match request.kind {
                    cmd::CACHE => hangs.open(),
                    cmd::DISC => return peer.expect_closed(),
                    _ => peer.answer(&request, &mut disk)?,
                }
            }
        }
    });
    let mut client = Front::open(front.socket()).expect("an export");
    for offset in [0, 512] {
        assert_eq!(client.read(offset, 512), Ok(pattern(offset, 512)));
    }
    hangs.pass();
    // In this order nbdkit has no time to close the filter, which would wait for its thread.
    front.signal(libc::SIGTERM);
    drop(client);
    let status = front.wait_timeout(LIMIT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}: {}",
        front.stderr()
    );
}
