// SPDX-License-Identifier: BSD-3-Clause
//! Backups by increments: what has changed, copied onto an overlay of the last full copy, is the disk; and the
//! ways to copy by which it is not, as the manual says.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::bitmaps::{MIB, has_qemu, image, qemu_io, serving};
use common::clients::{LIMIT, attempt, program, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::process::run;
use common::relay::Relay;

const CHANGES: [&str; 2] = ["export=disk", "extents=qemu:dirty-bitmap:b0"];

fn has_all() -> bool {
    has_qemu() && need_all(&["nbdcopy"])
}

/// A new layer on the full copy of a disk.
fn overlay(directory: &Path) -> PathBuf {
    let (full, top) = (directory.join("full.qcow2"), directory.join("top.qcow2"));
    let chain = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    program(
        "qemu-img",
        &[&chain[..], &[text(&full), text(&top)]].concat(),
    );
    top
}

/// Whether two images hold the same, and what qemu-img says of it.
fn compared(one: &Path, other: &Path) -> (bool, String) {
    let formats = ["compare", "-f", "qcow2", "-F", "qcow2"];
    let output = attempt(
        "qemu-img",
        &[&formats[..], &[text(one), text(other)]].concat(),
    );
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), told)
}

/// nbdcopy from nbdkit into an image, with these options.
fn nbdcopy(options: &[&str], front: &Nbdkit, image: &Path) {
    let mut copy = Command::new("nbdcopy");
    copy.args(options).arg("--").arg(front.uri()).args([
        "[",
        "qemu-nbd",
        "-f",
        "qcow2",
        text(image),
        "]",
    ]);
    let output = run(&mut copy, LIMIT);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// A disk of 64 MiB, a full copy of it, and a bitmap of what has changed since: data in three places, and zeroes
/// in one.
fn disk(directory: &Path) -> PathBuf {
    let disk = image(directory, 64, &[]);
    fs::copy(&disk, directory.join("full.qcow2")).expect("the full copy");
    program("qemu-img", &["bitmap", "--add", text(&disk), "b0"]);
    qemu_io(
        &disk,
        &[
            "write -P 0x22 1M 1M".to_owned(),
            "write -z 3M 1M".to_owned(),
            "write -P 0x33 40M 64k".to_owned(),
            "write -P 0x44 64000k 64k".to_owned(),
        ],
    );
    disk
}

#[test]
fn an_increment_onto_the_last_full_copy_is_the_disk() {
    if !has_all() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path();
    let disk = disk(path);
    let server = serving(path, &disk, &["b0"]);
    let front = forward(path, server.socket(), &CHANGES);
    for options in [
        &["--destination-is-zero", "-S", "0"][..],
        &["--destination-is-zero", "--allocated"],
    ] {
        let top = overlay(path);
        nbdcopy(options, &front, &top);
        let (same, told) = compared(&disk, &top);
        assert!(same, "{options:?}: {told}");
        // It holds the changes, and no more.
        let size = fs::metadata(&top).expect("the increment").len();
        assert!(size < 4 * MIB, "{options:?}: {size} bytes");
    }
}

/// Each of these ends well, and leaves something that is not the disk.
#[test]
fn other_ways_to_copy_changes_are_wrong_as_the_manual_says() {
    if !has_all() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path();
    let disk = disk(path);
    let server = serving(path, &disk, &["b0"]);
    let front = forward(path, server.socket(), &CHANGES);
    for options in [&["--destination-is-zero"][..], &["-S", "0"]] {
        let top = overlay(path);
        nbdcopy(options, &front, &top);
        let (same, _) = compared(&disk, &top);
        assert!(!same, "nbdcopy {options:?} is right: change the manual");
    }
    for options in [
        &["--target-is-zero"][..],
        &["--target-is-zero", "-S", "0"],
        &[],
    ] {
        let top = overlay(path);
        let convert = ["convert", "-n", "-f", "raw", "-O", "qcow2"];
        let (uri, image) = (front.uri(), text(&top));
        program(
            "qemu-img",
            &[&convert[..], options, &[uri.as_str(), image]].concat(),
        );
        let (same, _) = compared(&disk, &top);
        assert!(!same, "qemu-img {options:?} is right: change the manual");
    }
}

/// The bar of issue 16: 1 MiB of 10 GiB has changed, and half of that to zeroes.
#[test]
fn an_increment_moves_what_has_changed() {
    if !has_all() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path();
    let disk = path.join("disk.qcow2");
    program(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&disk), "10G"],
    );
    let write = |at: u64| format!("write -P 0x11 {at}M 8M");
    qemu_io(&disk, &[0, 1000, 5000, 10_000].map(write));
    fs::copy(&disk, path.join("full.qcow2")).expect("the full copy");
    program("qemu-img", &["bitmap", "--add", text(&disk), "b0"]);
    qemu_io(
        &disk,
        &[
            "write -P 0x22 1002M 512k".to_owned(),
            "write -z 5003M 512k".to_owned(),
        ],
    );
    let server = serving(path, &disk, &["b0"]);
    let relay = Relay::unix(path, "relay.sock", server.socket());
    let front = relay.forward(path, &CHANGES);
    let top = overlay(path);
    nbdcopy(&["--destination-is-zero", "-S", "0"], &front, &top);
    let (same, told) = compared(&disk, &top);
    assert!(same, "{told}");
    let passed = relay.passed();
    // The server sends zeroes as holes.
    assert!(passed > MIB / 2, "the rest has changed: {passed} bytes");
    assert!(passed < 2 * MIB, "{passed} bytes");
}
