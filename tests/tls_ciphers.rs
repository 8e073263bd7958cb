// SPDX-License-Identifier: BSD-3-Clause
//! Versions of TLS and ciphers: which are agreed on, and which are refused.

mod common;

use common::clients::text;
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::tls::{nbdkit, opens, qemu, refused, refused_at_start, says};
use common::upstream::{Server, noise_file};
use tempfile::TempDir;

/// A directory with certificates and a server, and a plugin before it.
struct Setting {
    directory: TempDir,
    authority: Authority,
    client: String,
}

impl Setting {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        let client = format!("tls-certificates={}", text(&authority.trusting("client")));
        Self {
            directory,
            authority,
            client,
        }
    }

    /// qemu-nbd, which can be told what to offer.
    fn qemu(&self, priority: &str) -> Server {
        let image = noise_file(self.directory.path(), "image", 1 << 20, 301);
        let server = self.authority.server("server", LOCALHOST);
        let options = format!("verify-peer=no,priority={priority}");
        qemu(self.directory.path(), &server, &options, &image, "raw")
    }

    fn nbdkit(&self) -> Nbdkit {
        let server = self.authority.server("server", LOCALHOST);
        nbdkit(self.directory.path(), &server, &["memory", "1M"])
    }

    fn forward(&self, upstream: &std::path::Path, extra: &[&str]) -> Nbdkit {
        let tls = ["tls=require", "tls-hostname=localhost", &self.client];
        forward(self.directory.path(), upstream, &[&tls, extra].concat())
    }
}

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool", "qemu-nbd"])
}

#[test]
fn tls_1_3_is_preferred() {
    if !ready() {
        return;
    }
    let setting = Setting::new();
    let upstream = setting.nbdkit();
    let front = setting.forward(upstream.socket(), &[]);
    says(&opens(&front), &["TLS: TLSv1.3 with TLS_"]);
}

#[test]
fn tls_1_2_is_good_enough() {
    if !ready() {
        return;
    }
    let setting = Setting::new();
    let upstream = setting.qemu("NORMAL:-VERS-TLS1.3");
    let front = setting.forward(upstream.socket(), &["export=disk"]);
    says(&opens(&front), &["TLS: TLSv1.2 with"]);
}

#[test]
fn tls_1_1_is_not() {
    if !ready() {
        return;
    }
    let setting = Setting::new();
    let upstream = setting.qemu("NORMAL:-VERS-ALL:+VERS-TLS1.1:+VERS-TLS1.0:+SHA1");
    for policy in ["tls=require", "tls=on"] {
        let mut front = setting.forward(upstream.socket(), &["export=disk", policy]);
        says(&refused(&front), &["handshake", "TLS", "protocol"]);
        assert!(front.alive());
    }
}

#[test]
fn user_chooses_a_suite_of_tls_1_3() {
    if !ready() {
        return;
    }
    let setting = Setting::new();
    let upstream = setting.nbdkit();
    for suite in ["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"] {
        let front = setting.forward(upstream.socket(), &[&format!("tls-priority={suite}")]);
        says(&opens(&front), &["TLS: TLSv1.3 with", suite]);
    }
}

#[test]
fn user_chooses_a_cipher_of_tls_1_2() {
    if !ready() {
        return;
    }
    let setting = Setting::new();
    let upstream = setting.qemu("NORMAL:-VERS-TLS1.3");
    let chosen = "tls-priority=TLS_AES_128_GCM_SHA256:ECDHE-RSA-AES128-GCM-SHA256";
    let front = setting.forward(upstream.socket(), &["export=disk", chosen]);
    says(
        &opens(&front),
        &["TLSv1.2 with ECDHE-RSA-AES128-GCM-SHA256"],
    );
}

#[test]
fn no_cipher_in_common() {
    if !ready() {
        return;
    }
    let setting = Setting::new();
    let upstream = setting.qemu("NORMAL:-CHACHA20-POLY1305");
    let chosen = "tls-priority=TLS_CHACHA20_POLY1305_SHA256:ECDHE+CHACHA20";
    let front = setting.forward(upstream.socket(), &["export=disk", chosen]);
    says(&refused(&front), &["handshake", "TLS"]);
}

#[test]
fn ciphers_that_do_not_exist() {
    if !ready() {
        return;
    }
    for priority in ["NONSENSE", "TLS_NONSENSE", ""] {
        let parameter = format!("tls-priority={priority}");
        let line = refused_at_start(&["socket=/nowhere", "tls=require", &parameter]);
        says(&line, &["tls-priority"]);
    }
}
