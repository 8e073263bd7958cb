// SPDX-License-Identifier: BSD-3-Clause
//! Parameters as a user types them: what they mean together, and every mistake with its message.

use super::*;
use std::path::PathBuf;

mod pairs;

fn complete(pairs: &[(&str, &str)]) -> Result<Config, Error> {
    let mut params = Params::default();
    for (key, value) in pairs {
        params.set(key, value.as_bytes())?;
    }
    params.complete()
}

fn place(pairs: &[(&str, &str)]) -> Place {
    complete(pairs).expect("legal").place
}

fn message(pairs: &[(&str, &str)]) -> String {
    complete(pairs).expect_err("illegal").to_string()
}

#[test]
fn there_are_six_ways_to_name_a_server() {
    let tcp = |host: &str, port: &str| Place::Tcp {
        host: host.to_owned(),
        port: port.to_owned(),
    };
    assert_eq!(place(&[("socket", "/a")]), Place::Unix(PathBuf::from("/a")));
    assert_eq!(place(&[("hostname", "h")]), tcp("h", "10809"));
    assert_eq!(place(&[("hostname", "h"), ("port", "80")]), tcp("h", "80"));
    let vsock = Place::Vsock {
        cid: 2,
        port: 10809,
    };
    assert_eq!(place(&[("vsock", "2")]), vsock);
    assert_eq!(place(&[("cid", "0x2"), ("port", "10809")]), vsock);
    assert_eq!(place(&[("socket-fd", "3")]), Place::SocketFd(3));
    assert_eq!(
        place(&[("command", "qemu-nbd"), ("arg", "-x"), ("arg", "")]),
        Place::Command(vec!["qemu-nbd".into(), "-x".into(), "".into()])
    );
    assert_eq!(place(&[("uri", "nbd://h:1/x")]), tcp("h", "1"));
}

#[test]
fn the_program_is_what_command_says() {
    for pairs in [
        &[("arg", "-x"), ("command", "p"), ("arg", "-y")][..],
        &[("arg", "-x"), ("command", "p"), ("command", "-y")][..],
        // As the plugin in C has it.
        &[("arg", "p"), ("arg", "-x"), ("arg", "-y")][..],
    ] {
        let words = ["p", "-x", "-y"].map(Into::into).to_vec();
        assert_eq!(place(pairs), Place::Command(words));
    }
}

#[test]
fn the_end_of_a_command_has_no_limit_but_the_users() {
    let limit = |pairs: &[_]| complete(pairs).expect("legal").timeouts.command;
    assert_eq!(limit(&[("command", "p")]), None);
    assert_eq!(limit(&[("command-timeout", "0"), ("arg", "p")]), None);
    assert_eq!(
        limit(&[("command", "p"), ("command-timeout", "90")]),
        Some(Duration::from_secs(90))
    );
}

#[test]
fn a_later_value_replaces_an_earlier_one() {
    assert_eq!(
        place(&[("socket", "/a"), ("socket", "/b")]),
        Place::Unix(PathBuf::from("/b"))
    );
}

#[test]
fn a_child_or_a_descriptor_is_shared() {
    assert!(!complete(&[("socket", "/a")]).expect("legal").shared);
    assert!(complete(&[("socket-fd", "3")]).expect("legal").shared);
    assert!(complete(&[("command", "x")]).expect("legal").shared);
}

#[test]
fn the_uris_export_wins() {
    let config = complete(&[("uri", "nbd://h"), ("export", "x")]).expect("legal");
    assert_eq!(
        config.export,
        ExportName::Fixed(name::ExportName::default())
    );
    let config = complete(&[("uri", "nbd://h/y"), ("export", "x")]).expect("legal");
    assert_eq!(
        config.export,
        ExportName::Fixed(name::ExportName::new("y").expect("a name"))
    );
}

#[test]
fn defaults_are_those_of_the_manual() {
    let config = complete(&[("socket", "/a")]).expect("legal");
    assert_eq!(
        config.export,
        ExportName::Fixed(name::ExportName::default())
    );
    assert_eq!(config.retry, 0);
    assert_eq!(config.timeouts.connect, Some(Duration::from_secs(30)));
    assert_eq!(config.timeouts.handshake, Some(Duration::from_secs(120)));
    assert_eq!(config.timeouts.request, None);
    assert_eq!(config.timeouts.close, Some(Duration::from_secs(5)));
}

#[test]
fn each_time_has_its_own_place() {
    let config = complete(&[
        ("socket", "/a"),
        ("connect-timeout", "1"),
        ("handshake-timeout", "2"),
        ("request-timeout", "3"),
        ("close-timeout", "4"),
    ]);
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!(
        config.expect("legal").timeouts,
        Timeouts {
            connect: seconds(1),
            handshake: seconds(2),
            request: seconds(3),
            close: seconds(4),
            command: None,
        }
    );
    let config = complete(&[("socket", "/a"), ("close-timeout", "0")]).expect("legal");
    assert_eq!(config.timeouts.close, None);
}

#[test]
fn conflicts_are_named() {
    let several = "cannot mix Unix ‘socket’, TCP ‘hostname’/‘port’, ‘vsock’, ‘command’, \
                   ‘socket-fd’ and ‘uri’ parameters";
    let stray = "‘port’ parameter should only be used with ‘hostname’ or ‘vsock’";
    for (pairs, expected) in [
        (&[("socket", "/a"), ("hostname", "h")][..], several),
        (&[("uri", "nbd://h"), ("command", "x")][..], several),
        (&[("socket", "/a"), ("port", "1")][..], stray),
        (&[("uri", "nbd://h"), ("port", "1")][..], stray),
        (
            &[("uri", "nbd://h"), ("command-timeout", "1")][..],
            "‘command-timeout’ parameter should only be used with ‘command’",
        ),
        (
            &[][..],
            "exactly one of ‘socket’, ‘hostname’, ‘vsock’, ‘command’, ‘socket-fd’ and ‘uri’ \
             parameters must be specified",
        ),
        (
            &[("socket", "/a"), ("dynamic-export", "1"), ("export", "x")][..],
            "cannot mix 'dynamic-export' with explicit export name",
        ),
        (
            &[("socket-fd", "3"), ("dynamic-export", "1")][..],
            "cannot use 'dynamic-export' with shared connection",
        ),
        (
            &[("socket", "/a"), ("dynamic-export", "1"), ("shared", "1")][..],
            "cannot use 'dynamic-export' with shared connection",
        ),
    ] {
        assert_eq!(message(pairs), expected);
    }
}

#[test]
fn every_bad_value_has_its_message() {
    let long = format!("/{}", "x".repeat(107));
    let name = "x".repeat(4097);
    for (key, value, expected) in [
        ("soket", "/a", "unknown parameter 'soket'"),
        ("socket", "", "socket=: must not be empty"),
        ("socket", &long, "socket file name too large"),
        ("hostname", "", "hostname=: must not be empty"),
        (
            "vsock",
            "x",
            "vsock_cid: could not parse number: \"x\": not a number (parameter ‘vsock’)",
        ),
        (
            "cid",
            "",
            "vsock_cid: empty string where we expected a number (parameter ‘cid’)",
        ),
        ("socket-fd", "-1", "socket-fd must be >= 0"),
        (
            "socket-fd",
            "x",
            "socket-fd: could not parse number: \"x\": not a number",
        ),
        ("command", "", "command=: must not be empty"),
        (
            "retry",
            "-1",
            "retry: could not parse number: \"-1\": negative numbers are not allowed",
        ),
        (
            "shared",
            "maybe",
            "shared: could not decipher boolean (maybe)",
        ),
        ("tls", "maybe", "tls: could not decipher boolean (maybe)"),
        (
            "tls-verify",
            "2",
            "tls-verify: could not decipher boolean (2)",
        ),
        (
            "dynamic-export",
            "x\n",
            "dynamic-export: could not decipher boolean (x\\n)",
        ),
        (
            "command-timeout",
            "x",
            "command-timeout=x: must be a time such as 30, 1.5s or 200ms, or 0 for none",
        ),
        (
            "request-timeout",
            "-1",
            "request-timeout=-1: must be a time such as 30, 1.5s or 200ms, or 0 for none",
        ),
        (
            "close-timeout",
            "5 s",
            "close-timeout=5 s: must be a time such as 30, 1.5s or 200ms, or 0 for none",
        ),
    ] {
        assert_eq!(message(&[(key, value)]), expected);
    }
    assert!(message(&[("socket", "/a"), ("export", &name)]).ends_with(params::NAME_TOO_LONG));
    assert_eq!(
        message(&[("hostname", "h"), ("port", "65536")]),
        "port=65536: must be from 1 to 65535, or the name of a service"
    );
    assert!(complete(&[("hostname", "h"), ("port", "-1")]).is_err());
    assert_eq!(
        message(&[("vsock", "2"), ("port", "nbd")]),
        "port: could not parse number: \"nbd\": not a number"
    );
}
