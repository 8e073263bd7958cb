// SPDX-License-Identifier: BSD-3-Clause
//! The NBD protocol as pure logic: bytes in, decisions out.
//!
//! Nothing here knows a socket, a thread, a clock or an allocation that a length field of the
//! server's could stretch. Names are the specification's
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

#![deny(clippy::indexing_slicing)]

use std::fmt;

// spec: Baseline: MUST: no TLS, fixed newstyle, NBD_OPT_INFO, GO, ABORT and LIST
// spec: Baseline: MUST: simple replies, NBD_CMD_READ, WRITE and DISC
// spec: Baseline: MUST: everything else is negotiated first
pub mod chunks;
pub mod codec;
pub mod consts;
pub mod context;
pub mod coverage;
pub mod errno;
pub mod export;
pub mod framing;
pub mod handshake;
pub mod ladder;
pub mod name;
pub mod reply;
pub mod request;

use self::codec::quoted;
use self::consts::{ChunkType, Command, OptionReply, OptionType};
use self::errno::NbdErrno;
use self::framing::Framing;
use self::name::ExportName;

/// The server broke the protocol in a way that leaves what follows on the connection without a
/// known meaning, so that it cannot be used any further. See [`Fault`] for what one request can
/// carry alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The first bytes are not NBD's.
    #[error("not an NBD server ({})", stranger(*.0))]
    NotNbd(u64),
    /// The greeting is of no known style.
    #[error("unknown handshake style 0x{0:016x}")]
    Style(u64),
    /// An option reply does not start as one.
    #[error("reply to {option}: wrong magic 0x{got:016x}")]
    OptionMagic {
        /// What was asked.
        option: OptionType,
        /// What came.
        got: u64,
    },
    /// An option reply answers another option.
    #[error("reply to {option}: the server answered {got} instead")]
    OptionEcho {
        /// What was asked.
        option: OptionType,
        /// What was answered.
        got: OptionType,
    },
    /// An option reply is of a type that the option cannot have.
    #[error("reply to {option}: unexpected {got}")]
    OptionReply {
        /// What was asked.
        option: OptionType,
        /// What came.
        got: OptionReply,
    },
    /// An option reply has a length that its type cannot have.
    #[error("reply to {option}: {got} with a payload of {length} bytes")]
    OptionLength {
        /// What was asked.
        option: OptionType,
        /// What came.
        got: OptionReply,
        /// Its length, bytes.
        length: u32,
    },
    /// The server does not stop replying to one option.
    #[error("reply to {0}: too many replies")]
    OptionFlood(OptionType),
    /// Facts about the export are missing or contradict each other.
    #[error("reply to {0}: {1}")]
    OptionContent(OptionType, &'static str),
    /// The export is larger than a signed 64-bit size.
    #[error("export size {0} is above 2^63-1")]
    Size(u64),
    /// A reply starts with bytes that no reply starts with.
    #[error("reply with wrong magic 0x{0:08x}")]
    ReplyMagic(u32),
    /// A reply that is framed as was not agreed.
    #[error(
        "a message of {got} although {agreed} were agreed (quirks=no-extended does without them)"
    )]
    Framing {
        /// How the message is framed.
        got: Framing,
        /// How it should be.
        agreed: Framing,
    },
    /// A reply repeats another offset than that of its request.
    #[error("{command}: the reply is about offset {got} instead of {wanted}")]
    Offset {
        /// The request's command.
        command: Command,
        /// The request's offset.
        wanted: u64,
        /// What came.
        got: u64,
    },
    /// A reply answers a request that is not in flight.
    #[error("reply with unknown cookie 0x{0:016x}")]
    Cookie(u64),
    /// Simple success for a read although structured replies were agreed: whether data follow is
    /// anybody's guess.
    #[error("simple reply to NBD_CMD_READ although structured replies were agreed")]
    SimpleRead,
    /// A chunk that claims to be longer than any can be.
    #[error("{command}: {chunk} with a payload of {length} bytes")]
    ChunkLength {
        /// The request's command.
        command: Command,
        /// The chunk that came.
        chunk: ChunkType,
        /// Its length, bytes.
        length: u64,
    },
    /// Chunk after chunk that is no answer.
    #[error("{0}: a reply without end")]
    Endless(Command),
    /// A step of a reply that does not fit the request's buffer or the bytes at hand. The reply
    /// machine rules it out; should it happen, nothing is touched.
    #[error("{0}: a reply that does not fit the request")]
    Misfit(Command),
}

/// Who greets with these eight bytes.
fn stranger(greeting: u64) -> String {
    let bytes = greeting.to_be_bytes();
    if bytes.starts_with(b"SSH-") {
        "this is an SSH server".to_owned()
    } else if bytes.starts_with(b"HTTP/") {
        "this is a web server".to_owned()
    } else {
        format!("it sent 0x{greeting:016x} instead of NBDMAGIC")
    }
}

/// What is wrong inside of a reply whose framing is certain: one request fails, the connection
/// lives on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A chunk of a type that is unknown, or that the command cannot have.
    #[error("unexpected chunk {0}")]
    Chunk(ChunkType),
    /// A status chunk of another number of descriptors than it says.
    #[error("{chunk} of {told} descriptors with room for {room}", chunk = ChunkType::BLOCK_STATUS_EXT)]
    Count {
        /// How many it says there are.
        told: u32,
        /// How many there are.
        room: u32,
    },
    /// A chunk of a length that its type cannot have.
    #[error("{chunk} with a payload of {length} bytes")]
    Length {
        /// The chunk that came.
        chunk: ChunkType,
        /// Its length, bytes.
        length: u32,
    },
    /// `NBD_REPLY_TYPE_NONE` that does not end its reply.
    #[error("NBD_REPLY_TYPE_NONE without NBD_REPLY_FLAG_DONE")]
    NotDone,
    /// Read data or a hole outside the requested range.
    #[error("{chunk} at offset {offset}, length {length}, is outside the request")]
    OutOfRange {
        /// The chunk that came.
        chunk: ChunkType,
        /// Where the chunk claims to be, bytes from the start of the export.
        offset: u64,
        /// Its length, bytes.
        length: u32,
    },
    /// Read data or a hole for bytes that were already answered.
    #[error("the bytes at offset {0} were answered twice")]
    Overlap(u64),
    /// A block descriptor of no length, where others do not cover the range.
    #[error("block descriptor of length 0")]
    EmptyDescriptor,
    /// Two status chunks for one metadata context.
    #[error("context {0} was answered twice")]
    RepeatedContext(u32),
}

/// The server declined an option, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("server refused {option}: {}", self.reason())]
pub struct Refusal {
    /// What was asked.
    pub option: OptionType,
    /// How the server put it.
    pub reply: OptionReply,
    /// The server's text, already made printable; may be empty.
    pub text: String,
    /// The export that was asked for.
    pub export: ExportName,
    /// Whether it was asked under TLS.
    pub protected: bool,
    /// Whether it was asked after extended headers were agreed.
    pub extended: bool,
}

impl Refusal {
    /// What the reply means, and the server's own text where it sent one.
    fn reason(&self) -> String {
        let meaning = match self.reply {
            OptionReply::ERR_UNKNOWN => format!("no export named \"{}\"", self.export),
            OptionReply::ERR_TLS_REQD if self.protected => {
                "it insists on TLS, which the connection has".to_owned()
            }
            OptionReply::ERR_TLS_REQD => {
                const ADVICE: &str = "it insists on TLS (use tls=require)";
                match self.option {
                    // What it hides from us may as well be nothing.
                    OptionType::GO | OptionType::INFO => {
                        format!("{ADVICE}, or has no export named \"{}\"", self.export)
                    }
                    _ => ADVICE.to_owned(),
                }
            }
            OptionReply::ERR_POLICY => "forbidden by the server's policy".to_owned(),
            OptionReply::ERR_SHUTDOWN => "the server is shutting down".to_owned(),
            OptionReply::ERR_UNSUP if self.extended => {
                "the server does not know it, although it agreed to extended headers \
                 (quirks=no-extended)"
                    .to_owned()
            }
            OptionReply::ERR_UNSUP => "the server does not know it".to_owned(),
            OptionReply::ERR_EXT_HEADER_REQD => "the export needs extended headers".to_owned(),
            other => other.to_string(),
        };
        if self.text.is_empty() {
            meaning
        } else {
            format!("{meaning} ({})", self.text)
        }
    }
}

/// One request failed; the connection is healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The server said so.
    Server {
        /// The error number.
        errno: NbdErrno,
        /// The server's text, already made printable; may be empty.
        text: String,
    },
    /// A read ended without every byte having been answered.
    Incomplete {
        /// Bytes that were answered.
        got: u32,
        /// Bytes that were asked for.
        wanted: u32,
    },
    /// A status query ended without any status.
    NoStatus,
    /// It was not sent, as it is longer than the headers of this connection can say.
    TooLong,
    /// The reply came to its end, but was not in order.
    Malformed(Fault),
}

impl From<Fault> for WireError {
    fn from(fault: Fault) -> Self {
        Self::Malformed(fault)
    }
}

impl WireError {
    /// The server's own error, with its text as it came.
    pub(crate) fn server(errno: NbdErrno, text: &[u8]) -> Self {
        Self::Server {
            errno,
            text: quoted(text),
        }
    }

    /// This machine's error number for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Server { errno, .. } => errno.local(),
            Self::TooLong => libc::EINVAL,
            Self::Incomplete { .. } | Self::NoStatus | Self::Malformed(_) => libc::EIO,
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server { errno, text } if text.is_empty() => {
                write!(f, "server answered {errno}")
            }
            Self::Server { errno, text } => write!(f, "server answered {errno} ({text})"),
            Self::Incomplete { got, wanted } => {
                write!(f, "server answered only {got} of {wanted} bytes")
            }
            Self::NoStatus => f.write_str("server answered without a status"),
            Self::TooLong => f.write_str("the server has no extended headers"),
            Self::Malformed(fault) => write!(f, "the server's answer is wrong: {fault}"),
        }
    }
}
