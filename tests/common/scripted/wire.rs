// SPDX-License-Identifier: BSD-3-Clause
//! The protocol's numbers and messages, written down a second time and independently of the plugin, so that
//! a mistake in `src/proto` does not cancel itself out. All integers are big-endian.

pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const NEWSTYLE_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;
/// Values that the specification sets aside and no message may ever start with.
pub const RESERVED_MAGICS: [u32; 3] = [0x1256_0953, 0x9674_4668, 0x2560_9514];

pub const FIXED_NEWSTYLE: u16 = 1;
pub const NO_ZEROES: u16 = 2;

/// Option codes.
pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_PLATFORM: u32 = 0x8000_0004;
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub const ERR_BLOCK_SIZE_REQD: u32 = 0x8000_0008;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
    pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;
    pub const IS_ERROR: u32 = 0x8000_0000;
}

/// Types of information in the replies to GO.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export offers.
pub mod flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const ROTATIONAL: u16 = 1 << 4;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
pub mod cmd_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunk types of structured replies.
pub mod chunk_type {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = 0x8001;
    pub const ERROR_OFFSET: u16 = 0x8002;
}

/// The chunk flag that ends a reply.
pub const DONE: u16 = 1;
/// More chunks of this reply follow.
pub const MORE: u16 = 0;

/// Error values on the wire.
pub mod errno {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// Status bits of `base:allocation`.
pub const STATE_HOLE: u32 = 1;
pub const STATE_ZERO: u32 = 2;

/// Strings end here by the specification.
pub const MAX_STRING: usize = 4096;

/// Joins the parts of a message.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("test messages are small")
}

/// The first 18 bytes of a newstyle server.
pub fn greeting(handshake_flags: u16) -> Vec<u8> {
    join(&[
        &INIT_MAGIC.to_be_bytes(),
        &NEWSTYLE_MAGIC.to_be_bytes(),
        &handshake_flags.to_be_bytes(),
    ])
}

/// The 152 bytes of an oldstyle server.
pub fn oldstyle_greeting(size: u64, flags: u32, padding: u8) -> Vec<u8> {
    join(&[
        &INIT_MAGIC.to_be_bytes(),
        &OLDSTYLE_MAGIC.to_be_bytes(),
        &size.to_be_bytes(),
        &flags.to_be_bytes(),
        &[padding; 124],
    ])
}

pub fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    join(&[&option_reply_header(option, kind, length(payload)), payload])
}

pub fn option_reply_header(option: u32, kind: u32, length: u32) -> Vec<u8> {
    join(&[
        &OPTION_REPLY_MAGIC.to_be_bytes(),
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &length.to_be_bytes(),
    ])
}

/// The payload of an INFO reply.
pub fn info_payload(kind: u16, content: &[u8]) -> Vec<u8> {
    join(&[&kind.to_be_bytes(), content])
}

pub fn info_export(size: u64, flags: u16) -> Vec<u8> {
    join(&[
        &info::EXPORT.to_be_bytes(),
        &size.to_be_bytes(),
        &flags.to_be_bytes(),
    ])
}

pub fn info_block_size((minimum, preferred, maximum): (u32, u32, u32)) -> Vec<u8> {
    join(&[
        &info::BLOCK_SIZE.to_be_bytes(),
        &minimum.to_be_bytes(),
        &preferred.to_be_bytes(),
        &maximum.to_be_bytes(),
    ])
}

/// The payload of a META_CONTEXT reply.
pub fn context(id: u32, name: &str) -> Vec<u8> {
    join(&[&id.to_be_bytes(), name.as_bytes()])
}

pub fn simple(cookie: u64, error: u32) -> Vec<u8> {
    simple_with_magic(SIMPLE_MAGIC, cookie, error)
}

pub fn simple_with_magic(magic: u32, cookie: u64, error: u32) -> Vec<u8> {
    join(&[
        &magic.to_be_bytes(),
        &error.to_be_bytes(),
        &cookie.to_be_bytes(),
    ])
}

pub fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    join(&[&chunk_header(flags, kind, cookie, length(payload)), payload])
}

pub fn chunk_header(flags: u16, kind: u16, cookie: u64, length: u32) -> Vec<u8> {
    join(&[
        &CHUNK_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ])
}

/// Success, and the end of the reply.
pub fn none(cookie: u64) -> Vec<u8> {
    chunk(DONE, chunk_type::NONE, cookie, &[])
}

pub fn data(flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(
        flags,
        chunk_type::OFFSET_DATA,
        cookie,
        &join(&[&offset.to_be_bytes(), bytes]),
    )
}

pub fn hole(flags: u16, cookie: u64, offset: u64, size: u32) -> Vec<u8> {
    chunk(
        flags,
        chunk_type::OFFSET_HOLE,
        cookie,
        &join(&[&offset.to_be_bytes(), &size.to_be_bytes()]),
    )
}

/// What every error chunk starts with.
pub fn error_payload(error: u32, text: &[u8]) -> Vec<u8> {
    let text_length = u16::try_from(text.len()).expect("test texts are short");
    join(&[&error.to_be_bytes(), &text_length.to_be_bytes(), text])
}

pub fn error(flags: u16, cookie: u64, error: u32, text: &[u8]) -> Vec<u8> {
    chunk(
        flags,
        chunk_type::ERROR,
        cookie,
        &error_payload(error, text),
    )
}

pub fn error_at(flags: u16, cookie: u64, error: u32, text: &[u8], offset: u64) -> Vec<u8> {
    let payload = join(&[&error_payload(error, text), &offset.to_be_bytes()]);
    chunk(flags, chunk_type::ERROR_OFFSET, cookie, &payload)
}

/// A block status chunk of context `id`; each extent is its length and its status.
pub fn status(flags: u16, cookie: u64, id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    for (length, status) in extents {
        payload.extend(length.to_be_bytes());
        payload.extend(status.to_be_bytes());
    }
    chunk(flags, chunk_type::BLOCK_STATUS, cookie, &payload)
}

pub fn extended_header(flags: u16, kind: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    join(&[
        &EXTENDED_CHUNK_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ])
}

/// A chunk with an extended header, in reply to a request for `offset`.
pub fn extended_chunk(flags: u16, kind: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let length = u64::from(length(payload));
    join(&[
        &extended_header(flags, kind, cookie, offset, length),
        payload,
    ])
}

/// The payload of an extended block status chunk, of a number of descriptors that may be a lie.
pub fn extended_status(id: u32, count: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let mut payload = join(&[&id.to_be_bytes(), &count.to_be_bytes()]);
    for (length, status) in extents {
        payload.extend(length.to_be_bytes());
        payload.extend(status.to_be_bytes());
    }
    payload
}

/// Replies to a request for `offset` as a server says the same with extended headers: chunks, the last of which
/// may be cut, and simple replies without data. `None` if they are anything else.
pub fn extended(replies: &[u8], offset: u64) -> Option<Vec<u8>> {
    let mut rest = Fields(replies);
    let mut wide = Vec::new();
    while !rest.0.is_empty() {
        if rest.0.len() < 16 {
            return None;
        }
        match rest.u32() {
            SIMPLE_MAGIC => {
                let (error, cookie) = (rest.u32(), rest.u64());
                wide.extend(match error {
                    0 => extended_chunk(DONE, chunk_type::NONE, cookie, offset, &[]),
                    _ => {
                        let payload = error_payload(error, b"");
                        extended_chunk(DONE, chunk_type::ERROR, cookie, offset, &payload)
                    }
                });
            }
            CHUNK_MAGIC if rest.0.len() >= 16 => {
                let (flags, kind) = (rest.u16(), rest.u16());
                if kind == chunk_type::BLOCK_STATUS_EXT {
                    return None;
                }
                let (cookie, length) = (rest.u64(), rest.u32());
                let payload = rest.bytes(rest.0.len().min(length as usize));
                if kind == chunk_type::BLOCK_STATUS && length % 8 == 4 {
                    let mut fields = Fields(payload);
                    let (id, count) = (fields.u32(), length / 8);
                    let extents: Vec<_> = (0..count)
                        .map(|_| (u64::from(fields.u32()), u64::from(fields.u32())))
                        .collect();
                    let payload = extended_status(id, count, &extents);
                    let kind = chunk_type::BLOCK_STATUS_EXT;
                    wide.extend(extended_chunk(flags, kind, cookie, offset, &payload));
                } else {
                    let length = u64::from(length);
                    wide.extend(extended_header(flags, kind, cookie, offset, length));
                    wide.extend(payload);
                }
            }
            _ => return None,
        }
    }
    Some(wide)
}

/// Takes big-endian integers and byte strings off the front of a message.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        assert!(
            count <= self.0.len(),
            "message too short: wanted {count} more bytes, have {}",
            self.0.len()
        );
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().expect("two bytes"))
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().expect("four bytes"))
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().expect("eight bytes"))
    }

    /// A name with its 32-bit length in front. Nearly all of them are text.
    pub fn name(&mut self) -> Vec<u8> {
        let length = self.u32() as usize;
        assert!(length <= MAX_STRING, "string of {length} bytes");
        self.bytes(length).to_vec()
    }

    /// A string with its 32-bit length in front.
    pub fn string(&mut self) -> String {
        String::from_utf8(self.name()).expect("text is UTF-8")
    }

    /// Nothing may be left over.
    pub fn end(&self) {
        assert!(
            self.0.is_empty(),
            "{} bytes too many in a message",
            self.0.len()
        );
    }
}

/// A client's goodbye.
pub fn disconnect() -> Vec<u8> {
    join(&[
        &REQUEST_MAGIC.to_be_bytes(),
        &0u16.to_be_bytes(),
        &cmd::DISC.to_be_bytes(),
        &[0; 20],
    ])
}
