// SPDX-License-Identifier: BSD-3-Clause
//! Which names of a certificate count, where OpenSSL would take more of them than GnuTLS.

mod common;

use std::path::Path;

use common::clients::text;
use common::need_all;
use common::pki::Authority;
use common::relay::Relay;
use common::tls::{nbdkit, opens, refused, says};

/// Whether a server is believed whose certificate has the common name "server" and these lines.
/// `refusal` is a part of why not.
fn judge(
    authority: &Authority,
    directory: &Path,
    lines: &[&str],
    host: &str,
    refusal: Option<&str>,
) {
    let work = tempfile::tempdir_in(directory).expect("temporary directory");
    let server = authority.trusting(text(&work.path().join("server")));
    authority.issue(&server, "server", &[&["tls_www_server"], lines].concat());
    let client = authority.trusting(text(&work.path().join("client")));
    let client = format!("tls-certificates={}", text(&client));
    let host = format!("tls-hostname={host}");
    let upstream = nbdkit(work.path(), &server, &["memory", "1M"]);
    let relay = Relay::tcp(upstream.socket());
    let front = relay.forward(work.path(), &["tls=require", &client, &host]);
    match refusal {
        None => drop(opens(&front)),
        Some(why) => says(&refused(&front), &["certificate is not accepted", why]),
    }
}

#[test]
fn an_asterisk_stands_for_a_whole_label() {
    if !need_all(&["nbdkit", "certtool"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let judge = |lines: &[&str], refusal| {
        let host = "disk.storage.example";
        judge(&authority, directory.path(), lines, host, refusal);
    };
    judge(&["dns_name = *.storage.example"], None);
    judge(&["dns_name = d*.storage.example"], Some("hostname"));
    judge(&["dns_name = *k.storage.example"], Some("hostname"));
}

#[test]
fn a_common_name_counts_where_there_are_no_other_names() {
    if !need_all(&["nbdkit", "certtool"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let judge = |lines: &[&str], refusal| {
        judge(&authority, directory.path(), lines, "server", refusal);
    };
    judge(&[], None);
    judge(&["dns_name = other.example"], Some("hostname"));
    judge(&["ip_address = 10.0.0.1"], Some("it is for addresses"));
}

/// OpenSSL does not apply the limits to a common name without a dot.
#[test]
fn an_authority_that_is_limited_to_some_names_signs_no_others() {
    if !need_all(&["nbdkit", "certtool"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let lines = [
        "ca",
        "cert_signing_key",
        "expiration_days = 2",
        "nc_permit_dns = good.example",
    ];
    let limited = Authority::with(directory.path(), "limited", &lines);
    let judge = |lines: &[&str], host, refusal| {
        judge(&limited, directory.path(), lines, host, refusal);
    };
    judge(&["dns_name = a.good.example"], "a.good.example", None);
    judge(&["dns_name = server"], "server", Some("subtree"));
    judge(&[], "server", Some("limited to certain names"));
}
