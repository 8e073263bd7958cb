// SPDX-License-Identifier: BSD-3-Clause
//! A client's questions about extents, and the reads that their answers save.

use super::error::Error;
use super::loan::Buffer;
use super::maps::{Maps, Question};
use super::{Client, split};
use crate::proto::chunks::Descriptor;
use crate::proto::consts::{Command, CommandFlags};
use crate::proto::request::Request;

/// Most bytes that the extents of one answer cover. nbdkit joins neighbours that are alike, and its
/// versions before 1.44 abort when one of 4 GiB comes of that (CVE-2025-47711).
const MAX_DESCRIBED: u32 = u32::MAX;

impl Client {
    /// The allocation of at least the first byte of a range, in order. The answer may stop early, and
    /// the last extent may pass the range's end, as the server told it; all are less than 4 GiB. With
    /// `one` it is a single extent.
    pub fn block_status(
        &self,
        length: u32,
        offset: u64,
        one: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        if self.export().context.is_none() {
            return Err(self.unsupported("no metadata context was agreed", libc::EINVAL));
        }
        // The answer may stop early, so the whole blocks of the longest query there is, 2^32-1 bytes,
        // will do.
        let odd = length % self.export().minimum_block();
        let length = if odd < length { length - odd } else { length };
        self.check_range(Command::BLOCK_STATUS, offset, length as usize)?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let deadline = self.deadline();
        let ask = |length: u64, one: bool| {
            let mut flags = CommandFlags::empty();
            flags.set(CommandFlags::REQ_ONE, one);
            // Below 4 GiB, as the question was, and `widest` is.
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            let request = Request::new(Command::BLOCK_STATUS, offset, length).with(flags);
            self.links.submit(request, Buffer::None, &deadline)
        };
        let length = u64::from(length);
        let mut extents = match &self.map {
            None => ask(length, one)?,
            Some(map) => {
                let most = self.widest(offset).max(length);
                let question = Question {
                    offset,
                    length,
                    one,
                    most,
                };
                map.answer(question, || self.links.is_alive(), ask)?
            }
        };
        split::cut(&mut extents, MAX_DESCRIBED);
        Ok(extents)
    }

    /// The longest range from `offset` whose status can be asked for: to the end, in whole blocks.
    fn widest(&self, offset: u64) -> u64 {
        let block = u64::from(self.export().minimum_block());
        let left = self.export().size.saturating_sub(offset);
        let most = left.min(u32::MAX.into());
        match most == left {
            true => most,
            false => most - most % block,
        }
    }

    /// Whether a range is known to be zero, by a server that is still there.
    #[cold]
    pub(super) fn reads_zero(&self, maps: &Maps, offset: u64, length: usize) -> bool {
        maps.is_zero(self.links.volume().number(), offset, length as u64) && self.links.is_alive()
    }
}
