// SPDX-License-Identifier: BSD-3-Clause
//! How much to ask for behind what is known to be due.
//!
//! What comes next is a header, and nobody knows yet of what. While no large read is in flight
//! everything that may come is small, and one receive should take as much as there is. While one
//! is, what is asked for too much may be its payload, which then passes through the receive buffer
//! rather than going straight to the caller; and what is asked for too little costs a receive more.
//! So the length of the last payload decides: servers that answer in small pieces go on doing so,
//! and where they do not, a copy is wasted that is an eighth of the copies that a read of 256 KiB
//! takes anyway.

use std::ops::Range;

use crate::proto::consts::{ChunkType, Command};
use crate::proto::reply::{Header, MAX_HEADER_LENGTH};
use crate::proto::request::Request;

/// Least length of payload, bytes, for which a receive of its own costs less than a copy.
pub const LARGE: u32 = 16 * 1024;
/// Asked for where large payload is expected, bytes: a few headers.
const SIP: usize = 512;
/// Asked for where small payload is expected although large reads are in flight, bytes: two of the
/// largest pieces that are still small, and more of the smaller ones. Twice and half as much made
/// no difference; a sip took a third more processor time for pieces of 4 KiB.
const GULP: usize = 32 * 1024;

// A header, and the offset behind it, come with the payload before them.
const _: () = assert!(SIP >= MAX_HEADER_LENGTH + 8);

/// What the payloads received so far lead to expect.
#[derive(Debug)]
pub struct Appetite {
    /// Length of the last payload, bytes.
    last: u32,
}

impl Appetite {
    /// Expects large payload.
    pub fn new() -> Self {
        Self { last: LARGE }
    }

    /// Takes note of the header of a reply to `request`, or of a chunk of it. Only what brings
    /// payload counts: an acknowledged write says nothing about the reads.
    pub fn learn(&mut self, header: Header, request: Request) {
        match header {
            Header::Chunk {
                kind: ChunkType::OFFSET_DATA,
                length,
                ..
            } => self.last = length,
            Header::Extended {
                kind: ChunkType::OFFSET_DATA,
                length,
                ..
            } => self.last = u32::try_from(length).unwrap_or(u32::MAX),
            Header::Simple { error: None, .. } if request.command == Command::READ => {
                self.last = request.length as u32;
            }
            Header::Simple { .. } | Header::Chunk { .. } | Header::Extended { .. } => (),
        }
    }

    /// The part of the receive buffer to receive into: `free` is what is empty of it, and `due` are
    /// the bytes that must pass through it before the next header.
    pub fn room(&self, free: Range<usize>, due: usize, large_reads: bool) -> Range<usize> {
        let wanted = match large_reads {
            false => free.len(),
            true if self.last < LARGE => due.saturating_add(GULP),
            true => due.saturating_add(SIP),
        };
        free.start..free.start + wanted.min(free.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::consts::ChunkFlags;
    use crate::proto::errno::NbdErrno;
    use crate::proto::request::Cookie;

    const COOKIE: Cookie = Cookie(7);
    const FREE: Range<usize> = 100..128 << 10;

    fn chunk(kind: ChunkType, length: u32) -> Header {
        Header::Chunk {
            cookie: COOKIE,
            flags: ChunkFlags::empty(),
            kind,
            length,
        }
    }

    fn simple(error: Option<NbdErrno>) -> Header {
        Header::Simple {
            cookie: COOKIE,
            error,
        }
    }

    fn request(command: Command, length: u32) -> Request {
        Request::new(command, 0, length)
    }

    /// What is asked for behind what is due, with large reads in flight.
    fn ahead(appetite: &Appetite) -> usize {
        appetite.room(FREE, 0, true).len()
    }

    #[test]
    fn without_large_reads_all_that_is_free_is_asked_for() {
        let mut appetite = Appetite::new();
        let read = request(Command::READ, 1 << 20);
        for length in [100, 1 << 20] {
            appetite.learn(chunk(ChunkType::OFFSET_DATA, length), read);
            assert_eq!(appetite.room(FREE, 0, false), FREE);
        }
    }

    #[test]
    fn the_last_payload_decides_beside_large_reads() {
        let mut appetite = Appetite::new();
        let read = request(Command::READ, 1 << 20);
        assert_eq!(ahead(&appetite), SIP);
        for (length, wanted) in [(LARGE - 1, GULP), (LARGE, SIP), (9, GULP), (1 << 20, SIP)] {
            appetite.learn(chunk(ChunkType::OFFSET_DATA, length), read);
            assert_eq!(ahead(&appetite), wanted, "{length}");
        }
        for (length, wanted) in [(9, GULP), (1 << 20, SIP), (10, GULP), (u64::MAX, SIP)] {
            let header = Header::Extended {
                cookie: COOKIE,
                flags: ChunkFlags::empty(),
                kind: ChunkType::OFFSET_DATA,
                offset: 0,
                length,
            };
            appetite.learn(header, read);
            assert_eq!(ahead(&appetite), wanted, "{length}");
        }
    }

    #[test]
    fn a_simple_reply_to_a_read_is_as_long_as_the_read() {
        let mut appetite = Appetite::new();
        appetite.learn(simple(None), request(Command::READ, 4096));
        assert_eq!(ahead(&appetite), GULP);
        appetite.learn(simple(None), request(Command::READ, LARGE));
        assert_eq!(ahead(&appetite), SIP);
    }

    #[test]
    fn what_brings_no_payload_changes_nothing() {
        let mut appetite = Appetite::new();
        appetite.learn(simple(None), request(Command::WRITE, 4096));
        appetite.learn(simple(Some(NbdErrno::EIO)), request(Command::READ, 4096));
        for kind in [
            ChunkType::NONE,
            ChunkType::OFFSET_HOLE,
            ChunkType::ERROR,
            ChunkType::BLOCK_STATUS,
        ] {
            appetite.learn(chunk(kind, 12), request(Command::READ, 4096));
        }
        assert_eq!(ahead(&appetite), SIP);
    }

    #[test]
    fn what_is_due_is_asked_for_as_far_as_there_is_room() {
        let appetite = Appetite::new();
        let room = |due| appetite.room(FREE, due, true);
        assert_eq!(room(4096), 100..100 + 4096 + SIP);
        assert_eq!(room(usize::MAX), FREE);
        assert_eq!(appetite.room(10..11, 0, true), 10..11);
    }
}
