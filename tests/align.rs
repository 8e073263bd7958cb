// SPDX-License-Identifier: BSD-3-Clause
//! `align=emulate`: clients that know nothing of the server's minimum block.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::clients::{nbdinfo, verified_load};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::scripted::bench::Bench;
use common::scripted::disk::{Disk, pattern};
use common::scripted::offer::Request;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, STATE_HOLE, STATE_ZERO, cmd, cmd_flag, errno, flag};
use common::upstream::noise;
use tempfile::TempDir;

const BLOCK: usize = 4096;
const EMULATE: &str = "align=emulate";

/// A disk in a file, a server that refuses whatever is not whole blocks of it, and a front for bytes.
struct Strict {
    front: Nbdkit,
    _server: Nbdkit,
    image: PathBuf,
    _directory: TempDir,
}

impl Strict {
    /// The disk is [`noise`] of this length. `filters` stand between the file and the policy.
    fn new(length: usize, filters: &[&str], extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let image = directory.path().join("disk");
        fs::write(&image, noise(length, 1)).expect("write the disk");
        let server = strict(directory.path(), &image, filters);
        let front = forward(
            directory.path(),
            server.socket(),
            &[&[EMULATE], extra].concat(),
        );
        Self {
            front,
            _server: server,
            image,
            _directory: directory,
        }
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(&self.image).expect("read the disk")
    }
}

fn strict(directory: &Path, image: &Path, filters: &[&str]) -> Nbdkit {
    let (filters, parameters): (Vec<&str>, Vec<&str>) =
        filters.iter().partition(|word| word.starts_with('-'));
    let image = image.display().to_string();
    let file = [
        "file",
        &image,
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ];
    let policy = ["--filter=blocksize-policy"];
    Nbdkit::start(
        directory,
        &[&policy[..], &filters, &file, &parameters].concat(),
    )
}

fn ready() -> bool {
    need_all(&["nbdkit"])
}

/// Numbers that look random.
fn dice(seed: u64) -> impl FnMut(usize) -> usize {
    let bytes = noise(1 << 16, seed);
    let mut at = 0;
    move |limit| {
        at = (at + 8) % bytes.len();
        let number = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        (number % limit as u64) as usize
    }
}

#[test]
fn bytes_are_served_by_a_server_of_blocks() {
    if !ready() {
        return;
    }
    const SIZE: usize = 4 << 20;
    let strict = Strict::new(SIZE, &[], &[]);
    let mut front = Front::of(&strict.front);
    assert_eq!(front.export().block_sizes, Some((1, 4096, 1 << 20)));
    let mut model = noise(SIZE, 1);
    let mut dice = dice(2);
    for round in 0..120 {
        // Mostly short, now and then more than is put together in memory, or than the server takes.
        let most = [300, 9000, 40_000, 3 << 20][dice(4)];
        let length = 1 + dice(most);
        let at = dice(SIZE - length);
        let range = at..at + length;
        let offset = at as u64;
        match dice(3) {
            0 => {
                let bytes = noise(length, 100 + round);
                assert_eq!(front.write(offset, &bytes), Ok(()), "{range:?}");
                model[range.clone()].copy_from_slice(&bytes);
            }
            1 => {
                let flags = [0, cmd_flag::NO_HOLE][dice(2)];
                assert_eq!(front.zero(offset, length as u32, flags), Ok(()));
                model[range.clone()].fill(0);
            }
            _ => assert_eq!(front.flush(), Ok(())),
        }
        let read = front.read(offset, length as u32);
        assert!(read == Ok(model[range.clone()].to_vec()), "{range:?}");
    }
    let all = front.read(1, SIZE as u32 - 2);
    assert!(all == Ok(model[1..SIZE - 1].to_vec()), "all but two bytes");
    front.close();
    assert!(strict.disk() == model, "the disk");
}

#[test]
fn a_read_only_disk_is_read_in_bytes() {
    if !ready() {
        return;
    }
    let strict = Strict::new(64 << 10, &[], &["-r"]);
    let mut front = Front::of(&strict.front);
    assert_ne!(front.export().flags & flag::READ_ONLY, 0);
    let disk = strict.disk();
    for (offset, length) in [(1, 1), (4095, 2), (100, 60_000)] {
        let expected = disk[offset..offset + length].to_vec();
        assert_eq!(front.read(offset as u64, length as u32), Ok(expected));
    }
    front.close();
}

#[test]
fn without_it_blocks_are_told() {
    if !ready() || !need_all(&["nbdinfo"]) {
        return;
    }
    let strict = Strict::new(64 << 10, &[], &["align=advertise"]);
    let info = nbdinfo(&strict.front.uri());
    assert_eq!(info["block_size_minimum"], 4096);
    let mut front = Front::of(&strict.front);
    assert_eq!(front.read(0, 512), Err(errno::EINVAL));
    front.close();
}

/// Three clients, each with a connection of its own and many requests in flight, write stripes that lie side by
/// side in the same blocks.
#[test]
fn writers_of_one_block_do_not_undo_each_other() {
    if !ready() {
        return;
    }
    const STRIPE: usize = 1000;
    const COUNT: usize = 96;
    const CLIENTS: usize = 3;
    const ROUNDS: u8 = 3;
    let slow = &["--filter=delay", "rdelay=2ms", "wdelay=1ms"];
    let strict = Strict::new(STRIPE * COUNT / BLOCK * BLOCK + BLOCK, slow, &[]);
    let value = |client: usize, round: u8| (client as u8 + 1) * 16 + round;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let front = &strict.front;
            scope.spawn(move || {
                let mut front = Front::of(front);
                for round in 0..ROUNDS {
                    let cookies: Vec<u64> = (client..COUNT)
                        .step_by(CLIENTS)
                        .map(|stripe| {
                            let bytes = [value(client, round); STRIPE];
                            front.submit_write((stripe * STRIPE) as u64, &bytes)
                        })
                        .collect();
                    for cookie in cookies {
                        assert_eq!(front.wait(cookie), Ok(()));
                    }
                }
                front.close();
            });
        }
    });
    let disk = strict.disk();
    let mut model = noise(disk.len(), 1);
    for (stripe, bytes) in model.chunks_mut(STRIPE).take(COUNT).enumerate() {
        bytes.fill(value(stripe % CLIENTS, ROUNDS - 1));
    }
    let wrong = disk
        .iter()
        .zip(&model)
        .position(|(is, should)| is != should);
    assert_eq!(wrong, None, "the first byte that is wrong");
}

/// Whole blocks, and a part of the same blocks, written at the same time by two clients.
#[test]
fn a_block_written_as_a_whole_is_not_undone_by_a_part() {
    if !ready() {
        return;
    }
    const BLOCKS: usize = 12;
    const PART: usize = 100;
    let slow = &["--filter=delay", "rdelay=2ms", "wdelay=1ms"];
    let strict = Strict::new(BLOCKS * BLOCK, slow, &[]);
    let mut whole = Front::of(&strict.front);
    let mut part = Front::of(&strict.front);
    for round in 1..10 {
        let mut cookies = Vec::new();
        for block in 0..BLOCKS {
            let offset = (block * BLOCK) as u64;
            let bytes = [100 + round; PART];
            cookies.push((true, part.submit_write(offset, &bytes)));
            cookies.push((false, whole.submit_write(offset, &[round; BLOCK])));
        }
        for (of_part, cookie) in cookies {
            let front = if of_part { &part } else { &whole };
            assert_eq!(front.wait(cookie), Ok(()));
        }
        for (number, block) in strict.disk().chunks(BLOCK).enumerate() {
            let (ours, rest) = block.split_at(PART);
            assert!(rest.iter().all(|byte| *byte == round), "block {number}");
            let either = [[round; PART], [100 + round; PART]];
            assert!(either.iter().any(|bytes| ours == bytes), "block {number}");
        }
    }
    whole.close();
    part.close();
}

/// The second has waited for most of its time when its turn comes, before a server that is slow, and there.
#[test]
fn who_has_waited_for_a_block_has_time_for_it_all_the_same() {
    if !ready() {
        return;
    }
    let slow = &["--filter=delay", "rdelay=4"];
    let strict = Strict::new(4 * BLOCK, slow, &["request-timeout=6"]);
    let mut front = Front::of(&strict.front);
    let cookies = [0, 1].map(|at| front.submit_write(at * 100, &[7; 100]));
    assert_eq!(cookies.map(|cookie| front.wait(cookie)), [Ok(()); 2]);
    front.close();
    assert_eq!(strict.disk()[..200], [7; 200]);
}

#[test]
fn fio_finds_every_sector_as_it_wrote_it() {
    if !ready() || !need_all(&["fio"]) {
        return;
    }
    let strict = Strict::new(8 << 20, &[], &[]);
    verified_load(&strict.front.uri(), "512", 2);
}

// What the server is asked.

/// Command, flags, offset, length.
type Seen = (u16, u16, u64, u32);

/// What a server of blocks is asked while a client does this. It refuses what concerns only a part of one,
/// and status queries about the odd end of its disk.
fn asked(offer: Offer, act: impl FnOnce(&mut Front)) -> Vec<Seen> {
    let bench = Bench::new(&[EMULATE]);
    let (tell, told) = std::sync::mpsc::channel();
    let (block, _, most) = offer.block_sizes.expect("a server with blocks");
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let mut disk = Disk::new(offer.size);
        loop {
            let request = peer.request()?;
            let Request {
                kind,
                flags,
                offset,
                length,
                cookie,
                ..
            } = request;
            if kind == cmd::DISC {
                return peer.expect_closed();
            }
            // The plugin flushes before it leaves.
            if kind == cmd::FLUSH {
                peer.answer(&request, &mut disk)?;
                continue;
            }
            let _ = tell.send((kind, flags, offset, length));
            let whole = |at: u64| at % u64::from(block) == 0;
            let end = offset + u64::from(length);
            assert!(whole(offset), "{request:?}");
            assert!(whole(end) || end == offer.size, "{request:?}");
            let payload = [cmd::READ, cmd::WRITE].contains(&kind);
            assert!(!payload || length <= most, "{request:?}");
            if kind == cmd::BLOCK_STATUS && !whole(end) {
                peer.answered(&request);
                peer.send(&wire::error(wire::DONE, cookie, errno::EINVAL, b""))?;
            } else {
                peer.answer(&request, &mut disk)?;
            }
        }
    });
    let mut front = bench.open_structured();
    act(&mut front);
    front.close();
    ticket.finished("a server of blocks");
    told.iter().collect()
}

const SIZE: u64 = 1 << 20;
const ODD: u64 = SIZE + 100;

fn offer(size: u64, blocks: (u32, u32, u32)) -> Offer {
    Offer {
        size,
        block_sizes: Some(blocks),
        ..Offer::default()
    }
}

fn blocks(size: u64) -> Offer {
    offer(size, (4096, 4096, 64 << 10))
}

#[test]
fn a_part_is_read_and_written_back_with_fua_on_the_write() {
    if !ready() {
        return;
    }
    for fua in [0, cmd_flag::FUA] {
        let seen = asked(blocks(SIZE), |front| {
            let cookie = front.submit(cmd::WRITE, fua, 100, 5000, &[7; 5000]);
            assert_eq!(front.wait(cookie), Ok(()));
            let mut expected = pattern(0, 8192);
            expected[100..5100].fill(7);
            assert_eq!(front.read(0, 8192), Ok(expected));
        });
        let read = (cmd::READ, 0, 0, 8192);
        assert_eq!(seen, [read, (cmd::WRITE, fua, 0, 8192), read]);
    }
    // Only what is not written is read.
    let seen = asked(blocks(SIZE), |front| {
        assert_eq!(front.write(4096, &[7; 10_000]), Ok(()));
    });
    assert_eq!(
        seen,
        [(cmd::READ, 0, 12288, 4096), (cmd::WRITE, 0, 4096, 12288)]
    );
}

#[test]
fn what_keeps_to_the_blocks_goes_as_it_is() {
    if !ready() {
        return;
    }
    let seen = asked(blocks(SIZE), |front| {
        assert_eq!(front.write(8192, &[7; 4096]), Ok(()));
        assert_eq!(front.read(8192, 4096), Ok(vec![7; 4096]));
        assert_eq!(front.zero(8192, 4096, cmd_flag::FAST_ZERO), Ok(()));
        assert_eq!(front.trim(0, 4096), Ok(()));
    });
    let flags = cmd_flag::FAST_ZERO;
    assert_eq!(
        seen,
        [
            (cmd::WRITE, 0, 8192, 4096),
            (cmd::READ, 0, 8192, 4096),
            (cmd::WRITE_ZEROES, flags, 8192, 4096),
            (cmd::TRIM, 0, 0, 4096),
        ]
    );
}

#[test]
fn long_requests_are_cut_to_what_the_server_takes() {
    if !ready() {
        return;
    }
    let bytes = noise(200_000, 3);
    let mut expected = bytes.clone();
    let seen = asked(offer(SIZE, (65536, 65536, 65536)), |front| {
        assert_eq!(front.write(65_000, &bytes), Ok(()));
        assert_eq!(front.write(131_071, &[1, 2]), Ok(()));
        expected[131_071 - 65_000..][..2].copy_from_slice(&[1, 2]);
        assert!(front.read(65_000, 200_000) == Ok(expected), "read back");
    });
    assert!(seen.iter().all(|(_, _, _, length)| *length == 65536));
}

#[test]
fn zeroes_are_asked_for_where_blocks_are_whole() {
    if !ready() {
        return;
    }
    let flags = cmd_flag::FUA | cmd_flag::NO_HOLE;
    let seen = asked(blocks(SIZE), |front| {
        assert_eq!(front.zero(4000, 10_000, flags), Ok(()));
        let mut expected = pattern(0, 16384);
        expected[4000..14_000].fill(0);
        assert_eq!(front.read(0, 16384), Ok(expected));
        // What has to be read first is not fast.
        let fast = cmd_flag::FAST_ZERO;
        assert_eq!(front.zero(4000, 10_000, fast), Err(errno::ENOTSUP));
    });
    assert_eq!(
        seen,
        [
            (cmd::READ, 0, 0, 4096),
            (cmd::WRITE, cmd_flag::FUA, 0, 4096),
            (cmd::WRITE_ZEROES, flags, 4096, 8192),
            (cmd::READ, 0, 12288, 4096),
            (cmd::WRITE, cmd_flag::FUA, 12288, 4096),
            (cmd::READ, 0, 0, 16384),
        ]
    );
}

#[test]
fn trims_are_narrowed_and_prefetches_widened() {
    if !ready() {
        return;
    }
    let seen = asked(blocks(ODD), |front| {
        let cache = |front: &mut Front, offset, length| {
            let cookie = front.submit(cmd::CACHE, 0, offset, length, &[]);
            assert_eq!(front.wait(cookie), Ok(()));
        };
        assert_eq!(front.trim(4095, 8194), Ok(()));
        assert_eq!(front.trim(1, 8190), Ok(()), "none is whole");
        assert_eq!(front.trim(SIZE - 4096, 4196), Ok(()));
        cache(front, 4095, 2);
        cache(front, SIZE - 1, 101);
        cache(front, SIZE, 100);
    });
    assert_eq!(
        seen,
        [
            (cmd::TRIM, 0, 4096, 8192),
            (cmd::TRIM, 0, SIZE - 4096, 4096),
            (cmd::CACHE, 0, 0, 8192),
            (cmd::CACHE, 0, SIZE - 4096, 4096),
        ]
    );
}

#[test]
fn the_odd_end_of_a_disk_is_a_block_that_is_shorter() {
    if !ready() {
        return;
    }
    let end = |kind| (kind, 0, SIZE, 100);
    let seen = asked(blocks(ODD), |front| {
        assert_eq!(front.export().size, ODD);
        assert_eq!(front.read(ODD - 1, 1), Ok(pattern(ODD - 1, 1)));
        assert_eq!(front.write(ODD - 1, &[7]), Ok(()));
        let mut expected = pattern(SIZE, 100);
        expected[99] = 7;
        assert_eq!(front.read(SIZE, 100), Ok(expected));
        assert_eq!(front.zero(SIZE, 100, cmd_flag::NO_HOLE), Ok(()));
        assert_eq!(front.write(SIZE - 1, &[9; 101]), Ok(()));
        // Nothing has to be read for it.
        let fast = cmd_flag::FAST_ZERO;
        assert_eq!(front.zero(SIZE - 4096, 4196, fast), Ok(()));
    });
    assert_eq!(
        seen,
        [
            end(cmd::READ),
            end(cmd::READ),
            end(cmd::WRITE),
            end(cmd::READ),
            (cmd::WRITE_ZEROES, cmd_flag::NO_HOLE, SIZE, 100),
            (cmd::READ, 0, SIZE - 4096, 4096),
            (cmd::WRITE, 0, SIZE - 4096, 4196),
            (cmd::WRITE_ZEROES, cmd_flag::FAST_ZERO, SIZE - 4096, 4196),
        ]
    );
}

#[test]
fn extents_begin_and_end_where_they_were_asked_for() {
    if !ready() {
        return;
    }
    const HOLE: u64 = 512 << 10;
    let hole = STATE_HOLE | STATE_ZERO;
    let seen = asked(blocks(ODD), |front| {
        // The last one may pass the end of what was asked.
        let expected = vec![(100, 0), (4096, hole)];
        assert_eq!(front.status(HOLE - 100, 200), Ok(expected));
        assert_eq!(front.status_one(HOLE + 1, 5000), Ok(vec![(5000, hole)]));
        // The server says nothing of its odd end.
        assert_eq!(front.status(SIZE, 100), Ok(vec![(100, 0)]));
        assert_eq!(front.status(SIZE + 50, 50), Ok(vec![(50, 0)]));
    });
    let asked: Vec<_> = seen.iter().map(|seen| (seen.2, seen.3)).collect();
    assert_eq!(asked[0], (HOLE - 4096, 8192));
    let odd = |(offset, _): &(u64, u32)| *offset == SIZE;
    assert!(asked.iter().any(odd), "{asked:?}");
}
