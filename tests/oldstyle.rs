// SPDX-License-Identifier: BSD-3-Clause
//! Every style of handshake: what the other server speaks and what our own clients speak are independent.

mod common;

use common::clients::{assert_same_bytes, nbdcopy, nbdsh, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pair::Pair;
use common::upstream::{file, noise_file};

const SIZE: usize = (4 << 20) + 513;

/// Copies a disk of noise out and another one in, through a front for an upstream with these options of nbdkit.
fn copies_both_ways(upstream_options: &[&str], front_options: &[&str]) {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", SIZE, 31);
    let before = noise_file(directory.path(), "before", SIZE, 31);
    let after = noise_file(directory.path(), "after", SIZE, 32);
    let mut args = upstream_options.to_vec();
    args.extend(["file", text(&disk)]);
    let upstream = Nbdkit::start(directory.path(), &args);
    let front = forward(directory.path(), upstream.socket(), front_options);

    let copy = directory.path().join("copy");
    nbdcopy(&[&front.uri(), text(&copy)]);
    assert_same_bytes(&copy, &before);
    // Without --flush: nbdkit 1.32 offers flush in the oldstyle handshake and then refuses it.
    nbdcopy(&[text(&after), &front.uri()]);
    assert_same_bytes(&disk, &after);
}

#[test]
fn newstyle_to_newstyle() {
    copies_both_ways(&["-n"], &[]);
}

#[test]
fn oldstyle_to_newstyle() {
    copies_both_ways(&["-o"], &[]);
}

#[test]
fn newstyle_to_oldstyle() {
    copies_both_ways(&[], &["-o"]);
}

#[test]
fn oldstyle_to_oldstyle() {
    copies_both_ways(&["-o"], &["-o"]);
}

#[test]
fn newstyle_that_is_not_fixed() {
    // Only NBD_OPT_EXPORT_NAME may be sent then, and its answer is padded with zeroes.
    copies_both_ways(&["--mask-handshake=0"], &[]);
}

#[test]
fn fixed_newstyle_that_pads_with_zeroes() {
    copies_both_ways(&["--mask-handshake=1"], &[]);
}

#[test]
fn newstyle_that_is_not_fixed_and_does_not_pad() {
    copies_both_ways(&["--mask-handshake=2"], &[]);
}

#[test]
fn simple_replies_only() {
    copies_both_ways(&["--no-sr"], &[]);
}

#[test]
fn client_with_simple_replies_only() {
    copies_both_ways(&[], &["--no-sr"]);
}

#[test]
fn client_that_is_not_fixed_newstyle() {
    copies_both_ways(&[], &["--mask-handshake=0"]);
}

#[test]
fn from_oldstyle_to_newstyle_and_back() {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", SIZE, 33);
    let upstream = file(directory.path(), &disk);
    let old = forward(directory.path(), upstream.socket(), &["-o"]);
    let new = forward(directory.path(), old.socket(), &[]);
    let old_again = forward(directory.path(), new.socket(), &["-o"]);
    let copy = directory.path().join("copy");
    nbdcopy(&[&old_again.uri(), text(&copy)]);
    assert_same_bytes(&copy, &disk);
}

#[test]
fn oldstyle_server_has_no_export_names_to_choose_from() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let pair = Pair::new(&["-o", "memory", "1M"], &["export=whatever"]);
    assert_eq!(
        nbdsh(&pair.front.uri(), "print(h.get_size())").trim_end(),
        "1048576"
    );
}

#[test]
fn export_name_of_the_longest_kind_is_passed_on() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    // The upstream's size is the length of the name that it was asked for.
    let name = "name with spaces/and ünïcode ".repeat(130);
    let export = format!("export={name}");
    let pair = Pair::new(
        &[
            "eval",
            "open=printf %s \"$3\"",
            "get_size=printf %s \"$2\" | wc -c",
            "pread=head -c $3 /dev/zero",
        ],
        &[&export],
    );
    assert!(
        (3900..=4096).contains(&name.len()),
        "the protocol allows 4096 bytes, this has {}",
        name.len()
    );
    assert_eq!(
        nbdsh(&pair.front.uri(), "print(h.get_size())").trim_end(),
        name.len().to_string()
    );
}
