// SPDX-License-Identifier: BSD-3-Clause
//! What follows the question mark of a URI.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::{Error, TlsKind, TlsOptions, decimal, decoded, decoded_text, may_have_password};
use crate::config::params::shown;

/// What a query may hold.
const KEYS: [&str; 10] = [
    "socket",
    "nbd-port",
    "compress",
    "tls-type",
    "tls-hostname",
    "tls-verify-peer",
    "tls-certificates",
    "tls-psk-file",
    "tls-username",
    "tls-priority",
];

/// The keys and their values.
#[derive(Default)]
pub struct Query {
    /// `socket=`
    pub socket: Option<PathBuf>,
    /// `nbd-port=`
    pub port: Option<u32>,
    /// `compress=`
    pub compress: Option<bool>,
    /// `tls-*=`
    pub options: TlsOptions,
    /// The first key that is about TLS, for a message.
    pub tls_key: Option<&'static str>,
}

impl Query {
    /// Both `&` and `;` separate, as in libnbd, which however stops looking for `;` where a `&`
    /// is still to come. A value with either inside is written with an escape; if it is not, its
    /// tail is refused as an unknown key and not quietly lost.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut query = Self::default();
        for section in text.split(['&', ';']).filter(|section| !section.is_empty()) {
            let (key, value) = section.split_once('=').unwrap_or((section, ""));
            if key.is_empty() {
                return Err(Error::NoKey(shown(value.as_bytes())));
            }
            let key = decoded("query", key)?;
            let key = KEYS
                .into_iter()
                .find(|known| known.as_bytes() == key)
                .ok_or_else(|| Error::UnknownKey(shown(&key)))?;
            query.set(key, value)?;
        }
        Ok(query)
    }

    /// Takes one of [`KEYS`].
    fn set(&mut self, key: &'static str, value: &str) -> Result<(), Error> {
        let options = &mut self.options;
        match key {
            "socket" => return once(key, &mut self.socket, path(key, value)?),
            "nbd-port" => {
                let port = decimal(&full_text(key, value)?).ok_or(Error::BadVsockPort(key))?;
                return once(key, &mut self.port, port);
            }
            "compress" => {
                let compress = boolean(key, &full_text(key, value)?)?;
                return once(key, &mut self.compress, compress);
            }
            "tls-type" => once(key, &mut options.kind, tls_kind(&full_text(key, value)?)?)?,
            "tls-hostname" => once(key, &mut options.hostname, full_text(key, value)?)?,
            "tls-verify-peer" => {
                let verify = boolean(key, &full_text(key, value)?)?;
                once(key, &mut options.verify_peer, verify)?;
            }
            "tls-certificates" => once(key, &mut options.certificates, path(key, value)?)?,
            "tls-psk-file" => once(key, &mut options.psk_file, path(key, value)?)?,
            "tls-username" => once(key, &mut options.username, user_name(key, value)?)?,
            "tls-priority" => once(key, &mut options.priority, full_text(key, value)?)?,
            other => return Err(Error::UnknownKey(other.to_owned())),
        }
        self.tls_key.get_or_insert(key);
        Ok(())
    }
}

fn once<T>(key: &'static str, slot: &mut Option<T>, value: T) -> Result<(), Error> {
    match slot.replace(value) {
        Some(_) => Err(Error::RepeatedKey(key)),
        None => Ok(()),
    }
}

fn tls_kind(text: &str) -> Result<TlsKind, Error> {
    match text {
        "anon" => Ok(TlsKind::Anonymous),
        "x509" => Ok(TlsKind::X509),
        "psk" => Ok(TlsKind::Psk),
        other => Err(Error::BadTlsType(shown(other.as_bytes()))),
    }
}

/// doc/uri.md has `0` and `1`; the words are what people write.
fn boolean(key: &'static str, text: &str) -> Result<bool, Error> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        other => Err(Error::BadBoolean(key, shown(other.as_bytes()))),
    }
}

/// A path is any bytes but zero.
fn path(key: &'static str, raw: &str) -> Result<PathBuf, Error> {
    if raw.is_empty() {
        return Err(Error::Empty(key));
    }
    Ok(PathBuf::from(OsString::from_vec(decoded(key, raw)?)))
}

/// As in front of the `@`: what follows a colon may be a password.
fn user_name(key: &'static str, raw: &str) -> Result<String, Error> {
    if may_have_password(raw) {
        return Err(Error::Password);
    }
    full_text(key, raw)
}

fn full_text(key: &'static str, raw: &str) -> Result<String, Error> {
    if raw.is_empty() {
        return Err(Error::Empty(key));
    }
    decoded_text(key, raw)
}
