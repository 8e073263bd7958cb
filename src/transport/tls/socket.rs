// SPDX-License-Identifier: BSD-3-Clause
//! The socket as OpenSSL sees it: read ahead and written behind, so that a system call moves many
//! records, and with an allowance, so that a peer cannot keep one call into OpenSSL busy.
//!
//! OpenSSL loops inside a call for as long as it gets records that are not data. What ends that is
//! the allowance: when it is used up the socket says that nothing is there, and OpenSSL returns.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::transport::{Error, Pages};

/// Longest plaintext of one record, bytes.
pub const RECORD: usize = 16 * 1024;
/// What encryption adds to a record at most, bytes: header, nonce, tag and padding of any cipher
/// that is in use.
const OVERHEAD: usize = 256;
/// Read ahead, bytes: what one receive brings at most.
const INPUT: usize = 9 * (RECORD + OVERHEAD);
/// A receive of less than this, bytes, is taken for the end of what there is.
const LITTLE: usize = INPUT / 4;
/// Where gathering ends, bytes: what one send takes at most, as a rule.
const OUTPUT: usize = 9 * (RECORD + OVERHEAD);
/// Output that waits for a peer that does not listen, bytes: beyond that it is an error. Only
/// answers to what the peer sends can come to so much.
const MAX_OUTPUT: usize = 1 << 20;

/// What one call into OpenSSL may take in: one record of the largest size, or a few small ones.
/// A key update, the most costly thing that a peer can ask for in few bytes, takes two reads.
const MAX_TAKE: usize = 20 * 1024;
const MAX_READS: u32 = 64;

/// A socket that never blocks, whatever its mode.
#[derive(Debug)]
pub struct Socket {
    fd: Arc<OwnedFd>,
    /// Received and not yet taken by OpenSSL: `input[start..end]`.
    input: Pages,
    start: usize,
    end: usize,
    /// The last receive got all there was.
    dry: bool,
    allowance: Allowance,
    /// What OpenSSL has taken in this call, bytes.
    taken: usize,
    /// OpenSSL would have taken more, and was not allowed to.
    curbed: bool,
    /// Written by OpenSSL and not yet sent: `output[sent..filled]`.
    output: Pages,
    sent: usize,
    filled: usize,
    /// OpenSSL has written something in this call.
    written: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    bytes: usize,
    reads: u32,
    /// Whether more may be received for that.
    receive: bool,
}

impl Socket {
    /// Nothing received, nothing to be sent.
    pub fn new(fd: Arc<OwnedFd>) -> Result<Self, Error> {
        Ok(Self {
            fd,
            input: Pages::new(INPUT)?,
            start: 0,
            end: 0,
            dry: false,
            allowance: Allowance::default(),
            taken: 0,
            curbed: false,
            output: Pages::new(MAX_OUTPUT)?,
            sent: 0,
            filled: 0,
            written: false,
        })
    }

    /// Before every call into OpenSSL: what it may take in. Only a receiver may ask the socket for
    /// more; who sends must not, since whoever waits for it to become readable would not be told.
    pub fn allow(&mut self, receive: bool) {
        self.allowance = Allowance {
            bytes: MAX_TAKE,
            reads: MAX_READS,
            receive,
        };
        self.taken = 0;
        self.curbed = false;
        self.written = false;
    }

    /// Forgets that nothing was left in the socket: somebody waited, or wants to know again.
    pub fn look_again(&mut self) {
        self.dry = false;
    }

    /// Whether all that came was taken, and there was no more of it.
    pub fn is_dry(&self) -> bool {
        self.dry && self.start == self.end
    }

    /// Whether the last call would have taken more than it was allowed to.
    pub fn was_curbed(&self) -> bool {
        self.curbed
    }

    /// What the last call took, bytes.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Whether the last call wrote anything.
    pub fn has_written(&self) -> bool {
        self.written
    }

    /// Whether another record may be written before what there is is sent.
    pub fn has_room(&self) -> bool {
        self.filled - self.sent + RECORD + OVERHEAD <= OUTPUT
    }

    /// Sends what was written, as far as it fits. True if nothing is left.
    pub fn flush_output(&mut self) -> Result<bool, Errno> {
        while self.sent < self.filled {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.fd, &self.output[self.sent..self.filled], flags) {
                Ok(n) => {
                    self.sent += n;
                    // What did not fit will not fit now.
                    break;
                }
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        let done = self.sent == self.filled;
        if done {
            (self.sent, self.filled) = (0, 0);
        }
        Ok(done)
    }

    fn fill(&mut self) -> Result<(), Errno> {
        loop {
            match recv(&self.fd, &mut *self.input, RecvFlags::DONTWAIT) {
                Ok((got, _)) => {
                    (self.start, self.end) = (0, got);
                    // That little was all there was, so the next receive is saved. In the middle
                    // of more than that, more has probably come until this is used up.
                    self.dry = got > 0 && got < LITTLE;
                    return Ok(());
                }
                Err(Errno::INTR) => (),
                Err(errno) => {
                    self.dry = errno == Errno::AGAIN;
                    return Err(errno);
                }
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.allowance.bytes == 0 || self.allowance.reads == 0 {
            self.curbed = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.start == self.end {
            if self.dry || !self.allowance.receive {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.fill()?;
        }
        let n = buffer
            .len()
            .min(self.end - self.start)
            .min(self.allowance.bytes);
        buffer[..n].copy_from_slice(&self.input[self.start..][..n]);
        self.start += n;
        self.taken += n;
        self.allowance.bytes -= n;
        self.allowance.reads -= 1;
        Ok(n)
    }
}

/// Never has to be asked twice, so OpenSSL is never left with half a record to send. It does not
/// come back from that in one piece if keys change meanwhile (openssl#8677 and its sequels).
impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let full = self.filled + bytes.len() > MAX_OUTPUT;
        if self.sent > 0 && (full || self.sent >= self.filled / 2) {
            self.output.copy_within(self.sent..self.filled, 0);
            (self.sent, self.filled) = (0, self.filled - self.sent);
        }
        let Some(room) = self.output[self.filled..].get_mut(..bytes.len()) else {
            return Err(ErrorKind::OutOfMemory.into());
        };
        room.copy_from_slice(bytes);
        self.filled += bytes.len();
        self.written = true;
        Ok(bytes.len())
    }

    /// Left to [`Socket::flush_output`], once for all that a call wrote.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
