// SPDX-License-Identifier: BSD-3-Clause
//! How the messages of transmission are framed, and what is asked once that is settled.

use super::{Newstyle, Stage};
use crate::proto::consts::OptionType;
use crate::proto::framing::Framing;
use crate::proto::handshake::{Error, Outcome, Progress, Purpose};

impl Newstyle {
    /// What to ask where it is not settled how messages are framed.
    pub(super) fn first(&self) -> OptionType {
        match self.goal.ladder.extended {
            true => OptionType::EXTENDED_HEADERS,
            false => self.first_compact(),
        }
    }

    /// Whether the server was asked for extended headers and does not know them.
    pub fn knows_only_compact(&self) -> bool {
        self.compact
    }

    /// The first option where headers are compact.
    pub(super) fn first_compact(&self) -> OptionType {
        match self.goal.asks_structured() {
            true => OptionType::STRUCTURED_REPLY,
            false => self.opening(),
        }
    }

    /// How messages are framed is settled.
    pub(super) fn settle(&mut self, framing: Framing) -> Result<Progress, Error> {
        self.framing = framing;
        self.settled = true;
        self.ask_framed()
    }

    /// Asks what comes first where it is.
    pub(super) fn ask_framed(&mut self) -> Result<Progress, Error> {
        // spec: Metadata querying: MUST: structured replies before metadata contexts
        // spec: Metadata querying: MUST: contexts are chosen before they are asked about
        // spec: Option types: MUST NOT: no NBD_OPT_SET_META_CONTEXT before structured replies
        // spec: Option types: MUST NOT: nothing that needs structured replies without them
        let is_asked = matches!(self.goal.purpose, Purpose::Ask(_));
        if self.framing.has_chunks() && self.goal.asks_contexts() && !is_asked {
            return Ok(Progress::Say(self.ask(self.about_contexts())));
        }
        match self.goal.purpose {
            Purpose::Ask(_) => Ok(self.rest(Outcome::Agreed)),
            Purpose::Open => {
                self.stage = Stage::Rest;
                self.goal.check_unstructured()?;
                Ok(Progress::Say(self.ask(self.opening())))
            }
            Purpose::Contexts => Ok(self.rest(Outcome::Contexts(Vec::new()))),
            _ => Ok(self.rest_with_listing()),
        }
    }

    /// The option that opens the export.
    pub(super) fn opening(&self) -> OptionType {
        // spec: Option types: SHOULD: NBD_OPT_GO rather than NBD_OPT_EXPORT_NAME
        // spec: Client-side requirements: SHOULD: NBD_OPT_GO rather than NBD_OPT_EXPORT_NAME, if the client has TLS
        // spec: Size constraints: MUST: NBD_OPT_GO where the server knows it, if size constraints are honoured
        // spec: Option types: MUST NOT: no NBD_OPT_EXPORT_NAME after extended headers were agreed
        match self.goal.ladder.go || self.framing == Framing::Extended {
            true => OptionType::GO,
            false => OptionType::EXPORT_NAME,
        }
    }
}
