// SPDX-License-Identifier: BSD-3-Clause
//! Several certificates of a client, of which the server gets one that it understands.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::clients::{program, text};
use common::nbdkit::forward;
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::tls::{opens, qemu, refused, refused_at_start, says};
use common::upstream::noise_file;

/// GnuTLS's names for servers that understand signatures of one kind only.
const ONLY_RSA: &str = "NORMAL:-SIGN-ALL:+SIGN-RSA-PSS-RSAE-SHA256:+SIGN-RSA-SHA256";
const ONLY_EC: &str = "NORMAL:-SIGN-ALL:+SIGN-ECDSA-SECP256R1-SHA256:+SIGN-ECDSA-SHA256";

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool", "openssl"])
}

/// Replaces a certificate and its key by ones on an elliptic curve, from the same authority.
fn make_elliptic(authority: &Authority, into: &Path, who: &str, usage: &str) {
    let key = into.join(format!("{who}-key.pem"));
    let curve = "ec_paramgen_curve:P-256";
    let args = ["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out"];
    program("openssl", &[&args[..], &[text(&key)]].concat());
    authority.issue_for(into, who, &[&[usage], LOCALHOST].concat());
}

/// Gives a pair of files a number.
fn number(directory: &Path, number: usize) {
    for what in ["cert", "key"] {
        let to = directory.join(format!("client-{what}-{number}.pem"));
        fs::rename(directory.join(format!("client-{what}.pem")), to).expect("rename a file");
    }
}

#[test]
fn server_gets_the_certificate_that_it_understands() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = Authority::new(directory.path(), "root");
    // The elliptic one comes with a chain of its own, which the other must not disturb.
    let issuing = root.subordinate("issuing");
    let both = root.client("both", &[]);
    make_elliptic(&issuing, &both, "client", "tls_www_client");
    let own = fs::read(both.join("client-cert.pem")).expect("read a certificate");
    let between = fs::read(issuing.certificate()).expect("read a certificate");
    fs::write(both.join("client-cert.pem"), [own, between].concat()).expect("write certificates");
    number(&both, 0);
    let plain = root.client("plain", &[]);
    for file in ["client-cert.pem", "client-key.pem"] {
        fs::copy(plain.join(file), both.join(file)).expect("copy a file");
    }
    let image = noise_file(directory.path(), "image", 1 << 20, 203);
    let parameters = |client: &PathBuf| format!("tls-certificates={}", text(client));
    for (priority, kind) in [(ONLY_RSA, "RSA"), (ONLY_EC, "EC")] {
        let server = root.server(kind, LOCALHOST);
        if kind == "EC" {
            make_elliptic(&root, &server, "server", "tls_www_server");
        }
        for version in ["", ":-VERS-TLS1.3"] {
            let options = format!("verify-peer=yes,sanity-check=no,priority={priority}{version}");
            let upstream = qemu(directory.path(), &server, &options, &image, "raw");
            let open = |client: &PathBuf| {
                let certificates = parameters(client);
                let tls = [
                    "tls=require",
                    "tls-hostname=localhost",
                    &certificates,
                    "export=disk",
                ];
                forward(directory.path(), upstream.socket(), &tls)
            };
            // With TLS 1.2 there is no choice: OpenSSL shows the first one or none.
            if kind == "RSA" || version.is_empty() {
                opens(&open(&both));
            }
            if kind == "EC" {
                refused(&open(&plain));
            }
        }
    }
}

#[test]
fn numbers_alone_will_do_and_end_at_the_first_gap() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = authority.client("client", &[]);
    number(&client, 0);
    let server = authority.server("server", LOCALHOST);
    let args = ["--tls-verify-peer", "memory", "1M"];
    let upstream = common::tls::nbdkit(directory.path(), &server, &args);
    let certificates = format!("tls-certificates={}", text(&client));
    let parameters = ["tls=require", "tls-hostname=localhost", &certificates];
    // What is behind a gap is not looked at.
    fs::write(client.join("client-cert-2.pem"), "nothing of the kind").expect("write a file");
    opens(&forward(directory.path(), upstream.socket(), &parameters));
}

#[test]
fn half_a_pair_is_an_error() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    for missing in ["cert", "key"] {
        let client = authority.client(missing, &[]);
        number(&client, 0);
        fs::remove_file(client.join(format!("client-{missing}-0.pem"))).expect("remove a file");
        let certificates = format!("tls-certificates={}", text(&client));
        let line = refused_at_start(&["socket=/nowhere", "tls=require", &certificates]);
        says(
            &line,
            &["client-cert-0.pem", "client-key-0.pem", "tls-certificates"],
        );
    }
}

#[test]
fn second_key_of_a_kind_is_told_to_be_of_no_use() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let other = Authority::new(directory.path(), "other");
    let client = other.client("client", &[]);
    number(&client, 0);
    authority.issue(&client, "client", &["tls_www_client"]);
    authority.trust(&client);
    let server = authority.server("server", LOCALHOST);
    let args = ["--tls-verify-peer", "memory", "1M"];
    let upstream = common::tls::nbdkit(directory.path(), &server, &args);
    let certificates = format!("tls-certificates={}", text(&client));
    let parameters = ["tls=require", "tls-hostname=localhost", &certificates];
    let front = forward(directory.path(), upstream.socket(), &parameters);
    opens(&front);
    says(
        &front.stderr(),
        &["client-cert-0.pem is not used", "client-cert.pem"],
    );
}
