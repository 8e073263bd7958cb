// SPDX-License-Identifier: BSD-3-Clause
//! TLS in front of a server that has none, in every manner that the standard allows and some that it does not.
//!
//! It answers the greeting and `NBD_OPT_STARTTLS` itself. What follows goes to the server behind it, which has
//! been greeted meanwhile and never hears of TLS. nbdkit and qemu-nbd cannot be told to be so strange.

// Every test file is its own crate and uses its own part of this module.
#![allow(dead_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use openssl::ssl::{
    self, ErrorCode, SslAcceptor, SslAcceptorBuilder, SslFiletype, SslMethod, SslRef, SslStream,
    SslVerifyMode, SslVersion,
};

use crate::common::scripted::wire::{self, Fields, opt, rep};

/// How long the plugin may take for its side of the handshake.
const DEADLINE: Duration = Duration::from_secs(12);
/// How much is held back for a side that does not read.
const HELD: usize = 1 << 20;

/// How long a half ticket stays half.
pub const HELD_BACK: Duration = Duration::from_secs(1);
/// Length of the records then, bytes of data: as short as OpenSSL makes them, so that a ticket needs several.
const SHORT: libc::c_long = 512;

/// How to speak TLS.
#[derive(Clone, Debug)]
pub struct Manner {
    /// The newest version to agree on.
    pub newest: SslVersion,
    /// At most so many bytes of data in each record.
    pub record: usize,
    /// At most so many bytes of a record at a time to the socket.
    pub packet: usize,
    /// Session tickets that follow the handshake.
    pub tickets: usize,
    /// A key update, which the plugin must answer with its own, before every so many records.
    pub key_update: Option<usize>,
    /// After so many records there are no more: nothing but new keys, without end.
    pub only_keys_after: Option<usize>,
    /// After so many records comes a session ticket, of which the last part, and all that follows, is held back
    /// for [`HELD_BACK`]. The plugin needs a certificate, since a ticket is long only with that in it.
    pub half_ticket_after: Option<usize>,
    /// Once this is set the next piece of data comes in two records, both in one packet, and a bit of the second
    /// is not what it was. What follows is sent all the same, and in clear.
    pub break_next: Arc<AtomicBool>,
    /// Whether to say goodbye before the connection is closed, as the standard demands.
    pub close_notify: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            newest: SslVersion::TLS1_3,
            record: 16 << 10,
            packet: usize::MAX,
            tickets: 2,
            key_update: None,
            only_keys_after: None,
            half_ticket_after: None,
            break_next: Arc::default(),
            close_notify: true,
        }
    }
}

/// The listening server.
pub struct TlsServer {
    socket: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    backend: PathBuf,
    acceptor: SslAcceptor,
    manner: Manner,
    stop: AtomicBool,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

impl TlsServer {
    /// Listens in `directory` with the certificate in `certificates`, before the server on `backend`.
    pub fn start(directory: &Path, certificates: &Path, backend: &Path, manner: &Manner) -> Self {
        let socket = directory.join("tls.sock");
        let listener = UnixListener::bind(&socket).expect("listen on a fresh socket");
        let shared = Arc::new(Shared {
            backend: backend.to_owned(),
            acceptor: acceptor(certificates, manner),
            manner: manner.clone(),
            stop: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self {
            socket,
            shared,
            accepting: Some(accepting),
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // The connection only wakes the accepting thread.
        let _ = UnixStream::connect(&self.socket);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let mut connections = self
            .shared
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for connection in connections.drain(..) {
            let _ = connection.join();
        }
    }
}

fn acceptor(certificates: &Path, manner: &Manner) -> SslAcceptor {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())
        .expect("OpenSSL has a server's side");
    builder
        .set_max_proto_version(Some(manner.newest))
        .expect("a version that OpenSSL has");
    builder
        .set_certificate_chain_file(certificates.join("server-cert.pem"))
        .expect("a certificate");
    builder
        .set_private_key_file(certificates.join("server-key.pem"), SslFiletype::PEM)
        .expect("its key");
    builder
        .set_num_tickets(manner.tickets)
        .expect("a number of tickets");
    if manner.half_ticket_after.is_some() {
        builder.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
        shorten_records(&builder);
    }
    builder.build()
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let (plugin, _) = listener.accept().expect("accept on our own socket");
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let connection = thread::spawn({
            let shared = Arc::clone(shared);
            // Whatever goes wrong here, the test sees it as the end of the connection.
            move || drop(serve(plugin, &shared))
        });
        shared
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
    }
}

fn serve(mut plugin: UnixStream, shared: &Shared) -> io::Result<()> {
    plugin.set_read_timeout(Some(DEADLINE))?;
    plugin.set_write_timeout(Some(DEADLINE))?;
    let mut backend = UnixStream::connect(&shared.backend)?;
    let mut greeting = [0; 18];
    backend.read_exact(&mut greeting)?;
    plugin.write_all(&greeting)?;
    let mut flags = [0; 4];
    plugin.read_exact(&mut flags)?;
    backend.write_all(&flags)?;
    let mut option = [0; 16];
    plugin.read_exact(&mut option)?;
    let mut fields = Fields(&option);
    if (fields.u64(), fields.u32(), fields.u32()) != (wire::NEWSTYLE_MAGIC, opt::STARTTLS, 0) {
        return Err(ErrorKind::InvalidData.into());
    }
    plugin.write_all(&wire::option_reply(opt::STARTTLS, rep::ACK, &[]))?;
    let packets = Packets {
        stream: plugin,
        size: shared.manner.packet,
        held: None,
        gathered: None,
    };
    let tls = shared
        .acceptor
        .accept(packets)
        .map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
    tls.get_ref().stream.set_nonblocking(true)?;
    backend.set_nonblocking(true)?;
    Session {
        tls,
        backend,
        manner: &shared.manner,
        to_backend: Vec::new(),
        to_plugin: Vec::new(),
        records: 0,
        unfinished: false,
        half_ticket_after: shared.manner.half_ticket_after,
        is_broken: false,
    }
    .run(&shared.stop)
}

/// The plugin's socket, written to in small portions.
struct Packets {
    stream: UnixStream,
    size: usize,
    held: Option<Held>,
    /// What is written is kept here until it is sent at once.
    gathered: Option<Vec<u8>>,
}

/// What is held back.
struct Held {
    /// So many bytes may still pass.
    pass: usize,
    bytes: Vec<u8>,
    until: Instant,
}

impl Read for Packets {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Packets {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(gathered) = &mut self.gathered {
            gathered.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let size = bytes.len().min(self.size);
        match &mut self.held {
            Some(held) if held.pass == 0 => {
                held.bytes.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            Some(held) => {
                let passed = self.stream.write(&bytes[..size.min(held.pass)])?;
                held.pass -= passed;
                Ok(passed)
            }
            None => self.stream.write(&bytes[..size]),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One established connection, carried on by one thread that never waits in a read or a write.
struct Session<'a> {
    tls: SslStream<Packets>,
    backend: UnixStream,
    manner: &'a Manner,
    to_backend: Vec<u8>,
    to_plugin: Vec<u8>,
    records: usize,
    /// A record was begun and did not fit into the socket: it must be the next thing that is sent.
    unfinished: bool,
    /// What is left to do of that.
    half_ticket_after: Option<usize>,
    /// A record was broken, and there is no TLS any more.
    is_broken: bool,
}

impl Session<'_> {
    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut plugin_ended = false;
        let mut backend_ended = false;
        while !stop.load(Ordering::SeqCst) {
            let mut busy = false;
            if !plugin_ended && self.to_backend.len() < HELD {
                match self.take_from_plugin()? {
                    Some(0) => plugin_ended = true,
                    taken => busy |= taken.is_some(),
                }
            }
            busy |= self.give_to_backend()?;
            if plugin_ended && self.to_backend.is_empty() {
                let _ = self.backend.shutdown(Shutdown::Write);
            }
            if !backend_ended && self.to_plugin.len() < HELD {
                match self.take_from_backend() {
                    Some(0) => backend_ended = true,
                    taken => busy |= taken.is_some(),
                }
            }
            self.hold_a_ticket_back()?;
            busy |= match self.manner.only_keys_after {
                Some(records) if self.records >= records => self.send_keys()?,
                _ => self.give_to_plugin()?,
            };
            if backend_ended && self.to_plugin.is_empty() {
                if self.manner.close_notify {
                    let _ = self.tls.shutdown();
                }
                return Ok(());
            }
            if !busy {
                self.wait(plugin_ended, backend_ended);
            }
        }
        Ok(())
    }

    /// `None` if there is nothing yet, 0 at the end.
    fn take_from_plugin(&mut self) -> io::Result<Option<usize>> {
        let mut buffer = [0; 16 << 10];
        match self.tls.ssl_read(&mut buffer) {
            Ok(n) => {
                self.to_backend.extend_from_slice(&buffer[..n]);
                Ok(Some(n))
            }
            Err(error) if later(&error) => Ok(None),
            // With or without a close_notify: ours is not the side under test.
            Err(_) => Ok(Some(0)),
        }
    }

    fn take_from_backend(&mut self) -> Option<usize> {
        let mut buffer = [0; 64 << 10];
        match self.backend.read(&mut buffer) {
            Ok(n) => {
                self.to_plugin.extend_from_slice(&buffer[..n]);
                Some(n)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(_) => Some(0),
        }
    }

    fn give_to_backend(&mut self) -> io::Result<bool> {
        if self.to_backend.is_empty() {
            return Ok(false);
        }
        match self.backend.write(&self.to_backend) {
            Ok(n) => {
                self.to_backend.drain(..n);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            // It ended in the middle; what it said before still counts.
            Err(_) => {
                self.to_backend.clear();
                Ok(false)
            }
        }
    }

    /// Sends half a ticket, or what was held back.
    fn hold_a_ticket_back(&mut self) -> io::Result<()> {
        if self
            .half_ticket_after
            .is_some_and(|records| self.records >= records)
        {
            self.half_ticket_after = None;
            self.tls.get_mut().held = Some(Held {
                // One record and a part of the next one.
                pass: SHORT as usize + 100,
                bytes: Vec::new(),
                until: Instant::now() + HELD_BACK,
            });
            new_ticket(self.tls.ssl());
            self.tls
                .do_handshake()
                .map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
            let held = self.tls.get_ref().held.as_ref();
            let rest = held.map_or(0, |held| held.bytes.len());
            assert!(rest > 0, "all of the ticket has passed");
        }
        let socket = self.tls.get_mut();
        if let Some(held) = socket
            .held
            .take_if(|held| held.pass == 0 && Instant::now() >= held.until)
        {
            socket.stream.write_all(&held.bytes)?;
        }
        Ok(())
    }

    /// Sends a few new keys, and what there is to send else is left.
    fn send_keys(&mut self) -> io::Result<bool> {
        for _ in 0..100 {
            if !self.unfinished {
                update_key(self.tls.ssl());
            }
            match self.tls.do_handshake() {
                Ok(()) => self.unfinished = false,
                Err(error) if later(&error) => {
                    self.unfinished = true;
                    return Ok(false);
                }
                Err(_) => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(true)
    }

    fn give_to_plugin(&mut self) -> io::Result<bool> {
        let mut given = 0;
        while given < self.to_plugin.len()
            && self
                .manner
                .only_keys_after
                .is_none_or(|records| self.records < records)
        {
            let due = |n| self.records % n == 0;
            if !self.unfinished && self.manner.key_update.is_some_and(due) {
                update_key(self.tls.ssl());
            }
            let rest = &self.to_plugin[given..];
            if self.is_broken {
                given += self.tls.get_mut().stream.write(rest)?;
                continue;
            }
            if rest.len() > 1 && self.manner.break_next.swap(false, Ordering::SeqCst) {
                given += self.send_broken(given)?;
                continue;
            }
            match self
                .tls
                .ssl_write(&rest[..rest.len().min(self.manner.record)])
            {
                Ok(n) => {
                    given += n;
                    self.records += 1;
                    self.unfinished = false;
                }
                Err(error) if later(&error) => {
                    self.unfinished = true;
                    break;
                }
                Err(_) => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
        self.to_plugin.drain(..given);
        Ok(given > 0)
    }

    /// Sends what waits, from there on, in two records, of which the second cannot be decrypted.
    fn send_broken(&mut self, begin: usize) -> io::Result<usize> {
        let length = self.to_plugin.len() - begin;
        let middle = begin + length / 2;
        self.tls.get_mut().gathered = Some(Vec::new());
        for part in [begin..middle, middle..self.to_plugin.len()] {
            let whole = part.len();
            let sent = self.tls.ssl_write(&self.to_plugin[part]).ok();
            assert_eq!(sent, Some(whole), "one record, and all of it gathered");
            self.records += 1;
        }
        self.is_broken = true;
        let socket = self.tls.get_mut();
        let mut gathered = socket.gathered.take().unwrap_or_default();
        if let Some(last) = gathered.last_mut() {
            *last ^= 1;
        }
        // A few records fit into a socket that nothing waits in.
        socket.stream.write_all(&gathered)?;
        Ok(length)
    }

    /// Waits until something may be done; not for ever, since nobody tells this thread to stop.
    fn wait(&self, plugin_ended: bool, backend_ended: bool) {
        let events = |read: bool, write: bool| {
            (libc::POLLIN * libc::c_short::from(read))
                | (libc::POLLOUT * libc::c_short::from(write))
        };
        let mut polls = [
            libc::pollfd {
                fd: self.tls.get_ref().stream.as_raw_fd(),
                events: events(!plugin_ended, self.unfinished || !self.to_plugin.is_empty()),
                revents: 0,
            },
            libc::pollfd {
                fd: self.backend.as_raw_fd(),
                events: events(!backend_ended, !self.to_backend.is_empty()),
                revents: 0,
            },
        ];
        for (poll, ended) in polls.iter_mut().zip([plugin_ended, backend_ended]) {
            if ended && poll.events == 0 {
                // Its hang-up would be reported again and again. A negative number is left out.
                poll.fd = -1;
            }
        }
        // SAFETY: `polls` is an array of two pollfds for the length of the call.
        unsafe { libc::poll(polls.as_mut_ptr(), 2, 100) };
    }
}

fn later(error: &ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

/// Announces a new ticket, to be sent with what follows. The openssl crate has no name for this.
fn new_ticket(ssl: &SslRef) {
    unsafe extern "C" {
        fn SSL_new_session_ticket(ssl: *mut libc::c_void) -> libc::c_int;
    }
    let ssl = std::ptr::from_ref(ssl).cast_mut().cast();
    // SAFETY: an SslRef is where OpenSSL's own SSL is, and this thread is the only one that uses it.
    let result = unsafe { SSL_new_session_ticket(ssl) };
    assert_eq!(result, 1, "a new ticket");
}

/// Makes records short. The openssl crate has no name for this.
fn shorten_records(builder: &SslAcceptorBuilder) {
    const SET_MAX_SEND_FRAGMENT: libc::c_int = 52;
    unsafe extern "C" {
        fn SSL_CTX_ctrl(
            context: *mut libc::c_void,
            what: libc::c_int,
            value: libc::c_long,
            more: *mut libc::c_void,
        ) -> libc::c_long;
    }
    let context = builder.as_ptr().cast();
    // SAFETY: the builder owns the context; this control takes a number and no pointer.
    let result =
        unsafe { SSL_CTX_ctrl(context, SET_MAX_SEND_FRAGMENT, SHORT, std::ptr::null_mut()) };
    assert_eq!(result, 1, "short records");
}

/// Sends a new key with the next record, and asks for one. The openssl crate has no name for this.
fn update_key(ssl: &SslRef) {
    const REQUESTED: libc::c_int = 1;
    unsafe extern "C" {
        fn SSL_key_update(ssl: *mut libc::c_void, kind: libc::c_int) -> libc::c_int;
    }
    let ssl = std::ptr::from_ref(ssl).cast_mut().cast();
    // SAFETY: an SslRef is where OpenSSL's own SSL is, and this thread is the only one that uses it.
    let result = unsafe { SSL_key_update(ssl, REQUESTED) };
    assert_eq!(result, 1, "a key update");
}
