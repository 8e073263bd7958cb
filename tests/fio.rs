//! fio's own NBD client under load: every block carries a checksum, which is verified when it is read back.

mod common;

use std::path::Path;

use common::clients::program;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::pair::Pair;
use common::upstream::{memory, noise_file, qemu_nbd};

/// Four jobs, each with its own connection and sixteen requests in flight on its own part of the disk.
fn verified_load(front: &Nbdkit, block_size: &str) {
    let uri = format!("--uri={}", front.uri());
    let block_size = format!("--bs={block_size}");
    program(
        "fio",
        &[
            "--name=verified",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            &block_size,
            "--size=4M",
            "--offset_increment=4M",
            "--numjobs=4",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            // It would leave its state in the directory of the tests.
            "--verify_state_save=0",
            "--randseed=7",
        ],
    );
}

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
    verified_load(&quiet(directory.path(), upstream.socket(), ""), "4k");
}

#[test]
fn mixed_blocks_on_nbdkit_with_debug_messages() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let pair = Pair::new(&["memory", "16M"], &["-Dnbd.verbose=1"]);
    verified_load(&pair.front, "64k");
}

#[test]
fn large_blocks_on_nbdkit_with_simple_replies() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(directory.path(), &["--no-sr", "memory", "16M"]);
    verified_load(&quiet(directory.path(), upstream.socket(), ""), "256k");
}

#[test]
fn small_blocks_on_qemu_nbd() {
    if !need_all(&["nbdkit", "fio", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 16 << 20, 61);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &[]);
    verified_load(&quiet(directory.path(), upstream.socket(), "disk"), "16k");
}
