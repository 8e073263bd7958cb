// SPDX-License-Identifier: BSD-3-Clause
//! What the user may type after `nbdkit nbd`, and what is said of everything else, before any client comes.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::clients::{LIMIT, nbdsh};
use common::nbdkit::{Nbdkit, forward};
use common::process::run;
use common::upstream::memory;
use common::{need, plugin};

/// Runs `nbdkit PLUGIN args --run true`: reads the parameters, starts, and ends at once.
fn nbdkit(args: &[&str]) -> Output {
    run(
        Command::new("nbdkit")
            .arg("-U")
            .arg("-")
            .arg(plugin())
            .args(args)
            .args(["--run", "true"]),
        LIMIT,
    )
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused(args: &[&str], message: &str) {
    if !need("nbdkit") {
        return;
    }
    let output = nbdkit(args);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{args:.60?}: {text}");
    assert!(
        text.contains(message),
        "{args:.60?} should be refused with {message:?}, not: {text:.400}"
    );
    assert!(text.starts_with("nbdkit: error: "), "{text:.400}");
}

fn accepted(args: &[&str]) {
    if !need("nbdkit") {
        return;
    }
    let output = nbdkit(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    assert_eq!(said(&output), "", "{args:?}");
}

/// A path of exactly `length` bytes in `directory`.
fn path_of_length(directory: &Path, length: usize) -> PathBuf {
    let used = directory.as_os_str().len() + 1;
    directory.join("s".repeat(length - used))
}

#[test]
fn socket_alone_is_enough() {
    accepted(&["socket=/nowhere"]);
}

#[test]
fn all_parameters_together() {
    accepted(&[
        "socket=/nowhere",
        "export=disk",
        "connect-timeout=5",
        "handshake-timeout=1.5s",
        "request-timeout=200ms",
        "close-timeout=3",
        "reconnect=1.5s",
        "reconnect-delay=20ms:2",
        "replay=16M",
        "keepalive=10",
        "connections=4",
        "linger=2.5s",
        "quirks=no-meta,max-request=1M,max-zero=1G",
        "detect-zeroes=unmap",
        "align=emulate",
        "extents=base:allocation",
        "extents-cache=16M",
    ]);
}

#[test]
fn extents_go_with_most_others() {
    for with in [
        "connections=4",
        "linger=forever",
        "reconnect=1",
        "quirks=no-extended,max-status=1M",
        "quirks=no-opt-go",
    ] {
        let bitmap = "extents=qemu:dirty-bitmap:b";
        accepted(&["socket=/nowhere", with, bitmap, "extents-cache=1M"]);
    }
}

#[test]
fn host_with_a_port_is_taken_apart() {
    refused(
        &["hostname=localhost:10809"],
        "hostname=localhost:10809: must be the host alone: write hostname=localhost port=10809",
    );
    refused(&["hostname=[::1]:1"], "write hostname=::1 port=1");
    refused(&["hostname=[::1]"], "must be without brackets");
    refused(&["hostname=/run/nbd.sock"], "write socket=PATH");
}

#[test]
fn uri_in_another_parameter_is_recognised_and_not_shown() {
    for key in ["hostname", "socket"] {
        let output = nbdkit(&[&format!("{key}=nbd://bob:hunter2@localhost/")]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let message = format!("nbdkit: error: {key}: must not be a URI: write uri=URI\n");
        assert_eq!(text, message);
    }
}

#[test]
fn parameter_with_a_bad_value_is_named() {
    let place = "socket=/nowhere";
    for key in ["shared", "dynamic-export", "tls", "tls-verify"] {
        refused(
            &[place, &format!("{key}=perhaps")],
            &format!("error: {key}: could not decipher boolean (perhaps)"),
        );
    }
    for key in ["vsock", "cid"] {
        refused(
            &[&format!("{key}=host")],
            &format!(
                "error: vsock_cid: could not parse number: \"host\": not a number \
                 (parameter ‘{key}’)"
            ),
        );
    }
    refused(
        &["vsock=2", "port=nbd"],
        "error: port: could not parse number",
    );
    refused(&["hostname=h", "port=0"], "error: port=0: must be ");
}

#[test]
fn missing_socket() {
    refused(&[], "socket");
}

#[test]
fn export_without_socket() {
    refused(&["export=disk"], "socket");
}

#[test]
fn empty_socket() {
    refused(&["socket="], "socket");
}

#[test]
fn unknown_parameter_is_named() {
    refused(
        &["socket=/nowhere", "colour=blue"],
        "unknown parameter 'colour'",
    );
}

#[test]
fn almost_right_parameter_is_named() {
    refused(
        &["socket=/nowhere", "exports=disk"],
        "unknown parameter 'exports'",
    );
}

#[test]
fn keys_are_lower_case() {
    refused(&["SOCKET=/nowhere"], "unknown parameter 'SOCKET'");
}

#[test]
fn socket_path_one_byte_too_long() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = path_of_length(directory.path(), 108);
    refused(
        &[&format!("socket={}", path.display())],
        "socket file name too large",
    );
}

#[test]
fn socket_path_far_too_long() {
    refused(
        &[&format!("socket=/{}", "x".repeat(4000))],
        "socket file name too large",
    );
}

#[test]
fn longest_socket_path_works() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = path_of_length(directory.path(), 107);
    let upstream = Nbdkit::start_at(&path, &["memory", "1M"]);
    let front = forward(directory.path(), upstream.socket(), &[]);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.get_size())").trim_end(),
        "1048576"
    );
}

#[test]
fn relative_socket_is_seen_from_where_nbdkit_was_started() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let name = upstream
        .socket()
        .file_name()
        .expect("a file name")
        .to_str()
        .expect("plain name");
    // The client runs in another directory, and nbdkit itself may have left its own by then.
    let output = run(
        Command::new("nbdkit")
            .current_dir(directory.path())
            .args(["-v", "-U", "-"])
            .arg(plugin())
            .arg(format!("socket={name}"))
            .args([
                "--run",
                "cd / && exec /usr/bin/python3 -mnbd -u \"$uri\" -c 'print(h.get_size())'",
            ]),
        LIMIT,
    );
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end(),
        "1048576"
    );
    assert!(
        text.contains(upstream.socket().to_str().expect("plain path")),
        "the absolute path is shown: {text}"
    );
}

#[test]
fn relative_socket_is_measured_as_absolute() {
    if !need("nbdkit") {
        return;
    }
    // 60 bytes by itself, but too long with the directory in front.
    let directory = tempfile::tempdir().expect("temporary directory");
    let deep = directory.path().join("d".repeat(60));
    fs::create_dir(&deep).expect("make directory");
    let output = run(
        Command::new("nbdkit")
            .current_dir(&deep)
            .args(["-U", "-"])
            .arg(plugin())
            .arg(format!("socket={}", "s".repeat(60)))
            .args(["--run", "true"]),
        LIMIT,
    );
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("socket file name too large"),
        "{}",
        said(&output)
    );
}

#[test]
fn times_that_are_understood() {
    for time in ["1", "30", "1.5", "0.25", "30s", "1.5s", "200ms"] {
        accepted(&["socket=/nowhere", &format!("connect-timeout={time}")]);
        accepted(&["socket=/nowhere", &format!("handshake-timeout={time}")]);
        accepted(&["socket=/nowhere", &format!("request-timeout={time}")]);
        accepted(&["socket=/nowhere", &format!("close-timeout={time}")]);
    }
}

#[test]
fn limits_may_be_switched_off() {
    accepted(&["socket=/nowhere", "request-timeout=0"]);
    accepted(&["socket=/nowhere", "close-timeout=0"]);
    accepted(&["socket=/nowhere", "reconnect=0"]);
}

#[test]
fn ways_to_come_back_that_are_understood() {
    for time in ["1", "200ms", "forever"] {
        accepted(&["socket=/nowhere", &format!("reconnect={time}")]);
    }
    let on = |parameter: &str| accepted(&["socket=/nowhere", "reconnect=30", parameter]);
    for delay in ["1", "100ms:5s", "10", "2s:2s"] {
        on(&format!("reconnect-delay={delay}"));
    }
    for size in ["0", "1", "2s", "512k", "64M", "1G", "7E"] {
        on(&format!("replay={size}"));
    }
}

#[test]
fn silence_may_be_asked_about() {
    for time in ["200ms", "1", "32767", "0"] {
        accepted(&["hostname=localhost", &format!("keepalive={time}")]);
    }
    // It is of no use there, which only -v says.
    accepted(&["socket=/nowhere", "keepalive=5"]);
}

#[test]
fn there_may_be_up_to_64_connections() {
    for number in ["1", "2", "64", "0x10"] {
        accepted(&["socket=/nowhere", &format!("connections={number}")]);
    }
}

#[test]
fn connections_may_be_kept_for_a_time_or_for_ever() {
    for time in ["200ms", "1", "forever", "0"] {
        accepted(&["socket=/nowhere", &format!("linger={time}")]);
    }
}

#[test]
fn there_may_be_several_servers_if_that_is_said() {
    let several = [
        "socket=/nowhere",
        "hostname=localhost",
        "uri=nbd://localhost/x",
        "hostname=127.0.0.1",
        "port=1",
        "socket=/neither",
    ];
    for plan in ["servers=failover", "servers=spread"] {
        if !need("nbdkit") {
            return;
        }
        for places in [&several[..], &["socket=/nowhere"]] {
            let output = nbdkit(&[&[plan][..], places].concat());
            let said = said(&output);
            assert!(output.status.success(), "{said}");
            assert!(said.contains("nothing can be written"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    let one_disk = ["servers=failover", "servers-same-disk=1"];
    accepted(&[&one_disk[..], &several].concat());
    accepted(&[&one_disk[..], &several, &["extents=qemu:dirty-bitmap:b"]].concat());
    refused(&several, "cannot mix Unix ‘socket’");
    // As ever.
    accepted(&["socket=/nowhere", "socket=/neither"]);
}

#[test]
fn times_that_are_not_understood_name_the_parameter() {
    let bad = [
        "", " ", "s", "ms", "-1", "+", "soon", "1h", "1.5.2", "1,5", "1 s", "nan", "inf", "1e3",
        "0x10",
    ];
    for time in bad {
        refused(
            &["socket=/nowhere", &format!("connect-timeout={time}")],
            "connect-timeout",
        );
    }
}

#[test]
fn every_time_is_checked() {
    refused(
        &["socket=/nowhere", "handshake-timeout=soon"],
        "handshake-timeout",
    );
    refused(
        &["socket=/nowhere", "request-timeout=soon"],
        "request-timeout",
    );
    refused(&["socket=/nowhere", "close-timeout=soon"], "close-timeout");
}

#[test]
fn absurdly_long_time_does_not_overflow() {
    // Refused or taken, but told apart from a crash by the exit status.
    if !need("nbdkit") {
        return;
    }
    for time in [
        "99999999999999999999999999",
        "18446744073709551615",
        "9223372036854775807.999999999999",
    ] {
        let output = nbdkit(&["socket=/nowhere", &format!("connect-timeout={time}")]);
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{time}: {:?} {}",
            output.status,
            said(&output)
        );
    }
}

#[test]
fn export_name_longer_than_the_protocol_allows() {
    refused(
        &["socket=/nowhere", &format!("export={}", "x".repeat(4097))],
        "export",
    );
}

#[test]
fn help_names_every_parameter() {
    if !need("nbdkit") {
        return;
    }
    let output = run(Command::new("nbdkit").arg(plugin()).arg("--help"), LIMIT);
    assert!(output.status.success(), "{}", said(&output));
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for key in [
        "socket=",
        "export=",
        "connect-timeout=",
        "handshake-timeout=",
        "request-timeout=",
        "close-timeout=",
        "reconnect=",
        "reconnect-delay=",
        "replay=",
        "keepalive=",
        "connections=",
        "servers=",
        "servers-same-disk=",
        "linger=",
        "quirks=",
        "detect-zeroes=",
        "align=",
        "extents=",
        "extents-cache=",
    ] {
        assert!(help.contains(key), "{key} in {help}");
    }
}

#[test]
fn version_is_the_crates() {
    if !need("nbdkit") {
        return;
    }
    let output = run(Command::new("nbdkit").arg(plugin()).arg("--version"), LIMIT);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        text.contains(&format!("nbd {}", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
}
