//! TLS over any stream: who we are, whom we trust, and the encrypted connection itself.
//!
//! OpenSSL does the cryptography. `credentials` reads the user's files, afresh for every
//! connection, so that renewed ones are picked up; `session` runs the protocol over a socket that
//! several threads use, `socket` moves many records with each system call, and `verdict` says why
//! something failed. Keys are never part of a message, and memory of ours that held one is cleared.

mod credentials;
mod pieces;
#[allow(unsafe_code)]
mod rekey;
mod session;
mod socket;
#[cfg(test)]
mod tests;
mod verdict;

use std::path::PathBuf;

pub use self::session::Session;
use super::Error;

/// Length of a SHA-256 digest, bytes.
pub const PIN_LENGTH: usize = 32;

/// How to protect a connection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who we are and whom we trust.
    pub credentials: Credentials,
    /// The name or address that the server's certificate must bear, where one is known.
    pub hostname: Option<String>,
    /// Whether the server's certificate is checked. Where nobody says, it is, unless its key is
    /// pinned and no authority is named.
    pub verify: Option<bool>,
    /// Ciphers to offer, instead of the defaults.
    pub priority: Option<String>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) that the server must have.
    pub pin: Option<[u8; PIN_LENGTH]>,
}

impl Settings {
    /// Whether a connection could be begun with them: that the files are there and make sense.
    pub fn check(&self) -> Result<(), Error> {
        credentials::context(self).map(drop)
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
