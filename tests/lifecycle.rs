// SPDX-License-Identifier: BSD-3-Clause
//! Servers that come and go, and how nbdkit ends.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::clients::{LIMIT, nbdsh, nbdsh_command, text};
use common::nbdkit::{Nbdkit, forward};
use common::process::{Guarded, eventually};
use common::upstream::{memory, noise_file, qemu_nbd};
use common::{need, need_all};

/// Sixteen reads at once, whose ends are printed; then one more on the same connection.
const READS: &str = "
asked = [h.aio_pread(nbd.Buffer(512), n * 512) for n in range(16)]
for cookie in asked:
    try:
        while not h.aio_command_completed(cookie):
            h.poll(-1)
        print('fine')
    except nbd.Error as error:
        print(error.errno)
try:
    h.pread(512, 0)
    print('fine')
except nbd.Error as error:
    print(error.errno)
";

/// An upstream that takes minutes over each read, and logs that it has begun.
struct Slow {
    nbdkit: Nbdkit,
    log: PathBuf,
}

impl Slow {
    fn start(directory: &Path) -> Self {
        let log = directory.join("slow.log");
        let logfile = format!("logfile={}", log.display());
        let args = [
            "--filter=log",
            "--filter=delay",
            "memory",
            "1M",
            &logfile,
            "rdelay=300",
        ];
        Self {
            nbdkit: Nbdkit::start(directory, &args),
            log,
        }
    }

    fn wait_for_reads(&self, count: usize) {
        eventually("the reads are in flight", LIMIT, || {
            let log = fs::read_to_string(&self.log).ok()?;
            (log.matches(" Read id=").count() == count).then_some(())
        });
    }
}

/// A client in the background.
fn client(uri: &str, script: &str) -> Guarded {
    Guarded::spawn(nbdsh_command().args(["-u", uri, "-c", script]))
}

/// Every way in which a request may fail when the connection has died.
fn died(errno: &str) -> bool {
    ["EIO", "ESHUTDOWN"].contains(&errno)
}

#[test]
fn server_killed_in_the_middle_of_reads_fails_all_of_them() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let slow = Slow::start(directory.path());
    let mut front = forward(directory.path(), slow.nbdkit.socket(), &[]);
    let mut reader = client(&front.uri(), READS);
    slow.wait_for_reads(16);
    slow.nbdkit.signal(libc::SIGKILL);

    let status = reader
        .wait_timeout(LIMIT)
        .expect("no read may wait for ever");
    assert!(status.success(), "{}", reader.stderr());
    let ends: Vec<_> = reader.stdout().lines().map(str::to_owned).collect();
    assert_eq!(ends.len(), 17, "{ends:?}");
    assert!(ends.iter().all(|errno| died(errno)), "{ends:?}");
    assert!(front.alive());
}

#[test]
fn lost_connection_is_explained_once() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let slow = Slow::start(directory.path());
    let front = forward(directory.path(), slow.nbdkit.socket(), &[]);
    let mut reader = client(&front.uri(), READS);
    slow.wait_for_reads(16);
    slow.nbdkit.signal(libc::SIGKILL);
    reader
        .wait_timeout(LIMIT)
        .expect("no read may wait for ever");

    let log = front.stderr();
    let path = text(slow.nbdkit.socket());
    let explained = log
        .lines()
        .filter(|line| line.contains("error:") && line.contains(path))
        .count();
    assert_eq!(
        explained, 1,
        "the cause with the server's name, once: {log}"
    );
}

#[test]
fn new_clients_reach_a_server_that_came_back() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("upstream.sock");
    let mut upstream = Nbdkit::start_at(&socket, &["memory", "1M"]);
    let mut front = forward(directory.path(), &socket, &[]);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.get_size())").trim_end(),
        "1048576"
    );

    upstream.signal(libc::SIGKILL);
    upstream.wait_timeout(LIMIT).expect("killed");
    fs::remove_file(&socket).expect("a killed server leaves its socket");
    let refused = common::process::run(
        nbdsh_command().args(["-u", &front.uri(), "-c", "pass"]),
        LIMIT,
    );
    assert!(!refused.status.success(), "there is no server now");

    let _returned = Nbdkit::start_at(&socket, &["memory", "2M"]);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.get_size())").trim_end(),
        "2097152"
    );
    assert!(front.alive());
}

#[test]
fn one_clients_dead_server_does_not_hurt_another_client() {
    if !need("nbdkit") {
        return;
    }
    // Two upstream processes take turns on one path; each client keeps the one that it began with.
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("upstream.sock");
    let first = Nbdkit::start_at(&socket, &["memory", "1M"]);
    let front = forward(directory.path(), &socket, &[]);
    let ready = directory.path().join("ready");
    let script = format!(
        "
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
open('{}', 'w').close()
signal.sigwait([signal.SIGUSR1])
try:
    h.pread(512, 0)
    print('fine')
except nbd.Error as error:
    print(error.errno)
",
        text(&ready)
    );
    let mut old = client(&front.uri(), &script);
    eventually("the first client is connected", LIMIT, || {
        ready.exists().then_some(())
    });

    first.signal(libc::SIGKILL);
    fs::remove_file(&socket).expect("a killed server leaves its socket");
    let _second = Nbdkit::start_at(&socket, &["memory", "1M"]);
    assert_eq!(
        nbdsh(&front.uri(), "print(len(h.pread(512, 0)))").trim_end(),
        "512"
    );

    old.signal(libc::SIGUSR1);
    assert!(
        old.wait_timeout(LIMIT)
            .expect("no read may wait for ever")
            .success()
    );
    assert!(died(old.stdout().trim_end()), "{}", old.stdout());
    assert_eq!(
        nbdsh(&front.uri(), "print(len(h.pread(512, 0)))").trim_end(),
        "512"
    );
}

#[test]
fn readonly_option_of_nbdkit_is_honoured() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &["-r"]);
    let script = "
print(h.is_read_only())
h.set_strict_mode(0)
try:
    h.pwrite(bytes(512), 0)
    print('fine')
except nbd.Error as error:
    print(error.errno)
";
    assert_eq!(nbdsh(&front.uri(), script), "True\nEPERM\n");
}

#[test]
fn read_only_server_makes_a_read_only_disk() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 1 << 20, 81);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &["--read-only"]);
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.is_read_only())").trim_end(),
        "True"
    );
}

#[test]
fn sigterm_ends_nbdkit_without_clients() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let mut front = forward(directory.path(), upstream.socket(), &[]);
    front.signal(libc::SIGTERM);
    assert!(front.wait_timeout(LIMIT).expect("nbdkit ends").success());
}

/// Starts a client that connects and then only waits; returns when it is connected.
fn idle_client(directory: &Path, front: &Nbdkit) -> Guarded {
    let ready = directory.join("ready");
    let script = format!(
        "import signal\nopen('{}', 'w').close()\nsignal.pause()",
        text(&ready)
    );
    let idle = client(&front.uri(), &script);
    eventually("the client is connected", LIMIT, || {
        ready.exists().then_some(())
    });
    idle
}

/// Tells nbdkit to end while `client` is connected. nbdkit itself waits until its clients have gone, so the
/// client goes too, without a goodbye.
fn end_with(front: &Nbdkit, client: Guarded) {
    front.signal(libc::SIGTERM);
    drop(client);
}

/// SIGTERM ends nbdkit, which has a client that does nothing, whatever was done to the server before.
fn ends_with_a_client_after(change: impl FnOnce(&Nbdkit)) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let mut front = forward(directory.path(), upstream.socket(), &[]);
    let idle = idle_client(directory.path(), &front);
    change(&upstream);
    end_with(&front, idle);
    assert!(front.wait_timeout(LIMIT).expect("nbdkit ends").success());
}

#[test]
fn sigterm_ends_nbdkit_with_a_client() {
    if !need("nbdkit") {
        return;
    }
    ends_with_a_client_after(|_| ());
}

#[test]
fn sigterm_ends_nbdkit_though_the_server_is_stopped() {
    if !need("nbdkit") {
        return;
    }
    // A stopped server keeps the connection after NBD_CMD_DISC. We wait for it, but not for ever.
    ends_with_a_client_after(|upstream| upstream.stop());
}

#[test]
fn sigterm_ends_nbdkit_after_the_server_was_killed() {
    if !need("nbdkit") {
        return;
    }
    ends_with_a_client_after(|upstream| upstream.signal(libc::SIGKILL));
}

#[test]
fn sigterm_ends_nbdkit_with_reads_in_flight_at_their_deadline() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let slow = Slow::start(directory.path());
    let mut front = forward(
        directory.path(),
        slow.nbdkit.socket(),
        &["request-timeout=2"],
    );
    let reader = client(&front.uri(), READS);
    slow.wait_for_reads(16);
    // The client stays until its reads have failed, and leaves then by itself.
    front.signal(libc::SIGTERM);
    let bound = Duration::from_secs(30);
    let status = front
        .wait_timeout(bound)
        .expect("nbdkit ends long before the reads would");
    assert!(status.success(), "{status}\n{}", front.stderr());
    drop(reader);
}

#[test]
fn clients_that_vanish_leave_no_connection_behind() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &[]);
    let before = upstream.descriptors();
    let idle = idle_client(directory.path(), &front);
    assert!(
        upstream.descriptors() > before,
        "the client has its own connection upstream"
    );
    drop(idle);
    eventually("the connection upstream is gone", LIMIT, || {
        (upstream.descriptors() <= before).then_some(())
    });
}
