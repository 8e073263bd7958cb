// SPDX-License-Identifier: BSD-3-Clause
//! The journal's bound, before a server that makes nothing permanent any more.

mod common;

use common::scripted::bench::Bench;
use common::scripted::disk::Disk;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, cmd, cmd_flag, errno};

const BLOCK: u32 = 512;

/// A lasting write into zeroes makes two entries of one. What ends that is a flush, and where there is none
/// the write fails.
#[test]
fn lasting_writes_into_zeroes_do_not_outgrow_the_journal() {
    let bench = Bench::new(&["reconnect=30", "replay=1K"]);
    let served = bench.play(|peer| {
        let mut disk = Disk::new(Offer::default().size);
        peer.negotiate(&Offer::default())?;
        loop {
            let request = peer.request()?;
            match request.kind {
                cmd::DISC => return Ok(()),
                cmd::FLUSH => {
                    peer.answered(&request);
                    peer.send(&wire::simple(request.cookie, errno::EIO))?;
                }
                _ => peer.answer(&request, &mut disk)?,
            }
        }
    });
    let mut client = bench.open();
    assert_eq!(client.zero(0, 128 * BLOCK, 0), Ok(()));
    let mut lasting = |place: u32| {
        let offset = u64::from(2 * place + 1) * u64::from(BLOCK);
        let payload = [7; BLOCK as usize];
        let cookie = client.submit(cmd::WRITE, cmd_flag::FUA, offset, BLOCK, &payload);
        client.wait(cookie)
    };
    let taken = (0..60)
        .take_while(|place| lasting(*place) == Ok(()))
        .count();
    // An entry counts for 128 bytes, and each write is one more.
    assert_eq!(taken, 8, "with room for eight entries");
    client.close();
    served.finished("a server that flushes nothing");
}
