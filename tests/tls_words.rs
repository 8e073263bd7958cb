// SPDX-License-Identifier: BSD-3-Clause
//! What is said when TLS fails: what was wanted, what was offered, and the parameter that has to do with it.

mod common;

use std::path::Path;

use common::clients::text;
use common::nbdkit::forward;
use common::need_all;
use common::pki::{Authority, EXPIRED, LOCALHOST, key_of, keys, pin, self_signed};
use common::relay::Relay;
use common::tls::{nbdkit, nbdkit_psk, qemu, refused, says};
use common::upstream::{noise_file, qemu_nbd};

/// The newest that a server without TLS 1.3 has, in GnuTLS's words.
const ONLY_1_2: &str = "NORMAL:-VERS-TLS1.3";

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool", "psktool", "openssl"])
}

/// The one line in which the plugin says why it does not like the server with the certificate in `server`, on TCP.
fn line(directory: &Path, server: &Path, extra: &[&str]) -> String {
    let upstream = nbdkit(directory, server, &["memory", "1M"]);
    let relay = Relay::tcp(upstream.socket());
    let line = refused(&relay.forward(directory, &[&["tls=require"], extra].concat()));
    assert!(!line.contains("waiting"), "we wait for nothing: {line}");
    line
}

fn certificates(directory: &Path) -> String {
    format!("tls-certificates={}", text(directory))
}

#[test]
fn another_name_than_the_wanted_one() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = certificates(&authority.trusting("client"));
    let names = [
        "dns_name = a.example",
        "dns_name = \"*.b.example\"",
        "ip_address = 192.0.2.7",
        "ip_address = 2001:db8::7",
    ];
    let server = authority.server("server", &names);
    let line = line(
        directory.path(),
        &server,
        &[&client, "tls-hostname=storage.example"],
    );
    says(
        &line,
        &[
            "handshake: TLS: the server's certificate is not accepted: hostname mismatch: it is for \
             \"a.example\", \"*.b.example\", 192.0.2.7, 2001:db8::7, not for \"storage.example\" \
             (tls-hostname=)",
        ],
    );
}

#[test]
fn names_in_a_certificate_are_bounded_and_escaped() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = certificates(&authority.trusting("client"));
    let names: Vec<String> = (0..500)
        .map(|n| format!("dns_name = {n}{}.example", "-long".repeat(10)))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let server = authority.server("server", &names);
    let said = line(directory.path(), &server, &[&client]);
    says(&said, &["and others, not for \"localhost\""]);
    assert!(said.len() < 1000, "{}", said.len());
    // Without any such name it is known by whose it is. certtool takes its names as they come.
    let odd = Authority::new(directory.path(), "\u{1b}[31mred");
    let server = odd.server("odd", &[]);
    let said = line(directory.path(), &server, &[&client]);
    says(&said, &["issued by \"\\u{1b}[31mred\""]);
    assert!(!said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn authority_that_is_not_trusted() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "theirs");
    let other = Authority::new(directory.path(), "ours").trusting("client");
    let server = authority.server("server", LOCALHOST);
    let file = other.join("ca-cert.pem");
    let said = line(directory.path(), &server, &[&certificates(&other)]);
    let trusted = format!(
        "was issued by \"theirs\", who is not in {} (tls-certificates=)",
        text(&file)
    );
    says(
        &said,
        &[
            "not accepted: unable to get local issuer certificate: \"localhost\", 127.0.0.1 was",
            &trusted,
        ],
    );
    let said = line(directory.path(), &server, &[]);
    says(
        &said,
        &["issued by \"theirs\", who is not in the system's authorities"],
    );
}

#[test]
fn certificate_that_nobody_signed() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = self_signed(directory.path(), "server", LOCALHOST);
    let said = line(directory.path(), &server, &[]);
    // What is offered can be taken over as it is, by whoever has seen that it is right.
    says(&said, &["self", &format!("(tls-pin={})", pin(&server))]);
}

#[test]
fn certificate_that_has_expired() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = certificates(&authority.trusting("client"));
    let server = authority.server("server", &[LOCALHOST, EXPIRED].concat());
    let said = line(directory.path(), &server, &[&client]);
    says(
        &said,
        &["expired", "\"server\" is valid from Jan", "to Jan", "2020"],
    );
}

#[test]
fn key_that_is_not_the_pinned_one() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = self_signed(directory.path(), "server", LOCALHOST);
    let wanted = format!("tls-pin=sha256:{}", "ab".repeat(32));
    let said = line(directory.path(), &server, &[&wanted]);
    let offered = format!("pinned one, but {} (tls-pin=)", pin(&server));
    says(&said, &[&offered]);
}

#[test]
fn key_for_a_server_with_certificates() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let server = authority.server("server", LOCALHOST);
    let file = keys(directory.path(), "keys", &["alice"]);
    let psk = format!("tls-psk={}", text(&file));
    let image = noise_file(directory.path(), "image", 1 << 20, 501);
    for priority in ["NORMAL", ONLY_1_2] {
        let options = format!("verify-peer=no,priority={priority}");
        let upstream = qemu(directory.path(), &server, &options, &image, "raw");
        let parameters = ["tls=require", &psk, "tls-username=alice", "export=disk"];
        let said = refused(&forward(directory.path(), upstream.socket(), &parameters));
        says(
            &said,
            &["TLS: the server", "certificate", "tls-certificates="],
        );
        assert!(!said.contains("waiting"), "{priority}: {said}");
        assert!(!said.contains(&key_of(&file, "alice")), "{priority}");
    }
}

#[test]
fn certificates_for_a_server_with_keys() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let client = certificates(&Authority::new(directory.path(), "authority").trusting("client"));
    let file = keys(directory.path(), "keys.psk", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &file, &["memory", "1M"]);
    let parameters = ["tls=require", "tls-hostname=localhost", &client];
    let said = refused(&forward(directory.path(), upstream.socket(), &parameters));
    says(&said, &["handshake: TLS: the server", "tls-psk="]);
    assert!(!said.contains("waiting"), "{said}");

    let image = noise_file(directory.path(), "image", 1 << 20, 502);
    let object = format!(
        "tls-creds-psk,id=tls,endpoint=server,dir={},priority=NORMAL:-VERS-TLS1.3:+PSK",
        text(directory.path())
    );
    let tls = ["--object", &object, "--tls-creds=tls"];
    let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &tls);
    let parameters = [&parameters[..], &["export=disk"]].concat();
    let said = refused(&forward(directory.path(), upstream.socket(), &parameters));
    says(&said, &["handshake: TLS: the server", "tls-psk="]);
}

#[test]
fn key_that_the_server_does_not_know() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let theirs = keys(directory.path(), "theirs", &["alice"]);
    let ours = keys(directory.path(), "ours", &["alice", "bob"]);
    let psk = format!("tls-psk={}", text(&ours));
    let upstream = nbdkit_psk(directory.path(), &theirs, &["memory", "1M"]);
    for name in ["alice", "bob"] {
        let user = format!("tls-username={name}");
        let parameters = ["tls=require", &psk, &user];
        let said = refused(&forward(directory.path(), upstream.socket(), &parameters));
        let whose = format!("the key of \"{name}\"");
        says(
            &said,
            &["TLS: the server", &whose, "(tls-psk=, tls-username=)"],
        );
    }
}

#[test]
fn name_that_can_be_none() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = self_signed(directory.path(), "server", LOCALHOST);
    let name = format!("tls-hostname=\u{1b}{}", "x".repeat(300));
    let said = line(directory.path(), &server, &[&name]);
    says(
        &said,
        &[
            "\"\\u{1b}xxx",
            "...\" can be no host name",
            "(tls-hostname=)",
        ],
    );
    assert!(said.len() < 300, "{said}");
}
