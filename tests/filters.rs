// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit's own filters on top of the plugin: each uses its callbacks in its own way.

mod common;

use std::fs;

use common::clients::{assert_same_bytes, nbdcopy, nbdsh, text};
use common::nbdkit::forward;
use common::need_all;
use common::upstream::{file, noise_file};

const SIZE: usize = 4 << 20;

/// Copies a disk out and another one in through nbdkit with these options and parameters.
fn copies_both_ways(extra: &[&str]) {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", SIZE, 91);
    let before = noise_file(directory.path(), "before", SIZE, 91);
    let after = noise_file(directory.path(), "after", SIZE, 92);
    let upstream = file(directory.path(), &disk);
    let front = forward(directory.path(), upstream.socket(), extra);

    let copy = directory.path().join("copy");
    nbdcopy(&[&front.uri(), text(&copy)]);
    assert_same_bytes(&copy, &before);
    nbdcopy(&["--flush", text(&after), &front.uri()]);
    assert_same_bytes(&disk, &after);
}

#[test]
fn one_thread() {
    copies_both_ways(&["-t1"]);
}

#[test]
fn one_request_at_a_time() {
    copies_both_ways(&["--filter=noparallel", "serialize=requests"]);
}

#[test]
fn small_requests() {
    copies_both_ways(&["--filter=blocksize", "maxdata=4096", "maxlen=8192"]);
}

#[test]
fn large_aligned_requests() {
    copies_both_ways(&["--filter=blocksize", "minblock=64K"]);
}

#[test]
fn cache() {
    copies_both_ways(&["--filter=cache", "cache=writethrough"]);
}

#[test]
fn readahead() {
    copies_both_ways(&["--filter=readahead"]);
}

#[test]
fn retry() {
    copies_both_ways(&["--filter=retry"]);
}

#[test]
fn cow_leaves_the_server_as_it_was() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", SIZE, 93);
    let before = fs::read(&disk).expect("read disk");
    let upstream = file(directory.path(), &disk);
    let front = forward(directory.path(), upstream.socket(), &["--filter=cow"]);
    let script = "
h.pwrite(b'x' * 65536, 1234)
h.flush()
assert h.pread(65536, 1234) == b'x' * 65536
";
    nbdsh(&front.uri(), script);
    assert!(
        fs::read(&disk).expect("read disk") == before,
        "the server's disk changed"
    );
}
