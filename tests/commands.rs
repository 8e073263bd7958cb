// SPDX-License-Identifier: BSD-3-Clause
//! Every command with every flag arrives at the other server as the client sent it.
//!
//! The upstream is nbdkit with its log filter, which writes down each request as it understood it.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::clients::{nbdsh, nbdsh_unconnected};
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::process::eventually;
use tempfile::TempDir;

/// A plugin and the upstream behind it, which can do everything and logs what it is asked.
struct Bench {
    directory: TempDir,
    upstream: Nbdkit,
    front: Nbdkit,
}

impl Bench {
    /// The upstream, where `changes` take the place of scripts with the same key, and a front for it.
    fn new(changes: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let log = format!("logfile={}", directory.path().join("log").display());
        let mut args = vec![
            "--filter=log",
            "eval",
            &log,
            "get_size=echo 8M",
            "pread=head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
            "can_flush=exit 0",
            "flush=exit 0",
            "can_fua=echo native",
            "can_trim=exit 0",
            "trim=exit 0",
            "can_zero=exit 0",
            "zero=exit 0",
            "can_fast_zero=exit 0",
            "can_cache=echo native",
            "cache=exit 0",
            "can_extents=exit 0",
            "extents=echo 0 4M; echo 4M 4M hole,zero",
        ];
        let key = |arg: &str| arg.split_once('=').map(|(key, _)| key.to_owned());
        args.retain(|arg| !changes.iter().any(|change| key(change) == key(arg)));
        args.extend(changes);
        let upstream = Nbdkit::start(directory.path(), &args);
        let front = forward(directory.path(), upstream.socket(), &[]);
        Self {
            directory,
            upstream,
            front,
        }
    }

    /// What the upstream logged for requests of the kind `action`, from its name to the last parameter.
    fn requests(&self, action: &str) -> Vec<String> {
        let start = format!(" {action} id=");
        self.log()
            .lines()
            .filter(|line| line.contains(&start) && line.ends_with(" ..."))
            .map(|line| {
                let from = line
                    .find(" offset=")
                    .or_else(|| line.find(" ..."))
                    .unwrap_or(line.len());
                line[from..]
                    .trim_end_matches(" ...")
                    .trim_start()
                    .to_owned()
            })
            .collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("the upstream's log")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

/// Runs `script` against a fresh bench; the upstream must have got exactly `expected` of `action`.
fn arrives_as(script: &str, action: &str, expected: &[&str]) {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    nbdsh(&bench.front.uri(), script);
    assert_eq!(bench.requests(action), expected, "{}", bench.log());
}

#[test]
fn read() {
    arrives_as("h.pread(4096, 512)", "Read", &["offset=0x200 count=0x1000"]);
}

#[test]
fn read_with_df_needs_nothing_of_the_server() {
    // DF is a matter between our own client and nbdkit, which answers it by itself.
    let script = "h.pread_structured(4096, 512, lambda *args: None, nbd.CMD_FLAG_DF)";
    arrives_as(script, "Read", &["offset=0x200 count=0x1000"]);
}

#[test]
fn write() {
    arrives_as(
        "h.pwrite(bytes(512), 1024)",
        "Write",
        &["offset=0x400 count=0x200 fua=0"],
    );
}

#[test]
fn write_with_fua() {
    arrives_as(
        "h.pwrite(bytes(512), 1024, nbd.CMD_FLAG_FUA)",
        "Write",
        &["offset=0x400 count=0x200 fua=1"],
    );
}

#[test]
fn flush() {
    arrives_as("h.flush()", "Flush", &[""]);
}

#[test]
fn trim() {
    arrives_as(
        "h.trim(65536, 131072)",
        "Trim",
        &["offset=0x20000 count=0x10000 fua=0"],
    );
}

#[test]
fn trim_with_fua() {
    arrives_as(
        "h.trim(65536, 131072, nbd.CMD_FLAG_FUA)",
        "Trim",
        &["offset=0x20000 count=0x10000 fua=1"],
    );
}

#[test]
fn zero_may_punch_a_hole() {
    arrives_as(
        "h.zero(65536, 4096)",
        "Zero",
        &["offset=0x1000 count=0x10000 trim=1 fua=0 fast=0"],
    );
}

#[test]
fn zero_without_a_hole() {
    arrives_as(
        "h.zero(65536, 4096, nbd.CMD_FLAG_NO_HOLE)",
        "Zero",
        &["offset=0x1000 count=0x10000 trim=0 fua=0 fast=0"],
    );
}

#[test]
fn zero_with_fua() {
    arrives_as(
        "h.zero(65536, 4096, nbd.CMD_FLAG_FUA)",
        "Zero",
        &["offset=0x1000 count=0x10000 trim=1 fua=1 fast=0"],
    );
}

#[test]
fn fast_zero() {
    arrives_as(
        "h.zero(65536, 4096, nbd.CMD_FLAG_FAST_ZERO)",
        "Zero",
        &["offset=0x1000 count=0x10000 trim=1 fua=0 fast=1"],
    );
}

#[test]
fn zero_with_all_flags() {
    arrives_as(
        "h.zero(65536, 4096, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)",
        "Zero",
        &["offset=0x1000 count=0x10000 trim=0 fua=1 fast=1"],
    );
}

#[test]
fn cache() {
    arrives_as(
        "h.cache(65536, 4096)",
        "Cache",
        &["offset=0x1000 count=0x10000"],
    );
}

#[test]
fn zero_of_the_whole_disk_is_one_request() {
    // Only commands that carry data are cut into pieces.
    arrives_as(
        "h.zero(8 << 20, 0)",
        "Zero",
        &["offset=0x0 count=0x800000 trim=1 fua=0 fast=0"],
    );
}

#[test]
fn fast_zero_that_would_be_slow_is_refused_as_such() {
    if !need("nbdkit") {
        return;
    }
    let bench =
        Bench::new(&["zero=case \" $5 \" in *fast*) echo EOPNOTSUPP not fast >&2; exit 1;; esac"]);
    let script = "
try:
    h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
    print('fine')
except nbd.Error as error:
    print(error.errno)
h.zero(65536, 0)
";
    let refused = nbdsh(&bench.front.uri(), script);
    assert!(
        ["ENOTSUP\n", "EOPNOTSUPP\n"].contains(&refused.as_str()),
        "{refused}"
    );
    assert_eq!(
        bench.requests("Write"),
        [""; 0],
        "no zeroes were written in place of the fast zero"
    );
}

#[test]
fn status_of_many_extents() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    assert_eq!(
        status(&bench, "h.block_status(8 << 20, 0, keep)"),
        "[4194304, 0, 4194304, 3]",
        "data, then a hole that reads as zeroes"
    );
    assert_eq!(
        bench.requests("Extents"),
        ["offset=0x0 count=0x800000 req_one=0"]
    );
}

#[test]
fn status_of_one_extent() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    assert_eq!(
        status(
            &bench,
            "h.block_status(8 << 20, 0, keep, nbd.CMD_FLAG_REQ_ONE)"
        ),
        "[4194304, 0]"
    );
    assert_eq!(
        bench.requests("Extents"),
        ["offset=0x0 count=0x800000 req_one=1"]
    );
}

#[test]
fn status_past_the_end_of_the_request_is_passed_on() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    assert_eq!(
        status(&bench, "h.block_status(1 << 20, (4 << 20) - 4096, keep)"),
        "[4096, 0, 4194304, 3]",
        "the last extent is as long as the server says"
    );
}

#[test]
fn command_that_the_server_lacks_is_not_sent() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[
        "can_trim=exit 3",
        "can_cache=echo none",
        "can_flush=exit 3",
        "can_fua=echo none",
    ]);
    let script = "
h.set_strict_mode(0)
for call in (lambda: h.trim(4096, 0), lambda: h.cache(4096, 0), lambda: h.flush()):
    try:
        call()
        print('fine')
    except nbd.Error as error:
        print(error.errno)
";
    assert_eq!(
        nbdsh(&bench.front.uri(), script),
        "EINVAL\nEINVAL\nEINVAL\n"
    );
    for action in ["Trim", "Cache", "Flush"] {
        assert_eq!(bench.requests(action), [""; 0]);
    }
}

#[test]
fn each_client_has_its_own_connection() {
    if !need("nbdkit") {
        return;
    }
    let bench = Bench::new(&[]);
    let script = format!(
        "
handles = [nbd.NBD() for _ in range(5)]
for each in handles:
    each.connect_uri('{}')
for each in handles:
    each.pread(512, 0)
for each in handles:
    each.shutdown()
",
        bench.front.uri()
    );
    nbdsh_unconnected(&script);
    // The last goodbye reaches the upstream shortly after the client has gone.
    eventually(
        "five connections came and went",
        Duration::from_secs(20),
        || (bench.log().matches(" Disconnect ").count() == 5).then_some(()),
    );
    assert_eq!(bench.log().matches(" Connect ").count(), 5);
}

#[test]
fn upstream_is_left_in_good_order() {
    if !need("nbdkit") {
        return;
    }
    let mut bench = Bench::new(&[]);
    nbdsh(&bench.front.uri(), "h.pread(512, 0)\nh.shutdown()");
    eventually("the upstream saw the end", Duration::from_secs(20), || {
        bench.log().contains(" Disconnect ").then_some(())
    });
    // nbdkit complains where a client goes without NBD_CMD_DISC.
    assert!(
        !bench.upstream.stderr().contains("error"),
        "{}",
        bench.upstream.stderr()
    );
    assert!(bench.upstream.alive());
}

/// Runs one `call` of block_status with the callback `keep`; returns the entries as Python prints them.
fn status(bench: &Bench, call: &str) -> String {
    let script = format!(
        "
found = []
def keep(context, offset, entries, error): found.extend(entries)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri('{}')
{call}
print(found)
",
        bench.front.uri()
    );
    nbdsh_unconnected(&script).trim_end().to_owned()
}
