// SPDX-License-Identifier: BSD-3-Clause
//! Clients that end together: what hangs at one of them costs the others nothing.

mod common;

use std::thread;
use std::time::Duration;

use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::scripted::disk::Disk;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{cmd, errno};
use common::scripted::{Gate, Scripted, Ticket};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// nbdkit, a client whose read hangs, and another one that wrote and was answered. The script of the
/// latter's server ends well only if it is asked for a flush, which takes it a moment, and told goodbye.
fn two_clients(server: &Scripted, front: &Nbdkit) -> (Front, u64, Front, Ticket) {
    let taken = Gate::default();
    server.play({
        let taken = taken.clone();
        move |peer: &mut Peer| {
            peer.negotiate(&Offer::default())?;
            peer.request()?;
            taken.open();
            peer.expect_closed()
        }
    });
    let open = || Front::open(front.socket()).expect("an export");
    let mut hanging = open();
    let read = hanging.submit_read(0, 512);
    taken.pass();
    let script = server.play(|peer: &mut Peer| {
        let mut disk = Disk::new(1 << 20);
        peer.negotiate(&Offer::default())?;
        for wanted in [cmd::WRITE, cmd::FLUSH] {
            let request = peer.request()?;
            assert_eq!(request.kind, wanted);
            if wanted == cmd::FLUSH {
                thread::sleep(Duration::from_millis(300));
            }
            peer.answer(&request, &mut disk)?;
        }
        assert_eq!(peer.request()?.kind, cmd::DISC);
        Ok(())
    });
    let mut writing = open();
    assert_eq!(writing.write(0, &[1; 512]), Ok(()));
    (hanging, read, writing, script)
}

fn ends(front: &mut Nbdkit) {
    let status = front.wait_timeout(LIMIT);
    let log = front.stderr();
    assert!(status.is_some_and(|status| status.success()), "{log}");
    assert!(!log.contains("may be lost"), "{log}");
}

#[test]
fn a_client_that_stays_longer_is_flushed_all_the_same() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let mut front = forward(directory.path(), server.socket(), &["close-timeout=1"]);
    let (hanging, read, writing, script) = two_clients(&server, &front);
    front.signal(libc::SIGTERM);
    assert_eq!(hanging.wait_read(read), Err(errno::ESHUTDOWN));
    drop(hanging);
    // The time of the one that hung is over, and nbdkit waits for the one that does nothing.
    drop(writing);
    script.finished("the flush before the end");
    ends(&mut front);
}

#[test]
fn clients_that_leave_at_once_are_flushed_after_the_one_that_hangs() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let mut front = forward(directory.path(), server.socket(), &["close-timeout=1"]);
    let (hanging, _, writing, script) = two_clients(&server, &front);
    front.signal(libc::SIGTERM);
    // Now nbdkit calls no `close`: what wrote is flushed when all clients are gone.
    drop((hanging, writing));
    script.finished("the flush before the end");
    ends(&mut front);
}
