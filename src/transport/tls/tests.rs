// SPDX-License-Identifier: BSD-3-Clause
//! A session before a server of OpenSSL's own in the same process, on a pair of sockets.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslAcceptor, SslMethod, SslStream, SslVersion};
use openssl::x509::{X509, X509Name};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::socket::{RECORD, Socket};
use super::{Credentials, Files, Session, Settings, rekey};
use crate::transport::{Deadline, Error, unix};

/// Long enough for anything that ends.
const LIMIT: Duration = Duration::from_secs(20);

type Served = SslStream<Tapped>;

/// The server's socket, and the length of each record that passed it.
struct Tapped {
    stream: UnixStream,
    from_client: Arc<Mutex<Tap>>,
}

/// Takes a stream apart into records.
#[derive(Default)]
struct Tap {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Tap {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let [_, _, _, high, low, ..] = self.bytes[..] {
            let length = usize::from(high) << 8 | usize::from(low);
            if self.bytes.len() < 5 + length {
                return;
            }
            self.bytes.drain(..5 + length);
            self.lengths.push(length);
        }
    }
}

impl Read for Tapped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buffer)?;
        self.from_client.lock().expect("the tap").add(&buffer[..n]);
        Ok(n)
    }
}

impl Write for Tapped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A session, and what it takes to wait for it.
struct Client {
    session: Session,
    fd: Arc<OwnedFd>,
    tap: Arc<Mutex<Tap>>,
}

impl Client {
    /// A session with a server that speaks `newest` at most and then does `script`.
    fn new<T: Send + 'static>(
        newest: SslVersion,
        script: impl FnOnce(Served) -> T + Send + 'static,
    ) -> (Self, JoinHandle<T>) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        theirs.set_read_timeout(Some(LIMIT)).expect("a timeout");
        theirs.set_write_timeout(Some(LIMIT)).expect("a timeout");
        let tap = Arc::<Mutex<Tap>>::default();
        let tapped = Tapped {
            stream: theirs,
            from_client: Arc::clone(&tap),
        };
        let server = thread::spawn(move || {
            let acceptor = acceptor(newest);
            let ssl = Ssl::new(acceptor.context()).expect("a connection");
            let mut stream = SslStream::new(ssl, tapped).expect("a stream");
            stream.accept().expect("a handshake");
            script(stream)
        });
        let fd = Arc::new(OwnedFd::from(ours));
        let settings = no_checks();
        let session = Session::establish(
            fd.clone(),
            &settings.prepare().expect("no files"),
            |readable, writable| {
                ready(&fd, readable, writable);
                Ok(())
            },
        )
        .expect("a session");
        (Self { session, fd, tap }, server)
    }

    fn send(&self, mut bytes: &[u8]) {
        let deadline = Deadline::after(LIMIT);
        while !bytes.is_empty() {
            assert!(!deadline.has_passed(), "{} bytes are left", bytes.len());
            match self.session.send(&[IoSlice::new(bytes)]).expect("a send") {
                Some(n) => bytes = &bytes[n..],
                None => ready(&self.fd, false, !self.session.is_stuck()),
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<(), Error> {
        let mut got = 0;
        let deadline = Deadline::after(LIMIT);
        while got < buffer.len() {
            assert!(!deadline.has_passed(), "{got} of {}", buffer.len());
            match self.session.receive(&mut buffer[got..])? {
                Some(n) => got += n,
                None if self.session.may_hold_more() => (),
                None => ready(&self.fd, true, false),
            }
        }
        Ok(())
    }

    /// How many records of this length the client has sent.
    fn records_of(&self, length: usize) -> usize {
        let tap = self.tap.lock().expect("the tap");
        tap.lengths.iter().filter(|one| **one == length).count()
    }
}

/// Waits until the socket is ready, or for an instant.
fn ready(fd: &OwnedFd, readable: bool, writable: bool) {
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, readable);
    events.set(PollFlags::OUT, writable);
    let wait = match readable || writable {
        true => LIMIT,
        false => Duration::from_millis(1),
    };
    let wait = wait.try_into().expect("a time");
    poll(&mut [PollFd::new(fd, events)], Some(&wait)).expect("poll");
}

fn acceptor(newest: SslVersion) -> SslAcceptor {
    let key = key();
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).expect("TLS");
    builder
        .set_max_proto_version(Some(newest))
        .expect("a version");
    builder
        .set_certificate(&certificate(&key))
        .expect("a certificate");
    builder.set_private_key(&key).expect("its key");
    builder.build()
}

fn key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
}

fn certificate(key: &PKey<Private>) -> X509 {
    let mut name = X509Name::builder().expect("a name");
    name.append_entry_by_text("CN", "server").expect("a name");
    let name = name.build();
    let mut builder = X509::builder().expect("a certificate");
    let number = BigNum::from_u32(1).and_then(|one| one.to_asn1_integer());
    builder
        .set_serial_number(&number.expect("a number"))
        .expect("a number");
    builder.set_subject_name(&name).expect("a subject");
    builder.set_issuer_name(&name).expect("an issuer");
    builder.set_pubkey(key).expect("a key");
    let from = Asn1Time::days_from_now(0).expect("a time");
    builder.set_not_before(&from).expect("a time");
    let to = Asn1Time::days_from_now(1).expect("a time");
    builder.set_not_after(&to).expect("a time");
    builder.sign(key, MessageDigest::sha256()).expect("signed");
    builder.build()
}

fn no_checks() -> Settings {
    Settings {
        credentials: Credentials::X509(None),
        key_password: None,
        hostname: None,
        verify: Some(false),
        priority: None,
        pin: None,
        files: Files::default(),
    }
}

/// Sends back what it gets, as often as asked, `length` bytes at a time.
fn echo(length: usize, times: usize) -> impl FnOnce(Served) {
    move |mut stream| {
        let mut buffer = vec![0; length];
        for _ in 0..times {
            stream.read_exact(&mut buffer).expect("what was sent");
            stream.write_all(&buffer).expect("an answer");
        }
    }
}

/// The length of a record that says nothing but that there is a new key: the message, the type of
/// the record, and the tag.
const KEY_UPDATE: usize = 5 + 1 + 16;

fn renewals(newest: SslVersion, limit: u64) -> usize {
    let (client, server) = Client::new(newest, echo(100, 50));
    client.session.renew_keys_after(limit);
    let mut buffer = [0; 100];
    for n in 0..50 {
        client.send(&[n; 100]);
        client.receive(&mut buffer).expect("an answer");
        assert_eq!(buffer, [n; 100]);
    }
    server.join().expect("the server is content");
    client.records_of(KEY_UPDATE)
}

#[test]
fn keys_are_renewed_before_they_have_seen_too_many_records() {
    assert_eq!(renewals(SslVersion::TLS1_3, 1000), 0);
    assert_eq!(
        renewals(SslVersion::TLS1_3, 10),
        4,
        "before the 11th, 21st, 31st and 41st"
    );
    assert_eq!(renewals(SslVersion::TLS1_3, 1), 49);
}

#[test]
fn tls_1_2_has_no_new_keys() {
    assert_eq!(renewals(SslVersion::TLS1_2, 1), 0);
}

#[test]
fn a_server_that_sends_much_is_asked_for_a_new_key() {
    let (client, server) = Client::new(SslVersion::TLS1_3, |mut stream: Served| {
        let mut buffer = [0; 10];
        stream.read_exact(&mut buffer).expect("a request");
        for _ in 0..100 {
            stream.write_all(&[7; 1000]).expect("an answer");
        }
        // This asks, since a server of OpenSSL's answers before the next that it sends.
        stream.read_exact(&mut buffer).expect("a request");
        stream.write_all(&[8; 1000]).expect("an answer");
    });
    client.session.renew_keys_after(50);
    client.send(&[1; 10]);
    let mut buffer = vec![0; 100_000];
    client.receive(&mut buffer).expect("answers");
    assert_eq!(client.session.records_received(), 100);
    client.send(&[1; 10]);
    assert_eq!(client.session.records_received(), 0, "counted afresh");
    client.receive(&mut buffer[..1000]).expect("an answer");
    assert_eq!(buffer[..1000], [8; 1000]);
    server.join().expect("the server is content");
    assert_eq!(client.records_of(KEY_UPDATE), 1);
}

#[test]
fn all_is_sent_in_order_to_a_server_that_reads_late() {
    for newest in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        const SIZE: usize = 3_000_001;
        let (go, wait) = std::sync::mpsc::channel();
        let (client, server) = Client::new(newest, move |mut stream: Served| {
            wait.recv().expect("the word to begin");
            let mut all = vec![0; SIZE];
            stream.read_exact(&mut all).expect("what was sent");
            all
        });
        let data: Vec<u8> = (0..SIZE).map(|n| (n * n / 7) as u8).collect();
        let mut sent = 0;
        // Until the socket is full; then nothing is reported of what is encrypted and waits here.
        while let Some(n) = client
            .session
            .send(&[IoSlice::new(&data[sent..])])
            .expect("a send")
        {
            sent += n;
        }
        assert!(sent < SIZE, "a socket without a bottom");
        go.send(()).expect("the server");
        client.send(&data[sent..]);
        assert!(
            server.join().expect("the server is content") == data,
            "{newest:?}"
        );
    }
}

#[test]
fn what_is_reported_as_sent_needs_no_more_calls() {
    let (go, wait) = std::sync::mpsc::channel::<usize>();
    let (client, server) = Client::new(SslVersion::TLS1_3, move |mut stream: Served| {
        let mut all = vec![0; wait.recv().expect("how much to expect")];
        stream.read_exact(&mut all).map(|()| all)
    });
    // Until the socket is full, so that the last one is encrypted and not with the system.
    let mut sent = 0;
    while let Some(n) = client
        .session
        .send(&[IoSlice::new(&[3; 10_000])])
        .expect("a send")
    {
        sent += n;
    }
    go.send(sent).expect("the server");
    let all = server.join().expect("the server is content");
    assert!(all.expect("all of it") == vec![3; sent]);
}

#[test]
fn what_is_given_up_half_sent_is_never_followed_by_something_else() {
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let (client, server) = Client::new(SslVersion::TLS1_3, move |mut stream: Served| {
        wait.recv().expect("the word to begin");
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    });
    let data = vec![1; 1 << 20];
    while client
        .session
        .send(&[IoSlice::new(&data)])
        .expect("a send")
        .is_some()
    {}
    end.send(()).expect("the server");
    ready(&client.fd, false, true);
    let mut result = Ok(None);
    let deadline = Deadline::after(LIMIT);
    while matches!(result, Ok(None)) && !deadline.has_passed() {
        result = client.session.send(&[IoSlice::new(&[2; 28])]);
    }
    assert!(matches!(result, Err(Error::Tls(_))), "{result:?}");
    drop(client);
    let all = server.join().expect("the server is content");
    assert!(all.iter().all(|byte| *byte == 1));
}

#[test]
fn new_keys_without_end_hold_no_call_and_end_the_session() {
    let (client, server) = Client::new(SslVersion::TLS1_3, |mut stream: Served| {
        // Until the client hangs up, or has taken more than it ever should.
        for _ in 0..1_000_000 {
            if !rekey::renew(&mut stream, false) || stream.do_handshake().is_err() {
                return;
            }
        }
        panic!("a million new keys were taken");
    });
    let mut calls = 0;
    let error = loop {
        match client.session.receive(&mut [0; 4096]) {
            Ok(received) => assert_eq!(received, None, "there is no data"),
            Err(error) => break error,
        }
        calls += 1;
        if !client.session.may_hold_more() {
            ready(&client.fd, true, false);
        }
    };
    assert!(
        matches!(&error, Error::Tls(text) if text.contains("without end")),
        "{error}"
    );
    // Each call took a little of it: half a MiB are twenty thousand keys.
    assert!(calls > 100, "{calls} calls");
    drop(client);
    server.join().expect("the server is content");
}

#[test]
fn a_sender_gets_in_between_new_keys() {
    let (client, server) = Client::new(SslVersion::TLS1_3, |mut stream: Served| {
        // Whoever received all these would give up after half a MiB of them.
        while !is_readable(&stream.get_ref().stream) {
            assert!(rekey::renew(&mut stream, false));
            stream.do_handshake().expect("a new key");
        }
        let mut buffer = [0; 28];
        stream.read_exact(&mut buffer).expect("what was sent");
        stream.write_all(&buffer).expect("an answer");
    });
    let client = Arc::new(client);
    let receiving = thread::spawn({
        let client = Arc::clone(&client);
        move || {
            let mut buffer = [0; 28];
            client.receive(&mut buffer).map(|()| buffer)
        }
    });
    client.send(&[9; 28]);
    let received = receiving.join().expect("a receiver");
    assert_eq!(received, Ok([9; 28]));
    server.join().expect("the server is content");
}

fn is_readable(stream: &UnixStream) -> bool {
    let now = Duration::ZERO.try_into().expect("a time");
    poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&now)).expect("poll") > 0
}

/// Two ends between which what is sent at once arrives at once, or not at all.
fn packets() -> (Socket, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socketpair");
    (Socket::new(Arc::new(ours)).expect("map memory"), theirs)
}

#[test]
fn one_system_call_sends_many_records() {
    let (mut socket, theirs) = packets();
    let mut records = 0;
    while socket.has_room() {
        socket.write_all(&[records; RECORD]).expect("room");
        records += 1;
    }
    assert!(records >= 8, "{records}");
    assert_eq!(socket.flush_output(), Ok(true));
    let mut packet = vec![0; 1 << 20];
    let (got, _) = recv(&theirs, &mut *packet, RecvFlags::DONTWAIT).expect("a packet");
    assert_eq!(got, usize::from(records) * RECORD);
    assert_eq!(socket.flush_output(), Ok(true));
    let more = recv(&theirs, &mut *packet, RecvFlags::DONTWAIT);
    assert_eq!(
        more.err(),
        Some(Errno::AGAIN),
        "nothing is left, so nothing is sent"
    );
}

/// Where a peer does not listen the same is kept for it, whether some was sent before or not.
#[test]
fn output_that_waits_is_bounded_wherever_it_begins() {
    const MOST: usize = 1 << 20;
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut socket = Socket::new(Arc::new(ours.into())).expect("map memory");
    let mut written = Vec::new();
    for number in 0..MOST / RECORD / 2 {
        let record = [number as u8; RECORD];
        socket.write_all(&record).expect("room");
        written.extend(record);
    }
    assert_eq!(socket.flush_output(), Ok(false), "some of it is sent");
    theirs.set_nonblocking(true).expect("set non-blocking");
    let mut received = Vec::new();
    let would_block = (&theirs).read_to_end(&mut received);
    would_block.expect_err("not the end");
    assert!((1..written.len() / 2).contains(&received.len()));
    let error = loop {
        match socket.write_all(&[255; RECORD]) {
            Ok(()) => written.extend([255; RECORD]),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let waiting = written.len() - received.len();
    assert!((MOST - RECORD + 1..=MOST).contains(&waiting), "{waiting}");
    // Nothing of it is lost or moved.
    while received.len() < written.len() {
        socket.flush_output().expect("the peer listens");
        let _ = (&theirs).read_to_end(&mut received);
    }
    assert!(received == written && socket.flush_output() == Ok(true));
}

#[test]
fn one_system_call_receives_many_records() {
    let (mut socket, theirs) = packets();
    let packet: Vec<u8> = (0..8 * RECORD).map(|n| (n / RECORD) as u8).collect();
    send(&theirs, &packet, SendFlags::DONTWAIT).expect("a packet");
    send(&theirs, b"another", SendFlags::DONTWAIT).expect("a packet");
    let mut record = [0; RECORD];
    for number in 0..8 {
        socket.allow(true);
        socket.read_exact(&mut record).expect("a record");
        assert_eq!(record, [number; RECORD]);
    }
    socket.allow(true);
    assert_eq!(socket.read(&mut record).expect("the second packet"), 7);
    // So little is the last there was, until somebody looks again.
    send(&theirs, b"yet another", SendFlags::DONTWAIT).expect("a packet");
    let nothing = socket.read(&mut record).map_err(|error| error.kind());
    assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    assert!(socket.is_dry());
    socket.look_again();
    assert_eq!(socket.read(&mut record).expect("the third packet"), 11);
}

#[test]
fn a_call_takes_no_more_than_it_is_allowed_to() {
    let (mut socket, theirs) = packets();
    send(&theirs, &[5; 100_000], SendFlags::DONTWAIT).expect("a packet");
    for size in [1, 1000, 100_000] {
        socket.allow(true);
        let mut buffer = vec![0; size];
        let error = loop {
            if let Err(error) = socket.read(&mut buffer) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(socket.was_curbed() && !socket.is_dry());
        assert!((64..=20 * 1024).contains(&socket.taken()), "{size}");
    }
    // Who sends takes from what is there, and receives no more.
    let (mut socket, theirs) = packets();
    send(&theirs, &[5; 100], SendFlags::DONTWAIT).expect("a packet");
    socket.allow(false);
    let nothing = socket.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    assert!(!socket.is_dry());
}

#[test]
fn an_end_is_no_attack_and_bytes_in_clear_may_be_one() {
    let deadline = Deadline::after(LIMIT);
    let settings = no_checks();
    let prepared = settings.prepare().expect("no files");
    let (mut stream, theirs) = unix::pair();
    drop(theirs);
    let ended = stream.start_tls(&prepared, deadline).err();
    assert_eq!(ended, Some(Error::Closed));
    let (mut stream, theirs) = unix::pair();
    theirs.send_all(b"x", deadline).expect("a byte in clear");
    drop(theirs);
    let attacked = stream.start_tls(&prepared, deadline).err();
    assert!(matches!(attacked, Some(Error::Tls(text)) if text.contains("attack")));
}
