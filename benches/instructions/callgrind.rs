// SPDX-License-Identifier: BSD-3-Clause
//! Running ourselves under valgrind, and what it counted.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::process::run_ok;

/// Generous: under valgrind everything takes fifty times as long, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(120);

/// Starts this program with `args` under valgrind. Returns the instructions of its own code, not of
/// libc's and the kernel's, while a function ran whose name contains `function`.
pub fn count(directory: &Path, function: &str, args: &[&str]) -> u64 {
    let program = env::current_exe().expect("a program knows its own path");
    let counts = directory.join("callgrind.out");
    run_ok(
        Command::new("valgrind")
            .args(["--tool=callgrind", "--dump-line=no"])
            .args(["--compress-strings=no", "--compress-pos=no"])
            .arg(format!("--toggle-collect=*{function}*"))
            .arg(format!("--callgrind-out-file={}", counts.display()))
            .arg(&program)
            .args(args),
        LIMIT,
    );
    let counts = fs::read_to_string(&counts).expect("valgrind wrote what it counted");
    let cost = own_cost(&counts, &program.display().to_string());
    assert!(cost > 0, "valgrind saw nothing of {function}");
    cost
}

/// The sum over all functions of one object file, each without those that it calls.
///
/// Lines are `ob=OBJECT`, `fn=FUNCTION`, and `POSITION COST` for what came before; the one behind
/// `calls=` repeats the cost of the function called.
fn own_cost(counts: &str, object: &str) -> u64 {
    let mut sum = 0;
    let mut is_own = false;
    let mut is_call = false;
    for line in counts.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            is_own = name == object;
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost = line.split_once(' ').map(|(_, cost)| cost.parse::<u64>());
            if is_own && !is_call {
                sum += cost.expect("a position and a cost").expect("a number");
            }
            is_call = false;
        }
    }
    sum
}
