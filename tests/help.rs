// SPDX-License-Identifier: BSD-3-Clause
//! `--help` and the manual page name the same parameters.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::clients::LIMIT;
use common::manual;
use common::process::run_ok;
use common::{need, plugin};

/// The keys that lines of `nbdkit PLUGIN --help` begin with, after the plugin's own file name.
fn keys_in_help() -> BTreeSet<String> {
    let help = run_ok(Command::new("nbdkit").arg(plugin()).arg("--help"), LIMIT);
    let (_, ours) = help
        .split_once("\nplugin: ")
        .expect("nbdkit introduces the plugin");
    ours.lines().filter_map(key).collect()
}

/// The keys that `=item` lines of the manual begin with.
fn keys_in_manual() -> BTreeSet<String> {
    manual::items(&manual::section(None))
        .iter()
        .filter_map(|item| key(item))
        .collect()
}

/// `key=...` or `[key=]...` at the start of a line.
fn key(line: &str) -> Option<String> {
    let (key, _) = line.trim_start_matches('[').split_once('=')?;
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (!key.is_empty() && key.chars().all(lower)).then(|| key.to_owned())
}

#[test]
fn every_key_of_the_help_is_in_the_manual() {
    if !need("nbdkit") {
        return;
    }
    let missing: Vec<_> = keys_in_help()
        .difference(&keys_in_manual())
        .cloned()
        .collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_key_of_the_manual_is_in_the_help() {
    if !need("nbdkit") {
        return;
    }
    let missing: Vec<_> = keys_in_manual()
        .difference(&keys_in_help())
        .cloned()
        .collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn help_has_all_the_parameters_of_the_plugin_in_c() {
    if !need("nbdkit") {
        return;
    }
    // `nbdkit nbd --help` of nbdkit 1.32 to 1.48. `cid` works, but was never in the help.
    let theirs = [
        "uri",
        "socket",
        "hostname",
        "port",
        "vsock",
        "command",
        "arg",
        "socket-fd",
        "export",
        "dynamic-export",
        "retry",
        "shared",
        "tls",
        "tls-certificates",
        "tls-verify",
        "tls-username",
        "tls-psk",
    ];
    let ours = keys_in_help();
    let missing: Vec<_> = theirs.iter().filter(|key| !ours.contains(**key)).collect();
    assert_eq!(missing, [&""; 0]);
}

#[test]
fn help_fits_a_terminal() {
    if !need("nbdkit") {
        return;
    }
    let help = run_ok(Command::new("nbdkit").arg(plugin()).arg("--help"), LIMIT);
    let (_, ours) = help
        .split_once("\nplugin: ")
        .expect("nbdkit introduces the plugin");
    // The line with the plugin's path is nbdkit's own.
    let long: Vec<_> = ours
        .lines()
        .skip(2)
        .filter(|line| line.len() > 80)
        .collect();
    assert_eq!(long, [""; 0]);
}
