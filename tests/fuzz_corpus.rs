// SPDX-License-Identifier: BSD-3-Clause
//! What fuzzing has found worth keeping, and some thousand inputs that nobody has chosen, by the bodies of the fuzz
//! targets themselves. `make fuzz` looks further.
//!
//! This links the crate, as the targets do.

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::fs;
use std::path::Path;

/// Runs the stored inputs of a target, and so many more that are made of them.
fn replay(target: &str, run: fn(&[u8]), more: u64) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs: Vec<Vec<u8>> = fs::read_dir(&corpus)
        .expect("a corpus")
        .map(|entry| fs::read(entry.expect("an entry").path()).expect("an input"))
        .collect();
    assert!(inputs.len() >= 3, "{target}: a corpus of {}", inputs.len());
    inputs.sort();
    for input in &inputs {
        run(input);
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..more {
        let mut input = inputs[dice.below(inputs.len())].clone();
        for _ in 0..1 + dice.below(4) {
            dice.change(&mut input);
        }
        run(&input);
    }
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        match self.below(4) {
            0 => input.truncate(at),
            1 => input.insert(at, self.below(256) as u8),
            2 if at < input.len() => {
                input.remove(at);
            }
            _ if at < input.len() => input[at] = self.below(256) as u8,
            _ => input.extend((0..16).map(|_| self.below(256) as u8)),
        }
    }
}

#[test]
fn uri() {
    // Nearly all that is changed is no text, and costs nothing.
    let run = |data: &[u8]| bodies::uri::run(String::from_utf8_lossy(data).as_bytes());
    replay("uri", run, 20_000);
}

#[test]
fn handshake() {
    replay("handshake", bodies::handshake::run, 20_000);
}

#[test]
fn replies() {
    replay("replies", bodies::replies::run, 10_000);
}

#[test]
fn connection() {
    // Some of these wait for a server that owes an answer, as long as they may.
    replay("connection", bodies::connection::run, 40);
}

#[test]
fn journal() {
    replay("journal", bodies::journal::run, 1000);
}
