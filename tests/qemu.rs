// SPDX-License-Identifier: BSD-3-Clause
//! QEMU's programs on both sides: qemu-nbd as the other server, qemu-img and qemu-io as clients.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::clients::{assert_same_bytes, nbdcopy, program, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pair::Pair;
use common::upstream::{Server, memory, noise_file, qemu_nbd};

const MIB: usize = 1 << 20;

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "nbdcopy", "qemu-nbd", "qemu-img", "qemu-io"])
}

/// A qcow2 disk as people have them: random data, compressed clusters, overwritten parts, zeroed and never
/// written ranges, and a size that is no multiple of a cluster.
fn realistic_qcow2(directory: &Path) -> PathBuf {
    let raw = noise_file(directory, "content.raw", 20 * MIB + 12 * 512, 41);
    let image = directory.join("disk.qcow2");
    program(
        "qemu-img",
        &[
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            text(&raw),
            text(&image),
        ],
    );
    program("qemu-img", &["resize", "-q", text(&image), "48M"]);
    qemu_io(
        "qcow2",
        text(&image),
        &[
            "write -P 0x5a 3M 1M",
            "write -z 7M 2M",
            "write -P 0xa5 40M 70000",
            "discard 12M 1M",
        ],
    );
    image
}

/// Copies a disk image into another format.
fn convert(from_format: &str, from: &Path, to_format: &str, to: &Path) {
    let formats = ["convert", "-f", from_format, "-O", to_format];
    program(
        "qemu-img",
        &[&formats[..], &[text(from), text(to)]].concat(),
    );
}

/// qemu-nbd with a [`realistic_qcow2`], and the plugin before it.
fn realistic_pair() -> Pair<Server> {
    Pair::with(
        |directory| {
            let image = realistic_qcow2(directory);
            qemu_nbd(directory, &image, "qcow2", "disk", &[])
        },
        &["export=disk"],
    )
}

/// Runs `commands` of qemu-io on `target`, all of which must succeed. qemu-io reports a wrong pattern only in
/// its text.
fn qemu_io(format: &str, target: &str, commands: &[&str]) -> String {
    let mut args = vec!["-f", format];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(target);
    let printed = program("qemu-io", &args);
    assert!(
        !printed.contains("failed") && !printed.contains("error"),
        "{printed}"
    );
    printed
}

/// The main job of this plugin.
#[test]
fn qcow2_disk_is_copied_out_byte_for_byte() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = realistic_qcow2(directory.path());
    let expected = directory.path().join("expected.raw");
    convert("qcow2", &image, "raw", &expected);

    let upstream = qemu_nbd(directory.path(), &image, "qcow2", "disk", &["--read-only"]);
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    let copy = directory.path().join("copy.raw");
    nbdcopy(&[&front.uri(), text(&copy)]);

    assert_same_bytes(&copy, &expected);
    assert!(!front.stderr().contains("error:"), "{}", front.stderr());
}

#[test]
fn disk_is_copied_into_a_qcow2_byte_for_byte() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let source = directory.path().join("source.raw");
    let template = realistic_qcow2(directory.path());
    convert("qcow2", &template, "raw", &source);

    let image = directory.path().join("target.qcow2");
    program(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&image), "48M"],
    );
    {
        let upstream = qemu_nbd(
            directory.path(),
            &image,
            "qcow2",
            "disk",
            &["--discard=unmap"],
        );
        let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
        nbdcopy(&["--flush", text(&source), &front.uri()]);
    }
    let stored = directory.path().join("stored.raw");
    convert("qcow2", &image, "raw", &stored);
    assert_same_bytes(&stored, &source);
}

#[test]
fn qemu_img_converts_through_the_plugin() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 16 * MIB, 42);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &[]);
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    let copy = directory.path().join("copy");
    program(
        "qemu-img",
        &[
            "convert",
            "-m",
            "8",
            "-W",
            "-f",
            "raw",
            "-O",
            "raw",
            &front.uri(),
            text(&copy),
        ],
    );
    assert_same_bytes(&copy, &image);
}

#[test]
fn qemu_img_writes_through_the_plugin() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 16 * MIB, 43);
    let upstream = memory(directory.path(), "16M");
    let front = forward(directory.path(), upstream.socket(), &[]);
    program(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            text(&image),
            &front.uri(),
        ],
    );
    let copy = directory.path().join("copy");
    nbdcopy(&[&upstream.uri(), text(&copy)]);
    assert_same_bytes(&copy, &image);
}

#[test]
fn qemu_img_finds_the_disks_identical() {
    if !ready() {
        return;
    }
    let pair = realistic_pair();
    let direct = pair.server.uri_export("disk");
    let verdict = program(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &direct,
            &pair.front.uri(),
        ],
    );
    assert!(verdict.contains("identical"), "{verdict}");
}

#[test]
fn qemu_img_sees_the_same_map() {
    if !ready() {
        return;
    }
    let pair = realistic_pair();
    let map = |uri: &str| program("qemu-img", &["map", "--output=json", "-f", "raw", uri]);
    let direct = map(&pair.server.uri_export("disk"));
    assert!(
        direct.contains("\"zero\": true"),
        "the disk has holes: {direct}"
    );
    assert_eq!(map(&pair.front.uri()), direct);
}

#[test]
fn qemu_img_info_knows_the_size() {
    if !ready() {
        return;
    }
    let pair = Pair::new(&["memory", "16M"], &[]);
    let info = program(
        "qemu-img",
        &["info", "--output=json", "-f", "raw", &pair.front.uri()],
    );
    let info: serde_json::Value = serde_json::from_str(&info).expect("qemu-img writes JSON");
    assert_eq!(info["virtual-size"], 16 * MIB);
}

#[test]
fn qcow2_inside_the_export_is_served_as_it_is() {
    if !ready() {
        return;
    }
    // The format is read by the client, on its side of the plugin.
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = realistic_qcow2(directory.path());
    let upstream = Nbdkit::start(directory.path(), &["file", text(&image)]);
    let front = forward(directory.path(), upstream.socket(), &[]);
    let verdict = program(
        "qemu-img",
        &[
            "compare",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            text(&image),
            &front.uri(),
        ],
    );
    assert!(verdict.contains("identical"), "{verdict}");
}

#[test]
fn patterns_are_read_back() {
    if !ready() {
        return;
    }
    let pair = Pair::new(&["memory", "16M"], &[]);
    qemu_io(
        "raw",
        &pair.front.uri(),
        &[
            "write -P 0x11 0 1M",
            "write -P 0x22 512K 1M",
            "write -f -P 0x33 4097 511",
            "flush",
            "read -P 0x11 0 4097",
            "read -P 0x33 4097 511",
            "read -P 0x11 4608 519680",
            "read -P 0x22 512K 1M",
            "read -P 0 1536K 1M",
        ],
    );
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zeroes() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 8 * MIB, 44);
    let upstream = qemu_nbd(
        directory.path(),
        &image,
        "raw",
        "disk",
        &["--discard=unmap"],
    );
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    qemu_io(
        "raw",
        &front.uri(),
        &[
            "write -P 0x77 0 8M",
            "write -z 1M 1M",
            "write -z -u 3M 1M",
            "discard 5M 1M",
            "read -P 0x77 0 1M",
            "read -P 0 1M 1M",
            "read -P 0x77 2M 1M",
            "read -P 0 3M 1M",
            "read -P 0x77 4M 1M",
            "read -P 0x77 6M 2M",
            "flush",
        ],
    );
    // Not through the server: what is in the file itself.
    let stored = fs::read(&image).expect("read the image");
    assert!(stored[MIB..2 * MIB].iter().all(|byte| *byte == 0), "zeroed");
    assert!(
        stored[3 * MIB..4 * MIB].iter().all(|byte| *byte == 0),
        "zeroed with a hole"
    );
    assert!(
        stored[6 * MIB..].iter().all(|byte| *byte == 0x77),
        "untouched"
    );
}

#[test]
fn many_writes_in_flight_end_where_they_belong() {
    if !ready() {
        return;
    }
    let pair = Pair::new(&["memory", "16M"], &[]);
    let writes: Vec<String> = (0..64)
        .map(|n| format!("aio_write -P {} {}K 64K", n + 1, n * 64))
        .collect();
    let mut commands: Vec<&str> = writes.iter().map(String::as_str).collect();
    commands.push("aio_flush");
    let reads: Vec<String> = (0..64)
        .map(|n| format!("read -P {} {}K 64K", n + 1, n * 64))
        .collect();
    commands.extend(reads.iter().map(String::as_str));
    qemu_io("raw", &pair.front.uri(), &commands);
}
