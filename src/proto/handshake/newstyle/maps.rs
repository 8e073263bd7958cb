// SPDX-License-Identifier: BSD-3-Clause
//! The questions about metadata contexts: which one is agreed, which there are, and which exports and
//! bitmaps a name stands for.

use std::collections::BTreeSet;

use super::{Newstyle, Stage};
use crate::proto::consts::{OptionReply, OptionType};
use crate::proto::context::{ContextName, Wish};
use crate::proto::handshake::{Error, Outcome, Progress, Purpose, contexts};
use crate::proto::name::ExportName;

/// Most exports whose bitmaps are asked for: each takes the time of a question.
const MAX_BITMAPPED: usize = 1000;

/// The bitmaps of a list of exports.
#[derive(Debug, Default)]
pub struct Bitmaps {
    /// The entry of the list whose bitmaps are asked for.
    at: usize,
    /// So many entries are asked for theirs.
    left: usize,
    /// All names in the list.
    names: BTreeSet<ExportName>,
}

impl Newstyle {
    /// The context that extents are to be made of.
    pub(super) fn wanted(&self) -> ContextName {
        match &self.goal.wish {
            Wish::This(name) => name.clone(),
            _ => ContextName::allocation(),
        }
    }

    /// It is known whether the server has the context.
    pub(super) fn context_settled(&mut self) -> Result<Progress, Error> {
        let agreed = self.contexts.agreed().is_some();
        if !agreed && self.contexts.is_apart() {
            return self.ask_apart();
        }
        Ok(Progress::Say(self.ask(match agreed {
            false if self.goal.wish.demanded().is_some() => OptionType::LIST_META_CONTEXT,
            false => {
                log::info!("the server has no {} context: no extents", self.wanted());
                self.opening()
            }
            true => self.opening(),
        })))
    }

    /// It is known which contexts the server has for an export.
    pub(super) fn contexts_listed(&mut self) -> Result<Progress, Error> {
        match self.goal.purpose {
            Purpose::List => Ok(self.bitmaps_listed()),
            Purpose::Contexts | Purpose::Ask(_) => {
                let names = self.contexts.take_names();
                Ok(self.rest(Outcome::Contexts(names)))
            }
            _ if self.goal.wish == Wish::OnlyBitmap => {
                // Nothing is under way if there is none.
                self.stage = Stage::Rest;
                let name = self.contexts.only_bitmap(&self.goal.export)?;
                self.goal.wish = Wish::This(name);
                Ok(Progress::Say(self.ask(OptionType::SET_META_CONTEXT)))
            }
            _ => {
                self.stage = Stage::Rest;
                Err(self.contexts.missing(&self.goal.wish, &self.goal.export))
            }
        }
    }

    /// What to ask about contexts first.
    pub(super) fn about_contexts(&self) -> OptionType {
        match self.goal.purpose {
            Purpose::Open if self.goal.wish != Wish::OnlyBitmap => OptionType::SET_META_CONTEXT,
            _ => OptionType::LIST_META_CONTEXT,
        }
    }

    /// Whether an error in answer to a list of contexts is no reason to end.
    pub(super) fn goes_on_without_list(&self, reply: OptionReply) -> bool {
        match self.goal.purpose {
            Purpose::List => true,
            Purpose::Open => reply != OptionReply::ERR_UNKNOWN,
            _ => false,
        }
    }

    /// Whether an error in answer to the choice of a context is no reason to end.
    pub(super) fn goes_on_without_context(&self, reply: OptionReply) -> bool {
        let demanded = self.goal.wish.demanded().is_some() && !self.contexts.is_apart();
        !demanded || reply != OptionReply::ERR_UNKNOWN
    }

    /// Whether the name of an export that is refused may be that of another one and of its bitmap.
    pub(super) fn may_stand_for_others(&self, reply: OptionReply) -> bool {
        let by_name = self.goal.wish == Wish::ByName || self.contexts.is_apart();
        by_name && self.framing.has_chunks() && reply == OptionReply::ERR_UNKNOWN
    }

    /// The list of exports is complete.
    pub(super) fn exports_listed(&mut self) -> Progress {
        let by_name = self.goal.wish == Wish::ByName && self.goal.ladder.has_meta();
        let simple = self.settled && !self.framing.has_chunks();
        if !by_name || simple || !self.begin_bitmaps() {
            return self.rest_with_listing();
        }
        Progress::Say(self.ask(match self.settled {
            true => OptionType::LIST_META_CONTEXT,
            // An export may be opened over the same connection afterwards.
            false => self.first(),
        }))
    }

    /// Whether there is an export whose bitmaps can be asked for.
    fn begin_bitmaps(&mut self) -> bool {
        let listing = &self.info.listing;
        self.bitmaps.left = listing.len().min(MAX_BITMAPPED);
        self.bitmaps.names = listing.iter().map(|entry| entry.name.clone()).collect();
        self.bitmaps.left > 0
    }

    /// The export whose contexts are listed.
    pub(super) fn mapped(&self) -> &ExportName {
        let listed = self.info.listing.get(self.bitmaps.at);
        let listed = listed.filter(|_| self.goal.purpose == Purpose::List);
        listed.map_or(&self.goal.export, |listed| &listed.name)
    }

    /// The bitmaps of one export of the list are known, and those of the next one are asked for.
    fn bitmaps_listed(&mut self) -> Progress {
        for context in self.contexts.take_names() {
            let export = self.info.listing.get(self.bitmaps.at);
            let further = export.and_then(|export| contexts::by_name(export, &context));
            // An export of this name wins, and each name comes once.
            let new = further.filter(|entry| self.bitmaps.names.insert(entry.name.clone()));
            if let Some(entry) = new {
                self.keep(entry);
            }
        }
        self.bitmaps.at += 1;
        match self.bitmaps.at < self.bitmaps.left {
            // spec: Option types: SHOULD NOT: no NBD_OPT_LIST_META_CONTEXT before structured replies
            true => Progress::Say(self.ask(OptionType::LIST_META_CONTEXT)),
            false => self.rest_with_listing(),
        }
    }

    pub(super) fn rest_with_listing(&mut self) -> Progress {
        let listing = std::mem::take(&mut self.info.listing);
        self.rest(Outcome::Listing(listing))
    }

    /// Asks for the next export, and bitmap of it, that the name of one may stand for that the server
    /// does not have.
    pub(super) fn ask_apart(&mut self) -> Result<Progress, Error> {
        self.stage = Stage::Rest;
        let whole = self.whole.get_or_insert_with(|| self.goal.export.clone());
        let (export, bitmap) = self.contexts.next_apart(whole)?;
        self.goal.export = export;
        self.goal.wish = Wish::This(bitmap);
        self.contexts.forget();
        Ok(Progress::Say(self.ask(OptionType::SET_META_CONTEXT)))
    }
}
