// SPDX-License-Identifier: BSD-3-Clause
//! One TLS connection, used by several threads.
//!
//! OpenSSL allows one thread at a time in a connection, so a lock surrounds each call; none is
//! held while a thread waits for the socket, and no call deals with more than a few records. The
//! socket below is used without blocking, whatever its mode.

use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::pkey::Id;
use openssl::ssl::{self, ErrorCode, Ssl, SslCipherRef, SslRef, SslStream, SslVersion};
use openssl::x509::verify::X509CheckFlags;

use super::pieces::Pieces;
use super::rekey;
use super::socket::{RECORD, Socket};
use super::verdict::{check_peer, failure, refused, shown, warn_of_gaps};
use super::{Facts, Prepared, Settings, reasons};
use crate::stats;
use crate::transport::Error;

/// System calls that one send makes at most, for the same reason as follows.
const STEPS: usize = 16;
/// Calls into OpenSSL that one receive makes at most, so that who receives comes to look at its
/// deadline also while records keep coming.
const CALLS: usize = 64;
/// What a server may send without a byte of data in it, bytes: a handshake, or tickets and new keys
/// between two pieces of data. The longest handshake that OpenSSL takes is a quarter of it; and a
/// server with new keys every hour for a connection of which nobody reads has it after two years.
const MAX_IDLE: usize = 512 * 1024;
/// Records under one key of TLS 1.3, after which there is a new one. AES-GCM is good for 2^24.5 full
/// ones (RFC 8446, 5.5), and OpenSSL leaves it to its users to count.
const MAX_RECORDS: u64 = 1 << 24;

/// An established connection.
#[derive(Debug)]
pub struct Session {
    inner: Mutex<Inner>,
    /// The last receive found nothing more, inside OpenSSL or in the socket.
    dry: AtomicBool,
    /// OpenSSL does not send before it has got the rest of a message.
    stuck: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    stream: SslStream<Socket>,
    /// Where short pieces are joined to a record.
    record: Box<[u8]>,
    /// Bytes of the caller's that were encrypted, but not reported as sent, because not all of that
    /// is with the system yet. They stand at the beginning of what is sent next.
    held: usize,
    /// Bytes that the server has sent since there was data among them.
    idle: usize,
    /// Why nothing more can be received. OpenSSL says so once.
    failed: Option<Error>,
    keys: Keys,
}

/// How the keys were agreed, as far as the library tells.
pub(super) fn key_exchange(ssl: &SslRef) -> Option<String> {
    let key = ssl.peer_tmp_key().ok()?;
    Some(match key.id() {
        Id::X25519 => "X25519".to_owned(),
        Id::X448 => "X448".to_owned(),
        Id::DH => format!("DH {} bits", key.bits()),
        Id::EC => {
            let nid = key.ec_key().ok()?.group().curve_name()?;
            nid.short_name().ok()?.to_owned()
        }
        _ => return None,
    })
}

/// How much the keys in use have seen.
#[derive(Debug)]
struct Keys {
    /// The most, in records; `None` where keys are never renewed.
    limit: Option<u64>,
    sent: u64,
    received: u64,
}

impl Session {
    /// Shakes hands. `wait` waits until the socket is readable or writable, as told; where neither
    /// is asked for it only finds out whether time is up.
    pub fn establish(
        fd: Arc<OwnedFd>,
        prepared: &Prepared<'_>,
        wait: impl Fn(bool, bool) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let settings = prepared.settings();
        let mut ssl = prepared.ssl()?;
        name(&mut ssl, settings)?;
        let stream =
            SslStream::new(ssl, Socket::new(fd)?).map_err(|error| Error::Tls(reasons(&error)))?;
        let mut inner = Inner {
            stream,
            record: vec![0; RECORD].into_boxed_slice(),
            held: 0,
            idle: 0,
            failed: None,
            keys: Keys {
                limit: None,
                sent: 0,
                received: 0,
            },
        };
        inner.shake_hands(prepared, wait)?;
        prepared.confirm()?;
        check_peer(inner.stream.ssl(), settings)?;
        warn_of_gaps(settings);
        inner.keys.limit =
            (inner.stream.ssl().version2() == Some(SslVersion::TLS1_3)).then_some(MAX_RECORDS);
        log::debug!(
            "TLS: {} with {}",
            inner.stream.ssl().version_str(),
            inner
                .stream
                .ssl()
                .current_cipher()
                .map_or("?", |cipher| cipher.name())
        );
        Ok(Self {
            inner: Mutex::new(inner),
            dry: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        })
    }

    /// What was agreed.
    pub fn terms(&self) -> stats::Tls {
        let inner = self.lock();
        let ssl = inner.stream.ssl();
        stats::Tls {
            version: ssl.version_str().to_owned(),
            cipher: ssl
                .current_cipher()
                .map_or("", SslCipherRef::name)
                .to_owned(),
            key_exchange: key_exchange(ssl).unwrap_or_default(),
        }
    }

    /// Sends what fits at once; `None` if nothing does. What was not taken must be sent again, from
    /// the same byte on: some of it may be encrypted already, and on its way.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> Result<Option<usize>, Error> {
        let mut sent = 0;
        let mut pieces = Pieces::new(pieces);
        for _ in 0..STEPS {
            // As many records at a time as one system call sends, so that a receiver gets in between.
            let step = self.lock().send_some(&mut pieces)?;
            sent += step.sent;
            self.stuck.store(step.stuck, Ordering::Relaxed);
            if pieces.is_empty() || step.stuck || !step.flushed {
                break;
            }
        }
        Ok((sent > 0).then_some(sent))
    }

    /// Receives what is there, at least one byte; `None` if nothing is, or only what is no data.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let mut got = 0;
        let mut dry = false;
        for call in 0..CALLS {
            // One record at a time, so that a sender gets in between.
            let mut inner = self.lock();
            if call == 0 {
                inner.stream.get_mut().look_again();
            }
            let n = match inner.receive(&mut buffer[got..]) {
                Ok(n) => n,
                // What came before the end is worth having; the next receive tells of the end.
                Err(_) if got > 0 => break,
                Err(error) => return Err(error),
            };
            got += n;
            dry = inner.is_dry();
            if n == 0 || dry || got == buffer.len() {
                break;
            }
        }
        self.dry.store(dry, Ordering::Relaxed);
        Ok((got > 0).then_some(got))
    }

    /// Whether a receive may find something although nothing is left in the socket.
    pub fn may_hold_more(&self) -> bool {
        !self.dry.load(Ordering::Relaxed)
    }

    /// Whether room in the socket is not enough for a send, as the rest of a message must be
    /// received first. The receiver does that, and tells nobody.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// How the connection is protected.
    pub fn facts(&self) -> Facts {
        Facts::of(self.lock().stream.ssl())
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        let mut inner = self.lock();
        inner.stream.get_mut().allow(false);
        // Best effort: servers do not insist on it, and neither do we.
        let _ = inner.stream.shutdown();
        let _ = inner.stream.get_mut().flush_output();
    }

    /// Lowers the limit for the records under one key.
    #[cfg(test)]
    pub fn renew_keys_after(&self, records: u64) {
        if let Some(limit) = &mut self.lock().keys.limit {
            *limit = records;
        }
    }

    /// How many records came under the server's key.
    #[cfg(test)]
    pub fn records_received(&self) -> u64 {
        self.lock().keys.received
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of one step of sending.
struct Step {
    /// Bytes that are with the system now.
    sent: usize,
    /// Nothing that was encrypted is left here.
    flushed: bool,
    /// OpenSSL does not send before it has got the rest of a message.
    stuck: bool,
}

impl Inner {
    fn shake_hands(
        &mut self,
        prepared: &Prepared<'_>,
        wait: impl Fn(bool, bool) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut unsent = None;
        loop {
            self.stream.get_mut().allow(true);
            let result = self.stream.connect();
            let all_sent = self.stream.get_mut().flush_output();
            match result {
                Err(error) if is_later(&error) => (),
                Err(error) => {
                    let refused = || refused(&error, self.stream.ssl(), prepared.settings());
                    return Err(prepared.objection().unwrap_or_else(refused));
                }
                Ok(()) if all_sent == Ok(true) => break,
                Ok(()) => {
                    all_sent.map_err(Error::io("send"))?;
                    wait(false, true)?;
                    continue;
                }
            }
            // Where sending failed, the reason may be there to be received.
            if let Some(errno) = unsent {
                return Err(Error::io("send")(errno));
            }
            unsent = all_sent.err();
            self.count_idle()?;
            let socket = self.stream.get_mut();
            let more = socket.was_curbed() || unsent.is_some();
            wait(!more, !more && all_sent == Ok(false))?;
            socket.look_again();
        }
        self.idle = 0;
        Ok(())
    }

    /// Sends what is left of earlier steps, then encrypts more and sends that.
    fn send_some(&mut self, pieces: &mut Pieces<'_, '_>) -> Result<Step, Error> {
        let mut step = Step {
            sent: 0,
            flushed: false,
            stuck: false,
        };
        self.flush(pieces, &mut step)?;
        if !step.flushed || pieces.is_empty() {
            return Ok(step);
        }
        // A look ahead: the caller learns of what was encrypted when it was sent.
        let mut ahead = *pieces;
        while !ahead.is_empty() && self.stream.get_ref().has_room() {
            match self.encrypt_record(&ahead) {
                Ok(n) => {
                    ahead.advance(n);
                    self.held += n;
                }
                Err(error) if is_later(&error) => {
                    step.stuck = true;
                    break;
                }
                // What made it so is what the user should know.
                Err(error) => return Err(self.failed.clone().unwrap_or_else(|| failure(&error))),
            }
        }
        self.flush(pieces, &mut step)?;
        Ok(step)
    }

    /// Sends what was encrypted. If nothing is left, the bytes that it came from are sent.
    fn flush(&mut self, pieces: &mut Pieces<'_, '_>, step: &mut Step) -> Result<(), Error> {
        let flushed = self.stream.get_mut().flush_output();
        step.flushed = flushed.map_err(Error::io("send"))?;
        if step.flushed {
            // Whoever does not go on where it stopped would send other bytes than it believes.
            if self.held > pieces.len() {
                return Err(Error::Tls("a record was given up half sent".to_owned()));
            }
            pieces.advance(self.held);
            step.sent += std::mem::take(&mut self.held);
        }
        Ok(())
    }

    /// Encrypts at most one record: the first piece as it is if it fills one, else several joined.
    fn encrypt_record(&mut self, pieces: &Pieces<'_, '_>) -> Result<usize, ssl::Error> {
        self.stream.get_mut().allow(false);
        self.renew_keys();
        let first = pieces.first();
        let result = if first.len() >= RECORD {
            self.stream.ssl_write(&first[..RECORD])
        } else {
            let joined = pieces.copy(&mut self.record);
            self.stream.ssl_write(&self.record[..joined])
        };
        self.keys.sent += 1;
        result
    }

    /// Before a record is encrypted: sees to it that no key of either side lasts too long. Ours goes
    /// out before the record, and with it, if need be, the wish that the server renews its own.
    fn renew_keys(&mut self) {
        let Some(limit) = self.keys.limit else {
            return;
        };
        let theirs = self.keys.received >= limit;
        if (theirs || self.keys.sent >= limit) && rekey::renew(&mut self.stream, theirs) {
            log::debug!("TLS: new keys after {limit} records");
            self.keys.sent = 0;
            if theirs {
                self.keys.received = 0;
            }
        }
    }

    /// Receives from one record, or nothing. After an error there is nothing but that.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.receive_record(buffer);
        self.failed = result.as_ref().err().cloned();
        result
    }

    fn receive_record(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        self.stream.get_mut().allow(true);
        let result = self.stream.ssl_read(buffer);
        if self.stream.get_ref().has_written() {
            // OpenSSL had something to say. What does not fit goes with what is sent next; a failure
            // is found out by the next receive.
            let _ = self.stream.get_mut().flush_output();
        }
        match result {
            Ok(n) => {
                self.idle = 0;
                self.keys.received += 1;
                Ok(n)
            }
            Err(error) if is_later(&error) => self.count_idle().map(|()| 0),
            Err(error) => Err(failure(&error)),
        }
    }

    /// Counts what a call took in that was no data.
    fn count_idle(&mut self) -> Result<(), Error> {
        self.idle += self.stream.get_ref().taken();
        match self.idle > MAX_IDLE {
            true => Err(Error::Tls(
                "the server sends messages of TLS without end, and no data".to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// Whether nothing more is there, inside OpenSSL or in the socket.
    fn is_dry(&self) -> bool {
        let socket = self.stream.get_ref();
        socket.is_dry() && !socket.was_curbed() && self.stream.ssl().pending() == 0
    }
}

/// Tells OpenSSL which name the certificate must bear, and the server which one we want.
fn name(ssl: &mut Ssl, settings: &Settings) -> Result<(), Error> {
    let Some(hostname) = &settings.hostname else {
        return Ok(());
    };
    let result = match hostname.parse::<IpAddr>() {
        Ok(address) => ssl.param_mut().set_ip(address),
        Err(_) => {
            // An asterisk stands for a whole label: "x*" is not taken for all that begins like this.
            ssl.param_mut()
                .set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
            ssl.set_hostname(hostname)
                .and_then(|()| ssl.param_mut().set_host(hostname))
        }
    };
    result.map_err(|error| {
        Error::Tls(format!(
            "\"{}\" can be no host name: {} (tls-hostname=)",
            shown(hostname),
            reasons(&error)
        ))
    })
}

fn is_later(error: &ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}
