//! A session before a server of OpenSSL's own in the same process, on a pair of sockets.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
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
use super::{Credentials, Session, Settings};
use crate::transport::{Deadline, Error, unix};

/// Long enough for anything that ends.
const LIMIT: Duration = Duration::from_secs(20);

type Served = SslStream<UnixStream>;

/// A session, and what it takes to wait for it.
struct Client {
    session: Session,
    fd: Arc<OwnedFd>,
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
        let server = thread::spawn(move || {
            let acceptor = acceptor(newest);
            let ssl = Ssl::new(acceptor.context()).expect("a connection");
            let mut stream = SslStream::new(ssl, theirs).expect("a stream");
            stream.accept().expect("a handshake");
            script(stream)
        });
        let fd = Arc::new(OwnedFd::from(ours));
        let session = Session::establish(fd.clone(), &no_checks(), |readable, writable| {
            ready(&fd, readable, writable);
            Ok(())
        })
        .expect("a session");
        (Self { session, fd }, server)
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
        hostname: None,
        verify: Some(false),
        priority: None,
        pin: None,
    }
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

/// Two ends between which what is sent at once arrives at once, or not at all.
fn packets() -> (Socket, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socketpair");
    (Socket::new(Arc::new(ours)), theirs)
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
    let (mut stream, theirs) = unix::pair();
    drop(theirs);
    let ended = stream.start_tls(&no_checks(), deadline).err();
    assert_eq!(ended, Some(Error::Closed));
    let (mut stream, theirs) = unix::pair();
    theirs.send_all(b"x", deadline).expect("a byte in clear");
    drop(theirs);
    let attacked = stream.start_tls(&no_checks(), deadline).err();
    assert!(matches!(attacked, Some(Error::Tls(text)) if text.contains("attack")));
}
