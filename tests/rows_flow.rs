// SPDX-License-Identifier: BSD-3-Clause
//! Reading and writing must not wait for each other: servers that answer before they took everything, or take
//! nothing until their answers are taken. A plugin that gets this wrong deadlocks.

mod common;

use common::scripted::Gate;
use common::scripted::bench::{Bench, LENGTH, OFFSET};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Request};
use common::scripted::wire::{self, cmd, errno};

const MIB: u32 = 1 << 20;

fn roomy() -> Offer {
    Offer {
        size: 64 << 20,
        ..Offer::simple()
    }
}

#[test]
fn an_error_before_the_payload_was_taken_fails_that_write_only() {
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(|peer| {
        let offer = roomy();
        peer.negotiate(&offer)?;
        let mut write = peer.request_header()?;
        assert_eq!(write.kind, cmd::WRITE);
        peer.send(&wire::simple(write.cookie, errno::ENOSPC))?;
        // Not before the plugin has taken the answer will this server take the payload.
        peer.drained()?;
        peer.payload(&mut write)?;
        peer.answered(&write);
        peer.serve(&mut Disk::new(offer.size))
    });

    let mut front = bench.open();
    assert_eq!(front.write(0, &vec![1; 32 << 20]), Err(errno::ENOSPC));
    assert_eq!(
        front.read(OFFSET, LENGTH),
        Ok(pattern(OFFSET, LENGTH as usize)),
        "the connection lives"
    );
    front.close();

    ticket.finished("early error");
    bench.serves_the_next("early error");
}

#[test]
fn a_large_answer_is_taken_while_a_large_write_is_stuck() {
    let mut bench = Bench::new(&[]);
    let read_is_there = Gate::default();
    let ticket = bench.play({
        let read_is_there = read_is_there.clone();
        move |peer| {
            let offer = roomy();
            peer.negotiate(&offer)?;
            let mut disk = Disk::new(offer.size);
            let read = peer.request()?;
            read_is_there.open();
            let mut write = peer.request_header()?;
            assert_eq!((read.kind, write.kind), (cmd::READ, cmd::WRITE));
            peer.answer(&read, &mut disk)?;
            peer.drained()?;
            peer.payload(&mut write)?;
            peer.answer(&write, &mut disk)?;
            peer.serve(&mut disk)
        }
    });

    let mut front = bench.open();
    let read = front.submit_read(0, 16 * MIB);
    read_is_there.pass();
    let data = vec![9; 32 << 20];
    let write = front.submit_write(16 << 20, &data);
    assert!(
        front.wait_read(read) == Ok(pattern(0, 16 << 20)),
        "the read"
    );
    assert_eq!(front.wait(write), Ok(()));
    assert_eq!(front.read(16 << 20, LENGTH), Ok(vec![9; LENGTH as usize]));
    front.close();

    ticket.finished("large answer");
    bench.serves_the_next("large answer");
}

#[test]
fn sixteen_reads_are_taken_while_sixteen_writes_queue() {
    // More workers than requests, so that nbdkit itself never waits.
    let mut bench = Bench::new(&["--threads=40"]);
    let reads_are_there = Gate::default();
    let ticket = bench.play({
        let reads_are_there = reads_are_there.clone();
        move |peer| {
            let offer = roomy();
            peer.negotiate(&offer)?;
            let mut disk = Disk::new(offer.size);
            let reads: Vec<Request> = (0..16).map(|_| peer.request()).collect::<Result<_, _>>()?;
            reads_are_there.open();
            let mut write = peer.request_header()?;
            assert_eq!(write.kind, cmd::WRITE);
            for read in &reads {
                peer.answer(read, &mut disk)?;
            }
            peer.drained()?;
            peer.payload(&mut write)?;
            peer.answer(&write, &mut disk)?;
            peer.serve(&mut disk)
        }
    });

    let mut front = bench.open();
    let offset = |i: u32| u64::from(i * MIB);
    let reads: Vec<u64> = (0..16).map(|i| front.submit_read(offset(i), MIB)).collect();
    reads_are_there.pass();
    let writes: Vec<u64> = (16..32)
        .map(|i| front.submit_write(offset(i), &vec![i as u8; MIB as usize]))
        .collect();

    for (read, i) in reads.into_iter().zip(0..) {
        assert!(
            front.wait_read(read) == Ok(pattern(offset(i), MIB as usize)),
            "read {i}"
        );
    }
    for write in writes {
        assert_eq!(front.wait(write), Ok(()));
    }
    for i in 16..32 {
        assert!(
            front.read(offset(i), MIB) == Ok(vec![i as u8; MIB as usize]),
            "write {i}"
        );
    }
    front.close();

    ticket.finished("16 reads, 16 writes");
    bench.serves_the_next("16 reads, 16 writes");
}

#[test]
fn a_failed_request_among_many_fails_alone() {
    let mut bench = Bench::new(&[]);
    let bad = u64::from(7 * LENGTH);
    let ticket = bench.play(move |peer| {
        peer.negotiate(&roomy())?;
        let mut disk = Disk::new(roomy().size);
        for _ in 0..16 {
            let request = peer.request()?;
            if request.offset == bad {
                peer.send(&wire::simple(request.cookie, errno::EIO))?;
                peer.answered(&request);
            } else {
                peer.answer(&request, &mut disk)?;
            }
        }
        peer.serve(&mut disk)
    });

    let mut front = bench.open();
    let requests: Vec<(u64, u64)> = (0..16)
        .map(|i| i * u64::from(LENGTH))
        .map(|offset| (offset, front.submit_read(offset, LENGTH)))
        .collect();
    for (offset, cookie) in requests {
        let expected = if offset == bad {
            Err(errno::EIO)
        } else {
            Ok(pattern(offset, LENGTH as usize))
        };
        assert_eq!(front.wait_read(cookie), expected, "read at {offset}");
    }
    front.close();

    ticket.finished("one of many");
    bench.serves_the_next("one of many");
}
