//! Requests that wait to be sent, and the duty of sending.
//!
//! Whoever submits while nobody sends takes the duty and sends its own request; whoever submits
//! meanwhile leaves its slot's index here and waits for the reply at once. The one with the duty
//! sends what has gathered, many requests in one system call, until nothing is left.

use super::inflight::SLOTS;
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

    /// The slots, first to be sent first.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.indexes[..self.len]
            .iter()
            .map(|index| usize::from(*index))
    }
}

/// The queue in front of a connection.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
}

/// A ring: no slot is in it twice, so as many places as slots suffice.
#[derive(Debug)]
struct Queue {
    ring: [u8; SLOTS],
    head: usize,
    len: usize,
    on_duty: bool,
}

impl Outbox {
    /// An empty queue, and nobody on duty.
    pub fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                ring: [0; SLOTS],
                head: 0,
                len: 0,
                on_duty: false,
            }),
        }
    }

    /// Leaves a slot to be sent. If nobody is on duty the caller is from now on, and gets the slot
    /// back as its first batch.
    pub fn post(&self, index: usize) -> Option<Batch> {
        let mut queue = lock(&self.queue);
        if !queue.on_duty {
            queue.on_duty = true;
            return Some(Batch::one(index));
        }
        let tail = (queue.head + queue.len) % SLOTS;
        queue.ring[tail] = index as u8;
        queue.len += 1;
        None
    }

    /// What gathered since, for the one on duty. `None` ends the duty.
    pub fn next(&self) -> Option<Batch> {
        let mut queue = lock(&self.queue);
        if queue.len == 0 {
            queue.on_duty = false;
            return None;
        }
        let mut batch = Batch::one(0);
        batch.len = queue.len.min(BATCH);
        for place in 0..batch.len {
            batch.indexes[place] = queue.ring[(queue.head + place) % SLOTS];
        }
        queue.head = (queue.head + batch.len) % SLOTS;
        queue.len -= batch.len;
        Some(batch)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn requests_gather_while_somebody_sends() {
        let outbox = Outbox::new();
        let first = outbox.post(3).expect("nobody on duty");
        assert_eq!(first.iter().collect::<Vec<_>>(), [3]);
        for index in 10..30 {
            assert!(outbox.post(index).is_none());
        }
        let batch = outbox.next().expect("some gathered");
        assert_eq!(
            batch.iter().collect::<Vec<_>>(),
            (10..26).collect::<Vec<_>>()
        );
        let batch = outbox.next().expect("some more");
        assert_eq!(batch.iter().collect::<Vec<_>>(), [26, 27, 28, 29]);
        assert!(outbox.next().is_none());
        assert!(outbox.post(5).is_some(), "the duty is free again");
    }
}
