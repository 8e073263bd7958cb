// SPDX-License-Identifier: BSD-3-Clause
//! Files of TLS that are there and of no use: an error that names them, never a connection that goes on
//! without them; and what of them is good for a warning only.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use common::clients::{LIMIT, text};
use common::nbdkit::forward;
use common::need_all;
use common::pki::{Authority, LOCALHOST, keys_as};
use common::process::run_ok;
use common::tls::{nbdkit, opens, refused, refused_at_start, says};

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool"])
}

/// The parameter that names a directory of certificates.
fn certificates(directory: &Path) -> String {
    format!("tls-certificates={}", text(directory))
}

/// Why nbdkit does not start with these certificates.
fn useless(directory: &Path) -> String {
    refused_at_start(&["socket=/nowhere", "tls=require", &certificates(directory)])
}

#[test]
fn only_a_file_that_is_not_there_may_be_missing() {
    if !ready() || !need_all(&["mkfifo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    for file in [
        "ca-crl.pem",
        "ca-cert.pem",
        "client-cert.pem",
        "client-key.pem",
    ] {
        let client = authority.client(file, &[]);
        let path = client.join(file);
        let _ = fs::remove_file(&path);
        let wrong = |why: &str| says(&useless(&client), &[text(&path), why, "tls-certificates"]);
        fs::create_dir(&path).expect("a new directory");
        wrong("is a directory");
        fs::remove_dir(&path).expect("an empty directory");
        symlink("nowhere", &path).expect("make a link");
        wrong("No such file or directory");
        fs::remove_file(&path).expect("remove a link");
        symlink("/dev/null", &path).expect("make a link");
        wrong("is a device");
        fs::remove_file(&path).expect("remove a link");
        for content in ["", "no block\n", "-----BEGIN X-----\n-----END X-----\n"] {
            fs::write(&path, content).expect("write a file");
            wrong("there is no");
        }
        fs::write(&path, "-----BEGIN CERTIFICATE-----\nMIIB").expect("write a file");
        wrong("its end is missing");
        if file == "client-key.pem" {
            // One is enough: it takes a while.
            fs::remove_file(&path).expect("remove a file");
            run_ok(Command::new("mkfifo").arg(&path), LIMIT);
            wrong("nobody writes");
        }
    }
}

#[test]
fn file_that_may_not_be_read_is_not_missing() {
    if !ready() || !need_all(&["id"]) {
        return;
    }
    // nbdkit starts as root, who may read everything, and then becomes somebody else.
    if run_ok(Command::new("id").arg("-u"), LIMIT) != "0\n" {
        println!("SKIP: only root can become somebody else");
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let server = authority.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(directory.path(), all.clone()).expect("open it to all");
    fs::set_permissions(upstream.socket(), all).expect("open it to all");
    let client = authority.client("client", &[]);
    authority.list(&client.join("ca-crl.pem"), &[], &["crl_next_update = 2"]);
    let readable = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(client.join("client-key.pem"), readable(0o644)).expect("for all");
    let parameters = [
        "--user=nobody",
        "tls=require",
        "tls-hostname=localhost",
        &certificates(&client),
    ];
    let front = forward(directory.path(), upstream.socket(), &parameters);
    opens(&front);
    for file in [
        "ca-crl.pem",
        "ca-cert.pem",
        "client-cert.pem",
        "client-key.pem",
    ] {
        let path = client.join(file);
        fs::set_permissions(&path, readable(0o600)).expect("make it private");
        says(
            &refused(&front),
            &[text(&path), "Permission denied", "tls-certificates"],
        );
        fs::set_permissions(&path, readable(0o644)).expect("open it to all");
    }
    opens(&front);
}

#[test]
fn useless_file_costs_no_connection() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = authority.trusting("client");
    let socket = directory.path().join("server.sock");
    let server = UnixListener::bind(&socket).expect("listen on a fresh socket");
    let parameters = ["tls=require", &certificates(&client)];
    let front = forward(directory.path(), &socket, &parameters);
    fs::write(client.join("ca-cert.pem"), "").expect("write a file");
    says(
        &refused(&front),
        &["client/ca-cert.pem", "there is no certificate"],
    );
    server.set_nonblocking(true).expect("a socket of our own");
    assert!(server.accept().is_err(), "somebody has connected");
}

#[test]
fn list_whose_time_is_over_is_good_for_a_warning() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = authority.trusting("client");
    let server = authority.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let parameters = [
        "tls=require",
        "tls-hostname=localhost",
        &certificates(&client),
    ];
    for (until, warned) in [("2030-01-01", false), ("2020-01-02", true)] {
        let lines = [
            "crl_this_update_date = \"2020-01-01 00:00:00\"",
            &format!("crl_next_update_date = \"{until} 00:00:00\""),
        ];
        authority.list(&client.join("ca-crl.pem"), &[], &lines);
        let front = forward(directory.path(), upstream.socket(), &parameters);
        opens(&front);
        let warning = "ca-crl.pem: the list of \"CN=authority\" should have been renewed by Jan  2";
        assert_eq!(
            front.stderr().contains(warning),
            warned,
            "{}",
            front.stderr()
        );
    }
}

#[test]
fn revoked_certificate_is_named() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = authority.trusting("client");
    let server = authority.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    authority.revoke(&server.join("server-cert.pem"), &client);
    let parameters = [
        "tls=require",
        "tls-hostname=localhost",
        &certificates(&client),
    ];
    let line = refused(&forward(directory.path(), upstream.socket(), &parameters));
    let list = client.join("ca-crl.pem");
    says(
        &line,
        &[
            "certificate of \"CN=server\" has been revoked",
            "\"CN=authority\"",
            text(&list),
        ],
    );
}

#[test]
fn nothing_that_a_user_gave_is_printed_raw() {
    if !ready() {
        return;
    }
    const BAD: &str = "x\nFORGED\x1b[31m";
    const SHOWN: &str = r"x\nFORGED\u{1b}[31m";
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys_as(directory.path(), "keys", "alice:0badc0de\n");
    let keys = format!("tls-psk={}", text(&keys));
    let bad = directory.path().join(BAD);
    let authority = Authority::new(directory.path(), "authority");
    fs::rename(authority.trusting("trusting"), &bad).expect("rename a directory");
    fs::write(bad.join("client-key.pem"), "").expect("write a file");
    for parameters in [
        &[&*certificates(&bad)][..],
        &[&format!("tls-certificates=/nowhere/{BAD}")],
        &[&format!("tls-psk=/nowhere/{BAD}")],
        &[&keys, &format!("tls-username={BAD}")],
    ] {
        let line = refused_at_start(&[&["socket=/nowhere", "tls=require"], parameters].concat());
        says(&line, &[SHOWN]);
    }
}
