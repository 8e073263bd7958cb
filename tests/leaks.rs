//! Hundreds of clients later nbdkit has the descriptors and threads that it began with.

mod common;

use common::clients::{LIMIT, nbdsh_unconnected};
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::process::eventually;
use common::upstream::memory;

/// Lets one client after another connect, or fail to, and returns when all are gone.
fn clients(front: &Nbdkit, count: usize, action: &str) {
    let script = format!(
        "
for n in range({count}):
    each = nbd.NBD()
    try:
        each.connect_uri('{}')
        {action}
        each.shutdown()
    except nbd.Error:
        pass
",
        front.uri()
    );
    nbdsh_unconnected(&script);
}

/// Descriptors and threads before the first client are those after the last.
fn stays_flat(front: &Nbdkit, action: &str) {
    let idle = front.threads();
    let baseline = front.descriptors();
    clients(front, 200, action);
    eventually("threads are back to the start", LIMIT, || {
        (front.threads() <= idle).then_some(())
    });
    eventually("descriptors are back to the start", LIMIT, || {
        (front.descriptors() <= baseline).then_some(())
    });
}

#[test]
fn two_hundred_clients_that_read() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &[]);
    stays_flat(&front, "each.pread(512, 0)");
}

#[test]
fn two_hundred_clients_that_leave_at_once() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &[]);
    stays_flat(&front, "pass");
}

#[test]
fn two_hundred_clients_without_a_server() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let front = forward(directory.path(), &directory.path().join("nobody"), &[]);
    stays_flat(&front, "pass");
}

#[test]
fn two_hundred_clients_whose_export_is_refused() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(
        directory.path(),
        &[
            "--filter=exportname",
            "memory",
            "1M",
            "exportname-strict=true",
            "exportname=right",
        ],
    );
    let front = forward(directory.path(), upstream.socket(), &["export=wrong"]);
    stays_flat(&front, "pass");
}
