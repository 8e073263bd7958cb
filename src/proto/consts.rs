// SPDX-License-Identifier: BSD-3-Clause
//! The numbers of the NBD protocol, under the names the specification gives them.
//!
//! Open code spaces (options, replies, chunks, errors) are newtypes rather than enums: a code that
//! nobody knows yet survives, compares and prints. Bit sets keep unknown bits only where the
//! caller asks for them.

use std::fmt;

use bitflags::bitflags;

/// First eight bytes of both handshake styles, "NBDMAGIC".
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle greeting and the first of every option request, "IHAVEOPT".
pub const NEWSTYLE_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second eight bytes of an oldstyle greeting.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First eight bytes of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First four bytes of a request with compact headers.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First four bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First four bytes of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First four bytes of a request with extended headers.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First four bytes of a structured reply chunk with extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Zero bytes that follow the flags of an oldstyle greeting, and of an `NBD_OPT_EXPORT_NAME`
/// answer where `NBD_FLAG_C_NO_ZEROES` was not agreed.
pub const PADDING: usize = 124;
// spec: Conventions: MUST: no string of more than 4096 bytes
/// Longest string that the protocol allows, in bytes.
pub const MAX_STRING: usize = 4096;
/// Most bytes of a text from a server that a message quotes.
pub const MAX_TEXT: usize = 200;
// spec: Size constraints: SHOULD: 32 MiB at most where the server names no maximum
/// Largest payload of a request or reply that may be assumed where the server advertises none.
pub const DEFAULT_MAX_PAYLOAD: u32 = 32 * 1024 * 1024;
/// Largest export size that nbdkit, and nearly every host, can express.
pub const MAX_EXPORT_SIZE: u64 = i64::MAX as u64;

// spec: Option types: MUST: a query for contexts begins with a namespace and a colon
/// The one metadata context that this client asks for.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Defines a newtype over a wire code, its constants, and how known and unknown codes print.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($int:ty), $unknown:literal, { $($(#[$cdoc:meta])* $konst:ident = $value:literal => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$cdoc])* pub const $konst: Self = Self($value);)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str($text),)*
                    other => write!(f, concat!($unknown, "(0x{:x})"), other),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

codes! {
    /// What the client asks for during option haggling.
    OptionType(u32), "NBD_OPT_?", {
        /// Enter transmission with this export; refusal is a closed connection.
        EXPORT_NAME = 1 => "NBD_OPT_EXPORT_NAME",
        /// Leave without entering transmission.
        ABORT = 2 => "NBD_OPT_ABORT",
        /// Name the exports.
        LIST = 3 => "NBD_OPT_LIST",
        /// Switch to TLS.
        STARTTLS = 5 => "NBD_OPT_STARTTLS",
        /// Describe an export.
        INFO = 6 => "NBD_OPT_INFO",
        /// Describe an export and enter transmission with it.
        GO = 7 => "NBD_OPT_GO",
        /// Allow structured replies.
        STRUCTURED_REPLY = 8 => "NBD_OPT_STRUCTURED_REPLY",
        /// Name the metadata contexts of an export.
        LIST_META_CONTEXT = 9 => "NBD_OPT_LIST_META_CONTEXT",
        /// Choose the metadata contexts that block status will report.
        SET_META_CONTEXT = 10 => "NBD_OPT_SET_META_CONTEXT",
        /// Allow 64-bit lengths.
        EXTENDED_HEADERS = 11 => "NBD_OPT_EXTENDED_HEADERS",
    }
}

codes! {
    /// How the server answers an option; bit 31 marks an error.
    OptionReply(u32), "NBD_REP_?", {
        /// Done.
        ACK = 1 => "NBD_REP_ACK",
        /// One export of a list.
        SERVER = 2 => "NBD_REP_SERVER",
        /// One fact about an export.
        INFO = 3 => "NBD_REP_INFO",
        /// One metadata context.
        META_CONTEXT = 4 => "NBD_REP_META_CONTEXT",
        /// The option is unknown to the server.
        ERR_UNSUP = 0x8000_0001 => "NBD_REP_ERR_UNSUP",
        /// The server's policy forbids it.
        ERR_POLICY = 0x8000_0002 => "NBD_REP_ERR_POLICY",
        /// The request was malformed or came out of order.
        ERR_INVALID = 0x8000_0003 => "NBD_REP_ERR_INVALID",
        /// The server's platform cannot do it.
        ERR_PLATFORM = 0x8000_0004 => "NBD_REP_ERR_PLATFORM",
        /// Nothing, or not this export, without TLS.
        ERR_TLS_REQD = 0x8000_0005 => "NBD_REP_ERR_TLS_REQD",
        /// No such export.
        ERR_UNKNOWN = 0x8000_0006 => "NBD_REP_ERR_UNKNOWN",
        /// The server is going away.
        ERR_SHUTDOWN = 0x8000_0007 => "NBD_REP_ERR_SHUTDOWN",
        /// The export needs a client that asks for block sizes.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008 => "NBD_REP_ERR_BLOCK_SIZE_REQD",
        /// The request or its answer is too large.
        ERR_TOO_BIG = 0x8000_0009 => "NBD_REP_ERR_TOO_BIG",
        /// The export needs extended headers.
        ERR_EXT_HEADER_REQD = 0x8000_000a => "NBD_REP_ERR_EXT_HEADER_REQD",
    }
}

impl OptionReply {
    /// Whether this reply ends the option without success.
    pub fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

codes! {
    /// What an `NBD_REP_INFO` reply tells.
    InfoType(u16), "NBD_INFO_?", {
        /// Size and transmission flags.
        EXPORT = 0 => "NBD_INFO_EXPORT",
        /// The canonical name.
        NAME = 1 => "NBD_INFO_NAME",
        /// A description for people.
        DESCRIPTION = 2 => "NBD_INFO_DESCRIPTION",
        /// Minimum, preferred and maximum block size.
        BLOCK_SIZE = 3 => "NBD_INFO_BLOCK_SIZE",
    }
}

codes! {
    /// What a request asks of the server.
    Command(u16), "NBD_CMD_?", {
        /// Read bytes.
        READ = 0 => "NBD_CMD_READ",
        /// Write bytes.
        WRITE = 1 => "NBD_CMD_WRITE",
        // spec: Request types: MUST: offset and length of NBD_CMD_DISC are zero
        /// Disconnect; has no reply.
        DISC = 2 => "NBD_CMD_DISC",
        // spec: Request types: MUST: offset and length of NBD_CMD_FLUSH are zero
        /// Make every answered write permanent.
        FLUSH = 3 => "NBD_CMD_FLUSH",
        /// The bytes are no longer needed.
        TRIM = 4 => "NBD_CMD_TRIM",
        /// The bytes will be needed soon.
        CACHE = 5 => "NBD_CMD_CACHE",
        /// Make the bytes zero.
        WRITE_ZEROES = 6 => "NBD_CMD_WRITE_ZEROES",
        /// Report metadata of a range.
        BLOCK_STATUS = 7 => "NBD_CMD_BLOCK_STATUS",
    }
}

codes! {
    /// What a structured reply chunk carries; bit 15 marks an error.
    ChunkType(u16), "NBD_REPLY_TYPE_?", {
        /// Nothing: ends a reply.
        NONE = 0 => "NBD_REPLY_TYPE_NONE",
        /// Bytes of a read.
        OFFSET_DATA = 1 => "NBD_REPLY_TYPE_OFFSET_DATA",
        /// A range of a read that is all zero.
        OFFSET_HOLE = 2 => "NBD_REPLY_TYPE_OFFSET_HOLE",
        /// Block descriptors of one metadata context.
        BLOCK_STATUS = 5 => "NBD_REPLY_TYPE_BLOCK_STATUS",
        /// The same in 64 bits each, with extended headers.
        BLOCK_STATUS_EXT = 6 => "NBD_REPLY_TYPE_BLOCK_STATUS_EXT",
        /// The request failed.
        ERROR = 0x8001 => "NBD_REPLY_TYPE_ERROR",
        /// The request failed at an offset.
        ERROR_OFFSET = 0x8002 => "NBD_REPLY_TYPE_ERROR_OFFSET",
    }
}

impl ChunkType {
    /// Whether this chunk says that the request failed.
    pub fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

bitflags! {
    /// Handshake flags: what the server offers after a newstyle greeting. The client answers with
    /// the same bits in 32.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Options other than `NBD_OPT_EXPORT_NAME` may be sent.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The answer to `NBD_OPT_EXPORT_NAME` is not padded.
        const NO_ZEROES = 1 << 1;
    }
}

bitflags! {
    /// Transmission flags: what an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// The other bits mean something.
        const HAS_FLAGS = 1 << 0;
        /// Nothing may be written.
        const READ_ONLY = 1 << 1;
        // spec: Request types: MUST NOT: no NBD_CMD_FLUSH unless NBD_FLAG_SEND_FLUSH
        /// `NBD_CMD_FLUSH` is there.
        const SEND_FLUSH = 1 << 2;
        /// `NBD_CMD_FLAG_FUA` is there.
        const SEND_FUA = 1 << 3;
        /// The medium prefers sequential access.
        const ROTATIONAL = 1 << 4;
        // spec: Request types: MUST NOT: no NBD_CMD_TRIM unless NBD_FLAG_SEND_TRIM
        /// `NBD_CMD_TRIM` is there.
        const SEND_TRIM = 1 << 5;
        // spec: Request types: MUST NOT: no NBD_CMD_WRITE_ZEROES unless NBD_FLAG_SEND_WRITE_ZEROES
        /// `NBD_CMD_WRITE_ZEROES` is there.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// `NBD_CMD_FLAG_DF` is there.
        const SEND_DF = 1 << 7;
        // spec: Transmission flags: SHOULD NOT: one client uses one connection without NBD_FLAG_CAN_MULTI_CONN
        /// A flush on one connection covers the writes of all.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_CMD_CACHE` is there.
        const SEND_CACHE = 1 << 10;
        // spec: Transmission flags: MUST NOT: no NBD_CMD_FLAG_FAST_ZERO unless NBD_FLAG_SEND_FAST_ZERO
        // spec: Request types: MUST NOT: no NBD_CMD_FLAG_FAST_ZERO unless NBD_FLAG_SEND_FAST_ZERO
        /// `NBD_CMD_FLAG_FAST_ZERO` is there.
        const SEND_FAST_ZERO = 1 << 11;
    }
}

/// Each behind a comma, as they follow the size in messages.
impl fmt::Display for TransmissionFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter_names()
            .try_for_each(|(name, _)| write!(f, ", NBD_FLAG_{name}"))
    }
}

bitflags! {
    /// Flags of one request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        // spec: Command flags: SHOULD NOT: NBD_CMD_FLAG_FUA only with what writes
        /// Answer only when the data is permanent.
        const FUA = 1 << 0;
        // spec: Command flags: SHOULD: NBD_CMD_FLAG_NO_HOLE where no hole is wanted
        /// Zeroes must stay allocated.
        const NO_HOLE = 1 << 1;
        /// One data chunk only.
        const DF = 1 << 2;
        /// One block descriptor only.
        const REQ_ONE = 1 << 3;
        // spec: Command flags: MUST NOT: no NBD_CMD_FLAG_FAST_ZERO unless the server has it
        /// Fail rather than write zeroes slowly.
        const FAST_ZERO = 1 << 4;
        // spec: Request message: MUST NOT: no NBD_CMD_FLAG_PAYLOAD_LEN in a compact header
        /// The length is that of a payload. Set by the encoding, never by who asks.
        const PAYLOAD_LEN = 1 << 5;
    }
}

/// Each behind a comma, as they follow the request in messages.
impl fmt::Display for CommandFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter_names()
            .try_for_each(|(name, _)| write!(f, ", NBD_CMD_FLAG_{name}"))
    }
}

bitflags! {
    /// Flags of one structured reply chunk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ChunkFlags: u16 {
        /// This is the last chunk of its reply.
        const DONE = 1 << 0;
    }
}

bitflags! {
    /// Status of a block in the `base:allocation` context.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Allocation: u32 {
        /// Not allocated.
        const HOLE = 1 << 0;
        /// Reads as zero.
        const ZERO = 1 << 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_print_their_specification_name() {
        assert_eq!(OptionType::GO.to_string(), "NBD_OPT_GO");
        assert_eq!(OptionReply::ERR_UNKNOWN.to_string(), "NBD_REP_ERR_UNKNOWN");
    }

    #[test]
    fn unknown_codes_survive_and_print_their_number() {
        assert_eq!(OptionType(0x2a).to_string(), "NBD_OPT_?(0x2a)");
        assert_eq!(ChunkType(0xffff).to_string(), "NBD_REPLY_TYPE_?(0xffff)");
        assert!(ChunkType(0xffff).is_error());
        assert!(!ChunkType(0x7fff).is_error());
    }
}
