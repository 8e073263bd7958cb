// SPDX-License-Identifier: BSD-3-Clause
//! How the messages of transmission are framed: what the handshake agreed on, for both directions.

use std::fmt;

/// Which headers requests and replies have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, simple replies and structured ones.
    Structured,
    // spec: Option types: MUST: after NBD_REP_ACK to NBD_OPT_EXTENDED_HEADERS requests have extended headers
    /// Extended headers, with lengths of 64 bits: requests, and replies in chunks alone.
    Extended,
}

impl Framing {
    /// Whether replies come in chunks, which metadata contexts and `NBD_CMD_FLAG_DF` need.
    pub fn has_chunks(self) -> bool {
        self != Self::Simple
    }

    /// Longest length that a request can bear.
    pub fn longest(self) -> u64 {
        match self {
            Self::Simple | Self::Structured => u32::MAX.into(),
            Self::Extended => u64::MAX,
        }
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple => "simple replies",
            Self::Structured => "structured replies",
            Self::Extended => "extended headers",
        })
    }
}
