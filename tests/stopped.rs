// SPDX-License-Identifier: BSD-3-Clause
//! Row Z4 of the catalogue with the two other servers there are: qemu-nbd and nbd-server are stopped (SIGSTOP) in each
//! phase of a connection, and go on (SIGCONT) in time, or not.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::clients::LIMIT;
use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::process::eventually;
use common::relay::{Direction, Others, Plan, Relay, Trouble};
use common::scripted::bench::lost;
use common::upstream::{Server, nbd_server, noise, noise_file, qemu_nbd};

const SIZE: usize = 1 << 20;
/// What each phase may take, where a server does not go on. A busy machine needs some of it to start a server.
const SHORT: [&str; 4] = [
    "connect-timeout=1",
    "handshake-timeout=3",
    "request-timeout=1",
    "close-timeout=1",
];
/// A hang bound for what takes three seconds, or twice that.
const SOON: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Qemu,
    NbdServer,
}

struct Stage {
    // Dropped in this order.
    front: Nbdkit,
    relay: Relay,
    server: Arc<Server>,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn new(kind: Kind, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let image = noise_file(directory.path(), "disk", SIZE, 1);
        let server = Arc::new(start(kind, directory.path(), &image));
        let relay = Relay::unix(directory.path(), "relay.sock", server.socket());
        let front = relay.forward(directory.path(), &[&["export=disk"], extra].concat());
        Self {
            front,
            relay,
            server,
            _directory: directory,
        }
    }

    fn stop(&self) {
        self.server.signal_all(libc::SIGSTOP);
    }

    fn go_on(&self) {
        self.server.signal_all(libc::SIGCONT);
    }

    /// The server is stopped before the byte with this number of its next connection goes on.
    fn stop_at(&self, direction: Direction, at: usize) {
        let server = self.server.clone();
        self.relay.plan(
            Some(Plan {
                trouble: Trouble::Call(Arc::new(move || server.signal_all(libc::SIGSTOP))),
                direction,
                at,
            }),
            Others::Well,
        );
    }

    /// A busy machine may need more time for a process that a server starts than [`SHORT`] gives it.
    fn open(&self) -> Front {
        eventually("a server that runs is used", LIMIT, || {
            Front::open(self.front.socket()).ok()
        })
    }

    /// Makes a request, and waits until the plugin has passed it on.
    fn on_its_way(&self, front: &mut Front, ask: Ask) -> u64 {
        let (sent, _) = self.relay.lengths();
        let cookie = submit(front, ask);
        eventually("the request is on its way", LIMIT, || {
            (self.relay.lengths().0 > sent).then_some(())
        });
        cookie
    }

    /// The server goes on, and clients are served.
    fn serves_the_next(&mut self) {
        self.relay.plan(None, Others::Well);
        assert!(self.front.alive());
        let mut front = eventually("a server that goes on is used", LIMIT, || {
            // What a slow server said may stop it as late as now.
            self.go_on();
            Front::open(self.front.socket()).ok()
        });
        assert_eq!(front.read(512, 512), Ok(noise(SIZE, 1)[512..1024].to_vec()));
        front.close();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Nobody hangs at the end because of a server that does not accept.
        self.go_on();
    }
}

fn start(kind: Kind, directory: &Path, image: &Path) -> Server {
    match kind {
        Kind::Qemu => qemu_nbd(directory, image, "raw", "disk", &[]),
        Kind::NbdServer => nbd_server(directory, image, "disk", &["flush = true", "fua = true"]),
    }
}

/// Plays a row for both servers, side by side: most of it is waiting.
fn each(row: impl Fn(Kind) + Sync) {
    let row = &row;
    thread::scope(|scope| {
        for (kind, programs) in [
            (Kind::Qemu, &["nbdkit", "qemu-nbd"][..]),
            (Kind::NbdServer, &["nbdkit", "nbd-server", "socat"]),
        ] {
            if need_all(programs) {
                scope.spawn(move || row(kind));
            }
        }
    });
}

/// Where in the handshake of these servers: within what either side says.
const IN_HANDSHAKE: [(Direction, usize); 2] =
    [(Direction::FromServer, 30), (Direction::ToServer, 30)];

#[test]
fn z4_stopped_before_the_connection() {
    each(|kind| {
        let mut stage = Stage::new(kind, &SHORT);
        stage.stop();
        assert!(Front::open(stage.front.socket()).is_err());
        assert!(stage.front.explanation().contains("handshake"), "{kind:?}");
        stage.serves_the_next();
    });
}

#[test]
fn z4_stopped_before_the_connection_for_a_moment() {
    each(|kind| {
        let mut stage = Stage::new(kind, &[]);
        stage.stop();
        thread::scope(|scope| {
            let opening = scope.spawn(|| stage.open().close());
            eventually("it has connected", LIMIT, || {
                (stage.relay.connections() > 0).then_some(())
            });
            stage.go_on();
            opening.join().expect("opened");
        });
        stage.serves_the_next();
    });
}

#[test]
fn z4_stopped_within_the_handshake() {
    each(|kind| {
        let mut stage = Stage::new(kind, &SHORT);
        for (direction, at) in IN_HANDSHAKE {
            stage.stop_at(direction, at);
            let started = Instant::now();
            let opened = Front::open(stage.front.socket());
            assert!(opened.is_err(), "{kind:?} {direction:?} {at}");
            assert!(started.elapsed() < SOON, "{kind:?} {direction:?} {at}");
            stage.serves_the_next();
        }
    });
}

#[test]
fn z4_stopped_within_the_handshake_for_a_moment() {
    each(|kind| {
        let mut stage = Stage::new(kind, &[]);
        for (direction, at) in IN_HANDSHAKE {
            let connections = stage.relay.connections();
            stage.stop_at(direction, at);
            thread::scope(|scope| {
                let opening = scope.spawn(|| stage.open().close());
                eventually("it has connected", LIMIT, || {
                    let met = stage.relay.connections() > connections;
                    (met && !stage.relay.is_planned()).then_some(())
                });
                // The trouble may come a moment later: then it goes on at the next look.
                eventually("it opens when the server goes on", LIMIT, || {
                    stage.go_on();
                    opening.is_finished().then_some(())
                });
                opening.join().expect("opened");
            });
            stage.serves_the_next();
        }
    });
}

/// What is in flight when the server stops.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Read,
    Write,
    Flush,
}

fn submit(front: &mut Front, ask: Ask) -> u64 {
    match ask {
        Ask::Read => front.submit_read(4096, 512),
        Ask::Write => front.submit_write(8192, &[7; 512]),
        Ask::Flush => front.submit(common::scripted::wire::cmd::FLUSH, 0, 0, 0, &[]),
    }
}

#[test]
fn z4_stopped_with_a_request_in_flight() {
    each(|kind| {
        let mut stage = Stage::new(kind, &SHORT);
        for ask in [Ask::Read, Ask::Write, Ask::Flush] {
            let mut front = stage.open();
            assert_eq!(front.write(8192, &[6; 512]), Ok(()));
            stage.stop();
            let started = Instant::now();
            let cookie = submit(&mut front, ask);
            lost(&format!("{kind:?} {ask:?}"), front.wait(cookie));
            assert!(started.elapsed() < SOON, "{kind:?} {ask:?}");
            front.close();
            stage.serves_the_next();
        }
    });
}

#[test]
fn z4_stopped_with_a_request_in_flight_for_a_moment() {
    each(|kind| {
        let mut stage = Stage::new(kind, &[]);
        let mut front = stage.open();
        for ask in [Ask::Read, Ask::Write, Ask::Flush] {
            stage.stop();
            let cookie = stage.on_its_way(&mut front, ask);
            stage.go_on();
            assert_eq!(front.wait(cookie), Ok(()), "{kind:?} {ask:?}");
        }
        front.close();
        stage.serves_the_next();
    });
}

/// The connection to a stopped server is given up, and the next one is used when the server goes on: clients wait.
#[test]
fn z10_stopped_with_a_request_in_flight_and_survived() {
    each(|kind| {
        let extra = [&SHORT[..], &["reconnect=60", "reconnect-delay=1ms:50ms"]].concat();
        let mut stage = Stage::new(kind, &extra);
        let mut front = stage.open();
        for ask in [Ask::Read, Ask::Write, Ask::Flush] {
            let bytes = vec![ask as u8 + 1; 512];
            assert_eq!(front.write(12288, &bytes), Ok(()));
            let losses = || stage.front.stderr().matches("connection lost").count();
            let before = losses();
            stage.stop();
            let cookie = submit(&mut front, ask);
            eventually("the connection is given up", LIMIT, || {
                (losses() > before).then_some(())
            });
            stage.go_on();
            assert_eq!(front.wait(cookie), Ok(()), "{kind:?} {ask:?}");
            assert_eq!(front.read(12288, 512), Ok(bytes), "{kind:?} {ask:?}");
            assert_eq!(front.flush(), Ok(()));
        }
        front.close();
        stage.serves_the_next();
    });
}

#[test]
fn z5_stopped_at_the_goodbye() {
    each(|kind| {
        let mut stage = Stage::new(kind, &SHORT);
        let front = stage.open();
        stage.stop();
        let started = Instant::now();
        // Returns when nbdkit has closed, which is after the plugin's close.
        front.close();
        assert!(started.elapsed() < SOON, "{kind:?}");
        stage.serves_the_next();
    });
}

#[test]
fn z5_stopped_at_the_goodbye_for_a_moment() {
    each(|kind| {
        let mut stage = Stage::new(kind, &[]);
        let mut front = stage.open();
        assert_eq!(front.write(8192, &[6; 512]), Ok(()));
        stage.stop();
        let (sent, _) = stage.relay.lengths();
        thread::scope(|scope| {
            let leaving = scope.spawn(|| front.close());
            eventually("the last flush is on its way", LIMIT, || {
                (stage.relay.lengths().0 > sent).then_some(())
            });
            stage.go_on();
            leaving.join().expect("left");
        });
        assert_eq!(stage.front.errors(), [""; 0], "{kind:?}");
        stage.serves_the_next();
    });
}

/// nbdkit is told to end while the server is stopped, in each phase.
#[test]
fn z13_sigterm_before_a_stopped_server() {
    each(|kind| {
        for ask in [None, Some(Ask::Read), Some(Ask::Flush)] {
            let mut stage = Stage::new(kind, &SHORT);
            let mut front = stage.open();
            stage.stop();
            let cookie = ask.map(|ask| stage.on_its_way(&mut front, ask));
            stage.front.signal(libc::SIGTERM);
            // nbdkit waits for clients that stay, but not for what they have asked for.
            if let Some(cookie) = cookie {
                assert!(front.wait(cookie).is_err(), "{kind:?} {ask:?}");
            }
            drop(front);
            stage.front.ends_well();
            stage.go_on();
        }
    });
}
