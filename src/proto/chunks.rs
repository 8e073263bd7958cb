//! The reply to one request: a machine that says what the next bytes of the stream are for.
//!
//! It is given headers and small fixed pieces, and answers with steps: take so many bytes and hand
//! them over, put so many into the request's buffer, skip so many. Payload never passes through
//! it. A read succeeds only if data and holes covered every byte exactly once; an error chunk does
//! not end a reply, it only decides how the reply will end ("Structured reply chunk message").

use super::codec::{Reader, printable};
use super::consts::{Allocation, ChunkFlags, ChunkType, Command, MAX_STRING};
use super::coverage::Coverage;
use super::errno::NbdErrno;
use super::reply::Header;
use super::request::Request;
use super::{Violation, WireError};

/// Most block descriptors that are kept of one reply; more are read and forgotten. nbdkit keeps
/// no more either.
const MAX_DESCRIPTORS: usize = 1 << 20;
/// Longest payload of a status chunk, bytes. Several times what is kept; more is not meant well.
const MAX_STATUS_PAYLOAD: u32 = 4 + 4 * 8 * MAX_DESCRIPTORS as u32;
/// Most descriptor bytes that are taken in one step.
const DESCRIPTOR_STEP: u32 = 4096;
/// A step never takes more bytes at once than this.
pub const MAX_TAKE: usize = MAX_STRING;

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

/// One extent of the `base:allocation` context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes; never zero.
    pub length: u32,
    /// What is known of them; unknown bits are masked.
    pub status: Allocation,
}

/// Everything learnt so far about one request's reply.
#[derive(Debug)]
pub struct Reply {
    request: Request,
    context: Option<u32>,
    coverage: Coverage,
    error: Option<Box<WireError>>,
    descriptors: Vec<Descriptor>,
    status_seen: bool,
    /// The chunk at hand is the last one.
    last: bool,
    body: Body,
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
    /// Expects the reply to `request`. `context` is the id of `base:allocation`, where agreed.
    pub fn new(request: Request, context: Option<u32>) -> Self {
        let length = match request.command {
            Command::READ => request.length,
            _ => 0,
        };
        Self {
            request,
            context,
            coverage: Coverage::new(length),
            error: None,
            descriptors: Vec::new(),
            status_seen: false,
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
            Body::Descriptors { left } => Step::Take(left.min(DESCRIPTOR_STEP) as usize),
            Body::Error { .. } => Step::Take(6),
            Body::ErrorText { text, .. } => Step::Take(text as usize),
            Body::Skip { left } => Step::Skip(left),
        }
    }

    /// Begins a simple reply or the next chunk. `structured` tells whether structured replies were
    /// agreed.
    pub fn begin(&mut self, header: Header, structured: bool) -> Result<(), Violation> {
        match header {
            Header::Simple { error, .. } => self.begin_simple(error, structured),
            Header::Chunk {
                flags,
                kind,
                length,
                ..
            } => self.begin_chunk(flags, kind, length),
        }
    }

    /// Accepts the bytes that a [`Step::Take`] asked for.
    pub fn taken(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        // The lengths were asked for by `step`; too few bytes would be our own mistake, and a
        // violation is the harmless way to notice it.
        self.accept(bytes).unwrap_or(Err(Violation::ChunkLength {
            command: self.request.command,
            chunk: ChunkType::NONE,
            length: bytes.len() as u32,
        }))
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
                wanted: self.request.length,
            });
        }
        if self.request.command == Command::BLOCK_STATUS && !self.status_seen {
            return Err(WireError::NoStatus);
        }
        Ok(self.descriptors)
    }

    fn begin_simple(&mut self, error: Option<NbdErrno>, structured: bool) -> Result<(), Violation> {
        let reading = self.request.command == Command::READ;
        if reading && structured {
            return Err(Violation::SimpleRead);
        }
        self.last = true;
        if let Some(errno) = error {
            self.fail(errno, String::new());
        } else if reading {
            self.body = Body::Data {
                at: 0,
                left: self.request.length,
            };
            // Structured replies were not agreed, so this is the only reply and nothing overlaps.
            let _ = self.coverage.add(0, self.request.length);
            return Ok(());
        }
        self.end_chunk();
        Ok(())
    }

    fn begin_chunk(
        &mut self,
        flags: ChunkFlags,
        chunk: ChunkType,
        length: u32,
    ) -> Result<(), Violation> {
        let command = self.request.command;
        self.last = flags.contains(ChunkFlags::DONE);
        let bad_length = Err(Violation::ChunkLength {
            command,
            chunk,
            length,
        });
        self.body = match (chunk, command) {
            (ChunkType::NONE, _) => {
                if length != 0 {
                    return bad_length;
                }
                if !self.last {
                    return Err(Violation::NotDone(command));
                }
                Body::Done
            }
            (ChunkType::OFFSET_DATA, Command::READ) => match length.checked_sub(8) {
                None | Some(0) => return bad_length,
                Some(data) => Body::DataOffset { data },
            },
            (ChunkType::OFFSET_HOLE, Command::READ) if length == 12 => Body::Hole,
            (ChunkType::BLOCK_STATUS, Command::BLOCK_STATUS) => match length.checked_sub(4) {
                Some(left) if left != 0 && left % 8 == 0 && length <= MAX_STATUS_PAYLOAD => {
                    Body::ContextId { left }
                }
                _ => return bad_length,
            },
            (ChunkType::OFFSET_HOLE, Command::READ) => return bad_length,
            (error, _) if error.is_error() => match length.checked_sub(6) {
                // The text is at most 64 KiB long, an offset or two may follow it.
                Some(left) if left <= 0xffff + 64 => {
                    let offset = if error == ChunkType::ERROR_OFFSET {
                        8
                    } else {
                        0
                    };
                    Body::Error { left, offset }
                }
                _ => return bad_length,
            },
            _ => return Err(Violation::Chunk { command, chunk }),
        };
        Ok(())
    }

    /// Deals with the bytes of a `Take`; `None` if there were too few of them.
    fn accept(&mut self, bytes: &[u8]) -> Option<Result<(), Violation>> {
        let mut reader = Reader::new(bytes);
        Some(match self.body {
            Body::DataOffset { data } => {
                let offset = reader.u64()?;
                self.cover(ChunkType::OFFSET_DATA, offset, data)
                    .map(|at| self.body = Body::Data { at, left: data })
            }
            Body::Hole => {
                let (offset, length) = (reader.u64()?, reader.u32()?);
                self.cover(ChunkType::OFFSET_HOLE, offset, length)
                    .map(|at| self.body = Body::Zeroes { at, left: length })
            }
            Body::ContextId { left } => self.begin_status(reader.u32()?, left),
            Body::Descriptors { left } => self.descriptors(reader, left),
            Body::Error { left, offset } => {
                let (errno, text) = (reader.u32()?, u32::from(reader.u16()?));
                self.begin_error(errno, text, left, offset)
            }
            Body::ErrorText { errno, left, .. } => {
                self.fail(errno, printable(bytes, MAX_STRING));
                self.skip(left);
                Ok(())
            }
            Body::Header
            | Body::Data { .. }
            | Body::Zeroes { .. }
            | Body::Skip { .. }
            | Body::Done => {
                return None;
            }
        })
    }

    /// Checks that read data or a hole lies inside the request and is new; says where it goes.
    fn cover(&mut self, chunk: ChunkType, offset: u64, length: u32) -> Result<u32, Violation> {
        let outside = Violation::OutOfRange {
            command: self.request.command,
            chunk,
            offset,
            length,
        };
        let at = offset
            .checked_sub(self.request.offset)
            .ok_or(outside.clone())?;
        let end = at.checked_add(u64::from(length)).ok_or(outside.clone())?;
        if length == 0 || end > u64::from(self.request.length) {
            return Err(outside);
        }
        // Below the request's length, which is 32 bits wide.
        let at = at as u32;
        if !self.coverage.add(at, length) {
            return Err(Violation::Overlap(offset));
        }
        Ok(at)
    }

    fn begin_status(&mut self, context: u32, left: u32) -> Result<(), Violation> {
        let Some(ours) = self.context else {
            return Err(Violation::UnexpectedContext(context));
        };
        if context != ours {
            self.skip(left);
            return Ok(());
        }
        if self.status_seen {
            return Err(Violation::RepeatedContext(context));
        }
        self.status_seen = true;
        self.body = Body::Descriptors { left };
        Ok(())
    }

    fn descriptors(&mut self, mut reader: Reader<'_>, left: u32) -> Result<(), Violation> {
        let taken = reader.rest().len() as u32;
        while let (Some(length), Some(status)) = (reader.u32(), reader.u32()) {
            if length == 0 {
                return Err(Violation::EmptyDescriptor);
            }
            if self.descriptors.len() < MAX_DESCRIPTORS {
                self.descriptors.push(Descriptor {
                    length,
                    status: Allocation::from_bits_truncate(status),
                });
            }
        }
        match left.saturating_sub(taken) {
            0 => self.end_chunk(),
            left => self.body = Body::Descriptors { left },
        }
        Ok(())
    }

    fn begin_error(
        &mut self,
        errno: u32,
        text: u32,
        left: u32,
        offset: u32,
    ) -> Result<(), Violation> {
        let after = left.checked_sub(text).filter(|after| *after >= offset);
        let Some(after) = after else {
            return Err(Violation::ChunkLength {
                command: self.request.command,
                chunk: ChunkType::ERROR,
                length: left + 6,
            });
        };
        // Zero is no error number, but an error chunk stays an error.
        let errno = if errno == 0 {
            NbdErrno::EIO
        } else {
            NbdErrno(errno)
        };
        let kept = text.min(MAX_STRING as u32);
        let left = after + (text - kept);
        if kept == 0 {
            self.fail(errno, String::new());
            self.skip(left);
        } else {
            self.body = Body::ErrorText {
                errno,
                text: kept,
                left,
            };
        }
        Ok(())
    }

    /// Keeps the first error: it is the cause of those that follow.
    fn fail(&mut self, errno: NbdErrno, text: String) {
        self.error
            .get_or_insert_with(|| Box::new(WireError::Server { errno, text }));
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
