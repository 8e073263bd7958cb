// SPDX-License-Identifier: BSD-3-Clause
//! nbdcopy moves whole disks through the plugin in both directions, byte for byte.

mod common;

use std::fs;
use std::path::Path;

use common::clients::{assert_same_bytes, map, nbdcopy, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::upstream::{file, memory, noise_file};

const MIB: usize = 1 << 20;

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "nbdcopy"])
}

/// Copies a disk of noise out through the plugin, with nbdcopy told how by `options`.
fn copy_out(options: &[&str]) {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    // Not a multiple of any block size: the last request is a short one.
    let image = noise_file(directory.path(), "image", 8 * MIB + 4099, 11);
    let upstream = file(directory.path(), &image);
    let front = forward(directory.path(), upstream.socket(), &[]);
    let copy = directory.path().join("copy");
    let uri = front.uri();
    let mut args = options.to_vec();
    args.extend([uri.as_str(), text(&copy)]);
    nbdcopy(&args);
    assert_same_bytes(&copy, &image);
}

/// Copies a disk of noise in through the plugin.
fn copy_in(options: &[&str]) {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 8 * MIB + 4099, 12);
    let target = noise_file(directory.path(), "target", 8 * MIB + 4099, 13);
    let upstream = file(directory.path(), &target);
    let front = forward(directory.path(), upstream.socket(), &[]);
    let uri = front.uri();
    let mut args = options.to_vec();
    args.extend([text(&image), uri.as_str()]);
    nbdcopy(&args);
    assert_same_bytes(&target, &image);
}

#[test]
fn whole_disk_out() {
    copy_out(&[]);
}

#[test]
fn whole_disk_in() {
    copy_in(&["--flush"]);
}

#[test]
fn out_over_several_connections() {
    copy_out(&["--connections=4", "--threads=4"]);
}

#[test]
fn in_over_several_connections() {
    copy_in(&["--connections=4", "--threads=4", "--flush"]);
}

#[test]
fn out_with_many_small_requests_in_flight() {
    copy_out(&["--connections=1", "--requests=128", "--request-size=16384"]);
}

#[test]
fn in_with_many_small_requests_in_flight() {
    copy_in(&["--connections=1", "--requests=128", "--request-size=16384"]);
}

#[test]
fn out_with_the_largest_requests() {
    copy_out(&["--connections=1", "--requests=4", "--request-size=33554432"]);
}

#[test]
fn out_with_blocking_calls() {
    copy_out(&["--synchronous"]);
}

#[test]
fn out_without_asking_for_extents() {
    copy_out(&["--no-extents"]);
}

#[test]
fn both_ends_through_the_plugin() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 8 * MIB, 14);
    let source = file(directory.path(), &image);
    let source_front = forward(directory.path(), source.socket(), &[]);
    let target = memory(directory.path(), "8M");
    let target_front = forward(directory.path(), target.socket(), &[]);
    nbdcopy(&[&source_front.uri(), &target_front.uri()]);
    let copy = directory.path().join("copy");
    nbdcopy(&[&target.uri(), text(&copy)]);
    assert_same_bytes(&copy, &image);
}

#[test]
fn through_three_plugins_in_a_row() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 8 * MIB, 15);
    let upstream = file(directory.path(), &image);
    let first = forward(directory.path(), upstream.socket(), &[]);
    let second = forward(directory.path(), first.socket(), &[]);
    let third = forward(directory.path(), second.socket(), &[]);
    let copy = directory.path().join("copy");
    nbdcopy(&[&third.uri(), text(&copy)]);
    assert_same_bytes(&copy, &image);
}

#[test]
fn sparse_disk_comes_out_equal_to_the_direct_copy() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(
        directory.path(),
        &["sparse-random", "64M", "percent=25", "seed=7"],
    );
    let front = forward(directory.path(), upstream.socket(), &[]);
    let (direct, through) = (
        directory.path().join("direct"),
        directory.path().join("through"),
    );
    nbdcopy(&[&upstream.uri(), text(&direct)]);
    nbdcopy(&[&front.uri(), text(&through)]);
    assert_same_bytes(&through, &direct);
}

#[test]
fn sparse_disk_stays_sparse_on_the_way_in() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = directory.path().join("image");
    sparse_file(directory.path(), &image);
    // The target starts full of noise, so that every hole must have been zeroed or trimmed.
    let target = noise_file(directory.path(), "target", 32 * MIB, 16);
    let upstream = file(directory.path(), &target);
    let front = forward(directory.path(), upstream.socket(), &[]);
    nbdcopy(&["--flush", text(&image), &front.uri()]);
    assert_same_bytes(&target, &image);
    let holes = map(&upstream.uri()).matches("hole").count();
    assert!(holes > 0, "the zeroes were written out instead of punched");
}

/// A raw file with islands of data between holes.
fn sparse_file(directory: &Path, image: &Path) {
    let island = fs::read(noise_file(directory, "island", MIB, 18)).expect("read island");
    let disk = fs::File::create(image).expect("create image");
    disk.set_len(32 * MIB as u64).expect("make it sparse");
    for position in [0, 9 * MIB, 20 * MIB + 512, 31 * MIB] {
        std::os::unix::fs::FileExt::write_all_at(&disk, &island, position as u64)
            .expect("write island");
    }
}
