// SPDX-License-Identifier: BSD-3-Clause
//! What outlives a connection: which changes were acknowledged and are not known to be permanent,
//! in which order changes go, and what an answer is worth.
//!
//! [`Core`] is pure: it does no I/O, knows no thread and no clock, and is driven by events. One
//! stands for one export in the whole process, whatever the number of front clients and of
//! connections, which it calls *members*. It knows three kinds of time: a [`Moment`] for each event
//! whose order counts; a *turn*, which ends when a member is lost or the journal begins to be written
//! again; and a member's birth.
//!
//! What it sees to (I1 to I14 are the invariants of the design):
//!
//! - A change that was acknowledged is in the journal before anybody can know (I1), the newest for
//!   each byte (I5), until a flush that began after the acknowledgement has succeeded over the
//!   member that acknowledged it, or, with `NBD_FLAG_CAN_MULTI_CONN`, over one that was there before
//!   and has not broken since (I2; "Transmission flags", "`NBD_CMD_FLUSH`").
//! - **An answer counts only in the turn in which its request was sent.** Else a server that has lost
//!   its cache may already be behind another member, and what was answered is not in it. The
//!   request is sent again (I7).
//! - A flush that failed, or was lost, may have cost the server what it should have made permanent,
//!   and the next one says success: before it everything is written again (I3).
//! - Two changes that overlap are never on their way together, nor is one twice (I4), and a read
//!   waits for changes that it overlaps while they are sent again: nobody sees a value go back.
//! - While the journal is written again nothing else is sent (I6).
//! - Where the journal holds nothing (`replay=0`) a loss with anything unflushed is remembered, and
//!   told to every front client that was there (I14). What could not be written again ends the
//!   session for all of them (I11).

pub mod delay;
mod flush;
pub mod gate;
mod journal;
mod order;
mod rules;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::journal::Journal;
pub use self::journal::{Content, Piece, Written};
pub use self::order::Change;
use self::order::Order;
#[cfg(all(test, loom))]
pub(crate) use self::rules::Rules;
#[cfg(not(all(test, loom)))]
use self::rules::Rules;

/// A range of an export, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
}

impl Span {
    /// `length` bytes from `start`.
    pub fn new(start: u64, length: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(length),
        }
    }

    /// Whether any byte is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// How many bytes it is.
    pub fn length(self) -> u64 {
        self.end - self.start
    }
}

/// A connection to the export's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId(pub(super) u64);

impl MemberId {
    /// A number that no other member of the session has.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// The order of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub(super) u64);

/// What is known about a request that was sent, until its answer.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Over which member.
    pub member: MemberId,
    /// In which turn.
    pub turn: u64,
    /// When.
    pub moment: Moment,
}

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Worth {
    /// It may be passed on.
    Counts,
    /// It came out of another turn: the request is to be sent again.
    SendAgain,
}

/// What the journal is about.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Most memory for the journal, bytes; 0 for none.
    pub replay: u64,
    /// `NBD_FLAG_CAN_MULTI_CONN`: what one member wrote, another's flush makes permanent.
    pub multi_conn: bool,
}

#[derive(Debug)]
struct Member {
    birth: Moment,
    /// A flush failed then; what was acknowledged before may be gone until it is written again.
    void: Option<Moment>,
    /// First and last acknowledgement that no flush has covered yet, where there is no journal.
    unflushed: Option<(Moment, Moment)>,
}

/// Whoever a change came over that may have been dropped by a flush which failed meanwhile: no
/// member, so that it is written again before the next flush.
const NOBODY: MemberId = MemberId(0);

/// The journal is being written again.
#[derive(Debug)]
struct Rewriting {
    by: MemberId,
    since: Moment,
    /// Its member was lost, and is not buried: the server may still carry pieces out, and undo what
    /// is newer.
    lost: bool,
    /// Where the entries begin that are, in order.
    starts: Vec<u64>,
}

/// Changes, flushes and losses of one export. See the module.
#[derive(Debug)]
pub struct Core {
    facts: Facts,
    rules: Rules,
    now: u64,
    turn: u64,
    members: BTreeMap<MemberId, Member>,
    journal: Journal,
    order: Order,
    /// Memory promised to changes on their way, bytes.
    reserved: u64,
    rewriting: Option<Rewriting>,
    flushing: Option<Sending>,
    /// Requests on their way that make something permanent.
    lasting: BTreeMap<Moment, MemberId>,
    /// When the last of these failed, or was lost: whatever was on its way then may have been dropped.
    voided: Moment,
    /// Lost members over which something was on its way that makes something permanent, and may still
    /// be carried out, and fail.
    dying: BTreeSet<MemberId>,
    /// When the last good flush was sent over a member that is alive.
    flushed: BTreeMap<MemberId, Moment>,
    /// How often something unflushed was lost.
    losses: u64,
    doom: Option<Arc<str>>,
}

impl Core {
    /// Nothing was written yet.
    pub fn new(facts: Facts) -> Self {
        Self {
            facts,
            rules: Rules::ALL,
            now: 0,
            turn: 0,
            members: BTreeMap::new(),
            journal: Journal::default(),
            order: Order::default(),
            reserved: 0,
            rewriting: None,
            flushing: None,
            lasting: BTreeMap::new(),
            voided: Moment(0),
            dying: BTreeSet::new(),
            flushed: BTreeMap::new(),
            losses: 0,
            doom: None,
        }
    }

    /// For models, which look on without a rule.
    #[cfg(all(test, loom))]
    pub(crate) fn without(&mut self, forget: impl FnOnce(&mut Rules)) {
        forget(&mut self.rules);
    }

    /// The content of a byte that would be written again, for models.
    #[cfg(all(test, loom))]
    pub(crate) fn kept(&self, at: u64) -> Option<u8> {
        let pieces = self.journal.pieces(|_| true);
        let piece = pieces
            .iter()
            .find(|piece| (piece.offset..piece.offset + piece.length).contains(&at))?;
        match piece.contents.first()? {
            Content::Bytes(bytes) => bytes.get((at - piece.offset) as usize).copied(),
            Content::Zeroes { .. } => Some(0),
        }
    }

    /// The present moment; each is later than the one before.
    pub fn moment(&mut self) -> Moment {
        self.now += 1;
        Moment(self.now)
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.now
    }

    /// The present turn.
    #[cfg(all(test, loom))]
    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }

    // Members.

    /// A connection was established. Nothing may be sent over it before the journal was written
    /// again over it, which also ends the turn: see [`Core::begin_rewrite`].
    pub fn born(&mut self) -> MemberId {
        let birth = self.moment();
        let id = MemberId(birth.0);
        let member = Member {
            birth,
            void: None,
            unflushed: None,
        };
        self.members.insert(id, member);
        id
    }

    /// A connection was lost, or is given up: nothing that it still answers counts. Until it is
    /// buried, nobody flushes if something was on its way over it that makes something permanent,
    /// and nothing is sent at all if the journal was.
    pub fn lost(&mut self, id: MemberId) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        self.turn += 1;
        self.flushed.remove(&id);
        self.flushing.take_if(|flush| flush.member == id);
        if let Some(rewriting) = self.rewriting.as_mut().filter(|r| r.by == id) {
            rewriting.lost = true;
        }
        if self.settle_all(id) {
            // It may have failed, and nobody will ever know.
            self.void_all();
            self.dying.insert(id);
        }
        if self.facts.replay == 0 {
            let others =
                self.facts.multi_conn && self.members.values().any(|m| m.unflushed.is_some());
            if member.unflushed.is_some() || others {
                self.losses += 1;
                self.members.values_mut().for_each(|m| m.unflushed = None);
            }
        }
    }

    /// Nothing that was sent over a lost connection will be carried out any more.
    pub fn buried(&mut self, id: MemberId) {
        self.order.buried(id);
        self.rewriting.take_if(|rewriting| rewriting.by == id);
        if self.dying.remove(&id) {
            // It may have failed as late as now.
            self.void_all();
        }
    }

    /// A front client has left, and its connection is closed in good order.
    pub fn left(&mut self, id: MemberId) {
        let unflushed = self.members.remove(&id).and_then(|m| m.unflushed);
        self.flushed.remove(&id);
        self.settle_all(id);
        self.rewriting.take_if(|rewriting| rewriting.by == id);
        self.order.buried(id);
        if let (Some((first, last)), true) = (unflushed, self.facts.multi_conn) {
            // Others' flushes are about it, and their losses too.
            for member in self.members.values_mut() {
                let (from, to) = member.unflushed.unwrap_or((first, last));
                member.unflushed = Some((from.min(first), to.max(last)));
            }
        }
    }

    // Changes.

    /// Gives a change its place in the order.
    pub fn queue(&mut self, span: Span) -> Change {
        self.order.queue(span)
    }

    /// Whether the change may be sent now, as far as order is concerned: nothing that came before
    /// overlaps with it, and if it was sent before nothing of that will be carried out any more.
    pub fn may_change(&self, change: Change) -> bool {
        self.may_send()
            && (self.order.is_first(change) || !self.rules.one_at_a_time)
            && (!self.order.is_on_its_way(change) || !self.rules.own_burial)
    }

    /// Keeps room in the journal for what a change writes, bytes. False if there is none: it has to
    /// be made permanent before it is answered. To be given back by [`Core::give_back`].
    pub fn reserve(&mut self, written: Written<'_>) -> bool {
        if self.facts.replay == 0 {
            return true;
        }
        let cost = written.cost();
        let fits = self.journal.cost() + self.reserved + cost <= self.facts.replay;
        if fits {
            self.reserved += cost;
            self.journal.shrink(self.facts.replay - self.reserved);
        }
        fits
    }

    /// Whether the journal has grown beyond its bound. A lasting change in the middle of zeroes makes
    /// two entries of one, and has no room kept for that.
    pub fn is_overfull(&self) -> bool {
        self.journal.cost() > self.facts.replay
    }

    /// Whether there would be room if the journal were empty.
    pub fn would_fit(&self, written: Written<'_>) -> bool {
        written.cost() <= self.facts.replay
    }

    /// The change is over, or is sent by another way: its room is free again.
    pub fn give_back(&mut self, written: Written<'_>) {
        if self.facts.replay > 0 {
            self.reserved -= written.cost();
        }
    }

    /// Whether there is so much in the journal that it is time for a flush.
    pub fn is_filling(&self) -> bool {
        self.facts.replay > 0 && self.journal.cost() >= self.facts.replay / 4 * 3
    }

    /// A change is sent. `lasting` if it is to be permanent when it is answered.
    pub fn send_change(&mut self, change: Change, member: MemberId, lasting: bool) -> Sending {
        self.order.sent(change, member, self.turn);
        self.send(member, lasting)
    }

    /// The server has answered a change with success, and it is permanent if it was `lasting`. If
    /// that counts, the change is over.
    pub fn changed(
        &mut self,
        change: Change,
        sending: Sending,
        lasting: bool,
        written: Written<'_>,
    ) -> Worth {
        if !self.counts(sending, lasting) {
            self.order.answered(change);
            return Worth::SendAgain;
        }
        let Some(span) = self.order.span(change) else {
            return Worth::Counts;
        };
        self.order.over(change);
        let now = self.moment();
        if lasting {
            if self.rules.newest_only {
                self.journal.cut(span);
            }
        } else if self.facts.replay > 0 {
            let (by, at) = match self.is_suspect(sending.moment) {
                true => (NOBODY, Moment(0)),
                false => (sending.member, now),
            };
            self.journal.put(span.start, span.length(), written, by, at);
        } else {
            self.note_unflushed(sending.member, now);
        }
        Worth::Counts
    }

    /// The server has answered a change with an error. If that counts, the change is over; it may
    /// have been carried out in part.
    pub fn refused(&mut self, change: Change, sending: Sending, lasting: bool) -> Worth {
        if lasting {
            self.void_all();
        }
        if !self.counts(sending, lasting) {
            self.order.answered(change);
            return Worth::SendAgain;
        }
        self.order.over(change);
        let now = self.moment();
        if self.facts.replay == 0 {
            self.note_unflushed(sending.member, now);
        }
        Worth::Counts
    }

    /// Nobody waits for the change any more, however it ends.
    pub fn abandon(&mut self, change: Change) {
        self.order.abandon(change);
    }

    fn note_unflushed(&mut self, member: MemberId, now: Moment) {
        if let Some(member) = self.members.get_mut(&member) {
            let first = member.unflushed.map_or(now, |(first, _)| first);
            member.unflushed = Some((first, now));
        }
    }

    /// The server has answered a change with success for which there was no room in the journal, and
    /// which is not permanent by itself. If that counts, a flush is to follow, and then
    /// [`Core::made_permanent`], or [`Core::refused`] if the flush fails.
    pub fn written_through(&mut self, change: Change, sending: Sending) -> Worth {
        self.order.answered(change);
        self.has_read(sending)
    }

    /// A flush that was sent after the answer to a change has made it permanent, for which there was
    /// no room in the journal. `sending` is the change's: what was written again, or dropped, since
    /// then has undone it.
    pub fn made_permanent(&mut self, change: Change, sending: Sending) -> Worth {
        if !self.is_of_this_turn(sending) || self.is_suspect(sending.moment) {
            return Worth::SendAgain;
        }
        if let Some(span) = self.order.span(change) {
            self.journal.cut(span);
        }
        self.order.over(change);
        Worth::Counts
    }

    // Reads, and all that changes nothing.

    /// Whether a request that changes nothing may be sent now.
    pub fn may_read(&self, span: Span) -> bool {
        self.may_send() && !(self.rules.reads_wait && self.order.is_unsettled(span, self.turn))
    }

    /// It is sent.
    pub fn send_read(&mut self, member: MemberId) -> Sending {
        self.send(member, false)
    }

    /// It was answered.
    pub fn has_read(&self, sending: Sending) -> Worth {
        match self.is_of_this_turn(sending) {
            true => Worth::Counts,
            false => Worth::SendAgain,
        }
    }

    // Fate.

    /// The session is over for good, for everybody who has it. The first reason counts.
    pub fn end(&mut self, why: &str) {
        if self.rules.failure_is_final {
            self.doom.get_or_insert_with(|| why.into());
            self.turn += 1;
        }
    }

    /// Why it is over.
    pub fn doom(&self) -> Option<&Arc<str>> {
        self.doom.as_ref()
    }

    /// How often something unflushed was lost, where there is no journal. Whoever was there the last
    /// time must not be told that a flush has succeeded.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// Whether anything is acknowledged and not permanent.
    pub fn has_unflushed(&self) -> bool {
        !self.journal.is_empty() || self.members.values().any(|m| m.unflushed.is_some())
    }

    /// Nothing happens for the time being: memory that is only kept for what may come is given back.
    pub fn rest(&mut self) {
        self.journal.shrink(0);
    }

    /// How many ranges are in the journal, and how many bytes they are; `None` if nothing is kept at all.
    pub fn journal_size(&self) -> Option<(usize, u64)> {
        let lengths = self.journal.iter().map(|(span, _)| span.length());
        let kept = lengths.fold((0, 0), |(count, sum), length| (count + 1, sum + length));
        (self.facts.replay > 0).then_some(kept)
    }

    /// Bytes of memory that the journal takes, about.
    pub fn cost(&self) -> u64 {
        self.journal.cost()
    }

    fn may_send(&self) -> bool {
        self.rewriting.is_none() || !self.rules.hold_while_rewriting
    }

    fn send(&mut self, id: MemberId, lasting: bool) -> Sending {
        let moment = self.moment();
        if lasting {
            self.lasting.insert(moment, id);
        }
        Sending {
            member: id,
            turn: self.turn,
            moment,
        }
    }

    /// A change was not sent after all, and nobody tries again.
    pub fn withdrawn(&mut self, change: Change, sending: Sending, lasting: bool) {
        self.unsent(sending, lasting);
        self.order.answered(change);
        self.order.abandon(change);
    }

    /// A flush, or a change that was to be `lasting`, was not sent after all.
    pub fn unsent(&mut self, sending: Sending, lasting: bool) {
        if lasting {
            self.lasting.remove(&sending.moment);
        }
        self.flushing
            .take_if(|flush| flush.moment == sending.moment);
    }

    /// A flush or a lasting change was answered, and nobody waits to judge the answer; or the answer
    /// cannot be understood, so that nobody knows how it ended, only that it has.
    pub fn forget_lasting(&mut self, sending: Sending) {
        self.unsent(sending, true);
        self.void_all();
    }

    /// Nothing is on its way over a member any more; whether anything was that makes something
    /// permanent.
    fn settle_all(&mut self, id: MemberId) -> bool {
        let before = self.lasting.len();
        self.lasting.retain(|_, by| *by != id);
        self.lasting.len() < before
    }

    fn counts(&mut self, sending: Sending, lasting: bool) -> bool {
        if lasting {
            self.lasting.remove(&sending.moment);
        }
        self.is_of_this_turn(sending)
    }

    fn is_of_this_turn(&self, sending: Sending) -> bool {
        (sending.turn == self.turn || !self.rules.own_turn)
            && self.members.contains_key(&sending.member)
    }
}
