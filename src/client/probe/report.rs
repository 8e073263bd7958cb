// SPDX-License-Identifier: BSD-3-Clause
//! What was found out about a server: facts, without a word of what to do with them.

use std::time::Duration;

use crate::client::error::Server;
use crate::proto::consts::{OptionReply, OptionType, TransmissionFlags};
use crate::proto::export::BlockSizes;
use crate::proto::handshake::{Listed, Style, TlsPolicy};
use crate::proto::name::ExportName;
use crate::transport::tls;

/// One server, as it showed itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where it is.
    pub server: Server,
    /// What lies between.
    pub reach: Reach,
    /// How it begins.
    pub style: Style,
    /// What the user wants of TLS.
    pub tls_policy: TlsPolicy,
    /// How the connection is protected, if it is.
    pub tls: Option<tls::Facts>,
    /// Whether it has TLS; `None` if that was not asked.
    pub offers_tls: Option<bool>,
    /// Whether it insists on TLS; `None` if that was not asked.
    pub demands_tls: Option<bool>,
    /// What it said to each option, in the order of [`OPTIONS`].
    pub options: Vec<(OptionType, Answer)>,
    /// The exports that it lists; `None` if it lists none.
    pub listing: Option<Listing>,
    /// The export that the user is after, and what is known of it.
    pub export: Export,
    /// How long the server takes for an answer that costs it nothing.
    pub round_trip: Option<RoundTrip>,
}

/// What lies between us and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nothing that may fail where the host is well.
    Local,
    /// A network.
    Network,
    /// A network, and something of its own that protects what goes over it.
    Tunnel,
}

/// All options that are told of, in the order of their numbers.
pub const OPTIONS: [OptionType; 8] = [
    OptionType::LIST,
    OptionType::STARTTLS,
    OptionType::INFO,
    OptionType::GO,
    OptionType::STRUCTURED_REPLY,
    OptionType::LIST_META_CONTEXT,
    OptionType::SET_META_CONTEXT,
    OptionType::EXTENDED_HEADERS,
];

/// What a server said to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does what was asked.
    Agreed,
    /// It does not, for a reason of which it may know more.
    Refused {
        /// The reason.
        reply: OptionReply,
        /// Its own text, made printable; may be empty.
        text: String,
    },
    /// It hung up, or lost its place in the stream.
    HungUp,
    /// It was not asked, and why.
    NotAsked(&'static str),
}

impl Answer {
    /// Whether the server knows the option, as far as that can be told.
    pub fn is_known(&self) -> Option<bool> {
        match self {
            Self::Agreed => Some(true),
            Self::Refused { reply, .. } => Some(*reply != OptionReply::ERR_UNSUP),
            Self::HungUp => Some(false),
            Self::NotAsked(_) => None,
        }
    }
}

/// A server's list of exports.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The first of them, and their sizes, where the server tells.
    pub exports: Vec<(Listed, Option<u64>)>,
    /// How many there are, as far as they were counted.
    pub total: usize,
}

/// The export that the user is after.
#[derive(Clone, Debug)]
pub struct Export {
    /// The name that was asked for; empty for the server's default export.
    pub name: ExportName,
    /// What the server tells of it; `None` if there is none by that name, or it does not tell.
    pub facts: Option<Facts>,
    /// The metadata contexts that it has.
    pub contexts: Vec<Vec<u8>>,
}

/// What a server tells of an export.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Bytes.
    pub size: u64,
    /// Abilities as the server sent them, whether they make sense together or not.
    pub flags: TransmissionFlags,
    /// Block size constraints, where the server sent legal ones.
    pub block_sizes: Option<BlockSizes>,
    /// The name that the server gives it, where it said so.
    pub canonical_name: Option<ExportName>,
    /// A text for people, where the server sent one.
    pub description: Option<String>,
}

/// The time from a question to its answer.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    /// The median.
    pub median: Duration,
    /// Of so many.
    pub rounds: usize,
}

impl Report {
    /// What the server said to an option.
    pub fn answer(&self, option: OptionType) -> Option<&Answer> {
        let mut all = self.options.iter();
        all.find(|(asked, _)| *asked == option)
            .map(|(_, answer)| answer)
    }
}
