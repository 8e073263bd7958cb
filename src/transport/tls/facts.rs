// SPDX-License-Identifier: BSD-3-Clause
//! What was agreed for a connection, and who the server says it is, in words for people. Whatever a
//! certificate says is a text of the server's, and made printable.

use openssl::ssl::SslRef;
use openssl::x509::{X509NameRef, X509Ref};

use super::session::key_exchange;
use crate::proto::codec::printable;
use crate::proto::consts::MAX_TEXT;

/// Most bytes of a certificate's name that are told.
const NAME: usize = 4 * MAX_TEXT;

/// How a connection is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Such as `TLSv1.3`.
    pub version: String,
    /// Its name in the standards, such as `TLS_AES_256_GCM_SHA384`.
    pub cipher: Option<String>,
    /// Such as `X25519`; `None` where OpenSSL does not tell.
    pub key_exchange: Option<String>,
    /// The server's certificate, where it has sent one.
    pub certificate: Option<Certificate>,
}

/// A server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub subject: String,
    /// Who vouches for that.
    pub issuer: String,
    /// The last moment for which that is meant.
    pub expires: String,
}

impl Facts {
    /// Those of an established connection.
    pub(super) fn of(ssl: &SslRef) -> Self {
        let cipher = ssl.current_cipher();
        let name = cipher.map(|cipher| cipher.standard_name().unwrap_or_else(|| cipher.name()));
        Self {
            version: ssl.version_str().to_owned(),
            cipher: name.map(str::to_owned),
            key_exchange: key_exchange(ssl),
            certificate: ssl.peer_certificate().map(|own| Certificate::of(&own)),
        }
    }
}

impl Certificate {
    fn of(certificate: &X509Ref) -> Self {
        Self {
            subject: name(certificate.subject_name()),
            issuer: name(certificate.issuer_name()),
            expires: printable(certificate.not_after().to_string().as_bytes(), MAX_TEXT),
        }
    }
}

/// The parts of a name, as `openssl x509 -subject` writes them.
fn name(name: &X509NameRef) -> String {
    let part = |entry: &openssl::x509::X509NameEntryRef| {
        let value = entry.data().to_string();
        let key = entry.object().nid().short_name().unwrap_or("?");
        format!("{key} = {}", value.unwrap_or_default())
    };
    // Each part costs, and how many there are is the server's choice.
    let parts: Vec<_> = name.entries().take(32).map(part).collect();
    printable(parts.join(", ").as_bytes(), NAME)
}
