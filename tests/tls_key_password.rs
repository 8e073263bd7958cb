// SPDX-License-Identifier: BSD-3-Clause
//! Keys of the client that are encrypted: nobody is asked on a terminal, and the password is told to nobody.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::clients::{LIMIT, program, text};
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::process::{run, run_ok};
use common::tls::{nbdkit, opens, refused_at_start, says};
use tempfile::TempDir;

const PASSWORD: &str = "Wh1teRabb1t";
/// What OpenSSL would say to whoever sits at a terminal.
const PROMPT: &str = "pass phrase";

/// A server that wants to see a certificate, and a client that has one, whose key is encrypted.
struct Parties {
    directory: TempDir,
    upstream: Nbdkit,
    client: PathBuf,
}

impl Parties {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(directory.path(), "authority");
        let client = authority.client("client", &[]);
        let server = authority.server("server", LOCALHOST);
        let args = ["--tls-verify-peer", "memory", "1M"];
        let upstream = nbdkit(directory.path(), &server, &args);
        let parties = Self {
            directory,
            upstream,
            client,
        };
        parties.encrypt(&["pkcs8", "-topk8"]);
        parties
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Encrypts the key in another way, by this command of openssl's.
    fn encrypt(&self, how: &[&str]) {
        let plain = self.path().join("plain.pem");
        let key = self.client.join("client-key.pem");
        if !plain.exists() {
            fs::copy(&key, &plain).expect("copy a key");
        }
        let password = format!("pass:{PASSWORD}");
        let files = [
            "-in",
            text(&plain),
            "-out",
            text(&key),
            "-passout",
            &password,
        ];
        program("openssl", &[how, &files].concat());
    }

    /// The parameters, but for the password.
    fn certificates(&self) -> String {
        format!("tls-certificates={}", text(&self.client))
    }

    fn opens_with(&self, password: &str) -> String {
        let certificates = self.certificates();
        let parameters = [
            "tls=require",
            "tls-hostname=localhost",
            &certificates,
            password,
        ];
        let front = forward(self.path(), self.upstream.socket(), &parameters);
        opens(&front);
        front.stderr()
    }

    fn fails_with(&self, passwords: &[&str]) -> String {
        let certificates = self.certificates();
        let parameters = ["socket=/nowhere", "tls=require", &certificates];
        refused_at_start(&[&parameters, passwords].concat())
    }
}

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool", "openssl"])
}

#[test]
fn missing_password_is_an_error_at_the_start() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    let key = text(&parties.client).to_owned() + "/client-key.pem";
    for how in [
        &["pkcs8", "-topk8"][..],
        &["rsa", "-aes128", "-traditional"],
    ] {
        parties.encrypt(how);
        let certificates = parties.certificates();
        let mut command = Command::new("nbdkit");
        command
            .arg("-U-")
            .arg(common::plugin())
            .args(["socket=/nowhere", "tls=require", &certificates])
            .args(["--run", "true"]);
        let output = run(&mut command, LIMIT);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        says(&stderr, &[&key, "encrypted", "tls-key-password"]);
    }
}

#[test]
fn nobody_who_sits_at_a_terminal_is_asked() {
    if !ready() || !need_all(&["script"]) {
        return;
    }
    let parties = Parties::new();
    for how in [
        &["pkcs8", "-topk8"][..],
        &["rsa", "-aes128", "-traditional"],
    ] {
        parties.encrypt(how);
        let certificates = parties.certificates();
        let nbdkit = format!(
            "nbdkit -U- {} socket=/nowhere tls=require {certificates} --run true",
            text(&common::plugin())
        );
        let mut command = Command::new("script");
        command.args(["-qec", &nbdkit, "/dev/null"]);
        // To wait for an answer would be a failure by deadline.
        let output = run(&mut command, LIMIT);
        let shown = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(!shown.contains(PROMPT), "{shown}");
        says(&shown, &["tls-key-password"]);
    }
}

#[test]
fn password_may_be_given_in_nbdkits_ways() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    let file = parties.path().join("password");
    fs::write(&file, format!("{PASSWORD}\n")).expect("write a password");
    parties.opens_with(&format!("tls-key-password={PASSWORD}"));
    parties.opens_with(&format!("tls-key-password=+{}", text(&file)));
    // By descriptor.
    let script = "exec 9<\"$1\"; shift; exec \"$@\" tls-key-password=-9 \
                  --run 'nbdinfo --size \"$uri\"'";
    let mut command = Command::new("bash");
    command
        .args(["-c", script, "bash", text(&file), "nbdkit", "-U-"])
        .arg(common::plugin())
        .arg(format!("socket={}", text(parties.upstream.socket())))
        .args(["tls=require", "tls-hostname=localhost"])
        .arg(parties.certificates());
    assert_eq!(run_ok(&mut command, LIMIT), "1048576\n");
}

#[test]
fn keys_may_be_encrypted_in_every_usual_way() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    let password = format!("tls-key-password={PASSWORD}");
    for how in [
        &[
            "pkcs8",
            "-topk8",
            "-v2",
            "aes-256-cbc",
            "-v2prf",
            "hmacWithSHA512",
        ][..],
        &["pkcs8", "-topk8", "-scrypt"],
        &["rsa", "-aes256", "-traditional"],
        &["pkey", "-aes128"],
    ] {
        parties.encrypt(how);
        parties.opens_with(&password);
    }
    // A password for a key that needs none does no harm.
    let key = parties.client.join("client-key.pem");
    fs::copy(parties.path().join("plain.pem"), key).expect("copy a key");
    parties.opens_with(&password);
}

#[test]
fn wrong_password_is_told_and_not_repeated() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    for how in [
        &["pkcs8", "-topk8"][..],
        &["rsa", "-aes128", "-traditional"],
    ] {
        parties.encrypt(how);
        let line = parties.fails_with(&["tls-key-password=MarchHare"]);
        says(
            &line,
            &["client-key.pem", "cannot be decrypted", "tls-key-password"],
        );
        assert!(
            !line.contains("MarchHare") && !line.contains(PROMPT),
            "{line}"
        );
        let long = "MarchHare".repeat(1000);
        let line = parties.fails_with(&[&format!("tls-key-password={long}")]);
        says(&line, &["client-key.pem", "tls-key-password", "longer"]);
        assert!(!line.contains("MarchHare"), "{line}");
    }
}

#[test]
fn password_that_cannot_be_had_is_an_error() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    says(
        &parties.fails_with(&["tls-key-password="]),
        &["tls-key-password", "must not be empty"],
    );
    says(
        &parties.fails_with(&["tls-key-password=+/nowhere"]),
        &["/nowhere"],
    );
    // There is no terminal here.
    let line = parties.fails_with(&["tls-key-password=-"]);
    assert!(!line.contains(PROMPT), "{line}");
}

#[test]
fn password_is_never_told() {
    if !ready() {
        return;
    }
    let parties = Parties::new();
    let file = parties.path().join("password");
    fs::write(&file, format!("{PASSWORD}\n")).expect("write a password");
    let password = format!("tls-key-password=+{}", text(&file));
    let certificates = parties.certificates();
    let parameters = [
        "-Dnbd.verbose=1",
        "tls=require",
        "tls-hostname=localhost",
        &certificates,
        &password,
    ];
    let front = forward(parties.path(), parties.upstream.socket(), &parameters);
    opens(&front);
    assert!(!front.stderr().contains(PASSWORD), "{}", front.stderr());
    let mut command = Command::new("nbdkit");
    command.arg(common::plugin()).arg("--dump-plugin");
    command.arg(format!("tls-key-password={PASSWORD}"));
    let output = run(&mut command, LIMIT);
    for text in [&output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(text).contains(PASSWORD));
    }
}

#[test]
fn nobody_is_asked_for_the_password_of_a_certificate() {
    if !ready() {
        return;
    }
    // Strange, but OpenSSL would ask.
    let parties = Parties::new();
    parties.encrypt(&["rsa", "-aes128", "-traditional"]);
    let key = fs::read_to_string(parties.client.join("client-key.pem")).expect("read a key");
    let certificate = key.replace("RSA PRIVATE KEY", "CERTIFICATE");
    let list = key.replace("RSA PRIVATE KEY", "X509 CRL");
    let password = format!("tls-key-password={PASSWORD}");
    for (file, content) in [
        ("client-cert.pem", &certificate),
        ("ca-crl.pem", &list),
        ("ca-cert.pem", &certificate),
    ] {
        fs::write(parties.client.join(file), content).expect("write a file");
        let line = parties.fails_with(&[&password]);
        says(&line, &[file, "is encrypted", "tls-certificates"]);
    }
}
