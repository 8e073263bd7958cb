// SPDX-License-Identifier: BSD-3-Clause
//! Clients that leave, or come, while something else is on its way: nobody is cut off, nobody waits for
//! ever, and what is lost is told.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::front::Front;
use common::nbdkit::forward;
use common::process::eventually;
use common::scripted::bench::Bench;
use common::scripted::disk::Disk;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, cmd, cmd_flag, errno, flag, opt};
use common::scripted::{Gate, Script, Scripted};

const PATIENT: &str = "reconnect=30";
const DATA: [u8; 512] = [7; 512];
/// A hang bound.
const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for a wrong step to be seen; a right one is not waited for.
const A_MOMENT: Duration = Duration::from_millis(700);

fn disk() -> Disk {
    Disk::new(Offer::default().size)
}

/// Answers the next request, which must be this one.
fn serve_one(peer: &mut Peer, disk: &mut Disk, kind: u16) -> std::io::Result<()> {
    let request = peer.request()?;
    assert_eq!(request.kind, kind, "{request:?}");
    peer.answer(&request, disk)
}

#[test]
fn client_that_leaves_does_not_cut_off_our_own_flush() {
    let bench = Bench::new(&[PATIENT]);
    let (flushing, left) = (Gate::default(), Gate::default());
    let (begun, go_on) = (flushing.clone(), left.clone());
    let script = bench.play(move |peer| {
        let mut disk = disk();
        peer.negotiate(&Offer::default())?;
        serve_one(peer, &mut disk, cmd::WRITE)?;
        let flush = peer.request()?;
        assert_eq!(flush.kind, cmd::FLUSH);
        begun.open();
        go_on.pass();
        assert!(!peer.readable_within(A_MOMENT), "cut off");
        peer.answer(&flush, &mut disk)?;
        assert_eq!(peer.request()?.kind, cmd::DISC);
        peer.expect_closed()
    });
    let mut client = bench.open();
    client.write(0, &DATA).expect("a write");
    flushing.pass();
    drop(client);
    left.open();
    script.finished("flush on its way");
    let told = bench.nbdkit().stderr();
    assert!(!told.contains("may be lost"), "{told}");
}

#[test]
fn a_flush_of_our_own_that_finds_the_server_lost_is_made_up_for() {
    let bench = Bench::new(&[PATIENT]);
    let first = bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        serve_one(peer, &mut disk(), cmd::WRITE)?;
        assert_eq!(peer.request()?.kind, cmd::FLUSH);
        Ok(())
    });
    let second = bench.play(|peer| {
        let mut disk = disk();
        peer.negotiate(&Offer::default())?;
        serve_one(peer, &mut disk, cmd::WRITE)?;
        serve_one(peer, &mut disk, cmd::FLUSH)
    });
    let mut client = bench.open();
    client.write(0, &DATA).expect("a write");
    first.finished("lost at the flush");
    second.finished("back, and nobody asks for anything");
}

#[test]
fn requests_in_flight_are_looked_after_when_the_session_is_over() {
    let bench = Bench::new(&[PATIENT, "close-timeout=1"]);
    let (in_flight, cut) = (Gate::default(), Gate::default());
    let (arrived, end) = (in_flight.clone(), cut.clone());
    let lost = bench.play(move |peer| {
        peer.negotiate(&Offer::default())?;
        end.pass();
        Ok(())
    });
    let silent = bench.play(move |peer| {
        peer.negotiate(&Offer::default())?;
        assert_eq!(peer.request()?.kind, cmd::READ);
        arrived.open();
        peer.expect_closed_entirely()
    });
    let mut one = bench.open();
    let mut other = bench.open();
    let _read = other.submit_read(0, 512);
    in_flight.pass();
    let grown = bench.play(|peer| {
        let offer = Offer {
            size: Offer::default().size * 2,
            ..Offer::default()
        };
        peer.negotiate(&offer)?;
        peer.expect_closed()
    });
    cut.open();
    lost.finished("cut");
    assert_eq!(one.read(0, 512), Err(errno::EIO), "over");
    grown.finished("another size");
    // The requests are looked after once a second: it takes a moment until nobody would do so.
    std::thread::sleep(Duration::from_millis(1500));
    bench.nbdkit().signal(libc::SIGTERM);
    drop((one, other));
    silent.finished("in flight");
    let pid = common::process::pidfd_open(bench.nbdkit().pid()).expect("nbdkit's pidfd");
    assert!(common::process::ended_within(&pid, LIMIT), "nbdkit hangs");
}

#[test]
fn client_that_leaves_waits_for_others_no_longer_than_it_may() {
    let bench = Bench::new(&[PATIENT, "close-timeout=1"]);
    let offer = || Offer {
        flags: Offer::default().flags | flag::CAN_MULTI_CONN,
        ..Offer::default()
    };
    let (in_flight, left) = (Gate::default(), Gate::default());
    let (arrived, end) = (in_flight.clone(), left.clone());
    let silent = bench.play(move |peer| {
        peer.negotiate(&offer())?;
        let request = peer.request()?;
        assert!(request.kind == cmd::WRITE && request.flags & cmd_flag::FUA != 0);
        arrived.open();
        end.pass();
        Ok(())
    });
    let leaving = bench.play(move |peer| {
        let mut disk = disk();
        peer.negotiate(&offer())?;
        serve_one(peer, &mut disk, cmd::WRITE)?;
        serve_one(peer, &mut disk, cmd::FLUSH)?;
        assert_eq!(peer.request()?.kind, cmd::DISC);
        Ok(())
    });
    let mut one = bench.open();
    let mut other = bench.open();
    one.submit(cmd::WRITE, cmd_flag::FUA, 4096, 512, &DATA);
    in_flight.pass();
    other.write(0, &DATA).expect("a write");
    drop(other);
    leaving.finished("leaves");
    left.open();
    silent.finished("never answers");
}

#[test]
fn client_that_comes_and_leaves_while_a_replay_hangs() {
    let bench = Bench::new(&["reconnect=forever"]);
    let (hanging, over) = (Gate::default(), Gate::default());
    let (begun, end) = (hanging.clone(), over.clone());
    bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        serve_one(peer, &mut disk(), cmd::WRITE)
    });
    let replay = bench.play(move |peer| {
        peer.negotiate(&Offer::default())?;
        assert_eq!(peer.request()?.kind, cmd::WRITE);
        begun.open();
        end.pass();
        Ok(())
    });
    let coming = bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        assert_eq!(peer.request()?.kind, cmd::DISC);
        Ok(())
    });
    let mut client = bench.open();
    client.write(0, &DATA).expect("a write");
    let _read = client.submit_read(0, 512);
    hanging.pass();
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
    eventually("the plugin asks the server", LIMIT, || {
        (bench.server().accepted() == 3).then_some(())
    });
    drop(stream);
    coming.finished("comes and leaves");
    over.open();
    replay.finished("hangs");
}

#[test]
fn replay_that_hangs_does_not_stop_the_clock() {
    let bench = Bench::new(&["reconnect=3", "close-timeout=100ms"]);
    bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        serve_one(peer, &mut disk(), cmd::WRITE)
    });
    let hangs: Script = std::sync::Arc::new(|peer: &mut Peer| {
        peer.negotiate(&Offer::default())?;
        assert_eq!(peer.request()?.kind, cmd::WRITE);
        peer.expect_closed_entirely()
    });
    for _ in 0..8 {
        let _ = bench.server().play_as(hangs.clone(), false);
    }
    let mut client = bench.open();
    client.write(0, &DATA).expect("a write");
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    // One for each time that a replay may take, and one more.
    let tries = bench.server().accepted() - 1;
    assert!(tries <= 3, "{tries} tries");
}

#[test]
fn replays_that_are_cut_off_do_not_stop_the_clock() {
    let bench = Bench::new(&["reconnect=3", "reconnect-delay=10ms:20ms"]);
    bench.play(|peer| {
        peer.negotiate(&Offer::default())?;
        serve_one(peer, &mut disk(), cmd::WRITE)
    });
    // Shorter than what is taken for a standstill.
    let cut: Script = std::sync::Arc::new(|peer: &mut Peer| {
        peer.negotiate(&Offer::default())?;
        assert_eq!(peer.request()?.kind, cmd::WRITE);
        peer.silence(Duration::from_millis(900))
    });
    for _ in 0..40 {
        let _ = bench.server().play_as(cut.clone(), false);
    }
    let mut client = bench.open();
    client.write(0, &DATA).expect("a write");
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    let tries = bench.server().accepted() - 1;
    assert!(tries <= 5, "{tries} tries");
    // The time is over for those who come later, too.
    assert_eq!(client.write(4096, &DATA), Err(errno::EIO));
    assert_eq!(client.flush(), Err(errno::EIO));
    let later = bench.server().accepted() - 1 - tries;
    assert!(later <= 1, "{later} more tries while two requests failed");
}

#[test]
fn server_that_only_flaps_is_not_asked_all_the_time() {
    let bench = Bench::new(&["reconnect=3"]);
    let flaps: Script = std::sync::Arc::new(|peer: &mut Peer| {
        peer.negotiate(&Offer::default())?;
        peer.request().map(drop)
    });
    for _ in 0..400 {
        let _ = bench.server().play_as(flaps.clone(), false);
    }
    let mut client = bench.open();
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    let tries = bench.server().accepted();
    assert!((5..50).contains(&tries), "{tries} connections");
}

#[test]
fn reminder_comes_though_a_try_hangs() {
    let bench = Bench::new(&["reconnect=4"]);
    bench.play(|peer| peer.negotiate(&Offer::default()));
    bench.play(Peer::expect_closed);
    let mut client = bench.open();
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    let told = bench.nbdkit().stderr();
    assert_eq!(told.matches("still not back").count(), 1, "{told}");
}

#[test]
fn what_is_lost_without_a_journal_is_told_at_the_end() {
    for (loss, words) in [(false, "the last client has left"), (true, "may be lost")] {
        let bench = Bench::new(&[PATIENT, "replay=0"]);
        let first = bench.play(move |peer| {
            let mut disk = disk();
            peer.negotiate(&Offer::default())?;
            serve_one(peer, &mut disk, cmd::WRITE)?;
            if loss {
                return Ok(());
            }
            let flush = peer.request()?;
            assert_eq!(flush.kind, cmd::FLUSH);
            peer.answered(&flush);
            peer.send(&wire::simple(flush.cookie, errno::EIO))?;
            peer.expect_closed()
        });
        let mut client = bench.open();
        client.write(0, &DATA).expect("a write");
        if loss {
            first.finished("loses it");
            client.read(0, 512).expect("a read from the next one");
        }
        drop(client);
        eventually("what is lost is told", LIMIT, || {
            bench.nbdkit().stderr().contains(words).then_some(())
        });
    }
}

#[test]
fn try_that_hangs_is_given_up_for_another() {
    let bench = Bench::new(&[PATIENT]);
    bench.play(|peer| peer.negotiate(&Offer::default()));
    let mute = bench.play(Peer::expect_closed);
    let mut client = bench.open();
    assert!(client.read(0, 512).is_ok(), "{}", bench.nbdkit().stderr());
    mute.finished("says nothing");
}

#[test]
fn server_that_goes_without_an_answer_is_left_all_the_same() {
    for extra in [&["close-timeout=1"][..], &["close-timeout=1", PATIENT]] {
        let bench = Bench::new(extra);
        let going = bench.play(|peer| {
            peer.negotiate(&Offer::default())?;
            assert_eq!(peer.request()?.kind, cmd::READ);
            let other = peer.request()?;
            peer.answered(&other);
            peer.send(&wire::error(
                wire::DONE,
                other.cookie,
                errno::ESHUTDOWN,
                b"",
            ))?;
            peer.expect_closed_entirely()
        });
        let mut client = bench.open();
        let unanswered = client.submit_read(8192, 512);
        assert!(client.read(4096, 512).is_ok(), "{extra:?}: goes on");
        assert!(
            client.wait_read(unanswered).is_ok(),
            "{extra:?}: sent again"
        );
        going.finished("goes");
    }
}

#[test]
fn who_leaves_while_looking_for_another_connection_leaves_it_to_others() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let going = server.play(|peer| {
        peer.negotiate(&Offer::default())?;
        let read = peer.request()?;
        peer.answered(&read);
        peer.send(&wire::error(wire::DONE, read.cookie, errno::ESHUTDOWN, b""))?;
        peer.expect_closed_entirely()
    });
    let mute = server.play(Peer::expect_closed);
    let nbdkit = forward(directory.path(), server.socket(), &["shared=true"]);
    let open = || Front::open(nbdkit.socket()).expect("a client");
    let (mut leaving, mut staying) = (open(), open());
    let _read = leaving.submit_read(0, 512);
    going.finished("goes");
    eventually("another connection is made", LIMIT, || {
        (server.accepted() == 2).then_some(())
    });
    drop(leaving);
    mute.finished("says nothing");
    assert!(staying.read(0, 512).is_ok(), "one more try");
}

#[test]
fn server_that_takes_no_more_is_waited_for() {
    let bench = Bench::new(&[PATIENT]);
    let (deaf, done) = (Gate::default(), Gate::default());
    let (closed, end) = (deaf.clone(), done.clone());
    let first = bench.play(move |peer| {
        peer.negotiate(&Offer::default())?;
        assert_eq!(peer.request()?.kind, cmd::WRITE);
        peer.shutdown(std::net::Shutdown::Read)?;
        closed.open();
        // It still carries out the write.
        end.pass();
        Ok(())
    });
    let mut client = bench.open();
    let write = client.submit_write(0, &DATA);
    deaf.pass();
    let read = client.submit_read(4096, 512);
    let again = |bench: &Bench| bench.server().accepted() > 1;
    std::thread::sleep(A_MOMENT);
    assert!(!again(&bench), "a change may be on its way twice");
    done.open();
    first.finished("takes no more");
    client.wait(write).expect("a write");
    client.wait_read(read).expect("a read");
}
