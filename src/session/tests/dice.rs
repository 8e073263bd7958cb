// SPDX-License-Identifier: BSD-3-Clause
//! Where the choices of a simulation come from: all of them in turn, or a seed.

/// Makes choices.
pub(super) trait Dice {
    /// One of `of`, from 0 on.
    fn pick(&mut self, of: usize) -> usize;
}

/// Choices out of a seed: xorshift, the same on every machine.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // A seed of few bits needs some rounds to be far from its neighbours.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.pick(2);
        }
        random
    }
}

impl Dice for Random {
    fn pick(&mut self, of: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) % of as u64) as usize
    }
}

/// All choices, one path after the other: the last choice is the first to change.
#[derive(Default)]
pub(super) struct Paths {
    /// What was chosen, out of how many.
    path: Vec<(usize, usize)>,
    at: usize,
}

impl Paths {
    /// Goes to the next path; false if that was the last.
    pub(super) fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((chosen, of)) = self.path.pop() {
            if chosen + 1 < of {
                self.path.push((chosen + 1, of));
                return true;
            }
        }
        false
    }

    /// Goes the same path once more.
    pub(super) fn again(&mut self) {
        self.at = 0;
    }
}

impl Dice for Paths {
    fn pick(&mut self, of: usize) -> usize {
        if of == 1 {
            return 0;
        }
        if self.at == self.path.len() {
            self.path.push((0, of));
        }
        let (chosen, was) = self.path[self.at];
        assert_eq!(of, was, "the world is not the same twice");
        self.at += 1;
        chosen
    }
}
