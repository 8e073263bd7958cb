// SPDX-License-Identifier: BSD-3-Clause
//! TLS below the server's connections: one thread carries bytes between a TLS stream and a plain pair of sockets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod, SslStream};
use rustix::event::{PollFd, PollFlags, poll};

/// How long a client may take for its side of the handshake.
const DEADLINE: Duration = Duration::from_secs(12);

/// Lets a client begin TLS, and returns the stream on which it is plain.
pub fn accept(stream: UnixStream, certificates: &Path) -> io::Result<UnixStream> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())
        .expect("OpenSSL has a server's side");
    // A test may be about to replace them.
    builder.set_certificate_chain_file(certificates.join("server-cert.pem"))?;
    builder.set_private_key_file(certificates.join("server-key.pem"), SslFiletype::PEM)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let secret = builder
        .build()
        .accept(stream)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error.to_string()))?;
    let (near, far) = UnixStream::pair()?;
    secret.get_ref().set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    thread::spawn(move || drop(carry(secret, far)));
    Ok(near)
}

/// What one direction has taken and not yet passed on.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// The source has ended.
    ended: bool,
}

impl Held {
    fn take(&mut self, source: &mut impl Read) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        while self.bytes.len() < 1 << 18 && !self.ended {
            match source.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn give(&mut self, target: &mut impl Write) -> io::Result<()> {
        let mut given = 0;
        while given < self.bytes.len() {
            // Never more than one record: a write that would block must be repeated as it was.
            let end = self.bytes.len().min(given + (16 << 10));
            match target.write(&self.bytes[given..end]) {
                Ok(count) => given += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.drain(..given);
        Ok(())
    }
}

fn carry(mut secret: SslStream<UnixStream>, mut plain: UnixStream) -> io::Result<()> {
    let (mut inward, mut outward) = (Held::default(), Held::default());
    loop {
        inward.take(&mut secret)?;
        inward.give(&mut plain)?;
        outward.take(&mut plain)?;
        outward.give(&mut secret)?;
        if inward.ended && inward.bytes.is_empty() {
            let _ = plain.shutdown(Shutdown::Write);
        }
        if outward.ended && outward.bytes.is_empty() {
            let _ = secret.shutdown();
            return Ok(());
        }
        let mut secret_events = PollFlags::empty();
        if !inward.ended && inward.bytes.len() < 1 << 18 {
            secret_events |= PollFlags::IN;
        }
        if !outward.bytes.is_empty() {
            secret_events |= PollFlags::OUT;
        }
        let mut plain_events = PollFlags::empty();
        if outward.bytes.len() < 1 << 18 {
            plain_events |= PollFlags::IN;
        }
        if !inward.bytes.is_empty() {
            plain_events |= PollFlags::OUT;
        }
        let mut both = [
            PollFd::from_borrowed_fd(secret.get_ref().as_fd(), secret_events),
            PollFd::from_borrowed_fd(plain.as_fd(), plain_events),
        ];
        poll(&mut both, None)?;
    }
}
