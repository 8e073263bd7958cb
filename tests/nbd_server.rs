// SPDX-License-Identifier: BSD-3-Clause
//! nbd-server, the reference implementation of the protocol, as the other server: fixed newstyle, simple
//! replies only.

mod common;

use std::fs;

use common::clients::{assert_same_bytes, attempt, nbdcopy, nbdsh, program, text};
use common::nbdkit::forward;
use common::need_all;
use common::upstream::{nbd_server, noise_file};

const SIZE: usize = 8 << 20;

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "nbd-server", "socat"])
}

#[test]
fn whole_disk_out() {
    if !ready() || !need_all(&["nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", SIZE, 51);
    let upstream = nbd_server(directory.path(), &image, "disk", &[]);
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    let copy = directory.path().join("copy");
    nbdcopy(&[&front.uri(), text(&copy)]);
    assert_same_bytes(&copy, &image);
}

#[test]
fn whole_disk_in() {
    if !ready() || !need_all(&["nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", SIZE, 52);
    let target = noise_file(directory.path(), "target", SIZE, 53);
    let upstream = nbd_server(
        directory.path(),
        &target,
        "disk",
        &["flush = true", "fua = true"],
    );
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    nbdcopy(&["--flush", text(&image), &front.uri()]);
    assert_same_bytes(&target, &image);
}

#[test]
fn commands_with_their_flags() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", SIZE, 54);
    let before = fs::read(&image).expect("read image");
    let upstream = nbd_server(
        directory.path(),
        &image,
        "disk",
        &["flush = true", "fua = true", "trim = true"],
    );
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    nbdsh(
        &front.uri(),
        "
h.pwrite(b'x' * 4096, 4096, nbd.CMD_FLAG_FUA)
h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
h.zero(65536, 262144)
h.trim(65536, 524288)
h.flush()
assert h.pread(4096, 4096) == b'x' * 4096
assert h.pread(65536, 65536) == bytes(65536)
assert h.pread(65536, 262144) == bytes(65536)
",
    );
    let after = fs::read(&image).expect("read image");
    assert!(after[4096..8192].iter().all(|byte| *byte == b'x'));
    assert!(after[65536..131_072].iter().all(|byte| *byte == 0));
    assert_eq!(after[1 << 20..], before[1 << 20..], "the rest is untouched");
}

#[test]
fn read_only_export() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", SIZE, 55);
    let upstream = nbd_server(directory.path(), &image, "disk", &["readonly = true"]);
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.is_read_only())").trim_end(),
        "True"
    );
}

#[test]
fn export_that_does_not_exist() {
    if !ready() || !need_all(&["nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", SIZE, 56);
    let upstream = nbd_server(directory.path(), &image, "disk", &[]);
    let mut wrong = forward(directory.path(), upstream.socket(), &["export=wrong"]);
    assert!(
        !attempt("nbdinfo", &["--size", &wrong.uri()])
            .status
            .success()
    );
    assert!(wrong.alive());
    // The server itself is fine.
    let right = forward(directory.path(), upstream.socket(), &["export=disk"]);
    assert_eq!(
        program("nbdinfo", &["--size", &right.uri()]).trim_end(),
        SIZE.to_string()
    );
}
