// SPDX-License-Identifier: BSD-3-Clause
//! Flushes: what they release, what has to be written again before one means anything, and what is
//! in doubt after one that failed.
//!
//! A flush or a `lasting` change that fails may take with it whatever is not permanent yet, and no
//! later flush tells. So everything that was acknowledged before (the member's *void*), and all that
//! was sent before and answered after, is written again first. Whether it failed at all is not
//! certain until its connection is buried, if it was lost.

use super::journal::Entry;
use super::{Core, Member, MemberId, Moment, NOBODY, Piece, Rewriting, Sending, Worth};

impl Core {
    /// Whether a flush may be sent now: there is one at a time for an export.
    pub fn may_flush(&self) -> bool {
        self.may_send() && self.flushing.is_none() && self.dying.is_empty()
    }

    /// Whether a flush that was sent after `since` has made everything permanent that one over this
    /// member would.
    pub fn was_flushed(&self, member: MemberId, since: Moment) -> bool {
        self.flushed
            .iter()
            .any(|(by, sent)| *sent > since && (*by == member || self.facts.multi_conn))
    }

    /// Whether something must be written again before a flush over this member means anything.
    pub fn must_rewrite(&self, id: MemberId) -> bool {
        let Some(member) = self.members.get(&id) else {
            return false;
        };
        // Each flush asks, and mostly there is nothing to look at.
        let all_present = || {
            self.journal
                .owners()
                .all(|by| self.members.contains_key(&by))
        };
        if member.void.is_none() && all_present() {
            return false;
        }
        let mut entries = self.journal.iter();
        entries.any(|(_, entry)| self.is_due(id, member, entry))
    }

    fn is_due(&self, id: MemberId, member: &Member, entry: &Entry) -> bool {
        let covered = self.covers(id, member, entry);
        match member.void {
            Some(void) if self.rules.rewrite_after_failure => !covered || entry.applied <= void,
            _ => !covered && !self.members.contains_key(&entry.owner),
        }
    }

    /// Whether a good flush over a member makes an entry permanent that was acknowledged before it.
    fn covers(&self, id: MemberId, member: &Member, entry: &Entry) -> bool {
        !self.rules.own_or_older
            || entry.owner == id
            || (self.facts.multi_conn && member.birth < entry.applied)
    }

    /// A flush is sent.
    pub fn send_flush(&mut self, member: MemberId) -> Sending {
        let sending = self.send(member, true);
        self.flushing = Some(sending);
        sending
    }

    /// Whether a flush that was answered at a moment can be judged: whatever was to make something
    /// permanent at the same time has been answered too. It may have failed, and have taken with it
    /// what the flush says it has made permanent.
    pub fn may_judge(&self, answered: Moment) -> bool {
        let mut others = self.lasting.range(..answered);
        others.all(|(sent, _)| Some(*sent) == self.flushing.map(|flush| flush.moment))
    }

    /// A flush was answered, and [`Core::may_judge`] it.
    pub fn flushed(&mut self, sending: Sending, success: bool) -> Worth {
        self.flushing
            .take_if(|flush| flush.moment == sending.moment);
        if !success {
            self.void_all();
        }
        if !self.counts(sending, true) {
            return Worth::SendAgain;
        }
        if !success {
            return Worth::Counts;
        }
        if self.is_suspect(sending.moment) {
            return Worth::SendAgain;
        }
        let id = sending.member;
        let Some(mut flusher) = self.members.remove(&id) else {
            return Worth::SendAgain;
        };
        flusher.void = None;
        let before = |at: Moment| at < sending.moment || !self.rules.acknowledged_before;
        let mut journal = std::mem::take(&mut self.journal);
        journal.release(|entry| before(entry.applied) && self.covers(id, &flusher, entry));
        self.journal = journal;
        if flusher.unflushed.is_some_and(|(_, last)| before(last)) {
            flusher.unflushed = None;
        }
        if self.facts.multi_conn {
            for member in self.members.values_mut() {
                let covered = |(first, last): (Moment, Moment)| {
                    flusher.birth < first && last < sending.moment
                };
                if member.unflushed.is_some_and(covered) {
                    member.unflushed = None;
                }
            }
        }
        self.members.insert(id, flusher);
        self.flushed.insert(id, sending.moment);
        Worth::Counts
    }

    pub(super) fn void_all(&mut self) {
        let now = self.moment();
        self.voided = now;
        self.members
            .values_mut()
            .for_each(|member| member.void = Some(now));
    }

    /// Whether what was sent then may have been dropped since, though it was answered with success.
    pub(super) fn is_suspect(&self, sent: Moment) -> bool {
        sent < self.voided && self.rules.rewrite_after_failure
    }

    /// Whether a flush over this member would release anything, or must be tried again.
    pub fn wants_flush(&self, id: MemberId) -> bool {
        let Some(member) = self.members.get(&id) else {
            return false;
        };
        member.unflushed.is_some()
            || self
                .journal
                .iter()
                .any(|(_, entry)| self.covers(id, member, entry) || self.is_due(id, member, entry))
    }

    // Writing the journal again.

    /// Begins to write over a member what must be: everything over one that is new, else what is due
    /// before a flush. From now on nothing else is sent, and the turn is another. `None` while
    /// somebody else does so.
    pub fn begin_rewrite(&mut self, id: MemberId, all: bool) -> Option<Vec<Piece>> {
        if self.rewriting.is_some() {
            return None;
        }
        let since = self.moment();
        let member = self.members.get(&id)?;
        let is_meant = |entry: &Entry| match all {
            true => self.rules.one_journal || !self.members.contains_key(&entry.owner),
            false => self.is_due(id, member, entry),
        };
        let pieces = self.journal.pieces(is_meant);
        let meant = self.journal.iter().filter(|(_, entry)| is_meant(entry));
        let starts = meant.map(|(span, _)| span.start).collect();
        self.rewriting = Some(Rewriting {
            by: id,
            since,
            lost: false,
            starts,
        });
        self.turn += 1;
        Some(pieces)
    }

    /// The server has answered all of it, with success or not. False if the member was lost
    /// meanwhile: it counts for nothing then.
    pub fn end_rewrite(&mut self, id: MemberId, success: bool) -> bool {
        let Some(rewriting) = self.rewriting.take_if(|r| r.by == id && !r.lost) else {
            return false;
        };
        if success {
            let (by, at) = match self.is_suspect(rewriting.since) {
                true => (NOBODY, Moment(0)),
                false => (id, self.moment()),
            };
            self.journal.applied(&rewriting.starts, by, at);
        }
        true
    }

    /// Whether the journal is being written again.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_rewriting(&self) -> bool {
        self.rewriting.is_some()
    }

    /// Whether it is, over a member that is not known to be lost.
    pub fn is_rewriting_well(&self) -> bool {
        self.rewriting.as_ref().is_some_and(|r| !r.lost)
    }
}
