// SPDX-License-Identifier: BSD-3-Clause
//! Which bytes of a read have been answered: every byte exactly once, or the read is not complete.
//!
//! Servers nearly always answer front to back, which one running offset follows. Only when a chunk
//! comes out of order is a bitmap made, one bit a byte: its size depends on the request alone and
//! a server cannot stretch it, however small and scattered its chunks are.

/// The answered part of one request.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    length: u32,
    /// Bytes `0..next` are answered.
    next: u32,
    /// What is answered beyond order, once anything is.
    scattered: Option<Scattered>,
}

/// Bytes answered out of order, as a bitmap over the whole request.
#[derive(Clone, Debug)]
struct Scattered {
    bits: Box<[u64]>,
    answered: u32,
}

impl Coverage {
    /// Nothing of a request of `length` bytes is answered yet.
    pub fn new(length: u32) -> Self {
        Self {
            length,
            next: 0,
            scattered: None,
        }
    }

    /// Bytes answered so far.
    pub fn answered(&self) -> u32 {
        self.scattered.as_ref().map_or(self.next, |s| s.answered)
    }

    /// Whether every byte was answered.
    pub fn is_complete(&self) -> bool {
        self.answered() == self.length
    }

    /// Notes that `len` bytes from `at` are answered. False, with nothing noted that matters any
    /// more, if one of them was answered before. The range must lie inside the request.
    #[must_use]
    pub fn add(&mut self, at: u32, len: u32) -> bool {
        debug_assert!(u64::from(at) + u64::from(len) <= u64::from(self.length));
        match &mut self.scattered {
            Some(scattered) => scattered.add(at, len),
            None if at == self.next => {
                self.next += len;
                true
            }
            None => {
                let mut scattered = Scattered::new(self.length);
                let fresh = scattered.add(0, self.next) && scattered.add(at, len);
                self.scattered = Some(scattered);
                fresh
            }
        }
    }
}

impl Scattered {
    fn new(length: u32) -> Self {
        Self {
            bits: vec![0; length.div_ceil(64) as usize].into_boxed_slice(),
            answered: 0,
        }
    }

    fn add(&mut self, at: u32, len: u32) -> bool {
        let end = at + len;
        let mut from = at;
        while from < end {
            let upto = ((from / 64 + 1) * 64).min(end);
            let mask = (u64::MAX >> (64 - (upto - from))) << (from % 64);
            let Some(word) = self.bits.get_mut((from / 64) as usize) else {
                return false;
            };
            if *word & mask != 0 {
                return false;
            }
            *word |= mask;
            from = upto;
        }
        self.answered += len;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn in_order_needs_no_bitmap() {
        let mut c = Coverage::new(100);
        assert!(c.add(0, 60));
        assert!(!c.is_complete());
        assert!(c.add(60, 40));
        assert!(c.is_complete());
        assert!(c.scattered.is_none());
    }

    #[test]
    fn an_overlap_that_hides_a_gap_is_found() {
        let mut c = Coverage::new(100);
        assert!(c.add(0, 50));
        assert!(!c.add(49, 51), "one byte twice");
    }

    #[test]
    fn a_gap_is_not_complete() {
        let mut c = Coverage::new(200);
        assert!(c.add(65, 135));
        assert!(c.add(0, 64));
        assert!(!c.is_complete());
        assert_eq!(c.answered(), 199);
        assert!(c.add(64, 1));
        assert!(c.is_complete());
    }

    proptest! {
        /// The bitmap agrees with a naive model, byte by byte.
        #[test]
        fn agrees_with_a_model(length in 1u32..300, ranges in prop::collection::vec((0u32..300, 1u32..100), 0..20)) {
            let mut model = vec![false; length as usize];
            let mut c = Coverage::new(length);
            for (at, len) in ranges {
                let at = at % length;
                let len = len.min(length - at);
                let range = at as usize..(at + len) as usize;
                let fresh = !model[range.clone()].contains(&true);
                prop_assert_eq!(c.add(at, len), fresh);
                if !fresh {
                    break;
                }
                model[range].fill(true);
                prop_assert_eq!(c.answered() as usize, model.iter().filter(|b| **b).count());
                prop_assert_eq!(c.is_complete(), !model.contains(&false));
            }
        }
    }
}
