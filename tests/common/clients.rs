// SPDX-License-Identifier: BSD-3-Clause
//! The programs that play the client in front of nbdkit, each run to its end under a deadline.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::process::{run, run_ok};

/// A hang bound for one client program, far above what any of them needs.
pub const LIMIT: Duration = Duration::from_secs(40);

/// Runs Python in nbdsh with the handle `h` connected to `uri`; the script must succeed. Returns its output.
pub fn nbdsh(uri: &str, script: &str) -> String {
    run_ok(nbdsh_command().args(["-u", uri, "-c", script]), LIMIT)
}

/// Like [`nbdsh`], but without a connection: the script makes it itself.
pub fn nbdsh_unconnected(script: &str) -> String {
    run_ok(nbdsh_command().args(["-c", script]), LIMIT)
}

/// What the program nbdsh runs, but always with the system's Python: libnbd's module belongs to that one,
/// and another `python3` may come first on PATH.
pub fn nbdsh_command() -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-mnbd");
    command
}

/// The canonical name that a client is told when it asks INFO about the empty name.
pub fn canonical_name(socket: &Path) -> String {
    let script = format!(
        "
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_unix('{}')
h.opt_info()
print(h.get_canonical_export_name())
h.opt_abort()
",
        socket.display()
    );
    nbdsh_unconnected(&script).trim_end().to_owned()
}

/// A load of fio's own NBD client, every block of which carries a checksum that is verified when it is
/// read back: so many jobs, each with its own connection and sixteen requests in flight on its own 4 MiB.
pub fn verified_load(uri: &str, block_size: &str, jobs: u32) {
    let uri = format!("--uri={uri}");
    let block_size = format!("--bs={block_size}");
    let jobs = format!("--numjobs={jobs}");
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
            &jobs,
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

/// Runs nbdcopy, which must succeed.
pub fn nbdcopy(args: &[&str]) {
    run_ok(Command::new("nbdcopy").args(args), LIMIT);
}

/// Runs `program`, which must succeed; returns its stdout.
pub fn program(program: &str, args: &[&str]) -> String {
    run_ok(Command::new(program).args(args), LIMIT)
}

/// Runs `program` to its end, however it ends.
pub fn attempt(program: &str, args: &[&str]) -> Output {
    run(Command::new(program).args(args), LIMIT)
}

/// `nbdinfo --json`: the one export that `uri` names.
pub fn nbdinfo(uri: &str) -> Value {
    let text = program("nbdinfo", &["--json", uri]);
    let mut all: Value = serde_json::from_str(&text).expect("nbdinfo writes JSON");
    all["exports"][0].take()
}

/// `nbdinfo --map`: one line per extent of base:allocation.
pub fn map(uri: &str) -> String {
    program("nbdinfo", &["--map", uri])
}

/// Both files hold the same bytes; says where they first differ, which a dump of two disks would not.
pub fn assert_same_bytes(left: &Path, right: &Path) {
    let (a, b) = (
        fs::read(left).expect("read disk"),
        fs::read(right).expect("read disk"),
    );
    assert_eq!(
        a.len(),
        b.len(),
        "sizes of {} and {}",
        left.display(),
        right.display()
    );
    let differ = a.iter().zip(&b).position(|(x, y)| x != y);
    assert_eq!(
        differ,
        None,
        "first difference between {} and {}",
        left.display(),
        right.display()
    );
}

/// A path as the text that command lines and scripts need; the tests' own paths are plain.
pub fn text(path: &Path) -> &str {
    path.to_str()
        .expect("the temporary directory has a plain name")
}
