// SPDX-License-Identifier: BSD-3-Clause
//! Requests that wait to be sent, and the duty of sending.
//!
//! Whoever submits while nobody sends takes the duty and sends its own request; whoever submits
//! meanwhile leaves its slot's index here and waits for the reply at once. The one with the duty
//! sends what has gathered, many requests in one system call, until nothing is left; or, once its
//! own reply has come, until it finds another to take the duty: nobody works for the others while
//! its own client waits.

use super::inflight::{SLOTS, SlotSet};
use super::sync::{Mutex, lock};

/// Most requests that are sent in one system call.
pub const BATCH: usize = if cfg!(loom) { 2 } else { 16 };

/// Slots whose requests are sent together, in order.
#[derive(Debug)]
pub struct Batch {
    indexes: [u8; BATCH],
    len: usize,
}

impl Batch {
    /// Only this one.
    fn one(index: usize) -> Self {
        let mut indexes = [0; BATCH];
        indexes[0] = index as u8;
        Self { indexes, len: 1 }
    }

    /// The slot, if there is only one.
    pub fn only(&self) -> Option<usize> {
        (self.len == 1).then(|| usize::from(self.indexes[0]))
    }

    /// The slots, first to be sent first.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.indexes[..self.len]
            .iter()
            .map(|index| usize::from(*index))
    }
}

/// A slot whose request waits to be sent.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    index: u8,
    /// Its payload is so large that nothing is gained by sending it together with others.
    heavy: bool,
}

/// What the one on duty does next.
#[derive(Debug)]
pub enum Next {
    /// Send these.
    Send(Batch),
    /// Another has the duty. These are to be woken.
    Passed(SlotSet),
    /// Nothing is left.
    Leave,
}

/// The queue in front of a connection.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
}

/// A ring: no slot is in it twice, so as many places as slots suffice.
#[derive(Debug)]
struct Queue {
    ring: [Entry; SLOTS],
    head: usize,
    len: usize,
    on_duty: bool,
}

impl Outbox {
    /// An empty queue, and nobody on duty.
    pub fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                ring: [Entry::default(); SLOTS],
                head: 0,
                len: 0,
                on_duty: false,
            }),
        }
    }

    /// Leaves a slot to be sent. If nobody is on duty the caller is from now on, and gets the slot
    /// back as its first batch.
    pub fn post(&self, index: usize, heavy: bool) -> Option<Batch> {
        let mut queue = lock(&self.queue);
        if !queue.on_duty {
            queue.on_duty = true;
            return Some(Batch::one(index));
        }
        let tail = (queue.head + queue.len) % SLOTS;
        queue.ring[tail] = Entry {
            index: index as u8,
            heavy,
        };
        queue.len += 1;
        None
    }

    /// What gathered since, for the one on duty. Before it sends more, `pass` may give the duty to
    /// the owner of one of the waiting slots: if it did, it says whom to wake, which is left to the
    /// caller, as it should not be done under the queue's lock.
    pub fn next(
        &self,
        pass: impl FnOnce(&mut dyn Iterator<Item = usize>) -> Option<SlotSet>,
    ) -> Next {
        let mut queue = lock(&self.queue);
        if queue.len == 0 {
            queue.on_duty = false;
            return Next::Leave;
        }
        let mut waiting = (0..queue.len).map(|place| usize::from(queue.entry(place).index));
        if let Some(wake) = pass(&mut waiting) {
            return Next::Passed(wake);
        }
        let mut batch = Batch::one(usize::from(queue.entry(0).index));
        while batch.len < queue.len.min(BATCH) {
            let entry = queue.entry(batch.len);
            if entry.heavy || queue.entry(0).heavy {
                break;
            }
            batch.indexes[batch.len] = entry.index;
            batch.len += 1;
        }
        queue.head = (queue.head + batch.len) % SLOTS;
        queue.len -= batch.len;
        Next::Send(batch)
    }
}

impl Queue {
    fn entry(&self, place: usize) -> Entry {
        self.ring[(self.head + place) % SLOTS]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn next(outbox: &Outbox) -> Option<Vec<usize>> {
        match outbox.next(|_| None) {
            Next::Send(batch) => Some(batch.iter().collect()),
            Next::Passed(_) | Next::Leave => None,
        }
    }

    #[test]
    fn requests_gather_while_somebody_sends() {
        let outbox = Outbox::new();
        let first = outbox.post(3, false).expect("nobody on duty");
        assert_eq!(first.iter().collect::<Vec<_>>(), [3]);
        for index in 10..30 {
            assert!(outbox.post(index, false).is_none());
        }
        assert_eq!(next(&outbox), Some((10..26).collect()));
        assert_eq!(next(&outbox), Some(vec![26, 27, 28, 29]));
        assert_eq!(next(&outbox), None);
        assert!(outbox.post(5, false).is_some(), "the duty is free again");
    }

    #[test]
    fn heavy_requests_are_sent_alone() {
        let outbox = Outbox::new();
        assert!(outbox.post(0, true).is_some());
        for (index, heavy) in [(1, false), (2, false), (3, true), (4, true), (5, false)] {
            assert!(outbox.post(index, heavy).is_none());
        }
        assert_eq!(next(&outbox), Some(vec![1, 2]));
        assert_eq!(next(&outbox), Some(vec![3]));
        assert_eq!(next(&outbox), Some(vec![4]));
        assert_eq!(next(&outbox), Some(vec![5]));
    }

    #[test]
    fn a_passed_duty_is_not_free() {
        let outbox = Outbox::new();
        assert!(outbox.post(1, false).is_some());
        assert!(outbox.post(2, false).is_none());
        let mut offered = Vec::new();
        let next_step = outbox.next(|waiting| {
            offered.extend(waiting);
            Some(0b100)
        });
        assert!(matches!(next_step, Next::Passed(0b100)));
        assert_eq!(offered, [2]);
        assert!(outbox.post(3, false).is_none(), "the owner of 2 has it");
        assert_eq!(next(&outbox), Some(vec![2, 3]));
    }
}
