// SPDX-License-Identifier: BSD-3-Clause
//! TRIM, WRITE_ZEROES and CACHE that are longer than what the server takes at once. The protocol has no word for
//! that limit, so it is found by trying.

mod common;

use std::sync::{Arc, Mutex, PoisonError};

use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need;
use common::scripted::bench::Bench;
use common::scripted::peer::{Offer, Peer, Request};
use common::scripted::wire::{self, cmd, cmd_flag, errno};

const MIB: u32 = 1 << 20;

/// What the server was asked: command, flags, offset and length.
type Asked = Arc<Mutex<Vec<(u16, u16, u64, u32)>>>;

/// The next connection answers what is longer than `limit` bytes with `error`, and everything else well.
fn limited(bench: &Bench, limit: u32, error: u32) -> Asked {
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    bench.play(move |peer: &mut Peer| {
        peer.negotiate(&Offer {
            size: 1 << 40,
            block_sizes: Some((1, 4096, 32 * MIB)),
            ..Offer::simple()
        })?;
        loop {
            let Request {
                kind,
                flags,
                offset,
                length,
                cookie,
                ..
            } = peer.request()?;
            if kind == cmd::DISC {
                return Ok(());
            }
            lock(&log).push((kind, flags, offset, length));
            let how = if length > limit { error } else { 0 };
            peer.send(&wire::simple(cookie, how))?;
        }
    });
    asked
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Offsets and lengths of what was asked since the last time.
fn ranges(asked: &Asked) -> Vec<(u64, u32)> {
    let asked = std::mem::take(&mut *lock(asked));
    asked
        .iter()
        .map(|(_, _, offset, length)| (*offset, *length))
        .collect()
}

const COMMANDS: [(u16, u16); 3] = [
    (cmd::TRIM, cmd_flag::FUA),
    (cmd::WRITE_ZEROES, cmd_flag::NO_HOLE),
    (cmd::CACHE, 0),
];

fn ask(client: &mut Front, command: (u16, u16), offset: u64, length: u32) -> Result<(), u32> {
    let cookie = client.submit(command.0, command.1, offset, length, &[]);
    client.wait(cookie)
}

#[test]
fn what_is_declined_is_cut_to_the_largest_payload_and_that_is_remembered() {
    if !need("nbdkit") {
        return;
    }
    for command in COMMANDS {
        for error in [errno::EINVAL, errno::EOVERFLOW] {
            let bench = Bench::new(&[]);
            let asked = limited(&bench, 32 * MIB, error);
            let mut client = bench.open();
            assert_eq!(ask(&mut client, command, 4096, 80 * MIB), Ok(()));
            let flags = lock(&asked).iter().map(|asked| asked.1).collect::<Vec<_>>();
            assert_eq!(flags, [command.1; 4], "every piece has the flags");
            let parts = [
                (4096, 32 * MIB),
                (4096 + (32 << 20), 32 * MIB),
                (4096 + (64 << 20), 16 * MIB),
            ];
            assert_eq!(ranges(&asked), [&[(4096, 80 * MIB)][..], &parts].concat());
            // A second time nothing has to be found out.
            assert_eq!(ask(&mut client, command, 4096, 80 * MIB), Ok(()));
            assert_eq!(ranges(&asked), parts);
        }
    }
}

#[test]
fn a_smaller_limit_is_found_too() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    let asked = limited(&bench, MIB, errno::EOVERFLOW);
    let mut client = bench.open();
    assert_eq!(ask(&mut client, COMMANDS[1], 0, 8 * MIB), Ok(()));
    let asked = ranges(&asked);
    let done = asked.iter().filter(|(_, length)| *length <= MIB);
    assert_eq!(done.map(|(_, length)| length).sum::<u32>(), 8 * MIB);
    assert_eq!(asked[..3], [(0, 8 * MIB), (0, 2 * MIB), (0, MIB / 2)]);
}

#[test]
fn the_least_that_is_tried_is_64_kib() {
    if !need("nbdkit") {
        return;
    }
    for command in COMMANDS {
        let bench = Bench::new(&[]);
        let asked = limited(&bench, MIB / 16, errno::EINVAL);
        let mut client = bench.open();
        assert_eq!(ask(&mut client, command, 512, 4 * MIB), Ok(()));
        let done = ranges(&asked).into_iter().map(|(_, length)| length);
        assert_eq!(done.filter(|n| *n <= MIB / 16).sum::<u32>(), 4 * MIB);
    }
}

#[test]
fn a_server_that_declines_everything_is_not_asked_for_ever() {
    if !need("nbdkit") {
        return;
    }
    for command in COMMANDS {
        let bench = Bench::new(&[]);
        let asked = limited(&bench, 0, errno::EINVAL);
        let mut client = bench.open();
        assert_eq!(ask(&mut client, command, 0, 1 << 30), Err(errno::EINVAL));
        let asked = ranges(&asked);
        assert!(asked.len() <= 7, "{asked:?}");
        let log = bench.nbdkit().stderr();
        assert!(
            log.contains("of 1073741824 bytes at offset 0: server answered NBD_EINVAL"),
            "the answer to the question that was asked: {log}"
        );
    }
}

#[test]
fn a_short_range_is_declined_once() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    let asked = limited(&bench, 0, errno::EINVAL);
    let mut client = bench.open();
    assert_eq!(ask(&mut client, COMMANDS[0], 0, 4096), Err(errno::EINVAL));
    assert_eq!(ranges(&asked), [(0, 4096)]);
}

#[test]
fn other_errors_are_not_about_the_length() {
    if !need("nbdkit") {
        return;
    }
    for error in [errno::EIO, errno::ENOSPC, errno::EPERM] {
        let bench = Bench::new(&[]);
        let asked = limited(&bench, MIB, error);
        let mut client = bench.open();
        assert_eq!(ask(&mut client, COMMANDS[0], 0, 64 * MIB), Err(error));
        assert_eq!(ranges(&asked).len(), 1);
    }
}

#[test]
fn another_client_of_the_export_knows_the_limit() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    limited(&bench, 32 * MIB, errno::EINVAL);
    let mut first = bench.open();
    assert_eq!(ask(&mut first, COMMANDS[0], 0, 64 * MIB), Ok(()));
    let asked = limited(&bench, 32 * MIB, errno::EINVAL);
    let mut second = bench.open();
    assert_eq!(ask(&mut second, COMMANDS[0], 0, 64 * MIB), Ok(()));
    assert_eq!(ranges(&asked), [(0, 32 * MIB), (32 << 20, 32 * MIB)]);
}

#[test]
fn nbdkit_with_the_blocksize_policy_filter_is_satisfied() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(
        directory.path(),
        &[
            "--filter=blocksize-policy",
            "memory",
            "1G",
            "blocksize-minimum=512",
            "blocksize-maximum=1M",
            "blocksize-preferred=4096",
            "blocksize-error-policy=error",
        ],
    );
    let front = common::nbdkit::forward(directory.path(), upstream.socket(), &[]);
    let mut client = Front::open(front.socket()).expect("an export");
    assert_eq!(client.write(0, &[7; 4096]), Ok(()));
    assert_eq!(client.zero(0, 64 * MIB, 0), Ok(()));
    assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
    assert_eq!(client.trim(0, 64 * MIB), Ok(()));
}
