// SPDX-License-Identifier: BSD-3-Clause
//! TLS over any stream: who we are, whom we trust, and the encrypted connection itself.
//!
//! OpenSSL does the cryptography. `credentials` reads the user's files, afresh for every
//! connection, so that renewed ones are picked up, with `identity`, `revocation` and `psk` for
//! their kinds, `files` and `pem` for what they have in common; `session` runs the protocol over a
//! socket that several threads use, `socket` moves many records with each system call,
//! `facts` tells what was agreed, and `verdict` says why something failed. Keys are never part of a message, and memory of ours that
//! held one is cleared.

mod credentials;
mod facts;
mod files;
mod identity;
mod pem;
mod pieces;
mod psk;
#[allow(unsafe_code)]
mod rekey;
mod revocation;
mod session;
mod socket;
#[cfg(test)]
mod tests;
mod verdict;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use openssl::error::ErrorStack;
use zeroize::Zeroizing;

pub use self::credentials::Prepared;
pub use self::facts::{Certificate, Facts};
pub use self::files::Files;
pub use self::session::Session;
use super::Error;

/// Length of a SHA-256 digest, bytes.
pub const PIN_LENGTH: usize = 32;

/// How to protect a connection.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who we are and whom we trust.
    pub credentials: Credentials,
    /// The password of a client's key that is encrypted.
    pub key_password: Option<Password>,
    /// The name or address that the server's certificate must bear, where one is known.
    pub hostname: Option<String>,
    /// Whether the server's certificate is checked. Where nobody says, it is, unless its key is
    /// pinned and no authority is named.
    pub verify: Option<bool>,
    /// Ciphers to offer, instead of the defaults.
    pub priority: Option<String>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) that the server must have.
    pub pin: Option<[u8; PIN_LENGTH]>,
    /// What was read from files that can be read only once.
    pub files: Files,
}

impl Settings {
    /// Whether a connection could be begun with them: that the files are there and make sense.
    pub fn check(&self) -> Result<(), Error> {
        self.prepare().map(drop)
    }

    /// Whether the server's chain of certificates, and its name, must be right.
    fn verifies(&self) -> bool {
        // A pinned key needs no authority to vouch for it, unless one was named.
        let named = matches!(self.credentials, Credentials::X509(Some(_)));
        self.verify.unwrap_or(self.pin.is_none() || named)
    }

    /// Reads the files for one connection, before it is made.
    pub fn prepare(&self) -> Result<Prepared<'_>, Error> {
        Prepared::new(self)
    }
}

/// The kind of proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Certificates in a directory, or the usual places.
    X509(Option<PathBuf>),
    /// A key that both sides know, found in a file by the user's name.
    Psk {
        /// Lines of `name:hexkey`.
        file: PathBuf,
        /// Which of them.
        username: String,
    },
}

impl Default for Credentials {
    fn default() -> Self {
        Self::X509(None)
    }
}

/// A password. It is never shown, there is one copy of it, and that is cleared at the end.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Arc<Zeroizing<Vec<u8>>>);

impl Password {
    /// Keeps a copy.
    pub fn new(password: &[u8]) -> Self {
        Self(Arc::new(Zeroizing::new(password.to_vec())))
    }

    fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// What we think of a handshake that OpenSSL itself would go on with. Said in a callback of its, and
/// asked for behind it.
#[derive(Clone, Debug, Default)]
struct Verdict(Arc<OnceLock<Result<(), Error>>>);

impl Verdict {
    fn say(&self, verdict: Result<(), Error>) {
        // The first one counts.
        let _ = self.0.set(verdict);
    }

    fn said(&self) -> Option<Result<(), Error>> {
        self.0.get().cloned()
    }
}

fn openssl(what: &'static str) -> impl Fn(ErrorStack) -> Error {
    move |error| Error::Tls(format!("{what}: {}", reasons(&error)))
}

/// What OpenSSL says, without its file names and codes.
fn reasons(stack: &ErrorStack) -> String {
    let mut reasons: Vec<&str> = Vec::new();
    for error in stack.errors() {
        let reason = error.reason().unwrap_or("unknown error");
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    match reasons.is_empty() {
        true => "unknown error".to_owned(),
        false => reasons.join(", "),
    }
}
