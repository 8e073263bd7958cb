// SPDX-License-Identifier: BSD-3-Clause
//! The table under test: every interleaving of a few threads with loom, examples otherwise.
//!
//! The server is a queue of cookies: what is pushed is answered at once, in order. The load stands
//! for a caller's buffer; a touch after it was handed back would be caught by the cell around it.

use super::*;

#[cfg(loom)]
#[allow(unsafe_code)]
mod models {
    use super::*;
    use crate::client::outbox::{Batch, Next, Outbox};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;
    use std::collections::VecDeque;

    /// A caller's buffer. loom fails the model if two threads touch it at once, or if its owner
    /// touches it without everything before having happened before.
    type Buffer = Arc<UnsafeCell<u32>>;

    fn touch(buffer: &Buffer) {
        // SAFETY: loom checks that this is the only access at the time.
        buffer.with_mut(|value| unsafe { *value += 1 });
    }

    fn touches(buffer: &Buffer) -> u32 {
        // SAFETY: likewise.
        buffer.with(|value| unsafe { *value })
    }

    struct Model {
        table: Inflight<Buffer, ()>,
        outbox: Outbox,
        server: Mutex<VecDeque<Cookie>>,
        cookies: [Mutex<Option<Cookie>>; SLOTS],
    }

    impl Model {
        fn new() -> Arc<Self> {
            let bell = Doorbell::new().expect("eventfd");
            Arc::new(Self {
                table: Inflight::new((), bell, Some(Lookout::default())),
                outbox: Outbox::new(),
                server: Mutex::new(VecDeque::new()),
                cookies: std::array::from_fn(|_| Mutex::new(None)),
            })
        }

        /// One request, as `Connection::submit` makes it.
        fn submit(&self) {
            let buffer: Buffer = Arc::new(UnsafeCell::new(0));
            let mut cookie = None;
            let ticket = self
                .table
                .claim(&Deadline::NEVER, |c| {
                    cookie = Some(c);
                    buffer.clone()
                })
                .expect("a slot");
            *lock(&self.cookies[ticket.index()]) = cookie;
            let own = ticket.index();
            if let Some(batch) = self.outbox.post(own, false) {
                self.send(Some(batch), own);
            }
            ticket.wait(
                &Deadline::NEVER,
                || (),
                || (),
                || self.send(None, own),
                |role| *role.parts().1 |= self.read(),
            );
            drop(ticket.finish());
            // The reply has arrived, once, and nobody else has a hand on the buffer.
            assert_eq!(touches(&buffer), 1);
        }

        /// The duty of sending, as `Connection::send` does it. The server takes one request at a
        /// time, so a sender may have to wait, and reads meanwhile if nobody else does.
        fn send(&self, batch: Option<Batch>, own: usize) {
            let mut batch = batch;
            loop {
                for index in batch.iter().flat_map(Batch::iter) {
                    let cookie = lock(&self.cookies[index]).expect("claimed");
                    let there = self.table.load(index).get().is_some();
                    assert!(there, "sent after its owner left");
                    while !self.try_push(cookie) {
                        match self.table.try_read_as_sender() {
                            Some(mut role) => *role.parts().1 |= self.read(),
                            None => self.until_called(),
                        }
                    }
                    self.table.wake(self.table.sent(index));
                }
                let answered = self.table.is_replied(own);
                let pass = |waiting: &mut dyn Iterator<Item = usize>| match answered {
                    true => self.table.pass_duty(waiting),
                    false => None,
                };
                match self.outbox.next(pass) {
                    Next::Send(next) => batch = Some(next),
                    Next::Passed(wake) => return self.table.wake(wake),
                    Next::Leave => return,
                }
            }
        }

        /// Waits as `Connection::wait_to_send` does: until the server has room or the bell rings,
        /// which goes with `sender_waits` being taken back.
        fn until_called(&self) {
            while lock(&self.table.reading).sender_waits && !lock(&self.server).is_empty() {
                thread::yield_now();
            }
        }

        fn try_push(&self, cookie: Cookie) -> bool {
            let mut server = lock(&self.server);
            let room = server.is_empty();
            if room {
                server.push_back(cookie);
                self.show(&server);
            }
            room
        }

        /// Lets whoever watches see whether the server has answered.
        fn show(&self, server: &VecDeque<Cookie>) {
            let lookouts = self.table.lookout.iter();
            lookouts.for_each(|lookout| lookout.show(!server.is_empty()));
        }

        /// Receives one reply; returns whom to wake. An empty queue is a receive that returned
        /// early.
        fn read(&self) -> SlotSet {
            let mut server = lock(&self.server);
            let Some(cookie) = server.pop_front() else {
                drop(server);
                thread::yield_now();
                return 0;
            };
            self.show(&server);
            drop(server);
            let over = self.table.with_cookie(cookie, |index, buffer| {
                touch(buffer);
                self.table.replied(index)
            });
            over.expect("every cookie in the queue is in flight")
        }
    }

    /// Every interleaving with at most so many threads stopped in the middle: more find no more
    /// mistakes, in experience, and take hours.
    fn bounded() -> loom::model::Builder {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder
    }

    fn check(threads: usize, requests: usize) {
        bounded().check(move || {
            let model = Model::new();
            let others: Vec<_> = (1..threads)
                .map(|_| {
                    let model = model.clone();
                    thread::spawn(move || (0..requests).for_each(|_| model.submit()))
                })
                .collect();
            (0..requests).for_each(|_| model.submit());
            for other in others {
                other.join().expect("no panic");
            }
            assert!(model.table.is_idle());
        });
    }

    /// Two threads, sharing slots, outbox and the reading role.
    #[test]
    fn loom_two_callers() {
        check(2, 1);
    }

    /// A slot is taken again while the other thread may still deal with its first use.
    #[test]
    fn loom_a_slot_is_reused() {
        check(2, 2);
    }

    /// More callers than slots.
    #[test]
    fn loom_callers_wait_for_a_slot() {
        check(3, 1);
    }

    /// A request that is answered late, while another's come and go: whoever watches misses nothing,
    /// be it answered before it looks, while the other reads or when nobody does.
    #[test]
    fn loom_who_watches_misses_nothing() {
        bounded().check(|| {
            let model = Model::new();
            let late = Arc::new(Mutex::new(None));
            let (other, given) = (model.clone(), late.clone());
            let owner = thread::spawn(move || {
                let table = &other.table;
                let mut cookie = None;
                let ticket = table
                    .claim(&Deadline::NEVER, |c| {
                        cookie = Some(c);
                        Arc::new(UnsafeCell::new(0))
                    })
                    .expect("a slot");
                table.wake(table.sent(ticket.index()));
                *lock(&given) = cookie;
                ticket.wait(
                    &Deadline::NEVER,
                    || (),
                    || (),
                    || panic!("it was sent"),
                    |role| *role.parts().1 |= other.read(),
                );
                assert_eq!(touches(&ticket.finish()), 1);
            });
            model.submit();
            let cookie = loop {
                match *lock(&late) {
                    Some(cookie) => break cookie,
                    None => thread::yield_now(),
                }
            };
            while !model.try_push(cookie) {
                thread::yield_now();
            }
            model.submit();
            owner.join().expect("no panic");
            assert!(model.table.is_idle());
        });
        assert!(Lookout::was_watched_from(), "somebody watched");
    }

    /// The duty comes to an owner that is an heir and, because of a neighbour's call, awake; its
    /// server takes nothing until somebody receives. Then the reader leaves: it must not count on
    /// the heir, who waits for the doorbell.
    #[test]
    fn loom_who_has_the_duty_is_no_heir() {
        bounded().check(|| {
            let model = Model::new();
            let role = model.table.try_read().expect("free");
            let other = model.clone();
            let owner = thread::spawn(move || {
                let table = &other.table;
                let ticket = table
                    .claim(&Deadline::NEVER, |_| Arc::new(UnsafeCell::new(0)))
                    .expect("a slot");
                let index = ticket.index();
                ticket.wait(
                    &Deadline::NEVER,
                    || (),
                    || (),
                    || {
                        while table.try_read_as_sender().is_none() {
                            while lock(&table.reading).sender_waits {
                                thread::yield_now();
                            }
                        }
                        table.wake(table.sent(index));
                    },
                    |role| *role.parts().1 |= table.replied(index),
                );
            });
            while lock(&model.table.reading).heirs != 1 {
                thread::yield_now();
            }
            model.table.wake(0b10);
            let wake = loop {
                match model.table.pass_duty([0].into_iter()) {
                    Some(wake) => break wake,
                    None => thread::yield_now(),
                }
            };
            model.table.wake(wake);
            drop(role);
            owner.join().expect("no panic");
        });
    }

    /// Called to look at any moment, before the sleep, in it and while it reads: the call is
    /// answered, and the request ends all the same.
    #[test]
    fn loom_whoever_is_called_to_look_goes_on() {
        bounded().check(|| {
            let model = Model::new();
            let role = model.table.try_read().expect("free");
            let other = model.clone();
            let looked = Arc::new(AtomicU32::new(0));
            let noted = looked.clone();
            let owner = thread::spawn(move || {
                let table = &other.table;
                let ticket = table
                    .claim(&Deadline::NEVER, |_| Arc::new(UnsafeCell::new(0)))
                    .expect("a slot");
                let index = ticket.index();
                table.wake(table.sent(index));
                ticket.wait(
                    &Deadline::NEVER,
                    || (),
                    || noted.store(1, Ordering::Release),
                    || (),
                    |role| {
                        // Nothing arrives before it has looked.
                        match noted.load(Ordering::Acquire) {
                            0 => thread::yield_now(),
                            _ => *role.parts().1 |= table.replied(index),
                        }
                    },
                );
            });
            let mut seen = Seen::default();
            while looked.load(Ordering::Acquire) == 0 {
                model.table.inspect(&mut seen);
                thread::yield_now();
            }
            drop(role);
            owner.join().expect("no panic");
        });
    }

    /// The reader abandons everything; nobody is left asleep.
    #[test]
    fn loom_a_lost_connection_ends_every_wait() {
        bounded().check(|| {
            let model = Model::new();
            let other = model.clone();
            let submit = |model: &Model| {
                let ticket = model
                    .table
                    .claim(&Deadline::NEVER, |_| Arc::new(UnsafeCell::new(0)))
                    .expect("a slot");
                assert_eq!(model.table.sent(ticket.index()), 0, "its owner is awake");
                ticket.wait(
                    &Deadline::NEVER,
                    || (),
                    || (),
                    || (),
                    |_| model.table.abandon(|buffer| touch(buffer)),
                );
                assert_eq!(touches(&ticket.finish()), 1);
            };
            let thread = thread::spawn(move || submit(&other));
            submit(&model);
            thread.join().expect("no panic");
        });
    }
}

#[cfg(not(loom))]
mod examples {
    use super::*;
    use std::time::Duration;

    fn table<P, R>(reader: R) -> Inflight<P, R> {
        Inflight::new(reader, Doorbell::new().expect("eventfd"), None)
    }

    #[test]
    fn a_cookie_is_good_for_one_reply_only() {
        let table = table::<u8, ()>(());
        let mut cookie = Cookie(0);
        let ticket = table
            .claim(&Deadline::NEVER, |c| {
                cookie = c;
                1
            })
            .expect("a slot");
        assert_eq!(table.with_cookie(cookie, |_, load| *load), Some(1));
        assert_eq!(table.sent(ticket.index()), 0, "its owner is awake");
        assert_eq!(table.replied(ticket.index()), 0, "its owner is awake");
        assert_eq!(table.progress(ticket.index()), OVER, "sent and replied");
        assert_eq!(table.with_cookie(cookie, |_, _| ()), None, "answered twice");
        ticket.finish();
        let again = table.claim(&Deadline::NEVER, |_| 2).expect("a slot");
        assert_eq!(again.index(), 0, "the same slot");
        assert_eq!(table.with_cookie(cookie, |_, _| ()), None, "a late reply");
        assert_eq!(
            table.with_cookie(Cookie(0xff), |_, _| ()),
            None,
            "no such slot"
        );
    }

    #[test]
    fn an_early_answer_does_not_end_a_request_that_is_still_being_sent() {
        let table = table::<u8, ()>(());
        let ticket = table.claim(&Deadline::NEVER, |_| 1).expect("a slot");
        assert_eq!(table.replied(ticket.index()), 0);
        assert_ne!(table.progress(ticket.index()), OVER);
        assert_eq!(table.sent(ticket.index()), 0, "its owner is awake");
        ticket.wait(
            &Deadline::NEVER,
            || (),
            || (),
            || (),
            |_| panic!("nothing is left to read"),
        );
    }

    #[test]
    fn a_panic_while_reading_passes_the_role_on() {
        let table = table::<u8, u32>(7);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let ticket = table.claim(&Deadline::NEVER, |_| 1).expect("a slot");
            assert_eq!(table.sent(ticket.index()), 0, "its owner is awake");
            ticket.wait(
                &Deadline::NEVER,
                || (),
                || (),
                || (),
                |_| panic!("on purpose"),
            );
        }));
        assert!(result.is_err());
        assert!(table.is_idle(), "the slot is free again");
        let mut role = table.try_read_as_sender().expect("the role is free again");
        assert_eq!(*role.parts().0, 7);
    }

    #[test]
    fn a_sleeper_is_called_at_its_deadline() {
        let table = table::<u8, ()>(());
        let _role = table.try_read_as_sender().expect("free");
        let ticket = table.claim(&Deadline::NEVER, |_| 1).expect("a slot");
        assert_eq!(table.sent(ticket.index()), 0, "its owner is awake");
        let index = ticket.index();
        ticket.wait(
            &Deadline::after(Duration::from_millis(5)),
            || assert_eq!(table.replied(index), 0, "it is awake"),
            || (),
            || (),
            |_| panic!("somebody else reads"),
        );
    }

    #[test]
    fn the_doorbell_rings_for_a_waiting_sender() {
        let table = table::<u8, ()>(());
        let role = table.try_read_as_sender().expect("free");
        assert!(table.try_read_as_sender().is_none());
        drop(role);
        let (stream, _peer) = crate::transport::unix::pair();
        let soon = Deadline::after(Duration::from_secs(5));
        let ready = stream
            .wait(false, false, Some(table.doorbell()), soon)
            .expect("poll");
        assert!(!ready.expired, "it rang");
    }

    #[test]
    fn whoever_waits_for_long_is_called_to_look() {
        let table: Inflight<u8, ()> = table(());
        let mut seen = Seen::default();
        assert!(!table.inspect(&mut seen), "nothing is in flight");
        let ticket = table.claim(&Deadline::NEVER, |_| 1).expect("a slot");
        let index = ticket.index();
        assert_eq!(table.sent(index), 0, "its owner is awake");
        assert!(!table.inspect(&mut seen), "it is new");
        assert!(table.inspect(&mut seen), "it was there the last time");
        let mut looked = 0;
        ticket.wait(
            &Deadline::NEVER,
            || (),
            || looked += 1,
            || (),
            |_| assert_eq!(table.replied(index), 0, "it is awake"),
        );
        assert_eq!(looked, 1);
        ticket.finish();
        assert!(!table.inspect(&mut seen));
        let next = table.claim(&Deadline::NEVER, |_| 2).expect("a slot");
        assert_eq!(next.index(), index, "the same slot");
        assert!(!table.inspect(&mut seen), "another request");
    }

    #[test]
    fn whoever_reads_for_long_is_called_to_look() {
        let table: Inflight<u8, ()> = table(());
        let ticket = table.claim(&Deadline::NEVER, |_| 1).expect("a slot");
        let index = ticket.index();
        assert_eq!(table.sent(index), 0, "its owner is awake");
        let (mut seen, looked) = (Seen::default(), std::cell::Cell::new(false));
        ticket.wait(
            &Deadline::NEVER,
            || (),
            || looked.set(true),
            || (),
            |_| {
                // As the lock of a slot that a receive fills cannot be taken.
                let _receiving = table.load(index);
                table.inspect(&mut seen);
                if looked.get() {
                    assert_eq!(table.replied(index), 0, "it is awake");
                }
            },
        );
        assert!(looked.get());
    }

    #[test]
    fn a_full_table_is_waited_for_until_the_deadline() {
        let table: Inflight<u8, ()> = table(());
        let all: Vec<_> = (0..SLOTS)
            .map(|_| table.claim(&Deadline::NEVER, |_| 1).expect("a slot"))
            .collect();
        let soon = Deadline::after(Duration::from_millis(5));
        assert!(table.claim(&soon, |_| 2).is_none());
        drop(all);
        assert!(table.claim(&soon, |_| 2).is_some(), "there is room at once");
    }

    /// Claims a slot and sleeps in it until its reply, with the reading role elsewhere.
    fn sleep_in_a_slot(table: &Inflight<u8, ()>, sent: bool, duty: impl FnMut()) {
        let ticket = table.claim(&Deadline::NEVER, |_| 1).expect("a slot");
        if sent {
            assert_eq!(table.sent(ticket.index()), 0, "its owner is awake");
        }
        ticket.wait(
            &Deadline::NEVER,
            || (),
            || (),
            duty,
            |_| assert_eq!(table.replied(ticket.index()), 0, "it is awake"),
        );
        ticket.finish();
    }

    /// Waits until these slots, and no others, are those of sleepers, and they have lain down.
    fn until_asleep(table: &Inflight<u8, ()>, slots: SlotSet) {
        let asleep =
            |index: usize| slots & (1 << index) == 0 || table.progress(index) & ASLEEP != 0;
        while lock(&table.reading).heirs != slots || !(0..SLOTS).all(asleep) {
            std::thread::yield_now();
        }
    }

    /// Who has slept is forgotten when it leaves. Otherwise the next owner of its slot would be
    /// taken for a sleeper, and get a role that it does not wait for.
    #[test]
    fn who_has_left_inherits_nothing() {
        let table = table::<u8, ()>(());
        let role = table.try_read().expect("free");
        std::thread::scope(|scope| {
            let first = scope.spawn(|| sleep_in_a_slot(&table, true, || ()));
            until_asleep(&table, 0b01);
            let over = table.replied(0);
            assert_eq!(over, 0b01, "answered by the reader");
            table.wake(over);
            first.join().expect("no panic");
            let awake = table.claim(&Deadline::NEVER, |_| 2).expect("a slot");
            assert_eq!(awake.index(), 0, "the same slot, its owner not asleep");
            scope.spawn(|| sleep_in_a_slot(&table, true, || ()));
            until_asleep(&table, 0b10);
            assert!(table.try_read_as_sender().is_none());
            // The sleeper gets the role, and so comes to its end.
            drop(role);
        });
    }

    #[test]
    fn the_duty_of_sending_is_passed_to_a_sleeper_only() {
        let table = table::<u8, ()>(());
        let role = table.try_read().expect("free");
        std::thread::scope(|scope| {
            scope.spawn(|| sleep_in_a_slot(&table, false, || assert_eq!(table.sent(0), 0)));
            until_asleep(&table, 0b01);
            let nobody = table.pass_duty([1, 2].into_iter());
            assert_eq!(nobody, None, "nobody sleeps there");
            let wake = table.pass_duty([1, 0].into_iter());
            assert_eq!(wake, Some(0b01));
            table.wake(0b01);
            until_asleep(&table, 0b01);
            drop(role);
        });
        assert!(table.is_idle());
    }
}
