// SPDX-License-Identifier: BSD-3-Clause
//! Reply headers: the four bytes that tell one kind from another, and the fields behind them.
//!
//! The header is read by need. A simple reply is 16 bytes, a structured chunk 20, or 32 with extended
//! headers; whoever waits for 32 when the server sent 16 waits for ever.

use std::fmt;

use super::Violation;
use super::codec::Reader;
use super::consts::{
    ChunkFlags, ChunkType, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use super::errno::NbdErrno;
use super::framing::Framing;
use super::request::Cookie;

/// Longest reply header, bytes.
pub const MAX_HEADER_LENGTH: usize = 32;

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
    /// The same with extended headers.
    Extended {
        /// The request that is answered.
        cookie: Cookie,
        /// Whether this is the last chunk.
        flags: ChunkFlags,
        /// What the payload is.
        kind: ChunkType,
        /// The offset of the request that is answered; unchecked.
        offset: u64,
        /// Length of the payload, bytes; as the server claims, unchecked.
        length: u64,
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
            Self::Simple { cookie, .. }
            | Self::Chunk { cookie, .. }
            | Self::Extended { cookie, .. } => *cookie,
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
            } => chunk_text(f, *kind, u64::from(*length), *flags),
            Self::Extended {
                flags,
                kind,
                length,
                ..
            } => chunk_text(f, *kind, *length, *flags),
        }
    }
}

fn chunk_text(
    f: &mut fmt::Formatter<'_>,
    kind: ChunkType,
    length: u64,
    flags: ChunkFlags,
) -> fmt::Result {
    let done = match flags.contains(ChunkFlags::DONE) {
        true => ", done",
        false => "",
    };
    write!(f, "{kind}, {length} bytes{done}")
}

/// Decodes the header at the start of `bytes`. Only what `framing` allows is no violation, and that is
/// judged by the first four bytes: what follows them may be fewer than are waited for.
#[inline]
pub fn decode(bytes: &[u8], framing: Framing) -> Result<Decoded, Violation> {
    let mut reader = Reader::new(bytes);
    let Some(magic) = reader.u32() else {
        return Ok(Decoded::Need);
    };
    let (header, length) = match (magic, framing) {
        (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => (simple(reader), 16),
        (STRUCTURED_REPLY_MAGIC, Framing::Structured) => (chunk(reader), 20),
        (EXTENDED_REPLY_MAGIC, Framing::Extended) => (extended(reader), 32),
        _ => return Err(unframed(magic, framing)),
    };
    Ok(header.map_or(Decoded::Need, |header| Decoded::Header(header, length)))
}

#[cold]
fn unframed(magic: u32, agreed: Framing) -> Violation {
    let got = match magic {
        SIMPLE_REPLY_MAGIC => Framing::Simple,
        STRUCTURED_REPLY_MAGIC => Framing::Structured,
        _ => return Violation::ReplyMagic(magic),
    };
    match agreed {
        Framing::Extended => Violation::Framing { got, agreed },
        Framing::Simple | Framing::Structured => Violation::ReplyMagic(magic),
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

fn extended(mut reader: Reader<'_>) -> Option<Header> {
    let flags = ChunkFlags::from_bits_truncate(reader.u16()?);
    let kind = ChunkType(reader.u16()?);
    let cookie = Cookie(reader.u64()?);
    let offset = reader.u64()?;
    let length = reader.u64()?;
    Some(Header::Extended {
        cookie,
        flags,
        kind,
        offset,
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
        assert_eq!(
            decode(&bytes, Framing::Structured),
            Ok(Decoded::Header(header, 16))
        );
        assert_eq!(decode(&bytes[..3], Framing::Structured), Ok(Decoded::Need));
        assert_eq!(decode(&bytes[..15], Framing::Structured), Ok(Decoded::Need));
    }

    #[test]
    fn a_chunk_is_a_violation_unless_agreed() {
        let bytes = Writer::default().u32(STRUCTURED_REPLY_MAGIC).finish();
        assert_eq!(decode(&bytes, Framing::Structured), Ok(Decoded::Need));
        assert_eq!(
            decode(&bytes, Framing::Simple),
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
        assert_eq!(
            decode(&bytes, Framing::Structured),
            Ok(Decoded::Header(header, 20))
        );
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

    #[test]
    fn an_extended_chunk_is_all_there_is_where_headers_are_extended() {
        let bytes = Writer::default()
            .u32(EXTENDED_REPLY_MAGIC)
            .u16(0xfffe)
            .u16(6)
            .u64(9)
            .u64(1 << 40)
            .u64(1 << 33)
            .finish();
        let header = Header::Extended {
            cookie: Cookie(9),
            flags: ChunkFlags::empty(),
            kind: ChunkType::BLOCK_STATUS_EXT,
            offset: 1 << 40,
            length: 1 << 33,
        };
        let decoded = decode(&bytes, Framing::Extended);
        assert_eq!(decoded, Ok(Decoded::Header(header, 32)));
        for short in [3, 4, 16, 20, 31] {
            assert_eq!(
                decode(&bytes[..short], Framing::Extended),
                Ok(Decoded::Need)
            );
        }
        assert_eq!(
            header.to_string(),
            "reply to cookie 0x9: NBD_REPLY_TYPE_BLOCK_STATUS_EXT, 8589934592 bytes"
        );
        for agreed in [Framing::Simple, Framing::Structured] {
            let magic = Violation::ReplyMagic(EXTENDED_REPLY_MAGIC);
            assert_eq!(decode(&bytes, agreed), Err(magic));
        }
    }

    #[test]
    fn other_headers_are_told_by_their_first_four_bytes() {
        let agreed = Framing::Extended;
        for (magic, got) in [
            (SIMPLE_REPLY_MAGIC, Framing::Simple),
            (STRUCTURED_REPLY_MAGIC, Framing::Structured),
        ] {
            let violation = Violation::Framing { got, agreed };
            assert_eq!(decode(&magic.to_be_bytes(), agreed), Err(violation));
        }
        let nobodys = decode(&[0; 4], agreed);
        assert_eq!(nobodys, Err(Violation::ReplyMagic(0)));
    }

    fn any_framing() -> impl Strategy<Value = Framing> {
        prop::sample::select(vec![
            Framing::Simple,
            Framing::Structured,
            Framing::Extended,
        ])
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..48), framing in any_framing()) {
            if let Ok(Decoded::Header(_, used)) = decode(&bytes, framing) {
                prop_assert!(used <= bytes.len());
            }
        }

        /// The right magic first, or else random bytes hardly ever have a header behind it.
        #[test]
        fn an_extended_header_is_read_field_by_field(
            flags: u16, kind: u16, cookie: u64, offset: u64, length: u64, tail: [u8; 8],
        ) {
            let bytes = Writer::default()
                .u32(EXTENDED_REPLY_MAGIC)
                .u16(flags)
                .u16(kind)
                .u64(cookie)
                .u64(offset)
                .u64(length)
                .bytes(&tail)
                .finish();
            let header = Header::Extended {
                cookie: Cookie(cookie),
                flags: ChunkFlags::from_bits_truncate(flags),
                kind: ChunkType(kind),
                offset,
                length,
            };
            prop_assert_eq!(decode(&bytes, Framing::Extended), Ok(Decoded::Header(header, 32)));
        }
    }
}
