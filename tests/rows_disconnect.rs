// SPDX-License-Identifier: BSD-3-Clause
//! Rows Z of the catalogue, except the cuts of rows_cut.rs: servers that leave, stop reading or stop answering.

mod common;

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use common::front::Front;
use common::nbdkit::forward;
use common::process::eventually;
use common::scripted::Gate;
use common::scripted::bench::{Bench, LENGTH, OFFSET, lost, still_lost};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::cmd;

/// Far more than any socket buffer holds.
const LARGE: usize = 2 << 20;

/// Until when something must have happened that needs no time.
const TIMEOUT: Duration = Duration::from_secs(10);

fn roomy() -> Offer {
    Offer {
        size: 64 << 20,
        ..Offer::simple()
    }
}

#[test]
fn z2_a_server_that_leaves_with_sixteen_writes_queued_wakes_all_of_them() {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&roomy())?;
        // One header is taken and its payload is not; closing with unread bytes resets the connection.
        assert_eq!(peer.request_header()?.kind, cmd::WRITE);
        Ok(())
    });

    let mut front = bench.open();
    let data = vec![1; LARGE];
    let writes: Vec<u64> = (0..16)
        .map(|i| front.submit_write(i * LARGE as u64, &data))
        .collect();
    for write in writes {
        lost("Z2", front.wait(write));
    }
    still_lost("Z2", &mut front);
    front.close();

    ticket.finished("Z2");
    bench.serves_the_next("Z2");
}

#[test]
fn z2_a_server_that_stops_sending_is_gone() {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        peer.request()?;
        peer.shutdown(Shutdown::Write)?;
        peer.expect_closed()
    });

    let mut front = bench.open();
    lost("Z2", front.read(OFFSET, LENGTH).map(drop));
    still_lost("Z2", &mut front);
    front.close();

    ticket.finished("Z2");
    bench.serves_the_next("Z2");
}

#[test]
fn z2_a_server_that_stops_receiving_is_gone_at_the_next_request() {
    let mut bench = Bench::new(&[]);
    let (deaf, noticed) = (Gate::default(), Gate::default());
    let ticket = bench.play({
        let (deaf, noticed) = (deaf.clone(), noticed.clone());
        move |peer| {
            peer.negotiate(&Offer::simple())?;
            peer.request()?;
            peer.shutdown(Shutdown::Read)?;
            deaf.open();
            noticed.pass();
            Ok(())
        }
    });

    let mut front = bench.open();
    let read = front.submit_read(OFFSET, LENGTH);
    deaf.pass();
    // The first request could still be answered, but a connection that takes no second one is dead.
    lost("Z2 write", front.write(OFFSET, &[1; 512]));
    lost("Z2 read", front.wait_read(read).map(drop));
    noticed.open();
    still_lost("Z2", &mut front);
    front.close();

    ticket.finished("Z2");
    bench.serves_the_next("Z2");
}

#[test]
fn z2_a_server_that_leaves_between_requests_is_noticed_by_the_next() {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        let request = peer.request()?;
        peer.answer(&request, &mut Disk::new(1 << 20))
    });

    let mut front = bench.open();
    assert_eq!(
        front.read(OFFSET, LENGTH),
        Ok(pattern(OFFSET, LENGTH as usize))
    );
    ticket.finished("Z2 idle");
    still_lost("Z2 idle", &mut front);
    front.close();

    bench.serves_the_next("Z2 idle");
}

#[test]
fn z3_a_server_that_stops_reading_is_given_up_at_the_deadline() {
    let mut bench = Bench::new(&["request-timeout=2"]);
    let stuck = Gate::default();
    let others_done = Gate::default();
    let ticket = bench.play({
        let (stuck, others_done) = (stuck.clone(), others_done.clone());
        move |peer| {
            peer.negotiate(&roomy())?;
            peer.request_header()?;
            stuck.open();
            others_done.pass();
            peer.expect_closed()
        }
    });

    let mut front = bench.open();
    let write = front.submit_write(0, &vec![1; 8 * LARGE]);
    stuck.pass();
    // Another client of the same nbdkit has a connection of its own and notices nothing.
    bench.serves_the_next("Z3 meanwhile");
    lost("Z3", front.wait(write));
    others_done.open();
    still_lost("Z3", &mut front);
    front.close();

    ticket.ended("Z3");
    bench.serves_the_next("Z3");
}

#[test]
fn z4_a_server_that_stops_answering_is_given_up_at_the_deadline() {
    let mut bench = Bench::new(&["request-timeout=2"]);
    // One connection for each command, so that all wait for the same two seconds.
    let mut waiting = Vec::new();
    for kind in [
        cmd::READ,
        cmd::WRITE,
        cmd::FLUSH,
        cmd::TRIM,
        cmd::WRITE_ZEROES,
        cmd::CACHE,
    ] {
        let ticket = bench.play(|peer| {
            peer.negotiate(&Offer::default())?;
            peer.request()?;
            peer.expect_closed()
        });
        let mut front = bench.open();
        let cookie = match kind {
            cmd::WRITE => front.submit_write(OFFSET, &[1; 512]),
            cmd::FLUSH => front.submit(kind, 0, 0, 0, &[]),
            _ => front.submit(kind, 0, OFFSET, LENGTH, &[]),
        };
        waiting.push((format!("Z4 command {kind}"), ticket, front, cookie));
    }

    for (row, ticket, mut front, cookie) in waiting {
        lost(&row, front.wait(cookie));
        still_lost(&row, &mut front);
        front.close();
        ticket.finished(&row);
    }
    bench.serves_the_next("Z4");
}

#[test]
fn z4_a_slow_server_within_the_deadline_is_waited_for() {
    let mut bench = Bench::new(&["request-timeout=10"]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        let request = peer.request()?;
        peer.silence(Duration::from_millis(500))?;
        let mut disk = Disk::new(1 << 20);
        peer.answer(&request, &mut disk)?;
        peer.serve(&mut disk)
    });

    let mut front = bench.open();
    assert_eq!(
        front.read(OFFSET, LENGTH),
        Ok(pattern(OFFSET, LENGTH as usize))
    );
    front.close();

    ticket.finished("Z4 slow");
    bench.serves_the_next("Z4 slow");
}

#[test]
fn z5_a_server_that_keeps_the_connection_after_disc_is_left() {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        let last = peer.request()?;
        assert_eq!(last.kind, cmd::DISC);
        // The plugin may wait for us five seconds; the deadline of a step is beyond that.
        peer.expect_closed_entirely()
    });

    // Returns when nbdkit has closed, which is after the plugin's close.
    bench.open().close();

    ticket.finished("Z5");
    bench.serves_the_next("Z5");
}

#[test]
fn z6_a_second_client_of_a_server_for_one_is_given_up_at_the_deadline() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = directory.path().join("one.sock");
    // The kernel accepts for a listener that never does.
    let listener = UnixListener::bind(&upstream).expect("listen");
    let mut nbdkit = forward(directory.path(), &upstream, &["handshake-timeout=1"]);

    assert!(Front::open(nbdkit.socket()).is_err());

    let explanation = nbdkit.explanation();
    assert!(explanation.contains("handshake"), "{explanation}");
    assert!(nbdkit.alive());
    drop(listener);
}

#[test]
fn z6_a_server_with_a_full_queue_is_given_up_at_the_deadline() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = directory.path().join("full.sock");
    let listener = UnixListener::bind(&upstream).expect("listen");
    shorten_queue(&listener);
    let queued = UnixStream::connect(&upstream).expect("the first one fits");
    let mut nbdkit = forward(directory.path(), &upstream, &["connect-timeout=1"]);

    assert!(Front::open(nbdkit.socket()).is_err());

    let explanation = nbdkit.explanation();
    assert!(
        explanation.contains("connect") && explanation.contains("full.sock"),
        "{explanation}"
    );
    assert!(nbdkit.alive());
    drop(queued);
}

/// Makes room for a single connection that was not accepted yet: the least that the kernel can do.
fn shorten_queue(listener: &UnixListener) {
    // SAFETY: listen takes a descriptor, which `listener` keeps open, and a number.
    let result = unsafe { libc::listen(listener.as_raw_fd(), 0) };
    assert_eq!(result, 0, "shorten the queue");
}

/// Waits for the next in the queue, but not for ever.
fn accept(listener: &UnixListener) -> UnixStream {
    listener
        .set_nonblocking(true)
        .expect("a listener can do this");
    let stream = eventually("somebody connects", TIMEOUT, || listener.accept().ok()).0;
    stream.set_nonblocking(false).expect("a stream can do this");
    stream
}

#[test]
fn z6_a_full_queue_that_gets_room_in_time_is_no_error() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = directory.path().join("scripted.sock");
    let listener = UnixListener::bind(&upstream).expect("listen");
    shorten_queue(&listener);
    let queued = UnixStream::connect(&upstream).expect("the first one fits");
    let nbdkit = forward(directory.path(), &upstream, &[]);

    std::thread::scope(|scope| {
        let opening = scope.spawn(|| Front::open(nbdkit.socket()).map(Front::close));
        // nbdkit logs the client before it opens the plugin, so soon after this the plugin is waiting.
        eventually("nbdkit has a client", TIMEOUT, || {
            nbdkit
                .stderr()
                .contains("accepted connection")
                .then_some(())
        });
        drop(accept(&listener));
        drop(queued);
        let mut peer = Peer::new(accept(&listener), false);
        peer.negotiate(&Offer::default()).expect("a good handshake");
        peer.serve(&mut Disk::new(1 << 20)).expect("a good end");
        assert!(opening.join().expect("no panic").is_ok());
    });
}

#[test]
fn a_server_that_is_not_there_is_explained() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut nbdkit = forward(directory.path(), &directory.path().join("nobody.sock"), &[]);

    assert!(Front::open(nbdkit.socket()).is_err());

    let explanation = nbdkit.explanation();
    assert!(
        explanation.contains("connect") && explanation.contains("nobody.sock"),
        "{explanation}"
    );
    assert!(nbdkit.alive());
}
