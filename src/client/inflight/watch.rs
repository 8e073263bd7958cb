// SPDX-License-Identifier: BSD-3-Clause
//! Who waits for long while others come and go, and watches the stream rather than receive for them.
//!
//! At most one owner watches. It holds no role and is no heir: it sleeps at the [`Lookout`], where it
//! sees what arrives while nobody reads, and is called like every sleeper when its request is over.
//! Who takes the role makes it look away, and who gives the role back without an heir makes it look
//! again, which shows it also what has arrived before. Nothing can get lost between the two: whoever
//! sees something asks for the role, and if another has it, is the heir.

use super::{Inflight, Ordering, SENT, SLOTS, SlotSet, Ticket, lock};
use crate::client::sync::Lookout;
use crate::transport::{Deadline, PAUSE};

impl<P, R> Inflight<P, R> {
    /// Who watches.
    pub(super) fn watcher(&self) -> SlotSet {
        match self.watcher.load(Ordering::Acquire) {
            0 => 0,
            place => 1 << (place - 1),
        }
    }

    /// Makes the reader the one that watches, unless somebody waits who would rather read. It then
    /// gives the role back and watches; that others look is seen to when they do so too.
    pub(super) fn appoint(&self, index: usize) -> Option<&Lookout> {
        let lookout = self.lookout.as_ref()?;
        let reading = lock(&self.reading);
        // Those whose requests are over have been woken and are about to leave.
        let waits = |other: usize| reading.heirs & (1 << other) != 0 && !self.is_replied(other);
        let alone = reading.heirs == 0 || !(0..SLOTS).any(waits);
        let free = alone && self.watcher() == 0 && self.progress(index) == SENT;
        (free && lookout.open()).then(|| {
            self.watcher.store(index as u32 + 1, Ordering::Release);
            lookout
        })
    }

    /// Nobody watches any more.
    fn relieve(&self) {
        let reading = lock(&self.reading);
        self.watcher.store(0, Ordering::Release);
        drop(reading);
    }

    /// Says whether whoever watches is to look.
    pub(super) fn look(&self, whether: bool) {
        self.lookout
            .iter()
            .for_each(|lookout| lookout.look(whether));
    }
}

impl<P, R> Ticket<'_, P, R> {
    /// Watches the stream, as who was appointed to it.
    pub(super) fn watch(&self, lookout: &Lookout, deadline: &Deadline) {
        let left = deadline.remaining().map_or(PAUSE, |left| left.min(PAUSE));
        if self.lie_down(SENT) {
            lookout.watch(left);
        }
        self.table.relieve();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::ENOUGH;
    use super::*;
    use crate::transport::unix::pair;
    use crate::transport::{Blocking, Doorbell};
    use std::io::IoSlice;

    /// One owner's answer is late, and another's requests come and go: the first stops receiving for
    /// them, and still sees its own when nobody else reads.
    #[test]
    fn whoever_has_served_others_for_a_while_watches() {
        let (stream, server) = pair();
        let bell = Doorbell::new().expect("eventfd");
        let table = Inflight::<u8, ()>::new((), bell, stream.lookout());
        // Each byte is an answer to the slot that it names. Returns whom to wake.
        let receive = || {
            let mut slot = [0];
            let got = stream.receive(&mut slot, Blocking::Yes).expect("open");
            got.map_or(0, |_| table.replied(usize::from(slot[0])))
        };
        let answer = |slot: usize| {
            let sent = server.send(&[IoSlice::new(&[slot as u8])]);
            assert_eq!(sent.expect("open"), Some(1));
        };
        let request = |answered: bool| {
            let ticket = table.claim(&Deadline::NEVER, |_| 1).expect("a slot");
            let index = ticket.index();
            assert_eq!(table.sent(index), 0, "its owner is awake");
            if answered {
                answer(index);
            }
            let mut rounds = 0;
            ticket.wait(
                &Deadline::NEVER,
                || (),
                || (),
                || (),
                |role| {
                    rounds += 1;
                    *role.parts().1 |= receive();
                },
            );
            rounds
        };
        std::thread::scope(|scope| {
            let late = scope.spawn(|| request(false));
            while lock(&table.reading).reader.is_some() {
                std::thread::yield_now();
            }
            // Who watches may be quicker, when what it sees has come before the role is taken.
            let alone = (0..10_000).any(|_| request(true) > 0);
            assert!(alone, "nobody else has received for it");
            answer(0);
            assert!(late.join().expect("no panic") > ENOUGH, "it has served");
        });
        assert_eq!(table.watcher(), 0);
        assert!(table.is_idle());
    }
}
