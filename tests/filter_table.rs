// SPDX-License-Identifier: BSD-3-Clause
//! What the manual says under FILTERS, row by row: the plugin behind each of these filters of nbdkit.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::clients::{LIMIT, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::process::eventually;
use common::scripted::wire::flag;
use common::upstream::{noise, noise_file};
use common::{manual, need};
use tempfile::TempDir;

const SIZE: usize = 1 << 20;
const PATIENT: [&str; 2] = ["reconnect=30", "reconnect-delay=10ms:100ms"];
/// The filter tries at once, and for long enough.
const RETRY: [&str; 4] = [
    "--filter=retry",
    "retries=60",
    "retry-delay=1",
    "retry-exponential=no",
];

/// A server that forgets what it has not flushed when it is killed, nbdkit before it, and a disk.
struct Stage {
    // Dropped in this order.
    front: Nbdkit,
    server: Option<Nbdkit>,
    socket: PathBuf,
    disk: PathBuf,
    log: PathBuf,
    _directory: TempDir,
}

impl Stage {
    /// `extra` as for [`forward`].
    fn new(extra: &[&str]) -> Self {
        Self::with(serve, extra)
    }

    /// The server is started by this.
    fn with(serve: fn(&Path, &Path, &Path) -> Nbdkit, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let disk = noise_file(directory.path(), "disk", SIZE, 1);
        let socket = directory.path().join("server.sock");
        let log = directory.path().join("log");
        let server = serve(&socket, &disk, &log);
        let front = forward(directory.path(), &socket, extra);
        Self {
            front,
            server: Some(server),
            socket,
            disk,
            log,
            _directory: directory,
        }
    }

    fn kill(&mut self) {
        let mut server = self.server.take().expect("a server");
        server.signal(libc::SIGKILL);
        assert!(server.wait_timeout(LIMIT).is_some(), "it does not die");
    }

    fn again(&mut self) {
        let _ = fs::remove_file(&self.socket);
        self.server = Some(serve(&self.socket, &self.disk, &self.log));
    }

    /// How often the server was asked to do this.
    fn asked(&self, what: &str) -> usize {
        let log = fs::read_to_string(&self.log).expect("the server's log");
        log.matches(&format!(" {what} ")).count()
    }

    fn on_disk(&self, offset: usize) -> u8 {
        fs::read(&self.disk).expect("read disk")[offset]
    }

    /// Neither an error nor a warning.
    fn says_nothing(&self) {
        assert_eq!(self.front.errors(), [""; 0]);
    }
}

/// The filter that logs is the first to see a request.
fn serve(socket: &Path, disk: &Path, log: &Path) -> Nbdkit {
    let log = format!("logfile={}", text(log));
    let args = ["--filter=log", "--filter=cache", "file", text(disk)];
    let rest = ["cache=writeback", "logappend=true", &log];
    Nbdkit::start_at(socket, &[&args[..], &rest].concat())
}

/// A server that does not promise anything of several connections.
fn serve_without_multi_conn(socket: &Path, disk: &Path, log: &Path) -> Nbdkit {
    let log = format!("logfile={}", text(log));
    let args = ["--filter=log", "--filter=multi-conn", "file", text(disk)];
    Nbdkit::start_at(
        socket,
        &[&args[..], &["multi-conn-mode=disable", &log]].concat(),
    )
}

/// The table has a row for each test, and for nothing else.
#[test]
fn every_row_has_its_test() {
    let table = manual::section(Some("FILTERS"));
    let (_, table) = table.split_once("\n ---").expect("the table's head");
    let first = |line: &str| {
        let word = line.strip_prefix(' ')?.split(' ').next()?;
        (!word.is_empty()).then(|| word.to_owned())
    };
    let rows: Vec<String> = table.lines().skip(1).filter_map(first).collect();
    let tests = manual::file("tests/filter_table.rs");
    let tests = tests
        .lines()
        .filter_map(|line| line.strip_prefix("fn row_"));
    let tests = tests.filter_map(|line| line.strip_suffix("() {"));
    let tests: Vec<String> = tests.map(|name| name.replace('_', "-")).collect();
    assert_eq!(rows, tests);
}

/// A client writes, the server dies, and the client writes on while it comes back.
fn loses_its_server(stage: &mut Stage) -> Front {
    let mut client = Front::of(&stage.front);
    assert_eq!(client.write(0, &[7; 4096]), Ok(()));
    stage.kill();
    let cookie = client.submit_write(8192, &[8; 4096]);
    stage.again();
    assert_eq!(client.wait(cookie), Ok(()), "{}", stage.front.stderr());
    assert_eq!(client.flush(), Ok(()));
    client
}

#[test]
fn row_retry() {
    if !need("nbdkit") {
        return;
    }
    // Without reconnect the filter opens anew, and what was not flushed is lost. Nobody is told.
    let mut stage = Stage::new(&RETRY);
    let mut client = loses_its_server(&mut stage);
    assert_eq!((stage.on_disk(0), stage.on_disk(8192)), (noise(1, 1)[0], 8));
    assert_eq!(client.read(0, 1), Ok(noise(1, 1)));
    client.close();
    // With it the filter has nothing to do.
    let mut stage = Stage::new(&[&RETRY[..], &PATIENT].concat());
    let client = loses_its_server(&mut stage);
    assert_eq!((stage.on_disk(0), stage.on_disk(8192)), (7, 8));
    assert!(
        !stage.front.stderr().contains("retry 1"),
        "{}",
        stage.front.stderr()
    );
    client.close();
    // When TIME is over it opens anew, and a line tells what is lost.
    let soon = ["reconnect=1", "reconnect-delay=10ms:100ms"];
    let mut stage = Stage::new(&[&RETRY[..], &soon].concat());
    let mut client = Front::of(&stage.front);
    assert_eq!(client.write(0, &[7; 4096]), Ok(()));
    stage.kill();
    let cookie = client.submit_write(8192, &[8; 4096]);
    eventually("the filter has closed the server", LIMIT, || {
        let told = "since the last flush may be lost: the last client has left";
        stage.front.stderr().contains(told).then_some(())
    });
    stage.again();
    assert_eq!(client.wait(cookie), Ok(()), "{}", stage.front.stderr());
    assert_eq!(client.flush(), Ok(()));
    assert_eq!((stage.on_disk(0), stage.on_disk(8192)), (noise(1, 1)[0], 8));
    client.close();
}

#[test]
fn row_cow() {
    if !need("nbdkit") {
        return;
    }
    // Nothing is written, so that there is no need of a promise for several connections.
    let extra = ["--filter=cow", "connections=4", "reconnect=30"];
    let stage = Stage::with(serve_without_multi_conn, &extra);
    let mut client = Front::of(&stage.front);
    assert_eq!(client.write(0, &[7; 4096]), Ok(()));
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(client.read(0, 1), Ok(vec![7]));
    client.close();
    assert_eq!((stage.asked("Write"), stage.asked("Flush")), (0, 0));
    stage.says_nothing();
    assert!(fs::read(&stage.disk).expect("read") == noise(SIZE, 1));
}

#[test]
fn row_cache() {
    if !need("nbdkit") {
        return;
    }
    // What nobody has flushed has not left nbdkit, so that a server which dies loses nothing.
    let mut stage = Stage::new(&[&["--filter=cache"], &PATIENT[..]].concat());
    let mut client = Front::of(&stage.front);
    assert_eq!(client.write(0, &[7; 4096]), Ok(()));
    assert_eq!(stage.asked("Write"), 0);
    stage.kill();
    stage.again();
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(stage.on_disk(0), 7);
    client.close();
    let stage = Stage::new(&["--filter=cache", "cache=writethrough"]);
    let mut client = Front::of(&stage.front);
    assert_eq!(client.write(0, &[7; 4096]), Ok(()));
    assert_eq!(stage.asked("Write"), 1);
    client.close();
}

#[test]
fn row_multi_conn() {
    if !need("nbdkit") {
        return;
    }
    let extra = ["--filter=multi-conn", "connections=4"];
    let stage = Stage::with(serve_without_multi_conn, &extra);
    let (mut one, mut two) = (Front::of(&stage.front), Front::of(&stage.front));
    assert_ne!(one.export().flags & flag::CAN_MULTI_CONN, 0);
    // The flush of one is that of the other, over whose connection it goes.
    assert_eq!(one.write(0, &[7; 4096]), Ok(()));
    assert_eq!((two.flush(), stage.asked("Flush")), (Ok(()), 1));
    let log = fs::read_to_string(&stage.log).expect("the server's log");
    let connection = |what: &str| {
        let line = log
            .lines()
            .find(|line| line.contains(what))
            .expect("a line");
        line.split(' ')
            .find(|word| word.starts_with("connection="))
            .map(str::to_owned)
    };
    assert_eq!(connection(" Flush "), connection(" Write "));
    one.close();
    two.close();
    // What the filter says to clients is no promise of the server's.
    let told = stage.front.errors();
    assert!(
        told.iter()
            .all(|line| line.contains("connections=4: there is one only")),
        "{told:?}"
    );
    assert!(!told.is_empty());
}

#[test]
fn row_exitlast() {
    if !need("nbdkit") {
        return;
    }
    for extra in [
        &[][..],
        &["linger=forever"],
        &["shared=true"],
        &["connections=2"],
        &["reconnect=30"],
    ] {
        let mut stage = Stage::new(&[&["--filter=exitlast"], extra].concat());
        let mut client = Front::of(&stage.front);
        assert_eq!(client.write(0, &[7; 4096]), Ok(()));
        client.close();
        let status = stage.front.wait_timeout(LIMIT);
        assert!(
            status.is_some_and(|status| status.success()),
            "{extra:?}: {status:?}"
        );
        assert_eq!(stage.on_disk(0), 7, "{extra:?}");
        stage.says_nothing();
    }
}

#[test]
fn row_exportname() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disks = directory.path().join("disks");
    fs::create_dir(&disks).expect("make directory");
    for (name, seed) in [("one", 1), ("two", 2)] {
        noise_file(&disks, name, SIZE, seed);
    }
    let dir = format!("dir={}", text(&disks));
    let server = Nbdkit::start(directory.path(), &["file", &dir]);
    let behind = |extra: &[&str]| {
        let filter = &["--filter=exportname"][..];
        forward(directory.path(), server.socket(), &[filter, extra].concat())
    };
    // The names that clients choose from, and what they get without one, are the filter's.
    let front = behind(&[
        "dynamic-export=true",
        "default-export=two",
        "exportname-list=explicit",
        "exportname=one",
    ]);
    assert_eq!(listed(&front), ["one"]);
    for (name, seed) in [("", 2), ("one", 1), ("two", 2)] {
        assert_eq!(begins(&front, name), Some(noise(512, seed)), "{name}");
    }
    let front = behind(&[
        "dynamic-export=true",
        "exportname-strict=true",
        "exportname=one",
    ]);
    assert_eq!(begins(&front, "one"), Some(noise(512, 1)));
    assert_eq!(begins(&front, "two"), None);
    // All of them are the one export.
    let front = behind(&[
        "export=two",
        "exportname-list=explicit",
        "exportname=a",
        "exportname=b",
    ]);
    assert_eq!(listed(&front), ["a", "b"]);
    for name in ["", "a", "b", "one"] {
        assert_eq!(begins(&front, name), Some(noise(512, 2)), "{name}");
    }
}

/// What the export of this name begins with, if there is one.
fn begins(front: &Nbdkit, name: &str) -> Option<Vec<u8>> {
    let mut client = Front::open_as(front.socket(), name, false).ok()?;
    let read = client.read(0, 512);
    client.close();
    Some(read.expect("data"))
}

fn listed(front: &Nbdkit) -> Vec<String> {
    let exports = Front::list(front.socket()).into_iter();
    let names = exports.map(|(name, _)| String::from_utf8_lossy(&name).into_owned());
    names.collect()
}
