// SPDX-License-Identifier: BSD-3-Clause
//! Maps of large disks: queries and extents near 4 GiB, and how many queries a map takes.

mod common;

use std::fs;

use common::clients::{map, program, text};
use common::nbdkit::forward;
use common::need_all;
use common::scripted::bench::Bench;
use common::scripted::disk::Disk;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, DONE, cmd};
use common::upstream::qemu_nbd;

const GIB: u64 = 1 << 30;

/// What a client sees that asks a disk of 8 GiB for `length` bytes from its start, when the server has
/// `extents` for it. The server must be asked for just that length.
fn seen(length: u32, extents: &'static [(u32, u32)]) -> Vec<(u32, u32)> {
    asked(length, length, None, extents)
}

/// [`seen`] for a server with these block sizes, that must be asked for `length` bytes.
fn asked(
    query: u32,
    length: u32,
    block_sizes: Option<(u32, u32, u32)>,
    extents: &'static [(u32, u32)],
) -> Vec<(u32, u32)> {
    let mut bench = Bench::new(&[]);
    let offer = Offer {
        size: 8 * GIB,
        block_sizes,
        ..Offer::default()
    };
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let request = peer.request()?;
        assert_eq!(request.kind, cmd::BLOCK_STATUS);
        assert_eq!((request.offset, request.length), (0, length));
        peer.send(&wire::status(
            DONE,
            request.cookie,
            offer.contexts[0].0,
            extents,
        ))?;
        peer.answered(&request);
        peer.serve(&mut Disk::new(offer.size))
    });
    let mut front = bench.open_structured();
    let seen = front.status(0, query).expect("a good answer");
    front.close();
    ticket.finished("a long query");
    bench.serves_the_next("a long query");
    seen
}

#[test]
fn long_queries_are_asked_and_answered_whole() {
    for length in [1 << 31, (1 << 31) + 512, u32::MAX - 511, u32::MAX] {
        let extents: &[(u32, u32)] = match length {
            u32::MAX => &[(1 << 31, 0), ((1 << 31) - 1, 3)],
            _ => &[(1 << 20, 0), (u32::MAX - (1 << 20), 3)],
        };
        assert_eq!(seen(length, extents), extents, "{length}");
    }
}

#[test]
fn the_longest_query_is_asked_in_whole_blocks() {
    let sizes = Some((4096, 4096, 1 << 20));
    let extents = &[(1 << 20, 0), (1 << 20, 3)];
    assert_eq!(asked(u32::MAX, u32::MAX - 4095, sizes, extents), extents);
}

/// nbdkit before 1.44 aborts when extents that are alike add up to 4 GiB or more.
#[test]
fn extents_of_one_answer_stay_below_four_gigabytes() {
    // nbdkit 1.48 keeps to whole blocks, however large they may be.
    let longest = [u32::MAX, u32::MAX - 0xffff].map(|length| vec![(length, 3)]);
    let is_longest = |extents: Vec<(u32, u32)>| assert!(longest.contains(&extents), "{extents:?}");
    is_longest(seen(u32::MAX, &[(1 << 31, 3), (1 << 31, 3)]));
    const SEVERAL: &[(u32, u32)] = &[(u32::MAX - 1, 3), (u32::MAX, 3), (u32::MAX, 3)];
    is_longest(seen(u32::MAX, SEVERAL));
    assert_eq!(
        seen(u32::MAX, &[(1 << 31, 0), (u32::MAX, 3)]),
        [(1 << 31, 0), ((1 << 31) - 1, 3)]
    );
}

/// A map of 64 GiB takes one query for every 4 GiB less a byte, as without the plugin.
#[test]
fn the_map_of_a_large_disk_takes_few_queries() {
    if !need_all(&["nbdkit", "nbdinfo", "qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = directory.path().join("large.qcow2");
    program(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&image), "64G"],
    );
    program(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "write 0 1M",
            "-c",
            "write 10G 1M",
            "-c",
            "write 50G 5M",
            text(&image),
        ],
    );
    let server = qemu_nbd(directory.path(), &image, "qcow2", "", &[]);
    let log = directory.path().join("requests.log");
    let logfile = format!("logfile={}", log.display());
    let nbdkit = forward(
        directory.path(),
        server.socket(),
        &["--filter=log", &logfile],
    );

    assert_eq!(map(&nbdkit.uri()), map(&server.uri_export("")));

    let log = fs::read_to_string(&log).expect("a log");
    let queries = log
        .lines()
        .filter(|line| line.contains(" Extents id=") && line.ends_with("..."));
    assert_eq!(queries.count(), 17, "{log}");
}
