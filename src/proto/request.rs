// SPDX-License-Identifier: BSD-3-Clause
//! Requests: what one asks, and its header ("Request message"): 28 bytes where it is compact, 32 where
//! extended headers were agreed.

use std::fmt;

use super::codec::Writer;
use super::consts::{Command, CommandFlags, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use super::framing::Framing;

/// Length of a compact request header, bytes. What an extended one has more is the lower half of the length.
const COMPACT_LENGTH: usize = 28;

// spec: Transmission: SHOULD: a cookie differs from all others in flight
/// Names a request in flight. Opaque to the server, which repeats it in every reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cookie 0x{:x}", self.0)
    }
}

/// One request, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// Where, bytes from the start of the export.
    pub offset: u64,
    // spec: Request types: SHOULD NOT: no length of 0 to read, write, trim, zero or ask about
    /// How much, bytes. What has a payload is below 4 GiB, with whatever headers.
    pub length: u64,
}

/// The header of a request, as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct RequestHeader {
    /// The fields, eight bytes each: the first three together, then one by one.
    words: [[u8; 8]; 4],
    extended: bool,
}

impl RequestHeader {
    /// What to send.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let all = self.words.as_flattened();
        let (compact, _) = all.split_at(COMPACT_LENGTH);
        if self.extended { all } else { compact }
    }
}

impl Request {
    /// A request without flags.
    pub fn new(command: Command, offset: u64, length: impl Into<u64>) -> Self {
        Self {
            command,
            flags: CommandFlags::empty(),
            offset,
            length: length.into(),
        }
    }

    // spec: Command flags: MUST NOT: no flag that the command does not have
    /// The same request with flags.
    pub fn with(self, flags: CommandFlags) -> Self {
        Self { flags, ..self }
    }

    /// Whether it is long enough to need extended headers.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.length > u32::MAX.into()
    }

    // spec: Request types: MUST: the header of a write is followed by so many bytes
    /// The header to send. A write is followed by its payload. What [is long](Self::is_long) needs
    /// [`Framing::Extended`].
    #[inline]
    pub fn encode(&self, cookie: Cookie, framing: Framing) -> RequestHeader {
        let extended = framing == Framing::Extended;
        debug_assert!(extended || !self.is_long());
        let mut flags = self.flags;
        // The length stands in front of what a compact header does not have.
        let (magic, length) = match extended {
            true => (EXTENDED_REQUEST_MAGIC, self.length),
            false => (REQUEST_MAGIC, self.length << 32),
        };
        if extended && self.command == Command::WRITE {
            // spec: Request message: MUST: NBD_CMD_WRITE with an extended header has NBD_CMD_FLAG_PAYLOAD_LEN
            // spec: Command flags: MUST: NBD_CMD_FLAG_PAYLOAD_LEN goes with a payload
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        let first =
            u64::from(magic) << 32 | u64::from(flags.bits()) << 16 | u64::from(self.command.0);
        let words = [first, cookie.0, self.offset, length];
        RequestHeader {
            words: words.map(u64::to_be_bytes),
            extended,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.command == Command::FLUSH || self.command == Command::DISC {
            return self.command.fmt(f);
        }
        write!(
            f,
            "{} of {} bytes at offset {}",
            self.command, self.length, self.offset
        )
    }
}

/// An option request: magic, option, length, data ("Fixed newstyle negotiation").
pub fn encode_option(option: super::consts::OptionType, data: &[u8]) -> Vec<u8> {
    // Option data is made of strings that were checked to be short.
    Writer::default()
        .u64(super::consts::NEWSTYLE_MAGIC)
        .u32(option.0)
        .u32(data.len() as u32)
        .bytes(data)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Reader;

    fn request(command: Command) -> Request {
        Request::new(command, 0x0102_0304_0506_0708, 0x1112_1314_u32)
    }

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        for framing in [Framing::Simple, Framing::Structured] {
            let header = request(Command::WRITE_ZEROES)
                .with(CommandFlags::FUA | CommandFlags::FAST_ZERO)
                .encode(Cookie(0x2122_2324_2526_2728), framing);
            let mut reader = Reader::new(header.bytes());
            assert_eq!(reader.u32(), Some(0x2560_9513));
            assert_eq!(reader.u16(), Some(0b1_0001));
            assert_eq!(reader.u16(), Some(6));
            assert_eq!(reader.u64(), Some(0x2122_2324_2526_2728));
            assert_eq!(reader.u64(), Some(0x0102_0304_0506_0708));
            assert_eq!(reader.u32(), Some(0x1112_1314));
            assert!(reader.rest().is_empty());
        }
    }

    #[test]
    fn an_extended_header_has_a_length_of_64_bits() {
        let header = Request::new(Command::TRIM, 0x0102_0304_0506_0708, 6_u64 << 32 | 5)
            .with(CommandFlags::FUA)
            .encode(Cookie(0x2122_2324_2526_2728), Framing::Extended);
        let mut reader = Reader::new(header.bytes());
        assert_eq!(reader.u32(), Some(0x21e4_1c71));
        assert_eq!(reader.u16(), Some(0b0_0001));
        assert_eq!(reader.u16(), Some(4));
        assert_eq!(reader.u64(), Some(0x2122_2324_2526_2728));
        assert_eq!(reader.u64(), Some(0x0102_0304_0506_0708));
        assert_eq!(reader.u64(), Some(6 << 32 | 5));
        assert!(reader.rest().is_empty());
    }

    #[test]
    fn the_length_of_a_payload_is_marked_where_headers_are_extended() {
        let flags = |command, framing| {
            let header = request(command).encode(Cookie(1), framing);
            let mut reader = Reader::new(header.bytes());
            reader.u32();
            reader.u16()
        };
        for command in (0..8).map(Command) {
            let marked = command == Command::WRITE;
            let expected = if marked { 1 << 5 } else { 0 };
            assert_eq!(
                flags(command, Framing::Extended),
                Some(expected),
                "{command}"
            );
            assert_eq!(flags(command, Framing::Structured), Some(0), "{command}");
        }
    }

    #[test]
    fn what_needs_more_than_32_bits_is_long() {
        let trim = |length: u64| Request::new(Command::TRIM, 0, length);
        assert!(!trim(u32::MAX.into()).is_long());
        assert!(trim(1 << 32).is_long());
    }
}
