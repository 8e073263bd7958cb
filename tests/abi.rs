// SPDX-License-Identifier: BSD-3-Clause
//! The plugin file as the loader and nbdkit see it: what it exports, what it needs, what it says of itself.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::clients::{LIMIT, program, text};
use common::process::run_ok;
use common::{need, need_all, plugin};

/// The functions of nbdkit that the plugin may call: all exist in nbdkit 1.32. The host loads plugins with
/// RTLD_NOW, so a single newer one would make an old host refuse the plugin.
const NBDKIT_FUNCTIONS: &[&str] = &[
    "nbdkit_absolute_path",
    "nbdkit_add_export",
    "nbdkit_add_extent",
    "nbdkit_debug",
    "nbdkit_error",
    "nbdkit_export_name",
    "nbdkit_is_tls",
    "nbdkit_nanosleep",
    "nbdkit_read_password",
    "nbdkit_set_error",
    "nbdkit_stdio_safe",
    "nbdkit_strdup_intern",
    "nbdkit_use_default_export",
];

/// Those that it does without where there is none.
const OPTIONAL: &[&str] = &["nbdkit_peer_name"];

/// The shared libraries it may need: OpenSSL 3, and what a Rust toolchain's C programs have anyway.
const LIBRARIES: &[&str] = &[
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libcrypto.so.3",
    "libgcc_s.so.1",
    "libm.so.6",
    "libssl.so.3",
];

/// Names of dynamic symbols, without their versions; `kind` is nm's --defined-only or --undefined-only.
fn symbols(kind: &str) -> BTreeSet<String> {
    let listing = program("nm", &["-D", "-P", kind, text(&plugin())]);
    listing
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter_map(|name| name.split('@').next())
        .map(str::to_owned)
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The `key=value` lines of `nbdkit PLUGIN --dump-plugin`.
fn dump() -> Vec<(String, String)> {
    let text = run_ok(
        Command::new("nbdkit").arg(plugin()).arg("--dump-plugin"),
        LIMIT,
    );
    text.lines()
        .map(|line| {
            line.split_once('=')
                .unwrap_or_else(|| panic!("not key=value: {line}"))
        })
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn value_of(key: &str) -> Option<String> {
    dump()
        .into_iter()
        .find(|(found, _)| found == key)
        .map(|(_, value)| value)
}

#[test]
fn exports_the_entry_point_and_the_debug_flag_only() {
    if !need("nm") {
        return;
    }
    assert_eq!(
        symbols("--defined-only"),
        set(&["plugin_init", "nbd_debug_verbose"])
    );
}

#[test]
fn calls_only_these_functions_of_nbdkit() {
    if !need("nm") {
        return;
    }
    let called: BTreeSet<_> = symbols("--undefined-only")
        .into_iter()
        .filter(|name| name.starts_with("nbdkit_"))
        .collect();
    assert_eq!(called, set(&[NBDKIT_FUNCTIONS, OPTIONAL].concat()));
    let listing = program("nm", &["-D", "-P", "--undefined-only", text(&plugin())]);
    for name in OPTIONAL {
        let weak = format!("{name} w");
        assert!(
            listing.lines().any(|line| line.starts_with(&weak)),
            "{weak}"
        );
    }
}

#[test]
fn installed_nbdkit_has_all_of_them() {
    if !need_all(&["nm", "nbdkit"]) {
        return;
    }
    let nbdkit = program("sh", &["-c", "readlink -f \"$(command -v nbdkit)\""]);
    let offered = program("nm", &["-D", "-P", "--defined-only", nbdkit.trim_end()]);
    let offered: BTreeSet<_> = offered
        .lines()
        .filter_map(|line| line.split([' ', '@']).next())
        .collect();
    let missing: Vec<_> = NBDKIT_FUNCTIONS
        .iter()
        .filter(|name| !offered.contains(**name))
        .collect();
    assert_eq!(missing, [&""; 0]);
}

#[test]
fn needs_no_library_beyond_openssl() {
    if !need("readelf") {
        return;
    }
    let listing = run_ok(
        Command::new("readelf")
            .env("LC_ALL", "C")
            .args(["-d", "-W"])
            .arg(plugin()),
        LIMIT,
    );
    let extra: Vec<_> = listing
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .filter(|library| !LIBRARIES.contains(library))
        .collect();
    assert_eq!(extra, [""; 0]);
}

#[test]
fn speaks_version_2_of_the_api_in_its_full_size() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(value_of("api_version").as_deref(), Some("2"));
    // The struct is the same in nbdkit 1.32 and 1.48, on 64-bit machines.
    assert_eq!(value_of("struct_size").as_deref(), Some("384"));
}

#[test]
fn is_parallel_and_keeps_errno() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(value_of("name").as_deref(), Some("nbd"));
    assert_eq!(value_of("max_thread_model").as_deref(), Some("parallel"));
    assert_eq!(value_of("thread_model").as_deref(), Some("parallel"));
    assert_eq!(value_of("errno_is_preserved").as_deref(), Some("1"));
}

#[test]
fn has_every_callback_that_a_forwarder_can_mean() {
    if !need("nbdkit") {
        return;
    }
    let callbacks = [
        "longname",
        "load",
        "unload",
        "dump_plugin",
        "config",
        "config_complete",
        "config_help",
        "get_ready",
        "after_fork",
        "list_exports",
        "default_export",
        "open",
        "close",
        "export_description",
        "get_size",
        "block_size",
        "can_write",
        "can_flush",
        "is_rotational",
        "can_trim",
        "can_zero",
        "can_fast_zero",
        "can_extents",
        "can_fua",
        "can_multi_conn",
        "can_cache",
        "pread",
        "pwrite",
        "flush",
        "trim",
        "zero",
        "extents",
        "cache",
    ];
    let keys: BTreeSet<String> = dump().into_iter().map(|(key, _)| key).collect();
    let missing: Vec<_> = callbacks
        .iter()
        .filter(|name| !keys.contains(&format!("has_{name}")))
        .collect();
    assert_eq!(missing, [&""; 0]);
}

#[test]
fn word_without_a_key_is_a_uri() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(value_of("magic_config_key").as_deref(), Some("uri"));
}

#[test]
fn says_which_client_is_inside() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(
        value_of("nbd_client"),
        Some(format!("rust/{}", env!("CARGO_PKG_VERSION")))
    );
}

/// Scripts compare it with the release that they need, as three numbers.
#[test]
fn version_of_libnbd_can_be_compared() {
    if !need("nbdkit") {
        return;
    }
    let version = value_of("libnbd_version").expect("there is one");
    let numbers: Vec<u32> = version
        .split('.')
        .map(|number| number.parse().expect("a number"))
        .collect();
    assert_eq!(numbers, [1, 24, 0]);
}

/// What scripts look for, nbdkit's own tests among them: whether the abilities are there, under the
/// names of the C plugin.
#[test]
fn tells_its_abilities_under_the_usual_names() {
    if !need("nbdkit") {
        return;
    }
    for ability in ["tls", "uri", "vsock", "dynamic_list"] {
        assert_eq!(
            value_of(&format!("libnbd_{ability}")).as_deref(),
            Some("1"),
            "{ability}"
        );
    }
    assert_eq!(value_of("nbd_ssh").as_deref(), Some("1"));
    assert_eq!(value_of("magic_config_key").as_deref(), Some("uri"));
}
