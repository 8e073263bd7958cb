// SPDX-License-Identifier: BSD-3-Clause
//! Requests: what one asks, and its 28 bytes ("Request message", compact headers).

use std::fmt;

use super::codec::Writer;
use super::consts::{Command, CommandFlags, REQUEST_MAGIC};

/// Length of a request header, bytes.
pub const REQUEST_LENGTH: usize = 28;

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
    /// How much, bytes.
    pub length: u32,
}

impl Request {
    /// A request without flags.
    pub fn new(command: Command, offset: u64, length: u32) -> Self {
        Self {
            command,
            flags: CommandFlags::empty(),
            offset,
            length,
        }
    }

    // spec: Command flags: MUST NOT: no flag that the command does not have
    /// The same request with flags.
    pub fn with(self, flags: CommandFlags) -> Self {
        Self { flags, ..self }
    }

    // spec: Request types: MUST: the header of a write is followed by so many bytes
    /// The header to send. A write is followed by its payload.
    pub fn encode(&self, cookie: Cookie) -> [u8; REQUEST_LENGTH] {
        let mut header = [0; REQUEST_LENGTH];
        let fields: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.bits().to_be_bytes(),
            &self.command.0.to_be_bytes(),
            &cookie.0.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        let mut rest = header.as_mut_slice();
        for field in fields {
            if let Some((head, tail)) = std::mem::take(&mut rest).split_at_mut_checked(field.len())
            {
                head.copy_from_slice(field);
                rest = tail;
            }
        }
        header
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

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        let header = Request::new(Command::WRITE_ZEROES, 0x0102_0304_0506_0708, 0x1112_1314)
            .with(CommandFlags::FUA | CommandFlags::FAST_ZERO)
            .encode(Cookie(0x2122_2324_2526_2728));
        let mut reader = Reader::new(&header);
        assert_eq!(reader.u32(), Some(0x2560_9513));
        assert_eq!(reader.u16(), Some(0b1_0001));
        assert_eq!(reader.u16(), Some(6));
        assert_eq!(reader.u64(), Some(0x2122_2324_2526_2728));
        assert_eq!(reader.u64(), Some(0x0102_0304_0506_0708));
        assert_eq!(reader.u32(), Some(0x1112_1314));
        assert!(reader.rest().is_empty());
    }
}
