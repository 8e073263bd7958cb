// SPDX-License-Identifier: BSD-3-Clause
//! The checker of traces, on traces made by hand: good ones, and for each invariant one that breaks it.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use crate::common::scripted::wire::{cmd, errno};
use crate::torture::block::{BLOCK, Content};
use crate::torture::history::Op;
use crate::torture::trace::event::{Event, Request, What};
use crate::torture::trace::judge;

/// A trace that grows; its clock goes on by one with everything that happens.
#[derive(Default)]
struct Trace {
    log: Vec<Event>,
    ops: Vec<Op>,
    clock: u64,
    epoch: u64,
    cookies: u64,
}

/// What a client asked for, and where that is at the server.
#[derive(Clone, Copy)]
struct Flying {
    op: usize,
    connection: u64,
    cookie: u64,
}

const NEVER: Content = 0;

impl Trace {
    fn new(multi: bool) -> Self {
        let mut trace = Self::default();
        trace.life(multi);
        trace.open(1);
        trace
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn event(&mut self, connection: u64, what: What) {
        let at = self.tick();
        let epoch = self.epoch;
        self.log.push(Event {
            at,
            epoch,
            connection,
            what,
        });
    }

    /// The server begins anew.
    fn life(&mut self, multi: bool) {
        self.epoch += 1;
        self.event(0, What::Start { multi });
    }

    fn open(&mut self, connection: u64) {
        self.event(connection, What::Open);
    }

    fn asks(&mut self, client: usize, kind: u16, content: Content) -> usize {
        let sent = self.tick();
        let flush = kind == cmd::FLUSH;
        self.ops.push(Op {
            client,
            kind,
            fua: false,
            block: 0,
            count: u64::from(!flush),
            contents: if kind == cmd::WRITE {
                vec![content]
            } else {
                Vec::new()
            },
            sent,
            answered: None,
            error: 0,
        });
        self.ops.len() - 1
    }

    fn arrives(&mut self, connection: u64, kind: u16, content: Content) -> u64 {
        self.cookies += 1;
        let cookie = self.cookies;
        let request = Request {
            cookie,
            kind,
            fua: false,
            offset: 0,
            length: if kind == cmd::FLUSH { 0 } else { BLOCK as u64 },
            contents: if kind == cmd::WRITE {
                vec![content]
            } else {
                Vec::new()
            },
        };
        self.event(connection, What::Arrive(request));
        cookie
    }

    fn replies(&mut self, connection: u64, cookie: u64, error: u32) {
        self.event(connection, What::Reply { cookie, error });
    }

    fn told(&mut self, op: usize, error: u32) {
        let at = self.tick();
        self.ops[op].answered = Some(at);
        self.ops[op].error = error;
    }

    /// A client's request comes to the server.
    fn begins(&mut self, client: usize, connection: u64, kind: u16, content: Content) -> Flying {
        let op = self.asks(client, kind, content);
        let cookie = self.arrives(connection, kind, content);
        Flying {
            op,
            connection,
            cookie,
        }
    }

    /// It is done and answered.
    fn ends(&mut self, flying: Flying) {
        self.replies(flying.connection, flying.cookie, 0);
        self.told(flying.op, 0);
    }

    fn does(&mut self, client: usize, connection: u64, kind: u16, content: Content) {
        let flying = self.begins(client, connection, kind, content);
        self.ends(flying);
    }

    /// A client reads, and finds this.
    fn reads(&mut self, connection: u64, content: Content) {
        let flying = self.begins(0, connection, cmd::READ, NEVER);
        let cookie = flying.cookie;
        let contents = vec![content];
        self.ops[flying.op].contents.clone_from(&contents);
        self.event(connection, What::Apply { cookie, contents });
        self.ends(flying);
    }

    /// The plugin sends something of its own, and gets this answer.
    fn sends(&mut self, connection: u64, kind: u16, content: Content, error: u32) {
        let cookie = self.arrives(connection, kind, content);
        self.replies(connection, cookie, error);
    }

    fn good(self) {
        assert_eq!(judge(&self.log, &self.ops), Vec::<String>::new());
    }

    /// It breaks this rule, and no other.
    fn breaks(self, rule: &str) {
        let breaches = judge(&self.log, &self.ops);
        assert!(!breaches.is_empty(), "{rule}: nothing found");
        for breach in breaches {
            assert!(breach.starts_with(rule), "{rule}: {breach}");
        }
    }
}

const W: u16 = cmd::WRITE;
const F: u16 = cmd::FLUSH;

#[test]
fn released_by_a_flush_and_not_sent_again() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    t.does(0, 1, F, NEVER);
    t.life(false);
    t.open(1);
    t.reads(1, 5);
    t.good();
}

#[test]
fn sent_again_before_all_else() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    let write = t.begins(0, 1, W, 6);
    t.life(false);
    t.open(1);
    t.sends(1, W, 5, 0);
    let cookie = t.arrives(1, W, 6);
    t.ends(Flying { cookie, ..write });
    t.reads(1, 6);
    t.good();
}

#[test]
fn i2_released_without_a_flush() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    t.life(false);
    t.open(1);
    t.reads(1, 0);
    t.breaks("I2");
}

#[test]
fn i2_released_by_a_flush_that_was_sent_too_early() {
    let mut t = Trace::new(false);
    let write = t.begins(0, 1, W, 5);
    let cookie = t.arrives(1, F, NEVER);
    t.ends(write);
    t.replies(1, cookie, 0);
    t.life(false);
    t.open(1);
    t.reads(1, 0);
    t.breaks("I2");
}

#[test]
fn i2_released_by_a_flush_on_another_connection() {
    let other = |multi: bool, older: bool| {
        let mut t = Trace::new(multi);
        if older {
            t.open(2);
        }
        t.does(0, 1, W, 5);
        if !older {
            t.open(2);
        }
        t.sends(2, F, NEVER, 0);
        t.life(multi);
        t.open(1);
        t.reads(1, 5);
        t
    };
    other(true, true).good();
    other(true, false).breaks("I2");
    other(false, true).breaks("I2");
}

#[test]
fn i2_client_is_told_of_a_flush_that_covers_less() {
    let mut t = Trace::new(false);
    let write = t.begins(0, 1, W, 5);
    let cookie = t.arrives(1, F, NEVER);
    t.ends(write);
    let op = t.asks(0, F, NEVER);
    t.replies(1, cookie, 0);
    t.told(op, 0);
    t.breaks("I2");
}

#[test]
fn i3_released_by_a_flush_that_failed() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    t.sends(1, F, NEVER, errno::EIO);
    t.does(0, 1, F, NEVER);
    t.breaks("I3");
}

#[test]
fn i3_written_again_before_the_next_flush() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    t.sends(1, F, NEVER, errno::EIO);
    t.sends(1, W, 5, 0);
    t.does(0, 1, F, NEVER);
    t.life(false);
    t.open(1);
    t.reads(1, 5);
    t.good();
}

#[test]
fn i3_flush_that_crosses_a_loss() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    let flush = t.begins(0, 1, F, NEVER);
    t.life(false);
    t.told(flush.op, 0);
    t.breaks("I3");
}

#[test]
fn i4_two_changes_at_one_time() {
    let mut t = Trace::new(false);
    let one = t.begins(0, 1, W, 5);
    let two = t.begins(0, 1, W, 6);
    t.ends(one);
    t.ends(two);
    t.breaks("I4");
}

/// One client's change is under way while another connection's journal is written again.
#[test]
fn i4_a_change_beside_a_replay_is_done_once_more() {
    let beside = |again: bool| {
        let mut t = Trace::new(false);
        t.does(0, 1, W, 5);
        t.life(false);
        t.open(1);
        t.open(2);
        t.sends(1, W, 5, 0);
        let replay = t.arrives(2, W, 5);
        let write = t.begins(1, 1, W, 6);
        t.replies(1, write.cookie, 0);
        t.replies(2, replay, 0);
        if again {
            t.sends(1, W, 6, 0);
        }
        t.told(write.op, 0);
        t
    };
    beside(true).good();
    beside(false).breaks("I4");
}

#[test]
fn i5_older_content_is_sent_again() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    t.does(0, 1, W, 6);
    t.life(false);
    t.open(1);
    t.sends(1, W, 5, 0);
    t.sends(1, W, 6, 0);
    t.reads(1, 6);
    t.breaks("I5");
}

#[test]
fn i5_what_a_trim_has_cut_is_sent_again() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    t.does(0, 1, cmd::TRIM, NEVER);
    t.life(false);
    t.open(1);
    t.sends(1, W, 5, 0);
    t.breaks("I5");
}

#[test]
fn i6_read_overtakes_the_replay() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    t.life(false);
    t.open(1);
    t.reads(1, 0);
    t.sends(1, W, 5, 0);
    t.breaks("I6");
}

#[test]
fn i6_read_overtakes_a_write_in_flight() {
    let mut t = Trace::new(false);
    let write = t.begins(0, 1, W, 5);
    t.life(false);
    t.open(1);
    t.reads(1, 0);
    let cookie = t.arrives(1, W, 5);
    t.ends(Flying { cookie, ..write });
    t.breaks("I6");
}

#[test]
fn i6_new_write_overtakes_one_in_flight() {
    let mut t = Trace::new(false);
    let write = t.begins(0, 1, W, 5);
    t.life(false);
    t.open(1);
    t.does(0, 1, W, 6);
    let cookie = t.arrives(1, W, 5);
    t.ends(Flying { cookie, ..write });
    t.breaks("I6");
}

#[test]
fn i7_answered_and_never_done() {
    let mut t = Trace::new(false);
    let write = t.begins(0, 1, W, 5);
    t.life(false);
    t.told(write.op, 0);
    t.breaks("I7");
}

#[test]
fn i7_read_that_was_made_up() {
    let mut t = Trace::new(false);
    t.does(0, 1, W, 5);
    let read = t.begins(0, 1, cmd::READ, NEVER);
    t.ops[read.op].contents = vec![5];
    t.life(false);
    t.told(read.op, 0);
    t.breaks("I7");
}

#[test]
fn i9_one_clients_content_undoes_anothers() {
    let mut t = Trace::new(false);
    t.open(2);
    t.does(0, 1, W, 5);
    t.does(1, 2, W, 6);
    t.life(false);
    t.open(1);
    t.sends(1, W, 5, 0);
    t.sends(1, W, 6, 0);
    t.reads(1, 6);
    t.breaks("I9");
}

#[test]
fn i11_a_write_after_a_failed_replay() {
    let failed = |later: usize| {
        let mut t = Trace::new(false);
        t.does(0, 1, W, 5);
        t.life(false);
        t.open(1);
        t.sends(1, W, 5, errno::ENOSPC);
        t.does(later, 1, cmd::TRIM, NEVER);
        t
    };
    failed(0).breaks("I11");
    // Who came afterwards has lost nothing.
    failed(1).good();
}

#[test]
fn lines_survive_the_way_through_the_file() {
    let mut t = Trace::new(true);
    t.reads(1, 0xabc);
    t.does(0, 1, W, 5);
    for event in &t.log {
        let line = event.to_line();
        assert_eq!(Event::from_line(line.trim_end()).as_ref(), Some(event));
    }
}
