// SPDX-License-Identifier: BSD-3-Clause
//! How many system calls a process makes. Counting may slow it down, so this is a turn of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::common::process::{Guarded, eventually, run};

const LIMIT: Duration = Duration::from_secs(20);

/// Who counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// The kernel does, asked by perf, at no cost. It has to be allowed.
    Perf,
    /// strace does. The process is some thirty times slower then, and behaves like it.
    Strace,
}

/// What perf counts.
const EVENT: &str = "raw_syscalls:sys_enter";

impl Counter {
    /// The better one that works here.
    pub fn choose() -> Self {
        let mut command = Command::new("sh");
        // By the shell, as a program that is missing must not be our end.
        command.args(["-c", &format!("perf stat -e {EVENT} true")]);
        match run(&mut command, LIMIT).status.success() {
            true => Self::Perf,
            false => Self::Strace,
        }
    }

    /// For the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf stat",
            Self::Strace => "strace -c, which includes the opening of the connection",
        }
    }

    /// Counts the system calls of the process `pid` during `load`, with those of its later children.
    pub fn count<T>(
        self,
        pid: u32,
        place: &Path,
        load: impl FnOnce() -> Result<T, String>,
    ) -> Result<(u64, T), String> {
        let output = place.join("calls");
        let _ = fs::remove_file(&output);
        let pid = pid.to_string();
        let mut command = match self {
            Self::Perf => {
                let mut command = Command::new("perf");
                command.args(["stat", "-x,", "-e", EVENT, "-p", &pid, "-o"]);
                command
            }
            Self::Strace => {
                let mut command = Command::new("strace");
                command.args(["-f", "-c", "-p", &pid, "-o"]);
                command
            }
        };
        let mut counter = Guarded::spawn(command.arg(&output));
        self.wait_until_it_counts(&mut counter);
        let outcome = load()?;
        counter.signal(libc::SIGINT);
        if counter.wait_timeout(LIMIT).is_none() {
            return Err(format!("{command:?} does not end"));
        }
        let text = fs::read_to_string(&output).unwrap_or_default();
        let calls = match self {
            Self::Perf => perf_calls(&text),
            Self::Strace => strace_calls(&text),
        };
        let calls = calls.ok_or_else(|| format!("{command:?}: not understood: {text}"))?;
        Ok((calls, outcome))
    }

    fn wait_until_it_counts(self, counter: &mut Guarded) {
        eventually("the counter of system calls has begun", LIMIT, || {
            let begun = match self {
                Self::Perf => has_perf_events(counter.pid()),
                Self::Strace => counter.stderr().contains(" attached"),
            };
            assert!(begun || counter.alive(), "{}", counter.stderr());
            begun.then_some(())
        });
        // From the first event or thread to the last.
        sleep(Duration::from_millis(50));
    }
}

fn has_perf_events(pid: u32) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let links = descriptors
        .flatten()
        .map(|entry| fs::read_link(entry.path()));
    links
        .flatten()
        .any(|link| link.to_string_lossy().contains("perf_event"))
}

/// The count in what `perf stat -x,` wrote: the first field of the line with the event.
pub fn perf_calls(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(EVENT))?;
    line.split(',').next()?.parse().ok()
}

/// The count in what `strace -c` wrote: the fourth field of the last line, which is the total.
pub fn strace_calls(text: &str) -> Option<u64> {
    let line = text.lines().rfind(|line| line.ends_with(" total"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}
