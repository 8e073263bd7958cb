// SPDX-License-Identifier: BSD-3-Clause
//! A client of one NBD server: [`Client::open`], requests, [`Client::close`].
//!
//! It knows sockets and threads and nothing of nbdkit. Requests may come from any number of
//! threads at once; each returns when its answer is complete. What the server cannot take is not
//! sent: requests above its limits are cut, flags it did not offer are refused, zeroes it cannot
//! write are written as data.
//!
//! A [`Client`] belongs to one client of nbdkit's and is one operation after the other: its
//! deadline, its pieces. [`Links`] is its way to the server, alone or with others; it leads to a
//! [`volume::Volume`], the export as nbdkit was told of it. There are two kinds of ways, and `opener`
//! makes the connections of both:
//!
//! - `plain`, without `reconnect=`: one connection, with which it lives and ends. It takes no lock. A `pool`
//!   is several of them.
//! - `lasting`: it outlives its connections. Requests wait in their own threads while the server is
//!   lost, and are sent again by them; `comeback` is how it comes back, and `replay` writes the journal
//!   again. What outlives the connections of an export is in its volume: [`resume`] is the session's
//!   lock, and the one place that says send, hold or fail; what it decides by is [`crate::session`].
//!
//! `fleet` says which of several servers they go to.
//!
//! What leads to one is a [`negotiation`], which can be asked more than once (`open` says what and how).
//! Between a client's questions what it has at hand lies on its [`desk`], and after it has left its way
//! may be kept in a [`lot`] for the next one.
//!
//! A `connection` is a live one with its requests in flight (`inflight`, `flight`, `outbox`, `receiver`,
//! `loan`, `split`). [`upkeep`] is time, the one thread that is always there; [`helpers`] are threads for
//! what waits for a server, such as coming back. `extents` asks for extents, and [`maps`] is what is kept
//! of the answers. `align` is for clients that know nothing of the server's blocks.

mod align;
mod comeback;
mod connection;
pub mod desk;
pub mod error;
mod extents;
pub mod fleet;
mod flight;
pub mod helm;
pub mod helpers;
// Public for benches/micro alone.
pub mod inflight;
mod lasting;
mod length;
pub mod links;
#[allow(unsafe_code)]
mod loan;
pub mod lot;
pub mod manners;
pub mod maps;
pub mod negotiation;
mod open;
mod opener;
mod outbox;
mod plain;
mod pool;
pub mod probe;
mod receiver;
mod replay;
pub mod report;
pub mod resume;
mod split;
mod sync;
pub mod times;
pub mod turnstile;
pub mod upkeep;
mod visit;
pub mod volume;
pub mod zeroes;

use std::sync::Arc;

pub use self::align::Fences;
use self::align::Watch;
use self::error::{Error, Server};
use self::fleet::Fleet;
use self::length::Length;
use self::links::Links;
use self::loan::Buffer;
use self::manners::Manners;
use self::maps::{Map, Maps};
use self::negotiation::AtHand;
use self::opener::Opener;
pub use self::opener::{Entered, Start, connect, enter_default};
use self::resume::Terms;
use self::times::Times;
use self::turnstile::Turnstile;
use self::visit::Attendance;
use self::zeroes::Detect;
pub use self::zeroes::Zeroing;
use crate::proto::WireError;
use crate::proto::consts::{Command, CommandFlags, TransmissionFlags};
use crate::proto::context::Wish;
use crate::proto::errno::NbdErrno;
use crate::proto::export::{BlockSizes, Export};
use crate::proto::handshake::{Listed, TlsPolicy};
use crate::proto::name::ExportName;
use crate::proto::request::Request;
use crate::stats::{Event, Stats};
use crate::transport::tls::Settings;
use crate::transport::{Deadline, Target, Wanted};

/// How to open a connection.
#[derive(Debug)]
pub struct Options {
    /// Where to.
    pub target: Target,
    /// Whether to use TLS.
    pub tls_policy: TlsPolicy,
    /// How to use TLS, where it is.
    pub tls: Settings,
    /// How long to wait for it, whatever for.
    pub times: Arc<Times>,
    /// Whether and how to come back to a server that was lost.
    pub reconnect: Option<Arc<Terms>>,
    /// Where operations pass; `None` where nobody can hold them.
    pub turnstile: Option<Arc<Turnstile>>,
    /// Whether the client that a thread serves is still there, and nbdkit goes on. Asked on that
    /// thread, and only where it has waited for a second. `None` where nobody can be asked.
    pub wanted: Option<Wanted>,
    /// How many connections to have for each client, or for all who share them.
    pub connections: usize,
    /// Other servers of the same export.
    pub fleet: Option<Fleet>,
    /// What was learnt about the server on earlier connections.
    pub manners: Arc<Manners>,
    /// What becomes of writes that are all zeroes.
    pub detect_zeroes: Detect,
    /// What requests that do not keep to the server's blocks need, if they are carried out; they are
    /// refused otherwise.
    pub fences: Option<Arc<Fences>>,
    /// Where extents come from.
    pub wish: Wish,
    /// What is kept of them.
    pub maps: Arc<Maps>,
    /// Whom to tell what is done, where somebody wants to know.
    pub stats: Option<Arc<Stats>>,
}

impl Options {
    /// Something has happened.
    pub(crate) fn note(&self, event: Event) {
        self.note_all(event, 1);
    }

    /// Something has happened so often.
    pub(crate) fn note_all(&self, event: Event, times: u64) {
        if let Some(stats) = &self.stats {
            stats.add(event, times);
        }
    }

    /// All places where servers are.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        let others = self.fleet.iter().flat_map(Fleet::others);
        let others = others.map(|another| &another.options.target);
        std::iter::once(&self.target).chain(others)
    }
}

/// Asks a server which exports it has, over the negotiation at hand or a new one, which is at hand
/// afterwards.
pub fn list(options: &Options, at_hand: &mut AtHand<'_>) -> Result<Vec<Listed>, Error> {
    open::list(&server(options), options, at_hand)
}

/// Asks a server which metadata contexts it has for an export.
pub fn contexts(options: &Options, export: &ExportName) -> Result<Vec<Vec<u8>>, Error> {
    let mut at_hand = AtHand::default();
    let contexts = open::contexts(&server(options), options, export, &mut at_hand);
    at_hand.leave();
    contexts
}

/// Asks a server for the canonical name of its default export, without opening it, over the negotiation
/// at hand or a new one, which is at hand afterwards.
pub fn default_export(
    options: &Options,
    at_hand: &mut AtHand<'_>,
) -> Result<Option<ExportName>, Error> {
    Ok(open::describe_default(&server(options), options, at_hand)?.canonical_name)
}

/// The server's name for messages, or the names of all of them.
pub fn server(options: &Options) -> Server {
    let first = options.target.to_string();
    match &options.fleet {
        Some(fleet) => fleet.names(&first),
        None => first.into(),
    }
}

/// An open export, for one client.
#[derive(Debug)]
pub struct Client {
    links: Arc<Links>,
    times: Arc<Times>,
    turnstile: Option<Arc<Turnstile>>,
    attendance: Attendance,
    wanted: Option<Wanted>,
    detect_zeroes: Detect,
    /// What [`Links::attend`] said when it came.
    losses: u64,
    /// What is kept of its extents, if anything is.
    map: Option<Map>,
    /// Whom to tell of changes, and who may be in their way.
    watch: Option<Watch>,
    /// The bits of an offset or a length that is no whole number of blocks, if it can be served all the
    /// same; none of them if it cannot, or if there is nothing to do.
    odd: u64,
    /// Who knows of ranges that need not be read.
    zeroes: Option<Arc<Maps>>,
    stats: Option<Arc<Stats>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.links.depart(self.losses);
    }
}

impl Client {
    /// A client that goes by these links. Nothing is written by it if it is `readonly`.
    pub fn new(links: Arc<Links>, options: &Options, readonly: bool) -> Self {
        let maps = &options.maps;
        let export = links.volume().export();
        let readonly = readonly || export.can(TransmissionFlags::READ_ONLY);
        let map = (readonly || maps.has_cache()) && export.context.is_some();
        let name = export.context_name();
        let true_map = name.is_some_and(|name| name.meaning().is_of_contents());
        let zeroes = readonly && maps.has_cache() && true_map;
        let odd = match options.fences {
            Some(_) => u64::from(export.minimum_block()) - 1,
            None => 0,
        };
        Self {
            losses: links.attend(),
            map: map.then(|| Map::new(maps.clone(), links.volume().number())),
            watch: (!readonly).then(|| Watch::new(options)).flatten(),
            odd,
            zeroes: zeroes.then(|| maps.clone()),
            stats: options.stats.clone(),
            links,
            times: options.times.clone(),
            turnstile: options.turnstile.clone(),
            attendance: Attendance::default(),
            wanted: options.wanted,
            detect_zeroes: options.detect_zeroes,
        }
    }

    /// Opens an export for one client alone, which nobody else looks after.
    pub fn open(options: &Arc<Options>, export: &ExportName) -> Result<Self, Error> {
        let (volumes, helpers) = Default::default();
        let start = &mut Start::default();
        let links = connect(options, &volumes, &helpers, export, false, false, start);
        start.at_hand.leave();
        Ok(Self::new(links?, options, false))
    }

    /// Disconnects, when the links are nobody else's. No request may be in flight. Takes no longer
    /// than closing may take.
    pub fn close(&self) {
        self.links
            .close(Deadline::after_maybe(self.times.close.get()));
    }

    /// Its way to the server.
    pub fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// What the server offers.
    pub fn export(&self) -> &Export {
        self.links.volume().export()
    }

    /// The block size constraints for requests to this client, where the server has some.
    pub fn block_sizes(&self) -> Option<BlockSizes> {
        let minimum = |sizes: BlockSizes| if self.odd == 0 { sizes.minimum } else { 1 };
        self.export().block_sizes.map(|sizes| BlockSizes {
            minimum: minimum(sizes),
            ..sizes
        })
    }

    /// Fills `buffer` with the bytes at `offset`. On failure its contents mean nothing.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        if self.is_odd(offset, buffer.len() as u64) {
            return self.read_odd(buffer, offset);
        }
        let deadline = self.begin()?;
        self.check_range(Command::READ, offset, buffer.len() as u64)?;
        if let Some(maps) = &self.zeroes {
            if self.reads_zero(maps, offset, buffer.len()) {
                buffer.fill(0);
                self.note(Event::ReadFromMemory);
                return Ok(());
            }
        }
        // Nearly always one request does, and there is nothing to be looked after between pieces.
        match buffer.len() <= self.piece() {
            true => self.read_piece(buffer, offset, &deadline),
            false => self.read_pieces(buffer, offset, &deadline),
        }
    }

    #[inline(always)]
    fn read_piece(&self, buffer: &mut [u8], at: u64, deadline: &Deadline) -> Result<(), Error> {
        if buffer.is_empty() {
            return Ok(());
        }
        let request = Request::new(Command::READ, at, buffer.len() as u32);
        self.links
            .submit(request, Buffer::Target(buffer), deadline)
            .map(drop)
    }

    #[cold]
    fn read_pieces(&self, buffer: &mut [u8], at: u64, deadline: &Deadline) -> Result<(), Error> {
        let mut at = at;
        let mut pieces = self.pieces();
        for piece in buffer.chunks_mut(self.piece()) {
            pieces.next()?;
            self.read_piece(piece, at, deadline)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes `payload` at `offset`; with `fua` it is permanent when this returns.
    pub fn write(&self, payload: &[u8], offset: u64, fua: bool) -> Result<(), Error> {
        match self.detect_zeroes {
            Detect::Off => self.write_until(payload, offset, fua, &*self.begin()?),
            detect => self.write_or_zero(detect, payload, offset, fua),
        }
    }

    #[inline(always)]
    fn write_until(
        &self,
        payload: &[u8],
        offset: u64,
        fua: bool,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        if self.is_odd(offset, payload.len() as u64) {
            return self.write_odd(payload, offset, fua, deadline);
        }
        self.check_range(Command::WRITE, offset, payload.len() as u64)?;
        let flags = self.fua(fua)?;
        match payload.len() <= self.piece() {
            true => self.write_piece(payload, offset, flags, deadline),
            false => self.write_pieces(payload, offset, flags, deadline),
        }
    }

    #[inline(always)]
    fn write_piece(
        &self,
        payload: &[u8],
        at: u64,
        flags: CommandFlags,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        if payload.is_empty() {
            return Ok(());
        }
        let request = Request::new(Command::WRITE, at, payload.len() as u32).with(flags);
        self.change(request, Buffer::Source(payload), deadline)
    }

    /// Sends a request that changes something.
    #[inline(always)]
    fn change(
        &self,
        request: Request,
        buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        match &self.watch {
            None => self.links.change(request, buffer, deadline),
            Some(watch) => self.change_watched(watch, request, buffer, deadline),
        }
    }

    #[cold]
    fn write_pieces(
        &self,
        payload: &[u8],
        at: u64,
        flags: CommandFlags,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        let mut at = at;
        let mut pieces = self.pieces();
        for piece in payload.chunks(self.piece()) {
            pieces.next()?;
            self.write_piece(piece, at, flags, deadline)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes every answered write permanent.
    pub fn flush(&self) -> Result<(), Error> {
        self.require(TransmissionFlags::SEND_FLUSH, "NBD_CMD_FLUSH")?;
        self.links.flush(&*self.begin()?, self.losses)
    }

    /// Tells the server that a range is not needed any more.
    pub fn trim(&self, length: u64, offset: u64, fua: bool) -> Result<(), Error> {
        self.require(TransmissionFlags::SEND_TRIM, "NBD_CMD_TRIM")?;
        if self.is_odd(offset, length) {
            return self.trim_odd(length, offset, fua);
        }
        self.check_range(Command::TRIM, offset, length)?;
        let request = Request::new(Command::TRIM, offset, length).with(self.fua(fua)?);
        self.in_pieces(request, &*self.begin()?)
    }

    /// Tells the server that a range will be needed soon.
    pub fn cache(&self, length: u64, offset: u64) -> Result<(), Error> {
        self.require(TransmissionFlags::SEND_CACHE, "NBD_CMD_CACHE")?;
        if self.is_odd(offset, length) {
            return self.cache_odd(length, offset);
        }
        self.check_range(Command::CACHE, offset, length)?;
        let request = Request::new(Command::CACHE, offset, length);
        self.in_pieces(request, &*self.begin()?)
    }

    /// Sends a request without payload, in pieces if it is longer than what the server takes at once.
    /// That cannot be known in advance: what is declined for its length is repeated in shorter
    /// pieces, a few times at most, and what was taken then is remembered.
    fn in_pieces(&self, request: Request, deadline: &Deadline) -> Result<(), Error> {
        let (mut at, mut left) = (request.offset, request.length);
        let mut length = Length::new(self.links.volume(), request.command);
        let mut pieces = self.pieces();
        while left > 0 {
            pieces.next()?;
            let piece = length.piece(request, at, left);
            let done = match request.command {
                Command::CACHE => self.links.submit(piece, Buffer::None, deadline).map(drop),
                _ => self.change(piece, Buffer::None, deadline),
            };
            match done {
                Ok(()) => {
                    length.taken(piece);
                    at += piece.length;
                    left -= piece.length;
                }
                Err(error) => length.declined(piece, error)?,
            }
        }
        Ok(())
    }

    /// Something has happened.
    fn note(&self, event: Event) {
        if let Some(stats) = &self.stats {
            stats.count(event);
        }
    }

    /// Longest payload of one request, bytes.
    fn piece(&self) -> usize {
        // At least one minimum block by the rules for block sizes.
        self.links.volume().payload() as usize
    }

    /// Refuses what no server could do: a range past the end, or between blocks. A zero length is
    /// fine between the blocks, as nothing is sent for it; and so is what touches a last block that
    /// is not whole.
    #[inline(always)]
    fn check_range(&self, command: Command, offset: u64, length: u64) -> Result<(), Error> {
        self.check_end(command, offset, length)?;
        match self.export().is_aligned(offset, length) {
            true => Ok(()),
            false => Err(self.unaligned(command, offset, length)),
        }
    }

    #[inline(always)]
    fn check_end(&self, command: Command, offset: u64, length: u64) -> Result<(), Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.export().size => Ok(()),
            _ => Err(self.past_the_end(command, offset, length)),
        }
    }

    #[cold]
    #[inline(never)]
    fn unaligned(&self, command: Command, offset: u64, length: u64) -> Error {
        let block = self.export().minimum_block();
        self.unsupported(
            &format!(
                "{command} of {length} bytes at offset {offset} is not aligned to the server's \
                 minimum block size {block} (align=emulate)"
            ),
            libc::EINVAL,
        )
    }

    #[cold]
    #[inline(never)]
    fn past_the_end(&self, command: Command, offset: u64, length: u64) -> Error {
        let errno = match command {
            Command::WRITE | Command::WRITE_ZEROES => libc::ENOSPC,
            _ => libc::EINVAL,
        };
        let size = self.export().size;
        let what =
            format!("{command} of {length} bytes at offset {offset} is past the end ({size})");
        self.unsupported(&what, errno)
    }

    fn fua(&self, wanted: bool) -> Result<CommandFlags, Error> {
        if !wanted {
            return Ok(CommandFlags::empty());
        }
        self.require(TransmissionFlags::SEND_FUA, "NBD_CMD_FLAG_FUA")?;
        Ok(CommandFlags::FUA)
    }

    fn require(&self, flag: TransmissionFlags, name: &str) -> Result<(), Error> {
        if self.export().can(flag) {
            return Ok(());
        }
        Err(self.unsupported(&format!("the server has no {name}"), libc::EINVAL))
    }

    fn unsupported(&self, what: &str, errno: i32) -> Error {
        Error::Unsupported {
            server: self.links.server().clone(),
            what: what.to_owned(),
            errno,
        }
    }
}

/// Whether the server failed the request with one of these.
fn failed_with(error: &Error, numbers: &[NbdErrno]) -> bool {
    matches!(
        error,
        Error::Failed {
            error: WireError::Server { errno, .. },
            ..
        } if numbers.contains(errno)
    )
}
