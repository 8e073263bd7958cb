// SPDX-License-Identifier: BSD-3-Clause
//! The files with certificates: what is missing or broken is told at the start, what changes later counts for
//! the next connection.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use common::clients::{LIMIT, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::process::run_ok;
use common::relay::Relay;
use common::tls::{nbdkit, opens, refused, refused_at_start, says};

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool"])
}

/// An authority in a directory that goes with it.
fn fresh_authority() -> (TempDir, Authority) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    (directory, authority)
}

/// The plugin before a server that calls itself localhost, with the certificates in `client`.
fn before(directory: &TempDir, socket: &Path, client: &Path) -> Nbdkit {
    let certificates = format!("tls-certificates={}", text(client));
    let parameters = ["tls=require", "tls-hostname=localhost", &certificates];
    forward(directory.path(), socket, &parameters)
}

/// With these certificates nbdkit must not start, whichever way TLS is asked for; returns the reason.
fn useless(directory: &Path) -> String {
    let certificates = format!("tls-certificates={}", text(directory));
    let uri = format!("nbds+unix:///?socket=/nowhere&{certificates}");
    let reasons = [
        refused_at_start(&["socket=/nowhere", "tls=require", &certificates]),
        refused_at_start(&["socket=/nowhere", "tls=on", &certificates]),
        refused_at_start(&["socket=/nowhere", &certificates]),
        refused_at_start(&[&uri]),
    ];
    for reason in &reasons {
        assert_eq!(reason, &reasons[0]);
    }
    reasons[0].clone()
}

#[test]
fn directory_that_does_not_exist() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let line = useless(&directory.path().join("missing"));
    says(&line, &["missing/ca-cert.pem", "No such file or directory"]);
}

#[test]
fn directory_without_an_authority() {
    if !ready() {
        return;
    }
    let (_directory, authority) = fresh_authority();
    let client = authority.client("client", &[]);
    fs::remove_file(client.join("ca-cert.pem")).expect("remove a file");
    let line = useless(&client);
    says(&line, &["client/ca-cert.pem", "No such file or directory"]);
}

#[test]
fn authority_that_is_no_certificate() {
    if !ready() {
        return;
    }
    let (_directory, authority) = fresh_authority();
    let client = authority.trusting("client");
    for content in [&b"no certificate\n"[..], b"", b"\0\xff"] {
        fs::write(client.join("ca-cert.pem"), content).expect("write a file");
        says(&useless(&client), &["client/ca-cert.pem"]);
    }
}

#[test]
fn certificate_and_key_only_go_together() {
    if !ready() {
        return;
    }
    let (_directory, authority) = fresh_authority();
    for missing in ["client-cert.pem", "client-key.pem"] {
        let client = authority.client(missing, &[]);
        fs::remove_file(client.join(missing)).expect("remove a file");
        says(&useless(&client), &["client-key.pem", "client-cert.pem"]);
    }
}

#[test]
fn key_of_another_certificate() {
    if !ready() {
        return;
    }
    let (_directory, authority) = fresh_authority();
    let client = authority.client("client", &[]);
    let other = authority.client("other", &[]);
    fs::copy(other.join("client-key.pem"), client.join("client-key.pem")).expect("copy a key");
    says(&useless(&client), &["client-key.pem"]);
}

#[test]
fn broken_list_of_revoked_certificates() {
    if !ready() {
        return;
    }
    // To go on without it would be to believe what was revoked.
    let (_directory, authority) = fresh_authority();
    let client = authority.trusting("client");
    for content in ["no list\n", ""] {
        fs::write(client.join("ca-crl.pem"), content).expect("write a file");
        says(&useless(&client), &["client/ca-crl.pem"]);
    }
}

#[test]
fn verification_that_needs_a_name_and_has_none() {
    if !ready() {
        return;
    }
    let (_directory, authority) = fresh_authority();
    let client = format!("tls-certificates={}", text(&authority.trusting("client")));
    let line = refused_at_start(&["socket=/nowhere", "tls=require", &client, "tls-verify=true"]);
    says(&line, &["tls-verify=true", "tls-hostname"]);
}

#[test]
fn pin_that_is_no_digest() {
    if !ready() {
        return;
    }
    for pin in ["tls-pin=sha256:00", "tls-pin=sha1:00", "tls-pin="] {
        let line = refused_at_start(&["socket=/nowhere", "tls=require", pin]);
        says(&line, &["tls-pin", "64 hexadecimal digits"]);
    }
}

#[test]
fn files_do_not_matter_when_tls_is_off() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(directory.path(), &["memory", "1M"]);
    let args = ["tls=off", "tls-certificates=/nowhere"];
    opens(&forward(directory.path(), upstream.socket(), &args));
}

#[test]
fn relative_path_is_taken_from_where_nbdkit_was_started() {
    if !ready() || !need_all(&["nbdinfo"]) {
        return;
    }
    let (directory, authority) = fresh_authority();
    let server = authority.server("server", LOCALHOST);
    authority.trusting("client");
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let mut command = Command::new("nbdkit");
    // In the background, where nbdkit has the directory `/`, at least while the captive command runs.
    command
        .current_dir(directory.path())
        .arg("-U-")
        .arg(common::plugin())
        .arg(format!("socket={}", text(upstream.socket())))
        .args(["tls=require", "tls-hostname=localhost"])
        .args(["tls-certificates=client", "--run"])
        .arg("nbdinfo --size \"$uri\"");
    assert_eq!(run_ok(&mut command, LIMIT), "1048576\n");
}

#[test]
fn system_trust_is_the_last_resort() {
    if !ready() || !need_all(&["nbdinfo"]) {
        return;
    }
    // OpenSSL looks for the system's authorities where these variables say.
    let (directory, authority) = fresh_authority();
    let server = authority.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let relay = Relay::tcp(upstream.socket());
    let mut command = Command::new("nbdkit");
    command
        .env("SSL_CERT_FILE", authority.certificate())
        .env("SSL_CERT_DIR", directory.path())
        .env("HOME", directory.path())
        .arg("-U-")
        .arg(common::plugin())
        .args(relay.parameters())
        .args(["tls=require", "--run", "nbdinfo --size \"$uri\""]);
    assert_eq!(run_ok(&mut command, LIMIT), "1048576\n");
}

#[test]
fn renewed_files_are_used_by_the_next_connection() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let old = Authority::new(directory.path(), "old");
    let client = old.trusting("client");
    let server = old.server("server", LOCALHOST);
    let socket = directory.path().join("upstream.sock");
    let certificates = format!("--tls-certificates={}", text(&server));
    let args = ["--tls=require", &certificates, "memory", "1M"];
    let first = Nbdkit::start_at(&socket, &args);
    let front = before(&directory, &socket, &client);
    opens(&front);

    // The server moves to another authority.
    let new = Authority::new(directory.path(), "new");
    new.trust(&server);
    new.renew_server(&server, LOCALHOST);
    drop(first);
    fs::remove_file(&socket).expect("remove the old server's socket");
    let _second = Nbdkit::start_at(&socket, &args);
    says(&refused(&front), &["certificate is not accepted"]);
    new.trust(&client);
    opens(&front);
}

#[test]
fn newly_revoked_certificate_is_refused_by_the_next_connection() {
    if !ready() {
        return;
    }
    let (directory, authority) = fresh_authority();
    let client = authority.trusting("client");
    let server = authority.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let front = before(&directory, upstream.socket(), &client);
    opens(&front);
    authority.revoke(&server.join("server-cert.pem"), &client);
    says(
        &refused(&front),
        &["certificate is not accepted", "revoked"],
    );
}

#[test]
fn files_that_vanish_fail_only_the_connections_that_need_them() {
    if !ready() {
        return;
    }
    let (directory, authority) = fresh_authority();
    let client = authority.trusting("client");
    let server = authority.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let front = before(&directory, upstream.socket(), &client);
    let mut early = common::front::Front::open(front.socket()).expect("all files are there");
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&client, &elsewhere).expect("rename the directory");
    says(&refused(&front), &["client/ca-cert.pem", "No such file"]);
    assert_eq!(early.read(0, 512).map(|data| data.len()), Ok(512));
    early.close();
    fs::rename(&elsewhere, &client).expect("rename it back");
    opens(&front);
}

#[test]
fn key_that_others_may_read_is_used_with_a_warning() {
    if !ready() {
        return;
    }
    let (directory, authority) = fresh_authority();
    let client = authority.client("client", &[]);
    let key = client.join("client-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("open it to all");
    let server = authority.server("server", LOCALHOST);
    let args = ["--tls-verify-peer", "memory", "1M"];
    let upstream = nbdkit(directory.path(), &server, &args);
    let front = before(&directory, upstream.socket(), &client);
    opens(&front);
    let warning = "others than its owner may use the client's key: its mode is 0644";
    says(
        &front.stderr(),
        &[&format!("error: warning: {}: {warning}", text(&key))],
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).expect("make it private");
    let front = before(&directory, upstream.socket(), &client);
    opens(&front);
    assert!(!front.stderr().contains("others than its owner"));
}
