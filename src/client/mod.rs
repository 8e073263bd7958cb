//! A client of one NBD server: [`Client::open`], requests, [`Client::close`].
//!
//! It knows sockets and threads and nothing of nbdkit. Requests may come from any number of
//! threads at once; each returns when its answer is complete. What the server cannot take is not
//! sent: requests above its limits are cut, flags it did not offer are refused, zeroes it cannot
//! write are written as data.

mod connection;
pub mod error;
// Public for benches/micro alone.
pub mod inflight;
#[allow(unsafe_code)]
mod loan;
pub mod manners;
mod open;
mod outbox;
mod receiver;
mod split;
mod sync;

use std::time::Duration;

use self::connection::Connection;
use self::error::{Error, Server};
use self::loan::Buffer;
use self::manners::Manners;
use crate::proto::WireError;
use crate::proto::chunks::Descriptor;
use crate::proto::consts::{Command, CommandFlags, TransmissionFlags};
use crate::proto::errno::NbdErrno;
use crate::proto::export::Export;
use crate::proto::handshake::{Listed, TlsPolicy};
use crate::proto::name::ExportName;
use crate::proto::request::Request;
use crate::transport::Target;
use crate::transport::tls::Settings;

/// How to open a connection.
#[derive(Debug)]
pub struct Options {
    /// Where to.
    pub target: Target,
    /// Whether to use TLS.
    pub tls_policy: TlsPolicy,
    /// How to use TLS, where it is.
    pub tls: Settings,
    /// Longest time to wait for the connection; `None` for ever.
    pub connect_timeout: Option<Duration>,
    /// Longest time for the whole handshake; `None` for ever.
    pub handshake_timeout: Option<Duration>,
    /// Longest time from a request to its complete answer; `None` for ever.
    pub request_timeout: Option<Duration>,
    /// What was learnt about the server on earlier connections.
    pub manners: Manners,
}

/// Asks a server which exports it has.
pub fn list(options: &Options) -> Result<Vec<Listed>, Error> {
    open::list(&server(options), options)
}

/// Asks a server for the canonical name of its default export.
pub fn default_export(options: &Options) -> Result<Option<ExportName>, Error> {
    Ok(open::describe_default(&server(options), options)?.canonical_name)
}

/// The server's name for messages.
fn server(options: &Options) -> Server {
    options.target.to_string().into()
}

/// An open export.
#[derive(Debug)]
pub struct Client {
    server: Server,
    connection: Connection,
    export: Export,
}

/// How [`Client::zero`] may zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Zeroing {
    /// The range may become a hole.
    pub may_trim: bool,
    /// The zeroes must be permanent before the answer.
    pub fua: bool,
    /// Fail with ENOTSUP rather than take as long as a write.
    pub fast: bool,
}

/// Most bytes that the extents of one answer cover. nbdkit joins neighbours that are alike, and its
/// versions before 1.44 abort when one of 4 GiB comes of that (CVE-2025-47711).
const MAX_DESCRIBED: u32 = u32::MAX;

impl Client {
    /// Connects and enters transmission with an export.
    pub fn open(options: &Options, export: &ExportName) -> Result<Self, Error> {
        let server = server(options);
        let (stream, export) = open::enter(&server, options, export)?;
        let connection = Connection::new(server.clone(), stream, &export, options.request_timeout)
            .map_err(|error| Error::Open {
                server: server.clone(),
                cause: error::OpenError::System(error).into(),
            })?;
        Ok(Self {
            server,
            connection,
            export,
        })
    }

    /// Disconnects; waits for the server, but not long. No request may be in flight.
    pub fn close(&self) {
        self.connection.close();
    }

    /// Whether the connection is gone, or about to go: no new request will succeed on it.
    pub fn is_over(&self) -> bool {
        self.connection.is_over()
    }

    /// What the server offers.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Fills `buffer` with the bytes at `offset`. On failure its contents mean nothing.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.check_range(Command::READ, offset, buffer.len())?;
        let mut at = offset;
        for piece in buffer.chunks_mut(self.piece()) {
            let request = Request::new(Command::READ, at, piece.len() as u32);
            at += piece.len() as u64;
            self.connection.submit(request, Buffer::Target(piece))?;
        }
        Ok(())
    }

    /// Writes `payload` at `offset`; with `fua` it is permanent when this returns.
    pub fn write(&self, payload: &[u8], offset: u64, fua: bool) -> Result<(), Error> {
        self.check_range(Command::WRITE, offset, payload.len())?;
        let flags = self.fua(fua)?;
        let mut at = offset;
        for piece in payload.chunks(self.piece()) {
            let request = Request::new(Command::WRITE, at, piece.len() as u32).with(flags);
            at += piece.len() as u64;
            self.connection.submit(request, Buffer::Source(piece))?;
        }
        Ok(())
    }

    /// Makes every answered write permanent.
    pub fn flush(&self) -> Result<(), Error> {
        self.require(TransmissionFlags::SEND_FLUSH, "NBD_CMD_FLUSH")?;
        self.plain(Request::new(Command::FLUSH, 0, 0))
    }

    /// Tells the server that a range is not needed any more.
    pub fn trim(&self, length: u32, offset: u64, fua: bool) -> Result<(), Error> {
        self.require(TransmissionFlags::SEND_TRIM, "NBD_CMD_TRIM")?;
        self.check_range(Command::TRIM, offset, length as usize)?;
        let flags = self.fua(fua)?;
        self.plain(Request::new(Command::TRIM, offset, length).with(flags))
    }

    /// Tells the server that a range will be needed soon.
    pub fn cache(&self, length: u32, offset: u64) -> Result<(), Error> {
        self.require(TransmissionFlags::SEND_CACHE, "NBD_CMD_CACHE")?;
        self.check_range(Command::CACHE, offset, length as usize)?;
        self.plain(Request::new(Command::CACHE, offset, length))
    }

    /// Makes a range zero. Where the server cannot, zeroes are written as data, unless `fast`
    /// forbids it: ENOTSUP is the answer then, and only then.
    pub fn zero(&self, length: u32, offset: u64, how: Zeroing) -> Result<(), Error> {
        self.check_range(Command::WRITE_ZEROES, offset, length as usize)?;
        let mut flags = self.fua(how.fua)?;
        flags.set(CommandFlags::NO_HOLE, !how.may_trim);
        if how.fast {
            if !self.export.can(TransmissionFlags::SEND_FAST_ZERO) {
                return Err(self.unsupported("the server has no fast zeroes", libc::ENOTSUP));
            }
            flags |= CommandFlags::FAST_ZERO;
        }
        if !self.export.can(TransmissionFlags::SEND_WRITE_ZEROES) {
            return self.write_zeroes_as_data(length, offset, how.fua);
        }
        let request = Request::new(Command::WRITE_ZEROES, offset, length).with(flags);
        match self.plain(request) {
            Err(error) if !how.fast && is_unsupported(&error) => {
                log::debug!("{error}; writing zeroes as data");
                self.write_zeroes_as_data(length, offset, how.fua)
            }
            other => other,
        }
    }

    /// The allocation of at least the first byte of a range, in order. The answer may stop early, and
    /// the last extent may pass the range's end, as the server told it; all are less than 4 GiB. With
    /// `one` it is a single extent.
    pub fn block_status(
        &self,
        length: u32,
        offset: u64,
        one: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        if self.export.base_allocation.is_none() {
            return Err(self.unsupported("no base:allocation context was agreed", libc::EINVAL));
        }
        // The answer may stop early, so the whole blocks of the longest query there is, 2^32-1 bytes,
        // will do.
        let odd = length % self.export.minimum_block();
        let length = if odd < length { length - odd } else { length };
        self.check_range(Command::BLOCK_STATUS, offset, length as usize)?;
        let mut flags = CommandFlags::empty();
        flags.set(CommandFlags::REQ_ONE, one);
        let request = Request::new(Command::BLOCK_STATUS, offset, length).with(flags);
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut extents = self.connection.submit(request, Buffer::None)?;
        split::cut(&mut extents, MAX_DESCRIBED);
        Ok(extents)
    }

    /// Sends a request without payload, unless there is nothing to do.
    fn plain(&self, request: Request) -> Result<(), Error> {
        if request.length == 0 && request.command != Command::FLUSH {
            return Ok(());
        }
        self.connection.submit(request, Buffer::None).map(drop)
    }

    fn write_zeroes_as_data(&self, length: u32, offset: u64, fua: bool) -> Result<(), Error> {
        static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
        for (at, n) in split::pieces(offset, length, ZEROES.len().min(self.piece())) {
            self.write(&ZEROES[..n], at, fua)?;
        }
        Ok(())
    }

    /// Longest payload of one request, bytes.
    fn piece(&self) -> usize {
        // At least one minimum block by the rules for block sizes.
        self.export.maximum_payload() as usize
    }

    /// Refuses what no server could do: a range past the end, or between blocks. A zero length is
    /// fine between the blocks, as nothing is sent for it; and so is what touches a last block that
    /// is not whole.
    fn check_range(&self, command: Command, offset: u64, length: usize) -> Result<(), Error> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.export.size) {
            let errno = match command {
                Command::WRITE | Command::WRITE_ZEROES => libc::ENOSPC,
                _ => libc::EINVAL,
            };
            return Err(self.unsupported(
                &format!(
                    "{command} of {length} bytes at offset {offset} is past the end ({})",
                    self.export.size
                ),
                errno,
            ));
        }
        if !self.export.is_aligned(offset, length as u64) {
            return Err(self.unsupported(
                &format!(
                    "{command} of {length} bytes at offset {offset} is not aligned to the server's \
                     minimum block size {}",
                    self.export.minimum_block()
                ),
                libc::EINVAL,
            ));
        }
        Ok(())
    }

    fn fua(&self, wanted: bool) -> Result<CommandFlags, Error> {
        if !wanted {
            return Ok(CommandFlags::empty());
        }
        self.require(TransmissionFlags::SEND_FUA, "NBD_CMD_FLAG_FUA")?;
        Ok(CommandFlags::FUA)
    }

    fn require(&self, flag: TransmissionFlags, name: &str) -> Result<(), Error> {
        if self.export.can(flag) {
            return Ok(());
        }
        Err(self.unsupported(&format!("the server has no {name}"), libc::EINVAL))
    }

    fn unsupported(&self, what: &str, errno: i32) -> Error {
        Error::Unsupported {
            server: self.server.clone(),
            what: what.to_owned(),
            errno,
        }
    }
}

fn is_unsupported(error: &Error) -> bool {
    matches!(
        error,
        Error::Failed {
            error: WireError::Server {
                errno: NbdErrno::ENOTSUP,
                ..
            },
            ..
        }
    )
}
