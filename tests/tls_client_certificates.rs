// SPDX-License-Identifier: BSD-3-Clause
//! Servers that want to see the client's certificate: nbdkit and qemu-nbd if told to, nbd-server always.
//!
//! With TLS 1.3 the server looks at it when the handshake is over for the client, so a refusal arrives late.

mod common;

use std::path::{Path, PathBuf};

use common::clients::{assert_same_bytes, nbdcopy, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, EXPIRED, LOCALHOST};
use common::tls::{nbdkit, opens, qemu, refused, says};
use common::upstream::{Server, nbd_server, noise_file};
use tempfile::TempDir;

/// GnuTLS's name for what a server offers that has only the older of the two versions.
const ONLY_1_2: &str = "NORMAL:-VERS-TLS1.3";

/// An authority, a server's certificate, and a client for each way to be right or wrong.
struct Parties {
    directory: TempDir,
    server: PathBuf,
    good: PathBuf,
    without: PathBuf,
    strange: PathBuf,
    expired: PathBuf,
}

impl Parties {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        let stranger = Authority::new(directory.path(), "stranger");
        // It trusts the right authority and shows a certificate from the wrong one.
        let strange = stranger.client("strange", &[]);
        authority.trust(&strange);
        Self {
            server: authority.server("server", LOCALHOST),
            good: authority.client("good", &[]),
            without: authority.trusting("without"),
            strange,
            expired: authority.client("expired", EXPIRED),
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn qemu(&self, priority: &str) -> Server {
        let image = noise_file(self.path(), "image", 1 << 20, 201);
        let options = format!("verify-peer=yes,priority={priority}");
        qemu(self.path(), &self.server, &options, &image, "raw")
    }

    /// nbdkit with the plugin, with the certificates of `client`.
    fn forward(&self, upstream: &Path, client: &Path, extra: &[&str]) -> Nbdkit {
        let certificates = format!("tls-certificates={}", text(client));
        let tls = ["tls=require", "tls-hostname=localhost", &certificates];
        forward(self.path(), upstream, &[&tls, extra].concat())
    }

    /// The good client is served; the others are not, and are told that it is about their certificate.
    fn check(&self, upstream: &Path, extra: &[&str]) {
        opens(&self.forward(upstream, &self.good, extra));
        for client in [&self.without, &self.strange, &self.expired] {
            let mut front = self.forward(upstream, client, extra);
            let line = refused(&front);
            says(&line, &["handshake", "our certificate"]);
            assert!(front.alive());
        }
        // Nobody's refusal disturbs the others.
        opens(&self.forward(upstream, &self.good, extra));
    }
}

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool"])
}

#[test]
fn nbdkit_wants_a_certificate() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    let args = ["--tls-verify-peer", "memory", "1M"];
    let upstream = nbdkit(parties.path(), &parties.server, &args);
    parties.check(upstream.socket(), &[]);
}

#[test]
fn qemu_nbd_wants_a_certificate() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let parties = Parties::new();
    let upstream = parties.qemu("NORMAL");
    parties.check(upstream.socket(), &["export=disk"]);
}

#[test]
fn qemu_nbd_with_tls_1_2_wants_a_certificate() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let parties = Parties::new();
    let upstream = parties.qemu(ONLY_1_2);
    let front = parties.forward(upstream.socket(), &parties.good, &["export=disk"]);
    says(&opens(&front), &["TLS: TLSv1.2 with"]);
    parties.check(upstream.socket(), &["export=disk"]);
}

#[test]
fn nbd_server_wants_a_certificate() {
    if !ready() || !need_all(&["nbd-server", "socat", "nbdcopy"]) {
        return;
    }
    let parties = Parties::new();
    let image = noise_file(parties.path(), "image", 1 << 20, 202);
    let tls = nbd_server_tls(&parties.server, "NORMAL");
    let upstream = nbd_server(parties.path(), &image, "disk", &[&tls]);
    parties.check(upstream.socket(), &["export=disk"]);
    let front = parties.forward(upstream.socket(), &parties.good, &["export=disk"]);
    let copy = parties.path().join("copy");
    nbdcopy(&[&front.uri(), text(&copy)]);
    assert_same_bytes(&copy, &image);
}

/// Lines of nbd-server's configuration, to go behind those of an export: the section that they reopen holds
/// what is not a matter of one export.
fn nbd_server_tls(certificates: &Path, priority: &str) -> String {
    format!(
        "[generic]\nforce_tls = true\ntlsprio = {priority}\ncertfile = {0}/server-cert.pem\n\
         keyfile = {0}/server-key.pem\ncacertfile = {0}/ca-cert.pem",
        text(certificates)
    )
}

#[test]
fn missing_certificate_is_not_blamed_on_the_servers() {
    if !ready() || !need_all(&["nbd-server", "socat"]) {
        return;
    }
    // Two things are wrong here. Our own check is switched off, so the reason is the other one.
    let parties = Parties::new();
    let other = Authority::new(parties.path(), "other");
    let client = format!("tls-certificates={}", text(&other.trusting("client")));
    let image = noise_file(parties.path(), "image", 1 << 20, 203);
    for priority in ["NORMAL", ONLY_1_2] {
        let tls = nbd_server_tls(&parties.server, priority);
        let directory = tempfile::tempdir().expect("temporary directory");
        let upstream = nbd_server(directory.path(), &image, "disk", &[&tls]);
        let args = ["tls=require", "tls-verify=false", &client, "export=disk"];
        let line = refused(&forward(parties.path(), upstream.socket(), &args));
        assert!(!line.contains("is not accepted"), "{priority}: {line}");
    }
}

#[test]
fn nobody_asks_for_our_certificate() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    let upstream = nbdkit(parties.path(), &parties.server, &["memory", "1M"]);
    for client in [&parties.good, &parties.without, &parties.strange] {
        opens(&parties.forward(upstream.socket(), client, &[]));
    }
}
