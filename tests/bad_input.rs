// SPDX-License-Identifier: BSD-3-Clause
//! Everything that can be typed wrong: nbdkit says in one line what it is about, and ends with status 1.

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use common::clients::LIMIT;
use common::process::run_ok;
use common::refusal::{MODES, Mode, refusal, refusal_in, refusal_with};
use common::{need, plugin};

/// A place to connect to, for parameters that need one.
const PLACE: &str = "socket=/nowhere";

/// Coming back, for parameters that need it.
const ON: &str = "reconnect=1";

const BOOLEAN: &str = "could not decipher boolean";

/// Parameters, and what the line must hold.
type Row = (&'static [&'static str], &'static str);

const PLACES: &[Row] = &[
    (&["socket="], "socket="),
    (&["hostname="], "hostname="),
    (&["hostname=localhost", "port="], "port="),
    (&["hostname=localhost", "port=0"], "port=0"),
    (&["hostname=localhost", "port=65536"], "port=65536"),
    (
        &["hostname=localhost", "port=99999999999999999999"],
        "port=9",
    ),
    (&["hostname=localhost", "port=-1"], "port=-1"),
    (&["vsock="], "vsock_cid"),
    (&["vsock=host"], "vsock_cid"),
    (&["vsock=-1"], "vsock_cid"),
    (&["vsock=4294967296"], "vsock_cid"),
    (&["cid="], "vsock_cid"),
    (&["cid=2 "], "vsock_cid"),
    (&["vsock=2", "port=nbd"], "port"),
    (&["vsock=2", "port=4294967296"], "port"),
    (&["command="], "command="),
    (&["arg="], "command"),
    (&["command=/no/such/program"], "/no/such/program"),
    (&["socket-fd="], "socket-fd"),
    (&["socket-fd=three"], "socket-fd"),
    (&["socket-fd=-1"], "socket-fd must be >= 0"),
    (&["socket-fd=2147483648"], "socket-fd"),
    (&["socket-fd=99999999999"], "socket-fd"),
    (&["socket-fd=1000"], "socket-fd=1000"),
    (&["uri="], "uri"),
    (&["uri=nowhere"], "uri"),
    (&["nowhere"], "uri"),
    (&["nbd://localhost:65536/"], "uri: port: must be "),
    (&["nbd+ssh://-v/"], "uri: host: "),
    (&["nbd:unix:/nowhere"], "uri: nbd:unix:PATH"),
    (&["hostname=localhost:10809"], "port=10809"),
    (&["hostname=nbd://localhost"], "uri=URI"),
    (&["hostname=localhost", "port=no-such"], "port=no-such: "),
];

const OTHERS: &[Row] = &[
    (&[PLACE, "dynamic-export="], BOOLEAN),
    (&[PLACE, "dynamic-export=perhaps"], "(perhaps)"),
    (&[PLACE, "shared="], BOOLEAN),
    (&[PLACE, "shared=2"], "(2)"),
    (&[PLACE, "retry="], "retry"),
    (&[PLACE, "retry=often"], "retry"),
    (&[PLACE, "retry=-1"], "retry"),
    (&[PLACE, "retry=1.5"], "retry"),
    (&[PLACE, "retry=4294967296"], "retry"),
    (&[PLACE, "tls="], BOOLEAN),
    (&[PLACE, "tls=always"], "(always)"),
    (&[PLACE, "tls-certificates="], "tls-certificates="),
    (&[PLACE, "tls-key-password="], "tls-key-password="),
    (&[PLACE, "tls-key-password=+/nowhere"], "/nowhere"),
    (&[PLACE, "tls-verify="], BOOLEAN),
    (&[PLACE, "tls-verify=perhaps"], "(perhaps)"),
    (&[PLACE, "tls-username="], "tls-username="),
    (&[PLACE, "tls-psk="], "tls-psk="),
    (&[PLACE, "tls-hostname="], "tls-hostname="),
    (&[PLACE, "tls-priority="], "tls-priority="),
    (
        &[PLACE, "tls=on", "tls-priority=NO-SUCH-CIPHER"],
        "tls-priority",
    ),
    (&[PLACE, "tls-pin="], "tls-pin"),
    (&[PLACE, "tls-pin=sha256:00"], "tls-pin"),
    (&[PLACE, "connect-timeout="], "connect-timeout="),
    (&[PLACE, "connect-timeout=soon"], "connect-timeout=soon"),
    (&[PLACE, "connect-timeout=-1"], "connect-timeout=-1"),
    (&[PLACE, "connect-timeout=1e99"], "connect-timeout=1e99"),
    (&[PLACE, "handshake-timeout="], "handshake-timeout="),
    (&[PLACE, "handshake-timeout=1h"], "handshake-timeout=1h"),
    (&[PLACE, "handshake-timeout=-0.5"], "handshake-timeout=-0.5"),
    (&["command=true", "command-timeout="], "command-timeout="),
    (
        &["command=true", "command-timeout=soon"],
        "command-timeout=soon",
    ),
    (&[PLACE, "request-timeout="], "request-timeout="),
    (&[PLACE, "request-timeout=1 s"], "request-timeout=1 s"),
    (&[PLACE, "request-timeout=99999999999"], "request-timeout=9"),
    (&[PLACE, "close-timeout="], "close-timeout="),
    (&[PLACE, "extents="], "extents=: must be "),
    (&[PLACE, "extents=base"], "extents=base: must be "),
    (
        &[PLACE, "extents=qemu:dirty-bitmap:"],
        "extents=qemu:dirty-bitmap:: must be ",
    ),
    (&[PLACE, "extents=by-name"], "dynamic-export=true"),
    (
        &[PLACE, "dynamic-export=1", "extents=list"],
        "‘extents=list’ with ‘dynamic-export’",
    ),
    (
        &[PLACE, "socket=t", "servers=failover", "extents=list"],
        "‘extents=list’ with ‘servers’",
    ),
    (&[PLACE, "probe="], "probe=: must be a boolean or json"),
    (&[PLACE, "probe=xml"], "probe=xml: must be "),
    (&[PLACE, "probe=2"], "probe=2: must be "),
    (
        &[PLACE, "probe=1", "extents=list"],
        "‘probe’ with ‘extents=list’",
    ),
    (
        &[
            PLACE,
            "socket=t",
            "servers=failover",
            "extents=qemu:allocation-depth",
        ],
        "‘extents’ other than base:allocation with ‘servers’",
    ),
    (
        &[
            PLACE,
            "servers=spread",
            "extents=by-name",
            "dynamic-export=1",
        ],
        "cannot use ‘servers’ with ‘dynamic-export’",
    ),
    (
        &[PLACE, "quirks=no-meta", "extents=list"],
        "‘quirks=no-meta’ with ‘extents’",
    ),
    (
        &[PLACE, "extents=qemu:dirty-bitmap:*", "quirks=no-structured"],
        "‘quirks=no-structured’ with ‘extents’",
    ),
    (
        &[
            PLACE,
            "extents=by-name",
            "dynamic-export=1",
            "quirks=no-meta",
        ],
        "‘quirks=no-meta’ with ‘extents’",
    ),
    (
        &[
            PLACE,
            "extents=by-name",
            "dynamic-export=1",
            "quirks=no-opt-go",
        ],
        "‘quirks=no-opt-go’ with ‘extents=by-name’",
    ),
    (&[PLACE, "extents-cache="], "extents-cache=: must be "),
    (&[PLACE, "extents-cache=lots"], "extents-cache=lots: must"),
    (&[PLACE, "extents-cache=-1"], "extents-cache=-1: must be "),
    (&[PLACE, "stats="], "stats=: must "),
    (
        &[PLACE, "stats=/nowhere/at/all"],
        "stats: /nowhere/at/all: No such file or directory",
    ),
    (&[PLACE, "stats=/dev/full"], "/dev/full: not a regular file"),
    (&[PLACE, "stats=/"], "stats: /: not a regular file"),
    (
        &[PLACE, "stats=stderr", "stats-interval=often"],
        "stats-interval=often: must be ",
    ),
    (
        &[PLACE, "stats=stderr", "stats-interval=1ms"],
        "stats-interval=1ms: must be 100ms or more",
    ),
    (&[PLACE, "stats-interval=1"], "‘stats-interval’ parameter"),
    (
        &[PLACE, "stats=stderr", "stats-format=json"],
        "stats-format=json: must be text or prometheus",
    ),
    (&[PLACE, "stats-format=text"], "‘stats-format’ parameter"),
    (&[PLACE, "slow-log="], "slow-log=: must be "),
    (&[PLACE, "slow-log=5 ms"], "slow-log=5 ms: must be "),
    (&[PLACE, "control="], "control=: must not be empty"),
    (
        &[PLACE, "control=/no/such/socket"],
        "control=/no/such/socket: its",
    ),
    (
        &[PLACE, "control=/dev/null"],
        "control=/dev/null: there is a file",
    ),
    (
        &[PLACE, "control=/"],
        "control=/: there is a file that is no socket",
    ),
    (&[PLACE, "close-timeout=never"], "close-timeout=never"),
    (&[PLACE, "reconnect="], "reconnect=: must be "),
    (&[PLACE, "reconnect=always"], "reconnect=always: must be "),
    (&[PLACE, "reconnect=-1"], "reconnect=-1: must be "),
    (
        &[PLACE, "reconnect=99999999999"],
        "must be at most 366 days",
    ),
    (
        &[PLACE, ON, "reconnect-delay="],
        "must be one time such as ",
    ),
    (&[PLACE, ON, "reconnect-delay=0"], "a delay of 1ms or more"),
    (&[PLACE, ON, "reconnect-delay=2:1"], "not longer than"),
    (&[PLACE, ON, "reconnect-delay=1:2:3"], "must be one time"),
    (&[PLACE, ON, "reconnect-delay=1:1e9"], "must be one time"),
    (&[PLACE, ON, "replay="], "replay=: must be a size"),
    (&[PLACE, ON, "replay=lots"], "replay=lots: must be a size"),
    (&[PLACE, ON, "replay=-1"], "replay=-1: must be a size"),
    (&[PLACE, ON, "replay=8E"], "replay=8E: must be less than 8E"),
    (&[PLACE, "linger="], "linger=: must be a time"),
    (&[PLACE, "linger=always"], "linger=always: must be a time"),
    (&[PLACE, "linger=-1"], "linger=-1: must be a time"),
    (&[PLACE, "linger=99999999999"], "must be at most 366 days"),
    (&[PLACE, "keepalive="], "keepalive=: must be a time"),
    (
        &[PLACE, "keepalive=often"],
        "keepalive=often: must be a time",
    ),
    (&[PLACE, "keepalive=32768"], "must be at most 32767 seconds"),
    (&[PLACE, "connections="], "connections: empty string"),
    (
        &[PLACE, "connections=0"],
        "connections=0: must be a number from 1 to 64",
    ),
    (&[PLACE, "connections=65"], "must be a number from 1 to 64"),
    (
        &[PLACE, "connections=many"],
        "connections: could not parse number",
    ),
    (
        &[PLACE, "connections=-1"],
        "connections: could not parse number",
    ),
    (
        &["socket-fd=0", "connections=2"],
        "cannot use ‘connections’ with ‘socket-fd’",
    ),
    (&[PLACE, "servers="], "servers=: must be failover or spread"),
    (&[PLACE, "servers=raid"], "must be failover or spread"),
    (
        &[PLACE, "servers=spread", "servers-same-disk=maybe"],
        "servers-same-disk: could not decipher boolean",
    ),
    (
        &[PLACE, "servers=spread", "servers-same-disk=true"],
        "should only be used with ‘servers=failover’",
    ),
    (
        &[PLACE, "servers-same-disk=true"],
        "should only be used with ‘servers=failover’",
    ),
    (
        &["vsock=2", "servers=failover"],
        "cannot use ‘servers’ with ‘vsock’",
    ),
    (
        &["uri=nbd+vsock://2", "servers=failover"],
        "cannot use ‘servers’ with ‘vsock’",
    ),
    (
        &[PLACE, "command=true", "servers=failover"],
        "cannot use ‘servers’ with ‘vsock’",
    ),
    (
        &["socket-fd=0", "servers=spread"],
        "cannot use ‘servers’ with ‘vsock’",
    ),
    (
        &[PLACE, "servers=spread", "dynamic-export=true"],
        "cannot use ‘servers’ with ‘dynamic-export’",
    ),
    (&["servers=spread"], NONE),
    (
        &[PLACE, "servers=spread", "port=1"],
        "‘port’ parameter should only be used",
    ),
    (&[PLACE, "servers=spread", "uri=nbd://h:x"], "uri: "),
    (&[PLACE, "detect-zeroes="], "detect-zeroes=: must be off"),
    (&[PLACE, "detect-zeroes=yes"], "must be off, on or unmap"),
    (&[PLACE, "align="], "align=: must be advertise or emulate"),
    (&[PLACE, "align=yes"], "align=yes: must be advertise or"),
    (&[PLACE, "align=4096"], "align=4096: must be advertise or"),
    (&[PLACE, "quirks="], "quirks=: must be a list"),
    (&[PLACE, "quirks=,"], "quirks=,: must be a list"),
    (&[PLACE, "quirks=none"], "quirks=none: must be a list"),
    (&[PLACE, "quirks=no-meta=1"], "must be a list"),
    (&[PLACE, "quirks=max-request"], "must be a list"),
    (
        &[PLACE, "quirks=max-request="],
        "quirks=max-request=: must be a size",
    ),
    (&[PLACE, "quirks=max-request=0"], "from 512 to 64M"),
    (&[PLACE, "quirks=max-request=65M"], "from 512 to 64M"),
    (&[PLACE, "quirks=max-request=1000"], "a multiple of 512"),
    (&[PLACE, "quirks=max-status=0"], "and not 0"),
    (&[PLACE, "quirks=max-status=8E"], "must be less than 8E"),
    (&[PLACE, "quirks=max-zero=513"], "a multiple of 512"),
    (
        &[PLACE, "quirks=no-meta,max-zero=1M,no-meta"],
        "‘no-meta’ is given twice",
    ),
    (
        &[PLACE, "quirks=no-structured,extended"],
        "cannot mix ‘extended’ with ‘no-structured’",
    ),
    (&[PLACE, "colour=blue"], "unknown parameter 'colour'"),
    (&[PLACE, "Socket=/nowhere"], "unknown parameter 'Socket'"),
];

const NONE: &str = "exactly one of ‘socket’, ‘hostname’, ‘vsock’, ‘command’, ‘socket-fd’ and ‘uri’ \
                    parameters must be specified";
const SEVERAL: &str = "cannot mix Unix ‘socket’, TCP ‘hostname’/‘port’, ‘vsock’, ‘command’, ‘socket-fd’ \
                       and ‘uri’ parameters";
const STRAY_PORT: &str = "‘port’ parameter should only be used with ‘hostname’ or ‘vsock’";

/// What cannot be meant together, in the words of the plugin in C where it has them.
const CONFLICTS: &[Row] = &[
    (&[], NONE),
    (&["export=disk"], NONE),
    (&["port=10809"], NONE),
    (&["shared=true", "retry=3"], NONE),
    (&[PLACE, "port=10809"], STRAY_PORT),
    (&["command=true", "port=10809"], STRAY_PORT),
    (&["socket-fd=0", "port=10809"], STRAY_PORT),
    (&["nbd://localhost", "port=10809"], STRAY_PORT),
    (
        &[PLACE, "command-timeout=1"],
        "‘command-timeout’ parameter should only be used with ‘command’",
    ),
    (
        &["socket-fd=0", "command-timeout=0"],
        "‘command-timeout’ parameter should only be used with ‘command’",
    ),
    (
        &[PLACE, "reconnect-delay=1"],
        "‘reconnect-delay’ parameter should only be used with ‘reconnect’, which is off",
    ),
    (
        &[PLACE, "replay=1M", "reconnect=0"],
        "‘replay’ parameter should only be used with ‘reconnect’, which is off",
    ),
    (
        &["socket-fd=0", "reconnect=forever"],
        "cannot use ‘reconnect’ with ‘socket-fd’: the socket is good for one connection",
    ),
    (
        &[PLACE, "dynamic-export=true", "export=disk"],
        "cannot mix 'dynamic-export' with explicit export name",
    ),
    (
        &[PLACE, "dynamic-export=true", "export="],
        "cannot mix 'dynamic-export' with explicit export name",
    ),
    (
        &[PLACE, "dynamic-export=true", "shared=true"],
        "cannot use 'dynamic-export' with shared connection",
    ),
    (
        &["command=true", "dynamic-export=true"],
        "cannot use 'dynamic-export' with shared connection",
    ),
    (
        &["socket-fd=0", "dynamic-export=true"],
        "cannot use 'dynamic-export' with shared connection",
    ),
];

fn all_refused(rows: &[Row]) {
    if !need("nbdkit") {
        return;
    }
    for (args, says) in rows {
        let line = refusal(args);
        assert!(line.contains(says), "{args:?}: {says:?} is missing: {line}");
        assert!(
            !line.contains(|c: char| c.is_control()),
            "{args:?}: {line:?}"
        );
    }
}

#[test]
fn places_that_make_no_sense() {
    all_refused(PLACES);
}

#[test]
fn other_values_that_make_no_sense() {
    all_refused(OTHERS);
}

#[test]
fn conflicts_have_the_words_of_the_plugin_in_c() {
    if !need("nbdkit") {
        return;
    }
    for (args, says) in CONFLICTS {
        assert_eq!(refusal(args), *says, "{args:?}");
    }
}

#[test]
fn two_places_of_any_kind_are_one_too_many() {
    if !need("nbdkit") {
        return;
    }
    let places = [
        "socket=/nowhere",
        "hostname=localhost",
        "vsock=2",
        "command=true",
        "socket-fd=0",
        "uri=nbd://localhost",
    ];
    for (number, one) in places.iter().enumerate() {
        for two in &places[number + 1..] {
            assert_eq!(refusal(&[one, two]), SEVERAL, "{one} {two}");
        }
    }
    assert_eq!(refusal(&places), SEVERAL);
}

#[test]
fn user_is_told_however_nbdkit_is_started() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let line = refusal_in(directory.path(), mode, &[PLACE, "retry=often"]);
        assert!(line.starts_with("retry: "), "{mode:?}: {line}");
    }
}

#[test]
fn words_that_are_not_utf_8() {
    if !need("nbdkit") {
        return;
    }
    for (before, key) in [
        (PLACE, "retry"),
        (PLACE, "shared"),
        (PLACE, "tls-username"),
        (PLACE, "request-timeout"),
        ("retry=0", "hostname"),
        ("retry=0", "vsock"),
        ("retry=0", "socket-fd"),
        ("retry=0", "uri"),
        ("hostname=localhost", "port"),
    ] {
        let word = [key.as_bytes(), b"=a\xff\xfe"].concat();
        let directory = tempfile::tempdir().expect("temporary directory");
        let (line, all) = refusal_with(directory.path(), Mode::Foreground, &[before], |command| {
            command.arg(OsStr::from_bytes(&word));
        });
        assert_eq!(all.lines().count(), 1, "{key}: {all}");
        assert!(!line.is_empty(), "{key}");
    }
}

#[test]
fn terminal_codes_and_newlines_are_not_repeated() {
    if !need("nbdkit") {
        return;
    }
    for word in [
        "uri=\u{1b}[31m\nnbdkit: error: forged",
        "retry=\u{1b}[31m\nnbdkit: error: forged",
        "shared=\u{7}\n",
        "connect-timeout=\r\n",
        "vsock=\u{1b}c",
        "tls-key-password=+/nowhere\u{1b}[31m\nnbdkit: error: forged",
    ] {
        let args = if word.starts_with("uri") || word.starts_with("vsock") {
            vec![word]
        } else {
            vec![PLACE, word]
        };
        // That it is one line is checked for every refusal.
        let line = refusal(&args);
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
}

#[test]
fn long_words_are_not_repeated_in_full() {
    if !need("nbdkit") {
        return;
    }
    let long = "x".repeat(100_000);
    for word in ["retry", "shared", "export", "connect-timeout", "tls"] {
        let line = refusal(&[PLACE, &format!("{word}={long}")]);
        assert!(line.len() < 1000, "{word}: {} bytes", line.len());
    }
    let line = refusal(&[&format!("uri={long}")]);
    assert!(line.len() < 1000, "uri: {} bytes", line.len());
}

#[test]
fn every_parameter_is_in_these_tables() {
    if !need("nbdkit") {
        return;
    }
    let help = run_ok(Command::new("nbdkit").arg(plugin()).arg("--help"), LIMIT);
    let (_, ours) = help
        .split_once("\nplugin: ")
        .expect("nbdkit introduces the plugin");
    let offered: BTreeSet<&str> = ours
        .lines()
        .filter_map(|line| line.trim_start_matches('[').split_once('='))
        .map(|(key, _)| key)
        .filter(|key| !key.contains([' ', ',']))
        .collect();
    let tried: BTreeSet<&str> = [PLACES, OTHERS, CONFLICTS]
        .concat()
        .iter()
        .flat_map(|(args, _)| args.iter())
        .filter_map(|arg| arg.split_once('='))
        .map(|(key, _)| key)
        .collect();
    let missing: Vec<_> = offered.difference(&tried).collect();
    assert_eq!(missing, [&""; 0]);
    assert!(offered.contains("socket"), "{offered:?}");
}
