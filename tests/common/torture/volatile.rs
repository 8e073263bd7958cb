// SPDX-License-Identifier: BSD-3-Clause
//! A volatile server as a test sees it: it has lives, and each ends when the test, chance or its setup says so.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::common::pair::Upstream;
use crate::common::process::{Guarded, eventually};

use super::server::{IN_FILE, TEST, VARIABLE};
use super::setup::Setup;
use super::trace::event::{self, Event};

/// How long a server may take until it listens, or has died.
const LIMIT: Duration = Duration::from_secs(20);

/// With these arguments the test binary is the server.
const ARGS: [&str; 6] = [
    "--exact",
    TEST,
    "--ignored",
    "--nocapture",
    "--quiet",
    "--test-threads=1",
];

fn itself() -> PathBuf {
    env::current_exe().expect("the test knows its own path")
}

pub struct Volatile {
    /// Its present life, unless nbdkit has started it.
    process: Option<Guarded>,
    setup: Setup,
    /// Where a server that nbdkit starts finds the setup of its next life.
    in_file: Option<PathBuf>,
    /// Keeps its port from others while it is away.
    _port: Option<OwnedFd>,
}

/// A TCP port that nobody else gets, and that a listener with SO_REUSEADDR can still have.
fn reserve() -> (OwnedFd, u16) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
    let socket = socket.expect("a socket");
    sockopt::set_socket_reuseaddr(&socket, true).expect("a port for two");
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    rustix::net::bind(&socket, &any).expect("a port");
    let bound = rustix::net::getsockname(&socket).expect("its address");
    let bound = SocketAddrV4::try_from(bound).expect("an address like the one asked for");
    (socket, bound.port())
}

impl Volatile {
    /// Starts the first life in `directory`, where its files go, and waits until it listens.
    pub fn start(directory: &Path, setup: Setup) -> Self {
        let mut server = Self::prepare(directory, setup);
        server.again(|_| ());
        server
    }

    /// A server that nbdkit starts by `command=`, with its files in `directory`.
    pub fn by_command(directory: &Path, setup: Setup) -> Self {
        let mut server = Self::prepare(directory, setup);
        server.in_file = Some(directory.join("volatile.setup"));
        server.respawn(|_| ());
        server
    }

    fn prepare(directory: &Path, setup: Setup) -> Self {
        let backing = directory.join("backing");
        let file = fs::File::create(&backing).expect("the backing file");
        file.set_len(setup.size).expect("its length");
        let (reserved, port) = match setup.port {
            0 => (None, 0),
            _ => {
                let (socket, port) = reserve();
                (Some(socket), port)
            }
        };
        Self {
            process: None,
            in_file: None,
            _port: reserved,
            setup: Setup {
                port,
                socket: directory.join("volatile.sock"),
                log: directory.join("volatile.log"),
                backing,
                epoch: 0,
                ..setup
            },
        }
    }

    /// Starts the next life, which must not have begun, with this changed, and waits until it listens.
    pub fn again(&mut self, change: impl FnOnce(&mut Setup)) {
        self.respawn(change);
        self.listens();
    }

    /// [`Volatile::again`] without the waiting.
    pub fn respawn(&mut self, change: impl FnOnce(&mut Setup)) {
        assert!(self.process.is_none(), "the last life has not ended");
        self.setup.epoch += 1;
        change(&mut self.setup);
        if let Some(file) = &self.in_file {
            fs::write(file, self.setup.to_text()).expect("the setup of the next life");
            return;
        }
        let _ = fs::remove_file(self.setup.control());
        let mut command = Command::new(itself());
        command.args(ARGS).env(VARIABLE, self.setup.to_text());
        self.process = Some(Guarded::spawn(&mut command));
    }

    /// What nbdkit, which may start it, has to be told beside the parameters.
    pub fn environment(&self, command: &mut Command) {
        if let Some(file) = &self.in_file {
            command.env(VARIABLE, format!("{IN_FILE}{}", file.display()));
        }
    }

    /// Lets a server that nbdkit has started die as by [`Volatile::die`], once it is there. What the next one is
    /// like is decided before, as nbdkit starts it at once.
    pub fn die_by_order(&mut self, change: impl FnOnce(&mut Setup)) {
        eventually("the server that nbdkit starts is there", LIMIT, || {
            self.try_order("epoch")
                .filter(|epoch| epoch.trim_end() == self.setup.epoch.to_string())
        });
        self.respawn(change);
        let _ = self.try_order("die");
    }

    fn listens(&mut self) {
        let control = self.setup.control();
        let process = self.process.as_mut().expect("a life");
        eventually("the volatile server listens", LIMIT, || {
            assert!(process.alive(), "it ended at once: {}", process.stderr());
            UnixStream::connect(&control).ok()
        });
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn socket(&self) -> &Path {
        &self.setup.socket
    }

    /// Where clients reach it, as parameters of the plugin.
    pub fn parameters(&self) -> Vec<String> {
        if self.in_file.is_some() {
            let args = ARGS.map(|arg| format!("arg={arg}"));
            let command = format!("command={}", itself().display());
            [vec![command], args.to_vec()].concat()
        } else if self.setup.port == 0 {
            vec![format!("socket={}", self.setup.socket.display())]
        } else {
            vec![
                "hostname=127.0.0.1".to_owned(),
                format!("port={}", self.setup.port),
            ]
        }
    }

    /// Dies, and a random part of what was not flushed is durable.
    pub fn die(&mut self) {
        let _ = self.order("die");
        self.dead();
    }

    /// SIGKILL: nothing of what was not flushed is durable.
    pub fn kill(&mut self) {
        if self.in_file.is_some() {
            return self.die_by_order(|_| ());
        }
        self.process.as_ref().expect("a life").signal(libc::SIGKILL);
        self.dead();
    }

    /// SIGKILL, if it lives.
    pub fn end(&mut self) {
        if self.process.is_some() && !self.has_died() {
            self.kill();
        }
    }

    /// Waits until it has died of itself.
    pub fn dead(&mut self) {
        let mut process = self.process.take().expect("a life");
        let ended = process.wait_timeout(LIMIT);
        assert!(ended.is_some(), "the server does not die");
        let stderr = process.stderr();
        assert!(!stderr.contains("panicked"), "the server: {stderr}");
    }

    /// Whether it has died of itself; if so, the next life may begin.
    pub fn has_died(&mut self) -> bool {
        let died = !self.process.as_mut().expect("a life").alive();
        if died {
            self.dead();
        }
        died
    }

    /// The most reads that were in flight at one time.
    pub fn peak(&self) -> u64 {
        self.number("peak")
    }

    /// How many requests came in this life.
    pub fn arrived(&self) -> u64 {
        self.number("arrived")
    }

    /// How many connections came in this life.
    pub fn connections(&self) -> u64 {
        self.number("connections")
    }

    /// Waits until this many requests have come in this life.
    pub fn wait_arrived(&self, count: u64) {
        eventually("requests arrive at the server", LIMIT, || {
            (self.arrived() >= count).then_some(())
        });
    }

    /// Waits until this many connections were made in this life.
    pub fn wait_connections(&self, count: u64) {
        eventually("connections are made to the server", LIMIT, || {
            (self.connections() >= count).then_some(())
        });
    }

    fn number(&self, order: &str) -> u64 {
        let answer = self.order(order);
        answer.trim_end().parse().expect("a number in answer")
    }

    fn order(&self, order: &str) -> String {
        self.try_order(order).expect("it takes orders")
    }

    /// What it says to an order, if it is there.
    fn try_order(&self, order: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.setup.control()).ok()?;
        stream
            .set_read_timeout(Some(LIMIT))
            .expect("a nonzero timeout");
        writeln!(stream, "{order}").ok()?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        Some(answer)
    }

    /// All that it logged, in all its lives so far.
    pub fn log(&self) -> Vec<Event> {
        event::read(&self.setup.log)
    }

    /// What is durable.
    pub fn backing(&self) -> PathBuf {
        self.setup.backing.clone()
    }
}

impl Upstream for Volatile {
    fn socket(&self) -> &Path {
        &self.setup.socket
    }
}
