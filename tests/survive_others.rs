// SPDX-License-Identifier: BSD-3-Clause
//! Clients whose own connection is well, while what is unflushed is written again over another one's that
//! hangs: they are not stopped, and nothing undoes what they write.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::front::Front;
use common::scripted::bench::Bench;
use common::scripted::disk::Disk;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, cmd, errno, opt};
use common::scripted::{Gate, Ticket};

const PARAMETERS: &[&str] = &["reconnect=forever"];
/// A hang bound.
const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for a wrong step to be seen; a right one is not waited for.
const A_MOMENT: Duration = Duration::from_millis(700);

const OLD: [u8; 512] = [1; 512];
const NEW: [u8; 512] = [2; 512];

/// The connection that is well. A flush of our own fails, so that what was written stays unflushed.
/// `arrived` is opened by what is new.
fn serves(bench: &Bench, arrived: &Gate) -> Ticket {
    let arrived = arrived.clone();
    bench.play(move |peer| {
        let mut disk = Disk::new(Offer::default().size);
        peer.negotiate(&Offer::default())?;
        loop {
            let request = peer.request()?;
            if request.payload == NEW {
                arrived.open();
            }
            match request.kind {
                cmd::DISC => return Ok(()),
                cmd::FLUSH => {
                    peer.answered(&request);
                    peer.send(&wire::simple(request.cookie, errno::EIO))?;
                }
                _ => peer.answer(&request, &mut disk)?,
            }
        }
    })
}

/// Another one: what is written again arrives, and nothing is answered. It closes its side only when the
/// plugin has closed its own, and nothing new may have arrived until then.
fn hangs(bench: &Bench, hanging: &Gate, arrived: &Gate) -> Ticket {
    let (hanging, arrived) = (hanging.clone(), arrived.clone());
    bench.play(move |peer| {
        peer.negotiate(&Offer::default())?;
        let request = peer.request()?;
        assert_eq!((request.kind, &request.payload[..]), (cmd::WRITE, &OLD[..]));
        hanging.open();
        peer.expect_closed()?;
        assert!(!arrived.opens_within(A_MOMENT), "it may be undone");
        Ok(())
    })
}

/// Writes what is new, and tells when that is answered.
fn write_new(mut client: Front) -> Receiver<(Front, Result<(), u32>)> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let written = client.write(0, &NEW);
        let _ = tell.send((client, written));
    });
    told
}

#[test]
fn a_client_whose_connection_hangs_when_it_comes_stops_nobody() {
    let bench = Bench::new(PARAMETERS);
    let (hanging, arrived) = (Gate::default(), Gate::default());
    let well = serves(&bench, &arrived);
    let mut client = bench.open();
    client.write(0, &OLD).expect("a write");
    let hung = hangs(&bench, &hanging, &arrived);
    let socket = bench.socket().to_owned();
    let comes = std::thread::spawn(move || Front::open(&socket).map(drop));
    hanging.pass();
    let (client, written) = write_new(client).recv_timeout(LIMIT).expect("not stopped");
    assert_eq!(written, Ok(()));
    hung.finished("hangs");
    let refused = comes.join().expect("no panic");
    assert!(refused.is_err(), "its own attempt is given up");
    let told = bench.nbdkit().stderr();
    assert!(
        told.contains("no answer to what is written again, which others wait for"),
        "{told}"
    );
    // The next one is served, with all that is unflushed.
    bench.open().close();
    client.close();
    well.finished("well");
}

#[test]
fn a_client_that_comes_back_to_one_that_hangs_stops_nobody() {
    let bench = Bench::new(PARAMETERS);
    let (hanging, arrived, cut) = (Gate::default(), Gate::default(), Gate::default());
    let well = serves(&bench, &arrived);
    let client = bench.open();
    let lost = bench.play({
        let cut = cut.clone();
        move |peer| {
            let mut disk = Disk::new(Offer::default().size);
            peer.negotiate(&Offer::default())?;
            let write = peer.request()?;
            peer.answer(&write, &mut disk)?;
            cut.pass();
            Ok(())
        }
    });
    let mut other = bench.open();
    other.write(0, &OLD).expect("a write");
    let hung = hangs(&bench, &hanging, &arrived);
    cut.open();
    lost.finished("lost");
    let read = other.submit_read(4096, 512);
    hanging.pass();
    let (client, written) = write_new(client).recv_timeout(LIMIT).expect("not stopped");
    assert_eq!(written, Ok(()));
    hung.finished("hangs");
    other.wait_read(read).expect("the next try is good");
    other.close();
    client.close();
    well.finished("well");
}

#[test]
fn what_is_written_again_for_a_client_that_has_left_is_waited_for() {
    let bench = Bench::new(PARAMETERS);
    let (hanging, arrived) = (Gate::default(), Gate::default());
    let well = serves(&bench, &arrived);
    let mut client = bench.open();
    client.write(0, &OLD).expect("a write");
    let hung = hangs(&bench, &hanging, &arrived);
    let mut stream = UnixStream::connect(bench.socket()).expect("connect to nbdkit");
    stream.read_exact(&mut [0; 18]).expect("a greeting");
    let go = wire::join(&[
        &u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes(),
        b"IHAVEOPT",
        &opt::GO.to_be_bytes(),
        &6_u32.to_be_bytes(),
        &[0; 6],
    ]);
    stream.write_all(&go).expect("ask for the export");
    hanging.pass();
    drop(stream);
    let (client, written) = write_new(client).recv_timeout(LIMIT).expect("not stopped");
    assert_eq!(written, Ok(()));
    hung.finished("hangs");
    client.close();
    well.finished("well");
}

/// A server may have to write zeroes, and only its answers show that it goes on.
#[test]
fn long_zeroes_are_written_again_in_parts() {
    const PART: u64 = 32 << 20;
    let offer = || Offer {
        size: 4 * PART,
        ..Offer::default()
    };
    let bench = Bench::new(PARAMETERS);
    let lost = bench.play(move |peer| {
        peer.negotiate(&offer())?;
        let request = peer.request()?;
        assert_eq!(request.kind, cmd::WRITE_ZEROES);
        peer.answered(&request);
        peer.send(&wire::simple(request.cookie, 0))
    });
    let back = bench.play(move |peer| {
        peer.negotiate(&offer())?;
        for (offset, length) in [(0, PART), (PART, PART), (2 * PART, 4096)] {
            let request = peer.request()?;
            assert_eq!(request.kind, cmd::WRITE_ZEROES);
            assert_eq!(
                (request.offset, u64::from(request.length)),
                (offset, length)
            );
            peer.answered(&request);
            peer.send(&wire::simple(request.cookie, 0))?;
        }
        peer.serve(&mut Disk::new(4 * PART))
    });
    let mut client = bench.open();
    let length = u32::try_from(2 * PART + 4096).expect("less than 4 GiB");
    assert_eq!(client.zero(0, length, 0), Ok(()));
    lost.finished("lost");
    client.read(0, 512).expect("a read");
    client.close();
    back.finished("back");
}
