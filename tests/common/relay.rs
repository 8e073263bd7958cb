// SPDX-License-Identifier: BSD-3-Clause
//! A wire between the plugin and a server that the test can tap, cut, and trouble at any byte of either direction.
//! It also gives a server on a Unix socket a TCP port, on which no other process can have been before.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::nbdkit::Nbdkit;

/// How much of each direction of a connection is kept: every handshake is shorter.
const KEPT: usize = 64 << 10;

/// What went over one connection, as far as it was kept.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    pub to_server: Vec<u8>,
    pub from_server: Vec<u8>,
    /// How many bytes went to the server in all.
    pub sent: u64,
}

/// What happens to a connection when so many bytes have gone over it in one direction.
#[derive(Clone)]
pub enum Trouble {
    /// Both directions end.
    Cut,
    /// The same, by an RST, where the connection is TCP.
    Reset,
    /// This direction ends; the other one goes on.
    End,
    /// Nothing arrives any more in this direction, and nobody is told.
    Stall,
    /// From here on every byte comes alone.
    Trickle,
    /// Something else happens, before another byte goes on.
    Call(Arc<dyn Fn() + Send + Sync>),
}

/// The trouble of one connection.
#[derive(Clone)]
pub struct Plan {
    pub trouble: Trouble,
    pub direction: Direction,
    /// After so many bytes.
    pub at: usize,
}

/// What becomes of connections for which there is no plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Others {
    /// They have no trouble.
    #[default]
    Well,
    /// They are closed at once.
    Refused,
}

/// A listener that connects whoever comes to the server behind it.
pub struct Relay {
    place: Place,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

enum Place {
    Unix(PathBuf),
    Tcp(u16),
}

struct Shared {
    server: PathBuf,
    stop: AtomicBool,
    plans: Mutex<(Option<Plan>, Others)>,
    wires: Mutex<Vec<Arc<Wire>>>,
    pumps: Mutex<Vec<JoinHandle<()>>>,
}

/// One connection. A TCP socket also goes by the name of `UnixStream` here: once it is connected there is no
/// difference in how it is read, written and shut down.
struct Wire {
    plugin: UnixStream,
    server: UnixStream,
    recording: Mutex<Recording>,
    /// Bytes of each direction, to the server and from it.
    passed: [AtomicU64; 2],
    /// How many more bytes of the server's get through, if there is a limit.
    allowance: Mutex<Option<usize>>,
    plan: Option<Plan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    FromServer,
}

impl Relay {
    /// Listens on the Unix socket `name` in `directory`.
    pub fn unix(directory: &Path, name: &str, server: &Path) -> Self {
        let socket = directory.join(name);
        let listener = UnixListener::bind(&socket).expect("listen on a fresh socket");
        let accept = move || listener.accept().expect("accept on our own socket").0;
        Self::start(Place::Unix(socket), server, accept)
    }

    /// Listens on a free TCP port of 127.0.0.1.
    pub fn tcp(server: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a free port");
        let port = listener.local_addr().expect("it has an address").port();
        let accept = move || {
            let (stream, _) = listener.accept().expect("accept on our own port");
            // Small messages go on at once, as servers send them.
            stream.set_nodelay(true).expect("TCP_NODELAY");
            UnixStream::from(OwnedFd::from(stream))
        };
        Self::start(Place::Tcp(port), server, accept)
    }

    fn start(
        place: Place,
        server: &Path,
        accept: impl Fn() -> UnixStream + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            stop: AtomicBool::new(false),
            plans: Mutex::default(),
            wires: Mutex::default(),
            pumps: Mutex::default(),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                loop {
                    let plugin = accept();
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    connect(&shared, plugin);
                }
            }
        });
        Self {
            place,
            shared,
            accepting: Some(accepting),
        }
    }

    /// The parameters with which the plugin finds this relay.
    pub fn parameters(&self) -> Vec<String> {
        match &self.place {
            Place::Unix(socket) => vec![format!("socket={}", socket.display())],
            Place::Tcp(port) => vec!["hostname=localhost".to_owned(), format!("port={port}")],
        }
    }

    /// nbdkit with the plugin, whose server is behind this relay; `extra` as for [`super::nbdkit::forward`].
    pub fn forward(&self, directory: &Path, extra: &[&str]) -> Nbdkit {
        let (mut args, parameters): (Vec<String>, Vec<String>) = extra
            .iter()
            .map(|arg| (*arg).to_owned())
            .partition(|arg| arg.starts_with('-'));
        args.insert(0, "-v".to_owned());
        args.push(super::plugin().display().to_string());
        args.extend(self.parameters());
        args.extend(parameters);
        Nbdkit::start(directory, &args)
    }

    /// The port, of a relay that listens on TCP.
    pub fn port(&self) -> u16 {
        match self.place {
            Place::Tcp(port) => port,
            Place::Unix(_) => panic!("a Unix socket has no port"),
        }
    }

    /// The socket, of a relay that listens on a Unix socket.
    pub fn socket(&self) -> &Path {
        match &self.place {
            Place::Unix(socket) => socket,
            Place::Tcp(_) => panic!("a TCP port has no path"),
        }
    }

    /// What went over each connection so far, in the order in which they were made.
    pub fn recordings(&self) -> Vec<Recording> {
        let wires = lock(&self.shared.wires);
        wires
            .iter()
            .map(|wire| lock(&wire.recording).clone())
            .collect()
    }

    /// Cuts one connection, by its number.
    pub fn cut_one(&self, number: usize) {
        lock(&self.shared.wires)[number].cut();
    }

    /// Cuts every connection that there is.
    pub fn cut_now(&self) {
        lock(&self.shared.wires).iter().for_each(|wire| wire.cut());
    }

    /// How many bytes have passed so far, over all connections, in both directions.
    pub fn passed(&self) -> u64 {
        let wires = lock(&self.shared.wires);
        let passed = wires.iter().flat_map(|wire| &wire.passed);
        passed.map(|bytes| bytes.load(Ordering::SeqCst)).sum()
    }

    /// How many status queries were made, over all connections that are short enough to be kept and have no
    /// payload of a client's.
    pub fn status_queries(&self) -> usize {
        self.requests(7)
    }

    /// The same for another command, by its number.
    pub fn requests(&self, command: u8) -> usize {
        // The magic of either header, any flags, and the command.
        let is_query = |bytes: &[u8]| {
            let magic = [[0x25, 0x60, 0x95, 0x13], [0x21, 0xe4, 0x1c, 0x71]];
            magic.iter().any(|magic| bytes[..4] == *magic) && bytes[6..] == [0, command]
        };
        let recordings = self.recordings();
        let queries = recordings.iter().map(|recording| {
            assert!(recording.to_server.len() < KEPT, "not all of it is kept");
            let windows = recording.to_server.windows(8);
            windows.filter(|bytes| is_query(bytes)).count()
        });
        queries.sum()
    }

    /// What went over the latest connection, to the server and from it.
    pub fn lengths(&self) -> (usize, usize) {
        let wires = lock(&self.shared.wires);
        let recording = lock(&wires.last().expect("a connection").recording);
        (recording.to_server.len(), recording.from_server.len())
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        lock(&self.shared.wires).len()
    }

    /// What becomes of the next connection, and of those that are made after it.
    pub fn plan(&self, next: Option<Plan>, others: Others) {
        *lock(&self.shared.plans) = (next, others);
    }

    /// Whether no connection has met the plan yet.
    pub fn is_planned(&self) -> bool {
        lock(&self.shared.plans).0.is_some()
    }

    /// Cuts every connection as soon as the server has sent so many more bytes.
    pub fn cut_after(&self, bytes: usize) {
        for wire in lock(&self.shared.wires).iter() {
            *lock(&wire.allowance) = Some(bytes);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // The connection only wakes the accepting thread.
        let woken = match &self.place {
            Place::Unix(socket) => UnixStream::connect(socket).is_ok(),
            Place::Tcp(port) => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        };
        assert!(
            woken || thread::panicking(),
            "the directory must outlive the relay in it"
        );
        if let Some(accepting) = self.accepting.take().filter(|_| woken) {
            let _ = accepting.join();
        }
        for wire in lock(&self.shared.wires).iter() {
            wire.cut();
        }
        for pump in std::mem::take(&mut *lock(&self.shared.pumps)) {
            let _ = pump.join();
        }
    }
}

fn connect(shared: &Shared, plugin: UnixStream) {
    let (plan, others) = {
        let mut plans = lock(&shared.plans);
        (plans.0.take(), plans.1)
    };
    let is_closed = match &plan {
        Some(plan) => plan.is_due_at_once(),
        None => others == Others::Refused,
    };
    if is_closed {
        // The server need not know.
        return;
    }
    // A server that is gone looks like one that closes at once.
    let Ok(server) = UnixStream::connect(&shared.server) else {
        return;
    };
    let wire = Arc::new(Wire {
        plugin,
        server,
        recording: Mutex::default(),
        passed: Default::default(),
        allowance: Mutex::new(None),
        plan,
    });
    lock(&shared.wires).push(Arc::clone(&wire));
    let pumps = [Direction::ToServer, Direction::FromServer].map(|direction| {
        let wire = Arc::clone(&wire);
        thread::spawn(move || wire.pump(direction))
    });
    lock(&shared.pumps).extend(pumps);
}

impl Plan {
    fn is_due_at_once(&self) -> bool {
        self.at == 0 && matches!(self.trouble, Trouble::Cut | Trouble::Reset)
    }
}

/// What a pump does after it has passed bytes on.
enum After {
    GoOn,
    End,
    Over,
}

impl Wire {
    /// Passes bytes on until one side ends, and then the end.
    fn pump(&self, direction: Direction) {
        let (mut from, to) = match direction {
            Direction::ToServer => (&self.plugin, &self.server),
            Direction::FromServer => (&self.server, &self.plugin),
        };
        let mut passed = 0;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let bytes = match from.read(&mut buffer) {
                Ok(n) if n > 0 => &buffer[..n],
                _ => break,
            };
            let bytes = match direction {
                Direction::ToServer => bytes,
                Direction::FromServer => self.allowed(bytes),
            };
            self.passed[direction as usize].fetch_add(bytes.len() as u64, Ordering::SeqCst);
            match self.pass(direction, bytes, &mut passed, to) {
                Ok(After::GoOn) => (),
                Ok(After::End) | Err(_) => break,
                Ok(After::Over) => return,
            }
            if *lock(&self.allowance) == Some(0) {
                return self.cut();
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Passes bytes on, of which there were so many before, and makes the trouble that is planned.
    fn pass(
        &self,
        direction: Direction,
        bytes: &[u8],
        passed: &mut usize,
        mut to: &UnixStream,
    ) -> io::Result<After> {
        let plan = self.plan.as_ref().filter(|p| p.direction == direction);
        let Some(plan) = plan.filter(|plan| plan.at <= *passed + bytes.len()) else {
            self.record(direction, bytes);
            *passed += bytes.len();
            to.write_all(bytes)?;
            return Ok(After::GoOn);
        };
        let (before, behind) = bytes.split_at(plan.at.saturating_sub(*passed));
        let first = *passed <= plan.at && !bytes.is_empty();
        *passed += bytes.len();
        self.record(direction, before);
        to.write_all(before)?;
        match &plan.trouble {
            Trouble::Cut => self.cut(),
            Trouble::Reset => self.reset(),
            Trouble::End => return Ok(After::End),
            Trouble::Stall => return Ok(After::GoOn),
            Trouble::Trickle => {
                self.record(direction, behind);
                for byte in behind {
                    to.write_all(&[*byte])?;
                }
                return Ok(After::GoOn);
            }
            Trouble::Call(call) => {
                if first && !behind.is_empty() {
                    call();
                }
                self.record(direction, behind);
                to.write_all(behind)?;
                return Ok(After::GoOn);
            }
        }
        Ok(After::Over)
    }

    fn allowed<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match &mut *lock(&self.allowance) {
            None => bytes,
            Some(left) => {
                let n = bytes.len().min(*left);
                *left -= n;
                &bytes[..n]
            }
        }
    }

    fn record(&self, direction: Direction, bytes: &[u8]) {
        let mut recording = lock(&self.recording);
        if direction == Direction::ToServer {
            recording.sent += bytes.len() as u64;
        }
        let kept = match direction {
            Direction::ToServer => &mut recording.to_server,
            Direction::FromServer => &mut recording.from_server,
        };
        let room = KEPT - kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Forgets the plugin's side: TCP says RST to that. Whatever it has not read stays readable.
    fn reset(&self) {
        let nobody = libc::sockaddr {
            sa_family: libc::AF_UNSPEC as libc::sa_family_t,
            sa_data: [0; 14],
        };
        let length = size_of_val(&nobody) as libc::socklen_t;
        // SAFETY: `nobody` is one address of that length.
        unsafe { libc::connect(self.plugin.as_raw_fd(), &raw const nobody, length) };
        self.cut();
    }

    fn cut(&self) {
        let _ = self.plugin.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
