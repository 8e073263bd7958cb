// SPDX-License-Identifier: BSD-3-Clause
//! Data under TLS: whole disks, checksums under load, large requests, and requests that never end. Each test
//! runs over a Unix socket and over TCP.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::clients::{
    LIMIT, assert_same_bytes, map, nbdcopy, nbdsh, program, text, verified_load,
};
use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::process::{eventually, run_ok};
use common::relay::Relay;
use common::scripted::bench::lost;
use common::scripted::wire::cmd;
use common::tls;
use common::upstream::{Server, noise_file};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// How the plugin reaches its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Unix,
    Tcp,
}

const BOTH: [Over; 2] = [Over::Unix, Over::Tcp];

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "nbdcopy", "certtool"])
}

/// Certificates for a server and for whoever trusts it.
struct Certificates {
    directory: TempDir,
    server: PathBuf,
    client: PathBuf,
}

impl Certificates {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        Self {
            server: authority.server("server", LOCALHOST),
            client: authority.trusting("client"),
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn nbdkit(&self, args: &[&str]) -> Nbdkit {
        tls::nbdkit(self.path(), &self.server, args)
    }

    fn qemu_nbd(&self, image: &Path, format: &str) -> Server {
        tls::qemu(self.path(), &self.server, "verify-peer=no", image, format)
    }

    /// nbdkit with the plugin before the server on `socket`.
    fn forward(&self, over: Over, socket: &Path, extra: &[&str]) -> Through {
        let relay = match over {
            Over::Unix => Relay::unix(self.path(), &format!("{over:?}.sock"), socket),
            Over::Tcp => Relay::tcp(socket),
        };
        let certificates = format!("tls-certificates={}", text(&self.client));
        let tls = ["tls=require", "tls-hostname=localhost", &certificates];
        let nbdkit = relay.forward(self.path(), &[&tls, extra].concat());
        Through {
            nbdkit,
            _relay: relay,
        }
    }

    /// The URI by which libnbd reaches the server on `socket` by itself.
    fn direct(&self, socket: &Path) -> String {
        format!(
            "nbds+unix://localhost/?socket={}&tls-certificates={}",
            socket.display(),
            self.client.display()
        )
    }
}

/// nbdkit, which goes before its wire does.
struct Through {
    nbdkit: Nbdkit,
    _relay: Relay,
}

impl Through {
    fn uri(&self) -> String {
        self.nbdkit.uri()
    }
}

#[test]
fn whole_disk_out_over_several_connections() {
    if !ready() {
        return;
    }
    let secure = Certificates::new();
    let image = noise_file(secure.path(), "image", 8 * MIB + 4099, 101);
    let upstream = secure.nbdkit(&["file", text(&image)]);
    for over in BOTH {
        let front = secure.forward(over, upstream.socket(), &[]);
        let copy = secure.path().join(format!("copy-{over:?}"));
        nbdcopy(&["--connections=4", "--threads=4", &front.uri(), text(&copy)]);
        assert_same_bytes(&copy, &image);
    }
}

#[test]
fn whole_disk_in_over_several_connections() {
    if !ready() {
        return;
    }
    let secure = Certificates::new();
    for (over, seed) in BOTH.into_iter().zip([102, 103]) {
        let image = noise_file(secure.path(), "image", 8 * MIB + 4099, seed);
        let target = noise_file(secure.path(), "target", 8 * MIB + 4099, seed + 10);
        let upstream = secure.nbdkit(&["file", text(&target)]);
        let front = secure.forward(over, upstream.socket(), &[]);
        nbdcopy(&[
            "--connections=4",
            "--threads=4",
            "--flush",
            text(&image),
            &front.uri(),
        ]);
        assert_same_bytes(&target, &image);
    }
}

#[test]
fn many_small_requests_in_flight_on_one_connection() {
    if !ready() {
        return;
    }
    let secure = Certificates::new();
    let image = noise_file(secure.path(), "image", 8 * MIB, 104);
    let upstream = secure.nbdkit(&["file", text(&image)]);
    for over in BOTH {
        let front = secure.forward(over, upstream.socket(), &[]);
        let copy = secure.path().join(format!("copy-{over:?}"));
        nbdcopy(&[
            "--connections=1",
            "--requests=128",
            "--request-size=4096",
            &front.uri(),
            text(&copy),
        ]);
        assert_same_bytes(&copy, &image);
    }
}

#[test]
fn verified_load_of_fio() {
    if !ready() || !need_all(&["fio"]) {
        return;
    }
    let secure = Certificates::new();
    for over in BOTH {
        let upstream = secure.nbdkit(&["memory", "16M"]);
        let front = secure.forward(over, upstream.socket(), &[]);
        for block_size in ["4k", "256k"] {
            verified_load(&front.uri(), block_size, 2);
        }
    }
}

/// Python that writes and reads 64 MiB at once, not aligned to anything.
const LARGEST_REQUESTS: &str = "
import random
h.set_strict_mode(0)
data = random.Random(5).randbytes(64 << 20)
h.pwrite(data, 4097)
assert h.pread(64 << 20, 4097) == data
assert h.pread(4097, 0) == bytes(4097)
";

#[test]
fn requests_of_64_mib_to_nbdkit() {
    if !ready() {
        return;
    }
    let secure = Certificates::new();
    for over in BOTH {
        let upstream = secure.nbdkit(&["memory", "65M"]);
        let front = secure.forward(over, upstream.socket(), &[]);
        nbdsh(&front.uri(), LARGEST_REQUESTS);
    }
}

#[test]
fn requests_of_64_mib_to_qemu_nbd() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let secure = Certificates::new();
    let image = secure.path().join("image");
    for over in BOTH {
        let disk = fs::File::create(&image).expect("create image");
        disk.set_len(65 << 20).expect("make it sparse");
        let upstream = secure.qemu_nbd(&image, "raw");
        let front = secure.forward(over, upstream.socket(), &["export=disk"]);
        nbdsh(&front.uri(), LARGEST_REQUESTS);
    }
}

#[test]
fn map_is_the_servers() {
    if !ready() || !need_all(&["nbdinfo"]) {
        return;
    }
    let secure = Certificates::new();
    let upstream = secure.nbdkit(&["sparse-random", "256M", "percent=20", "seed=9"]);
    let direct = map(&secure.direct(upstream.socket()));
    assert!(direct.contains("hole"), "{direct}");
    for over in BOTH {
        let front = secure.forward(over, upstream.socket(), &[]);
        assert_eq!(map(&front.uri()), direct, "{over:?}");
    }
}

#[test]
fn writers_and_readers_cross_with_a_server_that_is_slow_to_read() {
    if !ready() {
        return;
    }
    // One thread that takes its time: it reads no request while it works on another, nor while we do not take
    // an answer. Sixteen requests each way hold far more than all buffers between.
    let secure = Certificates::new();
    for over in BOTH {
        let upstream = secure.nbdkit(&[
            "-t1",
            "--filter=delay",
            "memory",
            "64M",
            "delay-write=20ms",
            "delay-read=5ms",
        ]);
        let front = secure.forward(over, upstream.socket(), &["-t32"]);
        let script = "
MIB = 1 << 20
asked = []
for n in range(16):
    data = nbd.Buffer.from_bytearray(bytearray([n + 1]) * MIB)
    asked.append((h.aio_pwrite(data, n * MIB), None))
    buffer = nbd.Buffer(MIB)
    asked.append((h.aio_pread(buffer, (32 + n) * MIB), buffer))
for cookie, buffer in asked:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
    assert buffer is None or buffer.to_bytearray() == bytes(MIB)
for n in range(16):
    assert h.pread(MIB, n * MIB) == bytes([n + 1]) * MIB, n
";
        nbdsh(&front.uri(), script);
    }
}

#[test]
fn stopped_server_fails_a_request_at_its_deadline() {
    if !ready() {
        return;
    }
    let secure = Certificates::new();
    for over in BOTH {
        let upstream = secure.nbdkit(&["memory", "64M"]);
        let mut front = secure.forward(over, upstream.socket(), &["request-timeout=500ms"]);
        // A write that cannot be sent in full, and a read that is not answered.
        for kind in [cmd::WRITE, cmd::READ] {
            let mut client = Front::open(front.nbdkit.socket()).expect("the server still runs");
            stop(&upstream);
            let answer = match kind {
                cmd::WRITE => client.write(0, &vec![7; 32 * MIB]),
                _ => client.read(0, 4096).map(drop),
            };
            lost(&format!("{over:?}, command {kind}"), answer);
            upstream.signal(libc::SIGCONT);
            client.close();
        }
        assert!(front.nbdkit.alive());
        assert_eq!(
            nbdsh(&front.uri(), "print(len(h.pread(512, 0)))"),
            "512\n",
            "{over:?}: the next client"
        );
    }
}

/// Stops a server, and waits until none of its threads runs any more.
fn stop(server: &Nbdkit) {
    server.signal(libc::SIGSTOP);
    let tasks = format!("/proc/{}/task", server.pid());
    eventually("every thread is stopped", LIMIT, || {
        let tasks = fs::read_dir(&tasks).expect("the server's threads");
        let mut states = tasks.filter_map(|task| {
            let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            // The state follows the name, which is in parentheses.
            Some(stat.rsplit_once(") ")?.1.starts_with('T'))
        });
        states.all(|stopped| stopped).then_some(())
    });
}

#[test]
fn qcow2_from_qemu_nbd() {
    if !ready() || !need_all(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let secure = Certificates::new();
    let raw = noise_file(secure.path(), "raw", 8 * MIB, 105);
    let qcow2 = secure.path().join("qcow2");
    program(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&qcow2)],
    );
    for over in BOTH {
        let upstream = secure.qemu_nbd(&qcow2, "qcow2");
        let front = secure.forward(over, upstream.socket(), &["export=disk"]);
        let copy = secure.path().join(format!("copy-{over:?}"));
        nbdcopy(&["--connections=4", &front.uri(), text(&copy)]);
        assert_same_bytes(&copy, &raw);
        // And the other way: what is written arrives in the qcow2 file.
        let script = "
h.pwrite(b'q' * 65536, 1 << 20)
h.trim(1 << 20, 4 << 20)
h.zero(65536, 2 << 20)
h.flush()
assert h.pread(65536, 1 << 20) == b'q' * 65536
assert h.pread(65536, 2 << 20) == bytes(65536)
h.pwrite(open('RAW', 'rb').read(), 0)
h.flush()
";
        nbdsh(&front.uri(), &script.replace("RAW", text(&raw)));
    }
    run_ok(
        Command::new("qemu-img")
            .args(["compare", "-F", "raw", "-f", "qcow2"])
            .args([&qcow2, &raw]),
        LIMIT,
    );
}
