// SPDX-License-Identifier: BSD-3-Clause
//! Servers that speak TLS only, and what becomes of the plugin before them.

use std::path::Path;
use std::process::Command;

use super::clients::{LIMIT, text};
use super::front::{Front, Refused};
use super::nbdkit::{Nbdkit, explanation};
use super::process::run;
use super::upstream::{Server, qemu_nbd};

/// nbdkit that serves over TLS and in no other way, with the certificates in the directory `certificates`.
pub fn nbdkit(directory: &Path, certificates: &Path, args: &[&str]) -> Nbdkit {
    let certificates = format!("--tls-certificates={}", text(certificates));
    Nbdkit::start(
        directory,
        &[&["--tls=require", &certificates], args].concat(),
    )
}

/// nbdkit that serves over TLS and in no other way to those who have a key in the file `keys`.
pub fn nbdkit_psk(directory: &Path, keys: &Path, args: &[&str]) -> Nbdkit {
    let keys = format!("--tls-psk={}", text(keys));
    Nbdkit::start(directory, &[&["--tls=require", &keys], args].concat())
}

/// qemu-nbd that serves the export `disk` over TLS and in no other way; `options` are more of what its
/// tls-creds-x509 object takes.
pub fn qemu(
    directory: &Path,
    certificates: &Path,
    options: &str,
    image: &Path,
    format: &str,
) -> Server {
    let object = format!(
        "tls-creds-x509,id=tls,endpoint=server,dir={},{options}",
        text(certificates)
    );
    let tls = ["--object", &object, "--tls-creds=tls"];
    qemu_nbd(directory, image, format, "disk", &tls)
}

/// A client can open and read the export; returns what nbdkit logged about that.
pub fn opens(nbdkit: &Nbdkit) -> String {
    let before = nbdkit.stderr().len();
    match Front::open(nbdkit.socket()) {
        Ok(mut front) => {
            assert_eq!(front.read(0, 512).map(|data| data.len()), Ok(512));
            front.close();
        }
        Err(Refused { .. }) => panic!("not opened:\n{}", nbdkit.stderr()),
    }
    nbdkit.stderr()[before..].to_owned()
}

/// No client can open the export; returns the one line in which nbdkit says why.
pub fn refused(nbdkit: &Nbdkit) -> String {
    let before = nbdkit.stderr().len();
    if Front::open(nbdkit.socket()).is_ok() {
        panic!("opened:\n{}", nbdkit.stderr());
    }
    explanation(&nbdkit.stderr()[before..])
}

/// nbdkit with the plugin and these parameters must not start; returns the one line in which it says why.
pub fn refused_at_start(parameters: &[&str]) -> String {
    let mut command = Command::new("nbdkit");
    // With a captive command no socket is left behind, and nothing runs on if nbdkit does start.
    command
        .arg("-U-")
        .arg(super::plugin())
        .args(parameters)
        .args(["--run", "echo started"]);
    let output = run(&mut command, LIMIT);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"", "{command:?}\n{stderr}");
    assert_eq!(output.status.code(), Some(1), "{command:?}\n{stderr}");
    explanation(&stderr)
}

/// Asserts that a line has all of these in it.
pub fn says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "says {word:?}: {line}");
    }
}
