// SPDX-License-Identifier: BSD-3-Clause
//! Reply headers: the four bytes that tell simple from structured, and the fields behind them.
//!
//! The header is read by need. A simple reply is 16 bytes, a structured chunk 20; whoever waits
//! for 20 when the server sent 16 waits for ever.

use std::fmt;

use super::Violation;
use super::codec::Reader;
use super::consts::{ChunkFlags, ChunkType, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};
use super::errno::NbdErrno;
use super::request::Cookie;

/// Longest reply header, bytes.
pub const MAX_HEADER_LENGTH: usize = 20;

/// The start of a reply or of one chunk of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// "Simple reply message".
    Simple {
        /// The request that is answered.
        cookie: Cookie,
        /// `None` on success.
        error: Option<NbdErrno>,
    },
    /// "Structured reply chunk message".
    Chunk {
        /// The request that is answered.
        cookie: Cookie,
        /// Whether this is the last chunk.
        flags: ChunkFlags,
        /// What the payload is.
        kind: ChunkType,
        /// Length of the payload, bytes; as the server claims, unchecked.
        length: u32,
    },
}

/// What [`decode`] made of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The header, and how many bytes it took.
    Header(Header, usize),
    /// More bytes must be there before more can be said.
    Need,
}

impl Header {
    /// The request that is answered.
    pub fn cookie(&self) -> Cookie {
        match self {
            Self::Simple { cookie, .. } | Self::Chunk { cookie, .. } => *cookie,
        }
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reply to {}: ", self.cookie())?;
        match self {
            Self::Simple { error: None, .. } => f.write_str("simple, no error"),
            Self::Simple {
                error: Some(errno), ..
            } => write!(f, "simple, {errno}"),
            Self::Chunk {
                flags,
                kind,
                length,
                ..
            } => {
                let done = match flags.contains(ChunkFlags::DONE) {
                    true => ", done",
                    false => "",
                };
                write!(f, "{kind}, {length} bytes{done}")
            }
        }
    }
}

/// Decodes the header at the start of `bytes`. `structured` tells whether structured replies were
/// agreed; a chunk is a violation otherwise.
pub fn decode(bytes: &[u8], structured: bool) -> Result<Decoded, Violation> {
    let mut reader = Reader::new(bytes);
    let Some(magic) = reader.u32() else {
        return Ok(Decoded::Need);
    };
    match magic {
        SIMPLE_REPLY_MAGIC => Ok(simple(reader).map_or(Decoded::Need, |h| Decoded::Header(h, 16))),
        STRUCTURED_REPLY_MAGIC if structured => {
            Ok(chunk(reader).map_or(Decoded::Need, |h| Decoded::Header(h, 20)))
        }
        _ => Err(Violation::ReplyMagic(magic)),
    }
}

fn simple(mut reader: Reader<'_>) -> Option<Header> {
    let error = reader.u32()?;
    let cookie = Cookie(reader.u64()?);
    Some(Header::Simple {
        cookie,
        error: (error != 0).then_some(NbdErrno(error)),
    })
}

fn chunk(mut reader: Reader<'_>) -> Option<Header> {
    // spec: Structured reply flags: MUST: unknown flags are ignored
    let flags = ChunkFlags::from_bits_truncate(reader.u16()?);
    let kind = ChunkType(reader.u16()?);
    let cookie = Cookie(reader.u64()?);
    let length = reader.u32()?;
    Some(Header::Chunk {
        cookie,
        flags,
        kind,
        length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Writer;
    use proptest::prelude::*;

    #[test]
    fn a_simple_reply_needs_no_more_than_its_16_bytes() {
        let bytes = Writer::default()
            .u32(SIMPLE_REPLY_MAGIC)
            .u32(28)
            .u64(7)
            .finish();
        let header = Header::Simple {
            cookie: Cookie(7),
            error: Some(NbdErrno::ENOSPC),
        };
        assert_eq!(decode(&bytes, true), Ok(Decoded::Header(header, 16)));
        assert_eq!(decode(&bytes[..3], true), Ok(Decoded::Need));
        assert_eq!(decode(&bytes[..15], true), Ok(Decoded::Need));
    }

    #[test]
    fn a_chunk_is_a_violation_unless_agreed() {
        let bytes = Writer::default().u32(STRUCTURED_REPLY_MAGIC).finish();
        assert_eq!(decode(&bytes, true), Ok(Decoded::Need));
        assert_eq!(
            decode(&bytes, false),
            Err(Violation::ReplyMagic(STRUCTURED_REPLY_MAGIC))
        );
    }

    #[test]
    fn unknown_chunk_flags_are_ignored() {
        let bytes = Writer::default()
            .u32(STRUCTURED_REPLY_MAGIC)
            .u16(0xffff)
            .u16(1)
            .u64(9)
            .u32(100)
            .finish();
        let header = Header::Chunk {
            cookie: Cookie(9),
            flags: ChunkFlags::DONE,
            kind: ChunkType::OFFSET_DATA,
            length: 100,
        };
        assert_eq!(decode(&bytes, true), Ok(Decoded::Header(header, 20)));
    }

    #[test]
    fn a_header_tells_what_it_answers_and_how() {
        let cookie = Cookie(0x107);
        let simple = |error| Header::Simple { cookie, error }.to_string();
        assert_eq!(simple(None), "reply to cookie 0x107: simple, no error");
        assert_eq!(
            simple(Some(NbdErrno::EIO)),
            "reply to cookie 0x107: simple, NBD_EIO"
        );
        let chunk = |flags, kind, length| {
            let header = Header::Chunk {
                cookie,
                flags,
                kind,
                length,
            };
            header.to_string()
        };
        assert_eq!(
            chunk(ChunkFlags::empty(), ChunkType::OFFSET_DATA, 4104),
            "reply to cookie 0x107: NBD_REPLY_TYPE_OFFSET_DATA, 4104 bytes"
        );
        assert_eq!(
            chunk(ChunkFlags::DONE, ChunkType(0x7), 0),
            "reply to cookie 0x107: NBD_REPLY_TYPE_?(0x7), 0 bytes, done"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..32), structured: bool) {
            if let Ok(Decoded::Header(_, used)) = decode(&bytes, structured) {
                prop_assert!(used <= bytes.len());
            }
        }
    }
}
