// SPDX-License-Identifier: BSD-3-Clause
//! Judges what clients saw: with a plugin that repairs every loss each block is a register that is never lost.
//!
//! An operation takes effect at some moment between its request and its answer; one without an answer, or with an
//! error, later or never. For each version of a block, take its zone: from the moment at which it must have been
//! there (the first answer to its write or to a read of it) to the moment at which it still was (the last request
//! of these). What was seen is possible if no two such zones overlap and no version falls wholly into the zone of
//! another (Gibbons and Korach, 1997). Trims leave a block undefined until it is written again.

use std::collections::HashMap;

use super::block::{self, BLOCK, Content, ZEROES};
use super::now;
use crate::common::scripted::wire::cmd;

/// A request of a client, and its answer.
#[derive(Clone, Debug)]
pub struct Op {
    pub client: usize,
    pub kind: u16,
    pub fua: bool,
    /// The first block.
    pub block: u64,
    pub count: u64,
    /// What each block became, or what was read of it.
    pub contents: Vec<Content>,
    pub sent: u64,
    pub answered: Option<u64>,
    pub error: u32,
}

/// A change of parts of blocks: what they hold afterwards is not said.
pub const PARTIAL: u16 = u16::MAX;

impl Op {
    /// A request that is sent now.
    pub fn of(
        client: usize,
        kind: u16,
        fua: bool,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Self {
        let size = BLOCK as u64;
        let (first, end) = (offset / size, (offset + length).div_ceil(size));
        let whole = offset % size == 0 && length % size == 0;
        Self {
            client,
            kind: match kind {
                cmd::WRITE | cmd::WRITE_ZEROES if !whole => PARTIAL,
                // A read of parts shows nothing that is judged.
                cmd::READ if !whole => cmd::CACHE,
                kind => kind,
            },
            fua,
            block: first,
            count: end - first,
            contents: block::contents(payload),
            sent: now(),
            answered: None,
            error: 0,
        }
    }

    pub fn good(&self) -> bool {
        self.answered.is_some() && self.error == 0
    }

    /// By when it has taken effect, if ever.
    pub fn done(&self) -> u64 {
        match (self.answered, self.error) {
            (Some(at), 0) => at,
            _ => u64::MAX,
        }
    }

    pub fn changes(&self) -> bool {
        let changes = [cmd::WRITE, cmd::WRITE_ZEROES, cmd::TRIM, PARTIAL];
        changes.contains(&self.kind)
    }

    pub fn touches(&self, block: u64) -> bool {
        (self.block..self.block + self.count).contains(&block)
    }

    /// What block `block` became, or what was read of it; zeroes for what zeroes.
    pub fn content(&self, block: u64) -> Content {
        let index = usize::try_from(block - self.block).expect("a block of it");
        self.contents.get(index).copied().unwrap_or(ZEROES)
    }
}

/// Something that happened to one block.
#[derive(Clone, Copy, Debug)]
struct Event {
    content: Content,
    sent: u64,
    done: u64,
}

#[derive(Default)]
struct Block {
    writes: Vec<Event>,
    trims: Vec<Event>,
    reads: Vec<Event>,
    /// Some changes were of parts of it.
    partial: bool,
}

/// Everything that cannot have been so, on a disk that was full of zeroes when it all began. `torn` says what is
/// wrong with contents that are none: only trims may leave them.
pub fn judge(ops: &[Op], blocks: u64, torn: &HashMap<Content, String>) -> Vec<String> {
    let mut all: Vec<Block> = (0..blocks).map(|_| Block::default()).collect();
    for op in ops {
        for number in op.block..op.block + op.count {
            let event = Event {
                content: op.content(number),
                sent: op.sent,
                done: op.done(),
            };
            let block = &mut all[usize::try_from(number).expect("a block")];
            block.partial |= op.kind == PARTIAL;
            match op.kind {
                cmd::WRITE | cmd::WRITE_ZEROES => block.writes.push(event),
                cmd::TRIM | PARTIAL => block.trims.push(event),
                cmd::READ if op.good() => block.reads.push(event),
                _ => {}
            }
        }
    }
    let mut complaints = Vec::new();
    for (number, block) in all.iter_mut().enumerate() {
        block.judge(number, torn, &mut complaints);
    }
    complaints
}

/// Whether a block was written after its last trim.
pub fn defined(ops: &[Op], block: u64) -> bool {
    let touching = || ops.iter().filter(|op| op.touches(block));
    let mut trims = touching().filter(|op| matches!(op.kind, cmd::TRIM | PARTIAL));
    trims.all(|trim| {
        let mut writes = touching().filter(|op| matches!(op.kind, cmd::WRITE | cmd::WRITE_ZEROES));
        writes.any(|write| write.good() && write.sent > trim.done())
    })
}

impl Block {
    fn judge(
        &mut self,
        number: usize,
        torn: &HashMap<Content, String>,
        complaints: &mut Vec<String>,
    ) {
        let beginning = Event {
            content: ZEROES,
            sent: 0,
            done: 0,
        };
        self.writes.push(beginning);
        self.writes.sort_by_key(|write| write.sent);
        // Of each write: when its version must have been there, and when it still was.
        let mut zones: Vec<(u64, u64)> = self.writes.iter().map(|w| (w.done, w.sent)).collect();
        for read in &self.reads {
            let versions: Vec<usize> = self.versions(read);
            let Some(&version) = versions.first() else {
                let fault = torn.get(&read.content);
                if (fault.is_some() || self.partial) && self.undefined(read) {
                    continue;
                }
                complaints.push(format!(
                    "block {number}: read {:x} between {} and {}, which it cannot have been then; {}; {}",
                    read.content,
                    read.sent,
                    read.done,
                    self.around(read),
                    fault.map_or("whole", String::as_str)
                ));
                continue;
            };
            if versions.len() > 1 || self.undefined(read) {
                continue;
            }
            let zone = &mut zones[version];
            zone.0 = zone.0.min(read.done);
            zone.1 = zone.1.max(read.sent);
        }
        let mut forward: Vec<(u64, u64, Content)> = Vec::new();
        let mut backward = Vec::new();
        for (zone, write) in zones.iter().zip(&self.writes) {
            match *zone {
                (u64::MAX, _) => {}
                (first, last) if first < last => forward.push((first, last, write.content)),
                (first, last) => backward.push((last, first, write.content)),
            }
        }
        forward.sort_unstable();
        for pair in forward.windows(2) {
            if pair[1].0 < pair[0].1 {
                complaints.push(format!(
                    "block {number}: {:x} was there until {} and {:x} from {} on: a value went back",
                    pair[0].2, pair[0].1, pair[1].2, pair[1].0
                ));
            }
        }
        for (from, to, content) in backward {
            // The only zone that can hold it is the last one that begins before it.
            let index = forward.partition_point(|zone| zone.0 < from);
            let zone = index.checked_sub(1).map(|index| forward[index]);
            if let Some(zone) = zone.filter(|zone| zone.1 > to) {
                complaints.push(format!(
                    "block {number}: {content:x} was written between {from} and {to}, yet {:x} was there \
                     from {} to {}: a write was lost",
                    zone.2, zone.0, zone.1
                ));
            }
        }
    }

    /// Which writes a read can have seen: by its content and, unless a trim spoils that, because no other write
    /// came wholly in between.
    fn versions(&self, read: &Event) -> Vec<usize> {
        let undefined = self.undefined(read);
        let wrote = |write: &Event| write.content == read.content && write.sent < read.done;
        if undefined && read.content == ZEROES {
            return vec![0, 0];
        }
        let candidates = self.writes.iter().enumerate();
        candidates
            .filter(|(_, write)| {
                wrote(write) && (undefined || !self.between(write.done, read.sent))
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Whether a write was sent after `done` and done before `sent`.
    fn between(&self, done: u64, sent: u64) -> bool {
        let first = self.writes.partition_point(|write| write.sent <= done);
        self.writes[first..]
            .iter()
            .take_while(|write| write.sent < sent)
            .any(|write| write.done < sent)
    }

    /// Whether a trim can be the last that happened before a read.
    fn undefined(&self, read: &Event) -> bool {
        self.trims
            .iter()
            .any(|trim| trim.sent < read.done && !self.between(trim.done, read.sent))
    }

    /// What was written last before a read.
    fn around(&self, read: &Event) -> String {
        let last: Vec<String> = self
            .writes
            .iter()
            .rev()
            .filter(|write| write.sent < read.done)
            .take(3)
            .map(|write| format!("{:x} from {} to {}", write.content, write.sent, write.done))
            .collect();
        format!("last written: {}", last.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind, content, sent, answered; all of block 0.
    fn judged(ops: &[(u16, Content, u64, u64)]) -> Vec<String> {
        let ops: Vec<Op> = ops
            .iter()
            .map(|&(kind, content, sent, answered)| Op {
                client: 0,
                kind,
                fua: false,
                block: 0,
                count: 1,
                contents: vec![content],
                sent,
                answered: (answered != 0).then_some(answered),
                error: 0,
            })
            .collect();
        let torn = HashMap::from([(TORN, "torn".to_owned())]);
        judge(&ops, 1, &torn)
    }

    const TORN: Content = 99;
    const W: u16 = cmd::WRITE;
    const Z: u16 = cmd::WRITE_ZEROES;
    const R: u16 = cmd::READ;
    const T: u16 = cmd::TRIM;

    #[test]
    fn possible() {
        let good: &[&[(u16, Content, u64, u64)]] = &[
            &[(R, 0, 1, 2), (W, 5, 3, 4), (R, 5, 5, 6)],
            // Either of two writes at one time can be the last; then it stays so.
            &[(W, 5, 1, 9), (W, 7, 2, 8), (R, 7, 10, 11), (R, 7, 12, 13)],
            &[(W, 5, 1, 9), (W, 7, 2, 8), (R, 5, 10, 11)],
            // Seen before its answer.
            &[(W, 5, 1, 9), (R, 0, 2, 3), (R, 5, 4, 5)],
            // Never answered.
            &[(W, 5, 1, 0), (R, 0, 2, 3), (R, 5, 4, 5)],
            // After a trim all that ever was.
            &[
                (W, 5, 1, 2),
                (W, 7, 3, 4),
                (T, 0, 5, 6),
                (R, 5, 7, 8),
                (R, 0, 9, 10),
                (R, 7, 11, 12),
            ],
            &[
                (W, 5, 1, 2),
                (Z, 0, 3, 4),
                (R, 0, 5, 6),
                (W, 7, 7, 8),
                (Z, 0, 9, 12),
                (R, 0, 10, 11),
            ],
        ];
        for (index, ops) in good.iter().enumerate() {
            assert_eq!(judged(ops), Vec::<String>::new(), "case {index}");
        }
    }

    #[test]
    fn impossible() {
        let bad: &[&[(u16, Content, u64, u64)]] = &[
            // Lost, and read at once.
            &[(W, 5, 1, 2), (R, 0, 3, 4)],
            // Undone.
            &[(W, 5, 1, 2), (W, 7, 3, 4), (R, 5, 5, 6)],
            // A value that was read goes back, though both writes were still on their way.
            &[(W, 5, 1, 20), (R, 5, 2, 3), (R, 0, 4, 5)],
            &[
                (W, 5, 1, 20),
                (W, 7, 1, 20),
                (R, 5, 2, 3),
                (R, 7, 4, 5),
                (R, 5, 6, 7),
            ],
            // Two writes at one time, of which each was the last.
            &[(W, 5, 1, 4), (W, 7, 2, 3), (R, 5, 5, 6), (R, 7, 7, 8)],
            // Zeroes that are lost.
            &[(W, 5, 1, 2), (Z, 0, 3, 4), (R, 5, 5, 6)],
            // Written after the trim.
            &[(T, 0, 1, 2), (W, 5, 3, 4), (R, 0, 5, 6)],
            // From nowhere, and from the future.
            &[(R, 9, 1, 2)],
            &[(R, 5, 1, 2), (W, 5, 3, 4)],
            // Even after a trim.
            &[(T, 0, 1, 2), (R, 9, 3, 4)],
        ];
        for (index, ops) in bad.iter().enumerate() {
            assert_ne!(judged(ops), Vec::<String>::new(), "case {index}");
        }
    }
}
