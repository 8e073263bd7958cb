// SPDX-License-Identifier: BSD-3-Clause
//! Which questions a server may be asked on the way to an export.
//!
//! There are servers that hang up over an option that they do not know, or lose their place in the
//! stream, where they should say `NBD_REP_ERR_UNSUP`. They can be used by whoever does not ask. So a
//! handshake that failed like this may be tried again on a new connection, without the question that
//! was not answered; the last rung, `NBD_OPT_EXPORT_NAME` alone, is known to every server.

use crate::proto::consts::OptionType;
use crate::proto::framing::Framing;

/// The questions that may be asked, the newest first, which is the first to go; all of them at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// `NBD_OPT_EXTENDED_HEADERS`, which only `NBD_OPT_GO` may follow.
    pub(in crate::proto) extended: bool,
    /// `NBD_OPT_STRUCTURED_REPLY`.
    pub(in crate::proto) structured: bool,
    /// `NBD_OPT_SET_META_CONTEXT` and `NBD_OPT_LIST_META_CONTEXT`, after one of these was agreed.
    pub(in crate::proto) meta: bool,
    /// `NBD_OPT_GO`, or else `NBD_OPT_EXPORT_NAME`.
    pub(in crate::proto) go: bool,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            extended: true,
            structured: true,
            meta: true,
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

    /// Whether extended headers are asked for.
    pub fn has_extended(self) -> bool {
        self.extended
    }

    /// Whether structured replies are asked for.
    pub fn has_structured(self) -> bool {
        self.structured
    }

    /// Whether metadata contexts are.
    pub fn has_meta(self) -> bool {
        self.structured && self.meta
    }

    /// Without `NBD_OPT_EXTENDED_HEADERS`.
    pub fn without_extended(self) -> Self {
        Self {
            extended: false,
            ..self
        }
    }

    /// Without everything that structured replies are asked for with, and what needs them.
    pub fn without_structured(self) -> Self {
        Self {
            extended: false,
            structured: false,
            meta: false,
            ..self
        }
    }

    /// Without metadata contexts.
    pub fn without_meta(self) -> Self {
        Self {
            meta: false,
            ..self
        }
    }

    /// By `NBD_OPT_EXPORT_NAME`, which may not follow `NBD_OPT_EXTENDED_HEADERS`.
    pub fn without_go(self) -> Self {
        Self {
            extended: false,
            go: false,
            ..self
        }
    }

    /// With what another one has, too, but for extended headers.
    pub fn with_those_of(self, other: Self) -> Self {
        Self {
            extended: self.extended,
            structured: self.structured || other.structured,
            meta: self.meta || other.meta,
            go: self.go || other.go,
        }
    }

    /// Whether it has any of the questions that were dropped on the way down from one rung to another.
    pub fn has_any_between(self, above: Self, below: Self) -> bool {
        let has = |own: bool, above: bool, below: bool| own && above && !below;
        has(self.extended, above.extended, below.extended)
            || has(self.structured, above.structured, below.structured)
            || has(self.meta, above.meta, below.meta)
            || has(self.go, above.go, below.go)
    }

    /// Without the questions that were dropped on the way down from one rung to another, and no others.
    pub fn without_those_between(self, above: Self, below: Self) -> Self {
        let keeps = |own: bool, above: bool, below: bool| own && (below || !above);
        let go = keeps(self.go, above.go, below.go);
        Self {
            // Only NBD_OPT_GO may follow it.
            extended: go && keeps(self.extended, above.extended, below.extended),
            structured: keeps(self.structured, above.structured, below.structured),
            meta: keeps(self.meta, above.meta, below.meta),
            go,
        }
    }

    /// What is left without the question that was not answered; `None` if nobody can do without it.
    /// What was refused before need not be asked again: the server may have lost its place over that
    /// already. `agreed` is how transmission would be framed, as far as that is agreed.
    pub(in crate::proto) fn without(self, unanswered: OptionType, agreed: Framing) -> Option<Self> {
        match (unanswered, agreed) {
            (OptionType::EXTENDED_HEADERS, _) => Some(self.without_extended()),
            // Perhaps its consent was none; and what comes next might have to be NBD_OPT_EXPORT_NAME.
            (
                OptionType::SET_META_CONTEXT | OptionType::LIST_META_CONTEXT | OptionType::GO,
                Framing::Extended,
            ) => Some(self.without_extended()),
            (
                OptionType::STRUCTURED_REPLY
                | OptionType::SET_META_CONTEXT
                | OptionType::LIST_META_CONTEXT,
                _,
            ) => Some(self.without_structured()),
            (OptionType::GO, Framing::Structured) => Some(self.without_go()),
            (OptionType::GO, Framing::Simple) => Some(self.without_structured().without_go()),
            _ => None,
        }
    }
}
