// SPDX-License-Identifier: BSD-3-Clause
//! Requests that do not keep to the server's minimum block, carried out by requests that do.
//!
//! Reads, prefetches and questions about extents are widened. Trims are narrowed: they are advice. What
//! is written to a part of a block is put into what the server has there, and the whole is written back,
//! within a [fence](Fences) that keeps every other change of this process out from before the read until
//! after the write. A request that is sent again after a loss is still within it, and so are those that
//! wait; the session's order does the rest, as for all changes.
//!
//! What is behind the disk's last whole block is asked for with exactly its bytes, as without this:
//! nothing else leads there.

mod fences;
mod parts;

use std::sync::Arc;
use std::time::Duration;

pub use self::fences::Fences;
use self::fences::Kind;
use self::parts::{Grid, Part};
use super::error::Error;
use super::loan::Buffer;
use super::maps::Maps;
use super::resume::Terms;
use super::times::Times;
use super::{Client, Options, Zeroing, failed_with};
use crate::proto::chunks::Descriptor;
use crate::proto::consts::{Allocation, Command, CommandFlags};
use crate::proto::errno::NbdErrno;
use crate::proto::request::Request;
use crate::session::Span;
use crate::stats::Event;
use crate::transport::Deadline;

/// What is longer is not put together in memory, but sent in several requests, bytes: most of it is whole
/// blocks, which need no copy. With what clients write at once it is one.
const SHORT: u64 = 512 * 1024;

/// Who has to know of changes before they are sent.
#[derive(Debug)]
pub struct Watch {
    maps: Option<Arc<Maps>>,
    fences: Option<Arc<Fences>>,
    times: Arc<Times>,
    terms: Option<Arc<Terms>>,
}

impl Watch {
    /// Of changes by a client that can write. `None` if nobody has to. There are fences also where this
    /// client's server has no blocks: another client may have been told of some by another server of the
    /// same disk.
    pub fn new(options: &Options) -> Option<Self> {
        let maps = &options.maps;
        let maps = maps.counts_changes().then(|| maps.clone());
        let fences = options.fences.as_ref();
        (maps.is_some() || fences.is_some()).then(|| Self {
            maps,
            fences: fences.cloned(),
            times: options.times.clone(),
            terms: options.reconnect.clone(),
        })
    }

    /// How long to wait behind others' changes, which may themselves wait for a lost server.
    fn patience(&self) -> Option<Duration> {
        let away = match &self.terms {
            None => Some(Duration::ZERO),
            Some(terms) => terms.limit.get(),
        };
        let both = self.times.request.get().zip(away);
        both.map(|(one, other)| one.saturating_add(other))
    }
}

/// As long as a deadline was at first, from now.
fn anew(deadline: &Deadline) -> Deadline {
    Deadline::after_maybe(deadline.length())
}

impl Client {
    /// Whether a request has to be carried out by others.
    #[inline(always)]
    pub(super) fn is_odd(&self, offset: u64, length: u64) -> bool {
        (offset | length) & self.odd != 0
    }

    /// A change, told to all who have to know. Out of the way where nobody has to.
    #[cold]
    #[inline(never)]
    pub(super) fn change_watched(
        &self,
        watch: &Watch,
        request: Request,
        buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        let span = Span::new(request.offset, request.length);
        self.fenced(span, Kind::Shared, request, deadline, |deadline| {
            self.change_told(watch, request, buffer, deadline)
        })
    }

    /// The same within a fence.
    fn change_told(
        &self,
        watch: &Watch,
        request: Request,
        buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        let Some(maps) = &watch.maps else {
            return self.links.change(request, buffer, deadline);
        };
        let change = maps.begin_change(request);
        change.answered(self.links.change(request, buffer, deadline))
    }

    /// Does something within a fence, if there are any. `request` is what would be sent, for messages.
    ///
    /// Who has waited for one begins anew: what is sent with hardly any time left would end the connection,
    /// for everybody, of a server that is only slow.
    fn fenced<T>(
        &self,
        span: Span,
        kind: Kind,
        request: Request,
        deadline: &Deadline,
        act: impl FnOnce(&Deadline) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let watch = self.watch.as_ref();
        let Some((watch, fences)) = watch.and_then(|watch| Some((watch, watch.fences.as_ref()?)))
        else {
            return act(deadline);
        };
        let mut waited = false;
        let patience = || {
            waited = true;
            Deadline::after_maybe(watch.patience()).while_wanted(self.wanted)
        };
        let server = || self.links.server().clone();
        let _fence = fences
            .enter(span, kind, patience)
            .map_err(|error| match error {
                timeout @ crate::transport::Error::Timeout(_) => Error::Crowded {
                    server: server(),
                    request,
                    timeout,
                },
                _ => Error::Unwanted(server()),
            })?;
        match waited {
            true => act(&anew(deadline)),
            false => act(deadline),
        }
    }

    fn grid(&self) -> Grid {
        Grid {
            block: self.export().minimum_block().into(),
            size: self.export().size,
        }
    }

    /// The range, and the parts of it to be asked for at once; no part if it is empty.
    fn parts(&self, command: Command, offset: u64, length: u64) -> Result<Vec<Part>, Error> {
        self.check_end(command, offset, length)?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let short = match command {
            // What is whole in them need not be written as data.
            Command::WRITE_ZEROES => 0,
            _ => SHORT.min(self.piece() as u64),
        };
        Ok(self.grid().parts(Span::new(offset, length), short))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn read_odd(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let deadline = self.begin()?;
        let parts = self.parts(Command::READ, offset, buffer.len() as u64)?;
        if let Some(maps) = &self.zeroes {
            if self.reads_zero(maps, offset, buffer.len()) {
                buffer.fill(0);
                self.note(Event::ReadFromMemory);
                return Ok(());
            }
        }
        let mut rest = buffer;
        let mut steps = self.steps();
        for part in parts {
            steps.next()?;
            let (target, others) = rest.split_at_mut(part.wanted.length() as usize);
            rest = others;
            if part.is_whole() {
                self.read_pieces(target, part.wanted.start, &deadline)?;
                continue;
            }
            let mut blocks = vec![0; part.blocks.length() as usize];
            self.read_piece(&mut blocks, part.blocks.start, &deadline)?;
            target.copy_from_slice(&blocks[part.place()]);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(super) fn write_odd(
        &self,
        payload: &[u8],
        offset: u64,
        fua: bool,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        let flags = self.fua(fua)?;
        let mut rest = payload;
        let mut steps = self.steps();
        for part in self.parts(Command::WRITE, offset, payload.len() as u64)? {
            steps.next()?;
            let (source, others) = rest.split_at(part.wanted.length() as usize);
            rest = others;
            // The one before it may have waited.
            let deadline = &anew(deadline);
            match part.is_whole() {
                true => self.write_pieces(source, part.wanted.start, flags, deadline)?,
                false => self.merge(part, flags, deadline, |room| room.copy_from_slice(source))?,
            }
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(super) fn zero_odd(&self, length: u64, offset: u64, how: Zeroing) -> Result<(), Error> {
        let deadline = self.begin()?;
        let parts = self.parts(Command::WRITE_ZEROES, offset, length)?;
        let flags = self.fua(how.fua)?;
        if how.fast && !parts.iter().all(|part| part.is_whole()) {
            // The edges take as long as a write, and a read.
            let what =
                "zeroes that are not aligned to the server's minimum block size are not fast";
            return Err(self.unsupported(what, libc::ENOTSUP));
        }
        let mut steps = self.steps();
        for part in parts {
            steps.next()?;
            let Span { start, .. } = part.wanted;
            // The one before it may have waited.
            let deadline = &anew(&deadline);
            match part.is_whole() {
                true => self.zero_blocks(part.wanted.length(), start, how, deadline)?,
                false => self.merge(part, flags, deadline, |room| room.fill(0))?,
            }
        }
        Ok(())
    }

    /// Writes a part of some blocks: what else is in them is read first, and written back.
    fn merge(
        &self,
        part: Part,
        flags: CommandFlags,
        deadline: &Deadline,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Error> {
        let Part { blocks, .. } = part;
        let length = blocks.length();
        let request = Request::new(Command::WRITE, blocks.start, length).with(flags);
        self.fenced(blocks, Kind::Alone, request, deadline, |deadline| {
            let mut whole = vec![0; length as usize];
            for edge in self.grid().edges(part) {
                let from = (edge.start - blocks.start) as usize;
                let room = &mut whole[from..from + edge.length() as usize];
                self.read_piece(room, edge.start, deadline)?;
            }
            fill(&mut whole[part.place()]);
            let buffer = Buffer::Source(&whole);
            match &self.watch {
                Some(watch) => self.change_told(watch, request, buffer, deadline),
                None => self.links.change(request, buffer, deadline),
            }
        })
    }

    /// Trims what is whole within a range. The rest is kept, as is any server's right.
    #[cold]
    #[inline(never)]
    pub(super) fn trim_odd(&self, length: u64, offset: u64, fua: bool) -> Result<(), Error> {
        let deadline = self.begin()?;
        self.check_end(Command::TRIM, offset, length)?;
        let flags = self.fua(fua)?;
        match self.grid().within(Span::new(offset, length)) {
            None => Ok(()),
            Some(whole) => {
                let request = Request::new(Command::TRIM, whole.start, whole.length());
                self.in_pieces(request.with(flags), &deadline)
            }
        }
    }

    /// Prefetches all blocks of full length that a range touches.
    #[cold]
    #[inline(never)]
    pub(super) fn cache_odd(&self, length: u64, offset: u64) -> Result<(), Error> {
        let deadline = self.begin()?;
        self.check_end(Command::CACHE, offset, length)?;
        let grid = self.grid();
        if length == 0 {
            return Ok(());
        }
        match grid.within(grid.around(Span::new(offset, length))) {
            // There is nothing of it that the server has promised to take.
            None => Ok(()),
            Some(whole) => {
                let request = Request::new(Command::CACHE, whole.start, whole.length());
                self.in_pieces(request, &deadline)
            }
        }
    }

    /// Like [`Client::block_status`]. What the server has no word for is data: it may be anything.
    #[cold]
    #[inline(never)]
    pub(super) fn status_odd(
        &self,
        length: u64,
        offset: u64,
        one: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        self.check_end(Command::BLOCK_STATUS, offset, length)?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let grid = self.grid();
        let blocks = grid.around(Span::new(offset, length));
        let mut extents = match self.status_of_blocks(blocks.length(), blocks.start, one) {
            // It need not answer questions about less than a block.
            Err(error) if grid.is_odd_end(blocks) && failed_with(&error, &[NbdErrno::EINVAL]) => {
                log::debug!("{error}; taken for data");
                Vec::new()
            }
            answer => answer?,
        };
        let mut ahead = offset - blocks.start;
        extents.retain_mut(|extent| {
            let skipped = extent.length.min(ahead);
            ahead -= skipped;
            extent.length -= skipped;
            extent.length > 0
        });
        if extents.is_empty() {
            let first = grid.around(Span::new(offset, 1));
            extents.push(Descriptor {
                length: first.end - offset,
                status: Allocation::empty(),
            });
        }
        Ok(extents)
    }
}
