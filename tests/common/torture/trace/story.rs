// SPDX-License-Identifier: BSD-3-Clause
//! What clients did to each block.

use std::collections::{BTreeMap, HashMap};

use crate::common::scripted::wire::cmd;
use crate::torture::block::{Content, ZEROES};
use crate::torture::history::Op;

/// For a while a change was the newest of a block, and no other was on its way.
#[derive(Clone, Copy)]
pub struct Newest<'a> {
    pub op: &'a Op,
    pub block: u64,
    /// From its answer.
    pub from: u64,
    /// To when the next was sent.
    pub to: u64,
}

impl Newest<'_> {
    pub fn content(&self) -> Content {
        self.op.content(self.block)
    }
}

pub struct Story<'a> {
    pub ops: &'a [Op],
    /// Changes of each block, in the order of sending.
    blocks: BTreeMap<u64, Vec<&'a Op>>,
    writers: HashMap<(u64, Content), Option<&'a Op>>,
}

impl<'a> Story<'a> {
    pub fn new(ops: &'a [Op]) -> Self {
        let mut blocks: BTreeMap<u64, Vec<&Op>> = BTreeMap::new();
        let mut writers = HashMap::new();
        for op in ops.iter().filter(|op| op.changes()) {
            for block in op.block..op.block + op.count {
                blocks.entry(block).or_default().push(op);
                if op.kind == cmd::WRITE {
                    // What was written twice can be either's.
                    writers
                        .entry((block, op.content(block)))
                        .and_modify(|writer| *writer = None)
                        .or_insert(Some(op));
                }
            }
        }
        for changes in blocks.values_mut() {
            changes.sort_by_key(|op| op.sent);
        }
        Self {
            ops,
            blocks,
            writers,
        }
    }

    /// Who wrote this; zeroes can be anybody's.
    pub fn writer(&self, block: u64, content: Content) -> Option<&'a Op> {
        if content == ZEROES {
            return None;
        }
        self.writers.get(&(block, content)).copied().flatten()
    }

    /// The changes of a block, in the order of sending.
    pub fn changes(&self, block: u64) -> &[&'a Op] {
        self.blocks.get(&block).map_or(&[], Vec::as_slice)
    }

    /// All changes that were the newest beyond doubt, trims excepted.
    pub fn newest(&self) -> Vec<Newest<'a>> {
        let mut all = Vec::new();
        for (&block, changes) in &self.blocks {
            let mut done = 0;
            for (index, op) in changes.iter().enumerate() {
                let next = changes.get(index + 1).map_or(u64::MAX, |next| next.sent);
                let alone = done < op.sent && op.good() && op.done() < next;
                if alone && matches!(op.kind, cmd::WRITE | cmd::WRITE_ZEROES) {
                    all.push(Newest {
                        op,
                        block,
                        from: op.done(),
                        to: next,
                    });
                }
                done = done.max(op.done());
            }
        }
        all
    }

    /// Flushes that succeeded, in the order of sending.
    pub fn flushes(&self) -> Vec<&'a Op> {
        let flushes = self
            .ops
            .iter()
            .filter(|op| op.kind == cmd::FLUSH && op.good());
        let mut flushes: Vec<&Op> = flushes.collect();
        flushes.sort_by_key(|op| op.sent);
        flushes
    }

    /// When each client sent its first request.
    pub fn births(&self) -> HashMap<usize, u64> {
        let mut births = HashMap::new();
        for op in self.ops {
            let birth = births.entry(op.client).or_insert(op.sent);
            *birth = op.sent.min(*birth);
        }
        births
    }
}
