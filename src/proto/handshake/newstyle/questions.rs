// SPDX-License-Identifier: BSD-3-Clause
//! What is known of a question: whether it was answered, and what may follow.

use super::{Newstyle, Stage};
use crate::proto::consts::{OptionReply, OptionType};
use crate::proto::handshake::{Purpose, Style};

impl Newstyle {
    /// See [`crate::proto::handshake::Handshake::style`].
    pub fn style(&self) -> Option<Style> {
        match self.stage {
            Stage::Flags => None,
            _ if self.can_abort() => Some(Style::FixedNewstyle),
            _ => Some(Style::Newstyle),
        }
    }

    /// See [`crate::proto::handshake::Handshake::unanswered`].
    pub fn unanswered(&self) -> Option<OptionType> {
        let unanswered = matches!(self.stage, Stage::ReplyHeader) && self.replies == 0;
        (unanswered && !self.may_be_refused()).then_some(self.asking)
    }

    /// Whether all that is wanted is what the server says to this option.
    pub(super) fn is_the_question(&self) -> bool {
        self.goal.purpose == Purpose::Ask(self.asking)
    }

    /// After a refusal something else may be asked, unless the server is going away: then it is to be left.
    pub(super) fn rest_unless_it_ends(&mut self, reply: OptionReply) {
        if reply != OptionReply::ERR_SHUTDOWN {
            self.stage = Stage::Rest;
        }
    }
}
