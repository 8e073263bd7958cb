// SPDX-License-Identifier: BSD-3-Clause
//! Random writers: they know what they wrote, and log what they saw.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::common::scripted::wire::{cmd, cmd_flag, flag};

use super::Rng;
use super::block::{self, BLOCK, Content};
use super::client::{Answer, Client};
use super::history::Op;

/// By when an answer must have come; the server is never away for so long.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// The number of the first client that is no writer's first.
const FIRST_OF_THE_LATER: usize = 100;

/// Of a hundred requests so many are reads, FUA writes, zeroes, trims and flushes; the rest are writes.
#[derive(Clone, Copy)]
pub struct Mix {
    pub reads: u64,
    pub fua: u64,
    pub zeroes: u64,
    pub trims: u64,
    pub flushes: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            reads: 30,
            fua: 4,
            zeroes: 6,
            trims: 4,
            flushes: 2,
        }
    }
}

/// What all writers of a disk share.
pub struct Story {
    pub seed: u64,
    pub blocks: u64,
    /// The next version of each block.
    counters: Vec<AtomicU64>,
    ops: Mutex<Vec<Op>>,
    torn: Mutex<HashMap<Content, String>>,
    /// Answers so far.
    pub progress: AtomicU64,
    pub stop: AtomicBool,
    /// Whether a request may fail.
    pub may_fail: AtomicBool,
    /// Whether a flush may.
    pub flush_may_fail: AtomicBool,
    /// How many clients there have been.
    clients: AtomicUsize,
}

impl Story {
    pub fn new(seed: u64, blocks: u64) -> Self {
        Self {
            seed,
            blocks,
            counters: (0..blocks).map(|_| AtomicU64::new(1)).collect(),
            ops: Mutex::default(),
            torn: Mutex::default(),
            progress: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            may_fail: AtomicBool::new(false),
            flush_may_fail: AtomicBool::new(false),
            clients: AtomicUsize::new(FIRST_OF_THE_LATER),
        }
    }

    /// All operations so far that have ended, or that never will.
    pub fn ops(&self) -> Vec<Op> {
        self.ops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What is wrong with contents that were read and are none of a block's.
    pub fn torn(&self) -> HashMap<Content, String> {
        self.torn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn tear(&self, content: Content, fault: String) {
        self.torn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(content, fault);
    }

    fn add(&self, op: Op) {
        self.ops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(op);
        self.progress.fetch_add(1, Ordering::SeqCst);
    }

    /// New versions of some blocks.
    fn versions(&self, first: u64, count: u64) -> Vec<u8> {
        let bytes = (first..first + count).map(|number| {
            let index = usize::try_from(number).expect("a block");
            let counter = self.counters[index].fetch_add(1, Ordering::SeqCst);
            block::bytes(number, counter, self.seed)
        });
        bytes.flatten().collect()
    }
}

/// One client with its requests in flight.
pub struct Writer<'a> {
    story: &'a Story,
    client: Client,
    number: usize,
    rng: Rng,
    flying: HashMap<u64, Op>,
}

impl<'a> Writer<'a> {
    pub fn new(story: &'a Story, client: Client, number: usize, rng: Rng) -> Self {
        Self {
            story,
            client,
            number,
            rng,
            flying: HashMap::new(),
        }
    }

    /// Sends random requests, `depth` at a time, until the story stops; then takes the last answers. After
    /// `stay` answers, if that is not zero, it leaves, and another client takes its place.
    pub fn run(&mut self, mix: Mix, depth: usize, stay: u64, socket: &Path) {
        let mut taken = 0;
        while !self.story.stop.load(Ordering::SeqCst) {
            while self.flying.len() < depth {
                self.random(mix);
            }
            self.take();
            taken += 1;
            if taken == stay {
                taken = 0;
                self.replace(socket);
            }
        }
        self.settle();
    }

    /// Leaves in good order, while the server lives or not, and comes as somebody else.
    fn replace(&mut self, socket: &Path) {
        self.settle();
        self.client.close(PATIENCE);
        let client = Client::open(socket);
        self.client = client.unwrap_or_else(|error| panic!("no client any more: {error}"));
        self.number = self.story.clients.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes the answers to all that is in flight.
    pub fn settle(&mut self) {
        while !self.flying.is_empty() {
            self.take();
        }
    }

    fn random(&mut self, mix: Mix) {
        let count = 1 + self.rng.below(8) * self.rng.below(2);
        let first = self.rng.below(self.story.blocks - count);
        let mut dice = self.rng.below(100);
        let mut falls = |weight: u64| {
            let falls = dice < weight;
            dice = dice.wrapping_sub(weight);
            falls
        };
        if falls(mix.reads) {
            self.submit(cmd::READ, 0, first, count);
        } else if falls(mix.fua) {
            self.submit(cmd::WRITE, cmd_flag::FUA, first, count);
        } else if falls(mix.zeroes) {
            let fua = if self.rng.chance(10) {
                cmd_flag::FUA
            } else {
                0
            };
            self.submit(cmd::WRITE_ZEROES, fua, first, count);
        } else if falls(mix.trims) {
            self.submit(cmd::TRIM, 0, first, count);
        } else if falls(mix.flushes) {
            self.submit(cmd::FLUSH, 0, 0, 0);
        } else {
            self.submit(cmd::WRITE, 0, first, count);
        }
    }

    /// Sends one request for some blocks.
    pub fn submit(&mut self, kind: u16, flags: u16, block: u64, count: u64) -> u64 {
        let bytes = match kind {
            cmd::WRITE => self.story.versions(block, count),
            _ => Vec::new(),
        };
        let size = BLOCK as u64;
        let fua = flags & cmd_flag::FUA != 0;
        let op = Op::of(self.number, kind, fua, block * size, count * size, &bytes);
        let cookie = self
            .client
            .submit(kind, flags, block * size, count * size, &bytes);
        self.flying.insert(cookie, op);
        cookie
    }

    /// Waits for one answer, which must come.
    fn take(&mut self) {
        let Some(answer) = self.client.next(PATIENCE) else {
            let waiting: Vec<_> = self.flying.values().map(|op| (op.kind, op.block)).collect();
            panic!(
                "client {}: no answer within {PATIENCE:?} to (kind, block) {waiting:?}",
                self.number
            );
        };
        self.took(answer);
    }

    fn took(&mut self, answer: Answer) -> u32 {
        let op = self.flying.remove(&answer.cookie);
        let mut op = op.expect("an answer to one of our requests");
        op.answered = Some(answer.at);
        op.error = answer.error;
        if answer.error != 0 {
            let flush = op.kind == cmd::FLUSH && self.story.flush_may_fail.load(Ordering::SeqCst);
            assert!(
                flush || self.story.may_fail.load(Ordering::SeqCst),
                "client {}: error {} to kind {} at block {}",
                self.number,
                answer.error,
                op.kind,
                op.block
            );
        } else if op.kind == cmd::READ {
            for (number, bytes) in (op.block..).zip(answer.data.chunks_exact(BLOCK)) {
                if let Some(fault) = block::fault(bytes, number, self.story.seed) {
                    self.story.tear(block::content(bytes), fault);
                }
            }
            op.contents = block::contents(&answer.data);
        }
        let error = op.error;
        self.story.add(op);
        error
    }

    /// One request, and the error in its answer.
    pub fn request(&mut self, kind: u16, flags: u16, block: u64, count: u64) -> u32 {
        let cookie = self.submit(kind, flags, block, count);
        while self.flying.contains_key(&cookie) {
            let Some(answer) = self.client.next(PATIENCE) else {
                panic!("client {}: no answer to kind {kind}", self.number);
            };
            let ours = answer.cookie == cookie;
            let error = self.took(answer);
            if ours {
                return error;
            }
        }
        unreachable!("its answer has not been taken before");
    }

    /// Reads the whole disk.
    pub fn read_all(&mut self) {
        const STEP: u64 = 32;
        for block in (0..self.story.blocks).step_by(STEP as usize) {
            let count = STEP.min(self.story.blocks - block);
            assert_eq!(self.request(cmd::READ, 0, block, count), 0, "read it all");
        }
    }

    pub fn can_flush(&self) -> bool {
        self.client.flags & flag::SEND_FLUSH != 0
    }

    pub fn flush(&mut self) -> u32 {
        self.request(cmd::FLUSH, 0, 0, 0)
    }

    pub fn close(mut self, limit: Duration) {
        self.client.close(limit);
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // What was never answered may have been done all the same.
        for (_, op) in self.flying.drain() {
            self.story.add(op);
        }
    }
}
