// SPDX-License-Identifier: BSD-3-Clause
//! Where and with what it was measured.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Duration;

use crate::common::process::run;

const LIMIT: Duration = Duration::from_secs(10);

/// How many processors all contenders, servers and clients share.
pub fn processors() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Names and values for the head of the report, in order.
pub fn describe() -> Vec<(&'static str, String)> {
    let cores = processors();
    let model = value("/proc/cpuinfo", "model name");
    let virtual_machine = match value("/proc/cpuinfo", "flags").contains(" hypervisor") {
        true => ", a virtual machine",
        false => "",
    };
    vec![
        ("date", first_line("date -u '+%Y-%m-%d %H:%M UTC'")),
        ("commit", first_line("git describe --always --dirty")),
        (
            "machine",
            format!("{model}, {cores} cores{virtual_machine}"),
        ),
        (
            "system",
            format!(
                "{}, Linux {}",
                value("/etc/os-release", "PRETTY_NAME"),
                first_line("uname -r")
            ),
        ),
        ("load before", first_line("cut -d' ' -f1-3 /proc/loadavg")),
        ("nbdkit", first_line("nbdkit --version")),
        ("libnbd", first_line("nbdinfo --version")),
        ("fio", first_line("fio --version")),
        ("qemu-nbd", first_line("qemu-nbd --version")),
        ("OpenSSL", openssl::version::version().to_owned()),
    ]
}

/// What a command in the shell says first; "?" if it says nothing.
fn first_line(command: &str) -> String {
    let output = run(Command::new("sh").args(["-c", command]), LIMIT);
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) => line.to_owned(),
        None => "?".to_owned(),
    }
}

/// The value of the first line in `file` that starts with `key`.
fn value(file: &str, key: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line
        .unwrap_or("?")
        .trim_start_matches([' ', '\t', ':', '=']);
    value.trim_matches('"').to_owned()
}
