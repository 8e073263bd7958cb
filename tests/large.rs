// SPDX-License-Identifier: BSD-3-Clause
//! Requests larger than the other server takes. nbdkit lets clients ask for 64 MiB at once; qemu-nbd refuses
//! more than 32 MiB, and others less.

mod common;

use std::fs;
use std::path::Path;

use common::clients::{nbdsh, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pair::Pair;
use common::upstream::{noise, noise_file, qemu_nbd};

const MIB: usize = 1 << 20;

#[test]
fn read_of_64_mib_from_qemu_nbd() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 66 * MIB, 71);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &[]);
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    let script = format!(
        "
h.set_strict_mode(0)
disk = open('{}', 'rb').read()
for length, offset in ((64 << 20, 12345), ((32 << 20) + 512, 0), ((32 << 20) + 1, 3), (32 << 20, 7)):
    assert h.pread(length, offset) == disk[offset:offset + length], (length, offset)
",
        text(&image)
    );
    nbdsh(&front.uri(), &script);
}

#[test]
fn write_of_64_mib_to_qemu_nbd() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 66 * MIB, 72);
    let data = noise_file(directory.path(), "data", 64 * MIB, 73);
    let offset = 54_321;
    {
        let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &[]);
        let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
        let script = format!(
            "
h.set_strict_mode(0)
h.pwrite(open('{}', 'rb').read(), {offset}, nbd.CMD_FLAG_FUA)
",
            text(&data)
        );
        nbdsh(&front.uri(), &script);
    }
    let mut expected = noise(66 * MIB, 72);
    expected[offset..offset + 64 * MIB].copy_from_slice(&fs::read(&data).expect("read data"));
    let stored = fs::read(&image).expect("read image");
    assert_eq!(stored.iter().zip(&expected).position(|(a, b)| a != b), None);
}

#[test]
fn requests_are_cut_to_the_servers_maximum() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 4 * MIB, 74);
    // This server refuses whatever is larger than the maximum that it told us.
    let upstream = Nbdkit::start(
        directory.path(),
        &[
            "--filter=blocksize-policy",
            "file",
            text(&image),
            "blocksize-minimum=1",
            "blocksize-preferred=4096",
            "blocksize-maximum=65536",
            "blocksize-error-policy=error",
        ],
    );
    let front = forward(directory.path(), upstream.socket(), &[]);
    let script = format!(
        "
h.set_strict_mode(0)
disk = bytearray(open('{}', 'rb').read())
assert h.pread(3 << 20, 1000) == disk[1000:1000 + (3 << 20)]
data = bytes(reversed(disk[:2 << 20]))
h.pwrite(data, 77)
disk[77:77 + len(data)] = data
assert h.pread(len(disk), 0) == disk
",
        text(&image)
    );
    nbdsh(&front.uri(), &script);
}

/// Zeroes 200 MiB in one request, before nbdkit with these arguments and a file of other bytes.
fn zeroes_200_mib(args: &[&str]) {
    if !need_all(&["nbdkit"]) {
        return;
    }
    const LENGTH: usize = 200 * MIB;
    let image = |directory: &Path| directory.join("image");
    let pair = Pair::with(
        |directory| {
            let image = image(directory);
            fs::write(&image, vec![0xaa; LENGTH + 2]).expect("write image");
            Nbdkit::start(directory, &[args, &["file", text(&image)]].concat())
        },
        &[],
    );
    nbdsh(
        &pair.front.uri(),
        &format!("h.set_strict_mode(0)\nh.zero({LENGTH}, 1)"),
    );
    let stored = fs::read(image(pair.path())).expect("read image");
    assert_eq!(
        stored[1..=LENGTH].iter().position(|byte| *byte != 0),
        None,
        "every byte asked for is zero"
    );
    assert_eq!(
        (stored[0], stored[LENGTH + 1]),
        (0xaa, 0xaa),
        "and none beside them"
    );
}

#[test]
fn zero_of_200_mib_where_the_server_cannot_zero() {
    zeroes_200_mib(&["--filter=nozero"]);
}

#[test]
fn zero_of_200_mib_where_the_server_can_zero() {
    zeroes_200_mib(&[]);
}

#[test]
fn commands_without_data_may_span_gigabytes() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let pair = Pair::new(&["memory", "1T"], &[]);
    let script = "
h.set_strict_mode(0)
almost_4_gib = 2**32 - 4096
h.pwrite(b'x' * 4096, 2**32 - 8192)
h.zero(almost_4_gib, 0)
assert h.pread(4096, 2**32 - 8192) == bytes(4096)
h.trim(almost_4_gib, 2**32)
";
    nbdsh(&pair.front.uri(), script);
}
