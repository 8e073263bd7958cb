// SPDX-License-Identifier: BSD-3-Clause
//! A client's questions about extents, and the reads that their answers save.

use std::cell::Cell;

use super::error::Error;
use super::length::Length;
use super::loan::Buffer;
use super::maps::{Maps, Question, WIDEST, WIDEST_EXTENDED};
use super::{Client, split};
use crate::proto::chunks::Descriptor;
use crate::proto::consts::{Command, CommandFlags};
use crate::proto::framing::Framing;
use crate::proto::request::Request;
use crate::stats::Event;
use crate::transport::Deadline;

/// Most bytes that the extents of one answer cover. nbdkit joins neighbours that are alike, and its
/// versions before 1.44 abort when one of 4 GiB comes of that (CVE-2025-47711).
const MAX_DESCRIBED: u64 = u32::MAX as u64;

impl Client {
    /// The allocation of at least the first byte of a range, in order. The answer may stop early, and
    /// the last extent may pass the range's end, as the server told it; all are less than 4 GiB. With
    /// `one` it is a single extent.
    pub fn block_status(
        &self,
        length: u64,
        offset: u64,
        one: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        if self.is_odd(offset, length) {
            return self.status_odd(length, offset, one);
        }
        self.status_of_blocks(length, offset, one)
    }

    /// The same for a range that keeps to the server's blocks.
    pub(super) fn status_of_blocks(
        &self,
        length: u64,
        offset: u64,
        one: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        if self.export().context.is_none() {
            return Err(self.unsupported("no metadata context was agreed", libc::EINVAL));
        }
        // The answer may stop early, so the whole blocks of the longest query there is, 2^32-1 bytes,
        // will do.
        let whole = self.export().whole_blocks(length);
        let length = if whole > 0 { whole } else { length };
        self.check_range(Command::BLOCK_STATUS, offset, length)?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let deadline = self.begin()?;
        let was_asked = Cell::new(false);
        let ask = |asked: u64, one: bool| {
            was_asked.set(true);
            let mut flags = CommandFlags::empty();
            flags.set(CommandFlags::REQ_ONE, one);
            let request = Request::new(Command::BLOCK_STATUS, offset, asked).with(flags);
            match asked > length {
                // More than is needed: what the server says of that is no limit to be remembered.
                true => self.links.submit(request, Buffer::None, &deadline),
                false => self.status(request, &deadline),
            }
        };
        let mut extents = match &self.map {
            None => ask(length, one)?,
            Some(map) => {
                let question = Question {
                    offset,
                    length,
                    one,
                    most: self.most(offset).max(length),
                    widest: match self.export().framing {
                        Framing::Extended => WIDEST_EXTENDED,
                        Framing::Simple | Framing::Structured => WIDEST,
                    },
                };
                map.answer(question, || self.links.is_alive(), ask)?
            }
        };
        if !was_asked.get() {
            self.note(Event::ExtentsFromMemory);
        }
        split::cut(&mut extents, MAX_DESCRIBED);
        Ok(extents)
    }

    /// Asks for the status of a range, or of its beginning, if that is what the server takes at once.
    fn status(&self, request: Request, deadline: &Deadline) -> Result<Vec<Descriptor>, Error> {
        let mut length = Length::new(self.links.volume(), request.command);
        loop {
            let piece = length.piece(request, request.offset, request.length);
            match self.links.submit(piece, Buffer::None, deadline) {
                Ok(extents) => {
                    length.taken(piece);
                    return Ok(extents);
                }
                Err(error) => length.declined(piece, error)?,
            }
        }
    }

    /// The longest range from `offset` whose status can be asked for: to the end, or what the server is
    /// known to take, in whole blocks.
    fn most(&self, offset: u64) -> u64 {
        let left = self.export().size.saturating_sub(offset);
        left.min(self.links.volume().longest(Command::BLOCK_STATUS))
    }

    /// Whether a range is known to be zero, by a server that is still there.
    #[cold]
    pub(super) fn reads_zero(&self, maps: &Maps, offset: u64, length: usize) -> bool {
        maps.is_zero(self.links.volume().number(), offset, length as u64) && self.links.is_alive()
    }
}
