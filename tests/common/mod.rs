// SPDX-License-Identifier: BSD-3-Clause
//! What the integration tests share: starting and ending real programs, and the servers they talk to.
//!
//! Tests are black-box: they load the built plugin into a real nbdkit and never link the crate itself,
//! but for `hot_path.rs`, `panic.rs` and `fuzz_corpus.rs`.

// Every test file is its own crate and uses its own part of this module.
#![allow(dead_code)]

pub mod bitmaps;
pub mod clients;
pub mod control;
pub mod counted;
pub mod cutting;
pub mod daemon;
pub mod front;
pub mod machine;
pub mod manual;
pub mod nbdkit;
pub mod pair;
pub mod pki;
pub mod probed;
pub mod process;
pub mod refusal;
pub mod relay;
pub mod scripted;
pub mod sshd;
pub mod started;
pub mod statistics;
pub mod tcp;
pub mod tls;
pub mod upstream;

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

/// The plugin under test: `NBDKIT_NBD_PLUGIN` when set, else the one that cargo built with this test.
pub fn plugin() -> PathBuf {
    const NAME: &str = "libnbdkit_nbd_plugin.so";

    if let Some(path) = env::var_os("NBDKIT_NBD_PLUGIN") {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "NBDKIT_NBD_PLUGIN={} is not a file",
            path.display()
        );
        return path;
    }
    let test = env::current_exe().expect("the test knows its own path");
    let beside = test.with_file_name(NAME);
    let above = test
        .parent()
        .and_then(|deps| deps.parent())
        .map(|profile| profile.join(NAME));
    let candidates: Vec<PathBuf> = [Some(beside), above].into_iter().flatten().collect();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => path.clone(),
        None => panic!(
            "the plugin is not built: looked for {candidates:?}; run `cargo build` or set NBDKIT_NBD_PLUGIN"
        ),
    }
}

/// Whether `program` can be run. A test without its program returns early; under CI that is a failure,
/// because a suite that skips everything proves nothing.
pub fn need(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|directory| directory.join(program).is_file()) {
        return true;
    }
    let message = format!("SKIP: {}: needs {program}", test_name());
    assert!(env::var_os("CI").is_none(), "{message}");
    println!("{message}");
    false
}

/// [`need`] for several programs.
pub fn need_all(programs: &[&str]) -> bool {
    programs.iter().all(|program| need(program))
}

/// Whether there is a qemu-nbd that has extended headers. That of Debian 12 has none, and a test of them is
/// skipped there, also under CI.
pub fn need_extended() -> bool {
    if !need("qemu-nbd") {
        return false;
    }
    let told = Command::new("qemu-nbd").arg("--version").output();
    let told = String::from_utf8(told.expect("runs").stdout).expect("text");
    let version = told
        .split_whitespace()
        .find_map(|word| {
            let (major, rest) = word.split_once('.')?;
            let minor = rest.split('.').next()?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        })
        .unwrap_or_else(|| panic!("no version: {told}"));
    let has = version >= (8, 2);
    if !has {
        println!("SKIP: {}: needs qemu-nbd 8.2", test_name());
    }
    has
}

/// The name of the running test: the harness names each test's thread after it.
pub fn test_name() -> String {
    thread::current().name().unwrap_or("test").to_owned()
}
