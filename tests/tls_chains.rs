// SPDX-License-Identifier: BSD-3-Clause
//! Anchors, chains and lists of revoked certificates: what GnuTLS takes is taken, but nothing that is
//! revoked, expired or forged.
//!
//! With `NBDKIT_NBD_PLUGIN` naming the C plugin the same table shows where that one differs.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::clients::{program, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, through};
use common::need_all;
use common::pki::{Authority, EXPIRED, LOCALHOST, joined};
use common::relay::Relay;
use common::tls::{nbdkit, opens, refused, says};

/// Template lines of lists that are good now, and that are not any more.
const CURRENT: &[&str] = &["crl_next_update = 2"];
const OLD: &[&str] = &[
    "crl_this_update_date = \"2020-01-01 00:00:00\"",
    "crl_next_update_date = \"2020-01-02 00:00:00\"",
];
/// An authority by the recipe of nbdkit-tls(1), whose certificate does not speak of lists.
const RECIPE: &[&str] = &["ca", "cert_signing_key"];
const LIFETIME: &[&str] = &["expiration_days = 2"];

/// What becomes of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Accepted,
    /// And the message says this.
    Refused(&'static str),
}
use Fate::{Accepted, Refused};

/// Anchors in ca-cert.pem, what the server shows, lists in ca-crl.pem, and what is right.
type Row = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
    Fate,
);

const REVOKED: Fate = Refused("has been revoked");
const UNKNOWN: Fate = Refused("unable to get");
const TOO_OLD: Fate = Refused("expired");

const TABLE: &[Row] = &[
    // Anchors. Each certificate in ca-cert.pem is one.
    (&["root"], &["direct"], &[], Accepted),
    (&["root"], &["server", "issuing"], &[], Accepted),
    (&["root"], &["server", "issuing", "root"], &[], Accepted),
    (&["root"], &["server"], &[], UNKNOWN),
    (&["issuing"], &["server"], &[], Accepted),
    (&["issuing"], &["server", "issuing"], &[], Accepted),
    (&["issuing"], &["server", "issuing", "root"], &[], Accepted),
    (&["issuing"], &["direct"], &[], UNKNOWN),
    (&["issuing", "root"], &["server"], &[], Accepted),
    (&["root", "issuing"], &["server", "issuing"], &[], Accepted),
    (&["other", "issuing"], &["server"], &[], Accepted),
    (&["direct"], &["direct"], &[], Accepted),
    (&["other"], &["direct"], &[], UNKNOWN),
    (
        &["other"],
        &["server", "issuing", "root"],
        &[],
        Refused("certificate"),
    ),
    // An authority of the same name, with another key.
    (&["forged"], &["direct"], &[], Refused("certificate")),
    (&["root"], &["forged-server"], &[], Refused("certificate")),
    (&["forged", "root"], &["direct"], &[], Accepted),
    // A server that signs another server's certificate.
    (
        &["root"],
        &["by-direct", "direct"],
        &[],
        Refused("certificate"),
    ),
    (
        &["direct"],
        &["by-direct", "direct"],
        &[],
        Refused("certificate"),
    ),
    // A client that has a server's name.
    (&["root"], &["visitor"], &[], Refused("certificate purpose")),
    // Time.
    (&["root"], &["expired"], &[], TOO_OLD),
    (&["expired"], &["expired"], &[], TOO_OLD),
    (&["root"], &["stale-server", "stale"], &[], TOO_OLD),
    (&["stale"], &["stale-server", "stale"], &[], TOO_OLD),
    (&["old"], &["old-server"], &[], TOO_OLD),
    // An authority that was renewed, and whose old certificate is still there.
    (
        &["issuing-before", "root"],
        &["server", "issuing"],
        &[],
        Accepted,
    ),
    (&["issuing-before", "issuing"], &["server"], &[], Accepted),
    (&["issuing-before"], &["server", "issuing"], &[], TOO_OLD),
    (
        &["issuing-before", "other"],
        &["server", "issuing"],
        &[],
        UNKNOWN,
    ),
    (&["root"], &["server", "issuing-before"], &[], TOO_OLD),
    // Lists that say nothing against anybody here.
    (&["root"], &["direct"], &["root-none"], Accepted),
    (&["root"], &["server", "issuing"], &["root-none"], Accepted),
    (
        &["root"],
        &["server", "issuing"],
        &["issuing-none"],
        Accepted,
    ),
    (
        &["root"],
        &["server", "issuing"],
        &["root-none", "issuing-none"],
        Accepted,
    ),
    (&["issuing"], &["server"], &["root-none"], Accepted),
    (&["issuing"], &["server"], &["issuing-none"], Accepted),
    (
        &["issuing", "root"],
        &["server"],
        &["root-none", "issuing-none"],
        Accepted,
    ),
    (&["root"], &["direct"], &["root-issuing"], Accepted),
    (&["recipe"], &["recipe-server"], &["recipe-none"], Accepted),
    // Lists of another authority.
    (&["root"], &["direct"], &["other-own"], Accepted),
    (&["root", "other"], &["direct"], &["other-own"], Accepted),
    (&["root"], &["server", "issuing"], &["other-own"], Accepted),
    (&["issuing"], &["server"], &["other-own"], Accepted),
    (
        &["root"],
        &["server", "issuing"],
        &["other-own", "root-none"],
        Accepted,
    ),
    // The server's certificate is revoked.
    (&["root"], &["direct"], &["root-direct"], REVOKED),
    (
        &["root"],
        &["direct"],
        &["other-own", "root-direct"],
        REVOKED,
    ),
    (
        &["root"],
        &["direct"],
        &["root-none", "root-direct"],
        REVOKED,
    ),
    (&["direct"], &["direct"], &["root-direct"], REVOKED),
    (
        &["root"],
        &["server", "issuing"],
        &["issuing-server"],
        REVOKED,
    ),
    (&["issuing"], &["server"], &["issuing-server"], REVOKED),
    (
        &["issuing", "root"],
        &["server"],
        &["root-none", "issuing-server"],
        REVOKED,
    ),
    (&["recipe"], &["recipe-server"], &["recipe-list"], REVOKED),
    // The authority's certificate is revoked, wherever it stands.
    (
        &["root"],
        &["server", "issuing"],
        &["root-issuing"],
        REVOKED,
    ),
    (
        &["root"],
        &["server", "issuing"],
        &["root-issuing", "issuing-none"],
        REVOKED,
    ),
    (
        &["root"],
        &["server", "issuing"],
        &["issuing-none", "root-issuing"],
        REVOKED,
    ),
    (
        &["root", "issuing"],
        &["server"],
        &["root-issuing"],
        REVOKED,
    ),
    (&["issuing"], &["server"], &["root-issuing"], REVOKED),
    (
        &["issuing"],
        &["server", "issuing", "root"],
        &["root-issuing"],
        REVOKED,
    ),
    // Over the anchor, where the server shows it.
    (
        &["branch"],
        &["branch-server", "branch", "issuing"],
        &["root-issuing"],
        REVOKED,
    ),
    (
        &["branch", "root"],
        &["branch-server", "branch", "issuing"],
        &["root-issuing"],
        REVOKED,
    ),
    (
        &["branch"],
        &["branch-server", "branch", "issuing"],
        &["root-none"],
        Accepted,
    ),
    // One that has nothing to do with the rest.
    (
        &["root"],
        &["direct", "issuing"],
        &["root-issuing"],
        Accepted,
    ),
    // Lists whose time is over: what they say still counts.
    (&["root"], &["direct"], &["root-none-old"], Accepted),
    (&["root"], &["direct"], &["root-direct-old"], REVOKED),
    (
        &["root"],
        &["server", "issuing"],
        &["root-none-old", "issuing-none"],
        Accepted,
    ),
    // Lists that somebody else has written in an authority's name.
    (
        &["root"],
        &["direct"],
        &["forged-none"],
        Refused("is not signed by that authority"),
    ),
    (
        &["root"],
        &["server", "issuing"],
        &["forged-none"],
        Refused("is not signed"),
    ),
    (
        &["root"],
        &["direct"],
        &["forged-none", "root-direct"],
        REVOKED,
    ),
    (
        &["root"],
        &["direct"],
        &["root-direct", "forged-none"],
        REVOKED,
    ),
    // The authority has a new key, and lists of both.
    (
        &["root"],
        &["direct"],
        &["forged-none", "root-none"],
        Accepted,
    ),
    (&["root", "forged"], &["direct"], &["forged-none"], Accepted),
];

/// Certificates, keys and lists, by the names in the table.
struct Parties {
    directory: PathBuf,
    files: HashMap<&'static str, PathBuf>,
}

impl Parties {
    fn new(directory: &Path) -> Self {
        let elsewhere = directory.join("elsewhere");
        fs::create_dir(&elsewhere).expect("a new directory");
        let root = Authority::new(directory, "root");
        let forged = Authority::new(&elsewhere, "root");
        let other = Authority::new(directory, "other");
        let recipe = Authority::with(directory, "recipe", &[RECIPE, LIFETIME].concat());
        let old = Authority::with(directory, "old", &[RECIPE, EXPIRED].concat());
        let issuing = root.subordinate_with("issuing", &[RECIPE, LIFETIME].concat());
        let branch = issuing.subordinate_with("branch", &[RECIPE, LIFETIME].concat());
        let stale = root.subordinate_with("stale", &[RECIPE, EXPIRED].concat());
        let mut parties = Self {
            directory: directory.to_owned(),
            files: HashMap::new(),
        };
        for (name, authority) in [
            ("root", &root),
            ("forged", &forged),
            ("other", &other),
            ("recipe", &recipe),
            ("old", &old),
            ("issuing", &issuing),
            ("stale", &stale),
            ("branch", &branch),
        ] {
            parties.files.insert(name, authority.certificate());
        }
        let before = directory.join("issuing-before.pem");
        root.vouch(&issuing, &before, &[RECIPE, EXPIRED].concat());
        parties.files.insert("issuing-before", before);
        parties.server("direct", &root, &[]);
        parties.server("server", &issuing, &[]);
        parties.server("branch-server", &branch, &[]);
        parties.server("forged-server", &forged, &[]);
        parties.server("other-server", &other, &[]);
        parties.server("recipe-server", &recipe, &[]);
        parties.server("expired", &root, EXPIRED);
        parties.server("stale-server", &stale, &[]);
        parties.server("old-server", &old, &[]);
        parties.holder("visitor", &root, &["tls_www_client"]);
        let direct = Authority::by(&directory.join("direct"), "server");
        parties.server("by-direct", &direct, &[]);
        parties.list("root-none", &root, &[], CURRENT);
        parties.list("root-none-old", &root, &[], OLD);
        parties.list("root-direct", &root, &["direct"], CURRENT);
        parties.list("root-direct-old", &root, &["direct"], OLD);
        parties.list("root-issuing", &root, &["issuing"], CURRENT);
        parties.list("issuing-none", &issuing, &[], CURRENT);
        parties.list("issuing-server", &issuing, &["server"], CURRENT);
        parties.list("other-own", &other, &["other-server"], CURRENT);
        parties.list("recipe-none", &recipe, &[], CURRENT);
        parties.list("recipe-list", &recipe, &["recipe-server"], CURRENT);
        parties.list("forged-none", &forged, &[], CURRENT);
        parties
    }

    fn server(&mut self, name: &'static str, authority: &Authority, lines: &[&str]) {
        self.holder(name, authority, &[&["tls_www_server"], lines].concat());
    }

    fn holder(&mut self, name: &'static str, authority: &Authority, lines: &[&str]) {
        let into = self.directory.join(name);
        fs::create_dir(&into).expect("a new directory");
        let lines = [LOCALHOST, lines].concat();
        authority.issue(&into, "server", &lines);
        self.files.insert(name, into.join("server-cert.pem"));
    }

    fn list(
        &mut self,
        name: &'static str,
        authority: &Authority,
        revoked: &[&str],
        lines: &[&str],
    ) {
        let revoked: Vec<&Path> = revoked.iter().map(|name| self.file(name)).collect();
        let into = self.directory.join(format!("{name}.crl"));
        authority.list(&into, &revoked, lines);
        self.files.insert(name, into);
    }

    fn file(&self, name: &str) -> &Path {
        &self.files[name]
    }

    fn join(&self, names: &[&str]) -> Vec<u8> {
        let files: Vec<&Path> = names.iter().map(|name| self.file(name)).collect();
        joined(&files)
    }

    /// A server that shows these certificates; the key is that of the first.
    fn start(&self, chain: &[&str]) -> Nbdkit {
        let into = self.directory.join(format!("shows-{}", chain.join("-")));
        fs::create_dir(&into).expect("a new directory");
        fs::write(into.join("server-cert.pem"), self.join(chain)).expect("write certificates");
        fs::write(into.join("ca-cert.pem"), self.join(&["root"])).expect("write a certificate");
        let key = self.file(chain[0]).with_file_name("server-key.pem");
        fs::copy(key, into.join("server-key.pem")).expect("copy a key");
        nbdkit(&self.directory, &into, &["memory", "1M"])
    }

    /// A directory for the plugin.
    fn client(&self, number: usize, anchors: &[&str], lists: &[&str]) -> PathBuf {
        let into = self.directory.join(format!("client-{number}"));
        fs::create_dir(&into).expect("a new directory");
        fs::write(into.join("ca-cert.pem"), self.join(anchors)).expect("write certificates");
        if !lists.is_empty() {
            fs::write(into.join("ca-crl.pem"), self.join(lists)).expect("write lists");
        }
        into
    }
}

#[test]
fn anchors_chains_lists_and_time() {
    if !need_all(&["nbdkit", "certtool"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let parties = Parties::new(directory.path());
    let mut servers: HashMap<&[&str], Relay> = HashMap::new();
    let mut running = Vec::new();
    let mut wrong = Vec::new();
    for (number, (anchors, chain, lists, fate)) in TABLE.iter().enumerate() {
        let relay = servers.entry(chain).or_insert_with(|| {
            let server = parties.start(chain);
            let relay = Relay::tcp(server.socket());
            running.push(server);
            relay
        });
        let client = parties.client(number, anchors, lists);
        let mut args = vec!["tls=require".to_owned()];
        args.push(format!("tls-certificates={}", text(&client)));
        args.extend(relay.parameters());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let front = through(directory.path(), &args);
        let opened = Front::open(front.socket()).is_ok();
        let log = front.stderr();
        let right = match fate {
            Accepted => opened,
            Refused(why) => {
                !opened && log.contains("certificate is not accepted") && log.contains(why)
            }
        };
        if !right {
            let said = log.lines().find(|line| line.contains("error: "));
            wrong.push(format!(
                "{anchors:?} {chain:?} {lists:?}: {fate:?}, but it was {}",
                if opened {
                    "accepted"
                } else {
                    said.unwrap_or("refused")
                }
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn short_key_needs_a_lower_level_of_security() {
    if !need_all(&["nbdkit", "certtool", "openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let server = authority.server("server", LOCALHOST);
    let key = server.join("server-key.pem");
    let bits = "rsa_keygen_bits:1024";
    let args = ["genpkey", "-algorithm", "RSA", "-pkeyopt", bits, "-out"];
    program("openssl", &[&args[..], &[text(&key)]].concat());
    let lines = [&["tls_www_server"], LOCALHOST].concat();
    authority.issue_for(&server, "server", &lines);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let client = format!("tls-certificates={}", text(&authority.trusting("client")));
    let open = |priority: &[&str]| {
        let tls = ["tls=require", "tls-hostname=localhost", &client];
        forward(
            directory.path(),
            upstream.socket(),
            &[&tls, priority].concat(),
        )
    };
    opens(&open(&["tls-priority=DEFAULT@SECLEVEL=1"]));
    // What is refused without is the system's affair; Debian's is level 2.
    let line = refused(&open(&["tls-priority=DEFAULT@SECLEVEL=2"]));
    says(&line, &["certificate is not accepted", "key too weak"]);
}
