// SPDX-License-Identifier: BSD-3-Clause
//! Rows M of the catalogue: servers that misbehave with simple replies.

mod common;

use std::io;
use std::time::Duration;

use common::scripted::Gate;
use common::scripted::bench::{Ask, Bench, LENGTH, OFFSET, Verdict, lost, still_lost};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer, Request};
use common::scripted::wire::{self, DONE, EXTENDED_CHUNK_MAGIC, RESERVED_MAGICS, cmd, errno};

/// What a read of [`Ask::read`] should get.
fn payload() -> Vec<u8> {
    pattern(OFFSET, LENGTH as usize)
}

fn good_read(request: &Request) -> Vec<u8> {
    wire::join(&[&wire::simple(request.cookie, 0), &payload()])
}

#[test]
fn m1_a_reply_with_a_wrong_magic_kills_the_connection() {
    let mut bench = Bench::new(&[]);
    let mut magics = vec![0, u32::MAX, wire::REQUEST_MAGIC, EXTENDED_CHUNK_MAGIC];
    magics.extend(RESERVED_MAGICS);
    for magic in magics {
        bench.row(
            &format!("M1 {magic:#x}"),
            &Offer::simple(),
            &Ask::read(),
            Verdict::Dead,
            move |request| {
                wire::join(&[
                    &wire::simple_with_magic(magic, request.cookie, 0),
                    &payload(),
                ])
            },
        );
    }
}

#[test]
fn m1_a_structured_reply_that_was_not_agreed_kills_the_connection() {
    Bench::new(&[]).row(
        "M1 chunk",
        &Offer::simple(),
        &Ask::read(),
        Verdict::Dead,
        |request| wire::data(DONE, request.cookie, OFFSET, &payload()),
    );
}

#[test]
fn m2_an_unknown_cookie_kills_the_connection() {
    let mut bench = Bench::new(&[]);
    for offer in [Offer::simple(), Offer::default()] {
        // Far enough from the cookie of the other request in flight.
        for twist in [1 << 16, 1 << 32, 1 << 63, u64::MAX] {
            let structured = offer.structured;
            let row = format!("M2 cookie xor {twist:#x}, structured {structured}");
            bench.row(&row, &offer, &Ask::read(), Verdict::Dead, move |request| {
                let cookie = request.cookie ^ twist;
                match structured {
                    true => wire::data(DONE, cookie, OFFSET, &payload()),
                    false => wire::join(&[&wire::simple(cookie, 0), &payload()]),
                }
            });
        }
    }
}

#[test]
fn m2_a_cookie_that_is_answered_twice_kills_the_connection() {
    let verdict = Verdict::DeadAfter(Ok(()));
    Bench::new(&[]).row(
        "M2 twice",
        &Offer::simple(),
        &Ask::read(),
        verdict,
        |request| good_read(request).repeat(2),
    );
}

#[test]
fn m2_a_cookie_of_an_earlier_request_kills_the_connection() {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        let first = peer.request()?;
        peer.answer(&first, &mut Disk::new(1 << 20))?;
        let second = peer.request()?;
        assert_ne!(
            first.cookie, second.cookie,
            "a late reply could be taken for a new one"
        );
        peer.send(&good_read(&first))?;
        peer.expect_closed()
    });

    let mut front = bench.open();
    assert_eq!(front.read(OFFSET, LENGTH), Ok(payload()));
    lost("M2 earlier", front.read(OFFSET, LENGTH).map(drop));
    still_lost("M2 earlier", &mut front);

    ticket.ended("M2 earlier");
    bench.serves_the_next("M2 earlier");
}

#[test]
fn m3_data_after_an_error_is_garbage() {
    let verdict = Verdict::DeadAfter(Err(errno::ENOSPC));
    Bench::new(&[]).row("M3", &Offer::simple(), &Ask::read(), verdict, |request| {
        wire::join(&[&wire::simple(request.cookie, errno::ENOSPC), &payload()])
    });
}

#[test]
fn m4_short_data_is_never_success() {
    let mut bench = Bench::new(&[]);
    for missing in [1, 256, 512] {
        let row = format!("M4 closes {missing} bytes early");
        bench.hangs_up(
            &row,
            &Offer::simple(),
            &Ask::read(),
            Verdict::Dead,
            move |request| {
                let mut reply = good_read(request);
                reply.truncate(reply.len() - missing);
                reply
            },
        );
    }
}

#[test]
fn m4_a_server_that_stalls_in_a_reply_is_given_up_at_the_deadline() {
    let mut bench = Bench::new(&["request-timeout=2"]);
    bench.row(
        "M4 stalls",
        &Offer::simple(),
        &Ask::read(),
        Verdict::Dead,
        |request| {
            let mut reply = good_read(request);
            reply.truncate(reply.len() - 1);
            reply
        },
    );
}

#[test]
fn m5_error_values_reach_the_client() {
    let mut bench = Bench::new(&[]);
    for (sent, seen) in [
        (errno::EPERM, errno::EPERM),
        (errno::EIO, errno::EIO),
        (errno::ENOMEM, errno::ENOMEM),
        (errno::EINVAL, errno::EINVAL),
        (errno::ENOSPC, errno::ENOSPC),
        (2, errno::EINVAL),
        (71, errno::EINVAL),
        (errno::ENOTSUP, errno::EINVAL),
        (errno::EOVERFLOW, errno::EINVAL),
        (u32::MAX, errno::EINVAL),
    ] {
        for kind in [cmd::READ, cmd::WRITE] {
            let row = format!("M5 error {sent} to command {kind}");
            bench.row(
                &row,
                &Offer::simple(),
                &Ask::command(kind),
                Verdict::Fails(seen),
                move |request| wire::simple(request.cookie, sent),
            );
        }
    }
}

#[test]
fn m5_after_eshutdown_the_rest_finishes_and_another_connection_goes_on() {
    let bench = Bench::new(&[]);
    let said = Gate::default();
    let left = bench.play({
        let said = said.clone();
        move |peer| {
            peer.negotiate(&Offer::simple())?;
            let (first, second) = (peer.request()?, peer.request()?);
            let (stopped, finishing) = if first.offset == OFFSET {
                (first, second)
            } else {
                (second, first)
            };
            peer.send(&wire::simple(stopped.cookie, errno::ESHUTDOWN))?;
            said.pass();
            peer.answer(&finishing, &mut Disk::new(1 << 20))?;
            // The disconnect comes by itself: the client has not closed yet.
            let last = peer.request()?;
            assert_eq!(last.kind, cmd::DISC, "nothing new is sent");
            peer.expect_closed()
        }
    });
    let mut front = bench.open();
    let next = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        peer.serve(&mut Disk::new(1 << 20))
    });
    let stopped = front.submit_read(OFFSET, LENGTH);
    let finishing = front.submit_read(0, LENGTH);
    said.open();
    assert_eq!(
        front.wait_read(finishing),
        Ok(pattern(0, LENGTH as usize)),
        "it was in flight before"
    );
    left.finished("M5 ESHUTDOWN");
    assert_eq!(
        front.wait_read(stopped),
        Ok(pattern(OFFSET, LENGTH as usize)),
        "it is made again over the next connection"
    );
    assert_eq!(front.read(0, LENGTH), Ok(pattern(0, LENGTH as usize)));
    front.close();
    next.finished("M5 after ESHUTDOWN");
}

#[test]
fn m5_a_write_that_was_refused_by_eshutdown_is_nothing_to_be_flushed() {
    let bench = Bench::new(&[]);
    let left = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        let request = peer.request()?;
        assert_eq!(request.kind, cmd::WRITE);
        peer.send(&wire::simple(request.cookie, errno::ESHUTDOWN))?;
        assert_eq!(peer.request()?.kind, cmd::DISC, "nothing was acknowledged");
        peer.expect_closed()
    });
    let mut front = bench.open();
    let next = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        let request = peer.request()?;
        assert_eq!((request.kind, request.offset), (cmd::WRITE, OFFSET));
        peer.send(&wire::simple(request.cookie, 0))?;
        assert_eq!(peer.request()?.kind, cmd::FLUSH, "before it is left");
        Ok(())
    });
    assert_eq!(front.write(OFFSET, &[1; 512]), Ok(()));
    left.finished("M5 ESHUTDOWN to a write");
    drop(front);
    next.finished("M5 the write made again");
}

#[test]
fn m5_what_was_written_before_eshutdown_is_flushed_before_the_connection_is_left() {
    let bench = Bench::new(&[]);
    let left = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        let request = peer.request()?;
        peer.answer(&request, &mut Disk::new(1 << 20))?;
        let request = peer.request()?;
        peer.send(&wire::simple(request.cookie, errno::ESHUTDOWN))?;
        let flush = peer.request()?;
        assert_eq!(flush.kind, cmd::FLUSH);
        peer.send(&wire::simple(flush.cookie, 0))?;
        assert_eq!(peer.request()?.kind, cmd::DISC);
        peer.expect_closed()
    });
    let mut front = bench.open();
    let next = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        peer.serve(&mut Disk::new(1 << 20))
    });
    assert_eq!(front.write(OFFSET, &[1; 512]), Ok(()));
    assert!(front.read(OFFSET, LENGTH).is_ok());
    left.finished("M5 flushed");
    front.close();
    next.finished("M5 after the flush");
}

#[test]
fn m5_eshutdown_is_what_the_client_sees_when_nobody_takes_the_servers_place() {
    // They offer less than the one that is going away.
    let of_less_size = Offer {
        size: 512,
        ..Offer::simple()
    };
    let of_less_payload = Offer {
        block_sizes: Some((1, 4096, 4096)),
        ..Offer::simple()
    };
    for offer in [of_less_size, of_less_payload] {
        let mut bench = Bench::new(&[]);
        let ticket = bench.play(|peer| {
            peer.negotiate(&Offer::simple())?;
            let request = peer.request()?;
            peer.send(&wire::simple(request.cookie, errno::ESHUTDOWN))?;
            assert_eq!(peer.request()?.kind, cmd::DISC);
            peer.expect_closed()
        });
        let mut front = bench.open();
        let smaller = bench.play(move |peer| {
            peer.negotiate(&offer)?;
            assert_eq!(peer.request()?.kind, cmd::DISC, "nothing is asked of it");
            peer.expect_closed()
        });
        assert_eq!(front.read(OFFSET, LENGTH), Err(errno::ESHUTDOWN));
        ticket.finished("M5 ESHUTDOWN");
        smaller.finished("M5 the smaller one");
        assert_eq!(front.write(OFFSET, &[1; 512]), Err(errno::ESHUTDOWN));
        still_lost("M5 ESHUTDOWN", &mut front);
        front.close();
        bench.serves_the_next("M5 ESHUTDOWN");
    }
}

#[test]
fn m6_success_before_the_payload_was_taken_counts_for_that_write_only() {
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        size: 64 << 20,
        ..Offer::simple()
    };
    let read_is_there = Gate::default();
    let ticket = bench.play({
        let read_is_there = read_is_there.clone();
        move |peer| {
            peer.negotiate(&offer)?;
            let read = peer.request()?;
            assert_eq!(read.kind, cmd::READ);
            read_is_there.open();
            let write = peer.request_header()?;
            assert_eq!(write.kind, cmd::WRITE);
            peer.send(&wire::simple(write.cookie, 0))
        }
    });

    let mut front = bench.open();
    let read = front.submit_read(OFFSET, LENGTH);
    read_is_there.pass();
    let write = front.submit_write(0, &vec![1; 8 << 20]);
    lost("M6 the read", front.wait_read(read).map(drop));
    // The plugin may learn of the answer or of the broken connection first.
    if let Err(error) = front.wait(write) {
        lost("M6 the write", Err(error));
    }
    still_lost("M6", &mut front);

    ticket.finished("M6");
    bench.serves_the_next("M6");
}

#[test]
fn m7_a_reply_to_the_disconnect_is_ignored() {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        peer.negotiate(&Offer::simple())?;
        let last = peer.request()?;
        assert_eq!(last.kind, cmd::DISC);
        peer.send(&wire::simple(last.cookie, 0))?;
        peer.expect_closed()
    });

    bench.open().close();

    ticket.ended("M7");
    bench.serves_the_next("M7");
}

#[test]
fn m8_simple_success_for_a_structured_read_kills_the_connection() {
    let mut bench = Bench::new(&[]);
    bench.row(
        "M8 success",
        &Offer::default(),
        &Ask::read(),
        Verdict::Dead,
        good_read,
    );
}

#[test]
fn m8_a_simple_error_to_a_structured_read_is_an_error() {
    let fails = Verdict::Fails(errno::ENOSPC);
    Bench::new(&[]).row(
        "M8 error",
        &Offer::default(),
        &Ask::read(),
        fails,
        |request| wire::simple(request.cookie, errno::ENOSPC),
    );
}

#[test]
fn m9_sixteen_replies_may_come_in_reverse_order() {
    replies_in_reverse(16);
}

#[test]
fn m9_a_thousand_replies_may_come_in_reverse_order() {
    replies_in_reverse(1000);
}

/// The plugin may keep fewer requests in flight than the client; then each batch is answered in reverse.
fn replies_in_reverse(count: usize) {
    let mut bench = Bench::new(&["--threads=1000"]);
    let ticket = bench.play(move |peer| {
        peer.negotiate(&Offer::simple())?;
        let mut disk = Disk::new(1 << 20);
        let mut left = count;
        while left > 0 {
            let batch = batch(peer, left)?;
            for request in batch.iter().rev() {
                peer.answer(request, &mut disk)?;
            }
            left -= batch.len();
        }
        peer.serve(&mut disk)
    });

    let mut front = bench.open();
    let reads: Vec<(u64, u64)> = (0..count as u64)
        .map(|i| i * 512)
        .map(|at| (at, front.submit_read(at, 512)))
        .collect();
    for (offset, cookie) in reads {
        assert_eq!(front.wait_read(cookie), Ok(pattern(offset, 512)));
    }
    front.close();

    ticket.finished("M9");
    bench.serves_the_next("M9");
}

/// Takes requests until `most` are there or no more come.
fn batch(peer: &mut Peer, most: usize) -> io::Result<Vec<Request>> {
    let mut taken = vec![peer.request()?];
    while taken.len() < most && peer.readable_within(Duration::from_millis(200)) {
        taken.push(peer.request()?);
    }
    Ok(taken)
}
