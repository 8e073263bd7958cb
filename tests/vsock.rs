// SPDX-License-Identifier: BSD-3-Clause
//! Virtio sockets, as far as they can be tried without a virtual machine around: what is typed wrong is
//! refused at the start, and a server that cannot be reached is an error for the client, not for nbdkit.

mod common;

use common::front::Front;
use common::nbdkit::through;
use common::need;
use common::refusal::refusal;

/// A context that no server listens in: the loopback one, which a kernel may lack altogether.
const LOOPBACK: &str = "vsock=1";

/// Opens through nbdkit, which must fail; returns what nbdkit says about it.
fn explanation(args: &[&str]) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    // Some kernels answer at once, some after seconds. Which error it is does not matter here.
    let mut front = through(
        directory.path(),
        &[args, &["connect-timeout=500ms"]].concat(),
    );
    assert!(Front::open(front.socket()).is_err(), "{args:?}: opened");
    assert!(front.alive(), "{}", front.stderr());
    let stderr = front.stderr();
    let errors: Vec<_> = stderr
        .lines()
        .filter_map(|line| line.split_once("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{args:?}: one explanation: {stderr}");
    errors[0].1.to_owned()
}

#[test]
fn context_and_port_are_named_when_nobody_is_there() {
    if !need("nbdkit") {
        return;
    }
    let line = explanation(&[LOOPBACK, "port=34567"]);
    assert!(line.starts_with("vsock:1:34567: connect: "), "{line}");
}

#[test]
fn default_port_is_10809() {
    if !need("nbdkit") {
        return;
    }
    let line = explanation(&[LOOPBACK]);
    assert!(line.starts_with("vsock:1:10809: connect: "), "{line}");
}

#[test]
fn cid_is_another_word_for_it() {
    if !need("nbdkit") {
        return;
    }
    let line = explanation(&["cid=1", "port=0x1234"]);
    assert!(line.starts_with("vsock:1:4660: connect: "), "{line}");
}

#[test]
fn ports_of_32_bits_are_allowed() {
    if !need("nbdkit") {
        return;
    }
    let line = explanation(&[LOOPBACK, "port=4294967294"]);
    assert!(line.starts_with("vsock:1:4294967294: connect: "), "{line}");
}

#[test]
fn reserved_context_is_an_error_for_the_client() {
    if !need("nbdkit") {
        return;
    }
    let line = explanation(&["vsock=4294967295"]);
    assert!(
        line.starts_with("vsock:4294967295:10809: connect: "),
        "{line}"
    );
}

#[test]
fn context_must_be_a_number() {
    if !need("nbdkit") {
        return;
    }
    for (value, says) in [
        ("", "empty string"),
        ("host", "could not parse number"),
        ("2x", "trailing garbage"),
        ("-1", "negative numbers are not allowed"),
        ("4294967296", "out of range"),
    ] {
        for key in ["vsock", "cid"] {
            let line = refusal(&[&format!("{key}={value}")]);
            assert!(line.starts_with("vsock_cid: "), "{key}={value}: {line}");
            assert!(line.contains(says), "{key}={value}: {line}");
        }
    }
}

#[test]
fn port_must_be_a_number() {
    if !need("nbdkit") {
        return;
    }
    // Service names belong to TCP.
    for (value, says) in [
        ("nbd", "could not parse number"),
        ("4294967296", "out of range"),
    ] {
        let line = refusal(&["vsock=2", &format!("port={value}")]);
        assert!(line.starts_with("port: "), "{value}: {line}");
        assert!(line.contains(says), "{value}: {line}");
    }
}
