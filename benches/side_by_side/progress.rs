// SPDX-License-Identifier: BSD-3-Clause
//! How far it has got: a bar where somebody looks, lines elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use crate::workload::Workload;

/// Progress through all the turns.
pub struct Progress {
    begun: Instant,
    total: usize,
    done: usize,
    terminal: bool,
    last: String,
}

impl Progress {
    /// Of `total` turns none is done.
    pub fn new(total: usize) -> Self {
        Self {
            begun: Instant::now(),
            total,
            done: 0,
            terminal: stderr().is_terminal(),
            last: String::new(),
        }
    }

    /// One more turn begins.
    pub fn step(&mut self, workload: &Workload, contender: &str) {
        let name = workload.name();
        if self.terminal {
            let line = line(self.done, self.total, self.begun.elapsed());
            let _ = write!(stderr(), "\r{line} {name}, {contender}\x1b[K");
        } else if name != self.last {
            let line = line(self.done, self.total, self.begun.elapsed());
            let _ = writeln!(stderr(), "{line} {name}");
        }
        self.last = name;
        self.done += 1;
    }

    /// There will be more turns than was thought.
    pub fn more(&mut self, turns: usize) {
        self.total += turns;
    }

    /// Leaves the terminal as it was.
    pub fn end(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// `[######----]  61 %, 4 min 20 s left:`
pub fn line(done: usize, total: usize, elapsed: Duration) -> String {
    const WIDTH: usize = 24;
    let share = done as f64 / total.max(1) as f64;
    let full = (share * WIDTH as f64) as usize;
    let bar = format!(
        "{}{}",
        "#".repeat(full),
        "-".repeat(WIDTH.saturating_sub(full))
    );
    let left = match done {
        0 => String::new(),
        _ => {
            let seconds = (elapsed.as_secs_f64() / share * (1.0 - share)).max(0.0) as u64;
            match seconds {
                0..60 => format!(", {seconds} s left"),
                _ => format!(", {} min {} s left", seconds / 60, seconds % 60),
            }
        }
    };
    format!("[{bar}] {:3.0} %{left}:", share * 100.0)
}
