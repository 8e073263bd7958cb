// SPDX-License-Identifier: BSD-3-Clause
//! Why TLS failed, in words that name what was wanted, what was offered, and the parameter that has
//! to do with it.
//!
//! What stands in a certificate is the server's word: it is bounded, and escaped. No key is told.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use openssl::hash::{MessageDigest, hash};
use openssl::nid::Nid;
use openssl::ssl::{self, ErrorCode, SslRef};
use openssl::x509::{GeneralNameRef, X509NameRef, X509Ref, X509VerifyResult};
use rustix::io::Errno;

use super::credentials::usual_directory;
use super::{Credentials, Settings, reasons};
use crate::proto::codec::printable;
use crate::transport::Error;

/// Longest text from a certificate that is told, bytes.
const MAX_TEXT: usize = 100;
/// Most names of a certificate that are told.
const MAX_NAMES: usize = 4;

/// Alerts, by their numbers (RFC 8446, 6.2), and where OpenSSL's numbers for those of a peer begin.
mod alert {
    pub const FROM_PEER: i32 = 1000;
    pub const BAD_RECORD_MAC: i32 = 20;
    pub const HANDSHAKE_FAILURE: i32 = 40;
    pub const BAD_CERTIFICATE: i32 = 42;
    pub const CERTIFICATE_UNKNOWN: i32 = 46;
    pub const ILLEGAL_PARAMETER: i32 = 47;
    pub const UNKNOWN_CA: i32 = 48;
    pub const DECRYPT_ERROR: i32 = 51;
    pub const PROTOCOL_VERSION: i32 = 70;
    pub const INSUFFICIENT_SECURITY: i32 = 71;
    pub const UNRECOGNIZED_NAME: i32 = 112;
    pub const UNKNOWN_PSK_IDENTITY: i32 = 115;
    pub const CERTIFICATE_REQUIRED: i32 = 116;
}

/// A handshake that failed.
pub fn refused(error: &ssl::Error, ssl: &SslRef, settings: &Settings) -> Error {
    // The verdict is there also where it was not asked for; it counts if it is what failed.
    let ours = error
        .ssl_error()
        .is_some_and(|stack| reasons(stack).contains("certificate verify failed"));
    match &settings.credentials {
        Credentials::Psk { username, .. } if ours => certificate_instead_of_key(username),
        Credentials::Psk { username, .. } => without_key(failure(error), error, username),
        Credentials::X509(directory) if ours && ssl.verify_result() != X509VerifyResult::OK => {
            not_accepted(ssl, settings, directory.as_deref())
        }
        Credentials::X509(_) => match alert_of(error) {
            Some(alert::HANDSHAKE_FAILURE | alert::INSUFFICIENT_SECURITY) => Error::Tls(format!(
                "the server found nothing in common with us: {}; it may want other ciphers \
                 (tls-priority=), or a pre-shared key (tls-psk=)",
                text(error)
            )),
            Some(alert::PROTOCOL_VERSION) => Error::Tls(format!(
                "the server has neither TLS 1.2 nor 1.3: {}",
                text(error)
            )),
            Some(alert::UNRECOGNIZED_NAME) => Error::Tls(format!(
                "the server does not know the name \"{}\": {} (tls-hostname=)",
                shown(settings.hostname.as_deref().unwrap_or_default()),
                text(error)
            )),
            _ => match failure(error) {
                Error::Closed => Error::TlsRefused(
                    "the server closed the connection, as it may if it wants a pre-shared key \
                     (tls-psk=), a certificate of ours (tls-certificates=), or other ciphers \
                     (tls-priority=)"
                        .to_owned(),
                ),
                other => other,
            },
        },
    }
}

/// An established connection, or a handshake, that failed for a reason of the connection's.
pub fn failure(error: &ssl::Error) -> Error {
    if error.code() == ErrorCode::ZERO_RETURN {
        return Error::Closed;
    }
    if let Some(io) = error.io_error() {
        return match Errno::from_io_error(io) {
            Some(errno) => Error::Io {
                call: "receive",
                errno,
            },
            // The socket's own word for output that nobody takes.
            None if io.kind() == std::io::ErrorKind::OutOfMemory => Error::Tls(
                "the server wants answers from TLS without end, and takes none".to_owned(),
            ),
            None => Error::Closed,
        };
    }
    let Some(stack) = error.ssl_error() else {
        return Error::Closed;
    };
    let reasons = reasons(stack);
    if reasons.contains("unexpected eof") {
        return Error::Closed;
    }
    // TLS 1.3 servers judge our certificate after the handshake; the verdict is an alert.
    match alert_of(error) {
        Some(
            alert::BAD_CERTIFICATE..=alert::CERTIFICATE_UNKNOWN
            | alert::UNKNOWN_CA
            | alert::CERTIFICATE_REQUIRED,
        ) => Error::Tls(format!(
            "the server refused our certificate: {reasons} (tls-certificates=)"
        )),
        _ => Error::Tls(reasons),
    }
}

/// What the chain of certificates does not say.
pub fn check_peer(ssl: &SslRef, settings: &Settings) -> Result<(), Error> {
    let certificate = ssl.peer_certificate();
    if let (Credentials::Psk { username, .. }, Some(_)) = (&settings.credentials, &certificate) {
        return Err(certificate_instead_of_key(username));
    }
    if let (Credentials::X509(_), true, Some(certificate)) =
        (&settings.credentials, settings.verifies(), &certificate)
    {
        check_common_name(ssl, settings, certificate)?;
    }
    let Some(pin) = &settings.pin else {
        return Ok(());
    };
    match certificate.as_deref().and_then(key_digest) {
        Some(digest) if digest == *pin => Ok(()),
        Some(digest) => Err(Error::Tls(format!(
            "the server's public key is not the pinned one, but sha256:{} (tls-pin=)",
            hex(&digest)
        ))),
        None => Err(Error::Tls(
            "the server's public key is not the pinned one: it shows none (tls-pin=)".to_owned(),
        )),
    }
}

/// Refuses a name that is only the subject's common name where that does not count. OpenSSL takes
/// it also beside addresses, and applies the limits that an authority has set for names to some
/// common names only: not to "localhost", nor where there is an asterisk.
fn check_common_name(
    ssl: &SslRef,
    settings: &Settings,
    certificate: &X509Ref,
) -> Result<(), Error> {
    let hostname = settings.hostname.as_deref();
    let Some(hostname) = hostname.filter(|name| name.parse::<IpAddr>().is_err()) else {
        return Ok(());
    };
    let others = certificate.subject_alt_names();
    let others: Vec<&GeneralNameRef> = others.iter().flatten().collect();
    if others.iter().any(|other| other.dnsname().is_some()) {
        return Ok(());
    }
    let has_address = others.iter().any(|other| other.ipaddress().is_some());
    let why = if has_address {
        "it is for addresses, and not for"
    } else if ssl
        .verified_chain()
        .is_none_or(|chain| chain.iter().any(limits_names))
    {
        "an authority over it is limited to certain names, which says nothing about a common name like"
    } else {
        return Ok(());
    };
    Err(Error::Tls(format!(
        "the server's certificate is not accepted: {why} \"{}\" (tls-hostname=)",
        shown(hostname)
    )))
}

/// Whether an authority's certificate has limits for the names in those that it signs (RFC 5280,
/// 4.2.1.10). One that cannot be looked at has.
fn limits_names(certificate: &X509Ref) -> bool {
    // id-ce-nameConstraints, 2.5.29.30.
    const IDENTIFIER: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x1e];
    certificate.to_der().map_or(true, |der| {
        der.windows(IDENTIFIER.len()).any(|it| it == IDENTIFIER)
    })
}

/// Says what was not checked.
pub fn warn_of_gaps(settings: &Settings) {
    if matches!(settings.credentials, Credentials::Psk { .. }) || settings.pin.is_some() {
        return;
    }
    if settings.verify == Some(false) {
        log::warn!(
            target: "tls-unverified",
            "TLS: the server's certificate was NOT checked, as tls-verify=false demands"
        );
    } else if settings.hostname.is_none() {
        log::warn!(
            target: "tls-name",
            "TLS: the certificate's name was not checked, since none is known (tls-hostname=)"
        );
    }
}

/// The server has an answer for us, but not the one that the key would have let it give.
fn certificate_instead_of_key(username: &str) -> Error {
    Error::Tls(format!(
        "the server did not use the pre-shared key of \"{}\", but showed a certificate; where that is \
         what it has, tls-certificates= takes the place of tls-psk=",
        shown(username)
    ))
}

/// A handshake with a pre-shared key that the server ended.
fn without_key(failure: Error, error: &ssl::Error, username: &str) -> Error {
    let user = shown(username);
    match (failure, alert_of(error)) {
        (Error::Closed, _) => Error::TlsRefused(format!(
            "the server closed the connection, as it may if it does not accept the key of \"{user}\" \
             (tls-psk=, tls-username=), or has certificates instead (tls-certificates=)"
        )),
        (
            _,
            Some(
                alert::UNKNOWN_PSK_IDENTITY
                | alert::DECRYPT_ERROR
                | alert::BAD_RECORD_MAC
                | alert::ILLEGAL_PARAMETER,
            ),
        ) => Error::TlsRefused(format!(
            "the server does not accept the key of \"{user}\": {} (tls-psk=, tls-username=)",
            text(error)
        )),
        (_, Some(alert::HANDSHAKE_FAILURE | alert::INSUFFICIENT_SECURITY)) => Error::Tls(format!(
            "the server found nothing in common with us: {}; it may have no pre-shared keys, but \
             certificates (tls-certificates= in place of tls-psk=), or want other ciphers \
             (tls-priority=)",
            text(error)
        )),
        (other, _) => other,
    }
}

/// The server's certificate, and why it is not good enough.
fn not_accepted(ssl: &SslRef, settings: &Settings, named: Option<&Path>) -> Error {
    let result = ssl.verify_result();
    let mut message = format!(
        "the server's certificate is not accepted: {}",
        result.error_string()
    );
    // The first is the server's own; the last is the one whose issuer was looked for.
    let chain = ssl.peer_cert_chain();
    let leaf = chain.and_then(|chain| chain.get(0));
    let last = chain.and_then(|chain| chain.iter().last());
    let (Some(leaf), Some(last)) = (leaf, last) else {
        return Error::Tls(message);
    };
    // Writing to a string does not fail.
    let _ = match result.as_raw() {
        openssl_code::HOSTNAME_MISMATCH | openssl_code::IP_ADDRESS_MISMATCH => write!(
            message,
            ": it is for {}, not for \"{}\" (tls-hostname=)",
            names(leaf),
            shown(settings.hostname.as_deref().unwrap_or_default())
        ),
        openssl_code::SELF_SIGNED_LEAF => write!(
            message,
            ": it is that of {}, and not in {} (tls-certificates=); its key can be pinned \
             (tls-pin=sha256:{})",
            distinguished(leaf.subject_name()),
            authorities(named),
            key_digest(leaf).map_or_else(|| "?".to_owned(), |digest| hex(&digest))
        ),
        openssl_code::NO_ISSUER
        | openssl_code::NO_LOCAL_ISSUER
        | openssl_code::SELF_SIGNED_IN_CHAIN
        | openssl_code::LEAF_SIGNATURE => write!(
            message,
            ": {} was issued by {}, who is not in {} (tls-certificates=)",
            names(leaf),
            distinguished(last.issuer_name()),
            authorities(named)
        ),
        openssl_code::NOT_YET_VALID | openssl_code::EXPIRED => {
            let all = chain.into_iter().flatten();
            let spans = all.map(|one| {
                format!(
                    "{} is valid from {} to {}",
                    distinguished(one.subject_name()),
                    one.not_before(),
                    one.not_after()
                )
            });
            let spans: Vec<String> = spans.take(MAX_NAMES).collect();
            write!(message, ": {} (tls-verify=, tls-pin=)", spans.join("; "))
        }
        _ => write!(
            message,
            ": {} was issued by {} (tls-certificates=, tls-verify=)",
            names(leaf),
            distinguished(last.issuer_name())
        ),
    };
    Error::Tls(message)
}

/// `X509_V_ERR_*`.
mod openssl_code {
    pub const NO_ISSUER: i32 = 2;
    pub const NOT_YET_VALID: i32 = 9;
    pub const EXPIRED: i32 = 10;
    pub const SELF_SIGNED_LEAF: i32 = 18;
    pub const SELF_SIGNED_IN_CHAIN: i32 = 19;
    pub const NO_LOCAL_ISSUER: i32 = 20;
    pub const LEAF_SIGNATURE: i32 = 21;
    pub const HOSTNAME_MISMATCH: i32 = 62;
    pub const IP_ADDRESS_MISMATCH: i32 = 64;
}

/// Whose word counts.
fn authorities(named: Option<&Path>) -> String {
    let directory = named.map(Path::to_owned).or_else(usual_directory);
    match directory {
        Some(directory) => {
            let file = directory.join("ca-cert.pem");
            printable(file.as_os_str().as_encoded_bytes(), usize::MAX)
        }
        None => "the system's authorities".to_owned(),
    }
}

/// The names for which a certificate is, or whose it is where it has none.
fn names(certificate: &X509Ref) -> String {
    let mut names = Vec::new();
    let mut more = false;
    for name in certificate.subject_alt_names().iter().flatten() {
        let name = match (name.dnsname(), name.ipaddress()) {
            (Some(name), _) => format!("\"{}\"", shown(name)),
            (_, Some(bytes)) => match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
                (Ok(four), _) => std::net::Ipv4Addr::from(four).to_string(),
                (_, Ok(sixteen)) => std::net::Ipv6Addr::from(sixteen).to_string(),
                _ => continue,
            },
            _ => continue,
        };
        more = names.len() == MAX_NAMES;
        if more {
            break;
        }
        names.push(name);
    }
    if names.is_empty() {
        return distinguished(certificate.subject_name());
    }
    let mut text = names.join(", ");
    if more {
        text.push_str(" and others");
    }
    text
}

/// What a distinguished name says, its common name if it has one.
fn distinguished(name: &X509NameRef) -> String {
    let entry = name
        .entries_by_nid(Nid::COMMONNAME)
        .chain(name.entries())
        .next();
    match entry {
        Some(entry) => format!("\"{}\"", printable(entry.data().as_slice(), MAX_TEXT)),
        None => "somebody without a name".to_owned(),
    }
}

fn key_digest(certificate: &X509Ref) -> Option<[u8; super::PIN_LENGTH]> {
    let der = certificate.public_key().ok()?.public_key_to_der().ok()?;
    let digest = hash(MessageDigest::sha256(), &der).ok()?;
    digest.as_ref().try_into().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The alert by which the peer ended it.
fn alert_of(error: &ssl::Error) -> Option<i32> {
    let errors = error.ssl_error()?.errors();
    errors
        .iter()
        .map(|error| error.reason_code() - alert::FROM_PEER)
        .find(|number| (0..256).contains(number))
}

fn text(error: &ssl::Error) -> String {
    error.ssl_error().map(reasons).unwrap_or_default()
}

/// A name that somebody gave, as messages show it.
pub fn shown(name: &str) -> String {
    printable(name.as_bytes(), MAX_TEXT)
}
