// SPDX-License-Identifier: BSD-3-Clause
//! Many requests are on their way at once, on one connection to the other server, and none waits for another.

mod common;

use std::fs;
use std::path::Path;

use common::clients::{nbdsh, nbdsh_unconnected};
use common::nbdkit::{Nbdkit, forward};
use common::need;

/// An upstream where each read takes so long that all of them must have arrived meanwhile, with its log.
fn slow_reads(directory: &Path, options: &[&str]) -> Nbdkit {
    let log = format!("logfile={}", directory.join("log").display());
    let mut args = options.to_vec();
    args.extend([
        "--filter=log",
        "--filter=delay",
        "memory",
        "1M",
        &log,
        "rdelay=2",
    ]);
    Nbdkit::start(directory, &args)
}

/// The largest number of reads that the upstream was working on at one time.
fn most_at_once(directory: &Path) -> usize {
    let log = fs::read_to_string(directory.join("log")).expect("the upstream's log");
    let (mut now, mut most) = (0_usize, 0);
    for line in log.lines() {
        if line.contains(" Read id=") {
            now += 1;
            most = most.max(now);
        } else if line.contains(" ...Read id=") {
            now -= 1;
        }
    }
    most
}

/// Python that reads `count` sectors at once.
fn reads_at_once(count: usize) -> String {
    format!(
        "
asked = [h.aio_pread(nbd.Buffer(512), n * 512) for n in range({count})]
for cookie in asked:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
"
    )
}

#[test]
fn as_many_as_nbdkit_has_threads() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = slow_reads(directory.path(), &[]);
    let front = forward(directory.path(), upstream.socket(), &[]);
    nbdsh(&front.uri(), &reads_at_once(16));
    assert_eq!(most_at_once(directory.path()), 16);
}

#[test]
fn more_with_more_threads() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = slow_reads(directory.path(), &["-t64"]);
    let front = forward(directory.path(), upstream.socket(), &["-t64"]);
    nbdsh(&front.uri(), &reads_at_once(64));
    assert_eq!(most_at_once(directory.path()), 64);
}

#[test]
fn clients_do_not_wait_for_each_other() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = slow_reads(directory.path(), &[]);
    let front = forward(directory.path(), upstream.socket(), &[]);
    let script = format!(
        "
handles = [nbd.NBD() for _ in range(4)]
for each in handles:
    each.connect_uri('{}')
asked = [(each, each.aio_pread(nbd.Buffer(512), n * 512)) for n in range(8) for each in handles]
for each, cookie in asked:
    while not each.aio_command_completed(cookie):
        each.poll(-1)
",
        front.uri()
    );
    nbdsh_unconnected(&script);
    assert_eq!(most_at_once(directory.path()), 32);
}

#[test]
fn slow_read_does_not_hold_up_what_comes_after_it() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = slow_reads(directory.path(), &[]);
    let front = forward(directory.path(), upstream.socket(), &[]);
    let script = "
slow = h.aio_pread(nbd.Buffer(512), 0)
for n in range(20):
    h.pwrite(bytes(4096), n * 4096)
h.flush()
print('overtaken' if not h.aio_command_completed(slow) else 'done already')
while not h.aio_command_completed(slow):
    h.poll(-1)
";
    assert_eq!(nbdsh(&front.uri(), script).trim_end(), "overtaken");
}

#[test]
fn large_writes_and_large_reads_cross_without_deadlock() {
    if !need("nbdkit") {
        return;
    }
    // Far more in both directions than any socket buffer holds.
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(directory.path(), &["memory", "128M"]);
    let front = forward(directory.path(), upstream.socket(), &[]);
    let script = "
MIB = 1 << 20
data = nbd.Buffer.from_bytearray(bytearray(b'y' * (4 * MIB)))
asked = []
for n in range(16):
    asked.append(h.aio_pwrite(data, n * 4 * MIB))
    asked.append(h.aio_pread(nbd.Buffer(4 * MIB), (64 + n * 4) * MIB))
for cookie in asked:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
assert h.pread(4 * MIB, 60 * MIB) == b'y' * (4 * MIB)
assert h.pread(4 * MIB, 64 * MIB) == bytes(4 * MIB)
";
    nbdsh(&front.uri(), script);
}

#[test]
fn thirty_clients_at_once() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(directory.path(), &["memory", "1M"]);
    let front = forward(directory.path(), upstream.socket(), &[]);
    let script = format!(
        "
import threading
wrong = []
def client(number):
    try:
        each = nbd.NBD()
        each.connect_uri('{}')
        for turn in range(10):
            data = bytes([number, turn]) * 256
            each.pwrite(data, number * 512)
            if each.pread(512, number * 512) != data:
                wrong.append((number, turn))
        each.shutdown()
    except nbd.Error as error:
        wrong.append((number, error))
threads = [threading.Thread(target=client, args=(number,)) for number in range(30)]
for each in threads: each.start()
for each in threads: each.join()
print(wrong)
",
        front.uri()
    );
    assert_eq!(nbdsh_unconnected(&script).trim_end(), "[]");
}
