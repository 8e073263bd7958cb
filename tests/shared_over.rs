// SPDX-License-Identifier: BSD-3-Clause
//! `shared=true`, and a server that is another one afterwards: who comes then is served by what is there,
//! and what was before is nobody's matter once its clients have left.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use common::clients::LIMIT;
use common::control::{Commander, parameter};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::process::eventually;
use common::scripted::wire::errno;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// nbdkit before a server that can be exchanged.
struct Stand {
    front: Nbdkit,
    server: Option<Nbdkit>,
    place: PathBuf,
    /// How many threads there are without clients.
    idle: usize,
    directory: TempDir,
}

impl Stand {
    /// Begins with a disk of so many MiB.
    fn new(size: u64, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let place = directory.path().join("server.sock");
        let server = Some(start(&place, size));
        let control = parameter(directory.path());
        let extra = [&["shared=true", control.as_str()], extra].concat();
        let front = forward(directory.path(), &place, &extra);
        Self {
            idle: serving(&front),
            front,
            server,
            place,
            directory,
        }
    }

    /// The server is killed, and another one takes its place.
    fn exchange(&mut self, size: u64) {
        drop(self.server.take());
        let _ = fs::remove_file(&self.place);
        self.server = Some(start(&self.place, size));
    }

    fn commander(&self) -> Commander {
        Commander::new(self.directory.path())
    }
}

/// A client leaves, and nbdkit has seen that: the threads that served it are gone.
fn leave(stand: &Stand, client: Front) {
    client.close();
    eventually("it has left", LIMIT, || {
        (serving(&stand.front) <= stand.idle).then_some(())
    });
}

/// How many threads nbdkit has that are not the plugin's own.
fn serving(front: &Nbdkit) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", front.pid())).expect("it runs");
    let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm"));
    let names = threads.flatten().filter_map(|thread| name(thread).ok());
    names.filter(|name| !name.starts_with("nbd-")).count()
}

fn start(place: &Path, size: u64) -> Nbdkit {
    Nbdkit::start_at(place, &["memory", &format!("{size}M")])
}

/// What the next client finds.
fn size_for_next(stand: &Stand) -> u64 {
    let mut client = Front::of(&stand.front);
    let size = client.export().size;
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]), "{size}");
    leave(stand, client);
    size
}

#[test]
fn whoever_comes_first_gets_what_is_there() {
    if !need("nbdkit") {
        return;
    }
    for extra in [&[][..], &["reconnect=30"], &["connections=2"]] {
        let mut stand = Stand::new(2, extra);
        assert_eq!(size_for_next(&stand), 2 * MIB);
        for size in [4, 1] {
            stand.exchange(size);
            assert_eq!(size_for_next(&stand), size * MIB, "{extra:?}");
        }
    }
}

/// A server that is away, and a client that finds nobody else: with `reconnect=` it is served when that is back.
#[test]
fn whoever_comes_first_while_the_server_is_away_waits_for_it() {
    if !need("nbdkit") {
        return;
    }
    let mut stand = Stand::new(2, &["reconnect=30", "reconnect-delay=10ms:50ms"]);
    assert_eq!(size_for_next(&stand), 2 * MIB);
    drop(stand.server.take());
    fs::remove_file(&stand.place).expect("its socket");
    let mut client = Front::of(&stand.front);
    let read = client.submit_read(0, 512);
    eventually("it is known to be away", LIMIT, || {
        let log = stand.front.stderr();
        log.contains("trying again for up to 30 seconds")
            .then_some(())
    });
    stand.server = Some(start(&stand.place, 2));
    assert_eq!(client.wait_read(read), Ok(vec![0; 512]));
}

#[test]
fn nothing_is_left_of_connections_that_are_over() {
    if !need("nbdkit") {
        return;
    }
    for extra in [&[][..], &["reconnect=30"]] {
        let mut stand = Stand::new(1, extra);
        let mut commander = stand.commander();
        let mut before = None;
        for size in 2..6 {
            let mut client = Front::of(&stand.front);
            client.read(0, 512).expect("served");
            let fresh = *before.get_or_insert_with(|| stand.front.descriptors());
            stand.exchange(size);
            // With a client that sees the end, and without.
            if size % 2 == 0 {
                assert!(client.read(0, 512).is_err(), "another disk");
            }
            leave(&stand, client);
            assert_eq!(size_for_next(&stand), size * MIB, "{extra:?}");
            eventually("no more descriptors than at first", LIMIT, || {
                (stand.front.descriptors() < fresh).then_some(())
            });
            let ways = commander.status()["ways"].as_array().map(Vec::len);
            assert_eq!(ways, Some(1), "{extra:?}");
        }
    }
}

/// A session that has ended with something unflushed keeps nobody from holding requests, once its clients
/// have left.
#[test]
fn a_session_that_has_ended_is_in_nobodys_way() {
    if !need("nbdkit") {
        return;
    }
    let mut stand = Stand::new(1, &["reconnect=1", "reconnect-delay=10ms:50ms"]);
    let mut commander = stand.commander();
    let mut client = Front::of(&stand.front);
    client.write(0, &[7; 4096]).expect("written");
    stand.exchange(2);
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    assert!(
        commander
            .refuses("drain")
            .contains("the server is back, but ")
    );
    leave(&stand, client);
    assert_eq!(size_for_next(&stand), 2 * MIB);
    commander.does("drain");
    commander.does("resume");
    commander.does("reconnect");
    let status = commander.status();
    assert_eq!(status["ways"].as_array().map(Vec::len), Some(1), "{status}");
}

/// Whoever begins to connect anew may leave before that has come to its end. What comes of it is everybody's.
#[test]
fn what_is_made_for_somebody_who_has_left_is_looked_after() {
    if !need("nbdkit") {
        return;
    }
    let mut stand = Stand::new(1, &[]);
    assert_eq!(size_for_next(&stand), MIB);
    drop(stand.server.take());
    let _ = fs::remove_file(&stand.place);
    let slow = ["--filter=delay", "memory", "2M", "delay-open=1"];
    stand.server = Some(Nbdkit::start_at(&stand.place, &slow));
    let mut leaves = UnixStream::connect(stand.front.socket()).expect("nbdkit listens");
    let mut greeting = [0; 18];
    leaves.read_exact(&mut greeting).expect("a greeting");
    // NBD_FLAG_C_FIXED_NEWSTYLE and NO_ZEROES, then NBD_OPT_GO for the default export without questions.
    leaves
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0")
        .expect("taken");
    eventually("it is being opened", LIMIT, || {
        (serving(&stand.front) > stand.idle).then_some(())
    });
    drop(leaves);
    let mut commander = stand.commander();
    eventually("the new connection is known", LIMIT, || {
        let ways = &commander.status()["ways"];
        (ways[0]["state"] == "up" && ways[0]["connections"][0]["seconds"].as_f64()? < 10.0)
            .then_some(())
    });
    assert_eq!(size_for_next(&stand), 2 * MIB);
    let ways = commander.status()["ways"].as_array().map(Vec::len);
    assert_eq!(ways, Some(1));
}
