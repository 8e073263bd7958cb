// SPDX-License-Identifier: BSD-3-Clause
//! Rows V of the catalogue: servers with unusual sizes, flags and block sizes.

mod common;

use std::sync::{Arc, Mutex};

use common::scripted::bench::{Ask, Bench, LENGTH, OFFSET};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, cmd, errno, flag};

const LARGEST: u64 = i64::MAX as u64;

#[test]
fn v1_any_size_up_to_the_largest_is_legal() {
    let mut bench = Bench::new(&[]);
    for size in [0, 1, 511, LARGEST] {
        let offer = Offer {
            size,
            ..Offer::default()
        };
        bench.opens(
            &format!("V1 size {size}"),
            &offer,
            Peer::negotiate,
            move |front| {
                assert_eq!(front.export().size, size);
                let last = size.min(100);
                if last > 0 {
                    let read = front.read(size - last, last as u32);
                    assert_eq!(
                        read,
                        Ok(pattern(size - last, last as usize)),
                        "the end of the disk"
                    );
                }
            },
        );
    }
}

#[test]
fn v1_sizes_that_nbdkit_cannot_tell_are_refused() {
    let mut bench = Bench::new(&[]);
    for size in [LARGEST + 1, LARGEST + 2, u64::MAX] {
        let offer = Offer {
            size,
            ..Offer::default()
        };
        bench.refuses(&format!("V1 size {size}"), "", move |peer| {
            peer.negotiate(&offer)?;
            peer.expect_closed()
        });
        let offer = Offer {
            size,
            go: false,
            ..Offer::simple()
        };
        bench.refuses(&format!("V1 size {size} by export name"), "", move |peer| {
            peer.negotiate(&offer)?;
            peer.expect_closed()
        });
    }
}

#[test]
fn v2_without_has_flags_there_are_no_abilities() {
    let abilities = Offer::default().flags & !flag::HAS_FLAGS;
    let offer = Offer {
        flags: 0,
        ..Offer::default()
    };
    Bench::new(&[]).opens(
        "V2",
        &offer,
        move |peer, offer| {
            let asked = peer.greet_until(wire::opt::GO, offer)?;
            let export = wire::info_export(offer.size, abilities);
            peer.reply(asked.option, wire::rep::INFO, &export)?;
            peer.accept_go(offer)
        },
        |front| {
            assert_eq!(
                front.export().flags & (flag::SEND_FLUSH | flag::SEND_TRIM),
                0
            );
            assert_eq!(
                front.read(OFFSET, LENGTH),
                Ok(pattern(OFFSET, LENGTH as usize))
            );
        },
    );
}

#[test]
fn v3_read_only_wins_over_write_abilities() {
    let offer = Offer {
        flags: Offer::default().flags | flag::READ_ONLY,
        ..Offer::default()
    };
    Bench::new(&[]).opens("V3", &offer, Peer::negotiate, |front| {
        let writing = flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        assert_eq!(
            front.export().flags & (flag::READ_ONLY | writing),
            flag::READ_ONLY
        );
        assert_eq!(front.write(OFFSET, &[1; 512]), Err(errno::EPERM));
        assert_eq!(
            front.read(OFFSET, LENGTH),
            Ok(pattern(OFFSET, LENGTH as usize))
        );
    });
}

#[test]
fn v3_abilities_that_contradict_each_other_are_masked() {
    let flags = flag::HAS_FLAGS | flag::SEND_FAST_ZERO | flag::SEND_DF | 0xf000;
    let offer = Offer {
        flags,
        ..Offer::simple()
    };
    Bench::new(&[]).opens("V3 contradictions", &offer, Peer::negotiate, |front| {
        assert_eq!(
            front.export().flags & flag::SEND_FAST_ZERO,
            0,
            "fast zero without zero"
        );
        // nbdkit offers zeroing all the same. It must arrive as ordinary writes.
        assert_eq!(front.zero(OFFSET, LENGTH, 0), Ok(()));
        assert_eq!(front.read(OFFSET, LENGTH), Ok(vec![0; LENGTH as usize]));
    });
}

#[test]
fn v4_block_sizes_reach_the_client_as_nbdkit_accepts_them() {
    const NO_LIMIT: u32 = u32::MAX;
    let mut bench = Bench::new(&[]);
    for sizes in [
        (1, 64 << 20, NO_LIMIT),
        (1, 64 << 20, 128 << 20),
        (1, 512, 1000),
        (1, 4096, 0x7fff_ffff),
        (512, 4096, 0x7fff_ffff),
        (512, 512, 1000),
        (65536, 65536, 65537),
        (4096, 4096, NO_LIMIT),
    ] {
        let offer = Offer {
            block_sizes: Some(sizes),
            ..Offer::default()
        };
        bench.opens(
            &format!("V4 {sizes:?}"),
            &offer,
            Peer::negotiate,
            move |front| {
                let (minimum, preferred, maximum) =
                    front.export().block_sizes.expect("the server named them");
                assert_eq!(minimum, sizes.0);
                assert!(
                    preferred.is_power_of_two() && (512..=32 << 20).contains(&preferred),
                    "preferred {preferred}"
                );
                assert!(
                    minimum <= preferred && preferred <= maximum,
                    "{minimum} {preferred} {maximum}"
                );
                assert!(
                    maximum == NO_LIMIT || maximum % minimum == 0,
                    "maximum {maximum}"
                );
                let length = minimum.max(LENGTH);
                assert_eq!(
                    front.read(OFFSET, length),
                    Ok(pattern(OFFSET, length as usize))
                );
            },
        );
    }
}

#[test]
fn v5_requests_above_the_maximum_block_size_are_split() {
    const MAXIMUM: u32 = 64 << 10;
    let lengths = Arc::new(Mutex::new(Vec::new()));
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        block_sizes: Some((1, 4096, MAXIMUM)),
        ..Offer::default()
    };
    let ticket = bench.play({
        let lengths = Arc::clone(&lengths);
        move |peer| {
            peer.negotiate(&offer)?;
            let mut disk = Disk::new(offer.size);
            loop {
                // A request over the maximum would already fail here.
                let request = peer.request()?;
                if request.kind == cmd::DISC {
                    return peer.expect_closed();
                }
                lengths
                    .lock()
                    .expect("no panic so far")
                    .push((request.kind, request.length));
                peer.answer(&request, &mut disk)?;
            }
        }
    });

    let mut front = bench.open();
    // Neither the ends nor the middle is a multiple of anything.
    let (offset, length) = (1001, 300_007);
    assert_eq!(
        front.read(offset, length),
        Ok(pattern(offset, length as usize))
    );
    let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
    assert_eq!(front.write(offset, &data), Ok(()));
    assert_eq!(front.read(offset, length), Ok(data));
    front.close();

    ticket.finished("V5");
    for kind in [cmd::READ, cmd::WRITE] {
        let lengths = lengths.lock().expect("the script ended well");
        let sent: Vec<u32> = lengths
            .iter()
            .filter(|sent| sent.0 == kind)
            .map(|sent| sent.1)
            .collect();
        assert!(
            sent.iter().all(|length| *length <= MAXIMUM),
            "command {kind}: {sent:?}"
        );
    }
    bench.serves_the_next("V5");
}

#[test]
fn v5_without_a_maximum_requests_are_split_at_32_mib() {
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        size: 128 << 20,
        ..Offer::default()
    };
    bench.opens("V5 64 MiB", &offer, Peer::negotiate, |front| {
        let length = 64 << 20;
        let data = front.read(OFFSET, length).expect("two reads of 32 MiB");
        assert!(
            data == pattern(OFFSET, length as usize),
            "the halves are joined"
        );
    });
}

#[test]
fn v5_one_failed_part_fails_the_whole_request() {
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        block_sizes: Some((1, 4096, 4096)),
        ..Offer::default()
    };
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let mut disk = Disk::new(offer.size);
        loop {
            let request = peer.request()?;
            match request.kind {
                cmd::DISC => return peer.expect_closed(),
                _ if request.offset == 8192 => {
                    peer.send(&wire::error(wire::DONE, request.cookie, errno::ENOSPC, b""))?;
                    peer.answered(&request);
                }
                _ => peer.answer(&request, &mut disk)?,
            }
        }
    });

    let mut front = bench.open();
    assert_eq!(front.read(0, 16384), Err(errno::ENOSPC));
    assert_eq!(front.write(0, &[1; 16384]), Err(errno::ENOSPC));
    assert_eq!(
        front.read(12288, 4096).map(drop),
        Ok(()),
        "the connection lives"
    );
    front.close();

    ticket.finished("V5 failed part");
    bench.serves_the_next("V5 failed part");
}

#[test]
fn v6_unaligned_requests_are_refused_and_never_sent() {
    let offer = Offer {
        size: (1 << 20) + 100,
        block_sizes: Some((4096, 4096, 1 << 20)),
        ..Offer::default()
    };
    let mut bench = Bench::new(&[]);
    bench.opens(
        "V6",
        &offer,
        |peer, offer| {
            peer.negotiate(offer)?;
            let mut disk = Disk::new(offer.size);
            loop {
                let request = peer.request()?;
                let end = request.offset + u64::from(request.length);
                let aligned =
                    request.offset % 4096 == 0 && (request.length % 4096 == 0 || end == offer.size);
                assert!(aligned, "sent although unaligned: {request:?}");
                if request.kind == cmd::FLUSH {
                    // The test's own sign that it is through; the bench serves the rest.
                    return peer.answer(&request, &mut disk);
                }
                peer.answer(&request, &mut disk)?;
            }
        },
        |front| {
            assert_eq!(front.export().size, (1 << 20) + 100);
            for (offset, length) in [(0, 512), (512, 4096), (4096, 4097), (1, 1)] {
                assert_eq!(
                    front.read(offset, length),
                    Err(errno::EINVAL),
                    "read {offset}+{length}"
                );
                assert_eq!(
                    front.write(offset, &vec![1; length as usize]),
                    Err(errno::EINVAL),
                    "write {offset}+{length}"
                );
                assert_eq!(
                    front.trim(offset, length),
                    Err(errno::EINVAL),
                    "trim {offset}+{length}"
                );
                assert_eq!(
                    front.zero(offset, length, 0),
                    Err(errno::EINVAL),
                    "zero {offset}+{length}"
                );
            }
            assert_eq!(front.read(4096, 8192), Ok(pattern(4096, 8192)));
            assert_eq!(front.flush(), Ok(()));
        },
    );
}

/// What is left of a disk behind its last whole block is read and written with exactly its bytes.
#[test]
fn v6_the_odd_end_of_a_disk_is_served() {
    const SIZE: u64 = (256 << 10) + 100;
    let offer = Offer {
        size: SIZE,
        block_sizes: Some((4096, 4096, 64 << 10)),
        ..Offer::default()
    };
    let mut bench = Bench::new(&[]);
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let mut disk = Disk::new(SIZE);
        loop {
            let request = peer.request()?;
            if request.kind == cmd::DISC {
                return peer.expect_closed();
            }
            // Parts of a larger request keep to the blocks, too.
            assert_eq!(request.offset % 4096, 0, "{request:?}");
            peer.answer(&request, &mut disk)?;
        }
    });

    let mut front = bench.open();
    assert_eq!(front.export().size, SIZE);
    let all = front.read(0, SIZE as u32);
    assert!(all == Ok(pattern(0, SIZE as usize)), "all of it");
    let tail = SIZE - 100;
    assert_eq!(front.read(tail, 100), Ok(pattern(tail, 100)));
    assert_eq!(front.write(tail - 4096, &[7; 4196]), Ok(()));
    assert_eq!(front.read(tail, 100), Ok(vec![7; 100]));
    assert_eq!(front.zero(tail, 100, 0), Ok(()));
    assert_eq!(front.read(tail, 100), Ok(vec![0; 100]));
    assert_eq!(front.trim(tail, 100), Ok(()));
    front.close();
    ticket.finished("V6 odd end");
    bench.serves_the_next("V6 odd end");
}

#[test]
fn v6_what_a_server_refuses_at_its_odd_end_is_that_requests_error() {
    let offer = Offer {
        size: 10_000,
        block_sizes: Some((4096, 4096, 64 << 10)),
        ..Offer::default()
    };
    let ask = Ask {
        offset: 8192,
        length: 1808,
        ..Ask::read()
    };
    let mut bench = Bench::new(&[]);
    let ticket = bench.play({
        let ask = ask.clone();
        move |peer| {
            peer.negotiate(&offer)?;
            let mut disk = Disk::new(offer.size);
            let request = peer.request()?;
            assert_eq!((request.offset, request.length), (ask.offset, ask.length));
            peer.send(&wire::error(
                wire::DONE,
                request.cookie,
                errno::EINVAL,
                b"not aligned",
            ))?;
            peer.answered(&request);
            peer.serve(&mut disk)
        }
    });
    let mut front = bench.open();
    assert_eq!(front.read(ask.offset, ask.length), Err(errno::EINVAL));
    assert_eq!(
        front.read(4096, 4096),
        Ok(pattern(4096, 4096)),
        "the connection lives"
    );
    front.close();
    ticket.finished("V6 refused");
    bench.serves_the_next("V6 refused");
}
