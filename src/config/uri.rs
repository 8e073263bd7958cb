//! NBD URIs: one word that names the server, the export and how to protect the connection.
//!
//! The rules are those of the NBD project's `doc/uri.md` over RFC 3986 (numbers below are RFC
//! sections): `scheme://[user@][host][:port][/export][?key=value&...]`. Two things are in use
//! without being in `doc/uri.md` and are understood as libnbd does: the vsock schemes, and the
//! `tls-*` keys that name local files or users. What could be misread is refused, never guessed:
//! an export other than the one that was meant, or a connection without the protection that was
//! asked for, would go unnoticed.
//!
//! This file opens nothing and resolves nothing. Relative paths are returned as they stand, and
//! whether a TLS option suits the rest of the configuration is decided elsewhere.

#![deny(clippy::indexing_slicing)]

use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::params::shown;
use crate::proto::consts::MAX_STRING;
use crate::proto::name::ExportName;

/// Where IANA puts NBD servers; also the port of a vsock URI that names none.
const DEFAULT_PORT: u16 = 10809;
/// The host of a virtual machine: `VMADDR_CID_HOST` of vsock(7).
const VSOCK_HOST: u32 = 2;

/// A parsed NBD URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Where the server is.
    pub place: Place,
    /// The scheme demands TLS: the connection must fail rather than go on without.
    pub tls: bool,
    /// The user before the `@`. Also legal without TLS in the scheme, where TLS may still be
    /// wanted by other means; [`TlsOptions::username`] is then empty.
    pub username: Option<String>,
    /// The export name; empty is the server's default.
    pub export: ExportName,
    /// What the query says about TLS; empty unless [`tls`](Self::tls).
    pub options: TlsOptions,
}

/// Where the server of a URI is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host name or address, without brackets, and a port number.
    Tcp {
        /// Name or address, for the resolver.
        host: String,
        /// A number from 1 to 65535.
        port: String,
    },
    /// A Unix socket; neither empty nor with a zero byte, perhaps relative.
    Unix(PathBuf),
    /// A port of a vsock context.
    Vsock {
        /// The context id.
        cid: u32,
        /// The port.
        port: u32,
    },
}

/// What the query of a URI says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// `tls-type=`
    pub kind: Option<TlsKind>,
    /// `tls-hostname=`: the name that the server's certificate must bear.
    pub hostname: Option<String>,
    /// `tls-verify-peer=`
    pub verify_peer: Option<bool>,
    /// `tls-certificates=`: a directory, perhaps relative.
    pub certificates: Option<PathBuf>,
    /// `tls-psk-file=`: perhaps relative.
    pub psk_file: Option<PathBuf>,
    /// `tls-username=`; never given together with [`Uri::username`].
    pub username: Option<String>,
    /// `tls-priority=`
    pub priority: Option<String>,
}

/// How the two sides prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsKind {
    /// Not at all.
    Anonymous,
    /// With certificates.
    X509,
    /// With a secret that both know.
    Psk,
}

/// What is wrong with a URI. No message repeats the password of a well-formed `user:password@`;
/// whoever shows the URI beside it gives that up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A word that is no URI.
    #[error("no scheme: a URI begins with {SCHEME_LIST}")]
    NoScheme,
    /// A path that was meant as a Unix socket.
    #[error("a path is not a URI: write nbd+unix:///?socket=PATH, or use socket=PATH")]
    BarePath,
    /// A URI, but not of NBD.
    #[error("unknown scheme '{0}': a URI begins with {SCHEME_LIST}")]
    UnknownScheme(String),
    /// `nbd:name`, which could be read in several ways.
    #[error("'{0}:' must be followed by '//'")]
    NoSlashes(&'static str),
    /// A character that a URI cannot hold, or not there.
    #[error("{part}: {character:?} must be written {}", escaped(*.character))]
    Character {
        /// Where it stands.
        part: &'static str,
        /// What it is.
        character: char,
    },
    /// A percent sign without two hexadecimal digits.
    #[error("{part}: '{escape}' is not a percent escape (a percent sign itself is written %25)")]
    Escape {
        /// Where it stands.
        part: &'static str,
        /// The percent sign and what follows.
        escape: String,
    },
    /// `%00`: neither names nor paths can hold it.
    #[error("{0}: must not contain a zero byte (%00)")]
    ZeroByte(&'static str),
    /// Bytes that are no text.
    #[error("{0}: must be UTF-8")]
    NotUtf8(&'static str),
    /// `user:password@`
    #[error("a password in a URI is not supported (a colon in a user name is written %3A)")]
    Password,
    /// `user@` and `tls-username=`
    #[error("the user name is given twice: before '@' and as tls-username")]
    TwoUserNames,
    /// A host for a Unix socket; perhaps an export name after two slashes in place of three.
    #[error(
        "'{0}' before the path: a Unix socket has no host or port (an export name follows a third slash)"
    )]
    UnixHost(String),
    /// An IPv6 address without brackets.
    #[error("host: '{0}' has several colons (an IPv6 address is written in brackets)")]
    Colons(String),
    /// `[` without `]`
    #[error("host: '[' without ']'")]
    OpenBracket,
    /// `[...]x`
    #[error("host: '{0}' after ']': only a colon and a port may follow")]
    AfterBracket(String),
    /// No IPv6 address between the brackets.
    #[error("host: '{0}' is not an IPv6 address")]
    BadIpv6(String),
    /// A TCP port out of range, or a service name.
    #[error("port '{0}': must be a number from 1 to 65535")]
    BadPort(String),
    /// A vsock port out of range.
    #[error("port '{0}': must be a number from 0 to 4294967295")]
    BadVsockPort(String),
    /// A vsock context id out of range, or a name.
    #[error("vsock context id '{0}': must be a number from 0 to 4294967295")]
    BadCid(String),
    /// A scheme for Unix sockets, and no socket.
    #[error("socket is missing: write {0}:///?socket=PATH")]
    NoSocket(&'static str),
    /// A socket, but the scheme is for something else.
    #[error("socket cannot be used with {given}: write {wanted}:///?socket=PATH for a Unix socket")]
    SocketElsewhere {
        /// The scheme.
        given: &'static str,
        /// The scheme for Unix sockets with the same protection.
        wanted: &'static str,
    },
    /// A query key that nobody defined. Ignoring it could drop a protection.
    #[error("unknown query key '{0}'")]
    UnknownKey(String),
    /// `?=value`
    #[error("query: '={0}' has no key")]
    NoKey(String),
    /// Which of the two would count?
    #[error("query key '{0}' is given twice")]
    RepeatedKey(&'static str),
    /// `?key=` or just `?key`
    #[error("{0}: must not be empty")]
    Empty(&'static str),
    /// `tls-type=` something else.
    #[error("tls-type '{0}': must be x509, psk or anon")]
    BadTlsType(String),
    /// `tls-verify-peer=` something else.
    #[error("tls-verify-peer '{0}': must be 0, 1, false or true")]
    BadVerifyPeer(String),
    /// A TLS option where the scheme does not demand TLS: it would protect nothing.
    #[error("{key} needs TLS: write {wanted}:// in place of {given}://")]
    WithoutTls {
        /// The first such key.
        key: &'static str,
        /// The scheme.
        given: &'static str,
        /// The same with TLS.
        wanted: &'static str,
    },
    /// Longer than the protocol allows.
    #[error("export name: {0} bytes long, more than the {MAX_STRING} that the protocol allows")]
    LongExport(usize),
}

/// Parses a URI.
pub fn parse(text: &str) -> Result<Uri, Error> {
    let (scheme, rest) = scheme(text)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // Splitting at the slash drops it: exactly one, any others belong to the name.
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let (username, address) = match authority.rsplit_once('@') {
        Some((userinfo, address)) => (user(userinfo)?, address),
        None => (None, authority),
    };
    let query = Query::parse(query)?;
    let place = place(scheme, address, query.socket)?;
    if let (false, Some(key)) = (scheme.tls, query.tls_key) {
        return Err(Error::WithoutTls {
            key,
            given: scheme.name,
            wanted: scheme.sibling(scheme.transport, true),
        });
    }
    if username.is_some() && query.options.username.is_some() {
        return Err(Error::TwoUserNames);
    }
    let export = decoded("export name", export)?;
    let length = export.len();
    // A NUL was refused before.
    let export = ExportName::new(export).ok_or(Error::LongExport(length))?;
    Ok(Uri {
        place,
        tls: scheme.tls,
        username,
        export,
        options: query.options,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Unix,
    Vsock,
}

#[derive(Clone, Copy)]
struct Scheme {
    name: &'static str,
    transport: Transport,
    tls: bool,
}

const SCHEME_LIST: &str =
    "nbd://, nbds://, nbd+unix://, nbds+unix://, nbd+vsock:// or nbds+vsock://";

const fn known(name: &'static str, transport: Transport, tls: bool) -> Scheme {
    Scheme {
        name,
        transport,
        tls,
    }
}

const SCHEMES: [Scheme; 6] = [
    known("nbd", Transport::Tcp, false),
    known("nbds", Transport::Tcp, true),
    known("nbd+unix", Transport::Unix, false),
    known("nbds+unix", Transport::Unix, true),
    known("nbd+vsock", Transport::Vsock, false),
    known("nbds+vsock", Transport::Vsock, true),
];

impl Scheme {
    /// What a message advises to write: another transport, or with TLS.
    fn sibling(self, transport: Transport, tls: bool) -> &'static str {
        SCHEMES
            .iter()
            .find(|other| other.transport == transport && other.tls == tls)
            .map_or(self.name, |other| other.name)
    }
}

/// The scheme, and what follows `://`. Schemes have no case (3.1).
fn scheme(text: &str) -> Result<(Scheme, &str), Error> {
    if text.starts_with(['/', '.']) {
        return Err(Error::BarePath);
    }
    let (name, rest) = text.split_once(':').ok_or(Error::NoScheme)?;
    let rest = rest.strip_prefix("//");
    let found = SCHEMES
        .into_iter()
        .find(|known| known.name.eq_ignore_ascii_case(name));
    match (found, rest) {
        (Some(scheme), Some(rest)) => Ok((scheme, rest)),
        (Some(scheme), None) => Err(Error::NoSlashes(scheme.name)),
        (None, Some(_)) => Err(Error::UnknownScheme(shown(name.as_bytes()))),
        // Without the slashes it is rather "host:port" than a scheme.
        (None, None) => Err(Error::NoScheme),
    }
}

/// The user before the `@`; none if there is nothing before it.
fn user(userinfo: &str) -> Result<Option<String>, Error> {
    // Looked for before anything else, so that no other message shows a piece of it.
    if userinfo.contains(':') {
        return Err(Error::Password);
    }
    let part = "user name";
    if userinfo.contains('@') {
        return Err(Error::Character {
            part,
            character: '@',
        });
    }
    let name = decoded_text(part, userinfo)?;
    Ok((!name.is_empty()).then_some(name))
}

fn place(scheme: Scheme, address: &str, socket: Option<PathBuf>) -> Result<Place, Error> {
    match (scheme.transport, socket) {
        // doc/uri.md leaves it open what a host means here; libnbd ignores it.
        (Transport::Unix, _) if !address.is_empty() => {
            Err(Error::UnixHost(shown(address.as_bytes())))
        }
        (Transport::Unix, Some(socket)) => Ok(Place::Unix(socket)),
        (Transport::Unix, None) => Err(Error::NoSocket(scheme.name)),
        (_, Some(_)) => Err(Error::SocketElsewhere {
            given: scheme.name,
            wanted: scheme.sibling(Transport::Unix, scheme.tls),
        }),
        (Transport::Tcp, None) => tcp(address),
        (Transport::Vsock, None) => vsock(address),
    }
}

/// `host`, `host:port` or `[address]:port`; any piece may be missing.
fn tcp(address: &str) -> Result<Place, Error> {
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => {
            let (inside, after) = bracketed.split_once(']').ok_or(Error::OpenBracket)?;
            let port = match after.strip_prefix(':') {
                Some(port) => port,
                None if after.is_empty() => "",
                None => return Err(Error::AfterBracket(shown(after.as_bytes()))),
            };
            (ipv6(inside)?, port)
        }
        None => {
            let (host, port) = split_port(address)?;
            (decoded_text("host", host)?, port)
        }
    };
    Ok(Place::Tcp {
        // As libnbd does; doc/uri.md leaves it to the client.
        host: if host.is_empty() {
            "localhost".to_owned()
        } else {
            host
        },
        port: tcp_port(port)?.to_string(),
    })
}

/// `cid`, `cid:port` or less.
fn vsock(address: &str) -> Result<Place, Error> {
    let (cid, port) = split_port(address)?;
    Ok(Place::Vsock {
        cid: match cid {
            "" => VSOCK_HOST,
            cid => decimal(cid).ok_or_else(|| Error::BadCid(shown(cid.as_bytes())))?,
        },
        port: match port {
            "" => u32::from(DEFAULT_PORT),
            port => decimal(port).ok_or_else(|| Error::BadVsockPort(shown(port.as_bytes())))?,
        },
    })
}

fn split_port(address: &str) -> Result<(&str, &str), Error> {
    match address.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(Error::Colons(shown(address.as_bytes()))),
        Some(pieces) => Ok(pieces),
        None => Ok((address, "")),
    }
}

/// A colon with no port behind it is legal and means the default (3.2.3).
fn tcp_port(text: &str) -> Result<u16, Error> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    decimal(text)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| Error::BadPort(shown(text.as_bytes())))
}

/// What is between the brackets, as the resolver wants it: the percent sign before a zone is
/// written `%25` in a URI (RFC 6874).
fn ipv6(inside: &str) -> Result<String, Error> {
    let (address, zone) = match inside.split_once("%25") {
        Some((address, zone)) => (address, Some(decoded_text("host", zone)?)),
        None => (inside, None),
    };
    if address.parse::<Ipv6Addr>().is_err() || zone.as_deref() == Some("") {
        return Err(Error::BadIpv6(shown(inside.as_bytes())));
    }
    Ok(match zone {
        Some(zone) => format!("{address}%{zone}"),
        None => address.to_owned(),
    })
}

/// Digits only: Rust's own parser also takes a plus sign.
fn decimal(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// What a query may hold.
const KEYS: [&str; 8] = [
    "socket",
    "tls-type",
    "tls-hostname",
    "tls-verify-peer",
    "tls-certificates",
    "tls-psk-file",
    "tls-username",
    "tls-priority",
];

#[derive(Default)]
struct Query {
    socket: Option<PathBuf>,
    options: TlsOptions,
    /// The first key that is about TLS, for a message.
    tls_key: Option<&'static str>,
}

impl Query {
    /// Both `&` and `;` separate, as in libnbd, which however stops looking for `;` where a `&`
    /// is still to come. A value with either inside is written with an escape; if it is not, its
    /// tail is refused as an unknown key and not quietly lost.
    fn parse(text: &str) -> Result<Self, Error> {
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
            "tls-type" => once(key, &mut options.kind, tls_kind(&full_text(key, value)?)?)?,
            "tls-hostname" => once(key, &mut options.hostname, full_text(key, value)?)?,
            "tls-verify-peer" => {
                let verify = boolean(&full_text(key, value)?)?;
                once(key, &mut options.verify_peer, verify)?;
            }
            "tls-certificates" => once(key, &mut options.certificates, path(key, value)?)?,
            "tls-psk-file" => once(key, &mut options.psk_file, path(key, value)?)?,
            "tls-username" => once(key, &mut options.username, full_text(key, value)?)?,
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
fn boolean(text: &str) -> Result<bool, Error> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        other => Err(Error::BadVerifyPeer(shown(other.as_bytes()))),
    }
}

/// A path is any bytes but zero.
fn path(key: &'static str, raw: &str) -> Result<PathBuf, Error> {
    if raw.is_empty() {
        return Err(Error::Empty(key));
    }
    Ok(PathBuf::from(OsString::from_vec(decoded(key, raw)?)))
}

fn full_text(key: &'static str, raw: &str) -> Result<String, Error> {
    if raw.is_empty() {
        return Err(Error::Empty(key));
    }
    decoded_text(key, raw)
}

fn decoded_text(part: &'static str, raw: &str) -> Result<String, Error> {
    String::from_utf8(decoded(part, raw)?).map_err(|_| Error::NotUtf8(part))
}

/// One piece of the URI with its escapes replaced. Every piece that may have some comes through
/// here, hence it is also the place where illegal characters are seen. A plus sign is itself (2.2):
/// it means a space in web forms only.
fn decoded(part: &'static str, raw: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        if character == '%' {
            let digits = characters.as_str();
            let byte = characters
                .next()
                .and_then(|c| c.to_digit(16))
                .zip(characters.next().and_then(|c| c.to_digit(16)))
                .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
            match byte {
                Some(0) => return Err(Error::ZeroByte(part)),
                Some(byte) => bytes.push(byte),
                None => {
                    let after: String = digits.chars().take(2).collect();
                    return Err(Error::Escape {
                        part,
                        escape: format!("%{}", shown(after.as_bytes())),
                    });
                }
            }
        } else if legal(character) {
            // Legal characters are ASCII, one byte each.
            bytes.extend(u8::try_from(character));
        } else {
            return Err(Error::Character { part, character });
        }
    }
    Ok(bytes)
}

/// Characters that may stand for themselves (appendix A: `pchar`, `/` and `?`). `#` would begin a
/// fragment, which an NBD URI does not have; brackets belong to addresses only.
fn legal(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?".contains(character)
}

/// A character as it must be written.
fn escaped(character: char) -> String {
    let mut buffer = [0; 4];
    let bytes = character.encode_utf8(&mut buffer).bytes();
    bytes.map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests;
