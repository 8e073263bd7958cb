// SPDX-License-Identifier: BSD-3-Clause
//! The server's log, by requests.

use std::collections::HashMap;

use super::event::{Event, Request, What};
use crate::common::scripted::wire::cmd;
use crate::torture::block::{BLOCK, Content, ZEROES};

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub index: usize,
    pub at: u64,
}

/// A request that came to the server, and what became of it.
#[derive(Clone, Debug)]
pub struct Served {
    pub request: Request,
    pub epoch: u64,
    pub connection: u64,
    pub arrived: Point,
    /// What a read found.
    pub found: Vec<Content>,
    pub replied: Option<Point>,
    pub error: u32,
    /// Where its connection ended, if before the server did.
    pub closed: Option<usize>,
}

/// A life of the server.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    pub number: u64,
    pub start: u64,
    pub multi: bool,
}

pub struct Record {
    pub served: Vec<Served>,
    pub epochs: Vec<Epoch>,
    /// When each connection of each epoch could take requests.
    opened: HashMap<(u64, u64), usize>,
    /// Changes by block and what it became.
    applied: HashMap<(u64, Content), Vec<usize>>,
    flushes: HashMap<u64, Vec<usize>>,
}

impl Served {
    pub fn good(&self) -> Option<Point> {
        self.replied.filter(|_| self.error == 0)
    }

    pub fn is_change(&self) -> bool {
        matches!(
            self.request.kind,
            cmd::WRITE | cmd::WRITE_ZEROES | cmd::TRIM
        )
    }

    /// What a block becomes by it, if that is known.
    pub fn makes(&self, block: u64) -> Option<Content> {
        let size = BLOCK as u64;
        let (start, end) = (block * size, (block + 1) * size);
        let request = &self.request;
        if request.offset > start || request.offset + request.length < end {
            return None;
        }
        match request.kind {
            cmd::WRITE => {
                let index = usize::try_from(block - request.offset / size).ok()?;
                request.contents.get(index).copied()
            }
            cmd::WRITE_ZEROES => Some(ZEROES),
            _ => None,
        }
    }
}

impl Record {
    pub fn new(log: &[Event]) -> Self {
        let mut record = Self {
            served: Vec::new(),
            epochs: Vec::new(),
            opened: HashMap::new(),
            applied: HashMap::new(),
            flushes: HashMap::new(),
        };
        // The newest request with each cookie of each connection.
        let mut open: HashMap<(u64, u64, u64), usize> = HashMap::new();
        for (index, event) in log.iter().enumerate() {
            let point = Point {
                index,
                at: event.at,
            };
            let member = (event.epoch, event.connection);
            let key = |cookie: u64| (event.epoch, event.connection, cookie);
            match &event.what {
                What::Start { multi } => record.epochs.push(Epoch {
                    number: event.epoch,
                    start: event.at,
                    multi: *multi,
                }),
                What::Open => {
                    record.opened.insert(member, index);
                }
                What::Arrive(request) => {
                    open.insert(key(request.cookie), record.served.len());
                    record.served.push(Served {
                        request: request.clone(),
                        epoch: event.epoch,
                        connection: event.connection,
                        arrived: point,
                        found: Vec::new(),
                        replied: None,
                        error: 0,
                        closed: None,
                    });
                }
                What::Apply { cookie, contents } => {
                    if let Some(&number) = open.get(&key(*cookie)) {
                        record.served[number].found.clone_from(contents);
                    }
                }
                What::Reply { cookie, error } => {
                    if let Some(number) = open.remove(&key(*cookie)) {
                        record.served[number].replied = Some(point);
                        record.served[number].error = *error;
                    }
                }
                What::Close => {
                    open.retain(|(epoch, connection, _), number| {
                        let ours = (*epoch, *connection) == member;
                        if ours {
                            record.served[*number].closed = Some(index);
                        }
                        !ours
                    });
                }
            }
        }
        record.index();
        record
    }

    fn index(&mut self) {
        for (number, served) in self.served.iter().enumerate() {
            if served.request.kind == cmd::FLUSH {
                self.flushes.entry(served.epoch).or_default().push(number);
            }
            if served.is_change() {
                for block in served.request.blocks() {
                    if let Some(content) = served.makes(block) {
                        self.applied
                            .entry((block, content))
                            .or_default()
                            .push(number);
                    }
                }
            }
        }
    }

    /// The changes that make this of a block, in the order of their arrival.
    pub fn applied(&self, block: u64, content: Content) -> impl Iterator<Item = &Served> {
        let numbers = self.applied.get(&(block, content));
        let numbers = numbers.map_or(&[][..], Vec::as_slice);
        numbers.iter().map(|number| &self.served[*number])
    }

    pub fn epoch(&self, number: u64) -> Option<&Epoch> {
        self.epochs.iter().find(|epoch| epoch.number == number)
    }

    /// When this application of a change was certainly released: by FUA, or by the first flush that counts for it.
    pub fn released(&self, change: &Served) -> Option<u64> {
        let answered = change.good()?;
        if change.request.fua {
            return Some(answered.at);
        }
        let multi = self.epoch(change.epoch)?.multi;
        let flushes = self.flushes.get(&change.epoch)?;
        let flushes = || flushes.iter().map(|number| &self.served[*number]);
        let counts = |flush: &Served| -> Option<u64> {
            let replied = flush.good()?;
            let own = flush.connection == change.connection;
            let opened = self.opened.get(&(flush.epoch, flush.connection));
            let older = opened.is_some_and(|opened| *opened < answered.index);
            if flush.arrived.index < answered.index || !(own || (multi && older)) {
                return None;
            }
            // After a flush that failed the server may have forgotten it.
            let spoilt = flushes().any(|other| {
                let Some(failed) = other.replied.filter(|_| other.error != 0) else {
                    return false;
                };
                let concerns = multi || other.connection == change.connection;
                let known =
                    failed.index < flush.arrived.index || other.connection == flush.connection;
                concerns && known && answered.index < failed.index && failed.index < replied.index
            });
            (!spoilt).then_some(replied.at)
        };
        flushes().filter_map(counts).min()
    }
}
