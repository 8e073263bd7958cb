// SPDX-License-Identifier: BSD-3-Clause
//! The table of requests in flight, with nothing behind it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use nbdkit_nbd_plugin::client::inflight::Inflight;
use nbdkit_nbd_plugin::proto::request::Cookie;
use nbdkit_nbd_plugin::transport::{Deadline, Doorbell};

type Table = Inflight<u64, ()>;

pub fn bench(criterion: &mut Criterion) {
    let table = table();
    criterion.bench_function("inflight/claim, finish", |bencher| {
        bencher.iter(|| {
            table
                .claim(&Deadline::NEVER, |cookie| cookie.0)
                .expect("a slot")
                .finish()
        });
    });
    criterion.bench_function("inflight/whole request", |bencher| {
        bencher.iter(|| whole_request(&table));
    });
    criterion.bench_function("inflight/hand-over", |bencher| {
        bencher.iter_custom(HandOver::rounds);
    });
}

fn table() -> Table {
    Inflight::new((), Doorbell::new().expect("eventfd"), None)
}

/// What one thread alone does for a request.
fn whole_request(table: &Table) -> u64 {
    let mut cookie = None;
    let ticket = table
        .claim(&Deadline::NEVER, |c| {
            cookie = Some(c);
            c.0
        })
        .expect("a slot");
    assert_eq!(table.sent(ticket.index()), 0, "its owner is awake");
    ticket.wait(
        &Deadline::NEVER,
        || unreachable!("there is no deadline"),
        || (),
        || unreachable!("there is nothing more to send"),
        |_role| answer(table, cookie.expect("set by the claim")),
    );
    ticket.finish()
}

fn answer(table: &Table, cookie: Cookie) {
    let over = table.with_cookie(cookie, |index, _load| table.replied(index));
    assert_eq!(over, Some(0), "in flight, and its owner is awake");
}

/// Two threads that hand the reading role to each other with every request: who has it answers its
/// own request once the other waits for its reply, and makes the next one once the other reads.
struct HandOver {
    table: Table,
    asked: Mutex<VecDeque<(usize, Cookie)>>,
    /// Who read last.
    reading: AtomicUsize,
    /// One of them is done, so the other has nobody to wait for.
    alone: AtomicBool,
}

impl HandOver {
    /// Time for so many requests, each of which ends with a hand-over.
    fn rounds(count: u64) -> Duration {
        let this = Self {
            table: table(),
            asked: Mutex::default(),
            reading: AtomicUsize::new(usize::MAX),
            alone: AtomicBool::new(false),
        };
        let start = Instant::now();
        thread::scope(|scope| {
            for (who, share) in [count / 2, count.div_ceil(2)].into_iter().enumerate() {
                let this = &this;
                scope.spawn(move || {
                    for _ in 0..share {
                        this.request(who);
                    }
                    this.alone.store(true, Ordering::Release);
                });
            }
        });
        start.elapsed()
    }

    fn request(&self, who: usize) {
        while self.reading.load(Ordering::Acquire) == who && !self.is_alone() {
            thread::yield_now();
        }
        let mut asked = None;
        let ticket = self
            .table
            .claim(&Deadline::NEVER, |cookie| {
                asked = Some((who, cookie));
                cookie.0
            })
            .expect("a slot");
        assert_eq!(self.table.sent(ticket.index()), 0, "its owner is awake");
        self.asked().extend(asked);
        ticket.wait(
            &Deadline::NEVER,
            || unreachable!("there is no deadline"),
            || (),
            || unreachable!("there is nothing more to send"),
            |_role| self.read(who),
        );
        ticket.finish();
    }

    /// Answers the request of the thread that reads.
    fn read(&self, who: usize) {
        self.reading.store(who, Ordering::Release);
        let mut asked = self.asked();
        if asked.len() < 2 && !self.is_alone() {
            drop(asked);
            thread::yield_now();
            return;
        }
        let own = asked.iter().position(|(owner, _)| *owner == who);
        let (_, cookie) = own
            .and_then(|place| asked.remove(place))
            .expect("who reads waits for a reply");
        drop(asked);
        answer(&self.table, cookie);
    }

    fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Acquire)
    }

    fn asked(&self) -> MutexGuard<'_, VecDeque<(usize, Cookie)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
