//! One TLS connection, used by several threads.
//!
//! OpenSSL allows one thread at a time in a connection, so a lock surrounds each call; none is
//! held while a thread waits for the socket, and no call deals with more than about one record.
//! The socket below is used without blocking, whatever its mode.

use std::io::{self, IoSlice, Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::hash::MessageDigest;
use openssl::ssl::{self, ErrorCode, Ssl, SslStream};
use openssl::x509::X509VerifyResult;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{Credentials, Prepared, Settings, reasons};
use crate::transport::{Error, describe_io};

/// Longest plaintext of one record, bytes.
const RECORD: usize = 16 * 1024;

/// An established connection.
#[derive(Debug)]
pub struct Session {
    inner: Mutex<Inner>,
    /// The last receive found nothing more, inside OpenSSL or in the socket.
    dry: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    stream: SslStream<Raw>,
    /// Where short pieces are joined to a record.
    record: Box<[u8]>,
}

impl Session {
    /// Shakes hands. `wait` waits until the socket is readable or writable, as told.
    pub fn establish(
        fd: Arc<OwnedFd>,
        prepared: &Prepared<'_>,
        wait: impl Fn(bool, bool) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let settings = prepared.settings();
        let mut ssl = prepared.ssl()?;
        name(&mut ssl, settings)?;
        let mut stream =
            SslStream::new(ssl, Raw(fd)).map_err(|error| Error::Tls(reasons(&error)))?;
        loop {
            match stream.connect() {
                Ok(()) => break,
                Err(error) if error.code() == ErrorCode::WANT_READ => wait(true, false)?,
                Err(error) if error.code() == ErrorCode::WANT_WRITE => wait(false, true)?,
                Err(error) => {
                    if let Some(objection) = prepared.objection() {
                        return Err(objection);
                    }
                    let verified = stream.ssl().verify_result();
                    return Err(refused(&error, verified, &settings.credentials));
                }
            }
        }
        prepared.confirm()?;
        check_peer(stream.ssl(), settings)?;
        warn_of_gaps(settings);
        log::debug!(
            "TLS: {} with {}",
            stream.ssl().version_str(),
            stream
                .ssl()
                .current_cipher()
                .map_or("?", |cipher| cipher.name())
        );
        Ok(Self {
            inner: Mutex::new(Inner {
                stream,
                record: vec![0; RECORD].into_boxed_slice(),
            }),
            dry: AtomicBool::new(false),
        })
    }

    /// Sends what fits at once; `None` if nothing does. What was not taken must be sent again, from
    /// the same byte on.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> Result<Option<usize>, Error> {
        let mut sent = 0;
        let mut pieces = Pieces { pieces, skip: 0 };
        while !pieces.is_empty() {
            match self.lock().send_record(&pieces) {
                Ok(n) => {
                    sent += n;
                    pieces.advance(n);
                }
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(failure(&error)),
            }
        }
        Ok((sent > 0).then_some(sent))
    }

    /// Receives what is there, at least one byte; `None` if nothing is.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let mut got = 0;
        while got < buffer.len() {
            // One record at a time, so that a sender gets in between.
            match self.lock().stream.ssl_read(&mut buffer[got..]) {
                Ok(n) => got += n,
                Err(error) if is_later(&error) => {
                    self.dry.store(true, Ordering::Relaxed);
                    return Ok((got > 0).then_some(got));
                }
                // What came before the end is worth having; the end will still be there.
                Err(_) if got > 0 => break,
                Err(error) => return Err(failure(&error)),
            }
        }
        self.dry.store(false, Ordering::Relaxed);
        Ok(Some(got))
    }

    /// Whether a receive may find something although nothing is left in the socket.
    pub fn may_hold_more(&self) -> bool {
        !self.dry.load(Ordering::Relaxed)
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        // Best effort: servers do not insist on it, and neither do we.
        let _ = self.lock().stream.shutdown();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Sends at most one record: the first piece as it is if it fills one, else several joined.
    fn send_record(&mut self, pieces: &Pieces<'_, '_>) -> Result<usize, ssl::Error> {
        let first = pieces.first();
        if first.len() >= RECORD {
            return self.stream.ssl_write(&first[..RECORD]);
        }
        let joined = pieces.copy(&mut self.record);
        self.stream.ssl_write(&self.record[..joined])
    }
}

/// Pieces of which the first bytes were sent.
struct Pieces<'a, 'b> {
    pieces: &'a [IoSlice<'b>],
    skip: usize,
}

impl Pieces<'_, '_> {
    fn is_empty(&self) -> bool {
        self.pieces.iter().map(|piece| piece.len()).sum::<usize>() == self.skip
    }

    fn first(&self) -> &[u8] {
        self.pieces.first().map_or(&[], |piece| &piece[self.skip..])
    }

    fn advance(&mut self, n: usize) {
        self.skip += n;
        while let Some((first, rest)) = self.pieces.split_first() {
            if self.skip < first.len() || rest.is_empty() {
                break;
            }
            self.skip -= first.len();
            self.pieces = rest;
        }
    }

    /// Copies as much as fits; says how much that is.
    fn copy(&self, record: &mut [u8]) -> usize {
        let mut used = 0;
        let mut skip = self.skip;
        for piece in self.pieces {
            let n = (piece.len() - skip).min(record.len() - used);
            record[used..][..n].copy_from_slice(&piece[skip..][..n]);
            used += n;
            skip = 0;
        }
        used
    }
}

/// Tells OpenSSL which name the certificate must bear, and the server which one we want.
fn name(ssl: &mut Ssl, settings: &Settings) -> Result<(), Error> {
    let Some(hostname) = &settings.hostname else {
        return Ok(());
    };
    let result = match hostname.parse::<IpAddr>() {
        Ok(address) => ssl.param_mut().set_ip(address),
        Err(_) => ssl
            .set_hostname(hostname)
            .and_then(|()| ssl.param_mut().set_host(hostname)),
    };
    result.map_err(|error| Error::Tls(format!("host name \"{hostname}\": {}", reasons(&error))))
}

/// What the chain of certificates does not say.
fn check_peer(ssl: &ssl::SslRef, settings: &Settings) -> Result<(), Error> {
    let certificate = ssl.peer_certificate();
    if matches!(settings.credentials, Credentials::Psk { .. }) && certificate.is_some() {
        return Err(Error::Tls(
            "the server did not use the pre-shared key".to_owned(),
        ));
    }
    let Some(pin) = &settings.pin else {
        return Ok(());
    };
    let key = certificate
        .and_then(|certificate| certificate.public_key().ok())
        .and_then(|key| key.public_key_to_der().ok())
        .and_then(|der| openssl::hash::hash(MessageDigest::sha256(), &der).ok());
    match key {
        Some(digest) if digest.as_ref() == pin => Ok(()),
        _ => Err(Error::Tls(
            "the server's public key is not the pinned one".to_owned(),
        )),
    }
}

/// Says what was not checked.
fn warn_of_gaps(settings: &Settings) {
    if matches!(settings.credentials, Credentials::Psk { .. }) || settings.pin.is_some() {
        return;
    }
    if settings.verify == Some(false) {
        log::warn!("TLS: the server's certificate was NOT checked, as tls-verify=false demands");
    } else if settings.hostname.is_none() {
        log::warn!(
            "TLS: the certificate's name was not checked, since none is known (tls-hostname=)"
        );
    }
}

fn is_later(error: &ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

/// A handshake that failed.
fn refused(error: &ssl::Error, verified: X509VerifyResult, credentials: &Credentials) -> Error {
    // The verdict is there also where it was not asked for; it counts if it is what failed.
    let verification = error
        .ssl_error()
        .is_some_and(|stack| reasons(stack).contains("certificate verify failed"));
    if verification && verified != X509VerifyResult::OK {
        return Error::Tls(format!(
            "the server's certificate is not accepted: {}",
            verified.error_string()
        ));
    }
    match (failure(error), credentials) {
        (Error::Closed, Credentials::Psk { username, .. }) => Error::Tls(format!(
            "the server closed the connection, as it may if it does not accept the key of \
             \"{username}\""
        )),
        (Error::Closed, Credentials::X509(_)) => {
            Error::Tls("the server closed the connection".to_owned())
        }
        (other, _) => other,
    }
}

/// An established connection, or a handshake, that failed for a reason of the connection's.
fn failure(error: &ssl::Error) -> Error {
    if error.code() == ErrorCode::ZERO_RETURN {
        return Error::Closed;
    }
    if let Some(io) = error.io_error() {
        return match io.raw_os_error() {
            Some(_) => Error::Tls(describe_io(io)),
            None => Error::Closed,
        };
    }
    let Some(stack) = error.ssl_error() else {
        return Error::Closed;
    };
    let reasons = reasons(stack);
    if reasons.contains("unexpected eof") {
        return Error::Closed;
    }
    // TLS 1.3 servers judge our certificate after the handshake; the verdict is an alert.
    let ours = ["certificate", "unknown ca", "bad certificate"];
    if reasons.contains("alert") && ours.iter().any(|word| reasons.contains(word)) {
        return Error::Tls(format!("the server refused our certificate: {reasons}"));
    }
    Error::Tls(reasons)
}

/// The socket, never blocking.
#[derive(Debug)]
struct Raw(Arc<OwnedFd>);

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, buffer, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(
            &self.0,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
