// SPDX-License-Identifier: BSD-3-Clause
//! Errors of the other server reach the client as what they were, and harm no other request.

mod common;

use common::clients::{attempt, nbdsh, nbdsh_unconnected, text};
use common::nbdkit::{Nbdkit, forward};
use common::pair::Pair;
use common::upstream::{noise_file, qemu_nbd};
use common::{need, need_all};

/// Tries every command once and prints how each ended.
const TRY_EVERYTHING: &str = "
def attempt(name, call):
    try:
        call()
        print(name, 'fine')
    except nbd.Error as error:
        print(name, error.errno)
attempt('pread', lambda: h.pread(4096, 0))
attempt('pwrite', lambda: h.pwrite(bytes(4096), 0))
attempt('zero', lambda: h.zero(4096, 0))
attempt('trim', lambda: h.trim(4096, 0))
attempt('cache', lambda: h.cache(4096, 0))
";

/// What a client of a server that always fails with `error` sees: directly, and through us.
fn every_command_fails_alike(error: &str) {
    if !need("nbdkit") {
        return;
    }
    let failing = format!("error={error}");
    let pair = Pair::new(
        &[
            "--filter=error",
            "memory",
            "1M",
            failing.as_str(),
            "error-rate=1",
        ],
        &[],
    );
    let direct = nbdsh(&pair.server.uri(), TRY_EVERYTHING);
    assert_eq!(
        direct.matches(error).count(),
        5,
        "the upstream fails as told: {direct}"
    );
    assert_eq!(nbdsh(&pair.front.uri(), TRY_EVERYTHING), direct);
}

#[test]
fn eperm_stays_eperm() {
    every_command_fails_alike("EPERM");
}

#[test]
fn eio_stays_eio() {
    every_command_fails_alike("EIO");
}

#[test]
fn enomem_stays_enomem() {
    every_command_fails_alike("ENOMEM");
}

#[test]
fn einval_stays_einval() {
    every_command_fails_alike("EINVAL");
}

#[test]
fn enospc_stays_enospc() {
    every_command_fails_alike("ENOSPC");
}

#[test]
fn failed_flush_is_not_success() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(
        &[
            "eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
            "can_flush=exit 0",
            "flush=echo ENOSPC the disk behind is full >&2; exit 1",
        ],
        &[],
    );
    let script = "
h.pwrite(bytes(512), 0)
try:
    h.flush()
    print('fine')
except nbd.Error as error:
    print(error.errno)
";
    assert_eq!(nbdsh(&pair.front.uri(), script).trim_end(), "ENOSPC");
}

#[test]
fn failed_status_is_an_error_and_not_an_empty_map() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(
        &[
            "eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "can_extents=exit 0",
            "extents=echo EIO no map >&2; exit 1",
        ],
        &[],
    );
    let script = format!(
        "
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri('{}')
try:
    h.block_status(4096, 0, lambda *args: None)
    print('fine')
except nbd.Error as error:
    print(error.errno)
print(len(h.pread(4096, 0)))
",
        pair.front.uri()
    );
    assert_eq!(nbdsh_unconnected(&script), "EIO\n4096\n");
}

#[test]
fn reads_that_fail_leave_the_others_alone() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 4 << 20, 21);
    // Every second read fails, on average. All are in flight on one connection; whatever failed is asked again.
    let upstream = Nbdkit::start(
        directory.path(),
        &[
            "--filter=error",
            "file",
            text(&image),
            "error=EIO",
            "error-pread-rate=50%",
        ],
    );
    let front = forward(directory.path(), upstream.socket(), &[]);
    let script = format!(
        "
SIZE = 65536
disk = open('{}', 'rb').read()
left = list(range(0, len(disk), SIZE))
failures = 0
rounds = 0
while left and rounds < 100:
    rounds += 1
    asked = []
    for offset in left:
        buffer = nbd.Buffer(SIZE)
        asked.append((offset, buffer, h.aio_pread(buffer, offset)))
    left = []
    for offset, buffer, cookie in asked:
        try:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
            assert buffer.to_bytearray() == disk[offset:offset + SIZE], offset
        except nbd.Error as error:
            assert error.errno == 'EIO', error
            failures += 1
            left.append(offset)
assert not left and failures > 0, (left, failures)
",
        text(&image)
    );
    nbdsh(&front.uri(), &script);
}

#[test]
fn export_that_does_not_exist_is_refused_by_name() {
    if !need_all(&["nbdkit", "qemu-nbd", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 1 << 20, 22);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "right", &[]);
    let mut front = forward(directory.path(), upstream.socket(), &["export=wrong"]);
    let output = attempt("nbdinfo", &["--size", &front.uri()]);
    assert!(!output.status.success(), "the export does not exist");
    assert!(front.alive());
    let log = front.stderr();
    let error = log
        .lines()
        .find(|line| line.contains("error:"))
        .unwrap_or_else(|| panic!("no error in: {log}"));
    assert!(error.contains("wrong"), "names the export: {error}");
    assert!(
        error.contains(text(upstream.socket())),
        "names the server: {error}"
    );
}

#[test]
fn server_that_is_not_there_fails_the_client_and_not_nbdkit() {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let nowhere = directory.path().join("nobody-listens-here");
    let mut front = forward(directory.path(), &nowhere, &[]);
    let output = attempt("nbdinfo", &["--size", &front.uri()]);
    assert!(!output.status.success(), "there is no server");
    assert!(front.alive());
    let log = front.stderr();
    let error = log
        .lines()
        .find(|line| line.contains("error:"))
        .unwrap_or_else(|| panic!("no error in: {log}"));
    assert!(
        error.contains("nobody-listens-here"),
        "names the socket: {error}"
    );
}

#[test]
fn last_bytes_of_the_largest_disk_can_be_used() {
    // 2^63-1 is the largest size nbdkit knows; larger ones are refused, which tests/rows_values.rs shows.
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(&["memory", "9223372036854775807"], &[]);
    let script = "
end = 2**63 - 1
h.pwrite(b'the very last bytes', end - 19)
print(h.pread(19, end - 19).decode())
";
    assert_eq!(
        nbdsh(&pair.front.uri(), script).trim_end(),
        "the very last bytes"
    );
}
