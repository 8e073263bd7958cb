// SPDX-License-Identifier: BSD-3-Clause
//! fio's own NBD client under load: every block carries a checksum, which is verified when it is read back.

mod common;

use std::path::Path;

use common::clients::verified_load;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::pair::Pair;
use common::upstream::{memory, noise_file, qemu_nbd};

/// A front for `upstream` that logs no debug messages: they are not what is tested here, and they are many.
fn quiet(directory: &Path, upstream: &Path, export: &str) -> Nbdkit {
    let plugin = common::plugin();
    let socket = format!("socket={}", upstream.display());
    let export = format!("export={export}");
    Nbdkit::start(
        directory,
        &[plugin.to_str().expect("plain path"), &socket, &export],
    )
}

#[test]
fn small_blocks_on_nbdkit() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "16M");
    let front = quiet(directory.path(), upstream.socket(), "");
    verified_load(&front.uri(), "4k", 4);
}

#[test]
fn mixed_blocks_on_nbdkit_with_debug_messages() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let pair = Pair::new(&["memory", "16M"], &["-Dnbd.verbose=1"]);
    verified_load(&pair.front.uri(), "64k", 4);
}

#[test]
fn large_blocks_on_nbdkit_with_simple_replies() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(directory.path(), &["--no-sr", "memory", "16M"]);
    let front = quiet(directory.path(), upstream.socket(), "");
    verified_load(&front.uri(), "256k", 4);
}

#[test]
fn small_blocks_on_qemu_nbd() {
    if !need_all(&["nbdkit", "fio", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 16 << 20, 61);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &[]);
    let front = quiet(directory.path(), upstream.socket(), "disk");
    verified_load(&front.uri(), "16k", 4);
}
