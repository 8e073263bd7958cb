// SPDX-License-Identifier: BSD-3-Clause
//! The order of changes: two that overlap are never on their way together.

use std::collections::BTreeMap;

use super::{MemberId, Span};

/// A change that has its place in the order, until it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change(u64);

/// All changes that are waiting or on their way, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Order {
    next: u64,
    places: BTreeMap<Change, Place>,
}

#[derive(Debug)]
struct Place {
    span: Span,
    /// Over which connection it was sent last, until it is certain that nothing of that will be
    /// carried out any more.
    member: Option<MemberId>,
    /// The turn in which it was sent first.
    first: Option<u64>,
    /// Whoever made it has given up.
    abandoned: bool,
}

impl Order {
    #[cfg(all(test, not(loom)))]
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Gives a change its place, behind all others.
    pub(super) fn queue(&mut self, span: Span) -> Change {
        let change = Change(self.next);
        self.next += 1;
        let place = Place {
            span,
            member: None,
            first: None,
            abandoned: false,
        };
        self.places.insert(change, place);
        change
    }

    /// Whether nothing that came before overlaps with it.
    pub(super) fn is_first(&self, change: Change) -> bool {
        let Some(place) = self.places.get(&change) else {
            return false;
        };
        self.places
            .range(..change)
            .all(|(_, earlier)| !earlier.span.overlaps(place.span))
    }

    /// Whether it was sent, and neither answered nor buried with its connection.
    pub(super) fn is_on_its_way(&self, change: Change) -> bool {
        let place = self.places.get(&change);
        place.is_some_and(|place| place.member.is_some())
    }

    pub(super) fn span(&self, change: Change) -> Option<Span> {
        self.places.get(&change).map(|place| place.span)
    }

    pub(super) fn sent(&mut self, change: Change, member: MemberId, turn: u64) {
        if let Some(place) = self.places.get_mut(&change) {
            place.member = Some(member);
            place.first.get_or_insert(turn);
        }
    }

    pub(super) fn over(&mut self, change: Change) {
        self.places.remove(&change);
    }

    /// Nobody waits for the change any more. What was sent keeps its place until its connection is
    /// buried: the server may still be about to carry it out.
    pub(super) fn abandon(&mut self, change: Change) {
        match self.places.get_mut(&change) {
            Some(place) if place.member.is_some() => place.abandoned = true,
            _ => self.over(change),
        }
    }

    /// The server has answered it, and it is to be sent again.
    pub(super) fn answered(&mut self, change: Change) {
        if let Some(place) = self.places.get_mut(&change) {
            place.member = None;
        }
        self.places
            .retain(|_, place| !place.abandoned || place.member.is_some());
    }

    /// Nothing sent over the connection will be carried out any more.
    pub(super) fn buried(&mut self, member: MemberId) {
        self.places.retain(|_, place| {
            place.member.take_if(|by| *by == member);
            !place.abandoned || place.member.is_some()
        });
    }

    /// Whether a change of this range was sent in an earlier turn and is to be sent again: somebody
    /// may have seen what it wrote, and it may be gone.
    pub(super) fn is_unsettled(&self, span: Span, turn: u64) -> bool {
        self.places.values().any(|place| {
            place.first.is_some_and(|first| first < turn)
                && !place.abandoned
                && place.span.overlaps(span)
        })
    }
}
