// SPDX-License-Identifier: BSD-3-Clause
//! What was acknowledged and is not known to be permanent: for each byte the newest content.
//!
//! An interval map, no log: what is written again replaces what was there, so that the journal
//! never holds more than the export, and never undoes anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MemberId, Moment, Span};

/// Longest content of one entry, bytes. What is cut is copied, so this bounds the copying.
const LONGEST: usize = 64 * 1024;

/// What an entry costs beside its content, bytes: its place in the map, and what allocators need.
pub(super) const FIXED: u64 = 128;

/// Longest content that is written at once when the journal is written again, bytes.
const PIECE: u64 = 256 * 1024;

/// What a range holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// Zeroes, which may be a hole or must not.
    Zeroes {
        /// `NBD_CMD_FLAG_NO_HOLE` was set.
        no_hole: bool,
    },
}

/// A range and the connection over which its content was acknowledged last.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) length: u64,
    pub(super) content: Content,
    pub(super) owner: MemberId,
    /// When that was.
    pub(super) applied: Moment,
}

impl Entry {
    fn part(&self, from: u64, length: u64) -> Self {
        let content = match &self.content {
            Content::Bytes(bytes) => {
                let part = bytes.get(from as usize..(from + length) as usize);
                Content::Bytes(part.unwrap_or_default().into())
            }
            zeroes => zeroes.clone(),
        };
        Self {
            length,
            content,
            ..*self
        }
    }

    fn cost(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64 + FIXED,
            Content::Zeroes { .. } => FIXED,
        }
    }
}

/// A change as the journal takes it.
#[derive(Clone, Copy, Debug)]
pub enum Written<'a> {
    /// A write of these bytes.
    Bytes(&'a [u8]),
    /// Zeroes.
    Zeroes {
        /// `NBD_CMD_FLAG_NO_HOLE` was set.
        no_hole: bool,
    },
    /// A trim: nothing is known of the range any more, and nothing is to be kept of it.
    Trimmed,
}

impl Written<'_> {
    /// The most that the journal grows by, bytes. One more entry comes of cutting another in two.
    pub(super) fn cost(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => {
                let entries = bytes.len().div_ceil(LONGEST) as u64;
                bytes.len() as u64 + (entries + 1) * FIXED
            }
            Self::Zeroes { .. } => 2 * FIXED,
            Self::Trimmed => FIXED,
        }
    }
}

/// Neighbouring entries, to be written at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, bytes.
    pub offset: u64,
    /// How long it is, bytes.
    pub length: u64,
    /// Its contents, in order: bytes only, or one stretch of zeroes.
    pub contents: Vec<Content>,
}

/// The map.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: BTreeMap<u64, Entry>,
    cost: u64,
    /// How many entries each member has.
    owners: BTreeMap<MemberId, usize>,
    /// How many entries were looked at because all were.
    #[cfg(test)]
    pub(super) visited: std::cell::Cell<usize>,
}

impl Journal {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory, about.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Span, &Entry)> {
        self.entries.iter().map(|(offset, entry)| {
            #[cfg(test)]
            self.visited.set(self.visited.get() + 1);
            (Span::new(*offset, entry.length), entry)
        })
    }

    /// The members that have entries.
    pub(super) fn owners(&self) -> impl Iterator<Item = MemberId> {
        self.owners.keys().copied()
    }

    /// Takes what was written, in place of what was there.
    pub(super) fn put(
        &mut self,
        at: u64,
        length: u64,
        written: Written<'_>,
        owner: MemberId,
        applied: Moment,
    ) {
        if let Written::Bytes(bytes) = written {
            if self.put_in_place(at, bytes, owner, applied) {
                return;
            }
        }
        self.cut(Span::new(at, length));
        match written {
            Written::Bytes(bytes) => {
                let mut at = at;
                for part in bytes.chunks(LONGEST) {
                    self.insert(
                        at,
                        part.len() as u64,
                        Content::Bytes(part.into()),
                        owner,
                        applied,
                    );
                    at += part.len() as u64;
                }
            }
            Written::Zeroes { no_hole } if length > 0 => {
                self.insert(at, length, Content::Zeroes { no_hole }, owner, applied);
            }
            Written::Zeroes { .. } | Written::Trimmed => (),
        }
    }

    /// The same range again, which is common, needs no new memory.
    fn put_in_place(&mut self, at: u64, bytes: &[u8], owner: MemberId, applied: Moment) -> bool {
        let Some(entry) = self.entries.get_mut(&at) else {
            return false;
        };
        let Content::Bytes(old) = &mut entry.content else {
            return false;
        };
        match Arc::get_mut(old) {
            Some(old) if old.len() == bytes.len() => old.copy_from_slice(bytes),
            _ => return false,
        }
        let was = std::mem::replace(&mut entry.owner, owner);
        entry.applied = applied;
        self.changes_hands(Some(was), Some(owner));
        true
    }

    fn insert(&mut self, at: u64, length: u64, content: Content, owner: MemberId, applied: Moment) {
        let entry = Entry {
            length,
            content,
            owner,
            applied,
        };
        self.keep(at, entry);
    }

    fn keep(&mut self, at: u64, entry: Entry) {
        self.cost += entry.cost();
        self.changes_hands(None, Some(entry.owner));
        self.entries.insert(at, entry);
    }

    fn changes_hands(&mut self, was: Option<MemberId>, is: Option<MemberId>) {
        if was == is {
            return;
        }
        if let Some(is) = is {
            *self.owners.entry(is).or_default() += 1;
        }
        if let Some(count) = was.and_then(|was| self.owners.get_mut(&was)) {
            *count -= 1;
            if *count == 0 {
                self.owners.retain(|_, count| *count > 0);
            }
        }
    }

    /// Forgets a range.
    pub(super) fn cut(&mut self, span: Span) {
        let before = self
            .entries
            .range(..span.start)
            .next_back()
            .map(|(at, _)| *at);
        let inside = self.entries.range(span.start..span.end).map(|(at, _)| *at);
        let touched: Vec<u64> = before.into_iter().chain(inside).collect();
        for at in touched {
            let Some(entry) = self.entries.get(&at) else {
                continue;
            };
            let end = at + entry.length;
            if end <= span.start || at >= span.end {
                continue;
            }
            let head = (at < span.start).then(|| entry.part(0, span.start - at));
            let tail = (end > span.end).then(|| entry.part(span.end - at, end - span.end));
            self.remove(at);
            for (at, rest) in [(at, head), (span.end, tail)] {
                if let Some(rest) = rest {
                    self.keep(at, rest);
                }
            }
        }
    }

    fn remove(&mut self, at: u64) {
        if let Some(entry) = self.entries.remove(&at) {
            self.cost -= entry.cost();
            self.changes_hands(Some(entry.owner), None);
        }
    }

    /// Forgets the entries that are permanent.
    pub(super) fn release(&mut self, is_permanent: impl Fn(&Entry) -> bool) {
        let (cost, owners) = (&mut self.cost, &mut self.owners);
        #[cfg(test)]
        self.visited.set(self.visited.get() + self.entries.len());
        self.entries.retain(|_, entry| {
            let permanent = is_permanent(entry);
            if permanent {
                *cost -= entry.cost();
                owners.entry(entry.owner).and_modify(|count| *count -= 1);
            }
            !permanent
        });
        owners.retain(|_, count| *count > 0);
    }

    /// What is to be written again, with neighbours joined.
    pub(super) fn pieces(&self, is_wanted: impl Fn(&Entry) -> bool) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for (at, entry) in self.entries.iter().filter(|(_, entry)| is_wanted(entry)) {
            let joins = |piece: &&mut Piece| {
                piece.offset + piece.length == *at
                    && piece.length + entry.length <= PIECE
                    && matches!(entry.content, Content::Bytes(_))
                    && matches!(piece.contents.first(), Some(Content::Bytes(_)))
            };
            match pieces.last_mut().filter(joins) {
                Some(piece) => {
                    piece.length += entry.length;
                    piece.contents.push(entry.content.clone());
                }
                None => pieces.push(Piece {
                    offset: *at,
                    length: entry.length,
                    contents: vec![entry.content.clone()],
                }),
            }
        }
        pieces
    }

    /// The entries that begin there were acknowledged again.
    pub(super) fn applied(&mut self, starts: &[u64], owner: MemberId, applied: Moment) {
        for start in starts {
            if let Some(entry) = self.entries.get_mut(start) {
                let was = std::mem::replace(&mut entry.owner, owner);
                entry.applied = applied;
                self.changes_hands(Some(was), Some(owner));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: MemberId = MemberId(1);

    fn model() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
        proptest::collection::vec((0_u8..4, 0_u8..64, 1_u8..32), 1..40)
    }

    proptest! {
        /// Against one cell for each byte.
        #[test]
        fn the_newest_content_of_each_byte_is_kept(changes in model()) {
            let mut journal = Journal::default();
            let mut bytes = [None::<(u8, bool)>; 96];
            for (stamp, (kind, at, length)) in changes.into_iter().enumerate() {
                let (at, length) = (usize::from(at), usize::from(length));
                let content = vec![stamp as u8; length];
                let (written, cell) = match kind {
                    0 => (Written::Trimmed, None),
                    1 => (Written::Zeroes { no_hole: true }, Some((0, true))),
                    _ => (Written::Bytes(&content), Some((stamp as u8, false))),
                };
                let cost = written.cost();
                let before = journal.cost();
                journal.put(at as u64, length as u64, written, A, Moment(stamp as u64));
                prop_assert!(journal.cost() <= before + cost);
                bytes[at..at + length].fill(cell);
            }
            let mut kept = [None; 96];
            let (mut cost, mut entries) = (0, 0);
            for (span, entry) in journal.iter() {
                for at in span.start..span.end {
                    let cell = match &entry.content {
                        Content::Bytes(bytes) => (bytes[(at - span.start) as usize], false),
                        Content::Zeroes { no_hole } => (0, *no_hole),
                    };
                    kept[at as usize] = Some(cell);
                }
                cost += entry.cost();
                entries += 1;
            }
            prop_assert_eq!(&kept[..], &bytes[..]);
            prop_assert_eq!(cost, journal.cost());
            prop_assert_eq!(journal.owners.get(&A).copied().unwrap_or(0), entries);
        }
    }

    #[test]
    fn neighbours_are_written_at_once_up_to_a_piece() {
        let mut journal = Journal::default();
        let block = vec![7; 4096];
        for n in [0, 1, 2, 5] {
            journal.put(n * 4096, 4096, Written::Bytes(&block), A, Moment(n));
        }
        let zeroes = Written::Zeroes { no_hole: false };
        journal.put(3 * 4096, 4096, zeroes, A, Moment(9));
        let shape = |journal: &Journal| -> Vec<_> {
            let pieces = journal.pieces(|_| true);
            pieces
                .iter()
                .map(|piece| (piece.offset / 4096, piece.length / 4096))
                .collect()
        };
        assert_eq!(shape(&journal), [(0, 3), (3, 1), (5, 1)]);

        let mut journal = Journal::default();
        let large = vec![7; 1 << 20];
        journal.put(0, 1 << 20, Written::Bytes(&large), A, Moment(0));
        assert_eq!(shape(&journal), [(0, 64), (64, 64), (128, 64), (192, 64)]);
    }

    #[test]
    fn what_is_released_costs_nothing_any_more() {
        let mut journal = Journal::default();
        journal.put(0, 100, Written::Bytes(&[1; 100]), A, Moment(1));
        journal.put(200, 100, Written::Bytes(&[2; 100]), A, Moment(2));
        journal.release(|entry| entry.applied < Moment(2));
        assert_eq!(journal.cost(), 100 + FIXED);
        journal.cut(Span::new(0, 1000));
        assert_eq!(journal.cost(), 0);
        assert!(journal.is_empty());
    }
}
