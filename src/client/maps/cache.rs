// SPDX-License-Identifier: BSD-3-Clause
//! Maps that are kept: what servers said of ranges that nobody has changed since. No I/O, no clock.
//!
//! What an answer says holds for a moment between the question and the answer. So a change spoils its
//! range for every answer that was asked for before the change was answered, and a range whose change was
//! never answered is not kept any more: it may be carried out at any time. Exports may be parts of one
//! another for all that is known here, so that a change of one is a change of all.

use std::collections::BTreeMap;

use crate::proto::chunks::Descriptor;
use crate::proto::consts::Allocation;

/// Memory for one extent, bytes: its place in a tree.
const COST: u64 = 64;

/// A change may concern all of the units of allocation in which it is, which are of up to so many bytes.
const UNIT: u64 = 2 << 20;

/// Most ranges that are remembered apart; more are taken together.
const MAX_APART: usize = 64;

/// From here, and up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: u64,
    to: u64,
}

/// What is known from a key of [`Cache::maps`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    to: u64,
    status: Allocation,
}

type Map = BTreeMap<u64, Extent>;

/// A change under way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
pub struct Change(u64);

/// A question under way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
pub struct Query(u64);

/// See the module.
#[derive(Debug)]
pub struct Cache {
    /// Most extents.
    most: usize,
    /// By volume.
    maps: BTreeMap<u64, Map>,
    changes: BTreeMap<Change, Span>,
    /// Ranges that must not be kept from the answer.
    queries: BTreeMap<Query, Vec<Span>>,
    /// Ranges of changes that were never answered.
    open: Vec<Span>,
    next: u64,
}

impl Cache {
    /// One that takes about so many bytes.
    pub fn new(size: u64) -> Self {
        Self {
            most: usize::try_from(size / COST).unwrap_or(usize::MAX),
            maps: BTreeMap::new(),
            changes: BTreeMap::new(),
            queries: BTreeMap::new(),
            open: Vec::new(),
            next: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A range will be changed.
    pub fn begin_change(&mut self, offset: u64, length: u64) -> Change {
        let end = offset.saturating_add(length);
        let span = Span {
            from: offset - offset % UNIT,
            to: end.checked_next_multiple_of(UNIT).unwrap_or(u64::MAX),
        };
        self.spoil(span);
        let change = Change(self.id());
        self.changes.insert(change, span);
        change
    }

    /// The change was answered, or `open` and may still come about.
    pub fn end_change(&mut self, change: Change, open: bool) {
        let Some(span) = self.changes.remove(&change) else {
            return;
        };
        if open {
            add(&mut self.open, span);
        }
        self.spoil(span);
    }

    fn spoil(&mut self, span: Span) {
        self.maps.values_mut().for_each(|map| remove(map, span));
        self.queries.values_mut().for_each(|all| add(all, span));
    }

    /// A server will be asked.
    pub fn begin_query(&mut self) -> Query {
        let query = Query(self.id());
        let mut spoiled = self.open.clone();
        self.changes
            .values()
            .for_each(|span| add(&mut spoiled, *span));
        self.queries.insert(query, spoiled);
        query
    }

    /// What it answered for a range of a volume.
    pub fn end_query(&mut self, query: Query, volume: u64, offset: u64, extents: &[Descriptor]) {
        let Some(spoiled) = self.queries.remove(&query) else {
            return;
        };
        let extents = joined(offset, extents, self.most);
        let Some((_, last)) = extents.last() else {
            return;
        };
        let whole = Span {
            from: offset,
            to: last.to,
        };
        if let Some(map) = self.maps.get_mut(&volume) {
            remove(map, whole);
        }
        let kept: usize = self.maps.values().map(Map::len).sum();
        if kept + extents.len() > self.most {
            // What comes is what is wanted now.
            self.maps.clear();
        }
        let map = self.maps.entry(volume).or_default();
        map.extend(extents);
        spoiled.iter().for_each(|span| remove(map, *span));
    }

    /// It did not answer.
    pub fn abandon_query(&mut self, query: Query) {
        self.queries.remove(&query);
    }

    /// Nothing that was answered so far holds any more: the server may be another one.
    pub fn forget(&mut self) {
        self.maps.clear();
        self.queries.clear();
    }

    /// What is known of a volume from `offset` on, without a gap, of `length` bytes at least if that is
    /// known.
    pub fn known(&self, volume: u64, offset: u64, length: u64) -> Vec<Descriptor> {
        let mut found = Vec::new();
        let Some(map) = self.maps.get(&volume) else {
            return found;
        };
        let end = offset.saturating_add(length);
        let first = map.range(..=offset).next_back().map(|(from, _)| *from);
        let mut at = offset;
        for (from, extent) in map.range(first.unwrap_or(offset)..) {
            if *from > at || extent.to <= at || at >= end {
                break;
            }
            found.push(Descriptor {
                length: extent.to - at,
                status: extent.status,
            });
            at = extent.to;
        }
        found
    }

    /// Whether all of a range is known to be zero.
    pub fn is_zero(&self, volume: u64, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length);
        let mut at = offset;
        let Some(map) = self.maps.get(&volume) else {
            return false;
        };
        while at < end {
            let extent = map.range(..=at).next_back().map(|(_, extent)| *extent);
            match extent {
                Some(extent) if extent.to > at && extent.status.contains(Allocation::ZERO) => {
                    at = extent.to;
                }
                _ => return false,
            }
        }
        true
    }
}

/// Extents by their places, neighbours that are alike as one, no more than `most`.
fn joined(offset: u64, extents: &[Descriptor], most: usize) -> Vec<(u64, Extent)> {
    let mut all: Vec<(u64, Extent)> = Vec::new();
    let mut at = offset;
    for extent in extents {
        // No server's export is as long.
        let to = at.saturating_add(extent.length);
        let full = all.len() == most;
        match all.last_mut() {
            Some((_, last)) if last.status == extent.status => last.to = to,
            _ if full => break,
            _ => {
                let status = extent.status;
                all.push((at, Extent { to, status }));
            }
        }
        at = to;
    }
    all
}

/// Forgets a range.
fn remove(map: &mut Map, span: Span) {
    let before = map.range_mut(..span.from).next_back();
    let before = before.filter(|(_, extent)| extent.to > span.from);
    if let Some((_, extent)) = before {
        let rest = *extent;
        extent.to = span.from;
        if rest.to > span.to {
            map.insert(span.to, rest);
        }
    }
    let inside: Vec<_> = map
        .range(span.from..span.to)
        .map(|(from, _)| *from)
        .collect();
    for from in inside {
        if let Some(rest) = map.remove(&from).filter(|extent| extent.to > span.to) {
            map.insert(span.to, rest);
        }
    }
}

/// Adds a range to others, which become one if they are too many.
fn add(spans: &mut Vec<Span>, span: Span) {
    if spans
        .iter()
        .any(|known| known.from <= span.from && known.to >= span.to)
    {
        return;
    }
    spans.push(span);
    if spans.len() > MAX_APART {
        let from = spans.iter().map(|span| span.from).min().unwrap_or(0);
        let to = spans.iter().map(|span| span.to).max().unwrap_or(u64::MAX);
        *spans = vec![Span { from, to }];
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
