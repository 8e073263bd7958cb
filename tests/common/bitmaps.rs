// SPDX-License-Identifier: BSD-3-Clause
//! Disks of qemu's with bitmaps of what has changed, and what must be seen of them.

use std::path::{Path, PathBuf};

use super::clients::{map, program, text};
use super::need_all;
use super::pair::Pair;
use super::upstream::{Server, qemu_nbd};

pub const MIB: u64 = 1 << 20;

pub fn has_qemu() -> bool {
    need_all(&["nbdkit", "nbdinfo", "qemu-nbd", "qemu-img", "qemu-io"])
}

/// qemu-io with these commands on a qcow2 image.
pub fn qemu_io(image: &Path, commands: &[String]) {
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(text(image));
    program("qemu-io", &args);
}

/// A qcow2 image of `mib` MiB, all of it data of one byte in its first half, with these bitmaps on it.
pub fn image(directory: &Path, mib: u64, bitmaps: &[&str]) -> PathBuf {
    let image = directory.join("disk.qcow2");
    let size = format!("{mib}M");
    program(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&image), &size],
    );
    qemu_io(&image, &[format!("write -P 0x11 0 {}M", mib / 2)]);
    for bitmap in bitmaps {
        program("qemu-img", &["bitmap", "--add", text(&image), bitmap]);
    }
    image
}

/// qemu-nbd that shows the bitmaps of an image, and its backing chain.
pub fn serving(directory: &Path, image: &Path, bitmaps: &[&str]) -> Server {
    let mut extra = vec!["-r", "-A"];
    bitmaps
        .iter()
        .for_each(|bitmap| extra.extend(["-B", bitmap]));
    qemu_nbd(directory, image, "qcow2", "disk", &extra)
}

/// A disk of 16 MiB with bitmap `b0`, since when the second MiB was written and the fourth zeroed; and an older
/// bitmap `a b` of which qemu knows the second MiB only, too.
pub fn changed(directory: &Path) -> PathBuf {
    let image = image(directory, 16, &["b0", "a b"]);
    qemu_io(
        &image,
        &[
            "write -P 0x22 1M 1M".to_owned(),
            "write -z 3M 1M".to_owned(),
        ],
    );
    image
}

pub const BOTH: [&str; 2] = ["b0", "a b"];

/// Extents as nbdinfo shows them: offset, length, type; neighbours that are alike joined.
pub fn extents(uri: &str) -> Vec<(u64, u64, u64)> {
    let mut all: Vec<(u64, u64, u64)> = Vec::new();
    for line in map(uri).lines() {
        let mut fields = line
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(u64::MAX));
        let mut next = || fields.next().expect("three numbers");
        let (offset, length, kind) = (next(), next(), next());
        match all.last_mut() {
            Some(last) if last.2 == kind => last.1 += length,
            _ => all.push((offset, length, kind)),
        }
    }
    all
}

/// What the bitmap of [`changed`] must look like: dirty is data, clean is a hole that reads as zero.
pub fn dirty() -> Vec<(u64, u64, u64)> {
    vec![
        (0, MIB, 3),
        (MIB, MIB, 0),
        (2 * MIB, MIB, 3),
        (3 * MIB, MIB, 0),
        (4 * MIB, 12 * MIB, 3),
    ]
}

/// nbdkit before a disk with two bitmaps.
pub fn before_changed(extra: &[&str]) -> Pair<Server> {
    Pair::with(|dir| serving(dir, &changed(dir), &BOTH), extra)
}
