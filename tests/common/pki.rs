// SPDX-License-Identifier: BSD-3-Clause
//! Certificates and keys for the tests of TLS, made on the spot by certtool and psktool.
//!
//! That takes a fraction of a second, so every test can have its own, in its own directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::clients::{LIMIT, program, text};
use super::process::{run, run_ok};

/// What the certificate of a server on this machine says of it.
pub const LOCALHOST: &[&str] = &["dns_name = localhost", "ip_address = 127.0.0.1"];

/// How long a certificate is good. Lines of the test may say something else.
const LIFETIME: &str = "expiration_days = 2";

/// Template lines of a certificate that is not good any more.
pub const EXPIRED: &[&str] = &[
    "activation_date = \"2020-01-01 00:00:00\"",
    "expiration_date = \"2020-01-02 00:00:00\"",
];

/// Template lines of a certificate that is not good yet.
pub const NOT_YET: &[&str] = &[
    "activation_date = \"2090-01-01 00:00:00\"",
    "expiration_date = \"2091-01-01 00:00:00\"",
];

/// The programs that this module runs.
pub const TOOLS: &[&str] = &["certtool", "psktool", "openssl"];

/// An authority that signs certificates, and puts them where servers and clients look for them: each
/// directory that it makes has the files that `tls-certificates=` and its kin expect.
pub struct Authority {
    directory: PathBuf,
    name: String,
    /// What the names of its files begin with.
    who: String,
}

impl Authority {
    /// A new authority, whose files go below `directory`.
    pub fn new(directory: &Path, name: &str) -> Self {
        Self::with(
            directory,
            name,
            &["ca", "cert_signing_key", "crl_signing_key", LIFETIME],
        )
    }

    /// A new authority about whose certificate `lines` say everything.
    pub fn with(directory: &Path, name: &str, lines: &[&str]) -> Self {
        let own = directory.join(name);
        fs::create_dir(&own).expect("a new directory for the authority");
        let authority = Self {
            directory: directory.to_owned(),
            name: name.to_owned(),
            who: "ca".to_owned(),
        };
        new_key(&authority.key());
        let template = template(&own, "ca", name, lines);
        certtool(
            &["--generate-self-signed"],
            &[
                ("--load-privkey", &authority.key()),
                ("--template", &template),
                ("--outfile", &authority.certificate()),
            ],
        );
        authority
    }

    /// An authority that this one vouches for.
    pub fn subordinate(&self, name: &str) -> Self {
        self.subordinate_with(name, &["ca", "cert_signing_key", LIFETIME])
    }

    /// An authority that this one vouches for; `lines` say everything about its certificate.
    pub fn subordinate_with(&self, name: &str, lines: &[&str]) -> Self {
        let own = self.directory.join(name);
        fs::create_dir(&own).expect("a new directory for the authority");
        let subordinate = Self {
            directory: self.directory.clone(),
            name: name.to_owned(),
            who: "ca".to_owned(),
        };
        new_key(&subordinate.key());
        self.vouch(&subordinate, &subordinate.certificate(), lines);
        subordinate
    }

    /// Writes one more certificate of an authority, with the same name and key.
    pub fn vouch(&self, subordinate: &Self, into: &Path, lines: &[&str]) {
        let own = self.directory.join(&subordinate.name);
        let template = template(&own, "ca", &subordinate.name, lines);
        certtool(
            &["--generate-certificate"],
            &[
                ("--load-privkey", &subordinate.key()),
                ("--load-ca-certificate", &self.certificate()),
                ("--load-ca-privkey", &self.key()),
                ("--template", &template),
                ("--outfile", into),
            ],
        );
    }

    /// The holder of the certificate and key `who`-cert.pem and `who`-key.pem in `directory`, who acts as
    /// if it were an authority.
    pub fn by(directory: &Path, who: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            name: String::new(),
            who: who.to_owned(),
        }
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        let file = format!("{}-cert.pem", self.who);
        self.directory.join(&self.name).join(file)
    }

    /// A directory for clients that trust this authority and have no certificate of their own.
    pub fn trusting(&self, name: &str) -> PathBuf {
        let into = self.directory.join(name);
        fs::create_dir(&into).expect("a new directory for certificates");
        self.trust(&into);
        into
    }

    /// Makes whoever uses the directory `into` trust this authority, and no other.
    pub fn trust(&self, into: &Path) {
        fs::copy(self.certificate(), into.join("ca-cert.pem")).expect("copy a certificate");
    }

    /// A directory for a server; `lines` tell certtool which names it has, and what is special about it.
    pub fn server(&self, name: &str, lines: &[&str]) -> PathBuf {
        let into = self.trusting(name);
        self.renew_server(&into, lines);
        into
    }

    /// Replaces the certificate and key of a server.
    pub fn renew_server(&self, into: &Path, lines: &[&str]) {
        self.issue(into, "server", &[&["tls_www_server"], lines].concat());
    }

    /// A directory for a client with a certificate.
    pub fn client(&self, name: &str, lines: &[&str]) -> PathBuf {
        let into = self.trusting(name);
        self.issue(&into, "client", &[&["tls_www_client"], lines].concat());
        into
    }

    /// Writes `who`-cert.pem and `who`-key.pem, for directories that are put together by hand.
    pub fn issue(&self, into: &Path, who: &str, lines: &[&str]) {
        new_key(&into.join(format!("{who}-key.pem")));
        self.issue_for(into, who, lines);
    }

    /// Writes `who`-cert.pem for the key that is in `who`-key.pem.
    pub fn issue_for(&self, into: &Path, who: &str, lines: &[&str]) {
        let key = into.join(format!("{who}-key.pem"));
        certtool(
            &["--generate-certificate"],
            &[
                ("--load-privkey", &key),
                ("--load-ca-certificate", &self.certificate()),
                ("--load-ca-privkey", &self.key()),
                ("--template", &leaf(into, who, lines)),
                ("--outfile", &into.join(format!("{who}-cert.pem"))),
            ],
        );
    }

    /// Tells whoever uses the directory `into` that a certificate of ours is not to be believed any more.
    pub fn revoke(&self, certificate: &Path, into: &Path) {
        let template = into.join("crl.template");
        fs::write(&template, "crl_next_update = 2\ncrl_number = 1\n").expect("write a template");
        certtool(
            &["--generate-crl"],
            &[
                ("--load-ca-certificate", &self.certificate()),
                ("--load-ca-privkey", &self.key()),
                ("--load-certificate", certificate),
                ("--template", &template),
                ("--outfile", &into.join("ca-crl.pem")),
            ],
        );
    }

    /// Writes a list of the certificates that are not to be believed any more, which may be none; `lines`
    /// say for how long it is good.
    pub fn list(&self, into: &Path, revoked: &[&Path], lines: &[&str]) {
        let template = into.with_extension("template");
        let content = format!("crl_number = 1\n{}\n", lines.join("\n"));
        fs::write(&template, content).expect("write a template");
        let (key, certificate) = (self.key(), self.certificate());
        let mut files = vec![
            ("--load-ca-certificate", certificate.as_path()),
            ("--load-ca-privkey", &key),
            ("--template", &template),
            ("--outfile", into),
        ];
        let together = into.with_extension("revoked");
        if !revoked.is_empty() {
            fs::write(&together, joined(revoked)).expect("write certificates");
            files.push(("--load-certificate", &together));
        }
        certtool(&["--generate-crl"], &files);
    }

    fn key(&self) -> PathBuf {
        let file = format!("{}-key.pem", self.who);
        self.directory.join(&self.name).join(file)
    }
}

/// The content of several files, one behind the other.
pub fn joined(files: &[&Path]) -> Vec<u8> {
    files
        .iter()
        .flat_map(|file| fs::read(file).expect("read a file of our own"))
        .collect()
}

/// A directory for a server whose certificate nobody has signed but itself.
pub fn self_signed(directory: &Path, name: &str, lines: &[&str]) -> PathBuf {
    let into = directory.join(name);
    fs::create_dir(&into).expect("a new directory for certificates");
    let key = into.join("server-key.pem");
    let certificate = into.join("server-cert.pem");
    new_key(&key);
    certtool(
        &["--generate-self-signed"],
        &[
            ("--load-privkey", &key),
            ("--template", &leaf(&into, "server", lines)),
            ("--outfile", &certificate),
        ],
    );
    // Servers want an authority for their clients' certificates, even if they never ask for one.
    fs::copy(&certificate, into.join("ca-cert.pem")).expect("copy a certificate");
    into
}

/// The value of `tls-pin=` for the server whose files are in `directory`, computed as the manual says.
pub fn pin(directory: &Path) -> String {
    let certificate = directory.join("server-cert.pem");
    let command = format!(
        "openssl x509 -in {} -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum",
        text(&certificate)
    );
    let digest = program("sh", &["-c", &command]);
    let digest = digest.split(' ').next().expect("sha256sum prints a digest");
    format!("sha256:{digest}")
}

/// A file with a random key for each of `users`, readable only by its owner.
pub fn keys(directory: &Path, name: &str, users: &[&str]) -> PathBuf {
    let file = directory.join(name);
    for user in users {
        run_ok(
            Command::new("psktool").args(["-u", user, "-p"]).arg(&file),
            LIMIT,
        );
    }
    file
}

/// A file of keys with this content, readable only by its owner.
pub fn keys_as(directory: &Path, name: &str, content: &str) -> PathBuf {
    let file = directory.join(name);
    fs::write(&file, content).expect("write a file of keys");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("make it private");
    file
}

/// The key of `user`, as hexadecimal digits.
pub fn key_of(file: &Path, user: &str) -> String {
    let content = fs::read_to_string(file).expect("read a file of keys");
    let found = content.lines().find_map(|line| {
        let (name, key) = line.split_once(':')?;
        (name == user).then(|| key.to_owned())
    });
    found.expect("psktool has made a key for each user")
}

/// RSA, since qemu-nbd insists on keys that may encrypt, and elliptic ones may not. The shortest that every
/// library takes.
fn new_key(file: &Path) {
    certtool(
        &["--generate-privkey", "--key-type=rsa", "--bits=2048"],
        &[("--outfile", file)],
    );
}

/// A template for a certificate that signs nothing.
fn leaf(into: &Path, who: &str, lines: &[&str]) -> PathBuf {
    let mut lines = lines.to_vec();
    lines.extend(["signing_key", "encryption_key"]);
    if !lines.iter().any(|line| line.starts_with("expiration")) {
        lines.push(LIFETIME);
    }
    template(into, who, who, &lines)
}

fn template(into: &Path, file: &str, subject: &str, lines: &[&str]) -> PathBuf {
    let path = into.join(format!("{file}.template"));
    let content = format!("cn = \"{subject}\"\n{}\n", lines.join("\n"));
    fs::write(&path, content).expect("write a template");
    path
}

fn certtool(what: &[&str], files: &[(&str, &Path)]) {
    let mut command = Command::new("certtool");
    command.args(what);
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    let output = run(&mut command, LIMIT);
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
