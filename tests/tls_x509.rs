// SPDX-License-Identifier: BSD-3-Clause
//! Certificates: whom the plugin believes, and whom it does not; and what it says of that.

mod common;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use common::clients::text;
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, EXPIRED, LOCALHOST, NOT_YET, pin, self_signed};
use common::relay::Relay;
use common::tls::{nbdkit, opens, refused, says};

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool"])
}

/// The parameter that names a directory of certificates.
fn certificates(directory: &Path) -> String {
    format!("tls-certificates={}", text(directory))
}

/// A server on TCP whom some believe, and one of its authority's friends.
struct Doubt {
    relay: Relay,
    friend: String,
    _upstream: Nbdkit,
    directory: TempDir,
}

impl Doubt {
    /// Of a server with this certificate.
    fn about(lines: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        let server = authority.server("server", lines);
        let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
        Self {
            relay: Relay::tcp(upstream.socket()),
            friend: certificates(&authority.trusting("client")),
            directory,
            _upstream: upstream,
        }
    }

    /// The plugin before it.
    fn before(&self, policy: &str, extra: &[&str]) -> Nbdkit {
        let args = [&[policy, &self.friend], extra].concat();
        self.relay.forward(self.directory.path(), &args)
    }
}

/// A server with this certificate is believed.
fn is_believed(lines: &[&str], extra: &[&str]) {
    opens(&Doubt::about(lines).before("tls=require", extra));
}

/// A server with this certificate is not believed; `reason` is a part of why.
fn is_not_believed(lines: &[&str], extra: &[&str], reason: &str) {
    let doubt = Doubt::about(lines);
    // To fall back to no TLS when TLS has failed would be the attacker's wish.
    for policy in ["tls=require", "tls=on"] {
        let mut front = doubt.before(policy, extra);
        let line = refused(&front);
        says(&line, &["TLS", "certificate is not accepted", reason]);
        assert!(front.alive());
    }
}

#[test]
fn good_certificate() {
    if !ready() {
        return;
    }
    is_believed(LOCALHOST, &[]);
}

#[test]
fn certificate_of_another_host() {
    if !ready() {
        return;
    }
    is_not_believed(&["dns_name = other.example"], &[], "hostname mismatch");
}

#[test]
fn name_to_expect_instead_of_the_address() {
    if !ready() {
        return;
    }
    let name = "tls-hostname=storage.example";
    is_believed(&["dns_name = storage.example"], &[name]);
    is_not_believed(LOCALHOST, &[name], "hostname mismatch");
}

#[test]
fn certificate_for_all_hosts_of_a_domain() {
    if !ready() {
        return;
    }
    let domain = ["dns_name = *.storage.example"];
    is_believed(&domain, &["tls-hostname=a.storage.example"]);
    is_not_believed(&domain, &["tls-hostname=storage.example"], "hostname");
    is_not_believed(&domain, &["tls-hostname=a.b.storage.example"], "hostname");
}

#[test]
fn address_in_the_certificate() {
    if !ready() {
        return;
    }
    is_believed(&["ip_address = 127.0.0.1"], &["hostname=127.0.0.1"]);
    is_not_believed(
        &["ip_address = 127.0.0.2"],
        &["hostname=127.0.0.1"],
        "IP address mismatch",
    );
}

#[test]
fn address_is_not_a_name() {
    if !ready() {
        return;
    }
    is_not_believed(
        &["dns_name = 127.0.0.1", "dns_name = localhost"],
        &["hostname=127.0.0.1"],
        "IP address mismatch",
    );
}

#[test]
fn expired_certificate() {
    if !ready() {
        return;
    }
    is_not_believed(&[LOCALHOST, EXPIRED].concat(), &[], "expired");
}

#[test]
fn certificate_from_the_future() {
    if !ready() {
        return;
    }
    is_not_believed(&[LOCALHOST, NOT_YET].concat(), &[], "not yet valid");
}

#[test]
fn certificate_that_is_for_clients_only() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let server = authority.trusting("server");
    let lines = [&["tls_www_client"], LOCALHOST].concat();
    authority.issue(&server, "server", &lines);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let client = certificates(&authority.trusting("client"));
    let relay = Relay::tcp(upstream.socket());
    let front = relay.forward(directory.path(), &["tls=require", &client]);
    says(&refused(&front), &["certificate is not accepted"]);
}

#[test]
fn certificate_of_an_unknown_authority() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let stranger = Authority::new(directory.path(), "stranger");
    let server = stranger.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let authority = Authority::new(directory.path(), "authority");
    let client = certificates(&authority.trusting("client"));
    let relay = Relay::tcp(upstream.socket());
    let front = relay.forward(directory.path(), &["tls=require", &client]);
    says(&refused(&front), &["certificate is not accepted", "issuer"]);
    // And the chain is checked also where there is no name to check.
    let front = forward(
        directory.path(),
        upstream.socket(),
        &["tls=require", &client],
    );
    says(&refused(&front), &["certificate is not accepted", "issuer"]);
}

#[test]
fn certificate_by_way_of_an_intermediate_authority() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = Authority::new(directory.path(), "root");
    let intermediate = root.subordinate("intermediate");
    let server = intermediate.server("server", LOCALHOST);
    let client = certificates(&root.trusting("client"));
    let args = ["tls=require", client.as_str()];
    // Only the server knows how its certificate comes from the root.
    {
        let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
        let relay = Relay::tcp(upstream.socket());
        let front = relay.forward(directory.path(), &args);
        says(&refused(&front), &["certificate is not accepted", "issuer"]);
    }
    let certificate = server.join("server-cert.pem");
    let chain = [&certificate, &intermediate.certificate()]
        .map(|file| fs::read_to_string(file).expect("read a certificate"));
    fs::write(&certificate, chain.concat()).expect("write a chain");
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let relay = Relay::tcp(upstream.socket());
    opens(&relay.forward(directory.path(), &args));
}

#[test]
fn revoked_certificate() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let bad = authority.server("bad", LOCALHOST);
    let good = authority.server("good", LOCALHOST);
    let client = authority.trusting("client");
    authority.revoke(&bad.join("server-cert.pem"), &client);
    let args = ["tls=require", &certificates(&client)];

    let upstream = nbdkit(directory.path(), &bad, &["memory", "1M"]);
    let relay = Relay::tcp(upstream.socket());
    let front = relay.forward(directory.path(), &args);
    says(
        &refused(&front),
        &["certificate is not accepted", "revoked"],
    );

    let upstream = nbdkit(directory.path(), &good, &["memory", "1M"]);
    let relay = Relay::tcp(upstream.socket());
    opens(&relay.forward(directory.path(), &args));
}

#[test]
fn pinned_key_needs_no_authority() {
    if !ready() || !need_all(&["openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = self_signed(directory.path(), "server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let pin = format!("tls-pin={}", pin(&server));
    // Over TCP and, where there is no name, over a Unix socket.
    let relay = Relay::tcp(upstream.socket());
    opens(&relay.forward(directory.path(), &["tls=require", &pin]));
    let args = ["tls=require", &pin];
    opens(&forward(directory.path(), upstream.socket(), &args));
}

#[test]
fn another_key_than_the_pinned_one() {
    if !ready() || !need_all(&["openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = self_signed(directory.path(), "server", LOCALHOST);
    let other = self_signed(directory.path(), "other", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let pin = format!("tls-pin={}", pin(&other));
    // Whoever switches off the rest of the checks still wants this one.
    for more in [&[][..], &["tls-verify=false"]] {
        let args = [&["tls=require", pin.as_str()], more].concat();
        let front = forward(directory.path(), upstream.socket(), &args);
        says(&refused(&front), &["public key is not the pinned one"]);
    }
}

#[test]
fn pin_does_not_replace_an_authority_that_was_named() {
    if !ready() || !need_all(&["openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let server = self_signed(directory.path(), "server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let client = certificates(&authority.trusting("client"));
    let pin = format!("tls-pin={}", pin(&server));
    let args = ["tls=require", &pin, &client];
    let front = forward(directory.path(), upstream.socket(), &args);
    says(&refused(&front), &["certificate is not accepted"]);
}

#[test]
fn self_signed_certificate_without_a_pin() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = self_signed(directory.path(), "server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    // Without a directory the system's own authorities are asked, who know nothing of this server.
    let relay = Relay::tcp(upstream.socket());
    let front = relay.forward(directory.path(), &["tls=require"]);
    says(&refused(&front), &["certificate is not accepted", "self"]);
}

#[test]
fn no_name_to_check_on_a_unix_socket() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let server = authority.server("server", &["dns_name = whoever.example"]);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let client = certificates(&authority.trusting("client"));
    let socket = upstream.socket();
    let front = forward(directory.path(), socket, &["tls=require", &client]);
    says(&opens(&front), &["certificate's name was not checked"]);
    // With a name there is nothing to warn of, or a refusal.
    let named = "tls-hostname=whoever.example";
    let front = forward(directory.path(), socket, &["tls=require", &client, named]);
    assert!(!opens(&front).contains("not checked"));
    let named = "tls-hostname=somebody.example";
    let front = forward(directory.path(), socket, &["tls=require", &client, named]);
    says(&refused(&front), &["hostname mismatch"]);
}

#[test]
fn verification_switched_off_is_said_aloud() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let lines = [&["dns_name = other.example"], EXPIRED].concat();
    let server = self_signed(directory.path(), "server", &lines);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let relay = Relay::tcp(upstream.socket());
    let front = relay.forward(directory.path(), &["tls=require", "tls-verify=false"]);
    says(&opens(&front), &["certificate was NOT checked"]);
}

#[test]
fn certificates_know_no_zone_and_no_last_dot() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let client = certificates(&authority.trusting("client"));
    let names = [&["ip_address = fe80::1"], LOCALHOST].concat();
    let server = authority.server("server", &names);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    for (name, good) in [
        ("fe80::1%eth0", true),
        ("fe80::1%1", true),
        ("localhost.", true),
        ("fe80::2%eth0", false),
        ("example.com.", false),
    ] {
        let name = format!("tls-hostname={name}");
        let parameters = ["tls=require", &client, &name];
        let front = forward(directory.path(), upstream.socket(), &parameters);
        match good {
            true => drop(opens(&front)),
            false => says(&refused(&front), &["mismatch"]),
        }
    }
}
