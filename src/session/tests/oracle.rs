// SPDX-License-Identifier: BSD-3-Clause
//! What the front clients were told, and so what has to be true.
//!
//! For each block all changes in the order in which they were taken (their places in the order). A
//! read that begins after a change was acknowledged, or after another read has seen it, finds that
//! or a later one; storage holds what a good flush covered, or a later one. What a failed change
//! wrote may be there or not until the next good change, and after a trim anything may be read.

use super::server::{Server, Value};

#[derive(Clone, Debug)]
struct Version {
    value: Value,
    trim: bool,
    client: usize,
    /// When it was acknowledged, or seen.
    certain: Option<u64>,
    acknowledged: Option<u64>,
    failed: bool,
}

impl Version {
    fn could_read(&self, value: Value) -> bool {
        self.trim || self.value == value
    }
}

#[derive(Clone, Debug)]
pub(super) struct Oracle {
    blocks: Vec<Vec<Version>>,
    /// For each block the oldest change that permanent storage may hold.
    durable: Vec<usize>,
    /// Whose own changes a flush covers: everybody's with `NBD_FLAG_CAN_MULTI_CONN`.
    everybody: bool,
}

pub(super) type Verdict = Result<(), String>;

impl Oracle {
    pub(super) fn new(blocks: usize, everybody: bool) -> Self {
        let first = Version {
            value: 0,
            trim: false,
            client: usize::MAX,
            certain: Some(0),
            acknowledged: Some(0),
            failed: false,
        };
        Self {
            blocks: vec![vec![first]; blocks],
            durable: vec![0; blocks],
            everybody,
        }
    }

    /// A change has taken its place in the order: its number for a block.
    pub(super) fn queued(
        &mut self,
        block: usize,
        client: usize,
        value: Value,
        trim: bool,
    ) -> usize {
        self.blocks[block].push(Version {
            value,
            trim,
            client,
            certain: None,
            acknowledged: None,
            failed: false,
        });
        self.blocks[block].len() - 1
    }

    pub(super) fn acknowledged(&mut self, block: usize, number: usize, now: u64, lasting: bool) {
        let version = &mut self.blocks[block][number];
        version.acknowledged = Some(now);
        version.certain = Some(version.certain.map_or(now, |seen| seen.min(now)));
        if lasting {
            self.durable[block] = self.durable[block].max(number);
        }
    }

    pub(super) fn failed(&mut self, block: usize, number: usize) {
        self.blocks[block][number].failed = true;
    }

    /// Whether only this client has ever changed the block.
    pub(super) fn is_own(&self, block: usize, client: usize) -> bool {
        self.blocks[block][1..].iter().all(|v| v.client == client)
    }

    /// A read that began at `since` was answered.
    pub(super) fn has_read(&mut self, block: usize, value: Value, since: u64, now: u64) -> Verdict {
        let versions = &mut self.blocks[block];
        let is_floor = |v: &Version| !v.failed && v.certain.is_some_and(|at| at < since);
        let floor = versions.iter().rposition(is_floor).unwrap_or(0);
        let fits = |v: &&mut Version| v.could_read(value);
        let mut candidates: Vec<&mut Version> = versions[floor..].iter_mut().filter(fits).collect();
        if candidates.is_empty() {
            let was = versions[floor].value;
            return Err(format!(
                "block {block}: read {value}, though {was} was certain before"
            ));
        }
        // Where it is not clear which one was seen, none was.
        if !candidates.iter().any(|v| v.trim || v.failed) {
            let first = &mut candidates[0];
            first.certain = Some(first.certain.map_or(now, |at| at.min(now)));
        }
        Ok(())
    }

    /// A client was told that a flush which it asked for at `since` has succeeded; `met` is when it
    /// met the server, for what it is responsible for.
    pub(super) fn flushed(&mut self, client: usize, since: u64, met: u64) {
        for (versions, durable) in self.blocks.iter().zip(&mut self.durable) {
            let covered = |v: &Version| {
                (self.everybody || v.client == client)
                    && v.acknowledged.is_some_and(|at| met <= at && at < since)
            };
            if let Some(last) = versions.iter().rposition(covered) {
                *durable = last.max(*durable);
            }
        }
    }

    /// What a flush has covered is in permanent storage, now.
    pub(super) fn check(&self, server: &Server) -> Verdict {
        self.check_from(server, |block| self.durable[block], "flushed")
    }

    /// Everything that was acknowledged is.
    pub(super) fn check_all(&self, server: &Server) -> Verdict {
        let newest = |block: usize| {
            let versions = &self.blocks[block];
            let is_newest = |v: &Version| v.acknowledged.is_some();
            versions.iter().rposition(is_newest).unwrap_or(0)
        };
        self.check_from(server, newest, "acknowledged")
    }

    fn check_from(&self, server: &Server, from: impl Fn(usize) -> usize, what: &str) -> Verdict {
        for (block, versions) in self.blocks.iter().enumerate() {
            let from = from(block);
            let wrong = server
                .possible(block)
                .find(|value| !versions[from..].iter().any(|v| v.could_read(*value)));
            if let Some(value) = wrong {
                return Err(format!(
                    "block {block}: storage may hold {value}, though {} was {what}",
                    versions[from].value
                ));
            }
        }
        Ok(())
    }
}
