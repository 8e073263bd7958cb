// SPDX-License-Identifier: BSD-3-Clause
//! Which questions a server may be asked on the way to an export.
//!
//! There are servers that hang up over an option that they do not know, or lose their place in the
//! stream, where they should say `NBD_REP_ERR_UNSUP`. They can be used by whoever does not ask. So a
//! handshake that failed like this may be tried again on a new connection, without the question that
//! was not answered; the last rung, `NBD_OPT_EXPORT_NAME` alone, is known to every server.

use crate::proto::consts::OptionType;

/// The questions that may be asked; all of them at first. A question that is newer than these stands
/// on a rung above and is the first to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// `NBD_OPT_STRUCTURED_REPLY`, and the contexts that need it.
    pub(super) structured: bool,
    /// `NBD_OPT_GO`, or else `NBD_OPT_EXPORT_NAME`.
    pub(super) go: bool,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            structured: true,
            go: true,
        }
    }
}

impl Ladder {
    /// Whether the server can be asked about an export without opening it: `NBD_OPT_INFO` is
    /// `NBD_OPT_GO` in all but name.
    pub fn can_describe(self) -> bool {
        self.go
    }

    /// What is left without the question that was not answered; `None` if nobody can do without it.
    /// What was refused before need not be asked again: the server may have lost its place over that
    /// already. `structured` tells whether structured replies were agreed.
    pub(super) fn without(self, unanswered: OptionType, structured: bool) -> Option<Self> {
        match unanswered {
            OptionType::STRUCTURED_REPLY
            | OptionType::SET_META_CONTEXT
            | OptionType::LIST_META_CONTEXT => Some(Self {
                structured: false,
                ..self
            }),
            OptionType::GO => Some(Self {
                structured,
                go: false,
            }),
            _ => None,
        }
    }
}
