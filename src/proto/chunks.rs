// SPDX-License-Identifier: BSD-3-Clause
//! The reply to one request: a machine that says what the next bytes of the stream are for.
//!
//! It is given headers and small fixed pieces, and answers with steps: take so many bytes and hand
//! them over, put so many into the request's buffer, skip so many. Payload never passes through
//! it. A read succeeds only if data and holes covered every byte exactly once; an error chunk does
//! not end a reply, it only decides how the reply will end ("Structured reply chunk message").
//!
//! The header of a chunk says how long it is, so whatever is wrong inside of one is a [`Fault`] of
//! this reply: nothing of the chunk is used, it is skipped, and the request fails. A [`Violation`]
//! is left for what puts the meaning of the next byte in doubt, and for more bytes than a reply
//! can be made of.

use super::codec::Reader;
use super::consts::{
    Allocation, ChunkFlags, ChunkType, Command, CommandFlags, DEFAULT_MAX_PAYLOAD, MAX_TEXT,
};
use super::context::Context;
use super::coverage::Coverage;
use super::errno::NbdErrno;
use super::framing::Framing;
use super::reply::{Header, MAX_HEADER_LENGTH};
use super::request::Request;
use super::{Fault, Violation, WireError};

/// Most block descriptors that are kept of one reply; more are read and forgotten. Whoever asked
/// goes on where the answer ends. qemu sends no more than that in a chunk.
const MAX_DESCRIPTORS: usize = 1 << 17;
/// What a chunk may have around its data, bytes.
const MAX_OVERHEAD: u32 = 8;
/// Most descriptor bytes that are taken in one step.
const DESCRIPTOR_STEP: u32 = 4096;
/// A step never takes more bytes at once than this.
pub const MAX_TAKE: usize = DESCRIPTOR_STEP as usize;

/// What the next bytes of the stream are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Hand exactly so many bytes (at most [`MAX_TAKE`]) to [`Reply::taken`].
    Take(usize),
    /// The next `len` bytes go into the request's buffer at `at`; tell [`Reply::moved`].
    Fill {
        /// Position in the buffer, bytes.
        at: u32,
        /// How many, bytes.
        len: u32,
    },
    /// No bytes: `len` bytes of the request's buffer at `at` are zero; tell [`Reply::moved`].
    Zero {
        /// Position in the buffer, bytes.
        at: u32,
        /// How many, bytes.
        len: u32,
    },
    /// Throw so many bytes away; tell [`Reply::moved`].
    Skip(u32),
    /// The next bytes are a header, of this reply or of another.
    Header,
    /// The reply is complete.
    Done,
}

/// One extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes; never zero.
    pub length: u64,
    /// What they are by the context that was agreed.
    pub status: Allocation,
}

/// Everything learnt so far about one request's reply.
#[derive(Debug)]
pub struct Reply {
    request: Request,
    context: Option<Context>,
    coverage: Coverage,
    error: Option<Box<WireError>>,
    /// For a status query only, which few requests are: a small reply is quickly moved.
    status: Option<Box<Status>>,
    /// Bytes so far that were no answer.
    wasted: u32,
    /// The chunk at hand is the last one.
    last: bool,
    body: Body,
}

/// What a status query was answered with.
#[derive(Debug, Default)]
struct Status {
    descriptors: Vec<Descriptor>,
    /// Bytes from the request's offset that the descriptors cover, also those that are not kept.
    described: u64,
    /// Our context was reported.
    seen: bool,
    /// A descriptor of no length came before the range was covered.
    empty: bool,
    /// The descriptors at hand are those of `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`.
    wide: bool,
}

impl Status {
    /// Whether it is all that `request` needs.
    fn suffices(&self, request: Request) -> bool {
        let one = request.flags.contains(CommandFlags::REQ_ONE) && self.described > 0;
        one || self.described >= request.length
    }
}

/// Where in a chunk the stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// Between chunks.
    Header,
    /// The offset in front of read data; `data` bytes follow it.
    DataOffset { data: u32 },
    /// Offset and size of a hole.
    Hole,
    /// Read data.
    Data { at: u32, left: u32 },
    /// A hole to be zeroed.
    Zeroes { at: u32, left: u32 },
    /// The context id in front of `left` bytes of descriptors.
    ContextId { left: u32 },
    /// The same, and how many descriptors there are, in an extended chunk.
    ContextIdExt { left: u32 },
    /// Descriptors.
    Descriptors { left: u32 },
    /// The fixed part of an error; `left` bytes follow it, the last `offset` of them an offset.
    Error { left: u32, offset: u32 },
    /// An error's text of `text` bytes; `left` bytes follow it.
    ErrorText {
        errno: NbdErrno,
        text: u32,
        left: u32,
    },
    /// Bytes without meaning.
    Skip { left: u32 },
    /// Nothing more will come.
    Done,
}

impl Reply {
    /// Expects the reply to `request`. `context` is the one that was agreed.
    pub fn new(request: Request, context: Option<Context>) -> Self {
        let length = match request.command {
            // Payload is below 4 GiB.
            Command::READ => request.length as u32,
            _ => 0,
        };
        Self {
            request,
            context,
            coverage: Coverage::new(length),
            error: None,
            status: (request.command == Command::BLOCK_STATUS).then(Box::default),
            wasted: 0,
            last: false,
            body: Body::Header,
        }
    }

    /// The request that is answered.
    pub fn request(&self) -> Request {
        self.request
    }

    /// What to do with the next bytes of the stream.
    pub fn step(&self) -> Step {
        match self.body {
            Body::Header => Step::Header,
            Body::Done => Step::Done,
            Body::DataOffset { .. } => Step::Take(8),
            Body::Hole => Step::Take(12),
            Body::Data { at, left } => Step::Fill { at, len: left },
            Body::Zeroes { at, left } => Step::Zero { at, len: left },
            Body::ContextId { .. } => Step::Take(4),
            Body::ContextIdExt { .. } => Step::Take(8),
            Body::Descriptors { left } => Step::Take(left.min(DESCRIPTOR_STEP) as usize),
            Body::Error { .. } => Step::Take(6),
            Body::ErrorText { text, .. } => Step::Take(text as usize),
            Body::Skip { left } => Step::Skip(left),
        }
    }

    /// Begins a simple reply or the next chunk, as they are framed.
    #[inline]
    pub fn begin(&mut self, header: Header, framing: Framing) -> Result<(), Violation> {
        match header {
            Header::Simple { error, .. } => self.begin_simple(error, framing.has_chunks()),
            Header::Chunk {
                flags,
                kind,
                length,
                ..
            } => self.begin_chunk(flags, kind, length, false),
            Header::Extended {
                flags,
                kind,
                offset,
                length,
                ..
            } => {
                // Whoever mixes up requests may do so with their cookies, too.
                if offset != self.request.offset {
                    return Err(Violation::Offset {
                        command: self.request.command,
                        wanted: self.request.offset,
                        got: offset,
                    });
                }
                match u32::try_from(length) {
                    Ok(length) => self.begin_chunk(flags, kind, length, true),
                    Err(_) => Err(self.too_long(kind, length)),
                }
            }
        }
    }

    /// Accepts the bytes that a [`Step::Take`] asked for.
    pub fn taken(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        // The lengths were asked for by `step`; too few bytes would be our own mistake, and a
        // violation is the harmless way to notice it.
        self.accept(bytes)
            .unwrap_or(Err(Violation::Misfit(self.request.command)))
    }

    /// Notes that `len` bytes of a [`Step::Fill`], [`Step::Zero`] or [`Step::Skip`] were dealt
    /// with; may be fewer than the step named.
    pub fn moved(&mut self, len: u32) {
        match &mut self.body {
            Body::Data { at, left } | Body::Zeroes { at, left } => {
                *at += len;
                *left -= len;
                if *left == 0 {
                    self.end_chunk();
                }
            }
            Body::Skip { left } => {
                *left -= len;
                if *left == 0 {
                    self.end_chunk();
                }
            }
            _ => debug_assert!(false, "nothing was to be moved"),
        }
    }

    /// How the reply ended. For a status query the descriptors in order, else an empty list.
    pub fn finish(self) -> Result<Vec<Descriptor>, WireError> {
        debug_assert_eq!(self.body, Body::Done);
        if let Some(error) = self.error {
            return Err(*error);
        }
        if !self.coverage.is_complete() {
            return Err(WireError::Incomplete {
                got: self.coverage.answered(),
                wanted: self.request.length as u32,
            });
        }
        let Some(status) = self.status else {
            return Ok(Vec::new());
        };
        if status.empty && !status.suffices(self.request) {
            return Err(Fault::EmptyDescriptor.into());
        }
        if status.descriptors.is_empty() {
            return Err(WireError::NoStatus);
        }
        Ok(status.descriptors)
    }

    fn begin_simple(&mut self, error: Option<NbdErrno>, structured: bool) -> Result<(), Violation> {
        let reading = self.request.command == Command::READ;
        self.last = true;
        match error {
            // Sixteen bytes whose meaning is in no doubt, whatever was agreed.
            Some(errno) => self.fail(WireError::server(errno, b"")),
            // Whether payload follows is anybody's guess.
            None if reading && structured => return Err(Violation::SimpleRead),
            None if reading => {
                self.body = Body::Data {
                    at: 0,
                    left: self.request.length as u32,
                };
                // Structured replies were not agreed, so this is the only reply and nothing
                // overlaps.
                let _ = self.coverage.add(0, self.request.length as u32);
                return Ok(());
            }
            None => (),
        }
        self.end_chunk();
        Ok(())
    }

    fn begin_chunk(
        &mut self,
        flags: ChunkFlags,
        chunk: ChunkType,
        length: u32,
        wide: bool,
    ) -> Result<(), Violation> {
        let command = self.request.command;
        if length > self.longest() {
            return Err(self.too_long(chunk, length.into()));
        }
        self.last = flags.contains(ChunkFlags::DONE);
        if chunk == ChunkType::NONE && !self.last {
            // Nothing can follow, so whoever forgot the flag is done all the same. Should there be
            // more, it is a reply to nobody.
            self.fail(Fault::NotDone.into());
            self.last = true;
        }
        match (chunk, command) {
            (ChunkType::NONE, _) if length == 0 => self.end_chunk(),
            (ChunkType::OFFSET_DATA, Command::READ)
                if (9..=self.request.length.saturating_add(8)).contains(&length.into()) =>
            {
                self.body = Body::DataOffset { data: length - 8 };
            }
            (ChunkType::OFFSET_HOLE, Command::READ) if length == 12 => self.body = Body::Hole,
            (ChunkType::BLOCK_STATUS, Command::BLOCK_STATUS) if !wide && length % 8 == 4 => {
                self.body = Body::ContextId { left: length - 4 };
            }
            (ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS) if wide && length % 16 == 8 => {
                self.body = Body::ContextIdExt { left: length - 8 };
            }
            // spec: Structured reply types: MUST: an unknown type of error is an error
            (error, _) if error.is_error() && length >= 6 => {
                self.spend(length)?;
                let offset = if error == ChunkType::ERROR_OFFSET {
                    8
                } else {
                    0
                };
                self.body = Body::Error {
                    left: length - 6,
                    offset,
                };
            }
            (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS)
                if wide != (chunk == ChunkType::BLOCK_STATUS_EXT) =>
            {
                self.refuse(Fault::Chunk(chunk), length)?;
            }
            (ChunkType::NONE, _)
            | (ChunkType::OFFSET_DATA | ChunkType::OFFSET_HOLE, Command::READ)
            | (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS) => {
                self.refuse(Fault::Length { chunk, length }, length)?;
            }
            (error, _) if error.is_error() => {
                self.refuse(Fault::Length { chunk, length }, length)?;
            }
            _ => self.refuse(Fault::Chunk(chunk), length)?,
        }
        Ok(())
    }

    #[cold]
    fn too_long(&self, chunk: ChunkType, length: u64) -> Violation {
        Violation::ChunkLength {
            command: self.request.command,
            chunk,
            length,
        }
    }

    /// Pays for a chunk that does not bring the reply nearer to its end: nobody is kept busy by such
    /// chunks, be they long or many.
    fn spend(&mut self, length: u32) -> Result<(), Violation> {
        let cost = length.saturating_add(MAX_HEADER_LENGTH as u32);
        self.wasted = self.wasted.saturating_add(cost);
        if self.wasted > self.longest().saturating_mul(2) {
            return Err(Violation::Endless(self.request.command));
        }
        Ok(())
    }

    /// Longest payload of a chunk, bytes. What comes with more is no mistake in a chunk but the end
    /// of all order.
    fn longest(&self) -> u32 {
        let asked = match self.request.command {
            Command::READ => self.request.length as u32,
            _ => 0,
        };
        // spec: Size constraints: SHOULD NOT: 32 MiB are no attack
        DEFAULT_MAX_PAYLOAD.max(asked).saturating_add(MAX_OVERHEAD)
    }

    /// Deals with the bytes of a `Take`; `None` if there were too few of them.
    fn accept(&mut self, bytes: &[u8]) -> Option<Result<(), Violation>> {
        let mut reader = Reader::new(bytes);
        match self.body {
            Body::DataOffset { data } => {
                let offset = reader.u64()?;
                match self.cover(ChunkType::OFFSET_DATA, offset, data) {
                    // spec: Request types: MUST: chunks are put together by their offsets
                    Ok(at) => self.body = Body::Data { at, left: data },
                    Err(fault) => return Some(self.refuse(fault, data)),
                }
            }
            Body::Hole => {
                let (offset, length) = (reader.u64()?, reader.u32()?);
                match self.cover(ChunkType::OFFSET_HOLE, offset, length) {
                    Ok(at) => self.body = Body::Zeroes { at, left: length },
                    Err(fault) => return Some(self.refuse(fault, 0)),
                }
            }
            Body::ContextId { left } => return Some(self.begin_status(reader.u32()?, left)),
            Body::ContextIdExt { left } => {
                let (context, told) = (reader.u32()?, reader.u32()?);
                let room = left / 16;
                if let Some(status) = &mut self.status {
                    status.wide = true;
                }
                return Some(match told == room {
                    true => self.begin_status(context, left),
                    false => self.refuse(Fault::Count { told, room }, left),
                });
            }
            Body::Descriptors { left } => self.descriptors(reader, left),
            Body::Error { left, offset } => {
                let (errno, text) = (reader.u32()?, u32::from(reader.u16()?));
                self.begin_error(errno, text, left, offset);
            }
            Body::ErrorText { errno, left, .. } => {
                self.fail(WireError::server(errno, bytes));
                self.skip(left);
            }
            Body::Header
            | Body::Data { .. }
            | Body::Zeroes { .. }
            | Body::Skip { .. }
            | Body::Done => {
                return None;
            }
        }
        Some(Ok(()))
    }

    /// Checks that read data or a hole lies inside the request and is new; says where it goes.
    fn cover(&mut self, chunk: ChunkType, offset: u64, length: u32) -> Result<u32, Fault> {
        let outside = Fault::OutOfRange {
            chunk,
            offset,
            length,
        };
        let at = offset
            .checked_sub(self.request.offset)
            .ok_or(outside.clone())?;
        let end = at.checked_add(u64::from(length)).ok_or(outside.clone())?;
        if length == 0 || end > self.request.length {
            return Err(outside);
        }
        // Below the request's length, which is 32 bits wide.
        let at = at as u32;
        if !self.coverage.add(at, length) {
            return Err(Fault::Overlap(offset));
        }
        Ok(at)
    }

    fn begin_status(&mut self, context: u32, left: u32) -> Result<(), Violation> {
        let ours = self.context.is_some_and(|ours| ours.id == context);
        let ours = ours.then_some(self.status.as_mut());
        let Some(status) = ours.flatten() else {
            self.spend(left)?;
            self.skip(left);
            return Ok(());
        };
        if status.seen {
            return self.refuse(Fault::RepeatedContext(context), left);
        }
        status.seen = true;
        if left == 0 {
            self.end_chunk();
        } else {
            self.body = Body::Descriptors { left };
        }
        Ok(())
    }

    fn descriptors(&mut self, mut reader: Reader<'_>, left: u32) {
        let left = left.saturating_sub(reader.rest().len() as u32);
        let (Some(status), Some(context)) = (&mut self.status, self.context) else {
            return self.skip(left);
        };
        let wide = status.wide;
        let mut field = || match wide {
            true => reader.u64(),
            false => reader.u32().map(u64::from),
        };
        while let (Some(length), Some(bits)) = (field(), field()) {
            if status.suffices(self.request) {
                return self.skip(left);
            }
            if length == 0 {
                status.empty = true;
                continue;
            }
            status.described = status.described.saturating_add(length);
            if status.descriptors.len() < MAX_DESCRIPTORS {
                // spec: Request types: SHOULD: neighbouring descriptors may have the same status
                status.descriptors.push(Descriptor {
                    length,
                    status: context.meaning.extent(bits),
                });
            }
        }
        match left {
            0 => self.end_chunk(),
            left => self.body = Body::Descriptors { left },
        }
    }

    fn begin_error(&mut self, errno: u32, text: u32, left: u32, offset: u32) {
        // Zero is no error number, but an error chunk stays an error.
        let errno = if errno == 0 {
            NbdErrno::EIO
        } else {
            NbdErrno(errno)
        };
        // nbd-server 3.25 to 3.27 swap the bytes of the text's length. The number stands in front of
        // it and the chunk's end is certain, so a length that does not fit costs nothing: what is
        // there is the text.
        let text = text.min(left.saturating_sub(offset));
        // One byte more than is shown shows that it was cut.
        let text = text.min(MAX_TEXT as u32 + 1);
        if text == 0 {
            self.fail(WireError::server(errno, b""));
            self.skip(left);
        } else {
            self.body = Body::ErrorText {
                errno,
                text,
                left: left - text,
            };
        }
    }

    /// Keeps the first error: it is the cause of those that follow.
    fn fail(&mut self, error: WireError) {
        self.error.get_or_insert_with(|| Box::new(error));
    }

    /// Fails the request for what is wrong with a chunk, of which `left` bytes are to come.
    fn refuse(&mut self, fault: Fault, left: u32) -> Result<(), Violation> {
        self.spend(left)?;
        self.fail(fault.into());
        self.skip(left);
        Ok(())
    }

    fn skip(&mut self, left: u32) {
        if left == 0 {
            self.end_chunk();
        } else {
            self.body = Body::Skip { left };
        }
    }

    fn end_chunk(&mut self) {
        self.body = if self.last { Body::Done } else { Body::Header };
    }
}

#[cfg(test)]
mod tests;
